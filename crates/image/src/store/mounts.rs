//! Which layers are mounted, so that nobody removes them? A record for each mount, in `mounts`; one whose mount is gone counts no
//! more.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use report::{Kind, error};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Store, addition};
use crate::digest::Digest;
use crate::layer::apply::{self, Implied};
use crate::layer::whiteout::Privilege;
use crate::rootfs::{self, Unpacked};

const MOUNTS: &str = "mounts";
/// What the names of folders end in that hold what must be told of folders, see [`rootfs::mend`].
const MENDED: &str = ".mended";
const RECORD_MOST: u64 = 4 << 20;

/// A mount of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    pub image: String,
    pub folder: PathBuf,
    /// Diff ids.
    pub layers: Vec<Digest>,
}

impl Store {
    /// Mount unpacked layers on a folder, read-only; without one, on a folder of the store's.
    pub fn mount(&self, image: &str, layers: &[Digest], folder: Option<&Path>) -> Result<PathBuf> {
        let _lease = self.lease()?;
        let mut unpacked = Vec::new();
        for layer in layers {
            let missing = || format!("layer {layer} is not unpacked");
            let implied = self.layer(layer)?.with_context(missing)?.implied();
            unpacked.push(Unpacked { tree: self.tree(layer)?.with_context(missing)?, implied });
        }
        self.make(MOUNTS)?;
        for attempt in 0..10_000 {
            let name = format!("{}-{attempt}", std::process::id());
            let record = format!("{MOUNTS}/{name}.json");
            if self.exists(&record)? {
                continue;
            }
            let folder = match folder {
                Some(folder) => folder.canonicalize().with_context(|| folder.display().to_string())?,
                None => {
                    self.make(&format!("{MOUNTS}/{name}"))?;
                    self.root.canonicalize()?.join(MOUNTS).join(&name)
                }
            };
            let mounted =
                Mounted { image: image.to_owned(), folder: folder.clone(), layers: layers.to_vec() };
            // First the record: a mount without one would lose its layers.
            self.replace(&record, &serde_json::to_vec(&mounted)?)?;
            let done = self.stack(unpacked, &format!("{MOUNTS}/{name}{MENDED}"));
            if let Err(e) = done.and_then(|tree| rootfs::attach(tree.as_fd(), &folder)) {
                self.forget_mount(&record)?;
                return Err(e);
            }
            return Ok(folder);
        }
        anyhow::bail!("{}/{MOUNTS}: ten thousand names are taken", self.root.display())
    }

    /// Stack layers; what must be told of their folders beside is put into `place`.
    fn stack(&self, mut layers: Vec<Unpacked>, place: &str) -> Result<OwnedFd> {
        let privilege = Privilege::own();
        let mended = rootfs::mend(&layers, privilege)?;
        if !mended.is_empty() {
            self.make(place)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let tree = rustix::fs::openat(&self.fd, place, flags, Mode::empty()).context("stack layers")?;
            apply::folders(&mended, tree.as_fd(), self.tree_options()?)?;
            layers.push(Unpacked { tree, implied: Implied::new() });
        }
        let trees: Vec<_> = layers.into_iter().map(|l| l.tree).collect();
        rootfs::overlay(&trees, None, privilege)
    }

    /// Remove the record of a mount, and what was made for it.
    fn forget_mount(&self, record: &str) -> Result<()> {
        let stem = record.trim_end_matches(".json");
        addition::remove(self.fd.as_fd(), &format!("{stem}{MENDED}"))
            .context("remove what a mount needed")?;
        addition::remove(self.fd.as_fd(), record).context("remove the record of a mount")?;
        // Only an empty one can be removed so; it is there if nobody said where to mount.
        rustix::fs::unlinkat(&self.fd, stem, rustix::fs::AtFlags::REMOVEDIR).unwrap_or_default();
        Ok(())
    }

    pub(super) fn make(&self, path: &str) -> Result<()> {
        match rustix::fs::mkdirat(&self.fd, path, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(e).with_context(|| format!("make {}/{path}", self.root.display())),
        }
    }

    /// The mounts that are there, with the names of their records; records of others are removed.
    fn mounted(&self) -> Result<Vec<(String, Mounted)>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(&self.fd, MOUNTS, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(e) => return Err(e).context("read the store's mounts"),
        };
        let table = std::fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        // proc_pid_mountinfo(5): spaces and the like are octal.
        let escaped = |path: &Path| {
            let text = path.display().to_string();
            text.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012")
        };
        let points: Vec<_> = table.lines().filter_map(|l| l.split(' ').nth(4)).collect();
        let mut found = Vec::new();
        for name in sys::path::list(dir.as_fd()).context("read the store's mounts")? {
            let Some(name) = name.to_str().filter(|n| n.ends_with(".json")) else { continue };
            let path = format!("{MOUNTS}/{name}");
            let bytes = self.read_small(&path, RECORD_MOST)?.unwrap_or_default();
            let record: Option<Mounted> = serde_json::from_slice(&bytes).ok();
            match record {
                Some(record) if points.contains(&escaped(&record.folder).as_str()) => {
                    found.push((path, record))
                }
                _ => self.forget_mount(&path)?,
            }
        }
        Ok(found)
    }

    /// What is mounted.
    pub fn mounts(&self) -> Result<Vec<Mounted>> {
        Ok(self.mounted()?.into_iter().map(|(_, m)| m).collect())
    }

    /// Unmount what is mounted there, or what was mounted of that image. `Kind::NotFound` if there is no such mount.
    pub fn unmount(&self, what: &str) -> Result<Vec<PathBuf>> {
        let wanted = Path::new(what).canonicalize().ok();
        let mut done = Vec::new();
        for (path, mounted) in self.mounted()? {
            if wanted.as_ref() != Some(&mounted.folder) && mounted.image != what {
                continue;
            }
            sys::mount::detach(&mounted.folder)
                .with_context(|| format!("unmount {}", mounted.folder.display()))?;
            self.forget_mount(&path)?;
            done.push(mounted.folder);
        }
        if done.is_empty() {
            return Err(error(Kind::NotFound, format!("{what}: not mounted by us")));
        }
        Ok(done)
    }

    /// The layers that mounts need.
    pub(super) fn mounted_layers(&self) -> Result<Vec<Digest>> {
        Ok(self.mounted()?.into_iter().flat_map(|(_, m)| m.layers).collect())
    }
}
