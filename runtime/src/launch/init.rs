//! The container's first process, from the clone to the program.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use sys::process::{self, flags};
use sys::signals::Signals;
use sys::{socket, tty};

use super::channel::Channel;
use super::stage::{self, Open};
use crate::cgroup::Cgroup;
use crate::plan::Plan;
use crate::setup::attributes::{self, Of};
use crate::setup::credentials::{self, Surroundings};
use crate::setup::hooks::{self, ContainerState};
use crate::setup::{common, landlock, net_devices, program, rootfs, sysctl, terminal};
use crate::state::Status;

/// What `start` says on the start socket.
pub const START: &[u8] = b"start";

/// What init inherits from its parent.
#[derive(Debug)]
pub struct Inherited {
    pub sources: rootfs::Sources,
    pub joined: Vec<Open>,
    /// The connected `--console-socket`.
    pub console: Option<OwnedFd>,
    /// Where to wait for `start` (`create`); none in `run`.
    pub start: Option<Start>,
    /// setgroups(2) is denied in the new user namespace: decided by the parent, who writes the maps.
    pub groups_denied: bool,
    /// A stage has joined the namespaces already.
    pub staged: bool,
    /// The parent starts a scope with us in it first.
    pub wait_for_cgroup: bool,
}

/// Where init waits for `start`.
#[derive(Debug)]
pub enum Start {
    /// A listening socket beside the container's state.
    Listener(OwnedFd),
    /// Both ends of a pair: ours, and the one that `start` takes (`state::Door`).
    Pair(OwnedFd, OwnedFd),
}

/// Do everything; returns only with an error, and with the end that wants to hear of it.
pub fn run(plan: &Plan, cgroup: &Cgroup, inherited: Inherited, channel: Channel) -> ! {
    let mut report_to = channel;
    let error = match build_and_execute(plan, cgroup, inherited, &mut report_to) {
        Ok(never) => match never {},
        Err(e) => e,
    };
    report_to.failed(&error);
    process::exit_now(1)
}

fn build_and_execute(
    plan: &Plan,
    cgroup: &Cgroup,
    inherited: Inherited,
    channel: &mut Channel,
) -> Result<std::convert::Infallible> {
    let Inherited { sources, joined, console, start, groups_denied, staged, wait_for_cgroup } = inherited;
    process::set_parent_death_signal(9).context("watch the parent")?;
    if channel.is_closed() {
        return Err(anyhow!("the parent is gone"));
    }
    process::setsid().context("start a session")?;

    if plan.idmap.is_some() {
        channel.need_maps()?;
        channel.wait()?;
    }
    if wait_for_cgroup {
        channel.wait()?;
    }
    if plan.idmap.is_none() && !staged {
        // With a user namespace the parent has done it, or the stage.
        attributes::with_host_rights(&plan.process.attributes, Of::Ourselves, false)?;
    }
    cgroup.join().context("enter the cgroups")?;
    if !staged {
        stage::join_all(&joined)?;
    }
    drop(joined);
    if plan.idmap.is_some() {
        enter_user_namespace(plan, groups_denied)?;
    }
    common::join_keyring(&plan.common, &plan.id)?;
    if plan.namespaces.new & flags::NEWCGROUP != 0 {
        process::unshare(flags::NEWCGROUP).context("make a cgroup namespace")?;
    }
    if !plan.namespaces.time_offsets.is_empty() || plan.namespaces.new & flags::NEWTIME != 0 {
        // Takes effect at the next execve(2), which is when nobody has read a clock of it yet.
        process::unshare(flags::NEWTIME).context("make a time namespace")?;
        std::fs::write("/proc/self/timens_offsets", &plan.namespaces.time_offsets)
            .context("linux.timeOffsets: write /proc/self/timens_offsets")?;
    }
    if let Some(name) = &plan.hostname {
        process::set_hostname(name).with_context(|| format!("hostname: set {name}"))?;
    }
    if let Some(name) = &plan.domainname {
        process::set_domainname(name).with_context(|| format!("domainname: set {name}"))?;
    }

    if plan.namespaces.new & flags::NEWNET != 0 {
        net_devices::switch_on_loopback()?;
    }

    let root = rootfs::build(&plan.rootfs, sources)?;
    let hooks = &plan.hooks;
    let parent_has_work = !plan.net_devices.is_empty() || plan.rdt.is_some();
    if parent_has_work || !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty() {
        channel.run_hooks()?;
        channel.wait()?;
    }
    let state = ContainerState {
        oci_version: &plan.oci_version,
        id: &plan.id,
        pid: process::own_pid(),
        bundle: &plan.bundle,
        annotations: &plan.annotations,
    };
    if !hooks.create_container.is_empty() {
        hooks::run("createContainer", &hooks.create_container, &state.json(Status::Creating), None)?;
    }
    rootfs::enter(&plan.rootfs, &root)?;
    if plan.process.terminal {
        let (master, slave) = tty::open_pair(root.fd(), "dev/ptmx")
            .or_else(|_| tty::open_pair(root.fd(), "dev/pts/ptmx"))
            .context("process.terminal: open a terminal of the container's /dev/pts")?;
        root.mount_console(slave.as_fd())?;
        let master = terminal::adopt((master, slave), plan.process.size)?;
        match &console {
            Some(socket) => terminal::send(socket.as_fd(), master.as_fd())?,
            None => channel.terminal(master.as_fd())?,
        }
    }
    drop(console);
    sysctl::apply(&plan.sysctl)?;
    rootfs::finish(&plan.rootfs, root)?;

    let c = &plan.process.credentials;
    if c.uid != 0 {
        credentials::own_streams(c.uid)?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(c.umask));
    program::enter_directory(&plan.process.cwd)?;
    let env = program::with_home(&plan.process.env, c.uid)?;
    let path = program::find(&plan.process.args[0], &env)?;

    process::set_parent_death_signal(0).context("let the parent go")?;
    if let Some(start) = start {
        let signals = Signals::block().context("block signals")?;
        channel.ready()?;
        wait_for_start(start, &signals, channel)?;
    }
    if !hooks.start_container.is_empty() {
        hooks::run("startContainer", &hooks.start_container, &state.json(Status::Created), None)?;
    }
    execute(&Last { plan, path: &path, env: &env, may_set_groups: !groups_denied }, channel)
}

