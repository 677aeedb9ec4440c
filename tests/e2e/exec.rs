//! exec: another process in a running container, with everything that `run` would have given it.

use std::fs;

use harness::{Bed, json, need};

#[test]
fn exec_gives_output_input_and_exit_code() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    c.exec_sh("echo out; echo err >&2; exit 9").exits(9).stdout_is("out\n").stderr_is("err\n");
    let mut command = bed.command();
    let out = harness::command::finish_with_input(command.args(["exec", &c.id, "cat"]), "typed\n");
    out.success().stdout_is("typed\n");
}

#[test]
fn exec_joins_every_namespace_and_cgroup() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    let pid = c.pid();
    let script =
        "for n in pid net ipc uts mnt cgroup user; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup";
    let inside = c.exec_sh(script).success().stdout;
    let mut expected = String::new();
    for name in ["pid", "net", "ipc", "uts", "mnt", "cgroup", "user"] {
        let link = fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("namespace");
        expected.push_str(&format!("{}\n", link.display()));
    }
    let of_init = c.exec(&["cat", "/proc/1/cgroup"]).success().stdout;
    assert_eq!(inside, format!("{expected}{of_init}"));
    assert!(
        of_init.lines().all(|l| l.ends_with(":/")),
        "the cgroup namespace begins at the container: {of_init}"
    );
}

#[test]
fn exec_options_shape_the_process() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    let script = "id -u; id -g; id -G; pwd; echo $COLOUR";
    let options =
        ["--user", "1000:1000", "--cwd", "/tmp", "--env", "COLOUR=red", "--additional-gids", "2000"];
    let out = c.with("exec", &options, &["sh", "-c", script]).success();
    out.stdout_is("1000\n1000\n1000 2000\n/tmp\nred\n");
    let short =
        c.with("exec", &["-u", "1000", "-e", "COLOUR=blue"], &["sh", "-c", "id -u; echo $COLOUR"]).success();
    short.stdout_is("1000\nblue\n");
}

#[test]
fn exec_has_the_environment_of_the_container_and_a_home() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().env("COLOUR=green").idle();
    c.exec_sh("echo $COLOUR $HOME").success().stdout_is("green /root\n");
    c.with("exec", &["--user", "1000"], &["sh", "-c", "echo $HOME"]).success().stdout_is("/home\n");
}

#[test]
fn exec_takes_a_process_file() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    let file = bed.path("tmp/process.json");
    let process = json!({"args": ["sh", "-c", "id -u; pwd; echo $A; umask"], "cwd": "/tmp", "env": ["A=b", "PATH=/bin"],
        "user": {"uid": 1000, "gid": 1000, "umask": 0o27}});
    fs::write(&file, process.to_string()).expect("write process.json");
    c.with("exec", &["--process", &file.to_string_lossy()], &[]).success().stdout_is("1000\n/tmp\nb\n0027\n");
    fs::remove_file(&file).expect("remove process.json");
}

#[test]
fn exec_detached_writes_the_pid_file_and_returns() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let mut said = b.fifo("said");
    let mut go = b.fifo("go");
    let c = b.idle();
    let file = bed.path("pid");
    let options = ["--detach", "--pid-file", &file.to_string_lossy()];
    c.with("exec", &options, &["sh", "-c", "echo up > /said; read x < /go; echo $x > /said"]).success();
    assert_eq!(said.line(), "up");
    let pid: i32 = fs::read_to_string(&file).expect("pid file").parse().expect("a number and nothing else");
    assert_eq!(harness::host::status(pid, "Name"), "sh");
    go.say("on");
    assert_eq!(said.line(), "on");
    assert!(harness::command::gone_within(pid, harness::command::PATIENCE));
}

/// dockerd tells 126 from 127 by these words.
#[test]
fn a_command_that_cannot_be_executed_is_255_with_the_words_that_engines_look_for() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    fs::write(b.inside("bin/text"), "no program\n").expect("write");
    let c = b.idle();
    c.exec(&["nothing-here"]).exits(255).stderr_has("executable file not found in $PATH");
    c.exec(&["/nothing/here"]).exits(255).stderr_has("no such file or directory");
    c.exec(&["/bin/text"]).exits(255).stderr_has("permission denied");
    c.with("exec", &["--cwd", "/nothing"], &["true"]).exits(255).stderr_has("no such file or directory");
    bed.call(&["exec", &c.id]).exits(255);
}

#[test]
fn a_container_that_cannot_execute_its_program_is_an_error_of_create() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    fs::write(b.inside("bin/text"), "no program\n").expect("write");
    let b = b.args(["nothing-here"]);
    b.run().exits(1).stderr_has("executable file not found in $PATH");
    let b = b.args(["/nothing/here"]);
    b.run().exits(1).stderr_has("no such file or directory");
    let b = b.args(["/bin/text"]);
    b.run().exits(1).stderr_has("permission denied");
    bed.is_clean();
}

#[test]
fn exec_in_a_paused_container_is_refused_unless_told() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    c.verb("pause").success();
    c.exec(&["true"]).exits(255).stderr_has("paused");
    let mut command = bed.command();
    let running = harness::start(command.args(["exec", "--ignore-paused", &c.id, "echo", "thawed"]));
    c.verb("resume").success();
    running.wait().success().stdout_is("thawed\n");
}

#[test]
fn exec_in_a_created_container_works() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().create();
    c.exec(&["hostname"]).success().stdout_is("berth\n");
    assert_eq!(c.status(), "created");
}

#[test]
fn preserved_descriptors_arrive_and_others_do_not() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    let list = "cd /proc/self/fd; for f in *; do test -e $f && echo $f; done; true";
    let script = "exec 3</etc/hostname 4</etc/hostname 5</etc/hostname; exec \"$@\"";
    for (keep, expected) in [("0", "0\n1\n2\n"), ("2", "0\n1\n2\n3\n4\n")] {
        let mut command = bed.prefixed(&["bash", "-c", script, "bash"]);
        let out = harness::finish(command.args(["exec", "--preserve-fds", keep, &c.id, "sh", "-c", list]))
            .success();
        out.stdout_is(expected);
    }
}

#[test]
fn many_execs_leave_no_process_and_no_state() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    let files = || fs::read_dir(bed.state()).expect("state root").count();
    c.exec(&["true"]).success();
    let before = files();
    for _ in 0..30 {
        c.exec(&["true"]).success();
    }
    assert_eq!(files(), before);
    let pids = c.with("ps", &["--format", "json"], &[]).success().json();
    assert_eq!(pids, json!([c.pid()]));
}

#[test]
fn exec_cap_adds_to_the_sets() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().capabilities(&["CAP_KILL"]).idle();
    let read =
        |options: &[&str]| c.with("exec", options, &["grep", "CapEff", "/proc/self/status"]).success().stdout;
    assert_eq!(read(&[]), format!("CapEff:\t{:016x}\n", 1 << 5));
    assert_eq!(read(&["--cap", "CAP_CHOWN"]), format!("CapEff:\t{:016x}\n", 1 << 5 | 1));
    c.with("exec", &["--cap", "CAP_NONSENSE"], &["true"]).exits(255);
}
