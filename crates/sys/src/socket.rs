//! Unix sockets: pairs of packets, descriptors passed along, listening below a directory descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use rustix::fs::{AtFlags, Mode};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// A connected pair that keeps message boundaries, close-on-exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Send one message, with descriptors.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receive one message of at most `buffer.len()` bytes; 0 bytes mean that the other side is gone.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            // The other side ended with our message unread: for us it is gone.
            Err(rustix::io::Errno::CONNRESET) => return Ok((0, Vec::new())),
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(list) = part {
            fds.extend(list);
        }
    }
    Ok((message.bytes, fds))
}

/// Wait for a message, leave it there, and tell its length in bytes; 0 means that the other side is gone.
pub fn next_length(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC;
    match rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut [0u8; 0][..], flags)) {
        Err(rustix::io::Errno::CONNRESET) => Ok(0),
        other => Ok(other.map(|(_, length)| length)?),
    }
}

/// Whether the other side of a connected socket is gone.
pub fn is_hung_up(socket: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

/// The address of `name` in the directory: long paths do not fit in a socket address, /proc/self/fd does.
fn address(dir: BorrowedFd<'_>, name: &str) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))?)
}

/// Listen on a packet socket `name` in the directory `dir`.
pub fn listen_at(dir: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let socket = seqpacket()?;
    rustix::net::bind(&socket, &address(dir, name)?)?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

/// Connect to the packet socket `name` in the directory `dir`.
pub fn connect_at(dir: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let socket = seqpacket()?;
    rustix::net::connect(&socket, &address(dir, name)?)?;
    Ok(socket)
}

/// Receive datagrams, from everybody and without waiting, at the socket `name` in the directory `dir`; one that is there goes.
pub fn receive_datagrams_at(dir: BorrowedFd<'_>, name: &str) -> io::Result<UnixDatagram> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let socket = UnixDatagram::bind(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))?;
    rustix::fs::chmodat(dir, name, Mode::from_raw_mode(0o777), AtFlags::empty())?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// One datagram to a socket by path, or by `@` and its name where it has none (sd_notify(3)).
pub fn send_datagram(to: &Path, bytes: &[u8]) -> io::Result<()> {
    let address = match to.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(to)?,
    };
    UnixDatagram::unbound()?.send_to_addr(bytes, &address).map(|_| ())
}

/// Wait for a connection.
pub fn accept(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::retry_on_intr(|| rustix::net::accept_with(socket, SocketFlags::CLOEXEC))?)
}

/// Connect to a stream socket by path (`--console-socket`, seccomp's listenerPath), however long the path is.
pub fn connect_stream(path: &Path) -> io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let file = rustix::fs::open(
        path,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

fn seqpacket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}
