//! `bench feed`: the feed alone.

use std::io::Write as _;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::seconds;
use crate::cli::plan::{self, Images};
use crate::cli::{CliError, RecipeArgs, print_json};
use crate::measure::speed::{self, FeedSpeed};

/// Arguments of `bench feed`.
#[derive(Debug, Args)]
pub struct FeedArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Worker counts to measure one after the other, such as 1,2,4 [default: the recipe's, 0 being one a core]
    #[arg(long, value_name = "W", value_delimiter = ',')]
    workers: Vec<u32>,
    /// Seconds to measure, for each number of workers
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    seconds: Duration,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What `bench feed --json` prints.
#[derive(Debug, Serialize)]
struct FeedReport<'a> {
    recipe: String,
    data: &'a str,
    samples: u64,
    /// The first number of workers.
    #[serde(flatten)]
    first: &'a FeedSpeed,
    /// All of them.
    scaling: &'a [FeedSpeed],
}

pub fn run(args: &FeedArgs) -> Result<(), CliError> {
    let recipe = args.recipe.load()?.recipe;
    let images = Images::open(&recipe.data)?;
    let feed_plan = plan::feed_plan(&recipe);
    let counts = match &args.workers[..] {
        [] => &[recipe.feed.workers],
        counts => counts,
    };
    let mut stdout = std::io::stdout();
    let mut speeds = Vec::new();
    for &workers in counts {
        let mut options = recipe.feed.clone();
        options.workers = workers;
        let speed = speed::feed(&images.train, &feed_plan, &options, args.seconds)?;
        if !args.json {
            write!(stdout, "{speed}")?;
        }
        speeds.push(speed);
    }
    if args.json {
        let report = FeedReport {
            recipe: args.recipe.recipe.display().to_string(),
            data: &images.name,
            samples: images.train.len(),
            first: &speeds[0],
            scaling: &speeds,
        };
        print_json(&report)?;
    } else {
        conclude(&mut stdout, &speeds)?;
    }
    Ok(())
}

/// Memory, and how speed grows with workers.
fn conclude(stdout: &mut std::io::Stdout, speeds: &[FeedSpeed]) -> std::io::Result<()> {
    if let [first, .., _] = speeds {
        let base = first.images_per_s / f64::from(first.workers.max(1));
        writeln!(stdout, "scaling, images a second and worker against the first line:")?;
        for speed in speeds {
            let each = speed.images_per_s / f64::from(speed.workers.max(1));
            writeln!(stdout, "  {:>3} workers {:5.2}", speed.workers, each / base)?;
        }
    }
    match speeds.last().and_then(|speed| speed.peak_rss_mb) {
        Some(mb) => writeln!(stdout, "peak resident memory: {mb:.0} MiB"),
        None => Ok(()),
    }
}
