//! Who is there when the supervisor is killed? A process that does nothing else: it holds what must not be closed, is the parent of
//! what the supervisor leaves behind, and starts another one.
//!
//! ```text
//!  keeper ── socket ── supervisor
//!     ◀── hold NAME + descriptor, drop NAME
//!     ──▶ held NAME + descriptor       to a new one: all of them
//!     ──▶ exit PID STATUS              of processes that became ours
//! ```
//!
//! A container has one keeper, who has its `keeper.lock`: with another one, whichever supervisor were first would decide who holds
//! its terminal.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use sys::process::Exit;
use sys::signals::Signals;

use super::state::Dir;

/// The number under which a supervisor finds the socket.
pub const SOCKET: i32 = 3;
/// The name under which a supervisor that becomes the keeper hands on the right to it.
const LOCK: &str = "keeper.lock";
/// How a supervisor ends when its work is done; and when another one has the container.
pub const DONE: i32 = 0;
pub const NOT_MINE: i32 = 3;

/// How long a new supervisor is waited with, when one after another ends.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Start a keeper in a session of its own.
pub fn start(root: &Path, id: &str, wait: bool, passthrough: bool) -> Result<()> {
    let mut command = Command::new(std::env::current_exe().context("find the own program")?);
    let (name, value) = crate::task::SMALL_HEAP;
    command.arg0("berth-shim").arg("keep").arg(root).arg(id).env(name, value);
    if wait {
        command.arg("--wait");
    }
    if !passthrough {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    }
    sys::process::in_new_session(&mut command);
    // It goes on without us.
    let mut child = command.spawn().context("start the keeper")?;
    // The first process ends at once, so that nobody waits for us: see `keep`.
    child.wait().context("wait for the keeper's start")?;
    Ok(())
}

/// The keeper of a container, until it has ended for good. `held`: what another process has handed over, by name.
pub fn keep(root: &Path, id: &str, wait: bool, mut held: Vec<(String, OwnedFd)>) -> Result<i32> {
    let lock = match held.iter().position(|(name, _)| name == LOCK) {
        Some(at) => Some(held.swap_remove(at).1),
        None => lock(&Dir::open(root, id)?)?,
    };
    let Some(_lock) = lock else { return Ok(NOT_MINE) };
    sys::process::set_subreaper().context("become a subreaper")?;
    let signals = Signals::block().context("receive signals")?;
    let mut keeper = Keeper { held, exits: Vec::new() };
    let mut pause = PAUSE;
    let mut wait = wait;
    loop {
        let began = Instant::now();
        if let Exit::Code(code @ (DONE | NOT_MINE)) = keeper.supervisor(root, id, wait, &signals)? {
            return Ok(code);
        }
        wait = false;
        pause =
            if began.elapsed() > Duration::from_secs(10) { PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        if pause > PAUSE * 4 {
            std::thread::sleep(pause);
        }
    }
}

/// The last keeper may still be going; one that stays is the keeper.
fn lock(dir: &Dir) -> Result<Option<OwnedFd>> {
    for _ in 0..500 {
        if let Some(lock) = dir.keeper_lock()? {
            return Ok(Some(lock));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(None)
}

struct Keeper {
    held: Vec<(String, OwnedFd)>,
    exits: Vec<(i32, i32)>,
}

impl Keeper {
    /// Start a supervisor, and serve it until it ends.
    fn supervisor(&mut self, root: &Path, id: &str, wait: bool, signals: &Signals) -> Result<Exit> {
        let (ours, theirs) = sys::socket::pair().context("make a socket")?;
        for (name, fd) in &self.held {
            sys::socket::send(ours.as_fd(), format!("held {name}").as_bytes(), &[fd.as_fd()])
                .context("hand over")?;
        }
        for (pid, status) in &self.exits {
            sys::socket::send(ours.as_fd(), format!("exit {pid} {status}").as_bytes(), &[])
                .context("tell an exit")?;
        }
        let mut command = Command::new(std::env::current_exe().context("find the own program")?);
        command.arg0("berth-shim").arg("supervise").arg(root).arg(id);
        if wait {
            command.arg("--wait");
        }
        sys::process::pass(&mut command, vec![(theirs, SOCKET)]);
        let child = command.spawn().context("start the supervisor")?.id().cast_signed();
        drop(command);
        loop {
            while let Some(signal) = signals.next().context("receive signals")? {
                if signal != signals.child() {
                    // Not waited for yet, so the number is its own.
                    sys::process::signal(child, signal).unwrap_or_default();
                }
            }
            while let Some((pid, exit)) = sys::process::reap().context("wait for processes")? {
                if pid == child {
                    // What it has handed over just before its end, such as a terminal, is there already.
                    while has_word(&ours)? && self.listen(&ours)? {}
                    return Ok(exit);
                }
                // A few, and never many: what the last supervisor has left.
                self.exits.push((pid, exit.status()));
                if self.exits.len() > 64 {
                    self.exits.remove(0);
                }
                let told = format!("exit {pid} {}", exit.status());
                // It may have ended just now: the next one hears of it.
                sys::socket::send(ours.as_fd(), told.as_bytes(), &[]).unwrap_or_default();
            }
            // It may be long until something comes.
            sys::memory::drop_program();
            let mut fds = [PollFd::new(signals, PollFlags::IN), PollFd::new(&ours, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e).context("wait for signals"),
            }
            let (came, gone) =
                (fds[1].revents().contains(PollFlags::IN), fds[1].revents().contains(PollFlags::HUP));
            if came && self.listen(&ours)? {
                continue;
            }
            if gone || came {
                // Its end of the socket is closed: it is about to end, and SIGCHLD tells.
                let mut fds = [PollFd::new(signals, PollFlags::IN)];
                match poll(&mut fds, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(e) => return Err(e).context("wait for signals"),
                }
            }
        }
    }

    /// One message; `false`: there is nobody any more.
    fn listen(&mut self, socket: &OwnedFd) -> Result<bool> {
        let mut buffer = [0; 64];
        let (length, fds) =
            sys::socket::receive(socket.as_fd(), &mut buffer).context("hear the supervisor")?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        match text.split_once(' ') {
            Some(("hold", name)) => {
                self.held.retain(|(n, _)| n != name);
                self.held.extend(fds.into_iter().map(|fd| (name.to_owned(), fd)));
            }
            Some(("drop", name)) => self.held.retain(|(n, _)| n != name),
            _ => {}
        }
        Ok(length > 0)
    }
}

/// Whether there is something to receive.
fn has_word(socket: &OwnedFd) -> Result<bool> {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    let now = rustix::event::Timespec::default();
    poll(&mut fds, Some(&now)).context("look for a message")?;
    Ok(fds[0].revents().contains(PollFlags::IN))
}

/// A supervisor whose keeper is gone becomes one: it is the container's parent already. Returns only with an error.
pub fn become_keeper(
    root: &Path,
    id: &str,
    lock: OwnedFd,
    mut held: Vec<(String, OwnedFd)>,
) -> anyhow::Error {
    held.push((LOCK.to_owned(), lock));
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(e) => return anyhow::Error::from(e).context("find the own program"),
    };
    let mut command = Command::new(own);
    command.arg0("berth-shim").arg("keep").arg(root).arg(id);
    for (name, fd) in &held {
        if let Err(e) = rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()) {
            return anyhow::Error::from(e).context("keep a descriptor");
        }
        command.arg(OsString::from(format!("{name}={}", fd.as_raw_fd())));
    }
    anyhow::Error::from(command.exec()).context("become the keeper")
}
