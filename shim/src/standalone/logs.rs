//! How does output become a log, while the container never waits for it?
//!
//! ```text
//!  chunk of a stream ─▶ records ─▶ file                     usually at once
//!                          └─▶ waiting, at most max-buffer  while the file takes nothing (full disk)
//!                                 └─▶ counted               what finds no room there; told in the log itself later
//! ```
//! A line may come in pieces: each is a record of its own, so that nothing of it is lost with us.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::state::{LogDriver, LogOptions, Time};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

const JOURNAL: &str = "/run/systemd/journal/socket";
/// How often a log that took nothing is tried again.
const PATIENCE: Duration = Duration::from_millis(20);

/// A log that is written to.
#[derive(Debug)]
pub struct Log {
    id: String,
    /// Fields of each entry in the journal, a line each.
    fields: String,
    options: LogOptions,
    sink: Sink,
    /// Records that are to be written; used again.
    out: Vec<u8>,
    /// The beginning of a character whose rest is still to come, by stream.
    cut: [Vec<u8>; 2],
    stuck_since: Option<Instant>,
    tried: Option<Instant>,
    lost: Lost,
    /// What the last failed write said.
    why: String,
}

#[derive(Debug)]
enum Sink {
    File { file: File, size: u64 },
    Journal(UnixDatagram),
    None,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lost {
    records: u64,
    bytes: u64,
}

/// What the caller has to do when a log has grown enough: start this, and tell when it is done.
pub type Compress = PathBuf;

impl Log {
    pub fn open(id: &str, options: &LogOptions) -> Result<Log> {
        let fields = format!("CONTAINER_ID={id}\nCONTAINER_NAME={id}\nSYSLOG_IDENTIFIER={id}\n");
        Log::with_fields(id, fields, options)
    }

    pub fn with_fields(id: &str, fields: String, options: &LogOptions) -> Result<Log> {
        let sink = match options.driver {
            LogDriver::None | LogDriver::Passthrough => Sink::None,
            LogDriver::Journald => {
                let socket = UnixDatagram::unbound().context("make a socket")?;
                socket.connect(JOURNAL).with_context(|| format!("connect to {JOURNAL}"))?;
                socket.set_nonblocking(true).context("write to the journal without waiting")?;
                Sink::Journal(socket)
            }
            LogDriver::JsonFile | LogDriver::K8sFile => open_file(&options.path)?,
        };
        Ok(Log {
            id: id.to_owned(),
            fields,
            options: options.clone(),
            sink,
            out: Vec::new(),
            cut: Default::default(),
            stuck_since: None,
            tried: None,
            lost: Lost::default(),
            why: String::new(),
        })
    }

    /// Take over what came. This never waits.
    pub fn add(&mut self, stream: Stream, chunk: &[u8]) {
        if matches!(self.sink, Sink::None) {
            return;
        }
        let now = Time::now().text();
        let mut rest = chunk;
        let mut joined;
        let cut = &mut self.cut[stream as usize];
        if !cut.is_empty() {
            joined = std::mem::take(cut);
            joined.extend_from_slice(chunk);
            rest = &joined;
        }
        let keep = incomplete(rest);
        let (whole, cut) = rest.split_at(rest.len() - keep);
        let cut = cut.to_vec();
        if self.lost != Lost::default() {
            // Before what comes now, if there is room again.
            self.flush();
        }
        let mut left = whole;
        while !left.is_empty() {
            let (line, after) = left.split_at(line_length(left));
            self.record(stream, line, &now);
            left = after;
        }
        self.cut[stream as usize] = cut;
        self.flush();
    }

    /// The stream is at its end.
    pub fn end(&mut self, stream: Stream) {
        let cut = std::mem::take(&mut self.cut[stream as usize]);
        if !cut.is_empty() {
            self.record(stream, &cut, &Time::now().text());
            self.flush();
        }
    }

    fn record(&mut self, stream: Stream, line: &[u8], now: &str) {
        let before = self.out.len();
        match (&self.sink, self.options.driver) {
            (Sink::Journal(socket), _) => {
                let sent = socket.send(&journal_entry(&self.fields, stream, line));
                if let Err(e) = sent {
                    self.why = e.to_string();
                    self.lost.records += 1;
                    self.lost.bytes += line.len() as u64;
                }
                return;
            }
            (Sink::None, _) => return,
            (_, LogDriver::K8sFile) => k8s_record(&mut self.out, stream, line, now),
            (_, _) => json_record(&mut self.out, stream, line, now),
        }
        if self.stuck_since.is_some() && !self.options.blocking && self.out.len() > self.options.max_buffer {
            self.out.truncate(before);
            self.lost.records += 1;
            self.lost.bytes += line.len() as u64;
        }
    }

