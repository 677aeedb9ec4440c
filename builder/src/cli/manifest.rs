//! Lists of images for several platforms.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use image::manifest::{Descriptor, Document, Index, OCI_INDEX, Platform};
use image::store::{Image, Wait};
use image::{Digest, Reference, Store};

use super::{App, Registry, print, pull, push};
use crate::facts::{find, for_here};

#[derive(Debug, Args)]
pub struct Manifest {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a list, of these images
    Create {
        list: String,
        images: Vec<String>,
        /// Replace what has the name
        #[arg(long, short)]
        amend: bool,
        /// All platforms of images that are lists themselves
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        registry: Registry,
    },
    /// Add an image to a list
    Add {
        list: String,
        #[arg(required = true)]
        images: Vec<String>,
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        platform: Told,
        #[command(flatten)]
        registry: Registry,
    },
    /// Change what a list says of an image
    Annotate {
        list: String,
        /// A name, or a digest of the list
        image: String,
        #[command(flatten)]
        platform: Told,
    },
    /// Print a list, or the manifest of an image
    Inspect {
        image: String,
        #[command(flatten)]
        registry: Registry,
    },
    /// Send a list and all that it has
    Push {
        list: String,
        destination: Option<String>,
        /// Whether all is sent, which is so in any case
        #[arg(long, hide = true)]
        all: bool,
        /// Forget the list afterwards
        #[arg(long, short)]
        purge: bool,
        #[command(flatten)]
        registry: Registry,
    },
    /// Remove lists
    Rm {
        #[arg(required = true)]
        lists: Vec<String>,
    },
    /// Take an image out of a list
    Remove { list: String, digest: String },
}

/// What a list says of an image, where that is to be something else.
#[derive(Debug, Args)]
struct Told {
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    #[arg(long, value_name = "NAME")]
    os: Option<String>,
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    #[arg(long, value_name = "VERSION")]
    os_version: Option<String>,
    #[arg(long, value_name = "FEATURE")]
    os_features: Vec<String>,
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
}

impl Told {
    fn apply(&self, entry: &mut Descriptor) -> Result<()> {
        let platform = entry.platform.get_or_insert_default();
        let set = |to: &mut String, from: &Option<String>| {
            if let Some(from) = from {
                to.clone_from(from);
            }
        };
        set(&mut platform.architecture, &self.arch);
        set(&mut platform.os, &self.os);
        if self.variant.is_some() {
            platform.variant.clone_from(&self.variant);
        }
        if self.os_version.is_some() {
            platform.os_version.clone_from(&self.os_version);
        }
        if !self.os_features.is_empty() {
            platform.os_features.clone_from(&self.os_features);
        }
        for annotation in &self.annotation {
            let pair = annotation.split_once('=');
            let (key, value) =
                pair.with_context(|| format!("--annotation {annotation:?}: expected KEY=VALUE"))?;
            entry.annotations.insert(key.to_owned(), value.to_owned());
        }
        Ok(())
    }
}

fn index_of(store: &Store, list: &str) -> Result<(Image, Index)> {
    let image = find(store, list)?;
    match store.document(&image.target)? {
        Document::Index(index) => Ok((image, index)),
        Document::Manifest(_) => bail!("{list}: it is an image, no list of images"),
    }
}

/// Keep a list under its name.
fn keep(store: &Store, name: Reference, index: &Index) -> Result<Digest> {
    let bytes = serde_json::to_vec(index)?;
    let mut addition = store.begin()?;
    addition.add_bytes(&bytes)?;
    let media_type = index.media_type.as_deref().unwrap_or(OCI_INDEX);
    let target = Descriptor::of(media_type, &bytes);
    let digest = target.digest.clone();
    addition.name(Some(name), target);
    addition.commit()?;
    Ok(digest)
}

/// What a list says of an image that is here.
fn entries(store: &Store, image: &Image, all: bool) -> Result<Vec<Descriptor>> {
    if all && let Document::Index(index) = store.document(&image.target)? {
        return Ok(index.manifests);
    }
    let found = for_here(store, &image.target)?;
    let (mut target, manifest) =
        found.with_context(|| format!("{}: nothing of it is here", image.title()))?;
    if target.platform.is_none() && manifest.config.is_config() {
        let config = store.config(&manifest)?;
        target.platform = Some(Platform {
            architecture: config.architecture,
            os: config.os,
            variant: config.variant,
            ..Platform::default()
        });
    }
    target.annotations = BTreeMap::new();
    Ok(vec![target])
}

