//! Wakes the processes of a container from disk.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use oci_spec::runtime::Spec;
use report::Kind as ErrorKind;
use sys::process::{self, flags};

use super::dump::cgroup_binds;
use super::message::{Kind, opts};
use super::{
    DESCRIPTORS, Folders, MASK, OUTER_FILE, OUTER_NAMESPACES, Options, binds, common, config_file, converse,
    inherited,
};
use crate::cgroup::Cgroup;
use crate::host::Host;
use crate::launch::container::{self, Outcome};
use crate::plan::Plan;
use crate::protobuf::Message;
use crate::setup::hooks;
use crate::state::{Dir, State, Status};

/// What only `restore` knows.
#[derive(Clone, Debug, Default)]
pub struct Restore {
    pub lsm_profile: Option<String>,
    pub lsm_mount_context: Option<String>,
}

/// Restore a container by `plan`. After an error nothing of it is left.
pub fn restore(
    program: &Path,
    options: &Options,
    restore: &Restore,
    (root, host): (&Path, &Host),
    (spec, plan): (&Spec, &Plan),
) -> Result<Outcome> {
    let descriptors = descriptors(&options.images)?;
    if let Some(path) = plan.namespaces.joined_path(flags::NEWCGROUP) {
        let message =
            format!("linux.namespaces: criu cannot restore into the cgroup namespace {}", path.display());
        return Err(report::error(ErrorKind::Unsupported, message));
    }
    let mut state = container::first_state(plan, host, &root.join(&plan.id))?;
    let (dir, lock) = Dir::create(root, &plan.id)?;
    let woken = dir.begin(&state).and_then(|()| {
        let mut cgroup = Cgroup::create(&plan.cgroup, &state.cgroup)?;
        let sleeper = Sleeper { program, options, restore, spec, plan, descriptors: &descriptors };
        sleeper.wake(&dir, &mut state, &mut cgroup)
    });
    drop(lock);
    match woken {
        Ok((pidfd, terminal)) => Ok(Outcome { dir, state, pidfd, terminal, notify: None }),
        Err(e) => match container::destroy(&dir, &state) {
            Ok(()) => Err(e),
            Err(more) => Err(e.context(format!("(while undoing: {})", report::line(&more)))),
        },
    }
}

struct Sleeper<'a> {
    program: &'a Path,
    options: &'a Options,
    restore: &'a Restore,
    spec: &'a Spec,
    plan: &'a Plan,
    descriptors: &'a [String],
}

const LOG: &str = "restore.log";

