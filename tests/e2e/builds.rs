//! Builds as their users see them: the same digest again and elsewhere, caches between machines, secrets that stay secret, errors that
//! show the line.

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::image::busybox_layer;
use harness::{Bed, Output, bare, finish, json, need};
use image::layer::tar::{Header, Kind};
use serde_json::Value;

/// The builder on one of the bed's stores.
pub fn on(bed: &Bed, store: &str, args: &[&str]) -> Output {
    finish(&mut command(bed, store, args))
}

pub fn command(bed: &Bed, store: &str, args: &[&str]) -> Command {
    let mut command = Command::new(harness::runtime::builder());
    bare(command.args(args).current_dir(bed.path("")));
    command.env("BERTH_ROOT", bed.path(store)).env("HOME", bed.path("home")).env("TMPDIR", bed.path("tmp"));
    command.env("BERTH_RUNTIME", harness::runtime::path()).env(harness::leaks::MARK, &bed.unique);
    command
}

/// A bed with an image `base` in these stores.
pub fn bed(stores: &[&str]) -> Bed {
    let bed = Bed::new();
    let layer = busybox_layer("cat chmod chown cp date echo grep ln ls mkdir rm sh sleep touch");
    let made = harness::image::make("base", vec![layer], &json!({"Env": ["PATH=/bin"]}));
    write(&bed, "base.tar", &made.archive);
    for store in stores {
        on(&bed, store, &["load", "-i", "base.tar"]).success();
    }
    bed
}

pub fn write(bed: &Bed, path: &str, content: impl AsRef<[u8]>) {
    let path = bed.path(path);
    fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
    fs::write(path, content).expect("write a file");
}

fn digest(bed: &Bed, store: &str, name: &str) -> String {
    on(bed, store, &["inspect", "--format", "{{.Digest}}", name]).success().stdout
}

const PROGRAM: &str = "FROM base AS make\nCOPY src /src\nRUN mkdir /out && cp /src/a /out/ && date > /dev/null\n\
    FROM base\nWORKDIR /app\nCOPY --from=make /out .\nCOPY --chown=5:6 src/b .\nRUN echo made > made\nCMD [\"cat\", \"a\"]\n";

#[test]
fn the_same_inputs_make_the_same_image() {
    let bed = bed(&["one", "two"]);
    for folder in ["here", "elsewhere/deep"] {
        write(&bed, &format!("{folder}/Dockerfile"), PROGRAM);
        write(&bed, &format!("{folder}/src/a"), "a\n");
        write(&bed, &format!("{folder}/src/b"), "b\n");
    }
    on(&bed, "one", &["build", "-t", "app", "here"]).success();
    let first = digest(&bed, "one", "app");
    // Another store, another folder, other times, and nothing kept.
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for file in ["a", "b"] {
        let file = fs::File::open(bed.path("elsewhere/deep/src").join(file)).expect("open");
        file.set_modified(old).expect("set a time");
    }
    on(&bed, "two", &["build", "-t", "app", "elsewhere/deep"]).success();
    assert_eq!(digest(&bed, "two", "app"), first);
    on(&bed, "two", &["build", "--no-cache", "-t", "again", "elsewhere/deep"]).success();
    assert_eq!(digest(&bed, "two", "again"), first);
    // All that the image says of times is the epoch, or what it was told.
    on(&bed, "two", &["build", "--timestamp", "86400", "-t", "dated", "here"]).success();
    let created = on(&bed, "two", &["inspect", "--format", "{{.Created}}", "dated"]).success().stdout;
    assert_eq!(created.trim(), "1970-01-02T00:00:00Z");
    assert_ne!(digest(&bed, "two", "dated"), first);
    on(&bed, "two", &["check"]).success();
}

#[test]
fn a_second_build_runs_nothing_and_a_changed_file_only_what_depends_on_it() {
    let bed = bed(&["store"]);
    write(&bed, "c/Dockerfile", "FROM base\nRUN echo first\nCOPY a /a\nRUN cat /a\nCOPY b /b\n");
    write(&bed, "c/a", "1");
    write(&bed, "c/b", "1");
    let steps = |args: &[&str]| {
        let out = on(&bed, "store", &[&["build", "--progress", "plain", "-t", "app", "c"], args].concat());
        let out = out.success().stderr;
        let cached = out.lines().filter(|l| l.ends_with("CACHED")).count();
        let done = out.lines().filter(|l| l.contains(" DONE ")).count();
        (cached, done)
    };
    assert_eq!(steps(&[]), (0, 4));
    assert_eq!(steps(&[]), (4, 0));
    // Its time alone is no change.
    fs::File::open(bed.path("c/a"))
        .and_then(|f| f.set_modified(std::time::SystemTime::UNIX_EPOCH))
        .expect("touch");
    assert_eq!(steps(&[]), (4, 0));
    write(&bed, "c/b", "2");
    assert_eq!(steps(&[]), (3, 1));
    let why = |content: &str| {
        write(&bed, "c/b", content);
        let out = on(&bed, "store", &["build", "--progress", "plain", "-t", "other", "c"]).success();
        out.stderr.lines().find_map(|l| l.split_once("not from the cache: ")).map(|(_, why)| why.to_owned())
    };
    assert_eq!(why("3").as_deref(), Some("b has changed"));
    assert_eq!(why("3"), None);
    write(&bed, "c/b", "2");
    write(&bed, "c/a", "2");
    assert_eq!(steps(&[]), (1, 3));
    // What was there before is still there.
    write(&bed, "c/a", "1");
    assert_eq!(steps(&[]), (4, 0));
    assert_eq!(steps(&["--no-cache"]), (0, 4));
}

