//! THE LOOP: take a batch, step, log, save.
//!
//! In: a feed of full batches and a run folder. Out: weights, metrics, checkpoints.
//! Invariant: the state after step s is a function of (recipe, data, s) alone; threads and interruptions leave no trace in it.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

use super::checkpoint::{self, Checkpoint, CheckpointState};
use super::error::LearnError;
use super::input::{Normalize, Uploaded};
use super::model::VicReg;
use super::norm::Mode;
use super::ops::{LateRead, TrainAd, TrainOps, cast, primitive};
use super::optim::Optimizer;
use super::options::Precision;
use super::run::{Identity, Metrics, RunFolder};
use super::schedule::Schedule;
use super::vicreg::{LossOptions, LossTerms, vicreg_loss};
use super::weights::{self, NamedTensor};
use crate::data::store;
use crate::feed::{Batch, Feed, FeedError};

/// Model and optimiser between two steps.
pub struct Trainer<B: TrainAd> {
    /// Backbone and projector.
    pub model: VicReg<B>,
    optimizer: Optimizer<B>,
    schedule: Schedule,
    loss: LossOptions,
    input: Normalize,
    precision: Precision,
    device: B::Device,
    step: u64,
}

/// What one step computed, on its way from the device.
pub struct LateTerms {
    step: u64,
    lr: f64,
    read: LateRead,
}

/// When to log, save and stop.
#[derive(Clone, Debug)]
pub struct LoopPlan {
    /// Steps of the whole schedule.
    pub total_steps: u64,
    /// Stop here, earlier than the schedule's end.
    pub stop_at: u64,
    /// Full batches in an epoch.
    pub steps_per_epoch: u64,
    /// Images in a batch.
    pub batch_size: u32,
    /// A line of metrics every so many steps.
    pub log_every: u64,
    /// A checkpoint every so many steps.
    pub checkpoint_every: u64,
    /// Checkpoints kept.
    pub keep_checkpoints: usize,
    /// Facts that `encoder.safetensors` carries for whoever uses it: size, mean, std, ...
    pub encoder_metadata: BTreeMap<String, String>,
}

/// Someone who watches: a progress bar, a log.
pub trait Observer {
    /// Called at every logged step.
    fn logged(&mut self, metrics: &Metrics);
    /// Called after every step, cheap.
    fn stepped(&mut self, step: u64);
    /// Called when a checkpoint is safely on disk.
    fn saved(&mut self, step: u64, path: &std::path::Path);
}

/// Why the loop returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The schedule is complete.
    Complete,
    /// `stop_at` or a signal came first; the checkpoint continues.
    Stopped {
        /// Steps done.
        step: u64,
    },
}

