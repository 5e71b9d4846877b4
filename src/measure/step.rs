//! How fast the training step is: alone, on a batch that lies on the device, and behind the feed; and who waits for whom.
//!
//! In: a trainer and, for both together, a running feed. Out: [`StepSpeed`], [`TrainSpeed`]. Nothing here waits for the device
//! more often than training does: two steps are under way, as in the loop.

use super::MeasureError;
use super::cpu::{self, CpuTimes};
use super::speed::{FeedSpeed, Limit};
use crate::feed::Feed;
use crate::learn::input::Uploaded;
use crate::learn::ops::TrainAd;
use crate::learn::options::Precision;
use crate::learn::trainer::Trainer;
use crate::learn::watch::LateTerms;
use burn::tensor::{Distribution, Tensor, backend::Backend};
use bytes::Bytes;
use serde::Serialize;
use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

/// The training step by itself.
#[derive(Clone, Debug, Serialize)]
pub struct StepSpeed {
    /// Where it computed.
    pub device: String,
    /// In which type.
    pub precision: Precision,
    /// Images in a batch (two views of each).
    pub batch_size: u32,
    /// Steps timed.
    pub steps: u32,
    /// Seconds a step.
    pub wall_s_per_step: f64,
    /// Seconds of CPU time a step, all threads. `None` where the system does not tell.
    pub cpu_s_per_step: Option<f64>,
    /// Images (not views) a second.
    pub images_per_s: f64,
    /// Floating-point operations of a step's convolutions and linear layers, forward and backward.
    pub flops_per_step: f64,
    /// Floating-point operations a second of a large matrix product, in the same type on the same device.
    pub matmul_flops_per_s: f64,
    /// The same, a second of CPU time: it says something where other programs use the cores, too.
    pub matmul_flops_per_cpu_s: Option<f64>,
    /// How much of that the step reaches.
    pub share_of_matmul_peak: f64,
}

/// The batch that is timed, and what its network computes.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Images in a batch.
    pub batch_size: u32,
    /// Side of a view, pixels.
    pub side: usize,
    /// Type that is computed in.
    pub precision: Precision,
    /// Multiply-adds of one image's forward pass, encoder and expander.
    pub multiply_adds: u64,
}

/// Times the step on one synthetic batch that stays on the device.
pub fn step<B: TrainAd>(
    trainer: &mut Trainer<B>,
    work: Workload,
    name: &str,
    device: &B::Device,
    time: Duration,
) -> StepSpeed {
    let bytes = 2 * work.batch_size as usize * work.side * work.side * 3;
    // Any bytes will do, as long as no two images are the same.
    let pixels: Vec<u8> = (0..bytes as u32)
        .map(|i| (i.wrapping_mul(0x9E37_79B9) >> 24) as u8)
        .collect();
    let batch = Uploaded::<B>::new(Bytes::from(pixels), 2, work.side, device);
    let mut pace = Pace::default();
    // Kernels are compiled and chosen in the first steps, buffers get their sizes in the second.
    for _ in 0..3 {
        pace.push::<B>(trainer.train_step(batch.clone(), false));
    }
    pace.finish();
    let (cpu, start, mut steps) = (CpuTimes::now(), Instant::now(), 0);
    while steps == 0 || start.elapsed() < time {
        pace.push::<B>(trainer.train_step(batch.clone(), false));
        steps += 1;
    }
    pace.finish();
    let seconds = start.elapsed().as_secs_f64();
    let cpu = cpu.zip(CpuTimes::now()).map(|(before, after)| after.since(before));
    let wall = seconds / f64::from(steps);
    // Two views; backward takes two products for each of forward's; a multiply-add is two operations.
    let flops = 2.0 * 3.0 * 2.0 * f64::from(work.batch_size) * work.multiply_adds as f64;
    let peak = matmul_peak::<B::InnerBackend>(work.precision, device);
    StepSpeed {
        device: name.to_owned(),
        precision: work.precision,
        batch_size: work.batch_size,
        steps,
        wall_s_per_step: wall,
        cpu_s_per_step: cpu.map(|cpu| cpu.sum() / f64::from(steps)),
        images_per_s: f64::from(work.batch_size) / wall,
        flops_per_step: flops,
        matmul_flops_per_s: peak.flops_per_s,
        matmul_flops_per_cpu_s: peak.flops_per_cpu_s,
        share_of_matmul_peak: flops / wall / peak.flops_per_s,
    }
}

