//! How does a Dockerfile's text become instructions? What is wrong in it is found here, before anything is done, and shown where
//! it stands.

use std::ops::Range;

use report::nearest;

use super::ast::*;
use super::lex::{self, Line};
use super::mount;
use super::source::{Problem, Source, Span};
use super::words;

/// Bytes of a line's text.
type Part = Range<usize>;

/// An instruction's flags.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Value,
    /// `--flag`, or `--flag=false`
    Bool,
    /// More than once.
    Values,
}

use Takes::{Bool, Value, Values};

/// All instructions, with the flags that each has.
const INSTRUCTIONS: &[(&str, &[(&str, Takes)])] = &[
    (
        "ADD",
        &[
            ("chown", Value),
            ("chmod", Value),
            ("link", Bool),
            ("checksum", Value),
            ("keep-git-dir", Bool),
            ("unpack", Bool),
            ("exclude", Values),
        ],
    ),
    ("ARG", &[]),
    ("CMD", &[]),
    (
        "COPY",
        &[
            ("from", Value),
            ("chown", Value),
            ("chmod", Value),
            ("link", Bool),
            ("parents", Bool),
            ("exclude", Values),
        ],
    ),
    ("ENTRYPOINT", &[]),
    ("ENV", &[]),
    ("EXPOSE", &[]),
    ("FROM", &[("platform", Value)]),
    (
        "HEALTHCHECK",
        &[
            ("interval", Value),
            ("timeout", Value),
            ("start-period", Value),
            ("start-interval", Value),
            ("retries", Value),
        ],
    ),
    ("LABEL", &[]),
    ("MAINTAINER", &[]),
    ("ONBUILD", &[]),
    ("RUN", &[("mount", Values), ("network", Value), ("security", Value)]),
    ("SHELL", &[]),
    ("STOPSIGNAL", &[]),
    ("USER", &[]),
    ("VOLUME", &[]),
    ("WORKDIR", &[]),
];

/// Read a Dockerfile.
///
/// # Errors
/// The first thing that is wrong; [`Source::error`] shows it.
pub fn parse(source: &Source) -> Result<Dockerfile, Problem> {
    let lines = lex::read(source)?;
    let mut file = Dockerfile { directives: lines.directives, globals: Vec::new(), stages: Vec::new() };
    let escape = file.directives.escape;
    for line in &lines.lines {
        let mut parser = Parser::new(line, escape, 0);
        let (name, part) = parser.instruction()?;
        if name == "FROM" {
            file.stages.push(parser.from(name)?);
            continue;
        }
        let instruction = parser.parse(name, part.clone(), line.whole())?;
        match (file.stages.last_mut(), &instruction.kind) {
            (Some(stage), _) => stage.instructions.push(instruction),
            (None, Kind::Arg(_)) => file.globals.push(instruction),
            (None, _) => {
                let problem = Problem::new(line.span(part), format!("{name} before the first FROM"));
                return Err(problem.hint("only ARG may stand there; FROM scratch begins with nothing"));
            }
        }
    }
    if file.stages.is_empty() {
        let end = source.text.trim_end().len();
        return Err(Problem::new(end..end, "there is no FROM").hint("FROM scratch begins with nothing"));
    }
    Ok(file)
}

/// Read a trigger as ONBUILD leaves it in an image's config.
pub fn trigger(source: &Source) -> Result<Instruction, Problem> {
    let lines = lex::read(source)?;
    let [line] = &lines.lines[..] else {
        return Err(Problem::new(0..source.text.len(), "a trigger is one instruction"));
    };
    let mut parser = Parser::new(line, '\\', 0);
    parser.nested()
}

/// Goes through a logical line.
struct Parser<'a> {
    line: &'a Line,
    escape: char,
    /// What has been read.
    at: usize,
    end: usize,
}

struct Flag {
    name: &'static str,
    value: Option<Word>,
    span: Span,
}

/// The flags of an instruction, each to be taken by who knows it.
struct Flags(Vec<Flag>);

