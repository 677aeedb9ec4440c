//! What the builder's options do that change no step: limits, checks, plans, files about the image, filters.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use harness::{Bed, Output, Value, need};

use super::builds::{bed, on, write};

fn build(bed: &Bed, options: &[&str]) -> Output {
    on(bed, "store", &[&["build", "--progress", "plain"], options, &["c"]].concat())
}

/// Below the RUN's own output, as --progress plain prints it.
fn said<'a>(out: &'a Output, word: &str) -> Option<&'a str> {
    out.stderr
        .lines()
        .filter(|line| !line.contains(" RUN "))
        .find_map(|line| line.split_once(word).map(|(_, rest)| rest.trim()))
}

#[test]
fn limits_and_rights_of_run() {
    let Some(_) = need::root() else { return };
    let bed = bed(&["store"]);
    let script = "FROM base\nRUN grep -E 'CapBnd|NoNewPrivs' /proc/self/status; grep . /proc/self/cgroup; echo files $(ulimit -n) done\n";
    write(&bed, "c/Dockerfile", script);
    let bits =
        |out: &Output| u64::from_str_radix(said(out, "CapBnd:").expect("a line"), 16).expect("a number");
    let out = build(&bed, &["--no-cache"]).success();
    // Docker's set for RUN; 21: CAP_SYS_ADMIN, 0: CAP_CHOWN.
    assert_eq!((bits(&out) & 1, bits(&out) >> 21 & 1), (1, 0), "{out:?}");
    let out = build(&bed, &["--no-cache", "--cap-drop", "chown", "--cap-add", "CAP_SYS_ADMIN"]).success();
    assert_eq!((bits(&out) & 1, bits(&out) >> 21 & 1), (0, 1), "{out:?}");
    let out = build(&bed, &["--no-cache", "--cap-drop", "ALL"]).success();
    assert_eq!(bits(&out), 0, "{out:?}");
    let out = build(&bed, &["--no-cache", "--cap-drop", "all", "--cap-add", "chown"]).success();
    assert_eq!(bits(&out), 1, "{out:?}");
    let out =
        build(&bed, &["--no-cache", "--security-opt", "no-new-privileges", "--ulimit", "nofile=99:100"])
            .success();
    assert_eq!(said(&out, "NoNewPrivs:"), Some("1"));
    assert_eq!(said(&out, "files"), Some("99 done"));
    for (options, says) in [
        (["--memory", "much"], "--memory much: this is no size"),
        (["--cpus", "0"], "--cpus 0: more than 0"),
        (["--cap-add", "FLY"], "FLY"),
        (["--security-opt", "label=disable"], "no-new-privileges is what there is"),
        (["--ulimit", "nofile"], "--ulimit nofile: NAME=SOFT[:HARD]"),
        (["--pull=sometimes", "-q"], "--pull=sometimes: always, missing or never"),
        (["--print", "tree"], "--print tree: plan is what there is"),
    ] {
        build(&bed, &options).exits(125).stderr_has(says);
    }
    // Enough for a shell, not for that.
    write(&bed, "c/Dockerfile", "FROM base\nRUN a=x; while :; do a=$a$a; done\n");
    let out = build(&bed, &["--memory", "16m", "--cpus", "0.5"]);
    assert!(out.code != Some(0) && out.stderr.contains("137"), "{out:?}");
}

