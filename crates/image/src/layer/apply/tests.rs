//! Layers of our own making, good and evil; as root, since they have owners and devices.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use super::super::tar::Writer;
use super::*;

/// A tree in a folder that has a neighbour, which must stay as it is.
struct Bed {
    temp: tempfile::TempDir,
}

impl Bed {
    /// None: not root.
    fn new() -> Option<Bed> {
        if sys::user::effective_ids().0 != 0 {
            eprintln!("skipped: needs root");
            return None;
        }
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("root")).unwrap();
        fs::create_dir(temp.path().join("outside")).unwrap();
        fs::write(temp.path().join("outside/file"), "untouched").unwrap();
        Some(Bed { temp })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.temp.path().join("root").join(path)
    }

    fn apply(&self, layer: &[u8], whiteouts: Whiteouts) -> Result<Applied> {
        let root = fs::File::open(self.temp.path().join("root")).unwrap();
        let options = Options { whiteouts, owner: Owner::Keep, devices: Devices::Make };
        apply(layer, root.as_fd(), options)
    }

    fn list(&self) -> Vec<String> {
        fn walk(dir: &Path, prefix: &str, out: &mut Vec<String>) {
            let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            for name in names {
                let path = format!("{prefix}{}", name.to_string_lossy());
                let full = dir.join(&name);
                let is_dir = fs::symlink_metadata(&full).unwrap().is_dir();
                out.push(if is_dir { format!("{path}/") } else { path.clone() });
                if is_dir {
                    walk(&full, &format!("{path}/"), out);
                }
            }
        }
        let mut out = Vec::new();
        walk(&self.path(""), "", &mut out);
        out
    }

    fn outside_is_untouched(&self) -> bool {
        let outside = self.temp.path().join("outside");
        let entries: Vec<_> = fs::read_dir(&outside).unwrap().map(|e| e.unwrap().file_name()).collect();
        let all = fs::read_dir(self.temp.path()).unwrap().count();
        let meta = fs::metadata(outside.join("file")).unwrap();
        entries == ["file"]
            && all == 2
            && fs::read(outside.join("file")).unwrap() == b"untouched"
            && (meta.nlink(), meta.mode() & 0o7777, meta.uid()) == (1, 0o644, 0)
    }
}

