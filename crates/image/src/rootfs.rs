//! How do layers become a root file system? overlayfs stacks them (overlayfs.rst), the host's root with `trusted.` attributes, in a
//! user namespace with `user.` ones.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use report::Explain;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::layer::apply::Implied;
use crate::layer::tar::Header;
use crate::layer::walk;
use crate::layer::whiteout::Privilege;

/// An unpacked layer.
#[derive(Debug)]
pub struct Unpacked {
    pub tree: OwnedFd,
    /// Folders of which it says nothing.
    pub implied: Implied,
}

/// What folders are like in a stack of layers (the lowest first), of which the highest layer that has them says nothing: overlayfs
/// would show them as that layer happens to have them. In a layer on top, they are as the layers below say. Folders above them are
/// told, too; nothing at all, where all is well.
pub fn mend(layers: &[Unpacked], privilege: Privilege) -> Result<Vec<Header>> {
    let mut wrong = BTreeSet::new();
    let all: BTreeSet<&Vec<u8>> = layers.iter().flat_map(|l| &l.implied).collect();
    for path in all {
        let seen = look(layers, path, privilege)?;
        if let (Some(shown), Some(told)) = (&seen.shown, &seen.told)
            && (shown.mode, shown.uid, shown.gid, &shown.xattrs)
                != (told.mode, told.uid, told.gid, &told.xattrs)
        {
            wrong.insert(path);
        }
    }
    let mut paths = BTreeSet::new();
    for path in wrong {
        paths.insert(&path[..0]);
        paths.extend(path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at]));
        paths.insert(&path[..]);
    }
    let mut headers = Vec::new();
    for path in paths {
        let seen = look(layers, path, privilege)?;
        headers.extend(seen.told.or(seen.shown));
    }
    Ok(headers)
}

/// A folder of a stack.
#[derive(Default)]
struct Seen {
    /// As overlayfs has it; None: it is not there, or no folder.
    shown: Option<Header>,
    /// As the highest layer has it that says something of it.
    told: Option<Header>,
}

fn look(layers: &[Unpacked], path: &[u8], privilege: Privilege) -> Result<Seen> {
    let mut seen = Seen::default();
    for layer in layers.iter().rev() {
        let mut dir = layer.tree.try_clone()?;
        let mut last = false;
        let mut found = true;
        let parts = path.split(|b| *b == b'/').filter(|p| !p.is_empty());
        let mut at = Vec::new();
        let mut header = None;
        for part in std::iter::once(&b"."[..]).chain(parts) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            dir = match rustix::fs::openat(&dir, OsStr::from_bytes(part), flags, Mode::empty()) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => {
                    found = false;
                    break;
                }
                // Gone, or something else: it hides what is below.
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(seen),
                Err(e) => return Err(e).with_context(|| path.escape_ascii().to_string()),
            };
            if part != b"." {
                at.push(part);
            }
            let (of_this, opaque) = walk::folder(&at.join(&b'/'), dir.as_fd(), privilege)?;
            last |= opaque;
            header = Some(of_this);
        }
        if found {
            if seen.shown.is_none() {
                seen.shown.clone_from(&header);
            }
            if !layer.implied.contains(path) {
                seen.told = header;
                return Ok(seen);
            }
        }
        if last {
            return Ok(seen);
        }
    }
    Ok(seen)
}

/// Where what is written goes; both on one file system, `work` empty.
#[derive(Debug)]
pub struct Upper<'a> {
    pub upper: &'a Path,
    pub work: &'a Path,
    /// It is used for longer than a command: what is written is synced as on any file system.
    pub lasting: bool,
}

