//! How a case speaks to a runtime: one folder, one state root and one cgroup parent a case, every call with a
//! time limit, everything removed afterwards and what is left reported.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::Value;

use super::bundle::Bundle;
use super::host::Host;

/// A runtime that needs longer than this for anything hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What all cases share: the runtime, the host, and a folder.
pub struct Suite {
    pub runtime: PathBuf,
    pub host: Host,
    pub dir: PathBuf,
    /// Name of the parent cgroup of everything this run makes.
    pub cgroup: String,
    keep: bool,
}

impl Suite {
    pub fn new(runtime: &Path, host: Host, keep: bool) -> Result<Suite> {
        let dir = PathBuf::from(format!("/tmp/conf-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let busybox = Path::new("/bin/busybox");
        ensure!(busybox.exists(), "/bin/busybox: not found: install busybox-static");
        fs::copy(busybox, dir.join("busybox")).context("copy busybox")?;
        let cgroup = format!("conf-{}", std::process::id());
        Ok(Suite { runtime: runtime.to_owned(), host, dir, cgroup, keep })
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        for mount in self.host.v1.values().chain(self.host.v2.iter()) {
            remove_cgroups(&mount.join(&self.cgroup));
        }
        if !self.keep
            && let Err(error) = fs::remove_dir_all(&self.dir)
        {
            eprintln!("conformance: remove {}: {error}", self.dir.display());
        }
    }
}

/// One case at work.
pub struct Test<'s> {
    pub suite: &'s Suite,
    pub dir: PathBuf,
    number: usize,
    bundles: Cell<usize>,
    ids: RefCell<Vec<String>>,
    mounts: RefCell<Vec<PathBuf>>,
}

/// What a call left behind: status as a shell sees it (128+n for a signal) and both streams.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Output {
    /// Standard output of a call that had to succeed, trimmed.
    pub fn ok(self) -> Result<String> {
        ensure!(self.code == 0, "exit status {}, {}", self.code, self.said());
        Ok(self.out.trim_end().to_owned())
    }

    /// The call had to fail and say something.
    pub fn refused(self, what: &str) -> Result<Output> {
        ensure!(self.code != 0, "{what} was accepted");
        ensure!(!self.err.trim().is_empty(), "{what} was refused without a word (exit status {})", self.code);
        Ok(self)
    }

    /// The call had to fail with one of `words` in its message.
    pub fn refused_with(self, what: &str, words: &[&str]) -> Result<()> {
        let output = self.refused(what)?;
        let text = output.err.to_lowercase();
        ensure!(
            words.iter().any(|w| text.contains(w)),
            "{what}: message has none of {words:?}: {}",
            output.said()
        );
        Ok(())
    }

    fn said(&self) -> String {
        format!("stderr: {}", self.err.trim().replace('\n', " / "))
    }
}

impl<'s> Test<'s> {
    pub fn new(suite: &'s Suite, number: usize) -> Result<Test<'s>> {
        let dir = suite.dir.join(number.to_string());
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(Test {
            suite,
            dir,
            number,
            bundles: Cell::new(0),
            ids: RefCell::default(),
            mounts: RefCell::default(),
        })
    }

    /// A fresh bundle with a busybox root and an id of its own.
    pub fn bundle(&self) -> Result<Bundle<'_>> {
        let n = self.bundles.get();
        self.bundles.set(n + 1);
        let id = format!("{}-{}-{n}", self.suite.cgroup, self.number);
        self.adopt(&id);
        Bundle::new(self, &self.dir.join(format!("b{n}")), id)
    }

