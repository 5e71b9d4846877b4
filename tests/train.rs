//! `train` as a user runs it: what it leaves behind, and that an interruption leaves no trace.

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use common::{World, text};

#[test]
fn a_run_leaves_all_that_was_promised() {
    let world = World::new();
    let stdout = world.ok(&["train", "tiny.toml", "--out", "run"]);
    assert!(
        stdout.contains("trained") && stdout.contains("raw pixels") && stdout.contains("run folder: run"),
        "{stdout}"
    );

    let recipe = std::fs::read_to_string(world.path("run/recipe.toml")).unwrap();
    assert!(
        recipe.contains("batch_size = 16\n") && recipe.contains("seed = 0 # default"),
        "{recipe}"
    );
    let metrics = world.metrics("run");
    assert_eq!(metrics.len(), 24);
    for (index, line) in metrics.iter().enumerate() {
        assert_eq!(line["step"], index + 1);
        for key in [
            "epoch",
            "loss",
            "invariance",
            "variance",
            "covariance",
            "lr",
            "embedding_std",
        ] {
            assert!(line[key].as_f64().unwrap().is_finite(), "{key}: {line}");
        }
        // Official loss, paper eq. (6).
        let term = |key: &str| line[key].as_f64().unwrap();
        let sum = 25.0 * term("invariance") + 25.0 * term("variance") + term("covariance");
        assert!((sum - term("loss")).abs() < 1e-3 * sum, "{line}");
    }
    let mut checkpoints: Vec<String> = std::fs::read_dir(world.path("run/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    checkpoints.sort();
    assert_eq!(
        checkpoints,
        ["step-00000014", "step-00000021", "step-00000024"],
        "the newest three are kept"
    );
    assert!(world.path("run/encoder.safetensors").is_file() && world.path("run/quarantine.jsonl").is_file());

    let bytes = std::fs::read(world.path("run/encoder.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let facts = header.metadata().clone().unwrap();
    for (key, value) in [
        ("size", "16"),
        ("mean", "0.485,0.456,0.406"),
        ("std", "0.229,0.224,0.225"),
        ("interpolation", "bicubic"),
        ("channel_order", "RGB"),
    ] {
        assert_eq!(facts.get(key).map(String::as_str), Some(value), "{facts:?}");
    }
    assert!(header.tensors().contains_key("layer1.0.bn2.num_batches_tracked"));

    // The same images as folders of their own, in a shuffled order, the held-out ones by their shard.
    world.ok(&["ingest", "synthetic:shapes?train=192&test=64", "--out", "votes"]);
    world.ok(&[
        "ingest",
        "synthetic:shapes?train=192&test=64&split=test",
        "--out",
        "held",
    ]);
    let shard = "held/train-00000-of-00001.parquet";
    let knn = |extra: &[&str]| -> serde_json::Value {
        serde_json::from_str(&world.ok(&[&["eval", "knn", "run", "--k", "5", "--json"][..], extra].concat())).unwrap()
    };
    let (own, given) = (knn(&[]), knn(&["--train", "votes", "--test", shard]));
    for key in ["k", "train_images", "test_images", "trained", "raw_pixels"] {
        assert_eq!(own[key], given[key], "{key}: {own} {given}");
    }

    let again = world.command(&["train", "tiny.toml", "--out", "run"]).output().unwrap();
    assert!(
        again.status.success() && text(&again).contains("complete at step 24"),
        "{}",
        text(&again)
    );
    assert_eq!(world.metrics("run"), metrics);
}

#[test]
fn an_interrupted_run_continues_bit_for_bit_with_any_number_of_workers() {
    let world = World::new();
    world.ok(&["train", "tiny.toml", "--out", "whole", "--set", "feed.workers=1"]);
    for (workers, stops) in [("1", &[5][..]), ("2", &[1, 7, 20]), ("5", &[11, 12, 13])] {
        let run = format!("stopped-{workers}");
        let set = format!("feed.workers={workers}");
        for stop in stops {
            let stdout = world.ok(&[
                "train",
                "tiny.toml",
                "--out",
                &run,
                "--set",
                &set,
                "--max-steps",
                &stop.to_string(),
            ]);
            assert!(stdout.contains(&format!("stopped at step {stop} of 24")), "{stdout}");
        }
        world.ok(&["train", "tiny.toml", "--out", &run, "--set", &set]);
        assert_eq!(world.metrics(&run), world.metrics("whole"), "{workers} workers");
        assert_eq!(world.weights(&run, 24), world.weights("whole", 24), "{workers} workers");
        let encoder = |run: &str| std::fs::read(world.path(run).join("encoder.safetensors")).unwrap();
        assert_eq!(encoder(&run), encoder("whole"));
    }
}

#[cfg(unix)]
#[test]
fn a_signal_saves_and_the_same_command_continues() {
    let world = World::new();
    let args = ["train", "tiny.toml", "--set", "train.epochs=400", "--out", "run"];
    for signal in ["TERM", "INT", "USR1"] {
        let mut child = world
            .command(&args)
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Once a step is logged the loop runs and listens.
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap().starts_with("step ")),
            "no step was logged"
        );
        let kill = std::process::Command::new("kill")
            .args(["-s", signal, &child.id().to_string()])
            .status()
            .unwrap();
        assert!(kill.success());
        lines.for_each(drop);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "SIG{signal}: {}", text(&output));
        assert!(
            text(&output).contains("the same command continues"),
            "{}",
            text(&output)
        );
    }
    let metrics = world.metrics("run");
    let steps: Vec<u64> = metrics.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(
        steps,
        (1..=steps.len() as u64).collect::<Vec<_>>(),
        "no step is missing or double"
    );
}

#[test]
fn a_killed_run_continues_from_its_checkpoint_without_double_lines() {
    let world = World::new();
    world.ok(&["train", "tiny.toml", "--out", "whole"]);
    world.ok(&["train", "tiny.toml", "--out", "run", "--max-steps", "14"]);
    // As a crash after step 14 would leave it: lines beyond the checkpoint, the last one torn.
    let path = world.path("run/metrics.jsonl");
    let mut lines = std::fs::read_to_string(&path).unwrap();
    lines.push_str(&lines.lines().last().unwrap().replace("\"step\":14", "\"step\":15"));
    lines.push_str("\n{\"step\":16,\"ep");
    std::fs::write(&path, lines).unwrap();
    world.ok(&["train", "tiny.toml", "--out", "run"]);
    assert_eq!(world.metrics("run"), world.metrics("whole"));
}

/// A labelled data set of 96 images with every fifth one broken: cut short, or no image at all.
fn broken_set(world: &World) {
    use vicreg_stream::data::shard::{Labels, ShardWriter};
    let group = world.synthetic_images();
    std::fs::create_dir(world.path("set")).unwrap();
    let mut shard = ShardWriter::create(&world.path("set/part-0.parquet"), &Labels::Integers, 32).unwrap();
    for row in 0..96 {
        let image = group.image(row).unwrap();
        let image = match row {
            row if row % 10 == 4 => &image[..image.len() / 2],
            row if row % 10 == 9 => b"this is no image".as_slice(),
            _ => image,
        };
        shard
            .push(image, Some(&format!("{row}.jpg")), group.label(row))
            .unwrap();
    }
    shard.finish().unwrap();
}

#[test]
fn bad_images_are_replaced_and_written_down_whatever_the_workers_and_interruptions() {
    let world = World::new();
    broken_set(&world);
    let args = |run, workers, steps| {
        let set = [
            "--set",
            "feed.max_bad_fraction=0.5",
            "--set",
            workers,
            "--max-steps",
            steps,
        ];
        [&["train", "tiny.toml", "--data", "set", "--out", run][..], &set].concat()
    };
    world.ok(&args("whole", "feed.workers=1", "12"));
    for steps in ["2", "3", "12"] {
        world.ok(&args("parts", "feed.workers=3", steps));
    }
    assert_eq!(world.metrics("parts"), world.metrics("whole"));
    let quarantine = |run: &str| std::fs::read_to_string(world.path(run).join("quarantine.jsonl")).unwrap();
    assert_eq!(quarantine("parts"), quarantine("whole"));
    let lines: Vec<serde_json::Value> = quarantine("whole")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!((10..=19).contains(&lines.len()), "each bad image once: {lines:?}");
    for line in &lines {
        let row = 32 * line["row_group"].as_u64().unwrap() + line["row"].as_u64().unwrap();
        assert!(
            row % 5 == 4 && line["shard"] == "part-0.parquet" && line["path"] == format!("{row}.jpg"),
            "{line}"
        );
        assert!(!line["reason"].as_str().unwrap().is_empty());
    }

    let error = world.refused(&[
        "train",
        "tiny.toml",
        "--data",
        "set",
        "--out",
        "strict",
        "--set",
        "feed.max_bad=3",
    ]);
    assert!(
        error.contains("cannot be decoded") && error.contains("feed.max_bad") && error.contains("hint:"),
        "{error}"
    );
    assert!(quarantine("strict").lines().count() >= 4);
}

#[test]
fn max_steps_leaves_the_schedule_as_it_is() {
    let world = World::new();
    world.ok(&["train", "tiny.toml", "--out", "whole"]);
    world.ok(&["train", "tiny.toml", "--out", "short", "--max-steps", "10"]);
    assert_eq!(world.metrics("short"), world.metrics("whole")[..10]);
    // Again, with nothing left to do: still stopped, not complete.
    let again = world.ok(&["train", "tiny.toml", "--out", "short", "--max-steps", "10"]);
    assert!(
        again.contains("stopped at step 10 of 24") && !again.contains("k-NN"),
        "{again}"
    );
}

#[test]
fn a_run_folder_takes_only_its_own_recipe_and_data() {
    let world = World::new();
    world.ok(&["train", "tiny.toml", "--out", "run", "--max-steps", "3"]);
    let error = world.refused(&["train", "tiny.toml", "--out", "run", "--set", "loss.variance=10.0"]);
    assert!(
        error.contains("loss.variance: the run has 25.0, the recipe 10.0") && error.contains("hint:"),
        "{error}"
    );
    let error = world.refused(&[
        "train",
        "tiny.toml",
        "--out",
        "run",
        "--data",
        "synthetic:shapes?train=192&test=64&seed=1",
    ]);
    assert!(error.contains("was made from other data"), "{error}");
    let error = world.refused(&["train", "tiny.toml", "--out", "run", "--resume", "never"]);
    assert!(error.contains("there is a run in `run` already"), "{error}");
    // Operational keys are free.
    world.ok(&[
        "train",
        "tiny.toml",
        "--out",
        "run",
        "--max-steps",
        "4",
        "--set",
        "train.checkpoint_every=2",
    ]);
    let error = world.refused(&["train", "tiny.toml", "--out", "new", "--resume", "nowhere"]);
    assert!(error.contains("there is no checkpoint in `nowhere`"), "{error}");
}

#[test]
fn init_from_starts_a_new_run_from_weights() {
    let world = World::new();
    world.ok(&["train", "tiny.toml", "--out", "first", "--max-steps", "6"]);
    world.ok(&[
        "train",
        "tiny.toml",
        "--out",
        "second",
        "--init-from",
        "first",
        "--set",
        "train.seed=5",
        "--max-steps",
        "3",
    ]);
    let second = world.metrics("second");
    assert_eq!(second[0]["step"], 1);
    assert_ne!(second[0]["loss"], world.metrics("first")[0]["loss"]);
    // It continues without `--init-from`: the weights are in its checkpoint.
    world.ok(&[
        "train",
        "tiny.toml",
        "--out",
        "second",
        "--set",
        "train.seed=5",
        "--max-steps",
        "5",
    ]);
    let error = world.refused(&[
        "train",
        "tiny.toml",
        "--out",
        "third",
        "--init-from",
        "first",
        "--set",
        "encoder.width=0.125",
    ]);
    assert!(
        error.contains("the shape of `backbone.") && error.contains("model.safetensors"),
        "{error}"
    );
}

#[test]
fn resume_takes_a_checkpoint_by_path_into_a_new_folder() {
    let world = World::new();
    world.ok(&["train", "tiny.toml", "--out", "whole"]);
    let path = "whole/checkpoints/step-00000014";
    let error = world.refused(&["train", "tiny.toml", "--resume", path]);
    assert!(
        error.contains("is not the newest checkpoint") && error.contains("--out"),
        "{error}"
    );
    world.ok(&["train", "tiny.toml", "--resume", path, "--out", "branch"]);
    assert_eq!(world.metrics("branch"), world.metrics("whole")[14..]);
    // A branch that is interrupted continues, by the same command and without `--resume`.
    world.ok(&[
        "train",
        "tiny.toml",
        "--resume",
        path,
        "--out",
        "cut",
        "--max-steps",
        "14",
    ]);
    world.ok(&["train", "tiny.toml", "--out", "cut", "--max-steps", "16"]);
    world.ok(&["train", "tiny.toml", "--resume", path, "--out", "cut"]);
    assert_eq!(world.metrics("cut"), world.metrics("whole")[14..]);
    assert_eq!(world.weights("branch", 24), world.weights("whole", 24));
}

#[test]
fn a_dry_run_says_the_plan_and_writes_nothing() {
    let world = World::new();
    let stdout = world.ok(&["train", "tiny.toml", "--out", "run", "--dry-run"]);
    for expected in [
        "samples          192",
        "steps an epoch   12 (0 images dropped)",
        "steps            24",
        "memory",
    ] {
        assert!(stdout.contains(expected), "{stdout}");
    }
    assert!(!world.path("run").exists());
}

#[test]
fn gradient_caching_resumes_bit_for_bit_and_is_part_of_the_run() {
    let world = World::new();
    let micro = [
        "train",
        "tiny.toml",
        "--set",
        "train.micro_batch=4",
        "--set",
        "eval.knn_at_end=false",
    ];
    world.ok(&[&micro[..], &["--out", "whole"]].concat());
    world.ok(&[&micro[..], &["--out", "parts", "--max-steps", "9"]].concat());
    let error = world.refused(&["train", "tiny.toml", "--out", "parts"]);
    assert!(error.contains("train.micro_batch"), "{error}");
    world.ok(&[&micro[..], &["--out", "parts"]].concat());
    assert_eq!(world.weights("whole", 24), world.weights("parts", 24));
    assert_eq!(world.metrics("whole"), world.metrics("parts"));
    world.ok(&["train", "tiny.toml", "--out", "usual", "--set", "eval.knn_at_end=false"]);
    assert_ne!(world.weights("whole", 24), world.weights("usual", 24));
    // The encoder that comes out says what its batch norms saw.
    for (run, images) in [("whole", "4"), ("usual", "16")] {
        let bytes = std::fs::read(world.path(run).join("encoder.safetensors")).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().clone().unwrap()["batch_norm_images"], images);
    }
}
