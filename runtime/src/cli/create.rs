//! `create`: a container whose process waits for `start`.

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use report::{Explain, Kind, error};

use super::Globals;
use super::plain::{Known, Said, Until};
use crate::host::Host;
use crate::launch::container::{self, Outcome, Wishes};
use crate::launch::notify;
use crate::plan::{Options, Plan};

/// Create a container; its process waits for `start`.
///
/// Everything is made and checked now: namespaces, mounts, cgroups, hooks. The program of config.json runs when
/// `start` says so. After an error nothing is left.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  berth-runtime create --bundle web --pid-file web.pid web")]
pub struct Args {
    /// The name of the container: unique below --root
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    #[command(flatten)]
    pub common: Common,
}

/// What `create` and `run` share.
#[derive(Debug, Default, clap::Args)]
pub struct Common {
    /// The directory with config.json [default: the current directory]
    #[arg(short, long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Send the terminal's master to this unix socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Send a pidfd of the container's process to this unix socket
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Write the pid of the container's process to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Move the root instead of pivot_root, for a root on a ramdisk (less safe)
    #[arg(long)]
    pub no_pivot: bool,
    /// Do not make a session keyring for the container
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass this many descriptors beyond the standard ones to the container
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
}

impl Args {
    /// From a plain command line.
    pub fn plain(line: &[&str]) -> Option<Args> {
        let said = Said::read(PLAIN, line, Until::End)?;
        match said.words[..] {
            [id] => Some(Args { id: id.into(), common: Common::plain(&said) }),
            _ => None,
        }
    }
}

/// Options of a plain command line.
pub const PLAIN: &[Known] = &[
    Known("bundle", Some(b'b'), true),
    Known("console-socket", None, true),
    Known("pid-file", None, true),
    Known("no-pivot", None, false),
    Known("no-new-keyring", None, false),
];

impl Common {
    /// What [`PLAIN`] says.
    pub fn plain(said: &Said<'_>) -> Common {
        Common {
            bundle: said.get("bundle"),
            console_socket: said.get("console-socket"),
            pid_file: said.get("pid-file"),
            no_pivot: said.has("no-pivot"),
            no_new_keyring: said.has("no-new-keyring"),
            ..Common::default()
        }
    }
}

/// Create the container.
pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    let created = create(globals, &args.id, &args.common, false, true)?;
    let Outcome { dir: _dir, pidfd: _pidfd, terminal: _terminal, notify: _, state } = created;
    std::mem::forget(state); // see `create`
    Ok(0)
}

/// For `create` and `run`.
pub fn create(globals: &Globals, id: &str, args: &Common, run: bool, detach: bool) -> Result<Outcome> {
    let doing = || format!("{} {id}", if run { "run" } else { "create" });
    // What it takes for a config of some kilobytes; a longer one only causes the usual page faults.
    sys::alloc::expect(100 << 10, 56 << 10);
    let make = || -> Result<Outcome> {
        crate::id::check(id)?;
        let bundle = match &args.bundle {
            Some(dir) => std::path::absolute(dir).context("--bundle")?,
            None => std::env::current_dir().context("current directory")?,
        };
        let listen_fds = listen_fds();
        let preserve_fds = args.preserve_fds.saturating_add(listen_fds);
        check_preserved(preserve_fds)?;
        // Not given back: this process ends soon, and after the clone every page that a freed piece is noted in would
        // have to be copied first.
        let loaded = ManuallyDrop::new(crate::bundle::load(&bundle)?);
        let host = Host::gather()?.with_rootless(globals.rootless.forced());
        let notify = notify::wanted();
        let folder = || {
            std::path::absolute(crate::state::more(&globals.root, id).join(notify::FOLDER)).context("--root")
        };
        let options = Options {
            id: id.to_owned(),
            bundle,
            systemd_cgroup: globals.systemd_cgroup,
            no_pivot: args.no_pivot,
            no_new_keyring: args.no_new_keyring,
            preserve_fds,
            listen_fds,
            console_socket: args.console_socket.is_some(),
            detach,
            notify: notify.is_some().then(folder).transpose()?,
        };
        let mut plan = ManuallyDrop::new(Plan::new(&loaded, &options, &host)?);
        if args.console_socket.is_none() {
            size_as_ours(&mut plan.process);
        }
        let wishes = Wishes {
            console_socket: args.console_socket.clone(),
            pidfd_socket: args.pidfd_socket.clone(),
            pid_file: args.pid_file.as_deref().map(absolute).transpose()?,
            notify,
            run,
        };
        container::create(&globals.root, &plan, &host, &wishes)
    };
    make().with_context(doing)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context("--pid-file")
}

/// A terminal that we attend to ourselves begins with the size of ours, unless it has one already.
pub fn size_as_ours(process: &mut crate::plan::process::ProcessPlan) {
    if process.terminal && process.size.is_none() {
        process.size = sys::tty::size(rustix::stdio::stdin()).ok();
    }
}

/// How many sockets systemd hands to us, to be passed on (sd_listen_fds(3)).
fn listen_fds() -> u32 {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
    match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == std::process::id() => count,
        _ => 0,
    }
}

/// The descriptors to pass on must be there: our own would otherwise take their numbers.
pub fn check_preserved(count: u32) -> Result<()> {
    for fd in 3..3u32.saturating_add(count) {
        if !sys::fd::is_open(fd) {
            return Err(error(
                Kind::BadInput,
                format!("--preserve-fds {count}: descriptor {fd} is not open"),
            ))
            .hint(|| "descriptors are counted from 3 without gaps".to_owned());
        }
    }
    Ok(())
}
