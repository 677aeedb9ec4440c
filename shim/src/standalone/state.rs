//! What is known of a container: what was asked for, and what has become of it. In files, so that it outlives whoever supervises.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use report::{Explain, Kind, error};
use serde::{Deserialize, Serialize};

/// When a container that has ended is started again (`--restart`), as Docker has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    #[default]
    No,
    /// It ended with another status than 0; at most so many times in a row (0: without a limit).
    OnFailure(u32),
    Always,
    /// As `Always`, but what was stopped by a user stays so when the host is booted.
    UnlessStopped,
}

impl Restart {
    pub fn parse(text: &str) -> Result<Restart, String> {
        let (name, most) = match text.split_once(':') {
            Some((name, most)) => (name, Some(most)),
            None => (text, None),
        };
        match (name, most) {
            ("no" | "", None) => Ok(Restart::No),
            ("always", None) => Ok(Restart::Always),
            ("unless-stopped", None) => Ok(Restart::UnlessStopped),
            ("on-failure", None) => Ok(Restart::OnFailure(0)),
            ("on-failure", Some(most)) => {
                let most = most.parse().map_err(|_| format!("{most:?}: expected how many times"))?;
                Ok(Restart::OnFailure(most))
            }
            _ => Err("expected no, on-failure[:N], always or unless-stopped".to_owned()),
        }
    }

    /// After an end with this status, with so many restarts in a row before.
    pub fn again(self, status: i32, restarts: u32) -> bool {
        match self {
            Restart::No => false,
            Restart::OnFailure(most) => status != 0 && (most == 0 || restarts < most),
            Restart::Always | Restart::UnlessStopped => true,
        }
    }
}

/// How the log is kept (`--log`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    /// Docker's: an object a line.
    #[default]
    JsonFile,
    /// Kubernetes' and podman's: time, stream, `F` or `P`, text.
    K8sFile,
    Journald,
    /// The streams of whoever starts the container, as they are: nothing is copied.
    Passthrough,
    None,
}

impl LogDriver {
    pub fn parse(text: &str) -> Result<LogDriver, String> {
        match text {
            "json-file" => Ok(LogDriver::JsonFile),
            "k8s-file" => Ok(LogDriver::K8sFile),
            "journald" => Ok(LogDriver::Journald),
            "passthrough" => Ok(LogDriver::Passthrough),
            "none" => Ok(LogDriver::None),
            _ => Err("expected json-file, k8s-file, journald, passthrough or none".to_owned()),
        }
    }
}

/// `--log` and `--log-opt`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    pub driver: LogDriver,
    pub path: PathBuf,
    /// Bytes; 0: never turned over.
    pub max_size: u64,
    /// Files, the one that is written to included.
    pub max_file: u32,
    pub compress: bool,
    /// The container waits for its log. Otherwise it never does, and what finds no room is counted and told.
    pub blocking: bool,
    /// Bytes that wait for a log that cannot be written.
    pub max_buffer: usize,
}

/// `--health-on-failure`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OnUnhealthy {
    #[default]
    None,
    Kill,
    Restart,
    Stop,
}

/// `--health-…`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthOptions {
    /// A program and its arguments.
    pub command: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub retries: u32,
    pub start_period: Duration,
    pub start_interval: Duration,
    pub on_failure: OnUnhealthy,
}

/// Everything that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Options {
    pub bundle: PathBuf,
    pub runtime: PathBuf,
    pub runtime_root: Option<PathBuf>,
    pub systemd_cgroup: bool,
    pub restart: Restart,
    pub init: Option<PathBuf>,
    pub tty: bool,
    pub interactive: bool,
    pub stop_signal: i32,
    pub stop_timeout: Duration,
    pub log: LogOptions,
    pub health: Option<HealthOptions>,
    pub oom_score_adj: Option<i32>,
    pub pid_file: Option<PathBuf>,
    pub exit_file: Option<PathBuf>,
    /// A program and its arguments, when the container has ended for good.
    pub exit_command: Vec<String>,
    /// systemd's socket, to be told when the container runs.
    pub notify: Option<PathBuf>,
    /// Removed when it has ended for good.
    pub rm: bool,
    pub detach_keys: String,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made, or made and not started.
    #[default]
    Created,
    Running,
    Paused,
    /// It has ended and is to be started again.
    Restarting,
    Exited,
}

