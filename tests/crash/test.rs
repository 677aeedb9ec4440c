//! The ordinary test run tries as many crash points as fit into a minute; `crash-points --all` tries every one.

use std::time::Duration;

use harness::{need, start};

/// What a fault may cost: "one `delete --force` … leaves no process, mount, cgroup, namespace, descriptor, temporary file".
#[test]
fn sampled_crash_points_leave_nothing() {
    try_points(&["--budget", "50"]);
}

/// ENOSPC, EIO, ENOMEM, EMFILE from any one call: "clean error and clean-up, never success reported for work not done,
/// never a hang".
#[test]
fn sampled_failing_calls_are_clean_errors() {
    try_points(&["--errors", "--budget", "40"]);
}

/// Processes of one verb may overtake each other anywhere: the stage that joins a pid namespace was once outrun by its own
/// child, and `create` failed now and then.
#[test]
fn delays_in_joining_a_pid_namespace_change_nothing() {
    try_points(&["--delays", "--all", "--verb", "create-joining"]);
}

#[test]
fn sampled_delays_change_nothing() {
    try_points(&["--delays", "--budget", "30"]);
}

/// "Nothing tagged is lost, nothing is corrupt, left-overs are gone with the next command."
#[test]
fn sampled_crash_points_lose_no_image() {
    try_builder(&["--budget", "45"]);
}

#[test]
fn sampled_failing_calls_lose_no_image() {
    try_builder(&["--errors", "--budget", "30"]);
}

fn try_builder(options: &[&str]) {
    let Some(_) = need::root() else { return };
    let builder = harness::runtime::builder().to_string_lossy();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_crash-points"));
    let tried = start(command.args(["--builder", &builder]).args(options));
    tried.wait_within(Duration::from_secs(170)).success();
}

fn try_points(options: &[&str]) {
    let Some(_) = need::ours() else { return };
    let runtime = harness::runtime::path().to_string_lossy();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_crash-points"));
    let tried = start(command.args(["--runtime", &runtime]).args(options));
    tried.wait_within(Duration::from_secs(170)).success();
}
