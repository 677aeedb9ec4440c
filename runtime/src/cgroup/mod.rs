//! Control groups: make, join, limit, measure, freeze, kill, remove; v1, hybrid, v2; cgroupfs and systemd.
//!
//! ```text
//! Cgroup::record(plan) ─▶ state file ─▶ Cgroup::create ─▶ clone (clone_into) ─▶ apply(pid) ─▶ child: join()
//! ```
//! With [`Cgroup::needs_pid_first`] (systemd, which wants a process for a scope) the child must not go on to
//! `join` before `apply` is done; otherwise the order of those two does not matter.

mod dbus;
mod devices;
mod freezer;
pub mod host;
mod limits;
pub mod oom;
mod pids;
mod remove;
pub mod stats;
mod sub;
mod systemd;
#[cfg(test)]
mod tests;
mod update;
mod v1;
mod v2;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result};
use report::{Explain, Kind};
use serde::{Deserialize, Serialize};
use sys::cgroupfs;

pub use self::freezer::{freeze, is_frozen, thaw};
pub use self::pids::pids;
pub use self::remove::{destroy, destroy_lost, signal_all};
pub use self::sub::Sub;
pub use self::update::update;
use crate::plan::resources::{CgroupPlan, Driver, V2Dir};

/// Where a container's cgroups are: what the state file keeps, and enough to find, kill and remove them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// v1 directories, each with its controllers; the one that freezes and counts processes first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub v1: Vec<(String, PathBuf)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v2: Option<PathBuf>,
    /// systemd's unit, and whether it is one of the user's own systemd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<(String, bool)>,
    /// What we write on the first directory, the path of the container's state: without it there, its
    /// processes are not ours to kill.
    #[serde(default)]
    pub mark: String,
}

impl Record {
    /// Whether the container has no cgroup at all.
    pub fn is_none(&self) -> bool {
        self.v1.is_empty() && self.v2.is_none() && self.unit.is_none()
    }

    /// Where a process is now: for measuring and watching a container whatever runtime made it. It has no mark, so that nothing
    /// is killed or removed by it.
    pub fn of_process(pid: i32) -> Result<Record> {
        let file = format!("/proc/{pid}/cgroup");
        let text = cgroupfs::read(Path::new(&file)).with_context(|| format!("read {file}"))?;
        let host = host::Hierarchies::detect()?;
        let mut record = Record::default();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            if controllers.is_empty() {
                record.v2 = host.v2.as_ref().map(|v2| host::below(&v2.mount, path));
            } else if let Some(v1) = host.v1.iter().find(|h| h.controllers.join(",") == controllers) {
                record.v1.push((controllers.to_owned(), host::below(&v1.mount, path)));
            }
        }
        Ok(record)
    }

    /// The directory that stands for the container: the first v1 one, or v2's.
    fn first(&self) -> Option<&Path> {
        self.v1.first().map(|(_, path)| path.as_path()).or(self.v2.as_deref())
    }
}

/// The cgroups of one container, with open descriptors.
#[derive(Debug, Default)]
pub struct Cgroup {
    record: Record,
    /// v1 `tasks` files.
    tasks: Vec<OwnedFd>,
    v2: Option<OwnedFd>,
    /// What is done when there is a process.
    later: Option<Later>,
    pid_first: bool,
}

#[derive(Debug)]
enum Later {
    /// Start the scope.
    Scope(Box<CgroupPlan>),
    /// Have systemd move a further process in.
    Attach,
}

impl Cgroup {
    /// Where `plan` will put them: written to the state file before [`Cgroup::create`]. `folder`: the absolute
    /// path of the container's state, which no other container has.
    pub fn record(plan: &CgroupPlan, folder: &Path) -> Record {
        Record {
            v1: plan.v1.iter().map(|dir| (dir.controllers.join(","), dir.host())).collect(),
            v2: plan.v2.as_ref().map(V2Dir::host),
            unit: match &plan.driver {
                Driver::Systemd(scope) => Some((scope.unit.clone(), scope.user)),
                Driver::Cgroupfs => None,
            },
            mark: folder.to_string_lossy().into_owned(),
        }
    }

    /// Make the directories and write the limits that must hold before the first process. After an error
    /// nothing that was made is left.
    pub fn create(plan: &CgroupPlan, record: &Record) -> Result<Cgroup> {
        if let Driver::Systemd(_) = plan.driver {
            return Ok(systemd::prepare(plan, record));
        }
        let mut made = Made::default();
        let error = match make(plan, record, &mut made) {
            Ok(cgroup) => return Ok(cgroup),
            Err(e) => made.undo(record, e),
        };
        if plan.optional {
            log::warn!("the container has no cgroup: {}", report::line(&error));
            return Ok(Cgroup::default());
        }
        let denied = |e: &std::io::Error| e.kind() == std::io::ErrorKind::PermissionDenied;
        if error.downcast_ref::<std::io::Error>().is_some_and(denied) {
            let error = match plan.writes.first() {
                Some(write) => error.context(format!("{} needs a cgroup", write.source)),
                None => error,
            };
            return Err(error).kind(Kind::Unsupported).hint(|| {
                "no cgroup is delegated to this user there: add --systemd-cgroup (with a systemd user session), \
                 name a delegated one in linux.cgroupsPath, or leave out linux.resources"
                    .to_owned()
            });
        }
        Err(error)
    }

