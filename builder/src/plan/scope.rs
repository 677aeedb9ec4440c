//! Which variables are there, and what are they worth? Those of `ARG` before the first `FROM`, for `FROM` alone; then in each stage
//! those of its base's environment, `ENV` and `ARG`. The last to say something has it: an `ARG` hides an `ENV` before it, for the
//! build and not in the image.

use std::collections::{BTreeMap, BTreeSet};

use image::manifest::Platform;

use crate::dockerfile::ast::{Dockerfile, Kind, Word};
use crate::dockerfile::source::Problem;
use crate::dockerfile::words;

/// What a build is given from outside.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `--build-arg`
    pub arguments: BTreeMap<String, String>,
    /// Of this machine.
    pub build: Platform,
    /// Of the image.
    pub target: Platform,
    /// `--target`
    pub stage: Option<String>,
}

/// Arguments that every `RUN` has when they are given, without an `ARG`; they are in no history and change no step.
pub const PROXIES: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Arguments that the builder itself looks at.
const OWN: [&str; 2] = ["SOURCE_DATE_EPOCH", "BUILDKIT_SYNTAX"];

impl Given {
    /// Dockerfile reference, "Automatic platform ARGs in the global scope".
    fn predefined(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for (side, platform) in [("BUILD", &self.build), ("TARGET", &self.target)] {
            all.insert(format!("{side}PLATFORM"), platform.to_string());
            all.insert(format!("{side}OS"), platform.os.clone());
            all.insert(format!("{side}ARCH"), platform.architecture.clone());
            all.insert(format!("{side}VARIANT"), platform.variant.clone().unwrap_or_default());
        }
        all.insert("TARGETSTAGE".to_owned(), self.stage.clone().unwrap_or_else(|| "default".to_owned()));
        all
    }

    /// Given arguments that the file asks nowhere for.
    pub fn unasked(&self, file: &Dockerfile) -> Vec<&str> {
        let all = file.globals.iter().chain(file.stages.iter().flat_map(|s| &s.instructions));
        let asked: BTreeSet<&str> = all
            .filter_map(|i| match &i.kind {
                Kind::Arg(names) => Some(names.iter().map(|(name, _)| name.text.as_str())),
                _ => None,
            })
            .flatten()
            .chain(PROXIES)
            .chain(OWN)
            .collect();
        self.arguments.keys().map(String::as_str).filter(|name| !asked.contains(name)).collect()
    }

    /// The proxies that were given.
    pub fn proxies(&self) -> Vec<(&str, &str)> {
        PROXIES
            .iter()
            .filter_map(|name| self.arguments.get(*name).map(|value| (*name, value.as_str())))
            .collect()
    }
}

/// What stands before the first `FROM`.
#[derive(Clone, Debug)]
pub struct Globals {
    escape: char,
    /// None: declared, and without a value.
    values: BTreeMap<String, Option<String>>,
}

impl Globals {
    pub fn read(file: &Dockerfile, given: &Given) -> Result<Globals, Problem> {
        let values = given.predefined().into_iter().map(|(name, value)| (name, Some(value))).collect();
        let mut globals = Globals { escape: file.directives.escape, values };
        for instruction in &file.globals {
            let Kind::Arg(names) = &instruction.kind else { continue };
            for (name, default) in names {
                let value = match (given.arguments.get(&name.text), default) {
                    (Some(value), _) => Some(value.clone()),
                    (None, Some(default)) => Some(globals.expand(default)?),
                    (None, None) => globals.values.get(&name.text).cloned().flatten(),
                };
                globals.values.insert(name.text.clone(), value);
            }
        }
        Ok(globals)
    }

    /// A word of a `FROM`, or of an `ARG` before it.
    pub fn expand(&self, word: &Word) -> Result<String, Problem> {
        expand(word, self.escape, &|name| self.values.get(name).cloned().flatten())
    }
}

/// The variables at a place in a stage.
#[derive(Clone, Debug)]
pub struct Scope {
    escape: char,
    /// What goes into the image, in its order.
    environment: Vec<(String, String)>,
    /// What the last to say something said.
    visible: BTreeMap<String, String>,
    /// Names of `ARG`.
    arguments: BTreeSet<String>,
}

fn set(all: &mut Vec<(String, String)>, name: &str, value: &str) {
    match all.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => value.clone_into(old),
        None => all.push((name.to_owned(), value.to_owned())),
    }
}

impl Scope {
    /// At the beginning of a stage whose base has this environment.
    pub fn new(environment: Vec<(String, String)>, escape: char) -> Scope {
        let visible = environment.iter().cloned().collect();
        Scope { escape, environment, visible, arguments: BTreeSet::new() }
    }

