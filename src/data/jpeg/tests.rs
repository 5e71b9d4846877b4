//! Held to zune-jpeg, bit for bit: on files of libjpeg-turbo (tests/fixtures/jpeg, made by tools/fixtures/jpeg.py), on generated
//! and on real files, whole and in part, for every set of instructions; and on damaged files, which must not pass.

mod damage;
mod kernels;
mod oracle;

use super::frame::Frame;
use super::{Decoder, Fault};
use crate::data::codec::tests::shared;
use crate::data::rng::{Domain, Philox};
use crate::data::simd::Lanes;
use crate::data::{Columns, Dataset, Region, ShardId};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use oracle::oracle;
use std::path::Path;

/// A region of an image: any, or at one of its edges.
fn region(width: u32, height: u32, rng: &mut Philox) -> Region {
    let mut side = |len: u32| {
        let part = 1 + rng.below(len);
        match rng.below(4) {
            0 => (0, part),
            1 => (len - part, part),
            2 => (rng.below(len), 1),
            _ => (rng.below(len - part + 1), part),
        }
    };
    let ((left, width), (top, height)) = (side(width), side(height));
    Region {
        left,
        top,
        width,
        height,
    }
}

fn rng(seed: u64) -> Philox {
    Philox::new(seed, Domain::View, 0, 0, 0)
}

/// Decodes the whole and `parts` random parts; what comes out must be the oracle's. The whole image's fault, if there is one.
fn compare(decoder: &mut Decoder, name: &str, bytes: &[u8], parts: u32, rng: &mut Philox) -> Result<(), Fault> {
    let mut out = vec![7; 100];
    let Some(size) = size(bytes) else {
        return decoder.decode(bytes, Region::all(1, 1), &mut out);
    };
    let all = Region::all(size[0], size[1]);
    let whole = decoder.decode(bytes, all, &mut out);
    // A part may be sound where the whole is not; then only the lenient oracle goes on to the end.
    let image = oracle(bytes, whole.is_ok());
    if whole.is_ok() {
        let image = image
            .as_ref()
            .unwrap_or_else(|| panic!("{name}: only the oracle fails"));
        assert_eq!([image.width, image.height], size, "{name}");
        assert!(image.pixels == out, "{name}: the whole differs");
    }
    for _ in 0..parts {
        let part = region(size[0], size[1], rng);
        let result = decoder.decode(bytes, part, &mut out);
        // A part has no fault of its own: or the codec would reject parts of what it accepts.
        assert!(
            result.is_ok() || result == whole,
            "{name}: {part:?} {result:?}, the whole {whole:?}"
        );
        if let (Ok(()), Some(image)) = (result, &image) {
            assert!(image.part(part) == out, "{name}: {part:?} differs");
        }
    }
    whole
}

/// The size, where the headers are those of the common case.
fn size(bytes: &[u8]) -> Option<[u32; 2]> {
    let mut frame = Frame::default();
    frame.read(bytes)?;
    Some([frame.width as u32, frame.height as u32])
}

/// The files of the fixtures, with names and libjpeg-turbo's verdicts.
fn fixtures() -> Vec<(String, Vec<u8>, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg");
    let verdicts = std::fs::read_to_string(folder.join("verdicts.txt")).unwrap();
    let data = Dataset::open(&folder, &Columns::default()).unwrap();
    let files = files(&data);
    assert_eq!(files.len(), verdicts.lines().count());
    let pairs = files.into_iter().zip(verdicts.lines());
    pairs
        .map(|((name, bytes), line)| {
            let (path, verdict) = line.split_once('\t').unwrap();
            assert_eq!(path, name);
            (name, bytes, verdict.to_owned())
        })
        .collect()
}

