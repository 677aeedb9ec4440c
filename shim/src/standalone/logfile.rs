//! How is a log read? All its files in order, the last lines or those since a moment, and what still comes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use report::{Kind, error};
use rustix::fs::inotify;

use super::logs::numbered;
use super::state::{Dir, LogDriver, LogOptions, Status, parse_time};

/// What is wanted of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    pub follow: bool,
    /// Lines; all if nothing is said.
    pub tail: Option<usize>,
    pub since: Option<SystemTime>,
    pub until: Option<SystemTime>,
    pub timestamps: bool,
}

/// One record.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    time: String,
    is_error: bool,
    text: Vec<u8>,
}

/// Print it: what went to standard error goes there.
pub fn print(dir: &Dir, options: &LogOptions, wanted: Wanted) -> Result<()> {
    let parse: fn(&[u8]) -> Option<Record> = match options.driver {
        LogDriver::JsonFile => parse_json,
        LogDriver::K8sFile => parse_k8s,
        LogDriver::Journald => {
            return Err(error(Kind::Unsupported, "its log is in the journal"))
                .map_err(|e| e.context(dir.id.clone()))
                .or_else(|e| {
                    report::Explain::hint(Err(e), || format!("journalctl CONTAINER_ID={}", dir.id))
                });
        }
        LogDriver::Passthrough | LogDriver::None => {
            return Err(error(Kind::Unsupported, format!("{}: it keeps no log (--log)", dir.id)));
        }
    };
    let mut last: VecDeque<Record> = VecDeque::new();
    let mut out = Out::new(wanted.timestamps);
    let mut take = |record: Record, out: &mut Out| -> Result<()> {
        if !within(&record, wanted) {
            return Ok(());
        }
        match wanted.tail {
            None => out.write(&record),
            Some(most) => {
                last.push_back(record);
                // A line may be in pieces: whole lines are counted.
                while lines(&last) > most {
                    last.pop_front();
                }
                Ok(())
            }
        }
    };
    for n in (1..options.max_file.max(1)).rev() {
        for end in ["", ".gz"] {
            let path = numbered(&options.path, n, end);
            let Ok(file) = File::open(&path) else { continue };
            let reader: Box<dyn Read> =
                if end.is_empty() { Box::new(file) } else { Box::new(flate2::read::GzDecoder::new(file)) };
            let mut reader = BufReader::new(reader);
            let mut line = Vec::new();
            while next_line(&mut reader, &mut line).with_context(|| format!("read {}", path.display()))? {
                if let Some(record) = parse(&line) {
                    take(record, &mut out)?;
                }
                line.clear();
            }
        }
    }
    let mut current = match File::open(&options.path) {
        Ok(file) => BufReader::new(file),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("open {}", options.path.display())),
    };
    let reading = || format!("read {}", options.path.display());
    let mut line = Vec::new();
    while next_line(&mut current, &mut line).with_context(reading)? {
        if let Some(record) = parse(&line) {
            take(record, &mut out)?;
        }
        line.clear();
    }
    for record in last {
        out.write(&record)?;
    }
    out.flush()?;
    if wanted.follow { follow(dir, options, wanted, parse, current, line, &mut out) } else { Ok(()) }
}

fn lines(records: &VecDeque<Record>) -> usize {
    let whole = records.iter().filter(|r| r.text.ends_with(b"\n")).count();
    whole + usize::from(records.back().is_some_and(|r| !r.text.ends_with(b"\n")))
}

