//! The convolution kernel's gradient on the CPU, a gathered product too (see [`super::gather`]).
//!
//! In: contiguous maps and output gradients in NCHW. Out: `[Cout, Cin, Kh, Kw]`. The taps are the rows, the pixels are summed
//! over, the output channels are the lanes, for which the gradient is transposed a few hundred pixels at a time.
//! Invariant: a fixed number of parts of the batch are summed apart and added in order: threads change no bit.

use super::{
    conv::{Border, ConvShape, forward_gather, volume},
    gather::{Block, Lanes, Product},
};
use pulp::Arch;
use rayon::prelude::*;

/// Parts of the batch that sum their weight gradients apart, at most.
const WEIGHT_PARTS: usize = 8;
/// Pixels below which a part would be too small to be worth its own sums.
const PART_PIXELS: usize = 8192;

/// Gradient of the kernel, `[Cout, Cin, Kh, Kw]`.
pub(super) fn weight_grad(arch: Arch, x: &[f32], grad: &[f32], shape: ConvShape) -> Vec<f32> {
    let (border, pixels, taps) = forward_gather(&shape);
    let blocks = Lanes::of(arch).blocks(shape.output[0]);
    let width: usize = blocks.iter().map(|b| b.width).sum();
    let (sample_in, sample_out) = (volume(shape.input), volume(shape.output));
    let parts = (shape.n * pixels.len() / PART_PIXELS).clamp(1, WEIGHT_PARTS);
    let samples = shape.n.div_ceil(parts).max(1);
    let gather = Gather {
        arch,
        border,
        pixels,
        taps,
        blocks,
    };
    let sums: Vec<Vec<f32>> = x
        .par_chunks(samples * sample_in)
        .zip(grad.par_chunks(samples * sample_out))
        .map(|(x, grad)| {
            let mut sums = vec![0.0; gather.taps.len() * width];
            gather.weight_grad(x, grad, &mut sums);
            sums
        })
        .collect();
    let total = sums.into_iter().reduce(|mut total, part| {
        total.iter_mut().zip(&part).for_each(|(a, b)| *a += b);
        total
    });
    // No sample, no gradient.
    let total = total.unwrap_or_else(|| vec![0.0; gather.taps.len() * width]);
    gather.kernel(&total, &shape)
}

/// What the weight gradient's chunks share.
struct Gather {
    arch: Arch,
    border: Border,
    pixels: Vec<u32>,
    taps: Vec<u32>,
    blocks: Vec<Block>,
}

impl Gather {
    /// Adds the gradient of some samples to `sums`: by block `[taps, width]`.
    fn weight_grad(&self, x: &[f32], grad: &[f32], sums: &mut [f32]) {
        // Some hundred pixels at a time: their transposed gradient stays in the second-level cache.
        const PIXELS: usize = 512;
        let (sample_in, padded) = (volume(self.border.dims), volume(self.border.padded()));
        let plane = self.pixels.len();
        let channels: usize = self.blocks.iter().map(|b| b.channels).sum();
        let samples = (PIXELS / plane).max(1);
        let (mut scratch, mut lanes) = (Vec::new(), Vec::new());
        for (x, grad) in x
            .chunks(samples * sample_in)
            .zip(grad.chunks(samples * channels * plane))
        {
            let source = self.border.apply(x, &mut scratch);
            let count = grad.len() / (channels * plane);
            let all: Vec<u32> = (0..count)
                .flat_map(|s| self.pixels.iter().map(move |p| p + (s * padded) as u32))
                .collect();
            let step = if count == 1 { PIXELS } else { all.len() };
            for (index, cols) in all.chunks(step).enumerate() {
                let mut rest = &mut *sums;
                for block in &self.blocks {
                    let (mine, others) = rest.split_at_mut(self.taps.len() * block.width);
                    rest = others;
                    transpose(grad, *block, channels, plane, index * step, cols.len(), &mut lanes);
                    self.add(source, cols, &lanes, *block, mine);
                }
            }
        }
    }

    /// `sums[tap] += sum over pixels of source[tap + pixel] lanes[pixel]`, many taps at a time on as many threads as there are.
    fn add(&self, source: &[f32], cols: &[u32], panel: &[f32], block: Block, sums: &mut [f32]) {
        const TAPS: usize = 48;
        self.taps
            .par_chunks(TAPS)
            .zip(sums.par_chunks_mut(TAPS * block.width))
            .for_each(|(rows, out)| {
                Product {
                    source,
                    rows,
                    cols,
                    panel,
                    block,
                    out,
                    add: true,
                }
                .run(self.arch);
            });
    }

    /// Sums by block, `[taps, width]`, as a kernel `[Cout, taps]`.
    fn kernel(&self, sums: &[f32], shape: &ConvShape) -> Vec<f32> {
        let taps = shape.taps();
        let mut kernel = vec![0.0; shape.output[0] * taps];
        let mut rest = sums;
        for block in &self.blocks {
            let (mine, others) = rest.split_at(taps * block.width);
            rest = others;
            for (channel, row) in kernel[block.first * taps..]
                .chunks_exact_mut(taps)
                .take(block.channels)
                .enumerate()
            {
                for (value, lanes) in row.iter_mut().zip(mine.chunks_exact(block.width)) {
                    *value = lanes[channel];
                }
            }
        }
        kernel
    }
}

/// Gradients `[N, C, P]` of a block's channels as lanes `[pixels, width]`, from pixel `first` (counted over samples) on.
fn transpose(
    grad: &[f32],
    block: Block,
    channels: usize,
    plane: usize,
    first: usize,
    count: usize,
    lanes: &mut Vec<f32>,
) {
    lanes.clear();
    lanes.resize(count * block.width, 0.0);
    let mut done = 0;
    while done < count {
        let (sample, pixel) = ((first + done) / plane, (first + done) % plane);
        let run = (count - done).min(plane - pixel);
        let to = &mut lanes[done * block.width..(done + run) * block.width];
        for channel in 0..block.channels {
            let from = &grad[(sample * channels + block.first + channel) * plane + pixel..][..run];
            for (to, &from) in to.chunks_exact_mut(block.width).zip(from) {
                to[channel] = from;
            }
        }
        done += run;
    }
}
