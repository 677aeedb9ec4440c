//! What does podman say on conmon's command line (conmon(8))?

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};
use report::{Kind, error};

use crate::standalone::{LogDriver, LogOptions, parse_size};

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Args {
    pub api_version: u32,
    pub bundle: PathBuf,
    pub id: String,
    pub uuid: String,
    pub name: String,
    pub runtime: PathBuf,
    pub runtime_args: Vec<OsString>,
    pub runtime_opts: Vec<OsString>,
    pub own_pid_file: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub exec: bool,
    pub exec_attach: bool,
    pub process: Option<PathBuf>,
    pub exit_command: Vec<OsString>,
    pub exit_delay: u64,
    pub exit_dir: Option<PathBuf>,
    pub persist_dir: Option<PathBuf>,
    pub leave_stdin_open: bool,
    pub logs: Vec<String>,
    pub log_size_max: u64,
    pub log_tag: String,
    pub no_new_keyring: bool,
    pub no_pivot: bool,
    pub restore: Option<PathBuf>,
    pub notify: Option<PathBuf>,
    pub socket_dir: Option<PathBuf>,
    pub stdin: bool,
    pub systemd_cgroup: bool,
    pub terminal: bool,
    pub timeout: u64,
    pub sync: bool,
}

/// As GLib reads a command line: `-x value`, `--long value`, `--long=value`. `None`: the version is asked for.
pub fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Option<Args>> {
    let mut out = Args::default();
    let bad = |message: String| error(Kind::BadInput, message);
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy().into_owned();
        let Some(flag) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')) else {
            return Err(bad(format!("{text:?}: unexpected argument")));
        };
        let (name, mut given) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(OsString::from(value))),
            None => (flag, None),
        };
        let mut value =
            || given.take().or_else(|| args.next()).ok_or_else(|| bad(format!("{text}: it needs a value")));
        let words = |value: OsString| value.to_string_lossy().into_owned();
        let number = |value: OsString| -> Result<u64> {
            let text = value.to_string_lossy().into_owned();
            text.parse::<i64>()
                .map(|n| n.max(0).cast_unsigned())
                .map_err(|_| bad(format!("--{name} {text}: expected a number")))
        };
        match name {
            "api-version" => out.api_version = number(value()?)?.try_into().unwrap_or(u32::MAX),
            "b" | "bundle" => out.bundle = value()?.into(),
            "c" | "cid" => out.id = words(value()?),
            "u" | "cuuid" => out.uuid = words(value()?),
            "n" | "name" => out.name = words(value()?),
            "r" | "runtime" => out.runtime = value()?.into(),
            "runtime-arg" => out.runtime_args.push(value()?),
            "runtime-opt" | "restore-arg" => out.runtime_opts.push(value()?),
            "P" | "conmon-pidfile" => out.own_pid_file = Some(value()?.into()),
            "p" | "container-pidfile" | "pidfile" => out.pid_file = Some(value()?.into()),
            "e" | "exec" => out.exec = true,
            "exec-attach" | "attach" => out.exec_attach = true,
            "exec-process-spec" => out.process = Some(value()?.into()),
            "exit-command" => out.exit_command.insert(0, value()?),
            "exit-command-arg" => out.exit_command.push(value()?),
            "exit-delay" => out.exit_delay = number(value()?)?,
            "exit-dir" => out.exit_dir = Some(value()?.into()),
            "0" | "persist-dir" => out.persist_dir = Some(value()?.into()),
            "leave-stdin-open" => out.leave_stdin_open = true,
            "l" | "log-path" => out.logs.push(words(value()?)),
            "log-size-max" => {
                let text = words(value()?);
                out.log_size_max = if text.starts_with('-') { 0 } else { parse_size(&text).unwrap_or(0) };
            }
            "log-tag" => out.log_tag = words(value()?),
            // What it says goes to the same places at every level.
            "log-level"
            | "log-size-global-max"
            | "log-global-size-max"
            | "log-label"
            | "replace-listen-pid" => {
                value()?;
            }
            "syslog" | "full-attach" | "no-sync-log" | "no-container-partial-message" | "log-rotate" => {}
            "no-new-keyring" => out.no_new_keyring = true,
            "no-pivot" => out.no_pivot = true,
            "restore" => out.restore = Some(value()?.into()),
            "sdnotify-socket" => out.notify = Some(value()?.into()),
            "socket-dir-path" => out.socket_dir = Some(value()?.into()),
            "i" | "stdin" => out.stdin = true,
            "s" | "systemd-cgroup" => out.systemd_cgroup = true,
            "t" | "terminal" => out.terminal = true,
            "T" | "timeout" => out.timeout = number(value()?)?,
            "sync" => out.sync = true,
            "version" => return Ok(None),
            other => return Err(bad(format!("--{other}: unknown option"))),
        }
    }
    if out.id.is_empty() || out.runtime.as_os_str().is_empty() {
        return Err(bad("--cid and --runtime must be given".to_owned()));
    }
    if out.exec && out.process.is_none() {
        return Err(bad("--exec: --exec-process-spec must be given".to_owned()));
    }
    if out.bundle.as_os_str().is_empty() {
        out.bundle = std::env::current_dir().context("find the working directory")?;
    }
    Ok(Some(out))
}

