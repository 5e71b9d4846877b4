//! The recipe of one view: parameters drawn first, then the passes. torchvision on Pillow is the pixel reference.
//!
//! In: an image's size and a stream of draws; then the image, of which at least the drawn region is decoded. Out: RGB8 of
//! `size` x `size`, written straight into the caller's buffer. Invariant: pixels depend on image, options and stream only, not on
//! CPU, thread, what is decoded besides the region, or what the scratch held before; an operation that was not drawn costs
//! nothing. Sources: the official code and solo-learn, torchvision 0.29.

mod check;
mod params;
#[cfg(test)]
mod tests;

pub use check::ViewsError;
pub use params::{Jitter, JitterPart, ViewParams};

use super::blur::{self, BlurScratch};
use super::crop::Resampler;
use super::laps::{Laps, Part};
use super::{color, planes};
use crate::data::{Region, Rgbx8, rng::Philox, simd::Lanes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Changes whenever the same image, options and stream give other pixels, so that a run is not resumed with views that it
/// did not begin with.
pub const AUGMENTATION_VERSION: u32 = 1;

/// `[views]`: what the trainer sees of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ViewsOptions {
    /// Side of a view, pixels. Default 224.
    pub size: u32,
    /// Mean by channel (RGB, on the 0-1 scale) that is subtracted. Default ImageNet's.
    pub mean: [f32; 3],
    /// Standard deviation by channel that divides. Default ImageNet's.
    pub std: [f32; 3],
    /// One table: both views are drawn from it (the paper's and solo-learn's symmetric views). Two: one for each view.
    /// Default: the official code's two.
    pub view: Vec<ViewOptions>,
}

/// `[[views.view]]`: the random operations of one view. Defaults are the official code's view 1 (main_vicreg / augmentations.py).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ViewOptions {
    /// Operations after the crop, in order. Default flip, jitter, grey, blur, solarize.
    pub order: Vec<Op>,
    /// Crop area as a share of the image. Default [0.08, 1.0].
    pub crop_scale: [f64; 2],
    /// Crop aspect ratio, width / height, log-uniform. Default [3/4, 4/3].
    pub crop_ratio: [f64; 2],
    /// Resize filter of the crop. Default bicubic.
    pub interpolation: Interpolation,
    /// Probability of a horizontal flip. Default 0.5.
    pub flip: f64,
    /// Probability of colour jitter; its four parts come in random order. Default 0.8.
    pub jitter: f64,
    /// Brightness factor from [max(0, 1 - b), 1 + b]. Default 0.4.
    pub brightness: f64,
    /// Contrast factor likewise. Default 0.4.
    pub contrast: f64,
    /// Saturation factor likewise. Default 0.2.
    pub saturation: f64,
    /// Hue shift from [-h, h], turns; at most 0.5. Default 0.1.
    pub hue: f64,
    /// Probability of grey. Default 0.2.
    pub grey: f64,
    /// Probability of blur (Pillow's GaussianBlur: three extended box passes). Default 1.0.
    pub blur: f64,
    /// Blur radius (Pillow's radius = sigma), uniform, pixels. Default [0.1, 2.0].
    pub blur_sigma: [f64; 2],
    /// Probability of solarisation. Default 0.0.
    pub solarize: f64,
    /// Values at or above it are inverted. Default 128.
    pub solarize_threshold: u8,
}

/// One operation after the crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Horizontal flip.
    Flip,
    /// Colour jitter.
    Jitter,
    /// Grey.
    Grey,
    /// Blur.
    Blur,
    /// Solarise.
    Solarize,
}

/// Resize filter, with Pillow's meaning (antialiased).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// Triangle.
    Bilinear,
    /// Catmull-Rom as Pillow has it (a = -0.5).
    Bicubic,
}

/// What makes one view: random (training) or the evaluation's resize and centre crop.
#[derive(Clone, Debug)]
pub enum View {
    /// Random crop and the operations of the options, to a square of `size` pixels.
    Random {
        /// Its options.
        options: ViewOptions,
        /// Side, pixels.
        size: u32,
    },
    /// torchvision's Resize(resize) (shorter side) and CenterCrop(size).
    Center {
        /// Shorter side after the resize.
        resize: u32,
        /// Side of the crop.
        size: u32,
        /// Filter.
        interpolation: Interpolation,
    },
}

/// What one view of one image was drawn to be, before any pixel is there.
#[derive(Clone, Debug, PartialEq)]
pub enum Drawn {
    /// The parameters of a random view.
    Random(ViewParams),
    /// Nothing is drawn for the evaluation's view; all of the image.
    Center(Region),
}

impl Drawn {
    /// What the view needs of the image. A centre crop's filter reads pixels outside the crop: it needs all.
    pub fn region(&self) -> Region {
        match self {
            Self::Random(params) => params.crop,
            Self::Center(all) => *all,
        }
    }
}

/// A worker's buffers, reused from sample to sample.
#[derive(Default)]
pub struct Scratch {
    resampler: Resampler,
    blur: BlurScratch,
    /// The view on its way through the passes.
    planes: Vec<u8>,
    lanes: Lanes,
    pub(super) laps: Laps,
}

impl View {
    /// Side of the view, pixels.
    pub fn size(&self) -> u32 {
        match self {
            Self::Random { size, .. } | Self::Center { size, .. } => *size,
        }
    }

    /// Draws the view of a `width` x `height` image from `rng`.
    pub fn draw(&self, width: u32, height: u32, rng: &mut Philox) -> Drawn {
        match self {
            Self::Random { options, .. } => Drawn::Random(options.draw(width, height, rng)),
            Self::Center { .. } => Drawn::Center(Region::all(width, height)),
        }
    }

