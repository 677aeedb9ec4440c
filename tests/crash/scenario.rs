//! What does each verb start from, and what may be left after it was killed, or after one of its calls failed?

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::{Bed, Bundle, Fifo, finish, json, start};

use crate::Trial;
use crate::tracer::{self, Blow, Point, Trace};

/// The commands that are killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Create,
    /// Into a pid namespace that exists, which takes a process more (the stage).
    CreateJoining,
    Start,
    Run,
    RunDetached,
    Exec,
    Kill,
    Delete,
    DeleteForce,
}

impl Verb {
    pub const ALL: [Verb; 9] = [
        Verb::Create,
        Verb::CreateJoining,
        Verb::Start,
        Verb::Run,
        Verb::RunDetached,
        Verb::Exec,
        Verb::Kill,
        Verb::Delete,
        Verb::DeleteForce,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Verb::Create => "create",
            Verb::CreateJoining => "create-joining",
            Verb::Start => "start",
            Verb::Run => "run",
            Verb::RunDetached => "run-detached",
            Verb::Exec => "exec",
            Verb::Kill => "kill",
            Verb::Delete => "delete",
            Verb::DeleteForce => "delete-force",
        }
    }

    /// Whether there is no container before.
    fn makes(self) -> bool {
        matches!(self, Verb::Create | Verb::CreateJoining | Verb::Run | Verb::RunDetached)
    }
}

/// A bed with one bundle and one container id, used again for every point: making it anew after a crash is the proof
/// that the next command works.
pub struct Scenario<'a> {
    verb: Verb,
    bundle: Bundle<'a>,
    id: String,
    /// Its pid namespace is the one to join.
    _holder: Option<Holder>,
}

/// A process in a new pid namespace.
struct Holder(Child);

