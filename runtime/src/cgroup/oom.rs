//! Tells when the kernel kills a container's process for lack of memory.
//!
//! v1: an eventfd, tied to `memory.oom_control` through `cgroup.event_control`. v2: inotify on `memory.events`,
//! whose `oom_kill` counts.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

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
    V1 {
        control: PathBuf,
        _oom_control: OwnedFd,
    },
    V2 {
        events: PathBuf,
        last: u64,
    },
}

impl Watch {
    /// Watch a container's memory cgroup.
    pub fn new(record: &Record) -> Result<Watch> {
        let Some(dir) = directory(record, "memory") else {
            return Err(report::error(Kind::Unsupported, "the container has no memory cgroup"));
        };
        if record.v1.is_empty() {
            let events = dir.join("memory.events");
            let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
                .context("watch for events")?;
            inotify::add_watch(&fd, &events, inotify::WatchFlags::MODIFY)
                .with_context(|| format!("watch {}", events.display()))?;
            let last = kills(&events)?.unwrap_or(0);
            return Ok(Watch { fd, source: Source::V2 { events, last } });
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

    /// The descriptor was readable: how many processes were killed since? Removing the cgroup wakes us, too.
    pub fn take(&mut self) -> Result<u64> {
        let mut buffer = [0u8; 4096];
        match rustix::io::read(&self.fd, &mut buffer[..]) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(e) => return Err(e).context("read an event"),
        }
        match &mut self.source {
            // An event a kill; the number in the eventfd is not of interest to readers who see one line each.
            Source::V1 { control, .. } => Ok(u64::from(control.exists())),
            Source::V2 { events, last } => {
                let Some(now) = kills(events)? else { return Ok(0) };
                let new = now.saturating_sub(*last);
                *last = now;
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
fn kills(events: &std::path::Path) -> Result<Option<u64>> {
    let Some(text) = text(events)? else { return Ok(None) };
    Ok(text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).or(Some(0)))
}