/// How fast a device multiplies matrices.
#[derive(Clone, Copy, Debug, Default)]
struct Peak {
    /// Operations a second, the best of some tries.
    flops_per_s: f64,
    /// Operations a second of CPU time, all threads.
    flops_per_cpu_s: Option<f64>,
}

/// The rate of a square matrix product that is large enough to be at the device's best.
fn matmul_peak<B: Backend>(precision: Precision, device: &B::Device) -> Peak {
    const REPEATS: u32 = 4;
    const TRIES: u32 = 3;
    const ENOUGH: f64 = 0.25;
    const LARGEST: usize = 8192;
    let wait = || B::sync(device).unwrap_or_else(|error| panic!("the device failed: {error}"));
    let mut peak = Peak::default();
    let mut n = 512;
    loop {
        let draw = || {
            let x = Tensor::<B, 2>::random([n, n], Distribution::Uniform(-1.0, 1.0), device);
            crate::learn::ops::cast(x, precision.dtype())
        };
        let (a, b) = (draw(), draw());
        let product = || drop(a.clone().matmul(b.clone()));
        product(); // Compiles, chooses.
        wait();
        let flops = 2.0 * (n as f64).powi(3) * f64::from(REPEATS);
        let (cpu, began, mut tries) = (CpuTimes::now(), Instant::now(), 0);
        // The best try: on a machine that is shared, one of them may have the cores for itself.
        while tries == 0 || (tries < TRIES && began.elapsed().as_secs_f64() < ENOUGH) {
            let start = Instant::now();
            (0..REPEATS).for_each(|_| product());
            wait();
            peak.flops_per_s = peak.flops_per_s.max(flops / start.elapsed().as_secs_f64());
            tries += 1;
        }
        let seconds = began.elapsed().as_secs_f64();
        let used = cpu
            .zip(CpuTimes::now())
            .map(|(before, after)| after.since(before).sum());
        // Threads that ended meanwhile took their time with them: what is left may be less than nothing.
        let used = used.filter(|&used| used > 0.0);
        peak.flops_per_cpu_s = used.map(|used| f64::from(tries) * flops / used);
        // Eight times as long next: a slow device is at its best by now.
        if n >= LARGEST || seconds > ENOUGH {
            return peak;
        }
        n *= 2;
    }
}

/// Steps under way, as many as in training.
#[derive(Default)]
struct Pace(VecDeque<LateTerms>);

impl Pace {
    fn push<B: TrainAd>(&mut self, terms: LateTerms) {
        self.0.push_back(terms);
        while self.0.len() > B::RUN_AHEAD {
            self.0.pop_front().map(LateTerms::wait);
        }
    }

    fn finish(&mut self) {
        self.0.drain(..).for_each(|terms| {
            terms.wait();
        });
    }
}

/// Feed and step together, beside what each does alone.
#[derive(Clone, Debug, Serialize)]
pub struct TrainSpeed {
    /// Images a second of both together.
    pub images_per_s: f64,
    /// The step alone.
    pub step: StepSpeed,
    /// The feed alone.
    pub feed: FeedSpeed,
    /// Steps timed.
    pub steps: u32,
    /// Share of the time in which the device had nothing to do: 1 - time of the steps alone / time.
    pub device_idle: f64,
    /// Share of the time in which the host waited for a batch. The device may have had work meanwhile.
    pub feed_wait: f64,
    /// Who holds up whom, and what would help.
    pub verdict: String,
    /// Largest resident set of the process, MiB.
    pub peak_rss_mb: Option<f64>,
}

/// What feed and trainer do together.
#[derive(Clone, Copy, Debug)]
pub struct Together {
    /// Images a second.
    pub images_per_s: f64,
    /// Steps timed.
    pub steps: u32,
    /// Share of the time that the host waited for data.
    pub feed_wait: f64,
}

