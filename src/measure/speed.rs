//! How fast the feed is by itself: images a second, CPU time by stage, and which stage limits.
//!
//! In: what a training run would feed itself with. Out: [`FeedSpeed`]. The feed runs as in training; whoever takes the batches
//! drops them at once, so what is measured is the feed's own limit.

use super::MeasureError;
use super::cpu::{self, CpuTimes};
use crate::data::Dataset;
use crate::feed::gauges::StageTime;
use crate::feed::laps::PartTimes;
use crate::feed::{Feed, FeedOptions, FeedPlan, GaugesSnapshot};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A feed's speed with one number of workers.
#[derive(Clone, Debug, Serialize)]
pub struct FeedSpeed {
    /// Threads that decoded and augmented.
    pub workers: u32,
    /// Images made in the time measured, all views of one counted once.
    pub images: u64,
    /// Time measured, s; a warm-up came before it.
    pub seconds: f64,
    /// Images a second.
    pub images_per_s: f64,
    /// CPU time of the whole process, ms an image. `None` where the system does not tell.
    pub cpu_ms_per_image: Option<f64>,
    /// CPU time by stage, ms an image; wall time where the system does not tell.
    pub stages: StageCosts,
    /// The stage that limits.
    pub limit: Limit,
    /// Share of their time in which the workers waited for data.
    pub workers_waited_for_input: f64,
    /// Share of their time in which the workers waited for a free slot.
    pub workers_waited_for_room: f64,
    /// Share of its time in which the reader worked.
    pub reader_busy: f64,
    /// From the start to the first batch, s.
    pub time_to_first_batch_s: f64,
    /// Largest resident set of the process so far, MiB.
    pub peak_rss_mb: Option<f64>,
}

/// Cost of the stages, ms an image.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StageCosts {
    /// Encoded bytes -> RGB.
    pub decode: f64,
    /// Crop and resize of all views.
    pub crop: f64,
    /// To planes and back, flip included.
    pub planes: f64,
    /// Jitter, grey, solarise.
    pub color: f64,
    /// Blur.
    pub blur: f64,
    /// The workers' rest: claim, slot, records, draws, the stopwatch itself.
    pub ring: f64,
    /// The reader.
    pub reader: f64,
    /// All other threads: whoever takes the batches.
    pub consumer: f64,
}

/// Who holds up everyone else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Reading: faster disks, larger row groups.
    Reader,
    /// Decoding and augmenting: more cores, smaller images.
    Workers,
    /// Whoever takes the batches.
    Consumer,
}

/// Runs the feed for `time` after a warm-up and says what it costs.
pub fn feed(
    dataset: &Arc<Dataset>,
    plan: &FeedPlan,
    options: &FeedOptions,
    time: Duration,
) -> Result<FeedSpeed, MeasureError> {
    let mut feed = Feed::start(dataset.clone(), plan.clone(), options, 0)?;
    // Until buffers have their size and every slot has gone round.
    let warm_up = (time / 8).min(Duration::from_secs(1));
    take(&mut feed, warm_up, 2 * u64::from(options.ring))?;
    feed.profile(true);
    let (cpu_before, before) = (CpuTimes::now(), feed.gauges());
    take(&mut feed, time, 1)?;
    let (cpu_after, after) = (CpuTimes::now(), feed.gauges());
    let cpu = cpu_before.zip(cpu_after).map(|(before, after)| after.since(before));
    Ok(FeedSpeed::new(&before, &after, cpu))
}

/// Takes batches and drops them, for the time and for the number given.
fn take(feed: &mut Feed, time: Duration, least: u64) -> Result<(), MeasureError> {
    let start = Instant::now();
    let mut taken = 0;
    while taken < least || start.elapsed() < time {
        if feed.next()?.is_none() {
            break;
        }
        taken += 1;
    }
    Ok(())
}

