//! `start`: let a created container's process execute its program.

use std::os::fd::AsFd;

use anyhow::{Context, Result};

use super::Globals;
use super::plain::{Said, Until};
use crate::launch::container;
use crate::launch::notify::{self, Notify};
use crate::state::Dir;

/// Start the process of a created container.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  berth-runtime start web")]
pub struct Args {
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

impl Args {
    /// From a plain command line.
    pub fn plain(line: &[&str]) -> Option<Args> {
        match Said::read(&[], line, Until::End)?.words[..] {
            [id] => Some(Args { id: id.into() }),
            _ => None,
        }
    }
}

/// Start the container.
pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    let doing = || format!("start {}", args.id);
    let dir = Dir::open(&globals.root, &args.id).with_context(doing)?;
    let lock = dir.lock().with_context(doing)?;
    let state = dir.load().with_context(doing)?;
    let notify = match notify::wanted() {
        Some(to) => Notify::listen(&dir, &to).with_context(doing)?,
        None => None,
    };
    let pidfd = if notify.is_some() { state.pidfd().with_context(doing)? } else { None };
    container::start(&dir, &state).with_context(doing)?;
    if let Err(e) = container::run_poststart(&state) {
        container::destroy(&dir, &state).with_context(doing)?;
        return Err(e).with_context(doing);
    }
    if let (Some(notify), Some(pidfd)) = (notify, pidfd) {
        // That may take long, and others may want to end it.
        drop(lock);
        notify.wait(pidfd.as_fd(), state.pid).with_context(doing)?;
    }
    Ok(0)
}
