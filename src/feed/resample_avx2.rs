//! The passes of [`super::resample`] with AVX2: the same integers, so the same bytes.
//!
//! Pixels are multiplied two taps at a time: bytes widened to pairs of 16 bits, times a pair of weights, into sums of 32 bits.
//! Columns: four taps of one pixel in a register, its first two channels in the lower half. Rows: 64 bytes of a row at once.

use super::resample::{Axis, Pixels};
use crate::data::simd::Avx2;
use pulp::cast;
use std::arch::x86_64::{__m128i, __m256i};

/// Whether four output pixels fit, and each window into its row.
pub fn takes_columns(from: Pixels<'_>, axis: &Axis) -> bool {
    axis.starts.len() >= 4 && axis.taps % 4 == 0 && from.width >= axis.taps
}

/// Whether 64 bytes fit into a row, and each window into the columns.
pub fn takes_rows(from: Pixels<'_>, axis: &Axis) -> bool {
    from.width >= 16 && axis.taps % 2 == 0 && from.height >= axis.taps
}

/// Four taps of four channels -> pairs of taps: channels 0 and 1 in the lower half, 2 and 3 in the upper one.
const PAIRS: [i8; 32] = {
    let mut pairs = [-1; 32];
    let mut i = 0;
    while i < 16 {
        let (channel, tap) = (i / 4, i % 4);
        pairs[2 * i] = (4 * tap + channel) as i8;
        i += 1;
    }
    pairs
};

/// See [`super::resample::columns`].
#[inline(always)]
pub fn columns(cpu: Avx2, from: Pixels<'_>, axis: &Axis, out: &mut [u8]) {
    match axis.taps {
        4 => columns_of::<1>(cpu, from, axis, out),
        8 => columns_of::<2>(cpu, from, axis, out),
        12 => columns_of::<3>(cpu, from, axis, out),
        _ => columns_of::<0>(cpu, from, axis, out),
    }
}

/// For windows of `GROUPS` groups of four taps; 0 stands for any number.
#[inline(always)]
fn columns_of<const GROUPS: usize>(cpu: Avx2, from: Pixels<'_>, axis: &Axis, out: &mut [u8]) {
    let outputs = axis.starts.len();
    let mut y = 0;
    while y < from.height {
        // The last two rows may be made twice.
        let at = if from.height >= 2 { y.min(from.height - 2) } else { y };
        let out = &mut out[at * 4 * outputs..];
        if from.height >= 2 {
            let (a, b) = out.split_at_mut(4 * outputs);
            let to = [a, &mut b[..4 * outputs]];
            row_columns::<GROUPS, 2>(cpu, [from.row(at), from.row(at + 1)], axis, to);
        } else {
            row_columns::<GROUPS, 1>(cpu, [from.row(at)], axis, [out]);
        }
        y += 2;
    }
}

/// Some rows at once: they share the loads of the weights.
#[inline(always)]
fn row_columns<const GROUPS: usize, const ROWS: usize>(
    cpu: Avx2,
    rows: [&[u8]; ROWS],
    axis: &Axis,
    out: [&mut [u8]; ROWS],
) {
    let groups = if GROUPS == 0 { axis.taps / 4 } else { GROUPS };
    let outputs = axis.starts.len();
    let weights = &axis.weights.as_chunks::<4>().0[..outputs * groups];
    let mut x = 0;
    while x < outputs {
        // The last four may overlap those before them.
        let at = x.min(outputs - 4);
        let starts: [u32; 4] = *axis.starts[at..].first_chunk().expect("four are left");
        let weights = &weights[at * groups..][..4 * groups];
        let mut sums = [[cpu.avx._mm256_setzero_si256(); 4]; ROWS];
        for i in 0..4 {
            let made = window::<ROWS>(cpu, rows, starts[i], &weights[i * groups..][..groups], axis.precision);
            for r in 0..ROWS {
                sums[r][i] = made[r];
            }
        }
        for r in 0..ROWS {
            let pixels: [u8; 16] = four_pixels(cpu, sums[r], axis.precision);
            out[r][4 * at..][..16].copy_from_slice(&pixels);
        }
        x += 4;
    }
}

/// The sums of one output pixel: two for each channel, the even and the odd pairs of taps.
#[inline(always)]
fn window<const ROWS: usize>(
    cpu: Avx2,
    rows: [&[u8]; ROWS],
    start: u32,
    weights: &[[i16; 4]],
    precision: u32,
) -> [__m256i; ROWS] {
    let half = 1_i64 << (precision - 1);
    let mut sums = [cpu.avx._mm256_set1_epi64x(half); ROWS];
    let (start, len) = (4 * start as usize, 16 * weights.len());
    let mut pixels = [&rows[0][..0]; ROWS];
    for r in 0..ROWS {
        pixels[r] = &rows[r][start..start + len];
    }
    for (g, &weights) in weights.iter().enumerate() {
        let weights = cpu.avx._mm256_set1_epi64x(cast(weights));
        for r in 0..ROWS {
            let four: [u8; 16] = *pixels[r][16 * g..].first_chunk().expect("a group of taps");
            let four = cpu.avx2._mm256_broadcastsi128_si256(cast::<_, __m128i>(four));
            let pairs = cpu.avx2._mm256_shuffle_epi8(four, cast(PAIRS));
            sums[r] = cpu
                .avx2
                ._mm256_add_epi32(sums[r], cpu.avx2._mm256_madd_epi16(pairs, weights));
        }
    }
    sums
}

