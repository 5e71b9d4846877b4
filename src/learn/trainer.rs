//! THE LOOP: take a batch, step, log, save.
//!
//! In: a feed of full batches and a run folder. Out: weights, metrics, checkpoints.
//! Invariant: the state after step s is a function of (recipe, data, s) alone; threads and interruptions leave no trace in it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;

use super::checkpoint::{self, Checkpoint, CheckpointState};
use super::error::LearnError;
use super::input::{self, Normalize};
use super::model::VicReg;
use super::norm::Mode;
use super::ops::TrainOps;
use super::optim::Optimizer;
use super::run::{Identity, Metrics, RunFolder};
use super::schedule::Schedule;
use super::vicreg::{LossOptions, LossTerms, vicreg_loss};
use super::weights::{self, NamedTensor};
use crate::data::store;
use crate::feed::{Batch, Feed, FeedError};

/// A backend that the loop can train on.
pub trait TrainAd: TrainOps + AutodiffBackend<InnerBackend: TrainOps> {}
impl<B: TrainOps + AutodiffBackend<InnerBackend: TrainOps>> TrainAd for B {}

/// Model and optimiser between two steps.
pub struct Trainer<B: TrainAd> {
    /// Backbone and projector.
    pub model: VicReg<B>,
    optimizer: Optimizer<B>,
    schedule: Schedule,
    loss: LossOptions,
    input: Normalize,
    device: B::Device,
    step: u64,
}

/// What one step computed; still on the device.
struct StepTerms<B: AutodiffBackend> {
    step: u64,
    lr: f64,
    terms: LossTerms<B>,
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
        device: B::Device,
    ) -> Self {
        Self {
            model,
            optimizer,
            schedule,
            loss,
            input,
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

    /// One step on one batch of V = 2 views, phase by phase.
    fn train_step(&mut self, batch: &Batch) -> StepTerms<B> {
        // Phase 1, encode: each view alone, since its batch norms must see that view's statistics alone.
        let (mut stats, mut stats_prime) = (Vec::new(), Vec::new());
        let x = self.view(batch, 0); // [N, 3, H, W]
        let x_prime = self.view(batch, 1);
        let z = self.model.embed(x, &mut Mode::Train(&mut stats)); // [N, D]
        let z_prime = self.model.embed(x_prime, &mut Mode::Train(&mut stats_prime));

        // Phase 2, loss and gradients on the whole batch; a gather over ranks would come between the phases.
        let terms = vicreg_loss(z, z_prime, &self.loss);
        let gradients = GradientsParams::from_grads(terms.loss.backward(), &self.model);

        let lr = self.schedule.lr(self.step);
        let model = self.optimizer.step(lr, self.model.clone(), gradients);
        self.model = model.update_running(&stats).update_running(&stats_prime);
        self.step += 1;
        StepTerms {
            step: self.step,
            lr,
            terms: LossTerms {
                loss: terms.loss.detach(),
                ..terms
            },
        }
    }

    /// One view of a batch as the network takes it, `[N, 3, H, W]`.
    fn view(&self, batch: &Batch, view: usize) -> Tensor<B, 4> {
        let side = batch.side();
        input::images(batch.view(view), side, side, self.input, &self.device)
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
        let mut pending: Vec<StepTerms<B>> = Vec::new();
        let mut clock = Clock::start();
        let mut saved = None;
        let end = plan.stop_at.min(plan.total_steps);
        while self.step < end {
            let asked = Instant::now();
            let batch = next_batch(feed, run, self.step + 1)?;
            clock.waited += asked.elapsed();
            run.quarantine(self.step + 1, batch.rejects())?;

            pending.push(self.train_step(&batch));
            drop(batch); // The slot goes back to the ring.
            clock.steps += 1;
            observer.stepped(self.step);

            let stopping = stop.load(Ordering::Relaxed) || self.step == end;
            let saving = stopping || self.step.is_multiple_of(plan.checkpoint_every);
            let logging = self.step == 1 || self.step == plan.total_steps || self.step.is_multiple_of(plan.log_every);
            if logging || saving {
                // Late metrics are read here, before anything is saved: no NaN state is ever kept as good.
                let last = self.read_back(&mut pending, saved.clone(), run)?;
                if logging {
                    let metrics = clock.metrics(&last, plan);
                    run.log(&metrics)?;
                    observer.logged(&metrics);
                    clock = Clock::start();
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

    /// Reads the pending steps' terms from the device, oldest first; the first that is not finite ends the run.
    fn read_back(
        &self,
        pending: &mut Vec<StepTerms<B>>,
        saved: Option<PathBuf>,
        run: &RunFolder,
    ) -> Result<HostTerms, LearnError> {
        let mut last = None;
        for step in pending.drain(..) {
            let terms = HostTerms::read(step);
            if !terms.loss.is_finite() {
                let last_good = saved.or_else(|| checkpoint::newest(run.path()).ok()?);
                let HostTerms {
                    step,
                    invariance,
                    variance,
                    covariance,
                    ..
                } = terms;
                return Err(LearnError::NotFinite {
                    step,
                    invariance,
                    variance,
                    covariance,
                    last_good,
                });
            }
            last = Some(terms);
        }
        Ok(last.expect("a step has just been taken"))
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

/// The terms of one step, on the host.
struct HostTerms {
    step: u64,
    lr: f64,
    loss: f64,
    invariance: f64,
    variance: f64,
    covariance: f64,
    embedding_std: f64,
}

impl HostTerms {
    fn read<B: AutodiffBackend>(step: StepTerms<B>) -> Self {
        let read = |tensor: Tensor<B, 1>| tensor.into_data().iter::<f64>().next().unwrap_or(f64::NAN);
        let terms = step.terms;
        Self {
            step: step.step,
            lr: step.lr,
            loss: read(terms.loss),
            invariance: read(terms.invariance),
            variance: read(terms.variance),
            covariance: read(terms.covariance),
            embedding_std: read(terms.embedding_std),
        }
    }
}

/// Time since the last logged line.
struct Clock {
    started: Instant,
    waited: Duration,
    steps: u32,
}

impl Clock {
    fn start() -> Self {
        Self {
            started: Instant::now(),
            waited: Duration::ZERO,
            steps: 0,
        }
    }

    fn metrics(&self, terms: &HostTerms, plan: &LoopPlan) -> Metrics {
        let seconds = self.started.elapsed().as_secs_f64();
        let steps = f64::from(self.steps.max(1));
        Metrics {
            step: terms.step,
            epoch: terms.step as f64 / plan.steps_per_epoch as f64,
            loss: terms.loss,
            invariance: terms.invariance,
            variance: terms.variance,
            covariance: terms.covariance,
            lr: terms.lr,
            embedding_std: terms.embedding_std,
            images_per_s: f64::from(plan.batch_size) * steps / seconds,
            step_ms: 1e3 * seconds / steps,
            feed_wait_ms: 1e3 * self.waited.as_secs_f64() / steps,
        }
    }
}
