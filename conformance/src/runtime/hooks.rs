//! config.md#posix-platform-hooks and runtime.md#lifecycle: six kinds of hooks, when, where and with what.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::bundle::Bundle;
use super::case::{Case, spec, strict};
use super::harness::{Test, eventually, same};

const KINDS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

pub const CASES: &[Case] = &[
    spec(
        "hooks/order-of-kinds",
        "runtime.md#lifecycle",
        "prestart, createRuntime, createContainer, startContainer, program, poststart, poststop",
        |t| {
            let mut b = t.sh("echo program >>/tmp/log; usleep 200000")?;
            for kind in KINDS {
                b = hook(b, kind, &format!("echo {kind} >>LOG"));
            }
            b.run()?.ok()?;
            let log = log(&b)?;
            let at = |w: &str| {
                log.iter().position(|l| l == w).with_context(|| format!("{w} did not run: {log:?}"))
            };
            let order =
                ["prestart", "createRuntime", "createContainer", "startContainer", "program", "poststop"];
            for pair in order.windows(2) {
                ensure!(at(pair[0])? < at(pair[1])?, "{} ran after {}: {log:?}", pair[0], pair[1]);
            }
            ensure!(
                at("startContainer")? < at("poststart")? && at("poststart")? < at("poststop")?,
                "poststart: {log:?}"
            );
            Ok(())
        },
    ),
    spec(
        "hooks/listed-order",
        "config.md#posix-platform-hooks",
        "hooks of one kind run in the order listed",
        |t| {
            let mut b = t.bundle()?;
            for n in 1..=4 {
                b = hook(b, "createRuntime", &format!("echo {n} >>LOG"));
            }
            b.run()?.ok()?;
            same("order", log(&b)?.join(" ").as_str(), "1 2 3 4")
        },
    ),
    spec("hooks/prestart-at-create", "runtime.md#lifecycle", "prestart runs during create", |t| {
        runs_in_create(t, "prestart")
    }),
    spec(
        "hooks/create-runtime-at-create",
        "config.md#createruntime-hooks",
        "createRuntime runs during create",
        |t| runs_in_create(t, "createRuntime"),
    ),
    spec(
        "hooks/create-container-at-create",
        "config.md#createcontainer-hooks",
        "createContainer runs during create",
        |t| runs_in_create(t, "createContainer"),
    ),
    spec(
        "hooks/start-container-at-start",
        "config.md#startcontainer-hooks",
        "startContainer runs during start, not create",
        |t| {
            let b = hook(t.bundle()?, "startContainer", "echo x >>LOG");
            let c = b.create()?;
            ensure!(log(&b)?.is_empty(), "it ran during create");
            c.start()?;
            c.wait()?;
            same("runs", log(&b)?.len(), 1)
        },
    ),
    spec(
        "hooks/poststart-before-start-returns",
        "config.md#poststart",
        "poststart has ended when start returns",
        |t| {
            let b = hook(t.bundle()?.args(&["sleep", "100"]), "poststart", "usleep 50000; echo x >>LOG");
            let c = b.create()?;
            ensure!(log(&b)?.is_empty(), "it ran during create");
            c.start()?;
            same("runs", log(&b)?.len(), 1)
        },
    ),
    spec(
        "hooks/poststop-before-delete-returns",
        "config.md#poststop",
        "poststop runs in delete and has ended when delete returns",
        |t| {
            let b = hook(t.bundle()?, "poststop", "usleep 50000; echo x >>LOG");
            let c = b.start()?;
            c.wait()?;
            ensure!(log(&b)?.is_empty(), "it ran before delete");
            c.delete()?;
            same("runs", log(&b)?.len(), 1)
        },
    ),
    spec(
        "hooks/poststop-at-force-delete",
        "config.md#poststop",
        "delete --force runs poststop as well",
        |t| {
            let b = hook(t.bundle()?.args(&["sleep", "100"]), "poststop", "echo x >>LOG");
            let c = b.start()?;
            c.call(&["delete", "--force"])?.ok()?;
            same("runs", log(&b)?.len(), 1)
        },
    ),
    spec("hooks/poststop-after-run", "config.md#poststop", "run (which deletes) runs poststop", |t| {
        let b = hook(t.bundle()?, "poststop", "echo x >>LOG");
        b.run()?.ok()?;
        same("runs", log(&b)?.len(), 1)
    }),
    spec(
        "hooks/state-prestart",
        "config.md#posix-platform-hooks",
        "prestart reads the state on stdin",
        |t| stdin_state(t, "prestart", &["creating", "created"]),
    ),
    spec(
        "hooks/state-create-runtime",
        "config.md#posix-platform-hooks",
        "createRuntime reads the state on stdin",
        |t| stdin_state(t, "createRuntime", &["creating", "created"]),
    ),
    spec(
        "hooks/state-create-container",
        "config.md#posix-platform-hooks",
        "createContainer reads the state on stdin",
        |t| stdin_state(t, "createContainer", &["creating", "created"]),
    ),
    spec(
        "hooks/state-start-container",
        "config.md#posix-platform-hooks",
        "startContainer reads the state on stdin",
        |t| stdin_state(t, "startContainer", &["created", "running"]),
    ),
    spec(
        "hooks/state-poststart",
        "config.md#posix-platform-hooks",
        "poststart reads the state on stdin",
        |t| stdin_state(t, "poststart", &["running"]),
    ),
    spec(
        "hooks/state-poststop",
        "config.md#posix-platform-hooks",
        "poststop reads the state on stdin",
        |t| stdin_state(t, "poststop", &["stopped"]),
    ),
    strict("hooks/status-create-runtime", "runtime.md#state", "during create, the status is creating", |t| {
        stdin_state(t, "createRuntime", &["creating"])
    }),
    strict(
        "hooks/status-create-container",
        "runtime.md#state",
        "during create, createContainer sees creating",
        |t| stdin_state(t, "createContainer", &["creating"]),
    ),
    strict(
        "hooks/status-start-container",
        "runtime.md#state",
        "startContainer runs before the program: status is created",
        |t| stdin_state(t, "startContainer", &["created"]),
    ),
    spec(
        "hooks/state-has-pid-and-bundle",
        "runtime.md#state",
        "the state on stdin names pid, bundle and annotations",
        |t| {
            let b = hook(t.bundle()?, "createRuntime", "cat >LOG")
                .set("/annotations", json!({"com.example.k": "v"}));
            let c = b.create()?;
            let state = state_in_log(&b)?;
            same("pid", state["pid"].as_i64(), Some(c.pid.as_raw_nonzero().get().into()))?;
            same("bundle", state["bundle"].as_str(), Some(b.dir_text().as_str()))?;
            same("annotation", state["annotations"]["com.example.k"].as_str(), Some("v"))
        },
    ),
    spec(
        "hooks/args-and-env",
        "config.md#posix-platform-hooks",
        "args are argv from argv[0], env is the whole environment",
        |t| {
            let b = t.bundle()?;
            let log = log_path(&b);
            let script = format!("echo \"$0|$1|$(env | grep -c '^ONLY=this$')|$HOME\" >{log}");
            let entry = json!({"path": "/bin/sh", "args": ["sh", "-c", script, "zero", "one"], "env": ["ONLY=this", "PATH=/usr/bin:/bin"]});
            let b = b.push("/hooks/createRuntime", entry);
            b.run()?.ok()?;
            same("hook saw", fs::read_to_string(log_path(&b))?.trim(), "zero|one|1|")
        },
    ),
    spec(
        "hooks/path-resolves-on-host",
        "config.md#posix-platform-hooks",
        "createContainer's path is looked up on the host",
        |t| {
            let b = t.bundle()?;
            let tool = b.dir.join("host-tool");
            fs::write(&tool, format!("#!/bin/sh\necho tool >{}\n", log_path(&b)))?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(&tool, mode)?;
            let b = b.push("/hooks/createContainer", json!({"path": tool}));
            b.run()?.ok()?;
            same("hook", log(&b)?.join(" ").as_str(), "tool")
        },
    ),
    spec(
        "hooks/start-container-path-in-container",
        "config.md#startcontainer-hooks",
        "startContainer's path is looked up in the container",
        |t| {
            let b = t.bundle()?.file("only-inside", "#!/bin/sh\necho inside >/tmp/log\n")?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(b.rootfs("only-inside"), mode)?;
            let b = b.push("/hooks/startContainer", json!({"path": "/only-inside"}));
            b.run()?.ok()?;
            same("hook", log(&b)?.join(" ").as_str(), "inside")
        },
    ),
    spec(
        "hooks/create-runtime-namespace",
        "config.md#createruntime-hooks",
        "createRuntime runs in the runtime's namespaces",
        |t| {
            let b = hook(
                t.bundle()?,
                "createRuntime",
                "readlink /proc/self/ns/mnt /proc/self/ns/net /proc/self/ns/uts >LOG",
            );
            b.run()?.ok()?;
            same("namespaces", log(&b)?, host_namespaces(&["mnt", "net", "uts"])?)
        },
    ),
    spec(
        "hooks/create-container-namespace",
        "config.md#createcontainer-hooks",
        "createContainer runs in the container's namespaces",
        |t| {
            let b = hook(
                t.bundle()?,
                "createContainer",
                "readlink /proc/self/ns/mnt /proc/self/ns/net /proc/self/ns/uts >LOG",
            );
            let c = b.create()?;
            let want: Vec<_> = ["mnt", "net", "uts"]
                .iter()
                .map(|n| Ok(c.ns(n)?.to_string_lossy().into_owned()))
                .collect::<Result<_>>()?;
            same("namespaces", log(&b)?, want)
        },
    ),
    spec(
        "hooks/create-container-before-pivot",
        "config.md#createcontainer-hooks",
        "createContainer still sees the host's files",
        |t| {
            let b = hook(t.bundle()?, "createContainer", "ls DIR/config.json >LOG 2>&1");
            b.run()?.ok()?;
            ensure!(log(&b)?[0].ends_with("/config.json"), "it saw {:?}", log(&b)?);
            Ok(())
        },
    ),
    spec(
        "hooks/create-container-sees-mounts",
        "config.md#createcontainer-hooks",
        "the container's mounts are there when createContainer runs",
        |t| {
            let b = hook(t.bundle()?, "createContainer", "cat /proc/self/mountinfo >LOG");
            b.run()?.ok()?;
            let want = format!("{}/dev ", b.rootfs("").to_string_lossy().trim_end_matches('/'));
            ensure!(log(&b)?.iter().any(|l| l.contains(&want)), "no mount on rootfs/dev");
            Ok(())
        },
    ),
    spec(
        "hooks/start-container-namespace",
        "config.md#startcontainer-hooks",
        "startContainer runs in the container's namespaces and root",
        |t| {
            let b = hook(
                t.bundle()?,
                "startContainer",
                "readlink /proc/self/ns/mnt >/tmp/log; ls -d /bin/busybox >>/tmp/log",
            );
            let c = b.create()?;
            let want = c.ns("mnt")?.to_string_lossy().into_owned();
            c.start()?;
            c.wait()?;
            same("log", log(&b)?, vec![want, "/bin/busybox".to_owned()])
        },
    ),
    spec(
        "hooks/poststart-namespace",
        "config.md#poststart",
        "poststart runs in the runtime's namespaces",
        |t| {
            let b = hook(t.bundle()?, "poststart", "readlink /proc/self/ns/mnt /proc/self/ns/net >LOG");
            b.run()?.ok()?;
            same("namespaces", log(&b)?, host_namespaces(&["mnt", "net"])?)
        },
    ),
    spec(
        "hooks/poststop-namespace",
        "config.md#poststop",
        "poststop runs in the runtime's namespaces",
        |t| {
            let b = hook(t.bundle()?, "poststop", "readlink /proc/self/ns/mnt /proc/self/ns/net >LOG");
            b.run()?.ok()?;
            same("namespaces", log(&b)?, host_namespaces(&["mnt", "net"])?)
        },
    ),
    spec(
        "hooks/network-ready-for-prestart",
        "CLIENTS: BuildKit",
        "a prestart hook finds /proc/<pid>/ns/net of the container",
        |t| {
            let script = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/' | head -n1); readlink /proc/$pid/ns/net >LOG; readlink /proc/self/ns/net >>LOG";
            let b = hook(t.bundle()?, "prestart", script);
            b.run()?.ok()?;
            let log = log(&b)?;
            ensure!(
                log.len() == 2 && log[0] != log[1],
                "the container has no network namespace of its own yet: {log:?}"
            );
            Ok(())
        },
    ),
    spec(
        "hooks/failing-prestart",
        "runtime.md#lifecycle",
        "a failing prestart hook fails create and the container is gone",
        |t| failing(t, "prestart"),
    ),
    spec(
        "hooks/failing-create-runtime",
        "runtime.md#lifecycle",
        "a failing createRuntime hook fails create and the container is gone",
        |t| failing(t, "createRuntime"),
    ),
    spec(
        "hooks/failing-create-container",
        "runtime.md#lifecycle",
        "a failing createContainer hook fails create and the container is gone",
        |t| failing(t, "createContainer"),
    ),
    spec(
        "hooks/failing-start-container",
        "runtime.md#lifecycle",
        "a failing startContainer hook keeps the program from running",
        |t| {
            let b = hook(t.bundle()?.args(&["echo", "ran"]), "startContainer", "exit 7");
            let c = b.create()?;
            c.call(&["start"])?;
            c.wait()?;
            same("output", c.output()?.as_str(), "")?;
            ensure!(c.status().map_or(true, |s| s == "stopped"), "the container is not stopped");
            Ok(())
        },
    ),
    strict(
        "hooks/failing-start-container-is-reported",
        "runtime.md#lifecycle",
        "a failing startContainer hook makes start fail",
        |t| {
            let b = hook(t.bundle()?.args(&["echo", "ran"]), "startContainer", "exit 7");
            let c = b.create()?;
            c.call(&["start"])?.refused("start with a failing startContainer hook").map(drop)
        },
    ),
    strict(
        "hooks/failing-poststart",
        "runtime.md#lifecycle",
        "1.3: a failing poststart hook fails start and stops the container",
        |t| {
            let b = hook(t.bundle()?.args(&["sleep", "100"]), "poststart", "exit 7");
            let c = b.create()?;
            c.call(&["start"])?.refused("start with a failing poststart hook")?;
            eventually("the container is stopped or gone", || Ok(c.status().map_or(true, |s| s == "stopped")))
        },
    ),
    strict(
        "hooks/failing-poststart-deletes",
        "runtime.md#lifecycle",
        "1.3: after a failing poststart hook the lifecycle goes on with delete and poststop",
        |t| {
            let b = hook(t.bundle()?.args(&["sleep", "100"]), "poststart", "exit 7");
            let b = hook(b, "poststop", "echo poststop >>LOG");
            let c = b.create()?;
            c.call(&["start"])?.refused("start with a failing poststart hook")?;
            ensure!(t.rt(&["state", &c.id])?.code != 0, "the container is still there");
            same("log", log(&b)?.join(" ").as_str(), "poststop")
        },
    ),
    spec(
        "hooks/failing-poststop",
        "runtime.md#lifecycle",
        "a failing poststop hook does not keep the others and delete from finishing",
        |t| {
            let b = hook(t.bundle()?, "poststop", "exit 7");
            let b = hook(b, "poststop", "echo second >>LOG");
            let c = b.start()?;
            c.wait()?;
            c.call(&["delete"])?;
            ensure!(t.rt(&["state", &c.id])?.code != 0, "the container is still there");
            same("log", log(&b)?.join(" ").as_str(), "second")
        },
    ),
    strict(
        "hooks/failing-create-runs-poststop",
        "runtime.md#lifecycle",
        "a failing createRuntime hook continues with poststop",
        |t| {
            let b = hook(t.bundle()?, "createRuntime", "exit 7");
            let b = hook(b, "poststop", "echo poststop >>LOG");
            b.run()?.refused("a failing createRuntime hook")?;
            same("log", log(&b)?.join(" ").as_str(), "poststop")
        },
    ),
    spec(
        "hooks/failing-stops-the-rest",
        "runtime.md#lifecycle",
        "after a failing createRuntime hook the next one does not run",
        |t| {
            let b = hook(t.bundle()?, "createRuntime", "exit 7");
            let b = hook(b, "createRuntime", "echo second >>LOG");
            b.run()?.refused("a failing hook")?;
            same("log", log(&b)?.len(), 0)
        },
    ),
    spec(
        "hooks/failure-names-the-hook",
        "CLI: errors",
        "the message of a failing hook says that a hook failed",
        |t| {
            let b = hook(t.bundle()?, "createRuntime", "exit 7");
            b.run()?.refused_with("a failing hook", &["hook", "createruntime"])
        },
    ),
    spec(
        "hooks/timeout",
        "config.md#posix-platform-hooks",
        "a hook that exceeds its timeout is aborted and fails",
        |t| {
            let entry = json!({"path": "/bin/sleep", "args": ["sleep", "15"], "timeout": 1});
            let b = t.bundle()?.push("/hooks/createRuntime", entry);
            let begun = std::time::Instant::now();
            b.run()?.refused("a hook that takes too long")?;
            ensure!(begun.elapsed().as_secs() < 10, "it was waited for");
            Ok(())
        },
    ),
    strict("hooks/timeout-zero", "config.md#posix-platform-hooks", "a timeout of zero is not valid", |t| {
        let entry = json!({"path": "/bin/true", "timeout": 0});
        t.bundle()?.push("/hooks/createRuntime", entry).refused("timeout 0").map(drop)
    }),
    strict("hooks/relative-path", "config.md#posix-platform-hooks", "a hook's path must be absolute", |t| {
        t.bundle()?
            .push("/hooks/createRuntime", json!({"path": "true"}))
            .refused("a relative hook path")
            .map(drop)
    }),
    spec(
        "hooks/missing-program",
        "config.md#posix-platform-hooks",
        "a hook that cannot be executed is a failing hook",
        |t| {
            t.bundle()?
                .push("/hooks/createRuntime", json!({"path": "/nonexistent/hook"}))
                .refused("a missing hook")
                .map(drop)
        },
    ),
    spec(
        "hooks/unread-stdin",
        "config.md#posix-platform-hooks",
        "a hook that does not read its stdin is no failure",
        |t| {
            let notes: serde_json::Map<_, _> =
                (0..2000).map(|n| (format!("com.example.{n}"), json!("x".repeat(60)))).collect();
            let b = t
                .bundle()?
                .push("/hooks/createRuntime", json!({"path": "/bin/true"}))
                .set("/annotations", Value::Object(notes));
            b.run()?.ok().map(drop)
        },
    ),
];

