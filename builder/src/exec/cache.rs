//! How do builds on several machines share what they made? As an artifact that a registry, a folder or an image keeps: records of
//! steps by their keys, and the layers of those that are worth it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufWriter, Read, Write};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use image::digest::Algorithm;
use image::family::{Family, LayerType};
use image::layer::compress::{Compression, compress, unpacked};
use image::manifest::{Config, Descriptor, Manifest, OCI_LAYER};
use image::store::{Addition, Archive, Blob, Holder, Step};
use image::{Digest, Store, workers};
use serde::{Deserialize, Serialize};

use super::{Bases, Shared, lock};

/// The media type of the records.
pub const MEDIA_TYPE: &str = "application/vnd.berth.buildcache.v1+json";
/// Where an image's config has them (`type=inline`).
const INLINE: &str = "dev.berth.buildcache";
/// Bytes of records that are read.
pub const RECORDS_MOST: u64 = 64 << 20;
const VERSION: u32 = 1;

/// A step's content is needed, and is nowhere: it has to be made after all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent(pub String);

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what {} made is not in the cache", self.0)
    }
}

impl std::error::Error for Absent {}

/// What a cache has.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Records {
    version: u32,
    steps: Vec<Record>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    key: Digest,
    title: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    empty: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instead: Option<Digest>,
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    note: serde_json::Value,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    archives: BTreeMap<String, Archive>,
    /// Of the manifest's layers, the one that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layer: Option<usize>,
}

/// Caches that a build was given.
#[derive(Debug, Default)]
pub struct Remote {
    steps: BTreeMap<Digest, (Step, Option<(usize, Descriptor)>)>,
}

impl Remote {
    /// Take in a cache, or an image with one: its manifest, and its records or config.
    pub fn add(&mut self, source: usize, manifest: &Manifest, bytes: &[u8]) -> Result<usize> {
        let records = if manifest.config.media_type == MEDIA_TYPE {
            serde_json::from_slice(bytes).context("the cache's records")?
        } else {
            let config = Config::parse(bytes, manifest.layers.len())?;
            match config.other.get(INLINE) {
                Some(value) => serde_json::from_value(value.clone()).context("the image's cache records")?,
                None => Records { version: VERSION, steps: Vec::new() },
            }
        };
        ensure!(
            records.version == VERSION,
            "cache records of version {}, expected {VERSION}",
            records.version
        );
        let count = records.steps.len();
        for record in records.steps {
            let layer = match record.layer {
                Some(n) => {
                    Some(manifest.layers.get(n).context("a cache record names a layer that is not there")?)
                }
                None => None,
            };
            let mut step = Step::of(&record.title);
            (step.empty, step.note, step.archives) = (record.empty, record.note, record.archives);
            step.instead = record.instead;
            let layer = layer.map(|l| (source, l.clone()));
            // One with its content is worth more than one without.
            match self.steps.get(&record.key) {
                Some((_, Some(_))) => {}
                _ => drop(self.steps.insert(record.key, (step, layer))),
            }
        }
        Ok(count)
    }

    /// What is known of a step; `whole`: only if its content can be had.
    pub fn step(&self, key: &Digest, label: &str, whole: bool) -> Option<&Step> {
        let (step, layer) = self.steps.get(key)?;
        let usable = step.empty
            || step.instead.is_some()
            || (step.archives.contains_key(label) && (layer.is_some() || !whole));
        usable.then_some(step)
    }

    /// Get a step's layer.
    pub fn fetch(&self, key: &Digest, bases: &dyn Bases, addition: &Addition<'_>) -> Result<Option<Blob>> {
        let Some((step, Some((source, descriptor)))) = self.steps.get(key) else { return Ok(None) };
        let writer = Mutex::new(None);
        bases
            .cached(*source, descriptor, &mut |from: &mut (dyn Read + Send)| {
                let mut to = addition.writer(Algorithm::Sha256)?;
                let ((), content) = unpacked(from, |plain| {
                    let mut buffered = BufWriter::with_capacity(256 << 10, &mut to);
                    std::io::copy(plain, &mut buffered)?;
                    Ok(buffered.flush()?)
                })?;
                let known = step.archives.values().any(|a| a.diff_id == content.digest);
                ensure!(known, "it holds {}, not what the cache promises", content.digest);
                *lock(&writer) = Some(to);
                Ok(())
            })
            .with_context(|| format!("fetch the layer of {} from the cache", step.title))?;
        Ok(lock(&writer).take().map(image::store::Writer::finish))
    }
}

