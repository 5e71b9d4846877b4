//! `bench` as a user runs it: numbers that belong together, of the feed, of the step and its operations, and of both.

mod common;

use common::World;
use serde_json::Value;

#[test]
fn the_feed_is_measured_stage_by_stage() {
    let world = World::new();
    let args = [
        "bench",
        "feed",
        "tiny.toml",
        "--seconds",
        "0.5",
        "--workers",
        "2,1",
        "--json",
    ];
    let report: Value = serde_json::from_str(&world.ok(&args)).unwrap();
    let number = |value: &Value, key: &str| value[key].as_f64().unwrap_or_else(|| panic!("{key} in {value}"));
    assert_eq!(report["samples"], 192);
    assert_eq!(report["workers"], 2, "the first of the counts is the report's own");
    let scaling = report["scaling"].as_array().unwrap();
    assert_eq!(scaling.len(), 2);
    assert_eq!(scaling[1]["workers"], 1);
    for speed in scaling {
        let images = number(speed, "images");
        assert!(images > 0.0);
        let rate = number(speed, "images_per_s") * number(speed, "seconds");
        assert!((rate / images - 1.0).abs() < 1e-6);
        let stages: Vec<f64> = speed["stages"]
            .as_object()
            .unwrap()
            .values()
            .map(|ms| ms.as_f64().unwrap())
            .collect();
        assert_eq!(stages.len(), 8);
        assert!(stages.iter().all(|&ms| ms >= 0.0), "{speed}");
        let named = |key: &str| number(&speed["stages"], key);
        assert!(named("decode") > 0.0 && named("crop") > 0.0, "{speed}");
        if cfg!(target_os = "linux") {
            // The stages are the whole, but for rounding and for threads that were between two states.
            let (sum, whole) = (stages.iter().sum::<f64>(), number(speed, "cpu_ms_per_image"));
            assert!((sum / whole - 1.0).abs() < 0.05, "{sum} of {whole}");
            assert!(number(speed, "peak_rss_mb") > 1.0);
        }
        assert!(["workers", "reader", "ring"].contains(&speed["limit"].as_str().unwrap()));
    }
}

#[test]
fn a_person_reads_the_limit() {
    let world = World::new();
    let text = world.ok(&["bench", "feed", "tiny.toml", "--seconds", "0.2", "--workers", "1,2"]);
    for words in ["1 workers: ", "images/s", "decode", "limit: ", "scaling, "] {
        assert!(text.contains(words), "{words:?} is missing in\n{text}");
    }
    let output = world
        .command(&["bench", "feed", "tiny.toml", "--seconds", "0"])
        .output()
        .unwrap();
    let error = common::text(&output);
    assert!(output.status.code() == Some(2) && error.contains("above 0"), "{error}");
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} in {value}"))
}

/// What must hold of any step's figures.
fn step_holds_together(step: &Value) {
    assert_eq!(step["batch_size"], 16);
    assert_eq!((&step["device"], &step["precision"]), (&"cpu".into(), &"f32".into()));
    let wall = number(step, "wall_s_per_step");
    assert!(
        (number(step, "images_per_s") * wall / 16.0 - 1.0).abs() < 1e-6,
        "{step}"
    );
    let share = number(step, "flops_per_step") / wall / number(step, "matmul_flops_per_s");
    assert!(
        (number(step, "share_of_matmul_peak") / share - 1.0).abs() < 1e-6,
        "{step}"
    );
    if cfg!(target_os = "linux") {
        assert!(number(step, "cpu_s_per_step") > 0.0);
    }
}

#[test]
fn the_step_is_measured_without_data() {
    let world = World::new();
    let args = [
        "bench",
        "step",
        "tiny.toml",
        "--data",
        "nowhere",
        "--seconds",
        "0.3",
        "--json",
    ];
    let report: Value = serde_json::from_str(&world.ok(&args)).unwrap();
    step_holds_together(&report);
    let text = world.ok(&["bench", "step", "tiny.toml", "--seconds", "0.1"]);
    assert!(
        text.contains("step alone on cpu") && text.contains("matrix product"),
        "{text}"
    );
}

