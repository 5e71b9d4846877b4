//! 3 x 3 convolutions of stride 1 with four times fewer products: Winograd's minimal filtering F(4x4, 3x3).
//!
//! In and out: contiguous slices in NHWC. A tile of 4 x 4 outputs sees 6 x 6 inputs; inputs, kernels and outputs are transformed,
//! and between them stand 36 independent matrix products over channels (see [`super::gather`]). The input gradient is the same
//! convolution with kernels turned round; the kernel's gradient is the transposed algorithm. Tiles may lie across several
//! images of a mosaic, so that sides that no 4 divides cost little.
//! Invariant: chunks depend on shapes alone and are added in order, so that any number of threads gives the same bits.
//! Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 1509.09308.

use super::{
    buffers,
    conv::ConvShape,
    conv_weight::total,
    gather::{Block, Lanes, Product},
    transform::{KernelTransform, Load, Store, kernel_gradients},
};
use pulp::Arch;
use rayon::prelude::*;

/// Points of the transform, over both axes.
pub(super) const POINTS: usize = 36;
/// Outputs of a tile along an axis.
const SIDE: usize = 4;
/// Channels have to be a multiple of this: whole vectors in every instruction set, so that every lane has a channel.
const CHANNELS: usize = 16;
/// A pixel outside of every image: beyond any slice.
const OUTSIDE: u32 = u32::MAX;
/// Bytes of transformed values at a time: most of a second-level cache.
const CHUNK_BYTES: usize = 512 << 10;
/// The same, where each chunk adds to a kernel gradient larger than that cache: the more tiles the fewer times.
const LARGE_CHUNK_BYTES: usize = 8 << 20;
/// Chunks are multiples of this, so that they fill the tiles of the matrix product (6, 8 or 12 rows).
const CHUNK_TILES: usize = 12;
/// Tiles of one task, at least.
const TASK_TILES: usize = 48;

/// Pixels of one tile, as places in the mosaic's images.
#[derive(Clone, Debug)]
pub(super) struct Tile {
    pub(super) inputs: [u32; POINTS],
    pub(super) outputs: [u32; SIDE * SIDE],
}

/// How one convolution is cut into tiles.
pub(super) struct Plan {
    /// Images in the batch.
    n: usize,
    /// Images of a mosaic.
    images: usize,
    /// Its tiles.
    tiles: Vec<Tile>,
    /// Pixels of an input and of an output image.
    pixels: [usize; 2],
    /// Input and output channels.
    channels: [usize; 2],
}

/// Images side by side along one axis, and the tiles over them.
#[derive(Clone, Copy)]
struct Axis {
    images: usize,
    pitch: usize,
    tiles: usize,
    input: usize,
    output: usize,
    padding: usize,
}

impl Axis {
    fn new(input: usize, padding: usize) -> Self {
        let output = input + 2 * padding - 2;
        let pitch = (input + padding).max(output);
        let of = |images: usize| Self {
            images,
            pitch,
            tiles: ((images - 1) * pitch + output).div_ceil(SIDE),
            input,
            output,
            padding,
        };
        // Tiles of four images; the smallest mosaic among equals.
        let cost = |axis: &Self| axis.tiles * 4 / axis.images;
        [1, 2, 4]
            .map(of)
            .into_iter()
            .min_by_key(cost)
            .expect("three candidates")
    }

    /// Image and place of row `at` of the mosaic, of images with `length` rows.
    fn place(&self, at: isize, length: usize) -> Option<[usize; 2]> {
        let at = usize::try_from(at).ok()?;
        let (image, place) = (at / self.pitch, at % self.pitch);
        (image < self.images && place < length).then_some([image, place])
    }
}

impl Plan {
    /// The plan for a convolution, or `None` where the direct way is no dearer.
    pub(super) fn forward(shape: &ConvShape) -> Option<Self> {
        let [cin, h, w] = shape.input;
        Self::new(shape, [cin, shape.output[0]], [h, w], shape.args.padding)
    }

    /// The plan for its input gradient: a convolution too.
    pub(super) fn input_grad(shape: &ConvShape) -> Option<Self> {
        let [cout, h, w] = shape.output;
        Self::new(
            shape,
            [cout, shape.input[0]],
            [h, w],
            2usize.checked_sub(shape.args.padding)?,
        )
    }

    fn new(shape: &ConvShape, channels: [usize; 2], [h, w]: [usize; 2], padding: usize) -> Option<Self> {
        let fits = shape.kernel == [3, 3] && shape.args.stride == 1 && padding <= 2 && h.min(w) + 2 * padding > 2;
        if !takes(channels) || !fits {
            return None;
        }
        let (rows, columns) = (Axis::new(h, padding), Axis::new(w, padding));
        let (images, tiles) = (rows.images * columns.images, rows.tiles * columns.tiles);
        // Products against the direct convolution's; the transforms cost as well.
        if 10 * tiles * POINTS > 7 * images * 9 * rows.output * columns.output {
            return None;
        }
        Some(Self {
            n: shape.n,
            images,
            tiles: tiles_of(rows, columns),
            pixels: [h * w, rows.output * columns.output],
            channels,
        })
    }

