//! The run folder: what a run leaves behind, and what a resume finds.
//!
//! `recipe.toml`, `run.json` (identity), `metrics.jsonl`, `quarantine.jsonl`, `evaluations.jsonl` (from the first evaluation
//! on), `encoder.safetensors`, `checkpoints/step-XXXXXXXX/`.
//! Invariant: the line files never hold a line of a later step than the checkpoint that the run continues from.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::LearnError;
use crate::data::store;
use crate::feed::Reject;

/// What makes a run this run and no other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The resolved recipe, as JSON.
    pub recipe: serde_json::Value,
    /// The data set's fingerprint, hexadecimal.
    pub data_fingerprint: String,
    /// Version of the augmentation's pixels.
    pub augmentation: u32,
    /// Digest of the weights that the run began from, with `--init-from`.
    pub init: Option<String>,
    /// Version of the program that began the run.
    pub program: String,
}

/// One line of `metrics.jsonl`. Timing keys are averages since the line before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Steps done, this one included.
    pub step: u64,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// lambda s + mu v + nu c.
    pub loss: f64,
    /// s.
    pub invariance: f64,
    /// v.
    pub variance: f64,
    /// c.
    pub covariance: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Standard deviation of an embedding dimension, mean over dimensions and branches; 0 is a collapse.
    pub embedding_std: f64,
    /// The smallest of them.
    pub embedding_std_min: f64,
    /// RankMe of up to 256 embeddings of view 1.
    pub effective_rank: Option<f64>,
    /// Mean of |correlation| of different dimensions, up to 256 of them, view 1.
    pub correlation: Option<f64>,
    /// Norm of the gradient of all parameters together.
    pub grad_norm: Option<f64>,
    /// LARS: smallest trust ratio of a parameter.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trust_min: Option<f64>,
    /// Their median.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trust_median: Option<f64>,
    /// The largest.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trust_max: Option<f64>,
    /// Images (not views) a second.
    pub images_per_s: f64,
    /// Milliseconds a step, waiting included.
    pub step_ms: f64,
    /// Milliseconds a step that the trainer waited for data.
    pub feed_wait_ms: f64,
}

/// One line of `evaluations.jsonl`: how well frozen representations tell labels apart, as shares of 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// Accuracy of weighted k-NN.
    pub knn: f64,
    /// Accuracy of the linear probe.
    pub linear: f64,
}

/// One line of `quarantine.jsonl`.
#[derive(Debug, Serialize)]
struct QuarantineLine<'a> {
    step: u64,
    shard: &'a str,
    row_group: u32,
    row: u32,
    path: Option<&'a str>,
    reason: &'a str,
}

/// An open run folder. One process at a time writes it.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    metrics: File,
    quarantine: File,
    /// A run that is never evaluated has no such file.
    evaluations: Option<File>,
    /// Held for as long as the folder is open; the system frees it when the process ends, however it ends.
    _lock: File,
}

impl RunFolder {
    /// Opens or makes the folder for writing and locks it against a second process. A folder with other things in it
    /// and no run is refused: nothing of the user's is overwritten.
    pub fn open(path: &Path) -> Result<Self, LearnError> {
        let checkpoints = path.join("checkpoints");
        Self::check(path)?;
        std::fs::create_dir_all(&checkpoints).map_err(|source| LearnError::io("create", &checkpoints, source))?;
        let lock = append(&path.join(".lock"))?;
        // A file system without locks cannot keep a second process out; it can still train.
        if matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
            return Err(LearnError::RunLocked { run: path.to_owned() });
        }
        store::remove_stale(path)?;
        store::remove_stale(&checkpoints)?;
        let metrics = append(&path.join("metrics.jsonl"))?;
        let quarantine = append(&path.join("quarantine.jsonl"))?;
        Ok(Self {
            path: path.to_owned(),
            metrics,
            quarantine,
            evaluations: None,
            _lock: lock,
        })
    }

    /// Refuses a folder with files in it in which no run has begun (a run's folder has its lock).
    pub fn check(path: &Path) -> Result<(), LearnError> {
        if path.join(".lock").exists() || path.join("run.json").exists() {
            return Ok(());
        }
        match store::first_name(path) {
            Some(found) => Err(LearnError::NotARun {
                run: path.to_owned(),
                found,
            }),
            None => Ok(()),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The identity of the run in a folder, if one began there.
    pub fn identity(path: &Path) -> Result<Option<Identity>, LearnError> {
        let file = path.join("run.json");
        match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| LearnError::BrokenJson { path: file, source }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LearnError::io("read", &file, source)),
        }
    }

    /// Writes the recipe as resolved, and the identity last: a folder without `run.json` holds no run yet.
    pub fn begin(&self, identity: &Identity, recipe_toml: &str) -> Result<(), LearnError> {
        self.write_recipe(recipe_toml)?;
        let json = serde_json::to_vec_pretty(identity).expect("an identity is plain JSON");
        Ok(store::write_bytes(&self.path.join("run.json"), &json)?)
    }

    /// Writes `recipe.toml`; on a resume operational keys may have changed.
    pub fn write_recipe(&self, recipe_toml: &str) -> Result<(), LearnError> {
        Ok(store::write_bytes(
            &self.path.join("recipe.toml"),
            recipe_toml.as_bytes(),
        )?)
    }

    /// Cuts the line files to what step `step` had seen.
    pub fn cut_to(&mut self, step: u64) -> Result<(), LearnError> {
        self.metrics = cut(&self.path.join("metrics.jsonl"), step)?;
        self.quarantine = cut(&self.path.join("quarantine.jsonl"), step)?;
        let evaluations = self.path.join("evaluations.jsonl");
        if evaluations.exists() {
            self.evaluations = Some(cut(&evaluations, step)?);
        }
        Ok(())
    }

    /// Appends a line of metrics.
    pub fn log(&mut self, metrics: &Metrics) -> Result<(), LearnError> {
        write_line(&mut self.metrics, &self.path.join("metrics.jsonl"), metrics)
    }

    /// Appends a line of an evaluation.
    pub fn evaluated(&mut self, evaluation: &Evaluation) -> Result<(), LearnError> {
        let path = self.path.join("evaluations.jsonl");
        let file = match &mut self.evaluations {
            Some(file) => file,
            none => none.insert(append(&path)?),
        };
        write_line(file, &path, evaluation)
    }

    /// Appends the rejects that were met on the way to `step`.
    pub fn quarantine(&mut self, step: u64, rejects: &[Reject]) -> Result<(), LearnError> {
        for reject in rejects {
            let line = QuarantineLine {
                step,
                shard: &reject.shard,
                row_group: reject.key.row_group,
                row: reject.key.row,
                path: reject.path.as_deref(),
                reason: &reject.reason,
            };
            write_line(&mut self.quarantine, &self.path.join("quarantine.jsonl"), &line)?;
        }
        Ok(())
    }

    /// Makes the line files durable: called before a checkpoint claims their steps.
    pub fn sync(&self) -> Result<(), LearnError> {
        let evaluations = self.evaluations.iter().map(|file| (file, "evaluations.jsonl"));
        let always = [(&self.metrics, "metrics.jsonl"), (&self.quarantine, "quarantine.jsonl")];
        for (file, name) in always.into_iter().chain(evaluations) {
            file.sync_data()
                .map_err(|source| LearnError::io("sync", &self.path.join(name), source))?;
        }
        Ok(())
    }
}

