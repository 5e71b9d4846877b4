//! Batch norm on the CPU, fused with the residual sum and the rectifier around it, with its closed-form gradient.
//!
//! In and out: contiguous slices `[N, C, P]` (P pixels; 1 for rows). Two passes forward, two backward, each reading every value
//! once. Sums are f64 in eight lanes, over chunks of samples that depend on the shape alone and are added in order: neither
//! threads nor the instruction set change a bit.
//! Source: Ioffe and Szegedy 2015, algorithm 1 and its gradient.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Partial sums kept apart inside a plane.
const LANES: usize = 8;

/// `[N, C, P]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planes {
    n: usize,
    channels: usize,
    pixels: usize,
}

impl Planes {
    /// # Panics
    /// When the shape has fewer than two axes or no value.
    pub(super) fn of(shape: &[usize]) -> Self {
        let &[n, channels, ref pixels @ ..] = shape else {
            panic!("batch norm of a tensor of rank {}", shape.len())
        };
        let planes = Self {
            n,
            channels,
            pixels: pixels.iter().product(),
        };
        assert!(
            n * channels * planes.pixels > 0,
            "batch norm of an empty batch {shape:?}"
        );
        planes
    }

    /// Values a channel.
    fn count(&self) -> f64 {
        (self.n * self.pixels) as f64
    }

    fn sample(&self) -> usize {
        self.channels * self.pixels
    }

    /// Values in a chunk: whole samples, at least some ten thousand values, at most 32 chunks.
    fn chunk(&self) -> usize {
        self.n.div_ceil(32).max(32_768usize.div_ceil(self.sample())) * self.sample()
    }
}

/// What follows the normalisation.
#[derive(Clone, Copy, Debug)]
pub(super) struct After<'a> {
    pub(super) residual: Option<&'a [f32]>,
    pub(super) relu: bool,
}

/// Two sums by channel.
struct Sums(Vec<[f64; 2]>);

impl Sums {
    /// Adds partial sums in the order of the chunks.
    fn total(parts: Vec<Self>) -> Self {
        let total = parts.into_iter().reduce(|mut total, part| {
            for (a, b) in total.0.iter_mut().zip(part.0) {
                *a = [a[0] + b[0], a[1] + b[1]];
            }
            total
        });
        total.expect("a batch has at least one chunk")
    }

