//! Progress of a run: a bar on a terminal, plain lines otherwise. All of it goes to stderr.

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::learn::LearnError;
use crate::learn::run::Metrics;
use crate::learn::trainer::{LoopPlan, Observer};

/// The observer that suits where stderr goes.
pub fn observer(plan: &LoopPlan, first_step: u64) -> Box<dyn Observer> {
    let end = plan.total_steps.min(plan.stop_at);
    if std::io::stderr().is_terminal() {
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len} eta {eta} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(end).with_style(style);
        bar.set_position(first_step);
        bar.reset_eta();
        Box::new(Bar { bar })
    } else {
        Box::new(Lines {
            end,
            first_step,
            began: Instant::now(),
        })
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

struct Bar {
    bar: ProgressBar,
}

impl Observer for Bar {
    fn logged(&mut self, metrics: &Metrics) {
        self.bar.set_message(summary(metrics));
    }

    fn stepped(&mut self, step: u64) {
        self.bar.set_position(step);
    }

    fn saved(&mut self, _step: u64, _path: &Path) {}

    fn unhealthy(&mut self, error: &LearnError) {
        self.bar.println(format!("warning: {error}"));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.abandon();
    }
}

struct Lines {
    end: u64,
    first_step: u64,
    began: Instant,
}

impl Observer for Lines {
    fn logged(&mut self, metrics: &Metrics) {
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

    fn stepped(&mut self, _step: u64) {}

    fn saved(&mut self, step: u64, path: &Path) {
        say!("saved step {step} to `{}`", path.display());
    }

    fn unhealthy(&mut self, error: &LearnError) {
        say!("warning: {error}");
    }
}
