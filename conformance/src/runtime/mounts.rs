//! config.md#root and #mounts, config-linux.md's default file systems, propagation, masked and read-only paths.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::MsFlags;
use serde_json::json;

use super::bundle::Bundle;
use super::case::{Case, spec, strict};
use super::harness::{Test, same};

pub const CASES: &[Case] = &[
    spec("root/relative-path", "config.md#root", "path may be relative to the bundle", |t| {
        same("output", t.sh("ls -d /bin/busybox")?.output()?.as_str(), "/bin/busybox")
    }),
    spec("root/absolute-path", "config.md#root", "path may be absolute", |t| {
        let b = t.sh("ls -d /bin/busybox")?;
        let path = b.rootfs("");
        same("output", b.set("/root/path", json!(path)).output()?.as_str(), "/bin/busybox")
    }),
    spec("root/is-the-whole-view", "config.md#root", "nothing above the root can be seen", |t| {
        let text = t.sh("ls /..; cd /; cd ..; ls -d /tmp/conf-* 2>/dev/null; true")?.output()?;
        ensure!(text.contains("busybox") || text.contains("bin"), "{text}");
        ensure!(!text.contains("conf-"), "the host's files are there: {text}");
        Ok(())
    }),
    spec("root/missing", "config.md#root", "a root that is not there is an error", |t| {
        t.bundle()?.set("/root/path", json!("nothing")).refused("a missing root").map(drop)
    }),
    spec("root/is-a-file", "config.md#root", "a root that is a file is an error", |t| {
        let b = t.bundle()?;
        fs::write(b.dir.join("file"), "")?;
        b.set("/root/path", json!("file")).refused("a file as root").map(drop)
    }),
    strict("root/required", "config.md#root", "root is required", |t| {
        t.bundle()?.unset("/root").refused("a config without root").map(drop)
    }),
    spec("root/read-only", "config.md#root", "readonly makes the root read-only", |t| {
        let b = t.sh("touch /new 2>&1")?.set("/root/readonly", json!(true));
        let output = b.run()?;
        ensure!(output.code != 0 && output.out.contains("Read-only"), "writing worked: {}", output.out);
        Ok(())
    }),
    spec("root/read-only-spares-mounts", "config.md#root", "mounts in a read-only root stay writable", |t| {
        let b = t.sh("touch /dev/shm/new /scratch/new")?.set("/root/readonly", json!(true));
        fs::create_dir(b.rootfs("scratch"))?;
        b.mount("/scratch", "tmpfs", "tmpfs", &[]).run()?.ok().map(drop)
    }),
    spec("root/writable", "config.md#root", "without readonly, the root is writable", |t| {
        let b = t.sh("echo new >/new")?;
        b.run()?.ok()?;
        same("file", fs::read_to_string(b.rootfs("new"))?.trim(), "new")
    }),
    spec("mounts/listed-order", "config.md#mounts", "mounts are made in the order listed", |t| {
        let b = t.sh("ls /mnt; ls /mnt/inner")?;
        let (first, second) = (host_dir(&b, "first")?, host_dir(&b, "second")?);
        fs::create_dir(first.join("inner"))?;
        let b = b.bind(&first, "/mnt", &[]).bind(&second, "/mnt/inner", &[]);
        same("output", b.output()?.as_str(), "first\ninner\nsecond")
    }),
    spec(
        "mounts/later-covers-earlier",
        "config.md#mounts",
        "of two mounts on one place, the later is on top",
        |t| {
            let b = t.sh("ls /mnt")?;
            let (first, second) = (host_dir(&b, "first")?, host_dir(&b, "second")?);
            same(
                "output",
                b.bind(&first, "/mnt", &[]).bind(&second, "/mnt", &[]).output()?.as_str(),
                "second",
            )
        },
    ),
    spec(
        "mounts/bind-directory",
        "config.md#mounts",
        "a bind mount shows the host's directory, writable",
        |t| {
            let b = t.sh("cat /mnt/data; echo new >/mnt/new")?;
            let dir = host_dir(&b, "data")?;
            let b = b.bind(&dir, "/mnt", &[]);
            same("output", b.output()?.as_str(), "data")?;
            same("written", fs::read_to_string(dir.join("new"))?.trim(), "new")
        },
    ),
    spec("mounts/bind-file", "config.md#mounts", "a file can be bound", |t| {
        let b = t.bundle()?.args(&["cat", "/etc/bound"]);
        let file = host_dir(&b, "data")?.join("data");
        same("output", b.bind(&file, "/etc/bound", &[]).output()?.as_str(), "data")
    }),
    spec("mounts/bind-without-type", "config.md#mounts", "a mount with option bind needs no type", |t| {
        let b = t.bundle()?.args(&["cat", "/mnt/data"]);
        let dir = host_dir(&b, "data")?;
        let b = b.push("/mounts", json!({"destination": "/mnt", "source": dir, "options": ["bind"]}));
        same("output", b.output()?.as_str(), "data")
    }),
    spec(
        "mounts/bind-with-type-none",
        "config.md#posix-platform-mounts",
        "type none with option rbind is a bind mount",
        |t| {
            let b = t.bundle()?.args(&["cat", "/mnt/data"]);
            let dir = host_dir(&b, "data")?;
            same(
                "output",
                b.mount("/mnt", "none", &dir.to_string_lossy(), &["rbind"]).output()?.as_str(),
                "data",
            )
        },
    ),
    spec(
        "mounts/bind-relative-source",
        "config.md#mounts",
        "a bind source may be relative to the bundle",
        |t| {
            let b = t.bundle()?.args(&["cat", "/mnt/data"]);
            host_dir(&b, "data")?;
            same("output", b.mount("/mnt", "bind", "data", &["bind"]).output()?.as_str(), "data")
        },
    ),
    spec("mounts/bind-is-shallow", "config.md#mounts", "bind leaves mounts below its source out", |t| {
        let b = t.sh("ls /mnt/sub")?;
        let dir = dir_with_mount(t, &b)?;
        same("output", b.mount("/mnt", "bind", &dir.to_string_lossy(), &["bind"]).output()?.as_str(), "")
    }),
    spec("mounts/rbind-is-deep", "config.md#mounts", "rbind takes mounts below its source along", |t| {
        let b = t.sh("ls /mnt/sub")?;
        let dir = dir_with_mount(t, &b)?;
        same("output", b.bind(&dir, "/mnt", &[]).output()?.as_str(), "below")
    }),
    spec("mounts/makes-destination", "config.md#mounts", "a destination that is not there is made", |t| {
        let b = t.bundle()?.args(&["cat", "/a/new/place/data"]);
        let dir = host_dir(&b, "data")?;
        same("output", b.bind(&dir, "/a/new/place", &[]).output()?.as_str(), "data")
    }),
    spec(
        "mounts/makes-destination-file",
        "config.md#mounts",
        "a file's destination is made as a file",
        |t| {
            let b = t.bundle()?.args(&["cat", "/a/new/file"]);
            let file = host_dir(&b, "data")?.join("data");
            same("output", b.bind(&file, "/a/new/file", &[]).output()?.as_str(), "data")
        },
    ),
    spec("mounts/missing-source", "config.md#mounts", "a bind source that is not there is an error", |t| {
        t.bundle()?.bind(Path::new("/nonexistent"), "/mnt", &[]).refused("a missing source").map(drop)
    }),
    spec(
        "mounts/unknown-type",
        "config.md#posix-platform-mounts",
        "a file system that the kernel does not know is an error",
        |t| t.bundle()?.mount("/mnt", "ponyfs", "none", &[]).refused("ponyfs").map(drop),
    ),
    spec(
        "mounts/unknown-option",
        "config.md#mounts",
        "an option that the file system does not know is an error",
        |t| t.bundle()?.mount("/mnt", "tmpfs", "tmpfs", &["ponies=7"]).refused("option ponies").map(drop),
    ),
    spec(
        "mounts/destination-through-link",
        "config.md#mounts",
        "a destination through an absolute link stays inside the root",
        |t| {
            let b = t.sh("cat /link/data")?;
            let dir = host_dir(&b, "data")?;
            let outside = host_dir(&b, "outside")?;
            std::os::unix::fs::symlink(&outside, b.rootfs("link"))?;
            // The link's target, taken inside the root, does not exist: the runtime makes it there or refuses.
            let b = b.bind(&dir, "/link", &[]);
            let output = b.run()?;
            ensure!(!outside.join("data").exists(), "something appeared outside the root");
            ensure!(output.code != 0 || output.out.trim() == "data", "mounted elsewhere: {}", output.out);
            Ok(())
        },
    ),
    spec(
        "mounts/destination-with-dots",
        "config.md#mounts",
        "a destination with .. stays inside the root",
        |t| {
            let b = t.sh("cat /mnt/data")?;
            let dir = host_dir(&b, "data")?;
            let output = b.bind(&dir, "/../../../../mnt", &[]).run()?;
            ensure!(output.code != 0 || output.out.trim() == "data", "mounted elsewhere");
            Ok(())
        },
    ),
    spec("mounts/tmpfs-size", "config.md#mounts", "tmpfs options size and mode hold", |t| {
        let b = t.sh("grep ' /mnt ' /proc/mounts; stat -c %a /mnt")?.mount(
            "/mnt",
            "tmpfs",
            "tmpfs",
            &["size=4096k", "mode=1750"],
        );
        let text = b.output()?;
        ensure!(text.contains("size=4096k") && text.ends_with("1750"), "{}", text.replace('\n', " / "));
        Ok(())
    }),
    spec(
        "mounts/proc",
        "config-linux.md#default-filesystems",
        "/proc is proc of the container's pid namespace",
        |t| {
            let text =
                t.sh("grep ' /proc ' /proc/mounts | cut -d' ' -f3; cat /proc/1/comm; true")?.output()?;
            same("output", text.as_str(), "proc\nsh")
        },
    ),
    spec("mounts/sys", "config-linux.md#default-filesystems", "/sys is sysfs", |t| {
        fs_type(t, "/sys", "sysfs")
    }),
    spec("mounts/dev-pts", "config-linux.md#default-filesystems", "/dev/pts is a devpts of its own", |t| {
        let text = t.sh("grep ' /dev/pts ' /proc/mounts | cut -d' ' -f3; ls /dev/pts")?.output()?;
        same("output", text.as_str(), "devpts\nptmx")
    }),
    spec("mounts/dev-shm", "config-linux.md#default-filesystems", "/dev/shm is tmpfs", |t| {
        fs_type(t, "/dev/shm", "tmpfs")
    }),
    spec("mounts/mqueue", "config.md#mounts", "mqueue can be mounted", |t| {
        fs_type(t, "/dev/mqueue", "mqueue")
    }),
    spec("mounts/overlay", "config.md#posix-platform-mounts", "overlay can be mounted", |t| {
        let b = t.sh("cat /mnt/data; echo new >/mnt/new; ls /mnt")?;
        let (lower, upper, work) = (host_dir(&b, "data")?, b.dir.join("upper"), b.dir.join("work"));
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        let options = [
            &format!("lowerdir={}", lower.display()),
            &format!("upperdir={}", upper.display()),
            &format!("workdir={}", work.display()),
        ];
        let options: Vec<&str> = options.iter().map(|s| s.as_str()).collect();
        same("output", b.mount("/mnt", "overlay", "overlay", &options).output()?.as_str(), "datadata\nnew")?;
        ensure!(upper.join("new").exists(), "the new file is not in the upper layer");
        Ok(())
    }),
    spec("mounts/ro", "config.md#mounts", "option ro", |t| bind_flag(t, "ro", "ro")),
    spec("mounts/rw", "config.md#mounts", "option rw", |t| bind_flag(t, "rw", "rw")),
    spec("mounts/nosuid", "config.md#mounts", "option nosuid", |t| bind_flag(t, "nosuid", "nosuid")),
    spec("mounts/nodev", "config.md#mounts", "option nodev", |t| bind_flag(t, "nodev", "nodev")),
    spec("mounts/noexec", "config.md#mounts", "option noexec", |t| bind_flag(t, "noexec", "noexec")),
    spec("mounts/noatime", "config.md#mounts", "option noatime", |t| bind_flag(t, "noatime", "noatime")),
    spec("mounts/nodiratime", "config.md#mounts", "option nodiratime", |t| {
        bind_flag(t, "nodiratime", "nodiratime")
    }),
    spec("mounts/relatime", "config.md#mounts", "option relatime", |t| {
        tmpfs_flag(t, &["relatime"], "relatime", true)
    }),
    spec("mounts/strictatime", "config.md#mounts", "option strictatime", |t| {
        tmpfs_flag(t, &["strictatime"], "relatime", false)
    }),
    spec("mounts/nosymfollow", "config.md#mounts", "option nosymfollow", |t| {
        bind_flag(t, "nosymfollow", "nosymfollow")
    }),
    spec("mounts/sync", "config.md#mounts", "option sync", |t| tmpfs_super(t, "sync")),
    spec(
        "mounts/later-option-wins",
        "config.md#mounts",
        "of two opposite options, the later one holds",
        |t| {
            tmpfs_flag(t, &["ro", "nosuid", "rw", "suid"], "nosuid", false)?;
            tmpfs_flag(t, &["ro", "rw"], "rw", true)
        },
    ),
    spec("mounts/ro-is-enforced", "config.md#mounts", "a read-only bind mount cannot be written", |t| {
        let b = t.sh("touch /mnt/new 2>&1")?;
        let dir = host_dir(&b, "data")?;
        ensure!(b.bind(&dir, "/mnt", &["ro"]).run()?.code != 0, "writing worked");
        ensure!(!dir.join("new").exists(), "the file was made");
        Ok(())
    }),
    spec("mounts/ro-spares-source", "config.md#mounts", "the source stays writable for the host", |t| {
        let b = t.bundle()?.args(&["sleep", "100"]);
        let dir = host_dir(&b, "data")?;
        let _c = b.bind(&dir, "/mnt", &["ro"]).start()?;
        fs::write(dir.join("new"), "").context("the host's directory became read-only")
    }),
    spec(
        "mounts/ro-with-locked-flags",
        "config.md#mounts",
        "in a user namespace, ro works on a mount whose other flags are locked",
        |t| {
            let b = t.bundle()?.args(&["cat", "/proc/self/mountinfo"]).user_namespace()?;
            let dir = b.dir.join("locked");
            fs::create_dir(&dir)?;
            mount_tmpfs(t, &dir, MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
            let flags = flags_of(&b.bind(&dir, "/mnt", &["ro"]).output()?, "/mnt")?;
            ensure!(flags.iter().any(|f| f == "ro"), "the mount's flags are {flags:?}");
            Ok(())
        },
    ),
    spec(
        "mounts/ro-is-shallow",
        "config.md#linux-mount-options ro",
        "ro with rbind leaves mounts below writable",
        |t| {
            let b = t.sh("touch /mnt/sub/new")?;
            let dir = dir_with_mount(t, &b)?;
            b.bind(&dir, "/mnt", &["ro"]).run()?.ok().map(drop)
        },
    ),
    spec("mounts/rro", "config.md#linux-mount-options rro", "rro is read-only all the way down", |t| {
        recursive(t, "rro", "ro")
    }),
    spec("mounts/rnosuid", "config.md#linux-mount-options rnosuid", "rnosuid holds all the way down", |t| {
        recursive(t, "rnosuid", "nosuid")
    }),
    spec("mounts/rnodev", "config.md#linux-mount-options rnodev", "rnodev holds all the way down", |t| {
        recursive(t, "rnodev", "nodev")
    }),
    spec("mounts/rnoexec", "config.md#linux-mount-options rnoexec", "rnoexec holds all the way down", |t| {
        recursive(t, "rnoexec", "noexec")
    }),
    spec(
        "mounts/rnoatime",
        "config.md#linux-mount-options rnoatime",
        "rnoatime holds all the way down",
        |t| recursive(t, "rnoatime", "noatime"),
    ),
    spec(
        "mounts/rnosymfollow",
        "config.md#linux-mount-options rnosymfollow",
        "rnosymfollow holds all the way down",
        |t| recursive(t, "rnosymfollow", "nosymfollow"),
    ),
    spec("mounts/private", "config.md#linux-mount-options private", "private has no peers", |t| {
        propagation(t, "private", false, false)
    }),
    spec(
        "mounts/rslave",
        "config.md#linux-mount-options rslave",
        "rslave receives from the host's mount",
        |t| propagation(t, "rslave", false, true),
    ),
    spec("mounts/rshared", "config.md#linux-mount-options rshared", "rshared has peers", |t| {
        propagation(t, "rshared", true, false)
    }),
    spec(
        "mounts/unbindable",
        "config.md#linux-mount-options unbindable",
        "unbindable cannot be bound",
        |t| {
            let b = t.bundle()?.args(&["cat", "/proc/self/mountinfo"]).mount(
                "/mnt",
                "tmpfs",
                "tmpfs",
                &["unbindable"],
            );
            let text = b.output()?;
            ensure!(optional_of(&text, "/mnt")?.contains("unbindable"), "not unbindable");
            Ok(())
        },
    ),
    spec(
        "mounts/tmpcopyup",
        "config.md#linux-mount-options tmpcopyup",
        "the tmpfs starts with a copy of what it covers",
        |t| {
            let b = t
                .sh("cat /etc/motd; ls -ld /etc/sub | cut -c1-10; touch /etc/new")?
                .file("etc/motd", "hello")?;
            fs::create_dir(b.rootfs("etc/sub"))?;
            fs::set_permissions(b.rootfs("etc/sub"), std::os::unix::fs::PermissionsExt::from_mode(0o701))?;
            let b = b.mount("/etc", "tmpfs", "tmpfs", &["tmpcopyup"]);
            same("output", b.output()?.as_str(), "hellodrwx-----x")?;
            ensure!(!b.rootfs("etc/new").exists(), "the image was written to");
            Ok(())
        },
    ),
    spec("mounts/idmap", "config.md#linux-mount-options idmap", "idmap with mappings shifts owners", |t| {
        idmap(t, "idmap")
    }),
    spec(
        "mounts/ridmap",
        "config.md#linux-mount-options ridmap",
        "ridmap with mappings shifts owners",
        |t| idmap(t, "ridmap"),
    ),
    spec(
        "mounts/idmap-without-option",
        "config.md#mounts uidMappings",
        "mappings alone make an idmapped mount",
        |t| idmap(t, ""),
    ),
    strict(
        "mounts/idmap-without-mappings",
        "config.md#linux-mount-options idmap",
        "idmap without mappings and without a user namespace is an error",
        |t| {
            let b = t.bundle()?;
            let dir = host_dir(&b, "data")?;
            b.bind(&dir, "/mnt", &["idmap"]).refused("idmap without mappings").map(drop)
        },
    ),
    strict(
        "mounts/idmap-half",
        "config.md#mounts uidMappings",
        "uidMappings without gidMappings is an error",
        |t| {
            let b = t.bundle()?;
            let dir = host_dir(&b, "data")?;
            let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
            b.push(
                "/mounts",
                json!({"destination": "/mnt", "source": dir, "options": ["bind"], "uidMappings": map}),
            )
            .refused("half of the mappings")
            .map(drop)
        },
    ),
    strict("mounts/over-proc-entries", "THREATS: fake procfs", "a mount over /proc/self is refused", |t| {
        let b = t.bundle()?;
        let dir = host_dir(&b, "data")?;
        b.bind(&dir, "/proc/self", &[]).refused("a mount over /proc/self").map(drop)
    }),
    strict(
        "mounts/proc-is-a-link",
        "THREATS: fake procfs",
        "a /proc that is a link in the image is refused",
        |t| {
            let b = t.bundle()?;
            fs::remove_dir(b.rootfs("proc"))?;
            std::os::unix::fs::symlink("/tmp", b.rootfs("proc"))?;
            b.refused("a /proc that is a link").map(drop)
        },
    ),
    strict(
        "mounts/sys-is-a-link",
        "THREATS: fake procfs",
        "a /sys that is a link in the image is refused",
        |t| {
            let b = t.bundle()?;
            fs::remove_dir(b.rootfs("sys"))?;
            std::os::unix::fs::symlink("/tmp", b.rootfs("sys"))?;
            b.refused("a /sys that is a link").map(drop)
        },
    ),
    strict(
        "mounts/dev-is-a-link",
        "THREATS: /dev is a link",
        "with a /dev that is a link, nothing is made outside the root",
        |t| {
            let b = t.bundle()?;
            let outside = b.dir.join("outside");
            fs::create_dir(&outside)?;
            fs::remove_dir(b.rootfs("dev"))?;
            std::os::unix::fs::symlink(&outside, b.rootfs("dev"))?;
            let b = b
                .without_mount("/dev")
                .without_mount("/dev/pts")
                .without_mount("/dev/shm")
                .without_mount("/dev/mqueue");
            b.run()?;
            ensure!(fs::read_dir(&outside)?.next().is_none(), "something was made outside the root");
            Ok(())
        },
    ),
    spec(
        "mounts/proc-twice-needs-no-pid-namespace",
        "config.md#mounts",
        "proc can be mounted in the host's pid namespace, too",
        |t| t.sh("ls /proc/self/status")?.namespace("pid", None).run()?.ok().map(drop),
    ),
    spec(
        "propagation/private-by-default",
        "config-linux.md#rootfs-mount-propagation",
        "without it, mounts of the container do not reach the host",
        |t| rootfs_propagation(t, None),
    ),
    spec(
        "propagation/private",
        "config-linux.md#rootfs-mount-propagation",
        "private: the root has no peers and no master",
        |t| rootfs_propagation(t, Some("private")),
    ),
    spec("propagation/rprivate", "CLIENTS: rootfsPropagation", "rprivate as Docker writes it", |t| {
        rootfs_propagation(t, Some("rprivate"))
    }),
    // Stands although runc and crun fail it: both make only / a slave, not a root that is a mount of its own.
    spec(
        "propagation/slave",
        "config-linux.md#rootfs-mount-propagation",
        "slave: mounts of the container do not reach the host",
        |t| rootfs_propagation(t, Some("slave")),
    ),
    spec("propagation/rslave", "CLIENTS: rootfsPropagation", "rslave as Docker writes it", |t| {
        rootfs_propagation(t, Some("rslave"))
    }),
    spec(
        "propagation/shared",
        "config-linux.md#rootfs-mount-propagation",
        "shared: the root belongs to a peer group",
        |t| {
            let b = t
                .bundle()?
                .args(&["cat", "/proc/self/mountinfo"])
                .set("/linux/rootfsPropagation", json!("shared"));
            let text = b.output()?;
            let optional = optional_of(&text, "/")?;
            ensure!(optional.contains("shared:"), "the root is {optional:?}");
            Ok(())
        },
    ),
    spec(
        "propagation/unbindable",
        "config-linux.md#rootfs-mount-propagation",
        "unbindable: the root cannot be bound",
        |t| {
            let b = t
                .bundle()?
                .args(&["cat", "/proc/self/mountinfo"])
                .set("/linux/rootfsPropagation", json!("unbindable"));
            let text = b.output()?;
            let optional = optional_of(&text, "/")?;
            ensure!(optional.contains("unbindable"), "the root is {optional:?}");
            Ok(())
        },
    ),
    spec("propagation/unknown", "config.md#valid-values", "an unknown propagation is an error", |t| {
        t.bundle()?.set("/linux/rootfsPropagation", json!("ponies")).refused("propagation ponies").map(drop)
    }),
    spec(
        "propagation/slave-receives",
        "config-linux.md#rootfs-mount-propagation",
        "rslave bind mounts see what the host mounts later",
        |t| {
            let b = t.bundle()?.args(&["sleep", "100"]).set("/linux/rootfsPropagation", json!("rslave"));
            let dir = shared_dir(t, &b)?;
            fs::create_dir(dir.join("late"))?;
            let c = b.bind(&dir, "/mnt", &["rslave"]).start()?;
            mount_tmpfs(t, &dir.join("late"), MsFlags::empty())?;
            fs::write(dir.join("late/seen"), "")?;
            same("inside", c.sh("ls /mnt/late")?.as_str(), "seen")
        },
    ),
    spec("paths/masked-file", "config-linux.md#masked-paths", "a masked file reads as empty", |t| {
        let b = t.sh("wc -c </etc/secret; cat /etc/secret")?.file("etc/secret", "secret")?;
        same("output", b.set("/linux/maskedPaths", json!(["/etc/secret"])).output()?.as_str(), "0")
    }),
    spec(
        "paths/masked-directory",
        "config-linux.md#masked-paths",
        "a masked directory is empty and read-only",
        |t| {
            let b = t
                .sh("ls -A /secret; touch /secret/x 2>/dev/null && echo written; true")?
                .file("secret/inner", "secret")?;
            same("output", b.set("/linux/maskedPaths", json!(["/secret"])).output()?.as_str(), "")
        },
    ),
    spec("paths/masked-proc", "config-linux.md#masked-paths", "files of /proc can be masked", |t| {
        let b = t.sh("head -c 10 /proc/timer_list; head -c 10 /proc/kcore; true")?;
        same(
            "output",
            b.set("/linux/maskedPaths", json!(["/proc/timer_list", "/proc/kcore"])).output()?.as_str(),
            "",
        )
    }),
    spec(
        "paths/masked-missing",
        "CLIENTS: maskedPaths",
        "a masked path that is not there is passed over",
        |t| {
            t.bundle()?
                .set("/linux/maskedPaths", json!(["/proc/nothing", "/nothing/at/all"]))
                .run()?
                .ok()
                .map(drop)
        },
    ),
    strict("paths/masked-relative", "config-linux.md#masked-paths", "masked paths must be absolute", |t| {
        t.bundle()?
            .file("etc/secret", "")?
            .set("/linux/maskedPaths", json!(["etc/secret"]))
            .refused("a relative masked path")
            .map(drop)
    }),
    spec(
        "paths/read-only",
        "config-linux.md#readonly-paths",
        "a read-only path can be read and not written",
        |t| {
            let b = t
                .sh("cat /etc/conf; echo x >/etc/conf 2>/dev/null && echo written; true")?
                .file("etc/conf", "text")?;
            same("output", b.set("/linux/readonlyPaths", json!(["/etc"])).output()?.as_str(), "text")
        },
    ),
    spec(
        "paths/read-only-proc-sys",
        "config-linux.md#readonly-paths",
        "/proc/sys can be made read-only",
        |t| {
            let b =
                t.sh("echo x >/proc/sys/kernel/hostname")?.set("/linux/readonlyPaths", json!(["/proc/sys"]));
            ensure!(b.run()?.code != 0, "writing worked");
            Ok(())
        },
    ),
    spec(
        "paths/read-only-missing",
        "CLIENTS: readonlyPaths",
        "a read-only path that is not there is passed over",
        |t| t.bundle()?.set("/linux/readonlyPaths", json!(["/proc/nothing"])).run()?.ok().map(drop),
    ),
    strict(
        "paths/read-only-relative",
        "config-linux.md#readonly-paths",
        "read-only paths must be absolute",
        |t| {
            t.bundle()?
                .set("/linux/readonlyPaths", json!(["etc"]))
                .refused("a relative read-only path")
                .map(drop)
        },
    ),
    spec(
        "paths/docker-defaults",
        "CLIENTS: maskedPaths",
        "Docker's lists of masked and read-only paths work",
        |t| {
            let masked = json!([
                "/proc/asound",
                "/proc/acpi",
                "/proc/interrupts",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/proc/scsi",
                "/sys/firmware",
                "/sys/devices/virtual/powercap"
            ]);
            let readonly = json!(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
            let b =
                t.sh("cat /proc/keys /proc/interrupts; echo x >/proc/sysrq-trigger && echo written; true")?;
            same(
                "output",
                b.set("/linux/maskedPaths", masked).set("/linux/readonlyPaths", readonly).output()?.as_str(),
                "",
            )
        },
    ),
];

/// A folder of the bundle's with one file in it, both named `name`, that says its name.
fn host_dir(b: &Bundle, name: &str) -> Result<PathBuf> {
    let dir = b.dir.join(name);
    fs::create_dir(&dir)?;
    fs::write(dir.join(name), name)?;
    Ok(dir)
}

fn mount_tmpfs(t: &Test, dir: &Path, flags: MsFlags) -> Result<()> {
    let none: Option<&str> = None;
    nix::mount::mount(Some("tmpfs"), dir, Some("tmpfs"), flags, none).context("mount a tmpfs")?;
    t.unmount_later(dir);
    Ok(())
}

/// A host folder with a tmpfs on `sub` that holds a file `below`.
fn dir_with_mount(t: &Test, b: &Bundle) -> Result<PathBuf> {
    let dir = b.dir.join("tree");
    fs::create_dir_all(dir.join("sub"))?;
    mount_tmpfs(t, &dir.join("sub"), MsFlags::empty())?;
    fs::write(dir.join("sub/below"), "")?;
    Ok(dir)
}

/// A host folder that is a shared mount of its own.
fn shared_dir(t: &Test, b: &Bundle) -> Result<PathBuf> {
    let dir = b.dir.join("shared");
    fs::create_dir(&dir)?;
    mount_tmpfs(t, &dir, MsFlags::empty())?;
    let none: Option<&str> = None;
    nix::mount::mount(none, &dir, none, MsFlags::MS_SHARED, none).context("make it shared")?;
    Ok(dir)
}

fn line_of<'a>(mountinfo: &'a str, point: &str) -> Result<&'a str> {
    let found = mountinfo.lines().rfind(|l| l.split(' ').nth(4) == Some(point));
    found.with_context(|| format!("nothing is mounted on {point}"))
}

