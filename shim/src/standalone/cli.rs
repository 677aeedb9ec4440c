//! The command line. One verb, one function; what a verb does is elsewhere.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use report::{Explain, Kind, error};
use serde_json::json;

use super::args::{
    AttachArgs, Cli, ExecArgs, Format, Generate, GenerateArgs, INIT, IdArgs, ListArgs, LogsArgs, OptionArgs,
    Verb,
};
use super::attach::{self, End, OnSignal};
use super::control::{Answer, Client, Request};
use super::logfile::{self, Wanted};
use super::state::{
    self, Dir, HealthOptions, LogDriver, OnUnhealthy, Options, Restart, State, Status, log_options,
};
use super::{bundle, keeper, logs, supervisor, unit};

/// Ours failed, or was used wrongly.
const FAILED: i32 = 125;

/// What the environment says.
pub struct Environment {
    pub path: OsString,
    pub runtime_dir: Option<PathBuf>,
    pub notify_socket: Option<PathBuf>,
    pub runtime: Option<PathBuf>,
}

/// Do what the arguments say; the exit code.
pub fn main(args: Vec<OsString>, environment: &Environment) -> i32 {
    // What we start ourselves, without the help texts of the rest.
    if let Some(done) = own_part(&args) {
        return done.unwrap_or_else(|e| {
            say(&report::line(&e));
            FAILED
        });
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            let fine = !e.use_stderr();
            e.print().unwrap_or_default();
            return if fine { 0 } else { FAILED };
        }
    };
    let root = cli.root.unwrap_or_else(|| match &environment.runtime_dir {
        Some(dir) if sys::process::euid() != 0 => dir.join("berth-shim"),
        _ => PathBuf::from("/run/berth-shim"),
    });
    let done =
        std::path::absolute(&root).context("--root").and_then(|root| verb(cli.verb, &root, environment));
    done.unwrap_or_else(|e| {
        say(&report::line(&e));
        if let Some(hint) = report::hint(&e) {
            writeln!(std::io::stderr(), "hint: {hint}").unwrap_or_default();
        }
        FAILED
    })
}

fn say(text: &str) {
    writeln!(std::io::stderr(), "berth-shim: {text}").unwrap_or_default();
}

/// The keeper, the supervisor, the compressor of old logs.
fn own_part(args: &[OsString]) -> Option<Result<i32>> {
    let word = args.get(1)?.to_str()?;
    match (word, args.get(2..)?) {
        ("compress", [file]) => Some(logs::compress(Path::new(file)).map(|()| 0)),
        ("keep" | "supervise", [root, id, rest @ ..]) => {
            let id = id.to_str()?;
            let wait = rest.iter().any(|arg| arg == "--wait");
            if word == "supervise" {
                let done = supervisor::supervise(Path::new(root), id, wait);
                // Removed meanwhile: there is nothing to supervise, for nobody.
                return Some(done.or_else(|e| match report::kind(&e) {
                    Some(Kind::NotFound) => Ok(keeper::NOT_MINE),
                    _ => Err(e),
                }));
            }
            let held = rest.iter().filter_map(|arg| {
                let (name, fd) = arg.to_str()?.split_once('=')?;
                Some((name.to_owned(), sys::process::inherited(fd.parse().ok()?)?))
            });
            Some(keeper::keep(Path::new(root), id, wait, held.collect()))
        }
        _ => None,
    }
}

fn verb(verb: Verb, root: &Path, environment: &Environment) -> Result<i32> {
    match verb {
        Verb::Run(args) => run(root, environment, &args.id, &args.bundle, args.options, args.detach),
        Verb::Start(args) => match &args.bundle {
            Some(bundle) => run(root, environment, &args.id, bundle, args.options, !args.attach),
            None => start(root, &args.id, args.attach),
        },
        Verb::Status(args) => status(root, &args.id, args.format),
        Verb::Wait(args) => wait(root, &args.id),
        Verb::Logs(args) => logs(root, args),
        Verb::Attach(args) => attach_to(root, &args),
        Verb::Exec(args) => exec(root, args),
        Verb::Signal(args) => {
            let signal = parse_signal(&args.signal)?;
            ask(root, &args.id, &Request::Signal { signal, all: args.all }).map(|_| 0)
        }
        Verb::Stop(args) => each(&args.ids, |id| stop(root, id, args.timeout)),
        Verb::Restart(args) => each(&args.ids, |id| restart(root, id, args.timeout)),
        Verb::Pause(args) => ask(root, &args.id, &Request::Pause).map(|_| 0),
        Verb::Resume(args) => ask(root, &args.id, &Request::Resume).map(|_| 0),
        Verb::Resize(args) => {
            ask(root, &args.id, &Request::Resize { rows: args.rows, columns: args.columns }).map(|_| 0)
        }
        Verb::List(args) => list(root, &args),
        Verb::Rm(args) => each(&args.ids, |id| remove(root, id, args.force)),
        Verb::Generate(args) => generate(root, &args),
    }
}

