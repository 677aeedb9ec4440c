//! Carries out `mounts`, in order.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use report::{Explain, Kind};
use sys::mount::{self, Change, attr, flags};
use sys::path::{self, Links};

use super::rootfs::{Root, change_of};
use super::{copy_up, devices};
use crate::plan::mounts::{Fs, Hierarchy, IdMap, IdMapSource, Mount, MountKind};
use crate::plan::rootfs::RootfsPlan;

/// Mount everything. `trees`: what the parent has opened, by index.
pub fn mount_all(plan: &RootfsPlan, trees: Vec<Option<OwnedFd>>, root: &mut Root) -> Result<()> {
    let mut trees = trees.into_iter();
    for (i, m) in plan.mounts.iter().enumerate() {
        let tree = trees.next().flatten();
        apply(m, tree, root).with_context(|| format!("mounts[{i}]: {}", m.describe()))?;
    }
    Ok(())
}

fn apply(m: &Mount, tree: Option<OwnedFd>, root: &mut Root) -> Result<()> {
    let top = match &m.kind {
        MountKind::Fs(fs) => file_system(m, fs, root)?,
        MountKind::Bind { source, recursive } => Some(bind(m, source, *recursive, tree, root)?),
        MountKind::Remount { file_system } => Some(remount(m, file_system.as_deref(), root)?),
        MountKind::Hierarchies { readonly, data, dirs } => {
            Some(hierarchies(&m.destination, *readonly, data, dirs, root)?)
        }
    };
    // A bind has them before it is seen.
    if !m.is_bind() && !m.recursive.is_empty() {
        let top = top_of(&top, m, root)?;
        change(top.as_fd(), m.recursive.set, m.recursive.clear, true)?;
    }
    for p in &m.propagation {
        let top = top_of(&top, m, root)?;
        mount::change(top.as_fd(), "", &change_of(*p)).context("set the propagation")?;
    }
    if m.readonly_last {
        root.late.push(top_of(&top, m, root)?);
    }
    Ok(())
}

/// The root of what was just mounted.
fn top_of(top: &Option<OwnedFd>, m: &Mount, root: &Root) -> Result<OwnedFd> {
    match top {
        Some(top) => Ok(top.try_clone()?),
        None => Ok(path::locate(root.fd(), &m.destination, Links::Follow)?),
    }
}

fn change(tree: BorrowedFd<'_>, set: u64, clear: u64, recursive: bool) -> Result<()> {
    mount::change(tree, "", &Change { set, clear, recursive, ..Change::default() })
        .context("set its attributes")
        .hint_if(
            clear != 0,
            "a user namespace may not take back what the host's mount forbids (ro, nosuid, nodev, noexec)",
        )
}

trait HintIf<T> {
    fn hint_if(self, when: bool, hint: &str) -> Result<T>;
}

impl<T> HintIf<T> for Result<T> {
    fn hint_if(self, when: bool, hint: &str) -> Result<T> {
        match when {
            true => self.hint(|| hint.to_owned()),
            false => self,
        }
    }
}

