//! ResNet encoders: from normalised images `[N, S, S, 3]` to pooled representations `[N, F]`.
//!
//! Here: the options as written and the plan of blocks that they mean. `layers` lists the convolutions with their maps, `model`
//! builds and runs them. Invariant: the paths of the parameters are torchvision's state-dict names, so that weights travel both ways.
//! Source: He et al. 2015 (1512.03385), torchvision's ResNet (stride in the 3x3 convolution of a bottleneck), and the VICReg
//! code for width (every filter count is multiplied) and for depth 200.

mod init;
mod layers;
mod model;

#[cfg(test)]
pub(crate) mod tests;

pub use init::Init;
pub use layers::{Layer, NormKind, Source};
pub use model::{Block, Conv2d, ResNet};

use super::ops::ConvArgs;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Depths that exist.
pub const DEPTHS: [u32; 8] = [8, 10, 18, 34, 50, 101, 152, 200];

/// Filters of the first stage at width 1.
const BASE: f64 = 64.0;

/// `[encoder]`: the network that is trained. Identity: a change makes another run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResNetOptions {
    /// Layers: 8 (basic blocks 1, 1, 1: three stages), 10 (1, 1, 1, 1), 18, 34; with bottlenecks 50, 101, 152, 200.
    /// Default 50, the official run.
    #[schemars(extend("enum" = [8, 10, 18, 34, 50, 101, 152, 200]))]
    pub depth: u32,
    /// Multiplies every filter count (the stem has 64 at 1.0); 0.25 for a laptop, 2, 4 or 5 as in the paper. Default 1.0.
    pub width: f64,
    /// First layers. Default imagenet.
    pub stem: Stem,
    /// Zero padding of the first convolution, pixels, where it differs from the stem's own (imagenet 3, cifar 1):
    /// solo-learn's CIFAR network uses 2. Default: the stem's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stem_padding: Option<u32>,
    /// Starts the last batch norm of each block at scale 0, so that a block begins as the identity. Default true, as the
    /// official code; solo-learn has false.
    pub zero_init_residual: bool,
    /// Initial weights of the convolutions. Default kaiming-fan-out, as the official code and torchvision.
    pub init: Init,
}

impl Default for ResNetOptions {
    fn default() -> Self {
        Self {
            depth: 50,
            width: 1.0,
            stem: Stem::Imagenet,
            stem_padding: None,
            zero_init_residual: true,
            init: Init::KaimingFanOut,
        }
    }
}

/// The first layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stem {
    /// Convolution 7x7, stride 2, padding 3; max-pool 3x3, stride 2, padding 1: a quarter of the side remains.
    Imagenet,
    /// Convolution 3x3, stride 1, padding 1, and no pool: for images of 32 pixels.
    Cifar,
}

impl Stem {
    fn kernel(self) -> usize {
        match self {
            Self::Imagenet => 7,
            Self::Cifar => 3,
        }
    }

    fn pools(self) -> bool {
        self == Self::Imagenet
    }
}

/// What is wrong with [`ResNetOptions`].
#[derive(Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ResNetError {
    /// No such depth.
    #[error("`encoder.depth` is {depth}: no ResNet has that depth (8, 10, 18, 34, 50, 101, 152 and 200 exist)")]
    Depth {
        /// As written.
        depth: u32,
    },
    /// A width that makes no network.
    #[error("`encoder.width` is {width}, not between 1/64 and 16")]
    Width {
        /// As written.
        width: f64,
    },
    /// A padding wider than its kernel.
    #[error("`encoder.stem_padding` is {padding}, not smaller than the kernel of {kernel}")]
    StemPadding {
        /// As written.
        padding: u32,
        /// Side of the first kernel.
        kernel: u32,
    },
}

/// One residual block's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockPlan {
    /// Channels that come in.
    pub(crate) inputs: usize,
    /// Channels inside.
    pub(crate) planes: usize,
    /// Channels that go out: `planes`, or four times as many from a bottleneck.
    pub(crate) outputs: usize,
    /// Stride of the block.
    pub(crate) stride: usize,
    /// 1x1, 3x3, 1x1 instead of 3x3, 3x3.
    pub(crate) bottleneck: bool,
}

impl BlockPlan {
    /// Whether the shortcut needs a projection (torchvision's rule).
    pub(crate) fn projects(&self) -> bool {
        self.stride != 1 || self.inputs != self.outputs
    }

