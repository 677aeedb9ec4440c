//! rtnetlink(7), as little as moving a network interface takes: blocking, one request at a time.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const NEWLINK: u16 = 16;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE_EXCL: u16 = 0x600;

const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_PID: u16 = 19;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;

const IFF_UP: u32 = 1;
const IFA_F_PERMANENT: u32 = 0x80;
const SCOPE_UNIVERSE: u8 = 0;

const HEADER: usize = 16;
const IFINFO: usize = 16;
const IFADDR: usize = 8;

/// A socket in the network namespace that it was opened in, wherever its owner goes.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

/// An address of an interface, without the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    family: u8,
    prefix: u8,
    /// Attributes as they came, `IFA_ADDRESS`, `IFA_LOCAL` and `IFA_BROADCAST`.
    parts: Vec<(u16, Vec<u8>)>,
}

impl Socket {
    /// Open one in our network namespace. No protocol is NETLINK_ROUTE.
    pub fn open() -> io::Result<Socket> {
        let fd =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Socket { fd, sequence: 0 })
    }

    /// The number of an interface; ENODEV if there is none of that name.
    pub fn index(&mut self, name: &str) -> io::Result<u32> {
        let mut body = link(0, 0);
        attribute(&mut body, IFLA_IFNAME, &text(name));
        let mut found = None;
        self.request(GETLINK, 0, &body, |kind, body| {
            if kind == NEWLINK {
                found = body.get(4..8).map(number);
            }
        })?;
        found.ok_or_else(|| io::Error::other("the kernel's answer names no interface"))
    }

    /// The addresses that somebody gave to an interface for good, and that others can reach.
    pub fn addresses(&mut self, index: u32) -> io::Result<Vec<Address>> {
        let mut out = Vec::new();
        self.request(GETADDR, DUMP, &[0; IFADDR], |kind, body| {
            let Some((&[family, prefix, flags, scope, i0, i1, i2, i3], rest)) =
                body.split_first_chunk::<IFADDR>()
            else {
                return;
            };
            if kind != NEWADDR || number(&[i0, i1, i2, i3]) != index || scope != SCOPE_UNIVERSE {
                return;
            }
            let mut flags = u32::from(flags);
            let mut parts = Vec::new();
            for (kind, value) in attributes(rest) {
                match kind {
                    IFA_FLAGS if value.len() == 4 => flags = number(value),
                    IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST => parts.push((kind, value.to_vec())),
                    _ => {}
                }
            }
            if flags & IFA_F_PERMANENT != 0 {
                out.push(Address { family, prefix, parts });
            }
        })?;
        Ok(out)
    }

    /// Move an interface to the network namespace of a process, under a new name. It goes down and loses its addresses.
    pub fn move_to(&mut self, index: u32, pid: i32, name: &str) -> io::Result<()> {
        let mut body = link(index, 0);
        attribute(&mut body, IFLA_NET_NS_PID, &pid.to_ne_bytes());
        attribute(&mut body, IFLA_IFNAME, &text(name));
        self.request(NEWLINK, ACK, &body, |_, _| {})
    }

    /// Add an address.
    pub fn add(&mut self, index: u32, address: &Address) -> io::Result<()> {
        let mut body = vec![address.family, address.prefix, 0, SCOPE_UNIVERSE];
        body.extend(index.to_ne_bytes());
        for (kind, value) in &address.parts {
            attribute(&mut body, *kind, value);
        }
        self.request(NEWADDR, ACK | CREATE_EXCL, &body, |_, _| {})
    }

    /// Switch an interface on.
    pub fn up(&mut self, index: u32) -> io::Result<()> {
        self.request(NEWLINK, ACK, &link(index, IFF_UP), |_, _| {})
    }

    /// Send a request, and hand every message of the answer over.
    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        rustix::net::send(&self.fd, &message, SendFlags::empty())?;
        // A list comes in as large pieces as we have room for; a receipt repeats the request at most.
        let room = if flags == ACK { 4 * HEADER + body.len() } else { 1 << 16 };
        let mut buffer = vec![0; room];
        loop {
            let (length, _) = rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..length];
            while rest.len() >= HEADER {
                let size = number(&rest[..4]) as usize;
                if size < HEADER || size > rest.len() {
                    return Err(io::Error::other("malformed netlink message"));
                }
                let (kind, sequence) = (u16::from_ne_bytes([rest[4], rest[5]]), number(&rest[8..12]));
                let body = &rest[HEADER..size];
                rest = &rest[size.next_multiple_of(4).min(rest.len())..];
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = body.get(..4).map_or(0, number) as i32;
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    kind => {
                        each(kind, body);
                        // The one answer to a question that asked neither for a list nor for a receipt.
                        if flags & (DUMP | ACK) == 0 {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}

/// `struct ifinfomsg`: these flags are to be set.
fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(IFINFO + 64);
    out.extend([0; 4]);
    out.extend(index.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend((value.len() as u16 + 4).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn attributes(mut rest: &[u8]) -> Vec<(u16, &[u8])> {
    let mut out = Vec::new();
    while let [l0, l1, k0, k1, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if length < 4 || length > rest.len() {
            break;
        }
        // The two highest bits are flags.
        out.push((u16::from_ne_bytes([k0, k1]) & 0x3fff, &rest[4..length]));
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    out
}

/// The first four bytes.
fn number(bytes: &[u8]) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[..4]);
    u32::from_ne_bytes(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_there_and_others_are_not() {
        let mut s = Socket::open().unwrap();
        let lo = s.index("lo").unwrap();
        // LOOPBACK_IFINDEX: what `up` is called with in a new namespace.
        assert_eq!(lo, 1);
        assert_eq!(s.index("nonesuch0").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        // Addresses of the host alone are not worth keeping.
        assert!(
            s.addresses(lo).unwrap().iter().all(|a| a.parts.iter().all(|(_, v)| v.first() != Some(&127)))
        );
    }

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let mut out = Vec::new();
        attribute(&mut out, 3, b"eth0\0");
        attribute(&mut out, 19, &7_u32.to_ne_bytes());
        assert_eq!(out.len(), 12 + 8);
        assert_eq!(attributes(&out), [(3, &b"eth0\0"[..]), (19, &7_u32.to_ne_bytes()[..])]);
        assert_eq!(attributes(&out[..8]), []);
    }
}
