//! What can be done with a whole tree, however deep, and whatever is in it?

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use sys::path::Links;

use crate::digest::{Algorithm, Digest, Hasher};

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

/// How many bytes a tree's files have.
pub fn tree_size(root: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(tree_count(root)?.0)
}

/// Bytes of files, and entries; each file counts once, however many names it has.
pub fn tree_count(root: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let (mut bytes, mut entries) = (0, 0);
    let mut inodes = std::collections::HashSet::new();
    let mut open = vec![PathBuf::new()];
    while let Some(path) = open.pop() {
        let dir = sys::path::locate_dir(root, &path, Links::Refuse)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&dir, ".", flags, Mode::empty())?;
        for name in sys::path::list(dir.as_fd())? {
            let stat = rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            entries += 1;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => open.push(path.join(&name)),
                FileType::RegularFile if stat.st_nlink < 2 || inodes.insert(stat.st_ino) => {
                    bytes += stat.st_size.unsigned_abs();
                }
                _ => {}
            }
        }
    }
    Ok((bytes, entries))
}

/// A digest of a tree's names and of all that its inodes say: kinds, modes, owners, sizes, times of change of the contents, links.
/// The contents themselves are not read.
pub fn fingerprint(root: BorrowedFd<'_>) -> io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut inodes: HashMap<u64, u64> = HashMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(path) = open.pop() {
        let dir = sys::path::locate_dir(root, &path, Links::Refuse)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&dir, ".", flags, Mode::empty())?;
        let mut names = sys::path::list(dir.as_fd())?;
        names.sort();
        hasher.update(path.as_os_str().as_bytes());
        hasher.update(b"\0");
        let mut below = Vec::new();
        for name in names {
            let stat = rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            // Which of the names here are one file, but not which inode that is, nor whether it has names elsewhere. Whiteouts are
            // one as overlayfs likes.
            let next = inodes.len() as u64;
            let whiteout = kind == FileType::CharacterDevice && stat.st_rdev == 0;
            let mut same = u64::MAX;
            if stat.st_nlink > 1 && kind != FileType::Directory && !whiteout {
                match inodes.entry(stat.st_ino) {
                    Entry::Occupied(first) => same = *first.get(),
                    Entry::Vacant(place) => drop(place.insert(next)),
                }
            }
            let size = if kind == FileType::RegularFile { stat.st_size } else { 0 };
            let (mode, rdev) = (stat.st_mode, stat.st_rdev);
            let line = format!(
                " {mode:o} {} {} {size} {}.{} {rdev} {same}",
                stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec
            );
            hasher.update(name.as_bytes());
            hasher.update(line.as_bytes());
            match kind {
                FileType::Symlink => {
                    hasher.update(rustix::fs::readlinkat(&dir, &name, Vec::new())?.as_bytes())
                }
                FileType::Directory => below.push(path.join(&name)),
                _ => {}
            }
            hasher.update(b"\0");
        }
        open.extend(below.into_iter().rev());
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn a_fingerprint_tells_every_change_but_that_of_contents() {
        let temp = tempfile::tempdir().unwrap();
        let dir: OwnedFd = fs::File::open(temp.path()).unwrap().into();
        let at = |name: &str| temp.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/b/file"), "x").unwrap();
        fs::hard_link(at("a/b/file"), at("hard")).unwrap();
        std::os::unix::fs::symlink("a", at("link")).unwrap();
        let before = fingerprint(dir.as_fd()).unwrap();
        assert_eq!(fingerprint(dir.as_fd()).unwrap(), before);
        fs::set_permissions(at("a/b/file"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let mode = fingerprint(dir.as_fd()).unwrap();
        fs::write(at("a/new"), "").unwrap();
        let new = fingerprint(dir.as_fd()).unwrap();
        fs::remove_file(at("link")).unwrap();
        std::os::unix::fs::symlink("b", at("link")).unwrap();
        let link = fingerprint(dir.as_fd()).unwrap();
        assert!(before != mode && mode != new && new != link);
        // A name elsewhere is no change; two files in place of one are.
        let elsewhere = tempfile::tempdir_in(temp.path().parent().unwrap()).unwrap();
        fs::hard_link(at("a/new"), elsewhere.path().join("other")).unwrap();
        assert_eq!(fingerprint(dir.as_fd()).unwrap(), link);
        fs::remove_file(at("hard")).unwrap();
        fs::copy(at("a/b/file"), at("hard")).unwrap();
        let times = fs::metadata(at("a/b/file")).unwrap().modified().unwrap();
        fs::File::open(at("hard")).unwrap().set_modified(times).unwrap();
        assert_ne!(fingerprint(dir.as_fd()).unwrap(), link);
    }

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
