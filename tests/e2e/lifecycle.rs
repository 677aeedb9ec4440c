//! create, start, state, kill, delete; run; and every order in which they may be called.

use std::fs;

use harness::{Bed, finish, need, start};

#[test]
fn a_container_lives_and_dies() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().args(["sleep", "1000"]).create();
    assert_eq!(c.status(), "created");
    c.verb("start").success().stdout_is("");
    assert_eq!(c.status(), "running");
    c.stop();
    assert_eq!(c.status(), "stopped");
    c.delete().success();
    bed.is_clean();
}

/// runtime.md, state: the keys of the state and their types; runc's extra ones, which engines read.
#[test]
fn state_has_the_shape_of_runc() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set("/annotations", harness::json!({"org.example": "yes"}));
    let c = b.idle();
    let state = c.state();
    let mut keys: Vec<_> = state.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        ["annotations", "bundle", "created", "id", "ociVersion", "owner", "pid", "rootfs", "status"]
    );
    assert_eq!(state["id"], c.id);
    assert_eq!(state["bundle"], c.bundle.to_string_lossy().as_ref());
    assert_eq!(state["rootfs"], c.bundle.join("rootfs").to_string_lossy().as_ref());
    assert_eq!(state["annotations"]["org.example"], "yes");
    assert_eq!(state["owner"], "");
    let pid = c.pid();
    assert_eq!(harness::host::status(pid, "NSpid").split_whitespace().last(), Some("1"));
    c.stop();
    assert_eq!(c.state()["pid"], 0);
}

/// runtime.md: "the user-specified program (from process) MUST NOT be run at this time" by create.
#[test]
fn create_runs_nothing_of_the_user() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("echo ran > /ran");
    let c = b.create();
    assert!(!b.inside("ran").exists());
    c.verb("start").success();
    c.wait();
    assert_eq!(fs::read_to_string(b.inside("ran")).expect("the program ran"), "ran\n");
    c.delete().success();
}

#[test]
fn run_gives_output_input_and_exit_code() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("cat; echo err >&2; exit 7");
    let id = b.fresh_id();
    let mut command = b.command("run", &[], &id);
    let out = harness::command::finish_with_input(&mut command, "typed\n");
    out.exits(7).stdout_is("typed\n").stderr_is("err\n");
    bed.is_clean();
}

#[test]
fn run_takes_pipes_and_sees_their_end() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["cat"]);
    let id = b.fresh_id();
    let mut command = b.command("run", &[], &id);
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    let running = harness::command::start_with_stdin(&mut command, reader.into());
    std::io::Write::write_all(&mut writer, b"through\n").expect("write");
    drop(writer);
    running.wait().success().stdout_is("through\n");
}

#[test]
fn run_detached_leaves_it_running_and_writes_the_pid_file() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["sleep", "1000"]);
    let id = b.fresh_id();
    let file = bed.path("pid");
    let file_text = file.to_string_lossy().into_owned();
    bed.adopt(&id);
    finish(&mut b.command("run", &["--detach", "--pid-file", &file_text], &id)).success();
    let state = bed.call(&["state", &id]).success().json();
    assert_eq!(state["status"], "running");
    // conmon and containerd parse the whole file as a number.
    assert_eq!(fs::read_to_string(&file).expect("pid file"), state["pid"].to_string());
}

#[test]
fn run_keep_leaves_a_stopped_container() {
    let Some(_) = need::root() else { return };
    if need::that(harness::runtime::name() != "runc", "runc 1.1 has no --keep").is_none() {
        return;
    }
    let bed = Bed::new();
    let b = bed.bundle().sh("exit 3");
    let id = b.fresh_id();
    bed.adopt(&id);
    finish(&mut b.command("run", &["--keep"], &id)).exits(3);
    assert_eq!(bed.call(&["state", &id]).success().json()["status"], "stopped");
    bed.call(&["delete", &id]).success();
    bed.is_clean();
}

/// runtime.md, delete: "Attempting to delete a container that is not stopped MUST have no effect on the container and
/// MUST generate an error."
#[test]
fn delete_of_a_running_or_paused_container_needs_force() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    c.delete().exits(1).fails_in_one_line().stderr_has("running");
    assert_eq!(c.status(), "running");
    c.verb("pause").success();
    c.delete().exits(1).fails_in_one_line().stderr_has("paused");
    assert_eq!(c.status(), "paused");
    c.delete_force().success();
    bed.is_clean();
}

#[test]
fn delete_of_a_created_container_works() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["sleep", "1000"]);
    b.create().delete().success();
    bed.is_clean();
}

/// containerd's shim calls it after every delete.
#[test]
fn forced_delete_of_nothing_succeeds_silently() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    bed.call(&["delete", "--force", "nobody"]).success().stdout_is("").stderr_is("");
    bed.call(&["delete", "nobody"]).exits(1);
}