fn append(path: &Path) -> Result<File, LearnError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|source| LearnError::io("open", path, source))
}

/// One `write` a line, so that a crash leaves at most one torn line, at the end.
fn write_line(file: &mut File, path: &Path, line: &impl Serialize) -> Result<(), LearnError> {
    let mut text = serde_json::to_string(line).expect("a line is plain JSON");
    text.push('\n');
    file.write_all(text.as_bytes())
        .map_err(|source| LearnError::io("write", path, source))
}

/// Keeps the lines of steps up to `step`; a torn last line goes too.
fn cut(path: &Path, step: u64) -> Result<File, LearnError> {
    #[derive(Deserialize)]
    struct Step {
        step: u64,
    }
    let file = File::open(path).map_err(|source| LearnError::io("open", path, source))?;
    let mut kept = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line.map_err(|source| LearnError::io("read", path, source))?;
        match serde_json::from_str::<Step>(&line) {
            Ok(found) if found.step <= step => {
                kept.extend_from_slice(line.as_bytes());
                kept.push(b'\n');
            }
            _ => {}
        }
    }
    store::write_bytes(path, &kept)?;
    append(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(step: u64) -> Metrics {
        Metrics {
            step,
            epoch: 0.5,
            loss: 1.0,
            invariance: 0.1,
            variance: 0.2,
            covariance: 0.3,
            lr: 0.01,
            embedding_std: 0.9,
            embedding_std_min: 0.1,
            effective_rank: Some(3.0),
            correlation: Some(0.1),
            grad_norm: Some(1.0),
            trust_min: None,
            trust_median: None,
            trust_max: None,
            images_per_s: 10.0,
            step_ms: 100.0,
            feed_wait_ms: 0.0,
        }
    }

    #[test]
    fn a_cut_drops_later_steps_and_a_torn_line_and_appending_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = RunFolder::open(dir.path()).unwrap();
        for step in [10, 20, 30] {
            run.log(&metrics(step)).unwrap();
        }
        run.metrics.write_all(b"{\"step\":4").unwrap();
        run.cut_to(20).unwrap();
        run.log(&metrics(21)).unwrap();
        let text = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        let steps: Vec<u64> = text
            .lines()
            .map(|line| serde_json::from_str::<Metrics>(line).unwrap().step)
            .collect();
        assert_eq!(steps, [10, 20, 21]);
    }

    #[test]
    fn evaluations_are_cut_too_and_a_run_without_any_has_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("evaluations.jsonl");
        let mut run = RunFolder::open(dir.path()).unwrap();
        run.cut_to(0).unwrap();
        run.sync().unwrap();
        assert!(!path.exists());
        let line = |step| Evaluation {
            step,
            epoch: 1.0,
            knn: 0.5,
            linear: 0.6,
        };
        let evaluate =
            |run: &mut RunFolder, steps: &[u64]| steps.iter().for_each(|&s| run.evaluated(&line(s)).unwrap());
        evaluate(&mut run, &[10, 20, 30]);
        run.sync().unwrap();
        drop(run);
        let mut run = RunFolder::open(dir.path()).unwrap();
        run.cut_to(20).unwrap();
        evaluate(&mut run, &[30]);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Evaluation> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines, [10, 20, 30].map(line));
    }

    #[test]
    fn a_second_process_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunFolder::open(dir.path()).unwrap();
        assert!(matches!(RunFolder::open(dir.path()), Err(LearnError::RunLocked { .. })));
        drop(first);
        RunFolder::open(dir.path()).unwrap();
    }
}
