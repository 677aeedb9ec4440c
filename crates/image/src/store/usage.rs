//! What uses the disk, and how much of it?

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::sweep::Reached;
use super::{Freed, Image, Store};
use crate::digest::Digest;

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
            ImageUsage {
                image: image.clone(),
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
