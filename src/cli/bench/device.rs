//! `bench device`: the device against the CPU, and the way to it. Exit status 1 if a check fails.

use std::fmt;

use clap::Args;
use serde::Serialize;

use crate::cli::plan::{self, Images};
use crate::cli::{CliError, DeviceArgs, RecipeArgs, open_device, print};
use crate::feed::Batch;
use crate::learn::backend::Task;
use crate::learn::ops::TrainAd;
use crate::measure::MeasureError;
use crate::measure::device::{Finding, check};

/// Arguments of `bench device`.
#[derive(Debug, Args)]
pub struct DeviceCheckArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report<'a> {
    device: &'a str,
    checks: &'a [Finding],
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} against the CPU:", self.device)?;
        self.checks.iter().try_for_each(|finding| writeln!(f, "  {finding}"))
    }
}

pub fn run(args: &DeviceCheckArgs) -> Result<(), CliError> {
    let recipe = args.recipe.load_with(&args.device)?.recipe;
    let device = open_device(&recipe)?;
    let images = Images::open(&recipe.data)?;
    let batch = plan::start_feed(&recipe, &images, &device, 0)?
        .next()?
        .ok_or(MeasureError::PassEnded)?;
    let checks = device.run(Checks(batch));
    let report = Report {
        device: &device.name,
        checks: &checks,
    };
    print(args.json, &report)?;
    match checks.iter().filter(|finding| !finding.passed).count() {
        0 => Ok(()),
        failed => Err(CliError::DeviceChecks {
            device: device.name,
            failed,
        }),
    }
}

struct Checks(Batch);

impl Task for Checks {
    type Output = Vec<Finding>;

    fn run<B: TrainAd>(self, device: B::Device) -> Vec<Finding> {
        check::<B>(&device, self.0, &mut |finding| say!("{finding}"))
    }
}
