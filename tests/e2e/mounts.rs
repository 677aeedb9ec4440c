//! Mounts and the root file system, as the container sees them.

use std::fs;

use harness::{Bed, json, need};

fn options_of(stdout: &str, target: &str) -> String {
    stdout
        .lines()
        .map(|l| l.split(' ').collect::<Vec<_>>())
        .rfind(|f| f[4] == target)
        .map(|f| format!("{} {}", f[5], f.last().unwrap_or(&"")))
        .unwrap_or_else(|| panic!("{target} is not mounted: {stdout}"))
}

#[test]
fn mount_options_hold() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let source = bed.path("data");
    fs::create_dir(&source).expect("mkdir");
    let source = source.to_string_lossy().into_owned();
    let b = bed
        .bundle()
        .mount("/a", "tmpfs", "tmpfs", &["nosuid", "nodev", "noexec", "size=64k", "mode=700", "ro"])
        .mount("/b", "bind", &source, &["bind", "ro", "nosuid"])
        .mount("/c", "bind", &source, &["rbind", "noatime"])
        .mount("/deep/er/d", "tmpfs", "tmpfs", &["mode=1777", "nr_inodes=50"]);
    let out = b.args(["cat", "/proc/self/mountinfo"]).run().success();
    let a = options_of(&out.stdout, "/a");
    for word in ["ro", "nosuid", "nodev", "noexec", "size=64k", "mode=700"] {
        assert!(a.split([',', ' ']).any(|w| w == word), "{word} of /a: {a}");
    }
    let bind = options_of(&out.stdout, "/b");
    assert!(bind.starts_with("ro,nosuid"), "{bind}");
    let c = options_of(&out.stdout, "/c");
    assert!(c.starts_with("rw") && c.contains("noatime"), "{c}");
    assert!(options_of(&out.stdout, "/deep/er/d").contains("nr_inodes=50"));
}

#[test]
fn later_mounts_lie_on_earlier_ones() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().mount("/a", "tmpfs", "tmpfs", &[]).mount("/a/b", "tmpfs", "tmpfs", &[]);
    b.sh("touch /a/b/x && mount | grep -c ' /a'").run().success().stdout_is("2\n");
}

#[test]
fn the_root_can_be_read_only() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set("/root/readonly", true).sh("(: > /file) 2>&1; touch /dev/shm/x && echo shm");
    b.run().success().stdout_is("sh: can't create /file: Read-only file system\nshm\n");
}

/// runtime-spec, config-linux.md, rootfsPropagation: "sets the rootfs's mount propagation".
#[test]
fn mounts_of_the_container_do_not_reach_the_host() {
    let Some(_) = need::root() else { return };
    for propagation in [None, Some("slave"), Some("private"), Some("rslave"), Some("rprivate")] {
        let bed = Bed::new();
        let mut b = bed.bundle().capabilities(&["CAP_SYS_ADMIN"]);
        if let Some(word) = propagation {
            b = b.set("/linux/rootfsPropagation", word);
        }
        let mut ready = b.fifo("ready");
        let c = b.sh("mount -t tmpfs x /mnt && echo mounted > /ready; exec sleep 1000").start();
        assert_eq!(ready.line(), "mounted");
        assert_eq!(harness::leaks::mounts(&bed.unique), Vec::<String>::new());
        c.delete_force().success();
    }
}

#[test]
fn the_recursive_read_only_attribute_reaches_submounts() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let tree = bed.path("tree");
    fs::create_dir_all(tree.join("sub")).expect("mkdir");
    let sub = tree.join("sub").to_string_lossy().into_owned();
    harness::bed::host("mount", &["-t", "tmpfs", "tmpfs", &sub]);
    let source = tree.to_string_lossy().into_owned();
    let b = bed.bundle().mount("/a", "bind", &source, &["rbind", "rro"]).mount(
        "/b",
        "bind",
        &source,
        &["rbind", "ro"],
    );
    let out = b.sh("(: > /a/x) 2>/dev/null || echo a; (: > /a/sub/x) 2>/dev/null || echo asub; (: > /b/sub/x) && echo bsub").run();
    harness::bed::host("umount", &[&sub]);
    out.success().stdout_is("a\nasub\nbsub\n");
}

