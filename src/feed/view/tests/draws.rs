//! 100,000 draws against torchvision's 100,000: the same distribution, option by option.
//!
//! Histograms are compared by the Kolmogorov-Smirnov distance at the edges of their bins. Two samples of one distribution are
//! further apart than sqrt(ln(2 / p) / n) with probability p. Our draws have a fixed seed, so a test passes always or never.

use super::fixture;
use crate::data::{
    Region,
    rng::{Domain, Philox},
};
use crate::feed::crop::fallback_box;
use crate::feed::view::{ViewOptions, ViewParams};
use serde::Deserialize;
use std::collections::BTreeMap;

const N: usize = 100_000;
/// p = 1e-5.
const LARGEST_DISTANCE: f64 = 0.01105;

#[derive(Deserialize)]
struct Draws {
    n: usize,
    crops: Vec<Crops>,
    orders: BTreeMap<String, usize>,
    brightness: Histogram,
    contrast: Histogram,
    saturation: Histogram,
    hue: Histogram,
    sigma: Histogram,
    probabilities: BTreeMap<String, (f64, usize)>,
}

#[derive(Deserialize)]
struct Crops {
    width: u32,
    height: u32,
    scale: [f64; 2],
    ratio: [f64; 2],
    area: Histogram,
    log_ratio: Histogram,
    left: Histogram,
    top: Histogram,
    fallback: usize,
}

#[derive(Deserialize)]
struct Histogram {
    low: f64,
    high: f64,
    counts: Vec<usize>,
}

impl Histogram {
    /// Fails if `values` do not look like draws from this histogram's distribution.
    fn check(&self, what: &str, values: impl Iterator<Item = f64>) {
        let bins = self.counts.len();
        let mut counts = vec![0usize; bins];
        for value in values {
            let place = ((value - self.low) / (self.high - self.low) * bins as f64).floor();
            counts[place.clamp(0.0, (bins - 1) as f64) as usize] += 1;
        }
        assert_eq!(counts.iter().sum::<usize>(), N, "{what}");
        let (mut ours, mut theirs, mut distance) = (0, 0, 0.0f64);
        for (a, b) in counts.iter().zip(&self.counts) {
            ours += a;
            theirs += b;
            distance = distance.max((ours as f64 - theirs as f64).abs() / N as f64);
        }
        println!("{what:<28} distance {distance:.4}");
        assert!(distance < LARGEST_DISTANCE, "{what}: distance {distance}");
    }
}

fn draws() -> Draws {
    let draws: Draws = serde_json::from_slice(&fixture("draws.json")).expect("the fixture is valid");
    assert_eq!(draws.n, N);
    draws
}

/// Draws as the feed does: one stream for each position.
fn many(options: &ViewOptions, width: u32, height: u32) -> Vec<ViewParams> {
    let stream = |position| Philox::new(17, Domain::View, 2, position, 1);
    (0..N as u64)
        .map(|position| options.draw(width, height, &mut stream(position)))
        .collect()
}

/// Counts of two binomial samples may differ by 5 standard deviations.
fn check_share(what: &str, ours: usize, theirs: usize) {
    let p = (ours + theirs) as f64 / (2 * N) as f64;
    let deviation = (2.0 * N as f64 * p * (1.0 - p)).sqrt();
    println!(
        "{what:<28} {:.4} against {:.4}",
        ours as f64 / N as f64,
        theirs as f64 / N as f64
    );
    assert!(
        (ours as f64 - theirs as f64).abs() <= 5.0 * deviation,
        "{what}: {ours} against {theirs}"
    );
}

