//! Digests of views, draws and order that must not change, pinned in `tests/fixtures/golden.toml`.
//!
//! This file proves nothing about what the pixels are: it holds them still. That they are right is shown elsewhere, by
//! numbers that are not ours: decoding against Pillow (`tests/fixtures/codec`, `data::codec::tests`), views against
//! torchvision on Pillow (`tests/fixtures/views`, `feed::view::tests`), draws against Random123's known answers
//! (`data::rng::tests`), the feed against a plain loop (`batches`).
//!
//! In: JPEG, PNG and WebP files that are committed (`tests/fixtures/codec`). Views and draws are stored under their
//! `AUGMENTATION_VERSION`, each version sealed by a digest of its own, and old versions stay in the file; so new
//! pixels need a new version. The order of a seed has no version: it never changes.
//!
//!     UPDATE_GOLDEN=1 cargo test --no-default-features --lib golden     # after AUGMENTATION_VERSION was raised

use super::*;
use crate::data::shard::{Labels, ShardWriter};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use view::{AUGMENTATION_VERSION, Op, ViewOptions};
use xxhash_rust::xxh3::xxh3_64;

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    /// Encoded images and the order of a seed.
    order: Digests,
    /// Views and draws by AUGMENTATION_VERSION.
    views: BTreeMap<String, Digests>,
}

/// Digests by what they are of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Digests {
    /// Digest of the digests and the version: a line that is changed by hand breaks it.
    seal: String,
    of: BTreeMap<String, String>,
}

impl Digests {
    fn sealed(name: &str, of: BTreeMap<String, String>) -> Self {
        let seal = Self::seal(name, &of);
        Self { seal, of }
    }

    fn seal(name: &str, of: &BTreeMap<String, String>) -> String {
        hex(xxh3_64(format!("{name} {of:?}").as_bytes()))
    }
}

fn hex(digest: u64) -> String {
    format!("{digest:016x}")
}

/// Holds what is `now` against what is `stored`. In an update, returns the file with the new version.
fn check(stored: &Golden, now: &Golden, version: u32, update: bool) -> Result<Option<Golden>, String> {
    let order = "order".to_owned();
    let sealed = stored.views.iter().chain([(&order, &stored.order)]);
    for (name, digests) in sealed.filter(|(_, digests)| !digests.of.is_empty()) {
        if digests.seal != Digests::seal(name, &digests.of) {
            return Err(format!(
                "`{name}` in golden.toml was changed by hand: put the old digests back"
            ));
        }
    }
    if !stored.order.of.is_empty() && stored.order != now.order {
        let changed = changed(&stored.order, &now.order);
        return Err(format!(
            "the order of a seed, or a fixture, has changed ({changed}): runs could not be resumed. It must not change."
        ));
    }
    let name = version.to_string();
    let newest = stored
        .views
        .keys()
        .filter_map(|name| name.parse().ok())
        .max()
        .unwrap_or(0);
    if newest > version {
        return Err(format!(
            "AUGMENTATION_VERSION is {version}, but golden.toml knows {newest}: it never falls"
        ));
    }
    match stored.views.get(&name) {
        Some(old) if *old == now.views[&name] => Ok(None),
        Some(old) => Err(format!(
            "pixels or draws have changed ({}). If they were meant to: raise AUGMENTATION_VERSION ({version}) in \
             src/feed/view.rs, together with new digests, by UPDATE_GOLDEN=1; runs of the old version are then not resumed.",
            changed(old, &now.views[&name])
        )),
        None if update => {
            let mut new = stored.clone();
            new.order = now.order.clone();
            new.views.extend(now.views.clone());
            Ok(Some(new))
        }
        None => Err(format!(
            "golden.toml has no digests of AUGMENTATION_VERSION {version}: run this test once with UPDATE_GOLDEN=1"
        )),
    }
}

fn changed(old: &Digests, new: &Digests) -> String {
    let all: std::collections::BTreeSet<&String> = old.of.keys().chain(new.of.keys()).collect();
    let differ = all.iter().filter(|name| old.of.get(**name) != new.of.get(**name));
    let names: Vec<&str> = differ.map(|name| name.as_str()).collect();
    let first = &names[..names.len().min(4)];
    format!("{} of {} digests, such as {}", names.len(), all.len(), first.join(", "))
}