/// The mount's own options, of mountinfo's sixth field.
fn flags_of(mountinfo: &str, point: &str) -> Result<Vec<String>> {
    let field = line_of(mountinfo, point)?.split(' ').nth(5).context("short line")?;
    Ok(field.split(',').map(str::to_owned).collect())
}

/// The optional fields: `shared:1`, `master:2`, `unbindable`.
fn optional_of(mountinfo: &str, point: &str) -> Result<String> {
    let left = line_of(mountinfo, point)?.split(" - ").next().context("short line")?;
    Ok(left.split(' ').skip(6).collect::<Vec<_>>().join(" "))
}

fn fs_type(t: &Test, point: &str, kind: &str) -> Result<()> {
    let script = format!("grep ' {point} ' /proc/mounts | cut -d' ' -f3");
    same("type", t.sh(&script)?.output()?.as_str(), kind)
}

fn bind_flag(t: &Test, option: &str, want: &str) -> Result<()> {
    let b = t.bundle()?.args(&["cat", "/proc/self/mountinfo"]);
    let dir = host_dir(&b, "data")?;
    let flags = flags_of(&b.bind(&dir, "/mnt", &[option]).output()?, "/mnt")?;
    ensure!(flags.iter().any(|f| f == want), "the mount's flags are {flags:?}");
    Ok(())
}

