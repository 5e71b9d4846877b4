//! How much memory a run will need, before it starts, and how much there is.
//!
//! The count follows `Trainer::gradients` and the optimiser, tensor by tensor, for f32 on the CPU backend; the largest of a step's
//! moments is the peak: the backward passes, the update, the checkpoint. Constants that no count gives
//! (buffers of kernels, what the allocator keeps) are set by measurement: `tools/check_memory` holds estimates against peaks.

use std::fmt;
use std::fs;

use serde::Serialize;

use super::expander::ExpanderOptions;
use super::optim::{OptimizerKind, OptimizerOptions};
use super::options::TrainOptions;
use super::resnet::ResNetOptions;

/// The program itself, its threads and their buffers.
const PROGRAM: u64 = 64 << 20;
/// What the allocator and the kernels' buffers add to what is counted: measured 2 to 15 %.
const SLACK: f64 = 1.15;

/// A moment of a step that may be the peak, in bytes. The encoder's maps are there at each: the operations keep their buffers.
#[derive(Clone, Copy, Debug)]
struct Moment {
    name: &'static str,
    expander: u64,
    parameters: u64,
}

impl Moment {
    /// A moment without an expander's graph.
    fn quiet(name: &'static str, parameters: u64) -> Self {
        Self {
            name,
            expander: 0,
            parameters,
        }
    }

    fn sum(&self) -> u64 {
        self.expander + self.parameters
    }
}

/// What training is estimated to need at its peak, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// When the peak is.
    pub moment: &'static str,
    /// What the encoder's graph keeps, and its largest gradients in flight; the operations' own buffers.
    pub activations: u64,
    /// What the expander's graph and the loss keep.
    pub expander: u64,
    /// Weights, optimiser state, gradients, and an update's or a checkpoint's temporaries.
    pub parameters: u64,
    /// Slots and windows of encoded images.
    pub feed: u64,
    /// What judging the encoder during the run takes.
    pub evaluation: u64,
    /// The program itself.
    pub program: u64,
}

impl MemoryEstimate {
    /// For batches as `train` says, of images of `size` x `size` pixels; `feed`: bytes that the feed holds;
    /// `evaluation`: those of an evaluation during the run, 0 where there is none.
    pub fn new(
        encoder: &ResNetOptions,
        expander: &ExpanderOptions,
        optimizer: &OptimizerOptions,
        train: &TrainOptions,
        size: usize,
        feed: u64,
        evaluation: u64,
    ) -> Self {
        let batch = u64::from(train.batch_size);
        let cost = encoder.cost(size);
        let features = encoder.representation_dim() as u64;
        let heads = expander.parameters(features as usize);

        // Both views' graphs of the batch, or one view's of a micro-batch; and maps of the largest layer on their way back.
        let (rows, views, in_flight) = match train.micro_batch() {
            Some(rows) => (rows as u64, 1, 6),
            None => (batch, 2, 4),
        };
        let value = u64::from(train.precision.dtype().size() as u32);
        let maps = rows * (views * cost.activation_bytes + in_flight * cost.largest_map_bytes) * value / 4;
        let activations = maps + encoder.workspace(size, rows as usize);

        let layers = expander_layers(expander, features, batch);

        let weights = 4 * (cost.parameters + heads);
        let remembered = if optimizer.kind == OptimizerKind::Adamw { 2 } else { 1 };
        let state = (1 + remembered) * weights;
        let largest = 4 * largest_weight(expander, features);
        let head_gradients = 4 * heads + 2 * largest;
        // The expander's gradients come as its activations go: a quarter of the smaller stands beside the larger.
        let pass = layers.max(head_gradients) + layers.min(head_gradients) / 4;

        let mut moments = match train.micro_batch() {
            // The encoder's gradients come while the second view's graph still is.
            None => vec![Moment {
                name: "in the backward pass",
                expander: layers,
                parameters: state + pass - layers + 4 * cost.parameters,
            }],
            // One after the other; a micro-batch's gradients are added to those before.
            Some(_) => vec![
                Moment {
                    name: "in the loss's backward pass",
                    expander: layers,
                    parameters: state + pass - layers,
                },
                Moment {
                    name: "in the encoder's backward pass",
                    expander: 0,
                    parameters: state + head_gradients + 2 * 4 * cost.parameters,
                },
            ],
        };
        // Each gradient goes as its new weight comes.
        moments.push(Moment::quiet("in the update", state + weights + 3 * largest));
        moments.push(Moment::quiet("at a checkpoint", 2 * state + largest));
        let peak = moments.into_iter().max_by_key(Moment::sum);
        let peak = peak.expect("two were just added");

        let slack = |bytes: u64| (bytes as f64 * SLACK) as u64;
        Self {
            moment: peak.name,
            activations: slack(activations),
            expander: slack(peak.expander),
            parameters: slack(peak.parameters),
            feed,
            evaluation,
            program: PROGRAM,
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.activations + self.expander + self.parameters + self.feed + self.evaluation + self.program
    }
}

/// Bytes of both views' linear outputs and what batch norm makes of them; embeddings, centred, and their gradients; the matrix.
fn expander_layers(expander: &ExpanderOptions, features: u64, batch: u64) -> u64 {
    let mut widths = expander.dims.iter().map(|&width| width as u64);
    let embedding = widths.next_back().unwrap_or(0);
    let hidden: u64 = widths.clone().sum();
    let widest = widths.max().unwrap_or(0).max(embedding);
    let matrix = embedding.min(batch).pow(2);
    4 * (batch * (2 * 2 * hidden + 8 * embedding + 3 * widest + 4 * features) + 3 * matrix)
}

/// Values of the expander's largest matrix.
fn largest_weight(expander: &ExpanderOptions, features: u64) -> u64 {
    let outputs = expander.dims.iter().map(|&width| width as u64);
    let inputs = std::iter::once(features).chain(outputs.clone());
    inputs
        .zip(outputs)
        .map(|(input, output)| input * output)
        .max()
        .unwrap_or(0)
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "needs {} {}: activations {}, expander and loss {}, parameters and optimiser {}, feed {}, evaluation {}, program {}",
            Bytes(self.total()),
            self.moment,
            Bytes(self.activations),
            Bytes(self.expander),
            Bytes(self.parameters),
            Bytes(self.feed),
            Bytes(self.evaluation),
            Bytes(self.program)
        )
    }
}

