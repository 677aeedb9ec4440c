//! What can be said on the command line? The verbs and options of `berth-shim`; what they do is in `cli.rs`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::state::{self, LogDriver, OnUnhealthy, Restart, parse_duration};

/// Our own first process, looked for beside us and in PATH.
pub(super) const INIT: &str = "berth-init";

/// `--version`: also who may speak to it.
fn version() -> &'static str {
    static TEXT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        let doors = [("containerd", "io.containerd.berth.v2, task v2 and v3"), ("conmon", "2.1.13")];
        report::version(env!("CARGO_PKG_VERSION"), option_env!("BERTH_COMMIT"), &doors)
    });
    &TEXT
}

#[derive(Debug, Parser)]
#[command(
    name = "berth-shim",
    version = version(),
    about = "Supervises a container, with no daemon: logs, restarts, health, exit status",
    after_help = "\
Examples:
  berth-shim run --bundle web web                            in the foreground; Ctrl-C goes to the container
  berth-shim run -d --bundle web --restart always web        in the background, started again whenever it ends
  berth-shim run -it --rm --bundle sh sh                     with a terminal
  berth-shim logs -f --tail 20 web
  berth-shim exec -it web sh
  berth-shim stop web && berth-shim rm web
  berth-shim generate systemd web > /etc/systemd/system/berth-web.service

Exit status: the container's for run, start --attach, attach and exec; 125 if berth-shim itself failed."
)]
pub(super) struct Cli {
    /// Where containers are kept [default: /run/berth-shim, or below XDG_RUNTIME_DIR for a user]
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Supervise a new container, from its bundle
    Run(Box<RunArgs>),
    /// Start a container that has ended; or with --bundle a new one, in the background
    Start(Box<StartArgs>),
    /// What a container does
    Status(OneArgs),
    /// Wait until a container has ended for good, and print its exit status
    Wait(IdArgs),
    /// Print what a container wrote
    Logs(LogsArgs),
    /// Sit at a container's streams
    Attach(AttachArgs),
    /// Run a further program in a container
    Exec(ExecArgs),
    /// Send a signal to a container's first process
    #[command(visible_alias = "kill")]
    Signal(SignalArgs),
    /// Stop a container: it is not started again
    Stop(StopArgs),
    /// Freeze all processes of a container
    Pause(IdArgs),
    /// Let them go on
    Resume(IdArgs),
    /// Set the size of a container's terminal
    Resize(ResizeArgs),
    /// Stop a container and start it again
    Restart(StopArgs),
    /// All containers
    #[command(visible_alias = "ps")]
    List(ListArgs),
    /// Remove a container that has ended, with its log
    Rm(RmArgs),
    /// Write a file for another program
    Generate(GenerateArgs),
}

#[derive(Debug, Args)]
pub(super) struct IdArgs {
    #[arg(value_name = "CONTAINER-ID")]
    pub(super) id: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(super) struct OneArgs {
    #[arg(value_name = "CONTAINER-ID")]
    pub(super) id: String,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
    /// Names only
    #[arg(short, long)]
    pub(super) quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[arg(value_name = "CONTAINER-ID")]
    pub(super) id: String,
    /// The bundle: a folder with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(super) bundle: PathBuf,
    /// Return when it runs
    #[arg(short, long)]
    pub(super) detach: bool,
    #[command(flatten)]
    pub(super) options: OptionArgs,
}

#[derive(Debug, Args)]
pub(super) struct StartArgs {
    #[arg(value_name = "CONTAINER-ID")]
    pub(super) id: String,
    /// Make a new container from this bundle
    #[arg(short, long, value_name = "DIR")]
    pub(super) bundle: Option<PathBuf>,
    /// Stay, with the container's output, until it ends
    #[arg(short, long)]
    pub(super) attach: bool,
    /// It is in the background anyway
    #[arg(short, long, hide = true)]
    pub(super) detach: bool,
    #[command(flatten)]
    pub(super) options: OptionArgs,
}

#[derive(Debug, Args)]
pub(super) struct OptionArgs {
    /// A file for the process id of the container
    #[arg(long, value_name = "FILE")]
    pub(super) pid_file: Option<PathBuf>,
    /// The runtime [default: berth-runtime beside this program, or in PATH]
    #[arg(long, value_name = "PATH")]
    pub(super) runtime: Option<PathBuf>,
    /// The runtime's own --root
    #[arg(long, value_name = "DIR")]
    pub(super) runtime_root: Option<PathBuf>,
    /// Have the runtime use systemd's cgroups
    #[arg(long)]
    pub(super) systemd_cgroup: bool,
    /// no, on-failure[:N], always or unless-stopped
    #[arg(long, value_name = "POLICY", value_parser = Restart::parse, default_value = "no")]
    pub(super) restart: Restart,
    /// Give it a first process that reaps zombies and forwards signals; PATH: another one than berth-init
    #[arg(long, value_name = "PATH", num_args = 0..=1, require_equals = true, default_missing_value = INIT)]
    pub(super) init: Option<PathBuf>,
    /// The signal of `stop`
    #[arg(long, value_name = "SIGNAL", default_value = "TERM")]
    pub(super) stop_signal: String,
    /// How long `stop` waits before it kills
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "10s")]
    pub(super) stop_timeout: Duration,
    /// json-file, k8s-file, journald, passthrough or none
    #[arg(long, value_name = "DRIVER", value_parser = LogDriver::parse, default_value = "json-file")]
    pub(super) log: LogDriver,
    /// path, max-size, max-file, compress, mode (non-blocking, blocking), max-buffer-size
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    pub(super) log_opt: Vec<String>,
    /// Give it a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Keep its standard input open
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Keys that leave an attached terminal
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(super) detach_keys: String,
    /// Check its health by this command, for its shell (sh -c)
    #[arg(long, value_name = "COMMAND")]
    pub(super) health_cmd: Option<String>,
    /// Time between two checks
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    pub(super) health_interval: Duration,
    /// How long a check may take
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    pub(super) health_timeout: Duration,
    /// Failures in a row that make it unhealthy
    #[arg(long, value_name = "N", default_value = "3")]
    pub(super) health_retries: u32,
    /// Time in which failures do not count
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "0s")]
    pub(super) health_start_period: Duration,
    /// Time between two checks in that time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "5s")]
    pub(super) health_start_interval: Duration,
    /// What to do when it becomes unhealthy
    #[arg(long, value_enum, default_value_t)]
    pub(super) health_on_failure: OnUnhealthy,
    /// How soon the kernel kills it for lack of memory, -1000 to 1000
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    pub(super) oom_score_adj: Option<i32>,
    /// A file for the exit status, when it has ended for good
    #[arg(long, value_name = "FILE")]
    pub(super) exit_file: Option<PathBuf>,
    /// A program to start when it has ended for good
    #[arg(long, value_name = "PATH")]
    pub(super) exit_command: Option<String>,
    /// An argument of it (again for each)
    #[arg(long, value_name = "ARG", allow_hyphen_values = true, requires = "exit_command")]
    pub(super) exit_command_arg: Vec<String>,
    /// Tell systemd (NOTIFY_SOCKET) when it runs
    #[arg(long)]
    pub(super) sdnotify: bool,
    /// Remove it when it has ended for good
    #[arg(long)]
    pub(super) rm: bool,
    /// Do not pivot_root
    #[arg(long)]
    pub(super) no_pivot: bool,
    /// Do not make a keyring for it
    #[arg(long)]
    pub(super) no_new_keyring: bool,
}

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    #[arg(value_name = "CONTAINER-ID")]
    pub(super) id: String,
    /// Go on until it ends
    #[arg(short, long)]
    pub(super) follow: bool,
    /// The last lines only
    #[arg(short = 'n', long, value_name = "N")]
    pub(super) tail: Option<String>,
    /// Since a time (2026-05-04T03:02:01Z) or so long ago (10m)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(super) since: Option<SystemTime>,
    /// Until then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(super) until: Option<SystemTime>,
    /// Show when
    #[arg(short, long)]
    pub(super) timestamps: bool,
}

