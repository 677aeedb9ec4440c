//! What can be done with a container, whoever asks? The calls of a runtime's command line, without waiting for one while another one
//! runs, and the processes that come of them.
//!
//! ```text
//!  create ─▶ runtime create ─▶ init, our child once the runtime is gone ─▶ its end, through `exits`
//!  exec   ─▶ runtime exec   ─▶ likewise
//! ```

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use report::{Explain, Kind};
use runtime::client::{self, Client};
use sys::process::Exit;

use crate::executor::{Loop, Once};
use crate::exits::{Children, Ended};

/// For processes of ours that live for long: freed memory goes back, where a cache for each size would keep it after a busy moment.
pub const SMALL_HEAP: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0");

/// What every part needs.
#[derive(Clone)]
pub struct Host {
    pub on: Loop,
    pub children: Children,
}

/// A container as its runtime knows it.
#[derive(Debug)]
pub struct Container {
    pub id: String,
    /// Also the runtime's working directory where there is a terminal, so that the path of its socket may be short.
    pub bundle: PathBuf,
    pub client: Client,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    /// Numbers for files in the bundle.
    pub next: Cell<u32>,
}

/// What a process gets for its streams.
#[derive(Debug)]
pub enum Streams {
    Plain {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// A terminal of its own, whose other end we get.
    Terminal,
}

/// A process that was made.
#[derive(Debug)]
pub struct Launched {
    pub pid: i32,
    pub ended: Once<Ended>,
    pub terminal: Option<OwnedFd>,
}

/// From what a container is made again.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub image: PathBuf,
    pub work: PathBuf,
}

impl Container {
    fn number(&self) -> u32 {
        self.next.replace(self.next.get() + 1)
    }

    /// Where the runtime writes what goes wrong.
    fn log(&self) -> PathBuf {
        self.bundle.join(format!("log-{}.json", self.number()))
    }

    /// `create`, or `restore` from a checkpoint; its first process.
    pub async fn create(&self, host: &Host, streams: Streams, from: Option<&Checkpoint>) -> Result<Launched> {
        let log = self.bundle.join("log.json");
        let pid_file = self.bundle.join("init.pid");
        remove(&pid_file)?;
        let mut command = match from {
            None => self.client.command(&log, "create"),
            Some(checkpoint) => {
                let mut command = self.client.command(&log, "restore");
                command.arg("--detach");
                command.arg("--image-path").arg(&checkpoint.image).arg("--work-path").arg(&checkpoint.work);
                command
            }
        };
        command.arg("--bundle").arg(&self.bundle).arg("--pid-file").arg(&pid_file);
        if self.no_pivot {
            command.arg("--no-pivot");
        }
        if self.no_new_keyring && from.is_none() {
            command.arg("--no-new-keyring");
        }
        let socket = self.streams(&mut command, streams)?;
        command.arg(&self.id);
        self.launch(host, command, &log, &pid_file, socket).await
    }

    /// `exec --detach` with the process that is described in `process`, JSON.
    pub async fn exec(&self, host: &Host, process: &[u8], streams: Streams) -> Result<Launched> {
        let number = self.number();
        let log = self.bundle.join(format!("log-{number}.json"));
        let file = self.bundle.join(format!("process-{number}.json"));
        let pid_file = self.bundle.join(format!("exec-{number}.pid"));
        std::fs::write(&file, process).with_context(|| format!("write {}", file.display()))?;
        let mut command = self.client.command(&log, "exec");
        command.arg("--process").arg(&file).arg("--detach").arg("--pid-file").arg(&pid_file);
        let launched = match self.streams(&mut command, streams) {
            Ok(socket) => {
                command.arg(&self.id);
                self.launch(host, command, &log, &pid_file, socket).await
            }
            Err(e) => Err(e),
        };
        for file in [&file, &pid_file, &log] {
            remove(file)?;
        }
        launched
    }

    fn streams(&self, command: &mut Command, streams: Streams) -> Result<Option<Console>> {
        match streams {
            Streams::Plain { stdin, stdout, stderr } => {
                command.stdin(stdin).stdout(stdout).stderr(stderr);
                Ok(None)
            }
            Streams::Terminal => {
                let console = Console::new(&self.bundle, format!("console-{}.sock", self.number()))?;
                command.current_dir(&self.bundle);
                command.arg("--console-socket").arg(&console.name);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                Ok(Some(console))
            }
        }
    }

    async fn launch(
        &self,
        host: &Host,
        mut command: Command,
        log: &Path,
        pid_file: &Path,
        console: Option<Console>,
    ) -> Result<Launched> {
        let expecting = host.children.expect();
        // Whoever cleans up after us must find nothing that still makes a container.
        sys::process::die_with_parent(&mut command);
        let (_, ended) = host.children.start(&mut command)?;
        // Our copies of the streams go now, before anybody waits for their end.
        let name = command.get_program().to_string_lossy().into_owned();
        drop(command);
        let exit = ended.wait().await.exit;
        if exit != Exit::Code(0) {
            return Err(failed(&name, exit, log, None));
        }
        let text =
            std::fs::read_to_string(pid_file).with_context(|| format!("read {}", pid_file.display()))?;
        let pid = text.trim().parse::<i32>().ok().filter(|pid| *pid > 0);
        let pid =
            pid.with_context(|| format!("{}: {text:?} is not a process's number", pid_file.display()))?;
        let ended = host.children.watch(pid);
        drop(expecting);
        let terminal = console.map(Console::receive).transpose()?;
        Ok(Launched { pid, ended, terminal })
    }

