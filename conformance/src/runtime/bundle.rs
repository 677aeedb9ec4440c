//! A bundle of a case: a busybox root file system and a config.json to bend.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use serde_json::{Value, json};

use super::harness::{Container, Output, Test};

pub struct Bundle<'t> {
    pub test: &'t Test<'t>,
    pub dir: PathBuf,
    pub id: String,
    pub spec: Value,
}

const APPLETS: &[&str] = &[
    "[",
    "awk",
    "cat",
    "chmod",
    "chown",
    "cut",
    "dd",
    "df",
    "dmesg",
    "dnsdomainname",
    "echo",
    "env",
    "false",
    "find",
    "grep",
    "head",
    "hostname",
    "id",
    "ionice",
    "ip",
    "kill",
    "ls",
    "mkdir",
    "mknod",
    "mount",
    "nc",
    "nproc",
    "ps",
    "pwd",
    "readlink",
    "renice",
    "rm",
    "sed",
    "sh",
    "sleep",
    "sort",
    "stat",
    "stty",
    "su",
    "taskset",
    "test",
    "timeout",
    "touch",
    "tr",
    "true",
    "truncate",
    "tty",
    "umount",
    "uname",
    "unshare",
    "usleep",
    "wc",
    "yes",
    "printf",
    "mkfifo",
    "ln",
    "tail",
    "setpriv",
    "date",
    "ifconfig",
    "mv",
    "cp",
    "sync",
    "nice",
];

