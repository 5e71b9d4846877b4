//! Progress of a run: a bar on a terminal, plain lines otherwise. All of it goes to stderr.

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::learn::run::{Evaluation, Metrics};
use crate::learn::trainer::LoopPlan;

/// How a run gets on, as a person reads it.
pub enum Progress {
    /// On a terminal.
    Bar(Bar),
    /// In a file or a pipe.
    Lines(Lines),
}

impl Progress {
    /// As suits where stderr goes.
    pub fn new(plan: &LoopPlan, first_step: u64) -> Self {
        let end = plan.total_steps.min(plan.stop_at);
        if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len} eta {eta} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(end).with_style(style);
            bar.set_position(first_step);
            bar.reset_eta();
            Self::Bar(Bar { bar })
        } else {
            Self::Lines(Lines {
                end,
                first_step,
                began: Instant::now(),
            })
        }
    }

    /// A step's metrics.
    pub fn logged(&self, metrics: &Metrics) {
        match self {
            Self::Bar(Bar { bar }) => bar.set_message(summary(metrics)),
            Self::Lines(lines) => lines.logged(metrics),
        }
    }

    /// A step is done.
    pub fn stepped(&self, step: u64) {
        if let Self::Bar(Bar { bar }) = self {
            bar.set_position(step);
        }
    }

    /// A checkpoint is on disk.
    pub fn saved(&self, step: u64, path: &Path) {
        if let Self::Lines(_) = self {
            say!("saved step {step} to `{}`", path.display());
        }
    }

    /// The encoder was judged.
    pub fn evaluated(&self, evaluation: &Evaluation) {
        self.line(&format!(
            "evaluated at epoch {}: k-NN {:.1} %, linear {:.1} %",
            evaluation.epoch,
            100.0 * evaluation.knn,
            100.0 * evaluation.linear
        ));
    }

    /// A line of its own, above the bar where there is one.
    pub fn line(&self, text: &str) {
        match self {
            Self::Bar(Bar { bar }) => bar.suspend(|| say!("{text}")),
            Self::Lines(_) => say!("{text}"),
        }
    }
}

/// What a person wants to see of a logged step.
fn summary(metrics: &Metrics) -> String {
    let waited = 100.0 * metrics.feed_wait_ms / metrics.step_ms.max(1e-9);
    format!(
        "epoch {:.2}  loss {:.3} (inv {:.4}, var {:.4}, cov {:.4})  std {:.3}  rank {:.0}  lr {:.2e}  {:.0} img/s  waited {waited:.0} %",
        metrics.epoch,
        metrics.loss,
        metrics.invariance,
        metrics.variance,
        metrics.covariance,
        metrics.embedding_std,
        metrics.effective_rank.unwrap_or(f64::NAN),
        metrics.lr,
        metrics.images_per_s
    )
}

/// A bar; what it showed last stays.
pub struct Bar {
    bar: ProgressBar,
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.abandon();
    }
}

/// Plain lines.
pub struct Lines {
    end: u64,
    first_step: u64,
    began: Instant,
}

impl Lines {
    fn logged(&self, metrics: &Metrics) {
        let done = metrics.step.saturating_sub(self.first_step).max(1) as f64;
        let left = self.end.saturating_sub(metrics.step) as f64;
        let eta = Duration::from_secs_f64(self.began.elapsed().as_secs_f64() / done * left);
        say!(
            "step {}/{}  {}  eta {}",
            metrics.step,
            self.end,
            summary(metrics),
            HumanDuration(eta)
        );
    }
}
