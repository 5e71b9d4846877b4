//! Errors as the user meets them: what failed, why, what to do, and an exit status.

use std::error::Error as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::recipe::{Change, RecipeError};
use crate::data::DataError;
use crate::data::ingest::IngestError;
use crate::feed::FeedError;
use crate::learn::LearnError;
use crate::learn::backend::BackendError;
use crate::learn::memory::{Bytes, MemoryEstimate};
use crate::measure::MeasureError;

/// Exit status of the program. Wrong usage is clap's 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done, or stopped by a signal after saving.
    Success = 0,
    /// Something that the user can put right: input, recipe, folder.
    Input = 1,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// Any error that reaches the door.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// Data at rest.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Ingest.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// The feed.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// The device.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// `bench device` found the device wrong.
    #[error("{failed} of the checks failed on {device}")]
    DeviceChecks {
        /// The device.
        device: String,
        /// How many.
        failed: usize,
    },
    /// The run would not fit into the memory.
    #[error("this run {needs}; {} are available", Bytes(*available))]
    Memory {
        /// What the run would need.
        needs: MemoryEstimate,
        /// What there is, in bytes.
        available: u64,
        /// The largest `train.micro_batch` with which it would fit.
        micro_batch: Option<u32>,
    },
    /// Training.
    #[error(transparent)]
    Learn(#[from] LearnError),
    /// Evaluation.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// The run folder belongs to another recipe.
    #[error("the run in `{}` was made by another recipe:{}", run.display(), changes.iter().map(change_line).collect::<String>())]
    OtherRecipe {
        /// The folder.
        run: PathBuf,
        /// What differs.
        changes: Vec<Change>,
    },
    /// The run folder belongs to other data.
    #[error("the run in `{}` was made from other data (fingerprint {run_data}, given {given})", run.display())]
    OtherData {
        /// The folder.
        run: PathBuf,
        /// The run's fingerprint.
        run_data: String,
        /// The given data's.
        given: String,
    },
    /// The run was made by a version whose views have other pixels, or from other weights.
    #[error("the run in `{}` cannot be continued: {reason}", run.display())]
    OtherVersion {
        /// The folder.
        run: PathBuf,
        /// Why.
        reason: String,
    },
    /// `--resume never` on a folder with a run in it.
    #[error("there is a run in `{}` already", run.display())]
    RunExists {
        /// The folder.
        run: PathBuf,
    },
    /// A folder that holds no run, or no checkpoint.
    #[error("there is no {what} in `{}`", path.display())]
    NothingThere {
        /// `run`, `checkpoint`, ...
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A folder for new files that holds others.
    #[error("the folder `{}` is not empty (it holds `{found}`)", path.display())]
    FolderInUse {
        /// The folder.
        path: PathBuf,
        /// One name in it.
        found: String,
    },
    /// `--resume PATH` of a checkpoint that is not the newest of its run.
    #[error("`{}` is not the newest checkpoint of its run", path.display())]
    NotNewest {
        /// The checkpoint.
        path: PathBuf,
    },
    /// An output file could not be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Standard output went away.
    #[error("cannot write to standard output")]
    Stdout(#[from] std::io::Error),
    /// A picture could not be made.
    #[error("cannot make the picture")]
    Picture(#[from] image::ImageError),
}

fn change_line(change: &Change) -> String {
    format!(
        "\n  {}: the run has {}, the recipe {}",
        change.key, change.run, change.recipe
    )
}

impl CliError {
    /// What the user can do about it.
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Recipe(error) => error.hints(),
            Self::Data(error) => error.hints(),
            Self::Ingest(error) => error.hints(),
            Self::Feed(error) => error.hints(),
            Self::Backend(error) => error.hints(),
            Self::Learn(error) => error.hints(),
            Self::Measure(error) => error.hints(),
            Self::OtherRecipe { run, .. } => vec![
                "give a new folder with `--out`, or undo the change".to_owned(),
                format!("`--init-from {}` starts a new run from its weights", run.display()),
            ],
            Self::OtherData { .. } => {
                vec!["give the run's own data with `--data`, or a new folder with `--out`".to_owned()]
            }
            Self::OtherVersion { .. } | Self::RunExists { .. } | Self::FolderInUse { .. } => {
                vec!["give a new folder with `--out`".to_owned()]
            }
            Self::NothingThere { what: "run", .. } => {
                vec!["a run folder is what `vicreg-stream train --out` makes".to_owned()]
            }
            Self::Memory { micro_batch, .. } => {
                let change = match micro_batch {
                    Some(rows) => format!(
                        "`--set train.micro_batch={rows}` would fit: the encoder takes so many images at a time"
                    ),
                    None => "make `expander.dims` smaller, then `train.batch_size` or `encoder.width`".to_owned(),
                };
                vec![change, "`--ignore-memory` starts all the same".to_owned()]
            }
            Self::DeviceChecks { .. } => vec!["do not train on it; `--backend cpu` trains without a GPU".to_owned()],
            Self::NotNewest { .. } => {
                vec!["give a new folder with `--out`: nothing of the run is overwritten then".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

/// Prints an error with its causes and remedies; a closed pipe is success.
pub fn conclude(result: Result<(), CliError>) -> Status {
    let Err(error) = result else { return Status::Success };
    if matches!(&error, CliError::Stdout(io) if io.kind() == std::io::ErrorKind::BrokenPipe) {
        return Status::Success;
    }
    let mut text = format!("error: {error}\n");
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!("  cause: {inner}\n"));
        cause = inner.source();
    }
    for hint in error.hints() {
        text.push_str(&format!("hint: {hint}\n"));
    }
    // Nothing is left to do when stderr is gone as well.
    let _ = std::io::stderr().write_all(text.as_bytes());
    Status::Input
}
