//! How is a process killed at exactly its n-th system call? Every process of a command is traced; at the entry of the
//! chosen call the blow falls: SIGKILL, so that the call itself is not done; or the call is not done and fails; or it has
//! to wait until all others have gone as far as they can.
//!
//! ```text
//! gate (us, waiting on a pipe) ── seized ── let go ── execve(runtime) ── points are counted from here
//!   └─ its children are seized by the kernel as they are born: process 1, 2, … in order of birth
//! ```
//! A process that executes the container's program is let go: it is no longer the runtime's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{self, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

/// First argument of this program as the process that becomes the runtime.
pub const GATE: &str = "--gate";
/// A command that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Who has not moved for so long waits for somebody.
pub const STILL: Duration = Duration::from_millis(30);
/// `PTRACE_EVENT_STOP`, which libc does not export for every target.
const EVENT_STOP: i32 = 128;
/// `PTRACE_SYSCALL_INFO_ENTRY`.
const ENTRY: u8 = 1;

/// A system call of a process, counted from its start.
#[derive(Clone, Debug)]
pub struct Point {
    /// 0 is the runtime's first process, then in order of birth.
    pub process: usize,
    pub nth: u32,
    pub syscall: u64,
    /// How many processes of the runtime were alive.
    pub alive: usize,
}

/// What happens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// SIGKILL for the process.
    KillOne,
    /// SIGKILL for all processes of the runtime.
    KillAll,
    /// The call is not done and returns this error.
    Fail(Errno),
    /// The call is done when nobody else has moved for a while.
    Delay,
}

impl Blow {
    pub fn describe(self) -> String {
        match self {
            Blow::KillOne => "that process killed".to_owned(),
            Blow::KillAll => "all killed".to_owned(),
            Blow::Fail(errno) => format!("{errno:?}"),
            Blow::Delay => "delayed".to_owned(),
        }
    }
}

impl Point {
    pub fn describe(&self) -> String {
        format!("process {} at call {}", self.process, self.nth)
    }
}

/// What a traced command did.
#[derive(Debug, Default)]
pub struct Trace {
    pub points: Vec<Point>,
    pub hung: bool,
    /// The system call that was really hit: runs of one command differ by a call now and then.
    pub hit: Option<u64>,
    /// Exit code of the main process, if it exited.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Orphans of killed commands become our children, so that we can reap them.
pub fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("become subreaper")
}

/// Be the process that becomes the runtime: wait until we are traced, then execute `words`.
pub fn pass_the_gate(words: &[String]) -> ExitCode {
    let mut byte = [0];
    if std::io::stdin().read_exact(&mut byte).is_err() {
        return ExitCode::FAILURE;
    }
    let error = Command::new(&words[0]).args(&words[1..]).stdin(Stdio::null()).exec();
    eprintln!("crash-points: execute {}: {error}", words[0]);
    ExitCode::FAILURE
}

/// Run `command` traced (and `others`, which exist already), with `blow` at its point.
pub fn trace(command: &Command, others: &[i32], blow: Option<(&Point, Blow)>) -> Result<Trace> {
    let mut gate = Command::new(std::env::current_exe().context("current_exe")?);
    gate.arg(GATE).arg(command.get_program()).args(command.get_args());
    gate.env_clear().envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    gate.stdin(Stdio::piped()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let mut child = gate.spawn().context("start the gate")?;
    let main = Pid::from_raw(child.id().cast_signed());
    let mut tracer = Tracer::new(main, blow);
    tracer.seize(main)?;
    for &pid in others {
        tracer.seize(Pid::from_raw(pid))?;
    }
    child.stdin.take().context("pipe to the gate")?.write_all(b"!").context("open the gate")?;
    let watchdog = Watchdog::start(Arc::clone(&tracer.live));
    tracer.run()?;
    tracer.let_go_of_all();
    let hung = watchdog.stop();
    reap();
    Ok(Trace {
        points: tracer.points,
        hung,
        hit: tracer.hit,
        code: tracer.code,
        stdout: text(&mut stdout)?,
        stderr: text(&mut stderr)?,
    })
}

fn text(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Collect the dead.
pub fn reap() {
    while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)),
                   Ok(status) if status != WaitStatus::StillAlive)
    {}
}