impl Status {
    pub fn word(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Restarting => "restarting",
            Status::Exited => "exited",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    #[default]
    Starting,
    Healthy,
    Unhealthy,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    pub start: Time,
    pub end: Time,
    /// 0 healthy; -1: it took too long.
    pub exit_code: i32,
    pub output: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    pub status: HealthStatus,
    pub failing_streak: u32,
    /// The last ones, the oldest first.
    pub log: Vec<Check>,
}

/// A moment, written as RFC 3339 with nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub SystemTime);

impl Time {
    pub fn now() -> Time {
        Time(SystemTime::now())
    }

    pub fn text(self) -> String {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let base = report::rfc3339(since.as_secs());
        format!("{}.{:09}Z", base.trim_end_matches('Z'), since.subsec_nanos())
    }
}

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Time, D::Error> {
        let text = String::deserialize(from)?;
        parse_time(&text)
            .map(Time)
            .ok_or_else(|| serde::de::Error::custom("expected a time as RFC 3339 has it"))
    }
}

/// RFC 3339, also with another offset than `Z`, also a day alone.
pub fn parse_time(text: &str) -> Option<SystemTime> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = match text.len() {
        10 => (0, 0, 0),
        _ => (number(11, 13)?, number(14, 16)?, number(17, 19)?),
    };
    let mut rest = text.get(19..).unwrap_or("Z");
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        let padded = format!("{:0<9}", &fraction[..digits.min(9)]);
        nanos = padded.parse::<u32>().ok()?;
        rest = &fraction[digits..];
    }
    let offset = match rest {
        "Z" | "z" | "" => 0,
        other => {
            let sign = match other.as_bytes().first()? {
                b'+' => 1,
                b'-' => -1,
                _ => return None,
            };
            let (hours, minutes) =
                (other.get(1..3)?.parse::<i64>().ok()?, other.get(4..6)?.parse::<i64>().ok()?);
            sign * (hours * 3600 + minutes * 60)
        }
    };
    // Days since 1970 from a civil date (the algorithm by Howard Hinnant).
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let of_era = shifted - era * 400;
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset;
    Some(UNIX_EPOCH + Duration::new(u64::try_from(seconds).ok()?, nanos))
}

/// What has become of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub status: Status,
    /// The container's first process, and when the kernel started it: together they name it for ever.
    pub pid: i32,
    pub start_ticks: u64,
    pub started_at: Option<Time>,
    pub finished_at: Option<Time>,
    /// As shells have it; nothing while it runs for the first time.
    pub exit_code: Option<i32>,
    /// The process is gone and nobody could be asked how it ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exit_unknown: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// All of them, and those in a row without ten seconds of rest between.
    pub restarts: u32,
    pub in_a_row: u32,
    /// A user has stopped it.
    pub stopped: bool,
    /// What went wrong, where it could not be started.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    pub supervisor: i32,
}

impl State {
    /// It runs, or will: somebody must be there for it.
    pub fn lives(&self) -> bool {
        // One that is created is about to be started: whoever was at it may have been killed.
        match self.status {
            Status::Created | Status::Running | Status::Paused | Status::Restarting => true,
            Status::Exited => false,
        }
    }
}

/// A container's folder.
#[derive(Clone, Debug)]
pub struct Dir {
    pub id: String,
    pub path: PathBuf,
}

