//! Processes: clone3, pidfds, waiting, and the attributes that a process sets on itself.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::check;

/// Namespace flags of clone(2), unshare(2) and setns(2), as `clone_args.flags` takes them.
pub mod flags {
    pub const NEWTIME: u64 = 0x80;
    pub const NEWNS: u64 = 0x2_0000;
    pub const NEWCGROUP: u64 = 0x200_0000;
    pub const NEWUTS: u64 = 0x400_0000;
    pub const NEWIPC: u64 = 0x800_0000;
    pub const NEWUSER: u64 = 0x1000_0000;
    pub const NEWPID: u64 = 0x2000_0000;
    pub const NEWNET: u64 = 0x4000_0000;
    pub const INTO_CGROUP: u64 = 0x2_0000_0000;
    /// The child's parent is the caller's parent.
    pub const PARENT: u64 = 0x8000;
}

/// Which side of a clone the caller is on.
#[derive(Debug)]
pub enum Cloned {
    Child,
    /// The child's id in the caller's pid namespace, and a descriptor of the child itself.
    Parent {
        pid: i32,
        pidfd: OwnedFd,
    },
}

/// clone3(2) without shared memory: a fork into new namespaces and, with `cgroup`, straight into a v2 cgroup
/// (`CLONE_INTO_CGROUP`, Linux 5.7).
///
/// The caller has one thread (checked by the programs that call it: they never start another), so the child
/// may go on with ordinary code. What it frees is not used again: see `alloc`.
pub fn clone3(clone_flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all-zero is a valid clone_args (every field is an integer; 0 means "not given").
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = clone_flags | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    // With CLONE_PARENT the exit signal is the caller's own and must not be given.
    args.exit_signal = if clone_flags & flags::PARENT == 0 { libc::SIGCHLD as u64 } else { 0 };
    if let Some(fd) = cgroup {
        args.flags |= flags::INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: no stack and no shared memory are asked for, so this is a fork; `args` and `pidfd` outlive the call.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        crate::alloc::give_nothing_back();
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel just stored a fresh descriptor there.
    Ok(Cloned::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// pidfd_open(2).
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

/// pidfd_send_signal(2); `signal` 0 only checks. Raw numbers reach real-time signals too.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: integers and a null pointer: the kernel fills in the siginfo.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })?;
    Ok(())
}

/// pidfd_getfd(2): a duplicate of descriptor `fd` of the process.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })?;
    // SAFETY: the kernel just gave us this descriptor and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// setns(2) with a pidfd: several namespaces of one process at once (Linux 5.8); or with a namespace file.
pub fn setns(fd: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    // SAFETY: integers only; the caller has one thread.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), flags as libc::c_int) })?;
    Ok(())
}

/// unshare(2).
pub fn unshare(flags: u64) -> io::Result<()> {
    // SAFETY: an integer only; the caller has one thread.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags) })?;
    Ok(())
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    /// The shell's number: the code, or 128 + signal.
    pub fn status(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        }
    }
}

/// Wait for a child until it ends.
pub fn wait(pid: i32) -> io::Result<Exit> {
    loop {
        if let Some(exit) = waitpid(pid, 0)? {
            return Ok(exit);
        }
    }
}

/// Wait for a process that may not be our child (any more): then there is nothing to wait for.
pub fn wait_if_child(pid: i32) {
    if let Ok(Exit::Code(_) | Exit::Signal(_)) = wait(pid) {}
}

/// Kill a child and wait for it. What is not our child (any more) is left alone: its number may be somebody else's.
pub fn end_child(pid: i32) {
    // SAFETY: an all-zero siginfo is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let id = libc::id_t::try_from(pid).unwrap_or_default();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` outlives the call, which only looks.
    if pid <= 0 || unsafe { libc::waitid(libc::P_PID, id, &raw mut info, options) } != 0 {
        return;
    }
    // SAFETY: integers only. Until we have waited for it, the number stays our child's.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    wait_if_child(pid);
}

/// Whether a child has ended.
pub fn try_wait(pid: i32) -> io::Result<Option<Exit>> {
    waitpid(pid, libc::WNOHANG)
}

/// Whether the number is a child's of ours, ended or not, that was not waited for yet.
pub fn is_child(pid: i32) -> bool {
    // SAFETY: all-zero is a valid siginfo_t, and it outlives the call.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: as above; the call only looks.
    pid > 0 && unsafe { libc::waitid(libc::P_PID, pid.cast_unsigned(), &raw mut info, options) } == 0
}

/// A child that has ended, if there is one: its number, from now on anybody's, and how it ended.
pub fn reap() -> io::Result<Option<(i32, Exit)>> {
    wait_any(0)
}

/// The same, but it stays a zombie: with its number its own, and the end to be had again.
pub fn peek() -> io::Result<Option<(i32, Exit)>> {
    wait_any(libc::WNOWAIT)
}

fn wait_any(options: i32) -> io::Result<Option<(i32, Exit)>> {
    // SAFETY: all-zero is a valid siginfo_t, and it outlives the call.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOHANG | options) } == -1 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ECHILD | libc::EINTR) => Ok(None),
            _ => Err(error),
        };
    }
    // SAFETY: the kernel filled in the fields of SIGCHLD (or left zeros: nobody has ended).
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let exit = if info.si_code == libc::CLD_EXITED { Exit::Code(status) } else { Exit::Signal(status) };
    Ok((pid != 0).then_some((pid, exit)))
}

