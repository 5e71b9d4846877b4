//! Held to Pillow's pixels (tests/fixtures/codec, made by tools/fixtures/codec.py) and to a corpus of hostile files.

use super::*;
use crate::data::{Columns, Dataset, ShardId};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/codec")
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(name)).unwrap()
}

/// Shared data, where this checkout has it.
pub fn shared(name: &str) -> Option<Dataset> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(name);
    if !path.is_dir() {
        eprintln!("skipped: no {}", path.display());
        return None;
    }
    Some(Dataset::open(&path, &Columns::default()).unwrap())
}

/// Every fixture has Pillow's pixels beside it, and there is one of every kind that Pillow reads and we do.
#[test]
fn every_kind_of_colour_has_its_fixture() {
    let kinds = [
        "grey.jpg",
        "keep_rgb.jpg",
        "cmyk.jpg",
        "ycck.jpg",
        "progressive420.jpg",
        "grey16.png",
        "rgb16.png",
        "palette.png",
        "palette_alpha.png",
        "rgba.png",
        "la16.png",
        "lossy.webp",
        "alpha.webp",
        "exif6.jpg",
        "icc.jpg",
    ];
    for kind in kinds {
        assert!(fixtures().join(kind).is_file(), "{kind}");
    }
    let adobe = |name: &str| {
        let bytes = fixture(name);
        bytes[bytes.windows(5).position(|w| w == b"Adobe").unwrap() + 11]
    };
    assert_eq!(
        (adobe("cmyk.jpg"), adobe("ycck.jpg")),
        (0, 2),
        "Adobe's colour transform"
    );
    for (name, chunk) in [("icc.jpg", "ICC_PROFILE"), ("icc.png", "iCCP"), ("icc.webp", "ICCP")] {
        let bytes = fixture(name);
        assert!(bytes.windows(chunk.len()).any(|w| w == chunk.as_bytes()), "{name}");
    }
    let tested = include_str!("tests.rs");
    for file in std::fs::read_dir(fixtures()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".rgb") || name == "sizes.txt" {
            continue;
        }
        assert!(
            fixtures().join(format!("{name}.rgb")).is_file(),
            "{name} has no pixels of Pillow's"
        );
        // The eight orientations are named by a loop.
        assert!(
            name.starts_with("exif") || tested.contains(&format!("\"{name}\"")),
            "{name} is not tested"
        );
    }
}

/// Size, mean and largest absolute difference against Pillow.
fn against_pillow(name: &str, expected: &str, options: &DecodeOptions) -> (f64, u8) {
    let sizes = std::fs::read_to_string(fixtures().join("sizes.txt")).unwrap();
    let line = sizes.lines().find(|l| l.split(' ').next() == Some(expected)).unwrap();
    let size: Vec<u32> = line.split(' ').skip(1).map(|n| n.parse().unwrap()).collect();
    // A dirty buffer, larger than needed: nothing of it may show.
    let mut image = Rgbx8 {
        width: 500,
        height: 10,
        part: Region::all(500, 10),
        pixels: vec![77; 20_000],
    };
    decode(&fixture(name), options, &mut image).unwrap();
    assert_eq!([image.width, image.height], size[..], "{name}");
    let pillow = fixture(&format!("{expected}.rgb"));
    let rgb = image.to_rgb();
    assert_eq!(rgb.len(), pillow.len(), "{name}");
    let differences: Vec<u8> = rgb.iter().zip(&pillow).map(|(a, b)| a.abs_diff(*b)).collect();
    let mean = differences.iter().map(|&d| f64::from(d)).sum::<f64>() / differences.len() as f64;
    (mean, differences.into_iter().max().unwrap())
}