    /// Open the cgroups of an existing container for one more process (`exec`).
    pub fn open(record: &Record, sub: &Sub) -> Result<Cgroup> {
        Cgroup::enter(sub.of(record)?)
    }

    /// The cgroup of another process of the container (v2): where the container itself has handed controllers
    /// down, nobody may enter its first cgroup any more, and clone3 errs with EBUSY.
    pub fn beside(&self, pid: i32) -> Result<Cgroup> {
        Cgroup::enter(v2::record_of(&self.record, pid)?)
    }

    fn enter(record: Record) -> Result<Cgroup> {
        if record.unit.as_ref().is_some_and(|(_, user)| *user) {
            return Ok(Cgroup { record, later: Some(Later::Attach), pid_first: true, ..Cgroup::default() });
        }
        let tasks = v1::open_tasks(&record)?;
        let v2 = record.v2.as_deref().map(v2::open).transpose()?;
        Ok(Cgroup { record, tasks, v2, later: None, pid_first: false })
    }

    /// Where the cgroups really are: after [`Cgroup::apply`] the state file takes this.
    pub fn now(&self) -> &Record {
        &self.record
    }

    /// The child must wait for [`Cgroup::apply`] before it calls [`Cgroup::join`] and enters a new cgroup
    /// namespace.
    pub fn needs_pid_first(&self) -> bool {
        self.pid_first
    }

    /// The v2 directory for `CLONE_INTO_CGROUP`.
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        self.v2.as_ref().map(OwnedFd::as_fd)
    }

    /// In the single-threaded child: enter every hierarchy that `clone_into` does not cover.
    ///
    /// A thread that writes `0` to `tasks` moves itself alone. A pid in `cgroup.procs` would take the lock of
    /// all thread groups, which costs a grace period of about 19 ms on an idle host.
    pub fn join(&self) -> Result<()> {
        // With systemd, the child was cloned before the directories were there.
        let late;
        let tasks = match self.later {
            Some(Later::Scope(_)) => {
                late = v1::open_tasks(&self.record)?;
                &late
            }
            Some(Later::Attach) | None => &self.tasks,
        };
        for (tasks, (_, path)) in tasks.iter().zip(&self.record.v1) {
            cgroupfs::write_to(tasks, b"0").with_context(|| format!("enter cgroup {}", path.display()))?;
        }
        Ok(())
    }

    /// In the parent, after the clone: what needs a process (systemd: start the scope with `pid` in it).
    pub fn apply(&mut self, pid: i32) -> Result<()> {
        match self.later.take() {
            Some(Later::Scope(plan)) => systemd::start(self, &plan, pid),
            Some(Later::Attach) => systemd::attach(&self.record, pid),
            None => Ok(()),
        }
    }
}

/// What was made, so that an error can undo exactly that.
#[derive(Default)]
struct Made {
    v1: Vec<usize>,
    v2: bool,
}

impl Made {
    /// Remove what was made, newest first; what fails then is added to the error.
    fn undo(self, record: &Record, error: Error) -> Error {
        let v2 = record.v2.iter().filter(|_| self.v2).map(PathBuf::as_path);
        let v1 = self.v1.iter().rev().map(|index| record.v1[*index].1.as_path());
        let failed: Vec<String> = v2
            .chain(v1)
            .filter_map(|path| Some(format!("remove {}: {}", path.display(), cgroupfs::remove(path).err()?)))
            .collect();
        if failed.is_empty() {
            error
        } else {
            error.context(format!("(then, undoing: {})", failed.join("; ")))
        }
    }
}

fn make(plan: &CgroupPlan, record: &Record, made: &mut Made) -> Result<Cgroup> {
    v1::make(plan, record, &mut made.v1)?;
    if let Some(dir) = &plan.v2 {
        v2::make(plan, dir, record, &mut made.v2)?;
    }
    limits::write_all(&plan.writes, record)?;
    let cgroup = Cgroup::enter(record.clone())?;
    if let (Some(rules), Some(v2)) = (&plan.devices, &cgroup.v2) {
        devices::attach(rules, v2)?;
    }
    Ok(cgroup)
}

/// Note on the first directory that it is ours.
fn mark(path: &Path, record: &Record) -> Result<()> {
    match cgroupfs::set_mark(path, &record.mark) {
        Ok(true) => Ok(()),
        Ok(false) => {
            log::debug!("this kernel keeps no attributes on cgroups");
            Ok(())
        }
        Err(e) => Err(e).with_context(|| format!("mark cgroup {} as ours", path.display())),
    }
}

fn not_empty(path: &Path, processes: usize) -> Error {
    let message =
        format!("container's cgroup is not empty: {processes} process(es) found in {}", path.display());
    report::error(Kind::AlreadyExists, message)
}
