//! `eval knn`, `eval linear`: the accuracy of frozen representations, beside what an untrained network and raw pixels reach.

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
use crate::measure::features::{Halves, Source};
use crate::measure::probe::ProbeError;
use crate::measure::probe::knn::knn_accuracy;
use crate::measure::probe::linear::{LinearOptions, linear_accuracy};

#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// Weighted k-nearest-neighbour accuracy: trained, untrained and raw pixels
    Knn(KnnArgs),
    /// Accuracy of a linear classifier on frozen features: trained and untrained
    Linear(JudgeArgs),
}

/// What every judgement of a run takes.
#[derive(Debug, Args)]
pub struct JudgeArgs {
    /// Run folder
    run: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// Labelled images that the probe learns from [default: the run's own data]
    #[arg(long, value_name = "DIR", requires = "test")]
    train: Option<String>,
    /// Labelled images to classify [default: the run's own held-out data]
    #[arg(long, value_name = "DIR", requires = "train")]
    test: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `eval knn`.
#[derive(Debug, Args)]
pub struct KnnArgs {
    #[command(flatten)]
    judge: JudgeArgs,
    /// Neighbours that vote [default: the recipe's eval.k, 20]
    #[arg(long)]
    k: Option<u32>,
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
        write_networks(f, self.trained, self.untrained)?;
        writeln!(f, "  raw pixels {:5.1} %", 100.0 * self.raw_pixels)
    }
}

/// Accuracies, as shares of 1.
#[derive(Debug, Serialize)]
pub struct Linear {
    trained: f64,
    untrained: f64,
    train_images: usize,
    test_images: usize,
}

impl fmt::Display for Linear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            train_images,
            test_images,
            ..
        } = self;
        writeln!(
            f,
            "linear accuracy (softmax regression on frozen features; fitted to {train_images} images, asked about {test_images}):"
        )?;
        write_networks(f, self.trained, self.untrained)
    }
}

/// The lines of the run's network and of its first weights.
fn write_networks(f: &mut fmt::Formatter<'_>, trained: f64, untrained: f64) -> fmt::Result {
    writeln!(f, "  trained    {:5.1} %", 100.0 * trained)?;
    writeln!(
        f,
        "  untrained  {:5.1} %  (same network and seed, batch norm calibrated)",
        100.0 * untrained
    )
}

pub fn run(command: &EvalCommand) -> Result<(), CliError> {
    match command {
        EvalCommand::Knn(args) => {
            let (recipe, images) = args.judge.open()?;
            let knn = knn_of_run(&args.judge.run, &recipe, &images, &open_device(&recipe)?, args.k)?;
            Ok(print(args.judge.json, &knn)?)
        }
        EvalCommand::Linear(args) => {
            let (recipe, images) = args.open()?;
            let linear = linear_of_run(&args.run, &recipe, &images, &open_device(&recipe)?)?;
            Ok(print(args.json, &linear)?)
        }
    }
}

impl JudgeArgs {
    /// The run's recipe, and the images to judge by.
    fn open(&self) -> Result<(Recipe, Images), CliError> {
        let file = self.run.join("recipe.toml");
        if !file.is_file() {
            return Err(CliError::NothingThere {
                what: "run",
                path: self.run.clone(),
            });
        }
        let mut recipe = LoadedRecipe::load(&file, None, &self.device.sets())?.recipe;
        if let (Some(train), Some(test)) = (&self.train, &self.test) {
            recipe.data.path.clone_from(train);
            recipe.data.test = Some(test.clone());
        }
        let images = Images::open(&recipe.data)?;
        Ok((recipe, images))
    }
}

/// k-NN of a run's `encoder.safetensors` on labelled images.
pub fn knn_of_run(
    run: &Path,
    recipe: &Recipe,
    images: &Images,
    device: &Opened,
    k: Option<u32>,
) -> Result<Knn, CliError> {
    let what = [What::Trained, What::Untrained, What::Pixels];
    let halves = encode(run, recipe, images, device, what)?;
    let k = k.unwrap_or(recipe.eval.k);
    let (train_images, test_images) = (halves[0].train.n, halves[0].test.n);
    let [trained, untrained, raw_pixels] = judge(&halves, |halves| {
        knn_accuracy(&halves.train, &halves.test, k as usize, recipe.eval.temperature)
    })?;
    Ok(Knn {
        trained,
        untrained,
        raw_pixels,
        k,
        train_images,
        test_images,
    })
}

/// The linear probe of a run's `encoder.safetensors` on labelled images. Not of pixels: there may be 150,000 of them.
fn linear_of_run(run: &Path, recipe: &Recipe, images: &Images, device: &Opened) -> Result<Linear, CliError> {
    let halves = encode(run, recipe, images, device, [What::Trained, What::Untrained])?;
    let (train_images, test_images) = (halves[0].train.n, halves[0].test.n);
    let [trained, untrained] = judge(&halves, |halves| {
        linear_accuracy(&halves.train, &halves.test, &LinearOptions::default())
    })?;
    Ok(Linear {
        trained,
        untrained,
        train_images,
        test_images,
    })
}

/// One probe's answer to each of several features.
fn judge<const S: usize>(
    halves: &[Halves; S],
    probe: impl Fn(&Halves) -> Result<f64, ProbeError>,
) -> Result<[f64; S], MeasureError> {
    let mut accuracies = [0.0; S];
    for (accuracy, halves) in accuracies.iter_mut().zip(halves) {
        *accuracy = probe(halves)?;
    }
    Ok(accuracies)
}

/// What is judged.
#[derive(Clone, Copy, Debug)]
enum What {
    /// The run's encoder.
    Trained,
    /// The same network with its first weights.
    Untrained,
    /// The images themselves.
    Pixels,
}

/// Features of labelled images, from one pass over them.
fn encode<const S: usize>(
    run: &Path,
    recipe: &Recipe,
    images: &Images,
    device: &Opened,
    what: [What; S],
) -> Result<[Halves; S], CliError> {
    let file = run.join("encoder.safetensors");
    if !file.is_file() {
        return Err(CliError::NothingThere {
            what: "encoder.safetensors",
            path: run.to_owned(),
        });
    }
    device.run(Encoding {
        file,
        recipe,
        images,
        what,
    })
}

/// [`encode`] on whichever backend.
struct Encoding<'a, const S: usize> {
    file: PathBuf,
    recipe: &'a Recipe,
    images: &'a Images,
    what: [What; S],
}

impl<const S: usize> Task for Encoding<'_, S> {
    type Output = Result<[Halves; S], CliError>;

    fn run<B: TrainAd>(self, device: B::Device) -> Self::Output {
        let Self {
            file,
            recipe,
            images,
            what,
        } = self;
        let (encoder, data) = (plan::encoder(recipe), images.labelled()?);
        let fresh = ResNet::<B::InnerBackend>::new(&recipe.encoder, recipe.train.seed, &mut 0, &device);
        let tensors = read_tensors(&file)?;
        let trained = weights::import(fresh.clone(), tensors).map_err(LearnError::weights(&file))?;
        let untrained = encoder.calibrate(fresh, &data, &device)?;
        let sources = what.map(|what| match what {
            What::Trained => Source::Network(&trained),
            What::Untrained => Source::Network(&untrained),
            What::Pixels => Source::Pixels,
        });
        Ok(encoder.encode(sources, &data, &device)?)
    }
}
