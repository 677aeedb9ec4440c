//! What is left when a runtime is killed at any system call? For every system call of every process of create, start,
//! run, exec, kill and delete: SIGKILL there, one `delete --force`, then nothing may be left and the next command works.
//!
//! ```text
//! crash-points [--runtime PATH] [--verb VERB]… [--all | --budget SECONDS] [--errors | --delays] [--at PROCESS:CALL]
//! ```
//! With `--errors` the call fails with ENOSPC, EIO, EMFILE or ENOMEM instead: then the verb says so and cleans up, or
//! what it reports as done is done. With `--delays` the call waits until all other processes have gone as far as they can:
//! whoever is quicker, the verb succeeds, and shows what it shows undisturbed.
//! Without `--all`, as many points as the budget allows are taken evenly from all. Exits with 1 if any is unclean.

mod scenario;
mod tracer;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use harness::Bed;
use nix::errno::Errno;
use scenario::{Scenario, Verb};
use tracer::{Blow, Point};

struct Options {
    verbs: Vec<Verb>,
    all: bool,
    budget: Duration,
    mode: Mode,
    at: Option<(usize, u32)>,
}

/// What is done at the points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Kills,
    Errors,
    Delays,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == tracer::GATE) {
        return tracer::pass_the_gate(&args[1..]);
    }
    match parse(&args).and_then(|options| run(&options)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("crash-points: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options {
        verbs: Vec::new(),
        all: false,
        budget: Duration::from_secs(75),
        mode: Mode::Kills,
        at: None,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--all" => options.all = true,
            "--errors" => options.mode = Mode::Errors,
            "--delays" => options.mode = Mode::Delays,
            "--budget" => options.budget = Duration::from_secs(value()?.parse().context("--budget")?),
            "--at" => {
                let (process, call) = value()?.split_once(':').context("--at wants PROCESS:CALL")?;
                options.at = Some((process.parse().context("--at")?, call.parse().context("--at")?));
            }
            "--verb" => options.verbs.push(Verb::parse(value()?)?),
            "--runtime" => harness::runtime::choose(value()?),
            _ => bail!("unknown option {arg}"),
        }
    }
    if options.verbs.is_empty() {
        options.verbs = Verb::ALL.to_vec();
    }
    Ok(options)
}

/// How many points are unclean.
fn run(options: &Options) -> Result<usize> {
    tracer::adopt_orphans()?;
    println!("runtime {}", harness::runtime::path().display());
    println!("{:<14} {:>6} {:>6} {:>6}  unclean", "verb", "points", "tried", "clean");
    let share = options.budget / u32::try_from(options.verbs.len())?;
    let (mut points, mut tried, mut unclean) = (0, 0, 0);
    for &verb in &options.verbs {
        let score = score(verb, if options.all { None } else { Some(share) }, options)?;
        println!(
            "{:<14} {:>6} {:>6} {:>6}  {}",
            verb.name(),
            score.points,
            score.tried,
            score.tried - score.unclean.len(),
            score.unclean.len()
        );
        for line in &score.unclean {
            println!("    {line}");
        }
        points += score.points;
        tried += score.tried;
        unclean += score.unclean.len();
    }
    println!("{:<14} {points:>6} {tried:>6} {:>6}  {unclean}", "all", tried - unclean);
    Ok(unclean)
}

struct Score {
    points: usize,
    tried: usize,
    unclean: Vec<String>,
}

/// What is done to one point: every error when `all` are wanted, else they take turns.
fn blows(point: &Point, index: usize, mode: Mode, all: bool) -> Vec<Blow> {
    const ERRORS: [Errno; 4] = [Errno::ENOSPC, Errno::EIO, Errno::EMFILE, Errno::ENOMEM];
    match (mode, all) {
        (Mode::Kills, _) if point.alive == 1 => vec![Blow::KillOne],
        (Mode::Kills, _) => vec![Blow::KillOne, Blow::KillAll],
        // Nobody else is there to be quicker.
        (Mode::Delays, _) if point.alive == 1 => vec![],
        (Mode::Delays, _) => vec![Blow::Delay],
        // exit, exit_group, rt_sigreturn: they do not return. clock_gettime: it cannot fail, and seldom is a system call.
        (Mode::Errors, _) if [60, 231, 15, 228].contains(&point.syscall) => vec![],
        (Mode::Errors, true) => ERRORS.map(Blow::Fail).to_vec(),
        (Mode::Errors, false) => vec![Blow::Fail(ERRORS[index % ERRORS.len()])],
    }
}

fn score(verb: Verb, share: Option<Duration>, options: &Options) -> Result<Score> {
    let began = Instant::now();
    let bed = Bed::new();
    let scenario = Scenario::new(&bed, verb)?;
    // Twice: the first run warms caches and makes mount points, which later runs find there.
    scenario.record()?;
    let (recorded, each, effect) = scenario.record()?;
    let points: Vec<(Point, Blow)> = recorded
        .iter()
        .filter(|p| options.at.is_none_or(|at| at == (p.process, p.nth)))
        .enumerate()
        .flat_map(|(i, p)| blows(p, i, options.mode, share.is_none()).into_iter().map(|b| (p.clone(), b)))
        .collect();
    let stride = match share {
        None => 1,
        Some(share) => {
            let pause = if options.mode == Mode::Delays { tracer::STILL } else { Duration::ZERO };
            let left = share.saturating_sub(began.elapsed()).as_secs_f64();
            // Tracing, deleting and checking cost about as much again as the recorded run itself.
            let affordable = (left / ((each + pause).as_secs_f64() * 1.3 + 0.001)).max(1.0);
            ((points.len() as f64 / affordable).ceil()).max(1.0) as usize
        }
    };
    let mut score = Score { points: points.len(), tried: 0, unclean: Vec::new() };
    let mut chosen = points.iter().step_by(stride);
    let in_time = || share.is_none_or(|share| began.elapsed() < share);
    // A bed in which something was left is given up for a new one.
    let mut spoilt = true;
    while spoilt && in_time() {
        spoilt = false;
        let bed = Bed::new();
        bed.lenient();
        let scenario = Scenario::new(&bed, verb)?;
        while !spoilt && in_time() {
            let Some((point, blow)) = chosen.next() else { return Ok(score) };
            score.tried += 1;
            let (hit, left) = match options.mode {
                Mode::Kills => scenario.crash(point, *blow)?,
                Mode::Errors | Mode::Delays => scenario.disturb(point, *blow, &effect)?,
            };
            if !left.is_empty() {
                spoilt = true;
                let call = hit.map_or_else(|| "which was not reached".to_owned(), tracer::syscall_name);
                let story = format!("{} {call} ({}): {}", point.describe(), blow.describe(), left.join("; "));
                score.unclean.push(story);
            }
        }
    }
    Ok(score)
}