#[test]
fn png_and_webp_equal_pillow() {
    for name in [
        "rgb.png",
        "palette.png",
        "palette_bits.png",
        "palette_alpha.png",
        "rgb_transparent.png",
        "grey_transparent.png",
        "icc.png",
        "icc.webp",
        "bits1.png",
        "grey.png",
        "grey2.png",
        "grey16.png",
        "rgba.png",
        "la.png",
        "la16.png",
        "rgb16.png",
        "rgba16.png",
        "lossless.webp",
        "alpha.webp",
        "animated.webp",
    ] {
        assert_eq!(against_pillow(name, name, &DecodeOptions::default()).1, 0, "{name}");
    }
}

#[test]
fn jpeg_and_lossy_webp_are_close_to_pillow() {
    // Inverse transforms and chroma filters of libjpeg-turbo and libwebp round differently; halved chroma shows it most.
    for (name, mean, largest) in [
        ("grey.jpg", 0.05, 1),
        ("rgb444.jpg", 0.05, 2),
        ("keep_rgb.jpg", 0.05, 2),
        ("rgb422.jpg", 0.45, 4),
        ("rgb420.jpg", 0.45, 4),
        ("progressive420.jpg", 0.45, 4),
        ("restart420.jpg", 0.45, 4),
        ("cmyk.jpg", 0.45, 4),
        ("ycck.jpg", 0.45, 4),
        ("icc.jpg", 0.05, 2),
        ("lossy.webp", 0.45, 4),
    ] {
        let (m, l) = against_pillow(name, name, &DecodeOptions::default());
        eprintln!("{name}: mean {m:.4}, largest {l}");
        assert!(m <= mean && l <= largest, "{name}: mean {m}, largest {l}");
    }
}

#[test]
fn orientation_is_off_by_default_and_turns_as_pillow_does() {
    for orientation in 1..=8 {
        let name = format!("exif{orientation}.jpg");
        assert!(against_pillow(&name, &name, &DecodeOptions::default()).1 <= 4, "{name}");
        let turn = DecodeOptions {
            apply_orientation: true,
            ..DecodeOptions::default()
        };
        assert!(against_pillow(&name, &format!("{name}.turned"), &turn).1 <= 4, "{name}");
    }
}

/// Every way of decoding a fixture that succeeds.
fn whole_files() -> Vec<(String, DecodeOptions)> {
    let turn = DecodeOptions {
        apply_orientation: true,
        ..DecodeOptions::default()
    };
    let formats = [
        "rgb420.jpg",
        "progressive420.jpg",
        "grey.jpg",
        "cmyk.jpg",
        "rgb.png",
        "grey16.png",
    ];
    let formats = formats
        .into_iter()
        .chain(["palette.png", "lossless.webp", "lossy.webp"]);
    let plain = formats.map(|name| (name.to_owned(), DecodeOptions::default()));
    let exif = (1..=8).map(|orientation| format!("exif{orientation}.jpg"));
    plain
        .chain(exif.flat_map(|name| [(name.clone(), DecodeOptions::default()), (name, turn.clone())]))
        .collect()
}

#[test]
fn a_part_is_chosen_once_by_the_size_of_the_upright_image() {
    let (mut decoder, mut image, mut sizes) = (Decoder::default(), Rgbx8::default(), HashSet::new());
    for (name, options) in whole_files() {
        let bytes = fixture(&name);
        let mut whole = Rgbx8::default();
        decode(&bytes, &options, &mut whole).unwrap();
        let (mut calls, mut chosen) = (Vec::new(), Region::default());
        let choose = |width: u32, height: u32| {
            calls.push((width, height));
            chosen = Region {
                left: width / 2,
                top: height / 3,
                width: width.div_ceil(4),
                height: height.div_ceil(5),
            };
            chosen
        };
        decoder.decode_part(&bytes, &options, choose, &mut image).unwrap();
        assert_eq!(calls, [(whole.width, whole.height)], "{name}");
        assert_eq!((image.width, image.height), (whole.width, whole.height), "{name}");
        assert!(image.part.contains(chosen), "{name}");
        // Whatever is held besides, it is the whole image's.
        let (held, row) = (image.part, image.part.width as usize * 4);
        assert_eq!(image.pixels.len(), row * held.height as usize, "{name}");
        for (y, pixels) in (held.top..held.bottom()).zip(image.pixels.chunks_exact(row)) {
            let at = (y * whole.width + held.left) as usize * 4;
            assert!(pixels == &whole.pixels[at..at + row], "{name}, row {y}");
        }
        sizes.insert((name, whole.width, whole.height));
    }
    assert_eq!(
        sizes.len(),
        9 + 8 + 4,
        "four of the eight orientations lie on their side: {sizes:?}"
    );
}

