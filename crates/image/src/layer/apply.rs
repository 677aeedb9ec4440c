//! How does a layer's archive become a tree? In one pass, and never outside the tree, whatever the archive says.
//!
//! Every path is taken apart; each folder on the way is opened in the one before, never through a symbolic link. A folder that is
//! a link is resolved by the kernel within the root (openat2, `RESOLVE_IN_ROOT`). The last part of a path is never followed: what
//! stands there is replaced. The descriptors of the last path's folders are kept, since the next entry mostly lies beside it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::tar::{Header, Kind, Reader};
use super::tree::remove_tree;
use super::walk::{attribute_names, walk};
use super::whiteout::{Attribute, Meaning, Privilege, attribute, meaning};

/// The attribute in which an owner is noted that the kernel would not let us set: `UID:GID`.
pub const OWNER: &str = "user.berth.owner";
/// The attribute in which a device is noted that the kernel would not let us make: `c:MAJOR:MINOR`.
pub const DEVICE: &str = "user.berth.device";

/// Folders whose descriptors are kept.
const KEPT: usize = 64;

/// What becomes of what lower layers have, where this one says that it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// The tree holds the lower layers: it is removed.
    Remove,
    /// The tree holds this layer alone, to be stacked by overlayfs: it is noted.
    Note(Privilege),
}

/// Whether entries get the owners that they name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Keep,
    /// All are ours; whose they should be is noted ([`OWNER`]).
    Note,
    /// All are ours.
    Ours,
}

/// Device nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    Make,
    /// An empty file stands for each ([`DEVICE`]).
    Note,
}

/// How a layer is applied.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub whiteouts: Whiteouts,
    pub owner: Owner,
    pub devices: Devices,
}

