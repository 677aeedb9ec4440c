//! What does an instruction do, at its place in a stage? It changes what the image says of itself, and it may be work: a command
//! that is run, files that are brought, a folder that is made. Known once the base is; nothing is done here.

use std::collections::BTreeMap;

use image::manifest::{Config, Execution};
use serde_json::{Value, json};

use super::mounts::{self, Mount};
use super::scope::{Given, Globals, Scope};
use crate::bundle::PATH;
use crate::dockerfile::ast::{self, Command, Files, Healthcheck, Instruction, Kind, Word};
use crate::dockerfile::source::{Problem, Span};
use crate::dockerfile::words;

/// An instruction in terms of what is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What the image's history says.
    pub history: String,
    pub work: Work,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Only what the image says changes.
    Config,
    Run(Box<Run>),
    Files(Box<Bring>),
    /// `WORKDIR`: made if it is not there, the user's.
    Folder {
        path: String,
        user: Option<String>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub args: Vec<String>,
    /// A file that `args` begins with, and what it holds: a heredoc with an interpreter of its own.
    pub script: Option<(String, String)>,
    pub environment: Vec<(String, String)>,
    pub user: Option<String>,
    pub cwd: String,
    pub mounts: Vec<Mount>,
    pub network: Option<String>,
    /// `--security=insecure`
    pub insecure: bool,
}

/// `COPY` and `ADD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bring {
    pub sources: Vec<Origin>,
    /// Absolute; a slash at its end says that it is a folder.
    pub to: String,
    pub chown: Option<String>,
    pub chmod: Option<String>,
    pub link: bool,
    pub exclude: Vec<String>,
    pub how: How,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    Copy { from: Option<String>, parents: bool },
    Add { checksum: Option<String>, keep_git_dir: bool, unpack: Option<bool> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Path(String),
    File { name: String, content: String },
}

/// A stage as far as it has come.
#[derive(Debug)]
pub struct State<'a> {
    given: &'a Given,
    globals: &'a Globals,
    scope: Scope,
    escape: char,
    /// What the image will say of how it is run.
    pub execution: Execution,
    pub author: Option<String>,
    /// Arguments in their order, with what they became.
    arguments: Vec<(String, String)>,
    /// Whether this stage has said what the command is.
    has_command: bool,
}

