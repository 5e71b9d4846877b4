//! Every rule against PyTorch or an independent LARS in float64 (tools/fixtures/optim.py), and a resumed state bit for bit.

use super::*;
use crate::learn::weights::NamedTensor;
use burn::backend::{Autodiff, Flex};
use burn::module::{Module, ParamId};
use burn::tensor::TensorData;
use serde::Deserialize;

type Ad = Autodiff<Flex>;
type Values = BTreeMap<String, Vec<f64>>;

/// Two weights, a bias, a weight that never has a gradient, one that is zero at first.
#[derive(Module, Debug)]
struct Toy<B: Backend> {
    weight: Param<Tensor<B, 2>>,
    bias: Param<Tensor<B, 1>>,
    still: Param<Tensor<B, 2>>,
    zero: Param<Tensor<B, 2>>,
}

#[derive(Deserialize)]
struct Fixture {
    start: Values,
    gradients: Vec<Values>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    rates: Vec<f64>,
    after: Vec<Values>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../../../tests/fixtures/optim.json")).unwrap()
}

fn tensor<B: Backend, const D: usize>(values: &[f64], shape: [usize; D]) -> Tensor<B, D> {
    let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

fn toy(start: &Values) -> Toy<Ad> {
    fn param<const D: usize>(values: &[f64], shape: [usize; D]) -> Param<Tensor<Ad, D>> {
        Param::initialized(ParamId::new(), tensor(values, shape).require_grad())
    }
    Toy {
        weight: param(&start["weight"], [3, 4]),
        bias: param(&start["bias"], [4]),
        still: param(&start["still"], [2, 3]),
        zero: param(&start["zero"], [2, 2]),
    }
}

fn gradients(toy: &Toy<Ad>, values: &Values) -> GradientsParams {
    let mut grads = GradientsParams::new();
    grads.register::<Flex, 2>(toy.weight.id, tensor(&values["weight"], [3, 4]));
    grads.register::<Flex, 1>(toy.bias.id, tensor(&values["bias"], [4]));
    grads.register::<Flex, 2>(toy.still.id, tensor(&values["still"], [2, 3]));
    grads.register::<Flex, 2>(toy.zero.id, tensor(&values["zero"], [2, 2]));
    grads
}

fn values(toy: &Toy<Ad>) -> [(&'static str, Vec<f32>); 4] {
    let vec = |data: TensorData| data.to_vec::<f32>().unwrap();
    [
        ("weight", vec(toy.weight.to_data())),
        ("bias", vec(toy.bias.to_data())),
        ("still", vec(toy.still.to_data())),
        ("zero", vec(toy.zero.to_data())),
    ]
}

/// Runs a case of the fixture; every value of every step within 1e-6 of the largest one or of 1.
fn assert_case(name: &str, options: OptimizerOptions) {
    options.validate().unwrap();
    let fixture = fixture();
    let case = &fixture.cases[name];
    assert!(case.after.len() >= 5 && case.after.len() == case.rates.len());
    let mut optimizer = Optimizer::<Ad>::new(options);
    let mut model = toy(&fixture.start);
    for (step, (&lr, expected)) in case.rates.iter().zip(&case.after).enumerate() {
        let grads = gradients(&model, &fixture.gradients[step]);
        model = optimizer.step(lr, model, grads, None);
        for (field, found) in values(&model) {
            for (f, e) in found.iter().zip(&expected[field]) {
                let tolerance = 1e-6 * e.abs().max(1.0);
                assert!(
                    (f64::from(*f) - e).abs() < tolerance,
                    "{name}, step {step}, {field}: {f} for {e}"
                );
            }
        }
    }
}

fn lars(variant: LarsVariant, trust: f64, clip: bool) -> OptimizerOptions {
    OptimizerOptions {
        variant,
        trust,
        clip,
        weight_decay: 1e-2,
        ..Default::default()
    }
}

fn sgd(momentum: f64, weight_decay: f64) -> OptimizerOptions {
    OptimizerOptions {
        kind: OptimizerKind::Sgd,
        momentum,
        weight_decay,
        ..Default::default()
    }
}

fn adamw() -> OptimizerOptions {
    OptimizerOptions {
        kind: OptimizerKind::Adamw,
        weight_decay: 5e-2,
        ..Default::default()
    }
}

#[test]
fn lars_official() {
    assert_case("lars-official", lars(LarsVariant::Official, 0.1, false));
}

#[test]
fn lars_solo() {
    assert_case("lars-solo", lars(LarsVariant::Solo, 0.02, false));
    assert_case("lars-solo-clip", lars(LarsVariant::Solo, 0.02, true));
}

#[test]
fn sgd_is_pytorchs() {
    assert_case("sgd", sgd(0.9, 1e-2));
    assert_case("sgd-plain", sgd(0.0, 0.0));
}

#[test]
fn adamw_is_pytorchs() {
    assert_case("adamw", adamw());
}

#[test]
fn a_loaded_state_continues_bit_for_bit() {
    let fixture = fixture();
    let run = |optimizer: &mut Optimizer<Ad>, model: Toy<Ad>, steps: std::ops::Range<usize>| {
        steps.fold(model, |model, step| {
            let grads = gradients(&model, &fixture.gradients[step]);
            optimizer.step(0.1, model, grads, None)
        })
    };
    for options in [lars(LarsVariant::Official, 0.1, false), sgd(0.9, 1e-2), adamw()] {
        let mut whole = Optimizer::<Ad>::new(options.clone());
        let model = run(&mut whole, toy(&fixture.start), 0..3);

        // A new process: other parameter ids, the state from its arrays.
        let twin = toy(&values(&model)
            .map(|(name, v)| (name.to_owned(), v.iter().map(|&x| x.into()).collect()))
            .into());
        let mut resumed = Optimizer::<Ad>::new(options.clone());
        resumed.load_state(&twin, whole.state()).unwrap();

        let (model, twin) = (run(&mut whole, model, 3..6), run(&mut resumed, twin, 3..6));
        assert_eq!(values(&model), values(&twin), "{:?}", options.kind);
        assert_eq!(whole.state(), resumed.state(), "{:?}", options.kind);
    }
}

#[test]
fn loading_is_strict() {
    let fixture = fixture();
    let model = toy(&fixture.start);
    let mut optimizer = Optimizer::<Ad>::new(adamw());
    assert_eq!(optimizer.load_state(&model, vec![]), Ok(()));
    let grads = gradients(&model, &fixture.gradients[0]);
    let model = optimizer.step(0.1, model, grads, None);
    let good = optimizer.state();
    assert_eq!(good.len(), 12);
    assert_eq!(optimizer.load_state(&model, good.clone()), Ok(()));

    let mut load = |change: &dyn Fn(&mut Vec<NamedTensor>)| {
        let mut entries = good.clone();
        change(&mut entries);
        let result = optimizer.load_state(&model, entries);
        assert_eq!(optimizer.state(), good, "a refused state changes nothing");
        result.unwrap_err()
    };
    let bias = |entries: &[NamedTensor], what: &str| {
        entries
            .iter()
            .position(|entry| entry.name == format!("bias.{what}"))
            .unwrap()
    };
    let missing = load(&|entries| {
        let at = bias(entries, "step");
        entries.remove(at);
    });
    assert_eq!(
        missing,
        StateError::Missing {
            name: "bias.step".into()
        }
    );
    let unknown = load(&|entries| {
        let mut more = entries[0].clone();
        more.name = "tail.exp_avg".into();
        entries.push(more);
    });
    assert_eq!(
        unknown,
        StateError::Unknown {
            name: "tail.exp_avg".into()
        }
    );
    let shape = load(&|entries| {
        let at = bias(entries, "exp_avg");
        entries[at].shape = vec![2, 2];
    });
    assert!(matches!(shape, StateError::Shape { .. }), "{shape}");
    let step = load(&|entries| {
        let at = bias(entries, "step");
        entries[at].values = vec![1.5];
    });
    assert!(matches!(step, StateError::Step { .. }), "{step}");

    let sgd_state = {
        let mut other = Optimizer::<Ad>::new(sgd(0.9, 0.0));
        let grads = gradients(&model, &fixture.gradients[0]);
        other.step(0.1, model.clone(), grads, None);
        other.state()
    };
    assert!(matches!(
        optimizer.load_state(&model, sgd_state),
        Err(StateError::Missing { .. })
    ));
}

#[test]
fn a_parameter_without_a_gradient_stays() {
    let fixture = fixture();
    let model = toy(&fixture.start);
    let before = values(&model);
    let mut optimizer = Optimizer::<Ad>::new(adamw());
    let model = optimizer.step(0.1, model, GradientsParams::new(), None);
    assert_eq!(before, values(&model));
    assert!(optimizer.state().is_empty());
}