/// All of them, also when one fails; the first error.
fn each(ids: &[String], mut one: impl FnMut(&str) -> Result<()>) -> Result<i32> {
    let mut first = None;
    for id in ids {
        if let Err(e) = one(id).with_context(|| id.clone()) {
            match first {
                None => first = Some(e),
                Some(_) => say(&report::line(&e)),
            }
        }
    }
    first.map_or(Ok(0), Err)
}

fn parse_signal(text: &str) -> Result<i32> {
    let number = sys::signals::parse(text).filter(|signal| *signal > 0);
    number.ok_or_else(|| error(Kind::BadInput, format!("unknown signal {text:?}")))
}

fn options(
    given: OptionArgs,
    bundle: &Path,
    id: &str,
    dir: &Dir,
    environment: &Environment,
) -> Result<Options> {
    let absolute = |path: PathBuf| std::path::absolute(&path).with_context(|| path.display().to_string());
    let find = |name: &str| runtime::client::find(name, &environment.path);
    let mut log = log_options(given.log, &given.log_opt)?;
    if log.path.as_os_str().is_empty() {
        log.path = dir.file("container.log");
    }
    if log.compress && log.max_file < 2 {
        return Err(error(Kind::BadInput, "--log-opt compress=true: it needs max-file=2 or more"))
            .kind(Kind::BadInput);
    }
    if given.tty && given.log == LogDriver::Passthrough {
        return Err(error(
            Kind::BadInput,
            "--tty and --log passthrough: a terminal is copied, not passed through",
        ));
    }
    let init = match given.init {
        None => None,
        Some(path) if path.as_os_str() == INIT => {
            let found = find(INIT);
            if !found.is_absolute() {
                return Err(error(
                    Kind::BadInput,
                    "--init: there is no berth-init beside this program or in PATH",
                ));
            }
            Some(found)
        }
        Some(path) => Some(absolute(path)?),
    };
    attach::parse_keys(&given.detach_keys)?;
    let health = given.health_cmd.filter(|command| command != "none").map(|command| HealthOptions {
        command: ["sh".to_owned(), "-c".to_owned(), command].into(),
        interval: given.health_interval.max(Duration::from_millis(1)),
        timeout: given.health_timeout,
        retries: given.health_retries,
        start_period: given.health_start_period,
        start_interval: given.health_start_interval.max(Duration::from_millis(1)),
        on_failure: given.health_on_failure,
    });
    if health.is_none() && given.health_on_failure != OnUnhealthy::None {
        return Err(error(Kind::BadInput, "--health-on-failure: it needs --health-cmd"));
    }
    if given.rm && given.restart != Restart::No {
        return Err(error(Kind::BadInput, format!("{id}: --rm and --restart contradict each other")));
    }
    let runtime = given.runtime.or_else(|| environment.runtime.clone());
    let notify = if given.sdnotify {
        let socket = environment.notify_socket.clone();
        Some(socket.ok_or_else(|| error(Kind::BadInput, "--sdnotify: NOTIFY_SOCKET is not set"))?)
    } else {
        None
    };
    Ok(Options {
        bundle: absolute(bundle.to_owned())?,
        runtime: match runtime {
            Some(path) if path.components().count() > 1 => absolute(path)?,
            Some(name) => name,
            None => find("berth-runtime"),
        },
        runtime_root: given.runtime_root.map(absolute).transpose()?,
        systemd_cgroup: given.systemd_cgroup,
        restart: given.restart,
        init,
        tty: given.tty,
        interactive: given.interactive,
        stop_signal: parse_signal(&given.stop_signal)?,
        stop_timeout: given.stop_timeout,
        log,
        health,
        oom_score_adj: given.oom_score_adj,
        pid_file: given.pid_file.map(absolute).transpose()?,
        exit_file: given.exit_file.map(absolute).transpose()?,
        exit_command: given.exit_command.into_iter().chain(given.exit_command_arg).collect(),
        notify,
        rm: given.rm,
        detach_keys: given.detach_keys,
        no_pivot: given.no_pivot,
        no_new_keyring: given.no_new_keyring,
    })
}

