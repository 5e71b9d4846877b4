//! Each kernel on each path of this CPU, beside the crates that do the same.
//!
//! `cargo bench -p vicreg-stream-benches`. The fastest time is the one to compare: machines are shared. A view is 224 x 224; the
//! photograph is made here, 500 x 375, with waves and noise, as the size of most ImageNet photographs.

use divan::{Bencher, black_box};
use vicreg_stream::data::rng::{Domain, Philox};
use vicreg_stream::data::simd::Lanes;
use vicreg_stream::data::{DecodeOptions, Decoder, Region, Rgbx8};
use vicreg_stream::feed::blur::{BlurScratch, gaussian};
use vicreg_stream::feed::crop::Resampler;
use vicreg_stream::feed::view::{Interpolation, Scratch, ViewOptions, ViewsOptions};
use vicreg_stream::feed::{color, planes};

#[global_allocator]
static ALLOCATOR: divan::AllocProfiler<mimalloc::MiMalloc> = divan::AllocProfiler::new(mimalloc::MiMalloc);

const SIDE: usize = 224;
const VIEW: usize = SIDE * SIDE * 3;

fn main() {
    divan::main();
}

fn photo() -> Rgbx8 {
    let (width, height) = (500u32, 375u32);
    let mut pixels = Vec::new();
    for y in 0..height {
        let mut rng = Philox::new(1, Domain::Shapes, 0, y.into(), 0);
        for x in 0..width {
            let wave = |a: u32, b: u32| 110.0 + 90.0 * (f64::from(x * a + y * b) / 97.0).sin();
            pixels.extend([(3, 1), (2, 2), (1, 4)].map(|(a, b)| (wave(a, b) + f64::from(rng.below(24))) as u8));
        }
    }
    Rgbx8::from_rgb(width, height, &pixels)
}

/// A planar view of the photograph.
fn view() -> Vec<u8> {
    let (mut resampler, mut planar) = (Resampler::default(), vec![0; VIEW]);
    let whole = Region {
        left: 20,
        top: 10,
        width: 450,
        height: 340,
    };
    let side = SIDE as u32;
    let crop = resampler
        .crop(Lanes::default(), &photo(), whole, Interpolation::Bicubic, side, side)
        .to_vec();
    planes::gather(Lanes::default(), &crop, SIDE, false, &mut planar);
    planar
}

fn paths() -> Vec<&'static str> {
    Lanes::all().into_iter().map(|(name, _)| name).collect()
}

fn lanes(path: &str) -> Lanes {
    let (_, lanes) = Lanes::all()
        .into_iter()
        .find(|(name, _)| *name == path)
        .expect("a path of this CPU");
    lanes
}

/// A pass in place on a fresh copy; the copy (some 3 us) is not counted.
fn pass(bencher: Bencher, work: impl Fn(&mut [u8]) + Sync) {
    let view = view();
    bencher.with_inputs(|| view.clone()).bench_refs(|view| work(view));
}

mod passes {
    use super::*;

    #[divan::bench(args = paths())]
    fn brightness(bencher: Bencher, path: &str) {
        let lanes = lanes(path);
        pass(bencher, |view| color::brightness(lanes, view, 1.2));
    }

    #[divan::bench(args = paths())]
    fn contrast(bencher: Bencher, path: &str) {
        let lanes = lanes(path);
        pass(bencher, |view| color::contrast(lanes, view, 1.2));
    }

    #[divan::bench(args = paths())]
    fn saturation(bencher: Bencher, path: &str) {
        let lanes = lanes(path);
        pass(bencher, |view| color::saturation(lanes, view, 1.2));
    }

    #[divan::bench(args = paths())]
    fn hue(bencher: Bencher, path: &str) {
        let lanes = lanes(path);
        pass(bencher, |view| color::hue(lanes, view, 0.07));
    }

    #[divan::bench(args = paths())]
    fn grey(bencher: Bencher, path: &str) {
        let lanes = lanes(path);
        pass(bencher, |view| color::grey(lanes, view));
    }

    #[divan::bench(args = paths())]
    fn solarize(bencher: Bencher, path: &str) {
        let lanes = lanes(path);
        pass(bencher, |view| color::solarize(lanes, view, 128));
    }

    #[divan::bench(args = paths())]
    fn to_planes_mirrored(bencher: Bencher, path: &str) {
        let (crop, lanes) = (vec![77; SIDE * SIDE * 4], lanes(path));
        pass(bencher, |out| planes::gather(lanes, &crop, SIDE, true, out));
    }

    #[divan::bench(args = paths())]
    fn from_planes(bencher: Bencher, path: &str) {
        let (view, lanes) = (view(), lanes(path));
        bencher
            .with_inputs(|| (view.clone(), view.clone()))
            .bench_refs(|(planar, rgb)| planes::scatter(lanes, planar, rgb));
    }
}

mod blur {
    use super::*;