fn tmpfs_flag(t: &Test, options: &[&str], word: &str, there: bool) -> Result<()> {
    let b = t.bundle()?.args(&["cat", "/proc/self/mountinfo"]).mount("/mnt", "tmpfs", "tmpfs", options);
    let flags = flags_of(&b.output()?, "/mnt")?;
    ensure!(flags.iter().any(|f| f == word) == there, "the mount's flags are {flags:?}");
    Ok(())
}

fn tmpfs_super(t: &Test, option: &str) -> Result<()> {
    let b = t.sh("grep ' /mnt ' /proc/mounts | cut -d' ' -f4")?.mount("/mnt", "tmpfs", "tmpfs", &[option]);
    let text = b.output()?;
    ensure!(text.split(',').any(|f| f == option), "options are {text}");
    Ok(())
}

fn recursive(t: &Test, option: &str, want: &str) -> Result<()> {
    let b = t.bundle()?.args(&["cat", "/proc/self/mountinfo"]);
    let dir = dir_with_mount(t, &b)?;
    let text = b.bind(&dir, "/mnt", &[option]).output()?;
    for point in ["/mnt", "/mnt/sub"] {
        let flags = flags_of(&text, point)?;
        ensure!(flags.iter().any(|f| f == want), "the flags of {point} are {flags:?}");
    }
    Ok(())
}

