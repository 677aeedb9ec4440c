//! Which files of a build context are left out? `.dockerignore`, and the patterns of `--exclude`, which are the same. A later
//! pattern overrides an earlier one, and what holds for a folder holds for all in it.

use anyhow::{Result, bail};

/// Patterns in their order.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    /// `!`: what it finds is not left out.
    keeps: bool,
    parts: Vec<Part>,
}

/// What a path may go on with. Paths have no slash in front, and none at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Char(char),
    /// `?`
    One,
    /// `*`
    Any,
    /// `**` at the end: anything, slashes included.
    Rest,
    /// `**/`: folders, or none …
    Folders,
    /// … and while they go on.
    InFolders,
    /// `[a-z]`
    Class {
        not: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Ignore {
    /// Read a `.dockerignore`.
    pub fn parse(text: &str) -> Result<Ignore> {
        let mut ignore = Ignore::default();
        for (n, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            // A comment begins in the first column.
            if !line.starts_with('#') && !line.trim().is_empty() {
                ignore.add(line.trim()).map_err(|e| e.context(format!("line {}", n + 1)))?;
            }
        }
        Ok(ignore)
    }

    /// Nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// One more pattern.
    pub fn add(&mut self, text: &str) -> Result<()> {
        let (keeps, pattern) = match text.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, text),
        };
        if pattern.is_empty() {
            bail!("pattern {text:?}: nothing behind the !");
        }
        let pattern = clean(pattern);
        let parts = match pattern.as_str() {
            // The context itself is always there.
            "" => Vec::new(),
            pattern => match parts(pattern) {
                Some(parts) => parts,
                None => bail!("pattern {text:?}: [ without ]"),
            },
        };
        self.patterns.push(Pattern { keeps, parts });
        Ok(())
    }

    /// Whether the path, or a folder that it is in, is left out.
    pub fn leaves_out(&self, path: &str) -> bool {
        let mut out = false;
        for pattern in &self.patterns {
            if pattern.keeps == out && pattern.fits_or_above(path) {
                out = !pattern.keeps;
            }
        }
        out
    }

    /// Whether something in a folder that is left out may be kept for all that.
    pub fn keeps_below(&self, folder: &str) -> bool {
        self.patterns.iter().any(|p| p.keeps && p.may_go_on(folder))
    }
}

/// As Go's filepath.Clean, without a slash in front: `./a//b/../c/` is `a/c`.
fn clean(pattern: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|p| *p != "..") => drop(parts.pop()),
            ".." if pattern.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn parts(pattern: &str) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                let slash = chars.next_if_eq(&'/').is_some();
                if chars.peek().is_none() && !slash {
                    parts.push(Part::Rest);
                } else {
                    parts.extend([Part::Folders, Part::InFolders]);
                }
            }
            '*' => parts.push(Part::Any),
            '?' => parts.push(Part::One),
            '\\' => parts.push(Part::Char(chars.next().unwrap_or('\\'))),
            '[' => {
                let not = chars.next_if(|c| matches!(c, '^' | '!')).is_some();
                let mut ranges = Vec::new();
                loop {
                    let mut low = chars.next()?;
                    match low {
                        ']' if !ranges.is_empty() => break,
                        '\\' => low = chars.next()?,
                        _ => {}
                    }
                    let mut high = low;
                    if chars.peek() == Some(&'-') {
                        let mut ahead = chars.clone();
                        ahead.next();
                        if ahead.peek().is_some_and(|c| *c != ']') {
                            chars = ahead;
                            high = chars.next()?;
                            if high == '\\' {
                                high = chars.next()?;
                            }
                        }
                    }
                    ranges.push((low, high));
                }
                parts.push(Part::Class { not, ranges });
            }
            c => parts.push(Part::Char(c)),
        }
    }
    Some(parts)
}

/// Where in a pattern one may be: one more place than it has parts.
struct Places<'a> {
    parts: &'a [Part],
    there: Vec<bool>,
}

impl<'a> Places<'a> {
    fn new(parts: &'a [Part]) -> Places<'a> {
        let mut places = Places { parts, there: vec![false; parts.len() + 1] };
        places.enter(0);
        places
    }

    fn enter(&mut self, at: usize) {
        if std::mem::replace(&mut self.there[at], true) {
            return;
        }
        match self.parts.get(at) {
            Some(Part::Any | Part::Rest) => self.enter(at + 1),
            Some(Part::Folders) => {
                self.enter(at + 1);
                self.enter(at + 2);
            }
            _ => {}
        }
    }

    fn step(&mut self, c: char) {
        let before = std::mem::replace(&mut self.there, vec![false; self.parts.len() + 1]);
        for (at, part) in self.parts.iter().enumerate().filter(|(at, _)| before[*at]) {
            match part {
                Part::Char(wanted) if *wanted == c => self.enter(at + 1),
                Part::One if c != '/' => self.enter(at + 1),
                Part::Any if c != '/' => self.enter(at),
                Part::Rest => self.enter(at),
                Part::InFolders => {
                    self.enter(at);
                    if c == '/' {
                        self.enter(at + 1);
                    }
                }
                Part::Class { not, ranges }
                    if c != '/' && ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *not =>
                {
                    self.enter(at + 1);
                }
                _ => {}
            }
        }
    }

    fn at_end(&self) -> bool {
        self.there[self.parts.len()]
    }
}

impl Pattern {
    /// Whether it is the path, or a folder above.
    fn fits_or_above(&self, path: &str) -> bool {
        if self.parts.is_empty() {
            return false;
        }
        let mut places = Places::new(&self.parts);
        for c in path.chars() {
            if c == '/' && places.at_end() {
                return true;
            }
            places.step(c);
        }
        places.at_end()
    }

