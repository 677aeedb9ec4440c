//! How does a command get a network of its own, that nobody has to be root for? A network namespace, and a program of the host that
//! passes on what leaves it: pasta (package passt) or slirp4netns. Neither lets it reach what listens on the host's loopback.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use report::Explain;
use rustix::event::{PollFd, PollFlags, poll};
use sys::process::flags;

/// What is waited for such a program, in seconds.
const PATIENCE: i64 = 10;

/// A network namespace with a way out, for as long as it lives.
#[derive(Debug)]
pub struct Private {
    /// The namespace.
    pub path: PathBuf,
    /// Where names are looked up.
    pub nameserver: &'static str,
    child: Option<Child>,
    pid: Option<i32>,
}

/// What is asked for: any, or one of the two.
pub fn is_private(network: &str) -> bool {
    matches!(network, "private" | "pasta" | "slirp4netns")
}

impl Private {
    /// Make one; `room` is a folder that only we see.
    pub fn start(network: &str, room: &Path, search: &OsStr) -> Result<Private> {
        let find = |name: &str| {
            (network == "private" || network == name)
                .then(|| std::env::split_paths(search).map(|d| d.join(name)).find(|p| p.is_file()))
                .flatten()
        };
        let path = room.join("netns");
        if let Some(program) = find("pasta") {
            namespace(&path)?;
            return pasta(&program, path, room);
        }
        if let Some(program) = find("slirp4netns") {
            namespace(&path)?;
            return slirp(&program, path);
        }
        let e: Result<Private> = Err(report::error(
            report::Kind::Unsupported,
            format!("--network {network}: there is no program that gives a network of one's own a way out"),
        ));
        e.hint(|| {
            "pasta (Debian: package passt) or slirp4netns; --network host or none needs neither".to_owned()
        })
    }
}

/// Make a network namespace that has a path.
fn namespace(path: &Path) -> Result<()> {
    File::create(path).with_context(|| format!("make {}", path.display()))?;
    let target = path.to_owned();
    let make = move || -> Result<()> {
        sys::process::unshare(flags::NEWNET).context("make a network namespace")?;
        let own = sys::path::open_host(Path::new("/proc/thread-self/ns/net"))
            .context("open a network namespace")?;
        let tree = sys::mount::clone_tree(std::os::fd::AsFd::as_fd(&own), Path::new(""), false)
            .context("make a mount of a network namespace")?;
        let target = sys::path::open_host(&target)?;
        sys::mount::attach(std::os::fd::AsFd::as_fd(&tree), std::os::fd::AsFd::as_fd(&target))
            .context("mount a network namespace")
    };
    let thread = std::thread::Builder::new().name("network".to_owned()).spawn(make);
    let thread = thread.context("start a thread")?;
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// passt(1): it goes on in the background once all is ready.
fn pasta(program: &Path, path: PathBuf, room: &Path) -> Result<Private> {
    const FORWARD: &str = "169.254.1.1";
    let pid = room.join("pasta.pid");
    let mut command = Command::new(program);
    command.args(["--config-net", "--quiet", "--no-map-gw", "--runas", "0", "--dns-forward", FORWARD]);
    command.args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
    command.arg("--pid").arg(&pid).arg("--netns").arg(&path);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = command.output().with_context(|| format!("start {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let text = std::fs::read_to_string(&pid).with_context(|| format!("read {}", pid.display()))?;
    let pid = text.trim().parse().with_context(|| format!("{}: no number of a process", pid.display()))?;
    Ok(Private { path, nameserver: FORWARD, child: None, pid: Some(pid) })
}

/// slirp4netns(1): it says when all is ready.
fn slirp(program: &Path, path: PathBuf) -> Result<Private> {
    let mut command = Command::new(program);
    command.args(["--configure", "--disable-host-loopback", "--ready-fd=1", "--netns-type=path"]);
    command.arg(&path).arg("tap0");
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    sys::process::die_with_parent(&mut command);
    let mut child = command.spawn().with_context(|| format!("start {}", program.display()))?;
    let mut said = child.stdout.take().context("its output")?;
    let patience = rustix::event::Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
    let mut fds = [PollFd::new(&said, PollFlags::IN)];
    let ready =
        rustix::io::retry_on_intr(|| poll(&mut fds, Some(&patience))).context("wait for the network")?;
    // It says something, or ends.
    if ready == 0 || said.read(&mut [0]).context("wait for the network")? == 0 {
        // It may have ended by itself.
        child.kill().unwrap_or_default();
        let status = child.wait().context("wait for slirp4netns")?;
        bail!("{}: it could not set up the network ({status})", program.display());
    }
    Ok(Private { path, nameserver: "10.0.2.3", child: Some(child), pid: None })
}

impl Drop for Private {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            child.kill().unwrap_or_default();
            child.wait().map(drop).unwrap_or_default();
        }
        if let Some(pid) = self.pid {
            // It is in our pid namespace, and nobody else's child.
            if let Ok(pidfd) = sys::process::pidfd_open(pid) {
                sys::process::pidfd_signal(std::os::fd::AsFd::as_fd(&pidfd), 9).unwrap_or_default();
            }
        }
        // The last one who holds the namespace, it goes with this.
        sys::mount::detach(&self.path).unwrap_or_default();
    }
}
