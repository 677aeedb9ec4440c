//! What does `RUN --mount` say? Its options are known by name here; what they mean is the plan's.

use report::nearest;

use super::ast::{Mount, Word};
use super::source::Problem;

/// Each kind with its options, `type` aside; the first of several names is the one we speak of.
pub const KINDS: &[(&str, &[&str])] = &[
    ("bind", &["target", "source", "from", "readwrite", "readonly"]),
    ("cache", &["id", "target", "readonly", "readwrite", "sharing", "from", "source", "mode", "uid", "gid"]),
    ("tmpfs", &["target", "size"]),
    ("secret", &["id", "target", "required", "mode", "uid", "gid", "env"]),
    ("ssh", &["id", "target", "required", "mode", "uid", "gid"]),
];

const NAMES: &[(&str, &str)] = &[
    ("src", "source"),
    ("dst", "target"),
    ("destination", "target"),
    ("ro", "readonly"),
    ("rw", "readwrite"),
];

/// Options that say something without a value.
const ALONE: &[&str] = &["readonly", "readwrite", "required"];

/// Read the value of one `--mount`.
pub fn parse(word: Word) -> Result<Mount, Problem> {
    let problem = |message: String| Problem::new(word.span.clone(), message);
    let mut options: Vec<(String, Option<String>)> = Vec::new();
    for field in fields(&word.text).ok_or_else(|| problem("--mount: a double quote is missing".to_owned()))? {
        let (name, value) = match field.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (&field[..], None),
        };
        let name = name.trim().to_ascii_lowercase();
        let name = NAMES.iter().find(|(other, _)| *other == name).map_or(&name[..], |(_, name)| name);
        if name.is_empty() {
            return Err(
                problem("--mount: an option is missing".to_owned()).hint("type=cache,target=/var/cache/apt")
            );
        }
        if value.is_none() && !ALONE.contains(&name) {
            return Err(problem(format!("--mount: {name} needs a value")));
        }
        if options.iter().any(|(known, _)| known == name) {
            return Err(problem(format!("--mount: {name} stands here for the second time")));
        }
        options.push((name.to_owned(), value));
    }
    let kind = options.iter().find(|(name, _)| name == "type").and_then(|(_, value)| value.as_deref());
    let kind = kind.unwrap_or("bind");
    // A type that is a variable is known when that is.
    if kind.contains('$') {
        return Ok(Mount { options, span: word.span });
    }
    let Some((_, known)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        let all = || KINDS.iter().map(|(name, _)| *name);
        let problem = problem(format!("--mount: unknown type {kind:?}"));
        return Err(problem.hint(match nearest(kind, all()) {
            Some(near) => format!("{near}?"),
            None => format!("known are {}", all().collect::<Vec<_>>().join(", ")),
        }));
    };
    for (name, _) in &options {
        if name != "type" && !known.contains(&name.as_str()) {
            let problem = problem(format!("--mount: type {kind} has no option {name:?}"));
            return Err(problem.hint(match nearest(name, known.iter().copied()) {
                Some(near) => format!("{near}?"),
                None => format!("it has {}", known.join(", ")),
            }));
        }
    }
    Ok(Mount { options, span: word.span })
}

/// Fields of a line of CSV (RFC 4180).
fn fields(text: &str) -> Option<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut chars = text.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        let field = fields.last_mut()?;
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => field.extend(chars.next()),
            '"' if quoted || field.is_empty() => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => field.push(c),
        }
    }
    (!quoted).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, Option<String>)>, Problem> {
        parse(Word { text: text.to_owned(), span: 0..text.len() }).map(|m| m.options)
    }

    #[test]
    fn options_go_by_one_name() {
        for (text, expected) in [
            ("target=/x", &[("target", Some("/x"))][..]),
            (
                "type=bind,src=a,dst=/b,rw",
                &[("type", Some("bind")), ("source", Some("a")), ("target", Some("/b")), ("readwrite", None)],
            ),
            (
                "type=cache,\"target=/a,b\",ro=false",
                &[("type", Some("cache")), ("target", Some("/a,b")), ("readonly", Some("false"))],
            ),
            ("type=$T,anything=1", &[("type", Some("$T")), ("anything", Some("1"))]),
        ] {
            let found = read(text).unwrap();
            let found: Vec<_> = found.iter().map(|(n, v)| (n.as_str(), v.as_deref())).collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn what_is_unknown_is_told() {
        for (text, message, hint) in [
            ("type=cahce,target=/x", "unknown type \"cahce\"", "cache?"),
            ("type=secret,id=x,size=1", "type secret has no option \"size\"", "it has id"),
            ("type=tmpfs,targt=/x", "type tmpfs has no option \"targt\"", "target?"),
            ("type=cache,target", "target needs a value", ""),
            ("type=cache,target=/a,dst=/b", "target stands here for the second time", ""),
            ("type=cache,,target=/a", "an option is missing", ""),
            ("\"target=/x", "a double quote is missing", ""),
        ] {
            let problem = read(text).unwrap_err();
            assert!(problem.message.contains(message), "{text}: {problem:?}");
            assert!(problem.hint.unwrap_or_default().starts_with(hint), "{text}");
        }
    }
}
