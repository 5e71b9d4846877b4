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
    /// Where it goes.
    pub stages: StageCosts,
    /// The stage that limits.
    pub limit: Limit,
    /// Share of their working time in which the workers had a core; below 1 the machine is shared, and images a second say
    /// less than CPU time. `None` where the system does not tell.
    pub core_share: Option<f64>,
    /// Share of their time in which the workers waited for data.
    pub workers_waited_for_input: f64,
    /// Share of their time in which the workers waited for a free slot.
    pub workers_waited_for_room: f64,
    /// Share of its time in which the reader worked.
    pub reader_busy: f64,
    /// Windows begun in the time measured.
    pub windows_read: u64,
    /// Image bytes read for them, MiB: 0 if the data fit the shuffle budget and are held since the warm-up.
    pub read_mb: f64,
    /// From the start to the first batch, s.
    pub time_to_first_batch_s: Option<f64>,
    /// Largest resident set of the process so far, MiB.
    pub peak_rss_mb: Option<f64>,
}

/// Cost of the stages, ms an image. Of the workers: wall time by part, scaled so that the parts make up their CPU time; where
/// the system does not tell CPU time, wall time throughout.
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
    /// What is left of the workers: claim, slot, records, draws, the stopwatch, waking up. A small difference of large numbers.
    pub ring: f64,
    /// The reader.
    pub reader: f64,
    /// All other threads: whoever takes the batches.
    pub consumer: Option<f64>,
}

/// Who holds up everyone else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Decoding and augmenting: more cores, smaller images.
    Workers,
    /// Reading: faster disks, larger row groups.
    Reader,
    /// The order of the batches: workers wait for a slot while a slow sample is finished in the oldest one.
    Ring,
}

/// A share of waiting below this is the unevenness of any pipeline.
const NOTICEABLE: f64 = 0.05;

/// Runs the feed for `time` after a warm-up and says what it costs. The pass must not end in that time.
pub fn feed(
    dataset: &Arc<Dataset>,
    plan: &FeedPlan,
    options: &FeedOptions,
    time: Duration,
) -> Result<FeedSpeed, MeasureError> {
    let mut feed = Feed::start(dataset.clone(), plan.clone(), options, 0)?;
    feed.profile(true);
    // Until buffers have their size and every slot has gone round.
    let warm_up = (time / 8).min(Duration::from_secs(1));
    take(&mut feed, warm_up, 2 * u64::from(options.ring))?;
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
        drop(feed.next()?.ok_or(MeasureError::PassEnded)?);
        taken += 1;
    }
    Ok(())
}

impl FeedSpeed {
    fn new(before: &GaugesSnapshot, after: &GaugesSnapshot, cpu: Option<CpuTimes>) -> Self {
        let seconds = after.seconds - before.seconds;
        let images = after.images - before.images;
        let workers = stretch(&before.workers, &after.workers);
        let reader = stretch(&before.reader, &after.reader);
        let parts = parts(&before.parts, &after.parts);
        let share = |part: f64, whole: &StageTime| part / total(whole).max(1e-9);
        let for_input = share(workers.waiting_for_input_s, &workers);
        let for_room = share(workers.waiting_for_room_s, &workers);
        Self {
            workers: workers.threads,
            images,
            seconds,
            images_per_s: images as f64 / seconds,
            cpu_ms_per_image: cpu.map(|cpu| 1e3 * cpu.sum() / images.max(1) as f64),
            stages: StageCosts::new(&parts, &workers, &reader, cpu, images),
            limit: match for_input.max(for_room) {
                most if most < NOTICEABLE => Limit::Workers,
                most if most == for_input => Limit::Reader,
                _ => Limit::Ring,
            },
            core_share: cpu.map(|cpu| cpu.workers / workers.busy_s.max(1e-9)),
            workers_waited_for_input: for_input,
            workers_waited_for_room: for_room,
            reader_busy: share(reader.busy_s, &reader),
            windows_read: after.windows - before.windows,
            read_mb: (after.bytes_read - before.bytes_read) as f64 / f64::from(1 << 20),
            time_to_first_batch_s: after.time_to_first_batch_s,
            peak_rss_mb: cpu::peak_rss_mb(),
        }
    }
}

