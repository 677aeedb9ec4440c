//! What `docker save` writes and `docker load` reads: an archive of images, with a list of them in `manifest.json`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use report::{Kind, error};
use serde::{Deserialize, Serialize};

use super::files::Files;
use super::layout::Spooled;
use crate::digest::{Algorithm, Digest, Hashing};
use crate::family::{Family, LayerType, Packing};
use crate::layer::compress::{SNIFFED, read_full, sniff};
use crate::layer::tar::{Header, Kind as Entry, Writer as Tar};
use crate::manifest::{CONFIG_MOST, Config, DOCKER_CONFIG, DOCKER_MANIFEST, Descriptor, Document, Manifest};
use crate::reference::Reference;
use crate::temporary::Spool;
use crate::transfer::{Source, Takes, Target};

const MANIFEST: &str = "manifest.json";
const LIST_MOST: u64 = 16 << 20;

/// An entry of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Item {
    pub config: String,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    pub layers: Vec<String>,
}

/// All images of an archive.
pub fn images(files: &dyn Files) -> Result<Vec<Item>> {
    let bytes = files.small(MANIFEST, LIST_MOST)?;
    serde_json::from_slice(&bytes).with_context(|| format!("{}: {MANIFEST}", files.title()))
}

/// The image of that name; without a name the only one.
pub fn image(files: &dyn Files, name: Option<&Reference>) -> Result<Item> {
    let all = images(files)?;
    let tags = |item: &Item| item.repo_tags.clone().unwrap_or_default();
    let listed = || all.iter().flat_map(&tags).collect::<Vec<_>>().join(", ");
    let fits = |item: &&Item| {
        name.is_none_or(|name| {
            tags(item).iter().any(|tag| tag.parse().is_ok_and(|tag: Reference| tag == *name))
        })
    };
    let found: Vec<_> = all.iter().filter(fits).collect();
    match (found.as_slice(), name) {
        ([one], _) => Ok((*one).clone()),
        ([], Some(name)) => {
            let text = format!("{}: no image {}; there are: {}", files.title(), name.familiar(), listed());
            Err(error(Kind::NotFound, text))
        }
        ([], None) => Err(error(Kind::NotFound, format!("{}: no image in it", files.title()))),
        _ => bail!("{}: several images; name one of: {}", files.title(), listed()),
    }
}

/// An image of an archive, to be read: as an image of schema 2, whose layers are what their diff ids say.
#[derive(Debug)]
pub struct Reading<'a> {
    files: &'a dyn Files,
    manifest: Vec<u8>,
    config: (Digest, Vec<u8>),
    /// The member that holds a layer.
    layers: BTreeMap<Digest, String>,
}

impl<'a> Reading<'a> {
    pub fn open(files: &'a dyn Files, item: &Item) -> Result<Reading<'a>> {
        let title = files.title();
        let bytes = files.small(&item.config, CONFIG_MOST)?;
        let config =
            Config::parse(&bytes, item.layers.len()).with_context(|| format!("{title}: {}", item.config))?;
        let mut layers = BTreeMap::new();
        let mut descriptors = Vec::new();
        for (name, diff_id) in item.layers.iter().zip(&config.rootfs.diff_ids) {
            let (mut content, size) = files.open(name)?;
            let at = || format!("{title}: {name}");
            let mut first = [0; SNIFFED];
            let have = read_full(&mut content, &mut first).with_context(at)?;
            let packing = sniff(&first[..have]).map_err(anyhow::Error::msg).with_context(at)?;
            let digest = match packing {
                Packing::Plain => diff_id.clone(),
                _ => digest_of(files, name)?,
            };
            let media_type = LayerType { family: Family::Docker, packing, foreign: false }.to_string();
            layers.insert(digest.clone(), name.clone());
            descriptors.push(Descriptor { digest, size, ..Descriptor::of(&media_type, b"") });
        }
        let config = Descriptor::of(DOCKER_CONFIG, &bytes);
        let digest = config.digest.clone();
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(DOCKER_MANIFEST.to_owned()),
            artifact_type: None,
            config,
            layers: descriptors,
            subject: None,
            annotations: BTreeMap::new(),
        };
        Ok(Reading { files, manifest: serde_json::to_vec(&manifest)?, config: (digest, bytes), layers })
    }
}

/// The digest of a member.
fn digest_of(files: &dyn Files, name: &str) -> Result<Digest> {
    let (content, _) = files.open(name)?;
    let mut hashing = Hashing::new(content, Algorithm::Sha256);
    std::io::copy(&mut hashing, &mut std::io::sink())
        .with_context(|| format!("{}: {name}", files.title()))?;
    Ok(hashing.finish().1)
}

