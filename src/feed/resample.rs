//! One axis of a resampling in 16-bit fixed point: which pixels make an output pixel, with which weights, and the pass over an image.
//!
//! In: pixels of 4 bytes, a span of one axis. Out: the span in the asked number of pixels, rounded to 8 bits.
//! Invariant: the bytes of fast_image_resize 6.1 (its convolution of `U8x4`, the oracle of the tests): the filter in `f64`, weights that
//! sum to 1, rounded to the most bits at which the largest still fits into 16; integer sums that begin at a half. The passes here
//! are the specification; `resample_avx2` has the fast ones. Buffers are kept from call to call.

#[cfg(target_arch = "x86_64")]
use super::resample_avx2;
use super::view::Interpolation;
use crate::data::simd::Lanes;

/// What is resampled on one axis: source pixels [`from`, `from + len`) become `to` pixels.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Where it begins, source pixels.
    pub from: f64,
    /// Its length, source pixels.
    pub len: f64,
    /// Pixels that it becomes.
    pub to: u32,
}

impl Span {
    /// A whole side of `len` pixels becomes `to` pixels.
    pub fn all(len: u32, to: u32) -> Self {
        Self {
            from: 0.0,
            len: f64::from(len),
            to,
        }
    }

    /// Nothing to filter: the pixels are copied.
    pub fn is_copy(&self) -> bool {
        f64::from(self.to) == self.len && self.from.fract() == 0.0
    }
}

/// A rectangle of an image, 4 bytes a pixel.
#[derive(Clone, Copy)]
pub struct Pixels<'a> {
    /// From the first pixel on; what lies between the rows belongs to others.
    pub bytes: &'a [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl<'a> Pixels<'a> {
    /// A rectangle in it.
    pub fn part(self, left: u32, top: u32, width: u32, height: u32) -> Self {
        let (left, top) = (left as usize, top as usize);
        let (width, height) = (width as usize, height as usize);
        assert!(left + width <= self.width && top + height <= self.height);
        let bytes = &self.bytes[top * self.stride + 4 * left..];
        Self {
            bytes,
            width,
            height,
            ..self
        }
    }

    /// The bytes of row `y`.
    #[inline(always)]
    pub fn row(&self, y: usize) -> &'a [u8] {
        &self.bytes[y * self.stride..][..4 * self.width]
    }
}

/// Fewest taps in a window that the fast pass over columns wants.
pub const COLUMNS_LEAST: usize = 4;
/// Fewest taps in a window that the fast pass over rows wants.
pub const ROWS_LEAST: usize = 2;

/// The windows of an axis and their weights.
#[derive(Default)]
pub struct Axis {
    /// The first source pixel of each output pixel's window.
    pub starts: Vec<u32>,
    /// `taps` weights for each output pixel; what a window does not need is zero.
    pub weights: Vec<i16>,
    /// Length of a window, even: as long as the longest needs, or as the plan was asked for. A window ends inside the source unless
    /// the source is shorter than `taps`.
    pub taps: usize,
    /// Bits behind the point.
    pub precision: u32,
    scratch: Scratch,
}

/// Lists over the output pixels, one after the other for the same tap, so that the CPU's lanes hold neighbours.
#[derive(Default)]
struct Scratch {
    /// Centre of a window, first pixel of it and the one behind its last, sum of its weights; then a list of weights for each tap.
    exact: Vec<f64>,
    /// Rounded weights, a list for each tap.
    rounded: Vec<i16>,
    /// First tap with a weight and the one behind the last, a list of each.
    used: Vec<u32>,
}

impl Axis {
    /// Plans the resampling of `span` of an axis that has `source` pixels. Windows have `least` taps at
    /// least.
    pub fn plan(&mut self, lanes: Lanes, filter: Interpolation, source: u32, span: Span, least: usize) {
        let outputs = span.to as usize;
        let window = lanes.run(
            #[inline(always)]
            || {
                let window = match filter {
                    Interpolation::Bilinear => self.weigh(triangle, 1.0, source, span),
                    Interpolation::Bicubic => self.weigh(catmull_rom, 2.0, source, span),
                };
                self.round(outputs, window);
                window
            },
        );
        self.gather(outputs, window, source, least);
    }

    /// The source pixels that the windows cover, first and number; from now on the first of them counts as the source's first.
    pub fn take_reach(&mut self, source: u32) -> (u32, u32) {
        let first = self.starts.iter().min().copied().unwrap_or(0);
        let last = self.starts.iter().max().map_or(0, |start| start + self.taps as u32);
        for start in &mut self.starts {
            *start -= first;
        }
        (first, last.min(source) - first)
    }

