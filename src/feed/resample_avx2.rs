//! The passes of [`super::resample`] with AVX2: the same integers, so the same bytes.
//!
//! Pixels are multiplied two taps at a time: bytes widened to pairs of 16 bits, times a pair of weights, into sums of 32 bits.
//! Columns: a pixel of one row in each half of a register, four rows at once. Rows: 64 bytes of a row at once. What is left over at
//! the end is made together with what is before it, a second time. Windows of the usual lengths have a loop of their own.

use super::resample::{Axis, Pixels};
use crate::data::simd::Avx2;
use pulp::cast;
use std::arch::x86_64::{__m128i, __m256i};

/// Whether four output pixels fit, four rows, and each window into its row.
pub fn takes_columns(from: Pixels<'_>, axis: &Axis) -> bool {
    let taps = axis.taps;
    axis.starts.len() >= 4 && from.height >= 4 && taps >= 4 && from.width >= taps
}

/// Whether 64 bytes fit into a row, and each window into the columns.
pub fn takes_rows(from: Pixels<'_>, axis: &Axis) -> bool {
    from.width >= 16 && from.height >= axis.taps
}

/// Of four pixels those at `tap` and `tap + 1` -> pairs of 16 bits, one for each channel, in both halves.
const fn pairs(tap: usize) -> [i8; 32] {
    let mut pairs = [-1; 32];
    let mut i = 0;
    while i < 16 {
        pairs[2 * i] = (4 * (tap + i % 2) + i / 2 % 4) as i8;
        i += 1;
    }
    pairs
}

const FIRST: [i8; 32] = pairs(0);
const LAST: [i8; 32] = pairs(2);

/// What all sums of an axis begin with and end with.
#[derive(Clone, Copy)]
struct Point {
    cpu: Avx2,
    half: __m256i,
    bits: __m128i,
}

impl Point {
    #[inline(always)]
    fn new(cpu: Avx2, axis: &Axis) -> Self {
        Self {
            cpu,
            half: cpu.avx._mm256_set1_epi32(1 << (axis.precision - 1)),
            bits: cpu.sse2._mm_cvtsi32_si128(axis.precision as i32),
        }
    }

    /// `sum` plus two taps times their weights.
    #[inline(always)]
    fn add(self, sum: __m256i, pairs: __m256i, weights: __m256i) -> __m256i {
        let avx2 = self.cpu.avx2;
        avx2._mm256_add_epi32(sum, avx2._mm256_madd_epi16(pairs, weights))
    }

    /// Sums shifted down and clamped: in each half four bytes of each in turn.
    #[inline(always)]
    fn bytes(self, sums: [__m256i; 4]) -> __m256i {
        let (avx2, bits) = (self.cpu.avx2, self.bits);
        let low = avx2._mm256_packs_epi32(
            avx2._mm256_sra_epi32(sums[0], bits),
            avx2._mm256_sra_epi32(sums[1], bits),
        );
        let high = avx2._mm256_packs_epi32(
            avx2._mm256_sra_epi32(sums[2], bits),
            avx2._mm256_sra_epi32(sums[3], bits),
        );
        avx2._mm256_packus_epi16(low, high)
    }
}

/// See [`super::resample::columns`].
#[inline(always)]
pub fn columns(cpu: Avx2, from: Pixels<'_>, axis: &Axis, out: &mut [u8]) {
    match axis.taps {
        4 => columns_of::<4>(cpu, from, axis, out),
        6 => columns_of::<6>(cpu, from, axis, out),
        8 => columns_of::<8>(cpu, from, axis, out),
        10 => columns_of::<10>(cpu, from, axis, out),
        _ => columns_of::<0>(cpu, from, axis, out),
    }
}

/// For windows of `TAPS` taps; 0 stands for any even number from four on.
#[inline(always)]
fn columns_of<const TAPS: usize>(cpu: Avx2, from: Pixels<'_>, axis: &Axis, out: &mut [u8]) {
    let (point, bytes) = (Point::new(cpu, axis), 4 * axis.starts.len());
    let mut y = 0;
    while y < from.height {
        let at = y.min(from.height - 4);
        let rows = [from.row(at), from.row(at + 1), from.row(at + 2), from.row(at + 3)];
        let (upper, lower) = out[at * bytes..][..4 * bytes].split_at_mut(2 * bytes);
        let ((a, b), (c, d)) = (upper.split_at_mut(bytes), lower.split_at_mut(bytes));
        four_rows::<TAPS>(point, rows, axis, [a, b, c, d]);
        y += 4;
    }
}

