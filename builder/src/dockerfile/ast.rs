//! What does a Dockerfile say? Its words are as they stand there: variables get their values when the plan is made.

use super::lex::{Directives, Heredoc};
use super::source::Span;

/// A whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    pub directives: Directives,
    /// `ARG` before the first `FROM`.
    pub globals: Vec<Instruction>,
    pub stages: Vec<Stage>,
}

/// From a `FROM` to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    pub base: Word,
    pub platform: Option<Word>,
    /// In lower case, as it is compared.
    pub name: Option<Word>,
    pub span: Span,
    pub instructions: Vec<Instruction>,
}

/// Text and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub kind: Kind,
    /// All of it but the heredocs.
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Add(Add),
    Arg(Vec<(Word, Option<Word>)>),
    Cmd(Command),
    Copy(Copy),
    Entrypoint(Command),
    Env(Vec<(Word, Word)>),
    Expose(Vec<Word>),
    Healthcheck(Healthcheck),
    Label(Vec<(Word, Word)>),
    Maintainer(Word),
    /// The trigger as the image's config has it, and what it says.
    Onbuild(String, Box<Instruction>),
    Run(Run),
    Shell(Vec<String>),
    Stopsignal(Word),
    User(Word),
    Volume(Vec<Word>),
    Workdir(Word),
}

/// What is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `["a", "b"]`
    Exec(Vec<String>),
    /// For the shell.
    Shell(Word),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub command: Command,
    pub heredocs: Vec<Heredoc>,
    pub mounts: Vec<Mount>,
    pub network: Option<Word>,
    pub security: Option<Word>,
}

/// `--mount`: its options in their order, known by name; values may have variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub options: Vec<(String, Option<String>)>,
    pub span: Span,
}

/// Where files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Path(Word),
    /// A file of that name with this content.
    Heredoc(Heredoc),
}

/// What COPY and ADD have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    pub from: Vec<Origin>,
    pub to: Word,
    pub chown: Option<Word>,
    pub chmod: Option<Word>,
    pub link: bool,
    pub exclude: Vec<Word>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    pub files: Files,
    /// `--from`: a stage, an image or a named context.
    pub stage: Option<Word>,
    pub parents: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Add {
    pub files: Files,
    pub checksum: Option<Word>,
    pub keep_git_dir: bool,
    /// None: archives of the context are unpacked, what comes from elsewhere is not.
    pub unpack: Option<bool>,
}

/// Times in nanoseconds; None is the base image's, or the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    None,
    Test {
        command: Command,
        interval: Option<u64>,
        timeout: Option<u64>,
        start_period: Option<u64>,
        start_interval: Option<u64>,
        retries: Option<u32>,
    },
}
