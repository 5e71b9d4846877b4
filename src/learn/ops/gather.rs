//! Gathered matrix product: the one inner loop under convolution, its input gradient and its weight gradient.
//!
//! `out[r][l] += sum_j source[rows[r] + cols[j]] * panel[j][l]`. The left matrix is never built: its element (r, j) lies in the
//! (padded) image at a row's base plus a tap's offset, and is broadcast over the lanes l (channels). So no im2col copy, and
//! stride, padding and kernel size are nothing but index lists.
//! Invariant: an output's sum runs over j in order, in blocks that depend on shapes alone; tiling and threads change no bit.

use pulp::{Arch, Simd, WithSimd};

/// Floats in the widest tile of any instruction set below: 6 rows of 4 vectors of 16.
const TILE: usize = 384;

/// Rows of a panel's slice: 256 rows of 64 lanes are 64 KB.
const SLICE: usize = 256;

/// Floats in a vector, and most vectors in a panel row that leave registers for the sums, in an instruction set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    vector: usize,
    most: usize,
}

impl Lanes {
    pub(super) fn of(arch: Arch) -> Self {
        struct Ask;
        impl WithSimd for Ask {
            type Output = Lanes;
            #[inline(always)]
            fn with_simd<S: Simd>(self, _simd: S) -> Lanes {
                Lanes {
                    vector: S::F32_LANES,
                    most: if S::REGISTER_COUNT >= 32 { 4 } else { 2 },
                }
            }
        }
        arch.dispatch(Ask)
    }

    /// The block of `channels` that begins at `first`: 4, 2 or 1 vectors, of which only the last may have lanes without a channel.
    #[inline(always)]
    pub(super) fn block(self, first: usize, channels: usize) -> Block {
        let left = (channels - first).div_ceil(self.vector);
        let vectors = if left >= 4 && self.most == 4 { 4 } else { left.min(2) };
        let width = vectors * self.vector;
        Block {
            first,
            channels: width.min(channels - first),
            width,
            vectors,
        }
    }

    /// All blocks of `channels`.
    pub(super) fn blocks(self, channels: usize) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        while let first = blocks.last().map_or(0, |block| block.first + block.width)
            && first < channels
        {
            blocks.push(self.block(first, channels));
        }
        blocks
    }
}

/// A run of channels that one panel covers; lanes beyond `channels` hold zeros.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) first: usize,
    pub(super) channels: usize,
    pub(super) width: usize,
    pub(super) vectors: usize,
}

/// One product. `panel`: a row a column, every `panel_pitch` floats, of which `block.width` are read. `out`: a row every `pitch`
/// floats, of which `block.channels` are overwritten or added to.
pub(super) struct Product<'a> {
    pub(super) source: &'a [f32],
    pub(super) rows: &'a [u32],
    pub(super) cols: &'a [u32],
    pub(super) panel: &'a [f32],
    pub(super) panel_pitch: usize,
    pub(super) block: Block,
    pub(super) out: &'a mut [f32],
    pub(super) pitch: usize,
    pub(super) add: bool,
}

impl Product<'_> {
    pub(super) fn run(self, arch: Arch) {
        assert!(self.cols.len() <= self.panel.len().div_ceil(self.panel_pitch));
        assert!(self.block.channels <= self.pitch && (self.rows.len().max(1) - 1) * self.pitch <= self.out.len());
        arch.dispatch(self);
    }

    /// [`Self::run`], a slice of the panel after the other: for panels that would not stay in the cache.
    pub(super) fn run_in_slices(self, arch: Arch) {
        let slices = self.cols.chunks(SLICE).zip(self.panel.chunks(SLICE * self.panel_pitch));
        for (k, (cols, panel)) in slices.enumerate() {
            Product {
                cols,
                panel,
                out: &mut *self.out,
                add: self.add || k > 0,
                ..self
            }
            .run(arch);
        }
    }
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Sums in registers, with room for what is broadcast: the compiler loads a column whole before it multiplies.
        match (self.block.vectors, S::REGISTER_COUNT >= 32) {
            (4, _) => product::<S, 6, 4>(simd, self),
            (2, true) => product::<S, 8, 2>(simd, self),
            (2, false) => product::<S, 6, 2>(simd, self),
            _ => product::<S, 12, 1>(simd, self),
        }
    }
}

#[inline(always)]
fn product<S: Simd, const R: usize, const V: usize>(simd: S, p: Product<'_>) {
    let (width, channels) = (p.block.width, p.block.channels);
    for (rows, out) in p.rows.chunks(R).zip(p.out.chunks_mut(R * p.pitch)) {
        if channels == width
            && let Ok(rows) = <&[u32; R]>::try_from(rows)
        {
            tile::<S, R, V>(
                simd,
                p.source,
                rows,
                p.cols,
                (p.panel, p.panel_pitch),
                (out, p.pitch),
                p.add,
            );
            continue;
        }
        // The last rows: repeat one to fill the tile, keep what is theirs. Lanes without a channel: likewise.
        let filled: [u32; R] = std::array::from_fn(|r| rows[r.min(rows.len() - 1)]);
        let mut scratch = [0.0; TILE];
        let scratch = &mut scratch[..R * width];
        tile::<S, R, V>(
            simd,
            p.source,
            &filled,
            p.cols,
            (p.panel, p.panel_pitch),
            (scratch, width),
            false,
        );
        for (out, new) in out
            .chunks_mut(p.pitch)
            .zip(scratch.chunks_exact(width))
            .take(rows.len())
        {
            for (out, new) in out[..channels].iter_mut().zip(new) {
                *out = if p.add { *out + *new } else { *new };
            }
        }
    }
}

#[inline(always)]
fn tile<S: Simd, const R: usize, const V: usize>(
    simd: S,
    source: &[f32],
    rows: &[u32; R],
    cols: &[u32],
    (panel, panel_pitch): (&[f32], usize),
    (out, pitch): (&mut [f32], usize),
    add: bool,
) {
    let rows = rows.map(|r| r as usize);
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for (lanes, &col) in panel.chunks(panel_pitch).zip(cols) {
        let (lanes, _) = S::as_simd_f32s(&lanes[..V * S::F32_LANES]);
        let lanes: [S::f32s; V] = std::array::from_fn(|v| lanes[v]);
        let source = &source[col as usize..];
        for r in 0..R {
            let value = simd.splat_f32s(source[rows[r]]);
            for v in 0..V {
                sums[r][v] = simd.mul_add_e_f32s(value, lanes[v], sums[r][v]);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        let (out, _) = S::as_mut_simd_f32s(&mut out[r * pitch..]);
        let out = &mut out[..V];
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = if add { simd.add_f32s(*out, sum) } else { sum };
        }
    }
}
