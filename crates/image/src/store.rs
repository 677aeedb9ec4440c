//! Where are images kept, so that no crash can damage them? One folder, an OCI image layout (image-spec, image-layout.md) that
//! other tools can read, and some locks:
//!
//! ```text
//! <root>/                 0700
//!   oci-layout            {"imageLayoutVersion": "1.0.0"}
//!   index.json            names and what they lead to; replaced by rename, under the lock of index.lock
//!   index.lock            flock: exclusive for whoever replaces index.json
//!   lock                  flock: shared for whoever adds or reads blobs, exclusive for whoever removes any
//!   blobs/sha256/<hex>    manifests, configs, layers as they came; a name is there only when the content is whole,
//!   blobs/sha512/<hex>    verified and on the disk
//!   tmp/                  what is being written where the file system knows no nameless files (O_TMPFILE); each is locked
//!                         by its writer, and removed by the next command once nobody does
//! ```
//!
//! Something new is added in one transaction: blobs are written to nameless files and hashed on the way, one syncfs(2) brings all
//! of them to the disk, then they get their names, then index.json. Whoever is killed before leaves nothing, after that names
//! without an image (which [`Store::sweep`] removes), and never a name whose content is not there. Order of locks: `lock`, then
//! `index.lock`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use report::{Kind, error};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::digest::{Algorithm, Digest, Hasher};
use crate::manifest::{CONFIG_MOST, Config, Descriptor, Document, Index, MANIFEST_MOST, Manifest, OCI_INDEX};
use crate::reference::Reference;

const LAYOUT: &str = "oci-layout";
const LAYOUT_VERSION: &str = "1.0.0";
const INDEX: &str = "index.json";
const INDEX_NEW: &str = "index.json.new";
const INDEX_LOCK: &str = "index.lock";
const LOCK: &str = "lock";
const TMP: &str = "tmp";
/// The annotation that names an image in an index (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Bytes that the index may have: some hundred thousand images.
const INDEX_MOST: u64 = 256 << 20;

/// A store, opened.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    fd: OwnedFd,
}

