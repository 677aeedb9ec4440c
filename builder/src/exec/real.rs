//! Where does a path lead in a tree that nobody trusts? Symbolic links are resolved within the tree, as for a process that has it as
//! its root; what is not there yet is kept by its words.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;
use sys::path::Links;

/// Links on a path: as many as the kernel follows.
const LINKS_MOST: usize = 40;

/// A path without links.
#[derive(Clone, Debug)]
pub struct Real {
    /// From the tree's root, without a slash in front; the root itself is empty.
    pub path: Vec<u8>,
    /// None: there is nothing yet.
    pub stat: Option<Stat>,
    /// How many of its parts are there.
    pub there: usize,
}

impl Real {
    pub fn kind(&self) -> Option<FileType> {
        self.stat.map(|stat| FileType::from_raw_mode(stat.st_mode))
    }

    pub fn is_dir(&self) -> bool {
        self.kind() == Some(FileType::Directory)
    }
}

/// What is done with a link at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    Follow,
    Keep,
}

/// The parts of a path from the root, `.` and `..` taken by their words.
pub fn parts(path: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts
}

/// The inode at a path without links.
pub fn stat(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<Option<Stat>> {
    let path = Path::new(OsStr::from_bytes(path));
    match sys::path::locate(root, path, Links::Keep) {
        Ok(fd) => Ok(Some(rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH)?)),
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::NOTDIR)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Where `path` leads.
///
/// # Errors
/// More than 40 links (`ELOOP`); a file where a folder would have to be (`ENOTDIR`).
pub fn real(root: BorrowedFd<'_>, path: &[u8], last: Last) -> io::Result<Real> {
    let mut open: Vec<Vec<u8>> = path.split(|b| *b == b'/').rev().map(<[u8]>::to_vec).collect();
    let mut at: Vec<Vec<u8>> = Vec::new();
    let mut links = 0;
    while let Some(part) = open.pop() {
        match &part[..] {
            b"" | b"." => continue,
            b".." => {
                at.pop();
                continue;
            }
            _ => at.push(part),
        }
        let here = at.join(&b'/');
        let Some(found) = stat(root, &here)? else {
            let there = at.len() - 1;
            let mut up = false;
            for part in open.into_iter().rev() {
                match &part[..] {
                    b"" | b"." => {}
                    // Below what is not there, words are all that there is.
                    b".." => {
                        at.pop();
                        up |= at.len() <= there;
                    }
                    _ => at.push(part),
                }
            }
            if up {
                return real(root, &at.join(&b'/'), last);
            }
            return Ok(Real { path: at.join(&b'/'), stat: None, there });
        };
        let ends = open.iter().all(|p| matches!(&p[..], b"" | b"."));
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Symlink if !ends || last == Last::Follow => {
                links += 1;
                if links > LINKS_MOST {
                    return Err(Errno::LOOP.into());
                }
                let name = at.pop().unwrap_or_default();
                let dir = sys::path::locate_dir(
                    root,
                    Path::new(OsStr::from_bytes(&at.join(&b'/'))),
                    Links::Refuse,
                )?;
                let target = rustix::fs::readlinkat(&dir, OsStr::from_bytes(&name), Vec::new())?;
                let target = target.into_bytes();
                if target.first() == Some(&b'/') {
                    at.clear();
                }
                open.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
            }
            FileType::Directory => {}
            _ if !ends => return Err(Errno::NOTDIR.into()),
            _ => {}
        }
    }
    let path = at.join(&b'/');
    let there = at.len();
    Ok(Real { stat: stat(root, &path)?, path, there })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_within_the_tree() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("a/b")).unwrap();
        fs::write(temp.path().join("a/f"), "").unwrap();
        for (target, name) in [
            ("/a", "abs"),
            ("../../../a/b", "a/up"),
            ("abs/b", "two"),
            ("loop", "loop"),
            ("/new/x", "dangling"),
            ("f", "a/l"),
        ] {
            symlink(target, temp.path().join(name)).unwrap();
        }
        let root: OwnedFd = fs::File::open(temp.path()).unwrap().into();
        for (path, last, expected, there) in [
            ("", Last::Follow, "", Some(0)),
            ("/a/../a//b/.", Last::Follow, "a/b", Some(2)),
            ("../../a", Last::Follow, "a", Some(1)),
            ("abs/b", Last::Follow, "a/b", Some(2)),
            ("abs", Last::Keep, "abs", Some(1)),
            ("abs/", Last::Keep, "abs", Some(1)),
            ("a/up", Last::Follow, "a/b", Some(2)),
            ("two", Last::Follow, "a/b", Some(2)),
            ("a/l", Last::Follow, "a/f", Some(2)),
            ("dangling/y", Last::Follow, "new/x/y", None),
            ("a/new/../../x/y", Last::Follow, "x/y", None),
            ("q/../a/b", Last::Follow, "a/b", Some(2)),
        ] {
            let found = real(root.as_fd(), path.as_bytes(), last).unwrap();
            assert_eq!(String::from_utf8_lossy(&found.path), expected, "{path}");
            assert_eq!(found.stat.map(|_| found.there), there, "{path}");
        }
        for (path, errno) in [("loop", Errno::LOOP), ("a/f/x", Errno::NOTDIR)] {
            let error = real(root.as_fd(), path.as_bytes(), Last::Follow).unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(errno), "{path}");
        }
    }
}
