//! A recipe joined with its data: what will run, in numbers, and the room's inputs made from it.

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
use crate::learn::memory::MemoryEstimate;
use crate::learn::model::VicReg;
use crate::learn::ops::TrainAd;
use crate::learn::optim::Optimizer;
use crate::learn::run::Identity;
use crate::learn::schedule::Schedule;
use crate::learn::trainer::{LoopPlan, Method, Trainer};
use crate::learn::weights::foreign::metadata as network_facts;
use crate::learn::weights::network::Network;
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

    /// What a run of the recipe is estimated to need.
    pub fn memory(&self, recipe: &Recipe, images: &Images) -> MemoryEstimate {
        // Windows of encoded images: the budget, or all of a smaller data set, this epoch's and the next one's.
        let windows = recipe.order.window_bytes().min(2 * images.train.bytes());
        let feed = u64::from(recipe.feed.ring) * self.epoch.slot_bytes + windows;
        MemoryEstimate::new(
            &recipe.encoder,
            &recipe.expander,
            &recipe.optimizer,
            &recipe.train,
            recipe.views.size as usize,
            feed,
            evaluation_bytes(recipe, images),
        )
    }

    /// Refuses a run that needs more than `available` bytes, with the largest micro-batch that would fit.
    pub fn fits(&self, recipe: &Recipe, images: &Images, available: u64) -> Result<(), CliError> {
        let needs = self.memory(recipe, images);
        if needs.total() <= available {
            return Ok(());
        }
        let batch = recipe.train.batch_size;
        let smaller = (2..batch).rev().filter(|rows| batch.is_multiple_of(*rows));
        let with = |rows: u32| {
            let mut recipe = recipe.clone();
            recipe.train.micro_batch = Some(rows);
            self.memory(&recipe, images).total()
        };
        let micro_batch = smaller.into_iter().find(|&rows| with(rows) <= available);
        Err(CliError::Memory {
            needs,
            available,
            micro_batch,
        })
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
        let mut encoder_metadata = network_facts(&Network {
            encoder: recipe.encoder.clone(),
            expander: None,
        });
        encoder_metadata.extend([
            fact("size", recipe.views.size.to_string()),
            fact("mean", list(&recipe.views.mean)),
            fact("std", list(&recipe.views.std)),
            fact("interpolation", interpolation(recipe)),
            fact("channel_order", "RGB".to_owned()),
            // What each of its batch norms saw while training: less than the batch is a deviation.
            fact(
                "batch_norm_images",
                recipe.train.micro_batch.unwrap_or(recipe.train.batch_size).to_string(),
            ),
        ]);
        LoopPlan {
            total_steps: self.total_steps,
            stop_at: max_steps.unwrap_or(u64::MAX),
            steps_per_epoch: self.epoch.steps_per_epoch,
            batch_size: recipe.train.batch_size,
            log_every: recipe.train.log_every,
            checkpoint_every: recipe.train.checkpoint_every,
            evaluate_every: u64::from(recipe.eval.every_epochs) * self.epoch.steps_per_epoch,
            keep_checkpoints: recipe.train.keep_checkpoints as usize,
            on_collapse: recipe.train.on_collapse,
            encoder_metadata,
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

/// What an evaluation during the run takes: a feed of its own, a batch's maps, the features and their normalised copies, and the
/// k-NN's and the linear probe's blocks.
fn evaluation_bytes(recipe: &Recipe, images: &Images) -> u64 {
    const BLOCKS: u64 = 16 << 20;
    const WINDOWS: u64 = 64 << 20;
    if recipe.eval.every_epochs == 0 {
        return 0;
    }
    let sets = [Some(&images.train), images.test.as_ref()].into_iter().flatten();
    let (count, encoded) = sets.fold((0, 0), |(count, bytes), set| (count + set.len(), bytes + set.bytes()));
    let (batch, size) = (u64::from(recipe.eval.batch_size), u64::from(recipe.views.size));
    let pixels = 3 * size * size;
    let maps = batch * (4 * pixels + 4 * recipe.encoder.cost(size as usize).largest_map_bytes);
    let slots = u64::from(recipe.feed.ring) * batch * pixels;
    let features = 2 * 4 * count * recipe.encoder.representation_dim() as u64;
    slots + WINDOWS.min(2 * encoded) + maps + features + BLOCKS
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
        &recipe.feed,
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
        Method {
            loss: recipe.loss.clone(),
            input: normalize(recipe),
            precision: recipe.train.precision,
            micro_batch: recipe.train.micro_batch(),
        },
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
