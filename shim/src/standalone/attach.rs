//! How does a person sit at a container? The streams of this process become its streams, until it ends or the detach keys are typed.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use report::{Kind, error};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use sys::signals::Signals;

use super::control::{self, Client, Request};
use super::state::{Dir, Status};

/// How it ended for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The container ended with this status.
    Status(i32),
    /// The keys were typed: it goes on.
    Detached,
}

/// What signals of ours mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSignal {
    /// They are the container's: `run`.
    Forward,
    /// They end us: `attach`.
    Leave,
}

/// A supervisor that was killed is waited for so long.
const RECONNECT: Duration = Duration::from_secs(10);

/// Be attached until one of both ends. `client`: a connection that was made before.
pub fn attach(
    dir: &Dir,
    mut client: Option<Client>,
    stdin: bool,
    keys: &[u8],
    on_signal: OnSignal,
) -> Result<End> {
    let signals = Signals::block().context("receive signals")?;
    let input = std::io::stdin();
    let mut typed = Keys { keys: keys.to_vec(), at: 0 };
    let mut state = Input { open: stdin };
    let mut raw = None;
    loop {
        let found = match client.take() {
            Some(client) => Some(client),
            None => reconnect(dir)?,
        };
        let Some(mut client) = found else {
            // It ended while nobody was connected.
            let state = dir.state()?;
            return Ok(End::Status(state.exit_code.unwrap_or(255)));
        };
        let Some(answer) = client.ask(&Request::Attach { stdin })? else { continue };
        let tty = answer.tty.unwrap_or(false);
        if tty && raw.is_none() && stdin && sys::tty::is_terminal(input.as_fd()) {
            raw = Some(sys::tty::raw(input.as_fd()).context("make the terminal raw")?);
        }
        let (stream, rest) = client.into_stream();
        if tty {
            send_size(&stream);
        }
        let keys = if tty { Some(&mut typed) } else { None };
        if let Some(end) = converse(&stream, rest, &signals, &mut state, input.as_fd(), keys, dir, on_signal)?
        {
            return Ok(end);
        }
    }
}

struct Input {
    open: bool,
}

