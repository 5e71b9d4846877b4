//! Bad input: each gets exit status 1, an error that names what is wrong, and a remedy where there is one.

mod common;

use common::World;

#[test]
fn a_recipe_that_is_not_there_or_not_understood() {
    let world = World::new();
    let error = world.refused(&["train", "nowhere.toml"]);
    assert!(
        error.contains("cannot read the recipe `nowhere.toml`") && error.contains("hint:"),
        "{error}"
    );
    std::fs::write(world.path("bad.toml"), "[train\nseed = 1").unwrap();
    let error = world.refused(&["train", "bad.toml"]);
    assert!(
        error.contains("cannot understand the recipe `bad.toml`") && error.contains("line 1"),
        "{error}"
    );
    std::fs::write(world.path("bad.toml"), "[train]\nbatchsize = 1").unwrap();
    let error = world.refused(&["train", "bad.toml"]);
    assert!(
        error.contains("unknown key `train.batchsize`") && error.contains("did you mean `train.batch_size`?"),
        "{error}"
    );
}

#[test]
fn options_that_contradict_each_other() {
    let world = World::new();
    for (set, expected) in [
        ("train.batch_size=1", "train.batch_size"),
        ("train.micro_batch=5", "divide train.batch_size = 16"),
        ("train.micro_batch=1", "train.micro_batch"),
        ("loss.covariance=nan", "loss.covariance"),
        ("loss.invariance=inf", "loss.invariance"),
        ("schedule.base_lr=nan", "schedule.base_lr"),
        ("optimizer.clip=true", "optimizer.clip"),
        ("expander.dims=[0]", "expander.dims"),
        ("loss.variance=-1.0", "loss.variance"),
        ("encoder.depth=19", "encoder.depth"),
        ("decode.max_pixels=0", "decode.max_pixels"),
        ("feed.ring=1", "feed.ring"),
    ] {
        let error = world.refused(&["train", "tiny.toml", "--set", set]);
        assert!(error.contains(expected), "{set}: {error}");
    }
    let error = world.refused(&["train", "tiny.toml", "--set", "nonsense"]);
    assert!(error.contains("--set nonsense") && error.contains("hint:"), "{error}");
}

