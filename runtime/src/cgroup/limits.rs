//! Writes a plan's values into control files.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Error, Result};
use report::{Explain, Kind};
use sys::cgroupfs;

use super::Record;
use crate::plan::resources::{Missing, Place, Write};

/// Write every value, in order.
pub(super) fn write_all(writes: &[Write], record: &Record) -> Result<()> {
    let mut last: Option<(&Write, OwnedFd)> = None;
    for write in writes {
        // Rules of one kind follow each other: devices, block devices.
        let fd = match last.take() {
            Some((other, fd)) if other.at == write.at && other.file == write.file => fd,
            _ => match open(write, record)? {
                Some(fd) => fd,
                None => continue,
            },
        };
        // A write of nothing is no command: an empty list is a newline.
        let value = if write.value.is_empty() { "\n" } else { &*write.value };
        cgroupfs::write_to(&fd, value.as_bytes()).or_else(|e| explain(e, write, record))?;
        last = Some((write, fd));
    }
    Ok(())
}

/// Open the file of a value; `None` if nothing is left to write.
fn open(write: &Write, record: &Record) -> Result<Option<OwnedFd>> {
    let e = match cgroupfs::open_write(&file(write, record)) {
        Ok(fd) => return Ok(Some(fd)),
        Err(e) => e,
    };
    match &write.missing {
        Missing::Fine if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Missing::Else { file, value } if e.kind() == io::ErrorKind::NotFound => {
            let other =
                Write { file: file.clone(), value: value.clone(), missing: Missing::Error, ..write.clone() };
            write_all(std::slice::from_ref(&other), record)?;
            Ok(None)
        }
        _ => explain(e, write, record).map(|()| None),
    }
}

/// The control file of a value.
pub(super) fn file(write: &Write, record: &Record) -> PathBuf {
    directory(write.at, record).join(&*write.file)
}

/// The directory of a place; the record has a directory for each of the plan's.
pub(super) fn directory(at: Place, record: &Record) -> &Path {
    match at {
        Place::V1(index) => &record.v1[index].1,
        Place::V2 => record.v2.as_deref().unwrap_or(Path::new("")),
    }
}

/// What the kernel's answer to a value means.
fn explain(e: io::Error, write: &Write, record: &Record) -> Result<()> {
    let path = file(write, record);
    let (kind, hint) = match e.raw_os_error() {
        Some(2) if write.at == Place::V2 => (
            Kind::Unsupported,
            Some(
                "the kernel has no such file, or its controller is not in cgroup.subtree_control of every parent",
            ),
        ),
        Some(2) => (Kind::Unsupported, None),
        Some(16) if write.file.starts_with("memory.") => {
            (Kind::Failed, Some("the limit is below what the container uses now"))
        }
        Some(1 | 13) => (
            Kind::Failed,
            Some(
                "this user may not set it: delegate the controller (systemd: Delegate=yes), or leave the limit out",
            ),
        ),
        Some(22 | 34) => (Kind::BadInput, None),
        _ => (Kind::Failed, None),
    };
    let error =
        Error::new(e).context(format!("{}: write {} to {}", write.source, write.value, path.display()));
    let result = Err(error).kind(kind);
    match hint {
        Some(hint) => result.hint(|| hint.to_owned()),
        None => result,
    }
}
