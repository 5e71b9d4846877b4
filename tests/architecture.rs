//! The house's invariants: rooms import one way, files say their job, unsafe has its places, no burn in data and feed.

use std::path::{Path, PathBuf};

/// Rooms in the order in which an image travels; each may import the ones before it.
const ROOMS: [&str; 5] = ["data", "feed", "learn", "measure", "cli"];

/// Where `unsafe` is allowed, and why the compiler cannot do it alone.
const UNSAFE: [&str; 5] = [
    "src/feed/simd.rs", // one conversion without the checks that keep a loop from being vectorised
    "src/feed/slot.rs", // many writers, each with its own range of one buffer
    "src/learn/backend/cuda.rs", // page-locked memory is the driver's, and so is the question whether it is there
    "tests/allocations.rs", // an allocator that counts is an unsafe trait
    "tests/dispatch.rs", // fast_image_resize calls its choice of instructions unsafe
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for path in entries.map(|entry| entry.unwrap().path()) {
            // What a build wrote is not ours: `tools/fuzz` may have a folder of its own for it.
            if path.is_dir() && !path.ends_with("target") {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    found.sort();
    let name = |path: &Path| path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
    found
        .iter()
        .map(|path| (name(path), std::fs::read_to_string(path).unwrap()))
        .collect()
}

/// Code without its comments, line by line; strings stay, which is good enough for what is looked for.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .any(|part| part == word)
}

#[test]
fn rooms_import_only_earlier_rooms() {
    let mut seen = 0;
    for (index, room) in ROOMS.iter().enumerate() {
        for (file, text) in sources(&format!("src/{room}")) {
            seen += 1;
            for (line, code) in code(&text) {
                for later in &ROOMS[index + 1..] {
                    assert!(
                        !(code.contains("crate::") && has_word(code, later)),
                        "{file}:{line}: {room} imports {later}"
                    );
                }
            }
        }
    }
    assert!(seen > 40, "only {seen} files were looked at");
}

#[test]
fn every_file_opens_with_its_job() {
    for folder in ["src", "tests", "benches", "tools"] {
        for (file, text) in sources(folder) {
            assert!(text.starts_with("//! "), "{file} does not open with a `//!` header");
        }
    }
}

#[test]
fn unsafe_stays_in_its_places() {
    let all = ["src", "tests", "benches"].into_iter().flat_map(sources);
    for (file, text) in all.filter(|(file, _)| file != "tests/architecture.rs") {
        for (line, code) in code(&text) {
            let found = has_word(code, "unsafe") || code.contains("allow(unsafe_code)");
            assert!(
                !found || UNSAFE.contains(&file.as_str()),
                "{file}:{line}: unsafe is not allowed here"
            );
        }
    }
}

#[test]
fn data_and_feed_know_no_burn() {
    for (file, text) in ["src/data", "src/feed"].into_iter().flat_map(sources) {
        for (line, code) in code(&text) {
            let burn = code
                .split(|c: char| !(c.is_alphanumeric() || c == '_'))
                .any(|part| part.starts_with("burn"));
            assert!(!burn && !code.contains("cubecl"), "{file}:{line}: {code}");
        }
    }
}
