//! Colour: brightness, contrast, saturation, hue, grey and solarise, in place on planar RGB.
//!
//! In and out: `pixels`, all red values, then green, then blue. Invariant: every pass equals Pillow's arithmetic bit for bit
//! (hue, saturation and grey are tested on all 2^24 colours) on every path of [`Lanes`].
//! Source: Pillow 13 (Blend.c, Convert.c, ImageEnhance, ImageOps) as torchvision 0.29 calls it.

use super::planes::split;
use super::simd::{by_blocks, byte};
use crate::data::simd::Lanes;

/// Pillow's blend of two values: `from + factor * (to - from)` in f32, cut off to an integer, clipped to 0..=255.
#[inline(always)]
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let (from, to) = (f32::from(from), f32::from(to));
    // Pillow cuts off first and clips then: the same.
    byte(from + factor * (to - from)) as u8
}

/// Luma as Pillow converts RGB to L: ITU-R 601-2 weights in 16-bit fixed point.
#[inline(always)]
fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

/// Blends each value with one and the same.
fn blend_all(lanes: Lanes, pixels: &mut [u8], from: u8, factor: f32) {
    lanes.run(
        #[inline(always)]
        || {
            for value in &mut *pixels {
                *value = blend(from, *value, factor);
            }
        },
    );
}

/// Blend with black. Factor 1 changes nothing.
pub fn brightness(lanes: Lanes, pixels: &mut [u8], factor: f32) {
    blend_all(lanes, pixels, 0, factor);
}

/// Blend with the mean luma of the whole view, rounded.
pub fn contrast(lanes: Lanes, pixels: &mut [u8], factor: f32) {
    let sum = luma_sum(lanes, pixels);
    let mean = (sum as f64 / (pixels.len() / 3) as f64 + 0.5) as u8;
    blend_all(lanes, pixels, mean, factor);
}

fn luma_sum(lanes: Lanes, pixels: &mut [u8]) -> u64 {
    lanes.run(
        #[inline(always)]
        || {
            let [red, green, blue] = split(pixels);
            // 32-bit sums of a block cannot overflow, and twice as many fit into a register.
            let blocks = red.chunks(4096).zip(green.chunks(4096)).zip(blue.chunks(4096));
            let sums = blocks.map(
                #[inline(always)]
                |((red, green), blue)| {
                    let points = red.iter().zip(green).zip(blue);
                    let sum: u32 = points.map(|((&r, &g), &b)| u32::from(luma(r, g, b))).sum();
                    u64::from(sum)
                },
            );
            sums.sum()
        },
    )
}

/// Blend with each pixel's luma.
pub fn saturation(lanes: Lanes, pixels: &mut [u8], factor: f32) {
    each(
        lanes,
        pixels,
        #[inline(always)]
        |[r, g, b]| {
            let grey = luma(r, g, b);
            [blend(grey, r, factor), blend(grey, g, factor), blend(grey, b, factor)]
        },
    );
}

/// Luma in all three channels.
pub fn grey(lanes: Lanes, pixels: &mut [u8]) {
    each(
        lanes,
        pixels,
        #[inline(always)]
        |[r, g, b]| [luma(r, g, b); 3],
    );
}

/// Inverts values at or above the threshold.
pub fn solarize(lanes: Lanes, pixels: &mut [u8], threshold: u8) {
    lanes.run(
        #[inline(always)]
        || {
            for value in &mut *pixels {
                *value = if *value < threshold { *value } else { 255 - *value };
            }
        },
    );
}

/// torchvision's hue shift by `turns` (-0.5..=0.5): through Pillow's 8-bit HSV, whose hue byte is shifted with
/// wrap-around. A shift that rounds to 0 is not the identity: the trip through HSV itself loses.
pub fn hue(lanes: Lanes, pixels: &mut [u8], turns: f64) {
    let shift = i32::from((turns * 255.0) as i32 as u8);
    each_block(
        lanes,
        pixels,
        #[inline(always)]
        |block| choose(&mix(&rank(block), shift)),
    );
}