impl Sleeper<'_> {
    fn wake(&self, dir: &Dir, state: &mut State, cgroup: &mut Cgroup) -> Result<(OwnedFd, Option<OwnedFd>)> {
        let _own = PrivateMounts::enter(&self.plan.rootfs.path)?;
        let folders = Folders::open(self.options)?;
        let mut outer = Vec::new();
        let message = self.message(&folders, state, &mut outer)?;
        let log = self.options.work.as_ref().unwrap_or(&self.options.images).join(LOG);
        let mut terminal = None;
        let response = converse(self.program, Kind::Restore, message, &log, |script, pid, fds| {
            match script {
                "setup-namespaces" => {
                    note(dir, state, pid)?;
                    cgroup.apply(pid)?;
                    let json = state.container_state().json(Status::Creating);
                    let bundle = Some(self.plan.bundle.as_path());
                    hooks::run("prestart", &self.plan.hooks.prestart, &json, bundle)?;
                    hooks::run("createRuntime", &self.plan.hooks.create_runtime, &json, bundle)?;
                }
                // Until here the tree was stopped; only now its first process has its own name for the kernel.
                "post-restore" => note(dir, state, pid)?,
                "orphan-pts-master" => terminal = fds.into_iter().next(),
                _ => {}
            }
            Ok(())
        })?;
        if state.pid == 0 {
            let pid = response.restored.ok_or_else(|| anyhow!("criu named no process"))?;
            note(dir, state, pid)?;
        }
        let pidfd = process::pidfd_open(state.pid).context("open the restored process")?;
        Ok((pidfd, terminal))
    }

    fn message(&self, folders: &Folders, state: &State, outer: &mut Vec<File>) -> Result<Message> {
        let plan = self.plan;
        let mut message = common(self.options, folders, LOG)
            .bytes(opts::ROOT, plan.rootfs.path.as_os_str().as_encoded_bytes())
            .flag(opts::EVASIVE_DEVICES, true)
            // It becomes our child, so that we can wait for it.
            .flag(opts::RST_SIBLING, true);
        message = config_file(message, &plan.annotations);
        for (field, text) in [
            (opts::LSM_PROFILE, &self.restore.lsm_profile),
            (opts::LSM_MOUNT_CONTEXT, &self.restore.lsm_mount_context),
        ] {
            if let Some(text) = text {
                message = message.bytes(field, text);
            }
        }
        for (controllers, path) in cgroup_roots(plan) {
            let root = Message::default().bytes(1, controllers).bytes(2, path);
            message = message.message(opts::CG_ROOT, root);
        }
        for (destination, source) in binds(self.spec, &state.bundle) {
            message = message.pair(
                opts::EXT_MNT,
                &destination.display().to_string(),
                &source.display().to_string(),
            );
        }
        for (destination, source) in cgroup_binds(plan) {
            message = message.pair(opts::EXT_MNT, &destination, &source.display().to_string());
        }
        message = message.pair(opts::EXT_MNT, MASK, MASK);
        let ours = |name: &String| name.contains("pipe:") || name.starts_with(OUTER_FILE);
        for (fd, name) in self.descriptors.iter().enumerate().filter(|(_, name)| ours(name)) {
            message = message.message(opts::INHERIT_FD, inherit(name, fd as u64));
        }
        for joined in &plan.namespaces.joined {
            let path = joined.path.display().to_string();
            match OUTER_NAMESPACES.iter().find(|(_, flag, _)| *flag == joined.flag) {
                Some((_, _, key)) => {
                    let file = inherited(&joined.path)
                        .with_context(|| format!("linux.namespaces[{}].path: {path}", joined.index))?;
                    let number = u64::from(file.as_raw_fd().unsigned_abs());
                    message = message.message(opts::INHERIT_FD, inherit(key, number));
                    outer.push(file);
                }
                None => {
                    let name =
                        crate::plan::namespaces::TABLE.iter().find(|(_, flag, _)| *flag == joined.flag);
                    let name = name.map_or("", |(_, _, file)| file);
                    message = message.pair(opts::JOIN_NS, name, &path);
                }
            }
        }
        Ok(message)
    }
}

fn inherit(key: &str, fd: u64) -> Message {
    Message::default().bytes(1, key).number(2, fd)
}

/// Where the restored tree goes: the same place that a new container would have.
fn cgroup_roots(plan: &Plan) -> Vec<(String, String)> {
    let v1 = plan.cgroup.v1.iter().map(|dir| (dir.controllers.join(","), dir.path.clone()));
    let v2 = plan.cgroup.v2.iter().map(|dir| (String::new(), dir.path.clone()));
    v1.chain(v2).collect()
}

fn note(dir: &Dir, state: &mut State, pid: i32) -> Result<()> {
    let pidfd = process::pidfd_open(pid).context("open the restored process")?;
    container::note_pid(dir, state, pid, pidfd.as_fd())
}

/// What the standard descriptors were when the container was dumped.
fn descriptors(images: &Path) -> Result<Vec<String>> {
    let path = images.join(DESCRIPTORS);
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    crate::json::parse(&bytes).with_context(|| path.display().to_string())
}

/// A mount namespace of our own while criu works: it wants the root to be a mount, and nobody else has to see
/// that, or to clean it up after a crash.
struct PrivateMounts {
    outside: File,
}

impl PrivateMounts {
    fn enter(rootfs: &Path) -> Result<PrivateMounts> {
        let outside = File::open("/proc/self/ns/mnt").context("open /proc/self/ns/mnt")?;
        process::unshare(flags::NEWNS).context("unshare the mount namespace")?;
        let own = PrivateMounts { outside };
        sys::mount::mount(None, "/", None, SLAVE, None).context("make / a slave")?;
        sys::mount::mount(Some(rootfs), &rootfs.to_string_lossy(), None, BIND, None)
            .with_context(|| format!("bind {} to itself", rootfs.display()))?;
        Ok(own)
    }
}

/// `MS_REC | MS_SLAVE`, `MS_REC | MS_BIND` (mount(2)).
const SLAVE: u64 = 1 << 14 | 1 << 19;
const BIND: u64 = 1 << 14 | 1 << 12;

impl Drop for PrivateMounts {
    fn drop(&mut self) {
        if let Err(e) = process::setns(self.outside.as_fd(), flags::NEWNS) {
            log::warn!("return to the host's mount namespace: {e}");
        }
    }
}
