//! The suite for OCI runtimes: the cases by subject, and how they are run.

mod bundle;
mod case;
mod cgroups;
mod cli;
mod devices;
mod exec;
mod harness;
mod hooks;
mod host;
mod lifecycle;
mod mounts;
mod namespaces;
mod process;
mod rootless;
mod seccomp;
mod state;
mod terminal;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::report::{Record, Verdict};
use case::Case;
use harness::{Suite, Test};
use host::Host;

/// Every subject, in the order in which they are reported.
const SUBJECTS: &[&[Case]] = &[
    lifecycle::CASES,
    state::CASES,
    hooks::CASES,
    process::CASES,
    terminal::CASES,
    mounts::CASES,
    namespaces::CASES,
    devices::CASES,
    cgroups::CASES,
    seccomp::CASES,
    cli::CASES,
    exec::CASES,
    rootless::CASES,
];

/// The cases whose name or clause contains `filter`.
pub fn cases(filter: Option<&str>) -> Vec<&'static Case> {
    let wanted = |c: &&Case| filter.is_none_or(|f| c.name.contains(f) || c.clause.contains(f));
    SUBJECTS.iter().flat_map(|s| s.iter()).filter(wanted).collect()
}

/// "runc 1.1.5", "crun 1.8.1": the first line of `--version`, shortened to name and number.
pub fn version_of(runtime: &Path) -> String {
    let name = runtime.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Ok(output) = Command::new(runtime).arg("--version").output() else { return name };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next().unwrap_or_default().replace(" version", "");
    let line = line.split('+').next().unwrap_or_default().trim();
    if line.is_empty() { name } else { line.to_owned() }
}

/// Give this process a mount namespace in which the v2 side of a hybrid host is not mounted.
pub fn hide_unified() -> Result<()> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sched::{CloneFlags, unshare};
    let unified = "/sys/fs/cgroup/unified";
    if !Path::new(unified).join("cgroup.procs").exists() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make / private")?;
    umount2(unified, MntFlags::MNT_DETACH).with_context(|| format!("umount {unified}"))
}

/// Run `cases` against one runtime and print a record for each as it ends.
pub fn work(runtime: &Path, cases: &[&'static Case], jobs: usize, keep: bool) -> Result<()> {
    let suite = Suite::new(runtime, Host::probe()?, keep)?;
    let next = AtomicUsize::new(0);
    let out = Mutex::new(std::io::stdout());
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..jobs.max(1)).map(|_| scope.spawn(|| worker(&suite, cases, &next, &out))).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked")))?;
        }
        Ok(())
    })
}

fn worker(suite: &Suite, cases: &[&Case], next: &AtomicUsize, out: &Mutex<std::io::Stdout>) -> Result<()> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(case) = cases.get(number) else { return Ok(()) };
        let record = judge(suite, number, case);
        let line = serde_json::to_string(&record)?;
        let mut out = out.lock().map_err(|_| anyhow::anyhow!("another worker panicked"))?;
        writeln!(out, "{line}")?;
    }
}

/// Check what the case needs, run it, clean up after it, and put all of that into one verdict.
fn judge(suite: &Suite, number: usize, case: &Case) -> Record {
    let begun = Instant::now();
    let (verdict, reason) = match case.needs.iter().find_map(|need| suite.host.lacks(need)) {
        Some(missing) => (Verdict::Skip, missing),
        None => verdict_of(suite, number, case),
    };
    Record {
        number,
        name: case.name.to_owned(),
        clause: case.clause.to_owned(),
        about: case.about.to_owned(),
        kind: case.kind.word().to_owned(),
        verdict,
        reason,
        millis: begun.elapsed().as_millis() as u64,
    }
}

fn verdict_of(suite: &Suite, number: usize, case: &Case) -> (Verdict, String) {
    let test = match Test::new(suite, number) {
        Ok(test) => test,
        Err(error) => return (Verdict::Fail, format!("prepare the case: {error:#}")),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(&test)));
    let mut left = test.clean_up();
    left.extend(suite.host.changed());
    match outcome {
        Err(_) => (Verdict::Fail, "the case itself panicked".to_owned()),
        Ok(Err(error)) if error.is::<case::Skip>() => (Verdict::Skip, error.to_string()),
        Ok(Err(error)) if left.is_empty() => (Verdict::Fail, format!("{error:#}")),
        Ok(Err(error)) => (Verdict::Fail, format!("{error:#}\nleft behind: {}", left.join(", "))),
        Ok(Ok(())) if left.is_empty() => (Verdict::Pass, String::new()),
        Ok(Ok(())) => (Verdict::Fail, format!("left behind: {}", left.join(", "))),
    }
}
