//! Seccomp profiles: what each action does to the process that meets it.

use harness::{Bed, json, need};

fn profile(action: &str, extra: harness::Value) -> harness::Value {
    let mut rule = json!({"names": ["mkdir", "mkdirat"], "action": action});
    if let Some(extra) = extra.as_object() {
        rule.as_object_mut().expect("an object").extend(extra.clone());
    }
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule]})
}

#[test]
fn actions() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    for (action, extra, expected) in [
        ("SCMP_ACT_ERRNO", json!({}), "mkdir: can't create directory '/x': Operation not permitted\n1\n"),
        (
            "SCMP_ACT_ERRNO",
            json!({"errnoRet": 38}),
            "mkdir: can't create directory '/x': Function not implemented\n1\n",
        ),
        ("SCMP_ACT_KILL_PROCESS", json!({}), "159\n"),
        ("SCMP_ACT_KILL", json!({}), "159\n"),
        ("SCMP_ACT_TRAP", json!({}), "159\n"),
        ("SCMP_ACT_LOG", json!({}), "0\n"),
        ("SCMP_ACT_ALLOW", json!({}), "0\n"),
    ] {
        let b = bed.bundle().set("/linux/seccomp", profile(action, extra));
        let out = b.sh("(mkdir /x) 2>&1; echo $?").run().success();
        let said: Vec<_> = out.stdout.lines().filter(|l| !l.contains("Bad system call")).collect();
        assert_eq!(said.join("\n") + "\n", expected, "{action}");
    }
}

#[test]
fn default_deny_lists_work() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    // What busybox's echo needs, and what runtimes need on the way to it.
    let names = [
        "read",
        "write",
        "close",
        "fstat",
        "brk",
        "mmap",
        "munmap",
        "mprotect",
        "execve",
        "exit_group",
        "arch_prctl",
        "set_tid_address",
        "set_robust_list",
        "rseq",
        "prlimit64",
        "readlink",
        "readlinkat",
        "getrandom",
        "newfstatat",
        "getuid",
        "setuid",
        "setgid",
        "setgroups",
        "capset",
        "capget",
        "prctl",
        "futex",
        "fcntl",
        "openat",
        "getpid",
        "gettid",
        "rt_sigaction",
        "rt_sigprocmask",
        "rt_sigreturn",
        "nanosleep",
        "close_range",
        "chdir",
        "getcwd",
        "ioctl",
        "poll",
        "epoll_ctl",
        "epoll_pwait",
        "fchdir",
        "clone",
        "tgkill",
        "statx",
        "fchown",
        "getdents64",
        "sched_yield",
        "lseek",
        "dup",
        "getegid",
        "geteuid",
        "getgid",
    ];
    let b = bed.bundle().set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64"],
               "syscalls": [{"names": names.to_vec(), "action": "SCMP_ACT_ALLOW"}]}),
    );
    let b = b.args(["echo", "ran"]);
    b.run().success().stdout_is("ran\n");
    let out = b.args(["mkdir", "/x"]).run().exits(1);
    out.stderr_has("Function not implemented");
}

#[test]
fn arguments_are_compared() {
    let Some(_) = need::gcc() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let source = "#include <errno.h>\n#include <stdio.h>\n#include <sys/personality.h>\n\
        int main(void) { for (long p = 0; p < 12; p += 4) { errno = 0; personality(p); printf(\"%ld %d\\n\", p, errno); } return 0; }\n";
    harness::cc::compile(source, &b.inside("bin/try"));
    let rule =
        |args: harness::Value| json!({"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": args});
    let b = b.set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
            {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 9,
             "args": [{"index": 0, "value": 4, "op": "SCMP_CMP_EQ"}]}]}),
    );
    let b = b.args(["/bin/try"]);
    b.run().success().stdout_is("0 0\n4 9\n8 0\n");
    let names = b.config["linux"]["seccomp"]["syscalls"].clone();
    assert!(names.is_array());
    let b = b.set("/linux/seccomp/syscalls/0", {
        let mut ne = rule(json!([{"index": 0, "value": 255, "valueTwo": 8, "op": "SCMP_CMP_MASKED_EQ"}]));
        ne["action"] = json!("SCMP_ACT_ERRNO");
        ne["errnoRet"] = json!(7);
        ne
    });
    b.run().success().stdout_is("0 0\n4 0\n8 7\n");
}

/// With no new privileges or without, the container's own filter may be added on top.
#[test]
fn works_without_no_new_privileges_for_a_user() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed
        .bundle()
        .set("/process/noNewPrivileges", false)
        .set("/process/user", json!({"uid": 1000, "gid": 1000}))
        .set("/process/capabilities", json!({}))
        .set("/linux/seccomp", profile("SCMP_ACT_ERRNO", json!({})));
    let out = b.sh("grep ^Seccomp: /proc/self/status; (mkdir /tmp/x) 2>&1").run();
    assert_eq!(out.stdout, "Seccomp:\t2\nmkdir: can't create directory '/tmp/x': Operation not permitted\n");
}

