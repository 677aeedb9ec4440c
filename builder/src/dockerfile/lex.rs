//! What are a Dockerfile's logical lines? Directives, then one line for each instruction: comments gone, lines that go on joined,
//! and the heredocs that belong to it. A logical line knows for each of its bytes where in the file it stands.

use std::ops::Range;

use super::source::{Problem, Source, Span};
use super::words;

/// A file in logical lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines {
    pub directives: Directives,
    pub lines: Vec<Line>,
    /// Blank lines where a line should have gone on; they are passed over.
    pub blank: Vec<Span>,
}

/// `# name=value` at the very top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives {
    /// Which frontend the author had in mind; it is never fetched.
    pub syntax: Option<(String, Span)>,
    /// A backslash or a backtick.
    pub escape: char,
    /// What is to be checked, and whether that is an error.
    pub check: Option<(String, Span)>,
}

/// An instruction's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub text: String,
    pub heredocs: Vec<Heredoc>,
    /// From where in the text on it stands where in the file.
    pieces: Vec<(usize, usize)>,
}

/// `<<NAME`, and what stands between the line and `NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    pub name: String,
    /// The word as it stands in the line.
    pub word: String,
    /// `<<"NAME"`: variables stay as they are.
    pub quoted: bool,
    /// Without the tabs that `<<-` takes away.
    pub content: String,
    /// Of the word.
    pub span: Span,
}

const TAKE_HEREDOCS: [&str; 3] = ["RUN", "COPY", "ADD"];

impl Line {
    /// Where bytes of the text stand in the file.
    pub fn span(&self, range: Range<usize>) -> Span {
        let place = |at: usize| {
            let piece = self.pieces.iter().rfind(|(from, _)| *from <= at).copied().unwrap_or_default();
            piece.1 + (at - piece.0)
        };
        let start = place(range.start);
        // The end is behind the last byte, which need not be where the next begins.
        if range.is_empty() { start..start } else { start..place(range.end - 1) + 1 }
    }

    /// Of all of it but the heredocs.
    pub fn whole(&self) -> Span {
        self.span(0..self.text.trim_end().len())
    }
}

/// Lines of a text, without their ends; and where each begins and ends, its end included.
struct Physical<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Iterator for Physical<'a> {
    type Item = (Range<usize>, &'a str);

    fn next(&mut self) -> Option<(Range<usize>, &'a str)> {
        let rest = &self.text[self.at..];
        if rest.is_empty() {
            return None;
        }
        let length = rest.find('\n').map_or(rest.len(), |at| at + 1);
        let line = &rest[..length];
        let bytes = self.at..self.at + length;
        self.at = bytes.end;
        let line = line.strip_suffix('\n').unwrap_or(line);
        Some((bytes, line.strip_suffix('\r').unwrap_or(line)))
    }
}

/// Read a file's lines.
pub fn read(source: &Source) -> Result<Lines, Problem> {
    let text = &source.text;
    let at = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut lines = Physical { text, at };
    let directives = directives(&mut lines)?;
    let mut found = Lines { directives, lines: Vec::new(), blank: Vec::new() };
    let escape = found.directives.escape;
    while let Some((bytes, line)) = lines.next() {
        let shown = line.trim_start();
        if shown.is_empty() || shown.starts_with('#') {
            continue;
        }
        let mut joined = Line { text: String::new(), heredocs: Vec::new(), pieces: Vec::new() };
        let mut more = joined.add(shown, bytes.start + (line.len() - shown.len()), escape);
        while more && let Some((bytes, line)) = lines.next() {
            let shown = line.trim_start();
            if shown.is_empty() {
                found.blank.push(bytes);
            } else if !shown.starts_with('#') {
                more = joined.add(line, bytes.start, escape);
            }
        }
        if joined.text.trim().is_empty() {
            continue;
        }
        joined.read_heredocs(&mut lines, escape)?;
        found.lines.push(joined);
    }
    Ok(found)
}

