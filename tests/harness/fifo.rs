//! How does a container tell the test that it got somewhere? Through a fifo in its root file system.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::{PATIENCE, finish, readable_within};

/// A fifo that the test holds open at both ends, so that nobody waits for the other side.
pub struct Fifo {
    pub path: PathBuf,
    file: File,
    rest: Vec<u8>,
}

impl Fifo {
    pub fn make(path: &Path) -> Fifo {
        finish(std::process::Command::new("mkfifo").arg("-m").arg("666").arg(path)).success();
        Fifo::open(path)
    }

    /// One that is there already; what an earlier writer left in it is gone.
    pub fn open(path: &Path) -> Fifo {
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nonblock)
            .open(path)
            .unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
        Fifo { path: path.to_owned(), file, rest: Vec::new() }
    }

    /// The next line that somebody wrote.
    #[track_caller]
    pub fn line(&mut self) -> String {
        match self.line_within(PATIENCE) {
            Some(line) => line,
            None => panic!(
                "nothing came through {} within {PATIENCE:?}; so far: {:?}",
                self.path.display(),
                String::from_utf8_lossy(&self.rest)
            ),
        }
    }

    /// The same, if it comes in time.
    pub fn line_within(&mut self, patience: Duration) -> Option<String> {
        loop {
            if let Some(end) = self.rest.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !readable_within(&self.file, patience) {
                return None;
            }
            let mut buffer = [0; 4096];
            let n = self.file.read(&mut buffer).expect("read the fifo");
            self.rest.extend_from_slice(&buffer[..n]);
        }
    }

    /// Let a reader go on.
    pub fn say(&mut self, line: &str) {
        self.file.write_all(format!("{line}\n").as_bytes()).expect("write to the fifo");
    }
}
