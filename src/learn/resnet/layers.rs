//! A network as the list of its convolutions with the sizes of their maps: what costs, memory and benchmarks are counted from.
//!
//! In: options and the side of an image. Out: one [`Layer`] a convolution, in the order of the plan. Invariant: it is the network
//! that `model` builds and runs (tested: weights, and what each batch norm sees).

use super::{BlockPlan, Cost, POOL, POOL_KERNEL, ResNetOptions};
use crate::learn::ops::{ConvArgs, workspace};

/// What a convolution reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The images, whose gradient nobody asks for.
    Images,
    /// What the stem's max-pool leaves.
    Pool,
    /// What a batch norm gives.
    Norm,
}

/// What the batch norm behind a convolution does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NormKind {
    /// Nothing: the projection of a shortcut.
    Plain,
    /// It rectifies.
    Relu,
    /// It adds the shortcut and rectifies: the end of a block.
    AddRelu,
}

/// A convolution and the batch norm behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Channels that come in.
    pub inputs: usize,
    /// Channels that go out.
    pub outputs: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Stride and padding.
    pub args: ConvArgs,
    /// Side of the maps that come in, pixels.
    pub side: usize,
    /// Whose maps they are.
    pub source: Source,
    /// What follows.
    pub norm: NormKind,
    /// The first of a block: the block's shortcut reads the same maps, so two gradients of them are added.
    pub opens_block: bool,
}

impl Layer {
    /// Side of the maps that go out, pixels.
    pub fn output_side(&self) -> usize {
        self.args.output(self.side, self.kernel)
    }

    /// Weights of the convolution.
    pub fn weights(&self) -> usize {
        self.inputs * self.outputs * self.kernel * self.kernel
    }

    /// Multiply-adds of the convolution for one image; each of its two gradients takes as many.
    pub fn multiply_adds(&self) -> u64 {
        (self.weights() * self.output_side() * self.output_side()) as u64
    }
}

impl BlockPlan {
    /// The block's convolutions on maps of `side` x `side` pixels, as [`BlockPlan::convolutions`] orders them.
    fn layers(&self, side: usize, source: Source) -> Vec<Layer> {
        let convolutions = self.convolutions();
        let last = convolutions.len() - 1 - usize::from(self.projects());
        // Where the next one's maps come from.
        let mut inner = (side, source);
        let layer = |(at, (inputs, outputs, kernel, stride)): (usize, (usize, usize, usize, usize))| {
            let projection = at > last;
            let (side, source) = if projection { (side, source) } else { inner };
            let args = Self::args(kernel, stride);
            inner = (args.output(side, kernel), Source::Norm);
            Layer {
                inputs,
                outputs,
                kernel,
                args,
                side,
                source,
                norm: match at {
                    _ if projection => NormKind::Plain,
                    at if at == last => NormKind::AddRelu,
                    _ => NormKind::Relu,
                },
                opens_block: at == 0,
            }
        };
        convolutions.into_iter().enumerate().map(layer).collect()
    }
}

impl ResNetOptions {
    /// All convolutions of the network on images of `size` x `size` pixels: the stem's, then block by block.
    ///
    /// # Panics
    /// When the images are too small for the stem.
    pub fn layers(&self, size: usize) -> Vec<Layer> {
        let (filters, kernel, args) = self.stem_convolution();
        let stem = Layer {
            inputs: 3,
            outputs: filters,
            kernel,
            args,
            side: size,
            source: Source::Images,
            norm: NormKind::Relu,
            opens_block: false,
        };
        let (mut side, mut source) = (stem.output_side(), Source::Norm);
        if self.stem.pools() {
            (side, source) = (POOL.output(side, POOL_KERNEL), Source::Pool);
        }
        let mut layers = vec![stem];
        for block in self.plan().iter().flatten() {
            layers.extend(block.layers(side, source));
            // A block ends with its last convolution or with its projection, whose maps have one side.
            side = layers.last().map_or(side, Layer::output_side);
            source = Source::Norm;
        }
        layers
    }

    /// Parameters, operations and memory for images of `size` x `size` pixels.
    pub fn cost(&self, size: usize) -> Cost {
        let mut cost = Cost {
            activation_bytes: 4 * 3 * (size * size) as u64,
            ..Cost::default()
        };
        for layer in self.layers(size) {
            cost.parameters += (layer.weights() + 2 * layer.outputs) as u64;
            cost.multiply_adds += layer.multiply_adds();
            // Its output, for batch norm's backward pass, and what batch norm makes of it, for the next layer's.
            let map = 4 * (layer.outputs * layer.output_side().pow(2)) as u64;
            cost.activation_bytes += 2 * map;
            cost.largest_map_bytes = cost.largest_map_bytes.max(map);
        }
        cost
    }

    /// Bytes that the CPU's operations keep for the convolutions of `rows` images of `size` x `size` pixels at a time. Layers alike
    /// share them.
    pub fn workspace(&self, size: usize, rows: usize) -> u64 {
        let of = |layer: &Layer| {
            let pixels = rows * layer.output_side().pow(2);
            let (channels, stride) = ([layer.inputs, layer.outputs], layer.args.stride);
            (
                channels,
                layer.kernel,
                stride,
                workspace(channels, layer.kernel, stride, pixels),
            )
        };
        let mut kernels: Vec<_> = self.layers(size).iter().map(of).collect();
        kernels.sort_unstable();
        kernels.dedup();
        kernels.iter().map(|(.., bytes)| bytes).sum()
    }
}
