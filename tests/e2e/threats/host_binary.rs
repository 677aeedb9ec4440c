//! The runtime's binary on the host cannot be reached by way of a process that joins the container (CVE-2019-5736).

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use harness::{Bed, Bundle, cc, need};

/// A copy of the runtime, so that a failing test destroys only that.
struct Copy {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Copy {
    fn make(bed: &Bed) -> Copy {
        let path = bed.path(&harness::runtime::name());
        fs::copy(harness::runtime::path(), &path).expect("copy the runtime");
        let bytes = fs::read(&path).expect("read the copy");
        Copy { path, bytes }
    }

    #[track_caller]
    fn is_unharmed(&self) {
        assert!(fs::read(&self.path).expect("read the copy") == self.bytes, "the host's binary was changed");
    }

    fn text(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }
}

/// The program of the attacker: with an argument, waits for processes to appear and tries to open and write whatever
/// program each of them executes; without one (as a library or an interpreter), writes its own executable.
const ATTACKER: &str = r##"
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static ino_t mine; static int said;
static void overwrite(int fd, const char *name) {
    char path[64], text[] = "#!/bin/sh\necho pwned\n";
    struct stat st;
    if (fstat(fd, &st) || st.st_ino == mine) return;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    for (int i = 0; i < 200000; i++) {
        int w = open(path, O_WRONLY);
        if (w < 0) { if (i > 2000 && access("/done", F_OK) == 0) break; continue; }
        write(w, text, sizeof text - 1); close(w);
        w = open("/written", O_WRONLY | O_CREAT | O_APPEND, 0644);
        dprintf(w, "%s inode %lu size %ld\n", name, (long)st.st_ino, (long)st.st_size); close(w);
        break;
    }
}
int main(int argc, char **argv) {
    struct stat st; stat("/proc/self/exe", &st); mine = st.st_ino;
    FILE *ready = fopen("/ready", "w"); fprintf(ready, "up\n"); fclose(ready);
    while (access("/done", F_OK)) {
        DIR *proc = opendir("/proc"); struct dirent *e;
        while ((e = readdir(proc))) {
            if (e->d_name[0] < '0' || e->d_name[0] > '9') continue;
            if (atoi(e->d_name) == getpid()) continue;
            char path[64]; snprintf(path, sizeof path, "/proc/%s/exe", e->d_name);
            int fd = open(path, O_RDONLY); if (fd < 0) { snprintf(path, sizeof path, "/proc/%s/exe", e->d_name); continue; }
            overwrite(fd, path); close(fd);
        }
        closedir(proc);
    }
    return 0;
}
"##;

/// A container whose init scans /proc/*/exe and writes to everything that is not its own program.
#[test]
fn a_container_that_writes_to_every_executable_it_sees_does_not_reach_ours() {
    let Some(_) = need::gcc() else { return };
    let bed = Bed::new();
    let copy = Copy::make(&bed);
    let b = bed.bundle();
    cc::compile(ATTACKER, &b.inside("bin/attack"));
    let mut ready = b.fifo("ready");
    // busybox may be hit, it is the container's own; the exec'd program is therefore another copy each time.
    let b = b.args(["/bin/attack"]).remove("/linux/resources");
    let c = b.create();
    c.verb("start").success();
    ready.line();
    for i in 0..30 {
        let name = format!("bin/true{i}");
        fs::copy(b.inside("bin/busybox"), b.inside(&name)).expect("copy busybox");
        let mut command = bed.prefixed_program(&[], &copy.text());
        // What becomes of the container's own program is its own affair.
        harness::finish(command.args(["exec", &c.id, &format!("/{name}"), "true"]));
        copy.is_unharmed();
    }
    fs::write(b.inside("done"), "").expect("tell the attacker");
    c.delete_force().success();
    copy.is_unharmed();
}

fn run_with(copy: &Copy, b: &Bundle<'_>) {
    let id = b.fresh_id();
    b.write(&id);
    let mut command = b.bed.prefixed_program(&[], &copy.text());
    harness::finish(command.arg("run").arg("--bundle").arg(&b.dir).arg(&id));
}

/// `#!/proc/self/exe` as the interpreter: the kernel would execute the runtime's own binary inside the container.
#[test]
fn an_interpreter_or_link_that_names_proc_self_exe_does_not_execute_the_runtime() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let copy = Copy::make(&bed);
    for (name, make) in [
        (
            "script",
            Box::new(|b: &Bundle<'_>| {
                fs::write(b.inside("bin/evil"), "#!/proc/self/exe\n").expect("write");
                fs::set_permissions(b.inside("bin/evil"), fs::Permissions::from_mode(0o755)).expect("chmod");
            }) as Box<dyn Fn(&Bundle<'_>)>,
        ),
        (
            "link",
            Box::new(|b: &Bundle<'_>| symlink("/proc/self/exe", b.inside("bin/evil")).expect("symlink")),
        ),
    ] {
        let b = bed.bundle();
        make(&b);
        let b = b.args(["/bin/evil", "--version"]);
        let id = b.fresh_id();
        b.write(&id);
        let mut command = bed.prefixed_program(&[], &copy.text());
        let out = harness::finish(command.arg("run").arg("--bundle").arg(&b.dir).arg(&id));
        assert!(
            !out.stdout.contains("berth-runtime"),
            "{name}: the runtime itself ran in the container: {out:?}"
        );
        copy.is_unharmed();
        let c = b.args(["sleep", "1000"]).start();
        let mut command = bed.prefixed_program(&[], &copy.text());
        let out = harness::finish(command.args(["exec", &c.id, "/bin/evil", "--version"]));
        assert!(
            !out.stdout.contains("berth-runtime"),
            "{name}: the runtime itself ran in the container: {out:?}"
        );
        copy.is_unharmed();
    }
}

/// Even root of the container with every capability and a writable bind mount of nothing else.
#[test]
fn proc_self_exe_of_the_first_process_is_never_the_host_binary() {
    let Some(_) = need::gcc() else { return };
    let bed = Bed::new();
    let copy = Copy::make(&bed);
    let b = bed.bundle();
    // Opens its parent's and its own executable by every name it can think of, for writing.
    let source = r#"
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
int main(void) {
    const char *names[] = {"/proc/self/exe", "/proc/1/exe", "/proc/thread-self/exe", "/proc/self/task/1/exe"};
    for (int i = 0; i < 4; i++) {
        char link[512] = ""; readlink(names[i], link, sizeof link - 1);
        printf("%s\n", link);
    }
    return 0;
}
"#;
    cc::compile(source, &b.inside("bin/look"));
    let b = b.args(["/bin/look"]);
    run_with(&copy, &b);
    copy.is_unharmed();
    b.run().success().stdout_is("/bin/look\n/bin/look\n/bin/look\n/bin/look\n");
}

/// A process of the container may not look into the runtime's process while that joins: not its memory, not its
/// descriptors, not its working directory.
#[test]
fn a_joining_process_cannot_be_inspected() {
    let Some(_) = need::gcc() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let source = r#"
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
/* Report every process whose working directory or descriptors lead to a directory that is not in this root. */
int main(void) {
    struct stat root; stat("/", &root);
    FILE *ready = fopen("/ready", "w"); fprintf(ready, "up\n"); fclose(ready);
    int found = open("/found", O_WRONLY | O_CREAT | O_APPEND, 0644);
    while (access("/done", F_OK)) {
        DIR *proc = opendir("/proc"); struct dirent *e;
        while ((e = readdir(proc))) {
            int pid = atoi(e->d_name); char path[80], target[512];
            if (pid < 2) continue;
            for (int fd = -2; fd < 40; fd++) {
                if (fd == -2) snprintf(path, sizeof path, "/proc/%d/cwd", pid);
                else if (fd == -1) snprintf(path, sizeof path, "/proc/%d/root", pid);
                else snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
                int d = open(path, O_RDONLY | O_DIRECTORY | O_NONBLOCK);
                if (d < 0) continue;
                /* A host directory has /etc/hostname-of-the-host beside it; ask for a path only the host has. */
                if (faccessat(d, "work-of-the-host", F_OK, 0) == 0 || faccessat(d, HOSTPATH, F_OK, 0) == 0)
                    dprintf(found, "%s\n", path);
                close(d);
            }
        }
        closedir(proc);
    }
    return 0;
}
"#;
    let mark = bed.path("only-the-host-has-this");
    fs::write(&mark, "").expect("write");
    let relative = mark.to_string_lossy().trim_start_matches('/').to_owned();
    cc::compile(&source.replace("HOSTPATH", &format!("{relative:?}")), &b.inside("bin/look"));
    let mut ready = b.fifo("ready");
    let b = b.args(["/bin/look"]);
    let c = b.create();
    c.verb("start").success();
    ready.line();
    for _ in 0..20 {
        let mut command = bed.command();
        harness::finish(command.current_dir("/").args(["exec", &c.id, "true"])).success();
    }
    fs::write(b.inside("done"), "").expect("tell the attacker");
    c.wait();
    assert_eq!(fs::read_to_string(b.inside("found")).expect("the finds"), "");
}
