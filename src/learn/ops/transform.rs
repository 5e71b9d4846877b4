//! The transforms of Winograd's F(4x4, 3x3), with vectors of channels as numbers.
//!
//! Interpolation points 0, ±1/√2, ±√2 and infinity: products of pairs are 1, so that the transforms lose little. Against f64 the
//! error is about two and a half times the direct convolution's in f32; the usual points (0, ±1, ±2) lose twice as much again.
//! Invariant: each function is one fixed sequence of operations; lanes do not mix.
//! Sources: Lavin and Gray 1509.09308, section 4; for the choice of points, Barabasz et al., Error analysis and improving the
//! accuracy of Winograd convolution for deep neural networks, 1803.10986.

use super::winograd::{POINTS, Tile};
use pulp::{Arch, Simd, WithSimd};

/// The smaller pair of points; the other is its reciprocal.
const A: f32 = std::f32::consts::FRAC_1_SQRT_2;
const B: f32 = std::f32::consts::SQRT_2;
const AA: f32 = 0.5;
const BB: f32 = 2.0;

/// `value a + b`
#[inline(always)]
fn fma<S: Simd>(simd: S, value: f32, a: S::f32s, b: S::f32s) -> S::f32s {
    simd.mul_add_e_f32s(simd.splat_f32s(value), a, b)
}

#[inline(always)]
fn scaled<S: Simd>(simd: S, value: f32, a: S::f32s) -> S::f32s {
    simd.mul_f32s(simd.splat_f32s(value), a)
}

/// `B^T d`: six inputs to the six points.
#[inline(always)]
fn input<S: Simd>(s: S, d: [S::f32s; 6]) -> [S::f32s; 6] {
    let (even_a, odd_a) = (fma(s, -BB, d[2], d[4]), fma(s, -BB, d[1], d[3]));
    let (even_b, odd_b) = (fma(s, -AA, d[2], d[4]), fma(s, -AA, d[1], d[3]));
    [
        fma(s, -(AA + BB), d[2], s.add_f32s(d[0], d[4])),
        fma(s, A, odd_a, even_a),
        fma(s, -A, odd_a, even_a),
        fma(s, B, odd_b, even_b),
        fma(s, -B, odd_b, even_b),
        fma(s, -(AA + BB), d[3], s.add_f32s(d[1], d[5])),
    ]
}

/// `A^T m`: six points to four outputs.
#[inline(always)]
fn output<S: Simd>(s: S, m: [S::f32s; 6]) -> [S::f32s; 4] {
    let (sum_a, difference_a) = (s.add_f32s(m[1], m[2]), s.sub_f32s(m[1], m[2]));
    let (sum_b, difference_b) = (s.add_f32s(m[3], m[4]), s.sub_f32s(m[3], m[4]));
    [
        s.add_f32s(s.add_f32s(m[0], sum_a), sum_b),
        fma(s, A, difference_a, scaled(s, B, difference_b)),
        fma(s, AA, sum_a, scaled(s, BB, sum_b)),
        fma(s, A * AA, difference_a, fma(s, B * BB, difference_b, m[5])),
    ]
}

/// `A y`: [`output`] transposed, for the output's gradient.
#[inline(always)]
fn output_transposed<S: Simd>(s: S, y: [S::f32s; 4]) -> [S::f32s; 6] {
    let (even_a, odd_a) = (fma(s, AA, y[2], y[0]), fma(s, A * AA, y[3], scaled(s, A, y[1])));
    let (even_b, odd_b) = (fma(s, BB, y[2], y[0]), fma(s, B * BB, y[3], scaled(s, B, y[1])));
    [
        y[0],
        s.add_f32s(even_a, odd_a),
        s.sub_f32s(even_a, odd_a),
        s.add_f32s(even_b, odd_b),
        s.sub_f32s(even_b, odd_b),
        y[3],
    ]
}

/// What normalises the points ±a and ±b: `1 / (2 p^2 (p^2 - q^2))`, q the other pair.
const NORM_A: f32 = 1.0 / (2.0 * AA * (AA - BB));
const NORM_B: f32 = 1.0 / (2.0 * BB * (BB - AA));

