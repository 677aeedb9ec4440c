//! What does a supervisor do? It has its container run, for as long as its restart policy says, and keeps the files true.
//!
//! ```text
//!          ┌──────────────── again: a pause of 100 ms, doubled each time up to 1 min ───────────────┐
//!          ▼                                                                                        │
//!  launch: create ─▶ pid into state.json ─▶ start ─▶ running ─▶ its end ─▶ streams drained ─▶ restart policy ─▶ exited
//!          ▲ a new supervisor begins where the files and the runtime say that the last one was
//! ```

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use runtime::cgroup::Record;
use runtime::client::Client;
use rustix::fs::OFlags;
use rustix::io::Errno;
use sys::process::Exit;
use sys::signals::Signals;

use super::keeper::{self, DONE, NOT_MINE};
use super::logs::{Log, Stream};
use super::state::{Dir, LogDriver, Options, State, Status, Time};
use super::{bundle, control, health};
use crate::executor::{Bell, First, Loop, Once, first};
use crate::exits::{self, Children, Ended};
use crate::oom;
use crate::output::Output;
use crate::task::{Container, Host, Launched, Streams};

/// As Docker has them: the first pause, the longest one, and how long a container must run for the next pause to be the first again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const LONG_ENOUGH: Duration = Duration::from_secs(10);
/// How long output is waited for that others still hold open.
const DRAIN: Duration = Duration::from_millis(500);

/// Everything of one container.
pub struct Supervisor {
    pub host: Host,
    pub dir: Dir,
    pub options: Options,
    pub state: RefCell<State>,
    pub output: Rc<Output<control::Listener>>,
    pub run: RefCell<Option<Rc<Run>>>,
    keeper: Option<OwnedFd>,
    /// What the keeper holds for us, by name.
    held: RefCell<BTreeMap<String, OwnedFd>>,
    /// What the keeper has told of processes that were not ours.
    exits: RefCell<BTreeMap<i32, i32>>,
    told: Bell,
    /// What a user wants besides what the policy says.
    pub wish: Cell<Wish>,
    pub wished: Bell,
    /// The first start: that it runs, or why it does not.
    pub started: Once<Result<(), String>>,
    /// The end for good.
    pub ended: Once<i32>,
    pub listener_came: Once<()>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    #[default]
    None,
    /// Do not start it again.
    Stop,
    /// Start it again, whatever the policy says.
    Restart,
}

/// One life of the container.
pub struct Run {
    pub container: Container,
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// Known through the kernel, if it is our child.
    own: Option<Once<Ended>>,
    pub terminal: Option<Rc<OwnedFd>>,
    pub stdin: RefCell<Option<Rc<OwnedFd>>>,
    streams: Vec<Once<()>>,
    pub over: Once<()>,
}