impl Line {
    /// Add a physical line, without the escape at its end; whether there is one.
    fn add(&mut self, line: &str, at: usize, escape: char) -> bool {
        let end = line.trim_end_matches([' ', '\t']);
        let without = end.strip_suffix(escape).filter(|rest| !rest.ends_with(escape));
        self.pieces.push((self.text.len(), at));
        self.text.push_str(without.unwrap_or(line));
        without.is_some()
    }

    fn read_heredocs(&mut self, lines: &mut Physical<'_>, escape: char) -> Result<(), Problem> {
        let mut names = self.text.split_whitespace();
        let mut name = names.next().unwrap_or_default();
        if name.eq_ignore_ascii_case("ONBUILD") {
            name = names.next().unwrap_or_default();
        }
        if !TAKE_HEREDOCS.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            return Ok(());
        }
        for range in words::split(&self.text, escape) {
            let Some((name, quoted, tabs)) = heredoc(&self.text[range.clone()], escape) else { continue };
            let span = self.span(range.clone());
            let mut content = String::new();
            let ended = loop {
                let Some((bytes, line)) = lines.next() else { break false };
                let strip =
                    |line: &'_ str| if tabs { line.trim_start_matches('\t').len() } else { line.len() };
                if line[line.len() - strip(line)..] == name {
                    break true;
                }
                let whole = &lines.text[bytes];
                content.push_str(&whole[whole.len() - strip(whole)..]);
            };
            if !ended {
                let problem = Problem::new(span, format!("heredoc {name} has no end"));
                return Err(problem.hint(format!("a line with nothing but {name} ends it")));
            }
            let word = self.text[range].to_owned();
            self.heredocs.push(Heredoc { name, word, quoted, content, span });
        }
        Ok(())
    }
}

/// A word that is a heredoc's: its name, whether that is quoted, and whether tabs are taken away.
fn heredoc(word: &str, escape: char) -> Option<(String, bool, bool)> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (rest, tabs) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
    if rest.contains('<') {
        return None;
    }
    let name = words::expand(rest, escape, &|name| Some(format!("${name}"))).ok()?;
    let quoted = rest.contains(['\'', '"', escape]);
    (!name.is_empty()).then_some((name, quoted, tabs))
}

fn directives(lines: &mut Physical<'_>) -> Result<Directives, Problem> {
    let mut found = Directives { syntax: None, escape: '\\', check: None };
    let mut escape = None;
    loop {
        let at = lines.at;
        let Some((bytes, line)) = lines.next() else { break };
        // The first line that is no directive ends them, whatever follows: dockerfile reference, "Parser directives".
        let Some((name, value)) = directive(line) else {
            lines.at = at;
            break;
        };
        let span = bytes.start..bytes.start + line.trim_end().len();
        let place = match name.as_str() {
            "syntax" => &mut found.syntax,
            "check" => &mut found.check,
            "escape" => &mut escape,
            _ => {
                lines.at = at;
                break;
            }
        };
        if place.is_some() {
            return Err(Problem::new(span, format!("the directive {name} stands here for the second time")));
        }
        *place = Some((value.to_owned(), span));
    }
    if let Some((value, span)) = escape {
        found.escape = match value.as_str() {
            "\\" => '\\',
            "`" => '`',
            _ => return Err(Problem::new(span, format!("escape is \\ or `, not {value:?}"))),
        };
    }
    Ok(found)
}

