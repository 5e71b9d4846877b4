//! How good are the representations, and how fast is the pipeline.

pub mod cpu;
pub mod device;
pub mod features;
pub mod online;
pub mod ops;
pub mod options;
pub mod probe;
pub mod speed;
pub mod step;

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
    /// Training and test images are the same.
    #[error("the images that vote and those that are classified are the same (`{data}`)")]
    SameImages {
        /// How the user calls them.
        data: String,
    },
    /// Labels that mean different classes.
    #[error("the classes of the training images ({}) are not those of the test images ({})", train.join(", "), test.join(", "))]
    ClassNames {
        /// Names in the training data.
        train: Vec<String>,
        /// Names in the test data.
        test: Vec<String>,
    },
    /// The features do not fit into the memory.
    #[error("{images} images of {length} values do not fit into the memory")]
    Memory {
        /// Images.
        images: u64,
        /// Values an image.
        length: usize,
    },
    /// The feed had no more batches before the time was over.
    #[error("the pass ended before it could be measured")]
    PassEnded,
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
            Self::SameImages { .. } => vec!["give different folders with `--train` and `--test`".to_owned()],
            Self::ClassNames { .. } => vec!["ingest both with the same class folders".to_owned()],
            Self::Memory { .. } => vec!["name smaller folders with `--train DIR --test DIR`".to_owned()],
            Self::Feed(error) => error.hints(),
            Self::Probe(_) | Self::PassEnded => Vec::new(),
        }
    }
}
