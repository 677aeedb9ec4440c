//! Builds the root file system: propagation, mounts, devices, pivot, masked and read-only paths.
//!
//! ```text
//! parent, before the clone   open_sources   idmapped trees; with a user namespace also binds and the root
//! init, new mount namespace  build          propagation, root, mounts in order, devices
//!                            (createContainer hooks)
//!                            enter          pivot_root, the old root detached
//!                            Root::mount_console, sysctls through Root::proc
//!                            finish         working directory, read-only mounts and root, masks
//! ```
//!
//! The root may be in the hands of somebody hostile while we work on it: another container with the same
//! volume, say. So every path in it is resolved by the kernel within a descriptor of the root, and what is
//! mounted is mounted on a descriptor. Names are used only in file systems that we have just made.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use sys::mount::{self, Change, attr, flags};
use sys::path::{self, Links};

use super::{devices, mounts, paths};
use crate::plan::mounts::MountKind;
use crate::plan::rootfs::{Enter, Propagation, PropagationKind, RootfsPlan};

/// Descriptors that only the parent can open, before the clone; inherited by init.
#[derive(Debug, Default)]
pub struct Sources {
    /// The root's tree, when the container's user may not reach it by path.
    pub root: Option<OwnedFd>,
    /// Detached trees: idmapped ones, sources that the container's user may not reach. Indexed like the
    /// plan's mounts; empty when there is none.
    pub trees: Vec<Option<OwnedFd>>,
}

/// Open what only the parent can open. Makes no system call for a plain config.
pub fn open_sources(plan: &RootfsPlan) -> Result<Sources> {
    let mut out = Sources::default();
    if plan.open_early {
        let tree = mount::clone_host_tree(&plan.path, true)
            .with_context(|| format!("root.path: open {}", plan.path.display()))?;
        follow_only(plan, tree.as_fd())?;
        out.root = Some(tree);
    }
    for (i, m) in plan.mounts.iter().enumerate() {
        let MountKind::Bind { source, recursive } = &m.kind else { continue };
        if m.idmap.is_none() && !plan.open_early {
            continue;
        }
        let tree = mounts::open_source(source, *recursive)
            .with_context(|| format!("mounts[{i}]: {}", m.describe()))?;
        follow_only(plan, tree.as_fd())?;
        if let Some(idmap) = &m.idmap {
            mounts::map_ids(tree.as_fd(), idmap).with_context(|| format!("mounts[{i}]: {}", m.describe()))?;
        }
        out.trees.resize_with(plan.mounts.len(), || None);
        out.trees[i] = Some(tree);
    }
    Ok(out)
}

/// A tree cloned by the parent is a peer of the host's mount: make it follow the host as a mount would that
/// was made in the container's namespace, and never the host follow it.
fn follow_only(plan: &RootfsPlan, tree: BorrowedFd<'_>) -> Result<()> {
    if plan.propagation.kind == PropagationKind::Shared {
        return Ok(());
    }
    let propagation = match plan.propagation.kind {
        PropagationKind::Slave => flags::SLAVE,
        _ => flags::PRIVATE,
    };
    mount::change(tree, "", &Change { propagation, recursive: true, ..Change::default() })
        .context("set the propagation of a detached tree")
}

/// The root under construction.
#[derive(Debug)]
pub struct Root {
    root: OwnedFd,
    pub(super) proc: Option<OwnedFd>,
    /// The root of a new tmpfs on /dev.
    pub(super) fresh_dev: Option<OwnedFd>,
    /// /dev, once it is there and if it is not the host's.
    pub(super) dev: Option<OwnedFd>,
    /// Mounts that become read-only last.
    pub(super) late: Vec<OwnedFd>,
}

impl Root {
    /// The root directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The procfs that the config mounts on /proc: what is written through it reaches procfs and nothing else.
    pub fn proc(&self) -> Option<BorrowedFd<'_>> {
        self.proc.as_ref().map(AsFd::as_fd)
    }

    /// Bind the terminal `slave` to the container's /dev/console. After [`enter`], before [`finish`].
    pub fn mount_console(&self, slave: BorrowedFd<'_>) -> Result<()> {
        devices::mount_console(self, slave).context("process.terminal: mount the terminal on /dev/console")
    }
}

/// In init, in its own mount namespace: everything up to and without the pivot. As the container's root user:
/// what is made belongs to it.
pub fn build(plan: &RootfsPlan, sources: Sources) -> Result<Root> {
    let Sources { root, trees } = sources;
    if plan.enter != Enter::Chroot {
        set_propagation(plan).with_context(|| {
            format!("linux.rootfsPropagation: make / {:?}", plan.propagation.kind).to_lowercase()
        })?;
    }
    let fd = match (plan.enter, root) {
        (Enter::Chroot, _) => path::open_host_dir(&plan.path).map_err(Into::into),
        (_, Some(tree)) => attach_root(tree),
        (_, None) => bind_root(&plan.path),
    }
    .with_context(|| format!("root.path: open {}", plan.path.display()))?;
    let mut root = Root { root: fd, proc: None, fresh_dev: None, dev: None, late: Vec::new() };
    // Modes are meant as they are written.
    let umask = path::set_umask(0);
    mounts::mount_all(plan, trees, &mut root)?;
    if let Some(list) = &plan.devices {
        devices::make(plan, list, &mut root)?;
    }
    path::set_umask(umask);
    Ok(root)
}

/// Bind the root on itself: pivot_root wants a mount. The host's path is the caller's, and trusted.
fn bind_root(host: &Path) -> Result<OwnedFd> {
    mount::enter_directory(path::open_host_dir(host)?.as_fd())?;
    mount::mount(Some(Path::new(".")), ".", None, flags::BIND | flags::REC, None)?;
    Ok(path::open_host_dir(host)?)
}

