//! What the tests of the binary share: a world with a tiny data set and a tiny recipe, and commands that read as sentences.

#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A temporary folder in which the binary runs, with a cache of its own.
pub struct World {
    dir: tempfile::TempDir,
}

/// A recipe that trains in seconds: 192 synthetic images, batches of 16, 12 steps an epoch.
pub const TINY: &str = r#"
[data]
path = "synthetic:shapes?train=192&test=64"
[views]
size = 16
[[views.view]]
crop_scale = [0.3, 1.0]
blur = 0.5
solarize = 0.1
[encoder]
depth = 8
width = 0.0625
stem = "cifar"
[expander]
dims = [32, 32, 32]
[optimizer]
kind = "adamw"
weight_decay = 1e-4
[schedule]
base_lr = 2e-3
scale_by_batch = false
warmup_epochs = 0.5
[device]
backend = "cpu"
[order]
window_mb = 1
[train]
batch_size = 16
epochs = 2
log_every = 1
checkpoint_every = 7
[eval]
resize = 16
"#;

impl World {
    pub fn new() -> Self {
        let world = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        std::fs::write(world.path("tiny.toml"), TINY).unwrap();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vicreg-stream"));
        // The synthetic images are made once for all tests: the cache is safe for processes that race.
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("VICREG_STREAM_CACHE", cache)
            .env("NO_COLOR", "1");
        command
    }

    /// Runs and expects success; returns stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}\n{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs and expects exit status 1; returns stderr.
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}\n{}", text(&output));
        String::from_utf8(output.stderr).unwrap()
    }

    /// Images of the synthetic set with their labels, ingested into `good`: its first row group.
    pub fn synthetic_images(&self) -> vicreg_stream::data::dataset::RowGroup {
        use vicreg_stream::data::{Columns, Dataset, ShardId};
        self.ok(&["ingest", "synthetic:shapes?train=192&test=64", "--out", "good"]);
        let good = Dataset::open(&self.path("good"), &Columns::default()).unwrap();
        good.read_row_group(ShardId(0), 0).unwrap()
    }

    /// `metrics.jsonl` of a run without its timing keys, line by line.
    pub fn metrics(&self, run: &str) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        let line = |line: &str| {
            let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
            for timing in ["images_per_s", "step_ms", "feed_wait_ms"] {
                assert!(
                    value.as_object_mut().unwrap().remove(timing).is_some(),
                    "{timing} is missing"
                );
            }
            value
        };
        text.lines().map(line).collect()
    }

    /// All bytes that decide how a run goes on: weights and optimiser state after a step.
    pub fn weights(&self, run: &str, step: u64) -> Vec<Vec<u8>> {
        let folder = self.path(run).join(format!("checkpoints/step-{step:08}"));
        ["model.safetensors", "optimizer.safetensors"]
            .map(|name| std::fs::read(folder.join(name)).unwrap())
            .to_vec()
    }
}

pub fn text(output: &Output) -> String {
    format!(
        "status {:?}\nstdout:\n{}\nstderr:\n{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The shared data beside the project, where a developer has them.
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: the shared data are not here");
    None
}
