//! How long views take: CPU time to read, nothing to pass.
//!
//! `cargo test --no-default-features --lib view::tests::measure -- --ignored --nocapture`. The benchmark of record is elsewhere.

use crate::data::{
    Rgbx8,
    rng::{Domain, Philox},
};
use crate::feed::blur::{BlurScratch, gaussian};
use crate::feed::simd::Lanes;
use crate::feed::view::{Op, Scratch, ViewOptions, ViewsOptions};
use crate::feed::{color, planes};
use std::time::Instant;

/// Size of most photographs of the shared data set; smooth with fine noise, so that branches see a photograph's variety.
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

/// Seconds this thread has run on a CPU, so that a busy machine disturbs less; the clock where Linux is not.
fn seconds(start: Instant) -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    match text
        .split(' ')
        .next()
        .and_then(|nanoseconds| nanoseconds.parse::<f64>().ok())
    {
        Some(nanoseconds) => nanoseconds / 1e9,
        None => start.elapsed().as_secs_f64(),
    }
}

/// The kernel counts in ticks of some milliseconds: half a second of work makes them small.
fn time(what: &str, mut work: impl FnMut(u32)) {
    work(0);
    let start = Instant::now();
    let (before, mut rounds) = (seconds(start), 0);
    while start.elapsed().as_secs_f64() < 0.5 {
        (rounds..rounds + 20).for_each(&mut work);
        rounds += 20;
    }
    println!(
        "{what:<28}{:>9.1} us",
        (seconds(start) - before) * 1e6 / f64::from(rounds)
    );
}

#[test]
#[ignore = "a measurement"]
fn time_of_views_and_passes() {
    let image = photo();
    let mut scratch = Scratch::default();
    let mut out = vec![0; 224 * 224 * 3];
    let views = ViewsOptions::default().views();
    time("two official 224 views", |round| {
        for (which, view) in views.iter().enumerate() {
            let mut rng = Philox::new(3, Domain::View, 0, round.into(), which as u8);
            view.render(&image, &mut rng, &mut scratch, &mut out);
        }
    });
    let bare = ViewOptions {
        order: Vec::<Op>::new(),
        ..ViewOptions::default()
    };
    time("crop and resize", |round| {
        let params = bare.draw(500, 375, &mut Philox::new(3, Domain::View, 0, round.into(), 0));
        bare.apply(&image, &params, 224, &mut scratch, &mut out);
    });
    let lanes = Lanes::default();
    planes::gather(lanes, &Rgbx8::from_rgb(224, 224, &out).pixels, 224, false, &mut out);
    let view = out.clone();
    let mut blur = BlurScratch::default();
    let mut pass = |name: &str, work: &mut dyn FnMut(&mut [u8])| {
        time(name, |_| {
            out.copy_from_slice(&view);
            work(&mut out);
        });
    };
    pass("copy alone", &mut |_| {});
    pass("brightness", &mut |out| color::brightness(lanes, out, 1.2));
    pass("contrast", &mut |out| color::contrast(lanes, out, 1.2));
    pass("saturation", &mut |out| color::saturation(lanes, out, 1.2));
    pass("hue", &mut |out| color::hue(lanes, out, 0.07));
    pass("grey", &mut |out| color::grey(lanes, out));
    pass("solarise", &mut |out| color::solarize(lanes, out, 128));
    pass("blur, sigma 0.8", &mut |out| {
        gaussian(lanes, out, 224, 224, 0.8, &mut blur)
    });
    pass("blur, sigma 1.8", &mut |out| {
        gaussian(lanes, out, 224, 224, 1.8, &mut blur)
    });
    pass("blur, sigma 5", &mut |out| {
        gaussian(lanes, out, 224, 224, 5.0, &mut blur)
    });
}
