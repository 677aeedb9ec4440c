//! How does an image get from one place to another? Whatever an image can be read from is a [`Source`], whatever it can be
//! written to a [`Target`]: the store, registries, folders and archives. [`copy`] knows no more of them.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::digest::{Digest, Hashing};
use crate::family::{Family, LayerType, Packing};
use crate::layer::compress::{Compression, compress, unpacked};
use crate::layer::pipe::pipe;
use crate::manifest::{CONFIG_MOST, Config, Descriptor, Document, Index, Manifest};
use crate::workers;

/// Where an image can be read from. Several threads may read at once.
pub trait Source: Sync {
    /// The manifest or index that was asked for: the bytes as they came, and what they turned out to be.
    fn root(&self) -> Result<(Descriptor, Vec<u8>)>;

    /// The manifest or index that `descriptor` promises, verified.
    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>>;

    /// The content of a blob from its first byte on. It need not be verified: the one who reads it does that. Nothing beyond
    /// the promised size is given; what is cut off before is an error, after every attempt to go on.
    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>>;

    /// What a layer became when it was packed in that way before, if that is known: digest and size.
    fn converted(&self, _diff_id: &Digest, _how: Compression) -> Option<Descriptor> {
        None
    }

    /// What it has become now.
    fn remember(&self, _diff_id: &Digest, _how: Compression, _became: &Descriptor) {}
}

/// Where an image can be written to. Several threads may write at once.
pub trait Target: Sync {
    /// Whether that blob need not be sent: it is there, or could be brought there without us.
    fn has(&self, descriptor: &Descriptor) -> Result<bool>;

    /// Write a blob that is known in advance. Other content than promised is refused, and leaves nothing.
    fn put(&self, descriptor: &Descriptor, content: &mut (dyn Read + Send)) -> Result<()>;

    /// Write a blob whose digest and size nobody knows before its end; they are those of the descriptor that returns.
    fn put_new(&self, media_type: &str, content: &mut (dyn Read + Send)) -> Result<Descriptor>;

    /// Write a manifest or index other than the last: after the blobs that it names.
    fn put_document(&self, descriptor: &Descriptor, bytes: &[u8]) -> Result<()>;

    /// Write the manifest or index that the image's name leads to: after everything else, and with it the image is there,
    /// whole, or not at all.
    fn finish(&self, root: &Descriptor, bytes: &[u8]) -> Result<()>;

    /// What the target can take.
    fn takes(&self) -> Takes {
        Takes::Anything
    }
}

/// What a target can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    Anything,
    /// One image (no index), in Docker's schema 2, its layers uncompressed: Docker's archives.
    DockerArchive,
}

/// What happens meanwhile, for progress bars.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A blob of so many bytes is on its way (`None`: nobody knows how many).
    Begin { digest: Digest, size: Option<u64> },
    /// So many more bytes of it.
    Bytes { digest: Digest, count: u64 },
    /// It has arrived.
    Done { digest: Digest },
    /// It was there already.
    Present { digest: Digest },
}

/// Hears of events, on any thread.
pub type Listener<'a> = &'a (dyn Fn(Event) + Sync);

/// Which images of an index are meant.
pub enum Choice<'a> {
    /// The one that this picks.
    One(&'a (dyn Fn(&Index) -> Result<Descriptor> + Sync)),
    /// All that are there.
    All,
    /// The index alone; what it leads to is at the target already.
    IndexOnly,
}

/// What becomes of an image on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conversion {
    /// The family of media types; `None`: as it is.
    pub family: Option<Family>,
    /// How layers that are not compressed are packed; `None`: as they are.
    pub compression: Option<Compression>,
    /// Those that are compressed, too.
    pub force: bool,
}

impl Conversion {
    const DOCKER_ARCHIVE: Conversion =
        Conversion { family: Some(Family::Docker), compression: Some(Compression::Plain), force: true };

