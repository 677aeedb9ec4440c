//! runc's `exec`: another process in a running container, with the container's confinement.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::bundle::Bundle;
use super::case::{Case, contract};
use super::harness::{Container, Test, eventually, same};
use super::process::set_of;

pub const CASES: &[Case] = &[
    contract("exec/output", "CLI: exec", "exec runs a command and passes its output", |t| {
        same("output", sleeper(t)?.exec(&[], &["echo", "hello"])?.ok()?.as_str(), "hello")
    }),
    contract("exec/exit-code", "CLI: exec", "exec ends with the command's exit code", |t| {
        same("exit status", sleeper(t)?.exec(&[], &["sh", "-c", "exit 42"])?.code, 42)
    }),
    contract("exec/signal", "CLI: exec", "a command killed by signal n makes exec exit with 128+n", |t| {
        same("exit status", sleeper(t)?.exec(&[], &["sh", "-c", "kill -9 $$"])?.code, 137)
    }),
    contract("exec/stdin", "CLI: exec", "exec passes standard input on", |t| {
        let c = sleeper(t)?;
        same("output", t.rt_stdin(&["exec", &c.id, "cat"], "typed")?.ok()?.as_str(), "typed")
    }),
    contract("exec/namespaces", "CLI: exec", "the process is in all the container's namespaces", |t| {
        let c = t
            .bundle()?
            .args(&["sleep", "100"])
            .namespace("cgroup", Some(json!({"type": "cgroup"})))
            .start()?;
        same("namespaces", ns_inside(&c)?, ns_of(&c)?)
    }),
    contract("exec/user-namespace", "CLI: exec", "in a container with a user namespace as well", |t| {
        let c = t.bundle()?.args(&["sleep", "100"]).user_namespace()?.start()?;
        same("namespaces", ns_inside(&c)?, ns_of(&c)?)?;
        same("id", c.sh("id -u; grep ^Uid /proc/self/status | cut -f2")?.as_str(), "0\n0")
    }),
    contract("exec/in-pid-namespace", "CLI: exec", "it sees the container's processes only", |t| {
        let text = sleeper(t)?.sh("cat /proc/1/comm; ls /proc | grep -c '^[0-9]'")?;
        ensure!(text.starts_with("sleep\n"), "{text}");
        Ok(())
    }),
    contract("exec/environment", "CLI: exec", "it has the environment of the config", |t| {
        let c = with(t, |b| b.set("/process/env", json!(["PATH=/bin", "FROM_CONFIG=yes"])))?;
        same("variable", c.sh("echo $FROM_CONFIG")?.as_str(), "yes")
    }),
    contract("exec/env-flag", "CLI: exec --env", "--env adds and replaces", |t| {
        let c = with(t, |b| b.set("/process/env", json!(["PATH=/bin", "A=old"])))?;
        let text = c.exec(&["--env", "A=new", "--env", "B=more"], &["sh", "-c", "echo $A $B"])?.ok()?;
        same("variables", text.as_str(), "new more")
    }),
    contract("exec/cwd", "CLI: exec", "it starts in the config's cwd", |t| {
        same(
            "pwd",
            with(t, |b| b.set("/process/cwd", json!("/home")))?.exec(&[], &["pwd"])?.ok()?.as_str(),
            "/home",
        )
    }),
    contract("exec/cwd-flag", "CLI: exec --cwd", "--cwd is the working directory", |t| {
        same("pwd", sleeper(t)?.exec(&["--cwd", "/tmp"], &["pwd"])?.ok()?.as_str(), "/tmp")
    }),
    contract("exec/user", "CLI: exec", "it runs as the config's user", |t| {
        let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [7]});
        let c = with(t, |b| b.set("/process/user", user))?;
        same("ids", c.sh("id -u; id -g")?.as_str(), "1000\n1001")
    }),
    contract("exec/user-flag", "CLI: exec --user", "--user uid:gid", |t| {
        same(
            "ids",
            sleeper(t)?.exec(&["--user", "1234:4321"], &["sh", "-c", "id -u; id -g"])?.ok()?.as_str(),
            "1234\n4321",
        )
    }),
    contract("exec/additional-gids", "CLI: exec --additional-gids", "--additional-gids adds groups", |t| {
        let text =
            sleeper(t)?.exec(&["--additional-gids", "77", "--additional-gids", "88"], &["id", "-G"])?.ok()?;
        ensure!(text.contains("77") && text.contains("88"), "groups are {text}");
        Ok(())
    }),
    contract(
        "exec/capabilities",
        "THREATS: capabilities",
        "it has the container's capabilities and no more",
        |t| {
            let caps = json!(["CAP_KILL"]);
            let caps = json!({"bounding": caps, "permitted": caps, "effective": caps});
            let c = with(t, |b| b.set("/process/capabilities", caps))?;
            let text = c.sh("grep ^Cap /proc/self/status")?;
            for (set, want) in [("CapBnd", 32), ("CapEff", 32), ("CapPrm", 32), ("CapInh", 0), ("CapAmb", 0)]
            {
                same(set, set_of(&text, set)?, want)?;
            }
            Ok(())
        },
    ),
    contract("exec/cap-flag", "CLI: exec --cap", "--cap adds a capability", |t| {
        let text = sleeper(t)?
            .exec(&["--cap", "CAP_SYS_PTRACE"], &["grep", "^CapEff", "/proc/self/status"])?
            .ok()?;
        ensure!(set_of(&text, "CapEff")? & (1 << 19) != 0, "CAP_SYS_PTRACE is missing: {text}");
        Ok(())
    }),
    contract(
        "exec/no-new-privileges",
        "THREATS: noNewPrivileges",
        "noNewPrivileges of the config holds",
        |t| same("flag", sleeper(t)?.sh("grep NoNewPrivs /proc/self/status | cut -f2")?.as_str(), "1"),
    ),
    contract("exec/no-new-privs-flag", "CLI: exec --no-new-privs", "--no-new-privs sets it", |t| {
        let c = with(t, |b| b.set("/process/noNewPrivileges", json!(false)))?;
        let text = c
            .exec(&["--no-new-privs"], &["sh", "-c", "grep NoNewPrivs /proc/self/status | cut -f2"])?
            .ok()?;
        same("flag", text.as_str(), "1")
    }),
    contract("exec/rlimits", "CLI: exec", "the config's limits hold", |t| {
        let limit = json!([{"type": "RLIMIT_NOFILE", "soft": 500, "hard": 600}]);
        same("limit", with(t, |b| b.set("/process/rlimits", limit))?.sh("ulimit -n")?.as_str(), "500")
    }),
    contract("exec/umask", "CLI: exec", "umask is 0022 as at the start, or the config's", |t| {
        let text = sleeper(t)?.sh("umask")?;
        same("umask", text.as_str(), "0022")
    }),
    contract("exec/oom-score", "CLI: exec", "the config's oomScoreAdj holds", |t| {
        same(
            "oom_score_adj",
            with(t, |b| b.set("/process/oomScoreAdj", json!(222)))?
                .sh("cat /proc/self/oom_score_adj")?
                .as_str(),
            "222",
        )
    }),
    contract("exec/devices", "THREATS: device rules", "device rules hold", |t| {
        let c = with(t, |b| {
            let caps = json!(["CAP_MKNOD", "CAP_SYSLOG"]);
            b.set("/process/capabilities", json!({"bounding": caps, "permitted": caps, "effective": caps}))
        })?;
        let text =
            c.sh("mknod /dev/k c 1 11 2>/dev/null; (exec 3</dev/k) 2>/dev/null && echo opened; true")?;
        same("output", text.as_str(), "")
    }),
    contract(
        "exec/not-found-in-path",
        "CLIENTS: dockerd",
        "a missing name: executable file not found in $PATH",
        |t| {
            sleeper(t)?
                .exec(&[], &["no-such-program"])?
                .refused_with("a missing program", &["executable file not found in $path"])
        },
    ),
    contract("exec/not-found", "CLIENTS: dockerd", "a missing path: no such file or directory", |t| {
        sleeper(t)?
            .exec(&[], &["/no/such/program"])?
            .refused_with("a missing program", &["no such file or directory"])
    }),
    contract(
        "exec/permission-denied",
        "CLIENTS: dockerd",
        "a file that is not executable: permission denied",
        |t| {
            let c = t.bundle()?.file("plain", "x")?.args(&["sleep", "100"]).start()?;
            c.exec(&[], &["/plain"])?.refused_with("a plain file", &["permission denied"])
        },
    ),
    contract(
        "exec/failure-code",
        "CLI: exec",
        "when the command cannot be started, exec exits with 255 as runc",
        |t| same("exit status", sleeper(t)?.exec(&[], &["no-such-program"])?.code, 255),
    ),
    contract("exec/of-unknown", "CLI: exec", "exec in a container that does not exist is an error", |t| {
        t.rt(&["exec", "nobody", "true"])?.refused("exec in nobody").map(drop)
    }),
    contract("exec/of-stopped", "CLI: exec", "exec in a stopped container is an error", |t| {
        let c = t.bundle()?.start()?;
        c.wait()?;
        c.exec(&[], &["true"])?.refused("exec in a stopped container").map(drop)
    }),
    contract("exec/of-paused", "CLI: exec", "exec in a paused container is an error", |t| {
        let c = sleeper(t)?;
        c.call(&["pause"])?.ok()?;
        let output = c.exec(&[], &["true"]);
        c.call(&["resume"])?.ok()?;
        output?.refused("exec in a paused container").map(drop)
    }),
    contract("exec/of-created", "CLI: exec", "exec in a created container works", |t| {
        let c = t.bundle()?.args(&["sleep", "100"]).create()?;
        same("output", c.exec(&[], &["echo", "hello"])?.ok()?.as_str(), "hello")
    }),
    contract("exec/without-command", "CLI: exec", "exec without a command is an error", |t| {
        sleeper(t)?.exec(&[], &[])?.refused("no command").map(drop)
    }),
    contract(
        "exec/detach",
        "CLIENTS: containerd",
        "--detach returns while the command runs; the pid file names it",
        |t| {
            let c = sleeper(t)?;
            let file = t.dir.join("exec.pid").to_string_lossy().into_owned();
            c.exec(&["--detach", "--pid-file", &file], &["sleep", "77"])?.ok()?;
            let pid: i32 = fs::read_to_string(&file)?.parse().context("pid file")?;
            let cmdline = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
            same("command", cmdline.replace('\0', " ").trim(), "sleep 77")
        },
    ),
    contract(
        "exec/process-file",
        "CLIENTS: containerd",
        "--process FILE gives user, environment, cwd, capabilities and args",
        |t| {
            let c = sleeper(t)?;
            let caps = json!(["CAP_CHOWN"]);
            let process = json!({
                "terminal": false, "user": {"uid": 5, "gid": 6, "additionalGids": [9], "umask": 63},
                "args": ["sh", "-c", "id -u; id -g; echo $X; pwd; umask; grep ^CapBnd /proc/self/status"],
                "env": ["PATH=/bin", "X=y"], "cwd": "/tmp", "noNewPrivileges": true,
                "capabilities": {"bounding": caps, "permitted": caps, "effective": caps}
            });
            let file = t.dir.join("process.json");
            fs::write(&file, process.to_string())?;
            let text = t.rt(&["exec", "--process", &file.to_string_lossy(), &c.id])?.ok()?;
            same("output", text.as_str(), "5\n6\ny\n/tmp\n0077\nCapBnd:\t0000000000000001")
        },
    ),
    contract(
        "exec/process-file-damaged",
        "CLI: exec --process",
        "a process file that is not JSON is an error",
        |t| {
            let c = sleeper(t)?;
            let file = t.dir.join("process.json");
            fs::write(&file, "{")?;
            t.rt(&["exec", "--process", &file.to_string_lossy(), &c.id])?.refused("half a process").map(drop)
        },
    ),
    contract(
        "exec/no-leaked-descriptors",
        "CLIENTS: descriptors",
        "what the caller has open above 2 does not reach the command",
        |t| {
            let c = sleeper(t)?;
            same("descriptors", with_descriptors(&c, &[], &["ls", "/proc/self/fd"])?.as_str(), "0\n1\n2\n3")
        },
    ),
    contract(
        "exec/preserve-fds",
        "CLI: exec --preserve-fds",
        "--preserve-fds 1 passes descriptor 3 and no more",
        |t| {
            let c = sleeper(t)?;
            let text =
                with_descriptors(&c, &["--preserve-fds", "1"], &["sh", "-c", "cat <&3; ls /proc/self/fd"])?;
            same("output", text.as_str(), "three\n0\n1\n2\n3\n4")
        },
    ),
    contract("exec/many", "CLI: exec", "ten execs in a row work and leave no process", |t| {
        let c = sleeper(t)?;
        for _ in 0..10 {
            c.exec(&[], &["true"])?.ok()?;
        }
        eventually("one process", || Ok(c.cgroup_file("pids", "cgroup.procs")?.lines().count() == 1))
    }),
    contract(
        "exec/pid-limit-holds",
        "CLI: exec",
        "a container at its pid limit refuses exec with an error, not a hang",
        |t| {
            let c = with(t, |b| b.set("/linux/resources/pids", json!({"limit": 1})))?;
            let output = c.exec(&[], &["true"])?;
            ensure!(output.code == 0 || !output.err.trim().is_empty(), "no word");
            Ok(())
        },
    ),
    contract(
        "exec/in-host-network",
        "CLI: exec",
        "a namespace that the container shares with the host stays shared",
        |t| {
            let c = t
                .bundle()?
                .args(&["sleep", "100"])
                .namespace("network", None)
                .without_mount("/sys")
                .start()?;
            same(
                "net",
                c.sh("readlink /proc/self/ns/net")?,
                fs::read_link("/proc/self/ns/net")?.to_string_lossy().into_owned(),
            )
        },
    ),
];

