//! Colour: brightness, contrast, saturation, hue, grey, solarise and flip, in place on interleaved RGB.
//!
//! In and out: `pixels`, RGB row-major. Invariant: every pass equals Pillow's arithmetic bit for bit (hue, saturation and
//! grey are tested on all 2^24 colours); floats are single operations in a fixed order, never contracted, so all CPUs agree.
//! Source: Pillow 13 (Blend.c, Convert.c, ImageEnhance, ImageOps) as torchvision 0.29 calls it.

/// Pillow's blend of two values: `from + factor * (to - from)` in f32, cut off to an integer, clipped to 0..=255.
#[inline(always)]
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let (from, to) = (f32::from(from), f32::from(to));
    // Rust's cast truncates and saturates, which is what Pillow does branch by branch.
    (from + factor * (to - from)) as u8
}

/// Luma as Pillow converts RGB to L: ITU-R 601-2 weights in 16-bit fixed point.
#[inline(always)]
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

/// Replaces each value by its entry: for passes where a value's result depends on nothing else.
fn look_up(pixels: &mut [u8], entry: impl Fn(u8) -> u8) {
    let table: [u8; 256] = std::array::from_fn(|value| entry(value as u8));
    for value in pixels {
        *value = table[usize::from(*value)];
    }
}

/// Blend with black. Factor 1 changes nothing.
pub fn brightness(pixels: &mut [u8], factor: f32) {
    look_up(pixels, |value| blend(0, value, factor));
}

/// Blend with the mean luma of the whole view, rounded.
pub fn contrast(pixels: &mut [u8], factor: f32) {
    let (points, _) = pixels.as_chunks::<3>();
    let sum: u64 = points.iter().map(|&point| u64::from(luma(point))).sum();
    let mean = (sum as f64 / points.len() as f64 + 0.5) as u8;
    look_up(pixels, |value| blend(mean, value, factor));
}

/// Blend with each pixel's luma.
pub fn saturation(pixels: &mut [u8], factor: f32) {
    for point in pixels.as_chunks_mut::<3>().0 {
        let grey = luma(*point);
        *point = point.map(|value| blend(grey, value, factor));
    }
}

/// Luma in all three channels.
pub fn grey(pixels: &mut [u8]) {
    for point in pixels.as_chunks_mut::<3>().0 {
        *point = [luma(*point); 3];
    }
}

/// Inverts values at or above the threshold.
pub fn solarize(pixels: &mut [u8], threshold: u8) {
    for value in pixels {
        *value = if *value < threshold { *value } else { 255 - *value };
    }
}

/// Mirrors each row of `width` pixels.
pub fn flip(pixels: &mut [u8], width: usize) {
    for row in pixels.chunks_exact_mut(width * 3) {
        row.as_chunks_mut::<3>().0.reverse();
    }
}

/// torchvision's hue shift by `turns` (-0.5..=0.5): through Pillow's 8-bit HSV, whose hue byte is shifted with
/// wrap-around. A shift that rounds to 0 is not the identity: the trip through HSV itself loses.
pub fn hue(pixels: &mut [u8], turns: f64) {
    let shift = (turns * 255.0) as i32 as u8;
    let sextants: [Sextant; 256] = std::array::from_fn(|hue| Sextant::of(hue as u8));
    for point in pixels.as_chunks_mut::<3>().0 {
        let [h, s, v] = rgb_to_hsv(*point);
        *point = hsv_to_rgb(&sextants[usize::from(h.wrapping_add(shift))], s, v);
    }
}

/// Pillow's `rgb2hsv`, without its branches (a noisy picture mispredicts them all).
///
/// Where r is the largest channel its hue is bc - gc, with bc = (max - b) / range and so on; 2 + rc - bc for g, 4 + gc - rc for
/// b. The smallest channel's share is exactly 1, the largest one's 0, so in each of the six orders the hue is
/// `base + sign * share of the middle channel`: exact in f64, then rounded to f32 once, as in its C.
/// The hue of a grey is not 0 here as it is there; with saturation 0 it has no effect.
#[inline(always)]
fn rgb_to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (high, low) = (r.max(g).max(b), r.min(g).min(b));
    let middle = r.min(g).max(r.max(g).min(b));
    let range = f32::from((high - low).max(1));
    let share = f32::from(high - middle) / range;
    // Index: r >= g, g >= b, r >= b as bits. Two of the eight cannot be.
    const BASE: [f64; 8] = [3.0, 0.0, 3.0, 1.0, 5.0, -1.0, 0.0, 1.0];
    const SIGN: [f64; 8] = [1.0, 0.0, -1.0, 1.0, -1.0, 1.0, 0.0, -1.0];
    let order = usize::from(r >= g) << 2 | usize::from(g >= b) << 1 | usize::from(r >= b);
    let hue = (BASE[order] + SIGN[order] * f64::from(share)) as f32;
    // Its fmod(x, 1) for x in 5/6..2; the subtraction is exact.
    let turn = f64::from(hue) / 6.0 + 1.0;
    let turn = if turn >= 1.0 { turn - 1.0 } else { turn };
    let saturation = f32::from(high - low) / f32::from(high.max(1));
    [
        cut(f64::from(turn as f32) * 255.0),
        cut(f64::from(saturation) * 255.0),
        high,
    ]
}

/// Where a hue byte lies on the colour wheel.
#[derive(Clone, Copy)]
struct Sextant {
    /// For r, g and b: which of [v, p, q, t].
    channels: [u8; 3],
    /// How far into its sixth.
    fraction: f32,
}

impl Sextant {
    fn of(hue: u8) -> Self {
        let [v, p, q, t] = [0, 1, 2, 3];
        let position = f64::from(hue) * 6.0 / 255.0;
        let whole = position.floor();
        let channels = match whole as u8 % 6 {
            0 => [v, t, p],
            1 => [q, v, p],
            2 => [p, v, t],
            3 => [p, q, v],
            4 => [t, p, v],
            _ => [v, p, q],
        };
        Self {
            channels,
            fraction: (position - whole) as f32,
        }
    }
}

/// Pillow's `hsv2rgb`, with its mixture of f32 and f64.
#[inline(always)]
fn hsv_to_rgb(sextant: &Sextant, s: u8, v: u8) -> [u8; 3] {
    let share = (f64::from(s) / 255.0) as f32;
    let value = f64::from(v);
    // Values are 0..=255, where round-half-away is the same as cutting off x + 0.5.
    let p = cut(value * (1.0 - f64::from(share)) + 0.5);
    let q = cut(value * (1.0 - f64::from(share * sextant.fraction)) + 0.5);
    let t = cut(value * (1.0 - f64::from(share) * (1.0 - f64::from(sextant.fraction))) + 0.5);
    let choices = [v, p, q, t];
    sextant.channels.map(|choice| choices[usize::from(choice & 3)])
}

/// Integer part of 0..256.
#[inline(always)]
fn cut(x: f64) -> u8 {
    x as i32 as u8
}