/// Committed files, in this order: two shards, row groups of three.
const FILES: [&str; 14] = [
    "rgb444.jpg",
    "rgb422.jpg",
    "rgb420.jpg",
    "progressive420.jpg",
    "restart420.jpg",
    "grey.jpg",
    "cmyk.jpg",
    "exif6.jpg",
    "rgb.png",
    "palette.png",
    "rgba16.png",
    "lossless.webp",
    "lossy.webp",
    "alpha.webp",
];

fn committed() -> (Images, String) {
    let folder = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/codec");
    let mut all = Vec::new();
    for (number, files) in FILES.chunks(8).enumerate() {
        let path = folder.path().join(format!("{number}.parquet"));
        let mut shard = ShardWriter::create(&path, &Labels::None, 3).unwrap();
        for name in files {
            let bytes = std::fs::read(fixtures.join(name)).unwrap();
            shard.push(&bytes, Some(name), None).unwrap();
            all.extend(bytes);
        }
        shard.finish().unwrap();
    }
    let dataset = open(folder.path());
    (Images { folder, dataset }, hex(xxh3_64(&all)))
}

/// solo-learn's views for CIFAR-10: symmetric, no blur, the flip last.
fn cifar() -> ViewsOptions {
    let view = ViewOptions {
        order: vec![Op::Jitter, Op::Grey, Op::Solarize, Op::Flip],
        crop_scale: [0.2, 1.0],
        blur: 0.0,
        solarize: 0.1,
        ..ViewOptions::default()
    };
    ViewsOptions {
        size: 32,
        view: vec![view],
        ..ViewsOptions::default()
    }
}

/// Every operation in every view, for small sizes that no vector width divides.
fn everything() -> ViewsOptions {
    let view = ViewOptions {
        flip: 0.5,
        jitter: 1.0,
        hue: 0.5,
        saturation: 1.0,
        grey: 0.3,
        blur: 0.9,
        blur_sigma: [0.1, 5.0],
        solarize: 0.5,
        solarize_threshold: 100,
        interpolation: view::Interpolation::Bilinear,
        ..ViewOptions::default()
    };
    ViewsOptions {
        size: 45,
        view: vec![view],
        ..ViewsOptions::default()
    }
}

const SEEDS: [u64; 3] = [0, 1, 0x0123_4567_89AB_CDEF];

/// Steps of three an epoch: the first, across epoch ends, and far on.
const STEPS: [u64; 6] = [0, 1, 2, 3, 10, 2_000_000_001];

fn now() -> Golden {
    let (images, inputs) = committed();
    let (mut order, mut views) = (BTreeMap::from([("inputs".to_owned(), inputs)]), BTreeMap::new());
    let recipes = [
        ("official-224", ViewsOptions::default().views()),
        ("cifar-32", cifar().views()),
        ("everything-45", everything().views()),
    ];
    for (name, recipe) in recipes {
        for seed in SEEDS {
            // A window of a row group, and the whole data set.
            for (window, window_bytes) in [("narrow", 0), ("whole", u64::MAX)] {
                let plan = FeedPlan {
                    views: recipe.to_vec(),
                    seed,
                    passes: Passes::Shuffled { seed },
                    ..plan(SHUFFLED, 4, window_bytes)
                };
                for step in STEPS {
                    let mut feed = Feed::start(images.dataset.clone(), plan.clone(), &options(2, 2), step).unwrap();
                    let batch = feed.next().unwrap().unwrap();
                    let at = format!("seed {seed} step {step} {window}");
                    views.insert(format!("{name} {at}"), hex(batch.pixels_digest()));
                    order.insert(at, hex(batch.keys_digest()));
                }
            }
            for (number, view) in recipe.iter().enumerate() {
                views.insert(
                    format!("{name} draws {number} seed {seed}"),
                    draws(view, seed, number as u8),
                );
            }
        }
    }
    for (size, resize) in [(224, 256), (32, 32)] {
        let view = View::Center {
            resize,
            size,
            interpolation: view::Interpolation::Bicubic,
        };
        let plan = FeedPlan {
            views: vec![view],
            ..plan(Passes::Sequential, 14, 0)
        };
        let mut feed = Feed::start(images.dataset.clone(), plan, &options(2, 2), 0).unwrap();
        let batch = feed.next().unwrap().unwrap();
        views.insert(format!("centre-{size}"), hex(batch.pixels_digest()));
    }
    Golden {
        order: Digests::sealed("order", order),
        views: [(
            AUGMENTATION_VERSION.to_string(),
            Digests::sealed(&AUGMENTATION_VERSION.to_string(), views),
        )]
        .into(),
    }
}

