//! What the builder unpacks is what the image says, and the runtime runs it as it is.

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::image::{Made, busybox_layer, layer, make};
use harness::{Bed, Output, Value, bare, finish, json, need};
use image::layer::tar::{Header, Kind};

/// The builder on a store in the bed, behind a prefix such as `setpriv …`.
fn prefixed(bed: &Bed, prefix: &[&str], args: &[&str]) -> Output {
    let builder = harness::runtime::builder().to_string_lossy();
    let line = [prefix, &[&builder], args].concat();
    let mut command = Command::new(line[0]);
    bare(command.args(&line[1..]).current_dir(bed.path("")));
    command.env("BERTH_ROOT", bed.path("store")).env("HOME", bed.path("home")).env("TMPDIR", bed.path("tmp"));
    command.env(harness::leaks::MARK, &bed.unique);
    finish(&mut command)
}

fn builder(bed: &Bed, args: &[&str]) -> Output {
    prefixed(bed, &[], args)
}

fn file(path: &str, mode: u32, (uid, gid): (u32, u32)) -> Header {
    Header { mode, uid, gid, ..Header::new(Kind::File, path) }
}

fn link(path: &str, kind: Kind, to: &str) -> Header {
    Header { link: to.into(), ..Header::new(kind, path) }
}

fn folder(path: &str) -> (Header, Vec<u8>) {
    (Header::new(Kind::Directory, path), Vec::new())
}

/// What it finds of itself and around it, a line each.
const REPORT: &str = "id -u; id -G; pwd; echo $GREETING $HOME $HOSTNAME; stat -c '%u %g %a' /home/own /home/setuid; \
    grep -E 'CapBnd|Seccomp:' /proc/self/status | tr -d '\\t'; wc -c </proc/interrupts; \
    echo 1 2>/dev/null >/proc/sys/kernel/domainname || echo no; hostname";

/// An image that runs `sh -c` with what it is given, as its user 1000.
fn running() -> Made {
    let busybox = busybox_layer("cat echo grep hostname id pwd sh stat tr wc");
    let more = layer([
        (file("home/own", 0o640, (1000, 1000)), b"x".to_vec()),
        (file("home/setuid", 0o4755, (0, 2000)), b"x".to_vec()),
    ]);
    let execution = json!({"Entrypoint": ["sh", "-c"], "Cmd": [REPORT], "User": "user", "WorkingDir": "/home",
        "Env": ["GREETING=hello", "PATH=/bin"]});
    make("example/running:1", vec![busybox, more], &execution)
}

fn in_bed(bed: &Bed, made: &Made) {
    fs::write(bed.path("image.tar"), &made.archive).expect("write the archive");
}

/// As root, and as an ordinary user who has subordinate ids (in the VM).
#[test]
fn an_unpacked_image_runs() {
    let bed = Bed::new();
    in_bed(&bed, &running());
    builder(&bed, &["load", "-i", "image.tar"]).success();
    builder(&bed, &["unpack", "--hostname", "box", "example/running:1", "bundle"]).success();
    let bundle = bed.path("bundle").to_string_lossy().into_owned();
    bed.adopt(&bed.unique);
    let ran = bed.call(&["run", "--bundle", &bundle, &bed.unique]).success();
    let report = [
        "1000",
        "1000 2000",
        "/home",
        "hello /home box",
        "1000 1000 640",
        "0 2000 4755",
        // Docker's capabilities, as they were in 2013 and are today.
        "CapBnd:00000000a80425fb",
        "Seccomp:2",
        "0",
        "no",
        "box",
    ];
    assert_eq!(ran.stdout.lines().collect::<Vec<_>>(), report);
    builder(&bed, &["check"]).success();
    // The user's own, whoever the files in it belong to.
    builder(&bed, &["rmi", "example/running:1"]).success();
}

/// "no root and, at last, no extra privilege": without subordinate ids every file is the user's, and the owner that it should
/// have had is written beside it.
#[test]
fn without_subordinate_ids_an_image_of_roots_runs() {
    let Some(_) = need::program("setpriv") else { return };
    let bed = Bed::new();
    let mut made = running();
    let execution =
        json!({"Cmd": ["sh", "-c", "id -u; stat -c '%u %g %a' /home/own; echo $HOME"], "Env": ["PATH=/bin"]});
    made = make(
        "example/running:1",
        made.blobs.into_iter().take(2).map(|(_, layer)| layer).collect(),
        &execution,
    );
    in_bed(&bed, &made);
    harness::bed::host("chown", &["-Rh", "4321:4321", &bed.path("").to_string_lossy()]);
    let user = [
        "setpriv",
        "--reuid",
        "4321",
        "--regid",
        "4321",
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ];
    prefixed(&bed, &user, &["load", "-i", "image.tar"]).success();
    prefixed(&bed, &user, &["unpack", "example/running:1", "bundle"]).success();
    let own = bed.path("bundle/rootfs/home/own");
    let mut noted = [0_u8; 64];
    let length = rustix::fs::getxattr(&own, "user.berth.owner", &mut noted[..]).expect("the owner is noted");
    assert_eq!(&noted[..length], b"1000:1000");
    let mut run = bed.prefixed(&user);
    bed.adopt(&bed.unique);
    let ran =
        finish(run.args(["run", "--bundle", "bundle", &bed.unique]).current_dir(bed.path(""))).success();
    assert_eq!(ran.stdout, "0\n0 0 640\n/root\n");
}

