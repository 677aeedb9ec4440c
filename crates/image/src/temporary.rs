//! How is something written outside the store, so that it is never there in part? In files without a name, or with another one.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

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

/// A file that replaces another when it is whole, on the disk before that; dropped, it leaves nothing.
#[derive(Debug)]
pub struct Replacement {
    file: File,
    path: PathBuf,
    temporary: PathBuf,
    done: bool,
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
        let making = || format!("write {}", path.display());
        let name = path.file_name().with_context(making)?;
        for attempt in 0..1000 {
            let new = format!(".{}.{}-{attempt}", name.to_string_lossy(), std::process::id());
            let temporary = path.with_file_name(new);
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            match rustix::fs::open(&temporary, flags, Mode::from_raw_mode(mode)) {
                Ok(fd) => {
                    return Ok(Replacement {
                        file: fd.into(),
                        path: path.to_owned(),
                        temporary,
                        done: false,
                    });
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e).with_context(making),
            }
        }
        bail!("{}: a thousand names are taken", making())
    }

    /// It is to replace another file of the same folder.
    pub fn become_path(&mut self, path: PathBuf) {
        self.path = path;
    }

    /// Put it in the place of the other.
    pub fn finish(mut self) -> Result<()> {
        let replace = || -> io::Result<()> {
            self.file.sync_all()?;
            std::fs::rename(&self.temporary, &self.path)
        };
        replace().with_context(|| format!("write {}", self.path.display()))?;
        self.done = true;
        Ok(())
    }
}

impl Write for Replacement {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.file.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.done {
            std::fs::remove_file(&self.temporary).unwrap_or_default();
        }
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
}