/// `DRIVER:PATH`, or a path alone.
pub fn log_options(args: &Args) -> Result<LogOptions> {
    let mut out =
        LogOptions { driver: LogDriver::None, max_file: 1, max_buffer: 1 << 20, ..LogOptions::default() };
    out.max_size = args.log_size_max;
    for log in &args.logs {
        let (driver, path) = log.split_once(':').unwrap_or(("", log));
        (out.driver, out.path) = match (driver, path) {
            ("", "none" | "off" | "null") | ("none" | "off" | "null", _) => continue,
            ("", "passthrough") | ("passthrough" | "passthrough-tty", _) => {
                (LogDriver::Passthrough, PathBuf::new())
            }
            ("", "journald") | ("journald", _) => (LogDriver::Journald, PathBuf::new()),
            ("" | "k8s-file" | "json-file", path) => (LogDriver::K8sFile, PathBuf::from(path)),
            (other, _) => {
                return Err(error(
                    Kind::Unsupported,
                    format!("--log-path {log}: unknown kind of log {other:?}"),
                ));
            }
        };
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn args(line: &str) -> Result<Option<Args>> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn podmans_command_line() {
        let line = "--api-version 1 -c ID -u UUID -r /r -b /b -p /b/pidfile -n name --exit-dir /exits --persist-dir /p --full-attach -s \
                    -l k8s-file:/log --log-level warning --syslog --runtime-arg --log-format=json --runtime-arg --log --conmon-pidfile /pid \
                    --exit-command /podman --exit-command-arg --root --exit-command-arg /x -t -i";
        let parsed = args(line).unwrap().unwrap();
        assert_eq!((parsed.id.as_str(), parsed.uuid.as_str(), parsed.api_version), ("ID", "UUID", 1));
        assert_eq!(parsed.runtime_args, ["--log-format=json", "--log"]);
        assert_eq!(parsed.exit_command, ["/podman", "--root", "/x"]);
        assert!(parsed.terminal && parsed.stdin && parsed.systemd_cgroup && !parsed.exec);
        let log = log_options(&parsed).unwrap();
        assert_eq!((log.driver, log.path.as_path()), (LogDriver::K8sFile, Path::new("/log")));
        assert!(args("--version").unwrap().is_none());
        for (line, said) in [
            ("-c x", "--cid and --runtime"),
            ("-c x -r y -e", "--exec-process-spec"),
            ("--nope", "unknown option"),
        ] {
            assert!(format!("{:#}", args(line).unwrap_err()).contains(said), "{line}");
        }
    }
}
