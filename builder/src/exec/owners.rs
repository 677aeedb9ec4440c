//! Whose are files where there is only one id? A command's chown(2) cannot be done there; it is written down beside the file
//! ([`OWNER`]), from where it gets into the layer's archive as if it had been done. The kernel asks us: seccomp_unotify(2).
//!
//! What the command sees does not change: files stay root's to it. Nothing is written down for what takes no attributes: symbolic
//! links, and files on a tmpfs.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use image::layer::apply::OWNER;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use serde_json::{Value, json};
use sys::notify::{self, Answer, Call};

/// The calls that we are asked about.
const CALLS: [&str; 4] = ["chown", "fchown", "lchown", "fchownat"];
/// PATH_MAX, limits.h.
const PATH_MOST: usize = 4096;
/// CLONE_FS, clone(2).
const FS: u64 = 0x200;
/// What overlayfs leaves on what it has copied up.
const ORIGIN: &str = "user.overlay.origin";

/// Answers commands for as long as it lives.
#[derive(Debug)]
pub struct Agent {
    pub path: PathBuf,
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Listen in `room`.
    pub fn start(room: &Path) -> Result<Agent> {
        let starting = || "start what writes down owners";
        let folder = sys::path::open_host(room).with_context(starting)?;
        use std::os::fd::AsRawFd;
        // A socket's path is short.
        let short = format!("/proc/self/fd/{}/owners", folder.as_raw_fd());
        let listener = UnixListener::bind(short).with_context(starting)?;
        let (stopped, stop) = io::pipe().with_context(starting)?;
        let thread = std::thread::Builder::new()
            .name("owners".to_owned())
            .spawn(move || serve(&listener, stopped.as_fd()))
            .with_context(starting)?;
        Ok(Agent { path: room.join("owners"), stop: Some(stop), thread: Some(thread) })
    }

    /// Have the kernel ask it what a container's processes do.
    pub fn ask(&self, config: &mut Value) {
        let allow = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        let filter = &mut config["linux"]["seccomp"];
        if !filter.is_object() {
            *filter = allow;
        }
        filter["listenerPath"] = json!(self.path);
        let mut all = filter["syscalls"].as_array().cloned().unwrap_or_default();
        for rule in &mut all {
            if let Some(names) = rule["names"].as_array_mut() {
                names.retain(|n| !CALLS.iter().any(|c| n == c));
            }
        }
        all.retain(|rule| rule["names"].as_array().is_none_or(|names| !names.is_empty()));
        all.push(json!({"names": CALLS, "action": "SCMP_ACT_NOTIFY"}));
        filter["syscalls"] = json!(all);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // What it did not come to, nobody waits for.
            thread.join().unwrap_or_default();
        }
    }
}

/// Wait until there is something to read; not if we are to stop, or nothing will come.
fn readable(fd: BorrowedFd<'_>, stopped: BorrowedFd<'_>) -> bool {
    loop {
        let mut fds =
            [PollFd::from_borrowed_fd(fd, PollFlags::IN), PollFd::from_borrowed_fd(stopped, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return false,
        }
        if !fds[1].revents().is_empty() {
            return false;
        }
        return fds[0].revents().contains(PollFlags::IN);
    }
}

fn serve(listener: &UnixListener, stopped: BorrowedFd<'_>) {
    // Without a root folder of our own, and our own view of processes, we could not follow theirs: they get errors then.
    let ready = || -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
        sys::process::unshare(FS)?;
        Ok(proc)
    };
    let Ok(proc) = ready() else { return };
    while readable(listener.as_fd(), stopped) {
        let Ok((stream, _)) = listener.accept() else { return };
        let mut buffer = vec![0; 64 << 10];
        let Ok((_, fds)) = sys::socket::receive(stream.as_fd(), &mut buffer) else { continue };
        for asked in fds {
            while readable(asked.as_fd(), stopped) {
                let call = match notify::receive(asked.as_fd()) {
                    Ok(Some(call)) => call,
                    Ok(None) => continue,
                    Err(_) => break,
                };
                let answer = match call.native {
                    true => {
                        match write_down(proc.as_fd(), &call, &|| notify::is_valid(asked.as_fd(), call.id)) {
                            Ok(()) => Answer::Done,
                            Err(e) => Answer::Failed(e.raw_os_error()),
                        }
                    }
                    false => Answer::Continue,
                };
                if notify::answer(asked.as_fd(), call.id, answer).is_err() {
                    break;
                }
            }
        }
    }
}

