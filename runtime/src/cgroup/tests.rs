//! Effects, as root, in cgroups of our own: skipped where we are not root or the host has no v1 hierarchies.

use std::path::PathBuf;
use std::process::{Child, Command};

use oci_spec::runtime::Spec;

use super::*;
use crate::host::Host;
use crate::plan::Options;
use crate::plan::resources;

/// A container's cgroups, removed at the end.
struct Group {
    plan: CgroupPlan,
    record: Record,
}

impl Group {
    fn new(name: &str, resources: &str) -> Option<Group> {
        if sys::user::effective_ids().0 != 0 {
            println!("skipped: needs root");
            return None;
        }
        let host = Host::gather().unwrap();
        let id = format!("berth-test-{}-{name}", std::process::id());
        let config = format!(
            r#"{{"ociVersion":"1.2.0","linux":{{"cgroupsPath":"/{id}/c","resources":{resources}}}}}"#
        );
        let spec: Spec = serde_json::from_str(&config).unwrap();
        let options = Options { id, ..Options::default() };
        let plan = resources::plan(&spec, &options, &host).unwrap();
        let record = Cgroup::record(&plan, &Path::new("/nowhere").join(name));
        Some(Group { plan, record })
    }

    fn dir(&self, controller: &str) -> PathBuf {
        let v1 = self.record.v1.iter().find(|(names, _)| names.split(',').any(|n| n == controller));
        v1.map_or_else(|| self.record.v2.clone().unwrap(), |(_, dir)| dir.clone())
    }

    fn read(&self, controller: &str, file: &str) -> String {
        std::fs::read_to_string(self.dir(controller).join(file)).unwrap().trim().to_owned()
    }

    /// A process in the cgroups.
    fn sleeper(&self) -> Child {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let dirs = self.record.v1.iter().map(|(_, dir)| dir).chain(&self.record.v2);
        for dir in dirs {
            std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        child
    }

    fn exists(&self) -> bool {
        self.record.v1.iter().map(|(_, dir)| dir).chain(&self.record.v2).any(|dir| dir.exists())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for dir in self.record.v1.iter().map(|(_, dir)| dir).chain(&self.record.v2) {
            if dir.exists() {
                std::fs::remove_dir(dir).unwrap();
            }
            // A test that was skipped made nothing.
            if dir.parent().unwrap().exists() {
                std::fs::remove_dir(dir.parent().unwrap()).unwrap();
            }
        }
    }
}

#[test]
fn limits_are_in_the_files_and_destroy_leaves_nothing() {
    let resources = r#"{"memory":{"limit":67108864,"swap":134217728},"pids":{"limit":64},
        "cpu":{"shares":512,"quota":50000,"period":100000}}"#;
    let Some(group) = Group::new("limits", resources) else { return };
    let _cgroup = Cgroup::create(&group.plan, &group.record).unwrap();
    assert_eq!(group.read("pids", "pids.max"), "64");
    if !group.record.v1.is_empty() {
        assert_eq!(group.read("memory", "memory.limit_in_bytes"), "67108864");
        assert_eq!(group.read("memory", "memory.memsw.limit_in_bytes"), "134217728");
        assert_eq!(group.read("cpu", "cpu.shares"), "512");
        assert_eq!(group.read("cpu", "cpu.cfs_quota_us"), "50000");
        assert_ne!(group.read("cpuset", "cpuset.cpus"), "");
        let devices = group.read("devices", "devices.list");
        assert!(devices.contains("c 1:3 rwm") && !devices.contains("a *:*"), "{devices}");
    } else {
        assert_eq!(group.read("memory", "memory.max"), "67108864");
        assert_eq!(group.read("memory", "memory.swap.max"), "67108864");
        assert_eq!(group.read("cpu", "cpu.weight"), "59");
        assert_eq!(group.read("cpu", "cpu.max"), "50000 100000");
    }
    destroy(&group.record).unwrap();
    assert!(!group.exists());
    destroy(&group.record).unwrap();
}

