//! Masks cover the real file, and writes go to the real procfs (CVE-2019-16884, CVE-2019-19921, CVE-2023-27561,
//! CVE-2023-28642, CVE-2025-31133, CVE-2025-52565, CVE-2025-52881).

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};

use harness::{Bed, json, need};

/// The image brings /proc or /sys as a link to a folder that it has prepared.
#[test]
fn a_proc_or_sys_that_is_a_link_is_refused_by_name() {
    let Some(_) = need::ours() else { return };
    for name in ["proc", "sys"] {
        let bed = Bed::new();
        let b = bed.bundle();
        fs::remove_dir(b.inside(name)).expect("rmdir");
        fs::create_dir_all(b.inside("fake/self/attr")).expect("mkdir");
        symlink("/fake", b.inside(name)).expect("symlink");
        let out = b.args(["echo", "ran"]).run().exits(1).stdout_is("").fails_in_one_line();
        out.stderr_has(&format!("/{name}"));
        bed.is_clean();
    }
}

/// A bind mount over /proc would give a fake one.
#[test]
fn mounts_over_proc_and_sys_are_refused() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    fs::create_dir(bed.path("fake")).expect("mkdir");
    let fake = bed.path("fake").to_string_lossy().into_owned();
    for (destination, kind) in [
        ("/proc", "tmpfs"),
        ("/proc", "bind"),
        ("/proc/self", "tmpfs"),
        ("/proc/self/attr", "tmpfs"),
        ("/proc/sys", "bind"),
        ("/proc/../proc/self", "tmpfs"),
        ("/proc/1/../self", "bind"),
        ("/mnt/../proc", "tmpfs"),
        ("//proc//sys", "tmpfs"),
        ("/proc/sys/kernel", "bind"),
    ] {
        let b = bed.bundle();
        let b = match kind {
            "bind" => b.mount(destination, "bind", &fake, &["bind"]),
            _ => b.mount(destination, "tmpfs", "tmpfs", &[]),
        };
        let out = b.args(["echo", "ran"]).run();
        assert!(out.code == Some(1) && out.stdout.is_empty(), "{kind} on {destination}: {out:?}");
        bed.is_clean();
    }
}

/// What LXCFS and engines mount there remains possible.
#[test]
fn allowed_mounts_inside_proc_work() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    fs::write(bed.path("uptime"), "1.00 1.00\n").expect("write");
    let source = bed.path("uptime").to_string_lossy().into_owned();
    let b = bed.bundle().mount("/proc/uptime", "bind", &source, &["bind", "ro"]);
    b.args(["cat", "/proc/uptime"]).run().success().stdout_is("1.00 1.00\n");
}

/// Through a link of the image, too.
#[test]
fn a_link_does_not_lead_a_mount_into_proc() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    for link in ["/proc/self/attr", "/proc/sys", "../../../proc/self"] {
        let b = bed.bundle();
        symlink(link, b.inside("data")).expect("symlink");
        let out = b.mount("/data", "tmpfs", "tmpfs", &[]).args(["echo", "ran"]).run();
        assert!(out.code == Some(1) && out.stdout.is_empty(), "/data -> {link}: {out:?}");
        bed.is_clean();
    }
}

const LOOK: &str = "cat /proc/kcore | wc -c; wc -c < /proc/keys; ls /proc/acpi /sys/firmware 2>/dev/null | grep -v : | wc -w";

#[test]
fn masked_paths_are_empty_in_run_and_exec() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh(LOOK);
    b.run().success().stdout_is("0\n0\n0\n");
    b.idle().exec_sh(LOOK).success().stdout_is("0\n0\n0\n");
}

/// CVE-2025-31133: the container's /dev/null is something else when the masks are made.
#[test]
fn masks_do_not_trust_dev_null_of_the_container() {
    // Of a runtime that fails, the host's own core_pattern would be the victim.
    let Some(_) = need::ours() else { return };
    // /dev comes from the image, where null is a link to what the attacker wants to have bound over the mask.
    for victim in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"] {
        let bed = Bed::new();
        let b = bed.bundle();
        symlink(victim, b.inside("dev/null")).expect("symlink");
        let mut config = b.config.clone();
        config["mounts"]
            .as_array_mut()
            .expect("mounts")
            .retain(|m| !m["destination"].as_str().unwrap_or("").starts_with("/dev"));
        config["linux"]["maskedPaths"] = json!(["/proc/keys"]);
        config["linux"]["readonlyPaths"] = json!([]);
        let mut b = b;
        b.config = config;
        let b = b.sh("wc -c < /proc/keys; stat -c %F /proc/keys; (echo x > /proc/keys) 2>/dev/null; true");
        let before = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
        let out = b.run();
        assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern"), before);
        // Either refused, or masked by a real null device.
        if out.code == Some(0) {
            out.stdout_is("0\ncharacter special file\n");
        }
        bed.is_clean();
    }
}

