//! What processes behind a seccomp filter ask their agent: seccomp_unotify(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::check;

/// `_IOWR('!', 0, struct seccomp_notif)`
const RECEIVE: libc::c_ulong = 0xc050_2100;
/// `_IOWR('!', 1, struct seccomp_notif_resp)`
const SEND: libc::c_ulong = 0xc018_2101;
/// `_IOW('!', 2, __u64)`
const IS_VALID: libc::c_ulong = 0x4008_2102;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`
const CONTINUE: u32 = 1;

/// A system call that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub id: u64,
    /// The thread, in our pid namespace.
    pub pid: i32,
    pub number: i64,
    /// Of this machine's own architecture, not of an older one that it also runs.
    pub native: bool,
    pub arguments: [u64; 6],
}

/// How a call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// errno(3)
    Failed(i32),
    /// The kernel does it.
    Continue,
}

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

/// The next call. `None`: who asked is gone.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Option<Call>> {
    // SAFETY: the kernel wants it zeroed, and zeros are a value of it.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: `call` lives during the call, which fills it.
    match check(unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut call).into() }) {
        Ok(_) => Ok(Some(Call {
            id: call.id,
            pid: call.pid.cast_signed(),
            number: i64::from(call.data.nr),
            native: call.data.arch == NATIVE,
            arguments: call.data.args,
        })),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether the call still waits: only then is what was read of its process what it asked about.
pub fn is_valid(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: `id` lives during the call, which reads it.
    unsafe { libc::ioctl(listener.as_raw_fd(), IS_VALID as _, &raw const id) == 0 }
}

/// Answer a call; that nobody waits for the answer is fine.
pub fn answer(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> io::Result<()> {
    let (error, flags) = match answer {
        Answer::Done => (0, 0),
        Answer::Failed(errno) => (-errno, 0),
        Answer::Continue => (0, CONTINUE),
    };
    let response = libc::seccomp_notif_resp { id, val: 0, error, flags };
    // SAFETY: `response` lives during the call, which reads it.
    match check(unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw const response).into() }) {
        Ok(_) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(e) => Err(e),
    }
}
