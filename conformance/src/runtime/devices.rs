//! config-linux.md: default devices, linux.devices, and the list of allowed devices.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::case::{Case, spec, strict};
use super::harness::{Test, same};
use super::host::Need;

pub const CASES: &[Case] = &[
    spec("devices/null", "config-linux.md#default-devices", "/dev/null is there", |t| default(t, "null", "1:3")),
    spec("devices/zero", "config-linux.md#default-devices", "/dev/zero is there", |t| default(t, "zero", "1:5")),
    spec("devices/full", "config-linux.md#default-devices", "/dev/full is there", |t| default(t, "full", "1:7")),
    spec("devices/random", "config-linux.md#default-devices", "/dev/random is there", |t| default(t, "random", "1:8")),
    spec("devices/urandom", "config-linux.md#default-devices", "/dev/urandom is there", |t| default(t, "urandom", "1:9")),
    spec("devices/tty", "config-linux.md#default-devices", "/dev/tty is there", |t| default(t, "tty", "5:0")),
    spec("devices/ptmx", "config-linux.md#default-devices", "/dev/ptmx is the container's pts/ptmx", |t| {
        let text = t.sh("stat -L -c %t:%T /dev/ptmx; readlink /dev/ptmx")?.output()?;
        ensure!(text.starts_with("5:2"), "{text}");
        Ok(())
    }),
    spec("devices/work", "config-linux.md#default-devices", "they may be used although all devices are denied", |t| {
        let script = "echo x >/dev/null && head -c1 /dev/zero >/dev/null && head -c1 /dev/urandom >/dev/null && head -c1 /dev/random >/dev/null && ! echo x 2>/dev/null >/dev/full && echo fine";
        same("output", t.sh(script)?.output()?.as_str(), "fine")
    }),
    spec("devices/link-fd", "runtime-linux.md#dev-symbolic-links", "/dev/fd → /proc/self/fd", |t| link(t, "fd", "/proc/self/fd")),
    spec("devices/link-stdin", "runtime-linux.md#dev-symbolic-links", "/dev/stdin → /proc/self/fd/0", |t| link(t, "stdin", "/proc/self/fd/0")),
    spec("devices/link-stdout", "runtime-linux.md#dev-symbolic-links", "/dev/stdout → /proc/self/fd/1", |t| link(t, "stdout", "/proc/self/fd/1")),
    spec("devices/link-stderr", "runtime-linux.md#dev-symbolic-links", "/dev/stderr → /proc/self/fd/2", |t| link(t, "stderr", "/proc/self/fd/2")),
    spec("devices/character", "config-linux.md#devices", "a character device is made with mode and owner", |t| {
        let entry = json!({"path": "/dev/mine", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 11, "gid": 22});
        let b = t.bundle()?.args(&["stat", "-c", "%F %t:%T %a %u:%g", "/dev/mine"]).push("/linux/devices", entry);
        same("stat", b.output()?.as_str(), "character special file a:e5 640 11:22")
    }),
    spec("devices/block", "config-linux.md#devices", "a block device is made", |t| {
        let entry = json!({"path": "/dev/blk", "type": "b", "major": 7, "minor": 3, "fileMode": 0o600, "uid": 0, "gid": 0});
        let b = t.bundle()?.args(&["stat", "-c", "%F %t:%T", "/dev/blk"]).push("/linux/devices", entry);
        same("stat", b.output()?.as_str(), "block special file 7:3")
    }),
    spec("devices/unbuffered", "config-linux.md#devices", "type u is a character device", |t| {
        let entry = json!({"path": "/dev/mine", "type": "u", "major": 1, "minor": 3, "fileMode": 0o666});
        let b = t.bundle()?.args(&["stat", "-c", "%F %t:%T", "/dev/mine"]).push("/linux/devices", entry);
        same("stat", b.output()?.as_str(), "character special file 1:3")
    }),
    spec("devices/fifo", "config-linux.md#devices", "type p is a fifo and needs no numbers", |t| {
        let entry = json!({"path": "/dev/pipe", "type": "p", "fileMode": 0o600});
        let b = t.bundle()?.args(&["stat", "-c", "%F", "/dev/pipe"]).push("/linux/devices", entry);
        same("stat", b.output()?.as_str(), "fifo")
    }),
    spec("devices/outside-dev", "config-linux.md#devices", "a device may lie outside /dev, also in a new folder", |t| {
        let entry = json!({"path": "/srv/sub/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666});
        let b = t.bundle()?.args(&["stat", "-c", "%t:%T", "/srv/sub/null"]).push("/linux/devices", entry);
        same("stat", b.output()?.as_str(), "1:3")
    }),
    spec("devices/file-in-the-way", "config-linux.md#devices", "another file at the path is an error", |t| {
        let entry = json!({"path": "/etc/dev", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666});
        t.bundle()?.file("etc/dev", "a file")?.push("/linux/devices", entry).refused("a file in a device's place").map(drop)
    }),
    spec("devices/same-device-there", "config-linux.md#devices", "the same device at the path is fine", |t| {
        let entry = json!({"path": "/etc/dev", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666});
        let b = t.bundle()?.push("/linux/devices", entry);
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        mknod(&b.rootfs("etc/dev"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3))?;
        b.run()?.ok().map(drop)
    }),
    spec("devices/unknown-type", "config.md#valid-values", "an unknown type is an error", |t| {
        let entry = json!({"path": "/dev/mine", "type": "x", "major": 1, "minor": 3});
        t.bundle()?.push("/linux/devices", entry).refused("device type x").map(drop)
    }),
    strict("devices/umask-spares-mode", "config-linux.md#devices", "the runtime's umask does not change fileMode", |t| {
        let entry = json!({"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666});
        let b = t.bundle()?.args(&["stat", "-c", "%a", "/dev/mine"]).push("/linux/devices", entry);
        b.write()?;
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(&t.suite.runtime).arg("--root").arg(t.root());
        command.args(["run", "--bundle", &b.dir_text(), &b.id]);
        same("mode", t.finish(command)?.ok()?.as_str(), "666")
    }),
    spec("allowed/denied-open", "config-linux.md#allowed-device-list", "a device that is denied cannot be opened", |t| {
        same("read", read_device(t, json!([{"allow": false, "access": "rwm"}]))?, false)
    }),
    spec("allowed/allowed-open", "config-linux.md#allowed-device-list", "a device that is allowed can be opened", |t| {
        let list = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwm"}
        ]);
        same("read", read_device(t, list)?, true)
    }),
    spec("allowed/listed-order", "config-linux.md#allowed-device-list", "a later denial beats an earlier permission", |t| {
        let list = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwm"},
            {"allow": false, "type": "c", "major": 1, "minor": 11, "access": "rwm"}
        ]);
        same("read", read_device(t, list)?, false)
    }),
    spec("allowed/deny-all-last", "config-linux.md#allowed-device-list", "a final denial of everything takes all back", |t| {
        let list = json!([
            {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwm"},
            {"allow": false, "access": "rwm"}
        ]);
        same("read", read_device(t, list)?, false)
    }),
    strict("allowed/part-of-a-wildcard", "config-linux.md#allowed-device-list", "one minor denied after a whole major was allowed is denied, or the list is refused", |t| {
        let list = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "access": "rwm"},
            {"allow": false, "type": "c", "major": 1, "minor": 11, "access": "rwm"}
        ]);
        let output = probe(t, list)?.run()?;
        ensure!(output.code != 0 || !output.out.contains("opened"), "the denied device was opened");
        Ok(())
    }),
    spec("allowed/missing-minor-is-any", "config-linux.md#allowed-device-list", "without minor, every minor is meant", |t| {
        let list = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "access": "rwm"}]);
        same("read", read_device(t, list)?, true)
    }),
    spec("allowed/access-is-separate", "config-linux.md#allowed-device-list", "w does not permit r", |t| {
        let list = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "wm"}
        ]);
        same("read", read_device(t, list)?, false)
    }),
    spec("allowed/block-is-not-character", "config-linux.md#allowed-device-list", "a rule for b does not permit c", |t| {
        let list = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 1, "minor": 11, "access": "rwm"}
        ]);
        same("read", read_device(t, list)?, false)
    }),
    spec("allowed/unknown-access", "config.md#valid-values", "an access letter that is none is an error", |t| {
        let list = json!([{"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwx"}]);
        t.bundle()?.set("/linux/resources/devices", list).refused("access rwx").map(drop)
    }),
    spec("allowed/unknown-type", "config.md#valid-values", "a type that is none is an error", |t| {
        let list = json!([{"allow": true, "type": "x", "major": 1, "minor": 11, "access": "r"}]);
        t.bundle()?.set("/linux/resources/devices", list).refused("type x").map(drop)
    }),
    spec("allowed/fuse-as-docker-does", "CLIENTS: devices", "a device and its rule together make it usable", |t| {
        let device = json!({"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o600, "uid": 0, "gid": 0});
        let list = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]);
        let b = t.sh("exec 3</dev/kmsg && echo opened")?.push("/linux/devices", device).set("/linux/resources/devices", list);
        same("output", with_syslog(b).output()?.as_str(), "opened")
    })
    .needs(&[Need::File("/dev/kmsg")]),
];

