//! The own JPEG decoder beside zune-jpeg, on the photographs of a folder, in turn: CPU milliseconds a photograph.
//!
//! Usage: cargo bench -p vicreg-stream-benches --bench decode -- --data DIR [--boxes FILE] [--rounds 5]
//!
//! `zune` and `own` decode whole photographs to 4 bytes a pixel, `own-box` the smallest box around two crops, and `codec-box` the same
//! behind the checks of the header, as the feed calls it. The boxes are those of `FILE` (`index left top width height`, two lines a
//! photograph: tools/rivals/jpeg/measure.py writes and takes it too), or those that the official recipe draws. Every
//! box is held to zune-jpeg's pixels once. `--lanes baseline|avx2|avx512` keeps `own` and `own-box` to those instructions;
//! `--only WORK` runs one work once, for a profiler that counts instructions.

use std::collections::HashMap;
use std::time::{Duration, Instant};
use vicreg_stream::data::jpeg;
use vicreg_stream::data::rng::{Domain, Philox};
use vicreg_stream::data::simd::Lanes;
use vicreg_stream::data::{Columns, Dataset, DecodeOptions, Decoder, Region, Rgbx8, ShardId};
use vicreg_stream::feed::view::ViewsOptions;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Error = Box<dyn std::error::Error>;

const WORKS: [&str; 4] = ["zune", "own", "own-box", "codec-box"];

/// Passes over the photographs in a round: the kernel counts in steps of some milliseconds.
const PASSES: usize = 4;

struct Photo {
    bytes: Vec<u8>,
    all: Region,
    part: Region,
}

#[derive(Default)]
struct Buffers {
    own: jpeg::Decoder,
    codec: Decoder,
    pixels: Vec<u8>,
    image: Rgbx8,
}

fn main() -> Result<(), Error> {
    let mut options = HashMap::new();
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(key) = args.next() {
        options.insert(key, args.next().ok_or("every option has a value")?);
    }
    let Some(data) = options.get("--data") else {
        eprintln!("skipped: no --data DIR with photographs (see the head of benches/decode.rs)");
        return Ok(());
    };
    let photos = photographs(data, options.get("--boxes").map(String::as_str))?;
    let mut buffers = Buffers::default();
    if let Some(wanted) = options.get("--lanes") {
        let lanes = Lanes::all().into_iter().find(|(name, _)| name == wanted);
        buffers.own = jpeg::Decoder::new(lanes.ok_or("not on this CPU")?.1);
    }
    if let Some(work) = options.get("--only") {
        photos.iter().try_for_each(|photo| run(work, photo, &mut buffers))?;
        return Ok(());
    }
    let same = photos.iter().map(|photo| check(photo, &mut buffers));
    let same: Vec<bool> = same.collect::<Result<_, _>>()?;
    let total = |region: fn(&Photo) -> u64| photos.iter().map(region).sum::<u64>() as f64;
    let pixels = total(|p| u64::from(p.all.width) * u64::from(p.all.height));
    println!(
        "{} photographs, {} decoded by the own decoder; boxes: {:.3} of the rows to their bottoms, {:.3} of the area",
        photos.len(),
        same.iter().filter(|own| **own).count(),
        total(|p| u64::from(p.all.width) * u64::from(p.part.bottom())) / pixels,
        total(|p| u64::from(p.part.width) * u64::from(p.part.height)) / pixels,
    );
    let rounds: usize = options.get("--rounds").map_or(Ok(5), |n| n.parse())?;
    let mut times = [const { Vec::new() }; WORKS.len()];
    for _ in 0..rounds {
        for (work, times) in WORKS.iter().zip(&mut times) {
            let start = clock();
            for _ in 0..PASSES {
                photos.iter().try_for_each(|photo| run(work, photo, &mut buffers))?;
            }
            times.push((clock() - start).as_secs_f64() * 1e3 / (PASSES * photos.len()) as f64);
        }
    }
    let medians = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        (times[times.len() / 2], times[0], times[times.len() - 1])
    });
    for (work, (median, least, most)) in WORKS.iter().zip(medians) {
        println!(
            "{work:9} {median:.4} ms, {least:.4} to {most:.4}, {:.3} of zune's",
            median / medians[0].0
        );
    }
    Ok(())
}

