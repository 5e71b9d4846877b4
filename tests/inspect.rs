//! `inspect`: digests that show determinism to users, and the contact sheet.

mod common;

use common::{World, shared};

#[test]
fn digests_are_the_same_for_any_number_of_workers_and_from_any_start() {
    let world = World::new();
    let batches = |extra: &[&str]| {
        let mut args = vec!["inspect", "batches", "tiny.toml"];
        args.extend_from_slice(extra);
        world.ok(&args)
    };
    // 12 steps an epoch: 30 steps cross two epoch ends.
    let whole = batches(&["--steps", "30", "--workers", "1"]);
    let lines: Vec<&str> = whole.lines().collect();
    assert_eq!(lines.len(), 30);
    let pattern = |line: &str, step: usize| {
        let rest = line.strip_prefix(&format!("step={step} pixels=")).unwrap();
        let (pixels, keys) = rest.split_once(" keys=").unwrap();
        [pixels, keys]
            .iter()
            .all(|digest| digest.len() == 16 && u64::from_str_radix(digest, 16).is_ok())
    };
    assert!(
        lines.iter().enumerate().all(|(step, line)| pattern(line, step)),
        "{whole}"
    );
    let mut distinct = lines.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 30);

    for workers in ["2", "7"] {
        assert_eq!(
            batches(&["--steps", "30", "--workers", workers]),
            whole,
            "{workers} workers"
        );
    }
    for ring in ["2", "5"] {
        assert_eq!(
            batches(&["--steps", "30", "--set", &format!("feed.ring={ring}")]),
            whole,
            "a ring of {ring}"
        );
    }
    for start in [1, 11, 12, 13, 29] {
        let steps = (30 - start).to_string();
        let tail = batches(&["--start", &start.to_string(), "--steps", &steps, "--workers", "3"]);
        assert_eq!(tail.lines().collect::<Vec<_>>(), lines[start..], "from step {start}");
    }
    assert_ne!(
        batches(&["--steps", "1", "--set", "train.seed=1"]).lines().next(),
        lines.first().copied()
    );
}

#[test]
fn batches_are_written_as_they_are_digested() {
    let world = World::new();
    let steps = |extra: &[&str]| {
        let args = ["inspect", "batches", "tiny.toml", "--out", "batches.bin"];
        let printed = world.ok(&[&args[..], extra].concat());
        (printed, std::fs::read(world.path("batches.bin")).unwrap())
    };
    let (printed, bytes) = steps(&["--start", "11", "--steps", "3"]);
    // [steps, V, N, H, W, 3]
    let batch = 2 * 16 * 16 * 16 * 3;
    assert_eq!(bytes.len(), 3 * batch);
    assert_eq!(printed.lines().count(), 3);
    for (line, batch) in printed.lines().zip(bytes.chunks(batch)) {
        let digest = format!(" pixels={:016x} ", xxhash_rust::xxh3::xxh3_64(batch));
        assert!(line.contains(&digest), "{line} and not{digest}");
    }
    // A second run replaces the file; where it cannot be written nothing is printed as if it were.
    assert_eq!(steps(&["--start", "12", "--steps", "1"]).1, bytes[batch..2 * batch]);
    std::fs::write(world.path("file"), "").unwrap();
    let args = ["inspect", "batches", "tiny.toml", "--steps", "1", "--out"];
    world.refused(&[&args[..], &["file/batches.bin"]].concat());
}

#[test]
fn the_contact_sheet_has_a_row_an_image() {
    let world = World::new();
    world.ok(&[
        "inspect",
        "views",
        "tiny.toml",
        "--out",
        "sheet.png",
        "--images",
        "3",
        "--draws",
        "2",
    ]);
    let sheet = image::open(world.path("sheet.png")).unwrap().to_rgb8();
    // Tiles of 96 pixels, gaps of 4: an original, then two pairs.
    assert_eq!(sheet.dimensions(), (4 + 96 + 4 + 2 * (2 * 96 + 12), 4 + 3 * 100));
    let colours: std::collections::HashSet<_> = sheet.pixels().collect();
    assert!(colours.len() > 500, "{} colours", colours.len());
}

#[test]
fn third_party_parquet_works_as_it_is() {
    let world = World::new();
    for folder in ["photos", "cifar10"] {
        let Some(path) = shared(folder) else { return };
        let path = path.to_str().unwrap();
        let batches = |workers| {
            let set = ["--set", "views.size=64", "--set", "order.window_mb=128"];
            let args = [
                "inspect",
                "batches",
                "tiny.toml",
                "--data",
                path,
                "--steps",
                "3",
                "--workers",
                workers,
            ];
            world.ok(&[&args[..], &set].concat())
        };
        assert_eq!(batches("1"), batches("2"), "{folder}");
    }
}
