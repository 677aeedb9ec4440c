//! How does a seccomp profile become a BPF program? (config-linux.md, "Seccomp")
//!
//! ```text
//! LinuxSeccomp ─ rules ▶ checked entries ─ decide ▶ ranges per architecture ─ emit ▶ instructions
//! ```
//!
//! The meaning is that of runc with libseccomp: see docs/seccomp.md for what that is in the corners.

mod arch;
mod decide;
mod emit;
mod rules;
mod summary;
mod syscalls;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::{Result, bail};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompFilterFlag as Flag};
use report::at;
pub use summary::{ActionSummary, Summary, summary};
use sys::seccomp::{self, Insn};

/// A compiled profile, ready for seccomp(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub program: Vec<Insn>,
    /// `SECCOMP_FILTER_FLAG_*` bits; `NEW_LISTENER` is among them when the profile notifies.
    pub flags: u32,
    /// Where the listener's descriptor goes, for `SCMP_ACT_NOTIFY`.
    pub listener: Option<Listener>,
}

/// `listenerPath` and `listenerMetadata`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Listener {
    pub path: PathBuf,
    pub metadata: String,
}

/// Compile `linux.seccomp`. `None` when the profile restricts nothing.
pub fn plan(profile: &LinuxSeccomp) -> Result<Option<Filter>> {
    compile(profile, arch::native())
}

fn compile(profile: &LinuxSeccomp, family: &arch::Family) -> Result<Option<Filter>> {
    let rules = rules::read(profile)?;
    let listener = listener(profile)?;
    let flags = flags(profile, listener.is_some())?;
    if profile.default_action() == Action::ScmpActAllow && rules.entries.is_empty() {
        return Ok(None);
    }
    let decisions = decide::decide(&rules, family);
    let program = emit::emit(&rules, &decisions, family.big_endian)?;
    Ok(Some(Filter { program, flags, listener }))
}

/// Where notifications go, when there are any: listenerPath is ignored otherwise, as the spec says.
fn listener(profile: &LinuxSeccomp) -> Result<Option<Listener>> {
    let path = profile.listener_path().as_ref().filter(|p| !p.as_os_str().is_empty());
    let metadata = profile.listener_metadata().clone().unwrap_or_default();
    if path.is_none() && !metadata.is_empty() {
        return Err(at("linux.seccomp.listenerMetadata", "needs listenerPath"));
    }
    let notifies = |s: &oci_spec::runtime::LinuxSyscall| s.action() == Action::ScmpActNotify;
    match (profile.syscalls().iter().flatten().any(notifies), path) {
        (false, _) => Ok(None),
        (true, Some(path)) => Ok(Some(Listener { path: path.clone(), metadata })),
        (true, None) => Err(at("linux.seccomp.listenerPath", "missing, and SCMP_ACT_NOTIFY needs it")),
    }
}

/// Without `flags`, speculative execution is left as it is (runc's default); an empty list means none.
fn flags(profile: &LinuxSeccomp, notifies: bool) -> Result<u32> {
    let Some(list) = profile.flags() else {
        return Ok(seccomp::FLAG_SPEC_ALLOW | if notifies { seccomp::FLAG_NEW_LISTENER } else { 0 });
    };
    let mut flags = 0;
    for (i, flag) in list.iter().enumerate() {
        flags |= match flag {
            Flag::SeccompFilterFlagLog => seccomp::FLAG_LOG,
            Flag::SeccompFilterFlagSpecAllow => seccomp::FLAG_SPEC_ALLOW,
            // The filter is installed by a process of one thread, so that there is nothing to synchronise; the
            // kernel refuses this flag together with a listener.
            Flag::SeccompFilterFlagTsync if notifies => 0,
            Flag::SeccompFilterFlagTsync => seccomp::FLAG_TSYNC,
            Flag::SeccompFilterFlagWaitKillableRecv if !notifies => {
                return Err(at(
                    format!("linux.seccomp.flags[{i}]"),
                    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a rule with SCMP_ACT_NOTIFY",
                ));
            }
            Flag::SeccompFilterFlagWaitKillableRecv => seccomp::FLAG_WAIT_KILLABLE_RECV,
        };
    }
    Ok(flags | if notifies { seccomp::FLAG_NEW_LISTENER } else { 0 })
}

/// First bytes of a stored filter; the last one is the version of the layout.
const MAGIC: [u8; 8] = *b"berthsc\x01";

impl Filter {
    /// The filter as it lies in the state file file, for `exec`: magic, flags, listener (path and metadata, each with
    /// its length; the first length is all ones for none), instructions.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24 + self.program.len() * 8);
        out.extend(MAGIC);
        out.extend(self.flags.to_ne_bytes());
        match &self.listener {
            None => out.extend(u32::MAX.to_ne_bytes()),
            Some(listener) => {
                use std::os::unix::ffi::OsStrExt;
                for text in [listener.path.as_os_str().as_bytes(), listener.metadata.as_bytes()] {
                    out.extend((text.len() as u32).to_ne_bytes());
                    out.extend(text);
                }
            }
        }
        out.extend(seccomp::to_bytes(&self.program));
        out
    }

    /// What [`Filter::to_bytes`] wrote. Errors on anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Filter> {
        let mut rest = bytes;
        if take(&mut rest, 8)? != MAGIC {
            bail!("not a compiled seccomp filter of this version");
        }
        let flags = word(&mut rest)?;
        let listener = match word(&mut rest)? {
            u32::MAX => None,
            length => {
                use std::os::unix::ffi::OsStringExt;
                let path = std::ffi::OsString::from_vec(take(&mut rest, length as usize)?.to_vec());
                let length = word(&mut rest)?;
                let metadata = String::from_utf8(take(&mut rest, length as usize)?.to_vec())?;
                Some(Listener { path: path.into(), metadata })
            }
        };
        Ok(Filter { program: seccomp::from_bytes(rest)?, flags, listener })
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let Some((head, tail)) = rest.split_at_checked(length) else {
        bail!("compiled seccomp filter is cut short")
    };
    *rest = tail;
    Ok(head)
}

fn word(rest: &mut &[u8]) -> Result<u32> {
    let mut out = [0; 4];
    out.copy_from_slice(take(rest, 4)?);
    Ok(u32::from_ne_bytes(out))
}
