//! The expander against PyTorch's `nn.Sequential` (tools/fixtures/expander.py): names, values, gradients, running statistics.

use super::*;
use burn::backend::{Autodiff, Flex};
use std::collections::BTreeMap;

type Ad = Autodiff<Flex>;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    widths: Vec<usize>,
    last_bias: bool,
    start: Vec<Named>,
    x: [Vec<f32>; 2],
    pull: Vec<f32>,
    first: Vec<f64>,
    gradients: BTreeMap<String, Vec<f64>>,
    input_gradient: Vec<f64>,
    running: BTreeMap<String, Vec<f64>>,
    eval: Vec<f64>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

fn cases() -> Vec<Case> {
    let fixture: Fixture = serde_json::from_str(include_str!("../../../tests/fixtures/expander.json")).unwrap();
    fixture.cases
}

/// Walks a module by name: notes shapes and values, gradients if given, and puts in new values if given.
#[derive(Default)]
struct Walk<'a> {
    path: Vec<String>,
    grads: Option<&'a <Ad as AutodiffBackend>::Gradients>,
    put: BTreeMap<String, Vec<f32>>,
    seen: Vec<(String, Vec<usize>, Vec<f32>)>,
    gradients: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor<Ad> for Walk<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Ad, D>>) {
        let name = self.path.join(".");
        if let Some(grad) = self.grads.and_then(|grads| param.grad(grads)) {
            self.gradients.insert(name.clone(), grad.to_data().iter().collect());
        }
        self.seen
            .push((name, param.dims().to_vec(), param.to_data().iter().collect()));
    }
}

impl ModuleMapper<Ad> for Walk<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Ad, D>>) -> Param<Tensor<Ad, D>> {
        let values = self.put.remove(&self.path.join(".")).unwrap();
        let trained = param.is_require_grad();
        param.map(|old| Tensor::from_data(TensorData::new(values, old.dims()), &old.device()).set_require_grad(trained))
    }
}

fn rows(values: &[f32]) -> Tensor<Ad, 2> {
    Tensor::from_data(
        TensorData::new(values.to_vec(), [6, values.len() / 6]),
        &Default::default(),
    )
}

fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (f, e) in found.iter().zip(expected) {
        assert!(
            (f64::from(*f) - e).abs() < 2e-5 * e.abs().max(1.0),
            "{what}: {f} for {e}"
        );
    }
}

fn values<const D: usize>(x: &Tensor<Ad, D>) -> Vec<f32> {
    x.to_data().iter().collect()
}

#[test]
fn it_is_pytorchs_sequential() {
    for case in cases() {
        let options = ExpanderOptions {
            dims: case.widths[1..].to_vec(),
            hidden_bias: true,
            last_bias: case.last_bias,
        };
        options.validate().unwrap();
        let expander = Expander::<Ad>::new(&options, case.widths[0], 1, &mut 0, &Default::default());

        let mut walk = Walk::default();
        expander.visit(&mut walk);
        let found: Vec<_> = walk
            .seen
            .iter()
            .map(|(name, shape, _)| (name.clone(), shape.clone()))
            .collect();
        let expected: Vec<_> = case.start.iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
        assert_eq!(found, expected);

        let put = case.start.iter().map(|p| (p.name.clone(), p.values.clone())).collect();
        let expander = expander.map(&mut Walk {
            put,
            ..Default::default()
        });

        let x = [rows(&case.x[0]).require_grad(), rows(&case.x[1])];
        let mut stats = [vec![], vec![]];
        let first = expander.forward(x[0].clone(), &mut Mode::Train(&mut stats[0]));
        let second = expander.forward(x[1].clone(), &mut Mode::Train(&mut stats[1]));
        assert_close(&values(&first), &case.first, "first view");

        let grads = ((first + second * 2.0) * rows(&case.pull)).sum().backward();
        let gradient: Vec<f32> = x[0].grad(&grads).unwrap().to_data().iter().collect();
        assert_close(&gradient, &case.input_gradient, "input gradient");
        let mut walk = Walk {
            grads: Some(&grads),
            ..Default::default()
        };
        expander.visit(&mut walk);
        assert_eq!(walk.gradients.len(), case.gradients.len());
        for (name, expected) in &case.gradients {
            assert_close(&walk.gradients[name], expected, name);
        }

        let expander = expander.update_running(&stats[0]).update_running(&stats[1]);
        let mut walk = Walk::default();
        expander.visit(&mut walk);
        let running: Vec<_> = walk.seen.iter().filter(|(name, ..)| name.contains("running")).collect();
        assert_eq!(running.len(), case.running.len());
        for (name, _, found) in running {
            assert_close(found, &case.running[name], name);
        }
        let y = expander.forward(rows(&case.x[0]), &mut Mode::Eval);
        assert_close(&values(&y), &case.eval, "evaluation");
    }
}

#[test]
fn initial_weights_have_pytorchs_law_and_no_two_share_their_draws() {
    let options = ExpanderOptions {
        dims: vec![64, 64],
        hidden_bias: true,
        last_bias: true,
    };
    let make = |seed, start: u64| {
        let mut position = start;
        let mut walk = Walk::default();
        Expander::<Ad>::new(&options, 64, seed, &mut position, &Default::default()).visit(&mut walk);
        assert_eq!(position, start + 4);
        walk.seen
    };
    let drawn = make(1, 0);
    let of = |name: &str| drawn.iter().find(|p| p.0 == name).unwrap().2.clone();
    let weight = of("0.weight");
    let bound = 1.0 / 8.0f32;
    let variance = weight.iter().map(|w| w * w).sum::<f32>() / weight.len() as f32;
    assert!(weight.iter().all(|w| w.abs() <= bound));
    assert!(
        (variance - bound * bound / 3.0).abs() < 0.05 * bound * bound / 3.0,
        "{variance}"
    );
    assert_ne!(weight[..64], weight[64..128], "rows differ");
    assert_ne!(weight, of("3.weight"));
    assert_ne!(of("0.bias"), weight[..64]);
    assert_eq!(make(1, 0)[0], drawn[0]);
    assert_ne!(make(2, 0)[0], drawn[0]);
    assert_ne!(make(1, 9)[0], drawn[0]);
}

#[test]
fn a_record_restores_it() {
    let options = ExpanderOptions {
        dims: vec![5, 4],
        ..Default::default()
    };
    let device = Default::default();
    let [one, two] = [1, 2].map(|seed| Expander::<Ad>::new(&options, 3, seed, &mut 0, &device));
    let two = two.load_record(one.clone().into_record());
    let [mut a, mut b] = [Walk::default(), Walk::default()];
    one.visit(&mut a);
    two.visit(&mut b);
    assert_eq!(a.seen, b.seen);
    assert_eq!(Module::num_params(&one), (5 * 3 + 5) + 4 * 5 + 4 * 5);
    assert!(one.to_string().contains("Expander"));
}

#[test]
fn options_are_checked() {
    let empty = ExpanderOptions {
        dims: vec![],
        ..Default::default()
    };
    assert_eq!(empty.validate(), Err(ExpanderError::Empty));
    let zero = ExpanderOptions {
        dims: vec![8, 0],
        ..Default::default()
    };
    assert_eq!(zero.validate(), Err(ExpanderError::Width { width: 0 }));
    assert_eq!(ExpanderOptions::default().validate(), Ok(()));
}
