//! The network as a burn module: built from a plan, run in training or evaluation.
//!
//! Invariant: field names are torchvision's, so a parameter's path is its state-dict name (`layer1.0.downsample.0.weight`);
//! batch norms are visited in one order, by forward passes and by updates.

use super::{BlockPlan, Init, POOL, POOL_KERNEL, ResNetOptions};
use crate::learn::{
    norm::{BatchNorm, BatchStats, Mode},
    ops::{ConvArgs, TrainOps, as_computed, average, conv2d, max_pool},
};
use burn::{
    module::{Module, Param},
    tensor::{Tensor, TensorData, backend::Backend},
};

/// A convolution without bias.
#[derive(Module, Debug)]
pub struct Conv2d<B: Backend> {
    /// `[filters, inputs, kernel, kernel]`.
    pub weight: Param<Tensor<B, 4>>,
    stride: usize,
    padding: usize,
}

impl<B: Backend> Conv2d<B> {
    fn new(shape: [usize; 4], args: ConvArgs, init: Init, stem: bool, draws: &mut Draws<'_, B>) -> Self {
        let weights = init.weights(stem, shape, draws.seed, *draws.position);
        *draws.position += 1;
        let weight = Param::from_data(TensorData::new(weights, shape), draws.device);
        Self {
            weight,
            stride: args.stride,
            padding: args.padding,
        }
    }
}

impl<B: TrainOps> Conv2d<B> {
    /// `[N, H, W, inputs]` -> `[N, H', W', filters]`, in the type of `x`.
    pub fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let weight = as_computed(self.weight.val(), &x);
        let args = ConvArgs {
            stride: self.stride,
            padding: self.padding,
        };
        conv2d(x, weight, args)
    }
}

/// What building needs: where weights come from and where they go.
struct Draws<'a, B: Backend> {
    seed: u64,
    position: &'a mut u64,
    device: &'a B::Device,
}

/// A residual block: relu(F(x) + shortcut(x)); F is two convolutions, or three in a bottleneck.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    /// 3x3, or 1x1 in a bottleneck.
    pub conv1: Conv2d<B>,
    /// After `conv1`.
    pub bn1: BatchNorm<B>,
    /// 3x3.
    pub conv2: Conv2d<B>,
    /// After `conv2`.
    pub bn2: BatchNorm<B>,
    /// A bottleneck's last, 1x1.
    pub conv3: Option<Conv2d<B>>,
    /// After `conv3`.
    pub bn3: Option<BatchNorm<B>>,
    /// Projection of the shortcut, where shapes differ.
    pub downsample: Option<(Conv2d<B>, BatchNorm<B>)>,
}

impl<B: Backend> Block<B> {
    fn new(plan: &BlockPlan, options: &ResNetOptions, draws: &mut Draws<'_, B>) -> Self {
        let mut layers = plan
            .convolutions()
            .into_iter()
            .map(|(inputs, outputs, kernel, stride)| {
                let args = BlockPlan::args(kernel, stride);
                let conv = Conv2d::new([outputs, inputs, kernel, kernel], args, options.init, false, draws);
                (conv, BatchNorm::new(outputs, draws.device))
            });
        let mut next = || layers.next().expect("a plan has as many convolutions as its block");
        let ((conv1, bn1), (conv2, mut bn2)) = (next(), next());
        let (conv3, mut bn3) = if plan.bottleneck {
            Some(next()).unzip()
        } else {
            (None, None)
        };
        let downsample = plan.projects().then(next);
        if options.zero_init_residual {
            let last: &mut BatchNorm<B> = bn3.as_mut().unwrap_or(&mut bn2);
            last.weight = Param::from_tensor(Tensor::zeros([last.channels()], draws.device));
        }
        Self {
            conv1,
            bn1,
            conv2,
            bn2,
            conv3,
            bn3,
            downsample,
        }
    }

    /// The block with each batch norm replaced, in the order in which [`Block::forward`] visits them.
    fn map_norms(mut self, f: &mut impl FnMut(BatchNorm<B>) -> BatchNorm<B>) -> Self {
        self.bn1 = f(self.bn1);
        if self.bn3.is_some() {
            self.bn2 = f(self.bn2);
            self.downsample = self.downsample.map(|(conv, norm)| (conv, f(norm)));
            self.bn3 = self.bn3.map(f);
        } else {
            self.downsample = self.downsample.map(|(conv, norm)| (conv, f(norm)));
            self.bn2 = f(self.bn2);
        }
        self
    }
}

impl<B: TrainOps> Block<B> {
    /// `[N, H, W, inputs]` -> `[N, H / stride, W / stride, outputs]`. The shortcut comes before the last batch norm, which adds
    /// it and rectifies in its own pass.
    pub fn forward(&self, x: Tensor<B, 4>, mode: &mut Mode<'_, B>) -> Tensor<B, 4> {
        let mut y = self.bn1.forward_relu(self.conv1.forward(x.clone()), mode);
        let mut last = (&self.conv2, &self.bn2);
        if let (Some(conv3), Some(bn3)) = (&self.conv3, &self.bn3) {
            y = self.bn2.forward_relu(self.conv2.forward(y), mode);
            last = (conv3, bn3);
        }
        let shortcut = match &self.downsample {
            Some((conv, norm)) => norm.forward(conv.forward(x), mode),
            None => x,
        };
        last.1.forward_add_relu(last.0.forward(y), shortcut, mode)
    }
}

