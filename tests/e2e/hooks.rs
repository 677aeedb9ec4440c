//! Hooks: order, state on standard input, namespaces, failures, time limits.

use std::fs;

use harness::{Bed, Value, json, need};

const KINDS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Where each hook leaves the state that it got; a bind mount, so that those in the container reach it, too.
fn notes(bed: &Bed) -> String {
    let dir = bed.path("notes");
    fs::create_dir_all(&dir).expect("mkdir");
    dir.to_string_lossy().into_owned()
}

/// runtime.md, lifecycle: the order, and the status that the state has in each.
#[test]
fn all_six_run_in_order_with_the_state_that_the_spec_names() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let dir = notes(&bed);
    let mut b = bed.bundle().mount("/notes", "bind", &dir, &["bind"]);
    for kind in KINDS {
        let place = if kind == "startContainer" { "/notes" } else { &dir };
        b = b.hook(
            kind,
            &format!("cat > {place}/{kind}; echo >> {place}/{kind}; echo {kind} >> {place}/order"),
        );
    }
    // The container itself takes its place in the order.
    let b = b.sh("echo program >> /notes/order");
    fs::create_dir(b.inside("notes")).expect("mkdir");
    let c = b.create();
    let order = || fs::read_to_string(bed.path("notes/order")).unwrap_or_default();
    assert_eq!(order(), "prestart\ncreateRuntime\ncreateContainer\n");
    c.verb("start").success();
    c.wait();
    c.delete().success();
    let order = order();
    assert!(order.starts_with("prestart\ncreateRuntime\ncreateContainer\nstartContainer\n"), "{order}");
    assert!(
        order.ends_with("poststop\n") && order.contains("poststart\n") && order.contains("program\n"),
        "{order}"
    );
    for (kind, statuses) in [
        ("prestart", &["creating"][..]),
        ("createRuntime", &["creating"]),
        ("createContainer", &["creating"]),
        ("startContainer", &["created"]),
        ("poststart", &["running"]),
        ("poststop", &["stopped"]),
    ] {
        let text = fs::read_to_string(bed.path("notes").join(kind)).expect("note");
        let state: Value = text.parse().unwrap_or_else(|e| panic!("{kind}: {e}: {text}"));
        assert_eq!(state["id"], c.id, "{kind}");
        assert_eq!(state["bundle"], c.bundle.to_string_lossy().as_ref(), "{kind}");
        if harness::runtime::is_ours() {
            assert!(statuses.contains(&state["status"].as_str().unwrap_or("")), "{kind}: {state}");
        }
    }
}

/// BuildKit's prestart hooks need the network namespace of the container by its pid.
#[test]
fn a_prestart_hook_reaches_the_network_namespace_by_the_pid() {
    let Some(_) = need::program("jq") else { return };
    let bed = Bed::new();
    let dir = notes(&bed);
    let script = format!(
        "pid=$(jq .pid); readlink /proc/$pid/ns/net > {dir}/net; readlink /proc/self/ns/net > {dir}/host"
    );
    let b = bed.bundle().hook("prestart", &script).args(["readlink", "/proc/self/ns/net"]);
    let inside = b.run().success().stdout;
    assert_eq!(fs::read_to_string(bed.path("notes/net")).expect("note"), inside);
    assert_ne!(fs::read_to_string(bed.path("notes/host")).expect("note"), inside);
}

/// config.md: each kind's namespace, told by its mount namespace and root.
#[test]
fn hooks_run_in_the_namespace_that_the_spec_names() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let dir = notes(&bed);
    let mut b = bed.bundle().mount("/notes", "bind", &dir, &["bind"]);
    fs::create_dir(b.inside("notes")).expect("mkdir");
    for kind in KINDS {
        let place = if kind == "startContainer" { "/notes" } else { &dir };
        b = b.hook(kind, &format!("cat > /dev/null; readlink /proc/self/ns/mnt > {place}/{kind}"));
    }
    let c = b.sh("readlink /proc/self/ns/mnt > /notes/program; exec sleep 1000");
    let c = c.create();
    c.verb("start").success();
    let host = format!("{}\n", fs::read_link("/proc/self/ns/mnt").expect("ns").display());
    let container =
        format!("{}\n", fs::read_link(format!("/proc/{}/ns/mnt", c.pid())).expect("ns").display());
    c.delete_force().success();
    for (kind, expected) in [
        ("prestart", &host),
        ("createRuntime", &host),
        ("createContainer", &container),
        ("startContainer", &container),
        ("poststart", &host),
        ("poststop", &host),
    ] {
        assert_eq!(&fs::read_to_string(bed.path("notes").join(kind)).expect("note"), expected, "{kind}");
    }
}

