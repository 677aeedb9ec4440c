//! How is a program run so that it can neither hang a test nor have its output lost?
//!
//! Output goes to files, not pipes: a container inherits it from `create`, and a pipe would keep a reader waiting.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

/// Nothing here takes a second on an idle machine; a busy one gets its time.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a program said and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    pub what: String,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

/// A started program.
pub struct Running {
    child: Child,
    stdout: File,
    stderr: File,
    what: String,
    began: Instant,
    done: bool,
}

/// Nothing of our environment but `PATH`, and where an instrumented build leaves its counts.
pub fn bare(command: &mut Command) -> &mut Command {
    command.env_clear();
    for name in ["PATH", "LLVM_PROFILE_FILE"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command
}

/// Run `command` to its end.
pub fn finish(command: &mut Command) -> Output {
    start(command).wait()
}

/// Start `command` in a process group of its own, with output to files and, unless set, no input.
pub fn start(command: &mut Command) -> Running {
    start_with_stdin(command, Stdio::null())
}

/// The same with `input` on standard input.
pub fn finish_with_input(command: &mut Command, input: &str) -> Output {
    let mut file = tempfile::tempfile().expect("temporary file");
    file.write_all(input.as_bytes()).expect("write the input");
    file.seek(SeekFrom::Start(0)).expect("rewind the input");
    start_with_stdin(command, Stdio::from(file)).wait()
}

/// Start `command` with a given standard input.
pub fn start_with_stdin(command: &mut Command, stdin: Stdio) -> Running {
    let stdout = tempfile::tempfile().expect("temporary file");
    let stderr = tempfile::tempfile().expect("temporary file");
    command.stdin(stdin);
    command.stdout(stdout.try_clone().expect("dup"));
    command.stderr(stderr.try_clone().expect("dup"));
    command.process_group(0);
    let what = describe(command);
    let child = command.spawn().unwrap_or_else(|e| panic!("start {what}: {e}"));
    // The command keeps its copies of the files open; whoever is to see end-of-file would wait for ever.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Running { child, stdout, stderr, what, began: Instant::now(), done: false }
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal)
            .unwrap_or_else(|e| panic!("{}: send {signal}: {e}", self.what));
    }

    /// The file that standard output goes to.
    pub fn stdout_file(&self) -> File {
        self.stdout.try_clone().expect("dup")
    }

    /// Standard output until now.
    pub fn stdout(&self) -> String {
        text(&self.stdout)
    }

    /// Whether it ends within `patience`.
    pub fn ends_within(&self, patience: Duration) -> bool {
        gone_within(self.pid(), patience)
    }

    /// Wait for the end; one that does not come within [`PATIENCE`] fails the test.
    pub fn wait(self) -> Output {
        self.wait_within(PATIENCE)
    }

    /// The same with another limit.
    pub fn wait_within(mut self, patience: Duration) -> Output {
        if !self.ends_within(patience) {
            let pid = self.pid();
            let wchan = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
            let syscall = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
            panic!(
                "{}: still running after {patience:?} (waits in {wchan}, system call {})\nstdout: {}\nstderr: {}",
                self.what,
                syscall.trim(),
                text(&self.stdout),
                text(&self.stderr)
            );
        }
        let status = self.child.wait().expect("wait");
        self.done = true;
        Output {
            what: self.what.clone(),
            code: status.code(),
            signal: status.signal(),
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
            took: self.began.elapsed(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.done {
            self.child.kill().unwrap_or_default();
            self.child.wait().map(drop).unwrap_or_default();
        }
    }
}

pub(crate) fn text(file: &File) -> String {
    // Through /proc, for an offset of our own: the program's writes go where the shared offset stands.
    use std::os::fd::AsRawFd;
    let mut bytes = Vec::new();
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .and_then(|mut f| f.read_to_end(&mut bytes))
        .expect("read the output");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A descriptor for a process, if it is still there.
pub fn pidfd(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// Wait until `pid` has ended (a zombie has).
pub fn gone_within(pid: i32, patience: Duration) -> bool {
    match pidfd(pid) {
        Some(fd) => readable_within(&fd, patience),
        None => true,
    }
}

/// Wait until `fd` can be read.
pub fn readable_within(fd: &impl AsFd, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let time = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&time)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("poll: {e}"),
        }
    }
}

/// SIGKILL for `pid`, if it is there.
pub fn kill(pid: i32) {
    if let Some(fd) = pidfd(pid) {
        rustix::process::pidfd_send_signal(fd, Signal::KILL).unwrap_or_default();
    }
}

impl Output {
    fn show(&self) -> String {
        format!(
            "{}\nexit code {:?}, signal {:?}, after {:?}\nstdout: {}\nstderr: {}",
            self.what, self.code, self.signal, self.took, self.stdout, self.stderr
        )
    }

    #[track_caller]
    pub fn success(self) -> Output {
        assert!(self.code == Some(0), "expected success: {}", self.show());
        self
    }

    #[track_caller]
    pub fn exits(self, code: i32) -> Output {
        assert!(self.code == Some(code), "expected exit code {code}: {}", self.show());
        self
    }

    #[track_caller]
    pub fn stdout_is(self, text: &str) -> Output {
        assert!(self.stdout == text, "expected stdout {text:?}: {}", self.show());
        self
    }

    #[track_caller]
    pub fn stdout_has(self, text: &str) -> Output {
        assert!(self.stdout.contains(text), "expected {text:?} on stdout: {}", self.show());
        self
    }

    #[track_caller]
    pub fn stderr_has(self, text: &str) -> Output {
        assert!(self.stderr.contains(text), "expected {text:?} on stderr: {}", self.show());
        self
    }

    #[track_caller]
    pub fn stderr_is(self, text: &str) -> Output {
        assert!(self.stderr == text, "expected stderr {text:?}: {}", self.show());
        self
    }

    /// It ended by itself with a code other than 0, and said why in exactly one line (and at most one hint).
    #[track_caller]
    pub fn fails_in_one_line(self) -> Output {
        assert!(self.code.is_some_and(|c| c != 0), "expected a failure: {}", self.show());
        let lines = self.error_lines();
        assert!(lines.len() == 1, "expected one line of error: {}", self.show());
        assert!(!self.stderr.contains("panicked"), "panicked: {}", self.show());
        self
    }

    /// Standard error without hints, and without warnings, which an error may follow.
    pub fn error_lines(&self) -> Vec<&str> {
        self.stderr.lines().filter(|l| !l.starts_with("hint: ") && !l.contains("level=warning")).collect()
    }

    /// It failed with `code` and, of our runtime, exactly this message; of others only the code is checked.
    #[track_caller]
    pub fn fails(self, code: i32, message: &str) -> Output {
        if !crate::runtime::is_ours() {
            assert!(self.code.is_some_and(|c| c != 0), "expected a failure: {}", self.show());
            return self;
        }
        let line = format!("berth-runtime: {message}");
        let said = self.stderr.trim_end_matches('\n');
        assert!(
            self.code == Some(code) && said == line,
            "expected exit code {code} and exactly\n{line}\nbut: {}",
            self.show()
        );
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.show()))
    }
}