/// A JPEG whose header is well and whose tables are missing: its size is known, its pixels are not.
fn without_tables() -> Vec<u8> {
    let mut bytes = fixture("rgb420.jpg");
    for at in 0..bytes.len() - 1 {
        if bytes[at..at + 2] == [0xff, 0xdb] {
            bytes[at + 1] = 0xe9;
        }
    }
    bytes
}

#[test]
fn no_part_is_chosen_of_a_file_whose_header_fails() {
    let mut decoder = Decoder::default();
    let mut calls = |bytes: &[u8], options: &DecodeOptions| {
        let (mut calls, mut image) = (0, Rgbx8::from_rgb(1, 1, &[3; 3]));
        let choose = |width, height| {
            calls += 1;
            Region::all(width, height)
        };
        let error = decoder.decode_part(bytes, options, choose, &mut image).unwrap_err();
        assert_eq!(
            (image.part, image.pixels.len()),
            (Region::default(), 0),
            "empty on an error"
        );
        (error.code(), calls)
    };
    let strict = DecodeOptions::default();
    let small = DecodeOptions {
        max_pixels: 100,
        ..DecodeOptions::default()
    };
    assert_eq!(calls(b"", &strict), ("empty", 0));
    assert_eq!(calls(b"GIF89a..........", &strict), ("unknown-format", 0));
    for name in [
        "rgb420.jpg",
        "progressive420.jpg",
        "exif6.jpg",
        "rgb.png",
        "lossless.webp",
    ] {
        let bytes = fixture(name);
        assert_eq!(calls(&bytes, &small), ("too-many-pixels", 0), "{name}");
        for length in [3, 14, 20, 30] {
            assert_eq!(calls(&bytes[..length], &strict).1, 0, "{name} cut to {length}");
        }
        if name.ends_with(".jpg") {
            assert_eq!(calls(&bytes[..bytes.len() - 2], &strict), ("truncated", 0), "{name}");
        }
    }
    // What fails behind the header fails after the choice.
    assert_eq!(calls(&without_tables(), &strict), ("damaged", 1));
}

#[test]
fn a_panic_of_the_chooser_is_not_the_decoders() {
    for name in ["rgb420.jpg", "exif6.jpg", "rgb.png", "lossy.webp"] {
        for apply_orientation in [false, true] {
            let options = DecodeOptions {
                apply_orientation,
                ..DecodeOptions::default()
            };
            let panic_of = |choose: fn(u32, u32) -> Region| {
                let decode = || {
                    let mut image = Rgbx8::default();
                    Decoder::default().decode_part(&fixture(name), &options, choose, &mut image)
                };
                let panic = catch_unwind(decode).expect_err("a panic, not an error");
                let text = panic.downcast_ref::<String>().cloned();
                text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
                    .unwrap()
            };
            assert_eq!(panic_of(|_, _| panic!("in the chooser")), "in the chooser");
            let outside = panic_of(|width, height| Region {
                left: 1,
                ..Region::all(width, height)
            });
            assert!(outside.contains("was asked of an image of"), "{name}: {outside}");
            let empty = panic_of(|_, _| Region::default());
            assert!(empty.contains("was asked of an image of"), "{name}: {empty}");
        }
    }
}

