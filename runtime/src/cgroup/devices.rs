//! v2: the program that decides on devices.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use report::{Explain, Kind};

use crate::plan::resources::devices::{Rule, program};

/// Attach a program for these rules, and then take off the one that did it before (`update`).
pub(super) fn attach(rules: &[Rule], cgroup: &OwnedFd) -> Result<()> {
    replace(rules, cgroup, false)
}

/// See [`attach`]; a new cgroup has no old program.
pub(super) fn replace(rules: &[Rule], cgroup: &OwnedFd, look_for_old: bool) -> Result<()> {
    let old = if look_for_old {
        sys::bpf::our_device_programs(cgroup.as_fd()).context("list the device programs of the cgroup")?
    } else {
        Vec::new()
    };
    let new = sys::bpf::load_device_program(&program(rules))
        .context("linux.resources.devices: load a BPF program that decides on devices")
        .kind(Kind::Unsupported)?;
    sys::bpf::attach_device_program(cgroup.as_fd(), new.as_fd())
        .context("linux.resources.devices: attach the BPF program to the cgroup")
        .kind(Kind::Unsupported)?;
    for old in old {
        sys::bpf::detach_device_program(cgroup.as_fd(), old.as_fd())
            .context("linux.resources.devices: detach the BPF program that decided before")?;
    }
    Ok(())
}