    /// The filter at the pixels of each window, divided by its sum; returns the number of taps. Single IEEE operations in
    /// fast_image_resize's order: the rounding below depends on their last bits.
    #[inline(always)]
    fn weigh(&mut self, filter: impl Fn(f64) -> f64, support: f64, source: u32, span: Span) -> usize {
        let outputs = span.to as usize;
        let scale = ((span.from + span.len) - span.from) / f64::from(span.to);
        let stretch = scale.max(1.0);
        let (radius, shrink) = (support * stretch, 1.0 / stretch);
        let window = 2 * radius.ceil() as usize + 1;
        self.scratch.exact.resize((4 + window) * outputs, 0.0);
        let (centres, rest) = self.scratch.exact.split_at_mut(outputs);
        let (firsts, rest) = rest.split_at_mut(outputs);
        let (ends, rest) = rest.split_at_mut(outputs);
        let (sums, weights) = rest.split_at_mut(outputs);
        for x in 0..outputs {
            let centre = span.from + (x as u32 as f64 + 0.5) * scale;
            centres[x] = centre - 0.5;
            firsts[x] = (centre - radius).floor().max(0.0);
            ends[x] = (centre + radius).ceil().min(f64::from(source));
            sums[x] = 0.0;
        }
        for tap in 0..window {
            let weights = &mut weights[tap * outputs..][..outputs];
            for x in 0..outputs {
                let at = firsts[x] + tap as u32 as f64;
                let weight = filter((at - centres[x]) * shrink);
                weights[x] = if at < ends[x] { weight } else { 0.0 };
                sums[x] += weights[x];
            }
        }
        for sum in sums.iter_mut() {
            *sum = if *sum == 0.0 { 1.0 } else { *sum };
        }
        for tap in 0..window {
            let weights = &mut weights[tap * outputs..][..outputs];
            for x in 0..outputs {
                weights[x] /= sums[x];
            }
        }
        window
    }

    /// Rounds the weights, and finds out which are not zero.
    #[inline(always)]
    fn round(&mut self, outputs: usize, window: usize) {
        let Scratch { exact, rounded, used } = &mut self.scratch;
        let weights = &exact[4 * outputs..];
        self.precision = precision(largest(weights));
        let one = f64::from(1 << self.precision);
        rounded.resize(weights.len(), 0);
        for (rounded, &weight) in rounded.iter_mut().zip(weights) {
            // The cast of a float has no instruction for lanes of 16 bits; the last bits of this sum are the integer.
            *rounded = ((weight * one).round() + INTEGERS).to_bits() as i16;
        }
        used.resize(2 * outputs, 0);
        let (lows, highs) = used.split_at_mut(outputs);
        lows.fill(window as u32);
        highs.fill(0);
        for tap in 0..window {
            let rounded = &rounded[tap * outputs..][..outputs];
            for x in 0..outputs {
                let (low, high) = if rounded[x] == 0 {
                    (u32::MAX, 0)
                } else {
                    (tap as u32, tap as u32 + 1)
                };
                lows[x] = lows[x].min(low);
                highs[x] = highs[x].max(high);
            }
        }
    }

    /// Brings each window's weights together.
    fn gather(&mut self, outputs: usize, window: usize, source: u32, least: usize) {
        let Scratch { exact, rounded, used } = &self.scratch;
        let (lows, highs) = used.split_at(outputs);
        let lengths = lows.iter().zip(highs).map(|(&low, &high)| high.saturating_sub(low));
        self.taps = (lengths.max().unwrap_or(0) as usize).max(least).next_multiple_of(2);
        self.starts.clear();
        self.weights.clear();
        self.weights.resize(outputs * self.taps, 0);
        let latest = source.saturating_sub(self.taps as u32);
        let windows = self.weights.chunks_exact_mut(self.taps);
        for ((x, weights), (&low, &high)) in windows.enumerate().zip(lows.iter().zip(highs)) {
            let first = exact[outputs + x] as u32;
            // Pixels before the window, with weights of zero, where it would end outside the source.
            let start = (first + low.min(window as u32 - 1)).min(latest);
            self.starts.push(start);
            for tap in low..high {
                weights[(first + tap - start) as usize] = rounded[tap as usize * outputs + x];
            }
        }
    }
}