/// The same, but not `pid`.
pub fn reap_others(pid: i32) {
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Some(dead) = waitid(Id::All, peek).ok().and_then(|status| status.pid()) {
        if dead.as_raw() == pid || waitpid(dead, Some(WaitPidFlag::WNOHANG)).is_err() {
            return;
        }
    }
}

struct Tracer<'a> {
    main: Pid,
    blow: Option<(&'a Point, Blow)>,
    /// Thread → process.
    threads: BTreeMap<Pid, Pid>,
    /// Process → (order of birth, system calls so far).
    processes: BTreeMap<Pid, (usize, u32)>,
    born: usize,
    /// Whether the main process has passed the gate.
    begun: bool,
    points: Vec<Point>,
    /// The thread whose call is to fail, and how, from its entry to its exit.
    failing: Option<(Pid, Errno)>,
    /// The thread that is held back.
    held: Option<Pid>,
    hit: Option<u64>,
    code: Option<i32>,
    live: Arc<Mutex<BTreeSet<i32>>>,
}

impl<'a> Tracer<'a> {
    fn new(main: Pid, blow: Option<(&'a Point, Blow)>) -> Self {
        Tracer {
            main,
            blow,
            threads: BTreeMap::new(),
            processes: BTreeMap::new(),
            born: 0,
            begun: false,
            points: Vec::new(),
            failing: None,
            held: None,
            hit: None,
            code: None,
            live: Arc::default(),
        }
    }

    fn seize(&mut self, pid: Pid) -> Result<()> {
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC;
        ptrace::seize(pid, options).with_context(|| format!("trace process {pid}"))?;
        ptrace::interrupt(pid).with_context(|| format!("stop process {pid}"))?;
        self.meet(pid);
        Ok(())
    }

    /// A thread that we have not seen before.
    fn meet(&mut self, thread: Pid) {
        if self.threads.contains_key(&thread) {
            return;
        }
        let process = thread_group(thread).unwrap_or(thread);
        self.threads.insert(thread, process);
        if !self.processes.contains_key(&process) {
            self.processes.insert(process, (self.born, 0));
            self.born += 1;
            self.live.lock().expect("not poisoned").insert(process.as_raw());
        }
    }

    fn forget(&mut self, thread: Pid) {
        if self.held == Some(thread) {
            self.held = None;
        }
        let Some(process) = self.threads.remove(&thread) else { return };
        if !self.threads.values().any(|&p| p == process) {
            self.processes.remove(&process);
            self.live.lock().expect("not poisoned").remove(&process.as_raw());
        }
    }

    /// Until the main process has ended.
    fn run(&mut self) -> Result<()> {
        while self.processes.contains_key(&self.main) {
            match self.next_word() {
                Ok(WaitStatus::Exited(pid, code)) => {
                    if pid == self.main {
                        self.code = Some(code);
                    }
                    self.forget(pid);
                }
                Ok(WaitStatus::Signaled(pid, _, _)) => self.forget(pid),
                Ok(WaitStatus::PtraceSyscall(pid)) => {
                    self.meet(pid);
                    if ptrace::syscall_info(pid).is_ok_and(|info| info.op == ENTRY) {
                        self.at_entry(pid);
                    } else if self.failing.is_some_and(|(thread, _)| thread == pid) {
                        self.at_failing_exit(pid);
                    }
                    if self.held != Some(pid) {
                        resume(pid, None);
                    }
                }
                Ok(WaitStatus::PtraceEvent(pid, _, event)) => {
                    self.meet(pid);
                    self.at_event(pid, event);
                }
                Ok(WaitStatus::Stopped(pid, signal)) => {
                    self.meet(pid);
                    resume(pid, Some(signal));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => break,
                Err(e) => bail!("wait for the traced processes: {e}"),
            }
        }
        Ok(())
    }

    /// What happens next. While one is held back it may be nothing for a while: then that one goes on.
    fn next_word(&mut self) -> nix::Result<WaitStatus> {
        let mut since = Instant::now();
        while let Some(thread) = self.held {
            match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) if since.elapsed() < STILL => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(WaitStatus::StillAlive) => {
                    self.held = None;
                    resume(thread, None);
                }
                Err(Errno::EINTR) => since = Instant::now(),
                word => return word,
            }
        }
        waitpid(None, Some(WaitPidFlag::__WALL))
    }

