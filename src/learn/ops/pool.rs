//! Max-pool and global average on the CPU, forward and backward.
//!
//! In and out: contiguous slices in NHWC, image by image. The gradient goes to the first of equal largest values, as in PyTorch.
//! Which one that was is found again from input and output: nothing is kept for it.

use super::{ConvArgs, buffers, conv::volume};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Sizes of one pooling.
#[derive(Clone, Copy, Debug)]
pub(super) struct PoolShape {
    /// Channels, height, width.
    input: [usize; 3],
    /// Channels, height, width.
    pub(super) output: [usize; 3],
    kernel: usize,
    args: ConvArgs,
}

impl PoolShape {
    /// Of maps `[N, H, W, C]`.
    ///
    /// # Panics
    /// When the maps have another rank.
    pub(super) fn new(x: &[usize], kernel: usize, args: ConvArgs) -> Self {
        let &[_, h, w, c] = x else {
            panic!("a pool of a map of rank {}", x.len())
        };
        Self {
            input: [c, h, w],
            output: [c, args.output(h, kernel), args.output(w, kernel)],
            kernel,
            args,
        }
    }

    /// Input pixels under output `(i, j)`, in order; padding is not among them.
    fn under(self, i: usize, j: usize) -> impl Iterator<Item = usize> {
        let [_, h, w] = self.input;
        let span = move |at: usize, length: usize| {
            let start = at * self.args.stride;
            let [from, to] = [start, start + self.kernel].map(|at| at.saturating_sub(self.args.padding).min(length));
            from..to
        };
        span(i, h).flat_map(move |y| span(j, w).map(move |x| y * w + x))
    }

    /// Output pixels with their places in the grid.
    fn places(self) -> impl Iterator<Item = (usize, usize)> {
        let [_, h, w] = self.output;
        (0..h).flat_map(move |i| (0..w).map(move |j| (i, j)))
    }
}

/// The largest value under the kernel; a NaN among them is it.
pub(super) fn max_pool(x: &[f32], shape: PoolShape) -> Vec<f32> {
    struct Image<'a>(&'a [f32], &'a mut [f32], PoolShape);
    impl WithSimd for Image<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, _simd: S) {
            let Self(x, y, shape) = self;
            let channels = shape.input[0];
            for (y, (i, j)) in y.chunks_exact_mut(channels).zip(shape.places()) {
                y.fill(f32::NEG_INFINITY);
                for pixel in shape.under(i, j) {
                    for (y, &x) in y.iter_mut().zip(&x[pixel * channels..][..channels]) {
                        *y = if x <= *y { *y } else { x };
                    }
                }
            }
        }
    }
    let (arch, n) = (Arch::new(), x.len() / volume(shape.input));
    let mut y = buffers::take(n * volume(shape.output));
    y.par_chunks_mut(volume(shape.output))
        .zip(x.par_chunks(volume(shape.input)))
        .for_each(|(y, x)| arch.dispatch(Image(x, y, shape)));
    y
}

/// Gradient of the input, from input, output and the output's gradient.
pub(super) fn max_pool_grad(x: &[f32], y: &[f32], grad: &[f32], shape: PoolShape) -> Vec<f32> {
    let (arch, sample) = (Arch::new(), volume(shape.output));
    let mut dx = buffers::zeros(x.len());
    dx.par_chunks_mut(volume(shape.input))
        .zip(x.par_chunks(volume(shape.input)))
        .zip(y.par_chunks(sample).zip(grad.par_chunks(sample)))
        .for_each(|((dx, x), (y, grad))| {
            buffers::with([shape.input[0]], |[left]| {
                arch.dispatch(Back {
                    dx,
                    x,
                    y,
                    grad,
                    left,
                    shape,
                });
            });
        });
    dx
}

/// One image's gradient.
struct Back<'a> {
    dx: &'a mut [f32],
    x: &'a [f32],
    y: &'a [f32],
    grad: &'a [f32],
    /// What of an output pixel's gradient has not found its input yet.
    left: &'a mut [f32],
    shape: PoolShape,
}

impl WithSimd for Back<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let channels = self.shape.input[0];
        let outputs = self.y.chunks_exact(channels).zip(self.grad.chunks_exact(channels));
        for ((y, grad), (i, j)) in outputs.zip(self.shape.places()) {
            self.left.copy_from_slice(grad);
            for pixel in self.shape.under(i, j) {
                let dx = &mut self.dx[pixel * channels..][..channels];
                let x = &self.x[pixel * channels..][..channels];
                for ((dx, left), (x, y)) in dx.iter_mut().zip(&mut *self.left).zip(x.iter().zip(y)) {
                    let taken = if x == y { *left } else { 0.0 };
                    *dx += taken;
                    *left = if x == y { 0.0 } else { *left };
                }
            }
        }
    }
}

/// Averages over `pixels` pixels, `[N, channels]`.
pub(super) fn average(x: &[f32], pixels: usize, channels: usize) -> Vec<f32> {
    let mut means = vec![0.0; x.len() / pixels];
    means
        .par_chunks_mut(channels)
        .zip(x.par_chunks(pixels * channels))
        .for_each(|(means, x)| {
            for row in x.chunks_exact(channels) {
                means.iter_mut().zip(row).for_each(|(mean, &x)| *mean += x);
            }
            means.iter_mut().for_each(|mean| *mean /= pixels as f32);
        });
    means
}

/// Gradient of [`average`]'s input.
pub(super) fn average_grad(grad: &[f32], pixels: usize, channels: usize) -> Vec<f32> {
    let mut dx = buffers::take(grad.len() * pixels);
    dx.par_chunks_mut(pixels * channels)
        .zip(grad.par_chunks(channels))
        .for_each(|(dx, grad)| {
            let (first, others) = dx.split_at_mut(channels);
            first.iter_mut().zip(grad).for_each(|(dx, &g)| *dx = g / pixels as f32);
            others
                .chunks_exact_mut(channels)
                .for_each(|row| row.copy_from_slice(first));
        });
    dx
}
