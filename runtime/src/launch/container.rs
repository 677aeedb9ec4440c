//! The parent's side of creating a container, and `start`.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use report::{Explain, Kind, error};
use sys::process::{self, Birth, Cloned, flags};
use sys::socket;

use super::channel::{self, Channel, FromChild};
use super::init::{self, Inherited, Start};
use super::notify::{self, Notify};
use super::{idmaps, stage};
use crate::cgroup::{self, Cgroup};
use crate::host::Host;
use crate::plan::Plan;
use crate::plan::seccomp::Filter;
use crate::setup::attributes::{self, Of};
use crate::setup::hooks::{self, ContainerState};
use crate::setup::{net_devices, rdt, rootfs, sysctl};
use crate::state::{self, Dir, Door, START_SOCKET, State, Status};

/// capabilities(7), as a bit.
const CAP_SYS_PTRACE: u64 = 1 << 19;

/// What the caller wants of [`create`].
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    pub console_socket: Option<PathBuf>,
    /// `--pidfd-socket`: gets a pidfd of the container's process.
    pub pidfd_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    /// Where to tell that it is ready (`NOTIFY_SOCKET`); its plan has the mount.
    pub notify: Option<OsString>,
    /// Execute the program at once (`run`), do not wait for `start`.
    pub run: bool,
}

/// A container that was created (or, with `Wishes::run`, is running).
#[derive(Debug)]
pub struct Outcome {
    pub dir: Dir,
    pub state: State,
    pub pidfd: OwnedFd,
    /// The master of its terminal, when nobody else got it.
    pub terminal: Option<OwnedFd>,
    /// Where its readiness will be heard of, with `Wishes::run`.
    pub notify: Option<Notify>,
}

/// Create a container by `plan`. After an error nothing of it is left.
pub fn create(root: &Path, plan: &Plan, host: &Host, wishes: &Wishes) -> Result<Outcome> {
    // What needs nothing but opening is opened first: a mistake there has not made anything.
    let console = wishes.console_socket.as_deref().map(|p| connect("--console-socket", p)).transpose()?;
    let pidfd_socket = wishes.pidfd_socket.as_deref().map(|p| connect("--pidfd-socket", p)).transpose()?;
    let joined = stage::open(&plan.namespaces.joined)?;
    check_kernel(plan)?;
    for ns in &joined {
        sysctl::check(&plan.sysctl, ns.flag, ns.file.as_fd())?;
    }

    let mut state = first_state(plan, host, &root.join(&plan.id))?;
    let staged = !joined.is_empty()
        && (plan.namespaces.has(flags::NEWUSER) || plan.namespaces.joined_path(flags::NEWPID).is_some());
    // Who may trace init needs no file to reach it.
    let mut start = None;
    if !wishes.run && !staged && host.capabilities & CAP_SYS_PTRACE != 0 {
        let (ours, theirs) = socket::pair().context("make a socket pair")?;
        state.door = Some(Door::of(&theirs)?);
        start = Some(Start::Pair(ours, theirs));
    }
    let (dir, lock) = Dir::create(root, &plan.id)?;
    let mut made = Made { pid: None, cgroup: None, pid_file: None };
    let result = dir.begin(&state).and_then(|()| {
        let notify = match &wishes.notify {
            None => None,
            Some(to) => {
                notify::make_folder(&dir)?;
                if wishes.run { Notify::listen(&dir, to)? } else { None }
            }
        };
        let parts = Parts { dir: &dir, plan, host, wishes, console, pidfd_socket, joined, staged, start };
        let (pidfd, terminal) = launch(parts, &mut state, &mut made, lock)?;
        Ok((pidfd, terminal, notify))
    });
    match result {
        Ok((pidfd, terminal, notify)) => Ok(Outcome { dir, state, pidfd, terminal, notify }),
        Err(e) => Err(undo(e, &dir, &state, made)),
    }
}

/// What only some kernels have.
fn check_kernel(plan: &Plan) -> Result<()> {
    attributes::check_labels(&plan.process.attributes)?;
    attributes::check_mount_label(plan.rootfs.mount_label.as_deref())?;
    if plan.rdt.is_some() {
        rdt::check()?;
    }
    plan.landlock.as_ref().map_or(Ok(()), |rules| rules.check(sys::kernel::landlock_abi().unwrap_or(0)))
}

