//! The kernels against stock burn, against sums in f64, and against themselves on other numbers of threads.

use super::{
    ConvArgs, NormSaved, TrainOps,
    conv::{self, ConvShape},
    conv_weight, defaults, primitive, tensor,
};
use crate::learn::norm::{BatchNorm, BatchStats};
use burn::{
    backend::{Autodiff, Flex},
    tensor::{
        Tensor, TensorData,
        ops::{FloatTensor, FloatTensorOps},
    },
};
use pulp::Arch;

type Ad = Autodiff<Flex>;

use crate::learn::weights::probe::difference;
/// The values of tools/fixtures/resnet.py.
pub(crate) use crate::learn::weights::probe::hashed as hash;

/// [`hash`] as a tensor.
fn hashed<const D: usize>(shape: [usize; D], salt: u32) -> Tensor<Flex, D> {
    Tensor::from_data(
        TensorData::new(hash(shape.iter().product(), salt), shape),
        &Default::default(),
    )
}

/// A map of PyTorch's fixtures, `[N, C, H, W]`, with its channels last.
fn map(shape: [usize; 4], salt: u32) -> FloatTensor<Flex> {
    primitive::<Flex, 4>(hashed(shape, salt).permute([0, 2, 3, 1]))
}

/// A map's values in PyTorch's order.
fn channels_first(map: FloatTensor<Flex>) -> Vec<f32> {
    floats(tensor::<Flex, 4>(map).permute([0, 3, 1, 2]))
}