impl Flags {
    fn value(&mut self, name: &str) -> Option<Word> {
        let at = self.0.iter().position(|f| f.name == name)?;
        self.0.remove(at).value
    }

    fn values(&mut self, name: &str) -> Vec<Word> {
        let (these, others) = std::mem::take(&mut self.0).into_iter().partition(|f| f.name == name);
        self.0 = others;
        let these: Vec<Flag> = these;
        these.into_iter().filter_map(|f| f.value).collect()
    }

    fn is_set(&mut self, name: &str) -> Result<Option<bool>, Problem> {
        let Some(at) = self.0.iter().position(|f| f.name == name) else { return Ok(None) };
        let flag = self.0.remove(at);
        match flag.value.as_ref().map(|v| v.text.as_str()) {
            None | Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(Problem::new(flag.span, format!("--{name} is true or false, not {other:?}"))),
        }
    }
}

impl<'a> Parser<'a> {
    fn new(line: &'a Line, escape: char, at: usize) -> Parser<'a> {
        Parser { line, escape, at, end: line.text.trim_end().len() }
    }

    fn rest(&self) -> &'a str {
        &self.line.text[self.at..self.end]
    }

    fn skip_blanks(&mut self) {
        self.at = self.end - self.rest().trim_start().len();
    }

    /// The next characters up to a blank.
    fn bare_word(&mut self) -> Part {
        self.skip_blanks();
        let length = self.rest().find(char::is_whitespace).unwrap_or(self.rest().len());
        self.at += length;
        self.at - length..self.at
    }

    fn problem(&self, part: Part, message: impl Into<String>) -> Problem {
        Problem::new(self.line.span(part), message)
    }

    fn word(&self, part: Part) -> Word {
        Word { text: self.line.text[part.clone()].to_owned(), span: self.line.span(part) }
    }

    /// The instruction's name, in capitals.
    fn instruction(&mut self) -> Result<(&'static str, Part), Problem> {
        let part = self.bare_word();
        let found = &self.line.text[part.clone()];
        let names = || INSTRUCTIONS.iter().map(|(name, _)| *name);
        if let Some(name) = names().find(|name| found.eq_ignore_ascii_case(name)) {
            return Ok((name, part));
        }
        let problem = self.problem(part, format!("unknown instruction {found:?}"));
        Err(match nearest(found, names()) {
            Some(name) => problem.hint(format!("{name}?")),
            None => problem.hint(format!("known are {}", names().collect::<Vec<_>>().join(", "))),
        })
    }

    fn flags(&mut self, instruction: &'static str) -> Result<Flags, Problem> {
        let known =
            INSTRUCTIONS.iter().find(|(name, _)| *name == instruction).map_or(&[][..], |(_, flags)| flags);
        let mut found: Vec<Flag> = Vec::new();
        loop {
            self.skip_blanks();
            if !self.rest().starts_with("--") {
                return Ok(Flags(found));
            }
            let part = words::split(self.rest(), self.escape).first().cloned().unwrap_or_default();
            let part = self.at + part.start..self.at + part.end;
            self.at = part.end;
            let text = &self.line.text[part.start + 2..part.end];
            if text.is_empty() {
                // Two dashes end the flags.
                return Ok(Flags(found));
            }
            let (name, value) = match text.find('=') {
                Some(at) => (&text[..at], Some(part.start + 2 + at + 1..part.end)),
                None => (text, None),
            };
            let name_part = part.start..part.start + 2 + name.len();
            let Some((name, takes)) = known.iter().find(|(flag, _)| *flag == name).copied() else {
                let problem = self.problem(name_part, format!("{instruction} has no flag --{name}"));
                let all = known.iter().map(|(flag, _)| *flag);
                return Err(match nearest(name, all.clone()) {
                    Some(flag) => problem.hint(format!("--{flag}?")),
                    None if known.is_empty() => problem.hint(format!("{instruction} has no flags")),
                    None => problem.hint(format!("it has --{}", all.collect::<Vec<_>>().join(", --"))),
                });
            };
            if takes != Values && found.iter().any(|f| f.name == name) {
                return Err(self.problem(part, format!("--{name} stands here for the second time")));
            }
            let value = match value {
                Some(value) => {
                    let text = unquote(&self.line.text[value.clone()], self.escape);
                    Some(Word { text, span: self.line.span(value) })
                }
                None if takes == Bool => None,
                None => {
                    return Err(self
                        .problem(part, format!("--{name} needs a value"))
                        .hint(format!("--{name}=…")));
                }
            };
            found.push(Flag { name, value, span: self.line.span(part) });
        }
    }

