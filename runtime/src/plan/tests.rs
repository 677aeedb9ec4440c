//! Do real configs yield plans, and does whatever else end in a plan or in one error?

use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Options, Plan, landlock};
use crate::bundle;
use crate::cgroup::host::{Hierarchies, V1, V2};
use crate::host::Host;

/// A host with every controller, on v1 or on v2, with systemd.
fn host(v2: bool, rootless: bool) -> Host {
    let v1 = |name: &str| V1 {
        controllers: vec![name.to_owned()],
        mount: PathBuf::from("/sys/fs/cgroup").join(name),
        own: "/".to_owned(),
    };
    let cgroup = if v2 {
        let controllers = ["cpu", "cpuset", "io", "memory", "hugetlb", "pids", "rdma"].map(str::to_owned);
        let v2 = V2 { mount: "/sys/fs/cgroup".into(), own: "/".to_owned(), controllers: controllers.into() };
        Hierarchies { v1: Vec::new(), v2: Some(v2), systemd: true }
    } else {
        let names = ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"];
        Hierarchies { v1: names.map(v1).into(), v2: None, systemd: true }
    };
    let id = if rootless { 1000 } else { 0 };
    Host { euid: id, egid: id, rootless, cgroup_optional: rootless, cgroup, capabilities: u64::MAX }
}

/// As an engine would: a terminal has somebody who attends to it.
fn plan(config: &[u8], systemd_cgroup: bool, host: &Host) -> anyhow::Result<Plan> {
    let spec = bundle::parse(config)?;
    let options = Options {
        id: "web".to_owned(),
        bundle: "/bundle".into(),
        systemd_cgroup,
        console_socket: spec.process().as_ref().is_some_and(|p| p.terminal().unwrap_or(false)),
        ..Options::default()
    };
    Plan::new(&spec, &options, host)
}

const RUNC: &str = include_str!("../../../spec-examples/runc-spec.json");
const ALL_FIELDS: &str = include_str!("../../../spec-examples/all-fields.json");

#[test]
fn examples_yield_plans() {
    for (name, text, systemd, v2, rootless) in [
        ("runc-spec on v1", RUNC, false, false, false),
        ("runc-spec on v2", RUNC, false, true, false),
        ("docker on v1", include_str!("../../../spec-examples/docker.json"), false, false, false),
        ("docker on v2", include_str!("../../../spec-examples/docker.json"), false, true, false),
        ("containerd-cri", include_str!("../../../spec-examples/containerd-cri.json"), true, true, false),
        ("podman-rootless", include_str!("../../../spec-examples/podman-rootless.json"), true, true, true),
        ("userns", include_str!("../../../spec-examples/userns.json"), false, true, false),
        ("cgroup-v2", include_str!("../../../spec-examples/cgroup-v2.json"), false, true, false),
    ] {
        let plan = plan(text.as_bytes(), systemd, &host(v2, rootless));
        let plan = plan.unwrap_or_else(|e| panic!("{name}: {}", report::line(&e)));
        assert!(!plan.process.args.is_empty(), "{name}");
        assert_eq!(plan.rootfs.readonly, text.contains("\"readonly\": true"), "{name}");
    }
}

/// All fields at once contradict each other on any host; what matters is one error that names its place.
#[test]
fn all_fields_end_in_one_error() {
    for v2 in [false, true] {
        let error = plan(ALL_FIELDS.as_bytes(), false, &host(v2, false)).expect_err("planned");
        check(&error);
    }
}

/// One line that says something.
fn check(error: &anyhow::Error) {
    let line = report::line(error);
    assert!(line.len() > 10 && !line.contains('\n'), "{line:?}");
    assert!(report::kind(error).is_some(), "no kind: {line}");
}

fn checked(plan: anyhow::Result<Plan>) {
    if let Err(e) = plan {
        check(&e);
    }
}

/// A config with one thing set.
fn with(text: &str, pointer: &str, value: Value) -> Vec<u8> {
    let mut config: Value = serde_json::from_str(text).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = config.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"));
    match parent {
        Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
        other => other[key] = value,
    }
    serde_json::to_vec(&config).unwrap()
}

