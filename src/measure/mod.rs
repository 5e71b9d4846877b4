//! How good are the representations, and how fast is the pipeline.

pub mod features;
pub mod options;
pub mod probe;

use crate::feed::FeedError;
use probe::ProbeError;

/// What can go wrong in a measurement.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The data have no labels.
    #[error("the data set `{data}` has no labels to judge by")]
    NoLabels {
        /// How the user calls it.
        data: String,
    },
    /// The images could not be read.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// The features do not allow the probe.
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

impl MeasureError {
    /// What the user can do about it.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::NoLabels { .. } => vec![
                "name labelled folders with `--train DIR --test DIR`, or the column with `data.label_column`"
                    .to_owned(),
            ],
            Self::Feed(error) => error.hints(),
            Self::Probe(_) => Vec::new(),
        }
    }
}