    /// All that is left, which is not nothing.
    fn one(&mut self, instruction: &str, what: &str) -> Result<Word, Problem> {
        self.skip_blanks();
        if self.rest().is_empty() {
            return Err(self.problem(0..self.end, format!("{instruction} needs {what}")));
        }
        let part = self.at..self.end;
        self.at = self.end;
        Ok(self.word(part))
    }

    /// The parts between blanks.
    fn parts(&mut self) -> Vec<Part> {
        let mut found = Vec::new();
        loop {
            let part = self.bare_word();
            if part.is_empty() {
                return found;
            }
            found.push(part);
        }
    }

    /// `["a", "b"]`, if that is what is left.
    fn array(&mut self) -> Result<Option<Vec<String>>, Problem> {
        self.skip_blanks();
        if !self.rest().starts_with('[') {
            return Ok(None);
        }
        // What only looks like it is for the shell: `[ -e /x ] && …`.
        let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(self.rest()) else { return Ok(None) };
        let strings = values.into_iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
        let part = self.at..self.end;
        self.at = self.end;
        match strings {
            Some(strings) => Ok(Some(strings)),
            None => Err(self.problem(part, "an array here has strings and nothing else")),
        }
    }

    fn command(&mut self) -> Result<Command, Problem> {
        if let Some(array) = self.array()? {
            return Ok(Command::Exec(array));
        }
        let part = self.at..self.end;
        self.at = self.end;
        Ok(Command::Shell(self.word(part)))
    }

