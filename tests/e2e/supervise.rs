//! One container, supervised with no daemon: logs, restarts, health, signals, and monitors that are killed.

use std::fs;
use std::time::{Duration, Instant};

use harness::command::{finish_with_input, gone_within, kill};
use harness::shim::{Supervised, parent};
use harness::{Bed, Value, need, start};

#[test]
fn run_is_the_container() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("echo out; echo err >&2; exit 7");
    let c = Supervised::new(&b);
    let out = c.run(&[]).exits(7);
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("out\n", "err\n"));
    let logs = c.logs(&[]).success();
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("out\n", "err\n"));
    let state = c.state();
    assert_eq!((state["status"].as_str(), state["exitCode"].as_i64()), (Some("exited"), Some(7)));
    assert_eq!(c.wait(), 7);
    c.verb("rm", &[]).success();
    c.verb("status", &[]).exits(125).stderr_has(&format!("{}: no such container", c.id));
}

#[test]
fn with_rm_nothing_is_left() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["true"]);
    let c = Supervised::new(&b);
    c.run(&["--rm"]).success();
    assert!(!c.folder().exists());
    // Also where it could not be started, and that is told.
    let b = bed.bundle().args(["/nowhere"]);
    let c = Supervised::new(&b);
    for options in [&["--rm"][..], &["--rm", "--detach"]] {
        c.run(options).exits(125).stderr_has("stat /nowhere: no such file or directory");
        assert!(!c.folder().exists());
    }
}

#[test]
fn input_goes_in_and_ends() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("cat; echo end");
    let c = Supervised::new(&b);
    let out = finish_with_input(&mut c.run_command(&["-i"]), "a\nb\n");
    out.success().stdout_is("a\nb\nend\n");
}

#[test]
fn signals_of_a_foreground_run_go_to_the_container() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("trap 'exit 4' TERM; echo up; while :; do sleep 0.02; done");
    let c = Supervised::new(&b);
    let run = start(&mut c.run_command(&[]));
    c.until("it runs", |state| state["status"] == "running");
    while c.logs(&[]).stdout != "up\n" {
        std::thread::sleep(Duration::from_millis(5));
    }
    run.signal(nix::sys::signal::Signal::SIGTERM);
    run.wait().exits(4);
}

#[test]
fn on_failure_it_is_started_again_so_many_times() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("echo run; exit 3");
    let c = Supervised::new(&b);
    let out = c.run(&["--restart", "on-failure:2"]).exits(3);
    assert_eq!(out.stdout, "run\nrun\nrun\n");
    // 100 and 200 ms of pauses.
    assert!(out.took >= Duration::from_millis(300), "{:?}", out.took);
    assert_eq!(c.number("restarts"), 2);
}

#[test]
fn a_users_stop_is_final() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("trap 'exit 0' TERM; while :; do sleep 0.02; done");
    let c = Supervised::new(&b);
    c.start(&["--restart", "always"]);
    let first = c.number("pid");
    // Killed by somebody: it comes back.
    kill(first);
    let second = c.until("another process", |s| s["status"] == "running" && s["pid"] != first);
    assert_eq!(second["restarts"], 1);
    c.verb("stop", &[]).success();
    let state = c.state();
    assert_eq!((state["status"].as_str(), state["stopped"].as_bool()), (Some("exited"), Some(true)));
    // And may be started again.
    c.verb("start", &[]).success();
    c.until("it runs", |s| s["status"] == "running");
    c.verb("restart", &["-t", "1s"]).success();
    assert_eq!(c.state()["status"], "running");
}

/// Its supervisor may still be putting things away then.
#[test]
fn one_that_was_just_stopped_can_be_removed() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("trap '' TERM; while :; do sleep 0.02; done");
    for _ in 0..10 {
        let c = Supervised::new(&b);
        c.start(&[]);
        c.verb("rm", &[]).fails_in_one_line();
        c.verb("stop", &["-t", "0s"]).success();
        c.verb("rm", &[]).success();
    }
}