#[test]
fn crops_are_distributed_as_torchvisions() {
    let draws = draws();
    assert_eq!(draws.crops.len(), 4);
    for theirs in draws.crops {
        let (width, height) = (theirs.width, theirs.height);
        let options = ViewOptions {
            crop_scale: theirs.scale,
            crop_ratio: theirs.ratio,
            ..ViewOptions::default()
        };
        let boxes: Vec<Region> = many(&options, width, height).iter().map(|params| params.crop).collect();
        let name = |what: &str| format!("{width}x{height} {what}");
        let area = f64::from(width) * f64::from(height);
        let size = |b: &Region| (f64::from(b.width), f64::from(b.height));
        theirs
            .area
            .check(&name("area"), boxes.iter().map(|b| size(b).0 * size(b).1 / area));
        theirs
            .log_ratio
            .check(&name("log ratio"), boxes.iter().map(|b| (size(b).0 / size(b).1).ln()));
        // Where it lies in the room it has.
        let place = |first: u32, room: u32| {
            if room > 0 {
                (f64::from(first) + 0.5) / f64::from(room + 1)
            } else {
                0.5
            }
        };
        theirs
            .left
            .check(&name("left"), boxes.iter().map(|b| place(b.left, width - b.width)));
        theirs
            .top
            .check(&name("top"), boxes.iter().map(|b| place(b.top, height - b.height)));
        let fallback = fallback_box(width, height, theirs.ratio);
        check_share(
            &name("fallback"),
            boxes.iter().filter(|&&b| b == fallback).count(),
            theirs.fallback,
        );
    }
}

#[test]
fn jitter_and_blur_are_distributed_as_torchvisions() {
    let draws = draws();
    let params = many(
        &ViewOptions {
            jitter: 1.0,
            ..ViewOptions::default()
        },
        40,
        30,
    );
    let jitters: Vec<_> = params.iter().filter_map(|params| params.jitter.as_ref()).collect();
    let factor = |value: Option<f32>| f64::from(value.expect("the amount is not 0"));
    draws
        .brightness
        .check("brightness", jitters.iter().map(|jitter| factor(jitter.brightness)));
    draws
        .contrast
        .check("contrast", jitters.iter().map(|jitter| factor(jitter.contrast)));
    draws
        .saturation
        .check("saturation", jitters.iter().map(|jitter| factor(jitter.saturation)));
    draws.hue.check(
        "hue",
        jitters.iter().map(|jitter| jitter.hue.expect("the amount is not 0")),
    );
    draws
        .sigma
        .check("sigma", params.iter().map(|params| factor(params.blur)));

    let mut orders = BTreeMap::<String, usize>::new();
    for jitter in &jitters {
        let code = jitter.order.iter().fold(0, |code, &part| code * 4 + part as u32);
        *orders.entry(code.to_string()).or_default() += 1;
    }
    assert!(orders.keys().eq(draws.orders.keys()), "the 24 permutations");
    // Two samples of equal size: sum of (a - b)^2 / (a + b), 23 degrees of freedom, 62.4 is exceeded once in 60,000.
    let chi_square: f64 = orders
        .iter()
        .map(|(code, &ours)| (ours as f64, draws.orders[code] as f64))
        .map(|(a, b)| (a - b).powi(2) / (a + b))
        .sum();
    println!("jitter order: chi-square {chi_square:.1} for 23 degrees of freedom");
    assert!(chi_square < 62.4, "{chi_square}");
}

#[test]
fn probabilities_are_torchvisions() {
    let draws = draws();
    let p = |name: &str| draws.probabilities[name].0;
    let options = ViewOptions {
        flip: p("flip"),
        jitter: p("jitter"),
        grey: p("grey"),
        blur: p("blur"),
        solarize: p("solarize"),
        ..ViewOptions::default()
    };
    let params = many(&options, 40, 30);
    let check = |name: &str, drawn: fn(&ViewParams) -> bool| {
        check_share(
            name,
            params.iter().filter(|params| drawn(params)).count(),
            draws.probabilities[name].1,
        );
    };
    check("flip", |params| params.flip);
    check("jitter", |params| params.jitter.is_some());
    check("grey", |params| params.grey);
    check("blur", |params| params.blur.is_some());
    check("solarize", |params| params.solarize);
}

/// The chances must not depend on one another: each pair of the five comes together as often as p q says.
#[test]
fn chances_are_independent() {
    let half = ViewOptions {
        jitter: 0.5,
        grey: 0.5,
        blur: 0.5,
        solarize: 0.5,
        ..ViewOptions::default()
    };
    let params = many(&half, 40, 30);
    let drawn = |p: &ViewParams| [p.flip, p.jitter.is_some(), p.grey, p.blur.is_some(), p.solarize];
    for a in 0..5 {
        for b in 0..a {
            let both = params
                .iter()
                .filter(|params| drawn(params)[a] && drawn(params)[b])
                .count();
            // N / 4 with standard deviation 137: five of them.
            assert!(both.abs_diff(N / 4) < 685, "chances {b} and {a}: {both}");
        }
    }
}