/// A number of bytes for a reader.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.0 as f64 / f64::from(1 << 20);
        if mib < 1000.0 {
            write!(f, "{mib:.0} MiB")
        } else {
            write!(f, "{:.2} GiB", mib / 1024.0)
        }
    }
}

/// Bytes that a process can still have: what the system calls available, and what its control group leaves. Linux tells.
pub fn available() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let system = field(&info, "MemAvailable:")? << 10;
    Some(control_group().map_or(system, |left| left.min(system)))
}

/// What control group v2 leaves: its limit less what is used and cannot be dropped.
fn control_group() -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        let text = fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?;
        text.trim().parse().ok() // "max" is no limit.
    };
    let stat = fs::read_to_string("/sys/fs/cgroup/memory.stat").ok()?;
    let droppable = field(&stat, "inactive_file ").unwrap_or(0);
    Some(number("memory.max")?.saturating_sub(number("memory.current")?.saturating_sub(droppable)))
}

/// The first number of the line that begins with `name`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(batch: u32, micro: Option<u32>, dims: Vec<usize>) -> MemoryEstimate {
        let train = TrainOptions {
            batch_size: batch,
            micro_batch: micro,
            ..Default::default()
        };
        let expander = ExpanderOptions {
            dims,
            ..Default::default()
        };
        MemoryEstimate::new(
            &ResNetOptions::default(),
            &expander,
            &Default::default(),
            &train,
            224,
            1 << 20,
            0,
        )
    }

    #[test]
    fn activations_grow_with_the_micro_batch_and_not_with_the_batch() {
        let small = vec![512; 3];
        let whole = estimate(256, None, small.clone());
        let micro = estimate(256, Some(16), small.clone());
        let maps = |estimate: &MemoryEstimate, rows| {
            estimate.activations - (ResNetOptions::default().workspace(224, rows) as f64 * SLACK) as u64
        };
        assert!(maps(&whole, 256) > 20 * maps(&micro, 16));
        assert_eq!(micro.moment, "at a checkpoint");
        assert_eq!(estimate(2048, Some(16), small).total(), micro.total());
        // A wide expander sees the whole batch.
        assert_eq!(
            estimate(2048, Some(2), vec![8192; 3]).moment,
            "in the loss's backward pass"
        );
    }

    #[test]
    fn a_large_expander_is_bound_by_its_update() {
        let large = estimate(2, None, vec![8192; 3]);
        let weights = 4 * (23_508_032 + (2048 * 8192 + 2 * 8192 * 8192 + 6 * 8192));
        // Weights, momentum, gradients and the next weights.
        assert!(large.total() > 4 * weights && large.total() < 7 * weights, "{large}");
        assert!(
            large.to_string().starts_with("needs 3.") && large.moment == "at a checkpoint",
            "{large}"
        );
    }

    #[test]
    fn numbers_are_found_by_name() {
        assert_eq!(field("a 1\nMemAvailable:  123 kB\n", "MemAvailable:"), Some(123));
        assert_eq!(field("a 1", "b "), None);
        #[cfg(target_os = "linux")]
        assert!(available().unwrap() > 1 << 20);
    }
}