fn floats<const D: usize>(tensor: Tensor<Flex, D>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

/// (N, Cin, H, W, Cout, Kh, Kw, stride, padding): strides 1-3, paddings 0-3, odd sizes, kernels that are not square,
/// channels that fill no vector, several chunks, more taps than a panel slice; then those that Winograd's algorithm takes, with
/// tiles over several images, mosaics that are not full, all paddings.
const SHAPES: [[usize; 9]; 20] = [
    [2, 3, 8, 8, 16, 3, 3, 1, 1],
    [3, 3, 17, 13, 5, 7, 7, 2, 3],
    [2, 3, 10, 10, 64, 3, 3, 1, 2],
    [2, 16, 9, 9, 32, 3, 3, 2, 1],
    [2, 16, 8, 8, 33, 1, 1, 2, 0],
    [1, 8, 7, 5, 70, 1, 1, 1, 0],
    [40, 4, 4, 4, 130, 3, 3, 1, 1],
    [2, 130, 6, 6, 20, 3, 3, 1, 1],
    [2, 2, 11, 12, 3, 3, 5, 3, 2],
    [3, 2, 6, 6, 3, 2, 2, 1, 0],
    [1, 1, 5, 5, 1, 5, 5, 1, 0],
    [1, 2, 5, 5, 4, 1, 1, 1, 2],
    [3, 16, 8, 8, 32, 3, 3, 1, 1],
    [6, 32, 9, 5, 16, 3, 3, 1, 1],
    [17, 16, 5, 5, 48, 3, 3, 1, 1],
    [2, 16, 6, 7, 16, 3, 3, 1, 2],
    [5, 144, 4, 4, 272, 3, 3, 1, 1],
    [2, 16, 10, 6, 16, 3, 3, 1, 0],
    [9, 3, 40, 40, 8, 3, 3, 1, 1],
    [2, 3, 6, 7, 4, 3, 3, 4, 1],
];

#[test]
fn convolution_and_its_gradients_equal_stock_burn() {
    for (i, [n, cin, h, w, cout, kh, kw, stride, padding]) in SHAPES.into_iter().enumerate() {
        let args = ConvArgs { stride, padding };
        let x = hashed([n, h, w, cin], i as u32);
        let weight = hashed([cout, cin, kh, kw], 100 + i as u32);
        let (px, pw) = (primitive(x), primitive(weight));
        let ours = floats::<4>(tensor(Flex::conv(px.clone(), pw.clone(), args)));
        let y = tensor::<Flex, 4>(defaults::conv::<Flex>(px.clone(), pw.clone(), args));
        let grad = primitive(hashed(y.dims(), 200 + i as u32));
        assert!(difference(&ours, &floats(y)) < 1e-5, "forward, shape {i}");

        let ours = floats::<4>(tensor(Flex::conv_input_grad(
            px.clone(),
            pw.clone(),
            grad.clone(),
            args,
        )));
        let stock = floats::<4>(tensor(defaults::conv_input_grad::<Flex>(
            px.clone(),
            pw.clone(),
            grad.clone(),
            args,
        )));
        assert!(difference(&ours, &stock) < 1e-5, "input gradient, shape {i}");

        let ours = floats::<4>(tensor(Flex::conv_weight_grad(
            px.clone(),
            pw.clone(),
            grad.clone(),
            args,
        )));
        let stock = floats::<4>(tensor(defaults::conv_weight_grad::<Flex>(px, pw, grad, args)));
        assert!(difference(&ours, &stock) < 1e-5, "weight gradient, shape {i}");
    }
}

#[test]
fn linear_layers_and_averages_equal_stock_burn() {
    for [n, inputs, outputs] in [[5, 7, 3], [256, 128, 512], [70, 33, 130]] {
        let (x, weight) = (
            primitive(hashed([n, inputs], 1)),
            primitive(hashed([outputs, inputs], 2)),
        );
        let grad = primitive(hashed([n, outputs], 3));
        let pairs = [
            (
                Flex::dense(x.clone(), weight.clone()),
                defaults::dense::<Flex>(x.clone(), weight.clone()),
            ),
            (
                Flex::dense_input_grad(weight.clone(), grad.clone()),
                Flex::float_matmul(grad.clone(), weight),
            ),
            (
                Flex::dense_weight_grad(x.clone(), grad.clone()),
                Flex::float_matmul(Flex::float_transpose(grad), x),
            ),
        ];
        for (what, (ours, stock)) in pairs.into_iter().enumerate() {
            let difference = difference(&flat(ours), &flat(stock));
            assert!(
                difference < 1e-5,
                "{n} x {inputs} x {outputs}: result {what} by {difference}"
            );
        }
    }
    for shape in [[3, 4, 5, 7], [2, 8, 8, 64]] {
        let x = primitive(hashed(shape, 1));
        let grad = primitive(hashed([shape[0], shape[3]], 2));
        let pairs = [
            (Flex::average(x.clone()), defaults::average::<Flex>(x)),
            (
                Flex::average_grad(grad.clone(), [shape[1], shape[2]]),
                defaults::average_grad::<Flex>(grad, [shape[1], shape[2]]),
            ),
        ];
        for (ours, stock) in pairs {
            assert!(difference(&flat(ours), &flat(stock)) < 1e-6, "{shape:?}");
        }
    }
}

#[test]
fn pools_and_their_gradients_equal_stock_burn() {
    // Odd sides, a kernel that jumps over pixels, and few enough different values that many are equal.
    for (shape, kernel, stride, padding) in [
        ([2, 9, 12, 5], 3, 2, 1),
        ([1, 8, 8, 64], 2, 2, 0),
        ([3, 7, 5, 20], 2, 3, 1),
    ] {
        let args = ConvArgs { stride, padding };
        let x = primitive((hashed(shape, 1) * 4.0).round());
        let ours = Flex::max_pool(x.clone(), kernel, args);
        let stock = defaults::max_pool::<Flex>(x.clone(), kernel, args);
        assert_eq!(floats::<4>(tensor(ours.clone())), floats::<4>(tensor(stock)));
        let grad = primitive(hashed(tensor::<Flex, 4>(ours.clone()).dims(), 2));
        let stock = defaults::max_pool_grad::<Flex>(x.clone(), grad.clone(), kernel, args);
        let ours = Flex::max_pool_grad(x, ours, grad, kernel, args);
        assert!(difference(&floats::<4>(tensor(ours)), &floats::<4>(tensor(stock))) < 1e-6);
    }
}

/// Root mean square of the errors, as a share of that of the values.
fn error(ours: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(ours.len(), exact.len());
    let errors = ours.iter().zip(exact).map(|(&a, &b)| (f64::from(a) - b).powi(2));
    (errors.sum::<f64>() / exact.iter().map(|v| v * v).sum::<f64>()).sqrt()
}

/// `[N, H, W, Cin]` by a 3 x 3 kernel with padding 1, in f64.
fn exact(x: &[f64], weight: &[f64], shape: ConvShape) -> Vec<f64> {
    let ([cin, h, w], [cout, ..]) = (shape.input, shape.output);
    let mut out = vec![0.0; shape.n * h * w * cout];
    for (at, out) in out.chunks_exact_mut(cout).enumerate() {
        let (n, i, j) = (at / (h * w), at / w % h, at % w);
        for (tap, (di, dj)) in (0..3).flat_map(|di| (0..3).map(move |dj| (di, dj))).enumerate() {
            let (Some(y), Some(z)) = ((i + di).checked_sub(1), (j + dj).checked_sub(1)) else {
                continue;
            };
            if y < h && z < w {
                let x = &x[((n * h + y) * w + z) * cin..][..cin];
                for (output, out) in out.iter_mut().enumerate() {
                    let terms = x
                        .iter()
                        .enumerate()
                        .map(|(c, x)| x * weight[shape.place(output, c, tap)]);
                    *out += terms.sum::<f64>();
                }
            }
        }
    }
    out
}

/// What fewer products cost: the error against f64, beside that of the direct way, for values as they are behind a rectifier.
#[test]
fn winograd_loses_little_against_float64() {
    let shape = ConvShape::new(&[4, 12, 12, 64], &[64, 64, 3, 3], ConvArgs { stride: 1, padding: 1 });
    let rectified = |salt| {
        hash(4 * 144 * 64, salt)
            .iter()
            .map(|v| v.max(0.0))
            .collect::<Vec<f32>>()
    };
    let (x, grad, weight) = (rectified(1), hash(4 * 144 * 64, 2), hash(64 * 64 * 9, 3));
    let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
    let arch = Arch::new();
    let expected = exact(&wide(&x), &wide(&weight), shape);
    let direct = error(&conv::direct(arch, &x, &weight, shape), &expected);
    let forward = error(&conv::forward(arch, &x, &weight, shape), &expected);

    // The input gradient is the convolution with the kernel turned round.
    let turned: Vec<f64> = (0..64 * 64 * 9)
        .map(|at| f64::from(weight[shape.place(at / 9 % 64, at / 9 / 64, 8 - at % 9)]))
        .collect();
    let expected = exact(&wide(&grad), &turned, shape);
    let input_grad = error(&conv::input_grad(arch, &grad, &weight, shape), &expected);

    // The kernel's gradient, one tap of one pair of channels after another, from <grad, conv(x, e)>.
    let ours = conv_weight::weight_grad(arch, &x, &grad, shape);
    let (mut kept, mut expected) = (Vec::new(), Vec::new());
    for at in (0..64 * 64 * 9).step_by(997) {
        let mut unit = vec![0.0; 64 * 64 * 9];
        unit[at] = 1.0;
        let y = exact(&wide(&x), &unit, shape);
        kept.push(ours[at]);
        expected.push(y.iter().zip(&grad).map(|(y, &g)| y * f64::from(g)).sum());
    }
    let weight_grad = error(&kept, &expected);
    eprintln!("direct {direct:.1e}, forward {forward:.1e}, input {input_grad:.1e}, kernel {weight_grad:.1e}");
    for error in [forward, input_grad, weight_grad] {
        assert!(error < 2e-6, "{error}");
    }
    assert!(forward < 4.0 * direct, "forward {forward}, direct {direct}");
}

/// The kernels for AVX2, and without any SIMD, on the same shapes: a user's CPU has other registers than ours.
#[test]
fn every_instruction_set_gives_the_same_convolution() {
    let mut sets = vec![Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    sets.extend(pulp::x86::V3::try_new().map(Arch::V3));
    for (i, [n, cin, h, w, cout, kh, kw, stride, padding]) in SHAPES.into_iter().enumerate() {
        let shape = ConvShape::new(&[n, h, w, cin], &[cout, cin, kh, kw], ConvArgs { stride, padding });
        let (x, weight) = (
            floats(hashed([n, h, w, cin], 1)),
            floats(hashed([cout, cin, kh, kw], 2)),
        );
        let grad = floats(hashed([n * shape.output.iter().product::<usize>()], 3));
        let all = |arch| {
            let forward = conv::forward(arch, &x, &weight, shape);
            [
                forward,
                conv::input_grad(arch, &grad, &weight, shape),
                conv_weight::weight_grad(arch, &x, &grad, shape),
            ]
        };
        let ours = all(Arch::new());
        for &arch in &sets {
            for (what, (a, b)) in all(arch).iter().zip(&ours).enumerate() {
                assert!(difference(a, b) < 1e-5, "{arch:?}, shape {i}, result {what}");
            }
        }
    }
}

/// Norm of a tensor, and its product with a hashed one, against the fixture's two numbers.
fn assert_summary(values: &[f32], salt: u32, expected: &serde_json::Value, what: &str) {
    let norm = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let product: f64 = values
        .iter()
        .zip(hash(values.len(), salt))
        .map(|(&a, b)| f64::from(a) * f64::from(b))
        .sum();
    let [theirs, their_product] = [0, 1].map(|i| expected[i].as_f64().unwrap());
    for (ours, theirs_too) in [(norm, theirs), (product, their_product)] {
        assert!(
            (ours - theirs_too).abs() < 1e-5 * theirs,
            "{what}: {ours} and not {theirs_too}"
        );
    }
}

/// Values and gradients that PyTorch gave in f64 (tools/fixtures/resnet.py).
#[test]
fn operations_equal_pytorch() {
    let path = format!("{}/tests/fixtures/resnet/operations.json", env!("CARGO_MANIFEST_DIR"));
    let fixture: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for case in fixture["convolutions"].as_array().unwrap() {
        let shape: Vec<usize> = serde_json::from_value(case["shape"].clone()).unwrap();
        let &[n, cin, h, w, cout, kh, kw, stride, padding] = &shape[..] else {
            panic!("{shape:?}")
        };
        let args = ConvArgs { stride, padding };
        let (x, k) = (map([n, cin, h, w], 1), primitive(hashed([cout, cin, kh, kw], 2)));
        let y = Flex::conv(x.clone(), k.clone(), args);
        let grad = map([n, cout, args.output(h, kh), args.output(w, kw)], 3);
        assert_summary(&channels_first(y), 4, &case["output"], &format!("output {shape:?}"));
        let dx = Flex::conv_input_grad(x.clone(), k.clone(), grad.clone(), args);
        assert_summary(
            &channels_first(dx),
            4,
            &case["input_grad"],
            &format!("input gradient {shape:?}"),
        );
        let dk = Flex::conv_weight_grad(x, k, grad, args);
        assert_summary(
            &flat(dk),
            4,
            &case["weight_grad"],
            &format!("weight gradient {shape:?}"),
        );
    }
    for case in fixture["norms"].as_array().unwrap() {
        norm_equals_pytorch(case);
    }
}

fn norm_equals_pytorch(case: &serde_json::Value) {
    let shape: Vec<usize> = serde_json::from_value(case["shape"].clone()).unwrap();
    let c = [shape[1]];
    let what = format!("batch norm {shape:?}");
    // Rows as they are, maps with their channels last.
    let theirs = |x| match shape.len() {
        4 => primitive(tensor::<Flex, 4>(x).permute([0, 2, 3, 1])),
        _ => x,
    };
    let ours = |values: FloatTensor<Flex>| {
        if shape.len() == 4 {
            channels_first(values)
        } else {
            flat(values)
        }
    };
    let gamma = primitive(hashed(c, 2) + 1.5);
    let x = theirs(shaped(&shape, 1));
    let normed = Flex::norm(x.clone(), gamma.clone(), primitive(hashed(c, 3)), None, true, 1e-5);
    assert_summary(&ours(normed.output.clone()), 5, &case["output"], &what);
    let count = shape.iter().product::<usize>() / c[0];
    let stats = BatchStats {
        mean: tensor(normed.mean.clone()),
        variance: tensor(normed.variance.clone()),
        count,
    };
    let layer = BatchNorm::<Flex>::new(c[0], &Default::default()).update_running(&stats);
    let saved = NormSaved {
        input: x,
        rectified: Some(normed.output),
        gamma,
        mean: normed.mean,
        variance: normed.variance,
        epsilon: 1e-5,
        residual: false,
    };
    let grad = TensorData::new(hash(shape.iter().product(), 4), shape.clone());
    let grads = Flex::norm_grad(saved, theirs(burn_flex::FlexTensor::from_data(grad)));
    assert_summary(&ours(grads.input), 5, &case["input_grad"], &what);
    for (ours, key) in [
        (flat(grads.gamma), "weight_grad"),
        (flat(grads.beta), "bias_grad"),
        (floats(layer.running_mean.val()), "running_mean"),
        (floats(layer.running_var.val()), "running_var"),
    ] {
        let theirs: Vec<f32> = serde_json::from_value(case[key].clone()).unwrap();
        assert!(
            difference(&ours, &theirs) < 1e-5,
            "{what} {key}: {ours:?} and not {theirs:?}"
        );
    }
}

/// Shapes of batch norm: rows, channels that fill no vector, that fill some, more rows than chunks.
const NORMS: [&[usize]; 5] = [&[6, 5], &[300, 200], &[3, 5, 5, 20], &[70, 8, 8, 16], &[2, 32, 32, 64]];

fn flat(t: FloatTensor<Flex>) -> Vec<f32> {
    t.into_data().to_vec().unwrap()
}

/// A tensor of any rank as a primitive.
fn shaped(shape: &[usize], salt: u32) -> FloatTensor<Flex> {
    let values = hash(shape.iter().product(), salt);
    // Off centre and wide, so that mean and variance matter.
    let values = values.iter().map(|v| 3.0 * v + 2.0).collect();
    burn_flex::FlexTensor::from_data(TensorData::new(values, shape.to_vec()))
}

#[test]
fn batch_norm_and_its_gradients_equal_stock_burn() {
    for shape in NORMS {
        for (residual, relu) in [(false, false), (false, true), (true, true), (true, false)] {
            let c = [*shape.last().unwrap()];
            let (x, gamma, beta) = (shaped(shape, 1), shaped(&c, 2), shaped(&c, 3));
            let added = residual.then(|| shaped(shape, 4));
            let ours = Flex::norm(x.clone(), gamma.clone(), beta.clone(), added.clone(), relu, 1e-5);
            let stock = defaults::norm::<Flex>(x.clone(), gamma.clone(), beta, added, relu, 1e-5);
            let grad = shaped(shape, 5);
            let saved = NormSaved {
                input: x,
                rectified: relu.then(|| stock.output.clone()),
                gamma,
                mean: stock.mean.clone(),
                variance: stock.variance.clone(),
                epsilon: 1e-5,
                residual,
            };
            let grads = Flex::norm_grad(saved.clone(), grad.clone());
            let stock_grads = defaults::norm_grad::<Flex>(saved, grad);
            let mut pairs = vec![
                (ours.output, stock.output),
                (ours.mean, stock.mean),
                (ours.variance, stock.variance),
                (grads.input, stock_grads.input),
                (grads.gamma, stock_grads.gamma),
                (grads.beta, stock_grads.beta),
            ];
            assert_eq!(grads.residual.is_some(), residual);
            pairs.extend(grads.residual.zip(stock_grads.residual));
            for (what, (ours, stock)) in pairs.into_iter().enumerate() {
                let difference = difference(&flat(ours), &flat(stock));
                assert!(
                    difference < 1e-5,
                    "{shape:?} residual {residual} relu {relu}: output {what} by {difference}"
                );
            }
        }
    }
}

/// The whole graph: convolution, batch norm, rectifier, residual, through burn's autodiff, against the stock operations.
#[test]
fn autodiff_gives_the_gradients_of_stock_burn() {
    let leaf = |t: Tensor<Flex, 4>| Tensor::<Ad, 4>::from_inner(t).require_grad();
    let channels = |salt| Tensor::<Ad, 1>::from_inner(hashed([6], salt)).require_grad();
    let args = ConvArgs { stride: 1, padding: 1 };
    let run = |ours: bool| {
        let (x, w) = (leaf(hashed([3, 7, 7, 6], 1)), leaf(hashed([6, 6, 3, 3], 2)));
        let (gamma, beta) = (channels(3), channels(4));
        let (px, pw, pg, pb) = (
            primitive(x.clone()),
            primitive(w.clone()),
            primitive(gamma.clone()),
            primitive(beta.clone()),
        );
        let (h, y) = if ours {
            let h = Ad::conv(px.clone(), pw, args);
            (h.clone(), Ad::norm(h, pg, pb, Some(px), true, 1e-5).output)
        } else {
            let h = defaults::conv::<Ad>(px.clone(), pw, args);
            (h.clone(), defaults::norm::<Ad>(h, pg, pb, Some(px), true, 1e-5).output)
        };
        // The map is used twice, so that its gradients must add up.
        let loss = (tensor::<Ad, 4>(y).powi_scalar(2) + tensor::<Ad, 4>(h)).sum();
        let grads = loss.backward();
        [
            floats(x.grad(&grads).unwrap()),
            floats(w.grad(&grads).unwrap()),
            floats(gamma.grad(&grads).unwrap()),
            floats(beta.grad(&grads).unwrap()),
        ]
    };
    for (what, (ours, stock)) in run(true).iter().zip(run(false)).enumerate() {
        let difference = difference(ours, &stock);
        assert!(difference < 2e-5, "gradient {what} by {difference}");
    }
}

#[test]
fn threads_change_no_bit() {
    let args = ConvArgs { stride: 1, padding: 1 };
    // The direct way, and Winograd's with several parts of the batch and with one.
    for [inputs, outputs] in [[20, 70], [32, 64], [96, 128]] {
        same_on_any_threads(&|| layer_bits(inputs, outputs, args));
    }
}

/// All that a convolution and a batch norm after it give, forward and backward.
fn layer_bits(inputs: usize, outputs: usize, args: ConvArgs) -> Vec<Vec<u32>> {
    let (x, w) = (
        primitive(hashed([70, 16, 16, inputs], 1)),
        primitive(hashed([outputs, inputs, 3, 3], 2)),
    );
    let y = Flex::conv(x.clone(), w.clone(), args);
    let grad = primitive(hashed([70, 16, 16, outputs], 3));
    let normed = Flex::norm(
        y.clone(),
        shaped(&[outputs], 4),
        shaped(&[outputs], 5),
        None,
        true,
        1e-5,
    );
    let saved = NormSaved {
        input: y.clone(),
        rectified: Some(normed.output.clone()),
        gamma: shaped(&[outputs], 4),
        mean: normed.mean,
        variance: normed.variance,
        epsilon: 1e-5,
        residual: false,
    };
    let grads = Flex::norm_grad(saved, grad.clone());
    let parts = [
        y,
        Flex::conv_input_grad(x.clone(), w.clone(), grad.clone(), args),
        Flex::conv_weight_grad(x, w, grad, args),
        normed.output,
        grads.input,
        grads.gamma,
        grads.beta,
    ];
    parts.map(|t| flat(t).iter().map(|v| v.to_bits()).collect()).to_vec()
}

fn same_on_any_threads<T: PartialEq + Send>(all: &(dyn Fn() -> T + Sync)) {
    let on = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(all)
    };
    let one = on(1);
    for threads in [2, 7] {
        assert!(on(threads) == one, "{threads} threads");
    }
}
