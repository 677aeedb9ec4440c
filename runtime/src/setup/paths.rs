//! Masked and read-only paths. (config-linux.md, "Masked Paths" and "Readonly Paths")
//!
//! Nearly all of them lie in procfs. There the working directory is the root of the container's procfs, which we
//! have mounted and looked at: names in it mean what the kernel means, so plain mount(2) on a name is safe. All other
//! paths are resolved within the root and mounted on by descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use sys::mount::{self, Change, attr, flags};
use sys::path::{self, Links};

use super::devices;
use super::rootfs::Root;
use crate::plan::rootfs::RootfsPlan;

/// Bind each path on itself, read-only. A missing one is fine. The working directory is the container's procfs,
/// if it has one.
pub fn make_read_only(plan: &RootfsPlan, root: &Root) -> Result<()> {
    let readonly = Change { set: attr::RDONLY, ..Change::default() };
    for (i, at) in plan.readonly_paths.iter().enumerate() {
        let what = || format!("linux.readonlyPaths[{i}]: make /{} read-only", at.display());
        if let Some((_, name)) = in_procfs(root, at) {
            match mount::mount(Some(Path::new(name)), name, None, flags::BIND | flags::REC, None) {
                Err(e) if is_missing(&e) => {}
                done => done.and_then(|()| mount::change_here(name, &readonly)).with_context(what)?,
            }
            continue;
        }
        let Some(file) = find(root, at).with_context(what)? else { continue };
        let tree = mount::clone_tree(file.as_fd(), Path::new(""), true).with_context(what)?;
        mount::change(tree.as_fd(), "", &readonly).with_context(what)?;
        mount::attach(tree.as_fd(), file.as_fd()).with_context(what)?;
    }
    Ok(())
}

/// Cover each path: a file with the null device, a directory with an empty read-only tmpfs, the same one for all.
/// A missing one is fine. The working directory is the container's procfs, if it has one.
pub fn mask(plan: &RootfsPlan, root: &Root) -> Result<()> {
    let mut cover = Cover { root, null: None, empty: None, in_proc: Named::default() };
    for (i, at) in plan.masked.iter().enumerate() {
        let what = || format!("linux.maskedPaths[{i}]: mask /{}", at.display());
        match in_procfs(root, at) {
            Some((proc, name)) => cover.name(proc, name).with_context(what)?,
            None => {
                let Some(file) = find(root, at).with_context(what)? else { continue };
                cover.file(file.as_fd()).with_context(what)?;
            }
        }
    }
    Ok(())
}

/// What lies over masked paths.
struct Cover<'a> {
    root: &'a Root,
    null: Option<OwnedFd>,
    empty: Option<OwnedFd>,
    in_proc: Named,
}

/// Names in procfs that are covered already: a bind from one name to another is the cheapest cover.
#[derive(Default)]
struct Named {
    file: Option<String>,
    dir: Option<String>,
}

impl Cover<'_> {
    fn name(&mut self, proc: BorrowedFd<'_>, name: &str) -> Result<()> {
        let stat = match path::stat_at(proc, Path::new(name)) {
            Err(e) if is_missing(&e) => return Ok(()),
            done => done?,
        };
        if stat.is_symlink() {
            let file = path::locate(proc, Path::new(name), Links::Follow)?;
            return self.file(file.as_fd());
        }
        let dir = stat.is_dir();
        let known = if dir { &mut self.in_proc.dir } else { &mut self.in_proc.file };
        if let Some(source) = known {
            return Ok(mount::mount(Some(Path::new(source)), name, None, flags::BIND, None)?);
        }
        *known = Some(name.to_owned());
        if !dir {
            let file = path::locate(proc, Path::new(name), Links::Refuse)?;
            return self.file(file.as_fd());
        }
        if self.empty.is_some() {
            let dir = path::locate_dir(proc, Path::new(name), Links::Refuse)?;
            return self.file(dir.as_fd());
        }
        mount::mount(
            Some(Path::new("tmpfs")),
            name,
            Some("tmpfs"),
            flags::RDONLY,
            Some("size=0k,nr_inodes=2"),
        )?;
        self.empty = Some(path::locate_dir(proc, Path::new(name), Links::Refuse)?);
        Ok(())
    }

    fn file(&mut self, file: BorrowedFd<'_>) -> Result<()> {
        let source = if path::stat(file)?.is_dir() { self.empty()? } else { self.null()? };
        let tree = mount::clone_tree(source, Path::new(""), false)?;
        Ok(mount::attach(tree.as_fd(), file)?)
    }

    fn null(&mut self) -> Result<BorrowedFd<'_>> {
        if self.null.is_none() {
            let null = match &self.root.dev {
                Some(dev) => path::locate(dev.as_fd(), Path::new("null"), Links::Refuse),
                None => path::locate(self.root.fd(), Path::new("dev/null"), Links::Refuse),
            }
            .context("open /dev/null of the container")?;
            devices::verify_null(null.as_fd())?;
            self.null = Some(null);
        }
        self.null.as_ref().map(AsFd::as_fd).context("no null device")
    }

    fn empty(&mut self) -> Result<BorrowedFd<'_>> {
        if self.empty.is_none() {
            let options =
                [("source", Some("tmpfs")), ("size", Some("0")), ("nr_inodes", Some("2")), ("ro", None)];
            self.empty =
                Some(mount::detached("tmpfs", &options, attr::RDONLY).context("make an empty tmpfs")?);
        }
        self.empty.as_ref().map(AsFd::as_fd).context("no empty directory")
    }
}

/// The container's procfs and the name in it, of a path below /proc. Not for names that lead out of procfs
/// again, through a process.
fn in_procfs<'a>(root: &'a Root, at: &'a Path) -> Option<(BorrowedFd<'a>, &'a str)> {
    let proc = root.proc()?;
    let name = at.strip_prefix("proc").ok()?.to_str()?;
    let first = name.split('/').next().unwrap_or_default();
    let process = first.is_empty()
        || first.starts_with(|c: char| c.is_ascii_digit())
        || matches!(first, "self" | "thread-self" | "net" | "mounts");
    (!process).then_some((proc, name))
}

fn find(root: &Root, at: &Path) -> Result<Option<OwnedFd>> {
    match path::locate(root.fd(), at, Links::Follow) {
        Ok(file) => Ok(Some(file)),
        Err(e) if is_missing(&e) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn is_missing(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}
