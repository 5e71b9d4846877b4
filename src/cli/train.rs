//! `train`: recipe -> plan -> feed and trainer -> the loop -> report.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

use super::init::Init;
use super::plan::{self, Images, Plan};
use super::recipe::{LoadedRecipe, Recipe, resolved_toml};
use super::resume::{self, Resume, Start};
use super::watch::Watcher;
use super::{CliError, DeviceArgs, RecipeArgs, eval, open_device};
use crate::feed::QuarantineState;
use crate::learn::backend::{CpuAd, Opened, Task};
use crate::learn::checkpoint::{self, Checkpoint};
use crate::learn::memory::{self, Bytes};
use crate::learn::model::VicReg;
use crate::learn::ops::TrainAd;
use crate::learn::run::{Identity, RunFolder};
use crate::learn::schedule::Schedule;
use crate::learn::trainer::{LoopPlan, Outcome, Trainer};
use crate::measure::cpu;

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Run folder [default: runs/RECIPE-NAME]
    #[arg(long, value_name = "RUN")]
    out: Option<PathBuf>,
    /// Stop after this many steps of the schedule, which stays as it is
    #[arg(long, value_name = "N")]
    max_steps: Option<u64>,
    /// auto: continue if the folder has this run; never: refuse a folder with a run; PATH: a checkpoint or run folder
    #[arg(long, value_name = "auto|never|PATH", default_value = "auto")]
    resume: String,
    /// Begin a new run from the weights of a run, a checkpoint, a folder of `weights import`, or a file
    #[arg(long, value_name = "RUN|DIR|FILE")]
    init_from: Option<PathBuf>,
    /// Start although the estimate says that the memory is too small
    #[arg(long)]
    ignore_memory: bool,
    /// Make every check and print the plan; train nothing, write nothing
    #[arg(long)]
    dry_run: bool,
}

/// Everything that is decided before the first step.
struct Prepared {
    loaded: LoadedRecipe,
    device: Opened,
    images: Images,
    plan: Plan,
    identity: Identity,
    init: Option<Init>,
    run: PathBuf,
    start: Start,
}

pub fn run(args: &TrainArgs) -> Result<(), CliError> {
    let prepared = prepare(args)?;
    let (schedule, warnings) = prepared.plan.schedule(&prepared.loaded.recipe)?;
    plan::print(&prepared.loaded, &prepared.images, &prepared.plan, &warnings);
    say!("device: {}", prepared.device.name);
    let recipe = &prepared.loaded.recipe;
    let needs = prepared.plan.memory(recipe, &prepared.images);
    let counted = if prepared.device.shares_cores() {
        ""
    } else {
        " (as the CPU backend would)"
    };
    say!("memory: {needs}{counted}");
    // What a GPU has is not known here, and the estimate is the CPU backend's.
    let available = memory::available().filter(|_| prepared.device.shares_cores() && !args.ignore_memory);
    if let Some(available) = available {
        prepared.plan.fits(recipe, &prepared.images, available)?;
    }
    if args.dry_run {
        RunFolder::check(&prepared.run)?;
        if prepared.init.is_some() {
            build::<CpuAd>(&prepared, schedule, Default::default())?; // Whether the weights fit.
        }
        return report_dry_run(&prepared);
    }
    let run = RunFolder::open(&prepared.run)?;
    let outcome = prepared.device.run(Training {
        prepared: &prepared,
        schedule,
        run,
        plan: prepared.plan.training_loop(&prepared.loaded.recipe, args.max_steps),
    })?;
    report(&prepared, outcome)
}

/// The run, on whichever backend.
struct Training<'a> {
    prepared: &'a Prepared,
    schedule: Schedule,
    run: RunFolder,
    plan: LoopPlan,
}

