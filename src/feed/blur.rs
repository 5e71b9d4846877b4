//! Pillow's GaussianBlur: three extended box passes along rows, then three along columns, each rounded to 8 bits.
//!
//! In and out: `pixels`, planes of rows. Invariant: equal to Pillow 13 (BoxBlur.c) bit for bit; 32-bit integer arithmetic.
//! Box lengths: Gwosdek, Grewenig, Bruhn, Weickert, "Theoretical foundations of Gaussian convolution by extended box
//! filtering", SSVM 2011.

use crate::data::simd::Lanes;

/// Buffers that are kept from call to call.
#[derive(Default)]
pub struct BlurScratch {
    /// A row with its borders repeated.
    line: Vec<u8>,
    /// A plane between two passes.
    other: Vec<u8>,
    /// Sums of wide boxes.
    sums: Vec<u32>,
}

/// A box of 2 radius + 1 whole samples and a share of one more at each end, weights in 24-bit fixed point.
#[derive(Clone, Copy, Debug, PartialEq)]
struct ExtendedBox {
    radius: usize,
    whole: u32,
    end: u32,
}

impl ExtendedBox {
    /// The box that, applied three times, has the variance sigma^2. None: nothing to do. f32 and f64 where Pillow's C has
    /// float and double.
    fn of(sigma: f32) -> Option<Self> {
        let variance = sigma * sigma / 3.0;
        let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
        let integer = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
        let mut share = (2.0 * integer + 1.0) * (integer * (integer + 1.0) - 3.0 * variance);
        share /= 6.0 * (variance - (integer + 1.0) * (integer + 1.0));
        let radius = integer + share;
        if radius == 0.0 {
            return None;
        }
        let whole = (16_777_216.0 / (radius * 2.0 + 1.0)) as u32;
        let radius = radius as u32;
        let end = (1u32 << 24).wrapping_sub((radius * 2 + 1).wrapping_mul(whole)) / 2;
        Some(Self {
            radius: radius as usize,
            whole,
            end,
        })
    }

    /// One output sample: the inner samples' sum, the two end samples' sum.
    #[inline(always)]
    fn weigh(&self, inner: u32, ends: u32) -> u8 {
        let sum = inner.wrapping_mul(self.whole).wrapping_add(ends.wrapping_mul(self.end));
        (sum.wrapping_add(1 << 23) >> 24) as u8
    }

    /// One pass for a run of samples: `tap(k)` is the run as seen from k - radius - 1 steps away, 0 <= k <= 2 radius + 2.
    /// Along a row and along a column the loops are the same, over neighbouring bytes.
    #[inline(always)]
    fn pass<'a>(&self, tap: impl Fn(usize) -> &'a [u8], sums: &mut Vec<u32>, out: &mut [u8]) {
        match self.radius {
            0 => self.few([tap(0), tap(1), tap(2)], out),
            // sigma in 1.42..2.45: of the published range 0.1..2 the wider half.
            1 => self.few([tap(0), tap(1), tap(2), tap(3), tap(4)], out),
            _ => self.many(tap, sums, out),
        }
    }

    /// A pass with the taps added one by one, in blocks of which the last overlaps the one before.
    #[inline(always)]
    fn few<const TAPS: usize>(&self, taps: [&[u8]; TAPS], out: &mut [u8]) {
        const BLOCK: usize = 32;
        let n = out.len();
        let Some(last) = n.checked_sub(BLOCK) else {
            for (i, out) in out.iter_mut().enumerate() {
                *out = self.weigh_taps(taps.map(|tap| tap[i]));
            }
            return;
        };
        for start in (0..=last).step_by(BLOCK) {
            self.block::<TAPS, BLOCK>(&taps, start, out);
        }
        if !n.is_multiple_of(BLOCK) {
            self.block::<TAPS, BLOCK>(&taps, last, out);
        }
    }

    #[inline(always)]
    fn block<const TAPS: usize, const BLOCK: usize>(&self, taps: &[&[u8]; TAPS], start: usize, out: &mut [u8]) {
        let blocks: [&[u8; BLOCK]; TAPS] = std::array::from_fn(
            #[inline(always)]
            |k| {
                let tap = taps[k][start..].first_chunk();
                tap.expect("taps are as long as the run")
            },
        );
        // A local array: nothing that is read can overlap it, so the loop is vectorised.
        let mut made = [0; BLOCK];
        for i in 0..BLOCK {
            made[i] = self.weigh_taps::<TAPS>(std::array::from_fn(
                #[inline(always)]
                |k| blocks[k][i],
            ));
        }
        out[start..][..BLOCK].copy_from_slice(&made);
    }

    #[inline(always)]
    fn weigh_taps<const TAPS: usize>(&self, taps: [u8; TAPS]) -> u8 {
        let taps = taps.map(u32::from);
        let inner = taps[1..TAPS - 1].iter().sum();
        self.weigh(inner, taps[0] + taps[TAPS - 1])
    }

    #[inline(always)]
    fn many<'a>(&self, tap: impl Fn(usize) -> &'a [u8], sums: &mut Vec<u32>, out: &mut [u8]) {
        let (n, last) = (out.len(), 2 * self.radius + 2);
        sums.clear();
        sums.resize(n, 0);
        for k in 1..last {
            for (sum, &value) in sums.iter_mut().zip(tap(k)) {
                *sum += u32::from(value);
            }
        }
        let ends = tap(0)[..n].iter().zip(&tap(last)[..n]);
        for ((out, &inner), (&left, &right)) in out.iter_mut().zip(&*sums).zip(ends) {
            *out = self.weigh(inner, u32::from(left) + u32::from(right));
        }
    }
}

