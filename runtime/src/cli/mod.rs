//! The command line: runc's verbs and flags, one file a verb. A verb's arguments are built only when it is
//! the one that was called, because building all of them takes longer than starting a container's clone.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use plain::{Known, Said, Until};
use report::{Explain, Kind};

pub mod checkpoint;
pub mod create;
pub mod delete;
pub mod events;
pub mod exec;
pub mod explain;
pub mod features;
pub mod kill;
pub mod list;
pub mod pause;
mod plain;
pub mod ps;
pub mod restore;
pub mod resume;
pub mod run;
pub mod spec;
pub mod start;
pub mod state;
pub mod update;
mod version;

/// The program's name in messages.
pub const PROGRAM: &str = "berth-runtime";

const ABOUT: &str = "\
Run containers from OCI bundles, as runc does.

A bundle is a folder with a root file system and a config.json that says what runs in it and what it may do
(the Open Container Initiative's runtime specification 1.3). Engines such as containerd, Docker and Podman write
bundles and call this program; `spec` writes a config.json to start from, and `explain` says what one means here.";

const EXAMPLE: &str = "\
Example:
  mkdir -p web/rootfs && tar -C web/rootfs -xf rootfs.tar
  berth-runtime spec --bundle web
  berth-runtime explain --bundle web
  berth-runtime run --bundle web web";

/// What stands before the verb.
#[derive(Clone, Debug)]
pub struct Globals {
    /// Where the containers' state lives.
    pub root: PathBuf,
    pub log: report::LogOptions,
    pub systemd_cgroup: bool,
    pub rootless: Rootless,
    pub criu: PathBuf,
}

/// `--rootless`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rootless {
    Yes,
    No,
    #[default]
    Auto,
}

impl Rootless {
    /// What was said; `None`: find out.
    pub fn forced(self) -> Option<bool> {
        match self {
            Rootless::Yes => Some(true),
            Rootless::No => Some(false),
            Rootless::Auto => None,
        }
    }
}

/// A verb: its name, its line in the list of verbs, how its arguments are declared, what it does.
struct Verb {
    name: &'static str,
    about: &'static str,
    augment: fn(Command) -> Command,
    run: fn(&Globals, &ArgMatches) -> Result<i32>,
    /// What to do for a plain command line; `None`: it is not one.
    plain: fn(&[&str]) -> Option<Run>,
}

type Run = Box<dyn FnOnce(&Globals) -> Result<i32>>;

impl Verb {
    fn command(&self) -> Command {
        Command::new(self.name).about(self.about).defer(self.augment)
    }
}

macro_rules! verb {
    ($name:literal, $module:ident, $about:literal) => {
        Verb {
            name: $name,
            about: $about,
            augment: |c| $module::Args::augment_args(c),
            run: |globals, matches| $module::run(globals, $module::Args::from_arg_matches(matches)?),
            plain: |_| None,
        }
    };
    (plain $name:literal, $module:ident, $about:literal) => {
        Verb {
            plain: |line| {
                let args = $module::Args::plain(line)?;
                Some(Box::new(|globals| $module::run(globals, args)))
            },
            ..verb!($name, $module, $about)
        }
    };
}

/// Every verb, in the order of the help text.
const VERBS: &[Verb] = &[
    verb!(plain "create", create, "create a container; its process waits for `start`"),
    verb!(plain "start", start, "start the process of a created container"),
    verb!(plain "run", run, "create and start a container, and wait for it"),
    verb!(plain "state", state, "print the state of a container as JSON"),
    verb!(plain "kill", kill, "send a signal to a container's process"),
    verb!(plain "delete", delete, "remove a container and what it holds"),
    verb!(plain "exec", exec, "run another process in a container"),
    verb!("pause", pause, "stop every process of a container at once"),
    verb!("resume", resume, "let a paused container's processes go on"),
    verb!("update", update, "change the limits of a container"),
    verb!("ps", ps, "show the processes of a container"),
    verb!("events", events, "print what a container uses, and when it runs out of memory"),
    verb!("list", list, "list the containers below the state root"),
    verb!("spec", spec, "write a config.json to start from"),
    verb!("features", features, "print what this runtime implements, as JSON"),
    verb!("checkpoint", checkpoint, "write a container to disk, with criu"),
    verb!("restore", restore, "wake a container from disk, with criu"),
    verb!("explain", explain, "show what a config means on this host, without running it"),
];

/// Parse, run, report; the result is the exit code.
pub fn main() -> i32 {
    let line: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some((globals, name, run)) = plainly(&line) {
        let done = globals.and_then(|globals| {
            report::init_log(&globals.log)?;
            run(&globals)
        });
        return report_end(done, Some(name));
    }
    // An error speaks of the whole command line: what else the mistaken word may have meant.
    let matches = command_for(std::env::args_os())
        .try_get_matches()
        .or_else(|_| command().try_get_matches_from(with_two_dashes(std::env::args_os().collect())));
    let matches = match matches {
        Ok(matches) => matches,
        Err(e) => {
            // Help and version are asked for; everything else is a wrong command line.
            let code = i32::from(e.use_stderr());
            return if e.print().is_ok() { code } else { 1 };
        }
    };
    report_end(dispatch(&matches), matches.subcommand_name())
}

