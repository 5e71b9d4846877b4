//! THE LOOP: take a batch, step, log, save.
//!
//! In: a feed of full batches and a run folder. Out: weights, metrics, checkpoints.
//! Invariant: the state after step s is a function of (recipe, data, s) alone; threads and interruptions leave no trace in it.

mod gradients;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::module::AutodiffModule;

use super::checkpoint::{self, Checkpoint, CheckpointState};
use super::error::LearnError;
use super::health::Health;
use super::input::{Normalize, Uploaded};
use super::model::VicReg;
use super::ops::TrainAd;
use super::optim::{Optimizer, UpdateWatch};
use super::options::{OnCollapse, Precision};
use super::resnet::ResNet;
use super::run::{Evaluation, Identity, Metrics, RunFolder};
use super::schedule::Schedule;
use super::vicreg::LossOptions;
use super::watch::{LateTerms, StepTerms, StepWatch};
use super::weights;
use super::weights::safetensors::{self, Entry};
use crate::data::{SampleKey, store};
use crate::feed::{Batch, Feed, FeedError};

use gradients::Computed;

/// Model and optimiser between two steps.
pub struct Trainer<B: TrainAd> {
    /// Backbone and projector.
    pub model: VicReg<B>,
    optimizer: Optimizer<B>,
    schedule: Schedule,
    method: Method,
    device: B::Device,
    step: u64,
}

/// How a step computes, as the recipe says.
#[derive(Clone, Debug)]
pub struct Method {
    /// Loss and coefficients.
    pub loss: LossOptions,
    /// From bytes to what the network takes.
    pub input: Normalize,
    /// What the network computes in.
    pub precision: Precision,
    /// Images that the encoder takes at a time; `None`: the whole batch.
    pub micro_batch: Option<usize>,
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
    /// The observer evaluates every so many steps: the last of every so many epochs. 0: never.
    pub evaluate_every: u64,
    /// Checkpoints kept.
    pub keep_checkpoints: usize,
    /// What a collapse does.
    pub on_collapse: OnCollapse,
    /// Facts that `encoder.safetensors` carries for whoever uses it: size, mean, std, ...
    pub encoder_metadata: BTreeMap<String, String>,
}

