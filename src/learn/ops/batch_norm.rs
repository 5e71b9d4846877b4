//! Batch norm on the CPU, fused with the residual sum and the rectifier around it, with its closed-form gradient.
//!
//! In and out: contiguous slices `[rows, channels]`; a map's rows are its pixels. Two passes forward, two backward, each reading
//! every value once. Sums are f32 over a few rows and f64 over those, by chunks of rows that depend on the shape alone and are
//! added in order: threads change no bit.
//! Source: Ioffe and Szegedy 2015, algorithm 1 and its gradient.

use super::{
    buffers,
    strips::{Pass, load, run, store},
};
use pulp::{Arch, Simd};
use rayon::prelude::*;

/// Rows whose sum is taken in f32.
const SUM_ROWS: usize = 32;

/// `[rows, channels]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    rows: usize,
    channels: usize,
}

impl Rows {
    /// # Panics
    /// When the shape has fewer than two axes or no value.
    pub(super) fn of(shape: &[usize]) -> Self {
        let &[ref rows @ .., channels] = shape else {
            panic!("batch norm of a tensor of rank {}", shape.len())
        };
        let of = Self {
            rows: rows.iter().product(),
            channels,
        };
        assert!(
            !rows.is_empty() && of.rows * channels > 0,
            "batch norm of an empty batch {shape:?}"
        );
        of
    }

    /// Values in a chunk: whole rows, at least some ten thousand values, at most 32 chunks.
    fn chunk(&self) -> usize {
        self.rows.div_ceil(32).max(32_768usize.div_ceil(self.channels)) * self.channels
    }
}

/// What follows the normalisation.
#[derive(Clone, Copy, Debug)]
pub(super) struct After<'a> {
    pub(super) residual: Option<&'a [f32]>,
    pub(super) relu: bool,
}

/// Two sums by channel.
type Sums = Vec<[f64; 2]>;

/// Adds partial sums in the order of the chunks.
fn total(parts: Vec<Sums>) -> Sums {
    let total = parts.into_iter().reduce(|mut total, part| {
        for (a, b) in total.iter_mut().zip(part) {
            *a = [a[0] + b[0], a[1] + b[1]];
        }
        total
    });
    total.expect("a batch has at least one chunk")
}

/// Adds what a few rows gave, `[vectors]` each.
#[inline(always)]
fn flush<S: Simd, const V: usize>(sums: &mut [[f64; 2]], first: [S::f32s; V], second: [S::f32s; V]) {
    let [first, second] = [&first, &second].map(|vectors| pulp::bytemuck::cast_slice::<S::f32s, f32>(vectors));
    for (sum, (&a, &b)) in sums.iter_mut().zip(first.iter().zip(second)) {
        *sum = [sum[0] + f64::from(a), sum[1] + f64::from(b)];
    }
}

/// Mean and biased variance by channel.
pub(super) fn statistics(x: &[f32], of: Rows) -> (Vec<f32>, Vec<f32>) {
    let arch = Arch::new();
    // Moments about a value of the batch: exact enough however far the mean is from zero.
    let pivot = &x[..of.channels];
    let part = |x: &[f32]| {
        let mut sums = vec![[0.0; 2]; of.channels];
        run(
            arch,
            of.channels,
            Moments {
                x,
                pivot,
                sums: &mut sums,
            },
        );
        sums
    };
    let sums = total(x.par_chunks(of.chunk()).map(part).collect());
    let count = of.rows as f64;
    let moments = sums.iter().zip(pivot).map(|([sum, squares], &pivot)| {
        let offset = sum / count;
        let variance = (squares / count - offset * offset).max(0.0);
        ((f64::from(pivot) + offset) as f32, variance as f32)
    });
    moments.unzip()
}

struct Moments<'a> {
    x: &'a [f32],
    pivot: &'a [f32],
    sums: &'a mut [[f64; 2]],
}