/// A root file system of these layers, the lowest first; without an upper it is read-only. It is mounted nowhere yet.
pub fn overlay(layers: &[OwnedFd], upper: Option<&Upper<'_>>, privilege: Privilege) -> Result<OwnedFd> {
    ensure!(!layers.is_empty(), "an image without layers has no root file system");
    // A root that says "nothing below me counts" is the lowest.
    let opaque = |fd: &OwnedFd| {
        let mut value = [0; 2];
        rustix::fs::fgetxattr(fd, privilege.opaque(), &mut value).is_ok_and(|n| value[..n] == *b"y")
    };
    let lowest = layers.iter().rposition(opaque).unwrap_or(0);
    let layers = &layers[lowest..];
    let names: Vec<_> = layers.iter().rev().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd())).collect();
    let mut common: Vec<(&str, Option<String>)> = Vec::new();
    if privilege == Privilege::User {
        common.push(("userxattr", None));
    }
    if let Some(Upper { upper, work, lasting }) = upper {
        common.push(("upperdir", Some(upper.display().to_string())));
        common.push(("workdir", Some(work.display().to_string())));
        // What is written becomes a layer: it must not depend on what else lies here. What lasts is synced by us, once.
        // In a user namespace they are off, and may not be spoken of.
        let offs: &[&str] = match privilege {
            Privilege::Root => &["redirect_dir", "metacopy", "index"],
            Privilege::User => &["index"],
        };
        common.extend(offs.iter().map(|off| (*off, Some("off".to_owned()))));
        if !lasting {
            common.push(("volatile", None));
        }
    } else if names.len() == 1 {
        // Without an upper the kernel wants two of them.
        let tree = sys::mount::clone_tree(layers[0].as_fd(), Path::new(""), false);
        let tree = tree.context("make a mount of the only layer")?;
        let change = sys::mount::Change { set: MOUNT_ATTR_RDONLY, ..Default::default() };
        sys::mount::change(tree.as_fd(), "", &change).context("make a mount read-only")?;
        return Ok(tree);
    }
    let mount = |lower: Vec<(&str, Option<String>)>| {
        let all: Vec<_> = lower.into_iter().chain(common.iter().cloned()).collect();
        let all: Vec<_> = all.iter().map(|(k, v)| (*k, v.as_deref())).collect();
        let read_only = if upper.is_none() { MOUNT_ATTR_RDONLY } else { 0 };
        sys::mount::detached("overlay", &all, read_only)
    };
    // One by one, which has no limit (Linux 6.8); or all in one option, which has one.
    let done = match mount(names.iter().map(|n| ("lowerdir+", Some(n.clone()))).collect()) {
        Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            mount(vec![("lowerdir", Some(names.join(":")))])
        }
        done => done,
    };
    done.with_context(|| format!("stack {} layers", names.len()))
        .hint(|| "berth-builder unpack copies them where the kernel refuses to stack them".to_owned())
}

const MOUNT_ATTR_RDONLY: u64 = 1;

