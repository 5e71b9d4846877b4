//! The inverse cosine transform of [`super::idct`] with AVX2: a column, then a row, in each of eight lanes.
//!
//! Same integers in the same order modulo 2^32, so the same samples (a test holds it to the scalar code). Without `unsafe`: pulp's
//! tokens prove that the CPU has the instructions.

use super::idct::BIAS;
use crate::data::simd::Avx2;
use pulp::cast;
use std::arch::x86_64::{__m128i, __m256i};

/// Arithmetic on eight 32-bit integers.
#[derive(Clone, Copy)]
struct Lanes(Avx2);

impl Lanes {
    #[inline(always)]
    fn add(self, a: __m256i, b: __m256i) -> __m256i {
        self.0.avx2._mm256_add_epi32(a, b)
    }

    #[inline(always)]
    fn sub(self, a: __m256i, b: __m256i) -> __m256i {
        self.0.avx2._mm256_sub_epi32(a, b)
    }

    #[inline(always)]
    fn times(self, a: __m256i, k: i32) -> __m256i {
        self.0.avx2._mm256_mullo_epi32(a, self.0.avx._mm256_set1_epi32(k))
    }

    /// Shifts up by the 12 bits of the constants and adds `bias`.
    #[inline(always)]
    fn scale(self, a: __m256i, bias: i32) -> __m256i {
        let up = self.0.avx2._mm256_slli_epi32::<12>(a);
        self.add(up, self.0.avx._mm256_set1_epi32(bias))
    }

    #[inline(always)]
    fn down<const SHIFT: i32>(self, a: __m256i) -> __m256i {
        self.0.avx2._mm256_srai_epi32::<SHIFT>(a)
    }

    /// The last step of a pass: even and odd parts together, scaled down.
    #[inline(always)]
    fn join<const SHIFT: i32>(self, x: [__m256i; 4], t: [__m256i; 4]) -> [__m256i; 8] {
        [
            self.down::<SHIFT>(self.add(x[0], t[0])),
            self.down::<SHIFT>(self.add(x[1], t[1])),
            self.down::<SHIFT>(self.add(x[2], t[2])),
            self.down::<SHIFT>(self.add(x[3], t[3])),
            self.down::<SHIFT>(self.sub(x[3], t[3])),
            self.down::<SHIFT>(self.sub(x[2], t[2])),
            self.down::<SHIFT>(self.sub(x[1], t[1])),
            self.down::<SHIFT>(self.sub(x[0], t[0])),
        ]
    }

    /// [`super::idct::pass`].
    #[inline(always)]
    fn pass<const SHIFT: i32>(self, r: [__m256i; 8], bias: i32) -> [__m256i; 8] {
        let p1 = self.times(self.add(r[2], r[6]), 2217);
        let t2 = self.add(p1, self.times(r[6], -7567));
        let t3 = self.add(p1, self.times(r[2], 3135));
        let even = self.scale(self.add(r[0], r[4]), bias);
        let odd = self.scale(self.sub(r[0], r[4]), bias);
        let x = [
            self.add(even, t3),
            self.add(odd, t2),
            self.sub(odd, t2),
            self.sub(even, t3),
        ];
        let (p3, p4) = (self.add(r[7], r[3]), self.add(r[5], r[1]));
        let p5 = self.times(self.add(p3, p4), 4816);
        let p3 = self.add(p5, self.times(p3, -8034));
        let p4 = self.add(p5, self.times(p4, -1597));
        let p1 = self.times(self.add(r[7], r[1]), -3685);
        let p2 = self.times(self.add(r[5], r[3]), -10497);
        let t = [
            self.add(self.times(r[1], 6149), self.add(p1, p4)),
            self.add(self.times(r[3], 12586), self.add(p2, p3)),
            self.add(self.times(r[5], 8410), self.add(p2, p4)),
            self.add(self.times(r[7], 1223), self.add(p1, p3)),
        ];
        self.join::<SHIFT>(x, t)
    }

    /// The same where rows 4 to 7 are zero: what is left of the sums.
    #[inline(always)]
    fn short_pass<const SHIFT: i32>(self, r: [__m256i; 4], bias: i32) -> [__m256i; 8] {
        let (t2, t3) = (self.times(r[2], 2217), self.times(r[2], 2217 + 3135));
        let even = self.scale(r[0], bias);
        let x = [
            self.add(even, t3),
            self.add(even, t2),
            self.sub(even, t2),
            self.sub(even, t3),
        ];
        let p5 = self.times(self.add(r[3], r[1]), 4816);
        let t = [
            self.add(p5, self.times(r[1], 6149 - 3685 - 1597)),
            self.add(p5, self.times(r[3], 12586 - 10497 - 8034)),
            self.add(p5, self.add(self.times(r[3], -10497), self.times(r[1], -1597))),
            self.add(p5, self.add(self.times(r[1], -3685), self.times(r[3], -8034))),
        ];
        self.join::<SHIFT>(x, t)
    }

    /// Row `y` of the coefficients, dequantised.
    #[inline(always)]
    fn row(self, coefficients: &[i16; 64], steps: &[i32; 64], y: usize) -> __m256i {
        let (coefficients, steps) = (&coefficients.as_chunks::<8>().0[y], &steps.as_chunks::<8>().0[y]);
        let wide = self
            .0
            .avx2
            ._mm256_cvtepi16_epi32(cast::<[i16; 8], __m128i>(*coefficients));
        self.0.avx2._mm256_mullo_epi32(wide, cast::<[i32; 8], __m256i>(*steps))
    }

