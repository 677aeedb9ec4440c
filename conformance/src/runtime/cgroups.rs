//! config-linux.md#control-groups: cgroupsPath and every resource that the host's controllers know, v1 and v2.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::case::{Case, contract, spec, strict};
use super::harness::{Container, Test, same};
use super::host::Need;

pub const CASES: &[Case] = &[
    spec(
        "cgroups/absolute-path",
        "config-linux.md#cgroups-path",
        "an absolute cgroupsPath is below the mount point of each hierarchy",
        |t| {
            let c = t.bundle()?.create()?;
            let host = &t.suite.host;
            for (name, mount) in host.v1.iter().filter(|(name, _)| !name.starts_with("name=")) {
                let procs = fs::read_to_string(mount.join(&t.suite.cgroup).join(&c.id).join("cgroup.procs"));
                let procs = procs.with_context(|| format!("no cgroup of {name} at cgroupsPath"))?;
                ensure!(
                    procs.lines().any(|l| l == c.pid.as_raw_nonzero().to_string()),
                    "the process is not in {name}'s"
                );
            }
            if host.is_v2() {
                ensure!(
                    c.cgroup_file("", "cgroup.procs")?.contains(&c.pid.as_raw_nonzero().to_string()),
                    "not in it"
                );
            }
            Ok(())
        },
    ),
    spec(
        "cgroups/missing-path",
        "config-linux.md#cgroups-path",
        "without cgroupsPath the container still gets a place",
        |t| t.bundle()?.unset("/linux/cgroupsPath").run()?.ok().map(drop),
    ),
    spec(
        "cgroups/relative-path",
        "config-linux.md#cgroups-path",
        "a relative cgroupsPath leads to the same place each time",
        |t| {
            let b = t.bundle()?;
            let path = format!("{}-relative/{}", t.suite.cgroup, b.id);
            let b = b.set("/linux/cgroupsPath", json!(path));
            let mut seen = Vec::new();
            for _ in 0..2 {
                let c = b.create()?;
                seen.push(c.proc("cgroup")?);
                c.delete()?;
            }
            same("place", &seen[1], &seen[0])?;
            remove_parents(t, &seen[0])
        },
    ),
    strict(
        "cgroups/path-with-dots",
        "config-linux.md#cgroups-path",
        "a cgroupsPath with .. does not leave its hierarchy",
        |t| {
            let b = t.bundle()?;
            let path = format!("/{}/../../../../../{}/{}", t.suite.cgroup, t.suite.cgroup, b.id);
            let output = b.set("/linux/cgroupsPath", json!(path)).run()?;
            ensure!(output.code == 0 || !output.err.is_empty(), "refused without a word");
            Ok(())
        },
    ),
    spec(
        "cgroups/exists-already",
        "config-linux.md#cgroups-path",
        "a cgroup that is there and empty is used",
        |t| {
            let b = t.bundle()?;
            for mount in t.suite.host.v1.values().chain(t.suite.host.v2.iter()) {
                fs::create_dir_all(mount.join(&t.suite.cgroup).join(&b.id))?;
            }
            let output = b.run()?;
            // What create did not make, delete may leave.
            for mount in t.suite.host.v1.values().chain(t.suite.host.v2.iter()) {
                match fs::remove_dir(mount.join(&t.suite.cgroup).join(&b.id)) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                    _ => {}
                }
            }
            output.ok().map(drop)
        },
    ),
    spec("cgroups/no-resources", "config-linux.md#cgroups-path", "resources may be absent", |t| {
        t.bundle()?.unset("/linux/resources").run()?.ok().map(drop)
    }),
    spec("memory/limit", "config-linux.md#memory", "limit (v1)", |t| {
        v1(t, "memory", json!({"limit": 67_108_864}), "memory.limit_in_bytes", "67108864")
    })
    .needs(&[Need::V1("memory")]),
    spec("memory/reservation", "config-linux.md#memory", "reservation (v1)", |t| {
        v1(t, "memory", json!({"reservation": 33_554_432}), "memory.soft_limit_in_bytes", "33554432")
    })
    .needs(&[Need::V1("memory")]),
    spec("memory/swap", "config-linux.md#memory", "swap is the sum of memory and swap (v1)", |t| {
        v1(
            t,
            "memory",
            json!({"limit": 67_108_864, "swap": 134_217_728}),
            "memory.memsw.limit_in_bytes",
            "134217728",
        )
    })
    .needs(&[Need::V1File("memory", "memory.memsw.limit_in_bytes")]),
    spec("memory/unlimited", "config-linux.md#memory", "-1 is unlimited (v1)", |t| {
        let c = t.bundle()?.set("/linux/resources/memory", json!({"limit": -1})).create()?;
        let value: u64 = c.cgroup_file("memory", "memory.limit_in_bytes")?.parse()?;
        ensure!(value > 1 << 60, "limit is {value}");
        Ok(())
    })
    .needs(&[Need::V1("memory")]),
    spec("memory/swap-unlimited", "config-linux.md#memory", "swap -1 with a limit (v1)", |t| {
        let c =
            t.bundle()?.set("/linux/resources/memory", json!({"limit": 67_108_864, "swap": -1})).create()?;
        same("limit", c.cgroup_file("memory", "memory.limit_in_bytes")?.as_str(), "67108864")?;
        ensure!(
            c.cgroup_file("memory", "memory.memsw.limit_in_bytes")?.parse::<u64>()? > 1 << 60,
            "swap is limited"
        );
        Ok(())
    })
    .needs(&[Need::V1File("memory", "memory.memsw.limit_in_bytes")]),
    spec("memory/kernel-tcp", "config-linux.md#memory", "kernelTCP (v1)", |t| {
        v1(t, "memory", json!({"kernelTCP": 16_777_216}), "memory.kmem.tcp.limit_in_bytes", "16777216")
    })
    .needs(&[Need::V1File("memory", "memory.kmem.tcp.limit_in_bytes")]),
    spec("memory/swappiness", "config-linux.md#memory", "swappiness (v1)", |t| {
        v1(t, "memory", json!({"swappiness": 17}), "memory.swappiness", "17")
    })
    .needs(&[Need::V1("memory")]),
    spec(
        "memory/swappiness-zero",
        "config-linux.md#memory",
        "swappiness 0 is not taken for unset (v1)",
        |t| v1(t, "memory", json!({"swappiness": 0}), "memory.swappiness", "0"),
    )
    .needs(&[Need::V1("memory")]),
    spec("memory/swappiness-range", "config-linux.md#memory", "swappiness is 0 to 100 (v1)", |t| {
        // 101 to 200 is the kernel's newer range, 1000 is nobody's.
        t.bundle()?
            .set("/linux/resources/memory", json!({"swappiness": 1000}))
            .refused("swappiness 1000")
            .map(drop)
    })
    .needs(&[Need::V1("memory")]),
    spec("memory/disable-oom-killer", "config-linux.md#memory", "disableOOMKiller (v1)", |t| {
        let memory = json!({"limit": 67_108_864, "disableOOMKiller": true});
        let c = t.bundle()?.set("/linux/resources/memory", memory).create()?;
        ensure!(
            c.cgroup_file("memory", "memory.oom_control")?.contains("oom_kill_disable 1"),
            "it is enabled"
        );
        Ok(())
    })
    .needs(&[Need::V1File("memory", "memory.oom_control")]),
    spec(
        "memory/is-enforced",
        "config-linux.md#memory",
        "a program that needs more than the limit is killed",
        |t| {
            let b = t.bundle()?.args(&["dd", "if=/dev/zero", "of=/dev/null", "bs=60M", "count=1"]);
            let b = b.set("/linux/resources/memory", json!({"limit": 16_777_216, "swap": 16_777_216}));
            let output = b.run()?;
            ensure!(output.code != 0, "60 MiB fitted into 16 MiB");
            Ok(())
        },
    ),
    spec(
        "memory/too-small",
        "runtime.md#errors",
        "a limit below what is used is an error or a kill, never ignored",
        |t| {
            let output = t
                .bundle()?
                .args(&["echo", "ran"])
                .set("/linux/resources/memory", json!({"limit": 4096}))
                .run()?;
            ensure!(output.code != 0, "4 KiB were enough");
            Ok(())
        },
    ),
    spec("cpu/shares", "config-linux.md#cpu", "shares (v1)", |t| {
        v1(t, "cpu", json!({"shares": 512}), "cpu.shares", "512")
    })
    .needs(&[Need::V1("cpu")]),
    spec("cpu/quota", "config-linux.md#cpu", "quota (v1)", |t| {
        v1(t, "cpu", json!({"quota": 50_000, "period": 100_000}), "cpu.cfs_quota_us", "50000")
    })
    .needs(&[Need::V1("cpu")]),
    spec("cpu/period", "config-linux.md#cpu", "period (v1)", |t| {
        v1(t, "cpu", json!({"quota": 20_000, "period": 40_000}), "cpu.cfs_period_us", "40000")
    })
    .needs(&[Need::V1("cpu")]),
    spec("cpu/burst", "config-linux.md#cpu", "burst (v1)", |t| {
        v1(
            t,
            "cpu",
            json!({"quota": 50_000, "period": 100_000, "burst": 20_000}),
            "cpu.cfs_burst_us",
            "20000",
        )
    })
    .needs(&[Need::V1File("cpu", "cpu.cfs_burst_us")]),
    spec("cpu/idle", "config-linux.md#cpu", "idle (v1)", |t| {
        v1(t, "cpu", json!({"idle": 1}), "cpu.idle", "1")
    })
    .needs(&[Need::V1File("cpu", "cpu.idle")]),
    spec("cpu/cpus", "config-linux.md#cpu", "cpus", |t| {
        let b = t.bundle()?.args(&["grep", "Cpus_allowed_list", "/proc/self/status"]);
        let text = b.set("/linux/resources/cpu", json!({"cpus": "0"})).output()?;
        same("cpus", text.split_whitespace().nth(1), Some("0"))
    })
    .needs(&[Need::V1("cpuset")]),
    spec("cpu/mems", "config-linux.md#cpu", "mems (v1)", |t| {
        v1(t, "cpuset", json!({"mems": "0"}), "cpuset.mems", "0")
    })
    .needs(&[Need::V1("cpuset")]),
    spec(
        "cpu/cpus-invalid",
        "config.md#valid-values",
        "CPUs that the host does not have are an error",
        |t| t.bundle()?.set("/linux/resources/cpu", json!({"cpus": "4000"})).refused("cpus 4000").map(drop),
    ),
    spec(
        "cpu/quota-too-small",
        "config.md#valid-values",
        "a quota that the kernel refuses is an error",
        |t| {
            t.bundle()?
                .set("/linux/resources/cpu", json!({"quota": 10, "period": 100_000}))
                .refused("quota 10")
                .map(drop)
        },
    ),
    spec(
        "cpu/realtime",
        "config-linux.md#cpu",
        "realtimePeriod and realtimeRuntime are set, or the kernel's refusal is an error (v1)",
        |t| {
            let b = t
                .bundle()?
                .set("/linux/resources/cpu", json!({"realtimePeriod": 500_000, "realtimeRuntime": 1000}));
            b.write()?;
            let output = t.rt(&["create", "--bundle", &b.dir_text(), &b.id])?;
            if output.code != 0 {
                // The parents have no budget of their own on most hosts.
                return output.refused("realtime").map(drop);
            }
            let dir = t.cgroup_dir("cpu", &b.id)?;
            same("runtime", fs::read_to_string(dir.join("cpu.rt_runtime_us"))?.trim(), "1000")
        },
    )
    .needs(&[Need::V1File("cpu", "cpu.rt_runtime_us")]),
    spec("pids/limit", "config-linux.md#pids", "limit (v1)", |t| {
        v1(t, "pids", json!({"limit": 77}), "pids.max", "77")
    })
    .needs(&[Need::V1("pids")]),
    spec("pids/is-enforced", "config-linux.md#pids", "more processes than the limit cannot be made", |t| {
        let b = t
            .sh("for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait")?
            .set("/linux/resources/pids", json!({"limit": 5}));
        let output = b.run()?;
        ensure!(output.err.contains("fork") || output.code != 0, "eight processes fitted into five");
        Ok(())
    }),
    spec("pids/unlimited", "config-linux.md#pids", "-1 is no limit", |t| {
        let c = t.bundle()?.set("/linux/resources/pids", json!({"limit": -1})).create()?;
        same("pids.max", c.cgroup_file("pids", "pids.max")?.as_str(), "max")
    }),
    strict(
        "pids/zero-is-not-absent",
        "config-linux.md#pids",
        "limit 0 and no limit differ: 0 allows no further process",
        |t| {
            let b = t.sh("sleep 0.01 & wait; echo went on")?;
            same("without", b.output()?.as_str(), "went on")?;
            let output = b.set("/linux/resources/pids", json!({"limit": 0})).run()?;
            ensure!(output.code != 0 || !output.err.is_empty(), "limit 0 let a program fork");
            Ok(())
        },
    ),
    spec("block-io/throttle-read-bps", "config-linux.md#block-io", "throttleReadBpsDevice (v1)", |t| {
        throttle(t, "throttleReadBpsDevice", "blkio.throttle.read_bps_device")
    })
    .needs(&[Need::V1("blkio"), Need::File("/sys/block")]),
    spec("block-io/throttle-write-bps", "config-linux.md#block-io", "throttleWriteBpsDevice (v1)", |t| {
        throttle(t, "throttleWriteBpsDevice", "blkio.throttle.write_bps_device")
    })
    .needs(&[Need::V1("blkio")]),
    spec("block-io/throttle-read-iops", "config-linux.md#block-io", "throttleReadIOPSDevice (v1)", |t| {
        throttle(t, "throttleReadIOPSDevice", "blkio.throttle.read_iops_device")
    })
    .needs(&[Need::V1("blkio")]),
    spec("block-io/throttle-write-iops", "config-linux.md#block-io", "throttleWriteIOPSDevice (v1)", |t| {
        throttle(t, "throttleWriteIOPSDevice", "blkio.throttle.write_iops_device")
    })
    .needs(&[Need::V1("blkio")]),
    spec(
        "block-io/weight",
        "config-linux.md#block-io",
        "weight goes to blkio.weight or blkio.bfq.weight (v1)",
        |t| {
            let c = t.bundle()?.set("/linux/resources/blockIO", json!({"weight": 300})).create()?;
            let value = c
                .cgroup_file("blkio", "blkio.bfq.weight")
                .or_else(|_| c.cgroup_file("blkio", "blkio.weight"))?;
            ensure!(value.split_whitespace().any(|w| w == "300"), "the weight is {value}");
            Ok(())
        },
    )
    .needs(&[Need::V1File("blkio", "blkio.bfq.weight")]),
    spec(
        "block-io/missing-device",
        "config.md#valid-values",
        "a device that does not exist is an error",
        |t| {
            let entry = json!([{"major": 4000, "minor": 1, "rate": 1000}]);
            t.bundle()?
                .set("/linux/resources/blockIO", json!({"throttleReadBpsDevice": entry}))
                .refused("device 4000:1")
                .map(drop)
        },
    ),
    spec("hugetlb/limit", "config-linux.md#huge-page-limits", "a limit by page size (v1)", |t| {
        let c = t
            .bundle()?
            .set("/linux/resources/hugepageLimits", json!([{"pageSize": "2MB", "limit": 4_194_304}]))
            .create()?;
        let value = c
            .cgroup_file("hugetlb", "hugetlb.2MB.rsvd.limit_in_bytes")
            .or_else(|_| c.cgroup_file("hugetlb", "hugetlb.2MB.limit_in_bytes"))?;
        same("limit", value.as_str(), "4194304")
    })
    .needs(&[Need::V1("hugetlb")]),
    spec(
        "hugetlb/unknown-size",
        "config.md#valid-values",
        "a page size that the kernel does not have is an error",
        |t| {
            t.bundle()?
                .set("/linux/resources/hugepageLimits", json!([{"pageSize": "3MB", "limit": 3_145_728}]))
                .refused("3MB pages")
                .map(drop)
        },
    ),
    strict(
        "hugetlb/hybrid",
        "issue: a hybrid host",
        "on a hybrid host whose v2 side has the controller, the limit is set there",
        |t| {
            let host = &t.suite.host;
            if host.is_v2() || host.v1.contains_key("hugetlb") || !host.has_controller("hugetlb") {
                return Err(super::case::skip("needs a hybrid host with hugetlb on the v2 side"));
            }
            let limits = json!([{"pageSize": "2MB", "limit": 4_194_304}]);
            let c = t.bundle()?.set("/linux/resources/hugepageLimits", limits).create()?;
            same("hugetlb.2MB.max", c.cgroup_file("hugetlb", "hugetlb.2MB.max")?.as_str(), "4194304")
        },
    ),
    strict(
        "hugetlb/missing-controller",
        "config.md#valid-values",
        "a limit without the controller is an error, not silence",
        |t| {
            if t.suite.host.has_controller("hugetlb") {
                return Err(super::case::skip("needs a host without hugetlb"));
            }
            t.bundle()?
                .set("/linux/resources/hugepageLimits", json!([{"pageSize": "2MB", "limit": 2_097_152}]))
                .refused("hugetlb")
                .map(drop)
        },
    ),
    spec("network/class-id", "config-linux.md#network", "classID (v1)", |t| {
        v1(t, "net_cls", json!({"classID": 1_048_577}), "net_cls.classid", "1048577")
    })
    .needs(&[Need::V1("net_cls")]),
    spec("rdma/limit", "config-linux.md#rdma", "rdma without the controller is an error", |t| {
        if t.suite.host.has_controller("rdma") {
            return Err(super::case::skip("needs a host without rdma"));
        }
        t.bundle()?
            .set("/linux/resources/rdma", json!({"mlx5_1": {"hcaHandles": 3}}))
            .refused("rdma")
            .map(drop)
    }),
    spec(
        "unified/on-v1",
        "config-linux.md#unified",
        "unified with a controller that v2 does not have is an error",
        |t| {
            if t.suite.host.is_v2() {
                return Err(super::case::skip("needs a host with controllers on v1"));
            }
            t.bundle()?
                .set("/linux/resources/unified", json!({"memory.high": "1000000"}))
                .refused("unified")
                .map(drop)
        },
    ),
    spec(
        "cgroups/mount-is-there",
        "config.md#mounts",
        "a mount of type cgroup shows the container's cgroup",
        |t| {
            let b = t.sh("ls /sys/fs/cgroup")?;
            let text = b
                .mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"])
                .output()?;
            if t.suite.host.is_v2() {
                ensure!(text.contains("cgroup.procs"), "{text}");
            } else {
                ensure!(
                    text.lines().any(|l| l == "memory") && text.lines().any(|l| l == "devices"),
                    "only {text:?}"
                );
            }
            Ok(())
        },
    ),
    spec(
        "cgroups/mount-is-own",
        "config.md#mounts",
        "in it the container sees its own cgroup as the root",
        |t| {
            let b = t
                .sh("cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true")?
                .set("/linux/resources/pids", json!({"limit": 55}));
            let b = b.mount(
                "/sys/fs/cgroup",
                "cgroup",
                "cgroup",
                &["nosuid", "noexec", "nodev", "relatime", "ro"],
            );
            same("pids.max", b.namespace("cgroup", Some(json!({"type": "cgroup"}))).output()?.as_str(), "55")
        },
    ),
    spec("cgroups/mount-own-without-namespace", "config.md#mounts", "also without a cgroup namespace", |t| {
        let b = t
            .sh("cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true")?
            .set("/linux/resources/pids", json!({"limit": 55}));
        let b =
            b.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]);
        same("pids.max", b.output()?.as_str(), "55")
    })
    // On v2 runtimes show the host's hierarchy, or the container's part of it.
    .needs(&[Need::V1("pids")]),
    spec("cgroups/mount-read-only", "config.md#mounts", "with ro it cannot be written", |t| {
        let b = t.sh(
            "d=/sys/fs/cgroup; [ -d $d/pids ] && d=$d/pids; mkdir $d/sub 2>/dev/null && echo made; true",
        )?;
        let b =
            b.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]);
        same("output", b.output()?.as_str(), "")
    }),
    spec(
        "cgroups/v1-not-chowned",
        "config-linux.md#cgroup-ownership",
        "on v1 the cgroup's owner is not changed",
        |t| {
            let b = t.bundle()?.user_namespace()?.namespace("cgroup", Some(json!({"type": "cgroup"})));
            let c = b
                .mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime"])
                .create()?;
            use std::os::unix::fs::MetadataExt;
            same("owner", fs::metadata(t.cgroup_dir("memory", &c.id)?)?.uid(), 0)
        },
    )
    .needs(&[Need::V1("memory")]),
    contract("cgroups/exec-joins", "CLI: exec", "a process of exec is in the container's cgroup", |t| {
        let c = t.bundle()?.args(&["sleep", "100"]).start()?;
        let text = c.sh("cat /proc/self/cgroup")?;
        ensure!(text.lines().filter(|l| l.contains(&c.id)).count() > 0, "{text}");
        same("cgroups", text.trim().to_owned(), c.proc("cgroup")?.trim().to_owned())
    }),
    spec(
        "v2/memory",
        "config-linux.md#memory",
        "limit and swap become memory.max and memory.swap.max",
        |t| {
            let c = v2(
                t,
                json!({"memory": {"limit": 67_108_864, "swap": 100_663_296, "reservation": 33_554_432}}),
            )?;
            same("memory.max", c.cgroup_file("", "memory.max")?.as_str(), "67108864")?;
            same("memory.swap.max", c.cgroup_file("", "memory.swap.max")?.as_str(), "33554432")?;
            same("memory.low", c.cgroup_file("", "memory.low")?.as_str(), "33554432")
        },
    )
    .needs(&[Need::V2("memory")]),
    spec("v2/memory-unlimited", "config-linux.md#memory", "-1 becomes max", |t| {
        let c = v2(t, json!({"memory": {"limit": -1, "swap": -1}}))?;
        same("memory.max", c.cgroup_file("", "memory.max")?.as_str(), "max")
    })
    .needs(&[Need::V2("memory")]),
    spec("v2/cpu-quota", "config-linux.md#cpu", "quota and period become cpu.max", |t| {
        let c = v2(t, json!({"cpu": {"quota": 50_000, "period": 200_000}}))?;
        same("cpu.max", c.cgroup_file("", "cpu.max")?.as_str(), "50000 200000")
    })
    .needs(&[Need::V2("cpu")]),
    spec("v2/cpu-period-alone", "config-linux.md#cpu", "period alone leaves the quota at max", |t| {
        let c = v2(t, json!({"cpu": {"period": 200_000}}))?;
        same("cpu.max", c.cgroup_file("", "cpu.max")?.as_str(), "max 200000")
    })
    .needs(&[Need::V2("cpu")]),
    spec("v2/cpu-weight", "config-linux.md#cpu", "shares become a weight between 1 and 10000", |t| {
        let c = v2(t, json!({"cpu": {"shares": 2048}}))?;
        let weight: u32 = c.cgroup_file("", "cpu.weight")?.parse()?;
        ensure!((70..=250).contains(&weight), "2048 shares became weight {weight}");
        Ok(())
    })
    .needs(&[Need::V2("cpu")]),
    spec("v2/cpu-burst", "config-linux.md#cpu", "burst becomes cpu.max.burst", |t| {
        let c = v2(t, json!({"cpu": {"quota": 50_000, "period": 100_000, "burst": 10_000}}))?;
        same("cpu.max.burst", c.cgroup_file("", "cpu.max.burst")?.as_str(), "10000")
    })
    .needs(&[Need::V2("cpu")]),
    spec("v2/cpu-idle", "config-linux.md#cpu", "idle becomes cpu.idle", |t| {
        let c = v2(t, json!({"cpu": {"idle": 1}}))?;
        same("cpu.idle", c.cgroup_file("", "cpu.idle")?.as_str(), "1")
    })
    .needs(&[Need::V2("cpu")]),
    spec("v2/cpuset", "config-linux.md#cpu", "cpus and mems become cpuset files", |t| {
        let c = v2(t, json!({"cpu": {"cpus": "0", "mems": "0"}}))?;
        same("cpuset.cpus", c.cgroup_file("", "cpuset.cpus")?.as_str(), "0")?;
        same("cpuset.mems", c.cgroup_file("", "cpuset.mems")?.as_str(), "0")
    })
    .needs(&[Need::V2("cpuset")]),
    spec("v2/pids", "config-linux.md#pids", "limit becomes pids.max", |t| {
        same("pids.max", v2(t, json!({"pids": {"limit": 77}}))?.cgroup_file("", "pids.max")?.as_str(), "77")
    })
    .needs(&[Need::V2("pids")]),
    spec("v2/io-throttle", "config-linux.md#block-io", "throttles become io.max", |t| {
        let (major, minor) = a_disk()?;
        let rate = json!([{"major": major, "minor": minor, "rate": 1_048_576}]);
        let c = v2(t, json!({"blockIO": {"throttleReadBpsDevice": rate, "throttleWriteIOPSDevice": rate}}))?;
        let text = c.cgroup_file("", "io.max")?;
        ensure!(text.contains("rbps=1048576") && text.contains("wiops=1048576"), "io.max is {text:?}");
        Ok(())
    })
    .needs(&[Need::V2("io")]),
    spec("v2/unified", "config-linux.md#unified", "entries of unified are written as they are", |t| {
        let c = v2(t, json!({"unified": {"memory.high": "50331648", "pids.max": "44"}}))?;
        same("memory.high", c.cgroup_file("", "memory.high")?.as_str(), "50331648")?;
        same("pids.max", c.cgroup_file("", "pids.max")?.as_str(), "44")
    })
    .needs(&[Need::V2("memory")]),
    spec(
        "v2/unified-wins",
        "config-linux.md#unified",
        "unified and the typed field name the same file: unified is written as well",
        |t| {
            let c = v2(t, json!({"pids": {"limit": 77}, "unified": {"pids.max": "44"}}))?;
            same("pids.max", c.cgroup_file("", "pids.max")?.as_str(), "44")
        },
    )
    .needs(&[Need::V2("pids")]),
    spec(
        "v2/unified-missing",
        "config-linux.md#unified",
        "a controller that is not there is an error",
        |t| {
            t.bundle()?
                .set("/linux/resources/unified", json!({"ponies.max": "1"}))
                .refused("ponies.max")
                .map(drop)
        },
    )
    .needs(&[Need::V2("")]),
    spec("v2/unified-path", "config.md#valid-values", "an entry that is a path is an error", |t| {
        t.bundle()?
            .set("/linux/resources/unified", json!({"../cgroup.procs": "1"}))
            .refused("a climbing entry")
            .map(drop)
    })
    .needs(&[Need::V2("")]),
    spec(
        "v2/delegation",
        "config-linux.md#cgroup-ownership",
        "with a writable mount and a cgroup namespace, the container's root owns its cgroup",
        |t| {
            let b = t.bundle()?.user_namespace()?.namespace("cgroup", Some(json!({"type": "cgroup"})));
            let c = b
                .mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime"])
                .create()?;
            use std::os::unix::fs::MetadataExt;
            let dir = t.cgroup_dir("", &c.id)?;
            same("owner of the folder", fs::metadata(&dir)?.uid(), 100_000)?;
            same("owner of cgroup.procs", fs::metadata(dir.join("cgroup.procs"))?.uid(), 100_000)?;
            same("owner of memory.max", fs::metadata(dir.join("memory.max"))?.uid(), 0)
        },
    )
    .needs(&[Need::V2("memory")]),
    spec(
        "v2/no-delegation",
        "config-linux.md#cgroup-ownership",
        "with a read-only mount, the owner stays",
        |t| {
            let b = t.bundle()?.user_namespace()?.namespace("cgroup", Some(json!({"type": "cgroup"})));
            let c = b
                .mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"])
                .create()?;
            use std::os::unix::fs::MetadataExt;
            same("owner", fs::metadata(t.cgroup_dir("", &c.id)?)?.uid(), 0)
        },
    )
    .needs(&[Need::V2("memory")]),
    spec(
        "v2/check-before-update",
        "config-linux.md#memory",
        "checkBeforeUpdate refuses a limit below the use",
        |t| {
            let b = t.bundle()?.args(&["sleep", "100"]);
            let b =
                b.set("/linux/resources/memory", json!({"limit": 134_217_728, "checkBeforeUpdate": true}));
            let c = b.start()?;
            let update = json!({"memory": {"limit": 4096, "checkBeforeUpdate": true}}).to_string();
            t.rt_stdin(&["update", "--resources=-", &c.id], &update)?
                .refused("a limit below the use")
                .map(drop)
        },
    )
    .needs(&[Need::V2("memory")]),
];

