//! Pixels against torchvision on Pillow, through the functions that the feed calls.
//!
//! One pass is seen alone by a crop of the view's size, which is an exact copy. Differences are printed by operation.

use super::fixture;
use crate::data::{
    Region, Rgbx8,
    rng::{Domain, Philox},
    simd::Lanes,
};
use crate::feed::view::{Interpolation, Jitter, JitterPart, Op, Scratch, View, ViewOptions, ViewParams};
use crate::feed::{color, planes};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Index {
    inputs: Vec<[u32; 2]>,
    cases: Vec<Case>,
    cubes: Vec<Cube>,
}

#[derive(Deserialize)]
struct Case {
    group: String,
    image: usize,
    offset: usize,
    interpolation: Interpolation,
    crop: Option<[u32; 4]>,
    size: Option<u32>,
    #[serde(default)]
    ops: Vec<Pass>,
    center: Option<[u32; 2]>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Pass {
    Flip(bool),
    Jitter(JitterSpec),
    Grey(bool),
    Blur(f32),
    Solarize(u8),
}

#[derive(Deserialize)]
struct JitterSpec {
    order: [usize; 4],
    brightness: Option<f32>,
    contrast: Option<f32>,
    saturation: Option<f32>,
    hue: Option<f64>,
}

#[derive(Deserialize)]
struct Cube {
    hue: Option<f64>,
    saturation: Option<f32>,
    grey: Option<bool>,
    sums: Vec<u32>,
}

fn index() -> Index {
    serde_json::from_slice(&fixture("pixels.json")).expect("the index is valid")
}

/// A case's passes as options and parameters.
fn recipe(case: &Case, [left, top, width, height]: [u32; 4]) -> (ViewOptions, ViewParams) {
    let mut options = ViewOptions {
        order: Vec::new(),
        interpolation: case.interpolation,
        ..ViewOptions::default()
    };
    let crop = Region {
        left,
        top,
        width,
        height,
    };
    let mut params = ViewParams {
        crop,
        flip: false,
        jitter: None,
        grey: false,
        blur: None,
        solarize: false,
    };
    for pass in &case.ops {
        options.order.push(match pass {
            Pass::Flip(flip) => {
                params.flip = *flip;
                Op::Flip
            }
            Pass::Jitter(spec) => {
                params.jitter = Some(Jitter {
                    order: spec.order.map(|part| JitterPart::ALL[part]),
                    brightness: spec.brightness,
                    contrast: spec.contrast,
                    saturation: spec.saturation,
                    hue: spec.hue,
                });
                Op::Jitter
            }
            Pass::Grey(grey) => {
                params.grey = *grey;
                Op::Grey
            }
            Pass::Blur(sigma) => {
                params.blur = Some(*sigma);
                Op::Blur
            }
            Pass::Solarize(threshold) => {
                params.solarize = true;
                options.solarize_threshold = *threshold;
                Op::Solarize
            }
        });
    }
    (options, params)
}

/// The view of a case, made as the feed makes it.
fn make(case: &Case, image: &Rgbx8, scratch: &mut Scratch) -> Vec<u8> {
    if let Some([resize, size]) = case.center {
        let mut out = vec![1; (size * size * 3) as usize];
        let view = View::Center {
            resize,
            size,
            interpolation: case.interpolation,
        };
        let drawn = view.draw(image.width, image.height, &mut Philox::new(0, Domain::View, 0, 0, 0));
        view.render(image, &drawn, scratch, &mut out);
        return out;
    }
    let (size, crop) = (case.size.expect("a size"), case.crop.expect("a box"));
    let (options, params) = recipe(case, crop);
    let mut out = vec![1; (size * size * 3) as usize];
    options.apply(image, &params, size, scratch, &mut out);
    out
}

#[derive(Default)]
struct Differences {
    values: usize,
    off: usize,
    sum: u64,
    largest: u8,
}

/// Largest difference allowed. What is not listed is exact. fast_image_resize has 16-bit weights, Pillow 22-bit ones.
fn allowed(group: &str) -> u8 {
    match group {
        "resized crop bilinear" | "centre" => 1,
        // Negative weights add up the differences of the first pass.
        "resized crop bicubic" => 2,
        // What the resize left, magnified by the passes behind it.
        "chain" => 3,
        _ => 0,
    }
}

#[test]
fn views_equal_torchvisions() {
    let index = index();
    let blob = fixture("pixels.bin");
    let mut rest = &blob[..];
    let inputs = index.inputs.iter().map(|&[width, height]| {
        let (pixels, tail) = rest.split_at((width * height * 3) as usize);
        rest = tail;
        Rgbx8::from_rgb(width, height, pixels)
    });
    let inputs: Vec<Rgbx8> = inputs.collect();
    let mut scratch = Scratch::default();
    let mut table = BTreeMap::<&str, Differences>::new();
    for case in &index.cases {
        let got = make(case, &inputs[case.image], &mut scratch);
        let expected = &blob[case.offset..][..got.len()];
        let entry = table.entry(&case.group).or_default();
        for (&a, &b) in got.iter().zip(expected) {
            let difference = a.abs_diff(b);
            entry.values += 1;
            entry.off += usize::from(difference > 0);
            entry.sum += u64::from(difference);
            entry.largest = entry.largest.max(difference);
        }
    }
    println!(
        "{:<24}{:>9}{:>9}{:>10}{:>9}",
        "operation", "values", "off", "mean", "largest"
    );
    for (group, d) in &table {
        let mean = d.sum as f64 / d.values as f64;
        println!(
            "{group:<24}{:>9}{:>8.2}%{mean:>10.5}{:>9}",
            d.values,
            100.0 * d.off as f64 / d.values as f64,
            d.largest
        );
    }
    assert_eq!(table.len(), 13, "a group of cases is missing");
    for (group, d) in &table {
        assert!(d.largest <= allowed(group), "{group}: {} off", d.largest);
        let mean = d.sum as f64 / d.values as f64;
        assert!(mean < 0.1, "{group}: mean difference {mean}");
    }
}

/// Adler-32 (RFC 1950), as the fixture script has it from zlib.
fn adler32(bytes: impl IntoIterator<Item = u8>) -> u32 {
    let (a, b) = bytes.into_iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(byte)) % 65521;
        (a, (b + a) % 65521)
    });
    b << 16 | a
}

