//! A recipe joined with its data: what will run, in numbers, and the room's inputs made from it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::CliError;
use super::recipe::{LoadedRecipe, Recipe, RecipeError};
use crate::data::sources::{SYNTHETIC, shapes};
use crate::data::{DataOptions, Dataset, Split};
use crate::feed::view::AUGMENTATION_VERSION;
use crate::feed::{Feed, FeedError, FeedPlan, PassShape, Passes};
use crate::learn::backend::Opened;
use crate::learn::input::Normalize;
use crate::learn::model::VicReg;
use crate::learn::ops::TrainAd;
use crate::learn::optim::Optimizer;
use crate::learn::run::Identity;
use crate::learn::schedule::Schedule;
use crate::learn::trainer::{LoopPlan, Trainer};
use crate::measure::MeasureError;
use crate::measure::features::{Encoder, Labelled};

/// Training and held-out images of a recipe.
pub struct Images {
    /// To train on.
    pub train: Arc<Dataset>,
    /// Held out, where the recipe names them or the synthetic set brings them.
    pub test: Option<Arc<Dataset>>,
    /// How the user calls the training data.
    pub name: String,
}

impl Images {
    /// Opens the data of a recipe; makes `synthetic:shapes` if it is not in the cache yet.
    pub fn open(options: &DataOptions) -> Result<Self, CliError> {
        let (train, mut test) = if options.path.starts_with(SYNTHETIC) {
            let paths = shapes::ensure_synthetic(&shapes::default_cache_dir(), &options.path)?;
            (paths.train, Some(paths.test))
        } else {
            (PathBuf::from(&options.path), None)
        };
        if let Some(path) = &options.test {
            test = Some(PathBuf::from(path));
        }
        let columns = options.columns();
        let open = |path: &Path, split| Dataset::open_split(path, &columns, split).map(Arc::new);
        let test = match &test {
            Some(path) => Some(open(path, Split::HeldOut)?),
            None => Dataset::open_held_out(&train, &columns)?.map(Arc::new),
        };
        Ok(Self {
            train: open(&train, Split::Train)?,
            test,
            name: options.path.clone(),
        })
    }

    /// The labelled images, those that are held out apart.
    pub fn labelled(&self) -> Result<Labelled, MeasureError> {
        Labelled::new(&self.train, self.test.as_ref(), &self.name)
    }
}

/// A training run in numbers.
#[derive(Clone, Debug)]
pub struct Plan {
    /// An epoch, as the feed will run it.
    pub epoch: PassShape,
    /// Steps of the whole schedule.
    pub total_steps: u64,
}

impl Plan {
    /// Counts, and lets the feed check that the data can fill its batches.
    pub fn new(recipe: &Recipe, images: &Images) -> Result<Self, CliError> {
        let epoch = feed_plan(recipe).shape(&images.train)?;
        let total_steps = recipe.train.total_steps(epoch.steps_per_epoch);
        Ok(Self { epoch, total_steps })
    }

    /// Bytes that the feed holds: its ring, and three windows of encoded images.
    pub fn feed_bytes(&self, recipe: &Recipe) -> u64 {
        u64::from(recipe.feed.ring) * self.epoch.slot_bytes + recipe.order.window_bytes()
    }

    /// The learning rate's schedule, with the warnings that its numbers deserve.
    pub fn schedule(&self, recipe: &Recipe) -> Result<(Schedule, Vec<String>), CliError> {
        let batch = u64::from(recipe.train.batch_size);
        let (schedule, warnings) = Schedule::new(&recipe.schedule, batch, self.epoch.steps_per_epoch, self.total_steps)
            .map_err(one_problem)?;
        Ok((schedule, warnings.iter().map(ToString::to_string).collect()))
    }

    /// What the loop shall do.
    pub fn training_loop(&self, recipe: &Recipe, max_steps: Option<u64>) -> LoopPlan {
        let list = |values: &[f32; 3]| format!("{},{},{}", values[0], values[1], values[2]);
        let fact = |key: &str, value: String| (key.to_owned(), value);
        LoopPlan {
            total_steps: self.total_steps,
            stop_at: max_steps.unwrap_or(u64::MAX),
            steps_per_epoch: self.epoch.steps_per_epoch,
            batch_size: recipe.train.batch_size,
            log_every: recipe.train.log_every,
            checkpoint_every: recipe.train.checkpoint_every,
            evaluate_every: u64::from(recipe.eval.every_epochs) * self.epoch.steps_per_epoch,
            keep_checkpoints: recipe.train.keep_checkpoints as usize,
            encoder_metadata: BTreeMap::from([
                fact("format", "pt".to_owned()),
                fact("size", recipe.views.size.to_string()),
                fact("mean", list(&recipe.views.mean)),
                fact("std", list(&recipe.views.std)),
                fact("interpolation", interpolation(recipe)),
                fact("channel_order", "RGB".to_owned()),
                fact("depth", recipe.encoder.depth.to_string()),
                fact("width", recipe.encoder.width.to_string()),
            ]),
        }
    }