fn run(
    root: &Path,
    environment: &Environment,
    id: &str,
    bundle: &Path,
    given: OptionArgs,
    detach: bool,
) -> Result<i32> {
    let doing = || format!("run {id}");
    let dir = Dir::named(root, id).with_context(doing)?;
    let options = options(given, bundle, id, &dir, environment).with_context(doing)?;
    // What is wrong with the bundle is said before anything is made.
    bundle::derive(&options).with_context(doing)?;
    let dir = Dir::create(root, id).with_context(doing)?;
    dir.set_options(&options).with_context(doing)?;
    supervise(root, &dir, &options, detach).with_context(doing)
}

/// Have it started, and stay unless it is to be in the background.
fn supervise(root: &Path, dir: &Dir, options: &Options, detach: bool) -> Result<i32> {
    let passthrough = options.log.driver == LogDriver::Passthrough;
    let wait = !detach && !passthrough;
    let mut client = begin(root, dir, wait, passthrough)?;
    if detach {
        // One that was killed is followed by another, which is asked again.
        loop {
            match client.ask(&Request::Started) {
                Ok(Some(_)) => return Ok(0),
                Ok(None) => {}
                Err(e) => {
                    await_removal(dir, options);
                    return Err(e);
                }
            }
            match self::client(root, dir)? {
                Some(next) => client = next,
                None => return after_all(dir),
            }
        }
    }
    let end = if passthrough {
        End::Status(wait_for(dir, Some(client), OnSignal::Forward)?)
    } else {
        let keys = attach::parse_keys(&options.detach_keys)?;
        let stdin = options.tty || options.interactive;
        attach::attach(dir, Some(client), stdin, &keys, OnSignal::Forward)?
    };
    if end != End::Detached {
        await_removal(dir, options);
    }
    finish(end)
}