impl<'a> State<'a> {
    /// On a base, or on nothing; and the base's triggers, which come before all else.
    pub fn new(
        base: Option<&Config>,
        given: &'a Given,
        globals: &'a Globals,
        escape: char,
    ) -> (State<'a>, Vec<String>) {
        let mut execution = base.and_then(|b| b.config.clone()).unwrap_or_default();
        let triggers = execution
            .other
            .remove("OnBuild")
            .and_then(|t| serde_json::from_value(t).ok())
            .unwrap_or_default();
        let pair = |text: &String| match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (text.clone(), String::new()),
        };
        let mut environment: Vec<_> = execution.env.iter().flatten().map(pair).collect();
        if !environment.iter().any(|(name, _)| name == "PATH") {
            environment.insert(0, ("PATH".to_owned(), PATH.to_owned()));
        }
        let author = base.and_then(|b| b.other.get("author")?.as_str().map(str::to_owned));
        let scope = Scope::new(environment, escape);
        let mut state = State {
            given,
            globals,
            scope,
            escape,
            execution,
            author,
            arguments: Vec::new(),
            has_command: false,
        };
        state.update_environment();
        (state, triggers)
    }

    /// Dockerfile reference, "Scope" of ARG: a stage that begins with another has its arguments.
    pub fn inherit(&mut self, arguments: &[(String, String)]) {
        self.scope.inherit(arguments);
    }

    /// What stages that begin with this one inherit.
    pub fn inheritance(&self) -> Vec<(String, String)> {
        self.scope.arguments()
    }

    fn update_environment(&mut self) {
        let all = self.scope.image_environment().iter().map(|(name, value)| format!("{name}={value}"));
        self.execution.env = Some(all.collect());
    }

    fn shell(&self) -> Vec<String> {
        let told = self.execution.other.get("Shell").and_then(|s| serde_json::from_value(s.clone()).ok());
        told.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()])
    }

    fn cwd(&self) -> &str {
        self.execution.working_dir.as_deref().filter(|w| !w.is_empty()).unwrap_or("/")
    }

    fn user(&self) -> Option<String> {
        self.execution.user.clone().filter(|u| !u.is_empty())
    }

    fn expand(&self, word: &Word) -> Result<String, Problem> {
        self.scope.expand(word)
    }

    fn maybe(&self, word: Option<&Word>) -> Result<Option<String>, Problem> {
        word.map(|word| self.expand(word)).transpose()
    }

    /// What it does; what the image says has changed then.
    pub fn apply(&mut self, instruction: &Instruction) -> Result<Step, Problem> {
        let span = instruction.span.clone();
        let step = |history: String, work: Work| Ok(Step { history, work, span: span.clone() });
        let history = match &instruction.kind {
            Kind::Run(run) => {
                let (history, run) = self.run(run)?;
                return step(history, Work::Run(Box::new(run)));
            }
            Kind::Copy(copy) => {
                let how =
                    How::Copy { from: copy.stage.as_ref().map(|w| w.text.clone()), parents: copy.parents };
                let (history, bring) = self.bring("COPY", &copy.files, how)?;
                return step(history, Work::Files(Box::new(bring)));
            }
            Kind::Add(add) => {
                let checksum = self.maybe(add.checksum.as_ref())?;
                let how = How::Add { checksum, keep_git_dir: add.keep_git_dir, unpack: add.unpack };
                let (history, bring) = self.bring("ADD", &add.files, how)?;
                return step(history, Work::Files(Box::new(bring)));
            }
            Kind::Workdir(word) => {
                let path = self.expand(word)?;
                if path.is_empty() {
                    return Err(Problem::new(
                        word.span.clone(),
                        format!("WORKDIR {}: it is empty", word.text),
                    ));
                }
                let path = if path.starts_with('/') { path } else { join(self.cwd(), &path) };
                self.execution.working_dir = Some(path.clone());
                return step(format!("WORKDIR {path}"), Work::Folder { path, user: self.user() });
            }
            Kind::Arg(names) => {
                let mut told = Vec::new();
                for (name, default) in names {
                    let value = self.scope.argument(name, default.as_ref(), self.given, self.globals)?;
                    told.push(match &value {
                        Some(value) => format!("{}={value}", name.text),
                        None => name.text.clone(),
                    });
                    if let Some(value) = value {
                        self.arguments.retain(|(known, _)| *known != name.text);
                        self.arguments.push((name.text.clone(), value));
                    }
                }
                format!("ARG {}", told.join(" "))
            }
            Kind::Env(pairs) => {
                let became = self.scope.environment(pairs)?;
                if let Some((_, (word, _))) =
                    became.iter().zip(pairs).find(|((name, _), _)| name.is_empty() || name.contains('='))
                {
                    return Err(Problem::new(
                        word.span.clone(),
                        format!("ENV {}: this is no name", word.text),
                    ));
                }
                // What ENV says is no argument any more.
                self.arguments.retain(|(known, _)| !became.iter().any(|(name, _)| name == known));
                self.update_environment();
                format!("ENV {}", assignments(&became))
            }
            Kind::Label(pairs) => {
                let became = self.scope.pairs(pairs)?;
                self.execution.labels.get_or_insert_default().extend(became.iter().cloned());
                format!("LABEL {}", assignments(&became))
            }
            Kind::Cmd(command) => {
                let args = self.args(command);
                self.has_command = true;
                let history = format!("CMD {}", quoted(&args));
                self.execution.cmd = Some(args);
                history
            }
            Kind::Entrypoint(command) => {
                let args = self.args(command);
                let history = format!("ENTRYPOINT {}", quoted(&args));
                self.execution.entrypoint = Some(args);
                // The base's command was meant for the base's entry point.
                if !self.has_command {
                    self.execution.cmd = None;
                }
                history
            }
            Kind::Expose(words) => {
                let mut ports = Vec::new();
                for word in words {
                    for text in self.scope.expand_words(word)? {
                        let found = expose(&text)
                            .map_err(|e| Problem::new(word.span.clone(), format!("EXPOSE {text}: {e}")))?;
                        ports.extend(found);
                    }
                }
                let all = self.execution.exposed_ports.get_or_insert_default();
                all.extend(ports.iter().map(|port| (port.clone(), json!({}))));
                format!("EXPOSE [{}]", ports.join(" "))
            }
            Kind::Volume(words) => {
                let paths = words.iter().map(|word| self.expand(word)).collect::<Result<Vec<_>, _>>()?;
                let all = self.execution.volumes.get_or_insert_default();
                all.extend(paths.iter().map(|path| (path.clone(), json!({}))));
                format!("VOLUME [{}]", paths.join(" "))
            }
            Kind::User(word) => {
                let user = self.expand(word)?;
                if user.is_empty() {
                    return Err(Problem::new(word.span.clone(), format!("USER {}: it is empty", word.text)));
                }
                self.execution.user = Some(user.clone());
                format!("USER {user}")
            }
            Kind::Stopsignal(word) => {
                let signal = self.expand(word)?;
                if !is_signal(&signal) {
                    let problem =
                        Problem::new(word.span.clone(), format!("STOPSIGNAL {signal:?}: this is no signal"));
                    return Err(problem.hint("a name as SIGTERM, or a number from 1 to 64"));
                }
                self.execution.stop_signal = Some(signal.clone());
                format!("STOPSIGNAL {signal}")
            }
            Kind::Shell(words) => {
                self.execution.other.insert("Shell".to_owned(), json!(words));
                format!("SHELL [{}]", words.join(" "))
            }
            Kind::Healthcheck(check) => {
                let check = health(check);
                let history = format!("HEALTHCHECK {check}");
                self.execution.other.insert("Healthcheck".to_owned(), check);
                history
            }
            Kind::Onbuild(text, _) => {
                let all = self.execution.other.entry("OnBuild".to_owned()).or_insert_with(|| json!([]));
                if let Value::Array(all) = all {
                    all.push(json!(text));
                }
                format!("ONBUILD {text}")
            }
            Kind::Maintainer(word) => {
                let author = self.expand(word)?;
                self.author = Some(author.clone());
                format!("MAINTAINER {author}")
            }
        };
        step(history, Work::Config)
    }

    fn args(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(args) => args.clone(),
            Command::Shell(word) if word.text.is_empty() => Vec::new(),
            Command::Shell(word) => {
                let mut args = self.shell();
                args.push(word.text.clone());
                args
            }
        }
    }

    fn run(&self, run: &ast::Run) -> Result<(String, Run), Problem> {
        let mut script = None;
        let args = match (&run.command, &run.heredocs[..]) {
            (Command::Shell(word), [only]) if word.text == only.word => {
                if only.content.starts_with("#!") {
                    let path = format!("/dev/pipes/{}", only.name.replace('/', "_"));
                    script = Some((path.clone(), only.content.clone()));
                    vec![path]
                } else {
                    let mut args = self.shell();
                    args.push(only.content.clone());
                    args
                }
            }
            (Command::Shell(word), heredocs) => {
                // The shell reads them again, as they stand there.
                let bodies = heredocs.iter().map(|h| format!("\n{}{}", h.content, h.name));
                let mut args = self.shell();
                args.push(word.text.clone() + &bodies.collect::<String>());
                args
            }
            (Command::Exec(args), _) => args.clone(),
        };
        let mounts = run.mounts.iter().enumerate().map(|(n, mount)| {
            let expand = |text: &str| {
                let word = Word { text: text.to_owned(), span: mount.span.clone() };
                self.expand(&word)
            };
            mounts::read(mount, n, self.cwd(), &expand)
        });
        let mounts = mounts.collect::<Result<Vec<_>, _>>()?;
        let network = self.maybe(run.network.as_ref())?.filter(|n| n != "default");
        let security = self.maybe(run.security.as_ref())?;
        let arguments = match self.arguments.len() {
            0 => String::new(),
            n => format!("|{n} {} ", assignments(&self.arguments)),
        };
        let shown = script.as_ref().map_or_else(|| args.join(" "), |(_, content)| content.clone());
        let history = format!("RUN {arguments}{shown}");
        Ok((
            history,
            Run {
                args,
                script,
                environment: self.scope.run_environment(),
                user: self.user(),
                cwd: self.cwd().to_owned(),
                mounts,
                network,
                insecure: security.as_deref() == Some("insecure"),
            },
        ))
    }

    fn bring(&self, name: &str, files: &Files, how: How) -> Result<(String, Bring), Problem> {
        let mut history = name.to_owned();
        let mut flag = |name: &str, value: &Option<String>| {
            if let Some(value) = value {
                history += &format!(" --{name}={value}");
            }
        };
        let (chown, chmod) = (self.maybe(files.chown.as_ref())?, self.maybe(files.chmod.as_ref())?);
        if let How::Copy { from, .. } = &how {
            flag("from", from);
        }
        flag("chown", &chown);
        flag("chmod", &chmod);
        let mut sources = Vec::new();
        for source in &files.from {
            sources.push(match source {
                ast::Origin::Path(word) => Origin::Path(self.expand(word)?),
                ast::Origin::Heredoc(heredoc) if heredoc.quoted => {
                    Origin::File { name: heredoc.name.clone(), content: heredoc.content.clone() }
                }
                ast::Origin::Heredoc(heredoc) => {
                    let content =
                        words::expand_text(&heredoc.content, self.escape, &|name| self.scope.get(name));
                    let content =
                        content.map_err(|e| Problem::new(heredoc.span.clone(), format!("heredoc: {e}")))?;
                    Origin::File { name: heredoc.name.clone(), content }
                }
            });
        }
        let given = self.expand(&files.to)?;
        if given.is_empty() {
            return Err(Problem::new(files.to.span.clone(), format!("{name}: the destination is empty")));
        }
        for source in &sources {
            history.push(' ');
            match source {
                Origin::Path(path) => history.push_str(path),
                Origin::File { name, .. } => history += &format!("<<{name}"),
            }
        }
        history += &format!(" {given}");
        let folder = given.ends_with('/') || given == "." || given.ends_with("/.");
        let mut to = join(self.cwd(), &given);
        if folder && to != "/" {
            to.push('/');
        }
        let exclude = files.exclude.iter().map(|word| self.expand(word)).collect::<Result<Vec<_>, _>>()?;
        Ok((history, Bring { sources, to, chown, chmod, link: files.link, exclude, how }))
    }
}

