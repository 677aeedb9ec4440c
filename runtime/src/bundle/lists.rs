//! Does a list stand where the specification has an object?
//!
//! serde takes a list for any struct, field by field: `"linux": []` would silently be an empty object. Looking at
//! what stands before each `[` costs a few microseconds, a second parse would cost a hundred.

/// Whether every list of the document follows a name that the specification gives a list to. A text that looks
/// like one may make this false for a good document: then it is looked at closely.
pub fn all_expected(text: &str) -> bool {
    text.match_indices('[').all(|(at, _)| {
        let before = text.as_bytes()[..at].trim_ascii_end();
        match before.last() {
            Some(b':') => name_before(&before[..before.len() - 1]).is_some_and(is_list),
            // A list in a list, or a document that is one.
            Some(b'[' | b',') | None => false,
            // Inside a text.
            Some(_) => true,
        }
    })
}

/// The name that ends a piece of JSON: what stands between its last two quotes.
fn name_before(bytes: &[u8]) -> Option<&[u8]> {
    let inner = bytes.trim_ascii_end().strip_suffix(b"\"")?;
    Some(&inner[inner.iter().rposition(|b| *b == b'"')? + 1..])
}

fn is_list(name: &[u8]) -> bool {
    LISTS.contains(&name)
}

/// The names of lists, the frequent ones first.
const LISTS: &[&[u8]] = &[
    b"options",
    b"names",
    b"args",
    b"syscalls",
    b"namespaces",
    b"mounts",
    b"devices",
    b"env",
    b"bounding",
    b"effective",
    b"permitted",
    b"inheritable",
    b"ambient",
    b"rlimits",
    b"maskedPaths",
    b"readonlyPaths",
    b"architectures",
    b"flags",
    b"additionalGids",
    b"uidMappings",
    b"gidMappings",
    b"prestart",
    b"createRuntime",
    b"createContainer",
    b"startContainer",
    b"poststart",
    b"poststop",
    b"hugepageLimits",
    b"priorities",
    b"weightDevice",
    b"throttleReadBpsDevice",
    b"throttleWriteBpsDevice",
    b"throttleReadIOPSDevice",
    b"throttleWriteIOPSDevice",
    b"schemata",
];

#[cfg(test)]
mod tests {
    use super::super::shape::{SPEC, Shape};
    use super::*;

    fn collect(shape: &Shape, lists: &mut Vec<&'static str>, others: &mut Vec<&'static str>) {
        match shape {
            Shape::Object(fields) => {
                for field in *fields {
                    match field.shape {
                        Shape::List(_) => lists.push(field.name),
                        _ => others.push(field.name),
                    }
                    collect(&field.shape, lists, others);
                }
            }
            Shape::List(of) | Shape::Map(of) => collect(of, lists, others),
            _ => {}
        }
    }

    #[test]
    fn the_names_are_those_of_the_specification() {
        let (mut lists, mut others) = (Vec::new(), Vec::new());
        collect(&SPEC, &mut lists, &mut others);
        lists.sort_unstable();
        lists.dedup();
        let mut known: Vec<&str> = LISTS.iter().map(|n| std::str::from_utf8(n).unwrap()).collect();
        known.sort_unstable();
        assert_eq!(lists, known);
        assert!(
            others.iter().all(|name| !lists.contains(name)),
            "a name is a list here and something else there"
        );
    }

    #[test]
    fn lists_are_seen() {
        for (text, expected) in [
            (r#"{"args": ["a", "["], "env" :["A=["]}"#, true),
            (r#"{"args": ["x["]}"#, true),
            // Only looked at closely: it is one.
            (r#"{"args": ["[["]}"#, false),
            (r#"{"linux": []}"#, false),
            (r#"{"user":[0,0]}"#, false),
            (r#"{"args":[["a"]]}"#, false),
            ("[]", false),
            ("{}", true),
        ] {
            assert_eq!(all_expected(text), expected, "{text}");
        }
    }
}
