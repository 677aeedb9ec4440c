//! How does something new come into the store, whole or not at all?

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::layers::{Holder, Layer};
use super::spliced::{self, Parts};
use super::{INDEX_LOCK, LOCK, Lease, Store, TMP};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::layer::tree::remove_tree;
use crate::manifest::Descriptor;
use crate::reference::Reference;

/// Trees that only have what is mounted on.
const STUBS: &str = "stubs";
const JOURNAL: &str = ".journal";
/// Bytes that a journal may have.
const JOURNAL_MOST: u64 = 64 << 20;

/// What is about to get a name, told before it gets it.
#[derive(Default, Serialize, Deserialize)]
struct Journal {
    blobs: Vec<Digest>,
    /// Diff ids.
    layers: Vec<Digest>,
}

/// Something that is not whole yet; it goes when this is dropped, or with the next command once nobody holds it.
#[derive(Debug)]
pub(super) struct Temporary {
    /// The store's, to reach `path`.
    store: Option<(OwnedFd, String)>,
    pub(super) fd: OwnedFd,
}

impl Temporary {
    pub(super) fn path(&self) -> Option<&str> {
        self.store.as_ref().map(|(_, path)| path.as_str())
    }
}

impl Temporary {
    /// It has another name now, which is not ours.
    pub(super) fn renamed(&mut self) {
        self.store = None;
    }

    /// It stays; the next command finds it.
    fn leave(mut self) {
        self.store = None;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some((store, path)) = &self.store {
            // What cannot be removed now, the next command removes. It may have got its name, too.
            remove(store.as_fd(), path).unwrap_or_default();
        }
    }
}

/// Remove a file or a tree; that it is not there is fine.
pub(super) fn remove(dir: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => remove_tree(dir, path.as_ref()),
        Err(e) => Err(e.into()),
    }
}

impl Store {
    /// Make something in `tmp` and lock it, before the next command can take it for a left-over.
    fn in_tmp(&self, suffix: &str, make: impl Fn(&str) -> rustix::io::Result<OwnedFd>) -> Result<Temporary> {
        let making = || format!("make a temporary file in {}/{TMP}", self.root.display());
        let _shared = self.lock_tmp(FlockOperation::LockShared).with_context(making)?;
        // A name that there never was: some file systems choose by it where on the disk a folder lies.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.map_or(0, |d| d.as_nanos());
        for attempt in 0..10_000 {
            let path = format!("{TMP}/{}-{now:x}-{attempt}{suffix}", std::process::id());
            match make(&path) {
                Ok(fd) => {
                    let temporary = Temporary { store: Some((self.fd.try_clone()?, path)), fd };
                    rustix::fs::flock(&temporary.fd, FlockOperation::LockExclusive).with_context(making)?;
                    return Ok(temporary);
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e).with_context(making),
            }
        }
        bail!("{}: ten thousand names are taken", making())
    }

