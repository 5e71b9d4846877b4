//! Kernels that the compiler vectorises for the CPU at hand: chosen at run time, so that a portable binary is a fast one.
//!
//! In: a closure of plain Rust over bytes. Out: the same closure compiled for the baseline, for AVX2 and for AVX-512.
//! Invariant: one source is the specification and every path. Floats are single operations that are never contracted, so all
//! paths give the same bytes (tests beside the kernels).

use pulp::{Arch, NullaryFnOnce};

/// Which instructions kernels are compiled for. The default is the best that this CPU has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lanes(Arch);

/// The proof that a CPU has AVX2, which its instructions are called through; never there on other machines.
#[cfg(target_arch = "x86_64")]
pub type Avx2 = pulp::x86::V3;
/// The proof that a CPU has AVX2, which its instructions are called through; never there on other machines.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy, Debug)]
pub enum Avx2 {}

struct Inlined<F>(F);

impl<R, F: FnMut() -> R> NullaryFnOnce for Inlined<F> {
    type Output = R;

    #[inline(always)]
    fn call(mut self) -> R {
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

    /// Whether [`Lanes::run_with`] hands out a proof of AVX2.
    pub fn has_avx2(self) -> bool {
        self.run_with(|cpu| cpu.is_some())
    }

    /// Runs `kernel`; write it as `#[inline(always)] || ...`, and all that it calls likewise.
    #[inline(always)]
    pub fn run<R>(self, kernel: impl FnMut() -> R) -> R {
        self.0.dispatch(Inlined(kernel))
    }

    /// Likewise, for a kernel with AVX2 instructions of its own in it: it is handed the proof that the CPU has them. The compiler knows
    /// whether, so that a `match` on it costs nothing. Never more than AVX2: what surrounds such a kernel is not faster with
    /// wider registers (the JPEG decoder took 4 % longer on Zen 4).
    #[inline(always)]
    pub fn run_with<R>(self, mut kernel: impl FnMut(Option<Avx2>) -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        let cpu = match self.0 {
            Arch::V4(cpu) => Some(*cpu),
            Arch::V3(cpu) => Some(cpu),
            _ => None,
        };
        #[cfg(target_arch = "x86_64")]
        if let Some(cpu) = cpu {
            return cpu.vectorize(Inlined(
                #[inline(always)]
                || kernel(Some(cpu)),
            ));
        }
        Arch::Scalar.dispatch(Inlined(
            #[inline(always)]
            || kernel(None),
        ))
    }
}