impl<B: TrainAd> Trainer<B> {
    /// A trainer before its first step.
    pub fn new(
        model: VicReg<B>,
        optimizer: Optimizer<B>,
        schedule: Schedule,
        loss: LossOptions,
        input: Normalize,
        precision: Precision,
        device: B::Device,
    ) -> Self {
        Self {
            model,
            optimizer,
            schedule,
            loss,
            input,
            precision,
            device,
            step: 0,
        }
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Puts a checkpoint's weights, optimiser state and step in place.
    pub fn restore(mut self, checkpoint: Checkpoint, path: &std::path::Path) -> Result<Self, LearnError> {
        let broken = |source| LearnError::Weights {
            path: path.to_owned(),
            source,
        };
        self.model = weights::import(self.model, checkpoint.model).map_err(broken)?;
        self.optimizer
            .load_state(&self.model, checkpoint.optimizer)
            .map_err(|source| LearnError::Optimizer {
                path: path.to_owned(),
                source,
            })?;
        self.step = checkpoint.state.step;
        Ok(self)
    }

    /// Takes a batch of the feed to the device.
    pub fn upload(&self, batch: Batch) -> Uploaded<B> {
        Uploaded::batch(batch, &self.device)
    }

    /// One step on one batch of V = 2 views, phase by phase. Nothing here waits for the device.
    pub fn train_step(&mut self, batch: Uploaded<B>) -> LateTerms {
        // Phase 1, encode: each view alone, since its batch norms must see that view's statistics alone.
        let (mut stats, mut stats_prime) = (Vec::new(), Vec::new());
        let x = self.view(&batch, 0); // [N, 3, H, W]
        let x_prime = self.view(&batch, 1);
        drop(batch); // On the CPU, the slot goes back to the ring here.
        let z = self.model.embed(x, &mut Mode::Train(&mut stats)); // [N, D]
        let z_prime = self.model.embed(x_prime, &mut Mode::Train(&mut stats_prime));

        // Phase 2, loss and gradients on the whole batch, in f32; a gather over ranks would come between the phases.
        let [z, z_prime] = [z, z_prime].map(|z| cast(z, DType::F32));
        let terms = vicreg_loss(z, z_prime, &self.loss);
        let gradients = GradientsParams::from_grads(terms.loss.backward(), &self.model);

        let lr = self.schedule.lr(self.step);
        let model = self.optimizer.step(lr, self.model.clone(), gradients);
        self.model = model.update_running(&stats).update_running(&stats_prime);
        self.step += 1;
        LateTerms::begin(self.step, lr, terms)
    }

    /// One view of a batch as the network takes it, `[N, 3, H, W]`, in the type that it computes in.
    fn view(&self, batch: &Uploaded<B>, view: usize) -> Tensor<B, 4> {
        cast(batch.view(view, self.input), self.precision.dtype())
    }

    /// Trains until the plan's end, its `stop_at`, or until `stop` is raised.
    pub fn run(
        &mut self,
        feed: &mut Feed,
        run: &mut RunFolder,
        identity: &Identity,
        plan: &LoopPlan,
        stop: &AtomicBool,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, LearnError> {
        let mut late: VecDeque<(LateTerms, Mark)> = VecDeque::new();
        let mut now = Mark::start(self.step);
        let mut logged = now;
        let mut saved = None;
        let end = plan.stop_at.min(plan.total_steps);
        while self.step < end {
            let asked = Instant::now();
            let batch = next_batch(feed, run, self.step + 1)?;
            now.waited += asked.elapsed();
            run.quarantine(self.step + 1, batch.rejects())?;

            let batch = self.upload(batch);
            let terms = self.train_step(batch);
            now = now.next(self.step);
            late.push_back((terms, now));
            observer.stepped(self.step);

            let stopping = stop.load(Ordering::Relaxed) || self.step == end;
            let saving = stopping || self.step.is_multiple_of(plan.checkpoint_every);
            // Before anything is saved all metrics are in: no NaN state is ever kept as good.
            let may_be_out = if saving { 0 } else { B::RUN_AHEAD };
            while late.len() > may_be_out {
                let Some((terms, done)) = late.pop_front() else { break };
                let terms = terms.wait();
                terms.check(&saved, run)?;
                if plan.logs(terms.step) {
                    let metrics = terms.metrics(&logged, &done, plan);
                    run.log(&metrics)?;
                    observer.logged(&metrics);
                    logged = done;
                }
            }
            if saving {
                let path = self.save(feed, run, identity, plan)?;
                observer.saved(self.step, &path);
                saved = Some(path);
            }
            if stopping {
                break;
            }
        }
        Ok(match self.step {
            step if step < plan.total_steps => Outcome::Stopped { step },
            _ => Outcome::Complete,
        })
    }

    fn save(&self, feed: &Feed, run: &RunFolder, identity: &Identity, plan: &LoopPlan) -> Result<PathBuf, LearnError> {
        run.sync()?;
        let checkpoint = Checkpoint {
            state: CheckpointState::new(self.step, identity.clone(), feed.quarantine_state()),
            model: weights::export(&self.model),
            optimizer: self.optimizer.state(),
        };
        // The loss was read before the last update: what that update made is looked at here.
        let mut tensors = checkpoint.model.iter().chain(&checkpoint.optimizer);
        if let Some(broken) = tensors.find(|tensor| tensor.values.iter().any(|value| !value.is_finite())) {
            let (step, name, last_good) = (self.step, broken.name.clone(), checkpoint::newest(run.path())?);
            return Err(LearnError::WeightsNotFinite { step, name, last_good });
        }
        // What was exported for the checkpoint, under torchvision's names.
        let backbone = checkpoint.model.iter().filter_map(|tensor| {
            let name = tensor.name.strip_prefix("backbone.")?.to_owned();
            Some(NamedTensor { name, ..tensor.clone() })
        });
        let encoder: Vec<NamedTensor> = backbone.collect();
        // Each step updates the running statistics twice: view 1, then view 2.
        let encoder = weights::to_safetensors(&encoder, &plan.encoder_metadata, Some(2 * self.step))
            .expect("a module's parameters have names of their own");
        // The encoder first: a checkpoint at the last step says that everything else is there.
        store::write_bytes(&run.path().join("encoder.safetensors"), &encoder)?;
        checkpoint.save(run.path(), plan.keep_checkpoints)
    }
}

/// The next batch. Where the budget of bad samples is spent, those that spent it are written down first.
fn next_batch(feed: &mut Feed, run: &mut RunFolder, step: u64) -> Result<Batch, LearnError> {
    match feed.next() {
        Ok(batch) => Ok(batch.expect("a training feed has no end")),
        Err(error) => {
            if let FeedError::TooManyBad { rejects, .. } = &error {
                run.quarantine(step, rejects)?;
            }
            Err(error.into())
        }
    }
}

impl LateTerms {
    /// Puts the reading of a step's terms behind it on the device.
    fn begin<B: TrainAd>(step: u64, lr: f64, terms: LossTerms<B>) -> Self {
        let LossTerms {
            loss,
            invariance,
            variance,
            covariance,
            embedding_std,
        } = terms;
        // One small tensor, one copy.
        let all = [loss, invariance, variance, covariance, embedding_std].map(Tensor::inner);
        let read = B::InnerBackend::read_late(primitive(Tensor::cat(all.to_vec(), 0)));
        Self { step, lr, read }
    }

    /// The terms on the host; waits for the step if it is not done yet.
    pub fn wait(self) -> StepTerms {
        let values = self.read.wait();
        let [loss, invariance, variance, covariance, embedding_std] =
            values[..].try_into().expect("as many values as were put together");
        StepTerms {
            step: self.step,
            lr: self.lr,
            loss,
            invariance,
            variance,
            covariance,
            embedding_std,
        }
    }
}

/// The terms of one step, on the host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTerms {
    /// Steps done, this one included.
    pub step: u64,
    /// Learning rate of the step.
    pub lr: f64,
    /// lambda s + mu v + nu c.
    pub loss: f64,
    /// s.
    pub invariance: f64,
    /// v.
    pub variance: f64,
    /// c.
    pub covariance: f64,
    /// Standard deviation of an embedding dimension, mean over dimensions and branches.
    pub embedding_std: f64,
}

impl StepTerms {
    /// A loss that is not finite ends the run.
    fn check(&self, saved: &Option<PathBuf>, run: &RunFolder) -> Result<(), LearnError> {
        if self.loss.is_finite() {
            return Ok(());
        }
        Err(LearnError::NotFinite {
            step: self.step,
            invariance: self.invariance,
            variance: self.variance,
            covariance: self.covariance,
            last_good: saved.clone().or_else(|| checkpoint::newest(run.path()).ok()?),
        })
    }
}

impl LoopPlan {
    /// Whether a step's metrics are logged.
    fn logs(&self, step: u64) -> bool {
        step == 1 || step == self.total_steps || step.is_multiple_of(self.log_every)
    }
}

/// When a step was handed to the device: in the long run at the device's pace, since it is never far behind.
#[derive(Clone, Copy, Debug)]
struct Mark {
    step: u64,
    at: Instant,
    /// Waited for data, from the start of the loop.
    waited: Duration,
}

impl Mark {
    fn start(step: u64) -> Self {
        Self {
            step,
            at: Instant::now(),
            waited: Duration::ZERO,
        }
    }

    fn next(self, step: u64) -> Self {
        Self {
            step,
            at: Instant::now(),
            ..self
        }
    }
}

impl StepTerms {
    /// The line of a step, with times since the line before.
    fn metrics(&self, before: &Mark, done: &Mark, plan: &LoopPlan) -> Metrics {
        let seconds = (done.at - before.at).as_secs_f64();
        let steps = (done.step - before.step) as f64;
        Metrics {
            step: self.step,
            epoch: self.step as f64 / plan.steps_per_epoch as f64,
            loss: self.loss,
            invariance: self.invariance,
            variance: self.variance,
            covariance: self.covariance,
            lr: self.lr,
            embedding_std: self.embedding_std,
            images_per_s: f64::from(plan.batch_size) * steps / seconds,
            step_ms: 1e3 * seconds / steps,
            feed_wait_ms: 1e3 * (done.waited - before.waited).as_secs_f64() / steps,
        }
    }
}

#[cfg(test)]
mod tests;
