//! Where a build's files come from: folders, archives, the standard input, addresses, repositories.

use std::fs::{self, File};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use harness::command::{PATIENCE, finish_with_input, start_with_stdin};
use harness::{Bed, Output, finish, need, start};

use super::builds::{bed, command, on, write};
use super::options::serve;

fn sh(bed: &Bed, script: &str) -> Output {
    finish(Command::new("sh").args(["-ec", script]).current_dir(bed.path(""))).success()
}

/// What an image `app` has in /c, by name.
fn found(bed: &Bed) -> String {
    on(bed, "store", &["build", "-q", "-o", "out", "-f", "show", "nothing"]).success();
    let names = sh(bed, "cd out/c; find . -type f | sort; rm -r ../../out");
    names.stdout.lines().map(|l| l.trim_start_matches("./")).collect::<Vec<_>>().join(" ")
}

/// A context of which `.dockerignore` leaves out a file, below a folder `here`.
fn with_context() -> Bed {
    let bed = bed(&["store"]);
    write(&bed, "here/Dockerfile", "FROM scratch\nCOPY . /c/\n");
    write(&bed, "here/.dockerignore", "left-out\n.dockerignore\nDockerfile\n");
    for name in ["a", "deep/b", "left-out"] {
        write(&bed, &format!("here/{name}"), name);
    }
    write(&bed, "nothing/.keep", "");
    write(&bed, "show", "FROM app\n");
    bed
}

#[test]
fn archives_and_the_standard_input() {
    let bed = with_context();
    sh(
        &bed,
        "tar -C here -cf plain.tar . && gzip -k plain.tar && bzip2 -k plain.tar 2>/dev/null || cp plain.tar plain.tar.bz2",
    );
    for archive in ["plain.tar", "plain.tar.gz", "plain.tar.bz2"] {
        on(&bed, "store", &["build", "-t", "app", archive]).success();
        assert_eq!(found(&bed), "a deep/b", "{archive}");
        let input = File::open(bed.path(archive)).expect("open");
        start_with_stdin(&mut command(&bed, "store", &["build", "-t", "app", "-"]), Stdio::from(input))
            .wait()
            .success();
        assert_eq!(found(&bed), "a deep/b", "{archive}");
    }
    // A Dockerfile alone; one for a folder; one in an archive by name.
    finish_with_input(
        &mut command(&bed, "store", &["build", "-t", "app", "-"]),
        "FROM base\nRUN mkdir /c && echo x >/c/y\n",
    )
    .success();
    assert_eq!(found(&bed), "y");
    finish_with_input(
        &mut command(&bed, "store", &["build", "-t", "app", "-f", "-", "here"]),
        "FROM scratch\nCOPY deep /c/\n",
    )
    .success();
    assert_eq!(found(&bed), "b");
    write(&bed, "here/other", "FROM scratch\nCOPY a /c/\n");
    sh(&bed, "tar -C here -cf plain.tar .");
    on(&bed, "store", &["build", "-t", "app", "-f", "other", "plain.tar"]).success();
    assert_eq!(found(&bed), "a");
    // Its own ignore file comes first.
    write(&bed, "here/other", "FROM scratch\nCOPY . /c/\n");
    write(&bed, "here/other.dockerignore", "deep\nother*\n.dockerignore\nDockerfile\n");
    on(&bed, "store", &["build", "-t", "app", "-f", "here/other", "here"]).success();
    assert_eq!(found(&bed), "a left-out");
    write(&bed, "ignored", "**\n!deep\n");
    on(&bed, "store", &["build", "-t", "app", "--ignorefile", "ignored", "here"]).success();
    assert_eq!(found(&bed), "deep/b");
    for (args, says) in [
        (&["-f", "-", "-"][..], "cannot be both the context and the Dockerfile"),
        (&[], "no context is given"),
        (&["show"], "neither a folder nor an archive"),
        (&["-f", "gone", "plain.tar"], "gone: there is no such file in plain.tar"),
        (&["missing"], "missing"),
    ] {
        finish_with_input(&mut command(&bed, "store", &[&["build"], args].concat()), "")
            .exits(125)
            .stderr_has(says);
    }
    // What an archive must not do is refused as in layers.
    sh(
        &bed,
        "mkdir -p evil; ln -s /etc evil/link; tar -cf evil.tar -C evil link; rm evil/link; mkdir evil/link; echo x >evil/link/file; tar -rf evil.tar -C evil link/file; tar -rf evil.tar -C here Dockerfile",
    );
    on(&bed, "store", &["build", "-t", "app", "evil.tar"]);
    assert!(!std::path::Path::new("/etc/file").exists());
    on(&bed, "store", &["check"]).success();
}

