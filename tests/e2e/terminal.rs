//! Terminals: the console socket, sizes, and a foreground run in a terminal.

use std::fs;

use harness::pty::{ConsoleSocket, Master};
use harness::{Bed, finish, json, need, start};

/// The line endings are left to whoever takes the master, as runc leaves them.
#[test]
fn create_sends_the_master_to_the_console_socket() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set("/process/terminal", true);
    let b = b.set("/process/consoleSize", json!({"height": 33, "width": 111}));
    let b = b
        .sh("tty; test -t 0 && test -t 1 && test -t 2 && echo all; stty size; read line; echo got $line; \
                  ls -l /dev/console | cut -c1; (exec 3<>/dev/tty) && echo controlling");
    let id = b.fresh_id();
    bed.adopt(&id);
    let socket = ConsoleSocket::listen(&bed.path("console.sock"));
    let path = socket.path.to_string_lossy().into_owned();
    finish(&mut b.command("create", &["--console-socket", &path], &id)).success();
    let mut master = socket.receive();
    assert_eq!(master.size(), (33, 111));
    bed.call(&["start", &id]).success();
    master.expect("/dev/pts/0\r\n");
    master.expect("all\r\n");
    master.expect("33 111\r\n");
    master.say("typed\n");
    master.expect("got typed\r\n");
    master.drain();
    assert!(master.seen.ends_with("c\r\ncontrolling\r\n"), "{:?}", master.seen);
    fs::remove_file(&socket.path).expect("remove");
}

#[test]
fn the_master_resizes_the_terminal() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set("/process/terminal", true);
    let b = b.sh("trap 'stty size; exit' WINCH; echo up; while :; do read x; done");
    let id = b.fresh_id();
    bed.adopt(&id);
    let socket = ConsoleSocket::listen(&bed.path("console.sock"));
    let path = socket.path.to_string_lossy().into_owned();
    finish(&mut b.command("run", &["--detach", "--console-socket", &path], &id)).success();
    let mut master = socket.receive();
    master.expect("up\r\n");
    master.resize(40, 140);
    master.say("\n");
    master.expect("40 140\r\n");
    fs::remove_file(&socket.path).expect("remove");
}

#[test]
fn the_terminal_belongs_to_the_user() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b =
        bed.bundle().set("/process/terminal", true).set("/process/user", json!({"uid": 1000, "gid": 1000}));
    let b = b.sh("stat -c %u:%a $(tty); echo direct > /dev/tty; exec 5>$(tty) && echo opened");
    let id = b.fresh_id();
    bed.adopt(&id);
    let socket = ConsoleSocket::listen(&bed.path("console.sock"));
    let path = socket.path.to_string_lossy().into_owned();
    finish(&mut b.command("run", &["--detach", "--console-socket", &path], &id)).success();
    let mut master = socket.receive();
    master.drain();
    assert_eq!(master.seen, "1000:620\r\ndirect\r\nopened\r\n");
    fs::remove_file(&socket.path).expect("remove");
}

#[test]
fn exec_has_a_terminal_of_its_own() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    let socket = ConsoleSocket::listen(&bed.path("console.sock"));
    let path = socket.path.to_string_lossy().into_owned();
    let options = ["--tty", "--detach", "--console-socket", &path];
    c.with("exec", &options, &["sh", "-c", "tty; read x; echo got $x; exit 4"]).success();
    let mut master = socket.receive();
    master.expect("/dev/pts/");
    master.say("it\n");
    master.expect("got it\r\n");
    master.drain();
    fs::remove_file(&socket.path).expect("remove");
}