    /// `ARG`: what it became, for the history.
    pub fn argument(
        &mut self,
        name: &Word,
        default: Option<&Word>,
        given: &Given,
        globals: &Globals,
    ) -> Result<Option<String>, Problem> {
        let value = match (given.arguments.get(&name.text), default) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(default)) => Some(self.expand(default)?),
            (None, None) => globals.values.get(&name.text).cloned().flatten(),
        };
        self.arguments.insert(name.text.clone());
        if let Some(value) = &value {
            self.visible.insert(name.text.clone(), value.clone());
        }
        Ok(value)
    }

    /// `ENV`: what its names and values became. They see what was there before all of them.
    pub fn environment(&mut self, pairs: &[(Word, Word)]) -> Result<Vec<(String, String)>, Problem> {
        let became = self.pairs(pairs)?;
        for (name, value) in &became {
            set(&mut self.environment, name, value);
            self.visible.insert(name.clone(), value.clone());
        }
        Ok(became)
    }

    /// Names and values as `LABEL` has them, too.
    pub fn pairs(&self, pairs: &[(Word, Word)]) -> Result<Vec<(String, String)>, Problem> {
        pairs.iter().map(|(name, value)| Ok((self.expand(name)?, self.expand(value)?))).collect()
    }

    pub fn expand(&self, word: &Word) -> Result<String, Problem> {
        expand(word, self.escape, &|name| self.visible.get(name).cloned())
    }

    /// A word that may become several, as in `EXPOSE $PORTS`.
    pub fn expand_words(&self, word: &Word) -> Result<Vec<String>, Problem> {
        let found = words::expand_words(&word.text, self.escape, &|name| self.visible.get(name).cloned());
        found.map_err(|e| Problem::new(word.span.clone(), e))
    }

    /// Arguments that have a value, for stages that begin with this one.
    pub fn arguments(&self) -> Vec<(String, String)> {
        let value = |name: &String| Some((name.clone(), self.visible.get(name)?.clone()));
        self.arguments.iter().filter_map(value).collect()
    }

    /// Take over the arguments of the stage that this one begins with.
    pub fn inherit(&mut self, arguments: &[(String, String)]) {
        for (name, value) in arguments {
            self.arguments.insert(name.clone());
            self.visible.insert(name.clone(), value.clone());
        }
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<String> {
        self.visible.get(name).cloned()
    }

    /// What the image's environment is.
    pub fn image_environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// What a `RUN` sees: the environment, and arguments that have a value.
    pub fn run_environment(&self) -> Vec<(String, String)> {
        let mut all = self.environment.clone();
        for name in &self.arguments {
            if let Some(value) = self.visible.get(name) {
                set(&mut all, name, value);
            }
        }
        all
    }
}

