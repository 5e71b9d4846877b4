//! Gathered matrix product: the one inner loop under convolution, its input gradient and its weight gradient.
//!
//! `out[r][l] += sum_j source[rows[r] + cols[j]] * panel[j][l]`. The left matrix is never built: its element (r, j) lies in the
//! (padded) image at a row's base plus a tap's offset, and is broadcast over the lanes l (channels). So no im2col copy, and
//! stride, padding and kernel size are nothing but index lists.
//! Invariant: an output's sum runs over j in order, in blocks that depend on shapes alone; tiling and threads change no bit.

use pulp::{Arch, Simd, WithSimd};

/// Floats in the widest tile of any instruction set below: 6 rows of 4 vectors of 16.
const TILE: usize = 384;

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

    /// Cuts `channels` into blocks that fill 4, 2 or 1 vectors: (first channel, channels, width in floats).
    pub(super) fn blocks(self, channels: usize) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut first = 0;
        while first < channels {
            let left = (channels - first).div_ceil(self.vector);
            let vectors = if left > 2 && self.most == 4 { 4 } else { left.min(2) };
            let width = vectors * self.vector;
            blocks.push(Block {
                first,
                channels: width.min(channels - first),
                width,
                vectors,
            });
            first += width;
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
    vectors: usize,
}

/// One product. `panel`: `cols.len() x block.width`; `out`: `rows.len() x block.width`, overwritten or added to.
pub(super) struct Product<'a> {
    pub(super) source: &'a [f32],
    pub(super) rows: &'a [u32],
    pub(super) cols: &'a [u32],
    pub(super) panel: &'a [f32],
    pub(super) block: Block,
    pub(super) out: &'a mut [f32],
    pub(super) add: bool,
}

impl Product<'_> {
    pub(super) fn run(self, arch: Arch) {
        assert_eq!(self.panel.len(), self.cols.len() * self.block.width);
        assert_eq!(self.out.len(), self.rows.len() * self.block.width);
        arch.dispatch(self);
    }
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Sums in registers: 24 of 32, or 12 of 16.
        match (self.block.vectors, S::REGISTER_COUNT >= 32) {
            (4, _) => product::<S, 6, 4>(simd, self),
            (2, true) => product::<S, 12, 2>(simd, self),
            (2, false) => product::<S, 6, 2>(simd, self),
            _ => product::<S, 12, 1>(simd, self),
        }
    }
}

#[inline(always)]
fn product<S: Simd, const R: usize, const V: usize>(simd: S, p: Product<'_>) {
    let stride = p.block.width;
    for (rows, out) in p.rows.chunks(R).zip(p.out.chunks_mut(R * stride)) {
        if let Ok(rows) = <&[u32; R]>::try_from(rows) {
            tile::<S, R, V>(simd, p.source, rows, p.cols, p.panel, out, p.add);
        } else {
            // The last rows: repeat one to fill the tile, keep what is theirs.
            let filled: [u32; R] = std::array::from_fn(|r| rows[r.min(rows.len() - 1)]);
            let mut scratch = [0.0; TILE];
            let scratch = &mut scratch[..R * stride];
            tile::<S, R, V>(simd, p.source, &filled, p.cols, p.panel, scratch, false);
            for (out, new) in out.iter_mut().zip(scratch) {
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
    panel: &[f32],
    out: &mut [f32],
    add: bool,
) {
    let rows = rows.map(|r| r as usize);
    let (panel, _) = S::as_simd_f32s(panel);
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for (lanes, &col) in panel.chunks_exact(V).zip(cols) {
        let lanes: [S::f32s; V] = std::array::from_fn(|v| lanes[v]);
        let source = &source[col as usize..];
        for r in 0..R {
            let value = simd.splat_f32s(source[rows[r]]);
            for v in 0..V {
                sums[r][v] = simd.mul_add_e_f32s(value, lanes[v], sums[r][v]);
            }
        }
    }
    let (out, _) = S::as_mut_simd_f32s(out);
    for (out, sums) in out.chunks_exact_mut(V).zip(sums) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = if add { simd.add_f32s(*out, sum) } else { sum };
        }
    }
}
