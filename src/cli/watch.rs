//! Who watches a training run: shows its progress, and judges its encoder where labels exist.

use std::path::Path;

use super::plan::{self, Images};
use super::progress::Progress;
use super::recipe::Recipe;
use crate::learn::LearnError;
use crate::learn::ops::TrainAd;
use crate::learn::resnet::ResNet;
use crate::learn::run::{Evaluation, Metrics};
use crate::learn::trainer::{LoopPlan, Observer};
use crate::measure::MeasureError;
use crate::measure::online::Online;

/// The loop's observer.
pub struct Watcher<B: TrainAd> {
    progress: Progress,
    judge: Option<Online>,
    steps_per_epoch: u64,
    device: B::Device,
}

impl<B: TrainAd> Watcher<B> {
    /// From `first_step` on. Evaluation that was asked for and is not possible is a warning, here and once.
    pub fn new(recipe: &Recipe, images: &Images, plan: &LoopPlan, first_step: u64, device: B::Device) -> Self {
        let judge = (plan.evaluate_every > 0).then(|| {
            let data = images.labelled()?;
            Ok(Online::new(plan::encoder(recipe), data, &recipe.eval))
        });
        let judge = judge.transpose().unwrap_or_else(|error: MeasureError| {
            say!("warning: no evaluation while training (eval.every_epochs): {error}");
            None
        });
        Self {
            progress: Progress::new(plan, first_step),
            judge,
            steps_per_epoch: plan.steps_per_epoch,
            device,
        }
    }
}

impl<B: TrainAd> Observer<B> for Watcher<B> {
    fn logged(&mut self, metrics: &Metrics) {
        self.progress.logged(metrics);
    }

    fn stepped(&mut self, step: u64) {
        self.progress.stepped(step);
    }

    fn saved(&mut self, step: u64, path: &Path) {
        self.progress.saved(step, path);
    }

    fn unhealthy(&mut self, error: &LearnError) {
        self.progress.line(&format!("warning: {error}"));
    }

    fn epoch_ended(&mut self, step: u64, encoder: &ResNet<B::InnerBackend>) -> Option<Evaluation> {
        match self.judge.as_ref()?.judge(encoder, &self.device) {
            Ok(accuracies) => {
                let evaluation = Evaluation {
                    step,
                    epoch: step as f64 / self.steps_per_epoch as f64,
                    knn: accuracies.knn,
                    linear: accuracies.linear,
                };
                self.progress.evaluated(&evaluation);
                Some(evaluation)
            }
            // The run goes on, whatever its evaluation says.
            Err(error) => {
                self.progress
                    .line(&format!("warning: no evaluation at step {step}: {error}"));
                None
            }
        }
    }
}
