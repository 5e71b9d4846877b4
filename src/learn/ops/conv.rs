//! Convolution on the CPU, forward and the input's gradient, as gathered products (see [`super::gather`]).
//!
//! In and out: contiguous slices in NHWC; channels are the lanes. A few samples at a time are padded into a scratch that stays
//! in cache. What Winograd's algorithm does with fewer products goes to [`super::winograd`]. The input gradient of a strided
//! convolution falls apart into stride x stride convolutions of stride 1, one a phase, so no product with zero is computed.
//! Invariant: chunks depend on shapes alone and are added in order, so that any number of threads gives the same bits.

use super::{
    ConvArgs, buffers, conv_weight,
    gather::{Block, Lanes, Product},
    winograd,
};
use pulp::Arch;
use rayon::prelude::*;

/// Pixels that a chunk of samples has at least: enough to use a panel well, few enough to keep many cores busy.
const CHUNK_PIXELS: usize = 256;
/// Chunks that there should be, where there are few pixels.
const CHUNKS: usize = 16;
/// Pixels that fill the tiles of a product.
const CHUNK_PIXELS_LEAST: usize = 48;
/// Pixels whose sums are held together, a multiple of a tile's rows, however many they are.
const PIXEL_BLOCK: usize = 192;

/// Sizes of one convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConvShape {
    /// Samples.
    pub(super) n: usize,
    /// Input channels, height, width.
    pub(super) input: [usize; 3],
    /// Output channels, height, width.
    pub(super) output: [usize; 3],
    /// Kernel height and width.
    pub(super) kernel: [usize; 2],
    /// Stride and padding.
    pub(super) args: ConvArgs,
}

impl ConvShape {
    /// # Panics
    /// When the shapes contradict each other: a network that was put together wrongly.
    pub(super) fn new(x: &[usize], weight: &[usize], args: ConvArgs) -> Self {
        let (&[n, h, w, cin], &[cout, wcin, kh, kw]) = (x, weight) else {
            panic!(
                "convolution of a map of rank {} and a kernel of rank {}",
                x.len(),
                weight.len()
            )
        };
        assert_eq!(cin, wcin, "the map has {cin} channels, the kernel {wcin}");
        let output = [cout, args.output(h, kh), args.output(w, kw)];
        Self {
            n,
            input: [cin, h, w],
            output,
            kernel: [kh, kw],
            args,
        }
    }

    /// Place of a kernel's value in `[Cout, Cin, Kh, Kw]`; `at` counts over the kernel's area.
    pub(super) fn place(&self, output: usize, input: usize, at: usize) -> usize {
        (output * self.input[0] + input) * self.kernel[0] * self.kernel[1] + at
    }
}

/// Bytes that the operations of a convolution keep between steps beside its maps: packed weights, and the sums of its kernel's
/// gradient, of which each part of the batch may have its own. `pixels`: of all images' outputs.
pub(crate) fn workspace([inputs, outputs]: [usize; 2], kernel: usize, stride: usize, pixels: usize) -> u64 {
    let winograd = kernel == 3 && stride == 1 && winograd::takes([inputs, outputs]);
    let taps = if winograd { winograd::POINTS } else { kernel * kernel };
    let bytes = 4 * taps * inputs * outputs;
    if winograd {
        return ((1 + winograd::parts(bytes)) * bytes + winograd::scratch([inputs, outputs])) as u64;
    }
    ((1 + conv_weight::parts(pixels)) * bytes) as u64
}

pub(super) fn volume(dims: [usize; 3]) -> usize {
    dims.iter().product()
}

/// Zeros around each image `[H, W, C]` (`dims` are C, H, W), by axis: (before, after).
#[derive(Clone, Copy, Debug)]
pub(super) struct Border {
    pub(super) dims: [usize; 3],
    rows: (usize, usize),
    columns: (usize, usize),
}

impl Border {
    pub(super) fn padded(&self) -> [usize; 3] {
        let [c, h, w] = self.dims;
        [c, h + self.rows.0 + self.rows.1, w + self.columns.0 + self.columns.1]
    }

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.padded() == self.dims
    }

    /// Floats that the samples in `source` take with their borders; none where they are read as they are.
    pub(super) fn length(&self, source: &[f32]) -> usize {
        if self.is_empty() {
            0
        } else {
            source.len() / volume(self.dims) * volume(self.padded())
        }
    }

    /// Copies the samples in `source` with their borders; borrows them where there is no border.
    pub(super) fn apply<'a>(&self, source: &'a [f32], padded: &'a mut [f32]) -> &'a [f32] {
        let ([c, h, w], [_, _, pw]) = (self.dims, self.padded());
        if self.is_empty() {
            return source;
        }
        padded.fill(0.0);
        let samples = padded.chunks_exact_mut(volume(self.padded()));
        for (from, to) in source.chunks_exact(h * w * c).zip(samples) {
            let rows = to.chunks_exact_mut(pw * c).skip(self.rows.0);
            for (from, to) in from.chunks_exact(w * c).zip(rows) {
                to[self.columns.0 * c..][..w * c].copy_from_slice(from);
            }
        }
        padded
    }
}