/// Mount a root file system on a folder.
pub fn attach(tree: BorrowedFd<'_>, folder: &Path) -> Result<()> {
    let attach = || -> io::Result<()> {
        let target = sys::path::open_host_dir(folder)?;
        sys::mount::attach(tree, target.as_fd())
    };
    attach().with_context(|| format!("mount on {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::layer::apply::{Devices, Options, Owner, Whiteouts, apply};
    use crate::layer::tar::{Kind, Writer};

    fn layer(dir: &Path, entries: &[(&str, &str)]) -> OwnedFd {
        let mut tar = Writer::new(Vec::new());
        for (path, content) in entries {
            let kind = if path.ends_with('/') { Kind::Directory } else { Kind::File };
            tar.entry(&Header::new(kind, *path), content.as_bytes()).unwrap();
        }
        fs::create_dir(dir).unwrap();
        let fd: OwnedFd = fs::File::open(dir).unwrap().into();
        let whiteouts = Whiteouts::Note(Privilege::own());
        let options = Options { whiteouts, owner: Owner::Keep, devices: Devices::Make };
        apply(&tar.finish().unwrap()[..], fd.as_fd(), options).unwrap();
        fd
    }

    #[test]
    fn layers_are_stacked_as_they_were_meant() {
        if sys::user::effective_ids().0 != 0 || sys::process::unshare(sys::process::flags::NEWNS).is_err() {
            eprintln!("skipped: needs a mount namespace");
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        let mut layers = vec![
            layer(&at("1"), &[("a/old", "1"), ("b/old", "1"), ("gone", "1"), ("same", "1")]),
            layer(
                &at("2"),
                &[("b/.wh..wh..opq", ""), ("b/new", "2"), (".wh.gone", ""), ("same", "2"), ("a/", "")],
            ),
        ];
        for n in 3..150 {
            layers.push(layer(&at(&n.to_string()), &[(&format!("n/{n}"), "x")]));
        }
        fs::create_dir(at("m")).unwrap();
        for dir in ["u", "w"] {
            fs::create_dir(at(dir)).unwrap();
        }
        let read = |path: &str| fs::read_to_string(at("m").join(path)).ok();
        for upper in [None, Some(Upper { upper: &at("u"), work: &at("w"), lasting: false })] {
            let tree = match overlay(&layers, upper.as_ref(), Privilege::own()) {
                Ok(tree) => tree,
                Err(e) => {
                    eprintln!("skipped: {e:#}");
                    return;
                }
            };
            attach(tree.as_fd(), &at("m")).unwrap();
            assert_eq!(read("a/old").as_deref(), Some("1"));
            assert_eq!((read("b/old"), read("b/new").as_deref()), (None, Some("2")));
            assert_eq!((read("gone"), read("same").as_deref()), (None, Some("2")));
            assert_eq!(fs::read_dir(at("m/n")).unwrap().count(), 147);
            assert_eq!(fs::write(at("m/written"), "").is_ok(), upper.is_some());
            sys::mount::detach(&at("m")).unwrap();
        }
        assert!(at("u/written").exists());
    }

    /// `tmp/x` alone must not make /tmp a folder of root's with mode 0755.
    #[test]
    fn folders_of_which_a_layer_says_nothing_are_as_the_lower_ones_have_them() {
        if sys::user::effective_ids().0 != 0 || sys::process::unshare(sys::process::flags::NEWNS).is_err() {
            eprintln!("skipped: needs a mount namespace");
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let dir =
            |path: &str, mode: u32, uid: u32| Header { mode, uid, ..Header::new(Kind::Directory, path) };
        let file = |path: &str| Header::new(Kind::File, path);
        let link = Header { link: b"/".to_vec(), ..Header::new(Kind::Symlink, "link") };
        let all = [
            vec![
                dir("tmp", 0o1777, 0),
                dir("home", 0o711, 0),
                dir("home/app", 0o700, 1000),
                dir("opaque", 0o700, 1),
                dir("gone", 0o700, 1),
                dir("told", 0o700, 1),
                link,
            ],
            vec![
                file("tmp/x"),
                file("home/app/y"),
                file("opaque/.wh..wh..opq"),
                file(".wh.gone"),
                dir("told", 0o755, 2),
                file("link/z"),
            ],
            vec![file("opaque/x"), file("gone/x"), file("told/x"), file("home/app/z"), file("same/x")],
            vec![file("top")],
        ];
        let mut layers = Vec::new();
        for (n, entries) in all.iter().enumerate() {
            let mut tar = Writer::new(Vec::new());
            entries.iter().for_each(|e| tar.entry(e, b"").unwrap());
            let path = temp.path().join(n.to_string());
            fs::create_dir(&path).unwrap();
            let tree: OwnedFd = fs::File::open(&path).unwrap().into();
            let whiteouts = Whiteouts::Note(Privilege::own());
            let options = Options { whiteouts, owner: Owner::Keep, devices: Devices::Make };
            let applied = apply(&tar.finish().unwrap()[..], tree.as_fd(), options).unwrap();
            layers.push(Unpacked { tree, implied: applied.implied });
        }
        let told = mend(&layers, Privilege::own()).unwrap();
        let told: Vec<_> = told.iter().map(|h| (h.title(), h.mode, h.uid)).collect();
        let told: Vec<_> = told.iter().map(|(path, mode, uid)| (path.as_str(), *mode, *uid)).collect();
        assert_eq!(
            told,
            [
                ("", 0o755, 0),
                ("home", 0o711, 0),
                ("home/app", 0o700, 1000),
                ("tmp", 0o1777, 0),
                ("told", 0o755, 2)
            ]
        );
        assert_eq!(mend(&layers[..1], Privilege::own()).unwrap(), []);
    }
}
