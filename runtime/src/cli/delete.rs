//! `delete`: remove a container and everything that was made for it.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use report::{Explain, Kind, error};

use super::Globals;
use super::plain::{Known, Said, Until};
use crate::cgroup;
use crate::launch::container;
use crate::state::{Dir, Status};

/// Remove a container and what was made for it.
///
/// It must be stopped or just created. `--force` also kills one that runs, cleans up after a command that was
/// killed, and is content when there is no such container.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  berth-runtime delete --force web")]
pub struct Args {
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// Kill the container if it still runs; be content if there is none
    #[arg(short, long)]
    force: bool,
}

impl Args {
    /// From a plain command line.
    pub fn plain(line: &[&str]) -> Option<Args> {
        let said = Said::read(&[Known("force", Some(b'f'), false)], line, Until::End)?;
        match said.words[..] {
            [id] => Some(Args { id: id.into(), force: said.has("force") }),
            _ => None,
        }
    }
}

/// Delete the container.
pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    let doing = || format!("delete {}", args.id);
    let dir = match Dir::open(&globals.root, &args.id) {
        // containerd deletes what is gone, always.
        Err(e) if args.force && report::kind(&e) == Some(Kind::NotFound) => return Ok(0),
        other => other.with_context(doing)?,
    };
    let done = if args.force { force(&dir) } else { gently(&dir) };
    done.with_context(doing)?;
    Ok(0)
}

fn gently(dir: &Dir) -> Result<()> {
    let _lock = dir.lock()?;
    let state = dir.load()?;
    match dir.status(&state)? {
        Status::Created => container::destroy(dir, &state),
        Status::Stopped => container::remove(dir, &state),
        status @ (Status::Creating | Status::Running | Status::Paused) => {
            Err(error(Kind::WrongState, format!("cannot delete a container that is {status}")))
                .hint(|| "kill it first, or use --force".to_owned())
        }
    }
}

fn force(dir: &Dir) -> Result<()> {
    // A creator at work gives up when its child is killed, and lets go of the lock.
    let state = dir.load();
    if let Ok(state) = &state
        && let Some(pidfd) = state.pidfd()?
    {
        // It may end by itself meanwhile.
        sys::process::pidfd_signal(pidfd.as_fd(), 9).unwrap_or_default();
        cgroup::thaw(&state.cgroup)?;
    }
    let _lock = match dir.lock() {
        Ok(lock) => lock,
        // The creator has removed it.
        Err(_) if !dir.path().exists() => return Ok(()),
        Err(e) => return Err(e),
    };
    match dir.load() {
        Ok(state) => container::destroy(dir, &state),
        Err(_) if !dir.path().exists() => Ok(()),
        Err(e) => salvage(dir, e),
    }
}

/// A damaged state file: what it still tells is used, it goes in any case.
fn salvage(dir: &Dir, damage: anyhow::Error) -> Result<()> {
    // One without a cgroup has a name for its first process.
    if let Ok(Some((pid, birth))) = dir.load_process()
        && let Ok(Some(pidfd)) = birth.open(pid)
    {
        sys::process::pidfd_signal(pidfd.as_fd(), 9).unwrap_or_default();
    }
    let raw = dir.load_raw();
    let value: serde_json::Value = crate::json::parse(&raw).unwrap_or_default();
    if let Ok(record) = crate::json::parse::<cgroup::Record>(value["cgroup"].to_string().as_bytes()) {
        cgroup::destroy(&record)?;
    } else {
        cgroup::destroy_lost(&dir.path())?;
    }
    log::warn!("{}", report::line(&damage));
    dir.remove()
}
