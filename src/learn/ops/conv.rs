//! Convolution on the CPU, forward and the input's gradient, as gathered products (see [`super::gather`]).
//!
//! In and out: contiguous slices in NCHW. A few samples at a time are padded into a scratch that stays in cache; channels are
//! the lanes. The input gradient of a strided convolution falls apart into stride x stride convolutions of stride 1, one a
//! phase, so no product with zero is computed.
//! Invariant: chunks depend on shapes alone and are added in order, so that any number of threads gives the same bits.

use super::{
    ConvArgs,
    gather::{Block, Lanes, Product},
};
use pulp::Arch;
use rayon::prelude::*;

/// Pixels that a chunk of samples has at least: enough to use a panel well, few enough to keep many cores busy.
const CHUNK_PIXELS: usize = 256;
/// Pixels whose sums are held together, a multiple of the tile's 6 or 12 rows.
const PIXEL_BLOCK: usize = 192;
/// Taps (input channels x kernel) a panel slice holds: 256 rows of 64 lanes are 64 KB.
const TAP_BLOCK: usize = 256;
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
        let (&[n, cin, h, w], &[cout, wcin, kh, kw]) = (x, weight) else {
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

    pub(super) fn taps(&self) -> usize {
        self.input[0] * self.kernel[0] * self.kernel[1]
    }
}

pub(super) fn volume(dims: [usize; 3]) -> usize {
    dims.iter().product()
}

/// Zeros around each plane of `[C, H, W]`, by axis: (before, after).
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

    /// Copies the samples in `source` with their borders; borrows them where there is no border.
    pub(super) fn apply<'a>(&self, source: &'a [f32], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let ([_, h, w], [_, ph, pw]) = (self.dims, self.padded());
        if (h, w) == (ph, pw) {
            return source;
        }
        scratch.clear();
        scratch.resize(source.len() / (h * w) * ph * pw, 0.0);
        for (from, to) in source.chunks_exact(h * w).zip(scratch.chunks_exact_mut(ph * pw)) {
            let rows = to.chunks_exact_mut(pw).skip(self.rows.0);
            for (from, to) in from.chunks_exact(w).zip(rows) {
                to[self.columns.0..][..w].copy_from_slice(from);
            }
        }
        scratch
    }
}

/// A convolution of stride 1 over gathered pixels: which pixels, which taps, which weights, and where the results go.
struct Phase {
    /// Base of each pixel in a padded sample.
    pixels: Vec<u32>,
    /// Place of each pixel in an output plane.
    places: Vec<u32>,
    /// Whether the pixels are all of the plane, in order.
    whole: bool,
    /// Offset of each tap.
    taps: Vec<u32>,
    /// Weights by block of output channels, `[taps, width]`.
    panels: Vec<(Block, Vec<f32>)>,
}

/// `out[N, Cout, Ho, Wo] = x * weight`.
pub(super) fn forward(arch: Arch, x: &[f32], weight: &[f32], shape: ConvShape) -> Vec<f32> {
    let (border, pixels, taps) = forward_gather(&shape);
    let places = (0..pixels.len() as u32).collect();
    let taps_count = taps.len();
    let panels = pack(arch, shape.output[0], taps_count, |channel, tap| {
        weight[channel * taps_count + tap]
    });
    run(
        arch,
        x,
        border,
        &[Phase {
            pixels,
            places,
            whole: true,
            taps,
            panels,
        }],
        shape.output,
    )
}

/// Borders, pixel bases and tap offsets of the forward convolution; the weight gradient gathers by the same lists.
pub(super) fn forward_gather(shape: &ConvShape) -> (Border, Vec<u32>, Vec<u32>) {
    let ConvArgs { stride, padding } = shape.args;
    let border = Border {
        dims: shape.input,
        rows: (padding, padding),
        columns: (padding, padding),
    };
    let [_, ph, pw] = border.padded();
    let ([_, ho, wo], [kh, kw]) = (shape.output, shape.kernel);
    let pixels = (0..ho)
        .flat_map(|i| (0..wo).map(move |j| ((i * pw + j) * stride) as u32))
        .collect();
    let tap = |c: usize, i: usize, j: usize| (c * ph * pw + i * pw + j) as u32;
    let taps = (0..shape.input[0])
        .flat_map(|c| (0..kh).flat_map(move |i| (0..kw).map(move |j| tap(c, i, j))))
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
    let pack = |block: Block| {
        let mut panel = vec![0.0; taps * block.width];
        for (tap, lanes) in panel.chunks_exact_mut(block.width).enumerate() {
            for (lane, value) in lanes[..block.channels].iter_mut().enumerate() {
                *value = weight(block.first + lane, tap);
            }
        }
        (block, panel)
    };
    Lanes::of(arch).blocks(channels).into_par_iter().map(pack).collect()
}

