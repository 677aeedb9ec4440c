//! What confines the container's first process confines every process that exec adds.

use harness::{Bed, cc, json, need};

#[test]
fn no_new_privileges() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let show = ["grep", "NoNewPrivs", "/proc/self/status"];
    for on in [true, false] {
        let b = bed.bundle().set("/process/noNewPrivileges", on);
        let expected = format!("NoNewPrivs:\t{}\n", u8::from(on));
        let c = b.idle();
        c.exec(&show).success().stdout_is(&expected);
        if !on {
            c.with("exec", &["--no-new-privs"], &show).success().stdout_is("NoNewPrivs:\t1\n");
        }
        bed.bundle().set("/process/noNewPrivileges", on).args(show).run().success().stdout_is(&expected);
    }
}

/// A set-user-id program gives nothing.
#[test]
fn set_user_id_programs_give_nothing() {
    let Some(_) = need::gcc() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let source = "#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf(\"%d\\n\", geteuid()); return 0; }\n";
    cc::compile(source, &b.inside("bin/who"));
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(b.inside("bin/who"), std::fs::Permissions::from_mode(0o4755)).expect("chmod");
    let c = b.idle();
    c.with("exec", &["--user", "1000"], &["/bin/who"]).success().stdout_is("1000\n");
}

/// mkdir(2) by the native table, by int 0x80 and by the x32 table, and the answer of each.
const THREE_TABLES: &str = r#"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static char *low;
static long native(void) { long r; asm volatile("syscall" : "=a"(r) : "0"(83L), "D"(low), "S"(0755L) : "rcx", "r11", "memory"); return r; }
static long ia32(void) { long r; asm volatile("int $0x80" : "=a"(r) : "0"(39L), "b"(low), "c"(0755L) : "memory", "r8", "r9", "r10", "r11"); return r; }
static long x32(void) { long r; asm volatile("syscall" : "=a"(r) : "0"(83L | 0x40000000L), "D"(low), "S"(0755L) : "rcx", "r11", "memory"); return r; }
static void attempt(const char *name, long (*call)(void)) {
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) { long r = call(); _exit(r == 0 ? 100 : -r & 127); }
    int status; waitpid(pid, &status, 0);
    if (WIFSIGNALED(status)) printf("%s killed\n", name);
    else if (WEXITSTATUS(status) == 100) printf("%s MADE IT\n", name);
    else printf("%s errno %d\n", name, WEXITSTATUS(status));
}
int main(void) {
    low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    snprintf(low, 4096, "/tmp/made");
    attempt("native", native); attempt("ia32", ia32); attempt("x32", x32);
    return 0;
}
"#;

#[test]
fn seccomp_holds_for_every_system_call_table_in_run_and_exec() {
    let Some(_) = need::gcc() else { return };
    let bed = Bed::new();
    for (arches, ia32) in [
        (json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]), "errno 1"),
        (json!(["SCMP_ARCH_X86_64"]), "killed"),
    ] {
        let b = bed.bundle().set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": arches,
                   "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}),
        );
        cc::compile(THREE_TABLES, &b.inside("bin/tables"));
        let check = |out: harness::Output, verb: &str| {
            let lines: Vec<_> = out.stdout.lines().collect();
            assert_eq!(lines[0], "native errno 1", "{verb}");
            assert_eq!(lines[1], format!("ia32 {ia32}"), "{verb}");
            // Without the x32 table in the kernel it is ENOSYS (38) even where the filter lets it through.
            assert!(
                ["x32 errno 1", "x32 errno 38", "x32 killed"].contains(&lines[2]),
                "{verb}: {}",
                lines[2]
            );
            assert!(!b.inside("tmp/made").exists(), "{verb}: the directory was made");
        };
        let c = {
            let shape = &b;
            let id = shape.fresh_id();
            bed.adopt(&id);
            let mut config = shape.config.clone();
            config["process"]["args"] = json!(["/bin/tables"]);
            config["linux"]["cgroupsPath"] = json!(format!("/{id}"));
            shape.write_text(&config.to_string());
            let bundle = shape.dir.to_string_lossy().into_owned();
            check(bed.call(&["run", "--bundle", &bundle, &id]).success(), "run");
            let id = shape.fresh_id();
            bed.adopt(&id);
            config["process"]["args"] = json!(["sleep", "1000"]);
            config["linux"]["cgroupsPath"] = json!(format!("/{id}"));
            shape.write_text(&config.to_string());
            bed.call(&["run", "--detach", "--bundle", &bundle, &id]).success();
            id
        };
        check(bed.call(&["exec", &c, "/bin/tables"]).success(), "exec");
    }
}

