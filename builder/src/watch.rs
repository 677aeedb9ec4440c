//! What is seen of a build? Steps with their times on a terminal, drawn again as they come; plain lines elsewhere, never cut; or JSON
//! lines for programs.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::json;

use crate::exec::{Event, How};

/// Lines of a command that are shown while it runs.
const TAIL: usize = 6;
/// Lines of a command that failed.
const LAST: usize = 40;
/// How often a terminal is drawn, in milliseconds.
const OFTEN: u128 = 80;

/// `--progress`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Style {
    Auto,
    Plain,
    Tty,
    Rawjson,
    Quiet,
}

/// Hears of steps and tells of them.
#[derive(Debug)]
pub struct Watch {
    style: Style,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    steps: BTreeMap<usize, Step>,
    /// Lines on the terminal that are drawn again.
    lines: usize,
    drawn: Option<Instant>,
    /// Steps that are told of for good.
    told: usize,
    log: Option<std::fs::File>,
    log_path: Option<PathBuf>,
}

#[derive(Debug)]
struct Step {
    title: String,
    began: Instant,
    /// What is no whole line yet.
    rest: Vec<u8>,
    last: Vec<String>,
    done: Option<(How, f64)>,
}

impl Watch {
    /// `log` takes all that commands say.
    pub fn new(style: Style, log: Option<PathBuf>) -> Watch {
        let style = match style {
            Style::Auto if std::io::stderr().is_terminal() => Style::Tty,
            Style::Auto => Style::Plain,
            other => other,
        };
        let mut state = State::default();
        if let Some(path) = log {
            state.log = std::fs::File::create(&path).ok();
            state.log_path = state.log.is_some().then_some(path);
        }
        Watch { style, began: Instant::now(), state: Mutex::new(state) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step begins, says something, or ends.
    pub fn hear(&self, event: Event<'_>) {
        let mut state = self.state();
        if self.style == Style::Rawjson {
            let at = self.began.elapsed().as_secs_f64();
            let value = match &event {
                Event::Begin { step, title } => {
                    json!({"event": "begin", "step": step, "title": title, "time": at})
                }
                Event::Output { step, bytes } => {
                    json!({"event": "output", "step": step, "text": String::from_utf8_lossy(bytes), "time": at})
                }
                Event::Note { step, text } => {
                    json!({"event": "note", "step": step, "text": text, "time": at})
                }
                Event::Done { step, how, seconds } => {
                    let how = match how {
                        How::Made => "done",
                        How::Cached => "cached",
                        How::Failed => "failed",
                    };
                    json!({"event": how, "step": step, "seconds": seconds, "time": at})
                }
            };
            tell(&format!("{value}\n"));
        }
        match event {
            Event::Begin { step, title } => {
                state.log(&format!("#{step} {title}\n"));
                let new = Step {
                    title: title.to_owned(),
                    began: Instant::now(),
                    rest: Vec::new(),
                    last: Vec::new(),
                    done: None,
                };
                state.steps.insert(step, new);
                if self.style == Style::Plain {
                    tell(&format!("#{step} {title}\n"));
                }
            }
            Event::Note { step: 0, text } => {
                drop(state);
                if self.style != Style::Rawjson {
                    self.say(text);
                }
                return;
            }
            Event::Note { step, text } => {
                if self.style == Style::Plain {
                    tell(&format!("#{step} {text}\n"));
                }
            }
            Event::Output { step, bytes } => {
                let Some(found) = state.steps.get_mut(&step) else { return };
                found.rest.extend_from_slice(bytes);
                let mut lines = Vec::new();
                while let Some(at) = found.rest.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = found.rest.drain(..=at).collect();
                    lines.push(printable(&line));
                }
                // A line without an end is shown when it is long, so that nothing grows without end.
                if found.rest.len() > 1 << 16 {
                    lines.push(printable(&std::mem::take(&mut found.rest)));
                }
                self.lines(&mut state, step, lines);
            }
            Event::Done { step, how, seconds } => {
                let rest =
                    state.steps.get_mut(&step).map(|s| std::mem::take(&mut s.rest)).unwrap_or_default();
                if !rest.is_empty() {
                    self.lines(&mut state, step, vec![printable(&rest)]);
                }
                if let Some(found) = state.steps.get_mut(&step) {
                    found.done = Some((how, seconds));
                }
                let text = match how {
                    How::Made => format!("#{step} DONE {seconds:.1}s\n"),
                    How::Cached => format!("#{step} CACHED\n"),
                    How::Failed => format!("#{step} ERROR {seconds:.1}s\n"),
                };
                state.log(&text);
                if self.style == Style::Plain {
                    tell(&text);
                }
            }
        }
        if self.style == Style::Tty {
            state.draw(false);
        }
    }

    fn lines(&self, state: &mut State, step: usize, lines: Vec<String>) {
        let Some(found) = state.steps.get_mut(&step) else { return };
        let seconds = found.began.elapsed().as_secs_f64();
        let mut text = String::new();
        for line in lines {
            text.push_str(&format!("#{step} {seconds:.3} {line}\n"));
            found.last.push(line);
        }
        if found.last.len() > LAST {
            let more = found.last.len() - LAST;
            found.last.drain(..more);
        }
        state.log(&text);
        if self.style == Style::Plain && !text.is_empty() {
            tell(&text);
        }
    }

    /// The end of what a step said, for who did not see it go by.
    pub fn end_of(&self, step: usize) -> Option<String> {
        if matches!(self.style, Style::Plain | Style::Rawjson) {
            return None;
        }
        let state = self.state();
        let found = state.steps.get(&step)?;
        let lines: String = found.last.iter().map(|l| format!("{l}\n")).collect();
        Some(format!("{}:\n{lines}", found.title))
    }

    /// Where all that was said is kept.
    pub fn log(&self) -> Option<PathBuf> {
        self.state().log_path.clone()
    }

    /// A line for people, beside the steps.
    pub fn say(&self, text: &str) {
        match self.style {
            Style::Quiet => {}
            Style::Rawjson => tell(&format!("{}\n", json!({"event": "message", "text": text}))),
            Style::Tty => {
                let mut state = self.state();
                state.draw(true);
                tell(&format!("{text}\n"));
            }
            _ => tell(&format!("{text}\n")),
        }
    }

    /// Nothing more comes.
    pub fn end(&self) {
        if self.style == Style::Tty {
            self.state().draw(true);
        }
    }
}

impl State {
    fn log(&mut self, text: &str) {
        if let Some(log) = &mut self.log {
            // It is a convenience; the build goes on without it.
            log.write_all(text.as_bytes()).unwrap_or_default();
        }
    }

