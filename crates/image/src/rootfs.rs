//! How do layers become a root file system? overlayfs stacks them (overlayfs.rst), the host's root with `trusted.` attributes, in a
//! user namespace with `user.` ones.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use report::Explain;
use rustix::io::Errno;

use crate::layer::whiteout::Privilege;

/// Where what is written goes; both on one file system, `work` empty.
#[derive(Debug)]
pub struct Upper<'a> {
    pub upper: &'a Path,
    pub work: &'a Path,
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
    if let Some(Upper { upper, work }) = upper {
        common.push(("upperdir", Some(upper.display().to_string())));
        common.push(("workdir", Some(work.display().to_string())));
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
    use crate::layer::tar::{Header, Kind, Writer};

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
        for upper in [None, Some(Upper { upper: &at("u"), work: &at("w") })] {
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
}
