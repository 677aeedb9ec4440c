//! A private world for one test: state root, temporary files and a name that everything carries.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::bundle::Bundle;
use crate::command::{Output, bare, finish, gone_within};
use crate::{leaks, runtime};

/// Dropping it removes its containers, then fails the test if anything is left.
pub struct Bed {
    dir: TempDir,
    pub unique: String,
    bundles: Cell<u32>,
    containers: RefCell<Vec<String>>,
    lenient: Cell<bool>,
}

impl Default for Bed {
    fn default() -> Self {
        Bed::new()
    }
}

impl Bed {
    pub fn new() -> Bed {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let unique = format!("bt{}x{n}z", std::process::id());
        let dir =
            tempfile::Builder::new().prefix(&format!("{unique}.")).tempdir().expect("temporary directory");
        for name in ["state", "tmp", "run"] {
            fs::create_dir(dir.path().join(name)).expect("make the bed");
        }
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod the bed");
        Bed {
            dir,
            unique,
            bundles: Cell::new(0),
            containers: RefCell::new(Vec::new()),
            lenient: Cell::new(false),
        }
    }

    /// Its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The state root.
    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// A new busybox bundle.
    pub fn bundle(&self) -> Bundle<'_> {
        self.bundles.set(self.bundles.get() + 1);
        Bundle::new(self, self.path(&format!("b{}", self.bundles.get())))
    }

    /// The runtime under test with `--root` and a plain environment, not yet started.
    pub fn command(&self) -> Command {
        self.prefixed(&[])
    }

    /// The same behind a prefix such as `strace …`.
    pub fn prefixed(&self, prefix: &[&str]) -> Command {
        self.prefixed_program(prefix, &runtime::path().to_string_lossy())
    }

    /// The same with another copy of the runtime.
    pub fn prefixed_program(&self, prefix: &[&str], program: &str) -> Command {
        let mut words = prefix.to_vec();
        words.push(program);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("--root").arg(self.state());
        bare(&mut command);
        command.env(leaks::MARK, &self.unique);
        command.env("TMPDIR", self.path("tmp"));
        command.env("XDG_RUNTIME_DIR", self.path("run"));
        command
    }

    /// Run the runtime with `args`.
    pub fn call(&self, args: &[&str]) -> Output {
        finish(self.command().args(args))
    }

    /// This container is ours to delete in the end.
    pub fn adopt(&self, id: &str) {
        self.containers.borrow_mut().push(id.to_owned());
    }

    /// Don't fail for what is left behind (the test is about something else and says so).
    pub fn lenient(&self) {
        self.lenient.set(true);
    }

    /// What is left in this bed.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = leaks::lasting_processes(&self.unique);
        left.extend(leaks::mounts(&self.unique));
        left.extend(leaks::cgroups(&self.unique));
        for name in ["state", "tmp", "run"] {
            left.extend(leaks::entries(&self.path(name)));
        }
        left
    }

    /// Nothing is left in this bed right now.
    #[track_caller]
    pub fn is_clean(&self) {
        let left = self.leftovers();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let failing = std::thread::panicking() || self.lenient.get();
        for id in self.containers.take() {
            // A wedged runtime must not wedge the suite; what it leaves is found below.
            let mut command = self.command();
            command.args(["delete", "--force", &id]);
            crate::command::start(&mut command).ends_within(Duration::from_secs(20));
        }
        let left = self.leftovers();
        if !left.is_empty() {
            for pid in leaks::processes(&self.unique) {
                crate::command::kill(pid);
                gone_within(pid, Duration::from_secs(5));
            }
            leaks::remove_cgroups(&self.unique);
            for line in leaks::mounts(&self.unique).iter().rev() {
                if let Some(target) = line.split(' ').nth(4) {
                    let how = rustix::mount::UnmountFlags::DETACH;
                    rustix::mount::unmount(target, how).unwrap_or_default();
                }
            }
        }
        assert!(left.is_empty() || failing, "left behind: {left:#?}");
    }
}

/// A container that was created; the bed deletes it.
pub struct Container<'a> {
    pub bed: &'a Bed,
    pub id: String,
    pub bundle: PathBuf,
    pub(crate) output: Option<File>,
}

impl<'a> Container<'a> {
    pub(crate) fn known(bundle: &Bundle<'a>, id: String) -> Container<'a> {
        bundle.bed.adopt(&id);
        Container { bed: bundle.bed, id, bundle: bundle.dir.clone(), output: None }
    }

    /// `VERB ID`.
    pub fn verb(&self, verb: &str) -> Output {
        self.bed.call(&[verb, &self.id])
    }

    /// `VERB OPTIONS ID REST`.
    pub fn with(&self, verb: &str, options: &[&str], rest: &[&str]) -> Output {
        let mut args = vec![verb];
        args.extend(options);
        args.push(&self.id);
        args.extend(rest);
        self.bed.call(&args)
    }

    /// `exec ID ARGS`.
    pub fn exec(&self, args: &[&str]) -> Output {
        self.with("exec", &[], args)
    }

    pub fn exec_sh(&self, script: &str) -> Output {
        self.exec(&["sh", "-c", script])
    }

    /// `state`, parsed.
    #[track_caller]
    pub fn state(&self) -> Value {
        self.verb("state").success().json()
    }

    #[track_caller]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub fn pid(&self) -> i32 {
        let pid = self.state()["pid"].as_i64().unwrap_or_default();
        i32::try_from(pid).expect("a pid")
    }

    /// Send a signal to init by `kill`.
    pub fn kill(&self, signal: &str) -> Output {
        self.with("kill", &[], &[signal])
    }

    /// SIGKILL, and wait until it is dead.
    #[track_caller]
    pub fn stop(&self) {
        let pid = self.pid();
        self.kill("KILL").success();
        assert!(gone_within(pid, crate::command::PATIENCE), "{pid} survived SIGKILL");
    }

    /// Wait until init has ended by itself.
    #[track_caller]
    pub fn wait(&self) {
        let pid = self.pid();
        assert!(pid == 0 || gone_within(pid, crate::command::PATIENCE), "{pid} does not end");
    }

    /// What init has written on the standard output that `create` gave it.
    pub fn stdout(&self) -> String {
        crate::command::text(self.output.as_ref().expect("made by create"))
    }

    pub fn delete(&self) -> Output {
        self.verb("delete")
    }

    pub fn delete_force(&self) -> Output {
        self.with("delete", &["--force"], &[])
    }
}

/// Run one program of the host, for set-up.
#[track_caller]
pub fn host(program: &str, args: &[&str]) -> Output {
    finish(Command::new(program).args(args)).success()
}
