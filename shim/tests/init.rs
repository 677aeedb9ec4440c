//! The first process of a container, from outside.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};

const INIT: &str = env!("CARGO_BIN_EXE_berth-init");

fn init(args: &[&str]) -> Output {
    Command::new(INIT).args(args).stdin(Stdio::null()).output().expect("berth-init")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Start it, wait for a line of its program, send a signal, and return what came then with the exit code.
fn signalled(args: &[&str], signal: &str) -> (String, Option<i32>) {
    let mut child = Command::new(INIT)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("berth-init");
    let mut out = BufReader::new(child.stdout.take().expect("its output"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
    assert!(sent.expect("kill").success());
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("its output");
    (rest, child.wait().expect("its end").code())
}

#[test]
fn it_ends_as_the_program_does() {
    for (args, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["-e", "7", "sh", "-c", "exit 7"], 0),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["-e", "143", "--", "sh", "-c", "kill -TERM $$"], 0),
        (&["/nowhere/program"], 127),
        (&["no-such-program-at-all"], 127),
        (&["/"], 126),
        (&["-x", "true"], 1),
        (&[], 1),
    ] {
        let out = init(args);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}", text(&out.stderr));
        assert_eq!(out.stderr.is_empty(), !matches!(code, 1 | 126 | 127), "{args:?}: {}", text(&out.stderr));
    }
    assert!(text(&init(&["-h"]).stdout).contains("Usage: berth-init"));
    assert_eq!(text(&init(&["--version"]).stdout), format!("berth-init {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn signals_go_on_to_the_program() {
    let script = "trap 'echo got; exit 3' SIGNAL; echo ready; while :; do sleep 0.02; done";
    for signal in ["USR1", "TERM", "INT", "HUP", "WINCH", "TSTP", "42"] {
        let script = script.replace("SIGNAL", signal);
        let (rest, code) = signalled(&["bash", "-c", &script], signal);
        assert_eq!((rest.as_str(), code), ("got\n", Some(3)), "{signal}");
    }
}

#[test]
fn with_a_group_signals_go_to_all_of_it() {
    let script = "(trap 'echo child; exit' TERM; echo ready; while :; do sleep 0.02; done) & wait";
    assert_eq!(signalled(&["-g", "bash", "-c", script], "TERM"), ("child\n".to_owned(), Some(143)));
    // Without, the child is left, and ends by itself.
    let script = "(trap 'echo child; exit' TERM; echo ready; sleep 0.3) & wait";
    assert_eq!(signalled(&["bash", "-c", script], "TERM"), (String::new(), Some(143)));
}

#[test]
fn orphans_are_reaped() {
    let script = "(sh -c 'sleep 0.1' & sleep 0.05 &); sleep 0.4; ps -o stat= --ppid $PPID | grep -c Z";
    let out = init(&["-s", "-w", "sh", "-c", script]);
    assert_eq!(text(&out.stdout), "0\n");
    assert_eq!(text(&out.stderr).matches("reaped zombie process").count(), 2, "{}", text(&out.stderr));
    // A thousand of them, while the program goes on.
    let script = "for i in $(seq 1000); do (true &); done; sleep 0.2; ps -o stat= --ppid $PPID | grep -c Z";
    assert_eq!(text(&init(&["-s", "bash", "-c", script]).stdout), "0\n");
}

#[test]
fn the_program_starts_with_no_signal_blocked_or_ignored() {
    let sets = text(&init(&["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]).stdout);
    let sets: Vec<u64> =
        sets.lines().filter_map(|l| u64::from_str_radix(l.split_once('\t')?.1, 16).ok()).collect();
    // 32 and 33 are the C library's own.
    let own = 3 << 31;
    assert!(sets.len() == 2 && sets.iter().all(|set| set & !own == 0), "{sets:x?}");
}

#[test]
fn it_is_the_first_of_its_pid_namespace() {
    let root = text(&Command::new("id").arg("-u").output().expect("id").stdout) == "0\n";
    let mut unshare = Command::new("unshare");
    unshare.args(if root {
        &["--pid", "--fork"][..]
    } else {
        &["--user", "--map-root-user", "--pid", "--fork"]
    });
    let out = unshare.arg(INIT).args(["-v", "sh", "-c", "echo $$ $PPID; sleep 100 & exit 5"]).output();
    let out = out.expect("unshare");
    // What is left is ended by the kernel, or else this would wait for it.
    assert_eq!((text(&out.stdout).as_str(), out.status.code()), ("2 1\n", Some(5)), "{}", text(&out.stderr));
    assert!(out.stderr.is_empty());
}

#[test]
fn the_program_has_the_terminal() {
    let program = format!("{INIT} sh -c 'cut -d\" \" -f5,8 /proc/$$/stat'");
    let out = Command::new("script").args(["-qec", &program, "/dev/null"]).stdin(Stdio::null()).output();
    let out = text(&out.expect("script").stdout);
    let numbers: Vec<&str> = out.split_whitespace().collect();
    assert!(numbers.len() == 2 && numbers[0] == numbers[1], "{out:?}");
}
