//! config.md#process: what the program is, as whom it runs, and with which limits.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::case::{Case, spec, strict};
use super::harness::{Test, same};
use super::host::Need;

pub const CASES: &[Case] = &[
    spec(
        "process/args",
        "config.md#process args",
        "args reach the program unchanged, also empty ones and ones with blanks",
        |t| {
            let b = t.bundle()?.args(&["printf", "[%s]", "a b", "", "c\"d", "ü"]);
            same("output", b.output()?.as_str(), "[a b][][c\"d][ü]")
        },
    ),
    spec(
        "process/args-in-path",
        "config.md#process args",
        "a name without slash is searched in PATH of process.env",
        |t| {
            let b = t.bundle()?.file("opt/tool", "#!/bin/sh\necho found\n")?.args(&["tool"]);
            make_executable(&b.rootfs("opt/tool"))?;
            same("output", b.set("/process/env", json!(["PATH=/nowhere:/opt"])).output()?.as_str(), "found")
        },
    ),
    spec("process/args-relative", "config.md#process args", "a name with slash is relative to cwd", |t| {
        let b = t
            .bundle()?
            .file("opt/tool", "#!/bin/sh\necho found\n")?
            .args(&["./tool"])
            .set("/process/cwd", json!("/opt"));
        make_executable(&b.rootfs("opt/tool"))?;
        same("output", b.output()?.as_str(), "found")
    }),
    spec("process/args-empty", "config.md#process args", "at least one argument is required", |t| {
        t.bundle()?.set("/process/args", json!([])).refused_as_it_is("empty args").map(drop)
    }),
    spec("process/args-missing", "config.md#process args", "args is required", |t| {
        t.bundle()?.unset("/process/args").refused_as_it_is("a process without args").map(drop)
    }),
    spec("process/not-found", "config.md#process args", "a program that does not exist is an error", |t| {
        t.bundle()?.args(&["no-such-program"]).refused_as_it_is("a missing program").map(drop)
    }),
    spec(
        "process/not-executable",
        "config.md#process args",
        "a program that is not executable is an error",
        |t| t.bundle()?.file("plain", "text")?.args(&["/plain"]).refused_as_it_is("a plain file").map(drop),
    ),
    spec("process/is-a-directory", "config.md#process args", "a directory is not a program", |t| {
        t.bundle()?.args(&["/tmp"]).refused_as_it_is("a directory").map(drop)
    }),
    spec("process/exit-code", "CLI: run", "run ends with the program's exit code", |t| {
        same("exit status", t.sh("exit 42")?.run()?.code, 42)
    }),
    spec("process/cwd", "config.md#process cwd", "cwd is the program's working directory", |t| {
        same(
            "pwd",
            t.bundle()?.args(&["pwd"]).set("/process/cwd", json!("/home")).output()?.as_str(),
            "/home",
        )
    }),
    spec("process/cwd-relative", "config.md#process cwd", "a relative cwd is refused", |t| {
        t.bundle()?.set("/process/cwd", json!("home")).refused("a relative cwd").map(drop)
    }),
    strict("process/cwd-missing", "config.md#process cwd", "cwd is required", |t| {
        t.bundle()?.unset("/process/cwd").refused("a process without cwd").map(drop)
    }),
    spec(
        "process/cwd-closed-to-others",
        "config.md#process cwd",
        "a cwd that only the user may enter works",
        |t| {
            let b = t
                .bundle()?
                .args(&["pwd"])
                .set("/process/cwd", json!("/home"))
                .set("/process/user", json!({"uid": 1000, "gid": 1000}));
            std::os::unix::fs::chown(b.rootfs("home"), Some(1000), Some(1000))?;
            std::fs::set_permissions(b.rootfs("home"), std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
            same("pwd", b.output()?.as_str(), "/home")
        },
    ),
    spec("process/cwd-is-a-file", "config.md#process cwd", "a cwd that is a file is an error", |t| {
        t.bundle()?.file("plain", "")?.set("/process/cwd", json!("/plain")).refused("a file as cwd").map(drop)
    }),
    spec("process/env", "config.md#process env", "env is the environment, with values as given", |t| {
        let env = json!(["PATH=/bin", "A=1", "B=two words", "C=", "D=x=y"]);
        let text = t.bundle()?.args(&["env"]).set("/process/env", env).output()?;
        for want in ["A=1", "B=two words", "C=", "D=x=y"] {
            ensure!(text.lines().any(|l| l == want), "no {want} in {text:?}");
        }
        Ok(())
    }),
    spec("process/env-is-all", "config.md#process env", "nothing of the caller's environment gets in", |t| {
        let b = t.bundle()?.args(&["env"]);
        b.write()?;
        let mut command = t.command(&["run", "--bundle", &b.dir_text(), &b.id]);
        command.env("CONF_SECRET", "x");
        let text = t.finish(command)?.ok()?;
        let allowed = ["PATH", "TERM", "HOME"];
        for line in text.lines() {
            let name = line.split('=').next().unwrap_or_default();
            ensure!(allowed.contains(&name), "{line} came from somewhere");
        }
        Ok(())
    }),
    spec("process/home", "CLI: run", "HOME comes from the image's passwd when env has none", |t| {
        let b = t
            .bundle()?
            .file("etc/passwd", "root:x:0:0:r:/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n")?;
        let b = b.args(&["sh", "-c", "echo $HOME"]).set("/process/user", json!({"uid": 1000, "gid": 1000}));
        same("HOME", b.output()?.as_str(), "/home/me")
    }),
    spec("process/home-without-passwd", "CLI: run", "HOME is / for a user that passwd does not know", |t| {
        let b = t.sh("echo $HOME")?.set("/process/user", json!({"uid": 4321, "gid": 1000}));
        same("HOME", b.output()?.as_str(), "/")
    }),
    spec("process/home-of-env", "CLI: run", "HOME of env wins", |t| {
        let b = t.sh("echo $HOME")?.set("/process/env", json!(["PATH=/bin", "HOME=/mine"]));
        same("HOME", b.output()?.as_str(), "/mine")
    }),
    spec(
        "user/uid-gid",
        "config.md#posix-platform-user",
        "real, effective, saved and file system ids are uid and gid",
        |t| {
            let b = t.bundle()?.args(&["grep", "-E", "^(Uid|Gid):", "/proc/self/status"]);
            let text = b.set("/process/user", json!({"uid": 1234, "gid": 4321})).output()?;
            ensure!(text.contains("Uid:\t1234\t1234\t1234\t1234"), "{text}");
            ensure!(text.contains("Gid:\t4321\t4321\t4321\t4321"), "{text}");
            Ok(())
        },
    ),
    spec(
        "user/additional-gids",
        "config.md#posix-platform-user",
        "additionalGids are the supplementary groups",
        |t| {
            let b = t
                .bundle()?
                .set("/process/user", json!({"uid": 1, "gid": 1, "additionalGids": [5, 77, 1_000_000]}));
            let mut groups = groups_of(&b.args(&["grep", "^Groups:", "/proc/self/status"]).output()?)?;
            groups.retain(|g| *g != 1);
            same("groups", groups, vec![5, 77, 1_000_000])
        },
    ),
    spec(
        "user/no-groups-of-caller",
        "config.md#posix-platform-user",
        "the caller's groups are not kept",
        |t| {
            let b = t.bundle()?.args(&["grep", "^Groups:", "/proc/self/status"]);
            b.write()?;
            let Some(setpriv) = super::host::program("setpriv") else {
                return Err(super::case::skip("needs program setpriv"));
            };
            let mut command = std::process::Command::new(setpriv);
            command.args(["--groups", "4,24,27"]).arg(&t.suite.runtime).arg("--root").arg(t.root());
            command.args(["run", "--bundle", &b.dir_text(), &b.id]);
            let mut groups = groups_of(&t.finish(command)?.ok()?)?;
            groups.retain(|g| *g != 0);
            same("groups", groups, vec![])
        },
    ),
    spec("user/umask", "config.md#posix-platform-user", "umask is the program's umask", |t| {
        same("umask", umask(t, Some(0o077))?.as_str(), "0077")
    }),
    spec("user/umask-zero", "config.md#posix-platform-user", "a umask of 0 is not taken for unset", |t| {
        same("umask", umask(t, Some(0))?.as_str(), "0000")
    }),
    spec("user/umask-default", "config.md#posix-platform-user", "without umask, 0022 as runc", |t| {
        same("umask", umask(t, None)?.as_str(), "0022")
    }),
    spec("user/negative-uid", "config.md#valid-values", "a negative uid is refused", |t| {
        t.bundle()?.set("/process/user/uid", json!(-1)).refused("uid -1").map(drop)
    }),
    spec("user/too-large-uid", "config.md#valid-values", "a uid above 32 bits is refused", |t| {
        t.bundle()?.set("/process/user/uid", json!(4_294_967_296_u64)).refused("uid 2^32").map(drop)
    }),
    strict(
        "user/invalid-uid",
        "THREATS: user ids",
        "uid 4294967295, which means no change to the kernel, is refused",
        |t| t.bundle()?.set("/process/user/uid", json!(4_294_967_295_u64)).refused("uid 2^32-1").map(drop),
    ),
    spec("rlimits/soft-and-hard", "config.md#posix-process rlimits", "soft and hard are set", |t| {
        let b =
            t.bundle()?.push("/process/rlimits", json!({"type": "RLIMIT_NOFILE", "soft": 512, "hard": 700}));
        same(
            "limits",
            limit(&b.args(&["cat", "/proc/self/limits"]).output()?, "Max open files")?,
            ("512".to_owned(), "700".to_owned()),
        )
    }),
    spec("rlimits/several", "config.md#posix-process rlimits", "each entry is applied", |t| {
        let b = t
            .bundle()?
            .push("/process/rlimits", json!({"type": "RLIMIT_CORE", "soft": 0, "hard": 0}))
            .push("/process/rlimits", json!({"type": "RLIMIT_NPROC", "soft": 100, "hard": 200}))
            .push("/process/rlimits", json!({"type": "RLIMIT_STACK", "soft": 4_194_304, "hard": 8_388_608}));
        let text = b.args(&["cat", "/proc/self/limits"]).output()?;
        same("core", limit(&text, "Max core file size")?, ("0".to_owned(), "0".to_owned()))?;
        same("nproc", limit(&text, "Max processes")?, ("100".to_owned(), "200".to_owned()))?;
        same("stack", limit(&text, "Max stack size")?, ("4194304".to_owned(), "8388608".to_owned()))
    }),
    spec("rlimits/unlimited", "config.md#posix-process rlimits", "2^64-1 means unlimited", |t| {
        let b = t
            .bundle()?
            .push("/process/rlimits", json!({"type": "RLIMIT_FSIZE", "soft": u64::MAX, "hard": u64::MAX}));
        same(
            "limits",
            limit(&b.args(&["cat", "/proc/self/limits"]).output()?, "Max file size")?,
            ("unlimited".to_owned(), "unlimited".to_owned()),
        )
    }),
    spec(
        "rlimits/raise-hard",
        "config.md#posix-process rlimits",
        "a privileged runtime may raise a hard limit",
        |t| {
            let b = t.bundle()?.push(
                "/process/rlimits",
                json!({"type": "RLIMIT_NOFILE", "soft": 1_048_576, "hard": 1_048_576}),
            );
            same(
                "limits",
                limit(&b.args(&["cat", "/proc/self/limits"]).output()?, "Max open files")?.1.as_str(),
                "1048576",
            )
        },
    )
    .needs(&[Need::Cap("CAP_SYS_RESOURCE", 24)]),
    spec(
        "rlimits/unknown",
        "config.md#posix-process rlimits",
        "a type that the kernel does not have is an error",
        |t| {
            t.bundle()?
                .push("/process/rlimits", json!({"type": "RLIMIT_PONIES", "soft": 1, "hard": 1}))
                .refused("RLIMIT_PONIES")
                .map(drop)
        },
    ),
    spec(
        "rlimits/duplicate",
        "config.md#posix-process rlimits",
        "two entries of one type are an error",
        |t| {
            t.bundle()?
                .push("/process/rlimits", json!({"type": "RLIMIT_NOFILE", "soft": 512, "hard": 700}))
                .push("/process/rlimits", json!({"type": "RLIMIT_NOFILE", "soft": 500, "hard": 700}))
                .refused("a duplicate rlimit")
                .map(drop)
        },
    ),
    spec(
        "rlimits/soft-above-hard",
        "config.md#valid-values",
        "a soft limit above the hard one is an error",
        |t| {
            t.bundle()?
                .push("/process/rlimits", json!({"type": "RLIMIT_NOFILE", "soft": 700, "hard": 512}))
                .refused("soft above hard")
                .map(drop)
        },
    ),
    spec(
        "caps/five-sets",
        "config.md#linux-process capabilities",
        "each set is exactly what was asked for",
        |t| {
            let caps = json!({
                "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW"], "permitted": ["CAP_KILL", "CAP_CHOWN"],
                "effective": ["CAP_KILL"], "inheritable": ["CAP_CHOWN"], "ambient": []
            });
            // Executing as root raises the sets again, so look as another user, which needs ambient or none.
            let b =
                t.bundle()?.set("/process/capabilities", caps).args(&["grep", "^Cap", "/proc/self/status"]);
            let text = b.output()?;
            same("bounding", set_of(&text, "CapBnd")?, 1 << 5 | 1 | 1 << 13)?;
            same("inheritable", set_of(&text, "CapInh")?, 1)
        },
    ),
    spec(
        "caps/as-init-has-them",
        "config.md#linux-process capabilities",
        "root's permitted and effective sets are within the bounding set",
        |t| {
            let caps =
                json!({"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]});
            let text = t
                .bundle()?
                .set("/process/capabilities", caps)
                .args(&["grep", "^Cap", "/proc/self/status"])
                .output()?;
            same("effective", set_of(&text, "CapEff")?, 1 << 5)?;
            same("permitted", set_of(&text, "CapPrm")?, 1 << 5)
        },
    ),
    spec(
        "caps/ambient",
        "config.md#linux-process capabilities",
        "ambient capabilities survive for another user",
        |t| {
            let one = json!(["CAP_NET_BIND_SERVICE"]);
            let caps = json!({"bounding": one, "permitted": one, "effective": one, "inheritable": one, "ambient": one});
            let b = t
                .bundle()?
                .set("/process/capabilities", caps)
                .set("/process/user", json!({"uid": 1000, "gid": 1000}));
            let text = b.args(&["grep", "^Cap", "/proc/self/status"]).output()?;
            for set in ["CapAmb", "CapEff", "CapPrm", "CapInh", "CapBnd"] {
                same(set, set_of(&text, set)?, 1 << 10)?;
            }
            Ok(())
        },
    ),
    spec(
        "caps/none-for-a-user",
        "config.md#linux-process capabilities",
        "another user without ambient has none, whatever bounding says",
        |t| {
            let b = t.bundle()?.set("/process/user", json!({"uid": 1000, "gid": 1000}));
            let text = b.args(&["grep", "^Cap", "/proc/self/status"]).output()?;
            for set in ["CapAmb", "CapEff", "CapPrm", "CapInh"] {
                same(set, set_of(&text, set)?, 0)?;
            }
            Ok(())
        },
    ),
    spec(
        "caps/empty-sets",
        "config.md#linux-process capabilities",
        "empty sets leave root without capabilities",
        |t| {
            let caps =
                json!({"bounding": [], "permitted": [], "effective": [], "inheritable": [], "ambient": []});
            let text = t
                .bundle()?
                .set("/process/capabilities", caps)
                .args(&["grep", "^Cap", "/proc/self/status"])
                .output()?;
            for set in ["CapAmb", "CapEff", "CapPrm", "CapInh", "CapBnd"] {
                same(set, set_of(&text, set)?, 0)?;
            }
            Ok(())
        },
    ),
    spec(
        "caps/unknown",
        "config.md#linux-process capabilities",
        "a capability that the kernel does not have is named in a warning or an error",
        |t| {
            named(
                &t.bundle()?
                    .set("/process/capabilities/bounding", json!(["CAP_PONIES"]))
                    .args(&["true"])
                    .run()?,
                "CAP_PONIES",
            )
        },
    ),
    strict(
        "caps/unavailable",
        "config.md#linux-process capabilities",
        "a capability that cannot be granted is named in a warning, and the program runs",
        |t| {
            let Some(_) = t.suite.host.lacks(&Need::Cap("CAP_SYS_RESOURCE", 24)) else {
                return Err(super::case::skip("needs a caller without CAP_SYS_RESOURCE"));
            };
            let caps = json!(["CAP_KILL", "CAP_SYS_RESOURCE"]);
            let caps = json!({"bounding": caps, "permitted": caps, "effective": caps});
            let output = t.bundle()?.set("/process/capabilities", caps).args(&["true"]).run()?;
            same("exit status", output.code, 0)?;
            named(&output, "CAP_SYS_RESOURCE")
        },
    ),
    spec(
        "caps/are-enforced",
        "config.md#linux-process capabilities",
        "without CAP_CHOWN, chown fails",
        |t| {
            let caps =
                json!({"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]});
            let output =
                t.bundle()?.set("/process/capabilities", caps).args(&["chown", "1:1", "/tmp"]).run()?;
            ensure!(output.code != 0, "chown worked");
            Ok(())
        },
    ),
    spec("process/no-new-privileges", "config.md#linux-process noNewPrivileges", "true sets the flag", |t| {
        no_new_privs(t, true, "1")
    }),
    spec(
        "process/new-privileges",
        "config.md#linux-process noNewPrivileges",
        "false leaves the flag unset",
        |t| no_new_privs(t, false, "0"),
    ),
    spec(
        "process/oom-score-adj",
        "config.md#linux-process oomScoreAdj",
        "oom_score_adj is the given value",
        |t| {
            let b = t
                .bundle()?
                .set("/process/oomScoreAdj", json!(321))
                .args(&["cat", "/proc/self/oom_score_adj"]);
            same("oom_score_adj", b.output()?.as_str(), "321")
        },
    ),
    spec(
        "process/oom-score-adj-zero",
        "config.md#linux-process oomScoreAdj",
        "0 is set, not taken for unset",
        |t| {
            let b =
                t.bundle()?.set("/process/oomScoreAdj", json!(0)).args(&["cat", "/proc/self/oom_score_adj"]);
            b.write()?;
            same("oom_score_adj", with_oom_score(t, 55, &b)?.as_str(), "0")
        },
    )
    .needs(&[Need::Cap("CAP_SYS_RESOURCE", 24)]),
    spec(
        "process/oom-score-adj-unset",
        "config.md#linux-process oomScoreAdj",
        "unset, the value of the caller stays",
        |t| {
            let b = t.bundle()?.args(&["cat", "/proc/self/oom_score_adj"]);
            b.write()?;
            same("oom_score_adj", with_oom_score(t, 55, &b)?.as_str(), "55")
        },
    ),
    spec(
        "process/oom-score-adj-range",
        "config.md#valid-values",
        "a value outside -1000…1000 is an error",
        |t| t.bundle()?.set("/process/oomScoreAdj", json!(5000)).refused("oomScoreAdj 5000").map(drop),
    ),
    spec(
        "scheduler/batch-and-nice",
        "config.md#linux-process scheduler",
        "policy SCHED_BATCH and nice are set",
        |t| {
            let b = t.bundle()?.set("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 7}));
            let stat = b.args(&["cat", "/proc/self/stat"]).output()?;
            same("policy", stat_field(&stat, 41)?, 3)?;
            same("nice", stat_field(&stat, 19)?, 7)
        },
    ),
    spec("scheduler/idle", "config.md#linux-process scheduler", "policy SCHED_IDLE is set", |t| {
        let b = t.bundle()?.set("/process/scheduler", json!({"policy": "SCHED_IDLE"}));
        same("policy", stat_field(&b.args(&["cat", "/proc/self/stat"]).output()?, 41)?, 5)
    }),
    spec(
        "scheduler/fifo",
        "config.md#linux-process scheduler",
        "policy SCHED_FIFO and its priority are set, or the kernel's refusal is an error",
        |t| {
            let b = t.bundle()?.set("/process/scheduler", json!({"policy": "SCHED_FIFO", "priority": 9}));
            let output = b.args(&["cat", "/proc/self/stat"]).run()?;
            if output.code != 0 {
                // A cgroup without real-time budget refuses: then the refusal must be reported.
                return output.refused("SCHED_FIFO").map(drop);
            }
            same("policy", stat_field(&output.out, 41)?, 1)?;
            same("priority", stat_field(&output.out, 40)?, 9)
        },
    ),
    spec("scheduler/unknown-policy", "config.md#valid-values", "an unknown policy is an error", |t| {
        t.bundle()?
            .set("/process/scheduler", json!({"policy": "SCHED_PONIES"}))
            .refused("SCHED_PONIES")
            .map(drop)
    }),
    spec("scheduler/unknown-flag", "config.md#valid-values", "an unknown flag is an error", |t| {
        let scheduler = json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_PONIES"]});
        t.bundle()?.set("/process/scheduler", scheduler).refused("SCHED_FLAG_PONIES").map(drop)
    }),
    spec("io-priority/best-effort", "config.md#linux-process ioPriority", "class and level are set", |t| {
        let b = t.bundle()?.set("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 6}));
        let text = b.args(&["ionice"]).output()?;
        ensure!(text.starts_with("best-effort: prio 6"), "ionice says {text:?}");
        Ok(())
    }),
    spec("io-priority/idle", "config.md#linux-process ioPriority", "IOPRIO_CLASS_IDLE is set", |t| {
        let b = t.bundle()?.set("/process/ioPriority", json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0}));
        let text = b.args(&["ionice"]).output()?;
        ensure!(text.starts_with("idle"), "ionice says {text:?}");
        Ok(())
    }),
    spec("io-priority/unknown-class", "config.md#valid-values", "an unknown class is an error", |t| {
        let b =
            t.bundle()?.set("/process/ioPriority", json!({"class": "IOPRIO_CLASS_PONIES", "priority": 0}));
        b.refused("IOPRIO_CLASS_PONIES").map(drop)
    }),
    spec("io-priority/out-of-range", "config.md#valid-values", "a level above 7 is an error", |t| {
        let b = t.bundle()?.set("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 8}));
        b.refused("ioPriority 8").map(drop)
    }),
    spec(
        "affinity/exec-final",
        "config.md#linux-process execCPUAffinity",
        "a process of exec runs on the CPUs of final",
        |t| {
            let b = t
                .bundle()?
                .args(&["sleep", "100"])
                .set("/process/execCPUAffinity", json!({"initial": "0", "final": "0"}));
            let c = b.start()?;
            same("cpus", c.sh("grep Cpus_allowed_list /proc/self/status | cut -f2")?.as_str(), "0")
        },
    )
    .needs(&[Need::File("/sys/devices/system/cpu/cpu1")]),
    spec(
        "affinity/not-for-init",
        "config.md#linux-process execCPUAffinity",
        "it does not touch the container's own process",
        |t| {
            let b = t.sh("grep Cpus_allowed_list /proc/self/status | cut -f2")?;
            let without = b.output()?;
            let b = b.set("/process/execCPUAffinity", json!({"initial": "0", "final": "0"}));
            same("cpus", b.output()?, without)
        },
    ),
    spec("affinity/invalid", "config.md#valid-values", "a CPU list that is none is an error", |t| {
        let b =
            t.bundle()?.args(&["sleep", "100"]).set("/process/execCPUAffinity", json!({"initial": "a-b"}));
        b.write()?;
        let created = t.rt(&["create", "--bundle", &b.dir_text(), &b.id])?;
        if created.code != 0 {
            return created.refused("initial a-b").map(drop);
        }
        t.rt(&["start", &b.id])?.ok()?;
        t.rt(&["exec", &b.id, "true"])?.refused("initial a-b").map(drop)
    }),
    spec(
        "lsm/apparmor-absent",
        "config.md#valid-values",
        "an AppArmor profile on a kernel without AppArmor is an error",
        |t| {
            t.bundle()?
                .set("/process/apparmorProfile", json!("ponies"))
                .refused("an AppArmor profile")
                .map(drop)
        },
    )
    .needs(&[Need::NoFile("/sys/kernel/security/apparmor")]),
    spec(
        "lsm/selinux-absent",
        "config.md#valid-values",
        "an SELinux label on a kernel without SELinux is an error",
        |t| {
            let label = json!("system_u:system_r:container_t:s0:c1,c2");
            t.bundle()?.set("/process/selinuxLabel", label).refused("an SELinux label").map(drop)
        },
    )
    .needs(&[Need::NoFile("/sys/fs/selinux")]),
    strict(
        "lsm/mount-label-absent",
        "config-linux.md#mount-label",
        "a mountLabel on a kernel without SELinux is an error",
        |t| {
            let label = json!("system_u:object_r:container_file_t:s0:c1,c2");
            t.bundle()?.set("/linux/mountLabel", label).refused("a mountLabel").map(drop)
        },
    )
    .needs(&[Need::NoFile("/sys/fs/selinux")]),
    spec(
        "process/no-extra-descriptors",
        "CLI: descriptors",
        "the program has 0, 1 and 2 and nothing else",
        |t| {
            // ls itself opens one descriptor for the folder.
            same("descriptors", t.bundle()?.args(&["ls", "/proc/self/fd"]).output()?.as_str(), "0\n1\n2\n3")
        },
    ),
    spec(
        "process/signals",
        "CLI: run",
        "the runtime blocks and ignores no signal that its caller does not",
        |t| {
            let ours = std::fs::read_to_string("/proc/thread-self/status")?;
            let text = t.bundle()?.args(&["cat", "/proc/self/status"]).output()?;
            for set in ["SigBlk", "SigIgn"] {
                // From signal 32 on, they belong to the C library; SIGPIPE (13) Rust ignores in itself only.
                let standard = |text: &str| Ok::<_, anyhow::Error>(set_of(text, set)? & 0x7fff_efff);
                same(set, standard(&text)?, standard(&ours)?)?;
            }
            Ok(())
        },
    ),
    spec(
        "process/pid-one",
        "config-linux.md#namespaces",
        "in a new pid namespace, the program is process 1",
        |t| same("pid", t.sh("echo $$")?.output()?.as_str(), "1"),
    ),
];

fn make_executable(path: &std::path::Path) -> Result<()> {
    Ok(std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?)
}

fn umask(t: &Test, value: Option<u32>) -> Result<String> {
    let mut b = t.sh("umask")?;
    if let Some(value) = value {
        b = b.set("/process/user/umask", json!(value));
    }
    b.output()
}

fn groups_of(line: &str) -> Result<Vec<u32>> {
    line.trim_start_matches("Groups:").split_whitespace().map(|g| g.parse().context("a group id")).collect()
}

/// Soft and hard of one line of `/proc/self/limits`.
fn limit(text: &str, name: &str) -> Result<(String, String)> {
    let line = text.lines().find(|l| l.starts_with(name)).with_context(|| format!("no line {name}"))?;
    let mut words = line[name.len()..].split_whitespace().map(str::to_owned);
    Ok((words.next().context("soft")?, words.next().context("hard")?))
}

pub fn set_of(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find(|l| l.starts_with(name)).with_context(|| format!("no line {name}"))?;
    let digits = line.split_whitespace().nth(1).context("no value")?;
    u64::from_str_radix(digits, 16).context("a capability set")
}

/// The runtime has said something about this.
fn named(output: &super::harness::Output, what: &str) -> Result<()> {
    ensure!(output.err.contains(what), "{what} was passed over in silence (exit status {})", output.code);
    Ok(())
}

fn no_new_privs(t: &Test, value: bool, want: &str) -> Result<()> {
    let b = t.bundle()?.set("/process/noNewPrivileges", json!(value)).args(&[
        "grep",
        "NoNewPrivs",
        "/proc/self/status",
    ]);
    same("NoNewPrivs", b.output()?.split_whitespace().nth(1), Some(want))
}

fn with_oom_score(t: &Test, score: i32, b: &super::bundle::Bundle) -> Result<String> {
    let mut command = std::process::Command::new("/bin/sh");
    let script = format!("echo {score} >/proc/self/oom_score_adj; exec \"$@\"");
    command.args(["-c", &script, "sh"]).arg(&t.suite.runtime).arg("--root").arg(t.root());
    command.args(["run", "--bundle", &b.dir_text(), &b.id]);
    t.finish(command)?.ok()
}

/// Field n of `/proc/pid/stat`, counted from 1 as proc(5) does.
fn stat_field(stat: &str, n: usize) -> Result<i64> {
    let rest = stat.rsplit_once(") ").context("stat without name")?.1;
    rest.split(' ').nth(n - 3).context("short stat")?.trim().parse().context("a number")
}
