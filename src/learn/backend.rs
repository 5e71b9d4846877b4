//! Which device trains: today burn's CPU backend `flex`, under autodiff.

use burn::backend::{Autodiff, Flex};

/// The CPU, without gradients: evaluation.
pub type Cpu = Flex;
/// The CPU, with gradients: training.
pub type CpuAd = Autodiff<Flex>;
