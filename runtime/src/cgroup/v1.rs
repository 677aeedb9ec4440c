//! v1: a directory per hierarchy.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result};
use report::Kind;
use sys::cgroupfs;

use super::Record;
use crate::plan::resources::CgroupPlan;

/// Make the directories. Each one that was made goes to `made`, also if a later one is refused.
pub(super) fn make(plan: &CgroupPlan, record: &Record, made: &mut Vec<usize>) -> Result<()> {
    for (index, (controllers, path)) in record.v1.iter().enumerate() {
        let cpuset = plan.v1[index].controllers.iter().any(|c| c == "cpuset");
        match cgroupfs::make(path) {
            Ok(()) => made.push(index),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                make_parents(path, cpuset)?;
                match cgroupfs::make(path) {
                    Ok(()) => made.push(index),
                    Err(e) if e.kind() == ErrorKind::AlreadyExists => must_be_empty(path, controllers)?,
                    Err(e) => return Err(e).with_context(|| format!("make cgroup {}", path.display())),
                }
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => must_be_empty(path, controllers)?,
            Err(e) => return Err(e).with_context(|| format!("make cgroup {}", path.display())),
        }
        if index == 0 {
            super::mark(path, record)?;
        }
        if cpuset {
            fill_cpuset(plan, path)?;
        }
    }
    Ok(())
}

/// Make those directories that systemd did not make for its scope.
pub(super) fn make_beside_systemd(plan: &CgroupPlan, record: &Record) -> Result<()> {
    for (dir, (_, path)) in plan.v1.iter().zip(&record.v1) {
        let cpuset = dir.controllers.iter().any(|c| c == "cpuset");
        make_parents(path, cpuset)?;
        match cgroupfs::make(path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                return Err(e).with_context(|| format!("make cgroup {}", path.display()));
            }
            Ok(()) | Err(_) => {}
        }
        if cpuset {
            fill_cpuset(plan, path)?;
        }
    }
    Ok(())
}

/// What the config does not set is the parent's.
fn fill_cpuset(plan: &CgroupPlan, path: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !plan.writes.iter().any(|w| w.file == file) {
            inherit(path, file)?;
        }
    }
    Ok(())
}

/// Open the files through which a thread moves itself in.
pub(super) fn open_tasks(record: &Record) -> Result<Vec<OwnedFd>> {
    let open = |path: &Path| {
        let tasks = path.join("tasks");
        cgroupfs::open_write(&tasks).with_context(|| format!("open {}", tasks.display()))
    };
    record.v1.iter().map(|(_, path)| open(path)).collect()
}

fn make_parents(path: &Path, cpuset: bool) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    match cgroupfs::make(parent) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            make_parents(parent, cpuset)?;
            match cgroupfs::make(parent) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(()),
                Err(e) => return Err(e).with_context(|| format!("make cgroup {}", parent.display())),
            }
        }
        Err(e) => return Err(e).with_context(|| format!("make cgroup {}", parent.display())),
    }
    if cpuset {
        inherit(parent, "cpuset.cpus")?;
        inherit(parent, "cpuset.mems")?;
    }
    Ok(())
}

/// A new cpuset has no processors and no memory nodes, and nothing may enter it: copy the parent's, unless
/// the parent's `cgroup.clone_children` made the kernel do it. Returns what `file` holds then.
fn inherit(path: &Path, file: &str) -> Result<String> {
    let name = path.join(file);
    let value = cgroupfs::read(&name).with_context(|| format!("read {}", name.display()))?;
    if !value.trim().is_empty() {
        return Ok(value);
    }
    let Some(parent) = path.parent() else { return Ok(value) };
    let value = inherit(parent, file)?;
    cgroupfs::write(&name, value.trim().as_bytes())
        .with_context(|| format!("write {} to {}", value.trim(), name.display()))?;
    Ok(value)
}

/// A directory that was there may be used if nobody is in it.
fn must_be_empty(path: &Path, controllers: &str) -> Result<()> {
    let tasks = path.join("tasks");
    let tasks = cgroupfs::read(&tasks).with_context(|| format!("read {}", tasks.display()))?;
    if !tasks.is_empty() {
        return Err(super::not_empty(path, tasks.lines().count()));
    }
    if controllers.split(',').any(|c| c == "freezer") {
        let state = path.join("freezer.state");
        let state = cgroupfs::read(&state).with_context(|| format!("read {}", state.display()))?;
        if state.trim() != "THAWED" {
            return Err(report::error(Kind::AlreadyExists, format!("cgroup {} is frozen", path.display())));
        }
    }
    Ok(())
}
