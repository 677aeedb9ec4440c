//! Where do log lines go? To standard error or the `--log` file, in runc's text or JSON form: one object a
//! line with `level`, `msg`, `time`, which containerd reads.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use log::{Level, LevelFilter, Metadata, Record};

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// `--log`, `--log-format` and `--debug`.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    pub path: Option<PathBuf>,
    pub format: Format,
    pub debug: bool,
}

struct Sink {
    file: Option<File>,
    format: Format,
}

static SINK: OnceLock<Sink> = OnceLock::new();

/// Open the log file (created, appended to) and set the level: everything with `--debug`, else `info` and worse to
/// a file, `warn` and worse to standard error.
pub fn init(options: &LogOptions) -> Result<()> {
    let file = match &options.path {
        Some(path) => Some(
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .with_context(|| format!("open log file {}", path.display()))?,
        ),
        None => None,
    };
    let to_file = file.is_some();
    if SINK.set(Sink { file, format: options.format }).is_ok() {
        log::set_logger(&Logger).map_err(|e| anyhow::anyhow!("set logger: {e}"))?;
    }
    log::set_max_level(match (options.debug, to_file) {
        (true, _) => LevelFilter::Debug,
        (false, true) => LevelFilter::Info,
        (false, false) => LevelFilter::Warn,
    });
    Ok(())
}

/// Let log lines go to an open file, such as a fifo that must not make anybody wait: everything with `debug`, else `info` and worse.
pub fn log_to(file: File, format: Format, debug: bool) -> Result<()> {
    if SINK.set(Sink { file: Some(file), format }).is_ok() {
        log::set_logger(&Logger).map_err(|e| anyhow::anyhow!("set logger: {e}"))?;
    }
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    Ok(())
}

/// Whether log lines and printed errors go to the same place.
pub(crate) fn is_stderr() -> bool {
    SINK.get().is_some_and(|s| s.file.is_none() && s.format == Format::Json)
}

pub(crate) fn to_stderr(text: &str) {
    // Nobody is left to tell when standard error is gone.
    std::io::stderr().write_all(text.as_bytes()).unwrap_or_default();
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let Some(sink) = SINK.get() else { return };
        if sink.file.is_none() && sink.format == Format::Text && record.level() == Level::Error {
            return; // `print` says it, in the program's own form
        }
        let level = match record.level() {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info => "info",
            Level::Debug | Level::Trace => "debug",
        };
        let message = serde_json::Value::from(record.args().to_string());
        let time = rfc3339(now().0);
        let line = match sink.format {
            Format::Json => format!("{{\"level\":\"{level}\",\"msg\":{message},\"time\":\"{time}\"}}\n"),
            Format::Text => format!("time=\"{time}\" level={level} msg={message}\n"),
        };
        match &sink.file {
            // A log that cannot be written must not stop the container.
            Some(file) => (&mut &*file).write_all(line.as_bytes()).unwrap_or_default(),
            None => to_stderr(&line),
        }
    }

    fn flush(&self) {}
}

fn now() -> (u64, u32) {
    let d = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (d.as_secs(), d.subsec_nanos())
}

/// Now, in UTC with nanoseconds, as the state file and `list` show it: `2026-05-04T03:02:01.000000000Z`.
pub fn timestamp() -> String {
    let (secs, nanos) = now();
    let base = rfc3339(secs);
    format!("{}.{nanos:09}Z", base.trim_end_matches('Z'))
}

/// Seconds since 1970 as RFC 3339 in UTC (days to civil date by Howard Hinnant's algorithm).
pub fn rfc3339(secs: u64) -> String {
    let (days, rest) = (secs / 86_400, secs % 86_400);
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_164_799, "2024-02-28T23:59:59Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(secs), text);
        }
    }
}
