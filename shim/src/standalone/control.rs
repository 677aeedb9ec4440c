//! How do others speak to a supervisor? Over its socket, which only the owner may use: a JSON object a line, and an answer a line.
//!
//! ```text
//!  {"do":"stop","timeout":10}         ▶  {} when it is done, or {"error":"…"}
//!  {"do":"wait"}                      ▶  {"exitCode":0} when it has ended for good
//!  {"do":"attach","stdin":true}       ▶  {"tty":false}, then frames in both directions:
//!     kind (1 byte), length (4 bytes, big endian), bytes
//!     ▶ 1 standard output, 2 standard error, 3 the end: its status in decimal
//!     ◀ 0 input, 4 the end of input, 5 the size of the terminal: "ROWS COLUMNS"
//! ```
//! A listener that does not read is not waited for: what finds no room for it is counted, and it is told.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use report::{Kind, error};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::logs::Stream;
use super::state::{Dir, Status};
use super::supervisor::Supervisor;
use crate::executor::{Bell, First, Once, first};
use crate::output::Listener as _;

/// What can be asked for.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Request {
    /// Until it runs for the first time.
    Started,
    /// Until it has ended for good.
    Wait,
    Signal {
        signal: i32,
        all: bool,
    },
    Stop {
        timeout: Option<u64>,
    },
    Restart {
        timeout: Option<u64>,
    },
    Pause,
    Resume,
    Resize {
        rows: u16,
        columns: u16,
    },
    Attach {
        stdin: bool,
    },
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tty: Option<bool>,
}

pub const INPUT: u8 = 0;
pub const OUTPUT: u8 = 1;
pub const ERROR: u8 = 2;
pub const END: u8 = 3;
pub const END_OF_INPUT: u8 = 4;
pub const SIZE: u8 = 5;

/// Bytes that may wait for a listener.
const MOST: usize = 1 << 20;
/// The longest frame and the longest request that we take.
const LONGEST: usize = 1 << 16;

pub fn frame(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 5);
    out.push(kind);
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
    out
}

/// The first whole frame, and how long it is with its header.
pub fn parse_frame(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let [kind, a, b, c, d, ..] = *bytes else { return None };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    Some((kind, bytes.get(5..5 + length)?, 5 + length))
}

/// Somebody who is attached.
#[derive(Default)]
pub struct Listener {
    waiting: RefCell<VecDeque<u8>>,
    lost: Cell<u64>,
    bell: Bell,
    ended: Cell<bool>,
    /// All was written, or nobody reads any more.
    pub done: Once<()>,
    /// It does not read any more.
    gone: Once<()>,
}

impl crate::output::Listener for Listener {
    fn output(&self, stream: Stream, bytes: &[u8]) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() + bytes.len() > MOST {
            self.lost.set(self.lost.get() + bytes.len() as u64);
            return;
        }
        self.tell_lost(&mut waiting);
        waiting.extend(frame(if stream == Stream::Stdout { OUTPUT } else { ERROR }, bytes));
        self.bell.ring();
    }

    fn is_gone(&self) -> bool {
        self.done.get().is_some() || self.gone.get().is_some()
    }
}

impl Listener {
    fn tell_lost(&self, waiting: &mut VecDeque<u8>) {
        if let lost @ 1.. = self.lost.take() {
            let said =
                format!("\nberth-shim: {lost} bytes of output were not shown: they were not read in time\n");
            waiting.extend(frame(ERROR, said.as_bytes()));
        }
    }

    fn end(&self, status: i32) {
        let mut waiting = self.waiting.borrow_mut();
        self.tell_lost(&mut waiting);
        waiting.extend(frame(END, status.to_string().as_bytes()));
        drop(waiting);
        self.ended.set(true);
        self.bell.ring();
    }

