//! `[optimizer]` as written in a recipe, and its checks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[optimizer]`: the update rule. Defaults are the official code's LARS. Parameters with one dimension (biases, norms) are
/// never decayed nor scaled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerOptions {
    /// The rule: lars, sgd or adamw. Default lars (paper, appendix C).
    pub kind: OptimizerKind,
    /// lars: whose formula, `official` (facebookresearch/vicreg) or `solo` (solo-learn). Default official.
    pub variant: LarsVariant,
    /// Weight decay; decoupled for adamw. Default 1e-6 (official).
    pub weight_decay: f64,
    /// lars, sgd: momentum. Default 0.9 (official).
    pub momentum: f64,
    /// lars: trust coefficient, eta. Default 0.001 (official); solo-learn 0.02.
    pub trust: f64,
    /// lars, variant solo: never let the scaled rate exceed the rate. Default false; solo-learn's recipes true.
    pub clip: bool,
    /// adamw: decay of the two moments. Default [0.9, 0.999] (PyTorch).
    pub betas: [f64; 2],
    /// adamw: added to the root of the second moment. Default 1e-8 (PyTorch).
    pub eps: f64,
}

/// The update rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// Layer-wise adaptive rate scaling.
    Lars,
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// Adam with decoupled weight decay.
    Adamw,
}

/// The two LARS formulas in use for VICReg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LarsVariant {
    /// facebookresearch/vicreg.
    Official,
    /// solo-learn.
    Solo,
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Lars,
            variant: LarsVariant::Official,
            weight_decay: 1e-6,
            momentum: 0.9,
            trust: 0.001,
            clip: false,
            betas: [0.9, 0.999],
            eps: 1e-8,
        }
    }
}

/// Optimiser options that cannot be trained with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OptimError {
    /// An option is out of its range.
    #[error("`optimizer.{name}` is {value}, not {range}")]
    Range {
        /// The option's name.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it should be.
        range: &'static str,
    },
    /// An option was set that the chosen rule does not read.
    #[error("`optimizer.{name}` is set, but {rule} does not read it")]
    Unread {
        /// The option's name.
        name: &'static str,
        /// The rule chosen.
        rule: &'static str,
    },
}

impl OptimizerOptions {
    /// Checks ranges, and that nothing is set that the rule does not read.
    pub fn validate(&self) -> Result<(), OptimError> {
        const UNIT: &str = "at least 0 and below 1";
        const POSITIVE: &str = "a finite number above 0";
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let decay_fits = self.weight_decay.is_finite() && self.weight_decay >= 0.0;
        let checks = [
            (
                "weight_decay",
                self.weight_decay,
                decay_fits,
                "a finite number of at least 0",
            ),
            ("momentum", self.momentum, unit(self.momentum), UNIT),
            ("trust", self.trust, positive(self.trust), POSITIVE),
            ("betas", self.betas[0], unit(self.betas[0]), UNIT),
            ("betas", self.betas[1], unit(self.betas[1]), UNIT),
            ("eps", self.eps, positive(self.eps), POSITIVE),
        ];
        for (name, value, fits, range) in checks {
            if !fits {
                return Err(OptimError::Range { name, value, range });
            }
        }
        self.refuse_unread()
    }

    fn refuse_unread(&self) -> Result<(), OptimError> {
        let default = Self::default();
        let (lars, sgd, adamw) = (
            self.kind == OptimizerKind::Lars,
            self.kind == OptimizerKind::Sgd,
            self.kind == OptimizerKind::Adamw,
        );
        let solo = lars && self.variant == LarsVariant::Solo;
        let reads = [
            ("variant", lars, self.variant != default.variant),
            ("momentum", lars || sgd, self.momentum != default.momentum),
            ("trust", lars, self.trust != default.trust),
            ("clip", solo, self.clip != default.clip),
            ("betas", adamw, self.betas != default.betas),
            ("eps", adamw, self.eps != default.eps),
        ];
        let rule = match (self.kind, self.variant) {
            (OptimizerKind::Lars, LarsVariant::Official) => "lars (variant official)",
            (OptimizerKind::Lars, LarsVariant::Solo) => "lars (variant solo)",
            (OptimizerKind::Sgd, _) => "sgd",
            (OptimizerKind::Adamw, _) => "adamw",
        };
        match reads.iter().find(|(_, read, set)| *set && !*read) {
            Some(&(name, ..)) => Err(OptimError::Unread { name, rule }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rule_does_not_read_is_refused() {
        let default = OptimizerOptions::default();
        assert_eq!(default.validate(), Ok(()));
        let clip = OptimizerOptions {
            clip: true,
            ..default.clone()
        };
        let rule = "lars (variant official)";
        assert_eq!(clip.validate(), Err(OptimError::Unread { name: "clip", rule }));
        let solo = OptimizerOptions {
            variant: LarsVariant::Solo,
            ..clip
        };
        assert_eq!(solo.validate(), Ok(()));
        let adamw = OptimizerOptions {
            kind: OptimizerKind::Adamw,
            ..default.clone()
        };
        assert_eq!(adamw.validate(), Ok(()));
        let trust = OptimizerOptions { trust: 0.02, ..adamw };
        assert!(matches!(
            trust.validate(),
            Err(OptimError::Unread { name: "trust", .. })
        ));
    }

    #[test]
    fn ranges_are_checked() {
        let momentum = OptimizerOptions {
            momentum: 1.0,
            ..Default::default()
        };
        assert!(matches!(
            momentum.validate(),
            Err(OptimError::Range { name: "momentum", .. })
        ));
        let decay = OptimizerOptions {
            weight_decay: f64::NAN,
            ..Default::default()
        };
        assert!(matches!(
            decay.validate(),
            Err(OptimError::Range {
                name: "weight_decay",
                ..
            })
        ));
        assert!(serde_json::from_str::<OptimizerOptions>(r#"{"kind": "adam"}"#).is_err());
        assert!(serde_json::from_str::<OptimizerOptions>(r#"{"decay": 1}"#).is_err());
    }
}