#[test]
fn caches_go_from_machine_to_machine() {
    let bed = bed(&["one", "two", "three", "four"]);
    write(&bed, "c/Dockerfile", PROGRAM);
    write(&bed, "c/src/a", "a\n");
    write(&bed, "c/src/b", "b\n");
    let cached = |out: &Output| out.stderr.lines().filter(|l| l.ends_with("CACHED")).count();
    for mode in ["min", "max"] {
        let to = format!("type=local,dest=cache-{mode},mode={mode}");
        on(&bed, "one", &["build", "-t", "app", "--cache-to", &to, "c"]).success();
    }
    for (store, mode) in [("two", "min"), ("three", "max")] {
        let from = format!("type=local,src=cache-{mode}");
        let out = on(&bed, store, &["build", "-t", "app", "--cache-from", &from, "c"]).success();
        assert_eq!((cached(&out), out.stderr.contains(" DONE ")), (6, false), "{out:?}");
        assert_eq!(digest(&bed, store, "app"), digest(&bed, "one", "app"));
        on(&bed, store, &["check"]).success();
    }
    // What an intermediate stage made is not in the small cache: it is made again when it is needed after all.
    let changed = PROGRAM.replace("cp /src/a /out/", "cp /src/a /src/b /out/");
    write(&bed, "c/Dockerfile", changed);
    let out = on(&bed, "four", &["build", "-t", "app", "--cache-from", "type=local,src=cache-min", "c"]);
    assert!(out.success().stderr.contains("made again"));
    // An image can have its own cache with it.
    write(&bed, "c/Dockerfile", PROGRAM);
    on(
        &bed,
        "one",
        &["build", "-t", "inline", "--cache-to", "type=inline", "-o", "type=oci,dest=i,tar=false", "c"],
    )
    .success();
    let bed = bed;
    on(&bed, "five", &["load", "-i", "base.tar"]).success();
    let out = on(&bed, "five", &["build", "-t", "app", "--cache-from", "type=local,src=i", "c"]).success();
    assert_eq!(cached(&out), 6, "{out:?}");
    // One that is not there is no reason to fail.
    let out =
        on(&bed, "five", &["build", "-t", "app", "--cache-from", "type=local,src=nowhere", "c"]).success();
    assert!(out.stderr.contains("warning: cache"), "{out:?}");
}

/// What is made again counts from then on, and so does what comes after it.
#[test]
fn without_the_cache_everything_is_new() {
    let bed = bed(&["store"]);
    write(
        &bed,
        "c/Dockerfile",
        "FROM base AS one\nRUN date +%s.%N > /now; cat /proc/sys/kernel/random/uuid > /id\nFROM base\nCOPY --from=one /id /id\nRUN cat /id\n",
    );
    let id = |more: &[&str]| {
        on(&bed, "store", &[&["build", "-t", "app", "-o", "out", "-o", "type=image", "c"], more].concat())
            .success();
        let written = fs::read_to_string(bed.path("out/id")).expect("the image's /id");
        fs::remove_dir_all(bed.path("out")).expect("remove");
        (written, digest(&bed, "store", "app"))
    };
    let first = id(&[]);
    assert_eq!(id(&[]), first);
    let second = id(&["--no-cache"]);
    assert!(second.0 != first.0 && second.1 != first.1);
    assert_eq!(id(&[]), second, "the newest counts");
    let third = id(&["--no-cache-filter", "one"]);
    assert!(third.0 != second.0 && third.1 != second.1);
    assert_eq!(id(&[]), third);
    on(&bed, "store", &["check"]).success();
}

