//! linux.resources in tables: what is written where, on v1 and on v2.

use oci_spec::runtime::Spec;

use super::*;
use crate::cgroup::host::{Hierarchies, V1, V2};

/// A host with these controllers.
fn host(v1: &[&str], v2: &[&str]) -> Host {
    let v1 = v1.iter().map(|names| V1 {
        controllers: names.split(',').map(str::to_owned).collect(),
        mount: format!("/v1/{names}").into(),
        own: "/".to_owned(),
    });
    let v2 = (!v2.is_empty()).then(|| V2 {
        mount: "/v2".into(),
        own: "/".to_owned(),
        controllers: v2.iter().map(|c| (*c).to_owned()).collect(),
    });
    let cgroup = Hierarchies { v1: v1.collect(), v2, systemd: false };
    Host { euid: 0, egid: 0, rootless: false, cgroup_optional: false, capabilities: u64::MAX, cgroup }
}

fn v1_host() -> Host {
    host(
        &[
            "freezer",
            "memory",
            "cpu,cpuacct",
            "cpuset",
            "pids",
            "blkio",
            "net_cls",
            "net_prio",
            "hugetlb",
            "devices",
        ],
        &[],
    )
}

fn v2_host() -> Host {
    host(&[], &["memory", "cpu", "cpuset", "pids", "io", "hugetlb", "rdma"])
}