    fn lock_tmp(&self, how: FlockOperation) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, TMP, flags, Mode::empty())?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&fd, how))?;
        Ok(fd)
    }

    pub(super) fn temporary_file(&self, suffix: &str) -> Result<Temporary> {
        self.in_tmp(suffix, |path| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(&self.fd, path, flags, Mode::from_raw_mode(0o600))
        })
    }

    /// A file inside the store without a name, or with one in `tmp`.
    pub(super) fn nameless(&self) -> Result<Temporary> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, "blobs", flags, Mode::from_raw_mode(0o600)) {
            Ok(fd) => Ok(Temporary { store: None, fd }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => self.temporary_file(""),
            Err(e) => {
                Err(e).with_context(|| format!("make a temporary file in {}/blobs", self.root.display()))
            }
        }
    }

    /// Something to remove is moved to `tmp` first, so that it is never there in part.
    pub(super) fn discard(&self, path: &str) -> Result<()> {
        let removing = || format!("remove {}/{path}", self.root.display());
        let trash = self.in_tmp("", |place| {
            // The folder is only a place to rename to.
            rustix::fs::mkdirat(&self.fd, place, Mode::from_raw_mode(0o700))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(&self.fd, place, flags, Mode::empty())
        })?;
        let place = format!("{}/x", trash.path().unwrap_or_default());
        match rustix::fs::renameat(&self.fd, path, &self.fd, place) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e).with_context(removing),
        }
        let Some((_, place)) = &trash.store else { return Ok(()) };
        remove(self.fd.as_fd(), place).with_context(removing)
    }

    /// Undo what killed commands left: remove what was not whole, and what got a name but no image.
    pub(super) fn undo_left_overs(&self) -> Result<()> {
        let reading = || format!("read {}/{TMP}", self.root.display());
        let list = || -> Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(self.root.join(TMP)).with_context(reading)? {
                names.push(entry.with_context(reading)?.file_name().to_string_lossy().into_owned());
            }
            Ok(names)
        };
        if list()?.is_empty() {
            return Ok(());
        }
        // While somebody makes something there, it is too early to judge.
        let Ok(alone) = self.lock_tmp(FlockOperation::NonBlockingLockExclusive) else { return Ok(()) };
        let mut left = Vec::new();
        for name in list()? {
            let path = format!("{TMP}/{name}");
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let Ok(fd) = rustix::fs::openat(&self.fd, &path, flags, Mode::empty()) else { continue };
            if rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() {
                left.push(Temporary { store: Some((self.fd.try_clone()?, path)), fd });
            }
        }
        drop(alone);
        for mut temporary in left {
            if temporary.path().is_some_and(|path| path.ends_with(JOURNAL))
                && !self.undo(&temporary).with_context(|| {
                    format!(
                        "undo what {}/{} tells",
                        self.root.display(),
                        temporary.path().unwrap_or_default()
                    )
                })?
            {
                // Somebody adds right now: it stays for the next command.
                temporary.store = None;
            }
        }
        Ok(())
    }

    /// Remove what a journal names, unless an image leads to it. Whether that could be done now.
    fn undo(&self, journal: &Temporary) -> Result<bool> {
        let Some(_alone) = self.try_lock_file(LOCK)? else { return Ok(false) };
        let mut bytes = Vec::new();
        File::from(journal.fd.try_clone()?).take(JOURNAL_MOST).read_to_end(&mut bytes)?;
        // One that was not written to its end named nothing that was made.
        let Ok(told) = serde_json::from_slice::<Journal>(&bytes) else { return Ok(true) };
        let mut damaged = false;
        let reached = self.reachable(|_, _| damaged = true)?;
        if damaged {
            // What the damaged image needs is not known; `check` is to speak of that.
            return Ok(false);
        }
        for blob in told.blobs.iter().filter(|b| !reached.blobs.contains(b)) {
            self.remove_blob(blob)?;
        }
        let mounted = self.kept_layers()?;
        let needed = |l: &&Digest| reached.layers.contains(*l) || mounted.contains(l);
        for layer in told.layers.iter().filter(|l| !needed(l)) {
            self.discard(&Self::layer_path(layer))?;
        }
        Ok(true)
    }

    /// Begin to add something.
    pub fn begin(&self) -> Result<Addition<'_>> {
        Ok(Addition {
            store: self,
            _lease: self.lease()?,
            blobs: Vec::new(),
            layers: Vec::new(),
            holders: Vec::new(),
            images: Vec::new(),
            held: Mutex::default(),
        })
    }
}

/// Something that is being added; dropped, it leaves nothing.
#[derive(Debug)]
pub struct Addition<'a> {
    store: &'a Store,
    _lease: Lease,
    blobs: Vec<Blob>,
    layers: Vec<(Digest, Place, Layer)>,
    holders: Vec<(Digest, Holder)>,
    images: Vec<(Option<Reference>, Descriptor)>,
    held: Mutex<Vec<Tree>>,
}