    async fn write(&self, on: &crate::executor::Loop, to: &OwnedFd) {
        loop {
            let bytes: Vec<u8> = std::mem::take(&mut *self.waiting.borrow_mut()).into();
            if bytes.is_empty() {
                if self.ended.get() {
                    break;
                }
                self.bell.wait().await;
                continue;
            }
            if !crate::copy::write_all(on, to, &bytes).await {
                // What it has sent before it went is still to be heard: whoever hears it tells that all is done.
                self.gone.set(());
                return;
            }
        }
        self.done.set(());
    }
}

/// Listen for requests.
pub fn serve(supervisor: &Rc<Supervisor>) -> Result<()> {
    let path = supervisor.dir.file("control.sock");
    crate::task::remove(&path)?;
    let listener = bind(&supervisor.dir.path)?;
    listener.set_nonblocking(true).context("accept without waiting")?;
    let this = supervisor.clone();
    supervisor.host.on.spawn(async move {
        loop {
            if this.host.on.readable(listener.as_fd()).await.is_err() {
                return;
            }
            while let Ok((stream, _)) = listener.accept() {
                if stream.set_nonblocking(true).is_err() {
                    continue;
                }
                let within = this.clone();
                this.host.on.spawn(async move { converse(&within, stream.into()).await });
            }
        }
    });
    Ok(())
}

/// Paths of sockets are short: named from the folder.
fn short(folder: &OwnedFd) -> String {
    format!("/proc/self/fd/{}/control.sock", std::os::fd::AsRawFd::as_raw_fd(folder))
}

fn bind(dir: &Path) -> Result<UnixListener> {
    let folder = sys::path::open_host_dir(dir).with_context(|| format!("open {}", dir.display()))?;
    // The folder keeps others out until its mode is set.
    let listener = UnixListener::bind(short(&folder)).context("listen for requests")?;
    rustix::fs::chmod(dir.join("control.sock"), rustix::fs::Mode::from_raw_mode(0o600))
        .context("chmod the socket")?;
    Ok(listener)
}

/// Requests, one after another, until the other side is gone.
async fn converse(this: &Rc<Supervisor>, stream: OwnedFd) {
    let mut input = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = input.iter().position(|b| *b == b'\n') {
                break end;
            }
            if input.len() > LONGEST || !fill(this, &stream, &mut input).await {
                return;
            }
        };
        let line: Vec<u8> = input.drain(..=end).collect();
        let request = serde_json::from_slice::<Request>(&line);
        let answer = match request {
            Ok(Request::Attach { stdin }) => return attach(this, stream, input, stdin).await,
            Ok(request) => answer(this, request).await,
            Err(e) => Err(error(Kind::BadInput, format!("request: {e}"))),
        };
        let answer = answer.unwrap_or_else(|e| Answer { error: Some(report::line(&e)), ..Answer::default() });
        if !send(this, &stream, &answer).await {
            return;
        }
    }
}

async fn send(this: &Rc<Supervisor>, stream: &OwnedFd, answer: &Answer) -> bool {
    let mut text = serde_json::to_vec(answer).unwrap_or_default();
    text.push(b'\n');
    crate::copy::write_all(&this.host.on, stream, &text).await
}

async fn fill(this: &Rc<Supervisor>, stream: &OwnedFd, input: &mut Vec<u8>) -> bool {
    if this.host.on.readable(stream.as_fd()).await.is_err() {
        return false;
    }
    read_some(stream, input)
}

fn read_some(stream: &OwnedFd, input: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    match rustix::io::read(stream, &mut buffer) {
        Ok(0) => false,
        Ok(n) => {
            input.extend_from_slice(&buffer[..n]);
            true
        }
        Err(e) => matches!(e, Errno::AGAIN | Errno::INTR),
    }
}

