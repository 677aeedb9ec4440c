//! checkpoint and restore, with a criu that works on this kernel: `$BERTH_CRIU`, the peers' one, or the host's.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Bed, Bundle, host, need};

fn criu() -> Option<PathBuf> {
    need::ours()?;
    let given = std::env::var_os("BERTH_CRIU").map(PathBuf::from);
    let candidates = [given, Some("/var/cache/berth-peers/bin/criu".into()), host::which("criu")];
    let works = |path: &PathBuf| Command::new(path).arg("check").output().is_ok_and(|o| o.status.success());
    let found = candidates.into_iter().flatten().find(works);
    need::that(found.is_some(), "needs a criu that passes `criu check` on this kernel (BERTH_CRIU=PATH)")?;
    found
}

/// The runtime with pipes: files of the host that a container holds open cannot be saved.
fn spawn(bed: &Bed, args: &[&str]) -> Child {
    let mut command = bed.command();
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("start the runtime")
}

/// Waits for its success and hands out its pipes: they are the container's, too.
#[track_caller]
fn succeeds(mut child: Child) -> (ChildStdin, ChildStdout, ChildStderr) {
    let stdin = child.stdin.take().expect("a pipe");
    let ok = child.wait().expect("wait").success();
    let (stdout, mut stderr) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
    if !ok {
        let mut said = String::new();
        stderr.read_to_string(&mut said).expect("read");
        panic!("{said}");
    }
    (stdin, stdout, stderr)
}

/// Counts in a file, so that one sees where it went on.
fn counter<'a>(bed: &'a Bed) -> Bundle<'a> {
    bed.bundle().sh("i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.1; done")
}

fn count(bundle: &Bundle<'_>) -> u32 {
    fs::read_to_string(bundle.inside("/tmp/count")).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
}

#[track_caller]
fn counts_beyond(bundle: &Bundle<'_>, least: u32) {
    let patience = Instant::now() + Duration::from_secs(20);
    while count(bundle) <= least {
        assert!(Instant::now() < patience, "it does not count beyond {least}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_container_sleeps_on_disk_and_goes_on() {
    let Some(criu) = criu() else { return };
    let bed = Bed::new();
    let bundle = counter(&bed);
    let (criu, dir) = (criu.display().to_string(), bundle.dir.display().to_string());
    let (images, id) = (bed.path("images").display().to_string(), bundle.fresh_id());
    bundle.write(&id);
    bed.adopt(&id);
    let first = succeeds(spawn(&bed, &["run", "--detach", "--bundle", &dir, &id]));
    counts_beyond(&bundle, 5);

    bed.call(&["--criu", &criu, "checkpoint", "--image-path", &images, &id]).success();
    drop(first);
    let asleep = count(&bundle);
    bed.call(&["state", &id]).exits(1);
    bed.is_clean();

    let args = ["--criu", &criu, "restore", "--detach", "--bundle", &dir, "--image-path", &images, &id];
    let _pipes = succeeds(spawn(&bed, &args));
    counts_beyond(&bundle, asleep + 3);
    let state = bed.call(&["state", &id]).success().json();
    assert_eq!(state["status"], "running");
    bed.call(&["exec", &id, "true"]).success();
    bed.call(&["delete", "--force", &id]).success();
    bed.is_clean();
}

/// As a shim gives them: fifos and files of the host, of which the container has no mount.
#[test]
fn fifos_and_files_of_the_host_are_those_of_the_restore() {
    let Some(criu) = criu() else { return };
    let bed = Bed::new();
    let bundle =
        bed.bundle().sh("i=0; while :; do i=$((i+1)); echo $i; echo $i > /tmp/count; sleep 0.1; done");
    let (criu, dir) = (criu.display().to_string(), bundle.dir.display().to_string());
    let (images, id) = (bed.path("images").display().to_string(), bundle.fresh_id());
    bundle.write(&id);
    bed.adopt(&id);
    let open = |name: &str| {
        let path = bed.path(name);
        if name.starts_with("fifo") {
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("make a fifo");
        }
        // criu wants a file that is not only appended to to have its size as well.
        let mut options = fs::File::options();
        options.read(name.starts_with("fifo")).write(name.starts_with("fifo")).append(true).create(true);
        options.open(path).expect("open")
    };
    let run = |args: &[&str], names: [&str; 2]| {
        let mut command = bed.command();
        command.args(args).stdin(open(names[0])).stdout(open(names[1])).stderr(open("said"));
        let ok = command.status().expect("start the runtime").success();
        assert!(ok, "{args:?}: {}", fs::read_to_string(bed.path("said")).expect("read"));
    };
    run(&["run", "--detach", "--bundle", &dir, &id], ["fifo-before", "before"]);
    counts_beyond(&bundle, 3);
    bed.call(&["--criu", &criu, "checkpoint", "--image-path", &images, &id]).success();
    let asleep = count(&bundle);
    let args = ["--criu", &criu, "restore", "--detach", "--bundle", &dir, "--image-path", &images, &id];
    run(&args, ["fifo-after", "after"]);
    counts_beyond(&bundle, asleep + 3);
    let after = fs::read_to_string(bed.path("after")).expect("read what it said");
    let first = after.lines().next().and_then(|line| line.parse::<u32>().ok());
    assert!(first.is_some_and(|n| n >= asleep), "{asleep}, then {after:?}");
    bed.call(&["delete", "--force", &id]).success();
    bed.is_clean();
}

#[test]
fn leave_running_leaves_it_running_and_damaged_images_restore_nothing() {
    let Some(criu) = criu() else { return };
    let bed = Bed::new();
    let bundle = counter(&bed);
    let (criu, dir) = (criu.display().to_string(), bundle.dir.display().to_string());
    let (images, id) = (bed.path("images").display().to_string(), bundle.fresh_id());
    bundle.write(&id);
    bed.adopt(&id);
    let _pipes = succeeds(spawn(&bed, &["run", "--detach", "--bundle", &dir, &id]));
    counts_beyond(&bundle, 2);
    bed.call(&["--criu", &criu, "checkpoint", "--leave-running", "--image-path", &images, &id]).success();
    counts_beyond(&bundle, count(&bundle));
    bed.call(&["delete", "--force", &id]).success();

    fs::remove_file(bed.path("images").join("pstree.img")).expect("damage the images");
    let args = ["--criu", &criu, "restore", "--detach", "--bundle", &dir, "--image-path", &images, &id];
    bed.call(&args).fails_in_one_line();
    bed.is_clean();
}

#[test]
fn only_running_containers_can_be_saved() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let c = bed.bundle().args(["sleep", "1000"]).create();
    let said = format!(
        "checkpoint {}: cannot checkpoint a container that is created\nhint: only the processes of a running \
         container can be written to disk",
        c.id
    );
    c.verb("checkpoint").fails(1, &said);
    assert_eq!(c.status(), "created");
}