fn sleeper<'t>(t: &'t Test<'t>) -> Result<Container<'t>> {
    t.bundle()?.args(&["sleep", "100"]).start()
}

fn with<'t>(t: &'t Test<'t>, change: impl FnOnce(Bundle<'t>) -> Bundle<'t>) -> Result<Container<'t>> {
    change(t.bundle()?.args(&["sleep", "100"])).start()
}

const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

fn ns_of(c: &Container) -> Result<Vec<String>> {
    NAMESPACES.iter().map(|n| Ok(c.ns(n)?.to_string_lossy().into_owned())).collect()
}

fn ns_inside(c: &Container) -> Result<Vec<String>> {
    let links: Vec<_> = NAMESPACES.iter().map(|n| format!("/proc/self/ns/{n}")).collect();
    Ok(c.sh(&format!("for l in {}; do readlink $l; done", links.join(" ")))?
        .lines()
        .map(str::to_owned)
        .collect())
}

fn with_descriptors(c: &Container, flags: &[&str], args: &[&str]) -> Result<String> {
    let t = c.test;
    let (three, four) = (t.dir.join("three"), t.dir.join("four"));
    fs::write(&three, "three\n")?;
    fs::write(&four, "four\n")?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "exec 3<\"$1\" 4<\"$2\"; shift 2; exec \"$@\"", "sh"]).arg(three).arg(four);
    command.arg(&t.suite.runtime).arg("--root").arg(t.root()).arg("exec").args(flags).arg(&c.id).args(args);
    t.finish(command)?.ok()
}
