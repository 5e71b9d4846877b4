//! Twenty steps of the whole trainer against PyTorch in float64 (tools/fixtures/trajectory.py): same weights, same batches.
//!
//! The recipes lie in tests/fixtures/trajectory; what the feed makes of them is what the script trained on, which digests
//! hold. How close is close enough is PyTorch's own distance in float32, as the script recorded it, and the mistakes that
//! it made on purpose are all farther.

use super::*;
use crate::data::{DecodeOptions, dataset::Columns, dataset::Dataset, sources::shapes::ensure_synthetic};
use crate::feed::view::ViewsOptions;
use crate::feed::{FeedOptions, FeedPlan, OrderOptions, Passes};
use crate::learn::expander::ExpanderOptions;
use crate::learn::ops::tests::hash;
use crate::learn::options::TrainOptions;
use crate::learn::resnet::{ResNetOptions, tests::salt};
use crate::learn::weights::{NamedTensor, export, import};
use burn::backend::{Autodiff, Flex};
use serde::{Deserialize, de::DeserializeOwned};
use std::path::Path;
use std::sync::Arc;

type Ad = Autodiff<Flex>;

/// Ours may be this many times as far from float64 as PyTorch's float32 is, whose sums have other orders.
const TIMES: f64 = 10.0;

/// A mistake must be at least this many times as far as what is tolerated.
const APART: f64 = 10.0;

/// Largest relative differences from PyTorch in float64. Weights and running statistics are held by their displacement from
/// the first values: a norm and a product with hashed values a tensor, as shares of the displacement's norm.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Distances {
    terms: f64,
    grad_norm: f64,
    weights: f64,
    running: f64,
    /// Of whole tensors, displacement by displacement; recorded of PyTorch's float32 alone.
    #[serde(default)]
    whole: f64,
}

impl Distances {
    /// What is held in every case.
    fn named(&self) -> [(&'static str, f64); 4] {
        [
            ("terms", self.terms),
            ("grad_norm", self.grad_norm),
            ("weights", self.weights),
            ("running", self.running),
        ]
    }
}

/// What the script recorded of one recipe.
#[derive(Deserialize)]
struct Case {
    name: String,
    /// Digests of the batches' pixels, by step.
    batches: Vec<String>,
    rates: Vec<f64>,
    /// s, v, c by step.
    terms: Vec<[f64; 3]>,
    grad_norms: Vec<f64>,
    /// By tensor: the displacement's norm, its product with hashed values, and what differences are divided by.
    moved: BTreeMap<String, [f64; 3]>,
    float32: Distances,
    mistakes: BTreeMap<String, Distances>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/trajectory")
}

fn cases() -> Vec<Case> {
    serde_json::from_slice(&std::fs::read(fixtures().join("expected.json")).unwrap()).unwrap()
}

/// A case's recipe; the rooms know their own tables.
struct Recipe(toml::Table);

impl Recipe {
    fn of(case: &str) -> Self {
        let text = std::fs::read_to_string(fixtures().join(format!("{case}.toml"))).unwrap();
        Self(text.parse().unwrap())
    }

    fn table<T: DeserializeOwned>(&self, name: &str) -> T {
        self.0[name].clone().try_into().unwrap()
    }

    fn views(&self) -> ViewsOptions {
        self.table("views")
    }

    fn train(&self) -> TrainOptions {
        self.table("train")
    }

    /// The recipe's feed from its first batch, and the steps of an epoch.
    fn feed(&self, cache: &Path) -> (Feed, u64) {
        let paths = ensure_synthetic(cache, self.0["data"]["path"].as_str().unwrap()).unwrap();
        let columns = Columns {
            image: "image".into(),
            label: "label".into(),
        };
        let dataset = Arc::new(Dataset::open(&paths.train, &columns).unwrap());
        let (train, order) = (self.train(), self.table::<OrderOptions>("order"));
        let plan = FeedPlan {
            passes: Passes::Shuffled { seed: train.seed },
            seed: train.seed,
            batch_size: train.batch_size,
            rank: 0,
            world: 1,
            views: self.views().views().to_vec(),
            decode: DecodeOptions::default(),
            window_bytes: order.window_bytes(),
        };
        let steps_per_epoch = plan.shape(&dataset).unwrap().steps_per_epoch;
        let options = FeedOptions {
            workers: 1,
            ..FeedOptions::default()
        };
        (Feed::start(dataset, plan, &options, 0).unwrap(), steps_per_epoch)
    }

