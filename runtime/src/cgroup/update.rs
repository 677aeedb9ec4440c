//! Changes the limits of a container that is there (`update`): all of them, or none.

use std::io;
use std::path::Path;

use anyhow::{Context, Error, Result};
use oci_spec::runtime::{LinuxMemory, LinuxResources};
use report::Kind;
use sys::cgroupfs;

use super::{Record, devices, freezer, limits, systemd, v2};
use crate::plan::resources::{self, CgroupPlan, Current, Place, V1Dir, V2Dir, Write};

/// Set what `resources` says and leave the rest. After an error the old limits hold.
pub fn update(record: &Record, resources: &LinuxResources) -> Result<()> {
    let plan = plan_of(record)?;
    let writes = resources::limits(resources, &plan, current(record)?)?;
    if let Some(memory) = resources.memory() {
        check_usage(record, memory)?;
    }
    let rules = match resources.devices().as_deref() {
        Some(given) => Some(resources::devices::rules(given)?),
        None => None,
    };
    let devices_at = plan.controller("devices");
    let device_writes = match (&rules, devices_at) {
        (Some(rules), Some(at)) => resources::devices::v1(rules, at)?,
        _ => Vec::new(),
    };
    let mut old: Vec<Write> = Vec::new();
    for write in &writes {
        old.extend(before(write, record)?);
    }
    let result = set(&writes, record)
        .and_then(|()| systemd::set(record, &writes))
        .and_then(|()| set_devices(rules.as_deref(), &device_writes, record));
    let Err(error) = result else { return Ok(()) };
    old.reverse();
    match set(&old, record).and_then(|()| systemd::set(record, &old)) {
        Ok(()) => Err(error),
        Err(undo) => {
            Err(error.context(format!("(then, setting the old limits again: {})", report::line(&undo))))
        }
    }
}

/// One after the other. A value that is refused because of another that is still to come (memory and its sum
/// with swap, quota and period) gets a second chance after that.
fn set(writes: &[Write], record: &Record) -> Result<()> {
    let mut refused: Vec<(&Write, Error)> = Vec::new();
    for write in writes.iter() {
        match limits::write_all(std::slice::from_ref(write), record) {
            Ok(()) => {}
            Err(e) if errno(&e) == Some(22) => refused.push((write, e)),
            Err(e) => return Err(e),
        }
    }
    for (write, first) in refused {
        if limits::write_all(std::slice::from_ref(write), record).is_err() {
            return Err(first);
        }
    }
    Ok(())
}

fn errno(error: &Error) -> Option<i32> {
    error.chain().find_map(|e| e.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error)
}

/// Devices go last: nothing after them can fail and call for the old ones. Meanwhile the processes stand
/// still, since v1 forgets all rules before it learns the new ones.
fn set_devices(rules: Option<&[resources::devices::Rule]>, writes: &[Write], record: &Record) -> Result<()> {
    let Some(rules) = rules else { return Ok(()) };
    if writes.is_empty() {
        return match &record.v2 {
            Some(dir) => devices::replace(rules, &v2::open(dir)?, true),
            None => Ok(()),
        };
    }
    let freeze = !freezer::is_frozen(record)?;
    if freeze {
        freezer::freeze(record)?;
    }
    let result = limits::write_all(writes, record);
    if freeze {
        freezer::thaw(record)?;
    }
    result
}

/// The plan that a record is left of: its directories, with the controllers that they have.
fn plan_of(record: &Record) -> Result<CgroupPlan> {
    let v1 = record.v1.iter().map(|(controllers, dir)| V1Dir {
        controllers: controllers.split(',').map(str::to_owned).collect(),
        mount: dir.clone(),
        path: "/".to_owned(),
    });
    let v2 = match &record.v2 {
        Some(dir) => {
            let list = dir.join("cgroup.controllers");
            let list = cgroupfs::read(&list).with_context(|| format!("read {}", list.display()))?;
            let controllers = list.split_ascii_whitespace().map(str::to_owned).collect();
            Some(V2Dir { mount: dir.clone(), path: "/".to_owned(), controllers })
        }
        None => None,
    };
    Ok(CgroupPlan { v1: v1.collect(), v2, ..CgroupPlan::default() })
}

