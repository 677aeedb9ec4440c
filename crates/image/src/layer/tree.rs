//! What can be done with a whole tree, however deep, and whatever is in it?

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// Remove what is called `name` in `dir`, with all below it; that it is not there is fine. Links are removed, not followed. Folders
/// in folders are moved up first, so that neither the stack nor the descriptors are as many as the tree is deep.
pub fn remove_tree(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // POSIX says EPERM for a folder, Linux EISDIR.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let mut moved = 0_u64;
    // Every pass leaves nothing but folders that were moved here meanwhile.
    loop {
        let children = sys::path::list(top.as_fd())?;
        if children.is_empty() {
            break;
        }
        for child in children {
            match rustix::fs::unlinkat(&top, &child, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(e) => return Err(e.into()),
            }
            match rustix::fs::unlinkat(&top, &child, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
            let folder = rustix::fs::openat(&top, &child, flags, Mode::empty())?;
            for grandchild in sys::path::list(folder.as_fd())? {
                match rustix::fs::unlinkat(&folder, &grandchild, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    Err(Errno::ISDIR | Errno::PERM) => {}
                    Err(e) => return Err(e.into()),
                }
                if rustix::fs::unlinkat(&folder, &grandchild, AtFlags::REMOVEDIR).is_ok() {
                    continue;
                }
                loop {
                    let place = format!(".moved-{moved}");
                    moved += 1;
                    match rustix::fs::renameat_with(
                        &folder,
                        &grandchild,
                        &top,
                        &place,
                        RenameFlags::NOREPLACE,
                    ) {
                        Ok(()) => break,
                        Err(Errno::EXIST) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
            }
            rustix::fs::unlinkat(&top, &child, AtFlags::REMOVEDIR)?;
        }
    }
    drop(top);
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn deep_and_wide_trees_go_and_what_links_lead_to_stays() {
        let temp = tempfile::tempdir().unwrap();
        let dir: OwnedFd = fs::File::open(temp.path()).unwrap().into();
        fs::create_dir_all(temp.path().join("kept/sub")).unwrap();
        fs::write(temp.path().join("kept/file"), "x").unwrap();
        // Deeper than paths and descriptors reach.
        let mut at = dir.try_clone().unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "tree", Mode::from_raw_mode(0o700)).unwrap();
            at = rustix::fs::openat(&at, "tree", OFlags::PATH, Mode::empty()).unwrap();
            fs::write(format!("/proc/self/fd/{}/file", std::os::fd::AsRawFd::as_raw_fd(&at)), "").unwrap();
        }
        drop(at);
        for n in 0..300 {
            fs::create_dir_all(temp.path().join(format!("tree/wide/{n}/{n}"))).unwrap();
            std::os::unix::fs::symlink("../../../kept", temp.path().join(format!("tree/wide/{n}/link")))
                .unwrap();
        }
        remove_tree(dir.as_fd(), OsStr::new("tree")).unwrap();
        remove_tree(dir.as_fd(), OsStr::new("tree")).unwrap();
        assert_eq!(sys::path::list(dir.as_fd()).unwrap(), ["kept"]);
        assert!(temp.path().join("kept/file").exists() && temp.path().join("kept/sub").exists());
        std::os::unix::fs::symlink("kept", temp.path().join("link")).unwrap();
        remove_tree(dir.as_fd(), OsStr::new("link")).unwrap();
        assert!(temp.path().join("kept/file").exists());
    }
}
