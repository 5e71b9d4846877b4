//! Geometry and resampling: where a view lies in the image, and how that part becomes a square of `size` pixels.
//!
//! In: an image of which at least the box is held, and the box, or a shorter side for the evaluation's centre crop. Out: pixels of the asked size.
//! Invariant: a crop sees no pixel outside its box, as Pillow's `crop().resize()`; geometry uses only IEEE operations
//! that are the same on every CPU. Source: torchvision 0.29 (RandomResizedCrop, Resize, CenterCrop), Pillow 13's resampling
//! (one pass an axis, rounded to 8 bits in between); convolution with 16-bit fixed-point weights by `resample` where the CPU has
//! AVX2, elsewhere by fast_image_resize: the bytes are the same.

use super::planes;
use super::resample::{self, Axis, Pixels, Span};
use super::view::Interpolation;
use crate::data::{Region, Rgbx8, rng::Philox, simd::Lanes};
use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, IntoImageView, PixelType, ResizeAlg, ResizeOptions, Resizer};

/// torchvision's `RandomResizedCrop.get_params`: ten tries of a uniform share of the area and a log-uniform aspect
/// ratio, then the largest centred box within the ratios. A try takes two draws, an accepted box two more.
pub fn draw_box(width: u32, height: u32, scale: [f64; 2], ratio: [f64; 2], rng: &mut Philox) -> Region {
    let area = f64::from(width) * f64::from(height);
    let (log_low, log_high) = (ln(ratio[0]), ln(ratio[1]));
    for _ in 0..10 {
        let target = area * rng.uniform_in(scale[0], scale[1]);
        let aspect = exp(rng.uniform_in(log_low, log_high));
        // Python rounds half to even. A float above u32::MAX saturates and is refused below.
        let w = (target * aspect).sqrt().round_ties_even() as u32;
        let h = (target / aspect).sqrt().round_ties_even() as u32;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let top = rng.below(height - h + 1);
            let left = rng.below(width - w + 1);
            return Region {
                left,
                top,
                width: w,
                height: h,
            };
        }
    }
    fallback_box(width, height, ratio)
}

/// The box when ten tries failed: the whole image, cut in the middle to the nearest allowed aspect ratio.
pub fn fallback_box(width: u32, height: u32, ratio: [f64; 2]) -> Region {
    let (w, h) = (f64::from(width), f64::from(height));
    let (mut cut_w, mut cut_h) = (width, height);
    if w / h < ratio[0] {
        cut_h = (w / ratio[0]).round_ties_even() as u32;
    } else if w / h > ratio[1] {
        cut_w = (h * ratio[1]).round_ties_even() as u32;
    }
    // torchvision may round a side to 0 here and fail later; a box of ours has at least one pixel.
    let (cut_w, cut_h) = (cut_w.clamp(1, width), cut_h.clamp(1, height));
    Region {
        left: (width - cut_w) / 2,
        top: (height - cut_h) / 2,
        width: cut_w,
        height: cut_h,
    }
}

/// Resamples; keeps its buffers from call to call.
#[derive(Default)]
pub struct Resampler {
    resizer: Resizer,
    axes: Axes,
    /// Result of the first of two passes.
    between: Vec<u8>,
    /// Result of the second.
    resized: Vec<u8>,
}

#[derive(Default)]
struct Axes {
    columns: Axis,
    rows: Axis,
}

impl Resampler {
    /// A box of `image`, in the whole image's coordinates, resized to `width` x `height`: 4 bytes a pixel, of which the fourth
    /// means nothing. Panics if the image does not hold all of the box.
    pub fn crop(
        &mut self,
        lanes: Lanes,
        image: &Rgbx8,
        part: Region,
        filter: Interpolation,
        width: u32,
        height: u32,
    ) -> &[u8] {
        let plan = Plan {
            columns: Span::all(part.width, width),
            rows: Span::all(part.height, height),
            rows_first: rows_first(part.width, part.height, width.into(), height.into()),
            filter,
        };
        self.run(lanes, &plan, image, part)
    }

