//! `bench step`, `bench ops` and `bench train`: the training step, alone, operation by operation, and behind the feed.

use std::fmt;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::seconds;
use crate::cli::plan::{self, Images};
use crate::cli::recipe::Recipe;
use crate::cli::{CliError, DeviceArgs, RecipeArgs, open_device, print};
use crate::learn::backend::{Opened, Task};
use crate::learn::model::VicReg;
use crate::learn::ops::TrainAd;
use crate::learn::schedule::Schedule;
use crate::learn::trainer::Trainer;
use crate::measure::ops::{self, OpsSpeed, Work};
use crate::measure::speed;
use crate::measure::step::{self, StepSpeed, Together, TrainSpeed, Workload};

/// Arguments of `bench step`, `bench ops` and `bench train`.
#[derive(Debug, Args)]
pub struct StepArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Images in a batch; overrides the recipe's train.batch_size
    #[arg(long, value_name = "N")]
    batch_size: Option<u32>,
    /// Seconds to measure, for each of the measurements; each operation of `bench ops` takes a fiftieth
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    seconds: Duration,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is printed; the recipe in JSON only.
#[derive(Debug, Serialize)]
struct Report<'a, T> {
    recipe: String,
    #[serde(flatten)]
    speed: &'a T,
}

impl<T: fmt::Display> fmt::Display for Report<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.speed.fmt(f)
    }
}

impl StepArgs {
    /// The recipe as the flags change it.
    fn load(&self) -> Result<Recipe, CliError> {
        if cfg!(debug_assertions) {
            say!("note: this is a development build; the matrix product most of all is faster with `--release`");
        }
        let mut device = self.device.sets();
        device.extend(self.batch_size.map(|size| format!("train.batch_size={size}")));
        Ok(self.recipe.load_changed(&device)?.recipe)
    }

    fn print<T: Serialize + fmt::Display>(&self, speed: &T) -> Result<(), CliError> {
        let recipe = self.recipe.recipe.display().to_string();
        Ok(print(self.json, &Report { recipe, speed })?)
    }
}

pub fn alone(args: &StepArgs) -> Result<(), CliError> {
    let recipe = args.load()?;
    let device = open_device(&recipe)?;
    let speed = device.run(Alone {
        recipe: &recipe,
        name: &device.name,
        time: args.seconds,
    })?;
    args.print(&speed)
}

pub fn by_operation(args: &StepArgs) -> Result<(), CliError> {
    let recipe = args.load()?;
    let device = open_device(&recipe)?;
    let speed = device.run(ByOperation(Alone {
        recipe: &recipe,
        name: &device.name,
        time: args.seconds,
    }))?;
    args.print(&speed)
}

pub fn with_feed(args: &StepArgs) -> Result<(), CliError> {
    let recipe = args.load()?;
    let device = open_device(&recipe)?;
    let images = Images::open(&recipe.data)?;
    let feed = speed::feed(&images.train, &plan::feed_plan(&recipe), &recipe.feed, args.seconds)?;
    let (step, together) = device.run(WithFeed {
        alone: Alone {
            recipe: &recipe,
            name: &device.name,
            time: args.seconds,
        },
        images: &images,
        opened: &device,
    })?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    args.print(&TrainSpeed::new(step, feed, together, device.shares_cores(), cores))
}

/// The step alone, on whichever backend.
struct Alone<'a> {
    recipe: &'a Recipe,
    name: &'a str,
    time: Duration,
}

impl Alone<'_> {
    /// A trainer of the recipe in the midst of a long run.
    fn trainer<B: TrainAd>(&self, device: &B::Device) -> Result<Trainer<B>, CliError> {
        const LONG: u64 = 1_000_000;
        let recipe = self.recipe;
        let batch = u64::from(recipe.train.batch_size);
        let (schedule, _) = Schedule::new(&recipe.schedule, batch, LONG / 100, LONG).map_err(plan::one_problem)?;
        let model = VicReg::new(&recipe.encoder, &recipe.expander, recipe.train.seed, device);
        Ok(plan::trainer(recipe, model, schedule, device.clone()))
    }

    fn measure<B: TrainAd>(&self, trainer: &mut Trainer<B>, device: &B::Device) -> StepSpeed {
        let recipe = self.recipe;
        let side = recipe.views.size as usize;
        // A linear layer has a multiply-add a weight.
        let expander = recipe.expander.parameters(recipe.encoder.representation_dim());
        let work = Workload {
            batch_size: recipe.train.batch_size,
            side,
            precision: recipe.train.precision,
            multiply_adds: recipe.encoder.cost(side).multiply_adds + expander,
        };
        step::step(trainer, work, self.name, device, self.time)
    }
}

impl Task for Alone<'_> {
    type Output = Result<StepSpeed, CliError>;

    fn run<B: TrainAd>(self, device: B::Device) -> Self::Output {
        let mut trainer = self.trainer::<B>(&device)?;
        Ok(self.measure(&mut trainer, &device))
    }
}

/// An operation is measured for this part of the time: there are many.
const OPERATIONS: u32 = 50;

/// The step alone, and then each of its operations.
struct ByOperation<'a>(Alone<'a>);

impl ByOperation<'_> {
    fn work(&self) -> Work {
        let recipe = self.0.recipe;
        let (encoder, expander, train) = (&recipe.encoder, &recipe.expander, &recipe.train);
        Work {
            layers: encoder.layers(recipe.views.size as usize),
            expander: expander.dims.clone(),
            expander_parameters: expander.parameters(encoder.representation_dim()),
            loss: recipe.loss.clone(),
            optimizer: recipe.optimizer.clone(),
            normalize: plan::normalize(recipe),
            precision: train.precision,
            batch_size: train.batch_size as usize,
            micro_batch: train.micro_batch(),
        }
    }
}

impl Task for ByOperation<'_> {
    type Output = Result<OpsSpeed, CliError>;

    fn run<B: TrainAd>(self, device: B::Device) -> Self::Output {
        let (step, model) = {
            let mut trainer = self.0.trainer::<B>(&device)?;
            (self.0.measure(&mut trainer, &device), trainer.model)
        };
        let time = self.0.time / OPERATIONS;
        Ok(ops::ops(&model, &self.work(), step, &device, time))
    }
}

/// The step alone, and then behind a feed.
struct WithFeed<'a> {
    alone: Alone<'a>,
    images: &'a Images,
    opened: &'a Opened,
}

impl Task for WithFeed<'_> {
    type Output = Result<(StepSpeed, Together), CliError>;

    fn run<B: TrainAd>(self, device: B::Device) -> Self::Output {
        let mut trainer = self.alone.trainer::<B>(&device)?;
        let alone = self.alone.measure(&mut trainer, &device);
        let mut feed = plan::start_feed(self.alone.recipe, self.images, self.opened, 0)?;
        Ok((alone, step::together(&mut trainer, &mut feed, self.alone.time)?))
    }
}
