//! The table of a step's operations: what each costs, and its share of the whole. Out: text for a reader, JSON for a program.
//!
//! Invariant: the operations and the rest are the whole step.

use super::clock::Spent;
use super::rows::Row;
use crate::measure::step::StepSpeed;
use serde::Serialize;
use std::fmt;

/// One distinct operation of a step.
#[derive(Clone, Debug, Serialize)]
pub struct OpSpeed {
    /// Its name.
    pub op: &'static str,
    /// The maps it works on; a convolution's inputs, outputs, kernel / stride, and the side of what it reads.
    pub shape: String,
    /// Calls a step.
    pub calls_per_step: u32,
    /// Milliseconds a call.
    pub wall_ms: f64,
    /// Milliseconds of CPU time a call, all threads. `None` where the system does not tell.
    pub cpu_ms: Option<f64>,
    /// Floating-point operations of a call, 2 a multiply-add. `None` where it is no product.
    pub flops: Option<f64>,
    /// Thousand millions of them a second.
    pub gflops_per_s: Option<f64>,
    /// How much of the device's matrix product that is.
    pub share_of_matmul_peak: Option<f64>,
    /// The same by CPU time: operations a CPU second, against those of a matrix product.
    pub share_of_matmul_peak_by_cpu: Option<f64>,
    /// All calls of a step, and their share of it.
    #[serde(flatten)]
    pub per_step: Part,
}

/// A part of a step.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Part {
    /// Milliseconds a step.
    pub wall_ms_per_step: f64,
    /// Milliseconds of CPU time a step.
    pub cpu_ms_per_step: Option<f64>,
    /// Share of the step's time.
    pub share_of_step: f64,
}

/// The whole step and its parts.
#[derive(Clone, Debug, Serialize)]
pub struct OpsSpeed {
    /// The whole step.
    #[serde(flatten)]
    pub step: StepSpeed,
    /// Threads of the CPU backend.
    pub threads: usize,
    /// Every distinct operation.
    pub ops: Vec<OpSpeed>,
    /// All of them.
    pub sum: Part,
    /// What the step takes besides.
    pub rest: Part,
}

impl OpSpeed {
    pub(super) fn new(row: &Row, spent: Spent, step: &StepSpeed) -> Self {
        let flops = (row.multiply_adds > 0).then_some(2.0 * row.multiply_adds as f64);
        let calls = f64::from(row.calls);
        let rate = flops.map(|flops| flops / spent.wall);
        let cpu = spent.cpu.filter(|&cpu| cpu > 0.0);
        let by_cpu = flops.zip(cpu).zip(step.matmul_flops_per_cpu_s);
        Self {
            op: row.op.name(),
            shape: row.shape.clone(),
            calls_per_step: row.calls,
            wall_ms: 1e3 * spent.wall,
            cpu_ms: spent.cpu.map(|cpu| 1e3 * cpu),
            flops,
            gflops_per_s: rate.map(|rate| rate / 1e9),
            share_of_matmul_peak: rate.map(|rate| rate / step.matmul_flops_per_s),
            share_of_matmul_peak_by_cpu: by_cpu.map(|((flops, cpu), peak)| flops / cpu / peak),
            per_step: Part::new(calls * spent.wall, spent.cpu.map(|cpu| calls * cpu), step),
        }
    }
}

impl Part {
    /// From seconds.
    fn new(wall: f64, cpu: Option<f64>, step: &StepSpeed) -> Self {
        Self {
            wall_ms_per_step: 1e3 * wall,
            cpu_ms_per_step: cpu.map(|cpu| 1e3 * cpu),
            share_of_step: wall / step.wall_s_per_step,
        }
    }

    /// All of these.
    fn sum<'a>(parts: impl Iterator<Item = &'a Self>) -> Self {
        let none = Self {
            cpu_ms_per_step: Some(0.0),
            ..Self::default()
        };
        parts.fold(none, |sum, part| sum.and(part, 1.0))
    }

    /// With `times` the other.
    fn and(self, other: &Self, times: f64) -> Self {
        let cpu = self.cpu_ms_per_step.zip(other.cpu_ms_per_step);
        Self {
            wall_ms_per_step: self.wall_ms_per_step + times * other.wall_ms_per_step,
            cpu_ms_per_step: cpu.map(|(one, other)| one + times * other),
            share_of_step: self.share_of_step + times * other.share_of_step,
        }
    }
}

impl OpsSpeed {
    pub(super) fn new(step: StepSpeed, ops: Vec<OpSpeed>) -> Self {
        let sum = Part::sum(ops.iter().map(|op| &op.per_step));
        let whole = Part::new(step.wall_s_per_step, step.cpu_s_per_step, &step);
        Self {
            rest: whole.and(&sum, -1.0),
            threads: rayon::current_num_threads(),
            step,
            ops,
            sum,
        }
    }

    /// Operations of one name together, in the order of the table.
    pub(super) fn kinds(&self) -> Vec<(&'static str, Part)> {
        let mut kinds: Vec<(&'static str, Part)> = Vec::new();
        for op in &self.ops {
            match kinds.iter_mut().find(|(name, _)| *name == op.op) {
                Some((_, sum)) => *sum = sum.and(&op.per_step, 1.0),
                None => kinds.push((op.op, op.per_step)),
            }
        }
        kinds
    }
}

/// A number, or a sign that there is none, in `width` columns.
fn column(value: Option<f64>, width: usize, digits: usize) -> String {
    value.map_or_else(|| format!("{:>width$}", "-"), |value| format!("{value:width$.digits$}"))
}

impl fmt::Display for OpSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: Option<f64>| column(share.map(|share| 100.0 * share), 6, 1);
        write!(
            f,
            "{:<17} {:<24} {:>5} {:10.3} {} {} {} {} {}",
            self.op,
            self.shape,
            self.calls_per_step,
            self.wall_ms,
            column(self.cpu_ms, 10, 3),
            column(self.gflops_per_s, 8, 1),
            percent(self.share_of_matmul_peak),
            percent(self.share_of_matmul_peak_by_cpu),
            self.per_step
        )
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:10.2} {} {:7.1}",
            self.wall_ms_per_step,
            column(self.cpu_ms_per_step, 10, 2),
            100.0 * self.share_of_step
        )
    }
}

impl fmt::Display for OpsSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.step)?;
        writeln!(f, "operation by operation, {} threads:", self.threads)?;
        writeln!(
            f,
            "  {:<17} {:<24} {:>5} {:>10} {:>10} {:>8} {:>6} {:>6} {:>10} {:>10} {:>7}",
            "", "shape", "calls", "ms a call", "CPU-ms", "GFLOP/s", "% peak", "by CPU", "ms a step", "CPU-ms", "% step"
        )?;
        for op in &self.ops {
            writeln!(f, "  {op}")?;
        }
        writeln!(f, "together:{:>97} {:>10} {:>7}", "ms a step", "CPU-ms", "% step")?;
        let whole = self.sum.and(&self.rest, 1.0);
        let lines = self.kinds().into_iter();
        for (name, part) in lines.chain([("sum", self.sum), ("rest", self.rest), ("whole step", whole)]) {
            writeln!(f, "  {name:<93} {part}")?;
        }
        Ok(())
    }
}
