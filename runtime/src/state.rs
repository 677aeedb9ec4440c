//! What do we know of a container between two commands? One folder a container:
//!
//! ```text
//! <root>/<id>/            0700; flock on it: held by the verb that changes the container
//!   state.json            `State` in one line; in a second one `Details`, which most verbs do without; then the compiled
//!                         seccomp profile, if any. There from before anything else is made, later replaced by rename
//!   state.json.tmp        left by a writer that was killed; overwritten by the next one
//!   process.PID.BIRTH     a second name of state.json: pid and birth (`Birth`) of the first process; absent until it
//!                         is there. A name appears at once or not at all, outlives a damaged state file, and
//!                         costs no inode: to find a free one is what a new file costs most
//!   start.sock            init listens here until `start`; refuses connections afterwards. Only where `Door` is not possible
//!   notify/notify.sock    with NOTIFY_SOCKET: the container tells here that it is ready (`launch::notify`)
//! ```
//!
//! | status   | how it is told                                                        |
//! |----------|-----------------------------------------------------------------------|
//! | creating | no pid yet, and its creator holds the lock                            |
//! | created  | the process lives, calls itself `berth:init` and waits for `start`    |
//! | running  | the process lives, and is called otherwise or does not wait           |
//! | paused   | as running, and its cgroup is frozen                                  |
//! | stopped  | the process is gone or a zombie, or the creator died before it was    |

mod door;

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fmt;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
pub use door::Door;
use oci_spec::runtime::{LinuxResources, Process};
use report::{Explain, Kind, error};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use sys::process::Birth;

use crate::cgroup;
use crate::plan::hooks::Hook;

/// The version of the state file that we write; others are refused.
pub const VERSION: u32 = 3;
const FILE: &str = "state.json";
const TEMPORARY: &str = "state.json.tmp";
const PROCESS: &str = "process.";
/// What init calls itself until it has executed the program; from its creator, so that it never has another name.
pub const WAITING: &CStr = c"berth:init";
/// The start socket's name in the container's folder.
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
    /// In the pid namespace of whoever created it; 0 until the process is there. From a name of its own, so that the
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

/// A container's folder.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    root: PathBuf,
    id: String,
}

/// The lock of a container's folder, until dropped. It belongs to an open file of its own, so that no child
/// that inherited the folder's descriptor keeps it.
#[derive(Debug)]
pub struct Lock {
    _held: OwnedFd,
}

impl Dir {
    /// Make the folder of a new container. `Kind::AlreadyExists` if there is one.
    pub fn create(root: &Path, id: &str) -> Result<(Dir, Lock)> {
        crate::id::check(id)?;
        let path = root.join(id);
        let make = || rustix::fs::mkdir(&path, Mode::from_raw_mode(0o700));
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
        match made {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => {
                return Err(error(Kind::AlreadyExists, format!("container with id {id} already exists")));
            }
            Err(e) => return Err(e).with_context(|| format!("make {}", path.display())),
        }
        let opened = open_dir(&path).and_then(|fd| {
            let dir = Dir { fd, root: root.to_owned(), id: id.to_owned() };
            dir.lock().map(|lock| (dir, lock))
        });
        if opened.is_err() {
            // The first error is the one to tell; an empty folder that stays is removed by `delete --force`.
            rustix::fs::rmdir(&path).unwrap_or_default();
        }
        opened
    }