/// A convolution of stride 1 over gathered pixels: which pixels, which taps, which weights, and where the results go.
struct Phase {
    /// Base of each pixel in a padded sample.
    pixels: Vec<u32>,
    /// Pixel of an output image that each is; all in order where there is no list.
    places: Option<Vec<u32>>,
    /// Offset of each tap.
    taps: Vec<u32>,
    /// Weights by block of output channels, `[taps, width]`.
    panels: Vec<(Block, Vec<f32>)>,
}

/// `out[N, Ho, Wo, Cout] = x * weight`.
pub(super) fn forward(arch: Arch, x: &[f32], weight: &[f32], shape: ConvShape) -> Vec<f32> {
    if let Some(plan) = winograd::Plan::forward(&shape) {
        let weight = |tap, input, output| weight[shape.place(output, input, tap)];
        return winograd::convolve(arch, x, weight, &plan);
    }
    direct(arch, x, weight, shape)
}

/// [`forward`] with one product a tap.
pub(super) fn direct(arch: Arch, x: &[f32], weight: &[f32], shape: ConvShape) -> Vec<f32> {
    let (border, pixels, taps) = forward_gather(&shape);
    let cin = shape.input[0];
    let panels = pack(arch, shape.output[0], taps.len(), |channel, tap| {
        weight[shape.place(channel, tap % cin, tap / cin)]
    });
    let phase = Phase {
        pixels,
        places: None,
        taps,
        panels,
    };
    run(arch, x, border, vec![phase], shape.output)
}

/// Borders, pixel bases and tap offsets (row, column, channel) of the forward convolution; the weight gradient gathers by the
/// same lists.
pub(super) fn forward_gather(shape: &ConvShape) -> (Border, Vec<u32>, Vec<u32>) {
    let ConvArgs { stride, padding } = shape.args;
    let border = Border {
        dims: shape.input,
        rows: (padding, padding),
        columns: (padding, padding),
    };
    let [c, _, pw] = border.padded();
    let ([_, ho, wo], [kh, kw]) = (shape.output, shape.kernel);
    let pixels = (0..ho)
        .flat_map(|i| (0..wo).map(move |j| ((i * pw + j) * stride * c) as u32))
        .collect();
    let taps = (0..kh)
        .flat_map(|i| (0..kw * c).map(move |j| (i * pw * c + j) as u32))
        .collect();
    (border, pixels, taps)
}

/// Weights as lanes: block by block of the `channels` that come out, `[taps, width]`.
fn pack(
    arch: Arch,
    channels: usize,
    taps: usize,
    weight: impl Fn(usize, usize) -> f32 + Sync,
) -> Vec<(Block, Vec<f32>)> {
    let blocks = Lanes::of(arch).blocks(channels).into_iter();
    let mut panels: Vec<_> = blocks.map(|block| (block, buffers::take(taps * block.width))).collect();
    panels.par_iter_mut().for_each(|(block, panel)| {
        for (tap, lanes) in panel.chunks_exact_mut(block.width).enumerate() {
            for (lane, value) in lanes.iter_mut().enumerate() {
                *value = if lane < block.channels {
                    weight(block.first + lane, tap)
                } else {
                    0.0
                };
            }
        }
    });
    panels
}

/// Runs all phases over the batch, a few samples at a time.
fn run(arch: Arch, source: &[f32], border: Border, phases: Vec<Phase>, output: [usize; 3]) -> Vec<f32> {
    let (sample_in, sample_out) = (volume(border.dims), volume(output));
    let length = source.len() / sample_in * sample_out;
    // A stride that jumps over the kernel leaves pixels that no tap reaches.
    let all = phases.iter().all(|phase| !phase.taps.is_empty());
    let mut out = if all {
        buffers::take(length)
    } else {
        buffers::zeros(length)
    };
    let pixels = length / output[0];
    let samples = CHUNK_PIXELS
        .min(pixels.div_ceil(CHUNKS))
        .max(CHUNK_PIXELS_LEAST)
        .div_ceil(output[1] * output[2]);
    out.par_chunks_mut(samples * sample_out)
        .zip(source.par_chunks(samples * sample_in))
        .for_each(|(out, source)| {
            buffers::with([border.length(source)], |[padded]| {
                let source = border.apply(source, padded);
                let stride = volume(border.padded()) as u32;
                for phase in &phases {
                    phase.run(arch, source, stride, out, output);
                }
            });
        });
    let panels = phases.into_iter().flat_map(|phase| phase.panels);
    panels.for_each(|(_, panel)| buffers::give(panel));
    out
}