    /// A plan for a part of the image. The filter sees nothing outside the part.
    fn run(&mut self, lanes: Lanes, plan: &Plan, image: &Rgbx8, part: Region) -> &[u8] {
        let origin = image.part;
        assert!(
            origin.contains(part),
            "{part:?} is cut from an image that holds {origin:?}"
        );
        let (left, top) = (part.left - origin.left, part.top - origin.top);
        let bytes = plan.columns.to as usize * plan.rows.to as usize * 4;
        self.resized.resize(bytes, 0);
        if lanes.has_avx2() {
            let held = pixels(&image.pixels, origin.width, origin.height);
            let source = held.part(left, top, part.width, part.height);
            plan.run(lanes, &mut self.axes, &mut self.between, source, &mut self.resized);
        } else {
            let held = ImageRef::new(origin.width, origin.height, &image.pixels, PixelType::U8x4)
                .expect("width * height * 4 bytes");
            // The view hides what is outside the part; `ResizeOptions::crop` would let the filter read it.
            let source = CroppedImage::new(&held, left, top, part.width, part.height).expect("the part is inside");
            plan.run_elsewhere(&mut self.resizer, &mut self.between, &source, &mut self.resized);
        }
        &self.resized
    }

    /// torchvision's Resize(`resize`) and CenterCrop(`size`), into `out` (`size * size * 3` bytes, RGB): the shorter side becomes
    /// `resize`, the longer one keeps the aspect ratio (rounded down); what the crop lacks is black.
    ///
    /// Only what the crop shows is resampled, so that a sliver of an image cannot ask for a huge buffer. Panics if only a part
    /// of the image is held: the filter reads pixels outside the crop.
    pub fn center(
        &mut self,
        lanes: Lanes,
        image: &Rgbx8,
        resize: u32,
        size: u32,
        filter: Interpolation,
        out: &mut [u8],
    ) {
        assert_eq!(
            image.part,
            Region::all(image.width, image.height),
            "the image is held whole"
        );
        let (full_w, full_h) = resized_size(image.width, image.height, resize);
        let (columns, x) = Span::center(image.width, full_w, size);
        let (rows, y) = Span::center(image.height, full_h, size);
        let rows_first = rows_first(image.width, image.height, full_w, full_h);
        let plan = Plan {
            columns,
            rows,
            rows_first,
            filter,
        };
        let resized = self.run(lanes, &plan, image, image.part);
        if columns.to == size && rows.to == size {
            return planes::narrow(lanes, resized, out);
        }
        out.fill(0);
        let out_rows = out.chunks_exact_mut(size as usize * 3).skip(y as usize);
        for (to, from) in out_rows.zip(resized.chunks_exact(columns.to as usize * 4)) {
            let part = &mut to[x as usize * 3..][..columns.to as usize * 3];
            planes::narrow(lanes, from, part);
        }
    }
}

/// Size after torchvision's `Resize(short)`, (width, height). The long side is at least the short one.
fn resized_size(width: u32, height: u32, short: u32) -> (u64, u64) {
    let longer = |side: u32, other: u32| u64::from(short) * u64::from(side) / u64::from(other);
    if width <= height {
        (u64::from(short), longer(height, width))
    } else {
        (longer(width, height), u64::from(short))
    }
}

impl Span {
    /// The middle `size` of the `full` pixels that a side of `len` pixels is resized to, and the offset in the crop at
    /// which it begins (not 0 where the crop is larger).
    fn center(len: u32, full: u64, size: u32) -> (Self, u32) {
        if full <= u64::from(size) {
            let full = full as u32;
            return (Self::all(len, full), (size - full) / 2);
        }
        // CenterCrop rounds half to even. `full` is below 2^53: the float is exact.
        let first = ((full - u64::from(size)) as f64 / 2.0).round_ties_even();
        let scale = f64::from(len) / full as f64;
        (
            Self {
                from: first * scale,
                len: f64::from(size) * scale,
                to: size,
            },
            0,
        )
    }
}

/// A separable resampling: one pass an axis, 8 bits in between.
struct Plan {
    columns: Span,
    rows: Span,
    /// fast_image_resize alone would always take rows first.
    rows_first: bool,
    filter: Interpolation,
}

impl Plan {
    /// Fills `out`; `between` holds the result of the first pass. Of that only what the second needs is made.
    fn run(&self, lanes: Lanes, axes: &mut Axes, between: &mut Vec<u8>, source: Pixels<'_>, out: &mut [u8]) {
        let Axes { columns, rows } = axes;
        let (width, height) = (source.width as u32, source.height as u32);
        if self.columns.is_copy() || self.rows.is_copy() {
            return self.run_one(lanes, axes, source, out);
        }
        columns.plan(lanes, self.filter, width, self.columns, resample::COLUMNS_LEAST);
        rows.plan(lanes, self.filter, height, self.rows, resample::ROWS_LEAST);
        if self.rows_first {
            let (left, width) = columns.take_reach(width);
            between.resize(width as usize * self.rows.to as usize * 4, 0);
            resample::rows(lanes, source.part(left, 0, width, height), rows, between);
            resample::columns(lanes, pixels(between, width, self.rows.to), columns, out);
        } else {
            let (top, height) = rows.take_reach(height);
            between.resize(self.columns.to as usize * height as usize * 4, 0);
            resample::columns(lanes, source.part(0, top, width, height), columns, between);
            resample::rows(lanes, pixels(between, self.columns.to, height), rows, out);
        }
    }