/// Which layers go along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Those of the image.
    Min,
    /// All that were made.
    Max,
}

/// Records of what a build used and made: all that it needs to know again.
fn records(store: &Store, shared: &Shared, label: &str) -> Result<Vec<Record>> {
    let mut found = Vec::new();
    let mut used = lock(&shared.used).clone();
    used.sort();
    used.dedup();
    for key in used {
        let Some(mut step) = store.step(&key)? else { continue };
        // Others can go on from it without its archive, whatever that would be.
        if !step.empty && step.instead.is_none() && !step.archives.contains_key(label) {
            step.archives.insert(label.to_owned(), Archive { diff_id: key.clone(), size: 0 });
        }
        found.push(Record {
            key,
            title: step.title,
            empty: step.empty,
            instead: step.instead,
            note: step.note,
            archives: step.archives,
            layer: None,
        });
    }
    Ok(found)
}

/// What an image's config says of its steps.
pub fn inline(
    store: &Store,
    shared: &Shared,
    diff_ids: &[Digest],
    label: &str,
    config: &mut Config,
) -> Result<()> {
    let mut steps = records(store, shared, label)?;
    for step in &mut steps {
        step.layer = diff_ids.iter().position(|d| step.archives.values().any(|a| a.diff_id == *d));
    }
    let records = Records { version: VERSION, steps };
    config.other.insert(INLINE.to_owned(), serde_json::to_value(&records)?);
    Ok(())
}

/// Make the artifact, without a name; whoever sends it away forgets it then.
pub fn export(
    store: &Store,
    shared: &Shared,
    image: &[Digest],
    mode: Mode,
    how: Compression,
    label: &str,
) -> Result<Descriptor> {
    let mut addition = store.begin()?;
    let mut steps = records(store, shared, label)?;
    let mut layers: Vec<Descriptor> = Vec::new();
    for record in &mut steps {
        if record.empty || record.instead.is_some() {
            continue;
        }
        let step = store.step(&record.key)?.context("a step has gone meanwhile")?;
        let mut known = step.archives.get(label).cloned();
        let wanted = mode == Mode::Max || known.as_ref().is_some_and(|a| image.contains(&a.diff_id));
        if !wanted {
            continue;
        }
        let mut plain = None;
        if let Some(archive) = &known
            && store.has(&archive.diff_id)?
        {
            plain = Some(store.blob(&archive.diff_id)?);
        } else if let Some(tree) = store.step_tree(&record.key, &step)? {
            let latest = label.parse().ok();
            let blob = addition.archive(std::os::fd::AsFd::as_fd(&tree), latest)?;
            known = Some(Archive { diff_id: blob.digest().clone(), size: blob.size() });
            plain = Some(blob.file(store)?);
        }
        let (Some(archive), Some(mut plain)) = (known, plain) else { continue };
        record.archives.insert(label.to_owned(), archive.clone());
        let media_type =
            LayerType { packing: how.packing(), family: Family::Oci, foreign: false }.to_string();
        let holders = store.holders(&archive.diff_id)?;
        let here = holders.iter().find(|h| h.made.as_ref() == Some(&how.edition()));
        let (digest, size) = match here {
            Some(holder) if store.has(&holder.digest)? => (holder.digest.clone(), holder.size),
            _ => {
                let mut writer = addition.writer(Algorithm::Sha256)?;
                let mut buffered = BufWriter::with_capacity(256 << 10, &mut writer);
                compress(&mut plain, &mut buffered, how, workers::processors())?;
                buffered.flush().context("compress a layer")?;
                drop(buffered);
                let blob = writer.finish();
                let holder =
                    Holder { digest: blob.digest().clone(), size: blob.size(), made: Some(how.edition()) };
                let found = (holder.digest.clone(), holder.size);
                addition.add_holder(archive.diff_id.clone(), holder);
                addition.add(blob);
                found
            }
        };
        let place = layers.iter().position(|l| l.digest == digest).unwrap_or_else(|| {
            layers.push(Descriptor { digest, size, ..Descriptor::of(&media_type, b"") });
            layers.len() - 1
        });
        record.layer = Some(place);
    }
    let bytes = serde_json::to_vec(&Records { version: VERSION, steps })?;
    ensure!(bytes.len() as u64 <= RECORDS_MOST, "the cache's records have more than {RECORDS_MOST} bytes");
    let config = Descriptor::of(MEDIA_TYPE, &bytes);
    if layers.is_empty() {
        // image-spec, manifest.md: at least one.
        let empty = addition.add_bytes(&[0; 1024])?;
        layers.push(Descriptor { digest: empty, size: 1024, ..Descriptor::of(OCI_LAYER, b"") });
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(Family::Oci.manifest().to_owned()),
        artifact_type: Some(MEDIA_TYPE.to_owned()),
        config,
        layers,
        subject: None,
        annotations: BTreeMap::new(),
    };
    let text = serde_json::to_vec(&manifest)?;
    let target = Descriptor::of(Family::Oci.manifest(), &text);
    addition.add_bytes(&bytes)?;
    addition.add_bytes(&text)?;
    addition.name(None, target.clone());
    addition.commit().context("make the cache's artifact")?;
    Ok(target)
}