    /// Write what waits.
    pub fn flush(&mut self) {
        if self.tried.is_some_and(|at| at.elapsed() < PATIENCE) {
            return;
        }
        self.write_out();
        if self.lost != Lost::default() && self.stuck_since.is_none() {
            // Behind what was kept, which came before.
            let Lost { records, bytes } = std::mem::take(&mut self.lost);
            let said =
                format!("berth-shim: {records} lines ({bytes} bytes) of output were dropped: {}\n", self.why);
            self.record(Stream::Stderr, said.as_bytes(), &Time::now().text());
            self.write_out();
        }
    }

    fn write_out(&mut self) {
        let Sink::File { file, size } = &mut self.sink else { return };
        let mut at = 0;
        let failed = loop {
            if at == self.out.len() {
                break None;
            }
            match file.write(&self.out[at..]) {
                Ok(0) => break Some(std::io::Error::from(std::io::ErrorKind::WriteZero)),
                Ok(n) => at += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => break Some(e),
            }
        };
        *size += at as u64;
        self.out.drain(..at);
        match failed {
            None => {
                (self.stuck_since, self.tried) = (None, None);
                // Room that was needed once is not kept for ever.
                if self.out.capacity() > 1 << 18 {
                    self.out = Vec::new();
                }
            }
            Some(e) => {
                if self.stuck_since.is_none() {
                    log::warn!(
                        "{}: write {}: {e}; the container goes on",
                        self.id,
                        self.options.path.display()
                    );
                }
                self.why = e.to_string();
                let now = Instant::now();
                self.stuck_since.get_or_insert(now);
                self.tried = Some(now);
                // What is more than the buffer may hold came before we knew.
                if !self.options.blocking && self.out.len() > self.options.max_buffer {
                    self.drop_newest();
                }
            }
        }
    }

    /// Keep whole records only, as many as there is room for.
    fn drop_newest(&mut self) {
        let room = &self.out[..self.options.max_buffer];
        let end = room.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let gone = &self.out[end..];
        self.lost.records += gone.iter().filter(|b| **b == b'\n').count() as u64;
        self.lost.bytes += gone.len() as u64;
        self.out.truncate(end);
    }

    /// Something waits to be written: try again soon.
    pub fn is_stuck(&self) -> bool {
        self.stuck_since.is_some()
    }

    /// In blocking mode: read nothing more for now.
    pub fn must_wait(&self) -> bool {
        self.options.blocking && self.is_stuck()
    }

    /// Larger than it may be.
    pub fn is_full(&self) -> bool {
        match &self.sink {
            Sink::File { size, .. } => self.options.max_size > 0 && *size >= self.options.max_size,
            Sink::Journal(_) | Sink::None => false,
        }
    }

    /// Begin a new file; the one to compress, if that is wanted.
    pub fn rotate(&mut self) -> Result<Option<Compress>> {
        let path = &self.options.path;
        if self.options.max_file <= 1 {
            let Sink::File { file, size } = &mut self.sink else { return Ok(None) };
            file.set_len(0).with_context(|| format!("empty {}", path.display()))?;
            *size = 0;
            return Ok(None);
        }
        for n in (1..self.options.max_file).rev() {
            for end in ["", ".gz"] {
                let old = numbered(path, n, end);
                if n + 1 == self.options.max_file {
                    crate::task::remove(&old)?;
                } else if old.exists() {
                    let new = numbered(path, n + 1, end);
                    std::fs::rename(&old, &new).with_context(|| format!("rename {}", old.display()))?;
                }
            }
        }
        let first = numbered(path, 1, "");
        std::fs::rename(path, &first).with_context(|| format!("rename {}", path.display()))?;
        self.sink = open_file(path)?;
        Ok(self.options.compress.then_some(first))
    }

    /// Open the file anew, which somebody else has moved away.
    pub fn reopen(&mut self) -> Result<()> {
        if let Sink::File { .. } = self.sink {
            self.sink = open_file(&self.options.path)?;
        }
        Ok(())
    }
}

fn open_file(path: &Path) -> Result<Sink> {
    let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    let size = file.metadata().with_context(|| format!("stat {}", path.display()))?.size();
    Ok(Sink::File { file, size })
}

/// `LOG.1`, `LOG.2.gz`: the higher, the older.
pub fn numbered(path: &Path, n: u32, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}{end}"));
    PathBuf::from(name)
}

/// `FILE` becomes `FILE.gz`.
pub fn compress(path: &Path) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    let done = PathBuf::from(name);
    let new = done.with_extension("gz.new");
    let mut from = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let to = File::create(&new).with_context(|| format!("create {}", new.display()))?;
    let mut gz = flate2::write::GzEncoder::new(to, flate2::Compression::default());
    std::io::copy(&mut from, &mut gz).with_context(|| format!("compress {}", path.display()))?;
    gz.finish().with_context(|| format!("write {}", new.display()))?;
    std::fs::rename(&new, &done).with_context(|| format!("rename {}", new.display()))?;
    crate::task::remove(path)
}

