//! What is allowed in a Dockerfile, but hardly meant? The public reference's build checks, by their names there.

use std::collections::{BTreeMap, BTreeSet};

use super::ast::{Command, Dockerfile, Instruction, Kind, Origin};
use super::lex;
use super::source::{Problem, Source, Span};
use super::words;
use crate::ignore::Ignore;

/// Something to think about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub rule: &'static str,
    pub message: String,
    pub span: Span,
}

/// All rules, and what each is about.
pub const RULES: &[(&str, &str)] = &[
    ("ConsistentInstructionCasing", "instructions are written in one way"),
    ("CopyIgnoredFile", "what is copied is not left out by the ignore file"),
    ("DuplicateStageName", "each stage has a name of its own"),
    ("ExposeInvalidFormat", "EXPOSE names ports of the container alone"),
    ("ExposeProtoCasing", "protocols are written in lower case"),
    ("FromAsCasing", "FROM and AS are written in one way"),
    ("FromPlatformFlagConstDisallowed", "FROM --platform is no constant"),
    ("InvalidDefaultArgInFrom", "FROM has a value, whatever is given"),
    ("JSONArgsRecommended", "CMD and ENTRYPOINT are lists, so that signals reach the program"),
    ("LegacyKeyValueFormat", "ENV and LABEL are NAME=VALUE"),
    ("MaintainerDeprecated", "a label takes the place of MAINTAINER"),
    ("MultipleInstructionsDisallowed", "of what counts only once there is only one"),
    ("NoEmptyContinuation", "no blank line stands where a line goes on"),
    ("RedundantTargetPlatform", "FROM --platform=$TARGETPLATFORM is what is done anyway"),
    ("ReservedStageName", "scratch and context are no names of stages"),
    ("SecretsUsedInArgOrEnv", "secrets are mounted, and not in the image"),
    ("StageNameCasing", "names of stages are written in lower case"),
    ("UndefinedArgInFrom", "what FROM uses is declared before it"),
    ("UndefinedVar", "what is used is declared before it"),
    ("WorkdirRelativePath", "a relative WORKDIR stands on an absolute one"),
];

/// What `# check=` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    skip: BTreeSet<String>,
    all: bool,
    /// A warning is an error.
    pub error: bool,
}

impl Settings {
    /// `skip=RULE,RULE;error=true`.
    pub fn parse(text: &str) -> Result<Settings, String> {
        let mut settings = Settings::default();
        for field in text.split(';').map(str::trim).filter(|f| !f.is_empty()) {
            match field.split_once('=') {
                Some(("skip", rules)) => {
                    for rule in rules.split(',').map(str::trim) {
                        if rule == "all" {
                            settings.all = true;
                        } else if RULES.iter().any(|(name, _)| *name == rule) {
                            settings.skip.insert(rule.to_owned());
                        } else {
                            return Err(format!("skip={rule}: there is no such rule"));
                        }
                    }
                }
                Some(("error", "true")) => settings.error = true,
                Some(("error", "false")) => settings.error = false,
                // Rules that are only tried out elsewhere are not there.
                Some(("experimental", _)) => {}
                _ => return Err(format!("{field:?}: skip=RULE,… or error=true")),
            }
        }
        Ok(settings)
    }
}

/// Variables that nobody declares.
const KNOWN: &[&str] = &["PATH"];
/// Those of stages' platforms; they need an `ARG` in a stage.
const PLATFORM: &[&str] = &[
    "BUILDPLATFORM",
    "BUILDOS",
    "BUILDARCH",
    "BUILDVARIANT",
    "TARGETPLATFORM",
    "TARGETOS",
    "TARGETARCH",
    "TARGETVARIANT",
    "TARGETSTAGE",
];
const SECRETS: &[&str] =
    &["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
const NO_SECRETS: &[&str] = &["public"];

/// Check a file; `ignore` is what its context leaves out.
///
/// # Errors
/// What `# check=` says is nothing that is known.
pub fn check(
    source: &Source,
    file: &Dockerfile,
    ignore: Option<&Ignore>,
) -> Result<(Vec<Warning>, Settings), Problem> {
    let settings = match &file.directives.check {
        Some((text, span)) => {
            Settings::parse(text).map_err(|e| Problem::new(span.clone(), format!("check: {e}")))?
        }
        None => Settings::default(),
    };
    let mut lint = Lint { source, escape: file.directives.escape, found: Vec::new() };
    lint.lines()?;
    lint.stages(file);
    for stage in &file.stages {
        lint.stage(file, &stage.instructions, ignore);
    }
    let mut found = lint.found;
    found.retain(|w| !settings.all && !settings.skip.contains(w.rule));
    found.sort_by_key(|w| w.span.start);
    Ok((found, settings))
}

struct Lint<'a> {
    source: &'a Source,
    escape: char,
    found: Vec<Warning>,
}