#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    #[arg(value_name = "CONTAINER-ID")]
    pub(super) id: String,
    /// Keys by which one leaves [default: those of `run`]
    #[arg(long, value_name = "KEYS")]
    pub(super) detach_keys: Option<String>,
    /// Do not send anything
    #[arg(long)]
    pub(super) no_stdin: bool,
}

#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Give it a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Keep its standard input open
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// In the background
    #[arg(short, long)]
    pub(super) detach: bool,
    /// UID[:GID]
    #[arg(short, long, value_name = "USER")]
    pub(super) user: Option<String>,
    /// NAME=VALUE (again for each)
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(super) env: Vec<String>,
    /// Working directory
    #[arg(short = 'w', long, visible_alias = "workdir", value_name = "DIR")]
    pub(super) cwd: Option<String>,
    #[arg(value_name = "CONTAINER-ID")]
    pub(super) id: String,
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct SignalArgs {
    #[arg(value_name = "CONTAINER-ID")]
    pub(super) id: String,
    /// Name or number
    #[arg(value_name = "SIGNAL", default_value = "TERM")]
    pub(super) signal: String,
    /// To every process of the container
    #[arg(short, long)]
    pub(super) all: bool,
}

#[derive(Debug, Args)]
pub(super) struct StopArgs {
    /// Before it is killed [default: --stop-timeout of `run`]
    #[arg(short, long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) timeout: Option<Duration>,
    #[arg(value_name = "CONTAINER-ID", required = true)]
    pub(super) ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct ResizeArgs {
    #[arg(value_name = "CONTAINER-ID")]
    pub(super) id: String,
    #[arg(value_name = "ROWS")]
    pub(super) rows: u16,
    #[arg(value_name = "COLUMNS")]
    pub(super) columns: u16,
}

#[derive(Debug, Args)]
pub(super) struct RmArgs {
    /// Also if it runs: it is killed
    #[arg(short, long)]
    pub(super) force: bool,
    #[arg(value_name = "CONTAINER-ID", required = true)]
    pub(super) ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    #[command(subcommand)]
    pub(super) what: Generate,
}

#[derive(Debug, Subcommand)]
pub(super) enum Generate {
    /// A unit that starts it at boot
    Systemd(IdArgs),
}

pub(super) fn moment(text: &str) -> Result<SystemTime, String> {
    if let Some(time) = state::parse_time(text) {
        return Ok(time);
    }
    if let Ok(ago) = parse_duration(text)
        && text.ends_with(|c: char| c.is_ascii_alphabetic())
    {
        return SystemTime::now().checked_sub(ago).ok_or_else(|| "too long ago".to_owned());
    }
    let seconds = text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    let time = seconds.and_then(|s| SystemTime::UNIX_EPOCH.checked_add(s));
    time.ok_or_else(|| {
        "expected a time, such as 2026-05-04T03:02:01Z, or how long ago, such as 10m".to_owned()
    })
}
