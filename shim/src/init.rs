//! Who is the first process of a container, where the command itself is not made for it? It starts the command, passes on the signals
//! that it gets, reaps whatever the kernel gives it, and ends as the command does. Its command line is tini's, which is Docker's
//! `docker-init`; podman's `catatonit` is called in the same way.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use sys::signals::Signals;

/// Bad usage, as tini has it.
const USAGE: i32 = 1;
/// As shells have them: the command cannot be executed; there is none.
const CANNOT_EXECUTE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// What `-h` shows.
pub const HELP: &str = "\
The first process of a container: starts PROGRAM, passes signals on to it, reaps zombies, and ends as it does.

Usage: berth-init [OPTIONS] [--] PROGRAM [ARGUMENT...]

Options:
  -s           Be a subreaper, where this is not the first process of a pid namespace
  -g           Send signals to the program's process group, not to the program alone
  -p SIGNAL    Have this signal sent to oneself when the parent ends
  -e CODE      Take this exit code of the program for 0; 128 and the number, for a signal (may be given again)
  -w           Warn of each zombie that is reaped
  -v           Say more (may be given again)
  -h           Show this
  --version    Show the version

In the environment, TINI_SUBREAPER and TINI_KILL_PROCESS_GROUP stand for -s and -g, TINI_VERBOSITY=N for N times -v.

Example: berth-init -g -- sh -c 'worker & exec server'
";

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    subreaper: bool,
    group: bool,
    death: Option<i32>,
    warn: bool,
    verbose: u32,
    /// Exit codes that stand for 0.
    fine: Vec<i32>,
    command: Vec<OsString>,
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Run(Options),
    Help,
    Version,
}

