//! Only sysctls that belong to a namespace of the container (CVE-2022-0811).

use std::fs;

use harness::{Bed, json, need};

#[test]
fn what_is_not_namespaced_is_refused_by_name() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
    let panic_before = fs::read_to_string("/proc/sys/kernel/panic").expect("panic");
    for key in [
        "kernel.core_pattern",
        "kernel/core_pattern",
        "kernel.panic",
        "vm.swappiness",
        "fs.file-max",
        "kernel.modprobe",
        "net/../kernel.core_pattern",
        "net/../kernel/core_pattern",
        "net.ipv4/../../kernel/core_pattern",
        "fs/mqueue/../../kernel/core_pattern",
        "kernel.shm_rmid_forced/../core_pattern",
        "kernel.msg../core_pattern",
        "kernel.sem/../core_pattern",
        "/proc/sys/kernel/core_pattern",
        "..",
        ".",
        "",
        "net",
        "net.",
        "kernel.hostname\n",
        "kernel.domainname.x",
        "user.max_user_namespaces",
    ] {
        let b = bed.bundle().set("/linux/sysctl", json!({key: "|/bin/evil"}));
        let out = b.run();
        assert!(out.code == Some(1), "sysctl {key:?}: {out:?}");
        if harness::runtime::is_ours() {
            out.fails_in_one_line().stderr_has("linux.sysctl");
        }
        assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern"), before);
        assert_eq!(fs::read_to_string("/proc/sys/kernel/panic").expect("panic"), panic_before);
    }
    bed.is_clean();
}

/// A namespaced one needs its namespace, or it would change the host's.
#[test]
fn a_sysctl_without_its_namespace_is_refused() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").expect("hostname");
    for (key, without) in [
        ("net.ipv4.ip_forward", "network"),
        ("kernel.shmmax", "ipc"),
        ("fs.mqueue.msg_max", "ipc"),
        ("kernel.domainname", "uts"),
    ] {
        let kinds: Vec<_> =
            ["pid", "mount", "network", "ipc", "uts"].into_iter().filter(|&k| k != without).collect();
        let namespaces: Vec<_> = kinds.iter().map(|k| json!({"type": k})).collect();
        let b = bed.bundle().set("/linux/namespaces", namespaces).remove("/hostname");
        let b = b.set("/linux/sysctl", json!({key: "1"}));
        b.run().exits(1).stderr_has(key);
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").expect("hostname"), hostname);
    bed.is_clean();
}

/// The host's own namespace, named by path, is not the container's.
#[test]
fn a_sysctl_in_a_namespace_of_the_host_is_refused() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let before = fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").expect("ttl");
    let b = bed.bundle().set(
        "/linux/namespaces",
        json!([{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
               {"type": "network", "path": "/proc/self/ns/net"}]),
    );
    b.set("/linux/sysctl", json!({"net.ipv4.ip_default_ttl": "77"})).run().exits(1);
    assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").expect("ttl"), before);
    bed.is_clean();
}

#[test]
fn namespaced_ones_are_set() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set(
        "/linux/sysctl",
        json!({"net.ipv4.ip_forward": "1", "kernel.shmmax": "123456", "fs/mqueue/msg_max": "17"}),
    );
    let script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax /proc/sys/fs/mqueue/msg_max";
    b.sh(script).run().success().stdout_is("1\n123456\n17\n");
}

#[test]
fn a_value_that_the_kernel_refuses_is_an_error() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set("/linux/sysctl", json!({"net.ipv4.ip_default_ttl": "many"}));
    b.run().exits(1).stderr_has("ip_default_ttl");
    bed.is_clean();
}
