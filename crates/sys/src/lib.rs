//! The kernel, by subject, behind safe and descriptor-based calls. Every unsafe line of the project is here.

pub mod alloc;
pub mod bpf;
pub mod cgroupfs;
pub mod credentials;
pub mod entry;
pub mod fd;
pub mod kernel;
pub mod keyring;
pub mod memory;
pub mod mount;
pub mod netlink;
pub mod notify;
pub mod ns;
pub mod path;
pub mod process;
pub mod procfs;
pub mod sched;
pub mod seccomp;
pub mod signals;
pub mod socket;
pub mod trampoline;
pub mod tty;
pub mod user;

/// The `Result` of a call: the error names the call and its operands.
pub use anyhow::Result;

/// The error of the system call that just failed with -1, as the kernel gave it.
pub fn last_error() -> std::io::Error {
    std::io::Error::last_os_error()
}

/// Turn the return value of a raw system call into a result.
pub(crate) fn check(value: libc::c_long) -> std::io::Result<libc::c_long> {
    if value == -1 { Err(last_error()) } else { Ok(value) }
}
