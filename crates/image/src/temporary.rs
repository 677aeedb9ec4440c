//! How is something written outside the store, so that it is never there in part? In files without a name, or with another one.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::layer::tree::remove_tree;

/// Where archives are put that cannot be read twice.
#[derive(Clone, Copy, Debug)]
pub struct Spool<'a>(pub &'a Path);

impl Spool<'_> {
    /// A file without a name.
    pub fn file(self) -> Result<File> {
        let making = || format!("make a temporary file in {}", self.0.display());
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        match rustix::fs::open(self.0, flags, mode) {
            Ok(fd) => return Ok(fd.into()),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
            Err(e) => return Err(e).with_context(making),
        }
        for attempt in 0..1000 {
            let path = self.0.join(format!(".berth-{}-{attempt}", std::process::id()));
            match rustix::fs::open(
                &path,
                OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC,
                mode,
            ) {
                Ok(fd) => {
                    rustix::fs::unlink(&path).with_context(making)?;
                    return Ok(fd.into());
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e).with_context(making),
            }
        }
        bail!("{}: a thousand names are taken", making())
    }
}

/// No name is used twice: whoever removes a left-over by its name must not meet another one there.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Something under another name, in the folder where it belongs; nobody else takes it while it is locked.
#[derive(Debug)]
struct Beside {
    path: PathBuf,
    /// Locked, as long as it is open.
    fd: OwnedFd,
    done: bool,
}

impl Beside {
    /// `make` makes it, and fails with EEXIST where something else is. What killed processes left of the same kind is removed.
    fn new(path: &Path, make: impl Fn(&Path) -> rustix::io::Result<OwnedFd>) -> Result<Beside> {
        let making = || format!("make {}", path.display());
        let name = path.file_name().with_context(making)?;
        let prefix = [b".", name.as_bytes(), b".berth-"].concat();
        let dir = folder_of(path);
        remove_left_overs(dir, &prefix);
        for _ in 0..1000 {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let last = [&prefix[..], format!("{}-{n}", std::process::id()).as_bytes()].concat();
            let path = dir.join(OsStr::from_bytes(&last));
            let fd = match make(&path) {
                Ok(fd) => fd,
                Err(Errno::EXIST) => continue,
                Err(e) => return Err(e).with_context(making),
            };
            let beside = Beside { path, fd, done: false };
            // Somebody may have taken it for a left-over, before it was locked.
            match rustix::fs::flock(&beside.fd, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => continue,
                other => other.with_context(making)?,
            }
            let inode = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
            let own = inode(rustix::fs::fstat(&beside.fd).with_context(making)?);
            match rustix::fs::lstat(&beside.path).map(inode) {
                Ok(there) if there == own => return Ok(beside),
                Ok(_) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e).with_context(making),
            }
        }
        bail!("{}: a thousand names are taken", making())
    }

    /// Give it its name.
    fn rename(&mut self, to: &Path) -> rustix::io::Result<()> {
        rustix::fs::rename(&self.path, to)?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.done {
            // What cannot be removed now, the next one removes.
            remove_tree(CWD, self.path.as_os_str()).unwrap_or_default();
        }
    }
}

/// The folder that a path lies in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What nobody locks was left by somebody who was killed. It is in nobody's way, and no error if it cannot be removed.
fn remove_left_overs(dir: &Path, prefix: &[u8]) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|e| e.file_name().as_bytes().starts_with(prefix)) {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::open(entry.path(), flags, Mode::empty()) else { continue };
        if rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove_tree(CWD, entry.path().as_os_str()).unwrap_or_default();
        }
    }
}

/// A folder that is there when it is whole; dropped, it leaves nothing.
#[derive(Debug)]
pub struct NewFolder {
    beside: Beside,
    path: PathBuf,
}

impl NewFolder {
    /// There may be an empty folder already. Folders above are made.
    pub fn new(path: &Path) -> Result<NewFolder> {
        let making = || format!("make {}", path.display());
        match std::fs::read_dir(path) {
            Ok(mut entries) => ensure!(entries.next().is_none(), "{}: it is not empty", path.display()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        }
        std::fs::create_dir_all(folder_of(path)).with_context(making)?;
        let beside = Beside::new(path, |path| {
            rustix::fs::mkdir(path, Mode::from_raw_mode(0o755))?;
            rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        })?;
        Ok(NewFolder { beside, path: path.to_owned() })
    }

    /// Where it lies until then.
    pub fn place(&self) -> &Path {
        &self.beside.path
    }

    /// It is whole.
    pub fn finish(mut self) -> Result<()> {
        self.beside.rename(&self.path).with_context(|| format!("make {}", self.path.display()))
    }
}

/// A file that replaces another when it is whole, on the disk before that; dropped, it leaves nothing. What is no file, such as a
/// pipe or /dev/stdout, is written to as it is.
#[derive(Debug)]
pub struct Replacement {
    kind: Written,
    path: PathBuf,
}

#[derive(Debug)]
enum Written {
    Beside(Beside),
    AsItIs(File),
}

impl Replacement {
    pub fn new(path: &Path) -> Result<Replacement> {
        Replacement::with_mode(path, 0o666)
    }

