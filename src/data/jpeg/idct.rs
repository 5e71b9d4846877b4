//! Inverse cosine transform of a block: dequantised coefficients -> 8x8 samples of 0..=255.
//!
//! In: quantised coefficients and the quantisation table, both in natural order. Out: eight rows of eight samples.
//! Invariant: 32-bit integers that wrap, constants of 12 bits, columns first, 2 bits kept in between: bit for bit the transform of
//! zune-jpeg 0.5.15 (`idct/scalar.rs`), which has it from stb_image. Algorithm: Loeffler, Ligtenberg, Moschytz, ICASSP 1989.

/// Eight numbers, one a lane.
type Row = [i32; 8];

#[inline(always)]
fn map(a: Row, f: impl Fn(i32) -> i32) -> Row {
    let mut out = [0; 8];
    for i in 0..8 {
        out[i] = f(a[i]);
    }
    out
}

#[inline(always)]
fn zip(a: Row, b: Row, f: impl Fn(i32, i32) -> i32) -> Row {
    let mut out = [0; 8];
    for i in 0..8 {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(always)]
fn add(a: Row, b: Row) -> Row {
    zip(a, b, i32::wrapping_add)
}

#[inline(always)]
fn sub(a: Row, b: Row) -> Row {
    zip(a, b, i32::wrapping_sub)
}

#[inline(always)]
fn times(a: Row, k: i32) -> Row {
    map(a, |v| v.wrapping_mul(k))
}

/// A one-dimensional transform of every lane; `bias` rounds, `SHIFT` scales back.
#[inline(always)]
fn pass<const SHIFT: u32>(r: [Row; 8], bias: i32) -> [Row; 8] {
    // Even part.
    let p1 = times(add(r[2], r[6]), 2217);
    let (t2, t3) = (add(p1, times(r[6], -7567)), add(p1, times(r[2], 3135)));
    let even = map(add(r[0], r[4]), |v| (v << 12).wrapping_add(bias));
    let odd = map(sub(r[0], r[4]), |v| (v << 12).wrapping_add(bias));
    let x = [add(even, t3), add(odd, t2), sub(odd, t2), sub(even, t3)];
    // Odd part.
    let (p3, p4) = (add(r[7], r[3]), add(r[5], r[1]));
    let p5 = times(add(p3, p4), 4816);
    let (p3, p4) = (add(p5, times(p3, -8034)), add(p5, times(p4, -1597)));
    let (p1, p2) = (times(add(r[7], r[1]), -3685), times(add(r[5], r[3]), -10497));
    let t = [
        add(times(r[1], 6149), add(p1, p4)),
        add(times(r[3], 12586), add(p2, p3)),
        add(times(r[5], 8410), add(p2, p4)),
        add(times(r[7], 1223), add(p1, p3)),
    ];
    let down = |a: Row| map(a, |v| v >> SHIFT);
    [
        down(add(x[0], t[0])),
        down(add(x[1], t[1])),
        down(add(x[2], t[2])),
        down(add(x[3], t[3])),
        down(sub(x[3], t[3])),
        down(sub(x[2], t[2])),
        down(sub(x[1], t[1])),
        down(sub(x[0], t[0])),
    ]
}

#[inline(always)]
fn transpose(r: [Row; 8]) -> [Row; 8] {
    let mut out = [[0; 8]; 8];
    for i in 0..8 {
        for j in 0..8 {
            out[i][j] = r[j][i];
        }
    }
    out
}

/// Rounding of the second pass: half, what the first pass left (512 of 2^17), and the level shift of 128.
pub const BIAS: i32 = 512 + 65536 + (128 << 17);

/// The samples of a block.
#[inline(always)]
pub fn block(coefficients: &[i16; 64], quantisation: &[i32; 64]) -> [[u8; 8]; 8] {
    let mut rows = [[0; 8]; 8];
    for y in 0..8 {
        for x in 0..8 {
            rows[y][x] = i32::from(coefficients[8 * y + x]).wrapping_mul(quantisation[8 * y + x]);
        }
    }
    let rows = transpose(pass::<17>(transpose(pass::<10>(rows, 512)), BIAS));
    let mut samples = [[0; 8]; 8];
    for y in 0..8 {
        for x in 0..8 {
            samples[y][x] = rows[y][x].clamp(0, 255) as u8;
        }
    }
    samples
}

/// The samples of a block that has a DC value only: all the same.
#[inline(always)]
pub fn flat(dc: i32, quantisation: i32) -> u8 {
    ((dc * quantisation + 4 + 1024) >> 3).clamp(0, 255) as u8
}