    /// Images of one task: whole mosaics.
    fn task(&self) -> usize {
        TASK_TILES.div_ceil(self.tiles.len()) * self.images
    }

    /// Chunks of the tiles of `images` images: first tile and how many.
    fn chunks(&self, images: usize, bytes: usize) -> impl Iterator<Item = (usize, usize)> {
        let tiles = images.div_ceil(self.images) * self.tiles.len();
        let fit = bytes / (4 * POINTS * self.channels.iter().sum::<usize>());
        let chunk = (fit / CHUNK_TILES).max(2) * CHUNK_TILES;
        (0..tiles)
            .step_by(chunk)
            .map(move |first| (first, chunk.min(tiles - first)))
    }
}

/// Whether channels are whole vectors.
pub(super) fn takes(channels: [usize; 2]) -> bool {
    channels.iter().all(|c| c.is_multiple_of(CHANNELS))
}

fn tiles_of(rows: Axis, columns: Axis) -> Vec<Tile> {
    let pixel = |y: isize, x: isize, height: usize, width: usize| {
        let ([i, y], [j, x]) = (rows.place(y, height)?, columns.place(x, width)?);
        Some((((i * columns.images + j) * height + y) * width + x) as u32)
    };
    let start = |tile: usize, axis: Axis| (tile * SIDE) as isize - axis.padding as isize;
    let tile = |ty: usize, tx: usize| Tile {
        inputs: std::array::from_fn(|i| {
            let (y, x) = (
                start(ty, rows) + (i / 6) as isize,
                start(tx, columns) + (i % 6) as isize,
            );
            pixel(y, x, rows.input, columns.input).unwrap_or(OUTSIDE)
        }),
        outputs: std::array::from_fn(|i| {
            let (y, x) = (ty * SIDE + i / SIDE, tx * SIDE + i % SIDE);
            pixel(y as isize, x as isize, rows.output, columns.output).unwrap_or(OUTSIDE)
        }),
    };
    (0..rows.tiles)
        .flat_map(|ty| (0..columns.tiles).map(move |tx| tile(ty, tx)))
        .collect()
}

/// `[N, H, W, Cin]` -> `[N, Ho, Wo, Cout]`. `weight(tap, input, output)`: the kernel.
pub(super) fn convolve(
    arch: Arch,
    x: &[f32],
    weight: impl Fn(usize, usize, usize) -> f32 + Sync,
    plan: &Plan,
) -> Vec<f32> {
    let [inputs, outputs] = plan.channels;
    let panels = pack(arch, plan.channels, weight);
    let images = plan.task();
    let mut out = buffers::take(plan.n * plan.pixels[1] * outputs);
    out.par_chunks_mut(images * plan.pixels[1] * outputs)
        .zip(x.par_chunks(images * plan.pixels[0] * inputs))
        .for_each(|(out, x)| {
            for (first, tiles) in plan.chunks(x.len() / (plan.pixels[0] * inputs), CHUNK_BYTES) {
                buffers::with([tiles * POINTS * inputs, tiles * POINTS * outputs], |[v, m]| {
                    load(arch, x, plan, first, v);
                    multiply(arch, v, &panels, m, plan.channels);
                    arch.dispatch(Store {
                        m,
                        tiles: &plan.tiles,
                        first,
                        pixels: plan.images * plan.pixels[1],
                        channels: outputs,
                        out,
                    });
                });
            }
        });
    panels.into_iter().for_each(|panel| buffers::give(panel.values));
    out
}

/// Input transform of a chunk: `v[point][tile][channel]`.
fn load(arch: Arch, x: &[f32], plan: &Plan, first: usize, v: &mut [f32]) {
    arch.dispatch(Load::<false> {
        x,
        tiles: &plan.tiles,
        first,
        pixels: plan.images * plan.pixels[0],
        channels: plan.channels[0],
        out: v,
    });
}

/// One product a point: `m[point] = v[point] panels[point]`.
fn multiply(arch: Arch, v: &[f32], panels: &[Panel], m: &mut [f32], [inputs, outputs]: [usize; 2]) {
    let tiles = v.len() / (POINTS * inputs);
    let rows: Vec<u32> = (0..tiles).map(|t| (t * inputs) as u32).collect();
    let cols: Vec<u32> = (0..inputs as u32).collect();
    m.par_chunks_mut(tiles * outputs)
        .zip(v.par_chunks(tiles * inputs))
        .enumerate()
        .for_each(|(point, (m, v))| {
            for Panel { block, values } in panels {
                let values = &values[point * inputs * block.width..][..inputs * block.width];
                Product {
                    source: v,
                    rows: &rows,
                    cols: &cols,
                    panel: values,
                    panel_pitch: block.width,
                    block: *block,
                    out: &mut m[block.first..],
                    pitch: outputs,
                    add: false,
                }
                .run_in_slices(arch);
            }
        });
}