    /// Adds `value(a[i], b[i], channel)` over one chunk.
    #[inline(always)]
    fn add(&mut self, p: Planes, a: &[f32], b: &[f32], value: impl Fn(f32, f32, usize) -> [f64; 2]) {
        if p.pixels == 1 {
            for (a, b) in a.chunks_exact(p.channels).zip(b.chunks_exact(p.channels)) {
                for (c, (sum, (&a, &b))) in self.0.iter_mut().zip(a.iter().zip(b)).enumerate() {
                    let v = value(a, b, c);
                    *sum = [sum[0] + v[0], sum[1] + v[1]];
                }
            }
            return;
        }
        for (i, (a, b)) in a.chunks_exact(p.pixels).zip(b.chunks_exact(p.pixels)).enumerate() {
            let c = i % p.channels;
            let (mut first, mut second) = ([0.0; LANES], [0.0; LANES]);
            let (mut a_lanes, mut b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
            for (a, b) in (&mut a_lanes).zip(&mut b_lanes) {
                for lane in 0..LANES {
                    let v = value(a[lane], b[lane], c);
                    first[lane] += v[0];
                    second[lane] += v[1];
                }
            }
            for (lane, (&a, &b)) in a_lanes.remainder().iter().zip(b_lanes.remainder()).enumerate() {
                let v = value(a, b, c);
                first[lane] += v[0];
                second[lane] += v[1];
            }
            let sum = &mut self.0[c];
            *sum = [sum[0] + first.iter().sum::<f64>(), sum[1] + second.iter().sum::<f64>()];
        }
    }
}

/// Mean and biased variance by channel.
pub(super) fn statistics(x: &[f32], p: Planes) -> (Vec<f32>, Vec<f32>) {
    let arch = Arch::new();
    let part = |x: &[f32]| {
        let mut sums = Sums(vec![[0.0; 2]; p.channels]);
        let value = |v: f32, _: f32, _: usize| [f64::from(v), f64::from(v) * f64::from(v)];
        arch.dispatch(Add {
            sums: &mut sums,
            p,
            a: x,
            b: x,
            value,
        });
        sums
    };
    let sums = Sums::total(x.par_chunks(p.chunk()).map(part).collect());
    let count = p.count();
    // In f64 the difference of squares is exact enough unless a mean is a million deviations from zero.
    let moments = sums
        .0
        .iter()
        .map(|[sum, squares]| (sum / count, (squares / count - (sum / count).powi(2)).max(0.0)));
    moments.map(|(mean, variance)| (mean as f32, variance as f32)).unzip()
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
pub(super) fn affine(x: &[f32], p: Planes, scale: &[f32], shift: &[f32], after: After<'_>) -> Vec<f32> {
    let arch = Arch::new();
    let mut y = vec![0.0; x.len()];
    let chunks = y.par_chunks_mut(p.chunk()).zip(x.par_chunks(p.chunk())).enumerate();
    chunks.for_each(|(i, (y, x))| {
        let residual = after.residual.map(|r| &r[i * p.chunk()..][..x.len()]);
        match (residual, after.relu) {
            (None, false) => arch.dispatch(Map {
                p,
                a: x,
                b: x,
                out: y,
                value: |v, _, c| v * scale[c] + shift[c],
            }),
            (None, true) => {
                arch.dispatch(Map {
                    p,
                    a: x,
                    b: x,
                    out: y,
                    value: |v, _, c| rectify(v * scale[c] + shift[c]),
                });
            }
            (Some(r), false) => {
                arch.dispatch(Map {
                    p,
                    a: x,
                    b: r,
                    out: y,
                    value: |v, r, c| v * scale[c] + shift[c] + r,
                });
            }
            (Some(r), true) => {
                arch.dispatch(Map {
                    p,
                    a: x,
                    b: r,
                    out: y,
                    value: |v, r, c| rectify(v * scale[c] + shift[c] + r),
                });
            }
        }
    });
    y
}

/// `max(0, v)` that lets a NaN through: a diverged run must be seen.
#[inline(always)]
fn rectify(v: f32) -> f32 {
    if v < 0.0 { 0.0 } else { v }
}

/// `out[i] = value(a[i], b[i], channel)` over one chunk.
#[inline(always)]
fn map(p: Planes, a: &[f32], b: &[f32], out: &mut [f32], value: impl Fn(f32, f32, usize) -> f32) {
    // Rows: a channel a value. Maps: a channel a plane.
    let (run, rows) = if p.pixels == 1 {
        (p.channels, true)
    } else {
        (p.pixels, false)
    };
    let slices = a
        .chunks_exact(run)
        .zip(b.chunks_exact(run))
        .zip(out.chunks_exact_mut(run));
    for (i, ((a, b), out)) in slices.enumerate() {
        let values = a.iter().zip(b).zip(out);
        if rows {
            values
                .enumerate()
                .for_each(|(c, ((&a, &b), out))| *out = value(a, b, c));
        } else {
            values.for_each(|((&a, &b), out)| *out = value(a, b, i % p.channels));
        }
    }
}

// The passes as types: a closure given to `dispatch` is not sure to be compiled for the instruction set, these are.

/// [`Sums::add`].
struct Add<'a, F> {
    sums: &'a mut Sums,
    p: Planes,
    a: &'a [f32],
    b: &'a [f32],
    value: F,
}

impl<F: Fn(f32, f32, usize) -> [f64; 2]> WithSimd for Add<'_, F> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        self.sums.add(self.p, self.a, self.b, self.value);
    }
}

/// [`map`].
struct Map<'a, F> {
    p: Planes,
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut [f32],
    value: F,
}

impl<F: Fn(f32, f32, usize) -> f32> WithSimd for Map<'_, F> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        map(self.p, self.a, self.b, self.out, self.value);
    }
}

