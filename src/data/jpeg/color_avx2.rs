//! YCbCr to RGB with AVX2, sixteen pixels at a time: the same bytes as [`super::color::to_rgbx`], from 16-bit integers.
//!
//! Red and blue: y + (k c + 8191 >> 14) is y plus a rounding multiplication of 2 c, which rounds with 8192; the two differ only where
//! k c = 8192 modulo 16384, and for the two constants no c in -128..=127 gives that. Green has two products and takes 32 bits.

use crate::data::simd::Avx2;
use pulp::cast;
use std::arch::x86_64::{__m128i, __m256i};

/// Converts rows of at least sixteen samples; the last sixteen may overlap those before them.
#[inline(always)]
pub fn to_rgbx(cpu: Avx2, y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    let width = y.len();
    let (cb, cr, out) = (&cb[..width], &cr[..width], &mut out[..4 * width]);
    let mut at = 0;
    while at < width {
        let from = at.min(width - 16);
        let (y, cb, cr) = (wide(cpu, &y[from..]), wide(cpu, &cb[from..]), wide(cpu, &cr[from..]));
        let pixels: [[u8; 32]; 2] = cast(sixteen(cpu, y, cb, cr));
        out[4 * from..][..32].copy_from_slice(&pixels[0]);
        out[4 * from + 32..][..32].copy_from_slice(&pixels[1]);
        at += 16;
    }
}

/// The first sixteen bytes of `row` as 16-bit integers.
#[inline(always)]
fn wide(cpu: Avx2, row: &[u8]) -> __m256i {
    let bytes: [u8; 16] = *row.first_chunk().expect("sixteen are left");
    cpu.avx2._mm256_cvtepu8_epi16(cast::<_, __m128i>(bytes))
}

/// k c, rounded as in the specification, for k as above.
#[inline(always)]
fn product(cpu: Avx2, c: __m256i, k: i16) -> __m256i {
    cpu.avx2
        ._mm256_mulhrs_epi16(cpu.avx2._mm256_add_epi16(c, c), cpu.avx._mm256_set1_epi16(k))
}

/// -11700 cr - 5638 cb, rounded, for eight `pairs` of both.
#[inline(always)]
fn green(cpu: Avx2, pairs: __m256i) -> __m256i {
    let factors = cpu
        .avx
        ._mm256_set1_epi32(i32::from(-11700_i16 as u16) | (-5638_i32) << 16);
    let products = cpu.avx2._mm256_madd_epi16(pairs, factors);
    let sum = cpu.avx2._mm256_add_epi32(products, cpu.avx._mm256_set1_epi32(8191));
    cpu.avx2._mm256_srai_epi32::<14>(sum)
}

#[inline(always)]
fn sixteen(cpu: Avx2, y: __m256i, cb: __m256i, cr: __m256i) -> [__m256i; 2] {
    let (avx, avx2) = (cpu.avx, cpu.avx2);
    let middle = avx._mm256_set1_epi16(128);
    let (cb, cr) = (avx2._mm256_sub_epi16(cb, middle), avx2._mm256_sub_epi16(cr, middle));
    let r = avx2._mm256_add_epi16(y, product(cpu, cr, 22970));
    let b = avx2._mm256_add_epi16(y, product(cpu, cb, 29032));
    let low = green(cpu, avx2._mm256_unpacklo_epi16(cr, cb));
    let high = green(cpu, avx2._mm256_unpackhi_epi16(cr, cb));
    let g = avx2._mm256_add_epi16(y, avx2._mm256_packs_epi32(low, high));
    // Clamped to bytes; in each half eight of red and blue, and of green and 255.
    let rb = avx2._mm256_packus_epi16(r, b);
    let gx = avx2._mm256_packus_epi16(g, avx._mm256_set1_epi16(255));
    let (rg, bx) = (avx2._mm256_unpacklo_epi8(rb, gx), avx2._mm256_unpackhi_epi8(rb, gx));
    let (a, b) = (avx2._mm256_unpacklo_epi16(rg, bx), avx2._mm256_unpackhi_epi16(rg, bx));
    [
        avx2._mm256_permute2x128_si256::<0x20>(a, b),
        avx2._mm256_permute2x128_si256::<0x31>(a, b),
    ]
}
