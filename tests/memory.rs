//! Memory of the running binary: bounded by ring, windows and a constant, and flat over the epochs.
//!
//! In: `inspect batches`, which runs the feed alone, on images that the test makes; resident set and its peak from
//! `/proc/PID/status`, read while the child runs, at the end of each epoch. Linux only: elsewhere a line is printed.

mod common;

use common::World;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use vicreg_stream::data::shard::{Labels, ShardWriter};

/// What the program needs beside ring and windows, MiB: code and tables, threads, scratch buffers (an image, its halves and
/// the blur's planes, under 1 MiB a worker here) and what the allocator keeps. Measured with two workers: 25 to 29.
const BASE: f64 = 44.0;

/// Most that the resident set may grow from the end of the second epoch to that of the sixth, MiB; it was seen to grow by
/// 0. A leak of every encoded image would be 14 MiB, of every decoded one 60.
const GROWTH: f64 = 4.0;

const IMAGES: u64 = 256;
const BATCH: u64 = 32;
const STEPS: u64 = IMAGES / BATCH;

/// A noisy JPEG of 160 x 128 pixels, about 14 KB.
fn noisy_jpeg(seed: u64) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    let pixels: Vec<u8> = (0..160 * 128 * 3)
        .map(|_| {
            // Marsaglia's xorshift.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as u8
        })
        .collect();
    let mut bytes = Vec::new();
    jpeg_encoder::Encoder::new(&mut bytes, 75)
        .encode(&pixels, 160, 128, jpeg_encoder::ColorType::Rgb)
        .unwrap();
    bytes
}

fn write(world: &World, images: impl Iterator<Item = Vec<u8>>) -> u64 {
    std::fs::create_dir(world.path("set")).unwrap();
    let mut shard = ShardWriter::create(&world.path("set/a.parquet"), &Labels::None, 16).unwrap();
    for image in images {
        shard.push(&image, None, None).unwrap();
    }
    shard.finish().unwrap().image_bytes
}

/// MiB of one line of `/proc/PID/status`.
fn status(pid: u32, key: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    let kilobytes: f64 = line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().unwrap();
    kilobytes / 1024.0
}

/// Runs `inspect batches` for `epochs` epochs and two more, which give the time to look; resident set and peak, MiB, at
/// the end of each of the first.
fn watch(world: &World, steps: u64, epochs: u64, set: &[&str]) -> Vec<(f64, f64)> {
    let all = (steps * (epochs + 2)).to_string();
    let mut args = vec![
        "inspect",
        "batches",
        "tiny.toml",
        "--data",
        "set",
        "--steps",
        &all,
        "--workers",
        "2",
    ];
    args.extend(set.iter().flat_map(|set| ["--set", set]));
    let mut child = world.command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    let mut count = 0;
    for line in lines {
        line.unwrap();
        count += 1;
        if count % steps == 0 && count / steps <= epochs {
            seen.push((status(child.id(), "VmRSS"), status(child.id(), "VmHWM")));
        }
    }
    assert!(child.wait().unwrap().success() && count == steps * (epochs + 2));
    seen
}

#[test]
fn the_feed_keeps_to_ring_and_windows_and_does_not_grow() {
    if !cfg!(target_os = "linux") {
        println!("skipped: the resident set is read from /proc");
        return;
    }
    let world = World::new();
    let image_bytes = write(&world, (0..IMAGES).map(noisy_jpeg));
    let ring = |slots: u64, side: u64| (slots * 2 * BATCH * side * side * 3) as f64 / f64::from(1 << 20);
    // Windows of a third of a MiB, one window of everything, and a ring that is large.
    for (window_mb, slots, side) in [(1, 4, 64), (64, 4, 64), (1, 12, 128)] {
        let set = [
            format!("order.window_mb={window_mb}"),
            format!("feed.ring={slots}"),
            format!("views.size={side}"),
            format!("train.batch_size={BATCH}"),
        ];
        let seen = watch(&world, STEPS, 6, &set.each_ref().map(String::as_str));
        let windows = f64::min(f64::from(window_mb), image_bytes as f64 / f64::from(1 << 20));
        let bound = ring(slots, side) + windows + BASE;
        let (peak, growth) = (seen[5].1, seen[5].0 - seen[1].0);
        println!(
            "window {windows:.1}, ring {:.1}: peak {peak:.1} MiB (bound {bound:.1}); resident by epoch {:.1?}",
            ring(slots, side),
            seen.iter().map(|seen| seen.0).collect::<Vec<_>>()
        );
        assert!(peak < bound, "peak {peak:.1} MiB, bound {bound:.1}");
        assert!(growth < GROWTH, "{growth:.1} MiB in four epochs");
    }
}

/// Images that claim to be huge, or are: the limit on pixels bounds the memory, not what a file says.
#[test]
fn images_that_claim_much_cost_little() {
    if !cfg!(target_os = "linux") {
        println!("skipped: the resident set is read from /proc");
        return;
    }
    let world = World::new();
    // 6,000 x 6,000 pixels of nothing: 100 KB that want 108 MB, beside good images.
    let mut bomb = Vec::new();
    let blank = image::GrayImage::new(6_000, 6_000);
    blank
        .write_to(&mut std::io::Cursor::new(&mut bomb), image::ImageFormat::Png)
        .unwrap();
    let claim = |seed| {
        let mut bytes = noisy_jpeg(seed);
        let sof = bytes.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        bytes[sof + 5..sof + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
        bytes
    };
    let images = (0..64).map(|i| match i % 4 {
        0 => bomb.clone(),
        1 => claim(i),
        _ => noisy_jpeg(i),
    });
    let image_bytes = write(&world, images) as f64 / f64::from(1 << 20);
    let limits = [
        "feed.max_bad_fraction=1.0",
        "train.batch_size=16",
        "decode.max_pixels=1000000",
    ];
    let seen = watch(&world, 4, 3, &limits);
    let peak = seen[2].1;
    println!("{image_bytes:.1} MiB of images: peak {peak:.1} MiB");
    assert!(peak < BASE + image_bytes + 8.0, "peak {peak:.1} MiB");
}
