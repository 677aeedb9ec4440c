//! What do names lead to? `index.json`, as image-spec's image-index.md has it: an entry for every image, its name in an
//! annotation. An image whose name has been given to another one stays as an entry without a name.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use report::{Kind, error};
use rustix::fs::FlockOperation;

use super::{INDEX_LOCK, Store};
use crate::digest::Digest;
use crate::manifest::{Descriptor, Index};
use crate::reference::Reference;

const INDEX: &str = "index.json";
/// The annotation that names an image in an index (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Bytes that the index may have: some hundred thousand images.
const INDEX_MOST: u64 = 256 << 20;

/// An image: a name and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// None: another image has its name now, or it never had one.
    pub reference: Option<Reference>,
    pub target: Descriptor,
}

impl Image {
    /// For people: the name, or else the digest.
    pub fn title(&self) -> String {
        match &self.reference {
            Some(reference) => reference.familiar(),
            None => self.target.digest.to_string(),
        }
    }
}

/// The index while it is being changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    named: BTreeMap<Reference, Descriptor>,
    unnamed: BTreeMap<Digest, Descriptor>,
}

impl Names {
    /// Lead `name` to `target`. What it led to before stays, without a name if it has no other.
    pub(super) fn set(&mut self, name: Option<Reference>, target: Descriptor) {
        let Some(name) = name else {
            if !self.named.values().any(|t| t.digest == target.digest) {
                self.unnamed.insert(target.digest.clone(), target);
            }
            return;
        };
        self.unnamed.remove(&target.digest);
        if let Some(before) = self.named.insert(name, target) {
            self.set(None, before);
        }
    }

    /// Take a name away, and the image with its last one.
    pub(super) fn take(&mut self, name: &Reference) -> Option<Descriptor> {
        self.named.remove(name)
    }

    /// Take all names of an image away.
    pub(super) fn take_all(&mut self, target: &Digest) -> Vec<Image> {
        let (gone, named) =
            std::mem::take(&mut self.named).into_iter().partition(|(_, t)| t.digest == *target);
        self.named = named;
        let mut gone: Vec<_> = Names { named: gone, unnamed: BTreeMap::new() }.images();
        if let Some(target) = self.unnamed.remove(target) {
            gone.push(Image { reference: None, target });
        }
        gone
    }

    fn images(self) -> Vec<Image> {
        let named =
            self.named.into_iter().map(|(reference, target)| Image { reference: Some(reference), target });
        let unnamed = self.unnamed.into_values().map(|target| Image { reference: None, target });
        named.chain(unnamed).collect()
    }
}

impl Store {
    /// All images: those with names in the order of these, then those without.
    pub fn images(&self) -> Result<Vec<Image>> {
        Ok(self.load_names()?.images())
    }

    /// The image of that name, or with that name and digest. `Kind::NotFound` if there is none.
    pub fn image(&self, reference: &Reference) -> Result<Image> {
        let mut names = self.load_names()?;
        if let Some(target) = names.named.remove(reference) {
            return Ok(Image { reference: Some(reference.clone()), target });
        }
        let by_digest = |digest: &Digest| {
            let pinned = names
                .named
                .iter()
                .find(|(name, target)| target.digest == *digest && name.name() == reference.name());
            let (name, target) = pinned?;
            Some(Image { reference: Some(name.clone()), target: target.clone() })
        };
        match reference.digest().and_then(by_digest) {
            Some(image) => Ok(image),
            None => Err(error(Kind::NotFound, format!("no image {}", reference.familiar()))),
        }
    }

    /// Give what `target` leads to a name, or other names; it must be in the store.
    pub fn tag(&self, target: &Descriptor, name: &Reference) -> Result<()> {
        let _lease = self.lease()?;
        ensure!(self.has(&target.digest)?, "{} is not in the store", target.digest);
        self.change_names(|names| {
            names.set(Some(name.clone()), target.clone());
            Ok(())
        })
    }

