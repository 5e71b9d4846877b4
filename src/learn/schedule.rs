//! The learning rate of a step: linear warm-up, then half a cosine to the final rate.
//!
//! In: options, batch size, the length of an epoch and of the run in steps. Out: [`Schedule::lr`], a pure function of the step,
//! so a resume needs no state. Sources: main_vicreg.py of facebookresearch/vicreg 4e12602 (peak s/W, first step at 0);
//! solo-learn 9187ea3 (from 3e-5, last warm-up step at the peak, cosine to 0). Both are settings of one formula.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[schedule]`: the learning rate over a run. Defaults are the official code's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleOptions {
    /// Learning rate for 256 images a batch, or the peak itself without `scale_by_batch`. Default 0.2 (official, 1000 epochs).
    pub base_lr: f64,
    /// Peak = base_lr x batch size / 256. Default true (official).
    pub scale_by_batch: bool,
    /// Warm-up, epochs; a fraction is allowed. Default 10 (official, solo-learn).
    pub warmup_epochs: f64,
    /// Rate of step 0, where the warm-up starts. Default 0 (official); solo-learn 0.00003.
    pub warmup_start_lr: f64,
    /// Who first has the peak rate: `first-step-after` the warm-up (official) or its `last-step` (solo-learn). Default first-step-after.
    pub warmup_reaches_peak: WarmupPeak,
    /// Final rate as a share of the peak. Not read when `final_lr` is set. Default 0.001 (official).
    pub final_fraction: f64,
    /// Final rate itself (paper 0.002, solo-learn 0). Default none: final_fraction x peak.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_lr: Option<f64>,
}

/// Where the warm-up's straight line reaches the peak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WarmupPeak {
    /// At step W, the first of the cosine: rate of step s is s / W of the way.
    FirstStepAfter,
    /// At step W - 1: s / (W - 1) of the way; step W has the peak again.
    LastStep,
}

impl Default for ScheduleOptions {
    fn default() -> Self {
        Self {
            base_lr: 0.2,
            scale_by_batch: true,
            warmup_epochs: 10.0,
            warmup_start_lr: 0.0,
            warmup_reaches_peak: WarmupPeak::FirstStepAfter,
            final_fraction: 0.001,
            final_lr: None,
        }
    }
}

/// A schedule that cannot be followed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    /// An option is out of its range.
    #[error("`schedule.{name}` is {value}, not a finite number {range}")]
    Range {
        /// The option's name.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it should be.
        range: &'static str,
    },
    /// The run has no step.
    #[error("a run of 0 steps has no learning rate")]
    NoSteps,
}

/// What is odd about a schedule that can be followed all the same.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScheduleWarning {
    /// The run ends inside the warm-up, so the peak is never reached. (The published code does this, silently, for 10 epochs
    /// or fewer.)
    #[error(
        "the run ends inside the warm-up: {total_steps} steps, warm-up {warmup_steps:.0}; the largest rate is {reached:.3e}, not \
         {peak:.3e}. Lower `schedule.warmup_epochs`"
    )]
    EndsInWarmup {
        /// Steps of the run.
        total_steps: u64,
        /// Steps of the warm-up.
        warmup_steps: f64,
        /// Largest rate that a step will have.
        reached: f64,
        /// The peak asked for.
        peak: f64,
    },
    /// The rate falls during the warm-up or grows after it.
    #[error(
        "the rate starts at {start:.3e}, peaks at {peak:.3e} and ends at {end:.3e}: start and end should be below the peak"
    )]
    NotAPeak {
        /// Rate of step 0.
        start: f64,
        /// The peak.
        peak: f64,
        /// Final rate.
        end: f64,
    },
}

impl ScheduleOptions {
    /// Checks each option for itself; [`Schedule::new`] calls it.
    pub fn validate(&self) -> Result<(), ScheduleError> {
        let not_negative = [
            ("warmup_epochs", self.warmup_epochs),
            ("warmup_start_lr", self.warmup_start_lr),
            ("final_fraction", self.final_fraction),
            ("final_lr", self.final_lr.unwrap_or(0.0)),
        ];
        if !(self.base_lr.is_finite() && self.base_lr > 0.0) {
            return Err(ScheduleError::Range {
                name: "base_lr",
                value: self.base_lr,
                range: "above 0",
            });
        }
        match not_negative
            .iter()
            .find(|(_, value)| !(value.is_finite() && *value >= 0.0))
        {
            Some(&(name, value)) => Err(ScheduleError::Range {
                name,
                value,
                range: "of at least 0",
            }),
            None => Ok(()),
        }
    }
}

