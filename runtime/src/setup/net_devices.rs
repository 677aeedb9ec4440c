//! Moves network interfaces of the host into the container's network namespace.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use sys::netlink::Socket;
use sys::process::{self, flags};

use crate::plan::net_devices::NetDevice;

/// In the parent, in the host's network namespace: move each, then give it its addresses again, which the kernel
/// takes away, and switch it on.
pub fn move_into(devices: &[NetDevice], pid: i32, pidfd: BorrowedFd<'_>) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let mut host = Socket::open().context("open a netlink socket")?;
    let mut inside =
        socket_inside(pidfd).context("open a netlink socket in the container's network namespace")?;
    for device in devices {
        let place = || format!("linux.netDevices[{:?}]", device.host);
        let index = host.index(&device.host).context("look for it").with_context(place)?;
        let addresses = host.addresses(index).context("read its addresses").with_context(place)?;
        host.move_to(index, pid, &device.container)
            .with_context(|| format!("move it into the container as {}", device.container))
            .with_context(place)?;
        // The number may be another one there.
        let index =
            inside.index(&device.container).context("look for it in the container").with_context(place)?;
        for address in &addresses {
            inside.add(index, address).context("give it its addresses again").with_context(place)?;
        }
        inside.up(index).context("switch it on").with_context(place)?;
    }
    Ok(())
}

/// In the container's new network namespace: its own addresses answer, as every program expects.
pub fn switch_on_loopback() -> Result<()> {
    // lo is the first interface of every namespace: its number is 1 (LOOPBACK_IFINDEX).
    Socket::open().and_then(|mut socket| socket.up(1)).context("switch on lo")
}

/// A socket belongs to the namespace that it was made in, so a visit is enough.
fn socket_inside(pidfd: BorrowedFd<'_>) -> Result<Socket> {
    let home = rustix::fs::open("/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context("open our network namespace")?;
    process::setns(pidfd, flags::NEWNET).context("enter")?;
    let socket = Socket::open();
    process::setns(home.as_fd(), flags::NEWNET).context("return")?;
    Ok(socket?)
}
