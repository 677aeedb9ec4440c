//! How is a layer kept that is almost the one before? By what is new in it, and where the rest stands in that one's archive, which
//! stays for as long as it is needed. It is written whole once somebody reads it.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sys::memory::Mapped;

use super::addition::{self, Temporary};
use super::{Addition, Blob, Store};
use crate::digest::{Algorithm, Digest, Hasher};

pub(super) const SPLICED: &str = "spliced";
/// Bytes of the archive from before that are looked at together, and those that are hashed and written while they are near.
const WINDOW: u64 = 8 << 20;
const CHUNK: usize = 256 << 10;
/// With more that is new than one byte in so many, or more of it, or more pieces, it is written whole.
const SHARE: u64 = 4;
const PIECES_MOST: usize = 1 << 14;
const NEW_MOST: u64 = 64 << 20;
/// Bytes of a record.
const RECORD_MOST: u64 = 2 * NEW_MOST;

/// A piece of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Piece {
    /// From there to there in the base.
    Base(u64, u64),
    /// In what is new.
    New(u64, u64),
}

impl Piece {
    fn range(self) -> (u64, u64) {
        match self {
            Piece::Base(from, to) | Piece::New(from, to) => (from, to),
        }
    }
}

/// A record: a line with the base's digest, a line with the pieces, and what is new.
struct Record {
    base: Digest,
    pieces: Vec<Piece>,
    new: Vec<u8>,
}

impl Record {
    /// None: it is none.
    fn parse(mut bytes: Vec<u8>) -> Option<Record> {
        let mut lines = bytes.splitn(3, |b| *b == b'\n');
        let base = std::str::from_utf8(lines.next()?).ok()?.parse().ok()?;
        let pieces = serde_json::from_slice(lines.next()?).ok()?;
        let new = lines.next()?.len();
        bytes.drain(..bytes.len() - new);
        Some(Record { base, pieces, new: bytes })
    }
}

/// What a blob is made of: parts of one that is whole, and bytes.
#[derive(Clone, Debug)]
pub struct Parts {
    base: Digest,
    file: Arc<File>,
    /// Each with where it begins.
    pieces: Vec<(u64, Piece)>,
    new: Vec<u8>,
    size: u64,
}

impl Parts {
    /// Nothing yet, made of the same blob as another.
    pub fn like(other: &Parts) -> Parts {
        let (base, file) = (other.base.clone(), Arc::clone(&other.file));
        Parts { base, file, pieces: Vec::new(), new: Vec::new(), size: 0 }
    }

    fn add(&mut self, piece: Piece) {
        let (from, to) = piece.range();
        match (self.pieces.last_mut(), piece) {
            (Some((_, Piece::Base(_, end))), Piece::Base(..)) if *end == from => *end = to,
            (Some((_, Piece::New(_, end))), Piece::New(..)) if *end == from => *end = to,
            _ => self.pieces.push((self.size, piece)),
        }
        self.size += to - from;
    }

    /// These bytes come next.
    pub fn push(&mut self, bytes: &[u8]) {
        let from = self.new.len() as u64;
        self.new.extend(bytes);
        self.add(Piece::New(from, from + bytes.len() as u64));
    }

    /// Bytes `from` to `to` of another come next, which is made of the same blob.
    pub fn take(&mut self, other: &Parts, from: u64, to: u64) {
        let first = other.pieces.partition_point(|(at, _)| *at <= from).saturating_sub(1);
        for (at, piece) in &other.pieces[first..] {
            let (begin, end) = piece.range();
            let (low, high) = (from.max(*at), to.min(at + (end - begin)));
            if *at >= to {
                break;
            }
            if low >= high {
                continue;
            }
            let (begin, end) = (begin + (low - at), begin + (high - at));
            match piece {
                Piece::Base(..) => self.add(Piece::Base(begin, end)),
                Piece::New(..) => self.push(&other.new[begin as usize..end as usize]),
            }
        }
    }

