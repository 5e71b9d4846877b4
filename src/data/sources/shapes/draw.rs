//! Draws one image of `synthetic:shapes`: 6 to 10 copies of its class's shape, each with its own colour, rotation and place.
//!
//! The shape is all that two crops of an image share: the background is nearly grey and the noise level fixed, because colour and
//! noise would be an easier answer than the shape. Chosen by experiment: with saturated backgrounds nothing was learned.
//! Coordinates are those of the 48-pixel image; it is drawn at 96 with hard edges and averaged 2 x 2. Colours are in [0, 1].

use crate::data::rng::{Domain, Philox};
use jpeg_encoder::{ChromaSubsamplingMethod, ColorType, Encoder, SamplingFactor};
use std::f64::consts::{PI, TAU};

/// Side of an image, pixels.
pub const SIDE: usize = 48;

/// Side of the drawing before it is averaged.
const FINE: usize = 2 * SIDE;

/// Class names, in order; an image's class is its index modulo 10.
pub const CLASSES: [&str; 10] = [
    "disc", "ring", "bar", "triangle", "star", "cross", "stripes", "checker", "spiral", "dots",
];

type Colour = [f64; 3];

/// The encoded image `index`: baseline JPEG of quality 85 to 95, 4:2:0, about 2 KB.
pub fn jpeg(seed: u64, index: u64) -> Vec<u8> {
    let mut rng = Philox::new(seed, Domain::Shapes, 0, index, 0);
    let pixels = pixels(
        &mut rng,
        (index % 10) as usize,
        &mut Philox::new(seed, Domain::Shapes, 0, index, 1),
    );
    let quality = 85 + rng.below(11) as u8;
    let mut bytes = Vec::with_capacity(4096);
    let mut encoder = Encoder::new(&mut bytes, quality);
    encoder.set_sampling_factor(SamplingFactor::R_4_2_0);
    encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
    let encoded = encoder.encode(&pixels, SIDE as u16, SIDE as u16, ColorType::Rgb);
    encoded.unwrap_or_else(|e| unreachable!("a 48 x 48 image goes into a vector: {e}"));
    bytes
}

/// The image before encoding: `SIDE * SIDE * 3` bytes. The noise has a stream of its own: it takes most of the draws.
fn pixels(rng: &mut Philox, class: usize, noise: &mut Philox) -> Vec<u8> {
    let (mut canvas, background) = draw_background(rng);
    draw_clutter(rng, &mut canvas);
    draw_shapes(rng, class, luminance(background), &mut canvas);
    let gain = rng.uniform_in(0.75, 1.1);
    let mut out = Vec::with_capacity(SIDE * SIDE * 3);
    for y in 0..SIDE {
        for x in 0..SIDE {
            for channel in 0..3 {
                let at = |dy: usize, dx: usize| canvas[(2 * y + dy) * FINE + 2 * x + dx][channel];
                let mean = (at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) / 4.0;
                let value = (mean * gain + 0.03 * noise.normal()).clamp(0.0, 1.0);
                out.push((value * 255.0).round() as u8);
            }
        }
    }
    out
}

/// A nearly grey linear gradient at a random angle; also gives its mean colour.
fn draw_background(rng: &mut Philox) -> (Vec<Colour>, Colour) {
    let c0 = desaturate(colour_in(rng, 0.0, 1.0), 0.3);
    let step = desaturate(colour_in(rng, -0.3, 0.3), 0.3);
    let c1: Colour = std::array::from_fn(|i| (c0[i] + step[i]).clamp(0.0, 1.0));
    let (sin, cos) = rng.uniform_in(0.0, TAU).sin_cos();
    let canvas = (0..FINE * FINE).map(|i| {
        let (x, y) = centre(i % FINE, i / FINE);
        let t = (((x - 24.0) * cos + (y - 24.0) * sin) / 48.0 + 0.5).clamp(0.0, 1.0);
        std::array::from_fn(|c| c0[c] + (c1[c] - c0[c]) * t)
    });
    (canvas.collect(), std::array::from_fn(|c| (c0[c] + c1[c]) / 2.0))
}

/// Up to three short segments under the shapes.
fn draw_clutter(rng: &mut Philox, canvas: &mut [Colour]) {
    for _ in 0..rng.below(4) {
        let middle = (rng.uniform_in(0.0, 48.0), rng.uniform_in(0.0, 48.0));
        let angle = rng.uniform_in(0.0, PI);
        let (half_length, half_width) = (rng.uniform_in(2.0, 7.0), rng.uniform_in(0.5, 1.0));
        let colour = colour_in(rng, 0.0, 1.0);
        fill(canvas, middle, angle, half_length + 1.0, colour, |u, v| {
            u.abs() <= half_length && v.abs() <= half_width
        });
    }
}

