//! Online evaluation: what a run is judged by while it trains.
//!
//! In: the encoder as it stands, without its gradients. Out: the accuracies of both probes, from one pass over the labelled images.
//! The encoder is only read, and nothing is kept between two evaluations: they leave no trace in the run.

use super::MeasureError;
use super::features::{Encoder, Labelled, Source};
use super::options::EvalOptions;
use super::probe::knn::knn_accuracy;
use super::probe::linear::{LinearOptions, linear_accuracy};
use crate::learn::ops::TrainOps;
use crate::learn::resnet::ResNet;

/// Accuracies of frozen representations, as shares of 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accuracies {
    /// Weighted k-NN.
    pub knn: f64,
    /// Softmax regression.
    pub linear: f64,
}

/// Labelled images and how they judge.
pub struct Online {
    encoder: Encoder,
    data: Labelled,
    k: usize,
    temperature: f64,
    linear: LinearOptions,
}

impl Online {
    /// Both probes as `eval` says, on `data`.
    pub fn new(encoder: Encoder, data: Labelled, eval: &EvalOptions) -> Self {
        Self {
            encoder,
            data,
            k: eval.k as usize,
            temperature: eval.temperature,
            linear: LinearOptions::default(),
        }
    }

    /// Decodes the images once and asks both probes.
    pub fn judge<B: TrainOps>(&self, network: &ResNet<B>, device: &B::Device) -> Result<Accuracies, MeasureError> {
        let [halves] = self.encoder.encode([Source::Network(network)], &self.data, device)?;
        let (train, test) = (&halves.train, &halves.test);
        Ok(Accuracies {
            knn: knn_accuracy(train, test, self.k, self.temperature)?,
            linear: linear_accuracy(train, test, &self.linear)?,
        })
    }
}