fn code(bytes: &[u8], options: &DecodeOptions) -> &'static str {
    match decode(bytes, options, &mut Rgbx8::default()) {
        Ok(()) => "ok",
        Err(error) => error.code(),
    }
}

#[test]
fn limits_hold_before_anything_is_decoded() {
    let strict = DecodeOptions::default();
    assert_eq!(code(b"", &strict), "empty");
    assert_eq!(code(b"GIF89a..........", &strict), "unknown-format");
    for name in ["rgb420.jpg", "rgb.png", "lossless.webp"] {
        let bytes = fixture(name);
        assert_eq!(code(&bytes, &strict), "ok");
        assert_eq!(
            code(
                &bytes,
                &DecodeOptions {
                    max_bytes: bytes.len() as u64 - 1,
                    ..strict.clone()
                }
            ),
            "too-many-bytes"
        );
        assert_eq!(
            code(
                &bytes,
                &DecodeOptions {
                    max_pixels: 21 * 13 - 1,
                    ..strict.clone()
                }
            ),
            "too-many-pixels"
        );
        assert_eq!(
            probe(
                &bytes,
                &DecodeOptions {
                    max_pixels: 1,
                    ..strict.clone()
                }
            )
            .unwrap_err()
            .code(),
            "too-many-pixels"
        );
    }
    let progressive = fixture("progressive420.jpg");
    assert_eq!(
        code(
            &progressive,
            &DecodeOptions {
                max_scans: 3,
                ..strict.clone()
            }
        ),
        "too-many-scans"
    );
    assert_eq!(
        probe(&progressive, &strict),
        Ok(Header {
            format: Format::Jpeg,
            width: 67,
            height: 45
        })
    );
    // The same header with a huge size: the few bytes that follow cannot hold it.
    let mut huge = fixture("rgb420.jpg");
    let sof = huge.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    huge[sof + 5..sof + 9].copy_from_slice(&[0x30, 0, 0x30, 0]);
    for policy in [Policy::Strict, Policy::Lenient] {
        assert_eq!(
            code(
                &huge,
                &DecodeOptions {
                    policy,
                    ..strict.clone()
                }
            ),
            "truncated"
        );
    }
}

#[test]
fn a_truncated_file_is_rejected_at_every_length() {
    let strict = DecodeOptions::default();
    let lenient = DecodeOptions {
        policy: Policy::Lenient,
        ..strict.clone()
    };
    for name in [
        "rgb420.jpg",
        "rgb444.jpg",
        "progressive420.jpg",
        "restart420.jpg",
        "grey.jpg",
        "cmyk.jpg",
    ] {
        let bytes = fixture(name);
        for length in 0..bytes.len() {
            assert_ne!(code(&bytes[..length], &strict), "ok", "{name} cut to {length}");
        }
        assert_eq!(code(&bytes[..bytes.len() * 3 / 4], &strict), "truncated", "{name}");
        // What is left of a baseline image can be kept wherever the cut falls; a progressive one must not be cut inside a
        // header between its scans.
        let scan = bytes.windows(2).position(|w| w == [0xff, 0xda]).unwrap() + 80;
        let kept = (scan..bytes.len())
            .filter(|&length| code(&bytes[..length], &lenient) == "ok")
            .count();
        let wanted = if name.starts_with("progressive") {
            (bytes.len() - scan) / 2
        } else {
            bytes.len() - scan
        };
        assert!(kept >= wanted, "{name}: {kept} of {}", bytes.len() - scan);
    }
    for name in ["rgb.png", "rgba.png", "lossless.webp", "lossy.webp"] {
        let bytes = fixture(name);
        assert_ne!(code(&bytes[..bytes.len() * 3 / 4], &strict), "ok", "{name}");
    }
}

