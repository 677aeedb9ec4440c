//! OCI image layouts (image-spec, image-layout.md), in folders and in archives.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use report::{Kind, error};
use rustix::fs::FlockOperation;

use super::files::{Files, blob_name};
use crate::digest::{Algorithm, Digest, Hashing};
use crate::layer::tar::{Header, Kind as Entry, Writer as Tar};
use crate::manifest::{Descriptor, Index, MANIFEST_MOST};
use crate::temporary::{Replacement, Spool};
use crate::transfer::{Source, Target};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const INDEX_MOST: u64 = 64 << 20;
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An image of a layout, to be read.
#[derive(Debug)]
pub struct Reading<F> {
    files: F,
    root: Descriptor,
}

/// All images of a layout: names and what they lead to.
pub fn images(files: &impl Files) -> Result<Vec<(Option<String>, Descriptor)>> {
    let at = |name: &str| format!("{}: {name}", files.title());
    let bytes = files.small("index.json", INDEX_MOST)?;
    let index: Index = serde_json::from_slice(&bytes).with_context(|| at("index.json"))?;
    ensure!(index.schema_version == 2, "{}: schemaVersion is not 2", at("index.json"));
    let name =
        |d: &Descriptor| d.annotations.get(CONTAINERD_NAME).or_else(|| d.annotations.get(REF_NAME)).cloned();
    Ok(index.manifests.into_iter().map(|d| (name(&d), d)).collect())
}

impl<F: Files> Reading<F> {
    /// The image of that name, or of a digest behind an `@`; without a name the only one.
    pub fn open(files: F, name: Option<&str>) -> Result<Reading<F>> {
        let all = images(&files)?;
        let title = files.title();
        let listed = || {
            let names: Vec<_> = all
                .iter()
                .map(|(name, d)| name.clone().unwrap_or_else(|| format!("@{}", d.digest)))
                .collect();
            names.join(", ")
        };
        let by_digest = name.and_then(|n| n.strip_prefix('@')).map(str::parse::<Digest>).transpose()?;
        let fits = |image: &&(Option<String>, Descriptor)| match (name, &by_digest) {
            (_, Some(digest)) => image.1.digest == *digest,
            (Some(name), None) => {
                image.0.as_deref() == Some(name)
                    || image.1.annotations.get(REF_NAME).is_some_and(|n| n == name)
            }
            (None, None) => true,
        };
        let mut found: Vec<_> = all.iter().filter(fits).map(|(_, d)| d).collect();
        found.dedup_by(|a, b| a.digest == b.digest);
        let root = match (found.as_slice(), name) {
            ([one], _) => (*one).clone(),
            ([], Some(name)) => {
                return Err(error(
                    Kind::NotFound,
                    format!("{title}: no image {name}; there are: {}", listed()),
                ));
            }
            ([], None) => return Err(error(Kind::NotFound, format!("{title}: no image in it"))),
            _ => bail!("{title}: several images; name one of: {}", listed()),
        };
        Ok(Reading { files, root })
    }

    /// The one that `root` leads to.
    pub fn of(files: F, root: Descriptor) -> Reading<F> {
        Reading { files, root }
    }
}

impl<F: Files> Source for Reading<F> {
    fn root(&self) -> Result<(Descriptor, Vec<u8>)> {
        let mut root = self.root.clone();
        root.annotations.remove(REF_NAME);
        root.annotations.remove(CONTAINERD_NAME);
        Ok((root, self.document(&self.root)?))
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        self.files.promised(&blob_name(&descriptor.digest), descriptor, MANIFEST_MOST)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        self.files.blob(&blob_name(&descriptor.digest), descriptor)
    }
}

/// An image that goes to a layout in a folder; others that are there stay.
#[derive(Debug)]
pub struct Writing {
    path: PathBuf,
    name: Option<String>,
}

impl Writing {
    pub fn new(path: &Path, name: Option<&str>) -> Result<Writing> {
        let making = || format!("make {}", path.display());
        for algorithm in Algorithm::ALL {
            std::fs::create_dir_all(path.join("blobs").join(algorithm.name())).with_context(making)?;
        }
        if !path.join("oci-layout").exists() {
            put(&path.join("oci-layout"), LAYOUT)?;
        }
        Ok(Writing { path: path.to_owned(), name: name.map(str::to_owned) })
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.path.join(blob_name(digest))
    }
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut new = Replacement::new(path)?;
    new.write_all(bytes).with_context(|| format!("write {}", path.display()))?;
    new.finish()
}

