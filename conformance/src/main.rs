//! The command line: which suite, which runtimes, which cases, which form of report.
//!
//! Each runtime is held to the suite in a process of its own, which streams one JSON object a case; this
//! process prints them. That way a runtime that refuses a hybrid cgroup host gets a mount namespace in which
//! the v2 side is not there, and nobody else notices.

mod builder;
mod report;
mod runtime;

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};

use report::{Column, Record};

#[derive(Parser)]
#[command(name = "conformance", about = "Hold container programs to their specifications, from outside")]
struct Cli {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// Hold OCI runtimes to runtime-spec 1.3 and to runc's command line
    Runtime(Args),
    /// Hold Dockerfile builders to the public reference
    Builder(BuilderArgs),
}

#[derive(clap::Args)]
struct BuilderArgs {
    /// A builder to test: berth, buildah, podman, docker, as NAME or NAME=PROGRAM; may be given several times
    #[arg(long, value_name = "NAME[=PROGRAM]", default_value = "berth")]
    builder: Vec<String>,
    /// Only cases whose name or rule contains this, or of this part
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// How to print the results
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Only list the cases
    #[arg(long)]
    list: bool,
    /// How many cases run at once
    #[arg(long, value_name = "N", default_value_t = 2)]
    jobs: usize,
    /// Where stores and contexts are made [default: a new folder in /tmp]
    #[arg(long, value_name = "FOLDER")]
    work: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Args {
    /// A runtime to test, by path or name; may be given several times
    #[arg(long, value_name = "PATH", default_value = "berth-runtime")]
    runtime: Vec<PathBuf>,
    /// A runtime whose failures make the exit status 1 (default: the first)
    #[arg(long, value_name = "PATH")]
    must: Vec<PathBuf>,
    /// Only cases whose name or clause contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// How to print the results
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Only list the cases
    #[arg(long)]
    list: bool,
    /// How many cases run at once
    #[arg(long, value_name = "N", default_value_t = 2)]
    jobs: usize,
    /// Hide /sys/fs/cgroup/unified from this runtime (crun is recognised without it)
    #[arg(long, value_name = "PATH")]
    hide_unified: Vec<PathBuf>,
    /// Keep the bundles for a look
    #[arg(long)]
    keep: bool,
    /// Run the cases of one runtime and stream records (what this program starts itself with)
    #[arg(long, hide = true)]
    worker: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Table,
    Json,
    Markdown,
}

fn main() -> ExitCode {
    let done = match Cli::parse().suite {
        Suite::Runtime(args) => runtime_suite(&args),
        Suite::Builder(args) => builder_suite(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn builder_suite(args: &BuilderArgs) -> Result<ExitCode> {
    let cases = builder::cases(args.filter.as_deref())?;
    let mut out = std::io::stdout().lock();
    if args.list {
        for case in &cases {
            writeln!(out, "{:<44} {:<10} {}", case.name, case.part, case.rule)?;
        }
        writeln!(out, "{} cases", cases.len())?;
        return Ok(ExitCode::SUCCESS);
    }
    drop(out);
    let work = match &args.work {
        Some(work) => work.clone(),
        None => std::env::temp_dir().join(format!("conformance-builder-{}", std::process::id())),
    };
    let live = args.format == Format::Table && args.builder.len() == 1;
    let mut columns = Vec::new();
    for name in &args.builder {
        let place = work.join(columns.len().to_string());
        std::fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
        let adapter = builder::Adapter::parse(name, &place.join("store"))?;
        let tell = |record: &Record| {
            if live {
                println!("{}", report::line(record));
            }
        };
        let records = builder::run(&adapter, &cases, args.jobs, &place, &tell)?;
        columns.push(Column { path: PathBuf::from(name), title: name.clone(), records });
    }
    if let Err(e) = std::fs::remove_dir_all(&work) {
        // An ordinary user's store has files of other ids.
        eprintln!("conformance: {} stays: {e}", work.display());
    }
    let mut out = std::io::stdout().lock();
    match args.format {
        Format::Table if columns.len() == 1 => report::details(&mut out, &columns)?,
        Format::Table => report::table(&mut out, &columns)?,
        Format::Json => report::json(&mut out, &columns)?,
        Format::Markdown => report::markdown(&mut out, &columns)?,
    }
    if args.format != Format::Json {
        report::summary(&mut out, &columns)?;
    }
    let failed = columns.first().is_some_and(|c| c.counts().failed > 0);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn runtime_suite(args: &Args) -> Result<ExitCode> {
    let cases = runtime::cases(args.filter.as_deref());
    if args.list {
        let mut out = std::io::stdout().lock();
        for case in &cases {
            writeln!(out, "{:<44} {:<52} {}", case.name, case.clause, case.about)?;
        }
        writeln!(out, "{} cases", cases.len())?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.worker {
        let [path] = args.runtime.as_slice() else { bail!("--worker takes one runtime") };
        if args.hide_unified.contains(path) {
            runtime::hide_unified()?;
        }
        runtime::work(&resolve(path)?, &cases, args.jobs, args.keep)?;
        return Ok(ExitCode::SUCCESS);
    }

    let mut columns = Vec::new();
    for path in &args.runtime {
        columns.push(run_one(path, args, cases.len())?);
    }
    let mut out = std::io::stdout().lock();
    match args.format {
        Format::Table if columns.len() == 1 => report::details(&mut out, &columns)?,
        Format::Table => report::table(&mut out, &columns)?,
        Format::Json => report::json(&mut out, &columns)?,
        Format::Markdown => report::markdown(&mut out, &columns)?,
    }
    if args.format != Format::Json {
        report::summary(&mut out, &columns)?;
    }
    let must = if args.must.is_empty() { &args.runtime[..1] } else { &args.must[..] };
    let failed = columns.iter().filter(|c| must.contains(&c.path)).any(|c| c.counts().failed > 0);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Start ourselves as the worker for one runtime and gather what it streams.
fn run_one(path: &PathBuf, args: &Args, total: usize) -> Result<Column> {
    let title = runtime::version_of(&resolve(path)?);
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.args(["runtime", "--worker", "--jobs"]).arg(args.jobs.to_string()).arg("--runtime").arg(path);
    if args.hide_unified.contains(path) || title.starts_with("crun") {
        command.arg("--hide-unified").arg(path);
    }
    if let Some(filter) = &args.filter {
        command.arg("--filter").arg(filter);
    }
    if args.keep {
        command.arg("--keep");
    }
    let mut child = command.stdout(Stdio::piped()).spawn().context("start a worker")?;
    let stream = BufReader::new(child.stdout.take().context("worker without stdout")?);
    let live = args.format == Format::Table && args.runtime.len() == 1;
    let mut records: Vec<Record> = Vec::new();
    for line in stream.lines() {
        let record: Record = serde_json::from_str(&line?).context("read a worker's record")?;
        if live {
            println!("{}", report::line(&record));
        } else if std::io::stderr().is_terminal() {
            eprint!("\r{title}: {}/{total}", records.len() + 1);
        }
        records.push(record);
    }
    if !live && std::io::stderr().is_terminal() {
        eprintln!();
    }
    let status = child.wait().context("wait for the worker")?;
    if !status.success() {
        bail!("the worker for {} ended with {status}", path.display());
    }
    records.sort_by_key(|r| r.number);
    Ok(Column { path: path.clone(), title, records })
}

/// A bare name is looked up in PATH; anything else becomes absolute, since cases change directories.
fn resolve(path: &PathBuf) -> Result<PathBuf> {
    if path.components().count() > 1 || path.exists() {
        return path.canonicalize().with_context(|| format!("runtime {}", path.display()));
    }
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs)
        .map(|dir| dir.join(path))
        .find(|p| p.is_file())
        .with_context(|| format!("runtime {}: not in PATH", path.display()))
}
