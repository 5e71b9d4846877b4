//! The convolution kernel's gradient on the CPU, a gathered product too (see [`super::gather`]).
//!
//! In: contiguous maps and output gradients in NHWC. Out: `[Cout, Cin, Kh, Kw]`. The taps are the rows, the pixels are summed
//! over, the output channels are the lanes.
//! Invariant: a fixed number of parts of the batch are summed apart and added in order: threads change no bit.

use super::{
    buffers,
    conv::{Border, ConvShape, forward_gather, volume},
    gather::{Block, Lanes, Product},
    winograd,
};
use pulp::Arch;
use rayon::prelude::*;

/// Parts of the batch that sum their weight gradients apart, at most.
const WEIGHT_PARTS: usize = 8;
/// Pixels below which a part would be too small to be worth its own sums.
const PART_PIXELS: usize = 8192;

/// Parts for a batch with so many output pixels.
pub(super) fn parts(pixels: usize) -> usize {
    (pixels / PART_PIXELS).clamp(1, WEIGHT_PARTS)
}

/// Gradient of the kernel, `[Cout, Cin, Kh, Kw]`.
pub(super) fn weight_grad(arch: Arch, x: &[f32], grad: &[f32], shape: ConvShape) -> Vec<f32> {
    if let Some(plan) = winograd::Plan::forward(&shape) {
        let sums = winograd::weight_grad(arch, x, grad, &plan);
        let kernel = kernel(&sums, &shape);
        buffers::give(sums);
        return kernel;
    }
    let (border, pixels, taps) = forward_gather(&shape);
    let blocks = Lanes::of(arch).blocks(shape.output[0]);
    let (sample_in, sample_out) = (volume(shape.input), volume(shape.output));
    let parts = parts(shape.n * pixels.len());
    let samples = shape.n.div_ceil(parts).max(1);
    let length = taps.len() * shape.output[0];
    let gather = Gather {
        arch,
        border,
        pixels,
        taps,
        blocks,
        channels: shape.output[0],
    };
    let mut sums = buffers::zeros(parts * length);
    sums.par_chunks_mut(length)
        .zip(x.par_chunks(samples * sample_in))
        .zip(grad.par_chunks(samples * sample_out))
        .for_each(|((sums, x), grad)| gather.weight_grad(x, grad, sums));
    let kernel = kernel(total(&mut sums, length), &shape);
    buffers::give(sums);
    kernel
}

/// Adds the parts' sums, each of `length`, in order.
pub(super) fn total(sums: &mut [f32], length: usize) -> &[f32] {
    let (total, parts) = sums.split_at_mut(length);
    for part in parts.chunks_exact(length) {
        total.iter_mut().zip(part).for_each(|(a, b)| *a += b);
    }
    total
}

/// Sums `[Kh, Kw, Cin, Cout]` as a kernel `[Cout, Cin, Kh, Kw]`.
fn kernel(sums: &[f32], shape: &ConvShape) -> Vec<f32> {
    let (cin, area) = (shape.input[0], shape.kernel[0] * shape.kernel[1]);
    // Not one to keep: it leaves for the optimiser.
    let mut kernel = vec![0.0; sums.len()];
    kernel
        .par_chunks_mut(cin * area)
        .enumerate()
        .for_each(|(output, kernel)| {
            for (input, kernel) in kernel.chunks_exact_mut(area).enumerate() {
                for (at, value) in kernel.iter_mut().enumerate() {
                    *value = sums[(at * cin + input) * shape.output[0] + output];
                }
            }
        });
    kernel
}

/// What the weight gradient's chunks share.
struct Gather {
    arch: Arch,
    border: Border,
    pixels: Vec<u32>,
    taps: Vec<u32>,
    blocks: Vec<Block>,
    channels: usize,
}

impl Gather {
    /// Adds the gradient of some samples to `sums`, `[taps, channels]`.
    fn weight_grad(&self, x: &[f32], grad: &[f32], sums: &mut [f32]) {
        // Some hundred pixels at a time: they stay in the second-level cache.
        const PIXELS: usize = 512;
        let (sample_in, padded) = (volume(self.border.dims), volume(self.border.padded()));
        let plane = self.pixels.len();
        let samples = (PIXELS / plane).max(1);
        let chunks = x
            .chunks(samples * sample_in)
            .zip(grad.chunks(samples * self.channels * plane));
        for (x, grad) in chunks {
            let count = grad.len() / (self.channels * plane);
            let all: Vec<u32> = (0..count)
                .flat_map(|s| self.pixels.iter().map(move |p| p + (s * padded) as u32))
                .collect();
            buffers::with([self.border.length(x)], |[border]| {
                let source = self.border.apply(x, border);
                for (cols, grad) in all.chunks(PIXELS).zip(grad.chunks(PIXELS * self.channels)) {
                    self.add(source, cols, grad, sums);
                }
            });
        }
    }

    /// `sums[tap] += sum over pixels of source[tap + pixel] grad[pixel]`, many taps at a time on as many threads as there are.
    fn add(&self, source: &[f32], cols: &[u32], grad: &[f32], sums: &mut [f32]) {
        const TAPS: usize = 48;
        for block in &self.blocks {
            // Whole vectors are read: channels that do not fill them are copied to where they do.
            let whole = block.channels == block.width;
            buffers::with([if whole { 0 } else { cols.len() * block.width }], |[lanes]| {
                let (mut panel, mut panel_pitch) = (&grad[block.first..], self.channels);
                if !whole {
                    lanes.fill(0.0);
                    for (lanes, grad) in lanes
                        .chunks_exact_mut(block.width)
                        .zip(grad.chunks_exact(self.channels))
                    {
                        lanes[..block.channels].copy_from_slice(&grad[block.first..]);
                    }
                    (panel, panel_pitch) = (lanes, block.width);
                }
                self.taps
                    .par_chunks(TAPS)
                    .zip(sums.par_chunks_mut(TAPS * self.channels))
                    .for_each(|(rows, out)| {
                        Product {
                            source,
                            rows,
                            cols,
                            panel,
                            panel_pitch,
                            block: *block,
                            out: &mut out[block.first..],
                            pitch: self.channels,
                            add: true,
                        }
                        .run(self.arch);
                    });
            });
        }
    }
}
