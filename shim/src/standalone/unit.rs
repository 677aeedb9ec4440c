//! How does a container come back when the host is booted? By a systemd unit that holds everything that was asked for: what is known of
//! a container lies in /run, which is empty then.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use super::state::{Dir, LogDriver, OnUnhealthy, Options, Restart};

/// The text of a unit for a container: `berth-shim generate systemd ID`.
pub fn systemd(program: &str, root: &Path, dir: &Dir, options: &Options) -> String {
    let id = &dir.id;
    let call = |words: &[String]| words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ");
    let base = [program.to_owned(), "--root".to_owned(), root.display().to_string()];
    let with = |words: Vec<String>| call(&[base.to_vec(), words].concat());
    let mut out = format!(
        "# Container {id}: /etc/systemd/system/berth-{id}.service, then systemctl enable --now berth-{id}\n\
         [Unit]\n\
         Description=Container {id} (berth-shim)\n\
         Wants=network-online.target\n\
         After=network-online.target local-fs.target\n\
         RequiresMountsFor={}\n\n\
         [Service]\n",
        quote(&options.bundle.display().to_string())
    );
    let mut add = |key: &str, value: &str| writeln!(out, "{key}={value}").unwrap_or_default();
    add("Type", "exec");
    // One that has ended before is made anew; one that lives is an error that is shown.
    add("ExecStartPre", &format!("-{}", with(vec!["rm".to_owned(), id.clone()])));
    add("ExecStart", &with([vec!["run".to_owned()], arguments(options, dir), vec![id.clone()]].concat()));
    add("ExecStop", &with(vec!["stop".to_owned(), id.clone()]));
    add("TimeoutStopSec", &(options.stop_timeout.as_secs() + 10).to_string());
    // Restarts are the supervisor's.
    add("Restart", "no");
    add("KillMode", "mixed");
    out.push_str("\n[Install]\nWantedBy=multi-user.target\n");
    out
}

/// The options as `run` takes them.
fn arguments(o: &Options, dir: &Dir) -> Vec<String> {
    let mut out = Vec::new();
    let mut add = |words: &[&str]| out.extend(words.iter().map(|word| (*word).to_owned()));
    let path = |path: &Path| path.display().to_string();
    let time = |time: Duration| format!("{}ms", time.as_millis());
    add(&["--bundle", &path(&o.bundle), "--runtime", &path(&o.runtime)]);
    for (flag, given) in
        [("--runtime-root", &o.runtime_root), ("--pid-file", &o.pid_file), ("--exit-file", &o.exit_file)]
    {
        if let Some(given) = given {
            add(&[flag, &path(given)]);
        }
    }
    if let Some(init) = &o.init {
        add(&[&format!("--init={}", path(init))]);
    }
    for (flag, yes) in [
        ("--systemd-cgroup", o.systemd_cgroup),
        ("--tty", o.tty),
        ("--interactive", o.interactive),
        ("--rm", o.rm),
        ("--no-pivot", o.no_pivot),
        ("--no-new-keyring", o.no_new_keyring),
    ] {
        if yes {
            add(&[flag]);
        }
    }
    match o.restart {
        Restart::No => {}
        Restart::OnFailure(0) => add(&["--restart", "on-failure"]),
        Restart::OnFailure(most) => add(&["--restart", &format!("on-failure:{most}")]),
        Restart::Always => add(&["--restart", "always"]),
        Restart::UnlessStopped => add(&["--restart", "unless-stopped"]),
    }
    add(&["--stop-signal", &o.stop_signal.to_string(), "--stop-timeout", &time(o.stop_timeout)]);
    let driver = match o.log.driver {
        LogDriver::JsonFile => "json-file",
        LogDriver::K8sFile => "k8s-file",
        LogDriver::Journald => "journald",
        LogDriver::Passthrough => "passthrough",
        LogDriver::None => "none",
    };
    add(&["--log", driver]);
    // The usual place is made anew with the container.
    let log = &o.log;
    for (given, pair) in [
        (log.path != dir.file("container.log"), format!("path={}", path(&log.path))),
        (log.max_size > 0, format!("max-size={}", log.max_size)),
        (log.max_file > 1, format!("max-file={}", log.max_file)),
        (log.compress, "compress=true".to_owned()),
        (log.blocking, "mode=blocking".to_owned()),
        (log.max_buffer != 1 << 20, format!("max-buffer-size={}", log.max_buffer)),
    ] {
        if given {
            add(&["--log-opt", &pair]);
        }
    }
    if let Some(health) = &o.health {
        // What `--health-cmd` became: sh, -c and the text.
        add(&["--health-cmd", health.command.last().map_or("", String::as_str)]);
        for (flag, given) in [
            ("--health-interval", health.interval),
            ("--health-timeout", health.timeout),
            ("--health-start-period", health.start_period),
            ("--health-start-interval", health.start_interval),
        ] {
            add(&[flag, &time(given)]);
        }
        add(&["--health-retries", &health.retries.to_string()]);
        let action = match health.on_failure {
            OnUnhealthy::None => "none",
            OnUnhealthy::Kill => "kill",
            OnUnhealthy::Restart => "restart",
            OnUnhealthy::Stop => "stop",
        };
        add(&["--health-on-failure", action]);
    }
    if let Some(score) = o.oom_score_adj {
        add(&["--oom-score-adj", &score.to_string()]);
    }
    if let Some((program, args)) = o.exit_command.split_first() {
        add(&["--exit-command", program]);
        for arg in args {
            add(&["--exit-command-arg", arg]);
        }
    }
    if o.detach_keys != "ctrl-p,ctrl-q" {
        add(&["--detach-keys", &o.detach_keys]);
    }
    out
}

