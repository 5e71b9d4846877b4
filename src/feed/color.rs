//! Colour: brightness, contrast, saturation, hue, grey, solarise and flip, in place on interleaved RGB.
//!
//! In and out: `pixels`, RGB row-major. Invariant: every pass equals Pillow's arithmetic bit for bit (the tests compare all
//! 2^24 colours); floats are single operations in a fixed order, never contracted, so all CPUs agree.
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

/// Pillow's `rgb2hsv`: f32 where its C has float, f64 where a constant promotes to double.
#[inline(always)]
fn rgb_to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let high = r.max(g).max(b);
    let low = r.min(g).min(b);
    if high == low {
        return [0, 0, high];
    }
    let range = f32::from(high - low);
    let [rc, gc, bc] = [r, g, b].map(|value| f32::from(high - value) / range);
    let hue = if r == high {
        bc - gc
    } else if g == high {
        (2.0 + f64::from(rc) - f64::from(bc)) as f32
    } else {
        (4.0 + f64::from(gc) - f64::from(rc)) as f32
    };
    // Its fmod(x, 1) for x in 5/6..2; the subtraction is exact.
    let turn = f64::from(hue) / 6.0 + 1.0;
    let turn = if turn >= 1.0 { turn - 1.0 } else { turn };
    let saturation = range / f32::from(high);
    [
        (f64::from(turn as f32) * 255.0) as u8,
        (f64::from(saturation) * 255.0) as u8,
        high,
    ]
}

/// Where a hue byte lies on the colour wheel: which sixth, and how far into it.
#[derive(Clone, Copy)]
struct Sextant {
    index: u8,
    fraction: f32,
}

impl Sextant {
    fn of(hue: u8) -> Self {
        let position = f64::from(hue) * 6.0 / 255.0;
        let whole = position.floor();
        Self {
            index: whole as u8 % 6,
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
    let round = |x: f64| (x + 0.5) as u8;
    let p = round(value * (1.0 - f64::from(share)));
    let q = round(value * (1.0 - f64::from(share * sextant.fraction)));
    let t = round(value * (1.0 - f64::from(share) * (1.0 - f64::from(sextant.fraction))));
    match sextant.index {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}
