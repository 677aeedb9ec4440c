//! Stops every process of a container at once, and lets them go on.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use report::Kind;
use sys::cgroupfs;

use super::Record;

/// How long tasks may take to stop: some sleep in the kernel where no signal reaches them.
const PATIENCE: Duration = Duration::from_secs(10);

/// Is the container paused? A container without cgroups is not.
pub fn is_frozen(record: &Record) -> Result<bool> {
    let Some(file) = find(record) else { return Ok(false) };
    match cgroupfs::read(&file.path) {
        // `self_freezing` and `FREEZING` on v1: somebody asked for it, which is what counts.
        Ok(text) => Ok(text.trim() != file.thawed),
        Err(e) if gone(&e) => Ok(false),
        Err(e) => Err(e).with_context(|| format!("read {}", file.path.display())),
    }
}

/// Freeze, and wait until every task has stopped. If that takes too long, thaw again and err.
pub fn freeze(record: &Record) -> Result<()> {
    let file = control(record)?;
    let until = Instant::now() + PATIENCE;
    set(&file, file.frozen)?;
    let mut round = 0u32;
    while !file.stopped()? {
        if Instant::now() > until {
            set(&file, file.thawed)?;
            return Err(report::error(
                Kind::Failed,
                format!("freeze {}: some task did not stop in {} s", file.path.display(), PATIENCE.as_secs()),
            ));
        }
        round += 1;
        // A task that forks while v1 freezes can leave the state at FREEZING for ever: ask again.
        if round.is_multiple_of(20) {
            if round.is_multiple_of(100) {
                set(&file, file.thawed)?;
            }
            set(&file, file.frozen)?;
        }
        std::thread::sleep(Duration::from_micros(if round < 10 { 50 } else { 2000 }));
    }
    Ok(())
}

/// Thaw. What is gone, or was never frozen, is fine.
pub fn thaw(record: &Record) -> Result<()> {
    let Some(file) = find(record) else { return Ok(()) };
    match cgroupfs::write(&file.path, file.thawed.as_bytes()) {
        Err(e) if !gone(&e) => {
            Err(e).with_context(|| format!("write {} to {}", file.thawed, file.path.display()))
        }
        _ => Ok(()),
    }
}

/// The cgroup was removed: before the file was opened, or after (ENODEV).
fn gone(e: &std::io::Error) -> bool {
    e.kind() == std::io::ErrorKind::NotFound || e.raw_os_error() == Some(19)
}

/// The control file, and its words.
struct Control {
    path: std::path::PathBuf,
    /// v2 says in another file when it is done.
    events: Option<std::path::PathBuf>,
    frozen: &'static str,
    thawed: &'static str,
}

impl Control {
    fn stopped(&self) -> Result<bool> {
        let path = self.events.as_ref().unwrap_or(&self.path);
        let text = cgroupfs::read(path).with_context(|| format!("read {}", path.display()))?;
        Ok(match self.events {
            Some(_) => text.lines().any(|l| l == "frozen 1"),
            None => text.trim() == self.frozen,
        })
    }
}

fn control(record: &Record) -> Result<Control> {
    find(record).ok_or_else(|| report::error(Kind::Unsupported, "the container has no cgroup with a freezer"))
}

fn find(record: &Record) -> Option<Control> {
    let v1 = record.v1.iter().find(|(controllers, _)| controllers.split(',').any(|c| c == "freezer"));
    if let Some((_, dir)) = v1 {
        let path = dir.join("freezer.state");
        return Some(Control { path, events: None, frozen: "FROZEN", thawed: "THAWED" });
    }
    let dir = record.v2.as_ref()?;
    let events = Some(dir.join("cgroup.events"));
    Some(Control { path: dir.join("cgroup.freeze"), events, frozen: "1", thawed: "0" })
}

fn set(file: &Control, value: &str) -> Result<()> {
    cgroupfs::write(&file.path, value.as_bytes())
        .with_context(|| format!("write {value} to {}", Path::new(&file.path).display()))
}
