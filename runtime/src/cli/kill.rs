//! `kill`: send a signal to a container's first process, or to all of its processes.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use report::{Explain, Kind, error};

use super::Globals;
use super::plain::{Known, Said, Until};
use crate::cgroup;
use crate::state::{Dir, State, Status};

/// Send a signal to a container's first process, or to all.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  berth-runtime kill web TERM\n  berth-runtime kill --all web 9")]
pub struct Args {
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// Name (TERM, SIGTERM, RTMIN+3) or number
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    signal: String,
    /// Send it to every process of the container
    #[arg(short, long)]
    all: bool,
}

impl Args {
    /// From a plain command line.
    pub fn plain(line: &[&str]) -> Option<Args> {
        let said = Said::read(&[Known("all", Some(b'a'), false)], line, Until::End)?;
        let (id, signal) = match said.words[..] {
            [id] => (id, "SIGTERM"),
            [id, signal] => (id, signal),
            _ => return None,
        };
        Some(Args { id: id.into(), signal: signal.into(), all: said.has("all") })
    }
}

/// Send the signal.
pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    let doing = || format!("kill {}", args.id);
    let signal = sys::signals::parse(&args.signal)
        .ok_or_else(|| error(Kind::BadInput, format!("unknown signal {:?}", args.signal)))
        .with_context(doing)?;
    let dir = Dir::open(&globals.root, &args.id).with_context(doing)?;
    let state = dir.load().with_context(doing)?;
    send(&dir, &state, signal, args.all).with_context(doing)?;
    Ok(0)
}

fn send(dir: &Dir, state: &State, signal: i32, all: bool) -> Result<()> {
    if all {
        // Also of a stopped container: processes may outlive the first one in a shared pid namespace.
        return cgroup::signal_all(&state.cgroup, signal);
    }
    let not_running = || {
        Err(error(Kind::WrongState, "container not running"))
            .hint(|| "only created, running and paused containers have a process".to_owned())
    };
    let Some(pidfd) = state.pidfd()? else {
        return match dir.status(state)? {
            Status::Creating => Err(error(Kind::WrongState, "the container is still being created")),
            _ => not_running(),
        };
    };
    match sys::process::pidfd_signal(pidfd.as_fd(), signal) {
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => not_running(),
        other => other.with_context(|| format!("signal process {}", state.pid)),
    }?;
    // A frozen process dies only when it runs again: on v1 the freezer holds back even SIGKILL.
    if signal == 9 && cgroup::is_frozen(&state.cgroup)? {
        cgroup::thaw(&state.cgroup)?;
    }
    Ok(())
}
