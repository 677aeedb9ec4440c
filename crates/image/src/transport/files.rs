//! How are the files of a folder or an archive read, when nobody can be trusted? By name, never through a link that leads out, no
//! more bytes than were asked for, and never waiting for what is no file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use report::{Kind, error};
use rustix::fs::{Mode, OFlags};
use sys::path::Links;

use crate::digest::{Digest, Hashing};
use crate::family::Packing;
use crate::layer::compress::{Decoder, SNIFFED, sniff};
use crate::layer::tar::{Kind as Entry, Reader};
use crate::manifest::Descriptor;
use crate::temporary::Spool;

/// Members that an archive of images may have.
const MEMBERS_MOST: usize = 1 << 16;

/// Files with names.
pub trait Files: Sync + std::fmt::Debug {
    /// A file's content and its size. `Kind::NotFound` if there is no such file.
    fn open(&self, name: &str) -> Result<(Box<dyn Read + Send + '_>, u64)>;

    /// What it is, for messages.
    fn title(&self) -> String;

    /// A small file.
    fn small(&self, name: &str, most: u64) -> Result<Vec<u8>> {
        let (content, size) = self.open(name)?;
        ensure!(size <= most, "{}: {name}: {size} bytes, at most {most}", self.title());
        let mut bytes = Vec::new();
        content
            .take(most + 1)
            .read_to_end(&mut bytes)
            .with_context(|| format!("{}: {name}", self.title()))?;
        ensure!(bytes.len() as u64 <= most, "{}: {name}: more than {most} bytes", self.title());
        Ok(bytes)
    }

    /// The small blob that a descriptor promises.
    fn promised(&self, name: &str, descriptor: &Descriptor, most: u64) -> Result<Vec<u8>> {
        let bytes = self.small(name, most)?;
        let mut hashing = Hashing::new(io::sink(), descriptor.digest.algorithm());
        hashing.write_all(&bytes)?;
        let (_, digest, size) = hashing.finish();
        ensure!(
            digest == descriptor.digest && size == descriptor.size,
            "{}: {}: its content is that of {digest} ({size} bytes)",
            self.title(),
            descriptor.digest
        );
        Ok(bytes)
    }

    /// The content of a blob, which must have the size that its descriptor says.
    fn blob(&self, name: &str, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        let (content, size) = self.open(name)?;
        ensure!(
            size == descriptor.size,
            "{}: {}: {size} bytes, expected {}",
            self.title(),
            descriptor.digest,
            descriptor.size
        );
        Ok(content)
    }
}

/// The place of a blob in an image layout.
pub fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

impl<F: Files + ?Sized> Files for &F {
    fn open(&self, name: &str) -> Result<(Box<dyn Read + Send + '_>, u64)> {
        (**self).open(name)
    }

    fn title(&self) -> String {
        (**self).title()
    }
}

/// A folder's files.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl Folder {
    pub fn open(path: &Path) -> Result<Folder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .with_context(|| format!("open {}", path.display()))?;
        Ok(Folder { fd, path: path.to_owned() })
    }
}

impl Files for Folder {
    fn open(&self, name: &str) -> Result<(Box<dyn Read + Send + '_>, u64)> {
        let at = || format!("{}/{name}", self.path.display());
        // Opened without waiting: it may be a pipe.
        let file = match sys::path::open(self.fd.as_fd(), Path::new(name), Links::Refuse) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(error(Kind::NotFound, format!("{}: no such file", at())));
            }
            other => File::from(other.with_context(at)?),
        };
        let meta = file.metadata().with_context(at)?;
        ensure!(meta.is_file(), "{}: no regular file", at());
        Ok((Box::new(file), meta.len()))
    }

    fn title(&self) -> String {
        self.path.display().to_string()
    }
}

/// An archive's files.
#[derive(Debug)]
pub struct Archive {
    file: File,
    title: String,
    members: BTreeMap<String, Member>,
}

#[derive(Clone, Debug)]
enum Member {
    /// Offset and size.
    File(u64, u64),
    /// Old versions of docker save link layers that are the same.
    Link(String),
}

impl Archive {
    /// Read what is in an archive; one that is compressed, or comes through a pipe, is spooled first.
    pub fn open(mut file: File, title: &str, spool: Spool<'_>) -> Result<Archive> {
        let reading = || format!("read {title}");
        // What comes through a pipe, or is compressed, cannot be read twice as it is.
        let plain = file.metadata().with_context(reading)?.is_file() && {
            let mut first = [0; SNIFFED];
            let n = file.read_at(&mut first, 0).with_context(reading)?;
            file.seek(SeekFrom::Start(0)).with_context(reading)?;
            sniff(&first[..n]) == Ok(Packing::Plain)
        };
        if !plain {
            let mut spooled = spool.file()?;
            let mut from = Decoder::new(file).with_context(reading)?;
            io::copy(&mut from, &mut spooled).with_context(reading)?;
            spooled.seek(SeekFrom::Start(0)).with_context(reading)?;
            file = spooled;
        }
        let members = scan(&file).with_context(reading)?;
        ensure!(!members.is_empty(), "{title}: no archive, or an empty one");
        Ok(Archive { file, title: title.to_owned(), members })
    }

