//! config-linux.md: namespaces, id mappings, time offsets, hostname, sysctl, personality, memory policy,
//! Intel RDT, network devices.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::case::{Case, skip, spec, strict};
use super::harness::{Test, same};
use super::host::{Need, program};

pub const CASES: &[Case] = &[
    spec("namespaces/new-pid", "config-linux.md#namespaces", "pid without path is a new one", |t| {
        fresh(t, "pid", "pid")
    }),
    spec("namespaces/new-network", "config-linux.md#namespaces", "network without path is a new one", |t| {
        fresh(t, "network", "net")
    }),
    spec("namespaces/new-mount", "config-linux.md#namespaces", "mount without path is a new one", |t| {
        fresh(t, "mount", "mnt")
    }),
    spec("namespaces/new-ipc", "config-linux.md#namespaces", "ipc without path is a new one", |t| {
        fresh(t, "ipc", "ipc")
    }),
    spec("namespaces/new-uts", "config-linux.md#namespaces", "uts without path is a new one", |t| {
        fresh(t, "uts", "uts")
    }),
    spec("namespaces/new-cgroup", "config-linux.md#namespaces", "cgroup without path is a new one", |t| {
        fresh(t, "cgroup", "cgroup")
    }),
    spec("namespaces/new-time", "config-linux.md#namespaces", "time without path is a new one", |t| {
        fresh(t, "time", "time")
    })
    .needs(&[Need::File("/proc/self/ns/time")]),
    spec("namespaces/new-user", "config-linux.md#namespaces", "user without path is a new one", |t| {
        let c = t.bundle()?.user_namespace()?.create()?;
        ensure!(c.ns("user")? != host_ns("user")?, "it is the host's");
        Ok(())
    }),
    spec("namespaces/inherited", "config-linux.md#namespaces", "what is not listed is the runtime's", |t| {
        let b = t
            .bundle()?
            .namespace("ipc", None)
            .namespace("network", None)
            .namespace("uts", None)
            .unset("/hostname");
        let b = b.without_mount("/sys").without_mount("/dev/mqueue");
        let c = b.create()?;
        for name in ["ipc", "net", "uts", "cgroup", "user"] {
            same(name, c.ns(name)?, host_ns(name)?)?;
        }
        Ok(())
    }),
    spec("namespaces/join-network", "config-linux.md#namespaces", "network with path is joined", |t| {
        join(t, "network", "net")
    }),
    spec("namespaces/join-ipc", "config-linux.md#namespaces", "ipc with path is joined", |t| {
        join(t, "ipc", "ipc")
    }),
    spec("namespaces/join-uts", "config-linux.md#namespaces", "uts with path is joined", |t| {
        join(t, "uts", "uts")
    }),
    spec("namespaces/join-pid", "config-linux.md#namespaces", "pid with path is joined", |t| {
        join(t, "pid", "pid")
    }),
    spec(
        "namespaces/join-mount",
        "config-linux.md#namespaces",
        "mount with path is joined, or refused",
        |t| {
            let first = t.bundle()?.args(&["sleep", "100"]).start()?;
            let path = format!("/proc/{}/ns/mnt", first.pid.as_raw_nonzero());
            // Inside the joined namespace the other root is the root, so the image is looked up there.
            let b = t.bundle()?.namespace("mount", Some(json!({"type": "mount", "path": path})));
            let b = b.set("/mounts", json!([])).set("/root/path", json!("/"));
            b.write()?;
            let output = t.rt(&["create", "--bundle", &b.dir_text(), &b.id])?;
            if output.code != 0 {
                return output.refused("a mount namespace by path").map(drop);
            }
            let pid = t.state(&b.id)?["pid"].as_i64().context("no pid")?;
            same("namespace", fs::read_link(format!("/proc/{pid}/ns/mnt"))?, first.ns("mnt")?)
        },
    ),
    spec("namespaces/join-cgroup", "config-linux.md#namespaces", "cgroup with path is joined", |t| {
        let first = t
            .bundle()?
            .args(&["sleep", "100"])
            .namespace("cgroup", Some(json!({"type": "cgroup"})))
            .start()?;
        let path = format!("/proc/{}/ns/cgroup", first.pid.as_raw_nonzero());
        let c = t.bundle()?.namespace("cgroup", Some(json!({"type": "cgroup", "path": path}))).create()?;
        same("namespace", c.ns("cgroup")?, first.ns("cgroup")?)
    }),
    spec("namespaces/join-time", "config-linux.md#namespaces", "time with path is joined", |t| {
        let first =
            t.bundle()?.args(&["sleep", "100"]).namespace("time", Some(json!({"type": "time"}))).start()?;
        let path = format!("/proc/{}/ns/time", first.pid.as_raw_nonzero());
        let c = t
            .bundle()?
            .args(&["sleep", "100"])
            .namespace("time", Some(json!({"type": "time", "path": path})))
            .start()?;
        same("namespace", c.ns("time")?, first.ns("time")?)
    })
    .needs(&[Need::File("/proc/self/ns/time")]),
    spec("namespaces/join-user", "config-linux.md#namespaces", "user with path is joined", |t| {
        let first = t.bundle()?.args(&["sleep", "100"]).user_namespace()?.start()?;
        let path = format!("/proc/{}/ns/user", first.pid.as_raw_nonzero());
        let b = t.bundle()?.user_namespace()?.unset("/linux/uidMappings").unset("/linux/gidMappings");
        let c = b.namespace("user", Some(json!({"type": "user", "path": path}))).create()?;
        same("namespace", c.ns("user")?, first.ns("user")?)
    }),
    spec(
        "namespaces/joined-pid-sees-others",
        "config-linux.md#namespaces",
        "in a joined pid namespace the other processes are visible",
        |t| {
            let first = t.bundle()?.args(&["sleep", "123"]).start()?;
            let path = format!("/proc/{}/ns/pid", first.pid.as_raw_nonzero());
            let b = t
                .sh("cat /proc/1/comm; echo $$")?
                .namespace("pid", Some(json!({"type": "pid", "path": path})));
            let text = b.output()?;
            ensure!(text.starts_with("sleep\n") && !text.ends_with("\n1"), "inside: {text:?}");
            Ok(())
        },
    ),
    spec(
        "namespaces/path-of-other-type",
        "config-linux.md#namespaces",
        "a path to a namespace of another type is an error",
        |t| {
            let entry = json!({"type": "network", "path": "/proc/self/ns/ipc"});
            t.bundle()?.namespace("network", Some(entry)).refused("an ipc namespace as network").map(drop)
        },
    ),
    spec(
        "namespaces/path-is-no-namespace",
        "config-linux.md#namespaces",
        "a path that is no namespace is an error",
        |t| {
            let entry = json!({"type": "network", "path": "/etc/hostname"});
            t.bundle()?.namespace("network", Some(entry)).refused("a plain file as namespace").map(drop)
        },
    ),
    spec(
        "namespaces/path-missing",
        "config-linux.md#namespaces",
        "a path that is not there is an error",
        |t| {
            let entry = json!({"type": "network", "path": "/nonexistent/ns"});
            t.bundle()?.namespace("network", Some(entry)).refused("a missing namespace").map(drop)
        },
    ),
    spec(
        "namespaces/path-relative",
        "config-linux.md#namespaces",
        "a path that is not absolute is an error",
        |t| {
            let b = t.bundle()?;
            std::os::unix::fs::symlink("/proc/self/ns/net", t.dir.join("net"))?;
            let entry = json!({"type": "network", "path": "net"});
            b.namespace("network", Some(entry)).refused("a relative namespace path").map(drop)
        },
    ),
    spec("namespaces/duplicate", "config-linux.md#namespaces", "two entries of one type are an error", |t| {
        t.bundle()?
            .push("/linux/namespaces", json!({"type": "pid"}))
            .refused("a duplicate namespace")
            .map(drop)
    }),
    spec("namespaces/unknown", "config.md#valid-values", "an unknown type is an error", |t| {
        t.bundle()?.push("/linux/namespaces", json!({"type": "ponies"})).refused("namespace ponies").map(drop)
    }),
    spec(
        "namespaces/new-network-is-empty",
        "config-linux.md#namespaces",
        "a new network namespace has lo only",
        |t| {
            // Some kernels put the ends of tunnels into every namespace.
            let tunnels =
                ["sit0", "tunl0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0"];
            let text = t.bundle()?.args(&["ls", "/sys/class/net"]).output()?;
            same("interfaces", text.lines().filter(|l| !tunnels.contains(l)).collect(), vec!["lo"])
        },
    ),
    spec("namespaces/lo-is-up", "CLI: run", "lo of a new network namespace is up, as runc makes it", |t| {
        let text = t.bundle()?.args(&["ip", "addr", "show", "lo"]).output()?;
        ensure!(text.contains("UP") && text.contains("127.0.0.1"), "{text}");
        Ok(())
    }),
    spec(
        "namespaces/cgroup-view",
        "config-linux.md#namespaces",
        "in a new cgroup namespace the container's cgroup is /",
        |t| {
            let b = t
                .bundle()?
                .args(&["cat", "/proc/self/cgroup"])
                .namespace("cgroup", Some(json!({"type": "cgroup"})));
            for line in b.output()?.lines() {
                // The v2 side of a hybrid host may hold the process elsewhere, but never by our path.
                ensure!(!line.contains(&b.id), "{line}");
            }
            Ok(())
        },
    ),
    spec(
        "userns/mappings",
        "config-linux.md#user-namespace-mappings",
        "uid_map and gid_map are as configured",
        |t| {
            let text = t.sh("cat /proc/self/uid_map /proc/self/gid_map")?.user_namespace()?.output()?;
            let words: Vec<_> = text.split_whitespace().collect();
            same("maps", words, vec!["0", "100000", "65536", "0", "100000", "65536"])
        },
    ),
    spec(
        "userns/several-mappings",
        "config-linux.md#user-namespace-mappings",
        "several entries are kept",
        |t| {
            let map = json!([
                {"containerID": 0, "hostID": 100_000, "size": 1000},
                {"containerID": 5000, "hostID": 300_000, "size": 10}
            ]);
            let b = t.sh("cat /proc/self/uid_map")?.user_namespace()?;
            let text = b.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map).output()?;
            same(
                "map",
                text.split_whitespace().collect(),
                vec!["0", "100000", "1000", "5000", "300000", "10"],
            )
        },
    ),
    spec(
        "userns/root-inside",
        "config-linux.md#user-namespace-mappings",
        "uid 0 inside is the mapped id outside",
        |t| {
            let c = t.bundle()?.args(&["sleep", "100"]).user_namespace()?.start()?;
            ensure!(c.proc("status")?.contains("Uid:\t100000\t100000"), "{}", c.proc("status")?);
            Ok(())
        },
    ),
    spec(
        "userns/does-not-chown",
        "config-linux.md#user-namespace-mappings",
        "the root's files keep their owners",
        |t| {
            let b = t.bundle()?.user_namespace()?.file("etc/mine", "x")?;
            std::os::unix::fs::chown(b.rootfs("etc/mine"), Some(77), Some(78))?;
            b.run()?.ok()?;
            let meta = fs::metadata(b.rootfs("etc/mine"))?;
            use std::os::unix::fs::MetadataExt;
            same("owner", (meta.uid(), meta.gid()), (77, 78))
        },
    ),
    spec(
        "userns/default-mounts",
        "config-linux.md#default-filesystems",
        "proc, sys, dev, pts, shm and mqueue work in a user namespace",
        |t| {
            let text = t.sh("for p in /proc /sys /dev /dev/pts /dev/shm /dev/mqueue; do grep -q \" $p \" /proc/mounts || echo no $p; done; echo x >/dev/null && echo fine")?
            .user_namespace()?
            .output()?;
            same("output", text.as_str(), "fine")
        },
    ),
    spec(
        "userns/default-devices",
        "config-linux.md#default-devices",
        "the default devices are there in a user namespace",
        |t| {
            let text = t.sh("head -c1 /dev/zero | wc -c; head -c1 /dev/urandom | wc -c; ls /dev/full /dev/tty /dev/random")?.user_namespace()?;
            ensure!(text.output()?.starts_with("1\n1\n"), "they do not read");
            Ok(())
        },
    ),
    strict(
        "userns/without-mappings",
        "config-linux.md#user-namespace-mappings",
        "a new user namespace without mappings is an error",
        |t| t.bundle()?.namespace("user", Some(json!({"type": "user"}))).refused("no mappings").map(drop),
    ),
    strict(
        "userns/mappings-without-namespace",
        "config-linux.md#user-namespace-mappings",
        "mappings without a user namespace are an error",
        |t| {
            let map = json!([{"containerID": 0, "hostID": 100_000, "size": 10}]);
            let b = t.bundle()?.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map);
            b.refused("mappings without a user namespace").map(drop)
        },
    ),
    spec(
        "userns/user-not-mapped",
        "config-linux.md#user-namespace-mappings",
        "a uid without mapping is an error",
        |t| {
            let b = t.bundle()?.user_namespace()?.set("/process/user", json!({"uid": 70_000, "gid": 0}));
            b.refused("an unmapped uid").map(drop)
        },
    ),
    spec(
        "userns/capabilities",
        "config.md#linux-process capabilities",
        "capabilities hold inside a user namespace",
        |t| {
            let text =
                t.bundle()?.user_namespace()?.args(&["grep", "^CapBnd", "/proc/self/status"]).output()?;
            same("bounding", super::process::set_of(&text, "CapBnd")?, 0xa804_25fb)
        },
    ),
    spec(
        "time/offsets",
        "config-linux.md#offset-for-time-namespace",
        "offsets of both clocks are set",
        |t| {
            let offsets =
                json!({"monotonic": {"secs": 1_000_000, "nanosecs": 5}, "boottime": {"secs": 2_000_000}});
            let b = t.sh("cat /proc/self/timens_offsets")?.namespace("time", Some(json!({"type": "time"})));
            let text = b.set("/linux/timeOffsets", offsets).output()?;
            let words: Vec<_> = text.split_whitespace().collect();
            same("offsets", words, vec!["monotonic", "1000000", "5", "boottime", "2000000", "0"])
        },
    )
    .needs(&[Need::File("/proc/self/ns/time")]),
    spec(
        "time/program-sees-them",
        "config-linux.md#offset-for-time-namespace",
        "the program itself is in the namespace",
        |t| {
            let b = t.sh("cut -d. -f1 /proc/uptime")?.namespace("time", Some(json!({"type": "time"})));
            let b = b.set("/linux/timeOffsets", json!({"boottime": {"secs": 5_000_000}}));
            ensure!(b.output()?.parse::<u64>()? >= 5_000_000, "uptime is the host's");
            Ok(())
        },
    )
    .needs(&[Need::File("/proc/self/ns/time")]),
    strict(
        "time/offsets-without-namespace",
        "config-linux.md#offset-for-time-namespace",
        "offsets without a time namespace are an error",
        |t| {
            t.bundle()?
                .set("/linux/timeOffsets", json!({"boottime": {"secs": 5}}))
                .refused("offsets without namespace")
                .map(drop)
        },
    ),
    strict(
        "time/unknown-clock",
        "config.md#valid-values",
        "an offset of a clock that has none is an error",
        |t| {
            let b = t.bundle()?.namespace("time", Some(json!({"type": "time"})));
            b.set("/linux/timeOffsets", json!({"realtime": {"secs": 5}}))
                .refused("an offset of realtime")
                .map(drop)
        },
    ),
    spec("uts/hostname", "config.md#hostname", "hostname is set inside and not outside", |t| {
        let before = fs::read_to_string("/proc/sys/kernel/hostname")?;
        same(
            "hostname",
            t.bundle()?.args(&["hostname"]).set("/hostname", json!("mrsdalloway")).output()?.as_str(),
            "mrsdalloway",
        )?;
        same("host", fs::read_to_string("/proc/sys/kernel/hostname")?, before)
    }),
    spec("uts/domainname", "config.md#domainname", "domainname is set inside", |t| {
        let b = t
            .bundle()?
            .args(&["cat", "/proc/sys/kernel/domainname"])
            .set("/domainname", json!("foobarbaz.test"));
        same("domainname", b.output()?.as_str(), "foobarbaz.test")
    }),
    spec(
        "uts/hostname-without-namespace",
        "config.md#hostname",
        "a hostname without uts namespace is an error",
        |t| {
            t.bundle()?
                .namespace("uts", None)
                .set("/hostname", json!(as_it_is("kernel/hostname")?))
                .refused("a hostname without uts namespace")
                .map(drop)
        },
    ),
    spec("sysctl/network", "config-linux.md#sysctl", "a sysctl of the network namespace is set", |t| {
        let b = t
            .bundle()?
            .args(&["cat", "/proc/sys/net/ipv4/ip_forward"])
            .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
        same("value", b.output()?.as_str(), "1")
    }),
    spec("sysctl/ipc", "config-linux.md#sysctl", "a sysctl of the ipc namespace is set", |t| {
        let b = t
            .bundle()?
            .args(&["cat", "/proc/sys/kernel/shmmni"])
            .set("/linux/sysctl", json!({"kernel.shmmni": "1234"}));
        same("value", b.output()?.as_str(), "1234")
    }),
    spec("sysctl/mqueue", "config-linux.md#sysctl", "fs.mqueue.* is set", |t| {
        let b = t
            .bundle()?
            .args(&["cat", "/proc/sys/fs/mqueue/msg_max"])
            .set("/linux/sysctl", json!({"fs.mqueue.msg_max": "17"}));
        same("value", b.output()?.as_str(), "17")
    }),
    spec(
        "sysctl/domainname",
        "config-linux.md#sysctl",
        "kernel.domainname is a sysctl of the uts namespace",
        |t| {
            let b = t
                .bundle()?
                .args(&["cat", "/proc/sys/kernel/domainname"])
                .set("/linux/sysctl", json!({"kernel.domainname": "d.test"}));
            same("value", b.output()?.as_str(), "d.test")
        },
    ),
    spec("sysctl/with-slashes", "CLI: sysctl", "a name with slashes works as one with dots", |t| {
        let b = t
            .bundle()?
            .args(&["cat", "/proc/sys/net/ipv4/ip_forward"])
            .set("/linux/sysctl", json!({"net/ipv4/ip_forward": "1"}));
        same("value", b.output()?.as_str(), "1")
    }),
    spec(
        "sysctl/interface-with-dot",
        "CLI: sysctl",
        "net/ipv4/conf/lo/… with slashes sets an interface's value",
        |t| {
            let b = t.bundle()?.args(&["cat", "/proc/sys/net/ipv4/conf/lo/rp_filter"]);
            same(
                "value",
                b.set("/linux/sysctl", json!({"net/ipv4/conf/lo/rp_filter": "2"})).output()?.as_str(),
                "2",
            )
        },
    ),
    spec(
        "sysctl/without-namespace",
        "THREATS: sysctls",
        "a network sysctl without a network namespace is an error",
        |t| {
            let b = t.bundle()?.namespace("network", None).without_mount("/sys");
            b.set("/linux/sysctl", json!({"net.ipv4.ip_forward": as_it_is("net/ipv4/ip_forward")?}))
                .refused("a sysctl of the host")
                .map(drop)
        },
    ),
    spec("sysctl/not-namespaced", "THREATS: sysctls", "a sysctl of the whole host is an error", |t| {
        t.bundle()?
            .set("/linux/sysctl", json!({"vm.swappiness": as_it_is("vm/swappiness")?}))
            .refused("vm.swappiness")
            .map(drop)
    }),
    spec("sysctl/unknown", "config.md#valid-values", "a sysctl that does not exist is an error", |t| {
        t.bundle()?.set("/linux/sysctl", json!({"net.ponies": "1"})).refused("net.ponies").map(drop)
    }),
    strict("sysctl/with-dots", "THREATS: sysctls", "a sysctl that climbs with .. is an error", |t| {
        t.bundle()?
            .set("/linux/sysctl", json!({"net/../kernel/hostname": as_it_is("kernel/hostname")?}))
            .refused("a climbing sysctl")
            .map(drop)
    }),
    strict(
        "sysctl/hostname",
        "CLI: sysctl",
        "kernel.hostname is refused, for which hostname is there",
        |t| {
            t.bundle()?
                .set("/linux/sysctl", json!({"kernel.hostname": "other"}))
                .refused("kernel.hostname")
                .map(drop)
        },
    ),
    spec("personality/linux32", "config-linux.md#personality", "LINUX32 is the program's personality", |t| {
        let b = t
            .bundle()?
            .args(&["cat", "/proc/self/personality"])
            .set("/linux/personality", json!({"domain": "LINUX32"}));
        same("personality", b.output()?.as_str(), "00000008")
    }),
    spec("personality/linux", "config-linux.md#personality", "LINUX is the ordinary one", |t| {
        let b = t
            .bundle()?
            .args(&["cat", "/proc/self/personality"])
            .set("/linux/personality", json!({"domain": "LINUX"}));
        same("personality", b.output()?.as_str(), "00000000")
    }),
    spec("personality/unknown", "config.md#valid-values", "an unknown domain is an error", |t| {
        t.bundle()?.set("/linux/personality", json!({"domain": "PONIES"})).refused("domain PONIES").map(drop)
    }),
    spec(
        "personality/flags",
        "config-linux.md#personality",
        "no flag is supported, so any is an error",
        |t| {
            let personality = json!({"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]});
            t.bundle()?.set("/linux/personality", personality).refused("a personality flag").map(drop)
        },
    ),
    spec("memory-policy/bind", "config-linux.md#memory-policy", "MPOL_BIND of nodes is set", |t| {
        let policy = json!({"mode": "MPOL_BIND", "nodes": "0"});
        let text =
            t.bundle()?.args(&["cat", "/proc/self/numa_maps"]).set("/linux/memoryPolicy", policy).output()?;
        ensure!(text.lines().any(|l| l.contains(" bind:0")), "no mapping has the policy");
        Ok(())
    })
    .needs(&[Need::File("/proc/self/numa_maps")]),
    spec(
        "memory-policy/interleave-static",
        "config-linux.md#memory-policy",
        "MPOL_INTERLEAVE with a flag is set",
        |t| {
            let policy = json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
            let text = t
                .bundle()?
                .args(&["cat", "/proc/self/numa_maps"])
                .set("/linux/memoryPolicy", policy)
                .output()?;
            ensure!(
                text.lines().any(|l| l.contains(" interleave=static:0")),
                "no mapping has the policy: {}",
                text.lines().next().unwrap_or_default()
            );
            Ok(())
        },
    )
    .needs(&[Need::File("/proc/self/numa_maps")]),
    spec("memory-policy/unknown-mode", "config.md#valid-values", "an unknown mode is an error", |t| {
        t.bundle()?
            .set("/linux/memoryPolicy", json!({"mode": "MPOL_PONIES", "nodes": "0"}))
            .refused("MPOL_PONIES")
            .map(drop)
    }),
    spec("memory-policy/unknown-flag", "config.md#valid-values", "an unknown flag is an error", |t| {
        let policy = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_PONIES"]});
        t.bundle()?.set("/linux/memoryPolicy", policy).refused("MPOL_F_PONIES").map(drop)
    }),
    spec(
        "memory-policy/missing-node",
        "config.md#valid-values",
        "a node that the host does not have is an error",
        |t| {
            t.bundle()?
                .set("/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "63"}))
                .refused("node 63")
                .map(drop)
        },
    )
    .needs(&[Need::NoFile("/sys/devices/system/node/node63")]),
    spec(
        "intel-rdt/absent",
        "config-linux.md#intelrdt",
        "intelRdt without a mounted resctrl is an error",
        |t| {
            t.bundle()?
                .set("/linux/intelRdt", json!({"closID": "x", "l3CacheSchema": "L3:0=f"}))
                .refused("intelRdt")
                .map(drop)
        },
    )
    .needs(&[Need::NoFile("/sys/fs/resctrl/schemata")]),
    spec(
        "net-devices/moved",
        "config-linux.md#network-devices",
        "a host interface moves into the container",
        |t| with_device(t, |device| move_device(t, device, json!({}), None)),
    )
    .needs(&[Need::Program("ip")]),
    spec("net-devices/renamed", "config-linux.md#network-devices", "and gets the name asked for", |t| {
        with_device(t, |device| move_device(t, device, json!({"name": "inside0"}), Some("inside0")))
    })
    .needs(&[Need::Program("ip")]),
    spec(
        "net-devices/missing",
        "config-linux.md#network-devices",
        "an interface that is not there is an error",
        |t| {
            t.bundle()?
                .set("/linux/netDevices", json!({"ponies0": {}}))
                .refused("a missing interface")
                .map(drop)
        },
    ),
    spec(
        "net-devices/without-namespace",
        "config-linux.md#network-devices",
        "netDevices in the host's network namespace is an error",
        |t| {
            // Of our own making: a runtime that does not refuse would rename the host's.
            with_device(t, |device| {
                let b = t.bundle()?.namespace("network", None).without_mount("/sys");
                b.set("/linux/netDevices", json!({device: {"name": format!("{device}2")}}))
                    .refused("netDevices without namespace")
                    .map(drop)
            })
        },
    )
    .needs(&[Need::Program("ip")]),
    spec(
        "net-devices/bad-name",
        "config-linux.md#network-devices",
        "a name that no interface can have is an error",
        |t| {
            with_device(t, |device| {
                t.bundle()?
                    .set("/linux/netDevices", json!({device: {"name": "a/b"}}))
                    .refused("name a/b")
                    .map(drop)
            })
        },
    )
    .needs(&[Need::Program("ip")]),
    spec(
        "extensibility/unknown-top",
        "config.md#extensibility",
        "an unknown property at the top is ignored",
        |t| t.bundle()?.set("/ponies", json!({"a": [1]})).run()?.ok().map(drop),
    ),
    spec(
        "extensibility/unknown-process",
        "config.md#extensibility",
        "an unknown property of process is ignored",
        |t| {
            t.bundle()?
                .set("/process/ponies", json!(1))
                .set("/process/user/ponies", json!(null))
                .run()?
                .ok()
                .map(drop)
        },
    ),
    spec(
        "extensibility/unknown-linux",
        "config.md#extensibility",
        "unknown properties of linux, resources and mounts are ignored",
        |t| {
            let b = t.bundle()?.set("/linux/ponies", json!(true)).set("/linux/resources/ponies", json!("x"));
            b.set("/mounts/0/ponies", json!(1))
                .set("/linux/namespaces/0/ponies", json!(1))
                .run()?
                .ok()
                .map(drop)
        },
    ),
    spec(
        "extensibility/other-platforms",
        "config.md#platform-specific-configuration",
        "sections of other platforms are ignored",
        |t| {
            t.bundle()?
                .set("/windows", json!({"layerFolders": ["x"]}))
                .set("/solaris", json!({"milestone": "x"}))
                .run()?
                .ok()
                .map(drop)
        },
    ),
    spec(
        "extensibility/unknown-annotation",
        "config.md#annotations",
        "unknown annotations are no error",
        |t| t.bundle()?.set("/annotations", json!({"com.example.ponies": "many"})).run()?.ok().map(drop),
    ),
    strict(
        "extensibility/empty-annotation-key",
        "config.md#annotations",
        "an empty annotation key is an error",
        |t| t.bundle()?.set("/annotations", json!({"": "x"})).refused("an empty key").map(drop),
    ),
    spec(
        "valid-values/annotation-not-string",
        "config.md#annotations",
        "an annotation that is no string is an error",
        |t| {
            t.bundle()?
                .set("/annotations", json!({"com.example": 1}))
                .refused("a number as annotation")
                .map(drop)
        },
    ),
    spec(
        "valid-values/not-json",
        "config.md#configuration",
        "a config.json that is not JSON is an error",
        |t| {
            let b = t.bundle()?;
            fs::write(b.dir.join("config.json"), "{\"ociVersion\": ")?;
            t.rt(&["create", "--bundle", &b.dir_text(), &b.id])?.refused("half a config").map(drop)
        },
    ),
    spec(
        "valid-values/wrong-type",
        "config.md#valid-values",
        "a string where an object belongs is an error",
        |t| t.bundle()?.set("/process", json!("sh")).refused_as_it_is("a string as process").map(drop),
    ),
    spec(
        "valid-values/null-is-absent",
        "config.md#configuration",
        "null for an optional property means that it is not there",
        |t| {
            let b = t
                .bundle()?
                .set("/linux/seccomp", Value::Null)
                .set("/hooks", Value::Null)
                .set("/process/rlimits", Value::Null);
            b.set("/annotations", Value::Null).run()?.ok().map(drop)
        },
    ),
    spec(
        "valid-values/no-linux",
        "config.md#platform-specific-configuration",
        "linux is optional: everything is inherited then, or refused with words",
        |t| {
            let b = t.bundle()?.args(&["true"]).unset("/linux").unset("/hostname").set("/mounts", json!([]));
            let output = b.run()?;
            ensure!(output.code == 0 || !output.err.trim().is_empty(), "refused without a word");
            Ok(())
        },
    ),
];

fn host_ns(name: &str) -> Result<std::path::PathBuf> {
    Ok(fs::read_link(format!("/proc/self/ns/{name}"))?)
}

fn fresh(t: &Test, kind: &str, file: &str) -> Result<()> {
    let c = t.bundle()?.args(&["sleep", "100"]).namespace(kind, Some(json!({"type": kind}))).start()?;
    ensure!(c.ns(file)? != host_ns(file)?, "it is the host's");
    Ok(())
}

fn join(t: &Test, kind: &str, file: &str) -> Result<()> {
    let first = t.bundle()?.args(&["sleep", "100"]).start()?;
    let path = format!("/proc/{}/ns/{file}", first.pid.as_raw_nonzero());
    let b = t.bundle()?.namespace(kind, Some(json!({"type": kind, "path": path}))).unset("/hostname");
    let c = b.create()?;
    same("namespace", c.ns(file)?, first.ns(file)?)
}

/// What a sysctl of the host is set to, so that a runtime that does not refuse to set it changes nothing.
fn as_it_is(name: &str) -> Result<String> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(name)).with_context(|| name.to_owned())?;
    Ok(text.trim_end().to_owned())
}

