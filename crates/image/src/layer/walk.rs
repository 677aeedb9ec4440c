//! How does a tree become entries, and these a layer's archive? In one order, whatever the file system says: by name, each folder
//! before what is in it. What overlayfs notes of what is gone becomes whiteouts again (overlayfs.rst), and noted owners and devices
//! become what they stand for. The same tree always makes the same archive: holes are zeros in it, and links lead to the first name.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::apply::{DEVICE, OWNER};
use super::tar::{Header, Kind, Writer};
use super::whiteout::{self, Attribute, Meaning, Privilege, attribute, meaning};

/// Folders whose descriptors are kept.
const KEPT: usize = 64;
/// Bytes that are copied at a time.
const BUFFER: usize = 128 << 10;

/// What is told of each entry: what it is, and a file's content.
pub type Visit<'a> = dyn FnMut(&Header, Option<&File>) -> Result<()> + 'a;

/// Tell everything in the tree at `root`, the root itself first (with an empty path). `privilege` says whose notes overlayfs left.
/// Sockets are no content, and are passed over: their paths are returned.
pub fn walk(root: BorrowedFd<'_>, privilege: Privilege, visit: &mut Visit<'_>) -> Result<Vec<Vec<u8>>> {
    let mut walk = Walk { root, privilege, links: HashMap::new(), sockets: Vec::new(), visit };
    walk.run()?;
    Ok(walk.sockets)
}

/// The entry of a folder, which is open; and whether it hides what lower layers have in it.
pub fn folder(path: &[u8], folder: BorrowedFd<'_>, privilege: Privilege) -> Result<(Header, bool)> {
    let stat = rustix::fs::fstat(folder)?;
    let mut header = header(Kind::Directory, path, &stat);
    let mut opaque = false;
    attributes(&mut header, &Fd(folder), |name, value| {
        let ours = name == privilege.opaque().as_bytes();
        // "x" says that whiteouts in it are attributes of files.
        opaque |= ours && value == b"y";
        ours
    })?;
    Ok((header, opaque))
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archived {
    pub entries: u64,
    /// Of all files' contents.
    pub bytes: u64,
    /// Paths of sockets, which no archive can hold.
    pub sockets: Vec<Vec<u8>>,
}

/// Write what is in the tree at `root` (an unpacked layer, or an overlay's upper folder) as a layer's archive. The root itself is not
/// part of it.
///
/// With `latest`, no time in it is later than that, in seconds since 1970: what was made just now is as old as what was made before.
pub fn archive(
    root: BorrowedFd<'_>,
    privilege: Privilege,
    latest: Option<i64>,
    to: impl Write,
) -> Result<Archived> {
    let mut tar = Writer::new(to);
    let mut archived = Archived::default();
    let mut buffer = vec![0; BUFFER];
    archived.sockets = walk(root, privilege, &mut |header, content| {
        if header.path.is_empty() {
            return Ok(());
        }
        match latest {
            Some(latest) => tar.header(&header.no_later_than(latest))?,
            None => tar.header(header)?,
        }
        archived.entries += 1;
        let Some(mut file) = content else { return Ok(()) };
        archived.bytes += header.size;
        let mut left = header.size;
        while left > 0 {
            let most = left.min(BUFFER as u64) as usize;
            let n = match file.read(&mut buffer[..most]) {
                Ok(0) => bail!("it has become shorter meanwhile"),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e.into()),
            };
            tar.write_all(&buffer[..n])?;
            left -= n as u64;
        }
        Ok(())
    })?;
    tar.finish()?.flush()?;
    Ok(archived)
}

struct Walk<'a, 'v> {
    root: BorrowedFd<'a>,
    privilege: Privilege,
    /// First names of files that have several.
    links: HashMap<(u64, u64), Vec<u8>>,
    sockets: Vec<Vec<u8>>,
    visit: &'a mut Visit<'v>,
}