/// A path as it is from a folder, absolute, without `.`, `..` and slashes that say nothing.
pub fn join(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let folder = if path.starts_with('/') { "" } else { folder };
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn assignments(pairs: &[(String, String)]) -> String {
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// As Go writes a list of strings.
fn quoted(words: &[String]) -> String {
    format!("[{}]", words.iter().map(|w| format!("{w:?}")).collect::<Vec<_>>().join(" "))
}

/// `80`, `443/tcp`, `8000-8002/udp`: the single ports.
fn expose(text: &str) -> Result<Vec<String>, String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err("the protocols are tcp, udp and sctp".to_owned());
    }
    // What stands before a colon was once a host's port; nobody can publish one here.
    if ports.contains(':') {
        return Err("a host's port is given when the image is run".to_owned());
    }
    let port = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is no port"));
    let (first, last) = match ports.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(ports)?, port(ports)?),
    };
    if last < first {
        return Err("the range ends before it begins".to_owned());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// signal(7): a name with or without SIG, or a number.
fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 36] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "IOT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "POLL", "PWR", "SYS", "RTMIN", "RTMAX",
    ];
    if let Ok(number) = text.parse::<u8>() {
        return (1..=64).contains(&number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |start: &str, sign: char| {
        let number = name
            .strip_prefix(start)
            .and_then(|rest| rest.strip_prefix(sign))
            .and_then(|n| n.parse::<u8>().ok());
        number.is_some_and(|n| (1..=15).contains(&n))
    };
    NAMES.contains(&name) || real_time("RTMIN", '+') || real_time("RTMAX", '-')
}

/// As Docker's image config has it; times in nanoseconds.
fn health(check: &Healthcheck) -> Value {
    let Healthcheck::Test { command, interval, timeout, start_period, start_interval, retries } = check
    else {
        return json!({"Test": ["NONE"]});
    };
    let mut test = Vec::new();
    match command {
        Command::Exec(args) => {
            test.push("CMD".to_owned());
            test.extend(args.iter().cloned());
        }
        Command::Shell(word) => test.extend(["CMD-SHELL".to_owned(), word.text.clone()]),
    }
    let mut all: BTreeMap<&str, Value> = [("Test", json!(test))].into();
    let times = [
        ("Interval", interval),
        ("Timeout", timeout),
        ("StartPeriod", start_period),
        ("StartInterval", start_interval),
    ];
    for (name, time) in times {
        if let Some(time) = time.filter(|t| *t > 0) {
            all.insert(name, json!(time));
        }
    }
    if let Some(retries) = retries.filter(|r| *r > 0) {
        all.insert("Retries", json!(retries));
    }
    json!(all)
}

#[cfg(test)]
mod tests;
