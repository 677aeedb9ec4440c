//! How do steps become an image? Their layers' archives are made where there are none yet, config and manifest are written, and all
//! of it gets its names at once.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufWriter, Read, Write};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use image::digest::Algorithm;
use image::family::{Family, LayerType};
use image::layer;
use image::layer::compress::{Compression, compress, unpacked};
use image::manifest::{Config, Descriptor, History, Manifest, OCI_CONFIG, OCI_LAYER, RootFs};
use image::store::{Addition, Archive, Holder};
use image::{Digest, Reference, Store, workers};

use super::{Built, Layer, Shared, lock};

/// A command that ended otherwise than with 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    pub status: i32,
    /// Its step's number.
    pub step: usize,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            126 => f.write_str("the command could not be executed (exit code 126)"),
            127 => f.write_str("the command was not found (exit code 127)"),
            n if n > 128 => write!(f, "the command was ended by signal {} (exit code {n})", n - 128),
            n => write!(f, "the command failed with exit code {n}"),
        }
    }
}

impl std::error::Error for Failed {}

/// What the image is to be like.
#[derive(Clone, Debug)]
pub struct Wish {
    pub names: Vec<Reference>,
    pub family: Family,
    /// None: layers stay as they are here; they are compressed for whoever they are sent to.
    pub compression: Option<Compression>,
    /// Of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// Times in layers are no later than this, and the image's is this.
    pub latest: Option<i64>,
    /// None: now.
    pub created: Option<i64>,
    /// Leave out what the image says of how it was made.
    pub omit_history: bool,
    /// Make one layer of several.
    pub squash: Squash,
    /// Say in the config which steps the layers came of, for other builds.
    pub inline_cache: bool,
}

/// Which layers become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Squash {
    #[default]
    None,
    /// Those that were made now.
    New,
    /// Those of the base, too.
    All,
}

/// The image that came of it.
#[derive(Clone, Debug)]
pub struct Committed {
    pub manifest: Descriptor,
    pub config: Digest,
    pub diff_ids: Vec<Digest>,
}

/// Gets the layer of a step from a cache.
pub type Fetch<'f> = dyn Fn(&Digest) -> Result<Option<image::store::Blob>> + Sync + 'f;

/// RFC 3339.
pub fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// Make the image, under its names, or without one.
pub fn commit(
    store: &Store,
    mut addition: Addition<'_>,
    shared: &Shared,
    built: &Built,
    wish: &Wish,
    fetch: &Fetch<'_>,
) -> Result<Committed> {
    let (config, manifest) = prepare(store, &mut addition, shared, built, wish, fetch)?;
    let config_bytes = serde_json::to_vec(&config)?;
    let mut manifest = manifest;
    manifest.config = Descriptor::of(wish.family.config(OCI_CONFIG), &config_bytes);
    let bytes = serde_json::to_vec(&manifest)?;
    let mut target = Descriptor::of(wish.family.manifest(), &bytes);
    let mut platform = image::manifest::Platform {
        architecture: config.architecture.clone(),
        os: config.os.clone(),
        ..Default::default()
    };
    platform.variant.clone_from(&config.variant);
    addition.add_bytes(&config_bytes)?;
    addition.add_bytes(&bytes)?;
    target.platform = None;
    if wish.names.is_empty() {
        addition.name(None, target.clone());
    }
    for name in &wish.names {
        addition.name(Some(name.clone()), target.clone());
    }
    let diff_ids = config.rootfs.diff_ids.clone();
    let config = manifest.config.digest.clone();
    addition.commit().context("commit the image")?;
    Ok(Committed { manifest: target, config, diff_ids })
}

/// A layer of the image to be.
struct Part {
    diff_id: Digest,
    descriptor: Descriptor,
}

