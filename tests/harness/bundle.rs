//! What does a test run? A busybox root file system and a config that is `runc spec`'s, without the terminal.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::bed::{Bed, Container};
use crate::command::{Output, Running, finish, start};
use crate::fifo::Fifo;

/// A bundle in a bed: change the config, then run it.
pub struct Bundle<'a> {
    pub bed: &'a Bed,
    pub dir: PathBuf,
    pub config: Value,
    ids: RefCell<u32>,
    caller_env: Vec<(String, OsString)>,
}

const APPLETS: &str = "[ awk base64 cat chmod chown cp cut date dd df dmesg echo env expr false find grep head hostname id \
    kill ln ls md5sum mkdir mkfifo mknod mount mv nc nproc od ping ps pwd readlink renice rm rmdir sed seq sh sleep sort stat \
    stty sync tail tee test timeout top touch tr true tty umount uname unlink wc which whoami xargs";

/// A root file system with busybox in /bin.
pub fn make_rootfs(root: &Path) {
    for dir in ["bin", "dev", "etc", "home", "mnt", "proc", "root", "run", "sys", "tmp"] {
        fs::create_dir_all(root.join(dir)).expect("make the rootfs");
    }
    let busybox = crate::host::which("busybox").expect("busybox in PATH");
    // A copy, never a link: what runs in a container must not reach the host's own file.
    fs::copy(&busybox, root.join("bin/busybox")).expect("copy busybox");
    for name in APPLETS.split_whitespace() {
        symlink("busybox", root.join("bin").join(name)).expect("link an applet");
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\n",
    )
    .expect("write passwd");
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n").expect("write group");
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("chmod tmp");
}

/// `runc spec`'s config: five namespaces and a cgroup one, the usual mounts, masked and read-only paths.
pub fn default_config() -> Value {
    let caps = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "berth",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                           {"type": "cgroup"}],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

impl<'a> Bundle<'a> {
    pub(crate) fn new(bed: &'a Bed, dir: PathBuf) -> Bundle<'a> {
        make_rootfs(&dir.join("rootfs"));
        let mut config = default_config();
        let mark = format!("{}={}", crate::leaks::MARK, bed.unique);
        config["process"]["env"].as_array_mut().expect("env is an array").push(json!(mark));
        Bundle { bed, dir, config, ids: RefCell::new(0), caller_env: Vec::new() }
    }

    /// A path inside the root file system, as the host sees it.
    pub fn inside(&self, path: &str) -> PathBuf {
        self.dir.join("rootfs").join(path.trim_start_matches('/'))
    }

    /// A fifo at `path` in the root file system.
    pub fn fifo(&self, path: &str) -> Fifo {
        Fifo::make(&self.inside(path))
    }

    /// Set the value at a JSON pointer; missing objects on the way are made.
    pub fn set(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        *place(&mut self.config, pointer) = value.into();
        self
    }

    /// Append to the array at a JSON pointer.
    pub fn push(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        let at = place(&mut self.config, pointer);
        if at.is_null() {
            *at = json!([]);
        }
        at.as_array_mut().unwrap_or_else(|| panic!("{pointer} is no array")).push(value.into());
        self
    }

    /// Remove the value at a JSON pointer.
    pub fn remove(mut self, pointer: &str) -> Self {
        let (parent, key) = pointer.rsplit_once('/').expect("a JSON pointer");
        place(&mut self.config, parent).as_object_mut().expect("an object").remove(key);
        self
    }

    pub fn args<const N: usize>(self, args: [&str; N]) -> Self {
        self.set("/process/args", args.to_vec())
    }

    pub fn sh(self, script: &str) -> Self {
        self.args(["sh", "-c", script])
    }

    /// In the environment of the runtime itself.
    pub fn caller_env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.caller_env.push((name.to_owned(), value.into()));
        self
    }

    pub fn env(self, pair: &str) -> Self {
        self.push("/process/env", pair)
    }

    pub fn mount(self, destination: &str, kind: &str, source: &str, options: &[&str]) -> Self {
        let mount = json!({"destination": destination, "type": kind, "source": source, "options": options});
        self.push("/mounts", mount)
    }

