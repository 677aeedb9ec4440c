//! `restore`: wake a container from disk, with criu.

use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use report::{Explain, Kind, error};

use super::Globals;
use super::checkpoint::Images;
use crate::bundle;
use crate::criu::restore::{self, Restore};
use crate::host::Host;
use crate::launch::container::{self, Outcome};
use crate::launch::foreground::{self, Foreground};
use crate::plan::{self, Plan};

/// Wake a container that `checkpoint` wrote to disk.
///
/// It becomes a container like any other, in the same cgroup that `create` would give it; its processes go on
/// where they were.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  berth-runtime restore --bundle web --image-path /var/lib/images/web --detach web"
)]
pub struct Args {
    /// The name of the container: unique below --root
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    #[command(flatten)]
    images: Images,
    /// The folder with config.json [default: the current directory]
    #[arg(short, long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Do not wait: leave the container running in the background
    #[arg(short, long)]
    detach: bool,
    /// Write the pid of the container's process to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Send the terminal's master to this unix socket
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Do not adopt orphans of the container's processes
    #[arg(long)]
    no_subreaper: bool,
    /// Accepted as runc does: criu has its own way to enter the root
    #[arg(long)]
    no_pivot: bool,
    /// Restore with this LSM profile: apparmor:NAME or selinux:LABEL
    #[arg(long, value_name = "TYPE:NAME")]
    lsm_profile: Option<String>,
    /// Mount with this LSM context
    #[arg(long, value_name = "CONTEXT")]
    lsm_mount_context: Option<String>,
}

pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    let doing = || format!("restore {}", args.id);
    // Before there is a child, so that no signal and no exit is lost.
    let signals =
        if args.detach { None } else { Some(sys::signals::Signals::block().context("block signals")?) };
    if !args.no_subreaper && !args.detach {
        sys::process::set_subreaper().context("become a subreaper")?;
    }
    let Outcome { dir, state, pidfd, terminal, notify: _ } = restore(globals, &args).with_context(doing)?;
    let Some(signals) = signals else { return Ok(0) };
    let exit = foreground::attend(&Foreground { pid: state.pid, pidfd, terminal, notify: None }, &signals);
    let removed = container::destroy(&dir, &state);
    let exit = exit.with_context(doing)?;
    removed.with_context(doing)?;
    Ok(exit.status())
}

fn restore(globals: &Globals, args: &Args) -> Result<Outcome> {
    crate::id::check(&args.id)?;
    if args.no_pivot {
        log::debug!("--no-pivot: criu has its own way to enter the root");
    }
    let bundle = match &args.bundle {
        Some(dir) => std::path::absolute(dir).context("--bundle")?,
        None => std::env::current_dir().context("current directory")?,
    };
    let options = args.images.options()?;
    if !options.images.is_dir() {
        let message = format!("--image-path {}: no such directory", options.images.display());
        return Err(error(Kind::BadInput, message)).hint(|| "`checkpoint --image-path` makes it".to_owned());
    }
    let spec = bundle::load(&bundle)?;
    let host = Host::gather()?.with_rootless(globals.rootless.forced());
    let planning = plan::Options {
        id: args.id.clone(),
        bundle,
        systemd_cgroup: globals.systemd_cgroup,
        console_socket: args.console_socket.is_some(),
        detach: args.detach,
        ..plan::Options::default()
    };
    let plan = Plan::new(&spec, &planning, &host)?;
    let console = args.console_socket.as_deref().map(|path| {
        sys::socket::connect_stream(path)
            .with_context(|| format!("--console-socket: connect to {}", path.display()))
    });
    let console = console.transpose()?;
    let wishes =
        Restore { lsm_profile: args.lsm_profile.clone(), lsm_mount_context: args.lsm_mount_context.clone() };
    let mut outcome =
        restore::restore(&globals.criu, &options, &wishes, (&globals.root, &host), (&spec, &plan))?;
    let tell = |outcome: &mut Outcome| -> Result<()> {
        if let (Some(console), Some(master)) = (&console, outcome.terminal.take_if(|_| console.is_some())) {
            crate::setup::terminal::send(console.as_fd(), master.as_fd())?;
        }
        match &args.pid_file {
            Some(path) => container::write_pid_file(
                &std::path::absolute(path).context("--pid-file")?,
                outcome.state.pid,
            ),
            None => Ok(()),
        }
    };
    if let Err(e) = tell(&mut outcome) {
        container::destroy(&outcome.dir, &outcome.state)?;
        return Err(e);
    }
    Ok(outcome)
}