/// Set one part of resources and read one file of the created container's cgroup.
fn v1(t: &Test, controller: &str, part: Value, file: &str, want: &str) -> Result<()> {
    let section = match controller {
        "cpuset" => "cpu",
        "net_cls" => "network",
        other => other,
    };
    let c = t.bundle()?.set(&format!("/linux/resources/{section}"), part).create()?;
    same(file, c.cgroup_file(controller, file)?.as_str(), want)
}

fn v2<'t>(t: &'t Test<'t>, resources: Value) -> Result<Container<'t>> {
    t.bundle()?.set("/linux/resources", resources).create()
}

/// A whole disk of this host.
fn a_disk() -> Result<(u64, u64)> {
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if ["loop", "ram", "zram", "sr", "fd"].iter().any(|p| name.starts_with(p)) {
            continue;
        }
        let text = fs::read_to_string(entry.path().join("dev"))?;
        let (major, minor) = text.trim().split_once(':').context("dev")?;
        return Ok((major.parse()?, minor.parse()?));
    }
    Err(super::case::skip("needs a disk"))
}

fn throttle(t: &Test, field: &str, file: &str) -> Result<()> {
    let (major, minor) = a_disk()?;
    let entry = json!([{"major": major, "minor": minor, "rate": 2_097_152}]);
    let c = t.bundle()?.set(&format!("/linux/resources/blockIO/{field}"), entry).create()?;
    same(file, c.cgroup_file("blkio", file)?.as_str(), format!("{major}:{minor} 2097152").as_str())
}

/// Remove the parent cgroups that a relative path led to.
fn remove_parents(t: &Test, cgroup: &str) -> Result<()> {
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(names), Some(path)) = (parts.next(), parts.next()) else { continue };
        let mount = match names.split(',').next() {
            Some("") => t.suite.host.v2.as_ref(),
            Some(name) => {
                t.suite.host.v1.get(name.trim_start_matches("name=")).or_else(|| t.suite.host.v1.get(name))
            }
            None => None,
        };
        let Some((mount, parent)) = mount.zip(std::path::Path::new(path).parent()) else { continue };
        let dir = mount.join(parent.strip_prefix("/").unwrap_or(parent));
        if parent.ends_with(format!("{}-relative", t.suite.cgroup)) && dir.exists() {
            fs::remove_dir(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
    }
    Ok(())
}
