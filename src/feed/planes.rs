//! Interleaved RGB to planes and back: what lies between the resize and the passes, and between the passes and the slot.
//!
//! In: RGB row-major, or planar RGB (all red values, then all green, then all blue). Out: the other one.
//! Invariant: a slot is written once, from its first byte to its last, as write-combined memory wants it.

use super::simd::Lanes;

/// Planar RGB as its three planes.
#[inline(always)]
pub(super) fn split(pixels: &mut [u8]) -> [&mut [u8]; 3] {
    let (red, rest) = pixels.split_at_mut(pixels.len() / 3);
    let (green, blue) = rest.split_at_mut(red.len());
    [red, green, blue]
}

/// Interleaved -> planar, rows of `width` pixels, mirrored if `flip`.
pub fn gather(lanes: Lanes, rgb: &[u8], width: usize, flip: bool, planes: &mut [u8]) {
    assert_eq!(rgb.len(), planes.len());
    lanes.run(
        #[inline(always)]
        || {
            let [red, green, blue] = split(planes);
            if !flip {
                return row(rgb, red, green, blue);
            }
            let rows = red.chunks_exact_mut(width).zip(green.chunks_exact_mut(width));
            let rows = rows.zip(blue.chunks_exact_mut(width));
            for (((red, green), blue), rgb) in rows.zip(rgb.chunks_exact(width * 3)) {
                mirrored_row(rgb, red, green, blue);
            }
        },
    );
}

#[inline(always)]
fn row(rgb: &[u8], red: &mut [u8], green: &mut [u8], blue: &mut [u8]) {
    for (((red, green), blue), point) in red.iter_mut().zip(green).zip(blue).zip(rgb.as_chunks::<3>().0) {
        [*red, *green, *blue] = *point;
    }
}

#[inline(always)]
fn mirrored_row(rgb: &[u8], red: &mut [u8], green: &mut [u8], blue: &mut [u8]) {
    let planes = red
        .iter_mut()
        .rev()
        .zip(green.iter_mut().rev())
        .zip(blue.iter_mut().rev());
    for (((red, green), blue), point) in planes.zip(rgb.as_chunks::<3>().0) {
        [*red, *green, *blue] = *point;
    }
}

/// Planar -> interleaved.
pub fn scatter(lanes: Lanes, planes: &mut [u8], rgb: &mut [u8]) {
    assert_eq!(rgb.len(), planes.len());
    lanes.run(
        #[inline(always)]
        || {
            let [red, green, blue] = split(planes);
            let points = rgb.as_chunks_mut::<3>().0.iter_mut();
            for (((point, &red), &green), &blue) in points.zip(&*red).zip(&*green).zip(&*blue) {
                *point = [red, green, blue];
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against the definition, on every path of this CPU.
        #[test]
        fn planes_hold_the_pixels(width in 1usize..70, height in 1usize..5, flip: bool, seed: u8) {
            let rgb: Vec<u8> = (0..width * height * 3).map(|i| (i as u8).wrapping_mul(37) ^ seed).collect();
            for (name, lanes) in Lanes::all() {
                let (mut planes, mut back) = (vec![0; rgb.len()], vec![0; rgb.len()]);
                gather(lanes, &rgb, width, flip, &mut planes);
                for (i, &value) in planes.iter().enumerate() {
                    let (channel, y, x) = (i / (width * height), i / width % height, i % width);
                    let x = if flip { width - 1 - x } else { x };
                    prop_assert_eq!(value, rgb[(y * width + x) * 3 + channel], "{} {}", name, i);
                }
                gather(lanes, &rgb, width, false, &mut planes);
                scatter(lanes, &mut planes, &mut back);
                prop_assert_eq!(&rgb, &back, "{}", name);
            }
        }
    }
}