/// Copy a blob into `to`; what it was.
fn copy_to(
    content: &mut (dyn Read + Send),
    to: impl Write,
    algorithm: Algorithm,
) -> io::Result<(Digest, u64)> {
    let mut to = Hashing::new(to, algorithm);
    io::copy(content, &mut to)?;
    let (_, digest, size) = to.finish();
    Ok((digest, size))
}

fn check(descriptor: &Descriptor, digest: &Digest, size: u64) -> Result<()> {
    ensure!(
        *digest == descriptor.digest && size == descriptor.size,
        "blob {}: its content is that of {digest} ({size} bytes)",
        descriptor.digest
    );
    Ok(())
}

impl Target for Writing {
    fn has(&self, descriptor: &Descriptor) -> Result<bool> {
        let meta = std::fs::symlink_metadata(self.blob(&descriptor.digest));
        Ok(meta.is_ok_and(|m| m.is_file() && m.len() == descriptor.size))
    }

    fn put(&self, descriptor: &Descriptor, content: &mut (dyn Read + Send)) -> Result<()> {
        let path = self.blob(&descriptor.digest);
        let mut new = Replacement::new(&path)?;
        let content = &mut content.take(descriptor.size.saturating_add(1));
        let (digest, size) = copy_to(content, &mut new, descriptor.digest.algorithm())
            .with_context(|| format!("write {}", path.display()))?;
        check(descriptor, &digest, size)?;
        new.finish()
    }

    fn put_new(&self, media_type: &str, content: &mut (dyn Read + Send)) -> Result<Descriptor> {
        // Its name is known at the end.
        let mut new = Replacement::new(&self.path.join("blobs/sha256/new"))?;
        let (digest, size) = copy_to(content, &mut new, Algorithm::Sha256)
            .with_context(|| format!("write a blob in {}", self.path.display()))?;
        new.become_path(self.blob(&digest));
        new.finish()?;
        Ok(Descriptor { digest, size, ..Descriptor::of(media_type, b"") })
    }

    fn put_document(&self, descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
        self.put(descriptor, &mut &bytes[..])
    }

    fn finish(&self, root: &Descriptor, bytes: &[u8]) -> Result<()> {
        self.put_document(root, bytes)?;
        // Several may write to one layout; the folder itself is the lock.
        let path = self.path.join("index.json");
        let lock = File::open(&self.path).with_context(|| format!("open {}", self.path.display()))?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive))
            .with_context(|| format!("lock {}", self.path.display()))?;
        let mut index = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Index::of(Vec::new()),
            Err(e) => return Err(e).with_context(|| format!("read {}", path.display())),
        };
        let name = self.name.as_deref();
        index.manifests.retain(|d| match name {
            Some(name) => d.annotations.get(REF_NAME).is_none_or(|n| n != name),
            None => d.digest != root.digest || d.annotations.contains_key(REF_NAME),
        });
        index.manifests.push(named(root, name));
        put(&path, &serde_json::to_vec(&index)?)
    }
}

fn named(root: &Descriptor, name: Option<&str>) -> Descriptor {
    let mut root = root.clone();
    if let Some(name) = name {
        root.annotations.insert(REF_NAME.to_owned(), name.to_owned());
        // A whole name, as podman writes it; containerd looks for it elsewhere.
        if name.contains('/') {
            root.annotations.insert(CONTAINERD_NAME.to_owned(), name.to_owned());
        }
    }
    root
}

/// Blobs that wait for an archive to be written.
#[derive(Debug)]
pub struct Spooled {
    place: PathBuf,
    blobs: Mutex<BTreeMap<Digest, (File, u64)>>,
}

impl Spooled {
    pub fn new(spool: Spool<'_>) -> Spooled {
        Spooled { place: spool.0.to_owned(), blobs: Mutex::default() }
    }

