//! What can go wrong in training: facts; the door prints causes and remedies.

use std::path::{Path, PathBuf};

use super::health::{COLLAPSED_STD, PATIENCE};
use super::optim::StateError;
use super::weights::WeightsError;
use crate::data::DataError;
use crate::feed::FeedError;

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LearnError {
    /// Input or output failed.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Another process trains into this folder.
    #[error("the run folder `{}` is in use by another process", run.display())]
    RunLocked {
        /// The folder.
        run: PathBuf,
    },
    /// The folder given for a new run holds something else.
    #[error("the folder `{}` is not empty (it holds `{found}`) and no run began there", run.display())]
    NotARun {
        /// The folder.
        run: PathBuf,
        /// One name in it.
        found: String,
    },
    /// A JSON file of a run or checkpoint does not parse.
    #[error("`{}` is damaged", path.display())]
    BrokenJson {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A weights file does not fit.
    #[error("cannot use the weights in `{}`", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: WeightsError,
    },
    /// Weights to begin a run from are of another network than the recipe's.
    #[error("cannot begin from the weights in `{}`", path.display())]
    InitWeights {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: WeightsError,
        /// The network that they are of.
        network: String,
        /// Flags that change the recipe to that network.
        keys: String,
    },
    /// An optimiser's state does not fit.
    #[error("cannot use the optimiser's state in `{}`", path.display())]
    Optimizer {
        /// The checkpoint.
        path: PathBuf,
        /// What does not fit.
        source: StateError,
    },
    /// A checkpoint was written by a version that means other things by it.
    #[error("the checkpoint `{}` has format {found}; this program reads format {known}", path.display())]
    CheckpointFormat {
        /// The checkpoint.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The loss is NaN or infinite.
    #[error(
        "the loss is not finite at step {step} (invariance {invariance}, variance {variance}, covariance {covariance}); \
         its batch: {samples}"
    )]
    NotFinite {
        /// Steps done, this one included.
        step: u64,
        /// s.
        invariance: f64,
        /// v.
        variance: f64,
        /// c.
        covariance: f64,
        /// The first samples of the batch, in words.
        samples: String,
        /// The newest checkpoint from before, if there is one.
        last_good: Option<PathBuf>,
    },
    /// The embeddings of all images became one.
    #[error(
        "the embeddings collapsed: at step {step} their standard deviation is {std:.2e}, below {COLLAPSED_STD} for the {PATIENCE}th \
         step in a row; the step's batch: {samples}"
    )]
    Collapsed {
        /// Steps done, this one included.
        step: u64,
        /// Mean over dimensions and branches.
        std: f64,
        /// The first samples of the batch, in words.
        samples: String,
        /// The newest checkpoint from before, if there is one.
        last_good: Option<PathBuf>,
    },
    /// An update made weights or optimiser state NaN or infinite.
    #[error("`{name}` is not finite after step {step}; nothing was saved")]
    WeightsNotFinite {
        /// Steps done.
        step: u64,
        /// The first tensor that is not finite.
        name: String,
        /// The newest checkpoint from before, if there is one.
        last_good: Option<PathBuf>,
    },
    /// The feed stopped.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// Data at rest could not be read or written.
    #[error(transparent)]
    Data(#[from] DataError),
}

impl LearnError {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// What weights of this file did wrong.
    pub(crate) fn weights(path: &Path) -> impl Fn(WeightsError) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Weights {
            path: path.clone(),
            source,
        }
    }

    /// What the user can do about it.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::RunLocked { .. } => vec!["wait for it, or give another folder with `--out`".to_owned()],
            Self::NotARun { .. } => vec!["give a new or empty folder with `--out`".to_owned()],
            Self::CheckpointFormat { .. } => vec!["use the version of the program that wrote it".to_owned()],
            Self::NotFinite { last_good, .. } | Self::WeightsNotFinite { last_good, .. } => {
                let change = "lower `schedule.base_lr` or lengthen the warm-up".to_owned();
                [change].into_iter().chain(from_last_good(last_good)).collect()
            }
            Self::Collapsed { last_good, .. } => {
                let change = "raise `loss.variance`, or lower `schedule.base_lr`; `--set train.on_collapse=ignore` goes on all the same";
                [change.to_owned()]
                    .into_iter()
                    .chain(from_last_good(last_good))
                    .collect()
            }
            Self::Weights { source, .. } => source.hints(),
            Self::InitWeights { network, keys, .. } => {
                vec![format!(
                    "the weights are a {network}; the recipe makes it with `{keys}`"
                )]
            }
            Self::Feed(error) => error.hints(),
            Self::Data(error) => error.hints(),
            _ => Vec::new(),
        }
    }
}

/// How to go on with a change: a replay would be the same bit for bit.
fn from_last_good(checkpoint: &Option<PathBuf>) -> Option<String> {
    let checkpoint = checkpoint.as_ref()?.display();
    Some(format!(
        "`train RECIPE --init-from {checkpoint} --out NEW --set KEY=VALUE` starts a new run from the last healthy weights, with a change"
    ))
}