    /// Bytes `from` to `to`.
    pub fn read(&self, from: u64, to: u64) -> impl Read + '_ {
        PartsReader { parts: self, at: from, end: to.min(self.size) }
    }

    /// Kept by its parts, it takes less than whole.
    fn is_worth_it(&self) -> bool {
        let new = self.new.len() as u64;
        new * SHARE <= self.size && new <= NEW_MOST && self.pieces.len() <= PIECES_MOST
    }

    /// All of it, from its beginning.
    fn each(&self, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        for (_, piece) in &self.pieces {
            match *piece {
                Piece::New(from, to) => take(&self.new[from as usize..to as usize])?,
                Piece::Base(mut from, to) => {
                    while from < to {
                        let length = (to - from).min(WINDOW);
                        let part = Mapped::part(&self.file, from, length as usize)?;
                        part.chunks(CHUNK).try_for_each(&mut *take)?;
                        from += length;
                    }
                }
            }
        }
        Ok(())
    }

    fn digest(&self, algorithm: Algorithm) -> io::Result<Digest> {
        let mut hasher = Hasher::new(algorithm);
        self.each(&mut |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        Ok(hasher.finish())
    }
}

struct PartsReader<'p> {
    parts: &'p Parts,
    at: u64,
    end: u64,
}

impl Read for PartsReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = (self.end.saturating_sub(self.at)).min(buffer.len() as u64);
        let first = self.parts.pieces.partition_point(|(at, _)| *at <= self.at);
        let Some((at, piece)) = first.checked_sub(1).map(|n| self.parts.pieces[n]) else { return Ok(0) };
        let (from, to) = piece.range();
        let from = from + (self.at - at);
        let most = most.min(to.saturating_sub(from)) as usize;
        if most == 0 {
            return Ok(0);
        }
        let n = match piece {
            Piece::Base(..) => self.parts.file.read_at(&mut buffer[..most], from)?,
            Piece::New(..) => {
                buffer[..most].copy_from_slice(&self.parts.new[from as usize..from as usize + most]);
                most
            }
        };
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than it was"));
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// A blob that is being made of parts.
#[derive(Debug)]
pub struct Splicing {
    temporary: Temporary,
    parts: Parts,
}

impl Splicing {
    /// Hash it, and write it: whole, or what it is made of, whichever takes less.
    pub fn finish(self) -> Result<Blob> {
        let Splicing { temporary, parts } = self;
        let mut file = File::from(temporary.fd.try_clone().context("write a layer")?);
        let size = parts.size;
        if parts.is_worth_it() {
            let digest = parts.digest(Algorithm::Sha256).context(READING)?;
            let pieces: Vec<Piece> = parts.pieces.iter().map(|(_, piece)| *piece).collect();
            let lines = format!("{}\n{}\n", parts.base, serde_json::to_string(&pieces)?);
            file.write_all(&[lines.as_bytes(), &parts.new].concat()).context("write a layer")?;
            return Ok(Blob::spliced(temporary, digest, size, parts));
        }
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let write = |bytes: &[u8]| {
            hasher.update(bytes);
            file.write_all(bytes)
        };
        parts.each(&mut { write }).context("write a layer")?;
        Ok(Blob::whole(temporary, hasher.finish(), size))
    }
}

const READING: &str = "take over entries of the layer that was before";

fn damaged(digest: &Digest) -> String {
    format!("blob {digest}: what it is made of is damaged")
}

impl Addition<'_> {
    /// Begin a blob of parts.
    pub fn splice(&self, parts: Parts) -> Result<Splicing> {
        Ok(Splicing { temporary: self.store().nameless()?, parts })
    }
}

impl Store {
    pub(super) fn spliced_path(digest: &Digest) -> String {
        format!("{SPLICED}/{}-{}", digest.algorithm().name(), digest.hex())
    }

    /// The blob that has what is not new in that one, if it is kept so.
    pub(super) fn base_of(&self, digest: &Digest) -> Result<Option<Digest>> {
        let path = Self::spliced_path(digest);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = match rustix::fs::openat(&self.fd, &path, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.with_context(|| format!("read {}/{path}", self.root.display()))?,
        };
        let mut line = String::new();
        let read = io::BufReader::with_capacity(256, File::from(fd).take(256)).read_line(&mut line);
        read.with_context(|| format!("read {}/{path}", self.root.display()))?;
        Ok(Some(line.trim_end().parse().with_context(|| damaged(digest))?))
    }

