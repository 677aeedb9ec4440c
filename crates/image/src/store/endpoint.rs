//! The store as one end of a copy.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};

use super::{Addition, Blob, Holder, Image, Layer, Lease, Store, Tree, Writer};
use crate::digest::{Algorithm, Digest};
use crate::layer::apply::{Applied, Options, Whiteouts, apply, copy};
use crate::layer::compress::{Compression, Content, unpacked};
use crate::layer::whiteout::Privilege;
use crate::manifest::{CONFIG_MOST, Config, Descriptor, Document, MANIFEST_MOST, Manifest};
use crate::reference::Reference;
use crate::transfer::{Source, Target};
use crate::{rootless, workers};

/// An image of the store, to be read.
#[derive(Debug)]
pub struct Reading<'a> {
    store: &'a Store,
    _lease: Lease,
    target: Descriptor,
}

/// Whether the layers that come are unpacked at once, in the same pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpack {
    Now,
    /// When somebody needs them; they are read to their end all the same, to see that they are what the config promises.
    Later,
}

/// An image that comes into the store.
#[derive(Debug)]
pub struct Receiving<'a> {
    store: &'a Store,
    names: Vec<Option<Reference>>,
    unpack: Unpack,
    inner: Mutex<Inner<'a>>,
}

#[derive(Debug)]
struct Inner<'a> {
    /// None: it has been committed.
    addition: Option<Addition<'a>>,
    /// Small blobs that are part of it: what is not in the store yet can be read here.
    small: BTreeMap<Digest, Vec<u8>>,
    /// What the layers that came hold, by the digests of their blobs.
    layers: BTreeMap<Digest, Content>,
}

impl Store {
    /// Read an image.
    pub fn reading(&self, image: &Image) -> Result<Reading<'_>> {
        Ok(Reading { store: self, _lease: self.lease()?, target: image.target.clone() })
    }

    /// Take an image in, under these names.
    pub fn receiving(&self, names: Vec<Option<Reference>>, unpack: Unpack) -> Result<Receiving<'_>> {
        let addition = Some(self.begin()?);
        let inner = Inner { addition, small: BTreeMap::new(), layers: BTreeMap::new() };
        Ok(Receiving { store: self, names, unpack, inner: Mutex::new(inner) })
    }

    /// How layers are unpacked here.
    pub fn tree_options(&self) -> Result<Options> {
        Ok(Options::own(Whiteouts::Note(Privilege::own()), rootless::others_are_mapped()?))
    }

    /// Apply a layer to a tree; it must be what the config promises.
    pub fn apply_layer(
        &self,
        layer: &Descriptor,
        diff_id: &Digest,
        root: BorrowedFd<'_>,
        options: Options,
    ) -> Result<Applied> {
        let blob = self.blob(&layer.digest)?;
        let (applied, content) = unpacked(blob, |plain| apply(plain, root, options))
            .with_context(|| format!("unpack layer {}", layer.digest))?;
        content.expect(&layer.digest, diff_id)?;
        Ok(applied)
    }

    /// Apply a layer to a tree that holds the lower ones, the quickest way: as it was unpacked, or else from its archive.
    /// The caller holds a lease.
    pub fn place_layer(
        &self,
        layer: &Descriptor,
        diff_id: &Digest,
        root: BorrowedFd<'_>,
        options: Options,
    ) -> Result<()> {
        match (self.layer(diff_id)?, self.tree(diff_id)?) {
            (Some(known), Some(tree)) => {
                copy(tree.as_fd(), Privilege::own(), &known.implied(), root, options)
                    .with_context(|| format!("copy layer {diff_id}"))?;
            }
            _ => drop(self.apply_layer(layer, diff_id, root, options)?),
        }
        Ok(())
    }

    /// Unpack the layers of an image that are not yet, as many at a time as there are processors.
    pub fn unpack(&self, manifest: &Manifest, config: &Config) -> Result<()> {
        let all: Vec<_> = config.rootfs.diff_ids.iter().zip(&manifest.layers).collect();
        self.unpack_layers(&all)
    }

    /// The same of layers, by diff id and blob.
    pub fn unpack_layers(&self, all: &[(&Digest, &Descriptor)]) -> Result<()> {
        let mut missing = Vec::new();
        for (diff_id, layer) in all.iter().copied() {
            if self.layer(diff_id)?.is_none() && !missing.iter().any(|(_, known)| *known == diff_id) {
                missing.push((layer, diff_id));
            }
        }
        workers::each(&missing, workers::processors().get(), |_, (layer, diff_id)| {
            self.unpack_layer(layer, diff_id)
        })
    }

    fn unpack_layer(&self, layer: &Descriptor, diff_id: &Digest) -> Result<()> {
        let mut addition = self.begin()?;
        addition.unpack(layer, diff_id)?;
        addition.commit()
    }
}

