//! Wrong use: the whole message and the exit code.

use std::fs;

use harness::{Bed, finish, json, need};

#[test]
fn a_wrong_config_names_the_place_and_what_is_allowed() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set("/linux/namespaces/1/type", "nett");
    let id = b.fresh_id();
    let out = finish(&mut b.command("create", &[], &id));
    let start = format!(
        "berth-runtime: create {id}: config.json: linux.namespaces[1].type: unknown namespace \"nett\""
    );
    assert!(out.stderr.starts_with(&start), "{out:?}");
    out.exits(1).fails_in_one_line();
    bed.is_clean();
}

#[test]
fn no_such_container() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    bed.call(&["state", "nobody"]).fails(1, "state nobody: container nobody does not exist");
    bed.call(&["start", "nobody"]).fails(1, "start nobody: container nobody does not exist");
    bed.call(&["kill", "nobody", "9"]).fails(1, "kill nobody: container nobody does not exist");
    bed.call(&["delete", "nobody"]).fails(1, "delete nobody: container nobody does not exist");
    bed.call(&["exec", "nobody", "true"]).fails(255, "exec nobody: container nobody does not exist");
}

#[test]
fn wrong_usage_is_an_error_of_one_and_makes_nothing() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    for args in [
        &["create"][..],
        &["nosuchverb", "x"],
        &["state"],
        &["state", "a", "b"],
        &["run", "--nosuch", "x"],
        &["kill"],
        &["--nosuch", "list"],
        &["list", "--format", "xml"],
        &["--log-format", "xml", "list"],
    ] {
        let out = bed.call(args);
        assert!(out.code.is_some_and(|c| c != 0), "{out:?}");
        assert!(!out.stderr.is_empty() || !harness::runtime::is_ours(), "{out:?}");
    }
    bed.is_clean();
}

#[test]
fn help_and_version_succeed() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    bed.call(&["--help"]).success().stdout_has("create");
    bed.call(&["--version"]).success().stdout_has("spec: 1.");
    for verb in [
        "create",
        "start",
        "run",
        "state",
        "kill",
        "delete",
        "exec",
        "list",
        "ps",
        "pause",
        "resume",
        "update",
        "events",
        "spec",
        "features",
        "checkpoint",
        "restore",
    ] {
        bed.call(&[verb, "--help"]).success();
    }
}

/// containerd reads the last error of this file.
#[test]
fn the_json_log_has_the_error() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let log = bed.path("log.json");
    let b = bed.bundle().args(["nothing-here"]);
    let id = b.fresh_id();
    b.write(&id);
    let mut command = bed.command();
    command.arg("--log").arg(&log).args(["--log-format", "json", "create", "--bundle"]).arg(&b.dir).arg(&id);
    let out = finish(&mut command).exits(1);
    let text = fs::read_to_string(&log).expect("log");
    let last: harness::Value = serde_json_line(text.lines().last().expect("a line"));
    assert_eq!(last["level"], "error");
    assert!(last["msg"].as_str().expect("msg").contains("executable file not found in $PATH"), "{text}");
    assert!(last["time"].as_str().expect("time").contains('T'), "{text}");
    assert!(!out.stderr.is_empty(), "the error is on stderr as well");
    bed.is_clean();
}

fn serde_json_line(line: &str) -> harness::Value {
    line.parse().unwrap_or_else(|e| panic!("not JSON ({e}): {line}"))
}

/// A log that cannot be written does not stop anything; one that cannot be opened is an error.
#[test]
fn a_full_log_does_not_stop_a_container() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["echo", "ran"]);
    let id = b.fresh_id();
    b.write(&id);
    let mut command = bed.command();
    command.args(["--debug", "--log", "/dev/full", "run", "--bundle"]).arg(&b.dir).arg(&id);
    let out = finish(&mut command);
    out.success().stdout_is("ran\n");
    let mut command = bed.command();
    command.args(["--log", "/nothing/log", "run", "--bundle"]).arg(&b.dir).arg(&id);
    finish(&mut command).exits(1).stdout_is("");
    bed.is_clean();
}

#[test]
fn what_the_spec_requires_is_required() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    for pointer in [
        "/ociVersion",
        "/root",
        "/root/path",
        "/process/cwd",
        "/process/args",
        "/linux/namespaces/0/type",
        "/mounts/0/destination",
    ] {
        let b = bed.bundle().remove(pointer).set("/hostname", "berth");
        let out = b.run();
        assert!(out.code == Some(1), "without {pointer}: {out:?}");
        if harness::runtime::is_ours() {
            out.fails_in_one_line();
        }
    }
    for (pointer, value) in [
        ("/process/cwd", json!("relative")),
        ("/process/args", json!([])),
        ("/mounts/0/destination", json!("")),
        ("/linux/resources/devices", json!([{"allow": true, "type": "z", "access": "rwm"}])),
        ("/linux/resources/devices", json!([{"allow": true, "type": "c", "access": "rwx"}])),
        ("/process/env", json!(["A=\u{0}"])),
        ("/process/args", json!(["echo", "a\u{0}b"])),
        ("/hostname", json!("x".repeat(80))),
        ("/linux/cgroupsPath", json!("/../../berth-escape")),
        ("/linux/namespaces/1/type", json!("pid")),
    ] {
        let out = bed.bundle().set(pointer, value.clone()).run();
        if pointer == "/linux/cgroupsPath" {
            // Either refused or confined to the hierarchy.
            let escaped: Vec<_> = harness::host::cgroup_roots()
                .into_iter()
                .filter(|r| r.parent().is_some_and(|p| p.join("berth-escape").exists()))
                .collect();
            assert!(escaped.is_empty(), "{escaped:?}");
            continue;
        }
        assert!(out.code == Some(1) || !harness::runtime::is_ours(), "{pointer} = {value}: {out:?}");
    }
    bed.is_clean();
}