    /// All five sets hold exactly `names`, ambient too.
    pub fn capabilities(self, names: &[&str]) -> Self {
        self.set(
            "/process/capabilities",
            json!({"bounding": names, "effective": names, "permitted": names, "inheritable": [], "ambient": []}),
        )
    }

    /// A user namespace that maps 0..65536 to 100000..; the root file system is given to its root.
    pub fn user_namespace(self) -> Self {
        let root = self.dir.join("rootfs");
        finish(Command::new("chown").arg("-Rh").arg("100000:100000").arg(&root)).success();
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        self.push("/linux/namespaces", json!({"type": "user"}))
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map)
    }

    /// A hook that runs `script` by the host's shell.
    pub fn hook(self, kind: &str, script: &str) -> Self {
        let path = std::env::var("PATH").unwrap_or_default();
        let mark = format!("{}={}", crate::leaks::MARK, self.bed.unique);
        let hook =
            json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": [format!("PATH={path}"), mark]});
        self.push(&format!("/hooks/{kind}"), hook)
    }

    /// A fresh id; its cgroup is [`Bundle::cgroup`] of it.
    pub fn fresh_id(&self) -> String {
        *self.ids.borrow_mut() += 1;
        format!("{}-{}-{}", self.bed.unique, self.number(), self.ids.borrow())
    }

    fn number(&self) -> String {
        self.dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The cgroup of container `id`, unless the config says something else.
    pub fn cgroup(&self, id: &str) -> String {
        format!("/{id}")
    }

    /// Write config.json for container `id`.
    pub fn write(&self, id: &str) {
        let mut config = self.config.clone();
        if config.pointer("/linux/cgroupsPath").is_none() && config["linux"].is_object() {
            config["linux"]["cgroupsPath"] = json!(self.cgroup(id));
        }
        self.write_text(&config.to_string());
    }

    /// Write config.json as it is given.
    pub fn write_text(&self, text: &str) {
        fs::write(self.dir.join("config.json"), text).expect("write config.json");
    }

    /// `verb --bundle … OPTIONS ID`, not yet started.
    pub fn command(&self, verb: &str, options: &[&str], id: &str) -> Command {
        self.write(id);
        let mut command = self.bed.command();
        command.arg(verb).arg("--bundle").arg(&self.dir).args(options).arg(id);
        command.envs(self.caller_env.iter().cloned());
        command
    }

    /// `run`, in the foreground.
    pub fn run(&self) -> Output {
        finish(&mut self.command("run", &[], &self.fresh_id()))
    }

    /// `run`, in the background of the test.
    pub fn start_run(&self) -> (Running, Container<'a>) {
        let id = self.fresh_id();
        let running = start(&mut self.command("run", &[], &id));
        (running, Container::known(self, id))
    }

    /// `create` that must work.
    #[track_caller]
    pub fn create(&self) -> Container<'a> {
        let (container, output) = self.try_create();
        output.success();
        container
    }

    /// `create` as it comes.
    pub fn try_create(&self) -> (Container<'a>, Output) {
        let id = self.fresh_id();
        let running = start(&mut self.command("create", &[], &id));
        let out = running.stdout_file();
        let output = running.wait();
        let mut container = Container::known(self, id);
        container.output = Some(out);
        (container, output)
    }

    /// `create` and `start`.
    #[track_caller]
    pub fn start(&self) -> Container<'a> {
        let container = self.create();
        container.verb("start").success();
        container
    }

    /// Started, with the init process asleep until killed.
    #[track_caller]
    pub fn idle(self) -> Container<'a> {
        self.args(["sleep", "1000"]).start()
    }
}

fn place<'v>(config: &'v mut Value, pointer: &str) -> &'v mut Value {
    let mut at = config;
    for key in pointer.split('/').skip(1) {
        at = match at {
            Value::Array(items) => {
                let index: usize = key.parse().unwrap_or_else(|_| panic!("{pointer}: {key} is no index"));
                &mut items[index]
            }
            other => {
                if other.is_null() {
                    *other = json!({});
                }
                other.as_object_mut().expect("an object").entry(key).or_insert(Value::Null)
            }
        };
    }
    at
}