/// Pixels must not depend on what the buffer held before, in particular where a damaged file leaves parts unwritten.
#[test]
fn damaged_files_give_the_same_result_into_any_buffer() {
    let (mut accepted, mut rejected) = (0, 0);
    for policy in [Policy::Strict, Policy::Lenient] {
        let options = DecodeOptions {
            policy,
            ..DecodeOptions::default()
        };
        for name in ["rgb420.jpg", "progressive420.jpg", "restart420.jpg"] {
            let whole = fixture(name);
            let mut rng = crate::data::rng::Philox::new(5, crate::data::rng::Domain::View, 0, 0, 0);
            for _ in 0..150 {
                let mut bytes = whole.clone();
                let at = 300 + rng.below(bytes.len() as u32 - 300) as usize;
                bytes[at] = rng.below(256) as u8;
                let mut clean = Rgbx8::default();
                let mut dirty = Rgbx8 {
                    width: 100,
                    height: 75,
                    part: Region::all(100, 75),
                    pixels: vec![201; 30_000],
                };
                let results = (
                    decode(&bytes, &options, &mut clean),
                    decode(&bytes, &options, &mut dirty),
                );
                assert_eq!(results.0, results.1);
                assert_eq!(clean.pixels, dirty.pixels, "{name}, byte {at}");
                *if results.0.is_ok() {
                    &mut accepted
                } else {
                    &mut rejected
                } += 1;
            }
        }
    }
    assert!(accepted > 0 && rejected > 0, "{accepted} accepted, {rejected} rejected");
}

#[test]
fn hostile_files_are_errors_never_panics() {
    let Some(data) = shared("hostile") else { return };
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    let mut image = Rgbx8::default();
    let mut slowest = (std::time::Duration::ZERO, String::new());
    for policy in [Policy::Strict, Policy::Lenient] {
        let options = DecodeOptions {
            policy,
            apply_orientation: true,
            ..DecodeOptions::default()
        };
        for group in 0..data.shards()[0].row_groups.len() as u32 {
            let rows = data.read_row_group(ShardId(0), group).unwrap();
            for row in 0..rows.len() as u32 {
                let (bytes, path) = (rows.image(row).unwrap(), rows.path(row).unwrap());
                let start = std::time::Instant::now();
                let result = decode(bytes, &options, &mut image);
                if start.elapsed() > slowest.0 {
                    slowest = (
                        start.elapsed(),
                        format!(
                            "{path} {result:?} {} bytes {} x {}",
                            bytes.len(),
                            image.width,
                            image.height
                        ),
                    );
                }
                let name = path.rsplit('/').next().unwrap();
                if name.starts_with('x') && name.ends_with(".png") {
                    assert!(result.is_err(), "{path} must fail");
                }
                match &result {
                    Ok(()) => assert_eq!(image.pixels.len(), image.width as usize * image.height as usize * 4),
                    Err(_) => assert!(image.pixels.is_empty()),
                }
                let code = result.map_or_else(|e| e.code(), |()| "ok");
                *counts.entry(format!("{policy:?} {code}")).or_default() += 1;
            }
        }
    }
    eprintln!("{counts:#?}\nslowest {slowest:?}");
}

#[test]
fn every_photo_and_cifar_image_decodes_strictly() {
    for (name, shards, groups) in [("photos", 1, 1), ("cifar10", 1, 2)] {
        let Some(data) = shared(name) else { return };
        let mut image = Rgbx8::default();
        for shard in 0..shards {
            for group in 0..groups {
                let rows = data.read_row_group(ShardId(shard), group).unwrap();
                for row in 0..rows.len() as u32 {
                    let bytes = rows.image(row).unwrap();
                    decode(bytes, &DecodeOptions::default(), &mut image)
                        .unwrap_or_else(|e| panic!("{name} row {row}: {e}"));
                    let header = probe(bytes, &DecodeOptions::default()).unwrap();
                    assert_eq!((header.width, header.height), (image.width, image.height));
                }
            }
        }
    }
}