/// Replaces each colour by what `pass` makes of it.
#[inline(always)]
fn each(lanes: Lanes, pixels: &mut [u8], pass: impl Fn([u8; 3]) -> [u8; 3]) {
    each_block(
        lanes,
        pixels,
        #[inline(always)]
        |[mut red, mut green, mut blue]| {
            for i in 0..BLOCK {
                [red[i], green[i], blue[i]] = pass([red[i], green[i], blue[i]]);
            }
            [red, green, blue]
        },
    );
}

/// Replaces each block by what `pass` makes of it.
#[inline(always)]
// `&pass` would be called and not inlined, and so stay at the baseline: hue takes 136 us then, where AVX-512 needs 50.
#[allow(clippy::redundant_closure)]
fn each_block(lanes: Lanes, pixels: &mut [u8], pass: impl Fn(Block) -> Block) {
    lanes.run(
        #[inline(always)]
        || {
            by_blocks(
                split(pixels),
                #[inline(always)]
                |block| pass(block),
            );
        },
    );
}

/// Colours that a pass takes at once: bytes of a register of 512 bits.
const BLOCK: usize = 64;
type Block = [[u8; BLOCK]; 3];

/// A block's channels by size. Bytes, so that the comparisons fill whole registers.
struct Ranked {
    high: [u8; BLOCK],
    /// Highest less middle channel.
    rest: [u8; BLOCK],
    /// Highest less lowest.
    range: [u8; BLOCK],
    /// The hue, in sextants, is `base + rest / range`, or `base - rest / range` if `minus`.
    base: [i8; BLOCK],
    minus: [bool; BLOCK],
}

/// The values that an output channel can have, and the sextant, which says which.
struct Mixed {
    high: [u8; BLOCK],
    middle: [u8; BLOCK],
    least: [u8; BLOCK],
    sextant: [u8; BLOCK],
}

#[inline(always)]
fn rank([red, green, blue]: Block) -> Ranked {
    let mut ranked = Ranked {
        high: [0; BLOCK],
        rest: [0; BLOCK],
        range: [0; BLOCK],
        base: [0; BLOCK],
        minus: [false; BLOCK],
    };
    for i in 0..BLOCK {
        let (r, g, b) = (red[i], green[i], blue[i]);
        let (high, low) = (r.max(g).max(b), r.min(g).min(b));
        let middle = r.min(g).max(r.max(g).min(b));
        // Pillow's bc - gc, 2 + rc - bc and 4 + gc - rc, where the lowest channel's share is 1 and the highest one's 0.
        let for_red = if g >= b { (1, true) } else { (-1, false) };
        let for_green = if r >= b { (1, false) } else { (3, true) };
        let for_blue = if r >= g { (5, true) } else { (3, false) };
        let base = if g == high { for_green } else { for_blue };
        (ranked.base[i], ranked.minus[i]) = if r == high { for_red } else { base };
        (ranked.high[i], ranked.rest[i], ranked.range[i]) = (high, high - middle, high - low);
    }
    ranked
}

