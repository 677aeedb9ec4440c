//! Programs are run here, in an interpreter, against an evaluator that reads the profile naively.

use std::collections::BTreeMap;

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompOperator as Op};
use proptest::prelude::*;
use serde_json::json;

use super::arch::{self, Family};
use super::*;

/// `struct seccomp_data`.
#[derive(Clone, Copy, Debug)]
struct Data {
    nr: u32,
    arch: u32,
    args: [u64; 6],
}

/// Run a program as the kernel does, with its checks: jumps stay inside, and what runs ends in a `ret`.
fn run(program: &[Insn], data: &Data, big_endian: bool) -> u32 {
    let (mut pc, mut a) = (0, 0_u32);
    loop {
        let Insn { code, jt, jf, k } = program[pc];
        let jump = |yes: bool| usize::from(if yes { jt } else { jf });
        pc += 1;
        match code {
            0x20 => {
                a = match k {
                    0 => data.nr,
                    4 => data.arch,
                    16..64 if k % 4 == 0 => {
                        let high = (k % 8 == 4) != big_endian;
                        let argument = data.args[(k as usize - 16) / 8];
                        if high { (argument >> 32) as u32 } else { argument as u32 }
                    }
                    _ => panic!("load from {k}"),
                }
            }
            0x54 => a &= k,
            0x05 => pc += k as usize,
            0x15 => pc += jump(a == k),
            0x25 => pc += jump(a > k),
            0x35 => pc += jump(a >= k),
            0x06 => return k,
            _ => panic!("instruction {code:#x}"),
        }
    }
}

/// A name of the profile on one interface: its own number, and the number and the first argument through which
/// socketcall or ipc reach it.
struct Numbered {
    rule: usize,
    own: Option<u32>,
    through: Option<(u32, u32)>,
}

/// What a profile means, said once more and slowly.
struct Naive<'a> {
    profile: &'a LinuxSeccomp,
    family: &'a Family,
    /// Per interface of the family.
    numbered: Vec<Vec<Numbered>>,
}

fn value_of(action: Action, errno: Option<u32>) -> u32 {
    match action {
        Action::ScmpActKill | Action::ScmpActKillThread => 0,
        Action::ScmpActKillProcess => 0x8000_0000,
        Action::ScmpActTrap => 0x3_0000,
        Action::ScmpActErrno => 0x5_0000 + errno.unwrap_or(1),
        Action::ScmpActNotify => 0x7fc0_0000,
        Action::ScmpActTrace => 0x7ff0_0000 + errno.unwrap_or(1),
        Action::ScmpActLog => 0x7ffc_0000,
        Action::ScmpActAllow => 0x7fff_0000,
    }
}

impl<'a> Naive<'a> {
    fn new(profile: &'a LinuxSeccomp, family: &'a Family) -> Self {
        let rules = profile.syscalls().iter().flatten().enumerate();
        let names: Vec<_> = rules.flat_map(|(i, s)| s.names().iter().map(move |n| (i, n))).collect();
        let numbered = |abi: &arch::Abi| {
            let number = |text: &str| Some(abi.number(abi.slot(arch::name(text)?)?));
            let multiplexes = number("socketcall").is_some();
            let through = |text: &str| {
                let m = arch::multiplexed(arch::name(text)?).filter(|_| multiplexes)?;
                Some((number(m.by)?, m.call))
            };
            names.iter().map(|&(rule, n)| Numbered { rule, own: number(n), through: through(n) }).collect()
        };
        Naive { profile, family, numbered: family.abis.iter().map(numbered).collect() }
    }

