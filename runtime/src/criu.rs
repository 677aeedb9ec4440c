//! criu: the program that writes processes to disk and wakes them again. How do we talk to it?
//!
//! ```text
//!  we                              criu swrk <fd>
//!     ─ request (dump, restore) ──▶
//!     ◀────────── notify (script) ─   setup-namespaces, post-restore, orphan-pts-master …
//!     ─ notified ─────────────────▶
//!     ◀────── response (success) ──
//! ```

pub mod dump;
mod message;
pub mod restore;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use oci_spec::runtime::{Mount, Spec};
use report::{Explain, error};
use rustix::io::FdFlags;
use sys::socket;

use crate::protobuf::Message;
use message::{Kind, Response, opts};

/// What `checkpoint` and `restore` have in common.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The folder of the images.
    pub images: PathBuf,
    /// The folder of the log; the images' if there is none.
    pub work: Option<PathBuf>,
    pub tcp_established: bool,
    pub external_unix_sockets: bool,
    pub shell_job: bool,
    pub file_locks: bool,
    pub manage_cgroups: CgroupMode,
    pub auto_dedup: bool,
    pub lazy_pages: bool,
}

/// `--manage-cgroups-mode`: what criu does with cgroups (criu_cg_mode).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum CgroupMode {
    Ignore = 0,
    #[default]
    Soft = 3,
    Full = 4,
    Strict = 5,
}

/// The folders, open: criu takes them as descriptors, by their numbers.
struct Folders {
    images: File,
    work: Option<File>,
}

impl Folders {
    fn open(options: &Options) -> Result<Folders> {
        let open = |path: &Path| inherited(path).with_context(|| format!("open {}", path.display()));
        let work = match &options.work {
            Some(path) => {
                fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
                Some(open(path)?)
            }
            None => None,
        };
        Ok(Folders { images: open(&options.images)?, work })
    }
}

/// Open something for criu, which finds it by number.
fn inherited(path: &Path) -> Result<File> {
    let file = File::open(path)?;
    rustix::io::fcntl_setfd(&file, FdFlags::empty())?;
    Ok(file)
}

fn common(options: &Options, folders: &Folders, log: &str) -> Message {
    let number = |fd: &File| u64::from(fd.as_raw_fd().unsigned_abs());
    let message = Message::default()
        .number(opts::IMAGES_DIR_FD, number(&folders.images))
        .number(opts::LOG_LEVEL, 4)
        .bytes(opts::LOG_FILE, log)
        .flag(opts::NOTIFY_SCRIPTS, true)
        .flag(opts::MANAGE_CGROUPS, true)
        .number(opts::MANAGE_CGROUPS_MODE, options.manage_cgroups as u64)
        // Interfaces and addresses are the engine's to set up.
        .number(opts::EMPTY_NS, sys::process::flags::NEWNET)
        .flag(opts::ORPHAN_PTS_MASTER, true)
        .flag(opts::TCP_ESTABLISHED, options.tcp_established)
        .flag(opts::EXT_UNIX_SK, options.external_unix_sockets)
        .flag(opts::SHELL_JOB, options.shell_job)
        .flag(opts::FILE_LOCKS, options.file_locks)
        .flag(opts::AUTO_DEDUP, options.auto_dedup)
        .flag(opts::LAZY_PAGES, options.lazy_pages);
    match &folders.work {
        Some(work) => message.number(opts::WORK_DIR_FD, number(work)),
        None => message,
    }
}

/// One request. `notified` hears of every event, with the descriptors that came along.
fn converse(
    program: &Path,
    kind: Kind,
    options: Message,
    log: &Path,
    mut notified: impl FnMut(&str, i32, Vec<OwnedFd>) -> Result<()>,
) -> Result<Response> {
    // The log of an earlier try would be taken for this one's.
    match fs::remove_file(log) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("remove {}", log.display()));
        }
        _ => {}
    }
    let (ours, theirs) = socket::pair().context("make a socket pair")?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).context("pass a socket on")?;
    let mut criu = Command::new(program)
        .arg("swrk")
        .arg(theirs.as_raw_fd().to_string())
        .spawn()
        .map_err(|e| not_started(program, e))?;
    drop(theirs);
    let result = talk(&ours, kind, options, log, &mut notified);
    // It waits for another request otherwise.
    drop(ours);
    let ended = criu.wait().context("wait for criu");
    let response = result?;
    ended?;
    Ok(response)
}

fn talk(
    ours: &OwnedFd,
    kind: Kind,
    options: Message,
    log: &Path,
    notified: &mut impl FnMut(&str, i32, Vec<OwnedFd>) -> Result<()>,
) -> Result<Response> {
    let send =
        |message: &Message| socket::send(ours.as_fd(), message.as_bytes(), &[]).context("talk to criu");
    send(&message::request(kind, options))?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (length, fds) = socket::receive(ours.as_fd(), &mut buffer).context("talk to criu")?;
        if length == 0 {
            return Err(failed(log, "ended without an answer"));
        }
        let Some(response) = Response::parse(&buffer[..length]) else {
            return Err(anyhow!("criu sent what is not a message"));
        };
        match &response.notify {
            Some((script, pid)) if response.kind == Kind::Notify as u64 => {
                log::debug!("criu: {script} {pid}");
                notified(script, *pid, fds)?;
                send(&message::notified())?;
            }
            _ if response.success => return Ok(response),
            _ => return Err(failed(log, &reason(&response))),
        }
    }
}

