//! How does podman get its monitor? By conmon's command line (conmon(8)), pipes and files: one process for a container or for a process
//! that is started in it.
//!
//! ```text
//!  podman ── start pipe ─▶ conmon            go on (it is in its cgroup now)
//!         ◀── sync pipe ── {"data": PID}, or {"data": -1, "message": "…"}; for an exec its exit status later
//!         ── BUNDLE/attach ──▶               packets: 2 or 3 and output, to us: input
//!         ── BUNDLE/ctl ──▶                  "1 ROWS COLUMNS": resize; "2 …": open the log anew
//!  conmon ── EXIT-DIR/ID, PERSIST-DIR/exit: the status; then the exit command
//! ```

mod args;

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use runtime::cgroup::Record;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sys::process::Exit;
use sys::signals::Signals;

use self::args::{Args, log_options, parse};
use crate::executor::{Bell, Loop, Once, first};
use crate::exits::{self, Children, Ended};
use crate::oom;
use crate::output::Output;
use crate::standalone::{Log, LogDriver, LogOptions, Stream};
use crate::task::Host;

/// The most that podman reads at once.
const PACKET: usize = 8192;
/// Bytes that may wait for somebody who is attached.
const MOST: usize = 1 << 20;

/// Pipes that podman has opened, by number, as the environment names them.
pub struct Environment {
    pub sync_pipe: Option<String>,
    pub start_pipe: Option<String>,
    pub attach_pipe: Option<String>,
}

/// Do what the arguments say; the exit code.
pub fn main(args: impl Iterator<Item = OsString>, environment: &Environment) -> i32 {
    match parse(args) {
        Ok(Some(args)) => run(args, environment).unwrap_or_else(|e| {
            writeln!(std::io::stderr(), "berth-conmon: {}", report::line(&e)).unwrap_or_default();
            1
        }),
        Ok(None) => {
            // Podman looks for this form, and for a version that it knows.
            let version = env!("CARGO_PKG_VERSION");
            writeln!(std::io::stdout(), "conmon version 2.1.13\ncommit: berth-shim {version}")
                .map_or(1, |()| 0)
        }
        Err(e) => {
            writeln!(std::io::stderr(), "berth-conmon: {}", report::line(&e)).unwrap_or_default();
            1
        }
    }
}

fn pipe(number: Option<&String>) -> Option<OwnedFd> {
    sys::process::inherited(number?.parse().ok()?)
}

fn run(args: Args, environment: &Environment) -> Result<i32> {
    let start = pipe(environment.start_pipe.as_ref());
    if let Some(start) = &start {
        // Until podman has put us where we belong.
        rustix::io::retry_on_intr(|| rustix::io::read(start, &mut [0u8; 64][..]))
            .context("read the start pipe")?;
    }
    if !args.sync {
        match sys::process::fork().context("fork")? {
            Some(child) => {
                if let Some(path) = &args.own_pid_file {
                    std::fs::write(path, child.to_string())
                        .with_context(|| format!("write {}", path.display()))?;
                }
                return Ok(0);
            }
            None => sys::process::setsid().context("make a session")?,
        }
    } else if let Some(path) = &args.own_pid_file {
        let own = sys::process::own_pid();
        std::fs::write(path, own.to_string()).with_context(|| format!("write {}", path.display()))?;
    }
    let mut sync =
        Sync { pipe: pipe(environment.sync_pipe.as_ref()), api: args.api_version, exec: args.exec };
    let attach_pipe = pipe(environment.attach_pipe.as_ref()).filter(|_| args.exec_attach);
    // The streams are whoever started us: only a log that is passed through goes there.
    let options = log_options(&args)?;
    let passthrough = options.driver == LogDriver::Passthrough;
    if !passthrough {
        let null = File::options().read(true).write(true).open("/dev/null").context("open /dev/null")?;
        for n in 0..3 {
            sys::path::replace_stdio(null.as_fd(), n).context("leave the streams")?;
        }
    }
    sys::process::set_subreaper().context("become a subreaper")?;
    let score = std::fs::read_to_string(OOM_SCORE).context("read the own OOM score")?;
    let host = Host { on: Loop::new().context("epoll")?, children: Children::default() };
    let signals = Signals::block().context("receive signals")?;
    let done = monitor(&args, &options, &host, signals, &mut sync, attach_pipe, start);
    let code = match done {
        Ok(status) => {
            if args.exec {
                sync.tell(status, None);
            }
            0
        }
        Err(e) => {
            let said = report::line(&e);
            sync.tell(-1, Some(&said));
            1
        }
    };
    drop(sync);
    std::fs::write(OOM_SCORE, score).unwrap_or_default();
    exit_command(&args);
    Ok(code)
}

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// What is told to whoever started us.
struct Sync {
    pipe: Option<OwnedFd>,
    api: u32,
    exec: bool,
}