    fn with<T>(&self, what: impl FnOnce(&mut BTreeMap<Digest, (File, u64)>) -> T) -> T {
        what(&mut self.blobs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn has(&self, digest: &Digest) -> bool {
        self.with(|blobs| blobs.contains_key(digest))
    }

    pub fn put(&self, descriptor: &Descriptor, content: &mut (dyn Read + Send)) -> Result<()> {
        let mut file = Spool(&self.place).file()?;
        let content = &mut content.take(descriptor.size.saturating_add(1));
        let (digest, size) = copy_to(content, &mut file, descriptor.digest.algorithm())
            .with_context(|| format!("blob {}", descriptor.digest))?;
        check(descriptor, &digest, size)?;
        self.with(|blobs| blobs.insert(digest, (file, size)));
        Ok(())
    }

    pub fn put_new(&self, media_type: &str, content: &mut (dyn Read + Send)) -> Result<Descriptor> {
        let mut file = Spool(&self.place).file()?;
        let (digest, size) = copy_to(content, &mut file, Algorithm::Sha256).context("spool a layer")?;
        self.with(|blobs| blobs.insert(digest.clone(), (file, size)));
        Ok(Descriptor { digest, size, ..Descriptor::of(media_type, b"") })
    }

    /// The bytes of a small one.
    pub fn bytes(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.with(|blobs| {
            let (file, size) = blobs.get(digest).with_context(|| format!("blob {digest} has not come"))?;
            ensure!(*size <= MANIFEST_MOST * 2, "blob {digest}: {size} bytes are too many");
            let mut bytes = vec![0; *size as usize];
            std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0)?;
            Ok(bytes)
        })
    }

    /// Write one of them as a member of an archive.
    pub fn write(&self, digest: &Digest, name: &str, tar: &mut Tar<impl Write>) -> Result<()> {
        self.with(|blobs| {
            let (file, size) =
                blobs.get_mut(digest).with_context(|| format!("blob {digest} has not come"))?;
            file.seek(SeekFrom::Start(0))?;
            tar.header(&Header { size: *size, ..Header::new(Entry::File, name) })?;
            io::copy(file, tar)?;
            Ok(())
        })
    }

    /// All of them, in order.
    pub fn digests(&self) -> Vec<Digest> {
        self.with(|blobs| blobs.keys().cloned().collect())
    }
}

/// An image that goes to a layout in an archive of its own.
pub struct WritingArchive<W> {
    name: Option<String>,
    spooled: Spooled,
    to: Mutex<Option<W>>,
}

impl<W: Write + Send> WritingArchive<W> {
    /// The archive is written to `to` when the image is whole.
    pub fn new(to: W, name: Option<&str>, spool: Spool<'_>) -> WritingArchive<W> {
        WritingArchive {
            name: name.map(str::to_owned),
            spooled: Spooled::new(spool),
            to: Mutex::new(Some(to)),
        }
    }

    /// What it was written to.
    pub fn into_inner(self) -> Option<W> {
        self.to.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: Write + Send> Target for WritingArchive<W> {
    fn has(&self, descriptor: &Descriptor) -> Result<bool> {
        Ok(self.spooled.has(&descriptor.digest))
    }

    fn put(&self, descriptor: &Descriptor, content: &mut (dyn Read + Send)) -> Result<()> {
        self.spooled.put(descriptor, content)
    }

    fn put_new(&self, media_type: &str, content: &mut (dyn Read + Send)) -> Result<Descriptor> {
        self.spooled.put_new(media_type, content)
    }

    fn put_document(&self, descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
        self.spooled.put(descriptor, &mut &bytes[..])
    }

    fn finish(&self, root: &Descriptor, bytes: &[u8]) -> Result<()> {
        self.put_document(root, bytes)?;
        let index = Index::of(vec![named(root, self.name.as_deref())]);
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        let write = |to: &mut W| -> Result<()> {
            let mut tar = Tar::new(to);
            tar.entry(&Header::new(Entry::Directory, "blobs"), b"")?;
            tar.entry(&Header::new(Entry::Directory, "blobs/sha256"), b"")?;
            for digest in self.spooled.digests() {
                self.spooled.write(&digest, &blob_name(&digest), &mut tar)?;
            }
            tar.entry(&Header::new(Entry::File, "index.json"), &serde_json::to_vec(&index)?)?;
            tar.entry(&Header::new(Entry::File, "oci-layout"), LAYOUT)?;
            Ok(tar.finish()?.flush()?)
        };
        write(to.as_mut().context("the archive has been written already")?).context("write the archive")
    }
}
