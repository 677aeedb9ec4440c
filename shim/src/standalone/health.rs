//! Is the container healthy? A command in it, on a clock, as Docker's HEALTHCHECK has it.
//!
//! ```text
//!  starting ── success ─▶ healthy ◀── success ── unhealthy
//!     └─ failures in the start period do not count; after it, `retries` in a row ─▶ unhealthy
//! ```

use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sys::process::Exit;

use super::bundle;
use super::state::{Check, Health, HealthOptions, HealthStatus, OnUnhealthy, Status, Time};
use super::supervisor::{Run, Supervisor, Wish};
use crate::executor::first;
use crate::task::Streams;

/// How many checks are remembered, and how much each said.
const REMEMBERED: usize = 5;
const OUTPUT: u64 = 4096;

/// Ends the checks when it is dropped.
pub struct Checks(crate::executor::Once<()>);

impl Drop for Checks {
    fn drop(&mut self) {
        self.0.set(());
    }
}

/// Check for as long as the container runs.
pub fn start(supervisor: &Rc<Supervisor>, run: &Rc<Run>) -> Option<Checks> {
    let options = supervisor.options.health.clone()?;
    let stop = crate::executor::Once::default();
    let (this, run, stopped) = (supervisor.clone(), run.clone(), stop.clone());
    // A container that was taken over keeps what was known of it.
    if this.state.borrow().health.is_none() || this.state.borrow().restarts > 0 {
        this.state.borrow_mut().health = Some(Health::default());
    }
    supervisor.host.on.spawn(async move {
        first(checks(&this, &run, &options), stopped.wait()).await;
    });
    Some(Checks(stop))
}

async fn checks(this: &Rc<Supervisor>, run: &Rc<Run>, options: &HealthOptions) {
    let began = Instant::now();
    let mut next = Instant::now();
    loop {
        let starting = began.elapsed() < options.start_period
            && this.state.borrow().health.as_ref().is_some_and(|h| h.status == HealthStatus::Starting);
        next += if starting { options.start_interval } else { options.interval };
        this.host.on.until(next).await;
        next = next.max(Instant::now());
        if this.state.borrow().status != Status::Running {
            continue;
        }
        let check = match check(this, run, options).await {
            Ok(check) => check,
            Err(e) => {
                Check { start: Time::now(), end: Time::now(), exit_code: 126, output: report::line(&e) }
            }
        };
        let in_start = began.elapsed() < options.start_period;
        let became_unhealthy = {
            let mut state = this.state.borrow_mut();
            let health = state.health.get_or_insert_default();
            let before = health.status;
            note(health, check, options.retries, in_start);
            before != HealthStatus::Unhealthy && health.status == HealthStatus::Unhealthy
        };
        this.save().unwrap_or_else(|e| log::warn!("{e:#}"));
        if became_unhealthy {
            act(this, run, options.on_failure);
        }
    }
}

/// Take a check into account.
fn note(health: &mut Health, check: Check, retries: u32, in_start: bool) {
    if check.exit_code == 0 {
        health.status = HealthStatus::Healthy;
        health.failing_streak = 0;
    } else if !(in_start && health.status == HealthStatus::Starting) {
        health.failing_streak += 1;
        if health.failing_streak >= retries.max(1) {
            health.status = HealthStatus::Unhealthy;
        }
    }
    health.log.push(check);
    let many = health.log.len().saturating_sub(REMEMBERED);
    health.log.drain(..many);
}

fn act(this: &Rc<Supervisor>, run: &Rc<Run>, what: OnUnhealthy) {
    let this = this.clone();
    let done = match what {
        OnUnhealthy::None => return,
        // The restart policy says what comes then.
        OnUnhealthy::Kill => this.signal(run, 9),
        OnUnhealthy::Restart | OnUnhealthy::Stop => {
            this.wish.set(if what == OnUnhealthy::Restart { Wish::Restart } else { Wish::Stop });
            this.end_soon();
            return;
        }
    };
    if let Err(e) = done {
        log::warn!("{}", report::line(&e));
    }
}

async fn check(this: &Rc<Supervisor>, run: &Rc<Run>, options: &HealthOptions) -> Result<Check> {
    let start = Time::now();
    let process = bundle::process(&this.dir, &options.command)?;
    let mut output = sys::fd::memory_file("health").context("make a file in memory")?;
    let copy = || -> Result<OwnedFd> { Ok(output.try_clone().context("copy a descriptor")?.into()) };
    let null = std::fs::File::open("/dev/null").context("open /dev/null")?;
    let streams = Streams::Plain { stdin: null.into(), stdout: copy()?, stderr: copy()? };
    let launched = run.container.exec(&this.host, &process, streams).await?;
    let ended = this.host.on.within(options.timeout, launched.ended.wait()).await;
    let (exit_code, note) = match ended {
        Some(ended) => (ended.exit.status(), String::new()),
        None => {
            // Not waited for yet, so the number is its own.
            sys::process::signal(launched.pid, 9).unwrap_or_default();
            let killed = this.host.on.within(Duration::from_secs(5), launched.ended.wait()).await;
            debug_assert!(killed.is_none_or(|e| matches!(e.exit, Exit::Signal(_) | Exit::Code(_))));
            (-1, format!("it took longer than {:?}", options.timeout))
        }
    };
    let mut text = Vec::new();
    output
        .rewind()
        .and_then(|()| (&mut output).take(OUTPUT).read_to_end(&mut text))
        .context("read its output")?;
    let mut output = String::from_utf8_lossy(&text).into_owned();
    output.push_str(&note);
    Ok(Check { start, end: Time::now(), exit_code, output })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states() {
        let check =
            |exit_code| Check { start: Time::now(), end: Time::now(), exit_code, output: String::new() };
        let mut health = Health::default();
        for (code, in_start, status, streak) in [
            (1, true, HealthStatus::Starting, 0),
            (1, false, HealthStatus::Starting, 1),
            (0, false, HealthStatus::Healthy, 0),
            (1, true, HealthStatus::Healthy, 1),
            (1, false, HealthStatus::Unhealthy, 2),
            (1, false, HealthStatus::Unhealthy, 3),
            (0, false, HealthStatus::Healthy, 0),
        ] {
            note(&mut health, check(code), 2, in_start);
            assert_eq!((health.status, health.failing_streak), (status, streak));
        }
        assert_eq!(health.log.len(), REMEMBERED);
    }
}
