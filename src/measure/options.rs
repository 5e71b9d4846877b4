//! `[eval]`: how representations are judged.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::probe::knn;
use crate::feed::view::{Interpolation, View, ViewsOptions};

/// `[eval]`: how representations are judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalOptions {
    /// Shorter side after the evaluation's resize, pixels, before the centre crop of `views.size`. Without it
    /// views.size x 256 / 224, the protocol of ImageNet evaluation.
    #[schemars(extend("x-kind" = "operational"))]
    pub resize: Option<u32>,
    /// Neighbours that vote in k-NN (Wu et al. 2018 use 200, the VICReg paper reports 20 and 200).
    #[schemars(extend("x-kind" = "operational"))]
    pub k: u32,
    /// Temperature of the votes' weights exp(similarity / temperature).
    #[schemars(extend("x-kind" = "operational"))]
    pub temperature: f64,
    /// Run k-NN when training ends, where the data have labels.
    #[schemars(extend("x-kind" = "operational"))]
    pub knn_at_end: bool,
    /// k-NN and linear probe every so many epochs while training, where the data have labels; `evaluations.jsonl` of the run has the
    /// accuracies. Each evaluation decodes and encodes every labelled image once. 0: never.
    #[schemars(extend("x-kind" = "operational"))]
    pub every_epochs: u32,
    /// Images in a batch of the evaluation's forward pass.
    #[schemars(extend("x-kind" = "operational"))]
    pub batch_size: u32,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self {
            resize: None,
            k: knn::K as u32,
            temperature: knn::TEMPERATURE,
            knn_at_end: true,
            every_epochs: 0,
            batch_size: 128,
        }
    }
}

impl EvalOptions {
    /// What is out of range, one sentence each.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.k == 0 || self.resize == Some(0) || self.batch_size < 2 {
            problems.push("eval.k and eval.resize must be at least 1, eval.batch_size at least 2".to_owned());
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            problems.push(format!("eval.temperature = {}: it must be positive", self.temperature));
        }
        problems
    }

    /// The evaluation's view: resize, then centre crop, bicubic as the training views of the recipes are.
    pub fn view(&self, views: &ViewsOptions) -> View {
        let resize = self
            .resize
            .unwrap_or((f64::from(views.size) * 256.0 / 224.0).round() as u32);
        let interpolation = views
            .view
            .first()
            .map_or(Interpolation::Bicubic, |view| view.interpolation);
        View::Center {
            resize,
            size: views.size,
            interpolation,
        }
    }
}
