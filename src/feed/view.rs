//! The recipe of one view: parameters drawn first, then the passes. torchvision on Pillow is the pixel reference.

use crate::data::{Rgb8, rng::Philox};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// A worker's buffers, reused from sample to sample.
#[derive(Default)]
pub struct Scratch {/* private */}

impl View {
    /// Side of the view, pixels.
    pub fn size(&self) -> u32 {
        todo!()
    }
    /// Draws parameters from `rng` and writes the view, RGB row-major, `size * size * 3` bytes, into `out`.
    pub fn render(&self, image: &Rgb8, rng: &mut Philox, scratch: &mut Scratch, out: &mut [u8]) {
        todo!()
    }
}