fn files(data: &Dataset) -> Vec<(String, Vec<u8>)> {
    let groups = 0..data.shards()[0].row_groups.len() as u32;
    let groups = groups.map(|group| data.read_row_group(ShardId(0), group).unwrap());
    groups
        .flat_map(|rows| {
            let file = |row| {
                let bytes = rows.image(row).unwrap().to_vec();
                (rows.path(row).unwrap_or("no name").to_owned(), bytes)
            };
            (0..rows.len() as u32).map(file).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
#[cfg_attr(miri, ignore = "reads many files")]
fn files_of_libjpeg_turbo_in_every_sampling_and_size() {
    let mut counts = std::collections::BTreeMap::<_, u32>::new();
    for (lanes_name, lanes) in Lanes::all() {
        let (mut decoder, mut rng) = (Decoder::new(lanes), rng(1));
        for (name, bytes, verdict) in fixtures() {
            let result = compare(&mut decoder, &name, &bytes, 6, &mut rng);
            let kind = name.split('-').next().unwrap();
            if !["alt", "odd", "coef"].contains(&kind) {
                assert_eq!(result, Ok(()), "{name}: the common case");
            }
            // Truncation is never reported where libjpeg-turbo is content.
            assert!(result != Err(Fault::Truncated) || verdict != "ok", "{name}: {verdict}");
            *counts.entry(format!("{lanes_name} {kind} {result:?}")).or_default() += 1;
        }
    }
    eprintln!("{counts:#?}");
}

#[test]
fn generated_files_of_every_size() {
    let samplings = [
        None,
        Some(SamplingFactor::F_1_1),
        Some(SamplingFactor::F_2_1),
        Some(SamplingFactor::F_2_2),
        Some(SamplingFactor::F_1_2),
    ];
    let mut decoder = Decoder::default();
    for (n, sampling) in samplings.into_iter().enumerate() {
        // Miri takes a second for a block or two.
        for width in (1..=65u16).step_by(if cfg!(miri) { 24 } else { 1 }) {
            for i in 0..if cfg!(miri) { 1 } else { 3 } {
                let mut rng = rng(n as u64 * 1000 + u64::from(width * 3 + i));
                let height = 1 + rng.below(if cfg!(miri) { 20 } else { 65 }) as u16;
                let (quality, restart) = (1 + rng.below(100) as u8, [0, 0, 1, 2, 5, 9][rng.below(6) as usize]);
                let pixels = picture(width, height, &mut rng);
                let mut bytes = Vec::new();
                let mut encoder = Encoder::new(&mut bytes, quality);
                if restart > 0 {
                    encoder.set_restart_interval(restart);
                }
                let color = match sampling {
                    Some(sampling) => {
                        encoder.set_sampling_factor(sampling);
                        ColorType::Rgb
                    }
                    None => ColorType::Luma,
                };
                let count = usize::from(width) * usize::from(height) * if sampling.is_some() { 3 } else { 1 };
                encoder.encode(&pixels[..count], width, height, color).unwrap();
                let name = format!("{sampling:?} {width} x {height}, quality {quality}, restart {restart}");
                assert_eq!(compare(&mut decoder, &name, &bytes, 3, &mut rng), Ok(()), "{name}");
            }
        }
    }
}

/// Pixels between flat and noise.
fn picture(width: u16, height: u16, rng: &mut Philox) -> Vec<u8> {
    let (noise, step) = ([1, 30, 256][rng.below(3) as usize], rng.below(9));
    let bytes = (0..u32::from(width) * u32::from(height) * 3).map(|i| (i * step / 3 + rng.below(noise)) as u8);
    bytes.collect()
}

#[test]
#[cfg_attr(miri, ignore = "reads many files")]
fn photographs_and_cifar_images() {
    let (mut decoder, mut rng) = (Decoder::default(), rng(3));
    for (name, keep) in [("photos", 1), ("cifar10", 9)] {
        let Some(data) = shared(name) else { return };
        for (path, bytes) in files(&data).iter().step_by(keep) {
            assert_eq!(compare(&mut decoder, path, bytes, 2, &mut rng), Ok(()), "{path}");
        }
    }
}

/// A part that a wide loop cannot fill, and buffers of another image.
#[test]
#[cfg_attr(miri, ignore = "reads many files")]
fn the_smallest_parts_in_a_row() {
    let (mut decoder, mut out) = (Decoder::default(), Vec::new());
    for (name, bytes, _) in fixtures().iter().filter(|f| f.0.contains("w17") || f.0.contains("w33")) {
        let Some(image) = oracle(bytes, true) else { continue };
        for left in 0..image.width {
            let part = Region {
                left,
                top: left % image.height,
                width: 1,
                height: 1,
            };
            if decoder.decode(bytes, part, &mut out).is_ok() {
                assert_eq!(out, image.part(part), "{name} {part:?}");
            }
        }
    }
}
