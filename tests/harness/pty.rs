//! The other end of `--console-socket`, and a terminal to run a runtime in.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};

use crate::command::{PATIENCE, readable_within};

/// A listening console socket.
pub struct ConsoleSocket {
    pub path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    pub fn listen(path: &Path) -> ConsoleSocket {
        ConsoleSocket {
            path: path.to_owned(),
            listener: UnixListener::bind(path).expect("bind the console socket"),
        }
    }

    /// Take the master that a runtime sends.
    #[track_caller]
    pub fn receive(&self) -> Master {
        assert!(readable_within(&self.listener, PATIENCE), "nobody connected to the console socket");
        let (stream, _) = self.listener.accept().expect("accept");
        assert!(readable_within(&stream, PATIENCE), "nothing was sent to the console socket");
        let mut name = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut name)];
        recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).expect("recvmsg");
        let mut fds: Vec<OwnedFd> = control
            .drain()
            .filter_map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { Some(fds) } else { None })
            .flatten()
            .collect();
        assert_eq!(fds.len(), 1, "exactly one descriptor is sent");
        Master::new(fds.remove(0))
    }
}

/// The master of a terminal, and what came out of it.
pub struct Master {
    file: File,
    pub seen: String,
}

impl Master {
    fn new(fd: OwnedFd) -> Master {
        Master { file: File::from(fd), seen: String::new() }
    }

    /// A new terminal of ours, and its slave.
    pub fn open() -> (Master, File) {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("open a terminal");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let name = ptsname(&master, Vec::new()).expect("ptsname").into_string().expect("a path");
        let noctty = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
        use std::os::unix::fs::OpenOptionsExt;
        let slave =
            File::options().read(true).write(true).custom_flags(noctty).open(name).expect("open the slave");
        (Master::new(master), slave)
    }

    /// Read until `text` has appeared.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        while !self.seen.contains(text) {
            assert!(
                readable_within(&self.file, PATIENCE),
                "no {text:?} on the terminal; so far {:?}",
                self.seen
            );
            assert!(self.more(), "the terminal closed before {text:?}; it showed {:?}", self.seen);
        }
    }

    /// Read until the last slave is closed.
    #[track_caller]
    pub fn drain(&mut self) {
        loop {
            assert!(readable_within(&self.file, PATIENCE), "the terminal stays open; so far {:?}", self.seen);
            if !self.more() {
                return;
            }
        }
    }

    /// Read once, if something comes in time.
    pub fn more_within(&mut self, patience: std::time::Duration) -> bool {
        readable_within(&self.file, patience) && self.more()
    }

    fn more(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.file.read(&mut buffer) {
            Ok(n) if n > 0 => {
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
                true
            }
            _ => false, // EIO: every slave is closed
        }
    }

    pub fn say(&mut self, text: &str) {
        self.file.write_all(text.as_bytes()).expect("write to the terminal");
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.file, size).expect("resize the terminal");
    }

    /// Rows and columns.
    pub fn size(&self) -> (u16, u16) {
        let size = tcgetwinsize(&self.file).expect("size of the terminal");
        (size.ws_row, size.ws_col)
    }
}
