//! Where are images kept, so that no crash can damage them? One folder, an OCI image layout (image-spec, image-layout.md) that
//! other tools can read, and some locks:
//!
//! ```text
//! <root>/                 0700
//!   oci-layout            {"imageLayoutVersion": "1.0.0"}
//!   index.json            names and what they lead to; replaced by rename, under the lock of index.lock
//!   index.lock            flock: exclusive for whoever replaces index.json or a record of a layer
//!   lock                  flock: shared for whoever adds or reads blobs, exclusive for whoever removes any
//!   blobs/sha256/<hex>    manifests, configs, layers as they came; a name is there only when the content is whole,
//!   blobs/sha512/<hex>    verified and on the disk
//!   spliced/<blob>        a layer of a build that is almost the one before: what is new in it, and where the rest stands in that
//!                         blob; it becomes a blob when it is read
//!   layers/<diff id>/     a layer, whatever the blobs that hold it:
//!     blobs.json          the blobs that were seen to hold it, and how they were compressed
//!     layer.json          bytes and entries of the tree
//!     tree/               unpacked, in the form that overlayfs stacks; there only when it is whole and on the disk
//!   steps/<key>/          what a step of a build came to: `step.json`, and the tree of its layer until an image has that
//!   steps.lock            flock: exclusive for whoever replaces records of steps
//!   stubs/                trees for builds that only have what is mounted on
//!   containers/           a file for each working container: what it needs; a folder NAME.mount for one that is mounted
//!   mounts/               a record for each mount of an image, and the folders of those that have none of their own
//!   tmp/                  what is not whole yet: trees, blobs where the file system knows no nameless files (O_TMPFILE), and
//!                         journals; each is locked by its writer, and undone by the next command once nobody does
//! ```
//!
//! Something new is added in one transaction: blobs are written to nameless files and hashed on the way, layers unpacked in
//! `tmp`; then a journal tells what is about to get a name, one syncfs(2) brings all of it to the disk, blobs and trees get their
//! names, then index.json is replaced, and the journal removed. Whoever is killed before that leaves nothing or what the journal
//! names, which the next command removes unless an image leads to it; and never a name whose content is not there. Order of
//! locks: `lock`, then `index.lock`.

mod addition;
mod changing;
mod check;
mod endpoint;
mod layers;
mod mounts;
mod names;
mod pins;
mod spliced;
mod steps;
mod sweep;
mod usage;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use report::{Kind, error};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub use addition::{Addition, Blob, Tree, Writer};
pub use check::Damage;
pub use endpoint::{Reading, Receiving, Unpack};
pub use layers::{Holder, Layer};
pub use mounts::Mounted;
pub use names::Image;
pub use pins::Pin;
pub use spliced::{Parts, Splicing};
pub use steps::{Archive, Kept, Step};
pub use sweep::{Freed, Reached, Wait};
pub use usage::{ImageUsage, Part, Usage};

use crate::digest::{Algorithm, Digest, Hasher};
use crate::manifest::{CONFIG_MOST, Config, Descriptor, Document, MANIFEST_MOST, Manifest};

const LAYOUT: &str = "oci-layout";
const LAYOUT_VERSION: &str = "1.0.0";
const INDEX_LOCK: &str = "index.lock";
const LOCK: &str = "lock";
const TMP: &str = "tmp";
const DIRS: [&str; 7] =
    ["blobs", "blobs/sha256", "blobs/sha512", "layers", "layers/sha256", "layers/sha512", TMP];

/// A store, opened.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    fd: OwnedFd,
}

