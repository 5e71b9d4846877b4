//! Pixels to planes and back: what lies between the resize and the passes, and between the passes and the slot.
//!
//! In: 4 bytes a pixel as the resize leaves them, or planar RGB (all red values, then all green, then all blue). Out: planar
//! RGB, or the slot's interleaved RGB.
//! Invariant: a slot is written once, from its first byte to its last, as write-combined memory wants it.

use crate::data::simd::Lanes;

/// Planar RGB as its three planes.
#[inline(always)]
pub(super) fn split(pixels: &mut [u8]) -> [&mut [u8]; 3] {
    let (red, rest) = pixels.split_at_mut(pixels.len() / 3);
    let (green, blue) = rest.split_at_mut(red.len());
    [red, green, blue]
}

/// 4 bytes a pixel -> planar, rows of `width` pixels, mirrored if `flip`.
pub fn gather(lanes: Lanes, rgbx: &[u8], width: usize, flip: bool, planes: &mut [u8]) {
    assert_eq!(rgbx.len() / 4 * 3, planes.len());
    lanes.run(
        #[inline(always)]
        || {
            let [red, green, blue] = split(planes);
            if !flip {
                return row(rgbx, red, green, blue);
            }
            let rows = red.chunks_exact_mut(width).zip(green.chunks_exact_mut(width));
            let rows = rows.zip(blue.chunks_exact_mut(width));
            for (((red, green), blue), rgbx) in rows.zip(rgbx.chunks_exact(width * 4)) {
                mirrored_row(rgbx, red, green, blue);
            }
        },
    );
}

#[inline(always)]
fn row(rgbx: &[u8], red: &mut [u8], green: &mut [u8], blue: &mut [u8]) {
    for (((red, green), blue), point) in red.iter_mut().zip(green).zip(blue).zip(rgbx.as_chunks::<4>().0) {
        [*red, *green, *blue, _] = *point;
    }
}

#[inline(always)]
fn mirrored_row(rgbx: &[u8], red: &mut [u8], green: &mut [u8], blue: &mut [u8]) {
    let planes = red
        .iter_mut()
        .rev()
        .zip(green.iter_mut().rev())
        .zip(blue.iter_mut().rev());
    for (((red, green), blue), point) in planes.zip(rgbx.as_chunks::<4>().0) {
        [*red, *green, *blue, _] = *point;
    }
}

/// 4 bytes a pixel -> interleaved RGB, for a view without passes.
pub fn narrow(lanes: Lanes, rgbx: &[u8], rgb: &mut [u8]) {
    assert_eq!(rgbx.len() / 4 * 3, rgb.len());
    lanes.run(
        #[inline(always)]
        || {
            let points = rgb.as_chunks_mut::<3>().0.iter_mut();
            for (to, &[red, green, blue, _]) in points.zip(rgbx.as_chunks::<4>().0) {
                *to = [red, green, blue];
            }
        },
    );
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
    use crate::data::Rgbx8;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against the definition, on every path of this CPU.
        #[test]
        fn planes_hold_the_pixels(width in 1usize..70, height in 1usize..5, flip: bool, seed: u8) {
            let rgb: Vec<u8> = (0..width * height * 3).map(|i| (i as u8).wrapping_mul(37) ^ seed).collect();
            for (name, lanes) in Lanes::all() {
                let image = Rgbx8::from_rgb(width as u32, height as u32, &rgb);
                let (mut planes, mut back) = (vec![0; rgb.len()], vec![0; rgb.len()]);
                gather(lanes, &image.pixels, width, flip, &mut planes);
                for (i, &value) in planes.iter().enumerate() {
                    let (channel, y, x) = (i / (width * height), i / width % height, i % width);
                    let x = if flip { width - 1 - x } else { x };
                    prop_assert_eq!(value, rgb[(y * width + x) * 3 + channel], "{} {}", name, i);
                }
                gather(lanes, &image.pixels, width, false, &mut planes);
                scatter(lanes, &mut planes, &mut back);
                prop_assert_eq!(&rgb, &back, "{}", name);
                back.fill(0);
                narrow(lanes, &image.pixels, &mut back);
                prop_assert_eq!(&rgb, &back, "{}", name);
            }
        }
    }
}
