//! The same for the builder's store: what may be lost when a command that changes it is killed, or when one of its calls fails?
//! Nothing that has a name; and nothing is left when the next command has run.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::image::Made;
use harness::{Output, finish, json};
use image::Digest;
use image::layer::tar::{Header, Kind};

use crate::Trial;
use crate::tracer::{self, Blow, Point};

/// The commands that are killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Pull,
    Load,
    Rmi,
    Prune,
    /// From archives.
    Unpack,
    /// From layers that are unpacked in the store.
    UnpackCopy,
    Tag,
    Save,
    /// With files and commands, and nothing kept of an earlier one.
    Build,
    /// With one file of many changed.
    Rebuild,
}

impl Verb {
    pub const ALL: [Verb; 10] = [
        Verb::Pull,
        Verb::Load,
        Verb::Rmi,
        Verb::Prune,
        Verb::Unpack,
        Verb::UnpackCopy,
        Verb::Tag,
        Verb::Save,
        Verb::Build,
        Verb::Rebuild,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Verb::Pull => "pull",
            Verb::Load => "load",
            Verb::Rmi => "rmi",
            Verb::Prune => "prune",
            Verb::Unpack => "unpack",
            Verb::UnpackCopy => "unpack-copy",
            Verb::Tag => "tag",
            Verb::Save => "save",
            Verb::Build => "build",
            Verb::Rebuild => "rebuild",
        }
    }
}

/// prlimit64 (of the own limits), futex, poll, rseq: Rust's standard library and its threads rely on them.
pub fn is_of_std(syscall: u64) -> bool {
    [302, 202, 7, 334].contains(&syscall)
}

const DOCKERFILE: &str = "FROM base:1 AS one\nCOPY a /a\nRUN mkdir /made && cat /a > /made/a\nFROM base:1\nWORKDIR /work\n\
    COPY --from=one /made /made\nCOPY d d\nRUN --mount=type=bind,target=/m cat /m/a > /f\nRUN rm /bin/mkdir\n";

fn layer(salt: &str, n: usize) -> Vec<u8> {
    let mut entries = vec![(Header::new(Kind::Directory, format!("d{n}")), Vec::new())];
    for file in 0..4 {
        let content = format!("{salt} {n} {file} ").repeat(if file == 0 { 30_000 } else { 10 });
        entries
            .push((Header { uid: 1000, ..Header::new(Kind::File, format!("d{n}/f{file}")) }, content.into()));
    }
    let mut put = |header: Header| entries.push((header, Vec::new()));
    put(Header { link: b"f1".to_vec(), ..Header::new(Kind::Symlink, format!("d{n}/link")) });
    let first = format!("d{n}/f1").into_bytes();
    put(Header { link: first, ..Header::new(Kind::Hardlink, format!("d{n}/hard")) });
    if n > 0 {
        put(Header::new(Kind::File, format!("d{}/.wh.f3", n - 1)));
    }
    harness::image::layer(entries)
}

/// An image of three layers; those before `salted` are the same in all images.
fn make(salt: &str, salted: usize, tag: &str) -> Made {
    let layers = (0..3).map(|n| layer(if n < salted { "shared" } else { salt }, n)).collect();
    harness::image::make(tag, layers, &json!({"Cmd": ["/bin/sh"]}))
}

/// A registry that has one image, for reading.
struct Registry(String);

impl Registry {
    fn serve(image: Made) -> Result<Registry> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let image = Arc::new(image);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let image = Arc::clone(&image);
                // Who is killed hangs up.
                std::thread::spawn(move || answer(connection, &image).unwrap_or_default());
            }
        });
        Ok(Registry(address))
    }
}

