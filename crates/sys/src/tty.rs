//! Terminals: pairs from a devpts, sizes, raw mode, the controlling terminal.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::termios::{self, SetArg, Termios};
use rustix::fs::{Mode, OFlags};

use crate::check;

/// Height and width in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub rows: u16,
    pub columns: u16,
}

/// Open a new pair from a `ptmx` device opened below `root`: (master, slave). The slave is asked of the
/// master itself (`TIOCGPTPEER`), never looked up by name.
pub fn open_pair(root: BorrowedFd<'_>, ptmx: &str) -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::fs::ResolveFlags;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let master = rustix::fs::openat2(root, ptmx, flags, Mode::empty(), resolve)?;
    let stat = rustix::fs::fstat(&master)?;
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    if device != (5, 2) {
        return Err(io::Error::other(format!(
            "{ptmx} is device {}:{}, not the terminal multiplexer 5:2",
            device.0, device.1
        )));
    }
    rustix::pty::unlockpt(&master)?;
    // SAFETY: TIOCGPTPEER takes open flags by value and returns a new descriptor.
    let slave = check(unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            master.as_raw_fd(),
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        )
    })?;
    // SAFETY: the kernel just gave us this descriptor and nobody else holds it.
    Ok((master, unsafe { OwnedFd::from_raw_fd(slave as i32) }))
}

/// Make the terminal the controlling terminal of this session leader.
pub fn set_controlling(fd: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::ioctl_tiocsctty(fd)?;
    Ok(())
}

/// `TIOCSWINSZ`.
pub fn set_size(fd: BorrowedFd<'_>, size: Size) -> io::Result<()> {
    let size =
        rustix::termios::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(fd, size)?;
    Ok(())
}

/// `TIOCGWINSZ`.
pub fn size(fd: BorrowedFd<'_>) -> io::Result<Size> {
    let s = rustix::termios::tcgetwinsize(fd)?;
    Ok(Size { rows: s.ws_row, columns: s.ws_col })
}

/// Whether the descriptor is a terminal.
pub fn is_terminal(fd: BorrowedFd<'_>) -> bool {
    rustix::termios::isatty(fd)
}

/// Leave line endings as the program in the container writes them (no ONLCR on the slave's side).
pub fn clear_onlcr(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut t = termios::tcgetattr(fd)?;
    t.output_flags.remove(termios::OutputFlags::ONLCR);
    Ok(termios::tcsetattr(fd, SetArg::TCSANOW, &t)?)
}

/// Raw mode until dropped.
#[derive(Debug)]
pub struct Raw<'a> {
    fd: BorrowedFd<'a>,
    before: Termios,
}

/// Put a terminal into raw mode (cfmakeraw(3)).
pub fn raw(fd: BorrowedFd<'_>) -> io::Result<Raw<'_>> {
    let before = termios::tcgetattr(fd)?;
    let mut now = before.clone();
    termios::cfmakeraw(&mut now);
    termios::tcsetattr(fd, SetArg::TCSANOW, &now)?;
    Ok(Raw { fd, before })
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        // The terminal may be gone; there is nobody to tell.
        termios::tcsetattr(self.fd, SetArg::TCSANOW, &self.before).unwrap_or_default();
    }
}