/// [`update`].
struct Update<'a, F> {
    p: Planes,
    a: &'a mut [f32],
    b: &'a [f32],
    value: F,
}

impl<F: Fn(f32, f32, usize) -> f32> WithSimd for Update<'_, F> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        update(self.p, self.a, self.b, self.value);
    }
}

/// What the gradient needs of the forward pass.
pub(super) struct Saved<'a> {
    pub(super) x: &'a [f32],
    pub(super) gamma: &'a [f32],
    pub(super) mean: &'a [f32],
    pub(super) variance: &'a [f32],
    pub(super) epsilon: f64,
}

/// Gradients of input, gamma and beta.
pub(super) struct Gradients {
    pub(super) input: Vec<f32>,
    pub(super) gamma: Vec<f32>,
    pub(super) beta: Vec<f32>,
}

/// Takes the output's gradient, rectified in place by [`mask`] before, and turns it into the input's.
pub(super) fn gradients(mut grad: Vec<f32>, p: Planes, saved: &Saved<'_>) -> Gradients {
    let arch = Arch::new();
    let part = |(grad, x): (&[f32], &[f32])| {
        let mut sums = Sums(vec![[0.0; 2]; p.channels]);
        let value = |g: f32, x: f32, c: usize| [f64::from(g), f64::from(g) * f64::from(x - saved.mean[c])];
        arch.dispatch(Add {
            sums: &mut sums,
            p,
            a: grad,
            b: x,
            value,
        });
        sums
    };
    let sums = Sums::total(
        grad.par_chunks(p.chunk())
            .zip(saved.x.par_chunks(p.chunk()))
            .map(part)
            .collect(),
    );
    let inverse = |c: usize| 1.0 / (f64::from(saved.variance[c]) + saved.epsilon).sqrt();
    // dx = scale g + slope (x - mean) + offset.
    let coefficients: Vec<[f32; 4]> = (0..p.channels)
        .map(|c| {
            let ([sum, product], inverse) = (sums.0[c], inverse(c));
            let scale = f64::from(saved.gamma[c]) * inverse;
            let slope = -scale * inverse * inverse * product / p.count();
            [
                scale as f32,
                slope as f32,
                (-scale * sum / p.count()) as f32,
                saved.mean[c],
            ]
        })
        .collect();
    grad.par_chunks_mut(p.chunk())
        .zip(saved.x.par_chunks(p.chunk()))
        .for_each(|(grad, x)| {
            let value = |g, x, c: usize| {
                let [scale, slope, offset, mean] = coefficients[c];
                scale * g + (slope * (x - mean) + offset)
            };
            arch.dispatch(Update {
                p,
                a: grad,
                b: x,
                value,
            });
        });
    Gradients {
        input: grad,
        gamma: (0..p.channels).map(|c| (sums.0[c][1] * inverse(c)) as f32).collect(),
        beta: sums.0.iter().map(|s| s[0] as f32).collect(),
    }
}

/// Zeroes the gradient where the output was rectified away.
pub(super) fn mask(grad: &mut [f32], p: Planes, output: &[f32]) {
    let arch = Arch::new();
    grad.par_chunks_mut(p.chunk())
        .zip(output.par_chunks(p.chunk()))
        .for_each(|(grad, output)| {
            arch.dispatch(Update {
                p,
                a: grad,
                b: output,
                value: |g, y, _| if y <= 0.0 { 0.0 } else { g },
            });
        });
}

/// `a[i] = value(a[i], b[i], channel)` over one chunk.
#[inline(always)]
fn update(p: Planes, a: &mut [f32], b: &[f32], value: impl Fn(f32, f32, usize) -> f32) {
    let (run, rows) = if p.pixels == 1 {
        (p.channels, true)
    } else {
        (p.pixels, false)
    };
    for (i, (a, b)) in a.chunks_exact_mut(run).zip(b.chunks_exact(run)).enumerate() {
        let values = a.iter_mut().zip(b);
        if rows {
            values.enumerate().for_each(|(c, (a, &b))| *a = value(*a, b, c));
        } else {
            values.for_each(|(a, &b)| *a = value(*a, b, i % p.channels));
        }
    }
}
