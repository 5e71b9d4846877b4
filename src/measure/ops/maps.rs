//! Tensors as a training step has them: maps and gradients of random values, each made by the operations that make it there.
//!
//! In: the network's layers. Out: float primitives. How a kernel lays its result out in memory is the backend's own affair, and the
//! next one may be fast on just that: so a convolution gets the output of a batch norm, and a batch norm that of a convolution.

use crate::learn::input::{Normalize, Uploaded};
use crate::learn::norm::EPSILON;
use crate::learn::ops::{NormSaved, TrainAd, TrainOps, average, cast, primitive, tensor};
use crate::learn::resnet::{Layer, NormKind, POOL, POOL_KERNEL, Source};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Distribution, Tensor};
use bytes::Bytes;

/// The backend that computes, below the one that keeps the graph.
pub(super) type Inner<B> = <B as AutodiffBackend>::InnerBackend;
/// Its tensors.
pub(super) type Float<B> = FloatTensor<Inner<B>>;

/// Makes the tensors of one network.
pub(super) struct Maps<'a, B: TrainAd> {
    pub(super) layers: &'a [Layer],
    /// Images at a time.
    pub(super) rows: usize,
    /// What the network computes in.
    pub(super) dtype: DType,
    pub(super) normalize: Normalize,
    pub(super) device: B::Device,
}

