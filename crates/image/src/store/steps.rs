//! What do the steps of a build leave for the next build? Each has a key, which says all that its result depends on, and a record
//! with the layer that it made, in `steps`. The layer's tree lies beside the record until an image has the layer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::addition::{self, Tree};
use super::{Addition, Blob, LOCK, Store, Wait};
use crate::digest::{Algorithm, Digest};
use crate::layer::tree::tree_size;
use crate::layer::walk::archive;
use crate::layer::whiteout::Privilege;

pub(super) const STEPS: &str = "steps";
/// What `RUN --mount=type=cache` keeps: a folder each, with `.lock` and `.id` beside.
const CACHES: &str = "caches";
/// flock: exclusive for whoever changes records of steps.
const STEPS_LOCK: &str = "steps.lock";
const RECORD: &str = "step.json";
const TREE: &str = "tree";
/// What the archive holds, for who made it.
const ENTRIES: &str = "entries";
const ENTRIES_MOST: u64 = 256 << 20;
const RECORD_MOST: u64 = 64 << 20;

/// What a step came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// For people: the instruction.
    pub title: String,
    /// Nothing changed: there is no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty: bool,
    /// The layer as an archive, by what later times in it became.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub archives: BTreeMap<String, Archive>,
    /// The layer whose tree it is; None: it lies beside the record, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<Digest>,
    /// The tree that lies beside the record holds only what is other than in the tree of this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<Digest>,
    /// It was made again since, under this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<Digest>,
    /// Whatever the builder wants to know of it again.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub note: serde_json::Value,
    /// The machine has been up since, or else the tree need not have reached the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
}

impl Step {
    /// One that is to be kept.
    pub fn of(title: &str) -> Step {
        Step { title: title.to_owned(), ..Step::default() }
    }
}

/// A layer's archive, uncompressed; it need not be in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    pub diff_id: Digest,
    /// Bytes.
    pub size: u64,
}

/// A step that is kept, for who looks at them all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub key: Digest,
    pub step: Step,
    /// Bytes of a tree that no image shares.
    pub bytes: u64,
    pub used: SystemTime,
}

impl Store {
    fn step_path(key: &Digest) -> String {
        format!("{STEPS}/{}", key.hex())
    }

