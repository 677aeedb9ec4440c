//! What does the host look like from outside?

use std::fs;
use std::path::{Path, PathBuf};

/// Whether /sys/fs/cgroup is the unified hierarchy.
pub fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The roots of all mounted hierarchies.
pub fn cgroup_roots() -> Vec<PathBuf> {
    fs::read_to_string("/proc/self/mountinfo")
        .expect("read mountinfo")
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let kind = right.split(' ').next()?;
            (kind == "cgroup" || kind == "cgroup2")
                .then(|| PathBuf::from(left.split(' ').nth(4).unwrap_or("/")))
        })
        .collect()
}

/// The directory of cgroup `path` in the hierarchy of `controller` (v1) or in the unified one.
pub fn cgroup(controller: &str, path: &str) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let base = if is_unified() { root.to_owned() } else { root.join(controller) };
    base.join(path.trim_start_matches('/'))
}

/// One value of a cgroup.
pub fn cgroup_value(controller: &str, path: &str, file: &str) -> String {
    let file = cgroup(controller, path).join(file);
    fs::read_to_string(&file).unwrap_or_else(|e| panic!("read {}: {e}", file.display())).trim().to_owned()
}

/// The mount table of this process.
pub fn mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo")
}

/// A program in PATH.
pub fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.is_file())
}

/// A line `Key:\tvalue` of `/proc/PID/status`.
pub fn status(pid: i32, key: &str) -> String {
    let all =
        fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_else(|e| panic!("status of {pid}: {e}"));
    all.lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("{key} in the status of {pid}"))
        .trim()
        .to_owned()
}