/// With `--rm`, whoever looks next finds nothing of it.
fn await_removal(dir: &Dir, options: &Options) {
    let until = Instant::now() + Duration::from_secs(10);
    while options.rm && dir.path.exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn finish(end: End) -> Result<i32> {
    Ok(match end {
        End::Status(status) => status,
        End::Detached => 0,
    })
}

/// It ended before it could be asked.
fn after_all(dir: &Dir) -> Result<i32> {
    match dir.state() {
        Ok(state) if !state.error.is_empty() => Err(anyhow::Error::msg(state.error)),
        // Removed, or it has ended: it was started.
        _ => Ok(0),
    }
}

/// Have it supervised, and the connection. Killed before it could answer, another one is put up.
fn begin(root: &Path, dir: &Dir, wait: bool, passthrough: bool) -> Result<Client> {
    let until = Instant::now() + Duration::from_secs(10);
    keeper::start(root, &dir.id, wait, passthrough)?;
    let mut started = Instant::now();
    loop {
        if let Some(client) = Client::connect(dir)? {
            return Ok(client);
        }
        let now = Instant::now();
        if now > until {
            let told = std::fs::read_to_string(dir.file("shim.log")).unwrap_or_default();
            bail!("the supervisor does not answer; {}: {}", dir.file("shim.log").display(), told.trim());
        }
        if now > started + Duration::from_millis(200) && dir.is_unattended()? {
            keeper::start(root, &dir.id, wait, passthrough)?;
            started = now;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn start(root: &Path, id: &str, stay: bool) -> Result<i32> {
    let doing = || format!("start {id}");
    let dir = Dir::open(root, id).with_context(doing)?;
    let options = dir.options().with_context(doing)?;
    let Some(lock) = dir.lock().with_context(doing)? else {
        return Err(error(Kind::WrongState, "it is supervised already")).with_context(doing);
    };
    let mut state = dir.state().with_context(doing)?;
    if state.pid == 0 {
        // A new beginning; how often it was started again stays known.
        state = State { restarts: 0, ..State::default() };
        dir.set_state(&state).with_context(doing)?;
    }
    drop(lock);
    supervise(root, &dir, &options, !stay).with_context(doing)
}

/// The container, supervised again if it should be and is not: whoever supervised it was killed.
fn open(root: &Path, id: &str) -> Result<Dir> {
    let dir = Dir::open(root, id)?;
    client(root, &dir)?;
    Ok(dir)
}

/// A connection to who supervises it. One that was killed is replaced. `None`: it has ended for good.
fn client(root: &Path, dir: &Dir) -> Result<Option<Client>> {
    let until = Instant::now() + Duration::from_secs(10);
    let mut started = false;
    loop {
        if let Some(client) = Client::connect(dir)? {
            return Ok(Some(client));
        }
        let state = match dir.state() {
            Ok(state) => state,
            Err(_) if !dir.path.exists() => return Ok(None),
            Err(e) => return Err(e),
        };
        if !state.lives() {
            return Ok(None);
        }
        if !started && dir.is_unattended()? {
            keeper::start(root, &dir.id, false, false)?;
            started = true;
        }
        if Instant::now() > until {
            bail!("{}: nobody supervises it; see {}", dir.id, dir.file("shim.log").display());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn ask(root: &Path, id: &str, request: &Request) -> Result<Answer> {
    let dir = open(root, id)?;
    let gone = || {
        Err(error(Kind::WrongState, format!("{id}: it does not run")))
            .hint(|| format!("`berth-shim start {id}` starts it"))
    };
    match client(root, &dir)? {
        None => gone(),
        Some(mut client) => client.ask(request)?.map_or_else(gone, Ok),
    }
}

fn status(root: &Path, id: &str, format: Format) -> Result<i32> {
    let dir = open(root, id)?;
    let (state, options) = (dir.state()?, dir.options()?);
    let supervised = dir.lock()?.is_none();
    if format == Format::Json {
        let json =
            serde_json::to_string_pretty(&json(&dir, &state, &options, supervised)).context("write JSON")?;
        print(&format!("{json}\n"))?;
        return Ok(0);
    }
    let mut lines = vec![("container", id.to_owned()), ("status", state.status.word().to_owned())];
    if state.pid != 0 {
        lines.push(("process", state.pid.to_string()));
    }
    if let Some(code) = state.exit_code {
        lines.push(("exit status", if state.exit_unknown { "unknown".to_owned() } else { code.to_string() }));
    }
    for (what, time) in [("started", state.started_at), ("finished", state.finished_at)] {
        if let Some(time) = time {
            lines.push((what, time.text()));
        }
    }
    lines.push(("restarts", state.restarts.to_string()));
    if let Some(health) = &state.health {
        lines.push(("health", format!("{:?}", health.status).to_lowercase()));
    }
    if !state.error.is_empty() {
        lines.push(("error", state.error.clone()));
    }
    if supervised {
        lines.push(("supervisor", state.supervisor.to_string()));
    }
    lines.push(("bundle", options.bundle.display().to_string()));
    lines.push(("log", options.log.path.display().to_string()));
    let text: String = lines.iter().map(|(what, value)| format!("{what:<13}{value}\n")).collect();
    print(&text)?;
    Ok(0)
}

fn json(dir: &Dir, state: &State, options: &Options, supervised: bool) -> serde_json::Value {
    let mut value = serde_json::to_value(state).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        for hidden in ["startTicks", "inARow"] {
            object.remove(hidden);
        }
        if !supervised {
            object.insert("supervisor".to_owned(), json!(0));
        }
        object.insert("id".to_owned(), json!(dir.id));
        object.insert("bundle".to_owned(), json!(options.bundle));
        object.insert("logPath".to_owned(), json!(options.log.path));
        object.insert("restartPolicy".to_owned(), json!(options.restart));
        object.insert("tty".to_owned(), json!(options.tty));
    }
    value
}

fn list(root: &Path, args: &ListArgs) -> Result<i32> {
    let mut all = Vec::new();
    for id in state::list(root)? {
        // One that goes away meanwhile is not there.
        let Ok(dir) = open(root, &id) else { continue };
        let (Ok(state), Ok(options)) = (dir.state(), dir.options()) else { continue };
        let supervised = dir.lock()?.is_none();
        all.push((dir, state, options, supervised));
    }
    if args.quiet {
        let text: String = all.iter().map(|(dir, ..)| format!("{}\n", dir.id)).collect();
        print(&text)?;
        return Ok(0);
    }
    if args.format == Format::Json {
        let list: Vec<_> = all.iter().map(|(dir, state, options, s)| json(dir, state, options, *s)).collect();
        print(&format!("{}\n", serde_json::to_string_pretty(&list).context("write JSON")?))?;
        return Ok(0);
    }
    let mut rows = vec![["CONTAINER", "STATUS", "PID", "RESTARTS", "HEALTH", "BUNDLE"].map(str::to_owned)];
    for (dir, state, options, _) in &all {
        let status = match (state.status, state.exit_code) {
            (Status::Exited, Some(code)) if !state.exit_unknown => format!("exited ({code})"),
            (status, _) => status.word().to_owned(),
        };
        let health =
            state.health.as_ref().map_or("-".to_owned(), |h| format!("{:?}", h.status).to_lowercase());
        let pid = if state.pid == 0 { "-".to_owned() } else { state.pid.to_string() };
        let bundle = options.bundle.display().to_string();
        rows.push([dir.id.clone(), status, pid, state.restarts.to_string(), health, bundle]);
    }
    let widths: Vec<usize> =
        (0..6).map(|n| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    print(&text)?;
    Ok(0)
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("write to standard output")
}

fn wait(root: &Path, id: &str) -> Result<i32> {
    let dir = open(root, id)?;
    let status = wait_for(&dir, None, OnSignal::Leave)?;
    print(&format!("{status}\n"))?;
    Ok(0)
}

/// Until it has ended for good; its status. A supervisor that is killed meanwhile is followed by another one.
fn wait_for(dir: &Dir, client: Option<Client>, on_signal: OnSignal) -> Result<i32> {
    if on_signal == OnSignal::Forward {
        let end = attach::attach(dir, client, false, &[], on_signal)?;
        return finish(end);
    }
    let mut client = client;
    let until = || Instant::now() + Duration::from_secs(10);
    let mut patience = until();
    loop {
        let connected = match client.take() {
            Some(client) => Some(client),
            None => Client::connect(dir)?,
        };
        if let Some(mut client) = connected {
            if let Some(Answer { exit_code: Some(status), .. }) = client.ask(&Request::Wait)? {
                return Ok(status);
            }
            patience = until();
        }
        match dir.state() {
            Ok(state) if state.status == Status::Exited => return Ok(state.exit_code.unwrap_or(255)),
            Ok(_) if Instant::now() < patience => std::thread::sleep(Duration::from_millis(5)),
            Ok(_) => bail!("{}: nobody supervises it", dir.id),
            Err(e) if dir.path.exists() => return Err(e),
            Err(_) => bail!("{}: it was removed", dir.id),
        }
    }
}

fn logs(root: &Path, args: LogsArgs) -> Result<i32> {
    let dir = open(root, &args.id)?;
    let tail =
        match args.tail.as_deref() {
            None | Some("all") => None,
            Some(text) => {
                let number = text.parse().ok();
                Some(number.ok_or_else(|| {
                    error(Kind::BadInput, format!("--tail {text}: expected a number, or all"))
                })?)
            }
        };
    let wanted = Wanted {
        follow: args.follow,
        tail,
        since: args.since,
        until: args.until,
        timestamps: args.timestamps,
    };
    logfile::print(&dir, &dir.options()?.log, wanted)?;
    Ok(0)
}

fn attach_to(root: &Path, args: &AttachArgs) -> Result<i32> {
    let dir = open(root, &args.id)?;
    let options = dir.options()?;
    let keys = attach::parse_keys(args.detach_keys.as_deref().unwrap_or(&options.detach_keys))?;
    let Some(client) = client(root, &dir)? else {
        return Err(error(Kind::WrongState, format!("{}: it does not run", args.id)));
    };
    let stdin = !args.no_stdin && (options.tty || options.interactive);
    finish(attach::attach(&dir, Some(client), stdin, &keys, OnSignal::Leave)?)
}

/// By the runtime, which this process becomes.
fn exec(root: &Path, args: ExecArgs) -> Result<i32> {
    let dir = open(root, &args.id)?;
    let options = dir.options()?;
    let client = supervisor::client(&options);
    let mut command = Command::new(&client.program);
    if let Some(root) = &client.root {
        command.arg("--root").arg(root);
    }
    if client.systemd_cgroup {
        command.arg("--systemd-cgroup");
    }
    command.arg("exec");
    for (yes, flag) in [(args.tty, "--tty"), (args.detach, "--detach")] {
        if yes {
            command.arg(flag);
        }
    }
    for (flag, value) in [("--user", args.user), ("--cwd", args.cwd)] {
        if let Some(value) = value {
            command.args([flag, &value]);
        }
    }
    for pair in &args.env {
        command.args(["--env", pair]);
    }
    command.arg(&args.id).args(&args.command);
    if !args.interactive && !args.tty {
        command.stdin(std::process::Stdio::null());
    }
    Err(anyhow::Error::from(command.exec()).context(format!("start {}", client.program.display())))
}

fn stop(root: &Path, id: &str, timeout: Option<Duration>) -> Result<()> {
    let dir = open(root, id)?;
    let timeout = timeout.map(|t| t.as_secs());
    while let Some(mut client) = client(root, &dir)? {
        if client.ask(&Request::Stop { timeout })?.is_none() {
            // It was killed meanwhile: the next one is asked.
            continue;
        }
        // Until everything of it is in the files.
        client.ask(&Request::Wait)?;
        return Ok(());
    }
    // It has ended: a user's stop holds all the same.
    if let Some(_lock) = dir.lock()? {
        let mut state = dir.state()?;
        state.stopped = true;
        dir.set_state(&state)?;
    }
    Ok(())
}

fn restart(root: &Path, id: &str, timeout: Option<Duration>) -> Result<()> {
    let dir = open(root, id)?;
    let timeout = timeout.map(|t| t.as_secs());
    match client(root, &dir)? {
        Some(mut client) => client.ask(&Request::Restart { timeout }).map(|_| ()),
        None => start(root, id, false).map(|_| ()),
    }
}

fn remove(root: &Path, id: &str, force: bool) -> Result<()> {
    let dir = open(root, id)?;
    let until = Instant::now() + Duration::from_secs(30);
    let lock = loop {
        while let Some(mut client) = client(root, &dir)? {
            if !force && dir.state()?.lives() {
                return Err(error(Kind::WrongState, "it runs"))
                    .hint(|| format!("`berth-shim stop {id}` first, or --force"));
            }
            // One that has just ended may still have somebody who puts its things away.
            if !force {
                break;
            }
            if client.ask(&Request::Stop { timeout: Some(0) })?.is_some() {
                client.ask(&Request::Wait)?;
                break;
            }
        }
        // Its supervisor is about to end; then nobody else may begin.
        if let Some(lock) = dir.lock()?
            && !dir.state()?.lives()
        {
            break lock;
        }
        if Instant::now() > until {
            bail!("its supervisor does not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let options = dir.options()?;
    let made = dir.file("log.json");
    if made.exists() {
        // Its last supervisor may have been killed between its end and the removal.
        crate::task::delete_now(&supervisor::client(&options), &made, id)?;
    }
    let log = options.log;
    for n in 0..log.max_file.max(1) {
        for end in ["", ".gz"] {
            // Those in the folder go with it.
            let path = if n == 0 { log.path.clone() } else { logs::numbered(&log.path, n, end) };
            if !path.starts_with(&dir.path) {
                crate::task::remove(&path)?;
            }
        }
    }
    dir.remove()?;
    drop(lock);
    Ok(())
}

fn generate(root: &Path, args: &GenerateArgs) -> Result<i32> {
    let Generate::Systemd(IdArgs { id }) = &args.what;
    let dir = Dir::open(root, id)?;
    let program = std::env::current_exe().context("find the own program")?;
    let text = unit::systemd(&program.display().to_string(), root, &dir, &dir.options()?);
    print(&text)?;
    Ok(0)
}

/// The command, for completions and manual pages.
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}