    /// What a blob is made of; one that is whole, of itself. `Kind::NotFound` if it is not there.
    pub fn parts(&self, digest: &Digest) -> Result<Parts> {
        if !self.exists(&Self::blob_path(digest))?
            && let Some(parts) = self.spliced(digest)?
        {
            return Ok(parts);
        }
        let file = self.blob(digest)?;
        let size = file.metadata().with_context(|| format!("read blob {digest}"))?.len();
        let pieces = vec![(0, Piece::Base(0, size))];
        Ok(Parts { base: digest.clone(), file: Arc::new(file), pieces, new: Vec::new(), size })
    }

    fn spliced(&self, digest: &Digest) -> Result<Option<Parts>> {
        let Some(bytes) = self.read_small(&Self::spliced_path(digest), RECORD_MOST)? else {
            return Ok(None);
        };
        let damaged = || damaged(digest);
        let Record { base, pieces, new } = Record::parse(bytes).with_context(damaged)?;
        let file = self.open_blob(&base).with_context(damaged)?.with_context(damaged)?;
        let mut parts = Parts { base, file: Arc::new(file), pieces: Vec::new(), new, size: 0 };
        for piece in pieces {
            let (from, to) = piece.range();
            if from > to || matches!(piece, Piece::New(_, to) if to > parts.new.len() as u64) {
                bail!(damaged());
            }
            parts.add(piece);
        }
        Ok(Some(parts))
    }

    /// A blob that is kept by its parts, whole from now on.
    pub(super) fn assemble(&self, digest: &Digest) -> Result<Option<File>> {
        let Some(parts) = self.spliced(digest)? else { return Ok(None) };
        let blob = self.assembled(&parts, digest)?;
        let mut file = File::from(blob.temporary().fd.try_clone().context("write a blob")?);
        let name = || -> io::Result<()> {
            file.sync_data()?;
            blob.link(self)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = format!("blobs/{}", digest.algorithm().name());
            rustix::fs::fsync(rustix::fs::openat(&self.fd, dir, flags, Mode::empty())?)?;
            addition::remove(std::os::fd::AsFd::as_fd(&self.fd), &Self::spliced_path(digest))
        };
        // It can be read all the same.
        name().unwrap_or_default();
        file.rewind().context("read a blob")?;
        Ok(Some(file))
    }

    /// The same without a name.
    pub(super) fn assembled(&self, parts: &Parts, digest: &Digest) -> Result<Blob> {
        let temporary = self.nameless()?;
        let mut file = File::from(temporary.fd.try_clone().context("write a blob")?);
        let mut hasher = Hasher::new(digest.algorithm());
        parts
            .each(&mut |bytes| {
                hasher.update(bytes);
                file.write_all(bytes)
            })
            .with_context(|| format!("blob {digest}, of its parts"))?;
        let is = hasher.finish();
        if is != *digest {
            bail!("blob {digest}: its content is that of {is}");
        }
        Ok(Blob::whole(temporary, is, parts.size))
    }

    /// The digest of what a blob that is kept by its parts holds.
    pub(super) fn spliced_digest(&self, digest: &Digest) -> Result<Option<Digest>> {
        if self.exists(&Self::blob_path(digest))? {
            return Ok(None);
        }
        let Some(parts) = self.spliced(digest)? else { return Ok(None) };
        Ok(Some(parts.digest(digest.algorithm())?))
    }

