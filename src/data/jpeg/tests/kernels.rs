//! The inner parts against their definitions.

use super::super::block::NATURAL;
use super::super::huffman::{LOOKUP, Table};
use super::super::{color, idct};
use super::*;
use proptest::prelude::*;

/// The transform by its definition (T.81, A.3.3), in f64.
fn definition(coefficients: &[i32; 64]) -> [[f64; 8]; 8] {
    let cosine = |x: usize, u: usize| {
        let scale = if u == 0 { std::f64::consts::FRAC_1_SQRT_2 } else { 1.0 };
        scale * ((2 * x + 1) as f64 * u as f64 * std::f64::consts::PI / 16.0).cos()
    };
    std::array::from_fn(|y| {
        std::array::from_fn(|x| {
            let terms = (0..64).map(|i| f64::from(coefficients[i]) * cosine(x, i % 8) * cosine(y, i / 8));
            (terms.sum::<f64>() / 4.0 + 128.0).clamp(0.0, 255.0)
        })
    })
}

/// Coefficients up to position `last` of the stream, each at most `most`.
fn coefficients(last: usize, most: u32, rng: &mut Philox) -> [i16; 64] {
    let mut block = [0; 64];
    for &at in &NATURAL[..=last] {
        block[usize::from(at)] = (rng.below(2 * most + 1) as i32 - most as i32) as i16;
    }
    block
}

