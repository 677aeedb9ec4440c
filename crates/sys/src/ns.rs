//! Namespace files.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::check;

/// `NS_GET_NSTYPE` (ioctl_ns(2)): the clone flag of the namespace behind a file.
pub fn kind(file: BorrowedFd<'_>) -> io::Result<u64> {
    const NS_GET_NSTYPE: u64 = 0xb703;
    // SAFETY: the request takes no argument and returns an integer.
    let kind = check(unsafe { libc::syscall(libc::SYS_ioctl, file.as_raw_fd(), NS_GET_NSTYPE, 0) })?;
    Ok(kind as u64)
}
