//! runtime.md: create, start, state, kill, delete, and what may be done when.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::case::{Case, spec, strict};
use super::harness::{Test, eventually, same};

pub const CASES: &[Case] = &[
    spec("lifecycle/create-is-created", "runtime.md#create", "after create, status is created", |t| {
        same("status", t.bundle()?.create()?.status()?.as_str(), "created")
    }),
    spec("lifecycle/create-does-not-run", "runtime.md#create", "create does not run the program", |t| {
        let c = t.sh("echo ran >/ran; sleep 100")?.create()?;
        ensure!(!c.dir.join("rootfs/ran").exists(), "the program ran before start");
        c.start()?;
        eventually("the program runs after start", || Ok(c.dir.join("rootfs/ran").exists()))?;
        c.stop()
    }),
    spec("lifecycle/start-is-running", "runtime.md#start", "after start, status is running", |t| {
        let c = t.bundle()?.args(&["sleep", "100"]).start()?;
        same("status", c.status()?.as_str(), "running")
    }),
    spec(
        "lifecycle/exit-is-stopped",
        "runtime.md#kill",
        "status is stopped once the process ended by itself",
        |t| {
            let c = t.bundle()?.start()?;
            c.wait()?;
            same("status", c.status()?.as_str(), "stopped")
        },
    ),
    spec(
        "lifecycle/killed-is-stopped",
        "runtime.md#kill",
        "status is stopped once the process was killed",
        |t| {
            let c = t.bundle()?.args(&["sleep", "100"]).start()?;
            c.stop()?;
            same("status", c.status()?.as_str(), "stopped")
        },
    ),
    spec(
        "lifecycle/config-is-read-once",
        "runtime.md#create",
        "changes to config.json after create have no effect",
        |t| {
            let b = t.bundle()?.args(&["echo", "first"]);
            let c = b.create()?;
            fs::write(b.dir.join("config.json"), "{}")?;
            c.start()?;
            c.wait()?;
            same("output", c.output()?.as_str(), "first")
        },
    ),
    spec(
        "lifecycle/config-may-vanish",
        "runtime.md#create",
        "config.json may be gone at start and delete",
        |t| {
            let b = t.bundle()?.args(&["echo", "first"]);
            let c = b.create()?;
            fs::remove_file(b.dir.join("config.json"))?;
            c.start()?;
            c.wait()?;
            c.delete()
        },
    ),
    spec(
        "lifecycle/id-is-unique",
        "runtime.md#create",
        "create refuses an id that exists and leaves that container alone",
        |t| {
            let b = t.bundle()?.args(&["sleep", "100"]);
            let c = b.start()?;
            t.rt(&["create", "--bundle", &b.dir_text(), &c.id])?.refused("an id in use")?;
            same("status", c.status()?.as_str(), "running")
        },
    ),
    spec(
        "lifecycle/id-can-be-reused",
        "runtime.md#delete",
        "a deleted container's id may be used again",
        |t| {
            let b = t.bundle()?;
            for _ in 0..2 {
                let c = b.start()?;
                c.wait()?;
                c.delete()?;
            }
            Ok(())
        },
    ),
    spec("lifecycle/create-without-id", "runtime.md#create", "create without an id is an error", |t| {
        let b = t.bundle()?;
        b.write()?;
        t.rt(&["create", "--bundle", &b.dir_text()])?.refused("create without an id").map(drop)
    }),
    spec(
        "lifecycle/create-without-config",
        "runtime.md#create",
        "create of a folder without config.json is an error",
        |t| {
            let b = t.bundle()?;
            t.rt(&["create", "--bundle", &b.dir_text(), &b.id])?
                .refused("a folder without config.json")
                .map(drop)
        },
    ),
    spec(
        "lifecycle/create-without-bundle",
        "runtime.md#create",
        "create of a bundle that is not there is an error",
        |t| {
            let b = t.bundle()?;
            t.rt(&["create", "--bundle", "/nonexistent", &b.id])?.refused("a missing bundle").map(drop)
        },
    ),
    spec("lifecycle/state-without-id", "runtime.md#query-state", "state without an id is an error", |t| {
        t.rt(&["state"])?.refused("state without an id").map(drop)
    }),
    spec(
        "lifecycle/state-of-unknown",
        "runtime.md#query-state",
        "state of a container that does not exist is an error",
        |t| t.rt(&["state", "nobody"])?.refused("state of nobody").map(drop),
    ),
    spec("lifecycle/start-without-id", "runtime.md#start", "start without an id is an error", |t| {
        t.rt(&["start"])?.refused("start without an id").map(drop)
    }),
    spec(
        "lifecycle/start-of-unknown",
        "runtime.md#start",
        "start of a container that does not exist is an error",
        |t| t.rt(&["start", "nobody"])?.refused("start of nobody").map(drop),
    ),
    spec(
        "lifecycle/start-twice",
        "runtime.md#start",
        "start of a running container is an error and changes nothing",
        |t| {
            let c = t.bundle()?.args(&["sleep", "100"]).start()?;
            c.call(&["start"])?.refused("a second start")?;
            same("status", c.status()?.as_str(), "running")
        },
    ),
    spec("lifecycle/start-of-stopped", "runtime.md#start", "start of a stopped container is an error", |t| {
        let c = t.bundle()?.start()?;
        c.wait()?;
        c.call(&["start"])?.refused("start of a stopped container")?;
        same("status", c.status()?.as_str(), "stopped")
    }),
    spec(
        "lifecycle/start-needs-process",
        "runtime.md#start",
        "start of a container whose config has no process is an error",
        |t| {
            let b = t.bundle()?.unset("/process");
            b.write()?;
            let created = t.rt(&["create", "--bundle", &b.dir_text(), &b.id])?;
            if created.code == 0 {
                t.rt(&["start", &b.id])?.refused("start without process")?;
            } else {
                created.refused("create without process")?;
            }
            Ok(())
        },
    ),
    spec("lifecycle/kill-without-id", "runtime.md#kill", "kill without an id is an error", |t| {
        t.rt(&["kill"])?.refused("kill without an id").map(drop)
    }),
    spec(
        "lifecycle/kill-of-unknown",
        "runtime.md#kill",
        "kill of a container that does not exist is an error",
        |t| t.rt(&["kill", "nobody", "TERM"])?.refused("kill of nobody").map(drop),
    ),
    spec("lifecycle/kill-of-stopped", "runtime.md#kill", "kill of a stopped container is an error", |t| {
        let c = t.bundle()?.start()?;
        c.wait()?;
        c.kill("TERM")?.refused("kill of a stopped container").map(drop)
    }),
    spec("lifecycle/kill-sends-signal", "runtime.md#kill", "kill sends the signal that was asked for", |t| {
        let c =
            t.sh("trap 'echo got usr1; exit 3' USR1; echo ready; while :; do sleep 0.02; done")?.start()?;
        eventually("ready", || Ok(c.output()?.contains("ready")))?;
        c.kill("USR1")?.ok()?;
        c.wait()?;
        ensure!(c.output()?.contains("got usr1"), "the program saw no SIGUSR1");
        Ok(())
    }),
    spec(
        "lifecycle/kill-of-created",
        "runtime.md#kill",
        "a created container can be killed and is stopped then",
        |t| {
            let c = t.bundle()?.create()?;
            c.stop()?;
            same("status", c.status()?.as_str(), "stopped")
        },
    ),
    spec("lifecycle/delete-without-id", "runtime.md#delete", "delete without an id is an error", |t| {
        t.rt(&["delete"])?.refused("delete without an id").map(drop)
    }),
    spec(
        "lifecycle/delete-of-unknown",
        "runtime.md#delete",
        "delete of a container that does not exist is an error",
        |t| t.rt(&["delete", "nobody"])?.refused("delete of nobody").map(drop),
    ),
    spec(
        "lifecycle/delete-of-running",
        "runtime.md#delete",
        "delete of a running container is an error and leaves it running",
        |t| {
            let c = t.bundle()?.args(&["sleep", "100"]).start()?;
            c.call(&["delete"])?.refused("delete of a running container")?;
            same("status", c.status()?.as_str(), "running")
        },
    ),
    spec(
        "lifecycle/delete-removes-all",
        "runtime.md#delete",
        "delete removes state, process and cgroups",
        |t| {
            let c = t.bundle()?.start()?;
            c.wait()?;
            c.delete()?;
            gone(t, &c.id)
        },
    ),
    spec(
        "lifecycle/delete-spares-bundle",
        "runtime.md#delete",
        "delete leaves what create did not make: the bundle",
        |t| {
            let b = t.bundle()?;
            let c = b.start()?;
            c.wait()?;
            c.delete()?;
            ensure!(
                b.rootfs("bin/busybox").exists() && b.dir.join("config.json").exists(),
                "the bundle was changed"
            );
            Ok(())
        },
    ),
    spec(
        "lifecycle/delete-ends-namespaces",
        "runtime.md#delete",
        "no mount of the container is left on the host",
        |t| {
            let c = t.bundle()?.start()?;
            c.wait()?;
            c.delete()?;
            let text = fs::read_to_string("/proc/self/mountinfo")?;
            ensure!(!text.contains(&*c.dir.to_string_lossy()), "the host still has a mount in the bundle");
            Ok(())
        },
    ),
    spec(
        "lifecycle/failed-create-leaves-nothing",
        "runtime.md#errors",
        "a create that fails leaves no state and no cgroup",
        |t| {
            let b = t.bundle()?.mount("/mnt", "bind", "/nonexistent/source", &["bind"]);
            b.write()?;
            t.rt(&["create", "--bundle", &b.dir_text(), &b.id])?.refused("a missing bind source")?;
            ensure!(!t.root().join(&b.id).exists(), "the state folder is there");
            gone(t, &b.id)
        },
    ),
    spec(
        "lifecycle/failed-create-frees-id",
        "runtime.md#errors",
        "after a create that failed, the same id can be created",
        |t| {
            let b = t.bundle()?.args(&["/nonexistent/program"]);
            b.run()?.refused("a missing program")?;
            b.args(&["true"]).run()?.ok()?;
            Ok(())
        },
    ),
    spec(
        "lifecycle/two-containers",
        "runtime.md#scope-of-a-container",
        "two containers live side by side",
        |t| {
            let a = t.bundle()?.args(&["sleep", "100"]).start()?;
            let b = t.bundle()?.args(&["sleep", "100"]).start()?;
            a.stop()?;
            same("a", a.status()?.as_str(), "stopped")?;
            same("b", b.status()?.as_str(), "running")
        },
    ),
    spec(
        "lifecycle/relative-bundle",
        "runtime.md#create",
        "the bundle may be named by a relative path",
        |t| {
            let b = t.bundle()?.args(&["echo", "hello"]);
            b.write()?;
            let name = b.dir.file_name().context("name")?.to_string_lossy().into_owned();
            same("output", t.rt(&["run", "--bundle", &name, &b.id])?.ok()?.as_str(), "hello")
        },
    ),
    strict(
        "lifecycle/delete-of-paused",
        "runtime.md#delete",
        "delete of a paused container is an error and leaves it",
        |t| {
            let c = t.bundle()?.args(&["sleep", "100"]).start()?;
            c.call(&["pause"])?.ok()?;
            c.call(&["delete"])?.refused("delete of a paused container")?;
            same("status", c.status()?.as_str(), "paused")?;
            c.call(&["resume"])?.ok().map(drop)
        },
    ),
    strict(
        "lifecycle/delete-of-created",
        "runtime.md#delete",
        "delete of a created container works, as containerd relies on",
        |t| {
            let c = t.bundle()?.create()?;
            c.delete()?;
            gone(t, &c.id)?;
            ensure!(
                !Path::new(&format!("/proc/{}/ns", c.pid.as_raw_nonzero())).exists() || c.wait().is_ok(),
                "init lives"
            );
            Ok(())
        },
    ),
    strict(
        "lifecycle/quick-exit-never-hangs",
        "runtime.md#start",
        "a program that ends at once is waited for, ten times",
        |t| {
            let b = t.bundle()?;
            for _ in 0..10 {
                b.run()?.ok()?;
            }
            Ok(())
        },
    ),
    strict(
        "lifecycle/version-of-another-major",
        "config.md#specification-version",
        "an ociVersion of another major is refused",
        |t| t.bundle()?.set("/ociVersion", json!("2.0.0")).refused("ociVersion 2.0.0").map(drop),
    ),
    spec(
        "lifecycle/version-of-another-minor",
        "config.md#specification-version",
        "any 1.x version is accepted",
        |t| t.bundle()?.set("/ociVersion", json!("1.1.0")).run()?.ok().map(drop),
    ),
    spec("lifecycle/version-1-3", "config.md#specification-version", "version 1.3.0 is accepted", |t| {
        t.bundle()?.set("/ociVersion", json!("1.3.0")).run()?.ok().map(drop)
    }),
    spec(
        "lifecycle/version-not-semver",
        "config.md#specification-version",
        "ociVersion must be a semantic version",
        |t| t.bundle()?.set("/ociVersion", json!("one")).refused("ociVersion one").map(drop),
    ),
    strict("lifecycle/version-missing", "config.md#specification-version", "ociVersion is required", |t| {
        t.bundle()?.unset("/ociVersion").refused("a config without ociVersion").map(drop)
    }),
];

/// No state folder and no cgroup of this id.
fn gone(t: &Test, id: &str) -> Result<()> {
    ensure!(t.rt(&["state", id])?.code != 0, "state still knows {id}");
    for (name, mount) in &t.suite.host.v1 {
        let dir = mount.join(&t.suite.cgroup).join(id);
        ensure!(!dir.exists(), "the cgroup of {name} is left");
    }
    if let Some(mount) = &t.suite.host.v2 {
        ensure!(!mount.join(&t.suite.cgroup).join(id).exists(), "the v2 cgroup is left");
    }
    Ok(())
}
