//! Times one operation: some calls to warm up, then calls on the clock until the time is up.
//!
//! In: a closure that makes what a call takes, off the clock, and one that is the call. Out: [`Spent`], means of a call. The device
//! is waited for before and after, around several calls where they are short: reading the clocks costs what a short call does.

use super::maps::Inner;
use crate::learn::ops::TrainAd;
use crate::measure::cpu::CpuTimes;
use burn::tensor::backend::Backend;
use std::time::{Duration, Instant};

/// Calls to warm up, unless they take longer than the measurement.
const WARM_UP: u32 = 3;
/// What is timed at once is at least so long, where [`MOST_CALLS`] allows.
const WINDOW: Duration = Duration::from_millis(10);
/// Inputs that lie ready at a time.
const MOST_CALLS: u32 = 16;

/// What a call takes, on average.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// Seconds.
    pub(crate) wall: f64,
    /// Seconds of all threads. `None` where the system does not tell.
    pub(crate) cpu: Option<f64>,
}

/// How long to measure.
pub(super) struct Clock<'a, B: TrainAd> {
    pub(super) device: &'a B::Device,
    pub(super) time: Duration,
}

impl<B: TrainAd> Clock<'_, B> {
    fn wait(&self) {
        Inner::<B>::sync(self.device).unwrap_or_else(|error| panic!("the device failed: {error}"));
    }

    /// Mean of a call of `op`; its result is dropped on the clock, as a step drops it.
    pub(super) fn mean<T, O>(&self, mut prepare: impl FnMut() -> T, mut op: impl FnMut(T) -> O) -> Spent {
        let mut last = Duration::ZERO;
        let began = Instant::now();
        for _ in 0..WARM_UP {
            let input = prepare();
            self.wait();
            let start = Instant::now();
            drop(op(input));
            self.wait();
            last = start.elapsed();
            if began.elapsed() > self.time {
                break;
            }
        }
        let calls = WINDOW.as_nanos() / last.as_nanos().max(1) + 1;
        let calls = u32::try_from(calls).unwrap_or(MOST_CALLS).min(MOST_CALLS);
        let (mut wall, mut cpu, mut counted) = (Duration::ZERO, Some(0.0), 0);
        while counted == 0 || wall < self.time {
            let inputs: Vec<T> = (0..calls).map(|_| prepare()).collect();
            self.wait();
            let (before, start) = (CpuTimes::now(), Instant::now());
            for input in inputs {
                drop(op(input));
            }
            self.wait();
            wall += start.elapsed();
            let used = before.zip(CpuTimes::now());
            let used = used.map(|(before, after)| after.since(before).sum());
            cpu = cpu.zip(used).map(|(cpu, used)| cpu + used);
            counted += calls;
        }
        Spent {
            wall: wall.as_secs_f64() / f64::from(counted),
            // The kernel's count of a running thread is as old as its last tick: for little work the difference may be below 0.
            cpu: cpu.map(|cpu: f64| cpu.max(0.0) / f64::from(counted)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::backend::CpuAd;

    /// Only `op` is on the clock, and every input is made for one call.
    #[test]
    fn preparing_costs_nothing() {
        // Alone in a process: CPU time is the process's, and other tests' threads would count.
        const ALONE: &str = "VICREG_STREAM_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            again.args(["--exact", "measure::ops::clock::tests::preparing_costs_nothing"]);
            let run = again.env(ALONE, "1").output().unwrap();
            let said = String::from_utf8_lossy(&run.stdout);
            return assert!(run.status.success() && said.contains("1 passed"), "{said}");
        }
        let clock = Clock::<CpuAd> {
            device: &Default::default(),
            time: Duration::from_millis(20),
        };
        let (mut made, mut used) = (0, 0);
        let spent = clock.mean(
            || {
                std::thread::sleep(Duration::from_millis(30));
                made += 1;
                made
            },
            |number| {
                used += 1;
                assert_eq!(number, used, "each input once, in order");
                std::thread::sleep(Duration::from_millis(2));
            },
        );
        assert_eq!(made, used);
        assert!((0.002..0.03).contains(&spent.wall), "{spent:?}");
        if let Some(cpu) = spent.cpu {
            assert!(cpu < spent.wall, "sleeping is no work: {spent:?}");
        }
    }
}