    /// Whether there is such a file.
    pub fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    fn member(&self, name: &str) -> Result<(u64, u64)> {
        let mut name = name.to_owned();
        for _ in 0..10 {
            match self.members.get(&name) {
                Some(Member::File(offset, size)) => return Ok((*offset, *size)),
                Some(Member::Link(to)) => name.clone_from(to),
                None => return Err(error(Kind::NotFound, format!("{}: no file {name}", self.title))),
            }
        }
        bail!("{}: {name}: links in circles", self.title)
    }
}

/// Where the members of an archive lie.
fn scan(file: &File) -> Result<BTreeMap<String, Member>> {
    let mut members = BTreeMap::new();
    let mut reader = Reader::new(Position { inner: BufReader::with_capacity(4096, file), at: 0 });
    while let Some(header) = reader.entry()? {
        let Some(name) = clean(&header.path) else {
            bail!("entry {}: it leads out of the archive", header.title())
        };
        let member = match header.kind {
            Entry::File if header.pieces.is_none() => Member::File(reader.get_ref().at, header.size),
            Entry::Symlink | Entry::Hardlink => {
                let above = match header.kind {
                    Entry::Symlink => name.rsplit_once('/').map_or("", |(above, _)| above),
                    _ => "",
                };
                let to = [above.as_bytes(), b"/", &header.link].concat();
                match clean(&to) {
                    Some(to) => Member::Link(to),
                    None => bail!("entry {}: a link out of the archive", header.title()),
                }
            }
            Entry::Directory => continue,
            _ => bail!("entry {}: neither file nor folder", header.title()),
        };
        members.insert(name, member);
        ensure!(members.len() <= MEMBERS_MOST, "more than {MEMBERS_MOST} files");
    }
    Ok(members)
}

/// A member's name without `.`, `..` and slashes in front; `None`: it leads out.
fn clean(path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Knows how far it has read, and passes over contents without reading them.
#[derive(Debug)]
struct Position<'a> {
    inner: BufReader<&'a File>,
    at: u64,
}

impl Read for Position<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl io::BufRead for Position<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.inner.consume(n);
        self.at += n as u64;
    }
}

impl Files for Archive {
    fn open(&self, name: &str) -> Result<(Box<dyn Read + Send + '_>, u64)> {
        let (offset, size) = self.member(name)?;
        Ok((Box::new(Part { file: &self.file, at: offset, left: size }), size))
    }

    fn title(&self) -> String {
        self.title.clone()
    }
}

/// A part of a file; many may be read at once.
#[derive(Debug)]
struct Part<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.left.min(buffer.len() as u64) as usize;
        let n = self.file.read_at(&mut buffer[..most], self.at)?;
        if n == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut off"));
        }
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::tar::{Header, Writer};

    #[test]
    fn folders_give_files_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "content").unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
        std::os::unix::fs::symlink("/etc", at("etc")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.small("file", 7).unwrap(), b"content");
        for (name, reason) in [
            ("file", "at most 6"),
            ("none", "no such file"),
            ("folder", "no regular file"),
            ("pipe", "no regular file"),
            ("link", "symbolic links"),
            ("etc/passwd", "symbolic links"),
            ("../x", "no such file"),
        ] {
            let error = report::line(&folder.small(name, 6).unwrap_err());
            assert!(error.contains(reason), "{name}: {error}");
        }
    }

    #[test]
    fn archives_give_their_members_by_name() {
        let mut writer = Writer::new(Vec::new());
        writer.entry(&Header::new(Entry::File, "./a"), b"content").unwrap();
        writer.entry(&Header::new(Entry::Directory, "d"), b"").unwrap();
        let link = Header { link: b"../a".to_vec(), ..Header::new(Entry::Symlink, "d/l") };
        writer.entry(&link, b"").unwrap();
        writer.entry(&Header { link: b"m".to_vec(), ..Header::new(Entry::Symlink, "m") }, b"").unwrap();
        let plain = writer.finish().unwrap();
        let mut packed = Vec::new();
        let how = crate::layer::compress::Compression::GZIP;
        crate::layer::compress::compress(&mut &plain[..], &mut packed, how, std::num::NonZero::<usize>::MIN)
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        for bytes in [&plain, &packed] {
            let mut file = Spool(dir.path()).file().unwrap();
            file.write_all(bytes).unwrap();
            let archive = Archive::open(file, "x.tar", Spool(dir.path())).unwrap();
            assert!(archive.has("a") && !archive.has("b"));
            assert_eq!(archive.small("a", 7).unwrap(), b"content");
            assert_eq!(archive.small("d/l", 7).unwrap(), b"content");
            for (name, reason) in [("b", "no file b"), ("m", "in circles"), ("a", "at most")] {
                let error = report::line(&archive.small(name, 5).unwrap_err());
                assert!(error.contains(reason), "{error}");
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut file = Spool(dir.path()).file().unwrap();
        file.write_all(&plain[..600]).unwrap();
        assert!(Archive::open(file, "x.tar", Spool(dir.path())).is_err());
    }
}
