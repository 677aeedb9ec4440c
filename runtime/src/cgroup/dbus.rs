//! As much of the D-Bus protocol as talking to systemd takes: one connection, calls, one awaited signal.
//!
//! ```text
//! connect ─▶ "\0AUTH EXTERNAL uid", BEGIN ─▶ OK ─▶ messages: header, body
//! header: 'l' type flags 1 | body length | serial | array of (code, variant) | padding to 8
//! ```
//! Numbers are little-endian in what we send; replies may come either way.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A value, of the types that unit properties have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Bool(bool),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Str(String),
    Strings(Vec<String>),
    U32s(Vec<u32>),
    Bytes(Vec<u8>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Bool(_) => "b",
            Value::I32(_) => "i",
            Value::U32(_) => "u",
            Value::I64(_) => "x",
            Value::U64(_) => "t",
            Value::Str(_) => "s",
            Value::Strings(_) => "as",
            Value::U32s(_) => "au",
            Value::Bytes(_) => "ay",
        }
    }
}

/// Unit properties, in order.
pub(super) type Properties = Vec<(Cow<'static, str>, Value)>;

/// The bytes of a message, aligned from its start.
#[derive(Default)]
pub(super) struct Body {
    bytes: Vec<u8>,
    signature: String,
}

impl Body {
    pub(super) fn str(mut self, value: &str) -> Body {
        put_str(&mut self.bytes, value);
        self.signature.push('s');
        self
    }
    pub(super) fn bool(mut self, value: bool) -> Body {
        put_u32(&mut self.bytes, u32::from(value));
        self.signature.push('b');
        self
    }
    pub(super) fn u32s(mut self, values: &[u32]) -> Body {
        put_value(&mut self.bytes, &Value::U32s(values.to_vec()));
        self.signature.push_str("au");
        self
    }
    /// `a(sv)`
    pub(super) fn properties(mut self, properties: &Properties) -> Body {
        put_array(&mut self.bytes, 8, |out| {
            for (name, value) in properties {
                pad(out, 8);
                put_str(out, name);
                put_signature(out, value.signature());
                put_value(out, value);
            }
        });
        self.signature.push_str("a(sv)");
        self
    }
    /// `a(sa(sv))`: the auxiliary units, of which we have none.
    pub(super) fn no_units(mut self) -> Body {
        put_array(&mut self.bytes, 8, |_| {});
        self.signature.push_str("a(sa(sv))");
        self
    }
}

fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    pad(out, 4);
    out.extend(value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    pad(out, 8);
    out.extend(value.to_le_bytes());
}

fn put_str(out: &mut Vec<u8>, value: &str) {
    // No string of ours is near 4 GiB.
    put_u32(out, value.len() as u32);
    out.extend(value.as_bytes());
    out.push(0);
}

fn put_signature(out: &mut Vec<u8>, value: &str) {
    out.push(value.len() as u8);
    out.extend(value.as_bytes());
    out.push(0);
}

fn put_array(out: &mut Vec<u8>, align: usize, elements: impl FnOnce(&mut Vec<u8>)) {
    put_u32(out, 0);
    let length_at = out.len() - 4;
    pad(out, align);
    let start = out.len();
    elements(out);
    let length = (out.len() - start) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Bool(value) => put_u32(out, u32::from(*value)),
        Value::I32(value) => put_u32(out, value.cast_unsigned()),
        Value::U32(value) => put_u32(out, *value),
        Value::I64(value) => put_u64(out, value.cast_unsigned()),
        Value::U64(value) => put_u64(out, *value),
        Value::Str(value) => put_str(out, value),
        Value::Strings(values) => put_array(out, 4, |out| values.iter().for_each(|v| put_str(out, v))),
        Value::U32s(values) => put_array(out, 4, |out| values.iter().for_each(|v| put_u32(out, *v))),
        Value::Bytes(bytes) => put_array(out, 1, |out| out.extend(bytes)),
    }
}

/// What a peer sent.
#[derive(Debug, Default)]
pub(super) struct Message {
    kind: u8,
    reply_to: u32,
    member: String,
    error: String,
    /// The strings and object paths that the body begins with, as far as it has no other types between.
    pub(super) strings: Vec<String>,
}

const RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// The error name that a peer answered a call with.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) name: String,
    text: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.text.is_empty() { &self.name } else { &self.text })
    }
}

impl std::error::Error for Refused {}

/// Where calls go.
pub(super) struct Target {
    pub(super) destination: &'static str,
    pub(super) path: &'static str,
    pub(super) interface: &'static str,
}