/// While it lives, nobody removes a blob or a layer.
#[derive(Debug)]
pub struct Lease(#[allow(dead_code, reason = "held, not read")] OwnedFd);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

impl Store {
    /// Open the store at `root`; make it if it is not there; undo what killed commands left.
    pub fn open(root: &Path) -> Result<Store> {
        let making = || format!("make the store {}", root.display());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || rustix::fs::open(root, flags, Mode::empty());
        let fd = match open() {
            Err(Errno::NOENT) => {
                use std::os::unix::fs::DirBuilderExt;
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root).with_context(making)?;
                open()
            }
            other => other,
        };
        let fd = fd.with_context(|| format!("open the store {}", root.display()))?;
        let store = Store { root: root.to_owned(), fd };
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
            // It is written last, so that where it is the folders are.
            None => {
                let _lock = store.lock_file(INDEX_LOCK, FlockOperation::LockExclusive)?;
                for dir in DIRS {
                    match rustix::fs::mkdirat(&store.fd, dir, Mode::from_raw_mode(0o700)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(e) => return Err(e).with_context(making),
                    }
                }
                store.spread();
                let layout = Layout { image_layout_version: LAYOUT_VERSION.to_owned() };
                store.replace(LAYOUT, &serde_json::to_vec(&layout)?)?;
            }
        }
        store.undo_left_overs()?;
        Ok(store)
    }

    /// Trees have nothing to do with each other: ext4 and its like are told to keep them apart. In one place, each new file would be
    /// looked for a free inode among all that were removed there lately, which takes longer than all else.
    fn spread(&self) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(tmp) = rustix::fs::openat(&self.fd, TMP, flags, Mode::empty())
            && let Ok(now) = rustix::fs::ioctl_getflags(&tmp)
        {
            // Others know no such thing.
            let topdir = rustix::fs::IFlags::TOPDIR;
            rustix::fs::ioctl_setflags(&tmp, now | topdir).unwrap_or_default();
        }
    }

    /// Where it lies.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The same, as a descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Keep blobs and layers from being removed.
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

    /// As [`Store::lock_file`], but `None` if it would have to wait.
    fn try_lock_file(&self, name: &str) -> Result<Option<OwnedFd>> {
        match self.lock_file(name, FlockOperation::NonBlockingLockExclusive) {
            Ok(fd) => Ok(Some(fd)),
            Err(e) if e.downcast_ref::<Errno>() == Some(&Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Write a small file of the store, whole or not at all, and on the disk when this returns. The caller holds the index's lock.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let write = || -> io::Result<()> {
            self.write_new(name, bytes)?.sync_data()?;
            rustix::fs::renameat(&self.fd, format!("{name}.new"), &self.fd, name)?;
            Ok(rustix::fs::fsync(&self.fd)?)
        };
        write().with_context(|| format!("write {}/{name}", self.root.display()))
    }

    fn write_new(&self, name: &str, bytes: &[u8]) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&self.fd, format!("{name}.new"), flags, Mode::from_raw_mode(0o600))?;
        let mut file = File::from(fd);
        file.write_all(bytes)?;
        Ok(file)
    }

    fn read_small(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let reading = || format!("read {}/{name}", self.root.display());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e).with_context(reading),
        };
        let mut bytes = Vec::with_capacity(1024);
        File::from(fd).take(most + 1).read_to_end(&mut bytes).with_context(reading)?;
        ensure!(bytes.len() as u64 <= most, "{}/{name}: more than {most} bytes", self.root.display());
        Ok(Some(bytes))
    }

    fn exists(&self, path: &str) -> Result<bool> {
        match rustix::fs::accessat(&self.fd, path, rustix::fs::Access::EXISTS, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(e) => Err(e).with_context(|| format!("look for {}/{path}", self.root.display())),
        }
    }

    // Blobs

    fn blob_path(digest: &Digest) -> String {
        format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
    }

    /// Whether that blob is in the store.
    pub fn has(&self, digest: &Digest) -> Result<bool> {
        Ok(self.exists(&Self::blob_path(digest))? || self.exists(&Self::spliced_path(digest))?)
    }

    /// Open a blob; what it holds was verified when it was added. `Kind::NotFound` if it is not there.
    pub fn blob(&self, digest: &Digest) -> Result<File> {
        if let Some(file) = self.open_blob(digest)? {
            return Ok(file);
        }
        if let Some(file) = self.assemble(digest)? {
            return Ok(file);
        }
        // Another may have made it whole meanwhile.
        let gone = || error(Kind::NotFound, format!("blob {digest} is not in the store"));
        self.open_blob(digest)?.ok_or_else(gone)
    }

    fn open_blob(&self, digest: &Digest) -> Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(&self.fd, Self::blob_path(digest), flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("open blob {digest}")),
        }
    }

    /// The bytes of a small blob, verified once more.
    pub fn blob_bytes(&self, descriptor: &Descriptor, most: u64) -> Result<Vec<u8>> {
        let digest = &descriptor.digest;
        ensure!(descriptor.size <= most, "blob {digest}: more than {most} bytes");
        // With room behind the end, where the end is found.
        let mut bytes = Vec::with_capacity(descriptor.size as usize + 64);
        self.blob(digest)?
            .take(descriptor.size + 1)
            .read_to_end(&mut bytes)
            .with_context(|| format!("read blob {digest}"))?;
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

    /// All blobs: digest, bytes, when they came.
    pub fn blobs(&self) -> Result<Vec<(Digest, u64, SystemTime)>> {
        let mut found: Vec<(Digest, u64, SystemTime)> = Vec::new();
        let folders = Algorithm::ALL.map(|a| (self.root.join("blobs").join(a.name()), Some(a)));
        for (dir, algorithm) in folders.into_iter().chain([(self.root.join(spliced::SPLICED), None)]) {
            let reading = || format!("read {}", dir.display());
            let entries = match std::fs::read_dir(&dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound && algorithm.is_none() => continue,
                other => other.with_context(reading)?,
            };
            for entry in entries {
                let entry = entry.with_context(reading)?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let text = match algorithm {
                    Some(algorithm) => format!("{}:{name}", algorithm.name()),
                    None => name.replacen('-', ":", 1),
                };
                let Ok(digest) = text.parse() else { continue };
                if algorithm.is_none() && found.iter().any(|(known, ..)| *known == digest) {
                    continue;
                }
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
}

#[cfg(test)]
mod tests;
