//! The loss against PyTorch in float64 (tools/fixtures/loss.py), against its own closed-form gradient, and dual against primal.

use super::*;
use burn::backend::{Autodiff, Flex};
use burn::tensor::TensorData;

type Ad = Autodiff<Flex>;

#[derive(Deserialize)]
struct Fixture {
    inputs: std::collections::BTreeMap<String, Input>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Input {
    n: usize,
    d: usize,
    a: Vec<f32>,
    b: Vec<f32>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    kind: LossKind,
    terms: [f64; 4],
    embedding_std: f64,
    grad_a: Vec<f64>,
    grad_b: Vec<f64>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../../../tests/fixtures/loss.json")).unwrap()
}

fn tensor<B: Backend>(values: &[f32], n: usize, d: usize) -> Tensor<B, 2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [n, d]), &Default::default())
}

fn scalar<B: Backend>(x: &Tensor<B, 1>) -> f64 {
    f64::from(x.to_data().to_vec::<f32>().unwrap()[0])
}

/// Terms, standard deviation and both gradients of a loss in f32.
fn run(input: &Input, options: &LossOptions) -> ([f64; 4], f64, [Vec<f32>; 2]) {
    let [a, b] = [&input.a, &input.b].map(|x| tensor::<Ad>(x, input.n, input.d).require_grad());
    let terms = vicreg_loss(a.clone(), b.clone(), options);
    let grads = terms.loss.backward();
    let gradients = [a, b].map(|x| x.grad(&grads).unwrap().to_data().to_vec().unwrap());
    let values = [&terms.loss, &terms.invariance, &terms.variance, &terms.covariance].map(scalar);
    (values, scalar(&terms.embedding_std), gradients)
}

/// Largest difference, relative to the largest expected value.
fn relative(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    found
        .iter()
        .zip(expected)
        .fold(0.0f64, |m, (&f, &e)| m.max((f64::from(f) - e).abs()))
        / scale
}

#[test]
fn value_and_gradient_are_pytorchs() {
    let fixture = fixture();
    assert_eq!(fixture.cases.len(), 10);
    for case in &fixture.cases {
        let options = LossOptions {
            kind: case.kind,
            ..LossOptions::default()
        };
        let (terms, std, [grad_a, grad_b]) = run(&fixture.inputs[&case.name], &options);
        let name = format!("{} {:?}", case.name, case.kind);
        for (found, expected) in terms.iter().zip(case.terms) {
            assert!(
                (found - expected).abs() <= 2e-6 * expected.abs().max(1e-3),
                "{name}: {found} for {expected}"
            );
        }
        assert!(
            (std - case.embedding_std).abs() < 1e-6,
            "{name}: {std} for {}",
            case.embedding_std
        );
        for (found, expected) in [(grad_a, &case.grad_a), (grad_b, &case.grad_b)] {
            let error = relative(&found, expected);
            assert!(error < 2e-6, "{name}: gradient off by {error}");
        }
    }
}

/// The closed form: with Zc centred, dL/dZ = 2 lambda (Z - Z') / (N D)
/// - mu' Zc / (D (N-1) std) where std < gamma + nu 4/D (G Zc / (N-1)^2 - Var Zc / (N-1)), G = Zc Zc^T. In f64.
fn closed_form(z: &[f64], other: &[f64], n: usize, d: usize, options: &LossOptions) -> Vec<f64> {
    let (nf, df) = (n as f64, d as f64);
    let mu = match options.kind {
        LossKind::Official => options.variance / 2.0,
        LossKind::Paper => options.variance,
    };
    let mean: Vec<f64> = (0..d).map(|j| (0..n).map(|i| z[i * d + j]).sum::<f64>() / nf).collect();
    let zc: Vec<f64> = z.iter().enumerate().map(|(at, x)| x - mean[at % d]).collect();
    let var: Vec<f64> = (0..d)
        .map(|j| (0..n).map(|i| zc[i * d + j].powi(2)).sum::<f64>() / (nf - 1.0))
        .collect();
    let gram = |i: usize, k: usize| (0..d).map(|j| zc[i * d + j] * zc[k * d + j]).sum::<f64>();
    let gram: Vec<f64> = (0..n * n).map(|at| gram(at / n, at % n)).collect();
    (0..n * d)
        .map(|at| {
            let (i, j) = (at / d, at % d);
            let std = (var[j] + EPS).sqrt();
            let s = 2.0 * (z[at] - other[at]) / (nf * df);
            let v = if std < GAMMA {
                -zc[at] / (df * (nf - 1.0) * std)
            } else {
                0.0
            };
            let g_zc: f64 = (0..n).map(|k| gram[i * n + k] * zc[k * d + j]).sum();
            let c = 4.0 / df * (g_zc / (nf - 1.0).powi(2) - var[j] * zc[at] / (nf - 1.0));
            options.invariance * s + mu * v + options.covariance * c
        })
        .collect()
}

