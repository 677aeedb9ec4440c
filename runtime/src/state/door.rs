//! Where a created container's init waits for `start`, without a file.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Init holds both ends of a socket pair, and `start` takes one of them (pidfd_getfd(2)): no file has to be made and removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Door {
    /// The descriptor's number in init.
    fd: i32,
    /// The socket's inode: what stands at `/proc/PID/fd/NUMBER`.
    inode: u64,
    /// SO_COOKIE: no other socket of this host ever has it, so nobody else's can be taken for this one.
    cookie: u64,
}

impl Door {
    /// That of a socket which a child will inherit.
    pub fn of(end: &OwnedFd) -> Result<Door> {
        let cookie = rustix::net::sockopt::socket_cookie(end).context("ask for a socket's cookie")?;
        let inode = rustix::fs::fstat(end).context("look at a socket")?.st_ino;
        Ok(Door { fd: end.as_raw_fd(), inode, cookie })
    }

    /// Whether the process holds it, as far as names tell. A descriptor of a container's program is not touched: to close a duplicate of
    /// it may ask that program, which need not answer (FUSE).
    pub fn is_held_by(self, pid: i32) -> io::Result<bool> {
        use rustix::io::Errno;
        match rustix::fs::readlink(format!("/proc/{pid}/fd/{}", self.fd), Vec::with_capacity(64)) {
            Ok(link) => Ok(link.to_bytes() == format!("socket:[{}]", self.inode).as_bytes()),
            Err(Errno::NOENT | Errno::SRCH) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// The end that a process of ours holds; `None` if it does not any more. Needs the right to trace the process.
    pub fn open(self, pidfd: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
        use rustix::io::Errno;
        let end = match sys::process::pidfd_getfd(pidfd, self.fd) {
            Ok(end) => end,
            Err(e)
                if [Errno::BADF, Errno::SRCH]
                    .iter()
                    .any(|&gone| Some(gone.raw_os_error()) == e.raw_os_error()) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let same = rustix::net::sockopt::socket_cookie(&end).is_ok_and(|cookie| cookie == self.cookie);
        Ok(same.then_some(end))
    }
}