/// While it lives, nobody removes a blob.
#[derive(Debug)]
pub struct Lease(#[allow(dead_code, reason = "held, not read")] OwnedFd);

/// An image: a name and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub reference: Reference,
    pub target: Descriptor,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

impl Store {
    /// Open the store at `root`; make it if it is not there.
    pub fn open(root: &Path) -> Result<Store> {
        let making = || format!("make the store {}", root.display());
        {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root).with_context(making)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(root, flags, Mode::empty())
            .with_context(|| format!("open the store {}", root.display()))?;
        let store = Store { root: root.to_owned(), fd };
        for dir in ["blobs", "blobs/sha256", "blobs/sha512", TMP] {
            match rustix::fs::mkdirat(&store.fd, dir, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e).with_context(making),
            }
        }
        match store.read_small(LAYOUT, 4096)? {
            Some(bytes) => {
                let path = root.join(LAYOUT);
                let layout: Layout =
                    serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
                ensure!(
                    layout.image_layout_version == LAYOUT_VERSION,
                    "{}: version {:?}, expected {LAYOUT_VERSION}",
                    path.display(),
                    layout.image_layout_version
                );
            }
            None => {
                let layout = Layout { image_layout_version: LAYOUT_VERSION.to_owned() };
                let _lock = store.lock_file(INDEX_LOCK, FlockOperation::LockExclusive)?;
                store.replace(LAYOUT, &serde_json::to_vec(&layout)?)?;
            }
        }
        store.remove_left_overs()?;
        Ok(store)
    }

    /// Where it lies.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Keep blobs from being removed.
    pub fn lease(&self) -> Result<Lease> {
        Ok(Lease(self.lock_file(LOCK, FlockOperation::LockShared)?))
    }

    fn lock_file(&self, name: &str, how: FlockOperation) -> Result<OwnedFd> {
        let locking = || format!("lock {}/{name}", self.root.display());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd =
            rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o600)).with_context(locking)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&fd, how)).with_context(locking)?;
        Ok(fd)
    }

    /// All images, in the order of their names.
    pub fn images(&self) -> Result<Vec<Image>> {
        Ok(self.load_index()?.into_iter().map(|(reference, target)| Image { reference, target }).collect())
    }

    /// The image of that name. `Kind::NotFound` if there is none.
    pub fn image(&self, reference: &Reference) -> Result<Image> {
        match self.load_index()?.remove(reference) {
            Some(target) => Ok(Image { reference: reference.clone(), target }),
            None => Err(error(Kind::NotFound, format!("no image {}", reference.familiar()))),
        }
    }

    fn load_index(&self) -> Result<BTreeMap<Reference, Descriptor>> {
        let path = || self.root.join(INDEX).display().to_string();
        let Some(bytes) = self.read_small(INDEX, INDEX_MOST)? else { return Ok(BTreeMap::new()) };
        let index: Index = serde_json::from_slice(&bytes).with_context(path)?;
        let mut images = BTreeMap::new();
        for (i, mut target) in index.manifests.into_iter().enumerate() {
            let Some(name) = target.annotations.remove(REF_NAME) else {
                bail!("{}: manifests[{i}] has no name", path());
            };
            let reference = name.parse().with_context(|| format!("{}: manifests[{i}]", path()))?;
            images.insert(reference, target);
        }
        Ok(images)
    }

    /// Change the index under its lock.
    fn change_index<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<Reference, Descriptor>) -> Result<T>,
    ) -> Result<T> {
        let _lock = self.lock_file(INDEX_LOCK, FlockOperation::LockExclusive)?;
        let mut images = self.load_index()?;
        let done = change(&mut images)?;
        let manifests = images.into_iter().map(|(reference, mut target)| {
            target.annotations.insert(REF_NAME.to_owned(), reference.to_string());
            target
        });
        let index = Index {
            schema_version: 2,
            media_type: Some(OCI_INDEX.to_owned()),
            artifact_type: None,
            manifests: manifests.collect(),
            subject: None,
            annotations: BTreeMap::new(),
        };
        self.replace(INDEX, &serde_json::to_vec(&index)?)?;
        Ok(done)
    }

    /// Give what `target` leads to a name, or other names; it must be in the store.
    pub fn tag(&self, target: &Descriptor, name: &Reference) -> Result<()> {
        let _lease = self.lease()?;
        ensure!(self.has(&target.digest)?, "{} is not in the store", target.digest);
        self.change_index(|images| {
            images.insert(name.clone(), target.clone());
            Ok(())
        })
    }

    /// Take a name away. `Kind::NotFound` if there is no such image. What it led to stays until [`Store::sweep`].
    pub fn untag(&self, name: &Reference) -> Result<Descriptor> {
        self.change_index(|images| {
            images.remove(name).ok_or_else(|| error(Kind::NotFound, format!("no image {}", name.familiar())))
        })
    }

    /// Write a small file of the store, whole or not at all, and on the disk when this returns. The caller holds the index's lock.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let write = || -> io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let fd = rustix::fs::openat(&self.fd, INDEX_NEW, flags, Mode::from_raw_mode(0o600))?;
            let mut file = File::from(fd);
            file.write_all(bytes)?;
            file.sync_data()?;
            rustix::fs::renameat(&self.fd, INDEX_NEW, &self.fd, name)?;
            Ok(rustix::fs::fsync(&self.fd)?)
        };
        write().with_context(|| format!("write {}/{name}", self.root.display()))
    }

    fn read_small(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let reading = || format!("read {}/{name}", self.root.display());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e).with_context(reading),
        };
        let mut bytes = Vec::new();
        File::from(fd).take(most + 1).read_to_end(&mut bytes).with_context(reading)?;
        ensure!(bytes.len() as u64 <= most, "{}/{name}: more than {most} bytes", self.root.display());
        Ok(Some(bytes))
    }

    /// Remove what killed writers left.
    fn remove_left_overs(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.root.join(TMP)).context("read the store's temporary files")? {
            let path = entry.context("read the store's temporary files")?.path();
            let Ok(file) = File::open(&path) else { continue };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                // Somebody else may have done it.
                std::fs::remove_file(&path).unwrap_or_default();
            }
        }
        Ok(())
    }

    // Blobs

    fn blob_path(digest: &Digest) -> String {
        format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
    }

    /// Whether that blob is in the store.
    pub fn has(&self, digest: &Digest) -> Result<bool> {
        match rustix::fs::accessat(
            &self.fd,
            Self::blob_path(digest),
            rustix::fs::Access::EXISTS,
            AtFlags::empty(),
        ) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e).with_context(|| format!("look for blob {digest}")),
        }
    }

    /// Open a blob; what it holds was verified when it was added. `Kind::NotFound` if it is not there.
    pub fn blob(&self, digest: &Digest) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(&self.fd, Self::blob_path(digest), flags, Mode::empty()) {
            Ok(fd) => Ok(fd.into()),
            Err(Errno::NOENT) => Err(error(Kind::NotFound, format!("blob {digest} is not in the store"))),
            Err(e) => Err(e).with_context(|| format!("open blob {digest}")),
        }
    }

    /// The bytes of a small blob, verified once more.
    pub fn blob_bytes(&self, descriptor: &Descriptor, most: u64) -> Result<Vec<u8>> {
        let digest = &descriptor.digest;
        let mut bytes = Vec::new();
        self.blob(digest)?
            .take(most + 1)
            .read_to_end(&mut bytes)
            .with_context(|| format!("read blob {digest}"))?;
        ensure!(bytes.len() as u64 <= most, "blob {digest}: more than {most} bytes");
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        if bytes.len() as u64 != descriptor.size || hasher.finish() != *digest {
            bail!("blob {digest}: its content is another one");
        }
        Ok(bytes)
    }

    /// The manifest or index that `descriptor` leads to.
    pub fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        let bytes = self.blob_bytes(descriptor, MANIFEST_MOST)?;
        Document::parse(&descriptor.media_type, &bytes).with_context(|| descriptor.digest.to_string())
    }

    /// The config of an image.
    pub fn config(&self, manifest: &Manifest) -> Result<Config> {
        let bytes = self.blob_bytes(&manifest.config, CONFIG_MOST)?;
        Config::parse(&bytes, manifest.layers.len()).with_context(|| manifest.config.digest.to_string())
    }

    /// Begin to add something.
    pub fn begin(&self) -> Result<Addition<'_>> {
        Ok(Addition { store: self, _lease: self.lease()?, blobs: Vec::new(), images: Vec::new() })
    }

    /// A file inside the store without a name, or with one that goes when the next command finds it unlocked.
    fn temporary(&self) -> Result<Temporary> {
        let making = || format!("make a temporary file in {}", self.root.display());
        let mode = Mode::from_raw_mode(0o600);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, "blobs", flags, mode) {
            Ok(fd) => return Ok(Temporary { file: fd.into(), path: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
            Err(e) => return Err(e).with_context(making),
        }
        for attempt in 0..1000 {
            let path = self.root.join(TMP).join(format!("{}-{attempt}", std::process::id()));
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            match rustix::fs::open(&path, flags, mode) {
                Ok(fd) => {
                    rustix::fs::flock(&fd, FlockOperation::LockExclusive).with_context(making)?;
                    return Ok(Temporary { file: fd.into(), path: Some(path) });
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e).with_context(making),
            }
        }
        bail!("{}: a thousand names are taken", making())
    }

    // Removal

    /// All blobs: digest, bytes, when they came.
    pub fn blobs(&self) -> Result<Vec<(Digest, u64, SystemTime)>> {
        let mut found = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let dir = self.root.join("blobs").join(algorithm.name());
            let reading = || format!("read {}", dir.display());
            for entry in std::fs::read_dir(&dir).with_context(reading)? {
                let entry = entry.with_context(reading)?;
                let name = entry.file_name();
                let Ok(digest) = format!("{}:{}", algorithm.name(), name.to_string_lossy()).parse() else {
                    continue;
                };
                let data = match entry.metadata() {
                    Ok(data) => data,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(e).with_context(reading),
                };
                found.push((digest, data.len(), data.modified().with_context(reading)?));
            }
        }
        Ok(found)
    }

    /// Everything that images lead to, whether it is there or not. What cannot be read is passed to `damaged`.
    pub fn reachable(&self, mut damaged: impl FnMut(&Image, anyhow::Error)) -> Result<BTreeSet<Digest>> {
        let mut reached = BTreeSet::new();
        for image in self.images()? {
            let mut open = vec![image.target.clone()];
            while let Some(descriptor) = open.pop() {
                if !reached.insert(descriptor.digest.clone())
                    || !(descriptor.is_index() || descriptor.is_manifest())
                {
                    continue;
                }
                match self.document(&descriptor) {
                    Ok(Document::Index(index)) => open.extend(index.manifests),
                    Ok(Document::Manifest(manifest)) => {
                        open.extend(manifest.layers);
                        open.push(manifest.config);
                    }
                    // Of another platform, and never fetched.
                    Err(e) if report::kind(&e) == Some(Kind::NotFound) && descriptor != image.target => {}
                    Err(e) => damaged(&image, e),
                }
            }
        }
        Ok(reached)
    }

    /// Remove the blobs that no image leads to: how many, and how many bytes. Waits until nobody adds or reads. An image that
    /// cannot be read is an error, and nothing is removed: what it needs would not be known.
    pub fn sweep(&self) -> Result<(usize, u64)> {
        let _alone = self.lock_file(LOCK, FlockOperation::LockExclusive)?;
        let mut first = None;
        let reached = self.reachable(|image, e| {
            first.get_or_insert(e.context(format!("image {}", image.reference.familiar())));
        })?;
        if let Some(e) = first {
            return Err(e);
        }
        let (mut count, mut bytes) = (0, 0);
        for (digest, size, _) in self.blobs()? {
            if reached.contains(&digest) {
                continue;
            }
            rustix::fs::unlinkat(&self.fd, Self::blob_path(&digest), AtFlags::empty())
                .with_context(|| format!("remove blob {digest}"))?;
            count += 1;
            bytes += size;
        }
        Ok((count, bytes))
    }
}