fn waitpid(pid: i32, options: i32) -> io::Result<Option<Exit>> {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let got = unsafe { libc::waitpid(pid, &raw mut status, options) };
        match got {
            0 => return Ok(None),
            -1 => {
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(libc::EINTR) {
                    return Err(error);
                }
            }
            _ if libc::WIFEXITED(status) => return Ok(Some(Exit::Code(libc::WEXITSTATUS(status)))),
            _ if libc::WIFSIGNALED(status) => return Ok(Some(Exit::Signal(libc::WTERMSIG(status)))),
            _ => {}
        }
    }
}

/// Wait until the process behind a pidfd has ended, whoever its parent is.
pub fn wait_pidfd(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None))?;
    Ok(())
}

/// `prctl` with integer arguments.
fn prctl(option: i32, arg: u64) -> io::Result<()> {
    // SAFETY: the options used here take integers.
    check(unsafe { libc::syscall(libc::SYS_prctl, option, arg, 0, 0, 0) })?;
    Ok(())
}

/// Be killed when the parent ends (`PR_SET_PDEATHSIG`); 0 takes it back.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as u64)
}

/// `PR_SET_DUMPABLE` 0: others may not look into this process through /proc or ptrace.
pub fn set_not_dumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0)
}

/// `PR_SET_DUMPABLE` 1: /proc/self belongs to our own user again.
pub fn set_dumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 1)
}

/// `PR_SET_CHILD_SUBREAPER`.
pub fn set_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
}

/// Mark every descriptor from `first` on close-on-exec (close_range(2), Linux 5.11).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: integers only; no descriptor is closed now, so no owner loses one.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// setsid(2).
pub fn setsid() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Replace this process, found by path; returns only with an error.
pub fn execve(path: &CStr, args: &[&CStr], env: &[&CStr]) -> io::Error {
    let list = |strings: &[&CStr]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (list(args), list(env));
    // SAFETY: both arrays end with a null pointer and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// End at once: no destructors, no flushing. For children of a clone that did not become another program.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code) }
}

/// Signals as every program expects them: none blocked, none ignored.
pub fn reset_signals() -> io::Result<()> {
    use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
    // Whoever started us may have ignored any of them, which execve(2) would pass on.
    for number in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default disposition runs no code of ours.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// getpid(2), without the C library's memory of it.
pub fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Call ourselves `name` in proc(5) stat and ps(1) until the next execve(2); cut to 15 bytes.
pub fn set_name(name: &CStr) -> io::Result<()> {
    prctl(libc::PR_SET_NAME, name.as_ptr() as u64)
}

/// geteuid(2).
pub fn euid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// getegid(2).
pub fn egid() -> u32 {
    rustix::process::getegid().as_raw()
}

/// What tells a process from all that have had its id before, or will have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Birth {
    /// When it started, in clock ticks after boot.
    Started(u64),
    /// The inode of its pidfds: each process has its own until the next boot (pidfs, Linux 6.9). Four times as fast to look at.
    Inode(u64),
}

impl Birth {
    /// That of a living process.
    ///
    /// # Errors
    /// As fstat(2); proc(5) stat cannot be read.
    pub fn of(pid: i32, pidfd: BorrowedFd<'_>) -> io::Result<Birth> {
        // PID_FS_MAGIC. Before pidfs all pidfds have one inode.
        if rustix::fs::fstatfs(pidfd)?.f_type == 0x5049_4446 {
            return Ok(Birth::Inode(rustix::fs::fstat(pidfd)?.st_ino));
        }
        Ok(Birth::Started(start_time(pid)?.map_or(0, |(ticks, _)| ticks)))
    }