/// A pair of interfaces on the host, for as long as `case` uses one of its ends.
fn with_device(t: &Test, case: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let ip = program("ip").context("ip")?;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let stem = format!("cf{}x{}", std::process::id() % 100_000, NEXT.fetch_add(1, Ordering::Relaxed));
    let (mine, peer) = (format!("{stem}a"), format!("{stem}b"));
    let mut add = Command::new(&ip);
    add.args(["link", "add", &mine, "type", "veth", "peer", "name", &peer]);
    let made = t.finish(add)?;
    if made.code != 0 {
        return Err(skip(format!("cannot make a veth pair: {}", made.err.trim())));
    }
    let outcome = case(&mine);
    let mut delete = Command::new(&ip);
    delete.args(["link", "delete", &peer]);
    // The pair is gone already when the container's namespace went with its end.
    t.finish(delete)?;
    outcome
}

fn move_device(t: &Test, device: &str, entry: Value, name: Option<&str>) -> Result<()> {
    let b = t.bundle()?.args(&["sleep", "100"]).set(&format!("/linux/netDevices/{device}"), entry);
    let c = b.start()?;
    let want = name.unwrap_or(device);
    let text = c.sh("ls /sys/class/net")?;
    ensure!(text.lines().any(|l| l == want), "inside there is only {text:?}");
    ensure!(!Path::new("/sys/class/net").join(device).exists(), "it is still on the host");
    Ok(())
}
