//! `bench device`: the device against the CPU, and the way to it. Exit status 1 if a check fails.

use std::io::Write as _;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use crate::cli::plan::{self, Images};
use crate::cli::{CliError, DeviceArgs, RecipeArgs, open_device};
use crate::feed::{Batch, Feed};
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

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    device: &'a str,
    checks: &'a [Finding],
}

pub fn run(args: &DeviceCheckArgs) -> Result<(), CliError> {
    let recipe = args.recipe.load_with(&args.device)?.recipe;
    let device = open_device(&recipe)?;
    let images = Images::open(&recipe.data)?;
    let mut feed = Feed::start_with(
        Arc::clone(&images.train),
        plan::feed_plan(&recipe),
        &device.feed_options(&recipe.feed),
        0,
        &mut *device.slot_memory(),
    )?;
    let batch = feed.next()?.ok_or(MeasureError::PassEnded)?;
    let checks = device.run(Checks(batch));
    let mut stdout = std::io::stdout();
    if args.json {
        let report = Report {
            device: &device.name,
            checks: &checks,
        };
        let text = serde_json::to_string(&report).expect("findings are plain JSON");
        writeln!(stdout, "{text}")?;
    } else {
        writeln!(stdout, "{} against the CPU:", device.name)?;
        for finding in &checks {
            writeln!(stdout, "  {finding}")?;
        }
    }
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
        check::<B>(&device, self.0)
    }
}