/// All 2^24 colours, plane by plane: hue, saturation and grey have no colour that differs from Pillow's.
#[test]
fn every_colour_equals_pillows() {
    for cube in index().cubes {
        let sums: Vec<u32> = (0..=255u8)
            .map(|r| {
                let rgb: Vec<u8> = (0..=u16::MAX).flat_map(|gb| [r, (gb >> 8) as u8, gb as u8]).collect();
                let lanes = Lanes::default();
                let (mut plane, mut made) = (vec![0; rgb.len()], vec![0; rgb.len()]);
                planes::gather(lanes, &Rgbx8::from_rgb(256, 256, &rgb).pixels, 256, false, &mut plane);
                match cube {
                    Cube { hue: Some(turns), .. } => color::hue(lanes, &mut plane, turns),
                    Cube {
                        saturation: Some(factor),
                        ..
                    } => color::saturation(lanes, &mut plane, factor),
                    Cube { grey: Some(true), .. } => color::grey(lanes, &mut plane),
                    _ => panic!("a cube without a pass"),
                }
                planes::scatter(lanes, &mut plane, &mut made);
                adler32(made)
            })
            .collect();
        let folded: Vec<u32> = sums
            .chunks(16)
            .map(|part| adler32(part.iter().flat_map(|sum| sum.to_le_bytes())))
            .collect();
        assert_eq!(
            folded, cube.sums,
            "hue {:?} saturation {:?} grey {:?}",
            cube.hue, cube.saturation, cube.grey
        );
    }
}
