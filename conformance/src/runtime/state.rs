//! runtime.md#state: what the state object says, and in which form.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::case::{Case, contract, spec};
use super::harness::same;

pub const CASES: &[Case] = &[
    spec("state/id", "runtime.md#state", "id is the container's id", |t| {
        let c = t.bundle()?.create()?;
        same("id", c.state()?["id"].as_str(), Some(c.id.as_str()))
    }),
    spec("state/oci-version", "runtime.md#state", "ociVersion is a 1.x version", |t| {
        let state = t.bundle()?.create()?.state()?;
        let version = state["ociVersion"].as_str().context("no ociVersion")?;
        ensure!(version.starts_with("1."), "ociVersion is {version}");
        Ok(())
    }),
    spec("state/pid-is-the-init", "runtime.md#state", "pid is the main process, as the host sees it", |t| {
        let c = t.bundle()?.create()?;
        same("pid", c.state()?["pid"].as_i64(), Some(c.pid.as_raw_nonzero().get().into()))
    }),
    spec("state/pid-does-not-change", "runtime.md#state", "start keeps the pid", |t| {
        let c = t.bundle()?.args(&["sleep", "100"]).create()?;
        c.start()?;
        same("pid", c.state()?["pid"].as_i64(), Some(c.pid.as_raw_nonzero().get().into()))
    }),
    spec("state/bundle-is-absolute", "runtime.md#state", "bundle is the absolute path of the bundle", |t| {
        let b = t.bundle()?;
        let c = b.create()?;
        same("bundle", c.state()?["bundle"].as_str(), Some(b.dir_text().as_str()))
    }),
    spec(
        "state/bundle-from-relative",
        "runtime.md#state",
        "bundle is absolute also when it was named by a relative path",
        |t| {
            let b = t.bundle()?;
            b.write()?;
            let name = b.dir.file_name().context("name")?.to_string_lossy().into_owned();
            t.rt(&["create", "--bundle", &name, &b.id])?.ok()?;
            same("bundle", t.state(&b.id)?["bundle"].as_str(), Some(b.dir_text().as_str()))
        },
    ),
    spec("state/annotations", "runtime.md#state", "annotations of the config appear", |t| {
        let notes = json!({"com.example.one": "1", "com.example.empty": ""});
        let c = t.bundle()?.set("/annotations", notes).create()?;
        let state = c.state()?;
        same("com.example.one", state["annotations"]["com.example.one"].as_str(), Some("1"))?;
        same("com.example.empty", state["annotations"]["com.example.empty"].as_str(), Some(""))
    }),
    spec(
        "state/no-annotations",
        "runtime.md#state",
        "without annotations, the property is absent or an object",
        |t| {
            let state = t.bundle()?.create()?.state()?;
            ensure!(
                matches!(&state["annotations"], Value::Null | Value::Object(_)),
                "annotations: {}",
                state["annotations"]
            );
            Ok(())
        },
    ),
    spec("state/types", "runtime.md#state", "strings are strings and pid is a number", |t| {
        let state = t.bundle()?.create()?.state()?;
        for key in ["ociVersion", "id", "status", "bundle"] {
            ensure!(state[key].is_string(), "{key} is {}", state[key]);
        }
        ensure!(state["pid"].is_number(), "pid is {}", state["pid"]);
        Ok(())
    }),
    contract(
        "state/runc-shape",
        "CLI: state",
        "rootfs, created (RFC 3339, UTC) and owner are there, as runc prints them",
        |t| {
            let c = t.bundle()?.create()?;
            let state = c.state()?;
            same("rootfs", state["rootfs"].as_str(), Some(&*c.dir.join("rootfs").to_string_lossy()))?;
            rfc3339(state["created"].as_str().context("no created")?)?;
            ensure!(state["owner"].is_string(), "owner is {}", state["owner"]);
            Ok(())
        },
    ),
    contract("state/stopped-pid-is-zero", "CLI: state", "a stopped container's pid is 0", |t| {
        let c = t.bundle()?.start()?;
        c.wait()?;
        same("pid", c.state()?["pid"].as_i64(), Some(0))
    }),
    contract(
        "state/paused",
        "CLI: pause",
        "a paused container's status is paused, and running again after resume",
        |t| {
            let c = t.bundle()?.args(&["sleep", "100"]).start()?;
            c.call(&["pause"])?.ok()?;
            same("status", c.status()?.as_str(), "paused")?;
            c.call(&["resume"])?.ok()?;
            same("status", c.status()?.as_str(), "running")
        },
    ),
];

pub fn rfc3339(text: &str) -> Result<()> {
    let bytes = text.as_bytes();
    let digits = |r: std::ops::Range<usize>| bytes.get(r).is_some_and(|b| b.iter().all(u8::is_ascii_digit));
    let good =
        digits(0..4) && digits(5..7) && digits(8..10) && digits(11..13) && digits(14..16) && digits(17..19);
    ensure!(good && bytes[10] == b'T' && text.ends_with('Z'), "{text} is not an RFC 3339 time in UTC");
    Ok(())
}
