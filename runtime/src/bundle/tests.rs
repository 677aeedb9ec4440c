//! Are real configs taken, and is every mistake named?

use proptest::prelude::*;
use serde_json::{Value, json};

use super::shape::{SPEC, Shape};
use super::*;

const EXAMPLES: &[(&str, &str)] = &[
    ("runc-spec", include_str!("../../../spec-examples/runc-spec.json")),
    ("docker", include_str!("../../../spec-examples/docker.json")),
    ("containerd-cri", include_str!("../../../spec-examples/containerd-cri.json")),
    ("podman-rootless", include_str!("../../../spec-examples/podman-rootless.json")),
    ("userns", include_str!("../../../spec-examples/userns.json")),
    ("cgroup-v2", include_str!("../../../spec-examples/cgroup-v2.json")),
    ("all-fields", include_str!("../../../spec-examples/all-fields.json")),
];
const ALL_FIELDS: &str = EXAMPLES[6].1;

fn all_fields() -> Value {
    serde_json::from_str(ALL_FIELDS).unwrap()
}

fn error(config: &Value) -> String {
    let bytes = serde_json::to_vec(config).unwrap();
    parse(&bytes).map(|_| ()).map_err(|e| report::line(&e)).expect_err("accepted")
}

#[test]
fn examples_are_taken() {
    for (name, text) in EXAMPLES {
        parse(text.as_bytes()).unwrap_or_else(|e| panic!("{name}: {}", report::line(&e)));
        assert_eq!(unknown_fields(text.as_bytes()).unwrap(), [], "{name}");
    }
}

/// Set what stands at a JSON pointer (its parent must exist), or remove it with `null`.
fn set(config: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match config.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}")) {
        Value::Object(entries) if value.is_null() => {
            entries.remove(key).unwrap();
        }
        Value::Object(entries) => {
            entries.insert(key.to_owned(), value);
        }
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
        other => panic!("{pointer}: {other}"),
    }
}