struct Parts<'a> {
    dir: &'a Dir,
    plan: &'a Plan,
    host: &'a Host,
    wishes: &'a Wishes,
    console: Option<OwnedFd>,
    pidfd_socket: Option<OwnedFd>,
    joined: Vec<stage::Open>,
    /// Some namespaces are joined by a stage, before the clone.
    staged: bool,
    start: Option<Start>,
}

/// What must be undone after an error, beside the state.
struct Made {
    pid: Option<i32>,
    cgroup: Option<cgroup::Record>,
    pid_file: Option<PathBuf>,
}

fn launch(
    parts: Parts<'_>,
    state: &mut State,
    made: &mut Made,
    lock: state::Lock,
) -> Result<(OwnedFd, Option<OwnedFd>)> {
    let Parts { dir, plan, host, wishes, console, pidfd_socket, joined, staged, mut start } = parts;
    let sources = rootfs::open_sources(&plan.rootfs)?;
    let listen = || {
        socket::listen_at(dir.more()?.as_fd(), START_SOCKET)
            .map(Start::Listener)
            .context("make the start socket")
    };
    if start.is_none() && !wishes.run {
        start = Some(listen()?);
    }
    made.cgroup = Some(state.cgroup.clone());
    let mut cgroup = Cgroup::create(&plan.cgroup, &state.cgroup)?;
    if *cgroup.now() != state.cgroup {
        // We go on without one, and `exec` must not look for it.
        state.cgroup = cgroup.now().clone();
        dir.save(state)?;
    }

    let (mut ours, mut theirs) = channel::pair()?;
    // Whoever shares our pid namespace must not reach this program through /proc/<pid>/exe. Id maps are written
    // through /proc files that an unprivileged user loses with that, so then it is done by init itself.
    if plan.namespaces.joined_path(flags::NEWPID).is_some() && host.euid == 0 {
        process::set_not_dumpable().context("hide ourselves")?;
    }
    // The cgroup namespace is made once we are in the cgroup, the time namespace takes effect at execve(2).
    let new = plan.namespaces.new & !(flags::NEWCGROUP | flags::NEWTIME);
    // A scope of systemd is made around the process, which therefore cannot be cloned into it.
    let into = if cgroup.needs_pid_first() { None } else { cgroup.clone_into() };
    let mut inherited = Inherited {
        sources,
        joined,
        console,
        start,
        groups_denied: match &plan.idmap {
            Some(map) => host.euid != 0 && idmaps::groups_denied(map, host.egid),
            None => host.rootless && idmaps::groups_denied_here(),
        },
        staged,
        wait_for_cgroup: cgroup.needs_pid_first(),
    };

    // In the container's user namespace the stage has no right to clone into the cgroup, so it comes from there.
    let (stage_into, into) = if plan.namespaces.has(flags::NEWUSER) { (into, None) } else { (None, into) };
    if !wishes.run {
        process::set_name(state::WAITING).context("name what waits for start")?;
    }
    let (mut pid, mut pidfd) = loop {
        let cloned = if staged {
            process::clone3(0, stage_into).context("clone the stage")?
        } else {
            process::clone3(new, into.or(stage_into)).context("clone the container's process")?
        };
        let (pid, pidfd) = match cloned {
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
            Cloned::Child => {
                drop(lock);
                drop(ours);
                if staged {
                    let result = process::set_parent_death_signal(9)
                        .context("watch the parent")
                        .and_then(|()| {
                            attributes::with_host_rights(&plan.process.attributes, Of::Ourselves, true)
                        })
                        .and_then(|()| stage::run(&inherited.joined, new, into, &theirs));
                    if let Err(e) = result {
                        theirs.failed(&e);
                        process::exit_now(1);
                    }
                }
                init::run(plan, &cgroup, inherited, theirs)
            }
        };
        // With every right, a security module may still forbid it.
        if state.door.is_none_or(|door| matches!(door.open(pidfd.as_fd()), Ok(Some(_)))) {
            break (pid, pidfd);
        }
        process::pidfd_signal(pidfd.as_fd(), 9).context("end the process that nobody may reach")?;
        process::wait(pid).context("wait for the process that nobody may reach")?;
        state.door = None;
        dir.save(state)?;
        inherited.start = Some(listen()?);
        // What it has said meanwhile is not of its successor.
        (ours, theirs) = channel::pair()?;
    };
    if !wishes.run {
        sys::alloc::give_nothing_back();
    }
    drop((theirs, inherited));
    let mut early = VecDeque::new();
    if staged {
        let stage = pid;
        // Init may be quicker than the stage that tells of it: its words are kept.
        let next = loop {
            match ours.receive()? {
                word @ (FromChild::InitPid(..) | FromChild::Failed(_) | FromChild::Closed) => break word,
                word => early.push_back(word),
            }
        };
        process::wait(stage).context("wait for the stage")?;
        (pid, pidfd) = match next {
            FromChild::InitPid(pid, pidfd) => (pid, pidfd),
            FromChild::Failed(e) => return Err(e),
            other => return Err(anyhow!("the stage ended early ({other:?})")),
        };
    }
    made.pid = Some(pid);
    note_pid(dir, state, pid, pidfd.as_fd())?;
    let mut talk = Talk { early, staged, plan, host, pid, pidfd: &pidfd, channel: &ours };
    // Killed before it learns from the end of the conversation that nobody stops it any more.
    let ready = talk.until_ready(&mut cgroup, wishes.run);
    let terminal = ready.inspect_err(|_| process::pidfd_signal(pidfd.as_fd(), 9).unwrap_or_default())?;
    // systemd itself decides where a scope lies.
    if cgroup.needs_pid_first() && *cgroup.now() != state.cgroup {
        state.cgroup = cgroup.now().clone();
        dir.save(state)?;
    }

    if let Some(socket) = pidfd_socket {
        socket::send(socket.as_fd(), b"pidfd", &[pidfd.as_fd()])
            .context("send the pidfd to --pidfd-socket")?;
    }
    if let Some(path) = &wishes.pid_file {
        made.pid_file = Some(path.clone());
        write_pid_file(path, pid)?;
    }
    Ok((pidfd, terminal))
}