    /// A bundle that runs a shell script.
    pub fn sh(&self, script: &str) -> Result<Bundle<'_>> {
        Ok(self.bundle()?.args(&["sh", "-c", script]))
    }

    /// Delete this container, too, when the case ends.
    pub fn adopt(&self, id: &str) {
        self.ids.borrow_mut().push(id.to_owned());
    }

    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The runtime's command with `--root`, ready for more arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.suite.runtime);
        command.arg("--root").arg(self.root()).args(args).current_dir(&self.dir);
        command
    }

    /// Call the runtime.
    pub fn rt(&self, args: &[&str]) -> Result<Output> {
        self.finish(self.command(args)).with_context(|| args.join(" "))
    }

    /// Call the runtime with text on standard input.
    pub fn rt_stdin(&self, args: &[&str], stdin: &str) -> Result<Output> {
        let path = self.dir.join(format!("in-{}", self.ticket()));
        fs::write(&path, stdin)?;
        let mut command = self.command(args);
        command.stdin(File::open(&path)?);
        self.finish_with_stdin(command).with_context(|| args.join(" "))
    }

    /// Run any command to its end, streams in files, so that what a container still holds open blocks nobody.
    pub fn finish(&self, mut command: Command) -> Result<Output> {
        command.stdin(Stdio::null());
        self.finish_with_stdin(command)
    }

    fn finish_with_stdin(&self, mut command: Command) -> Result<Output> {
        let ticket = self.ticket();
        let (out, err) = (self.dir.join(format!("out-{ticket}")), self.dir.join(format!("err-{ticket}")));
        let mut child = command
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?)
            .spawn()
            .with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
        let code = wait_for(&mut child)?;
        Ok(Output { code, out: read_lossy(&out)?, err: read_lossy(&err)? })
    }

    /// `state ID`, parsed.
    pub fn state(&self, id: &str) -> Result<Value> {
        let text = self.rt(&["state", id])?.ok()?;
        serde_json::from_str(&text).with_context(|| format!("state is not JSON: {text}"))
    }

    /// Unmount this when the case ends.
    pub fn unmount_later(&self, path: &Path) {
        self.mounts.borrow_mut().push(path.to_owned());
    }

    /// A number nobody else in this case has.
    pub fn ticket(&self) -> usize {
        let n = self.bundles.get();
        self.bundles.set(n + 1);
        n
    }

    /// Where the container's cgroup of a controller should be.
    pub fn cgroup_dir(&self, controller: &str, id: &str) -> Result<PathBuf> {
        let host = &self.suite.host;
        let mount = match host.v1.get(controller) {
            Some(mount) => mount,
            None => host.v2.as_ref().with_context(|| format!("no cgroup with {controller}"))?,
        };
        Ok(mount.join(&self.suite.cgroup).join(id))
    }

    /// Remove what the case made; answer what the runtime should have removed itself.
    pub fn clean_up(&self) -> Vec<String> {
        let mut left = Vec::new();
        for id in self.ids.take() {
            if self.root().join(&id).exists() {
                match self.rt(&["delete", "--force", &id]) {
                    Ok(output) if output.code == 0 => {}
                    Ok(output) => left.push(format!("delete --force {id}: {}", output.err.trim())),
                    Err(error) => left.push(format!("delete --force {id}: {error:#}")),
                }
            }
            if self.root().join(&id).exists() {
                left.push(format!("state folder of {id}"));
            }
            let host = &self.suite.host;
            // The kernel may need a moment after a kill.
            let patience = Instant::now() + Duration::from_millis(300);
            for mount in host.v1.values().chain(host.v2.iter()) {
                let dir = mount.join(&self.suite.cgroup).join(&id);
                while dir.exists() && Instant::now() < patience {
                    std::thread::sleep(Duration::from_millis(10));
                }
                if dir.exists() {
                    left.push(format!("cgroup {}", dir.display()));
                    remove_cgroups(&dir);
                }
            }
        }
        for path in self.mounts.take().into_iter().rev() {
            if let Err(error) = nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH) {
                left.push(format!("umount {}: {error}", path.display()));
            }
        }
        left.extend(unmount_below(&self.dir));
        if !self.suite.keep
            && let Err(error) = fs::remove_dir_all(&self.dir)
        {
            left.push(format!("{}: {error}", self.dir.display()));
        }
        left
    }
}

/// A container that `create` made.
pub struct Container<'t> {
    pub test: &'t Test<'t>,
    pub id: String,
    pub dir: PathBuf,
    pub pid: Pid,
    pub out: PathBuf,
}

