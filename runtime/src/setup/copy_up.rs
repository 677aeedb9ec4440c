//! `tmpcopyup`: a tmpfs starts with what the directory below it holds.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result};
use sys::path::{self, Links};

/// Copy the tree of `from` into the empty directory `to`: files, directories, links, nodes; owners, modes,
/// times. Every name is opened within its directory and no link is followed. Hard links become files of
/// their own.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let dir = path::open(from, Path::new("."), Links::Refuse)?;
    for name in path::list(dir.as_fd())? {
        one(from, to, &name).with_context(|| format!("copy {}", name.display()))?;
    }
    Ok(())
}

fn one(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let source = path::locate(from, Path::new(name), Links::Keep)?;
    let stat = path::stat(source.as_fd())?;
    let (uid, gid) = stat.owner();
    if stat.is_dir() {
        path::make_dir_at(to, Path::new(name), 0o700)?;
        let target = path::locate_dir(to, Path::new(name), Links::Refuse)?;
        copy(source.as_fd(), target.as_fd())?;
    } else if stat.is_symlink() {
        path::make_link_at(&path::read_link_at(source.as_fd(), OsStr::new(""))?, to, name)?;
    } else if stat.is_file() {
        let mut input = std::fs::File::from(path::open(from, Path::new(name), Links::Refuse)?);
        // Not what was looked at, if somebody exchanges it: a fifo would keep us waiting.
        if !path::stat(input.as_fd())?.is_file() {
            anyhow::bail!("it was exchanged while it was copied");
        }
        let mut output = std::fs::File::from(path::make_file_at(to, name, 0o600)?);
        io::copy(&mut input, &mut output)?;
    } else {
        let (kind, device) = stat.node();
        path::make_node_at(to, name, kind, stat.mode(), device)?;
    }
    path::own_at(to, name, uid, gid)?;
    if !stat.is_symlink() {
        path::set_mode_at(to, name, stat.mode())?;
    }
    Ok(path::set_times_at(to, name, &stat)?)
}
