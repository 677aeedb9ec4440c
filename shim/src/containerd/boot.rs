//! How does containerd get a shim, and get rid of what one has left? (containerd, core/runtime/v2/README.md)
//!
//! ```text
//!  containerd-shim-berth-v2 -namespace N -id ID -address A [-publish-binary B] [-debug] start    prints where the shim listens
//!  … -bundle DIR delete                                                                          puts away what is left of ID
//!  … (no word)                                                                                   serves, with the socket on 0
//!  … -v | -info                                                                                  tell what this is
//! ```
//! Before containerd 2.3 the options come on standard input, from then on everything does (BootstrapParams).

use std::cell::Cell;
use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use report::Kind;
use sha2::{Digest, Sha256};
use sys::signals::Signals;

use super::events::{Destination, Events};
use super::message::{Any, BootstrapParams, DeleteResponse, RuntimeInfo, RuntimeVersion, Whole};
use super::options::Options;
use super::service::{Config, Service};
use super::{rootfs, ttrpc};
use crate::executor::Loop;
use crate::exits::{self, Children};
use crate::task::Host;

const RUNTIME: &str = "io.containerd.berth.v2";
/// Where shims listen, if containerd does not say: a short path, as the names of sockets must be.
const SOCKETS: &str = "/run/containerd/s";
/// Containers with the same value share a shim: those of a pod; and those that say so themselves.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

const HELP: &str = "\
Supervises containers for containerd, which starts it (runtime io.containerd.berth.v2).

Usage: containerd-shim-berth-v2 [OPTIONS] [start|delete]

Options, with one dash or two:
  -namespace NAME        The namespace of the container
  -id ID                 The container
  -address PATH          containerd's main socket
  -publish-binary PATH   containerd's program, for events where TTRPC_ADDRESS is not set
  -bundle PATH           The bundle (delete) [default: the working directory]
  -socket PATH           The socket that this process serves on standard input
  -debug                 Log every call
  -v, -version           Show the version
  -info                  Show what this shim is, as protobuf (containerd.types.RuntimeInfo)
  -h, -help              Show this
";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Args {
    namespace: String,
    id: String,
    address: String,
    publish_binary: OsString,
    bundle: PathBuf,
    socket: PathBuf,
    debug: bool,
    word: Word,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Word {
    #[default]
    Serve,
    Start,
    Delete,
    Version,
    Info,
    Help,
}

/// What the environment says.
pub struct Environment {
    pub ttrpc_address: Option<OsString>,
    pub max_version: Option<OsString>,
    pub path: OsString,
}

/// Do what the arguments say; the exit code.
pub fn main(args: impl Iterator<Item = OsString>, environment: &Environment) -> i32 {
    let done = parse(args).and_then(|args| run(args, environment));
    match done {
        Ok(()) => 0,
        Err(e) => {
            // containerd puts it into the error that the user sees.
            writeln!(std::io::stderr(), "containerd-shim-berth-v2: {}", report::line(&e)).unwrap_or_default();
            1
        }
    }
}

fn parse(args: impl Iterator<Item = OsString>) -> Result<Args> {
    let mut out = Args::default();
    let mut args = args;
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy().into_owned();
        let Some(flag) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')) else {
            out.word = match text.as_str() {
                "start" => Word::Start,
                "delete" => Word::Delete,
                other => return Err(bad(format!("unknown command {other:?}; known are start and delete"))),
            };
            continue;
        };
        let (name, mut given) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(OsString::from(value))),
            None => (flag, None),
        };
        let mut value =
            || given.take().or_else(|| args.next()).ok_or_else(|| bad(format!("-{name}: it needs a value")));
        let words = |value: OsString| value.to_string_lossy().into_owned();
        match name {
            "namespace" => out.namespace = words(value()?),
            "id" => out.id = words(value()?),
            "address" => out.address = words(value()?),
            "publish-binary" => out.publish_binary = value()?,
            "bundle" => out.bundle = value()?.into(),
            "socket" => out.socket = value()?.into(),
            "debug" => out.debug = given.is_none_or(|v| v != "false"),
            "v" | "version" => out.word = Word::Version,
            "info" => out.word = Word::Info,
            "h" | "help" => out.word = Word::Help,
            other => return Err(bad(format!("-{other}: unknown option; -help lists them"))),
        }
    }
    Ok(out)
}

fn bad(message: String) -> anyhow::Error {
    report::error(Kind::BadInput, message)
}

