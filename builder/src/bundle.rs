//! How does an image become an OCI bundle? Its config is turned into a config.json as image-spec's conversion.md has it, with what
//! Docker adds: capabilities, seccomp profile, mounts, masked paths.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::manifest::Config;
use serde_json::{Value, json};
use sys::path::Links;

/// Bytes of /etc/passwd and /etc/group that are read.
const FILE_MOST: u64 = 4 << 20;
const SECCOMP: &str = include_str!("bundle/seccomp.json");
/// `PATH`, where an image has none.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Who a container's process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub more: Vec<u32>,
    pub home: Option<String>,
}

/// A file of the root file system, which nobody trusts: it may be a pipe, endless, or a link out.
fn text(root: BorrowedFd<'_>, path: &str) -> Result<String> {
    let file = match sys::path::open(root, Path::new(path), Links::Follow) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        other => std::fs::File::from(other.with_context(|| format!("read the image's /{path}"))?),
    };
    let meta = file.metadata()?;
    ensure!(meta.is_file(), "the image's /{path} is no regular file");
    let mut bytes = Vec::new();
    file.take(FILE_MOST + 1).read_to_end(&mut bytes).with_context(|| format!("read the image's /{path}"))?;
    ensure!(bytes.len() as u64 <= FILE_MOST, "the image's /{path} has more than {FILE_MOST} bytes");
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX && text.bytes().all(|b| b.is_ascii_digit()))
}

/// image-spec, config.md, "User": `user`, `uid`, `user:group`, `uid:gid`, `uid:group`, `user:gid`.
pub fn user(root: BorrowedFd<'_>, wanted: &str) -> Result<User> {
    let (name, group) = match wanted.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (wanted, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let passwd = text(root, "etc/passwd")?;
    let groups = text(root, "etc/group")?;
    let entry = passwd
        .lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|f| f.len() >= 6 && (f[0] == name || id(name).is_some_and(|uid| id(f[2]) == Some(uid))));
    let mut found = User::default();
    match (&entry, id(name)) {
        (Some(fields), _) => {
            let number = |i: usize| {
                id(fields[i]).with_context(|| format!("user {}: {:?} is no id", fields[0], fields[i]))
            };
            found = User { uid: number(2)?, gid: number(3)?, more: vec![], home: Some(fields[5].to_owned()) };
        }
        (None, Some(uid)) => found.uid = uid,
        (None, None) => bail!("the image's user {name:?} is not in its /etc/passwd"),
    }
    let lines = || groups.lines().map(|l| l.split(':').collect::<Vec<_>>()).filter(|f| f.len() >= 4);
    match group {
        Some(group) if !group.is_empty() => {
            let by_name = lines().find(|f| f[0] == group).and_then(|f| id(f[2]));
            let gid = by_name.or_else(|| id(group));
            found.gid =
                gid.with_context(|| format!("the image's group {group:?} is not in its /etc/group"))?;
        }
        _ => {
            let login = entry.as_ref().map(|f| f[0]);
            let member = |f: &Vec<&str>| login.is_some_and(|name| f[3].split(',').any(|m| m == name));
            found.more = lines().filter(member).filter_map(|f| id(f[2])).collect();
            found.more.sort_unstable();
            found.more.dedup();
        }
    }
    Ok(found)
}

/// For whom a bundle is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner {
    Root,
    /// An ordinary user, with the ids that follow when others are mapped too.
    User {
        uid: u32,
        gid: u32,
        mapped: u32,
    },
}

