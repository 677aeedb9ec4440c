//! `state`: a container's state as JSON (runtime.md, "State").

use anyhow::{Context, Result};
use serde::Serialize;

use super::Globals;
use super::plain::{Said, Until};
use crate::state::{Dir, State, Status};

/// Print the state of a container as JSON.
///
/// Status is one of creating, created, running, paused, stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  berth-runtime state web | jq -r .status")]
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

/// What `state` and `list --format json` print, field by field as runc.
#[derive(Debug, Serialize)]
pub struct Shown {
    #[serde(rename = "ociVersion")]
    pub oci_version: String,
    pub id: String,
    pub pid: i32,
    pub status: Status,
    pub bundle: String,
    pub rootfs: String,
    pub created: String,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
    pub owner: String,
}

impl Shown {
    /// The public face of a state.
    pub fn new(state: State, status: Status) -> Shown {
        Shown {
            oci_version: state.oci_version,
            id: state.id,
            pid: if status == Status::Stopped { 0 } else { state.pid },
            status,
            bundle: state.bundle.display().to_string(),
            rootfs: state.rootfs.display().to_string(),
            created: state.created,
            annotations: state.annotations,
            owner: String::new(),
        }
    }
}

/// Print the state.
pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    let doing = || format!("state {}", args.id);
    let dir = Dir::open(&globals.root, &args.id).with_context(doing)?;
    let state = dir.load().with_context(doing)?;
    let status = dir.status(&state).with_context(doing)?;
    let text = serde_json::to_string_pretty(&Shown::new(state, status)).context("encode the state")?;
    super::print(&format!("{text}\n"))?;
    Ok(0)
}
