//! Is everything as it was when it came, and what would be lost if not?

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Mutex;

use anyhow::Result;
use report::Kind;
use rustix::fs::FlockOperation;

use super::{Image, LOCK, Store};
use crate::digest::{Digest, Hasher};
use crate::layer::tree::fingerprint;
use crate::manifest::{Descriptor, Document};
use crate::workers;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A blob has other bytes than its name says.
    Blob { digest: Digest, what: String },
    /// An unpacked layer was changed; its blob is still there, so that nothing is lost.
    Layer { diff_id: Digest, what: String },
    /// An image lacks something that it needs.
    Image { image: Box<Image>, what: String },
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Damage::Blob { digest, what } => write!(f, "blob {digest}: {what}"),
            Damage::Layer { diff_id, what } => write!(f, "unpacked layer {diff_id}: {what}"),
            Damage::Image { image, what } => write!(f, "image {}: {what}", image.title()),
        }
    }
}

impl Store {
    /// Read everything and say what is damaged. With `repair`, damaged blobs, layers and the images that need them are removed.
    pub fn check(&self, repair: bool) -> Result<Vec<Damage>> {
        let _lock = match repair {
            true => self.lock_file(LOCK, FlockOperation::LockExclusive)?,
            false => self.lock_file(LOCK, FlockOperation::LockShared)?,
        };
        let mut damages = self.damaged_blobs()?;
        let bad: BTreeSet<_> = damages
            .iter()
            .filter_map(|d| match d {
                Damage::Blob { digest, .. } => Some(digest.clone()),
                _ => None,
            })
            .collect();
        for layer in self.layers()? {
            if let Some(what) = self.layer_damage(&layer) {
                damages.push(Damage::Layer { diff_id: layer, what });
            }
        }
        for image in self.images()? {
            if let Err(e) = self.holds_together(&image.target, &bad, true) {
                damages.push(Damage::Image { image: Box::new(image), what: report::line(&e) });
            }
        }
        if repair {
            for damage in &damages {
                match damage {
                    Damage::Blob { digest, .. } => {
                        self.remove_blob(digest)?;
                    }
                    Damage::Layer { diff_id, .. } => self.discard(&Self::tree_path(diff_id))?,
                    Damage::Image { image, .. } => self.forget(&image.target.digest).map(drop)?,
                }
            }
        }
        Ok(damages)
    }

    /// Blobs with other bytes than they should have; as many threads as processors read.
    fn damaged_blobs(&self) -> Result<Vec<Damage>> {
        let blobs = self.blobs()?;
        let found = Mutex::new(Vec::new());
        workers::each(&blobs, workers::processors().get(), |_, (digest, ..)| {
            let read = || -> Result<Digest> {
                if let Some(is) = self.spliced_digest(digest)? {
                    return Ok(is);
                }
                let mut file = self.blob(digest)?;
                let mut hasher = Hasher::new(digest.algorithm());
                let mut buffer = vec![0; 256 << 10];
                loop {
                    match file.read(&mut buffer)? {
                        0 => return Ok(hasher.finish()),
                        n => hasher.update(&buffer[..n]),
                    }
                }
            };
            let what = match read() {
                Ok(is) if is == *digest => return Ok::<_, anyhow::Error>(()),
                Ok(is) => format!("its content is that of {is}"),
                Err(e) => report::line(&e),
            };
            let damage = Damage::Blob { digest: digest.clone(), what };
            found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(damage);
            Ok(())
        })?;
        Ok(found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn layer_damage(&self, diff_id: &Digest) -> Option<String> {
        let check = || -> Result<Option<String>> {
            let Some(tree) = self.tree(diff_id)? else { return Ok(None) };
            let layer = self.layer(diff_id)?.unwrap_or_default();
            let Some(was) = layer.fingerprint else { return Ok(Some("nothing is known of it".to_owned())) };
            let is = fingerprint(tree.as_fd())?;
            Ok((is != was).then(|| "files were changed since it was unpacked".to_owned()))
        };
        check().unwrap_or_else(|e| Some(report::line(&e)))
    }

    /// Whether all is there that a descriptor leads to; of an index, what was never fetched may be missing.
    fn holds_together(&self, descriptor: &Descriptor, bad: &BTreeSet<Digest>, needed: bool) -> Result<()> {
        let digest = &descriptor.digest;
        anyhow::ensure!(!bad.contains(digest), "blob {digest} is damaged");
        if !(descriptor.is_index() || descriptor.is_manifest()) {
            anyhow::ensure!(self.has(digest)?, "blob {digest} is missing");
            return Ok(());
        }
        let document = match self.document(descriptor) {
            Err(e) if !needed && report::kind(&e) == Some(Kind::NotFound) => return Ok(()),
            other => other?,
        };
        match document {
            Document::Index(index) => {
                index.manifests.iter().try_for_each(|m| self.holds_together(m, bad, false))
            }
            Document::Manifest(manifest) => {
                for blob in manifest.layers.iter().chain([&manifest.config]) {
                    self.holds_together(blob, bad, true)?;
                }
                if manifest.config.is_config() {
                    self.config(&manifest)?;
                }
                Ok(())
            }
        }
    }
}
