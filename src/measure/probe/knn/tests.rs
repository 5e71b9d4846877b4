//! k-NN against numpy (tools/fixtures/knn.py), closed cases, and every refusal.

use super::*;
use crate::measure::probe::fixture::{Fixture, features};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    k: usize,
    temperature: f64,
    predicted: Vec<i64>,
    accuracy: f64,
}

#[test]
fn predictions_are_numpys() {
    let fixture: Fixture<Case> = serde_json::from_str(include_str!("../../../../tests/fixtures/knn.json")).unwrap();
    let train = fixture.train();
    let test = fixture.test();
    for case in &fixture.cases {
        let predicted = knn_predict(&train, &test, case.k, case.temperature).unwrap();
        assert_eq!(predicted, case.predicted, "k {} T {}", case.k, case.temperature);
        let accuracy = knn_accuracy(&train, &test, case.k, case.temperature).unwrap();
        assert!((accuracy - case.accuracy).abs() < 1e-12);
    }
}

#[test]
fn length_does_not_count_direction_does() {
    let train = features(2, &[1.0, 0.0, 0.0, 9.0], &[3, 8]);
    let test = features(2, &[0.01, 0.001, 5.0, 7.0], &[3, 8]);
    assert_eq!(knn_accuracy(&train, &test, 1, TEMPERATURE), Ok(1.0));
}

#[test]
fn two_near_votes_beat_one_nearer_only_when_warm() {
    // Similarities 1, 0.8, 0.8; classes 0, 1, 1.
    let train = features(2, &[1.0, 0.0, 0.8, 0.6, 0.8, -0.6], &[0, 1, 1]);
    let test = features(2, &[2.0, 0.0], &[0]);
    assert_eq!(knn_predict(&train, &test, 3, 0.07), Ok(vec![0])); // exp(-0.2 / 0.07) = 0.06
    assert_eq!(knn_predict(&train, &test, 3, 1.0), Ok(vec![1])); // exp(-0.2) = 0.82
    assert_eq!(knn_predict(&train, &test, 1, 1.0), Ok(vec![0]));
    assert_eq!(knn_predict(&train, &test, 3, 1e-6), Ok(vec![0]), "no overflow");
}

#[test]
fn ties_go_to_the_earlier_image_and_the_smaller_class() {
    let same = [0.6, 0.8].repeat(4);
    let train = features(2, &same, &[7, 2, 2, 7]);
    let test = features(2, &[0.6, 0.8], &[0]);
    assert_eq!(knn_predict(&train, &test, 1, TEMPERATURE), Ok(vec![7]));
    assert_eq!(knn_predict(&train, &test, 2, TEMPERATURE), Ok(vec![2]));
    assert_eq!(knn_predict(&train, &test, 3, TEMPERATURE), Ok(vec![2]));
}

/// More images than one block on either side; class = which of 8 axes is largest, so 1-NN must be perfect.
#[test]
fn blocks_join_without_a_seam() {
    let image = |i: usize| {
        let mut row = [0.05f32; 8];
        row[i % 8] = 1.0;
        row[(i / 8) % 8] += 0.1 + (i % 97) as f32 * 1e-3;
        row
    };
    let set = |n: usize, shift: usize| {
        let values: Vec<f32> = (0..n).flat_map(|i| image(i + shift)).collect();
        let labels: Vec<i64> = (0..n).map(|i| ((i + shift) % 8) as i64).collect();
        features(8, &values, &labels)
    };
    let (train, test) = (set(TRAIN_BLOCK + 777, 0), set(TEST_BLOCK * 2 + 9, 13));
    assert_eq!(knn_accuracy(&train, &test, 20, TEMPERATURE), Ok(1.0));
    // The last training image, beyond the first block, is found.
    let mut train = train;
    let last = train.n - 1;
    train.values[last * 8..].copy_from_slice(&[-1.0, 0.5, -0.25, 0.0, 0.0, 0.0, 0.0, 0.0]);
    train.labels[last] = 99;
    let probe = features(8, &[-1.0, 0.5, -0.25, 0.0, 0.0, 0.0, 0.0, 0.0], &[99]);
    assert_eq!(knn_predict(&train, &probe, 1, TEMPERATURE), Ok(vec![99]));
}

#[test]
fn what_cannot_be_classified_is_refused() {
    let train = features(1, &[1.0, -1.0], &[0, 1]);
    let knn = |train: &Features, test: &Features, k| knn_accuracy(train, test, k, TEMPERATURE).unwrap_err().fault;
    assert_eq!(knn(&train, &train, 3), Fault::K { k: 3, train: 2 });
    assert_eq!(knn(&train, &train, 0), Fault::K { k: 0, train: 2 });
    let set = Set::Test;
    let unlabelled = features(1, &[1.0, 1.0, 1.0], &[0, -1, -1]);
    let expected = Fault::Unlabelled {
        set,
        count: 2,
        first: 1,
    };
    assert_eq!(knn(&train, &unlabelled, 1), expected);
    assert!(knn_predict(&train, &unlabelled, 1, TEMPERATURE).is_ok());
    let set = Set::Train;
    assert!(matches!(
        knn(&unlabelled, &train, 1),
        Fault::Unlabelled { set: Set::Train, .. }
    ));
    assert_eq!(
        knn(&features(1, &[1.0, 2.0], &[4, 4]), &train, 1),
        Fault::OneClass { class: 4 }
    );
    assert_eq!(knn(&features(1, &[], &[]), &train, 1), Fault::Empty { set });
    assert!(matches!(
        knn(&features(1, &[1.0], &[0, 1]), &train, 1),
        Fault::Shape { set: Set::Train, .. }
    ));
    assert_eq!(
        knn(&train, &features(2, &[1.0, 0.0], &[0]), 1),
        Fault::Dimension { train: 1, test: 2 }
    );
    let broken = features(1, &[1.0, f32::NAN], &[0, 1]);
    assert!(matches!(knn(&broken, &train, 1), Fault::NotFinite { image: 1, .. }));
    assert!(matches!(
        knn_accuracy(&train, &train, 1, 0.0).unwrap_err().fault,
        Fault::Temperature { .. }
    ));
    assert_eq!(
        knn_accuracy(&train, &train, 3, TEMPERATURE).unwrap_err().to_string(),
        "k-NN: k is 3, but it must be 1 to 2, the number of training images"
    );
}