    /// Take a name away; `Kind::NotFound` if there is no such image. With its last name the image goes, though what it led to
    /// stays until [`Store::sweep`].
    pub fn untag(&self, name: &Reference) -> Result<Descriptor> {
        self.change_names(|names| {
            names.take(name).ok_or_else(|| error(Kind::NotFound, format!("no image {}", name.familiar())))
        })
    }

    /// Take names from an image, which stays, if need be without any.
    pub fn unname(&self, target: &Digest, gone: &[Reference]) -> Result<()> {
        self.change_names(|names| {
            let mut last = None;
            for name in gone {
                match names.named.get(name) {
                    Some(t) if t.digest == *target => last = names.named.remove(name),
                    _ => return Err(error(Kind::NotFound, format!("no image {}", name.familiar()))),
                }
            }
            if let Some(target) = last {
                names.set(None, target);
            }
            Ok(())
        })
    }

    /// Take all names of an image away, and the image without any; these are what returns.
    pub fn forget(&self, target: &Digest) -> Result<Vec<Image>> {
        self.change_names(|names| Ok(names.take_all(target)))
    }

    pub(super) fn load_names(&self) -> Result<Names> {
        let path = || self.root.join(INDEX).display().to_string();
        let Some(bytes) = self.read_small(INDEX, INDEX_MOST)? else { return Ok(Names::default()) };
        let index: Index = serde_json::from_slice(&bytes).with_context(path)?;
        let mut names = Names::default();
        for (i, mut target) in index.manifests.into_iter().enumerate() {
            let name = target.annotations.remove(REF_NAME);
            let name = name.map(|name| name.parse()).transpose();
            match name.with_context(|| format!("{}: manifests[{i}]", path()))? {
                Some(name) => names.named.insert(name, target),
                None => names.unnamed.insert(target.digest.clone(), target),
            };
        }
        Ok(names)
    }

    /// Change the index under its lock.
    pub(super) fn change_names<T>(&self, change: impl FnOnce(&mut Names) -> Result<T>) -> Result<T> {
        let _lock = self.lock_file(INDEX_LOCK, FlockOperation::LockExclusive)?;
        self.change_names_locked(change)
    }

    /// The same, by who has the lock.
    pub(super) fn change_names_locked<T>(&self, change: impl FnOnce(&mut Names) -> Result<T>) -> Result<T> {
        let mut names = self.load_names()?;
        let done = change(&mut names)?;
        let manifests = names.images().into_iter().map(|Image { reference, mut target }| {
            if let Some(reference) = reference {
                target.annotations.insert(REF_NAME.to_owned(), reference.to_string());
            }
            target
        });
        let index = Index::of(manifests.collect());
        self.replace(INDEX, &serde_json::to_vec(&index)?)?;
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::OCI_MANIFEST;

    #[test]
    fn an_image_keeps_an_entry_until_its_last_name_is_taken() {
        let (a, b): (Reference, Reference) = ("a".parse().unwrap(), "b".parse().unwrap());
        let (one, two) = (Descriptor::of(OCI_MANIFEST, b"1"), Descriptor::of(OCI_MANIFEST, b"2"));
        let mut names = Names::default();
        names.set(Some(a.clone()), one.clone());
        names.set(Some(b.clone()), one.clone());
        names.set(Some(a.clone()), two.clone());
        assert!(names.unnamed.is_empty(), "it still has the name b");
        names.set(Some(b.clone()), two.clone());
        assert_eq!(names.unnamed.keys().collect::<Vec<_>>(), [&one.digest]);
        names.set(None, two.clone());
        assert_eq!(names.unnamed.len(), 1, "it has names already");
        names.set(Some(a.clone()), one.clone());
        assert!(names.unnamed.is_empty(), "it has a name again");
        assert_eq!(names.take(&a), Some(one));
        assert_eq!(names.take(&a), None);
        assert_eq!(names.take_all(&two.digest).len(), 1);
        assert_eq!(names, Names::default());
    }
}