/// What the agent of a notifying profile got: the state, and that a descriptor came with it. Closing the
/// descriptor makes the kernel answer every notification with ENOSYS.
fn agent(listener: std::os::unix::net::UnixListener, connections: usize) -> Vec<harness::Value> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let mut out = Vec::new();
    for _ in 0..connections {
        let (stream, _) = listener.accept().expect("accept");
        let (mut text, mut descriptors) = (Vec::new(), 0);
        loop {
            let mut bytes = [0; 4096];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
            let got = rustix::net::recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
                .expect("recvmsg")
                .bytes;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(list) = message {
                    descriptors += list.count();
                }
            }
            if got == 0 {
                break;
            }
            text.extend_from_slice(&bytes[..got]);
        }
        assert_eq!(descriptors, 1);
        out.push(serde_json::from_slice(&text).expect("the container process state"));
    }
    out
}

/// runtime-spec, config-linux.md, "The Container Process State": one per connection, with the listener, from
/// `run`, `start` and `exec`.
#[test]
fn the_agent_gets_the_listener_and_the_state() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let path = bed.path("agent.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    let agent = std::thread::spawn(move || agent(listener, 2));
    let mut notify = profile("SCMP_ACT_NOTIFY", json!({}));
    notify["listenerPath"] = json!(path);
    notify["listenerMetadata"] = json!("to the agent");
    let b = bed.bundle().set("/linux/seccomp", notify);
    let c = b.idle();
    let out = c.exec_sh("(mkdir /tmp/x) 2>&1");
    assert_eq!(out.stdout, "mkdir: can't create directory '/tmp/x': Function not implemented\n");
    let states = agent.join().expect("agent");
    for state in &states {
        assert_eq!(state["fds"], json!(["seccompFd"]));
        assert_eq!(state["metadata"], json!("to the agent"));
        assert_eq!(state["state"]["id"], c.state()["id"]);
        assert!(state["pid"].as_i64().is_some_and(|pid| pid > 0), "{state}");
    }
    assert_eq!(states[0]["pid"], json!(c.pid()));
    assert_ne!(states[1]["pid"], json!(c.pid()));
    assert_eq!(states[1]["state"]["status"], json!("running"));
}

/// Without its agent the program does not run.
#[test]
fn no_agent_no_program() {
    let Some(_) = need::ours() else { return };
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let mut notify = profile("SCMP_ACT_NOTIFY", json!({}));
    notify["listenerPath"] = json!(bed.path("none.sock"));
    let b = bed.bundle().set("/linux/seccomp", notify);
    let out = b.args(["echo", "ran"]).run().exits(1).stdout_is("");
    out.stderr_has("linux.seccomp.listenerPath: ").stderr_has("no such file or directory");
    bed.is_clean();
}

/// Calls newer than all that the profile names are not there, rather than forbidden: programs fall back.
#[test]
fn calls_newer_than_the_profile_are_unknown() {
    let Some(_) = need::gcc() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    // cachestat (451) is older than fchmodat2 (452), 5000 is newer; the profile allows what busybox needs and 452.
    let source = "#include <errno.h>\n#include <stdio.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
        int main(void) { long n[] = {451, 5000}; for (int i = 0; i < 2; i++) { errno = 0; syscall(n[i], -1, 0, 0, 0); printf(\"%d\\n\", errno); } return 0; }\n";
    harness::cc::compile(source, &b.inside("bin/try"));
    let names = [
        "read",
        "write",
        "close",
        "fstat",
        "brk",
        "mmap",
        "munmap",
        "mprotect",
        "execve",
        "execveat",
        "exit_group",
        "arch_prctl",
        "set_tid_address",
        "set_robust_list",
        "rseq",
        "prlimit64",
        "readlink",
        "readlinkat",
        "getrandom",
        "newfstatat",
        "fchmodat2",
        "capset",
        "prctl",
        "ioctl",
        "openat",
        "futex",
        "fcntl",
        "close_range",
        "capget",
        "setuid",
        "setgid",
        "setgroups",
        "getuid",
        "getpid",
        "gettid",
        "epoll_ctl",
        "epoll_pwait",
        "nanosleep",
        "rt_sigaction",
        "rt_sigprocmask",
        "rt_sigreturn",
        "tgkill",
        "getdents64",
        "sched_yield",
        "statx",
        "fchdir",
        "chdir",
    ];
    let b = b.set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
               "syscalls": [{"names": names.to_vec(), "action": "SCMP_ACT_ALLOW"}]}),
    );
    // 451 is EPERM (1), 5000 is ENOSYS (38).
    b.args(["/bin/try"]).run().success().stdout_is("1\n38\n");
}
