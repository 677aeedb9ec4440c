//! A setting that cannot be honoured is an error before the process starts, never silence.

use std::path::Path;

use harness::{Bed, Bundle, json, need};

#[track_caller]
fn refused(b: &Bundle<'_>, word: &str) {
    let out = b.run();
    assert!(out.code == Some(1) && out.stdout.is_empty(), "it ran: {out:?}");
    if harness::runtime::is_ours() {
        out.fails_in_one_line().stderr_has(word);
    }
    b.bed.is_clean();
}

#[test]
fn an_apparmor_profile_on_a_kernel_without_it() {
    let Some(_) =
        need::that(!Path::new("/sys/kernel/security/apparmor").exists(), "this kernel has AppArmor")
    else {
        return;
    };
    let bed = Bed::new();
    refused(
        &bed.bundle().set("/process/apparmorProfile", "docker-default").args(["echo", "ran"]),
        "apparmorProfile",
    );
    let Some(_) = need::ours() else { return };
    let c = bed.bundle().idle();
    let out = c.with("exec", &["--apparmor", "docker-default"], &["echo", "ran"]);
    out.exits(255).stdout_is("").fails_in_one_line().stderr_has("AppArmor");
}

#[test]
fn a_selinux_label_on_a_host_without_it() {
    let Some(_) = need::that(!Path::new("/sys/fs/selinux/enforce").exists(), "this host has SELinux") else {
        return;
    };
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let label = "system_u:system_r:container_t:s0";
    refused(&bed.bundle().set("/process/selinuxLabel", label).args(["echo", "ran"]), "selinuxLabel");
    refused(&bed.bundle().set("/linux/mountLabel", label).args(["echo", "ran"]), "mountLabel");
    let c = bed.bundle().idle();
    c.with("exec", &["--process-label", label], &["echo", "ran"])
        .exits(255)
        .stdout_is("")
        .fails_in_one_line();
}

#[test]
fn unknown_words_are_refused_with_their_place() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    for (pointer, value, word) in [
        ("/linux/namespaces/0/type", json!("nett"), "linux.namespaces[0].type"),
        ("/mounts/0/type", json!("nosuchfs"), "mounts[0]"),
        ("/mounts/3/options", json!(["nosuch=1"]), "mounts[3]"),
        ("/linux/rootfsPropagation", json!("sideways"), "linux.rootfsPropagation"),
        ("/process/rlimits/0/type", json!("RLIMIT_NOSUCH"), "process.rlimits[0].type"),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOSUCH"}), "linux.seccomp.defaultAction"),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_NOSUCH"]}),
            "linux.seccomp.architectures[0]",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NOSUCH"]}),
            "linux.seccomp.flags[0]",
        ),
        ("/linux/personality", json!({"domain": "PDP11"}), "linux.personality.domain"),
        ("/process/scheduler", json!({"policy": "SCHED_NOSUCH"}), "process.scheduler"),
        ("/process/ioPriority", json!({"class": "IOPRIO_CLASS_NOSUCH", "priority": 0}), "process.ioPriority"),
    ] {
        let b = bed.bundle().set(pointer, value.clone()).args(["echo", "ran"]);
        let out = b.run();
        assert!(out.code == Some(1) && out.stdout.is_empty(), "{pointer} = {value}: {out:?}");
        out.fails_in_one_line().stderr_has(word);
        bed.is_clean();
    }
}

#[test]
fn what_this_host_lacks_is_refused() {
    let Some(_) = need::v1() else { return };
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    // On a hybrid host the v2 side may have what v1 lacks.
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").unwrap_or_default();
    let lacking = |controller: &str| {
        !Path::new("/sys/fs/cgroup").join(controller).exists()
            && !v2.split_whitespace().any(|c| c == controller)
    };
    let mut cases = vec![
        ("/linux/resources/unified", json!({"memory.high": "1000000"}), "linux.resources.unified"),
        ("/linux/intelRdt", json!({"l3CacheSchema": "L3:0=f"}), "linux.intelRdt"),
    ];
    if lacking("hugetlb") {
        cases.push((
            "/linux/resources/hugepageLimits",
            json!([{"pageSize": "2MB", "limit": 0}]),
            "hugepageLimits",
        ));
    }
    if lacking("rdma") {
        cases.push(("/linux/resources/rdma", json!({"mlx5_1": {"hcaHandles": 3}}), "rdma"));
    }
    if lacking("net_cls") && lacking("net_cls,net_prio") {
        cases.push(("/linux/resources/network", json!({"classID": 5}), "network"));
    }
    for (pointer, value, word) in cases {
        let out = bed.bundle().set(pointer, value.clone()).args(["echo", "ran"]).run();
        assert!(out.code == Some(1) && out.stdout.is_empty(), "{pointer} = {value}: {out:?}");
        out.fails_in_one_line().stderr_has(word);
        bed.is_clean();
    }
}

#[test]
fn a_namespace_path_of_another_kind_or_of_nothing_is_refused() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    for path in ["/proc/self/ns/uts", "/nothing", "/etc/passwd", "relative/ns"] {
        let b = bed.bundle().set("/linux/namespaces/1/path", path).args(["echo", "ran"]);
        refused(&b, "linux.namespaces[1]");
    }
}

#[test]
fn another_major_version_is_refused() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    for version in ["2.0.0", "0.9.0", "1", "", "latest", "99999999999999999999.0.0"] {
        refused(&bed.bundle().set("/ociVersion", version).args(["echo", "ran"]), "ociVersion");
    }
    for version in ["1.0.0", "1.0.2-dev", "1.3.0"] {
        bed.bundle().set("/ociVersion", version).args(["echo", "ran"]).run().success().stdout_is("ran\n");
    }
}

#[test]
fn a_host_device_that_is_not_there_is_refused() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().mount("/mnt", "bind", "/nothing/here", &["bind"]).args(["echo", "ran"]);
    refused(&b, "mounts[7]");
}
