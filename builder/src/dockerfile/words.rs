//! What does a word mean? Quotes, escapes and variables, as a Dockerfile has them: much like a shell, without its commands.
//! Pure functions; who knows the variables is asked.

use std::ops::Range;

/// The bytes of `text` between blanks that are neither quoted nor escaped.
pub fn split(text: &str, escape: char) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut begun = None;
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                found.extend(begun.take().map(|from| from..at));
                continue;
            }
            None if c == escape => drop(chars.next()),
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(q) if c == q => quote = None,
            Some('"') if c == escape => drop(chars.next()),
            _ => {}
        }
        begun.get_or_insert(at);
    }
    found.extend(begun.map(|from| from..text.len()));
    found
}

/// The value of a variable, if it is set.
pub type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// A word without its quotes and with the values of its variables. What is wrong is told without a place.
pub fn expand(word: &str, escape: char, lookup: &Lookup<'_>) -> Result<String, String> {
    let mut expansion = Expansion::new(word, escape, lookup);
    expansion.until(None, Escapes::Removed)
}

/// The same, where an unquoted variable may become several words.
pub fn expand_words(word: &str, escape: char, lookup: &Lookup<'_>) -> Result<Vec<String>, String> {
    let mut expansion = Expansion::new(word, escape, lookup);
    expansion.words = Some(Words::default());
    expansion.until(None, Escapes::Removed)?;
    let words = expansion.words.unwrap_or_default();
    Ok(words.all.into_iter().chain(words.current).collect())
}