impl Holder {
    fn new() -> Result<Holder> {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--kill-child", "sleep", "100000"]).stdin(Stdio::null());
        let holder = Holder(unshare.spawn().context("start unshare(1)")?);
        let until = Instant::now() + Duration::from_secs(10);
        // The name leads nowhere before the first process is in it.
        while fs::metadata(holder.namespace()).is_err() {
            ensure!(Instant::now() < until, "unshare(1) made no pid namespace");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(holder)
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/pid_for_children", self.0.id())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        // It may have been reaped with the others.
        self.0.wait().map(drop).unwrap_or_default();
    }
}

/// What a container looks like from inside: whatever a verb reports as done shows here, or was not done.
const LOOK: &str = "hostname; pwd; id; umask; ulimit -n; env | sort; cat /proc/self/oom_score_adj; \
    grep -E '^(Cap|Seccomp|NoNew|Groups|SigBlk|SigIgn|SigCgt)' /proc/self/status; cut -d' ' -f4-6 /proc/self/mountinfo | sort; \
    cat /proc/sys/net/ipv4/ip_forward; cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max \
    /sys/fs/cgroup/cpu/cpu.shares /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max 2>/dev/null; \
    ls -l /dev | awk '{print $1, $3, $4, $5, $6, $NF}' | grep -v ^total; \
    for n in pid net ipc uts mnt cgroup; do test $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) && echo $n; done; \
    wc -c < /proc/keys; ls /proc/self/fd | wc -l; cat /proc/self/cgroup; echo end";

impl<'a> Scenario<'a> {
    pub fn new(bed: &'a Bed, verb: Verb) -> Result<Scenario<'a>> {
        let mut bundle = bed.bundle();
        let holder = if verb == Verb::CreateJoining { Some(Holder::new()?) } else { None };
        if let Some(holder) = &holder {
            bundle = bundle.set(
                "/linux/namespaces",
                json!([{"type": "pid", "path": holder.namespace()}, {"type": "network"}, {"type": "ipc"},
                       {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}]),
            );
        }
        let bundle = match verb {
            Verb::Run => bundle.sh(LOOK),
            Verb::Create | Verb::CreateJoining | Verb::Start | Verb::RunDetached => {
                bundle.sh(&format!("({LOOK}) > /look 2>&1; echo > /ready; exec sleep 1000"))
            }
            _ => bundle.args(["sleep", "1000"]),
        };
        let bundle = bundle
            .set("/process/oomScoreAdj", 77)
            .set("/process/user/additionalGids", json!([7, 8]))
            .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}))
            .set(
                "/linux/devices",
                json!([{"path": "/dev/extra", "type": "c", "major": 1, "minor": 3, "fileMode": 438}]),
            )
            .set("/linux/resources/memory", json!({"limit": 268_435_456}))
            .set("/linux/resources/pids", json!({"limit": 64}))
            .set("/linux/resources/cpu", json!({"shares": 512}))
            .set(
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                       "syscalls": [{"names": ["reboot", "swapon"], "action": "SCMP_ACT_ERRNO"}]}),
            );
        let id = bundle.fresh_id();
        Ok(Scenario { verb, bundle, id, _holder: holder })
    }

    fn call(&self, args: &[&str]) -> Result<()> {
        let output = finish(self.bundle.bed.command().args(args));
        if output.code != Some(0) {
            bail!("{}: exit code {:?}: {}", output.what, output.code, output.stderr);
        }
        Ok(())
    }

    /// Bring about the state that the verb starts from; the pids that it will deal with.
    fn prepare(&self) -> Result<Vec<i32>> {
        if self.verb.makes() {
            return Ok(Vec::new());
        }
        let mut create = self.bundle.command("create", &[], &self.id);
        let output = finish(&mut create);
        if output.code != Some(0) {
            bail!("{}: exit code {:?}: {}", output.what, output.code, output.stderr);
        }
        let state = finish(self.bundle.bed.command().args(["state", &self.id])).json();
        let pid = i32::try_from(state["pid"].as_i64().unwrap_or_default())?;
        if self.verb == Verb::Start {
            return Ok(vec![pid]);
        }
        self.call(&["start", &self.id])?;
        if self.verb == Verb::Delete {
            self.call(&["kill", &self.id, "KILL"])?;
            if !harness::command::gone_within(pid, Duration::from_secs(20)) {
                bail!("{pid} survived SIGKILL");
            }
            tracer::reap();
        }
        Ok(Vec::new())
    }

    fn command(&self) -> Command {
        let with_bundle = |verb, options: &[&str]| self.bundle.command(verb, options, &self.id);
        let plain = |args: &[&str]| {
            let mut command = self.bundle.bed.command();
            command.args(args);
            command
        };
        match self.verb {
            Verb::Create | Verb::CreateJoining => with_bundle("create", &[]),
            Verb::Run => with_bundle("run", &[]),
            Verb::RunDetached => with_bundle("run", &["--detach"]),
            Verb::Start => plain(&["start", &self.id]),
            Verb::Exec => plain(&["exec", &self.id, "sh", "-c", LOOK]),
            Verb::Kill => plain(&["kill", &self.id, "KILL"]),
            Verb::Delete => plain(&["delete", &self.id]),
            Verb::DeleteForce => plain(&["delete", "--force", &self.id]),
        }
    }

    fn run_undisturbed(&self) -> Result<(Vec<Point>, Duration, String)> {
        let began = Instant::now();
        let mut ready = self.ready();
        let others = self.prepare()?;
        let trace = tracer::trace(&self.command(), &others, None)?;
        if trace.hung || trace.code != Some(0) {
            bail!("{} does not work when it is traced: {trace:?}", self.verb.name());
        }
        let effect = self.effect(&trace, &mut ready).map(|e| self.anonymous(&e));
        let left = self.clean_up();
        if !left.is_empty() {
            bail!("{} leaves something even when nobody is killed: {}", self.verb.name(), left.join("; "));
        }
        Ok((trace.points, began.elapsed(), effect?))
    }

    fn kill_at(&self, point: &Point, blow: Blow) -> Result<(Option<u64>, Vec<String>)> {
        let others = match self.prepare() {
            Ok(others) => others,
            Err(error) => return Ok((None, vec![format!("the next command does not work: {error:#}")])),
        };
        let trace = tracer::trace(&self.command(), &others, Some((point, blow)))?;
        let mut left = self.clean_up();
        if trace.hung {
            left.insert(0, "the other processes hang".to_owned());
        }
        Ok((trace.hit, left))
    }

    fn disturb_at(&self, point: &Point, blow: Blow, expected: &str) -> Result<(Option<u64>, Vec<String>)> {
        let mut wrong = Vec::new();
        let mut ready = self.ready();
        let others = match self.prepare() {
            Ok(others) => others,
            Err(error) => return Ok((None, vec![format!("the next command does not work: {error:#}")])),
        };
        let trace = tracer::trace(&self.command(), &others, Some((point, blow)))?;
        if trace.hung {
            wrong.push("hangs".to_owned());
        } else if trace.code == Some(0) {
            match self.effect(&trace, &mut ready) {
                Ok(effect) if self.anonymous(&effect) == expected => {}
                Ok(effect) => {
                    let difference = difference(expected, &self.anonymous(&effect));
                    wrong.push(format!("reports success, but {difference}"));
                }
                Err(error) => wrong.push(format!("reports success, but {error:#}")),
            }
        } else if blow == Blow::Delay {
            wrong.push(format!("exit code {:?}: {}", trace.code, trace.stderr.trim()));
        } else if trace.hit.is_some_and(is_of_libc) {
            // It gives up at once; what counts is that the next delete removes everything.
        } else {
            let lines: Vec<_> = trace.stderr.lines().filter(|l| !l.starts_with("hint: ")).collect();
            if trace.code.is_none() || lines.is_empty() || trace.stderr.contains("panicked") {
                wrong.push(format!("no clear error: exit code {:?}, {:?}", trace.code, trace.stderr));
            }
            // A removal that fails leaves what it was to remove; that it says so is all that can be asked.
            let removal = trace.hit.is_some_and(|h| [84, 87, 166, 263].contains(&h));
            if self.verb.makes() && !removal {
                wrong.extend(
                    self.bundle.bed.leftovers().into_iter().map(|l| format!("left by the verb: {l}")),
                );
            }
        }
        wrong.extend(self.clean_up());
        Ok((trace.hit, wrong))
    }

    /// Without the names of this bed.
    fn anonymous(&self, effect: &str) -> String {
        // Where the bundle lies is shown from the root of its file system, which may be /tmp itself.
        let dir = self.bundle.dir.to_string_lossy().into_owned();
        let within = dir.find(&self.bundle.bed.unique).map_or(dir.as_str(), |at| &dir[at..]).to_owned();
        let mut out = effect.replace(&dir, "BUNDLE");
        out = out.replace(&format!("/{within}"), "BUNDLE");
        out.replace(&self.bundle.bed.unique, "BED")
    }

    fn ready(&self) -> Option<Fifo> {
        let needed = self.verb == Verb::Start || self.verb.makes() && self.verb != Verb::Run;
        needed.then(|| {
            let path = self.bundle.inside("ready");
            if path.exists() { Fifo::open(&path) } else { Fifo::make(&path) }
        })
    }

    /// What the verb claims to have done, as it shows.
    fn effect(&self, trace: &Trace, ready: &mut Option<Fifo>) -> Result<String> {
        let state = || finish(self.bundle.bed.command().args(["state", &self.id]));
        let look = |fifo: &mut Option<Fifo>| {
            let seen = fifo.as_mut().is_some_and(|f| f.line_within(Duration::from_secs(10)).is_some());
            if !seen {
                bail!("the program was not run");
            }
            Ok(())
        };
        match self.verb {
            Verb::Run | Verb::Exec => Ok(trace.stdout.clone()),
            Verb::Create | Verb::CreateJoining => {
                let status = state().json()["status"].to_string();
                self.call(&["start", &self.id])?;
                look(ready)?;
                Ok(format!("{status}\n{}", fs::read_to_string(self.bundle.inside("look"))?))
            }
            Verb::Start | Verb::RunDetached => {
                look(ready)?;
                let status = state().json()["status"].to_string();
                Ok(format!("{status}\n{}", fs::read_to_string(self.bundle.inside("look"))?))
            }
            Verb::Kill => {
                let pid = i32::try_from(state().json()["pid"].as_i64().unwrap_or_default())?;
                if !harness::command::gone_within(pid, Duration::from_secs(10)) {
                    bail!("{pid} lives on");
                }
                Ok("dead".to_owned())
            }
            Verb::Delete | Verb::DeleteForce => Ok(self.bundle.bed.leftovers().join("; ")),
        }
    }

    fn clean_up(&self) -> Vec<String> {
        let mut delete = self.bundle.bed.command();
        delete.args(["delete", "--force", &self.id]);
        let running = start(&mut delete);
        let mut left = Vec::new();
        let until = Instant::now() + Duration::from_secs(20);
        // An orphan of the killed verb may be in the container's pid namespace, whose init ends only when it is reaped.
        while !running.ends_within(Duration::from_millis(20)) && Instant::now() < until {
            tracer::reap_others(running.pid());
        }
        if running.ends_within(Duration::ZERO) {
            let output = running.wait();
            if output.code != Some(0) {
                left.push(format!("delete --force: exit code {:?}: {}", output.code, output.stderr.trim()));
            }
        } else {
            left.push("delete --force hangs".to_owned());
            drop(running);
        }
        tracer::reap();
        left.extend(self.bundle.bed.leftovers());
        left
    }
}