/// Supervise a container until it has ended for good; the exit code.
pub fn supervise(root: &Path, id: &str, wait: bool) -> Result<i32> {
    let dir = Dir::open(root, id)?;
    // The last one may still be going.
    let mut lock = dir.lock()?;
    for _ in 0..100 {
        if lock.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        lock = dir.lock()?;
    }
    let Some(lock) = lock else { return Ok(NOT_MINE) };
    // It may have been removed while we waited, or have ended for good: whoever has it started anew says so in its state.
    Dir::open(root, id)?;
    if dir.state()?.status == Status::Exited {
        return Ok(NOT_MINE);
    }
    sys::process::set_subreaper().context("become a subreaper")?;
    let signals = Signals::block().context("receive signals")?;
    let host = Host { on: Loop::new().context("epoll")?, children: Children::default() };
    let options = dir.options()?;
    let log_file = std::fs::File::options().append(true).create(true).open(dir.file("shim.log"));
    report::log_to(log_file.context("open shim.log")?, report::Format::Text, false)?;
    let mut state = dir.state()?;
    state.supervisor = sys::process::own_pid();
    let supervisor = Rc::new(Supervisor {
        output: Output::new(&host, Log::open(id, &options.log)?),
        host: host.clone(),
        options,
        state: RefCell::new(state),
        run: RefCell::default(),
        keeper: sys::process::inherited(keeper::SOCKET),
        held: RefCell::default(),
        exits: RefCell::default(),
        told: Bell::default(),
        wish: Cell::default(),
        wished: Bell::default(),
        started: Once::default(),
        ended: Once::default(),
        listener_came: Once::default(),
        dir,
    });
    supervisor.hear_keeper()?;
    let this = supervisor.clone();
    exits::attend(&host.on, &host.children, signals, move |signal| this.signalled(signal));
    supervisor.save()?;
    control::serve(&supervisor)?;
    supervisor.watch_keeper(root);
    let this = supervisor.clone();
    let done = host.on.run(async move {
        if wait {
            this.host.on.within(Duration::from_secs(10), this.listener_came.wait()).await;
        }
        let done = this.live().await;
        if let Err(e) = &done {
            log::error!("{}", report::line(e));
        }
        // Who waits is told before we go.
        let status = this.state.borrow().exit_code.unwrap_or(255);
        this.ended.set(status);
        control::finish(&this, status).await;
        done
    });
    // What went wrong is in the log and in the state, and was told to whoever asked.
    done.context("wait for events")?.unwrap_or_default();
    crate::task::remove(&supervisor.dir.file("control.sock"))?;
    supervisor.exit_command();
    if supervisor.options.rm {
        supervisor.dir.remove()?;
    }
    drop(lock);
    Ok(DONE)
}

impl Supervisor {
    pub fn save(&self) -> Result<()> {
        self.dir.set_state(&self.state.borrow())
    }

    fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        change(&mut self.state.borrow_mut());
        self.save()
    }

    pub fn client(&self) -> Client {
        client(&self.options)
    }

    fn container(&self) -> Container {
        Container {
            id: self.dir.id.clone(),
            bundle: self.dir.path.clone(),
            client: self.client(),
            no_pivot: self.options.no_pivot,
            no_new_keyring: self.options.no_new_keyring,
            next: Cell::new(0),
        }
    }

    /// From a service manager: SIGTERM and SIGINT stop the container, SIGHUP opens the log anew.
    fn signalled(self: &Rc<Self>, signal: i32) {
        match signal {
            1 => {
                if let Err(e) = self.output.log.borrow_mut().reopen() {
                    log::warn!("{e:#}");
                }
            }
            2 | 15 => {
                let this = self.clone();
                self.host.on.spawn(async move {
                    if let Err(e) = this.stop(None).await {
                        log::warn!("{}", report::line(&e));
                    }
                });
            }
            _ => {}
        }
    }

    // ------------------------------------------------------------------ the keeper

    /// Everything that it has said so far.
    fn hear_keeper(&self) -> Result<()> {
        let Some(keeper) = &self.keeper else { return Ok(()) };
        loop {
            let mut buffer = [0; 64];
            let waiting = {
                let mut fds = [rustix::event::PollFd::new(keeper, rustix::event::PollFlags::IN)];
                let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
                rustix::event::poll(&mut fds, Some(&now)).context("poll")?;
                fds[0].revents().contains(rustix::event::PollFlags::IN)
            };
            if !waiting {
                return Ok(());
            }
            let (length, fds) =
                sys::socket::receive(keeper.as_fd(), &mut buffer).context("hear the keeper")?;
            if length == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let words: Vec<&str> = text.split(' ').collect();
            match (words.as_slice(), fds.into_iter().next()) {
                (["held", name], Some(fd)) => {
                    self.held.borrow_mut().insert((*name).to_owned(), fd);
                }
                (["exit", pid, status], _) => {
                    if let (Ok(pid), Ok(status)) = (pid.parse(), status.parse()) {
                        self.exits.borrow_mut().insert(pid, status);
                    }
                }
                _ => {}
            }
            self.told.ring();
        }
    }

    /// Hear it; and become one when it is gone.
    fn watch_keeper(self: &Rc<Self>, root: &Path) {
        let Some(keeper) = self.keeper.as_ref().and_then(|k| k.try_clone().ok()) else { return };
        let (this, root) = (self.clone(), root.to_owned());
        self.host.on.spawn(async move {
            loop {
                if this.host.on.readable(keeper.as_fd()).await.is_err() || this.hear_keeper().is_err() {
                    return;
                }
                if sys::socket::is_hung_up(keeper.as_fd()) {
                    break;
                }
            }
            log::warn!("the keeper is gone: this process becomes one, and another supervisor takes over");
            // Who looks whether there is one has its lock for a moment.
            let lock = loop {
                match this.dir.keeper_lock() {
                    Ok(Some(lock)) => break lock,
                    Ok(None) => this.host.on.sleep(Duration::from_millis(2)).await,
                    Err(e) => return log::error!("{e:#}"),
                }
            };
            let held = std::mem::take(&mut *this.held.borrow_mut()).into_iter().collect();
            let e = keeper::become_keeper(&root, &this.dir.id, lock, held);
            log::error!("{e:#}");
        });
    }

    /// Have it kept open when we are killed.
    fn hold(&self, name: &str, fd: &OwnedFd) -> Result<()> {
        if let Some(keeper) = &self.keeper {
            // One that is gone is replaced soon, by ourselves.
            let sent = sys::socket::send(keeper.as_fd(), format!("hold {name}").as_bytes(), &[fd.as_fd()]);
            sent.unwrap_or_else(|e| log::warn!("hand {name} to the keeper: {e}"));
        }
        let copy = fd.try_clone().context("copy a descriptor")?;
        self.held.borrow_mut().insert(name.to_owned(), copy);
        Ok(())
    }

    pub fn release(&self, name: &str) {
        if self.held.borrow_mut().remove(name).is_some()
            && let Some(keeper) = &self.keeper
        {
            let sent = sys::socket::send(keeper.as_fd(), format!("drop {name}").as_bytes(), &[]);
            sent.unwrap_or_default();
        }
    }

    fn take_held(&self, name: &str) -> Option<OwnedFd> {
        self.held.borrow().get(name).and_then(|fd| fd.try_clone().ok())
    }

    // ------------------------------------------------------------------ life

    async fn live(self: &Rc<Self>) -> Result<()> {
        let mut adopted = self.adopt().await?;
        loop {
            let run = match adopted.take() {
                Some(run) => run,
                None => match self.launch().await {
                    Ok(run) => run,
                    Err(e) => {
                        self.host.children.let_go();
                        let said = report::line(&e);
                        log::error!("{said}");
                        self.change(|state| {
                            state.status = Status::Exited;
                            state.error = said.clone();
                            state.exit_code = Some(125);
                            state.finished_at = Some(Time::now());
                            (state.pid, state.start_ticks) = (0, 0);
                        })?;
                        self.started.set(Err(said));
                        self.clean().await;
                        self.exit_file()?;
                        return Err(e);
                    }
                },
            };
            self.run.replace(Some(run.clone()));
            self.started.set(Ok(()));
            match self.wish.get() {
                Wish::None => {}
                // It came while there was no process yet.
                Wish::Stop => self.end_soon(),
                Wish::Restart => self.wish.set(Wish::None),
            }
            let began = Instant::now();
            let checks = health::start(self, &run);
            let ended = self.end_of(&run).await;
            run.over.set(());
            drop(checks);
            for stream in &run.streams {
                if self.host.on.within(DRAIN, stream.wait()).await.is_none() {
                    log::debug!("somebody keeps a stream open");
                }
            }
            self.run.take();
            for name in ["stdin", "stdout", "stderr", "terminal"] {
                self.release(name);
            }
            let again = self.record_end(ended, began.elapsed())?;
            self.host.children.let_go();
            self.clean().await;
            if !again {
                self.exit_file()?;
                return Ok(());
            }
            if !self.pause().await? {
                self.exit_file()?;
                return Ok(());
            }
        }
    }

    /// Put the end into the files; whether it is to be started again.
    fn record_end(&self, ended: Option<Ended>, lasted: Duration) -> Result<bool> {
        let status = ended.map_or(255, |e| e.exit.status());
        let wish = self.wish.take();
        let mut state = self.state.borrow_mut();
        if lasted >= LONG_ENOUGH {
            state.in_a_row = 0;
        }
        let again = match wish {
            Wish::Stop => false,
            Wish::Restart => true,
            Wish::None => !state.stopped && self.options.restart.again(status, state.in_a_row),
        };
        state.status = if again { Status::Restarting } else { Status::Exited };
        state.exit_code = Some(status);
        state.exit_unknown = ended.is_none();
        state.finished_at = Some(ended.map_or_else(Time::now, |e| Time(e.at)));
        (state.pid, state.start_ticks) = (0, 0);
        if wish == Wish::Restart {
            (state.in_a_row, state.stopped) = (0, false);
        }
        drop(state);
        self.save()?;
        Ok(again)
    }

    /// Before it is started again; `false`: it is not, a user has stopped it meanwhile.
    async fn pause(&self) -> Result<bool> {
        let in_a_row = self.state.borrow().in_a_row;
        let pause = pause_after(in_a_row);
        let until = Instant::now() + pause;
        if self.wish.get() != Wish::Restart {
            loop {
                match first(self.host.on.until(until), self.wished.wait()).await {
                    First::Left(()) => break,
                    First::Right(()) if self.wish.get() == Wish::Stop => {
                        self.wish.set(Wish::None);
                        self.change(|state| state.status = Status::Exited)?;
                        return Ok(false);
                    }
                    First::Right(()) if self.wish.get() == Wish::Restart => break,
                    First::Right(()) => {}
                }
            }
        }
        self.wish.set(Wish::None);
        self.change(|state| {
            state.restarts += 1;
            state.in_a_row += 1;
        })?;
        Ok(true)
    }

    /// Away with what the runtime knows of it.
    async fn clean(&self) {
        if let Err(e) = self.container().delete(&self.host).await {
            log::warn!("delete the container: {}", report::line(&e));
        }
    }

    /// Begin where the last supervisor was. `None`: there is nothing to take over.
    async fn adopt(self: &Rc<Self>) -> Result<Option<Rc<Run>>> {
        let state = self.state.borrow().clone();
        if state.pid == 0 {
            if self.dir.file("log.json").exists() {
                // The last one may have been killed while it made the container, for the first time or again.
                self.clean().await;
            }
            return Ok(None);
        }
        let is_it = |pidfd: OwnedFd| match sys::process::start_time(state.pid) {
            Ok(Some((ticks, _))) if ticks == state.start_ticks => Some(pidfd),
            _ => None,
        };
        let pidfd = sys::process::pidfd_open(state.pid).ok().and_then(is_it);
        let container = self.container();
        let run = match pidfd {
            Some(pidfd) => {
                if state.status == Status::Created {
                    self.finish_start(&container).await?;
                }
                let terminal = self.take_held("terminal").map(Rc::new);
                let run = self.attend(container, state.pid, pidfd, None, terminal)?;
                self.change(|state| {
                    if state.status == Status::Created {
                        state.status = Status::Running;
                    }
                })?;
                log::info!("took over the container, process {}", state.pid);
                run
            }
            None => {
                // It ended while nobody was there to see it, but for the keeper.
                let ended = self.end_of_gone(state.pid).await;
                self.drain_what_is_left().await;
                let again = self.record_end(ended, Duration::ZERO)?;
                self.clean().await;
                if !again || !self.pause().await? {
                    self.exit_file()?;
                    self.started.set(Ok(()));
                    return Err(anyhow::anyhow!("it ended while it was not supervised"));
                }
                return Ok(None);
            }
        };
        Ok(Some(run))
    }

    /// The last one was killed between the container's creation and its start, or just after it.
    async fn finish_start(&self, container: &Container) -> Result<()> {
        match container.start(&self.host).await {
            Ok(()) => Ok(()),
            // It was started already, if its process is there.
            Err(_) if sys::process::start_time(self.state.borrow().pid).is_ok_and(|t| t.is_some()) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Output that stands in the pipes of a container that is gone.
    async fn drain_what_is_left(self: &Rc<Self>) {
        for (name, stream) in [("stdout", Stream::Stdout), ("stderr", Stream::Stderr)] {
            if let Some(fd) = self.take_held(name) {
                let drained = self.output.attend(Rc::new(fd), stream);
                self.host.on.within(DRAIN, drained.wait()).await;
            }
        }
    }

    async fn launch(self: &Rc<Self>) -> Result<Rc<Run>> {
        bundle::write(&self.options, &self.dir)?;
        let container = self.container();
        self.change(|state| {
            state.status = if state.restarts > 0 { Status::Restarting } else { Status::Created };
            state.error = String::new();
            state.oom_killed = false;
        })?;
        let streams = self.streams()?;
        let launched = container.create(&self.host, streams, None).await;
        let Launched { pid, ended, terminal } = launched.context("create the container")?;
        self.host.children.keep(pid);
        let pidfd = sys::process::pidfd_open(pid).with_context(|| format!("pidfd_open {pid}"))?;
        let ticks = sys::process::start_time(pid).ok().flatten().map_or(0, |(ticks, _)| ticks);
        if let Some(terminal) = &terminal {
            self.hold("terminal", terminal)?;
        }
        self.change(|state| {
            state.status = Status::Created;
            (state.pid, state.start_ticks) = (pid, ticks);
        })?;
        if let Some(path) = &self.options.pid_file {
            std::fs::write(path, pid.to_string()).with_context(|| format!("write {}", path.display()))?;
        }
        let run = self.attend(container, pid, pidfd, Some(ended), terminal.map(Rc::new))?;
        if let Err(e) = run.container.start(&self.host).await {
            run.over.set(());
            return Err(e.context("start the container"));
        }
        self.change(|state| {
            state.status = Status::Running;
            state.started_at = Some(Time::now());
        })?;
        self.notify(pid);
        Ok(run)
    }

    /// The streams of a new process; our ends go to the keeper too.
    fn streams(&self) -> Result<Streams> {
        if self.options.tty {
            return Ok(Streams::Terminal);
        }
        let null = || -> Result<OwnedFd> {
            let file = std::fs::File::options().read(true).write(true).open("/dev/null");
            Ok(file.context("open /dev/null")?.into())
        };
        let own = |fd: i32| sys::fd::borrow(fd).try_clone_to_owned().context("copy a stream");
        if self.options.log.driver == LogDriver::Passthrough {
            return Ok(Streams::Plain { stdin: own(0)?, stdout: own(1)?, stderr: own(2)? });
        }
        let stdin = if self.options.interactive {
            let both = self.fifo("stdin", OFlags::RDWR)?;
            let given = self.fifo("stdin", OFlags::RDONLY)?;
            self.hold("stdin", &both)?;
            given
        } else {
            null()?
        };
        let output = |name: &str| -> Result<OwnedFd> {
            let reader = self.fifo(name, OFlags::RDONLY | OFlags::NONBLOCK)?;
            // A larger pipe costs nothing until it is filled. Without the right to one the usual one does.
            rustix::pipe::fcntl_setpipe_size(&reader, 1 << 18).map(|_| ()).unwrap_or_default();
            self.hold(name, &reader)?;
            // The container reads it too, in a way: so it does not get SIGPIPE when we are killed.
            self.fifo(name, OFlags::RDWR)
        };
        Ok(Streams::Plain { stdin, stdout: output("stdout")?, stderr: output("stderr")? })
    }

    fn fifo(&self, name: &str, flags: OFlags) -> Result<OwnedFd> {
        let path = self.dir.file(name);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        match rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).with_context(|| format!("make {}", path.display())),
        }
        let opened = rustix::fs::open(&path, flags | OFlags::CLOEXEC, rustix::fs::Mode::empty());
        opened.with_context(|| format!("open {}", path.display()))
    }

    /// Have everything of a process watched and copied.
    fn attend(
        self: &Rc<Self>,
        container: Container,
        pid: i32,
        pidfd: OwnedFd,
        own: Option<Once<Ended>>,
        terminal: Option<Rc<OwnedFd>>,
    ) -> Result<Rc<Run>> {
        let mut streams = Vec::new();
        let mut pump = |fd: Rc<OwnedFd>, stream: Stream| streams.push(self.output.attend(fd, stream));
        if let Some(terminal) = &terminal {
            rustix::io::ioctl_fionbio(&**terminal, true).context("make the terminal's calls not wait")?;
            pump(terminal.clone(), Stream::Stdout);
        } else if !self.options.tty && self.options.log.driver != LogDriver::Passthrough {
            for (name, stream) in [("stdout", Stream::Stdout), ("stderr", Stream::Stderr)] {
                let fd = match self.take_held(name) {
                    Some(fd) => fd,
                    None => self.fifo(name, OFlags::RDONLY | OFlags::NONBLOCK)?,
                };
                pump(Rc::new(fd), stream);
            }
        }
        let stdin = self.take_held("stdin").map(Rc::new);
        if let Some(stdin) = &stdin {
            rustix::io::ioctl_fionbio(&**stdin, true).context("make writing not wait")?;
        }
        let over = Once::default();
        let own = match own {
            Some(ended) => Some(self.watch_memory(pid, ended)),
            None => {
                self.watch_memory(pid, over.clone());
                None
            }
        };
        Ok(Rc::new(Run { container, pid, pidfd, own, stdin: RefCell::new(stdin), terminal, streams, over }))
    }

    /// Note when the kernel kills for lack of memory; the end, after that.
    fn watch_memory<T: Clone + 'static>(self: &Rc<Self>, pid: i32, ended: Once<T>) -> Once<T> {
        let Ok(record) = Record::of_process(pid) else { return ended };
        let this = self.clone();
        oom::tell(&self.host, &record, ended, move || {
            let saved = this.change(|state| state.oom_killed = true);
            saved.unwrap_or_else(|e| log::warn!("{e:#}"));
        })
    }

    /// When and how its process ended. `None`: nobody knows how.
    async fn end_of(&self, run: &Run) -> Option<Ended> {
        if let Some(own) = &run.own {
            return Some(own.wait().await);
        }
        // Not our child: the keeper's, or some other process's.
        if self.host.on.readable(run.pidfd.as_fd()).await.is_err() {
            return None;
        }
        let until = Instant::now() + Duration::from_secs(1);
        loop {
            if let Some(status) = self.exits.borrow().get(&run.pid) {
                return Some(Ended::now(exit_from(*status)));
            }
            if let Some(exit) = sys::process::exit_of(run.pidfd.as_fd()) {
                return Some(Ended::now(exit));
            }
            // Nobody waits for it, not even the host's first process: then it is a zombie still.
            let ticks = self.state.borrow().start_ticks;
            if let Some(exit) = sys::process::exit_of_zombie(run.pid, ticks) {
                return Some(Ended::now(exit));
            }
            if Instant::now() > until {
                return None;
            }
            let soon = self.host.on.sleep(Duration::from_millis(10));
            first(self.told.wait(), soon).await;
        }
    }

    /// The end of a process that is no more: the keeper may be about to tell it.
    async fn end_of_gone(&self, pid: i32) -> Option<Ended> {
        let until = Instant::now() + Duration::from_millis(500);
        loop {
            if let Some(status) = self.exits.borrow().get(&pid) {
                return Some(Ended::now(exit_from(*status)));
            }
            if self.keeper.is_none() || Instant::now() > until {
                return None;
            }
            let soon = self.host.on.sleep(Duration::from_millis(10));
            first(self.told.wait(), soon).await;
        }
    }

    // ------------------------------------------------------------------ wishes

    /// As `docker stop`: the signal, and SIGKILL when that does not help in time.
    pub async fn stop(self: &Rc<Self>, timeout: Option<Duration>) -> Result<()> {
        self.change(|state| state.stopped = true)?;
        self.wish.set(Wish::Stop);
        self.wished.ring();
        self.end_run(timeout).await
    }

    /// Stop it and start it again, whatever the policy.
    pub async fn restart(self: &Rc<Self>, timeout: Option<Duration>) -> Result<()> {
        self.wish.set(Wish::Restart);
        self.wished.ring();
        self.end_run(timeout).await
    }

    /// End the process that runs now.
    pub async fn end_run(&self, timeout: Option<Duration>) -> Result<()> {
        let Some(run) = self.run.borrow().clone() else { return Ok(()) };
        let timeout = timeout.unwrap_or(self.options.stop_timeout);
        if self.state.borrow().status == Status::Paused {
            run.container.resume(&self.host).await?;
            self.change(|state| state.status = Status::Running)?;
        }
        self.signal(&run, self.options.stop_signal)?;
        if self.host.on.within(timeout, run.over.wait()).await.is_none() {
            self.signal(&run, 9)?;
            run.over.wait().await;
        }
        Ok(())
    }

    /// The same, beside everything else.
    pub fn end_soon(self: &Rc<Self>) {
        let this = self.clone();
        self.host.on.spawn(async move {
            if let Err(e) = this.end_run(None).await {
                log::warn!("{}", report::line(&e));
            }
        });
    }

    /// To the process that the pidfd stands for, and to no other one.
    pub fn signal(&self, run: &Run, signal: i32) -> Result<()> {
        match sys::process::pidfd_signal(run.pidfd.as_fd(), signal) {
            Ok(()) => Ok(()),
            // It has ended, which is told elsewhere.
            Err(e) if e.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(()),
            Err(e) => Err(e).with_context(|| format!("send signal {signal} to process {}", run.pid)),
        }
    }

    pub async fn set_paused(&self, paused: bool) -> Result<()> {
        let Some(run) = self.run.borrow().clone() else {
            return crate::task::wrong_state(format!("{}: it does not run", self.dir.id));
        };
        if paused {
            run.container.pause(&self.host).await?;
        } else {
            run.container.resume(&self.host).await?;
        }
        self.change(|state| state.status = if paused { Status::Paused } else { Status::Running })
    }

    // ------------------------------------------------------------------ others

    /// Tell systemd that it runs (sd_notify(3)).
    fn notify(&self, pid: i32) {
        let Some(path) = &self.options.notify else { return };
        let text = format!("MAINPID={pid}\nREADY=1\n");
        if let Err(e) = sys::socket::send_datagram(path, text.as_bytes()) {
            log::warn!("notify {}: {e}", path.display());
        }
    }

    fn exit_file(&self) -> Result<()> {
        let Some(path) = &self.options.exit_file else { return Ok(()) };
        let status = self.state.borrow().exit_code.unwrap_or(255);
        sys::fd::publish(path, status.to_string().as_bytes())
            .with_context(|| format!("write {}", path.display()))
    }

    /// Started, and not waited for: it may well call us.
    fn exit_command(&self) {
        let Some((program, args)) = self.options.exit_command.split_first() else { return };
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sys::process::in_new_session(&mut command);
        match command.spawn().and_then(|mut child| child.wait()) {
            Ok(_) => {}
            Err(e) => log::warn!("exit command {program}: {e}"),
        }
    }
}

/// The runtime, as the options name it.
pub fn client(options: &Options) -> Client {
    Client {
        program: options.runtime.clone(),
        root: options.runtime_root.clone(),
        systemd_cgroup: options.systemd_cgroup,
        criu: None,
    }
}

fn pause_after(in_a_row: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << in_a_row.min(16)).min(LONGEST_PAUSE)
}

/// From what shells make of it.
fn exit_from(status: i32) -> Exit {
    if status > 128 { Exit::Signal(status - 128) } else { Exit::Code(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_as_dockers() {
        let pauses: Vec<u128> = [0, 1, 2, 9, 10, 1000].iter().map(|n| pause_after(*n).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 51_200, 60_000, 60_000]);
    }
}