/// What a call is about.
enum About {
    Open(u32),
    Path { folder: i32, address: u64, flags: u32 },
}

fn parse(call: &Call) -> Option<(About, u32, u32)> {
    let [first, second, third, fourth, fifth, _] = call.arguments;
    let nofollow = AtFlags::SYMLINK_NOFOLLOW.bits();
    let cwd = libc_cwd();
    Some(match NUMBERS.iter().find(|(number, _)| *number == call.number)?.1 {
        "chown" => (About::Path { folder: cwd, address: first, flags: 0 }, second as u32, third as u32),
        "lchown" => {
            (About::Path { folder: cwd, address: first, flags: nofollow }, second as u32, third as u32)
        }
        "fchown" => (About::Open(first as u32), second as u32, third as u32),
        _ => (
            About::Path { folder: first as i32, address: second, flags: fifth as u32 },
            third as u32,
            fourth as u32,
        ),
    })
}

/// AT_FDCWD
fn libc_cwd() -> i32 {
    use std::os::fd::AsRawFd;
    rustix::fs::CWD.as_raw_fd()
}

#[cfg(target_arch = "x86_64")]
const NUMBERS: [(i64, &str); 4] = [(92, "chown"), (93, "fchown"), (94, "lchown"), (260, "fchownat")];
#[cfg(target_arch = "aarch64")]
const NUMBERS: [(i64, &str); 2] = [(55, "fchown"), (54, "fchownat")];

fn write_down(proc: BorrowedFd<'_>, call: &Call, valid: &dyn Fn() -> bool) -> Result<(), Errno> {
    let (about, uid, gid) = parse(call).ok_or(Errno::NOSYS)?;
    let of = |rest: &str| format!("{}/{rest}", call.pid);
    let path_only = OFlags::PATH | OFlags::CLOEXEC;
    let file = match about {
        About::Open(fd) => {
            let link = of(&format!("fd/{fd}"));
            let found = rustix::fs::openat(proc, &link, path_only, Mode::empty()).map_err(|_| Errno::BADF)?;
            if !valid() {
                return Err(Errno::SRCH);
            }
            match takes_notes(found.as_fd())? {
                true => rustix::fs::openat(proc, &link, READ, Mode::empty())?,
                false => return Ok(()),
            }
        }
        About::Path { folder, address, flags } => {
            let path = text(proc, call.pid, address)?;
            let base = if folder == libc_cwd() { of("cwd") } else { of(&format!("fd/{folder}")) };
            let flags = AtFlags::from_bits(flags).ok_or(Errno::INVAL)?;
            let root = rustix::fs::openat(proc, of("root"), path_only, Mode::empty())?;
            let base = match path.as_bytes().first() {
                // The folder does not matter then.
                Some(b'/') => None,
                _ => Some(rustix::fs::openat(proc, base, path_only, Mode::empty()).map_err(|_| Errno::BADF)?),
            };
            if !valid() {
                return Err(Errno::SRCH);
            }
            // Links lead where they lead for the process, and not out of its root.
            rustix::process::fchdir(&root)?;
            rustix::process::chroot(".")?;
            let base = base.unwrap_or(root);
            if path.as_bytes().is_empty() {
                if !flags.contains(AtFlags::EMPTY_PATH) {
                    return Err(Errno::NOENT);
                }
                if !takes_notes(base.as_fd())? {
                    return Ok(());
                }
                let link = if folder == libc_cwd() { of("cwd") } else { of(&format!("fd/{folder}")) };
                rustix::fs::openat(proc, link, READ, Mode::empty())?
            } else {
                let more = match flags.contains(AtFlags::SYMLINK_NOFOLLOW) {
                    true => OFlags::NOFOLLOW,
                    false => OFlags::empty(),
                };
                let found = rustix::fs::openat(&base, &*path, path_only | more, Mode::empty())?;
                if !takes_notes(found.as_fd())? {
                    return Ok(());
                }
                rustix::fs::openat(&base, &*path, READ | more, Mode::empty())?
            }
        }
    };
    give(file.as_fd(), uid, gid)
}