/// Wait until `start` says so; a connection that says nothing asks whether we still wait. When we go on, nothing of where we waited is
/// left: that is how others see it. The first process of
/// a pid namespace gets no signal that it does not ask for, so those that would end another process end us here.
fn wait_for_start(start: Start, signals: &Signals, channel: &mut Channel) -> Result<()> {
    channel.hang_up();
    let (socket, pair) = match start {
        Start::Listener(listener) => (listener, None),
        Start::Pair(ours, theirs) => (ours, Some(theirs)),
    };
    let mut patience = 100;
    loop {
        let mut fds = [PollFd::new(&socket, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        match rustix::io::retry_on_intr(|| poll(&mut fds, None)) {
            Ok(_) => {}
            // The container exists and nobody is there to hear of a shortage: it may pass.
            Err(_) if patience > 0 => {
                patience -= 1;
                std::thread::sleep(std::time::Duration::from_millis(10));
                continue;
            }
            Err(e) => return Err(e).context("wait for start"),
        }
        while let Some(signal) = signals.next().context("read signals")? {
            if signals.is_deadly(signal) {
                process::exit_now(128 + signal);
            }
        }
        if !fds[0].revents().contains(PollFlags::IN) {
            continue;
        }
        let mut said = [0; 16];
        if pair.is_some() {
            let (n, _) = socket::receive(socket.as_fd(), &mut said).context("hear what start says")?;
            if said[..n] == *START {
                *channel = Channel::from(socket);
                return Ok(());
            }
            continue;
        }
        let connection = socket::accept(socket.as_fd()).context("wait for start")?;
        match socket::receive(connection.as_fd(), &mut said) {
            Ok((n, _)) if said[..n] == *START => {
                *channel = Channel::from(connection);
                return Ok(());
            }
            // It asked whether we still wait, or was killed.
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(Errno::CONNRESET.raw_os_error()) => {}
            // `start` takes a silent end for success: it must hear of this.
            Err(e) => {
                *channel = Channel::from(connection);
                return Err(e).context("hear what start says");
            }
        }
    }
}

fn enter_user_namespace(plan: &Plan, groups_denied: bool) -> Result<()> {
    let Some(map) = &plan.idmap else { return Ok(()) };
    let mapped = crate::plan::idmap::maps(&map.uids, 0) && crate::plan::idmap::maps(&map.gids, 0);
    if !groups_denied && !sys::credentials::leave_groups() {
        return Err(anyhow!("leave the caller's groups: setgroups is denied in the user namespace"));
    }
    if mapped {
        sys::credentials::become_root().context("become root of the user namespace")?;
    }
    Ok(())
}

struct Last<'a> {
    plan: &'a Plan,
    path: &'a CStr,
    env: &'a [CString],
    may_set_groups: bool,
}

/// The last steps: Landlock, descriptors, the trampoline.
fn execute(last: &Last<'_>, channel: &Channel) -> Result<std::convert::Infallible> {
    let plan = last.plan;
    let around = Surroundings {
        seccomp: plan.seccomp.as_ref(),
        report: channel.as_fd(),
        may_set_groups: last.may_set_groups,
        attributes: &plan.process.attributes,
    };
    common::apply(&plan.common)?;
    attributes::apply(&plan.process.attributes)?;
    let mut program = credentials::program(&plan.process.credentials, &around)?;
    program.execve(&format!("exec {}", last.path.to_string_lossy()), last.path);
    become_program(program, plan.landlock.as_ref(), plan.preserve_fds, channel, &plan.process.args, last.env)
}

/// Shared with `exec`: close what is not the container's, restrict ourselves, and become the program.
pub fn become_program(
    program: sys::trampoline::Program,
    rules: Option<&crate::plan::landlock::Landlock>,
    preserve_fds: u32,
    channel: &Channel,
    args: &[CString],
    env: &[CString],
) -> Result<std::convert::Infallible> {
    if process::euid() != 0 {
        sys::credentials::keep_across_exec().context("keep capabilities")?;
    }
    if let Some(rules) = rules {
        landlock::apply(rules)?;
    }
    process::close_on_exec_from(3 + preserve_fds).context("close descriptors")?;
    process::reset_signals().context("reset signals")?;
    let args: Vec<&CStr> = args.iter().map(CString::as_c_str).collect();
    let env: Vec<&CStr> = env.iter().map(CString::as_c_str).collect();
    channel.executing()?;
    Err(anyhow::Error::new(program.execute(channel.as_fd(), &args, &env)).context("execute the last steps"))
}