/// A new file system. The working directory becomes the target: mount(2) on `.` names it by descriptor.
fn file_system(m: &Mount, fs: &Fs, root: &mut Root) -> Result<Option<OwnedFd>> {
    // In a new tmpfs on /dev names are safe: nobody else can reach it.
    if let (Some(dev), Some(name)) = (&root.fresh_dev, devices::in_dev(&m.destination))
        && fs.instead.is_none()
        && let Some(text) = name.to_str()
        && path::make_dir_at(dev.as_fd(), name, 0o755)?
    {
        mount::enter_directory(dev.as_fd())?;
        let given = Some(fs.data.as_str()).filter(|d| !d.is_empty());
        return match mount::mount(Some(Path::new(&fs.source)), text, Some(&fs.fs), fs.flags, given) {
            Ok(()) if fs.copy_up => Ok(Some(path::locate_dir(dev.as_fd(), name, Links::Refuse)?)),
            Ok(()) => Ok(None),
            Err(e) => Err(refused(fs, &fs.data, e)),
        };
    }
    let strict = matches!(fs.fs.as_str(), "proc" | "sysfs");
    let (target, existed) = target_dir(root, &m.destination, strict)?;
    let mut data = std::borrow::Cow::Borrowed(fs.data.as_str());
    if existed && fs.fs == "tmpfs" && !fs.data.split(',').any(|word| word.starts_with("mode=")) {
        // The directory's own mode shows through, as with runc.
        let comma = if fs.data.is_empty() { "" } else { "," };
        data = format!("mode={:o}{comma}{}", path::stat(target.as_fd())?.mode(), fs.data).into();
    }
    mount::enter_directory(target.as_fd())?;
    let source = Some(Path::new(&fs.source));
    let given = Some(&*data).filter(|d| !d.is_empty());
    match (mount::mount(source, ".", Some(&fs.fs), fs.flags, given), &fs.instead) {
        (Ok(()), _) => {}
        (Err(e), Some(host)) if matches!(e.raw_os_error(), Some(1 | 16)) => {
            log::debug!("{} cannot be mounted here ({e}); {} is bound instead", fs.fs, host.display());
            // A rootless container may have gone without a cgroup of its own. The others are none of its business.
            if fs.fs == "cgroup2" && !host.exists() {
                log::warn!("the container has no cgroup: /{} stays empty", m.destination.display());
                let flags = fs.flags | flags::RDONLY | flags::NOSUID | flags::NODEV | flags::NOEXEC;
                mount::mount(Some(Path::new("tmpfs")), ".", Some("tmpfs"), flags, Some("mode=555"))?;
                return Ok(None);
            }
            let tree = open_source(host, true)?;
            change(tree.as_fd(), m.attributes.set, 0, true)?;
            mount::attach(tree.as_fd(), target.as_fd())?;
            return Ok(Some(tree));
        }
        (Err(e), _) => return Err(refused(fs, &data, e)),
    }
    if m.destination == Path::new("proc") && fs.fs == "proc" {
        let proc = path::locate_dir(root.fd(), &m.destination, Links::Refuse)?;
        if !path::is_procfs(proc.as_fd())? {
            anyhow::bail!("/proc was exchanged while procfs was mounted on it");
        }
        root.proc = Some(proc);
    }
    if m.destination == Path::new("dev") {
        // What is made in it next needs no look at the root: nobody else can reach a tmpfs that is new.
        root.fresh_dev = if fs.fs == "tmpfs" { fresh(root, &m.destination, target.as_fd())? } else { None };
    }
    if fs.copy_up {
        let top = path::locate_dir(root.fd(), &m.destination, Links::Follow)?;
        copy_up::copy(target.as_fd(), top.as_fd()).context("tmpcopyup")?;
        return Ok(Some(top));
    }
    Ok(None)
}

/// The root of the file system just mounted at `destination`, if it is there and not something in its place.
fn fresh(root: &Root, destination: &Path, below: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let Ok(top) = path::locate_dir(root.fd(), destination, Links::Refuse) else { return Ok(None) };
    let other = path::stat(top.as_fd())?.device() != path::stat(below)?.device();
    Ok(other.then_some(top))
}

/// The kernel's one word for a refused mount is rarely enough: ask the file system, and say what we know.
fn refused(fs: &Fs, data: &str, error: io::Error) -> anyhow::Error {
    let mut options: Vec<(&str, Option<&str>)> = vec![("source", Some(&fs.source))];
    options.extend(data.split(',').filter(|word| !word.is_empty()).map(|word| match word.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (word, None),
    }));
    let code = error.raw_os_error();
    let result: Result<()> = match mount::why(&fs.fs, &options) {
        Some(text) => Err(anyhow::Error::new(error).context(text)),
        None => Err(error.into()),
    };
    let hint = match (fs.fs.as_str(), code) {
        ("proc", Some(1)) => {
            "inside a user namespace, proc needs a pid namespace of its own; add {\"type\": \"pid\"} to linux.namespaces"
        }
        ("sysfs", Some(1)) => {
            "inside a user namespace, sysfs needs a network namespace of its own; add {\"type\": \"network\"}, or bind /sys"
        }
        ("mqueue", Some(1)) => {
            "inside a user namespace, mqueue needs an ipc namespace of its own; add {\"type\": \"ipc\"} to linux.namespaces"
        }
        (_, Some(19)) => "this kernel does not have that file system; see /proc/filesystems",
        ("devpts" | "tmpfs", Some(22)) if data.contains("id=") => {
            "in a user namespace, uid= and gid= must be ids that it maps"
        }
        _ => return result.map_or_else(|e| e, |()| anyhow::anyhow!("mount")),
    };
    match result.hint(|| hint.to_owned()).kind(Kind::Failed) {
        Err(e) => e,
        Ok(()) => anyhow::anyhow!("mount"),
    }
}

