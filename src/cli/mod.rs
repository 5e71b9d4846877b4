//! The door: what the user asked. One file a subcommand (arguments -> one call); it sees all rooms.
//!
//! Results go to stdout, everything else to stderr; `--json` prints the same numbers for programs.

/// A line to stderr. Unlike `eprintln!` it does not panic when nobody reads: a closed pipe must not end a run.
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}

mod bench;
mod eval;
mod explain;
mod ingest;
mod init;
mod inspect;
mod plan;
mod progress;
pub mod recipe;
mod recipe_command;
mod resume;
mod sheet;
mod train;
mod watch;
mod weights;

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::learn::backend::{self, BackendKind, Opened};

pub use explain::{CliError, Status};

/// Streaming VICReg: images in, representations out; no labels needed.
#[derive(Debug, Parser)]
#[command(name = "vicreg-stream", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Turn folders, Hugging Face Parquet or synthetic:shapes into shuffled shards
    Ingest(ingest::IngestArgs),
    /// Train a recipe; continues by itself where an earlier run of the same recipe stopped
    Train(train::TrainArgs),
    /// Judge the representations of a run
    #[command(subcommand)]
    Eval(eval::EvalCommand),
    /// Find out which stage limits, in numbers
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Look at what the network would see
    #[command(subcommand)]
    Inspect(inspect::InspectCommand),
    /// Read networks of other programs, write ours under their names
    #[command(subcommand)]
    Weights(weights::WeightsCommand),
    /// Show a recipe as resolved, or the reference of all keys
    #[command(subcommand)]
    Recipe(recipe_command::RecipeCommand),
}

/// What every command that takes a recipe takes.
#[derive(Clone, Debug, Args)]
pub struct RecipeArgs {
    /// Recipe file, such as pipelines/smoke.toml
    recipe: std::path::PathBuf,
    /// Folder of Parquet shards, or synthetic:shapes; overrides the recipe's data.path
    #[arg(long)]
    data: Option<String>,
    /// Change a key of the recipe, such as --set train.batch_size=64; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

impl RecipeArgs {
    fn load(&self) -> Result<recipe::LoadedRecipe, CliError> {
        self.load_with(&DeviceArgs::default())
    }

    /// The recipe with the flags' device in place of its own.
    fn load_with(&self, device: &DeviceArgs) -> Result<recipe::LoadedRecipe, CliError> {
        self.load_changed(&device.sets())
    }

    /// The recipe with more changes, behind those of `--set`.
    fn load_changed(&self, more: &[String]) -> Result<recipe::LoadedRecipe, CliError> {
        let sets = [&self.sets[..], more].concat();
        Ok(recipe::LoadedRecipe::load(&self.recipe, self.data.as_deref(), &sets)?)
    }
}

/// What every command that computes takes.
#[derive(Clone, Debug, Default, Args)]
pub struct DeviceArgs {
    /// Where the network computes; overrides the recipe's device.backend
    #[arg(long, value_enum, value_name = "NAME")]
    backend: Option<BackendKind>,
    /// Which of several GPUs, from 0; overrides the recipe's device.index
    #[arg(long, value_name = "N")]
    device: Option<u32>,
}

impl DeviceArgs {
    /// As `--set` would say it.
    fn sets(&self) -> Vec<String> {
        let backend = self.backend.map(|kind| format!("device.backend={kind}"));
        let index = self.device.map(|index| format!("device.index={index}"));
        backend.into_iter().chain(index).collect()
    }
}

/// The device that a recipe means, with a note where a GPU is passed over.
fn open_device(recipe: &recipe::Recipe) -> Result<Opened, CliError> {
    let opened = backend::open(&recipe.device, |why| say!("note: not on a GPU: {why}"))?;
    opened.check(recipe.train.precision)?;
    Ok(opened)
}

/// A result on stdout: for a program, or for a person.
fn print<T: Serialize + fmt::Display>(json: bool, result: &T) -> io::Result<()> {
    if json {
        print_json(result)
    } else {
        write!(io::stdout(), "{result}")
    }
}

/// A result on stdout, as one line of JSON.
fn print_json(result: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string(result).expect("results are plain JSON");
    writeln!(io::stdout(), "{text}")
}

/// Parses the command line, runs one command, explains what went wrong.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Ingest(args) => ingest::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Eval(command) => eval::run(&command),
        Command::Bench(command) => bench::run(&command),
        Command::Inspect(command) => inspect::run(&command),
        Command::Weights(command) => weights::run(&command),
        Command::Recipe(command) => recipe_command::run(&command),
    };
    explain::conclude(result).into()
}
