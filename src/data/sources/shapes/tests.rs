//! The embedded data set: what is drawn, and how it is cached.

use super::*;
use crate::data::{Columns, Dataset, DecodeOptions, Rgbx8, ShardId, codec};

#[test]
fn names_are_parsed_and_mistakes_named() {
    assert_eq!(ShapesSpec::parse("synthetic:shapes").unwrap(), ShapesSpec::default());
    let spec = ShapesSpec::parse("synthetic:shapes?train=20&test=10&seed=7&split=test").unwrap();
    assert_eq!(
        spec,
        ShapesSpec {
            train: 20,
            test: 10,
            seed: 7,
            split: Split::Test
        }
    );
    for (name, mentions) in [
        ("synthetic:cubes", "cubes"),
        ("synthetic:shapes?trian=5", "trian"),
        ("synthetic:shapes?train=0", "train"),
        ("synthetic:shapes?train=many", "many"),
        ("synthetic:shapes?split=both", "both"),
        ("synthetic:shapes?train", "train"),
    ] {
        let error = ShapesSpec::parse(name).unwrap_err().to_string();
        assert!(error.contains(mentions), "{error}");
    }
}

#[test]
fn images_are_functions_of_seed_and_index() {
    assert_eq!(draw::jpeg(3, 17), draw::jpeg(3, 17));
    assert_ne!(draw::jpeg(3, 17), draw::jpeg(3, 27));
    assert_ne!(draw::jpeg(3, 17), draw::jpeg(4, 17));
    let mut image = Rgbx8::default();
    let mut bytes = 0;
    for index in 0..40 {
        let jpeg = draw::jpeg(0, index);
        bytes += jpeg.len();
        codec::decode(&jpeg, &DecodeOptions::default(), &mut image).unwrap();
        assert_eq!((image.width, image.height), (48, 48));
        // Shapes stand out by at least .3 in luminance, so no image is flat.
        let values: Vec<f64> = image.to_rgb().iter().map(|&p| f64::from(p)).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let spread = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
        assert!(spread > 15.0, "image {index}: {spread}");
    }
    assert!((1000..3500).contains(&(bytes / 40)), "{} bytes an image", bytes / 40);
}

#[test]
fn the_cache_is_made_once_and_two_racers_agree() {
    let cache = tempfile::tempdir().unwrap();
    let spec = "synthetic:shapes?train=150&test=30&seed=5";
    let ensure = || ensure_synthetic(cache.path(), spec).unwrap();
    let paths: Vec<SyntheticPaths> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..3).map(|_| scope.spawn(ensure)).collect();
        racers.into_iter().map(|r| r.join().unwrap()).collect()
    });
    assert!(paths.iter().all(|p| *p == paths[0]));
    assert_eq!(
        std::fs::read_dir(cache.path()).unwrap().count(),
        1,
        "the losers leave nothing"
    );

    let train = Dataset::open(&paths[0].train, &Columns::default()).unwrap();
    let test = Dataset::open(&paths[0].test, &Columns::default()).unwrap();
    assert_eq!((train.len(), test.len()), (150, 30));
    assert_eq!(train.label_names().unwrap(), draw::CLASSES);
    assert_eq!(train.shards()[0].row_groups.len(), 2);
    let first = train.read_row_group(ShardId(0), 0).unwrap();
    assert_eq!(first.image(17).unwrap(), draw::jpeg(5, 17));
    assert_eq!((first.label(17), first.path(17)), (Some(7), Some("000017.jpg")));
    assert_eq!(
        test.read_row_group(ShardId(0), 0).unwrap().image(4).unwrap(),
        draw::jpeg(5, FIRST_TEST + 4)
    );

    let modified = |p: &Path| std::fs::metadata(p).unwrap().modified().unwrap();
    let before = modified(&paths[0].train);
    ensure();
    assert_eq!(modified(&paths[0].train), before, "what is there is not made again");
}
