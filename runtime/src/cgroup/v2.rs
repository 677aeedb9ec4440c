//! v2: one directory, with the controllers handed down to it.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use report::{Explain, Kind};
use sys::cgroupfs;

use super::Record;
use crate::plan::resources::{CgroupPlan, Place, V2Dir, Write};

/// Make the directory, and see that the hierarchy's controllers reach it.
/// `made` says whether it is new, also if something else is refused.
pub(super) fn make(plan: &CgroupPlan, dir: &V2Dir, record: &Record, made: &mut bool) -> Result<()> {
    let path = dir.host();
    let result = match cgroupfs::make(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let parents: Vec<&Path> = path.ancestors().skip(1).take_while(|p| *p != dir.mount).collect();
            for parent in parents.into_iter().rev() {
                match cgroupfs::make(parent) {
                    Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                        return Err(e).with_context(|| format!("make cgroup {}", parent.display()));
                    }
                    Ok(()) | Err(_) => {}
                }
            }
            cgroupfs::make(&path)
        }
        other => other,
    };
    let new = match result {
        Ok(()) => true,
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            must_be_empty(&path)?;
            false
        }
        Err(e) => return Err(e).with_context(|| format!("make cgroup {}", path.display())),
    };
    *made = new;
    if record.v1.is_empty() {
        super::mark(&path, record)?;
    }
    delegate(plan, dir, &path)?;
    plan.owner.map_or(Ok(()), |owner| hand_over(&path, owner))
}