/// Requests on one connection.
fn answer(connection: TcpStream, image: &Made) -> Result<()> {
    let mut lines = BufReader::new(connection.try_clone()?);
    let mut to = connection;
    loop {
        let mut request = String::new();
        if lines.read_line(&mut request)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line)? <= 2 {
                break;
            }
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let manifest = Some((&image.manifest.1, "application/vnd.oci.image.manifest.v1+json"));
        let nothing = Vec::new();
        let found = match path.rsplit_once('/') {
            _ if path == "/v2/" => Some((&nothing, "text/plain")),
            Some((above, _)) if above.ends_with("/manifests") => manifest,
            Some((_, last)) => {
                let blob = image.blobs.iter().find(|(digest, _)| digest.to_string() == last);
                blob.map(|(_, bytes)| (bytes, "application/octet-stream"))
            }
            None => None,
        };
        let (status, body, kind) = match found {
            Some((body, kind)) => ("200 OK", &body[..], kind),
            None => ("404 Not Found", &b""[..], "text/plain"),
        };
        write!(to, "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len())?;
        if method != "HEAD" {
            to.write_all(body)?;
        }
    }
}

/// A store with what the verb starts from, copied for every point.
pub struct Scenario {
    verb: Verb,
    builder: PathBuf,
    dir: tempfile::TempDir,
    registry: Registry,
    /// Names and digests of the images that the verb must not touch.
    kept: BTreeSet<String>,
}

impl Scenario {
    pub fn new(builder: &Path, verb: Verb) -> Result<Scenario> {
        let dir = tempfile::Builder::new().prefix("berth-crash-").tempdir()?;
        let registry = Registry::serve(make("new", 1, "new:1"))?;
        let mut scenario =
            Scenario { verb, builder: builder.to_owned(), dir, registry, kept: BTreeSet::new() };
        for (name, image) in [
            ("keep", make("keep", 1, "keep:1")),
            ("new", make("new", 1, "new:1")),
            ("old", make("old", 0, "moved:1")),
            ("moved", make("moved", 2, "moved:1")),
        ] {
            fs::write(scenario.path(&format!("{name}.tar")), image.archive)?;
        }
        let load = |name: &str, more: &[&str]| -> Result<()> {
            let archive = scenario.path(&format!("{name}.tar"));
            let archive = archive.to_string_lossy();
            let args = [&["load", "-i", &archive], more].concat();
            scenario.succeeds(&args).map(drop)
        };
        load("keep", &[])?;
        match verb {
            Verb::Rmi | Verb::UnpackCopy => load("new", &[])?,
            Verb::Unpack => load("new", &["--no-unpack"])?,
            Verb::Prune => {
                load("old", &[])?;
                load("moved", &[])?;
            }
            Verb::Build | Verb::Rebuild => {
                let base = [harness::image::busybox_layer("sh cat mkdir rm")].to_vec();
                let base = harness::image::make("base:1", base, &json!({"Cmd": ["/bin/sh"]}));
                fs::write(scenario.path("base.tar"), base.archive)?;
                load("base", &[])?;
                for (name, content) in [("Dockerfile", DOCKERFILE), ("a", "a\n"), ("d/b", "b\n")] {
                    let path = scenario.path("context").join(name);
                    fs::create_dir_all(path.parent().context("a folder")?)?;
                    fs::write(path, content)?;
                }
                if verb == Verb::Rebuild {
                    for n in 0..100 {
                        fs::write(scenario.path(&format!("context/d/{n}")), format!("{n}\n"))?;
                    }
                    let context = scenario.path("context").to_string_lossy().into_owned();
                    scenario.succeeds(&["build", "-q", "-t", "first:1", &context])?;
                    fs::write(scenario.path("context/d/7"), "another\n")?;
                }
            }
            Verb::Pull | Verb::Load | Verb::Tag | Verb::Save => {}
        }
        fs::rename(scenario.path("store"), scenario.path("template"))?;
        scenario.prepare()?;
        scenario.kept = scenario.images()?;
        if verb == Verb::Rmi {
            scenario.kept.retain(|image| !image.contains("new:1"));
        } else if verb == Verb::Prune {
            scenario.kept.retain(|image| !image.contains("<none>"));
        }
        Ok(scenario)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn prepare(&self) -> Result<()> {
        for name in ["store", "out"] {
            match fs::remove_dir_all(self.path(name)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context("make room"),
                _ => {}
            }
        }
        fs::create_dir(self.path("out"))?;
        let copied =
            Command::new("cp").arg("-a").arg(self.path("template")).arg(self.path("store")).status()?;
        ensure!(copied.success(), "cp: {copied}");
        Ok(())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.builder);
        command.args(args).env_clear().env("BERTH_ROOT", self.path("store")).env("HOME", self.path("home"));
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    }