/// Detach a copy of a part of the host's tree.
pub fn open_source(source: &Path, recursive: bool) -> Result<OwnedFd> {
    mount::clone_host_tree(source, recursive).map_err(|e| match e.raw_os_error() {
        Some(2) => anyhow::Error::new(e).context(format!("source {}", source.display())),
        Some(22) => anyhow::Error::new(e).context(format!("{} is an unbindable mount", source.display())),
        _ => e.into(),
    })
}

/// Map the ids of a detached tree.
pub fn map_ids(tree: BorrowedFd<'_>, idmap: &IdMap) -> Result<()> {
    let userns = match &idmap.maps {
        IdMapSource::Maps { uids, gids } => {
            mount::user_namespace(uids, gids).context("make a user namespace with its id maps")?
        }
        IdMapSource::Namespace(path) => {
            path::open_host(path).with_context(|| format!("open the user namespace {}", path.display()))?
        }
    };
    let change = Change { userns: Some(userns.as_fd()), recursive: idmap.recursive, ..Change::default() };
    mount::change(tree, "", &change)
        .context("map its ids")
        .hint(|| "the file system of the source must support idmapped mounts, and we must be root of its user namespace".to_owned())
}

fn bind(
    m: &Mount,
    source: &Path,
    recursive: bool,
    tree: Option<OwnedFd>,
    root: &mut Root,
) -> Result<OwnedFd> {
    let tree = match tree {
        Some(tree) => tree,
        None => open_source(source, recursive)?,
    };
    let over_proc = m.destination == Path::new("proc");
    if over_proc && !path::is_procfs(tree.as_fd())? {
        return Err(report::at(
            "destination",
            format!("/proc is for a procfs, which {} is not", source.display()),
        ));
    }
    if !m.attributes.is_empty() {
        change(tree.as_fd(), m.attributes.set, m.attributes.clear, false)?;
    }
    if !m.recursive.is_empty() {
        change(tree.as_fd(), m.recursive.set, m.recursive.clear, true)?;
    }
    let target = if path::stat(tree.as_fd())?.is_dir() {
        target_dir(root, &m.destination, over_proc)?.0
    } else {
        target_file(root, &m.destination)?
    };
    mount::attach(tree.as_fd(), target.as_fd())?;
    if m.destination == Path::new("dev") {
        root.fresh_dev = None;
    }
    if over_proc {
        root.proc = Some(tree.try_clone()?);
    }
    Ok(tree)
}

fn remount(m: &Mount, file_system: Option<&[String]>, root: &Root) -> Result<OwnedFd> {
    let top = path::locate(root.fd(), &m.destination, Links::Follow)?;
    if let Some(options) = file_system {
        let options: Vec<(&str, Option<&str>)> = options
            .iter()
            .map(|word| word.split_once('=').map_or((word.as_str(), None), |(key, value)| (key, Some(value))))
            .collect();
        mount::reconfigure(top.as_fd(), &options)?;
    }
    if !m.attributes.is_empty() {
        change(top.as_fd(), m.attributes.set, m.attributes.clear, false)?;
    }
    Ok(top)
}

