//! `inspect`: what the network would see, as a picture or as digests.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::plan::{self, Images};
use super::{CliError, RecipeArgs, sheet};
use crate::data::DataError;
use crate::data::store::PendingFile;
use crate::feed::Feed;

#[derive(Debug, Subcommand)]
pub enum InspectCommand {
    /// A contact sheet: one row an image, the original and several draws of its two views
    Views(ViewsArgs),
    /// Digests of batches, one line each: the same for any number of workers and from any start
    Batches(BatchesArgs),
}

/// Arguments of `inspect views`.
#[derive(Debug, Args)]
pub struct ViewsArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Picture to write (PNG)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Images, one a row
    #[arg(long, default_value_t = 8)]
    images: u32,
    /// Draws of the two views, side by side
    #[arg(long, default_value_t = 3)]
    draws: u32,
}

/// Arguments of `inspect batches`.
#[derive(Debug, Args)]
pub struct BatchesArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Batches to read
    #[arg(long, value_name = "K")]
    steps: u64,
    /// First batch, counted from 0 over all epochs
    #[arg(long, value_name = "S", default_value_t = 0)]
    start: u64,
    /// Threads that decode and augment [default: the recipe's feed.workers]
    #[arg(long, value_name = "W")]
    workers: Option<u32>,
    /// File for the batches themselves, raw u8 [K, V, N, H, W, 3]: V views of N images
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn run(command: &InspectCommand) -> Result<(), CliError> {
    match command {
        InspectCommand::Views(args) => views(args),
        InspectCommand::Batches(args) => batches(args),
    }
}

fn views(args: &ViewsArgs) -> Result<(), CliError> {
    let loaded = args.recipe.load()?;
    let images = Images::open(&loaded.recipe.data)?;
    let picture = sheet::draw(&loaded.recipe, &images.train, args.images, args.draws)?;
    let mut png = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png)?;
    crate::data::store::write_bytes(&args.out, png.get_ref())?;
    say!(
        "wrote {} x {} pixels to `{}`",
        picture.width(),
        picture.height(),
        args.out.display()
    );
    Ok(())
}

fn batches(args: &BatchesArgs) -> Result<(), CliError> {
    let mut loaded = args.recipe.load()?;
    if let Some(workers) = args.workers {
        loaded.recipe.feed.workers = workers;
    }
    let recipe = &loaded.recipe;
    let images = Images::open(&recipe.data)?;
    let mut feed = Feed::start(
        Arc::clone(&images.train),
        plan::feed_plan(recipe),
        &recipe.feed,
        args.start,
    )?;
    let mut out = match &args.out {
        Some(path) => Some((path, PendingFile::create(path)?)),
        None => None,
    };
    let mut stdout = std::io::stdout().lock();
    for step in args.start..args.start.saturating_add(args.steps) {
        let Some(batch) = feed.next()? else { break };
        writeln!(
            stdout,
            "step={step} pixels={:016x} keys={:016x}",
            batch.pixels_digest(),
            batch.keys_digest()
        )?;
        if let Some((path, file)) = &mut out {
            let written = file.write_all(batch.pixels());
            written.map_err(|source| DataError::io("write", path, source))?;
        }
    }
    if let Some((_, file)) = out {
        file.commit()?;
    }
    Ok(())
}
