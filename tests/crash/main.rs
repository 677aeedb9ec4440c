//! What is left when a runtime is killed at any system call? For every system call of every process of create, start,
//! run, exec, kill and delete: SIGKILL there, one `delete --force`, then nothing may be left and the next command works.
//! The same for the builder's verbs: nothing that has a name may be lost, and the next command finds nothing left.
//!
//! ```text
//! crash-points [--runtime PATH | --builder PATH] [--verb VERB]… [--all | --points N | --budget SECONDS]
//!              [--errors | --delays] [--at PROCESS:CALL]
//! ```
//! With `--errors` the call fails with ENOSPC, EIO, EMFILE or ENOMEM instead: then the verb says so and cleans up, or
//! what it reports as done is done. With `--delays` the call waits until all other processes have gone as far as they can:
//! whoever is quicker, the verb succeeds, and shows what it shows undisturbed.
//! Without `--all`, as many points as the budget allows (or N of each verb) are taken evenly from all. Exits with 1 if any is
//! unclean.

mod images;
mod scenario;
mod tracer;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use harness::Bed;
use nix::errno::Errno;
use scenario::{Scenario, Verb};
use tracer::{Blow, Point};

struct Options {
    verbs: Vec<Subject>,
    all: bool,
    points: Option<usize>,
    budget: Duration,
    mode: Mode,
    at: Option<(usize, u32)>,
}

/// What is put to the test.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    Runtime(Verb),
    /// With the program.
    Builder(images::Verb, PathBuf),
}

/// A verb with all that it needs, time and again.
trait Trial {
    /// Run it undisturbed: all its points, how long one round takes, and what a success shows.
    fn record(&self) -> Result<(Vec<Point>, Duration, String)>;
    /// Kill at `point`; the call that was hit, and what is wrong afterwards.
    fn crash(&self, point: &Point, blow: Blow, expected: &str) -> Result<(Option<u64>, Vec<String>)>;
    /// Let the call at `point` fail or wait; which it was, and what is wrong with how the verb took it.
    fn disturb(&self, point: &Point, blow: Blow, expected: &str) -> Result<(Option<u64>, Vec<String>)>;
}

impl Subject {
    fn name(&self) -> &'static str {
        match self {
            Subject::Runtime(verb) => verb.name(),
            Subject::Builder(verb, _) => verb.name(),
        }
    }

    /// Whether a program is to cope with an error of that system call.
    fn can_fail(&self, syscall: u64) -> bool {
        match self {
            Subject::Runtime(_) => true,
            Subject::Builder(..) => !images::is_of_std(syscall),
        }
    }

    /// In a new bed; what is left in it is no error of its own.
    fn try_out<T>(&self, run: impl FnOnce(&dyn Trial) -> Result<T>) -> Result<T> {
        match self {
            Subject::Runtime(verb) => {
                let bed = Bed::new();
                bed.lenient();
                run(&Scenario::new(&bed, *verb)?)
            }
            Subject::Builder(verb, program) => run(&images::Scenario::new(program, *verb)?),
        }
    }
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
        points: None,
        budget: Duration::from_secs(75),
        mode: Mode::Kills,
        at: None,
    };
    let (mut names, mut builder) = (Vec::new(), None);
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
            "--verb" => names.push(value()?.clone()),
            "--points" => options.points = Some(value()?.parse().context("--points")?),
            "--runtime" => harness::runtime::choose(value()?),
            "--builder" => builder = Some(PathBuf::from(value()?).canonicalize().context("--builder")?),
            _ => bail!("unknown option {arg}"),
        }
    }
    let known: Vec<Subject> = match builder {
        Some(program) => images::Verb::ALL.map(|v| Subject::Builder(v, program.clone())).to_vec(),
        None => Verb::ALL.map(Subject::Runtime).to_vec(),
    };
    for name in &names {
        let Some(verb) = known.iter().find(|v| v.name() == name) else {
            let all: Vec<_> = known.iter().map(Subject::name).collect();
            bail!("unknown verb {name}; there are {}", all.join(", "));
        };
        options.verbs.push(verb.clone());
    }
    if names.is_empty() {
        options.verbs = known;
    }
    Ok(options)
}

/// How many points are unclean.
fn run(options: &Options) -> Result<usize> {
    tracer::adopt_orphans()?;
    match options.verbs.first() {
        Some(Subject::Builder(_, program)) => println!("builder {}", program.display()),
        _ => println!("runtime {}", harness::runtime::path().display()),
    }
    println!("{:<14} {:>6} {:>6} {:>6}  unclean", "verb", "points", "tried", "clean");
    let share = options.budget / u32::try_from(options.verbs.len())?;
    let (mut points, mut tried, mut unclean) = (0, 0, 0);
    for verb in &options.verbs {
        let share = if options.all || options.points.is_some() { None } else { Some(share) };
        let score = score(verb, share, options)?;
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

fn score(verb: &Subject, share: Option<Duration>, options: &Options) -> Result<Score> {
    let began = Instant::now();
    let (recorded, each, effect) = verb.try_out(|trial| {
        // Twice: the first run warms caches and makes mount points, which later runs find there.
        trial.record()?;
        trial.record()
    })?;
    let points: Vec<(Point, Blow)> = recorded
        .iter()
        .filter(|p| options.mode != Mode::Errors || verb.can_fail(p.syscall))
        .filter(|p| options.at.is_none_or(|at| at == (p.process, p.nth)))
        .enumerate()
        .flat_map(|(i, p)| blows(p, i, options.mode, options.all).into_iter().map(|b| (p.clone(), b)))
        .collect();
    let stride = match share {
        None => options.points.map_or(1, |wanted| (points.len() / wanted.max(1)).max(1)),
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
        verb.try_out(|trial| {
            while !spoilt && in_time() {
                let Some((point, blow)) = chosen.next() else { return Ok(()) };
                score.tried += 1;
                let (hit, left) = match options.mode {
                    Mode::Kills => trial.crash(point, *blow, &effect)?,
                    Mode::Errors | Mode::Delays => trial.disturb(point, *blow, &effect)?,
                };
                if !left.is_empty() {
                    spoilt = true;
                    let call = hit.map_or_else(|| "which was not reached".to_owned(), tracer::syscall_name);
                    let story =
                        format!("{} {call} ({}): {}", point.describe(), blow.describe(), left.join("; "));
                    score.unclean.push(story);
                }
            }
            Ok(())
        })?;
    }
    Ok(score)
}
