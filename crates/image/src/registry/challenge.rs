//! What does a registry want to see before it answers? `WWW-Authenticate` (RFC 9110, 11.6.1), which comes from outside.

use std::collections::BTreeMap;

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    /// A token, from there (distribution, "Token Authentication Specification").
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// Bytes of a header that are looked at.
const MOST: usize = 8192;

/// The challenges of a header that we can answer; a header may have several, and there may be several headers.
pub fn challenges(header: &str) -> Vec<Challenge> {
    let mut rest = header.get(..header.len().min(MOST)).unwrap_or_default();
    let mut found = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (scheme, after) = token(rest);
        if scheme.is_empty() {
            return found;
        }
        rest = after;
        let mut parameters = BTreeMap::new();
        loop {
            let (name, after) = token(rest.trim_start_matches([' ', '\t', ',']));
            let after = after.trim_start_matches([' ', '\t']);
            let Some(value) = after.strip_prefix('=').filter(|_| !name.is_empty()) else { break };
            let (value, after) = match value.trim_start_matches([' ', '\t']).strip_prefix('"') {
                Some(quoted) => unquote(quoted),
                None => {
                    let (value, after) = token(value.trim_start_matches([' ', '\t']));
                    (value.to_owned(), after)
                }
            };
            parameters.insert(name.to_ascii_lowercase(), value);
            rest = after;
        }
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => found.push(Challenge::Basic),
            "bearer" => {
                if let Some(realm) = parameters.remove("realm") {
                    let (service, scope) = (parameters.remove("service"), parameters.remove("scope"));
                    found.push(Challenge::Bearer { realm, service, scope });
                }
            }
            _ => {}
        }
    }
}

fn token(text: &str) -> (&str, &str) {
    let end = |c: char| c.is_ascii_whitespace() || matches!(c, ',' | '=' | '"');
    text.split_at(text.find(end).unwrap_or(text.len()))
}

fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &text[at + 1..]),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let own = |t: Option<&str>| t.map(str::to_owned);
        Challenge::Bearer { realm: realm.to_owned(), service: own(service), scope: own(scope) }
    }

    #[test]
    fn one_or_several_challenges() {
        for (header, expected) in [
            ("", vec![]),
            ("Basic realm=\"Registry Realm\"", vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://a/token",service="s",scope="repository:x:pull,push""#,
                vec![bearer("https://a/token", Some("s"), Some("repository:x:pull,push"))],
            ),
            (r#"Bearer realm = "a\"b\\c" , service=plain"#, vec![bearer("a\"b\\c", Some("plain"), None)]),
            (
                r#"Negotiate, Basic realm="x", Bearer realm="r""#,
                vec![Challenge::Basic, bearer("r", None, None)],
            ),
            ("Bearer service=x", vec![]),
            (r#"Bearer realm="unended"#, vec![bearer("unended", None, None)]),
            (",,, =", vec![]),
        ] {
            assert_eq!(challenges(header), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn fuzz_any_header_ends(header in "\\PC{0,200}") {
            prop_assert!(challenges(&header).len() <= header.len());
        }

        #[test]
        fn fuzz_nearly_a_header_ends(header in "(Bearer|Basic|[ ,=\"\\\\a])*") {
            prop_assert!(challenges(&header).len() <= header.len());
        }
    }
}