    fn at_entry(&mut self, thread: Pid) {
        let Some(&process) = self.threads.get(&thread) else { return };
        if !self.begun {
            return;
        }
        let alive = self.processes.len();
        let Some((order, count)) = self.processes.get_mut(&process) else { return };
        *count += 1;
        let (order, nth) = (*order, *count);
        let Some((point, blow)) = self.blow else {
            let syscall = ptrace::getregs(thread).map_or(u64::MAX, |r| r.orig_rax);
            self.points.push(Point { process: order, nth, syscall, alive });
            return;
        };
        if (point.process, point.nth) != (order, nth) {
            return;
        }
        self.hit = ptrace::getregs(thread).ok().map(|r| r.orig_rax);
        match blow {
            // ESRCH: one that has just ended needs no killing.
            Blow::KillOne => signal::kill(process, Signal::SIGKILL).unwrap_or_default(),
            Blow::KillAll => {
                for &pid in self.processes.keys() {
                    signal::kill(pid, Signal::SIGKILL).unwrap_or_default();
                }
            }
            Blow::Delay => self.held = Some(thread),
            Blow::Fail(_) if self.hit.is_some_and(cannot_fail) => {}
            Blow::Fail(errno) => {
                // No such system call: the kernel does nothing, and the answer is put in at the exit.
                if let Ok(mut registers) = ptrace::getregs(thread) {
                    registers.orig_rax = u64::MAX;
                    if ptrace::setregs(thread, registers).is_ok() {
                        self.failing = Some((thread, errno));
                    }
                }
            }
        }
    }

    fn at_failing_exit(&mut self, thread: Pid) {
        let Some((_, errno)) = self.failing.take() else { return };
        if let Ok(mut registers) = ptrace::getregs(thread) {
            registers.rax = i64::from(-(errno as i32)).cast_unsigned();
            ptrace::setregs(thread, registers).unwrap_or_default();
        }
    }

    fn at_event(&mut self, pid: Pid, event: i32) {
        if event == ptrace::Event::PTRACE_EVENT_EXEC as i32 {
            // The gate itself may still be on its way into its own program.
            if pid == self.main && !is_gate(pid) {
                self.begun = true;
            }
            // The other threads are gone without a word.
            let process = self.threads.get(&pid).copied().unwrap_or(pid);
            self.threads.retain(|&t, &mut p| p != process || t == pid);
            if is_container_program(pid) {
                self.forget(pid);
                ptrace::detach(pid, None).unwrap_or_default();
                return;
            }
        }
        self.meet_child(pid, event);
        if event == EVENT_STOP {
            // Also a group stop, in which a process would rest; the runtimes here do not use them.
            resume(pid, None);
            return;
        }
        resume(pid, None);
    }

    /// The child is ours from now on, though its own first stop may be reported later: what kills or lets go of all must
    /// not miss it. Nor must it wait for one that is no longer ours: a child runs before its parent stands at this event,
    /// and can have ended by then.
    fn meet_child(&mut self, parent: Pid, event: i32) {
        let made_one = event == ptrace::Event::PTRACE_EVENT_CLONE as i32
            || event == ptrace::Event::PTRACE_EVENT_FORK as i32
            || event == ptrace::Event::PTRACE_EVENT_VFORK as i32;
        if made_one
            && let Some(child) = ptrace::getevent(parent).ok().and_then(|n| i32::try_from(n).ok())
            && is_traced(child)
        {
            self.meet(Pid::from_raw(child));
        }
    }