fn add(index: &mut Index, new: Vec<Descriptor>) {
    for entry in new {
        index.manifests.retain(|known| known.digest != entry.digest);
        index.manifests.push(entry);
    }
}

pub fn run(app: &App, args: Manifest) -> Result<i32> {
    let store = app.store()?;
    match args.verb {
        Verb::Create { list, images, amend, all, registry } => {
            let name: Reference = list.parse()?;
            ensure!(
                amend || store.image(&name).is_err(),
                "{list}: there is such an image; --amend replaces it"
            );
            let mut index = Index::of(Vec::new());
            for text in &images {
                let image = pull::fetch(app, &store, text, &registry, None)?;
                add(&mut index, entries(&store, &image, all)?);
            }
            let digest = keep(&store, name, &index)?;
            print(&format!("{}\n", digest.hex()))?;
        }
        Verb::Add { list, images, all, platform, registry } => {
            let (image, mut index) = index_of(&store, &list)?;
            let name = image.reference.with_context(|| format!("{list}: the list has no name"))?;
            for text in &images {
                let image = pull::fetch(app, &store, text, &registry, None)?;
                let mut new = entries(&store, &image, all)?;
                new.iter_mut().try_for_each(|entry| platform.apply(entry))?;
                add(&mut index, new);
            }
            let digest = keep(&store, name, &index)?;
            print(&format!("{}\n", digest.hex()))?;
        }
        Verb::Annotate { list, image, platform } => {
            let (found, mut index) = index_of(&store, &list)?;
            let name = found.reference.with_context(|| format!("{list}: the list has no name"))?;
            let digest = match image.parse::<Digest>() {
                Ok(digest) => digest,
                Err(_) => {
                    let found = find(&store, &image)?;
                    for_here(&store, &found.target)?.map_or(found.target.digest, |(d, _)| d.digest)
                }
            };
            let entry = index.manifests.iter_mut().find(|m| m.digest == digest);
            platform.apply(entry.with_context(|| format!("{list}: {image} is not in it"))?)?;
            keep(&store, name, &index)?;
        }
        Verb::Inspect { image, registry } => {
            let bytes = match find(&store, &image) {
                Ok(found) => store.blob_bytes(&found.target, image::manifest::MANIFEST_MOST)?,
                Err(_) => {
                    let reference = image.strip_prefix("docker://").unwrap_or(&image).parse()?;
                    let settings = registry.settings(&app.environment)?;
                    image::transfer::Source::root(&settings.repository(&reference)?)?.1
                }
            };
            let value: serde_json::Value = serde_json::from_slice(&bytes)?;
            print(&format!("{}\n", serde_json::to_string_pretty(&value)?))?;
        }
        Verb::Push { list, destination, all: _, purge, registry } => {
            let (image, _) = index_of(&store, &list)?;
            let to = destination.unwrap_or_else(|| list.clone());
            let root = push::push_all(app, &store, &image, &to, &registry)?;
            if purge {
                store.forget(&image.target.digest)?;
                store.sweep(Wait::No)?;
            }
            print(&format!("{}\n", root.digest))?;
        }
        Verb::Rm { lists } => {
            for list in &lists {
                let (image, _) = index_of(&store, list)?;
                store.forget(&image.target.digest)?;
                print(&format!("{}\n", image.target.digest))?;
            }
            store.sweep(Wait::No)?;
        }
        Verb::Remove { list, digest } => {
            let (image, mut index) = index_of(&store, &list)?;
            let name = image.reference.with_context(|| format!("{list}: the list has no name"))?;
            let digest: Digest = digest.parse()?;
            let before = index.manifests.len();
            index.manifests.retain(|m| m.digest != digest);
            ensure!(index.manifests.len() < before, "{list}: {digest} is not in it");
            keep(&store, name, &index)?;
        }
    }
    Ok(0)
}
