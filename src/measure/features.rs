//! Labelled images -> feature vectors: of networks, or of the raw pixels.
//!
//! Evaluation uses the training's own feed with one deterministic view (resize and centre crop), every sample once, in key
//! order. A bad sample is left out and counted by the feed's quarantine, as in training.

use std::sync::Arc;

use burn::tensor::Tensor;
use xxhash_rust::xxh3::xxh3_64;

use super::MeasureError;
use super::options::EvalOptions;
use super::probe::Features;
use crate::data::{Dataset, DecodeOptions, SampleKey};
use crate::feed::view::{View, ViewsOptions};
use crate::feed::{Batch, Feed, FeedOptions, FeedPlan, Passes};
use crate::learn::input::{Normalize, Uploaded};
use crate::learn::norm::Mode;
use crate::learn::ops::TrainOps;
use crate::learn::resnet::ResNet;

/// Share of the images that are held out when there is no test folder: one in so many.
const HELD_OUT: u64 = 5;

/// Labelled images, divided into those that vote and those that are classified.
pub struct Labelled {
    train: Arc<Dataset>,
    test: Option<Arc<Dataset>>,
}

impl Labelled {
    /// Checks that there are labels. Without `test`, one image in five of `train` is held out, by a hash of its key.
    pub fn new(train: &Arc<Dataset>, test: Option<&Arc<Dataset>>, name: &str) -> Result<Self, MeasureError> {
        if !train.has_labels() || test.is_some_and(|test| !test.has_labels()) {
            return Err(MeasureError::NoLabels { data: name.to_owned() });
        }
        if let Some(test) = test {
            if test.fingerprint() == train.fingerprint() {
                return Err(MeasureError::SameImages { data: name.to_owned() });
            }
            // Labels are numbers: they mean the same only under the same names.
            if let (Some(train), Some(test)) = (train.label_names(), test.label_names())
                && train != test
            {
                return Err(MeasureError::ClassNames {
                    train: train.to_vec(),
                    test: test.to_vec(),
                });
            }
        }
        Ok(Self {
            train: Arc::clone(train),
            test: test.map(Arc::clone),
        })
    }
}

/// Whether a sample is held out, where the data bring no test folder.
pub fn held_out(key: SampleKey) -> bool {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&key.shard.0.to_le_bytes());
    bytes[4..8].copy_from_slice(&key.row_group.to_le_bytes());
    bytes[8..].copy_from_slice(&key.row.to_le_bytes());
    xxh3_64(&bytes).is_multiple_of(HELD_OUT)
}

/// How images become features.
pub struct Encoder {
    view: View,
    decode: DecodeOptions,
    feed: FeedOptions,
    batch_size: u32,
    input: Normalize,
}

impl Encoder {
    /// The evaluation's view, batch and normalisation.
    pub fn new(
        eval: &EvalOptions,
        views: &ViewsOptions,
        decode: &DecodeOptions,
        feed: FeedOptions,
        input: Normalize,
    ) -> Self {
        Self {
            view: eval.view(views),
            decode: decode.clone(),
            feed,
            batch_size: eval.batch_size,
            input,
        }
    }