/// In the foreground, the runtime itself stands between its terminal and the container's.
#[test]
fn run_and_exec_in_a_terminal() {
    let Some(_) = need::program("setsid") else { return };
    let bed = Bed::new();
    let b = bed
        .bundle()
        .set("/process/terminal", true)
        .sh("tty; stty size; echo up; read x; echo got $x; exit 5");
    let id = b.fresh_id();
    b.write(&id);
    let (mut master, slave) = Master::open();
    master.resize(21, 77);
    let mut command = bed.prefixed(&["setsid", "--ctty", "--wait"]);
    command.arg("run").arg("--bundle").arg(&b.dir).arg(&id);
    let running = in_terminal(&mut command, slave);
    master.expect("/dev/pts/0");
    master.expect("up");
    master.say("over\n");
    master.expect("got over");
    assert_eq!(running.wait().expect("wait").code(), Some(5));
    assert!(
        master.seen.contains("21 77"),
        "the container's terminal has the size of ours: {:?}",
        master.seen
    );

    let c = bed.bundle().idle();
    let (mut master, slave) = Master::open();
    let mut command = bed.prefixed(&["setsid", "--ctty", "--wait"]);
    command.args([
        "exec",
        "--tty",
        &c.id,
        "sh",
        "-c",
        "trap 'stty size; exit 6' WINCH; echo up; while :; do read x; done",
    ]);
    let running = in_terminal(&mut command, slave);
    master.expect("up");
    master.resize(22, 88);
    // The runtime hears of it by SIGWINCH and passes it on; the shell acts when it has read a line.
    while !master.seen.contains("22 88") {
        master.say("\n");
        if !master.more_within(std::time::Duration::from_millis(200)) && running.is_over() {
            break;
        }
    }
    assert_eq!(running.wait().expect("wait").code(), Some(6));
    assert!(master.seen.contains("22 88"), "{:?}", master.seen);
}

struct InTerminal(std::process::Child);

impl InTerminal {
    fn is_over(&self) -> bool {
        harness::command::gone_within(self.0.id().cast_signed(), std::time::Duration::ZERO)
    }

    fn wait(mut self) -> std::io::Result<std::process::ExitStatus> {
        if !harness::command::gone_within(self.0.id().cast_signed(), harness::command::PATIENCE) {
            self.0.kill()?;
            panic!("hangs in a terminal");
        }
        self.0.wait()
    }
}

fn in_terminal(command: &mut std::process::Command, slave: fs::File) -> InTerminal {
    command.stdin(slave.try_clone().expect("dup")).stdout(slave.try_clone().expect("dup")).stderr(slave);
    let child = command.spawn().expect("start in a terminal");
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    InTerminal(child)
}

#[test]
fn a_terminal_without_a_console_socket_is_refused_and_the_other_way_round() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set("/process/terminal", true);
    b.try_create().1.exits(1);
    let id = b.fresh_id();
    finish(&mut b.command("run", &["--detach"], &id)).exits(1);
    let b = b.set("/process/terminal", false);
    let socket = ConsoleSocket::listen(&bed.path("console.sock"));
    let path = socket.path.to_string_lossy().into_owned();
    finish(&mut b.command("create", &["--console-socket", &path], &id)).exits(1);
    fs::remove_file(&socket.path).expect("remove");
    let b = b.set("/process/terminal", true);
    finish(&mut b.command("create", &["--console-socket", "/nothing.sock"], &id)).exits(1);
    bed.is_clean();
}

/// A run whose terminal goes away does not hang and does not spin.
#[test]
fn a_terminal_that_goes_away_ends_the_copying() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set("/process/terminal", true).sh("echo up; read x; exit 0");
    let id = b.fresh_id();
    b.write(&id);
    bed.adopt(&id);
    let (mut master, slave) = Master::open();
    let mut command = bed.prefixed(&["setsid", "--ctty", "--wait"]);
    command.arg("run").arg("--bundle").arg(&b.dir).arg(&id);
    let running = in_terminal(&mut command, slave);
    master.expect("up");
    drop(master);
    // Hung up: it may end by the signal or by itself.
    running.wait().expect("wait");
    start(bed.command().args(["delete", "--force", &id])).wait().success();
}