impl Phase {
    /// Convolves the padded samples in `source` (a sample every `stride` floats) into their share of the output.
    fn run(&self, arch: Arch, source: &[f32], stride: u32, out: &mut [f32], output: [usize; 3]) {
        if self.taps.is_empty() {
            return;
        }
        let samples = (out.len() / volume(output)) as u32;
        let rows: Vec<u32> = (0..samples)
            .flat_map(|s| self.pixels.iter().map(move |p| p + s * stride))
            .collect();
        let Some(places) = &self.places else {
            let rows = rows.chunks(PIXEL_BLOCK).zip(out.chunks_mut(PIXEL_BLOCK * output[0]));
            return rows.for_each(|(rows, out)| self.product(arch, source, rows, out, output[0]));
        };
        let image = output[1] * output[2];
        let places = (0..samples as usize).flat_map(|s| places.iter().map(move |&p| s * image + p as usize));
        let places: Vec<usize> = places.collect();
        buffers::with([PIXEL_BLOCK.min(rows.len()) * output[0]], |[sums]| {
            for (rows, places) in rows.chunks(PIXEL_BLOCK).zip(places.chunks(PIXEL_BLOCK)) {
                let sums = &mut sums[..rows.len() * output[0]];
                self.product(arch, source, rows, sums, output[0]);
                for (&place, sums) in places.iter().zip(sums.chunks_exact(output[0])) {
                    out[place * output[0]..][..output[0]].copy_from_slice(sums);
                }
            }
        });
    }

    /// `out[pixel][channel]` of some pixels.
    fn product(&self, arch: Arch, source: &[f32], rows: &[u32], out: &mut [f32], channels: usize) {
        for (block, panel) in &self.panels {
            Product {
                source,
                rows,
                cols: &self.taps,
                panel,
                panel_pitch: block.width,
                block: *block,
                out: &mut out[block.first..],
                pitch: channels,
                add: false,
            }
            .run_in_slices(arch);
        }
    }
}

/// Gradient of the input, `[N, H, W, Cin]`, from that of the output.
///
/// `dx[h] = sum_k g[(h + padding - k) / stride] w[k]` over the taps k that divide: they depend on h mod stride alone.
pub(super) fn input_grad(arch: Arch, grad: &[f32], weight: &[f32], shape: ConvShape) -> Vec<f32> {
    if let Some(plan) = winograd::Plan::input_grad(&shape) {
        // The kernel turned round, its channels exchanged.
        let weight = |tap, input, output| weight[shape.place(input, output, 8 - tap)];
        return winograd::convolve(arch, grad, weight, &plan);
    }
    let ([cout, ho, wo], [cin, h, w], [kh, kw]) = (shape.output, shape.input, shape.kernel);
    let rows = Axis::new(h, ho, kh, shape.args);
    let columns = Axis::new(w, wo, kw, shape.args);
    let border = Border {
        dims: shape.output,
        rows: rows.border,
        columns: columns.border,
    };
    let pw = border.padded()[2];
    let mut phases = Vec::new();
    for row in &rows.phases {
        for column in &columns.phases {
            let pair = |from: &[usize], to: &[usize], pitch: usize, size: usize| -> Vec<u32> {
                from.iter()
                    .flat_map(|i| to.iter().map(move |j| ((i * pitch + j) * size) as u32))
                    .collect()
            };
            let kernel: Vec<(usize, usize)> = row
                .taps
                .iter()
                .flat_map(|a| {
                    column
                        .taps
                        .iter()
                        .map(move |b| (a.0 * kw + b.0, (a.1 * pw + b.1) * cout))
                })
                .collect();
            let taps: Vec<u32> = kernel
                .iter()
                .flat_map(|(_, offset)| (0..cout).map(move |c| (c + offset) as u32))
                .collect();
            let panels = pack(arch, cin, taps.len(), |channel, tap| {
                weight[shape.place(tap % cout, channel, kernel[tap / cout].0)]
            });
            phases.push(Phase {
                pixels: pair(&row.bases(), &column.bases(), pw, cout),
                places: (shape.args.stride > 1).then(|| pair(&row.places, &column.places, w, 1)),
                taps,
                panels,
            });
        }
    }
    run(arch, grad, border, phases, shape.input)
}

/// One axis of the input gradient.
struct Axis {
    /// Zeros that the output gradient needs before and after.
    border: (usize, usize),
    phases: Vec<AxisPhase>,
}

/// The positions `h = phase, phase + stride, ...` and the taps that reach them.
struct AxisPhase {
    places: Vec<usize>,
    /// (tap, its offset in the padded gradient).
    taps: Vec<(usize, usize)>,
}

impl AxisPhase {
    fn bases(&self) -> Vec<usize> {
        (0..self.places.len()).collect()
    }
}

impl Axis {
    fn new(input: usize, output: usize, kernel: usize, ConvArgs { stride, padding }: ConvArgs) -> Self {
        let lowest = (padding as isize - (kernel as isize - 1)).div_euclid(stride as isize);
        let highest = (input - 1 + padding) / stride;
        let before = (-lowest).max(0) as usize;
        let phases = (0..stride.min(input)).map(|phase| AxisPhase {
            places: (phase..input).step_by(stride).collect(),
            taps: (0..kernel)
                .filter(|tap| (phase + padding + kernel * stride - tap).is_multiple_of(stride))
                .map(|tap| {
                    let offset = (phase as isize + padding as isize - tap as isize).div_euclid(stride as isize);
                    (tap, (offset + before as isize) as usize)
                })
                .collect(),
        });
        Self {
            border: (before, (highest + 1).saturating_sub(output)),
            phases: phases.collect(),
        }
    }
}
