//! Caches that are elsewhere: read before a build, written after it.

use anyhow::{Context, Result, bail, ensure};
use image::Store;
use image::manifest::Document;
use image::transport::Place;

use super::super::{App, transfer};
use super::Build;
use super::sources::Sources;
use crate::exec::Shared;
use crate::exec::cache::{self, Remote, Said, Spec};
use crate::exec::commit::{Committed, Wish};
use crate::watch::Watch;

/// Open the caches that the build is given. One that cannot be read costs time, and nothing else.
pub fn open<'a>(
    app: &App,
    store: &'a Store,
    args: &Build,
    watch: &Watch,
    sources: &mut Sources<'a>,
) -> Result<Remote> {
    let mut remote = Remote::default();
    let settings = args.registry.settings(&app.environment)?;
    for text in &args.cache_from {
        let said = Said::parse("--cache-from", text)?;
        let Spec::Place(place) = &said.spec else {
            bail!("--cache-from {text}: the image's name, as type=registry,ref=NAME")
        };
        let place: Place = place.parse().with_context(|| format!("--cache-from {text}"))?;
        let mut read = || -> Result<transfer::Opened<'a>> {
            let opened = transfer::open(&place, &settings, store)?;
            opened.with(|source| {
                let (root, bytes) = source.root()?;
                let manifest = match Document::parse(&root.media_type, &bytes)? {
                    Document::Manifest(manifest) => manifest,
                    Document::Index(index) => {
                        let chosen = transfer::Wanted::new(None)?.choose(&index)?;
                        match Document::parse(&chosen.media_type, &source.document(&chosen)?)? {
                            Document::Manifest(manifest) => manifest,
                            Document::Index(_) => bail!("an index in an index"),
                        }
                    }
                };
                ensure!(manifest.config.size <= cache::RECORDS_MOST, "its records are too many");
                let mut bytes = Vec::new();
                source.blob(&manifest.config)?.read_to_end(&mut bytes)?;
                let digest = manifest.config.digest.algorithm().digest(&bytes);
                ensure!(digest == manifest.config.digest, "its records are other ones than it says");
                let count = remote.add(sources.caches.len(), &manifest, &bytes)?;
                watch.say(&format!("cache {text}: {count} steps"));
                Ok(())
            })?;
            Ok(opened)
        };
        match read() {
            Ok(opened) => sources.caches.push(opened),
            Err(e) => watch.say(&format!("warning: cache {text}: {}", report::line(&e))),
        }
    }
    Ok(remote)
}

/// Send what was made to where others find it.
#[allow(clippy::too_many_arguments, reason = "each is a different thing, once")]
pub fn give(
    app: &App,
    store: &Store,
    args: &Build,
    all: &[Said],
    shared: &Shared,
    done: &Committed,
    wish: &Wish,
    watch: &Watch,
) -> Result<()> {
    let settings = args.registry.settings(&app.environment)?;
    for said in all {
        let Spec::Place(text) = &said.spec else { continue };
        let place: Place = text.parse().with_context(|| format!("--cache-to {text}"))?;
        let give = || -> Result<()> {
            let label = wish.latest.map_or_else(|| "kept".to_owned(), |n| n.to_string());
            let how = said.compression.unwrap_or(image::layer::compress::Compression::GZIP);
            let target = cache::export(store, shared, &done.diff_ids, said.mode, how, &label)?;
            let image = image::store::Image { reference: None, target: target.clone() };
            let listener = |_: image::transfer::Event| {};
            let options = image::transfer::Options {
                choice: image::transfer::Choice::All,
                conversion: image::transfer::Conversion::default(),
                jobs: transfer::JOBS,
                listener: &listener,
            };
            let sent = transfer::send(&place, &settings, store, &store.reading(&image)?, &options);
            store.forget(&target.digest)?;
            sent.map(drop)
        };
        match give().with_context(|| format!("--cache-to {text}")) {
            Ok(()) => watch.say(&format!("cache sent to {text}")),
            Err(e) if said.ignore_error => watch.say(&format!("warning: {}", report::line(&e))),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
