//! `weights import`, `weights export` and `train --init-from`, as a user runs them.

mod common;

use std::path::Path;

use common::{World, text};
use safetensors::SafeTensors;

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/weights")
        .join(name);
    path.to_str().unwrap().to_owned()
}

/// Names and bytes of a file's tensors, sorted.
fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .iter()
        .map(|(name, view)| (name.to_owned(), view.data().to_vec()))
        .collect();
    tensors.sort();
    tensors
}

fn facts(path: &Path) -> std::collections::HashMap<String, String> {
    let bytes = std::fs::read(path).unwrap();
    SafeTensors::read_metadata(&bytes)
        .unwrap()
        .1
        .metadata()
        .clone()
        .unwrap_or_default()
}

#[test]
fn an_import_says_what_it_read_and_training_begins_from_it() {
    let world = World::new();
    let file = fixture("solo-learn.ckpt");
    let error = world.refused(&["weights", "import", &file, "--out", "got"]);
    assert!(
        error.contains("`classifier.weight`, `classifier.bias`") && error.contains("hint: `--drop-head`"),
        "{error}"
    );
    assert!(!world.path("got").exists(), "nothing is half imported");

    let output = world
        .command(&["weights", "import", &file, "--out", "got", "--drop-head"])
        .output()
        .unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for expected in [
        "not read: `epoch` (999)",
        "not read: `hyper_parameters` (object of __main__.AttributeDict)",
        "dropped: `classifier.bias`",
        "has padding 2",
        "layout      solo-learn",
        "network     ResNet-10, width 0.03125, cifar stem, expander 6-6-6",
        "encoder.depth=10 encoder.width=0.03125 encoder.stem=cifar encoder.stem_padding=2 expander.dims=[6,6,6]",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let encoder = facts(&world.path("got/encoder.safetensors"));
    assert_eq!(
        (encoder["depth"].as_str(), encoder["stem_padding"].as_str()),
        ("10", "2")
    );
    let error = world.refused(&["weights", "import", &file, "--out", "got", "--drop-head"]);
    assert!(error.contains("is not empty") && error.contains("--out"), "{error}");

    // The recipe that it names, with no learning: the first checkpoint's weights are the file's.
    let train = |out: &str, from: &str, more: &[&str]| {
        let all = [
            &[
                "train",
                "tiny.toml",
                "--out",
                out,
                "--init-from",
                from,
                "--max-steps",
                "1",
            ][..],
            &[
                "--set",
                "encoder.depth=10",
                "--set",
                "encoder.width=0.03125",
                "--set",
                "encoder.stem_padding=2",
            ],
            &["--set", "schedule.base_lr=1e-30"],
            more,
        ];
        let output = world.command(&all.concat()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let bias = ["--set", "expander.dims=[6,6,6]", "--set", "expander.last_bias=true"];
    let said = train("whole", "got", &bias);
    assert!(
        said.contains("weights from") && !said.contains("begins fresh"),
        "{said}"
    );
    let trained = tensors(&world.path("whole/checkpoints/step-00000001/model.safetensors"));
    let given = tensors(&world.path("got/model.safetensors"));
    let weight = |tensors: &[(String, Vec<u8>)], name: &str| tensors.iter().find(|t| t.0 == name).unwrap().1.clone();
    for name in ["backbone.layer1.0.conv1.weight", "projector.6.weight"] {
        assert_eq!(weight(&trained, name), weight(&given, name), "{name}");
    }

    let said = train("other", "got", &["--set", "expander.dims=[6,6]"]);
    assert!(
        said.contains("the expander begins fresh: the network has no place for"),
        "{said}"
    );
    let trained = tensors(&world.path("other/checkpoints/step-00000001/model.safetensors"));
    let name = "backbone.layer4.0.conv2.weight";
    assert_eq!(weight(&trained, name), weight(&given, name));
    let said = train("alone", "got/encoder.safetensors", &["--set", "encoder.stem_padding=1"]);
    assert!(
        said.contains("begins fresh: the weights have none") && said.contains("--set encoder.stem_padding=2"),
        "{said}"
    );
}

#[test]
fn weights_of_another_network_name_the_keys_that_fit() {
    let world = World::new();
    world.ok(&["weights", "import", &fixture("lightly.ckpt"), "--out", "got"]);
    let error = world.refused(&["train", "tiny.toml", "--init-from", "got", "--dry-run"]);
    assert!(
        error.contains("got/model.safetensors")
            && error.contains("the weights are a ResNet-18, width 0.015625, imagenet stem, expander 5-6-4")
            && error.contains("--set encoder.depth=18 --set encoder.width=0.015625 --set encoder.stem=imagenet"),
        "{error}"
    );
    let error = world.refused(&["train", "tiny.toml", "--init-from", "nowhere"]);
    assert!(error.contains("in `nowhere`"), "{error}");
}

#[test]
fn a_run_is_exported_under_each_naming_with_its_counts() {
    let world = World::new();
    world.ok(&["train", "tiny.toml", "--out", "run", "--max-steps", "3"]);
    let export = |from: &str, naming: &str, out: &str| {
        world.ok(&["weights", "export", from, "--naming", naming, "--out", out]);
        tensors(&world.path(out))
    };
    let encoder = tensors(&world.path("run/encoder.safetensors"));
    assert_eq!(export("run", "torchvision", "a.safetensors"), encoder);
    assert_eq!(export("run/encoder.safetensors", "timm", "b.safetensors"), encoder);
    assert_eq!(
        facts(&world.path("a.safetensors")),
        facts(&world.path("run/encoder.safetensors"))
    );
    let official = export("run/checkpoints/step-00000003", "official", "c.safetensors");
    let model = tensors(&world.path("run/checkpoints/step-00000003/model.safetensors"));
    for (name, bytes) in &model {
        let exported = official.iter().find(|t| t.0 == format!("module.{name}")).unwrap();
        assert_eq!(&exported.1, bytes, "{name}");
    }
    let counts: Vec<_> = official
        .iter()
        .filter(|t| t.0.ends_with(".num_batches_tracked"))
        .collect();
    assert_eq!(official.len(), model.len() + counts.len());
    assert!(counts.iter().any(|t| t.0 == "module.projector.4.num_batches_tracked"));
    assert!(counts.iter().all(|t| t.1 == 6i64.to_le_bytes()), "two views a step");
    // And back: what was exported is what was trained.
    world.ok(&["weights", "import", "c.safetensors", "--out", "back"]);
    assert_eq!(export("back", "official", "d.safetensors"), official);

    let probe = [
        "weights",
        "export",
        "run",
        "--naming",
        "official",
        "--out",
        "e.safetensors",
        "--probe",
        "p.json",
        "--json",
    ];
    let report: serde_json::Value = serde_json::from_str(&world.ok(&probe)).unwrap();
    assert_eq!(report["tensors"], official.len());
    let probe: serde_json::Value = serde_json::from_slice(&std::fs::read(world.path("p.json")).unwrap()).unwrap();
    assert_eq!(probe["representation"].as_array().unwrap().len(), 2 * 16);
    assert_eq!(probe["embedding"].as_array().unwrap().len(), 2 * 32);
}

#[test]
fn files_that_cannot_be_used_are_explained() {
    let world = World::new();
    let refused = |file: &str| world.refused(&["weights", "import", file, "--out", "got"]);
    let error = refused(&fixture("malicious.pth"));
    assert!(
        error.contains("malicious.pth") && error.contains("`posix.system`") && error.contains("hint: do not load"),
        "{error}"
    );
    let error = refused(&fixture("legacy.pth"));
    assert!(error.contains("hint: convert it"), "{error}");
    let error = refused("nowhere.pth");
    assert!(error.contains("cannot read `nowhere.pth`"), "{error}");
    let whole = std::fs::read(fixture("official-full.pth")).unwrap();
    std::fs::write(world.path("cut.pth"), &whole[..whole.len() / 2]).unwrap();
    let error = refused("cut.pth");
    assert!(
        error.contains("cut short or damaged") && error.contains("hint:"),
        "{error}"
    );
    let error = refused("tiny.toml");
    assert!(
        error.contains("neither a PyTorch file nor safetensors") && error.contains("hint:"),
        "{error}"
    );
    let error = world.refused(&[
        "weights",
        "export",
        "nowhere",
        "--naming",
        "timm",
        "--out",
        "a.safetensors",
    ]);
    assert!(error.contains("in `nowhere`"), "{error}");
    assert!(!world.path("got").exists());
}