/// `G g`: three taps to the six points.
#[inline(always)]
fn kernel<S: Simd>(s: S, g: [S::f32s; 3]) -> [S::f32s; 6] {
    let even_a = fma(s, AA * NORM_A, g[2], scaled(s, NORM_A, g[0]));
    let even_b = fma(s, BB * NORM_B, g[2], scaled(s, NORM_B, g[0]));
    [
        g[0],
        fma(s, A * NORM_A, g[1], even_a),
        fma(s, -A * NORM_A, g[1], even_a),
        fma(s, B * NORM_B, g[1], even_b),
        fma(s, -B * NORM_B, g[1], even_b),
        g[2],
    ]
}

/// `G^T u`: [`kernel`] transposed, for the kernel's gradient.
#[inline(always)]
fn kernel_transposed<S: Simd>(s: S, u: [S::f32s; 6]) -> [S::f32s; 3] {
    let (sum_a, difference_a) = (s.add_f32s(u[1], u[2]), s.sub_f32s(u[1], u[2]));
    let (sum_b, difference_b) = (s.add_f32s(u[3], u[4]), s.sub_f32s(u[3], u[4]));
    [
        fma(s, NORM_A, sum_a, fma(s, NORM_B, sum_b, u[0])),
        fma(s, A * NORM_A, difference_a, scaled(s, B * NORM_B, difference_b)),
        fma(s, AA * NORM_A, sum_a, fma(s, BB * NORM_B, sum_b, u[5])),
    ]
}

/// Applies `axis` to the columns and then to the rows of `values`.
#[inline(always)]
fn both<T: Copy, const N: usize, const M: usize>(
    values: impl Fn(usize) -> T,
    zero: T,
    axis: impl Fn([T; N]) -> [T; M],
    mut take: impl FnMut(usize, T),
) {
    let mut half = [[zero; N]; M];
    for x in 0..N {
        let column = axis(std::array::from_fn(|y| values(y * N + x)));
        for (row, value) in half.iter_mut().zip(column) {
            row[x] = value;
        }
    }
    for (y, row) in half.into_iter().enumerate() {
        for (x, value) in axis(row).into_iter().enumerate() {
            take(y * M + x, value);
        }
    }
}

/// Transforms a chunk's tiles: of inputs, or (`GRADIENT`) of the outputs' gradient. `out[point][tile][channel]`.
pub(super) struct Load<'a, const GRADIENT: bool> {
    /// Whole images, `[.., channels]`.
    pub(super) x: &'a [f32],
    /// Tiles of one mosaic.
    pub(super) tiles: &'a [Tile],
    /// The first tile to transform, counted over mosaics; `out` says how many.
    pub(super) first: usize,
    /// Pixels of one mosaic.
    pub(super) pixels: usize,
    pub(super) channels: usize,
    pub(super) out: &'a mut [f32],
}

impl<const GRADIENT: bool> Load<'_, GRADIENT> {
    /// A pixel's channels. Outside of the image, or of an image that the last mosaic lacks, it is beyond the slice: zeros.
    #[inline(always)]
    fn pixel<'a, S: Simd>(&'a self, mosaic: usize, place: u32, zeros: &'a [f32]) -> &'a [S::f32s] {
        let start = (mosaic * self.pixels + place as usize) * self.channels;
        let values = self.x.get(start..start + self.channels).unwrap_or(zeros);
        S::as_simd_f32s(values).0
    }
}

