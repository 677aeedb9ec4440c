//! What is this host? Facts gathered once, before planning, so that planning needs no system call.

pub mod kernel;

use anyhow::{Context, Result};

use crate::cgroup::host::Hierarchies;

/// Facts about the host and about ourselves.
#[derive(Clone, Debug)]
pub struct Host {
    pub euid: u32,
    pub egid: u32,
    /// We are not root of the initial user namespace: no device nodes, no v1 cgroups unless delegated.
    pub rootless: bool,
    /// A container that asks for no limit may go without a cgroup of its own: `--rootless`, else as `rootless`.
    pub cgroup_optional: bool,
    pub cgroup: Hierarchies,
    /// Our own permitted capabilities, as bits: nobody can be given more in the namespaces we are in.
    pub capabilities: u64,
}

impl Host {
    /// Look at the host.
    pub fn gather() -> Result<Host> {
        let (euid, egid) = sys::user::effective_ids();
        let rootless = euid != 0 || sys::user::in_user_namespace();
        let capabilities = sys::credentials::permitted().context("read our capabilities")?;
        Ok(Host {
            euid,
            egid,
            rootless,
            cgroup_optional: rootless,
            cgroup: Hierarchies::detect()?,
            capabilities,
        })
    }

    /// The same host, with what `--rootless=true|false` says.
    pub fn with_rootless(self, rootless: Option<bool>) -> Host {
        Host { cgroup_optional: rootless.unwrap_or(self.cgroup_optional), ..self }
    }
}
