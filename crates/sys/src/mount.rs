//! Mounts: mount(2) on the working directory, detached trees, attributes, moving, pivoting, unmounting.
//!
//! A new file system goes through mount(2) on `.` after fchdir(2): that names the target by descriptor just as
//! move_mount(2) does, and costs half of fsopen, fsconfig, fsmount and move_mount (docs/speed.md).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{FsOpenFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

/// `MS_*`, as mount(2) takes them.
pub mod flags {
    pub const RDONLY: u64 = libc::MS_RDONLY;
    pub const NOSUID: u64 = libc::MS_NOSUID;
    pub const NODEV: u64 = libc::MS_NODEV;
    pub const NOEXEC: u64 = libc::MS_NOEXEC;
    pub const SYNCHRONOUS: u64 = libc::MS_SYNCHRONOUS;
    pub const MANDLOCK: u64 = libc::MS_MANDLOCK;
    pub const DIRSYNC: u64 = libc::MS_DIRSYNC;
    pub const NOSYMFOLLOW: u64 = 0x100;
    pub const NOATIME: u64 = libc::MS_NOATIME;
    pub const NODIRATIME: u64 = libc::MS_NODIRATIME;
    pub const SILENT: u64 = libc::MS_SILENT;
    pub const POSIXACL: u64 = libc::MS_POSIXACL;
    pub const RELATIME: u64 = libc::MS_RELATIME;
    pub const I_VERSION: u64 = libc::MS_I_VERSION;
    pub const STRICTATIME: u64 = libc::MS_STRICTATIME;
    pub const LAZYTIME: u64 = libc::MS_LAZYTIME;
    pub const BIND: u64 = libc::MS_BIND;
    pub const REMOUNT: u64 = libc::MS_REMOUNT;
    pub const REC: u64 = libc::MS_REC;
    pub const MOVE: u64 = libc::MS_MOVE;
    pub const PRIVATE: u64 = libc::MS_PRIVATE;
    pub const SLAVE: u64 = libc::MS_SLAVE;
    pub const SHARED: u64 = libc::MS_SHARED;
    pub const UNBINDABLE: u64 = libc::MS_UNBINDABLE;
}

