//! Which processes are in the container's cgroups?

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sys::cgroupfs;

use super::Record;

/// Every process in the container's cgroups, sub-cgroups included.
pub fn pids(record: &Record) -> Result<Vec<i32>> {
    record.first().map_or_else(|| Ok(Vec::new()), of)
}

/// Every process in and below one directory. A directory that is gone has none.
pub(super) fn of(path: &Path) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for dir in tree(path)? {
        let procs = dir.join("cgroup.procs");
        match cgroupfs::read(&procs) {
            Ok(text) => pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok())),
            // Gone meanwhile; or a threaded cgroup, whose processes its domain lists (EOPNOTSUPP).
            Err(e) if e.kind() == ErrorKind::NotFound || matches!(e.raw_os_error(), Some(19 | 95)) => {}
            Err(e) => return Err(e).with_context(|| format!("read {}", procs.display())),
        }
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// The directory and those below it, parents before children.
pub(super) fn tree(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![path.to_owned()];
    let mut next = 0;
    while next < found.len() {
        let entries = match std::fs::read_dir(&found[next]) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                found.remove(next);
                continue;
            }
            Err(e) => return Err(e).with_context(|| format!("list {}", found[next].display())),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                // Removed while we looked.
                Err(_) => break,
            };
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                found.push(entry.path());
            }
        }
        next += 1;
    }
    Ok(found)
}