/// Every pointer into a document.
fn pointers(value: &Value, here: &str, out: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                out.push(format!("{here}/{i}"));
                pointers(item, &format!("{here}/{i}"), out);
            }
        }
        Value::Object(entries) => {
            for (key, item) in entries {
                let key = key.replace('~', "~0").replace('/', "~1");
                out.push(format!("{here}/{key}"));
                pointers(item, &format!("{here}/{key}"), out);
            }
        }
        _ => {}
    }
}

/// Values that somebody might write, and some that nobody would.
fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-2_i64..70).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(Value::Null),
        Just(json!([])),
        Just(json!({})),
        "[a-zA-Z0-9_./:=,-]{0,12}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop_oneof![
            Just("/"),
            Just(".."),
            Just("/../.."),
            Just("/proc"),
            Just("a:b:c"),
            Just("rprivate"),
            Just("max"),
        ]
        .prop_map(Value::from),
    ]
}

fn words(alphabet: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let word = prop_oneof![
        4 => proptest::sample::select(alphabet).prop_map(str::to_owned),
        1 => "[a-z=0-9%/,\\[\\]:]{0,10}",
        1 => any::<String>(),
    ];
    proptest::collection::vec(word, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// One place of a real config replaced by anything.
    #[test]
    fn fuzz_config(which in any::<proptest::sample::Index>(), value in any_value(), v2 in any::<bool>(), systemd in any::<bool>()) {
        for text in [RUNC, ALL_FIELDS] {
            let mut places = Vec::new();
            pointers(&serde_json::from_str(text).unwrap(), "", &mut places);
            let mut config: Value = serde_json::from_str(text).unwrap();
            let place = which.get(&places);
            *config.pointer_mut(place).unwrap() = value.clone();
            checked(plan(&serde_json::to_vec(&config).unwrap(), systemd, &host(v2, false)));
        }
    }

    #[test]
    fn fuzz_mount_options(
        fs in proptest::sample::select(&["tmpfs", "bind", "none", "proc", "sysfs", "devpts", "cgroup", "mqueue", "overlay", "ext4", ""][..]),
        destination in "[/a-z.]{0,10}",
        options in words(&[
            "ro", "rw", "bind", "rbind", "rro", "nosuid", "rnosuid", "idmap", "ridmap", "tmpcopyup", "remount", "shared",
            "rslave", "noatime", "strictatime", "relatime", "mode=755", "size=1k", "gid=5", "defaults", "sync", "X-mount",
        ]),
    ) {
        let mount = json!({"destination": destination, "type": fs, "source": "/src", "options": options});
        checked(plan(&with(RUNC, "/mounts/1", mount), false, &host(false, false)));
    }

    #[test]
    fn fuzz_cgroups_path(
        path in prop_oneof!["[a-z/.:-]{0,20}", any::<String>()], systemd in any::<bool>(), v2 in any::<bool>(), rootless in any::<bool>(),
    ) {
        let config = with(RUNC, "/linux/cgroupsPath", path.clone().into());
        if let Ok(plan) = plan(&config, systemd, &host(v2, rootless)) {
            let v1 = plan.cgroup.v1.iter().map(super::resources::V1Dir::host);
            for dir in v1.chain(plan.cgroup.v2.iter().map(super::resources::V2Dir::host)) {
                let inside = dir.starts_with("/sys/fs/cgroup");
                let climbs = dir.components().any(|c| c == std::path::Component::ParentDir);
                prop_assert!(inside && !climbs, "{path:?} leads to {}", dir.display());
            }
        }
    }

    #[test]
    fn fuzz_landlock(
        access in words(&["ro", "rw", "exec", "read_file", "refer", "make_reg"]),
        path in "[/a-z.]{0,10}", port in any_value(), key in "[a-z]{0,6}", scope in words(&["signal", "abstract_unix_socket"]),
        text in any::<String>(),
    ) {
        let rules = json!({
            "fs": [{"access": access.join("|"), "paths": [path]}], "net": {"bind": [port]}, "scope": scope, key: true,
        });
        for annotation in [rules.to_string(), text] {
            if let Err(e) = landlock::plan(&annotation) {
                check(&e);
            }
        }
    }
}