    /// Open the folder of an existing container. `Kind::NotFound` if there is none.
    pub fn open(root: &Path, id: &str) -> Result<Dir> {
        crate::id::check(id)?;
        let path = root.join(id);
        match open_dir(&path) {
            Ok(fd) => Ok(Dir { fd, root: root.to_owned(), id: id.to_owned() }),
            Err(e) if e.downcast_ref::<rustix::io::Errno>() == Some(&rustix::io::Errno::NOENT) => {
                Err(error(Kind::NotFound, format!("container {id} does not exist")))
            }
            Err(e) => Err(e),
        }
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The folder.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Wait (at most ten seconds) for the verb that is changing this container, and keep others out.
    pub fn lock(&self) -> Result<Lock> {
        let fd = rustix::fs::openat(
            &self.fd,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .with_context(|| format!("open the state of {}", self.id))?;
        for _ in 0..2000 {
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { _held: fd }),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e).with_context(|| format!("lock the state of {}", self.id)),
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Err(error(Kind::WrongState, format!("another command is still working on container {}", self.id)))
    }

    /// Whether somebody holds the lock.
    fn is_locked(&self) -> bool {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, ".", flags, Mode::empty()).is_ok_and(|fd| {
            rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::AGAIN)
        })
    }

    /// Read the state file.
    pub fn load(&self) -> Result<State> {
        let mut bytes = self.read(FILE)?.ok_or_else(|| {
            if !self.path().exists() {
                return error(Kind::NotFound, format!("container {} does not exist", self.id));
            }
            error(Kind::Failed, format!("{}/{FILE}: no such file", self.path().display()))
        })?;
        let damaged = |what: String| {
            let message = format!("damaged state file {}/{FILE}: {what}", self.path().display());
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
        let expected = state.lengths.0.checked_add(state.lengths.1);
        if Some(bytes.len()) != expected {
            // Never mistaken for a container without a seccomp profile.
            return Err(damaged(format!(
                "{} bytes after the first line, expected {} and {}",
                bytes.len(),
                state.lengths.0,
                state.lengths.1
            )));
        }
        state.rest = Rest(bytes);
        if let Some((pid, birth)) = self.load_process()? {
            (state.pid, state.birth) = (pid, Some(birth));
        }
        Ok(state)
    }

    /// Pid and birth of the first process, when it is there.
    pub fn load_process(&self) -> Result<Option<(i32, Birth)>> {
        let mut found = None;
        self.each_name(|name| {
            found = name.to_str().ok().and_then(parse_process);
            Ok(if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(found)
    }

    /// Note the first process in `state` and in the folder.
    pub fn save_process(&self, state: &mut State, pid: i32, birth: Birth) -> Result<()> {
        let name = process_name(pid, birth);
        let done = match state.birth {
            None => rustix::fs::linkat(&self.fd, FILE, &self.fd, &name, AtFlags::empty()),
            Some(before) => rustix::fs::renameat(&self.fd, process_name(state.pid, before), &self.fd, &name),
        };
        done.with_context(|| format!("make {}/{name}", self.path().display()))?;
        (state.pid, state.birth) = (pid, Some(birth));
        Ok(())
    }

    /// The state file's first line as it is, for what can be saved of a damaged one.
    pub fn load_raw(&self) -> Result<Vec<u8>> {
        let mut bytes = self.read(FILE)?.unwrap_or_default();
        bytes.truncate(bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len()));
        Ok(bytes)
    }

    /// Write the state file of a new container. Nothing has been made yet that a half-written one could hide.
    pub fn begin(&self, state: &State) -> Result<()> {
        self.write(FILE, state)
    }

    /// Replace the state file.
    pub fn save(&self, state: &State) -> Result<()> {
        self.write(TEMPORARY, state)?;
        rustix::fs::renameat(&self.fd, TEMPORARY, &self.fd, FILE)
            .with_context(|| format!("replace {}/{FILE}", self.path().display()))
    }

    /// Remove the folder and everything in it.
    pub fn remove(&self) -> Result<()> {
        let unlink = |name: &CStr| match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            // What is not ours, a folder say, is left to the end.
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::ISDIR) => Ok(()),
            Err(e) => {
                Err(e).with_context(|| format!("remove {}/{}", self.path().display(), name.to_string_lossy()))
            }
        };
        // The state itself goes last, and tells until then what the folder is.
        let listed = self.each_name(|name| {
            if name != c"state.json" {
                unlink(name)?;
            }
            Ok(ControlFlow::Continue(()))
        });
        let removed = match listed {
            Ok(()) => {
                unlink(c"state.json")?;
                rustix::fs::rmdir(self.path())
            }
            // Once more, another way.
            Err(_) => Err(rustix::io::Errno::NOTEMPTY),
        };
        match removed {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(rustix::io::Errno::NOTEMPTY) => std::fs::remove_dir_all(self.path())
                .with_context(|| format!("remove {}", self.path().display())),
            Err(e) => Err(e).with_context(|| format!("remove {}", self.path().display())),
        }
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
            None => Ok(sys::socket::connect_at(self.fd(), START_SOCKET).is_ok()),
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
            return Ok(sys::socket::connect_at(self.fd(), START_SOCKET).ok());
        };
        if !may_not_trace(state, door.is_held_by(state.pid))? {
            return Ok(None);
        }
        may_not_trace(state, door.open(pidfd))
    }

    /// Where the folder is.
    pub fn path(&self) -> PathBuf {
        self.root.join(&self.id)
    }

    /// Call `act` for each name in the folder, without `.` and `..`, as long as it wants to go on.
    fn each_name(&self, mut act: impl FnMut(&CStr) -> Result<ControlFlow<()>>) -> Result<()> {
        let reading = || format!("read {}", self.path().display());
        rustix::fs::seek(&self.fd, rustix::fs::SeekFrom::Start(0)).with_context(reading)?;
        let mut space = [MaybeUninit::<u8>::uninit(); 1024];
        let mut names = rustix::fs::RawDir::new(&self.fd, &mut space);
        while let Some(entry) = names.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // Removed meanwhile.
                Err(rustix::io::Errno::NOENT) => return Ok(()),
                Err(e) => return Err(e).with_context(reading),
            };
            let name = entry.file_name();
            if name != c"." && name != c".." && act(name)?.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("open {}/{name}", self.path().display())),
        };
        let size = rustix::fs::fstat(&file).map_or(0, |found| found.st_size);
        // One byte more, so that one reading shows that there is no more.
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(1 << 20) + 1);
        loop {
            let space = bytes.spare_capacity_mut().len();
            let count = rustix::io::retry_on_intr(|| {
                rustix::io::read(&file, rustix::buffer::spare_capacity(&mut bytes))
            })
            .with_context(|| format!("read {}/{name}", self.path().display()))?;
            // A regular file gives less than was asked for at its end only.
            if count < space {
                return Ok(Some(bytes));
            }
            bytes.reserve(16 << 10);
        }
    }

    fn write(&self, name: &str, state: &State) -> Result<()> {
        let mut bytes = serde_json::to_vec(state).context("encode the state")?;
        bytes.push(b'\n');
        bytes.extend(&state.rest.0);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let write = || -> io::Result<()> {
            let fd = rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o600))?;
            std::fs::File::from(fd).write_all(&bytes)
        };
        write().with_context(|| format!("write {}/{name}", self.path().display()))
    }
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