/// A ResNet without its classifier.
#[derive(Module, Debug)]
pub struct ResNet<B: Backend> {
    /// The stem's convolution.
    pub conv1: Conv2d<B>,
    /// After it.
    pub bn1: BatchNorm<B>,
    /// First stage, stride 1.
    pub layer1: Vec<Block<B>>,
    /// Second stage, stride 2.
    pub layer2: Vec<Block<B>>,
    /// Third stage, stride 2.
    pub layer3: Vec<Block<B>>,
    /// Fourth stage, stride 2; empty in depth 8.
    pub layer4: Vec<Block<B>>,
    pools: bool,
}

impl<B: Backend> ResNet<B> {
    /// A network with fresh weights. `options` should have passed [`ResNetOptions::validate`]; `position` numbers the drawn
    /// parameters of the whole model and moves on by those made here.
    pub fn new(options: &ResNetOptions, seed: u64, position: &mut u64, device: &B::Device) -> Self {
        let mut draws = Draws { seed, position, device };
        let (filters, kernel, args) = options.stem_convolution();
        let conv1 = Conv2d::new([filters, 3, kernel, kernel], args, options.init, true, &mut draws);
        let mut stages = options.plan().into_iter().map(|stage| {
            let blocks = stage.iter().map(|plan| Block::new(plan, options, &mut draws));
            blocks.collect::<Vec<_>>()
        });
        let mut stage = || stages.next().unwrap_or_default();
        let (layer1, layer2, layer3, layer4) = (stage(), stage(), stage(), stage());
        let pools = options.stem.pools();
        Self {
            conv1,
            bn1: BatchNorm::new(filters, device),
            layer1,
            layer2,
            layer3,
            layer4,
            pools,
        }
    }

    fn stages(&self) -> [&Vec<Block<B>>; 4] {
        [&self.layer1, &self.layer2, &self.layer3, &self.layer4]
    }

    /// Values of a representation.
    pub fn representation_dim(&self) -> usize {
        let last = self.stages().into_iter().flatten().last();
        last.map_or(self.bn1.channels(), |block| {
            block.bn3.as_ref().unwrap_or(&block.bn2).channels()
        })
    }

    /// Trained values: all but the running statistics.
    pub fn num_parameters(&self) -> usize {
        let mut channels = 0;
        let _ = self.clone().map_norms(&mut |norm| {
            channels += norm.channels();
            norm
        });
        self.num_params() - 2 * channels
    }

    /// Batch norms, which is how many statistics a training pass pushes.
    pub fn norms(&self) -> usize {
        let block = |block: &Block<B>| 2 + usize::from(block.bn3.is_some()) + usize::from(block.downsample.is_some());
        1 + self.stages().into_iter().flatten().map(block).sum::<usize>()
    }

    /// The network with each batch norm replaced, in the order in which [`ResNet::forward`] visits them.
    fn map_norms(mut self, f: &mut impl FnMut(BatchNorm<B>) -> BatchNorm<B>) -> Self {
        self.bn1 = f(self.bn1);
        let mut stage = |blocks: Vec<Block<B>>| blocks.into_iter().map(|block| block.map_norms(f)).collect();
        self.layer1 = stage(self.layer1);
        self.layer2 = stage(self.layer2);
        self.layer3 = stage(self.layer3);
        self.layer4 = stage(self.layer4);
        self
    }

    /// The network after one more batch (momentum 0.1, unbiased variance). `batch`: what one training pass pushed.
    ///
    /// # Panics
    /// If there are not as many statistics as norms.
    pub fn update_running(self, batch: &[BatchStats<B>]) -> Self {
        assert_eq!(batch.len(), self.norms(), "one statistic a norm");
        let mut batch = batch.iter();
        self.map_norms(&mut |norm| norm.update_running(batch.next().expect("counted above")))
    }

    /// The network with running statistics that are the plain average over batches (PyTorch's `momentum=None`): what an
    /// untrained network needs before it is evaluated. `batches`: what each of several training passes pushed.
    ///
    /// # Panics
    /// If there is no batch, or not as many statistics as norms.
    pub fn calibrate(self, batches: &[Vec<BatchStats<B>>]) -> Self {
        assert!(batches.iter().all(|b| b.len() == self.norms()), "one statistic a norm");
        let mut at = 0;
        self.map_norms(&mut |norm| {
            let stats: Vec<_> = batches.iter().map(|batch| batch[at].clone()).collect();
            at += 1;
            norm.calibrate(&stats)
        })
    }
}

impl<B: TrainOps> ResNet<B> {
    /// Normalised images `[N, S, S, 3]` -> representations `[N, F]`: the last maps' averages, taken in f32. Everything else is
    /// computed in the type of `x`, and so are the representations.
    pub fn forward(&self, x: Tensor<B, 4>, mode: &mut Mode<'_, B>) -> Tensor<B, 2> {
        let mut x = self.bn1.forward_relu(self.conv1.forward(x), mode);
        if self.pools {
            x = max_pool(x, POOL_KERNEL, POOL);
        }
        for block in self.stages().into_iter().flatten() {
            x = block.forward(x, mode);
        }
        average(x)
    }
}