/// Transformed kernels of a block of output channels, `[point][input][lane]`.
struct Panel {
    block: Block,
    values: Vec<f32>,
}

fn pack(arch: Arch, [inputs, outputs]: [usize; 2], weight: impl Fn(usize, usize, usize) -> f32 + Sync) -> Vec<Panel> {
    let panel = |block: Block| Panel {
        block,
        values: buffers::take(POINTS * inputs * block.width),
    };
    let mut panels: Vec<_> = Lanes::of(arch).blocks(outputs).into_iter().map(panel).collect();
    panels.par_iter_mut().for_each(|Panel { block, values }| {
        buffers::with([9 * inputs * block.width], |[taps]| {
            for (input, taps) in taps.chunks_exact_mut(9 * block.width).enumerate() {
                for (tap, lanes) in taps.chunks_exact_mut(block.width).enumerate() {
                    for (lane, value) in lanes.iter_mut().enumerate() {
                        *value = weight(tap, input, block.first + lane);
                    }
                }
            }
            arch.dispatch(KernelTransform {
                taps,
                width: block.width,
                out: values,
            });
        });
    });
    panels
}

/// Bytes of a chunk's transformed kernel gradient below which several parts of the batch sum their own.
const PART_BYTES: usize = 1 << 20;
/// Such parts, at most.
const PARTS: usize = 8;

/// Parts for a kernel gradient that takes `bytes` transformed.
pub(super) fn parts(bytes: usize) -> usize {
    if bytes <= PART_BYTES { PARTS } else { 1 }
}

/// Bytes of transformed values that the kernel's gradient takes at a time, for sums of so many bytes.
fn chunk_bytes(sums: usize) -> usize {
    if sums <= PART_BYTES {
        CHUNK_BYTES
    } else {
        LARGE_CHUNK_BYTES
    }
}

/// Bytes of a layer's other buffers: transformed values, and the kernel's gradient by tap.
pub(super) fn scratch([inputs, outputs]: [usize; 2]) -> usize {
    chunk_bytes(4 * POINTS * inputs * outputs) + 4 * 9 * inputs * outputs
}

/// Gradient of the kernel as `[tap][Cin][Cout]`; `plan` is the forward one.
pub(super) fn weight_grad(arch: Arch, x: &[f32], grad: &[f32], plan: &Plan) -> Vec<f32> {
    let [inputs, outputs] = plan.channels;
    let length = POINTS * inputs * outputs;
    let mosaics = plan.n.div_ceil(plan.images);
    let parts = parts(4 * length).min(mosaics).max(1);
    let images = mosaics.div_ceil(parts).max(1) * plan.images;
    let mut sums = buffers::zeros(parts * length);
    sums.par_chunks_mut(length)
        .zip(x.par_chunks(images * plan.pixels[0] * inputs))
        .zip(grad.par_chunks(images * plan.pixels[1] * outputs))
        .for_each(|((sums, x), grad)| add_weight_grad(arch, x, grad, plan, sums));
    let mut kernel = buffers::take(9 * inputs * outputs);
    kernel_gradients(arch, total(&mut sums, length), &mut kernel);
    buffers::give(sums);
    kernel
}

/// Adds the gradient of some images to `sums`, `[point][input][output]`.
fn add_weight_grad(arch: Arch, x: &[f32], grad: &[f32], plan: &Plan, sums: &mut [f32]) {
    let [inputs, outputs] = plan.channels;
    let bytes = chunk_bytes(4 * sums.len());
    for (first, tiles) in plan.chunks(x.len() / (plan.pixels[0] * inputs), bytes) {
        buffers::with([tiles * POINTS * inputs, tiles * POINTS * outputs], |[v, m]| {
            let gradients = Load::<true> {
                x: grad,
                tiles: &plan.tiles,
                first,
                pixels: plan.images * plan.pixels[1],
                channels: outputs,
                out: m,
            };
            rayon::join(|| load(arch, x, plan, first, v), || arch.dispatch(gradients));
            multiply_transposed(arch, v, m, sums, plan.channels);
        });
    }
}

/// `sums[point] += v[point]^T m[point]`.
fn multiply_transposed(arch: Arch, v: &[f32], m: &[f32], sums: &mut [f32], [inputs, outputs]: [usize; 2]) {
    let tiles = v.len() / (POINTS * inputs);
    let rows: Vec<u32> = (0..inputs as u32).collect();
    let cols: Vec<u32> = (0..tiles).map(|t| (t * inputs) as u32).collect();
    let blocks = Lanes::of(arch).blocks(outputs);
    sums.par_chunks_mut(inputs * outputs)
        .zip(v.par_chunks(tiles * inputs))
        .zip(m.par_chunks(tiles * outputs))
        .for_each(|((sums, v), m)| {
            for block in &blocks {
                Product {
                    source: v,
                    rows: &rows,
                    cols: &cols,
                    panel: &m[block.first..],
                    panel_pitch: outputs,
                    block: *block,
                    out: &mut sums[block.first..],
                    pitch: outputs,
                    add: true,
                }
                .run(arch);
            }
        });
}