/// A word of a unit's command line (systemd.service(5), "Command lines"): specifiers and variables mean nothing in it.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:,+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut out = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '%' => out.push_str("%%"),
            '$' => out.push_str("$$"),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::super::state::{HealthOptions, log_options};
    use super::*;

    #[test]
    fn a_unit_says_everything_again() {
        let options = Options {
            bundle: "/srv/web".into(),
            runtime: "/usr/bin/berth-runtime".into(),
            restart: Restart::OnFailure(3),
            stop_signal: 15,
            stop_timeout: Duration::from_secs(10),
            log: log_options(LogDriver::K8sFile, &["max-size=1m".to_owned(), "path=/var/log/web".to_owned()])
                .unwrap(),
            health: Some(HealthOptions {
                command: vec!["sh".to_owned(), "-c".to_owned(), "test \"$X\" = 5%".to_owned()],
                interval: Duration::from_secs(1),
                timeout: Duration::from_secs(1),
                retries: 3,
                start_period: Duration::ZERO,
                start_interval: Duration::from_secs(5),
                on_failure: OnUnhealthy::Restart,
            }),
            detach_keys: "ctrl-p,ctrl-q".to_owned(),
            ..Options::default()
        };
        let dir = Dir { id: "web".to_owned(), path: "/run/berth-shim/web".into() };
        let text = systemd("/usr/bin/berth-shim", Path::new("/run/berth-shim"), &dir, &options);
        for line in [
            "ExecStartPre=-/usr/bin/berth-shim --root /run/berth-shim rm web\n",
            "ExecStop=/usr/bin/berth-shim --root /run/berth-shim stop web\n",
            "RequiresMountsFor=/srv/web\n",
            "WantedBy=multi-user.target\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        for part in [
            "run --bundle /srv/web --runtime /usr/bin/berth-runtime --restart on-failure:3 ",
            " --health-cmd \"test \\\"$$X\\\" = 5%%\" --health-interval 1000ms ",
            " --log-opt path=/var/log/web --log-opt max-size=1048576 ",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
