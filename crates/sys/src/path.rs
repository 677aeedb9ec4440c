//! Files inside a root that somebody else may be changing: every path is resolved by the kernel within a
//! descriptor of the root (openat2, `RESOLVE_IN_ROOT`), so that no symbolic link and no exchange leads out.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};

/// What a path is allowed to lead through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// `ELOOP` for a symbolic link anywhere.
    Refuse,
    /// Symbolic links mean what they mean to a process in the root.
    Follow,
    /// As `Follow`, but a link at the end is what is meant.
    Keep,
}

/// Type, device number and so on of a file.
#[derive(Clone, Copy, Debug)]
pub struct Stat(rustix::fs::Stat);

impl Stat {
    pub fn is_dir(&self) -> bool {
        FileType::from_raw_mode(self.0.st_mode) == FileType::Directory
    }
    pub fn is_symlink(&self) -> bool {
        FileType::from_raw_mode(self.0.st_mode) == FileType::Symlink
    }
    /// A character device of that number.
    pub fn is_char(&self, major: u32, minor: u32) -> bool {
        self.node() == (libc::S_IFCHR, (major, minor))
    }
    pub fn is_file(&self) -> bool {
        FileType::from_raw_mode(self.0.st_mode) == FileType::RegularFile
    }
    /// A node of that kind (`S_IFMT` bits) and number.
    pub fn is_node(&self, kind: u32, device: (u32, u32)) -> bool {
        self.node() == (kind, device) || (kind == libc::S_IFIFO && self.node().0 == kind)
    }
    /// `S_IFMT` bits, major and minor number.
    pub fn node(&self) -> (u32, (u32, u32)) {
        let (major, minor) = (rustix::fs::major(self.0.st_rdev), rustix::fs::minor(self.0.st_rdev));
        (self.0.st_mode & libc::S_IFMT, (major, minor))
    }
    /// Permission bits.
    pub fn mode(&self) -> u32 {
        self.0.st_mode & 0o7777
    }
    pub fn owner(&self) -> (u32, u32) {
        (self.0.st_uid, self.0.st_gid)
    }
    pub fn device(&self) -> u64 {
        self.0.st_dev
    }
    pub(crate) fn times(&self) -> rustix::fs::Timestamps {
        let time =
            |sec, nsec| rustix::fs::Timespec { tv_sec: sec, tv_nsec: i64::try_from(nsec).unwrap_or(0) };
        rustix::fs::Timestamps {
            last_access: time(self.0.st_atime, self.0.st_atime_nsec),
            last_modification: time(self.0.st_mtime, self.0.st_mtime_nsec),
        }
    }
}

fn resolve(root: BorrowedFd<'_>, path: &Path, how: OFlags, mode: Mode, links: Links) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let mut flags = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut how = how | OFlags::CLOEXEC;
    match links {
        Links::Refuse => flags |= ResolveFlags::NO_SYMLINKS,
        Links::Follow => {}
        Links::Keep => how |= OFlags::NOFOLLOW,
    }
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root, path, how, mode, flags) {
            // A rename somewhere while `..` was walked: the kernel cannot vouch for the result.
            Err(rustix::io::Errno::AGAIN) if tries < 256 => tries += 1,
            done => return Ok(done?),
        }
    }
}

/// Name what `path` is in `root`, without opening it.
pub fn locate(root: BorrowedFd<'_>, path: &Path, links: Links) -> io::Result<OwnedFd> {
    resolve(root, path, OFlags::PATH, Mode::empty(), links)
}

/// The same for a directory.
pub fn locate_dir(root: BorrowedFd<'_>, path: &Path, links: Links) -> io::Result<OwnedFd> {
    resolve(root, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty(), links)
}

/// Open a file in `root` for reading.
pub fn open(root: BorrowedFd<'_>, path: &Path, links: Links) -> io::Result<OwnedFd> {
    resolve(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty(), links)
}

/// Open a directory in `root` for reading; links mean what they mean to a process in the root.
pub fn open_dir(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    resolve(root, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty(), Links::Follow)
}

/// The directory `path` in `root`, made with all its parents (mode 0755) where it is missing.
pub fn make_dirs(root: BorrowedFd<'_>, path: &Path, links: Links) -> io::Result<OwnedFd> {
    make_dirs_below(root, path, links, 40)
}

fn make_dirs_below(root: BorrowedFd<'_>, path: &Path, links: Links, left: u32) -> io::Result<OwnedFd> {
    match locate_dir(root, path, links) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        done => return done,
    }
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let parent = make_dirs_below(root, above, links, left)?;
    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => return locate_dir(parent.as_fd(), Path::new(name), Links::Refuse),
        Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    match locate_dir(parent.as_fd(), Path::new(name), Links::Refuse) {
        // A link to what is not there yet, such as /dev/shm to /run/shm.
        Err(e) if is_link(&e) && links == Links::Follow && left > 0 => {
            let target = above.join(read_link_at(parent.as_fd(), name)?);
            make_dirs_below(root, target.strip_prefix("/").unwrap_or(&target), links, left - 1)
        }
        Err(e) if is_link(&e) => Err(rustix::io::Errno::LOOP.into()),
        done => done,
    }
}