/// Add a hook that runs a shell script. LOG becomes the log file, DIR the bundle.
fn hook<'t>(bundle: Bundle<'t>, kind: &str, script: &str) -> Bundle<'t> {
    let log = if kind == "startContainer" { "/tmp/log".to_owned() } else { log_path(&bundle) };
    let script = script.replace("LOG", &log).replace("DIR", &bundle.dir_text());
    let env = "PATH=/usr/bin:/bin:/usr/sbin:/sbin";
    bundle.push(
        &format!("/hooks/{kind}"),
        json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": [env]}),
    )
}

/// One file for hooks on both sides: `/tmp/log` in the container.
fn log_path(bundle: &Bundle) -> String {
    bundle.rootfs("tmp/log").to_string_lossy().into_owned()
}

fn log(bundle: &Bundle) -> Result<Vec<String>> {
    match fs::read_to_string(log_path(bundle)) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).context("read the hooks' log"),
    }
}

fn state_in_log(bundle: &Bundle) -> Result<Value> {
    let text = fs::read_to_string(log_path(bundle)).context("the hook did not run")?;
    serde_json::from_str(&text).with_context(|| format!("state on stdin is not JSON: {text:?}"))
}

fn runs_in_create(t: &Test, kind: &str) -> Result<()> {
    let b = hook(t.bundle()?.args(&["sleep", "100"]), kind, "echo x >>LOG");
    let c = b.create()?;
    same("runs during create", log(&b)?.len(), 1)?;
    c.start()?;
    same("runs after start", log(&b)?.len(), 1)
}

