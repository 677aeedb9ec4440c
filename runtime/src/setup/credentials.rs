//! How do we give up our rights? As the last steps before the program: see `sys::trampoline`.
//!
//! Order, and why: groups and ids while we may still change them; capabilities are kept across the change of
//! ids; the bounding set before `capset` takes CAP_SETPCAP away; the seccomp filter as late as its privileges
//! allow (after everything with no_new_privs, before `capset` without, for it needs CAP_SYS_ADMIN then).

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use sys::trampoline::Program;

use super::attributes;
use crate::plan::attributes::Attributes;
use crate::plan::process::Credentials;
use crate::plan::seccomp::Filter;

/// What the program's credentials depend on beside the plan.
#[derive(Debug)]
pub struct Surroundings<'a> {
    pub seccomp: Option<&'a Filter>,
    /// Where the seccomp listener's number is reported.
    pub report: BorrowedFd<'a>,
    /// setgroups(2) is allowed in our user namespace.
    pub may_set_groups: bool,
    pub attributes: &'a Attributes,
}

/// The system calls that turn us into the container's user.
pub fn program(credentials: &Credentials, around: &Surroundings<'_>) -> Result<Program> {
    let c = credentials;
    let caps = &c.capabilities;
    let mut p = Program::new();
    attributes::begin(around.attributes, &mut p)?;
    for cap in 0..=sys::credentials::last_capability() {
        if caps.bounding & 1 << cap == 0 {
            p.prctl("drop from the bounding set", sys::credentials::CAPBSET_DROP, u64::from(cap));
        }
    }
    if c.uid != 0 {
        p.prctl("keep capabilities", sys::credentials::SET_KEEPCAPS, 1);
    }
    if around.may_set_groups {
        p.setgroups(&c.groups);
    } else if !c.groups.is_empty() {
        return Err(report::at(
            "process.user.additionalGids",
            "setgroups is denied in this user namespace (gid map without newgidmap)",
        ));
    }
    p.setresgid(c.gid).setresuid(c.uid);
    let load = |p: &mut Program| {
        if let Some(f) = around.seccomp {
            p.seccomp(&f.program, f.flags, f.listener.as_ref().map(|_| around.report));
        }
    };
    if !c.no_new_privileges && around.seccomp.is_some() {
        if c.uid != 0 {
            // The change of ids emptied the effective set; the permitted one was kept.
            let all = sys::credentials::permitted().context("read our capabilities")?;
            p.capset(all, all, 0);
        }
        load(&mut p);
    }
    p.capset(caps.effective, caps.permitted, caps.inheritable);
    p.prctl_ambient_clear();
    for cap in (0..64).filter(|cap| caps.ambient & 1 << cap != 0) {
        p.prctl_ambient_raise(cap);
    }
    if c.no_new_privileges {
        p.prctl("set no_new_privs", sys::credentials::SET_NO_NEW_PRIVS, 1);
        load(&mut p);
    }
    Ok(p)
}

/// The container's user owns its standard streams, so that it can reopen them through /proc/self/fd (as runc
/// does; /dev/null and files that refuse are left as they are).
pub fn own_streams(uid: u32) -> Result<()> {
    for fd in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let Ok(stat) = rustix::fs::fstat(fd) else { continue };
        let is_null = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (1, 3);
        if stat.st_uid == uid || is_null {
            continue;
        }
        use rustix::io::Errno;
        match rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None) {
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => {}
            Err(e) => return Err(e).context("give the standard streams to the container's user"),
        }
    }
    Ok(())
}
