//! `NOTIFY_SOCKET`: a service in a container tells systemd that it is ready, as with runc.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use harness::command::PATIENCE;
use harness::{Bed, Bundle, finish, need, start};

/// Sends each argument as a datagram to $NOTIFY_SOCKET.
const TELL: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
int main(int argc, char **argv) {
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    char *path = getenv("NOTIFY_SOCKET");
    int s = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (!path) return 2;
    strncpy(to.sun_path, path, sizeof to.sun_path - 1);
    for (int i = 1; i < argc; i++)
        if (sendto(s, argv[i], strlen(argv[i]), 0, (void *)&to, sizeof to) < 0) { perror(path); return 1; }
    return 0;
}
"#;

/// As a service manager has it.
fn manager(at: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(at).expect("bind");
    socket.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    socket
}

fn next(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let n = socket.recv(&mut buffer).expect("a message");
    String::from_utf8_lossy(&buffer[..n]).into_owned()
}

fn is_silent(socket: &UnixDatagram) -> bool {
    socket.set_nonblocking(true).expect("do not wait");
    let silent = socket.recv(&mut [0; 64]).is_err();
    socket.set_nonblocking(false).expect("wait");
    silent
}

/// It says something else first, waits for `/go`, and is ready then.
fn service(bed: &Bed) -> Bundle<'_> {
    let b = bed.bundle().sh(
        "tell STATUS=busy MAINPID=1 && touch /run/said; while [ ! -e /go ]; do sleep 0.01; done; tell 'STATUS=up\nREADY=1'; exec sleep 1000",
    );
    harness::cc::compile(TELL, &b.inside("bin/tell"));
    b
}

#[test]
fn start_waits_until_the_service_is_ready() {
    let (Some(_), Some(_)) = (need::ours(), need::gcc()) else { return };
    for user_namespace in [false, true] {
        let bed = Bed::new();
        let at = bed.path("manager.sock");
        let manager = manager(&at);
        let mut b = service(&bed).caller_env("NOTIFY_SOCKET", &at);
        if user_namespace {
            b = b.user_namespace();
        } else {
            // Not the owner of anything on the way.
            b = b.set("/process/user", harness::json!({"uid": 1000, "gid": 1000}));
            fs::set_permissions(b.inside(""), std::os::unix::fs::PermissionsExt::from_mode(0o777))
                .expect("chmod");
        }
        let c = b.create();
        let starting = start(bed.command().args(["start", &c.id]).env("NOTIFY_SOCKET", &at));
        while c.status() != "running" {}
        assert!(!starting.ends_within(std::time::Duration::from_millis(100)), "start did not wait");
        assert!(is_silent(&manager), "only readiness is passed on");
        c.exec_sh("echo ${NOTIFY_SOCKET-none}").success().stdout_is("none\n");
        c.exec_sh("touch /run/notify/x").exits(1);
        fs::write(b.inside("go"), "").expect("write");
        starting.wait().success();
        assert_eq!(next(&manager), format!("READY=1\nMAINPID={}\n", c.pid()));
        c.stop();
        c.delete().success();
        bed.is_clean();
    }
}

#[test]
fn run_passes_readiness_on() {
    let (Some(_), Some(_)) = (need::ours(), need::gcc()) else { return };
    let bed = Bed::new();
    let at = bed.path("manager.sock");
    let manager = manager(&at);
    let b = service(&bed).caller_env("NOTIFY_SOCKET", &at);
    fs::write(b.inside("go"), "").expect("write");
    // The service's main process is the runtime itself.
    let (running, c) = b.start_run();
    assert_eq!(next(&manager), "READY=1\n");
    c.stop();
    running.wait().exits(137);
    // In the background it is the container's.
    let id = b.fresh_id();
    bed.adopt(&id);
    finish(&mut b.command("run", &["--detach"], &id)).success();
    let said = next(&manager);
    assert!(said.starts_with("READY=1\nMAINPID="), "{said}");
    bed.call(&["delete", "--force", &id]).success();
    bed.is_clean();
}

/// One that ends first is not waited for; and a manager that is gone is no reason to fail.
#[test]
fn nobody_waits_for_a_service_that_is_gone() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("exit 3").caller_env("NOTIFY_SOCKET", bed.path("nobody.sock"));
    let c = b.create();
    finish(bed.command().args(["start", &c.id]).env("NOTIFY_SOCKET", bed.path("nobody.sock"))).success();
    c.delete_force().success();
    b.run().exits(3);
    // There is no place for the socket, and that is said.
    let bare = bed
        .bundle()
        .set("/linux/namespaces", harness::json!([{"type": "pid"}, {"type": "uts"}]))
        .set("/mounts", harness::json!([]));
    let (_, out) = bare.caller_env("NOTIFY_SOCKET", bed.path("nobody.sock")).try_create();
    out.exits(1).stderr_has("NOTIFY_SOCKET without a mount namespace");
    // Made without: it has no folder, and `start` does not wait.
    let c = bed.bundle().args(["sleep", "1000"]).create();
    finish(bed.command().args(["start", &c.id]).env("NOTIFY_SOCKET", bed.path("nobody.sock"))).success();
    c.delete_force().success();
    bed.is_clean();
}
