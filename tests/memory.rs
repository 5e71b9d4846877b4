//! Memory of the running binary: bounded by ring, windows and a constant, and flat over the epochs.
//!
//! In: `inspect batches`, which runs the feed alone, on images that the test makes; resident set and its peak from
//! `/proc/PID/status`, read while the child runs, at least an epoch apart. Linux only: elsewhere a line is printed.

mod common;

use common::World;
use std::fs::File;
use std::process::Child;
use std::time::Duration;
use vicreg_stream::data::shard::{Labels, ShardWriter};

/// What the program needs beside ring and windows, MiB: code and tables, threads, scratch buffers (an image, its halves and
/// the blur's planes, under 1 MiB a worker here) and what the allocator keeps. Measured with two workers: 25 to 29.
const BASE: f64 = 44.0;

/// Most that the resident set may grow from the second sample to the sixth, four epochs or more, MiB; it was seen to grow
/// by 0. A leak of every encoded image would be 14 MiB, of every decoded one 60.
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

/// The child, which ends with the value: also where an assertion fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Far more than the samples need, so that the child still runs at the last one, however late that is; a bound only for a
/// child that nobody ends.
const RUN_EPOCHS: u64 = 5_000;

/// Runs `inspect batches` until there are `samples` of resident set and peak, MiB, and then ends it.
///
/// Between two samples lie `steps` batches or more. The child writes a line a batch to a file: it does not wait for this
/// thread, and lines are not held in a pipe, so what is counted is where the child is. If this thread gets no processor
/// for a while, the next sample comes later and nothing else changes.
fn watch(world: &World, steps: u64, samples: usize, set: &[&str]) -> Vec<(f64, f64)> {
    let all = (steps * RUN_EPOCHS).to_string();
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
    let output = world.path("batches.txt");
    let stdout = File::create(&output).unwrap();
    let mut child = Running(world.command(&args).stdout(stdout).spawn().unwrap());
    let batches = || {
        let text = std::fs::read(&output).unwrap();
        text.iter().filter(|byte| **byte == b'\n').count() as u64
    };
    let (mut seen, mut next) = (Vec::new(), steps);
    while seen.len() < samples {
        let ended = child.0.try_wait().unwrap();
        assert!(ended.is_none(), "the child has ended: {ended:?}, {} batches", batches());
        if batches() >= next {
            seen.push((status(child.0.id(), "VmRSS"), status(child.0.id(), "VmHWM")));
            // Counted after the sample: what the child did meanwhile is not taken for growth.
            next = batches() + steps;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
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
            "window {windows:.1}, ring {:.1}: peak {peak:.1} MiB (bound {bound:.1}); resident by sample {:.1?}",
            ring(slots, side),
            seen.iter().map(|seen| seen.0).collect::<Vec<_>>()
        );
        assert!(peak < bound, "peak {peak:.1} MiB, bound {bound:.1}");
        assert!(growth < GROWTH, "{growth:.1} MiB in four epochs or more");
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