    /// Whoever is left runs on alone.
    fn let_go_of_all(&mut self) {
        // It stands already, and an interruption would not be told.
        if let Some(thread) = self.held.take() {
            resume(thread, None);
        }
        for &thread in self.threads.keys() {
            // ESRCH: it is dead, and will be reported so.
            ptrace::interrupt(thread).unwrap_or_default();
        }
        // In whatever order they come: a process is reported dead only after its threads were collected.
        while !self.threads.is_empty() {
            let (pid, signal) = match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => {
                    self.forget(pid);
                    continue;
                }
                Ok(WaitStatus::Stopped(pid, signal)) => (pid, Some(signal)),
                Ok(WaitStatus::PtraceEvent(pid, _, event)) => {
                    self.meet_child(pid, event);
                    (pid, None)
                }
                Ok(WaitStatus::PtraceSyscall(pid)) => (pid, None),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            ptrace::detach(pid, signal).unwrap_or_default();
            self.forget(pid);
        }
    }
}

/// ESRCH: it has been killed in the meantime, and its end will be reported.
fn resume(pid: Pid, signal: Option<Signal>) {
    ptrace::syscall(pid, signal).unwrap_or_default();
}

fn thread_group(thread: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("Tgid:"))?;
    line.trim().parse().ok().map(Pid::from_raw)
}

/// One whose end was reported is not, even while its parent has not collected it.
fn is_traced(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let tracer = status.lines().find_map(|l| l.strip_prefix("TracerPid:"));
    tracer.is_some_and(|pid| pid.trim() != "0")
}

fn is_gate(pid: Pid) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).ok() == std::env::current_exe().ok()
}

fn is_container_program(pid: Pid) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|p| p.ends_with("busybox"))
}

/// Kills everything that is traced when it takes too long, so that waiting ends.
struct Watchdog {
    stop: mpsc::Sender<()>,
    bitten: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Watchdog {
    fn start(live: Arc<Mutex<BTreeSet<i32>>>) -> Watchdog {
        let (stop, stopped) = mpsc::channel();
        let bitten = Arc::new(AtomicBool::new(false));
        let bite = Arc::clone(&bitten);
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                bite.store(true, Ordering::SeqCst);
                for &pid in live.lock().expect("not poisoned").iter() {
                    let waits = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
                    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
                    eprintln!("crash-points: process {pid} hangs in {waits}, system call {}", call.trim());
                    signal::kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_default();
                }
            }
        });
        Watchdog { stop, bitten, thread }
    }

    fn stop(self) -> bool {
        drop(self.stop);
        self.thread.join().expect("the watchdog does not panic");
        self.bitten.load(Ordering::SeqCst)
    }
}

/// getpid, getppid, getuid, getgid, geteuid, getegid, gettid, umask, sched_yield, rt_sigaction, rt_sigprocmask, getrandom,
/// sigaltstack, uname: the kernel promises an answer. futex: Rust's standard library relies on one. close: whatever it reports, the descriptor is gone (close(2)), while a
/// call that is left out would keep it open.
fn cannot_fail(syscall: u64) -> bool {
    [39, 110, 102, 104, 107, 108, 186, 95, 24, 13, 14, 318, 131, 63, 202, 3].contains(&syscall)
}

/// The kernel headers know the names, where they are installed.
pub fn syscall_name(number: u64) -> String {
    let header = fs::read_to_string("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").unwrap_or_default();
    header
        .lines()
        .filter_map(|l| l.strip_prefix("#define __NR_")?.split_once(' '))
        .find(|(_, n)| n.trim().parse() == Ok(number))
        .map_or_else(|| format!("system call {number}"), |(name, _)| name.to_owned())
}