/// 6 to 10 copies of the shape, kept apart where twelve tries allow it.
fn draw_shapes(rng: &mut Philox, class: usize, background: f64, canvas: &mut [Colour]) {
    let count = 6 + rng.below(5);
    let base = rng.uniform_in(6.0, 8.0);
    let mut placed: Vec<(f64, f64, f64)> = Vec::new();
    for _ in 0..count {
        let radius = base * rng.uniform_in(0.85, 1.15);
        let Some((x, y)) = place(rng, radius, &placed) else {
            continue;
        };
        placed.push((x, y, radius));
        let angle = rng.uniform_in(0.0, TAU);
        let colour = loop {
            let colour = colour_in(rng, 0.0, 1.0);
            if (luminance(colour) - background).abs() >= 0.3 {
                break desaturate(colour, 0.6);
            }
        };
        // 1.2 radii hold every shape.
        fill(canvas, (x, y), angle, 1.2 * radius, colour, |u, v| {
            inside(class, u / radius, v / radius)
        });
    }
}

/// A place with a gap of a pixel to all others, else the best of twelve tries unless it overlaps by a quarter radius.
fn place(rng: &mut Philox, radius: f64, placed: &[(f64, f64, f64)]) -> Option<(f64, f64)> {
    let mut best = (f64::NEG_INFINITY, (0.0, 0.0));
    for _ in 0..12 {
        let (low, high) = (0.6 * radius, 48.0 - 0.6 * radius);
        let (x, y) = (rng.uniform_in(low, high), rng.uniform_in(low, high));
        let gap = placed
            .iter()
            .map(|&(ox, oy, other)| (x - ox).hypot(y - oy) - radius - other)
            .fold(f64::INFINITY, f64::min);
        if gap > best.0 {
            best = (gap, (x, y));
        }
        if gap >= 1.0 {
            break;
        }
    }
    (best.0 >= -0.25 * radius).then_some(best.1)
}

/// Paints the pixels around `middle`, at most `reach` away, whose rotated offsets (u, v) are inside.
fn fill(
    canvas: &mut [Colour],
    middle: (f64, f64),
    angle: f64,
    reach: f64,
    colour: Colour,
    inside: impl Fn(f64, f64) -> bool,
) {
    let (sin, cos) = angle.sin_cos();
    let range = |at: f64| {
        let low = (2.0 * (at - reach) - 1.0).max(0.0) as usize;
        low..((2.0 * (at + reach) + 1.0).max(0.0) as usize).min(FINE)
    };
    for row in range(middle.1) {
        for column in range(middle.0) {
            let (x, y) = centre(column, row);
            let (dx, dy) = (x - middle.0, y - middle.1);
            if inside(dx * cos + dy * sin, dy * cos - dx * sin) {
                canvas[row * FINE + column] = colour;
            }
        }
    }
}

/// Whether (u, v), in the copy's frame and in radii, is inside the shape.
fn inside(class: usize, u: f64, v: f64) -> bool {
    let r = u.hypot(v);
    let turn = v.atan2(u);
    match CLASSES[class] {
        "disc" => r <= 0.9,
        "ring" => (0.55..=1.0).contains(&r),
        "bar" => u.abs() <= 1.1 && v.abs() <= 0.36,
        "triangle" => v.max(-v / 2.0 + 0.866 * u).max(-v / 2.0 - 0.866 * u) <= 0.55,
        "star" => {
            let a = (turn.rem_euclid(TAU / 5.0) - PI / 5.0).abs();
            let (x, y) = (r * a.cos(), r * a.sin());
            let (tip_y, tip_x) = (PI / 5.0).sin_cos();
            let (tip_x, tip_y, q) = (1.15 * tip_x, 1.15 * tip_y, 0.42);
            (x - q) * tip_y - y * (tip_x - q) <= 0.0
        }
        "cross" => (u.abs() <= 0.3 && v.abs() <= 1.0) || (v.abs() <= 0.3 && u.abs() <= 1.0),
        "stripes" => r <= 1.05 && (1.5 * u + 0.25).rem_euclid(1.0) < 0.5,
        "checker" => {
            let cell = |t: f64| ((t + 0.93) / 0.62).floor() as i64;
            u.abs().max(v.abs()) <= 0.93 && (cell(u) + cell(v)) % 2 == 0
        }
        "spiral" => r <= 1.1 && (turn / TAU - 1.6 * r).rem_euclid(1.0) < 0.5,
        _ => {
            let satellite = |k: u32| {
                let (sin, cos) = (TAU * f64::from(k) / 5.0).sin_cos();
                (u - 0.8 * cos).hypot(v - 0.8 * sin) <= 0.28
            };
            r <= 0.3 || (0..5).any(satellite)
        }
    }
}

/// Centre of a fine pixel, in 48-pixel units.
fn centre(column: usize, row: usize) -> (f64, f64) {
    ((column as f64 + 0.5) / 2.0, (row as f64 + 0.5) / 2.0)
}

fn colour_in(rng: &mut Philox, low: f64, high: f64) -> Colour {
    std::array::from_fn(|_| rng.uniform_in(low, high))
}

fn luminance(c: Colour) -> f64 {
    0.299 * c[0] + 0.587 * c[1] + 0.114 * c[2]
}

fn desaturate(c: Colour, keep: f64) -> Colour {
    let grey = luminance(c);
    c.map(|v| grey + (v - grey) * keep)
}