/// A thread that writes `0` to `tasks` moves itself; so the join is tried by one of this process's threads.
#[test]
fn join_moves_the_calling_thread() {
    let Some(group) = Group::new("join", "{}") else { return };
    if group.record.v1.is_empty() {
        println!("skipped: v2 joins with clone3");
        return;
    }
    let cgroup = Cgroup::create(&group.plan, &group.record).unwrap();
    std::thread::scope(|scope| {
        let joined = scope.spawn(|| {
            cgroup.join().unwrap();
            std::fs::read_to_string("/proc/thread-self/cgroup").unwrap()
        });
        let lines = joined.join().unwrap();
        let path = &group.plan.v1[0].path;
        for dir in &group.plan.v1 {
            let line = format!("{}:{path}", dir.controllers.join(","));
            assert!(lines.lines().any(|l| l.ends_with(&line)), "{line} not in {lines}");
        }
    });
    destroy(&group.record).unwrap();
}

#[test]
fn destroy_kills_what_is_in_and_removes_what_the_container_made() {
    let Some(group) = Group::new("kill", "{}") else { return };
    let _cgroup = Cgroup::create(&group.plan, &group.record).unwrap();
    let mut child = group.sleeper();
    let sub = group.dir("memory").join("inner/most");
    std::fs::create_dir_all(&sub).unwrap();
    assert_eq!(pids(&group.record).unwrap(), [child.id() as i32]);
    freeze(&group.record).unwrap();
    assert!(is_frozen(&group.record).unwrap());
    // The dead sleeper stays a zombie of ours until it is waited for: that must not matter.
    destroy(&group.record).unwrap();
    assert!(!group.exists());
    assert!(!child.wait().unwrap().success());
}

/// THREATS.md: "Consequences for the design: write down what you are about to make"; but what was not made
/// by us is not ours to kill.
#[test]
fn a_cgroup_that_others_use_is_refused_and_left_alone() {
    let Some(group) = Group::new("busy", "{}") else { return };
    let other = Cgroup::record(&group.plan, Path::new("/nowhere/else"));
    let _cgroup = Cgroup::create(&group.plan, &other).unwrap();
    let mut child = group.sleeper();
    let error = Cgroup::create(&group.plan, &group.record).unwrap_err();
    let first = group.record.first().unwrap().display().to_string();
    assert_eq!(
        report::line(&error),
        format!("container's cgroup is not empty: 1 process(es) found in {first}")
    );
    assert_eq!(report::kind(&error), Some(Kind::AlreadyExists));
    destroy(&group.record).unwrap();
    assert_eq!(child.try_wait().unwrap(), None);
    destroy(&other).unwrap();
    child.wait().unwrap();
    assert!(!group.exists());
}

/// THREATS.md, damaged state files: "`delete --force` still kills its processes"
#[test]
fn cgroups_are_found_by_their_mark_when_the_state_is_lost() {
    let Some(group) = Group::new("lost", "{}") else { return };
    let _cgroup = Cgroup::create(&group.plan, &group.record).unwrap();
    let mut child = group.sleeper();
    destroy_lost(Path::new("/nowhere/los")).unwrap();
    assert_eq!(child.try_wait().unwrap(), None);
    destroy_lost(Path::new("/nowhere/lost")).unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(!group.exists());
}

#[test]
fn an_error_removes_what_was_made() {
    let Some(group) = Group::new("undo", r#"{"memory":{"limit":67108864}}"#) else { return };
    let mut plan = group.plan.clone();
    for write in &mut plan.writes {
        write.value = "nonsense".into();
    }
    let error = report::line(&Cgroup::create(&plan, &group.record).unwrap_err());
    assert!(error.starts_with("linux.resources.memory.limit: write nonsense to /sys/fs/cgroup/"), "{error}");
    assert!(error.ends_with("invalid argument (EINVAL)"), "{error}");
    assert!(!group.exists());
}