impl Sync {
    fn tell(&mut self, number: i32, message: Option<&str>) {
        let Some(pipe) = &self.pipe else { return };
        let key = match (self.api, self.exec) {
            (1.., _) => "data",
            (0, true) => "exit_code",
            (0, false) => "pid",
        };
        let mut value = serde_json::json!({ key: number });
        if let Some(message) = message {
            value["message"] = message.into();
        }
        let text = format!("{value}\n");
        if rustix::io::write(pipe, text.as_bytes()).is_err() {
            // Nobody listens any more.
            self.pipe = None;
        }
    }
}

fn exit_command(args: &Args) {
    let Some((program, rest)) = args.exit_command.split_first() else { return };
    if args.exit_delay > 0 {
        std::thread::sleep(Duration::from_secs(args.exit_delay));
    }
    let mut command = Command::new(program);
    command.args(rest).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // In our place: podman waits for the end of this process, and then for what the command has written.
    let e = command.exec();
    log::warn!("exit command: {e}");
}

/// The container, or the process, until it has ended; its status.
fn monitor(
    args: &Args,
    options: &LogOptions,
    host: &Host,
    signals: Signals,
    sync: &mut Sync,
    attach_pipe: Option<OwnedFd>,
    start: Option<OwnedFd>,
) -> Result<i32> {
    let fields = format!(
        "CONTAINER_ID_FULL={id}\nCONTAINER_ID={short}\nCONTAINER_NAME={name}\n{tag}SYSLOG_IDENTIFIER={name}\n",
        id = args.uuid,
        short = args.uuid.get(..12).unwrap_or(&args.uuid),
        name = args.name,
        tag =
            if args.log_tag.is_empty() { String::new() } else { format!("CONTAINER_TAG={}\n", args.log_tag) },
    );
    let monitor = Rc::new(Monitor {
        host: host.clone(),
        output: Output::new(host, Log::with_fields(&args.id, fields, options)?),
        input: RefCell::default(),
        terminal: RefCell::default(),
        pid: Cell::new(0),
        ended: Once::default(),
        drained: RefCell::default(),
        leave_stdin_open: args.leave_stdin_open,
    });
    let this = monitor.clone();
    exits::attend(&host.on, &host.children, signals, move |signal| {
        // A service manager ends us: the container goes with us.
        if matches!(signal, 2 | 3 | 15) {
            this.signal(9);
        }
    });
    let dir =
        sys::path::open_host_dir(&args.bundle).with_context(|| format!("open {}", args.bundle.display()))?;
    let attach_path = args.bundle.join("attach");
    monitor.listen(&dir, &attach_path)?;
    monitor.control(&args.bundle)?;
    let notify = args.notify.as_ref().map(|to| forward_notifications(host, &args.bundle, to)).transpose()?;
    if let Some(pipe) = attach_pipe {
        // Now one can attach; podman says when it has.
        rustix::io::write(&pipe, b"{\"data\": 0}\n").context("write the attach pipe")?;
        if let Some(start) = &start {
            rustix::io::retry_on_intr(|| rustix::io::read(start, &mut [0u8; 64][..]))
                .context("read the start pipe")?;
        }
    }
    drop(start);
    let status = host.on.run(async {
        let ended = monitor.launch(args, options, sync).await?;
        let status = monitor.watch(args, ended).await;
        if status == 128 + 9 {
            // That it was for lack of memory may be told after the end, and podman looks for both at once.
            host.on.sleep(Duration::from_millis(20)).await;
        }
        // Before podman is told by the end of its connections: it looks for the file then.
        let written = exit_files(args, status);
        monitor.dismiss().await;
        written.map(|()| status)
    });
    let status = status.context("wait for events").and_then(|s| s);
    for file in [&attach_path, &args.bundle.join("ctl"), &args.bundle.join("winsz")] {
        crate::task::remove(file)?;
    }
    if let Some(path) = notify {
        crate::task::remove(&path)?;
    }
    status
}

