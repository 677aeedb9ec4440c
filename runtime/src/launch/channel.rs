//! What do parent and child say to each other? One packet a message, over a socket pair.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, anyhow, bail};
use report::Wire;
use sys::{socket, trampoline};

/// Child to parent.
#[derive(Debug)]
pub enum FromChild {
    /// Write my id maps and answer `Continue`.
    NeedMaps,
    /// From the stage: the pid of init, and its pidfd.
    InitPid(i32, OwnedFd),
    /// Run the prestart and createRuntime hooks and answer `Continue`.
    RunHooks,
    /// The master of the container's terminal.
    Terminal(OwnedFd),
    /// The descriptor number of the seccomp listener in the child; answer `Continue`.
    SeccompListener(i32),
    /// Created; waiting for `start`.
    Ready,
    /// About to execute the program: from here on, `Closed` is good news.
    Executing,
    /// It went wrong.
    Failed(anyhow::Error),
    /// After `Executing`: the program was executed. Before: the child is gone.
    Closed,
}

const NEED_MAPS: u8 = b'M';
const INIT_PID: u8 = b'P';
const RUN_HOOKS: u8 = b'H';
const TERMINAL: u8 = b'T';
const READY: u8 = b'R';
const EXECUTING: u8 = b'X';
const FAILED: u8 = b'E';
const CONTINUE: u8 = b'c';

/// Errors are cut to this size.
const MAX_PACKET: usize = 16 * 1024;

/// One end of the conversation.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// Two connected ends.
pub fn pair() -> Result<(Channel, Channel)> {
    let (a, b) = socket::pair().context("make a socket pair")?;
    Ok((Channel(a), Channel(b)))
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Channel(fd)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Channel {
    /// The next message of the child.
    pub fn receive(&self) -> Result<FromChild> {
        // Most messages are one byte: room for the longest would be four pages to clear.
        let length = socket::next_length(self.as_fd()).context("hear from the container's process")?;
        let mut buffer = vec![0; length.clamp(1, MAX_PACKET)];
        let (n, mut fds) =
            socket::receive(self.as_fd(), &mut buffer).context("hear from the container's process")?;
        let packet = &buffer[..n];
        let Some((&tag, rest)) = packet.split_first() else { return Ok(FromChild::Closed) };
        // The trampoline writes the listener's number as 8 bytes: a small descriptor and zeros.
        if let Ok(number) = <[u8; 8]>::try_from(packet)
            && let Ok(number) = i32::try_from(u64::from_ne_bytes(number))
        {
            return Ok(FromChild::SeccompListener(number));
        }
        Ok(match tag {
            NEED_MAPS => FromChild::NeedMaps,
            RUN_HOOKS => FromChild::RunHooks,
            READY => FromChild::Ready,
            EXECUTING => FromChild::Executing,
            INIT_PID => {
                let pid = i32::from_ne_bytes(rest.try_into().context("pid of the container's process")?);
                FromChild::InitPid(pid, fds.pop().ok_or_else(|| anyhow!("no pidfd came with the pid"))?)
            }
            TERMINAL => {
                FromChild::Terminal(fds.pop().ok_or_else(|| anyhow!("no descriptor came with the terminal"))?)
            }
            FAILED => FromChild::Failed(
                crate::json::parse::<Wire>(rest).context("error of the container's process")?.into_error(),
            ),
            trampoline::REPORT_MAGIC => FromChild::Failed(reported(packet)),
            other => bail!("unknown message {other} from the container's process"),
        })
    }

    /// Child: say one of the messages without content.
    fn say(&self, tag: u8) -> Result<()> {
        socket::send(self.as_fd(), &[tag], &[]).context("report to the parent")
    }

    /// Child: `NeedMaps`.
    pub fn need_maps(&self) -> Result<()> {
        self.say(NEED_MAPS)
    }

    /// Child: `RunHooks`.
    pub fn run_hooks(&self) -> Result<()> {
        self.say(RUN_HOOKS)
    }

    /// Child: `Ready`.
    pub fn ready(&self) -> Result<()> {
        self.say(READY)
    }

    /// Child: `Executing`. Somebody who is gone need not know.
    pub fn executing(&self) -> Result<()> {
        match socket::send(self.as_fd(), &[EXECUTING], &[]) {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => other.context("report to the parent"),
        }
    }

    /// Child: `Terminal`.
    pub fn terminal(&self, master: BorrowedFd<'_>) -> Result<()> {
        socket::send(self.as_fd(), &[TERMINAL], &[master]).context("send the terminal")
    }

    /// Stage: `InitPid`.
    pub fn init_pid(&self, pid: i32, pidfd: BorrowedFd<'_>) -> Result<()> {
        let mut packet = vec![INIT_PID];
        packet.extend_from_slice(&pid.to_ne_bytes());
        socket::send(self.as_fd(), &packet, &[pidfd]).context("report the pid")
    }

    /// Child: `Failed`. Nobody may be listening any more.
    pub fn failed(&self, error: &anyhow::Error) {
        let mut wire = Wire::of(error);
        for message in &mut wire.messages {
            let end = (0..=1024.min(message.len())).rev().find(|i| message.is_char_boundary(*i));
            message.truncate(end.unwrap_or(0));
        }
        wire.messages.truncate(12);
        let mut packet = vec![FAILED];
        packet.extend(serde_json::to_vec(&wire).unwrap_or_default());
        socket::send(self.as_fd(), &packet, &[]).unwrap_or_default();
    }

    /// Parent: `Continue`. A child that is gone is noticed at the next `receive`.
    pub fn go_on(&self) -> Result<()> {
        match socket::send(self.as_fd(), &[CONTINUE], &[]) {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => other.context("answer the container's process"),
        }
    }

    /// Child: wait for `Continue`.
    pub fn wait(&self) -> Result<()> {
        let mut buffer = [0; 8];
        let (n, _) = socket::receive(self.as_fd(), &mut buffer).context("hear from the parent")?;
        if buffer[..n] != [CONTINUE] {
            bail!("the parent is gone");
        }
        Ok(())
    }

    /// Child: let the parent see the end of the conversation, while others of our descriptors stay open.
    pub fn hang_up(&self) {
        // It may be gone already.
        rustix::net::shutdown(self.as_fd(), rustix::net::Shutdown::Both).unwrap_or_default();
    }

    /// Whether the other side is gone.
    pub fn is_closed(&self) -> bool {
        socket::is_hung_up(self.as_fd())
    }
}

/// The error of a failure report of the trampoline.
fn reported(packet: &[u8]) -> anyhow::Error {
    match trampoline::parse_report(packet) {
        Some((errno, text)) => anyhow!(lower(&std::io::Error::from_raw_os_error(errno))).context(text),
        None => anyhow!("damaged failure report"),
    }
}

/// The kernel's word in lower case, as runc says it (dockerd looks for it), with the symbol.
pub fn lower(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text[..1].to_lowercase() + &text[1..]
}
