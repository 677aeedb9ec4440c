//! Hands the seccomp listener to the agent behind `listenerPath` (config-linux.md, "Seccomp").

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use serde_json::json;

use crate::plan::seccomp::Listener;

/// Send the container process state (with the container's `state` JSON) and the descriptor.
pub fn send(listener: &Listener, fd: BorrowedFd<'_>, pid: i32, state: &str) -> Result<()> {
    let shown = || format!("linux.seccomp.listenerPath: {}", listener.path.display());
    let socket = sys::socket::connect_stream(&listener.path).with_context(shown)?;
    let state: serde_json::Value = serde_json::from_str(state).context("the container's state")?;
    let message = json!({
        "ociVersion": state["ociVersion"],
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": listener.metadata,
        "state": state,
    });
    use std::os::fd::AsFd;
    sys::socket::send(socket.as_fd(), message.to_string().as_bytes(), &[fd]).with_context(shown)
}
