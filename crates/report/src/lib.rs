//! How does a Berth program speak? Errors are `anyhow` chains, printed once; what a program branches on
//! rides in the chain as a [`Note`].

mod log_file;
mod nearest;

use std::fmt;

pub use log_file::{Format, LogOptions, init as init_log, log_to, rfc3339, timestamp};
pub use nearest::nearest;
use serde::{Deserialize, Serialize};

/// What an error means to the program that receives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// The input (command line, config.json) is wrong; nothing was changed.
    BadInput,
    /// No such container.
    NotFound,
    /// A container of that name is there already.
    AlreadyExists,
    /// The container is in a state that does not allow the operation.
    WrongState,
    /// This host or this kernel cannot do what was asked.
    Unsupported,
    /// `exec`: the process could not be started.
    CannotExecute,
    /// Anything else.
    Failed,
}

/// A kind and a hint that ride in an error chain as context; it prints as nothing.
#[derive(Clone, Debug)]
pub struct Note {
    pub kind: Option<Kind>,
    pub hint: Option<String>,
}

impl fmt::Display for Note {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

/// Lines to be shown below the message, such as a file's with a mark. It rides in an error chain as context and prints as nothing
/// there; who makes it sees to it that a terminal can show it.
#[derive(Clone, Debug)]
pub struct Excerpt(pub String);

impl fmt::Display for Excerpt {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

/// Attach a [`Kind`] or a hint to the error of a result.
pub trait Explain<T> {
    /// Say what the error means to programs.
    fn kind(self, kind: Kind) -> anyhow::Result<T>;
    /// Add one line that a reader can act on.
    fn hint(self, hint: impl FnOnce() -> String) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Explain<T> for Result<T, E> {
    fn kind(self, kind: Kind) -> anyhow::Result<T> {
        self.map_err(|e| noted(e.into(), Note { kind: Some(kind), hint: None }))
    }
    fn hint(self, hint: impl FnOnce() -> String) -> anyhow::Result<T> {
        self.map_err(|e| noted(e.into(), Note { kind: None, hint: Some(hint()) }))
    }
}

/// anyhow finds the outermost note only, so a new one takes over what an older one said.
fn noted(error: anyhow::Error, mut note: Note) -> anyhow::Error {
    if let Some(old) = error.downcast_ref::<Note>() {
        note.kind = note.kind.or(old.kind);
        note.hint = note.hint.or_else(|| old.hint.clone());
    }
    error.context(note)
}

/// A new error of a kind: `return Err(report::error(Kind::BadInput, "…"))`.
pub fn error(kind: Kind, message: impl Into<String>) -> anyhow::Error {
    anyhow::Error::msg(message.into()).context(Note { kind: Some(kind), hint: None })
}

/// The error of a wrong input at a JSON path, e.g. `at("linux.namespaces[1].type", "unknown namespace \"nett\"")`.
pub fn at(path: impl fmt::Display, message: impl fmt::Display) -> anyhow::Error {
    error(Kind::BadInput, format!("{path}: {message}"))
}

/// An error chain as plain data: it can cross from one process to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wire {
    pub messages: Vec<String>,
    pub kind: Option<Kind>,
    pub hint: Option<String>,
}

impl Wire {
    /// The chain of `error`, outermost message first.
    pub fn of(error: &anyhow::Error) -> Self {
        Wire {
            messages: error.chain().map(ToString::to_string).filter(|m| !m.is_empty()).collect(),
            kind: kind(error),
            hint: hint(error),
        }
    }

