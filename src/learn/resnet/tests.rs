//! Names, shapes, values and gradients against PyTorch (tools/fixtures/resnet.py), and what the options promise.

use super::*;
use crate::learn::{
    norm::{BatchStats, Mode},
    ops::tests::hash,
    weights::{NamedTensor, export, import},
};
use burn::{
    backend::{Autodiff, Flex},
    module::{Module, ModuleVisitor, Param},
    tensor::{Tensor, TensorData, backend::Backend},
};
use serde_json::Value;
use std::collections::BTreeMap;

type Ad = Autodiff<Flex>;

fn fixture(name: &str) -> Value {
    let path = format!("{}/tests/fixtures/resnet/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// FNV-1a of a name, as the fixtures' scripts salt a parameter's values.
pub(crate) fn salt(name: &str) -> u32 {
    name.bytes()
        .fold(0x811C_9DC5, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

/// The fixture script's weights.
fn fill(mut tensor: NamedTensor) -> NamedTensor {
    let (scale, offset) = if tensor.shape.len() == 4 {
        ((6.0 / tensor.shape[1..].iter().product::<usize>() as f32).sqrt(), 0.0)
    } else if tensor.name.ends_with("running_var") {
        (0.5, 1.0)
    } else if tensor.name.ends_with("weight") {
        (0.25, 1.0)
    } else {
        (0.25, 0.0)
    };
    let values = hash(tensor.values.len(), salt(&tensor.name));
    tensor.values = values.iter().map(|v| v * scale + offset).collect();
    tensor
}

/// Norm, and the product with a hashed tensor.
fn summary(values: &[f32], salt: u32) -> [f64; 2] {
    let norm = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let product = values
        .iter()
        .zip(hash(values.len(), salt))
        .map(|(&a, b)| f64::from(a) * f64::from(b))
        .sum();
    [norm, product]
}

/// Both numbers of a summary, within `tolerance` of the norm.
fn assert_summary(values: &[f32], salt: u32, expected: &Value, tolerance: f64, what: &str) {
    let (ours, theirs) = (summary(values, salt), numbers(expected));
    for (ours, expected) in ours.iter().zip(&theirs) {
        assert!(
            (ours - expected).abs() <= tolerance * theirs[0].max(1e-3),
            "{what}: {ours} and not {expected}"
        );
    }
}

fn assert_close(ours: &[f32], expected: &Value, tolerance: f64, what: &str) {
    let expected = numbers(expected);
    assert_eq!(ours.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
    for (i, (&ours, expected)) in ours.iter().zip(&expected).enumerate() {
        assert!(
            (f64::from(ours) - expected).abs() <= tolerance * largest,
            "{what}[{i}]: {ours} and not {expected}"
        );
    }
}

fn floats<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

fn net<B: Backend>(options: &ResNetOptions, seed: u64) -> ResNet<B> {
    options.validate().unwrap();
    ResNet::new(options, seed, &mut 0, &Default::default())
}

/// Gradients by name.
struct Gradients<'a> {
    path: Vec<String>,
    grads: &'a <Ad as burn::tensor::backend::AutodiffBackend>::Gradients,
    found: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor<Ad> for Gradients<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Ad, D>>) {
        if let Some(grad) = param.val().grad(self.grads) {
            self.found.insert(self.path.join("."), floats(grad));
        }
    }
}

#[test]
fn names_and_shapes_are_torchvisions() {
    for (name, depth) in [("resnet18", 18), ("resnet50", 50)] {
        let expected: BTreeMap<String, Vec<usize>> = serde_json::from_value(fixture("names")[name].clone()).unwrap();
        // A batch count a norm is added when weights are written (see `weights`).
        let (tracked, expected): (BTreeMap<_, _>, BTreeMap<_, _>) = expected
            .into_iter()
            .partition(|(name, _)| name.ends_with("num_batches_tracked"));
        let net = net::<Flex>(
            &ResNetOptions {
                depth,
                ..Default::default()
            },
            1,
        );
        assert_eq!(tracked.len(), net.norms());
        let ours: BTreeMap<_, _> = export(&net).into_iter().map(|t| (t.name, t.shape)).collect();
        assert_eq!(ours, expected);
    }
}

/// Names and shapes of a network's tensors as its plan of layers has them: no value is made.
fn planned(options: &ResNetOptions) -> BTreeMap<String, Vec<usize>> {
    let mut found = BTreeMap::new();
    let mut layer = |convolution: String, norm: String, shape: [usize; 4]| {
        found.insert(format!("{convolution}.weight"), shape.to_vec());
        for name in ["weight", "bias", "running_mean", "running_var"] {
            found.insert(format!("{norm}.{name}"), vec![shape[0]]);
        }
    };
    let (filters, kernel, _) = options.stem_convolution();
    layer("conv1".into(), "bn1".into(), [filters, 3, kernel, kernel]);
    for (stage, blocks) in options.plan().iter().enumerate() {
        for (at, block) in blocks.iter().enumerate() {
            let inside = if block.bottleneck { 3 } else { 2 };
            for (number, (inputs, outputs, kernel, _)) in block.convolutions().into_iter().enumerate() {
                let (convolution, norm) = if number < inside {
                    (format!("conv{}", number + 1), format!("bn{}", number + 1))
                } else {
                    ("downsample.0".into(), "downsample.1".into())
                };
                let path = |name| format!("layer{}.{at}.{name}", stage + 1);
                layer(path(convolution), path(norm), [outputs, inputs, kernel, kernel]);
            }
        }
    }
    found
}

/// The fixture script's digest of names and shapes.
fn digest(tensors: &BTreeMap<String, Vec<usize>>) -> u64 {
    let lines = tensors.iter().map(|(name, shape)| format!("{name} {shape:?}\n"));
    salt(&lines.collect::<String>()).into()
}

/// Every depth, at width 1, at the published widths and at fractions. The wide ones are held by their plan alone; that a network
/// has its plan's tensors is shown by those of up to 12 million parameters, every depth among them.
#[test]
fn sizes_are_pytorchs_at_every_depth_and_width() {
    let mut built = std::collections::BTreeSet::new();
    for case in fixture("sizes").as_array().unwrap() {
        let number = |key: &str| case[key].as_u64().unwrap();
        let options = ResNetOptions {
            depth: number("depth") as u32,
            width: case["width"].as_f64().unwrap(),
            stem: serde_json::from_value(case["stem"].clone()).unwrap(),
            stem_padding: Some(number("padding") as u32),
            ..Default::default()
        };
        options.validate().unwrap();
        assert_eq!(options.cost(64).parameters, number("parameters"), "{options:?}");
        let planned = planned(&options);
        assert_eq!(planned.len() as u64, number("tensors"), "{options:?}");
        assert_eq!(digest(&planned), number("names"), "{options:?}");
        if number("parameters") < 12_000_000 {
            let net = net::<Flex>(&options, 1);
            assert_eq!(net.num_parameters() as u64, number("parameters"), "{options:?}");
            let tensors: BTreeMap<_, _> = export(&net).into_iter().map(|t| (t.name, t.shape)).collect();
            assert_eq!(tensors, planned, "{options:?}");
            built.insert(options.depth);
        }
    }
    assert_eq!(built.into_iter().collect::<Vec<_>>(), [18, 34, 50, 101, 152, 200]);
}

/// The network of a case with the fixture script's weights, and its images.
fn filled(case: &Value) -> (ResNet<Ad>, Tensor<Ad, 4>) {
    let number = |key: &str| case[key].as_u64().unwrap() as usize;
    let options = ResNetOptions {
        depth: number("depth") as u32,
        width: number("filters") as f64 / 64.0,
        stem: serde_json::from_value(case["stem"].clone()).unwrap(),
        stem_padding: Some(number("padding") as u32),
        ..Default::default()
    };
    let net = net::<Ad>(&options, 1);
    let weights = export(&net).into_iter().map(fill).collect();
    let (n, size) = (number("images"), number("size"));
    let salt = case["salt"].as_u64().unwrap_or(7) as u32;
    let x = TensorData::new(hash(n * 3 * size * size, salt), [n, 3, size, size]);
    let x = Tensor::from_data(x, &Default::default()).permute([0, 2, 3, 1]);
    (import(net, weights).unwrap(), x)
}

/// A summary and the first values of an output.
fn assert_brief(output: Tensor<Ad, 2>, expected: &Value, tolerance: f64, what: &str) {
    let values = floats(output);
    assert_summary(&values, 10, &expected["summary"], tolerance, what);
    let first = &expected["first"];
    assert_close(&values[..first.as_array().unwrap().len()], first, tolerance, what);
}

/// Batch norm on a few images magnifies rounding from layer to layer: PyTorch's own float32 is 7e-5 off float64 at depth 101 and
/// 1e-3 at depth 200, but 1e-6 in evaluation.
#[test]
fn every_depth_computes_what_pytorch_does() {
    for case in fixture("depths").as_array().unwrap() {
        let what = format!("depth {} filters {} {}", case["depth"], case["filters"], case["stem"]);
        let tolerance = if case["depth"].as_u64().unwrap() > 101 {
            5e-3
        } else {
            5e-4
        };
        let (net, x) = filled(case);
        let evaluated = net.forward(x.clone(), &mut Mode::Eval);
        assert_brief(evaluated, &case["evaluated"], 1e-5, &format!("{what} evaluated"));
        let mut stats = Vec::new();
        let trained = net.forward(x.clone(), &mut Mode::Train(&mut stats));
        assert_brief(trained, &case["trained"], tolerance, &format!("{what} trained"));
        let after = net.update_running(&stats).forward(x, &mut Mode::Eval);
        assert_brief(
            after,
            &case["after_update"],
            tolerance,
            &format!("{what} after an update"),
        );
    }
}

#[test]
fn forward_running_statistics_and_gradients_are_pytorchs() {
    for case in fixture("networks").as_array().unwrap() {
        let what = format!("depth {} stem {}", case["depth"], case["stem"]);
        let (net, x) = filled(case);
        assert_close(
            &floats(net.forward(x.clone(), &mut Mode::Eval)),
            &case["evaluated"],
            1e-4,
            &what,
        );

        let mut stats = Vec::new();
        let h = net.forward(x.clone(), &mut Mode::Train(&mut stats));
        assert_close(&floats(h.clone()), &case["trained"], 1e-4, &what);
        let weight = TensorData::new(hash(h.shape().num_elements(), 8), h.dims());
        let grads = (h * Tensor::from_data(weight, &Default::default())).sum().backward();
        let mut found = Gradients {
            path: vec![],
            grads: &grads,
            found: BTreeMap::new(),
        };
        net.visit(&mut found);
        let expected = case["gradients"].as_object().unwrap();
        assert_eq!(
            found.found.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>()
        );
        for (name, values) in &found.found {
            assert_summary(values, 9, &expected[name], 1e-3, &format!("{what}: gradient of {name}"));
        }

        let net = net.update_running(&stats);
        for tensor in export(&net) {
            if let Some(expected) = case["running"].get(&tensor.name) {
                assert_summary(&tensor.values, 9, expected, 1e-4, &format!("{what}: {}", tensor.name));
            }
        }
        assert_close(
            &floats(net.forward(x, &mut Mode::Eval)),
            &case["after_update"],
            1e-4,
            &what,
        );
    }
}

/// What must not be possible: a width, a depth, a padding that makes no network.
#[test]
fn options_are_checked() {
    let base = ResNetOptions::default();
    assert_eq!(base.validate(), Ok(()));
    assert_eq!(
        ResNetOptions {
            depth: 20,
            ..base.clone()
        }
        .validate(),
        Err(ResNetError::Depth { depth: 20 })
    );
    for width in [0.0, -1.0, f64::INFINITY, 100.0] {
        assert_eq!(
            ResNetOptions { width, ..base.clone() }.validate(),
            Err(ResNetError::Width { width })
        );
    }
    assert!(
        ResNetOptions {
            width: f64::NAN,
            ..base.clone()
        }
        .validate()
        .is_err()
    );
    let padded = ResNetOptions {
        stem_padding: Some(7),
        ..base
    };
    assert_eq!(
        padded.validate(),
        Err(ResNetError::StemPadding { padding: 7, kernel: 7 })
    );
    assert!(serde_json::from_str::<ResNetOptions>(r#"{"dept": 18}"#).is_err());
}

#[test]
fn cost_is_known_before_the_network_is_built() {
    // torchvision's parameters without fc, and fvcore's multiply-adds at 224 for ResNet-18 and 50 (1.81 and 4.09 G).
    for (depth, parameters, giga) in [(18, 11_176_512, 1.81), (50, 23_508_032, 4.09)] {
        let options = ResNetOptions {
            depth,
            ..Default::default()
        };
        let cost = options.cost(224);
        assert_eq!(cost.parameters, parameters);
        assert!(
            (cost.multiply_adds as f64 / 1e9 - giga).abs() < 0.01,
            "{}",
            cost.multiply_adds
        );
        let net = net::<Flex>(&options, 1);
        assert_eq!(net.num_parameters() as u64, parameters);
        assert_eq!(net.representation_dim(), options.representation_dim());
    }
    // The smoke network of the embedded data set: 16, 32, 64.
    let smoke = ResNetOptions {
        depth: 8,
        width: 0.25,
        stem: Stem::Cifar,
        ..Default::default()
    };
    assert_eq!(smoke.representation_dim(), 64);
    let net = net::<Flex>(&smoke, 1);
    assert_eq!(smoke.cost(32).parameters as usize, net.num_parameters());
    // Input 3, stem 2 x 16, stages 2 x 2 x 16, 3 x 2 x 32 / 4, 3 x 2 x 64 / 16, in planes of 32 x 32.
    assert_eq!(smoke.cost(32).activation_bytes, 4 * 1024 * (3 + 32 + 64 + 48 + 24));
    assert_eq!(
        ResNetOptions {
            depth: 200,
            width: 2.0,
            ..Default::default()
        }
        .representation_dim(),
        4096
    );
}

/// The list of layers is the network: its weights, and the maps that its batch norms see on the way.
#[test]
fn layers_are_what_is_built_and_run() {
    for (depth, stem, padding, size) in [
        (8, Stem::Cifar, None, 16),
        (10, Stem::Cifar, Some(2), 9),
        (18, Stem::Imagenet, None, 33),
        (34, Stem::Imagenet, Some(1), 64),
        (50, Stem::Cifar, None, 8),
        (101, Stem::Imagenet, None, 32),
    ] {
        let options = ResNetOptions {
            depth,
            width: 0.0625,
            stem,
            stem_padding: padding,
            ..Default::default()
        };
        let (net, layers) = (net::<Flex>(&options, 1), options.layers(size));
        let sorted = |mut list: Vec<Vec<usize>>| {
            list.sort();
            list
        };
        let weights = export(&net).into_iter().map(|tensor| tensor.shape);
        let planned = layers.iter().map(|l| vec![l.outputs, l.inputs, l.kernel, l.kernel]);
        assert_eq!(
            sorted(weights.filter(|shape| shape.len() == 4).collect()),
            sorted(planned.collect()),
            "{options:?}"
        );

        let mut stats = Vec::new();
        let x = Tensor::from_data(
            TensorData::new(hash(2 * 3 * size * size, 7), [2, size, size, 3]),
            &Default::default(),
        );
        net.forward(x, &mut Mode::Train(&mut stats));
        let seen = stats.iter().map(|seen| vec![seen.mean.dims()[0], seen.count]);
        let planned = layers.iter().map(|l| vec![l.outputs, 2 * l.output_side().pow(2)]);
        assert_eq!(sorted(seen.collect()), sorted(planned.collect()), "{options:?}");

        // What follows and where it comes from: a block each of these, and the stem.
        let blocks = layers.iter().filter(|layer| layer.opens_block).count();
        let ends = layers.iter().filter(|layer| layer.norm == NormKind::AddRelu).count();
        assert_eq!((blocks, ends), (options.plan().concat().len(), blocks), "{options:?}");
        assert_eq!(layers.iter().filter(|layer| layer.source == Source::Images).count(), 1);
        let pooled = layers.iter().filter(|layer| layer.source == Source::Pool).count();
        assert_eq!(
            pooled,
            match (stem, depth) {
                (Stem::Cifar, _) => 0,
                (_, 18 | 34) => 1, // The first block's shortcut has no projection.
                _ => 2,
            }
        );
        for layer in layers.iter().filter(|layer| layer.source == Source::Norm) {
            let makes = |made: &Layer| (made.outputs, made.output_side()) == (layer.inputs, layer.side);
            assert!(layers.iter().any(makes), "{layer:?} of {options:?}");
        }
    }
}

#[test]
fn initial_weights_follow_their_distribution_and_their_seed() {
    let weights = |init: Init, seed| {
        let options = ResNetOptions {
            depth: 10,
            width: 0.5,
            stem: Stem::Cifar,
            init,
            zero_init_residual: false,
            ..Default::default()
        };
        export(&net::<Flex>(&options, seed))
    };
    let of = |all: &[NamedTensor], name: &str| all.iter().find(|t| t.name == name).unwrap().values.clone();
    let deviation = |v: &[f32]| (v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / v.len() as f64).sqrt();
    let kaiming = weights(Init::KaimingFanOut, 3);
    assert_eq!(kaiming, weights(Init::KaimingFanOut, 3));
    assert_ne!(kaiming, weights(Init::KaimingFanOut, 4));
    // 128 filters of 3 x 3.
    let layer3 = of(&kaiming, "layer3.0.conv2.weight");
    assert!((deviation(&layer3) / (2.0f64 / (128.0 * 9.0)).sqrt() - 1.0).abs() < 0.01);
    assert_ne!(
        layer3[..1152],
        layer3[1152..2304],
        "two filters must not share their draws"
    );

    let solo = weights(Init::SoloLearn, 3);
    assert_eq!(of(&solo, "layer3.0.conv2.weight"), layer3);
    let stem = of(&solo, "conv1.weight");
    let bound = (1.0f32 / 27.0).sqrt();
    assert!(stem.iter().all(|v| v.abs() < bound) && stem.iter().any(|v| v.abs() > 0.95 * bound));
    assert!((deviation(&stem) / (f64::from(bound) / 3f64.sqrt()) - 1.0).abs() < 0.1);
    let pytorch = of(&weights(Init::Pytorch, 3), "layer3.0.conv2.weight");
    assert!(pytorch.iter().all(|v| v.abs() < (1.0f32 / 1152.0).sqrt()));
}

#[test]
fn zero_init_makes_blocks_begin_as_their_shortcuts() {
    for (depth, last) in [(10, "layer1.0.bn2.weight"), (50, "layer1.0.bn3.weight")] {
        let options = ResNetOptions {
            depth,
            width: 0.0625,
            ..Default::default()
        };
        let all = export(&net::<Flex>(&options, 1));
        assert!(
            all.iter()
                .find(|t| t.name == last)
                .unwrap()
                .values
                .iter()
                .all(|&v| v == 0.0)
        );
        assert!(
            all.iter()
                .find(|t| t.name == "layer1.0.bn1.weight")
                .unwrap()
                .values
                .iter()
                .all(|&v| v == 1.0)
        );
    }
}

/// A calibrated network normalises in evaluation as the average over the batches says: with one batch, as in training but for
/// the unbiased variance.
#[test]
fn calibration_averages_batches() {
    let options = ResNetOptions {
        depth: 8,
        width: 0.125,
        stem: Stem::Cifar,
        zero_init_residual: false,
        ..Default::default()
    };
    let net = net::<Flex>(&options, 1);
    let batch = |salt| {
        Tensor::<Flex, 4>::from_data(
            TensorData::new(hash(64 * 3 * 256, salt), [64, 16, 16, 3]),
            &Default::default(),
        )
    };
    let run = |salt| {
        let mut stats = Vec::new();
        let h = net.forward(batch(salt), &mut Mode::Train(&mut stats));
        (h, stats)
    };
    let ((h, first), (_, second)) = (run(1), run(2));
    let calibrated = net.clone().calibrate(std::slice::from_ref(&first));
    let evaluated = floats(calibrated.forward(batch(1), &mut Mode::Eval));
    for (a, b) in floats(h).iter().zip(&evaluated) {
        assert!((a - b).abs() < 2e-3, "{a} {b}");
    }
    let both = net.calibrate(&[first.clone(), second.clone()]);
    let mean = floats((first[0].mean.clone() + second[0].mean.clone()) / 2.0);
    assert_eq!(floats(both.bn1.running_mean.val()), mean);
}

#[test]
fn pooled_groups_have_the_statistics_of_the_whole() {
    let whole =
        Tensor::<Flex, 2>::from_data(TensorData::new(hash(60 * 4, 1), [60, 4]), &Default::default()) * 2.0 + 1.0;
    let norm = crate::learn::norm::BatchNorm::new(4, &Default::default());
    let stats = |x: Tensor<Flex, 2>| -> BatchStats<Flex> {
        let mut stats = Vec::new();
        norm.forward(x, &mut Mode::Train(&mut stats));
        stats.pop().unwrap()
    };
    let pooled = BatchStats::pool(&[stats(whole.clone().slice(0..10)), stats(whole.clone().slice(10..60))]);
    let all = stats(whole);
    assert_eq!(pooled.count, 60);
    for (a, b) in [(pooled.mean, all.mean), (pooled.variance, all.variance)] {
        for (a, b) in floats(a).iter().zip(floats(b)) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }
}

/// A whole step, with pooling and averaging in it, on 1, 2 and 7 threads.
#[test]
fn threads_change_no_bit_of_a_step() {
    let options = ResNetOptions {
        depth: 10,
        width: 0.25,
        zero_init_residual: false,
        ..Default::default()
    };
    let net = net::<Ad>(&options, 1);
    let step = || {
        let x = TensorData::new(hash(12 * 3 * 66 * 66, 7), [12, 66, 66, 3]);
        let x = Tensor::<Ad, 4>::from_data(x, &Default::default());
        let mut stats = Vec::new();
        let h = net.forward(x, &mut Mode::Train(&mut stats));
        let grads = h.clone().powi_scalar(2).sum().backward();
        let mut found = Gradients {
            path: vec![],
            grads: &grads,
            found: BTreeMap::new(),
        };
        net.visit(&mut found);
        found.found.insert("h".into(), floats(h));
        let bits = |(name, values): (String, Vec<f32>)| (name, values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        found.found.into_iter().map(bits).collect::<Vec<_>>()
    };
    let on = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(step)
    };
    let one = on(1);
    for threads in [2, 7] {
        for (ours, one) in on(threads).iter().zip(&one) {
            assert!(ours == one, "{} on {threads} threads", one.0);
        }
    }
}