async fn answer(this: &Rc<Supervisor>, request: Request) -> Result<Answer> {
    let seconds = |n: Option<u64>| n.map(Duration::from_secs);
    match request {
        Request::Started => {
            let ended = this.ended.clone();
            match first(this.started.wait(), ended.wait()).await {
                First::Left(Ok(())) | First::Right(_) => {}
                First::Left(Err(e)) => bail!("{e}"),
            }
        }
        Request::Wait => {
            let exit_code = Some(this.ended.wait().await);
            return Ok(Answer { exit_code, ..Answer::default() });
        }
        Request::Signal { signal, all } => {
            let Some(run) = this.run.borrow().clone() else { bail!("{}: it does not run", this.dir.id) };
            if all {
                run.container.kill_all(&this.host, signal).await?;
            } else if signal == 9 && this.state.borrow().status == Status::Paused {
                run.container.kill(&this.host, signal).await?;
            } else {
                this.signal(&run, signal)?;
            }
        }
        Request::Stop { timeout } => this.stop(seconds(timeout)).await?,
        Request::Restart { timeout } => {
            let old = this.state.borrow().restarts;
            this.restart(seconds(timeout)).await?;
            // Until the new one runs.
            while this.ended.get().is_none() {
                let state = this.state.borrow().clone();
                if state.restarts > old && state.status == Status::Running {
                    break;
                }
                this.host.on.sleep(Duration::from_millis(5)).await;
            }
        }
        Request::Pause => this.set_paused(true).await?,
        Request::Resume => this.set_paused(false).await?,
        Request::Resize { rows, columns } => resize(this, rows, columns)?,
        Request::Attach { .. } => {}
    }
    Ok(Answer::default())
}

fn resize(this: &Supervisor, rows: u16, columns: u16) -> Result<()> {
    let run = this.run.borrow();
    let Some(terminal) = run.as_ref().and_then(|run| run.terminal.clone()) else {
        bail!("{}: it has no terminal", this.dir.id);
    };
    sys::tty::set_size(terminal.as_fd(), sys::tty::Size { rows, columns }).context("resize the terminal")
}

async fn attach(this: &Rc<Supervisor>, stream: OwnedFd, mut input: Vec<u8>, stdin: bool) {
    let answer = Answer { tty: Some(this.options.tty), ..Answer::default() };
    if !send(this, &stream, &answer).await {
        return;
    }
    let stream = Rc::new(stream);
    let listener = Rc::new(Listener::default());
    this.output.listeners.borrow_mut().push(listener.clone());
    this.listener_came.set(());
    if let Some(status) = this.ended.get() {
        listener.end(status);
    }
    let (within, to, from) = (this.host.on.clone(), stream.clone(), listener.clone());
    this.host.on.spawn(async move { from.write(&within, &to).await });
    let hear = async {
        // Input that comes before there is anybody to read it waits.
        if this.started.wait().await.is_err() {
            first(listener.done.wait(), listener.gone.wait()).await;
            return;
        }
        loop {
            while let Some((kind, bytes, length)) = parse_frame(&input) {
                let bytes = bytes.to_vec();
                input.drain(..length);
                match kind {
                    INPUT if stdin => give(this, &bytes).await,
                    END_OF_INPUT if stdin => close_input(this),
                    SIZE => {
                        let text = String::from_utf8_lossy(&bytes).into_owned();
                        let numbers: Vec<u16> = text.split(' ').filter_map(|n| n.parse().ok()).collect();
                        if let [rows, columns] = numbers[..] {
                            // It may not run just now.
                            resize(this, rows, columns).unwrap_or_default();
                        }
                    }
                    _ => {}
                }
            }
            if input.len() > LONGEST * 2 || !fill(this, &stream, &mut input).await {
                return;
            }
        }
    };
    first(hear, listener.done.wait()).await;
    listener.done.set(());
    this.output.listeners.borrow_mut().retain(|l| !Rc::ptr_eq(l, &listener));
}

/// To the process's input. One that does not read is waited for.
async fn give(this: &Supervisor, bytes: &[u8]) {
    let Some(run) = this.run.borrow().clone() else { return };
    let to = run.terminal.clone().or_else(|| run.stdin.borrow().clone());
    let Some(to) = to else { return };
    first(crate::copy::write_all(&this.host.on, &to, bytes), run.over.wait()).await;
}