fn default(t: &Test, name: &str, numbers: &str) -> Result<()> {
    let path = format!("/dev/{name}");
    let text = t.bundle()?.args(&["stat", "-c", "%F %t:%T %a", &path]).output()?;
    same("stat", text.as_str(), format!("character special file {numbers} 666").as_str())
}

fn link(t: &Test, name: &str, target: &str) -> Result<()> {
    let path = format!("/dev/{name}");
    same("link", t.bundle()?.args(&["readlink", &path]).output()?.as_str(), target)
}

/// Opening /dev/kmsg (1:11, no default device) for reading is the question.
fn read_device(t: &Test, list: Value) -> Result<bool> {
    let output = probe(t, list)?.run()?.ok()?;
    ensure!(output == "opened" || output == "denied", "{output}");
    Ok(output == "opened")
}

fn probe<'t>(t: &'t Test<'t>, list: Value) -> Result<super::bundle::Bundle<'t>> {
    // In /dev, for the folder of the bundle may be mounted nodev.
    let device = json!({"path": "/dev/probe", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666});
    let b = t.sh("if (exec 3</dev/probe) 2>/dev/null; then echo opened; else echo denied; fi")?;
    Ok(with_syslog(b.push("/linux/devices", device).set("/linux/resources/devices", list)))
}

/// Reading kernel messages may need this capability besides the device.
fn with_syslog(b: super::bundle::Bundle) -> super::bundle::Bundle {
    let caps = json!(["CAP_SYSLOG", "CAP_DAC_OVERRIDE", "CAP_MKNOD"]);
    b.set("/process/capabilities", json!({"bounding": caps, "permitted": caps, "effective": caps}))
}