/// One authenticated connection.
pub(super) struct Connection {
    stream: UnixStream,
    serial: u32,
    /// A private connection has no bus between: no names, no matches.
    direct: bool,
    signals: VecDeque<Message>,
}

/// No answer of systemd takes longer, unless it is stuck.
const PATIENCE: Duration = Duration::from_secs(30);

impl Connection {
    /// Connect to a socket; `direct`: it is the program itself that listens, not a bus.
    pub(super) fn open(path: &Path, direct: bool) -> Result<Connection> {
        let at = || path.display().to_string();
        let stream = UnixStream::connect(path).with_context(|| format!("connect to {}", at()))?;
        stream.set_read_timeout(Some(PATIENCE)).with_context(at)?;
        stream.set_write_timeout(Some(PATIENCE)).with_context(at)?;
        let mut connection = Connection { stream, serial: 0, direct, signals: VecDeque::new() };
        connection.authenticate(own_uid()?).with_context(|| format!("authenticate at {}", at()))?;
        if !direct {
            let bus = Target {
                destination: "org.freedesktop.DBus",
                path: "/org/freedesktop/DBus",
                interface: "org.freedesktop.DBus",
            };
            connection.call(&bus, "Hello", Body::default()).context("call Hello")?;
        }
        Ok(connection)
    }

    /// All of it is said at once, and no message before the answer: a systemd that reads the last line of the
    /// authentication together with a first short message would wait for more.
    fn authenticate(&mut self, uid: u32) -> Result<()> {
        let hex: String = uid.to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        self.stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes())?;
        let answer = self.line()?;
        if !answer.starts_with("OK") {
            bail!("the peer answered {answer:?} to user id {uid}");
        }
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
            if line.len() > 4096 {
                bail!("the peer does not speak D-Bus");
            }
        }
        line.truncate(line.len() - 2);
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// Call a method and wait for its answer.
    pub(super) fn call(&mut self, target: &Target, method: &str, body: Body) -> Result<Message> {
        self.serial += 1;
        let serial = self.serial;
        let message = self.encode(target, method, &body, serial);
        self.stream.write_all(&message).context("send")?;
        let until = Instant::now() + PATIENCE;
        loop {
            let message = self.receive(until)?;
            match message.kind {
                RETURN if message.reply_to == serial => return Ok(message),
                ERROR if message.reply_to == serial => {
                    let text = message.strings.into_iter().next().unwrap_or_default();
                    return Err(Refused { name: message.error, text }.into());
                }
                SIGNAL => self.signals.push_back(message),
                _ => {}
            }
        }
    }

    /// Wait for a signal that `is` the one.
    pub(super) fn signal(&mut self, member: &str, is: impl Fn(&Message) -> bool) -> Result<Message> {
        let until = Instant::now() + PATIENCE;
        loop {
            let message = match self.signals.pop_front() {
                Some(message) => message,
                None => self.receive(until)?,
            };
            if message.kind == SIGNAL && message.member == member && is(&message) {
                return Ok(message);
            }
        }
    }

    fn encode(&self, target: &Target, method: &str, body: &Body, serial: u32) -> Vec<u8> {
        let mut out = vec![b'l', 1, 0, 1];
        put_u32(&mut out, body.bytes.len() as u32);
        put_u32(&mut out, serial);
        put_array(&mut out, 8, |out| {
            let field = |out: &mut Vec<u8>, code: u8, signature: &str, value: &str| {
                pad(out, 8);
                out.push(code);
                put_signature(out, signature);
                if signature == "g" { put_signature(out, value) } else { put_str(out, value) }
            };
            field(out, 1, "o", target.path);
            field(out, 2, "s", target.interface);
            field(out, 3, "s", method);
            if !self.direct {
                field(out, 6, "s", target.destination);
            }
            if !body.signature.is_empty() {
                field(out, 8, "g", &body.signature);
            }
        });
        pad(&mut out, 8);
        out.extend(&body.bytes);
        out
    }

    fn receive(&mut self, until: Instant) -> Result<Message> {
        if Instant::now() > until {
            bail!("no answer in {} s", PATIENCE.as_secs());
        }
        let mut head = vec![0; 16];
        self.stream.read_exact(&mut head).map_err(late)?;
        let big = head[0] == b'B';
        let number = |at: usize, bytes: &[u8]| {
            let four = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
            if big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
        };
        let body = number(4, &head) as usize;
        let fields = (number(12, &head) as usize).next_multiple_of(8);
        if body.max(fields) > 1 << 26 {
            bail!("the peer sent a message of {} bytes, more than D-Bus allows", body.max(fields));
        }
        head.resize(16 + fields + body, 0);
        self.stream.read_exact(&mut head[16..]).map_err(late)?;
        let end = 16 + number(12, &head) as usize;
        decode(&head, end, 16 + fields, big).context("the peer sent a broken message")
    }
}

