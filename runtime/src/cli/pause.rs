//! `pause`: stop every process of a container at once.

use anyhow::{Context, Result};
use report::{Explain, Kind, error};

use super::Globals;
use crate::cgroup;
use crate::state::{Dir, Status};

/// Stop every process of a container at once.
///
/// The processes keep their memory and open files, and do not notice. `resume` lets them go on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  berth-runtime pause web")]
pub struct Args {
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// Freeze.
pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    pause(globals, &args.id).with_context(|| format!("pause {}", args.id))?;
    Ok(0)
}

fn pause(globals: &Globals, id: &str) -> Result<()> {
    let dir = Dir::open(&globals.root, id)?;
    let _lock = dir.lock()?;
    let state = dir.load()?;
    match dir.status(&state)? {
        Status::Created | Status::Running if !cgroup::is_frozen(&state.cgroup)? => {
            cgroup::freeze(&state.cgroup)
        }
        Status::Created | Status::Running | Status::Paused => {
            Err(error(Kind::WrongState, "container not running: it is paused already"))
        }
        status @ (Status::Creating | Status::Stopped) => {
            Err(error(Kind::WrongState, format!("container not running: it is {status}")))
                .hint(|| "only created and running containers can be paused".to_owned())
        }
    }
}
