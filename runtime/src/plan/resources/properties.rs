//! Which properties of its scope does a container ask for? Annotations `org.systemd.property.NAME`, as runc
//! reads them: the value is written as GVariant text, `uint64 5`, `'text'`, `['a', 'b']`, `true`.

use std::collections::HashMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

const PREFIX: &str = "org.systemd.property.";

/// A value, of the types that properties of scopes have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Property {
    Bool(bool),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Str(String),
    Strings(Vec<String>),
}

/// The properties that the annotations name, by name.
pub(super) fn properties(annotations: Option<&HashMap<String, String>>) -> Result<Vec<(String, Property)>> {
    let mut out = Vec::new();
    for (key, text) in annotations.into_iter().flatten() {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        let at = |why: &str| report::at(format!("annotations[{key:?}]"), why);
        if !name.starts_with(|c: char| c.is_ascii_uppercase())
            || !name.chars().all(|c| c.is_ascii_alphanumeric())
        {
            return Err(at("does not name a property of systemd"));
        }
        let Some(value) = parse(text.trim()) else {
            return Err(at(&format!("{text:?} is no value such as true, uint64 5, 'text' or ['a', 'b']")));
        };
        out.push(match (name.strip_suffix("USec"), name.strip_suffix("Sec")) {
            // systemd keeps times in microseconds, under names that say so.
            (None, Some(stem)) => {
                let Some(micro) = seconds(&value) else {
                    return Err(at(&format!("{text:?} is not a number of seconds")));
                };
                (format!("{stem}USec"), Property::U64(micro))
            }
            _ => (name.to_owned(), value),
        });
    }
    out.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(out)
}

fn seconds(value: &Property) -> Option<u64> {
    let seconds = match value {
        Property::I32(n) => u64::try_from(*n).ok()?,
        Property::I64(n) => u64::try_from(*n).ok()?,
        Property::U32(n) => u64::from(*n),
        Property::U64(n) => *n,
        Property::Bool(_) | Property::Str(_) | Property::Strings(_) => return None,
    };
    seconds.checked_mul(1_000_000)
}

fn parse(text: &str) -> Option<Property> {
    if let Some(inside) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        let items = inside.split(',').map(|item| quoted(item.trim()));
        return items.collect::<Option<Vec<String>>>().map(Property::Strings);
    }
    match text.split_once(' ') {
        _ if text.starts_with(['\'', '"']) => quoted(text).map(Property::Str),
        Some(("int32", number)) => number.trim().parse().ok().map(Property::I32),
        Some(("uint32", number)) => number.trim().parse().ok().map(Property::U32),
        Some(("int64", number)) => number.trim().parse().ok().map(Property::I64),
        Some(("uint64", number)) => number.trim().parse().ok().map(Property::U64),
        Some(_) => None,
        None => match text {
            "true" => Some(Property::Bool(true)),
            "false" => Some(Property::Bool(false)),
            number => number.parse().ok().map(Property::I32),
        },
    }
}

/// Text in quotes, without escapes.
fn quoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inside = text.strip_prefix(quote)?.strip_suffix(quote)?;
    (!inside.contains([quote, '\\'])).then(|| inside.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, text: &str) -> Result<(String, Property), String> {
        let annotations =
            HashMap::from([(format!("{PREFIX}{name}"), text.to_owned()), ("x".to_owned(), "[".to_owned())]);
        properties(Some(&annotations)).map(|mut all| all.remove(0)).map_err(|e| report::line(&e))
    }

    #[test]
    fn values() {
        let strings = |all: &[&str]| Property::Strings(all.iter().map(|s| (*s).to_owned()).collect());
        for (name, text, expected, value) in [
            ("TimeoutStopUSec", "uint64 5", "TimeoutStopUSec", Property::U64(5)),
            ("TimeoutStopSec", "5", "TimeoutStopUSec", Property::U64(5_000_000)),
            (
                "CollectMode",
                "'inactive-or-failed'",
                "CollectMode",
                Property::Str("inactive-or-failed".to_owned()),
            ),
            ("CollectMode", "\"a b\"", "CollectMode", Property::Str("a b".to_owned())),
            ("After", "['a.service', 'b.service']", "After", strings(&["a.service", "b.service"])),
            ("DefaultDependencies", "true", "DefaultDependencies", Property::Bool(true)),
            ("X", "-3", "X", Property::I32(-3)),
            ("X", "uint32 3", "X", Property::U32(3)),
            ("X", "int64 -3", "X", Property::I64(-3)),
        ] {
            assert_eq!(one(name, text), Ok((expected.to_owned(), value)), "{name} {text}");
        }
        for (name, text) in
            [("X", "word"), ("X", "uint64 -1"), ("X", "'open"), ("X", "['a', b]"), ("X", "'a\\n'")]
        {
            assert!(one(name, text).unwrap_err().contains("is no value such as"), "{name} {text}");
        }
        assert!(one("TimeoutStopSec", "true").unwrap_err().ends_with("is not a number of seconds"));
        assert!(one("no such", "true").unwrap_err().ends_with("does not name a property of systemd"));
    }
}