/// A supervisor, once there is one; `None`: the container has ended.
fn reconnect(dir: &Dir) -> Result<Option<Client>> {
    let until = Instant::now() + RECONNECT;
    loop {
        if let Some(client) = Client::connect(dir)? {
            return Ok(Some(client));
        }
        if dir.state().map_or(true, |state| state.status == Status::Exited) {
            return Ok(None);
        }
        if Instant::now() > until {
            bail!("{}: nobody supervises it", dir.id);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[allow(clippy::too_many_arguments, reason = "the parts of one conversation")]
fn converse(
    stream: &UnixStream,
    mut received: Vec<u8>,
    signals: &Signals,
    input: &mut Input,
    stdin: BorrowedFd<'_>,
    mut keys: Option<&mut Keys>,
    dir: &Dir,
    on_signal: OnSignal,
) -> Result<Option<End>> {
    loop {
        while let Some((kind, bytes, length)) = control::parse_frame(&received) {
            match kind {
                control::OUTPUT => write_out(&mut std::io::stdout(), bytes)?,
                control::ERROR => write_out(&mut std::io::stderr(), bytes)?,
                control::END => {
                    let status = String::from_utf8_lossy(bytes).parse().unwrap_or(255);
                    return Ok(Some(End::Status(status)));
                }
                _ => {}
            }
            received.drain(..length);
        }
        let mut fds = vec![PollFd::new(stream, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        if input.open {
            fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e).context("wait for the container"),
        }
        let came: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if came[1] {
            while let Some(signal) = signals.next().context("receive signals")? {
                if signal == signals.window_change() {
                    send_size(stream);
                } else if signal != signals.child() && signals.is_deadly(signal) {
                    match on_signal {
                        OnSignal::Forward => forward(dir, signal)?,
                        OnSignal::Leave => return Ok(Some(End::Detached)),
                    }
                }
            }
        }
        if came[0] {
            let mut buffer = [0; 16384];
            match rustix::io::read(stream, &mut buffer) {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(None),
                Ok(n) => received.extend_from_slice(&buffer[..n]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(e) => return Err(e).context("read from the supervisor"),
            }
        }
        if came.get(2).copied().unwrap_or(false) {
            let mut buffer = [0; 8192];
            let read = match rustix::io::read(stdin, &mut buffer) {
                Ok(n) => n,
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(_) => 0,
            };
            if read == 0 {
                input.open = false;
                if send(stream, control::END_OF_INPUT, &[]).is_err() {
                    return Ok(None);
                }
                continue;
            }
            let (bytes, detach) = match &mut keys {
                Some(keys) => keys.look(&buffer[..read]),
                None => (buffer[..read].to_vec(), false),
            };
            if !bytes.is_empty() && send(stream, control::INPUT, &bytes).is_err() {
                return Ok(None);
            }
            if detach {
                return Ok(Some(End::Detached));
            }
        }
    }
}

/// To the container, over a connection of its own.
fn forward(dir: &Dir, signal: i32) -> Result<()> {
    let Some(mut client) = Client::connect(dir)? else { return Ok(()) };
    match client.ask(&Request::Signal { signal, all: false }) {
        // It may have ended just now, or not have begun.
        Ok(_) => Ok(()),
        Err(e) => {
            log::debug!("{e:#}");
            Ok(())
        }
    }
}

fn send(mut stream: &UnixStream, kind: u8, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(&control::frame(kind, bytes))
}

/// The size of the terminal that we are at, if we are at one.
fn send_size(stream: &UnixStream) {
    for fd in [0, 1, 2] {
        if let Ok(size) = sys::tty::size(sys::fd::borrow(fd)) {
            // Whoever is gone is noticed elsewhere.
            send(stream, control::SIZE, format!("{} {}", size.rows, size.columns).as_bytes())
                .unwrap_or_default();
            return;
        }
    }
}

/// All of it, also where the other side of a pipe is slow and the pipe does not wait.
fn write_out(to: &mut (impl Write + AsRawFd), mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                let fd = sys::fd::borrow(to.as_raw_fd());
                let second = Timespec { tv_sec: 1, tv_nsec: 0 };
                match poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(&second)) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(e) => return Err(e).context("wait for the output"),
                }
            }
            Err(e) => return Err(e).context("write the output"),
        }
    }
    to.flush().context("write the output")
}

/// The keys by which one leaves.
#[derive(Debug)]
struct Keys {
    keys: Vec<u8>,
    at: usize,
}

impl Keys {
    /// What of the typed bytes goes on, and whether all keys were typed.
    fn look(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (typed.to_vec(), false);
        }
        let mut out = Vec::new();
        for byte in typed {
            if *byte == self.keys[self.at] {
                self.at += 1;
                if self.at == self.keys.len() {
                    self.at = 0;
                    return (out, true);
                }
                continue;
            }
            // They were not meant so.
            out.extend_from_slice(&self.keys[..self.at]);
            self.at = usize::from(*byte == self.keys[0]);
            if self.at == 0 {
                out.push(*byte);
            }
        }
        (out, false)
    }
}

/// `ctrl-p,ctrl-q`: letters, or `ctrl-` and one of a to z @ [ \ ] ^ _.
pub fn parse_keys(text: &str) -> Result<Vec<u8>> {
    let wrong = |key: &str| {
        error(Kind::BadInput, format!("--detach-keys: {key:?}: expected a letter, or ctrl- and a letter"))
    };
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(',')
        .map(|key| match (key.strip_prefix("ctrl-"), key.as_bytes()) {
            (Some(rest), _) => match rest.as_bytes() {
                [c @ (b'a'..=b'z' | b'@' | b'['..=b'_')] => Ok(c.to_ascii_uppercase() & 0x1f),
                _ => Err(wrong(key)),
            },
            (None, [c]) => Ok(*c),
            (None, _) => Err(wrong(key)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys() {
        assert_eq!(parse_keys("ctrl-p,ctrl-q").unwrap(), [0x10, 0x11]);
        assert_eq!(parse_keys("a,ctrl-@,ctrl-\\").unwrap(), [b'a', 0, 0x1c]);
        assert!(parse_keys("ctrl-").is_err() && parse_keys("ab").is_err());
        let mut keys = Keys { keys: vec![0x10, 0x11], at: 0 };
        assert_eq!(keys.look(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.look(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(keys.look(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.look(b"\x11rest"), (Vec::new(), true));
    }
}