/// What is odd but can be done is said, with the numbers.
#[test]
fn a_warm_up_longer_than_the_run_and_a_micro_batch_are_warned_of() {
    let world = World::new();
    let say = |set: &str| {
        let output = world
            .command(&["train", "tiny.toml", "--dry-run", "--set", set])
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let text = say("schedule.warmup_epochs=3");
    assert!(
        text.contains("warning: the run ends inside the warm-up: 24 steps, warm-up 36"),
        "{text}"
    );
    let text = say("train.micro_batch=4");
    assert!(
        text.contains("warning: train.micro_batch = 4") && text.contains("from 4 images, not from all 16"),
        "{text}"
    );
    assert!(!say("train.micro_batch=16").contains("warning"));
}

#[test]
fn a_run_that_does_not_fit_into_the_memory() {
    let world = World::new();
    let huge = "expander.dims=[65536,65536,65536,65536,65536,65536]"; // 86 GB of weights
    let error = world.refused(&["train", "tiny.toml", "--set", huge]);
    assert!(
        error.contains("needs ") && error.contains("available") && error.contains("make `expander.dims` smaller"),
        "{error}"
    );
    // 1024 x 1024 pixels of 64 filters in 48 blocks, 16 images: micro-batches may fit where the batch does not.
    let deep = [
        "--set",
        "encoder.depth=200",
        "--set",
        "encoder.width=1.0",
        "--set",
        "views.size=2048",
    ];
    let error = world.refused(&[&["train", "tiny.toml", "--dry-run"][..], &deep].concat());
    assert!(
        error.contains("parameters and optimiser") && error.contains("hint:"),
        "{error}"
    );
}

#[test]
fn data_that_are_not_there() {
    let world = World::new();
    let error = world.refused(&["train", "tiny.toml", "--data", "nowhere"]);
    assert!(error.contains("nowhere") && error.contains("hint:"), "{error}");
    std::fs::create_dir(world.path("empty")).unwrap();
    let error = world.refused(&["train", "tiny.toml", "--data", "empty"]);
    assert!(error.contains("empty") && error.contains("arquet"), "{error}");
    let error = world.refused(&["train", "tiny.toml", "--data", "tiny.toml"]);
    assert!(error.contains("tiny.toml") && error.contains("folder"), "{error}");
}

#[test]
fn a_data_set_without_an_image() {
    use vicreg_stream::data::shard::{Labels, ShardWriter};
    let world = World::new();
    std::fs::create_dir(world.path("set")).unwrap();
    ShardWriter::create(&world.path("set/a.parquet"), &Labels::Integers, 8)
        .unwrap()
        .finish()
        .unwrap();
    let error = world.refused(&["train", "tiny.toml", "--data", "set"]);
    assert!(
        error.contains("set") && error.contains("no image") || error.contains("empty"),
        "{error}"
    );
}

#[test]
fn a_folder_with_other_things_is_left_alone() {
    let world = World::new();
    let error = world.refused(&["train", "tiny.toml", "--out", "."]);
    assert!(
        error.contains("no run began there") && error.contains("hint:"),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(world.path("tiny.toml")).unwrap(), common::TINY);
}

#[test]
fn fewer_images_than_a_batch() {
    let world = World::new();
    let error = world.refused(&["train", "tiny.toml", "--set", "train.batch_size=512"]);
    assert!(
        error.contains("192 images, fewer than one batch of 512") && error.contains("hint:"),
        "{error}"
    );
}

#[test]
fn a_broken_footer_and_a_missing_column() {
    let world = World::new();
    world.ok(&["ingest", "synthetic:shapes?train=192&test=64", "--out", "set"]);
    let error = world.refused(&[
        "train",
        "tiny.toml",
        "--data",
        "set",
        "--set",
        "data.image_column=picture",
    ]);
    assert!(
        error.contains("picture") && error.contains("image") && error.contains("hint:"),
        "{error}"
    );
    let shard = std::fs::read_dir(world.path("set"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "parquet"))
        .unwrap();
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 7]).unwrap();
    let error = world.refused(&["train", "tiny.toml", "--data", "set"]);
    assert!(error.contains(shard.file_name().unwrap().to_str().unwrap()), "{error}");
}

#[test]
fn an_output_that_cannot_be_written() {
    let world = World::new();
    std::fs::write(world.path("file"), "").unwrap();
    let error = world.refused(&["train", "tiny.toml", "--out", "file/run"]);
    assert!(error.contains("file/run"), "{error}");
    let error = world.refused(&["ingest", "synthetic:shapes?train=192&test=64", "--out", "file/set"]);
    assert!(error.contains("file/set"), "{error}");
    let error = world.refused(&["inspect", "views", "tiny.toml", "--out", "file/sheet.png"]);
    assert!(error.contains("file"), "{error}");
}

#[test]
fn an_evaluation_without_a_run_or_without_labels() {
    let world = World::new();
    let error = world.refused(&["eval", "knn", "nowhere"]);
    assert!(error.contains("there is no run in `nowhere`"), "{error}");
    world.ok(&[
        "ingest",
        "synthetic:shapes?train=192&test=64",
        "--out",
        "set",
        "--labels",
        "none",
    ]);
    world.ok(&[
        "train",
        "tiny.toml",
        "--data",
        "set",
        "--out",
        "run",
        "--max-steps",
        "2",
    ]);
    let error = world.refused(&["eval", "knn", "run"]);
    assert!(error.contains("has no labels") && error.contains("hint:"), "{error}");
    world.ok(&["ingest", "synthetic:shapes?train=192&test=64", "--out", "labelled"]);
    let error = world.refused(&["eval", "knn", "run", "--train", "labelled", "--test", "labelled"]);
    assert!(error.contains("are the same") && error.contains("hint:"), "{error}");
}