#[derive(Debug)]
struct Temporary {
    file: File,
    /// Without O_TMPFILE.
    path: Option<PathBuf>,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // It may have become a blob.
            std::fs::remove_file(path).unwrap_or_default();
        }
    }
}

/// Something that is being added; dropped, it leaves nothing.
#[derive(Debug)]
pub struct Addition<'a> {
    store: &'a Store,
    _lease: Lease,
    blobs: Vec<Blob>,
    images: Vec<(Reference, Descriptor)>,
}

/// A blob that is whole, but has no name yet.
#[derive(Debug)]
pub struct Blob {
    temporary: Temporary,
    digest: Digest,
    size: u64,
}

impl Blob {
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The content, from its beginning; the position is shared.
    pub fn file(&mut self) -> Result<&mut File> {
        use std::io::Seek;
        self.temporary.file.rewind().context("rewind a temporary file")?;
        Ok(&mut self.temporary.file)
    }
}

impl Addition<'_> {
    /// Write a new blob. Writers may work side by side.
    pub fn writer(&self, algorithm: Algorithm) -> Result<Writer> {
        Ok(Writer { temporary: self.store.temporary()?, hasher: Hasher::new(algorithm), size: 0, most: None })
    }

    /// Write the blob that `descriptor` promises: other content is refused, and no more than its size is written.
    pub fn writer_of(&self, descriptor: &Descriptor) -> Result<Writer> {
        let mut writer = self.writer(descriptor.digest.algorithm())?;
        writer.most = Some(descriptor.size);
        Ok(writer)
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

    /// An image is part of this: `name` leads to `target`, which is in the store or part of this.
    pub fn name(&mut self, name: Reference, target: Descriptor) {
        self.images.push((name, target));
    }

    /// Make all of it last: blobs first, names last. What was there already stays.
    pub fn commit(self) -> Result<()> {
        let store = self.store;
        if !self.blobs.is_empty() {
            rustix::fs::syncfs(&store.fd).with_context(|| format!("sync {}", store.root.display()))?;
        }
        let mut touched = BTreeSet::new();
        for mut blob in self.blobs {
            let path = Store::blob_path(&blob.digest);
            let named = match blob.temporary.path.take() {
                None => {
                    let nameless = format!("/proc/self/fd/{}", blob.temporary.file.as_raw_fd());
                    rustix::fs::linkat(CWD, nameless, &store.fd, &path, AtFlags::SYMLINK_FOLLOW)
                }
                Some(temporary) => {
                    let done = rustix::fs::linkat(CWD, &temporary, &store.fd, &path, AtFlags::empty());
                    blob.temporary.path = Some(temporary);
                    done
                }
            };
            match named {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e).with_context(|| format!("name blob {}", blob.digest)),
            }
            touched.insert(blob.digest.algorithm());
        }
        for algorithm in touched {
            let dir = format!("blobs/{}", algorithm.name());
            let fd = rustix::fs::openat(&store.fd, &dir, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .with_context(|| format!("open {}/{dir}", store.root.display()))?;
            rustix::fs::fsync(fd.as_fd()).with_context(|| format!("sync {}/{dir}", store.root.display()))?;
        }
        if !self.images.is_empty() {
            for (name, target) in &self.images {
                ensure!(store.has(&target.digest)?, "{name}: {} is not in the store", target.digest);
            }
            store.change_index(|images| {
                images.extend(self.images);
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Takes the bytes of a new blob.
#[derive(Debug)]
pub struct Writer {
    temporary: Temporary,
    hasher: Hasher,
    size: u64,
    most: Option<u64>,
}

impl Writer {
    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// That was all.
    pub fn finish(self) -> Blob {
        Blob { temporary: self.temporary, digest: self.hasher.finish(), size: self.size }
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
        let n = self.temporary.file.write(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::manifest::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        (dir, store)
    }

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    /// An image of one layer, whose content is `text`.
    fn add(store: &Store, name: &str, text: &str) -> Descriptor {
        let mut addition = store.begin().unwrap();
        let layer = Descriptor::of(OCI_LAYER, text.as_bytes());
        let mut writer = addition.writer_of(&layer).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        let blob = writer.finish_as(&layer).unwrap();
        addition.add(blob);
        let config = json!({"architecture": "amd64", "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [layer.digest]}})
        .to_string();
        addition.add_bytes(config.as_bytes()).unwrap();
        let config = Descriptor::of(OCI_CONFIG, config.as_bytes());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
        addition.add_bytes(manifest.as_bytes()).unwrap();
        let target = Descriptor::of(OCI_MANIFEST, manifest.as_bytes());
        addition.name(reference(name), target.clone());
        addition.commit().unwrap();
        target
    }

    #[test]
    fn what_was_committed_is_there_for_everyone() {
        let (_dir, store) = store();
        let target = add(&store, "a", "layer");
        let other = Store::open(store.root()).unwrap();
        assert_eq!(
            other.images().unwrap(),
            [Image { reference: reference("a:latest"), target: target.clone() }]
        );
        let Document::Manifest(manifest) = other.document(&target).unwrap() else { panic!() };
        assert_eq!(other.config(&manifest).unwrap().rootfs.diff_ids, [Digest::of(b"layer")]);
        let mut text = String::new();
        other.blob(&manifest.layers[0].digest).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "layer");
    }

    #[test]
    fn what_was_not_committed_leaves_nothing() {
        let (_dir, store) = store();
        let mut addition = store.begin().unwrap();
        let digest = addition.add_bytes(b"x").unwrap();
        assert!(!store.has(&digest).unwrap());
        drop(addition);
        assert!(store.blobs().unwrap().is_empty());
        assert!(std::fs::read_dir(store.root().join(TMP)).unwrap().next().is_none());
    }

    #[test]
    fn other_bytes_than_promised_are_refused() {
        let (_dir, store) = store();
        let addition = store.begin().unwrap();
        let promised = Descriptor::of(OCI_LAYER, b"good");
        for (content, reason) in [("evil", "its content is that of"), ("goo", "3 bytes, expected 4")] {
            let mut writer = addition.writer_of(&promised).unwrap();
            writer.write_all(content.as_bytes()).unwrap();
            let error = writer.finish_as(&promised).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let mut writer = addition.writer_of(&promised).unwrap();
        writer.write_all(b"good").unwrap();
        assert!(writer.write_all(b"!").is_err());
    }

    #[test]
    fn names_come_and_go_and_only_the_unnamed_is_swept() {
        let (_dir, store) = store();
        let first = add(&store, "a", "one");
        add(&store, "b", "two");
        store.tag(&first, &reference("c:1")).unwrap();
        store.untag(&reference("a")).unwrap();
        assert_eq!(report::kind(&store.untag(&reference("a")).unwrap_err()), Some(Kind::NotFound));
        assert_eq!(store.sweep().unwrap(), (0, 0));
        store.untag(&reference("c:1")).unwrap();
        let (count, bytes) = store.sweep().unwrap();
        assert!(count == 3 && bytes > 3, "{count} {bytes}");
        assert!(!store.has(&first.digest).unwrap());
        assert_eq!(store.images().unwrap().len(), 1);
        assert!(store.image(&reference("b")).is_ok());
        assert!(store.tag(&first, &reference("d")).is_err());
    }

    #[test]
    fn nothing_is_swept_while_an_image_cannot_be_read() {
        let (_dir, store) = store();
        let target = add(&store, "a", "one");
        let path = store.root().join(Store::blob_path(&target.digest));
        std::fs::write(&path, "{}").unwrap();
        let error = format!("{:#}", store.sweep().unwrap_err());
        assert!(error.contains("image a:latest") && error.contains("its content is another one"), "{error}");
        assert_eq!(store.blobs().unwrap().len(), 3);
    }

    #[test]
    fn what_a_killed_writer_left_goes_and_what_is_being_written_stays() {
        let (_dir, store) = store();
        let tmp = store.root().join(TMP);
        std::fs::write(tmp.join("1-0"), "left").unwrap();
        let busy = File::create(tmp.join("2-0")).unwrap();
        rustix::fs::flock(&busy, FlockOperation::LockExclusive).unwrap();
        Store::open(store.root()).unwrap();
        assert!(!tmp.join("1-0").exists());
        assert!(tmp.join("2-0").exists());
    }

    #[test]
    fn many_add_at_once_and_none_is_lost() {
        let (_dir, store) = store();
        std::thread::scope(|s| {
            for n in 0..8 {
                let store = &store;
                s.spawn(move || add(store, &format!("image{n}"), &format!("layer {}", n % 3)));
            }
        });
        assert_eq!(store.images().unwrap().len(), 8);
        assert_eq!(store.sweep().unwrap(), (0, 0));
    }

    #[test]
    fn a_store_of_another_version_or_a_damaged_index_is_told_by_its_path() {
        let (_dir, store) = store();
        std::fs::write(store.root().join(INDEX), "{").unwrap();
        let error = format!("{:#}", store.images().unwrap_err());
        assert!(error.contains("index.json"), "{error}");
        std::fs::write(store.root().join(LAYOUT), r#"{"imageLayoutVersion": "9"}"#).unwrap();
        let error = format!("{:#}", Store::open(store.root()).unwrap_err());
        assert!(error.contains("version \"9\""), "{error}");
    }
}