    /// Whether something below the folder could fit.
    fn may_go_on(&self, folder: &str) -> bool {
        let mut places = Places::new(&self.parts);
        for c in folder.chars().chain(['/']) {
            places.step(c);
        }
        places.there.contains(&true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_find_paths_and_what_is_in_them() {
        for (pattern, found, others) in [
            ("a", &["a", "a/b", "a/b/c"][..], &["ab", "b/a", "b"][..]),
            ("/a/", &["a", "a/b"], &["b/a"]),
            ("./a//b/../c", &["a/c", "a/c/d"], &["a", "a/b"]),
            ("../a", &[], &["a"]),
            ("/../a", &["a"], &[]),
            ("*", &["a", ".a", "a/b"], &[]),
            ("*.o", &["a.o", ".o", "a.o/b"], &["a/b.o", "a.oo"]),
            ("*/*.o", &["a/b.o"], &["b.o", "a/b/c.o"]),
            ("**/*.o", &["a.o", "a/b.o", "a/b/c.o"], &["a", "a.o2"]),
            ("a/**", &["a/b", "a/b/c"], &["a", "ab"]),
            ("a/**/b", &["a/b", "a/x/b", "a/x/y/b", "a/b/c"], &["a/xb", "ab", "a"]),
            ("**/b", &["b", "a/b", "a/b/c"], &["ab"]),
            ("**", &["a", "a/b"], &[]),
            ("**/", &["a", "a/b"], &[]),
            ("?.o", &["a.o", "é.o"], &["ab.o", "/.o", ".o"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "-x"]),
            ("[^a-c]x", &["dx"], &["ax", "/x"]),
            ("[]a]", &["]", "a"], &["[", "b"]),
            ("[a-]", &["a", "-"], &["b"]),
            (r"\*", &["*"], &["a", r"\*"]),
            (r"a\?b", &["a?b"], &["axb"]),
            (".", &[], &["a"]),
            ("a.b", &["a.b"], &["axb"]),
            ("a$(b|c)+", &["a$(b|c)+"], &["ab"]),
        ] {
            let ignore = Ignore::parse(pattern).unwrap();
            for path in found {
                assert!(ignore.leaves_out(path), "{pattern} {path}");
            }
            for path in others {
                assert!(!ignore.leaves_out(path), "{pattern} {path}");
            }
        }
    }

    #[test]
    fn later_patterns_override_earlier_ones() {
        for (text, out, kept) in [
            ("*\n!a", &["b", "b/a"][..], &["a", "a/b"][..]),
            (
                "*.md\n!README*.md\nREADME-secret.md",
                &["x.md", "README-secret.md"],
                &["README.md", "README-a.md"],
            ),
            ("*.md\nREADME-secret.md\n!README*.md", &["x.md"], &["README.md", "README-secret.md"]),
            ("a\n!a/b\na/b/c", &["a", "a/x", "a/b/c", "a/b/c/d"], &["a/b", "a/b/x"]),
            ("\u{feff}# no\n\n  b  \r\n!  b/c\n #d", &["b", "b/d", "#d"], &["b/c", "# no"]),
            ("!a\na", &["a"], &["b"]),
        ] {
            let ignore = Ignore::parse(text).unwrap();
            for path in out {
                assert!(ignore.leaves_out(path), "{text:?} {path}");
            }
            for path in kept {
                assert!(!ignore.leaves_out(path), "{text:?} {path}");
            }
        }
    }

    #[test]
    fn folders_are_entered_where_something_may_be_kept() {
        for (text, entered, passed) in [
            ("*\n!a/b/c", &["a", "a/b", "a/b/c"][..], &["b", "a/c", "a/b/d"][..]),
            ("a\n!**/x", &["a", "a/b"], &[]),
            ("*\n!a*/b", &["a", "ax", "ax/b"], &["b", "ax/c"]),
            ("*", &[], &["a"]),
        ] {
            let ignore = Ignore::parse(text).unwrap();
            for folder in entered {
                assert!(ignore.keeps_below(folder) || !ignore.leaves_out(folder), "{text:?} {folder}");
            }
            for folder in passed {
                assert!(!ignore.keeps_below(folder), "{text:?} {folder}");
            }
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for (text, message) in [
            ("a\n!\n", "line 2: pattern \"!\": nothing behind"),
            ("[a", "line 1: pattern \"[a\": [ without ]"),
        ] {
            let error = Ignore::parse(text).unwrap_err();
            assert!(report::line(&error).contains(message), "{}", report::line(&error));
        }
    }

    proptest! {
        #[test]
        fn fuzz_ignore(text in "(a|b|\\*|\\*\\*|/|\\?|\\[|\\]|\\^|-|\\\\|!|\\.|#|\n){0,30}", path in "[ab]{1,3}(/[ab]{1,3}){0,3}") {
            if let Ok(ignore) = Ignore::parse(&text) {
                let out = ignore.leaves_out(&path);
                // What is kept in a folder that is left out can be found by going down to it.
                if !out && let Some(at) = path.rfind('/') && ignore.leaves_out(&path[..at]) {
                    prop_assert!(ignore.keeps_below(&path[..at]));
                }
            }
        }
    }
}
