//! Does a name fit a pattern?

/// Go's path.Match: `*` and `?` stop at slashes; `[a-z]`, `[^a]`, `\x`.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last star does not fit.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match (pattern.get(p), text.get(t)) {
            (Some(b'*'), _) => {
                p += 1;
                star = Some((p, t));
                continue;
            }
            (None, None) => return true,
            (None, _) | (_, None) => None,
            (Some(b'?'), Some(c)) => (*c != b'/').then_some(1),
            (Some(b'['), Some(c)) => class(&pattern[p..], *c),
            (Some(b'\\'), Some(c)) => (pattern.get(p + 1) == Some(c)).then_some(2),
            (Some(wanted), Some(c)) => (wanted == c).then_some(1),
        };
        match (step, star) {
            (Some(length), _) => (p, t) = (p + length, t + 1),
            (None, Some((after, at))) if text.get(at).is_some_and(|c| *c != b'/') => {
                star = Some((after, at + 1));
                (p, t) = (after, at + 1);
            }
            _ => return false,
        }
    }
}

/// The length of a class of characters, if `c` is one of them.
fn class(pattern: &[u8], c: u8) -> Option<usize> {
    let negated = pattern.get(1) == Some(&b'^');
    let first = if negated { 2 } else { 1 };
    let mut at = first;
    let mut found = false;
    loop {
        match *pattern.get(at)? {
            b']' if at > first => break,
            low => {
                let high = match (pattern.get(at + 1), pattern.get(at + 2)) {
                    (Some(b'-'), Some(high)) if *high != b']' => {
                        at += 2;
                        *high
                    }
                    _ => low,
                };
                found |= (low..=high).contains(&c);
                at += 1;
            }
        }
    }
    (found != negated && c != b'/').then_some(at + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::matches;

    #[test]
    fn patterns_as_docker_has_them() {
        for (pattern, name, fits) in [
            ("alpine", "alpine", true),
            ("alp*", "alpine", true),
            ("*pine", "alpine", true),
            ("*/app", "team/app", true),
            ("*", "team/app", false),
            ("*:*", "alpine:3", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXbY", false),
            ("alp?ne", "alpine", true),
            ("?", "/", false),
            ("[a-c]x[^1]", "bx2", true),
            ("[a-c]x[^1]", "bx1", false),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("[", "[", false),
            ("[a", "a", false),
            ("", "", true),
            // This takes no time that grows with each star.
            (&"a*".repeat(500), &"a".repeat(400), false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), fits, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn fuzz_any_pattern_ends(pattern in "[a*?\\[\\]^\\\\/-]{0,20}", text in "[a/b]{0,30}") {
            matches(pattern.as_bytes(), text.as_bytes());
        }
    }
}