fn prepare(
    store: &Store,
    addition: &mut Addition<'_>,
    shared: &Shared,
    built: &Built,
    wish: &Wish,
    fetch: &Fetch<'_>,
) -> Result<(Config, Manifest)> {
    let label = wish.latest.map_or_else(|| "kept".to_owned(), |n| n.to_string());
    // Archives of those that have none are made side by side.
    let parts: Vec<Mutex<Option<Part>>> = built.layers.iter().map(|_| Mutex::default()).collect();
    shared.wait()?;
    let blobs = Mutex::new(std::mem::take(&mut *lock(&shared.blobs)));
    let new = Mutex::new(Vec::new());
    let adopted = Mutex::new(Vec::new());
    let shared_addition = &*addition;
    workers::each(&built.layers, workers::processors().get(), |n, layer| -> Result<()> {
        let part = match layer {
            Layer::Base { diff_id, blob } => {
                let descriptor =
                    Descriptor { media_type: wish.family.layer(&blob.media_type), ..(**blob).clone() };
                Part { diff_id: diff_id.clone(), descriptor }
            }
            Layer::Step(key) => {
                let gone = "a step has gone meanwhile";
                let mut step = store.step(key)?.context(gone)?;
                let made = lock(&blobs).remove(key);
                let known = step.archives.get(&label).cloned();
                let (archive, blob) = match (made, known) {
                    (Some(blob), _) => {
                        (Archive { diff_id: blob.digest().clone(), size: blob.size() }, Some(blob))
                    }
                    (None, Some(known)) if store.has(&known.diff_id)? => (known, None),
                    (None, _) if store.step_tree(key, &step)?.is_none() => {
                        let blob = fetch(key)?.ok_or_else(|| super::cache::Absent(step.title.clone()))?;
                        (Archive { diff_id: blob.digest().clone(), size: blob.size() }, Some(blob))
                    }
                    (None, _) => {
                        let tree = store.step_tree(key, &step)?.context(gone)?;
                        let blob = shared_addition
                            .archive(std::os::fd::AsFd::as_fd(&tree), wish.latest)
                            .with_context(|| format!("the layer of {}", step.title))?;
                        (Archive { diff_id: blob.digest().clone(), size: blob.size() }, Some(blob))
                    }
                };
                step.archives.insert(label.clone(), archive.clone());
                let mut descriptor = Descriptor::of(&wish.family.layer(OCI_LAYER), b"");
                (descriptor.digest, descriptor.size) = (archive.diff_id.clone(), archive.size);
                let holder = Holder {
                    digest: archive.diff_id.clone(),
                    size: archive.size,
                    made: Some(Compression::Plain.edition()),
                };
                lock(&adopted).push((key.clone(), step, archive.diff_id.clone(), holder));
                if let Some(blob) = blob {
                    lock(&new).push(blob);
                }
                Part { diff_id: archive.diff_id, descriptor }
            }
        };
        *lock(&parts[n]) = Some(part);
        Ok(())
    })?;
    let mut parts: Vec<Part> = parts
        .into_iter()
        .filter_map(|p| p.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
        .collect();
    let mut new = new.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut config = built.config.clone();
    let bases = built.layers.iter().filter(|l| matches!(l, Layer::Base { .. })).count();
    let from = match wish.squash {
        Squash::None => parts.len(),
        Squash::New => bases,
        Squash::All => 0,
    };
    if parts.len() - from > usize::from(wish.squash == Squash::New) {
        let one = squash(store, addition, &parts[from..], from > 0, &new, wish.family)?;
        let title = format!("squash {} layers", parts.len() - from);
        let holder = Holder {
            digest: one.1.digest().clone(),
            size: one.1.size(),
            made: Some(Compression::Plain.edition()),
        };
        addition.add_holder(one.1.digest().clone(), holder);
        parts.truncate(from);
        parts.push(one.0);
        new = vec![one.1];
        adopted.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        // None of the steps since has a layer of its own.
        let history = config.history.get_or_insert_default();
        let mut layers = 0;
        for entry in history.iter_mut().filter(|h| !h.empty_layer) {
            layers += 1;
            entry.empty_layer = layers > from;
        }
        history.push(History {
            created_by: Some(title),
            comment: Some(MARK.to_owned()),
            ..History::default()
        });
    }
    if let Some(how) = wish.compression {
        for part in &mut parts {
            pack(store, addition, &new, part, how, wish.family)?;
        }
        // The plain ones were only on the way, if they are not compressed at all.
        let used: Vec<&Digest> = parts.iter().map(|p| &p.descriptor.digest).collect();
        new.retain(|blob| used.contains(&blob.digest()));
    }
    for blob in new {
        addition.add(blob);
    }
    let mut adopted = adopted.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    adopted.sort_by(|a, b| a.0.cmp(&b.0));
    for (key, step, diff_id, holder) in adopted {
        let known = store.step(&key)?.is_some_and(|s| s.archives == step.archives);
        let adopted = addition.adopt(&key, &step, &diff_id)?;
        if !known && !adopted {
            store.keep_step(&key, &step, None)?;
        }
        if !known {
            lock(&shared.kept).push(key.clone());
        }
        if !store.holders(&diff_id)?.iter().any(|h| h.digest == holder.digest && h.made.is_some()) {
            addition.add_holder(diff_id, holder);
        }
    }
    let created = wish.created.map_or_else(|| jiff::Timestamp::now().to_string(), time);
    for entry in config.history.iter_mut().flatten().filter(|h| h.comment.as_deref() == Some(MARK)) {
        if entry.created.is_none() {
            entry.created = Some(created.clone());
        }
    }
    if wish.omit_history {
        config.history = None;
    }
    config.created = Some(created);
    config.rootfs =
        RootFs { kind: "layers".to_owned(), diff_ids: parts.iter().map(|p| p.diff_id.clone()).collect() };
    if wish.inline_cache {
        let ids = config.rootfs.diff_ids.clone();
        super::cache::inline(store, shared, &ids, &label, &mut config)?;
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(wish.family.manifest().to_owned()),
        artifact_type: None,
        config: Descriptor::of(OCI_CONFIG, b""),
        layers: parts.into_iter().map(|p| p.descriptor).collect(),
        subject: None,
        annotations: wish.annotations.clone(),
    };
    Ok((config, manifest))
}

/// One layer of several; `below`: there are others below it.
fn squash(
    store: &Store,
    addition: &Addition<'_>,
    parts: &[Part],
    below: bool,
    new: &[image::store::Blob],
    family: Family,
) -> Result<(Part, image::store::Blob)> {
    let open = |n: usize, take: &mut dyn FnMut(&mut (dyn Read + Send)) -> Result<()>| {
        let digest = &parts[n].descriptor.digest;
        let from = match new.iter().find(|b| b.digest() == digest) {
            Some(blob) => blob.file(store)?,
            None => store.blob(digest)?,
        };
        let (found, content) = unpacked(from, |plain| take(plain))?;
        ensure!(
            content.digest == parts[n].diff_id,
            "a layer holds {}, not {}",
            content.digest,
            parts[n].diff_id
        );
        Ok(found)
    };
    let mut writer = addition.writer(Algorithm::Sha256)?;
    let mut buffered = BufWriter::with_capacity(256 << 10, &mut writer);
    layer::squash::squash(parts.len(), &open, below, &mut buffered).context("make one layer of several")?;
    buffered.flush().context("write a layer")?;
    drop(buffered);
    let blob = writer.finish();
    let mut descriptor = Descriptor::of(&family.layer(OCI_LAYER), b"");
    (descriptor.digest, descriptor.size) = (blob.digest().clone(), blob.size());
    Ok((Part { diff_id: blob.digest().clone(), descriptor }, blob))
}

/// How the history shows what was made here.
pub const MARK: &str = "berth-builder";

/// Compress a layer, unless it is already.
fn pack(
    store: &Store,
    addition: &mut Addition<'_>,
    new: &[image::store::Blob],
    part: &mut Part,
    how: Compression,
    family: Family,
) -> Result<()> {
    let kind = LayerType::parse(&part.descriptor.media_type);
    let Some(kind) = kind.filter(|k| k.packing == image::family::Packing::Plain) else { return Ok(()) };
    if how == Compression::Plain {
        return Ok(());
    }
    let media_type = LayerType { family, packing: how.packing(), ..kind }.to_string();
    let known = store.holders(&part.diff_id)?.into_iter().find(|h| h.made.as_ref() == Some(&how.edition()));
    if let Some(known) = known
        && store.has(&known.digest)?
    {
        part.descriptor =
            Descriptor { digest: known.digest, size: known.size, ..Descriptor::of(&media_type, b"") };
        return Ok(());
    }
    let digest = &part.descriptor.digest;
    let mut from = match new.iter().find(|b| b.digest() == digest) {
        Some(blob) => blob.file(store)?,
        None => store.blob(digest)?,
    };
    let mut writer = addition.writer(Algorithm::Sha256)?;
    let mut buffered = BufWriter::with_capacity(256 << 10, &mut writer);
    compress(&mut from, &mut buffered, how, workers::processors()).context("compress a layer")?;
    buffered.flush().context("compress a layer")?;
    drop(buffered);
    let blob = writer.finish();
    let holder = Holder { digest: blob.digest().clone(), size: blob.size(), made: Some(how.edition()) };
    part.descriptor =
        Descriptor { digest: holder.digest.clone(), size: holder.size, ..Descriptor::of(&media_type, b"") };
    addition.add_holder(part.diff_id.clone(), holder);
    addition.add(blob);
    Ok(())
}