pub fn first_state(plan: &Plan, host: &Host, folder: &Path) -> Result<State> {
    let seccomp = plan.seccomp.as_ref().map(Filter::to_bytes).unwrap_or_default();
    let details = state::Details {
        resources: plan.resources.clone(),
        process: Some(plan.exec.clone()),
        landlock: plan.landlock.clone(),
        common: plan.common.clone(),
    };
    let state = State {
        version: state::VERSION,
        oci_version: plan.oci_version.clone(),
        id: plan.id.clone(),
        bundle: plan.bundle.clone(),
        rootfs: plan.rootfs.path.clone(),
        created: report::timestamp(),
        owner: host.euid,
        annotations: plan.annotations.clone(),
        cgroup: Cgroup::record(&plan.cgroup, folder),
        poststart: plan.hooks.poststart.clone(),
        poststop: plan.hooks.poststop.clone(),
        namespaces: plan.namespaces.all(),
        seccomp_listener: plan.seccomp.as_ref().and_then(|s| s.listener.clone()),
        intel_rdt: plan.rdt.as_ref().map(rdt::will_make).unwrap_or_default(),
        ..State::default()
    };
    state.with(&details, &seccomp)
}

/// From here on the container has a process.
pub fn note_pid(dir: &Dir, state: &mut State, pid: i32, pidfd: BorrowedFd<'_>) -> Result<()> {
    let birth = Birth::of(pid, pidfd).with_context(|| format!("look at process {pid}"))?;
    dir.save_process(state, pid, birth)
}

/// The parent's half of the conversation with init.
struct Talk<'a> {
    /// What init said before the stage had told of it.
    early: VecDeque<FromChild>,
    staged: bool,
    plan: &'a Plan,
    host: &'a Host,
    pid: i32,
    pidfd: &'a OwnedFd,
    channel: &'a Channel,
}