    fn boot() -> Option<String> {
        Some(std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
    }

    /// What is known of the step with that key. The caller holds a lease.
    pub fn step(&self, key: &Digest) -> Result<Option<Step>> {
        let bytes = self.read_small(&format!("{}/{RECORD}", Self::step_path(key)), RECORD_MOST)?;
        let step: Option<Step> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(step.filter(|step| step.boot.is_none() || step.boot == Self::boot()))
    }

    /// The tree of a step's layer, if it is there.
    pub fn step_tree(&self, key: &Digest, step: &Step) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let path = format!("{}/{TREE}", Self::step_path(key));
        match rustix::fs::openat(&self.fd, &path, flags, Mode::empty()) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e).with_context(|| format!("open {}/{path}", self.root.display())),
        }
        match &step.layer {
            Some(layer) => self.tree(layer),
            None => Ok(None),
        }
    }

    /// The same, or the tree of another step and what is other in this one, above it.
    pub fn step_trees(&self, key: &Digest, step: &Step) -> Result<Option<Vec<OwnedFd>>> {
        if let Some(tree) = self.step_tree(key, step)? {
            return Ok(Some(vec![tree]));
        }
        let Some(over) = &step.over else { return Ok(None) };
        let Some(lower) = self.step(over)? else { return Ok(None) };
        let Some(tree) = self.step_tree(over, &lower)? else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let path = format!("{}/{}", Self::step_path(key), Self::delta(over));
        match rustix::fs::openat(&self.fd, &path, flags, Mode::empty()) {
            Ok(delta) => {
                self.touch_step(over);
                Ok(Some(vec![tree, delta]))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("open {}/{path}", self.root.display())),
        }
    }

    /// A tree above another says in its name above which.
    fn delta(over: &Digest) -> String {
        format!("over-{}", over.hex())
    }

    /// What is in the archive of a step, as it was left with it.
    pub fn step_entries(&self, key: &Digest) -> Result<Option<Vec<u8>>> {
        self.read_small(&format!("{}/{ENTRIES}", Self::step_path(key)), ENTRIES_MOST)
    }

    /// Leave that for the next of its kind.
    pub fn keep_entries(&self, key: &Digest, bytes: &[u8]) -> Result<()> {
        self.make(STEPS)?;
        self.make(&Self::step_path(key))?;
        self.write_beside(key, ENTRIES, bytes)
    }

    /// Keep a step and its tree, which is the folder `name` in `tree` (or all of it). What was there already stays.
    pub fn keep_step(&self, key: &Digest, step: &Step, tree: Option<(Tree, &str)>) -> Result<()> {
        let path = Self::step_path(key);
        let keeping = || format!("keep {}/{path}", self.root.display());
        self.make(STEPS)?;
        self.make(&path)?;
        let _lock = self.lock_file(STEPS_LOCK, FlockOperation::LockExclusive)?;
        // Another build may have made it, and an image of it.
        let layer = step.layer.clone().or_else(|| self.step(key).ok().flatten()?.layer);
        if let Some((mut tree, name)) = tree
            && let Some(from) = tree.path()
        {
            let from = if name.is_empty() { from.to_owned() } else { format!("{from}/{name}") };
            let to = step.over.as_ref().map_or_else(|| TREE.to_owned(), Self::delta);
            match rustix::fs::renameat(&self.fd, &from, &self.fd, format!("{path}/{to}")) {
                Ok(()) if name.is_empty() => tree.renamed(),
                Ok(()) => {}
                Err(Errno::EXIST | Errno::NOTEMPTY) => {}
                Err(e) => return Err(e).with_context(keeping),
            }
        }
        // What has no tree has nothing that could be missing.
        let boot = if step.empty || step.instead.is_some() { None } else { Self::boot() };
        self.write_step(key, &Step { boot, layer, ..step.clone() })
    }

    /// Keep a step whose tree is a folder of the store, in `from`.
    pub(super) fn keep_folder(&self, key: &Digest, step: &Step, from: &str) -> Result<()> {
        let path = Self::step_path(key);
        self.make(STEPS)?;
        self.make(&path)?;
        let _lock = self.lock_file(STEPS_LOCK, FlockOperation::LockExclusive)?;
        match rustix::fs::renameat(&self.fd, from, &self.fd, format!("{path}/{TREE}")) {
            Ok(()) | Err(Errno::EXIST | Errno::NOTEMPTY) => {}
            Err(e) => return Err(e).with_context(|| format!("keep {}/{path}", self.root.display())),
        }
        self.write_step(key, &Step { boot: Self::boot(), ..step.clone() })
    }

    fn write_step(&self, key: &Digest, step: &Step) -> Result<()> {
        self.write_beside(key, RECORD, &serde_json::to_vec(step)?)
    }

    fn write_beside(&self, key: &Digest, name: &str, bytes: &[u8]) -> Result<()> {
        let path = format!("{}/{name}", Self::step_path(key));
        // The first: until its end is there, it is none.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(&self.fd, &path, flags, Mode::from_raw_mode(0o600)) {
            Ok(fd) => {
                let written = File::from(fd).write_all(bytes);
                return written.with_context(|| format!("write {}/{path}", self.root.display()));
            }
            Err(Errno::EXIST) => {}
            Err(e) => return Err(e).with_context(|| format!("write {}/{path}", self.root.display())),
        }
        // Builds write at the same time, and hold no lock.
        let mut new = self.temporary_file("")?;
        let write = || -> std::io::Result<()> {
            File::from(new.fd.try_clone()?).write_all(bytes)?;
            let from = new.path().unwrap_or_default();
            Ok(rustix::fs::renameat(&self.fd, from, &self.fd, &path)?)
        };
        write().with_context(|| format!("write {}/{path}", self.root.display()))?;
        new.renamed();
        Ok(())
    }

    /// It has been used just now. Once an hour is enough to know.
    pub fn touch_step(&self, key: &Digest) {
        let path = format!("{}/{RECORD}", Self::step_path(key));
        let Ok(stat) = rustix::fs::statat(&self.fd, &path, AtFlags::SYMLINK_NOFOLLOW) else { return };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        if stat.st_mtime.unsigned_abs() + 3600 < now {
            let time = rustix::fs::Timespec { tv_sec: now.cast_signed(), tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            // It is only a hint for whoever tidies up.
            rustix::fs::utimensat(&self.fd, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap_or_default();
        }
    }

    /// All steps that are kept.
    pub fn steps(&self) -> Result<Vec<Kept>> {
        let dir = self.root.join(STEPS);
        let reading = || format!("read {}", dir.display());
        let entries = match std::fs::read_dir(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(reading)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.with_context(reading)?.file_name();
            let text = format!("{}:{}", Algorithm::Sha256.name(), name.to_string_lossy());
            let Ok(key) = text.parse::<Digest>() else { continue };
            let path = format!("{}/{RECORD}", Self::step_path(&key));
            let used = match rustix::fs::statat(&self.fd, &path, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(stat.st_mtime.unsigned_abs())
                }
                Err(_) => SystemTime::UNIX_EPOCH,
            };
            let step = self.step(&key)?.unwrap_or_default();
            found.push(Kept { key, step, bytes: 0, used });
        }
        Ok(found)
    }

    /// The same, with the bytes that each takes.
    pub fn steps_sized(&self) -> Result<Vec<Kept>> {
        let mut all = self.steps()?;
        for kept in &mut all {
            let path = format!("{}/{TREE}", Self::step_path(&kept.key));
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            if let Ok(tree) = rustix::fs::openat(&self.fd, &path, flags, Mode::empty()) {
                kept.bytes = tree_size(tree.as_fd())?;
            }
            if let Some(over) = &kept.step.over {
                let path = format!("{}/{}", Self::step_path(&kept.key), Self::delta(over));
                if let Ok(tree) = rustix::fs::openat(&self.fd, &path, flags, Mode::empty()) {
                    kept.bytes += tree_size(tree.as_fd())?;
                }
            }
        }
        Ok(all)
    }

    /// Forget steps and caches that were last used at a time for which `goes` says so: how many these were, and bytes that no image
    /// shares. `None` if others add or read, and `wait` says not to wait for them.
    pub fn prune_steps(&self, wait: Wait, goes: &dyn Fn(SystemTime) -> bool) -> Result<Option<(usize, u64)>> {
        let _alone = match wait {
            Wait::Yes => self.lock_file(LOCK, FlockOperation::LockExclusive)?,
            Wait::No => match self.try_lock_file(LOCK)? {
                Some(lock) => lock,
                None => return Ok(None),
            },
        };
        let (mut count, mut bytes) = (0, 0);
        let pinned: Vec<Digest> = self.pins()?.into_iter().flat_map(|(_, pin)| pin.steps).collect();
        let free = |kept: &&Kept| goes(kept.used) && !pinned.contains(&kept.key);
        for kept in self.steps_sized()?.iter().filter(free) {
            let path = Self::step_path(&kept.key);
            addition::remove(self.fd.as_fd(), &format!("{path}/{RECORD}"))
                .with_context(|| format!("remove {}/{path}", self.root.display()))?;
            self.discard(&path)?;
            (count, bytes) = (count + 1, bytes + kept.bytes);
        }
        for (name, used) in self.caches()? {
            if !goes(used) {
                continue;
            }
            let path = format!("{CACHES}/{name}");
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            if let Ok(tree) = rustix::fs::openat(&self.fd, &path, flags, Mode::empty()) {
                bytes += tree_size(tree.as_fd())?;
                count += 1;
            }
            self.discard(&path)?;
            for more in ["lock", "id"] {
                addition::remove(self.fd.as_fd(), &format!("{path}.{more}"))
                    .with_context(|| format!("remove {}/{path}", self.root.display()))?;
            }
        }
        Ok(Some((count, bytes)))
    }

    /// The folders of what `RUN --mount=type=cache` keeps, and when a command last had each.
    fn caches(&self) -> Result<Vec<(String, SystemTime)>> {
        let dir = self.root.join(CACHES);
        let reading = || format!("read {}", dir.display());
        let entries = match std::fs::read_dir(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(reading)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.with_context(reading)?;
            if entry.file_type().with_context(reading)?.is_dir() {
                let used = entry.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                found.push((entry.file_name().to_string_lossy().into_owned(), used));
            }
        }
        Ok(found)
    }

    /// How many there are, and their bytes.
    pub fn caches_size(&self) -> Result<(usize, u64)> {
        let all = self.caches()?;
        let mut bytes = 0;
        for (name, _) in &all {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let tree = rustix::fs::openat(&self.fd, format!("{CACHES}/{name}"), flags, Mode::empty());
            if let Ok(tree) = tree {
                bytes += tree_size(tree.as_fd())?;
            }
        }
        Ok((all.len(), bytes))
    }

    /// Where these folders are; it need not be there.
    pub fn caches_place(&self) -> std::path::PathBuf {
        self.root.join(CACHES)
    }
}