impl FeedSpeed {
    fn new(before: &GaugesSnapshot, after: &GaugesSnapshot, cpu: Option<CpuTimes>) -> Self {
        let seconds = after.seconds - before.seconds;
        let images = after.images - before.images;
        let (workers, reader) = (
            stretch(&before.workers, &after.workers),
            stretch(&before.reader, &after.reader),
        );
        let parts = parts(&before.parts, &after.parts);
        let waited = |share: f64| share / total(&workers).max(1e-9);
        let (for_input, for_room) = (waited(workers.waiting_for_input_s), waited(workers.waiting_for_room_s));
        Self {
            workers: workers.threads,
            images,
            seconds,
            images_per_s: images as f64 / seconds,
            cpu_ms_per_image: cpu.map(|cpu| 1e3 * cpu.sum() / images.max(1) as f64),
            stages: StageCosts::new(&parts, &workers, &reader, cpu, images),
            limit: match () {
                () if for_input > for_room.max(0.05) => Limit::Reader,
                () if for_room > 0.05 => Limit::Consumer,
                () => Limit::Workers,
            },
            workers_waited_for_input: for_input,
            workers_waited_for_room: for_room,
            reader_busy: reader.busy_s / total(&reader).max(1e-9),
            time_to_first_batch_s: after.time_to_first_batch_s.unwrap_or_default(),
            peak_rss_mb: cpu::peak_rss_mb(),
        }
    }
}

impl StageCosts {
    /// Laps are wall time; scaled by what share of it the workers had a core, they are CPU time.
    fn new(parts: &PartTimes, workers: &StageTime, reader: &StageTime, cpu: Option<CpuTimes>, images: u64) -> Self {
        let worker_cpu = cpu.map_or(workers.busy_s, |cpu| cpu.workers);
        let ms = |seconds: f64| 1e3 * seconds / images.max(1) as f64;
        let scaled = |wall: f64| ms(wall * worker_cpu / workers.busy_s.max(1e-9));
        let PartTimes {
            decode_s,
            crop_s,
            planes_s,
            color_s,
            blur_s,
        } = *parts;
        let all = decode_s + crop_s + planes_s + color_s + blur_s;
        Self {
            decode: scaled(decode_s),
            crop: scaled(crop_s),
            planes: scaled(planes_s),
            color: scaled(color_s),
            blur: scaled(blur_s),
            ring: scaled((workers.busy_s - all).max(0.0)),
            reader: ms(cpu.map_or(reader.busy_s, |cpu| cpu.reader)),
            consumer: cpu.map_or(0.0, |cpu| ms(cpu.others)),
        }
    }

    /// Names and values, in the order in which an image meets them.
    pub fn named(&self) -> [(&'static str, f64); 8] {
        [
            ("reader", self.reader),
            ("decode", self.decode),
            ("crop", self.crop),
            ("planes", self.planes),
            ("color", self.color),
            ("blur", self.blur),
            ("ring", self.ring),
            ("consumer", self.consumer),
        ]
    }
}

fn stretch(before: &StageTime, after: &StageTime) -> StageTime {
    StageTime {
        threads: after.threads,
        busy_s: after.busy_s - before.busy_s,
        waiting_for_input_s: after.waiting_for_input_s - before.waiting_for_input_s,
        waiting_for_room_s: after.waiting_for_room_s - before.waiting_for_room_s,
    }
}

fn total(time: &StageTime) -> f64 {
    time.busy_s + time.waiting_for_input_s + time.waiting_for_room_s
}

fn parts(before: &PartTimes, after: &PartTimes) -> PartTimes {
    PartTimes {
        decode_s: after.decode_s - before.decode_s,
        crop_s: after.crop_s - before.crop_s,
        planes_s: after.planes_s - before.planes_s,
        color_s: after.color_s - before.color_s,
        blur_s: after.blur_s - before.blur_s,
    }
}

impl fmt::Display for FeedSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: f64 = self.stages.named().iter().map(|(_, ms)| ms).sum();
        writeln!(
            f,
            "{} workers: {:.0} images/s, {all:.3} CPU-ms an image ({} images in {:.1} s)",
            self.workers, self.images_per_s, self.images, self.seconds
        )?;
        for (name, ms) in self.stages.named() {
            writeln!(f, "  {name:<9}{ms:9.4} ms {:5.1} %", 100.0 * ms / all.max(1e-9))?;
        }
        let headroom = 1.0 / self.reader_busy.max(1e-4);
        match self.limit {
            Limit::Workers => writeln!(
                f,
                "  limit: the workers, busy all the time; the reader worked {:.1} % of it and could feed {headroom:.0} times as many",
                100.0 * self.reader_busy
            ),
            Limit::Reader => writeln!(
                f,
                "  limit: the reader; the workers waited for it {:.0} % of their time. Larger row groups or a faster disk would help",
                100.0 * self.workers_waited_for_input
            ),
            Limit::Consumer => writeln!(
                f,
                "  limit: whoever takes the batches; the workers waited for a free slot {:.0} % of their time",
                100.0 * self.workers_waited_for_room
            ),
        }
    }
}
