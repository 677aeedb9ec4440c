//! `resume`: let a paused container's processes go on.

use anyhow::{Context, Result};
use report::{Kind, error};

use super::Globals;
use crate::cgroup;
use crate::state::{Dir, Status};

/// Let a paused container's processes go on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  berth-runtime resume web")]
pub struct Args {
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// Thaw.
pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    resume(globals, &args.id).with_context(|| format!("resume {}", args.id))?;
    Ok(0)
}

fn resume(globals: &Globals, id: &str) -> Result<()> {
    let dir = Dir::open(&globals.root, id)?;
    let _lock = dir.lock()?;
    let state = dir.load()?;
    match dir.status(&state)? {
        Status::Created | Status::Running | Status::Paused if cgroup::is_frozen(&state.cgroup)? => {
            cgroup::thaw(&state.cgroup)
        }
        status => Err(error(Kind::WrongState, format!("container not paused: it is {status}"))),
    }
}
