//! Labelled images -> feature vectors: of a network, or of the raw pixels.
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
use crate::learn::backend::Cpu;
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

    /// Representations of both halves under running statistics.
    pub fn encode<B: TrainOps>(
        &self,
        network: &ResNet<B>,
        data: &Labelled,
        device: &B::Device,
    ) -> Result<(Features, Features), MeasureError> {
        self.halves(data, |batch| {
            let x = self.view::<B>(batch, device); // [N, 3, H, W]
            network
                .forward(x, &mut Mode::Eval)
                .into_data()
                .to_vec()
                .expect("representations are f32") // [N, C]
        })
    }

    /// The pixels themselves, normalised, as features of length 3 H W.
    pub fn pixels(&self, data: &Labelled) -> Result<(Features, Features), MeasureError> {
        self.halves(data, |batch| {
            self.view::<Cpu>(batch, &Default::default())
                .into_data()
                .to_vec()
                .expect("pixels are f32") // [N, 3 H W]
        })
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

    fn halves(
        &self,
        data: &Labelled,
        mut encode: impl FnMut(Batch) -> Vec<f32>,
    ) -> Result<(Features, Features), MeasureError> {
        let own_split = data.test.is_none();
        let mut train = Features::default();
        let mut test = Features::default();
        let mut add = |dataset: &Arc<Dataset>, is_test: &dyn Fn(SampleKey) -> bool| -> Result<(), MeasureError> {
            let mut feed = self.open(dataset, Passes::Sequential)?;
            while let Some(batch) = feed.next()? {
                let places: Vec<Place> = Place::all(&batch, is_test).collect();
                let values = encode(batch);
                let length = values.len() / places.len();
                for (place, row) in places.iter().zip(values.chunks_exact(length)) {
                    let half = match place {
                        Place { label: None, .. } => continue,
                        Place { is_test: true, .. } => &mut test,
                        Place { is_test: false, .. } => &mut train,
                    };
                    reserve(half, length, dataset.len())?;
                    half.n += 1;
                    half.d = length;
                    half.values.extend_from_slice(row);
                    half.labels.extend(place.label);
                }
            }
            Ok(())
        };
        add(&data.train, &|key| own_split && held_out(key))?;
        if let Some(dataset) = &data.test {
            add(dataset, &|_| true)?;
        }
        Ok((train, test))
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
