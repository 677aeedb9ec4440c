//! Is this a name that a container may have?

use anyhow::Result;
use report::Kind;

/// The id becomes a directory, a part of cgroup paths and of systemd units: letters, digits and `_ + - .`, not
/// `.` or `..`, and short enough for a file name.
pub fn check(id: &str) -> Result<()> {
    let wrong = |why: String| Err(report::error(Kind::BadInput, format!("container id {id:?}: {why}")));
    if id.is_empty() {
        return wrong("empty".to_owned());
    }
    if id.len() > MAX {
        let start: String = id.chars().take(16).collect();
        let why = format!("container id \"{start}…\": {} bytes long (allowed: at most {MAX})", id.len());
        return Err(report::error(Kind::BadInput, why));
    }
    if id == "." || id == ".." {
        return wrong("names a directory itself".to_owned());
    }
    match id.chars().find(|c| !(c.is_ascii_alphanumeric() || "_+-.".contains(*c))) {
        Some(c) => wrong(format!("contains {c:?} (allowed: letters, digits and _ + - .)")),
        None => Ok(()),
    }
}

/// `NAME_MAX`, less what is put around it: `berth-<id>.scope`.
const MAX: usize = 240;

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn names() {
        for good in ["a", "web-1", "_", "a.b", "...", "A+b", &"x".repeat(240)] {
            check(good).unwrap_or_else(|e| panic!("{good}: {}", report::line(&e)));
        }
        for (bad, why) in [
            ("", r#"container id "": empty"#),
            (".", r#"container id ".": names a directory itself"#),
            ("..", r#"container id "..": names a directory itself"#),
            ("a/b", r#"container id "a/b": contains '/' (allowed: letters, digits and _ + - .)"#),
            ("../x", r#"container id "../x": contains '/' (allowed: letters, digits and _ + - .)"#),
            ("a b", r#"container id "a b": contains ' ' (allowed: letters, digits and _ + - .)"#),
            ("a\0", r#"container id "a\0": contains '\0' (allowed: letters, digits and _ + - .)"#),
            ("ä", r#"container id "ä": contains 'ä' (allowed: letters, digits and _ + - .)"#),
            (&"x".repeat(241), r#"container id "xxxxxxxxxxxxxxxx…": 241 bytes long (allowed: at most 240)"#),
        ] {
            assert_eq!(report::line(&check(bad).unwrap_err()), why);
        }
    }
}
