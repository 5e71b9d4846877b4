//! Training on a GPU through wgpu, here on any Vulkan driver, Mesa's software one included: kernels, fusion, autotune, uploads,
//! late metrics and the loop are the ones that CUDA runs.
//!
//! `cargo test --features wgpu --test gpu`. Without an adapter the tests fail: they are asked for by name.
#![cfg(feature = "wgpu")]

mod common;

use common::World;

const QUIET: [&str; 4] = ["--set", "eval.knn_at_end=false", "--set", "train.checkpoint_every=5"];

fn train(world: &World, run: &str, backend: &str, more: &[&str]) -> String {
    world.ok(&[
        &["train", "tiny.toml", "--out", run, "--backend", backend],
        &QUIET[..],
        more,
    ]
    .concat())
}

#[test]
fn ten_steps_equal_the_cpus() {
    let world = World::new();
    train(&world, "cpu", "cpu", &["--max-steps", "10"]);
    train(&world, "gpu", "wgpu", &["--max-steps", "10"]);
    let (cpu, gpu) = (world.metrics("cpu"), world.metrics("gpu"));
    assert_eq!((cpu.len(), gpu.len()), (10, 10));
    for (step, (cpu, gpu)) in cpu.iter().zip(&gpu).enumerate() {
        for key in ["loss", "invariance", "variance", "covariance", "embedding_std"] {
            let [c, g] = [cpu, gpu].map(|line| line[key].as_f64().unwrap());
            // Rounding: 8e-7 was the most under seven random choices of kernels. AdamW then makes steps of the size of the rate
            // from gradients of any size, where gradients are nought but for rounding too; what they move has no influence.
            let tolerance = if step == 0 { 2e-5 } else { 1e-4 };
            assert!(
                (g / c - 1.0).abs() < tolerance,
                "step {}: {key} {c} on the CPU, {g} on the GPU",
                step + 1
            );
        }
        assert_eq!((&cpu["lr"], &cpu["epoch"]), (&gpu["lr"], &gpu["epoch"]));
    }

    // A device is operational: what one began another continues, and the line files have no gap.
    train(&world, "gpu", "cpu", &["--max-steps", "12"]);
    let steps: Vec<u64> = world
        .metrics("gpu")
        .iter()
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=12).collect::<Vec<_>>());
}

#[test]
fn a_ring_of_two_slots_does_not_run_dry() {
    let world = World::new();
    train(&world, "gpu", "wgpu", &["--max-steps", "8", "--set", "feed.ring=2"]);
    assert_eq!(world.metrics("gpu").len(), 8);
}

#[test]
fn a_device_that_is_not_there_and_a_type_that_it_lacks_are_named() {
    let world = World::new();
    let error = world.refused(&[
        "train",
        "tiny.toml",
        "--out",
        "run",
        "--backend",
        "wgpu",
        "--device",
        "99",
    ]);
    assert!(error.contains("no device 99") && error.contains("hint: "), "{error}");
    let bf16 = [
        "train",
        "tiny.toml",
        "--out",
        "run",
        "--backend",
        "wgpu",
        "--set",
        "train.precision=bf16",
        "--dry-run",
    ];
    let output = world.command(&bf16).output().unwrap();
    // A GPU that has bf16 trains in it; software Vulkan has not.
    let error = common::text(&output);
    assert!(
        output.status.success() || error.contains("cannot compute in bf16"),
        "{error}"
    );
}