fn directive(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.strip_prefix('#')?.split_once('=')?;
    let (name, value) = (name.trim(), value.trim());
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric());
    (is_name && !value.is_empty()).then(|| (name.to_ascii_lowercase(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let read = read(&Source::new("x", text)).unwrap_or_else(|e| panic!("{text:?}: {e:?}"));
        read.lines.into_iter().map(|l| l.text).collect()
    }

    #[test]
    fn lines_go_on_and_comments_go() {
        for (text, expected) in [
            ("FROM a\nRUN b\n", &["FROM a", "RUN b"][..]),
            ("FROM a", &["FROM a"]),
            ("\u{feff}FROM a\r\nRUN b \\\r\n c\r\n", &["FROM a", "RUN b  c"]),
            ("  RUN a \\\n  b\\\nc\n", &["RUN a   bc"]),
            ("RUN a \\ \t\n b", &["RUN a  b"]),
            ("RUN a \\\n# no\n  # no\n b # yes\n", &["RUN a  b # yes"]),
            ("RUN a \\\n\n \n b\nRUN c", &["RUN a  b", "RUN c"]),
            ("RUN a \\\\\nRUN b", &["RUN a \\\\", "RUN b"]),
            ("# c\n\n \t\nRUN a", &["RUN a"]),
            ("RUN a \\", &["RUN a "]),
            ("\\\nRUN a", &["RUN a"]),
            ("\\\n\\\n", &[]),
            ("# escape=`\nRUN a `\nb\\\nRUN c", &["RUN a b\\", "RUN c"]),
            ("", &[]),
        ] {
            assert_eq!(lines(text), expected, "{text:?}");
        }
        let blank = read(&Source::new("x", "RUN a \\\n\n b")).unwrap().blank;
        assert!(matches!(&blank[..], [only] if *only == (8..9)));
    }

    #[test]
    fn directives_stand_at_the_top() {
        let read = |text: &str| read(&Source::new("x", text)).map(|l| l.directives);
        let found =
            read("# syntax=docker/dockerfile:1\n#ESCAPE = ` \n#check=skip=all;error=true\nFROM a").unwrap();
        assert_eq!(found.syntax, Some(("docker/dockerfile:1".into(), 0..28)));
        assert_eq!(found.escape, '`');
        assert_eq!(found.check.map(|c| c.0).as_deref(), Some("skip=all;error=true"));
        for text in
            ["# a comment\n# escape=`\n", "\n# escape=`\n", "FROM a\n# escape=`\n", "# other=1\n# escape=`\n"]
        {
            assert_eq!(read(text).unwrap().escape, '\\', "{text:?}");
        }
        assert!(read("# escape=x\n").unwrap_err().message.contains("escape is"));
        assert!(read("# syntax=a\n# syntax=b\n").unwrap_err().message.contains("second time"));
    }

    #[test]
    fn heredocs_belong_to_their_line() {
        let text = "RUN <<EOF cat - <<-'B C' 3<<\"D\"\none\n\tEOF\nEOF\n\ttwo $a\n\t\tB C\nthree\nD\nCMD <<EOF\n\
                    COPY a<<b \"<<c\" <<<d /\nONBUILD copy <<e /f\n# kept\nx \\\ne\n";
        let found = read(&Source::new("x", text)).unwrap().lines;
        assert_eq!(found.len(), 4);
        let heredocs: Vec<_> =
            found[0].heredocs.iter().map(|h| (&h.name[..], h.quoted, &h.content[..])).collect();
        assert_eq!(
            heredocs,
            [("EOF", false, "one\n\tEOF\n"), ("B C", true, "two $a\n"), ("D", true, "three\n")]
        );
        assert_eq!(&text[found[0].heredocs[1].span.clone()], "<<-'B C'");
        assert_eq!(found[1].text, "CMD <<EOF");
        assert_eq!(found[2].heredocs, []);
        assert_eq!(found[3].heredocs[0].content, "# kept\nx \\\n");
        let problem = read(&Source::new("x", "FROM a\nRUN <<E\nx\n")).unwrap_err();
        assert_eq!((&problem.message[..], problem.span), ("heredoc E has no end", 11..14));
    }

    #[test]
    fn every_byte_has_its_place() {
        let text = "RUN one \\\n  # no\n  two \\\n\n three\n";
        let line = read(&Source::new("x", text)).unwrap().lines.remove(0);
        for word in ["one", "two", "three"] {
            let at = line.text.find(word).unwrap();
            assert_eq!(&text[line.span(at..at + word.len())], word);
        }
        assert_eq!(line.whole(), 0..text.len() - 1);
    }
}
