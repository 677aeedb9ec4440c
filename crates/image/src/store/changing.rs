//! What is changed by hand in a working container? Its file system is mounted, and what is written there becomes a layer once that ends.
//!
//! ```text
//! containers/NAME.mount/
//!   upper/ work/   overlayfs
//!   mended/        what archives leave unsaid of folders
//!   merged/        where it is mounted
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use report::{Explain, Kind, error};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::{Step, Store};
use crate::digest::Digest;
use crate::layer::apply;
use crate::layer::whiteout::Privilege;
use crate::rootfs::{self, Unpacked, Upper};

impl Store {
    fn changing(name: &str) -> Result<String> {
        Ok(format!("{}.mount", Self::pin_path(name)?.trim_end_matches(".json")))
    }

    /// Where a container's file system is mounted, if it is.
    pub fn container_folder(&self, name: &str) -> Result<PathBuf> {
        Ok(self.root.canonicalize()?.join(Self::changing(name)?).join("merged"))
    }

    /// Mount a container's file system: unpacked layers of its image, and of steps. What is written goes nowhere else.
    pub fn mount_container(&self, name: &str, bases: &[Digest], steps: &[Digest]) -> Result<PathBuf> {
        let _lease = self.lease()?;
        let place = Self::changing(name)?;
        let mut unpacked = Vec::new();
        for layer in bases {
            let missing = || format!("layer {layer} is not unpacked");
            let implied = self.layer(layer)?.with_context(missing)?.implied();
            unpacked.push(Unpacked { tree: self.tree(layer)?.with_context(missing)?, implied });
        }
        self.make(&place)?;
        let open = |name: &str, mode: u32| -> Result<OwnedFd> {
            let path = format!("{place}/{name}");
            self.make(&path)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let folder = rustix::fs::openat(&self.fd, &path, flags, Mode::empty())
                .with_context(|| format!("open {}/{path}", self.root.display()))?;
            rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode)).context("set a folder's mode")?;
            Ok(folder)
        };
        let upper = open("upper", 0o755)?;
        open("work", 0o700)?;
        open("merged", 0o700)?;
        let privilege = Privilege::own();
        let mended = rootfs::mend(&unpacked, privilege)?;
        let mut trees: Vec<OwnedFd> = unpacked.into_iter().map(|u| u.tree).collect();
        // There must be something below.
        if !mended.is_empty() || (bases.is_empty() && steps.is_empty()) {
            let tree = open("mended", 0o755)?;
            apply::folders(&mended, tree.as_fd(), self.tree_options()?)?;
            trees.push(tree);
        }
        for key in steps {
            let step = self.step(key)?.with_context(|| format!("step {key} has gone"))?;
            let found = self.step_trees(key, &step)?;
            trees.extend(found.with_context(|| format!("what {} made has gone", step.title))?);
        }
        if let Some(top) = trees.last() {
            let stat = rustix::fs::fstat(top).context("look at the root")?;
            rustix::fs::fchown(&upper, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
                .context("set the owner of the root")?;
            rustix::fs::fchmod(&upper, Mode::from_raw_mode(stat.st_mode & 0o7777))
                .context("set the mode of the root")?;
        }
        let root = self.root.canonicalize()?.join(&place);
        let (upper, work) = (root.join("upper"), root.join("work"));
        let tree =
            rootfs::overlay(&trees, Some(&Upper { upper: &upper, work: &work, lasting: true }), privilege)?;
        let folder = root.join("merged");
        rootfs::attach(tree.as_fd(), &folder)?;
        Ok(folder)
    }

    /// End a container's mount, if there is one, and make a step of what was written, under that key. Whether there is such a step.
    ///
    /// # Errors
    /// `Kind::WrongState` if somebody is in the mounted folder.
    pub fn settle_container(&self, name: &str, key: &Digest) -> Result<bool> {
        let place = Self::changing(name)?;
        let folder = self.container_folder(name)?;
        match sys::mount::unmount(&folder) {
            Ok(()) => {}
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::INVAL | Errno::NOENT)) => {}
            Err(e) if Errno::from_io_error(&e) == Some(Errno::BUSY) => {
                let e: Result<bool> = Err(error(
                    Kind::WrongState,
                    format!("container {name}: somebody uses {}", folder.display()),
                ));
                return e.hint(|| "leave it: processes that work there, files that are open".to_owned());
            }
            Err(e) => return Err(e).with_context(|| format!("unmount {}", folder.display())),
        }
        let upper = format!("{place}/upper");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let changed = match rustix::fs::openat(&self.fd, &upper, flags, Mode::empty()) {
            Ok(upper) => !sys::path::list(upper.as_fd()).context("look for what changed")?.is_empty(),
            Err(Errno::NOENT) => false,
            Err(e) => return Err(e).with_context(|| format!("open {}/{upper}", self.root.display())),
        };
        if changed {
            self.keep_folder(key, &Step::of("changed in a mounted container"), &upper)?;
        }
        Ok(self.step(key)?.is_some())
    }

    /// Forget a container's mount, with all that was written and not settled.
    pub fn end_container_mount(&self, name: &str) -> Result<()> {
        let folder = self.container_folder(name)?;
        match sys::mount::detach(&folder) {
            Ok(()) => {}
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::INVAL | Errno::NOENT)) => {}
            Err(e) => return Err(e).with_context(|| format!("unmount {}", folder.display())),
        }
        self.discard(&Self::changing(name)?)
    }
}
