//! What the passes' kernels have in common: a conversion and a loop that the compiler vectorises.
//!
//! In and out: values of planes. Invariant: all is inlined into a kernel that [`crate::data::simd::Lanes`] runs, so that it is
//! compiled for the CPU at hand.
#![allow(unsafe_code)]

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