#[inline(always)]
fn four_rows<const TAPS: usize>(point: Point, rows: [&[u8]; 4], axis: &Axis, out: [&mut [u8]; 4]) {
    let pairs = if TAPS == 0 { axis.taps / 2 } else { TAPS / 2 };
    let outputs = axis.starts.len();
    let weights = &axis.weights.as_chunks::<2>().0[..outputs * pairs];
    let [a, b, c, d] = out;
    let mut x = 0;
    while x < outputs {
        let at = x.min(outputs - 4);
        let starts: [u32; 4] = *axis.starts[at..].first_chunk().expect("four are left");
        let weights = &weights[at * pairs..][..4 * pairs];
        let (mut upper, mut lower) = ([point.half; 4], [point.half; 4]);
        for i in 0..4 {
            let weights = &weights[i * pairs..][..pairs];
            [upper[i], lower[i]] = window(point, rows, starts[i], weights);
        }
        let (upper, lower): ([[u8; 16]; 2], [[u8; 16]; 2]) = (cast(point.bytes(upper)), cast(point.bytes(lower)));
        a[4 * at..][..16].copy_from_slice(&upper[0]);
        b[4 * at..][..16].copy_from_slice(&upper[1]);
        c[4 * at..][..16].copy_from_slice(&lower[0]);
        d[4 * at..][..16].copy_from_slice(&lower[1]);
        x += 4;
    }
}

/// The sums of one output pixel of each row: of the upper two rows and of the lower two.
#[inline(always)]
fn window(point: Point, rows: [&[u8]; 4], start: u32, weights: &[[i16; 2]]) -> [__m256i; 2] {
    let cpu = point.cpu;
    let (first, len) = (4 * start as usize, 8 * weights.len());
    let rows = [
        &rows[0][first..first + len],
        &rows[1][first..first + len],
        &rows[2][first..first + len],
        &rows[3][first..first + len],
    ];
    let (first, last): (__m256i, __m256i) = (cast(FIRST), cast(LAST));
    let (mut upper, mut lower) = (point.half, point.half);
    let (fours, rest) = weights.as_chunks::<2>();
    for (g, four) in fours.iter().enumerate() {
        let (a, b) = (
            two_rows(cpu, rows[0], rows[1], 16 * g),
            two_rows(cpu, rows[2], rows[3], 16 * g),
        );
        let weights = cpu.avx._mm256_set1_epi32(cast(four[0]));
        upper = point.add(upper, cpu.avx2._mm256_shuffle_epi8(a, first), weights);
        lower = point.add(lower, cpu.avx2._mm256_shuffle_epi8(b, first), weights);
        let weights = cpu.avx._mm256_set1_epi32(cast(four[1]));
        upper = point.add(upper, cpu.avx2._mm256_shuffle_epi8(a, last), weights);
        lower = point.add(lower, cpu.avx2._mm256_shuffle_epi8(b, last), weights);
    }
    if let [weights] = rest {
        // The last two of the last four pixels.
        let at = len - 16;
        let (a, b) = (two_rows(cpu, rows[0], rows[1], at), two_rows(cpu, rows[2], rows[3], at));
        let weights = cpu.avx._mm256_set1_epi32(cast(*weights));
        upper = point.add(upper, cpu.avx2._mm256_shuffle_epi8(a, last), weights);
        lower = point.add(lower, cpu.avx2._mm256_shuffle_epi8(b, last), weights);
    }
    [upper, lower]
}

/// Four pixels of two rows, from byte `at` on.
#[inline(always)]
fn two_rows(cpu: Avx2, a: &[u8], b: &[u8], at: usize) -> __m256i {
    let a: [u8; 16] = *a[at..].first_chunk().expect("a window is four pixels long");
    let b: [u8; 16] = *b[at..].first_chunk().expect("a window is four pixels long");
    let a = cpu.avx._mm256_castsi128_si256(cast::<_, __m128i>(a));
    cpu.avx2._mm256_inserti128_si256::<1>(a, cast::<_, __m128i>(b))
}

