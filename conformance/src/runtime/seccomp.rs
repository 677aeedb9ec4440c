//! config-linux.md#seccomp: actions, comparisons, errno values, flags, and the listener.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::bundle::Bundle;
use super::case::{Case, spec, strict};
use super::harness::{Test, same};
use super::terminal::{listener, receive_with_descriptors};

pub const CASES: &[Case] = &[
    spec("seccomp/none", "config-linux.md#seccomp", "without seccomp there is no filter", |t| {
        let text = t.bundle()?.args(&["grep", "^Seccomp:", "/proc/self/status"]).output()?;
        same("mode", text.split_whitespace().nth(1), Some("0"))
    }),
    spec("seccomp/is-loaded", "config-linux.md#seccomp", "with seccomp the program has a filter", |t| {
        let b =
            deny(t.bundle()?.args(&["grep", "^Seccomp:", "/proc/self/status"]), "SCMP_ACT_ERRNO", json!({}));
        same("mode", b.output()?.split_whitespace().nth(1), Some("2"))
    }),
    spec(
        "seccomp/errno-is-eperm",
        "config-linux.md#seccomp errnoRet",
        "SCMP_ACT_ERRNO without a number is EPERM",
        |t| message(t, "SCMP_ACT_ERRNO", json!({}), "Operation not permitted"),
    ),
    spec("seccomp/errno-ret", "config-linux.md#seccomp errnoRet", "errnoRet is the error", |t| {
        message(t, "SCMP_ACT_ERRNO", json!({"errnoRet": 28}), "No space left")
    }),
    spec(
        "seccomp/errno-ret-zero",
        "config-linux.md#seccomp errnoRet",
        "errnoRet 0 lets the call do nothing and succeed",
        |t| {
            let b = deny(
                t.sh("mkdir /tmp/x && echo fine; ls -d /tmp/x 2>/dev/null; true")?,
                "SCMP_ACT_ERRNO",
                json!({"errnoRet": 0}),
            );
            same("output", b.output()?.as_str(), "fine")
        },
    ),
    spec(
        "seccomp/trace-without-tracer",
        "config-linux.md#seccomp action",
        "SCMP_ACT_TRACE without a tracer is ENOSYS",
        |t| message(t, "SCMP_ACT_TRACE", json!({"errnoRet": 3}), "not implemented"),
    ),
    spec("seccomp/kill", "config-linux.md#seccomp action", "SCMP_ACT_KILL ends the program", |t| {
        status(t, "SCMP_ACT_KILL", "159")
    }),
    spec(
        "seccomp/kill-process",
        "config-linux.md#seccomp action",
        "SCMP_ACT_KILL_PROCESS ends the program",
        |t| status(t, "SCMP_ACT_KILL_PROCESS", "159"),
    ),
    spec(
        "seccomp/kill-thread",
        "config-linux.md#seccomp action",
        "SCMP_ACT_KILL_THREAD ends the thread",
        |t| status(t, "SCMP_ACT_KILL_THREAD", "159"),
    ),
    spec("seccomp/trap", "config-linux.md#seccomp action", "SCMP_ACT_TRAP sends SIGSYS", |t| {
        status(t, "SCMP_ACT_TRAP", "159")
    }),
    spec("seccomp/log", "config-linux.md#seccomp action", "SCMP_ACT_LOG permits", |t| {
        status(t, "SCMP_ACT_LOG", "0")
    }),
    spec(
        "seccomp/allow",
        "config-linux.md#seccomp action",
        "SCMP_ACT_ALLOW permits what the default denies",
        |t| {
            let b = t
                .sh("mkdir /tmp/x; echo $?")?
                .set("/linux/seccomp", allow_list(&["mkdir", "mkdirat"], json!({})));
            same("status", b.output()?.as_str(), "0")
        },
    ),
    spec(
        "seccomp/default-errno",
        "config-linux.md#seccomp defaultAction",
        "a default of ERRNO without a number is EPERM",
        |t| {
            let b = t.sh("mkdir /tmp/x 2>&1; true")?.set("/linux/seccomp", allow_list(&[], json!({})));
            let text = b.output()?;
            ensure!(text.contains("Operation not permitted"), "{text}");
            Ok(())
        },
    ),
    spec(
        "seccomp/default-errno-ret",
        "config-linux.md#seccomp defaultErrnoRet",
        "defaultErrnoRet is the default's error",
        |t| {
            let b = t
                .sh("mkdir /tmp/x 2>&1; true")?
                .set("/linux/seccomp", allow_list(&[], json!({"defaultErrnoRet": 28})));
            let text = b.output()?;
            ensure!(text.contains("No space left"), "{text}");
            Ok(())
        },
    ),
    spec(
        "seccomp/several-names",
        "config-linux.md#seccomp names",
        "a rule holds for each of its names",
        |t| {
            let rule = json!([{"names": ["mkdir", "mkdirat", "chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}]);
            let b = t
                .sh("mkdir /tmp/x 2>/dev/null || echo a; chmod 600 /etc 2>/dev/null || echo b")?
                .set("/linux/seccomp", profile(rule));
            same("output", b.output()?.as_str(), "a\nb")
        },
    ),
    spec("seccomp/eq", "config-linux.md#seccomp op", "SCMP_CMP_EQ", |t| {
        chmod(t, "SCMP_CMP_EQ", 0o644, None, "0644=no 0600=yes 0755=yes")
    }),
    spec("seccomp/ne", "config-linux.md#seccomp op", "SCMP_CMP_NE", |t| {
        chmod(t, "SCMP_CMP_NE", 0o644, None, "0644=yes 0600=no 0755=no")
    }),
    spec("seccomp/lt", "config-linux.md#seccomp op", "SCMP_CMP_LT", |t| {
        chmod(t, "SCMP_CMP_LT", 0o644, None, "0644=yes 0600=no 0755=yes")
    }),
    spec("seccomp/le", "config-linux.md#seccomp op", "SCMP_CMP_LE", |t| {
        chmod(t, "SCMP_CMP_LE", 0o644, None, "0644=no 0600=no 0755=yes")
    }),
    spec("seccomp/gt", "config-linux.md#seccomp op", "SCMP_CMP_GT", |t| {
        chmod(t, "SCMP_CMP_GT", 0o644, None, "0644=yes 0600=yes 0755=no")
    }),
    spec("seccomp/ge", "config-linux.md#seccomp op", "SCMP_CMP_GE", |t| {
        chmod(t, "SCMP_CMP_GE", 0o644, None, "0644=no 0600=yes 0755=no")
    }),
    spec(
        "seccomp/masked-eq",
        "config-linux.md#seccomp op",
        "SCMP_CMP_MASKED_EQ: value is the mask, valueTwo what is compared",
        |t| chmod(t, "SCMP_CMP_MASKED_EQ", 0o111, Some(0o111), "0644=yes 0600=yes 0755=no"),
    ),
    spec(
        "seccomp/eq-64-bit",
        "config-linux.md#seccomp value",
        "both halves of an argument are compared",
        |t| truncate(t, "SCMP_CMP_EQ", 1, "1=no 4294967297=yes"),
    ),
    spec("seccomp/eq-large", "config-linux.md#seccomp value", "a value above 32 bits matches", |t| {
        truncate(t, "SCMP_CMP_EQ", 4_294_967_297, "1=yes 4294967297=no")
    }),
    spec("seccomp/gt-64-bit", "config-linux.md#seccomp value", "greater-than looks at the upper half", |t| {
        truncate(t, "SCMP_CMP_GT", 4_294_967_295, "1=yes 4294967297=no")
    }),
    spec("seccomp/lt-64-bit", "config-linux.md#seccomp value", "less-than looks at the upper half", |t| {
        truncate(t, "SCMP_CMP_LT", 4_294_967_296, "1=no 4294967297=yes")
    }),
    spec(
        "seccomp/args-are-anded",
        "config-linux.md#seccomp args",
        "all comparisons of a rule must hold",
        |t| {
            let rule = json!([{
                "names": ["kill"], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 0, "op": "SCMP_CMP_EQ"}]
            }]);
            let b = t.sh("kill -0 1 2>/dev/null || echo denied; kill -WINCH 1 && echo fine; sleep 1 & kill -0 $! && echo fine")?;
            same("output", b.set("/linux/seccomp", profile(rule)).output()?.as_str(), "denied\nfine\nfine")
        },
    ),
    spec(
        "seccomp/rules-are-ored",
        "config-linux.md#seccomp syscalls",
        "two rules for one call both hold",
        |t| {
            let one = |mode: u32| json!({"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": mode, "op": "SCMP_CMP_EQ"}]});
            chmod_with(t, json!([one(0o644), one(0o755)]), "0644=no 0600=yes 0755=no")
        },
    ),
    spec(
        "seccomp/unknown-syscall",
        "CLIENTS: seccomp",
        "a name that this kernel or runtime does not know is passed over",
        |t| {
            let rule = json!([{"names": ["ponies_ioctl"], "action": "SCMP_ACT_ERRNO"}]);
            t.bundle()?.set("/linux/seccomp", profile(rule)).run()?.ok().map(drop)
        },
    ),
    spec("seccomp/unknown-action", "config.md#valid-values", "an unknown action is an error", |t| {
        t.bundle()?
            .set("/linux/seccomp", profile(json!([{"names": ["mkdir"], "action": "SCMP_ACT_PONIES"}])))
            .refused("SCMP_ACT_PONIES")
            .map(drop)
    }),
    spec("seccomp/unknown-default", "config.md#valid-values", "an unknown default action is an error", |t| {
        t.bundle()?
            .set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_PONIES"}))
            .refused("SCMP_ACT_PONIES")
            .map(drop)
    }),
    spec("seccomp/unknown-op", "config.md#valid-values", "an unknown comparison is an error", |t| {
        let args = json!([{"index": 0, "value": 1, "op": "SCMP_CMP_PONIES"}]);
        t.bundle()?
            .set(
                "/linux/seccomp",
                profile(json!([{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": args}])),
            )
            .refused("SCMP_CMP_PONIES")
            .map(drop)
    }),
    spec(
        "seccomp/unknown-architecture",
        "config.md#valid-values",
        "an unknown architecture is an error",
        |t| {
            let b = t.bundle()?.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PONIES"], "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}));
            b.refused("SCMP_ARCH_PONIES").map(drop)
        },
    ),
    spec("seccomp/unknown-flag", "config.md#valid-values", "an unknown flag is an error", |t| {
        let b = t.bundle()?.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_PONIES"], "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}));
        b.refused("SECCOMP_FILTER_FLAG_PONIES").map(drop)
    }),
    spec("seccomp/argument-index", "config.md#valid-values", "an argument index above 5 is an error", |t| {
        let args = json!([{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]);
        t.bundle()?
            .set(
                "/linux/seccomp",
                profile(json!([{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": args}])),
            )
            .refused("index 6")
            .map(drop)
    }),
    strict("seccomp/no-names", "config-linux.md#seccomp names", "a rule without names is an error", |t| {
        t.bundle()?
            .set("/linux/seccomp", profile(json!([{"names": [], "action": "SCMP_ACT_ERRNO"}])))
            .refused("no names")
            .map(drop)
    }),
    strict(
        "seccomp/errno-for-kill",
        "config-linux.md#seccomp errnoRet",
        "errnoRet for an action that has none is an error",
        |t| {
            let rule = json!([{"names": ["mkdir"], "action": "SCMP_ACT_KILL", "errnoRet": 5}]);
            t.bundle()?.set("/linux/seccomp", profile(rule)).refused("errnoRet for SCMP_ACT_KILL").map(drop)
        },
    ),
    strict(
        "seccomp/default-errno-for-kill",
        "config-linux.md#seccomp defaultErrnoRet",
        "defaultErrnoRet for an action that has none is an error",
        |t| {
            let mut profile = profile(json!([{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]));
            profile["defaultErrnoRet"] = json!(5);
            t.bundle()?.set("/linux/seccomp", profile).refused("defaultErrnoRet for SCMP_ACT_ALLOW").map(drop)
        },
    ),
    spec(
        "seccomp/architectures",
        "config-linux.md#seccomp architectures",
        "with a list of architectures the native rule holds",
        |t| {
            let mut profile = profile(json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]));
            profile["architectures"] =
                json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"]);
            same(
                "output",
                t.sh("mkdir /tmp/x 2>/dev/null || echo denied")?
                    .set("/linux/seccomp", profile)
                    .output()?
                    .as_str(),
                "denied",
            )
        },
    ),
    spec("seccomp/flags", "config-linux.md#seccomp flags", "the kernel's flags are accepted", |t| {
        let mut profile = profile(json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]));
        profile["flags"] =
            json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]);
        same(
            "output",
            t.sh("mkdir /tmp/x 2>/dev/null || echo denied")?
                .set("/linux/seccomp", profile)
                .output()?
                .as_str(),
            "denied",
        )
    }),
    spec(
        "seccomp/without-no-new-privileges",
        "config-linux.md#seccomp",
        "the filter holds for another user without noNewPrivileges",
        |t| {
            let b = t
                .sh("mkdir /tmp/x 2>/dev/null || echo denied")?
                .set("/process/noNewPrivileges", json!(false));
            std::fs::set_permissions(b.rootfs("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
            let b =
                deny(b.set("/process/user", json!({"uid": 1000, "gid": 1000})), "SCMP_ACT_ERRNO", json!({}));
            same("output", b.output()?.as_str(), "denied")
        },
    ),
    spec("seccomp/in-exec", "config-linux.md#seccomp", "the filter holds for processes of exec", |t| {
        let c = deny(t.bundle()?.args(&["sleep", "100"]), "SCMP_ACT_ERRNO", json!({})).start()?;
        same("output", c.sh("mkdir /tmp/x 2>/dev/null || echo denied")?.as_str(), "denied")
    }),
    spec("seccomp/docker-size", "CLIENTS: seccomp", "an allow list of Docker's kind runs a shell", |t| {
        let b = t
            .sh("ls / >/dev/null && echo fine")?
            .set("/linux/seccomp", allow_list(&["mkdir"], json!({"defaultErrnoRet": 1})));
        same("output", b.output()?.as_str(), "fine")
    }),
    spec(
        "seccomp/listener",
        "config-linux.md#the-container-process-state",
        "the listener gets one state with its descriptor, metadata and the container's state",
        |t| {
            let (socket, path) = listener(t)?;
            let b = notify(t.sh("mkdir /tmp/x")?, &path, Some("some data"));
            b.write()?;
            t.rt(&["create", "--bundle", &b.dir_text(), &b.id])?.ok()?;
            let pid = t.state(&b.id)?["pid"].as_i64();
            let start = || t.rt(&["start", &b.id])?.ok().map(drop);
            let (bytes, fds) = receive_with_descriptors(&socket, start)?;
            let text = String::from_utf8(bytes)?;
            let message: Value =
                serde_json::from_str(&text).with_context(|| format!("not one JSON object: {text:?}"))?;
            same("fds", &message["fds"], &json!(["seccompFd"]))?;
            same("number of descriptors", fds.len(), 1)?;
            let link =
                std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fds[0])))?;
            ensure!(link.to_string_lossy().contains("seccomp"), "the descriptor is {}", link.display());
            same("metadata", message["metadata"].as_str(), Some("some data"))?;
            same("pid", message["pid"].as_i64(), pid)?;
            same("state.id", message["state"]["id"].as_str(), Some(b.id.as_str()))?;
            same("state.bundle", message["state"]["bundle"].as_str(), Some(b.dir_text().as_str()))?;
            ensure!(
                message["ociVersion"].is_string() && message["state"]["ociVersion"].is_string(),
                "no ociVersion"
            );
            Ok(())
        },
    ),
    spec(
        "seccomp/listener-state-status",
        "config-linux.md#the-container-process-state",
        "its status is creating or created, for the program does not run yet",
        |t| {
            let (socket, path) = listener(t)?;
            let b = notify(t.bundle()?, &path, None);
            b.write()?;
            t.rt(&["create", "--bundle", &b.dir_text(), &b.id])?.ok()?;
            let (bytes, _fds) =
                receive_with_descriptors(&socket, || t.rt(&["start", &b.id])?.ok().map(drop))?;
            let message: Value = serde_json::from_slice(&bytes)?;
            let status = message["state"]["status"].as_str().unwrap_or_default();
            // The filter is loaded during create or during start.
            ensure!(["creating", "created"].contains(&status), "status is {status:?}");
            Ok(())
        },
    ),
    spec(
        "seccomp/listener-missing",
        "config-linux.md#seccomp listenerPath",
        "a listener that does not listen is an error",
        |t| {
            notify(t.bundle()?, "/nonexistent/socket", None).refused("a listener that is not there").map(drop)
        },
    ),
    spec(
        "seccomp/notify-without-path",
        "config-linux.md#seccomp listenerPath",
        "SCMP_ACT_NOTIFY without listenerPath is an error",
        |t| {
            t.bundle()?
                .set("/linux/seccomp", profile(json!([{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}])))
                .refused("no listenerPath")
                .map(drop)
        },
    ),
    spec(
        "seccomp/listener-unused",
        "config-linux.md#seccomp listenerPath",
        "without SCMP_ACT_NOTIFY, listenerPath is ignored",
        |t| {
            let mut profile = profile(json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]));
            profile["listenerPath"] = json!("/nonexistent/socket");
            t.bundle()?.set("/linux/seccomp", profile).run()?.ok().map(drop)
        },
    ),
    strict(
        "seccomp/metadata-without-path",
        "config-linux.md#seccomp listenerMetadata",
        "listenerMetadata without listenerPath is an error",
        |t| {
            let mut profile = profile(json!([{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]));
            profile["listenerMetadata"] = json!("x");
            t.bundle()?.set("/linux/seccomp", profile).refused("metadata without path").map(drop)
        },
    ),
];

