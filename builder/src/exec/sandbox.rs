//! How is a `RUN` run? In a container of `berth-runtime`, on a root file system whose upper folder becomes the layer.
//!
//! ```text
//! <store>/tmp/PID-N/       locked, removed by the next command if we are killed
//!   upper/ work/           overlayfs
//!   room/                  a tmpfs that only we see, gone with us: secrets never reach the disk
//!     config.json rootfs/  the bundle
//!     hosts resolv.conf hostname secrets/
//!     state/ log.json      of the runtime
//! ```

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};
use image::Store;
use image::layer::whiteout::Privilege;
use image::manifest::{Config, Execution};
use image::rootfs::{self, Upper};
use image::store::{Addition, Tree};
use serde_json::{Value, json};

use super::network::{self, Private};
use super::owners;
use super::real::{Last, real};
use crate::bundle::{self, Runner};
use crate::foreign::Interpreter;
use crate::plan::state::Run;

/// What a command finds beside its root file system.
#[derive(Debug)]
pub struct Bound {
    pub target: String,
    pub from: Source,
    pub writable: bool,
}

/// Where something that is mounted comes from.
#[derive(Debug)]
pub enum Source {
    /// A file or folder that is open.
    Fd(OwnedFd),
    /// Of that many bytes, if it is limited.
    Tmpfs(Option<u64>),
    /// A file with this content: mode, owner.
    File(Vec<u8>, u32, (u32, u32)),
}

/// Paths that are only there to be mounted on, and whether they are folders.
pub type Stubs = Vec<(Vec<u8>, bool)>;

/// Changes when they do.
const FIRST_STUBS: &str = "1";

/// What every command has mounted. These are there below all layers, whether an image has them or not: to look first would be a
/// mount more.
pub fn first_stubs() -> Stubs {
    let folders = ["proc", "dev", "sys"].map(|f| (f.as_bytes().to_vec(), true));
    let files = ["etc/hosts", "etc/resolv.conf", "etc/hostname"].map(|f| (f.as_bytes().to_vec(), false));
    folders.into_iter().chain(files).collect()
}

/// What is run.
#[derive(Debug)]
pub struct Command<'a> {
    pub run: &'a Run,
    pub bound: Vec<Bound>,
    /// Variables that nobody else may see.
    pub secrets: &'a [(String, String)],
}

/// How commands are run, for all of a build.
#[derive(Debug)]
pub struct Settings {
    pub runtime: PathBuf,
    pub hosts: Vec<(String, String)>,
    pub shm_size: Option<u64>,
    pub ulimits: Vec<(String, u64, u64)>,
    /// `linux.resources` of the container.
    pub resources: Value,
    pub cgroup_parent: Option<String>,
    pub add: Vec<String>,
    pub drop: Vec<String>,
    pub no_new_privileges: bool,
    pub network: Option<String>,
    /// Where programs are, PATH.
    pub search: std::ffi::OsString,
    /// What runs programs of other machines.
    pub interpreters: Vec<Interpreter>,
    /// A command that fails is followed by a shell in its place.
    pub debug_shell: bool,
    /// We are in a user namespace, with so many ids.
    pub mapped: Option<u64>,
}

/// What came of a command.
#[derive(Debug)]
pub struct Outcome {
    pub status: i32,
    /// What it changed, in the folder `upper`; None: nothing.
    pub tree: Option<Tree>,
}

/// The name of the folder of a [`Tree`] in which the changes are.
pub const UPPER: &str = "upper";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Something mounted for as long as this lives, in our own mount namespace.
#[derive(Debug)]
pub struct Mounted(pub PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // It ends with our mount namespace at the latest.
        sys::mount::detach(&self.0).unwrap_or_default();
    }
}

