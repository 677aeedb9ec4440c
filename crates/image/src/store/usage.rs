//! What uses the disk, and how much of it?

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::sweep::Reached;
use super::{Freed, Image, Store};
use crate::digest::Digest;

/// Something that an image uses. A layer's blob that is not compressed has the layer's own digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Blob(Digest),
    /// Unpacked, by its diff id.
    Layer(Digest),
}

/// What an image uses. Images under several names are one each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUsage {
    pub image: Image,
    /// Bytes of its manifests, configs and compressed layers.
    pub blobs: u64,
    /// Bytes of its unpacked layers.
    pub layers: u64,
    /// Of both, what other images need too.
    pub shared: u64,
    /// All of it, each with its bytes; what is not here has none.
    pub parts: Vec<(Part, u64)>,
}

/// What a store uses, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub images: Vec<ImageUsage>,
    pub blobs: u64,
    pub layers: u64,
    /// What the next sweep removes.
    pub unneeded: Freed,
}

impl Store {
    /// How many of these images have to go, from the first on, until what the others need is no more than `keep` bytes.
    /// Names of one image count for it together: it is gone with the last.
    pub fn enough(&self, going: &[Image], keep: u64) -> Result<usize> {
        let usage = self.usage()?;
        let mut used = (usage.blobs + usage.layers).saturating_sub(usage.unneeded.bytes);
        let mut names: BTreeMap<&Digest, usize> = BTreeMap::new();
        let mut users: BTreeMap<&Part, (u64, usize)> = BTreeMap::new();
        for of_one in &usage.images {
            let count = names.entry(&of_one.image.target.digest).or_default();
            *count += 1;
            if *count == 1 {
                for (part, size) in &of_one.parts {
                    users.entry(part).or_insert((*size, 0)).1 += 1;
                }
            }
        }
        for (gone, image) in going.iter().enumerate() {
            if used <= keep {
                return Ok(gone);
            }
            let Some(left) = names.get_mut(&image.target.digest) else { continue };
            *left = left.saturating_sub(1);
            let parts = usage.images.iter().find(|u| u.image.target.digest == image.target.digest);
            if *left > 0 {
                continue;
            }
            for (part, _) in parts.iter().flat_map(|p| &p.parts) {
                if let Some((size, by)) = users.get_mut(part) {
                    *by -= 1;
                    if *by == 0 {
                        used = used.saturating_sub(*size);
                    }
                }
            }
        }
        Ok(going.len())
    }

    /// What uses the disk. An image that cannot be read is an error.
    pub fn usage(&self) -> Result<Usage> {
        let _lease = self.lease()?;
        let blobs: BTreeMap<Digest, u64> =
            self.blobs()?.into_iter().map(|(digest, size, _)| (digest, size)).collect();
        let mut layers = BTreeMap::new();
        for layer in self.layers()? {
            let bytes = self.layer(&layer)?.map_or(0, |l| l.bytes);
            layers.insert(layer, bytes);
        }
        let mut reached = Vec::new();
        // How many images (not names) need each.
        let mut needed: (BTreeMap<&Digest, usize>, BTreeMap<&Digest, usize>) = Default::default();
        let images = self.images()?;
        for image in &images {
            let mut own = Reached::default();
            self.reach(&image.target, &mut own).with_context(|| format!("image {}", image.title()))?;
            reached.push(own);
        }
        for (i, own) in reached.iter().enumerate() {
            if images[..i].iter().any(|other| other.target.digest == images[i].target.digest) {
                continue;
            }
            own.blobs.iter().for_each(|b| *needed.0.entry(b).or_default() += 1);
            own.layers.iter().for_each(|l| *needed.1.entry(l).or_default() += 1);
        }
        let size_of = |sizes: &BTreeMap<Digest, u64>, digest| sizes.get(digest).copied().unwrap_or_default();
        let usages = images.iter().zip(&reached).map(|(image, own)| {
            let of_blobs = own.blobs.iter().map(|b| (size_of(&blobs, b), needed.0[b]));
            let of_layers = own.layers.iter().map(|l| (size_of(&layers, l), needed.1[l]));
            let shared = of_blobs.clone().chain(of_layers.clone()).filter(|(_, by)| *by > 1);
            let layers_of = own.layers.iter().map(|l| (Part::Layer(l.clone()), size_of(&layers, l)));
            ImageUsage {
                image: image.clone(),
                parts: own
                    .blobs
                    .iter()
                    .map(|b| (Part::Blob(b.clone()), size_of(&blobs, b)))
                    .chain(layers_of)
                    .collect(),
                shared: shared.map(|(size, _)| size).sum(),
                blobs: of_blobs.map(|(size, _)| size).sum(),
                layers: of_layers.map(|(size, _)| size).sum(),
            }
        });
        Ok(Usage {
            images: usages.collect(),
            blobs: blobs.values().sum(),
            layers: layers.values().sum(),
            unneeded: self.unneeded()?,
        })
    }
}
