//! Passes over `[rows, channels]`, some vectors of channels at a time: what belongs to a channel stays in registers.

use super::gather::Lanes;
use pulp::{Arch, Simd, WithSimd};

/// A pass over rows; it knows their values, and is told which channels.
pub(super) trait Pass {
    /// Channels `first..first + width` of all rows, in `V` vectors; `WHOLE`: which `width` fills. To be `#[inline(always)]`, and
    /// without closures around vectors: only so is it compiled for the instruction set.
    fn strip<S: Simd, const V: usize, const WHOLE: bool>(&mut self, simd: S, first: usize, width: usize);
}

/// Runs a pass over all channels.
pub(super) fn run(arch: Arch, channels: usize, pass: impl Pass) {
    struct Strips<P>(Lanes, usize, P);
    impl<P: Pass> WithSimd for Strips<P> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(lanes, channels, mut pass) = self;
            let mut first = 0;
            while first < channels {
                let block = lanes.block(first, channels);
                match (block.vectors, block.channels == block.width) {
                    (4, true) => pass.strip::<S, 4, true>(simd, first, block.channels),
                    (2, true) => pass.strip::<S, 2, true>(simd, first, block.channels),
                    (1, true) => pass.strip::<S, 1, true>(simd, first, block.channels),
                    (4, false) => pass.strip::<S, 4, false>(simd, first, block.channels),
                    (2, false) => pass.strip::<S, 2, false>(simd, first, block.channels),
                    _ => pass.strip::<S, 1, false>(simd, first, block.channels),
                }
                first += block.width;
            }
        }
    }
    arch.dispatch(Strips(Lanes::of(arch), channels, pass));
}

/// A row's channels of a strip; zeros in lanes without a channel.
#[inline(always)]
pub(super) fn load<S: Simd, const V: usize, const WHOLE: bool>(simd: S, row: &[f32]) -> [S::f32s; V] {
    let mut vectors = [simd.splat_f32s(0.0); V];
    if WHOLE {
        vectors.copy_from_slice(&S::as_simd_f32s(row).0[..V]);
    } else {
        for (vector, row) in vectors.iter_mut().zip(row.chunks(S::F32_LANES)) {
            *vector = simd.partial_load_f32s(row);
        }
    }
    vectors
}

/// [`load`] the other way.
#[inline(always)]
pub(super) fn store<S: Simd, const V: usize, const WHOLE: bool>(simd: S, row: &mut [f32], vectors: [S::f32s; V]) {
    if WHOLE {
        S::as_mut_simd_f32s(row).0[..V].copy_from_slice(&vectors);
    } else {
        for (vector, row) in vectors.into_iter().zip(row.chunks_mut(S::F32_LANES)) {
            simd.partial_store_f32s(row, vector);
        }
    }
}