impl Talk<'_> {
    fn until_ready(&mut self, cgroup: &mut Cgroup, run: bool) -> Result<Option<OwnedFd>> {
        let (mut terminal, mut executing) = (None, false);
        if self.plan.idmap.is_none() {
            self.apply_cgroup(cgroup)?;
        }
        loop {
            let word = match self.early.pop_front() {
                Some(word) => word,
                None => self.channel.receive()?,
            };
            match word {
                FromChild::NeedMaps => {
                    if !self.staged {
                        attributes::with_host_rights(
                            &self.plan.process.attributes,
                            Of::Child(self.pid),
                            true,
                        )?;
                    }
                    if let Some(map) = &self.plan.idmap {
                        idmaps::write(self.pid, map, self.host.euid, self.host.egid)?;
                    }
                    self.channel.go_on()?;
                    self.apply_cgroup(cgroup)?;
                }
                FromChild::RunHooks => {
                    net_devices::move_into(&self.plan.net_devices, self.pid, self.pidfd.as_fd())?;
                    if let Some(group) = &self.plan.rdt {
                        rdt::enter(group, self.pid)?;
                    }
                    let state = container_state(self.plan, self.pid).json(Status::Creating);
                    let (dir, hooks) = (Some(self.plan.bundle.as_path()), &self.plan.hooks);
                    hooks::run("prestart", &hooks.prestart, &state, dir)?;
                    hooks::run("createRuntime", &hooks.create_runtime, &state, dir)?;
                    self.channel.go_on()?;
                }
                FromChild::Terminal(master) => terminal = Some(master),
                FromChild::SeccompListener(fd) => {
                    let state = container_state(self.plan, self.pid).json(Status::Creating);
                    let listener = self.plan.seccomp.as_ref().and_then(|s| s.listener.as_ref());
                    pass_listener(listener, self.pidfd, fd, self.pid, &state)?;
                    self.channel.go_on()?;
                }
                FromChild::Ready => return Ok(terminal),
                FromChild::Failed(e) => return Err(e),
                FromChild::Executing => executing = true,
                // In `run`, the end of the conversation is the program's beginning.
                FromChild::Closed if run && executing => return Ok(terminal),
                FromChild::Closed => return Err(self.vanished()),
                other @ FromChild::InitPid(..) => return Err(anyhow!("unexpected message {other:?}")),
            }
        }
    }

    fn apply_cgroup(&self, cgroup: &mut Cgroup) -> Result<()> {
        cgroup.apply(self.pid)?;
        if cgroup.needs_pid_first() { self.channel.go_on() } else { Ok(()) }
    }

    /// The container's process ended without a word.
    fn vanished(&self) -> anyhow::Error {
        // It may still be there: a process that closed its end of the conversation is of no use.
        process::pidfd_signal(self.pidfd.as_fd(), 9).unwrap_or_default();
        let how = match process::wait(self.pid) {
            Ok(process::Exit::Signal(9)) => "killed (out of memory?)".to_owned(),
            Ok(exit) => format!("ended with status {}", exit.status()),
            Err(e) => e.to_string(),
        };
        anyhow!("the container's process was lost while it was set up: {how}")
    }
}

fn container_state(plan: &Plan, pid: i32) -> ContainerState<'_> {
    ContainerState {
        oci_version: &plan.oci_version,
        id: &plan.id,
        pid,
        bundle: &plan.bundle,
        annotations: &plan.annotations,
    }
}

/// Hand the seccomp listener to the agent behind `listenerPath`.
fn pass_listener(
    listener: Option<&crate::plan::seccomp::Listener>,
    pidfd: &OwnedFd,
    fd: i32,
    pid: i32,
    state: &str,
) -> Result<()> {
    let listener = listener.ok_or_else(|| anyhow!("a seccomp listener came without a listenerPath"))?;
    let sent = process::pidfd_getfd(pidfd.as_fd(), fd)
        .context("fetch the seccomp listener")
        .and_then(|fd| crate::setup::seccomp_listener::send(listener, fd.as_fd(), pid, state));
    if sent.is_err() {
        // It waits for a word of ours, and would take the end of the conversation for one.
        process::pidfd_signal(pidfd.as_fd(), 9).context("stop the container's process")?;
    }
    sent
}