    /// Four rows from row `y` on.
    #[inline(always)]
    fn rows(self, coefficients: &[i16; 64], steps: &[i32; 64], y: usize) -> [__m256i; 4] {
        [
            self.row(coefficients, steps, y),
            self.row(coefficients, steps, y + 1),
            self.row(coefficients, steps, y + 2),
            self.row(coefficients, steps, y + 3),
        ]
    }

    /// Transposes the 4x4 halves of four rows: columns 0 to 3 of lanes 0-3, and of lanes 4-7.
    #[inline(always)]
    fn transpose_halves(self, r: [__m256i; 4]) -> [__m256i; 4] {
        let avx2 = self.0.avx2;
        let (a, b) = (
            avx2._mm256_unpacklo_epi32(r[0], r[1]),
            avx2._mm256_unpackhi_epi32(r[0], r[1]),
        );
        let (c, d) = (
            avx2._mm256_unpacklo_epi32(r[2], r[3]),
            avx2._mm256_unpackhi_epi32(r[2], r[3]),
        );
        [
            avx2._mm256_unpacklo_epi64(a, c),
            avx2._mm256_unpackhi_epi64(a, c),
            avx2._mm256_unpacklo_epi64(b, d),
            avx2._mm256_unpackhi_epi64(b, d),
        ]
    }

    #[inline(always)]
    fn transpose(self, r: [__m256i; 8]) -> [__m256i; 8] {
        let [r0, r1, r2, r3, r4, r5, r6, r7] = r;
        let (top, bottom) = (
            self.transpose_halves([r0, r1, r2, r3]),
            self.transpose_halves([r4, r5, r6, r7]),
        );
        let [a, b, c, d] = self.halves::<0x20>(top, bottom);
        let [e, f, g, h] = self.halves::<0x31>(top, bottom);
        [a, b, c, d, e, f, g, h]
    }

    /// One half of each of `a` beside one of each of `b`: the lower ones with 0x20, the upper ones with 0x31.
    #[inline(always)]
    fn halves<const WHICH: i32>(self, a: [__m256i; 4], b: [__m256i; 4]) -> [__m256i; 4] {
        let avx2 = self.0.avx2;
        [
            avx2._mm256_permute2x128_si256::<WHICH>(a[0], b[0]),
            avx2._mm256_permute2x128_si256::<WHICH>(a[1], b[1]),
            avx2._mm256_permute2x128_si256::<WHICH>(a[2], b[2]),
            avx2._mm256_permute2x128_si256::<WHICH>(a[3], b[3]),
        ]
    }

    /// Four columns of samples -> in each half four rows of four bytes, clamped.
    #[inline(always)]
    fn bytes(self, c: [__m256i; 4]) -> __m256i {
        let avx2 = self.0.avx2;
        let words = [avx2._mm256_packs_epi32(c[0], c[1]), avx2._mm256_packs_epi32(c[2], c[3])];
        let columns = avx2._mm256_packus_epi16(words[0], words[1]);
        avx2._mm256_shuffle_epi8(columns, cast(TURN))
    }

    /// Columns of samples -> rows of bytes.
    #[inline(always)]
    fn samples(self, c: [__m256i; 8]) -> [[u8; 8]; 8] {
        let [c0, c1, c2, c3, c4, c5, c6, c7] = c;
        let (left, right) = (self.bytes([c0, c1, c2, c3]), self.bytes([c4, c5, c6, c7]));
        // Rows 0, 1, 4, 5 and rows 2, 3, 6, 7.
        let a: [[u8; 8]; 4] = cast(self.0.avx2._mm256_unpacklo_epi32(left, right));
        let b: [[u8; 8]; 4] = cast(self.0.avx2._mm256_unpackhi_epi32(left, right));
        [a[0], a[1], b[0], b[1], a[2], a[3], b[2], b[3]]
    }
}

/// A transposition of 4x4 bytes in each half.
const TURN: [u8; 32] = {
    let mut turn = [0; 32];
    let mut i = 0;
    while i < 32 {
        turn[i] = (i % 4 * 4 + i % 16 / 4) as u8;
        i += 1;
    }
    turn
};

/// [`super::idct::block`].
#[inline(always)]
pub fn block(cpu: Avx2, coefficients: &[i16; 64], steps: &[i32; 64]) -> [[u8; 8]; 8] {
    let lanes = Lanes(cpu);
    let ([r0, r1, r2, r3], [r4, r5, r6, r7]) = (lanes.rows(coefficients, steps, 0), lanes.rows(coefficients, steps, 4));
    let columns = lanes.transpose(lanes.pass::<10>([r0, r1, r2, r3, r4, r5, r6, r7], 512));
    lanes.samples(lanes.pass::<17>(columns, BIAS))
}

/// The same for a block whose coefficients outside the first four rows and columns are zero.
#[inline(always)]
pub fn corner(cpu: Avx2, coefficients: &[i16; 64], steps: &[i32; 64]) -> [[u8; 8]; 8] {
    let lanes = Lanes(cpu);
    let rows = lanes.short_pass::<10>(lanes.rows(coefficients, steps, 0), 512);
    let [r0, r1, r2, r3, r4, r5, r6, r7] = rows;
    // Columns 4 to 7 are zero: rows y and y + 4 fit into one register.
    let both = lanes.halves::<0x20>([r0, r1, r2, r3], [r4, r5, r6, r7]);
    lanes.samples(lanes.short_pass::<17>(lanes.transpose_halves(both), BIAS))
}