impl Dir {
    /// The folder of a name, which need not be there.
    pub fn named(root: &Path, id: &str) -> Result<Dir> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"_.-+".contains(&b);
        if id.is_empty() || id == "." || id == ".." || id.len() > 255 || !id.bytes().all(fine) {
            return Err(error(Kind::BadInput, format!("{id:?} is no name of a container")))
                .hint(|| "letters, digits and _ . - + are allowed".to_owned());
        }
        Ok(Dir { id: id.to_owned(), path: root.join(id) })
    }

    /// One that is there.
    pub fn open(root: &Path, id: &str) -> Result<Dir> {
        let dir = Dir::named(root, id)?;
        if !dir.file("options.json").exists() {
            return Err(error(Kind::NotFound, format!("{id}: no such container")))
                .hint(|| format!("`berth-shim list` shows those of {}", root.display()));
        }
        Ok(dir)
    }

    /// A new one. It counts only once its options are written.
    pub fn create(root: &Path, id: &str) -> Result<Dir> {
        let dir = Dir::named(root, id)?;
        let make =
            |path: &Path, recursive| std::fs::DirBuilder::new().recursive(recursive).mode(0o700).create(path);
        make(root, true).with_context(|| format!("make {}", root.display()))?;
        match make(&dir.path, false) {
            Ok(()) => Ok(dir),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                // Of somebody who was killed before the options were written; whoever is at it now has the lock.
                if !dir.file("options.json").exists() && dir.lock()?.is_some() {
                    return Ok(dir);
                }
                Err(error(Kind::AlreadyExists, format!("{id}: there is a container of that name"))).hint(
                    || format!("`berth-shim start {id}` starts it again, `berth-shim rm {id}` removes it"),
                )
            }
            Err(e) => Err(e).with_context(|| format!("make {}", dir.path.display())),
        }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn options(&self) -> Result<Options> {
        self.read("options.json")
    }

    pub fn set_options(&self, options: &Options) -> Result<()> {
        self.write("options.json", options)
    }

    pub fn state(&self) -> Result<State> {
        match self.read("state.json") {
            Err(_) if !self.file("state.json").exists() => Ok(State::default()),
            other => other,
        }
    }

    pub fn set_state(&self, state: &State) -> Result<()> {
        self.write("state.json", state)
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T> {
        let path = self.file(name);
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    /// Whole, or not at all.
    fn write(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let (path, new) = (self.file(name), self.file(&format!("{name}.new")));
        let mut text = serde_json::to_vec(value).context("write JSON")?;
        text.push(b'\n');
        std::fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        std::fs::rename(&new, &path).with_context(|| format!("rename {}", new.display()))
    }

    /// The right to supervise, until it is dropped. `None`: somebody has it.
    pub fn lock(&self) -> Result<Option<OwnedFd>> {
        self.lock_of("lock")
    }

    /// The right to be its keeper, until it is dropped. `None`: somebody has it.
    pub fn keeper_lock(&self) -> Result<Option<OwnedFd>> {
        self.lock_of("keeper.lock")
    }

    /// Whether nobody is there, nor about to be: a keeper that is alive starts the next supervisor, with what it holds.
    pub fn is_unattended(&self) -> Result<bool> {
        Ok(self.keeper_lock()?.is_some() && self.lock()?.is_some())
    }

    fn lock_of(&self, name: &str) -> Result<Option<OwnedFd>> {
        let path = self.file(name);
        let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = OwnedFd::from(file.with_context(|| format!("open {}", path.display()))?);
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// Everything of it.
    pub fn remove(&self) -> Result<()> {
        // First what makes it a container: what stays after a kill is nobody's.
        crate::task::remove(&self.file("options.json"))?;
        // Somebody who waits for the lock may make its file anew meanwhile; without options it goes away.
        for _ in 0..100 {
            match std::fs::remove_dir_all(&self.path) {
                Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("remove {}", self.path.display()));
                }
                _ => return Ok(()),
            }
        }
        Err(error(Kind::Failed, format!("remove {}: somebody keeps writing there", self.path.display())))
    }
}

