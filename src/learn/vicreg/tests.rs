//! The loss against PyTorch in float64 (tools/fixtures/loss.py), against autodiff and finite differences in float64, and at its limits.

use super::closed_form::{Form, with_form};
use super::*;
use crate::data::rng::{Domain, Philox};
use crate::learn::ops::cast;
use burn::backend::{Autodiff, Flex};
use burn::tensor::{DType, TensorData, activation::relu};

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

/// The gradient in plain loops over f64: with Zc centred, dL/dZ = 2 lambda (Z - Z') / (N D)
/// - mu' Zc / (D (N-1) std) where std < gamma + nu 4/D (G Zc / (N-1)^2 - Var Zc / (N-1)), G = Zc Zc^T.
fn by_hand(z: &[f64], other: &[f64], n: usize, d: usize, options: &LossOptions) -> Vec<f64> {
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

/// The loss as the paper writes it, left to burn's autodiff: what the closed form is tested against. In the type of `z`.
fn plain<B: Backend>(z: Tensor<B, 2>, other: Tensor<B, 2>, options: &LossOptions) -> Tensor<B, 1> {
    let [n, d] = z.dims();
    let s = (z.clone() - other.clone()).square().sum() / (n * d) as f64;
    let branch = |z: Tensor<B, 2>| {
        let centred = z.clone() - z.sum_dim(0) / n as f64;
        let var = centred.clone().square().sum_dim(0) / (n - 1) as f64;
        let v = relu(-(var + EPS).sqrt() + GAMMA).sum() / d as f64;
        let cov = centred.clone().transpose().matmul(centred) / (n - 1) as f64;
        let off = -cast(Tensor::<B, 2>::eye(d, &cov.device()), cov.dtype()) + 1.0;
        (v, (cov * off).square().sum() / d as f64)
    };
    let ((va, ca), (vb, cb)) = (branch(z), branch(other));
    let share = if options.kind == LossKind::Official { 0.5 } else { 1.0 };
    s * options.invariance + (va + vb) * (share * options.variance) + (ca + cb) * options.covariance
}

fn wide<B: Backend>(values: &[f64], n: usize, d: usize) -> Tensor<B, 2> {
    Tensor::from_data(
        TensorData::new(values.to_vec(), [n, d]),
        (&Default::default(), DType::F64),
    )
}

fn f64s<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f64> {
    x.into_data().to_vec().unwrap()
}

/// Value and both gradients in f64, by the closed form in the given matrix.
fn closed_f64(a: &[f64], b: &[f64], n: usize, d: usize, options: &LossOptions, form: Form) -> (f64, [Vec<f64>; 2]) {
    let (terms, gradients) = with_form::<Flex>(wide(a, n, d), wide(b, n, d), options, true, form);
    (f64s(terms.loss)[0], gradients.unwrap().map(f64s))
}

/// The same by autodiff of the formulas.
fn plain_f64(a: &[f64], b: &[f64], n: usize, d: usize, options: &LossOptions) -> (f64, [Vec<f64>; 2]) {
    let [za, zb] = [a, b].map(|x| wide::<Ad>(x, n, d).require_grad());
    let loss = plain(za.clone(), zb.clone(), options);
    let grads = loss.backward();
    (f64s(loss)[0], [za, zb].map(|z| f64s(z.grad(&grads).unwrap())))
}

fn worst(found: &[f64], expected: &[f64]) -> f64 {
    let scale = expected.iter().fold(f64::MIN_POSITIVE, |m, x| m.max(x.abs()));
    let off = found.iter().zip(expected).map(|(f, e)| (f - e).abs());
    off.fold(0.0, f64::max) / scale
}

/// Two embeddings that are near each other: (name, N, D, Z, Z').
type Pair = (&'static str, usize, usize, Vec<f64>, Vec<f64>);

fn draw(rng: &mut Philox) -> f64 {
    // Irwin-Hall: near enough to normal.
    (0..12).map(|_| rng.uniform_in(0.0, 1.0)).sum::<f64>() - 6.0
}

/// N < D, N > D, the bound, two samples, dead dimensions, huge and tiny values, one branch collapsed.
fn pairs() -> Vec<Pair> {
    let pair = |name, n: usize, d: usize, scale: f64| {
        let mut rng = Philox::new(11, Domain::Init, n as u32, d as u64, 0);
        let scales: Vec<f64> = (0..d).map(|_| scale * (0.2 + 1.5 * draw(&mut rng).abs())).collect();
        let a: Vec<f64> = (0..n * d).map(|at| scales[at % d] * (draw(&mut rng) + 0.3)).collect();
        let b: Vec<f64> = a
            .iter()
            .enumerate()
            .map(|(at, a)| a + 0.2 * scales[at % d] * draw(&mut rng))
            .collect();
        (name, n, d, a, b)
    };
    let mut pairs = vec![
        pair("wide", 5, 19, 1.0),
        pair("tall", 23, 7, 1.0),
        pair("bound", 6, 10, 1.0),
        pair("below the bound", 6, 9, 1.0),
        pair("square", 12, 12, 1.0),
        pair("two samples", 2, 6, 1.0),
        pair("one dimension", 9, 1, 1.0),
        pair("huge", 7, 20, 1e15),
        pair("tiny", 7, 20, 1e-12),
        pair("constant columns", 8, 20, 1.0),
        pair("one branch collapsed", 8, 20, 1.0),
    ];
    for at in 0..8 {
        let columns = &mut pairs[9];
        columns.3[at * 20 + 3] = 0.75;
        columns.4[at * 20 + 3] = 0.75;
        columns.4[at * 20 + 11] = -2.5;
    }
    pairs[10].4.fill(0.25);
    pairs
}

const BOTH: [LossKind; 2] = [LossKind::Official, LossKind::Paper];

fn uneven(kind: LossKind) -> LossOptions {
    LossOptions {
        kind,
        invariance: 7.0,
        variance: 31.0,
        covariance: 2.5,
    }
}

/// In f64 both matrices give what loops by hand give, and what autodiff gives.
#[test]
fn closed_form_is_exact_in_float64() {
    for (name, n, d, a, b) in pairs() {
        for kind in BOTH {
            let options = uneven(kind);
            let (loss, gradients) = plain_f64(&a, &b, n, d, &options);
            for form in [Form::Primal, Form::Dual] {
                let (found, closed) = closed_f64(&a, &b, n, d, &options, form);
                assert!(
                    (found / loss - 1.0).abs() < 1e-12,
                    "{name} {form:?}: {found} for {loss}"
                );
                let hand = [by_hand(&a, &b, n, d, &options), by_hand(&b, &a, n, d, &options)];
                for ((found, expected), hand) in closed.iter().zip(&gradients).zip(&hand) {
                    let (off, off_hand) = (worst(found, expected), worst(found, hand));
                    assert!(
                        off_hand < 1e-13,
                        "{name} {kind:?} {form:?}: gradient off by {off_hand:e}"
                    );
                    // burn's autodiff rounds its own constants to f32, such as the 1/N of a division.
                    assert!(off < 2e-7, "{name} {kind:?} {form:?}: gradient off autodiff by {off:e}");
                }
            }
        }
    }
}

/// Finite differences know nothing of the formulas. Huge and tiny values have no step that fits both terms.
#[test]
fn closed_form_is_the_slope_in_float64() {
    for (name, n, d, a, b) in pairs() {
        if ["huge", "tiny"].contains(&name) {
            continue;
        }
        let options = uneven(LossKind::Official);
        let (_, [gradient, _]) = closed_f64(&a, &b, n, d, &options, Form::of(n, d));
        let value = |at: usize, step: f64| {
            let mut moved = a.clone();
            moved[at] += step;
            closed_f64(&moved, &b, n, d, &options, Form::of(n, d)).0
        };
        let slopes: Vec<f64> = (0..n * d)
            .map(|at| (value(at, 1e-5) - value(at, -1e-5)) / 2e-5)
            .collect();
        let off = worst(&gradient, &slopes);
        assert!(off < 1e-7, "{name}: {off:e}");
    }
}

/// The graph's operation hands on the same gradient, scaled by what comes from above.
#[test]
fn the_operation_scales_its_gradient() {
    let (_, n, d, a, b) = pairs().swap_remove(0);
    let options = uneven(LossKind::Paper);
    let za = wide::<Ad>(&a, n, d).require_grad();
    let loss = vicreg_loss(za.clone(), wide(&b, n, d), &options).loss;
    let grads = (loss * 3.0).backward();
    let tripled: Vec<f64> = closed_f64(&a, &b, n, d, &options, Form::of(n, d)).1[0]
        .iter()
        .map(|g| 3.0 * g)
        .collect();
    assert!(worst(&f64s(za.grad(&grads).unwrap()), &tripled) < 1e-14);
}

/// Embeddings `[N, D]` of covariance near I: an orthonormal basis of cosines without the constant, sqrt(N-1) a column. Their off-diagonals
/// are nothing but rounding, the dual's worst case where D is near N.
fn whitened(n: usize, d: usize) -> Vec<f64> {
    let column = |i: usize, j: usize| {
        let wave = (std::f64::consts::PI * (i as f64 + 0.5) * (j % (n - 1) + 1) as f64 / n as f64).cos();
        wave * (2.0 / n as f64).sqrt() * ((n - 1) as f64).sqrt()
    };
    (0..n * d).map(|at| column(at / d, at % d)).collect()
}

/// The rule that chooses the matrix: where it takes the dual, f32 keeps at least as many digits as it needs; where the dual would
/// lose them (whitened, D near N), it does not take it.
#[test]
fn the_dual_is_taken_only_where_it_keeps_its_digits() {
    let options = LossOptions {
        invariance: 0.0,
        variance: 0.0,
        ..Default::default()
    };
    let off = |n: usize, d: usize, form: Form| {
        let noise = |at: usize| 0.001 * draw(&mut Philox::new(5, Domain::Init, d as u32, at as u64, 0));
        let z: Vec<f64> = whitened(n, d).iter().enumerate().map(|(at, z)| z + noise(at)).collect();
        let narrow: Vec<f32> = z.iter().map(|&z| z as f32).collect();
        let z: Vec<f64> = narrow.iter().map(|&z| z.into()).collect();
        let (loss, [exact, _]) = closed_f64(&z, &z, n, d, &options, Form::Primal);
        let z = tensor::<Flex>(&narrow, n, d);
        let (terms, gradients) = with_form(z.clone(), z, &options, true, form);
        let [gradient, _] = gradients.unwrap().map(|g| g.into_data().to_vec::<f32>().unwrap());
        let value = (scalar(&terms.loss) / loss - 1.0).abs();
        (value, relative(&gradient, &exact))
    };
    let n = 192;
    assert_eq!(
        (Form::of(n, 2 * (n - 1)), Form::of(n, 2 * (n - 1) - 1)),
        (Form::Dual, Form::Primal)
    );
    // The bound itself: each direction twice.
    let (value, gradient) = off(n, 2 * (n - 1), Form::Dual);
    assert!(value < 1e-6 && gradient < 1e-5, "{value:e} {gradient:e}");
    // What the loss is made of is near rounding itself: the gradient has no more digits in either form.
    let (value, gradient) = off(n, n - 1, Form::of(n, n - 1));
    assert!(value < 1e-5 && gradient < 3e-4, "{value:e} {gradient:e}");
    let (value, _) = off(n, n - 1, Form::Dual);
    assert!(value > 1e-2, "no longer the worst case: {value:e}");
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