    fn killed(&self) -> Command {
        let text = |name: &str| self.path(name).to_string_lossy().into_owned();
        let args = match self.verb {
            Verb::Pull => vec!["pull".to_owned(), format!("{}/new:1", self.registry.0)],
            Verb::Load => ["load", "-i"].map(str::to_owned).into_iter().chain([text("new.tar")]).collect(),
            Verb::Rmi => ["rmi", "new:1"].map(str::to_owned).to_vec(),
            Verb::Prune => ["prune", "--force"].map(str::to_owned).to_vec(),
            Verb::Unpack | Verb::UnpackCopy => {
                vec!["unpack".to_owned(), "new:1".to_owned(), text("out/bundle")]
            }
            Verb::Build | Verb::Rebuild => {
                ["build", "-q", "-t", "built:1", "--cgroup-parent", &self.cgroup()]
                    .map(str::to_owned)
                    .into_iter()
                    .chain([text("context")])
                    .collect()
            }
            Verb::Tag => ["tag", "keep:1", "other:1", "third/name:2"].map(str::to_owned).to_vec(),
            Verb::Save => {
                vec!["save".to_owned(), "-o".to_owned(), text("out/saved.tar"), "keep:1".to_owned()]
            }
        };
        self.command(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn succeeds(&self, args: &[&str]) -> Result<Output> {
        let output = finish(&mut self.command(args));
        ensure!(
            output.code == Some(0),
            "{}: exit code {:?}: {}",
            args.join(" "),
            output.code,
            output.stderr.trim()
        );
        Ok(output)
    }

    fn images(&self) -> Result<BTreeSet<String>> {
        let listed =
            self.succeeds(&["images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}} {{.Digest}}"])?;
        Ok(listed.stdout.lines().map(str::to_owned).collect())
    }

    /// All that is there in the end.
    fn effect(&self) -> Result<String> {
        // What no image needs may be left by what was killed; it goes like this.
        self.succeeds(&["prune", "--force"])?;
        let mut lines: Vec<String> = self.images()?.into_iter().collect();
        for folder in ["store/blobs/sha256", "store/layers/sha256"] {
            let mut names: Vec<_> =
                fs::read_dir(self.path(folder))?.map(|e| Ok(e?.file_name())).collect::<Result<_>>()?;
            names.sort();
            lines.extend(names.iter().map(|n| format!("{folder}/{}", n.to_string_lossy())));
        }
        tree(&self.path("out"), "out", &mut lines)?;
        Ok(lines.join("\n").replace(&self.registry.0, "REGISTRY"))
    }

    /// Where this scenario's builds have their cgroups.
    fn cgroup(&self) -> String {
        let name = self.dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!("/{name}")
    }

    /// What builds leave outside of the store, and what tells of builds that go on.
    fn left_by_builds(&self) -> Vec<String> {
        let mut left = Vec::new();
        for entry in fs::read_dir(self.path("store/running")).into_iter().flatten().flatten() {
            left.push(format!("left: {}", entry.path().display()));
        }
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let folder = controller.path().join(self.cgroup().trim_start_matches('/'));
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    left.push(format!("left: {}", entry.path().display()));
                }
            }
        }
        let dir = self.dir.path().to_string_lossy().into_owned();
        if fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().contains(&dir) {
            left.push(format!("left: mounts below {dir}"));
        }
        left
    }

    /// What is wrong after the verb was disturbed; the next commands put it right.
    fn damages(&self, expected: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        let check = finish(&mut self.command(&["check"]));
        if check.code != Some(0) {
            wrong.push(format!("check: {} {}", check.stdout.trim(), check.stderr.trim()));
        }
        match self.images() {
            Ok(images) => {
                let lost = self.kept.difference(&images);
                wrong.extend(lost.map(|image| format!("lost: {image}")));
            }
            Err(e) => wrong.push(format!("{e:#}")),
        }
        match fs::read_dir(self.path("store/tmp")) {
            Ok(left) => wrong.extend(left.flatten().map(|e| format!("left: {}", e.path().display()))),
            Err(e) => wrong.push(format!("tmp: {e}")),
        }
        let again = finish(&mut self.killed());
        let gone = self.verb == Verb::Rmi && again.stderr.contains("no image");
        let there = matches!(self.verb, Verb::Unpack | Verb::UnpackCopy) && again.stderr.contains("empty");
        if again.code != Some(0) && !gone && !there {
            wrong.push(format!("the same again: exit code {:?}: {}", again.code, again.stderr.trim()));
        }
        if matches!(self.verb, Verb::Build | Verb::Rebuild) {
            wrong.extend(self.left_by_builds());
        }
        match self.effect() {
            Ok(effect) if effect == expected => {}
            Ok(effect) => {
                let (is, should): (BTreeSet<_>, BTreeSet<_>) =
                    (effect.lines().collect(), expected.lines().collect());
                let more: Vec<_> = is.difference(&should).collect();
                let less: Vec<_> = should.difference(&is).collect();
                wrong.push(format!("in the end there is {more:?} too much, and {less:?} is missing"));
            }
            Err(e) => wrong.push(format!("{e:#}")),
        }
        wrong
    }
}