    fn parse(&mut self, name: &'static str, part: Part, span: Span) -> Result<Instruction, Problem> {
        let mut flags = self.flags(name)?;
        let kind = match name {
            "ADD" => Kind::Add(Add {
                checksum: flags.value("checksum"),
                keep_git_dir: flags.is_set("keep-git-dir")?.unwrap_or(false),
                unpack: flags.is_set("unpack")?,
                files: self.files(name, &mut flags)?,
            }),
            "ARG" => Kind::Arg(self.arguments()?),
            "CMD" => Kind::Cmd(self.command()?),
            "COPY" => Kind::Copy(Copy {
                stage: flags.value("from"),
                parents: flags.is_set("parents")?.unwrap_or(false),
                files: self.files(name, &mut flags)?,
            }),
            "ENTRYPOINT" => Kind::Entrypoint(self.command()?),
            "ENV" => Kind::Env(self.pairs(name)?),
            "EXPOSE" => match self.parts() {
                none if none.is_empty() => return Err(self.problem(0..self.end, "EXPOSE needs a port")),
                parts => Kind::Expose(parts.into_iter().map(|p| self.word(p)).collect()),
            },
            "HEALTHCHECK" => Kind::Healthcheck(self.healthcheck(&mut flags)?),
            "LABEL" => Kind::Label(self.pairs(name)?),
            "MAINTAINER" => Kind::Maintainer(self.one(name, "a name")?),
            "ONBUILD" => {
                self.skip_blanks();
                let heredocs = self.line.heredocs.iter();
                let bodies: String = heredocs.map(|h| format!("\n{}{}", h.content, h.name)).collect();
                let text = self.rest().to_owned() + &bodies;
                Kind::Onbuild(text, Box::new(self.nested()?))
            }
            "RUN" => Kind::Run(self.run(&mut flags)?),
            "SHELL" => match self.array()? {
                Some(words) if !words.is_empty() => Kind::Shell(words),
                _ => {
                    let problem = self.problem(0..self.end, "SHELL needs an array of words");
                    return Err(problem.hint(r#"SHELL ["/bin/sh", "-c"]"#));
                }
            },
            "STOPSIGNAL" => Kind::Stopsignal(self.one(name, "a signal")?),
            "USER" => Kind::User(self.one(name, "a user")?),
            "VOLUME" => Kind::Volume(self.volumes()?),
            "WORKDIR" => Kind::Workdir(self.one(name, "a path")?),
            _ => return Err(self.problem(part, format!("{name} cannot stand here"))),
        };
        Ok(Instruction { kind, span })
    }

    /// What ONBUILD may have.
    fn nested(&mut self) -> Result<Instruction, Problem> {
        self.skip_blanks();
        let start = self.at;
        if self.rest().is_empty() {
            return Err(self.problem(0..self.end, "ONBUILD needs an instruction"));
        }
        let (name, part) = self.instruction()?;
        if matches!(name, "ONBUILD" | "FROM" | "MAINTAINER") {
            return Err(self.problem(part, format!("{name} cannot be a trigger")));
        }
        self.parse(name, part, self.line.span(start..self.end))
    }

    fn from(&mut self, name: &'static str) -> Result<Stage, Problem> {
        let mut flags = self.flags(name)?;
        let parts = self.parts();
        let text = |part: &Part| &self.line.text[part.clone()];
        let (base, name) = match &parts[..] {
            [base] => (base, None),
            [base, word, name] if text(word).eq_ignore_ascii_case("AS") => (base, Some(name)),
            _ => {
                let problem = match parts.first() {
                    Some(first) => {
                        self.problem(first.start..self.end, "FROM has one image and at most a name")
                    }
                    None => self.problem(0..self.end, "FROM needs an image"),
                };
                return Err(problem.hint("FROM [--platform=OS/ARCHITECTURE] IMAGE [AS NAME]"));
            }
        };
        let name = name.map(|part| self.stage_name(part.clone())).transpose()?;
        Ok(Stage {
            base: self.word(base.clone()),
            platform: flags.value("platform"),
            name,
            span: self.line.whole(),
            instructions: Vec::new(),
        })
    }

    fn stage_name(&self, part: Part) -> Result<Word, Problem> {
        let word = self.word(part.clone());
        let text = word.text.to_lowercase();
        let fits = text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b));
        if !fits {
            let problem = self.problem(part, format!("{:?} is no name for a stage", word.text));
            return Err(problem.hint("a letter, then letters, digits, -, _ and ."));
        }
        Ok(Word { text, span: word.span })
    }

    fn run(&mut self, flags: &mut Flags) -> Result<Run, Problem> {
        let mounts = flags.values("mount").into_iter().map(mount::parse).collect::<Result<Vec<_>, _>>()?;
        let network = one_of(flags.value("network"), "--network", &["default", "host", "none"])?;
        let security = one_of(flags.value("security"), "--security", &["sandbox", "insecure"])?;
        let command = self.command()?;
        let empty = match &command {
            Command::Exec(words) => words.is_empty(),
            Command::Shell(word) => word.text.is_empty(),
        };
        if empty {
            return Err(self.problem(0..self.end, "RUN needs a command"));
        }
        Ok(Run { command, heredocs: self.line.heredocs.clone(), mounts, network, security })
    }

