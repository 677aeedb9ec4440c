//! runc's command line as engines use it: global flags, create, run, kill, delete, list, ps, update, events,
//! spec, features, messages and exit codes.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::case::{Case, contract, skip, strict};
use super::harness::{Container, Test, eventually, read_lossy, same};
use super::host::Need;
use super::terminal::{listener, receive_with_descriptors};

pub const CASES: &[Case] = &[
    contract("cli/version", "CLIENTS: dockerd", "--version says name, version and spec", |t| {
        let text = t.rt(&["--version"])?.ok()?;
        ensure!(text.lines().next().is_some_and(|l| l.contains(" version ")), "{text}");
        ensure!(text.lines().any(|l| l.starts_with("spec: 1.")), "no line spec: {text}");
        Ok(())
    }),
    contract("cli/help", "CLI: help", "--help exits 0 and names the verbs", |t| {
        let text = t.rt(&["--help"])?.ok()?;
        for verb in ["create", "start", "state", "kill", "delete", "exec", "run"] {
            ensure!(text.contains(verb), "no {verb} in the help");
        }
        Ok(())
    }),
    contract("cli/unknown-verb", "CLI: errors", "an unknown verb is an error", |t| {
        t.rt(&["ponies"])?.refused("verb ponies").map(drop)
    }),
    contract("cli/unknown-flag", "CLI: errors", "an unknown flag is an error", |t| {
        let b = t.bundle()?;
        b.write()?;
        t.rt(&["create", "--ponies", "--bundle", &b.dir_text(), &b.id])?.refused("--ponies").map(drop)
    }),
    contract("cli/features", "CLIENTS: dockerd", "features prints JSON of runtime-spec's form", |t| {
        let features: Value = serde_json::from_str(&t.rt(&["features"])?.ok()?)?;
        for key in ["ociVersionMin", "ociVersionMax"] {
            ensure!(features[key].is_string(), "{key} is {}", features[key]);
        }
        for key in ["/hooks", "/mountOptions", "/linux/namespaces", "/linux/capabilities"] {
            ensure!(features.pointer(key).is_some_and(Value::is_array), "{key} is no list");
        }
        ensure!(features["linux"]["seccomp"]["enabled"] == true, "seccomp is not enabled");
        Ok(())
    }),
    contract(
        "cli/features-are-true",
        "features.md",
        "the lists of features hold what config.md names",
        |t| {
            let features: Value = serde_json::from_str(&t.rt(&["features"])?.ok()?)?;
            let has = |pointer: &str, want: &str| {
                let list = features.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
                ensure!(list.iter().any(|v| v == want), "{pointer} has no {want}");
                Ok(())
            };
            for hook in
                ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
            {
                has("/hooks", hook)?;
            }
            for option in ["rbind", "ro", "nosuid", "rslave", "rro"] {
                has("/mountOptions", option)?;
            }
            for namespace in ["pid", "network", "mount", "ipc", "uts", "user", "cgroup"] {
                has("/linux/namespaces", namespace)?;
            }
            has("/linux/seccomp/actions", "SCMP_ACT_NOTIFY")?;
            has("/linux/seccomp/operators", "SCMP_CMP_MASKED_EQ")
        },
    ),
    contract(
        "cli/containerd-create",
        "CLIENTS: containerd",
        "containerd's calls: create, start, state, kill by number, delete, delete --force",
        |t| {
            let b = t.bundle()?.args(&["sleep", "100"]);
            b.write()?;
            let (dir, root, log, pid) =
                (b.dir_text(), t.root(), b.dir.join("log.json"), b.dir.join("init.pid"));
            let call = |args: &[&str]| {
                let mut command = Command::new(&t.suite.runtime);
                command
                    .arg("--root")
                    .arg(&root)
                    .arg("--log")
                    .arg(&log)
                    .args(["--log-format", "json"])
                    .args(args);
                t.finish(command)?.ok().with_context(|| args.join(" "))
            };
            let pid_text = pid.to_string_lossy().into_owned();
            call(&["create", "--bundle", &dir, "--pid-file", &pid_text, &b.id])?;
            call(&["start", &b.id])?;
            let state: Value = serde_json::from_str(&call(&["state", &b.id])?)?;
            same("status", state["status"].as_str(), Some("running"))?;
            call(&["kill", &b.id, "9"])?;
            let pid: i32 = fs::read_to_string(pid)?.trim().parse()?;
            super::harness::wait_pid(rustix::process::Pid::from_raw(pid).context("pid")?)?;
            call(&["delete", &b.id])?;
            call(&["delete", "--force", &b.id]).map(drop)
        },
    ),
    contract(
        "cli/pid-file",
        "CLIENTS: containerd",
        "the pid file holds the decimal pid and nothing else",
        |t| {
            let b = t.bundle()?;
            let c = b.create()?;
            same("pid file", fs::read_to_string(b.dir.join("pid"))?, c.pid.as_raw_nonzero().to_string())
        },
    ),
    contract(
        "cli/network-namespace-at-create",
        "CLIENTS: also seen",
        "/proc/<pid>/ns/net is the container's when create returns",
        |t| {
            let c = t.bundle()?.create()?;
            ensure!(c.ns("net")? != fs::read_link("/proc/self/ns/net")?, "still the host's");
            Ok(())
        },
    ),
    contract("cli/no-pivot", "CLI: create --no-pivot", "--no-pivot works", |t| {
        let b = t.sh("ls -d /bin/busybox; ls /..")?;
        ensure!(b.run_with(&["--no-pivot"])?.ok()?.starts_with("/bin/busybox"), "not in the root");
        Ok(())
    }),
    contract("cli/no-new-keyring", "CLI: create --no-new-keyring", "--no-new-keyring is accepted", |t| {
        t.bundle()?.run_with(&["--no-new-keyring"])?.ok().map(drop)
    }),
    contract(
        "cli/new-keyring",
        "CLI: create",
        "without it the container has a session keyring of its own",
        |t| {
            let b = t.bundle()?.args(&["cat", "/proc/keys"]);
            ensure!(b.output()?.contains("_ses"), "no session keyring inside");
            Ok(())
        },
    )
    .needs(&[Need::File("/proc/keys")]),
    contract("cli/no-subreaper", "CLI: run --no-subreaper", "--no-subreaper is accepted", |t| {
        t.bundle()?.run_with(&["--no-subreaper"])?.ok().map(drop)
    }),
    contract("cli/debug", "CLI: --debug", "--debug is accepted and the output stays the program's", |t| {
        let b = t.bundle()?.args(&["echo", "hello"]);
        b.write()?;
        same("output", t.rt(&["--debug", "run", "--bundle", &b.dir_text(), &b.id])?.ok()?.as_str(), "hello")
    }),
    contract(
        "cli/bundle-default",
        "CLI: create",
        "without --bundle, the bundle is the working directory",
        |t| {
            let b = t.bundle()?.args(&["echo", "hello"]);
            b.write()?;
            let mut command = t.command(&["run", &b.id]);
            command.current_dir(&b.dir);
            same("output", t.finish(command)?.ok()?.as_str(), "hello")
        },
    ),
    contract("cli/run-detach", "CLI: run --detach", "run --detach returns while the container runs", |t| {
        let b = t.bundle()?.args(&["sleep", "100"]);
        let pid = b.dir.join("pid").to_string_lossy().into_owned();
        b.run_with(&["--detach", "--pid-file", &pid])?.ok()?;
        same("status", t.state(&b.id)?["status"].as_str(), Some("running"))?;
        same("pid", t.state(&b.id)?["pid"].to_string(), fs::read_to_string(pid)?)
    }),
    contract(
        "cli/run-keep",
        "CLIENTS: BuildKit",
        "run --keep leaves the container stopped, delete removes it",
        |t| {
            let b = t.bundle()?;
            let output = b.run_with(&["--keep"])?;
            output.ok()?;
            same("status", t.state(&b.id)?["status"].as_str(), Some("stopped"))?;
            t.rt(&["delete", &b.id])?.ok().map(drop)
        },
    ),
    contract("cli/run-removes", "CLI: run", "run without --keep leaves nothing", |t| {
        let b = t.bundle()?;
        b.run()?.ok()?;
        ensure!(t.rt(&["state", &b.id])?.code != 0, "the container is there");
        Ok(())
    }),
    contract("cli/run-stdin", "CLI: run", "run passes standard input on", |t| {
        let b = t.bundle()?.args(&["cat"]);
        b.write()?;
        same(
            "output",
            t.rt_stdin(&["run", "--bundle", &b.dir_text(), &b.id], "typed")?.ok()?.as_str(),
            "typed",
        )
    }),
    contract("cli/run-stderr", "CLI: run", "standard error is the caller's", |t| {
        let output = t.sh("echo oops >&2")?.run()?;
        same("stderr", output.err.trim(), "oops")
    }),
    contract("cli/run-signal", "CLI: run", "a program killed by signal n makes run exit with 128+n", |t| {
        // In the host's pid namespace the program is no init, so the signal reaches it.
        let b = t.sh("kill -9 $$")?.namespace("pid", None);
        same("exit status", b.run()?.code, 137)
    }),
    contract("cli/run-forwards-signals", "CLI: run", "run in the foreground forwards SIGTERM", |t| {
        let b = t.sh("trap 'echo got term; exit 5' TERM; echo ready; while :; do sleep 0.02; done")?;
        b.write()?;
        let out = b.dir.join("out");
        let mut command = Command::new("/bin/sh");
        let script = "out=$1; shift; \"$@\" >\"$out\" 2>&1 & pid=$!; while ! grep -q ready \"$out\"; do kill -0 $pid || exit 1; sleep 0.02; done; kill -TERM $pid; wait $pid; echo $?";
        command.args(["-c", script, "sh"]).arg(&out).arg(&t.suite.runtime).arg("--root").arg(t.root());
        command.args(["run", "--bundle", &b.dir_text(), &b.id]);
        same("exit status", t.finish(command)?.ok()?.as_str(), "5")?;
        ensure!(read_lossy(&out)?.contains("got term"), "the program saw no SIGTERM");
        Ok(())
    }),
    contract(
        "cli/not-found-in-path",
        "CLIENTS: dockerd",
        "a missing name: executable file not found in $PATH",
        |t| {
            t.bundle()?
                .args(&["no-such-program"])
                .run()?
                .refused_with("a missing program", &["executable file not found in $path"])
        },
    ),
    contract("cli/not-found", "CLIENTS: dockerd", "a missing path: no such file or directory", |t| {
        t.bundle()?
            .args(&["/no/such/program"])
            .run()?
            .refused_with("a missing program", &["no such file or directory"])
    }),
    contract(
        "cli/permission-denied",
        "CLIENTS: dockerd",
        "a file that is not executable: permission denied",
        |t| {
            t.bundle()?
                .file("plain", "x")?
                .args(&["/plain"])
                .run()?
                .refused_with("a plain file", &["permission denied"])
        },
    ),
    contract(
        "cli/failed-run-status",
        "CLI: run",
        "a run that cannot start its program ends with a status from 1 to 255 that is no signal",
        |t| {
            let code = t.bundle()?.args(&["no-such-program"]).run()?.code;
            ensure!((1..=255).contains(&code) && !(129..=192).contains(&code), "exit status {code}");
            Ok(())
        },
    ),
    contract(
        "cli/log-json",
        "CLIENTS: containerd",
        "--log-format json: one object a line with level, msg and time",
        |t| {
            let b = t.bundle()?.args(&["no-such-program"]);
            b.write()?;
            let log = b.dir.join("log.json");
            let mut command = Command::new(&t.suite.runtime);
            command.arg("--root").arg(t.root()).arg("--log").arg(&log).args(["--log-format", "json"]);
            command.args(["create", "--bundle", &b.dir_text(), &b.id]);
            t.finish(command)?.refused("a missing program")?;
            let text = read_lossy(&log)?;
            let last = text.lines().last().context("the log is empty")?;
            let entry: Value = serde_json::from_str(last).with_context(|| format!("not JSON: {last}"))?;
            same("level", entry["level"].as_str(), Some("error"))?;
            ensure!(
                entry["msg"].as_str().is_some_and(|m| m.contains("no-such-program")),
                "msg is {}",
                entry["msg"]
            );
            ensure!(
                entry["time"].as_str().is_some_and(|s| s.len() >= 20 && s.as_bytes()[10] == b'T'),
                "time is {}",
                entry["time"]
            );
            Ok(())
        },
    ),
    contract(
        "cli/log-text",
        "CLI: --log",
        "--log without a format writes text, and stderr has the error, too",
        |t| {
            let b = t.bundle()?.args(&["no-such-program"]);
            b.write()?;
            let log = b.dir.join("log");
            let mut command = Command::new(&t.suite.runtime);
            command.arg("--root").arg(t.root()).arg("--log").arg(&log).args([
                "create",
                "--bundle",
                &b.dir_text(),
                &b.id,
            ]);
            let output = t.finish(command)?.refused("a missing program")?;
            ensure!(read_lossy(&log)?.contains("no-such-program"), "the log does not name the program");
            ensure!(output.err.contains("no-such-program"), "stderr does not name the program");
            Ok(())
        },
    ),
    contract("cli/does-not-exist", "CLIENTS: containerd", "a missing container: does not exist", |t| {
        t.rt(&["state", "nobody"])?.refused_with("nobody", &["does not exist"])
    }),
    contract("cli/already-exists", "CLI: create", "an id in use: exists", |t| {
        let b = t.bundle()?;
        let _c = b.create()?;
        t.rt(&["create", "--bundle", &b.dir_text(), &b.id])?.refused_with("an id in use", &["exist"])
    }),
    contract("cli/not-running", "CLIENTS: containerd", "kill of a stopped container: not running", |t| {
        let c = t.bundle()?.start()?;
        c.wait()?;
        c.kill("TERM")?.refused_with(
            "a stopped container",
            &["not running", "no such process", "process already finished"],
        )
    }),
    contract(
        "cli/process-finished",
        "CLIENTS: containerd",
        "containerd knows the wording for a process that is gone",
        |t| {
            let c = t.bundle()?.start()?;
            c.wait()?;
            // Its shim greps for these two and treats the container as gone.
            let words = ["process already finished", "container not running", "does not exist"];
            c.kill("9")?.refused_with("a stopped container", &words)
        },
    ),
    contract("id/slash", "THREATS: ids", "an id with a slash is refused", |t| bad_id(t, "a/b")),
    contract("id/dots", "THREATS: ids", "the id .. is refused", |t| bad_id(t, "..")),
    contract("id/dot", "THREATS: ids", "the id . is refused", |t| bad_id(t, ".")),
    contract("id/empty", "THREATS: ids", "an empty id is refused", |t| bad_id(t, "")),
    contract("id/blank", "THREATS: ids", "an id with a blank is refused", |t| bad_id(t, "a b")),
    contract("id/long", "THREATS: ids", "an id of 1100 letters is refused", |t| bad_id(t, &"x".repeat(1100))),
    contract("id/allowed", "CLI: ids", "letters, digits, +, -, _ and . are allowed", |t| {
        let b = t.bundle()?.unset("/linux/cgroupsPath");
        b.write()?;
        let id = format!("A.b_c-9+{}", t.ticket());
        t.adopt(&id);
        t.rt(&["run", "--bundle", &b.dir_text(), &id])?.ok().map(drop)
    }),
    contract("kill/number", "CLIENTS: containerd", "a signal by number", |t| kill_by(t, "15")),
    contract("kill/name", "CLI: kill", "a signal by name", |t| kill_by(t, "TERM")),
    contract("kill/full-name", "CLI: kill", "a signal by its full name", |t| kill_by(t, "SIGTERM")),
    contract("kill/lower-case", "CLI: kill", "a signal in small letters", |t| kill_by(t, "sigterm")),
    contract("kill/default", "CLI: kill", "without a signal, SIGTERM", |t| {
        let c = trapping(t)?;
        c.call(&["kill"])?.ok()?;
        c.wait()
    }),
    contract("kill/realtime", "CLI: kill", "a real-time signal by number", |t| {
        let c = t.bundle()?.args(&["sleep", "100"]).namespace("pid", None).start()?;
        c.kill("35")?.ok()?;
        c.wait()
    }),
    contract("kill/unknown", "CLI: kill", "an unknown signal is an error", |t| {
        let c = t.bundle()?.args(&["sleep", "100"]).start()?;
        c.kill("PONIES")?.refused("signal PONIES").map(drop)
    }),
    contract(
        "kill/all",
        "CLIENTS: containerd",
        "kill --all reaches every process of a container without a pid namespace",
        |t| {
            let c = t.sh("sleep 100 & sleep 100 & wait")?.namespace("pid", None).start()?;
            eventually(
                "three processes",
                || Ok(c.cgroup_file("pids", "cgroup.procs")?.lines().count() == 3),
            )?;
            t.rt(&["kill", "--all", &c.id, "9"])?.ok()?;
            eventually("none left", || Ok(c.cgroup_file("pids", "cgroup.procs")?.is_empty()))
        },
    ),
    contract(
        "kill/all-after-the-end",
        "CLIENTS: containerd",
        "kill --all reaches what is left when the first process is gone",
        |t| {
            let c = t.sh("sleep 100 & true")?.namespace("pid", None).start()?;
            c.wait()?;
            t.rt(&["kill", "--all", &c.id, "9"])?.ok()?;
            eventually("none left", || Ok(c.cgroup_file("pids", "cgroup.procs")?.is_empty()))
        },
    ),
    contract(
        "kill/orphans-on-kill",
        "CLI: kill",
        "SIGKILL of a container in the host's pid namespace leaves no process after delete",
        |t| {
            let c = t.sh("sleep 100 & sleep 100")?.namespace("pid", None).start()?;
            eventually("two processes", || Ok(c.cgroup_file("pids", "cgroup.procs")?.lines().count() >= 2))?;
            c.kill("KILL")?.ok()?;
            c.wait()?;
            c.call(&["delete", "--force"])?.ok().map(drop)
        },
    ),
    contract(
        "delete/force-of-unknown",
        "CLIENTS: containerd",
        "delete --force of a container that is gone exits 0",
        |t| t.rt(&["delete", "--force", "nobody"])?.ok().map(drop),
    ),
    contract(
        "delete/force-of-running",
        "CLI: delete --force",
        "delete --force kills and removes a running container",
        |t| {
            let c = t.bundle()?.args(&["sleep", "100"]).start()?;
            c.call(&["delete", "--force"])?.ok()?;
            c.wait()?;
            ensure!(t.rt(&["state", &c.id])?.code != 0, "it is still there");
            Ok(())
        },
    ),
    contract(
        "delete/force-of-created",
        "CLI: delete --force",
        "delete --force removes a created container",
        |t| {
            let c = t.bundle()?.create()?;
            c.call(&["delete", "-f"])?.ok()?;
            c.wait()
        },
    ),
    contract(
        "delete/force-of-paused",
        "CLI: delete --force",
        "delete --force removes a paused container",
        |t| {
            let c = t.bundle()?.args(&["sleep", "100"]).start()?;
            c.call(&["pause"])?.ok()?;
            c.call(&["delete", "--force"])?.ok()?;
            c.wait()
        },
    ),
    strict(
        "cli/flags-after-id",
        "issue: options may stand after the id",
        "create ID --bundle B works",
        |t| {
            let b = t.bundle()?;
            b.write()?;
            t.rt(&["create", &b.id, "--bundle", &b.dir_text()])?.ok()?;
            same("status", t.state(&b.id)?["status"].as_str(), Some("created"))
        },
    ),
    strict("cli/force-after-id", "issue: options may stand after the id", "delete ID --force works", |t| {
        let c = t.bundle()?.args(&["sleep", "100"]).start()?;
        t.rt(&["delete", &c.id, "--force"])?.ok().map(drop)
    }),
    contract("list/table", "CLI: list", "the table has runc's header and a line a container", |t| {
        let c = t.bundle()?.create()?;
        let text = t.rt(&["list"])?.ok()?;
        let header: Vec<_> = text.lines().next().unwrap_or_default().split_whitespace().collect();
        same("header", header, vec!["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"])?;
        let line: Vec<_> = text.lines().nth(1).unwrap_or_default().split_whitespace().take(4).collect();
        same(
            "line",
            line,
            vec![c.id.as_str(), &c.pid.as_raw_nonzero().to_string(), "created", &c.dir.to_string_lossy()],
        )
    }),
    contract("list/json", "CLI: list --format json", "an array of objects with runc's keys", |t| {
        let c = t.bundle()?.create()?;
        let list: Value = serde_json::from_str(&t.rt(&["list", "--format", "json"])?.ok()?)?;
        let entry = &list[0];
        same("id", entry["id"].as_str(), Some(c.id.as_str()))?;
        same("status", entry["status"].as_str(), Some("created"))?;
        ensure!(
            entry["pid"].is_number() && entry["bundle"].is_string() && entry["created"].is_string(),
            "{entry}"
        );
        ensure!(
            entry["rootfs"].is_string() && entry["owner"].is_string() && entry["ociVersion"].is_string(),
            "{entry}"
        );
        Ok(())
    }),
    contract("list/quiet", "CLI: list --quiet", "ids only", |t| {
        let c = t.bundle()?.create()?;
        same("list", t.rt(&["list", "--quiet"])?.ok()?, c.id.clone())
    }),
    contract("list/empty", "CLI: list", "an empty or missing state root is no error", |t| {
        ensure!(t.rt(&["list", "-q"])?.ok()?.is_empty(), "something is listed");
        Ok(())
    }),
    strict(
        "list/damaged-neighbour",
        "THREATS: damaged state",
        "a damaged state file does not keep the others from being listed",
        |t| {
            let good = t.bundle()?.create()?;
            let bad = t.bundle()?.create()?;
            let file = state_file(t, &bad.id)?;
            let whole = fs::read(&file)?;
            fs::write(&file, "{")?;
            let text = t.rt(&["list", "--quiet"])?.out;
            let state = t.rt(&["state", &bad.id])?;
            fs::write(&file, whole)?;
            ensure!(text.lines().any(|l| l == good.id), "the other is not listed: {text:?}");
            state.refused("state of a damaged container").map(drop)
        },
    ),
    strict(
        "delete/force-of-damaged",
        "THREATS: damaged state",
        "delete --force of a container with a damaged state kills its process",
        |t| {
            let c = t.bundle()?.args(&["sleep", "100"]).start()?;
            fs::write(state_file(t, &c.id)?, "{")?;
            c.call(&["delete", "--force"])?.ok()?;
            c.wait()
        },
    ),
    contract("ps/json", "CLIENTS: containerd", "ps --format json: the pids, as the host sees them", |t| {
        let c = t.sh("sleep 100 & wait")?.start()?;
        eventually("two processes", || Ok(c.cgroup_file("pids", "cgroup.procs")?.lines().count() == 2))?;
        let pids: Vec<i32> = serde_json::from_str(&t.rt(&["ps", "--format", "json", &c.id])?.ok()?)?;
        ensure!(pids.len() == 2 && pids.contains(&c.pid.as_raw_nonzero().get()), "{pids:?}");
        Ok(())
    }),
    contract("ps/table", "CLI: ps", "ps shows ps's lines of the container's processes only", |t| {
        let c = t.bundle()?.args(&["sleep", "4321"]).start()?;
        let text = t.rt(&["ps", &c.id])?.ok()?;
        ensure!(text.lines().next().is_some_and(|l| l.contains("PID")), "no header: {text}");
        ensure!(text.contains("sleep 4321") && text.lines().count() == 2, "{text}");
        Ok(())
    })
    .needs(&[Need::Program("ps")]),
    contract("ps/options", "CLI: ps", "options after the id go to ps", |t| {
        let c = t.bundle()?.args(&["sleep", "4321"]).start()?;
        let text = t.rt(&["ps", &c.id, "-eo", "pid,comm"])?.ok()?;
        ensure!(text.contains("COMMAND") && text.contains("sleep") && !text.contains("4321"), "{text}");
        Ok(())
    })
    .needs(&[Need::Program("ps")]),
    contract("pause/stops-it", "CLI: pause", "a paused program does nothing, a resumed one goes on", |t| {
        let c = t.sh("while :; do echo x; sleep 0.01; done")?.start()?;
        eventually("output", || Ok(!c.output()?.is_empty()))?;
        c.call(&["pause"])?.ok()?;
        std::thread::sleep(std::time::Duration::from_millis(30));
        let before = c.output()?.len();
        std::thread::sleep(std::time::Duration::from_millis(100));
        same("output while paused", c.output()?.len(), before)?;
        c.call(&["resume"])?.ok()?;
        eventually("output after resume", || Ok(c.output()?.len() > before))
    }),
    contract("pause/of-stopped", "CLI: pause", "pause of a stopped container is an error", |t| {
        let c = t.bundle()?.start()?;
        c.wait()?;
        c.call(&["pause"])?.refused("pause of a stopped container").map(drop)
    }),
    contract(
        "resume/of-running",
        "CLI: resume",
        "resume of a container that is not paused is an error",
        |t| {
            let c = t.bundle()?.args(&["sleep", "100"]).start()?;
            c.call(&["resume"])?.refused("resume of a running container").map(drop)
        },
    ),
    contract("update/memory", "CLI: update --memory", "--memory changes the limit", |t| {
        update(t, &["--memory", "67108864"], "memory", "memory.limit_in_bytes", "memory.max", "67108864")
    }),
    contract("update/memory-with-unit", "CLI: update --memory", "sizes may have a unit", |t| {
        update(t, &["--memory", "64m"], "memory", "memory.limit_in_bytes", "memory.max", "67108864")
    }),
    contract("update/memory-reservation", "CLI: update --memory-reservation", "--memory-reservation", |t| {
        update(
            t,
            &["--memory-reservation", "33554432"],
            "memory",
            "memory.soft_limit_in_bytes",
            "memory.low",
            "33554432",
        )
    }),
    contract("update/pids-limit", "CLI: update --pids-limit", "--pids-limit", |t| {
        update(t, &["--pids-limit", "33"], "pids", "pids.max", "pids.max", "33")
    }),
    contract("update/cpu-quota", "CLI: update --cpu-quota", "--cpu-quota and --cpu-period", |t| {
        update(
            t,
            &["--cpu-quota", "50000", "--cpu-period", "100000"],
            "cpu",
            "cpu.cfs_quota_us",
            "cpu.max",
            if t.suite.host.is_v2() { "50000 100000" } else { "50000" },
        )
    }),
    contract("update/cpu-share", "CLI: update --cpu-share", "--cpu-share", |t| {
        if t.suite.host.is_v2() {
            return Err(skip("needs cgroup v1: v2 has weights"));
        }
        update(t, &["--cpu-share", "300"], "cpu", "cpu.shares", "cpu.weight", "300")
    }),
    contract("update/cpuset-cpus", "CLI: update --cpuset-cpus", "--cpuset-cpus", |t| {
        if !t.suite.host.has_controller("cpuset") {
            return Err(skip("needs the cpuset controller"));
        }
        update(t, &["--cpuset-cpus", "0"], "cpuset", "cpuset.cpus", "cpuset.cpus", "0")
    }),
    contract("update/blkio-weight", "CLI: update --blkio-weight", "--blkio-weight", |t| {
        update(t, &["--blkio-weight", "250"], "blkio", "blkio.bfq.weight", "io.bfq.weight", "250")
    })
    .needs(&[Need::V1File("blkio", "blkio.bfq.weight")]),
    contract(
        "update/stdin",
        "CLIENTS: containerd",
        "--resources=- reads a JSON object from standard input",
        |t| {
            let c = t.bundle()?.args(&["sleep", "100"]).start()?;
            let resources = json!({"pids": {"limit": 44}, "memory": {"limit": 67_108_864}}).to_string();
            t.rt_stdin(&["update", "--resources=-", &c.id], &resources)?.ok()?;
            same("pids.max", c.cgroup_file("pids", "pids.max")?.as_str(), "44")
        },
    ),
    contract("update/file", "CLIENTS: Podman", "--resources=FILE reads a JSON object", |t| {
        let c = t.bundle()?.args(&["sleep", "100"]).start()?;
        let file = t.dir.join("resources.json");
        fs::write(&file, json!({"pids": {"limit": 45}}).to_string())?;
        t.rt(&["update", &format!("--resources={}", file.display()), &c.id])?.ok()?;
        same("pids.max", c.cgroup_file("pids", "pids.max")?.as_str(), "45")
    }),
    contract("update/keeps-the-rest", "CLI: update", "what is not named stays", |t| {
        let b = t.bundle()?.args(&["sleep", "100"]).set("/linux/resources/pids", json!({"limit": 99}));
        let c = b.start()?;
        c.call(&["update", "--memory", "67108864"])?.ok()?;
        same("pids.max", c.cgroup_file("pids", "pids.max")?.as_str(), "99")
    }),
    contract(
        "update/of-unknown",
        "CLI: update",
        "update of a container that does not exist is an error",
        |t| t.rt(&["update", "--pids-limit", "10", "nobody"])?.refused("update of nobody").map(drop),
    ),
    contract("update/nonsense", "CLI: update", "a size that is none is an error", |t| {
        let c = t.bundle()?.args(&["sleep", "100"]).start()?;
        c.call(&["update", "--memory", "ponies"])?.refused("--memory ponies").map(drop)
    }),
    contract("events/stats", "CLI: events --stats", "one JSON object with cpu, memory and pids", |t| {
        // Busy: a counter of time that stands at zero may be left out.
        let c = t.sh("while :; do :; done")?.start()?;
        let stats =
            || -> Result<Value> { Ok(serde_json::from_str(&t.rt(&["events", "--stats", &c.id])?.ok()?)?) };
        eventually("time is counted", || Ok(stats()?.pointer("/data/cpu/usage/total").is_some()))?;
        let event = stats()?;
        same("type", event["type"].as_str(), Some("stats"))?;
        same("id", event["id"].as_str(), Some(c.id.as_str()))?;
        for pointer in [
            "/data/cpu/usage/total",
            "/data/memory/usage/usage",
            "/data/memory/usage/limit",
            "/data/pids/current",
        ] {
            ensure!(event.pointer(pointer).is_some_and(Value::is_number), "{pointer} is no number");
        }
        same("processes", event["data"]["pids"]["current"].as_u64(), Some(1))
    }),
    contract(
        "spec/writes",
        "CLI: spec",
        "spec writes a config.json with terminal true, and refuses to overwrite",
        |t| {
            let dir = t.dir.join("spec");
            fs::create_dir(&dir)?;
            let call = || {
                let mut command = t.command(&["spec"]);
                command.current_dir(&dir);
                t.finish(command)
            };
            call()?.ok()?;
            let spec: Value = serde_json::from_str(&fs::read_to_string(dir.join("config.json"))?)?;
            same("terminal", spec["process"]["terminal"].as_bool(), Some(true))?;
            call()?.refused("a second spec").map(drop)
        },
    ),
    contract("spec/bundle", "CLI: spec --bundle", "spec --bundle writes there", |t| {
        let dir = t.dir.join("spec");
        fs::create_dir(&dir)?;
        t.rt(&["spec", "--bundle", &dir.to_string_lossy()])?.ok()?;
        ensure!(dir.join("config.json").exists(), "no config.json");
        Ok(())
    }),
    contract("spec/runs", "CLI: spec", "what spec writes runs", |t| {
        let b = t.bundle()?;
        t.rt(&["spec", "--bundle", &b.dir_text()])?.ok()?;
        let mut spec: Value = serde_json::from_str(&fs::read_to_string(b.dir.join("config.json"))?)?;
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["echo", "hello"]);
        // Limits above the caller's own would need CAP_SYS_RESOURCE.
        spec["process"]["rlimits"] = json!([]);
        spec["linux"]["cgroupsPath"] = b.spec["linux"]["cgroupsPath"].clone();
        fs::write(b.dir.join("config.json"), spec.to_string())?;
        same("output", t.rt(&["run", "--bundle", &b.dir_text(), &b.id])?.ok()?.as_str(), "hello")
    }),
    contract(
        "spec/rootless",
        "CLI: spec --rootless",
        "spec --rootless has a user namespace with mappings",
        |t| {
            let dir = t.dir.join("spec");
            fs::create_dir(&dir)?;
            t.rt(&["spec", "--rootless", "--bundle", &dir.to_string_lossy()])?.ok()?;
            let spec: Value = serde_json::from_str(&fs::read_to_string(dir.join("config.json"))?)?;
            ensure!(spec["linux"]["uidMappings"].as_array().is_some_and(|l| !l.is_empty()), "no uidMappings");
            Ok(())
        },
    ),
    contract("cli/checkpoint-help", "CLIENTS: Podman", "checkpoint --help exits 0", |t| {
        t.rt(&["checkpoint", "--help"])?.ok().map(drop)
    }),
    contract(
        "cli/no-leaked-descriptors",
        "CLIENTS: descriptors",
        "what the caller has open above 2 does not reach the program",
        |t| {
            let b = t.bundle()?.args(&["ls", "/proc/self/fd"]);
            same("descriptors", with_descriptors(t, &b, &[])?.as_str(), "0\n1\n2\n3")
        },
    ),
    contract(
        "cli/preserve-fds",
        "CLI: --preserve-fds",
        "--preserve-fds 1 passes descriptor 3 and no more",
        |t| {
            let b = t.sh("cat <&3; ls /proc/self/fd")?;
            same(
                "output",
                with_descriptors(t, &b, &["--preserve-fds", "1"])?.as_str(),
                "three\n0\n1\n2\n3\n4",
            )
        },
    ),
    strict(
        "cli/pidfd-socket",
        "CLI: create --pidfd-socket",
        "the socket receives a pidfd of the container's process (runc 1.2)",
        |t| {
            let (socket, path) = listener(t)?;
            let c = t.bundle()?.create_with(&["--pidfd-socket", &path])?;
            let (_, fds) = receive_with_descriptors(&socket, || Ok(()))?;
            same("descriptors", fds.len(), 1)?;
            let info = fs::read_to_string(format!(
                "/proc/self/fdinfo/{}",
                std::os::fd::AsRawFd::as_raw_fd(&fds[0])
            ))?;
            ensure!(info.lines().any(|l| l == format!("Pid:\t{}", c.pid.as_raw_nonzero())), "{info}");
            Ok(())
        },
    ),
    contract("cli/long-root", "CLIENTS: state roots", "a state root of 150 letters works", |t| {
        let b = t.bundle()?.args(&["sleep", "100"]);
        b.write()?;
        let root = t.dir.join("r".repeat(150));
        let call = |args: &[&str]| {
            let mut command = Command::new(&t.suite.runtime);
            command.arg("--root").arg(&root).args(args);
            t.finish(command)?.ok().with_context(|| args.join(" "))
        };
        call(&["create", "--bundle", &b.dir_text(), &b.id])?;
        let started = call(&["start", &b.id]);
        call(&["delete", "--force", &b.id])?;
        started.map(drop)
    }),
    contract("cli/parallel-creates", "CLI: create", "eight creates at once all work", |t| {
        let bundles: Vec<_> =
            (0..8).map(|_| Ok(t.bundle()?.args(&["sleep", "100"]))).collect::<Result<_>>()?;
        let mut script = String::from("rc=0; ");
        for b in &bundles {
            b.write()?;
            script.push_str(&format!("\"$@\" create --bundle {} {} </dev/null & ", b.dir_text(), b.id));
        }
        script.push_str("for p in $(jobs -p); do wait $p || rc=1; done; exit $rc");
        let mut command = Command::new("/bin/bash");
        command.args(["-c", &script, "sh"]).arg(&t.suite.runtime).arg("--root").arg(t.root());
        t.finish(command)?.ok()?;
        for b in &bundles {
            same("status", t.state(&b.id)?["status"].as_str(), Some("created"))?;
        }
        Ok(())
    }),
    contract(
        "systemd/scope",
        "CLI: --systemd-cgroup",
        "slice:prefix:name makes the scope prefix-name.scope in the slice",
        |t| {
            let b = t
                .bundle()?
                .args(&["sleep", "100"])
                .set("/linux/resources/memory", json!({"limit": 67_108_864}));
            let b = b.set("/linux/cgroupsPath", json!(format!("system.slice:conf:{}", t.suite.cgroup)));
            b.write()?;
            t.rt(&["--systemd-cgroup", "create", "--bundle", &b.dir_text(), &b.id])?.ok()?;
            let pid = t.state(&b.id)?["pid"].to_string();
            let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
            let deleted = t.rt(&["--systemd-cgroup", "delete", "--force", &b.id])?;
            let want = format!("/system.slice/conf-{}.scope", t.suite.cgroup);
            ensure!(cgroup.contains(&want), "the process is in {cgroup}");
            deleted.ok().map(drop)
        },
    )
    .needs(&[Need::File("/run/systemd/system")]),
    contract(
        "systemd/bad-path",
        "CLI: --systemd-cgroup",
        "a cgroupsPath without its three parts is an error",
        |t| {
            let b = t.bundle()?.set("/linux/cgroupsPath", json!("/plain/path"));
            b.write()?;
            t.rt(&["--systemd-cgroup", "create", "--bundle", &b.dir_text(), &b.id])?
                .refused("a plain path")
                .map(drop)
        },
    )
    .needs(&[Need::File("/run/systemd/system")]),
    strict("systemd/absent", "CLI: --systemd-cgroup", "--systemd-cgroup without systemd is an error", |t| {
        let b = t.bundle()?.set("/linux/cgroupsPath", json!("system.slice:conf:x"));
        b.write()?;
        t.rt(&["--systemd-cgroup", "create", "--bundle", &b.dir_text(), &b.id])?
            .refused("no systemd")
            .map(drop)
    })
    .needs(&[Need::NoFile("/run/systemd/system")]),
];