/// The config.json of an image whose root file system is `root`, in the folder `rootfs` beside it.
pub fn config(
    image: &Config,
    root: BorrowedFd<'_>,
    hostname: &str,
    runner: Runner,
    subordinate: &image::rootless::Subordinate,
) -> Result<Value> {
    let execution = image.config.clone().unwrap_or_default();
    let user = user(root, execution.user.as_deref().unwrap_or_default())?;
    let mut args = execution.entrypoint.clone().unwrap_or_default();
    args.extend(execution.cmd.clone().unwrap_or_default());
    if args.is_empty() {
        args.push("/bin/sh".to_owned());
    }
    let mut env = execution.env.clone().unwrap_or_default();
    let has = |env: &[String], name: &str| env.iter().any(|e| e.split('=').next() == Some(name));
    if !has(&env, "PATH") {
        env.insert(0, format!("PATH={PATH}"));
    }
    if !has(&env, "HOSTNAME") {
        env.push(format!("HOSTNAME={hostname}"));
    }
    if !has(&env, "HOME") {
        env.push(format!("HOME={}", user.home.as_deref().unwrap_or("/")));
    }
    let cwd = execution.working_dir.as_deref().filter(|w| !w.is_empty()).unwrap_or("/");
    let cwd = if cwd.starts_with('/') { cwd.to_owned() } else { format!("/{cwd}") };
    // conversion.md, "Annotation Fields".
    let mut annotations = execution.labels.clone().unwrap_or_default();
    let mut note = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            annotations.insert(format!("org.opencontainers.image.{name}"), value);
        }
    };
    note("os", Some(image.os.clone()));
    note("architecture", Some(image.architecture.clone()));
    note("variant", image.variant.clone());
    note("created", image.created.clone());
    note("author", image.other.get("author").and_then(Value::as_str).map(str::to_owned));
    note("stopSignal", execution.stop_signal.clone());
    let ports = execution.exposed_ports.as_ref().map(|p| p.keys().cloned().collect::<Vec<_>>().join(","));
    note("exposedPorts", ports);
    let root_ = runner == Runner::Root;
    let mut namespaces = vec!["mount", "uts", "pid", "ipc", "network", "cgroup"];
    let mut linux = json!({
        "maskedPaths": ["/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            "/sys/devices/virtual/powercap"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        "seccomp": serde_json::from_str::<Value>(SECCOMP).context("the seccomp profile")?,
    });
    let mut devpts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    if let Runner::User { uid, gid, mapped } = runner {
        namespaces.push("user");
        let map = |own: u32, ranges: &[image::rootless::Range]| {
            let all = image::rootless::map(own, ranges);
            Value::from_iter(all.into_iter().map(
                |(inside, outside, count)| json!({"containerID": inside, "hostID": outside, "size": count}),
            ))
        };
        linux["uidMappings"] = map(uid, &subordinate.uids);
        linux["gidMappings"] = map(gid, &subordinate.gids);
        if mapped <= 5 {
            devpts.pop();
        }
    } else {
        linux["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
    }
    linux["namespaces"] = namespaces.iter().map(|n| json!({"type": n})).collect();
    let mount = |to: &str, kind: &str, from: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": from, "options": options});
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &devpts),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
    ];
    if root_ {
        mounts.insert(4, mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]));
    }
    let capabilities: Vec<_> = CAPABILITIES.to_vec();
    let process_capabilities = match user.uid {
        0 => json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities}),
        _ => json!({"bounding": capabilities}),
    };
    Ok(json!({
        "ociVersion": "1.2.1",
        "process": {
            "terminal": false,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.more},
            "args": args,
            "env": env,
            "cwd": cwd,
            "capabilities": process_capabilities,
            "noNewPrivileges": false,
        },
        "root": {"path": "rootfs"},
        "hostname": hostname,
        "mounts": mounts,
        "annotations": annotations,
        "linux": linux,
    }))
}