/// Pillow's `rgb2hsv`, the shift, and the arithmetic of its `hsv2rgb`.
#[inline(always)]
fn mix(ranked: &Ranked, shift: i32) -> Mixed {
    let mut mixed = Mixed {
        high: ranked.high,
        middle: [0; BLOCK],
        least: [0; BLOCK],
        sextant: [0; BLOCK],
    };
    for i in 0..BLOCK {
        let (high, range) = (i32::from(ranked.high[i]), i32::from(ranked.range[i]));
        let share = f32::from(ranked.rest[i]) / range.max(1) as f32;
        let share = if ranked.minus[i] { -share } else { share };
        let hue = (hue_byte(f32::from(ranked.base[i]) + share) + shift) & 255;
        // Pillow multiplies the f32 quotient by 255 and cuts off; this is the same for all 32,640 pairs.
        let saturation = byte((255 * range) as f32 / high.max(1) as f32);

        // hue * 6 / 255 as whole sextants (2 hue / 85) and 85ths of one.
        let sextant = (hue * 193) >> 13;
        let part = 2 * hue - 85 * sextant;
        let part = if sextant & 1 == 0 { 85 - part } else { part };
        // Pillow's p = v (1 - s) and its t = v (1 - s (1 - f)) or q = v (1 - s f), rounded. Over 255 * 85 they have no ties,
        // and f32 with these operations rounds none of the 5.6 million cases wrong.
        const WHOLE: f32 = 255.0 * 85.0;
        let weight = (high * saturation) as f32;
        let top = high as f32 + 0.5;
        mixed.least[i] = byte(top - weight * (85.0 / WHOLE)) as u8;
        mixed.middle[i] = byte(top - weight * (part as f32 * (1.0 / WHOLE))) as u8;
        mixed.sextant[i] = sextant as u8;
    }
    mixed
}

/// Pillow's 8-bit hue from the hue in sextants, -1..=5. (For a grey it is not 0 as it is there: with saturation 0 it has no
/// effect.)
///
/// Pillow's C divides by 6, takes the fraction and multiplies by 255, with a rounding each. Two products round to the same
/// byte in all 197,000 cases: the constants were found by search over m/n * (85 n / 2 m).
#[inline(always)]
fn hue_byte(sextants: f32) -> i32 {
    let turned = sextants * (511.0 / 3.0) * (85.0 * 3.0 / (2.0 * 511.0));
    byte(if turned < 0.0 { turned + 255.0 } else { turned })
}

/// Which channel gets which value. Sextant 6 is hue 255, which is hue 0 again.
#[inline(always)]
fn choose(mixed: &Mixed) -> Block {
    let [mut red, mut green, mut blue] = [[0; BLOCK]; 3];
    for i in 0..BLOCK {
        let (high, middle, least) = (mixed.high[i], mixed.middle[i], mixed.least[i]);
        let is = |a: u8, b: u8| (mixed.sextant[i] == a) | (mixed.sextant[i] == b);
        let first = is(0, 6);
        let select = |highest: bool, between: bool| {
            let lower = if between { middle } else { least };
            if highest { high } else { lower }
        };
        red[i] = select(first | is(5, 5), is(1, 4));
        green[i] = select(is(1, 2), first | is(3, 3));
        blue[i] = select(is(3, 4), is(2, 5));
    }
    [red, green, blue]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// The baseline is the specification: it is what `feed/view/tests/pixels.rs` holds against Pillow.
        #[test]
        fn every_path_gives_the_same_bytes(
            pixels in prop::collection::vec(any::<u8>(), 1..400), factor in 0.0f32..4.0, turns in -0.5..=0.5, threshold: u8,
        ) {
            let pixels = pixels.repeat(3);
            type Pass<'a> = &'a dyn Fn(Lanes, &mut [u8]);
            let passes: [Pass; 6] = [
                &|lanes, p| brightness(lanes, p, factor),
                &|lanes, p| contrast(lanes, p, factor),
                &|lanes, p| saturation(lanes, p, factor),
                &|lanes, p| hue(lanes, p, turns),
                &|lanes, p| grey(lanes, p),
                &|lanes, p| solarize(lanes, p, threshold),
            ];
            for (number, pass) in passes.iter().enumerate() {
                let made = Lanes::all().into_iter().map(|(name, lanes)| {
                    let mut out = pixels.clone();
                    pass(lanes, &mut out);
                    (name, out)
                });
                let made: Vec<_> = made.collect();
                for (name, out) in &made {
                    prop_assert_eq!(out, &made[0].1, "pass {} on {}", number, name);
                }
            }
        }
    }
}
