//! Tells when the kernel kills a container's process for lack of memory.
//!
//! v1: an eventfd, tied to `memory.oom_control` through `cgroup.event_control`. v2: inotify on `memory.events`,
//! whose `oom_kill` counts. There, systemd may remove the cgroup before anybody has read it: the count of the group above has the
//! kill as well, and stays. And no event may tell of it: the kernel lets 10 ms pass between two, and the one before, for reaching
//! the limit, was the first.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use report::Kind;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;
use sys::cgroupfs;

use super::Record;
use super::update::{directory, text};

/// Something to poll on.
#[derive(Debug)]
pub struct Watch {
    fd: OwnedFd,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// The control file stays open as long as events are wanted.
    V1 { control: PathBuf, _oom_control: OwnedFd },
    V2 {
        events: PathBuf,
        last: Cell<u64>,
        /// `oom_kill` of the group above.
        last_above: Cell<u64>,
        /// When the last event came.
        modified: Cell<Option<Instant>>,
    },
}

/// A kill that nobody saw in a group that is gone was in it if its last event was no longer ago. The kernel needs 10 ms; the rest is
/// for a busy host.
const RECENT: Duration = Duration::from_millis(500);

impl Watch {
    /// Watch a container's memory cgroup.
    pub fn new(record: &Record) -> Result<Watch> {
        let Some(dir) = directory(record, "memory") else {
            return Err(report::error(Kind::Unsupported, "the container has no memory cgroup"));
        };
        if record.v1.is_empty() {
            return Watch::of_events(dir.join("memory.events"));
        }
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("make an eventfd")?;
        let oom_control = dir.join("memory.oom_control");
        let open =
            cgroupfs::open_read(&oom_control).with_context(|| format!("open {}", oom_control.display()))?;
        let control = dir.join("cgroup.event_control");
        let value = format!("{} {}", fd.as_raw_fd(), open.as_raw_fd());
        cgroupfs::write(&control, value.as_bytes())
            .with_context(|| format!("write {value} to {}", control.display()))?;
        Ok(Watch { fd, source: Source::V1 { control, _oom_control: open } })
    }

    fn of_events(events: PathBuf) -> Result<Watch> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .context("watch for events")?;
        inotify::add_watch(&fd, &events, inotify::WatchFlags::MODIFY)
            .with_context(|| format!("watch {}", events.display()))?;
        let last = Cell::new(kills(&events)?.unwrap_or(0));
        let last_above = Cell::new(kills_above(&events));
        Ok(Watch { fd, source: Source::V2 { events, last, last_above, modified: Cell::default() } })
    }

    /// The descriptor is readable, or the container has ended: how many processes were killed since? Removing the cgroup wakes us, too.
    pub fn take(&self) -> Result<u64> {
        let mut buffer = [0u8; 4096];
        let length = match rustix::io::read(&self.fd, &mut buffer[..]) {
            Ok(length) => length,
            Err(rustix::io::Errno::AGAIN) => 0,
            Err(e) => return Err(e).context("read an event"),
        };
        match &self.source {
            // An event a kill; the number in the eventfd is not of interest to readers who see one line each.
            Source::V1 { control, .. } => Ok(u64::from(length > 0 && control.exists())),
            Source::V2 { events, last, last_above, modified } => {
                if was_modified(&buffer[..length]) {
                    modified.set(Some(Instant::now()));
                }
                let recent = modified.get().is_some_and(|at| at.elapsed() < RECENT);
                let above = kills_above(events);
                let new = match kills(events)? {
                    Some(now) => now.saturating_sub(last.replace(now)),
                    None => u64::from(recent && above > last_above.get()),
                };
                last_above.set(above);
                Ok(new)
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `oom_kill` in memory.events; `None`: the cgroup is gone.
fn kills(events: &Path) -> Result<Option<u64>> {
    let Some(text) = text(events)? else { return Ok(None) };
    Ok(text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).or(Some(0)))
}

/// The same of the group above; 0 if it has none, as the root.
fn kills_above(events: &Path) -> u64 {
    let above = events.parent().and_then(Path::parent).map(|dir| dir.join("memory.events"));
    above.and_then(|file| kills(&file).ok().flatten()).unwrap_or(0)
}

/// Whether one of these events (inotify(7)) is IN_MODIFY: wd, mask, cookie, length of the name, the name.
fn was_modified(mut events: &[u8]) -> bool {
    let word = |at: usize, events: &[u8]| {
        events.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
    };
    while events.len() >= 16 {
        if word(4, events) & inotify::ReadFlags::MODIFY.bits() != 0 {
            return true;
        }
        events = events.get(16 + word(12, events) as usize..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::Watch;
    use std::fs;

    #[test]
    fn a_kill_is_told_though_the_group_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (group, above) = (dir.path().join("c"), dir.path().join("memory.events"));
        let events = group.join("memory.events");
        let write =
            |file: &std::path::Path, n: u32| fs::write(file, format!("max 9\noom_kill {n}\n")).unwrap();
        for (kills, expected) in [(1, 1), (0, 0)] {
            fs::create_dir(&group).unwrap();
            write(&above, 5);
            write(&events, 0);
            let watch = Watch::of_events(events.clone()).unwrap();
            assert_eq!(watch.take().unwrap(), 0);
            write(&events, kills);
            write(&above, 5 + kills);
            fs::remove_dir_all(&group).unwrap();
            assert_eq!(watch.take().unwrap(), expected, "{kills}");
            assert_eq!(watch.take().unwrap(), 0);
        }
        // The event was of the limit's being reached; the kill came too soon after it to have one.
        fs::create_dir(&group).unwrap();
        write(&above, 6);
        write(&events, 0);
        let watch = Watch::of_events(events.clone()).unwrap();
        write(&events, 0);
        assert_eq!(watch.take().unwrap(), 0);
        write(&above, 7);
        fs::remove_dir_all(&group).unwrap();
        assert_eq!(watch.take().unwrap(), 1);
        // Another's kill, while ours only ended.
        fs::create_dir(&group).unwrap();
        write(&events, 0);
        let watch = Watch::of_events(events).unwrap();
        write(&above, 9);
        fs::remove_dir_all(&group).unwrap();
        assert_eq!(watch.take().unwrap(), 0);
    }
}
