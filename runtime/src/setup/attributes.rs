//! Sets limits, priorities and labels of a container's process.
//!
//! | what | by whom, when | why |
//! |---|---|---|
//! | OOM score, raised hard limits | outside of the container's user namespace | they need rights over the host |
//! | scheduler, I/O priority | the process, last | what is left to do is not done at real-time priority |
//! | limits, labels | the trampoline | a limit would hit our own last steps; a label is for the very next `execve` |

use std::ffi::CString;

use anyhow::{Context, Result, anyhow};
use report::{Explain, Kind};
use sys::sched;
use sys::trampoline::Program;

use crate::plan::attributes::Attributes;

/// Of which process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    Ourselves,
    /// A child, in our pid namespace.
    Child(i32),
}

/// What needs rights over the host. `loses_rights`: the process is in, or will enter, a user namespace, where it can
/// no more raise its limits.
pub fn with_host_rights(a: &Attributes, of: Of, loses_rights: bool) -> Result<()> {
    if let Some(score) = a.oom_score_adj {
        set_oom_score(score, of)?;
    }
    let pid = match of {
        Of::Ourselves => 0,
        Of::Child(pid) => pid,
    };
    for limit in a.rlimits.iter().filter(|_| loses_rights) {
        sched::raise_hard_limit(pid, limit.resource, limit.hard).with_context(|| {
            format!("process.rlimits[{}]: {}", limit.index, raising(limit.name, limit.hard))
        })?;
    }
    Ok(())
}

fn raising(name: &str, hard: u64) -> String {
    format!("set {name} to at most {hard} (raising a hard limit needs CAP_SYS_RESOURCE)")
}

/// Through the /proc of the host, where this is called.
fn set_oom_score(score: i32, of: Of) -> Result<()> {
    let path = match of {
        Of::Ourselves => "/proc/self/oom_score_adj".to_owned(),
        Of::Child(pid) => format!("/proc/{pid}/oom_score_adj"),
    };
    let Err(error) = std::fs::write(&path, score.to_string()) else { return Ok(()) };
    // Without CAP_SYS_RESOURCE it may not be lowered, but it may be as low already.
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim().parse() == Ok(score)) {
        return Ok(());
    }
    let lowered = error.kind() == std::io::ErrorKind::PermissionDenied;
    let result: Result<()> =
        Err(error).with_context(|| format!("process.oomScoreAdj: write {score} to {path}"));
    if lowered { result.hint(|| "lowering it needs CAP_SYS_RESOURCE".to_owned()) } else { result }
}

/// Scheduler and I/O priority of the calling process.
pub fn apply(a: &Attributes) -> Result<()> {
    let s = &a.scheduling;
    if let Some(scheduler) = &s.scheduler {
        sched::set(scheduler).context("process.scheduler: sched_setattr")?;
    }
    if let Some(priority) = s.io_priority {
        sched::set_io_priority(priority).context("process.ioPriority: ioprio_set")?;
    }
    Ok(())
}

/// CPUs of a process of `exec` before it enters the container's cgroup.
pub fn exec_initial_cpus(a: &Attributes) -> Result<()> {
    set_cpus("initial", a.scheduling.exec_initial.as_deref())
}

/// … and after it.
pub fn exec_final_cpus(a: &Attributes) -> Result<()> {
    set_cpus("final", a.scheduling.exec_final.as_deref())
}

fn set_cpus(when: &str, cpus: Option<&[u64]>) -> Result<()> {
    let Some(cpus) = cpus else { return Ok(()) };
    sched::set_affinity(cpus).with_context(|| format!("process.execCPUAffinity.{when}: sched_setaffinity"))
}

/// The first of the last steps: labels for the program to come, then limits.
pub fn begin(a: &Attributes, program: &mut Program) -> Result<()> {
    let text = |what: &str, text: &str| CString::new(text).with_context(|| what.to_owned());
    if let Some(profile) = a.apparmor.as_deref().filter(|p| !already_unconfined(p)) {
        let what = format!("process.apparmorProfile: {profile:?}");
        // The file of AppArmor alone, where it is not the only module with labels, came with Linux 5.8.
        let (dir, file) = match sys::procfs::open_own_dir("attr/apparmor") {
            Ok(dir) => (dir, c"exec"),
            Err(_) => (sys::procfs::open_own_dir("attr").with_context(|| what.clone())?, c"exec"),
        };
        let value = text(&what, &format!("exec {profile}"))?;
        program.write_at(&what, dir, file, value.to_bytes());
    }
    if let Some(label) = &a.selinux {
        let what = format!("process.selinuxLabel: {label:?}");
        let dir = sys::procfs::open_own_dir("attr").with_context(|| what.clone())?;
        let value = text(&what, label)?;
        program.write_at(&what, dir, c"exec", value.to_bytes());
    }
    for limit in &a.rlimits {
        let what = format!("process.rlimits[{}]: {}", limit.index, raising(limit.name, limit.hard));
        program.setrlimit(&what, limit.resource, limit.soft, limit.hard);
    }
    Ok(())
}

/// Whether the kernel has what the labels are for: asked before anything is made.
pub fn check_labels(a: &Attributes) -> Result<()> {
    if let Some(profile) = a.apparmor.as_deref().filter(|p| !already_unconfined(p))
        && !has_apparmor()
    {
        return Err(anyhow!(
            "process.apparmorProfile: {profile:?}: this kernel has no AppArmor, or it is disabled"
        ))
        .kind(Kind::Unsupported);
    }
    if let Some(label) = &a.selinux
        && !has_selinux()
    {
        return Err(anyhow!(
            "process.selinuxLabel: {label:?}: this kernel has no SELinux, or it is disabled"
        ))
        .kind(Kind::Unsupported);
    }
    Ok(())
}

/// The same of `linux.mountLabel`.
pub fn check_mount_label(label: Option<&str>) -> Result<()> {
    match label {
        Some(label) if !has_selinux() => {
            Err(anyhow!("linux.mountLabel: {label:?}: this kernel has no SELinux, or it is disabled"))
                .kind(Kind::Unsupported)
        }
        _ => Ok(()),
    }
}

fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

fn has_selinux() -> bool {
    std::path::Path::new("/sys/fs/selinux/enforce").exists()
}

/// Without AppArmor everything is unconfined.
fn already_unconfined(profile: &str) -> bool {
    profile == "unconfined" && !has_apparmor()
}