    fn verdict(&self, data: &Data) -> u32 {
        let default = value_of(self.profile.default_action(), self.profile.default_errno_ret());
        let listed = self.profile.architectures().as_deref().unwrap_or_default();
        let x86_64 = data.arch == arch::AUDIT_X86_64;
        if x86_64 && data.nr == u32::MAX {
            return default;
        }
        let abi = self.family.abis.iter().enumerate().find(|(i, abi)| {
            abi.audit == data.arch
                && (*i == 0 || listed.contains(&abi.token))
                && (!x86_64 || (abi.token == Arch::ScmpArchX32) == (data.nr >= arch::X32_BIT))
        });
        let Some((abi_index, abi)) = abi else { return 0 };
        let (mut newest, mut ruled, mut conditional, mut unconditional) = (None, false, None, None);
        for Numbered { rule, own, through } in &self.numbered[abi_index] {
            let syscall = &self.profile.syscalls().as_ref().unwrap()[*rule];
            let action = value_of(syscall.action(), syscall.errno_ret());
            newest = newest.max(own.filter(|n| *n < 0xf_0000 || *n >= arch::X32_BIT));
            let through = through.filter(|t| t.0 == data.nr);
            if action == default || (*own != Some(data.nr) && through.is_none()) {
                continue;
            }
            ruled = true;
            let args = syscall.args().as_deref().unwrap_or_default();
            let several = args.iter().any(|a| args.iter().filter(|b| a.index() == b.index()).count() > 1);
            let holds = |a: &oci_spec::runtime::LinuxSeccompArg| {
                if through.is_some() && a.index() == 0 {
                    return true;
                }
                let cut = |v: u64| if abi.narrow { v & 0xffff_ffff } else { v };
                let (x, v) = (cut(data.args[a.index()]), cut(a.value()));
                match a.op() {
                    Op::ScmpCmpNe => x != v,
                    Op::ScmpCmpLt => x < v,
                    Op::ScmpCmpLe => x <= v,
                    Op::ScmpCmpEq => x == v,
                    Op::ScmpCmpGe => x >= v,
                    Op::ScmpCmpGt => x > v,
                    Op::ScmpCmpMaskedEq => x & v == a.value_two().unwrap_or(0) & v,
                }
            };
            let arguments = if several { args.iter().any(holds) } else { args.iter().all(holds) };
            match through {
                None if args.is_empty() => unconditional = unconditional.or(Some(action)),
                None if arguments => conditional = conditional.or(Some(action)),
                Some((_, call)) if data.args[0] as u32 == call && arguments => {
                    conditional = conditional.or(Some(action));
                }
                _ => {}
            }
        }
        let permissive = matches!(
            self.profile.default_action(),
            Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace
        );
        let s390 = matches!(abi.token, Arch::ScmpArchS390 | Arch::ScmpArchS390x);
        let new = newest.is_some_and(|n| data.nr > n) || (s390 && data.nr == 0);
        match unconditional.or(conditional) {
            Some(action) => action,
            None if !ruled && !permissive && new => 0x5_0000 + 38,
            None => default,
        }
    }
}

