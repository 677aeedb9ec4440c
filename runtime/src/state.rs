//! What do we know of a container between two commands? One file a container:
//!
//! ```text
//! <root>/<id>             0600; flock on it: held by the verb that changes the container
//!                           `State` in one line; in a second one `Details`, which most verbs do without; then the compiled
//!                           seccomp profile, if any; then, when it is there, the first process in one line: pid and birth
//!                           (`Birth`). There from before anything else is made; the last line is appended, all else is
//!                           replaced by rename
//! <root>/@<id>.new        left by a writer that was killed; overwritten by the next one
//! <root>/@<id>/           what few containers need, 0700:
//!   start.sock            init listens here until `start`; refuses connections afterwards. Only where `Door` is not possible
//!   notify/notify.sock    with NOTIFY_SOCKET: the container tells here that it is ready (`launch::notify`)
//!   process.PID.BIRTH     for one without a cgroup, by which it could be found if its file was damaged: the first process
//! ```
//!
//! One file, and no folder around it: to find a free inode is what a new file costs most where the root is on a disk.
//!
//! | status   | how it is told                                                        |
//! |----------|-----------------------------------------------------------------------|
//! | creating | no pid yet, and its creator holds the lock                            |
//! | created  | the process lives, calls itself `berth:init` and waits for `start`    |
//! | running  | the process lives, and is called otherwise or does not wait           |
//! | paused   | as running, and its cgroup is frozen                                  |
//! | stopped  | the process is gone or a zombie, or the creator died before it was    |

mod door;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};

use anyhow::{Context, Result};
pub use door::Door;
use oci_spec::runtime::{LinuxResources, Process};
use report::{Explain, Kind, error};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use sys::process::Birth;

use crate::cgroup;
use crate::plan::hooks::Hook;

/// The version of the state file that we write; others are refused.
pub const VERSION: u32 = 4;
const PROCESS: &str = "process.";
/// What init calls itself until it has executed the program; from its creator, so that it never has another name.
pub const WAITING: &CStr = c"berth:init";
/// The start socket's name in the folder of what few containers need.
pub const START_SOCKET: &str = "start.sock";

/// What the state file says first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    pub version: u32,
    pub oci_version: String,
    pub id: String,
    pub bundle: PathBuf,
    /// Absolute path of the root file system on the host.
    pub rootfs: PathBuf,
    /// RFC 3339, UTC.
    pub created: String,
    /// Who created it.
    pub owner: u32,
    /// In the pid namespace of whoever created it; 0 until the process is there. From a line of its own, so that the
    /// state is written once.
    #[serde(skip)]
    pub pid: i32,
    /// Tells a recycled pid from ours.
    #[serde(skip)]
    pub birth: Option<Birth>,
    /// Where init waits for `start`; `None`: at `start.sock`.
    pub door: Option<Door>,
    /// What follows the first line.
    #[serde(skip)]
    pub rest: Rest,
    /// The length in bytes of the second line, and of what comes then.
    pub lengths: (usize, usize),
    pub annotations: BTreeMap<String, String>,
    pub cgroup: cgroup::Record,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
    /// The namespaces (clone flags) that differ from the host's; exec joins them.
    pub namespaces: u64,
    /// Where `start` sends the seccomp listener.
    #[serde(default)]
    pub seccomp_listener: Option<crate::plan::seccomp::Listener>,
    /// Folders of resctrl that are ours, removed with the container, the innermost last.
    #[serde(default)]
    pub intel_rdt: Vec<PathBuf>,
}

/// What `exec` and `update` take for granted. To parse it takes longer than all the rest of a state.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Details {
    /// The limits in force, as far as config.json and `update` set them.
    pub resources: Option<LinuxResources>,
    /// Capabilities, environment, user, limits.
    pub process: Option<Process>,
    pub landlock: Option<crate::plan::landlock::Landlock>,
    pub common: crate::plan::common::Common,
}

/// `Details` in one line, then the compiled seccomp profile; see `State::with`.
#[derive(Clone, Default)]
pub struct Rest(Vec<u8>);

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// runtime-spec, runtime.md, "State": the status of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// A container's place in the state root: its file, and a folder beside it if need be.
#[derive(Debug)]
pub struct Dir {
    /// As it was when we opened it: it may have been replaced since.
    file: OwnedFd,
    root: PathBuf,
    id: String,
    /// The lock that we hold, which goes over to the file that replaces this one.
    lock: RefCell<Weak<RefCell<OwnedFd>>>,
}