/// Kill supervisor, keeper or both; the container goes on, its log too, and its exit status is the true one.
fn killed(who: impl Fn(&Supervised<'_>) -> Vec<i32>) {
    let bed = Bed::new();
    let b = bed.bundle().sh("i=0; while [ ! -e /stop ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 9");
    let c = Supervised::new(&b);
    c.start(&[]);
    let before = c.state();
    for pid in who(&c) {
        kill(pid);
    }
    let began = Instant::now();
    let after =
        c.until("another supervisor", |s| s["supervisor"] != 0 && s["supervisor"] != before["supervisor"]);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!((&after["pid"], &after["status"]), (&before["pid"], &before["status"]));
    // It is watched by one that has a keeper again.
    let lines = || c.logs(&[]).stdout.lines().count();
    let seen = lines();
    while lines() < seen + 10 {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_ne!(parent(c.number("supervisor")), 1);
    fs::write(b.inside("stop"), "").expect("stop it");
    assert_eq!(c.wait(), 9);
    // Every line, once and in order.
    let log = c.logs(&[]).stdout;
    let numbers: Vec<usize> = log.lines().map(|line| line.parse().expect("a number")).collect();
    assert!(numbers.iter().enumerate().all(|(n, line)| n == *line), "{numbers:?}");
}

#[test]
fn a_supervisor_that_is_killed_is_followed_by_another() {
    let Some(_) = need::root() else { return };
    killed(|c| vec![c.number("supervisor")]);
}

#[test]
fn without_a_keeper_the_supervisor_becomes_one() {
    let Some(_) = need::root() else { return };
    killed(|c| vec![c.keeper()]);
}

#[test]
fn with_both_gone_any_command_brings_them_back() {
    let Some(_) = need::root() else { return };
    killed(|c| vec![c.keeper(), c.number("supervisor")]);
}

#[test]
fn it_ends_while_nobody_is_there_and_the_status_is_known() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("while [ ! -e /stop ]; do sleep 0.01; done; exit 11");
    let c = Supervised::new(&b);
    c.start(&["--restart", "on-failure:1"]);
    let state = c.state();
    let (pid, supervisor) = (c.number("pid"), c.number("supervisor"));
    // The keeper may not start another one for now.
    let keeper = parent(supervisor);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper), nix::sys::signal::Signal::SIGSTOP)
        .expect("stop");
    kill(supervisor);
    fs::write(b.inside("stop"), "").expect("stop it");
    gone_or_zombie(pid);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper), nix::sys::signal::Signal::SIGCONT)
        .expect("go on");
    // By policy it runs once more, and ends again.
    assert_eq!(c.wait(), 11);
    assert_eq!((c.number("restarts"), &state["restarts"]), (1, &Value::from(0)));
}