    /// The process, if it lives.
    ///
    /// # Errors
    /// As pidfd_open(2), unless there is no such process; proc(5) stat cannot be read.
    pub fn open(self, pid: i32) -> io::Result<Option<OwnedFd>> {
        let pidfd = match pidfd_open(pid) {
            Ok(pidfd) => pidfd,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(e) => {
                // Whatever the kernel is short of: who is gone needs none.
                let seen = see(pid)?.filter(|seen| !seen.zombie);
                let may_be = |seen: Seen| !matches!(self, Birth::Started(ticks) if ticks != seen.start_time);
                return if seen.is_some_and(may_be) { Err(e) } else { Ok(None) };
            }
        };
        let same = match self {
            Birth::Inode(inode) => rustix::fs::fstat(&pidfd)?.st_ino == inode && !has_ended(pidfd.as_fd())?,
            Birth::Started(ticks) => see(pid)?.is_some_and(|seen| !seen.zombie && seen.start_time == ticks),
        };
        Ok(same.then_some(pidfd))
    }
}

/// Whether all threads of the process have ended.
fn has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&now)))? > 0)
}

/// What proc(5) stat tells of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When it started, in clock ticks after boot (field 22). Together with the id that names one process for ever.
    pub start_time: u64,
    pub zombie: bool,
    /// Its name, at most 15 bytes: of its program, or what it calls itself.
    pub name: String,
}

/// [`Seen::start_time`], and whether it is a zombie. `None`: no such process.
pub fn start_time(pid: i32) -> io::Result<Option<(u64, bool)>> {
    Ok(see(pid)?.map(|seen| (seen.start_time, seen.zombie)))
}

/// Look at a process. `None`: no such process.
pub fn see(pid: i32) -> io::Result<Option<Seen>> {
    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;
    let file = match rustix::fs::open(
        format!("/proc/{pid}/stat"),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::SRCH) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    // The kernel writes it at once; the fields that we read come long before the end of this buffer.
    let mut bytes = [0; 1024];
    let bytes = match rustix::io::read(&file, &mut bytes) {
        Ok(n) => &bytes[..n],
        Err(Errno::SRCH) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let text = String::from_utf8_lossy(bytes);
    // The command's name stands in parentheses and may hold anything, also parentheses.
    let end = text.rfind(')').unwrap_or(0);
    let name = text.find('(').and_then(|begin| text.get(begin + 1..end)).unwrap_or_default();
    let mut fields = text.get(end + 2..).unwrap_or_default().split(' ');
    let state = fields.next().unwrap_or_default();
    let ticks = fields.nth(18).and_then(|t| t.parse().ok());
    let ticks = ticks.ok_or_else(|| io::Error::other(format!("unexpected content of /proc/{pid}/stat")))?;
    Ok(Some(Seen { start_time: ticks, zombie: matches!(state, "Z" | "X" | "x"), name: name.to_owned() }))
}

/// How a zombie ended that is somebody else's: the last field of proc(5) stat, which only who may trace it can read. The process is
/// named by its start, in ticks. `None`: it is no zombie, or another process.
pub fn exit_of_zombie(pid: i32, ticks: u64) -> Option<Exit> {
    match start_time(pid) {
        Ok(Some((started, true))) if started == ticks => {}
        _ => return None,
    }
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let status = text.trim_end().rsplit(' ').next()?.parse::<i32>().ok()?;
    Some(from_wait(status))
}

/// From what wait(2) gives.
fn from_wait(status: i32) -> Exit {
    if libc::WIFEXITED(status) {
        Exit::Code(libc::WEXITSTATUS(status))
    } else {
        Exit::Signal(libc::WTERMSIG(status))
    }
}

/// Kill the command's process when the thread that spawned it ends.
pub fn die_with_parent(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let parent = std::process::id().cast_signed();
    let follow = move || {
        set_parent_death_signal(libc::SIGKILL)?;
        // SAFETY: always succeeds. 0: the parent is of another pid namespace.
        match unsafe { libc::getppid() } {
            now if now == parent || now == 0 => Ok(()),
            // It ended before we asked to be told.
            _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    };
    // SAFETY: prctl(2) and getppid(2) are async-signal-safe and touch nothing of ours.
    unsafe { command.pre_exec(follow) };
}

/// Run the command in a session of its own, in a process that nobody waits for: the one that `spawn` gives ends at once.
pub fn in_new_session(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let leave = || {
        setsid()?;
        // SAFETY: the child of a fork has one thread, and only _exit(2) and execve(2) follow.
        match check(libc::c_long::from(unsafe { libc::fork() }))? {
            0 => Ok(()),
            // SAFETY: never returns; nothing of the parent's is flushed.
            _ => unsafe { libc::_exit(0) },
        }
    };
    // SAFETY: setsid(2), fork(2) and _exit(2) are async-signal-safe.
    unsafe { command.pre_exec(leave) };
}

/// A descriptor that was left open for us under a number; `None`: there is none.
pub fn inherited(fd: i32) -> Option<OwnedFd> {
    // SAFETY: asks for a flag by number; touches no memory.
    if fd <= 2 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return None;
    }
    // SAFETY: it is open, and whoever started us has left it to us; callers take each number once.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How a process that is not a child ended, or one that was waited for already: `PIDFD_GET_INFO` with `PIDFD_INFO_EXIT` (Linux 6.15),
/// by a pidfd that was opened before. `None`: this kernel cannot tell, or it has not ended.
pub fn exit_of(pidfd: BorrowedFd<'_>) -> Option<Exit> {
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    // _IOWR(0xff, 11, struct pidfd_info) with the first published size, 64 bytes.
    const PIDFD_GET_INFO: libc::c_ulong = 0xc040_ff0b;
    /// `struct pidfd_info` (include/uapi/linux/pidfd.h).
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    let mut info = Info { mask: PIDFD_INFO_EXIT, ..Info::default() };
    // SAFETY: `info` outlives the call and has the size that the number says.
    if unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) } == -1
        || info.mask & PIDFD_INFO_EXIT == 0
    {
        return None;
    }
    Some(from_wait(info.exit_code))
}

