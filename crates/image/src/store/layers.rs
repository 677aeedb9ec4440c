//! What is known of a layer, whatever the blobs that hold it?

use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Store;
use crate::digest::Digest;
use crate::layer::apply::{Applied, Implied};
use crate::layer::tree::fingerprint;

const HOLDERS: &str = "blobs.json";
const FACTS: &str = "layer.json";
/// Bytes that a record may have.
const RECORD_MOST: u64 = 64 << 20;

/// A blob that holds a layer: seen with our own eyes, by unpacking or by making it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// How it was compressed, if we did that: the same words always make the same bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<String>,
}

/// What an unpacked layer is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Of the contents of all files.
    pub bytes: u64,
    /// Files, folders, whiteouts and all else.
    pub entries: u64,
    /// Folders that the layer says nothing of, with what is no plain ASCII in their paths as `%XX`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) implied: Vec<String>,
    /// Of all that the inodes say, but not of the contents.
    #[serde(default, rename = "inodes", skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Digest>,
}

/// A path as text: `%` and what is no graphic ASCII as `%XX`.
fn encode(path: &[u8]) -> String {
    let plain = |b: &u8| b.is_ascii_graphic() && *b != b'%';
    path.iter().map(|b| if plain(b) { char::from(*b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut path = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            path.push(*first);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        path.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = behind;
    }
    Some(path)
}

impl Layer {
    /// What came of unpacking it to `tree`.
    pub(super) fn of(applied: &Applied, tree: BorrowedFd<'_>) -> Result<Layer> {
        Ok(Layer {
            bytes: applied.bytes,
            entries: applied.entries,
            implied: applied.implied.iter().map(|p| encode(p)).collect(),
            fingerprint: Some(fingerprint(tree)?),
        })
    }

    /// The same of a tree that was not made by unpacking: nothing in it is only implied but its root.
    pub(super) fn of_tree(tree: BorrowedFd<'_>) -> Result<Layer> {
        let (bytes, entries) = crate::layer::tree::tree_count(tree)?;
        let fingerprint = Some(fingerprint(tree)?);
        Ok(Layer { bytes, entries, implied: vec![String::new()], fingerprint })
    }

    /// Folders that the layer says nothing of.
    pub fn implied(&self) -> Implied {
        self.implied.iter().filter_map(|p| decode(p)).collect()
    }

    /// Without it, the layer counts as not unpacked.
    pub(super) fn write(&self, store: &Store, diff_id: &Digest) -> Result<()> {
        store.write_record(diff_id, FACTS, &serde_json::to_vec(self)?)
    }
}

impl Store {
    pub(super) fn layer_path(diff_id: &Digest) -> String {
        format!("layers/{}/{}", diff_id.algorithm().name(), diff_id.hex())
    }

    pub(super) fn tree_path(diff_id: &Digest) -> String {
        format!("{}/tree", Self::layer_path(diff_id))
    }

    pub(super) fn make_layer_dir(&self, diff_id: &Digest) -> Result<()> {
        let path = Self::layer_path(diff_id);
        match rustix::fs::mkdirat(&self.fd, &path, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(e).with_context(|| format!("make {}/{path}", self.root.display())),
        }
    }

    fn write_record(&self, diff_id: &Digest, name: &str, bytes: &[u8]) -> Result<()> {
        let path = format!("{}/{name}", Self::layer_path(diff_id));
        let write = || -> io::Result<()> {
            self.write_new(&path, bytes)?.flush()?;
            Ok(rustix::fs::renameat(&self.fd, format!("{path}.new"), &self.fd, &path)?)
        };
        write().with_context(|| format!("write {}/{path}", self.root.display()))
    }

    fn read_record<T: for<'de> Deserialize<'de>>(&self, diff_id: &Digest, name: &str) -> Result<Option<T>> {
        let bytes = self.read_small(&format!("{}/{name}", Self::layer_path(diff_id)), RECORD_MOST)?;
        // A crash of the machine may have left it empty.
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// The blobs that were seen to hold a layer; they need not be in the store any more.
    pub fn holders(&self, diff_id: &Digest) -> Result<Vec<Holder>> {
        Ok(self.read_record(diff_id, HOLDERS)?.unwrap_or_default())
    }

    /// The caller has the index's lock.
    pub(super) fn record_holders(&self, new: &[(Digest, Holder)]) -> Result<()> {
        for (diff_id, holder) in new {
            let mut holders = self.holders(diff_id)?;
            match holders.iter_mut().find(|h| h.digest == holder.digest) {
                Some(known) if known.made.is_some() || holder.made.is_none() => continue,
                Some(known) => known.made.clone_from(&holder.made),
                None => holders.push(holder.clone()),
            }
            self.make_layer_dir(diff_id)?;
            self.write_record(diff_id, HOLDERS, &serde_json::to_vec(&holders)?)?;
        }
        Ok(())
    }

    /// What is known of an unpacked layer; `None` if it is not there.
    pub fn layer(&self, diff_id: &Digest) -> Result<Option<Layer>> {
        if !self.exists(&Self::tree_path(diff_id))? {
            return Ok(None);
        }
        self.read_record(diff_id, FACTS)
    }

    /// The root of an unpacked layer, if it is there.
    pub fn tree(&self, diff_id: &Digest) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(&self.fd, Self::tree_path(diff_id), flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("open layer {diff_id}")),
        }
    }

    /// Where it lies.
    pub fn tree_place(&self, diff_id: &Digest) -> PathBuf {
        self.root.join(Self::tree_path(diff_id))
    }

    /// All layers that something is known of.
    pub fn layers(&self) -> Result<Vec<Digest>> {
        let mut found = Vec::new();
        for algorithm in crate::digest::Algorithm::ALL {
            let dir = self.root.join("layers").join(algorithm.name());
            let reading = || format!("read {}", dir.display());
            for entry in std::fs::read_dir(&dir).with_context(reading)? {
                let name = entry.with_context(reading)?.file_name();
                if let Ok(digest) = format!("{}:{}", algorithm.name(), name.to_string_lossy()).parse() {
                    found.push(digest);
                }
            }
        }
        Ok(found)
    }
}