impl Addition<'_> {
    /// A layer whose blob is in the store is unpacked, as part of this.
    fn unpack(&mut self, layer: &Descriptor, diff_id: &Digest) -> Result<()> {
        let store = self.store();
        let tree = self.tree()?;
        let applied = store.apply_layer(layer, diff_id, tree.as_fd(), store.tree_options()?)?;
        let unpacked = Layer::of(&applied, tree.as_fd())?;
        self.add_layer(diff_id.clone(), tree, unpacked);
        let holder = Holder { digest: layer.digest.clone(), size: layer.size, made: None };
        self.add_holder(diff_id.clone(), holder);
        Ok(())
    }
}

impl Source for Reading<'_> {
    fn root(&self) -> Result<(Descriptor, Vec<u8>)> {
        Ok((self.target.clone(), self.document(&self.target)?))
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        self.store.blob_bytes(descriptor, MANIFEST_MOST)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        let digest = &descriptor.digest;
        let file = self.store.blob(digest)?;
        let size = file.metadata().with_context(|| format!("read blob {digest}"))?.len();
        ensure!(size == descriptor.size, "blob {digest}: {size} bytes, expected {}", descriptor.size);
        Ok(Box::new(file))
    }

    fn converted(&self, diff_id: &Digest, how: Compression) -> Option<Descriptor> {
        let edition = how.edition();
        let holders = self.store.holders(diff_id).ok()?;
        let known = holders.into_iter().find(|h| h.made.as_ref() == Some(&edition))?;
        Some(Descriptor { digest: known.digest, size: known.size, ..Descriptor::of("", b"") })
    }

    fn remember(&self, diff_id: &Digest, how: Compression, became: &Descriptor) {
        let holder = Holder { digest: became.digest.clone(), size: became.size, made: Some(how.edition()) };
        let note = || -> Result<()> {
            let mut addition = self.store.begin()?;
            addition.add_holder(diff_id.clone(), holder);
            addition.commit()
        };
        // It saves time the next time, and is nothing to fail for.
        note().unwrap_or_default();
    }
}

/// Reads what it also writes to a blob.
struct Tee<'a> {
    from: &'a mut (dyn Read + Send),
    to: &'a mut Writer,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.to.write_all(&buffer[..n])?;
        Ok(n)
    }
}

