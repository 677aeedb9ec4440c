//! `NOTIFY_SOCKET` (sd_notify(3)): how does systemd hear that a service is ready which runs in a container?
//!
//! ```text
//! container: /run/notify/notify.sock ─ "READY=1" ─▶ start, run ─ "READY=1", "MAINPID=<its pid>" ─▶ NOTIFY_SOCKET
//! ```
//!
//! The container sees the folder `notify` of its state, read-only, and nothing of the host's socket. Nothing but readiness is passed
//! on: with the rest a container could tell systemd what it likes.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use sys::socket;

use crate::state::Dir;

/// In the folder of what few containers need (`state`), and there the socket.
pub const FOLDER: &str = "notify";
const SOCKET: &str = "notify.sock";
/// Where the container has the folder.
pub const DESTINATION: &str = "/run/notify";
/// What its program gets.
pub const VARIABLE: &std::ffi::CStr = c"NOTIFY_SOCKET=/run/notify/notify.sock";

/// Where our caller wants to be told: a path, or `@` and a name.
pub fn wanted() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|to| !to.is_empty())
}

/// A container's socket, and where its word goes.
#[derive(Debug)]
pub struct Notify {
    socket: UnixDatagram,
    to: PathBuf,
}

/// The folder that the container will see.
pub fn make_folder(dir: &Dir) -> Result<()> {
    let mode = rustix::fs::Mode::from_raw_mode(0o755);
    let more = dir.more()?;
    rustix::fs::mkdirat(&more, FOLDER, mode).context("make the folder for notifications")?;
    // Whatever the umask is: the container's user must come through.
    rustix::fs::chmodat(&more, FOLDER, mode, rustix::fs::AtFlags::empty()).context("chmod it")
}

impl Notify {
    /// Listen; `None` if the container was made without the folder.
    pub fn listen(dir: &Dir, to: &OsStr) -> Result<Option<Notify>> {
        let folder = match sys::path::open_host_dir(&dir.more_path().join(FOLDER)) {
            Ok(folder) => folder,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).context("open the folder for notifications"),
        };
        let socket =
            socket::receive_datagrams_at(folder.as_fd(), SOCKET).context("listen for notifications")?;
        Ok(Some(Notify { socket, to: to.into() }))
    }

    /// One message. Whether it was the one that is waited for; then it was passed on, with `main` for a process that is not ours.
    pub fn pass_on(&self, main: Option<i32>) -> bool {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).unwrap_or(0);
        let ready = buffer[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1");
        if ready {
            let main = main.map(|pid| format!("MAINPID={pid}\n")).unwrap_or_default();
            let told = socket::send_datagram(&self.to, format!("READY=1\n{main}").as_bytes());
            told.unwrap_or_else(|e| log::warn!("notify {}: {e}", self.to.display()));
        }
        ready
    }

    /// Wait until the container is ready, or has ended.
    pub fn wait(&self, pidfd: BorrowedFd<'_>, pid: i32) -> Result<()> {
        loop {
            let mut fds =
                [PollFd::new(&self.socket, PollFlags::IN), PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
            rustix::io::retry_on_intr(|| poll(&mut fds, None)).context("wait for readiness")?;
            let [said, ended] = fds.map(|fd| !fd.revents().is_empty());
            if (said && self.pass_on(Some(pid))) || (ended && !said) {
                return Ok(());
            }
        }
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