/// A folder, and what of it is still to be told.
struct Level {
    /// None: closed, since too many are open.
    fd: Option<OwnedFd>,
    /// Bytes of its path.
    path: usize,
    names: std::vec::IntoIter<OsString>,
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Walk<'_, '_> {
    fn run(&mut self) -> Result<()> {
        let root = rustix::fs::openat(self.root, ".", FOLDER, Mode::empty()).context("open the tree")?;
        let mut path = Vec::new();
        let mut levels = vec![self.enter(root, &path)?];
        while let Some(level) = levels.last_mut() {
            path.truncate(level.path);
            let Some(name) = level.names.next() else {
                levels.pop();
                continue;
            };
            if level.fd.is_none() {
                let place = Path::new(OsStr::from_bytes(&path));
                level.fd = Some(sys::path::open_dir(self.root, place)?);
            }
            let Some(dir) = &level.fd else { continue };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            let told = self.entry(dir.as_fd(), &name, &path);
            let folder = told.with_context(|| path.escape_ascii().to_string())?;
            if let Some(folder) = folder {
                let next = self.enter(folder, &path).with_context(|| path.escape_ascii().to_string())?;
                levels.push(next);
                if let Some(far) = levels.len().checked_sub(KEPT) {
                    levels[far].fd = None;
                }
            }
        }
        Ok(())
    }

    /// Tell of a folder, and look what is in it.
    fn enter(&mut self, fd: OwnedFd, path: &[u8]) -> Result<Level> {
        let (header, opaque) = folder(path, fd.as_fd(), self.privilege)?;
        (self.visit)(&header, None)?;
        if opaque {
            (self.visit)(&whiteout(&[path, whiteout::OPAQUE]), None)?;
        }
        let mut names = sys::path::list(fd.as_fd())?;
        names.sort_unstable();
        Ok(Level { fd: Some(fd), path: path.len(), names: names.into_iter() })
    }

    /// Tell of what is no folder; a folder is returned, opened.
    fn entry(&mut self, dir: BorrowedFd<'_>, name: &OsStr, path: &[u8]) -> Result<Option<OwnedFd>> {
        ensure!(
            meaning(name.as_bytes()) == Meaning::Plain,
            "a layer cannot hold this name, which stands for something that is gone"
        );
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Ok(Some(rustix::fs::openat(dir, name, FOLDER, Mode::empty())?)),
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                self.gone(path, name)?;
                return Ok(None);
            }
            FileType::CharacterDevice => Kind::Character,
            FileType::BlockDevice => Kind::Block,
            FileType::Fifo => Kind::Fifo,
            _ => {
                self.sockets.push(path.to_vec());
                return Ok(None);
            }
        };
        let mut header = header(kind, path, &stat);
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                header.kind = Kind::Hardlink;
                header.link.clone_from(first);
                header.size = 0;
                (self.visit)(&header, None)?;
                return Ok(None);
            }
            self.links.insert(inode, path.to_vec());
        }
        if kind != Kind::File {
            if kind == Kind::Symlink {
                header.link = rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes();
            }
            attributes(&mut header, &Named(dir, name), |_, _| false)?;
            (self.visit)(&header, None)?;
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
        let opened = rustix::fs::fstat(&file)?;
        ensure!((opened.st_dev, opened.st_ino) == (stat.st_dev, stat.st_ino), "it was replaced meanwhile");
        header.size = opened.st_size.unsigned_abs();
        let mut gone = false;
        let mark = match self.privilege {
            Privilege::Root => &b"trusted.overlay.whiteout"[..],
            Privilege::User => b"user.overlay.whiteout",
        };
        attributes(&mut header, &Fd(file.as_fd()), |name, _| {
            gone |= name == mark;
            name == mark
        })?;
        if gone && header.size == 0 {
            self.gone(path, name)?;
            return Ok(None);
        }
        // A device that could not be made is an empty file.
        let content = (header.kind == Kind::File).then_some(&file);
        (self.visit)(&header, content)?;
        Ok(None)
    }

    fn gone(&mut self, path: &[u8], name: &OsStr) -> Result<()> {
        let above = &path[..path.len() - name.len()];
        let gone = [whiteout::PREFIX, name.as_bytes()].concat();
        (self.visit)(&whiteout(&[above.strip_suffix(b"/").unwrap_or(above), &gone]), None)
    }
}

/// An entry that says that something is gone; when that was is nobody's matter.
fn whiteout(parts: &[&[u8]]) -> Header {
    let parts: Vec<_> = parts.iter().copied().filter(|p| !p.is_empty()).collect();
    Header { mode: 0, ..Header::new(Kind::File, parts.join(&b'/')) }
}

/// What an inode says of itself, without its attributes.
pub fn header(kind: Kind, path: &[u8], stat: &Stat) -> Header {
    let device = match kind {
        Kind::Character | Kind::Block => (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
        _ => (0, 0),
    };
    Header {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
        device,
        ..Header::new(kind, path)
    }
}

/// Something that has attributes.
trait Attributes {
    fn list(&self, buffer: &mut [u8]) -> rustix::io::Result<usize>;
    fn get(&self, name: &CStr, buffer: &mut [u8]) -> rustix::io::Result<usize>;
}

struct Fd<'a>(BorrowedFd<'a>);

