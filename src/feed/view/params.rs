//! The random numbers of one view, drawn before any pixel is touched.
//!
//! In: options, image size, a stream of draws. Out: `ViewParams`. Invariant: the draws come in one fixed order, whatever
//! they turn out to be and whatever the options switch off (flip; jitter: chance, order, brightness, contrast, saturation,
//! hue; grey; blur: chance, sigma; solarise; crop). The crop is last: only its number of draws depends on the image.
//! Source: torchvision 0.29 (ColorJitter, RandomApply, RandomResizedCrop).

use super::ViewOptions;
use crate::data::{Region, rng::Philox, simd::Lanes};
use crate::feed::color;
use crate::feed::crop::draw_box;

/// What one view was drawn to be.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewParams {
    /// The part of the image.
    pub crop: Region,
    /// Mirror it.
    pub flip: bool,
    /// Colour jitter.
    pub jitter: Option<Jitter>,
    /// Take the colours away.
    pub grey: bool,
    /// Blur with this sigma, pixels.
    pub blur: Option<f32>,
    /// Invert bright values.
    pub solarize: bool,
}

/// Colour jitter: factors, and the order in which they are applied. A part without a factor is skipped.
#[derive(Clone, Debug, PartialEq)]
pub struct Jitter {
    /// Each part once.
    pub order: [JitterPart; 4],
    /// Factor; 1 changes nothing.
    pub brightness: Option<f32>,
    /// Factor.
    pub contrast: Option<f32>,
    /// Factor.
    pub saturation: Option<f32>,
    /// Shift, turns, in -0.5..=0.5.
    pub hue: Option<f64>,
}

/// A part of colour jitter, in torchvision's numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum JitterPart {
    Brightness,
    Contrast,
    Saturation,
    Hue,
}

impl JitterPart {
    /// All four, in torchvision's numbering.
    pub const ALL: [Self; 4] = [Self::Brightness, Self::Contrast, Self::Saturation, Self::Hue];
}

impl ViewOptions {
    /// Draws one view of a `width` x `height` image.
    pub fn draw(&self, width: u32, height: u32, rng: &mut Philox) -> ViewParams {
        // A struct literal evaluates its fields in the order written: this is the order of the draws.
        let rest = ViewParams {
            flip: rng.chance(self.flip),
            jitter: self.draw_jitter(rng),
            grey: rng.chance(self.grey),
            blur: {
                let drawn = rng.chance(self.blur);
                let sigma = rng.uniform_in(self.blur_sigma[0], self.blur_sigma[1]) as f32;
                drawn.then_some(sigma)
            },
            solarize: rng.chance(self.solarize),
            crop: Region::all(width, height),
        };
        let crop = draw_box(width, height, self.crop_scale, self.crop_ratio, rng);
        ViewParams { crop, ..rest }
    }

    fn draw_jitter(&self, rng: &mut Philox) -> Option<Jitter> {
        let drawn = rng.chance(self.jitter);
        let jitter = Jitter {
            order: permutation(rng.below(24)),
            brightness: factor(self.brightness, rng),
            contrast: factor(self.contrast, rng),
            saturation: factor(self.saturation, rng),
            hue: {
                let turns = rng.uniform_in(-self.hue, self.hue);
                (self.hue > 0.0).then_some(turns)
            },
        };
        drawn.then_some(jitter)
    }
}

impl Jitter {
    /// Applies the parts in order, in place on planar RGB.
    pub fn apply(&self, lanes: Lanes, pixels: &mut [u8]) {
        for part in self.order {
            match part {
                JitterPart::Brightness => self
                    .brightness
                    .into_iter()
                    .for_each(|f| color::brightness(lanes, pixels, f)),
                JitterPart::Contrast => self
                    .contrast
                    .into_iter()
                    .for_each(|f| color::contrast(lanes, pixels, f)),
                JitterPart::Saturation => self
                    .saturation
                    .into_iter()
                    .for_each(|f| color::saturation(lanes, pixels, f)),
                JitterPart::Hue => self.hue.into_iter().for_each(|turns| color::hue(lanes, pixels, turns)),
            }
        }
    }
}

/// Uniform in [max(0, 1 - amount), 1 + amount]; drawn even where the amount is 0 and nothing comes of it.
fn factor(amount: f64, rng: &mut Philox) -> Option<f32> {
    let value = rng.uniform_in((1.0 - amount).max(0.0), 1.0 + amount) as f32;
    (amount > 0.0).then_some(value)
}

/// The n-th permutation of the four parts in lexicographic order, n < 24.
fn permutation(n: u32) -> [JitterPart; 4] {
    let mut order = JitterPart::ALL;
    // Digits of n in the factorial number system: which of the parts that are left comes next.
    let mut rest = n as usize;
    for (place, base) in [(0, 6), (1, 2), (2, 1)] {
        let pick = place + rest / base;
        rest %= base;
        order[place..=pick].rotate_right(1);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_are_lexicographic_and_distinct() {
        let numbers: Vec<[u8; 4]> = (0..24).map(|n| permutation(n).map(|part| part as u8)).collect();
        assert_eq!(numbers[0], [0, 1, 2, 3]);
        assert_eq!(numbers[23], [3, 2, 1, 0]);
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    }

    /// Colours must not change when an option is switched off or the image has another size.
    #[test]
    fn draws_keep_their_places() {
        let stream = || Philox::new(3, crate::data::rng::Domain::View, 0, 11, 0);
        let all = ViewOptions {
            jitter: 1.0,
            blur: 1.0,
            ..ViewOptions::default()
        };
        let some = ViewOptions {
            contrast: 0.0,
            hue: 0.0,
            grey: 0.0,
            flip: 0.0,
            ..all.clone()
        };
        let a = all.draw(500, 375, &mut stream());
        let b = some.draw(100, 1000, &mut stream());
        let (ja, jb) = (a.jitter.expect("p = 1"), b.jitter.expect("p = 1"));
        assert_eq!(
            (ja.order, ja.brightness, ja.saturation),
            (jb.order, jb.brightness, jb.saturation)
        );
        assert_eq!((jb.contrast, jb.hue), (None, None));
        assert_eq!(a.blur, b.blur);
        assert_ne!(a.crop, b.crop);
    }
}