/// The exit code; an error is printed.
fn report_end(done: Result<i32>, verb: Option<&str>) -> i32 {
    match done {
        Ok(code) => code,
        Err(e) => {
            report::print(PROGRAM, &e);
            if report::kind(&e) == Some(Kind::CannotExecute) && verb == Some("exec") { 255 } else { 1 }
        }
    }
}

/// What a plain command line asks for.
fn plainly(line: &[OsString]) -> Option<(Result<Globals>, &'static str, Run)> {
    const KNOWN: &[Known] = &[
        Known("root", None, true),
        Known("log", None, true),
        Known("log-format", None, true),
        Known("debug", None, false),
        Known("systemd-cgroup", None, false),
    ];
    let line = line.iter().map(|word| word.to_str()).collect::<Option<Vec<&str>>>()?;
    let said = Said::read(KNOWN, &line, Until::Word(1))?;
    let (name, rest) = said.words.split_first()?;
    if said.value("log-format").is_some_and(|format| !["text", "json"].contains(&format)) {
        return None;
    }
    let verb = VERBS.iter().find(|verb| verb.name == *name)?;
    let run = (verb.plain)(rest)?;
    Some((globals_from(|name| said.value(name), |name| said.has(name)), verb.name, run))
}

/// The whole command line, with the verbs' arguments deferred.
pub fn command() -> Command {
    globals().subcommands(VERBS.iter().map(Verb::command))
}

/// The same for one command line: of the verbs, those that stand in it. All, when none does or help is asked for.
fn command_for(args: impl Iterator<Item = OsString>) -> Command {
    let mut found = 0u32;
    for arg in args.skip(1) {
        let Some(arg) = arg.to_str() else { continue };
        if matches!(arg, "-h" | "--help" | "help") {
            return command();
        }
        if let Some(at) = VERBS.iter().position(|v| v.name == arg) {
            found |= 1 << at;
        }
    }
    if found == 0 {
        return command();
    }
    let chosen = VERBS.iter().enumerate().filter(|(at, _)| found & (1 << at) != 0);
    globals().subcommands(chosen.map(|(_, verb)| verb.command()))
}

/// runc takes a long option with one dash as well, and containerd writes `-no-subreaper`. What may be an argument of the
/// container's program stays as it is.
fn with_two_dashes(mut words: Vec<OsString>) -> Vec<OsString> {
    let mut all = command();
    all.build();
    let mut known = &all;
    for word in words.iter_mut().skip(1) {
        let Some(text) = word.to_str() else { continue };
        let name = text.strip_prefix('-').map(|rest| rest.split_once('=').map_or(rest, |(name, _)| name));
        match name {
            Some(name) if name.len() > 1 && known.get_arguments().any(|a| a.get_long() == Some(name)) => {
                *word = format!("-{text}").into();
            }
            None => match known.find_subcommand(text) {
                Some(verb) => known = verb,
                None if known.get_name() == "exec" => break,
                None => {}
            },
            Some(_) => {}
        }
    }
    words
}

/// What stands before the verb.
fn globals() -> Command {
    let value = |name: &'static str, metavar: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(metavar).help(help)
    };
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    Command::new(PROGRAM)
        .about("Run containers from OCI bundles, as runc does")
        .long_about(ABOUT)
        .after_help(EXAMPLE)
        .version(version::TEXT)
        .disable_version_flag(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(value("root", "DIR", "keep the containers' state in DIR"))
        .arg(value("log", "FILE", "append log lines to FILE"))
        .arg(value("log-format", "FORMAT", "text or json").value_parser(["text", "json"]))
        .arg(flag("debug", "log every step"))
        .arg(flag("systemd-cgroup", "make cgroups through systemd; cgroupsPath is slice:prefix:name"))
        .arg(value("cgroup-manager", "NAME", "cgroupfs or systemd").value_parser(["cgroupfs", "systemd"]))
        .arg(
            value("rootless", "WHEN", "ignore cgroup permission errors: true, false or auto")
                .value_parser(["true", "false", "auto"]),
        )
        .arg(value("criu", "PATH", "the criu program for checkpoint and restore"))
        .arg(
            Arg::new("version")
                .short('v')
                .long("version")
                .action(ArgAction::Version)
                .help("print the version"),
        )
}

