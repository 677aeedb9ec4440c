//! Descriptors and working directories of the host don't get into a container (CVE-2016-9962, CVE-2024-21626).

use std::os::unix::fs::symlink;

use harness::{Bed, need};

const LIST: &str = "cd /proc/self/fd; for f in *; do test -e $f && echo $f; done; true";

/// The caller leaves a directory and a file of the host open, without close-on-exec.
const WITH_OPEN: &str = "exec 3</ 4</etc/passwd 7</ 9</etc; exec \"$@\"";

#[test]
fn run_and_create_leave_only_standard_descriptors_open() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh(LIST);
    let id = b.fresh_id();
    b.write(&id);
    let mut command = bed.prefixed(&["bash", "-c", WITH_OPEN, "bash"]);
    harness::finish(command.arg("run").arg("--bundle").arg(&b.dir).arg(&id)).success().stdout_is("0\n1\n2\n");
}

#[test]
fn exec_leaves_only_standard_descriptors_open() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    let mut command = bed.prefixed(&["bash", "-c", WITH_OPEN, "bash"]);
    harness::finish(command.args(["exec", &c.id, "sh", "-c", LIST])).success().stdout_is("0\n1\n2\n");
}

#[test]
fn preserved_descriptors_are_counted_from_three() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh(LIST);
    let id = b.fresh_id();
    b.write(&id);
    let script = "exec 3</etc/passwd 4</etc/passwd 7</ 9</etc; exec \"$@\"";
    let mut command = bed.prefixed(&["bash", "-c", script, "bash"]);
    let command = command.arg("run").arg("--bundle").arg(&b.dir).args(["--preserve-fds", "2", &id]);
    harness::finish(command).success().stdout_is("0\n1\n2\n3\n4\n");
}

/// A descriptor that is not open cannot be preserved; the one that runtimes use for themselves must not fill its place.
#[test]
fn preserving_descriptors_that_are_not_open_leaks_none_of_ours() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    let out = c.with("exec", &["--preserve-fds", "5"], &["sh", "-c", LIST]);
    assert!(out.code != Some(0) || out.stdout == "0\n1\n2\n", "descriptors leak: {out:?}");
}

/// Every number that a directory of the host might have in the runtime's descriptor table.
#[test]
fn a_working_directory_by_way_of_a_descriptor_is_refused() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    for n in 3..20 {
        for form in ["/proc/self/fd", "/proc/thread-self/fd", "/proc/1/fd", "/dev/fd"] {
            if form != "/proc/self/fd" && n % 4 != 0 {
                continue;
            }
            let b = bed.bundle().set("/process/cwd", format!("{form}/{n}")).sh("pwd; ls");
            let out = b.run();
            assert!(out.code == Some(1) && out.stdout.is_empty(), "cwd {form}/{n}: {out:?}");
        }
    }
    bed.is_clean();
}

#[test]
fn exec_with_a_working_directory_outside_is_refused() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    for n in 3..12 {
        symlink(format!("/proc/self/fd/{n}"), b.inside(&format!("cwd{n}"))).expect("symlink");
    }
    let c = b.idle();
    for n in 3..12 {
        for cwd in [format!("/proc/self/fd/{n}"), format!("/cwd{n}"), format!("/proc/self/fd/{n}/../../..")] {
            // The caller's own descriptors are there to be taken, too.
            let mut command = bed.prefixed(&["bash", "-c", WITH_OPEN, "bash"]);
            let out = harness::finish(command.args(["exec", "--cwd", &cwd, &c.id, "sh", "-c", "pwd; ls"]));
            assert!(out.code == Some(255) && out.stdout.is_empty(), "cwd {cwd}: {out:?}");
        }
    }
}

/// The same through a link in the image, as the config's own cwd.
#[test]
fn a_link_as_working_directory_does_not_lead_out() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    for n in 3..16 {
        let b = bed.bundle();
        symlink(format!("/proc/self/fd/{n}"), b.inside("cwd")).expect("symlink");
        let out = b.set("/process/cwd", "/cwd").sh("pwd; ls").run();
        assert!(out.code == Some(1) && out.stdout.is_empty(), "descriptor {n}: {out:?}");
    }
    bed.is_clean();
}

/// With --no-pivot the host's root would still be above the container's.
#[test]
fn the_host_is_not_above_the_root() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("cd /../../../..; ls -d work-of-the-container; cat /proc/self/mountinfo | wc -l");
    std::fs::create_dir(b.inside("work-of-the-container")).expect("mkdir");
    let out = b.run().success();
    assert!(out.stdout.starts_with("work-of-the-container\n"), "{out:?}");
    let mounts: usize = out.stdout.lines().last().and_then(|l| l.parse().ok()).expect("a number");
    assert!(mounts < 40, "the mounts of the host are still there: {out:?}");
}