#[test]
fn contexts_by_address() {
    let bed = with_context();
    sh(&bed, "tar -C here -czf plain.tar.gz .");
    let archive: &'static [u8] = fs::read(bed.path("plain.tar.gz")).expect("read").leak();
    for (content, wanted) in [(archive, "a deep/b"), (&b"FROM base\nRUN mkdir /c && echo x >/c/y\n"[..], "y")]
    {
        let server = serve(content);
        on(&bed, "store", &["build", "-t", "app", &format!("http://127.0.0.1:{}/it", server.port)]).success();
        assert_eq!(found(&bed), wanted);
    }
    // Beside the first one, by name.
    let server = serve(archive);
    let by_name = [
        "--build-context".to_owned(),
        format!("web=http://127.0.0.1:{}/it", server.port),
        "--build-context".to_owned(),
        "folder=here/deep".to_owned(),
        "--build-context".to_owned(),
        "layout=oci-layout://layout:app".to_owned(),
        "--build-context".to_owned(),
        "image=docker-image://app".to_owned(),
    ];
    on(&bed, "store", &["push", "-q", "app", "oci:layout:app"]).success();
    write(
        &bed,
        "c/Dockerfile",
        "FROM scratch\nCOPY --from=web a /c/\nCOPY --from=folder b /c/\nCOPY --from=layout /c/y /c/z\nCOPY --from=image /c/y /c/\n",
    );
    let mut args = vec!["build", "-t", "app2", "c"];
    args.extend(by_name.iter().map(String::as_str));
    on(&bed, "store", &args).success();
    write(&bed, "show", "FROM app2\n");
    assert_eq!(found(&bed), "a b y z");
    on(&bed, "store", &["build", "--build-context", "x=target:y", "c"]).exits(125).stderr_has("x=target:y");
}

#[test]
fn contexts_from_repositories() {
    let Some(_) = need::program("git") else { return };
    let bed = with_context();
    let repository = "
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b HOME=$PWD
        cd here; git init -q -b main; git add -f .; git commit -q -m one; git tag first
        git checkout -q -b other; echo 2 >deep/c; printf 'FROM scratch\\nCOPY . /c/\\n' >deep/Dockerfile; git add .; git commit -q -m two
        git checkout -q main; git rev-parse first";
    let commit = sh(&bed, repository).stdout.trim().to_owned();
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let mut daemon = Command::new("git");
    daemon
        .args(["daemon", "--export-all", "--listen=127.0.0.1", &format!("--port={port}")])
        .arg(format!("--base-path={}", bed.path("").display()));
    let daemon = start(&mut daemon);
    let end = std::time::Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(std::time::Instant::now() < end, "git daemon does not listen");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let at = format!("git://127.0.0.1:{port}/here/.git");
    for (what, wanted) in [
        ("", "a deep/b"),
        ("#first", "a deep/b"),
        ("#other", "a deep/Dockerfile deep/b deep/c"),
        ("#other:deep", "Dockerfile b c"),
        // There is nothing above it.
        ("#main:../..", "a deep/b"),
        (&format!("#{commit}"), "a deep/b"),
        ("?branch=other&subdir=deep", "Dockerfile b c"),
        (&format!("?tag=first&commit={commit}"), "a deep/b"),
    ] {
        on(&bed, "store", &["build", "-t", "app", &format!("{at}{what}")]).success();
        assert_eq!(found(&bed), wanted, "{what}");
    }
    for (what, says) in [
        ("#gone", "there is no gone"),
        ("#main:gone", "gone"),
        ("?commit=0000000", "there is no 0000000"),
        ("?branch=main&commit=0000000", "not at 0000000"),
        (&format!("?branch=other&commit={commit}"), "not at"),
        ("?what=1", "unknown option \"what\""),
        ("#--upload-pack=x", "begins with a dash"),
    ] {
        on(&bed, "store", &["build", "-t", "app", &format!("{at}{what}")]).exits(125).stderr_has(says);
    }
    // In a Dockerfile.
    write(&bed, "c/Dockerfile", format!("FROM scratch\nADD {at}#first /c/\n"));
    on(&bed, "store", &["build", "-t", "app", "c"]).success();
    assert_eq!(found(&bed), ".dockerignore Dockerfile a deep/b left-out");
    write(&bed, "c/Dockerfile", format!("FROM scratch\nADD --keep-git-dir=true {at}#first /c/\n"));
    on(&bed, "store", &["build", "-t", "app", "c"]).success();
    assert!(found(&bed).contains(".git/HEAD"));
    write(&bed, "c/Dockerfile", format!("FROM scratch\nADD --checksum={commit} {at}#other /c/\n"));
    on(&bed, "store", &["build", "-t", "app", "c"]).exits(125).stderr_has("Dockerfile:2").stderr_has(&commit);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait();
}
