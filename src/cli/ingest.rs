//! `ingest`: sources -> shuffled shards.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{CliError, print_json};
use crate::data::Split;
use crate::data::ingest::{IngestOptions, IngestProgress, IngestStage, IngestSummary, LabelsFrom, ingest};

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
    row_group: u32,
    /// auto: class folders become labels if the layout is plain class/file; folders: always; none: never
    #[arg(long, value_enum, default_value_t = Labels::Auto)]
    labels: Labels,
    /// Which shards of a Parquet source that has several splits by file name
    #[arg(long, value_enum, default_value_t = SplitArg::Train)]
    split: SplitArg,
    /// Decode every image completely instead of reading its header
    #[arg(long)]
    verify: bool,
    /// Image column of Parquet sources
    #[arg(long, default_value = "image")]
    image_column: String,
    /// Label column of Parquet sources
    #[arg(long, default_value = "label")]
    label_column: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `--split`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SplitArg {
    /// All that are not held out
    Train,
    /// test, else validation
    HeldOut,
    /// All of them
    All,
}

/// `--labels`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Labels {
    /// The label column of Parquet; class folders where every image lies in class/file
    Auto,
    /// The label column of Parquet; the first folder of every image
    Folders,
    /// No labels
    None,
}

pub fn run(args: &IngestArgs) -> Result<(), CliError> {
    let options = IngestOptions {
        seed: args.seed,
        shard_mb: args.shard_mb,
        row_group: args.row_group,
        labels: match args.labels {
            Labels::Auto => LabelsFrom::Auto,
            Labels::Folders => LabelsFrom::Folders,
            Labels::None => LabelsFrom::None,
        },
        split: match args.split {
            SplitArg::Train => Split::Train,
            SplitArg::HeldOut => Split::HeldOut,
            SplitArg::All => Split::All,
        },
        verify: args.verify,
        image_column: args.image_column.clone(),
        label_column: args.label_column.clone(),
        ..IngestOptions::default()
    };
    let bar = bar();
    let mut progress = |progress: IngestProgress| show(&bar, progress);
    let summary = ingest(&args.sources, &args.out, &options, &mut progress)?;
    bar.finish_and_clear();
    if args.json {
        print_json(&summary)?;
    } else {
        report(&mut std::io::stdout(), &summary)?;
    }
    Ok(())
}

/// A bar on a terminal, nothing elsewhere.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:8} {bar:30} {human_pos}/{human_len} images  eta {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar.with_style(style)
}

fn show(bar: &ProgressBar, progress: IngestProgress) {
    bar.set_message(match progress.stage {
        IngestStage::Listing => "listing",
        IngestStage::Resuming => "checking",
        IngestStage::Writing => "writing",
    });
    bar.set_length(progress.total);
    bar.set_position(progress.done);
}

fn report(out: &mut impl std::io::Write, summary: &IngestSummary) -> std::io::Result<()> {
    if summary.already_complete {
        writeln!(
            out,
            "`{}` is complete already; nothing was written",
            summary.out.display()
        )?;
    }
    writeln!(
        out,
        "{} images in {} shards, {:.1} MB, in `{}`",
        summary.samples,
        summary.shards,
        summary.bytes as f64 / 1e6,
        summary.out.display()
    )?;
    if summary.shards_kept > 0 {
        writeln!(out, "{} shards of an interrupted ingest were kept", summary.shards_kept)?;
    }
    if let Some(names) = &summary.label_names {
        writeln!(out, "labels: {} classes", names.len())?;
    }
    if summary.rejected > 0 {
        writeln!(
            out,
            "left out: {} images; `manifest.json` lists each with its reason",
            summary.rejected
        )?;
        for (code, count) in &summary.rejected_by_code {
            writeln!(out, "  {code}: {count}")?;
        }
    }
    Ok(())
}
