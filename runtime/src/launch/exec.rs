//! One more process in a running container.
//!
//! ```text
//!  parent                                        child
//!  hidden from /proc (not dumpable)
//!  setns(pidfd, pid namespace): children only
//!  clone3 (into the v2 cgroup) ───────────────▶  die with the parent; enter the v1 cgroups
//!                                                setns(pidfd, all others): one call
//!         ◀──────────────────────── Terminal     (no console socket)
//!  pid file                                      working directory, program; trampoline: credentials, …
//!         ◀───────────────────── end of file     executed
//! ```
//! A caller without rights over the container's pid namespace (rootless) joins through a stage.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use report::{Explain, Kind, error};
use sys::process::{self, Cloned, flags};

use super::channel::{self, Channel, FromChild};
use super::foreground::Foreground;
use super::init;
use crate::cgroup::{Cgroup, Sub};
use crate::plan::common::Common;
use crate::plan::landlock::Landlock;
use crate::plan::process::ProcessPlan;
use crate::plan::seccomp::Filter;
use crate::setup::attributes::{self, Of};
use crate::setup::common;
use crate::setup::credentials::{self, Surroundings};
use crate::setup::{program, terminal};
use crate::state::{State, Status};

/// What `exec` runs, and how.
#[derive(Debug)]
pub struct Exec<'a> {
    pub state: &'a State,
    pub process: ProcessPlan,
    pub seccomp: Option<Filter>,
    pub landlock: Option<Landlock>,
    pub common: Common,
    pub console_socket: Option<PathBuf>,
    pub pidfd_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub preserve_fds: u32,
    /// `--cgroup`: a sub-cgroup of the container's.
    pub cgroup: Sub,
}

/// Start the process; it has executed its program when this returns.
pub fn start(exec: &Exec<'_>) -> Result<Foreground> {
    let state = exec.state;
    let gone = || error(Kind::WrongState, "cannot exec in a stopped container");
    let target = state.pidfd()?.ok_or_else(gone)?;
    attributes::check_labels(&exec.process.attributes)?;
    let connect = |flag: &str, path: &Option<PathBuf>| -> Result<Option<OwnedFd>> {
        path.as_ref()
            .map(|p| {
                sys::socket::connect_stream(p).with_context(|| format!("{flag}: connect to {}", p.display()))
            })
            .transpose()
    };
    let console = connect("--console-socket", &exec.console_socket)?;
    let pidfd_socket = connect("--pidfd-socket", &exec.pidfd_socket)?;
    let mut cgroup = Cgroup::open(&state.cgroup, &exec.cgroup)?;
    let (ours, theirs) = channel::pair()?;

    process::set_not_dumpable().context("hide ourselves")?;
    let privileged = process::euid() == 0;
    let pid_ns = state.namespaces & flags::NEWPID;
    if pid_ns != 0 && privileged {
        process::setns(target.as_fd(), flags::NEWPID).context("join the container's pid namespace")?;
    }
    let cloned = match process::clone3(0, cgroup.clone_into()) {
        // A container that has handed controllers down keeps its processes in sub-cgroups of its own.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
            cgroup = cgroup.beside(state.pid)?;
            process::clone3(0, cgroup.clone_into())
        }
        other => other,
    };
    let (mut pid, mut pidfd) = match cloned.context("clone the process")? {
        Cloned::Child => {
            drop(ours);
            let child = Child { exec, target: &target, cgroup: &cgroup, console };
            child.run(theirs, !privileged && pid_ns != 0)
        }
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop((theirs, console));
    if cgroup.needs_pid_first() {
        cgroup.apply(pid)?;
        ours.go_on()?;
    }
    let (mut master, mut executing) = (None, false);
    let result = (|| {
        loop {
            match ours.receive()? {
                FromChild::InitPid(next, fd) => {
                    process::wait(pid).context("wait for the stage")?;
                    (pid, pidfd) = (next, fd);
                }
                FromChild::Terminal(fd) => master = Some(fd),
                FromChild::SeccompListener(fd) => {
                    let listener = exec.seccomp.as_ref().and_then(|s| s.listener.as_ref());
                    let listener =
                        listener.ok_or_else(|| anyhow!("a seccomp listener without a listenerPath"))?;
                    let fd = process::pidfd_getfd(pidfd.as_fd(), fd).context("fetch the seccomp listener")?;
                    let json = state.container_state().json(Status::Running);
                    crate::setup::seccomp_listener::send(listener, fd.as_fd(), pid, &json)?;
                    ours.go_on()?;
                }
                FromChild::Failed(e) => return Err(e).kind(Kind::CannotExecute),
                FromChild::Executing => executing = true,
                FromChild::Closed if executing => break,
                FromChild::Closed => {
                    return Err(anyhow!("the process was lost before it executed its program"));
                }
                other => return Err(anyhow!("unexpected message {other:?}")),
            }
        }
        if let Some(path) = &exec.pid_file {
            super::container::write_pid_file(path, pid)?;
        }
        if let Some(socket) = &pidfd_socket {
            sys::socket::send(socket.as_fd(), b"pidfd", &[pidfd.as_fd()])
                .context("send the pidfd to --pidfd-socket")?;
        }
        Ok(())
    })();
    if let Err(e) = result {
        process::pidfd_signal(pidfd.as_fd(), 9).unwrap_or_default();
        // It is our child; if it is not any more there is nothing to wait for.
        process::wait_if_child(pid);
        return Err(e);
    }
    Ok(Foreground { pid, pidfd, terminal: master, notify: None })
}

