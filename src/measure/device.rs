//! Does a device compute what the CPU does, and how fast do bytes reach it?
//!
//! In: a device, and one batch of a feed whose slots lie in the device's own memory. Out: a table of [`Finding`]s. The CPU backend
//! is held to PyTorch by the tests; here a device is held to the CPU, on a small network and generated images.

mod operations;

use crate::feed::Batch;
use crate::learn::backend::CpuAd;
use crate::learn::expander::ExpanderOptions;
use crate::learn::input::{Normalize, Uploaded};
use crate::learn::model::VicReg;
use crate::learn::ops::TrainAd;
use crate::learn::optim::{Optimizer, OptimizerKind, OptimizerOptions};
use crate::learn::options::Precision;
use crate::learn::resnet::{ResNetOptions, Stem};
use crate::learn::schedule::{Schedule, ScheduleOptions};
use crate::learn::trainer::{Method, Trainer};
use crate::learn::vicreg::LossOptions;
use burn::tensor::TensorData;
use bytes::Bytes;
use serde::Serialize;
use std::fmt;
use std::time::{Duration, Instant};

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// What was found, for a reader.
    pub found: String,
    /// What it should be; empty for what is only reported.
    pub wanted: String,
    /// Whether it is.
    pub passed: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.wanted.is_empty(), self.passed) {
            (true, _) => "-",
            (false, true) => "ok",
            (false, false) => "FAILED",
        };
        write!(f, "{:<24} {:<44} {:<30} {verdict}", self.check, self.found, self.wanted)
    }
}

const SIDE: usize = 32;
const BATCH: usize = 32;
const BY: Normalize = Normalize {
    mean: [0.485, 0.456, 0.406],
    std: [0.229, 0.224, 0.225],
};

/// Runs all checks, each told to `report` as it ends: a first run compiles for minutes. `batch` is uploaded over and over for
/// its bandwidth.
pub fn check<B: TrainAd>(device: &B::Device, batch: Batch, report: &mut dyn FnMut(&Finding)) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |finding: Finding| {
        report(&finding);
        findings.push(finding);
    };
    add(uploads::<B>(device));
    add(operations::operations::<B>(device));
    add(trajectory::<B>(device, "10 steps, AdamW", OptimizerKind::Adamw, 1e-3));
    add(trajectory::<B>(device, "10 steps, LARS", OptimizerKind::Lars, 0.3));
    add(peak_rate::<B>(device, Precision::F32));
    // The CPU reads a slot where it lies: there is no way to measure.
    if B::RUN_AHEAD > 0 {
        bandwidth::<B>(device, batch).into_iter().for_each(&mut add);
    }
    if B::supports_dtype(device, Precision::Bf16.dtype()) {
        add(drift::<B>(device));
        add(peak_rate::<B>(device, Precision::Bf16));
    } else {
        add(Finding {
            check: "bf16",
            found: "the device has no bf16".to_owned(),
            wanted: String::new(),
            passed: true,
        });
    }
    findings
}

/// Two views of generated images that have something in common.
fn images(seed: u32) -> Bytes {
    let view = BATCH * SIDE * SIDE * 3;
    let hash = |i: u32| i.wrapping_mul(0x9E37_79B9) ^ (i.wrapping_mul(0x85EB_CA6B) >> 13);
    let byte = |i: usize| {
        let i = i as u32 + seed.wrapping_mul(0x0001_0001);
        // Flat patches of 8 x 8 pixels by 64 levels, so that there is something to see.
        (hash(i / 24) >> 26 << 2) as u8
    };
    let noise = |i: usize| (hash(i as u32 ^ 0xA5A5_0000) >> 28) as u8;
    (0..view)
        .map(byte)
        .chain((0..view).map(|i| byte(i).saturating_add(noise(i))))
        .collect::<Vec<u8>>()
        .into()
}

fn uploads<B: TrainAd>(device: &B::Device) -> Finding {
    let wrong = (0..6)
        .filter(|&seed| {
            let on = Uploaded::<B>::new(images(seed), 2, SIDE, device);
            let cpu = Uploaded::<CpuAd>::new(images(seed), 2, SIDE, &Default::default());
            let differs = |view: usize| {
                let (a, b): (TensorData, TensorData) = (on.view(view, BY).into_data(), cpu.view(view, BY).into_data());
                let both = a.iter::<f32>().zip(b.iter::<f32>());
                // A device may divide by a reciprocal: two units in the last place.
                both.into_iter().any(|(a, b)| (a - b).abs() > 1e-6)
            };
            differs(0) || differs(1)
        })
        .count();
    Finding {
        check: "uploads, normalised",
        found: format!("{wrong} of 6 differ from the CPU's"),
        wanted: "0 (1e-6)".to_owned(),
        passed: wrong == 0,
    }
}

/// A small trainer: a residual network of three stages and an expander, by either optimiser.
fn trainer<B: TrainAd>(kind: OptimizerKind, rate: f64, precision: Precision, device: &B::Device) -> Trainer<B> {
    let encoder = ResNetOptions {
        depth: 8,
        width: 0.25,
        stem: Stem::Cifar,
        ..Default::default()
    };
    let expander = ExpanderOptions {
        dims: vec![128; 3],
        ..Default::default()
    };
    let schedule = ScheduleOptions {
        base_lr: rate,
        scale_by_batch: false,
        warmup_epochs: 0.0,
        ..Default::default()
    };
    let (schedule, _) = Schedule::new(&schedule, BATCH as u64, 1000, 1000).expect("a schedule of constants");
    let optimizer = OptimizerOptions {
        kind,
        ..Default::default()
    };
    Trainer::new(
        VicReg::new(&encoder, &expander, 1, device),
        Optimizer::new(optimizer),
        schedule,
        Method {
            loss: LossOptions::default(),
            input: BY,
            precision,
            micro_batch: None,
        },
        device.clone(),
    )
}