impl Addition<'_> {
    /// The archive of a tree, as a blob; see [`crate::layer::walk::archive`].
    pub fn archive(&self, tree: BorrowedFd<'_>, latest: Option<i64>) -> Result<Blob> {
        let mut writer = self.writer(Algorithm::Sha256)?;
        let mut buffered = std::io::BufWriter::with_capacity(256 << 10, &mut writer);
        archive(tree, Privilege::own(), latest, &mut buffered)?;
        buffered.flush().context("write a layer")?;
        drop(buffered);
        Ok(writer.finish())
    }

    /// The layer of a step is part of this: its tree becomes the layer's, and the step remembers. Whether it was written down.
    pub fn adopt(&mut self, key: &Digest, step: &Step, diff_id: &Digest) -> Result<bool> {
        let store = self.store();
        let path = format!("{}/{TREE}", Store::step_path(key));
        if !store.exists(&path)? || store.layer(diff_id)?.is_some() || self.brings_layer(diff_id) {
            return Ok(false);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let tree = match rustix::fs::openat(&store.fd, &path, flags, Mode::empty()) {
            Ok(tree) => tree,
            // Another build has made an image of it just now.
            Err(Errno::NOENT) => return Ok(false),
            Err(e) => return Err(e).with_context(|| format!("open {}/{path}", store.root.display())),
        };
        let layer = super::Layer::of_tree(tree.as_fd())?;
        // Told before it is so: whoever looks for the tree looks at both places.
        let _lock = store.lock_file(STEPS_LOCK, FlockOperation::LockExclusive)?;
        store.write_step(key, &Step { layer: Some(diff_id.clone()), boot: Store::boot(), ..step.clone() })?;
        self.add_moving(diff_id.clone(), path, layer);
        Ok(true)
    }

    /// What was kept has reached the disk with this: the steps count after the next start of the machine, too.
    pub fn settle(store: &Store, steps: &[Digest]) -> Result<()> {
        let _lock = store.lock_file(STEPS_LOCK, FlockOperation::LockExclusive)?;
        for key in steps {
            if let Some(step) = store.step(key)?
                && step.boot.is_some()
            {
                store.write_step(key, &Step { boot: None, ..step })?;
            }
        }
        Ok(())
    }
}
