//! Probes: how well frozen features tell classes apart. Here what they share: features, their checks, and errors.
//!
//! `knn` asks a test image's neighbours, `linear` fits a classifier. Both get labelled features of training and test images and
//! give an accuracy that is a function of them alone: the same bits for any number of threads. Neither touches the network.

#[cfg(test)]
mod fixture;
pub mod knn;
mod lbfgs;
pub mod linear;

use std::collections::BTreeSet;
use std::fmt;

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
    /// The images that the probe knows.
    Train,
    /// The images that it classifies.
    Test,
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "training",
            Self::Test => "test",
        })
    }
}

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Weighted k nearest neighbours.
    Knn,
    /// Softmax regression.
    Linear,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Knn => "k-NN",
            Self::Linear => "linear probe",
        })
    }
}

/// A probe and the features that it cannot judge.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{probe}: {fault}")]
pub struct ProbeError {
    /// Who.
    pub probe: Probe,
    /// Why.
    pub fault: Fault,
}

/// What keeps a probe from judging.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Fault {
    /// A set has no image.
    #[error("there is no {set} image")]
    Empty {
        /// Which set.
        set: Set,
    },
    /// A set's vectors are not as long as its counts say.
    #[error("{n} {set} images of {d} features come with {values} values and {labels} labels")]
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
    #[error("training images have {train} features, test images {test}")]
    Dimension {
        /// Features of a training image.
        train: usize,
        /// Features of a test image.
        test: usize,
    },
    /// k is 0 or larger than the training set.
    #[error("k is {k}, but it must be 1 to {train}, the number of training images")]
    K {
        /// k.
        k: usize,
        /// Training images.
        train: usize,
    },
    /// The temperature is not a finite number above 0.
    #[error("the temperature is {temperature}, not a finite number above 0")]
    Temperature {
        /// The temperature.
        temperature: f64,
    },
    /// The weight of the penalty is not a finite number from 0 on.
    #[error("the L2 penalty is {l2}, not a finite number from 0 on")]
    Penalty {
        /// The penalty.
        l2: f64,
    },
    /// Images have no label.
    #[error("{count} {set} images have no label, the first is number {first}")]
    Unlabelled {
        /// Which set.
        set: Set,
        /// How many.
        count: usize,
        /// The first one, from 0.
        first: usize,
    },
    /// All training images have one class: any feature would do.
    #[error("all training images are of class {class}: there is nothing to tell apart")]
    OneClass {
        /// The class.
        class: i64,
    },
    /// A feature is infinite or not a number.
    #[error("a feature of {set} image {image} is {value}")]
    NotFinite {
        /// Which set.
        set: Set,
        /// The image, from 0.
        image: usize,
        /// The feature.
        value: f32,
    },
}

impl Fault {
    fn of(self, probe: Probe) -> ProbeError {
        ProbeError { probe, fault: self }
    }
}

/// Whole and finite features, at least one.
fn check_values(features: &Features, set: Set) -> Result<(), Fault> {
    let (n, d, values, labels) = (features.n, features.d, features.values.len(), features.labels.len());
    if values != n * d || labels != n {
        return Err(Fault::Shape {
            set,
            n,
            d,
            values,
            labels,
        });
    }
    if values == 0 {
        return Err(Fault::Empty { set });
    }
    match features.values.iter().enumerate().find(|(_, x)| !x.is_finite()) {
        Some((at, &value)) => Err(Fault::NotFinite {
            set,
            image: at / d,
            value,
        }),
        None => Ok(()),
    }
}

/// Test images have as many features as training images.
fn check_lengths(train: usize, test: usize) -> Result<(), Fault> {
    if train == test {
        Ok(())
    } else {
        Err(Fault::Dimension { train, test })
    }
}

/// Every image has a label.
fn check_labels(features: &Features, set: Set) -> Result<(), Fault> {
    let missing = || features.labels.iter().enumerate().filter(|(_, label)| **label < 0);
    match missing().next() {
        Some((first, _)) => Err(Fault::Unlabelled {
            set,
            count: missing().count(),
            first,
        }),
        None => Ok(()),
    }
}

/// The classes of labelled training images, ascending; at least two.
fn classes(train: &Features) -> Result<Vec<i64>, Fault> {
    check_labels(train, Set::Train)?;
    let classes: BTreeSet<i64> = train.labels.iter().copied().collect();
    match classes.len() {
        1 => Err(Fault::OneClass { class: train.labels[0] }),
        _ => Ok(classes.into_iter().collect()),
    }
}

/// Share of the images, 0 to 1, whose class was found.
fn share_right(predicted: &[i64], labels: &[i64]) -> f64 {
    let right = predicted.iter().zip(labels).filter(|(p, l)| p == l).count();
    right as f64 / labels.len() as f64
}