impl<const GRADIENT: bool> WithSimd for Load<'_, GRADIENT> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let zeros = vec![0.0; self.channels];
        let (zero, vectors) = (simd.splat_f32s(0.0), self.channels / S::F32_LANES);
        let (out, _) = S::as_mut_simd_f32s(std::mem::take(&mut self.out));
        let plane = out.len() / POINTS;
        for at in 0..plane / vectors {
            let tile = self.first + at;
            let (mosaic, tile) = (tile / self.tiles.len(), &self.tiles[tile % self.tiles.len()]);
            if GRADIENT {
                let mut pixels = [&[][..]; 16];
                for (pixel, &place) in pixels.iter_mut().zip(&tile.outputs) {
                    *pixel = self.pixel::<S>(mosaic, place, &zeros);
                }
                for v in 0..vectors {
                    both(
                        #[inline(always)]
                        |i| pixels[i][v],
                        zero,
                        #[inline(always)]
                        |y| output_transposed(simd, y),
                        #[inline(always)]
                        |i, value| out[i * plane + at * vectors + v] = value,
                    );
                }
            } else {
                let mut pixels = [&[][..]; POINTS];
                for (pixel, &place) in pixels.iter_mut().zip(&tile.inputs) {
                    *pixel = self.pixel::<S>(mosaic, place, &zeros);
                }
                for v in 0..vectors {
                    both(
                        #[inline(always)]
                        |i| pixels[i][v],
                        zero,
                        #[inline(always)]
                        |d| input(simd, d),
                        #[inline(always)]
                        |i, value| out[i * plane + at * vectors + v] = value,
                    );
                }
            }
        }
    }
}

/// Transforms a chunk's products `m[point][tile][channel]` back into pixels.
pub(super) struct Store<'a> {
    pub(super) m: &'a [f32],
    /// Tiles of one mosaic.
    pub(super) tiles: &'a [Tile],
    /// The tile of the first products, counted over mosaics.
    pub(super) first: usize,
    /// Pixels of one mosaic.
    pub(super) pixels: usize,
    pub(super) channels: usize,
    /// Whole images, `[.., channels]`.
    pub(super) out: &'a mut [f32],
}

impl WithSimd for Store<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = self.channels / S::F32_LANES;
        let (m, _) = S::as_simd_f32s(self.m);
        let (out, _) = S::as_mut_simd_f32s(self.out);
        let plane = m.len() / POINTS;
        for at in 0..plane / vectors {
            let tile = self.first + at;
            let (mosaic, tile) = (tile / self.tiles.len(), &self.tiles[tile % self.tiles.len()]);
            for v in 0..vectors {
                both(
                    #[inline(always)]
                    |i| m[i * plane + at * vectors + v],
                    simd.splat_f32s(0.0),
                    #[inline(always)]
                    |m| output(simd, m),
                    // Beyond the image, or of an image that the last mosaic lacks: dropped.
                    #[inline(always)]
                    |i, value| {
                        let pixel = mosaic * self.pixels + tile.outputs[i] as usize;
                        if let Some(out) = out.get_mut(pixel * vectors + v) {
                            *out = value;
                        }
                    },
                );
            }
        }
    }
}

/// Transforms kernels: `taps[input][tap][width]` to `out[point][input][width]`.
pub(super) struct KernelTransform<'a> {
    pub(super) taps: &'a [f32],
    pub(super) width: usize,
    pub(super) out: &'a mut [f32],
}

impl WithSimd for KernelTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = self.width / S::F32_LANES;
        let (taps, _) = S::as_simd_f32s(self.taps);
        let (out, _) = S::as_mut_simd_f32s(self.out);
        let plane = out.len() / POINTS;
        for (input, taps) in taps.chunks_exact(9 * vectors).enumerate() {
            for v in 0..vectors {
                both(
                    #[inline(always)]
                    |i| taps[i * vectors + v],
                    simd.splat_f32s(0.0),
                    #[inline(always)]
                    |g| kernel(simd, g),
                    #[inline(always)]
                    |i, value| out[i * plane + input * vectors + v] = value,
                );
            }
        }
    }
}

/// Gradients of kernels from those of their transforms: `[point][plane]` to `[tap][plane]`.
pub(super) fn kernel_gradients(arch: Arch, sums: &[f32], out: &mut [f32]) {
    struct Back<'a> {
        sums: &'a [f32],
        out: &'a mut [f32],
    }
    impl WithSimd for Back<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (sums, _) = S::as_simd_f32s(self.sums);
            let (out, _) = S::as_mut_simd_f32s(self.out);
            let plane = out.len() / 9;
            for place in 0..plane {
                both(
                    #[inline(always)]
                    |i| sums[i * plane + place],
                    simd.splat_f32s(0.0),
                    #[inline(always)]
                    |u| kernel_transposed(simd, u),
                    #[inline(always)]
                    |i, value| out[i * plane + place] = value,
                );
            }
        }
    }
    arch.dispatch(Back { sums, out });
}
