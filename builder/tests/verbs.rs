//! The verbs from outside: the real binary on a store of its own, with docker's semantics.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use image::Digest;
use image::layer::tar::{Header, Kind, Writer};
use serde_json::{Value, json};

/// A store, and folders for everything else.
struct Bed {
    dir: tempfile::TempDir,
}

/// An image for an archive: its names, a file in its only layer, labels, when it was made.
struct Image<'a> {
    tags: &'a [&'a str],
    file: &'a str,
    labels: Value,
    created: &'a str,
}

impl<'a> Image<'a> {
    fn new(tags: &'a [&'a str], file: &'a str) -> Image<'a> {
        Image { tags, file, labels: Value::Null, created: "2024-01-31T12:00:00Z" }
    }

    fn layer(&self) -> Vec<u8> {
        let mut tar = Writer::new(Vec::new());
        tar.entry(&Header::new(Kind::File, "file"), self.file.as_bytes()).unwrap();
        tar.finish().unwrap()
    }

    fn config(&self) -> Vec<u8> {
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": self.created,
            "config": {"Cmd": ["/file"], "Env": ["PATH=/bin"], "Labels": self.labels},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&self.layer())]},
            "history": [
                {"created": self.created, "created_by": "ARG first", "empty_layer": true},
                {"created": self.created, "created_by": "COPY file /file"},
                {"created": self.created, "created_by": "CMD [\"/file\"]", "empty_layer": true}]});
        serde_json::to_vec(&config).unwrap()
    }

    fn id(&self) -> Digest {
        Digest::of(&self.config())
    }
}