/// How many bytes at the end begin a character that is not complete (UTF-8).
fn incomplete(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let length = match byte {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if length > back { back } else { 0 };
    }
    0
}

/// `{"log":"…\n","stream":"stdout","time":"…"}`
fn json_record(out: &mut Vec<u8>, stream: Stream, line: &[u8], now: &str) {
    out.extend_from_slice(b"{\"log\":\"");
    escape(out, line);
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(b"\",\"time\":\"");
    out.extend_from_slice(now.as_bytes());
    out.extend_from_slice(b"\"}\n");
}

/// A JSON string's inside. What is no UTF-8 becomes U+FFFD.
fn escape(out: &mut Vec<u8>, mut rest: &[u8]) {
    loop {
        let (plain, special) = rest.split_at(plain(rest));
        out.extend_from_slice(plain);
        let Some(first) = special.first() else { return };
        let mut length = 1;
        match first {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x80 => out.extend_from_slice(format!("\\u{first:04x}").as_bytes()),
            0x80.. => {
                length = special.iter().position(|b| *b < 0x80).unwrap_or(special.len());
                for chunk in special[..length].utf8_chunks() {
                    out.extend_from_slice(chunk.valid().as_bytes());
                    if !chunk.invalid().is_empty() {
                        out.extend_from_slice("\u{fffd}".as_bytes());
                    }
                }
            }
        }
        rest = &special[length..];
    }
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);
const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);

/// The high bit of each byte of a word that is less than `than`, which is at most 0x80. Above the first one there may be too many.
fn less(word: u64, than: u8) -> u64 {
    word.wrapping_sub(ONES * u64::from(than)) & !word & HIGH
}

/// The first byte for which `marks` has set the high bit of a word, or for which `one` says so where no whole word is left.
fn find(bytes: &[u8], marks: impl Fn(u64) -> u64, one: impl Fn(u8) -> bool) -> usize {
    let words = bytes.chunks_exact(8);
    let tail = words.remainder();
    for (n, word) in words.enumerate() {
        let found = marks(u64::from_le_bytes(word.try_into().unwrap_or_default()));
        if found != 0 {
            return n * 8 + (found.trailing_zeros() / 8) as usize;
        }
    }
    bytes.len() - tail.len() + tail.iter().position(|b| one(*b)).unwrap_or(tail.len())
}

/// How many bytes stand in a JSON string as they are: eight at a time, as this is most of what a busy log costs.
fn plain(bytes: &[u8]) -> usize {
    let marks = |word: u64| {
        let is = |byte: u8| less(word ^ (ONES * u64::from(byte)), 1);
        word & HIGH | less(word, 0x20) | is(b'"') | is(b'\\')
    };
    find(bytes, marks, |b| !(0x20..0x80).contains(&b) || b == b'"' || b == b'\\')
}

/// The first line with its end, or all there is.
fn line_length(bytes: &[u8]) -> usize {
    let end = find(bytes, |word| less(word ^ (ONES * u64::from(b'\n')), 1), |b| b == b'\n');
    (end + 1).min(bytes.len())
}