#[test]
fn the_transform_is_the_cosine_transform() {
    let mut rng = rng(21);
    for last in (0..64).step_by(if cfg!(miri) { 21 } else { 1 }) {
        let (block, steps) = (coefficients(last, 60, &mut rng), [3; 64]);
        let exact = definition(&block.map(|c| i32::from(c) * 3));
        let samples = idct::block(&block, &steps);
        for (sample, exact) in samples.as_flattened().iter().zip(exact.as_flattened()) {
            assert!((f64::from(*sample) - exact).abs() < 1.0, "{sample}, exactly {exact}");
        }
        let mut dc = [0; 64];
        dc[0] = block[0];
        assert_eq!(idct::block(&dc, &steps), [[idct::flat(dc[0].into(), 3); 8]; 8]);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
#[cfg_attr(miri, ignore = "Miri has no AVX2")]
fn avx2_transforms_to_the_same_samples() {
    use super::super::idct_avx2;
    for (name, lanes) in Lanes::all() {
        lanes.run_with(
            #[inline(always)]
            |cpu| {
                let Some(cpu) = cpu else {
                    assert_eq!(name, "baseline");
                    return;
                };
                for i in 0..20_000 {
                    let mut rng = rng(i as u64);
                    // Up to what overflows 32 bits many times over.
                    let most = [1, 20, 300, 32767][rng.below(4) as usize];
                    let block = coefficients(i % 64, most, &mut rng);
                    let steps: [i32; 64] = std::array::from_fn(|_| rng.below(256) as i32);
                    let expected = idct::block(&block, &steps);
                    assert_eq!(idct_avx2::block(cpu, &block, &steps), expected);
                    if i % 64 < 10 {
                        assert_eq!(idct_avx2::corner(cpu, &block, &steps), expected);
                    }
                }
            },
        );
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
#[cfg_attr(miri, ignore = "Miri has no AVX2")]
fn avx2_converts_every_color_to_the_same_pixel() {
    use super::super::color_avx2;
    // All pairs of chroma under a luma that moves on: every carry and both clamps.
    let count = 1 << 16;
    let cb: Vec<u8> = (0..count).map(|i| i as u8).collect();
    let cr: Vec<u8> = (0..count).map(|i| (i >> 8) as u8).collect();
    for offset in 0..16 {
        let y: Vec<u8> = (0..count)
            .map(|i: u32| (i.wrapping_mul(7919) + offset * 17) as u8)
            .collect();
        let mut expected = vec![0; 4 * count as usize];
        color::to_rgbx(&y, &cb, &cr, &mut expected);
        for (name, lanes) in Lanes::all() {
            let mut out = vec![0; 4 * count as usize];
            lanes.run_with(
                #[inline(always)]
                |cpu| match cpu {
                    Some(cpu) => color_avx2::to_rgbx(cpu, &y, &cb, &cr, &mut out),
                    None => color::to_rgbx(&y, &cb, &cr, &mut out),
                },
            );
            assert!(out == expected, "{name}");
        }
    }
}

#[test]
fn colors_are_those_of_the_standard() {
    // JFIF 1.02: R = Y + 1.402 (Cr - 128) and so on, rounded.
    for i in 0..=255u8 {
        let (y, cb, cr) = (i, i.wrapping_mul(91), i.wrapping_mul(37).wrapping_add(60));
        let mut pixel = [0; 4];
        color::to_rgbx(&[y], &[cb], &[cr], &mut pixel);
        let (y, cb, cr) = (f64::from(y), f64::from(cb) - 128.0, f64::from(cr) - 128.0);
        let exact = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb];
        for (value, exact) in pixel.iter().zip(exact) {
            assert!(
                (f64::from(*value) - exact.clamp(0.0, 255.0)).abs() <= 0.51,
                "{value}, exactly {exact}"
            );
        }
        assert_eq!(pixel[3], 255);
    }
}

/// A code as (length, value) in order, by annex C of T.81, with the bits of each.
fn codes(counts: &[u8; 16], values: &[u8]) -> Vec<(u32, u32, u8)> {
    let (mut code, mut values, mut codes) = (0, values.iter(), Vec::new());
    for (length, &count) in (1..).zip(counts) {
        for _ in 0..count {
            codes.push((length, code, *values.next().unwrap()));
            code += 1;
        }
        code <<= 1;
    }
    codes
}

/// Lengths that make a prefix code without the code of all ones.
fn definition_of_a_table() -> impl Strategy<Value = ([u8; 16], Vec<u8>)> {
    let lengths = prop::collection::vec(1usize..=16, 1..60);
    (lengths, any::<u64>()).prop_map(|(lengths, seed)| {
        let (mut counts, mut room) = ([0u8; 16], (1u32 << 16) - 1);
        let mut sorted = lengths;
        sorted.sort_unstable();
        for length in sorted {
            let span = 1 << (16 - length);
            // What would use the last code of a length stays out.
            if room > span {
                room -= span;
                counts[length - 1] += 1;
            }
        }
        let total = counts.iter().map(|&n| usize::from(n)).sum();
        let mut rng = rng(seed);
        (counts, (0..total).map(|_| rng.below(256) as u8).collect())
    })
}

proptest! {
    #[test]
    fn a_table_reads_what_its_definition_says(
        (counts, values) in definition_of_a_table(),
        seed in any::<u64>(),
    ) {
        let mut table = Table::default();
        prop_assert!(table.build(&counts, &values, false).is_some());
        let codes = codes(&counts, &values);
        let mut rng = rng(seed);
        for _ in 0..if cfg!(miri) { 10 } else { 200 } {
            let bits = u64::from(rng.below(u32::MAX)) << 32 | u64::from(rng.below(u32::MAX));
            let code = codes.iter().find(|&&(length, code, _)| (bits >> (64 - length)) as u32 == code);
            let symbol = table.symbol(bits);
            prop_assert_eq!(symbol.is_some(), code.is_some());
            let (Some(symbol), Some(&(length, _, value))) = (symbol, code) else { continue };
            let (run, size) = (u32::from(value >> 4), u32::from(value & 15));
            prop_assert_eq!(symbol.length(), length + size);
            prop_assert_eq!(symbol.is_end(), size == 0 && run < 15);
            // EXTEND, figure F.12.
            let raw = ((bits << length) as u128 >> (64 - size)) as i32;
            let extended = if size > 0 && raw < 1 << (size - 1) { raw + (-1 << size) + 1 } else { raw };
            prop_assert_eq!(symbol.value(bits), extended);
            // The pair begins with this symbol, or leaves it to `symbol`; what it adds is the next one.
            let pair = table.pair_at(bits);
            if pair.length() == 0 {
                prop_assert!(length > LOOKUP);
                continue;
            }
            if symbol.is_end() {
                prop_assert_eq!((pair.ends(), pair.first(), pair.alone(), pair.value()), (true, 0, 64, 0));
                continue;
            }
            prop_assert_eq!(symbol.advance() as u32, run + 1);
            prop_assert_eq!(pair.first(), symbol.advance());
            let value = if pair.is_outside() { pair.outside_value(bits) } else { pair.value() };
            prop_assert_eq!(i32::from(value), extended);
            if pair.length() > symbol.length() {
                let next = bits << symbol.length();
                let second = table.symbol(next).unwrap();
                prop_assert_eq!(pair.length(), symbol.length() + second.length());
                prop_assert_eq!(pair.second(), second.advance());
                prop_assert_eq!(i32::from(pair.second_value()), second.value(next));
                prop_assert_eq!(pair.ends(), second.is_end());
            } else {
                prop_assert_eq!(pair.second(), 0);
            }
        }
    }
}

#[test]
fn what_is_no_code_is_refused() {
    let mut table = Table::default();
    let build = |table: &mut Table, counts: &[(usize, u8)], dc| {
        let mut all = [0; 16];
        counts.iter().for_each(|&(length, count)| all[length - 1] = count);
        let values: Vec<u8> = (0..counts.iter().map(|c| c.1).sum()).collect();
        table.build(&all, &values, dc).is_some()
    };
    assert!(build(&mut table, &[(1, 1), (2, 1)], false));
    assert!(!build(&mut table, &[(1, 2)], false), "the code of all ones");
    assert!(!build(&mut table, &[(1, 3)], false), "more codes than there are");
    assert!(
        !build(&mut table, &[(1, 1), (2, 1), (3, 2)], false),
        "no room for the last"
    );
    assert!(build(&mut table, &[(5, 16)], true));
    assert!(!build(&mut table, &[(5, 17)], true), "DC values of 16 bits");
    // A table that failed is not taken for built.
    assert!(!build(&mut table, &[(5, 17)], true));
    assert!(build(&mut table, &[(5, 17)], false));
}