    /// Pillow's three extended boxes: the reference's blur and ours.
    #[divan::bench(args = paths().into_iter().flat_map(|path| [(path, 0.8), (path, 1.8)]))]
    fn boxes(bencher: Bencher, (path, sigma): (&str, f32)) {
        // Blurred over and over: the time does not depend on the pixels, and the buffers are warm as in the feed.
        let (mut view, lanes, mut scratch) = (view(), lanes(path), BlurScratch::default());
        bencher.bench_local(|| gaussian(lanes, &mut view, SIDE, SIDE, sigma, &mut scratch));
    }

    /// What a true Gaussian would cost: libblur's, 3 sigma on either side.
    #[divan::bench(args = [0.8, 1.8])]
    fn libblur_gaussian(bencher: Bencher, sigma: f64) {
        use libblur::{BlurImage, BlurImageMut, ConvolutionMode, EdgeMode, EdgeMode2D, FastBlurChannels};
        let view = view();
        let taps = 2 * (3.0 * sigma).ceil() as u32 + 1;
        let side = SIDE as u32;
        bencher.with_inputs(|| view.clone()).bench_refs(|out| {
            let source = BlurImage::borrow(&view, side, side, FastBlurChannels::Channels3);
            let mut target = BlurImageMut::borrow(out, side, side, FastBlurChannels::Channels3);
            libblur::gaussian_blur(
                &source,
                &mut target,
                libblur::GaussianBlurParams::new(taps, sigma),
                EdgeMode2D::new(EdgeMode::Clamp),
                libblur::ThreadingPolicy::Single,
                ConvolutionMode::FixedPoint,
            )
            .expect("same sizes");
        });
    }
}

mod crop {
    use super::*;
    use fast_image_resize::images::{CroppedImage, Image, ImageRef};
    use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

    /// The boxes of the official recipe, one after the other.
    fn boxes() -> impl FnMut() -> Region {
        let options = ViewOptions::default();
        let mut round = 0;
        move || {
            round += 1;
            let mut rng = Philox::new(3, Domain::View, 0, round, 0);
            options.draw(500, 375, &mut rng).crop
        }
    }

    /// Two passes in Pillow's order.
    #[divan::bench]
    fn ours(bencher: Bencher) {
        let (photo, mut next, mut resampler) = (photo(), boxes(), Resampler::default());
        bencher.bench_local(|| {
            let (lanes, side) = (Lanes::default(), SIDE as u32);
            black_box(resampler.crop(lanes, &photo, next(), Interpolation::Bicubic, side, side));
        });
    }

    /// One call, in the crate's own order.
    #[divan::bench]
    fn fast_image_resize_one_call(bencher: Bencher) {
        let (photo, mut next, mut resizer) = (photo().pixels, boxes(), Resizer::new());
        let mut out = vec![0; SIDE * SIDE * 4];
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
            .use_alpha(false);
        bencher.bench_local(|| {
            let part = next();
            let whole = ImageRef::new(500, 375, &photo, PixelType::U8x4).expect("the photo's size");
            let part = CroppedImage::new(&whole, part.left, part.top, part.width, part.height).expect("inside");
            let mut target =
                Image::from_slice_u8(SIDE as u32, SIDE as u32, &mut out, PixelType::U8x4).expect("its size");
            resizer.resize(&part, &mut target, &options).expect("same pixel type");
        });
    }
}

mod decode {
    use super::*;

    fn jpeg() -> Vec<u8> {
        let photo = photo();
        let mut bytes = Vec::new();
        jpeg_encoder::Encoder::new(&mut bytes, 90)
            .encode(&photo.to_rgb(), 500, 375, jpeg_encoder::ColorType::Rgb)
            .expect("memory");
        bytes
    }

    /// Header walk, limits, zeroed buffer, decoder.
    #[divan::bench]
    fn ours(bencher: Bencher) {
        let (bytes, mut decoder, mut image) = (jpeg(), Decoder::default(), Rgbx8::default());
        bencher.bench_local(|| decoder.decode(&bytes, &DecodeOptions::default(), &mut image));
    }

    /// The decoder alone, with the same options.
    #[divan::bench]
    fn zune_jpeg(bencher: Bencher) {
        let bytes = jpeg();
        let mut out = vec![0; 500 * 375 * 4];
        bencher.bench_local(|| {
            let options = zune_core::options::DecoderOptions::default()
                .set_strict_mode(true)
                .jpeg_set_out_colorspace(zune_core::colorspace::ColorSpace::RGBA);
            let reader = zune_core::bytestream::ZCursor::new(&bytes);
            let mut decoder = zune_jpeg::JpegDecoder::new_with_options(reader, options);
            decoder.decode_headers().expect("a JPEG");
            decoder.decode_into(&mut out).expect("a JPEG");
        });
    }
}

/// The official recipe's two views of a decoded photograph.
#[divan::bench]
fn two_views(bencher: Bencher) {
    let (photo, views) = (photo(), ViewsOptions::default().views());
    let (mut scratch, mut out, mut round) = (Scratch::default(), vec![0; VIEW], 0);
    bencher.bench_local(|| {
        round += 1;
        for (number, view) in views.iter().enumerate() {
            let mut rng = Philox::new(3, Domain::View, 0, round, number as u8);
            let drawn = view.draw(photo.width, photo.height, &mut rng);
            view.render(&photo, &drawn, &mut scratch, &mut out);
            black_box(&out);
        }
    });
}