#[test]
fn nothing_is_built_to_check_or_to_plan() {
    let bed = bed(&["store"]);
    let script = "FROM base as make\nRUN echo x\nFROM scratch AS other\nFROM base\nCOPY --from=make /bin /b\nCMD cat a\n";
    write(&bed, "c/Dockerfile", script);
    let out = build(&bed, &["--check"]).exits(1).stderr_has("2 warnings have been found!");
    assert!(out.stderr.contains("Dockerfile:1: FromAsCasing: "), "{out:?}");
    assert!(out.stderr.contains("Dockerfile:6: JSONArgsRecommended: "), "{out:?}");
    let plan = build(&bed, &["--print", "plan"]).success().stdout;
    let wanted = "stage 0 make: from image base\n  2: RUN echo x\nstage 2 stage-2 (the target): from image base\n  takes from make: stage 0\n  \
        5: COPY --from=make /bin /b\n  6: CMD cat a\n";
    assert_eq!(plan, wanted);
    write(&bed, "c/Dockerfile", "FROM base AS make\nRUN echo x\n");
    build(&bed, &["--check"]).success().stderr_has("Check complete, no warnings found.");
    write(&bed, "c/Dockerfile", "# check=error=true\nFROM base as make\n");
    build(&bed, &[]).exits(125).stderr_has("FromAsCasing").stderr_has("(# check=error=true)");
    assert_eq!(on(&bed, "store", &["images", "-q"]).success().stdout.lines().count(), 1);
}

#[test]
fn files_tell_what_was_made() {
    let bed = bed(&["store"]);
    write(&bed, "c/Dockerfile", "FROM base\nARG A\nARG B\nLABEL a=$A b=$B\n");
    write(&bed, "values", "# comment\n\nA=1\nB=with = in it\n");
    let options = [
        "-t",
        "app",
        "-t",
        "app:2",
        "--iidfile",
        "id",
        "--metadata-file",
        "meta.json",
        "--build-arg-file",
        "values",
        "--build-arg",
        "A=2",
    ];
    build(&bed, &options).success();
    let inspected: Value = on(&bed, "store", &["inspect", "app"]).success().json();
    let id = fs::read_to_string(bed.path("id")).expect("--iidfile");
    assert_eq!(inspected[0]["Id"].as_str(), Some(id.as_str()));
    assert_eq!(inspected[0]["Config"]["Labels"], harness::json!({"a": "2", "b": "with = in it"}));
    let meta: Value =
        serde_json::from_slice(&fs::read(bed.path("meta.json")).expect("--metadata-file")).expect("JSON");
    let digest = on(&bed, "store", &["inspect", "--format", "{{.Digest}}", "app"]).success().stdout;
    assert_eq!(meta["containerimage.digest"], digest.trim());
    assert_eq!(meta["image.name"], "docker.io/library/app:latest,docker.io/library/app:2");
    // A pipe can be read once, for however many platforms.
    let fifo = bed.path("pipe");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("mkfifo");
    let writer = std::thread::spawn(move || fs::write(fifo, "A=piped\n").expect("write"));
    write(&bed, "c/Scratch", "FROM scratch\nARG A\nLABEL a=$A\n");
    let two =
        ["-f", "c/Scratch", "--build-arg-file", "pipe", "--platform", "linux/arm64,linux/amd64", "-t", "two"];
    build(&bed, &two).success();
    writer.join().expect("the writer");
    // That of this machine, which came second.
    let label = on(&bed, "store", &["inspect", "--format", "{{.Config.Labels.a}}", "two"]).success().stdout;
    assert_eq!(label, "piped\n");
    build(&bed, &["--build-arg-file", "c/Dockerfile"]).exits(125).stderr_has("c/Dockerfile:1: NAME=VALUE");
    // What is not here is not asked for.
    write(&bed, "c/Dockerfile", "FROM nowhere.example/none\n");
    build(&bed, &["--pull=never"]).exits(125).stderr_has("--pull=never says not to ask");
}

/// Gives one file to whoever asks, until it is dropped.
pub struct Server {
    pub port: u16,
    serving: Option<std::thread::JoinHandle<()>>,
}

pub fn serve(content: &'static [u8]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("an address").port();
    let serving = std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 2048];
            let n = stream.read(&mut request).expect("a request");
            if request[..n].starts_with(b"GET /end") {
                return;
            }
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nConnection: close\r\n\r\n",
                content.len()
            );
            let body: &[u8] = if request.starts_with(b"GET") { content } else { b"" };
            // It may have seen enough.
            stream.write_all(&[head.as_bytes(), body].concat()).unwrap_or_default();
        }
    });
    Server { port, serving: Some(serving) }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = TcpStream::connect(("127.0.0.1", self.port)).and_then(|mut s| s.write_all(b"GET /end"));
        if let (Ok(()), Some(serving)) = (ended, self.serving.take()) {
            serving.join().unwrap_or_default();
        }
    }
}

