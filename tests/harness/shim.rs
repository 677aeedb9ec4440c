//! Our supervisor, for a container of a bed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bundle::Bundle;
use crate::command::{Output, bare, finish};
use crate::{leaks, runtime};

/// `$BERTH_SHIM`, or the one beside the runtime.
pub fn path() -> PathBuf {
    match std::env::var_os("BERTH_SHIM") {
        Some(path) => PathBuf::from(path),
        None => runtime::path().with_file_name("berth-shim"),
    }
}

/// One supervised container. Dropping it removes it by force.
pub struct Supervised<'a> {
    pub bundle: &'a Bundle<'a>,
    pub id: String,
}

impl<'a> Supervised<'a> {
    /// Of this bundle; nothing is started.
    pub fn new(bundle: &'a Bundle<'a>) -> Supervised<'a> {
        let id = bundle.fresh_id();
        bundle.write(&id);
        bundle.bed.adopt(&id);
        Supervised { bundle, id }
    }

    /// Where its files are.
    pub fn folder(&self) -> PathBuf {
        self.root().join(&self.id)
    }

    fn root(&self) -> PathBuf {
        self.bundle.bed.path("run").join("shim")
    }

    /// `berth-shim --root … VERB …`
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(path());
        command.arg("--root").arg(self.root()).args(args);
        bare(&mut command);
        command.env(leaks::MARK, &self.bundle.bed.unique);
        command.env("BERTH_RUNTIME", runtime::path());
        command.env("TMPDIR", self.bundle.bed.path("tmp"));
        command
    }

    /// `VERB OPTIONS ID`
    pub fn verb(&self, verb: &str, options: &[&str]) -> Output {
        let args: Vec<&str> = [&[verb], options, &[self.id.as_str()]].concat();
        finish(&mut self.command(&args))
    }

    /// `run`, not yet started.
    pub fn run_command(&self, options: &[&str]) -> Command {
        let mut command = self.command(&["run", "--bundle"]);
        command
            .arg(&self.bundle.dir)
            .arg("--runtime-root")
            .arg(self.bundle.bed.state())
            .args(options)
            .arg(&self.id);
        command
    }

    /// `run` in the foreground.
    pub fn run(&self, options: &[&str]) -> Output {
        finish(&mut self.run_command(options))
    }

    /// `run --detach`
    pub fn start(&self, options: &[&str]) -> &Self {
        let options: Vec<&str> = [&["--detach"], options].concat();
        self.run(&options).success();
        self
    }

    pub fn state(&self) -> Value {
        self.verb("status", &["--format", "json"]).success().json()
    }

    /// A number of its state; 0 if it is not there.
    pub fn number(&self, name: &str) -> i32 {
        self.state()[name].as_i64().and_then(|n| n.try_into().ok()).unwrap_or(0)
    }

    /// Wait until `probe` says so of its state.
    #[track_caller]
    pub fn until(&self, what: &str, probe: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + crate::command::PATIENCE;
        loop {
            // It may not be there yet.
            let out = self.verb("status", &["--format", "json"]);
            let state = if out.code == Some(0) { out.json() } else { Value::Null };
            if probe(&state) {
                return state;
            }
            assert!(Instant::now() < end, "{what}: {state:#}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The process above the supervisor.
    pub fn keeper(&self) -> i32 {
        parent(self.number("supervisor"))
    }

    /// What `wait` prints.
    pub fn wait(&self) -> i32 {
        let out = self.verb("wait", &[]).success();
        out.stdout.trim().parse().expect("a status")
    }

    pub fn logs(&self, options: &[&str]) -> Output {
        self.verb("logs", options)
    }

    /// Remove it, if it is there.
    pub fn remove(&self) {
        if self.folder().join("options.json").exists() {
            self.verb("rm", &["--force"]).success();
        }
        fs::remove_dir(self.root()).unwrap_or_default();
    }
}

impl Drop for Supervised<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.remove();
        }
    }
}

/// The parent of a process.
pub fn parent(pid: i32) -> i32 {
    crate::host::status(pid, "PPid").parse().expect("a number")
}