/// All photographs, in the order of the shards, with the boxes of two views.
fn photographs(folder: &str, boxes: Option<&str>) -> Result<Vec<Photo>, Error> {
    let data = Dataset::open(folder.as_ref(), &Columns::default())?;
    let boxes = boxes.map(std::fs::read_to_string).transpose()?;
    let mut boxes = boxes.as_deref().map(|text| text.lines().map(region));
    let views = ViewsOptions::default().views();
    let mut photos = Vec::new();
    for (shard, info) in data.shards().iter().enumerate() {
        for group in 0..info.row_groups.len() as u32 {
            let rows = data.read_row_group(ShardId(shard as u32), group)?;
            for row in 0..rows.len() as u32 {
                let bytes = rows.image(row).ok_or("a row without an image")?.to_vec();
                let index = photos.len() as u64;
                let mut whole = Rgbx8::default();
                let mut part = Region::default();
                let choose = |width, height| {
                    part = match &mut boxes {
                        Some(boxes) => two(boxes.by_ref().flatten()),
                        None => two(views.iter().zip(0..).map(|(view, number)| {
                            let mut rng = Philox::new(1, Domain::View, 0, index, number);
                            view.draw(width, height, &mut rng).region()
                        })),
                    };
                    part
                };
                Decoder::default().decode_part(&bytes, &DecodeOptions::default(), choose, &mut whole)?;
                let all = Region::all(whole.width, whole.height);
                photos.push(Photo { bytes, all, part });
            }
        }
    }
    Ok(photos)
}

/// The box around the next two.
fn two(regions: impl Iterator<Item = Region>) -> Region {
    regions
        .take(2)
        .reduce(Region::union)
        .expect("two boxes for each photograph")
}

/// `index left top width height`.
fn region(line: &str) -> Result<Region, std::num::ParseIntError> {
    let numbers: Vec<u32> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [_, left, top, width, height] = numbers[..] else {
        panic!("five numbers are expected: {line}")
    };
    Ok(Region {
        left,
        top,
        width,
        height,
    })
}

fn run(work: &str, photo: &Photo, buffers: &mut Buffers) -> Result<(), Error> {
    let Buffers {
        own,
        codec,
        pixels,
        image,
    } = buffers;
    match work {
        "zune" => zune(&photo.bytes, pixels)?,
        "own" | "own-box" => {
            let part = if work == "own" { photo.all } else { photo.part };
            if own.decode(&photo.bytes, part, pixels).is_err() {
                zune(&photo.bytes, pixels)?;
            }
        }
        "codec-box" => codec.decode_part(&photo.bytes, &DecodeOptions::default(), |_, _| photo.part, image)?,
        other => return Err(format!("no work {other}: {WORKS:?}").into()),
    }
    Ok(())
}

/// Whether the own decoder takes the photograph; its box must be zune-jpeg's.
fn check(photo: &Photo, buffers: &mut Buffers) -> Result<bool, Error> {
    let mut whole = Vec::new();
    zune(&photo.bytes, &mut whole)?;
    if buffers
        .own
        .decode(&photo.bytes, photo.part, &mut buffers.pixels)
        .is_err()
    {
        return Ok(false);
    }
    let rows = whole
        .chunks_exact(photo.all.width as usize * 4)
        .skip(photo.part.top as usize);
    for (row, own) in rows.zip(buffers.pixels.chunks_exact(photo.part.width as usize * 4)) {
        assert!(row[photo.part.left as usize * 4..].starts_with(own), "another picture");
    }
    Ok(true)
}

fn zune(bytes: &[u8], pixels: &mut Vec<u8>) -> Result<(), Error> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(ColorSpace::RGBA);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| e.to_string())?;
    pixels.resize(decoder.output_buffer_size().ok_or("no size")?, 0);
    decoder.decode_into(pixels).map_err(|e| e.to_string())?;
    Ok(())
}

/// CPU time of this thread where the kernel tells it, else the time of day.
fn clock() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    match text.split_whitespace().next().and_then(|ns| ns.parse().ok()) {
        Some(ns) => Duration::from_nanos(ns),
        None => {
            static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
            START.get_or_init(Instant::now).elapsed()
        }
    }
}
