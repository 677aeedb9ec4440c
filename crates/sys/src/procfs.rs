//! Files of procfs that are files of procfs: whatever is mounted over /proc or below it, or put in its place.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// Write `value` to `/proc/<path>`, in one write.
pub fn write(path: &str, value: &[u8]) -> Result<()> {
    let file = open(path, OFlags::WRONLY)?;
    write_once(File::from(file), value).with_context(|| format!("write /proc/{path}"))
}

/// The directory `/proc/self/<path>`, to open files of it.
pub fn open_own_dir(path: &str) -> Result<OwnedFd> {
    open(&format!("self/{path}"), OFlags::PATH | OFlags::DIRECTORY)
}

/// Open below a procfs, never leaving it: neither through what is mounted in it nor through its magic links.
fn open(path: &str, flags: OFlags) -> Result<OwnedFd> {
    let root = root().context("open procfs")?;
    // openat2 refuses what means nothing for O_PATH, where open ignores it.
    let terminal = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NOCTTY };
    let stay = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC | terminal, Mode::empty(), stay)
        .with_context(|| format!("open /proc/{path}"))
}

/// A procfs of our own, mounted nowhere; where the kernel lets us have none (a user namespace in which parts of /proc
/// are covered), the root of the one on /proc.
fn root() -> Result<OwnedFd> {
    if let Ok(own) = detached() {
        return Ok(own);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open("/proc", flags, Mode::empty())?;
    // proc_fs.h: PROC_ROOT_INO
    if !crate::path::is_procfs(root.as_fd())? || rustix::fs::fstat(&root)?.st_ino != 1 {
        return Err(anyhow!("/proc is not the root of a procfs"));
    }
    Ok(root)
}

fn detached() -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Files of procfs take a value in one write.
fn write_once(mut file: File, value: &[u8]) -> Result<()> {
    let written = file.write(value)?;
    if written < value.len() {
        Err(anyhow!("only {written} of {} bytes were taken", value.len()))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::open_own_dir;

    #[test]
    fn own_folders() {
        for name in ["fd", "attr"] {
            let there = std::path::Path::new("/proc/self").join(name).is_dir();
            assert_eq!(open_own_dir(name).is_ok(), there, "{name}");
        }
        assert!(open_own_dir("../../dev").is_err());
    }
}
