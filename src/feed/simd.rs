//! Kernels that the compiler vectorises for the CPU at hand: chosen at run time, so that a portable binary is a fast one.
//!
//! In: a closure of plain Rust over bytes. Out: the same closure compiled for the baseline, for AVX2 and for AVX-512.
//! Invariant: one source is the specification and every path. Floats are single operations that are never contracted, so all
//! paths give the same bytes (`tests` in `color` and `blur`).
#![allow(unsafe_code)]

use pulp::{Arch, Simd, WithSimd};

/// Which instructions kernels are compiled for. The default is the best that this CPU has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lanes(Arch);

struct Inlined<F>(F);

impl<R, F: FnMut() -> R> WithSimd for Inlined<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        // As `FnMut`: through `FnOnce` a large closure would be called, not inlined, and stay at the baseline.
        (self.0)()
    }
}

impl Lanes {
    /// All that this CPU has, slowest first, with names: for tests and benchmarks.
    pub fn all() -> Vec<(&'static str, Self)> {
        #[cfg(target_arch = "x86_64")]
        {
            let wider = [
                pulp::x86::V3::try_new().map(|simd| ("avx2", Self(Arch::V3(simd)))),
                pulp::x86::V4::try_new().map(|simd| ("avx512", Self(Arch::V4(simd)))),
            ];
            let baseline = [Some(("baseline", Self(Arch::Scalar)))];
            baseline.into_iter().chain(wider).flatten().collect()
        }
        #[cfg(not(target_arch = "x86_64"))]
        vec![("best", Self::default())]
    }

    /// Runs `kernel`; write it as `#[inline(always)] || ...`, and all that it calls likewise.
    #[inline(always)]
    pub fn run<R>(self, kernel: impl FnMut() -> R) -> R {
        self.0.dispatch(Inlined(kernel))
    }
}

/// The integer part of `x`, held within 0..=255; NaN is 0.
///
/// What `x as u8` is, but the compiler vectorises it: its own clamp tells it too late that the range is safe.
#[inline(always)]
pub(super) fn byte(x: f32) -> i32 {
    // In this form each is one instruction, and NaN falls to the second branch.
    let x = if x > 0.0 { x } else { 0.0 };
    let x = if x < 255.0 { x } else { 255.0 };
    // SAFETY: 0 <= x <= 255, whatever it was.
    unsafe { x.to_int_unchecked() }
}

/// Calls `kernel` on blocks of `W` values of three planes of equal length; the last block is filled up with zeros.
///
/// Blocks are local arrays: the compiler knows that they do not overlap, so it vectorises.
#[inline(always)]
pub(super) fn by_blocks<const W: usize>([a, b, c]: [&mut [u8]; 3], kernel: impl Fn([[u8; W]; 3]) -> [[u8; W]; 3]) {
    let ((a, a_rest), (b, b_rest), (c, c_rest)) = (a.as_chunks_mut(), b.as_chunks_mut(), c.as_chunks_mut());
    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
        [*a, *b, *c] = kernel([*a, *b, *c]);
    }
    let rests = [a_rest, b_rest, c_rest];
    let mut last = [[0; W]; 3];
    for (block, rest) in last.iter_mut().zip(&rests) {
        block[..rest.len()].copy_from_slice(rest);
    }
    for (block, rest) in kernel(last).iter().zip(rests) {
        rest.copy_from_slice(&block[..rest.len()]);
    }
}