/// cgroup v1: a tmpfs with a bind of the container's own directory of each hierarchy. (In a cgroup namespace a
/// mount of its own shows the same and costs twice as much.) Nobody else can reach the new tmpfs: names are
/// safe in it.
fn hierarchies(
    destination: &Path,
    readonly: bool,
    data: &str,
    dirs: &[Hierarchy],
    root: &Root,
) -> Result<OwnedFd> {
    let base = attr::NOSUID | attr::NODEV | attr::NOEXEC;
    let all = base | if readonly { attr::RDONLY } else { 0 };
    let (target, _) = target_dir(root, destination, false)?;
    mount::enter_directory(target.as_fd())?;
    let own = flags::NOSUID | flags::NODEV | flags::NOEXEC;
    mount::mount(Some(Path::new("tmpfs")), ".", Some("tmpfs"), own, Some(data))?;
    let top = path::locate_dir(root.fd(), destination, Links::Follow)?;
    if path::stat(top.as_fd())?.device() == path::stat(target.as_fd())?.device() {
        anyhow::bail!("/{} was exchanged while it was mounted on", destination.display());
    }
    mount::enter_directory(top.as_fd())?;
    for dir in dirs {
        let what = || format!("bind {} on /{}/{}", dir.host.display(), destination.display(), dir.name);
        if dir.optional && path::stat_host(&dir.host).is_err() {
            log::debug!("{} is left out: the container has no cgroup there", dir.name);
            continue;
        }
        path::make_dir_at(top.as_fd(), Path::new(&dir.name), 0o755).with_context(what)?;
        mount::mount(Some(&dir.host), &dir.name, None, flags::BIND, None).with_context(what)?;
        for link in &dir.links {
            path::make_link_at(Path::new(&dir.name), top.as_fd(), link.as_ref()).with_context(what)?;
        }
    }
    // One call for all of them, and for the tmpfs.
    let inner = Change { set: all, propagation: flags::PRIVATE, recursive: true, ..Change::default() };
    mount::change(top.as_fd(), "", &inner).context("set its attributes")?;
    Ok(top)
}

/// The directory to mount on, made if it is missing, and whether it was there. Symbolic links are followed
/// within the root, but not for procfs and sysfs (`strict`): what is mounted there must be found at its name.
fn target_dir(root: &Root, destination: &Path, strict: bool) -> Result<(OwnedFd, bool)> {
    if let (Some(dev), Some(name)) = (&root.fresh_dev, devices::in_dev(destination)) {
        let existed = !path::make_dir_at(dev.as_fd(), name, 0o755)?;
        match path::locate_dir(dev.as_fd(), name, Links::Refuse) {
            Ok(dir) => return Ok((dir, existed)),
            Err(e) if is_loop(&e) || e.kind() == io::ErrorKind::NotADirectory => {}
            Err(e) => return Err(e.into()),
        }
    }
    match path::locate_dir(root.fd(), destination, Links::Refuse) {
        Ok(dir) => return Ok((dir, true)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            match path::make_dirs(root.fd(), destination, Links::Refuse) {
                Ok(dir) => return Ok((dir, false)),
                Err(e) if is_loop(&e) => {}
                Err(e) => return Err(e.into()),
            }
        }
        // With O_DIRECTORY, a link at the end is "not a directory".
        Err(e) if is_loop(&e) || e.kind() == io::ErrorKind::NotADirectory => {}
        Err(e) => return Err(e.into()),
    }
    if strict {
        return Err(linked(destination));
    }
    let existed = path::locate_dir(root.fd(), destination, Links::Follow).is_ok();
    let dir = path::make_dirs(root.fd(), destination, Links::Follow)?;
    Ok((not_in_proc(dir, destination)?, existed))
}

/// The file to mount on, made if it is missing.
fn target_file(root: &Root, destination: &Path) -> Result<OwnedFd> {
    match path::make_file(root.fd(), destination, Links::Refuse) {
        Err(e) if is_loop(&e) => {}
        done => return Ok(done?),
    }
    not_in_proc(path::make_file(root.fd(), destination, Links::Follow)?, destination)
}

fn is_loop(e: &io::Error) -> bool {
    e.raw_os_error() == Some(40)
}

fn linked(destination: &Path) -> anyhow::Error {
    let text =
        format!("/{} is, or leads through, a symbolic link in the root file system", destination.display());
    match Err::<(), _>(report::error(Kind::BadInput, text))
        .hint(|| "the image must have a directory there".to_owned())
    {
        Err(e) => e,
        Ok(()) => anyhow::anyhow!("symbolic link"),
    }
}

/// The plan has looked at names; a link could lead into procfs all the same.
fn not_in_proc(target: OwnedFd, destination: &Path) -> Result<OwnedFd> {
    if path::is_procfs(target.as_fd())? {
        let text = format!("/{} leads into procfs through a symbolic link", destination.display());
        return Err(report::error(Kind::BadInput, text));
    }
    Ok(target)
}
