//! How do bytes get from one descriptor to another while everything else goes on? For terminals, whose other end nobody but us has.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;

use crate::executor::{Loop, Once, first};

/// A terminal's master, and the copying to and from it.
#[derive(Clone, Debug)]
pub struct Terminal {
    master: Rc<OwnedFd>,
    /// Everything that was written to the terminal has been handed on.
    pub drained: Once<()>,
    stop: Once<()>,
}

const CHUNK: usize = 8192;

impl Terminal {
    /// Copy until the last process has closed the terminal, or `stop`.
    pub fn new(on: &Loop, master: OwnedFd, input: Option<OwnedFd>, output: OwnedFd) -> Terminal {
        let terminal = Terminal { master: Rc::new(master), drained: Once::default(), stop: Once::default() };
        let this = terminal.clone();
        let within = on.clone();
        on.spawn(async move {
            first(copy(&within, &this.master, &output), this.stop.wait()).await;
            this.drained.set(());
        });
        if let Some(input) = input {
            let (within, this) = (on.clone(), terminal.clone());
            on.spawn(async move {
                first(copy(&within, &input, &this.master), this.drained.wait()).await;
            });
        }
        terminal
    }

    pub fn resize(&self, size: sys::tty::Size) -> std::io::Result<()> {
        sys::tty::set_size(self.master.as_fd(), size)
    }

    /// Whoever still has the terminal open is not waited for any more.
    pub fn stop(&self) {
        self.stop.set(());
    }
}

/// Until the end of either side. The descriptors do not wait themselves.
async fn copy(on: &Loop, from: &OwnedFd, to: &OwnedFd) {
    loop {
        if on.readable(from.as_fd()).await.is_err() {
            return;
        }
        match pass_on(from, to) {
            Ok(None) => {}
            Ok(Some(rest)) => {
                if !write_all(on, to, &rest).await {
                    return;
                }
            }
            // A terminal that nobody has open (any more) gives EIO.
            Err(Errno::IO | Errno::PIPE) => return,
            Err(e) => {
                log::warn!("copy a stream: {e}");
                return;
            }
        }
    }
}

/// What can be read and written at once; the rest that could not be written. (Not async: the buffer would be part of every waiting
/// task.) `EPIPE`: one of both is at its end.
fn pass_on(from: &OwnedFd, to: &OwnedFd) -> Result<Option<Vec<u8>>, Errno> {
    let mut buffer = [0; CHUNK];
    let read = match rustix::io::read(from, &mut buffer) {
        Ok(0) => return Err(Errno::PIPE),
        Ok(n) => n,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut at = 0;
    while at < read {
        match rustix::io::write(to, &buffer[at..read]) {
            Ok(n) => at += n,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(Some(buffer[at..read].to_vec())),
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// Write all, however long it takes; `false`: nobody takes it.
pub async fn write_all(on: &Loop, to: &OwnedFd, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                if on.writable(to.as_fd()).await.is_err() {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}

/// Whether a pipe's reader would find nothing, now and ever.
pub fn is_at_end(pipe: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let polled = poll(&mut fds, Some(&now)).is_ok();
    let flags = fds[0].revents();
    polled && flags.contains(PollFlags::HUP) && !flags.contains(PollFlags::IN)
}
