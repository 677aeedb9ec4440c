//! `run`: create, start, and wait.

use std::os::fd::AsFd;

use anyhow::{Context, Result};

use super::Globals;
use super::create::{self, Common};
use super::plain::{Said, Until};
use crate::launch::container::{self, Outcome};
use crate::launch::foreground::{self, Foreground};

/// Create and start a container, and wait for it.
///
/// The exit code is that of the container's process (128 + n when signal n ended it). Signals are passed on to it.
/// It is deleted when it ends, unless `--keep` or `--detach` is given.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  berth-runtime run --bundle web web")]
pub struct Args {
    /// The name of the container: unique below --root
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    #[command(flatten)]
    common: Common,
    /// Do not wait: leave the container running in the background
    #[arg(short, long)]
    detach: bool,
    /// Do not delete the container after it has ended
    #[arg(long)]
    keep: bool,
    /// Do not adopt orphans of the container's processes
    #[arg(long)]
    no_subreaper: bool,
}

impl Args {
    /// From a plain command line.
    pub fn plain(line: &[&str]) -> Option<Args> {
        let said = Said::read(create::PLAIN, line, Until::End)?;
        match said.words[..] {
            [id] => Some(Args {
                id: id.into(),
                common: Common::plain(&said),
                detach: false,
                keep: false,
                no_subreaper: false,
            }),
            _ => None,
        }
    }
}

/// Run the container; the result is its process's exit status.
pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    // Before the clone, so that no signal and no exit is lost.
    let signals =
        if args.detach { None } else { Some(sys::signals::Signals::block().context("block signals")?) };
    if !args.detach && !args.no_subreaper {
        sys::process::set_subreaper().context("become a subreaper")?;
    }
    let Outcome { dir, state, pidfd, terminal, notify } =
        create::create(globals, &args.id, &args.common, true, args.detach)?;
    let doing = || format!("run {}", args.id);
    let foreground = Foreground { pid: state.pid, pidfd, terminal, notify };
    if let Err(e) = container::run_poststart(&state) {
        container::destroy(&dir, &state).with_context(doing)?;
        return Err(e).with_context(doing);
    }
    let Some(signals) = signals else {
        if let Some(notify) = &foreground.notify {
            notify.wait(foreground.pidfd.as_fd(), state.pid).with_context(doing)?;
        }
        return Ok(0);
    };
    let exit = foreground::attend(&foreground, &signals);
    let removed = if args.keep { Ok(()) } else { container::destroy(&dir, &state) };
    let exit = exit.with_context(doing)?;
    removed.with_context(doing)?;
    Ok(exit.status())
}
