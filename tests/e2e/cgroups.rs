//! Cgroups: limits as files of the host show them, the path that the config names, and their removal.

use std::fs;

use harness::host::{cgroup, cgroup_value};
use harness::{Bed, json, need};

#[test]
fn limits_are_written_on_v1() {
    let Some(_) = need::v1() else { return };
    let bed = Bed::new();
    let c = bed
        .bundle()
        .set(
            "/linux/resources/memory",
            json!({"limit": 104_857_600, "reservation": 52_428_800, "swappiness": 10}),
        )
        .set(
            "/linux/resources/cpu",
            json!({"shares": 300, "quota": 40_000, "period": 80_000, "cpus": "0", "mems": "0"}),
        )
        .set("/linux/resources/pids", json!({"limit": 44}))
        .idle();
    let path = format!("/{}", c.id);
    for (controller, file, value) in [
        ("memory", "memory.limit_in_bytes", "104857600"),
        ("memory", "memory.soft_limit_in_bytes", "52428800"),
        ("memory", "memory.swappiness", "10"),
        ("cpu", "cpu.shares", "300"),
        ("cpu", "cpu.cfs_quota_us", "40000"),
        ("cpu", "cpu.cfs_period_us", "80000"),
        ("cpuset", "cpuset.cpus", "0"),
        ("cpuset", "cpuset.mems", "0"),
        ("pids", "pids.max", "44"),
    ] {
        assert_eq!(cgroup_value(controller, &path, file), value, "{file}");
    }
    let pid = c.pid().to_string();
    for controller in ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"]
    {
        let procs = cgroup_value(controller, &path, "cgroup.procs");
        assert!(procs.lines().any(|l| l == pid), "{controller}: {procs}");
    }
    c.delete_force().success();
    bed.is_clean();
}

#[test]
fn limits_are_written_on_v2() {
    let Some(_) = need::v2() else { return };
    let bed = Bed::new();
    let c = bed
        .bundle()
        .set("/linux/resources/memory", json!({"limit": 104_857_600, "reservation": 52_428_800}))
        .set("/linux/resources/cpu", json!({"shares": 1024, "quota": 40_000, "period": 80_000}))
        .set("/linux/resources/pids", json!({"limit": 44}))
        .set("/linux/resources/unified", json!({"memory.high": "90000000"}))
        .idle();
    let path = format!("/{}", c.id);
    for (file, value) in [
        ("memory.max", "104857600"),
        ("memory.low", "52428800"),
        ("cpu.max", "40000 80000"),
        ("pids.max", "44"),
    ] {
        assert_eq!(cgroup_value("", &path, file), value, "{file}");
    }
    c.delete_force().success();
    bed.is_clean();
}

/// The memory limit really kills.
#[test]
fn a_memory_limit_holds() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set("/linux/resources/memory", json!({"limit": 16_777_216, "swap": 16_777_216}));
    let out = b.sh("head -c 100000000 /dev/zero | tail -c 90000000 | wc -c; echo alive").run();
    assert!(!out.stdout.contains("90000000"), "the limit does not hold: {out:?}");
}

#[test]
fn a_pids_limit_holds_and_absent_is_none() {
    let Some(_) = need::v1() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set("/linux/resources/pids", json!({"limit": 8}));
    let out = b.sh("for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done; true").run();
    out.stderr_has("can't fork");
    let c = bed.bundle().set("/linux/resources/pids", json!({"limit": -1})).idle();
    assert_eq!(cgroup_value("pids", &format!("/{}", c.id), "pids.max"), "max");
    let c = bed.bundle().idle();
    assert_eq!(cgroup_value("pids", &format!("/{}", c.id), "pids.max"), "max");
}

/// A path of its own, in depth; parents that were there stay, ours go.
#[test]
fn a_nested_path_is_made_and_removed() {
    let Some(_) = need::v1() else { return };
    let bed = Bed::new();
    let path = format!("/{}-parent/a/b", bed.unique);
    let c = bed.bundle().set("/linux/cgroupsPath", path.clone()).idle();
    assert!(cgroup("memory", &path).is_dir());
    c.delete_force().success();
    assert!(!cgroup("memory", &path).exists());
    harness::leaks::remove_cgroups(&bed.unique);
}

#[test]
fn a_path_with_dots_is_confined_or_refused() {
    let Some(_) = need::v1() else { return };
    let bed = Bed::new();
    for path in [
        format!("/../{}-x", bed.unique),
        format!("../{}-y", bed.unique),
        format!("/a/../../{}-z", bed.unique),
    ] {
        let out = bed.bundle().set("/linux/cgroupsPath", path.clone()).args(["true"]).run();
        assert!(out.code.is_some(), "{out:?}");
        let strayed: Vec<_> = ["x", "y", "z"]
            .iter()
            .map(|n| format!("/sys/fs/cgroup/{}-{n}", bed.unique))
            .filter(|p| fs::exists(p).unwrap_or(true))
            .collect();
        assert!(strayed.is_empty(), "{path}: {strayed:?}");
    }
}

/// Cgroups that the container makes below its own are removed with it.
#[test]
fn nested_cgroups_of_the_container_are_removed() {
    let Some(_) = need::v1() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    let own = cgroup("memory", &format!("/{}", c.id));
    fs::create_dir_all(own.join("inner/most")).expect("mkdir");
    let pids = cgroup("pids", &format!("/{}", c.id));
    fs::create_dir_all(pids.join("other")).expect("mkdir");
    c.delete_force().success();
    bed.is_clean();
}

#[test]
fn exec_can_go_to_a_sub_cgroup() {
    let Some(_) = need::ours() else { return };
    let Some(_) = need::v1() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    fs::create_dir(cgroup("pids", &format!("/{}", c.id)).join("sub")).expect("mkdir");
    let out = c.with("exec", &["--cgroup", "pids:sub"], &["grep", "pids", "/proc/self/cgroup"]).success();
    assert!(out.stdout.trim().ends_with("/sub"), "{out:?}");
    c.with("exec", &["--cgroup", "../.."], &["true"]).exits(255);
}

/// The cgroup's own subtree of another container is not touched.
#[test]
fn two_containers_may_not_share_a_cgroup_by_mistake() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let path = format!("/{}-shared", bed.unique);
    let first = bed.bundle().set("/linux/cgroupsPath", path.clone()).idle();
    let (second, out) = bed.bundle().set("/linux/cgroupsPath", path).args(["sleep", "1000"]).try_create();
    if out.code == Some(0) {
        second.delete_force().success();
    }
    assert_eq!(first.status(), "running");
    first.exec(&["true"]).success();
}