    /// A trainer whose weights are the script's.
    fn trainer(&self, steps_per_epoch: u64) -> Trainer<Ad> {
        let (views, train) = (self.views(), self.train());
        let encoder: ResNetOptions = self.table("encoder");
        let expander: ExpanderOptions = self.table("expander");
        encoder.validate().unwrap();
        let model = VicReg::new(&encoder, &expander, 0, &Default::default());
        let first = export(&model).into_iter().map(start).collect();
        let batch = u64::from(train.batch_size);
        let total = train.total_steps(steps_per_epoch);
        let (schedule, warnings) = Schedule::new(&self.table("schedule"), batch, steps_per_epoch, total).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        let by = Normalize {
            mean: views.mean,
            std: views.std,
        };
        Trainer::new(
            import(model, first).unwrap(),
            Optimizer::new(self.table("optimizer")),
            schedule,
            Method {
                loss: self.table("loss"),
                input: by,
                precision: train.precision,
                micro_batch: None,
            },
            Default::default(),
        )
    }
}

/// The script's first values, bit for bit.
fn start(mut tensor: NamedTensor) -> NamedTensor {
    let inputs = tensor.shape[1..].iter().product::<usize>() as f32;
    let (scale, offset) = match tensor.shape.len() {
        4 => ((6.0 / inputs).sqrt(), 0.0),
        2 => ((3.0 / inputs).sqrt(), 0.0),
        _ if tensor.name.ends_with("running_var") => (0.5, 1.0),
        _ if tensor.name.ends_with("weight") => (0.25, 1.0),
        _ => (0.25, 0.0),
    };
    let values = hash(tensor.values.len(), salt(&tensor.name));
    tensor.values = values.iter().map(|v| v * scale + offset).collect();
    tensor
}

fn largest(differences: impl IntoIterator<Item = f64>) -> f64 {
    // Not f64::max, which passes over NaN.
    differences
        .into_iter()
        .fold(0.0, |m, d| if d.is_nan() || d > m { d } else { m })
}

/// How far the terms of all steps are from the script's, as shares of each term's largest value.
fn terms_apart(steps: &[StepTerms], case: &Case) -> f64 {
    let apart = |term: usize, of: fn(&StepTerms) -> f64| {
        let scale = largest(case.terms.iter().map(|terms| terms[term]));
        let pairs = steps.iter().zip(&case.terms);
        largest(pairs.map(|(ours, theirs)| (of(ours) - theirs[term]).abs() / scale))
    };
    largest([
        apart(0, |s| s.invariance),
        apart(1, |s| s.variance),
        apart(2, |s| s.covariance),
    ])
}

/// How far the displacements of the tensors of one kind are from the script's.
fn moved_apart(model: &VicReg<Ad>, case: &Case, running: bool) -> f64 {
    let last = export(model);
    assert_eq!(last.len(), case.moved.len());
    let of_kind = last.iter().filter(|t| t.name.contains("running_") == running);
    largest(of_kind.flat_map(|tensor| {
        let [norm, product, scale] = case.moved[&tensor.name];
        let first = start(tensor.clone());
        let weights = hash(first.values.len(), salt(&tensor.name) ^ 1);
        let moved = tensor.values.iter().zip(&first.values);
        let moved: Vec<f64> = moved.map(|(&a, &b)| f64::from(a) - f64::from(b)).collect();
        let products = moved.iter().zip(&weights).map(|(&a, &b)| a * f64::from(b));
        let ours = [moved.iter().map(|m| m * m).sum::<f64>().sqrt(), products.sum()];
        [(ours[0] - norm).abs() / scale, (ours[1] - product).abs() / scale]
    }))
}

/// Trains a case and returns the trainer at its end with the terms of all steps.
fn follow(case: &Case) -> (Trainer<Ad>, Vec<StepTerms>) {
    let recipe = Recipe::of(&case.name);
    let cache = tempfile::tempdir().unwrap();
    let (mut feed, steps_per_epoch) = recipe.feed(cache.path());
    let mut trainer = recipe.trainer(steps_per_epoch);
    let side = recipe.views().size as usize;
    let mut steps = Vec::new();
    for (step, digest) in case.batches.iter().enumerate() {
        let batch = feed.next().unwrap().unwrap();
        assert_eq!(
            format!("{:016x}", batch.pixels_digest()),
            *digest,
            "{} step {step}: the batches have changed, or this machine draws other shapes; the numbers mean nothing then",
            case.name
        );
        let uploaded = Uploaded::new(batch.into_bytes(), 2, side, &Default::default());
        steps.push(trainer.train_step(uploaded, true).wait());
    }
    (trainer, steps)
}

/// Holds one case to its fixture and returns what was trained.
fn check(name: &str) -> Trainer<Ad> {
    let case = cases().into_iter().find(|case| case.name == name).unwrap();
    let (trainer, steps) = follow(&case);
    assert_eq!([case.terms.len(), case.grad_norms.len()], [steps.len(); 2]);
    for (step, rate) in steps.iter().zip(&case.rates) {
        assert!(
            (step.lr - rate).abs() <= 1e-12,
            "{name}: rate {} and not {rate}",
            step.lr
        );
    }
    let norms = steps.iter().zip(&case.grad_norms);
    let grad_norm = largest(norms.map(|(step, norm)| (step.watched.unwrap().grad_norm - norm).abs() / norm));
    let ours = Distances {
        terms: terms_apart(&steps, &case),
        grad_norm,
        weights: moved_apart(&trainer.model, &case, false),
        running: moved_apart(&trainer.model, &case, true),
        whole: 0.0,
    };
    eprintln!("{name}: ours {ours:?}\n{name}: PyTorch's float32 {:?}", case.float32);
    for ((what, ours), (_, theirs)) in ours.named().into_iter().zip(case.float32.named()) {
        assert!(
            ours <= TIMES * theirs,
            "{name}: {what} off by {ours:.1e}, PyTorch's float32 by {theirs:.1e}"
        );
    }
    trainer
}

#[test]
fn official_loss_and_lars_follow_pytorch() {
    check("official");
}

/// ResNet-18 at its full width: 90 million inputs of rectifiers in 20 steps, of which a few come within rounding of zero and part
/// f32 from f64, in PyTorch too.
#[test]
fn the_full_width_follows_pytorch() {
    check("wide");
}

#[test]
fn paper_loss_and_solo_learns_lars_follow_pytorch() {
    check("solo");
}

#[test]
fn clip_last_bias_and_wide_padding_follow_pytorch() {
    check("solo-clip");
}

/// The narrow network is there as a whole: each value counts, in tensors laid end to end in the order of their names.
#[test]
fn every_tensor_of_a_narrow_network_follows_pytorch() {
    let trainer = check("narrow");
    let case = cases().into_iter().find(|case| case.name == "narrow").unwrap();
    let bytes = std::fs::read(fixtures().join("narrow.bin")).unwrap();
    let mut theirs = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    let mut last = export(&trainer.model);
    last.sort_by(|a, b| a.name.cmp(&b.name));
    for tensor in &last {
        let squares = tensor
            .values
            .iter()
            .map(|&ours| (f64::from(ours) - f64::from(theirs.next().unwrap())).powi(2));
        let apart = squares.sum::<f64>().sqrt() / case.moved[&tensor.name][2];
        assert!(apart <= TIMES * case.float32.whole, "{}: {apart:.1e}", tensor.name);
    }
    assert_eq!(theirs.next(), None);
}

/// What is tolerated would not hide a mistake: each that the script made is far out in one measure at least.
#[test]
fn tolerances_tell_mistakes_apart() {
    for case in cases() {
        assert!(!case.mistakes.is_empty(), "{}", case.name);
        for (mistake, found) in &case.mistakes {
            let pairs = found.named().into_iter().zip(case.float32.named());
            let times = largest(pairs.map(|((_, far), (_, rounding))| far / (TIMES * rounding)));
            assert!(
                times > APART,
                "{}: {mistake} is only {times:.1} tolerances off",
                case.name
            );
        }
        // And the trajectory goes somewhere.
        let (first, last) = (case.terms[0], case.terms[case.terms.len() - 1]);
        assert!(
            (0..3).any(|term| (last[term] / first[term] - 1.0).abs() > 0.2),
            "{first:?} {last:?}"
        );
    }
}
