//! Does a `mounts` entry yield the mount that the specification says, and a mistake its one error?

use serde_json::{Value, json};
use sys::mount::attr;

use super::*;
use crate::cgroup::host::{Hierarchies, V1, V2};
use crate::plan::resources;

fn host(v2: bool, rootless: bool) -> Host {
    let v1 = |name: &str, controllers: &[&str]| V1 {
        controllers: controllers.iter().map(|c| (*c).to_owned()).collect(),
        mount: PathBuf::from("/sys/fs/cgroup").join(name),
        own: "/".to_owned(),
    };
    let cgroup = if v2 {
        let v2 = V2 { mount: "/sys/fs/cgroup".into(), own: "/".to_owned(), controllers: Vec::new() };
        Hierarchies { v1: Vec::new(), v2: Some(v2), systemd: false }
    } else {
        let v1 = vec![
            v1("cpu,cpuacct", &["cpu", "cpuacct"]),
            v1("devices", &["devices"]),
            v1("freezer", &["freezer"]),
        ];
        Hierarchies { v1, v2: None, systemd: false }
    };
    Host { euid: 0, egid: 0, rootless, cgroup_optional: rootless, cgroup, capabilities: u64::MAX }
}

fn plan_with(mounts: &Value, namespaces: &[&str], host: &Host) -> Result<Vec<Mount>> {
    let namespaces: Vec<Value> = namespaces.iter().map(|n| json!({ "type": n })).collect();
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let config = json!({
        "ociVersion": "1.3.0",
        "mounts": mounts,
        "linux": {"namespaces": namespaces, "uidMappings": maps, "gidMappings": maps, "cgroupsPath": "/a/b"},
    });
    let spec: Spec = serde_json::from_value(config)?;
    let options = Options { id: "web".to_owned(), bundle: "/bundle".into(), ..Options::default() };
    let cgroup = resources::plan(&spec, &options, host)?;
    plan(&spec, &options, host, &cgroup)
}

fn one(mount: Value) -> Mount {
    plan_with(&json!([mount]), &["mount"], &host(false, false)).unwrap().remove(0)
}

#[test]
fn file_systems() {
    for (name, mount, flags, data, late) in [
        (
            "flags and data apart",
            json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                   "options": ["nosuid", "newinstance", "noexec", "gid=5"]}),
            flags::NOSUID | flags::NOEXEC,
            "newinstance,gid=5",
            false,
        ),
        (
            "a tmpfs becomes read-only last",
            json!({"destination": "/t", "type": "tmpfs", "options": ["ro", "nodev", "size=1m"]}),
            flags::NODEV,
            "size=1m",
            true,
        ),
        (
            "sysfs at once",
            json!({"destination": "/sys", "type": "sysfs", "options": ["ro"]}),
            flags::RDONLY,
            "",
            false,
        ),
        (
            "unknown words are the file system's",
            json!({"destination": "/o", "type": "overlay", "options": ["lowerdir=/a:/b", "userxattr"]}),
            0,
            "lowerdir=/a:/b,userxattr",
            false,
        ),
    ] {
        let m = one(mount);
        let MountKind::Fs(fs) = &m.kind else { panic!("{name}: {m:?}") };
        assert_eq!((fs.flags, fs.data.as_str(), m.readonly_last), (flags, data, late), "{name}");
    }
}

#[test]
fn binds() {
    let m = one(
        json!({"destination": "data/../etc/./x", "source": "file", "options": ["rbind", "ro", "rslave", "rro"]}),
    );
    assert_eq!(m.destination, Path::new("etc/x"));
    assert_eq!(m.kind, MountKind::Bind { source: "/bundle/file".into(), recursive: true });
    assert_eq!(m.attributes, Attributes { set: attr::RDONLY, clear: 0 });
    assert_eq!(m.recursive, Attributes { set: attr::RDONLY, clear: 0 });
    assert_eq!(m.propagation, [Propagation::parse("rslave").unwrap()]);
    let typed = one(json!({"destination": "/x", "type": "bind", "source": "/s"}));
    assert_eq!(typed.kind, MountKind::Bind { source: "/s".into(), recursive: false });
}

#[test]
fn remounts() {
    let with_bind = one(json!({"destination": "/x", "options": ["remount", "bind", "ro"]}));
    assert_eq!(with_bind.kind, MountKind::Remount { file_system: None });
    assert_eq!(with_bind.attributes.set, attr::RDONLY);
    let without = one(json!({"destination": "/x", "type": "tmpfs", "options": ["remount", "size=2m", "rw"]}));
    assert_eq!(
        without.kind,
        MountKind::Remount { file_system: Some(vec!["size=2m".to_owned(), "rw".to_owned()]) }
    );
}