#[test]
fn a_masked_path_that_is_not_there_is_fine_and_one_with_dots_is_confined() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    fs::write(bed.path("outside"), "outside\n").expect("write");
    fs::write(b.inside("etc/secret"), "secret\n").expect("write");
    let up = format!("/../../../../../../../..{}", bed.path("outside").display());
    let b = b.set("/linux/maskedPaths", json!(["/nothing", "/etc/secret", up]));
    b.args(["cat", "/etc/secret"]).run().success().stdout_is("");
    assert_eq!(fs::read_to_string(bed.path("outside")).expect("outside"), "outside\n");
}

/// A masked or read-only path is never followed out through a link; the link's own target inside is what counts.
#[test]
fn masks_through_links_stay_inside() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    fs::write(bed.path("outside"), "outside\n").expect("write");
    symlink(bed.path("outside"), b.inside("etc/link")).expect("symlink");
    let b =
        b.set("/linux/maskedPaths", json!(["/etc/link"])).set("/linux/readonlyPaths", json!(["/etc/link"]));
    let out = b.args(["echo", "ran"]).run();
    assert!(out.code.is_some(), "{out:?}");
    fs::write(bed.path("outside"), "still writable\n").expect("the host's file is not read-only or masked");
    bed.is_clean();
}

#[test]
fn read_only_paths_are_read_only() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("(echo 1 > /proc/sys/net/ipv4/ip_forward) 2>&1; (echo core > /proc/sys/kernel/core_pattern) 2>&1; true");
    let out = b.run().success();
    assert_eq!(out.stdout.matches("Read-only file system").count(), 2, "{out:?}");
}

/// The image's /dev is a link to somewhere; nothing is made there.
#[test]
fn a_dev_that_is_a_link_makes_nothing_outside() {
    let Some(_) = need::root() else { return };
    for relative in [false, true] {
        let bed = Bed::new();
        let b = bed.bundle();
        let outside = bed.path("outside");
        fs::create_dir(&outside).expect("mkdir");
        fs::remove_dir(b.inside("dev")).expect("rmdir");
        let target = if relative { "../../outside".into() } else { outside.clone() };
        symlink(target, b.inside("dev")).expect("symlink");
        // Both ways: /dev as a mount of its own, and without one.
        let out = b.args(["echo", "ran"]).run();
        assert!(out.code.is_some(), "{out:?}");
        assert_eq!(harness::leaks::entries(&outside), Vec::<String>::new());
        let mut b = bed.bundle();
        fs::remove_dir(b.inside("dev")).expect("rmdir");
        symlink(&outside, b.inside("dev")).expect("symlink");
        let mounts = b.config["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|m| !m["destination"].as_str().unwrap_or("").starts_with("/dev"));
        let out = b.run();
        assert!(out.code.is_some(), "{out:?}");
        assert_eq!(harness::leaks::entries(&outside), Vec::<String>::new());
        bed.is_clean();
    }
}

/// Each default device node is a link or a file of the image.
#[test]
fn device_nodes_of_the_image_are_not_followed() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let mut b = bed.bundle();
    let outside = bed.path("outside");
    fs::create_dir(&outside).expect("mkdir");
    fs::write(outside.join("file"), "kept\n").expect("write");
    for name in [
        "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "fd", "stdin", "stdout",
        "pts", "shm", "mqueue",
    ] {
        let target =
            if ["pts", "shm", "mqueue"].contains(&name) { outside.clone() } else { outside.join(name) };
        symlink(target, b.inside("dev").join(name)).expect("symlink");
    }
    let mounts = b.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|m| m["destination"] != "/dev");
    let out = b.args(["echo", "ran"]).run();
    assert!(out.code.is_some(), "{out:?}");
    assert_eq!(harness::leaks::entries(&outside), [outside.join("file").display().to_string()]);
    assert_eq!(fs::read_to_string(outside.join("file")).expect("kept"), "kept\n");
    assert_eq!(harness::leaks::mounts(&bed.unique), Vec::<String>::new());
}

/// CVE-2025-52565: the console is bound on the real /dev/console of the container.
#[test]
fn a_console_that_is_a_link_is_not_followed() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let mut b = bed.bundle().set("/process/terminal", true);
    let outside = bed.path("outside");
    fs::write(&outside, "kept\n").expect("write");
    symlink(&outside, b.inside("dev/console")).expect("symlink");
    symlink("/proc/sysrq-trigger", b.inside("dev/ptmx")).expect("symlink");
    let mounts = b.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|m| m["destination"] != "/dev");
    let id = b.fresh_id();
    bed.adopt(&id);
    let socket = harness::pty::ConsoleSocket::listen(&bed.path("console.sock"));
    let path = socket.path.to_string_lossy().into_owned();
    let out = harness::finish(&mut b.command("create", &["--console-socket", &path], &id));
    assert!(out.code.is_some(), "{out:?}");
    assert!(!fs::metadata(&outside).expect("outside").file_type().is_char_device());
    assert_eq!(fs::read_to_string(&outside).expect("outside"), "kept\n");
    fs::remove_file(&socket.path).expect("remove");
}
