//! Runs hooks: in order, with the container's state on standard input (config.md, "POSIX-platform Hooks").

use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::plan::hooks::Hook;
use crate::state::Status;

/// What a hook learns on its standard input (runtime.md, "State").
#[derive(Clone, Debug)]
pub struct ContainerState<'a> {
    pub oci_version: &'a str,
    pub id: &'a str,
    pub pid: i32,
    pub bundle: &'a Path,
    pub annotations: &'a std::collections::BTreeMap<String, String>,
}

impl ContainerState<'_> {
    /// The JSON text with this status.
    pub fn json(&self, status: Status) -> String {
        let mut state = json!({
            "ociVersion": self.oci_version,
            "id": self.id,
            "status": status.to_string(),
            "pid": self.pid,
            "bundle": self.bundle.display().to_string(),
        });
        if status == Status::Stopped {
            state["pid"] = 0.into();
        }
        if !self.annotations.is_empty() {
            state["annotations"] = json!(self.annotations);
        }
        state.to_string()
    }
}

/// Run the hooks of a list in order; the first that fails ends it.
pub fn run(name: &str, hooks: &[Hook], state: &str, dir: Option<&Path>) -> Result<()> {
    for (i, hook) in hooks.iter().enumerate() {
        run_one(hook, state, dir).with_context(|| format!("hooks.{name}[{i}]: {}", hook.path.display()))?;
    }
    Ok(())
}

/// Run every hook of a list; failures are warnings (poststop).
pub fn run_all(name: &str, hooks: &[Hook], state: &str, dir: Option<&Path>) {
    for (i, hook) in hooks.iter().enumerate() {
        if let Err(e) = run_one(hook, state, dir) {
            log::warn!("hooks.{name}[{i}]: {}: {}", hook.path.display(), report::line(&e));
        }
    }
}

fn run_one(hook: &Hook, state: &str, dir: Option<&Path>) -> Result<()> {
    let mut input = sys::fd::memory_file("state").context("make the hook's input")?;
    input.write_all(state.as_bytes()).and_then(|()| input.rewind()).context("write the hook's input")?;
    let mut output = sys::fd::memory_file("output").context("make the hook's output")?;
    let mut command = Command::new(&hook.path);
    command
        .arg0(hook.args.first().map_or("", String::as_str))
        .args(hook.args.iter().skip(1))
        .stdin(input)
        .stdout(Stdio::from(output.try_clone().context("hook's output")?))
        .stderr(Stdio::from(output.try_clone().context("hook's output")?));
    if let Some(env) = &hook.env {
        command.env_clear().envs(env.iter().filter_map(|e| e.split_once('=')));
    }
    if let Some(dir) = dir {
        command.current_dir(dir);
    }
    sys::process::die_with_parent(&mut command);
    let mut child = command.spawn().map_err(|e| anyhow!(crate::launch::channel::lower(&e)))?;
    if let Some(seconds) = hook.timeout {
        let pidfd = sys::process::pidfd_open(child.id().cast_signed()).context("watch the hook")?;
        let limit = Timespec { tv_sec: i64::from(seconds), tv_nsec: 0 };
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let ended =
            rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit))).context("wait for the hook")?;
        if ended == 0 {
            child.kill().and_then(|()| child.wait()).context("end the hook")?;
            return Err(anyhow!("timed out after {seconds} s"));
        }
    }
    let status = child.wait().context("wait for the hook")?;
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    output
        .rewind()
        .and_then(|()| output.take(4096).read_to_end(&mut text))
        .context("read the hook's output")?;
    let text = String::from_utf8_lossy(&text);
    let text = text.trim();
    Err(anyhow!("{status}{}{text}", if text.is_empty() { "" } else { ", it said: " }))
}
