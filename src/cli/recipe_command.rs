//! `recipe show` and `recipe reference`: what a recipe means.

use std::io::Write as _;

use clap::Subcommand;

use super::recipe::{reference_page, resolved_toml};
use super::{CliError, RecipeArgs};

#[derive(Debug, Subcommand)]
pub enum RecipeCommand {
    /// Print a recipe as resolved: every key, with what was defaulted marked
    Show(RecipeArgs),
    /// Print the reference of all keys as Markdown
    Reference,
}

pub fn run(command: &RecipeCommand) -> Result<(), CliError> {
    let text = match command {
        RecipeCommand::Show(args) => resolved_toml(&args.load()?),
        RecipeCommand::Reference => reference_page(),
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