fn run(args: Args, environment: &Environment) -> Result<()> {
    match args.word {
        Word::Help => print(HELP.as_bytes()),
        Word::Version => print(
            format!(
                "containerd-shim-berth-v2:\n  Version:  {}\n  Runtime:  {RUNTIME}\n",
                env!("CARGO_PKG_VERSION")
            )
            .as_bytes(),
        ),
        Word::Info => info(environment),
        Word::Start => start(args, environment),
        Word::Delete => delete(&args, environment),
        Word::Serve => serve(&args, environment),
    }
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout();
    out.write_all(bytes).and_then(|()| out.flush()).context("write to standard output")
}

/// What containerd wrote to standard input. A person at a terminal writes nothing.
fn input() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if !std::io::stdin().is_terminal() {
        std::io::stdin().read_to_end(&mut bytes).context("read standard input")?;
    }
    Ok(bytes)
}

/// containerd.types.RuntimeInfo, with the runtime's own `features`.
fn info(environment: &Environment) -> Result<()> {
    let given = input()?;
    let options = Any::parse(&given).filter(|any| !any.type_url.is_empty());
    let client = Options::parse(options.as_ref())?.client("", &environment.path);
    let features = Command::new(&client.program).arg("features").stderr(Stdio::null()).output();
    let features = features.ok().filter(|out| out.status.success()).map(|out| Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/features/Features".to_owned(),
        value: out.stdout,
    });
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), revision: String::new() };
    let info = RuntimeInfo { name: RUNTIME.to_owned(), version: Some(version), options, features };
    print(info.message().as_bytes())
}

/// Which form of the exchange containerd speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The address alone: task v2.
    Address,
    /// JSON with version 3.
    Json,
}

/// What containerd says, in whichever form it says it.
struct Told {
    args: Args,
    options: Option<Any>,
    sockets: PathBuf,
    ttrpc_address: OsString,
    answer: Answer,
}

fn told(mut args: Args, given: &[u8], environment: &Environment) -> Result<Told> {
    let number = |text: &OsString| text.to_str().and_then(|t| t.parse::<u32>().ok());
    let newest = environment.max_version.as_ref().and_then(number).unwrap_or(2);
    let mut told = Told {
        options: None,
        sockets: PathBuf::from(SOCKETS),
        ttrpc_address: environment.ttrpc_address.clone().unwrap_or_default(),
        answer: if newest >= 3 { Answer::Json } else { Answer::Address },
        args: Args::default(),
    };
    let params = if given.first() == Some(&b'{') {
        Some(json_params(given)?)
    } else {
        // Its first field is the container's name, where options have the name of their type.
        BootstrapParams::parse(given)
            .filter(|p| !p.instance_id.is_empty() && (args.id.is_empty() || p.instance_id == args.id))
    };
    match params {
        None => told.options = Any::parse(given).filter(|any| !any.type_url.is_empty()),
        Some(p) => {
            told.answer = Answer::Json;
            args.id = p.instance_id;
            args.namespace = p.namespace;
            args.address = p.grpc_address;
            args.publish_binary = p.containerd_binary.into();
            args.debug |= p.log_level < 0;
            told.ttrpc_address = p.ttrpc_address.into();
            if !p.socket_dir.is_empty() {
                told.sockets = p.socket_dir.into();
            }
            told.options =
                p.extensions.into_iter().filter_map(|e| e.value).find(|any| any.name().ends_with("Options"));
        }
    }
    for (what, given) in [("id", &args.id), ("namespace", &args.namespace)] {
        if given.is_empty() || given.contains('/') {
            return Err(bad(format!("-{what}: {given:?} is no name")));
        }
    }
    told.args = args;
    Ok(told)
}

/// BootstrapParams in protobuf's JSON, whose names may be in either form.
fn json_params(given: &[u8]) -> Result<BootstrapParams> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Json {
        #[serde(alias = "instance_id")]
        instance_id: String,
        namespace: String,
        #[serde(alias = "log_level")]
        log_level: serde_json::Value,
        #[serde(alias = "containerd_ttrpc_address")]
        containerd_ttrpc_address: String,
        #[serde(alias = "containerd_grpc_address")]
        containerd_grpc_address: String,
        #[serde(alias = "containerd_binary")]
        containerd_binary: String,
        #[serde(alias = "socket_dir")]
        socket_dir: String,
    }
    let json: Json = serde_json::from_slice(given).context("BootstrapParams on standard input")?;
    let debug = matches!(json.log_level.as_str(), Some("LOG_LEVEL_DEBUG" | "LOG_LEVEL_TRACE"))
        || json.log_level.as_i64().is_some_and(|n| n < 0);
    Ok(BootstrapParams {
        instance_id: json.instance_id,
        namespace: json.namespace,
        log_level: if debug { -4 } else { 0 },
        ttrpc_address: json.containerd_ttrpc_address,
        grpc_address: json.containerd_grpc_address,
        containerd_binary: json.containerd_binary,
        socket_dir: json.socket_dir,
        ..BootstrapParams::default()
    })
}