fn layer(entries: &[(Header, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (header, content) in entries {
        writer.entry(header, content).unwrap();
    }
    writer.finish().unwrap()
}

fn file(path: &str) -> Header {
    Header::new(Kind::File, path)
}

fn dir(path: &str) -> Header {
    Header::new(Kind::Directory, path)
}

fn link(kind: Kind, path: &str, to: &str) -> Header {
    Header { link: to.into(), ..Header::new(kind, path) }
}

const OVERLAY: Whiteouts = Whiteouts::Note(Privilege::Root);

#[test]
fn everything_that_an_entry_says_is_so() {
    for whiteouts in [Whiteouts::Remove, OVERLAY] {
        let Some(bed) = Bed::new() else { return };
        let long = "n".repeat(255);
        let entries: &[(Header, &[u8])] = &[
            (Header { mode: 0o711, mtime: (9, 0), ..dir("./") }, b""),
            (Header { mode: 0o1777, uid: 7, mtime: (1, 5), ..dir("tmp") }, b""),
            (Header { mode: 0o4755, uid: 1, gid: 2, mtime: (-7, 250), ..file("tmp/suid") }, b"content"),
            (Header { xattrs: vec![(b"user.k".to_vec(), b"v".to_vec())], mode: 0o400, ..file("tmp/x") }, b""),
            (Header { mode: 0o2755, gid: 50, ..dir("group") }, b""),
            (Header { uid: 4_000_000_000, gid: 0, ..file("group/member") }, b""),
            (file("made/on/the/way"), b"x"),
            (file(&format!("{long}/{long}")), b""),
            (Header { uid: 3, mtime: (5, 0), ..link(Kind::Symlink, "tmp/link", "../../../etc/passwd") }, b""),
            (link(Kind::Hardlink, "hard", "tmp/suid"), b""),
            (link(Kind::Hardlink, "hard", "tmp/suid"), b""),
            (link(Kind::Hardlink, "tmp/suid", "./tmp/suid"), b""),
            (Header { device: (1, 3), mode: 0o666, ..Header::new(Kind::Character, "null") }, b""),
            (Header { device: (7, 1000), ..Header::new(Kind::Block, "loop") }, b""),
            (Header { mode: 0o622, ..Header::new(Kind::Fifo, "fifo") }, b""),
            (Header { mtime: (4_300_000_000, 0), ..file("late") }, b""),
        ];
        let applied = bed.apply(&layer(entries), whiteouts).unwrap();
        assert_eq!((applied.entries, applied.bytes), (entries.len() as u64, 8));
        let meta = |path: &str| fs::symlink_metadata(bed.path(path)).unwrap();
        let of = |path: &str| {
            let m = meta(path);
            (m.mode() & 0o7777, m.uid(), m.gid(), m.mtime(), m.mtime_nsec())
        };
        assert_eq!(of(""), (0o711, 0, 0, 9, 0));
        assert_eq!(of("tmp"), (0o1777, 7, 0, 1, 5));
        assert_eq!(of("tmp/suid"), (0o4755, 1, 2, -7, 250));
        assert_eq!(fs::read(bed.path("hard")).unwrap(), b"content");
        assert_eq!((meta("hard").ino(), meta("hard").nlink()), (meta("tmp/suid").ino(), 2));
        assert_eq!(of("tmp/x").0, 0o400);
        let mut value = [0; 9];
        assert_eq!(rustix::fs::getxattr(bed.path("tmp/x"), "user.k", &mut value).unwrap(), 1);
        assert_eq!(of("group"), (0o2755, 0, 50, 0, 0));
        assert_eq!(of("group/member"), (0o644, 4_000_000_000, 0, 0, 0), "not the folder's group");
        assert_eq!(of("made/on"), (0o755, 0, 0, 0, 0));
        assert_eq!((of("tmp/link").1, of("tmp/link").3), (3, 5));
        assert_eq!(fs::read_link(bed.path("tmp/link")).unwrap(), Path::new("../../../etc/passwd"));
        assert!(meta("null").file_type().is_char_device() && meta("null").mode() & 0o777 == 0o666);
        assert_eq!(meta("null").rdev(), rustix::fs::makedev(1, 3));
        assert_eq!(meta("loop").rdev(), rustix::fs::makedev(7, 1000));
        assert!(meta("fifo").file_type().is_fifo() && meta("fifo").mode() & 0o777 == 0o622);
        assert_eq!(of("late").3, 4_300_000_000);
        assert!(bed.outside_is_untouched());
    }
}

#[test]
fn what_stands_there_is_replaced_and_folders_are_kept() {
    let Some(bed) = Bed::new() else { return };
    let lower = layer(&[
        (file("dir/old"), b"1"),
        (file("file"), b"1"),
        (link(Kind::Symlink, "link", "dir"), b""),
        (file("tree/a/b"), b""),
        (link(Kind::Symlink, "lib", "usr/lib"), b""),
        (dir("usr/lib"), b""),
    ]);
    bed.apply(&lower, Whiteouts::Remove).unwrap();
    let upper = layer(&[
        (Header { mode: 0o700, ..dir("dir") }, b""),
        (file("file"), b"2"),
        (file("file"), b"3"),
        (file("link"), b"no longer a link"),
        (file("tree"), b"no longer a folder"),
        (file("lib/so"), b"in a folder of its own, as overlayfs has it"),
        (file("none/in"), b"in what was a file"),
    ]);
    bed.apply(&upper, Whiteouts::Remove).unwrap();
    assert_eq!(
        bed.list(),
        ["dir/", "dir/old", "file", "lib/", "lib/so", "link", "none/", "none/in", "tree", "usr/", "usr/lib/"]
    );
    assert_eq!(fs::read(bed.path("file")).unwrap(), b"3");
    assert_eq!(fs::metadata(bed.path("dir")).unwrap().mode() & 0o777, 0o700);
    // A layer's own link is followed.
    let last = layer(&[(link(Kind::Symlink, "l", "usr/lib"), b""), (file("l/own"), b"")]);
    bed.apply(&last, Whiteouts::Remove).unwrap();
    assert!(bed.path("l").is_symlink() && bed.path("usr/lib/own").exists());
}

/// Once a folder that was another's stayed so when a layer gave it back to root.
#[test]
fn a_folder_keeps_nothing_of_what_it_was_like() {
    let Some(bed) = Bed::new() else { return };
    let note = |name: &str| (name.as_bytes().to_vec(), b"1".to_vec());
    let like = |uid, mode, xattrs: &[&str]| Header {
        uid,
        gid: uid,
        mode,
        xattrs: xattrs.iter().map(|n| note(n)).collect(),
        ..dir("d")
    };
    let root = |uid| Header { uid, ..dir(".") };
    for (uid, mode, xattrs) in [
        (7, 0o2755, &["user.a", "user.b"][..]),
        (0, 0o755, &["user.b", "user.c"]),
        (8, 0o700, &[]),
        (0, 0o711, &[]),
    ] {
        bed.apply(&layer(&[(root(uid), b""), (like(uid, mode, xattrs), b"")]), Whiteouts::Remove).unwrap();
        let found = fs::metadata(bed.path("d")).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (uid, uid, mode));
        assert_eq!(fs::metadata(bed.path(".")).unwrap().uid(), uid);
        for name in ["user.a", "user.b", "user.c"] {
            let there = rustix::fs::getxattr(bed.path("d"), name, &mut [0_u8; 8][..]).is_ok();
            assert_eq!(there, xattrs.contains(&name), "{name} of {uid}");
        }
    }
}

#[test]
fn whiteouts_remove_what_was_there_before() {
    let Some(bed) = Bed::new() else { return };
    let lower: Vec<_> =
        ["a/1", "a/2", "b/1", "b/sub/1", "c/1", "d", "e/1"].map(|p| (file(p), &b"old"[..])).into();
    bed.apply(&layer(&lower), Whiteouts::Remove).unwrap();
    bed.apply(&layer(&[(file("f/1"), b""), (link(Kind::Symlink, "link", "f"), b"")]), Whiteouts::Remove)
        .unwrap();
    let upper = layer(&[
        (file("a/.wh.1"), b""),
        (file("b/sub/2"), b""),
        (dir("b/sub"), b""),
        (file("b/.wh..wh..opq"), b""),
        (file("c/2"), b"new"),
        (file(".wh.c"), b""),
        (dir("c"), b""),
        (file("d"), b"new"),
        (file(".wh.d"), b""),
        (file(".wh.e"), b""),
        (file(".wh.missing"), b""),
        (file("none/.wh.missing"), b""),
        // Not through a link of a layer below.
        (file("link/.wh.1"), b""),
        (file("link/.wh..wh..opq"), b""),
        (file(".wh..wh.plnk"), b""),
    ]);
    bed.apply(&upper, Whiteouts::Remove).unwrap();
    assert_eq!(bed.list(), ["a/", "a/2", "b/", "b/sub/", "b/sub/2", "c/", "c/2", "d", "f/", "f/1", "link"]);
    assert_eq!(fs::read(bed.path("d")).unwrap(), b"new");
}

#[test]
fn whiteouts_become_what_overlayfs_understands() {
    let Some(bed) = Bed::new() else { return };
    let entries = layer(&[
        (file("a/.wh.gone"), b""),
        (dir("b"), b""),
        (file("b/.wh..wh..opq"), b""),
        (file(".wh.c"), b""),
        (dir("c"), b""),
        (file("c/new"), b""),
        (file(".wh.d"), b""),
        (file("d"), b"new"),
        (dir("e"), b""),
        (file(".wh.e"), b""),
    ]);
    bed.apply(&entries, OVERLAY).unwrap();
    let gone = fs::symlink_metadata(bed.path("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for (path, opaque) in [("a", false), ("b", true), ("c", true), ("e", true)] {
        let mut value = [0; 4];
        let read = rustix::fs::getxattr(bed.path(path), "trusted.overlay.opaque", &mut value);
        assert_eq!(read.is_ok_and(|n| value[..n] == *b"y"), opaque, "{path}");
    }
    assert_eq!(fs::read(bed.path("d")).unwrap(), b"new");
    assert_eq!(bed.list(), ["a/", "a/gone", "b/", "c/", "c/new", "d", "e/"]);
}

#[test]
fn sparse_files_stay_sparse() {
    let Some(bed) = Bed::new() else { return };
    let script = "cd \"$0\" && truncate -s 64M big && printf end | dd of=big bs=1 seek=67108861 conv=notrunc status=none \
                  && tar --sparse -cf big.tar big && rm big";
    let status = std::process::Command::new("sh").args(["-c", script]).arg(bed.temp.path()).status();
    assert!(status.unwrap().success());
    let archive = fs::read(bed.temp.path().join("big.tar")).unwrap();
    fs::remove_file(bed.temp.path().join("big.tar")).unwrap();
    bed.apply(&archive, Whiteouts::Remove).unwrap();
    let meta = fs::metadata(bed.path("big")).unwrap();
    assert!(meta.len() == 64 << 20 && meta.blocks() < 1024, "{meta:?}");
    assert!(fs::read(bed.path("big")).unwrap().ends_with(b"\0end"));
}

#[test]
fn without_rights_owners_and_devices_are_noted() {
    let Some(bed) = Bed::new() else { return };
    let entries = layer(&[
        (Header { uid: 5, gid: 6, ..file("file") }, b""),
        (Header { device: (1, 3), uid: 1, ..Header::new(Kind::Character, "null") }, b""),
        (Header { uid: 5, ..link(Kind::Symlink, "link", "file") }, b""),
    ]);
    let root = fs::File::open(bed.path("")).unwrap();
    let options = Options { whiteouts: Whiteouts::Remove, owner: Owner::Note, devices: Devices::Note };
    apply(&entries[..], root.as_fd(), options).unwrap();
    let read = |path: &str, name: &str| {
        let mut value = [0; 64];
        let n = rustix::fs::getxattr(bed.path(path), name, &mut value).unwrap();
        String::from_utf8(value[..n].to_vec()).unwrap()
    };
    assert_eq!(read("file", OWNER), "5:6");
    assert_eq!((read("null", OWNER), read("null", DEVICE)), ("1:0".to_owned(), "c:1:3".to_owned()));
    assert!(fs::symlink_metadata(bed.path("null")).unwrap().is_file());
    assert_eq!(fs::symlink_metadata(bed.path("file")).unwrap().uid(), 0);
}

/// What an evil layer tries, and how it ends: with an error of these words, or with this tree.
#[test]
fn hostile_layers_stay_inside() {
    type Case<'a> = (&'a str, Vec<(Header, &'a [u8])>, Result<&'a [&'a str], &'a str>);
    let xattr = |name: &str| Header { xattrs: vec![(name.into(), b"y".to_vec())], ..file("f") };
    let deep = "d/".repeat(1500);
    let cases: Vec<Case<'_>> = vec![
        ("above the root", vec![(file("../evil"), b"")], Err("leads out of the root")),
        ("above the root, in the middle", vec![(file("a/../../evil"), b"")], Err("leads out of the root")),
        ("absolute", vec![(file("/outside/evil"), b"")], Ok(&["outside/", "outside/evil"])),
        ("in and out", vec![(file("a/../b"), b"")], Ok(&["b"])),
        (
            "through an absolute link",
            vec![(link(Kind::Symlink, "l", "/outside"), b""), (file("l/evil"), b"")],
            Err("l is no folder"),
        ),
        (
            "through a relative link",
            vec![(link(Kind::Symlink, "l", "../outside"), b""), (file("l/file"), b"evil")],
            Err("l is no folder"),
        ),
        (
            "through a link that leads inside",
            vec![(dir("outside"), b""), (link(Kind::Symlink, "l", "../../outside"), b""), (file("l/f"), b"")],
            Ok(&["l", "outside/", "outside/f"]),
        ),
        (
            "over a link",
            vec![(link(Kind::Symlink, "l", "../outside/file"), b""), (file("l"), b"evil")],
            Ok(&["l"]),
        ),
        (
            "a folder over a link",
            vec![
                (link(Kind::Symlink, "l", "../outside"), b""),
                (Header { mode: 0, uid: 9, ..dir("l") }, b""),
            ],
            Ok(&["l/"]),
        ),
        (
            "a hard link outside",
            vec![(link(Kind::Hardlink, "h", "../outside/file"), b"")],
            Err("out of the root"),
        ),
        ("a hard link to nothing", vec![(link(Kind::Hardlink, "h", "/outside/file"), b"")], Err("not there")),
        (
            "a hard link through a link",
            vec![(link(Kind::Symlink, "l", "../outside"), b""), (link(Kind::Hardlink, "h", "l/file"), b"")],
            Err("not there"),
        ),
        (
            "a hard link to a link",
            vec![
                (link(Kind::Symlink, "l", "../outside/file"), b""),
                (link(Kind::Hardlink, "h", "l"), b""),
                (file("h"), b"evil"),
            ],
            Ok(&["h", "l"]),
        ),
        ("a hard link to the root", vec![(link(Kind::Hardlink, "h", "."), b"")], Err("the root")),
        (
            "a hard link to a folder",
            vec![(dir("d"), b""), (link(Kind::Hardlink, "h", "d"), b"")],
            Err("not permitted"),
        ),
        ("a whiteout of the parent", vec![(file(".wh..."), b"")], Err("of no name")),
        ("a whiteout of the folder", vec![(file("a/.wh.."), b"")], Err("of no name")),
        ("a whiteout of nothing", vec![(file(".wh."), b"")], Err("of no name")),
        ("a whiteout above the root", vec![(file("../.wh.outside"), b"")], Err("out of the root")),
        (
            "a whiteout through a link",
            vec![(link(Kind::Symlink, "l", "../outside"), b""), (file("l/.wh.file"), b"")],
            Ok(&["l"]),
        ),
        (
            "an opaque link",
            vec![(link(Kind::Symlink, "l", "../outside"), b""), (file("l/.wh..wh..opq"), b"")],
            Ok(&["l"]),
        ),
        ("the root as a file", vec![(file("."), b"x")], Err("the root is no folder")),
        (
            "the root as a link",
            vec![(link(Kind::Symlink, "./", "/outside"), b"")],
            Err("the root is no folder"),
        ),
        ("no name at all", vec![(file(""), b"")], Err("the root is no folder")),
        ("in a file", vec![(file("f"), b""), (file("f/g"), b"")], Err("f is no folder")),
        (
            "in a device",
            vec![(Header { device: (1, 3), ..Header::new(Kind::Character, "c") }, b""), (file("c/g"), b"")],
            Err("c is no folder"),
        ),
        (
            "a link in circles",
            vec![(link(Kind::Symlink, "l", "l"), b""), (file("l/f"), b"")],
            Err("l is no folder"),
        ),
        ("a link to nowhere", vec![(link(Kind::Symlink, "l", ""), b"")], Err("to nowhere")),
        ("a name too long", vec![(file(&"n".repeat(256)), b"")], Err("more than 255")),
        (
            "deep",
            vec![(file(&format!("{deep}f")), b""), (file("g"), b""), (file(&format!("{deep}h")), b"")],
            Ok(&[]),
        ),
        ("an opaque attribute", vec![(xattr("trusted.overlay.opaque"), b"")], Err("other files")),
        ("a redirection", vec![(xattr("user.overlay.redirect"), b"")], Err("other files")),
        ("our own attribute", vec![(xattr(OWNER), b"")], Err("other files")),
        ("another's label", vec![(xattr("security.selinux"), b"")], Ok(&["f"])),
        (
            "twice, as a folder and a file",
            vec![(file("d/x"), b""), (file("d"), b""), (dir("d"), b""), (file("d/y"), b"")],
            Ok(&["d/", "d/y"]),
        ),
    ];
    for (title, entries, outcome) in cases {
        let Some(bed) = Bed::new() else { return };
        let archive = layer(&entries);
        let done = bed.apply(&archive, Whiteouts::Remove);
        match (done, outcome) {
            (Ok(_), Ok([])) => {}
            (Ok(_), Ok(tree)) => assert_eq!(bed.list(), tree, "{title}"),
            (Err(e), Err(reason)) => {
                let text = format!("{e:#}");
                assert!(text.contains(reason), "{title}: {text}");
            }
            (done, outcome) => panic!("{title}: {done:?}, expected {outcome:?}"),
        }
        assert!(bed.outside_is_untouched(), "{title}");
        // The other way to apply it must stay inside, too.
        let Some(bed) = Bed::new() else { return };
        let done = bed.apply(&archive, OVERLAY);
        assert!(bed.outside_is_untouched(), "{title}, for overlayfs: {done:?}");
    }
}

#[test]
fn what_has_no_rights_to_be_read_can_be_replaced() {
    let Some(bed) = Bed::new() else { return };
    bed.apply(
        &layer(&[(Header { mode: 0, ..dir("d") }, b""), (Header { mode: 0, ..file("d/f") }, b"")]),
        OVERLAY,
    )
    .unwrap();
    assert_eq!(fs::metadata(bed.path("d")).unwrap().permissions().mode() & 0o777, 0);
    bed.apply(&layer(&[(file("d"), b"")]), OVERLAY).unwrap();
    assert_eq!(bed.list(), ["d"]);
}
