//! Initial weights of convolutions: pure functions of (seed, parameter, filter), whatever the number of threads.

use crate::data::rng::{Domain, Philox};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How convolutions start. Batch norms start at scale 1 and shift 0, but see `zero_init_residual`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// He et al. 2015 (1502.01852) by what goes out: N(0, 2 / (filters x kernel area)). The official code and torchvision.
    KaimingFanOut,
    /// As kaiming-fan-out, but the first convolution in PyTorch's default: solo-learn replaces torchvision's.
    SoloLearn,
    /// PyTorch's default for every convolution: U(-b, b) with b = 1 / sqrt(inputs x kernel area).
    Pytorch,
}

/// The distribution of one convolution's weights.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Distribution {
    Normal { deviation: f64 },
    Uniform { bound: f64 },
}

impl Init {
    fn distribution(self, stem: bool, [filters, inputs, kh, kw]: [usize; 4]) -> Distribution {
        let area = (kh * kw) as f64;
        if self == Self::Pytorch || (self == Self::SoloLearn && stem) {
            return Distribution::Uniform {
                bound: 1.0 / (inputs as f64 * area).sqrt(),
            };
        }
        Distribution::Normal {
            deviation: (2.0 / (filters as f64 * area)).sqrt(),
        }
    }

    /// Weights of shape `[filters, inputs, kernel, kernel]`. `position` numbers the parameters of the whole model, so that no
    /// two share their draws.
    pub(super) fn weights(self, stem: bool, shape: [usize; 4], seed: u64, position: u64) -> Vec<f32> {
        let distribution = self.distribution(stem, shape);
        let filter: usize = shape[1..].iter().product();
        let mut weights = Vec::with_capacity(shape[0] * filter);
        for row in 0..shape[0] {
            // A stream a filter: a stream is shorter than a large kernel.
            let mut rng = Philox::new(seed, Domain::Init, row as u32, position, 0);
            let mut draw = || match distribution {
                Distribution::Normal { deviation } => rng.normal() * deviation,
                Distribution::Uniform { bound } => rng.uniform_in(-bound, bound),
            };
            weights.extend((0..filter).map(|_| draw() as f32));
        }
        weights
    }
}
