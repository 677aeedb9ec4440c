//! update, pause, resume, ps, events, list, features, spec: what they do and the shapes that engines read.

use std::fs;

use harness::host::cgroup_value;
use harness::{Bed, finish, json, need};

#[test]
fn pause_stops_and_resume_goes_on() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let mut ask = b.fifo("ask");
    let mut answer = b.fifo("answer");
    let c = b.sh("echo up > /answer; while read x < /ask; do echo $x > /answer; done").start();
    assert_eq!(answer.line(), "up");
    c.verb("pause").success();
    assert_eq!(c.status(), "paused");
    ask.say("hello");
    assert_eq!(answer.line_within(std::time::Duration::from_millis(300)), None, "it is frozen");
    c.verb("resume").success();
    assert_eq!(answer.line(), "hello");
    assert_eq!(c.status(), "running");
}

#[test]
fn kill_and_forced_delete_reach_a_paused_container() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    c.verb("pause").success();
    let pid = c.pid();
    c.kill("KILL").success();
    if harness::runtime::is_ours() {
        assert!(
            harness::command::gone_within(pid, harness::command::PATIENCE),
            "SIGKILL works on a frozen one"
        );
    }
    c.delete_force().success();
    bed.is_clean();
}

#[test]
fn update_writes_limits_and_remembers_them() {
    let Some(_) = need::v1() else { return };
    let bed = Bed::new();
    let c = bed.bundle().set("/linux/resources/memory", json!({"limit": 104_857_600})).idle();
    let path = format!("/{}", c.id);
    c.with("update", &["--memory", "209715200", "--pids-limit", "77", "--cpu-share", "200"], &[]).success();
    assert_eq!(cgroup_value("memory", &path, "memory.limit_in_bytes"), "209715200");
    assert_eq!(cgroup_value("pids", &path, "pids.max"), "77");
    assert_eq!(cgroup_value("cpu", &path, "cpu.shares"), "200");
    let file = bed.path("tmp/resources.json");
    fs::write(&file, json!({"memory": {"limit": 110_100_480}}).to_string()).expect("write");
    c.with("update", &["--resources", &file.to_string_lossy()], &[]).success();
    assert_eq!(cgroup_value("memory", &path, "memory.limit_in_bytes"), "110100480");
    assert_eq!(cgroup_value("pids", &path, "pids.max"), "77", "what is not named stays");
    fs::remove_file(&file).expect("remove");
    let mut command = bed.command();
    let input = json!({"pids": {"limit": 78}}).to_string();
    harness::command::finish_with_input(command.args(["update", "--resources=-", &c.id]), &input).success();
    assert_eq!(cgroup_value("pids", &path, "pids.max"), "78");
}

#[test]
fn a_wrong_update_changes_nothing() {
    let Some(_) = need::v1() else { return };
    let bed = Bed::new();
    let c = bed.bundle().set("/linux/resources/pids", json!({"limit": 50})).idle();
    for options in
        [&["--memory", "lots"][..], &["--pids-limit", "x"], &["--resources", "/nothing"], &["--memory", "-5"]]
    {
        c.with("update", options, &[]).exits(1);
    }
    assert_eq!(cgroup_value("pids", &format!("/{}", c.id), "pids.max"), "50");
    assert_eq!(c.status(), "running");
}

#[test]
fn ps_lists_the_processes() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let mut ready = b.fifo("ready");
    let c = b.sh("sleep 1000 & echo up > /ready; exec sleep 1001").start();
    ready.line();
    let pids = c.with("ps", &["--format", "json"], &[]).success().json();
    let pids: Vec<_> = pids.as_array().expect("an array").iter().filter_map(harness::Value::as_i64).collect();
    assert_eq!(pids.len(), 2);
    assert!(pids.contains(&i64::from(c.pid())));
    let table = c.verb("ps").success();
    assert!(table.stdout.lines().next().is_some_and(|l| l.contains("PID")), "{table:?}");
    assert_eq!(table.stdout.lines().count(), 3, "{table:?}");
    let own = c.with("ps", &[], &["-o", "pid,comm"]).success();
    assert!(own.stdout.contains("sleep"), "{own:?}");
}

#[test]
fn events_stats_has_the_shape_of_runc() {
    let Some(_) = need::v1() else { return };
    let bed = Bed::new();
    let c = bed.bundle().set("/linux/resources/pids", json!({"limit": 55})).idle();
    let event = c.with("events", &["--stats"], &[]).success().json();
    assert_eq!((event["type"].as_str(), event["id"].as_str()), (Some("stats"), Some(c.id.as_str())));
    let data = &event["data"];
    assert_eq!(data["pids"]["limit"], 55);
    assert_eq!(data["pids"]["current"], 1);
    assert!(data["cpu"]["usage"]["total"].as_u64().is_some(), "{data}");
    assert!(data["memory"]["usage"]["usage"].as_u64().is_some(), "{data}");
}

#[test]
fn list_has_the_shape_of_runc() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    assert_eq!(bed.call(&["list", "--format", "json"]).success().stdout.trim(), "null".to_owned());
    let c = bed.bundle().idle();
    let list = bed.call(&["list", "--format", "json"]).success().json();
    let one = &list[0];
    let mut keys: Vec<_> = one.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["bundle", "created", "id", "ociVersion", "owner", "pid", "rootfs", "status"]);
    assert_eq!(one["owner"], "root");
    let table = bed.call(&["list"]).success();
    let head: Vec<_> = table.stdout.lines().next().unwrap_or("").split_whitespace().collect();
    assert_eq!(head, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    bed.call(&["list", "--quiet"]).success().stdout_is(&format!("{}\n", c.id));
}

#[test]
fn features_has_the_shape_of_the_spec() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let features = bed.call(&["features"]).success().json();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    for list in
        ["/hooks", "/mountOptions", "/linux/namespaces", "/linux/capabilities", "/linux/seccomp/actions"]
    {
        assert!(features.pointer(list).and_then(|v| v.as_array()).is_some_and(|a| a.len() > 3), "{list}");
    }
}

#[test]
fn spec_writes_a_config_that_runs() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let dir = b.dir.to_string_lossy().into_owned();
    bed.call(&["spec", "--bundle", &dir]).success();
    bed.call(&["spec", "--bundle", &dir]).exits(1);
    let text = fs::read_to_string(b.dir.join("config.json")).expect("config");
    let mut config: harness::Value = text.parse().expect("JSON");
    assert_eq!(config["process"]["terminal"], true);
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["echo", "ran"]);
    let id = b.fresh_id();
    config["linux"]["cgroupsPath"] = json!(format!("/{id}"));
    b.write_text(&config.to_string());
    bed.call(&["run", "--bundle", &dir, &id]).success().stdout_is("ran\n");
}

#[test]
fn explain_runs_nothing() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("echo ran > /ran");
    b.write("x");
    let dir = b.dir.to_string_lossy().into_owned();
    bed.call(&["explain", "--bundle", &dir]).success();
    assert!(!b.inside("ran").exists());
    bed.is_clean();
}

#[test]
fn oom_events_and_checkpoint_say_what_is_missing() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    let mut command = bed.command();
    let images = bed.path("tmp/images").to_string_lossy().into_owned();
    let out = finish(command.env("PATH", "/nothing").args(["checkpoint", "--image-path", &images, &c.id]));
    out.exits(1).stderr_has("criu");
    assert_eq!(c.status(), "running");
    fs::remove_dir_all(bed.path("tmp/images")).unwrap_or_default();
}