    /// Writes the view that was drawn for `image`, RGB row-major, `size * size * 3` bytes, into `out`.
    ///
    /// Panics if `out` has another length, if the image does not hold the drawn region, 4 bytes a pixel, or if another kind of
    /// view drew it.
    pub fn render(&self, image: &Rgbx8, drawn: &Drawn, scratch: &mut Scratch, out: &mut [u8]) {
        match (self, drawn) {
            (Self::Random { options, size }, Drawn::Random(params)) => {
                options.apply(image, params, *size, scratch, out);
            }
            (
                Self::Center {
                    resize,
                    size,
                    interpolation,
                },
                Drawn::Center(_),
            ) => {
                check_buffers(image, *size, out);
                scratch
                    .resampler
                    .center(scratch.lanes, image, *resize, *size, *interpolation, out);
                scratch.laps.lap(Part::Crop);
            }
            (view, drawn) => panic!("{view:?} did not draw {drawn:?}"),
        }
    }
}

impl ViewOptions {
    /// The official code's second view: blur seldom, solarised now and then.
    pub fn official_second() -> Self {
        Self {
            blur: 0.1,
            solarize: 0.2,
            ..Self::default()
        }
    }

    /// Writes the view with the given parameters. Operations come in `order`; one that is not listed does not happen.
    /// Panics as [`View::render`] does.
    pub fn apply(&self, image: &Rgbx8, params: &ViewParams, size: u32, scratch: &mut Scratch, out: &mut [u8]) {
        check_buffers(image, size, out);
        let Scratch {
            resampler,
            blur,
            planes,
            lanes,
            laps,
        } = scratch;
        let (lanes, side) = (*lanes, size as usize);
        let crop = resampler.crop(lanes, image, params.crop, self.interpolation, size, size);
        laps.lap(Part::Crop);
        let steps = self.steps(params);
        if steps.clone().next().is_none() {
            planes::narrow(lanes, crop, out);
            return laps.lap(Part::Planes);
        }
        planes.resize(out.len(), 0);
        // A flip commutes with every other operation to the bit (their filters are symmetric), so it costs nothing here.
        let flips = steps.clone().filter(|step| matches!(step, Step::Flip)).count();
        planes::gather(lanes, crop, side, flips % 2 == 1, planes);
        laps.lap(Part::Planes);
        let mut equal = false;
        for step in steps {
            let part = match step {
                Step::Flip => continue,
                Step::Jitter(jitter) => {
                    jitter.apply(lanes, planes);
                    // It leaves a grey view grey but for rounding.
                    equal = false;
                    Part::Color
                }
                Step::Grey => {
                    color::grey(lanes, planes);
                    equal = true;
                    Part::Color
                }
                Step::Solarize => {
                    color::solarize(lanes, planes, self.solarize_threshold);
                    Part::Color
                }
                Step::Blur(sigma) if equal => {
                    // One plane stands for all.
                    let plane = side * side;
                    blur::gaussian(lanes, &mut planes[..plane], side, side, sigma, blur);
                    planes.copy_within(..plane, plane);
                    planes.copy_within(..plane, 2 * plane);
                    Part::Blur
                }
                Step::Blur(sigma) => {
                    blur::gaussian(lanes, planes, side, side, sigma, blur);
                    Part::Blur
                }
            };
            laps.lap(part);
        }
        planes::scatter(lanes, planes, out);
        laps.lap(Part::Planes);
    }

    /// The operations that were drawn, in their order.
    fn steps<'a>(&'a self, params: &'a ViewParams) -> impl Iterator<Item = Step<'a>> + Clone {
        self.order.iter().filter_map(|op| match op {
            Op::Flip => params.flip.then_some(Step::Flip),
            Op::Jitter => params.jitter.as_ref().map(Step::Jitter),
            Op::Grey => params.grey.then_some(Step::Grey),
            Op::Blur => params.blur.map(Step::Blur),
            Op::Solarize => params.solarize.then_some(Step::Solarize),
        })
    }
}

/// An operation with what was drawn for it.
enum Step<'a> {
    Flip,
    Jitter(&'a Jitter),
    Grey,
    Blur(f32),
    Solarize,
}

impl ViewsOptions {
    /// The two training views. Tables beyond the second, or none at all, are errors of [`ViewsOptions::validate`].
    pub fn views(&self) -> [View; 2] {
        let first = self.view.first().cloned().unwrap_or_default();
        let second = self.view.get(1).unwrap_or(&first).clone();
        [first, second].map(|options| View::Random {
            options,
            size: self.size,
        })
    }
}

impl Default for ViewsOptions {
    fn default() -> Self {
        Self {
            size: 224,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            view: vec![ViewOptions::default(), ViewOptions::official_second()],
        }
    }
}

impl Default for ViewOptions {
    fn default() -> Self {
        Self {
            order: vec![Op::Flip, Op::Jitter, Op::Grey, Op::Blur, Op::Solarize],
            crop_scale: [0.08, 1.0],
            crop_ratio: [3.0 / 4.0, 4.0 / 3.0],
            interpolation: Interpolation::Bicubic,
            flip: 0.5,
            jitter: 0.8,
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.2,
            hue: 0.1,
            grey: 0.2,
            blur: 1.0,
            blur_sigma: [0.1, 2.0],
            solarize: 0.0,
            solarize_threshold: 128,
        }
    }
}

fn check_buffers(image: &Rgbx8, size: u32, out: &[u8]) {
    let Region { width, height, .. } = image.part;
    assert!(width > 0 && height > 0, "an image has pixels");
    assert_eq!(
        image.pixels.len(),
        width as usize * height as usize * 4,
        "the image has 4 bytes a pixel"
    );
    assert_eq!(
        out.len(),
        size as usize * size as usize * 3,
        "the view's buffer is size * size * 3 bytes"
    );
}