#[test]
fn mistakes_are_named() {
    let rlimit = json!({"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2});
    let overlap = json!({"containerID": 31999, "hostID": 500_000, "size": 2});
    let rows: Vec<(&str, Value, &str)> = vec![
        (
            "/ociVersion",
            json!(null),
            "ociVersion: required, but missing (allowed: 1.0.0 to 1.3.0, and later 1.x)",
        ),
        (
            "/ociVersion",
            json!("2.0.0"),
            r#"ociVersion: unsupported version "2.0.0" (allowed: 1.0.0 to 1.3.0, and later 1.x)"#,
        ),
        (
            "/ociVersion",
            json!("0.9.0"),
            r#"ociVersion: unsupported version "0.9.0" (allowed: 1.0.0 to 1.3.0, and later 1.x)"#,
        ),
        (
            "/ociVersion",
            json!("1.0"),
            r#"ociVersion: "1.0" is not a version of the form major.minor.patch (allowed: 1.0.0 to 1.3.0, and later 1.x)"#,
        ),
        ("/ociVersion", json!(1), "ociVersion: found the number 1, expected a text"),
        (
            "/root",
            json!(null),
            "root: required, but missing (expected an object with the path of the root file system)",
        ),
        ("/root/path", json!(""), "root.path: required, but empty or missing"),
        ("/process", json!(null), "process: required to create a container, but missing"),
        ("/process/cwd", json!(null), "process.cwd: required, but missing (expected a text)"),
        ("/process/cwd", json!(""), r#"process.cwd: "" is not an absolute path"#),
        ("/process/cwd", json!("tmp"), r#"process.cwd: "tmp" is not an absolute path"#),
        ("/process/cwd", json!("/a\0b"), r#"process.cwd: "/a\0b" contains a NUL byte"#),
        (
            "/process/args",
            json!(null),
            "process.args: required, but missing (expected the program and its arguments)",
        ),
        ("/process/args", json!([]), "process.args: empty (at least the program is needed)"),
        ("/process/args/0", json!(""), "process.args[0]: empty (expected the name or path of a program)"),
        ("/process/args/1", json!("a\0"), r#"process.args[1]: "a\0" contains a NUL byte"#),
        ("/process/args", json!("sh"), r#"process.args: found the text "sh", expected a list of texts"#),
        ("/process/env/1", json!("TERM"), r#"process.env[1]: "TERM" is not of the form NAME=value"#),
        ("/process/env/1", json!("=x"), r#"process.env[1]: "=x" has an empty name"#),
        ("/process/env/1", json!("A=\0"), r#"process.env[1]: "A=\0" contains a NUL byte"#),
        ("/process/user/uid", json!(-1), "process.user.uid: -1 is out of range (allowed: 0 to 4294967294)"),
        (
            "/process/user/uid",
            json!(4_294_967_295_u64),
            "process.user.uid: 4294967295 is out of range (allowed: 0 to 4294967294)",
        ),
        (
            "/process/user/uid",
            json!(4_294_967_296_u64),
            "process.user.uid: 4294967296 is out of range (allowed: 0 to 4294967294)",
        ),
        (
            "/process/user/gid",
            json!(1e30),
            "process.user.gid: 1e+30 is out of range (allowed: 0 to 4294967294)",
        ),
        (
            "/process/user/gid",
            json!(4_294_967_295_u64),
            "process.user.gid: 4294967295 is out of range (allowed: 0 to 4294967294)",
        ),
        (
            "/process/user/gid",
            json!(1.5),
            "process.user.gid: found 1.5, expected a whole number from 0 to 4294967294",
        ),
        (
            "/process/user/gid",
            json!("root"),
            r#"process.user.gid: found the text "root", expected a whole number from 0 to 4294967294"#,
        ),
        (
            "/process/user/additionalGids/1",
            json!(u32::MAX),
            "process.user.additionalGids[1]: 4294967295 is out of range (allowed: 0 to 4294967294)",
        ),
        ("/process/user/umask", json!(512), "process.user.umask: 512 is out of range (allowed: 0 to 511)"),
        (
            "/process/rlimits/-",
            rlimit,
            "process.rlimits[16].type: RLIMIT_NOFILE is already set by process.rlimits[9]",
        ),
        (
            "/process/rlimits/9/soft",
            json!(5000),
            "process.rlimits[9].soft: 5000 is more than the hard limit 4096 of RLIMIT_NOFILE",
        ),
        (
            "/process/oomScoreAdj",
            json!(1001),
            "process.oomScoreAdj: 1001 is out of range (allowed: -1000 to 1000)",
        ),
        (
            "/process/consoleSize/width",
            json!(70_000),
            "process.consoleSize.width: 70000 is out of range (allowed: 0 to 65535)",
        ),
        (
            "/process/scheduler/policy",
            json!("SCHED_FIF"),
            r#"process.scheduler.policy: unknown scheduling policy "SCHED_FIF" (allowed: SCHED_OTHER, SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_ISO, SCHED_IDLE, SCHED_DEADLINE)"#,
        ),
        ("/hostname", json!("x".repeat(65)), "hostname: 65 bytes long (allowed: at most 64)"),
        (
            "/linux/namespaces/2",
            json!({"type": "net"}),
            r#"linux.namespaces[2].type: unknown namespace "net" (allowed: cgroup, ipc, mount, network, pid, time, user, uts)"#,
        ),
        (
            "/linux/namespaces/2",
            json!({"type": "pid"}),
            "linux.namespaces[2].type: the pid namespace is already set by linux.namespaces[0]",
        ),
        (
            "/linux/namespaces/2",
            json!({}),
            "linux.namespaces[2].type: required, but missing (expected a namespace, one of cgroup, ipc, mount, network, pid, time, user, uts)",
        ),
        (
            "/linux/namespaces/1/path",
            json!("run/netns"),
            r#"linux.namespaces[1].path: "run/netns" is not an absolute path"#,
        ),
        (
            "/linux/namespaces",
            json!([{"type": "uts"}]),
            r#"linux.uidMappings: needs a user namespace (add {"type": "user"} to linux.namespaces)"#,
        ),
        (
            "/linux/namespaces",
            json!([{"type": "user"}, {"type": "time"}]),
            r#"hostname: "slartibartfast" needs a uts namespace (add {"type": "uts"} to linux.namespaces)"#,
        ),
        (
            "/linux/uidMappings/0/size",
            json!(0),
            "linux.uidMappings[0].size: 0 maps nothing (allowed: 1 or more)",
        ),
        (
            "/linux/uidMappings/0/hostID",
            json!(u32::MAX),
            "linux.uidMappings[0].hostID: 4294967295 and size 32000 reach past the last id 4294967294",
        ),
        (
            "/linux/gidMappings/-",
            overlap,
            "linux.gidMappings[1].containerID: 31999 and size 2 overlap with linux.gidMappings[0]",
        ),
        (
            "/linux/timeOffsets/realtime",
            json!({"secs": 1}),
            r#"linux.timeOffsets["realtime"]: unknown clock "realtime" (allowed: boottime, monotonic)"#,
        ),
        (
            "/linux/timeOffsets/boottime/nanosecs",
            json!(1_000_000_000),
            r#"linux.timeOffsets["boottime"].nanosecs: 1000000000 is out of range (allowed: 0 to 999999999)"#,
        ),
        (
            "/linux/devices/0/type",
            json!("a"),
            "linux.devices[0].type: unknown device type \"a\" (allowed: b, c, p, u)",
        ),
        ("/linux/devices/0/path", json!("fuse"), r#"linux.devices[0].path: "fuse" is not an absolute path"#),
        (
            "/linux/devices/0/major",
            json!(-1),
            "linux.devices[0].major: -1 is out of range (allowed: 0 to 4294967295)",
        ),
        (
            "/linux/resources/devices/1/access",
            json!("rx"),
            r#"linux.resources.devices[1].access: unknown access 'x' in "rx" (allowed: letters of rwm)"#,
        ),
        (
            "/linux/resources/devices/1/type",
            json!("p"),
            r#"linux.resources.devices[1].type: unknown device type "p" (allowed: a, b, c)"#,
        ),
        (
            "/linux/resources/unified/..~1x",
            json!("1"),
            r#"linux.resources.unified["../x"]: "../x" (to be set to "1") is not the name of a file in a cgroup"#,
        ),
        (
            "/linux/resources/memory/limit",
            json!("64m"),
            r#"linux.resources.memory.limit: found the text "64m", expected a whole number from -9223372036854775808 to 9223372036854775807"#,
        ),
        ("/linux/maskedPaths/0", json!("proc"), r#"linux.maskedPaths[0]: "proc" is not an absolute path"#),
        (
            "/linux/seccomp/syscalls/0/action",
            json!("SCMP_ACT_ALOW"),
            r#"linux.seccomp.syscalls[0].action: unknown seccomp action "SCMP_ACT_ALOW" (allowed: SCMP_ACT_ALLOW, SCMP_ACT_ERRNO, SCMP_ACT_KILL, SCMP_ACT_KILL_PROCESS, SCMP_ACT_KILL_THREAD, SCMP_ACT_LOG, SCMP_ACT_NOTIFY, SCMP_ACT_TRACE, SCMP_ACT_TRAP)"#,
        ),
        (
            "/mounts/0/destination",
            json!(""),
            "mounts[0].destination: empty (expected a path in the container)",
        ),
        ("/mounts/3/gidMappings", json!(null), "mounts[3].gidMappings: missing, but uidMappings are given"),
        (
            "/mounts/3/uidMappings/0/size",
            json!(0),
            "mounts[3].uidMappings[0].size: 0 maps nothing (allowed: 1 or more)",
        ),
        (
            "/hooks/prestart/0/path",
            json!("hook"),
            r#"hooks.prestart[0].path: "hook" is not an absolute path"#,
        ),
        (
            "/hooks/prestart/0/path",
            json!(null),
            "hooks.prestart[0].path: required, but missing (expected a text)",
        ),
        (
            "/hooks/prestart/0/timeout",
            json!(0),
            "hooks.prestart[0].timeout: 0 is out of range (allowed: 1 or more seconds)",
        ),
        (
            "/hooks/poststop/0/env",
            json!(["A"]),
            r#"hooks.poststop[0].env[0]: "A" is not of the form NAME=value"#,
        ),
        ("/annotations/", json!("v"), r#"annotations[""]: the value "v" has an empty key"#),
        ("/annotations/a", json!(1), r#"annotations["a"]: found the number 1, expected a text"#),
    ];
    for (pointer, value, expected) in rows {
        let mut config = all_fields();
        match pointer.strip_suffix("/..~1x") {
            Some(parent) => set(&mut config, &format!("{parent}/x"), value),
            None => set(&mut config, pointer, value),
        }
        if pointer.ends_with("/..~1x") {
            let unified = config.pointer_mut("/linux/resources/unified").unwrap().as_object_mut().unwrap();
            let value = unified.remove("x").unwrap();
            unified.insert("../x".to_owned(), value);
        }
        assert_eq!(error(&config), format!("config.json: {expected}"), "{pointer}");
    }
}

#[test]
fn mistakes_come_with_a_hint() {
    let hint = |pointer: &str, value: Value| {
        let mut config = all_fields();
        set(&mut config, pointer, value);
        let e = parse(&serde_json::to_vec(&config).unwrap()).unwrap_err();
        assert_eq!(report::kind(&e), Some(Kind::BadInput));
        report::hint(&e)
    };
    assert_eq!(hint("/linux/namespaces/0/type", json!("proccess")), None);
    assert_eq!(hint("/linux/namespaces/0/type", json!("nett")).as_deref(), Some("did you mean \"network\"?"));
    let mut config = all_fields();
    set(&mut config, "/process/cwd", json!(null));
    set(&mut config, "/process/cmd", json!("/"));
    let e = parse(&serde_json::to_vec(&config).unwrap()).unwrap_err();
    assert_eq!(report::hint(&e).as_deref(), Some("there is \"cmd\", which the specification does not have"));
}

#[test]
fn text_mistakes_carry_line_and_column() {
    for (text, expected) in [
        ("", "line 1, column 0: EOF while parsing a value (is the file complete?)"),
        ("{\n  \"ociVersion\": \"1.0.0\",\n}", "line 3, column 1: trailing comma"),
        (
            "{\"ociVersion\": \"1.0.0\"",
            "line 1, column 22: EOF while parsing an object (is the file complete?)",
        ),
        ("{\"ociVersion\": 1.0.0}", "line 1, column 19: expected `,` or `}`"),
        ("[]", "the document: found a list, expected an object"),
        ("null", "the document: found null, expected an object"),
        ("{} x", "line 1, column 4: trailing characters"),
        (
            "{\"ociVersion\":\"1.0.0\",\n\"hostname\":\"a\",\n\"hostname\":\"b\"}",
            "line 3, column 10: duplicate field `hostname`",
        ),
    ] {
        let e = parse(text.as_bytes()).unwrap_err();
        assert_eq!(report::line(&e), format!("config.json: {expected}"), "{text}");
    }
}

/// Every place of the full config with a value of the wrong kind, and every required property taken away:
/// each is refused at that very place.
#[test]
fn every_place_is_checked() {
    let mut places = Vec::new();
    wrong_values(&all_fields(), &SPEC, "", "", &mut places);
    assert!(places.len() > 300, "{}", places.len());
    for (pointer, path, wrong) in places {
        let mut config = all_fields();
        match config.pointer_mut(&pointer) {
            Some(place) => *place = wrong.clone(),
            None => panic!("{pointer}"),
        }
        let found = error(&config);
        let expected = format!("config.json: {}: ", if path.is_empty() { "the document" } else { &path });
        assert!(found.starts_with(&expected), "{path} = {wrong}: {found}");
        assert!(!found.contains('\n'));
    }
}

fn wrong_values(
    value: &Value,
    shape: &Shape,
    pointer: &str,
    path: &str,
    out: &mut Vec<(String, String, Value)>,
) {
    let wrong = match shape {
        Shape::Bool => vec![json!("yes"), json!(1)],
        Shape::Text => vec![json!(7), json!(["a"])],
        Shape::Number(low, _) => {
            let below = i64::try_from(*low - 1).ok();
            [json!("7"), json!(1e40)].into_iter().chain(below.map(|n| json!(n))).collect()
        }
        Shape::Word(..) => vec![json!("NONSENSE"), json!({})],
        Shape::List(_) => vec![json!({}), json!("a")],
        Shape::Map(_) | Shape::Object(_) => vec![json!([]), json!(false)],
        Shape::Foreign => vec![],
    };
    out.extend(wrong.into_iter().map(|w| (pointer.to_owned(), path.to_owned(), w)));
    match (shape, value) {
        (Shape::List(of), Value::Array(items)) => {
            for (i, item) in items.iter().enumerate() {
                wrong_values(item, of, &format!("{pointer}/{i}"), &format!("{path}[{i}]"), out);
            }
        }
        (Shape::Map(of), Value::Object(entries)) => {
            for (key, item) in entries {
                wrong_values(item, of, &format!("{pointer}/{key}"), &format!("{path}[{key:?}]"), out);
            }
        }
        (Shape::Object(fields), Value::Object(entries)) => {
            for field in *fields {
                let here =
                    if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
                let pointer = format!("{pointer}/{}", field.name);
                match entries.get(field.name) {
                    Some(item) => wrong_values(item, &field.shape, &pointer, &here, out),
                    None if matches!(field.shape, Shape::Foreign) || field.name == "commandLine" => {}
                    None if path.starts_with("process.user") || path.contains("devices[") => {}
                    None if here.starts_with("mounts[") || here.starts_with("hooks.") => {}
                    None if here.ends_with(".args")
                        || here.ends_with(".errnoRet")
                        || here.ends_with(".path") => {}
                    None if here.contains("IOPSDevice") || here.ends_with(".name") => {}
                    None if here.ends_with("valueTwo") => {}
                    None => panic!("{here} is missing in all-fields.json"),
                }
            }
        }
        _ => {}
    }
}

/// Valid by the specification, refused by the parser: each must get through.
#[test]
fn valid_configs_that_need_other_words() {
    let with = |pointer: &str, value: Value| {
        let mut config = all_fields();
        set(&mut config, pointer, value);
        let bytes = serde_json::to_vec(&config).unwrap();
        parse(&bytes).unwrap_or_else(|e| panic!("{pointer}: {}", report::line(&e)))
    };
    with("/process/user", json!(null));
    with("/process/scheduler/flags", json!(words::SCHED_FLAGS));
    for foreign in ["solaris", "windows", "vm", "zos", "freebsd"] {
        with(&format!("/{foreign}"), json!({"anything": [1]}));
    }
    let spec = with("/process/capabilities/bounding", json!(["CAP_KILL", "CAP_OF_TOMORROW"]));
    let process = spec.process().as_ref().unwrap();
    let bounding = process.capabilities().as_ref().unwrap().bounding().as_ref().unwrap();
    assert_eq!(bounding.len(), 1);
    let affinity = process.exec_cpu_affinity().as_ref().unwrap();
    assert_eq!(
        (affinity.initial().as_deref(), affinity.cpu_affinity_final().as_deref()),
        (Some("0-1,3"), None)
    );

    let mut config = all_fields();
    for pointer in ["/mounts/0/options", "/root/readonly", "/linux/resources/cpu/shares", "/hooks/poststop"] {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = Value::Null;
    }
    parse(&serde_json::to_vec(&config).unwrap()).unwrap();
}

#[test]
fn an_absent_pids_limit_is_not_zero() {
    for (pids, expected) in [
        (json!({}), None),
        (json!({"limit": null}), None),
        (json!({"limit": 0}), Some(0)),
        (json!({"limit": -1}), Some(-1)),
        (json!({"limit": 7}), Some(7)),
    ] {
        let resources = parse_resources(&serde_json::to_vec(&json!({"pids": pids})).unwrap()).unwrap();
        assert_eq!(resources.pids().map(|p| p.limit()), expected, "{pids}");
        let mut config = all_fields();
        set(&mut config, "/linux/resources/pids", pids.clone());
        let spec = parse(&serde_json::to_vec(&config).unwrap()).unwrap();
        let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
        assert_eq!(resources.pids().map(|p| p.limit()), expected, "{pids}");
    }
}

#[test]
fn a_process_of_its_own_is_held_to_the_same_rules() {
    let e = |text: &str| report::line(&parse_process(text.as_bytes()).unwrap_err());
    assert_eq!(e(r#"{"cwd":"x","args":["a"]}"#), r#"cwd: "x" is not an absolute path"#);
    assert_eq!(
        e(r#"{"cwd":"/","args":["a"],"user":{"uid":-1}}"#),
        "user.uid: -1 is out of range (allowed: 0 to 4294967294)"
    );
    parse_process(br#"{"cwd":"/","args":["a"]}"#).unwrap();
}

#[test]
fn unknown_fields_are_listed_with_the_nearest_name() {
    let text =
        br#"{"ociVersion":"1.0.0","hostnam":"x","process":{"cwd":"/","noNewPrivilege":true},"x-vendor":1}"#;
    assert_eq!(
        unknown_fields(text).unwrap(),
        [
            ("hostnam".to_owned(), Some("hostname")),
            ("process.noNewPrivilege".to_owned(), Some("noNewPrivileges")),
            ("x-vendor".to_owned(), None)
        ]
    );
}

#[test]
fn files_are_read_whole_even_if_they_grow() {
    for size in [0_usize, 1, 2, 4095, 4096, 100_000] {
        let path = std::env::temp_dir().join(format!("berth-read-{}-{size}", std::process::id()));
        std::fs::write(&path, vec![b'x'; size]).unwrap();
        for told in [0, size as u64 / 2, size as u64, size as u64 + 10] {
            let mut file = std::fs::File::open(&path).unwrap();
            assert_eq!(read_all(&mut file, told).unwrap().len(), size, "{size} told as {told}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}

/// One random edit of a real config.
fn mutate(text: &str, at: usize, kind: u8, junk: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    let at = at % bytes.len();
    match kind {
        0 => bytes.truncate(at),
        1 => {
            bytes.remove(at);
        }
        2 => bytes[at] = junk.as_bytes().first().copied().unwrap_or(0),
        3 => {
            bytes.splice(at..at, junk.bytes());
        }
        _ => {
            let end = (at + junk.len()).min(bytes.len());
            bytes.splice(at..end, *b"null");
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens to a config, it is taken or refused with one line; nothing panics.
    #[test]
    fn fuzz_config_text(which in 0..EXAMPLES.len(), at in any::<usize>(), kind in 0_u8..5, junk in ".{0,6}") {
        let bytes = mutate(EXAMPLES[which].1, at, kind, &junk);
        if let Err(e) = parse(&bytes) {
            let line = report::line(&e);
            prop_assert!(line.starts_with("config.json: ") && line.len() > 20, "{}", line);
            prop_assert_eq!(report::kind(&e), Some(Kind::BadInput));
            prop_assert!(!line.contains('\n'), "{}", line);
        }
    }

    #[test]
    fn fuzz_config_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse(&bytes).is_err());
    }
}
