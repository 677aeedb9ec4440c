//! Makes the container's device nodes, the links of /dev, and /dev/console.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use report::Kind;
use sys::mount;
use sys::path::{self, Links};

use super::rootfs::Root;
use crate::plan::devices::{Device, DeviceKind};
use crate::plan::rootfs::{Enter, RootfsPlan};

/// The nodes, and what every /dev has beside them. The umask is 0.
pub fn make(plan: &RootfsPlan, devices: &[Device], root: &mut Root) -> Result<()> {
    let dev = match root.fresh_dev.take() {
        Some(dev) => dev,
        None => make_dir(root, Path::new("dev")).context("open /dev of the container")?,
    };
    for device in devices {
        let what = || format!("device /{}", device.path.display());
        if let Some(name) = in_dev(&device.path) {
            one(plan, device, dev.as_fd(), name).with_context(what)?;
            continue;
        }
        let (Some(parent), Some(name)) = (device.path.parent(), device.path.file_name()) else { continue };
        let dir = make_dir(root, parent).with_context(what)?;
        one(plan, device, dir.as_fd(), Path::new(name)).with_context(what)?;
    }
    links(root, dev.as_fd()).context("links of /dev")?;
    root.dev = Some(dev);
    Ok(())
}

/// The name, of a path that lies directly in /dev.
pub(super) fn in_dev(path: &Path) -> Option<&Path> {
    let name = path.strip_prefix("dev").ok()?;
    name.parent().is_some_and(|p| p.as_os_str().is_empty()).then_some(name)
}

/// A directory for nodes: not one of procfs, whichever way a link leads.
fn make_dir(root: &Root, dir: &Path) -> Result<OwnedFd> {
    match path::make_dirs(root.fd(), dir, Links::Refuse) {
        Ok(dir) => return Ok(dir),
        Err(e) if matches!(e.raw_os_error(), Some(40 | 20)) => {}
        Err(e) => return Err(e.into()),
    }
    let found = path::make_dirs(root.fd(), dir, Links::Follow)?;
    if path::is_procfs(found.as_fd())? {
        return Err(report::error(
            Kind::BadInput,
            format!("/{} leads into procfs through a symbolic link", dir.display()),
        ));
    }
    Ok(found)
}

fn one(plan: &RootfsPlan, device: &Device, dir: BorrowedFd<'_>, name: &Path) -> Result<()> {
    let os = name.as_os_str();
    let kind = match device.kind {
        DeviceKind::Char => libc_mode::CHAR,
        DeviceKind::Block => libc_mode::BLOCK,
        DeviceKind::Fifo => libc_mode::FIFO,
    };
    // A user namespace may make fifos, but no devices.
    if plan.userns && device.kind != DeviceKind::Fifo {
        return bind(plan, device, kind, dir, name);
    }
    match path::make_node_at(dir, os, kind, device.mode, (device.major, device.minor)) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            return check(device, kind, path::stat_at(dir, name)?, "what is there is not that device");
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied && device.kind != DeviceKind::Fifo => {
            return bind(plan, device, kind, dir, name);
        }
        Err(e) => return Err(e.into()),
    }
    if (device.uid, device.gid) != (0, 0) {
        path::own_at(dir, os, device.uid, device.gid)
            .with_context(|| format!("give it to {}:{}", device.uid, device.gid))?;
        // chown(2) takes setuid bits away; nothing else can have come to that name.
        if device.mode & 0o7000 != 0 {
            path::set_mode_at(dir, os, device.mode)?;
        }
    }
    Ok(())
}

mod libc_mode {
    pub const CHAR: u32 = 0o020_000;
    pub const BLOCK: u32 = 0o060_000;
    pub const FIFO: u32 = 0o010_000;
}

fn check(device: &Device, kind: u32, found: path::Stat, otherwise: &str) -> Result<()> {
    if !found.is_node(kind, (device.major, device.minor)) {
        anyhow::bail!("{otherwise} ({}:{})", device.major, device.minor);
    }
    Ok(())
}