/// A schedule, resolved for one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    start: f64,
    peak: f64,
    end: f64,
    /// W, in steps; need not be whole.
    warmup: f64,
    /// Steps over which the warm-up's line climbs: W or W - 1.
    climb: f64,
    /// M.
    total: u64,
}

impl Schedule {
    /// Resolves `options` for batches of `batch` images (global), epochs of `steps_per_epoch` and a run of `total_steps`.
    /// The warnings are the caller's to show.
    pub fn new(
        options: &ScheduleOptions,
        batch: u64,
        steps_per_epoch: u64,
        total_steps: u64,
    ) -> Result<(Self, Vec<ScheduleWarning>), ScheduleError> {
        options.validate()?;
        if total_steps == 0 {
            return Err(ScheduleError::NoSteps);
        }
        let scale = if options.scale_by_batch {
            batch as f64 / 256.0
        } else {
            1.0
        };
        let peak = options.base_lr * scale;
        let warmup = options.warmup_epochs * steps_per_epoch as f64;
        let schedule = Self {
            start: options.warmup_start_lr,
            peak,
            end: options.final_lr.unwrap_or(options.final_fraction * peak),
            warmup,
            climb: match options.warmup_reaches_peak {
                WarmupPeak::FirstStepAfter => warmup,
                WarmupPeak::LastStep => warmup - 1.0,
            },
            total: total_steps,
        };
        let warnings = schedule.warnings();
        Ok((schedule, warnings))
    }

    /// The learning rate of `step`, counted from 0. Steps past the end keep the final rate.
    pub fn lr(&self, step: u64) -> f64 {
        let s = step as f64;
        if s < self.warmup {
            // A warm-up of one step has nothing to climb (solo-learn's W - 1 = 0): its only step has the start rate.
            let way = if self.climb > 0.0 {
                (s / self.climb).min(1.0)
            } else {
                0.0
            };
            return self.start + (self.peak - self.start) * way;
        }
        let length = self.total as f64 - self.warmup;
        let way = if length > 0.0 {
            ((s - self.warmup) / length).min(1.0)
        } else {
            1.0
        };
        let q = (1.0 + (std::f64::consts::PI * way).cos()) / 2.0;
        self.peak * q + self.end * (1.0 - q)
    }

    /// The largest rate that is asked for.
    pub fn peak(&self) -> f64 {
        self.peak
    }