impl Trial for Scenario<'_> {
    fn record(&self) -> Result<(Vec<Point>, Duration, String)> {
        self.run_undisturbed()
    }

    fn crash(&self, point: &Point, blow: Blow, _expected: &str) -> Result<(Option<u64>, Vec<String>)> {
        self.kill_at(point, blow)
    }

    fn disturb(&self, point: &Point, blow: Blow, expected: &str) -> Result<(Option<u64>, Vec<String>)> {
        self.disturb_at(point, blow, expected)
    }
}

/// Memory (mmap, mprotect, munmap, brk, mremap) and the start of a program and its threads (rt_sigaction, rt_sigprocmask,
/// arch_prctl, set_tid_address, set_robust_list, rseq, sigaltstack, futex): the C library ends the program.
pub fn is_of_libc(syscall: u64) -> bool {
    [9, 10, 11, 12, 25, 13, 14, 158, 218, 273, 334, 131, 202].contains(&syscall)
}

/// The first line in which two looks differ.
fn difference(expected: &str, found: &str) -> String {
    let (mut left, mut right) = (expected.lines(), found.lines());
    loop {
        match (left.next(), right.next()) {
            (None, None) => return "only the end differs".to_owned(),
            (l, r) if l == r => {}
            (l, r) => return format!("{:?} became {:?}", l.unwrap_or("nothing"), r.unwrap_or("nothing")),
        }
    }
}
