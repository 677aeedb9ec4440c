//! Signals as a descriptor (signalfd(2)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// All signals that can be blocked, blocked and readable.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Block them. Children must call `process::reset_signals`.
    pub fn block() -> io::Result<Signals> {
        let mut set = SigSet::all();
        // Faults of our own stay deadly.
        for fault in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGFPE,
            Signal::SIGILL,
            Signal::SIGABRT,
            Signal::SIGTRAP,
        ] {
            set.remove(fault);
        }
        set.thread_block()?;
        Ok(Signals(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// The next pending signal.
    pub fn next(&self) -> io::Result<Option<i32>> {
        Ok(self.0.read_signal()?.map(|info| info.ssi_signo as i32))
    }

    /// Whether a process that does nothing about the signal ends by it (signal(7)).
    pub fn is_deadly(&self, signal: i32) -> bool {
        let harmless = [
            libc::SIGCHLD,
            libc::SIGURG,
            libc::SIGWINCH,
            libc::SIGCONT,
            libc::SIGSTOP,
            libc::SIGTSTP,
            libc::SIGTTIN,
            libc::SIGTTOU,
        ];
        !harmless.contains(&signal)
    }

    /// SIGWINCH.
    pub fn window_change(&self) -> i32 {
        libc::SIGWINCH
    }

    /// SIGCHLD.
    pub fn child(&self) -> i32 {
        libc::SIGCHLD
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A signal by name (`KILL`, `SIGKILL`, `RTMIN+3`) or number, as kill(1) understands them.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (0..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // What glibc leaves to programs: 34 to 64.
    let realtime = |rest: &str, base: i32, sign: i32| {
        let offset = if rest.is_empty() { Some(0) } else { rest.get(1..)?.parse::<i32>().ok() }?;
        let number = base + sign * offset;
        (34..=64).contains(&number).then_some(number)
    };
    match name {
        "CLD" => return Some(libc::SIGCHLD),
        "IOT" => return Some(libc::SIGABRT),
        "POLL" => return Some(libc::SIGIO),
        _ => {}
    }
    if let Some(rest) = name.strip_prefix("RTMIN").filter(|r| r.is_empty() || r.starts_with('+')) {
        return realtime(rest, 34, 1);
    }
    if let Some(rest) = name.strip_prefix("RTMAX").filter(|r| r.is_empty() || r.starts_with('-')) {
        return realtime(rest, 64, -1);
    }
    format!("SIG{name}").parse::<Signal>().ok().map(|s| s as i32)
}

#[cfg(test)]
mod tests {
    #[test]
    fn names() {
        for (text, number) in [
            ("9", Some(9)),
            ("KILL", Some(9)),
            ("SIGKILL", Some(9)),
            ("sigterm", Some(15)),
            ("hup", Some(1)),
            ("0", Some(0)),
            ("64", Some(64)),
            ("65", None),
            ("-1", None),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX", Some(64)),
            ("RTMAX-1", Some(63)),
            ("RTMIN+31", None),
            ("CLD", Some(17)),
            ("NOPE", None),
            ("", None),
        ] {
            assert_eq!(super::parse(text), number, "{text}");
        }
    }
}