fn gone_or_zombie(pid: i32) {
    let end = Instant::now() + Duration::from_secs(20);
    while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < end, "{pid} does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_terminal_outlives_its_supervisor() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("test -t 0 && echo tty; while read x; do echo got $x; done");
    let c = Supervised::new(&b);
    c.start(&["-i", "-t"]);
    let before = c.number("supervisor");
    kill(before);
    c.until("another supervisor", |s| s["supervisor"] != before && s["supervisor"] != 0);
    // The pipe's end is not the terminal's: attach ends by the detach keys.
    let out = finish_with_input(&mut c.command(&["attach", &c.id]), "hello\n\u{10}\u{11}");
    out.success();
    let end = Instant::now() + Duration::from_secs(20);
    while !c.logs(&[]).stdout.contains("got hello") {
        assert!(Instant::now() < end, "{}", c.logs(&[]).stdout);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(c.state()["status"], "running");
}

/// It is slow to start the next supervisor, and a command finds nobody meanwhile: a second keeper would have no terminal.
#[test]
fn a_keeper_that_is_there_is_not_overtaken() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("while read x; do echo got $x; done");
    let c = Supervised::new(&b);
    c.start(&["-i", "-t"]);
    let before = c.number("supervisor");
    let keeper = nix::unistd::Pid::from_raw(parent(before));
    nix::sys::signal::kill(keeper, nix::sys::signal::Signal::SIGSTOP).expect("stop");
    kill(before);
    gone_or_zombie(before);
    let status = start(&mut c.command(&["status", "--format", "json", &c.id]));
    // Time enough to put up another one, if it did.
    std::thread::sleep(Duration::from_millis(300));
    nix::sys::signal::kill(keeper, nix::sys::signal::Signal::SIGCONT).expect("go on");
    let state = status.wait().success().json();
    assert_eq!(state["supervisor"].as_i64().map(|pid| parent(pid as i32)), Some(keeper.as_raw()));
    finish_with_input(&mut c.command(&["attach", &c.id]), "hello\n\u{10}\u{11}").success();
    let end = Instant::now() + Duration::from_secs(20);
    while !c.logs(&[]).stdout.contains("got hello") {
        assert!(Instant::now() < end, "{}", c.logs(&[]).stdout);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The container writes all the time, so that whoever leaves is found gone at once.
#[test]
fn what_was_typed_before_detaching_arrives() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("(while :; do echo noise; done) & while read x; do echo \"$x\" >>/got; done");
    let c = Supervised::new(&b);
    c.start(&["-i", "-t", "--log", "none"]);
    for n in 0..30 {
        finish_with_input(&mut c.command(&["attach", &c.id]), &format!("line {n}\n\u{10}\u{11}")).success();
    }
    let end = Instant::now() + Duration::from_secs(20);
    let all: String = (0..30).map(|n| format!("line {n}\n")).collect();
    let got = || fs::read_to_string(b.inside("got")).unwrap_or_default();
    while got() != all {
        assert!(Instant::now() < end, "{:?}", got());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn health_is_checked_and_acted_upon() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("trap 'exit 5' TERM; while :; do sleep 0.02; done");
    let c = Supervised::new(&b);
    let check = "echo checked; test ! -e /sick";
    c.start(&[
        "--health-cmd",
        check,
        "--health-interval",
        "50ms",
        "--health-retries",
        "2",
        "--health-on-failure",
        "restart",
    ]);
    c.until("healthy", |s| s["health"]["status"] == "healthy");
    assert_eq!(c.state()["health"]["log"][0]["output"], "checked\n");
    let first = c.number("pid");
    fs::write(b.inside("sick"), "").expect("make it sick");
    c.until("restarted", |s| s["pid"] != first && s["pid"] != 0);
    fs::remove_file(b.inside("sick")).expect("make it well");
    c.until("healthy again", |s| s["health"]["status"] == "healthy");
    c.verb("stop", &[]).success();
}

#[test]
fn a_check_that_takes_too_long_is_ended() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["sleep", "1000"]);
    let c = Supervised::new(&b);
    c.start(&[
        "--health-cmd",
        "sleep 100",
        "--health-interval",
        "20ms",
        "--health-timeout",
        "50ms",
        "--health-retries",
        "1",
    ]);
    let state = c.until("unhealthy", |s| s["health"]["status"] == "unhealthy");
    assert_eq!(state["health"]["log"][0]["exitCode"], -1);
}

/// A log on a full file system: the container goes on, and the log says what it lost.
#[test]
fn a_full_disk_does_not_stop_the_container() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let small = bed.path("small");
    fs::create_dir(&small).expect("make a folder");
    nix::mount::mount(Some("tmpfs"), &small, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=64k"))
        .expect("mount");
    let b = bed.bundle().sh(
        "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; touch /written; while [ ! -e /room ]; do sleep 0.02; done; \
         sleep 0.4; echo last; sleep 0.5",
    );
    let c = Supervised::new(&b);
    let path = format!("path={}", small.join("log").display());
    c.start(&["--log", "k8s-file", "--log-opt", &path, "--log-opt", "max-buffer-size=8k"]);
    let end = Instant::now() + Duration::from_secs(40);
    while !b.inside("written").exists() {
        assert!(Instant::now() < end, "it waits for its log");
        std::thread::sleep(Duration::from_millis(10));
    }
    nix::mount::mount(
        Some("tmpfs"),
        &small,
        Some("tmpfs"),
        nix::mount::MsFlags::MS_REMOUNT,
        Some("size=16m"),
    )
    .expect("make room");
    fs::write(b.inside("room"), "").expect("tell it");
    assert_eq!(c.wait(), 0);
    let log = c.logs(&[]);
    assert!(log.stdout.ends_with("last\n"), "{:?}", log.stdout.lines().last());
    assert!(log.stderr.contains("of output were dropped: No space left on device"), "{}", log.stderr);
    let notices: Vec<_> = log.stderr.lines().filter(|l| l.contains("of output were dropped")).collect();
    let how_many =
        |l: &&str| l.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok()).expect("how many");
    let lost: usize = notices.iter().map(how_many).sum();
    // A line in the middle of which a loss begins or ends is there in part, and counted.
    let cut = (log.stdout.lines().count() - 1 + lost).checked_sub(20_000);
    assert!(cut.is_some_and(|cut| cut <= 2 * notices.len()), "there or counted: {cut:?}: {}", log.stderr);
    c.remove();
    nix::mount::umount(&small).expect("unmount");
}

