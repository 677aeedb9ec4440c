//! What is in a tree that nobody trusts? Files of it, up to a size, and all names in it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FileType, Mode, OFlags};
use sys::path::Links;

/// Entries that are walked.
const ENTRIES_MOST: usize = 20_000_000;
/// Folders in folders.
const DEPTH_MOST: usize = 256;

/// A regular file's content; None: there is none.
///
/// # Errors
/// It has more than `most` bytes.
pub fn read(root: BorrowedFd<'_>, path: &str, most: u64) -> Result<Option<Vec<u8>>> {
    let reading = || format!("read /{path} of the image");
    let file = match sys::path::open(root, Path::new(path), Links::Follow) {
        Ok(file) => File::from(file),
        Err(e) => {
            let missing = matches!(
                rustix::io::Errno::from_io_error(&e),
                Some(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP)
            );
            return if missing { Ok(None) } else { Err(e).with_context(reading) };
        }
    };
    if !file.metadata().with_context(reading)?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).with_context(reading)?;
    ensure!(bytes.len() as u64 <= most, "{}: more than {most} bytes", reading());
    Ok(Some(bytes))
}

/// The same, as text; what is none is replaced.
pub fn text(root: BorrowedFd<'_>, path: &str, most: u64) -> Result<Option<String>> {
    Ok(read(root, path, most)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Names in a folder, in their order; none, if there is no such folder.
pub fn list(root: BorrowedFd<'_>, path: &str) -> Result<Vec<String>> {
    let Ok(folder) = sys::path::open_dir(root, Path::new(path)) else { return Ok(Vec::new()) };
    let mut names: Vec<String> =
        sys::path::list(folder.as_fd())?.iter().filter_map(|n| Some(n.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// Look at all files, without following links: `take` is given their paths.
pub fn walk(root: BorrowedFd<'_>, take: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(root, ".", flags, Mode::empty()).context("open the image")?;
    let mut count = 0;
    folder(root, "", 0, &mut count, take)
}

fn folder(
    dir: OwnedFd,
    path: &str,
    depth: usize,
    count: &mut usize,
    take: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<()> {
    if depth > DEPTH_MOST {
        return Ok(());
    }
    let reading = || format!("read /{path} of the image");
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(&dir).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        let name = entry.file_name().to_bytes();
        *count += 1;
        ensure!(*count <= ENTRIES_MOST, "more than {ENTRIES_MOST} files in the image");
        // What is no text is no package's name either.
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if name != "." && name != ".." {
            found.push((name.to_owned(), entry.file_type()));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, kind) in found {
        let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
        match kind {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let child =
                    rustix::fs::openat(&dir, OsStr::from_bytes(name.as_bytes()), flags, Mode::empty())
                        .with_context(reading)?;
                folder(child, &below, depth + 1, count, take)?;
            }
            FileType::RegularFile => take(&below)?,
            _ => {}
        }
    }
    Ok(())
}