/// A blob that is whole, but has no name yet.
#[derive(Debug)]
pub struct Blob {
    temporary: Temporary,
    digest: Digest,
    size: u64,
    /// What it is made of, if that is all that there is of it.
    parts: Option<Parts>,
}

impl Blob {
    pub(super) fn whole(temporary: Temporary, digest: Digest, size: u64) -> Blob {
        Blob { temporary, digest, size, parts: None }
    }

    /// `temporary` is a record of its parts.
    pub(super) fn spliced(temporary: Temporary, digest: Digest, size: u64, parts: Parts) -> Blob {
        Blob { temporary, digest, size, parts: Some(parts) }
    }

    pub(super) fn temporary(&self) -> &Temporary {
        &self.temporary
    }

    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The content, from its beginning; the position is shared.
    pub fn file(&self, store: &Store) -> Result<File> {
        if let Some(parts) = &self.parts {
            return store.assembled(parts, &self.digest)?.file(store);
        }
        let mut file = File::from(self.temporary.fd.try_clone().context("read a temporary file")?);
        file.rewind().context("read a temporary file")?;
        Ok(file)
    }
}

/// Where the tree of a new layer lies.
#[derive(Debug)]
enum Place {
    Tree(Tree),
    /// Elsewhere in the store.
    Kept(String),
}

/// A folder for a layer that is being unpacked.
#[derive(Debug)]
pub struct Tree(Temporary);

impl Tree {
    /// In the store.
    pub(super) fn path(&self) -> Option<&str> {
        self.0.path()
    }