fn start(args: Args, environment: &Environment) -> Result<()> {
    let Told { args, options, sockets, ttrpc_address, answer } = told(args, &input()?, environment)?;
    let options = Options::parse(options.as_ref())?;
    let path = sockets.join(socket_name(&args, &group(&args.id)?));
    let address = format!("unix://{}", path.display());
    // Where containerd finds it when it is restarted, and `delete` when we are killed: before there is anything to find.
    sys::fd::publish(Path::new("address"), address.as_bytes())
        .context("write the address into the bundle")?;
    if let Some(listener) = listen(&sockets, &path)?
        && let Err(e) = launch(listener, &path, &args, &ttrpc_address, &options)
    {
        return Err(match std::fs::remove_file(&path) {
            Ok(()) => e,
            Err(undo) => e.context(format!("remove {}: {undo}", path.display())),
        });
    }
    print(
        match answer {
            Answer::Address => address,
            Answer::Json => {
                format!("{}", serde_json::json!({"version": 3, "address": address, "protocol": "ttrpc"}))
            }
        }
        .as_bytes(),
    )
}

/// The containers that share a shim, by name.
fn group(id: &str) -> Result<String> {
    let text = match std::fs::read("config.json") {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(id.to_owned()),
        Err(e) => return Err(e).context("read config.json"),
    };
    let config: Config = serde_json::from_slice(&text).context("config.json")?;
    let group = GROUPS.iter().find_map(|name| config.annotations.get(*name));
    Ok(group.cloned().unwrap_or_else(|| id.to_owned()))
}

fn socket_name(args: &Args, group: &str) -> String {
    let words = Path::new(&args.address).join(&args.namespace).join(group);
    let digest = Sha256::digest(words.as_os_str().as_encoded_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `None`: a shim listens there already.
fn listen(folder: &Path, path: &Path) -> Result<Option<UnixListener>> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("make {}", folder.display()))?;
    loop {
        match UnixListener::bind(path) {
            Ok(listener) => {
                // Nobody can connect before it listens; between that and this, the folder keeps others out.
                rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(0o600))
                    .with_context(|| format!("chmod {}", path.display()))?;
                return Ok(Some(listener));
            }
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(e) => return Err(e).with_context(|| format!("listen on {}", path.display())),
        }
        if UnixStream::connect(path).is_ok() {
            return Ok(None);
        }
        // Of a shim that was killed.
        crate::task::remove(path)?;
    }
}