/// Give the container's user the cgroup: the directory, and the files that the kernel says are safe to give.
pub(super) fn hand_over(path: &Path, owner: u32) -> Result<()> {
    let known = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n".to_owned();
    // The list is there since Linux 4.15.
    let list = cgroupfs::read(Path::new("/sys/kernel/cgroup/delegate")).unwrap_or(known);
    for name in list.lines().filter(|name| !name.is_empty() && !name.contains('/')).chain([""]) {
        let file = path.join(name);
        match std::os::unix::fs::chown(&file, Some(owner), None) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("give {} to uid {owner}", file.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Let every parent hand its controllers down to `path`.
///
/// All that there are, not only the needed ones: `events --stats` and `update` want them later. Those that
/// the plan needs must arrive.
pub(super) fn delegate(plan: &CgroupPlan, dir: &V2Dir, path: &Path) -> Result<()> {
    let has = |list: &str, name: &str| list.split_ascii_whitespace().any(|c| c == name);
    let list = path.join("cgroup.controllers");
    let read = || cgroupfs::read(&list).with_context(|| format!("read {}", list.display()));
    let present = read()?;
    if dir.controllers.iter().all(|c| has(&present, c)) {
        return Ok(());
    }
    let domain = plan.writes.iter().find(|w| w.at == Place::V2 && !threaded(controller(&w.file)));
    let mut parents: Vec<&Path> =
        path.ancestors().skip(1).take_while(|p| p.starts_with(&dir.mount)).collect();
    parents.reverse();
    for parent in parents {
        enable(parent, &dir.controllers);
    }
    let kind = path.join("cgroup.type");
    let kind_now = cgroupfs::read(&kind).with_context(|| format!("read {}", kind.display()))?;
    match (kind_now.trim(), domain) {
        // Below a threaded cgroup: usable only with controllers that know threads.
        ("domain invalid", None) => cgroupfs::write(&kind, b"threaded")
            .with_context(|| format!("write threaded to {}", kind.display()))?,
        (mode @ ("domain invalid" | "threaded" | "domain threaded"), Some(write)) => {
            let message = format!(
                "{}: cgroup {} is {mode}, where the {} controller does not work",
                write.source,
                path.display(),
                controller(&write.file)
            );
            return Err(report::error(Kind::Unsupported, message));
        }
        _ => {}
    }
    let present = read()?;
    let missing = |w: &&Write| {
        let name = controller(&w.file);
        w.at == Place::V2 && dir.controllers.iter().any(|c| c == name) && !has(&present, name)
    };
    let Some(write) = plan.writes.iter().find(missing) else { return Ok(()) };
    let name = controller(&write.file);
    let blocked = path.ancestors().skip(1).find(|p| {
        let list = cgroupfs::read(&p.join("cgroup.controllers"));
        list.is_ok_and(|list| has(&list, name))
    });
    let blocked = blocked.unwrap_or(&dir.mount).display();
    Err(report::error(
        Kind::Unsupported,
        format!("{}: cgroup {blocked} does not hand down the {name} controller", write.source),
    ))
    .hint(|| {
        format!(
            "write \"+{name}\" to {blocked}/cgroup.subtree_control (with systemd: Delegate={name}); \
             a cgroup other than the root must have no process of its own for that"
        )
    })
}

/// Hand down what can be handed down. What does not reach the container's cgroup is noticed there.
fn enable(parent: &Path, controllers: &[String]) {
    let file = parent.join("cgroup.subtree_control");
    let all: String = controllers.iter().map(|c| format!("+{c} ")).collect();
    let Err(e) = cgroupfs::write(&file, all.trim_end().as_bytes()) else { return };
    log::debug!("write {} to {}: {e}", all.trim_end(), file.display());
    for one in controllers {
        if let Err(e) = cgroupfs::write(&file, format!("+{one}").as_bytes()) {
            log::debug!("write +{one} to {}: {e}", file.display());
        }
    }
}

/// `memory.max` belongs to `memory`.
fn controller(file: &str) -> &str {
    file.split_once('.').map_or(file, |(name, _)| name)
}

/// Controllers that work in threaded cgroups (cgroup-v2.rst, "Threads"); `cgroup` is the core.
fn threaded(controller: &str) -> bool {
    matches!(controller, "cgroup" | "cpu" | "cpuset" | "perf_event" | "pids")
}

fn must_be_empty(path: &Path) -> Result<()> {
    let events = path.join("cgroup.events");
    let events = cgroupfs::read(&events).with_context(|| format!("read {}", events.display()))?;
    if events.lines().any(|l| l == "populated 1") {
        let pids = super::pids::of(path)?;
        return Err(super::not_empty(path, pids.len()));
    }
    if events.lines().any(|l| l == "frozen 1") {
        return Err(report::error(Kind::AlreadyExists, format!("cgroup {} is frozen", path.display())));
    }
    Ok(())
}

/// Open the directory for `CLONE_INTO_CGROUP` and for BPF.
pub(super) fn open(path: &Path) -> Result<OwnedFd> {
    cgroupfs::open_dir(path).with_context(|| format!("open cgroup {}", path.display()))
}

/// The record with the v2 cgroup that a process is really in, if that is one of the container's.
pub(super) fn record_of(record: &Record, pid: i32) -> Result<Record> {
    let Some(top) = &record.v2 else { return Ok(record.clone()) };
    let file = format!("/proc/{pid}/cgroup");
    let text = cgroupfs::read(Path::new(&file)).with_context(|| format!("read {file}"))?;
    let real = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let below = below(top, Path::new(real)).unwrap_or_default();
    Ok(Record { v2: Some(top.join(below)), ..record.clone() })
}

/// How far below the container's directory (`/sys/fs/cgroup/a/c`) a process's cgroup (`/a/c/init`) is: what
/// follows the longest end of the one that the other starts with.
fn below(top: &Path, real: &Path) -> Option<PathBuf> {
    let mut mounts: Vec<&Path> = top.ancestors().skip(1).collect();
    mounts.reverse();
    mounts.into_iter().find_map(|mount| {
        let path = Path::new("/").join(top.strip_prefix(mount).ok()?);
        real.strip_prefix(path).ok().map(Path::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_process_is_below_the_container() {
        for (top, real, expected) in [
            ("/sys/fs/cgroup/a/c", "/a/c/init", Some("init")),
            ("/sys/fs/cgroup/c/c", "/c/c/x/y", Some("x/y")),
            ("/sys/fs/cgroup/c", "/c", Some("")),
            ("/sys/fs/cgroup/c", "/elsewhere", None),
        ] {
            assert_eq!(below(Path::new(top), Path::new(real)), expected.map(PathBuf::from), "{top} {real}");
        }
    }
}