    /// The same if at most one axis is filtered.
    fn run_one(&self, lanes: Lanes, axes: &mut Axes, source: Pixels<'_>, out: &mut [u8]) {
        let Axes { columns, rows } = axes;
        let (mut left, mut top, mut width, mut height) = (0, 0, source.width as u32, source.height as u32);
        if self.columns.is_copy() {
            (left, width) = (self.columns.from as u32, self.columns.to);
        }
        if self.rows.is_copy() {
            (top, height) = (self.rows.from as u32, self.rows.to);
        }
        let part = source.part(left, top, width, height);
        if !self.columns.is_copy() {
            columns.plan(lanes, self.filter, width, self.columns, resample::COLUMNS_LEAST);
            resample::columns(lanes, part, columns, out);
        } else if !self.rows.is_copy() {
            rows.plan(lanes, self.filter, height, self.rows, resample::ROWS_LEAST);
            resample::rows(lanes, part, rows, out);
        } else {
            for (y, out) in out.chunks_exact_mut(4 * part.width).enumerate() {
                out.copy_from_slice(part.row(y));
            }
        }
    }

    /// The same by fast_image_resize.
    fn run_elsewhere(&self, resizer: &mut Resizer, between: &mut Vec<u8>, source: &impl IntoImageView, out: &mut [u8]) {
        if self.columns.is_copy() || self.rows.is_copy() {
            return self.pass(resizer, source, self.columns, self.rows, out);
        }
        let still = |len| Span::all(len, len);
        let (first, second) = if self.rows_first {
            ((still(source.width()), self.rows), (self.columns, still(self.rows.to)))
        } else {
            (
                (self.columns, still(source.height())),
                (still(self.columns.to), self.rows),
            )
        };
        let [width, height] = [first.0.to, first.1.to];
        between.resize(width as usize * height as usize * 4, 0);
        self.pass(resizer, source, first.0, first.1, between);
        let half = ImageRef::new(width, height, between, PixelType::U8x4).expect("the buffer was sized above");
        self.pass(resizer, &half, second.0, second.1, out);
    }

    /// One call of fast_image_resize.
    fn pass(&self, resizer: &mut Resizer, source: &impl IntoImageView, x: Span, y: Span, out: &mut [u8]) {
        let filter = match self.filter {
            Interpolation::Bilinear => FilterType::Bilinear,
            Interpolation::Bicubic => FilterType::CatmullRom,
        };
        // Here neighbours outside the span are meant to be read: a centre crop is cut after the resize.
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(filter))
            .crop(x.from, y.from, x.len, y.len)
            .use_alpha(false);
        let mut target = Image::from_slice_u8(x.to, y.to, out, PixelType::U8x4).expect("the caller sized the buffer");
        resizer
            .resize(source, &mut target, &options)
            .expect("same pixel type, span inside the source");
    }
}

/// Pillow 13 filters columns first, unless the height shrinks by more than twice the pixels that the width does (its pull
/// request 9549; the rule was found by 6,000 resizes). Up to Pillow 12 columns always came first: values differ where the
/// first pass is clipped.
fn rows_first(width: u32, height: u32, to_width: u64, to_height: u64) -> bool {
    let lost = |from: u32, to: u64| i64::from(from) - to as i64;
    lost(height, to_height) > (2 * lost(width, to_width)).max(0)
}

/// A whole image, row after row.
fn pixels(bytes: &[u8], width: u32, height: u32) -> Pixels<'_> {
    let (width, height) = (width as usize, height as usize);
    assert_eq!(bytes.len(), 4 * width * height);
    Pixels {
        bytes,
        stride: 4 * width,
        width,
        height,
    }
}

/// e^x for |x| below about 50, from additions and multiplications only: the system's `exp` may differ in the last bit
/// from CPU to CPU, and a crop must not. Relative error below 1e-12.
fn exp(x: f64) -> f64 {
    // e^x = (e^(x/1024))^1024: Taylor to the seventh power, ten squarings.
    let r = x / 1024.0;
    let mut sum = 1.0;
    for n in (1..=7).rev() {
        sum = 1.0 + sum * r / f64::from(n);
    }
    (0..10).fold(sum, |power, _| power * power)
}