fn profile(rules: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})
}

/// A filter with one rule for mkdir.
fn deny<'t>(b: Bundle<'t>, action: &str, more: Value) -> Bundle<'t> {
    let mut rule = json!({"names": ["mkdir", "mkdirat"], "action": action});
    merge(&mut rule, more);
    b.set("/linux/seccomp", profile(json!([rule])))
}

fn notify<'t>(b: Bundle<'t>, path: &str, metadata: Option<&str>) -> Bundle<'t> {
    let mut profile = profile(json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]));
    profile["listenerPath"] = json!(path);
    if let Some(metadata) = metadata {
        profile["listenerMetadata"] = json!(metadata);
    }
    b.set("/linux/seccomp", profile)
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}

fn message(t: &Test, action: &str, more: Value, want: &str) -> Result<()> {
    let text = deny(t.sh("mkdir /tmp/x 2>&1; true")?, action, more).output()?;
    ensure!(text.contains(want), "mkdir says {text:?}");
    Ok(())
}

/// Exit status of mkdir, as a shell sees it.
fn status(t: &Test, action: &str, want: &str) -> Result<()> {
    let text = deny(t.sh("mkdir /tmp/x 2>/dev/null; echo $?")?, action, json!({})).output()?;
    same("status of mkdir", text.lines().last(), Some(want))
}