struct Child<'a> {
    exec: &'a Exec<'a>,
    target: &'a OwnedFd,
    cgroup: &'a Cgroup,
    console: Option<OwnedFd>,
}

impl Child<'_> {
    fn run(mut self, channel: Channel, stage: bool) -> ! {
        let error = match self.join_and_execute(&channel, stage) {
            Ok(never) => match never {},
            Err(e) => e,
        };
        channel.failed(&error);
        process::exit_now(255)
    }

    fn join_and_execute(&mut self, channel: &Channel, stage: bool) -> Result<std::convert::Infallible> {
        let exec = self.exec;
        process::set_parent_death_signal(9).context("watch the parent")?;
        if channel.is_closed() {
            return Err(anyhow!("the parent is gone"));
        }
        if self.cgroup.needs_pid_first() {
            channel.wait()?;
        }
        let others = exec.state.namespaces & if stage { u64::MAX } else { !flags::NEWPID };
        let loses_rights = others & flags::NEWUSER != 0;
        attributes::with_host_rights(&exec.process.attributes, Of::Ourselves, loses_rights)?;
        attributes::exec_initial_cpus(&exec.process.attributes)?;
        self.cgroup.join().context("enter the container's cgroups")?;
        attributes::exec_final_cpus(&exec.process.attributes)?;
        if others != 0 {
            process::setns(self.target.as_fd(), others).context("join the container's namespaces")?;
        }
        if stage {
            match process::clone3(flags::PARENT, None).context("clone the process")? {
                Cloned::Parent { pid, pidfd } => {
                    channel.init_pid(pid, pidfd.as_fd())?;
                    process::exit_now(0)
                }
                Cloned::Child => process::set_parent_death_signal(9).context("watch the parent")?,
            }
        }
        let in_userns = others & flags::NEWUSER != 0;
        let may_set_groups = !in_userns || sys::credentials::leave_groups();
        if in_userns {
            // Without a root of its own the namespace gives its rights to whoever is in it.
            sys::credentials::become_root().unwrap_or_default();
        }
        common::join_keyring(&exec.common, &exec.state.id)?;
        process::setsid().context("start a session")?;
        let plan = &exec.process;
        if plan.terminal {
            let root = rustix::fs::open(
                "/",
                rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )
            .context("open the container's root")?;
            let pair = sys::tty::open_pair(root.as_fd(), "dev/ptmx")
                .or_else(|_| sys::tty::open_pair(root.as_fd(), "dev/pts/ptmx"))
                .context("open a terminal of the container's /dev/pts")?;
            let master = terminal::adopt(pair, plan.size)?;
            match self.console.take() {
                Some(socket) => terminal::send(socket.as_fd(), master.as_fd())?,
                None => channel.terminal(master.as_fd())?,
            }
        }
        let c = &plan.credentials;
        if c.uid != 0 {
            credentials::own_streams(c.uid)?;
        }
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(c.umask));
        program::enter_directory(&plan.cwd)?;
        let env = program::with_home(&plan.env, c.uid)?;
        let path = program::find(&plan.args[0], &env)?;
        common::apply(&exec.common)?;
        attributes::apply(&plan.attributes)?;
        let around = Surroundings {
            seccomp: exec.seccomp.as_ref(),
            report: channel.as_fd(),
            may_set_groups,
            attributes: &plan.attributes,
        };
        let mut last = credentials::program(c, &around)?;
        let path: &CStr = &path;
        last.execve(&format!("exec {}", path.to_string_lossy()), path);
        process::set_parent_death_signal(0).context("let the parent go")?;
        init::become_program(last, exec.landlock.as_ref(), exec.preserve_fds, channel, &plan.args, &env)
    }
}