/// Times feed and trainer together.
pub fn together<B: TrainAd>(
    trainer: &mut Trainer<B>,
    feed: &mut Feed,
    time: Duration,
) -> Result<Together, MeasureError> {
    let mut pace = Pace::default();
    let mut next = |pace: &mut Pace| -> Result<(usize, Duration), MeasureError> {
        let asked = Instant::now();
        let batch = feed.next()?.ok_or(MeasureError::PassEnded)?;
        let (waited, images) = (asked.elapsed(), batch.len());
        let batch = trainer.upload(batch);
        pace.push::<B>(trainer.train_step(batch, false));
        Ok((images, waited))
    };
    for _ in 0..3 {
        next(&mut pace)?;
    }
    pace.finish();
    let start = Instant::now();
    let (mut images, mut steps, mut waited) = (0, 0, Duration::ZERO);
    while steps == 0 || start.elapsed() < time {
        let (taken, time) = next(&mut pace)?;
        (images, steps, waited) = (images + taken, steps + 1, waited + time);
    }
    pace.finish();
    let seconds = start.elapsed().as_secs_f64();
    Ok(Together {
        images_per_s: images as f64 / seconds,
        steps,
        feed_wait: waited.as_secs_f64() / seconds,
    })
}

/// A share of idleness below this is not worth a remedy.
const NOTICEABLE: f64 = 0.05;

impl TrainSpeed {
    /// Puts the three measurements together. `shares_cores`: the network computes on the feed's cores; `cores`: of the machine.
    pub fn new(step: StepSpeed, feed: FeedSpeed, together: Together, shares_cores: bool, cores: usize) -> Self {
        let Together {
            images_per_s,
            steps,
            feed_wait,
        } = together;
        let device_idle = (1.0 - images_per_s / step.images_per_s).max(0.0);
        Self {
            verdict: verdict(&step, &feed, device_idle, feed_wait, shares_cores, cores),
            images_per_s,
            step,
            feed,
            steps,
            device_idle,
            feed_wait,
            peak_rss_mb: cpu::peak_rss_mb(),
        }
    }
}

fn verdict(step: &StepSpeed, feed: &FeedSpeed, idle: f64, wait: f64, shares_cores: bool, cores: usize) -> String {
    let reserve = feed.images_per_s / step.images_per_s;
    if idle < NOTICEABLE || (shares_cores && wait < NOTICEABLE) {
        let shared = if shares_cores && idle >= NOTICEABLE {
            format!(
                ", of which the feed takes {:.0} % of its time by using the same cores",
                100.0 * idle
            )
        } else {
            String::new()
        };
        return format!("the device limits{shared}; the feed alone could give it {reserve:.1} times what it takes");
    }
    let waits = format!("the device waits {:.0} % of the time for data", 100.0 * idle);
    if reserve > 1.0 + NOTICEABLE && wait < NOTICEABLE {
        return format!("{waits}, and the feed has enough ({reserve:.1} times): the way to the device holds it up");
    }
    let blame = match feed.limit {
        Limit::Reader => {
            "the reader; `ingest` the data into shards of small row groups, or put them on a faster disk".to_owned()
        }
        Limit::Ring => "the order of the batches; a larger `feed.ring` would help".to_owned(),
        Limit::Workers => workers_remedy(step, feed, cores),
    };
    format!("{waits}; the stage to blame: {blame}")
}

/// The costliest part of the workers' work, and how many of them it takes.
fn workers_remedy(step: &StepSpeed, feed: &FeedSpeed, cores: usize) -> String {
    let mut parts = feed.stages.named().to_vec();
    parts.retain(|(name, _)| !matches!(*name, "reader" | "ring" | "consumer"));
    let (part, ms) = parts.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default();
    let needed = (f64::from(feed.workers) * step.images_per_s / feed.images_per_s).ceil() as usize;
    let remedy = if needed <= cores {
        format!("`feed.workers = {needed}` would keep up")
    } else {
        format!(
            "{needed} cores would keep up and this machine has {cores}; smaller source images, ingested anew, are the other way"
        )
    };
    format!("the workers, most of all `{part}` ({ms:.2} ms an image); {remedy}")
}

impl fmt::Display for StepSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "step alone on {}: {:.1} images/s, {:.1} ms a step of {} images ({:?}, {} steps)",
            self.device,
            self.images_per_s,
            1e3 * self.wall_s_per_step,
            self.batch_size,
            self.precision,
            self.steps
        )?;
        if let Some(cpu) = self.cpu_s_per_step {
            writeln!(f, "  CPU time       {cpu:9.4} s a step")?;
        }
        writeln!(
            f,
            "  arithmetic     {:9.4} TFLOP a step: {:.4} TFLOP/s, {:.1} % of this device's matrix product ({:.3} TFLOP/s)",
            self.flops_per_step / 1e12,
            self.flops_per_step / self.wall_s_per_step / 1e12,
            100.0 * self.share_of_matmul_peak,
            self.matmul_flops_per_s / 1e12
        )
    }
}