/// Give the command descriptors of ours under the numbers that it expects, each instead of what was there.
pub fn pass(command: &mut std::process::Command, fds: Vec<(OwnedFd, i32)>) {
    use std::os::unix::process::CommandExt;
    let give = move || {
        // First out of the way of all the numbers that are to be set.
        let above = fds.iter().map(|(_, to)| *to).max().unwrap_or(0) + 1;
        for (fd, to) in &fds {
            // SAFETY: integers only, async-signal-safe; the child ends or becomes the command soon after.
            let moved = check(libc::c_long::from(unsafe {
                libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above)
            }))?;
            // SAFETY: as above; what had that number in the child is replaced.
            check(libc::c_long::from(unsafe { libc::dup2(moved as i32, *to) }))?;
        }
        Ok(())
    };
    // SAFETY: only fcntl(2) and dup2(2), on what was prepared before.
    unsafe { command.pre_exec(give) };
}

/// sethostname(2).
pub fn set_hostname(name: &str) -> io::Result<()> {
    Ok(nix::unistd::sethostname(name)?)
}

/// setdomainname(2).
pub fn set_domainname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length of a live string.
    check(unsafe { libc::syscall(libc::SYS_setdomainname, name.as_ptr(), name.len()) })?;
    Ok(())
}

/// fork(2), for where clone3(2) is not allowed, as in Docker's containers. `None`: in the child. The caller has one thread.
pub fn fork() -> io::Result<Option<i32>> {
    // SAFETY: with one thread, nothing that others hold is missing in the child.
    let pid = check(libc::c_long::from(unsafe { libc::fork() }))? as i32;
    Ok((pid != 0).then_some(pid))
}

/// kill(2): a process, or with a negative number a process group. For children that were not waited for yet, whose number nobody
/// else can have.
pub fn signal(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: integers only.
    check(libc::c_long::from(unsafe { libc::kill(pid, signal) }))?;
    Ok(())
}

/// Wait for every child that has ended, but not for `pid`.
pub fn reap_all_but(pid: i32) -> io::Result<()> {
    reap_each_but(pid, |_| ())
}

/// The same; `reaped` hears of each.
pub fn reap_each_but(pid: i32, mut reaped: impl FnMut(i32)) -> io::Result<()> {
    loop {
        // SAFETY: all-zero is a valid siginfo_t, and it outlives the call.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: as above.
        if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, options) } == -1 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ECHILD) { Ok(()) } else { Err(error) };
        }
        // SAFETY: the kernel filled in the fields of SIGCHLD (or left zeros: nobody has ended).
        let ended = unsafe { info.si_pid() };
        if ended == 0 || ended == pid {
            return Ok(());
        }
        try_wait(ended)?;
        reaped(ended);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_child_is_ended_and_a_stranger_is_not() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().cast_signed();
        end_child(pid);
        assert_eq!(try_wait(pid).unwrap_err().raw_os_error(), Some(libc::ECHILD));
        child.wait().unwrap_err();

        // A grandchild: same user, but not ours.
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 1000 & echo $!; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(shell.stdout.take().unwrap()), &mut line)
            .unwrap();
        let grandchild: i32 = line.trim().parse().unwrap();
        end_child(grandchild);
        assert!(matches!(start_time(grandchild), Ok(Some((_, false)))));
        let pidfd = pidfd_open(grandchild).unwrap();
        pidfd_signal(pidfd.as_fd(), 9).unwrap();
        shell.wait().unwrap();
    }
}
