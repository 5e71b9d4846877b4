//! `ingest` as a user runs it: sources, labels, rejects, interruptions.

mod common;

use std::path::Path;

use common::World;

/// A plain class/file tree: two classes, five images, and one file that is no image.
fn tree(world: &World) {
    for (class, count) in [("circles", 3), ("squares", 2)] {
        let folder = world.path("tree").join(class);
        std::fs::create_dir_all(&folder).unwrap();
        for index in 0..count {
            let picture = image::RgbImage::from_fn(24, 16, |x, y| image::Rgb([x as u8 * 9, y as u8 * 9, index * 60]));
            picture.save(folder.join(format!("{index}.png"))).unwrap();
        }
    }
    std::fs::write(world.path("tree/circles/broken.jpg"), b"this is no image").unwrap();
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_folder_tree_becomes_a_labelled_data_set_with_its_rejects_listed() {
    let world = World::new();
    tree(&world);
    let summary: serde_json::Value = serde_json::from_str(&world.ok(&["ingest", "tree", "--out", "set", "--json"])).unwrap();
    assert_eq!((&summary["samples"], &summary["rejected"]), (&5.into(), &1.into()), "{summary}");
    assert_eq!(summary["label_names"], serde_json::json!(["circles", "squares"]));
    let reject = &summary["rejects"][0];
    assert!(reject.to_string().contains("circles/broken.jpg"), "{reject}");
    let manifest = std::fs::read_to_string(world.path("set/manifest.json")).unwrap();
    assert!(manifest.contains("circles/broken.jpg"), "{manifest}");

    world.ok(&["train", "tiny.toml", "--data", "set", "--set", "train.batch_size=4", "--max-steps", "2", "--out", "run"]);
    let again = world.ok(&["ingest", "tree", "--out", "set"]);
    assert!(again.contains("complete already"), "{again}");
    let error = world.refused(&["ingest", "tree", "--out", "set", "--seed", "1"]);
    assert!(error.contains("other arguments") && error.contains("seed"), "{error}");
}

#[test]
fn the_same_arguments_give_the_same_bytes_and_another_seed_another_order() {
    let world = World::new();
    let source = "synthetic:shapes?train=192&test=64";
    world.ok(&["ingest", source, "--out", "a"]);
    world.ok(&["ingest", source, "--out", "b"]);
    world.ok(&["ingest", source, "--out", "c", "--seed", "1"]);
    assert_eq!(files(&world.path("a")), files(&world.path("b")));
    assert_ne!(files(&world.path("a")), files(&world.path("c")));
    // Ingest of our own output, as of any Hugging Face Parquet.
    let summary: serde_json::Value = serde_json::from_str(&world.ok(&["ingest", "a", "--out", "d", "--json"])).unwrap();
    assert_eq!(summary["samples"], 192);
    assert_eq!(summary["label_names"].as_array().unwrap().len(), 10);
}

#[cfg(unix)]
#[test]
fn a_killed_ingest_is_never_taken_for_complete_and_runs_to_the_same_bytes() {
    let world = World::new();
    let args = ["ingest", "synthetic:shapes?train=6000&test=64", "--shard-mb", "1", "--out"];
    world.ok(&[&args[..], &["whole"]].concat());
    let mut child = world.command(&[&args[..], &["set"]].concat()).spawn().unwrap();
    let has_shard = || {
        fn any(folder: &Path) -> bool {
            let Ok(entries) = std::fs::read_dir(folder) else { return false };
            entries.flatten().any(|entry| {
                let path = entry.path();
                let name = entry.file_name();
                (path.is_dir() && any(&path)) || (name.to_string_lossy().ends_with(".parquet") && !name.to_string_lossy().starts_with('.'))
            })
        }
        any(&world.path("set"))
    };
    while !has_shard() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    if !world.path("set/manifest.json").exists() {
        let error = world.refused(&["train", "tiny.toml", "--data", "set"]);
        assert!(error.contains("set") && error.contains("ingest"), "{error}");
    }
    world.ok(&[&args[..], &["set"]].concat());
    assert_eq!(files(&world.path("set")), files(&world.path("whole")));
}

#[test]
fn sources_and_outputs_that_cannot_be() {
    let world = World::new();
    let error = world.refused(&["ingest", "nowhere", "--out", "set"]);
    assert!(error.contains("nowhere"), "{error}");
    std::fs::create_dir(world.path("other")).unwrap();
    std::fs::write(world.path("other/file.txt"), "mine").unwrap();
    let error = world.refused(&["ingest", "synthetic:shapes?train=192&test=64", "--out", "other"]);
    assert!(error.contains("not empty") && error.contains("hint:"), "{error}");
}