impl Options {
    /// What this process is able to do. `mapped`: other ids than the own one can be given to files.
    pub fn own(whiteouts: Whiteouts, mapped: bool) -> Options {
        let owner = if mapped { Owner::Keep } else { Owner::Note };
        let devices = match Privilege::own() {
            Privilege::Root => Devices::Make,
            Privilege::User => Devices::Note,
        };
        Options { whiteouts, owner, devices }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub entries: u64,
    /// Of all files' contents.
    pub bytes: u64,
    /// Folders that are only there because of what is in them: no entry says what they are like (the root's path is empty).
    pub implied: Implied,
}

/// Paths of folders that a layer says nothing of.
pub type Implied = BTreeSet<Vec<u8>>;

/// Apply a layer to the tree at `root`. The reader is left behind the archive's end.
pub fn apply(from: impl BufRead, root: BorrowedFd<'_>, options: Options) -> Result<Applied> {
    let mut reader = Reader::new(from);
    let mut apply = Apply::new(root, options)?;
    while let Some(header) = reader.entry()? {
        apply.entry(&header, &mut reader).with_context(|| format!("entry {}", header.title()))?;
    }
    apply.finish()?;
    Ok(apply.applied)
}

/// Apply a layer that was unpacked (with [`Whiteouts::Note`], and the privilege told) to the tree at `root`. Contents are shared
/// with it where the file system can do that (FICLONE, ioctl_ficlone(2)), and copied inside the kernel otherwise.
pub fn copy(
    from: BorrowedFd<'_>,
    privilege: Privilege,
    implied: &Implied,
    root: BorrowedFd<'_>,
    options: Options,
) -> Result<Applied> {
    let mut apply = Apply::new(root, options)?;
    let mut cloner = Cloner::default();
    walk(from, privilege, &mut |header, content| {
        if header.kind == Kind::Directory && implied.contains(&header.path) {
            return Ok(());
        }
        cloner.from = content.map(|file| file.try_clone()).transpose()?;
        apply.entry(header, &mut cloner).with_context(|| format!("entry {}", header.title()))
    })?;
    apply.finish()?;
    Ok(apply.applied)
}

/// Make folders in the tree at `root`.
pub fn folders(all: &[Header], root: BorrowedFd<'_>, options: Options) -> Result<()> {
    let mut apply = Apply::new(root, options)?;
    for header in all {
        apply.entry(header, &mut Cloner::default()).with_context(|| format!("folder {}", header.title()))?;
    }
    apply.finish()
}

/// Where a file's content comes from.
trait Content {
    /// Write it to a new file; how many bytes these were.
    fn write_to(&mut self, file: &mut File, header: &Header) -> Result<u64>;
}

impl<R: BufRead> Content for Reader<R> {
    fn write_to(&mut self, file: &mut File, header: &Header) -> Result<u64> {
        let mut written = 0;
        match &header.pieces {
            None => loop {
                let bytes = self.fill_buf()?;
                if bytes.is_empty() {
                    break;
                }
                file.write_all(bytes)?;
                let n = bytes.len();
                written += n as u64;
                self.consume(n);
            },
            Some(pieces) => {
                file.set_len(header.size).context("a sparse file")?;
                for (mut offset, mut left) in pieces.iter().copied() {
                    while left > 0 {
                        let bytes = self.fill_buf()?;
                        let n = left.min(bytes.len() as u64);
                        file.write_all_at(&bytes[..n as usize], offset)?;
                        self.consume(n as usize);
                        (offset, left) = (offset + n, left - n);
                        written += n;
                    }
                }
            }
        }
        Ok(written)
    }
}

/// Gives a file the content of another.
#[derive(Default)]
struct Cloner {
    from: Option<File>,
    /// The file system cannot share contents.
    refused: bool,
}

impl Content for Cloner {
    fn write_to(&mut self, file: &mut File, header: &Header) -> Result<u64> {
        let Some(from) = &mut self.from else { return Ok(0) };
        if header.size == 0 {
            return Ok(0);
        }
        if !self.refused {
            match rustix::fs::ioctl_ficlone(&*file, &*from) {
                Ok(()) => return Ok(header.size),
                // Others than "not here": between file systems, on swap files, past quotas. A copy says what is wrong.
                Err(_) => self.refused = true,
            }
        }
        copy_pieces(from, file, header.size)
    }
}

/// Copy a file, without what are holes in it.
fn copy_pieces(from: &mut File, to: &mut File, size: u64) -> Result<u64> {
    let mut at = 0;
    let mut written = 0;
    while at < size {
        let data = match rustix::fs::seek(&*from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole follows.
            Err(Errno::NXIO) => break,
            // It does not know of holes.
            Err(Errno::INVAL) => at,
            Err(e) => return Err(e.into()),
        };
        let end = rustix::fs::seek(&*from, rustix::fs::SeekFrom::Hole(data)).unwrap_or(size).min(size);
        ensure!(data < end, "it has changed meanwhile");
        from.seek(io::SeekFrom::Start(data))?;
        to.seek(io::SeekFrom::Start(data))?;
        // The standard library has the kernel do it (copy_file_range(2)) where that is possible.
        let n = io::copy(&mut Read::by_ref(from).take(end - data), to)?;
        ensure!(n == end - data, "it has become shorter meanwhile");
        written += n;
        at = end;
    }
    to.set_len(size)?;
    Ok(written)
}

/// A folder on the way to the last entry.
struct Above {
    name: Vec<u8>,
    /// None: closed, since too many are open.
    fd: Option<OwnedFd>,
    /// What is made in it gets its group.
    group: bool,
}

struct Apply<'a> {
    root: BorrowedFd<'a>,
    options: Options,
    own: (u32, u32),
    above: Vec<Above>,
    /// Inodes of what this layer brought ([`Whiteouts::Remove`]).
    new: HashSet<u64>,
    /// Paths of whiteouts that this layer brought ([`Whiteouts::Note`]).
    noted: HashSet<Vec<u8>>,
    /// Folders and their times, which are set when nothing is made in them any more.
    times: HashMap<Vec<u8>, (i64, u32)>,
    applied: Applied,
}

/// The parts of an entry's path; `.` and `..` are taken by their words.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>> {
    let mut parts = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => ensure!(parts.pop().is_some(), "the path leads out of the root"),
            part => {
                ensure!(part.len() <= 255, "a name of more than 255 bytes");
                parts.push(part);
            }
        }
    }
    Ok(parts)
}

fn name(part: &[u8]) -> &OsStr {
    OsStr::from_bytes(part)
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(&b'/')
}