/// The lock of a container's file, until dropped. It belongs to an open file of its own, so that no child
/// that inherited the other descriptor keeps it.
#[derive(Debug)]
pub struct Lock {
    _held: Rc<RefCell<OwnedFd>>,
}

impl Dir {
    /// Make the file of a new container, empty. `Kind::AlreadyExists` if there is one.
    pub fn create(root: &Path, id: &str) -> Result<(Dir, Lock)> {
        crate::id::check(id)?;
        let path = root.join(id);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let make = || rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600));
        let made = match make() {
            Err(rustix::io::Errno::NOENT) => {
                use std::os::unix::fs::DirBuilderExt;
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(root)
                    .with_context(|| format!("make the state root {}", root.display()))?;
                make()
            }
            other => other,
        };
        let file = match made {
            Ok(file) => file,
            Err(rustix::io::Errno::EXIST) => {
                return Err(error(Kind::AlreadyExists, format!("container with id {id} already exists")));
            }
            Err(e) => return Err(e).with_context(|| format!("make {}", path.display())),
        };
        let dir = Dir { file, root: root.to_owned(), id: id.to_owned(), lock: RefCell::default() };
        let lock = dir.lock();
        // Somebody may have removed it before we had the lock, and made another.
        let ours = !rustix::fs::fstat(&dir.file).is_ok_and(|found| found.st_nlink == 0);
        match lock {
            Ok(lock) if ours => Ok((dir, lock)),
            Ok(_) => Err(error(Kind::WrongState, format!("container {id} was removed while it was created"))),
            Err(e) => {
                // The first error is the one to tell; an empty file that stays is removed by `delete --force`.
                if ours {
                    rustix::fs::unlink(&path).unwrap_or_default();
                }
                Err(e)
            }
        }
    }

    /// Open the file of an existing container. `Kind::NotFound` if there is none.
    pub fn open(root: &Path, id: &str) -> Result<Dir> {
        crate::id::check(id)?;
        let file = open_file(&root.join(id), id)?;
        Ok(Dir { file, root: root.to_owned(), id: id.to_owned(), lock: RefCell::default() })
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Wait (at most ten seconds) for the verb that is changing this container, and keep others out.
    pub fn lock(&self) -> Result<Lock> {
        for _ in 0..2000 {
            let fd = open_file(&self.path(), &self.id)?;
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                // Replaced or removed meanwhile: then the lock is nobody's.
                Ok(()) if rustix::fs::fstat(&fd).is_ok_and(|found| found.st_nlink > 0) => {
                    let held = Rc::new(RefCell::new(fd));
                    *self.lock.borrow_mut() = Rc::downgrade(&held);
                    return Ok(Lock { _held: held });
                }
                Ok(()) | Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => {}
                Err(e) => return Err(e).with_context(|| format!("lock the state of {}", self.id)),
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Err(error(Kind::WrongState, format!("another command is still working on container {}", self.id)))
    }

    /// Whether somebody holds the lock.
    fn is_locked(&self) -> bool {
        open_file(&self.path(), &self.id).is_ok_and(|fd| {
            rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::AGAIN)
        })
    }

    /// Read the file.
    pub fn load(&self) -> Result<State> {
        let mut bytes = self.read()?;
        let damaged = |what: String| {
            let message = format!("damaged state file {}: {what}", self.path().display());
            error(Kind::Failed, message).context(report::Note {
                kind: Some(Kind::Failed),
                hint: Some(format!("`delete --force {}` kills what is left of it and removes it", self.id)),
            })
        };
        // A line without its end was still being written.
        let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
            return Err(damaged("it has no whole line".to_owned()));
        };
        let mut state: State = crate::json::parse(&bytes[..end]).map_err(|e| damaged(e.to_string()))?;
        if state.version != VERSION {
            return Err(damaged(format!("version {}, expected {VERSION}", state.version)));
        }
        if state.id != self.id {
            return Err(damaged(format!("it is of container {:?}", state.id)));
        }
        bytes.drain(..=end);
        let expected =
            state.lengths.0.checked_add(state.lengths.1).filter(|&expected| bytes.len() >= expected);
        let Some(expected) = expected else {
            // Never mistaken for a container without a seccomp profile.
            return Err(damaged(format!(
                "{} bytes after the first line, expected {} and {}",
                bytes.len(),
                state.lengths.0,
                state.lengths.1
            )));
        };
        match &bytes[expected..] {
            [] => {}
            [line @ .., b'\n'] => {
                let process = std::str::from_utf8(line).ok().and_then(parse_process);
                let Some((pid, birth)) = process else {
                    return Err(damaged(format!("{:?} is no process", String::from_utf8_lossy(line))));
                };
                (state.pid, state.birth) = (pid, Some(birth));
            }
            // Its writer was killed.
            _ => {}
        }
        bytes.truncate(expected);
        state.rest = Rest(bytes);
        Ok(state)
    }

    /// Pid and birth of the first process, for a container whose file is damaged: known of those without a cgroup.
    pub fn load_process(&self) -> Result<Option<(i32, Birth)>> {
        let entries = match std::fs::read_dir(self.more_path()) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("read {}", self.more_path().display())),
        };
        Ok(entries.flatten().find_map(|entry| entry.file_name().to_str().and_then(parse_process)))
    }

    /// Note the first process in `state` and in the file.
    pub fn save_process(&self, state: &mut State, pid: i32, birth: Birth) -> Result<()> {
        let before = state.birth.map(|birth| process_name(state.pid, birth));
        (state.pid, state.birth) = (pid, Some(birth));
        let name = process_name(pid, birth);
        if state.cgroup.is_none() {
            let more = self.more()?;
            // No second name of the state file: that it has none tells that it was replaced.
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            match &before {
                None => rustix::fs::openat(&more, &name, flags, Mode::from_raw_mode(0o600)).map(drop),
                Some(before) => rustix::fs::renameat(&more, before, &more, &name),
            }
            .with_context(|| format!("make {}/{name}", self.more_path().display()))?;
        }
        if before.is_some() {
            return self.save(state);
        }
        let append = || -> io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let fd = rustix::fs::open(self.path(), flags, Mode::empty())?;
            std::fs::File::from(fd).write_all(format!("{name}\n").as_bytes())
        };
        append().with_context(|| format!("write {}", self.path().display()))
    }

    /// The first line as it is, for what can be saved of a damaged one; empty if there is none.
    pub fn load_raw(&self) -> Vec<u8> {
        let mut bytes = self.read().unwrap_or_default();
        bytes.truncate(bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len()));
        bytes
    }

    /// Write the file of a new container. Nothing has been made yet that a half-written one could hide.
    pub fn begin(&self, state: &State) -> Result<()> {
        let bytes = state.to_bytes()?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(&self.file, rest))
                .with_context(|| format!("write {}", self.path().display()))?;
            rest = &rest[written..];
        }
        Ok(())
    }

    /// Replace the file, and hold the new one as the old was held.
    pub fn save(&self, state: &State) -> Result<()> {
        let bytes = state.to_bytes()?;
        let (new, path) = (self.root.join(format!("@{}.new", self.id)), self.path());
        let replace = || -> io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let fd = rustix::fs::open(&new, flags, Mode::from_raw_mode(0o600))?;
            let mut file = std::fs::File::from(fd);
            file.write_all(&bytes)?;
            let held = self.lock.borrow().upgrade();
            if held.is_some() {
                rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            }
            rustix::fs::rename(&new, &path)?;
            if let Some(held) = held {
                *held.borrow_mut() = file.into();
            }
            Ok(())
        };
        replace().with_context(|| format!("replace {}", path.display()))
    }

    /// Remove the file and what else there is.
    pub fn remove(&self) -> Result<()> {
        let removing = |path: &Path| format!("remove {}", path.display());
        let unlink = |path: &Path| match rustix::fs::unlink(path) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            // Not ours, or an earlier version's.
            Err(rustix::io::Errno::ISDIR) => std::fs::remove_dir_all(path).with_context(|| removing(path)),
            Err(e) => Err(e).with_context(|| removing(path)),
        };
        // The state itself goes last, and tells until then what the rest is.
        let more = self.more_path();
        match rustix::fs::rmdir(&more) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            // There is something in it; or once more, another way.
            Err(_) => match std::fs::remove_dir_all(&more) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).context(removing(&more)),
                _ => {}
            },
        }
        unlink(&self.root.join(format!("@{}.new", self.id)))?;
        unlink(&self.path())
    }

    /// The status, by the table above.
    pub fn status(&self, state: &State) -> Result<Status> {
        if state.pid == 0 {
            return Ok(if self.is_locked() { Status::Creating } else { Status::Stopped });
        }
        if !state.is_alive()? {
            return Ok(Status::Stopped);
        }
        if self.awaits_start(state)? {
            return Ok(Status::Created);
        }
        Ok(if cgroup::is_frozen(&state.cgroup)? { Status::Paused } else { Status::Running })
    }

    /// Whether init still waits for `start`. A connection that says nothing is ignored by it.
    fn awaits_start(&self, state: &State) -> Result<bool> {
        let waits = match state.door {
            None => Ok(self.connect().is_some()),
            Some(door) => may_not_trace(state, door.is_held_by(state.pid)),
        };
        match waits {
            Ok(waits) => Ok(waits),
            // Who may not ask believes the name: one that pretends can only keep itself from being started.
            Err(e) if report::kind(&e) == Some(Kind::Unsupported) => {
                let seen =
                    sys::process::see(state.pid).with_context(|| format!("look at process {}", state.pid))?;
                Ok(seen.is_some_and(|seen| seen.name.as_bytes() == WAITING.to_bytes()))
            }
            Err(e) => Err(e),
        }
    }

    /// A connection to init while it waits for `start`; `None`: it does not. `Kind::Unsupported` without the right to.
    pub fn reach(&self, state: &State, pidfd: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
        let Some(door) = state.door else {
            return Ok(self.connect());
        };
        if !may_not_trace(state, door.is_held_by(state.pid))? {
            return Ok(None);
        }
        may_not_trace(state, door.open(pidfd))
    }

    /// To the start socket, if somebody listens there.
    fn connect(&self) -> Option<OwnedFd> {
        let more = open_dir(&self.more_path()).ok()?;
        sys::socket::connect_at(more.as_fd(), START_SOCKET).ok()
    }

    /// Where the file is.
    pub fn path(&self) -> PathBuf {
        self.root.join(&self.id)
    }

    /// Where the folder of what few containers need is, if this is one of them.
    pub fn more_path(&self) -> PathBuf {
        more(&self.root, &self.id)
    }

    /// That folder, made if need be.
    pub fn more(&self) -> Result<OwnedFd> {
        let path = self.more_path();
        match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => open_dir(&path),
            Err(e) => Err(e).with_context(|| format!("make {}", path.display())),
        }
    }

    fn read(&self) -> Result<Vec<u8>> {
        let reading = || format!("read {}", self.path().display());
        let mut found = rustix::fs::fstat(&self.file).with_context(reading)?;
        let newer;
        let mut file = &self.file;
        if found.st_nlink == 0 {
            newer = open_file(&self.path(), &self.id)?;
            file = &newer;
            found = rustix::fs::fstat(file).with_context(reading)?;
        }
        if !rustix::fs::FileType::from_raw_mode(found.st_mode).is_file() {
            return Err(error(Kind::Failed, format!("{}: not a state file", self.path().display())));
        }
        // One byte more, so that one reading shows that there is no more.
        let mut bytes = Vec::with_capacity(usize::try_from(found.st_size).unwrap_or(0).min(1 << 20) + 1);
        loop {
            let (at, space) = (bytes.len() as u64, bytes.spare_capacity_mut().len());
            let count = rustix::io::retry_on_intr(|| {
                rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at)
            })
            .with_context(reading)?;
            // A regular file gives less than was asked for at its end only.
            if count < space {
                return Ok(bytes);
            }
            bytes.reserve(16 << 10);
        }
    }
}