fn close_input(this: &Supervisor) {
    let Some(run) = this.run.borrow().clone() else { return };
    run.stdin.take();
    this.release("stdin");
}

/// The container has ended for good: everybody is told, and waited for a little.
pub async fn finish(this: &Rc<Supervisor>, status: i32) {
    let listeners = this.output.listeners.borrow().clone();
    let error = this.state.borrow().error.clone();
    for listener in &listeners {
        if !error.is_empty() {
            listener.output(Stream::Stderr, format!("berth-shim: {}: {error}\n", this.dir.id).as_bytes());
        }
        listener.end(status);
    }
    for listener in &listeners {
        this.host.on.within(Duration::from_secs(2), listener.done.wait()).await;
    }
    // Answers of other requests are on their way.
    this.host.on.sleep(Duration::from_millis(1)).await;
}

/// The side of who asks.
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// `None`: nobody supervises it.
    pub fn connect(dir: &Dir) -> Result<Option<Client>> {
        let folder = match sys::path::open_host_dir(&dir.path) {
            Ok(folder) => folder,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("open {}", dir.path.display())),
        };
        match UnixStream::connect(short(&folder)) {
            Ok(stream) => Ok(Some(Client { stream: BufReader::new(stream) })),
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(e) => Err(e).with_context(|| format!("connect to {}", dir.file("control.sock").display())),
        }
    }

    /// The answer; `None`: the supervisor is gone before it answered.
    pub fn ask(&mut self, request: &Request) -> Result<Option<Answer>> {
        let mut text = serde_json::to_vec(request).context("write JSON")?;
        text.push(b'\n');
        if self.stream.get_mut().write_all(&text).is_err() {
            return Ok(None);
        }
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
        let answer: Answer = serde_json::from_str(&line).context("the supervisor's answer")?;
        match answer.error {
            Some(said) => Err(anyhow::Error::msg(said)),
            None => Ok(Some(answer)),
        }
    }

    /// The stream after an `attach`, and what was read of it already.
    pub fn into_stream(self) -> (UnixStream, Vec<u8>) {
        let rest = self.stream.buffer().to_vec();
        (self.stream.into_inner(), rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_frames() {
        let request = serde_json::from_str::<Request>(r#"{"do":"stop","timeout":10}"#).unwrap();
        assert_eq!(request, Request::Stop { timeout: Some(10) });
        assert_eq!(serde_json::to_string(&Request::Wait).unwrap(), r#"{"do":"wait"}"#);
        let bytes = [frame(OUTPUT, b"ab"), frame(END, b"0")].concat();
        let (kind, body, length) = parse_frame(&bytes).unwrap();
        assert_eq!((kind, body), (OUTPUT, &b"ab"[..]));
        assert_eq!(parse_frame(&bytes[length..]), Some((END, &b"0"[..], 6)));
        assert_eq!(parse_frame(&bytes[..6]), None);
    }

    #[test]
    fn a_listener_that_does_not_read_is_told_what_it_missed() {
        let listener = Listener::default();
        let chunk = vec![b'x'; 1 << 16];
        for _ in 0..32 {
            listener.output(Stream::Stdout, &chunk);
        }
        assert!(listener.waiting.borrow().len() <= MOST);
        let lost = listener.lost.get();
        assert!(lost >= 1 << 20);
        listener.waiting.borrow_mut().clear();
        listener.output(Stream::Stdout, b"y");
        let bytes: Vec<u8> = listener.waiting.borrow().iter().copied().collect();
        let (kind, said, _) = parse_frame(&bytes).unwrap();
        assert!(
            kind == ERROR
                && String::from_utf8_lossy(said).contains(&format!("{lost} bytes of output were not shown"))
        );
    }
}