impl<B: TrainAd> Maps<'_, B> {
    /// Uniform in -1..1.
    pub(super) fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<Inner<B>, D> {
        Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &self.device)
    }

    /// Maps in rows of pixels, as nobody's result.
    fn plain(&self, channels: usize, side: usize) -> Float<B> {
        let x: Tensor<Inner<B>, 4> = self.random([self.rows, side, side, channels]);
        primitive(cast(x, self.dtype))
    }

    /// A kernel whose outputs are about as large as its inputs.
    pub(super) fn weight(&self, layer: &Layer) -> Float<B> {
        let shape = [layer.outputs, layer.inputs, layer.kernel, layer.kernel];
        let scale = (3.0 / (layer.weights() / layer.outputs) as f64).sqrt();
        primitive(cast(self.random(shape) * scale, self.dtype))
    }

    /// Bytes of a batch of two views, no two images the same.
    pub(super) fn pixels(&self, side: usize) -> Uploaded<Inner<B>> {
        let bytes = 2 * self.rows * side * side * 3;
        let pixels = (0..bytes as u32).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 24) as u8);
        Uploaded::new(Bytes::from(pixels.collect::<Vec<u8>>()), 2, side, &self.device)
    }

    /// One view of such a batch, as the network takes it.
    pub(super) fn images(&self, batch: &Uploaded<Inner<B>>) -> Tensor<Inner<B>, 4> {
        cast(batch.view(0, self.normalize), self.dtype)
    }

    /// What a layer's convolution reads.
    pub(super) fn input(&self, layer: &Layer) -> Float<B> {
        match layer.source {
            Source::Images => primitive(self.images(&self.pixels(layer.side))),
            Source::Pool => {
                let [_, y] = self.pooled();
                y
            }
            Source::Norm => {
                let makes = |made: &&Layer| (made.outputs, made.output_side()) == (layer.inputs, layer.side);
                let maker = self.layers.iter().find(makes);
                self.normed(maker.expect("maps that a batch norm gives belong to a layer"))
            }
        }
    }

    /// What a layer's convolution gives, for maps that are nobody's result.
    pub(super) fn convolved(&self, layer: &Layer) -> Float<B> {
        Inner::<B>::conv(self.plain(layer.inputs, layer.side), self.weight(layer), layer.args)
    }

    /// Scale and shift.
    pub(super) fn scale_shift(&self, channels: usize) -> [Float<B>; 2] {
        [
            primitive(Tensor::<Inner<B>, 1>::ones([channels], &self.device)),
            primitive(Tensor::<Inner<B>, 1>::zeros([channels], &self.device)),
        ]
    }

    /// What a layer's batch norm gives.
    fn normed(&self, layer: &Layer) -> Float<B> {
        let [gamma, beta] = self.scale_shift(layer.outputs);
        Inner::<B>::norm(self.convolved(layer), gamma, beta, None, true, EPSILON).output
    }

    /// The shortcut's maps, where a layer's batch norm adds them.
    pub(super) fn residual(&self, layer: &Layer) -> Option<Float<B>> {
        (layer.norm == NormKind::AddRelu).then(|| self.normed(layer))
    }

    /// What the backward pass of a layer's batch norm needs.
    pub(super) fn norm_saved(&self, layer: &Layer) -> NormSaved<Inner<B>> {
        let (input, residual) = (self.convolved(layer), self.residual(layer));
        let ([gamma, beta], relu) = (self.scale_shift(layer.outputs), layer.norm != NormKind::Plain);
        let adds = residual.is_some();
        let normed = Inner::<B>::norm(input.clone(), gamma.clone(), beta, residual, relu, EPSILON);
        NormSaved {
            input,
            rectified: relu.then_some(normed.output),
            gamma,
            mean: normed.mean,
            variance: normed.variance,
            epsilon: EPSILON,
            residual: adds,
        }
    }

    /// The gradient of what a layer's convolution gives: its batch norm's.
    pub(super) fn output_gradient(&self, layer: &Layer) -> Float<B> {
        let gradient = self.gradients(layer.outputs, layer.output_side())();
        Inner::<B>::norm_grad(self.norm_saved(layer), gradient).input
    }

    /// Gives the gradient of what a layer's convolution reads, a new tensor each time: an operation may use its memory.
    pub(super) fn input_gradients(&self, layer: &Layer) -> impl Fn() -> Float<B> + 'static {
        let (x, weight, args) = (self.plain(layer.inputs, layer.side), self.weight(layer), layer.args);
        let gradient = self.plain(layer.outputs, layer.output_side());
        move || Inner::<B>::conv_input_grad(x.clone(), weight.clone(), gradient.clone(), args)
    }

    /// Gives the gradient of maps that a batch norm made, a new one each time: from a convolution that reads them, or from the
    /// max-pool or the average behind the last of them.
    pub(super) fn gradients(&self, channels: usize, side: usize) -> Box<dyn Fn() -> Float<B>> {
        let stem = &self.layers[0];
        let pools = self.layers.iter().any(|layer| layer.source == Source::Pool);
        if pools && (channels, side) == (stem.outputs, stem.output_side()) {
            let ([x, y], gradient) = (self.pooled(), self.pool_gradients()());
            return Box::new(move || {
                Inner::<B>::max_pool_grad(x.clone(), y.clone(), gradient.clone(), POOL_KERNEL, POOL)
            });
        }
        let reads = |layer: &&Layer| (layer.inputs, layer.side) == (channels, side) && layer.source != Source::Images;
        if let Some(reader) = self.layers.iter().find(reads) {
            return Box::new(self.input_gradients(reader));
        }
        let maps: Tensor<Inner<B>, 4> = tensor(self.plain(channels, side));
        let maps = Tensor::<B, 4>::from_inner(maps).require_grad();
        Box::new(move || {
            let gradients = average(maps.clone()).sum().backward();
            let gradient = maps.grad(&gradients).expect("the sum depends on the maps");
            primitive(gradient)
        })
    }

    /// Gives the gradient that a block's shortcut hands to the maps that it reads.
    pub(super) fn shortcut_gradients(&self, opener: &Layer) -> Box<dyn Fn() -> Float<B>> {
        let (channels, side) = (opener.inputs, opener.side);
        let identity = |layer: &&Layer| {
            layer.norm == NormKind::AddRelu && (layer.outputs, layer.output_side()) == (channels, side)
        };
        if let Some(end) = self.layers.iter().find(identity) {
            let (saved, gradient) = (self.norm_saved(end), self.gradients(channels, side)());
            return Box::new(move || {
                let gradients = Inner::<B>::norm_grad(saved.clone(), gradient.clone());
                gradients.residual.expect("the end of a block adds its shortcut")
            });
        }
        self.gradients(channels, side)
    }

    /// What the max-pool of the stem reads.
    pub(super) fn pool_input(&self) -> Float<B> {
        self.normed(&self.layers[0])
    }

    /// What the max-pool reads and what it gives.
    pub(super) fn pooled(&self) -> [Float<B>; 2] {
        let x = self.pool_input();
        [x.clone(), Inner::<B>::max_pool(x, POOL_KERNEL, POOL)]
    }

    /// Gives the gradient of what the max-pool leaves.
    pub(super) fn pool_gradients(&self) -> Box<dyn Fn() -> Float<B>> {
        let reader = self.layers.iter().find(|layer| layer.source == Source::Pool);
        Box::new(self.input_gradients(reader.expect("somebody reads what is pooled")))
    }
}