impl Lint<'_> {
    fn warn(&mut self, rule: &'static str, span: &Span, message: impl Into<String>) {
        self.found.push(Warning { rule, message: message.into(), span: span.clone() });
    }

    /// What is a matter of lines.
    fn lines(&mut self) -> Result<(), Problem> {
        let lines = lex::read(self.source)?;
        for span in &lines.blank {
            self.warn("NoEmptyContinuation", span, "a blank line stands where the line should go on");
        }
        let mut words = Vec::new();
        for line in &lines.lines {
            let word = line.text.split_whitespace().next().unwrap_or_default();
            let at = line.text.find(word).unwrap_or(0);
            words.push((word.to_owned(), line.span(at..at + word.len())));
        }
        let lower = words.iter().filter(|(w, _)| w.chars().all(char::is_lowercase)).count();
        let upper = words.iter().filter(|(w, _)| w.chars().all(char::is_uppercase)).count();
        for (word, span) in &words {
            let (is_lower, is_upper) =
                (word.chars().all(char::is_lowercase), word.chars().all(char::is_uppercase));
            let fits = if lower > upper { is_lower } else { is_upper };
            if !fits {
                let wanted = if lower > upper { word.to_lowercase() } else { word.to_uppercase() };
                self.warn(
                    "ConsistentInstructionCasing",
                    span,
                    format!("{word} is written otherwise than the rest: {wanted}"),
                );
            }
        }
        for line in &lines.lines {
            let all: Vec<&str> = line.text.split_whitespace().collect();
            if !all.first().is_some_and(|w| w.eq_ignore_ascii_case("from")) {
                continue;
            }
            let span = line.whole();
            let place = all.iter().position(|w| w.eq_ignore_ascii_case("as"));
            if let Some((n, name)) = place.and_then(|n| Some((n, all.get(n + 1)?))) {
                let is_upper = |w: &str| w.chars().all(char::is_uppercase);
                if is_upper(all[0]) != is_upper(all[n]) {
                    self.warn(
                        "FromAsCasing",
                        &span,
                        format!("{} and {} are written differently", all[0], all[n]),
                    );
                }
                if name.to_lowercase() != **name {
                    self.warn("StageNameCasing", &span, format!("the name {name} is not in lower case"));
                }
            }
        }
        Ok(())
    }

    /// What is a matter of FROM.
    fn stages(&mut self, file: &Dockerfile) {
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        let mut globals: BTreeMap<&str, bool> = BTreeMap::new();
        for instruction in &file.globals {
            let Kind::Arg(all) = &instruction.kind else { continue };
            for (name, default) in all {
                globals.insert(&name.text, default.as_ref().is_some_and(|d| !d.text.is_empty()));
            }
        }
        for stage in &file.stages {
            if let Some(name) = &stage.name {
                if matches!(name.text.as_str(), "scratch" | "context") {
                    self.warn(
                        "ReservedStageName",
                        &name.span,
                        format!("{} is a word of the reference's own", name.text),
                    );
                }
                let count = names.entry(&name.text).or_default();
                *count += 1;
                if *count > 1 {
                    self.warn(
                        "DuplicateStageName",
                        &name.span,
                        format!("another stage is called {}", name.text),
                    );
                }
            }
            for word in [Some(&stage.base), stage.platform.as_ref()].into_iter().flatten() {
                for name in self.variables(&word.text) {
                    match globals.get(&name[..]) {
                        None if !PLATFORM.contains(&&name[..]) => {
                            self.warn(
                                "UndefinedArgInFrom",
                                &word.span,
                                format!("no ARG before the first FROM declares {name}"),
                            );
                        }
                        _ => {}
                    }
                }
            }
            let base = words::expand(&stage.base.text, self.escape, &|name| {
                globals
                    .get(name)
                    .filter(|has| **has)
                    .map(|_| "x".to_owned())
                    .or_else(|| PLATFORM.contains(&name).then(|| "x".to_owned()))
            });
            let reference = base.as_deref().unwrap_or_default();
            if stage.base.text.contains('$')
                && (reference.is_empty()
                    || reference.ends_with(':')
                    || reference.ends_with('@')
                    || reference.starts_with(':'))
            {
                self.warn(
                    "InvalidDefaultArgInFrom",
                    &stage.base.span,
                    format!("{} is no image if nothing is given", stage.base.text),
                );
            }
            if let Some(platform) = &stage.platform {
                if matches!(platform.text.as_str(), "$TARGETPLATFORM" | "${TARGETPLATFORM}") {
                    self.warn(
                        "RedundantTargetPlatform",
                        &platform.span,
                        "this is the platform without the flag, too",
                    );
                } else if !platform.text.contains('$') {
                    self.warn(
                        "FromPlatformFlagConstDisallowed",
                        &platform.span,
                        format!("{} is for one platform, whatever --platform says", platform.text),
                    );
                }
            }
        }
    }

    /// What is a matter of a stage's instructions.
    fn stage(&mut self, file: &Dockerfile, instructions: &[Instruction], ignore: Option<&Ignore>) {
        let mut known: BTreeSet<String> = KNOWN.iter().map(|k| (*k).to_owned()).collect();
        let mut last: BTreeMap<&str, Span> = BTreeMap::new();
        let mut absolute = false;
        let text = |span: &Span| self.source.text.get(span.clone()).unwrap_or_default().to_owned();
        let inherits = file
            .stages
            .iter()
            .any(|s| std::ptr::eq(&s.instructions[..], instructions) && s.base.text != "scratch");
        let mut used: Vec<(String, Span)> = Vec::new();
        for instruction in instructions {
            let span = &instruction.span;
            let whole = text(span);
            let mut once = |name: &'static str, lint: &mut Self| {
                if let Some(before) = last.insert(name, span.clone()) {
                    lint.warn(
                        "MultipleInstructionsDisallowed",
                        &before,
                        format!("a later {name} takes the place of this one"),
                    );
                }
            };
            match &instruction.kind {
                Kind::Cmd(command) => {
                    once("CMD", self);
                    if matches!(command, Command::Shell(w) if !w.text.is_empty()) {
                        self.warn(
                            "JSONArgsRecommended",
                            span,
                            "a list, as in CMD [\"a\", \"b\"], lets signals reach the program",
                        );
                    }
                }
                Kind::Entrypoint(command) => {
                    once("ENTRYPOINT", self);
                    if matches!(command, Command::Shell(w) if !w.text.is_empty()) {
                        self.warn(
                            "JSONArgsRecommended",
                            span,
                            "a list, as in ENTRYPOINT [\"a\", \"b\"], lets signals reach the program",
                        );
                    }
                }
                Kind::Healthcheck(_) => once("HEALTHCHECK", self),
                Kind::Maintainer(_) => {
                    self.warn(
                        "MaintainerDeprecated",
                        span,
                        "LABEL org.opencontainers.image.authors=… is what is meant",
                    );
                }
                Kind::Arg(all) => {
                    for (name, _) in all {
                        self.secret("ARG", &name.text, span);
                        known.insert(name.text.clone());
                    }
                }
                Kind::Env(all) | Kind::Label(all) => {
                    let is_env = matches!(instruction.kind, Kind::Env(_));
                    for (name, value) in all {
                        used.extend(self.variables(&value.text).into_iter().map(|v| (v, value.span.clone())));
                        if is_env {
                            self.secret("ENV", &name.text, span);
                        }
                    }
                    if let [(name, value)] = &all[..] {
                        let between =
                            self.source.text.get(name.span.end..value.span.start).unwrap_or_default();
                        if !between.contains('=') && !whole.contains('=') {
                            self.warn(
                                "LegacyKeyValueFormat",
                                span,
                                format!("{}={} is how this is written today", name.text, value.text),
                            );
                        }
                    }
                    if is_env {
                        known.extend(all.iter().map(|(name, _)| name.text.clone()));
                    }
                }
                Kind::Workdir(word) => {
                    let is_absolute = word.text.starts_with('/') || word.text.starts_with('$');
                    if !is_absolute && !absolute {
                        self.warn(
                            "WorkdirRelativePath",
                            &word.span,
                            format!("{} depends on what the base has", word.text),
                        );
                    }
                    absolute |= is_absolute;
                    used.extend(self.variables(&word.text).into_iter().map(|v| (v, word.span.clone())));
                }
                Kind::Expose(all) => {
                    for word in all {
                        if let Some((_, protocol)) = word.text.split_once('/')
                            && protocol.to_lowercase() != protocol
                            && !protocol.contains('$')
                        {
                            self.warn(
                                "ExposeProtoCasing",
                                &word.span,
                                format!("{protocol} is not in lower case"),
                            );
                        }
                        if word.text.contains(':') && !word.text.contains('$') {
                            self.warn(
                                "ExposeInvalidFormat",
                                &word.span,
                                format!("{} names more than the container's port", word.text),
                            );
                        }
                    }
                }
                Kind::Copy(copy) => {
                    if copy.stage.is_none() {
                        self.ignored(&copy.files.from, ignore);
                    }
                    used.extend(
                        self.variables(&copy.files.to.text)
                            .into_iter()
                            .map(|v| (v, copy.files.to.span.clone())),
                    );
                }
                Kind::Add(add) => self.ignored(&add.files.from, ignore),
                _ => {}
            }
            for (name, span) in used.drain(..) {
                // A base may have it, unless there is none.
                if !known.contains(&name) && (!inherits || PLATFORM.contains(&&name[..])) {
                    self.warn("UndefinedVar", &span, format!("nothing before this declares {name}"));
                }
            }
        }
    }

    fn ignored(&mut self, from: &[Origin], ignore: Option<&Ignore>) {
        for origin in from {
            let (Origin::Path(word), Some(ignore)) = (origin, ignore) else { continue };
            let path = word.text.trim_start_matches("./").trim_matches('/');
            if !path.is_empty()
                && !path.contains(['*', '?', '[', '$'])
                && ignore.leaves_out(path)
                && !ignore.keeps_below(path)
            {
                self.warn("CopyIgnoredFile", &word.span, format!("the ignore file leaves {path} out"));
            }
        }
    }

    fn secret(&mut self, instruction: &str, name: &str, span: &Span) {
        let parts: Vec<String> = name.split(['_', '-']).map(str::to_lowercase).collect();
        let has = |words: &[&str]| parts.iter().any(|p| words.contains(&p.as_str()));
        if has(SECRETS) && !has(NO_SECRETS) {
            self.warn(
                "SecretsUsedInArgOrEnv",
                span,
                format!("{instruction} {name} is seen by whoever has the image: RUN --mount=type=secret"),
            );
        }
    }

    /// Variables that a word uses and that have no default there.
    fn variables(&self, text: &str) -> Vec<String> {
        let found = std::cell::RefCell::new(Vec::new());
        // What is wrong with a word is said elsewhere.
        let _unused = words::expand(text, self.escape, &|name| {
            let plain = text.contains(&format!("${name}")) || text.contains(&format!("${{{name}}}"));
            if plain {
                found.borrow_mut().push(name.to_owned());
            }
            None
        });
        let mut found = found.into_inner();
        found.dedup();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::parse::parse;

    fn rules(text: &str) -> Vec<&'static str> {
        let source = Source::new("Dockerfile", text);
        let file = parse(&source).unwrap_or_else(|p| panic!("{text}: {p:?}"));
        let ignore = Ignore::parse("secret\n*.md\n").unwrap();
        let (found, _) = check(&source, &file, Some(&ignore)).unwrap();
        found.into_iter().map(|w| w.rule).collect()
    }

    #[test]
    fn each_rule_finds_what_it_is_about_and_nothing_else() {
        for (rule, bad, good) in [
            ("ConsistentInstructionCasing", "FROM a\nrun x\nRUN y", "from a\nrun x"),
            ("CopyIgnoredFile", "FROM a\nCOPY secret /", "FROM a\nCOPY other *.md /x/"),
            ("DuplicateStageName", "FROM a AS b\nFROM a AS b", "FROM a AS b\nFROM a AS c"),
            ("ExposeProtoCasing", "FROM a\nEXPOSE 80/TCP", "FROM a\nEXPOSE 80/tcp"),
            ("FromAsCasing", "FROM a as b", "FROM a AS b"),
            (
                "FromPlatformFlagConstDisallowed",
                "FROM --platform=linux/arm64 a",
                "FROM --platform=$BUILDPLATFORM a",
            ),
            ("InvalidDefaultArgInFrom", "ARG V\nFROM a:$V", "ARG V=1\nFROM a:$V"),
            ("InvalidDefaultArgInFrom", "ARG V\nFROM $V", "ARG V\nFROM ${V:-x}"),
            ("JSONArgsRecommended", "FROM a\nCMD x", "FROM a\nCMD [\"x\"]"),
            ("LegacyKeyValueFormat", "FROM a\nENV A b", "FROM a\nENV A=b"),
            ("MaintainerDeprecated", "FROM a\nMAINTAINER x", "FROM a\nLABEL maintainer=x"),
            (
                "MultipleInstructionsDisallowed",
                "FROM a\nCMD [\"x\"]\nCMD [\"y\"]",
                "FROM a AS b\nCMD [\"x\"]\nFROM b\nCMD [\"y\"]",
            ),
            ("NoEmptyContinuation", "FROM a\nRUN x \\\n\n  y", "FROM a\nRUN x \\\n  y"),
            ("RedundantTargetPlatform", "FROM --platform=$TARGETPLATFORM a", "FROM a"),
            ("ReservedStageName", "FROM a AS context", "FROM a AS contexts"),
            ("SecretsUsedInArgOrEnv", "FROM a\nARG API_TOKEN", "FROM a\nARG PUBLIC_KEY"),
            ("SecretsUsedInArgOrEnv", "FROM a\nENV DB_PASSWORD=x", "FROM a\nENV TOKENIZER=x"),
            ("StageNameCasing", "FROM a AS Build", "FROM a AS build"),
            ("UndefinedArgInFrom", "FROM $B", "ARG B=a\nFROM $B"),
            ("UndefinedVar", "FROM scratch\nCOPY x $D", "FROM scratch\nARG D\nCOPY x $D"),
            ("UndefinedVar", "FROM a\nENV P=$TARGETARCH", "FROM a\nARG TARGETARCH\nENV P=$TARGETARCH"),
            ("WorkdirRelativePath", "FROM a\nWORKDIR b", "FROM a\nWORKDIR /b\nWORKDIR c"),
        ] {
            assert!(rules(bad).contains(&rule), "{rule}: {bad}: {:?}", rules(bad));
            assert_eq!(rules(good), Vec::<&str>::new(), "{rule}: {good}");
        }
    }

    #[test]
    fn what_is_skipped_is_not_told() {
        assert_eq!(rules("# check=skip=JSONArgsRecommended\nFROM a\nCMD x"), Vec::<&str>::new());
        assert_eq!(rules("# check=skip=all\nFROM a as B\nCMD x"), Vec::<&str>::new());
        assert!(Settings::parse("error=true").unwrap().error);
        for text in ["skip=Nothing", "quux", "error=maybe"] {
            assert!(Settings::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rules_are_in_order_and_known_once() {
        assert!(RULES.windows(2).all(|w| w[0].0 < w[1].0));
    }
}
