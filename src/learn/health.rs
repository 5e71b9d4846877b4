//! Is the run still learning? Names a loss that is not finite, and a collapse, with the step and its samples.
//!
//! In: the terms of every step. Out: an error, which the loop raises or, for a collapse under `on_collapse = "ignore"`, only
//! reports. Collapse shows in the embeddings' standard deviation: the effective rank of a collapsed run can be large, since
//! what is left of its embeddings is rounding in all directions.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::LearnError;
use super::watch::StepTerms;
use crate::data::{Dataset, SampleKey, store};

/// Below this share of its target, 1, the mean standard deviation is a collapse. A fresh network's is above 0.1, a healthy run's near 1.
pub const COLLAPSED_STD: f64 = 0.05;
/// So many steps in a row.
pub const PATIENCE: u32 = 10;
/// Samples that an error's text names; the run folder's `unhealthy.json` has them all.
const NAMED: usize = 4;

/// What is known of a run's health.
#[derive(Debug)]
pub struct Health {
    /// Steps in a row that looked collapsed.
    low: u32,
    reported: bool,
    healthy: Option<PathBuf>,
}

/// A step that failed, for `unhealthy.json`.
#[derive(Debug, Serialize)]
struct Unhealthy<'a> {
    step: u64,
    what: String,
    /// Shard, row group, row.
    samples: Vec<(&'a str, u32, u32)>,
}

impl Health {
    /// A run's health; `checkpoint`: what it continues from, taken to be good.
    pub fn new(checkpoint: Option<PathBuf>) -> Self {
        Self {
            low: 0,
            reported: false,
            healthy: checkpoint,
        }
    }

    /// Looks at one step, in order; `keys`: the samples of its batch. A collapse is reported once.
    pub fn look(
        &mut self,
        terms: &StepTerms,
        keys: &[SampleKey],
        data: &Dataset,
        run: &Path,
    ) -> Result<(), LearnError> {
        let finite = terms.loss.is_finite();
        let low = finite && terms.embedding_std < COLLAPSED_STD;
        self.low = if low { self.low + 1 } else { 0 };
        if finite && (self.low < PATIENCE || self.reported) {
            return Ok(());
        }
        let (step, last_good) = (terms.step, self.healthy.clone());
        let samples = named(keys, data);
        let error = if finite {
            self.reported = true;
            LearnError::Collapsed {
                step,
                std: terms.embedding_std,
                samples,
                last_good,
            }
        } else {
            LearnError::NotFinite {
                step,
                invariance: terms.invariance,
                variance: terms.variance,
                covariance: terms.covariance,
                samples,
                last_good,
            }
        };
        write_down(&error, step, keys, data, run)?;
        Err(error)
    }

    /// A checkpoint was saved; all steps before it have been looked at.
    pub fn saved(&mut self, path: &Path) {
        if self.low == 0 {
            self.healthy = Some(path.to_owned());
        }
    }

    /// The checkpoint that may not be removed: the last healthy one, while the run looks ill.
    pub fn spared(&self) -> Option<&Path> {
        self.last_good().filter(|_| self.low > 0)
    }

    /// The newest checkpoint that was saved in good health.
    pub fn last_good(&self) -> Option<&Path> {
        self.healthy.as_deref()
    }
}

/// The first samples, in words.
fn named(keys: &[SampleKey], data: &Dataset) -> String {
    let mut text: Vec<String> = keys.iter().take(NAMED).map(|&key| data.place(key)).collect();
    if keys.len() > NAMED {
        text.push(format!("{} more, all in `unhealthy.json`", keys.len() - NAMED));
    }
    text.join("; ")
}

fn write_down(error: &LearnError, step: u64, keys: &[SampleKey], data: &Dataset, run: &Path) -> Result<(), LearnError> {
    let sample = |key: &SampleKey| {
        let shard = data.shards()[key.shard.0 as usize].name.as_str();
        (shard, key.row_group, key.row)
    };
    let unhealthy = Unhealthy {
        step,
        what: error.to_string(),
        samples: keys.iter().map(sample).collect(),
    };
    let json = serde_json::to_vec_pretty(&unhealthy).expect("plain JSON");
    Ok(store::write_bytes(&run.join("unhealthy.json"), &json)?)
}
