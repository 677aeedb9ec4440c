//! What has a runtime left behind? Everything made in a bed carries the bed's unique name.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::command::gone_within;
use crate::host;

/// The variable that the bed's name travels in.
pub const MARK: &str = "BERTH_TEST_BED";

/// Live processes that carry `unique` in their environment or cgroup.
pub fn processes(unique: &str) -> Vec<i32> {
    let me = std::process::id().cast_signed();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        if pid == me {
            continue;
        }
        let has =
            |file: &str| fs::read(entry.path().join(file)).is_ok_and(|b| contains(&b, unique.as_bytes()));
        if (has("environ") || has("cgroup")) && !is_dead(pid) {
            found.push(pid);
        }
    }
    found
}

fn is_dead(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with(['Z', 'X']))
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|w| w == part)
}

/// Cgroup directories named after `unique`.
pub fn cgroups(unique: &str) -> Vec<String> {
    let mut found = Vec::new();
    for root in host::cgroup_roots() {
        find_named(&root, unique, 3, &mut found);
    }
    found
}

fn find_named(dir: &Path, unique: &str, depth: u32, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        let path = entry.path();
        if entry.file_name().to_string_lossy().contains(unique) {
            found.push(path.display().to_string());
        } else if depth > 0 {
            find_named(&path, unique, depth - 1, found);
        }
    }
}

/// Mounts in this mount namespace whose target or source names `part`.
pub fn mounts(part: &str) -> Vec<String> {
    host::mounts().lines().filter(|l| l.contains(part)).map(str::to_owned).collect()
}

/// Entries of a directory that ought to be empty.
pub fn entries(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path().display().to_string()).collect()
}

/// Processes that are still there after they had time to be torn down.
pub fn lasting_processes(unique: &str) -> Vec<String> {
    processes(unique)
        .into_iter()
        .filter(|&pid| !gone_within(pid, Duration::from_secs(5)))
        .map(|pid| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let ppid = fs::read_to_string(format!("/proc/{pid}/stat"))
                .ok()
                .and_then(|s| s.rsplit(") ").next().and_then(|r| r.split(' ').nth(1).map(str::to_owned)))
                .unwrap_or_default();
            format!("process {pid} ({}), child of {ppid}", comm.trim())
        })
        .collect()
}

/// Remove what [`cgroups`] found, so that one failed test does not spoil the next.
pub fn remove_cgroups(unique: &str) {
    for dir in cgroups(unique) {
        remove_cgroup(Path::new(&dir));
    }
}

fn remove_cgroup(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    fs::remove_dir(dir).unwrap_or_default();
}