/// runtime.md: a failing one of these "MUST generate an error, stop the container, and continue the lifecycle at step 12".
#[test]
fn a_failing_hook_fails_create_and_leaves_nothing() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let b = bed.bundle().hook(kind, "echo broken >&2; exit 3");
        let out = b.try_create().1;
        assert!(out.code == Some(1), "{kind}: {out:?}");
        if harness::runtime::is_ours() {
            out.stderr_has(&format!("hooks.{kind}[0]"));
        }
        bed.is_clean();
    }
}

#[test]
fn a_failing_start_container_hook_fails_start() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let b = bed.bundle().hook("startContainer", "exit 3").sh("echo ran > /ran");
    let b = b.set("/hooks/startContainer/0/path", "/bin/sh");
    let c = b.create();
    c.verb("start").exits(1).stderr_has("hooks.startContainer[0]");
    assert!(!b.inside("ran").exists(), "the program was run all the same");
    c.delete_force().success();
    bed.is_clean();
}

/// runtime-spec 1.3: a failing poststart stops and deletes the container.
#[test]
fn a_failing_poststart_hook_stops_the_container() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let b = bed.bundle().hook("poststart", "exit 3").args(["sleep", "1000"]);
    let c = b.create();
    let pid = c.pid();
    c.verb("start").exits(1).stderr_has("hooks.poststart[0]");
    assert!(harness::command::gone_within(pid, harness::command::PATIENCE));
    c.verb("state").exits(1);
    bed.is_clean();
}

/// runtime.md: a failing poststop only warns, and the others still run.
#[test]
fn a_failing_poststop_hook_does_not_stop_the_deletion() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let dir = notes(&bed);
    let b = bed
        .bundle()
        .hook("poststop", "exit 3")
        .hook("poststop", &format!("cat > /dev/null; echo yes > {dir}/second"));
    let c = b.create();
    c.delete().success();
    assert_eq!(fs::read_to_string(bed.path("notes/second")).expect("note"), "yes\n");
    bed.is_clean();
}

#[test]
fn a_hook_that_takes_too_long_is_killed() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().hook("createRuntime", "exec sleep 1000").set("/hooks/createRuntime/0/timeout", 1);
    let out = b.try_create().1.exits(1);
    assert!(out.took < std::time::Duration::from_secs(30), "{out:?}");
    bed.is_clean();
}

#[test]
fn a_hook_has_its_own_environment_and_arguments() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let dir = notes(&bed);
    let hook = json!({"path": "/bin/sh", "args": ["zero", "-c", format!("echo $0 $A > {dir}/seen; env >> {dir}/seen")],
        "env": ["A=b"]});
    let b = bed.bundle().set("/hooks", json!({"createRuntime": [hook]}));
    let id = b.fresh_id();
    harness::finish(b.command("run", &[], &id).env("SECRET", "x")).success();
    let seen = fs::read_to_string(bed.path("notes/seen")).expect("note");
    assert!(seen.starts_with("zero b\n") && !seen.contains("SECRET"), "{seen}");
}

#[test]
fn a_hook_that_does_not_read_its_input_is_fine() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set("/annotations", json!({"big": "x".repeat(200_000)}));
    b.hook("createRuntime", "exit 0").args(["echo", "ran"]).run().success().stdout_is("ran\n");
}

#[test]
fn a_hook_that_cannot_be_run_is_an_error() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    for path in ["/nothing", "relative", "", "/etc/passwd"] {
        let b = bed.bundle().set("/hooks", json!({"createRuntime": [{"path": path}]}));
        b.run().exits(1);
        bed.is_clean();
    }
}

/// A daemon that a hook leaves behind does not keep anybody waiting.
#[test]
fn a_hook_that_leaves_a_daemon_does_not_block() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let dir = notes(&bed);
    let script = format!("setsid sh -c 'sleep 1000 & echo $! > {dir}/pid' > /dev/null 2>&1 < /dev/null");
    bed.bundle().hook("createRuntime", &script).args(["echo", "ran"]).run().success().stdout_is("ran\n");
    let pid = fs::read_to_string(bed.path("notes/pid")).expect("pid").trim().parse().expect("a pid");
    harness::command::kill(pid);
    assert!(harness::command::gone_within(pid, harness::command::PATIENCE));
}