fn propagation(t: &Test, option: &str, shared: bool, master: bool) -> Result<()> {
    let b = t.bundle()?.args(&["cat", "/proc/self/mountinfo"]);
    let dir = shared_dir(t, &b)?;
    let b = b.bind(&dir, "/mnt", &[option]);
    // Peers and masters need a root that does not cut them off first; Docker sets it likewise.
    let b = if shared { b.set("/linux/rootfsPropagation", json!("shared")) } else { b };
    let b = if master { b.set("/linux/rootfsPropagation", json!("rslave")) } else { b };
    let text = b.output()?;
    let optional = optional_of(&text, "/mnt")?;
    ensure!(optional.contains("shared:") == shared, "the mount is {optional:?}");
    ensure!(optional.contains("master:") == master, "the mount is {optional:?}");
    Ok(())
}

/// The container mounts something; the host, even where its own mount is shared, must not see it.
fn rootfs_propagation(t: &Test, value: Option<&str>) -> Result<()> {
    let mut b = t.sh("mount -t tmpfs none /mnt && cat /proc/self/mountinfo")?;
    let caps = json!(["CAP_SYS_ADMIN"]);
    b = b.set("/process/capabilities", json!({"bounding": caps, "permitted": caps, "effective": caps}));
    if let Some(value) = value {
        b = b.set("/linux/rootfsPropagation", json!(value));
    }
    let rootfs = b.rootfs("").to_string_lossy().trim_end_matches('/').to_owned();
    let none: Option<&str> = None;
    nix::mount::mount(Some(rootfs.as_str()), rootfs.as_str(), none, MsFlags::MS_BIND, none)?;
    t.unmount_later(Path::new(&rootfs));
    nix::mount::mount(none, rootfs.as_str(), none, MsFlags::MS_SHARED, none)?;
    let text = b.output()?;
    let optional = optional_of(&text, "/")?;
    ensure!(!optional.contains("shared:"), "the root is {optional:?}");
    if value.is_some_and(|v| v.ends_with("slave")) {
        ensure!(optional.contains("master:"), "the root is {optional:?}, not a slave");
    }
    let host = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!host.contains(&format!("{rootfs}/mnt ")), "the host sees the container's mount");
    Ok(())
}

/// A file of host user 1000+5 is seen as 2000+5 through the mapping 2000 → 1000.
fn idmap(t: &Test, option: &str) -> Result<()> {
    let b = t.bundle()?.args(&["stat", "-c", "%u:%g", "/mnt/data"]);
    let dir = host_dir(&b, "data")?;
    std::os::unix::fs::chown(dir.join("data"), Some(1005), Some(1005))?;
    let mut options = vec!["rbind"];
    options.extend((!option.is_empty()).then_some(option));
    // In a mount, containerID is what the container's side shows… of what hostID names on disk.
    let map = json!([{"containerID": 1000, "hostID": 2000, "size": 100}]);
    let mount = json!({"destination": "/mnt", "source": dir, "options": options, "uidMappings": map, "gidMappings": map});
    same("owner", b.push("/mounts", mount).output()?.as_str(), "2005:2005")
}