/// Read on as the file grows, until the container has ended.
fn follow(
    dir: &Dir,
    options: &LogOptions,
    wanted: Wanted,
    parse: fn(&[u8]) -> Option<Record>,
    mut current: BufReader<File>,
    mut line: Vec<u8>,
    out: &mut Out,
) -> Result<()> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .context("watch files")?;
    let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    for folder in [options.path.parent(), Some(dir.path.as_path())].into_iter().flatten() {
        inotify::add_watch(&watch, folder, flags).with_context(|| format!("watch {}", folder.display()))?;
    }
    loop {
        // Asked before the file is read to its end: nothing is written after that.
        let ended = dir.state().map_or(true, |state| state.status == Status::Exited) || !dir.path.exists();
        while next_line(&mut current, &mut line)
            .with_context(|| format!("read {}", options.path.display()))?
        {
            if let Some(record) = parse(&line).filter(|record| within(record, wanted)) {
                out.write(&record)?;
            }
            line.clear();
        }
        out.flush()?;
        if is_another(current.get_ref(), &options.path) {
            // Turned over, or emptied.
            current = match File::open(&options.path) {
                Ok(file) => BufReader::new(file),
                Err(_) if ended => return Ok(()),
                Err(e) => return Err(e).with_context(|| format!("open {}", options.path.display())),
            };
            line.clear();
            continue;
        }
        if ended {
            return Ok(());
        }
        let watch = watch.as_fd();
        let mut fds = [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)];
        let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        match rustix::event::poll(&mut fds, Some(&second)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context("wait for the log"),
        }
        while rustix::io::read(watch, &mut [0u8; 4096][..]).is_ok_and(|n| n > 0) {}
    }
}

/// The path names another file now, or this one was emptied.
fn is_another(open: &File, path: &Path) -> bool {
    let Ok(open_meta) = open.metadata() else { return false };
    let at = std::io::Seek::stream_position(&mut &*open).unwrap_or(0);
    std::fs::metadata(path).is_ok_and(|now| now.ino() != open_meta.ino()) || open_meta.size() < at
}

/// A whole line, added to what is there of it; `false`: not (yet) at its end.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<bool> {
    reader.read_until(b'\n', line)?;
    Ok(line.ends_with(b"\n"))
}

fn within(record: &Record, wanted: Wanted) -> bool {
    if wanted.since.is_none() && wanted.until.is_none() {
        return true;
    }
    let Some(time) = parse_time(&record.time) else { return true };
    wanted.since.is_none_or(|since| time >= since) && wanted.until.is_none_or(|until| time <= until)
}

fn parse_json(line: &[u8]) -> Option<Record> {
    #[derive(serde::Deserialize)]
    struct Json {
        log: String,
        stream: String,
        time: String,
    }
    let json: Json = serde_json::from_slice(line).ok()?;
    Some(Record { time: json.time, is_error: json.stream == "stderr", text: json.log.into_bytes() })
}

fn parse_k8s(line: &[u8]) -> Option<Record> {
    let mut words = line.splitn(4, |b| *b == b' ');
    let (time, stream, tag, text) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let partial = tag.first() == Some(&b'P');
    let text = if partial { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
    Some(Record {
        time: String::from_utf8_lossy(time).into_owned(),
        is_error: stream == b"stderr",
        text: text.to_vec(),
    })
}

struct Out {
    timestamps: bool,
    stdout: std::io::BufWriter<std::io::Stdout>,
    stderr: std::io::Stderr,
}

impl Out {
    fn new(timestamps: bool) -> Out {
        Out { timestamps, stdout: std::io::BufWriter::new(std::io::stdout()), stderr: std::io::stderr() }
    }

    fn write(&mut self, record: &Record) -> Result<()> {
        let mut text = Vec::new();
        if self.timestamps {
            text.extend_from_slice(record.time.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(&record.text);
        if record.is_error {
            self.flush()?;
            self.stderr.write_all(&text).context("write to standard error")
        } else {
            self.stdout.write_all(&text).context("write to standard output")
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.stdout.flush().context("write to standard output")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let record = |text: &str, is_error| {
            Some(Record { time: "2026-01-01T00:00:00Z".to_owned(), is_error, text: text.as_bytes().to_vec() })
        };
        let json = br#"{"log":"a\n","stream":"stderr","time":"2026-01-01T00:00:00Z"}"#;
        assert_eq!(parse_json(json), record("a\n", true));
        assert_eq!(parse_k8s(b"2026-01-01T00:00:00Z stdout F a b\n"), record("a b\n", false));
        assert_eq!(parse_k8s(b"2026-01-01T00:00:00Z stdout P a\n"), record("a", false));
        assert_eq!((parse_json(b"x"), parse_k8s(b"x\n")), (None, None));
    }
}