impl Pass for Moments<'_> {
    #[inline(always)]
    fn strip<S: Simd, const V: usize, const WHOLE: bool>(&mut self, simd: S, first: usize, width: usize) {
        let channels = self.pivot.len();
        let pivot = load::<S, V, WHOLE>(simd, &self.pivot[first..][..width]);
        for rows in self.x.chunks(SUM_ROWS * channels) {
            let (mut sum, mut squares) = ([simd.splat_f32s(0.0); V], [simd.splat_f32s(0.0); V]);
            for row in rows.chunks_exact(channels) {
                let x = load::<S, V, WHOLE>(simd, &row[first..][..width]);
                for v in 0..V {
                    let offset = simd.sub_f32s(x[v], pivot[v]);
                    sum[v] = simd.add_f32s(sum[v], offset);
                    squares[v] = simd.mul_add_e_f32s(offset, offset, squares[v]);
                }
            }
            flush::<S, V>(&mut self.sums[first..][..width], sum, squares);
        }
    }
}

/// Scale and shift by channel of `gamma (x - mean) / sqrt(variance + epsilon) + beta`.
pub(super) fn scale_shift(
    gamma: &[f32],
    beta: &[f32],
    mean: &[f32],
    variance: &[f32],
    epsilon: f64,
) -> (Vec<f32>, Vec<f32>) {
    let scale: Vec<f32> = gamma
        .iter()
        .zip(variance)
        .map(|(&g, &v)| (f64::from(g) / (f64::from(v) + epsilon).sqrt()) as f32)
        .collect();
    let shift = beta
        .iter()
        .zip(mean)
        .zip(&scale)
        .map(|((&b, &m), &s)| (f64::from(b) - f64::from(m) * f64::from(s)) as f32);
    let shift = shift.collect();
    (scale, shift)
}

/// `y = x scale + shift`, plus the residual, rectified.
pub(super) fn affine(x: &[f32], of: Rows, scale: &[f32], shift: &[f32], after: After<'_>) -> Vec<f32> {
    let (arch, chunk) = (Arch::new(), of.chunk());
    let mut y = buffers::take(x.len());
    let chunks = y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).enumerate();
    chunks.for_each(|(i, (y, x))| {
        let rest = Affine::<false, false> {
            x,
            residual: &[],
            scale,
            shift,
            y,
        };
        match (after.residual.map(|r| &r[i * chunk..][..x.len()]), after.relu) {
            (None, false) => run(arch, of.channels, rest),
            (None, true) => run(arch, of.channels, rest.then::<false, true>(&[])),
            (Some(residual), false) => run(arch, of.channels, rest.then::<true, false>(residual)),
            (Some(residual), true) => run(arch, of.channels, rest.then::<true, true>(residual)),
        }
    });
    y
}

struct Affine<'a, const RESIDUAL: bool, const RELU: bool> {
    x: &'a [f32],
    residual: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    y: &'a mut [f32],
}

impl<'a> Affine<'a, false, false> {
    fn then<const RESIDUAL: bool, const RELU: bool>(self, residual: &'a [f32]) -> Affine<'a, RESIDUAL, RELU> {
        let Self { x, scale, shift, y, .. } = self;
        Affine {
            x,
            residual,
            scale,
            shift,
            y,
        }
    }
}

impl<const RESIDUAL: bool, const RELU: bool> Pass for Affine<'_, RESIDUAL, RELU> {
    #[inline(always)]
    fn strip<S: Simd, const V: usize, const WHOLE: bool>(&mut self, simd: S, first: usize, width: usize) {
        let (zero, channels) = (simd.splat_f32s(0.0), self.scale.len());
        let scale = load::<S, V, WHOLE>(simd, &self.scale[first..][..width]);
        let shift = load::<S, V, WHOLE>(simd, &self.shift[first..][..width]);
        let rows = self.x.chunks_exact(channels).zip(self.y.chunks_exact_mut(channels));
        for (row, (x, y)) in rows.enumerate() {
            let mut value = load::<S, V, WHOLE>(simd, &x[first..][..width]);
            for v in 0..V {
                value[v] = simd.mul_add_e_f32s(value[v], scale[v], shift[v]);
            }
            if RESIDUAL {
                let residual = load::<S, V, WHOLE>(simd, &self.residual[row * channels + first..][..width]);
                for v in 0..V {
                    value[v] = simd.add_f32s(value[v], residual[v]);
                }
            }
            if RELU {
                for value in &mut value {
                    // Not a maximum: a NaN has to come through, a diverged run must be seen.
                    let negative = simd.less_than_f32s(*value, zero);
                    *value = simd.select_f32s(negative, zero, *value);
                }
            }
            store::<S, V, WHOLE>(simd, &mut y[first..][..width], value);
        }
    }
}