#[test]
fn step_by_step_as_buildah_does() {
    let bed = bed(&["store"]);
    write(&bed, "a", "a\n");
    let do_it = |args: &[&str]| on(&bed, "store", args).success();
    assert_eq!(do_it(&["from", "base"]).stdout, "base-working-container\n");
    assert_eq!(do_it(&["from", "--name", "mine", "base"]).stdout, "mine\n");
    let out = do_it(&[
        "run",
        "-e",
        "A=$x \"q\" \\",
        "--user",
        "1000",
        "--workingdir",
        "/home",
        "mine",
        "--",
        "sh",
        "-c",
        "echo \"$A\"; pwd",
    ]);
    assert!(out.stderr.contains("$x \"q\" \\") && out.stderr.contains("/home"), "{out:?}");
    do_it(&["run", "mine", "--", "sh", "-c", "echo made > /made"]);
    do_it(&["copy", "--chown", "5:6", "mine", "a", "/d/"]);
    do_it(&[
        "config",
        "--env",
        "Z=1",
        "--cmd",
        "[\"cat\", \"/made\"]",
        "--label",
        "l=v",
        "--port",
        "80",
        "--user",
        "user",
        "mine",
    ]);
    // What a container needs stays, whoever tidies up.
    do_it(&["rmi", "base"]);
    do_it(&["prune", "--build-cache"]);
    do_it(&["prune", "--force", "--all"]);
    do_it(&["commit", "--rm", "mine", "result"]);
    assert_eq!(do_it(&["containers", "--format", "{{.Name}}"]).stdout, "base-working-container\n");
    let config =
        do_it(&["inspect", "--format", "{{.Config.Cmd}} {{.Config.User}} {{.Config.Labels.l}}", "result"])
            .stdout;
    assert_eq!(config, "[cat /made] user v\n");
    let history = do_it(&["history", "--no-trunc", "--format", "{{.CreatedBy}}", "result"]).stdout;
    assert!(!history.contains("USER ") && history.contains("COPY --chown=5:6"), "{history}");
    write(
        &bed,
        "c/Dockerfile",
        "FROM result\nUSER root\nRUN [ \"$(cat /made)\" = made ] && [ \"$(cat /d/a)\" = a ]\n",
    );
    do_it(&["build", "c"]);
    let out = on(&bed, "store", &["run", "nobody", "--", "true"]);
    assert!(out.code == Some(125) && out.stderr.contains("no container nobody"), "{out:?}");
    do_it(&["rm", "--all"]);
    do_it(&["check"]);
}

#[test]
fn diff_lists_what_a_command_makes_otherwise() {
    let bed = bed(&["store"]);
    write(
        &bed,
        "c/Dockerfile",
        "FROM base\nARG N\nRUN mkdir /d && echo $N > /d/f && echo same > /d/g && touch /only-$N\n",
    );
    for n in ["1", "2"] {
        on(&bed, "store", &["build", "-t", &format!("n:{n}"), "--build-arg", &format!("N={n}"), "c"])
            .success();
    }
    let out = on(&bed, "store", &["diff", "n:1", "n:2", "--format", "{{.Change}} {{.Path}} {{.What}}"]);
    assert_eq!((out.code, out.stdout.as_str()), (Some(1), "C /d/f content\nD /only-1 gone\nA /only-2 new\n"));
    let out = on(&bed, "store", &["diff", "n:1", "n:1"]);
    assert_eq!((out.code, out.stdout.as_str()), (Some(0), ""));
}