impl<'a> Apply<'a> {
    fn new(root: BorrowedFd<'a>, options: Options) -> Result<Apply<'a>> {
        let mut apply = Apply {
            root,
            options,
            own: sys::user::effective_ids(),
            above: Vec::new(),
            new: HashSet::new(),
            noted: HashSet::new(),
            times: HashMap::new(),
            applied: Applied { implied: [Vec::new()].into(), ..Applied::default() },
        };
        match options.whiteouts {
            Whiteouts::Remove => apply.keep_time(Vec::new(), &rustix::fs::fstat(root)?),
            // As with every folder that is only implied.
            Whiteouts::Note(_) => drop(apply.times.insert(Vec::new(), (0, 0))),
        }
        Ok(apply)
    }

    fn entry(&mut self, header: &Header, content: &mut impl Content) -> Result<()> {
        self.applied.entries += 1;
        let parts = parts(&header.path)?;
        let Some((last, above)) = parts.split_last() else {
            ensure!(header.kind == Kind::Directory, "the root is no folder");
            let root = rustix::fs::openat(self.root, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            self.reset(root.as_fd(), header)?;
            self.metadata(root.as_fd(), header)?;
            self.times.insert(Vec::new(), header.mtime);
            self.applied.implied.remove(&Vec::new());
            return Ok(());
        };
        match meaning(last) {
            Meaning::Plain => self.plain(header, content, above, last, &parts),
            Meaning::Reserved => Ok(()),
            Meaning::Whiteout(gone) => {
                ensure!(!matches!(gone, b"" | b"." | b".."), "a whiteout of no name");
                self.gone(above, gone)
            }
            Meaning::Opaque => self.opaque(above),
        }
    }

    /// The folder of an entry, made where it is missing. Leaves it as the last of `above`.
    fn folder(&mut self, parts: &[&[u8]]) -> Result<()> {
        let same = self.above.iter().zip(parts).take_while(|(a, part)| a.name == **part).count();
        self.above.truncate(same);
        for depth in same..parts.len() {
            self.reopen(&parts[..depth])?;
            let dir = self.last();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let open = || rustix::fs::openat(dir, name(parts[depth]), flags, Mode::empty());
            let mut opened = open();
            let (mut opaque, mut linked) = (false, false);
            if matches!(opened, Err(Errno::NOTDIR | Errno::LOOP)) {
                // The folder below is gone, and this is a new one.
                opaque = self.noted.contains(&join(&parts[..=depth]));
                if opaque || self.gives_way(dir, parts[depth])? {
                    remove_tree(dir, name(parts[depth]))?;
                    opened = Err(Errno::NOENT);
                }
            }
            let fd = match opened {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(dir, name(parts[depth]), Mode::from_raw_mode(0o755))?;
                    let fd = open()?;
                    // Nobody says what it should be like: the same everywhere, at least.
                    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755))?;
                    self.own(fd.as_fd(), (0, 0))?;
                    if opaque {
                        self.note_opaque(fd.as_fd())?;
                    }
                    let path = join(&parts[..=depth]);
                    self.times.insert(path.clone(), (0, 0));
                    self.applied.implied.insert(path);
                    fd
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    linked = true;
                    self.through_link(&parts[..=depth])?
                }
                other => other?,
            };
            let stat = rustix::fs::fstat(&fd)?;
            // With what is in it the folder is this layer's, too.
            if self.options.whiteouts == Whiteouts::Remove {
                self.new.insert(stat.st_ino);
                if !linked {
                    self.keep_time(join(&parts[..=depth]), &stat);
                }
            }
            let group = stat.st_mode & 0o2000 != 0;
            if let Some(far) = self.above.len().checked_sub(KEPT) {
                self.above[far].fd = None;
            }
            self.above.push(Above { name: parts[depth].to_vec(), fd: Some(fd), group });
        }
        self.reopen(parts)
    }

    /// Whether what is no folder is of a layer below. A layer's own tree has a folder there, and overlayfs would show that.
    fn gives_way(&self, dir: BorrowedFd<'_>, last: &[u8]) -> Result<bool> {
        let stat = rustix::fs::statat(dir, name(last), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(self.options.whiteouts == Whiteouts::Remove && !self.new.contains(&stat.st_ino))
    }

    /// Deep in a tree, those further up were closed.
    fn reopen(&mut self, parts: &[&[u8]]) -> Result<()> {
        if let Some(above) = self.above.last_mut()
            && above.fd.is_none()
        {
            above.fd = Some(sys::path::open_dir(self.root, Path::new(name(&join(parts))))?);
        }
        Ok(())
    }

    fn last(&self) -> BorrowedFd<'_> {
        self.above.last().and_then(|a| a.fd.as_ref()).map_or(self.root, |fd| fd.as_fd())
    }

    /// A folder that is a link, to where it leads within the root.
    fn through_link(&self, parts: &[&[u8]]) -> Result<OwnedFd> {
        let path = join(parts);
        sys::path::open_dir(self.root, Path::new(name(&path)))
            .with_context(|| format!("{} is no folder", path.escape_ascii()))
    }

    fn plain(
        &mut self,
        header: &Header,
        content: &mut impl Content,
        above: &[&[u8]],
        last: &[u8],
        parts: &[&[u8]],
    ) -> Result<()> {
        self.folder(above)?;
        if header.kind == Kind::Directory {
            return self.directory(header, last, parts);
        }
        match self.make(header, content, last) {
            Err(e) if is(&e, Errno::EXIST) => {
                self.remove(last, parts)?;
                self.make(header, content, last)?;
            }
            other => other?,
        }
        if self.options.whiteouts == Whiteouts::Remove {
            let stat = rustix::fs::statat(self.last(), name(last), AtFlags::SYMLINK_NOFOLLOW)?;
            self.new.insert(stat.st_ino);
        }
        Ok(())
    }

    /// Make room for another entry.
    fn remove(&mut self, last: &[u8], parts: &[&[u8]]) -> Result<()> {
        let path = join(parts);
        self.times.remove(&path);
        self.noted.remove(&path);
        if !self.applied.implied.is_empty() {
            let below = [&path[..], b"/"].concat();
            self.applied.implied.retain(|p| *p != path && !p.starts_with(&below));
        }
        Ok(remove_tree(self.last(), name(last))?)
    }

    fn directory(&mut self, header: &Header, last: &[u8], parts: &[&[u8]]) -> Result<()> {
        let path = join(parts);
        let mode = Mode::from_raw_mode(0o700);
        let (mut opaque, mut old) = (false, false);
        match rustix::fs::mkdirat(self.last(), name(last), mode) {
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(self.last(), name(last), AtFlags::SYMLINK_NOFOLLOW)?;
                old = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                if !old {
                    // The folder below is gone, and this is a new one.
                    opaque = self.noted.contains(&path);
                    self.remove(last, parts)?;
                    rustix::fs::mkdirat(self.last(), name(last), mode)?;
                }
            }
            other => other?,
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(self.last(), name(last), flags, Mode::empty())?;
        if opaque {
            self.note_opaque(fd.as_fd())?;
        }
        if old {
            self.reset(fd.as_fd(), header)?;
        }
        self.metadata(fd.as_fd(), header)?;
        if self.options.whiteouts == Whiteouts::Remove {
            self.new.insert(rustix::fs::fstat(&fd)?.st_ino);
        }
        self.applied.implied.remove(&path);
        self.times.insert(path, header.mtime);
        Ok(())
    }

    /// Make what is no folder.
    fn make(&mut self, header: &Header, content: &mut impl Content, last: &[u8]) -> Result<()> {
        let dir = self.last();
        let last = name(last);
        let device = match header.kind {
            Kind::File => return self.file(header, content, last),
            Kind::Hardlink => return self.hard_link(header, last),
            Kind::Character | Kind::Block if self.options.devices == Devices::Note => {
                return self.noted_device(header, last);
            }
            Kind::Character => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            Kind::Fifo => FileType::Fifo,
            Kind::Symlink => {
                ensure!(!header.link.is_empty(), "a symbolic link to nowhere");
                rustix::fs::symlinkat(name(&header.link), dir, last)?;
                return self.metadata_of(header, last);
            }
            Kind::Directory => bail!("a folder is no file"),
        };
        let number = rustix::fs::makedev(header.device.0, header.device.1);
        rustix::fs::mknodat(dir, last, device, Mode::from_raw_mode(0o600), number)?;
        self.metadata_of(header, last)
    }

    fn file(&mut self, header: &Header, content: &mut impl Content, last: &OsStr) -> Result<()> {
        let mut file = self.new_file(last)?;
        self.applied.bytes += content.write_to(&mut file, header)?;
        self.metadata(file.as_fd(), header)?;
        Ok(rustix::fs::futimens(&file, &times(header.mtime))?)
    }

    fn new_file(&self, last: &OsStr) -> rustix::io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(self.last(), last, flags, Mode::from_raw_mode(0o600)).map(File::from)
    }

    fn noted_device(&mut self, header: &Header, last: &OsStr) -> Result<()> {
        let file = self.new_file(last)?;
        let kind = if header.kind == Kind::Character { 'c' } else { 'b' };
        let value = format!("{kind}:{}:{}", header.device.0, header.device.1);
        rustix::fs::fsetxattr(&file, DEVICE, value.as_bytes(), XattrFlags::empty())
            .with_context(|| format!("note the device in the attribute {DEVICE}"))?;
        self.metadata(file.as_fd(), header)?;
        Ok(rustix::fs::futimens(&file, &times(header.mtime))?)
    }

    fn hard_link(&mut self, header: &Header, last: &OsStr) -> Result<()> {
        let leads = || format!("a hard link to {}, which is not there", header.link.escape_ascii());
        let parts = parts(&header.link).context("a hard link")?;
        let Some((target, above)) = parts.split_last() else { bail!("a hard link to the root") };
        let path = join(above);
        let dir = sys::path::open_dir(self.root, Path::new(name(&path))).with_context(leads)?;
        match rustix::fs::linkat(&dir, name(target), self.last(), last, AtFlags::empty()) {
            Err(Errno::EXIST) => {
                let stat = |dir: BorrowedFd<'_>, name: &OsStr| {
                    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|s| (s.st_dev, s.st_ino))
                };
                // It is there already, perhaps as the very same name.
                if stat(dir.as_fd(), name(target)).with_context(leads)? == stat(self.last(), last)? {
                    return Ok(());
                }
                Err(Errno::EXIST.into())
            }
            Err(Errno::NOENT) => Err(Errno::NOENT).with_context(leads),
            other => Ok(other?),
        }
    }

    // What there is to say of an entry. The order: owners take setuid bits and capabilities away.

    /// A folder that was there keeps nothing of what it was like.
    fn reset(&self, fd: BorrowedFd<'_>, header: &Header) -> Result<()> {
        for key in attribute_names(fd)? {
            let content = attribute(&key) == Attribute::Kept || key == OWNER.as_bytes();
            if content && !header.xattrs.iter().any(|(new, _)| *new == key) {
                match rustix::fs::fremovexattr(fd, name(&key)) {
                    // Some are the kernel's, or went with another.
                    Ok(()) | Err(Errno::NODATA | Errno::PERM | Errno::OPNOTSUPP) => {}
                    Err(e) => {
                        return Err(e).with_context(|| format!("remove attribute {}", key.escape_ascii()));
                    }
                }
            }
        }
        if self.options.owner == Owner::Keep {
            let (uid, gid) = ids((header.uid, header.gid));
            rustix::fs::fchown(fd, Some(uid), Some(gid))
                .with_context(|| format!("give it to {}:{}", header.uid, header.gid))?;
        }
        Ok(())
    }

    fn metadata(&self, fd: BorrowedFd<'_>, header: &Header) -> Result<()> {
        self.own(fd, (header.uid, header.gid))?;
        rustix::fs::fchmod(fd, Mode::from_raw_mode(header.mode))?;
        for (key, value) in &header.xattrs {
            if wanted(key)? {
                rustix::fs::fsetxattr(fd, name(key), value, XattrFlags::empty())
                    .with_context(|| format!("attribute {}", key.escape_ascii()))?;
            }
        }
        Ok(())
    }

    /// The same for what must not be opened.
    fn metadata_of(&self, header: &Header, last: &OsStr) -> Result<()> {
        let dir = self.last();
        if self.options.owner == Owner::Keep {
            let (uid, gid) = ids((header.uid, header.gid));
            rustix::fs::chownat(dir, last, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if header.kind != Kind::Symlink {
            rustix::fs::chmodat(dir, last, Mode::from_raw_mode(header.mode), AtFlags::empty())?;
        }
        for (key, value) in &header.xattrs {
            if wanted(key)? {
                let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(last);
                rustix::fs::lsetxattr(&path, name(key), value, XattrFlags::empty())
                    .with_context(|| format!("attribute {}", key.escape_ascii()))?;
            }
        }
        Ok(rustix::fs::utimensat(dir, last, &times(header.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn own(&self, fd: BorrowedFd<'_>, owner: (u32, u32)) -> Result<()> {
        match self.options.owner {
            Owner::Keep => {
                let inherited = self.above.last().is_some_and(|a| a.group);
                if owner != self.own || inherited {
                    let (uid, gid) = ids(owner);
                    rustix::fs::fchown(fd, Some(uid), Some(gid))
                        .with_context(|| format!("give it to {}:{}", owner.0, owner.1))?;
                }
            }
            Owner::Ours => {}
            Owner::Note if owner == (0, 0) => {}
            Owner::Note => {
                let value = format!("{}:{}", owner.0, owner.1);
                rustix::fs::fsetxattr(fd, OWNER, value.as_bytes(), XattrFlags::empty())
                    .with_context(|| format!("note the owner in the attribute {OWNER}"))?;
            }
        }
        Ok(())
    }

    fn note_opaque(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let Whiteouts::Note(privilege) = self.options.whiteouts else { return Ok(()) };
        rustix::fs::fsetxattr(fd, privilege.opaque(), b"y", XattrFlags::empty())
            .with_context(|| format!("attribute {}", privilege.opaque()))
    }

    // Whiteouts

    /// A folder, if it is there, wherever links within the root lead.
    fn locate(&self, path: &[u8]) -> Result<Option<OwnedFd>> {
        let gone = |e: &io::Error| {
            matches!(e.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::NOENT | Errno::NOTDIR))
        };
        match sys::path::open_dir(self.root, Path::new(name(path))) {
            Ok(dir) => Ok(Some(dir)),
            Err(e) if gone(&e) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// A folder, if it is there; links of layers below are not followed.
    fn find(&self, parts: &[&[u8]]) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut dir = rustix::fs::openat(self.root, ".", flags, Mode::empty())?;
        for (depth, part) in parts.iter().enumerate() {
            dir = match rustix::fs::openat(&dir, name(part), flags, Mode::empty()) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::NOTDIR | Errno::LOOP) if self.gives_way(dir.as_fd(), part)? => return Ok(None),
                Err(Errno::NOTDIR | Errno::LOOP) => match self.locate(&join(&parts[..=depth]))? {
                    Some(dir) => dir,
                    None => return Ok(None),
                },
                Err(e) => return Err(e.into()),
            };
        }
        Ok(Some(dir))
    }

    /// What a layer changes in a folder does not change the folder, unless the layer says so. It is no link.
    fn keep_time(&mut self, path: Vec<u8>, stat: &Stat) {
        self.times.entry(path).or_insert((stat.st_mtime, stat.st_mtime_nsec as u32));
    }

    fn keep_time_unless_link(&mut self, parts: &[&[u8]], folder: BorrowedFd<'_>) -> Result<()> {
        if let Some((last, above)) = parts.split_last() {
            let Some(dir) = self.find(above)? else { return Ok(()) };
            let stat = rustix::fs::statat(&dir, name(last), AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return Ok(());
            }
        }
        self.keep_time(join(parts), &rustix::fs::fstat(folder)?);
        Ok(())
    }

    fn gone(&mut self, above: &[&[u8]], gone: &[u8]) -> Result<()> {
        match self.options.whiteouts {
            Whiteouts::Remove => {
                let Some(dir) = self.find(above)? else { return Ok(()) };
                let stat = match rustix::fs::statat(&dir, name(gone), AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => return Ok(()),
                    other => other?,
                };
                if !self.new.contains(&stat.st_ino) {
                    self.above.clear();
                    self.keep_time_unless_link(above, dir.as_fd())?;
                    return Ok(remove_tree(dir.as_fd(), name(gone))?);
                }
                // What this layer brings stays, and what was in it before goes.
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    self.remove_old(dir.as_fd(), name(gone))?;
                }
                Ok(())
            }
            Whiteouts::Note(_) => {
                self.folder(above)?;
                let nothing = rustix::fs::makedev(0, 0);
                let mode = Mode::empty();
                match rustix::fs::mknodat(self.last(), name(gone), FileType::CharacterDevice, mode, nothing) {
                    Ok(()) => {
                        self.noted.insert(join(&[above, &[gone]].concat()));
                        Ok(())
                    }
                    Err(Errno::EXIST) => {
                        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                        match rustix::fs::openat(self.last(), name(gone), flags, Mode::empty()) {
                            Ok(fd) => self.note_opaque(fd.as_fd()),
                            // What is no folder hides everything as it is.
                            Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
                            Err(e) => Err(e.into()),
                        }
                    }
                    Err(e) => Err(e).context("make a whiteout"),
                }
            }
        }
    }

    fn opaque(&mut self, above: &[&[u8]]) -> Result<()> {
        match self.options.whiteouts {
            Whiteouts::Remove => {
                let Some(dir) = self.find(above)? else { return Ok(()) };
                self.keep_time_unless_link(above, dir.as_fd())?;
                self.remove_old(dir.as_fd(), OsStr::new("."))
            }
            Whiteouts::Note(_) => {
                self.folder(above)?;
                self.note_opaque(self.last())
            }
        }
    }

    /// Remove what this layer did not bring, from a folder and all below.
    fn remove_old(&mut self, dir: BorrowedFd<'_>, folder: &OsStr) -> Result<()> {
        self.above.clear();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut open = vec![rustix::fs::openat(dir, folder, flags, Mode::empty())?];
        while let Some(dir) = open.pop() {
            for child in sys::path::list(dir.as_fd())? {
                let stat = rustix::fs::statat(&dir, &child, AtFlags::SYMLINK_NOFOLLOW)?;
                if !self.new.contains(&stat.st_ino) {
                    remove_tree(dir.as_fd(), &child)?;
                } else if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    open.push(rustix::fs::openat(&dir, &child, flags, Mode::empty())?);
                }
            }
        }
        Ok(())
    }

    /// Folders get their times when nothing is made in them any more.
    fn finish(&self) -> Result<()> {
        let mut all: Vec<_> = self.times.iter().collect();
        all.sort_unstable();
        let mut parent: Option<(&[u8], Option<OwnedFd>)> = None;
        for (path, mtime) in all {
            let (above, last) = match path.iter().rposition(|b| *b == b'/') {
                Some(at) => (&path[..at], &path[at + 1..]),
                None if path.is_empty() => (&path[..], &b"."[..]),
                None => (&path[..0], &path[..]),
            };
            if parent.as_ref().is_none_or(|(known, _)| *known != above) {
                parent = Some((above, self.locate(above)?));
            }
            // It may have been removed again.
            let Some((_, Some(dir))) = &parent else { continue };
            match rustix::fs::utimensat(dir, name(last), &times(*mtime), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e).with_context(|| format!("set the time of {}", path.escape_ascii())),
            }
        }
        Ok(())
    }
}

fn is(e: &anyhow::Error, errno: Errno) -> bool {
    e.downcast_ref::<Errno>() == Some(&errno)
}

fn ids((uid, gid): (u32, u32)) -> (rustix::fs::Uid, rustix::fs::Gid) {
    (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid))
}

/// Whether an attribute is to be set; an error if it must not be.
fn wanted(key: &[u8]) -> Result<bool> {
    match attribute(key) {
        Attribute::Kept => Ok(true),
        Attribute::Dropped => Ok(false),
        Attribute::Refused => {
            bail!("attribute {}: overlayfs would show other files than the layer has", key.escape_ascii())
        }
    }
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests;