/// The names of all containers, in order.
pub fn list(root: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("read {}", root.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", root.display()))?;
        if entry.path().join("options.json").exists() {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    names.sort();
    Ok(names)
}

/// `KEY=VALUE`s, as `--log-opt` has them.
pub fn log_options(driver: LogDriver, pairs: &[String]) -> Result<LogOptions> {
    let mut given: BTreeMap<&str, &str> = BTreeMap::new();
    for pair in pairs {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| error(Kind::BadInput, format!("--log-opt {pair}: expected KEY=VALUE")))?;
        given.insert(key, value);
    }
    let mut out = LogOptions { driver, max_file: 1, max_buffer: 1 << 20, ..LogOptions::default() };
    for (key, value) in given {
        let wrong = |what: &str| error(Kind::BadInput, format!("--log-opt {key}={value}: expected {what}"));
        let size = || parse_size(value).ok_or_else(|| wrong("a size, such as 10m"));
        match key {
            "path" => out.path = std::path::absolute(value).context("--log-opt path")?,
            "max-size" => out.max_size = if value == "-1" { 0 } else { size()? },
            "max-file" => {
                out.max_file =
                    value.parse().ok().filter(|n| *n > 0).ok_or_else(|| wrong("a number above 0"))?;
            }
            "compress" => out.compress = value.parse().map_err(|_| wrong("true or false"))?,
            "mode" => {
                out.blocking = match value {
                    "blocking" => true,
                    "non-blocking" => false,
                    _ => return Err(wrong("blocking or non-blocking")),
                };
            }
            "max-buffer-size" => {
                out.max_buffer = usize::try_from(size()?).unwrap_or(usize::MAX);
            }
            _ => {
                return Err(error(Kind::BadInput, format!("--log-opt {key}: unknown option"))).hint(|| {
                    "known are path, max-size, max-file, compress, mode and max-buffer-size".to_owned()
                });
            }
        }
    }
    Ok(out)
}

/// `10m`, `512k`, `1g`, bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &lower[digits.len()..] {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// `1m30s`, `500ms`, `10`: seconds where no unit stands.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a duration, such as 30s, 1m30s or 500ms".to_owned();
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let after = &rest[digits..];
        let unit = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let factor = match &after[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        total += Duration::try_from_secs_f64(number * factor).map_err(|_| wrong())?;
        rest = &after[unit..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_policies() {
        let on_failure = Restart::parse("on-failure:3").unwrap();
        assert_eq!(on_failure, Restart::OnFailure(3));
        assert!(on_failure.again(1, 2) && !on_failure.again(1, 3) && !on_failure.again(0, 0));
        assert!(Restart::parse("on-failure").unwrap().again(1, 1000));
        assert!(Restart::parse("always").unwrap().again(0, 1000));
        assert!(!Restart::parse("no").unwrap().again(1, 0));
        for wrong in ["sometimes", "always:3", "on-failure:x"] {
            assert!(Restart::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_sizes_times() {
        for (text, millis) in
            [("30s", 30_000), ("1m30s", 90_000), ("500ms", 500), ("10", 10_000), ("1.5s", 1500), ("0", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for wrong in ["", "s", "1x", "-1s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            (parse_size("10m"), parse_size("1K"), parse_size("7"), parse_size("x")),
            (Some(10 << 20), Some(1024), Some(7), None)
        );
        let time = Time(UNIX_EPOCH + Duration::new(1_709_164_799, 7));
        assert_eq!(time.text(), "2024-02-28T23:59:59.000000007Z");
        assert_eq!(parse_time(&time.text()), Some(time.0));
        assert_eq!(parse_time("2024-02-29T00:59:59+01:00"), parse_time("2024-02-28T23:59:59Z"));
        assert_eq!(parse_time("1970-01-02"), Some(UNIX_EPOCH + Duration::from_secs(86_400)));
        assert_eq!(parse_time("soon"), None);
    }

    #[test]
    fn log_options_are_checked() {
        let pairs = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let o =
            log_options(LogDriver::JsonFile, &pairs("max-size=10m max-file=3 compress=true mode=blocking"))
                .unwrap();
        assert_eq!((o.max_size, o.max_file, o.compress, o.blocking), (10 << 20, 3, true, true));
        for wrong in ["max-size=x", "max-file=0", "colour=red", "compress"] {
            assert!(log_options(LogDriver::JsonFile, &pairs(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_stay_in_their_folder() {
        for wrong in ["", ".", "..", "a/b", "a b", "a\n"] {
            assert!(Dir::named(Path::new("/r"), wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(Dir::named(Path::new("/r"), "web-1.x").unwrap().path, Path::new("/r/web-1.x"));
    }
}