/// Somebody is attached and does not read: the container goes on.
#[test]
fn a_stalled_reader_does_not_stop_the_container() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("while [ ! -e /go ]; do sleep 0.02; done; head -c 8000000 /dev/zero | tr '\\0' x; touch /written; sleep 1000");
    let c = Supervised::new(&b);
    c.start(&["--log", "none"]);
    let attached = start(&mut c.command(&["attach", "--no-stdin", &c.id]));
    // It is stopped as soon as it is connected.
    std::thread::sleep(Duration::from_millis(200));
    attached.signal(nix::sys::signal::Signal::SIGSTOP);
    fs::write(b.inside("go"), "").expect("tell it");
    let end = Instant::now() + Duration::from_secs(40);
    while !b.inside("written").exists() {
        assert!(Instant::now() < end, "it waits for its reader");
        std::thread::sleep(Duration::from_millis(10));
    }
    attached.signal(nix::sys::signal::Signal::SIGCONT);
    c.verb("stop", &["-t", "0s"]).success();
    let out = attached.wait();
    assert!(out.stderr.contains("bytes of output were not shown"), "{}", out.stderr);
}

#[test]
fn logs_turn_over_and_are_read_as_one() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); [ $((i % 100)) = 0 ] && sleep 0.02; done; true");
    let c = Supervised::new(&b);
    c.run(&["--log-opt", "max-size=20k", "--log-opt", "max-file=3", "--log-opt", "compress=true"]).success();
    let names: Vec<String> = harness::leaks::entries(&c.folder());
    assert!(names.iter().any(|n| n.contains("container.log.2.gz")), "{names:?}");
    assert!(!names.iter().any(|n| n.contains("container.log.3")), "{names:?}");
    let out = c.logs(&[]).stdout;
    let numbers: Vec<u32> =
        out.lines().map(|l| l.trim_start_matches("line ").parse().expect("a line")).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]) && numbers.last() == Some(&2999));
    assert_eq!(c.logs(&["--tail", "2"]).stdout, "line 2998\nline 2999\n");
}

#[test]
fn logs_follow_until_the_end() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("for i in 1 2 3; do echo $i; sleep 0.05; done");
    let c = Supervised::new(&b);
    c.start(&["--log", "k8s-file"]);
    c.logs(&["-f"]).success().stdout_is("1\n2\n3\n");
    let stamped = c.logs(&["-t", "--tail", "1"]).stdout;
    assert!(stamped.starts_with("20") && stamped.ends_with("Z 3\n"), "{stamped}");
    assert_eq!(c.logs(&["--since", "2000-01-01"]).stdout, "1\n2\n3\n");
    assert_eq!(c.logs(&["--until", "2000-01-01"]).stdout, "");
}

#[test]
fn files_and_commands_at_the_end() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("exit 6");
    let c = Supervised::new(&b);
    let text = |name: &str| bed.path(name).to_string_lossy().into_owned();
    let told = format!("cat {} >{}", text("exit"), text("told"));
    c.run(&[
        "--exit-file",
        &text("exit"),
        "--pid-file",
        &text("pid"),
        "--exit-command",
        "/bin/sh",
        "--exit-command-arg",
        "-c",
        "--exit-command-arg",
        &told,
    ])
    .exits(6);
    let end = Instant::now() + Duration::from_secs(20);
    while fs::read_to_string(bed.path("told")).unwrap_or_default() != "6" {
        assert!(Instant::now() < end, "the exit command");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(fs::read_to_string(bed.path("pid")).expect("the pid file").parse::<i32>().is_ok());
}

