//! Exactly the capabilities that were asked for, in every set, in run and exec (CVE-2022-29162).

use harness::{Bed, json, need};

const SHOW: [&str; 3] = ["grep", "Cap", "/proc/self/status"];

fn sets(inheritable: u64, permitted: u64, effective: u64, bounding: u64, ambient: u64) -> String {
    format!(
        "CapInh:\t{inheritable:016x}\nCapPrm:\t{permitted:016x}\nCapEff:\t{effective:016x}\nCapBnd:\t{bounding:016x}\nCapAmb:\t{ambient:016x}\n"
    )
}

const CHOWN: u64 = 1;
const KILL: u64 = 1 << 5;

#[test]
fn inheritable_and_ambient_stay_empty_unless_asked_for() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let names = json!(["CAP_CHOWN", "CAP_KILL"]);
    let b = bed
        .bundle()
        .set("/process/capabilities", json!({"bounding": names, "effective": names, "permitted": names}));
    b.args(SHOW).run().success().stdout_is(&sets(0, CHOWN | KILL, CHOWN | KILL, CHOWN | KILL, 0));
}

#[test]
fn each_set_is_set_alone() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    // Not root, so that the kernel adds nothing when the program is executed.
    let b = bed.bundle().set("/process/user", json!({"uid": 1000, "gid": 1000})).set(
        "/process/capabilities",
        json!({"bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_KILL"],
               "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]}),
    );
    b.args(SHOW).run().success().stdout_is(&sets(KILL, KILL, KILL, CHOWN | KILL, KILL));
}

#[test]
fn none_asked_for_is_none() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    bed.bundle()
        .set("/process/capabilities", json!({}))
        .args(SHOW)
        .run()
        .success()
        .stdout_is(&sets(0, 0, 0, 0, 0));
}

#[test]
fn exec_has_the_same_sets() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().capabilities(&["CAP_CHOWN", "CAP_KILL"]).idle();
    let both = CHOWN | KILL;
    c.exec(&SHOW).success().stdout_is(&sets(0, both, both, both, 0));
}

/// The runtime itself may have been started with inheritable and ambient capabilities.
#[test]
fn what_the_caller_inherits_is_not_passed_on() {
    let Some(_) = need::program("setpriv") else { return };
    let bed = Bed::new();
    let b = bed.bundle().capabilities(&["CAP_KILL"]).args(SHOW);
    let id = b.fresh_id();
    b.write(&id);
    let all = ["setpriv", "--inh-caps=+chown,+kill,+net_admin", "--ambient-caps=+chown,+kill,+net_admin"];
    let mut command = bed.prefixed(&all);
    let out = harness::finish(command.arg("run").arg("--bundle").arg(&b.dir).arg(&id)).success();
    out.stdout_is(&sets(0, KILL, KILL, KILL, 0));
    let c = bed.bundle().capabilities(&["CAP_KILL"]).idle();
    let mut command = bed.prefixed(&all);
    let mut words = vec!["exec", c.id.as_str()];
    words.extend(SHOW);
    harness::finish(command.args(words)).success().stdout_is(&sets(0, KILL, KILL, KILL, 0));
}

#[test]
fn no_securebit_or_keepcaps_is_left_over() {
    let Some(_) = need::gcc() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let source = r#"
#include <stdio.h>
#include <sys/prctl.h>
int main(void) { printf("%d %d %d\n", prctl(PR_GET_SECUREBITS), prctl(PR_GET_KEEPCAPS), prctl(PR_GET_DUMPABLE)); return 0; }
"#;
    harness::cc::compile(source, &b.inside("bin/bits"));
    let b = b.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    b.args(["/bin/bits"]).run().success().stdout_is("0 0 1\n");
}

/// What two libraries of others see from outside, each in its own way.
#[test]
fn others_see_the_same_from_outside() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().capabilities(&["CAP_CHOWN", "CAP_KILL"]).idle();
    let pid = c.pid();
    for (set, expected) in [
        (caps::CapSet::Effective, vec![caps::Capability::CAP_CHOWN, caps::Capability::CAP_KILL]),
        (caps::CapSet::Permitted, vec![caps::Capability::CAP_CHOWN, caps::Capability::CAP_KILL]),
        (caps::CapSet::Inheritable, vec![]),
    ] {
        let found = caps::read(Some(pid), set).expect("read its capabilities");
        assert_eq!(found, expected.into_iter().collect(), "{set:?}");
    }
    let process = procfs::process::Process::new(pid).expect("look at it");
    let status = process.status().expect("read its status");
    assert_eq!((status.capeff, status.capbnd, status.capamb), (CHOWN | KILL, Some(CHOWN | KILL), Some(0)));
    // It is the first process of a pid namespace of its own, in mounts of its own.
    assert_eq!(status.nspid.expect("pids in its namespaces").last(), Some(&1));
    let own = procfs::process::Process::myself().and_then(|p| p.namespaces()).expect("read our namespaces").0;
    let theirs = process.namespaces().expect("read its namespaces").0;
    for kind in ["mnt", "pid", "uts", "ipc"] {
        let kind = std::ffi::OsString::from(kind);
        assert_ne!(own[&kind].identifier, theirs[&kind].identifier, "{kind:?}");
    }
    let root =
        process.mountinfo().expect("read its mounts").into_iter().find(|m| m.mount_point.as_os_str() == "/");
    assert!(root.is_some(), "it has no root");
}