/// Paths with what the inodes say and the contents are.
fn tree(dir: &Path, prefix: &str, lines: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, data) = (entry.path(), entry.metadata()?);
        let name = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        let content =
            if data.is_file() { Digest::of(&fs::read(&path)?).hex().to_owned() } else { String::new() };
        lines.push(format!("{name} {:o} {} {} {content}", data.mode(), data.uid(), data.nlink()));
        if data.is_dir() {
            tree(&path, &name, lines)?;
        }
    }
    lines.sort();
    Ok(())
}

impl Drop for Scenario {
    fn drop(&mut self) {
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            // Where builds have made it; it is empty.
            fs::remove_dir(controller.path().join(self.cgroup().trim_start_matches('/'))).unwrap_or_default();
        }
    }
}

impl Trial for Scenario {
    fn record(&self) -> Result<(Vec<Point>, Duration, String)> {
        self.prepare()?;
        let began = Instant::now();
        let trace = tracer::trace(&self.killed(), &[], None)?;
        if trace.hung || trace.code != Some(0) {
            bail!("{} does not work when it is traced: {trace:?}", self.verb.name());
        }
        let each = began.elapsed();
        let effect = self.effect()?;
        let wrong = self.damages(&effect);
        ensure!(
            wrong.is_empty(),
            "{} does damage even when nobody is killed: {}",
            self.verb.name(),
            wrong.join("; ")
        );
        Ok((trace.points, each * 3, effect))
    }

    fn crash(&self, point: &Point, blow: Blow, expected: &str) -> Result<(Option<u64>, Vec<String>)> {
        self.prepare()?;
        let trace = tracer::trace(&self.killed(), &[], Some((point, blow)))?;
        let mut wrong = self.damages(expected);
        if trace.hung {
            wrong.insert(0, "it hangs".to_owned());
        }
        Ok((trace.hit, wrong))
    }

    fn disturb(&self, point: &Point, blow: Blow, expected: &str) -> Result<(Option<u64>, Vec<String>)> {
        self.prepare()?;
        let trace = tracer::trace(&self.killed(), &[], Some((point, blow)))?;
        let mut wrong = Vec::new();
        if trace.hung {
            wrong.push("hangs".to_owned());
        } else if trace.code == Some(0) {
            match self.effect() {
                Ok(effect) if effect == expected => {}
                Ok(_) => wrong.push("reports success, but has not done it".to_owned()),
                Err(e) => wrong.push(format!("reports success, but {e:#}")),
            }
        } else if !trace.hit.is_some_and(crate::scenario::is_of_libc)
            && (trace.code != Some(125)
                || !trace.stderr.contains("berth-builder: ")
                || trace.stderr.contains("panicked"))
        {
            wrong.push(format!("no clear error: exit code {:?}, {:?}", trace.code, trace.stderr));
        }
        wrong.extend(self.damages(expected));
        Ok((trace.hit, wrong))
    }
}