#[test]
fn forced_delete_kills_a_whole_pid_less_container() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set(
        "/linux/namespaces",
        harness::json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]),
    );
    let mut ready = b.fifo("ready");
    let c = b.sh("sleep 1000 & setsid sleep 1000 & echo up > /ready; exec sleep 1000").start();
    assert_eq!(ready.line(), "up");
    c.delete_force().success();
    bed.is_clean();
}

/// runtime.md, create: "If the ID provided is not unique across all containers … the implementation MUST generate an error".
#[test]
fn a_taken_id_is_refused_and_its_owner_unharmed() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["sleep", "1000"]);
    let c = b.start();
    let pid = c.pid();
    finish(&mut b.command("create", &[], &c.id)).exits(1).stderr_has("exist");
    finish(&mut b.command("run", &[], &c.id)).exits(1).stderr_has("exist");
    assert_eq!((c.status().as_str(), c.pid()), ("running", pid));
    c.exec(&["true"]).success();
}

#[test]
fn verbs_in_a_wrong_order_are_errors_and_change_nothing() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().args(["sleep", "1000"]).create();
    c.verb("resume").exits(1);
    c.verb("start").success();
    c.verb("start").exits(1);
    c.verb("resume").exits(1);
    assert_eq!(c.status(), "running");
    c.stop();
    for verb in ["start", "pause", "resume"] {
        c.verb(verb).exits(1);
    }
    c.kill("TERM").exits(1);
    c.exec(&["true"]).exits(255);
    assert_eq!(c.status(), "stopped");
    c.delete().success();
    c.delete().exits(1);
}

#[test]
fn verbs_on_nobody_are_errors() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    for verb in [
        &["state", "nobody"][..],
        &["start", "nobody"],
        &["kill", "nobody", "TERM"],
        &["pause", "nobody"],
        &["resume", "nobody"],
        &["delete", "nobody"],
        &["ps", "nobody"],
        &["update", "--pids-limit", "5", "nobody"],
    ] {
        bed.call(verb).exits(1).stderr_has("does not exist");
    }
    bed.call(&["exec", "nobody", "true"]).exits(255).stderr_has("does not exist");
    bed.is_clean();
}

#[test]
fn options_may_stand_after_the_id() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["sleep", "1000"]);
    let id = b.fresh_id();
    b.write(&id);
    let bundle = b.dir.to_string_lossy();
    bed.adopt(&id);
    bed.call(&["create", &id, "--bundle", &bundle]).success();
    bed.call(&["start", &id]).success();
    bed.call(&["kill", &id, "KILL", "--all"]).success();
    bed.call(&["delete", &id, "--force"]).success();
    bed.is_clean();
}

/// Everything after the command of exec belongs to the command.
#[test]
fn options_after_the_command_of_exec_are_its_own() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    c.exec(&["echo", "--cwd", "-e", "--", "x"]).success().stdout_is("--cwd -e -- x\n");
}

#[test]
fn the_bundle_is_the_working_directory_by_default() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["echo", "here"]);
    let id = b.fresh_id();
    b.write(&id);
    let mut command = bed.command();
    finish(command.args(["run", &id]).current_dir(&b.dir)).success().stdout_is("here\n");
}

/// One peer lost the wake-up of a container that exits before it is waited for.
#[test]
fn an_exit_before_the_wait_never_hangs() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["true"]);
    for _ in 0..10 {
        let ids: Vec<_> = (0..4).map(|_| b.fresh_id()).collect();
        // The config names no cgroup of its own here, so that four can share the file.
        let mut config = b.config.clone();
        config["linux"].as_object_mut().expect("linux").remove("cgroupsPath");
        b.write_text(&config.to_string());
        let bundle = b.dir.to_string_lossy().into_owned();
        let running: Vec<_> =
            ids.iter().map(|id| start(bed.command().args(["run", "--bundle", &bundle, id]))).collect();
        for one in running {
            one.wait().success();
        }
    }
    bed.is_clean();
}

#[test]
fn exit_codes_of_run_are_the_process_own() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    for code in [0, 1, 42, 125, 126, 127, 255] {
        bed.bundle().sh(&format!("exit {code}")).run().exits(code);
    }
}

#[test]
fn two_hundred_runs_leave_nothing() {
    let Some(_) = need::root() else { return };
    runs_leave_nothing(if harness::runtime::is_ours() { 200 } else { 20 });
}

#[test]
#[ignore = "minutes long: `just test-all`"]
fn ten_thousand_runs_leave_nothing() {
    let Some(_) = need::root() else { return };
    runs_leave_nothing(10_000);
}

fn runs_leave_nothing(count: u32) {
    let bed = Bed::new();
    let b = bed.bundle().args(["true"]);
    let id = b.fresh_id();
    for _ in 0..count {
        finish(&mut b.command("run", &[], &id)).success().stderr_is("");
    }
    bed.is_clean();
}