/// With `O_DIRECTORY`, a link that may not be followed is no directory.
fn is_link(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR))
}

/// The file `path` in `root`, made empty (mode 0644, with its parents) where it is missing. Never truncates.
pub fn make_file(root: BorrowedFd<'_>, path: &Path, links: Links) -> io::Result<OwnedFd> {
    match locate(root, path, links) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        done => return done,
    }
    if let Some(parent) = path.parent() {
        make_dirs(root, parent, links)?;
    }
    let how = OFlags::CREATE | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    resolve(root, path, how, Mode::from_raw_mode(0o644), links)
}

/// Open a device node in `dir` for reading and writing.
pub fn open_device(dir: BorrowedFd<'_>, name: &Path) -> io::Result<OwnedFd> {
    resolve(dir, name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty(), Links::Refuse)
}

/// Make a directory in `dir`; whether there was nothing of that name yet.
pub fn make_dir_at(dir: BorrowedFd<'_>, name: &Path, mode: u32) -> io::Result<bool> {
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode)) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Make an empty file in `dir` that was not there.
pub fn make_file_at(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<OwnedFd> {
    let how = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, how, Mode::from_raw_mode(mode))?)
}

/// mknodat(2); `kind` is `S_IFCHR`, `S_IFBLK` or `S_IFIFO`.
pub fn make_node_at(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    kind: u32,
    mode: u32,
    device: (u32, u32),
) -> io::Result<()> {
    let kind = FileType::from_raw_mode(kind);
    let number = rustix::fs::makedev(device.0, device.1);
    Ok(rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode), number)?)
}

/// symlinkat(2).
pub fn make_link_at(target: &Path, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    Ok(rustix::fs::symlinkat(target, dir, name)?)
}

/// readlinkat(2).
pub fn read_link_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<std::path::PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
    Ok(std::ffi::OsString::from_vec(target.into_bytes()).into())
}

/// unlinkat(2) of something that is not a directory.
pub fn remove_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
}

/// Change the owner of a name in `dir`, not of what it points to.
pub fn own_at(dir: BorrowedFd<'_>, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    Ok(rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Change the mode of a file in `dir` that is known not to be a symbolic link.
pub fn set_mode_at(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?)
}

/// Set the times of a name in `dir` to those of `like`.
pub fn set_times_at(dir: BorrowedFd<'_>, name: &OsStr, like: &Stat) -> io::Result<()> {
    Ok(rustix::fs::utimensat(dir, name, &like.times(), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// fstat(2).
pub fn stat(file: BorrowedFd<'_>) -> io::Result<Stat> {
    Ok(Stat(rustix::fs::fstat(file)?))
}

/// What a name in `dir` is; a symbolic link is not followed.
pub fn stat_at(dir: BorrowedFd<'_>, name: &Path) -> io::Result<Stat> {
    Ok(Stat(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?))
}

/// What a path of the host is.
pub fn stat_host(path: &Path) -> io::Result<Stat> {
    Ok(Stat(rustix::fs::statat(CWD, path, AtFlags::empty())?))
}

/// Whether an open file lies on a procfs.
pub fn is_procfs(file: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(file)?.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// A path of the host as a directory descriptor.
pub fn open_host_dir(path: &Path) -> io::Result<OwnedFd> {
    let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, how, Mode::empty())?)
}

/// A path of the host as a descriptor that says where it is and opens nothing; for namespaces, `open`.
pub fn open_host(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The names in a directory, without `.` and `..`.
pub fn list(dir: BorrowedFd<'_>) -> io::Result<Vec<std::ffi::OsString>> {
    use std::os::unix::ffi::OsStrExt;
    let mut out = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            out.push(name.to_owned());
        }
    }
    Ok(out)
}

/// umask(2); gives back the old one.
pub fn set_umask(mask: u32) -> u32 {
    rustix::process::umask(Mode::from_raw_mode(mask)).as_raw_mode()
}

/// Make descriptor `to` (0, 1 or 2) a copy of `from`.
pub fn replace_stdio(from: BorrowedFd<'_>, to: usize) -> io::Result<()> {
    match to {
        0 => Ok(rustix::stdio::dup2_stdin(from)?),
        1 => Ok(rustix::stdio::dup2_stdout(from)?),
        _ => Ok(rustix::stdio::dup2_stderr(from)?),
    }
}

/// fstat(2) of standard input, output and error.
pub fn stat_stdio(which: usize) -> io::Result<Stat> {
    match which {
        0 => stat(rustix::stdio::stdin()),
        1 => stat(rustix::stdio::stdout()),
        _ => stat(rustix::stdio::stderr()),
    }
}