impl Bed {
    fn new() -> Bed {
        Bed { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth-builder"));
        command.args(args).current_dir(self.dir.path()).env_clear().stdin(Stdio::null());
        command.env("BERTH_ROOT", self.path("store")).env("HOME", self.path("home"));
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What it prints; it succeeds.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {} {errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it complains of, with exit code 125.
    fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{args:?}: {errors}");
        errors
    }

    /// An archive as `docker save` writes it.
    fn archive(&self, name: &str, images: &[Image<'_>]) -> PathBuf {
        let path = self.path(name);
        let mut tar = Writer::new(std::fs::File::create(&path).unwrap());
        let mut there = BTreeSet::new();
        let mut list = Vec::new();
        let mut put = |tar: &mut Writer<std::fs::File>, name: &str, bytes: &[u8]| {
            if there.insert(name.to_owned()) {
                tar.entry(&Header::new(Kind::File, name), bytes).unwrap();
            }
        };
        for image in images {
            let config = format!("{}.json", image.id().hex());
            let layer = format!("{}.tar", Digest::of(&image.layer()).hex());
            put(&mut tar, &config, &image.config());
            put(&mut tar, &layer, &image.layer());
            list.push(json!({"Config": config, "RepoTags": image.tags, "Layers": [layer]}));
        }
        put(&mut tar, "manifest.json", &serde_json::to_vec(&list).unwrap());
        tar.finish().unwrap().flush().unwrap();
        path
    }

    fn load(&self, images: &[Image<'_>]) -> String {
        let path = self.archive("in.tar", images);
        self.ok(&["load", "-i", text(&path)])
    }

    fn names(&self) -> BTreeSet<String> {
        let listed = self.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
        listed.lines().map(str::to_owned).collect()
    }

    fn id(&self, name: &str) -> String {
        self.ok(&["inspect", "-f", "{{.Id}}", name]).trim().to_owned()
    }

    fn digest(&self, name: &str) -> Digest {
        Digest::of(&self.run(&["inspect", "--raw", name]).stdout)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

#[test]
fn what_was_loaded_is_listed() {
    let bed = Bed::new();
    let (one, two) = (Image::new(&["a:1", "b/c:latest"], "one"), Image::new(&["a:2"], "two"));
    let loaded = bed.load(&[Image::new(&["a:1", "b/c:latest"], "one"), Image::new(&["a:2"], "two")]);
    let lines: BTreeSet<_> = loaded.lines().map(str::to_owned).collect();
    assert_eq!(lines, set(&["Loaded image: a:1", "Loaded image: b/c:latest", "Loaded image: a:2"]));
    assert_eq!(bed.names(), set(&["a:1", "a:2", "b/c:latest"]));
    let table = bed.ok(&["images"]);
    let header: Vec<_> = table.lines().next().unwrap().split("  ").filter(|c| !c.is_empty()).collect();
    let header: Vec<_> = header.iter().map(|c| c.trim()).collect();
    assert_eq!(header, ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
    let row = table.lines().find(|l| l.starts_with("b/c ")).unwrap();
    assert!(row.contains("latest") && row.contains(one.id().short()), "{row}");
    // docker: -q prints each image once for each name.
    let ids: BTreeSet<_> = bed.ok(&["images", "-q"]).lines().map(str::to_owned).collect();
    assert_eq!(ids, set(&[one.id().short(), two.id().short()]));
    let whole: BTreeSet<_> = bed.ok(&["ls", "-q", "--no-trunc"]).lines().map(str::to_owned).collect();
    assert_eq!(whole, set(&[&one.id().to_string(), &two.id().to_string()]));
    assert_eq!(bed.ok(&["images", "a"]).lines().count(), 3);
    assert_eq!(bed.ok(&["images", "a:2"]).lines().count(), 2);
    assert_eq!(bed.ok(&["images", "nope"]).lines().count(), 1);
    assert!(bed.ok(&["images", "--digests"]).contains("DIGEST"));
    let made = bed.ok(&["images", "--format", "{{.CreatedAt}}", "a:2"]);
    assert_eq!(made, "2024-01-31 12:00:00 +0000 UTC\n");
    for line in bed.ok(&["images", "--format", "json"]).lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        assert!(row["Repository"].is_string() && row["ID"].is_string() && row["Size"].is_string(), "{row}");
    }
    let error = bed.fails(&["images", "--format", "{{.Nope}}"]);
    assert!(error.contains("no field .Nope; there are") && error.contains(".Repository"), "{error}");
}

#[test]
fn filters_let_through_what_docker_lets_through() {
    let bed = Bed::new();
    let labelled = Image { labels: json!({"team": "x"}), ..Image::new(&["a:1"], "one") };
    let young = Image { created: "2024-06-01T00:00:00Z", ..Image::new(&["b:1"], "two") };
    bed.load(&[labelled, young]);
    for (filter, names) in [
        ("label=team", &["a:1"][..]),
        ("label=team=x", &["a:1"]),
        ("label=team=y", &[]),
        ("reference=b*", &["b:1"]),
        ("reference=*:1", &["a:1", "b:1"]),
        ("reference=?:1", &["a:1", "b:1"]),
        ("reference=[b-z]:1", &["b:1"]),
        ("reference=docker.io/library/a", &["a:1"]),
        ("reference=c", &[]),
        ("dangling=true", &[]),
        ("dangling=false", &["a:1", "b:1"]),
        ("before=b:1", &["a:1"]),
        ("since=a:1", &["b:1"]),
        ("until=2024-03-01T00:00:00Z", &["a:1"]),
        ("until=24h", &["a:1", "b:1"]),
    ] {
        let listed = bed.ok(&["images", "--filter", filter, "--format", "{{.Repository}}:{{.Tag}}"]);
        assert_eq!(listed.lines().map(str::to_owned).collect::<BTreeSet<_>>(), set(names), "{filter}");
    }
    for filter in ["nope=1", "label", "dangling=perhaps", "before=nope", "until=soon"] {
        assert!(bed.fails(&["images", "--filter", filter]).contains(filter.split('=').next_back().unwrap()));
    }
}

#[test]
fn names_come_and_go_as_with_docker() {
    let bed = Bed::new();
    let one = Image::new(&["a:1"], "one");
    let id = one.id();
    bed.load(&[Image::new(&["a:1"], "one")]);
    bed.ok(&["tag", "a:1", "b"]);
    bed.ok(&["tag", id.short(), "c:2"]);
    assert_eq!(bed.names(), set(&["a:1", "b:latest", "c:2"]));
    assert_eq!(bed.ok(&["rmi", "b"]).trim(), "Untagged: b:latest");
    // By id, with several names: only if forced.
    let error = bed.fails(&["rmi", id.short()]);
    assert!(error.contains("-f") || error.contains("force"), "{error}");
    assert_eq!(bed.names(), set(&["a:1", "c:2"]));
    let removed = bed.ok(&["rmi", "-f", id.short()]);
    for line in ["Untagged: a:1", "Untagged: c:2", &format!("Deleted: {id}")] {
        assert!(removed.lines().any(|l| l == line), "{line}: {removed}");
    }
    assert_eq!(bed.names(), set(&[]));
    // Nothing is left of it.
    let blobs = std::fs::read_dir(bed.path("store/blobs/sha256")).unwrap().count();
    let layers = std::fs::read_dir(bed.path("store/layers/sha256")).unwrap().count();
    assert_eq!((blobs, layers), (0, 0));
    assert!(bed.fails(&["rmi", "a:1"]).contains("no image a:1"));
    bed.load(&[Image::new(&["a:1"], "one")]);
    let removed = bed.ok(&["rmi", "a:1"]);
    assert!(removed.contains("Untagged: a:1") && removed.contains(&format!("Deleted: {id}")), "{removed}");
}

#[test]
fn one_wrong_name_does_not_keep_the_others() {
    let bed = Bed::new();
    bed.load(&[Image::new(&["a:1"], "one"), Image::new(&["b:1"], "two")]);
    let output = bed.run(&["rmi", "a:1", "nope", "b:1"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nope"));
    assert_eq!(bed.names(), set(&[]));
}

#[test]
fn a_tag_that_moves_leaves_an_image_without_a_name_which_prune_removes() {
    let bed = Bed::new();
    bed.load(&[Image::new(&["a:1"], "one")]);
    bed.load(&[Image::new(&["a:1"], "two")]);
    assert_eq!(bed.names(), set(&["a:1", "<none>:<none>"]));
    assert_eq!(bed.ok(&["images", "-q", "--filter", "dangling=true"]).lines().count(), 1);
    // Nobody there to ask.
    bed.fails(&["prune"]);
    assert_eq!(bed.names().len(), 2);
    bed.ok(&["prune", "-f"]);
    assert_eq!(bed.names(), set(&["a:1"]));
    bed.ok(&["prune", "-a", "-f", "--filter", "until=2020-01-01T00:00:00Z"]);
    assert_eq!(bed.names(), set(&["a:1"]));
    bed.ok(&["prune", "-a", "-f"]);
    assert_eq!(bed.names(), set(&[]));
    assert_eq!(std::fs::read_dir(bed.path("store/blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn untag_keeps_the_image() {
    let bed = Bed::new();
    bed.load(&[Image::new(&["a:1", "a:2"], "one")]);
    bed.ok(&["untag", "a:1", "a:1"]);
    assert_eq!(bed.names(), set(&["a:2"]));
    bed.ok(&["untag", "a:2"]);
    assert_eq!(bed.names(), set(&["<none>:<none>"]));
    assert_eq!(bed.ok(&["images", "-q"]).lines().count(), 1);
}

#[test]
fn ids_may_be_short_but_not_too_short() {
    let bed = Bed::new();
    let contents: Vec<String> = (0..17).map(|n| n.to_string()).collect();
    let tags: Vec<String> = (0..17).map(|n| format!("n:{n}")).collect();
    let tags: Vec<[&str; 1]> = tags.iter().map(|t| [t.as_str()]).collect();
    let images = || contents.iter().zip(&tags).map(|(c, t)| Image::new(t, c)).collect::<Vec<_>>();
    bed.load(&images());
    // Seventeen ids cannot begin with different digits.
    let ids: Vec<_> = images().iter().map(|i| i.id().hex().to_owned()).collect();
    let twice = ids.iter().find(|i| ids.iter().filter(|o| o[..1] == i[..1]).count() > 1).unwrap();
    let error = bed.fails(&["inspect", &twice[..1]]);
    assert!(error.contains("images begin so"), "{error}");
    assert_eq!(bed.id(&twice[..16]), format!("sha256:{twice}"));
    assert_eq!(bed.id(&format!("sha256:{twice}")), format!("sha256:{twice}"));
    assert!(bed.fails(&["inspect", &"f".repeat(64)]).contains("no image"));
}

#[test]
fn what_is_saved_is_loaded_again_with_the_same_id() {
    let bed = Bed::new();
    bed.load(&[Image::new(&["a:1", "b:1"], "one"), Image::new(&["c:1"], "two")]);
    let (a, c) = (bed.id("a:1"), bed.id("c:1"));
    bed.ok(&["save", "-o", "docker.tar", "a:1", "b:1", "c:1"]);
    bed.ok(&["save", "--format", "oci-archive", "-o", "oci.tar", "a:1"]);
    bed.ok(&["save", "--format", "oci-dir", "-o", "layout", "c:1"]);
    let piped = bed.run(&["save", "c:1"]).stdout;
    // The same is written the same.
    assert_eq!(piped, bed.run(&["save", "c:1"]).stdout);
    bed.ok(&["rmi", "a:1", "b:1", "c:1"]);
    bed.ok(&["load", "-i", "docker.tar"]);
    assert_eq!(bed.names(), set(&["a:1", "b:1", "c:1"]));
    assert_eq!((bed.id("a:1"), bed.id("c:1")), (a.clone(), c.clone()));
    bed.ok(&["rmi", "a:1", "b:1", "c:1"]);
    bed.ok(&["load", "-i", "oci.tar"]);
    assert_eq!(bed.id("a:1"), a);
    bed.ok(&["load", "-i", "layout"]);
    assert_eq!(bed.id("c:1"), c);
    bed.ok(&["rmi", "c:1"]);
    let mut load = bed.command(&["load"]);
    let mut load = load.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    load.stdin.take().unwrap().write_all(&piped).unwrap();
    assert!(load.wait_with_output().unwrap().status.success());
    assert_eq!(bed.id("c:1"), c);
    for (broken, length) in [("cut.tar", piped.len() / 2), ("empty.tar", 0)] {
        std::fs::write(bed.path(broken), &piped[..length]).unwrap();
        bed.fails(&["load", "-i", broken]);
    }
    assert!(bed.fails(&["load", "-i", "not-there.tar"]).contains("not-there.tar"));
    assert!(bed.fails(&["save", "-o", "x.tar", "nope"]).contains("no image nope"));
    assert!(!bed.path("x.tar").exists(), "a failure leaves nothing");
}

#[test]
fn copies_between_places_keep_the_digest() {
    let bed = Bed::new();
    bed.load(&[Image::new(&["a:1"], "one")]);
    let digest = bed.digest("a:1");
    bed.ok(&["cp", "a:1", "oci:layout:x"]);
    bed.ok(&["cp", "oci:layout:x", "oci-archive:x.tar:x"]);
    bed.ok(&["cp", "oci-archive:x.tar:x", "dir:plain"]);
    bed.ok(&["cp", "dir:plain", "b:1"]);
    assert_eq!(bed.digest("b:1"), digest);
    bed.ok(&["cp", "b:1", "docker-archive:y.tar:c:1"]);
    bed.ok(&["load", "-i", "y.tar"]);
    assert_eq!(bed.id("c:1"), bed.id("a:1"));
    bed.ok(&["pull", "oci:layout:x"]);
    assert!(bed.fails(&["cp", "a:1", "docker-daemon:a:1"]).contains("daemon"));
    assert!(bed.fails(&["cp", "oci:layout:nope", "d:1"]).contains("no image nope"));
    bed.ok(&["push", "a:1", "oci:layout:y"]);
    let index: Value =
        serde_json::from_slice(&std::fs::read(bed.path("layout/index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
}

#[test]
fn inspect_and_history_tell_what_docker_tells() {
    let bed = Bed::new();
    let image = Image { labels: json!({"team": "x"}), ..Image::new(&["a:1", "b:1"], "one") };
    let id = image.id().to_string();
    bed.load(&[image]);
    let shown: Value = serde_json::from_str(&bed.ok(&["inspect", "a:1", "b:1"])).unwrap();
    let shown = shown.as_array().unwrap();
    assert_eq!(shown.len(), 2);
    let first = &shown[0];
    assert_eq!(first["Id"], id.as_str());
    assert_eq!(first["RepoTags"], json!(["a:1", "b:1"]));
    assert_eq!(first["Architecture"], "amd64");
    assert_eq!(first["Os"], "linux");
    assert_eq!(first["Created"], "2024-01-31T12:00:00Z");
    assert_eq!(first["Config"]["Cmd"], json!(["/file"]));
    assert_eq!(first["Config"]["Labels"], json!({"team": "x"}));
    assert_eq!(first["RootFS"]["Type"], "layers");
    assert_eq!(first["RootFS"]["Layers"].as_array().unwrap().len(), 1);
    assert_eq!(first["Size"], 3);
    for (format, printed) in [
        ("{{.Config.Cmd}}", "[/file]"),
        ("{{json .Config.Cmd}}", "[\"/file\"]"),
        ("{{index .Config.Labels \"team\"}} {{.Config.Labels.none}}", "x <no value>"),
        ("{{range .RepoTags}}{{.}} {{end}}", "a:1 b:1 "),
        ("{{.Os}}/{{.Architecture}}", "linux/amd64"),
    ] {
        assert_eq!(bed.ok(&["inspect", "-f", format, "a:1"]), format!("{printed}\n"), "{format}");
    }
    assert!(bed.fails(&["inspect", "-f", "{{.Nope}}", "a:1"]).contains("no field .Nope"));
    assert!(bed.fails(&["inspect", "nope"]).contains("no image nope"));
    let config: Value = serde_json::from_str(&bed.ok(&["inspect", "--config", "a:1"])).unwrap();
    assert_eq!(config["os"], "linux");
    let history = bed.ok(&["history", "a:1"]);
    let lines: Vec<_> = history.lines().collect();
    assert!(lines[0].starts_with("IMAGE") && lines[0].contains("CREATED BY"), "{history}");
    // The newest first; an empty layer has no size.
    assert!(lines[1].contains("CMD") && lines[1].contains("0B"), "{history}");
    assert!(lines[2].contains("COPY file") && lines[2].contains("<missing>"), "{history}");
    assert!(lines[2].contains(" 3B"), "{history}");
    assert!(lines[3].contains("ARG first") && lines[3].contains(" 0B"), "{history}");
    assert_eq!(lines.len(), 4);
    assert_eq!(bed.ok(&["history", "-q", "a:1"]).lines().count(), 3);
}

#[test]
fn an_image_for_several_platforms_is_made_of_others() {
    let bed = Bed::new();
    bed.load(&[Image::new(&["a:1"], "one"), Image::new(&["b:1"], "two")]);
    bed.ok(&["manifest", "create", "list:1", "a:1"]);
    bed.ok(&["manifest", "add", "list:1", "b:1"]);
    let digest = bed.digest("b:1").to_string();
    bed.ok(&["manifest", "annotate", "--os", "linux", "--arch", "arm", "--variant", "v7", "list:1", &digest]);
    let index: Value = serde_json::from_str(&bed.ok(&["manifest", "inspect", "list:1"])).unwrap();
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1]["platform"], json!({"architecture": "arm", "os": "linux", "variant": "v7"}));
    // Its parts are kept with it.
    bed.ok(&["rmi", "b:1"]);
    bed.ok(&["prune", "-f"]);
    bed.ok(&["manifest", "push", "list:1", "oci:layout:list"]);
    bed.ok(&["rmi", "list:1", "a:1"]);
    bed.ok(&["cp", "--all", "oci:layout:list", "list:2"]);
    assert_eq!(bed.ok(&["images"]).lines().count(), 2);
    bed.ok(&["manifest", "rm", "list:2"]);
    assert_eq!(bed.names(), set(&[]));
}

#[test]
fn the_disks_use_is_told() {
    let bed = Bed::new();
    bed.load(&[Image::new(&["a:1"], "one"), Image::new(&["b:1"], "two")]);
    let table = bed.ok(&["df"]);
    assert!(
        table.starts_with("TYPE") && table.contains("RECLAIMABLE") && table.contains("Images"),
        "{table}"
    );
    let all = bed.ok(&["df", "-v"]);
    assert!(all.contains("SHARED SIZE") && all.contains("UNIQUE SIZE"), "{all}");
}

#[test]
fn many_at_once_lose_nothing() {
    let bed = Bed::new();
    let mut children = Vec::new();
    for n in 0..6 {
        let (tag, content) = (format!("n:{n}"), format!("{}", n % 2));
        let path = bed.archive(&format!("{n}.tar"), &[Image::new(&[&tag], &content)]);
        let mut command = bed.command(&["load", "-q", "-i", text(&path)]);
        children.push(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
        children.push(
            bed.command(&["images", "-q"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap(),
        );
    }
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(bed.names().len(), 6);
    let children: Vec<_> = (0..6)
        .map(|n| bed.command(&["rmi", &format!("n:{n}")]).stdout(Stdio::null()).spawn().unwrap())
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(bed.names().len(), 0);
    bed.ok(&["prune", "-f"]);
    assert_eq!(std::fs::read_dir(bed.path("store/blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn a_wrong_command_line_is_told_with_a_hint() {
    let bed = Bed::new();
    for args in [&["imags"][..], &["images", "--quite"], &["tag", "a"], &["pull"], &[]] {
        let error = bed.fails(args);
        assert!(!error.is_empty(), "{args:?}");
    }
    assert!(bed.fails(&["imags"]).contains("images"));
    assert!(bed.fails(&["images", "--quite"]).contains("--quiet"));
    for args in [&["--help"][..], &["images", "--help"], &["--version"]] {
        assert!(!bed.ok(args).is_empty(), "{args:?}");
    }
    assert!(!bed.path("store").exists(), "who asks for help makes no store");
    assert!(bed.fails(&["tag", "nope", "a:1"]).contains("no image nope"));
    assert!(bed.fails(&["tag", "Nope", "a:1"]).contains("lower case"));
}

#[test]
fn who_reads_no_further_is_no_error() {
    let bed = Bed::new();
    bed.load(&[Image::new(&["a:1"], "one")]);
    let mut child = bed.command(&["images"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A registry that has one image, `x/y:1`, with one referrer, on loopback; what it was asked, in order.
fn registry(asked: Arc<Mutex<Vec<String>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut reader = BufReader::new(connection.unwrap());
            let mut first = String::new();
            // TLS is tried before plain HTTP is.
            if reader.read_line(&mut first).is_err() || !first.ends_with("HTTP/1.1\r\n") {
                continue;
            }
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap() == 0 || line == "\r\n" {
                    break;
                }
            }
            let digest = Digest::of(b"{}");
            let manifest = json!({"schemaVersion": 2, "layers": [],
                "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 2}});
            let manifest = manifest.to_string();
            let referrer = |kind: &str| {
                json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest,
                "size": 1234, "artifactType": kind})
            };
            let index =
                json!({"schemaVersion": 2, "manifests": [referrer("text/sbom"), referrer("text/signature")]})
                    .to_string();
            let of_it = Digest::of(manifest.as_bytes());
            let line = first.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
            let (status, kind, body) = match &line[..] {
                "GET /v2/" => ("200 OK", "text/plain", ""),
                "GET /v2/x/y/manifests/1" => {
                    ("200 OK", "application/vnd.oci.image.manifest.v1+json", &manifest[..])
                }
                l if l == format!("GET /v2/x/y/referrers/{of_it}") => {
                    ("200 OK", "application/vnd.oci.image.index.v1+json", &index[..])
                }
                l if l == format!("DELETE /v2/x/y/manifests/{of_it}") => ("202 Accepted", "text/plain", ""),
                _ => ("404 Not Found", "text/plain", ""),
            };
            asked.lock().unwrap().push(line);
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
    address
}

#[test]
fn registries_delete_and_tell_what_refers_to_an_image() {
    let bed = Bed::new();
    let asked = Arc::default();
    let image = format!("{}/x/y:1", registry(Arc::clone(&asked)));
    let plain = "--tls-verify=false";
    let listed = bed.ok(&["referrers", plain, &image]);
    let lines: Vec<_> =
        listed.lines().map(|l| l.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines, ["ARTIFACT TYPE SIZE", "text/sbom 1.23kB", "text/signature 1.23kB"]);
    let one = bed.ok(&[
        "referrers",
        plain,
        "--artifact-type",
        "text/sbom",
        "--format",
        "{{.ArtifactType}} {{.Bytes}}",
        &image,
    ]);
    assert_eq!(one, "text/sbom 1234\n");
    let error = bed.fails(&["delete", plain, &image]);
    assert!(error.contains("docker://") && error.contains("hint: berth-builder rmi"), "{error}");
    let before = asked.lock().unwrap().len();
    bed.ok(&["delete", plain, &format!("docker://{image}")]);
    let asked: Vec<_> = asked.lock().unwrap().split_off(before);
    assert!(asked.last().unwrap().starts_with("DELETE /v2/x/y/manifests/sha256:"), "{asked:?}");
    let error = bed.fails(&["delete", plain, &format!("docker://{}", image.replace(":1", ":2"))]);
    assert!(error.contains("y:2"), "{error}");
    assert!(bed.fails(&["delete", "oci:x"]).contains("only images of registries"));
}
