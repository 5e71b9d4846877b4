//! `ingest`: sources -> shuffled shards.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::CliError;
use crate::data::ingest::{IngestOptions, IngestProgress, IngestSummary, Labels, ingest};

/// Arguments of `ingest`.
#[derive(Debug, Args)]
pub struct IngestArgs {
    /// A folder tree of images, a folder of Hugging Face Parquet, or synthetic:shapes; several are mixed
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<String>,
    /// Folder of the data set; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of the global shuffle
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Aim of a shard's size, MB
    #[arg(long, default_value_t = 256)]
    shard_mb: u32,
    /// Images in a row group, the unit of reading and of the shuffle window
    #[arg(long, default_value_t = 128)]
    row_group_rows: u32,
    /// auto: class folders become labels if the layout is plain class/file; folders: always; none: never
    #[arg(long, value_enum, default_value_t = Labels::Auto)]
    labels: Labels,
    /// Decode every image completely instead of reading its header
    #[arg(long)]
    verify: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &IngestArgs) -> Result<(), CliError> {
    let options = IngestOptions {
        seed: args.seed,
        shard_mb: args.shard_mb,
        row_group_rows: args.row_group_rows,
        labels: args.labels,
        verify: args.verify,
    };
    let bar = bar();
    let mut progress = |progress: IngestProgress| show(&bar, progress);
    let summary = ingest(&args.sources, &args.out, &options, &mut progress)?;
    bar.finish_and_clear();
    let mut stdout = std::io::stdout();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string(&summary).expect("a summary is plain JSON"))?;
    } else {
        print(&mut stdout, args, &summary)?;
    }
    Ok(())
}