    pub(super) fn renamed(&mut self) {
        self.0.renamed();
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl Addition<'_> {
    pub fn store(&self) -> &Store {
        self.store
    }

    /// Write a new blob. Writers may work side by side.
    pub fn writer(&self, algorithm: Algorithm) -> Result<Writer> {
        let temporary = self.store.nameless()?;
        let file = File::from(temporary.fd.try_clone().context("write a blob")?);
        Ok(Writer { temporary, file, hasher: Hasher::new(algorithm), size: 0, most: None, sent: 0 })
    }

    /// Write the blob that `descriptor` promises: other content is refused, and no more than its size is written.
    pub fn writer_of(&self, descriptor: &Descriptor) -> Result<Writer> {
        let mut writer = self.writer(descriptor.digest.algorithm())?;
        writer.most = Some(descriptor.size);
        Ok(writer)
    }

    /// A folder to unpack a layer in.
    pub fn tree(&self) -> Result<Tree> {
        let store = self.store;
        let temporary = store.in_tmp("", |path| {
            rustix::fs::mkdirat(&store.fd, path, Mode::from_raw_mode(0o700))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let tree = rustix::fs::openat(&store.fd, path, flags, Mode::empty())?;
            // It is a root file system's, in a store that is closed to others.
            rustix::fs::fchmod(&tree, Mode::from_raw_mode(0o755))?;
            Ok(tree)
        })?;
        Ok(Tree(temporary))
    }

    /// A small tree that each command of a build has below all others; `fill` makes it, the first time.
    pub fn stubs(&self, name: &str, fill: impl FnOnce(BorrowedFd<'_>) -> Result<()>) -> Result<OwnedFd> {
        let (store, path) = (self.store, format!("{STUBS}/{name}"));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = || rustix::fs::openat(&store.fd, &path, flags, Mode::empty());
        if let Ok(tree) = open() {
            return Ok(tree);
        }
        let mut tree = self.tree()?;
        fill(tree.as_fd())?;
        store.make(STUBS)?;
        let from = tree.path().unwrap_or_default();
        let making = || format!("make {}/{path}", store.root.display());
        match rustix::fs::renameat(&store.fd, from, &store.fd, &path) {
            Ok(()) => tree.renamed(),
            // Another build was first.
            Err(Errno::EXIST | Errno::NOTEMPTY) => {}
            Err(e) => return Err(e).with_context(making),
        }
        open().with_context(making)
    }

    /// Where a tree lies, for who needs a path.
    pub fn place(&self, tree: &Tree) -> Result<PathBuf> {
        let path = tree.path().context("the tree has another name now")?;
        Ok(self.store.root.canonicalize()?.join(path))
    }

    /// A tree stays as long as this does.
    pub fn hold(&self, tree: Tree) -> Result<OwnedFd> {
        let fd = tree.as_fd().try_clone_to_owned()?;
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(tree);
        Ok(fd)
    }

    /// A blob is part of this.
    pub fn add(&mut self, blob: Blob) {
        self.blobs.push(blob);
    }

    /// A small blob is part of this.
    pub fn add_bytes(&mut self, bytes: &[u8]) -> Result<Digest> {
        let mut writer = self.writer(Algorithm::Sha256)?;
        writer.write_all(bytes).context("write a blob")?;
        let blob = writer.finish();
        let digest = blob.digest.clone();
        self.add(blob);
        Ok(digest)
    }

    /// Whether a blob is part of this already.
    pub fn brings(&self, digest: &Digest) -> bool {
        self.blobs.iter().any(|b| b.digest == *digest)
    }

    /// Whether an unpacked layer is part of this already.
    pub fn brings_layer(&self, diff_id: &Digest) -> bool {
        self.layers.iter().any(|(known, ..)| known == diff_id)
    }

    /// A layer, unpacked in `tree`, is part of this.
    pub fn add_layer(&mut self, diff_id: Digest, tree: Tree, layer: Layer) {
        self.layers.push((diff_id, Place::Tree(tree), layer));
    }

    /// The same of a tree that is kept in the store until then.
    pub(super) fn add_moving(&mut self, diff_id: Digest, path: String, layer: Layer) {
        self.layers.push((diff_id, Place::Kept(path), layer));
    }

    /// A blob was seen to hold a layer.
    pub fn add_holder(&mut self, diff_id: Digest, holder: Holder) {
        self.holders.push((diff_id, holder));
    }

    /// An image is part of this: `name` leads to `target`, which is in the store or part of this.
    pub fn name(&mut self, name: Option<Reference>, target: Descriptor) {
        self.images.push((name, target));
    }

    /// Make all of it last: blobs and layers first, names last. What was there already stays.
    pub fn commit(mut self) -> Result<()> {
        let store = self.store;
        let mut journal = Journal::default();
        self.blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
        self.blobs.dedup_by(|a, b| a.digest == b.digest);
        for blob in &self.blobs {
            if !store.has(&blob.digest)? {
                journal.blobs.push(blob.digest.clone());
            }
        }
        for digest in self.layers.iter().map(|(l, ..)| l).chain(self.holders.iter().map(|(l, _)| l)) {
            if !journal.layers.contains(digest) && !store.exists(&Store::layer_path(digest))? {
                journal.layers.push(digest.clone());
            }
        }
        let told = if journal.blobs.is_empty() && journal.layers.is_empty() && self.layers.is_empty() {
            None
        } else {
            let told = store.temporary_file(JOURNAL)?;
            let bytes = serde_json::to_vec(&journal)?;
            File::from(told.fd.try_clone()?).write_all(&bytes).context("write a journal")?;
            store.sync()?;
            Some(told)
        };
        let done = self.commit_told(told.is_some());
        // What got a name already is taken back, by the next command.
        if let (Err(_), Some(told)) = (&done, told) {
            told.leave();
        }
        done
    }

    fn commit_told(mut self, told: bool) -> Result<()> {
        let store = self.store;
        if self.blobs.iter().any(|blob| blob.parts.is_some()) {
            store.make(spliced::SPLICED)?;
        }
        for blob in &self.blobs {
            blob.link(store).with_context(|| format!("name blob {}", blob.digest))?;
        }
        // A tree and what is said of it belong together, whoever else brings the same layer.
        let _lock = store.lock_file(INDEX_LOCK, FlockOperation::LockExclusive)?;
        for (diff_id, tree, layer) in &mut self.layers {
            store.name_tree(diff_id, tree, layer)?;
        }
        store.record_holders(&self.holders)?;
        if told {
            store.sync()?;
        }
        for (name, target) in &self.images {
            ensure!(
                store.has(&target.digest)?,
                "{}: {} is not in the store",
                name.as_ref().map_or("image".to_owned(), Reference::familiar),
                target.digest
            );
        }
        if !self.images.is_empty() {
            store.change_names_locked(|names| {
                for (name, target) in self.images {
                    names.set(name, target);
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl Store {
    fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&self.fd).with_context(|| format!("sync {}", self.root.display()))
    }

    fn name_tree(&self, diff_id: &Digest, place: &mut Place, layer: &Layer) -> Result<()> {
        let from = match place {
            Place::Tree(tree) => tree.path(),
            Place::Kept(path) => Some(&path[..]),
        };
        let Some(from) = from else { return Ok(()) };
        let naming = || format!("name layer {diff_id}");
        // Somebody else was first: the two are the same.
        if self.exists(&Self::tree_path(diff_id))? {
            return Ok(());
        }
        self.make_layer_dir(diff_id)?;
        layer.write(self, diff_id)?;
        match rustix::fs::renameat(&self.fd, from, &self.fd, Self::tree_path(diff_id)) {
            Ok(()) => {
                // Its old name is free, and another's from now on.
                if let Place::Tree(tree) = place {
                    tree.renamed();
                }
                Ok(())
            }
            Err(e) => Err(e).with_context(naming),
        }
    }
}

impl Blob {
    pub(super) fn link(&self, store: &Store) -> rustix::io::Result<()> {
        let path = match self.parts {
            None => Store::blob_path(&self.digest),
            Some(_) => Store::spliced_path(&self.digest),
        };
        let done = match self.temporary.path() {
            None => {
                let nameless = format!("/proc/self/fd/{}", self.temporary.fd.as_raw_fd());
                rustix::fs::linkat(CWD, nameless, &store.fd, &path, AtFlags::SYMLINK_FOLLOW)
            }
            Some(temporary) => rustix::fs::linkat(&store.fd, temporary, &store.fd, &path, AtFlags::empty()),
        };
        match done {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        }
    }
}

/// Takes the bytes of a new blob.
#[derive(Debug)]
pub struct Writer {
    temporary: Temporary,
    file: File,
    hasher: Hasher,
    size: u64,
    most: Option<u64>,
    /// Bytes that are on their way to the disk.
    sent: u64,
}

/// So many bytes are sent to the disk while more come: the barrier at the end has less to wait for.
const AHEAD: u64 = 4 << 20;

impl Writer {
    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// That was all.
    pub fn finish(self) -> Blob {
        Blob::whole(self.temporary, self.hasher.finish(), self.size)
    }

    /// That was all, and it is what `descriptor` promises.
    pub fn finish_as(self, descriptor: &Descriptor) -> Result<Blob> {
        let blob = self.finish();
        if blob.size != descriptor.size {
            bail!("blob {}: {} bytes, expected {}", descriptor.digest, blob.size, descriptor.size);
        }
        if blob.digest != descriptor.digest {
            bail!("blob {}: its content is that of {}", descriptor.digest, blob.digest);
        }
        Ok(blob)
    }
}

impl Write for Writer {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.most.is_some_and(|most| buffer.len() as u64 > most.saturating_sub(self.size)) {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more bytes than were announced"));
        }
        let n = self.file.write(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.size += n as u64;
        if self.size - self.sent >= AHEAD {
            sys::fd::write_behind(self.file.as_fd(), self.sent, self.size - self.sent);
            self.sent = self.size;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