/// Layers with everything that a file system has, one changing what the others made.
fn everything() -> Made {
    let device = Header { device: (1, 3), mode: 0o666, ..Header::new(Kind::Character, "d/null") };
    let attributed = Header {
        xattrs: vec![
            // A revision 2 capability: cap_net_raw=ep.
            (b"security.capability".to_vec(), [&[1, 0, 0, 2, 0, 0x20][..], &[0; 14]].concat()),
            (b"user.note".to_vec(), b"kept".to_vec()),
        ],
        ..file("d/attributed", 0o755, (0, 0))
    };
    let old = Header { mtime: (-1, 500_000_000), ..file("d/old", 0o600, (3_000_000_000, 4_000_000_000)) };
    let late = Header { mtime: (1 << 33, 1), ..Header::new(Kind::Directory, "d/late") };
    let first = layer([
        folder("d"),
        (device, Vec::new()),
        (attributed, b"a".to_vec()),
        (old, b"o".to_vec()),
        (late, Vec::new()),
        (link("d/hard", Kind::Hardlink, "d/old"), Vec::new()),
        (link("d/soft", Kind::Symlink, "/nowhere/at all"), Vec::new()),
        (Header { mode: 0o644, ..Header::new(Kind::Fifo, "d/fifo") }, Vec::new()),
        folder("gone"),
        (file("gone/too", 0o644, (0, 0)), b"g".to_vec()),
        folder("opaque"),
        (file("opaque/hidden", 0o644, (0, 0)), b"h".to_vec()),
        (file("becomes", 0o644, (0, 0)), b"a file".to_vec()),
    ]);
    let second = layer([
        (file(".wh.gone", 0o644, (0, 0)), Vec::new()),
        folder("opaque"),
        (file("opaque/.wh..wh..opq", 0o644, (0, 0)), Vec::new()),
        (file("opaque/seen", 0o644, (0, 0)), b"s".to_vec()),
        (Header { mode: 0o1777, ..Header::new(Kind::Directory, "becomes") }, Vec::new()),
        (file("becomes/full", 0o644, (0, 0)), b"f".to_vec()),
    ]);
    let third = layer([
        folder("gone"),
        (file("gone/again", 0o644, (0, 0)), b"2".to_vec()),
        (file("d/.wh.fifo", 0o644, (0, 0)), Vec::new()),
        (Header { mode: 0o700, uid: 7, ..Header::new(Kind::Directory, "opaque") }, Vec::new()),
    ]);
    make("example/everything:1", vec![first, second, third], &json!({}))
}

/// All that tar(1) sees of a tree, contents, times and attributes included.
fn sum(tree: &Path) -> String {
    let mut tar = Command::new("tar");
    tar.args([
        "--sort=name",
        "--format=posix",
        "--pax-option=delete=atime,delete=ctime",
        "--xattrs",
        "--xattrs-include=*",
    ]);
    tar.args(["--numeric-owner", "-cf", "/dev/stdout", "-C"])
        .arg(tree)
        .arg(".")
        .stderr(std::process::Stdio::null());
    let output = tar.output().expect("run tar");
    assert!(output.status.success(), "tar: {}", output.status);
    image::Digest::of(&output.stdout).to_string()
}

