//! `exec`: one more process in a running container.

use std::path::PathBuf;

use anyhow::{Context, Result};
use report::{Explain, Kind, error};

use super::Globals;
use super::plain::{Known, Said, Until};
use crate::cgroup::Sub;
use crate::launch::exec::{self, Exec};
use crate::launch::foreground;
use crate::plan;
use crate::plan::seccomp::Filter;
use crate::state::{Dir, Status};

/// Run another process in a running container.
///
/// It gets the container's namespaces, cgroup, capabilities, seccomp profile and environment, unless an option or
/// `--process` says otherwise. The exit code is the process's own; 255 when it could not be started.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = "Example:\n  berth-runtime exec --tty --env TERM=xterm web sh")]
pub struct Args {
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// The program and its arguments (not with --process)
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    command: Vec<String>,
    /// Read the process from this JSON file: the `process` of a config.json
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Allocate a terminal
    #[arg(short, long)]
    tty: bool,
    /// UID[:GID]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Supplementary group ids
    #[arg(short = 'g', long, value_name = "GID", value_delimiter = ',')]
    additional_gids: Vec<u32>,
    /// The working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// NAME=value, several times
    #[arg(short, long, value_name = "ENV")]
    env: Vec<String>,
    /// Add a capability (CAP_NET_ADMIN), several times
    #[arg(short, long, value_name = "CAP")]
    cap: Vec<String>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Gain no privileges by executing programs
    #[arg(long)]
    no_new_privs: bool,
    /// Send the terminal's master to this unix socket
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Send a pidfd of the process to this unix socket
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
    /// Write the pid of the process to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Do not wait for the process
    #[arg(short, long)]
    detach: bool,
    /// Pass this many descriptors beyond the standard ones
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Run in a sub-cgroup of the container's ([CONTROLLER,…:]PATH on v1)
    #[arg(long, value_name = "PATH")]
    cgroup: Vec<String>,
    /// Also in a paused container: the process waits until it is resumed
    #[arg(long)]
    ignore_paused: bool,
}

impl Args {
    /// From a plain command line.
    pub fn plain(line: &[&str]) -> Option<Args> {
        const KNOWN: &[Known] = &[
            Known("process", Some(b'p'), true),
            Known("tty", Some(b't'), false),
            Known("user", Some(b'u'), true),
            Known("cwd", None, true),
            Known("console-socket", None, true),
            Known("pid-file", None, true),
            Known("detach", Some(b'd'), false),
        ];
        let said = Said::read(KNOWN, line, Until::Word(2))?;
        let (id, command) = said.words.split_first()?;
        if command.contains(&"--") {
            return None;
        }
        Some(Args {
            id: (*id).into(),
            command: command.iter().map(|&word| word.into()).collect(),
            process: said.get("process"),
            tty: said.has("tty"),
            user: said.get("user"),
            cwd: said.get("cwd"),
            console_socket: said.get("console-socket"),
            pid_file: said.get("pid-file"),
            detach: said.has("detach"),
            ..Args::default()
        })
    }
}

/// Run the process; the result is its exit status.
pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    let id = args.id.clone();
    run_in(globals, args).with_context(|| format!("exec {id}")).kind(Kind::CannotExecute)
}

fn run_in(globals: &Globals, args: Args) -> Result<i32> {
    let signals =
        if args.detach { None } else { Some(sys::signals::Signals::block().context("block signals")?) };
    let dir = Dir::open(&globals.root, &args.id)?;
    let state = dir.load()?;
    match dir.status(&state)? {
        Status::Created | Status::Running => {}
        Status::Paused if args.ignore_paused => {}
        Status::Paused => {
            return Err(error(Kind::WrongState, "cannot exec in a paused container"))
                .hint(|| "resume it, or use --ignore-paused".to_owned());
        }
        status @ (Status::Creating | Status::Stopped) => {
            return Err(error(Kind::WrongState, format!("cannot exec in a {status} container")));
        }
    }
    super::create::check_preserved(args.preserve_fds)?;
    let details = state.details()?;
    let process = match (&args.process, &details.process) {
        (Some(path), _) => {
            let bytes = std::fs::read(path).with_context(|| format!("--process: read {}", path.display()))?;
            let process = crate::bundle::parse_process(&bytes)
                .with_context(|| format!("--process {}", path.display()))?;
            plan::exec::with_defaults(details.process.as_ref(), process)
        }
        (None, Some(base)) => {
            if args.command.is_empty() {
                return Err(error(Kind::BadInput, "nothing to run: give a COMMAND or --process"));
            }
            let flags = plan::exec::Flags {
                args: args.command.clone(),
                cwd: args.cwd.clone(),
                env: args.env.clone(),
                tty: args.tty,
                user: args.user.clone(),
                additional_gids: args.additional_gids.clone(),
                process_label: args.process_label.clone(),
                apparmor: args.apparmor.clone(),
                no_new_privs: args.no_new_privs,
                caps: args.cap.clone(),
            };
            plan::exec::with_flags(base, &flags)?
        }
        (None, None) => {
            return Err(error(Kind::BadInput, "the container has no process to start from: use --process"));
        }
    };
    let mut process_plan = plan::process::plan(&process)?;
    if state.namespaces & sys::process::flags::NEWUSER == 0 {
        let ours = sys::credentials::permitted().context("read our capabilities")?;
        process_plan.credentials.capabilities.limit_to(ours);
    }
    if args.console_socket.is_none() {
        super::create::size_as_ours(&mut process_plan);
    }
    if process_plan.terminal && args.detach && args.console_socket.is_none() {
        return Err(error(Kind::BadInput, "--tty with --detach needs --console-socket"));
    }
    let seccomp = match state.seccomp() {
        [] => None,
        bytes => Some(Filter::from_bytes(bytes)?),
    };
    let foreground = exec::start(&Exec {
        state: &state,
        process: process_plan,
        seccomp,
        landlock: details.landlock,
        common: details.common,
        console_socket: args.console_socket,
        pidfd_socket: args.pidfd_socket,
        pid_file: args.pid_file,
        preserve_fds: args.preserve_fds,
        cgroup: Sub::parse(&args.cgroup)?,
    })?;
    match signals {
        Some(signals) => Ok(foreground::attend(&foreground, &signals)?.status()),
        None => Ok(0),
    }
}