#[test]
fn default_devices_and_links_are_there() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let script = "for n in null zero full random urandom tty; do stat -c '%n %F %t:%T %a' /dev/$n; done; \
        for l in fd stdin stdout stderr ptmx; do echo $l $(readlink /dev/$l); done";
    let out = bed.bundle().sh(script).run().success();
    for line in [
        "/dev/null character special file 1:3 666",
        "/dev/zero character special file 1:5 666",
        "/dev/full character special file 1:7 666",
        "/dev/random character special file 1:8 666",
        "/dev/urandom character special file 1:9 666",
        "/dev/tty character special file 5:0 666",
        "fd /proc/self/fd",
        "stdin /proc/self/fd/0",
        "stdout /proc/self/fd/1",
        "stderr /proc/self/fd/2",
        "ptmx pts/ptmx",
    ] {
        assert!(out.stdout.lines().any(|l| l == line), "{line}: {}", out.stdout);
    }
}

#[test]
fn devices_of_the_config_are_made() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let devices = json!([
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7, "gid": 8},
        {"path": "/dev/deep/fifo", "type": "p", "fileMode": 0o600}
    ]);
    let b = bed.bundle().set("/linux/devices", devices);
    let script = "stat -c '%F %t:%T %a %u:%g' /dev/mine; stat -c '%F %a' /dev/deep/fifo";
    b.sh(script).run().success().stdout_is("character special file 1:3 640 7:8\nfifo 600\n");
}

#[test]
fn tmpcopyup_copies_what_was_there() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    fs::create_dir_all(b.inside("etc/conf.d/sub")).expect("mkdir");
    fs::write(b.inside("etc/conf.d/sub/file"), "kept\n").expect("write");
    std::os::unix::fs::symlink("sub/file", b.inside("etc/conf.d/link")).expect("symlink");
    let b = b.mount("/etc/conf.d", "tmpfs", "tmpfs", &["tmpcopyup"]);
    let b = b.sh("cat /etc/conf.d/sub/file; readlink /etc/conf.d/link; echo new > /etc/conf.d/new; stat -f -c %T /etc/conf.d");
    b.run().success().stdout_is("kept\nsub/file\ntmpfs\n");
    assert!(!b.inside("etc/conf.d/new").exists());
}

#[test]
fn idmapped_bind_mounts() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let source = bed.path("data");
    fs::create_dir(&source).expect("mkdir");
    fs::write(source.join("file"), "x").expect("write");
    let map = json!([{"containerID": 0, "hostID": 0, "size": 65_536}]);
    let mount = json!({"destination": "/data", "type": "bind", "source": source.to_string_lossy(), "options": ["bind", "idmap"],
        "uidMappings": [{"containerID": 0, "hostID": 5000, "size": 100}], "gidMappings": map});
    let b = bed.bundle().push("/mounts", mount);
    let out = b.args(["stat", "-c", "%u:%g", "/data/file"]).run();
    out.success().stdout_is("5000:0\n");
}

#[test]
fn cgroups_are_seen_from_the_container() {
    let Some(_) = need::v1() else { return };
    let bed = Bed::new();
    let b = bed.bundle().set("/linux/resources/pids", json!({"limit": 33}));
    let script = "cat /sys/fs/cgroup/pids/pids.max; (echo 5 > /sys/fs/cgroup/pids/pids.max) 2>&1; ls -d /sys/fs/cgroup/memory";
    let out = b.sh(script).run().success();
    assert!(out.stdout.starts_with("33\n"), "{out:?}");
    assert!(out.stdout.contains("Read-only file system"), "{out:?}");
}

#[test]
fn no_pivot_works_and_the_host_stays_outside() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("ls /; cd /../../..; ls -d only-here");
    fs::create_dir(b.inside("only-here")).expect("mkdir");
    let id = b.fresh_id();
    let out = harness::finish(&mut b.command("run", &["--no-pivot"], &id)).success();
    assert!(out.stdout.ends_with("only-here\n"), "{out:?}");
}