impl Attributes for Fd<'_> {
    fn list(&self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        rustix::fs::flistxattr(self.0, buffer)
    }

    fn get(&self, name: &CStr, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        rustix::fs::fgetxattr(self.0, name, buffer)
    }
}

/// What must not be opened, in its folder.
struct Named<'a>(BorrowedFd<'a>, &'a OsStr);

impl Named<'_> {
    fn path(&self) -> std::path::PathBuf {
        Path::new("/proc/self/fd").join(self.0.as_raw_fd().to_string()).join(self.1)
    }
}

impl Attributes for Named<'_> {
    fn list(&self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        rustix::fs::llistxattr(self.path(), buffer)
    }

    fn get(&self, name: &CStr, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        rustix::fs::lgetxattr(self.path(), name, buffer)
    }
}

/// All of a thing, however long it is.
fn whole(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match read(&mut buffer) {
            Ok(n) => {
                buffer.truncate(n);
                return Ok(buffer);
            }
            // XATTR_SIZE_MAX and XATTR_LIST_MAX are 64 KiB.
            Err(Errno::RANGE) if buffer.len() < 1 << 17 => buffer.resize(buffer.len() * 8, 0),
            Err(e) => return Err(e),
        }
    }
}

fn names_of(of: &impl Attributes) -> Result<Vec<CString>> {
    let names = match whole(|buffer| of.list(buffer)) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(e).context("list the attributes"),
    };
    let name = |name: &[u8]| CStr::from_bytes_with_nul(name).ok().map(CStr::to_owned);
    Ok(names.split_inclusive(|b| *b == 0).filter_map(name).collect())
}

/// The names of what an open file or folder has for attributes; none where the file system knows of none.
pub(super) fn attribute_names(fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    Ok(names_of(&Fd(fd))?.into_iter().map(CString::into_bytes).collect())
}

/// Put an open file's or folder's attributes into its header, but for what we note ourselves: it comes from elsewhere.
pub fn foreign_attributes(header: &mut Header, of: BorrowedFd<'_>) -> Result<()> {
    attributes(header, &Fd(of), |name, _| {
        name == OWNER.as_bytes() || name == DEVICE.as_bytes() || attribute(name) == Attribute::Refused
    })
}

/// The same of what is in a root file system of ours. A layer that lies alone shows its marks of folders that hide what is below.
pub fn own_attributes(header: &mut Header, of: BorrowedFd<'_>) -> Result<()> {
    let marks = [Privilege::Root.opaque(), Privilege::User.opaque()];
    attributes(header, &Fd(of), |name, _| marks.iter().any(|mark| mark.as_bytes() == name))
}

/// Put a thing's attributes into its header; `taken` keeps one out that it knows.
fn attributes(
    header: &mut Header,
    of: &impl Attributes,
    mut taken: impl FnMut(&[u8], &[u8]) -> bool,
) -> Result<()> {
    for name in names_of(of)? {
        let name = name.as_c_str();
        let of_name = || format!("attribute {}", name.to_bytes().escape_ascii());
        if attribute(name.to_bytes()) == Attribute::Dropped {
            continue;
        }
        let value = match whole(|buffer| of.get(name, buffer)) {
            // It has gone meanwhile.
            Err(Errno::NODATA) => continue,
            other => other.with_context(of_name)?,
        };
        let name = name.to_bytes();
        if taken(name, &value) {
            continue;
        }
        match name {
            _ if name == OWNER.as_bytes() => {
                (header.uid, header.gid) = owner(&value).with_context(of_name)?;
            }
            _ if name == DEVICE.as_bytes() => {
                (header.kind, header.device) = device(&value).with_context(of_name)?;
                header.size = 0;
            }
            _ if attribute(name) == Attribute::Refused => {
                bail!("{}: what lies here says nothing of itself, but of a file elsewhere", of_name())
            }
            _ => header.xattrs.push((name.to_vec(), value)),
        }
    }
    header.xattrs.sort();
    Ok(())
}

/// [`OWNER`].
fn owner(value: &[u8]) -> Option<(u32, u32)> {
    let (uid, gid) = std::str::from_utf8(value).ok()?.split_once(':')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

/// [`DEVICE`].
fn device(value: &[u8]) -> Option<(Kind, (u32, u32))> {
    let mut fields = std::str::from_utf8(value).ok()?.split(':');
    let kind = match fields.next()? {
        "c" => Kind::Character,
        "b" => Kind::Block,
        _ => return None,
    };
    Some((kind, (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?)))
}

#[cfg(test)]
mod tests;
