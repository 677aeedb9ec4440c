//! What do working containers need, that no image leads to? A file each, in `containers`.

use anyhow::{Context, Result};
use report::{Kind, error};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::{INDEX_LOCK, Store, addition};
use crate::digest::Digest;
use std::os::fd::AsFd;

const FOLDER: &str = "containers";
const MOST: u64 = 64 << 20;

/// A working container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pin {
    pub blobs: Vec<Digest>,
    /// Diff ids.
    pub layers: Vec<Digest>,
    /// Keys.
    pub steps: Vec<Digest>,
    /// The builder's own.
    pub data: serde_json::Value,
}

impl Store {
    pub(super) fn pin_path(name: &str) -> Result<String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let fine = !name.is_empty() && name.len() <= 200 && name.chars().all(plain) && !name.starts_with('.');
        match fine {
            true => Ok(format!("{FOLDER}/{name}.json")),
            false => Err(error(Kind::BadInput, format!("{name:?} is no name: letters, digits and -_."))),
        }
    }

    /// A container by its name; `Kind::NotFound` if there is none.
    pub fn pin(&self, name: &str) -> Result<Pin> {
        let bytes = self.read_small(&Self::pin_path(name)?, MOST)?;
        let bytes = bytes.ok_or_else(|| error(Kind::NotFound, format!("no container {name}")))?;
        serde_json::from_slice(&bytes).with_context(|| format!("container {name}"))
    }

    /// Keep what a container needs, from now on.
    pub fn set_pin(&self, name: &str, pin: &Pin) -> Result<()> {
        let _lock = self.lock_file(INDEX_LOCK, FlockOperation::LockExclusive)?;
        self.make(FOLDER)?;
        self.replace(&Self::pin_path(name)?, &serde_json::to_vec(pin)?)
    }

    /// It needs nothing any more.
    pub fn unpin(&self, name: &str) -> Result<()> {
        let path = Self::pin_path(name)?;
        if !self.exists(&path)? {
            return Err(error(Kind::NotFound, format!("no container {name}")));
        }
        addition::remove(self.fd.as_fd(), &path).with_context(|| format!("remove container {name}"))
    }

    /// All of them, by name.
    pub fn pins(&self) -> Result<Vec<(String, Pin)>> {
        let dir = self.root.join(FOLDER);
        let reading = || format!("read {}", dir.display());
        let entries = match std::fs::read_dir(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(reading)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.with_context(reading)?.file_name();
            names.extend(name.to_str().and_then(|n| n.strip_suffix(".json")).map(str::to_owned));
        }
        names.sort();
        let pin = |name: String| Ok((name.clone(), self.pin(&name)?));
        names.into_iter().map(pin).collect()
    }
}