    fn warnings(&self) -> Vec<ScheduleWarning> {
        let mut warnings = Vec::new();
        let reached = self.lr(self.total - 1);
        if (self.total as f64) <= self.warmup && reached < self.peak {
            warnings.push(ScheduleWarning::EndsInWarmup {
                total_steps: self.total,
                warmup_steps: self.warmup,
                reached,
                peak: self.peak,
            });
        }
        if (self.warmup > 0.0 && self.start > self.peak) || self.end > self.peak {
            warnings.push(ScheduleWarning::NotAPeak {
                start: self.start,
                peak: self.peak,
                end: self.end,
            });
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tables of tools/fixtures/schedule.py.
    fn table(name: &str) -> Vec<f64> {
        let fixture: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/fixtures/schedule.json")).unwrap();
        serde_json::from_value(fixture[name].clone()).unwrap()
    }

    fn assert_follows(schedule: &Schedule, table: &[f64], stride: u64) {
        assert!(table.len() > 30);
        for (at, &expected) in table.iter().enumerate() {
            let found = schedule.lr(at as u64 * stride);
            assert!(
                (found - expected).abs() <= 1e-12 * schedule.peak(),
                "step {at} x {stride}: {found} for {expected}"
            );
        }
    }

    #[test]
    fn official_table() {
        let (schedule, warnings) = Schedule::new(&ScheduleOptions::default(), 2048, 7, 84).unwrap();
        assert_eq!((schedule.lr(0), schedule.lr(70), warnings), (0.0, 1.6, vec![]));
        assert_follows(&schedule, &table("official"), 1);
    }

    #[test]
    fn paper_table() {
        let options = ScheduleOptions {
            final_lr: Some(0.002),
            ..Default::default()
        };
        let (schedule, _) = Schedule::new(&options, 2048, 2, 60).unwrap();
        assert_follows(&schedule, &table("paper"), 1);
        assert!((schedule.lr(60) - 0.002).abs() < 1e-15 && schedule.lr(1000) == schedule.lr(60));
    }

    #[test]
    fn solo_learn_table() {
        let options = ScheduleOptions {
            base_lr: 0.3,
            warmup_start_lr: 3e-5,
            warmup_reaches_peak: WarmupPeak::LastStep,
            final_lr: Some(0.0),
            ..Default::default()
        };
        let (schedule, _) = Schedule::new(&options, 256, 5, 120).unwrap();
        assert_follows(&schedule, &table("solo-learn"), 1);
        assert_eq!(schedule.lr(49), schedule.lr(50));
    }

    #[test]
    fn smoke_table_with_a_fractional_warmup() {
        let options = ScheduleOptions {
            base_lr: 5e-3,
            scale_by_batch: false,
            warmup_epochs: 46.8 / 62.0,
            ..Default::default()
        };
        let (schedule, warnings) = Schedule::new(&options, 64, 62, 468).unwrap();
        assert_follows(&schedule, &table("smoke"), 13);
        assert_eq!(warnings, vec![]);
    }

    #[test]
    fn a_run_inside_its_warmup_warns() {
        let (schedule, warnings) = Schedule::new(&ScheduleOptions::default(), 256, 10, 50).unwrap();
        assert!(
            matches!(warnings[..], [ScheduleWarning::EndsInWarmup { total_steps: 50, .. }]),
            "{warnings:?}"
        );
        assert!((schedule.lr(49) - 0.2 * 0.49).abs() < 1e-15);
        // solo-learn's line has reached the peak by the last warm-up step: nothing to warn of.
        let solo = ScheduleOptions {
            warmup_reaches_peak: WarmupPeak::LastStep,
            ..Default::default()
        };
        assert_eq!(Schedule::new(&solo, 256, 10, 100).unwrap().1, vec![]);
    }

    #[test]
    fn odd_lengths_stay_finite() {
        let solo = ScheduleOptions {
            warmup_reaches_peak: WarmupPeak::LastStep,
            warmup_start_lr: 3e-5,
            warmup_epochs: 1.0,
            ..Default::default()
        };
        let (one, _) = Schedule::new(&solo, 256, 1, 1).unwrap();
        assert_eq!(one.lr(0), 3e-5);
        assert!(one.lr(1).is_finite());
        let none = ScheduleOptions {
            warmup_epochs: 0.0,
            ..Default::default()
        };
        assert_eq!(Schedule::new(&none, 256, 1, 1).unwrap().0.lr(0), 0.2);
        let grows = ScheduleOptions {
            final_lr: Some(3.0),
            ..Default::default()
        };
        let warnings = Schedule::new(&grows, 256, 1, 100).unwrap().1;
        assert!(matches!(warnings[..], [ScheduleWarning::NotAPeak { .. }]));
    }

    #[test]
    fn options_are_checked() {
        let bad = ScheduleOptions {
            base_lr: 0.0,
            ..Default::default()
        };
        assert!(matches!(
            bad.validate(),
            Err(ScheduleError::Range { name: "base_lr", .. })
        ));
        let bad = ScheduleOptions {
            warmup_epochs: f64::INFINITY,
            ..Default::default()
        };
        assert!(matches!(
            Schedule::new(&bad, 1, 1, 1),
            Err(ScheduleError::Range {
                name: "warmup_epochs",
                ..
            })
        ));
        assert_eq!(
            Schedule::new(&ScheduleOptions::default(), 1, 1, 0),
            Err(ScheduleError::NoSteps)
        );
    }
}