/// See [`super::resample::rows`].
#[inline(always)]
pub fn rows(cpu: Avx2, from: Pixels<'_>, axis: &Axis, out: &mut [u8]) {
    match axis.taps {
        2 => rows_of::<2>(cpu, from, axis, out),
        4 => rows_of::<4>(cpu, from, axis, out),
        6 => rows_of::<6>(cpu, from, axis, out),
        8 => rows_of::<8>(cpu, from, axis, out),
        _ => any_rows(cpu, from, axis, out),
    }
}

/// For windows of `TAPS` taps.
#[inline(always)]
fn rows_of<const TAPS: usize>(cpu: Avx2, from: Pixels<'_>, axis: &Axis, out: &mut [u8]) {
    let (point, bytes) = (Point::new(cpu, axis), 4 * from.width);
    let weights = axis.weights.as_chunks::<TAPS>().0;
    for ((&start, weights), out) in axis.starts.iter().zip(weights).zip(out.chunks_exact_mut(bytes)) {
        let mut rows = [&from.bytes[..0]; TAPS];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = &from.bytes[(start as usize + i) * from.stride..][..bytes];
        }
        let weights = weights.as_chunks::<2>().0;
        let mut x = 0;
        while x < bytes {
            let at = x.min(bytes - 64);
            let (mut left, mut right) = ([point.half; 4], [point.half; 4]);
            for i in 0..TAPS / 2 {
                let (a, b) = (&rows[2 * i][at..at + 64], &rows[2 * i + 1][at..at + 64]);
                [left, right] = add_pairs(point, [left, right], a, b, weights[i]);
            }
            store(point, [left, right], &mut out[at..at + 64]);
            x += 64;
        }
    }
}

/// For windows of any even length.
#[inline(always)]
fn any_rows(cpu: Avx2, from: Pixels<'_>, axis: &Axis, out: &mut [u8]) {
    let (point, bytes, pairs) = (Point::new(cpu, axis), 4 * from.width, axis.taps / 2);
    let weights = axis.weights.as_chunks::<2>().0.chunks_exact(pairs);
    for ((&start, weights), out) in axis.starts.iter().zip(weights).zip(out.chunks_exact_mut(bytes)) {
        let mut x = 0;
        while x < bytes {
            let at = x.min(bytes - 64);
            let mut y = start as usize;
            let (mut left, mut right) = ([point.half; 4], [point.half; 4]);
            for &weights in weights {
                let (a, b) = (&from.row(y)[at..at + 64], &from.row(y + 1)[at..at + 64]);
                [left, right] = add_pairs(point, [left, right], a, b, weights);
                y += 2;
            }
            store(point, [left, right], &mut out[at..at + 64]);
            x += 64;
        }
    }
}

/// Adds 64 bytes of two rows times their weights.
#[inline(always)]
fn add_pairs(point: Point, sums: [[__m256i; 4]; 2], a: &[u8], b: &[u8], weights: [i16; 2]) -> [[__m256i; 4]; 2] {
    let weights = point.cpu.avx._mm256_set1_epi32(cast(weights));
    let (a, b) = (a.as_chunks::<32>().0, b.as_chunks::<32>().0);
    [
        add_32(point, sums[0], cast(a[0]), cast(b[0]), weights),
        add_32(point, sums[1], cast(a[1]), cast(b[1]), weights),
    ]
}

/// The same for 32 bytes; the sums lie in the order in which `unpack` leaves bytes, and `pack` restores.
#[inline(always)]
fn add_32(point: Point, sums: [__m256i; 4], a: __m256i, b: __m256i, weights: __m256i) -> [__m256i; 4] {
    let (avx2, zero) = (point.cpu.avx2, point.cpu.avx._mm256_setzero_si256());
    let (low, high) = (avx2._mm256_unpacklo_epi8(a, b), avx2._mm256_unpackhi_epi8(a, b));
    [
        point.add(sums[0], avx2._mm256_unpacklo_epi8(low, zero), weights),
        point.add(sums[1], avx2._mm256_unpackhi_epi8(low, zero), weights),
        point.add(sums[2], avx2._mm256_unpacklo_epi8(high, zero), weights),
        point.add(sums[3], avx2._mm256_unpackhi_epi8(high, zero), weights),
    ]
}

#[inline(always)]
fn store(point: Point, sums: [[__m256i; 4]; 2], out: &mut [u8]) {
    let out = out.as_chunks_mut::<32>().0;
    out[0] = cast(point.bytes(sums[0]));
    out[1] = cast(point.bytes(sums[1]));
}