fn profile(value: serde_json::Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

fn docker() -> LinuxSeccomp {
    profile(serde_json::from_str(include_str!("../../../../spec-examples/seccomp-default.json")).unwrap())
}

fn families() -> [&'static Family; 9] {
    [
        &arch::X86_64,
        &arch::AARCH64,
        &arch::RISCV64,
        &arch::LOONGARCH64,
        &arch::PPC64LE,
        &arch::PPC64,
        &arch::S390X,
        &arch::MIPS64,
        &arch::MIPSEL64,
    ]
}

/// Numbers that could matter: of every interface, each `step`th in use and those beyond; and the edges.
fn numbers(family: &Family, step: usize) -> Vec<(u32, u32)> {
    let edges = [u32::MAX, u32::MAX - 1, 0x7fff_ffff, 0x3fff_ffff, 0x8000_0000, 0xf_0002, 0xf_0009];
    let audits: Vec<u32> = family.abis.iter().map(|a| a.audit).chain([0, 0xc000_003f]).collect();
    let firsts = family.abis.iter().flat_map(|a| (a.first..a.first + 570).step_by(step)).chain(edges);
    firsts.flat_map(|nr| audits.iter().map(move |&audit| (audit, nr))).collect()
}

/// Compare for these numbers, with these arguments.
fn agree(profile: &LinuxSeccomp, family: &Family, numbers: &[(u32, u32)], args: &[[u64; 6]]) {
    let filter = compile(profile, family).unwrap().unwrap();
    let naive = Naive::new(profile, family);
    for &(arch, nr) in numbers {
        for &args in args {
            let data = Data { nr, arch, args };
            let got = run(&filter.program, &data, family.big_endian);
            assert_eq!(got, naive.verdict(&data), "{data:#x?} on {:?}", family.abis[0].token);
        }
    }
}

#[test]
fn dockers_default_means_what_it_says() {
    for family in families() {
        let args = [0, 1, 8, 40, 0x2_0000, 0x7e02_0000, 0xffff_ffff, 0x1_0000_0028, u64::MAX];
        agree(&docker(), family, &numbers(family, 3), &args.map(|first| [first, 0, 0, 0, 0, 0]));
        agree(&docker(), family, &numbers(family, 1), &[[0; 6]]);
    }
}

#[test]
fn dockers_default_is_small() {
    let one = LinuxSeccomp::clone(docker().set_architectures(None));
    let filter = compile(&one, &arch::X86_64).unwrap().unwrap();
    assert!(filter.program.len() <= 200, "{} instructions for one architecture", filter.program.len());
    let filter = compile(&docker(), &arch::X86_64).unwrap().unwrap();
    assert!(filter.program.len() <= 320, "{} instructions for three", filter.program.len());
}

/// How long compiling takes: `cargo test --release -p berth-runtime -- --ignored --nocapture seccomp`.
#[test]
#[ignore = "a measurement"]
fn time_to_compile() {
    for (what, profile) in [("three", docker()), ("one", docker().set_architectures(None).clone())] {
        let mut times: Vec<_> = (0..200)
            .map(|_| {
                let start = std::time::Instant::now();
                std::hint::black_box(plan(&profile).unwrap());
                start.elapsed()
            })
            .collect();
        times.sort();
        let size = plan(&profile).unwrap().unwrap().program.len();
        println!("{what}: {size} instructions, median {:?}, first-ish {:?}", times[100], times[199]);
    }
}

/// Far more than 255 instructions between a condition and its target: each call has an answer of its own.
#[test]
fn jumps_reach_any_distance() {
    let syscalls: Vec<_> = super::syscalls::TABLE
        .iter()
        .enumerate()
        .map(|(i, (name, _))| json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": i + 100}))
        .collect();
    let all = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM"];
    let p = profile(
        json!({"defaultAction": "SCMP_ACT_KILL_PROCESS", "architectures": all, "syscalls": syscalls}),
    );
    for family in families() {
        agree(&p, family, &numbers(family, 1), &[[0; 6]]);
    }
}

#[test]
fn a_filter_too_large_for_the_kernel_is_refused() {
    let args = |i: u64| json!([{"index": 0, "value": i << 20 | i, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": i, "op": "SCMP_CMP_GE"}]);
    let syscalls: Vec<_> =
        (1..700).map(|i| json!({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": args(i)})).collect();
    let p = profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": syscalls}));
    let error = report::line(&compile(&p, &arch::X86_64).unwrap_err());
    assert!(
        error.starts_with("linux.seccomp: the filter has ") && error.ends_with("4096 is the kernel's limit"),
        "{error}"
    );
}

/// What it shows, the profile, the call (architecture, number, first two arguments), the verdict.
type Row = (&'static str, serde_json::Value, (u32, u32, [u64; 2]), u32);

#[test]
fn corners() {
    const ALLOW: u32 = 0x7fff_0000;
    const X86_64: u32 = arch::AUDIT_X86_64;
    const I386: u32 = 0x4000_0003;
    let eq = |index: u32, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let allow = |names: &[&str]| json!({"names": names, "action": "SCMP_ACT_ALLOW"});
    let base = |syscalls: serde_json::Value| json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": syscalls});
    let with = |mut value: serde_json::Value, key: &str, part: serde_json::Value| {
        value[key] = part;
        value
    };
    let rows: &[Row] = &[
        ("default errno is EPERM", base(json!([allow(&["fsync"])])), (X86_64, 0, [0, 0]), 0x5_0001),
        ("a call newer than the profile", base(json!([allow(&["fsync"])])), (X86_64, 75, [0, 0]), 0x5_0026),
        (
            "unless the default is permissive",
            with(
                base(json!([{"names": ["read"], "action": "SCMP_ACT_TRAP"}])),
                "defaultAction",
                json!("SCMP_ACT_LOG"),
            ),
            (X86_64, 400, [0, 0]),
            0x7ffc_0000,
        ),
        (
            "a killing default hides new calls too",
            with(base(json!([allow(&["read"])])), "defaultAction", json!("SCMP_ACT_KILL_PROCESS")),
            (X86_64, 400, [0, 0]),
            0x5_0026,
        ),
        ("an architecture not listed", base(json!([allow(&["read"])])), (0xc000_00b7, 0, [0, 0]), 0),
        ("x32 when it is not listed", base(json!([allow(&["read"])])), (X86_64, 0x4000_0000, [0, 0]), 0),
        (
            "the number -1 gets the default",
            base(json!([allow(&["read"])])),
            (X86_64, u32::MAX, [0, 0]),
            0x5_0001,
        ),
        (
            "native without a list",
            json!({"defaultAction": "SCMP_ACT_TRAP", "syscalls": [allow(&["read"])]}),
            (X86_64, 0, [0, 0]),
            ALLOW,
        ),
        (
            "others without a list",
            json!({"defaultAction": "SCMP_ACT_TRAP", "syscalls": [allow(&["read"])]}),
            (I386, 3, [0, 0]),
            0,
        ),
        (
            "unconditional beats earlier conditional",
            base(
                json!([{"names": ["read"], "action": "SCMP_ACT_TRAP", "args": [eq(0, 1)]}, allow(&["read"])]),
            ),
            (X86_64, 0, [1, 0]),
            ALLOW,
        ),
        (
            "and later",
            base(
                json!([allow(&["read"]), {"names": ["read"], "action": "SCMP_ACT_TRAP", "args": [eq(0, 1)]}]),
            ),
            (X86_64, 0, [1, 0]),
            ALLOW,
        ),
        (
            "two arguments: both",
            base(json!([{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [eq(0, 1), eq(1, 2)]}])),
            (X86_64, 0, [1, 3]),
            0x5_0001,
        ),
        (
            "one argument twice: either",
            base(
                json!([{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [eq(0, 1), eq(0, 2), eq(1, 7)]}]),
            ),
            (X86_64, 0, [9, 7]),
            ALLOW,
        ),
        (
            "trace passes its errno on",
            base(json!([{"names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": 12}])),
            (X86_64, 0, [0, 0]),
            0x7ff0_000c,
        ),
        (
            "the redundant rule leaves others alone",
            base(
                json!([{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}, {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [eq(0, 1)]}]),
            ),
            (X86_64, 0, [1, 0]),
            ALLOW,
        ),
        ("socket through socketcall on i386", base(json!([allow(&["socket"])])), (I386, 102, [1, 0]), ALLOW),
        ("another call through socketcall", base(json!([allow(&["socket"])])), (I386, 102, [2, 0]), 0x5_0001),
        ("socket by its own number on i386", base(json!([allow(&["socket"])])), (I386, 359, [0, 0]), ALLOW),
        (
            "a name that only socketcall knows",
            base(json!([allow(&["recv", "read"])])),
            (I386, 102, [10, 0]),
            ALLOW,
        ),
        ("shmget through ipc", base(json!([allow(&["shmget"])])), (I386, 117, [23, 0]), ALLOW),
        (
            "i386 compares 32 bits",
            base(json!([{"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [eq(0, u64::MAX)]}])),
            (I386, 136, [0xffff_ffff, 0]),
            ALLOW,
        ),
        (
            "x86_64 compares 64",
            base(json!([{"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [eq(0, u64::MAX)]}])),
            (X86_64, 135, [0xffff_ffff, 0]),
            0x5_0001,
        ),
    ];
    for (what, value, (arch, nr, [a, b]), expected) in rows {
        let data = Data { arch: *arch, nr: *nr, args: [*a, *b, 0, 0, 0, 0] };
        let filter = compile(&profile(value.clone()), &arch::X86_64).unwrap().unwrap();
        assert_eq!(run(&filter.program, &data, false), *expected, "{what}");
    }
}

/// s390 passes calls that it does not know as number 0; that is not what becomes of all others, if the profile names none of its calls.
#[test]
fn the_first_number_of_s390_stands_alone() {
    let value = json!({"defaultAction": "SCMP_ACT_KILL", "syscalls": [{"names": ["set_tls"], "action": "SCMP_ACT_ALLOW"}]});
    let filter = compile(&profile(value), &arch::S390X).unwrap().unwrap();
    for (nr, expected) in [(0, 0x5_0026), (1, 0), (0x65, 0), (1000, 0)] {
        let data = Data { nr, arch: arch::S390X.abis[0].audit, args: [0; 6] };
        assert_eq!(run(&filter.program, &data, true), expected, "{nr}");
    }
}

#[test]
fn mistakes_are_named() {
    let rule = |rule: serde_json::Value| json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]});
    let allow = json!({"names": ["read"], "action": "SCMP_ACT_ALLOW"});
    let notify = json!({"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"});
    for (value, message) in [
        (
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be the default action",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}),
            "linux.seccomp.defaultErrnoRet: SCMP_ACT_KILL takes no errno",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}),
            "linux.seccomp.defaultErrnoRet: 4096 is out of range, 0 to 4095 is allowed",
        ),
        (
            rule(json!({"names": [], "action": "SCMP_ACT_ALLOW"})),
            "linux.seccomp.syscalls[0].names: names no system call",
        ),
        (
            rule(json!({"names": ["read", ""], "action": "SCMP_ACT_ALLOW"})),
            "linux.seccomp.syscalls[0].names[1]: empty name",
        ),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 5})),
            "linux.seccomp.syscalls[0].errnoRet: SCMP_ACT_ALLOW takes no errno",
        ),
        (
            rule(
                json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}),
            ),
            "linux.seccomp.syscalls[0].args[0].index: 6 is out of range, 0 to 5 is allowed",
        ),
        (
            rule(json!({"names": ["write"], "action": "SCMP_ACT_NOTIFY"})),
            "linux.seccomp.syscalls[0].names[0]: SCMP_ACT_NOTIFY cannot be used for write: handing over the listener needs it",
        ),
        (rule(notify.clone()), "linux.seccomp.listenerPath: missing, and SCMP_ACT_NOTIFY needs it"),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "listenerMetadata": "x", "syscalls": [allow]}),
            "linux.seccomp.listenerMetadata: needs listenerPath",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}),
            "linux.seccomp.flags[0]: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a rule with SCMP_ACT_NOTIFY",
        ),
    ] {
        assert_eq!(report::line(&plan(&profile(value)).unwrap_err()), message);
    }
}

#[test]
fn flags_and_listener() {
    let with = |flags: serde_json::Value, notify: bool| {
        let action = if notify { "SCMP_ACT_NOTIFY" } else { "SCMP_ACT_ALLOW" };
        let mut value = json!({"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "/run/agent", "listenerMetadata": "m",
            "syscalls": [{"names": ["mkdir"], "action": action}]});
        if !flags.is_null() {
            value["flags"] = flags;
        }
        plan(&profile(value)).unwrap().unwrap()
    };
    assert_eq!(with(json!(null), false).flags, seccomp::FLAG_SPEC_ALLOW);
    assert_eq!(with(json!([]), false).flags, 0);
    assert_eq!(with(json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]), false).flags, 3);
    assert_eq!(
        with(json!(["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]), true).flags,
        8 | 32
    );
    assert_eq!(with(json!([]), false).listener, None);
    let filter = with(json!([]), true);
    assert_eq!(filter.listener, Some(Listener { path: "/run/agent".into(), metadata: "m".to_owned() }));
    assert_eq!(Filter::from_bytes(&filter.to_bytes()).unwrap(), filter);
    assert_eq!(plan(&profile(json!({"defaultAction": "SCMP_ACT_ALLOW"}))).unwrap(), None);
}

#[test]
fn damaged_bytes_are_refused() {
    let bytes = plan(&docker()).unwrap().unwrap().to_bytes();
    for cut in [0, 7, 9, 13, 16, bytes.len() - 1] {
        assert!(Filter::from_bytes(&bytes[..cut]).is_err(), "{cut}");
    }
    assert!(Filter::from_bytes(&[b'x'; 64]).is_err());
}

#[test]
fn summaries_name_calls_and_count_conditions() {
    let s = summary(&docker()).unwrap();
    assert_eq!(s.default_action, "SCMP_ACT_ERRNO(1)");
    assert_eq!(s.architectures[0], arch::native().abis[0].token.to_string());
    let allow = &s.actions[0];
    assert_eq!((allow.action.as_str(), allow.conditions), ("SCMP_ACT_ALLOW", 7));
    assert_eq!(allow.conditional, ["personality", "socket", "clone"]);
    assert!(allow.names.contains(&"openat2".to_owned()));
    assert_eq!(s.actions[1].action, "SCMP_ACT_ERRNO(38)");
    assert_eq!(s.actions[1].names, ["clone3"]);
}

const NAMES: [&str; 22] = [
    "read",
    "write",
    "open",
    "openat",
    "close",
    "clone",
    "clone3",
    "socket",
    "accept",
    "recv",
    "send",
    "semget",
    "shmget",
    "ipc",
    "socketcall",
    "personality",
    "execve",
    "set_tls",
    "ioctl",
    "listns",
    "nonesuch",
    "preadv2",
];
const VALUES: [u64; 10] =
    [0, 1, 2, 10, 23, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, u64::MAX, 0x8000_0000_0000_0000];
const OPS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
const ACTIONS: [&str; 8] = ["KILL", "KILL_THREAD", "KILL_PROCESS", "TRAP", "ERRNO", "TRACE", "LOG", "ALLOW"];

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![4 => prop::sample::select(&VALUES[..]), 1 => any::<u64>(), 1 => any::<u32>().prop_map(u64::from)]
}

fn any_action() -> impl Strategy<Value = (&'static str, Option<u32>)> {
    (prop::sample::select(&ACTIONS[..]), prop::option::of(prop::sample::select(&[0_u32, 1, 38, 4095][..])))
        .prop_map(|(a, e)| (a, e.filter(|_| matches!(a, "ERRNO" | "TRACE"))))
}

fn any_profile() -> impl Strategy<Value = LinuxSeccomp> {
    let arg = (0..6_u32, value(), prop::option::of(value()), prop::sample::select(&OPS[..])).prop_map(
        |(index, value, two, op)| json!({"index": index, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{op}")}),
    );
    let rule = (prop::collection::vec(prop::sample::select(&NAMES[..]), 1..5), any_action(), prop::collection::vec(arg, 0..4))
        .prop_map(|(names, (action, errno), args)| {
            json!({"names": names, "action": format!("SCMP_ACT_{action}"), "errnoRet": errno, "args": args})
        });
    let arches = prop::sample::subsequence(
        vec!["X86_64", "X86", "X32", "AARCH64", "ARM", "MIPS", "MIPSEL64N32", "S390", "S390X", "PPC", "M68K"],
        0..11,
    );
    (any_action(), arches, prop::collection::vec(rule, 1..8)).prop_map(|((action, errno), arches, rules)| {
        let arches: Vec<_> = arches.iter().map(|a| format!("SCMP_ARCH_{a}")).collect();
        profile(json!({"defaultAction": format!("SCMP_ACT_{action}"), "defaultErrnoRet": errno,
            "architectures": arches, "syscalls": rules}))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn programs_agree_with_the_naive_reading(p in any_profile(), family in 0..9_usize, args in prop::collection::vec(prop::array::uniform6(value()), 1..3)) {
        let family = families()[family];
        let mut numbers = numbers(family, 101);
        for abi in family.abis {
            let named = NAMES.iter().filter_map(|n| abi.slot(arch::name(n)?)).map(|s| abi.number(s));
            numbers.extend(named.flat_map(|nr| [nr.wrapping_sub(1), nr, nr + 1]).map(|nr| (abi.audit, nr)));
        }
        agree(&p, family, &numbers, &args);
    }

    /// One action, one architecture, no rule that another hides: what both can say.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn programs_agree_with_seccompiler(
        rules in prop::collection::btree_map(prop::sample::select(vec!["read", "write", "ioctl", "clone", "openat", "preadv2"]),
            prop::collection::vec((0..6_u8, value(), value(), 0..7_usize), 0..3), 1..6),
        args in prop::array::uniform6(value()),
    ) {
        use seccompiler as other;
        let mut theirs: BTreeMap<i64, Vec<other::SeccompRule>> = BTreeMap::new();
        let mut ours = Vec::new();
        for (name, conditions) in &rules {
            let nr = i64::from(arch::X86_64.abis[0].number(arch::X86_64.abis[0].slot(arch::name(name).unwrap()).unwrap()));
            let list = theirs.entry(nr).or_default();
            if conditions.is_empty() {
                ours.push(json!({"names": [name], "action": "SCMP_ACT_ALLOW"}));
            }
            for &(index, value, two, op) in conditions {
                let operator = match OPS[op] {
                    "NE" => other::SeccompCmpOp::Ne,
                    "LT" => other::SeccompCmpOp::Lt,
                    "LE" => other::SeccompCmpOp::Le,
                    "EQ" => other::SeccompCmpOp::Eq,
                    "GE" => other::SeccompCmpOp::Ge,
                    "GT" => other::SeccompCmpOp::Gt,
                    _ => other::SeccompCmpOp::MaskedEq(value),
                };
                let datum = if OPS[op] == "MASKED_EQ" { two & value } else { value };
                let condition = other::SeccompCondition::new(index, other::SeccompCmpArgLen::Qword, operator, datum).unwrap();
                list.push(other::SeccompRule::new(vec![condition]).unwrap());
                ours.push(json!({"names": [name], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": index, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{}", OPS[op])}]}));
            }
        }
        let theirs = other::SeccompFilter::new(theirs, other::SeccompAction::Errno(38), other::SeccompAction::Allow, other::TargetArch::x86_64).unwrap();
        let theirs: other::BpfProgram = theirs.try_into().unwrap();
        let theirs: Vec<Insn> = theirs.iter().map(|i| Insn { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect();
        let ours = compile(&profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": ours})), &arch::X86_64).unwrap().unwrap();
        for nr in 0..600 {
            let data = Data { nr, arch: arch::AUDIT_X86_64, args };
            prop_assert_eq!(run(&ours.program, &data, false), run(&theirs, &data, false), "{:#x?}", data);
        }
    }
}