    /// The error that was sent.
    pub fn into_error(self) -> anyhow::Error {
        let mut messages = self.messages.into_iter().rev();
        let mut error = anyhow::Error::msg(messages.next().unwrap_or_else(|| "unknown error".to_owned()));
        for message in messages {
            error = error.context(message);
        }
        if self.kind.is_some() || self.hint.is_some() {
            error = error.context(Note { kind: self.kind, hint: self.hint });
        }
        error
    }
}

/// The kind that rides in the chain nearest to the top.
pub fn kind(error: &anyhow::Error) -> Option<Kind> {
    error.downcast_ref::<Note>().and_then(|n| n.kind)
}

/// The hint that rides in the chain nearest to the top.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    error.downcast_ref::<Note>().and_then(|n| n.hint.clone())
}

/// The whole chain on one line: wide to narrow, then the kernel's word.
pub fn line(error: &anyhow::Error) -> String {
    let mut out = String::new();
    for part in error.chain().map(|e| kernel_word(e.to_string())).filter(|p| !p.is_empty()) {
        if out.ends_with(&part) {
            continue;
        }
        if !out.is_empty() {
            out.push_str(": ");
        }
        out.push_str(&part);
    }
    if out.contains(char::is_control) { escape_control(&out) } else { out }
}

/// What a config or the kernel puts into a message must not break its line, nor drive a terminal.
fn escape_control(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// The kernel's word as the style asks for it: `operation not permitted (EPERM)`. (dockerd tells errors apart by
/// the lower-case text.)
fn kernel_word(part: String) -> String {
    let Some((text, number)) = part.split_once(" (os error ") else { return part };
    let Some(number) = number.strip_suffix(')').and_then(|n| n.parse::<u8>().ok()) else { return part };
    // What comes before the last colon is ours.
    let (before, text) = text.rsplit_once(": ").map_or(("", text), |(b, t)| (b, t));
    let colon = if before.is_empty() { "" } else { ": " };
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_lowercase()).into_iter();
    let text: String = first.chain(chars).collect();
    match ERRNO.iter().find(|(n, _)| *n == number) {
        Some((_, name)) => format!("{before}{colon}{text} ({name})"),
        None => format!("{before}{colon}{text} (errno {number})"),
    }
}

/// errno(3), as far as the calls of a runtime give them.
const ERRNO: &[(u8, &str)] = &[
    (1, "EPERM"),
    (2, "ENOENT"),
    (3, "ESRCH"),
    (4, "EINTR"),
    (5, "EIO"),
    (6, "ENXIO"),
    (7, "E2BIG"),
    (8, "ENOEXEC"),
    (9, "EBADF"),
    (10, "ECHILD"),
    (11, "EAGAIN"),
    (12, "ENOMEM"),
    (13, "EACCES"),
    (16, "EBUSY"),
    (17, "EEXIST"),
    (18, "EXDEV"),
    (19, "ENODEV"),
    (20, "ENOTDIR"),
    (21, "EISDIR"),
    (22, "EINVAL"),
    (23, "ENFILE"),
    (24, "EMFILE"),
    (25, "ENOTTY"),
    (26, "ETXTBSY"),
    (27, "EFBIG"),
    (28, "ENOSPC"),
    (30, "EROFS"),
    (32, "EPIPE"),
    (33, "EDOM"),
    (34, "ERANGE"),
    (36, "ENAMETOOLONG"),
    (38, "ENOSYS"),
    (39, "ENOTEMPTY"),
    (40, "ELOOP"),
    (61, "ENODATA"),
    (75, "EOVERFLOW"),
    (87, "EUSERS"),
    (95, "EOPNOTSUPP"),
    (98, "EADDRINUSE"),
    (104, "ECONNRESET"),
    (107, "ENOTCONN"),
    (110, "ETIMEDOUT"),
    (111, "ECONNREFUSED"),
    (122, "EDQUOT"),
];

/// Print `error` once: on standard error for people, and in the log file if there is one.
pub fn print(program: &str, error: &anyhow::Error) {
    let text = line(error);
    log::error!("{text}");
    if !log_file::is_stderr() {
        log_file::to_stderr(&format!("{program}: {text}\n"));
    }
    if let Some(Excerpt(lines)) = error.downcast_ref() {
        log_file::to_stderr(lines);
    }
    if let Some(hint) = hint(error) {
        log_file::to_stderr(&format!("hint: {hint}\n"));
    }
}

/// What `--version` prints after a program's name, in runc's shape: the version, the commit that a release was made of
/// (`BERTH_COMMIT` when it was built), and a line for each of `more`.
#[must_use]
pub fn version(version: &str, commit: Option<&str>, more: &[(&str, &str)]) -> String {
    let mut out = format!("version {version}\ncommit: {}", commit.unwrap_or("unknown"));
    for (key, value) in more {
        out.push_str(&format!("\n{key}: {value}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_kernels_word() {
        let e = anyhow::Error::new(std::io::Error::from_raw_os_error(1)).context("mount proc on /proc");
        assert_eq!(line(&e), "mount proc on /proc: operation not permitted (EPERM)");
        let e = Wire::of(&e).into_error();
        assert_eq!(line(&e), "mount proc on /proc: operation not permitted (EPERM)");
        assert_eq!(kernel_word("read x: Bad y (os error 200)".to_owned()), "read x: bad y (errno 200)");
    }

    #[test]
    fn one_line_whatever_is_in_it() {
        let e = anyhow::Error::msg("unknown parameter 'a\n\u{1b}[2J'").context("mounts[0]: ä");
        assert_eq!(line(&e), "mounts[0]: ä: unknown parameter 'a\\n\\u{1b}[2J'");
    }

    #[test]
    fn kind_and_hint_survive_context_and_the_wire() {
        let e = Err::<(), _>(error(Kind::NotFound, "container does not exist"))
            .hint(|| "see `list`".to_owned())
            .context("state web")
            .unwrap_err();
        assert_eq!(line(&e), "state web: container does not exist");
        let e = Wire::of(&e).into_error().context("outer");
        assert_eq!(line(&e), "outer: state web: container does not exist");
        assert_eq!((kind(&e), hint(&e)), (Some(Kind::NotFound), Some("see `list`".to_owned())));
    }
}