fn late(e: std::io::Error) -> anyhow::Error {
    match e.kind() {
        std::io::ErrorKind::WouldBlock => anyhow::anyhow!("no answer in {} s", PATIENCE.as_secs()),
        _ => anyhow::Error::new(e).context("receive"),
    }
}

/// Our user id as the peer sees it, who is outside of our user namespace if we are in one.
fn own_uid() -> Result<u32> {
    let (euid, _) = sys::user::effective_ids();
    let map = sys::cgroupfs::read(Path::new("/proc/self/uid_map")).context("read /proc/self/uid_map")?;
    Ok(outer_id(&map, euid))
}

/// A line of the map: first id inside, first id outside, how many.
fn outer_id(map: &str, id: u32) -> u32 {
    let outer = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(|n| n.parse::<u32>().ok());
        let (inside, outside, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let offset = id.checked_sub(inside).filter(|offset| *offset < count)?;
        outside.checked_add(offset)
    };
    map.lines().find_map(outer).unwrap_or(id)
}

/// Read a message: what `Message` keeps, the rest is skipped.
fn decode(bytes: &[u8], fields_end: usize, body_at: usize, big: bool) -> Result<Message> {
    let mut message = Message { kind: bytes[1], ..Message::default() };
    let mut signature = String::new();
    let mut reader = Reader { bytes: &bytes[..fields_end], at: 16, big };
    while reader.at < fields_end {
        reader.align(8);
        let code = reader.byte()?;
        let kind = reader.signature()?;
        match (code, kind.as_str()) {
            (3, "s") => message.member = reader.string()?,
            (4, "s") => message.error = reader.string()?,
            (5, "u") => message.reply_to = reader.u32()?,
            (8, "g") => signature = reader.signature()?,
            (_, "s" | "o") => drop(reader.string()?),
            (_, "g") => drop(reader.signature()?),
            (_, "u") => drop(reader.u32()?),
            (_, kind) => bail!("header field {code} of type {kind}"),
        }
    }
    let mut body = Reader { bytes: &bytes[body_at..], at: 0, big };
    for kind in signature.chars() {
        match kind {
            's' | 'o' => message.strings.push(body.string()?),
            'u' | 'b' | 'i' => drop(body.u32()?),
            _ => break,
        }
    }
    Ok(message)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big: bool,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }
    fn take(&mut self, length: usize) -> Result<&[u8]> {
        let end = self.at.checked_add(length).context("a length overflows")?;
        let taken = self.bytes.get(self.at..end).context("it ends too early")?;
        self.at = end;
        Ok(taken)
    }
    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }
    fn u32(&mut self) -> Result<u32> {
        self.align(4);
        let big = self.big;
        let four = self.take(4)?;
        let four = [four[0], four[1], four[2], four[3]];
        Ok(if big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) })
    }
    fn string(&mut self) -> Result<String> {
        let length = self.u32()? as usize;
        self.text(length)
    }
    fn signature(&mut self) -> Result<String> {
        let length = usize::from(self.byte()?);
        self.text(length)
    }
    fn text(&mut self, length: usize) -> Result<String> {
        let text = String::from_utf8(self.take(length)?.to_vec()).context("it has text that is not UTF-8")?;
        self.take(1)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target = Target { destination: "a.b", path: "/a", interface: "a.b.C" };

    /// A peer that authenticates, reads one message of `length` bytes and answers with `answer`.
    fn peer(length: usize, answer: Vec<u8>) -> (Connection, std::thread::JoinHandle<Vec<u8>>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            let mut line = [0; 26];
            theirs.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"\0AUTH EXTERNAL 37\r\nBEGIN\r\n");
            theirs.write_all(b"OK 0123\r\n").unwrap();
            let mut message = vec![0; length];
            theirs.read_exact(&mut message).unwrap();
            theirs.write_all(&answer).unwrap();
            message
        });
        let mut connection = Connection { stream: ours, serial: 0, direct: true, signals: VecDeque::new() };
        connection.authenticate(7).unwrap();
        (connection, thread)
    }

    /// A message with its header fields and body, as a peer would write it.
    fn message(kind: u8, fields: &[(u8, &str, &str)], reply_to: u32, body: Body) -> Vec<u8> {
        let mut out = vec![b'l', kind, 0, 1];
        put_u32(&mut out, body.bytes.len() as u32);
        put_u32(&mut out, 77);
        put_array(&mut out, 8, |out| {
            for (code, signature, value) in fields {
                pad(out, 8);
                out.push(*code);
                put_signature(out, signature);
                if *signature == "g" { put_signature(out, value) } else { put_str(out, value) }
            }
            pad(out, 8);
            out.push(5);
            put_signature(out, "u");
            put_u32(out, reply_to);
        });
        pad(&mut out, 8);
        out.extend(body.bytes);
        out
    }

    #[test]
    fn a_call_is_encoded_as_the_specification_says() {
        let connection = Connection {
            stream: UnixStream::pair().unwrap().0,
            serial: 0,
            direct: true,
            signals: VecDeque::new(),
        };
        let body = Body::default().str("x").properties(&vec![("P".into(), Value::U64(3))]);
        let bytes = connection.encode(&TARGET, "M", &body, 9);
        let expected = [
            &b"l\x01\x00\x01\x28\0\0\0\x09\0\0\0\x3c\0\0\0"[..],
            b"\x01\x01o\0\x02\0\0\0/a\0\0\0\0\0\0",
            b"\x02\x01s\0\x05\0\0\0a.b.C\0\0\0",
            b"\x03\x01s\0\x01\0\0\0M\0\0\0\0\0\0\0",
            b"\x08\x01g\0\x06sa(sv)\0\0\0\0\0",
            b"\x01\0\0\0x\0\0\0\x18\0\0\0\0\0\0\0",
            b"\x01\0\0\0P\0\x01t\0\0\0\0\0\0\0\0",
            b"\x03\0\0\0\0\0\0\0",
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn ids_outside_of_the_user_namespace() {
        assert_eq!(outer_id("         0          0 4294967295\n", 1000), 1000);
        let map = "0 1000 1\n1 100000 65536\n";
        assert_eq!((outer_id(map, 0), outer_id(map, 5), outer_id(map, 70_000)), (1000, 100_004, 70_000));
    }

    #[test]
    fn an_error_reply_is_an_error_with_its_name() {
        let fields = [(4, "s", "a.b.NoSuchUnit"), (8, "g", "s")];
        let answer = message(ERROR, &fields, 1, Body::default().str("Unit x not loaded."));
        let mut length = 0;
        // The same message, to know how long it is.
        let probe = Connection {
            stream: UnixStream::pair().unwrap().0,
            serial: 0,
            direct: true,
            signals: VecDeque::new(),
        };
        length += probe.encode(&TARGET, "StopUnit", &Body::default().str("x"), 1).len();
        let (mut connection, thread) = peer(length, answer);
        let error = connection.call(&TARGET, "StopUnit", Body::default().str("x")).unwrap_err();
        assert_eq!(error.to_string(), "Unit x not loaded.");
        assert_eq!(error.downcast_ref::<Refused>().unwrap().name, "a.b.NoSuchUnit");
        thread.join().unwrap();
    }

    #[test]
    fn a_signal_before_the_reply_is_kept() {
        let signal = message(SIGNAL, &[(3, "s", "JobRemoved"), (8, "g", "uoss")], 0, {
            let mut body = Body::default();
            put_u32(&mut body.bytes, 4);
            body.str("/job/4").str("x.scope").str("done")
        });
        let reply = message(RETURN, &[(8, "g", "o")], 1, Body::default().str("/job/4"));
        let probe = Connection {
            stream: UnixStream::pair().unwrap().0,
            serial: 0,
            direct: true,
            signals: VecDeque::new(),
        };
        let length = probe.encode(&TARGET, "Start", &Body::default(), 1).len();
        let (mut connection, thread) = peer(length, [signal, reply].concat());
        let job = connection.call(&TARGET, "Start", Body::default()).unwrap().strings;
        assert_eq!(job, ["/job/4"]);
        let removed = connection.signal("JobRemoved", |m| m.strings[0] == job[0]).unwrap();
        assert_eq!(removed.strings, ["/job/4", "x.scope", "done"]);
        thread.join().unwrap();
    }

    #[test]
    fn broken_messages_are_errors() {
        let good = message(RETURN, &[(8, "g", "s")], 1, Body::default().str("abc"));
        for cut in 17..good.len() {
            let mut bytes = good[..cut].to_vec();
            bytes.resize(good.len(), 0xff);
            let fields = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]) as usize;
            // It must not panic; whether it is an error depends on what was cut.
            drop(decode(&bytes, 16 + fields, (16 + fields).next_multiple_of(8), false));
        }
        assert!(
            decode(&[b'l', 2, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 8, 1, b'g'], 19, 19, false).is_err()
        );
    }
}