/// Where what few containers need is: no id begins like that.
pub fn more(root: &Path, id: &str) -> PathBuf {
    root.join(format!("@{id}"))
}

/// `Kind::Unsupported`, and what is missing.
fn may_not_trace<T>(state: &State, done: io::Result<T>) -> Result<T> {
    done.with_context(|| format!("reach process {}", state.pid))
        .kind(Kind::Unsupported)
        .hint(|| "it was created by somebody with CAP_SYS_PTRACE, which this needs as well".to_owned())
}

fn process_name(pid: i32, birth: Birth) -> String {
    match birth {
        Birth::Started(ticks) => format!("{PROCESS}{pid}.{ticks}"),
        Birth::Inode(inode) => format!("{PROCESS}{pid}.i{inode}"),
    }
}

/// What [`process_name`] made.
fn parse_process(name: &str) -> Option<(i32, Birth)> {
    let (pid, birth) = name.strip_prefix(PROCESS)?.split_once('.')?;
    let birth = match birth.strip_prefix('i') {
        Some(inode) => Birth::Inode(inode.parse().ok()?),
        None => Birth::Started(birth.parse().ok()?),
    };
    Some((pid.parse().ok().filter(|&pid| pid > 0)?, birth))
}

impl State {
    /// The whole file.
    fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self).context("encode the state")?;
        bytes.push(b'\n');
        bytes.extend(&self.rest.0);
        if let Some(birth) = self.birth {
            bytes.extend(process_name(self.pid, birth).as_bytes());
            bytes.push(b'\n');
        }
        Ok(bytes)
    }

    /// The state with its second line, and the compiled seccomp profile (`Filter::to_bytes`; empty without one).
    pub fn with(mut self, details: &Details, seccomp: &[u8]) -> Result<State> {
        let mut rest = serde_json::to_vec(details).context("encode the state")?;
        rest.push(b'\n');
        self.lengths = (rest.len(), seccomp.len());
        rest.extend(seccomp);
        self.rest = Rest(rest);
        Ok(self)
    }

    /// The second line.
    pub fn details(&self) -> Result<Details> {
        let line = self.rest.0.get(..self.lengths.0).unwrap_or_default();
        crate::json::parse(line)
            .with_context(|| format!("damaged state of {}: its second line", self.id))
            .kind(Kind::Failed)
    }

    /// The compiled seccomp profile; empty without one.
    pub fn seccomp(&self) -> &[u8] {
        self.rest.0.get(self.lengths.0..).unwrap_or_default()
    }

    /// What hooks and the seccomp agent learn of the container.
    pub fn container_state(&self) -> crate::setup::hooks::ContainerState<'_> {
        crate::setup::hooks::ContainerState {
            oci_version: &self.oci_version,
            id: &self.id,
            pid: self.pid,
            bundle: &self.bundle,
            annotations: &self.annotations,
        }
    }

    /// Whether the process is there and is the one that we started.
    pub fn is_alive(&self) -> Result<bool> {
        Ok(self.pidfd()?.is_some())
    }

    /// A descriptor of the process; `None` if it is gone. It cannot be mistaken for a later process of that id.
    pub fn pidfd(&self) -> Result<Option<OwnedFd>> {
        let Some(birth) = self.birth else { return Ok(None) };
        birth.open(self.pid).with_context(|| format!("look at process {}", self.pid))
    }
}

/// `Kind::NotFound` if there is none.
fn open_file(path: &Path, id: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => Err(error(Kind::NotFound, format!("container {id} does not exist"))),
        other => other.with_context(|| format!("open {}", path.display())),
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{Birth, parse_process, process_name};

    #[test]
    fn a_process_is_told_by_a_name() {
        for pid in [1, 4_194_304, i32::MAX] {
            for birth in [0, 1 << 40, u64::MAX].into_iter().flat_map(|n| [Birth::Started(n), Birth::Inode(n)])
            {
                assert_eq!(parse_process(&process_name(pid, birth)), Some((pid, birth)));
            }
        }
        for stranger in [
            "process",
            "process.",
            "process.1",
            "process.1.",
            "process.1.i",
            "process..1",
            "process.0.1",
            "process.-1.1",
            "process.1.2.3",
            "process.1.j2",
            "process.99999999999.1",
            "rocess.1.1",
            "state.json",
        ] {
            assert_eq!(parse_process(stranger), None, "{stranger}");
        }
    }
}