    /// Remove a blob, however it is kept.
    pub(super) fn remove_blob(&self, digest: &Digest) -> Result<()> {
        for path in [Self::spliced_path(digest), Self::blob_path(digest)] {
            addition::remove(std::os::fd::AsFd::as_fd(&self.fd), &path)
                .with_context(|| format!("remove blob {digest}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(bytes: &[u8]) -> (tempfile::TempDir, Store, Digest) {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(&temp.path().join("store")).unwrap();
        let mut addition = store.begin().unwrap();
        let digest = addition.add_bytes(bytes).unwrap();
        addition.commit().unwrap();
        (temp, store, digest)
    }

    fn splice(store: &Store, parts: Parts) -> Digest {
        let mut addition = store.begin().unwrap();
        let blob = addition.splice(parts).unwrap().finish().unwrap();
        let digest = blob.digest().clone();
        addition.add(blob);
        addition.commit().unwrap();
        digest
    }

    fn read(store: &Store, digest: &Digest) -> Vec<u8> {
        let mut bytes = Vec::new();
        store.blob(digest).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_blob_of_parts_becomes_whole_when_it_is_read() {
        let bytes: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        let (_temp, store, base) = store(&bytes);
        let whole = store.parts(&base).unwrap();
        let mut parts = Parts::like(&whole);
        parts.take(&whole, 0, 5000);
        parts.push(b"new");
        parts.take(&whole, 5100, 100_000);
        let first = [&bytes[..5000], b"new", &bytes[5100..]].concat();
        let mut through = Vec::new();
        parts.read(4990, 5010).read_to_end(&mut through).unwrap();
        assert_eq!(through, first[4990..5010]);
        let one = splice(&store, parts);
        assert_eq!(one, Digest::of(&first));
        // Of one that is made of parts itself, it is made of the same base.
        let before = store.parts(&one).unwrap();
        let mut parts = Parts::like(&before);
        parts.take(&before, 4000, 5001);
        parts.push(b"more");
        parts.take(&before, 5001, first.len() as u64);
        let second = [&first[4000..5001], b"more", &first[5001..]].concat();
        let two = splice(&store, parts);
        assert_eq!(two, Digest::of(&second));
        let all = |store: &Store| store.blobs().unwrap().into_iter().map(|(d, ..)| d).collect::<Vec<_>>();
        assert!(store.has(&one).unwrap() && store.has(&two).unwrap() && all(&store).len() == 3);
        let small = |digest: &Digest| {
            store.blobs().unwrap().into_iter().any(|(d, size, _)| d == *digest && size < 1000)
        };
        assert!(small(&one) && small(&two));
        assert_eq!(store.base_of(&two).unwrap(), Some(base.clone()));
        assert!(store.check(false).unwrap().is_empty() && small(&two), "to look at it changes nothing");
        assert_eq!(read(&store, &two), second);
        assert!(!small(&two) && store.base_of(&two).unwrap().is_none());
        assert_eq!(read(&store, &one), first);
        assert_eq!(read(&store, &base), bytes);
    }

    #[test]
    fn what_is_mostly_new_is_whole() {
        let (_temp, store, base) = store(&[7; 1000]);
        let whole = store.parts(&base).unwrap();
        let mut parts = Parts::like(&whole);
        parts.take(&whole, 0, 500);
        parts.push(&[8; 400]);
        let one = splice(&store, parts);
        assert!(store.base_of(&one).unwrap().is_none());
        assert_eq!(read(&store, &one), [&[7; 500][..], &[8; 400]].concat());
    }

    #[test]
    fn without_its_base_it_is_damaged() {
        let (_temp, store, base) = store(&[7; 1000]);
        let whole = store.parts(&base).unwrap();
        let mut parts = Parts::like(&whole);
        parts.take(&whole, 0, 900);
        let one = splice(&store, parts);
        std::fs::write(store.root().join(Store::blob_path(&base)), [8; 1000]).unwrap();
        let e = store.blob(&one).unwrap_err();
        assert!(report::line(&e).contains("its content is that of"), "{e:?}");
        assert_eq!(store.check(false).unwrap().len(), 2);
        std::fs::remove_file(store.root().join(Store::blob_path(&base))).unwrap();
        let e = store.blob(&one).unwrap_err();
        assert!(report::line(&e).contains("what it is made of is damaged"), "{e:?}");
        store.check(true).unwrap();
        assert!(!store.has(&one).unwrap());
    }
}
