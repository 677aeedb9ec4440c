//! Sets what all processes of a container share: session keyring, memory policy, personality.

use std::ffi::CString;

use anyhow::{Context, Result};
use report::Explain;

use crate::plan::common::Common;

/// In the container's user namespace: leave the caller's session keyring for the container's, `_ses.<id>`.
pub fn join_keyring(common: &Common, id: &str) -> Result<()> {
    if common.no_new_keyring {
        return Ok(());
    }
    let name = CString::new(format!("_ses.{id}")).context("keyring")?;
    // A kernel without keys has none that could leak.
    sys::keyring::join_session(&name)
        .map(drop)
        .with_context(|| format!("join session keyring _ses.{id}"))
        .hint(|| "--no-new-keyring goes without, on the caller's keyring".to_owned())
}

/// Memory policy and personality of the calling process; both survive `execve`.
pub fn apply(common: &Common) -> Result<()> {
    if let Some(policy) = &common.memory_policy {
        sys::sched::set_memory_policy(policy.mode, &policy.nodes)
            .context("linux.memoryPolicy: set_mempolicy")?;
    }
    if let Some(domain) = common.personality {
        sys::sched::set_personality(domain).context("linux.personality: personality")?;
    }
    Ok(())
}