/// Variables get their values; quotes and escapes stay, but for that of a dollar. As in what a heredoc holds.
pub fn expand_text(text: &str, escape: char, lookup: &Lookup<'_>) -> Result<String, String> {
    let mut expansion = Expansion::new(text, escape, lookup);
    let mut out = String::new();
    while let Some(c) = expansion.chars.next() {
        match c {
            '$' => out.push_str(&expansion.dollar()?),
            c if c == escape && expansion.chars.peek() == Some(&'$') => out.extend(expansion.chars.next()),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    Removed,
    /// They mean something to the pattern.
    Kept,
}

#[derive(Default)]
struct Words {
    all: Vec<String>,
    current: Option<String>,
}

struct Expansion<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    escape: char,
    lookup: &'a Lookup<'a>,
    words: Option<Words>,
    depth: usize,
}

/// Braces in braces: more are nobody's wish, and would use up the stack.
const DEPTH_MOST: usize = 100;

impl<'a> Expansion<'a> {
    fn new(text: &'a str, escape: char, lookup: &'a Lookup<'a>) -> Expansion<'a> {
        Expansion { chars: text.chars().peekable(), escape, lookup, words: None, depth: 0 }
    }

    /// To the end, or to a character that ends it and is taken.
    fn until(&mut self, end: Option<char>, escapes: Escapes) -> Result<String, String> {
        let mut out = String::new();
        while let Some(c) = self.chars.next() {
            if Some(c) == end {
                return Ok(out);
            }
            match c {
                '\'' => {
                    let text = self.single_quoted()?;
                    self.add_quoted(&text);
                    out.push_str(&text);
                }
                '"' => {
                    let text = self.double_quoted()?;
                    self.add_quoted(&text);
                    out.push_str(&text);
                }
                '$' => {
                    let text = self.dollar()?;
                    self.add(&text);
                    out.push_str(&text);
                }
                c if c == self.escape => {
                    let next = self.chars.next();
                    let kept = (escapes == Escapes::Kept).then_some(c);
                    // At the very end it stands for nothing.
                    let text: String = kept.into_iter().chain(next).collect();
                    self.add_quoted(&text);
                    out.push_str(&text);
                }
                c => {
                    self.add(c.encode_utf8(&mut [0; 4]));
                    out.push(c);
                }
            }
        }
        match end {
            None => Ok(out),
            Some(end) => Err(format!("{end:?} is missing")),
        }
    }

    fn top(&mut self) -> Option<&mut Words> {
        if self.depth > 0 { None } else { self.words.as_mut() }
    }

    /// What stays in its word, whatever it has in it.
    fn add_quoted(&mut self, text: &str) {
        if let Some(words) = self.top() {
            words.current.get_or_insert_default().push_str(text);
        }
    }

    fn add(&mut self, text: &str) {
        if let Some(words) = self.top() {
            for c in text.chars() {
                if c.is_whitespace() {
                    words.all.extend(words.current.take());
                } else {
                    words.current.get_or_insert_default().push(c);
                }
            }
        }
    }

    fn single_quoted(&mut self) -> Result<String, String> {
        let mut out = String::new();
        for c in self.chars.by_ref() {
            if c == '\'' {
                return Ok(out);
            }
            out.push(c);
        }
        Err("a single quote is missing".to_owned())
    }

    fn double_quoted(&mut self) -> Result<String, String> {
        let mut out = String::new();
        while let Some(c) = self.chars.next() {
            match c {
                '"' => return Ok(out),
                '$' => {
                    // Not a place where words are split.
                    self.depth += 1;
                    let value = self.dollar();
                    self.depth -= 1;
                    out.push_str(&value?);
                }
                c if c == self.escape => match self.chars.peek() {
                    Some('"' | '$') => out.extend(self.chars.next()),
                    Some(next) if *next == self.escape => out.extend(self.chars.next()),
                    _ => out.push(c),
                },
                c => out.push(c),
            }
        }
        Err("a double quote is missing".to_owned())
    }

    /// After a dollar.
    fn dollar(&mut self) -> Result<String, String> {
        if self.chars.peek() != Some(&'{') {
            let name = self.name();
            return Ok(if name.is_empty() {
                "$".to_owned()
            } else {
                (self.lookup)(&name).unwrap_or_default()
            });
        }
        self.chars.next();
        if self.depth >= DEPTH_MOST {
            return Err(format!("more than {DEPTH_MOST} variables within each other"));
        }
        self.depth += 1;
        let value = self.braced();
        self.depth -= 1;
        value
    }

    /// After `${`.
    fn braced(&mut self) -> Result<String, String> {
        let name = self.name();
        let value = (self.lookup)(&name);
        let missing = || format!("${{{name}: \"}}\" is missing");
        if name.is_empty() {
            return Err(match self.chars.peek() {
                None => missing(),
                Some(_) => "${: a variable's name is missing".to_owned(),
            });
        }
        let mut operator = self.chars.next().ok_or_else(missing)?;
        if operator == '}' {
            return Ok(value.unwrap_or_default());
        }
        let colon = operator == ':';
        if colon {
            operator = self.chars.next().ok_or_else(missing)?;
        }
        let there = value.as_ref().filter(|v| !colon || !v.is_empty());
        match operator {
            '-' | '+' | '?' => {
                let word = self.until(Some('}'), Escapes::Removed).map_err(|e| format!("${{{name}: {e}"))?;
                match (operator, there) {
                    ('-', None) | ('+', Some(_)) => Ok(word),
                    ('+', None) => Ok(String::new()),
                    (_, Some(value)) => Ok(value.clone()),
                    (_, None) => Err(match (&word[..], colon) {
                        ("", false) => format!("{name} is not set"),
                        ("", true) => format!("{name} is not set, or empty"),
                        (word, _) => format!("{name}: {word}"),
                    }),
                }
            }
            '#' | '%' if !colon => {
                let longest = self.chars.next_if_eq(&operator).is_some();
                let pattern = self.until(Some('}'), Escapes::Kept).map_err(|e| format!("${{{name}: {e}"))?;
                let pattern = Pattern::new(&pattern, self.escape);
                let value = value.unwrap_or_default();
                Ok(match operator {
                    '#' => value[pattern.prefix(&value, longest).unwrap_or(0)..].to_owned(),
                    _ => value[..pattern.suffix(&value, longest).unwrap_or(value.len())].to_owned(),
                })
            }
            '/' if !colon => {
                let all = self.chars.next_if_eq(&'/').is_some();
                let pattern = self.until(Some('/'), Escapes::Kept).map_err(|e| format!("${{{name}: {e}"))?;
                let by = self.until(Some('}'), Escapes::Removed).map_err(|e| format!("${{{name}: {e}"))?;
                Ok(Pattern::new(&pattern, self.escape).replace(&value.unwrap_or_default(), &by, all))
            }
            _ => {
                let colon = if colon { ":" } else { "" };
                Err(format!("${{{name}{colon}{operator}: known are - + ? :- :+ :? # ## % %% / //"))
            }
        }
    }

    /// Letters, digits and underscores; what begins with a digit has digits alone, and what is neither is one character.
    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.chars.peek().copied() {
            let fits = match name.chars().next() {
                None if matches!(c, '@' | '*' | '#' | '?' | '-' | '$' | '!') => {
                    self.chars.next();
                    return c.to_string();
                }
                Some(first) if first.is_ascii_digit() => c.is_ascii_digit(),
                _ => c.is_alphanumeric() || c == '_',
            };
            if !fits {
                break;
            }
            name.push(c);
            self.chars.next();
        }
        name
    }
}

/// A shell's pattern: `*`, `?`, and everything else as itself; what is escaped, too.
struct Pattern(Vec<Part>);

enum Part {
    Any,
    One,
    Char(char),
}

impl Pattern {
    fn new(text: &str, escape: char) -> Pattern {
        let mut chars = text.chars();
        let mut parts = Vec::new();
        while let Some(c) = chars.next() {
            parts.push(match c {
                '*' => Part::Any,
                '?' => Part::One,
                c if c == escape => Part::Char(chars.next().unwrap_or(c)),
                c => Part::Char(c),
            });
        }
        Pattern(parts)
    }

    /// Whether it is the whole of `text`. Only the last `*` is ever tried again, so that this ends soon.
    fn fits(&self, text: &[char]) -> bool {
        let (mut p, mut t) = (0, 0);
        let mut star = None;
        loop {
            match (self.0.get(p), text.get(t)) {
                (None, None) => return true,
                (Some(Part::Any), _) => {
                    star = Some((p + 1, t));
                    p += 1;
                    continue;
                }
                (Some(Part::One), Some(_)) => {
                    (p, t) = (p + 1, t + 1);
                    continue;
                }
                (Some(Part::Char(c)), Some(found)) if c == found => {
                    (p, t) = (p + 1, t + 1);
                    continue;
                }
                _ => {}
            }
            match star {
                Some((after, at)) if at < text.len() => {
                    star = Some((after, at + 1));
                    (p, t) = (after, at + 1);
                }
                _ => return false,
            }
        }
    }

    /// The length in bytes of the shortest or longest beginning that fits.
    fn prefix(&self, text: &str, longest: bool) -> Option<usize> {
        let chars: Vec<char> = text.chars().collect();
        let fits = |n: &usize| self.fits(&chars[..*n]);
        let found = if longest { (0..=chars.len()).rev().find(fits) } else { (0..=chars.len()).find(fits) };
        found.map(|n| bytes(&chars[..n]))
    }

    /// Where the shortest or longest end that fits begins.
    fn suffix(&self, text: &str, longest: bool) -> Option<usize> {
        let chars: Vec<char> = text.chars().collect();
        let fits = |n: &usize| self.fits(&chars[*n..]);
        let found = if longest { (0..=chars.len()).find(fits) } else { (0..=chars.len()).rev().find(fits) };
        found.map(|n| bytes(&chars[..n]))
    }

    /// The longest match that begins first, or all that do not overlap.
    fn replace(&self, text: &str, by: &str, all: bool) -> String {
        let chars: Vec<char> = text.chars().collect();
        let mut out = String::new();
        let mut at = 0;
        let mut more = !self.0.is_empty();
        while at < chars.len() {
            let end = if more {
                (at + 1..=chars.len()).rev().find(|end| self.fits(&chars[at..*end]))
            } else {
                None
            };
            match end {
                Some(end) => {
                    out.push_str(by);
                    at = end;
                    more = all;
                }
                None => {
                    out.push(chars[at]);
                    at += 1;
                }
            }
        }
        out
    }
}

fn bytes(chars: &[char]) -> usize {
    chars.iter().map(|c| c.len_utf8()).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(name: &str) -> Option<String> {
        let value = match name {
            "a" => "A",
            "empty" => "",
            "list" => "x  y z",
            "path" => "/usr/local/bin/tool.tar.gz",
            "deux" => "éé",
            "1" => "one",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn words_lose_quotes_and_get_values() {
        for (word, expected) in [
            ("plain", "plain"),
            ("$a", "A"),
            ("${a}b", "Ab"),
            ("$ab", ""),
            ("$a.b", "A.b"),
            ("$1a", "onea"),
            ("$", "$"),
            ("a$ b", "a$ b"),
            ("$?", ""),
            (r"\$a", "$a"),
            (r"'$a\'", r"$a\"),
            (r#""$a 'x' \" \$ \\ \n""#, r#"A 'x' " $ \ \n"#),
            (r"a\ b\\", r"a b\"),
            (r"end\", "end"),
            ("'a'\"b\"c", "abc"),
            ("${a:-x}${none:-x}${empty:-x}", "Axx"),
            ("${a-x}${none-x}${empty-x}", "Ax"),
            ("${a:+x}${none:+x}${empty:+x}", "x"),
            ("${a+x}${none+x}${empty+x}", "xx"),
            ("${a?}${a:?}${empty?}", "AA"),
            ("${none:-${a}b}", "Ab"),
            ("${none:-${nor:-$a}}", "A"),
            ("${none:-'}'}", "}"),
            (r"${none:-\}}", "}"),
            ("${none:-a b}", "a b"),
            ("${path#*/}", "usr/local/bin/tool.tar.gz"),
            ("${path##*/}", "tool.tar.gz"),
            ("${path%.*}", "/usr/local/bin/tool.tar"),
            ("${path%%.*}", "/usr/local/bin/tool"),
            ("${path#nothing}", "/usr/local/bin/tool.tar.gz"),
            ("${path%?z}", "/usr/local/bin/tool.tar."),
            (r"${path#\*}", "/usr/local/bin/tool.tar.gz"),
            ("${deux#?}${deux%é}", "éé"),
            ("${path/l/L}", "/usr/Local/bin/tool.tar.gz"),
            ("${path//l/L}", "/usr/LocaL/bin/tooL.tar.gz"),
            (r"${path//\//-}", "-usr-local-bin-tool.tar.gz"),
            ("${path/t*/T}", "/usr/local/bin/T"),
            ("${path//[.]/x}", "/usr/local/bin/tool.tar.gz"),
            ("${path//./}", "/usr/local/bin/tooltargz"),
            ("${none//a/b}x", "x"),
        ] {
            assert_eq!(expand(word, '\\', &lookup).as_deref(), Ok(expected), "{word}");
        }
        assert_eq!(expand("`$a\\", '`', &lookup).as_deref(), Ok("$a\\"));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (word, expected) in [
            ("'a", "a single quote is missing"),
            ("\"a", "a double quote is missing"),
            ("${", "${: \"}\" is missing"),
            ("${a", "${a: \"}\" is missing"),
            ("${}", "${: a variable's name is missing"),
            ("${:-x}", "${: a variable's name is missing"),
            ("${a:-x", "${a: '}' is missing"),
            ("${none?}", "none is not set"),
            ("${empty:?}", "empty is not set, or empty"),
            ("${none:?give one}", "none: give one"),
            ("${a!x}", "${a!: known are - + ? :- :+ :? # ## % %% / //"),
            ("${a:#x}", "${a:#: known are - + ? :- :+ :? # ## % %% / //"),
            ("${a/x}", "${a: '/' is missing"),
        ] {
            assert_eq!(expand(word, '\\', &lookup), Err(expected.to_owned()), "{word}");
        }
        let deep = "${x:-".repeat(5000) + &"}".repeat(5000);
        assert!(expand(&deep, '\\', &lookup).unwrap_err().contains("within each other"));
    }

    #[test]
    fn variables_may_become_several_words() {
        for (word, expected) in [
            ("a b", &["a", "b"][..]),
            ("$list", &["x", "y", "z"]),
            ("a$list.", &["ax", "y", "z."]),
            ("\"$list\"", &["x  y z"]),
            ("'' $empty \"\"", &["", ""]),
            (r"a\ b", &["a b"]),
            ("${none:-p q}", &["p", "q"]),
            ("", &[]),
        ] {
            assert_eq!(expand_words(word, '\\', &lookup).unwrap(), expected, "{word}");
        }
    }

    #[test]
    fn texts_keep_all_but_their_variables() {
        let text = "$a \"${a}\" '$a' \\$a \\n ${none:-d}\n";
        assert_eq!(expand_text(text, '\\', &lookup).unwrap(), "A \"A\" 'A' $a \\n d\n");
    }

    #[test]
    fn words_are_split_where_nothing_is_quoted() {
        for (text, expected) in [
            ("a  b\tc ", &["a", "b", "c"][..]),
            ("'a b' \"c d\"e", &["'a b'", "\"c d\"e"]),
            (r#"a\ b "x\" y" 'p\' q"#, &[r"a\ b", r#""x\" y""#, r"'p\'", "q"]),
            ("unended 'a b", &["unended", "'a b"]),
            ("", &[]),
        ] {
            let found: Vec<_> = split(text, '\\').into_iter().map(|r| &text[r]).collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn fuzz_words(text in "(\\$|\\{|\\}|a|:|-|\\+|\\?|#|%|/|\\*|'|\"|\\\\| |é){0,40}") {
            for range in split(&text, '\\') {
                prop_assert!(!text[range].is_empty());
            }
            let _word = expand(&text, '\\', &lookup);
            let _text = expand_text(&text, '\\', &lookup);
            if let Ok(words) = expand_words(&text, '\\', &|_| None) {
                prop_assert!(words.len() <= text.len());
            }
        }
    }
}
