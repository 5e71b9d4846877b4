//! `bench`: which stage limits, and how far from the limit everything else is.

mod device;
mod feed;
mod step;

use std::time::Duration;

use clap::Subcommand;

use super::CliError;

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// The feed alone: images a second, CPU time by stage, memory
    Feed(feed::FeedArgs),
    /// The training step alone, on a synthetic batch that stays on the device
    Step(step::StepArgs),
    /// The training step operation by operation: calls, time, share of the device's matrix peak
    Ops(step::StepArgs),
    /// The device against the CPU, number by number, and the bandwidth to it
    Device(device::DeviceCheckArgs),
    /// Feed and step together and each alone: who waits for whom, and what would help
    Train(step::StepArgs),
}

pub fn run(command: &BenchCommand) -> Result<(), CliError> {
    match command {
        BenchCommand::Feed(args) => feed::run(args),
        BenchCommand::Device(args) => device::run(args),
        BenchCommand::Step(args) => step::alone(args),
        BenchCommand::Ops(args) => step::by_operation(args),
        BenchCommand::Train(args) => step::with_feed(args),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    number
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "a number above 0 is needed, such as 10".to_owned())
}
