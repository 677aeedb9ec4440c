//! How `start` reaches the process that waits for it: one that holds both ends of a socket pair, or a socket in the folder.

use std::time::{Duration, Instant};

use harness::{Bed, Bundle, finish, host, need};

/// Without the right to trace, as root.
const UNPRIVILEGED: &[&str] = &["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"];

fn status(bed: &Bed, prefix: &[&str], id: &str) -> String {
    let state = finish(bed.prefixed(prefix).args(["state", id])).success().json();
    state["status"].as_str().expect("a status").to_owned()
}

/// Create a container behind `prefix`; it waits at a socket.
fn create_with_socket(bed: &Bed, b: &Bundle<'_>, prefix: &[&str]) -> String {
    let id = b.fresh_id();
    b.write(&id);
    let bundle = b.inside("..").to_string_lossy().into_owned();
    finish(bed.prefixed(prefix).args(["create", "--bundle", &bundle, &id])).success();
    bed.adopt(&id);
    assert!(bed.state().join(format!("@{id}")).join("start.sock").exists());
    id
}

#[test]
fn no_file_is_made_for_who_may_trace() {
    let (Some(_), Some(_)) = (need::root(), need::ours()) else { return };
    let bed = Bed::new();
    let c = bed.bundle().args(["sleep", "1000"]).create();
    assert_eq!(harness::leaks::entries(&bed.state()).len(), 1);
    assert_eq!(c.status(), "created");
    // Nothing that was asked has started it.
    assert_eq!(c.status(), "created");
    c.verb("start").success();
    assert_eq!(c.status(), "running");
    c.verb("start").exits(1).fails_in_one_line().stderr_has("cannot start a container in the running state");
}

#[test]
fn who_may_not_trace_makes_a_socket() {
    let (Some(_), Some(_)) = (need::root(), need::ours()) else { return };
    let Some(_) = need::program("setpriv") else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["sleep", "1000"]);
    let id = create_with_socket(&bed, &b, UNPRIVILEGED);
    for prefix in [UNPRIVILEGED, &[]] {
        assert_eq!(status(&bed, prefix, &id), "created");
    }
    finish(bed.prefixed(UNPRIVILEGED).args(["start", &id])).success();
    for prefix in [UNPRIVILEGED, &[]] {
        assert_eq!(status(&bed, prefix, &id), "running");
    }
}

#[test]
fn who_may_not_trace_sees_the_state_and_is_told_why_it_cannot_start() {
    let (Some(_), Some(_)) = (need::root(), need::ours()) else { return };
    let Some(_) = need::program("setpriv") else { return };
    let bed = Bed::new();
    let c = bed.bundle().args(["sleep", "1000"]).create();
    assert_eq!(status(&bed, UNPRIVILEGED, &c.id), "created");
    finish(bed.prefixed(UNPRIVILEGED).args(["start", &c.id])).exits(1).stderr_has("CAP_SYS_PTRACE");
    assert_eq!(c.status(), "created");
    c.verb("start").success();
    assert_eq!(status(&bed, UNPRIVILEGED, &c.id), "running");
}

/// A security module that forbids it, whatever the capabilities say.
#[test]
fn where_tracing_is_forbidden_a_socket_is_made() {
    let (Some(_), Some(_)) = (need::root(), need::ours()) else { return };
    let Some(_) = need::program("strace") else { return };
    let bed = Bed::new();
    let log = bed.path("trace").to_string_lossy().into_owned();
    let forbid = ["strace", "-o", &log, "-e", "trace=pidfd_getfd", "-e", "inject=pidfd_getfd:error=EPERM"];
    let sleeper = || bed.bundle().args(["sleep", "1000"]);
    // With a user namespace the process that is given up may have asked for its id maps already.
    for b in [sleeper(), sleeper().user_namespace()] {
        let id = create_with_socket(&bed, &b, &forbid);
        assert_eq!(status(&bed, &[], &id), "created");
        finish(bed.command().args(["start", &id])).success();
        assert_eq!(status(&bed, &[], &id), "running");
    }
}

/// A program that calls itself as the waiting process does.
#[test]
fn who_pretends_to_wait_is_running() {
    let (Some(_), Some(_)) = (need::root(), need::ours()) else { return };
    let bed = Bed::new();
    let c = bed.bundle().sh("printf berth:init >/proc/self/comm; while :; do sleep 1; done").start();
    let until = Instant::now() + Duration::from_secs(10);
    while host::status(c.pid(), "Name").trim() != "berth:init" {
        assert!(Instant::now() < until, "it has not renamed itself");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(c.status(), "running");
    c.verb("start").exits(1).fails_in_one_line().stderr_has("running");
    c.exec(&["true"]).success();
    // Its descriptors are left alone: to close one may be a question to the program (FUSE), which need not answer.
    let Some(_) = need::program("strace") else { return };
    let log = bed.path("trace").to_string_lossy().into_owned();
    for verb in ["state", "start"] {
        finish(bed.prefixed(&["strace", "-o", &log, "-e", "trace=pidfd_getfd"]).args([verb, &c.id]));
        let calls = std::fs::read_to_string(&log).expect("the trace");
        assert!(!calls.contains("pidfd_getfd("), "{verb}: {calls}");
    }
}