/// `type=registry,ref=…`, `type=local,src=…`, or a name alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// A place of an image: a registry's, or a layout's.
    Place(String),
    Inline,
}

/// A `--cache-from` or `--cache-to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub spec: Spec,
    pub mode: Mode,
    pub compression: Option<Compression>,
    /// That it fails does not matter.
    pub ignore_error: bool,
}

impl Said {
    pub fn parse(flag: &str, text: &str) -> Result<Said> {
        let mut said = Said {
            spec: Spec::Place(text.to_owned()),
            mode: Mode::Min,
            compression: None,
            ignore_error: false,
        };
        if !text.contains('=') {
            ensure!(!text.is_empty(), "{flag}: it is empty");
            return Ok(Said { spec: Spec::Place(format!("docker://{text}")), ..said });
        }
        let (mut kind, mut place, mut tag, mut level) = (None, None, None, None);
        for field in text.split(',') {
            let (name, value) =
                field.split_once('=').with_context(|| format!("{flag} {text}: {field:?} has no ="))?;
            match name {
                "type" => kind = Some(value),
                "ref" | "src" | "dest" => place = Some(value),
                "tag" => tag = Some(value),
                "mode" => {
                    said.mode = match value {
                        "min" => Mode::Min,
                        "max" => Mode::Max,
                        other => bail!("{flag} {text}: mode is min or max, not {other:?}"),
                    }
                }
                "compression" => said.compression = Some(value.parse().with_context(|| flag.to_owned())?),
                "compression-level" => level = value.parse().ok(),
                "ignore-error" => said.ignore_error = value == "true",
                // How it lies there is ours to choose.
                "oci-mediatypes" | "image-manifest" | "force-compression" => {}
                other => bail!("{flag} {text}: unknown option {other:?}"),
            }
        }
        if let Some(level) = level {
            said.compression = Some(said.compression.unwrap_or(Compression::GZIP).with_level(level)?);
        }
        let needs = |what: &str| format!("{flag} {text}: {what}=… is missing");
        said.spec = match kind.unwrap_or("registry") {
            "registry" => Spec::Place(format!("docker://{}", place.with_context(|| needs("ref"))?)),
            "local" => {
                let folder =
                    place.with_context(|| needs(if flag.ends_with("to") { "dest" } else { "src" }))?;
                Spec::Place(format!("oci:{folder}:{}", tag.unwrap_or("latest")))
            }
            "inline" => Spec::Inline,
            other => bail!("{flag} {text}: type is registry, local or inline, not {other:?}"),
        };
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_as_buildx_has_them() {
        for (text, spec, mode) in [
            ("reg.example/c", Spec::Place("docker://reg.example/c".to_owned()), Mode::Min),
            (
                "type=registry,ref=reg.example/c,mode=max",
                Spec::Place("docker://reg.example/c".to_owned()),
                Mode::Max,
            ),
            ("type=local,dest=/x", Spec::Place("oci:/x:latest".to_owned()), Mode::Min),
            ("type=local,src=/x,tag=t", Spec::Place("oci:/x:t".to_owned()), Mode::Min),
            ("type=inline", Spec::Inline, Mode::Min),
        ] {
            let said = Said::parse("--cache-to", text).unwrap();
            assert_eq!((said.spec, said.mode), (spec, mode), "{text}");
        }
        for (text, reason) in [
            ("", "empty"),
            ("type=gha", "registry, local or inline"),
            ("type=registry", "ref=… is missing"),
            ("type=local,mode=max", "dest=… is missing"),
            ("type=registry,ref=x,mode=mid", "min or max"),
            ("type=registry,quux=1", "unknown option"),
        ] {
            let error = report::line(&Said::parse("--cache-to", text).unwrap_err());
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