/// The sums of four output pixels, added up, shifted down and clamped.
#[inline(always)]
fn four_pixels(cpu: Avx2, sums: [__m256i; 4], precision: u32) -> [u8; 16] {
    let avx2 = cpu.avx2;
    let bits = cpu.avx._mm256_set1_epi32(precision as i32);
    let a = avx2._mm256_srav_epi32(avx2._mm256_hadd_epi32(sums[0], sums[1]), bits);
    let b = avx2._mm256_srav_epi32(avx2._mm256_hadd_epi32(sums[2], sums[3]), bits);
    let words = avx2._mm256_packs_epi32(a, b);
    let bytes: [__m128i; 2] = cast(avx2._mm256_packus_epi16(words, words));
    // In each half two channels of four pixels.
    cast(cpu.sse2._mm_unpacklo_epi16(bytes[0], bytes[1]))
}

/// See [`super::resample::rows`].
#[inline(always)]
pub fn rows(cpu: Avx2, from: Pixels<'_>, axis: &Axis, out: &mut [u8]) {
    let (bytes, pairs) = (4 * from.width, axis.taps / 2);
    let weights = axis.weights.as_chunks::<2>().0.chunks_exact(pairs);
    for ((&start, weights), out) in axis.starts.iter().zip(weights).zip(out.chunks_exact_mut(bytes)) {
        let rows = &from.bytes[start as usize * from.stride..];
        let mut x = 0;
        while x < bytes {
            // The last 64 may overlap those before them.
            let at = x.min(bytes - 64);
            let made = block(cpu, &rows[at..], from.stride, weights, axis.precision);
            out[at..][..32].copy_from_slice(&made[0]);
            out[at + 32..][..32].copy_from_slice(&made[1]);
            x += 64;
        }
    }
}

/// 64 bytes of a row of the output.
#[inline(always)]
fn block(cpu: Avx2, mut rows: &[u8], stride: usize, weights: &[[i16; 2]], precision: u32) -> [[u8; 32]; 2] {
    let half = cpu.avx._mm256_set1_epi32(1 << (precision - 1));
    let (mut left, mut right) = ([half; 4], [half; 4]);
    for (i, &weights) in weights.iter().enumerate() {
        if i > 0 {
            rows = &rows[2 * stride..];
        }
        let weights = cpu.avx._mm256_set1_epi32(cast(weights));
        let a: [u8; 64] = *rows.first_chunk().expect("64 bytes fit");
        let b: [u8; 64] = *rows[stride..].first_chunk().expect("64 bytes fit");
        let (a, b): ([__m256i; 2], [__m256i; 2]) = (cast(a), cast(b));
        left = add_pairs(cpu, left, a[0], b[0], weights);
        right = add_pairs(cpu, right, a[1], b[1], weights);
    }
    [clamped(cpu, left, precision), clamped(cpu, right, precision)]
}

/// Adds two rows times their weights to the sums of 32 bytes, in the order in which `unpack` leaves them.
#[inline(always)]
fn add_pairs(cpu: Avx2, sums: [__m256i; 4], a: __m256i, b: __m256i, weights: __m256i) -> [__m256i; 4] {
    let (avx2, zero) = (cpu.avx2, cpu.avx._mm256_setzero_si256());
    let (low, high) = (avx2._mm256_unpacklo_epi8(a, b), avx2._mm256_unpackhi_epi8(a, b));
    let pairs = [
        avx2._mm256_unpacklo_epi8(low, zero),
        avx2._mm256_unpackhi_epi8(low, zero),
        avx2._mm256_unpacklo_epi8(high, zero),
        avx2._mm256_unpackhi_epi8(high, zero),
    ];
    [
        avx2._mm256_add_epi32(sums[0], avx2._mm256_madd_epi16(pairs[0], weights)),
        avx2._mm256_add_epi32(sums[1], avx2._mm256_madd_epi16(pairs[1], weights)),
        avx2._mm256_add_epi32(sums[2], avx2._mm256_madd_epi16(pairs[2], weights)),
        avx2._mm256_add_epi32(sums[3], avx2._mm256_madd_epi16(pairs[3], weights)),
    ]
}

/// The sums of 32 bytes, shifted down and clamped, in their own order again.
#[inline(always)]
fn clamped(cpu: Avx2, sums: [__m256i; 4], precision: u32) -> [u8; 32] {
    let avx2 = cpu.avx2;
    let bits = cpu.avx._mm256_set1_epi32(precision as i32);
    let low = avx2._mm256_packs_epi32(
        avx2._mm256_srav_epi32(sums[0], bits),
        avx2._mm256_srav_epi32(sums[1], bits),
    );
    let high = avx2._mm256_packs_epi32(
        avx2._mm256_srav_epi32(sums[2], bits),
        avx2._mm256_srav_epi32(sums[3], bits),
    );
    cast(avx2._mm256_packus_epi16(low, high))
}
