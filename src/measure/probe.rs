//! k-NN probe: how well frozen features tell classes apart, without training anything.
//!
//! In: labelled features of training and test images. Out: accuracy. Weighted k-NN of Wu, Xiong, Yu, Lin (arXiv 1805.01978, section
//! 3.4), as DINO and others report it: cosine similarity s, the k nearest training images, each voting exp(s / T) for its class.
//! Invariant: the answer does not depend on the number of threads; ties go to the earlier image and to the smaller class.
//! Memory: both feature sets once more (normalised), and one block of similarities.

use burn::backend::Flex;
use burn::tensor::{Tensor, TensorData};
use std::collections::BTreeSet;

/// k that published VICReg results use first (64.5 % for ResNet-50).
pub const K: usize = 20;
/// Temperature of the votes.
pub const TEMPERATURE: f64 = 0.07;

/// Test images at a time, and training images at a time: a block of similarities is 8 MB.
const TEST_BLOCK: usize = 256;
const TRAIN_BLOCK: usize = 8192;

/// Features of labelled images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features {
    /// Images.
    pub n: usize,
    /// Features an image.
    pub d: usize,
    /// `[n, d]`, row-major.
    pub values: Vec<f32>,
    /// Class of each image, `[n]`; -1 for none.
    pub labels: Vec<i64>,
}

/// Which of the two feature sets an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// The images that vote.
    Train,
    /// The images that are classified.
    Test,
}

impl std::fmt::Display for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Train => "training",
            Self::Test => "test",
        })
    }
}

/// Features that k-NN cannot classify.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ProbeError {
    /// A set has no image.
    #[error("k-NN: there is no {set} image")]
    Empty {
        /// Which set.
        set: Set,
    },
    /// A set's vectors are not as long as its counts say.
    #[error("k-NN: {n} {set} images of {d} features come with {values} values and {labels} labels")]
    Shape {
        /// Which set.
        set: Set,
        /// Its images.
        n: usize,
        /// Its features an image.
        d: usize,
        /// Values found.
        values: usize,
        /// Labels found.
        labels: usize,
    },
    /// The sets have features of different lengths.
    #[error("k-NN: training images have {train} features, test images {test}")]
    Dimension {
        /// Features of a training image.
        train: usize,
        /// Features of a test image.
        test: usize,
    },
    /// k is 0 or larger than the training set.
    #[error("k-NN: k is {k}, but it must be 1 to {train}, the number of training images")]
    K {
        /// k.
        k: usize,
        /// Training images.
        train: usize,
    },
    /// The temperature is not a finite number above 0.
    #[error("k-NN: the temperature is {temperature}, not a finite number above 0")]
    Temperature {
        /// The temperature.
        temperature: f64,
    },
    /// Images have no label.
    #[error("k-NN: {count} {set} images have no label, the first is number {first}")]
    Unlabelled {
        /// Which set.
        set: Set,
        /// How many.
        count: usize,
        /// The first one, from 0.
        first: usize,
    },
    /// All training images have one class: any feature would do.
    #[error("k-NN: all training images are of class {class}: there is nothing to tell apart")]
    OneClass {
        /// The class.
        class: i64,
    },
    /// A feature is infinite or not a number.
    #[error("k-NN: a feature of {set} image {image} is {value}")]
    NotFinite {
        /// Which set.
        set: Set,
        /// The image, from 0.
        image: usize,
        /// The feature.
        value: f32,
    },
}

/// Share of `test` images, 0 to 1, whose class the weighted vote of their `k` nearest `train` images gives.
pub fn knn_accuracy(train: &Features, test: &Features, k: usize, temperature: f64) -> Result<f64, ProbeError> {
    check_labels(test, Set::Test)?;
    let predicted = knn_predict(train, test, k, temperature)?;
    let right = predicted.iter().zip(&test.labels).filter(|(p, l)| p == l).count();
    Ok(right as f64 / test.n as f64)
}

/// The class that the weighted vote gives each `test` image; their own labels are not read.
pub fn knn_predict(train: &Features, test: &Features, k: usize, temperature: f64) -> Result<Vec<i64>, ProbeError> {
    check(train, test, k, temperature)?;
    let d = train.d;
    let train_blocks: Vec<Tensor<Flex, 2>> = blocks(train, TRAIN_BLOCK).collect();
    let mut predicted = Vec::with_capacity(test.n);
    for queries in blocks(test, TEST_BLOCK) {
        let mut nearest = vec![Nearest::new(k); queries.dims()[0]];
        for (at, block) in train_blocks.iter().enumerate() {
            let similarity = queries.clone().matmul(block.clone().transpose()); // [Q, d] [d, T] -> [Q, T]
            let width = block.dims()[0];
            debug_assert_eq!(block.dims()[1], d);
            let similarity = similarity.into_data();
            let similarity = similarity
                .as_slice::<f32>()
                .expect("similarities are f32, in row order");
            in_parallel(&mut nearest, similarity, width, |nearest, row| {
                nearest.offer(row, at * TRAIN_BLOCK)
            });
        }
        predicted.extend(nearest.iter().map(|nearest| nearest.vote(&train.labels, temperature)));
    }
    Ok(predicted)
}

