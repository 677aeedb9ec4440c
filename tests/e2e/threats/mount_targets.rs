//! Mount targets through symlinks, also while they are exchanged: nothing is mounted, made or truncated outside the
//! root (CVE-2021-30465, CVE-2024-45310).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::{Bed, leaks, need};
use rustix::fs::{CWD, RenameFlags, renameat_with};

#[track_caller]
fn untouched(bed: &Bed, outside: &Path) {
    assert_eq!(
        leaks::entries(outside),
        [outside.join("file").display().to_string()],
        "made something outside"
    );
    assert_eq!(fs::read_to_string(outside.join("file")).expect("kept"), "kept\n");
    assert_eq!(leaks::mounts(&bed.unique), Vec::<String>::new(), "mounted something outside");
}

fn outside(bed: &Bed) -> std::path::PathBuf {
    let outside = bed.path("outside");
    fs::create_dir(&outside).expect("mkdir");
    fs::write(outside.join("file"), "kept\n").expect("write");
    outside
}

/// Links as targets, in the middle and at the end, absolute, relative and by way of ...
#[test]
fn links_on_the_way_to_a_target_stay_inside() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let outside = outside(&bed);
    let source = bed.path("source");
    fs::write(&source, "source\n").expect("write");
    let source = source.to_string_lossy().into_owned();
    let absolute = outside.display().to_string();
    let relative = "../../../outside";
    for link in [&absolute, relative, "../../../../../../../../etc", "/proc/self/cwd", "/proc/self/root"] {
        for destination in ["/data", "/data/sub/deep", "/data/../data/x", "/data/file"] {
            for kind in ["tmpfs", "bind-file", "bind-dir"] {
                let b = bed.bundle();
                let dir = b.dir.clone();
                symlink(link, b.inside("data")).expect("symlink");
                let b = match kind {
                    "tmpfs" => b.mount(destination, "tmpfs", "tmpfs", &[]),
                    "bind-file" => b.mount(destination, "bind", &source, &["bind"]),
                    _ => b.mount(destination, "bind", "/usr/share", &["bind"]),
                };
                // It may work inside or be refused; what matters is what happened outside.
                let out = b.args(["true"]).run();
                assert!(out.code.is_some(), "{out:?}");
                untouched(&bed, &outside);
                fs::remove_dir_all(dir).expect("remove the bundle");
            }
        }
    }
}

/// While the runtime works, a neighbour exchanges a directory of the root file system with a link to the outside.
#[test]
fn an_exchange_during_mounting_does_not_lead_outside() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let outside = outside(&bed);
    let source = bed.path("source");
    fs::write(&source, "source\n").expect("write");
    let source = source.to_string_lossy().into_owned();
    let b = bed.bundle();
    fs::create_dir_all(b.inside("data")).expect("mkdir");
    symlink(&outside, b.inside("swap")).expect("symlink");
    let (data, swap) = (b.inside("data"), b.inside("swap"));
    let mut b = b;
    for i in 0..8 {
        b = b.mount(&format!("/data/t{i}"), "tmpfs", "tmpfs", &[]);
        b = b.mount(&format!("/data/f{i}"), "bind", &source, &["bind"]);
        b = b.mount("/data", "tmpfs", "tmpfs", &[]);
    }
    let b = b.args(["true"]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &data, CWD, &swap, RenameFlags::EXCHANGE).expect("exchange");
            }
        });
        let rounds = if harness::runtime::is_ours() { 150 } else { 15 };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..rounds {
                // Refused or not, as the race goes.
                let out = b.run();
                assert!(out.code.is_some(), "{out:?}");
                untouched(&bed, &outside);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    untouched(&bed, &outside);
    bed.is_clean();
}

/// The whole root is exchanged for a link while the runtime works.
#[test]
fn an_exchange_of_proc_during_mounting_gives_no_fake_proc() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    fs::create_dir_all(b.inside("fake/self")).expect("mkdir");
    fs::write(b.inside("fake/self/status"), "FAKE\n").expect("write");
    symlink("/fake", b.inside("swap")).expect("symlink");
    let (proc, swap) = (b.inside("proc"), b.inside("swap"));
    let b = b.args(["head", "-c", "4", "/proc/self/status"]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &proc, CWD, &swap, RenameFlags::EXCHANGE).expect("exchange");
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..60 {
                // Whoever looks afterwards may be led to the fake one by the exchange; the runtime may not have been.
                let out = b.run();
                assert!(out.code.is_some(), "{out:?}");
                assert_eq!(fs::read_to_string(b.inside("fake/self/status")).expect("kept"), "FAKE\n");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    bed.is_clean();
}

/// A file that is the target of a bind mount is not truncated, and a dangling link makes no file outside.
#[test]
fn dangling_links_and_existing_files_are_safe() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let outside = outside(&bed);
    let b = bed.bundle();
    symlink(outside.join("new"), b.inside("etc/resolv.conf")).expect("symlink");
    symlink(outside.join("file"), b.inside("etc/hosts")).expect("symlink");
    let b = b
        .mount("/etc/resolv.conf", "bind", "/etc/passwd", &["bind"])
        .mount("/etc/hosts", "bind", "/etc/passwd", &["bind"])
        .args(["true"]);
    let out = b.run();
    assert!(out.code.is_some(), "{out:?}");
    untouched(&bed, &outside);
}

/// The root itself as a link, relative parts, and a root that is a file.
#[test]
fn odd_roots() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["echo", "ran"]);
    symlink("rootfs", b.dir.join("link")).expect("symlink");
    let b = b.set("/root/path", "link");
    let out = b.run();
    assert!(out.code.is_some(), "{out:?}");
    for path in ["nothing", "config.json", ""] {
        let b = bed.bundle().set("/root/path", path).args(["echo", "ran"]);
        b.run().exits(1).stdout_is("");
    }
    bed.is_clean();
}

/// A target with .. is read inside the root.
#[test]
fn dots_in_a_target_stay_inside() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let outside = outside(&bed);
    for destination in ["/../../outside/x", "/../outside", "/mnt/../../../outside/y", "/.."] {
        let out = bed.bundle().mount(destination, "tmpfs", "tmpfs", &[]).args(["true"]).run();
        assert!(out.code.is_some(), "{out:?}");
        untouched(&bed, &outside);
    }
}