/// `TIME STREAM F text`; `P`: the line goes on in the next record.
fn k8s_record(out: &mut Vec<u8>, stream: Stream, line: &[u8], now: &str) {
    out.extend_from_slice(now.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(if line.ends_with(b"\n") { b" F " } else { b" P " });
    out.extend_from_slice(line);
    if !line.ends_with(b"\n") {
        out.push(b'\n');
    }
}

/// The journal's native protocol: `NAME=text`, or the name, a length of eight bytes and the bytes.
fn journal_entry(fields: &str, stream: Stream, line: &[u8]) -> Vec<u8> {
    let priority = if stream == Stream::Stdout { 6 } else { 3 };
    let mut out = format!("PRIORITY={priority}\n{fields}").into_bytes();
    let text = line.strip_suffix(b"\n");
    if text.is_none() {
        out.extend_from_slice(b"CONTAINER_PARTIAL_MESSAGE=true\n");
    }
    let text = text.unwrap_or(line);
    out.extend_from_slice(b"MESSAGE\n");
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text);
    out.push(b'\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(dir: &Path, driver: LogDriver) -> (Log, PathBuf) {
        let path = dir.join("log");
        let options = LogOptions {
            driver,
            path: path.clone(),
            max_file: 1,
            max_buffer: 1 << 20,
            ..LogOptions::default()
        };
        (Log::open("c", &options).unwrap(), path)
    }

    #[test]
    fn records() {
        let mut out = Vec::new();
        json_record(&mut out, Stream::Stderr, b"a\"\\\x01\xff\tz\n", "T");
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"log\":\"a\\\"\\\\\\u0001\u{fffd}\\tz\\n\",\"stream\":\"stderr\",\"time\":\"T\"}\n"
        );
        let mut out = Vec::new();
        k8s_record(&mut out, Stream::Stdout, b"x\n", "T");
        k8s_record(&mut out, Stream::Stdout, b"y", "T");
        assert_eq!(out, b"T stdout F x\nT stdout P y\n");
    }

    proptest::proptest! {
        /// As the library reads it, and in the same lines as byte by byte.
        #[test]
        fn fuzz_records(bytes in proptest::collection::vec(proptest::prop_oneof![proptest::num::u8::ANY, 0x1eu8..0x24, 0x5au8..0x5e, 8u8..12, 0x7eu8..0x82], 0..80)) {
            let mut out = Vec::new();
            json_record(&mut out, Stream::Stdout, &bytes, "T");
            let read: serde_json::Value = serde_json::from_slice(&out).unwrap();
            proptest::prop_assert_eq!(read["log"].as_str().unwrap(), String::from_utf8_lossy(&bytes));
            let (mut lines, mut left) = (Vec::new(), &bytes[..]);
            while !left.is_empty() {
                let (line, after) = left.split_at(line_length(left));
                lines.push(line);
                left = after;
            }
            let wanted: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
            proptest::prop_assert_eq!(lines, wanted);
        }
    }

    #[test]
    fn characters_are_not_cut() {
        for (bytes, cut) in [
            ("aé".as_bytes(), 0),
            (&"é".as_bytes()[..1], 1),
            (&"a€".as_bytes()[..3], 2),
            (b"a\xff", 0),
            (b"", 0),
        ] {
            assert_eq!(incomplete(bytes), cut, "{bytes:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let (mut log, path) = log(dir.path(), LogDriver::JsonFile);
        let euro = "€\n".as_bytes();
        log.add(Stream::Stdout, &euro[..2]);
        log.add(Stream::Stdout, &euro[2..]);
        log.add(Stream::Stdout, &euro[..1]);
        log.end(Stream::Stdout);
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("\"log\":\"€\\n\""), "{text}");
        assert!(text.contains("\"log\":\"\u{fffd}\""), "{text}");
    }

    /// /dev/full takes nothing, as a full disk does.
    #[test]
    fn what_finds_no_room_is_counted_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, path) = log(dir.path(), LogDriver::K8sFile);
        log.options.max_buffer = 200;
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let good = std::mem::replace(&mut log.sink, Sink::File { file: full, size: 0 });
        for n in 0..20 {
            log.add(Stream::Stdout, format!("line {n}\n").as_bytes());
        }
        assert!(log.is_stuck() && !log.must_wait());
        assert!(log.out.len() <= 200);
        log.sink = good;
        log.tried = None;
        log.flush();
        assert!(!log.is_stuck());
        log.add(Stream::Stdout, b"after\n");
        let text = std::fs::read_to_string(&path).unwrap();
        let kept = text.lines().filter(|l| l.contains(" line ")).count();
        assert!((1..20).contains(&kept), "{text}");
        let told = format!("berth-shim: {} lines (", 20 - kept);
        assert!(text.contains(&told), "{text}");
        assert!(text.contains("No space left on device"), "{text}");
        // In order: what was kept, the count, what came later.
        assert!(text.find(&told) > text.find("line 0") && text.find("after") > text.find(&told), "{text}");
    }

    #[test]
    fn blocking_keeps_everything() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = log(dir.path(), LogDriver::K8sFile);
        (log.options.max_buffer, log.options.blocking) = (10, true);
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        log.sink = Sink::File { file: full, size: 0 };
        log.add(Stream::Stdout, b"a long enough line\n");
        assert!(log.must_wait() && log.lost == Lost::default());
    }

    #[test]
    fn files_are_turned_over() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, path) = log(dir.path(), LogDriver::K8sFile);
        (log.options.max_size, log.options.max_file, log.options.compress) = (100, 3, true);
        for n in 0..3 {
            while !log.is_full() {
                log.add(Stream::Stdout, format!("round {n}\n").as_bytes());
            }
            let old = log.rotate().unwrap().unwrap();
            compress(&old).unwrap();
        }
        log.add(Stream::Stdout, b"last\n");
        assert!(numbered(&path, 1, ".gz").exists() && numbered(&path, 2, ".gz").exists());
        assert!(!numbered(&path, 3, ".gz").exists() && !numbered(&path, 1, "").exists());
        let mut text = String::new();
        let first = File::open(numbered(&path, 1, ".gz")).unwrap();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(first), &mut text).unwrap();
        assert!(text.contains("round 2") && !text.contains("round 1"), "{text}");
    }
}