/// `MOUNT_ATTR_*`, as mount_setattr(2) takes them.
pub mod attr {
    pub const RDONLY: u64 = 0x1;
    pub const NOSUID: u64 = 0x2;
    pub const NODEV: u64 = 0x4;
    pub const NOEXEC: u64 = 0x8;
    /// The field of the access time: all of it has to be cleared when one value is set.
    pub const ATIME: u64 = 0x70;
    pub const RELATIME: u64 = 0x0;
    pub const NOATIME: u64 = 0x10;
    pub const STRICTATIME: u64 = 0x20;
    pub const NODIRATIME: u64 = 0x80;
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// A mount's own attributes to change; `userns`: map the ids by that user namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change<'a> {
    pub set: u64,
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE` or nothing.
    pub propagation: u64,
    pub userns: Option<BorrowedFd<'a>>,
    /// All mounts below too.
    pub recursive: bool,
}

/// mount(2). `target` is looked up from the working directory; callers make it `.` or a name in a directory
/// that nobody else can change.
pub fn mount(
    source: Option<&Path>,
    target: &str,
    fs: Option<&str>,
    flags: u64,
    data: Option<&str>,
) -> io::Result<()> {
    let flags = nix::mount::MsFlags::from_bits_retain(flags);
    Ok(nix::mount::mount(source, target, fs, flags, data)?)
}

/// Detach a copy of the tree at `path`.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(dir, path, flags)?)
}

/// The same for a path of the host.
pub fn clone_host_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    clone_tree(CWD, path, recursive)
}

/// A new file system that is mounted nowhere yet.
pub fn detached(fs: &str, options: &[(&str, Option<&str>)], attributes: u64) -> io::Result<OwnedFd> {
    use rustix::mount::{FsMountFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let context = fsopen(fs, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let attributes = MountAttrFlags::from_bits_retain(u32::try_from(attributes).unwrap_or(0));
    configure(context.as_fd(), options)
        .and_then(|()| Ok(fsconfig_create(&context)?))
        .map_err(|e| explain(context.as_fd(), e))?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Attach a tree on what `target` has open.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", target, "", flags)?)
}

/// mount_setattr(2) on what `path` names from `dir` (nothing: `dir` itself); a final symbolic link is not followed.
pub fn change(dir: BorrowedFd<'_>, path: &str, change: &Change<'_>) -> io::Result<()> {
    set_attributes(dir.as_raw_fd(), path, change)
}

/// The same from the working directory.
pub fn change_here(path: &str, change: &Change<'_>) -> io::Result<()> {
    set_attributes(libc::AT_FDCWD, path, change)
}

fn set_attributes(dir: RawFd, path: &str, change: &Change<'_>) -> io::Result<()> {
    const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
    let path = CString::new(path)?;
    let mut attr = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: 0,
    };
    if let Some(userns) = change.userns {
        attr.attr_set |= MOUNT_ATTR_IDMAP;
        attr.userns_fd = u64::from(userns.as_raw_fd().unsigned_abs());
    }
    let mut flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    if change.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `path` ends in NUL and `attr` is a `struct mount_attr`; both live through the call, which only reads.
    crate::check(unsafe {
        libc::syscall(libc::SYS_mount_setattr, dir, path.as_ptr(), flags, &raw const attr, size_of_val(&attr))
    })?;
    Ok(())
}

/// `pivot_root(".", ".")`: the working directory becomes the root, the old one lies on top of it.
pub fn pivot_here() -> io::Result<()> {
    Ok(rustix::process::pivot_root(".", ".")?)
}

/// Detach what is mounted on the working directory, with all below it.
pub fn detach_here() -> io::Result<()> {
    Ok(rustix::mount::unmount(".", UnmountFlags::DETACH)?)
}

/// Unmount what nobody uses (`EBUSY`).
pub fn unmount(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(path, UnmountFlags::NOFOLLOW)?)
}

/// Detach the host's mount at `path`.
pub fn detach(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// fchdir(2).
pub fn enter_directory(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::process::fchdir(dir)?)
}

/// chroot(2) to the working directory.
pub fn chroot_here() -> io::Result<()> {
    Ok(rustix::process::chroot(".")?)
}

/// Change the options of the file system (not of the mount) that `target` is the root of.
pub fn reconfigure(target: BorrowedFd<'_>, options: &[(&str, Option<&str>)]) -> io::Result<()> {
    use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fspick};
    let context = fspick(target, "", FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH)?;
    let done = configure(context.as_fd(), options).and_then(|()| Ok(fsconfig_reconfigure(&context)?));
    done.map_err(|e| explain(context.as_fd(), e))
}

/// Why a file system refuses `options`, in its own words: it is asked again through fsopen(2), whose
/// context keeps a log; nothing is mounted.
pub fn why(fs: &str, options: &[(&str, Option<&str>)]) -> Option<String> {
    let context = rustix::mount::fsopen(fs, FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    configure(context.as_fd(), options)
        .and_then(|()| Ok(rustix::mount::fsconfig_create(&context)?))
        .err()
        .and_then(|_| messages(context.as_fd()))
}

fn configure(context: BorrowedFd<'_>, options: &[(&str, Option<&str>)]) -> io::Result<()> {
    for (key, value) in options {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(context, *key, *value)?,
            None => rustix::mount::fsconfig_set_flag(context, *key)?,
        }
    }
    Ok(())
}

fn explain(context: BorrowedFd<'_>, error: io::Error) -> io::Error {
    match messages(context) {
        Some(text) => io::Error::new(error.kind(), format!("{text}: {error}")),
        None => error,
    }
}

/// The log of a file system context: lines such as `e tmpfs: Bad value for 'mode'`.
fn messages(context: BorrowedFd<'_>) -> Option<String> {
    let mut out = Vec::new();
    let mut line = [0u8; 512];
    while let Ok(n @ 1..) = rustix::io::read(context, &mut line) {
        let text = String::from_utf8_lossy(&line[..n]);
        let text = text.trim();
        out.push(text.split_once(' ').map_or(text, |(_, rest)| rest).to_owned());
    }
    if out.is_empty() { None } else { Some(out.join("; ")) }
}

/// A range of ids: `inside` as the file system has them, `outside` as the mount shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    pub inside: u32,
    pub outside: u32,
    pub size: u32,
}

/// A user namespace that has these maps and nobody in it. A process holds it until it is open.
pub fn user_namespace(uids: &[IdRange], gids: &[IdRange]) -> io::Result<OwnedFd> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all zero is a valid `clone_args`: no stack, no pointers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_NEWUSER | libc::CLONE_PIDFD) as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: like fork(2): the child gets its own copy of our memory; `pidfd` outlives the call.
    let pid = crate::check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })?;
    if pid == 0 {
        loop {
            // SAFETY: asks for a signal at our death, then sleeps until one ends us; touches no memory.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::pause();
            }
        }
    }
    // SAFETY: the kernel just made this descriptor for us.
    let child = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let map = |ranges: &[IdRange]| -> String {
        ranges.iter().map(|r| format!("{} {} {}\n", r.inside, r.outside, r.size)).collect()
    };
    let result = std::fs::write(format!("/proc/{pid}/uid_map"), map(uids))
        .and_then(|()| std::fs::write(format!("/proc/{pid}/gid_map"), map(gids)))
        .and_then(|()| std::fs::File::open(format!("/proc/{pid}/ns/user")))
        .map(OwnedFd::from);
    rustix::process::pidfd_send_signal(&child, rustix::process::Signal::KILL)?;
    rustix::process::waitid(
        rustix::process::WaitId::PidFd(child.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    )?;
    result
}