impl StageCosts {
    fn new(parts: &PartTimes, workers: &StageTime, reader: &StageTime, cpu: Option<CpuTimes>, images: u64) -> Self {
        let worker_time = cpu.map_or(workers.busy_s, |cpu| cpu.workers);
        let ms = |seconds: f64| 1e3 * seconds / images.max(1) as f64;
        let scaled = |wall: f64| ms(wall * worker_time / workers.busy_s.max(1e-9));
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
            consumer: cpu.map(|cpu| ms(cpu.others)),
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
            ("consumer", self.consumer.unwrap_or_default()),
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
        let unit = if self.cpu_ms_per_image.is_some() {
            "CPU-ms"
        } else {
            "wall-ms"
        };
        writeln!(
            f,
            "{} workers: {:.0} images/s, {all:.3} {unit} an image ({} images in {:.1} s)",
            self.workers, self.images_per_s, self.images, self.seconds
        )?;
        for (name, ms) in self.stages.named() {
            writeln!(f, "  {name:<9}{ms:9.4} ms {:5.1} %", 100.0 * ms / all.max(1e-9))?;
        }
        match self.limit {
            Limit::Workers => writeln!(f, "  limit: the workers, who hardly wait")?,
            Limit::Reader => writeln!(
                f,
                "  limit: the reader; the workers waited for it {:.0} % of their time. Larger row groups or a faster disk would help",
                100.0 * self.workers_waited_for_input
            )?,
            Limit::Ring => writeln!(
                f,
                "  limit: the ring; the workers waited for a free slot {:.0} % of their time. A larger `feed.ring` would help",
                100.0 * self.workers_waited_for_room
            )?,
        }
        if self.read_mb > 0.0 {
            writeln!(
                f,
                "  {:.0} MiB read for {} windows: the reader worked {:.1} % of the time",
                self.read_mb,
                self.windows_read,
                100.0 * self.reader_busy
            )?;
        } else {
            writeln!(
                f,
                "  nothing was read: the images are held since the warm-up; a lower `order.window_mb` would measure reading"
            )?;
        }
        match self.core_share {
            Some(share) if share < 1.0 - NOTICEABLE => writeln!(
                f,
                "  note: the workers had a core {:.0} % of their working time only; a quiet machine would give more images/s",
                100.0 * share
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A snapshot after `seconds` with so many images, and the workers' and the reader's times.
    fn snapshot(seconds: f64, images: u64, workers: [f64; 3], reader: [f64; 3]) -> GaugesSnapshot {
        let stage = |threads, [busy_s, waiting_for_input_s, waiting_for_room_s]: [f64; 3]| StageTime {
            threads,
            busy_s,
            waiting_for_input_s,
            waiting_for_room_s,
        };
        GaugesSnapshot {
            seconds,
            time_to_first_batch_s: None,
            images,
            rejects: 0,
            batches: images / 10,
            windows: images / 50,
            bytes_read: images << 20,
            reader: stage(1, reader),
            workers: stage(2, workers),
            consumer: stage(1, [0.0; 3]),
            parts: PartTimes {
                decode_s: workers[0] * 0.5,
                crop_s: workers[0] * 0.25,
                ..PartTimes::default()
            },
            stalled: None,
        }
    }

    fn speed(workers: [f64; 3], reader: [f64; 3], cpu: Option<CpuTimes>) -> FeedSpeed {
        let before = snapshot(1.0, 100, [1.0; 3], [1.0; 3]);
        let plus = |times: [f64; 3]| times.map(|time| 1.0 + time);
        let mut after = snapshot(5.0, 1100, plus(workers), plus(reader));
        after.parts.decode_s = before.parts.decode_s + workers[0] * 0.5;
        after.parts.crop_s = before.parts.crop_s + workers[0] * 0.25;
        FeedSpeed::new(&before, &after, cpu)
    }

    #[test]
    fn the_limit_is_whoever_is_waited_for() {
        let of = |workers| speed(workers, [0.4, 3.6, 0.0], None);
        assert_eq!(of([7.8, 0.1, 0.1]).limit, Limit::Workers);
        assert_eq!(of([6.0, 1.5, 0.5]).limit, Limit::Reader);
        assert_eq!(of([6.0, 0.5, 1.5]).limit, Limit::Ring);
        assert!(of([6.0, 1.5, 0.5]).to_string().contains("waited for it 19 %"));
        assert!((of([7.8, 0.1, 0.1]).reader_busy - 0.1).abs() < 1e-9);
    }

    #[test]
    fn stages_make_up_the_cpu_time() {
        let cpu = CpuTimes {
            workers: 4.0,
            reader: 0.1,
            others: 0.2,
        };
        let speed = speed([8.0, 0.0, 0.0], [0.4, 3.6, 0.0], Some(cpu));
        assert_eq!(
            (speed.images, speed.images_per_s, speed.windows_read),
            (1000, 250.0, 20)
        );
        let close = |value: f64, expected: f64| assert!((value - expected).abs() < 1e-9, "{value} {expected}");
        close(speed.cpu_ms_per_image.unwrap(), 4.3);
        close(speed.stages.decode, 2.0);
        close(speed.stages.crop, 1.0);
        close(speed.stages.ring, 1.0);
        close(speed.stages.reader, 0.1);
        close(speed.stages.consumer.unwrap(), 0.2);
        // Half of the time they had no core: the machine is shared, and the reader is told so.
        close(speed.core_share.unwrap(), 0.5);
        assert!(speed.to_string().contains("a core 50 %"), "{speed}");
    }

    #[test]
    fn without_cpu_times_it_is_wall_time_and_says_so() {
        let speed = speed([8.0, 0.0, 0.0], [0.4, 3.6, 0.0], None);
        assert!(speed.cpu_ms_per_image.is_none() && speed.stages.consumer.is_none());
        assert!((speed.stages.decode - 4.0).abs() < 1e-9);
        assert!(speed.to_string().contains("wall-ms"), "{speed}");
    }
}