/// What the gradient needs of the forward pass.
pub(super) struct Saved<'a> {
    pub(super) x: &'a [f32],
    /// The output where it was rectified: no gradient comes through where it is not above zero.
    pub(super) rectified: Option<&'a [f32]>,
    pub(super) gamma: &'a [f32],
    pub(super) mean: &'a [f32],
    pub(super) variance: &'a [f32],
    pub(super) epsilon: f64,
    /// Whether the residual's gradient is wanted.
    pub(super) residual: bool,
}

/// Gradients of input, scale, shift and residual.
pub(super) struct Gradients {
    pub(super) input: Vec<f32>,
    pub(super) gamma: Vec<f32>,
    pub(super) beta: Vec<f32>,
    pub(super) residual: Option<Vec<f32>>,
}

/// Takes the output's gradient and turns it into the input's.
pub(super) fn gradients(mut grad: Vec<f32>, of: Rows, saved: &Saved<'_>) -> Gradients {
    let sums = grad_sums(&mut grad, of, saved);
    let count = of.rows as f64;
    let inverse = |c: usize| 1.0 / (f64::from(saved.variance[c]) + saved.epsilon).sqrt();
    // dx = scale g + slope (x - mean) + offset.
    let mut coefficients = [const { Vec::new() }; 3];
    for (c, [sum, product]) in sums.iter().enumerate() {
        let scale = f64::from(saved.gamma[c]) * inverse(c);
        let slope = -scale * inverse(c) * inverse(c) * product / count;
        let values = [scale, slope, -scale * sum / count];
        coefficients
            .iter_mut()
            .zip(values)
            .for_each(|(all, value)| all.push(value as f32));
    }
    let (input, residual) = if saved.residual {
        let mut input = buffers::take(grad.len());
        slopes::<true>(&mut input, &grad, of, saved, &coefficients);
        (input, Some(grad))
    } else {
        slopes::<false>(&mut grad, &[], of, saved, &coefficients);
        (grad, None)
    };
    Gradients {
        input,
        residual,
        gamma: (0..of.channels).map(|c| (sums[c][1] * inverse(c)) as f32).collect(),
        beta: sums.iter().map(|s| s[0] as f32).collect(),
    }
}

/// Rectifies the gradient in place; gives the sums over rows of `g` and of `g (x - mean)`.
fn grad_sums(grad: &mut [f32], of: Rows, saved: &Saved<'_>) -> Sums {
    let (arch, chunk) = (Arch::new(), of.chunk());
    let chunks = grad.par_chunks_mut(chunk).zip(saved.x.par_chunks(chunk)).enumerate();
    let part = |(i, (grad, x)): (usize, (&mut [f32], &[f32]))| {
        let mut sums = vec![[0.0; 2]; of.channels];
        let (mean, sums_of) = (saved.mean, &mut sums);
        if let Some(output) = saved.rectified {
            let output = &output[i * chunk..][..x.len()];
            let pass = GradSums::<true> {
                grad,
                output,
                x,
                mean,
                sums: sums_of,
            };
            run(arch, of.channels, pass);
        } else {
            let pass = GradSums::<false> {
                grad,
                output: &[],
                x,
                mean,
                sums: sums_of,
            };
            run(arch, of.channels, pass);
        }
        sums
    };
    total(chunks.map(part).collect())
}

struct GradSums<'a, const RECTIFIED: bool> {
    grad: &'a mut [f32],
    output: &'a [f32],
    x: &'a [f32],
    mean: &'a [f32],
    sums: &'a mut [[f64; 2]],
}

