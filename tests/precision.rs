//! `train.precision = "bf16"`: it learns what f32 learns, and holds where the learning rate is at its highest.
//!
//! On the CPU backend bf16 rounds where a GPU's does (activations, weights as they are multiplied) and sums in f32, so what is
//! tested is the arithmetic of the recipe, not a kernel.

mod common;

use common::World;

fn losses(world: &World, run: &str) -> Vec<f64> {
    let lines = world.metrics(run);
    lines.iter().map(|line| line["loss"].as_f64().unwrap()).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn two_hundred_steps_in_bf16_follow_f32() {
    let world = World::new();
    for precision in ["f32", "bf16"] {
        let set = format!("train.precision={precision}");
        let more = [
            "--set",
            "train.steps=200",
            "--set",
            "eval.knn_at_end=false",
            "--set",
            "train.checkpoint_every=200",
        ];
        world.ok(&[
            &["train", "tiny.toml", "--out", precision, "--set", &set][..],
            &more[..],
        ]
        .concat());
    }
    let (f32, bf16) = (losses(&world, "f32"), losses(&world, "bf16"));
    assert_eq!((f32.len(), bf16.len()), (200, 200));
    assert_ne!(
        f32[0], bf16[0],
        "bf16 rounds: the same first loss would mean that it does not"
    );
    // The first step sees rounding alone: 8 bits, averaged over many values.
    assert!((bf16[0] / f32[0] - 1.0).abs() < 0.01, "{} {}", f32[0], bf16[0]);
    // Later the weights differ; what was learnt does not.
    for steps in [0..50, 50..100, 100..150, 150..200] {
        let (f32, bf16) = (mean(&f32[steps.clone()]), mean(&bf16[steps.clone()]));
        assert!((bf16 / f32 - 1.0).abs() < 0.02, "{steps:?}: f32 {f32}, bf16 {bf16}");
    }
    assert!(mean(&bf16[150..]) < 0.95 * mean(&bf16[..10]), "it learns");
}

#[test]
fn the_official_peak_rate_gives_no_nan() {
    let world = World::new();
    // Batch 2048: 0.2 x 2048 / 256, without a warm-up, on both kinds of stem.
    for (run, stem) in [("cifar", "cifar"), ("imagenet", "imagenet")] {
        let stem = format!("encoder.stem={stem}");
        let stdout = world.ok(&[
            "train",
            "tiny.toml",
            "--out",
            run,
            "--set",
            &stem,
            "--set",
            "encoder.zero_init_residual=true",
            "--set",
            "optimizer.kind=lars",
            "--set",
            "optimizer.weight_decay=1e-6",
            "--set",
            "schedule.base_lr=1.6",
            "--set",
            "schedule.warmup_epochs=0",
            "--set",
            "train.precision=bf16",
            "--set",
            "train.steps=60",
            "--set",
            "eval.knn_at_end=false",
        ]);
        assert!(stdout.contains("run folder"), "{stdout}");
        assert!(losses(&world, run).iter().all(|loss| loss.is_finite()));
    }
}

#[test]
fn a_run_does_not_go_on_in_another_precision() {
    let world = World::new();
    world.ok(&["train", "tiny.toml", "--out", "run", "--max-steps", "3"]);
    let error = world.refused(&["train", "tiny.toml", "--out", "run", "--set", "train.precision=bf16"]);
    assert!(error.contains("train.precision"), "{error}");
}