fn expand(word: &Word, escape: char, lookup: &words::Lookup<'_>) -> Result<String, Problem> {
    words::expand(&word.text, escape, lookup).map_err(|e| Problem::new(word.span.clone(), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::parse::parse;
    use crate::dockerfile::source::Source;

    fn given(arguments: &[(&str, &str)]) -> Given {
        Given {
            arguments: arguments.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            build: "linux/amd64".parse().unwrap(),
            target: "linux/arm/v7".parse().unwrap(),
            stage: None,
        }
    }

    /// The scope at the end of the last stage, on a base with this environment.
    fn walk(text: &str, base: &[(&str, &str)], given: &Given) -> Result<Scope, Problem> {
        let file = parse(&Source::new("x", text))?;
        let globals = Globals::read(&file, given)?;
        let base = base.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let mut scope = Scope::new(base, file.directives.escape);
        for instruction in &file.stages.last().unwrap().instructions {
            match &instruction.kind {
                Kind::Arg(names) => {
                    for (name, default) in names {
                        scope.argument(name, default.as_ref(), given, &globals)?;
                    }
                }
                Kind::Env(pairs) => drop(scope.environment(pairs)?),
                _ => {}
            }
        }
        Ok(scope)
    }

    /// What docker's own builder (28.5) made of the same lines.
    #[test]
    fn arguments_and_environment_as_docker_has_them() {
        let text = "ARG G=global H\nARG I=${G}-x J=$K K=k TARGETARCH=zz\nFROM base\n\
            ENV S00=\"g=$G i=$I\"\nARG FOO=arg\nENV S01=$FOO\nARG G\nARG H=hdef\nARG I\nARG J\n\
            ENV S02=\"g=$G h=$H i=$I j=$J\"\nARG G=local\nENV S03=$G\nARG L=$M M=m\nENV S04=l=$L\n\
            ENV N=1 O=$N\nENV S05=$O\nARG P=p\nENV P=q\nENV S06=$P\nARG P=again\nENV S07=$P\nARG P\nENV S08=$P\n\
            ARG HTTP_PROXY\nENV S09=\"h=$HTTP_PROXY n=$no_proxy f=$ftp_proxy\"\n\
            ARG TARGETPLATFORM BUILDOS TARGETVARIANT TARGETARCH TARGETSTAGE\n\
            ENV S10=\"$TARGETPLATFORM $BUILDOS $TARGETVARIANT $TARGETARCH $TARGETSTAGE $BUILDPLATFORM\"\n\
            ARG BA=default\nENV S11=$BA\nARG BB\nENV S12=\"$BB\"\nARG PATH\nENV S13=$PATH\n\
            ARG Q=\"a b\" R='c'd\nENV S14=\"$Q|$R\"\nENV ${Q}x=1 \"y z\"=2\n";
        let arguments =
            [("BA", "cli"), ("BB", "bcli"), ("HTTP_PROXY", "http://p"), ("no_proxy", "np"), ("K", "kk")];
        let scope =
            walk(text, &[("PATH", "/bin"), ("FOO", "env"), ("BAR", "base")], &given(&arguments)).unwrap();
        let expected = [
            ("PATH", "/bin"),
            ("FOO", "env"),
            ("BAR", "base"),
            ("S00", "g= i="),
            ("S01", "arg"),
            ("S02", "g=global h=hdef i=global-x j="),
            ("S03", "local"),
            ("S04", "l="),
            ("N", "1"),
            ("O", ""),
            ("S05", ""),
            ("P", "q"),
            ("S06", "q"),
            ("S07", "again"),
            ("S08", "again"),
            ("S09", "h=http://p n= f="),
            ("S10", "linux/arm/v7 linux v7 zz default "),
            ("S11", "cli"),
            ("S12", "bcli"),
            ("S13", "/bin"),
            ("S14", "a b|cd"),
            ("a bx", "1"),
            ("y z", "2"),
        ];
        let found: Vec<_> = scope.image_environment().iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(found, expected);
        let run = scope.run_environment();
        let of = |name: &str| run.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!((of("FOO"), of("P"), of("M"), of("J")), (Some("arg"), Some("again"), Some("m"), Some("")));
        assert_eq!((of("PATH"), of("TARGETOS")), (Some("/bin"), None));
    }

    #[test]
    fn globals_are_for_from() {
        let text = "ARG REG=example.org VER\nARG IMG=${REG}/x:${VER:-1}\nFROM ${IMG}\nFROM --platform=$BUILDPLATFORM a$VER\n";
        let file = parse(&Source::new("x", text)).unwrap();
        for (arguments, images) in [
            (&[][..], ["example.org/x:1", "a"]),
            (&[("VER", "2"), ("REG", "r")], ["r/x:2", "a2"]),
            (&[("IMG", "y")], ["y", "a"]),
        ] {
            let globals = Globals::read(&file, &given(arguments)).unwrap();
            let found: Vec<_> = file.stages.iter().map(|s| globals.expand(&s.base).unwrap()).collect();
            assert_eq!(found, images);
            let platform = globals.expand(file.stages[1].platform.as_ref().unwrap()).unwrap();
            assert_eq!(platform, "linux/amd64");
        }
    }

    #[test]
    fn what_is_wrong_is_marked() {
        let text = "FROM a\nENV x=1 y=${z\n";
        let problem = walk(text, &[], &given(&[])).unwrap_err();
        assert_eq!((&text[problem.span], &problem.message[..]), ("${z", "${z: \"}\" is missing"));
        let text = "FROM a\nENV x=1 y=\"${z:?a z}\"\n";
        let problem = walk(text, &[], &given(&[])).unwrap_err();
        assert_eq!((&text[problem.span], &problem.message[..]), ("\"${z:?a z}\"", "z: a z"));
    }

    #[test]
    fn arguments_that_nobody_asks_for_are_known() {
        let file = parse(&Source::new("x", "ARG a\nFROM b\nARG c\n")).unwrap();
        let given =
            given(&[("a", ""), ("c", ""), ("d", ""), ("http_proxy", "p"), ("SOURCE_DATE_EPOCH", "0")]);
        assert_eq!(given.unasked(&file), ["d"]);
        assert_eq!(given.proxies(), [("http_proxy", "p")]);
    }
}
