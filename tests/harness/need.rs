//! What does a test need of this host? What is missing is printed as `SKIP name: why`, never passed over in silence.
//!
//! With `BERTH_SKIP_LOG=FILE` the lines are also appended to that file, for a summary of a whole run.

use std::fs::OpenOptions;
use std::io::Write;

/// That the need is met.
#[derive(Debug)]
pub struct Met;

fn unless(met: bool, why: &str) -> Option<Met> {
    if met {
        return Some(Met);
    }
    let thread = std::thread::current();
    let line = format!("{}: {why}\n", thread.name().unwrap_or("test"));
    print!("SKIP {line}");
    if let Some(path) = std::env::var_os("BERTH_SKIP_LOG") {
        let file = OpenOptions::new().append(true).create(true).open(path);
        file.and_then(|mut f| f.write_all(line.as_bytes())).expect("append to BERTH_SKIP_LOG");
    }
    None
}

/// Root of the initial user namespace.
pub fn root() -> Option<Met> {
    unless(rustix::process::geteuid().is_root(), "needs root")
}

/// An ordinary host with v1 controllers.
pub fn v1() -> Option<Met> {
    root()?;
    unless(!crate::host::is_unified(), "needs cgroup v1 controllers")
}

/// A host with unified cgroup v2 only.
pub fn v2() -> Option<Met> {
    root()?;
    unless(crate::host::is_unified(), "needs a unified cgroup v2 host (try tests/vm)")
}

/// Our own runtime: others do not promise this.
pub fn ours() -> Option<Met> {
    root()?;
    unless(crate::runtime::is_ours(), "only berth-runtime promises this")
}

/// A host of our own, whose clock may be set: the VM.
pub fn disposable() -> Option<Met> {
    root()?;
    unless(std::env::var_os("BERTH_TEST_DISPOSABLE").is_some(), "sets the clock: only in tests/vm")
}

/// A C compiler that can link static programs.
pub fn gcc() -> Option<Met> {
    root()?;
    let found = std::process::Command::new("gcc").arg("--version").output().is_ok_and(|o| o.status.success());
    unless(found, "needs gcc")
}

/// A program on this host.
pub fn program(name: &str) -> Option<Met> {
    root()?;
    unless(crate::host::which(name).is_some(), &format!("needs {name}"))
}

/// A kernel feature that shows as a file.
pub fn file(path: &str) -> Option<Met> {
    root()?;
    unless(std::path::Path::new(path).exists(), &format!("needs {path}"))
}

/// Anything else.
pub fn that(met: bool, why: &str) -> Option<Met> {
    unless(met, why)
}