    /// How a layer is to be packed; `None`: it goes as it is.
    fn of(&self, layer: &Descriptor) -> Option<Compression> {
        let (wanted, is) = (self.compression?, LayerType::parse(&layer.media_type)?);
        let other = is.packing != wanted.packing();
        // What is packed in that way already may have another level.
        let again = self.force && wanted != Compression::Plain;
        (again || other && (self.force || is.packing == Packing::Plain)).then_some(wanted)
    }
}

/// How a copy is made.
pub struct Options<'a> {
    pub choice: Choice<'a>,
    pub conversion: Conversion,
    /// Blobs on their way at the same time.
    pub jobs: usize,
    pub listener: Listener<'a>,
}

/// Indexes in indexes: deeper, nobody means it.
const NESTED_MOST: usize = 4;

/// Copy an image. Returns what its name leads to at the target: the manifest or index as it was written.
pub fn copy(source: &dyn Source, target: &dyn Target, options: &Options<'_>) -> Result<Descriptor> {
    let copy = Copy { source, target, options };
    let (mut root, mut bytes) = source.root()?;
    if let Choice::One(choose) = options.choice {
        for _ in 0..NESTED_MOST {
            let Document::Index(index) = Document::parse(&root.media_type, &bytes)? else { break };
            root = choose(&index)?;
            bytes = source.document(&root)?;
        }
    }
    let (root, bytes) = copy.document(root, bytes, 0)?;
    target.finish(&root, &bytes)?;
    Ok(root)
}

/// What the layers of an image have in common on their way.
struct Work {
    conversion: Conversion,
    /// That compress a layer: as many for all of them together as there are processors, and no more memory than that takes.
    threads: NonZero<usize>,
    stop: AtomicBool,
}

struct Copy<'a> {
    source: &'a dyn Source,
    target: &'a dyn Target,
    options: &'a Options<'a>,
}

