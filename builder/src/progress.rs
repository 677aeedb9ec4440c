//! What is seen of long work? A line for each blob on a terminal, rewritten as it comes; elsewhere a line when it has come; nothing if
//! nobody wants it.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use image::Digest;
use image::transfer::Event;

use crate::format::human;

/// How often a terminal is written to.
const OFTEN: Duration = Duration::from_millis(100);

/// Hears of events and tells of them.
#[derive(Debug)]
pub struct Progress {
    how: How,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Terminal,
    Lines,
    Silent,
}

#[derive(Debug, Default)]
struct State {
    blobs: BTreeMap<Digest, (u64, Option<u64>)>,
    /// In the order in which they began.
    running: Vec<Digest>,
    /// Lines on the terminal that are ours.
    lines: usize,
    last: Option<Instant>,
}

impl Progress {
    pub fn new(quiet: bool) -> Progress {
        let how = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => How::Silent,
            (false, true) => How::Terminal,
            (false, false) => How::Lines,
        };
        Progress { how, state: Mutex::default() }
    }

    pub fn hear(&self, event: Event) {
        if self.how == How::Silent {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = None;
        match event {
            Event::Begin { digest, size } => {
                state.blobs.insert(digest.clone(), (0, size));
                state.running.push(digest);
            }
            Event::Bytes { digest, count } => {
                if let Some((came, _)) = state.blobs.get_mut(&digest) {
                    *came += count;
                }
            }
            Event::Done { digest } => {
                let came = state.blobs.get(&digest).map_or(0, |(came, _)| *came);
                state.running.retain(|d| *d != digest);
                done = Some(format!("{}: done, {}", digest.short(), human::size(came)));
            }
            Event::Present { digest } => done = Some(format!("{}: already there", digest.short())),
        }
        match self.how {
            How::Lines => {
                if let Some(line) = done {
                    tell(&format!("{line}\n"));
                }
            }
            _ => state.draw(done.as_deref()),
        }
    }

    /// Whatever comes next is written below.
    pub fn end(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.how == How::Terminal && state.lines > 0 {
            tell(&format!("\x1b[{}A\x1b[J", state.lines));
            state.lines = 0;
        }
    }
}

/// That nobody reads it is no reason to stop.
fn tell(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).unwrap_or_default();
}

impl State {
    fn draw(&mut self, done: Option<&str>) {
        let now = Instant::now();
        if done.is_none() && self.last.is_some_and(|last| now - last < OFTEN) {
            return;
        }
        self.last = Some(now);
        let mut text = match self.lines {
            0 => String::new(),
            n => format!("\x1b[{n}A\x1b[J"),
        };
        if let Some(done) = done {
            text.push_str(done);
            text.push('\n');
        }
        for digest in &self.running {
            let (came, size) = self.blobs.get(digest).copied().unwrap_or_default();
            let bar = match size {
                Some(size) if size > 0 => {
                    let full = ((came.min(size) * 30) / size) as usize;
                    format!(
                        "[{}{}] {}/{}",
                        "=".repeat(full),
                        " ".repeat(30 - full),
                        human::size(came),
                        human::size(size)
                    )
                }
                _ => human::size(came),
            };
            text.push_str(&format!("{}: {bar}\n", digest.short()));
        }
        self.lines = self.running.len();
        tell(&text);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}