fn reason(response: &Response) -> String {
    match (&*response.message, response.errno) {
        ("", 0) => "failed".to_owned(),
        ("", errno) => std::io::Error::from_raw_os_error(errno).to_string(),
        (message, _) => message.to_owned(),
    }
}

/// criu says little on the wire (the first of its errors, which may be one that stopped nothing) and much in its log. The
/// last of its errors are the ones that stopped it.
fn failed(log: &Path, reason: &str) -> anyhow::Error {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let mut told = errors(&text);
    if told.is_empty() {
        told = errors(reason);
    }
    let error = match &told[told.len().saturating_sub(4)..] {
        [] => anyhow!("criu: {reason}"),
        last => anyhow!("criu: {}", last.join("; ")),
    };
    error.context(report::Note { kind: None, hint: Some(format!("criu's log is {}", log.display())) })
}

/// The messages of lines like `(00.123456) Error (criu/mount.c:1): message`.
fn errors(text: &str) -> Vec<&str> {
    let lines = text.lines().filter_map(|line| line.split_once("Error (")?.1.split_once("): "));
    lines.map(|(_, message)| message.trim()).collect()
}

fn not_started(program: &Path, e: std::io::Error) -> anyhow::Error {
    if e.kind() != ErrorKind::NotFound {
        return anyhow::Error::new(e).context(format!("execute {}", program.display()));
    }
    let error = error(report::Kind::Unsupported, format!("{} is not installed", program.display()));
    error.context(report::Note {
        kind: Some(report::Kind::Unsupported),
        hint: Some("checkpoints are made by criu: install it, or name it with --criu".to_owned()),
    })
}

/// The mounts of a config that show a part of the host: destination in the container, source on the host.
fn binds(spec: &Spec, bundle: &Path) -> Vec<(PathBuf, PathBuf)> {
    let list = spec.mounts().iter().flatten().filter(|m| is_bind(m));
    list.filter_map(|m| Some((Path::new("/").join(m.destination()), bundle.join(m.source().as_ref()?))))
        .collect()
}

fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().iter().flatten();
    mount.typ().as_deref() == Some("bind") || { options }.any(|o| o == "bind" || o == "rbind")
}

/// The annotation that names a configuration file of criu's, whose options win over ours.
fn config_file(message: Message, annotations: &BTreeMap<String, String>) -> Message {
    match annotations.get(CONFIG_ANNOTATION).filter(|path| !path.is_empty()) {
        Some(path) => message.bytes(opts::CONFIG_FILE, path),
        None => message,
    }
}

/// As runc and its engines know it.
pub const CONFIG_ANNOTATION: &str = "org.criu.config";

/// What criu calls a namespace that it neither saves nor makes.
const OUTER_NAMESPACES: [(&str, u64, &str); 2] = [
    ("net", sys::process::flags::NEWNET, "extRootNetNS"),
    ("pid", sys::process::flags::NEWPID, "extRootPidNS"),
];

/// criu names a mask of a file by what covers it.
const MASK: &str = "/dev/null";

/// How criu's name of a file outside of the container begins: `file[MOUNT:INODE]`, in hexadecimal.
const OUTER_FILE: &str = "file[";

/// Where the images keep what the standard descriptors were.
const DESCRIPTORS: &str = "descriptors.json";

/// Refuse a parent path as runc does: relative to the images, and there.
pub fn check_parent(images: &Path, parent: &Path) -> Result<()> {
    if parent.is_absolute() {
        let message = format!("--parent-path {}: must be relative to --image-path", parent.display());
        return Err(error(report::Kind::BadInput, message));
    }
    let there = images.join(parent);
    match fs::metadata(&there) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(anyhow!("{} is not a directory", there.display())),
        Err(e) => Err(e).with_context(|| there.display().to_string()),
    }
    .context("--parent-path")
    .kind(report::Kind::BadInput)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_log() {
        let log = "(00.1) Warn  (criu/a.c:1): not so bad\n(00.2) Error (criu/b.c:2): first: this\nnoise\n\
                   (00.3) Error (criu/c.c:3): then that\n";
        assert_eq!(errors(log), ["first: this", "then that"]);
    }

    #[test]
    fn binds_are_found_by_option_or_type() {
        let text = include_str!("../../spec-examples/containerd-cri.json");
        let spec = crate::bundle::parse(text.as_bytes()).unwrap();
        let found = binds(&spec, Path::new("/b"));
        assert_eq!(found.len(), 5);
        assert_eq!(found[0].0, Path::new("/etc/hosts"));
    }

    #[test]
    fn a_parent_is_relative_and_there() {
        let line = |parent: &str| report::line(&check_parent(Path::new("/"), Path::new(parent)).unwrap_err());
        check_parent(Path::new("/"), Path::new("tmp")).unwrap();
        assert_eq!(line("/tmp"), "--parent-path /tmp: must be relative to --image-path");
        assert_eq!(line("etc/passwd"), "--parent-path: /etc/passwd is not a directory");
    }
}