/// Blurs a `width` x `height` view; `sigma` is Pillow's radius, pixels. 0 changes nothing.
pub fn gaussian(lanes: Lanes, pixels: &mut [u8], width: usize, height: usize, sigma: f32, scratch: &mut BlurScratch) {
    let Some(kernel) = ExtendedBox::of(sigma) else { return };
    let BlurScratch { line, other, sums } = scratch;
    let plane = width * height;
    other.resize(plane, 0);
    for pixels in pixels.chunks_exact_mut(plane) {
        lanes.run(
            #[inline(always)]
            || {
                rows(&kernel, pixels, other, width, line, sums);
                columns(&kernel, other, pixels, width, sums);
                columns(&kernel, pixels, other, width, sums);
                columns(&kernel, other, pixels, width, sums);
            },
        );
    }
}

/// Three passes along each row.
#[inline(always)]
fn rows(kernel: &ExtendedBox, from: &[u8], to: &mut [u8], width: usize, line: &mut Vec<u8>, sums: &mut Vec<u32>) {
    let border = kernel.radius + 1;
    line.resize(width + 2 * border, 0);
    for (from, to) in from.chunks_exact(width).zip(to.chunks_exact_mut(width)) {
        to.copy_from_slice(from);
        for _ in 0..3 {
            line[..border].fill(to[0]);
            line[border..][..width].copy_from_slice(to);
            line[border + width..].fill(to[width - 1]);
            kernel.pass(
                #[inline(always)]
                |k| &line[k..],
                sums,
                to,
            );
        }
    }
}

/// One pass along the columns; rows above and below are the border's.
#[inline(always)]
fn columns(kernel: &ExtendedBox, from: &[u8], to: &mut [u8], width: usize, sums: &mut Vec<u32>) {
    let (height, border) = (to.len() / width, kernel.radius + 1);
    // Away from the border all rows are one run. (A wide box keeps sums, which shall stay in the nearest cache.)
    let inner = if kernel.radius < 2 && height > 2 * border {
        border..height - border
    } else {
        0..0
    };
    if !inner.is_empty() {
        kernel.pass(
            #[inline(always)]
            |k| &from[k * width..][..inner.len() * width],
            sums,
            &mut to[inner.start * width..inner.end * width],
        );
    }
    for y in (0..height).filter(|y| !inner.contains(y)) {
        kernel.pass(
            #[inline(always)]
            |k| {
                let y = (y + k).saturating_sub(border).min(height - 1);
                &from[y * width..][..width]
            },
            sums,
            &mut to[y * width..][..width],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A published property, not our output: three boxes of the length have the Gaussian's variance.
    #[test]
    fn three_boxes_have_the_variance_of_the_gaussian() {
        for sigma in [0.3f32, 0.7, 1.0, 1.5, 2.0, 3.7, 9.0] {
            let kernel = ExtendedBox::of(sigma).expect("not the identity");
            let (whole, end) = (f64::from(kernel.whole), f64::from(kernel.end));
            let squares: f64 = (1..=kernel.radius).map(|x| 2.0 * whole * (x * x) as f64).sum();
            let variance = (squares + 2.0 * end * ((kernel.radius + 1) as f64).powi(2)) / f64::from(1u32 << 24);
            let expected = f64::from(sigma).powi(2) / 3.0;
            assert!(
                (variance / expected - 1.0).abs() < 1e-4,
                "sigma {sigma}: {variance} against {expected}"
            );
        }
    }

    #[test]
    fn sigma_zero_is_the_identity() {
        let mut pixels: Vec<u8> = (0..75).map(|v| v * 3).collect();
        let before = pixels.clone();
        gaussian(Lanes::default(), &mut pixels, 5, 5, 0.0, &mut BlurScratch::default());
        assert_eq!(pixels, before);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// The baseline is the specification: it is what `feed/view/tests/pixels.rs` holds against Pillow.
        #[test]
        fn every_path_gives_the_same_bytes(
            width in 1usize..80, height in 1usize..12, sigma in prop_oneof![0.0f32..3.0, 3.0f32..30.0], seed: u8,
        ) {
            let pixels: Vec<u8> = (0..width * height * 3).map(|i| (i as u8).wrapping_mul(101) ^ seed).collect();
            let made = Lanes::all().into_iter().map(|(name, lanes)| {
                let mut out = pixels.clone();
                gaussian(lanes, &mut out, width, height, sigma, &mut BlurScratch::default());
                (name, out)
            });
            let made: Vec<_> = made.collect();
            for (name, out) in &made {
                prop_assert_eq!(out, &made[0].1, "{}", name);
            }
        }
    }
}