fn bad_id(t: &Test, id: &str) -> Result<()> {
    let b = t.bundle()?;
    b.write()?;
    let outside = t.dir.join("state.json");
    t.rt(&["create", "--bundle", &b.dir_text(), id])?.refused("the id")?;
    ensure!(!outside.exists(), "something was written beside the state root");
    Ok(())
}

fn trapping<'t>(t: &'t Test<'t>) -> Result<Container<'t>> {
    let c = t.sh("trap 'echo got it; exit 0' TERM; echo ready; while :; do sleep 0.02; done")?.start()?;
    eventually("ready", || Ok(c.output()?.contains("ready")))?;
    Ok(c)
}

fn kill_by(t: &Test, signal: &str) -> Result<()> {
    let c = trapping(t)?;
    c.kill(signal)?.ok()?;
    c.wait()?;
    ensure!(c.output()?.contains("got it"), "the program saw no SIGTERM");
    Ok(())
}

/// The file that says who the container is: its own in the state root, or one in its folder there.
fn state_file(t: &Test, id: &str) -> Result<std::path::PathBuf> {
    let own = t.root().join(id);
    for path in [own.join("state.json"), own.join("status"), own] {
        if path.is_file() {
            return Ok(path);
        }
    }
    Err(skip("this runtime keeps its state elsewhere"))
}

fn update(t: &Test, flags: &[&str], controller: &str, v1: &str, v2: &str, want: &str) -> Result<()> {
    let c = t.bundle()?.args(&["sleep", "100"]).start()?;
    let mut verb = vec!["update"];
    verb.extend(flags);
    c.call(&verb)?.ok()?;
    let file = if t.suite.host.is_v2() { v2 } else { v1 };
    same(file, c.cgroup_file(controller, file)?.as_str(), want)
}

/// `run` by a caller that has descriptors 3 and 4 open.
fn with_descriptors(t: &Test, b: &super::bundle::Bundle, flags: &[&str]) -> Result<String> {
    b.write()?;
    let (three, four) = (t.dir.join("three"), t.dir.join("four"));
    fs::write(&three, "three\n")?;
    fs::write(&four, "four\n")?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "exec 3<\"$1\" 4<\"$2\"; shift 2; exec \"$@\"", "sh"]).arg(three).arg(four);
    command
        .arg(&t.suite.runtime)
        .arg("--root")
        .arg(t.root())
        .args(["run", "--bundle", &b.dir_text()])
        .args(flags)
        .arg(&b.id);
    t.finish(command)?.ok()
}
