//! Descriptors that are not files of a file system.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

/// An anonymous file in memory.
pub fn memory_file(name: &str) -> io::Result<File> {
    Ok(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

/// Whether a descriptor number is in use.
pub fn is_open(fd: u32) -> bool {
    // SAFETY: asks for a flag by number; touches no memory.
    unsafe { libc::fcntl(fd as i32, libc::F_GETFD) != -1 }
}

/// A descriptor by number, for calls about what an owner elsewhere keeps open; a number that is closed gives `EBADF`.
pub fn borrow<'a>(fd: i32) -> BorrowedFd<'a> {
    // SAFETY: never -1 (callers take it from an open descriptor). Calls with a number that was closed since give an error or are
    // about another file, they touch no memory.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Put a small file at `path`, replacing what is there: written without a name (`O_TMPFILE`) and then linked. On file
/// systems that cannot do so, written in place.
pub fn publish(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(dir, flags, Mode::from_raw_mode(0o644)) {
        Ok(file) => file,
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => return std::fs::write(path, bytes),
        Err(e) => return Err(e.into()),
    };
    let mut file = File::from(file);
    file.write_all(bytes)?;
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    loop {
        match rustix::fs::linkat(CWD, &name, CWD, path, AtFlags::SYMLINK_FOLLOW) {
            Err(Errno::EXIST) => match rustix::fs::unlink(path) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            },
            other => return Ok(other?),
        }
    }
}

/// sync_file_range(2): begin to write a part of a file to the disk, and do not wait. Only a hint.
pub fn write_behind(fd: BorrowedFd<'_>, offset: u64, length: u64) {
    let (offset, length) = (offset.cast_signed(), length.cast_signed());
    // SAFETY: integers only. What it returns changes nothing: the data is synced later all the same.
    unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn publish_replaces() {
        let path = std::env::temp_dir().join(format!("berth-publish-{}", std::process::id()));
        for text in ["1", "22"] {
            super::publish(&path, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::remove_file(&path).unwrap();
    }
}
