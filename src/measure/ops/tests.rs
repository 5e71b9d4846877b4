//! Every operation of small networks is timed, on every kind of tensor, and the parts make the whole.

use super::*;
use crate::learn::backend::CpuAd;
use crate::learn::expander::ExpanderOptions;
use crate::learn::resnet::{ResNetOptions, Stem};

const SIDE: usize = 32;
const BATCH: usize = 4;

fn network(stem: Stem) -> (ResNetOptions, ExpanderOptions) {
    let encoder = ResNetOptions {
        depth: 10,
        width: 0.0625,
        stem,
        ..Default::default()
    };
    let expander = ExpanderOptions {
        dims: vec![24, 16],
        ..Default::default()
    };
    (encoder, expander)
}

/// The whole step of such a network, as if it took a second.
fn step(encoder: &ResNetOptions, expander: u64) -> StepSpeed {
    StepSpeed {
        device: "test".to_owned(),
        precision: Precision::F32,
        batch_size: BATCH as u32,
        steps: 1,
        wall_s_per_step: 1.0,
        cpu_s_per_step: Some(2.0),
        images_per_s: 4.0,
        flops_per_step: 12.0 * BATCH as f64 * (encoder.cost(SIDE).multiply_adds + expander) as f64,
        matmul_flops_per_s: 1e10,
        matmul_flops_per_cpu_s: Some(5e9),
        share_of_matmul_peak: 0.1,
    }
}

fn measured(stem: Stem, precision: Precision, micro_batch: Option<usize>) -> OpsSpeed {
    let (encoder, expander) = network(stem);
    let parameters = expander.parameters(encoder.representation_dim());
    let work = Work {
        layers: encoder.layers(SIDE),
        expander: expander.dims.clone(),
        expander_parameters: parameters,
        loss: LossOptions::default(),
        optimizer: OptimizerOptions::default(),
        normalize: Normalize {
            mean: [0.5; 3],
            std: [0.25; 3],
        },
        precision,
        batch_size: BATCH,
        micro_batch,
    };
    let device = Default::default();
    let model = VicReg::<CpuAd>::new(&encoder, &expander, 1, &device);
    let time = Duration::from_micros(200);
    ops(&model, &work, step(&encoder, parameters), &device, time)
}

#[test]
fn the_rows_and_the_rest_are_the_whole_step() {
    let speed = measured(Stem::Imagenet, Precision::F32, None);
    for op in &speed.ops {
        assert!(op.wall_ms.is_finite() && op.wall_ms > 0.0, "{op}");
        assert!(op.cpu_ms.is_none_or(|cpu| cpu.is_finite() && cpu >= 0.0), "{op}");
        let by_cpu = op.share_of_matmul_peak_by_cpu;
        assert!(by_cpu.is_none_or(|share| share > 0.0 && op.flops.is_some()), "{op}");
        let ms = op.wall_ms * f64::from(op.calls_per_step);
        assert!((op.per_step.wall_ms_per_step - ms).abs() < 1e-9, "{op}");
    }
    let sum = speed.ops.iter().map(|op| op.per_step.share_of_step).sum::<f64>();
    assert!((speed.sum.share_of_step - sum).abs() < 1e-9);
    assert!((sum + speed.rest.share_of_step - 1.0).abs() < 1e-9);
    let kinds = speed.kinds();
    assert_eq!(kinds.len(), 13, "{kinds:?}");
    let of_kinds: f64 = kinds.iter().map(|(_, part)| part.wall_ms_per_step).sum();
    assert!((of_kinds - speed.sum.wall_ms_per_step).abs() < 1e-9);
    if cfg!(target_os = "linux") {
        let cpu = |part: &Part| part.cpu_ms_per_step.unwrap();
        assert!((cpu(&speed.sum) + cpu(&speed.rest) - 2000.0).abs() < 1e-6);
    }

    // All products of the step but the images' gradient.
    let flops: f64 = speed
        .ops
        .iter()
        .map(|op| f64::from(op.calls_per_step) * op.flops.unwrap_or(0.0))
        .sum();
    let stem = network(Stem::Imagenet).0.layers(SIDE)[0].multiply_adds();
    let expected = speed.step.flops_per_step - 4.0 * BATCH as f64 * stem as f64;
    assert!((flops / expected - 1.0).abs() < 1e-12, "{flops} for {expected}");

    let text = speed.to_string();
    let table = text.lines().skip_while(|line| !line.contains("shape"));
    let widths: Vec<usize> = table.map(|line| line.chars().count()).collect();
    assert!(widths.len() == 1 + speed.ops.len() + 1 + 13 + 3, "{text}");
    assert!(
        widths.iter().all(|&width| width == widths[0]),
        "columns are aligned:\n{text}"
    );
}

/// Every kind of tensor that a recipe can ask for goes through every operation.
#[test]
fn precision_and_micro_batches_are_those_of_the_recipe() {
    for (stem, precision, micro) in [
        (Stem::Cifar, Precision::F32, Some(2)),
        (Stem::Imagenet, Precision::Bf16, None),
    ] {
        let speed = measured(stem, precision, micro);
        let calls = |name: &str| {
            let first = speed.ops.iter().find(|op| op.op == name);
            first.unwrap_or_else(|| panic!("no {name}")).calls_per_step
        };
        let (parts, forwards) = if micro.is_some() { (2, 2) } else { (1, 1) };
        assert_eq!(calls("images"), 2 * parts * forwards);
        assert_eq!(calls("conv forward"), 2 * parts * forwards);
        assert_eq!(calls("conv weight grad"), 2 * parts);
        assert_eq!((calls("conv input grad"), calls("loss")), (0, 1));
    }
}

/// What is timed is what the network computes: here the last stage's maps, laid out by the operations that make them.
#[test]
fn tensors_have_the_shapes_of_the_network() {
    use burn::tensor::TensorMetadata as _;
    let (encoder, _) = network(Stem::Imagenet);
    let layers = encoder.layers(SIDE);
    let maps = Maps::<CpuAd> {
        layers: &layers,
        rows: 3,
        dtype: DType::F32,
        normalize: Normalize {
            mean: [0.5; 3],
            std: [0.25; 3],
        },
        device: Default::default(),
    };
    for layer in &layers {
        let (inner, outer) = (layer.side, layer.output_side());
        let read = [3, inner, inner, layer.inputs];
        let made = [3, outer, outer, layer.outputs];
        assert_eq!(maps.input(layer).shape().as_slice(), read, "{layer:?}");
        assert_eq!(maps.convolved(layer).shape().as_slice(), made, "{layer:?}");
        assert_eq!(maps.output_gradient(layer).shape().as_slice(), made, "{layer:?}");
        assert_eq!(
            maps.gradients(layer.outputs, outer)().shape().as_slice(),
            made,
            "{layer:?}"
        );
        assert_eq!(maps.input_gradients(layer)().shape().as_slice(), read, "{layer:?}");
        if layer.opens_block {
            assert_eq!(maps.shortcut_gradients(layer)().shape().as_slice(), read, "{layer:?}");
        }
    }
}
