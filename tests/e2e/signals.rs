//! Signals: kill by name and number, forwarded by a foreground run, and how a death by signal shows.

use harness::{Bed, need};
use nix::sys::signal::Signal;

const TRAPS: &str = "trap 'echo got TERM; exit 3' TERM; trap 'echo got HUP' HUP; trap 'echo got USR1' USR1; \
    trap 'echo got INT' INT; echo up > /ready; while :; do sleep 1000 & wait $!; done";

#[test]
fn kill_takes_names_and_numbers() {
    let Some(_) = need::root() else { return };
    for signal in ["TERM", "SIGTERM", "15", "term"] {
        if signal == "term" && !harness::runtime::is_ours() {
            continue;
        }
        let bed = Bed::new();
        let b = bed.bundle();
        let mut ready = b.fifo("ready");
        let c = b.sh(TRAPS).start();
        ready.line();
        c.kill(signal).success();
        c.wait();
        assert_eq!(c.stdout(), "got TERM\n", "kill {signal}");
    }
}

#[test]
fn kill_without_a_signal_means_term() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let mut ready = b.fifo("ready");
    let c = b.sh(TRAPS).start();
    ready.line();
    c.verb("kill").success();
    c.wait();
    assert_eq!(c.stdout(), "got TERM\n");
}

#[test]
fn kill_refuses_unknown_signals() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    for signal in ["NOPE", "0x9", "-1", "65", "99999999999", ""] {
        c.with("kill", &["--"], &[signal]).exits(1);
    }
    assert_eq!(c.status(), "running");
}

#[test]
fn kill_all_reaches_every_process() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let mut ready = b.fifo("ready");
    let c = b.sh("for i in 1 2 3; do sleep 1000 & done; echo up > /ready; wait").start();
    ready.line();
    let pid = c.pid();
    c.with("kill", &["--all"], &["KILL"]).success();
    assert!(harness::command::gone_within(pid, harness::command::PATIENCE));
    assert!(harness::leaks::lasting_processes(&bed.unique).is_empty());
}

#[test]
fn kill_reaches_a_created_container() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().create();
    c.stop();
    assert_eq!(c.status(), "stopped");
    c.delete().success();
}

#[test]
fn run_forwards_signals() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let mut ready = b.fifo("ready");
    let mut said = b.fifo("said");
    let b = b.sh(&TRAPS
        .replace("'echo got HUP'", "'echo HUP > /said'")
        .replace("'echo got USR1'", "'echo USR1 > /said'"));
    let (running, _container) = b.start_run();
    ready.line();
    running.signal(Signal::SIGHUP);
    assert_eq!(said.line(), "HUP");
    running.signal(Signal::SIGUSR1);
    assert_eq!(said.line(), "USR1");
    running.signal(Signal::SIGTERM);
    running.wait().exits(3).stdout_is("got TERM\n");
}

#[test]
fn death_by_signal_is_128_and_the_number() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let mut ready = b.fifo("ready");
    let (running, container) = b.sh("echo up > /ready; exec sleep 1000").start_run();
    ready.line();
    container.kill("KILL").success();
    running.wait().exits(137);
    let c = bed.bundle().idle();
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("SEGV", 139)] {
        c.exec_sh(&format!("kill -{signal} $$")).exits(code);
    }
}

/// The signal mask and dispositions of the caller don't matter to the container.
#[test]
fn the_container_starts_with_no_signal_blocked_or_ignored() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["grep", "Sig[BI]", "/proc/self/status"]);
    let id = b.fresh_id();
    b.write(&id);
    let bundle = b.dir.to_string_lossy().into_owned();
    let mut command = bed.prefixed(&["sh", "-c", "trap '' INT QUIT PIPE CHLD; exec \"$@\"", "sh"]);
    let zero = "0000000000000000";
    let out = harness::finish(command.args(["run", "--bundle", &bundle, &id])).success();
    if harness::runtime::is_ours() {
        let ignored = out.stdout.lines().find_map(|l| l.strip_prefix("SigIgn:\t")).expect("SigIgn");
        // Above 31 are the C library's own, and whatever our own caller ignores of them.
        assert_eq!(u64::from_str_radix(ignored, 16).expect("hex") & 0x7fff_ffff, 0, "{out:?}");
        out.stdout_has(&format!("SigBlk:\t{zero}\n"));
    }
    let c = bed.bundle().idle();
    let out = c.exec(&["grep", "SigBlk", "/proc/self/status"]).success();
    out.stdout_is(&format!("SigBlk:\t{zero}\n"));
}