impl Task for Training<'_> {
    type Output = Result<Outcome, CliError>;

    fn run<B: TrainAd>(self, device: B::Device) -> Self::Output {
        let Self {
            prepared,
            schedule,
            mut run,
            plan,
        } = self;
        let (trainer, quarantine) = build::<B>(prepared, schedule, device.clone())?;
        run.cut_to(trainer.step())?;
        begin(prepared, &run, &plan)?;
        if trainer.step() >= plan.total_steps {
            say!(
                "the run in `{}` is complete at step {}",
                prepared.run.display(),
                trainer.step()
            );
        }
        drive(prepared, trainer, device, &mut run, &plan, quarantine)
    }
}

/// Writes down what the run is.
fn begin(prepared: &Prepared, run: &RunFolder, plan: &LoopPlan) -> Result<(), CliError> {
    let recipe = resolved_toml(&prepared.loaded);
    match &prepared.start {
        Start::Checkpoint(_) if RunFolder::identity(run.path())?.is_some() => run.write_recipe(&recipe)?,
        Start::Checkpoint(path) => {
            // Another run's: it becomes this run's first, before there is a run that would begin at step 0 without it.
            Checkpoint::load(path)?.save(run.path(), plan.keep_checkpoints, None)?;
            run.begin(&prepared.identity, &recipe)?;
        }
        Start::Fresh => run.begin(&prepared.identity, &recipe)?,
    }
    Ok(())
}

fn prepare(args: &TrainArgs) -> Result<Prepared, CliError> {
    let loaded = args.recipe.load_with(&args.device)?;
    let device = open_device(&loaded.recipe)?;
    let images = Images::open(&loaded.recipe.data)?;
    let plan = Plan::new(&loaded.recipe, &images)?;
    let init = args.init_from.as_deref().map(Init::find).transpose()?;
    let digest = init.as_ref().map(|init| init.digest.clone());
    let mut identity = Plan::identity(&loaded.recipe, &images, digest);
    let default_out = Path::new("runs").join(&loaded.name);
    let resume = Resume::from(args.resume.clone());
    let (run, start) = resume::decide(args.out.as_deref(), &default_out, &resume, &identity, &loaded.recipe)?;
    if let Start::Checkpoint(path) = &start {
        identity.init = checkpoint::CheckpointState::load(path)?.identity.init;
    }
    Ok(Prepared {
        loaded,
        device,
        images,
        plan,
        identity,
        init,
        run,
        start,
    })
}

/// The trainer at its first step here, with what is known of bad samples.
fn build<B: TrainAd>(
    prepared: &Prepared,
    schedule: Schedule,
    device: B::Device,
) -> Result<(Trainer<B>, QuarantineState), CliError> {
    let recipe = &prepared.loaded.recipe;
    let mut model = VicReg::<B>::new(&recipe.encoder, &recipe.expander, recipe.train.seed, &device);
    if let (Start::Fresh, Some(init)) = (&prepared.start, &prepared.init) {
        model = init.begin(model, recipe)?;
    }
    let trainer = plan::trainer(recipe, model, schedule, device);
    match &prepared.start {
        Start::Fresh => Ok((trainer, QuarantineState::default())),
        Start::Checkpoint(path) => {
            let checkpoint = Checkpoint::load(path)?;
            say!("continuing at step {} from `{}`", checkpoint.state.step, path.display());
            let quarantine = checkpoint.state.quarantine.clone();
            Ok((trainer.restore(checkpoint, path)?, quarantine))
        }
    }
}