    /// The identity of a run of this recipe on these images.
    pub fn identity(recipe: &Recipe, images: &Images, init: Option<String>) -> Identity {
        Identity {
            recipe: serde_json::to_value(recipe).expect("a recipe is plain JSON"),
            data_fingerprint: format!("{:016x}", images.train.fingerprint()),
            augmentation: AUGMENTATION_VERSION,
            init,
            program: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What the feed of a training run shall do.
pub fn feed_plan(recipe: &Recipe) -> FeedPlan {
    FeedPlan {
        passes: Passes::Shuffled {
            seed: recipe.train.seed,
        },
        seed: recipe.train.seed,
        batch_size: recipe.train.batch_size,
        rank: 0,
        world: 1,
        views: recipe.views.views().to_vec(),
        decode: recipe.decode.clone(),
        window_bytes: recipe.order.window_bytes(),
    }
}

/// The recipe's feed beside a trainer on `device`, from the batch of `step` on.
pub fn start_feed(recipe: &Recipe, images: &Images, device: &Opened, step: u64) -> Result<Feed, FeedError> {
    Feed::start_with(
        Arc::clone(&images.train),
        feed_plan(recipe),
        &device.feed_options(&recipe.feed),
        step,
        &mut *device.slot_memory(),
    )
}

/// A trainer of this recipe before its first step.
pub fn trainer<B: TrainAd>(recipe: &Recipe, model: VicReg<B>, schedule: Schedule, device: B::Device) -> Trainer<B> {
    Trainer::new(
        model,
        Optimizer::new(recipe.optimizer.clone()),
        schedule,
        recipe.loss.clone(),
        normalize(recipe),
        recipe.train.precision,
        device,
    )
}

/// How the recipe's images become features.
pub fn encoder(recipe: &Recipe) -> Encoder {
    Encoder::new(
        &recipe.eval,
        &recipe.views,
        &recipe.decode,
        recipe.feed.clone(),
        normalize(recipe),
    )
}

/// How the recipe's pixels are normalised.
pub fn normalize(recipe: &Recipe) -> Normalize {
    Normalize {
        mean: recipe.views.mean,
        std: recipe.views.std,
    }
}

/// Another room's complaint about a recipe.
pub fn one_problem(error: impl std::fmt::Display) -> RecipeError {
    RecipeError::Invalid {
        problems: vec![error.to_string()],
    }
}

fn interpolation(recipe: &Recipe) -> String {
    let value = serde_json::to_value(recipe.views.view[0].interpolation).expect("an enumeration is plain JSON");
    value.as_str().unwrap_or_default().to_owned()
}

/// Prints a recipe's warnings and what will run.
pub fn print(loaded: &LoadedRecipe, images: &Images, plan: &Plan, warnings: &[String]) {
    let recipe = &loaded.recipe;
    say!(
        "data: {} images in {} shards of `{}`{}",
        plan.epoch.samples,
        images.train.shards().len(),
        images.name,
        if images.train.has_labels() {
            ", labelled (labels are used for evaluation only)"
        } else {
            ""
        }
    );
    say!(
        "plan: {} steps of {} images; {} steps an epoch, {} images of each epoch dropped so that every batch is full",
        plan.total_steps,
        recipe.train.batch_size,
        plan.epoch.steps_per_epoch,
        plan.epoch.dropped
    );
    if plan.epoch.oversized_row_groups > 0 {
        say!(
            "warning: {} row groups are larger than the shuffle budget of {} MB and are shuffled only within themselves; \
             raise `order.window_mb`, or `ingest` the data into smaller row groups",
            plan.epoch.oversized_row_groups,
            recipe.order.window_mb
        );
    }
    for warning in loaded.warnings.iter().chain(warnings) {
        say!("warning: {warning}");
    }
}
