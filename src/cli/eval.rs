//! `eval knn`: the accuracy of frozen representations, beside what an untrained network and raw pixels reach.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::CliError;
use super::plan::{self, Images};
use super::recipe::{LoadedRecipe, Recipe};
use super::{DeviceArgs, open_device, print};
use crate::learn::backend::{Opened, Task};
use crate::learn::checkpoint::read_tensors;
use crate::learn::ops::TrainAd;
use crate::learn::resnet::ResNet;
use crate::learn::{LearnError, weights};
use crate::measure::MeasureError;
use crate::measure::features::{Encoder, Labelled};
use crate::measure::probe::{Features, knn_accuracy};

#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// Weighted k-nearest-neighbour accuracy: trained, untrained and raw pixels
    Knn(KnnArgs),
}

/// Arguments of `eval knn`.
#[derive(Debug, Args)]
pub struct KnnArgs {
    /// Run folder
    run: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// Labelled images whose neighbours vote [default: the run's own data]
    #[arg(long, value_name = "DIR", requires = "test")]
    train: Option<String>,
    /// Labelled images to classify [default: the run's own held-out data]
    #[arg(long, value_name = "DIR", requires = "train")]
    test: Option<String>,
    /// Neighbours that vote [default: the recipe's eval.k, 20]
    #[arg(long)]
    k: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Accuracies, as shares of 1.
#[derive(Debug, Serialize)]
pub struct Knn {
    trained: f64,
    untrained: f64,
    raw_pixels: f64,
    k: u32,
    train_images: usize,
    test_images: usize,
}

impl fmt::Display for Knn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            k,
            train_images,
            test_images,
            ..
        } = self;
        writeln!(
            f,
            "k-NN accuracy (k = {k}, cosine; {train_images} images vote on {test_images}):"
        )?;
        writeln!(f, "  trained    {:5.1} %", 100.0 * self.trained)?;
        writeln!(
            f,
            "  untrained  {:5.1} %  (same network and seed, batch norm calibrated)",
            100.0 * self.untrained
        )?;
        writeln!(f, "  raw pixels {:5.1} %", 100.0 * self.raw_pixels)
    }
}

pub fn run(command: &EvalCommand) -> Result<(), CliError> {
    let EvalCommand::Knn(args) = command;
    let file = args.run.join("recipe.toml");
    if !file.is_file() {
        return Err(CliError::NothingThere {
            what: "run",
            path: args.run.clone(),
        });
    }
    let mut recipe = LoadedRecipe::load(&file, None, &args.device.sets())?.recipe;
    if let (Some(train), Some(test)) = (&args.train, &args.test) {
        recipe.data.path.clone_from(train);
        recipe.data.test = Some(test.clone());
    }
    let images = Images::open(&recipe.data)?;
    let knn = knn_of_run(&args.run, &recipe, &images, &open_device(&recipe)?, args.k)?;
    Ok(print(args.json, &knn)?)
}

/// k-NN of a run's `encoder.safetensors` on labelled images.
pub fn knn_of_run(
    run: &Path,
    recipe: &Recipe,
    images: &Images,
    device: &Opened,
    k: Option<u32>,
) -> Result<Knn, CliError> {
    let file = run.join("encoder.safetensors");
    if !file.is_file() {
        return Err(CliError::NothingThere {
            what: "encoder.safetensors",
            path: run.to_owned(),
        });
    }
    let encoder = Encoder::new(
        &recipe.eval,
        &recipe.views,
        &recipe.decode,
        recipe.feed.clone(),
        plan::normalize(recipe),
    );
    let data = Labelled::new(&images.train, images.test.as_ref(), &images.name)?;
    let k = k.unwrap_or(recipe.eval.k);
    let accuracy = |(train, test): (Features, Features)| {
        knn_accuracy(&train, &test, k as usize, recipe.eval.temperature).map_err(MeasureError::from)
    };
    let [trained, untrained] = device.run(Encoding {
        file,
        recipe,
        encoder: &encoder,
        data: &data,
    })?;
    let pixels = encoder.pixels(&data)?;
    let (train_images, test_images) = (pixels.0.labels.len(), pixels.1.labels.len());
    Ok(Knn {
        trained: accuracy(trained)?,
        untrained: accuracy(untrained)?,
        raw_pixels: accuracy(pixels)?,
        k,
        train_images,
        test_images,
    })
}

/// The features of a trained network and of the same untrained, on whichever backend.
struct Encoding<'a> {
    file: PathBuf,
    recipe: &'a Recipe,
    encoder: &'a Encoder,
    data: &'a Labelled,
}

impl Task for Encoding<'_> {
    type Output = Result<[(Features, Features); 2], CliError>;

    fn run<B: TrainAd>(self, device: B::Device) -> Self::Output {
        let Self {
            file,
            recipe,
            encoder,
            data,
        } = self;
        let fresh = ResNet::<B::InnerBackend>::new(&recipe.encoder, recipe.train.seed, &mut 0, &device);
        let tensors = read_tensors(&file)?;
        let trained =
            weights::import(fresh.clone(), tensors).map_err(|source| LearnError::Weights { path: file, source })?;
        let untrained = encoder.calibrate(fresh, data, &device)?;
        Ok([
            encoder.encode(&trained, data, &device)?,
            encoder.encode(&untrained, data, &device)?,
        ])
    }
}