    /// One that nobody else may read.
    pub fn private(path: &Path) -> Result<Replacement> {
        Replacement::with_mode(path, 0o600)
    }

    fn with_mode(path: &Path, mode: u32) -> Result<Replacement> {
        let writing = || format!("write {}", path.display());
        let path = match std::fs::metadata(path) {
            Ok(data) if data.is_file() => path.canonicalize().with_context(writing)?,
            Ok(data) if !data.is_dir() => {
                let file = File::options().write(true).open(path).with_context(writing)?;
                return Ok(Replacement { kind: Written::AsItIs(file), path: path.to_owned() });
            }
            // What is wrong with it shows when it is to be replaced.
            _ => path.to_owned(),
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let beside = Beside::new(&path, |path| rustix::fs::open(path, flags, Mode::from_raw_mode(mode)))?;
        Ok(Replacement { kind: Written::Beside(beside), path })
    }

    /// It is to replace another file of the same folder.
    pub fn become_path(&mut self, path: PathBuf) {
        self.path = path;
    }

    /// Put it in the place of the other.
    pub fn finish(self) -> Result<()> {
        let Written::Beside(mut beside) = self.kind else { return Ok(()) };
        let mut replace = || -> rustix::io::Result<()> {
            rustix::fs::fsync(&beside.fd)?;
            beside.rename(&self.path)
        };
        replace().with_context(|| format!("write {}", self.path.display()))
    }
}

impl Write for Replacement {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &mut self.kind {
            Written::Beside(beside) => Ok(rustix::io::write(&beside.fd, buffer)?),
            Written::AsItIs(file) => file.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_is_there_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "old").unwrap();
        let mut new = Replacement::new(&path).unwrap();
        new.write_all(b"new").unwrap();
        drop(new);
        assert_eq!(
            (std::fs::read(&path).unwrap(), std::fs::read_dir(dir.path()).unwrap().count()),
            (b"old".to_vec(), 1)
        );
        let mut new = Replacement::new(&path).unwrap();
        new.write_all(b"new").unwrap();
        new.finish().unwrap();
        assert_eq!(
            (std::fs::read(&path).unwrap(), std::fs::read_dir(dir.path()).unwrap().count()),
            (b"new".to_vec(), 1)
        );
    }

    #[test]
    fn devices_are_not_replaced_and_links_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut new = Replacement::new(Path::new("/dev/null")).unwrap();
        new.write_all(b"x").unwrap();
        new.finish().unwrap();
        use std::os::unix::fs::FileTypeExt;
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        std::fs::write(dir.path().join("file"), "old").unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        let mut new = Replacement::new(&dir.path().join("link")).unwrap();
        new.write_all(b"new").unwrap();
        new.finish().unwrap();
        assert!(dir.path().join("link").is_symlink());
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"new");
    }

    #[test]
    fn what_killed_processes_left_goes_with_the_next_and_what_is_in_work_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(dir.path().join(".file.berth-1-0"), "").unwrap();
        std::fs::create_dir_all(dir.path().join(".file.berth-1-1/sub")).unwrap();
        std::fs::write(dir.path().join(".other.berth-1-0"), "").unwrap();
        let first = Replacement::new(&path).unwrap();
        let second = NewFolder::new(&path).unwrap();
        let names = || -> Vec<_> {
            let mut all: Vec<_> =
                std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            all.sort();
            all
        };
        let pid = std::process::id();
        assert_eq!(
            names(),
            [&format!(".file.berth-{pid}-0"), &format!(".file.berth-{pid}-1"), ".other.berth-1-0"]
        );
        second.finish().unwrap();
        drop(first);
        assert_eq!(names(), [".other.berth-1-0", "file"]);
        std::fs::write(path.join("content"), "").unwrap();
        assert!(NewFolder::new(&path).unwrap_err().to_string().ends_with("it is not empty"));
    }

    /// Each takes what the others have just made, and not locked yet, for a left-over.
    #[test]
    fn many_at_once_do_not_remove_each_others() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for worker in 0..8 {
                let dir = dir.path();
                scope.spawn(move || {
                    for n in 0..200 {
                        let mut new = Replacement::new(&dir.join("new")).unwrap();
                        new.write_all(b"x").unwrap();
                        new.become_path(dir.join(format!("{worker}-{n}")));
                        new.finish().unwrap();
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 8 * 200);
    }
}