#[test]
fn every_way_to_a_root_file_system_leads_to_the_same() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    in_bed(&bed, &everything());
    builder(&bed, &["load", "-i", "image.tar"]).success();
    builder(&bed, &["unpack", "--rootfs-only", "example/everything:1", "copied"]).success();
    let tree = bed.path("copied");
    let found = finish(
        Command::new("find").args([".", "-printf", "%P %y %m %U:%G %n %s %T@ %l\n"]).current_dir(&tree),
    );
    let mut lines: Vec<_> =
        found.stdout.lines().filter(|l| !l.is_empty() && !l.starts_with(' ')).map(str::trim).collect();
    lines.sort_unstable();
    // Half a second before 1970, as find(1) writes it, is -1.5. A folder's size and links are the file system's own.
    let is_folder = |line: &str| line.split(' ').nth(1) == Some("d");
    let lines: Vec<_> = lines
        .into_iter()
        .map(|l| match is_folder(l) {
            true => l
                .split(' ')
                .enumerate()
                .filter(|(n, _)| *n != 4 && *n != 5)
                .map(|(_, w)| w)
                .collect::<Vec<_>>()
                .join(" "),
            false => l.to_owned(),
        })
        .collect();
    assert_eq!(
        lines,
        [
            "becomes d 1777 0:0 0.0000000000",
            "becomes/full f 644 0:0 1 1 0.0000000000",
            "d d 755 0:0 0.0000000000",
            "d/attributed f 755 0:0 1 1 0.0000000000",
            "d/hard f 600 3000000000:4000000000 2 1 -1.5000000000",
            "d/late d 755 0:0 8589934592.0000000010",
            "d/null c 666 0:0 1 0 0.0000000000",
            "d/old f 600 3000000000:4000000000 2 1 -1.5000000000",
            "d/soft l 777 0:0 1 15 0.0000000000 /nowhere/at all",
            "gone d 755 0:0 0.0000000000",
            "gone/again f 644 0:0 1 1 0.0000000000",
            "opaque d 700 7:0 0.0000000000",
            "opaque/seen f 644 0:0 1 1 0.0000000000",
        ]
    );
    let expected = sum(&tree);
    let mounted = builder(&bed, &["mount", "example/everything:1"]).success().stdout;
    assert_eq!(sum(Path::new(mounted.trim_end())), expected, "mounted");
    builder(&bed, &["unmount", mounted.trim_end()]).success();
    for (n, (how, to)) in
        [("zstd", "oci:away:1"), ("gzip", "oci-archive:away.tar"), ("none", "docker-archive:back.tar")]
            .into_iter()
            .enumerate()
    {
        builder(&bed, &["cp", "-q", "--compression", how, "example/everything:1", to]).success();
        let folder = format!("again{n}");
        let other = ["--root", &format!("store{n}"), "unpack", "-q", "--rootfs-only", to, &folder];
        builder(&bed, &other).success();
        assert_eq!(sum(&bed.path(&folder)), expected, "{how}, {to}");
    }
}

#[test]
fn what_uses_the_disk_and_what_may_go() {
    let bed = Bed::new();
    for (name, size) in [("example/small:1", 1000), ("example/large:1", 3_000_000)] {
        let content = layer([(file("content", 0o644, (0, 0)), vec![b'x'; size])]);
        in_bed(&bed, &make(name, vec![content], &json!({})));
        builder(&bed, &["load", "-i", "image.tar"]).success();
    }
    builder(&bed, &["tag", "example/small:1", "example/alias:1"]).success();
    let rows = |args: &[&str]| -> Vec<Value> {
        let out = builder(&bed, args).success();
        out.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let images = &rows(&["df", "--format", "json"])[0];
    assert_eq!((images["Type"].as_str(), images["TotalCount"].as_i64()), (Some("Images"), Some(2)));
    let of = |name: &str| {
        let all = rows(&["df", "-v", "--format", "json"]);
        let row = all.iter().find(|row| row["Repository"] == name).unwrap_or_else(|| panic!("{all:?}"));
        row["Bytes"].as_u64().expect("a number")
    };
    assert!(of("example/small") < of("example/large"));
    builder(&bed, &["df"]).success().stdout_has("RECLAIMABLE");

    // Nobody is there to be asked, so nothing goes, and it says what would.
    builder(&bed, &["prune", "--all"]).exits(125).stderr_has("example/large:1").stderr_has("--force");
    builder(&bed, &["prune", "--all", "--force", "--keep-storage", "much"])
        .exits(125)
        .stderr_has("\"much\" is no size");
    assert_eq!(rows(&["images", "--format", "json"]).len(), 3);
    // Those with a name stay.
    builder(&bed, &["prune", "--force"]).success();
    builder(&bed, &["prune", "--all", "--force", "--keep-storage", "1GB"]).success();
    assert_eq!(rows(&["images", "--format", "json"]).len(), 3);
    // One that lost its name goes without being asked for.
    builder(&bed, &["untag", "example/large:1"]).success();
    let out = builder(&bed, &["prune", "--force"]).success().stdout_has("Total reclaimed space: ");
    assert!(out.stdout.contains("Deleted: sha256:"), "{out:?}");
    assert_eq!(rows(&["images", "--format", "json"]).len(), 2);
    builder(&bed, &["prune", "--all", "--force", "--filter", "reference=example/alias"])
        .success()
        .stdout_has("Untagged: example/alias:1");
    builder(&bed, &["prune", "--all", "--force", "--keep-storage", "0"]).success();
    assert_eq!(rows(&["images", "--format", "json"]), Vec::<Value>::new());
    builder(&bed, &["prune", "--build-cache", "--force", "--filter", "label=x"])
        .exits(125)
        .stderr_has("until=TIME");
    builder(&bed, &["prune", "--build-cache", "--force"]).success().stdout_has("0 steps and caches removed");
    builder(&bed, &["check"]).success();
}