#[test]
fn cgroup_on_each_kind_of_host() {
    let mounts = json!([{"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro", "nosuid"]}]);
    let v1 = plan_with(&mounts, &["mount"], &host(false, false)).unwrap().remove(0);
    let MountKind::Hierarchies { readonly: true, dirs, .. } = v1.kind else { panic!("{v1:?}") };
    let mut names: Vec<_> =
        dirs.iter().map(|d| (d.name.as_str(), d.host.display().to_string(), d.links.join(" "))).collect();
    names.sort();
    assert_eq!(
        names,
        [
            ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/a/b".to_owned(), "cpu cpuacct".to_owned()),
            ("devices", "/sys/fs/cgroup/devices/a/b".to_owned(), String::new()),
            ("freezer", "/sys/fs/cgroup/freezer/a/b".to_owned(), String::new()),
        ]
    );
    let v2 = plan_with(&mounts, &["mount"], &host(true, false)).unwrap().remove(0);
    let MountKind::Fs(fs) = v2.kind else { panic!("{v2:?}") };
    assert_eq!((fs.fs.as_str(), fs.flags), ("cgroup2", flags::RDONLY | flags::NOSUID));
    assert_eq!(fs.instead, Some("/sys/fs/cgroup/a/b".into()));
}

#[test]
fn id_maps() {
    let own = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
    let m = one(json!({"destination": "/x", "source": "/s", "options": ["bind", "ridmap"],
                       "uidMappings": own, "gidMappings": own}));
    let range = vec![IdRange { inside: 0, outside: 5000, size: 10 }];
    let maps = IdMapSource::Maps { uids: range.clone(), gids: range };
    assert_eq!(m.idmap, Some(IdMap { maps, recursive: true }));
    // "if not specified, the mapping of the container's user namespace"
    let mounts = json!([{"destination": "/x", "source": "/s", "options": ["bind", "idmap"]}]);
    let m = plan_with(&mounts, &["mount", "user"], &host(false, false)).unwrap().remove(0);
    let range = vec![IdRange { inside: 0, outside: 100_000, size: 65536 }];
    let maps = IdMapSource::Maps { uids: range.clone(), gids: range };
    assert_eq!(m.idmap, Some(IdMap { maps, recursive: false }));
}

#[test]
fn mistakes() {
    for (mount, message) in [
        (
            json!({"destination": "", "type": "tmpfs"}),
            "mounts[0].destination: empty; name an absolute path in the container",
        ),
        (
            json!({"destination": "/", "type": "tmpfs"}),
            "mounts[0].destination: \"/\" is the root itself, which root.path names",
        ),
        (
            json!({"destination": "/x"}),
            "mounts[0].type: missing; name a file system, or add the option \"bind\" or \"rbind\"",
        ),
        (
            json!({"destination": "/x", "options": ["bind"]}),
            "mounts[0].source: missing; a bind mount needs a source",
        ),
        (
            json!({"destination": "/x", "source": "/", "options": ["bind", "ro", "size=3"]}),
            "mounts[0].options[2]: unknown option \"size=3\"; a bind mount has no file system to ask",
        ),
        (
            json!({"destination": "/x", "type": "tmpfs", "options": ["ro", "mode=9z"]}),
            "mounts[0].options[1]: mode=9z: \"9z\" is not an octal mode of at most 7777",
        ),
        (
            json!({"destination": "/x", "type": "tmpfs", "options": [""]}),
            "mounts[0].options[0]: \"\" is not a mount option",
        ),
        (
            json!({"destination": "/proc", "type": "tmpfs"}),
            "mounts[0].destination: /proc is for a mount of type proc",
        ),
        (
            json!({"destination": "/proc/1/../sys", "type": "tmpfs"}),
            "mounts[0].destination: /proc/sys is inside /proc; only cpuinfo, diskstats, meminfo, stat, swaps, uptime, \
             loadavg, slabinfo, net/dev, sys/kernel/ns_last_pid, sys/crypto/fips_enabled may be covered there",
        ),
        (
            json!({"destination": "/x", "type": "sysfs", "options": ["tmpcopyup"]}),
            "mounts[0].options: tmpcopyup is for mounts of type tmpfs",
        ),
        (
            json!({"destination": "/x", "source": "/", "options": ["bind", "idmap"]}),
            "mounts[0].options: idmap needs uidMappings and gidMappings, or a container with a user namespace",
        ),
        (
            json!({"destination": "/x", "type": "tmpfs", "options": ["idmap"],
                   "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
                   "gidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}),
            "mounts[0]: id maps are for bind mounts; add the option \"bind\" or \"rbind\"",
        ),
        (
            json!({"destination": "/x", "source": "/", "options": ["bind"],
                   "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}),
            "mounts[0].gidMappings: missing beside uidMappings",
        ),
    ] {
        let error = plan_with(&json!([mount]), &["mount"], &host(false, false)).unwrap_err();
        assert_eq!(report::line(&error), message);
    }
}

#[test]
fn what_lxcfs_covers_may_be_covered() {
    for file in EMULATED {
        one(json!({"destination": format!("/proc/{file}"), "source": "/s", "options": ["bind"]}));
    }
}