    /// Draw what runs; what has ended is told once and for all.
    fn draw(&mut self, last: bool) {
        let now = Instant::now();
        let ended = self.steps.range(self.told + 1..).next().is_some_and(|(_, s)| s.done.is_some());
        if !last && !ended && self.drawn.is_some_and(|d| (now - d).as_millis() < OFTEN) {
            return;
        }
        self.drawn = Some(now);
        let mut text = match self.lines {
            0 => String::new(),
            n => format!("\x1b[{n}A\x1b[J"),
        };
        let width =
            rustix::termios::tcgetwinsize(std::io::stderr()).map_or(80, |w| usize::from(w.ws_col)).max(20);
        let line = |text: &str| -> String {
            let cut: String = text.chars().take(width - 1).collect();
            format!("{cut}\n")
        };
        while let Some(step) = self.steps.get(&(self.told + 1)) {
            let Some((how, seconds)) = step.done else { break };
            let told = match how {
                How::Made => format!("\x1b[32m => {}\x1b[0m {seconds:.1}s", cut(&step.title, width - 14)),
                How::Cached => format!("\x1b[36m => CACHED {}\x1b[0m", cut(&step.title, width - 14)),
                How::Failed => {
                    format!("\x1b[31m => ERROR {}\x1b[0m {seconds:.1}s", cut(&step.title, width - 20))
                }
            };
            text.push_str(&told);
            text.push('\n');
            self.told += 1;
        }
        self.lines = 0;
        if !last {
            for step in self.steps.values().filter(|s| s.done.is_none()) {
                let seconds = step.began.elapsed().as_secs_f64();
                text.push_str(&line(&format!(" => {} {seconds:.1}s", cut(&step.title, width - 14))));
                self.lines += 1;
                for said in step.last.iter().rev().take(TAIL).rev() {
                    text.push_str(&line(&format!("    {said}")));
                    self.lines += 1;
                }
            }
        }
        tell(&text);
    }
}

fn cut(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

/// A line that does nothing to a terminal. Of what was written over, the last stands.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches(['\n', '\r']);
    let text = text.rsplit('\r').next().unwrap_or_default();
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            // ECMA-48: a control sequence ends with a letter or one of @[\]^_`{|}~.
            '\x1b' if chars.next_if_eq(&'[').is_some() => {
                while chars.next_if(|c| !matches!(c, '@'..='~')).is_some() {}
                chars.next();
            }
            '\t' => out.push('\t'),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// That nobody reads it is no reason to stop.
fn tell(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn lines_do_nothing_to_a_terminal() {
        for (line, expected) in [
            (&b"plain\n"[..], "plain"),
            (b"\x1b[31mred\x1b[0m\n", "red"),
            (b"10%\r50%\r100%\n", "100%"),
            (b"crlf\r\n", "crlf"),
            (b"\x1b]0;title\x07x\n", "]0;titlex"),
            (b"a\tb\x08\n", "a\tb"),
            (b"\xff\n", "\u{fffd}"),
        ] {
            assert_eq!(printable(line), expected);
        }
    }
}