impl<'a> Receiving<'a> {
    fn with<T>(&self, what: impl FnOnce(&mut Addition<'a>, &mut Inner<'a>) -> Result<T>) -> Result<T> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut addition = inner.addition.take().context("the image has been committed already")?;
        let done = what(&mut addition, &mut inner);
        inner.addition = Some(addition);
        done
    }

    /// Write a blob that may be a layer, which is then unpacked in the same pass.
    fn receive(
        &self,
        media_type: &str,
        mut writer: Writer,
        content: &mut (dyn Read + Send),
    ) -> Result<(Writer, Option<Came>)> {
        let kind = Descriptor { media_type: media_type.to_owned(), ..Descriptor::of("", b"") };
        if !kind.is_layer() {
            io::copy(content, &mut writer)?;
            return Ok((writer, None));
        }
        let tree = match self.unpack {
            Unpack::Now => Some(self.with(|addition, _| addition.tree())?),
            Unpack::Later => None,
        };
        let mut tee = Tee { from: content, to: &mut writer };
        let (layer, content) = unpacked(&mut tee, |plain| match &tree {
            Some(tree) => {
                let applied = apply(plain, tree.as_fd(), self.store.tree_options()?)?;
                Layer::of(&applied, tree.as_fd())
            }
            None => Ok(Layer::default()),
        })?;
        // A decoder may stop before what comes after the last byte that it needs.
        io::copy(&mut tee, &mut io::sink())?;
        Ok((writer, Some(Came { tree, layer, content })))
    }

    fn add(&self, blob: Blob, came: Option<Came>) -> Result<()> {
        self.with(|addition, inner| {
            if let Some(Came { tree, layer, content }) = came {
                let holder = Holder { digest: blob.digest().clone(), size: blob.size(), made: None };
                addition.add_holder(content.digest.clone(), holder);
                if let Some(tree) = tree {
                    addition.add_layer(content.digest.clone(), tree, layer);
                }
                inner.layers.insert(blob.digest().clone(), content);
            }
            addition.add(blob);
            Ok(())
        })
    }

    /// Whether a layer is what the config promises: seen now, or before, or else it is read again. One that was here, but not
    /// unpacked, is unpacked if that is wanted.
    fn check_layer(
        &self,
        addition: &mut Addition<'_>,
        inner: &mut Inner<'_>,
        layer: &Descriptor,
        diff_id: &Digest,
    ) -> Result<()> {
        if let Some(content) = inner.layers.get(&layer.digest) {
            return content.expect(&layer.digest, diff_id);
        }
        if self.unpack == Unpack::Now
            && !addition.brings_layer(diff_id)
            && self.store.layer(diff_id)?.is_none()
        {
            return addition.unpack(layer, diff_id);
        }
        if self.store.holders(diff_id)?.iter().any(|h| h.digest == layer.digest) {
            return Ok(());
        }
        let ((), content) = unpacked(self.store.blob(&layer.digest)?, |_| Ok(()))?;
        content.expect(&layer.digest, diff_id)?;
        inner.layers.insert(layer.digest.clone(), content);
        Ok(())
    }

    /// An image that has come must hold together, before a name leads to it.
    fn check(&self, document: &Document, addition: &mut Addition<'_>, inner: &mut Inner<'_>) -> Result<()> {
        let Document::Manifest(manifest) = document else { return Ok(()) };
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            let came = inner.small.contains_key(&blob.digest) || addition.brings(&blob.digest);
            ensure!(came || self.store.has(&blob.digest)?, "blob {} is missing", blob.digest);
        }
        if !manifest.config.is_config() {
            return Ok(());
        }
        let bytes = match inner.small.get(&manifest.config.digest) {
            Some(bytes) => bytes.clone(),
            None => self.store.blob_bytes(&manifest.config, CONFIG_MOST)?,
        };
        let config = Config::parse(&bytes, manifest.layers.len())
            .with_context(|| manifest.config.digest.to_string())?;
        for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            if layer.is_layer() {
                self.check_layer(addition, inner, layer, diff_id)?;
            }
        }
        Ok(())
    }
}

/// A layer that came.
struct Came {
    tree: Option<Tree>,
    layer: Layer,
    content: Content,
}

impl Target for Receiving<'_> {
    fn has(&self, descriptor: &Descriptor) -> Result<bool> {
        self.store.has(&descriptor.digest)
    }

    fn put(&self, descriptor: &Descriptor, content: &mut (dyn Read + Send)) -> Result<()> {
        if !descriptor.is_layer() && descriptor.size <= CONFIG_MOST {
            let mut bytes = Vec::new();
            content.take(descriptor.size + 1).read_to_end(&mut bytes)?;
            return self.put_document(descriptor, &bytes);
        }
        let writer = self.with(|addition, _| addition.writer_of(descriptor))?;
        let (writer, came) = self
            .receive(&descriptor.media_type, writer, content)
            .with_context(|| format!("blob {}", descriptor.digest))?;
        self.add(writer.finish_as(descriptor)?, came)
    }

    fn put_new(&self, media_type: &str, content: &mut (dyn Read + Send)) -> Result<Descriptor> {
        let writer = self.with(|addition, _| addition.writer(Algorithm::Sha256))?;
        let (writer, came) = self.receive(media_type, writer, content)?;
        let blob = writer.finish();
        let mut descriptor = Descriptor::of(media_type, b"");
        (descriptor.digest, descriptor.size) = (blob.digest().clone(), blob.size());
        self.add(blob, came)?;
        Ok(descriptor)
    }

    fn put_document(&self, descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
        self.with(|addition, inner| {
            let mut writer = addition.writer_of(descriptor)?;
            writer.write_all(bytes).with_context(|| format!("blob {}", descriptor.digest))?;
            addition.add(writer.finish_as(descriptor)?);
            inner.small.insert(descriptor.digest.clone(), bytes.to_vec());
            if descriptor.is_manifest() {
                let document = Document::parse(&descriptor.media_type, bytes)?;
                self.check(&document, addition, inner)?;
            }
            Ok(())
        })
    }

    fn finish(&self, root: &Descriptor, bytes: &[u8]) -> Result<()> {
        self.put_document(root, bytes)?;
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut addition) = inner.addition.take() else { bail!("the image has been committed already") };
        for name in &self.names {
            addition.name(name.clone(), root.clone());
        }
        addition.commit()
    }
}