    fn files(&mut self, instruction: &str, flags: &mut Flags) -> Result<Files, Problem> {
        let (chown, chmod, link) = (flags.value("chown"), flags.value("chmod"), flags.is_set("link")?);
        let exclude = flags.values("exclude");
        self.skip_blanks();
        let whole = self.at..self.end;
        let mut words = match self.array()? {
            Some(texts) => {
                let span = self.line.span(whole);
                texts.into_iter().map(|text| Word { text, span: span.clone() }).collect()
            }
            None => {
                let parts = self.parts();
                parts.into_iter().map(|p| self.word(p)).collect::<Vec<_>>()
            }
        };
        let heredoc = |word: &Word| {
            self.line.heredocs.iter().find(|h| h.span == word.span && h.word == word.text).cloned()
        };
        let usage = format!("{instruction} SOURCE… DESTINATION");
        let to = match words.pop() {
            Some(to) if !words.is_empty() => to,
            Some(only) => {
                return Err(
                    Problem::new(only.span, format!("{instruction} needs a destination, too")).hint(usage)
                );
            }
            None => {
                let problem =
                    self.problem(0..self.end, format!("{instruction} needs a source and a destination"));
                return Err(problem.hint(usage));
            }
        };
        if heredoc(&to).is_some() {
            return Err(Problem::new(to.span, "a heredoc is no destination").hint(usage));
        }
        let from = words
            .into_iter()
            .map(|word| match heredoc(&word) {
                Some(heredoc) => Origin::Heredoc(heredoc),
                None => Origin::Path(word),
            })
            .collect();
        Ok(Files { from, to, chown, chmod, link: link.unwrap_or(false), exclude })
    }

    fn split(&mut self) -> Vec<Part> {
        self.skip_blanks();
        let at = self.at;
        let parts =
            words::split(self.rest(), self.escape).into_iter().map(|p| p.start + at..p.end + at).collect();
        self.at = self.end;
        parts
    }

    /// `NAME=VALUE …`, or the old `NAME VALUE`.
    fn pairs(&mut self, instruction: &str) -> Result<Vec<(Word, Word)>, Problem> {
        let parts = self.split();
        let usage = format!("{instruction} NAME=VALUE …");
        let Some(first) = parts.first() else {
            return Err(self
                .problem(0..self.end, format!("{instruction} needs a name and a value"))
                .hint(usage));
        };
        if !self.line.text[first.clone()].contains('=') {
            let Some(second) = parts.get(1) else {
                return Err(self
                    .problem(first.clone(), format!("{instruction}: a value is missing"))
                    .hint(usage));
            };
            return Ok(vec![(self.word(first.clone()), self.word(second.start..self.end))]);
        }
        parts
            .into_iter()
            .map(|part| {
                let text = &self.line.text[part.clone()];
                let Some(at) = text.find('=').map(|at| part.start + at) else {
                    let problem = self.problem(part, format!("{instruction}: {text} has no ="));
                    return Err(problem.hint("a value with blanks is quoted: NAME=\"a b\""));
                };
                if at == part.start {
                    return Err(self.problem(part, format!("{instruction}: a name is missing")));
                }
                Ok((self.word(part.start..at), self.word(at + 1..part.end)))
            })
            .collect()
    }

    fn arguments(&mut self) -> Result<Vec<(Word, Option<Word>)>, Problem> {
        let parts = self.split();
        if parts.is_empty() {
            return Err(self.problem(0..self.end, "ARG needs a name").hint("ARG NAME[=DEFAULT] …"));
        }
        parts
            .into_iter()
            .map(|part| match self.line.text[part.clone()].find('=') {
                Some(0) => Err(self.problem(part, "ARG: a name is missing")),
                Some(at) => {
                    let at = part.start + at;
                    Ok((self.word(part.start..at), Some(self.word(at + 1..part.end))))
                }
                None => Ok((self.word(part), None)),
            })
            .collect()
    }

    fn volumes(&mut self) -> Result<Vec<Word>, Problem> {
        self.skip_blanks();
        let span = self.line.span(self.at..self.end);
        let words = match self.array()? {
            Some(texts) => texts.into_iter().map(|text| Word { text, span: span.clone() }).collect(),
            None => {
                let parts = self.parts();
                parts.into_iter().map(|p| self.word(p)).collect::<Vec<_>>()
            }
        };
        if words.is_empty() || words.iter().any(|w| w.text.trim().is_empty()) {
            return Err(self.problem(0..self.end, "VOLUME needs a path"));
        }
        Ok(words)
    }

