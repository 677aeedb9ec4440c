//! Writes the processes of a container to disk.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use oci_spec::runtime::Spec;

use super::message::{Kind, opts};
use super::{
    DESCRIPTORS, Folders, MASK, OUTER_FILE, OUTER_NAMESPACES, Options, binds, common, config_file, converse,
};
use crate::cgroup::Record;
use crate::plan::Plan;
use crate::plan::resources::View;
use crate::protobuf::Message;
use crate::state::State;

/// What only `checkpoint` knows.
#[derive(Clone, Debug, Default)]
pub struct Dump {
    pub leave_running: bool,
    /// Memory alone, for a dump to follow.
    pub pre_dump: bool,
    /// The images of the dump before, relative to these.
    pub parent: Option<PathBuf>,
    pub page_server: Option<(String, u16)>,
    pub status_fd: Option<u32>,
    pub link_remap: bool,
    pub tcp_skip_in_flight: bool,
}

/// Dump the container. `plan`: of its config as it is now.
pub fn dump(
    program: &Path,
    options: &Options,
    dump: &Dump,
    state: &State,
    spec: &Spec,
    plan: &Plan,
) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&options.images)
        .with_context(|| format!("make {}", options.images.display()))?;
    if let Some(parent) = &dump.parent {
        super::check_parent(&options.images, parent)?;
    }
    let folders = Folders::open(options)?;
    let mut message = common(options, &folders, LOG)
        .number(opts::PID, u64::from(state.pid.unsigned_abs()))
        .bytes(opts::ROOT, state.rootfs.as_os_str().as_encoded_bytes())
        .flag(opts::LEAVE_RUNNING, dump.leave_running)
        .flag(opts::LINK_REMAP, dump.link_remap)
        .flag(opts::TCP_SKIP_IN_FLIGHT, dump.tcp_skip_in_flight);
    message = config_file(message, &plan.annotations);
    if let Some(parent) = &dump.parent {
        message = message
            .bytes(opts::PARENT_IMG, parent.as_os_str().as_encoded_bytes())
            .flag(opts::TRACK_MEM, true);
    }
    if dump.pre_dump {
        message = message.flag(opts::TRACK_MEM, true);
    }
    if let Some((address, port)) = &dump.page_server {
        let server = Message::default().bytes(1, address).number(2, u64::from(*port));
        message = message.message(opts::PAGE_SERVER, server);
    }
    if let Some(fd) = dump.status_fd {
        message = message.number(opts::STATUS_FD, u64::from(fd));
    }
    if let Some(dir) = freezer(&state.cgroup) {
        message = message.bytes(opts::FREEZE_CGROUP, dir.as_os_str().as_encoded_bytes());
    }
    for (name, flag, key) in OUTER_NAMESPACES {
        if let Some(path) = plan.namespaces.joined_path(flag) {
            let inode = fs::metadata(path).with_context(|| path.display().to_string())?.ino();
            message = message.bytes(opts::EXTERNAL, format!("{name}[{inode}]:{key}"));
        }
    }
    let kind = if dump.pre_dump { Kind::PreDump } else { Kind::Dump };
    if kind == Kind::Dump {
        message = outer_mounts(message, state, spec, plan);
        let descriptors = descriptors(state.pid)?;
        for key in descriptors.iter().filter(|key| key.starts_with(OUTER_FILE)).collect::<BTreeSet<_>>() {
            message = message.bytes(opts::EXTERNAL, key);
        }
        let path = options.images.join(DESCRIPTORS);
        fs::write(&path, serde_json::to_vec(&descriptors)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    let log = options.work.as_ref().unwrap_or(&options.images).join(LOG);
    converse(program, kind, message, &log, |_, _, _| Ok(())).map(drop)
}

const LOG: &str = "dump.log";

/// Where the whole container is stopped at once, while criu looks.
fn freezer(record: &Record) -> Option<&PathBuf> {
    let v1 = record.v1.iter().find(|(controllers, _)| controllers.split(',').any(|c| c == "freezer"));
    v1.map(|(_, dir)| dir).or(record.v2.as_ref())
}

/// Mounts that are the host's: criu notes their place alone.
fn outer_mounts(mut message: Message, state: &State, spec: &Spec, plan: &Plan) -> Message {
    for (destination, _) in binds(spec, &state.bundle) {
        let path = destination.display().to_string();
        message = message.pair(opts::EXT_MNT, &path, &path);
    }
    for (destination, _) in cgroup_binds(plan) {
        message = message.pair(opts::EXT_MNT, &destination, &destination);
    }
    for masked in spec.linux().iter().flat_map(|l| l.masked_paths().iter().flatten()) {
        // A directory is masked by a file system of its own, which criu knows how to save.
        let inside = format!("/proc/{}/root{masked}", state.pid);
        if fs::metadata(inside).is_ok_and(|found| !found.is_dir()) {
            message = message.pair(opts::EXT_MNT, masked, MASK);
        }
    }
    message
}

/// On v1 without a cgroup namespace each hierarchy is a bind mount of the container's directory in it.
pub fn cgroup_binds(plan: &Plan) -> Vec<(String, PathBuf)> {
    if plan.namespaces.has(sys::process::flags::NEWCGROUP) {
        return Vec::new();
    }
    match plan.cgroup.view() {
        View::V1 { mounts, .. } => {
            mounts.into_iter().map(|m| (format!("/sys/fs/cgroup/{}", m.name), m.host)).collect()
        }
        View::V2 { .. } | View::None => Vec::new(),
    }
}

/// What standard input, output and error are: `restore` gives its own in the place of pipes and of files that are the host's.
fn descriptors(pid: i32) -> Result<Vec<String>> {
    let path = format!("/proc/{pid}/mountinfo");
    let mountinfo = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let name = |fd: u32| {
        let path = format!("/proc/{pid}/fd/{fd}");
        let look = || -> std::io::Result<String> {
            let target = fs::read_link(&path)?.display().to_string();
            let found = fs::metadata(&path)?;
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}"))?;
            let outer = found.file_type().is_fifo() || found.file_type().is_file();
            Ok(match outer_mount(&info, &mountinfo) {
                Some(mount) if outer && target.starts_with('/') => {
                    format!("{OUTER_FILE}{mount:x}:{:x}]", found.ino())
                }
                _ => target,
            })
        };
        match look() {
            // A process may close them.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            found => found.with_context(|| format!("read {path}")),
        }
    };
    (0..3).map(name).collect()
}

/// The mount that a descriptor (its proc_pid_fdinfo(5)) was opened on, if it is none of the process's own (its
/// proc_pid_mountinfo(5)).
fn outer_mount(fdinfo: &str, mountinfo: &str) -> Option<u64> {
    let mount = fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    let own = mountinfo.lines().any(|line| line.split(' ').next() == Some(mount));
    if own { None } else { mount.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::outer_mount;

    #[test]
    fn files_of_the_host() {
        let mounts = "155 100 0:50 / / rw - overlay overlay rw\n1156 155 0:51 / /proc rw - proc proc rw\n";
        for (info, expected) in [
            ("pos:\t0\nflags:\t0100000\nmnt_id:\t155\nino:\t9\n", None),
            ("pos:\t0\nmnt_id:\t56\n", Some(56)),
            ("pos:\t0\nmnt_id:\t15\n", Some(15)),
            ("pos:\t0\n", None),
        ] {
            assert_eq!(outer_mount(info, mounts), expected, "{info}");
        }
    }
}
