//! The smoke recipe learns: a short run separates the classes that an untrained network and raw pixels do not.

mod common;

use common::World;

/// 30,000 views: 64 to 66 % here. With 20,000 (PyTorch then reaches 62 to 69 % on three seeds) rounding alone moves the accuracy by
/// six points: 43, 55 and 56 % from one seed with AdamW's epsilon changed in its fifth digit. Untrained 26 to 30 %, raw pixels 17 %
/// (experiments that chose the data set).
#[test]
fn a_short_smoke_run_learns() {
    let world = World::new();
    let recipe = format!("{}/pipelines/smoke.toml", env!("CARGO_MANIFEST_DIR"));
    let short = ["--set", "train.steps=234", "--set", "schedule.warmup_epochs=0.25"];
    world.ok(&[
        &["train", &recipe, "--out", "run", "--set", "eval.knn_at_end=false"][..],
        &short,
    ]
    .concat());
    let knn: serde_json::Value = serde_json::from_str(&world.ok(&["eval", "knn", "run", "--json"])).unwrap();
    let share = |key: &str| knn[key].as_f64().unwrap();
    assert_eq!(
        (&knn["k"], &knn["train_images"], &knn["test_images"]),
        (&20.into(), &4000.into(), &1000.into())
    );
    assert!(share("trained") >= 0.5, "{knn}");
    assert!((0.15..0.40).contains(&share("untrained")), "{knn}");
    assert!((0.10..0.25).contains(&share("raw_pixels")), "{knn}");
}
