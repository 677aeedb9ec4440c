//! The runtime as an ordinary user: a user namespace with the caller's own id, no cgroup rights.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::bundle::Bundle;
use super::case::{Case, contract};
use super::harness::{Output, Test, same};
use super::host::{Need, program};

/// An id that needs no account.
const USER: u32 = 54_321;

const NEEDS: &[Need] = &[Need::Root, Need::Program("setpriv"), Need::File("/proc/self/ns/user")];

pub const CASES: &[Case] = &[
    contract(
        "rootless/run",
        "CLI: spec --rootless",
        "an ordinary user runs a program with its own id mapped",
        |t| {
            let b = rootless(t.sh("id -u; cat /proc/self/uid_map | tr -s ' '")?)?;
            let text = as_user(t, &b, &["run", "--bundle", &b.dir_text(), &b.id])?.ok()?;
            same("output", text.as_str(), &format!("0\n 0 {USER} 1"))
        },
    )
    .needs(NEEDS),
    contract("rootless/exit-code", "CLI: run", "its exit code comes through", |t| {
        let b = rootless(t.sh("exit 42")?)?;
        same("exit status", as_user(t, &b, &["run", "--bundle", &b.dir_text(), &b.id])?.code, 42)
    })
    .needs(NEEDS),
    contract("rootless/lifecycle", "CLI: create", "create, start, exec, kill, delete work", |t| {
        let b = rootless(t.bundle()?.args(&["sleep", "100"]))?;
        let call = |args: &[&str]| as_user(t, &b, args)?.ok().with_context(|| args.join(" "));
        call(&["create", "--bundle", &b.dir_text(), &b.id])?;
        let lived = call(&["start", &b.id])
            .and_then(|_| same("exec", call(&["exec", &b.id, "echo", "hello"])?.as_str(), "hello"))
            .and_then(|()| call(&["kill", &b.id, "KILL"]));
        call(&["delete", "--force", &b.id])?;
        lived.map(drop)
    })
    .needs(NEEDS),
    contract(
        "rootless/cannot-map-others",
        "config-linux.md#user-namespace-mappings",
        "ids that the user has no right to are an error",
        |t| {
            let map = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
            let b = rootless(t.bundle()?.args(&["echo", "the program ran"]))?.set("/linux/uidMappings", map);
            b.write()?;
            let output =
                as_user(t, &b, &["run", "--bundle", &b.dir_text(), &b.id])?.refused("a mapping of root")?;
            ensure!(!output.out.contains("the program ran"), "the program ran");
            Ok(())
        },
    )
    .needs(NEEDS),
    contract(
        "rootless/limit-without-cgroup",
        "config.md#valid-values",
        "a limit that cannot be set is an error, not silence",
        |t| {
            let b = rootless(t.bundle()?.args(&["echo", "the program ran"]))?;
            let b = b.set("/linux/resources", json!({"pids": {"limit": 10}}));
            b.write()?;
            let output = as_user(t, &b, &["run", "--bundle", &b.dir_text(), &b.id])?;
            ensure!(!output.out.contains("the program ran"), "the program ran without its limit");
            output.refused("a limit without a cgroup").map(drop)
        },
    )
    .needs(NEEDS),
];

/// What `spec --rootless` writes: one id mapped, the host's network, no sysfs and no cgroup of its own.
fn rootless<'t>(b: Bundle<'t>) -> Result<Bundle<'t>> {
    std::os::unix::fs::chown(&b.dir, Some(USER), Some(USER))?;
    let map = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
    let pts = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]});
    Ok(b.namespace("user", Some(json!({"type": "user"})))
        .namespace("network", None)
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
        .unset("/linux/resources")
        .unset("/linux/cgroupsPath")
        .without_mount("/sys")
        .without_mount("/dev/pts")
        .push("/mounts", pts))
}

fn as_user(t: &Test, b: &Bundle, args: &[&str]) -> Result<Output> {
    b.write()?;
    let Some(setpriv) = program("setpriv") else { return Err(super::case::skip("needs program setpriv")) };
    let home = b.dir.join("home");
    std::fs::create_dir_all(&home)?;
    std::os::unix::fs::chown(&home, Some(USER), Some(USER))?;
    let id = USER.to_string();
    let mut command = Command::new(setpriv);
    command.args([
        "--reuid",
        &id,
        "--regid",
        &id,
        "--clear-groups",
        "--bounding-set",
        "-all",
        "--inh-caps",
        "-all",
    ]);
    command.arg(&t.suite.runtime).arg("--root").arg(home.join("root")).args(args);
    command.env("XDG_RUNTIME_DIR", &home).env("HOME", &home).current_dir(&home);
    t.finish(command)
}
