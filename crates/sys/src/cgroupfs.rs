//! Control group file systems: what is mounted, directories, small files, a mark of ownership.
//!
//! Everything here is one system call, or open, read or write, close. Errors are bare `io::Error`s, because
//! callers branch on them; they add the path and the purpose.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

/// The kind of file system at a path, as far as control groups care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsType {
    CgroupV1,
    CgroupV2,
    Tmpfs,
    Other,
}

/// What is mounted at `path` (statfs).
pub fn fs_type(path: &Path) -> io::Result<FsType> {
    let stat = rustix::fs::statfs(path)?;
    // The magic numbers fit 32 bits on every architecture.
    Ok(match stat.f_type as u32 {
        0x6367_7270 => FsType::CgroupV2,
        0x0027_e0eb => FsType::CgroupV1,
        0x0102_1994 => FsType::Tmpfs,
        _ => FsType::Other,
    })
}

/// Make one cgroup.
pub fn make(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755))?)
}

/// Remove one cgroup that has neither processes nor children.
pub fn remove(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::rmdir(path)?)
}

/// Open a control file for writing.
pub fn open_write(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Open a control file for reading.
pub fn open_read(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Open a cgroup itself: for `CLONE_INTO_CGROUP` and for attaching programs.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Write a value in one write: control files take each write as a command.
pub fn write_to(fd: &OwnedFd, value: &[u8]) -> io::Result<()> {
    loop {
        match rustix::io::write(fd, value) {
            Ok(n) if n == value.len() => return Ok(()),
            Ok(_) => return Err(Errno::IO.into()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Open, write once, close.
pub fn write(path: &Path, value: &[u8]) -> io::Result<()> {
    write_to(&open_write(path)?, value)
}

/// The whole content of a small file.
pub fn read(path: &Path) -> io::Result<String> {
    let fd = open_read(path)?;
    let mut out = Vec::with_capacity(4096);
    loop {
        if out.capacity() - out.len() < 1024 {
            out.reserve(out.capacity());
        }
        match rustix::io::read(&fd, rustix::buffer::spare_capacity(&mut out)) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    String::from_utf8(out).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// `user.*` attributes are for everybody but need Linux 5.7; `trusted.*` ones need root.
const MARKS: [&str; 2] = ["user.berth", "trusted.berth"];

/// Note on a cgroup whose it is. False: this kernel keeps no attributes on cgroups.
pub fn set_mark(path: &Path, mark: &str) -> io::Result<bool> {
    for name in MARKS {
        match rustix::fs::setxattr(path, name, mark.as_bytes(), XattrFlags::empty()) {
            Ok(()) => return Ok(true),
            Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(false)
}

/// Does the cgroup carry this mark? True as well where marks cannot be kept.
pub fn has_mark(path: &Path, mark: &str) -> io::Result<bool> {
    Ok(look_for_mark(path, mark)?.unwrap_or(true))
}

/// Does the cgroup certainly carry this mark?
pub fn is_marked(path: &Path, mark: &str) -> io::Result<bool> {
    Ok(look_for_mark(path, mark)?.unwrap_or(false))
}

/// `None`: marks cannot be kept here.
fn look_for_mark(path: &Path, mark: &str) -> io::Result<Option<bool>> {
    // The mark is a path, with as many bytes as a path may have.
    let mut buffer = [0u8; 4096];
    let mut kept = None;
    for name in MARKS {
        match rustix::fs::getxattr(path, name, &mut buffer[..]) {
            Ok(n) if buffer[..n] == *mark.as_bytes() => return Ok(Some(true)),
            Ok(_) | Err(Errno::NODATA | Errno::RANGE) => kept = Some(false),
            Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(kept)
}

/// Send a signal to a process that a cgroup listed. It may be gone already. Zero, which stands for a process
/// of another pid namespace, would be our own process group: it is refused.
pub fn signal(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 0 {
        return Err(Errno::SRCH.into());
    }
    // SAFETY: takes two integers and touches no memory of ours.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => match crate::last_error() {
            e if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            e => Err(e),
        },
    }
}