/// Natural logarithm likewise. Absolute error below 1e-12 for x in 1e-3..1e3.
fn ln(x: f64) -> f64 {
    // ln x = 1024 ln x^(1/1024) by ten square roots, then 2 artanh((m - 1) / (m + 1)).
    let m = (0..10).fold(x, |root, _| root.sqrt());
    let y = (m - 1.0) / (m + 1.0);
    let square = y * y;
    2048.0 * y * (1.0 + square * (1.0 / 3.0 + square * (1.0 / 5.0 + square / 7.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn own_exp_and_ln_are_close_to_the_systems() {
        for step in -300..=300 {
            let x = f64::from(step) / 100.0;
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-12, "exp {x}");
            let y = x.exp();
            assert!((ln(y) - x).abs() < 1e-12, "ln {y}");
        }
    }

    #[test]
    fn fallback_is_centred_and_never_empty() {
        // Values of torchvision's formula, by hand: 100 / 0.75 = 133.3, (1000 - 133) / 2 = 433.
        let ratio = [3.0 / 4.0, 4.0 / 3.0];
        assert_eq!(
            fallback_box(100, 1000, ratio),
            Region {
                left: 0,
                top: 433,
                width: 100,
                height: 133
            }
        );
        assert_eq!(
            fallback_box(90, 80, ratio),
            Region {
                left: 0,
                top: 0,
                width: 90,
                height: 80
            }
        );
        assert_eq!(
            fallback_box(1, 1, [3.0, 4.0]),
            Region {
                left: 0,
                top: 0,
                width: 1,
                height: 1
            }
        );
    }

    /// A part of `region` of the size and at the place that shares of 256 say.
    fn part(region: Region, [x, y, w, h]: [u8; 4]) -> Region {
        let share = |side: u32, cut: u8| u32::from(cut) * side / 256;
        let (left, top) = (share(region.width, x), share(region.height, y));
        Region {
            left: region.left + left,
            top: region.top + top,
            width: 1 + share(region.width - left - 1, w),
            height: 1 + share(region.height - top - 1, h),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Without AVX2 it is fast_image_resize that resamples; boxes of an image of which a part is held.
        #[test]
        fn crops_are_the_same_on_every_path(
            size in [1u32..=160, 1u32..=160], held: [u8; 4], cut: [u8; 4], to in [1u32..=120, 1u32..=120], bicubic: bool, seed: u8,
        ) {
            let filter = if bicubic { Interpolation::Bicubic } else { Interpolation::Bilinear };
            let held = part(Region::all(size[0], size[1]), held);
            let pixels = (0..held.width * held.height * 4).map(|i| (i.wrapping_mul(2_654_435_761) >> 21) as u8 ^ seed);
            let image = Rgbx8 { width: size[0], height: size[1], part: held, pixels: pixels.collect() };
            let mut resampler = Resampler::default();
            let mut crops = Lanes::all().into_iter().map(|(name, lanes)| {
                (name, resampler.crop(lanes, &image, part(held, cut), filter, to[0], to[1]).to_vec())
            });
            let (_, expected) = crops.next().unwrap();
            for (name, crop) in crops {
                prop_assert!(crop == expected, "{}", name);
            }
        }

        /// Likewise what reads pixels outside its span, and leaves out what the second pass does not need.
        #[test]
        fn centre_crops_are_the_same_on_every_path(
            width in 1u32..=160, height in 1u32..=160, resize in 1u32..=100, size in 1u32..=100, bicubic: bool, seed: u8,
        ) {
            let filter = if bicubic { Interpolation::Bicubic } else { Interpolation::Bilinear };
            let rgb: Vec<u8> = (0..width * height * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 21) as u8 ^ seed).collect();
            let image = Rgbx8::from_rgb(width, height, &rgb);
            let (mut resampler, mut expected) = (Resampler::default(), None);
            for (name, lanes) in Lanes::all() {
                let mut out = vec![9; (size * size * 3) as usize];
                resampler.center(lanes, &image, resize, size, filter, &mut out);
                let expected = expected.get_or_insert_with(|| out.clone());
                prop_assert!(&out == expected, "{}", name);
            }
        }
    }

    #[test]
    fn a_sliver_needs_no_huge_buffer() {
        let image = Rgbx8::from_rgb(1, 40_000, &[77; 120_000]);
        let mut resampler = Resampler::default();
        let mut out = vec![0; 64 * 64 * 3];
        resampler.center(Lanes::default(), &image, 73, 64, Interpolation::Bicubic, &mut out);
        assert!(out.iter().all(|&v| v == 77));
        assert!(resampler.between.len() <= 64 * 40_000 * 4);
    }
}