#[test]
fn an_init_reaps_zombies() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("(sleep 0.05 &); sleep 0.4; grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l; readlink /proc/1/exe");
    let c = Supervised::new(&b);
    let init = harness::shim::path().with_file_name("berth-init");
    c.run(&[&format!("--init={}", init.display())]).success().stdout_is("0\n/dev/berth-init\n");
}

#[test]
fn exec_pause_signal_resize() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("trap 'echo usr1' USR1; while :; do sleep 0.02; done");
    let c = Supervised::new(&b);
    c.start(&[]);
    let exec = |args: &[&str]| harness::finish(&mut c.command(&[&["exec", &c.id], args].concat()));
    exec(&["sh", "-c", "echo in; exit 9"]).exits(9).stdout_is("in\n");
    c.verb("pause", &[]).success();
    assert_eq!(c.state()["status"], "paused");
    c.verb("resume", &[]).success();
    harness::finish(&mut c.command(&["signal", &c.id, "USR1"])).success();
    let end = Instant::now() + Duration::from_secs(20);
    while c.logs(&[]).stdout != "usr1\n" {
        assert!(Instant::now() < end, "the signal");
        std::thread::sleep(Duration::from_millis(5));
    }
    harness::finish(&mut c.command(&["resize", &c.id, "20", "80"]))
        .exits(125)
        .stderr_has(&format!("{}: it has no terminal", c.id));
    c.verb("stop", &["-t", "0s"]).success();
    c.verb("pause", &[]).exits(125).stderr_has(&format!("{}: it does not run", c.id));
}

#[test]
fn what_is_wrong_is_said_before_anything_is_made() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["/nowhere"]);
    let c = Supervised::new(&b);
    for (options, said) in [
        (&["--restart", "sometimes"][..], "expected no, on-failure[:N], always or unless-stopped"),
        (&["--log-opt", "colour=red"], "--log-opt colour: unknown option"),
        (&["--log", "syslog"], "expected json-file, k8s-file, journald, passthrough or none"),
        (&["--stop-signal", "NOPE"], "unknown signal \"NOPE\""),
        (&["--rm", "--restart", "always"], "--rm and --restart contradict each other"),
        (&["--health-on-failure", "kill"], "it needs --health-cmd"),
        (&["--detach-keys", "ctrl-"], "--detach-keys"),
    ] {
        let out = c.run(options);
        assert_eq!(out.code, Some(125), "{options:?}");
        assert!(out.stderr.contains(said), "{options:?}: {}", out.stderr);
        assert!(!c.folder().exists(), "{options:?}");
    }
    let out = c.run(&[]).exits(125);
    assert!(
        out.stderr.contains("exec: \"/nowhere\": stat /nowhere: no such file or directory"),
        "{}",
        out.stderr
    );
    c.run(&[]).exits(125).stderr_has(&format!("run {0}: {0}: there is a container of that name", c.id));
}

/// 1,000 execs leave descriptors and memory of the supervisor as they were.
#[test]
fn the_supervisor_does_not_grow() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["sleep", "1000"]);
    let c = Supervised::new(&b);
    c.start(&["--health-cmd", "true", "--health-interval", "2ms"]);
    let pid = c.number("supervisor");
    let look = || {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count();
        let memory = harness::host::status(pid, "RssAnon");
        (fds, memory.trim_end_matches(" kB").trim().parse::<u64>().expect("kB"))
    };
    // A check on its way holds some of both: the least that is seen is what stays.
    let measure = || {
        (0..50).fold(look(), |least, _| {
            std::thread::sleep(Duration::from_millis(7));
            let now = look();
            (least.0.min(now.0), least.1.min(now.1))
        })
    };
    let wait = || std::thread::sleep(Duration::from_millis(1500));
    wait();
    let (fds, memory) = measure();
    wait();
    let (later, more) = measure();
    assert!(later <= fds + 1 && more <= memory + 100, "{fds} → {later} descriptors, {memory} → {more} kB");
    assert!(gone_within(c.number("pid"), Duration::ZERO) || c.state()["health"]["status"] == "healthy");
}

