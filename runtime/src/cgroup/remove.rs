//! Kills and removes: whatever state a crash left, this may run again until nothing is left.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use report::Kind;
use sys::cgroupfs;

use super::Record;
use super::host::Hierarchies;
use super::{freezer, pids, systemd};

/// How long the kernel may take to let go of killed processes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kill every process in the container's cgroups (`cgroup.kill`, or freeze, SIGKILL each, thaw), wait until
/// they are empty and remove them. Missing ones are fine; processes that are not ours are left alone.
pub fn destroy(record: &Record) -> Result<()> {
    let stopped = systemd::stop(record);
    directories(record).and(stopped)
}

/// The first directory goes last: it carries the mark that says whose they are.
fn directories(record: &Record) -> Result<()> {
    let paths =
        || record.v2.iter().map(|p| p.as_path()).chain(record.v1.iter().rev().map(|(_, p)| p.as_path()));
    let mut busy = false;
    for path in paths() {
        busy |= !gone(path)?;
        if busy {
            break;
        }
    }
    if !busy {
        return Ok(());
    }
    let Some(first) = record.first() else { return Ok(()) };
    match cgroupfs::has_mark(first, &record.mark) {
        Ok(true) => {}
        Ok(false) => {
            log::warn!("cgroup {}: left alone, since others made it and are in it", first.display());
            return Ok(());
        }
        // Without its first directory nothing is left that could hold a process of ours.
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("read whose cgroup {} is", first.display())),
    }
    let until = Instant::now() + PATIENCE;
    let mut nap = Duration::from_micros(100);
    let mut first_round = true;
    loop {
        // Right after its last process a cgroup may be busy for a moment: kill only if somebody is there.
        if !first_round || !pids::pids(record)?.is_empty() {
            kill(record)?;
        }
        first_round = false;
        let mut left = None;
        for path in paths() {
            if !gone_with_children(path)? {
                left = Some(path);
                break;
            }
        }
        let Some(left) = left else { return Ok(()) };
        if Instant::now() > until {
            let pids = pids::of(left)?;
            return Err(report::error(
                Kind::Failed,
                format!(
                    "remove cgroup {}: still busy after SIGKILL; its processes: {pids:?}",
                    left.display()
                ),
            ));
        }
        std::thread::sleep(nap);
        nap = (nap * 2).min(Duration::from_millis(20));
    }
}

/// The cgroups of a container whose state file tells nothing any more: found by their mark, then as
/// [`destroy`]. `folder`: where its state was.
pub fn destroy_lost(folder: &Path) -> Result<()> {
    let host = Hierarchies::detect()?;
    let mark = folder.to_string_lossy();
    let freezer = host.v1_of("freezer").unwrap_or(0);
    let Some(mount) = host.v1.get(freezer).map(|h| &h.mount).or(host.v2.as_ref().map(|h| &h.mount)) else {
        return Ok(());
    };
    for dir in pids::tree(mount)? {
        if !cgroupfs::is_marked(&dir, &mark).unwrap_or(false) {
            continue;
        }
        let path = dir.strip_prefix(mount).unwrap_or(&dir);
        let mut v1: Vec<_> = host.v1.iter().map(|h| (h.controllers.join(","), h.mount.join(path))).collect();
        if !v1.is_empty() {
            v1.swap(0, freezer);
        }
        let v2 = host.v2.as_ref().map(|h| h.mount.join(path));
        destroy(&Record { v1, v2, unit: None, mark: mark.clone().into_owned() })?;
    }
    Ok(())
}

/// SIGKILL for all of them, with no one able to fork in between.
pub(super) fn kill(record: &Record) -> Result<()> {
    if let Some(v2) = record.v2.as_ref().filter(|_| record.v1.is_empty()) {
        let file = v2.join("cgroup.kill");
        match cgroupfs::write(&file, b"1") {
            Ok(()) => return Ok(()),
            // Before Linux 5.14; in a threaded cgroup; or the cgroup is gone.
            Err(e) if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(95) => {}
            Err(e) => return Err(e).with_context(|| format!("write 1 to {}", file.display())),
        }
    }
    signal_each(record, 9)?;
    // A frozen v1 task dies when it is thawed.
    freezer::thaw(record)
}

/// Send a signal to every process in the container's cgroups (`kill --all`). They are frozen meanwhile, so
/// that none can fork a child past us, and afterwards as they were.
pub fn signal_all(record: &Record, signal: i32) -> Result<()> {
    if signal == 9 { kill(record) } else { signal_each(record, signal) }
}

fn signal_each(record: &Record, signal: i32) -> Result<()> {
    if pids::pids(record)?.is_empty() {
        return Ok(());
    }
    let frozen = !freezer::is_frozen(record)?
        && freezer::freeze(record).map_err(|e| log::debug!("{}", report::line(&e))).is_ok();
    let sent = pids::pids(record).and_then(|pids| {
        for pid in pids {
            cgroupfs::signal(pid, signal).with_context(|| format!("send signal {signal} to {pid}"))?;
        }
        Ok(())
    });
    if frozen {
        freezer::thaw(record)?;
    }
    sent
}

/// Remove one directory: false if it is busy.
fn gone(path: &Path) -> Result<bool> {
    match cgroupfs::remove(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(true),
        Err(e) if e.raw_os_error() == Some(16) => Ok(false),
        Err(e) => Err(e).with_context(|| format!("remove cgroup {}", path.display())),
    }
}

/// With the sub-cgroups that the container made.
fn gone_with_children(path: &Path) -> Result<bool> {
    if gone(path)? {
        return Ok(true);
    }
    for child in pids::tree(path)?.iter().skip(1).rev() {
        gone(child)?;
    }
    gone(path)
}