/// Run a command on `lowers` (the lowest first). `stubs` are paths that are only there to be mounted on, in a layer below all; it
/// grows by what is missing. `output` hears what the command says.
pub fn run(
    settings: &Settings,
    addition: &Addition<'_>,
    lowers: &[OwnedFd],
    stubs: &mut Stubs,
    command: Command<'_>,
    output: &mut dyn FnMut(&[u8]),
) -> Result<Outcome> {
    let Command { run, mut bound, secrets } = command;
    let tree = addition.tree().context("make room for the step")?;
    let place = addition.place(&tree).context("make room for the step")?;
    let make = |name: &str, mode: u32| -> Result<PathBuf> {
        let path = place.join(name);
        DirBuilder::new().mode(mode).create(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    };
    let (upper, work, room) = (make(UPPER, 0o755)?, make("work", 0o700)?, make("room", 0o700)?);
    let tmpfs = sys::mount::detached("tmpfs", &[("mode", Some("0700"))], 0).context("make a tmpfs")?;
    rootfs::attach(tmpfs.as_fd(), &room)?;
    let _room = Mounted(room.clone());
    if let Some(top) = lowers.last() {
        like(top.as_fd(), &upper)?;
    }
    let folder = |name: &str| -> Result<PathBuf> {
        let path = room.join(name);
        std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    };
    let root = folder("rootfs")?;
    let network = run.network.as_deref().or(settings.network.as_deref()).unwrap_or("host");
    let private = match network::is_private(network) {
        true => Some(Private::start(network, &room, &settings.search)?),
        false => None,
    };
    files(settings, &room, &mut bound, private.as_ref())?;
    if let Some((path, content)) = &run.script {
        let from = Source::File(content.as_bytes().to_vec(), 0o755, (0, 0));
        bound.push(Bound { target: path.clone(), from, writable: false });
    }
    let mounted = stack(addition, lowers, stubs, &bound, &upper, &work)?;
    rootfs::attach(mounted.as_fd(), &root)?;
    let _root = Mounted(root.clone());
    // With a path, what is open of it can be mounted again.
    let fs = bundle::open_root(&root)?;
    let mut config = config(settings, run, fs.as_fd())?;
    if let Some(private) = &private
        && let Some(all) = config["linux"]["namespaces"].as_array_mut()
    {
        all.retain(|n| n["type"] != "network");
        all.push(json!({"type": "network", "path": private.path}));
    }
    let single = settings.mapped == Some(1);
    let agent = if single { Some(owners::Agent::start(&room)?) } else { None };
    let mut user = None;
    if let Some(agent) = &agent {
        agent.ask(&mut config);
        user = only_root(&mut config);
    }
    let secret_folder = folder("secrets")?;
    let binds = folder("binds")?;
    let mut mounts = Vec::new();
    for (n, bound) in bound.into_iter().enumerate() {
        let mut options = vec!["rbind", if bound.writable { "rw" } else { "ro" }, "rprivate"];
        let source = match bound.from {
            Source::Fd(fd) => {
                let path = binds.join(n.to_string());
                at_path(fd.as_fd(), &path)
                    .with_context(|| format!("make ready what is mounted on {}", bound.target))?;
                path.display().to_string()
            }
            Source::Tmpfs(size) => {
                let size = size.map(|s| format!("size={s}"));
                let mut options = vec!["nosuid", "nodev", "mode=1777"];
                options.extend(size.as_deref());
                mounts.push(json!({"destination": bound.target, "type": "tmpfs", "source": "tmpfs", "options": options}));
                continue;
            }
            Source::File(content, mode, (uid, gid)) => {
                let path = secret_folder.join(n.to_string());
                let write = || -> std::io::Result<()> {
                    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
                    file.write_all(&content)?;
                    std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
                    file.set_permissions(std::fs::Permissions::from_mode(mode))
                };
                write().with_context(|| format!("give the step {}", bound.target))?;
                options.extend(["nosuid", "nodev"]);
                path.display().to_string()
            }
        };
        mounts
            .push(json!({"destination": bound.target, "type": "bind", "source": source, "options": options}));
    }
    if let Some(all) = config["mounts"].as_array_mut() {
        all.extend(mounts);
    }
    if let Some(env) = config["process"]["env"].as_array_mut() {
        env.extend(secrets.iter().map(|(name, value)| json!(format!("{name}={value}"))));
    }
    let name = format!("berth-build-{}-{}", own(), NEXT.fetch_add(1, Ordering::Relaxed));
    if settings.mapped.is_none() {
        let above = settings.cgroup_parent.as_deref().unwrap_or("");
        config["linux"]["cgroupsPath"] = json!(format!("{}/{name}", above.trim_end_matches('/')));
    }
    let bytes = serde_json::to_vec(&config)?;
    std::fs::write(room.join("config.json"), bytes).context("write the step's config.json")?;
    let status = execute(settings, &room, &name, output)?;
    if status != 0 && settings.debug_shell {
        shell(settings, &room, &format!("{name}-shell"), config)?;
    }
    drop(_root);
    drop(agent);
    drop(private);
    if let Some(user) = user.filter(|_| status == 0) {
        owners::of_user(bundle::open_root(&upper)?.as_fd(), user)?;
    }
    let changed =
        !sys::path::list(bundle::open_root(&upper)?.as_fd()).context("look for what changed")?.is_empty();
    Ok(Outcome { status, tree: changed.then_some(tree) })
}

/// Give what is open a path, which other mount namespaces can have copies of.
fn at_path(fd: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let folder = is_folder(fd)?;
    match folder {
        true => std::fs::create_dir(path)?,
        false => drop(File::create(path)?),
    }
    let tree = sys::mount::clone_tree(fd, Path::new(""), true)?;
    let target = sys::path::open_host(path)?;
    Ok(sys::mount::attach(tree.as_fd(), target.as_fd())?)
}

fn is_folder(fd: BorrowedFd<'_>) -> Result<bool> {
    let mode = rustix::fs::fstat(fd)?.st_mode;
    Ok(rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Directory)
}

/// An upper folder shows itself as the root: it must look like the one below.
fn like(below: BorrowedFd<'_>, upper: &Path) -> Result<()> {
    let stat = rustix::fs::fstat(below)?;
    std::os::unix::fs::chown(upper, Some(stat.st_uid), Some(stat.st_gid))
        .context("set the owner of the root")?;
    let mode = std::fs::Permissions::from_mode(stat.st_mode & 0o7777);
    std::fs::set_permissions(upper, mode).context("set the mode of the root")?;
    Ok(())
}

/// `/etc/hosts` and the like, as this command finds them.
fn files(settings: &Settings, room: &Path, bound: &mut Vec<Bound>, private: Option<&Private>) -> Result<()> {
    let mut hosts = format!("127.0.0.1\tlocalhost {HOSTNAME}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in &settings.hosts {
        hosts.push_str(&format!("{address}\t{name}\n"));
    }
    let mut resolv = std::fs::read("/etc/resolv.conf").unwrap_or_default();
    if let Some(private) = private {
        let text = String::from_utf8_lossy(&resolv);
        let others = text.lines().filter(|l| !l.trim_start().starts_with("nameserver"));
        let all: Vec<String> = std::iter::once(format!("nameserver {}", private.nameserver))
            .chain(others.map(str::to_owned))
            .collect();
        resolv = format!("{}\n", all.join("\n")).into_bytes();
    }
    for (name, content) in [
        ("hosts", hosts.into_bytes()),
        ("resolv.conf", resolv),
        ("hostname", format!("{HOSTNAME}\n").into_bytes()),
    ] {
        let path = room.join(name);
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        bound.push(Bound { target: format!("/etc/{name}"), from: Source::Fd(file.into()), writable: false });
    }
    Ok(())
}

const HOSTNAME: &str = "berth-build";

/// Mount the root file system; what there is to mount on is made in a layer below all, so that it is in no layer of the image.
fn stack(
    addition: &Addition<'_>,
    lowers: &[OwnedFd],
    stubs: &mut Stubs,
    bound: &[Bound],
    upper: &Path,
    work: &Path,
) -> Result<OwnedFd> {
    let mount = |stubs: &[(Vec<u8>, bool)]| -> Result<OwnedFd> {
        let mut all = Vec::new();
        if !stubs.is_empty() || lowers.is_empty() {
            let fill = |tree: BorrowedFd<'_>| -> Result<()> {
                for (path, folder) in stubs {
                    let path = Path::new(OsStr::from_bytes(path));
                    match folder {
                        true => drop(sys::path::make_dirs(tree, path, sys::path::Links::Refuse)?),
                        false => drop(sys::path::make_file(tree, path, sys::path::Links::Refuse)?),
                    }
                }
                Ok(())
            };
            all.push(if stubs == first_stubs() {
                addition.stubs(FIRST_STUBS, fill)?
            } else {
                let tree = addition.tree()?;
                fill(tree.as_fd())?;
                addition.hold(tree)?
            });
        }
        for fd in lowers {
            all.push(fd.try_clone()?);
        }
        rootfs::overlay(&all, Some(&Upper { upper, work, lasting: false }), Privilege::own())
    };
    let mounted = mount(stubs)?;
    let mut wanted: Vec<(&str, bool)> = vec![("proc", true), ("dev", true), ("sys", true)];
    for bound in bound {
        let folder = match &bound.from {
            Source::Fd(fd) => is_folder(fd.as_fd())?,
            Source::Tmpfs(_) => true,
            Source::File(..) => false,
        };
        wanted.push((&bound.target, folder));
    }
    let mut missing = Vec::new();
    for (path, folder) in wanted {
        let found = real(mounted.as_fd(), path.as_bytes(), Last::Follow)
            .with_context(|| format!("the mount's target {path}"))?;
        // Below what is mounted, it is the mount that must have it.
        if found.stat.is_none() && !found.path.starts_with(b"dev/") {
            missing.push((found.path, folder));
        }
    }
    if missing.is_empty() {
        return Ok(mounted);
    }
    drop(mounted);
    // One mount has used it.
    std::fs::remove_dir_all(work).context("clear overlayfs' folder")?;
    DirBuilder::new().mode(0o700).create(work).context("make overlayfs' folder")?;
    // What every command has mounted is there for every command; the rest would be seen by those after this one.
    let always = |path: &[u8]| first_stubs().iter().any(|(fixed, _)| fixed == path);
    let (kept, others): (Stubs, Stubs) = missing.into_iter().partition(|(path, _)| always(path));
    stubs.extend(kept);
    let all = [&stubs[..], &others].concat();
    mount(&all)
}

