//! Pillow's GaussianBlur: three extended box passes along rows, then three along columns, each rounded to 8 bits.
//!
//! In and out: `pixels`, RGB row-major. Invariant: equal to Pillow 13 (BoxBlur.c) bit for bit; 32-bit integer arithmetic.
//! Box lengths: Gwosdek, Grewenig, Bruhn, Weickert, "Theoretical foundations of Gaussian convolution by extended box
//! filtering", SSVM 2011.

/// Buffers that are kept from call to call.
#[derive(Default)]
pub struct BlurScratch {
    /// A row with its borders repeated.
    line: Vec<u8>,
    /// The view between two passes.
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
    fn pass<'a>(&self, tap: impl Fn(usize) -> &'a [u8], sums: &mut Vec<u32>, out: &mut [u8]) {
        let n = out.len();
        let tap = |k| &tap(k)[..n];
        let last = 2 * self.radius + 2;
        let (left, right) = (tap(0), tap(last));
        let ends = |i: usize| u32::from(left[i]) + u32::from(right[i]);
        match self.radius {
            0 => {
                let middle = tap(1);
                for i in 0..n {
                    out[i] = self.weigh(u32::from(middle[i]), ends(i));
                }
            }
            // sigma in 1.42..2.45: of the published range 0.1..2 the wider half.
            1 => {
                let (a, b, c) = (tap(1), tap(2), tap(3));
                for i in 0..n {
                    out[i] = self.weigh(u32::from(a[i]) + u32::from(b[i]) + u32::from(c[i]), ends(i));
                }
            }
            _ => {
                sums.clear();
                sums.resize(n, 0);
                for k in 1..last {
                    for (sum, &value) in sums.iter_mut().zip(tap(k)) {
                        *sum += u32::from(value);
                    }
                }
                for i in 0..n {
                    out[i] = self.weigh(sums[i], ends(i));
                }
            }
        }
    }
}

/// Blurs a `width` x `height` view; `sigma` is Pillow's radius, pixels. 0 changes nothing.
pub fn gaussian(pixels: &mut [u8], width: usize, height: usize, sigma: f32, scratch: &mut BlurScratch) {
    let Some(kernel) = ExtendedBox::of(sigma) else { return };
    let BlurScratch { line, other, sums } = scratch;
    let row_bytes = width * 3;
    other.resize(pixels.len(), 0);
    for (from, to) in pixels.chunks_exact(row_bytes).zip(other.chunks_exact_mut(row_bytes)) {
        to.copy_from_slice(from);
        for _ in 0..3 {
            repeat_borders(to, kernel.radius + 1, line);
            kernel.pass(|k| &line[3 * k..], sums, to);
        }
    }
    columns(&kernel, other, pixels, height, sums);
    columns(&kernel, pixels, other, height, sums);
    columns(&kernel, other, pixels, height, sums);
}

/// One pass along the columns, row by row; rows above and below are the border's.
fn columns(kernel: &ExtendedBox, from: &[u8], to: &mut [u8], height: usize, sums: &mut Vec<u32>) {
    let row_bytes = to.len() / height;
    for (y, out) in to.chunks_exact_mut(row_bytes).enumerate() {
        let row = |k: usize| {
            let y = (y + k).saturating_sub(kernel.radius + 1).min(height - 1);
            &from[y * row_bytes..][..row_bytes]
        };
        kernel.pass(row, sums, out);
    }
}

/// `row` with its first and last pixel repeated `times` on either side, into `line`.
fn repeat_borders(row: &[u8], times: usize, line: &mut Vec<u8>) {
    line.clear();
    for _ in 0..times {
        line.extend_from_slice(&row[..3]);
    }
    line.extend_from_slice(row);
    for _ in 0..times {
        line.extend_from_slice(&row[row.len() - 3..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        gaussian(&mut pixels, 5, 5, 0.0, &mut BlurScratch::default());
        assert_eq!(pixels, before);
    }
}
