//! The process: user, groups, environment, working directory, limits, priorities.

use harness::{Bed, json, need};

#[test]
fn user_groups_umask_and_cwd() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed
        .bundle()
        .set("/process/user", json!({"uid": 1000, "gid": 1001, "umask": 0o27, "additionalGids": [5, 2000]}))
        .set("/process/cwd", "/tmp");
    b.sh("id -u; id -g; id -G; umask; pwd; echo $HOME")
        .run()
        .success()
        .stdout_is("1000\n1001\n1001 5 2000\n0027\n/tmp\n/home\n");
}

#[test]
fn a_missing_cwd_is_made() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    bed.bundle()
        .set("/process/cwd", "/not/there/yet")
        .args(["pwd"])
        .run()
        .success()
        .stdout_is("/not/there/yet\n");
}

#[test]
fn a_cwd_that_only_the_user_may_enter_works() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let dir = b.inside("private");
    std::fs::create_dir(&dir).expect("mkdir");
    std::os::unix::fs::chown(&dir, Some(1000), Some(1000)).expect("chown");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).expect("chmod");
    let b = b.set("/process/user", json!({"uid": 1000, "gid": 1000})).set("/process/cwd", "/private");
    b.args(["pwd"]).run().success().stdout_is("/private\n");
}

#[test]
fn the_program_is_looked_up_in_the_path_of_the_container() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    std::fs::create_dir(b.inside("opt")).expect("mkdir");
    std::os::unix::fs::symlink("/bin/busybox", b.inside("opt/seq")).expect("symlink");
    let b = b.set("/process/env", json!(["PATH=/nowhere:/opt"])).args(["seq", "2"]);
    b.run().success().stdout_is("1\n2\n");
    b.set("/process/env", json!(["PATH=/nowhere"]))
        .run()
        .exits(1)
        .stderr_has("executable file not found in $PATH");
}

#[test]
fn rlimits_hold() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set(
        "/process/rlimits",
        json!([{"type": "RLIMIT_NOFILE", "hard": 99, "soft": 55}, {"type": "RLIMIT_CORE", "hard": 4096, "soft": 0},
               {"type": "RLIMIT_STACK", "hard": 9_000_000, "soft": 8_000_000}]),
    );
    let out = b.args(["grep", "-E", "open files|core file|stack", "/proc/self/limits"]).run().success();
    let words: Vec<Vec<_>> =
        out.stdout.lines().map(|l| l.split_whitespace().rev().skip(1).take(2).collect()).collect();
    assert_eq!(words, [vec!["9000000", "8000000"], vec!["4096", "0"], vec!["99", "55"]]);
}

#[test]
fn hostname_and_domainname() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set("/hostname", "first").set("/domainname", "second");
    b.sh("hostname; cat /proc/sys/kernel/domainname").run().success().stdout_is("first\nsecond\n");
    // Without a namespace of its own it would be the host's.
    let b = bed.bundle().set("/linux/namespaces", json!([{"type": "mount"}, {"type": "pid"}]));
    b.set("/hostname", "first").run().exits(1).stderr_has("hostname");
}

#[test]
fn scheduler_io_priority_personality_and_affinity() {
    let Some(_) = need::ours() else { return };
    let Some(_) = need::gcc() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let source = r#"
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
    long io = syscall(SYS_ioprio_get, 1, 0);
    printf("policy %d nice %d io %ld.%ld personality %x\n", sched_getscheduler(0), getpriority(PRIO_PROCESS, 0), io >> 13,
           io & 7, personality(0xffffffff));
    return 0;
}
"#;
    harness::cc::compile(source, &b.inside("bin/show"));
    let b = b
        .set("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 5}))
        .set("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 6}))
        .set("/linux/personality", json!({"domain": "LINUX32"}));
    b.args(["/bin/show"]).run().success().stdout_is("policy 3 nice 5 io 2.6 personality 8\n");
}

/// Time offsets are read by the container, not by the host.
#[test]
fn time_namespace() {
    let Some(_) = need::ours() else { return };
    let Some(_) = need::file("/proc/self/ns/time") else { return };
    let bed = Bed::new();
    let b = bed
        .bundle()
        .push("/linux/namespaces", json!({"type": "time"}))
        .set("/linux/timeOffsets", json!({"boottime": {"secs": 10_000_000}}));
    let uptime: f64 = b
        .args(["cut", "-d", " ", "-f1", "/proc/uptime"])
        .run()
        .success()
        .stdout
        .trim()
        .parse()
        .expect("a number");
    assert!(uptime > 10_000_000.0, "{uptime}");
}