impl Container<'_> {
    /// The runtime's verb on this container, with arguments before the id.
    pub fn call(&self, verb: &[&str]) -> Result<Output> {
        let mut args = verb.to_vec();
        args.push(&self.id);
        self.test.rt(&args)
    }

    pub fn start(&self) -> Result<()> {
        self.call(&["start"])?.ok().context("start")?;
        Ok(())
    }

    pub fn state(&self) -> Result<Value> {
        self.test.state(&self.id)
    }

    pub fn status(&self) -> Result<String> {
        Ok(self.state()?["status"].as_str().context("state without status")?.to_owned())
    }

    pub fn kill(&self, signal: &str) -> Result<Output> {
        self.test.rt(&["kill", &self.id, signal])
    }

    pub fn delete(&self) -> Result<()> {
        self.call(&["delete"])?.ok().context("delete")?;
        Ok(())
    }

    /// Wait until the container's process is gone.
    pub fn wait(&self) -> Result<()> {
        wait_pid(self.pid)
    }

    pub fn stop(&self) -> Result<()> {
        self.kill("KILL")?.ok().context("kill")?;
        self.wait()
    }

    /// Run a command inside with `exec`.
    pub fn exec(&self, flags: &[&str], args: &[&str]) -> Result<Output> {
        let mut all = vec!["exec"];
        all.extend(flags);
        all.push(&self.id);
        all.extend(args);
        self.test.rt(&all)
    }

    /// Run a shell script inside with `exec`; it must succeed.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.exec(&[], &["sh", "-c", script])?.ok().context("exec")
    }

    /// What the container has written so far.
    pub fn output(&self) -> Result<String> {
        Ok(read_lossy(&self.out)?.trim_end().to_owned())
    }

    pub fn cgroup_file(&self, controller: &str, file: &str) -> Result<String> {
        let path = self.test.cgroup_dir(controller, &self.id)?.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim_end().to_owned())
    }

    /// A file of `/proc/<pid>` as the host sees it.
    pub fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.pid.as_raw_nonzero());
        fs::read_to_string(&path).with_context(|| format!("read {path}"))
    }

    pub fn ns(&self, name: &str) -> Result<PathBuf> {
        let path = format!("/proc/{}/ns/{name}", self.pid.as_raw_nonzero());
        fs::read_link(&path).with_context(|| format!("read {path}"))
    }
}

/// Expect two things to be the same.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Result<()> {
    ensure!(got == want, "{what}: expected {want:?}, got {got:?}");
    Ok(())
}

/// Poll until something holds; for effects that have no descriptor to wait on.
pub fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(5);
    while !holds()? {
        ensure!(Instant::now() < end, "{what}: not within 5 s");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

pub fn read_lossy(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub fn wait_pid(pid: Pid) -> Result<()> {
    let fd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => bail!("pidfd_open: {error}"),
    };
    ensure!(readable(&fd, PATIENCE / 4)?, "process {} still runs after 5 s", pid.as_raw_nonzero());
    Ok(())
}

pub fn readable(fd: &impl std::os::fd::AsFd, patience: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let limit = patience.try_into().context("time limit")?;
    Ok(poll(&mut fds, Some(&limit))? > 0)
}

fn wait_for(child: &mut Child) -> Result<i32> {
    let pid = Pid::from_child(child);
    let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
    if !readable(&fd, PATIENCE)? {
        rustix::process::kill_process(pid, Signal::KILL)?;
        child.wait()?;
        bail!("hangs: killed after 20 s");
    }
    let status = child.wait()?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// Unmount what a runtime left mounted below a folder, and say what it was.
fn unmount_below(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points =
        text.lines().rev().filter_map(|l| l.split(' ').nth(4)).filter(|p| Path::new(p).starts_with(dir));
    points
        .map(|point| match nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH) {
            Ok(()) => format!("a mount on {point}"),
            Err(error) => format!("a mount on {point} (umount: {error})"),
        })
        .collect()
}

/// Kill what is in a cgroup and below it, then remove it. Only for cgroups that this suite made.
fn remove_cgroups(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_cgroups(&entry.path());
    }
    if let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) {
        for pid in text.lines().filter_map(|l| l.parse().ok()).filter_map(Pid::from_raw) {
            if rustix::process::kill_process(pid, Signal::KILL).is_ok() {
                drop(wait_pid(pid));
            }
        }
    }
    if let Err(error) = fs::remove_dir(dir) {
        eprintln!("conformance: remove {}: {error}", dir.display());
    }
}