/// A root file system's descriptor.
pub fn open_root(path: &Path) -> Result<std::os::fd::OwnedFd> {
    let root = sys::path::open_host_dir(path).with_context(|| format!("open {}", path.display()))?;
    Ok(sys::path::open_dir(root.as_fd(), Path::new("."))?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn users_are_those_of_the_image() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("etc")).unwrap();
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nann:x:7:8:Ann:/home/ann:/bin/sh\nbad:x:-1:0::/:\nshort\n";
        fs::write(temp.path().join("etc/passwd"), passwd).unwrap();
        fs::write(temp.path().join("etc/group"), "root:x:0:\nwheel:x:10:ann,root\nvideo:x:9:bob,ann\n")
            .unwrap();
        let root = open_root(temp.path()).unwrap();
        let of = |wanted: &str| user(root.as_fd(), wanted);
        let ann = User { uid: 7, gid: 8, more: vec![9, 10], home: Some("/home/ann".to_owned()) };
        assert_eq!(of("ann").unwrap(), ann);
        assert_eq!(of("7").unwrap(), ann);
        assert_eq!(of("").unwrap().more, [10]);
        assert_eq!(of("ann:video").unwrap(), User { gid: 9, more: vec![], ..ann.clone() });
        assert_eq!(of("55:66").unwrap(), User { uid: 55, gid: 66, ..User::default() });
        assert_eq!(of("4294967294").unwrap().uid, u32::MAX - 1);
        for (wanted, reason) in [
            ("eve", "not in its /etc/passwd"),
            ("4294967295", "not in its /etc/passwd"),
            ("99999999999", "not in its /etc/passwd"),
            ("ann:nogroup", "not in its /etc/group"),
            ("bad", "no id"),
        ] {
            assert!(format!("{:#}", of(wanted).unwrap_err()).contains(reason), "{wanted}");
        }
    }

    #[test]
    fn hostile_files_are_neither_waited_for_nor_left() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("etc")).unwrap();
        let at = temp.path().join("etc/passwd");
        let root = open_root(temp.path()).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &at,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(format!("{:#}", user(root.as_fd(), "root").unwrap_err()).contains("no regular file"));
        fs::remove_file(&at).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &at).unwrap();
        assert!(user(root.as_fd(), "root").is_err(), "the link leads to itself, not to the host's");
        fs::remove_file(&at).unwrap();
        fs::File::create(&at).unwrap().set_len(1 << 40).unwrap();
        assert!(format!("{:#}", user(root.as_fd(), "root").unwrap_err()).contains("more than"));
        fs::remove_file(&at).unwrap();
        assert_eq!(user(root.as_fd(), "0:0").unwrap(), User::default());
    }

    #[test]
    fn an_image_says_what_is_run() {
        let temp = tempfile::tempdir().unwrap();
        let root = open_root(temp.path()).unwrap();
        let text = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
            "config": {"Entrypoint": ["/run"], "Cmd": ["a"], "Env": ["A=1"], "WorkingDir": "/w", "User": "5:6",
                "Labels": {"l": "v"}, "StopSignal": "SIGINT", "ExposedPorts": {"80/tcp": {}}}});
        let image = Config::parse(text.to_string().as_bytes(), 0).unwrap();
        let made = config(&image, root.as_fd(), "host", Runner::Root, &Default::default()).unwrap();
        assert_eq!(made["process"]["args"], json!(["/run", "a"]));
        assert_eq!(made["process"]["cwd"], "/w");
        assert_eq!(made["process"]["user"], json!({"uid": 5, "gid": 6, "additionalGids": []}));
        let env: Vec<String> = serde_json::from_value(made["process"]["env"].clone()).unwrap();
        assert!(env.contains(&"A=1".to_owned()) && env[0].starts_with("PATH="), "{env:?}");
        assert_eq!(made["annotations"]["org.opencontainers.image.stopSignal"], "SIGINT");
        assert_eq!(made["annotations"]["l"], "v");
        assert!(made["linux"]["seccomp"]["syscalls"].as_array().unwrap().len() > 1);
        let runner = Runner::User { uid: 1000, gid: 1000, mapped: 1 };
        let made = config(&image, root.as_fd(), "host", runner, &Default::default()).unwrap();
        assert_eq!(made["linux"]["uidMappings"], json!([{"containerID": 0, "hostID": 1000, "size": 1}]));
        assert!(made["linux"].get("resources").is_none());
    }
}
