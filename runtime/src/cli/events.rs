//! `events`: what happens in a container, and what it uses, as JSON lines.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use report::{Kind, error};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::Globals;
use crate::cgroup::{Record, oom, stats};
use crate::state::{Dir, Status};

/// Print what a container uses, and when it runs out of memory, as JSON lines.
///
/// It ends with the container.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  berth-runtime events --stats web | jq .data.memory.usage")]
pub struct Args {
    /// Print the figures once, and end
    #[arg(long)]
    pub stats: bool,
    /// Print the figures this often
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub interval: Duration,
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<stats::Stats>,
}

/// Print events.
pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    events(globals, &args).with_context(|| format!("events {}", args.id))?;
    Ok(0)
}

fn events(globals: &Globals, args: &Args) -> Result<()> {
    let dir = Dir::open(&globals.root, &args.id)?;
    let state = dir.load()?;
    if dir.status(&state)? == Status::Stopped {
        return Err(error(Kind::WrongState, format!("container with id {} is not running", args.id)));
    }
    if args.stats {
        return print_stats(&state.cgroup, &args.id);
    }
    let Some(process) = state.pidfd()? else { return Ok(()) };
    let watch = match oom::Watch::new(&state.cgroup) {
        Ok(watch) => Some(watch),
        Err(e) => {
            log::warn!("no word of killed processes: {}", report::line(&e));
            None
        }
    };
    let mut next = Instant::now() + args.interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut fds = vec![PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
        fds.extend(watch.as_ref().map(|w| PollFd::from_borrowed_fd(w.as_fd(), PollFlags::IN)));
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context("wait for events"),
        }
        let ended = !fds[0].revents().is_empty();
        let woken = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        drop(fds);
        if let Some(watch) = watch.as_ref().filter(|_| woken || ended) {
            for _ in 0..watch.take()? {
                print(&Event { r#type: "oom", id: &args.id, data: None })?;
            }
        }
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            print_stats(&state.cgroup, &args.id)?;
            next = Instant::now() + args.interval;
        }
    }
}

fn print_stats(record: &Record, id: &str) -> Result<()> {
    print(&Event { r#type: "stats", id, data: Some(stats::stats(record)?) })
}

fn print(event: &Event<'_>) -> Result<()> {
    let mut line = serde_json::to_string(event)?;
    line.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).context("write to standard output")
}

/// `5s`, `500ms`, `1m30s`, as Go writes durations.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration above zero, such as 5s or 500ms");
    let mut rest = text;
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(wrong()),
            };
        rest = &rest[unit..];
    }
    let duration = Duration::try_from_secs_f64(total).map_err(|_| wrong())?;
    if duration.is_zero() { Err(wrong()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, milliseconds) in
            [("5s", 5000), ("500ms", 500), ("1m30s", 90_000), ("1.5s", 1500), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "5", "0s", "s", "5x", "-1s", "1e400h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