fn plan_on(host: &Host, resources: &str) -> Result<CgroupPlan> {
    let config = format!(r#"{{"ociVersion":"1.2.0","linux":{{"resources":{resources}}}}}"#);
    let spec: Spec = serde_json::from_str(&config).unwrap();
    plan(&spec, &Options { id: "c".to_owned(), ..Options::default() }, host)
}

/// `file=value` of each write, device rules aside, or the error.
fn writes(host: &Host, resources: &str) -> String {
    let plan = match plan_on(host, resources) {
        Ok(plan) => plan,
        Err(e) => return format!("error: {}", report::line(&e)),
    };
    let writes = plan.writes.iter().filter(|w| !w.file.starts_with("devices."));
    let text = |w: &Write| match &w.missing {
        Missing::Error => format!("{}={}", w.file, w.value),
        Missing::Fine => format!("{}={}?", w.file, w.value),
        Missing::Else { file, value } => format!("{}={}|{file}={value}", w.file, w.value),
    };
    writes.map(text).collect::<Vec<_>>().join("; ")
}

/// resources, what v1 gets, what v2 gets
const TABLE: &[(&str, &str, &str)] = &[
    ("{}", "", ""),
    (r#"{"memory":{"limit":0,"swap":0}}"#, "", ""),
    (
        r#"{"memory":{"limit":100,"swap":150}}"#,
        "memory.limit_in_bytes=100; memory.memsw.limit_in_bytes=150",
        "memory.swap.max=50; memory.max=100",
    ),
    (
        r#"{"memory":{"limit":100,"swap":100}}"#,
        "memory.limit_in_bytes=100; memory.memsw.limit_in_bytes=100",
        "memory.swap.max=0?; memory.max=100",
    ),
    (
        r#"{"memory":{"limit":100,"swap":-1}}"#,
        "memory.limit_in_bytes=100; memory.memsw.limit_in_bytes=-1?",
        "memory.swap.max=max?; memory.max=100",
    ),
    (r#"{"memory":{"limit":100}}"#, "memory.limit_in_bytes=100", "memory.max=100"),
    (
        r#"{"memory":{"limit":-1}}"#,
        "memory.limit_in_bytes=-1; memory.memsw.limit_in_bytes=-1?",
        "memory.swap.max=max?; memory.max=max",
    ),
    (r#"{"memory":{"reservation":50}}"#, "memory.soft_limit_in_bytes=50", "memory.low=50"),
    (r#"{"memory":{"kernel":50}}"#, "", ""),
    (r#"{"memory":{"disableOOMKiller":false,"checkBeforeUpdate":true}}"#, "", ""),
    (
        r#"{"memory":{"swappiness":10,"disableOOMKiller":true,"useHierarchy":true,"kernelTCP":9}}"#,
        "memory.kmem.tcp.limit_in_bytes=9; memory.swappiness=10; memory.oom_control=1; memory.use_hierarchy=1",
        "error: linux.resources.memory.kernelTCP: cgroup v2 has no limit of TCP memory",
    ),
    (
        r#"{"memory":{"swappiness":0}}"#,
        "memory.swappiness=0",
        "error: linux.resources.memory.swappiness: cgroup v2 has no swappiness of its own",
    ),
    (
        r#"{"memory":{"disableOOMKiller":true}}"#,
        "memory.oom_control=1",
        "error: linux.resources.memory.disableOOMKiller: cgroup v2 cannot disable the OOM killer",
    ),
    (
        r#"{"memory":{"useHierarchy":false}}"#,
        "memory.use_hierarchy=0",
        "error: linux.resources.memory.useHierarchy: cgroup v2 always accounts for children",
    ),
    (r#"{"cpu":{"shares":1024}}"#, "cpu.shares=1024", "cpu.weight=100"),
    (r#"{"cpu":{"shares":2}}"#, "cpu.shares=2", "cpu.weight=1"),
    (r#"{"cpu":{"shares":262144}}"#, "cpu.shares=262144", "cpu.weight=10000"),
    (
        r#"{"cpu":{"quota":50000,"period":200000,"burst":1000}}"#,
        "cpu.cfs_period_us=200000; cpu.cfs_quota_us=50000; cpu.cfs_burst_us=1000",
        "cpu.max=50000 200000; cpu.max.burst=1000",
    ),
    (r#"{"cpu":{"quota":-1}}"#, "cpu.cfs_quota_us=-1", "cpu.max=max 100000"),
    (r#"{"cpu":{"period":50000}}"#, "cpu.cfs_period_us=50000", "cpu.max=max 50000"),
    (r#"{"cpu":{"quota":50000}}"#, "cpu.cfs_quota_us=50000", "cpu.max=50000 100000"),
    (r#"{"cpu":{"shares":512,"idle":1}}"#, "cpu.shares=512; cpu.idle=1", "cpu.weight=59; cpu.idle=1"),
    (r#"{"cpu":{"shares":512,"idle":0}}"#, "cpu.idle=0?; cpu.shares=512", "cpu.idle=0?; cpu.weight=59"),
    (
        r#"{"cpu":{"realtimeRuntime":950,"realtimePeriod":1000}}"#,
        "cpu.rt_period_us=1000; cpu.rt_runtime_us=950",
        "error: linux.resources.cpu.realtimePeriod: cgroup v2 does not limit realtime tasks",
    ),
    (
        r#"{"cpu":{"cpus":"0-1,3","mems":"0"}}"#,
        "cpuset.cpus=0-1,3; cpuset.mems=0",
        "cpuset.cpus=0-1,3; cpuset.mems=0",
    ),
    (r#"{"cpu":{"cpus":"","mems":""}}"#, "", ""),
    (r#"{"pids":{"limit":10}}"#, "pids.max=10", "pids.max=10"),
    (r#"{"pids":{"limit":0}}"#, "pids.max=1", "pids.max=1"),
    (r#"{"pids":{"limit":-1}}"#, "pids.max=max", "pids.max=max"),
    (
        r#"{"blockIO":{"weight":500}}"#,
        "blkio.weight=500|blkio.bfq.weight=500",
        "io.bfq.weight=500|io.weight=4950",
    ),
    (
        r#"{"blockIO":{"weight":0,"leafWeight":10}}"#,
        "blkio.leaf_weight=10",
        "error: linux.resources.blockIO.leafWeight: cgroup v2 has no leaf weight",
    ),
    (
        r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":10}]}}"#,
        "blkio.weight_device=8:0 10|blkio.bfq.weight_device=8:0 10",
        "io.bfq.weight=8:0 10|io.weight=8:0 1",
    ),
    (
        r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":1,"rate":5}],"throttleWriteIOPSDevice":[{"major":8,"minor":1,"rate":0}]}}"#,
        "blkio.throttle.read_bps_device=8:1 5; blkio.throttle.write_iops_device=8:1 0",
        "io.max=8:1 rbps=5; io.max=8:1 wiops=max",
    ),
    (
        r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4096}]}"#,
        "hugetlb.2MB.limit_in_bytes=4096; hugetlb.2MB.rsvd.limit_in_bytes=4096?",
        "hugetlb.2MB.max=4096; hugetlb.2MB.rsvd.max=4096?",
    ),
    (
        r#"{"network":{"classID":7,"priorities":[{"name":"eth0","priority":3}]}}"#,
        "net_cls.classid=7; net_prio.ifpriomap=eth0 3",
        "error: linux.resources.network.classID: cgroup v2 has no net_cls controller; use BPF or nftables",
    ),
    (
        r#"{"rdma":{"mlx":{"hcaHandles":3}}}"#,
        "error: linux.resources.rdma.mlx: this host has no rdma cgroup controller",
        "rdma.max=mlx hca_handle=3",
    ),
    (
        r#"{"unified":{"memory.high":"9","cgroup.max.depth":"2"},"memory":{"limit":5}}"#,
        "error: linux.resources.unified[\"cgroup.max.depth\"]: this host has no cgroup v2",
        "memory.max=5; cgroup.max.depth=2; memory.high=9",
    ),
];

#[test]
fn every_field() {
    for (resources, v1, v2) in TABLE {
        assert_eq!(writes(&v1_host(), resources), *v1, "v1 {resources}");
        assert_eq!(writes(&v2_host(), resources), *v2, "v2 {resources}");
    }
}

#[test]
fn wrong_values() {
    for (resources, error) in [
        (
            r#"{"memory":{"limit":100,"swap":50}}"#,
            "memory.swap: 50 is below the memory limit 100; it is the sum of memory and swap",
        ),
        (
            r#"{"memory":{"swap":50}}"#,
            "memory.swap: needs linux.resources.memory.limit: it is the sum of memory and swap",
        ),
        (
            r#"{"memory":{"limit":-1,"swap":50}}"#,
            "memory.swap: 50: a limit needs a limit of the memory, which is unlimited",
        ),
        (r#"{"memory":{"limit":-2}}"#, "memory.limit: -2: -1 (unlimited) is the least"),
        (r#"{"memory":{"swappiness":101}}"#, "memory.swappiness: 101: 0 to 100 are allowed"),
        (r#"{"cpu":{"quota":500}}"#, "cpu.quota: 500: 1000 microseconds are the least, -1 is no limit"),
        (r#"{"cpu":{"period":10}}"#, "cpu.period: 10: 1000 to 1000000 microseconds are allowed"),
        (r#"{"cpu":{"quota":1000,"burst":1001}}"#, "cpu.burst: 1001 is above the quota 1000"),
        (r#"{"cpu":{"idle":2}}"#, "cpu.idle: 2: 0 and 1 are allowed"),
        (r#"{"cpu":{"cpus":"0-"}}"#, r#"cpu.cpus: "0-" has "0-"; a list like "0-3,7" is allowed"#),
        (r#"{"cpu":{"mems":"3-1"}}"#, r#"cpu.mems: "3-1" has "3-1"; a list like "0-3,7" is allowed"#),
        (r#"{"pids":{"limit":-2}}"#, "pids.limit: -2: -1 (unlimited) is the least"),
        (r#"{"blockIO":{"weight":5}}"#, "blockIO.weight: 5: 10 to 1000 are allowed"),
        (
            r#"{"blockIO":{"throttleReadBpsDevice":[{"major":-8,"minor":1,"rate":5}]}}"#,
            "blockIO.throttleReadBpsDevice[0].major: -8 is not a device number",
        ),
        (
            r#"{"hugepageLimits":[{"pageSize":"2 MB","limit":1}]}"#,
            r#"hugepageLimits[0].pageSize: "2 MB" is not a size; a number and KB, MB or GB are, as in "2MB""#,
        ),
        (
            r#"{"devices":[{"allow":true,"access":"rx"}]}"#,
            r#"devices[0].access: "rx" has the letter 'x'; r, w and m are allowed"#,
        ),
        (r#"{"devices":[{"allow":true}]}"#, "devices[0].access: is missing; it is made of r, w and m"),
        (
            r#"{"devices":[{"allow":true,"access":"r","type":"p"}]}"#,
            r#"devices[0].type: "p" is not a type of device that can be allowed or denied; a, b, c and u are"#,
        ),
        (
            r#"{"devices":[{"allow":true,"access":"r","type":"c","major":-5}]}"#,
            "devices[0].major: -5 is not a device number; -1 or nothing stands for all",
        ),
    ] {
        for host in [v1_host(), v2_host()] {
            assert_eq!(writes(&host, resources), format!("error: linux.resources.{error}"));
        }
    }
    for (file, error) in [
        ("../x", r#"is not the name of a control file, as "memory.high" is"#),
        ("memory.x/../y", "is a path; the name of a control file is allowed"),
        ("high", r#"is not the name of a control file, as "memory.high" is"#),
        ("misc.max", "this host's cgroup v2 has no misc controller"),
    ] {
        let resources = format!(r#"{{"unified":{{"{file}":"1"}}}}"#);
        assert_eq!(
            writes(&v2_host(), &resources),
            format!("error: linux.resources.unified[{file:?}]: {error}")
        );
    }
}

#[test]
fn a_missing_controller_is_an_error() {
    let bare = host(&["freezer"], &[]);
    let nothing = host(&[], &[]);
    for (resources, v1) in [
        (r#"{"memory":{"limit":5}}"#, "memory.limit: this host has no memory cgroup controller"),
        (r#"{"pids":{"limit":5}}"#, "pids.limit: this host has no pids cgroup controller"),
        (r#"{"cpu":{"shares":5}}"#, "cpu.shares: this host has no cpu cgroup controller"),
        (r#"{"blockIO":{"weight":50}}"#, "blockIO.weight: this host has no blkio cgroup controller"),
    ] {
        assert_eq!(writes(&bare, resources), format!("error: linux.resources.{v1}"));
        assert!(writes(&nothing, resources).starts_with("error: linux.resources."), "{resources}");
    }
    let rules = r#"{"devices":[{"allow":false,"access":"rwm"}]}"#;
    assert_eq!(
        writes(&bare, rules),
        "error: linux.resources.devices: this host has no devices cgroup controller"
    );
}

#[test]
fn a_hybrid_host_uses_both_sides() {
    let host = host(&["freezer", "memory", "devices"], &["hugetlb", "pids"]);
    let plan = plan_on(&host, r#"{"memory":{"limit":5},"pids":{"limit":3}}"#).unwrap();
    let places: Vec<_> =
        plan.writes.iter().filter(|w| !w.file.starts_with("devices.")).map(|w| (w.at, &*w.file)).collect();
    assert_eq!(places, [(Place::V1(1), "memory.limit_in_bytes"), (Place::V2, "pids.max")]);
    assert_eq!(plan.v2.unwrap().host(), PathBuf::from("/v2/c"));
    // Nothing asks for the v2 side: it is left alone.
    assert_eq!(plan_on(&host, r#"{"memory":{"limit":5}}"#).unwrap().v2, None);
}

#[test]
fn what_the_container_sees() {
    let plan = plan_on(&host(&["freezer", "cpu,cpuacct", "name=systemd"], &[]), "{}");
    // A host without a devices controller, and a config without rules.
    let View::V1 { mounts, unified: None } = plan.unwrap().view() else { panic!("not v1") };
    let row =
        |m: &V1Mount| (m.name.clone(), m.links.join("+"), m.options.clone(), m.host.display().to_string());
    let rows: Vec<_> = mounts.iter().map(row).collect();
    let expected = [
        ("freezer", "", "freezer", "/v1/freezer/c"),
        ("cpu,cpuacct", "cpu+cpuacct", "cpu,cpuacct", "/v1/cpu,cpuacct/c"),
        ("name=systemd", "", "none,name=systemd", "/v1/name=systemd/c"),
    ];
    assert_eq!(rows, expected.map(|(a, b, c, d)| (a.to_owned(), b.to_owned(), c.to_owned(), d.to_owned())));
    assert_eq!(plan_on(&v2_host(), "{}").unwrap().view(), View::V2 { host: "/v2/c".into() });
}

/// The three fixed points of the curve, and that it only rises.
#[test]
fn shares_and_weight() {
    assert_eq!([2, 1024, 262_144].map(cpu::shares_to_weight), [1, 100, 10_000]);
    let mut last = 0;
    for shares in (2..262_144).step_by(97) {
        let weight = cpu::shares_to_weight(shares);
        assert!((last..=10_000).contains(&weight), "{shares} gives {weight}");
        last = weight;
    }
}

mod devices_rules {
    use proptest::prelude::*;

    use super::super::devices::{DeviceKind, Devices, MKNOD, READ, Rule, WRITE, program, rules, v1};
    use super::*;

    /// A request of a process, as the kernel asks it.
    #[derive(Clone, Copy, Debug)]
    struct Request {
        kind: DeviceKind,
        major: u32,
        minor: u32,
        access: u8,
    }

    fn matches(devices: &Devices, request: &Request) -> bool {
        devices.kind == request.kind
            && devices.major.is_none_or(|m| m == request.major)
            && devices.minor.is_none_or(|m| m == request.minor)
    }

    /// The specification: for each access, the last rule that matches decides; none: denied.
    fn specified(rules: &[Rule], request: &Request) -> bool {
        [MKNOD, READ, WRITE].into_iter().filter(|bit| request.access & bit != 0).all(|bit| {
            let last = rules.iter().rev().find(|r| r.access & bit != 0 && matches(&r.devices, request));
            last.is_some_and(|rule| rule.allow)
        })
    }

    /// As much of a BPF machine as the program uses.
    fn interpret(rules: &[Rule], request: &Request) -> bool {
        let mut r = [0u32; 8];
        let context = [u32::from(request.access) << 16 | request.kind as u32, request.major, request.minor];
        let program = program(rules);
        let mut at = 0usize;
        loop {
            let insn = program[at];
            let (to, from) = (usize::from(insn.registers & 15), usize::from(insn.registers >> 4));
            let value = insn.immediate.cast_unsigned();
            at += 1;
            let jump = match insn.code {
                0x61 => (r[to] = context[insn.offset as usize / 4], false).1,
                0xbc => (r[to] = r[from], false).1,
                0xb4 => (r[to] = value, false).1,
                0x54 => (r[to] &= value, false).1,
                0x74 => (r[to] >>= value, false).1,
                0x16 => r[to] == value,
                0x56 => r[to] != value,
                0x95 => return r[0] == 1,
                code => panic!("instruction {code:#x}"),
            };
            if jump {
                at += insn.offset as usize;
            }
        }
    }

    /// The v1 controller (Documentation/admin-guide/cgroup-v1/devices.rst and its code): a default, and
    /// exceptions of which one must cover a request, or, if all is allowed, none may touch it.
    fn v1_decides(rules: &[Rule], request: &Request) -> Option<bool> {
        let writes = v1(rules, Place::V1(0)).ok()?;
        let mut allowed_by_default = true;
        let mut exceptions: Vec<(Devices, u8)> = Vec::new();
        for write in &writes {
            let allow = write.file == "devices.allow";
            if write.value == "a" {
                (allowed_by_default, exceptions) = (allow, Vec::new());
                continue;
            }
            assert_ne!(allow, allowed_by_default, "an exception that says what holds anyway");
            let words: Vec<&str> = write.value.split([' ', ':']).collect();
            let number = |word: &str| (word != "*").then(|| word.parse().unwrap());
            let kind = if words[0] == "b" { DeviceKind::Block } else { DeviceKind::Char };
            let bits = words[3].chars().fold(0, |bits, c| {
                bits | match c {
                    'r' => READ,
                    'w' => WRITE,
                    _ => MKNOD,
                }
            });
            exceptions.push((Devices { kind, major: number(words[1]), minor: number(words[2]) }, bits));
        }
        let mut touching = exceptions.iter().filter(|(devices, _)| matches(devices, request));
        Some(if allowed_by_default {
            !touching.any(|(_, bits)| bits & request.access != 0)
        } else {
            touching.any(|(_, bits)| request.access & !bits == 0)
        })
    }

    fn parse(json: &str) -> Vec<Rule> {
        rules(&serde_json::from_str::<Vec<_>>(json).unwrap()).unwrap()
    }

    #[test]
    fn engines_rules_are_few_writes() {
        let rules = parse(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]"#,
        );
        let values: Vec<_> = v1(&rules, Place::V1(0))
            .unwrap()
            .into_iter()
            .map(|w| format!("{} {}", w.file, w.value))
            .collect();
        assert_eq!(
            values[..4],
            [
                "devices.deny a",
                "devices.allow c *:* m",
                "devices.allow b *:* m",
                "devices.allow c 10:229 rwm"
            ]
        );
        assert_eq!(values.len(), 13);
        let all = parse(r#"[{"allow":false,"access":"rwm"},{"allow":true,"access":"rwm"}]"#);
        let values: Vec<_> =
            v1(&all, Place::V1(0)).unwrap().into_iter().map(|w| format!("{} {}", w.file, w.value)).collect();
        assert_eq!(values, ["devices.allow a"]);
    }

    #[test]
    fn a_hole_in_a_range_cannot_be_said_on_v1() {
        let rules = parse(
            r#"[{"allow":true,"type":"b","major":8,"access":"rwm"},{"allow":false,"type":"b","major":8,"minor":1,"access":"w"}]"#,
        );
        let error = report::line(&v1(&rules, Place::V1(0)).unwrap_err());
        assert_eq!(
            error,
            "linux.resources.devices: cgroup v1 cannot deny b 8:1 rwm and allow a range of devices around it"
        );
    }

    fn some_rules() -> impl Strategy<Value = Vec<Rule>> {
        let number = || prop_oneof![Just(None), (0u32..3).prop_map(Some)];
        let kind = prop_oneof![Just(DeviceKind::Block), Just(DeviceKind::Char)];
        let rule = (any::<bool>(), kind, number(), number(), 1u8..8);
        let rule = rule.prop_map(|(allow, kind, major, minor, access)| Rule {
            allow,
            devices: Devices { kind, major, minor },
            access,
        });
        proptest::collection::vec(rule, 0..7)
    }

    proptest! {
        #[test]
        fn both_versions_do_what_the_rules_say(rules in some_rules()) {
            for kind in [DeviceKind::Block, DeviceKind::Char] {
                for (major, minor) in (0..4).flat_map(|a| (0..4).map(move |b| (a, b))) {
                    for access in 1..8 {
                        let request = Request { kind, major, minor, access };
                        let expected = specified(&rules, &request);
                        prop_assert_eq!(interpret(&rules, &request), expected, "v2 {:?}", request);
                        if let Some(decided) = v1_decides(&rules, &request) {
                            prop_assert_eq!(decided, expected, "v1 {:?}", request);
                        }
                    }
                }
            }
        }
    }
}