    /// Features of both halves from each of `sources`, all from one pass over the images.
    pub fn encode<B: TrainOps, const S: usize>(
        &self,
        sources: [Source<'_, B>; S],
        data: &Labelled,
        device: &B::Device,
    ) -> Result<[Halves; S], MeasureError> {
        let mut halves: [Halves; S] = std::array::from_fn(|_| Halves::default());
        let mut pass = |dataset: &Arc<Dataset>, is_test: &dyn Fn(SampleKey) -> bool| -> Result<(), MeasureError> {
            let mut feed = self.open(dataset, Passes::Sequential)?;
            while let Some(batch) = feed.next()? {
                let places: Vec<Place> = Place::all(&batch, is_test).collect();
                let x = self.view::<B>(batch, device); // [N, H, W, 3]
                for (source, halves) in sources.iter().zip(&mut halves) {
                    halves.add(&places, &source.features(&x), dataset.len())?;
                }
            }
            Ok(())
        };
        let own_split = data.test.is_none();
        pass(&data.train, &|key| own_split && held_out(key))?;
        if let Some(dataset) = &data.test {
            pass(dataset, &|_| true)?;
        }
        Ok(halves)
    }

    /// An untrained network whose running statistics are those of the training images: its fair baseline, since running
    /// statistics of 0 and 1 would make it worse than its weights are.
    pub fn calibrate<B: TrainOps>(
        &self,
        network: ResNet<B>,
        data: &Labelled,
        device: &B::Device,
    ) -> Result<ResNet<B>, MeasureError> {
        /// Statistics settle long before the whole data set is seen.
        const BATCHES: u64 = 32;
        let mut seen = Vec::new();
        // Shuffled: full batches, each a fair draw even where the shards are sorted by class.
        let mut feed = self.open(&data.train, Passes::Shuffled { seed: 0 })?;
        let batches = feed.shape().steps_per_epoch.clamp(1, BATCHES);
        while let (true, Some(batch)) = ((seen.len() as u64) < batches, feed.next()?) {
            let mut stats = Vec::new();
            network.forward(self.view::<B>(batch, device), &mut Mode::Train(&mut stats));
            seen.push(stats);
        }
        Ok(network.calibrate(&seen))
    }

    fn view<B: TrainOps>(&self, batch: Batch, device: &B::Device) -> Tensor<B, 4> {
        Uploaded::batch(batch, device).view(0, self.input)
    }

    fn open(&self, dataset: &Arc<Dataset>, passes: Passes) -> Result<Feed, MeasureError> {
        let plan = FeedPlan {
            passes,
            seed: 0,
            batch_size: self.batch_size.min(dataset.len().try_into().unwrap_or(u32::MAX)),
            rank: 0,
            world: 1,
            views: vec![self.view.clone()],
            decode: self.decode.clone(),
            window_bytes: 64 << 20,
        };
        Ok(Feed::start(Arc::clone(dataset), plan, &self.feed, 0)?)
    }
}

/// What makes features of images.
pub enum Source<'a, B: TrainOps> {
    /// A network's representations under running statistics, `[N, C]`.
    Network(&'a ResNet<B>),
    /// The pixels themselves, normalised, `[N, H W 3]`.
    Pixels,
}

impl<B: TrainOps> Source<'_, B> {
    /// Of images `[N, H, W, 3]`, row by row.
    fn features(&self, x: &Tensor<B, 4>) -> Vec<f32> {
        let features = match self {
            Self::Network(network) => network.forward(x.clone(), &mut Mode::Eval).into_data(),
            Self::Pixels => x.to_data(),
        };
        features.into_vec().expect("features are f32")
    }
}

/// Features of the images that a probe learns from, and of those that it classifies.
#[derive(Clone, Debug, Default)]
pub struct Halves {
    /// To learn from.
    pub train: Features,
    /// To classify.
    pub test: Features,
}

impl Halves {
    /// Takes in a batch's features, where the data set has `images` of them.
    fn add(&mut self, places: &[Place], values: &[f32], images: u64) -> Result<(), MeasureError> {
        let length = values.len() / places.len();
        for (place, row) in places.iter().zip(values.chunks_exact(length)) {
            let Some(label) = place.label else { continue };
            let half = if place.is_test { &mut self.test } else { &mut self.train };
            reserve(half, length, images)?;
            half.n += 1;
            half.d = length;
            half.values.extend_from_slice(row);
            half.labels.push(label);
        }
        Ok(())
    }
}

/// What becomes of a place's features.
struct Place {
    /// `None`: no image, or no label.
    label: Option<i64>,
    is_test: bool,
}

impl Place {
    fn all(batch: &Batch, is_test: &dyn Fn(SampleKey) -> bool) -> impl Iterator<Item = Self> {
        let images = batch.present().iter().zip(batch.labels()).zip(batch.keys());
        images.map(|((&present, &label), &key)| Self {
            label: (present && label >= 0).then_some(label),
            is_test: is_test(key),
        })
    }
}

/// Room for all of a data set's features at once: too many for the memory is an error, not an abort.
fn reserve(half: &mut Features, length: usize, images: u64) -> Result<(), MeasureError> {
    if half.n > 0 {
        return Ok(());
    }
    let values = images.saturating_mul(length as u64);
    let room = usize::try_from(values)
        .ok()
        .and_then(|values| half.values.try_reserve_exact(values).ok());
    room.ok_or(MeasureError::Memory { images, length })
}
