//! Sets kernel parameters of the container's namespaces.

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use report::at;

use crate::plan::namespaces;
use crate::plan::sysctl::Sysctl;

/// In the parent: a namespace that is joined by path may be our own, the host's.
pub fn check(list: &[Sysctl], flag: u64, joined: BorrowedFd<'_>) -> Result<()> {
    let Some(sysctl) = list.iter().find(|s| s.namespace == flag) else { return Ok(()) };
    let kind = namespaces::name(flag);
    let Some((_, _, file)) = namespaces::TABLE.iter().find(|(_, f, _)| *f == flag) else { return Ok(()) };
    let own = rustix::fs::stat(format!("/proc/self/ns/{file}"))
        .with_context(|| format!("look at our {kind} namespace"))?;
    let joined =
        rustix::fs::fstat(joined).with_context(|| format!("look at the {kind} namespace to join"))?;
    if (own.st_dev, own.st_ino) == (joined.st_dev, joined.st_ino) {
        return Err(at(
            format_args!("linux.sysctl[{:?}]", sysctl.key),
            format!("the {kind} namespace to join is the host's: it would change the host"),
        ));
    }
    Ok(())
}

/// In init, in all of its namespaces, before /proc/sys becomes read-only. Each goes to a file that is one of procfs.
pub fn apply(list: &[Sysctl]) -> Result<()> {
    for s in list {
        sys::procfs::write(&format!("sys/{}", s.path), s.value.as_bytes())
            .with_context(|| format!("linux.sysctl[{:?}]: set to {:?}", s.key, s.value))?;
    }
    Ok(())
}