/// Someone who watches: a progress bar, a log, a judge.
pub trait Observer<B: TrainAd> {
    /// Called at every logged step.
    fn logged(&mut self, metrics: &Metrics);
    /// Called after every step, cheap.
    fn stepped(&mut self, step: u64);
    /// Called when a checkpoint is safely on disk.
    fn saved(&mut self, step: u64, path: &std::path::Path);
    /// Called once when the embeddings collapsed and the run goes on all the same.
    fn unhealthy(&mut self, _error: &LearnError) {}
    /// Called at the last step of every so many epochs with the encoder as it stands, apart from its gradients. What comes back is
    /// written down; the time that it takes does not count as training.
    fn epoch_ended(&mut self, _step: u64, _encoder: &ResNet<B::InnerBackend>) -> Option<Evaluation> {
        None
    }
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
        method: Method,
        device: B::Device,
    ) -> Self {
        Self {
            model,
            optimizer,
            schedule,
            method,
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
        self.model = weights::import(self.model, checkpoint.model).map_err(LearnError::weights(path))?;
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

    /// One step on one batch of V = 2 views. Nothing here waits for the device. `watched`: whether to measure what only logged
    /// steps do.
    pub fn train_step(&mut self, batch: Uploaded<B>, watched: bool) -> LateTerms {
        let Computed {
            terms,
            embeddings,
            gradients,
            stats: [stats, stats_prime],
        } = self.gradients(batch);

        let lr = self.schedule.lr(self.step);
        let mut update = watched.then(UpdateWatch::default);
        let model = self.optimizer.step(lr, self.model.clone(), gradients, update.as_mut());
        self.model = model.update_running(&stats).update_running(&stats_prime);
        self.step += 1;
        let watch = update.map(|update| StepWatch { embeddings, update });
        LateTerms::begin(self.step, lr, terms, watch)
    }

    /// Trains until the plan's end, its `stop_at`, or until `stop` is raised.
    pub fn run(
        &mut self,
        feed: &mut Feed,
        run: &mut RunFolder,
        identity: &Identity,
        plan: &LoopPlan,
        stop: &AtomicBool,
        observer: &mut dyn Observer<B>,
    ) -> Result<Outcome, LearnError> {
        let mut late: VecDeque<Pending> = VecDeque::new();
        let mut now = Mark::start(self.step);
        let mut logged = now;
        let mut health = Health::new(checkpoint::newest(run.path())?);
        let end = plan.stop_at.min(plan.total_steps);
        while self.step < end {
            let asked = Instant::now();
            let batch = next_batch(feed, run, self.step + 1)?;
            now.waited += asked.elapsed();
            run.quarantine(self.step + 1, batch.rejects())?;

            let keys = batch.keys().to_vec();
            let batch = self.upload(batch);
            let terms = self.train_step(batch, plan.logs(self.step + 1));
            now = now.next(self.step);
            late.push_back(Pending { terms, keys, done: now });
            observer.stepped(self.step);

            let stopping = stop.load(Ordering::Relaxed) || self.step == end;
            let saving = stopping || self.step.is_multiple_of(plan.checkpoint_every);
            let evaluating = plan.evaluates(self.step);
            // Before anything is judged or saved all metrics are in: no NaN state is ever kept as good.
            let may_be_out = if saving || evaluating { 0 } else { B::RUN_AHEAD };
            while late.len() > may_be_out {
                let Some(Pending { terms, keys, done }) = late.pop_front() else {
                    break;
                };
                let terms = terms.wait();
                match health.look(&terms, &keys, feed.dataset(), run.path()) {
                    Err(error @ LearnError::Collapsed { .. }) if plan.on_collapse == OnCollapse::Ignore => {
                        observer.unhealthy(&error);
                    }
                    looked => looked?,
                }
                if plan.logs(terms.step) {
                    let metrics = terms.metrics(&logged, &done, plan);
                    run.log(&metrics)?;
                    observer.logged(&metrics);
                    logged = done;
                }
            }
            if evaluating {
                // Before the checkpoint: what continues from it has the line already.
                logged.at += self.evaluate(run, observer)?;
            }
            if saving {
                let path = self.save(feed, run, identity, plan, &health)?;
                observer.saved(self.step, &path);
                health.saved(&path);
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

    /// Lets the observer judge the encoder; returns how long that took.
    fn evaluate(&self, run: &mut RunFolder, observer: &mut dyn Observer<B>) -> Result<Duration, LearnError> {
        let began = Instant::now();
        if let Some(evaluation) = observer.epoch_ended(self.step, &self.model.backbone.valid()) {
            run.evaluated(&evaluation)?;
        }
        Ok(began.elapsed())
    }

    fn save(
        &self,
        feed: &Feed,
        run: &RunFolder,
        identity: &Identity,
        plan: &LoopPlan,
        health: &Health,
    ) -> Result<PathBuf, LearnError> {
        run.sync()?;
        let checkpoint = Checkpoint {
            state: CheckpointState::new(self.step, identity.clone(), feed.quarantine_state()),
            model: weights::export(&self.model),
            optimizer: self.optimizer.state(),
        };
        // The loss was read before the last update: what that update made is looked at here.
        let mut tensors = checkpoint.model.iter().chain(&checkpoint.optimizer);
        if let Some(broken) = tensors.find(|tensor| tensor.values.iter().any(|value| !value.is_finite())) {
            let (step, name) = (self.step, broken.name.clone());
            let last_good = health.last_good().map(PathBuf::from);
            return Err(LearnError::WeightsNotFinite { step, name, last_good });
        }
        // What was exported for the checkpoint, under torchvision's names.
        let encoder: Vec<Entry<'_>> = checkpoint
            .model
            .iter()
            .filter_map(|tensor| {
                let name = tensor.name.strip_prefix("backbone.")?;
                Some(Entry { name, tensor })
            })
            .collect();
        // Each step updates the running statistics twice: view 1, then view 2.
        let counts = safetensors::counts(&encoder, 2 * self.step);
        // The encoder first: a checkpoint at the last step says that everything else is there.
        store::write_atomic(&run.path().join("encoder.safetensors"), |file| {
            safetensors::write(file, &encoder, &plan.encoder_metadata, &counts)
        })?;
        checkpoint.save(run.path(), plan.keep_checkpoints, health.spared())
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

/// A step whose terms are on their way.
struct Pending {
    terms: LateTerms,
    /// The samples of its batch.
    keys: Vec<SampleKey>,
    done: Mark,
}

impl LoopPlan {
    /// Whether a step's metrics are logged.
    fn logs(&self, step: u64) -> bool {
        step == 1 || step == self.total_steps || step.is_multiple_of(self.log_every)
    }

    /// Whether the encoder is judged after a step.
    fn evaluates(&self, step: u64) -> bool {
        self.evaluate_every > 0 && step.is_multiple_of(self.evaluate_every)
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
        let watched = self.watched.as_ref();
        let trust = |at: usize| watched.and_then(|watched| watched.trust).map(|trust| trust[at]);
        Metrics {
            step: self.step,
            epoch: self.step as f64 / plan.steps_per_epoch as f64,
            loss: self.loss,
            invariance: self.invariance,
            variance: self.variance,
            covariance: self.covariance,
            lr: self.lr,
            embedding_std: self.embedding_std,
            embedding_std_min: self.embedding_std_min,
            effective_rank: watched.map(|watched| watched.effective_rank),
            correlation: watched.map(|watched| watched.correlation),
            grad_norm: watched.map(|watched| watched.grad_norm),
            trust_min: trust(0),
            trust_median: trust(1),
            trust_max: trust(2),
            images_per_s: f64::from(plan.batch_size) * steps / seconds,
            step_ms: 1e3 * seconds / steps,
            feed_wait_ms: 1e3 * (done.waited - before.waited).as_secs_f64() / steps,
        }
    }
}

#[cfg(test)]
mod tests;
