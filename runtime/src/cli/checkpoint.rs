//! `checkpoint`: write a container to disk, with criu.

use std::path::PathBuf;

use anyhow::{Context, Result};
use report::{Explain, Kind, error};

use super::Globals;
use crate::bundle;
use crate::criu::dump::{self, Dump};
use crate::criu::{CgroupMode, Options};
use crate::host::Host;
use crate::launch::container;
use crate::plan::{self, Plan};
use crate::state::{Dir, Status};

/// Write the processes of a container to disk, with criu.
///
/// The container is removed once it is on disk, unless it is left running. `restore` wakes it again, here or on
/// a host like this.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  berth-runtime checkpoint --image-path /var/lib/images/web web")]
pub struct Args {
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    #[command(flatten)]
    images: Images,
    /// The images of the pre-dump before, relative to --image-path
    #[arg(long, value_name = "DIR")]
    parent_path: Option<PathBuf>,
    /// Do not stop and remove the container
    #[arg(long)]
    leave_running: bool,
    /// Write memory alone and leave the container running: another checkpoint follows
    #[arg(long)]
    pre_dump: bool,
    /// Send memory to a page server
    #[arg(long, value_name = "ADDRESS:PORT")]
    page_server: Option<String>,
    /// criu writes a zero byte to this descriptor when lazy pages are ready
    #[arg(long, value_name = "FD", allow_negative_numbers = true)]
    status_fd: Option<i32>,
    /// Save files that were deleted while they are open, by linking them again
    #[arg(long)]
    link_remap: bool,
    /// Leave out TCP connections that are being made
    #[arg(long)]
    tcp_skip_in_flight: bool,
}

/// What `checkpoint` and `restore` share.
#[derive(clap::Args, Debug)]
pub struct Images {
    /// The folder of the images [default: checkpoint]
    #[arg(long, value_name = "DIR")]
    image_path: Option<PathBuf>,
    /// The folder of criu's log [default: the images']
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    /// Allow open TCP connections
    #[arg(long)]
    tcp_established: bool,
    /// Allow unix sockets whose other end is outside
    #[arg(long)]
    ext_unix_sk: bool,
    /// Allow a terminal that is not the container's own
    #[arg(long)]
    shell_job: bool,
    /// Handle file locks
    #[arg(long)]
    file_locks: bool,
    /// What becomes of cgroups: soft, full, strict or ignore
    #[arg(long, value_name = "MODE", value_enum, default_value = "soft", hide_possible_values = true)]
    manage_cgroups_mode: CgroupMode,
    /// A namespace that is restored without its properties: network (which always is)
    #[arg(long, value_name = "TYPE", value_parser = ["network"], hide_possible_values = true)]
    empty_ns: Vec<String>,
    /// Leave out memory that the images before hold already
    #[arg(long)]
    auto_dedup: bool,
    /// Fetch memory when it is used (userfaultfd)
    #[arg(long)]
    lazy_pages: bool,
}

impl Images {
    /// In criu's words.
    pub fn options(&self) -> Result<Options> {
        // Every network namespace is restored empty: engines set it up.
        log::debug!("empty namespaces: {:?}", self.empty_ns);
        let absolute = |path: &PathBuf| std::path::absolute(path).with_context(|| path.display().to_string());
        Ok(Options {
            images: absolute(self.image_path.as_ref().unwrap_or(&PathBuf::from("checkpoint")))?,
            work: self.work_path.as_ref().map(absolute).transpose()?,
            tcp_established: self.tcp_established,
            external_unix_sockets: self.ext_unix_sk,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
            manage_cgroups: self.manage_cgroups_mode,
            auto_dedup: self.auto_dedup,
            lazy_pages: self.lazy_pages,
        })
    }
}

pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    checkpoint(globals, &args).with_context(|| format!("checkpoint {}", args.id))?;
    Ok(0)
}

fn checkpoint(globals: &Globals, args: &Args) -> Result<()> {
    let dump = Dump {
        leave_running: args.leave_running,
        pre_dump: args.pre_dump,
        parent: args.parent_path.clone(),
        page_server: args.page_server.as_deref().map(page_server).transpose()?,
        status_fd: args.status_fd.and_then(|fd| u32::try_from(fd).ok()),
        link_remap: args.link_remap,
        tcp_skip_in_flight: args.tcp_skip_in_flight,
    };
    let options = args.images.options()?;
    let dir = Dir::open(&globals.root, &args.id)?;
    let _lock = dir.lock()?;
    let state = dir.load()?;
    match dir.status(&state)? {
        Status::Running | Status::Paused => {}
        status => {
            return Err(error(Kind::WrongState, format!("cannot checkpoint a container that is {status}")))
                .hint(|| "only the processes of a running container can be written to disk".to_owned());
        }
    }
    let spec = bundle::load(&state.bundle)?;
    let host = Host::gather()?.with_rootless(globals.rootless.forced());
    let planning = plan::Options {
        id: args.id.clone(),
        bundle: state.bundle.clone(),
        systemd_cgroup: globals.systemd_cgroup,
        console_socket: spec.process().as_ref().is_some_and(|p| p.terminal().unwrap_or(false)),
        detach: true,
        ..plan::Options::default()
    };
    let plan = Plan::new(&spec, &planning, &host)?;
    dump::dump(&globals.criu, &options, &dump, &state, &spec, &plan)?;
    if dump.leave_running || dump.pre_dump { Ok(()) } else { container::destroy(&dir, &state) }
}

fn page_server(text: &str) -> Result<(String, u16)> {
    let parsed = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match parsed {
        Some((host, port)) if !host.is_empty() => Ok((host.trim_matches(['[', ']']).to_owned(), port)),
        _ => Err(error(Kind::BadInput, format!("--page-server {text:?}: expected ADDRESS:PORT"))),
    }
}

#[cfg(test)]
mod tests {
    use super::page_server;

    #[test]
    fn page_servers() {
        assert_eq!(page_server("10.0.0.1:99").unwrap(), ("10.0.0.1".to_owned(), 99));
        assert_eq!(page_server("[::1]:99").unwrap(), ("::1".to_owned(), 99));
        for wrong in ["", ":1", "a:", "a:b", "a:70000"] {
            let message = format!("--page-server {wrong:?}: expected ADDRESS:PORT");
            assert_eq!(report::line(&page_server(wrong).unwrap_err()), message);
        }
    }
}