impl<const RECTIFIED: bool> Pass for GradSums<'_, RECTIFIED> {
    #[inline(always)]
    fn strip<S: Simd, const V: usize, const WHOLE: bool>(&mut self, simd: S, first: usize, width: usize) {
        let (zero, channels) = (simd.splat_f32s(0.0), self.mean.len());
        let mean = load::<S, V, WHOLE>(simd, &self.mean[first..][..width]);
        let block = SUM_ROWS * channels;
        for (at, (grad, x)) in self.grad.chunks_mut(block).zip(self.x.chunks(block)).enumerate() {
            let (mut sum, mut products) = ([zero; V], [zero; V]);
            for (row, (grad, x)) in grad
                .chunks_exact_mut(channels)
                .zip(x.chunks_exact(channels))
                .enumerate()
            {
                let mut g = load::<S, V, WHOLE>(simd, &grad[first..][..width]);
                if RECTIFIED {
                    let output = &self.output[at * block + row * channels + first..][..width];
                    let output = load::<S, V, WHOLE>(simd, output);
                    for v in 0..V {
                        let off = simd.less_than_or_equal_f32s(output[v], zero);
                        g[v] = simd.select_f32s(off, zero, g[v]);
                    }
                    store::<S, V, WHOLE>(simd, &mut grad[first..][..width], g);
                }
                let x = load::<S, V, WHOLE>(simd, &x[first..][..width]);
                for v in 0..V {
                    sum[v] = simd.add_f32s(sum[v], g[v]);
                    products[v] = simd.mul_add_e_f32s(g[v], simd.sub_f32s(x[v], mean[v]), products[v]);
                }
            }
            flush::<S, V>(&mut self.sums[first..][..width], sum, products);
        }
    }
}

/// `dx = scale g + slope (x - mean) + offset`, over `g` itself or (`APART`) beside it.
fn slopes<const APART: bool>(out: &mut [f32], grad: &[f32], of: Rows, saved: &Saved<'_>, coefficients: &[Vec<f32>; 3]) {
    let (arch, chunk) = (Arch::new(), of.chunk());
    let chunks = out.par_chunks_mut(chunk).zip(saved.x.par_chunks(chunk)).enumerate();
    chunks.for_each(|(i, (out, x))| {
        let grad = if APART { &grad[i * chunk..][..x.len()] } else { &[] };
        let mean = saved.mean;
        run(
            arch,
            of.channels,
            Slopes::<APART> {
                out,
                grad,
                x,
                mean,
                coefficients,
            },
        );
    });
}

struct Slopes<'a, const APART: bool> {
    out: &'a mut [f32],
    grad: &'a [f32],
    x: &'a [f32],
    mean: &'a [f32],
    coefficients: &'a [Vec<f32>; 3],
}

impl<const APART: bool> Pass for Slopes<'_, APART> {
    #[inline(always)]
    fn strip<S: Simd, const V: usize, const WHOLE: bool>(&mut self, simd: S, first: usize, width: usize) {
        let channels = self.mean.len();
        let mean = load::<S, V, WHOLE>(simd, &self.mean[first..][..width]);
        let [scale, slope, offset] = self.coefficients;
        let scale = load::<S, V, WHOLE>(simd, &scale[first..][..width]);
        let slope = load::<S, V, WHOLE>(simd, &slope[first..][..width]);
        let offset = load::<S, V, WHOLE>(simd, &offset[first..][..width]);
        let rows = self.out.chunks_exact_mut(channels).zip(self.x.chunks_exact(channels));
        for (row, (out, x)) in rows.enumerate() {
            let out = &mut out[first..][..width];
            let grad = if APART {
                &self.grad[row * channels + first..][..width]
            } else {
                &*out
            };
            let mut g = load::<S, V, WHOLE>(simd, grad);
            let x = load::<S, V, WHOLE>(simd, &x[first..][..width]);
            for v in 0..V {
                let line = simd.mul_add_e_f32s(slope[v], simd.sub_f32s(x[v], mean[v]), offset[v]);
                g[v] = simd.mul_add_e_f32s(scale[v], g[v], line);
            }
            store::<S, V, WHOLE>(simd, out, g);
        }
    }
}
