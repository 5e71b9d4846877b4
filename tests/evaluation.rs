//! `eval.every_epochs`: a run that is judged while it trains is the same run, and its evaluations survive interruptions.

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use common::{World, text};
use vicreg_stream::cli::recipe::LoadedRecipe;
use vicreg_stream::data::Dataset;
use vicreg_stream::feed::{Feed, FeedPlan, Passes};
use vicreg_stream::learn::backend::{Cpu, CpuAd};
use vicreg_stream::learn::input::Normalize;
use vicreg_stream::learn::model::VicReg;
use vicreg_stream::learn::optim::Optimizer;
use vicreg_stream::learn::resnet::ResNet;
use vicreg_stream::learn::run::{Evaluation, Identity, Metrics, RunFolder};
use vicreg_stream::learn::schedule::Schedule;
use vicreg_stream::learn::trainer::{LoopPlan, Method, Observer, Trainer};

const JUDGED: [&str; 2] = ["--set", "eval.every_epochs=1"];

impl World {
    fn train(&self, run: &str, more: &[&str]) -> std::process::Output {
        let args = [&["train", "tiny.toml", "--out", run][..], more].concat();
        let output = self.command(&args).output().unwrap();
        assert!(output.status.success(), "{args:?}\n{}", text(&output));
        output
    }

    fn evaluations(&self, run: &str) -> String {
        std::fs::read_to_string(self.path(run).join("evaluations.jsonl")).unwrap()
    }
}

#[test]
fn evaluation_writes_its_lines_and_leaves_no_trace_in_the_run() {
    let world = World::new();
    world.train("plain", &[]);
    let output = world.train("judged", &JUDGED);
    assert!(!world.path("plain/evaluations.jsonl").exists());
    assert_eq!(world.metrics("judged"), world.metrics("plain"));
    assert_eq!(world.weights("judged", 24), world.weights("plain", 24));

    let lines: Vec<serde_json::Value> = world
        .evaluations("judged")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line["step"], 12 * (index + 1));
        assert_eq!(line["epoch"], (index + 1) as f64);
    }
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.matches("evaluated at epoch").count(), 2, "{stderr}");

    // The last line is what `eval` says of the run's encoder.
    for probe in ["knn", "linear"] {
        let of_run: serde_json::Value = serde_json::from_str(&world.ok(&["eval", probe, "judged", "--json"])).unwrap();
        assert_eq!(of_run["trained"], lines[1][probe], "{probe}: {of_run}");
        assert_eq!(
            (&of_run["train_images"], &of_run["test_images"]),
            (&192.into(), &64.into())
        );
        assert!((0.0..=1.0).contains(&of_run["untrained"].as_f64().unwrap()), "{of_run}");
    }
    let person = world.ok(&["eval", "linear", "judged"]);
    assert!(person.contains("trained") && person.contains("untrained"), "{person}");
}

#[test]
fn an_interrupted_run_has_the_lines_of_an_uninterrupted_one() {
    let world = World::new();
    world.train("whole", &JUDGED);
    // Before, at and after the epoch's last step; other workers too.
    for stop in ["11", "12", "13"] {
        let run = format!("stopped-{stop}");
        world.train(&run, &[&JUDGED[..], &["--max-steps", stop]].concat());
        world.train(&run, &[&JUDGED[..], &["--set", "feed.workers=3"]].concat());
        assert_eq!(world.evaluations(&run), world.evaluations("whole"), "stopped at {stop}");
        assert_eq!(world.weights(&run, 24), world.weights("whole", 24));
    }
    // As a crash after the evaluation and before its checkpoint leaves it; the last line torn.
    world.train("crashed", &[&JUDGED[..], &["--max-steps", "7"]].concat());
    let first = world.evaluations("whole").lines().next().unwrap().to_owned();
    std::fs::write(
        world.path("crashed/evaluations.jsonl"),
        format!("{first}\n{{\"step\":2"),
    )
    .unwrap();
    world.train("crashed", &JUDGED);
    assert_eq!(world.evaluations("crashed"), world.evaluations("whole"));
}

#[test]
fn where_nothing_can_be_judged_the_run_says_so_once_and_goes_on() {
    let world = World::new();
    unlabelled_set(&world);
    let output = world.train("run", &[&JUDGED[..], &["--data", "set", "--max-steps", "7"]].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        stderr.matches("warning: no evaluation while training").count(),
        1,
        "{stderr}"
    );
    assert!(stderr.contains("has no labels"), "{stderr}");
    assert!(!world.path("run/evaluations.jsonl").exists());

    // A probe that cannot judge is no end of the run either.
    let output = world.train(
        "k",
        &[&JUDGED[..], &["--set", "eval.k=500", "--max-steps", "13"]].concat(),
    );
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("warning: no evaluation at step 12: k-NN: k is 500, but it must be 1 to 192"),
        "{stderr}"
    );
    assert_eq!(world.metrics("k").len(), 13);
}

