//! What is there to tell about an image?

use std::convert::Infallible;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use image::manifest::{Config, Descriptor, Document, Execution, Manifest, Platform};
use image::store::Image;
use image::{Digest, Reference, Store, workers};
use report::{Explain, Kind, error};
use serde_json::{Map, Value, json};

/// An image with what it is made of.
#[derive(Clone, Debug)]
pub struct Facts {
    pub image: Image,
    /// The config's digest; of what has none that can be run, the target's.
    pub id: Digest,
    /// The manifest for this machine; None: an index without one that is here.
    pub manifest: Option<(Descriptor, Manifest)>,
    pub config: Option<Config>,
    /// Bytes: unpacked, as far as the layers are.
    pub size: u64,
}

/// What an image is for this machine.
pub fn facts(store: &Store, image: &Image) -> Result<Facts> {
    let title = || format!("image {}", image.title());
    let manifest = for_here(store, &image.target).with_context(title)?;
    let mut facts =
        Facts { image: image.clone(), id: image.target.digest.clone(), manifest, config: None, size: 0 };
    let Some((_, manifest)) = &facts.manifest else { return Ok(facts) };
    if manifest.config.is_config() {
        let config = store.config(manifest).with_context(title)?;
        if !image.target.is_index() {
            facts.id = manifest.config.digest.clone();
        }
        for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            facts.size += store.layer(diff_id)?.map_or(layer.size, |l| l.bytes);
        }
        facts.config = Some(config);
    } else {
        facts.size = manifest.layers.iter().map(|l| l.size).sum();
    }
    Ok(facts)
}

/// The same of many at a time, in their order.
pub fn all(store: &Store, images: &[Image]) -> Vec<Result<Facts>> {
    let found: Vec<OnceLock<Result<Facts>>> = images.iter().map(|_| OnceLock::new()).collect();
    let threads = match images.len() {
        0..32 => 1,
        _ => workers::processors().get(),
    };
    let gathered: Result<(), Infallible> = workers::each(images, threads, |i, image| {
        found[i].get_or_init(|| facts(store, image));
        Ok(())
    });
    let Ok(()) = gathered;
    found.into_iter().filter_map(OnceLock::into_inner).collect()
}

/// The manifest that suits this machine, of those that are in the store.
pub fn for_here(store: &Store, target: &Descriptor) -> Result<Option<(Descriptor, Manifest)>> {
    let index = match store.document(target)? {
        Document::Manifest(manifest) => return Ok(Some((target.clone(), manifest))),
        Document::Index(index) => index,
    };
    let mut here = index.clone();
    here.manifests.retain(|d| store.has(&d.digest).unwrap_or(false));
    let chosen = image::platform::choose(&here, &Platform::own(), false)
        .ok()
        .or_else(|| here.manifests.first().cloned());
    match chosen {
        Some(chosen) => for_here(store, &chosen),
        None => Ok(None),
    }
}

/// The image that a user means: by name, or by the first digits of its id or digest.
pub fn find(store: &Store, text: &str) -> Result<Image> {
    let reference: Result<Reference> = text.parse();
    if let Ok(reference) = &reference {
        match store.image(reference) {
            Err(e) if report::kind(&e) == Some(Kind::NotFound) => {}
            other => return other,
        }
    }
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let is_prefix = !digits.is_empty()
        && digits.len() <= 64
        && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if is_prefix {
        let mut found: Vec<(Digest, Image)> = Vec::new();
        let images = store.images()?;
        let facts = all(store, &images);
        for (image, facts) in images.into_iter().zip(facts) {
            let id = facts.map_or_else(|_| image.target.digest.clone(), |f| f.id);
            let fits = id.hex().starts_with(digits) || image.target.digest.hex().starts_with(digits);
            if fits && !found.iter().any(|(known, _)| *known == id) {
                found.push((id, image));
            }
        }
        match found.len() {
            1 => return Ok(found.remove(0).1),
            0 => {}
            n => return Err(error(Kind::BadInput, format!("{text}: {n} images begin so; give more digits"))),
        }
    }
    let none: Result<Image> = Err(match reference {
        Ok(reference) => error(Kind::NotFound, format!("no image {}", reference.familiar())),
        // It could have been an id.
        Err(_) if is_prefix => error(Kind::NotFound, format!("no image {text}")),
        Err(e) => e,
    });
    none.hint(|| "berth-builder images".to_owned())
}

/// All names of the same image.
pub fn names(store: &Store, image: &Image) -> Result<Vec<Reference>> {
    let all = store.images()?.into_iter().filter(|i| i.target.digest == image.target.digest);
    Ok(all.filter_map(|i| i.reference).collect())
}

impl Facts {
    pub fn platform(&self) -> String {
        match &self.config {
            Some(c) => {
                let variant = c.variant.as_ref().map_or(String::new(), |v| format!("/{v}"));
                format!("{}/{}{variant}", c.os, c.architecture)
            }
            None => String::new(),
        }
    }

    /// When it was made, in seconds since 1970.
    pub fn created(&self) -> Option<i64> {
        let text = self.config.as_ref()?.created.as_ref()?;
        Some(text.parse::<jiff::Timestamp>().ok()?.as_second())
    }

    pub fn labels(&self) -> Map<String, Value> {
        let labels = self.config.as_ref().and_then(|c| c.config.as_ref()?.labels.clone());
        labels.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into())).collect()
    }

    /// What `docker inspect` prints of an image.
    pub fn inspect(&self, names: &[Reference]) -> Value {
        let config = self.config.clone().unwrap_or_default();
        let execution = config.config.clone().unwrap_or_default();
        let tags: Vec<_> = names.iter().filter(|n| n.tag().is_some()).map(Reference::familiar).collect();
        let digests: Vec<_> =
            names.iter().map(|n| format!("{}@{}", n.familiar_name(), self.image.target.digest)).collect();
        let other = |name: &str| config.other.get(name).cloned().unwrap_or(Value::Null);
        json!({
            "Id": self.id,
            "RepoTags": tags,
            "RepoDigests": digests,
            "Digest": self.image.target.digest,
            "MediaType": self.image.target.media_type,
            "Created": config.created,
            "Author": other("author"),
            "DockerVersion": other("docker_version"),
            "Architecture": config.architecture,
            "Variant": config.variant,
            "Os": config.os,
            "OsVersion": other("os.version"),
            "Size": self.size,
            "Config": execution_of(&execution),
            "RootFS": {"Type": config.rootfs.kind, "Layers": config.rootfs.diff_ids},
            "Labels": self.labels(),
            "Annotations": self.manifest.as_ref().map(|(_, m)| m.annotations.clone()).unwrap_or_default(),
            "History": config.history,
        })
    }
}

/// With a null where docker has one.
fn execution_of(execution: &Execution) -> Value {
    let mut all = execution.other.clone();
    let own = [
        ("User", json!(execution.user.clone().unwrap_or_default())),
        ("ExposedPorts", json!(execution.exposed_ports)),
        ("Env", json!(execution.env)),
        ("Entrypoint", json!(execution.entrypoint)),
        ("Cmd", json!(execution.cmd)),
        ("Volumes", json!(execution.volumes)),
        ("WorkingDir", json!(execution.working_dir.clone().unwrap_or_default())),
        ("Labels", json!(execution.labels)),
    ];
    all.extend(own.map(|(k, v)| (k.to_owned(), v)));
    if let Some(signal) = &execution.stop_signal {
        all.insert("StopSignal".to_owned(), json!(signal));
    }
    json!(all)
}