/// Bind the host's node of the same path.
fn bind(plan: &RootfsPlan, device: &Device, kind: u32, dir: BorrowedFd<'_>, name: &Path) -> Result<()> {
    if plan.enter == Enter::Chroot {
        anyhow::bail!("it can neither be made here nor be bound without a mount namespace");
    }
    let host = Path::new("/").join(&device.path);
    let tree = mount::clone_host_tree(&host, false)
        .with_context(|| format!("bind the host's {}", host.display()))?;
    check(device, kind, path::stat(tree.as_fd())?, "the host's device of that path is not that one")?;
    let target = match path::make_file_at(dir, name.as_os_str(), 0o644) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => path::locate(dir, name, Links::Refuse)?,
        Err(e) => return Err(e.into()),
    };
    mount::attach(tree.as_fd(), target.as_fd()).with_context(|| format!("bind the host's {}", host.display()))
}

fn links(root: &Root, dev: BorrowedFd<'_>) -> Result<()> {
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        link(dev, name, target)?;
    }
    // Kernels can be built without it, and a link to nothing would be a lie.
    let core = match root.proc() {
        Some(proc) => path::stat_at(proc, Path::new("kcore")),
        None => path::stat_host(Path::new("/proc/kcore")),
    };
    match core {
        Ok(_) => link(dev, "core", "/proc/kcore")?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).context("look for /proc/kcore"),
    }
    match path::make_link_at(Path::new("pts/ptmx"), dev, "ptmx".as_ref()) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            path::remove_at(dev, "ptmx".as_ref()).context("replace ptmx")?;
            Ok(path::make_link_at(Path::new("pts/ptmx"), dev, "ptmx".as_ref())?)
        }
        done => Ok(done?),
    }
}

/// An entry of the image stays as it is.
fn link(dev: BorrowedFd<'_>, name: &str, target: &str) -> Result<()> {
    match path::make_link_at(Path::new(target), dev, name.as_ref()) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done.with_context(|| format!("make {name}")),
    }
}

/// Bind a terminal to /dev/console.
pub fn mount_console(root: &Root, slave: BorrowedFd<'_>) -> Result<()> {
    let dev = match &root.dev {
        Some(dev) => dev.try_clone()?,
        None => path::locate_dir(root.fd(), Path::new("dev"), Links::Refuse)?,
    };
    let name = Path::new("console");
    let target = match path::make_file_at(dev.as_fd(), name.as_os_str(), 0o666) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => path::locate(dev.as_fd(), name, Links::Refuse)?,
        Err(e) => return Err(e.into()),
    };
    if path::stat(target.as_fd())?.is_symlink() {
        return Err(report::error(Kind::BadInput, "/dev/console is a symbolic link in the root file system"));
    }
    let tree = mount::clone_tree(slave, Path::new(""), false)?;
    Ok(mount::attach(tree.as_fd(), target.as_fd())?)
}

/// Standard streams that are the host's /dev/null become the container's.
pub fn reopen_null(root: &Root) -> Result<()> {
    let Some(dev) = &root.dev else { return Ok(()) };
    let mut null = None;
    for stream in 0..3 {
        let found = path::stat_stdio(stream).is_ok_and(|s| s.is_char(1, 3));
        if !found {
            continue;
        }
        if null.is_none() {
            null = Some(open_null(dev.as_fd())?);
        }
        if let Some(null) = &null {
            path::replace_stdio(null.as_fd(), stream).context("reopen /dev/null")?;
        }
    }
    Ok(())
}

/// The container's /dev/null, for reading and writing, and no other file in its place.
fn open_null(dev: BorrowedFd<'_>) -> Result<OwnedFd> {
    let null = path::open_device(dev, Path::new("null")).context("open /dev/null of the container")?;
    verify_null(null.as_fd())?;
    Ok(null)
}

/// What is not the null device must neither be opened nor lie over a masked file.
pub fn verify_null(file: BorrowedFd<'_>) -> Result<()> {
    if !path::stat(file)?.is_char(1, 3) {
        anyhow::bail!("/dev/null of the container is not the null device");
    }
    Ok(())
}
