//! Gives the container a terminal of its own devpts, and sends its other end where it is wanted.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use sys::tty::{self, Size};

/// The container's end becomes our standard streams and controlling terminal; returns the other end.
/// `pair` is (master, slave).
pub fn adopt(pair: (OwnedFd, OwnedFd), size: Option<Size>) -> Result<OwnedFd> {
    let (master, slave) = pair;
    if let Some(size) = size {
        tty::set_size(slave.as_fd(), size).context("process.consoleSize")?;
    }
    tty::set_controlling(slave.as_fd()).context("make the controlling terminal")?;
    rustix::stdio::dup2_stdin(&slave).context("terminal as standard input")?;
    rustix::stdio::dup2_stdout(&slave).context("terminal as standard output")?;
    rustix::stdio::dup2_stderr(&slave).context("terminal as standard error")?;
    Ok(master)
}

/// Send the master to the program behind `--console-socket`, with its name as runc does.
pub fn send(console: BorrowedFd<'_>, master: BorrowedFd<'_>) -> Result<()> {
    sys::socket::send(console, b"/dev/ptmx", &[master]).context("send the terminal to the console socket")
}