impl Copy<'_> {
    /// Copy all that a document leads to; returns what is to be written in its place.
    fn document(&self, root: Descriptor, bytes: Vec<u8>, depth: usize) -> Result<(Descriptor, Vec<u8>)> {
        match Document::parse(&root.media_type, &bytes).with_context(|| root.digest.to_string())? {
            Document::Manifest(manifest) => self.manifest(root, bytes, manifest),
            Document::Index(index) => {
                ensure!(
                    self.target.takes() == Takes::Anything,
                    "the target takes one image, not an index of several"
                );
                ensure!(depth < NESTED_MOST, "{}: indexes in indexes in indexes", root.digest);
                if matches!(self.options.choice, Choice::IndexOnly) {
                    return Ok((root, bytes));
                }
                self.index(root, bytes, index, depth)
            }
        }
    }

    fn index(
        &self,
        root: Descriptor,
        bytes: Vec<u8>,
        mut index: Index,
        depth: usize,
    ) -> Result<(Descriptor, Vec<u8>)> {
        let mut changed = false;
        for entry in &mut index.manifests {
            let own = self.source.document(entry)?;
            let (new, own) = self.document(entry.clone(), own, depth + 1)?;
            self.target.put_document(&new, &own)?;
            if new.digest != entry.digest || new.media_type != entry.media_type {
                (entry.media_type, entry.digest, entry.size) = (new.media_type, new.digest, new.size);
                changed = true;
            }
        }
        let family = self.options.conversion.family.unwrap_or(Family::of(&root.media_type));
        let media_type = family.index();
        if !changed && media_type == root.media_type {
            return Ok((root, bytes));
        }
        index.media_type = Some(media_type.to_owned());
        let bytes = serde_json::to_vec(&index)?;
        Ok((Descriptor { annotations: root.annotations, ..Descriptor::of(media_type, &bytes) }, bytes))
    }

    fn manifest(
        &self,
        root: Descriptor,
        bytes: Vec<u8>,
        mut manifest: Manifest,
    ) -> Result<(Descriptor, Vec<u8>)> {
        let conversion = match self.target.takes() {
            Takes::Anything => self.options.conversion,
            Takes::DockerArchive => Conversion::DOCKER_ARCHIVE,
        };
        // The config first: some targets need it to know the layers.
        self.blob(&manifest.config, &AtomicBool::new(false))?;
        let changes = manifest.layers.iter().any(|l| conversion.of(l).is_some());
        let diff_ids =
            if manifest.config.is_config() && changes { self.diff_ids(&manifest)? } else { Vec::new() };
        let converted = self.layers(&manifest.layers, &diff_ids, conversion)?;
        let family = conversion.family.unwrap_or(Family::of(&root.media_type));
        let config_type = family.config(&manifest.config.media_type).to_owned();
        let layers: Vec<_> = converted
            .into_iter()
            .map(|layer| Descriptor { media_type: family.layer(&layer.media_type), ..layer })
            .collect();
        let same = |a: &Descriptor, b: &Descriptor| a.digest == b.digest && a.media_type == b.media_type;
        let unchanged = root.media_type == family.manifest()
            && config_type == manifest.config.media_type
            && layers.iter().zip(&manifest.layers).all(|(a, b)| same(a, b));
        if unchanged {
            return Ok((root, bytes));
        }
        manifest.media_type = Some(family.manifest().to_owned());
        manifest.config.media_type = config_type;
        manifest.layers = layers;
        let bytes = serde_json::to_vec(&manifest)?;
        let new = Descriptor { platform: root.platform, ..Descriptor::of(family.manifest(), &bytes) };
        Ok((Descriptor { annotations: root.annotations, ..new }, bytes))
    }

    /// The diff ids that the image's config promises.
    fn diff_ids(&self, manifest: &Manifest) -> Result<Vec<Digest>> {
        let mut bytes = Vec::new();
        let mut from = Hashing::new(
            self.source.blob(&manifest.config)?.take(CONFIG_MOST + 1),
            manifest.config.digest.algorithm(),
        );
        from.read_to_end(&mut bytes).with_context(|| format!("read config {}", manifest.config.digest))?;
        let (_, digest, _) = from.finish();
        ensure!(
            digest == manifest.config.digest,
            "config {}: its content is that of {digest}",
            manifest.config.digest
        );
        Ok(Config::parse(&bytes, manifest.layers.len())?.rootfs.diff_ids)
    }

    /// Copy layers side by side; returns what became of each, in the same order.
    fn layers(
        &self,
        layers: &[Descriptor],
        diff_ids: &[Digest],
        conversion: Conversion,
    ) -> Result<Vec<Descriptor>> {
        let at_once = self.options.jobs.clamp(1, layers.len().max(1));
        let threads = NonZero::new(workers::processors().get().div_ceil(at_once));
        let work = Work {
            conversion,
            threads: threads.unwrap_or(NonZero::<usize>::MIN),
            stop: AtomicBool::new(false),
        };
        let results: Mutex<BTreeMap<Digest, Descriptor>> = Mutex::default();
        // The same layer twice is copied once.
        let first = |i: usize| layers[..i].iter().all(|l| l.digest != layers[i].digest);
        workers::each(layers, self.options.jobs, |i, layer| {
            if !first(i) {
                return Ok(());
            }
            let done = self.layer(layer, diff_ids.get(i), &work).inspect_err(|_| {
                // What fails later was stopped because of it.
                work.stop.store(true, Ordering::Relaxed);
            })?;
            results.lock().unwrap_or_else(PoisonError::into_inner).insert(layer.digest.clone(), done);
            Ok::<_, anyhow::Error>(())
        })?;
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        let find = |l: &Descriptor| results.get(&l.digest).cloned().context("a layer was not copied");
        layers.iter().map(find).collect()
    }

    fn layer(&self, layer: &Descriptor, diff_id: Option<&Digest>, work: &Work) -> Result<Descriptor> {
        match work.conversion.of(layer) {
            Some(wanted) => self.convert(layer, diff_id, wanted, work),
            None => {
                self.blob(layer, &work.stop)?;
                Ok(layer.clone())
            }
        }
    }

    /// Copy a layer in another packing; what it holds stays the same, and is what the config promises.
    fn convert(
        &self,
        layer: &Descriptor,
        diff_id: Option<&Digest>,
        wanted: Compression,
        work: &Work,
    ) -> Result<Descriptor> {
        let listener = self.options.listener;
        let kind = LayerType::parse(&layer.media_type).context("no layer")?;
        let media_type = LayerType { packing: wanted.packing(), ..kind }.to_string();
        if let Some(known) = diff_id.and_then(|id| self.source.converted(id, wanted)) {
            let known = Descriptor { media_type: media_type.clone(), ..known };
            if self.target.has(&known)? {
                listener(Event::Present { digest: known.digest.clone() });
                return Ok(Descriptor { annotations: layer.annotations.clone(), ..known });
            }
        }
        listener(Event::Begin { digest: layer.digest.clone(), size: Some(layer.size) });
        let from =
            Watched { inner: self.source.blob(layer)?, digest: &layer.digest, listener, stop: &work.stop };
        let mut from = Hashing::new(from, layer.digest.algorithm());
        let (mut to, mut out) = pipe();
        let threads = work.threads;
        let (content, new) = thread::scope(|scope| {
            let packer = workers::spawn(scope, move || {
                let done = unpacked(&mut from, |plain| Ok(compress(plain, &mut to, wanted, threads)?));
                // The reader hears in its own words what went wrong.
                to.finish(done.as_ref().map(drop).map_err(|e| io::Error::other(format!("{e:#}"))));
                done.map(|((), content)| (content, from.finish()))
            })?;
            let new = self.target.put_new(&media_type, &mut out);
            drop(out);
            match packer.join() {
                // The cause, rather than what came of it at the other end.
                Ok(Err(e)) if new.is_err() && !broken_pipe(&e) => Err(e),
                Ok(packed) => new.and_then(|new| Ok((packed?, new))),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })?;
        let (content, (_, digest, size)) = content;
        ensure!(
            digest == layer.digest && size == layer.size,
            "layer {}: its content is that of {digest} ({size} bytes)",
            layer.digest
        );
        if let Some(diff_id) = diff_id {
            content.expect(&layer.digest, diff_id)?;
            self.source.remember(diff_id, wanted, &new);
        }
        listener(Event::Done { digest: layer.digest.clone() });
        Ok(Descriptor { annotations: layer.annotations.clone(), ..new })
    }

    /// Copy a blob as it is.
    fn blob(&self, blob: &Descriptor, stop: &AtomicBool) -> Result<()> {
        let (listener, digest) = (self.options.listener, &blob.digest);
        if self.target.has(blob)? {
            listener(Event::Present { digest: digest.clone() });
            return Ok(());
        }
        listener(Event::Begin { digest: digest.clone(), size: Some(blob.size) });
        let mut content = Watched { inner: self.source.blob(blob)?, digest, listener, stop };
        self.target.put(blob, &mut content)?;
        listener(Event::Done { digest: digest.clone() });
        Ok(())
    }
}

/// A blob on its way, that is told of and can be stopped.
struct Watched<'a> {
    inner: Box<dyn Read + Send + 'a>,
    digest: &'a Digest,
    listener: Listener<'a>,
    stop: &'a AtomicBool,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("stopped, since something else went wrong"));
        }
        let n = self.inner.read(buffer)?;
        if n > 0 {
            (self.listener)(Event::Bytes { digest: self.digest.clone(), count: n as u64 });
        }
        Ok(n)
    }
}

fn broken_pipe(e: &anyhow::Error) -> bool {
    e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests;