/// THREATS: secrets are in no layer, history, log, record or left-over file.
#[test]
fn secrets_leave_no_trace() {
    let bed = bed(&["store"]);
    const SECRET: &str = "hush-7f3a9c";
    write(&bed, "secret.txt", SECRET);
    write(
        &bed,
        "c/Dockerfile",
        "FROM base\nRUN --mount=type=secret,id=a --mount=type=secret,id=b,env=B [ \"$(cat /run/secrets/a)\" = \"$B\" ] \
         && echo done > /done\nRUN --mount=type=secret,id=a,target=/deep/er/file cat /deep/er/file > /dev/null\n",
    );
    let secrets = ["--secret", "id=a,src=secret.txt", "--secret", "id=b,src=secret.txt"];
    let to =
        ["--cache-to", "type=local,dest=cache,mode=max", "-o", "type=oci,dest=out.tar", "-t", "app", "c"];
    on(&bed, "store", &[&["build"], &secrets[..], &to[..]].concat()).success();
    // And of a command that fails.
    write(&bed, "c/Failing", "FROM base\nRUN --mount=type=secret,id=b,env=B false\n");
    assert_eq!(
        on(&bed, "store", &[&["build", "-f", "c/Failing", "c"], &secrets[..]].concat()).code,
        Some(125)
    );
    let found = |path: &Path| {
        let out = Command::new("grep").args(["-rl", SECRET]).arg(path).output().expect("grep");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    for place in ["store", "cache", "out.tar", "tmp"] {
        assert_eq!(found(&bed.path(place)), "", "{place}");
    }
    assert!(!found(&bed.path("secret.txt")).is_empty(), "the search finds what there is");
    for args in [&["history", "--no-trunc", "app"][..], &["inspect", "app"]] {
        assert!(!on(&bed, "store", args).success().stdout.contains(SECRET));
    }
}

#[test]
fn many_builds_and_whoever_tidies_up_at_the_same_time() {
    let bed = bed(&["store"]);
    write(&bed, "c/Dockerfile", PROGRAM);
    write(&bed, "c/src/a", "a\n");
    write(&bed, "c/src/b", "b\n");
    on(&bed, "store", &["build", "-t", "first", "c"]).success();
    let first = digest(&bed, "store", "first");
    for more in [&[][..], &["--no-cache"]] {
        on(&bed, "store", &["rmi", "first"]);
        on(&bed, "store", &["prune", "--build-cache"]).success();
        std::thread::scope(|scope| {
            for n in 0..4 {
                let name = format!("app:{n}");
                let mut build = command(&bed, "store", &[&["build", "-t", &name, "c"], more].concat());
                scope.spawn(move || finish(&mut build).success());
            }
            for _ in 0..3 {
                on(&bed, "store", &["prune", "--force"]).success();
                on(&bed, "store", &["prune", "--build-cache"]).success();
            }
        });
        for n in 0..4 {
            assert_eq!(digest(&bed, "store", &format!("app:{n}")), first);
        }
        on(&bed, "store", &["check"]).success();
    }
}

#[test]
fn a_layer_made_of_the_one_before_is_what_it_would_be_anew() {
    let bed = bed(&["store"]);
    write(
        &bed,
        "c/Dockerfile",
        "FROM base\nCOPY tree /app\nCOPY tree /bin/\nRUN cat /app/*/f* > /all && ls -R /app /bin > /names\n",
    );
    for n in 0..100 {
        write(&bed, &format!("c/tree/d{}/f{n}", n % 8), format!("content {n}\n"));
    }
    write(&bed, "c/tree/date", "not the date\n");
    let run = |program: &str, args: &[&str]| {
        assert!(
            Command::new(program)
                .args(args)
                .current_dir(bed.path("c/tree"))
                .status()
                .expect(program)
                .success()
        );
    };
    let mut n = 0;
    let mut same = |what: &str| {
        n += 1;
        let out = on(&bed, "store", &["build", "-t", "app", "c"]).success();
        on(&bed, &format!("clean{n}"), &["load", "-i", "base.tar"]).success();
        on(&bed, &format!("clean{n}"), &["build", "-t", "app", "c"]).success();
        assert_eq!(digest(&bed, "store", "app"), digest(&bed, &format!("clean{n}"), "app"), "{what}");
        let over = Command::new("find")
            .arg(bed.path("store/steps"))
            .args(["-name", "over-*"])
            .output()
            .expect("find");
        (out.stderr, String::from_utf8_lossy(&over.stdout).lines().count())
    };
    assert_eq!(same("new").1, 0);
    write(&bed, "c/tree/d3/f11", "another\n");
    assert_eq!(same("edited").1, 2);
    write(&bed, "c/tree/d3/more/new", "new\n");
    run("rm", &["d4/f12"]);
    run("rm", &["-r", "d5/f13", "d5/f21"]);
    assert_eq!(same("more and less").1, 4);
    run("chmod", &["700", "d6"]);
    run("ln", &["-s", "f14", "d6/link"]);
    assert_eq!(same("modes and links").1, 6);
    // A layer is kept by what is new in it, above the first, until it is read.
    let spliced = || fs::read_dir(bed.path("store/spliced")).map_or(0, Iterator::count);
    assert_eq!(spliced(), 6);
    on(&bed, "store", &["check"]).success();
    on(&bed, "store", &["prune", "--force"]).success();
    assert_eq!(spliced(), 2);
    on(&bed, "store", &["save", "--format", "oci-archive", "-o", "app.tar", "app"]).success();
    assert_eq!(spliced(), 0);
    on(&bed, "taken", &["load", "-i", "app.tar"]).success();
    assert_eq!(digest(&bed, "taken", "app"), digest(&bed, "store", "app"));
    on(&bed, "store", &["check"]).success();
    // What was over something of the base brings it back, which a tree above another would hide.
    run("rm", &["date"]);
    assert_eq!(same("a lower file comes back").1, 7);
    // What a build has made that failed is no hindrance to the next.
    write(&bed, "c/tree/d3/f11", "not yet\n");
    let failing = "FROM base\nCOPY tree /app\nCOPY tree /bin/\nRUN false\n";
    let dockerfile = fs::read_to_string(bed.path("c/Dockerfile")).expect("the Dockerfile");
    write(&bed, "c/Dockerfile", failing);
    assert_eq!(on(&bed, "store", &["build", "c"]).code, Some(125));
    write(&bed, "c/Dockerfile", dockerfile);
    write(&bed, "c/tree/d3/f11", "now\n");
    assert_eq!(same("after a failure").1, 11);
    // The tree below goes with its image; what lay above it is made of the archive.
    on(&bed, "store", &["prune", "--force"]).success();
    write(&bed, "c/Dockerfile", "FROM base\nCOPY tree /app\nCOPY tree /bin/\nRUN ls -R /app /bin > /names\n");
    same("another command");
    run("rm", &["-r", "d1"]);
    run("ln", &["d2/f2", "d2/hard"]);
    same("hard links");
    write(&bed, "c/tree/d2/f2", "changed\n");
    same("a file with two names");
    run("rm", &["-r", "d2"]);
    write(&bed, "c/tree/d2", "a file now\n");
    same("a file in a folder's place");
}

#[test]
fn a_base_of_one_layer_may_say_that_a_folder_hides_what_is_below() {
    let bed = bed(&["store"]);
    let empty = |path: &str| (Header::new(Kind::File, path), Vec::new());
    let folder = |path: &str| (Header::new(Kind::Directory, path), Vec::new());
    let layer = harness::image::layer([
        folder("d"),
        empty("d/.wh..wh..opq"),
        empty("d/.wh.gone"),
        (Header { size: 1, ..Header::new(Kind::File, "d/f") }, b"f".to_vec()),
    ]);
    write(&bed, "one.tar", harness::image::make("one", vec![layer], &json!({})).archive);
    on(&bed, "store", &["load", "-i", "one.tar"]).success();
    write(&bed, "c/a", "a\n");
    let dockerfile = "FROM one AS made\nCOPY a /d/a\nCOPY a /d/gone\nFROM base\nCOPY --from=made /d /d\n\
        RUN ls /d > /names\n";
    write(&bed, "c/Dockerfile", dockerfile);
    on(&bed, "store", &["build", "-t", "app", "c"]).success();
    write(&bed, "c/Dockerfile", "FROM app\nRUN cat /names /d/a && false\n");
    let out = on(&bed, "store", &["build", "--progress", "plain", "c"]);
    for line in ["a", "f", "gone"] {
        assert!(out.stderr.lines().any(|l| l.ends_with(&format!(" {line}"))), "{}", out.stderr);
    }
}

#[test]
fn several_layers_are_squashed_into_one_that_holds_the_same() {
    let bed = bed(&["store"]);
    write(&bed, "c/a", "a\n");
    write(
        &bed,
        "c/Dockerfile",
        "FROM base\nRUN mkdir -p /d/e && echo 1 > /d/e/f && echo 2 > /d/g && ln /d/g /d/h\n\
        COPY a /d/a\nRUN rm /bin/date && rm -r /d/e && mkdir /d/e && echo 3 > /d/e/n\n\
        RUN rm /d/g && echo 4 > /d/a && ln -s a /d/l\n",
    );
    on(&bed, "store", &["build", "-t", "plain", "c"]).success();
    let layers = |name: &str| {
        let out = on(&bed, "store", &["inspect", "--format", "{{len .RootFS.Layers}}", name]).success();
        out.stdout.trim().to_owned()
    };
    assert_eq!(layers("plain"), "5");
    for (flag, name, count) in [("--squash", "new", "2"), ("--squash-all", "all", "1")] {
        for compression in ["none", "gzip"] {
            let name = format!("{name}-{compression}");
            on(&bed, "store", &["build", flag, "--compression", compression, "-t", &name, "c"]).success();
            assert_eq!(layers(&name), count, "{name}");
            let diff = on(&bed, "store", &["diff", "plain", &name]).success();
            assert!(!diff.stdout.contains("/d") && !diff.stdout.contains("/bin"), "{name}: {diff:?}");
            let history = on(&bed, "store", &["history", &name]).success().stdout;
            assert!(history.contains("squash"), "{history}");
        }
    }
    on(&bed, "store", &["check"]).success();
    // What was made is there for the next build, and the image is a base like others.
    let out = on(&bed, "store", &["build", "--squash", "-t", "again", "c"]).success();
    assert!(out.stderr.contains("4 of 4 steps"), "{out:?}");
    write(
        &bed,
        "c/Next",
        "FROM new-gzip\nRUN cat /d/h /d/a /d/l /d/e/n > /all && [ ! -e /d/e/f ] && [ ! -e /bin/date ]\n",
    );
    on(&bed, "store", &["build", "-f", "c/Next", "c"]).success();
}

#[test]
fn what_an_image_holds_and_is_made_of_is_told_beside_it() {
    let bed = bed(&["store"]);
    write(&bed, "c/lib/apk/db/installed", "P:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\n\n");
    write(&bed, "c/app/Cargo.lock", "[[package]]\nname = \"x\"\nversion = \"2.0.0\"\n");
    write(&bed, "c/secret", "hidden\n");
    write(
        &bed,
        "c/Dockerfile",
        "FROM base\nARG V=1\nCOPY lib /lib\nCOPY app /app\nRUN --mount=type=secret,id=s cat /run/secrets/s > /dev/null\n",
    );
    let args = ["build", "--sbom", "--secret", "id=s,src=c/secret", "--build-arg", "V=value", "-t", "app"];
    on(&bed, "store", &[&args[..], &["--provenance=mode=max", "c"]].concat()).success();
    let blob = |digest: &Value| -> Value {
        let digest = digest.as_str().expect("a digest").replacen(':', "/", 1);
        serde_json::from_slice(&fs::read(bed.path("store/blobs").join(digest)).expect("a blob"))
            .expect("JSON")
    };
    let index = on(&bed, "store", &["manifest", "inspect", "app"]).success().stdout;
    let index: Value = serde_json::from_str(&index).expect("an index");
    let image = &index["manifests"][0];
    let beside = &index["manifests"][1];
    assert_eq!(beside["annotations"]["vnd.docker.reference.digest"], image["digest"]);
    assert_eq!(beside["annotations"]["vnd.docker.reference.type"], "attestation-manifest");
    let manifest = blob(&beside["digest"]);
    let statements: Vec<Value> =
        manifest["layers"].as_array().expect("layers").iter().map(|l| blob(&l["digest"])).collect();
    for statement in &statements {
        let digest = statement["subject"][0]["digest"]["sha256"].as_str().expect("a digest");
        assert_eq!(image["digest"], format!("sha256:{digest}"));
    }
    let [sbom, provenance] = &statements[..] else { panic!("{statements:?}") };
    assert_eq!(sbom["predicateType"], "https://spdx.dev/Document");
    let urls: Vec<&Value> = sbom["predicate"]["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .filter_map(|p| p.pointer("/externalRefs/0/referenceLocator"))
        .collect();
    assert_eq!(urls, ["pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64", "pkg:cargo/x@2.0.0"]);
    assert_eq!(provenance["predicateType"], "https://slsa.dev/provenance/v1");
    let definition = &provenance["predicate"]["buildDefinition"];
    assert_eq!(definition["externalParameters"]["request"]["args"]["V"], "value");
    assert_eq!(definition["externalParameters"]["request"]["secrets"], json!(["s"]));
    assert_eq!(definition["resolvedDependencies"][0]["uri"], "pkg:docker/base@latest");
    assert!(!provenance.to_string().contains("hidden"));
    // It is said of the digest that others get, too.
    for layer in blob(&image["digest"])["layers"].as_array().expect("layers") {
        assert!(layer["mediaType"].as_str().is_some_and(|t| t.ends_with("+gzip")), "{layer}");
    }
    // The same again says the same, and less says less.
    let first = digest(&bed, "store", "app");
    on(&bed, "store", &[&args[..], &["--no-cache", "--provenance=mode=max", "c"]].concat()).success();
    assert_eq!(digest(&bed, "store", "app"), first);
    on(&bed, "store", &[&args[..], &["--provenance", "c"]].concat()).success();
    let out = on(&bed, "store", &["manifest", "inspect", "app"]).success().stdout;
    let index: Value = serde_json::from_str(&out).expect("an index");
    let manifest = blob(&index["manifests"][1]["digest"]);
    let statement = blob(&manifest["layers"][1]["digest"]);
    assert!(!statement.to_string().contains("value"), "{statement}");
    // It is an image like others.
    on(&bed, "store", &["unpack", "app", "bundle"]).success();
    assert!(bed.path("bundle/rootfs/app/Cargo.lock").exists());
    on(&bed, "store", &["cp", "app", "oci:layout:app"]).success();
    on(&bed, "other", &["pull", "oci:layout:app"]).success();
    write(&bed, "n/Dockerfile", "FROM app\nRUN [ -e /app/Cargo.lock ]\n");
    on(&bed, "store", &["build", "n"]).success();
    on(&bed, "store", &["save", "-o", "app.tar", "app"]).success();
    on(&bed, "store", &["check"]).success();
}

#[test]
fn with_a_single_id_owners_are_written_down_and_the_image_is_the_same() {
    let Some(_) = need::program("setpriv") else { return };
    let bed = bed(&["store"]);
    write(
        &bed,
        "c/Dockerfile",
        "FROM base\n\
        COPY --chown=3:4 passwd /etc/passwd\n\
        RUN mkdir -p /home/app /d/e && touch /f /g /home/app/y && chmod 4755 /f && chown 33:33 /f && chown -R 1000:1000 /home && chown 0:44 /g\n\
        RUN cd /d && ln -s /d/e /l && chown 12:13 /l && chown 14:15 /l/. ../g && chown 0:0 /g\n\
        USER app\nWORKDIR /home/app\n\
        RUN mkdir d && echo hi > d/x && echo more >> y\n\
        USER root\n\
        RUN chown 7:8 d/x; chown 9:9 /nowhere 2>/dev/null || echo failed > /said\n\
        # A link that leads out of the root ends in it.\n\
        RUN mkdir /outside2 && ln -s /../../../../outside2 /o && chown 5:5 /o && (cd /outside2 && chown 6:6 ../../d)\n",
    );
    write(&bed, "c/passwd", "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n");
    on(&bed, "store", &["build", "-t", "app", "c"]).success();
    harness::bed::host("chown", &["-Rh", "4322:4322", &bed.path("").to_string_lossy()]);
    let as_user = |args: &[&str]| {
        let plain = command(&bed, "user", args);
        let mut user = Command::new("setpriv");
        user.args([
            "--reuid",
            "4322",
            "--regid",
            "4322",
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
        ]);
        user.arg(plain.get_program()).args(plain.get_args()).current_dir(bed.path("")).env_clear();
        user.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        finish(&mut user)
    };
    as_user(&["load", "-i", "base.tar"]).success();
    let out = as_user(&["build", "-t", "app", "c"]).success();
    assert!(out.stderr.contains("single id"), "{out:?}");
    let digest_there = as_user(&["inspect", "--format", "{{.Digest}}", "app"]).success().stdout;
    let diff = as_user(&["history", "--no-trunc", "app"]).stdout;
    assert_eq!(digest_there, digest(&bed, "store", "app"), "{diff}");
    let out = as_user(&["build", "--min-isolation", "rootless", "c"]);
    assert!(out.code == Some(125) && out.stderr.contains("--min-isolation rootless"), "{out:?}");
    let out = on(&bed, "store", &["build", "--isolation", "single", "c"]);
    assert!(out.code == Some(125) && out.stderr.contains("this is root"), "{out:?}");
}

#[test]
fn a_working_container_is_changed_by_hand() {
    let Some(_) = need::root() else { return };
    let bed = bed(&["store"]);
    on(&bed, "store", &["from", "--name", "w", "base"]).success();
    let folder = on(&bed, "store", &["mount", "w"]).success().stdout.trim().to_owned();
    assert_eq!(on(&bed, "store", &["mount", "w"]).success().stdout.trim(), folder, "once more is the same");
    assert!(on(&bed, "store", &["mount"]).success().stdout.contains(&folder));
    let inside = Path::new(&folder);
    fs::write(inside.join("one"), "1\n").expect("write");
    fs::remove_file(inside.join("bin/date")).expect("remove");
    // Others see it, and it goes on.
    on(&bed, "store", &["run", "w", "--", "/bin/sh", "-c", "cat /one > /two && [ ! -e /bin/date ]"])
        .success();
    assert_eq!(fs::read_to_string(inside.join("two")).expect("what was run"), "1\n");
    fs::write(inside.join("three"), "3\n").expect("write");
    // While somebody is in it, nothing is taken away.
    let open = fs::File::create(inside.join("four")).expect("create");
    let out = on(&bed, "store", &["commit", "w", "early"]);
    assert!(out.code != Some(0) && out.stderr.contains("somebody uses"), "{out:?}");
    drop(open);
    on(&bed, "store", &["commit", "w", "app"]).success();
    assert!(inside.join("three").exists(), "it is still mounted");
    fs::write(inside.join("late"), "").expect("write");
    assert_eq!(on(&bed, "store", &["umount", "w"]).success().stdout.trim(), folder);
    assert!(!inside.exists());
    on(&bed, "store", &["commit", "--squash", "w", "last"]).success();
    write(
        &bed,
        "c/Dockerfile",
        "FROM app\nRUN [ ! -e /late ] && [ ! -e /bin/date ] && cat /one /two /three /four\n",
    );
    on(&bed, "store", &["build", "c"]).success();
    write(&bed, "c/Dockerfile", "FROM last\nRUN [ -e /late ] && cat /one /two /three /four\n");
    on(&bed, "store", &["build", "c"]).success();
    // Removed, it leaves nothing; a scratch container begins with nothing.
    let folder = on(&bed, "store", &["mount", "w"]).success().stdout;
    on(&bed, "store", &["rm", "w"]).success();
    assert!(!Path::new(folder.trim()).exists());
    on(&bed, "store", &["from", "--name", "s", "scratch"]).success();
    let folder = on(&bed, "store", &["mount", "s"]).success().stdout.trim().to_owned();
    fs::write(Path::new(&folder).join("only"), "").expect("write");
    // As after a new start of the machine.
    harness::bed::host("umount", &[&folder]);
    on(&bed, "store", &["mount", "s"]).success();
    assert!(Path::new(&folder).join("only").exists());
    on(&bed, "store", &["umount", "--all"]).success();
    on(&bed, "store", &["commit", "s", "scratched"]).success();
    on(&bed, "store", &["check"]).success();
}

#[test]
fn a_command_has_a_network_of_its_own() {
    let bed = bed(&["store"]);
    write(&bed, "c/Dockerfile", "FROM base\nRUN cat /proc/net/dev /proc/net/route /etc/resolv.conf\n");
    let mut without = command(&bed, "store", &["build", "--network", "private", "c"]);
    let out = finish(without.env("PATH", "/nowhere"));
    assert!(out.code == Some(125) && out.stderr.contains("slirp4netns"), "{out:?}");
    for (program, nameserver) in [("pasta", "169.254.1.1"), ("slirp4netns", "10.0.2.3")] {
        if !Path::new("/dev/net/tun").exists() || need::program(program).is_none() {
            continue;
        }
        let args = ["build", "--no-cache", "--progress", "plain", "--network", program, "c"];
        let out = on(&bed, "store", &args).success().stderr;
        assert!(out.contains(&format!("nameserver {nameserver}")), "{out}");
        // A way out, whatever its interface is called: a route for all addresses.
        let route = |line: &str| {
            line.split_whitespace().skip_while(|w| w.starts_with('#')).nth(2) == Some("00000000")
        };
        assert!(out.lines().any(route), "{out}");
    }
    write(&bed, "c/Dockerfile", "FROM base\nRUN --network=none ! grep -v -e lo: -e '|' /proc/net/dev\n");
    on(&bed, "store", &["build", "c"]).success();
}

#[test]
fn variables_of_files_and_docker_s_longer_words() {
    let bed = bed(&["store"]);
    write(&bed, "c/Dockerfile", "FROM base\nENV A=dockerfile\n");
    write(&bed, "vars", "# a comment\nA=file\nB=with = signs\nFROM_HOST\nUNSET\n");
    let mut build = command(
        &bed,
        "store",
        &["image", "build", "--env-file", "vars", "--env", "C=flag", "-t", "app", "c"],
    );
    finish(build.env("FROM_HOST", "host")).success();
    let env =
        on(&bed, "store", &["image", "inspect", "--format", "{{json .Config.Env}}", "app"]).success().stdout;
    let env: Vec<String> = serde_json::from_str(&env).expect("JSON");
    assert_eq!(env, ["PATH=/bin", "A=file", "B=with = signs", "FROM_HOST=host", "C=flag"]);
    write(&bed, "vars", "no name=x\n");
    let out = on(&bed, "store", &["build", "--env-file", "vars", "c"]);
    assert!(out.code == Some(125) && out.stderr.contains("vars:1"), "{out:?}");
    on(&bed, "store", &["image", "rm", "app"]).success();
    assert!(!on(&bed, "store", &["image", "ls"]).success().stdout.contains("app"));
    on(&bed, "store", &["builder", "prune"]).success();
}

#[test]
fn an_agent_is_where_programs_look_for_it() {
    let bed = bed(&["store"]);
    let socket = bed.path("agent");
    let agent = std::os::unix::net::UnixListener::bind(&socket).expect("bind a socket");
    write(
        &bed,
        "c/Dockerfile",
        "FROM base\nRUN --mount=type=ssh [ -S \"$SSH_AUTH_SOCK\" ]\n\
        RUN --mount=type=ssh,id=other,target=/a/sock,required [ \"$SSH_AUTH_SOCK\" = /a/sock ] && [ -S /a/sock ]\n\
        RUN [ -z \"$SSH_AUTH_SOCK\" ] && [ ! -e /a ]\n",
    );
    let of = socket.to_string_lossy();
    let (one, other) = (format!("default={of}"), format!("other={of}"));
    on(&bed, "store", &["build", "--ssh", &one, "--ssh", &other, "c"]).success();
    let out = on(&bed, "store", &["build", "--no-cache", "--ssh", "default=host-file", "c"]);
    assert!(out.code == Some(125) && out.stderr.contains("--ssh default=host-file"), "{out:?}");
    drop(agent);
}

#[test]
fn errors_show_the_line_and_change_nothing() {
    let bed = bed(&["store"]);
    let failing = "FROM base\n# about\nRUN echo before && \\\n    exit 3\nRUN true\n";
    for (dockerfile, expected) in [
        (failing, "berth-builder: Dockerfile:3: the command failed with exit code 3\n"),
        (
            "FROM base\nCOPY nowhere /\n",
            "berth-builder: Dockerfile:2: \"nowhere\": not found in the build context c\n",
        ),
        (
            "FROM --platform=linux/riscv64 scratch\nCOPY Dockerfile /a\nRUN [\"/a\"]\n",
            "berth-builder: Dockerfile:3: this is a program for riscv64, and this machine (",
        ),
        ("FROM base\nRUNN x\n", "berth-builder: Dockerfile:2: unknown instruction \"RUNN\"\n"),
        ("FROM base\nCOPY --chwon=1 a b\n", "berth-builder: Dockerfile:2: COPY has no flag --chwon\n"),
    ] {
        write(&bed, "c/Dockerfile", dockerfile);
        let out = on(&bed, "store", &["build", "-t", "app", "c"]);
        assert_eq!(out.code, Some(125), "{out:?}");
        let told = out.stderr.find("berth-builder: ").map_or("", |at| &out.stderr[at..]);
        assert!(told.starts_with(expected), "{dockerfile}: {told}");
        assert!(told.contains(" | ") && told.contains("^^^"), "{told}");
        assert_eq!(on(&bed, "store", &["inspect", "app"]).code, Some(125));
    }
    write(&bed, "c/Dockerfile", failing);
    let out = on(&bed, "store", &["build", "--quiet", "-t", "app", "c"]);
    assert!(out.stderr.contains("before"), "what the command said is told: {out:?}");
    // A shell in its place.
    let mut command = Command::new("sh");
    command
        .args(["-c", "echo 'cat /left' | \"$0\" build --debug-shell -f c/Shell c"])
        .arg(harness::runtime::builder());
    command
        .current_dir(bed.path(""))
        .env("BERTH_ROOT", bed.path("store"))
        .env("BERTH_RUNTIME", harness::runtime::path());
    write(&bed, "c/Shell", "FROM base\nRUN echo found-it > /left; false\n");
    let out = finish(&mut command);
    assert!(out.code == Some(125) && out.stdout.contains("found-it"), "{out:?}");
    // All of it is on the disk.
    let logs = fs::read_dir(bed.path("store/logs")).expect("logs").flatten();
    assert!(logs.map(|l| fs::read_to_string(l.path()).unwrap_or_default()).any(|l| l.contains("before")));
}

/// THREATS: nothing of the context or of a stage leads to the host.
#[test]
fn links_lead_nowhere() {
    let bed = bed(&["store"]);
    write(&bed, "host-file", "host");
    let host = bed.path("host-file");
    let host = host.to_string_lossy();
    fs::create_dir_all(bed.path("c/d")).expect("make a folder");
    for name in ["c/out", "c/d/out"] {
        std::os::unix::fs::symlink(&*host, bed.path(name)).expect("link");
    }
    std::os::unix::fs::symlink("../..", bed.path("c/up")).expect("link");
    for (dockerfile, works) in [
        ("COPY out /got", false),
        ("COPY up/host-file /got", false),
        ("COPY ../host-file /got", false),
        ("ADD out /got", false),
        ("RUN --mount=type=bind,source=out,target=/got cat /got", false),
        ("RUN --mount=type=bind,target=/m ! cat /m/out && ! cat /m/d/out", true),
        ("COPY d /d\nRUN ! cat /d/out", true),
        (
            "RUN mkdir -p /x && ln -s / /x/root && ln -s ../../../../../.. /x/up\nCOPY d /x/root/got\nRUN ls /got",
            true,
        ),
    ] {
        write(&bed, "c/Dockerfile", format!("FROM base\n{dockerfile}\n"));
        let out = on(&bed, "store", &["build", "-t", "app", "c"]);
        assert_eq!(out.code, Some(if works { 0 } else { 125 }), "{dockerfile}: {out:?}");
        assert!(!bed.path("got").exists());
    }
}