/// Every operation is there as often as the network has it, and they add up.
#[test]
fn the_step_is_taken_apart() {
    let world = World::new();
    let args = ["bench", "ops", "tiny.toml", "--data", "nowhere", "--seconds", "0.2"];
    let report: Value = serde_json::from_str(&world.ok(&[&args[..], &["--json"]].concat())).unwrap();
    step_holds_together(&report);
    assert!(number(&report, "threads") >= 1.0);
    let ops = report["ops"].as_array().unwrap();
    let mut share = 0.0;
    for op in ops {
        let (calls, wall) = (number(op, "calls_per_step"), number(op, "wall_ms"));
        assert!(wall > 0.0, "{op}");
        assert!((number(op, "wall_ms_per_step") - calls * wall).abs() < 1e-6, "{op}");
        share += number(op, "share_of_step");
        if let Some(rate) = op["gflops_per_s"].as_f64() {
            let flops = number(op, "flops");
            assert!((rate * 1e6 * wall / flops - 1.0).abs() < 1e-6, "{op}");
            let peak = number(&report, "matmul_flops_per_s");
            assert!(
                (number(op, "share_of_matmul_peak") * peak / (rate * 1e9) - 1.0).abs() < 1e-6,
                "{op}"
            );
        }
    }
    assert!((share - number(&report["sum"], "share_of_step")).abs() < 1e-6);
    assert!((share + number(&report["rest"], "share_of_step") - 1.0).abs() < 1e-6);
    // Depth 8: a stem, three blocks of two, two projections; every convolution has a batch norm; two views.
    let calls = |name: &str| {
        let of = ops.iter().filter(|op| op["op"] == name);
        of.map(|op| number(op, "calls_per_step")).sum::<f64>()
    };
    let expected = [
        ("conv forward", 18.0),
        ("conv input grad", 16.0),
        ("conv weight grad", 18.0),
        ("norm forward", 18.0),
        ("norm backward", 18.0),
        ("gradient sum", 6.0),
        ("average pool", 2.0),
        ("images", 2.0),
        ("expander", 1.0),
        ("loss", 1.0),
        ("optimiser", 1.0),
    ];
    for (name, times) in expected {
        assert_eq!(calls(name), times, "{name}");
    }
    assert_eq!(calls("max-pool forward"), 0.0);
    let flops: f64 = ops
        .iter()
        .filter_map(|op| Some(op["flops"].as_f64()? * number(op, "calls_per_step")))
        .sum();
    // The images' gradient is counted in the whole step's, and never computed: 4 filters of 3 x 3 x 3 on 16 x 16 pixels.
    let images = 4.0 * 16.0 * f64::from(4 * 27 * 16 * 16);
    assert!((flops / (number(&report, "flops_per_step") - images) - 1.0).abs() < 1e-9);

    let text = world.ok(&[&args[..], &["--batch-size", "8"]].concat());
    for words in [
        "a step of 8 images",
        "operation by operation",
        "3>4 3x3/1 on 16x16",
        "whole step",
        "rest ",
    ] {
        assert!(text.contains(words), "{words:?} is missing in\n{text}");
    }
}

#[test]
fn feed_and_step_together_come_to_a_verdict() {
    let world = World::new();
    let args = ["bench", "train", "tiny.toml", "--seconds", "0.4", "--json"];
    let report: Value = serde_json::from_str(&world.ok(&args)).unwrap();
    step_holds_together(&report["step"]);
    let (both, alone) = (number(&report, "images_per_s"), number(&report["step"], "images_per_s"));
    let idle = (1.0 - both / alone).max(0.0);
    assert!((number(&report, "device_idle") - idle).abs() < 1e-9, "{report}");
    assert!((0.0..=1.0).contains(&number(&report, "feed_wait")));
    assert!(number(&report["feed"], "images_per_s") > 0.0 && number(&report, "steps") >= 1.0);
    let text = world.ok(&["bench", "train", "tiny.toml", "--seconds", "0.2"]);
    assert!(
        text.contains("both together: ") && text.contains("verdict: the device"),
        "{text}"
    );
}

#[test]
fn a_device_is_held_to_the_cpu() {
    let world = World::new();
    let report: Value = serde_json::from_str(&world.ok(&["bench", "device", "tiny.toml", "--json"])).unwrap();
    let checks = report["checks"].as_array().unwrap();
    // Uploads, operations, two trajectories, bf16's drift, two peak rates; nothing is copied to a CPU.
    assert_eq!((report["device"].as_str(), checks.len()), (Some("cpu"), 7), "{report}");
    assert!(checks.iter().all(|check| check["passed"] == true), "{report}");
}