/// Undo, newest first; the first error stays the first.
fn undo(first: anyhow::Error, dir: &Dir, state: &State, made: Made) -> anyhow::Error {
    let mut more = Vec::new();
    if let Some(path) = made.pid_file
        && let Err(e) = std::fs::remove_file(&path)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        more.push(format!("remove {}: {e}", path.display()));
    }
    if let Some(pid) = made.pid {
        // By its number: it is our child, and may not be noted in the state yet.
        process::end_child(pid);
    }
    if let Some(record) = &made.cgroup
        && let Err(e) = cgroup::destroy(record)
    {
        more.push(report::line(&e));
    }
    if let Err(e) = rdt::remove(&state.intel_rdt) {
        more.push(report::line(&e));
    }
    if made.pid.is_some() {
        // runtime.md, "Lifecycle": after a hook that failed, it goes on with delete and poststop.
        hooks::run_all(
            "poststop",
            &state.poststop,
            &state.container_state().json(Status::Stopped),
            Some(&state.bundle),
        );
    }
    if let Err(e) = dir.remove() {
        more.push(report::line(&e));
    }
    if more.is_empty() { first } else { first.context(format!("(while undoing: {})", more.join("; "))) }
}

/// Write the pid as text: the whole file appears at once, and a writer that is killed leaves nothing.
pub fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    sys::fd::publish(path, pid.to_string().as_bytes())
        .with_context(|| format!("write --pid-file {}", path.display()))
}

fn connect(flag: &str, path: &Path) -> Result<OwnedFd> {
    socket::connect_stream(path).with_context(|| format!("{flag}: connect to {}", path.display()))
}

/// `start`: let the process of a created container execute its program.
pub fn start(dir: &Dir, state: &State) -> Result<()> {
    let refused = |status: Status| {
        Err(error(Kind::WrongState, format!("cannot start a container in the {status} state")))
    };
    let pidfd = state.pidfd()?;
    let connection = pidfd.as_ref().map(|pidfd| dir.reach(state, pidfd.as_fd())).transpose()?.flatten();
    let (Some(pidfd), Some(connection)) = (pidfd, connection) else { return refused(dir.status(state)?) };
    let channel = Channel::from(connection);
    socket::send(channel.as_fd(), init::START, &[]).context("wake the container's process")?;
    let mut executing = false;
    loop {
        match channel.receive()? {
            FromChild::Executing => executing = true,
            FromChild::Closed if executing => break,
            FromChild::Closed => {
                return Err(anyhow!("the container's process was lost before it executed its program"));
            }
            FromChild::Failed(e) => return Err(e),
            FromChild::SeccompListener(fd) => {
                let json = state.container_state().json(Status::Created);
                // Without its agent the program must not run.
                pass_listener(state.seccomp_listener.as_ref(), &pidfd, fd, state.pid, &json)
                    .inspect_err(|_| process::pidfd_signal(pidfd.as_fd(), 9).unwrap_or_default())?;
                channel.go_on()?;
            }
            other => return Err(anyhow!("unexpected message {other:?}")),
        }
    }
    Ok(())
}

/// The poststart hooks. If one fails the container is stopped and deleted (runtime.md, "Lifecycle", 1.3).
pub fn run_poststart(state: &State) -> Result<()> {
    if state.poststart.is_empty() {
        return Ok(());
    }
    hooks::run(
        "poststart",
        &state.poststart,
        &state.container_state().json(Status::Running),
        Some(&state.bundle),
    )
    .hint(|| "a failing poststart hook stops and deletes the container".to_owned())
}

/// Kill whatever is left of a container and remove it: cgroups, poststop hooks, state.
pub fn destroy(dir: &Dir, state: &State) -> Result<()> {
    if let Some(pidfd) = state.pidfd()? {
        match process::pidfd_signal(pidfd.as_fd(), 9) {
            Ok(()) => process::wait_pidfd(pidfd.as_fd()).context("wait for the container's process")?,
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            Err(e) => return Err(e).with_context(|| format!("kill process {}", state.pid)),
        }
    }
    remove(dir, state)
}

/// The same for one whose process has ended.
pub fn remove(dir: &Dir, state: &State) -> Result<()> {
    cgroup::destroy(&state.cgroup).context("remove the cgroups")?;
    rdt::remove(&state.intel_rdt)?;
    hooks::run_all(
        "poststop",
        &state.poststop,
        &state.container_state().json(Status::Stopped),
        Some(&state.bundle),
    );
    dir.remove()
}
