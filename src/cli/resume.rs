//! Where a run starts: anew, from its own newest checkpoint, or from another run's weights.

use std::path::{Path, PathBuf};

use super::CliError;
use super::recipe::{Recipe, identity_changes};
use crate::learn::checkpoint::{CheckpointState, newest};
use crate::learn::run::{Identity, RunFolder};

/// `--resume`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Continue if there is something to continue.
    Auto,
    /// Refuse a folder that has a run.
    Never,
    /// Continue this checkpoint, or the newest of this run.
    From(PathBuf),
}

impl From<String> for Resume {
    fn from(text: String) -> Self {
        match text.as_str() {
            "auto" => Self::Auto,
            "never" => Self::Never,
            path => Self::From(PathBuf::from(path)),
        }
    }
}

/// Where the run starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// At step 0.
    Fresh,
    /// From a checkpoint folder of the same run.
    Checkpoint(PathBuf),
}

/// The run folder and the start that the user's words mean.
pub fn decide(
    out: Option<&Path>,
    default_out: &Path,
    resume: &Resume,
    identity: &Identity,
    recipe: &Recipe,
) -> Result<(PathBuf, Start), CliError> {
    if let Resume::From(path) = resume {
        let checkpoint = newest_of(path)?;
        let state = CheckpointState::load(&checkpoint)?;
        let owner = owner(&checkpoint);
        let run = out.or(owner.as_deref()).unwrap_or(default_out).to_owned();
        check(&checkpoint, &state.identity, identity, recipe)?;
        if owner.is_some_and(|owner| same(&run, &owner)) {
            return match newest(&run)? {
                Some(path) if !same(&path, &checkpoint) => Err(CliError::NotNewest { path: checkpoint }),
                _ => Ok((run, Start::Checkpoint(checkpoint))),
            };
        }
        // The same command again, after an interruption, continues the branch that it began.
        return match (RunFolder::identity(&run)?, newest(&run)?) {
            (None, _) => Ok((run, Start::Checkpoint(checkpoint))),
            (Some(found), Some(newest)) if found.init == state.identity.init => {
                check(&run, &found, identity, recipe)?;
                Ok((run, Start::Checkpoint(newest)))
            }
            _ => Err(CliError::RunExists { run }),
        };
    }
    let run = out.unwrap_or(default_out).to_owned();
    let Some(found) = RunFolder::identity(&run)? else {
        return Ok((run, Start::Fresh));
    };
    if *resume == Resume::Never {
        return Err(CliError::RunExists { run });
    }
    check(&run, &found, identity, recipe)?;
    match newest(&run)? {
        Some(checkpoint) => Ok((run, Start::Checkpoint(checkpoint))),
        None if found.init != identity.init => {
            let reason = "it began from other weights and has no checkpoint yet; repeat its `--init-from`".to_owned();
            Err(CliError::OtherVersion { run, reason })
        }
        None => Ok((run, Start::Fresh)),
    }
}

/// Refuses to continue a run with another recipe, other data, other pixels or other first weights.
fn check(run: &Path, found: &Identity, given: &Identity, recipe: &Recipe) -> Result<(), CliError> {
    let run = run.to_owned();
    let changes = identity_changes(&found.recipe, recipe);
    if !changes.is_empty() {
        return Err(CliError::OtherRecipe { run, changes });
    }
    if found.data_fingerprint != given.data_fingerprint {
        let (run_data, given) = (found.data_fingerprint.clone(), given.data_fingerprint.clone());
        return Err(CliError::OtherData { run, run_data, given });
    }
    if found.augmentation != given.augmentation {
        let reason = format!(
            "its views are of version {}, this program makes version {}",
            found.augmentation, given.augmentation
        );
        return Err(CliError::OtherVersion { run, reason });
    }
    if given.init.is_some() && found.init != given.init {
        let reason = "it began from other weights than `--init-from` names".to_owned();
        return Err(CliError::OtherVersion { run, reason });
    }
    Ok(())
}

/// A checkpoint folder itself, or the newest of a run folder.
fn newest_of(path: &Path) -> Result<PathBuf, CliError> {
    if path.join("state.json").is_file() {
        return Ok(path.to_owned());
    }
    newest(path)?.ok_or_else(|| CliError::NothingThere {
        what: "checkpoint",
        path: path.to_owned(),
    })
}

/// The run folder that a checkpoint folder lies in, if it lies in one.
fn owner(checkpoint: &Path) -> Option<PathBuf> {
    let absolute = std::fs::canonicalize(checkpoint).unwrap_or_else(|_| checkpoint.to_owned());
    let checkpoints = absolute
        .parent()
        .filter(|parent| parent.file_name().is_some_and(|name| name == "checkpoints"))?;
    checkpoints.parent().map(Path::to_owned)
}

fn same(a: &Path, b: &Path) -> bool {
    match (std::fs::canonicalize(a), std::fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}
