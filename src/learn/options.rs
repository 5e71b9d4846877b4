//! `[train]`: length, seed, precision, checkpoints and logging of a run.

use burn::tensor::DType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Type of activations and of the weights as they are multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, with the exponent of f32: nothing overflows that would not in f32.
    Bf16,
}

impl Precision {
    /// As burn names it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// What a run does whose embeddings collapse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnCollapse {
    /// It ends, and names the last healthy checkpoint.
    #[default]
    Stop,
    /// It says so once and goes on.
    Ignore,
}

/// `[train]`: length, seed, precision, checkpoints, logging.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainOptions {
    /// Seed of everything random: order, views, initial weights.
    pub seed: u64,
    /// Images in a batch (two views of each). Every batch is full: VICReg's statistics need it.
    pub batch_size: u32,
    /// Passes over the data. The published short schedule has 100 (paper, table 5).
    pub epochs: u32,
    /// Length in steps; overrides `epochs`.
    pub steps: Option<u64>,
    /// What the network computes in: `f32` (tf32 in a GPU's matrix units), or `bf16` with f32 weights, statistics and loss,
    /// as PyTorch's autocast does. Default f32.
    pub precision: Precision,
    /// Images that the encoder takes at a time, a divisor of `batch_size`: memory then grows with this and not with the batch,
    /// for about a third more time (gradient caching). Loss and expander still see the whole batch; the encoder's batch norm
    /// sees so many images, which is a deviation from the published method. Default: the whole batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<u32>,
    /// When the embeddings' standard deviation stays below 0.05 for 10 steps: `stop`, or `ignore` (say so and go on). A loss that is
    /// not finite always ends the run. Default stop.
    #[schemars(extend("x-kind" = "operational"))]
    pub on_collapse: OnCollapse,
    /// A checkpoint every so many steps (and one at the end and on SIGINT, SIGTERM, SIGUSR1).
    #[schemars(extend("x-kind" = "operational"))]
    pub checkpoint_every: u64,
    /// How many of the newest checkpoints are kept.
    #[schemars(extend("x-kind" = "operational"))]
    pub keep_checkpoints: u32,
    /// A line in `metrics.jsonl` every so many steps.
    #[schemars(extend("x-kind" = "operational"))]
    pub log_every: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            batch_size: 2048,
            epochs: 100,
            steps: None,
            precision: Precision::F32,
            micro_batch: None,
            on_collapse: OnCollapse::Stop,
            checkpoint_every: 500,
            keep_checkpoints: 3,
            log_every: 10,
        }
    }
}

impl TrainOptions {
    /// What is out of range, one sentence each.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.batch_size < 2 {
            problems.push(format!(
                "train.batch_size = {}: a batch needs at least 2 images (variance and covariance divide by N - 1)",
                self.batch_size
            ));
        }
        if let Some(micro) = self.micro_batch
            && (micro < 2 || !self.batch_size.is_multiple_of(micro))
        {
            problems.push(format!(
                "train.micro_batch = {micro}: it must be at least 2 and divide train.batch_size = {}",
                self.batch_size
            ));
        }
        if self.steps.unwrap_or(u64::from(self.epochs)) == 0 {
            problems.push("train.epochs or train.steps must be at least 1".to_owned());
        }
        for (key, value) in [
            ("checkpoint_every", self.checkpoint_every),
            ("keep_checkpoints", u64::from(self.keep_checkpoints)),
            ("log_every", self.log_every),
        ] {
            if value == 0 {
                problems.push(format!("train.{key} must be at least 1"));
            }
        }
        problems
    }

    /// Images that the encoder takes at a time, if not all.
    pub fn micro_batch(&self) -> Option<usize> {
        self.micro_batch
            .filter(|&micro| micro < self.batch_size)
            .map(|micro| micro as usize)
    }

    /// Steps of the whole run, given how many full batches an epoch has.
    pub fn total_steps(&self, steps_per_epoch: u64) -> u64 {
        self.steps.unwrap_or(u64::from(self.epochs) * steps_per_epoch)
    }
}