/// The losses of so many steps.
fn losses<B: TrainAd>(mut trainer: Trainer<B>, steps: u32, device: &B::Device) -> Vec<f64> {
    let step = |step| {
        let batch = Uploaded::new(images(step % 8), 2, SIDE, device);
        trainer.train_step(batch, false).wait().loss
    };
    (0..steps).map(step).collect()
}

fn trajectory<B: TrainAd>(device: &B::Device, check: &'static str, kind: OptimizerKind, rate: f64) -> Finding {
    let on = losses::<B>(trainer(kind, rate, Precision::F32, device), 10, device);
    let cpu = Default::default();
    let cpu = losses::<CpuAd>(trainer(kind, rate, Precision::F32, &cpu), 10, &cpu);
    let off = on.iter().zip(&cpu).map(|(on, cpu)| (on / cpu - 1.0).abs());
    let (first, worst) = off.fold((None, 0.0), |(first, worst): (Option<f64>, f64), off| {
        (first.or(Some(off)), worst.max(off))
    });
    let first = first.unwrap_or(f64::NAN);
    Finding {
        check,
        found: format!("off the CPU's loss by {first:.1e}, then {worst:.1e}"),
        // A GPU's matrix units take f32 as tf32, of 11 bits.
        wanted: "1e-3 at first, then 1e-2".to_owned(),
        passed: first < 1e-3 && worst < 1e-2,
    }
}

fn drift<B: TrainAd>(device: &B::Device) -> Finding {
    let run = |precision| {
        let losses = losses::<B>(trainer(OptimizerKind::Adamw, 1e-3, precision, device), 200, device);
        losses[150..].iter().sum::<f64>() / 50.0
    };
    let (f32, bf16) = (run(Precision::F32), run(Precision::Bf16));
    Finding {
        check: "bf16, 200 steps",
        found: format!("loss {bf16:.4}, f32 {f32:.4} (mean of the last 50)"),
        wanted: "within 2 %".to_owned(),
        passed: (bf16 / f32 - 1.0).abs() < 0.02,
    }
}

/// The official recipe's highest rate, 0.2 x 2048 / 256, from the first step on.
fn peak_rate<B: TrainAd>(device: &B::Device, precision: Precision) -> Finding {
    let losses = losses::<B>(trainer(OptimizerKind::Lars, 1.6, precision, device), 60, device);
    let broken = losses.iter().filter(|loss| !loss.is_finite()).count();
    Finding {
        check: match precision {
            Precision::F32 => "peak rate, f32",
            Precision::Bf16 => "peak rate, bf16",
        },
        found: format!("{broken} of 60 losses are not finite"),
        wanted: "0".to_owned(),
        passed: broken == 0,
    }
}

/// Bytes a second from the slots' memory, and from ordinary memory.
fn bandwidth<B: TrainAd>(device: &B::Device, batch: Batch) -> [Finding; 2] {
    let (views, side) = (batch.views(), batch.side());
    let slot = batch.into_bytes();
    let heap = Bytes::copy_from_slice(&slot);
    let rate = |bytes: &Bytes| {
        let wait = || B::sync(device).unwrap_or_else(|error| panic!("the device failed: {error}"));
        drop(Uploaded::<B>::new(bytes.clone(), views, side, device));
        wait();
        let (start, mut sent) = (Instant::now(), 0);
        while sent < 4 || start.elapsed() < Duration::from_millis(500) {
            drop(Uploaded::<B>::new(bytes.clone(), views, side, device));
            sent += 1;
        }
        wait();
        let seconds = start.elapsed().as_secs_f64() / f64::from(sent);
        (bytes.len() as f64 / seconds / 1e9, 1e3 * seconds)
    };
    [("upload, a slot", &slot), ("upload, ordinary memory", &heap)].map(|(check, bytes)| {
        let (rate, ms) = rate(bytes);
        Finding {
            check,
            found: format!("{rate:.2} GB/s, {ms:.3} ms for {:.1} MB", bytes.len() as f64 / 1e6),
            wanted: String::new(),
            passed: true,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself_and_a_wrong_device_would_not() {
        let device = Default::default();
        assert!(uploads::<CpuAd>(&device).passed);
        for (kind, rate) in [(OptimizerKind::Adamw, 1e-3), (OptimizerKind::Lars, 0.3)] {
            let found = trajectory::<CpuAd>(&device, "", kind, rate);
            assert!(found.passed, "{found}");
        }
        // Another rate, as a wrong kernel might make it, is seen.
        let run = |rate| {
            losses::<CpuAd>(
                trainer(OptimizerKind::Adamw, rate, Precision::F32, &device),
                10,
                &device,
            )
        };
        let (right, wrong) = (run(1e-3), run(2e-3));
        assert!(
            right.iter().zip(&wrong).any(|(a, b)| (a / b - 1.0).abs() > 1e-2),
            "{right:?} {wrong:?}"
        );
    }

    #[test]
    fn the_generated_views_have_something_in_common_and_something_apart() {
        let bytes = images(3);
        let (one, two) = bytes.split_at(bytes.len() / 2);
        assert!(one != two && images(4) != bytes);
        let far = one.iter().zip(two).filter(|(a, b)| a.abs_diff(**b) > 15).count();
        assert_eq!(far, 0);
    }
}
