//! Attends to a process in the foreground: signals go to it, its terminal is ours, its end is awaited.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use sys::process::{self, Exit};
use sys::signals::Signals;
use sys::tty;

use super::notify::Notify;

/// Whose end we await.
#[derive(Debug)]
pub struct Foreground {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
    /// Until it is ready.
    pub notify: Option<Notify>,
}

/// Wait for the process; it is our child. `signals` were blocked before it was cloned, so that none is lost.
pub fn attend(process: &Foreground, signals: &Signals) -> Result<Exit> {
    let stdin = rustix::stdio::stdin();
    if let Some(master) = &process.terminal {
        // Ours will add the carriage returns. Whoever takes a console socket decides that for itself.
        tty::clear_onlcr(master.as_fd()).context("set the terminal's modes")?;
    }
    let _raw = match &process.terminal {
        Some(master) if tty::is_terminal(stdin) => {
            copy_size(stdin, master.as_fd());
            Some(tty::raw(stdin).context("put the terminal into raw mode")?)
        }
        _ => None,
    };
    let mut copy = process.terminal.as_ref().map(|master| Copy {
        master: master.as_fd(),
        input_open: true,
        output_open: true,
    });
    let mut notify = process.notify.as_ref();
    loop {
        let mut fds = vec![PollFd::new(signals, PollFlags::IN), PollFd::new(&process.pidfd, PollFlags::IN)];
        let (mut at_input, mut at_output) = (None, None);
        if let Some(copy) = &copy {
            if copy.output_open {
                at_output = Some(fds.len());
                fds.push(PollFd::from_borrowed_fd(copy.master, PollFlags::IN));
            }
            if copy.input_open {
                at_input = Some(fds.len());
                fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
            }
        }
        let at_notify = notify.map(|notify| {
            fds.push(PollFd::new(notify, PollFlags::IN));
            fds.len() - 1
        });
        rustix::io::retry_on_intr(|| poll(&mut fds, None)).context("wait for the container's process")?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let is = |at: Option<usize>| at.is_some_and(|at| ready[at]);
        if let Some(copy) = &mut copy {
            if is(at_output) {
                copy.output()?;
            }
            if is(at_input) {
                copy.input(stdin)?;
            }
        }
        // The service's main process is this one.
        notify = notify.filter(|notify| !(is(at_notify) && notify.pass_on(None)));
        if ready[0] {
            forward(process, signals)?;
        }
        if ready[1] {
            let exit = process::wait(process.pid).context("wait for the container's process")?;
            if let Some(copy) = &mut copy {
                copy.drain()?;
            }
            return Ok(exit);
        }
    }
}

fn forward(process: &Foreground, signals: &Signals) -> Result<()> {
    while let Some(signal) = signals.next().context("read signals")? {
        if signal == signals.window_change() {
            if let Some(master) = &process.terminal {
                copy_size(rustix::stdio::stdin(), master.as_fd());
            }
            continue;
        }
        if signal == signals.child() {
            reap_others(process.pid)?;
            continue;
        }
        // It may have ended meanwhile; its end is noticed by the loop.
        process::pidfd_signal(process.pidfd.as_fd(), signal).unwrap_or_default();
    }
    Ok(())
}

/// As a subreaper we may get children that are not the container's first process.
fn reap_others(pid: i32) -> Result<()> {
    process::reap_all_but(pid).context("wait for orphans")
}

/// The size of our terminal becomes that of the container's; without one there is nothing to tell.
fn copy_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    if let Ok(size) = tty::size(from) {
        tty::set_size(to, size).unwrap_or_default();
    }
}

/// Bytes between our streams and the terminal's master.
struct Copy<'a> {
    master: BorrowedFd<'a>,
    input_open: bool,
    output_open: bool,
}

impl Copy<'_> {
    fn output(&mut self) -> Result<()> {
        let mut buffer = [0; 8192];
        match rustix::io::read(self.master, &mut buffer) {
            // EIO: nobody has the other end open (any more).
            Ok(0) | Err(rustix::io::Errno::IO) => self.output_open = false,
            Ok(n) => {
                if write_all(rustix::stdio::stdout(), &buffer[..n]).is_err() {
                    self.output_open = false;
                }
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(e) => return Err(e).context("read the container's terminal"),
        }
        Ok(())
    }

    fn input(&mut self, stdin: BorrowedFd<'_>) -> Result<()> {
        let mut buffer = [0; 8192];
        match rustix::io::read(stdin, &mut buffer) {
            Ok(0) => {
                self.input_open = false;
                // End of input, as somebody at a keyboard would say it.
                write_all(self.master, &[4]).unwrap_or_default();
            }
            Ok(n) => self.input_open = write_all(self.master, &buffer[..n]).is_ok(),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(_) => self.input_open = false,
        }
        Ok(())
    }

    /// After the end of the process: what is still in the terminal's buffer.
    fn drain(&mut self) -> Result<()> {
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        while self.output_open {
            let mut fds = [PollFd::from_borrowed_fd(self.master, PollFlags::IN)];
            let ready =
                rustix::io::retry_on_intr(|| poll(&mut fds, Some(&now))).context("poll the terminal")?;
            if ready == 0 || !fds[0].revents().contains(PollFlags::IN) {
                break;
            }
            self.output()?;
        }
        Ok(())
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = rustix::io::retry_on_intr(|| rustix::io::write(fd, bytes))?;
        bytes = &bytes[n..];
    }
    Ok(())
}
