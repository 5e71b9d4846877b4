//! A run that no longer learns says so: which step, which samples, and how to go on.

mod common;

use common::{World, text};

/// Losses without the variance term pull all embeddings into one point.
const COLLAPSING: [&str; 12] = [
    "train",
    "tiny.toml",
    "--set",
    "loss.variance=0.0",
    "--set",
    "loss.covariance=0.0",
    "--set",
    "schedule.base_lr=1e-2",
    "--set",
    "train.epochs=5",
    "--set",
    "train.checkpoint_every=2",
];

/// `unhealthy.json` of a run: the step, and every sample of its batch as (shard, row group, row).
fn unhealthy(world: &World, run: &str) -> (u64, Vec<(String, u64, u64)>) {
    let text = std::fs::read_to_string(world.path(run).join("unhealthy.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let samples = serde_json::from_value(json["samples"].clone()).unwrap();
    (json["step"].as_u64().unwrap(), samples)
}

#[test]
fn a_collapse_ends_the_run_and_names_the_last_healthy_checkpoint() {
    let world = World::new();
    let error = world.refused(&[&COLLAPSING[..], &["--out", "run"]].concat());
    let (step, samples) = unhealthy(&world, "run");
    assert!(
        error.contains(&format!("the embeddings collapsed: at step {step} ")),
        "{error}"
    );
    assert_eq!(samples.len(), 16, "the whole batch");
    assert!(
        samples.iter().all(|(shard, ..)| shard.ends_with(".parquet")),
        "{samples:?}"
    );
    let first = format!(
        "row {} of row group {} of `{}`",
        samples[0].2, samples[0].1, samples[0].0
    );
    assert!(error.contains(&first), "{first}\n{error}");

    // Ten steps in a row were low; the checkpoint that is named is older than the first of them.
    let metrics = world.metrics("run");
    let std = |step: u64| metrics[step as usize - 1]["embedding_std"].as_f64().unwrap();
    assert_eq!(
        metrics.len() as u64,
        step - 1,
        "the failed step is not logged as a good one"
    );
    let first_low = step - 9;
    assert!((first_low..step).all(|step| std(step) < 0.05) && std(first_low - 1) >= 0.05);
    let named = error.split("--init-from ").nth(1).unwrap().split(' ').next().unwrap();
    let good: u64 = named.rsplit("step-").next().unwrap().parse().unwrap();
    assert!(good < first_low && good + 2 >= first_low, "{good} {first_low}");

    // The hint's command works.
    world.ok(&[
        "train",
        "tiny.toml",
        "--init-from",
        named,
        "--out",
        "again",
        "--max-steps",
        "2",
    ]);
}

#[test]
fn a_collapse_can_be_ignored_and_is_said_once() {
    let world = World::new();
    let command = [&COLLAPSING[..], &["--out", "run", "--set", "train.on_collapse=ignore"]].concat();
    let output = world.command(&command).output().unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    assert_eq!(text.matches("warning: the embeddings collapsed").count(), 1, "{text}");
    assert_eq!(world.metrics("run").len(), 60);
}

#[test]
fn a_loss_that_is_not_finite_names_its_batch() {
    let world = World::new();
    let error = world.refused(&["train", "tiny.toml", "--out", "run", "--set", "schedule.base_lr=1e30"]);
    let (step, samples) = unhealthy(&world, "run");
    assert!(
        error.contains(&format!("not finite at step {step} ")) && error.contains("hint:"),
        "{error}"
    );
    assert_eq!(samples.len(), 16);
    // The samples of that batch are those that `inspect` sees there: none twice, all of this data set's rows.
    let mut sorted = samples.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), 16);
}

#[test]
fn logged_steps_tell_how_healthy_they_are() {
    let world = World::new();
    let lars = ["--set", "optimizer.kind=lars", "--set", "schedule.base_lr=0.2"];
    let short = ["train", "tiny.toml", "--max-steps", "4", "--set", "train.log_every=2"];
    world.ok(&[&short[..], &["--out", "adamw"]].concat());
    world.ok(&[&short[..], &lars, &["--out", "lars"]].concat());
    for (run, scaled) in [("adamw", false), ("lars", true)] {
        let metrics = world.metrics(run);
        assert_eq!(metrics.len(), 3, "steps 1, 2 and 4");
        for line in &metrics {
            let value = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key}: {line}"));
            assert!((1.0..=16.0).contains(&value("effective_rank")), "{line}");
            assert!(
                (0.0..=1.0).contains(&value("correlation")) && value("grad_norm") > 0.0,
                "{line}"
            );
            assert!(value("embedding_std_min") <= value("embedding_std"), "{line}");
            assert_eq!(line.get("trust_median").is_some(), scaled, "{line}");
            if scaled {
                let (least, middle, most) = (value("trust_min"), value("trust_median"), value("trust_max"));
                assert!(0.0 < least && least <= middle && middle <= most, "{line}");
            }
        }
    }
}