#[test]
fn files_come_from_addresses() {
    let bed = bed(&["store"]);
    let server = serve(b"from afar\n");
    let port = server.port;
    let sum = "sha256:a3eb4d4f42ea9a0dd0a1f7d9d2dfb8bfb2a2cdea4f8c8f0ca2a0d7b9a5e1e111";
    write(
        &bed,
        "c/Dockerfile",
        format!("FROM base\nADD --checksum={sum} http://127.0.0.1:{port}/x/file.txt?q=1 /\n"),
    );
    let out = build(&bed, &["-t", "app"]).exits(125).stderr_has("as --checksum says");
    let true_sum = out
        .stderr
        .split("it is ")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .expect("the sum")
        .to_owned();
    write(
        &bed,
        "c/Dockerfile",
        format!(
            "FROM base\nADD --checksum={true_sum} --chmod=640 http://127.0.0.1:{port}/x/file.txt?q=1 /to/\nADD http://127.0.0.1:{port}/x/y /as\n"
        ),
    );
    build(&bed, &["-t", "app"]).success();
    on(&bed, "store", &["build", "-o", "out", "c"]).success();
    for (path, mode) in [("out/to/file.txt", 0o640), ("out/as", 0o600)] {
        let file = bed.path(path);
        assert_eq!(fs::read_to_string(&file).expect("the file"), "from afar\n");
        let seen = fs::metadata(&file).expect("stat");
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&seen) & 0o777, mode, "{path}");
    }
    write(&bed, "c/Dockerfile", format!("FROM base\nADD http://127.0.0.1:{port}/ /to/\n"));
    build(&bed, &[]).exits(125).stderr_has("it has no file's name at its end");
}

#[test]
fn images_are_found_by_what_they_are() {
    let bed = bed(&["store"]);
    for (name, label) in [("first:1", "a=1"), ("second:1", "a=2"), ("second:old", "b=1")] {
        write(&bed, "c/Dockerfile", format!("FROM base\nLABEL {label}\n"));
        let date = if name.ends_with("old") { "100" } else { "2000000000" };
        build(&bed, &["-t", name, "--timestamp", date]).success();
    }
    let names = |filters: &[&str]| -> Vec<String> {
        let mut args = vec!["images", "--format", "{{.Repository}}:{{.Tag}}"];
        filters.iter().for_each(|f| args.extend(["--filter", f]));
        let out = on(&bed, "store", &args).success();
        let mut names: Vec<String> = out.stdout.lines().map(str::to_owned).collect();
        names.sort();
        names
    };
    for (filters, wanted) in [
        (&["label=a"][..], &["first:1", "second:1"][..]),
        (&["label=a=2"], &["second:1"]),
        (&["label=a", "label=b"], &[]),
        (&["label!=a", "reference=second"], &["second:old"]),
        (&["reference=second:*"], &["second:1", "second:old"]),
        (&["reference=*:1", "since=second:old"], &["first:1", "second:1"]),
        (&["before=first:1", "reference=second"], &["second:old"]),
        (&["until=1000"], &["second:old"]),
        (&["until=24h", "reference=s*"], &["second:old"]),
        (&["until=2001-01-01T00:00:00Z", "label=b"], &["second:old"]),
        (&["dangling=false", "label=b"], &["second:old"]),
        (&["dangling=true"], &[]),
    ] {
        assert_eq!(names(filters), wanted, "{filters:?}");
    }
    for (filter, says) in [
        ("size=1", "known are reference"),
        ("label", "expected KEY=VALUE"),
        ("until=soon", "neither a duration"),
        ("before=none", "none"),
    ] {
        on(&bed, "store", &["images", "--filter", filter]).exits(125).stderr_has(says);
    }
    on(&bed, "store", &["untag", "first:1"]).success();
    assert_eq!(names(&["dangling=true"]), ["<none>:<none>"]);
}
