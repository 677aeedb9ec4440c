//! The command lines that engines write, thousands of times: read without clap, which takes longer for it than `kill` takes for
//! all the rest. Whatever is not plain beyond doubt (an option that is not listed here, or given twice, a value that begins with a
//! dash, a word too many) is clap's to read, and to explain.

/// An option: its long name, its short one, whether it has a value.
#[derive(Clone, Copy, Debug)]
pub struct Known(pub &'static str, pub Option<u8>, pub bool);

/// What was said.
#[derive(Debug, Default)]
pub struct Said<'a> {
    options: Vec<(&'static str, &'a str)>,
    /// What are no options, in order.
    pub words: Vec<&'a str>,
}

/// Where options end: with the words, or with as many words (all that follows belongs to the last of them).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    End,
    Word(usize),
}

impl<'a> Said<'a> {
    /// Read a plain command line; `None` if it is none.
    pub fn read(known: &[Known], line: &[&'a str], until: Until) -> Option<Said<'a>> {
        let mut said = Said::default();
        let mut rest = line.iter();
        while let Some(&word) = rest.next() {
            let (found, value) = match word.as_bytes() {
                [] => return None,
                [b'-', b'-', ..] => {
                    let (name, value) = word[2..]
                        .split_once('=')
                        .map_or((&word[2..], None), |(name, value)| (name, Some(value)));
                    (known.iter().find(|k| k.0 == name)?, value)
                }
                [b'-', letter] => (known.iter().find(|k| k.1 == Some(*letter))?, None),
                [b'-', ..] => return None,
                _ => {
                    said.words.push(word);
                    if until == Until::Word(said.words.len()) {
                        said.words.extend(rest.as_slice());
                        return Some(said);
                    }
                    continue;
                }
            };
            let value = match (found.2, value) {
                (false, None) => "",
                (false, Some(_)) => return None,
                (true, Some(value)) => value,
                (true, None) => rest.next()?,
            };
            let doubtful = found.2 && (value.is_empty() || value.starts_with('-'));
            if doubtful || said.has(found.0) {
                return None;
            }
            said.options.push((found.0, value));
        }
        Some(said)
    }

    /// Whether the option was given.
    pub fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// Its value.
    pub fn value(&self, name: &str) -> Option<&'a str> {
        self.options.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }

    /// Its value, as what it stands for.
    pub fn get<T: From<&'a str>>(&self, name: &str) -> Option<T> {
        self.value(name).map(T::from)
    }
}

#[cfg(test)]
mod tests {
    use super::{Known, Said, Until};

    const KNOWN: &[Known] = &[Known("force", Some(b'f'), false), Known("root", None, true)];

    #[test]
    fn a_plain_line_is_read() {
        for (line, until, root, force, words) in [
            ("web", Until::End, None, false, "web"),
            ("--root r web", Until::End, Some("r"), false, "web"),
            ("web -f --root=a=b", Until::End, Some("a=b"), true, "web"),
            ("--force a b", Until::End, None, true, "a b"),
            ("a -f b --root --force", Until::Word(2), None, true, "a b --root --force"),
        ] {
            let line: Vec<&str> = line.split(' ').collect();
            let said = Said::read(KNOWN, &line, until).unwrap_or_else(|| panic!("{line:?}"));
            assert_eq!((said.value("root"), said.has("force")), (root, force), "{line:?}");
            assert_eq!(said.words.join(" "), words, "{line:?}");
        }
    }

    #[test]
    fn what_is_not_plain_is_left_to_clap() {
        for line in [
            "-x",
            "--other",
            "-ff",
            "-",
            "--",
            "-f -f",
            "-f --force",
            "--force=yes",
            "--root",
            "--root -f",
            "--root=",
            "-root r",
            "--root a --root b",
            "--roo r",
            "a --",
            "",
        ] {
            let line: Vec<&str> = line.split(' ').collect();
            assert!(Said::read(KNOWN, &line, Until::End).is_none(), "{line:?}");
        }
    }
}