/// Filters are counted, so that a missing one is seen even where it would change nothing.
#[test]
fn exec_has_the_filter() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
               "syscalls": [{"names": ["reboot"], "action": "SCMP_ACT_ERRNO"}]}),
    );
    for nnp in [true, false] {
        let b = bed.bundle().set("/linux/seccomp", b.config["linux"]["seccomp"].clone());
        let c = b.set("/process/noNewPrivileges", nnp).idle();
        c.exec(&["grep", "^Seccomp:", "/proc/self/status"]).success().stdout_is("Seccomp:\t2\n");
        assert_eq!(harness::host::status(c.pid(), "Seccomp"), "2");
        // Also for another user, without and with capabilities of its own.
        let out = c.with("exec", &["--user", "1000"], &["grep", "^Seccomp:", "/proc/self/status"]);
        out.success().stdout_is("Seccomp:\t2\n");
    }
}

#[test]
fn device_rules() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    // The nodes are made by the container, which may (in its /dev: /tmp may be mounted nodev); opening them is what the rules forbid or allow.
    let b = bed.bundle().capabilities(&["CAP_MKNOD"]).set(
        "/linux/resources/devices",
        json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 237, "access": "r"}]),
    );
    let script = "cd /dev; rm -f mem loop; mknod mem c 1 1 && (exec 3<mem) 2>&1; mknod loop c 10 237 && (exec 3<loop) && echo read; \
        (exec 3>loop) 2>&1; echo hi >/dev/null && echo null";
    let expected = "sh: can't open mem: Operation not permitted\nread\nsh: can't create loop: Operation not permitted\nnull\n";
    let b = b.sh(script);
    b.run().success().stdout_is(expected);
    b.idle().exec_sh(script).success().stdout_is(expected);
}

#[test]
fn environment_of_the_caller_stays_outside() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set("/process/env", json!(["PATH=/bin", "A=1"])).args(["env"]);
    let id = b.fresh_id();
    let mut command = b.command("run", &[], &id);
    let mut lines: Vec<_> =
        harness::finish(command.env("SECRET", "x")).success().stdout.lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["A=1", "HOME=/root", "PATH=/bin"]);
    let c = b.idle();
    let mut command = bed.command();
    let out = harness::finish(command.env("SECRET", "x").args(["exec", &c.id, "env"])).success();
    let mut lines: Vec<_> = out.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=1", "HOME=/root", "PATH=/bin"]);
}

#[test]
fn user_namespace() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().user_namespace().idle();
    c.exec(&["cat", "/proc/self/uid_map"]).success().stdout_is("         0     100000      65536\n");
    c.exec_sh("id -u; touch /mine; stat -c %u /mine").success().stdout_is("0\n0\n");
    use std::os::unix::fs::MetadataExt;
    let made = std::fs::metadata(c.bundle.join("rootfs/mine")).expect("made");
    assert_eq!((made.uid(), made.gid()), (100_000, 100_000));
    let file = c.exec(&["cat", "/proc/self/gid_map"]).success();
    file.stdout_is("         0     100000      65536\n");
}

/// The session keyring of the caller is not the container's.
#[test]
fn keyring() {
    let Some(_) = need::gcc() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let source = r#"
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) { /* KEYCTL_GET_KEYRING_ID of KEY_SPEC_SESSION_KEYRING */
    printf("%ld\n", syscall(SYS_keyctl, 0, -3, 0)); return 0; }
"#;
    cc::compile(source, &b.inside("bin/ring"));
    let probe = bed.path("tmp/ring");
    cc::compile(source, &probe);
    let ours = harness::finish(&mut std::process::Command::new(&probe)).success().stdout;
    let first = b.args(["/bin/ring"]);
    let c = first.create();
    c.verb("start").success();
    c.wait();
    let of_run = c.stdout();
    assert_ne!(of_run, ours);
    let b = bed.bundle();
    cc::compile(source, &b.inside("bin/ring"));
    let b = b.sh("/bin/ring; exec sleep 1000");
    let mut ready = b.fifo("ready");
    let c = b.sh("/bin/ring; echo up > /ready; exec sleep 1000").start();
    ready.line();
    let of_exec = c.exec(&["/bin/ring"]).success().stdout;
    assert_ne!(of_exec, ours);
    assert_eq!(of_exec, c.stdout(), "exec is in the container's session keyring");
    std::fs::remove_file(&probe).expect("remove");
}

#[test]
fn limits_umask_and_oom_score() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed
        .bundle()
        .set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "hard": 77, "soft": 66}, {"type": "RLIMIT_CORE", "hard": 0, "soft": 0}]))
        .set("/process/oomScoreAdj", 321)
        .set("/process/user/umask", 0o77);
    let script = "ulimit -Hn; ulimit -n; cat /proc/self/oom_score_adj; umask";
    let expected = "77\n66\n321\n0077\n";
    let b = b.sh(script);
    b.run().success().stdout_is(expected);
    b.idle().exec_sh(script).success().stdout_is(expected);
}

#[test]
fn an_unmapped_or_hidden_process_cannot_be_seen() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    let out = c.exec_sh("ls -d /proc/[0-9]* | wc -l").success();
    let seen: u32 = out.stdout.trim().parse().expect("a number");
    assert!(seen <= 4, "the container sees {seen} processes");
}
