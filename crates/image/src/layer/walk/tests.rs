//! Trees become archives, and these the same trees again; as root, since they have owners and devices.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use super::super::apply::{Devices, Implied, Options, Owner, Whiteouts, apply, copy};
use super::*;

struct Bed(tempfile::TempDir);

impl Bed {
    /// None: not root.
    fn new() -> Option<Bed> {
        if sys::user::effective_ids().0 != 0 {
            eprintln!("skipped: needs root");
            return None;
        }
        Some(Bed(tempfile::tempdir().unwrap()))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn root(&self, name: &str) -> OwnedFd {
        fs::create_dir_all(self.path(name)).unwrap();
        fs::File::open(self.path(name)).unwrap().into()
    }
}

const KEEP: Options =
    Options { whiteouts: Whiteouts::Note(Privilege::Root), owner: Owner::Keep, devices: Devices::Make };

fn packed(root: &OwnedFd, privilege: Privilege) -> Vec<u8> {
    let mut out = Vec::new();
    archive(root.as_fd(), privilege, None, &mut out).unwrap();
    out
}

fn entries(archive: &[u8]) -> Vec<Header> {
    let mut reader = super::super::tar::Reader::new(archive);
    std::iter::from_fn(|| reader.entry().unwrap()).collect()
}

/// One of everything that a tree can have.
fn furnish(bed: &Bed) -> OwnedFd {
    let root = bed.root("tree");
    let at = |path: &str| bed.path("tree").join(path);
    fs::create_dir_all(at("z/deep")).unwrap();
    fs::write(at("z/deep/file"), "content").unwrap();
    fs::set_permissions(at("z/deep/file"), fs::Permissions::from_mode(0o4711)).unwrap();
    std::os::unix::fs::chown(at("z"), Some(70_000), Some(3_000_000_000)).unwrap();
    fs::hard_link(at("z/deep/file"), at("a-link")).unwrap();
    std::os::unix::fs::symlink("/nowhere", at("symlink")).unwrap();
    std::os::unix::fs::lchown(at("symlink"), Some(5), Some(6)).unwrap();
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    sparse.write_all_at(b"data", 1 << 20).unwrap();
    let mode = Mode::from_raw_mode(0o640);
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(&root, "null", FileType::CharacterDevice, mode, null).unwrap();
    rustix::fs::mknodat(&root, "fifo", FileType::Fifo, mode, 0).unwrap();
    rustix::fs::mknodat(&root, "gone", FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    fs::create_dir(at("opaque")).unwrap();
    fs::write(at("opaque/new"), "").unwrap();
    let empty = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(at("opaque"), "trusted.overlay.opaque", b"y", empty).unwrap();
    rustix::fs::setxattr(at("opaque"), "trusted.overlay.origin", b"dropped", empty).unwrap();
    rustix::fs::setxattr(at("z"), "trusted.test", &[7; 3000], empty).unwrap();
    // As setcap(8) does: cap_net_raw=ep.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(at("z/deep/file"), "security.capability", &capability, empty).unwrap();
    let before_1970 = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
        last_modification: rustix::fs::Timespec { tv_sec: -1000, tv_nsec: 123_456_789 },
    };
    rustix::fs::utimensat(&root, "fifo", &before_1970, AtFlags::empty()).unwrap();
    root
}

#[test]
fn a_tree_becomes_an_archive_and_the_same_tree_again() {
    let Some(bed) = Bed::new() else { return };
    let tree = furnish(&bed);
    let first = packed(&tree, Privilege::Root);
    let paths: Vec<_> = entries(&first).iter().map(Header::title).collect();
    assert_eq!(
        paths,
        [
            "a-link",
            "fifo",
            ".wh.gone",
            "null",
            "opaque",
            "opaque/.wh..wh..opq",
            "opaque/new",
            "sparse",
            "symlink",
            "z",
            "z/deep",
            "z/deep/file"
        ]
    );
    let link = &entries(&first)[11];
    assert_eq!((link.kind, &link.link[..]), (Kind::Hardlink, &b"a-link"[..]));
    let (again, copied) = (bed.root("again"), bed.root("copied"));
    let applied = apply(&first[..], again.as_fd(), KEEP).unwrap();
    assert_eq!(applied.implied, Implied::from([Vec::new()]), "all but the root is told");
    copy(tree.as_fd(), Privilege::Root, &Implied::new(), copied.as_fd(), KEEP).unwrap();
    for name in ["again", "copied"] {
        let other: OwnedFd = fs::File::open(bed.path(name)).unwrap().into();
        assert!(packed(&other, Privilege::Root) == first, "{name}");
        assert_eq!(fs::read(bed.path(name).join("z/deep/file")).unwrap(), b"content");
    }
    // Holes stay holes in a copy.
    assert!(fs::metadata(bed.path("copied/sparse")).unwrap().blocks() < 1000);
    assert!(fs::read(bed.path("copied/sparse")).unwrap() == fs::read(bed.path("tree/sparse")).unwrap());
}

#[test]
fn what_is_gone_is_removed_from_a_copy_and_what_is_not_told_stays() {
    let Some(bed) = Bed::new() else { return };
    let tree = furnish(&bed);
    let target = bed.root("target");
    let at = |path: &str| bed.path("target").join(path);
    fs::create_dir_all(at("opaque/sub")).unwrap();
    fs::create_dir_all(at("z/deep")).unwrap();
    fs::set_permissions(at("z"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(at("gone"), "").unwrap();
    fs::write(at("opaque/old"), "").unwrap();
    fs::write(at("z/other"), "").unwrap();
    let options = Options { whiteouts: Whiteouts::Remove, ..KEEP };
    let implied = Implied::from([Vec::new(), b"z".to_vec()]);
    copy(tree.as_fd(), Privilege::Root, &implied, target.as_fd(), options).unwrap();
    for (path, there) in [
        ("gone", false),
        ("opaque/old", false),
        ("opaque/sub", false),
        ("opaque/new", true),
        ("z/other", true),
        ("z/deep/file", true),
    ] {
        assert_eq!(at(path).exists(), there, "{path}");
    }
    let z = fs::metadata(at("z")).unwrap();
    assert_eq!((z.mode() & 0o7777, z.uid()), (0o1777, 0));
}

#[test]
fn notes_become_what_they_stand_for() {
    let Some(bed) = Bed::new() else { return };
    let tree = furnish(&bed);
    let first = packed(&tree, Privilege::Root);
    let noted = bed.root("noted");
    let options =
        Options { whiteouts: Whiteouts::Note(Privilege::User), owner: Owner::Note, devices: Devices::Note };
    // Attributes of others cannot be kept by an ordinary user, owners of links and pipes neither.
    let plain: Vec<_> = entries(&first)
        .into_iter()
        .filter(|h| {
            !h.path.starts_with(b"z") && !matches!(h.kind, Kind::Symlink | Kind::Hardlink | Kind::Fifo)
        })
        .filter(|h| h.title() != "a-link" && h.title() != "sparse")
        .collect();
    let mut tar = Writer::new(Vec::new());
    for header in &plain {
        tar.entry(&Header { uid: 12, gid: 34, ..header.clone() }, b"").unwrap();
    }
    let some = tar.finish().unwrap();
    match apply(&some[..], noted.as_fd(), options) {
        Err(e) if format!("{e:#}").contains("not supported") => return eprintln!("skipped: {e:#}"),
        done => done.unwrap(),
    };
    assert!(fs::metadata(bed.path("noted/null")).unwrap().is_file());
    let again = packed(&noted, Privilege::User);
    let told: Vec<_> = entries(&again);
    assert_eq!(
        told.iter().map(Header::title).collect::<Vec<_>>(),
        plain.iter().map(Header::title).collect::<Vec<_>>()
    );
    for header in told.iter().filter(|h| !h.title().contains(".wh.")) {
        assert_eq!((header.uid, header.gid), (12, 34), "{}", header.title());
    }
    let null = told.iter().find(|h| h.title() == "null").unwrap();
    assert_eq!((null.kind, null.device, null.mode), (Kind::Character, (1, 3), 0o640));
}

/// Linux 6.7: whiteouts that ordinary users can make.
#[test]
fn whiteouts_that_are_attributes_are_whiteouts() {
    let Some(bed) = Bed::new() else { return };
    let tree = bed.root("tree");
    let empty = rustix::fs::XattrFlags::empty();
    fs::write(bed.path("tree/gone"), "").unwrap();
    rustix::fs::setxattr(bed.path("tree/gone"), "trusted.overlay.whiteout", b"", empty).unwrap();
    let found: Vec<_> = entries(&packed(&tree, Privilege::Root)).iter().map(Header::title).collect();
    assert_eq!(found, [".wh.gone"]);
}

#[test]
fn what_no_layer_can_hold() {
    let Some(bed) = Bed::new() else { return };
    let tree = bed.root("tree");
    let _socket = std::os::unix::net::UnixListener::bind(bed.path("tree/socket")).unwrap();
    let archived = archive(tree.as_fd(), Privilege::Root, None, io::sink()).unwrap();
    assert_eq!((archived.entries, archived.sockets), (0, vec![b"socket".to_vec()]));
    fs::create_dir(bed.path("tree/d")).unwrap();
    fs::write(bed.path("tree/d/.wh.x"), "").unwrap();
    let error = archive(tree.as_fd(), Privilege::Root, None, io::sink()).unwrap_err();
    assert!(format!("{error:#}").starts_with("d/.wh.x: a layer cannot hold this name"), "{error:#}");
    fs::remove_file(bed.path("tree/d/.wh.x")).unwrap();
    let empty = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(bed.path("tree/d"), "trusted.overlay.redirect", b"/x", empty).unwrap();
    let error = archive(tree.as_fd(), Privilege::Root, None, io::sink()).unwrap_err();
    assert!(format!("{error:#}").contains("trusted.overlay.redirect"), "{error:#}");
}

/// Deeper than descriptors may be open.
#[test]
fn deep_trees_are_told_whole() {
    let Some(bed) = Bed::new() else { return };
    let tree = bed.root("tree");
    let deep: String = "d/".repeat(1000);
    fs::create_dir_all(bed.path("tree").join(&deep)).unwrap();
    fs::write(bed.path("tree").join(&deep).join("file"), "x").unwrap();
    fs::write(bed.path("tree/z"), "x").unwrap();
    let found = entries(&packed(&tree, Privilege::Root));
    assert_eq!(found.len(), 1002);
    assert_eq!((found[1000].path.len(), found[1001].title()), (2004, "z".to_owned()));
}