    fn healthcheck(&mut self, flags: &mut Flags) -> Result<Healthcheck, Problem> {
        let part = self.bare_word();
        let what = self.line.text[part.clone()].to_ascii_uppercase();
        match what.as_str() {
            "NONE" => {
                self.skip_blanks();
                if !self.rest().is_empty() {
                    return Err(self.problem(self.at..self.end, "HEALTHCHECK NONE has nothing behind it"));
                }
                match flags.0.first() {
                    Some(flag) => Err(Problem::new(flag.span.clone(), "HEALTHCHECK NONE has no flags")),
                    None => Ok(Healthcheck::None),
                }
            }
            "CMD" => {
                let mut time = |name: &str| flags.value(name).map(|word| duration(name, &word)).transpose();
                let (interval, timeout) = (time("interval")?, time("timeout")?);
                let (start_period, start_interval) = (time("start-period")?, time("start-interval")?);
                let retries = flags.value("retries").map(|word| {
                    let bad = || {
                        Problem::new(word.span.clone(), format!("--retries is a number, not {:?}", word.text))
                    };
                    word.text.parse::<u32>().map_err(|_| bad())
                });
                let retries = retries.transpose()?;
                let command = self.command()?;
                let empty = matches!(&command, Command::Exec(words) if words.is_empty())
                    || matches!(&command, Command::Shell(word) if word.text.is_empty());
                if empty {
                    return Err(self.problem(part, "HEALTHCHECK CMD needs a command"));
                }
                Ok(Healthcheck::Test { command, interval, timeout, start_period, start_interval, retries })
            }
            _ => {
                let part = if part.is_empty() { 0..self.end } else { part };
                let problem = self.problem(part, "HEALTHCHECK is NONE, or CMD with a command");
                Err(problem.hint("HEALTHCHECK [--interval=30s …] CMD COMMAND"))
            }
        }
    }
}

/// A flag's value without quotes; what is escaped stands for itself.
fn unquote(text: &str, escape: char) -> String {
    let mut out = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match quote {
            Some(q) if c == q => quote = None,
            Some('\'') => out.push(c),
            None if c == '"' || c == '\'' => quote = Some(c),
            _ if c == escape => out.extend(chars.next()),
            _ => out.push(c),
        }
    }
    out
}

/// A word of a few; what has a variable is looked at later.
fn one_of(word: Option<Word>, what: &str, known: &[&str]) -> Result<Option<Word>, Problem> {
    match word {
        Some(word) if !word.text.contains('$') && !known.contains(&word.text.as_str()) => {
            let problem =
                Problem::new(word.span, format!("{what} {:?}: known are {}", word.text, known.join(", ")));
            Err(match nearest(&word.text, known.iter().copied()) {
                Some(near) => problem.hint(format!("{near}?")),
                None => problem,
            })
        }
        word => Ok(word),
    }
}

/// `1m30s` and the like, in nanoseconds; 0, or a millisecond at least.
fn duration(name: &str, word: &Word) -> Result<u64, Problem> {
    let bad = |why: &str| {
        Problem::new(word.span.clone(), format!("--{name} {:?}: {why}", word.text))
            .hint("as in 30s, 1m30s or 500ms")
    };
    let nanos = nanoseconds(&word.text).ok_or_else(|| bad("it is no duration"))?;
    if (1..1_000_000).contains(&nanos) {
        return Err(bad("less than a millisecond"));
    }
    Ok(nanos)
}

/// Go's time.ParseDuration, without signs.
fn nanoseconds(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut total = 0.0_f64;
    let mut rest = text;
    while !rest.is_empty() {
        let length = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..length].parse().ok()?;
        rest = &rest[length..];
        let length = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..length] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        rest = &rest[length..];
        total += number * unit;
    }
    (!text.is_empty() && total < i64::MAX as f64).then_some(total.round() as u64)
}

#[cfg(test)]
mod tests;