/// 1.5 * 2^52: floats of this size are integers, whose last bits are those of what was added.
const INTEGERS: f64 = 6_755_399_441_055_744.0;

/// The triangle of bilinear interpolation.
#[inline(always)]
fn triangle(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 { 1.0 - x } else { 0.0 }
}

/// The cubic with a = -0.5, as polynomials of |x| on both sides of 1.
#[inline(always)]
fn catmull_rom(x: f64) -> f64 {
    let x = x.abs();
    let near = (1.5 * x - 2.5) * x * x + 1.0;
    let far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
    let far = if x < 2.0 { far } else { 0.0 };
    if x < 1.0 { near } else { far }
}

/// The largest of the weights, none of them NaN; 0 if none is above.
#[inline(always)]
fn largest(weights: &[f64]) -> f64 {
    // Eight at a time; the order does not matter to a maximum.
    let (eights, rest) = weights.as_chunks::<8>();
    let mut most = [0.0; 8];
    for eight in eights {
        for (most, &weight) in most.iter_mut().zip(eight) {
            *most = if weight > *most { weight } else { *most };
        }
    }
    most.iter()
        .chain(rest)
        .fold(0.0, |most, &weight| if weight > most { weight } else { most })
}

/// Bits behind the point: one more and the largest weight would not fit into 16 bits, or the sum's 22.
fn precision(largest: f64) -> u32 {
    let fits = |bits: u32| (largest * f64::from(1 << bits)).round() < 32768.0;
    (0..21).find(|bits| !fits(bits + 1)).unwrap_or(21)
}

/// Resamples the rows of `from`, one `axis.starts` pixels wide, into `out`.
pub fn columns(lanes: Lanes, from: Pixels<'_>, axis: &Axis, out: &mut [u8]) {
    assert_eq!(out.len(), axis.starts.len() * from.height * 4);
    lanes.run_with(
        #[inline(always)]
        |cpu| match cpu {
            #[cfg(target_arch = "x86_64")]
            Some(cpu) if resample_avx2::takes_columns(from, axis) => resample_avx2::columns(cpu, from, axis, out),
            _ => plain_columns(from, axis, out),
        },
    );
}

/// Resamples the columns of `from`, `axis.starts` rows high, into `out`.
pub fn rows(lanes: Lanes, from: Pixels<'_>, axis: &Axis, out: &mut [u8]) {
    assert_eq!(out.len(), axis.starts.len() * from.width * 4);
    lanes.run_with(
        #[inline(always)]
        |cpu| match cpu {
            #[cfg(target_arch = "x86_64")]
            Some(cpu) if resample_avx2::takes_rows(from, axis) => resample_avx2::rows(cpu, from, axis, out),
            _ => plain_rows(from, axis, out),
        },
    );
}

#[inline(always)]
fn plain_columns(from: Pixels<'_>, axis: &Axis, out: &mut [u8]) {
    let half = 1 << (axis.precision - 1);
    let mut pixels = out.as_chunks_mut::<4>().0.iter_mut();
    for y in 0..from.height {
        let row = from.row(y).as_chunks::<4>().0;
        let windows = axis.starts.iter().zip(axis.weights.chunks_exact(axis.taps));
        for ((&start, weights), pixel) in windows.zip(&mut pixels) {
            let mut sums = [half; 4];
            for (point, &weight) in row[start as usize..].iter().zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(point) {
                    *sum += i32::from(value) * i32::from(weight);
                }
            }
            for (value, sum) in pixel.iter_mut().zip(sums) {
                *value = (sum >> axis.precision).clamp(0, 255) as u8;
            }
        }
    }
}

#[inline(always)]
fn plain_rows(from: Pixels<'_>, axis: &Axis, out: &mut [u8]) {
    let half = 1 << (axis.precision - 1);
    let windows = axis.starts.iter().zip(axis.weights.chunks_exact(axis.taps));
    for ((&start, weights), out) in windows.zip(out.chunks_exact_mut(4 * from.width)) {
        for (x, value) in out.iter_mut().enumerate() {
            let mut sum = half;
            for (y, &weight) in (start as usize..from.height).zip(weights) {
                sum += i32::from(from.bytes[y * from.stride + x]) * i32::from(weight);
            }
            *value = (sum >> axis.precision).clamp(0, 255) as u8;
        }
    }
}

#[cfg(test)]
#[path = "tests/resample.rs"]
mod tests;
