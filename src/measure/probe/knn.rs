//! k-NN probe: the classes of the nearest training images, without training anything.
//!
//! In: labelled features of training and test images. Out: accuracy. Weighted k-NN of Wu, Xiong, Yu, Lin (arXiv 1805.01978, section
//! 3.4), as DINO and others report it: cosine similarity s, the k nearest training images, each voting exp(s / T) for its class.
//! Invariant: the answer does not depend on the number of threads; ties go to the earlier image and to the smaller class.
//! Memory: both feature sets once more (normalised), and one block of similarities.

use burn::backend::Flex;
use burn::tensor::{Tensor, TensorData};

use super::{Fault, Features, Probe, ProbeError, Set, check_labels, check_lengths, check_values, classes, share_right};

/// k that published VICReg results use first (64.5 % for ResNet-50).
pub const K: usize = 20;
/// Temperature of the votes.
pub const TEMPERATURE: f64 = 0.07;

/// Test images at a time, and training images at a time: a block of similarities is 8 MB.
const TEST_BLOCK: usize = 256;
const TRAIN_BLOCK: usize = 8192;

/// Share of `test` images, 0 to 1, whose class the weighted vote of their `k` nearest `train` images gives.
pub fn knn_accuracy(train: &Features, test: &Features, k: usize, temperature: f64) -> Result<f64, ProbeError> {
    check_labels(test, Set::Test).map_err(|fault| fault.of(Probe::Knn))?;
    let predicted = knn_predict(train, test, k, temperature)?;
    Ok(share_right(&predicted, &test.labels))
}

/// The class that the weighted vote gives each `test` image; their own labels are not read.
pub fn knn_predict(train: &Features, test: &Features, k: usize, temperature: f64) -> Result<Vec<i64>, ProbeError> {
    check(train, test, k, temperature).map_err(|fault| fault.of(Probe::Knn))?;
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

fn check(train: &Features, test: &Features, k: usize, temperature: f64) -> Result<(), Fault> {
    check_values(train, Set::Train)?;
    check_values(test, Set::Test)?;
    check_lengths(train.d, test.d)?;
    if !(1..=train.n).contains(&k) {
        return Err(Fault::K { k, train: train.n });
    }
    if !(temperature.is_finite() && temperature > 0.0) {
        return Err(Fault::Temperature { temperature });
    }
    classes(train).map(drop)
}

#[cfg(test)]
mod tests;