/// EXIT-DIR/ID and PERSIST-DIR/exit.
fn exit_files(args: &Args, status: i32) -> Result<()> {
    let files =
        [args.exit_dir.as_ref().map(|d| d.join(&args.id)), args.persist_dir.as_ref().map(|d| d.join("exit"))];
    for path in files.into_iter().flatten() {
        sys::fd::publish(&path, status.to_string().as_bytes())
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

struct Monitor {
    host: Host,
    output: Rc<Output<Listener>>,
    input: RefCell<Option<Rc<OwnedFd>>>,
    terminal: RefCell<Option<Rc<OwnedFd>>>,
    pid: Cell<i32>,
    ended: Once<Ended>,
    drained: RefCell<Vec<Once<()>>>,
    leave_stdin_open: bool,
}

/// Somebody who is attached. What it does not read in time is dropped: the container does not wait for it.
struct Listener {
    socket: OwnedFd,
    waiting: RefCell<Vec<Vec<u8>>>,
    bytes: Cell<usize>,
    bell: Bell,
    end: Cell<bool>,
    done: Once<()>,
}

impl Monitor {
    /// To the process, if it has not ended: until then its number is its own.
    fn signal(&self, signal: i32) {
        if self.pid.get() != 0 && self.ended.get().is_none() {
            sys::process::signal(self.pid.get(), signal).unwrap_or_default();
        }
    }

    /// BUNDLE/attach, a socket of packets.
    fn listen(self: &Rc<Self>, dir: &OwnedFd, path: &Path) -> Result<()> {
        crate::task::remove(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let socket = socket.context("make a socket")?;
        let short = format!("/proc/self/fd/{}/attach", dir.as_raw_fd());
        let address = SocketAddrUnix::new(short).context("name a socket")?;
        rustix::net::bind(&socket, &address).with_context(|| format!("listen on {}", path.display()))?;
        rustix::fs::chmod(path, Mode::from_raw_mode(0o700)).context("chmod the socket")?;
        rustix::net::listen(&socket, 10).context("listen")?;
        let this = self.clone();
        self.host.on.spawn(async move {
            loop {
                if this.host.on.readable(socket.as_fd()).await.is_err() {
                    return;
                }
                while let Ok(stream) = rustix::net::accept_with(&socket, flags) {
                    this.attach(stream);
                }
            }
        });
        Ok(())
    }

    fn attach(self: &Rc<Self>, socket: OwnedFd) {
        let listener = Rc::new(Listener {
            socket,
            waiting: RefCell::default(),
            bytes: Cell::default(),
            bell: Bell::default(),
            end: Cell::default(),
            done: Once::default(),
        });
        self.output.listeners.borrow_mut().push(listener.clone());
        let (this, writer) = (self.clone(), listener.clone());
        self.host.on.spawn(async move { writer.write(&this.host.on).await });
        let this = self.clone();
        self.host.on.spawn(async move {
            let mut buffer = vec![0; PACKET];
            loop {
                if this.host.on.readable(listener.socket.as_fd()).await.is_err() {
                    break;
                }
                match rustix::io::read(&listener.socket, &mut buffer[..]) {
                    // It sends nothing more; whether it still reads, writing shows.
                    Ok(0) => {
                        if !this.leave_stdin_open {
                            this.input.take();
                        }
                        break;
                    }
                    Ok(n) => {
                        let to = this.terminal.borrow().clone().or_else(|| this.input.borrow().clone());
                        if let Some(to) = to {
                            let write = crate::copy::write_all(&this.host.on, &to, &buffer[..n]);
                            first(write, this.ended.wait()).await;
                        }
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        });
    }

    /// BUNDLE/ctl and BUNDLE/winsz.
    fn control(self: &Rc<Self>, bundle: &Path) -> Result<()> {
        for name in ["ctl", "winsz"] {
            let path = bundle.join(name);
            crate::task::remove(&path)?;
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                rustix::fs::FileType::Fifo,
                Mode::from_raw_mode(0o660),
                0,
            )
            .with_context(|| format!("make {}", path.display()))?;
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let fifo = rustix::fs::open(&path, flags, Mode::empty())
                .with_context(|| format!("open {}", path.display()))?;
            let this = self.clone();
            self.host.on.spawn(async move {
                let mut text = Vec::new();
                while this.host.on.readable(fifo.as_fd()).await.is_ok() {
                    let mut buffer = [0; 256];
                    if let Ok(n) = rustix::io::read(&fifo, &mut buffer) {
                        text.extend_from_slice(&buffer[..n]);
                    }
                    while let Some(end) = text.iter().position(|b| *b == b'\n') {
                        let line: Vec<u8> = text.drain(..=end).collect();
                        this.command(name, String::from_utf8_lossy(&line).trim());
                    }
                    if text.len() > 4096 {
                        text.clear();
                    }
                }
            });
        }
        Ok(())
    }

    fn command(&self, fifo: &str, line: &str) {
        let numbers: Vec<i64> = line.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        let small = |n: i64| u16::try_from(n).unwrap_or(u16::MAX);
        match (fifo, numbers.as_slice()) {
            ("ctl", [1, rows, columns, ..]) | ("winsz", [rows, columns, ..]) => {
                if let Some(terminal) = self.terminal.borrow().as_ref() {
                    let size = sys::tty::Size { rows: small(*rows), columns: small(*columns) };
                    sys::tty::set_size(terminal.as_fd(), size).unwrap_or_default();
                }
            }
            ("ctl", [2, ..]) => {
                if let Err(e) = self.output.log.borrow_mut().reopen() {
                    log::warn!("{e:#}");
                }
            }
            _ => log::warn!("{fifo}: unknown message {line:?}"),
        }
    }

    /// Have the runtime make it; its end.
    async fn launch(
        self: &Rc<Self>,
        args: &Args,
        options: &LogOptions,
        sync: &mut Sync,
    ) -> Result<Once<Ended>> {
        let pid_file =
            args.pid_file.clone().unwrap_or_else(|| args.bundle.join(format!("pidfile-{}", args.id)));
        let mut command = Command::new(&args.runtime);
        command.args(&args.runtime_args);
        if args.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        match (&args.process, &args.restore) {
            (Some(process), _) if args.exec => {
                command
                    .arg("exec")
                    .arg("--pid-file")
                    .arg(&pid_file)
                    .arg("--process")
                    .arg(process)
                    .arg("--detach");
            }
            (_, Some(image)) => {
                command
                    .arg("restore")
                    .arg("--bundle")
                    .arg(&args.bundle)
                    .arg("--pid-file")
                    .arg(&pid_file)
                    .arg("--detach");
                command.arg("--image-path").arg(image).arg("--work-path").arg(&args.bundle);
            }
            _ => {
                command.arg("create").arg("--bundle").arg(&args.bundle).arg("--pid-file").arg(&pid_file);
            }
        }
        if !args.exec {
            if args.no_pivot {
                command.arg("--no-pivot");
            }
            if args.no_new_keyring {
                command.arg("--no-new-keyring");
            }
        }
        command.args(&args.runtime_opts);
        let errors = sys::fd::memory_file("errors").context("make a file in memory")?;
        let mut outputs = Vec::new();
        let console = if args.terminal {
            let folder = args.socket_dir.clone().unwrap_or_else(std::env::temp_dir);
            let path = folder.join(format!("berth-conmon-{}.sock", sys::process::own_pid()));
            crate::task::remove(&path)?;
            let listener =
                UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
            command.arg("--console-socket").arg(&path);
            command.stdin(Stdio::null()).stdout(errors.try_clone().context("copy a descriptor")?);
            command.stderr(errors.try_clone().context("copy a descriptor")?);
            Some((listener, path))
        } else {
            let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe");
            if args.stdin {
                let (read, write) = pipe()?;
                rustix::io::ioctl_fionbio(&write, true).context("make writing not wait")?;
                command.stdin(read);
                self.input.replace(Some(Rc::new(write)));
            } else if options.driver != LogDriver::Passthrough {
                command.stdin(Stdio::null());
            }
            if options.driver != LogDriver::Passthrough {
                for stream in [Stream::Stdout, Stream::Stderr] {
                    let (read, write) = pipe()?;
                    rustix::io::ioctl_fionbio(&read, true).context("make reading not wait")?;
                    rustix::pipe::fcntl_setpipe_size(&read, 1 << 18).map(|_| ()).unwrap_or_default();
                    match stream {
                        Stream::Stdout => command.stdout(write),
                        Stream::Stderr => command.stderr(write),
                    };
                    outputs.push((read, stream));
                }
            }
            None
        };
        command.arg(&args.id);
        let expecting = self.host.children.expect();
        // Podman may remove what it made when we are gone: nothing may go on making it.
        sys::process::die_with_parent(&mut command);
        let started = self.host.children.start(&mut command);
        drop(command);
        let removed = |console: &Option<(UnixListener, PathBuf)>| match console {
            Some((_, path)) => crate::task::remove(path),
            None => Ok(()),
        };
        let (_, runtime_ended) = match started {
            Ok(started) => started,
            Err(e) => {
                removed(&console)?;
                return Err(e);
            }
        };
        let exit = runtime_ended.wait().await.exit;
        if exit != Exit::Code(0) {
            removed(&console)?;
            let printed = match outputs.iter().find(|(_, stream)| *stream == Stream::Stderr) {
                Some((pipe, _)) => read_now(pipe),
                None => {
                    use std::io::{Read, Seek};
                    let (mut file, mut bytes) = (errors, Vec::new());
                    file.rewind().and_then(|()| file.read_to_end(&mut bytes).map(|_| ())).unwrap_or_default();
                    bytes
                }
            };
            let printed = String::from_utf8_lossy(&printed).trim().to_owned();
            if printed.is_empty() {
                bail!(
                    "{}: it ended with status {} and did not say why",
                    args.runtime.display(),
                    exit.status()
                );
            }
            bail!("{printed}");
        }
        let text =
            std::fs::read_to_string(&pid_file).with_context(|| format!("read {}", pid_file.display()))?;
        let pid: i32 = text.trim().parse().with_context(|| format!("{}: {text:?}", pid_file.display()))?;
        self.pid.set(pid);
        // The kernel should take others first; without the right to say so it stays as it is. Not before now: the container
        // would have the score from us, and nothing could be taken when it runs out of memory.
        std::fs::write(OOM_SCORE, "-1000").unwrap_or_default();
        let ended = self.host.children.watch(pid);
        drop(expecting);
        if let Some((listener, path)) = console {
            let (stream, _) = listener.accept().context("receive the terminal")?;
            let (_, fds) =
                sys::socket::receive(stream.as_fd(), &mut [0; 4096]).context("receive the terminal")?;
            crate::task::remove(&path)?;
            let Some(terminal) = fds.into_iter().next() else { bail!("the runtime sent no terminal") };
            rustix::io::ioctl_fionbio(&terminal, true).context("make the terminal's calls not wait")?;
            let terminal = Rc::new(terminal);
            self.terminal.replace(Some(terminal.clone()));
            self.pump(terminal, Stream::Stdout);
        }
        for (pipe, stream) in outputs {
            self.pump(Rc::new(pipe), stream);
        }
        if args.api_version >= 1 || !args.exec {
            sync.tell(pid, None);
        }
        if !args.exec {
            sync.pipe = None;
            return Ok(self.watch_memory(args, pid, ended));
        }
        Ok(ended)
    }

    /// Note when the kernel kills for lack of memory; the end, after that.
    fn watch_memory(&self, args: &Args, pid: i32, ended: Once<Ended>) -> Once<Ended> {
        let Ok(record) = Record::of_process(pid) else { return ended };
        let dirs: Vec<PathBuf> =
            [Some(args.bundle.clone()), args.persist_dir.clone()].into_iter().flatten().collect();
        oom::tell(&self.host, &record, ended, move || {
            for dir in &dirs {
                // Podman looks whether it is there.
                File::create(dir.join("oom")).map(|_| ()).unwrap_or_default();
            }
        })
    }

    fn pump(&self, fd: Rc<OwnedFd>, stream: Stream) {
        self.drained.borrow_mut().push(self.output.attend(fd, stream));
    }

    /// Until it has ended and everything that it wrote is where it belongs.
    async fn watch(self: &Rc<Self>, args: &Args, ended: Once<Ended>) -> i32 {
        let end = if args.timeout > 0 {
            match self.host.on.within(Duration::from_secs(args.timeout), ended.wait()).await {
                Some(end) => end,
                None => {
                    self.signal(9);
                    ended.wait().await
                }
            }
        } else {
            ended.wait().await
        };
        self.ended.set(end);
        let drained = self.drained.borrow().clone();
        for stream in drained {
            self.host.on.within(Duration::from_millis(500), stream.wait()).await;
        }
        end.exit.status()
    }

    /// Whoever is attached gets the rest, and the end.
    async fn dismiss(&self) {
        let listeners = self.output.listeners.borrow().clone();
        for listener in &listeners {
            listener.end.set(true);
            listener.bell.ring();
        }
        for listener in &listeners {
            self.host.on.within(Duration::from_secs(2), listener.done.wait()).await;
        }
    }
}

impl crate::output::Listener for Listener {
    fn output(&self, stream: Stream, bytes: &[u8]) {
        for chunk in bytes.chunks(PACKET) {
            if self.bytes.get() > MOST || self.done.get().is_some() {
                return;
            }
            let mut packet = Vec::with_capacity(chunk.len() + 1);
            packet.push(if stream == Stream::Stdout { 2 } else { 3 });
            packet.extend_from_slice(chunk);
            self.bytes.set(self.bytes.get() + packet.len());
            self.waiting.borrow_mut().push(packet);
        }
        self.bell.ring();
    }

    fn is_gone(&self) -> bool {
        self.done.get().is_some()
    }
}

impl Listener {
    async fn write(&self, on: &Loop) {
        'all: loop {
            let packets = self.waiting.take();
            if packets.is_empty() {
                if self.end.get() {
                    break;
                }
                self.bell.wait().await;
                continue;
            }
            for packet in packets {
                loop {
                    match rustix::net::send(&self.socket, &packet, rustix::net::SendFlags::NOSIGNAL) {
                        Ok(_) => break,
                        Err(Errno::AGAIN) => {
                            if on.writable(self.socket.as_fd()).await.is_err() {
                                break 'all;
                            }
                        }
                        Err(Errno::INTR) => {}
                        Err(_) => break 'all,
                    }
                }
                self.bytes.set(self.bytes.get().saturating_sub(packet.len()));
            }
        }
        self.done.set(());
        // Podman waits for the end of the socket.
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both).unwrap_or_default();
    }
}

fn read_now(pipe: &OwnedFd) -> Vec<u8> {
    let mut buffer = vec![0; 8192];
    let n = rustix::io::read(pipe, &mut buffer[..]).unwrap_or(0);
    buffer.truncate(n);
    buffer
}

/// BUNDLE/notify/notify.sock, which podman gives to the container: messages for systemd go from there to its own socket.
fn forward_notifications(host: &Host, bundle: &Path, to: &Path) -> Result<PathBuf> {
    let folder = bundle.join("notify");
    let path = folder.join("notify.sock");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let dir = sys::path::open_host_dir(&folder).with_context(|| format!("open {}", folder.display()))?;
    let socket =
        sys::socket::receive_datagrams_at(dir.as_fd(), "notify.sock").context("listen for notifications")?;
    let (on, to) = (host.on.clone(), to.to_owned());
    host.on.spawn(async move {
        let mut buffer = vec![0; 4096];
        while on.readable(socket.as_fd()).await.is_ok() {
            if let Ok(n) = socket.recv(&mut buffer) {
                let sent = sys::socket::send_datagram(&to, &buffer[..n]);
                sent.unwrap_or_else(|e| log::warn!("notify {}: {e}", to.display()));
            }
        }
    });
    Ok(path)
}