/// The command line, as getopt(3) reads it: letters stand together, a value stands with its letter or behind it.
fn parse(
    args: impl Iterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Asked> {
    let mut options = Options {
        subreaper: environment("TINI_SUBREAPER").is_some(),
        group: environment("TINI_KILL_PROCESS_GROUP").is_some(),
        ..Options::default()
    };
    if let Some(text) = environment("TINI_VERBOSITY") {
        let number = text.to_str().and_then(|t| t.parse().ok());
        options.verbose = number.with_context(|| format!("TINI_VERBOSITY={text:?}: expected a number"))?;
    }
    let mut args = args.peekable();
    while let Some(arg) = args.next_if(|a| a.as_bytes().starts_with(b"-") && a.len() > 1) {
        match arg.as_bytes() {
            b"--" => break,
            b"--help" => return Ok(Asked::Help),
            b"--version" => return Ok(Asked::Version),
            [b'-', b'-', ..] => bail!("{arg:?}: unknown option"),
            [_, letters @ ..] => {
                let mut letters = letters.iter().enumerate();
                while let Some((n, letter)) = letters.next() {
                    match letter {
                        b's' => options.subreaper = true,
                        b'g' => options.group = true,
                        b'w' => options.warn = true,
                        b'v' => options.verbose += 1,
                        b'h' => return Ok(Asked::Help),
                        b'p' | b'e' => {
                            let rest = &arg.as_bytes()[n + 2..];
                            let value = match rest {
                                [] => args.next(),
                                rest => Some(OsStr::from_bytes(rest).to_owned()),
                            };
                            let name = char::from(*letter);
                            let value = value.with_context(|| format!("-{name}: it needs a value"))?;
                            let text = value.to_string_lossy();
                            if *letter == b'p' {
                                let signal = sys::signals::parse(&text).filter(|s| *s != 0);
                                options.death =
                                    Some(signal.with_context(|| format!("-p {text}: unknown signal"))?);
                            } else {
                                let code = text.parse::<u8>();
                                let code = code.with_context(|| format!("-e {text}: expected 0 to 255"))?;
                                options.fine.push(code.into());
                            }
                            letters = [].iter().enumerate();
                        }
                        other => bail!("-{}: unknown option", char::from(*other)),
                    }
                }
            }
            [] => break,
        }
    }
    options.command = args.collect();
    if options.command.is_empty() {
        bail!("there is no program to start; berth-init -h says more");
    }
    Ok(Asked::Run(options))
}

/// Do what the arguments say; the exit code.
pub fn main(
    program: &OsStr,
    args: impl Iterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> i32 {
    let name = program.as_bytes().rsplit(|b| *b == b'/').next().unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    let say = |text: &str| {
        // Whoever closed it does not want to know.
        writeln!(std::io::stderr(), "{name}: {text}").unwrap_or_default();
    };
    let done = match parse(args, environment) {
        Ok(Asked::Help) => std::io::stdout().write_all(HELP.as_bytes()).map(|()| 0).map_err(Into::into),
        Ok(Asked::Version) => writeln!(std::io::stdout(), "berth-init {}", env!("CARGO_PKG_VERSION"))
            .map(|()| 0)
            .map_err(Into::into),
        Ok(Asked::Run(options)) => run(&options, &say),
        Err(e) => {
            say(&format!("{e:#}"));
            return USAGE;
        }
    };
    done.unwrap_or_else(|e| {
        say(&format!("{e:#}"));
        USAGE
    })
}

fn run(options: &Options, say: &dyn Fn(&str)) -> Result<i32> {
    if let Some(signal) = options.death {
        sys::process::set_parent_death_signal(signal).context("be told of the parent's end")?;
    }
    if options.subreaper {
        sys::process::set_subreaper().context("become a subreaper")?;
    } else if sys::process::own_pid() != 1 && options.verbose > 0 {
        say(
            "this is not the first process of a pid namespace, nor a subreaper (-s): others reap its zombies",
        );
    }
    // Before there is anybody who could send one that must not be lost.
    let signals = Signals::block().context("receive signals")?;
    let Some(child) = sys::process::fork().context("start a process")? else {
        sys::process::exit_now(become_command(&options.command, say))
    };
    loop {
        while let Some(signal) = signals.next().context("receive signals")? {
            if signal == signals.child() {
                continue;
            }
            if options.verbose > 1 {
                say(&format!("signal {signal} goes on to {child}"));
            }
            let to = if options.group { -child } else { child };
            // It may have ended just now.
            if let Err(e) = sys::process::signal(to, signal)
                && options.verbose > 0
            {
                say(&format!("signal {signal} to {child}: {e}"));
            }
        }
        sys::process::reap_each_but(child, |pid| {
            if options.warn {
                say(&format!("reaped zombie process {pid}"));
            }
        })
        .context("reap processes")?;
        if let Some(exit) = sys::process::try_wait(child).context("wait for the program")? {
            let code = exit.status();
            return Ok(if options.fine.contains(&code) { 0 } else { code });
        }
        // It may be for as long as the container is there.
        sys::memory::drop_program();
        let mut fds = [PollFd::new(&signals, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None)).context("wait for signals")?;
    }
}

/// In the child: a process group of its own, which has the terminal, if there is one; then the command.
fn become_command(command: &[OsString], say: &dyn Fn(&str)) -> i32 {
    let input = std::io::stdin();
    let group = || -> std::io::Result<()> {
        rustix::process::setpgid(None, None)?;
        // SIGTTOU is blocked still, so that this does not stop us. Another session's terminal stays there.
        match rustix::termios::tcsetpgrp(input.as_fd(), rustix::process::getpid()) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::NOTTY | rustix::io::Errno::BADF | rustix::io::Errno::NXIO) => Ok(()),
            Err(rustix::io::Errno::PERM) => Ok(()),
            Err(e) => Err(e.into()),
        }
    };
    if let Err(e) = group() {
        say(&format!("make a process group: {e}"));
        return CANNOT_EXECUTE;
    }
    if let Err(e) = sys::process::reset_signals() {
        say(&format!("reset signals: {e}"));
        return CANNOT_EXECUTE;
    }
    let Some((program, args)) = command.split_first() else { return USAGE };
    let e = Command::new(program).args(args).exec();
    say(&format!("{}: {e}", program.to_string_lossy()));
    if e.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_EXECUTE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str, environment: &[(&str, &str)]) -> Result<Asked> {
        let args = line.split_whitespace().map(OsString::from);
        parse(args, |name| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
    }

    #[test]
    fn command_lines_as_tini_has_them() {
        let options = |line| match parsed(line, &[]) {
            Ok(Asked::Run(options)) => options,
            other => panic!("{line}: {other:?}"),
        };
        let command = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            options("sh -c x"),
            Options { command: command(&["sh", "-c", "x"]), ..Options::default() }
        );
        assert_eq!(options("-- -x").command, command(&["-x"]));
        assert_eq!(options("- x").command, command(&["-", "x"]));
        let all = options("-sgwvv -pTERM -e 143 -e3 -- sh");
        let wanted = Options {
            subreaper: true,
            group: true,
            death: Some(15),
            warn: true,
            verbose: 2,
            fine: vec![143, 3],
            command: command(&["sh"]),
        };
        assert_eq!(all, wanted);
        assert_eq!(options("-p SIGKILL sh").death, Some(9));
        assert_eq!(parsed("-h", &[]).unwrap(), Asked::Help);
        assert_eq!(parsed("--version", &[]).unwrap(), Asked::Version);
        let tini = [("TINI_SUBREAPER", ""), ("TINI_KILL_PROCESS_GROUP", "1"), ("TINI_VERBOSITY", "3")];
        let Ok(Asked::Run(set)) = parsed("sh", &tini) else { panic!("the environment") };
        assert_eq!((set.subreaper, set.group, set.verbose), (true, true, 3));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (line, told) in [
            ("", "there is no program to start"),
            ("-g", "there is no program to start"),
            ("-x sh", "-x: unknown option"),
            ("--xyz sh", "unknown option"),
            ("-p", "-p: it needs a value"),
            ("-p NOPE sh", "unknown signal"),
            ("-e 256 sh", "expected 0 to 255"),
        ] {
            let e = parsed(line, &[]).unwrap_err();
            assert!(format!("{e:#}").contains(told), "{line}: {e:#}");
        }
        assert!(parsed("sh", &[("TINI_VERBOSITY", "x")]).is_err());
    }
}