/// systemd.service(5): what `generate systemd` prints is a unit, and starting, stopping and starting again does what it says.
#[test]
fn systemd_starts_and_stops_it() {
    let Some(_) = need::root() else { return };
    let Some(_) = need::that(std::path::Path::new("/run/systemd/system").is_dir(), "needs systemd") else {
        return;
    };
    let bed = Bed::new();
    let b = bed.bundle().sh("trap 'exit 0' TERM; echo up; while :; do sleep 0.02; done");
    let c = Supervised::new(&b);
    c.start(&["--restart", "always"]);
    let unit = harness::finish(&mut c.command(&["generate", "systemd", &c.id])).success().stdout;
    c.remove();
    let name = format!("berth-{}.service", c.id);
    let file = std::path::Path::new("/run/systemd/system").join(&name);
    fs::write(&file, unit).expect("write the unit");
    let systemctl = |args: &[&str]| harness::finish(std::process::Command::new("systemctl").args(args));
    systemctl(&["daemon-reload"]).success();
    for _ in 0..2 {
        systemctl(&["start", &name]).success();
        c.until("it runs", |state| state["status"] == "running");
        systemctl(&["stop", &name]).success();
        assert_eq!((c.state()["status"].as_str(), c.state()["exitCode"].as_i64()), (Some("exited"), Some(0)));
    }
    fs::remove_file(&file).expect("remove the unit");
    systemctl(&["daemon-reload"]).success();
}

/// Nobody else may ask a supervisor for anything, and nothing of ours is open in the container.
#[test]
fn sockets_are_private_and_descriptors_stay_here() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("ls /proc/self/fd; readlink /proc/self/cwd; sleep 1000");
    let c = Supervised::new(&b);
    c.start(&["-i"]);
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &std::path::Path| fs::metadata(path).expect("its mode").permissions().mode() & 0o777;
    assert_eq!((mode(&c.folder()), mode(&c.folder().join("control.sock"))), (0o700, 0o600));
    let end = Instant::now() + Duration::from_secs(20);
    while c.logs(&[]).stdout.lines().count() < 5 {
        assert!(Instant::now() < end, "{}", c.logs(&[]).stdout);
        std::thread::sleep(Duration::from_millis(5));
    }
    // 3 is the folder that `ls` reads.
    assert_eq!(c.logs(&[]).stdout, "0\n1\n2\n3\n/\n");
}

/// A recycled number must not be taken for the container: its start is part of its name.
#[test]
fn another_process_with_its_number_is_not_taken_for_it() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["sleep", "1000"]);
    let c = Supervised::new(&b);
    c.start(&[]);
    let (keeper, supervisor, pid) = (c.keeper(), c.number("supervisor"), c.number("pid"));
    for process in [keeper, supervisor, pid] {
        kill(process);
    }
    // As if its number were this test's.
    let file = c.folder().join("state.json");
    let mut state: Value =
        serde_json::from_str(&fs::read_to_string(&file).expect("the state")).expect("JSON");
    state["pid"] = Value::from(std::process::id());
    fs::write(&file, state.to_string()).expect("write the state");
    c.until("ended", |s| s["status"] == "exited");
    // And this test goes on.
}

/// A stop that comes before there is a process was taken, and the process ran on all the same.
#[test]
fn a_stop_while_it_is_made_is_kept() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().hook("createRuntime", "sleep 0.5").args(["sleep", "1000"]);
    let c = Supervised::new(&b);
    let run = start(&mut c.run_command(&["--detach", "--restart", "always", "--stop-timeout", "0"]));
    c.until("it is being made", |state| state["supervisor"].as_i64().is_some_and(|pid| pid > 0));
    c.verb("stop", &[]).success();
    run.wait();
    let state = c.state();
    assert_eq!((state["status"].as_str(), state["stopped"].as_bool()), (Some("exited"), Some(true)));
}

