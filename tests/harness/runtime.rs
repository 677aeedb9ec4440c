//! Which programs are under test?

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

static PATH: OnceLock<PathBuf> = OnceLock::new();

/// Test this one, whatever the environment says; to be called first.
pub fn choose(path: &str) {
    PATH.set(PathBuf::from(path)).expect("chosen once, first");
}

/// The program under test.
pub fn path() -> &'static Path {
    PATH.get_or_init(|| match std::env::var_os("BERTH_RUNTIME") {
        Some(path) => PathBuf::from(path),
        None => built("berth-runtime"),
    })
}

/// The builder under test: `$BERTH_BUILDER`, or else that of this workspace, built first.
pub fn builder() -> &'static Path {
    static BUILDER: OnceLock<PathBuf> = OnceLock::new();
    BUILDER.get_or_init(|| match std::env::var_os("BERTH_BUILDER") {
        Some(path) => PathBuf::from(path),
        None => built("berth-builder"),
    })
}

/// Its file name, with which its messages begin.
pub fn name() -> String {
    path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether it is ours: tests of what only we promise leave others out.
pub fn is_ours() -> bool {
    name().starts_with("berth-runtime")
}

/// `target/<triple>/<profile>/PACKAGE` beside this test program, built once per test run.
fn built(package: &str) -> PathBuf {
    let me = std::env::current_exe().expect("current_exe");
    let profile =
        me.ancestors().find(|d| d.join("deps").is_dir() && d.join(".fingerprint").is_dir()).unwrap_or_else(
            || panic!("{} lies in no target directory: set BERTH_RUNTIME and BERTH_BUILDER", me.display()),
        );
    let binary = profile.join(package);
    let stamp =
        std::env::var("NEXTEST_RUN_ID").ok().map(|id| profile.join(format!(".e2e-built-{package}-{id}")));
    let lock = File::create(profile.join(".e2e-build-lock")).expect("create the build lock");
    lock.lock().expect("take the build lock");
    if stamp.as_ref().is_some_and(|s| s.exists()) {
        return binary;
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "-p", package, "--bin", package]);
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("run cargo build");
    assert!(status.success(), "cargo build -p {package}: {status}");
    if let Some(stamp) = stamp {
        forget_older_stamps(profile, package);
        File::create(&stamp).expect("write the build stamp");
    }
    binary
}

fn forget_older_stamps(profile: &Path, package: &str) {
    for entry in fs::read_dir(profile).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!(".e2e-built-{package}-")) {
            fs::remove_file(entry.path()).unwrap_or_default();
        }
    }
}