/// What is in force, as far as new values depend on it.
fn current(record: &Record) -> Result<Current> {
    let mut out = Current::default();
    if let Some(dir) = directory(record, "memory") {
        let limit = number(dir, if record.v1.is_empty() { "memory.max" } else { "memory.limit_in_bytes" })?;
        // v1 has no word for unlimited: it is the largest number of whole pages.
        out.memory = limit.map(|l| i64::try_from(l).ok().filter(|l| *l < i64::MAX - 0xffff).unwrap_or(-1));
    }
    if let Some(dir) = record.v2.as_deref().filter(|_| record.v1.is_empty())
        && let Some(text) = text(&dir.join("cpu.max"))?
    {
        let mut words = text.split_ascii_whitespace();
        out.quota = words.next().map(|q| q.parse().unwrap_or(-1));
        out.period = words.next().and_then(|p| p.parse().ok());
    }
    Ok(out)
}

/// The directory of a v1 controller, or v2's.
pub(super) fn directory<'a>(record: &'a Record, controller: &str) -> Option<&'a Path> {
    let v1 = record.v1.iter().find(|(names, _)| names.split(',').any(|n| n == controller));
    v1.map(|(_, dir)| dir.as_path()).or(record.v2.as_deref())
}

/// A file's text; `None` if there is none.
pub(super) fn text(path: &Path) -> Result<Option<String>> {
    match cgroupfs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound || matches!(e.raw_os_error(), Some(19 | 95)) => {
            Ok(None)
        }
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
    }
}

/// A file's number; `max` is the largest there is.
pub(super) fn number(dir: &Path, file: &str) -> Result<Option<u64>> {
    Ok(text(&dir.join(file))?.map(|text| text.trim().parse().unwrap_or(u64::MAX)))
}

/// `checkBeforeUpdate`: refuse a limit that the container's processes would die of.
fn check_usage(record: &Record, memory: &LinuxMemory) -> Result<()> {
    if memory.check_before_update() != Some(true) {
        return Ok(());
    }
    let Some(dir) = directory(record, "memory") else { return Ok(()) };
    let v2 = record.v1.is_empty();
    let usage = number(dir, if v2 { "memory.current" } else { "memory.usage_in_bytes" })?.unwrap_or(0);
    let with_swap = if v2 {
        usage + number(dir, "memory.swap.current")?.unwrap_or(0)
    } else {
        number(dir, "memory.memsw.usage_in_bytes")?.unwrap_or(usage)
    };
    let limits = [("limit", memory.limit(), usage), ("swap", memory.swap(), with_swap)];
    for (field, limit, usage) in limits {
        if let Some(limit @ 1..) = limit
            && limit.unsigned_abs() <= usage
        {
            return Err(report::error(
                Kind::Failed,
                format!("linux.resources.memory.{field}: {limit} is not above the current usage of {usage}"),
            ));
        }
    }
    Ok(())
}

/// The writes that bring back what a write will change.
fn before(write: &Write, record: &Record) -> Result<Option<Write>> {
    let Some(text) = text(&limits::file(write, record))? else { return Ok(None) };
    let old = |value: &str| Some(Write { value: value.trim().to_owned().into(), ..write.clone() });
    let mut lines = text.lines();
    let Some((key, rest)) = write.value.split_once(' ').filter(|_| write.file != "cpu.max") else {
        let first = lines.next().unwrap_or_default();
        // `oom_kill_disable 0` among other things, `default 100` before devices.
        return Ok(match first.split_once(' ') {
            Some((_, value)) if write.at != Place::V2 || first.starts_with("default ") => old(value),
            _ => old(&text),
        });
    };
    // One line a device.
    if let Some(line) = lines.find(|line| line.split(' ').next() == Some(key)) {
        return Ok(old(line));
    }
    Ok(match (rest.split_once('='), &*write.file) {
        (Some((limit, _)), _) => old(&format!("{key} {limit}=max")),
        (None, file) if file.contains("weight") => old(&format!("{key} default")),
        (None, _) => old(&format!("{key} 0")),
    })
}