impl<'t> Bundle<'t> {
    pub fn new(test: &'t Test<'t>, dir: &Path, id: String) -> Result<Bundle<'t>> {
        let root = dir.join("rootfs");
        for sub in ["bin", "dev", "etc", "proc", "sys", "tmp", "mnt", "root", "home", "var"] {
            fs::create_dir_all(root.join(sub)).with_context(|| format!("create {}", root.display()))?;
        }
        fs::hard_link(test.suite.dir.join("busybox"), root.join("bin/busybox")).context("link busybox")?;
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).context("link an applet")?;
        }
        let spec = config(&format!("/{}/{id}", test.suite.cgroup));
        Ok(Bundle { test, dir: dir.to_owned(), id, spec })
    }

    pub fn args(self, args: &[&str]) -> Self {
        self.set("/process/args", json!(args))
    }

    /// Set a value by JSON pointer, making objects on the way.
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        *place(&mut self.spec, pointer) = value;
        self
    }

    pub fn unset(mut self, pointer: &str) -> Self {
        if let Some((parent, key)) = pointer.rsplit_once('/')
            && let Some(Value::Object(map)) = self.spec.pointer_mut(parent)
        {
            map.remove(key);
        }
        self
    }

    /// Append to an array, making it if it is not there.
    pub fn push(mut self, pointer: &str, value: Value) -> Self {
        let target = place(&mut self.spec, pointer);
        match target {
            Value::Array(list) => list.push(value),
            other => *other = json!([value]),
        }
        self
    }

    pub fn mount(self, destination: &str, kind: &str, source: &str, options: &[&str]) -> Self {
        let mount = json!({"destination": destination, "type": kind, "source": source, "options": options});
        self.push("/mounts", mount)
    }

    /// A bind mount of a host path.
    pub fn bind(self, source: &Path, destination: &str, options: &[&str]) -> Self {
        let mut all = vec!["rbind"];
        all.extend(options);
        let source = source.to_string_lossy().into_owned();
        self.mount(destination, "bind", &source, &all)
    }

    /// Take a default mount away.
    pub fn without_mount(mut self, destination: &str) -> Self {
        if let Some(list) = self.spec["mounts"].as_array_mut() {
            list.retain(|m| m["destination"] != destination);
        }
        self
    }

    /// Replace (or add, or with None take away) a namespace.
    pub fn namespace(mut self, kind: &str, entry: Option<Value>) -> Self {
        if let Some(list) = self.spec["linux"]["namespaces"].as_array_mut() {
            list.retain(|n| n["type"] != kind);
            list.extend(entry);
        }
        self
    }

    /// A user namespace that maps 0… to 100000….
    pub fn user_namespace(self) -> Result<Self> {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        for path in [self.dir.join("rootfs"), self.dir.clone()] {
            std::os::unix::fs::chown(&path, Some(100_000), Some(100_000))?;
        }
        chown_tree(&self.dir.join("rootfs"))?;
        Ok(self
            .namespace("user", Some(json!({"type": "user"})))
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map))
    }

    pub fn rootfs(&self, path: &str) -> PathBuf {
        self.dir.join("rootfs").join(path)
    }

    /// Write a file into the root file system.
    pub fn file(self, path: &str, text: &str) -> Result<Self> {
        let path = self.rootfs(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(self)
    }

    pub fn write(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.spec)?;
        fs::write(self.dir.join("config.json"), text).context("write config.json")
    }

    pub fn dir_text(&self) -> String {
        self.dir.to_string_lossy().into_owned()
    }

    /// `run` in the foreground.
    pub fn run(&self) -> Result<Output> {
        self.run_with(&[])
    }

    pub fn run_with(&self, flags: &[&str]) -> Result<Output> {
        self.write()?;
        let dir = self.dir_text();
        let mut args = vec!["run", "--bundle", &dir];
        args.extend(flags);
        args.push(&self.id);
        self.test.rt(&args)
    }

    /// Standard output of a `run` that must succeed.
    pub fn output(&self) -> Result<String> {
        self.run()?.ok()
    }

    /// The runtime must refuse this config: say so, not run the program, and keep nothing.
    pub fn refused(self, what: &str) -> Result<Output> {
        let bundle = self.args(&["echo", "the program ran"]);
        bundle.refused_as_it_is(what)
    }

    /// As `refused`, with the bundle's own program (which prints "the program ran").
    pub fn refused_as_it_is(self, what: &str) -> Result<Output> {
        let output = self.run()?;
        ensure!(!output.out.contains("the program ran"), "{what} was accepted and the program ran");
        let output = output.refused(what)?;
        ensure!(
            self.test.rt(&["state", &self.id])?.code != 0,
            "{what} was refused, but the container is there"
        );
        Ok(output)
    }

    /// `create`, with the pid from the pid file.
    pub fn create(&self) -> Result<Container<'t>> {
        self.create_with(&[])
    }

    pub fn create_with(&self, flags: &[&str]) -> Result<Container<'t>> {
        self.write()?;
        let pid_file = self.dir.join("pid");
        let (dir, pid_text) = (self.dir_text(), pid_file.to_string_lossy().into_owned());
        let mut args = vec!["create", "--bundle", &dir, "--pid-file", &pid_text];
        args.extend(flags);
        args.push(&self.id);
        let out = self.dir.join("out");
        let mut command = self.test.command(&args);
        // A shell redirects, so that the container's output can be read apart from the runtime's messages.
        let program = command.get_program().to_owned();
        let rest: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command = std::process::Command::new("/bin/sh");
        command.args(["-c", "out=$1; shift; exec \"$@\" >\"$out\"", "sh"]).arg(&out).arg(program).args(rest);
        command.current_dir(&self.test.dir);
        self.test.finish(command)?.ok().context("create")?;
        let pid: i32 = fs::read_to_string(&pid_file).context("read the pid file")?.trim().parse()?;
        let pid = Pid::from_raw(pid).context("pid file with 0")?;
        Ok(Container { test: self.test, id: self.id.clone(), dir: self.dir.clone(), pid, out })
    }

    /// `create` and `start`.
    pub fn start(&self) -> Result<Container<'t>> {
        let container = self.create()?;
        container.start()?;
        Ok(container)
    }
}

/// What most containers are given: runc's defaults without the masks.
fn config(cgroup: &str) -> Value {
    let caps = json!([
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
        "CAP_AUDIT_WRITE"
    ]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/bin:/usr/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "conf",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]
        }
    })
}

/// The value at a JSON pointer; objects and nulls on the way become objects. Array indices must exist.
fn place<'v>(root: &'v mut Value, pointer: &str) -> &'v mut Value {
    pointer.split('/').skip(1).fold(root, |value, key| {
        let key = key.replace("~1", "/");
        match value {
            Value::Array(list) => &mut list[key.parse::<usize>().unwrap_or(usize::MAX)],
            other => {
                if !other.is_object() {
                    *other = json!({});
                }
                &mut other[key]
            }
        }
    })
}

fn chown_tree(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        // busybox itself is one file for all cases.
        if path.ends_with("bin/busybox") {
            continue;
        }
        std::os::unix::fs::lchown(&path, Some(100_000), Some(100_000))?;
        if entry.file_type()?.is_dir() {
            chown_tree(&path)?;
        }
    }
    Ok(())
}
