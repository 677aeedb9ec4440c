//! How does an ordinary user get the ids that an image's files have? By going on in a user namespace in which those of
//! `/etc/subuid` and `/etc/subgid` are mapped (subuid(5)), with a mount namespace of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sys::process::{Cloned, Exit, flags};

/// Some host ids in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub first: u32,
    pub count: u32,
}

/// The ids that a user may map beside the own one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subordinate {
    pub uids: Vec<Range>,
    pub gids: Vec<Range>,
}

/// Which side of [`enter`] we are on.
#[derive(Debug)]
pub enum Entered {
    /// In the namespace, as its root.
    Inside,
    /// Outside; the process inside has ended.
    Outside(Exit),
}

impl Subordinate {
    /// What the host gives user `uid`. A host without these files gives none.
    pub fn of(uid: u32) -> Result<Subordinate> {
        let read = |path: &str| match std::fs::read_to_string(path) {
            Ok(text) => Ok(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(e) => Err(e).with_context(|| format!("read {path}")),
        };
        let name = name_of(&read("/etc/passwd")?, uid);
        let ranges = |path: &str| Ok::<_, anyhow::Error>(ranges(&read(path)?, uid, name.as_deref()));
        Ok(Subordinate { uids: ranges("/etc/subuid")?, gids: ranges("/etc/subgid")? })
    }

    /// Whether more than the own id can be mapped.
    pub fn is_empty(&self) -> bool {
        self.uids.is_empty() || self.gids.is_empty()
    }
}

/// Whether files can be given to others than ourselves here: user_namespaces(7), "uid_map".
pub fn others_are_mapped() -> Result<bool> {
    if sys::user::effective_ids().0 != 0 {
        return Ok(false);
    }
    // A guess would leave files with wrong owners.
    let map = std::fs::read_to_string("/proc/self/uid_map").context("read /proc/self/uid_map")?;
    Ok(map.lines().filter_map(|l| l.split_whitespace().nth(2)?.parse::<u64>().ok()).sum::<u64>() > 1)
}

/// passwd(5): the name of a user.
fn name_of(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// subuid(5): the ranges of a user, who stands there by name or by number. What is no range is passed over.
fn ranges(text: &str, uid: u32, name: Option<&str>) -> Vec<Range> {
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (first, count): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let ours = Some(owner) == name || owner.parse() == Ok(uid);
        // 2³²−1 is no id.
        let sound = count > 0 && first.checked_add(count).is_some() && fields.next().is_none();
        (ours && sound).then_some(Range { first, count })
    };
    text.lines().filter_map(range).collect()
}

/// An id map: inside, outside, how many; the own id is root, those of the ranges follow from 1 on.
pub fn map(own: u32, ranges: &[Range]) -> Vec<(u32, u32, u32)> {
    let mut map = vec![(0, own, 1)];
    let mut next = 1;
    for range in ranges {
        // The kernel knows no ids beyond 2³²−2.
        let count = range.count.min(u32::MAX - 1 - next);
        if count > 0 {
            map.push((next, range.first, count));
        }
        next += count;
    }
    map
}

/// Go on in a new user namespace. The caller has one thread; it is a child of it that goes on, and the caller learns when that has
/// ended. Killed, each of the two takes the other along.
pub fn enter(subordinate: &Subordinate) -> Result<Entered> {
    enter_with(subordinate, 0)
}

/// The same with processes and mounts of its own, as [`apart`].
pub fn enter_apart(subordinate: &Subordinate) -> Result<Entered> {
    match enter_with(subordinate, flags::NEWPID)? {
        // Where /proc cannot be mounted, it is as it was.
        Entered::Outside(exit) if exit.status() == NO_PROC => enter_with(subordinate, 0),
        entered => Ok(entered),
    }
}

/// The status with which a process gives up that could not mount /proc.
const NO_PROC: i32 = 119;

/// Go on in a child with processes and mounts of its own: whatever it starts ends with it, and what it mounts is seen by nobody else
/// and gone with it. The caller has one thread, and root's rights.
pub fn apart() -> Result<Entered> {
    let made = sys::process::clone3(flags::NEWPID | flags::NEWNS, None);
    match made.context("make a mount and a pid namespace")? {
        Cloned::Child => {
            sys::process::set_parent_death_signal(9).context("tie the process to its parent")?;
            own_mounts()?;
            below_init()?;
            Ok(Entered::Inside)
        }
        Cloned::Parent { pid, .. } => {
            Ok(Entered::Outside(sys::process::wait(pid).context("wait for the process in its namespaces")?))
        }
    }
}

/// Go on in a child: to the first process of a pid namespace signals do not mean what they mean to others, abort(3)'s among them.
fn below_init() -> Result<()> {
    match sys::process::clone3(0, None).context("start a process")? {
        Cloned::Child => sys::process::set_parent_death_signal(9).context("tie the process to its parent"),
        Cloned::Parent { pid, .. } => {
            let exit = sys::process::wait(pid).context("wait for the process in its namespaces")?;
            sys::process::exit_now(exit.status())
        }
    }
}

/// Nothing that is mounted here is seen elsewhere; /proc shows the processes that are ours.
fn own_mounts() -> Result<()> {
    let private = sys::mount::Change { propagation: MS_SLAVE, recursive: true, ..Default::default() };
    sys::mount::change_here("/", &private).context("keep mounts to ourselves")?;
    let attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    let tree = sys::mount::detached("proc", &[], attributes).context("make a mount of /proc")?;
    crate::rootfs::attach(tree.as_fd(), Path::new("/proc"))
}

const MS_SLAVE: u64 = 1 << 19;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const MOUNT_ATTR_NOEXEC: u64 = 8;

fn enter_with(subordinate: &Subordinate, more: u64) -> Result<Entered> {
    let (uid, gid) = sys::user::effective_ids();
    let (ready, mut go) = std::io::pipe().context("make a pipe")?;
    let cloned =
        sys::process::clone3(flags::NEWUSER | flags::NEWNS | more, None).context("make a user namespace");
    let pid = match cloned? {
        Cloned::Child => {
            drop(go);
            sys::process::set_parent_death_signal(9).context("tie the process to its parent")?;
            let mut byte = [0];
            let n = { ready }.read(&mut byte).context("wait for the id maps")?;
            ensure!(n == 1, "the id maps could not be written");
            if more != 0 {
                if own_mounts().is_err() {
                    sys::process::exit_now(NO_PROC);
                }
                below_init()?;
            }
            return Ok(Entered::Inside);
        }
        Cloned::Parent { pid, .. } => pid,
    };
    drop(ready);
    let mapped = write_maps(pid, (uid, gid), subordinate);
    if mapped.is_err() {
        sys::process::end_child(pid);
    }
    mapped?;
    go.write_all(&[1]).context("let the process in the user namespace go on")?;
    drop(go);
    Ok(Entered::Outside(sys::process::wait(pid).context("wait for the process in the user namespace")?))
}

fn write_maps(pid: i32, (uid, gid): (u32, u32), subordinate: &Subordinate) -> Result<()> {
    if subordinate.is_empty() {
        let write = |name: &str, text: String| {
            let path = format!("/proc/{pid}/{name}");
            File::options()
                .write(true)
                .open(&path)
                .and_then(|mut f| f.write_all(text.as_bytes()))
                .with_context(|| format!("write {path}"))
        };
        write("uid_map", format!("0 {uid} 1"))?;
        write("setgroups", "deny".to_owned())?;
        return write("gid_map", format!("0 {gid} 1"));
    }
    helper("newuidmap", pid, &map(uid, &subordinate.uids))?;
    helper("newgidmap", pid, &map(gid, &subordinate.gids))
}

/// newuidmap(1) and newgidmap(1) have the right that we lack.
fn helper(program: &str, pid: i32, map: &[(u32, u32, u32)]) -> Result<()> {
    let numbers = map.iter().flat_map(|(inside, outside, count)| [inside, outside, count]);
    let output = Command::new(program)
        .arg(pid.to_string())
        .args(numbers.map(u32::to_string))
        .output()
        .with_context(|| format!("run {program} (Debian: package uidmap)"))?;
    if !output.status.success() {
        bail!("{program}: {} ({})", String::from_utf8_lossy(&output.stderr).trim(), output.status);
    }
    Ok(())
}

/// Whether the programs that write the maps are there.
pub fn has_helpers(search: &std::ffi::OsStr) -> bool {
    let found = |program: &str| {
        std::env::split_paths(search).any(|dir: std::path::PathBuf| Path::new(&dir).join(program).exists())
    };
    found("newuidmap") && found("newgidmap")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_by_name_and_by_number() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\nbad\nann:x:1000:1000::/:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n";
        let name = name_of(passwd, 1000);
        assert_eq!(name.as_deref(), Some("ann"));
        assert_eq!(name_of(passwd, 7), None);
        let text = "bob:100000:65536\nann:165536:65536\n1000:300000:10\n# ann:1:1\nann:x:1\nann:5\nann:1:0\n\
                    ann:4294967295:1\nann:1:1:1\n";
        let range = |first, count| Range { first, count };
        assert_eq!(ranges(text, 1000, name.as_deref()), [range(165_536, 65_536), range(300_000, 10)]);
        assert_eq!(ranges(text, 1002, None), []);
        assert_eq!(
            map(1000, &[range(165_536, 65_536), range(300_000, 10)]),
            [(0, 1000, 1), (1, 165_536, 65_536), (65_537, 300_000, 10)]
        );
        assert_eq!(map(0, &[range(1, u32::MAX - 1), range(5, 5)]), [(0, 0, 1), (1, 1, u32::MAX - 2)]);
    }
}
