//! What must hold for any image, any valid options and any draw.

use crate::data::{
    Region, Rgbx8,
    rng::{Domain, Philox},
    simd::Lanes,
};
use crate::feed::blur::{BlurScratch, gaussian};
use crate::feed::view::{Drawn, Interpolation, Op, Scratch, View, ViewOptions, ViewParams};
use crate::feed::{color, planes};
use proptest::prelude::*;

fn image(width: u32, height: u32, seed: u64) -> Rgbx8 {
    let mut rng = Philox::new(seed, Domain::Shapes, 0, 0, 0);
    let pixels: Vec<u8> = (0..width * height * 3).map(|_| rng.next_u32() as u8).collect();
    Rgbx8::from_rgb(width, height, &pixels)
}

fn images() -> impl Strategy<Value = Rgbx8> {
    (1u32..=80, 1u32..=80, any::<u64>()).prop_map(|(width, height, seed)| image(width, height, seed))
}

fn interpolations() -> impl Strategy<Value = Interpolation> {
    prop_oneof![Just(Interpolation::Bilinear), Just(Interpolation::Bicubic)]
}

fn views() -> impl Strategy<Value = View> {
    let ops = vec![Op::Flip, Op::Jitter, Op::Grey, Op::Blur, Op::Solarize];
    let order = Just(ops).prop_shuffle();
    let ends = |low: f64, high: f64| (low..high, low..high).prop_map(|(a, b)| if a < b { [a, b] } else { [b, a] });
    let crop = (ends(0.001, 1.0), ends(0.05, 8.0), interpolations(), 1u32..50);
    let chance = || prop_oneof![Just(0.0), Just(1.0), 0.0..1.0];
    let chances = (chance(), chance(), chance(), chance(), chance());
    let amounts = (0.0..2.0, 0.0..2.0, 0.0..2.0, 0.0..=0.5);
    let random = (order, crop, chances, amounts, ends(0.0, 40.0), any::<u8>()).prop_map(
        |(order, (scale, ratio, interpolation, size), chances, amounts, blur_sigma, solarize_threshold)| {
            let options = ViewOptions {
                order,
                crop_scale: scale,
                crop_ratio: ratio,
                interpolation,
                flip: chances.0,
                jitter: chances.1,
                grey: chances.2,
                blur: chances.3,
                solarize: chances.4,
                brightness: amounts.0,
                contrast: amounts.1,
                saturation: amounts.2,
                hue: amounts.3,
                blur_sigma,
                solarize_threshold,
            };
            assert_eq!(options.validate("view"), []);
            View::Random { options, size }
        },
    );
    let center = (1u32..60, 1u32..60, interpolations()).prop_map(|(resize, size, interpolation)| View::Center {
        resize,
        size,
        interpolation,
    });
    prop_oneof![3 => random, 1 => center]
}

/// A view on a canvas that was filled with `before`.
fn render(view: &View, image: &Rgbx8, seed: u64, scratch: &mut Scratch, before: u8) -> Vec<u8> {
    let mut out = vec![before; (view.size() * view.size() * 3) as usize];
    view.render(image, &draw(view, image, seed, 0), scratch, &mut out);
    out
}

fn draw(view: &View, image: &Rgbx8, seed: u64, number: u8) -> Drawn {
    view.draw(
        image.width,
        image.height,
        &mut Philox::new(seed, Domain::View, 1, 5, number),
    )
}