#[test]
fn gradient_is_the_closed_form() {
    for kind in [LossKind::Official, LossKind::Paper] {
        let options = LossOptions {
            kind,
            invariance: 7.0,
            variance: 31.0,
            covariance: 2.5,
        };
        for (name, input) in &fixture().inputs {
            let [a, b] = [&input.a, &input.b].map(|x| x.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
            let (_, _, [grad_a, grad_b]) = run(input, &options);
            for (found, z, other) in [(grad_a, &a, &b), (grad_b, &b, &a)] {
                let error = relative(&found, &closed_form(z, other, input.n, input.d, &options));
                assert!(error < 2e-6, "{name} {kind:?}: {error}");
            }
        }
    }
}

#[test]
fn dual_is_primal() {
    for (name, input) in &fixture().inputs {
        let [primal, dual] = [false, true].map(|dual| {
            let z = tensor::<Ad>(&input.a, input.n, input.d).require_grad();
            let branch = Branch::new(z.clone());
            let c = if dual {
                branch.off_diagonal_dual()
            } else {
                branch.off_diagonal_primal()
            };
            let grad = z.grad(&c.backward()).unwrap().to_data().to_vec::<f32>().unwrap();
            (scalar(&c), grad)
        });
        assert!(
            (primal.0 - dual.0).abs() < 5e-6 * primal.0,
            "{name}: {} and {}",
            primal.0,
            dual.0
        );
        let expected: Vec<f64> = primal.1.iter().map(|&x| f64::from(x)).collect();
        assert!(relative(&dual.1, &expected) < 1e-5, "{name}");
    }
}

#[test]
fn equal_views_without_spread_are_a_collapse() {
    let z = tensor::<Flex>(&[0.5; 12], 4, 3);
    let terms = vicreg_loss(z.clone(), z, &LossOptions::default());
    assert_eq!(scalar(&terms.embedding_std), 0.0);
    assert_eq!(scalar(&terms.invariance), 0.0);
    assert!((scalar(&terms.variance) - (GAMMA - EPS.sqrt())).abs() < 1e-6);
    assert_eq!(scalar(&terms.covariance), 0.0);
}

#[test]
fn options_are_checked() {
    let good = LossOptions::default();
    assert_eq!(good.validate(2), Ok(()));
    assert_eq!(good.validate(1), Err(LossError::Batch { batch: 1 }));
    let bad = LossOptions {
        covariance: f64::NAN,
        ..good.clone()
    };
    assert!(matches!(
        bad.validate(8),
        Err(LossError::Coefficient { name: "covariance", .. })
    ));
    let negative = LossOptions {
        invariance: -1.0,
        ..good
    };
    assert!(matches!(
        negative.validate(8),
        Err(LossError::Coefficient { name: "invariance", .. })
    ));
    let none = LossOptions {
        invariance: 0.0,
        variance: 0.0,
        covariance: 0.0,
        kind: LossKind::Paper,
    };
    assert_eq!(none.validate(8), Err(LossError::Nothing));
    assert!(serde_json::from_str::<LossOptions>(r#"{"kind": "paper", "varianse": 1}"#).is_err());
}