impl fmt::Display for TrainSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.step, self.feed)?;
        writeln!(
            f,
            "both together: {:.1} images/s ({} steps); step alone {:.1}, feed alone {:.1}",
            self.images_per_s, self.steps, self.step.images_per_s, self.feed.images_per_s
        )?;
        writeln!(
            f,
            "  device idle {:.1} %, host waited for data {:.1} %",
            100.0 * self.device_idle,
            100.0 * self.feed_wait
        )?;
        writeln!(f, "verdict: {}", self.verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::speed::StageCosts;
    use burn::backend::Flex;

    fn step_speed(images_per_s: f64) -> StepSpeed {
        StepSpeed {
            device: "test".to_owned(),
            precision: Precision::F32,
            batch_size: 10,
            steps: 1,
            wall_s_per_step: 10.0 / images_per_s,
            cpu_s_per_step: None,
            images_per_s,
            flops_per_step: 1e9,
            matmul_flops_per_s: 1e10,
            matmul_flops_per_cpu_s: None,
            share_of_matmul_peak: 0.1,
        }
    }

    fn feed_speed(images_per_s: f64, limit: Limit) -> FeedSpeed {
        FeedSpeed {
            workers: 2,
            images: 100,
            seconds: 1.0,
            images_per_s,
            cpu_ms_per_image: None,
            stages: StageCosts {
                decode: 1.5,
                crop: 0.3,
                planes: 0.1,
                color: 0.2,
                blur: 0.1,
                ring: 9.0,
                reader: 9.0,
                consumer: None,
            },
            limit,
            core_share: None,
            workers_waited_for_input: 0.0,
            workers_waited_for_room: 0.0,
            reader_busy: 0.0,
            windows_read: 0,
            read_mb: 0.0,
            time_to_first_batch_s: None,
            peak_rss_mb: None,
        }
    }

    fn of(step: f64, feed: f64, both: f64, wait: f64, limit: Limit, cores: usize) -> TrainSpeed {
        let together = Together {
            images_per_s: both,
            steps: 5,
            feed_wait: wait,
        };
        TrainSpeed::new(step_speed(step), feed_speed(feed, limit), together, false, cores)
    }

    #[test]
    fn a_busy_device_is_the_limit() {
        let speed = of(100.0, 250.0, 99.0, 0.0, Limit::Workers, 8);
        assert!((speed.device_idle - 0.01).abs() < 1e-9);
        assert!(
            speed
                .verdict
                .starts_with("the device limits; the feed alone could give it 2.5 times"),
            "{}",
            speed.verdict
        );
        // More than alone is noise, not less than no idleness.
        assert_eq!(of(100.0, 250.0, 101.0, 0.0, Limit::Workers, 8).device_idle, 0.0);
    }

    #[test]
    fn a_slow_feed_is_blamed_by_stage_with_its_remedy() {
        let slow = |limit, cores| of(100.0, 40.0, 40.0, 0.6, limit, cores).verdict;
        let workers = slow(Limit::Workers, 8);
        assert!(workers.contains("waits 60 % of the time"), "{workers}");
        assert!(
            workers.contains("`decode` (1.50 ms") && workers.contains("`feed.workers = 5`"),
            "{workers}"
        );
        assert!(slow(Limit::Workers, 4).contains("5 cores would keep up and this machine has 4"));
        assert!(slow(Limit::Reader, 8).contains("`ingest`") && slow(Limit::Ring, 8).contains("`feed.ring`"));
        let upload = of(100.0, 200.0, 80.0, 0.0, Limit::Workers, 8).verdict;
        assert!(upload.contains("the way to the device"), "{upload}");
    }

    #[test]
    fn the_matrix_peak_is_a_speed() {
        let peak = matmul_peak::<Flex>(Precision::F32, &Default::default());
        let rates = [Some(peak.flops_per_s), peak.flops_per_cpu_s];
        let plausible = |rate: f64| rate.is_finite() && rate > 1e6 && rate < 1e15;
        assert!(rates.into_iter().flatten().all(plausible), "{peak:?}");
    }
}