/// The same image, of which only `part` is held.
fn cut(image: &Rgbx8, part: Region) -> Rgbx8 {
    let row = |y: u32| {
        let at = |x: u32| (y * image.width + x) as usize * 4;
        &image.pixels[at(part.left)..at(part.right())]
    };
    Rgbx8 {
        part,
        pixels: (part.top..part.bottom()).flat_map(row).copied().collect(),
        ..*image
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// No panic; every byte written (what lay there before does not show); the same stream gives the same view; what the
    /// scratch did before does not show.
    #[test]
    fn a_view_is_a_function_of_image_options_and_stream(
        view in views(), image in images(), seed in any::<u64>(), others in prop::collection::vec((views(), images()), 0..3),
    ) {
        let fresh = render(&view, &image, seed, &mut Scratch::default(), 0);
        let mut used = Scratch::default();
        for (other, its_image) in &others {
            render(other, its_image, seed, &mut used, 9);
        }
        prop_assert_eq!(fresh, render(&view, &image, seed, &mut used, 255));
    }

    /// Two views, of an image that holds only the box around what they need: the bytes are those of the whole image.
    #[test]
    fn views_need_no_more_than_their_regions(pair in [views(), views()], image in images(), seed in any::<u64>()) {
        let drawn = [0, 1].map(|number| draw(&pair[usize::from(number)], &image, seed, number));
        let part = cut(&image, drawn[0].region().union(drawn[1].region()));
        let mut scratch = Scratch::default();
        for (view, drawn) in pair.iter().zip(&drawn) {
            let mut out = [1, 2].map(|before| vec![before; (view.size() * view.size() * 3) as usize]);
            view.render(&image, drawn, &mut scratch, &mut out[0]);
            view.render(&part, drawn, &mut scratch, &mut out[1]);
            prop_assert_eq!(&out[0], &out[1], "{:?} of {:?}", drawn, part.part);
        }
    }

    /// What `apply` folds and skips does not show.
    #[test]
    fn a_view_is_its_operations_one_by_one(view in views(), image in images(), seed in any::<u64>(), used in 0usize..=5) {
        let View::Random { mut options, size } = view else { return Ok(()) };
        options.order.truncate(used);
        let params = options.draw(image.width, image.height, &mut Philox::new(seed, Domain::View, 0, 0, 0));
        let mut out = vec![0; (size * size * 3) as usize];
        options.apply(&image, &params, size, &mut Scratch::default(), &mut out);
        prop_assert_eq!(out, one_by_one(&options, &params, &image, size), "{:?} {:?}", options.order, params);
    }

    /// An image of one colour stays of one colour through crop, resize, flip and blur.
    #[test]
    fn filters_keep_a_flat_image(
        color in any::<[u8; 3]>(), width in 1u32..80, height in 1u32..80, size in 1u32..50, seed in any::<u64>(),
        interpolation in interpolations(), sigma in 0.0..30.0,
    ) {
        let pixels = color.repeat((width * height) as usize);
        let options = ViewOptions {
            order: vec![Op::Flip, Op::Blur], interpolation, blur_sigma: [sigma, sigma], ..ViewOptions::default()
        };
        let image = Rgbx8::from_rgb(width, height, &pixels);
        let out = render(&View::Random { options, size }, &image, seed, &mut Scratch::default(), 7);
        prop_assert!(out.chunks(3).all(|point| point == color), "{:?}", out);
    }
}

/// The operations one by one, each on the whole view and in its place: no folding, no plane that stands for others.
fn one_by_one(options: &ViewOptions, params: &ViewParams, image: &Rgbx8, size: u32) -> Vec<u8> {
    let (side, lanes) = (size as usize, Lanes::default());
    let mut rgb = vec![0; side * side * 3];
    let bare = ViewOptions {
        order: Vec::new(),
        ..options.clone()
    };
    bare.apply(image, params, size, &mut Scratch::default(), &mut rgb);
    for op in &options.order {
        let mut planes = vec![0; rgb.len()];
        planes::gather(
            lanes,
            &Rgbx8::from_rgb(size, size, &rgb).pixels,
            side,
            false,
            &mut planes,
        );
        match op {
            Op::Flip if params.flip => planes.chunks_exact_mut(side).for_each(<[u8]>::reverse),
            Op::Jitter => params.jitter.iter().for_each(|jitter| jitter.apply(lanes, &mut planes)),
            Op::Grey if params.grey => color::grey(lanes, &mut planes),
            Op::Blur => params
                .blur
                .iter()
                .for_each(|&sigma| gaussian(lanes, &mut planes, side, side, sigma, &mut BlurScratch::default())),
            Op::Solarize if params.solarize => color::solarize(lanes, &mut planes, options.solarize_threshold),
            _ => {}
        }
        planes::scatter(lanes, &mut planes, &mut rgb);
    }
    rgb
}

/// A crop sees nothing outside its box: with other pixels around it, the view is the same.
#[test]
fn a_crop_ignores_what_is_around_it() {
    let mut scratch = Scratch::default();
    let options = ViewOptions {
        order: Vec::new(),
        ..ViewOptions::default()
    };
    for seed in 0..200 {
        let whole = image(70, 50, 1);
        let mut rng = Philox::new(seed, Domain::View, 0, 0, 0);
        let params = options.draw(whole.width, whole.height, &mut rng);
        let (x, y) = (
            params.crop.left..params.crop.left + params.crop.width,
            params.crop.top..params.crop.top + params.crop.height,
        );
        let mut around = image(70, 50, 2);
        for row in y {
            let at = |column: u32| ((row * 70 + column) * 4) as usize;
            let part = at(x.start)..at(x.end);
            around.pixels[part.clone()].copy_from_slice(&whole.pixels[part]);
        }
        let mut views = [vec![0; 24 * 24 * 3], vec![0; 24 * 24 * 3]];
        options.apply(&whole, &params, 24, &mut scratch, &mut views[0]);
        options.apply(&around, &params, 24, &mut scratch, &mut views[1]);
        assert_eq!(views[0], views[1], "{params:?}");
    }
}