/// The bundle's config.json.
fn config(settings: &Settings, run: &Run, root: BorrowedFd<'_>) -> Result<Value> {
    let execution = Execution {
        user: run.user.clone(),
        env: Some(run.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        cmd: Some(run.args.clone()),
        working_dir: Some(run.cwd.clone()),
        ..Execution::default()
    };
    let image = Config { config: Some(execution), os: "linux".to_owned(), ..Config::default() };
    let mut config = bundle::config(&image, root, HOSTNAME, Runner::Root, &Default::default())?;
    if let Some(object) = config.as_object_mut() {
        object.remove("annotations");
    }
    let linux = &mut config["linux"];
    let network = run.network.as_deref().or(settings.network.as_deref()).unwrap_or("host");
    match network {
        "none" => {}
        // It is told where later.
        other if network::is_private(other) => {}
        "host" | "default" => {
            if let Some(all) = linux["namespaces"].as_array_mut() {
                all.retain(|n| n["type"] != "network");
            }
        }
        other => bail!("network {other:?}: a build's commands have host, none or private"),
    }
    if let (Some(all), Some(more)) = (linux["resources"].as_object_mut(), settings.resources.as_object()) {
        all.extend(more.clone());
    }
    if let Some(ids) = settings.mapped {
        in_user_namespace(&mut config, network, ids, &settings.resources);
    }
    let capabilities = &mut config["process"]["capabilities"];
    for set in ["bounding", "effective", "permitted"] {
        if let Some(all) = capabilities.get_mut(set).and_then(Value::as_array_mut) {
            if run.insecure {
                *all = ALL_CAPABILITIES.iter().map(|c| json!(format!("CAP_{c}"))).collect();
            }
            // As with docker and podman: all go first, then those that are named come.
            if settings.drop.iter().any(|name| name == "CAP_ALL") {
                all.clear();
            }
            for name in &settings.add {
                match name.as_str() {
                    "CAP_ALL" => *all = ALL_CAPABILITIES.iter().map(|c| json!(format!("CAP_{c}"))).collect(),
                    name if !all.contains(&json!(name)) => all.push(json!(name)),
                    _ => {}
                }
            }
            all.retain(|c| !settings.drop.iter().any(|d| c == d));
        }
    }
    config["process"]["noNewPrivileges"] = json!(settings.no_new_privileges);
    if !settings.ulimits.is_empty() {
        let limit = |(name, soft, hard): &(String, u64, u64)| json!({"type": format!("RLIMIT_{}", name.to_uppercase()), "soft": soft, "hard": hard});
        config["process"]["rlimits"] = settings.ulimits.iter().map(limit).collect();
    }
    if run.insecure {
        let linux = config["linux"].as_object_mut().context("config.json")?;
        for key in ["seccomp", "maskedPaths", "readonlyPaths"] {
            linux.remove(key);
        }
        if settings.mapped.is_none() {
            linux["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
        }
    }
    if let (Some(size), Some(all)) = (settings.shm_size, config["mounts"].as_array_mut()) {
        for mount in all.iter_mut().filter(|m| m["destination"] == "/dev/shm") {
            mount["options"] = json!(["nosuid", "noexec", "nodev", "mode=1777", format!("size={size}")]);
        }
    }
    Ok(config)
}

/// Where there is only one id, every command is root. The user that it was to be, if that is another.
fn only_root(config: &mut Value) -> Option<(u32, u32)> {
    let user = &mut config["process"]["user"];
    let id = |name: &str| user[name].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let wanted = (id("uid"), id("gid"));
    let mut root = json!({"uid": 0, "gid": 0});
    if let Some(umask) = user.get("umask") {
        root["umask"] = umask.clone();
    }
    *user = root;
    (wanted != (0, 0)).then_some(wanted)
}

/// What the kernel refuses in a user namespace that is not the host's is done otherwise.
fn in_user_namespace(config: &mut Value, network: &str, ids: u64, resources: &Value) {
    if let Some(linux) = config["linux"].as_object_mut() {
        match resources.as_object().is_some_and(|r| !r.is_empty()) {
            true => drop(linux.insert("resources".to_owned(), resources.clone())),
            false => drop(linux.remove("resources")),
        }
    }
    let Some(mounts) = config["mounts"].as_array_mut() else { return };
    mounts.retain(|m| m["destination"] != "/sys/fs/cgroup");
    for mount in mounts {
        if mount["destination"] == "/sys" && network != "none" {
            *mount = json!({"destination": "/sys", "type": "none", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
        } else if mount["destination"] == "/dev/pts"
            && ids <= 5
            && let Some(options) = mount["options"].as_array_mut()
        {
            options.retain(|o| o != "gid=5");
        }
    }
}

/// capabilities(7), as of Linux 6.
pub const ALL_CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Let somebody look around where a command has failed; what is done there is lost.
fn shell(settings: &Settings, room: &Path, name: &str, mut config: Value) -> Result<()> {
    use std::io::IsTerminal;
    config["process"]["args"] = json!(["/bin/sh"]);
    config["process"]["terminal"] = json!(std::io::stdin().is_terminal());
    if let Some(path) = config["linux"]["cgroupsPath"].as_str().map(|p| format!("{p}-shell")) {
        config["linux"]["cgroupsPath"] = json!(path);
    }
    std::fs::write(room.join("config.json"), serde_json::to_vec(&config)?)
        .context("write the shell's config.json")?;
    let mut command = std::process::Command::new(&settings.runtime);
    command.arg("--root").arg(room.join("state")).args(["run", "--bundle"]).arg(room).arg(name).env_clear();
    sys::process::die_with_parent(&mut command);
    // However it ends, the step has failed.
    command.status().with_context(|| format!("start {}", settings.runtime.display())).map(drop)
}

/// Run the bundle to its end.
fn execute(settings: &Settings, room: &Path, name: &str, output: &mut dyn FnMut(&[u8])) -> Result<i32> {
    let log = room.join("log.json");
    let (mut from, to) = std::io::pipe().context("make a pipe")?;
    let mut command = std::process::Command::new(&settings.runtime);
    command
        .arg("--root")
        .arg(room.join("state"))
        .arg("--log")
        .arg(&log)
        .args(["--log-format", "json", "run", "--bundle"])
        .arg(room)
        .arg(name)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(to.try_clone().context("make a pipe")?)
        .stderr(to);
    // Root's builds have their processes to themselves: when this one goes, the kernel ends the others.
    if settings.mapped.is_some() {
        sys::process::die_with_parent(&mut command);
    }
    let mut child = command.spawn().with_context(|| format!("start {}", settings.runtime.display()))?;
    // It holds the other end of the pipe.
    drop(command);
    let mut buffer = vec![0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => output(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e).context("read what the command says"),
        }
    }
    let status = child.wait().context("wait for the command")?;
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let errors = text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
    let mut error = None;
    for entry in errors.filter(|e| e["level"] == "error") {
        error = entry["msg"].as_str().map(str::to_owned).or(error);
    }
    if let Some(error) = error {
        bail!("{error}");
    }
    match (status.code(), std::os::unix::process::ExitStatusExt::signal(&status)) {
        (Some(code), _) => Ok(code),
        (None, signal) => {
            // What it was to tidy up, another does.
            let mut delete = std::process::Command::new(&settings.runtime);
            delete.arg("--root").arg(room.join("state")).args(["delete", "--force", name]).env_clear();
            delete.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            delete.status().with_context(|| format!("start {}", settings.runtime.display()))?;
            ensure!(signal.is_some(), "{}: {status}", settings.runtime.display());
            bail!("{} was ended by signal {}", settings.runtime.display(), signal.unwrap_or_default())
        }
    }
}

/// The folder of the store in which builds that go on have a file each.
const RUNNING: &str = "running";

/// The name of this build in the host's cgroups.
fn own() -> &'static str {
    static OWN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    OWN.get_or_init(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        format!("{:x}", now.map_or(0, |d| d.as_nanos()))
    })
}

/// While it lives, what this build has is its own.
#[derive(Debug)]
pub struct Alive {
    path: PathBuf,
    above: String,
    _lock: OwnedFd,
}

impl Drop for Alive {
    fn drop(&mut self) {
        // What stays is removed by the next build.
        if remove_cgroups(&self.above, own()) {
            std::fs::remove_file(&self.path).unwrap_or_default();
        }
    }
}

/// Tell others that this build goes on.
pub fn alive(store: &Store, above: Option<&str>) -> Result<Alive> {
    let folder = store.root().join(RUNNING);
    DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(&folder)
        .with_context(|| format!("make {}", folder.display()))?;
    let path = folder.join(own());
    let file = File::create(&path).with_context(|| format!("write {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).context("lock a file")?;
    Ok(Alive { path, above: above.unwrap_or_default().to_owned(), _lock: file.into() })
}

/// Remove what builds left in the host's cgroups that were killed: their processes ended with them.
pub fn forget_killed(store: &Store, above: Option<&str>) {
    for entry in std::fs::read_dir(store.root().join(RUNNING)).into_iter().flatten().flatten() {
        let Ok(file) = File::open(entry.path()) else { continue };
        if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
            && remove_cgroups(above.unwrap_or(""), &entry.file_name().to_string_lossy())
        {
            std::fs::remove_file(entry.path()).unwrap_or_default();
        }
    }
}

/// Remove the folders of that build, in each hierarchy; one with processes in it stays. Whether none is left.
fn remove_cgroups(above: &str, build: &str) -> bool {
    let mut gone = true;
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in table.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let Some(at) = fields.iter().position(|f| *f == "-") else { continue };
        if !fields.get(at + 1).is_some_and(|fs| fs.starts_with("cgroup")) {
            continue;
        }
        let folder = Path::new(fields[4]).join(above.trim_matches('/'));
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(|n| n.starts_with(&format!("berth-build-{build}-"))) {
                gone &= std::fs::remove_dir(entry.path()).is_ok();
            }
        }
    }
    gone
}
