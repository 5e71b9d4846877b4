//! The linear probe against torch in float64 (tools/fixtures/linear.py), closed cases, and every refusal.

use super::*;
use crate::measure::probe::fixture::{Fixture, features};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    l2: f64,
    logits: Vec<f64>,
    predicted: Vec<i64>,
    accuracy: f64,
}

/// Numbers in [-1, 1), the same every time.
fn noise(count: usize, seed: u64) -> impl Iterator<Item = f32> {
    (0..count as u64).map(move |i| {
        let bits = xxhash_rust::xxh3::xxh3_64_with_seed(&i.to_le_bytes(), seed);
        (bits >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

/// `n` images of `c` classes, each a corner of its own and noise of `spread` around it.
fn blobs(n: usize, d: usize, c: usize, spread: f32, seed: u64) -> Features {
    let labels: Vec<i64> = (0..n).map(|i| (i % c) as i64).collect();
    let corner = |i: usize| if i % d == (i / d) % c { 1.0 } else { 0.0 };
    let values: Vec<f32> = noise(n * d, seed)
        .enumerate()
        .map(|(i, noise)| corner(i) + spread * noise)
        .collect();
    features(d, &values, &labels)
}

#[test]
fn logits_are_torchs_at_its_optimum() {
    let fixture: Fixture<Case> = serde_json::from_str(include_str!("../../../../tests/fixtures/linear.json")).unwrap();
    let train = fixture.train();
    let test = fixture.test();
    for case in &fixture.cases {
        let options = LinearOptions {
            l2: case.l2,
            iterations: 1000,
            tolerance: 1e-6,
        };
        let linear = Linear::fit(&train, &options).unwrap();
        let logits = linear.logits(&test).unwrap();
        assert_eq!(logits.len(), case.logits.len());
        for (at, (ours, torchs)) in logits.iter().zip(&case.logits).enumerate() {
            let off = (f64::from(*ours) - torchs).abs();
            assert!(off < 1e-3, "l2 {}, logit {at}: {ours}, torch {torchs}", case.l2);
        }
        assert_eq!(linear.predict(&test).unwrap(), case.predicted);
        assert_eq!(linear_accuracy(&train, &test, &options), Ok(case.accuracy));
        // As the probe is run: no further from the optimum than one image's near tie.
        let options = LinearOptions {
            l2: case.l2,
            ..Default::default()
        };
        let accuracy = linear_accuracy(&train, &test, &options).unwrap();
        assert!(
            (accuracy - case.accuracy).abs() < 1.01 / 40.0,
            "{accuracy} {}",
            case.accuracy
        );
    }
}

#[test]
fn apart_is_all_right_and_independent_is_chance() {
    let options = LinearOptions::default();
    // More images than a block.
    let (train, test) = (blobs(BLOCK + 500, 6, 4, 0.4, 1), blobs(300, 6, 4, 0.4, 2));
    assert_eq!(linear_accuracy(&train, &test, &options), Ok(1.0));
    // Without corners the labels say nothing: 1/4, three standard deviations of 4000 draws apart.
    let values: Vec<f32> = noise(8000 * 6, 3).collect();
    let labels: Vec<i64> = (0..8000).map(|i| i % 4).collect();
    let (train, test) = values.split_at(4000 * 6);
    let (train, test) = (features(6, train, &labels[..4000]), features(6, test, &labels[4000..]));
    let accuracy = linear_accuracy(&train, &test, &options).unwrap();
    assert!((accuracy - 0.25).abs() < 0.0206, "{accuracy}");
}

/// A line apart: class 1 where x > 3. k-NN would do as well; a mean of classes through the origin would not.
#[test]
fn the_bias_is_fitted_and_scale_does_not_matter() {
    let line = |scale: f32| {
        let values: Vec<f32> = (0..40).map(|i| scale * (3.0 + (i as f32 - 19.5) / 10.0)).collect();
        let labels: Vec<i64> = (0..40).map(|i| i64::from(i >= 20)).collect();
        features(1, &values, &labels)
    };
    for scale in [1e-6, 1.0, 1e6] {
        let accuracy = linear_accuracy(&line(scale), &line(scale), &LinearOptions::default());
        assert_eq!(accuracy, Ok(1.0), "{scale}");
    }
}

#[test]
fn a_constant_feature_changes_nothing_however_large() {
    let (train, test) = (blobs(400, 6, 4, 1.6, 1), blobs(200, 6, 4, 1.6, 2));
    let with_constant = |set: &Features| {
        let rows = set.values.chunks_exact(6).enumerate();
        // What rounding makes of a constant: its last bit.
        let values: Vec<f32> = rows
            .flat_map(|(i, row)| [row, &[f32::from_bits(1e5f32.to_bits() + (i as u32 & 1)), 0.0]].concat())
            .collect();
        features(8, &values, &set.labels)
    };
    let fit = |train: &Features, test: &Features| {
        let linear = Linear::fit(train, &LinearOptions::default()).unwrap();
        linear.predict(test).unwrap()
    };
    assert_eq!(fit(&with_constant(&train), &with_constant(&test)), fit(&train, &test));
}

#[test]
fn the_number_of_threads_leaves_no_trace() {
    let (train, test) = (blobs(3 * BLOCK + 7, 96, 5, 2.5, 4), blobs(500, 96, 5, 2.5, 5));
    let logits = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            Linear::fit(&train, &LinearOptions::default())
                .unwrap()
                .logits(&test)
                .unwrap()
        })
    };
    let bits = |logits: Vec<f32>| logits.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
    let one = bits(logits(1));
    for threads in [1, 2, 5] {
        assert_eq!(bits(logits(threads)), one, "{threads} threads");
    }
}

#[test]
fn what_cannot_be_judged_is_refused_in_the_probes_own_name() {
    let options = LinearOptions::default();
    let fault = |train: &Features, test: &Features| linear_accuracy(train, test, &options).unwrap_err().fault;
    let train = features(1, &[1.0, -1.0], &[0, 1]);
    let empty = features(1, &[], &[]);
    assert_eq!(fault(&empty, &train), Fault::Empty { set: Set::Train });
    assert_eq!(fault(&train, &empty), Fault::Empty { set: Set::Test });
    assert_eq!(
        fault(&features(1, &[1.0, 2.0], &[4, 4]), &train),
        Fault::OneClass { class: 4 }
    );
    let unlabelled = features(1, &[1.0, 2.0, 3.0], &[0, -1, 1]);
    let missing = |set| Fault::Unlabelled {
        set,
        count: 1,
        first: 1,
    };
    assert_eq!(fault(&unlabelled, &train), missing(Set::Train));
    assert_eq!(fault(&train, &unlabelled), missing(Set::Test));
    assert_eq!(
        fault(&train, &features(2, &[1.0, 0.0], &[0])),
        Fault::Dimension { train: 1, test: 2 }
    );
    for value in [f32::NAN, f32::INFINITY] {
        let broken = features(1, &[1.0, value], &[0, 1]);
        for (train, test, set) in [(&broken, &train, Set::Train), (&train, &broken, Set::Test)] {
            let found = fault(train, test);
            assert!(
                matches!(found, Fault::NotFinite { set: s, image: 1, .. } if s == set),
                "{found}"
            );
        }
    }
    assert!(matches!(
        fault(&features(2, &[1.0], &[0]), &train),
        Fault::Shape {
            set: Set::Train,
            n: 1,
            d: 2,
            values: 1,
            labels: 1
        }
    ));
    let negative = LinearOptions { l2: -1.0, ..options };
    let error = linear_accuracy(&train, &train, &negative).unwrap_err();
    assert_eq!(
        error.to_string(),
        "linear probe: the L2 penalty is -1, not a finite number from 0 on"
    );
}