    /// Stride and padding of a convolution of the block: the padding keeps the side at stride 1.
    pub(crate) fn args(kernel: usize, stride: usize) -> ConvArgs {
        ConvArgs {
            stride,
            padding: kernel / 2,
        }
    }

    /// Convolutions in the order conv1, conv2, conv3, downsample: (inputs, outputs, kernel, stride).
    pub(crate) fn convolutions(&self) -> Vec<(usize, usize, usize, usize)> {
        let mut list = if self.bottleneck {
            vec![
                (self.inputs, self.planes, 1, 1),
                (self.planes, self.planes, 3, self.stride),
                (self.planes, self.outputs, 1, 1),
            ]
        } else {
            vec![
                (self.inputs, self.planes, 3, self.stride),
                (self.planes, self.outputs, 3, 1),
            ]
        };
        if self.projects() {
            list.push((self.inputs, self.outputs, 1, self.stride));
        }
        list
    }
}

/// What a network costs, known before it is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Trained values.
    pub parameters: u64,
    /// Multiply-adds of one image's forward pass; a training step takes three times as many.
    pub multiply_adds: u64,
    /// Values that the graph keeps for the backward pass of one image, in bytes of f32: about what a training step needs an image.
    pub activation_bytes: u64,
    /// The largest map of one image, in bytes of f32.
    pub largest_map_bytes: u64,
}

impl ResNetOptions {
    /// Checks what the types leave open.
    pub fn validate(&self) -> Result<(), ResNetError> {
        if !DEPTHS.contains(&self.depth) {
            return Err(ResNetError::Depth { depth: self.depth });
        }
        if !(1.0 / 64.0..=16.0).contains(&self.width) {
            return Err(ResNetError::Width { width: self.width });
        }
        let kernel = self.stem.kernel() as u32;
        match self.stem_padding {
            Some(padding) if padding >= kernel => Err(ResNetError::StemPadding { padding, kernel }),
            _ => Ok(()),
        }
    }

    /// Blocks a stage.
    fn stages(&self) -> &'static [usize] {
        match self.depth {
            8 => &[1, 1, 1],
            10 => &[1, 1, 1, 1],
            18 => &[2, 2, 2, 2],
            34 | 50 => &[3, 4, 6, 3],
            101 => &[3, 4, 23, 3],
            152 => &[3, 8, 36, 3],
            _ => &[3, 24, 36, 3],
        }
    }

    fn bottleneck(&self) -> bool {
        self.depth >= 50
    }

    /// Filters of the stem and of the first stage.
    pub(crate) fn filters(&self) -> usize {
        ((BASE * self.width).round() as usize).max(1)
    }

    /// The first convolution: (filters, kernel, stride and padding).
    pub(crate) fn stem_convolution(&self) -> (usize, usize, ConvArgs) {
        let kernel = self.stem.kernel();
        let padding = self.stem_padding.map_or(kernel / 2, |p| p as usize);
        let stride = if self.stem.pools() { 2 } else { 1 };
        (self.filters(), kernel, ConvArgs { stride, padding })
    }

    /// All blocks, stage by stage.
    pub(crate) fn plan(&self) -> Vec<Vec<BlockPlan>> {
        let expansion = if self.bottleneck() { 4 } else { 1 };
        let mut inputs = self.filters();
        let stage = |(stage, &blocks): (usize, &usize)| {
            let planes = self.filters() << stage;
            let block = |block: usize| {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let outputs = planes * expansion;
                let plan = BlockPlan {
                    inputs,
                    planes,
                    outputs,
                    stride,
                    bottleneck: self.bottleneck(),
                };
                inputs = outputs;
                plan
            };
            (0..blocks).map(block).collect()
        };
        self.stages().iter().enumerate().map(stage).collect()
    }

    /// Values of a representation.
    pub fn representation_dim(&self) -> usize {
        let expansion = if self.bottleneck() { 4 } else { 1 };
        (self.filters() << (self.stages().len() - 1)) * expansion
    }
}

/// The ImageNet stem's max-pool.
pub(crate) const POOL: ConvArgs = ConvArgs { stride: 2, padding: 1 };
/// Its window.
pub(crate) const POOL_KERNEL: usize = 3;