/// 64 of the synthetic images, without their labels: four steps an epoch.
fn unlabelled_set(world: &World) {
    use vicreg_stream::data::shard::{Labels, ShardWriter};
    let group = world.synthetic_images();
    std::fs::create_dir(world.path("set")).unwrap();
    let mut shard = ShardWriter::create(&world.path("set/part-0.parquet"), &Labels::None, 32).unwrap();
    for row in 0..64 {
        shard.push(group.image(row).unwrap(), None, None).unwrap();
    }
    shard.finish().unwrap();
}

/// The loop itself, with an observer that takes its time: when it is asked, and that its time is nobody's step.
#[test]
fn the_loop_asks_at_the_last_step_of_an_epoch_and_does_not_count_the_answers_time() {
    const PATIENCE: Duration = Duration::from_secs(4);
    struct Slow {
        asked: Vec<u64>,
        logged: Vec<Metrics>,
    }
    impl Observer<CpuAd> for Slow {
        fn logged(&mut self, metrics: &Metrics) {
            self.logged.push(metrics.clone());
        }
        fn stepped(&mut self, _step: u64) {}
        fn saved(&mut self, _step: u64, _path: &std::path::Path) {}
        fn epoch_ended(&mut self, step: u64, encoder: &ResNet<Cpu>) -> Option<Evaluation> {
            assert_eq!(self.logged.last().unwrap().step, step, "the metrics are in");
            assert!(encoder.representation_dim() > 0);
            self.asked.push(step);
            std::thread::sleep(PATIENCE);
            None
        }
    }
    let world = World::new();
    world.ok(&["ingest", "synthetic:shapes?train=192&test=64", "--out", "set"]);
    let recipe = LoadedRecipe::load(&world.path("tiny.toml"), None, &[]).unwrap().recipe;
    let data = Arc::new(Dataset::open(&world.path("set"), &recipe.data.columns()).unwrap());
    let feed = FeedPlan {
        passes: Passes::Shuffled { seed: 0 },
        seed: 0,
        batch_size: 16,
        rank: 0,
        world: 1,
        views: recipe.views.views().to_vec(),
        decode: recipe.decode.clone(),
        window_bytes: 1 << 20,
    };
    let mut feed = Feed::start(data, feed, &recipe.feed, 0).unwrap();
    let mut trainer = Trainer::<CpuAd>::new(
        VicReg::new(&recipe.encoder, &recipe.expander, 0, &Default::default()),
        Optimizer::new(recipe.optimizer.clone()),
        Schedule::new(&recipe.schedule, 16, 12, 24).unwrap().0,
        Method {
            loss: recipe.loss.clone(),
            input: Normalize {
                mean: recipe.views.mean,
                std: recipe.views.std,
            },
            precision: recipe.train.precision,
            micro_batch: None,
        },
        Default::default(),
    );
    let identity = Identity {
        recipe: serde_json::Value::Null,
        data_fingerprint: String::new(),
        augmentation: 0,
        init: None,
        program: String::new(),
    };
    let plan = LoopPlan {
        total_steps: 24,
        stop_at: 14,
        steps_per_epoch: 6,
        batch_size: 16,
        log_every: 1,
        checkpoint_every: 100,
        evaluate_every: 6,
        keep_checkpoints: 1,
        on_collapse: Default::default(),
        encoder_metadata: Default::default(),
    };
    let mut run = RunFolder::open(&world.path("run")).unwrap();
    let mut observer = Slow {
        asked: Vec::new(),
        logged: Vec::new(),
    };
    let stop = AtomicBool::new(false);
    trainer
        .run(&mut feed, &mut run, &identity, &plan, &stop, &mut observer)
        .unwrap();
    assert_eq!(observer.asked, [6, 12]);
    for line in &observer.logged {
        assert!(line.step_ms < 1e3 * PATIENCE.as_secs_f64(), "{line:?}");
        assert!(line.step_ms > 0.0 && line.images_per_s > 0.0, "{line:?}");
    }
    assert!(!world.path("run/evaluations.jsonl").exists(), "no answer, no line");
}