/// Start the process that serves.
fn launch(
    listener: UnixListener,
    path: &Path,
    args: &Args,
    ttrpc_address: &OsString,
    options: &Options,
) -> Result<()> {
    let own = std::env::current_exe().context("find the own program")?;
    let mut command = Command::new(own);
    command.arg0("containerd-shim-berth-v2");
    command.args(["-namespace", &args.namespace, "-id", &args.id, "-address", &args.address]);
    command.arg("-publish-binary").arg(&args.publish_binary).arg("-socket").arg(path);
    if args.debug {
        command.arg("-debug");
    }
    let (name, value) = crate::task::SMALL_HEAP;
    command.env("TTRPC_ADDRESS", ttrpc_address).env(name, value);
    // A process group of its own: whoever ends containerd's group does not end us.
    command.process_group(0).stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().context("start the shim")?;
    if !options.shim_cgroup.is_empty() {
        join_cgroup(child.id(), &options.shim_cgroup).context("shim_cgroup")?;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").context("read the own OOM score")?;
    if let Ok(score) = own.trim().parse::<i32>() {
        // The kernel should take containers first, then their shim, then containerd.
        let file = format!("/proc/{}/oom_score_adj", child.id());
        if let Err(e) = std::fs::write(&file, (score + 1).min(1000).to_string()) {
            log::debug!("write {file}: {e}");
        }
    }
    Ok(())
}

/// Put a process into a cgroup of every hierarchy.
fn join_cgroup(pid: u32, path: &str) -> Result<()> {
    let host = runtime::cgroup::host::Hierarchies::detect()?;
    let mounts = host.v1.iter().map(|h| &h.mount).chain(host.v2.iter().map(|v2| &v2.mount));
    for mount in mounts {
        let dir = runtime::cgroup::host::below(mount, path);
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let file = dir.join("cgroup.procs");
        let written = sys::cgroupfs::write(&file, pid.to_string().as_bytes());
        written.with_context(|| format!("write {pid} to {}", file.display()))?;
    }
    Ok(())
}

fn serve(args: &Args, environment: &Environment) -> Result<()> {
    let input = std::io::stdin();
    let is_socket = rustix::net::sockopt::socket_acceptconn(&input).unwrap_or(false);
    if !is_socket {
        return Err(bad("say start or delete (containerd does), or -help".to_owned()));
    }
    let listener = UnixListener::from(input.as_fd().try_clone_to_owned().context("copy the socket")?);
    let null = std::fs::File::open("/dev/null").context("open /dev/null")?;
    sys::path::replace_stdio(null.as_fd(), 0).context("close standard input")?;
    open_log(args.debug)?;
    sys::process::set_subreaper().context("become a subreaper")?;
    let host = Host { on: Loop::new().context("epoll")?, children: Children::default() };
    let to = Destination {
        namespace: args.namespace.clone(),
        ttrpc: environment.ttrpc_address.clone().unwrap_or_default().to_string_lossy().into_owned(),
        binary: args.publish_binary.clone(),
        address: args.address.clone(),
    };
    let events = Events::new(&host, to);
    let service =
        Service::new(host.clone(), events.clone(), args.namespace.clone(), environment.path.clone());
    let done = service.done.clone();
    exits::attend(&host.on, &host.children, Signals::block().context("receive signals")?, {
        let done = done.clone();
        move |signal| match signal {
            15 | 2 => done.set(()),
            other => log::debug!("signal {other} is of no interest"),
        }
    });
    listener.set_nonblocking(true).context("accept without waiting")?;
    host.on.spawn(accept(host.clone(), listener, service));
    host.on
        .run(async {
            done.wait().await;
            // The answer to Shutdown, and what is still to be told.
            host.on.within(Duration::from_secs(3), events.sent()).await;
            host.on.sleep(Duration::ZERO).await;
        })
        .context("wait for events")?;
    crate::task::remove(&args.socket)
}

async fn accept(host: Host, listener: UnixListener, service: Rc<Service>) {
    let handler = service.handler();
    let connections = Rc::new(Cell::new(0u32));
    loop {
        // A shim that containerd never came to, or left with nothing to do, is of no use to anybody.
        let idle = connections.get() == 0 && service.is_idle();
        let patience = Duration::from_secs(if idle { 60 } else { 3600 });
        match host.on.within(patience, host.on.readable(listener.as_fd())).await {
            None if idle && connections.get() == 0 && service.is_idle() => {
                log::info!("nobody has asked for anything: this shim ends");
                service.done.set(());
                return;
            }
            None => continue,
            Some(Err(e)) => {
                log::warn!("wait for connections: {e}");
                return;
            }
            Some(Ok(())) => {}
        }
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(e) = stream.set_nonblocking(true) {
                    log::warn!("a connection: {e}");
                    continue;
                }
                connections.set(connections.get() + 1);
                let ended = connections.clone();
                ttrpc::serve(&host.on, stream.into(), handler.clone(), move || ended.set(ended.get() - 1));
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => {
                log::warn!("accept a connection: {e}");
                host.on.sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The bundle's fifo `log`, which containerd reads. Opened for both, so that neither waits for it nor dies of its end.
fn open_log(debug: bool) -> Result<()> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = std::fs::OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open("log");
    match file {
        Ok(file) => report::log_to(file, report::Format::Text, debug),
        Err(_) => Ok(()),
    }
}

/// What a shim that died has left: its container is killed and put away.
fn delete(args: &Args, environment: &Environment) -> Result<()> {
    if args.id.is_empty() || args.namespace.is_empty() {
        return Err(bad("delete: -id and -namespace must be given".to_owned()));
    }
    let bundle = match args.bundle.as_os_str() {
        empty if empty.is_empty() => std::env::current_dir().context("find the bundle")?,
        path => PathBuf::from(path),
    };
    let client = Options::read(&bundle).client(&args.namespace, &environment.path);
    let pid = std::fs::read_to_string(bundle.join("init.pid")).ok().and_then(|text| text.trim().parse().ok());
    // The usual case: containerd asks once more for what was deleted in order.
    let state = client.root.as_ref().map(|root| root.join(&args.id));
    let deleted = match state {
        Some(state) if !state.exists() => Ok(()),
        _ => crate::task::delete_now(&client, &bundle.join("log.json"), &args.id),
    };
    let unmounted = rootfs::unmount(&bundle.join("rootfs"));
    remove_socket(&bundle)?;
    deleted?;
    unmounted?;
    let response =
        DeleteResponse { pid: pid.unwrap_or(0), exit_status: 137, exited_at: Some(SystemTime::now().into()) };
    print(response.message().as_bytes())
}

/// The socket of a shim that was killed. Others of its pod would be there still.
fn remove_socket(bundle: &Path) -> Result<()> {
    let Ok(address) = std::fs::read_to_string(bundle.join("address")) else { return Ok(()) };
    let path = Path::new(address.trim().trim_start_matches("unix://"));
    match UnixStream::connect(path) {
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => crate::task::remove(path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Result<Args> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn environment(max_version: Option<&str>) -> Environment {
        Environment {
            ttrpc_address: Some("/t.sock".into()),
            max_version: max_version.map(OsString::from),
            path: OsString::new(),
        }
    }

    #[test]
    fn command_lines() {
        let parsed =
            args("-namespace k8s.io -id=web --address /c.sock -publish-binary /c -debug start").unwrap();
        let wanted = Args {
            namespace: "k8s.io".to_owned(),
            id: "web".to_owned(),
            address: "/c.sock".to_owned(),
            publish_binary: "/c".into(),
            debug: true,
            word: Word::Start,
            ..Args::default()
        };
        assert_eq!(parsed, wanted);
        assert_eq!(args("-v").unwrap().word, Word::Version);
        for (line, said) in [
            ("-x", "-x: unknown option"),
            ("stop", "unknown command \"stop\""),
            ("-id", "-id: it needs a value"),
        ] {
            assert!(format!("{:#}", args(line).unwrap_err()).contains(said), "{line}");
        }
    }

    #[test]
    fn every_form_of_the_exchange() {
        let flags = || args("-namespace n -id web -address /c.sock start").unwrap();
        // containerd up to 1.7: nothing, or options; it reads an address.
        let t = told(flags(), b"", &environment(None)).unwrap();
        assert_eq!((t.answer, t.ttrpc_address.to_str(), t.options), (Answer::Address, Some("/t.sock"), None));
        let any = Any { type_url: "containerd.runc.v1.Options".to_owned(), value: vec![0x32, 1, b'x'] };
        let t = told(flags(), any.message().as_bytes(), &environment(Some("2"))).unwrap();
        assert_eq!((t.answer, t.options), (Answer::Address, Some(any.clone())));
        // 2.0 to 2.2.
        assert_eq!(
            told(flags(), any.message().as_bytes(), &environment(Some("3"))).unwrap().answer,
            Answer::Json
        );
        // 2.3: all on standard input.
        let params = BootstrapParams {
            instance_id: "web".to_owned(),
            namespace: "n".to_owned(),
            log_level: -4,
            ttrpc_address: "/p.sock".to_owned(),
            grpc_address: "/g.sock".to_owned(),
            socket_dir: "/s".to_owned(),
            extensions: vec![super::super::message::Extension { value: Some(any.clone()) }],
            ..BootstrapParams::default()
        };
        for line in ["start", "-id web -namespace n start"] {
            let t = told(args(line).unwrap(), params.message().as_bytes(), &environment(None)).unwrap();
            assert_eq!(
                (t.answer, t.sockets.to_str(), t.ttrpc_address.to_str()),
                (Answer::Json, Some("/s"), Some("/p.sock"))
            );
            assert_eq!((t.args.id.as_str(), t.args.debug, t.options), ("web", true, Some(any.clone())));
        }
        let json = br#"{"instanceId":"web","namespace":"n","logLevel":"LOG_LEVEL_DEBUG","containerdTtrpcAddress":"/p.sock"}"#;
        let t = told(args("start").unwrap(), json, &environment(None)).unwrap();
        assert_eq!((t.answer, t.args.id.as_str(), t.args.debug), (Answer::Json, "web", true));
        // A name must not lead out of the folder of sockets, nor be missing.
        assert!(told(args("start").unwrap(), b"", &environment(None)).is_err());
        assert!(told(args("-id ../x -namespace n start").unwrap(), b"", &environment(None)).is_err());
    }
}