/// Feed and loop, until the end or a signal.
fn drive<B: TrainAd>(
    prepared: &Prepared,
    mut trainer: Trainer<B>,
    device: B::Device,
    run: &mut RunFolder,
    plan: &LoopPlan,
    quarantine: QuarantineState,
) -> Result<Outcome, CliError> {
    if trainer.step() >= plan.total_steps {
        return Ok(Outcome::Complete);
    }
    let recipe = &prepared.loaded.recipe;
    let stop = stop_on_signals()?;
    let mut feed = plan::start_feed(recipe, &prepared.images, &prepared.device, trainer.step())?;
    feed.restore_quarantine(quarantine);
    let images = Arc::clone(&prepared.images.train);
    feed.on_stall(move |stall| {
        let at = stall
            .sample
            .map_or_else(String::new, |key| format!(", at {}", images.place(key)));
        say!(
            "warning: waited {:.0} s for a batch; {:?} holds it up{at}",
            stall.consumer_waited_s,
            stall.stage
        );
    });
    let first_step = trainer.step();
    let mut observer = Watcher::new(recipe, &prepared.images, plan, first_step, device);
    let began = Instant::now();
    let outcome = trainer.run(&mut feed, run, &prepared.identity, plan, &stop, &mut observer)?;
    // From here on a signal ends the process at once: everything is saved.
    stop.store(true, Ordering::Relaxed);
    drop(observer);
    if let Some(peak) = cpu::peak_rss_mb() {
        say!("peak memory {}", Bytes((peak * f64::from(1 << 20)) as u64));
    }
    let bad = feed.quarantine_state().bad.len();
    say!(
        "trained {} steps in {:.1} s; {} bad samples so far were replaced{}",
        trainer.step() - first_step,
        began.elapsed().as_secs_f64(),
        bad,
        if bad > 0 { ", see quarantine.jsonl" } else { "" }
    );
    Ok(outcome)
}

/// A flag that the first signal raises; the second one ends the process at once.
fn stop_on_signals() -> Result<Arc<AtomicBool>, CliError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGUSR1] {
        if signal != SIGUSR1 {
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
        }
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// The last lines: how good, and where.
fn report(prepared: &Prepared, outcome: Outcome) -> Result<(), CliError> {
    let mut stdout = std::io::stdout();
    match outcome {
        Outcome::Stopped { step, .. } => {
            writeln!(
                stdout,
                "stopped at step {step} of {}; the same command continues",
                prepared.plan.total_steps
            )?;
        }
        Outcome::Complete if prepared.images.train.has_labels() && prepared.loaded.recipe.eval.knn_at_end => {
            // The run is complete and saved, whatever its evaluation says.
            match eval::knn_of_run(
                &prepared.run,
                &prepared.loaded.recipe,
                &prepared.images,
                &prepared.device,
                None,
            ) {
                Ok(knn) => write!(stdout, "{knn}")?,
                Err(error) => say!("warning: no k-NN at the end: {error}"),
            }
        }
        Outcome::Complete => {}
    }
    writeln!(stdout, "run folder: {}", prepared.run.display())?;
    Ok(())
}

fn report_dry_run(prepared: &Prepared) -> Result<(), CliError> {
    let (recipe, plan): (&Recipe, &Plan) = (&prepared.loaded.recipe, &prepared.plan);
    let encoder = recipe.encoder.cost(recipe.views.size as usize).parameters;
    let expander = recipe.expander.parameters(recipe.encoder.representation_dim());
    let mut stdout = std::io::stdout();
    writeln!(stdout, "samples          {}", plan.epoch.samples)?;
    writeln!(stdout, "batch            {}", recipe.train.batch_size)?;
    writeln!(
        stdout,
        "steps an epoch   {} ({} images dropped)",
        plan.epoch.steps_per_epoch, plan.epoch.dropped
    )?;
    writeln!(stdout, "steps            {}", plan.total_steps)?;
    writeln!(stdout, "parameters       {encoder} encoder + {expander} expander")?;
    writeln!(stdout, "memory           {}", plan.memory(recipe, &prepared.images))?;
    match &prepared.start {
        Start::Fresh => writeln!(stdout, "start            at step 0 into `{}`", prepared.run.display())?,
        Start::Checkpoint(path) => writeln!(stdout, "start            from `{}`", path.display())?,
    }
    writeln!(stdout, "dry run: nothing was trained or written")?;
    Ok(())
}