const READ: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// xattr(7), "Extended user attributes": regular files and folders have them.
fn takes_notes(of: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mode = rustix::fs::statat(of, "", AtFlags::EMPTY_PATH)?.st_mode;
    Ok(matches!(FileType::from_raw_mode(mode), FileType::RegularFile | FileType::Directory))
}

/// A string of the process.
fn text(proc: BorrowedFd<'_>, pid: i32, address: u64) -> Result<CString, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let memory = File::from(rustix::fs::openat(proc, format!("{pid}/mem"), flags, Mode::empty())?);
    let mut bytes = Vec::new();
    let mut at = address;
    while bytes.len() < PATH_MOST {
        // Not beyond the page: what comes after it need not be there.
        let most = (4096 - (at % 4096) as usize).min(PATH_MOST - bytes.len());
        let mut part = vec![0; most];
        let n = memory.read_at(&mut part, at).map_err(|_| Errno::FAULT)?;
        if n == 0 {
            return Err(Errno::FAULT);
        }
        part.truncate(n);
        if let Some(end) = part.iter().position(|b| *b == 0) {
            bytes.extend(&part[..end]);
            return CString::new(bytes).map_err(|_| Errno::INVAL);
        }
        bytes.extend(part);
        at += n as u64;
    }
    Err(Errno::NAMETOOLONG)
}

/// Write down who a file belongs to; `u32::MAX` leaves it (chown(2)).
fn give(file: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<(), Errno> {
    // This takes from it what a chown takes: set-user-id and the like.
    rustix::fs::fchown(file, Some(rustix::fs::Uid::ROOT), Some(rustix::fs::Gid::ROOT))?;
    let mut buffer = [0; 64];
    let known = match rustix::fs::fgetxattr(file, OWNER, &mut buffer[..]) {
        Ok(n) => std::str::from_utf8(&buffer[..n]).ok().and_then(|text| {
            let (uid, gid) = text.split_once(':')?;
            Some((uid.parse().ok()?, gid.parse().ok()?))
        }),
        Err(_) => None,
    };
    let (old_uid, old_gid): (u32, u32) = known.unwrap_or_default();
    let new = (if uid == u32::MAX { old_uid } else { uid }, if gid == u32::MAX { old_gid } else { gid });
    let written = match new {
        (0, 0) => rustix::fs::fremovexattr(file, OWNER),
        (uid, gid) => note(file, uid, gid),
    };
    match written {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(e),
    }
}

fn note(file: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<(), Errno> {
    rustix::fs::fsetxattr(file, OWNER, format!("{uid}:{gid}").as_bytes(), XattrFlags::empty())
}

/// What a command that was to be another user has made in `upper` is that user's.
pub fn of_user(upper: BorrowedFd<'_>, (uid, gid): (u32, u32)) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(upper, ".", flags, Mode::empty()).context("look at what changed")?;
    folder(root, (uid, gid), 0)
}

fn folder(dir: OwnedFd, owner: (u32, u32), depth: usize) -> Result<()> {
    anyhow::ensure!(depth < 1024, "more than 1024 folders in each other");
    let noting = || "write down whose new files are";
    for name in sys::path::list(dir.as_fd()).with_context(noting)? {
        let name: &OsStr = &name;
        let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).with_context(noting)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory) {
            continue;
        }
        let flags = READ | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&dir, name, flags, Mode::empty())
            .with_context(|| format!("open {}", name.as_bytes().escape_ascii()))?;
        let has = |attribute: &str| match rustix::fs::fgetxattr(&file, attribute, &mut [0_u8; 0][..]) {
            Ok(_) | Err(Errno::RANGE) => Ok(true),
            Err(Errno::NODATA) => Ok(false),
            Err(e) => Err(e),
        };
        if !has(OWNER).with_context(noting)? && !has(ORIGIN).with_context(noting)? {
            note(file.as_fd(), owner.0, owner.1).with_context(noting)?;
        }
        if kind == FileType::Directory {
            folder(file, owner, depth + 1)?;
        }
    }
    Ok(())
}
