//! Kernels that the compiler vectorises for the CPU at hand: chosen at run time, so that a portable binary is a fast one.
//!
//! In: a closure of plain Rust over bytes. Out: the same closure compiled for the baseline, for AVX2 and for AVX-512.
//! Invariant: one source is the specification and every path. Floats are single operations that are never contracted, so all
//! paths give the same bytes (tests beside the kernels).

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
