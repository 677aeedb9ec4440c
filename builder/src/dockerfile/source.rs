//! Where in a Dockerfile is something, and how is it shown? Places are bytes of the text, so that a mark can be drawn under
//! exactly what is meant, also in the middle of lines that go on.

use std::fmt::Write;
use std::ops::Range;

/// A Dockerfile's text and what it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub name: String,
    pub text: String,
}

/// Bytes of a source.
pub type Span = Range<usize>;

/// What is wrong, where, and what can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub message: String,
    pub span: Span,
    pub hint: Option<String>,
}

impl Problem {
    pub fn new(span: Span, message: impl Into<String>) -> Problem {
        Problem { message: message.into(), span, hint: None }
    }

    pub fn hint(self, hint: impl Into<String>) -> Problem {
        Problem { hint: Some(hint.into()), ..self }
    }
}

/// Lines shown before and after those that are marked.
const AROUND: usize = 2;
/// Lines of a long instruction that are shown.
const MOST: usize = 12;
/// Characters of a line that are shown.
const WIDTH: usize = 160;

impl Source {
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Source {
        Source { name: name.into(), text: text.into() }
    }

    /// The line that a byte is in, counted from 1.
    pub fn line(&self, at: usize) -> usize {
        self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|b| **b == b'\n').count() + 1
    }

    /// The problem as an error: its place and its text; the lines with a mark are shown below.
    pub fn error(&self, problem: Problem) -> anyhow::Error {
        let Problem { message, span, hint } = problem;
        let text = format!("{}:{}: {message}", self.name, self.line(span.start));
        let note = report::Note { kind: Some(report::Kind::BadInput), hint };
        anyhow::Error::msg(text).context(note).context(report::Excerpt(self.excerpt(&span)))
    }

    /// The lines of `span` with those around, numbered, and a mark under what is meant.
    ///
    /// ```text
    ///    1 | FROM scratch
    ///    2 | RUNN echo
    ///      | ^^^^
    /// ```
    pub fn excerpt(&self, span: &Span) -> String {
        let (first, last) = (self.line(span.start), self.line(span.end.max(span.start + 1) - 1));
        let last = last.max(first);
        let mut out = String::new();
        let mut start = 0;
        for (n, line) in self.text.split_inclusive('\n').enumerate().map(|(n, line)| (n + 1, line)) {
            let bytes = start..start + line.len();
            start = bytes.end;
            let line = line.trim_end();
            let marked = (first..=last).contains(&n);
            if n + AROUND < first || n > last + AROUND || (n > first + MOST && n + 1 < last) {
                continue;
            }
            if n == first + MOST && n + 1 < last {
                out.push_str("     | …\n");
                continue;
            }
            let shown = printable(line, WIDTH);
            writeln!(out, "{}", format!("{n:4} | {shown}").trim_end()).unwrap_or_default();
            if marked {
                let from = span.start.clamp(bytes.start, bytes.start + line.len()) - bytes.start;
                let to = span.end.clamp(bytes.start, bytes.start + line.len()) - bytes.start;
                let from = from.max(line.len() - line.trim_start().len()).min(line.len());
                let before = printable(&line[..floor(line, from)], WIDTH).chars().count();
                let under =
                    printable(&line[floor(line, from)..floor(line, to.max(from))], WIDTH).chars().count();
                let under = under.clamp(1, (WIDTH + 1).saturating_sub(before).max(1));
                writeln!(out, "     | {}{}", " ".repeat(before.min(WIDTH)), "^".repeat(under))
                    .unwrap_or_default();
            }
        }
        out
    }
}

fn floor(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
}

/// What a terminal shows as itself; tabs as spaces, so that marks stand where they belong.
fn printable(text: &str, most: usize) -> String {
    let mut shown: String = text
        .chars()
        .take(most)
        .map(|c| match c {
            '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect();
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_mark_what_is_meant() {
        let text = "FROM scratch\n\nRUN a && \\\n\tbb && \\\n  c\nCMD x\nUSER y\nLABEL z=1\n";
        let source = Source::new("Dockerfile", text);
        let at = |what: &str| text.find(what).map(|at| at..at + what.len()).unwrap();
        for (span, expected) in [
            (at("scratch"), "   1 | FROM scratch\n     |      ^^^^^^^\n   2 |\n   3 | RUN a && \\\n"),
            (
                at("bb"),
                "   2 |\n   3 | RUN a && \\\n   4 |  bb && \\\n     |  ^^\n   5 |   c\n   6 | CMD x\n",
            ),
            (
                at("a && \\\n\tbb && \\\n  c"),
                "   1 | FROM scratch\n   2 |\n   3 | RUN a && \\\n     |     ^^^^^^\n   4 |  bb && \\\n     |  ^^^^^^^\n   5 |   c\n     \
                 |   ^\n   6 | CMD x\n   7 | USER y\n",
            ),
            (text.len()..text.len(), "   7 | USER y\n   8 | LABEL z=1\n"),
        ] {
            assert_eq!(source.excerpt(&span), expected, "{span:?}");
        }
    }

    #[test]
    fn long_and_strange_lines_stay_readable() {
        let long = format!("FROM {}\n", "é".repeat(300));
        let source = Source::new("x", long);
        let shown = source.excerpt(&(5..9));
        assert!(shown.lines().all(|l| l.chars().count() < 180), "{shown}");
        assert!(shown.contains("     |      ^^\n"), "{shown}");
        let many = Source::new("x", "RUN a \\\n".repeat(100));
        assert!(many.excerpt(&(0..800)).lines().count() < 40);
        assert!(Source::new("x", "RUN \u{1b}[31m").excerpt(&(0..3)).contains('\u{fffd}'));
    }

    #[test]
    fn errors_say_where() {
        let source = Source::new("sub/Dockerfile", "FROM a\nRUNN b\n");
        let error = source.error(Problem::new(7..11, "unknown instruction \"RUNN\"").hint("RUN?"));
        assert_eq!(report::line(&error), "sub/Dockerfile:2: unknown instruction \"RUNN\"");
        let shown = &error.downcast_ref::<report::Excerpt>().unwrap().0;
        assert_eq!(shown, "   1 | FROM a\n   2 | RUNN b\n     | ^^^^\n");
        assert_eq!(report::hint(&error).as_deref(), Some("RUN?"));
        assert_eq!(report::kind(&error), Some(report::Kind::BadInput));
    }
}