impl Source for Reading<'_> {
    fn root(&self) -> Result<(Descriptor, Vec<u8>)> {
        Ok((Descriptor::of(DOCKER_MANIFEST, &self.manifest), self.manifest.clone()))
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        ensure!(descriptor.digest == Digest::of(&self.manifest), "no document {}", descriptor.digest);
        Ok(self.manifest.clone())
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        if descriptor.digest == self.config.0 {
            return Ok(Box::new(self.config.1.as_slice()));
        }
        let name = self.layers.get(&descriptor.digest);
        let name = name.with_context(|| format!("no layer {}", descriptor.digest))?;
        self.files.blob(name, descriptor)
    }
}

/// An archive that images go to, one after the other; written when the last has come.
#[derive(Debug)]
pub struct Writing {
    spooled: Spooled,
    items: Mutex<Vec<Item>>,
}

/// One of them.
#[derive(Debug)]
pub struct WritingImage<'a> {
    archive: &'a Writing,
    tags: Vec<Reference>,
}

fn layer_name(digest: &Digest) -> String {
    format!("{}.tar", digest.hex())
}

impl Writing {
    pub fn new(spool: Spool<'_>) -> Writing {
        Writing { spooled: Spooled::new(spool), items: Mutex::default() }
    }

    /// The next image, which gets these names.
    pub fn image(&self, tags: Vec<Reference>) -> WritingImage<'_> {
        WritingImage { archive: self, tags }
    }

    /// Write the archive.
    pub fn write(self, to: &mut (impl Write + ?Sized)) -> Result<()> {
        let items = self.items.into_inner().unwrap_or_else(PoisonError::into_inner);
        let write = || -> Result<()> {
            let mut tar = Tar::new(to);
            let mut there = Vec::new();
            let mut legacy: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
            for item in &items {
                for name in item.layers.iter().chain([&item.config]) {
                    if there.contains(&name) {
                        continue;
                    }
                    let hex = name.split('.').next().unwrap_or_default();
                    self.spooled.write(&format!("sha256:{hex}").parse()?, name, &mut tar)?;
                    there.push(name);
                }
                for tag in item.repo_tags.iter().flatten() {
                    if let (Some((name, tag)), Some(top)) = (tag.rsplit_once(':'), item.layers.last()) {
                        let top = top.trim_end_matches(".tar").to_owned();
                        legacy.entry(name.to_owned()).or_default().insert(tag.to_owned(), top);
                    }
                }
            }
            tar.entry(&Header::new(Entry::File, MANIFEST), &serde_json::to_vec(&items)?)?;
            if !legacy.is_empty() {
                tar.entry(&Header::new(Entry::File, "repositories"), &serde_json::to_vec(&legacy)?)?;
            }
            Ok(tar.finish()?.flush()?)
        };
        write().context("write the archive")
    }
}

impl Target for WritingImage<'_> {
    fn has(&self, descriptor: &Descriptor) -> Result<bool> {
        Ok(self.archive.spooled.has(&descriptor.digest))
    }

    fn put(&self, descriptor: &Descriptor, content: &mut (dyn Read + Send)) -> Result<()> {
        self.archive.spooled.put(descriptor, content)
    }

    fn put_new(&self, media_type: &str, content: &mut (dyn Read + Send)) -> Result<Descriptor> {
        self.archive.spooled.put_new(media_type, content)
    }

    fn put_document(&self, _descriptor: &Descriptor, _bytes: &[u8]) -> Result<()> {
        // It has no place in such an archive.
        Ok(())
    }

    fn finish(&self, root: &Descriptor, bytes: &[u8]) -> Result<()> {
        let Document::Manifest(manifest) = Document::parse(&root.media_type, bytes)? else {
            bail!("an archive of this kind takes images, no indexes");
        };
        let config = self.archive.spooled.bytes(&manifest.config.digest)?;
        let config = Config::parse(&config, manifest.layers.len())?;
        let layers = manifest.layers.iter().zip(&config.rootfs.diff_ids).map(|(layer, diff_id)| {
            ensure!(
                layer.digest == *diff_id,
                "layer {}: it is not {diff_id} as the config promises",
                layer.digest
            );
            Ok(layer_name(diff_id))
        });
        let item = Item {
            config: format!("{}.json", manifest.config.digest.hex()),
            repo_tags: Some(
                // Whole names: podman takes short ones for its own.
                self.tags.iter().filter(|t| t.tag().is_some()).map(Reference::to_string).collect(),
            ),
            layers: layers.collect::<Result<_>>()?,
        };
        self.archive.items.lock().unwrap_or_else(PoisonError::into_inner).push(item);
        Ok(())
    }

    fn takes(&self) -> Takes {
        Takes::DockerArchive
    }
}

#[cfg(test)]
mod tests;
