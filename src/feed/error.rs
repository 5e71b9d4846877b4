//! What can go wrong with images in motion: facts, for the door to explain.

use super::quarantine::Reject;
use crate::data::DataError;

/// An error of the feed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeedError {
    /// No sample in any shard.
    #[error("the data set is empty")]
    Empty,
    /// A shuffled pass has full batches only, and there is not one.
    #[error("the data set has {samples} images, fewer than one batch of {batch}")]
    SmallerThanBatch {
        /// Samples in the data set.
        samples: u64,
        /// Samples in a global batch.
        batch: u32,
    },
    /// The ranks do not share the batch evenly, or this is not one of them.
    #[error("rank {rank} of {world} cannot take its share of a batch of {batch}")]
    Ranks {
        /// This process.
        rank: u32,
        /// Number of processes.
        world: u32,
        /// Samples in a global batch.
        batch: u32,
    },
    /// A sample needs 1 to 255 views of one size.
    #[error("a sample needs 1 to 255 views of one size above 0, not sizes {sizes:?}")]
    Views {
        /// Sides asked for, pixels.
        sizes: Vec<u32>,
    },
    /// An option is out of its range.
    #[error("`{name}` is {value}, outside {range}")]
    Option {
        /// Name of the option in the recipe.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// The start step lies beyond the last epoch that can be counted.
    #[error("step {step} is too far: an epoch has {steps_per_epoch} steps")]
    StartStep {
        /// The step.
        step: u64,
        /// Steps in an epoch.
        steps_per_epoch: u64,
    },
    /// The ring's memory could not be had.
    #[error("cannot allocate {slots} slots of {bytes} bytes")]
    Memory {
        /// Slots in the ring.
        slots: u32,
        /// Bytes of each; `u64::MAX` if the product overflows.
        bytes: u64,
        /// The allocator's answer.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A thread could not be started.
    #[error("cannot start a thread of the feed")]
    Thread(#[source] std::io::Error),
    /// A row group could not be read.
    #[error("cannot read row group {row_group} of `{shard}`")]
    Read {
        /// Name of the shard.
        shard: String,
        /// Row group in it.
        row_group: u32,
        /// What the data room says.
        source: DataError,
    },
    /// A row group is not what the footer promised.
    #[error("row group {row_group} of `{shard}` has {found} rows, {expected} in the footer")]
    Rows {
        /// Name of the shard.
        shard: String,
        /// Row group in it.
        row_group: u32,
        /// Rows read.
        found: u64,
        /// Rows promised.
        expected: u64,
    },
    /// Each sample of a window was tried for one place, and all are bad.
    #[error(
        "none of the {samples} samples in the window from position {position} of epoch {epoch} can be decoded; the first is in `{}`, row group {}, row {}: {}",
        .first.shard, .first.key.row_group, .first.key.row, .first.reason
    )]
    AllBad {
        /// Epoch.
        epoch: u32,
        /// The window's first position in it.
        position: u64,
        /// Samples in the window.
        samples: u64,
        /// The first of them on disk, and why it was rejected: the same for whichever position met them.
        first: Box<Reject>,
    },
    /// The quarantine budget is spent.
    #[error("{bad} of {tried} images tried up to step {step} cannot be decoded, more than {limit}")]
    TooManyBad {
        /// Step whose batch spent it; the batch is not handed out.
        step: u64,
        /// Different bad samples in the run.
        bad: u64,
        /// Samples tried in the run, at most the data set's.
        tried: u64,
        /// The limit: `feed.max_bad = N` or `feed.max_bad_fraction = F`.
        limit: String,
        /// New rejects of that batch, which no batch carries.
        rejects: Vec<Reject>,
    },
    /// A thread died: a bug of ours.
    #[error("thread `{thread}` panicked: {message}")]
    Panicked {
        /// Its name.
        thread: String,
        /// What it said.
        message: String,
    },
    /// A place was given up unfinished: a bug of ours.
    #[error("a sample was given up half-way")]
    Abandoned,
    /// The feed has failed before, or is shutting down.
    #[error("the feed has ended")]
    Ended,
}

impl FeedError {
    /// What the user can do about it.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::SmallerThanBatch { samples, .. } => {
                vec![format!(
                    "use a smaller batch, such as `--set train.batch_size={}`",
                    (samples / 2).max(2)
                )]
            }
            Self::Memory { .. } => vec!["lower `feed.ring` or `train.batch_size`".to_owned()],
            Self::Read { source, .. } => source.hints(),
            Self::AllBad { .. } => {
                vec!["look at `decode.max_pixels` and the other limits, or at the images".to_owned()]
            }
            Self::TooManyBad { .. } => vec![
                "`quarantine.jsonl` in the run folder names each with its reason".to_owned(),
                "raise `feed.max_bad_fraction` or `feed.max_bad` to go on all the same".to_owned(),
            ],
            Self::Panicked { .. } | Self::Abandoned => vec!["this is a bug of ours: please report it".to_owned()],
            _ => Vec::new(),
        }
    }
}

/// What a panic said.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into())
}