/// The kernel takes the container when memory is short, not its monitor; and not neither.
#[test]
fn podmans_monitor_keeps_its_oom_score_to_itself() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().sh("sleep 1000");
    let id = b.fresh_id();
    b.write(&id);
    bed.adopt(&id);
    let path = |name: &str| bed.path(name).display().to_string();
    let runtime = harness::runtime::path();
    let mut command = std::process::Command::new(harness::shim::path());
    command
        .args(["conmon", "--api-version", "1", "-c", &id, "-u", &id, "-n", &id, "--sync", "-r"])
        .arg(runtime);
    let root = bed.command();
    for argument in root.get_args() {
        command.arg("--runtime-arg").arg(argument);
    }
    command.arg("-b").arg(&b.dir).args(["-p", &path("pid"), "-l", &format!("k8s-file:{}", path("log"))]);
    command.args(["--exit-dir", &path("")]);
    let monitor = start(&mut command);
    let score = |pid: i32| {
        std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))
            .unwrap_or_else(|e| panic!("{pid}: {e}"))
            .trim()
            .to_owned()
    };
    let own = score(i32::try_from(std::process::id()).expect("a pid"));
    let until = std::time::Instant::now() + Duration::from_secs(20);
    let created = || bed.call(&["state", &id]).stdout.contains("\"created\"");
    while !created() {
        assert!(std::time::Instant::now() < until, "it is not created");
        std::thread::sleep(Duration::from_millis(10));
    }
    let container = bed.call(&["state", &id]).json()["pid"].as_i64().and_then(|n| i32::try_from(n).ok());
    assert_eq!(score(container.expect("a pid")), own);
    // Lowering it is a right that not every machine gives.
    let may = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_RESOURCE);
    let may = may.expect("read our capabilities");
    while may && score(monitor.pid()) != "-1000" {
        assert!(std::time::Instant::now() < until, "the monitor has no score of its own");
        std::thread::sleep(Duration::from_millis(10));
    }
    bed.call(&["delete", "--force", &id]).success();
    monitor.ends_within(Duration::from_secs(20));
}

/// Back-off and health checks go by the monotonic clock.
#[test]
fn the_clock_may_be_set_back_a_day() {
    use nix::time::{ClockId, clock_gettime, clock_settime};
    let Some(_) = need::disposable() else { return };
    let bed = Bed::new();
    let crashing = bed.bundle().sh("exit 1");
    let crashing = Supervised::new(&crashing);
    crashing.start(&["--restart", "always"]);
    let b = bed.bundle().sh("trap 'exit 0' TERM; while :; do sleep 0.02; done");
    let healthy = Supervised::new(&b);
    healthy.start(&["--health-cmd", "echo x >>/beats", "--health-interval", "300ms"]);
    let beats = || fs::read(b.inside("beats")).unwrap_or_default().len();
    healthy.until("it beats", |_| beats() > 0);
    crashing.until("it is started again", |s| s["restarts"].as_i64() >= Some(2));
    let day = nix::sys::time::TimeSpec::new(86400, 0);
    let real = clock_gettime(ClockId::CLOCK_REALTIME).expect("read the clock");
    clock_settime(ClockId::CLOCK_REALTIME, real - day).expect("set the clock");
    let (began, beaten, restarts) = (Instant::now(), beats(), crashing.number("restarts"));
    crashing
        .until("it is started again after that", |s| s["restarts"].as_i64() >= Some(i64::from(restarts) + 2));
    healthy.until("it beats after that", |_| beats() >= beaten + 8);
    let took = began.elapsed();
    let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("read the clock");
    clock_settime(ClockId::CLOCK_REALTIME, now + day).expect("set the clock");
    // Four intervals; not all at once either.
    assert!(took > Duration::from_millis(900), "{took:?}");
    healthy.verb("stop", &[]).success();
    assert_eq!(healthy.wait(), 0);
    crashing.verb("stop", &[]).success();
}

#[test]
fn logs_go_to_the_journal() {
    let (Some(_), Some(_)) = (need::file("/run/systemd/journal/socket"), need::program("journalctl")) else {
        return;
    };
    let bed = Bed::new();
    let b = bed.bundle().sh("echo to the journal; echo and an error >&2; exit 3");
    let c = Supervised::new(&b);
    c.run(&["--log", "journald"]).exits(3);
    let of = format!("CONTAINER_NAME={}", c.id);
    let end = Instant::now() + Duration::from_secs(20);
    let seen = loop {
        let out = harness::bed::host("journalctl", &["-q", "-o", "json", &of]).success();
        let lines: Vec<Value> = out.stdout.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
        if lines.len() >= 2 || Instant::now() > end {
            break lines;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut said: Vec<_> = seen.iter().map(|l| (l["PRIORITY"].as_str(), l["MESSAGE"].as_str())).collect();
    said.sort_unstable();
    assert_eq!(said, [(Some("3"), Some("and an error")), (Some("6"), Some("to the journal"))]);
}