    /// Any other verb.
    pub async fn call(
        &self,
        host: &Host,
        verb: &str,
        args: impl IntoIterator<Item = String>,
        input: Option<&[u8]>,
    ) -> Result<()> {
        let log = self.log();
        let errors = sys::fd::memory_file("errors").context("make a file in memory")?;
        let mut command = self.client.command(&log, verb);
        command.args(args).stdout(Stdio::null());
        command.stderr(errors.try_clone().context("copy a descriptor")?);
        match input {
            None => command.stdin(Stdio::null()),
            Some(bytes) => {
                let mut file = sys::fd::memory_file("input").context("make a file in memory")?;
                std::io::Write::write_all(&mut file, bytes).context("write to a file in memory")?;
                file.rewind().context("rewind")?;
                command.stdin(file)
            }
        };
        let (_, ended) = host.children.start(&mut command)?;
        let exit = ended.wait().await.exit;
        let done = if exit == Exit::Code(0) {
            Ok(())
        } else {
            let name = command.get_program().to_string_lossy().into_owned();
            Err(failed(&name, exit, &log, Some(errors)))
        };
        remove(&log)?;
        done
    }

    pub async fn start(&self, host: &Host) -> Result<()> {
        self.call(host, "start", [self.id.clone()], None).await
    }

    /// Every process of the container.
    pub async fn kill_all(&self, host: &Host, signal: i32) -> Result<()> {
        self.call(host, "kill", ["--all".to_owned(), self.id.clone(), signal.to_string()], None).await
    }

    /// Its first process, also where it is frozen.
    pub async fn kill(&self, host: &Host, signal: i32) -> Result<()> {
        self.call(host, "kill", [self.id.clone(), signal.to_string()], None).await
    }

    /// Also if a part of it is gone already.
    pub async fn delete(&self, host: &Host) -> Result<()> {
        self.call(host, "delete", ["--force".to_owned(), self.id.clone()], None).await
    }

    pub async fn pause(&self, host: &Host) -> Result<()> {
        self.call(host, "pause", [self.id.clone()], None).await
    }

    pub async fn resume(&self, host: &Host) -> Result<()> {
        self.call(host, "resume", [self.id.clone()], None).await
    }
}

/// Delete what is left of a container that nobody watches over, and wait for that.
pub fn delete_now(client: &Client, log: &Path, id: &str) -> Result<()> {
    let out = client.command(log, "delete").args(["--force", id]).stdin(Stdio::null()).output();
    let out = out.with_context(|| format!("start {}", client.program.display()))?;
    if out.status.success() {
        return Ok(());
    }
    let printed = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    let said = client::last_error(log).unwrap_or(printed);
    Err(anyhow::anyhow!("delete {id}: {said}"))
}

/// What the runtime says, else what it printed, else how it ended.
fn failed(program: &str, exit: Exit, log: &Path, errors: Option<File>) -> anyhow::Error {
    let mut printed = String::new();
    if let Some(mut file) = errors {
        let read = file.rewind().and_then(|()| file.read_to_string(&mut printed).map(|_| ()));
        read.unwrap_or_default();
    }
    let told = client::last_error(log).or_else(|| Some(printed.trim().to_owned()).filter(|p| !p.is_empty()));
    match (told, exit) {
        (Some(told), _) => anyhow::Error::msg(told),
        (None, Exit::Code(code)) => {
            anyhow::anyhow!("{program}: it ended with status {code} and did not say why")
        }
        (None, Exit::Signal(signal)) => anyhow::anyhow!("{program}: killed by signal {signal}"),
    }
}

/// Remove a file that may not be there.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Where a runtime brings us the other end of a terminal: a socket in the bundle, named from there, as paths of sockets are short.
#[derive(Debug)]
struct Console {
    listener: UnixListener,
    path: PathBuf,
    name: String,
}

impl Console {
    fn new(bundle: &Path, name: String) -> Result<Console> {
        let dir = sys::path::open_host_dir(bundle).with_context(|| format!("open {}", bundle.display()))?;
        let path = bundle.join(&name);
        remove(&path)?;
        let short = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
        let listener = UnixListener::bind(short).with_context(|| format!("listen on {}", path.display()))?;
        listener.set_nonblocking(true).context("listen without waiting")?;
        Ok(Console { listener, path, name })
    }

    /// The runtime has ended well, so it was there.
    fn receive(self) -> Result<OwnedFd> {
        let doing = "receive the terminal from the runtime";
        let (stream, _) = self.listener.accept().context(doing)?;
        let (_, fds) = sys::socket::receive(stream.as_fd(), &mut [0; 4096]).context(doing)?;
        let Some(terminal) = fds.into_iter().next() else { bail!("{doing}: it sent none") };
        rustix::io::ioctl_fionbio(&terminal, true).context("make the terminal's calls not wait")?;
        Ok(terminal)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        remove(&self.path).unwrap_or_else(|e| log::warn!("{e:#}"));
    }
}

/// A container of that name is not there.
pub fn not_found(what: &str) -> anyhow::Error {
    report::error(Kind::NotFound, format!("{what}: not found"))
}

/// Give a result the kind of a wrong state.
pub fn wrong_state<T>(message: String) -> Result<T> {
    Err(anyhow::Error::msg(message)).kind(Kind::WrongState)
}