/// Deny chmod by its mode (argument 1) and say which of three modes work.
fn chmod(t: &Test, op: &str, value: u64, two: Option<u64>, want: &str) -> Result<()> {
    let mut arg = json!({"index": 1, "value": value, "op": op});
    if let Some(two) = two {
        arg["valueTwo"] = json!(two);
    }
    chmod_with(t, json!([{"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": [arg]}]), want)
}

fn chmod_with(t: &Test, rules: Value, want: &str) -> Result<()> {
    x86_64_only()?;
    let script = "for m in 0644 0600 0755; do chmod $m /etc/f 2>/dev/null && echo $m=yes || echo $m=no; done";
    let b = t.sh(script)?.file("etc/f", "")?.set("/linux/seccomp", profile(rules));
    same("modes", b.output()?.replace('\n', " ").as_str(), want)
}

/// Deny ftruncate by its length (argument 1), which has 64 bits.
fn truncate(t: &Test, op: &str, value: u64, want: &str) -> Result<()> {
    x86_64_only()?;
    let rule = json!([{"names": ["ftruncate"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": value, "op": op}]}]);
    let script =
        "for n in 1 4294967297; do truncate -s $n /tmp/f 2>/dev/null && echo $n=yes || echo $n=no; done";
    let b = t.sh(script)?.set("/linux/seccomp", profile(rule));
    same("lengths", b.output()?.replace('\n', " ").as_str(), want)
}

/// These cases know the system calls that busybox makes on this architecture only.
fn x86_64_only() -> Result<()> {
    if cfg!(target_arch = "x86_64") { Ok(()) } else { Err(super::case::skip("needs x86_64")) }
}

/// What a shell needs, plus `more`; everything else is an error.
fn allow_list(more: &[&str], extra: Value) -> Value {
    let base = "access arch_prctl brk capget capset chdir clock_gettime clock_nanosleep clone clone3 close \
        close_range dup dup2 dup3 epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd2 execve execveat exit \
        exit_group faccessat faccessat2 fchdir fchown fcntl fork fstat fstatfs futex getcwd getdents getdents64 \
        getegid geteuid getgid getgroups getpgid getpgrp getpid getppid getrandom getrlimit gettid getuid ioctl \
        kill lseek lstat madvise membarrier mmap mprotect mremap munmap nanosleep newfstatat open openat openat2 \
        pipe pipe2 poll ppoll prctl pread64 prlimit64 pwrite64 read readlink readlinkat readv recvmsg \
        restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend \
        sched_getaffinity sched_yield seccomp sendmsg sendto set_robust_list set_tid_address setgid setgroups \
        setpgid setresgid setresuid setsid setuid sigaltstack socket stat statfs statx tgkill time tkill umask \
        uname vfork wait4 waitid write writev";
    let mut names: Vec<&str> = base.split_whitespace().collect();
    names.extend(more);
    let mut profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]});
    merge(&mut profile, extra);
    profile
}