/// Runs all phases over the batch, a few samples at a time.
fn run(arch: Arch, source: &[f32], border: Border, phases: &[Phase], output: [usize; 3]) -> Vec<f32> {
    let (sample_in, sample_out) = (volume(border.dims), volume(output));
    let mut out = vec![0.0; source.len() / sample_in * sample_out];
    let samples = CHUNK_PIXELS.div_ceil(output[1] * output[2]);
    out.par_chunks_mut(samples * sample_out)
        .zip(source.par_chunks(samples * sample_in))
        .for_each(|(out, source)| {
            let mut scratch = Vec::new();
            let source = border.apply(source, &mut scratch);
            let stride = volume(border.padded()) as u32;
            for phase in phases {
                phase.run(arch, source, stride, out, output);
            }
        });
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
        let mut sums = Vec::new();
        for (index, rows) in rows.chunks(PIXEL_BLOCK).enumerate() {
            for (block, panel) in &self.panels {
                sums.resize(rows.len() * block.width, 0.0);
                let slices = self.taps.chunks(TAP_BLOCK).zip(panel.chunks(TAP_BLOCK * block.width));
                for (k, (cols, panel)) in slices.enumerate() {
                    Product {
                        source,
                        rows,
                        cols,
                        panel,
                        block: *block,
                        out: &mut sums,
                        add: k > 0,
                    }
                    .run(arch);
                }
                self.store(&sums, index * PIXEL_BLOCK, *block, out, output);
            }
        }
    }

    /// Transposes sums `[pixels, width]` into planes; `first` counts pixels over samples.
    fn store(&self, sums: &[f32], first: usize, block: Block, out: &mut [f32], output: [usize; 3]) {
        let (plane, pixels) = (output[1] * output[2], self.pixels.len());
        let (mut done, count) = (0, sums.len() / block.width);
        while done < count {
            let (sample, pixel) = ((first + done) / pixels, (first + done) % pixels);
            let run = (count - done).min(pixels - pixel);
            let places = &self.places[pixel..pixel + run];
            let sums = &sums[done * block.width..(done + run) * block.width];
            for channel in 0..block.channels {
                let to = &mut out[(sample * output[0] + block.first + channel) * plane..][..plane];
                let values = sums[channel..].iter().step_by(block.width);
                if self.whole {
                    to[pixel..pixel + run]
                        .iter_mut()
                        .zip(values)
                        .for_each(|(to, &value)| *to = value);
                } else {
                    places
                        .iter()
                        .zip(values)
                        .for_each(|(&place, &value)| to[place as usize] = value);
                }
            }
            done += run;
        }
    }
}

/// Gradient of the input, `[N, Cin, H, W]`, from that of the output.
///
/// `dx[h] = sum_k g[(h + padding - k) / stride] w[k]` over the taps k that divide: they depend on h mod stride alone.
pub(super) fn input_grad(arch: Arch, grad: &[f32], weight: &[f32], shape: ConvShape) -> Vec<f32> {
    let ([cout, ho, wo], [cin, h, w], [kh, kw]) = (shape.output, shape.input, shape.kernel);
    let rows = Axis::new(h, ho, kh, shape.args);
    let columns = Axis::new(w, wo, kw, shape.args);
    let border = Border {
        dims: shape.output,
        rows: rows.border,
        columns: columns.border,
    };
    let [_, ph, pw] = border.padded();
    let mut phases = Vec::new();
    for row in &rows.phases {
        for column in &columns.phases {
            let pair = |from: &[usize], to: &[usize], pitch: usize| -> Vec<u32> {
                from.iter()
                    .flat_map(|i| to.iter().map(move |j| (i * pitch + j) as u32))
                    .collect()
            };
            let kernel: Vec<(usize, usize)> = row
                .taps
                .iter()
                .flat_map(|a| column.taps.iter().map(move |b| (a.0 * kw + b.0, a.1 * pw + b.1)))
                .collect();
            let taps = (0..cout)
                .flat_map(|c| kernel.iter().map(move |(_, offset)| (c * ph * pw + offset) as u32))
                .collect::<Vec<_>>();
            let panels = pack(arch, cin, taps.len(), |channel, tap| {
                let (c, (k, _)) = (tap / kernel.len(), kernel[tap % kernel.len()]);
                weight[(c * cin + channel) * kh * kw + k]
            });
            let pixels = pair(&row.bases(), &column.bases(), pw);
            phases.push(Phase {
                pixels,
                places: pair(&row.places, &column.places, w),
                whole: shape.args.stride == 1,
                taps,
                panels,
            });
        }
    }
    run(arch, grad, border, &phases, shape.input)
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