/// Parameters of a view for images of several shapes, at many positions, to the last bit.
fn draws(view: &View, seed: u64, number: u8) -> String {
    let View::Random { options, .. } = view else {
        unreachable!("no draws in a centre crop")
    };
    let mut text = String::new();
    for (epoch, position) in [(0, 0), (0, 1), (3, 77), (9, 1 << 40)] {
        for (width, height) in [(500, 375), (32, 32), (1, 900), (900, 1), (67, 45)] {
            let mut rng = Philox::new(seed, Domain::View, epoch, position, number);
            // Rust prints the shortest decimals that give the same float, so other floats print otherwise.
            let drawn = format!("{:?}\n", options.draw(width, height, &mut rng));
            // The name that the type of a crop had when version 1 was pinned.
            text += &drawn.replace("crop: Region {", "crop: CropBox {");
        }
    }
    hex(xxh3_64(text.as_bytes()))
}

#[test]
fn pixels_draws_and_order_are_those_of_their_version() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden.toml");
    let stored: Golden = match std::fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).unwrap(),
        Err(_) => Golden::default(),
    };
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    match check(&stored, &now(), AUGMENTATION_VERSION, update) {
        Ok(None) => {}
        Ok(Some(new)) => {
            let head = "# Digests (xxh3) that pin pixels, draws and order. Written by UPDATE_GOLDEN=1, never by hand: see\n\
                        # src/feed/tests/golden.rs.\n";
            std::fs::write(&path, head.to_owned() + &toml::to_string(&new).unwrap()).unwrap();
        }
        Err(message) => panic!("{message}"),
    }
}

/// The rules of the file itself.
#[test]
fn new_pixels_need_a_new_version() {
    let of = |value: &str| BTreeMap::from([("a".to_owned(), value.to_owned()), ("b".to_owned(), "same".to_owned())]);
    let golden = |version: u32, value: &str| Golden {
        order: Digests::sealed("order", of("order")),
        views: [(version.to_string(), Digests::sealed(&version.to_string(), of(value)))].into(),
    };
    let first = golden(1, "old");
    assert_eq!(check(&first, &first, 1, false), Ok(None));
    assert_eq!(check(&first, &first, 1, true), Ok(None));
    // Other pixels under the same version: refused, with or without the wish to update.
    for update in [false, true] {
        let error = check(&first, &golden(1, "new"), 1, update).unwrap_err();
        assert!(
            error.contains("raise AUGMENTATION_VERSION (1)") && error.contains("1 of 2 digests, such as a"),
            "{error}"
        );
    }
    // Digests changed in place.
    let mut forged = first.clone();
    forged.views.get_mut("1").unwrap().of.insert("a".into(), "new".into());
    assert!(
        check(&forged, &golden(1, "new"), 1, false)
            .unwrap_err()
            .contains("by hand")
    );
    // A raised version: recorded by an update only, beside the old one, which stays sealed.
    let second = golden(2, "new");
    assert!(check(&first, &second, 2, false).unwrap_err().contains("UPDATE_GOLDEN"));
    let both = check(&first, &second, 2, true).unwrap().unwrap();
    assert_eq!((both.views.len(), &both.views["1"]), (2, &first.views["1"]));
    assert_eq!(check(&both, &second, 2, false), Ok(None));
    // A version that falls, and an order that changes.
    assert!(check(&both, &first, 1, true).unwrap_err().contains("never falls"));
    let mut other = second.clone();
    other.order = Digests::sealed("order", of("other"));
    assert!(check(&both, &other, 2, true).unwrap_err().contains("must not change"));
    assert_eq!(check(&Golden::default(), &first, 1, true), Ok(Some(first)));
}