/// The k most similar training images seen so far, most similar first; of equals, the earlier image first.
#[derive(Clone, Debug)]
struct Nearest {
    k: usize,
    /// (similarity, image).
    found: Vec<(f32, usize)>,
}

impl Nearest {
    fn new(k: usize) -> Self {
        Self {
            k,
            found: Vec::with_capacity(k + 1),
        }
    }

    /// Takes in the similarities of training images `first`, `first + 1`, ...
    fn offer(&mut self, similarity: &[f32], first: usize) {
        for (at, &s) in similarity.iter().enumerate() {
            if self.found.len() == self.k && s <= self.found[self.k - 1].0 {
                continue;
            }
            let place = self.found.partition_point(|&(other, _)| other >= s);
            self.found.insert(place, (s, first + at));
            self.found.truncate(self.k);
        }
    }

    /// The class with the heaviest vote; of equals, the smallest class.
    fn vote(&self, labels: &[i64], temperature: f64) -> i64 {
        let mut votes: std::collections::BTreeMap<i64, f64> = Default::default();
        // exp((s - largest) / T): the same winner, and no overflow for a small temperature.
        let largest = f64::from(self.found[0].0);
        for &(s, image) in &self.found {
            *votes.entry(labels[image]).or_default() += ((f64::from(s) - largest) / temperature).exp();
        }
        let best = votes
            .into_iter()
            .reduce(|best, next| if next.1 > best.1 { next } else { best });
        best.expect("k is at least 1").0
    }
}

/// Runs `work` on every item with its row of `width` values, on all cores; each row is one thread's alone.
fn in_parallel<T: Send>(items: &mut [T], values: &[f32], width: usize, work: impl Fn(&mut T, &[f32]) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = items.len().div_ceil(threads).max(1);
    let work = &work;
    std::thread::scope(|scope| {
        for (items, values) in items.chunks_mut(share).zip(values.chunks(share * width)) {
            scope.spawn(move || {
                for (item, row) in items.iter_mut().zip(values.chunks_exact(width)) {
                    work(item, row);
                }
            });
        }
    });
}

/// The features, each image divided by its norm, in blocks of `rows` images: `[rows, d]`, the last shorter. A zero vector stays zero.
fn blocks(features: &Features, rows: usize) -> impl Iterator<Item = Tensor<Flex, 2>> {
    let d = features.d;
    features.values.chunks(rows * d).map(move |block| {
        let mut unit = block.to_vec();
        for row in unit.chunks_exact_mut(d) {
            let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            if norm > 0.0 {
                row.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
            }
        }
        let n = unit.len() / d;
        Tensor::from_data(TensorData::new(unit, [n, d]), &Default::default())
    })
}

fn check(train: &Features, test: &Features, k: usize, temperature: f64) -> Result<(), ProbeError> {
    for (features, set) in [(train, Set::Train), (test, Set::Test)] {
        let (n, d, values, labels) = (features.n, features.d, features.values.len(), features.labels.len());
        if values != n * d || labels != n {
            return Err(ProbeError::Shape {
                set,
                n,
                d,
                values,
                labels,
            });
        }
        if values == 0 {
            return Err(ProbeError::Empty { set });
        }
        if let Some((at, &value)) = features.values.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            return Err(ProbeError::NotFinite {
                set,
                image: at / d,
                value,
            });
        }
    }
    if train.d != test.d {
        return Err(ProbeError::Dimension {
            train: train.d,
            test: test.d,
        });
    }
    if !(1..=train.n).contains(&k) {
        return Err(ProbeError::K { k, train: train.n });
    }
    if !(temperature.is_finite() && temperature > 0.0) {
        return Err(ProbeError::Temperature { temperature });
    }
    check_labels(train, Set::Train)?;
    let classes: BTreeSet<i64> = train.labels.iter().copied().take(train.n).collect();
    match classes.len() {
        1 => Err(ProbeError::OneClass { class: train.labels[0] }),
        _ => Ok(()),
    }
}

fn check_labels(features: &Features, set: Set) -> Result<(), ProbeError> {
    let missing = || features.labels.iter().enumerate().filter(|(_, label)| **label < 0);
    match missing().next() {
        Some((first, _)) => Err(ProbeError::Unlabelled {
            set,
            count: missing().count(),
            first,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