/// Attach the tree that the parent opened where we need no right to look it up: over the old root.
fn attach_root(tree: OwnedFd) -> Result<OwnedFd> {
    mount::attach(tree.as_fd(), path::open_host_dir(Path::new("/"))?.as_fd())?;
    Ok(tree)
}

fn propagation_flag(p: Propagation) -> u64 {
    match p.kind {
        PropagationKind::Private => flags::PRIVATE,
        PropagationKind::Slave => flags::SLAVE,
        PropagationKind::Shared => flags::SHARED,
        PropagationKind::Unbindable => flags::UNBINDABLE,
    }
}

pub(super) fn change_of(p: Propagation) -> Change<'static> {
    Change { propagation: propagation_flag(p), recursive: p.recursive, ..Change::default() }
}

/// What of the host's mounts the new namespace goes on to share with it.
fn set_propagation(plan: &RootfsPlan) -> Result<()> {
    let p = plan.propagation;
    let recursive = if p.recursive { flags::REC } else { 0 };
    // What is unbindable could not be bound by us either: only the container's root becomes so, at the end.
    let flag = match p.kind {
        PropagationKind::Unbindable => flags::PRIVATE,
        _ => propagation_flag(p),
    };
    mount::mount(None, "/", None, flag | recursive, None)?;
    if p.kind == PropagationKind::Slave && p.recursive {
        return Ok(());
    }
    // Neither the bind of the root nor the pivot may be seen on the host: the mount that holds the root is
    // made private, or a slave where the root is to be one. Only a mount's own root can be changed, so the nearest
    // one above is the first to say yes.
    let held = if p.kind == PropagationKind::Slave { flags::SLAVE } else { flags::PRIVATE };
    let host = std::fs::canonicalize(&plan.path)?;
    let mut last = Ok(());
    for dir in host.ancestors() {
        let change = Change { propagation: held, ..Change::default() };
        last = mount::change(path::open_host_dir(dir)?.as_fd(), "", &change);
        match &last {
            Ok(()) => break,
            Err(e) if e.raw_os_error() == Some(22) => {}
            Err(_) => break,
        }
    }
    Ok(last?)
}

/// Make the root the root: pivot_root (or move and chroot), the old one detached. The working directory is
/// the new root afterwards.
pub fn enter(plan: &RootfsPlan, root: &Root) -> Result<()> {
    mount::enter_directory(root.fd()).context("enter the root")?;
    match plan.enter {
        Enter::Pivot => {
            let follows = plan.propagation.kind == PropagationKind::Slave && plan.propagation.recursive;
            let old =
                if follows { None } else { Some(path::open_host_dir(Path::new("/")).context("open /")?) };
            mount::pivot_here().context("pivot_root")?;
            // The old root lies on top: umount2(2) finds it at `.`, mount(2) does not. It must not take the host's
            // mounts with it when it goes.
            if let Some(old) = &old {
                mount::enter_directory(old.as_fd()).context("enter the old root")?;
                mount::mount(None, ".", None, flags::SLAVE | flags::REC, None)
                    .context("make the old root a slave")?;
            }
            mount::detach_here().context("detach the old root")?;
        }
        Enter::Move => move_root(root).context("move the root over /")?,
        Enter::Chroot => mount::chroot_here().context("chroot")?,
    }
    mount::enter_directory(root.fd()).context("enter the root")?;
    devices::reopen_null(root)
}

/// Where pivot_root cannot work (the host's root is a ramfs). The host's procfs and sysfs are detached first:
/// whoever gets behind the chroot would find them without masks.
fn move_root(root: &Root) -> Result<()> {
    for dir in ["/sys", "/proc"] {
        match mount::detach(Path::new(dir)) {
            Ok(()) => {}
            // Not a mount, not there, or locked by a user namespace.
            Err(e) if matches!(e.raw_os_error(), Some(22 | 2 | 1)) => {
                log::debug!("{dir} stays below the root: {e}");
            }
            Err(e) => return Err(e).with_context(|| format!("detach {dir}")),
        }
    }
    mount::enter_directory(root.fd())?;
    mount::mount(Some(Path::new(".")), "/", None, flags::MOVE, None)?;
    Ok(mount::chroot_here()?)
}

/// Last: the working directory is made, read-only mounts and root, masked and read-only paths.
/// (Sysctls are set before, through [`Root::proc`].)
pub fn finish(plan: &RootfsPlan, root: Root) -> Result<()> {
    if !plan.cwd.as_os_str().is_empty() {
        path::make_dirs(root.fd(), &plan.cwd, Links::Follow)
            .with_context(|| format!("process.cwd: make /{}", plan.cwd.display()))?;
    }
    let readonly = Change { set: attr::RDONLY, ..Change::default() };
    for late in &root.late {
        mount::change(late.as_fd(), "", &readonly).context("make a mount read-only")?;
    }
    if let Some(proc) = root.proc() {
        mount::enter_directory(proc).context("enter /proc")?;
    }
    paths::make_read_only(plan, &root)?;
    paths::mask(plan, &root)?;
    // "the rootfs mount belongs to a new peer group", "a private mount that cannot be bind-mounted"
    if plan.enter != Enter::Chroot
        && matches!(plan.propagation.kind, PropagationKind::Shared | PropagationKind::Unbindable)
    {
        let root_alone = Propagation { recursive: false, ..plan.propagation };
        mount::change(root.fd(), "", &change_of(root_alone))
            .context("linux.rootfsPropagation: set that of /")?;
    }
    if plan.readonly {
        mount::change(root.fd(), "", &readonly).context("root.readonly: make / read-only")?;
    }
    Ok(())
}
