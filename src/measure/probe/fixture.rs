//! What the probes' fixtures have in common: features of labelled images, and what an independent program made of them.

use super::Features;
use serde::Deserialize;

/// A fixture of tools/fixtures: two labelled sets, and cases of the probe.
#[derive(Deserialize)]
pub(super) struct Fixture<C> {
    d: usize,
    train: Vec<f32>,
    train_labels: Vec<i64>,
    test: Vec<f32>,
    test_labels: Vec<i64>,
    pub(super) cases: Vec<C>,
}

impl<C> Fixture<C> {
    /// The images that teach.
    pub(super) fn train(&self) -> Features {
        features(self.d, &self.train, &self.train_labels)
    }

    /// The images that are classified.
    pub(super) fn test(&self) -> Features {
        features(self.d, &self.test, &self.test_labels)
    }
}

/// Features of length `d`, one image a label.
pub(super) fn features(d: usize, values: &[f32], labels: &[i64]) -> Features {
    Features {
        n: labels.len(),
        d,
        values: values.to_vec(),
        labels: labels.to_vec(),
    }
}
