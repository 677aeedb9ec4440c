//! Joins namespaces before init is cloned, and clones it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use sys::process::{self, Cloned, flags};

use super::channel::Channel;
use crate::plan::namespaces::Joined;

/// A namespace to join, opened on the host.
#[derive(Debug)]
pub struct Open {
    pub flag: u64,
    pub file: OwnedFd,
    shown: String,
}

/// Open the files of the namespaces; `linux.namespaces[i].path` of another type is an error.
pub fn open(joined: &[Joined]) -> Result<Vec<Open>> {
    joined
        .iter()
        .map(|j| {
            let place = format!("linux.namespaces[{}].path", j.index);
            let file = rustix::fs::open(
                &j.path,
                rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )
            .with_context(|| format!("{place}: open {}", j.path.display()))?;
            let kind = sys::ns::kind(file.as_fd())
                .with_context(|| format!("{place}: {} is not a namespace", j.path.display()))?;
            if kind != j.flag {
                return Err(report::at(
                    place,
                    format!(
                        "{} is a {} namespace, not a {} namespace",
                        j.path.display(),
                        crate::plan::namespaces::name(kind),
                        crate::plan::namespaces::name(j.flag)
                    ),
                ));
            }
            Ok(Open { flag: j.flag, file, shown: j.path.display().to_string() })
        })
        .collect()
}

/// Enter one namespace.
pub fn join(ns: &Open) -> Result<()> {
    process::setns(ns.file.as_fd(), ns.flag).with_context(|| format!("join namespace {}", ns.shown))
}

/// Enter all: those that our present rights allow, the user namespace, then the others with its rights.
pub fn join_all(list: &[Open]) -> Result<()> {
    let mut later = Vec::new();
    let user = list.iter().find(|ns| ns.flag == flags::NEWUSER);
    for ns in list.iter().filter(|ns| ns.flag != flags::NEWUSER) {
        match join(ns) {
            Ok(()) => {}
            Err(_) if user.is_some() => later.push(ns),
            Err(e) => return Err(e),
        }
    }
    if let Some(user) = user {
        join(user)?;
        sys::credentials::become_root().context("become root of the joined user namespace")?;
    }
    later.into_iter().try_for_each(join)
}

/// In the stage: join, clone init as our parent's child, tell the parent, and end. Returns in init, once the parent has
/// been told: init may need no word from it and be done, its end of the conversation hung up, before we had ours.
pub fn run(list: &[Open], new: u64, cgroup: Option<BorrowedFd<'_>>, channel: &Channel) -> Result<()> {
    join_all(list)?;
    let (told, tell) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe for the stage")?;
    match process::clone3(new | flags::PARENT, cgroup).context("clone the container's process")? {
        Cloned::Child => {
            drop(tell);
            let mut word = [0];
            match rustix::io::retry_on_intr(|| rustix::io::read(&told, &mut word)) {
                Ok(1) => Ok(()),
                // The stage is gone, and nobody knows of us.
                Ok(_) => process::exit_now(1),
                Err(e) => Err(e).context("wait for the stage"),
            }
        }
        Cloned::Parent { pid, pidfd } => {
            channel.init_pid(pid, pidfd.as_fd())?;
            rustix::io::write(&tell, &[1]).context("let the container's process go on")?;
            process::exit_now(0)
        }
    }
}