/// The state arrives whole, and its status is one of `allowed`.
fn stdin_state(t: &Test, kind: &str, allowed: &[&str]) -> Result<()> {
    let b = hook(t.bundle()?, kind, "cat >LOG");
    let c = b.start()?;
    c.wait()?;
    c.delete()?;
    let state = state_in_log(&b)?;
    same("id", state["id"].as_str(), Some(b.id.as_str()))?;
    ensure!(state["ociVersion"].is_string(), "no ociVersion");
    let status = state["status"].as_str().unwrap_or_default();
    ensure!(allowed.contains(&status), "status is {status:?}, expected {}", allowed.join(" or "));
    Ok(())
}

fn failing(t: &Test, kind: &str) -> Result<()> {
    let b = hook(t.bundle()?, kind, "exit 7");
    b.write()?;
    t.rt(&["create", "--bundle", &b.dir_text(), &b.id])?.refused("create with a failing hook")?;
    ensure!(t.rt(&["state", &b.id])?.code != 0, "the container is there");
    Ok(())
}

fn host_namespaces(names: &[&str]) -> Result<Vec<String>> {
    names
        .iter()
        .map(|n| Ok(fs::read_link(format!("/proc/self/ns/{n}"))?.to_string_lossy().into_owned()))
        .collect()
}
