//! What does nobody need any more?

use std::collections::BTreeSet;

use anyhow::Result;
use report::Kind;
use rustix::fs::FlockOperation;

use super::{Image, LOCK, Store};
use crate::digest::Digest;
use crate::manifest::{Descriptor, Document};

/// What images lead to, whether it is there or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    pub blobs: BTreeSet<Digest>,
    /// Diff ids.
    pub layers: BTreeSet<Digest>,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    pub blobs: Vec<Digest>,
    /// Diff ids.
    pub layers: Vec<Digest>,
    pub bytes: u64,
}

/// While others add or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    Yes,
    /// Then nothing is removed.
    No,
}

impl Store {
    /// Everything that images lead to. What cannot be read is passed to `damaged`.
    pub fn reachable(&self, mut damaged: impl FnMut(&Image, anyhow::Error)) -> Result<Reached> {
        let mut reached = Reached::default();
        for image in self.images()? {
            if let Err(e) = self.reach(&image.target, &mut reached) {
                damaged(&image, e);
            }
        }
        for (_, pin) in self.pins()? {
            for blob in pin.blobs {
                reached.blobs.extend(self.base_of(&blob)?);
                reached.blobs.insert(blob);
            }
            reached.layers.extend(pin.layers);
        }
        Ok(reached)
    }

    /// Everything that one descriptor leads to.
    pub fn reach(&self, target: &Descriptor, reached: &mut Reached) -> Result<()> {
        let mut open = vec![target.clone()];
        while let Some(descriptor) = open.pop() {
            if !reached.blobs.insert(descriptor.digest.clone())
                || !(descriptor.is_index() || descriptor.is_manifest())
            {
                continue;
            }
            let document = match self.document(&descriptor) {
                // Of another platform, and never fetched.
                Err(e) if report::kind(&e) == Some(Kind::NotFound) && descriptor != *target => continue,
                other => other?,
            };
            match document {
                Document::Index(index) => open.extend(index.manifests),
                Document::Manifest(manifest) => {
                    if manifest.config.is_config() {
                        reached.layers.extend(self.config(&manifest)?.rootfs.diff_ids);
                    }
                    for layer in &manifest.layers {
                        reached.blobs.extend(self.base_of(&layer.digest)?);
                    }
                    open.extend(manifest.layers);
                    open.push(manifest.config);
                }
            }
        }
        Ok(())
    }

    /// Remove the blobs and layers that no image leads to; `None` if others add or read, and `wait` says not to wait for them.
    /// An image that cannot be read is an error, and nothing is removed: what it needs would not be known.
    pub fn sweep(&self, wait: Wait) -> Result<Option<Freed>> {
        let _alone = match wait {
            Wait::Yes => self.lock_file(LOCK, FlockOperation::LockExclusive)?,
            Wait::No => match self.try_lock_file(LOCK)? {
                Some(lock) => lock,
                None => return Ok(None),
            },
        };
        let unneeded = self.unneeded()?;
        for blob in &unneeded.blobs {
            self.remove_blob(blob)?;
        }
        for layer in &unneeded.layers {
            self.discard(&Self::layer_path(layer))?;
        }
        Ok(Some(unneeded))
    }

    /// Layers that are needed although no image leads to them: by mounts, and by steps of builds.
    pub(super) fn kept_layers(&self) -> Result<Vec<Digest>> {
        let mut kept = self.mounted_layers()?;
        kept.extend(self.steps()?.into_iter().filter_map(|kept| kept.step.layer));
        Ok(kept)
    }

    /// What [`Store::sweep`] would remove.
    pub fn unneeded(&self) -> Result<Freed> {
        let mut first = None;
        let reached = self.reachable(|image, e| {
            first.get_or_insert(e.context(format!("image {}", image.title())));
        })?;
        if let Some(e) = first {
            return Err(e);
        }
        let mounted = self.kept_layers()?;
        let mut freed = Freed::default();
        for (digest, size, _) in self.blobs()? {
            if !reached.blobs.contains(&digest) {
                freed.bytes += size;
                freed.blobs.push(digest);
            }
        }
        for layer in self.layers()? {
            if !reached.layers.contains(&layer) && !mounted.contains(&layer) {
                freed.bytes += self.layer(&layer)?.map_or(0, |l| l.bytes);
                freed.layers.push(layer);
            }
        }
        Ok(freed)
    }
}