fn globals_from<'a>(text: impl Fn(&str) -> Option<&'a str>, flag: impl Fn(&str) -> bool) -> Result<Globals> {
    Ok(Globals {
        root: match text("root") {
            Some(dir) => std::path::absolute(dir).context("--root")?,
            None => default_root(),
        },
        log: report::LogOptions {
            path: text("log").map(PathBuf::from),
            format: if text("log-format") == Some("json") {
                report::Format::Json
            } else {
                report::Format::Text
            },
            debug: flag("debug"),
        },
        systemd_cgroup: flag("systemd-cgroup") || text("cgroup-manager") == Some("systemd"),
        rootless: match text("rootless") {
            Some("true") => Rootless::Yes,
            Some("false") => Rootless::No,
            _ => Rootless::Auto,
        },
        criu: PathBuf::from(text("criu").unwrap_or("criu")),
    })
}

fn dispatch(matches: &ArgMatches) -> Result<i32> {
    let globals = globals_from(
        |name| matches.get_one::<String>(name).map(String::as_str),
        |name| matches.get_flag(name),
    )?;
    report::init_log(&globals.log)?;
    let Some((name, matches)) = matches.subcommand() else {
        return Err(report::error(Kind::BadInput, "no command given"))
            .hint(|| format!("see {PROGRAM} --help"));
    };
    let Some(verb) = VERBS.iter().find(|v| v.name == name) else {
        return Err(report::error(Kind::BadInput, format!("unknown command {name}")));
    };
    (verb.run)(&globals, matches)
}

/// `/run/berth/runtime` for root, below `$XDG_RUNTIME_DIR` for everybody else: also for who is root in a user namespace of
/// their own alone, as podman is for an ordinary user (runc's rule: unless USER is root).
fn default_root() -> PathBuf {
    let of_user = || std::env::var_os("USER").is_none_or(|name| name != "root") && in_user_namespace();
    if (sys::process::euid() != 0 || of_user())
        && let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| Path::new(d).is_absolute())
    {
        return Path::new(&dir).join("berth/runtime");
    }
    PathBuf::from("/run/berth/runtime")
}

/// Whether ids are mapped otherwise than one to one (user_namespaces(7)).
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().ne(["0", "0", "4294967295"])
}

/// Write `value` as JSON to standard output.
pub fn print_json(value: &impl serde::Serialize, indent: &str) -> Result<()> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
        .context("encode as JSON")?;
    bytes.push(b'\n');
    print(&String::from_utf8_lossy(&bytes))
}

/// Write what the user asked for to standard output.
pub fn print(text: &str) -> Result<()> {
    use std::io::Write;
    std::io::stdout().write_all(text.as_bytes()).context("write to standard output")
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::{VERBS, command_for, create, delete, exec, kill, run, start, state, with_two_dashes};

    /// What a plain command line means is what clap takes it for.
    #[test]
    fn plain_command_lines_are_read_as_clap_does() {
        macro_rules! same {
            ($module:ident, $($line:literal)+) => {$({
                let line: Vec<&str> = $line.split(' ').collect();
                let plain = $module::Args::plain(&line[1..]).unwrap_or_else(|| panic!("not plain: {}", $line));
                let words = ["berth-runtime"].iter().chain(&line).map(std::ffi::OsString::from);
                let matches = command_for(words.clone()).try_get_matches_from(words).expect($line);
                let (_, matches) = matches.subcommand().expect($line);
                let expected = $module::Args::from_arg_matches(matches).expect($line);
                assert_eq!(format!("{plain:?}"), format!("{expected:?}"), "{}", $line);
            })+};
        }
        same!(state, "state web" "state help" "state a=b");
        same!(start, "start web");
        same!(kill, "kill web" "kill web KILL" "kill --all web 9" "kill web -a" "kill web SIGRTMIN+3 --all");
        same!(delete, "delete web" "delete --force web" "delete web -f");
        same!(create, "create web" "create -b d web" "create --bundle /d --pid-file=/p --console-socket s web"
            "create web --no-pivot --no-new-keyring");
        same!(run, "run web" "run -b d --pid-file p web");
        same!(exec, "exec web true" "exec web ls -la --tty -d" "exec -t -u 0:0 web --cwd / sh -c true"
            "exec --process p.json --detach --pid-file p web" "exec -d web sleep 1 --x=y");
        // And no verb but these is taken for one.
        let with = |plain: &str| {
            VERBS.iter().filter(|v| (v.plain)(&[plain]).is_some()).map(|v| v.name).collect::<Vec<_>>()
        };
        assert_eq!(with("web"), ["create", "start", "run", "state", "kill", "delete", "exec"]);
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        for (given, expected) in [
            (
                "x restore --pid-file p -no-subreaper -bundle b c",
                "x restore --pid-file p --no-subreaper --bundle b c",
            ),
            ("x -root r -log=l state c", "x --root r --log=l state c"),
            ("x exec -cap CAP_CHOWN c ls -cap", "x exec --cap CAP_CHOWN c ls -cap"),
            ("x exec -it c ls", "x exec -it c ls"),
            ("x run -nothing c", "x run -nothing c"),
        ] {
            let words = given.split(' ').map(Into::into).collect();
            let found: Vec<_> =
                with_two_dashes(words).into_iter().map(|w| w.into_string().expect("text")).collect();
            assert_eq!(found.join(" "), expected);
        }
    }
}
