//! An ordinary user runs containers, or is told what is missing.

use std::fs;
use std::process::Command;

use harness::{Bed, Bundle, finish, json, need};

const USER: &str = "4321";

/// The runtime as an ordinary user, in a bed that the user owns.
fn as_user(b: &Bundle<'_>) -> Command {
    let top = b.bed.path("").to_string_lossy().into_owned();
    harness::bed::host("chown", &["-Rh", &format!("{USER}:{USER}"), &top]);
    let mut command = b.bed.prefixed(&[
        "setpriv",
        "--reuid",
        USER,
        "--regid",
        USER,
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ]);
    command.current_dir(&b.dir);
    command
}

fn rootless(bed: &Bed) -> Bundle<'_> {
    let id: u32 = USER.parse().expect("a number");
    let b = bed
        .bundle()
        .push("/linux/namespaces", json!({"type": "user"}))
        .set("/linux/uidMappings", json!([{"containerID": 0, "hostID": id, "size": 1}]))
        .set("/linux/gidMappings", json!([{"containerID": 0, "hostID": id, "size": 1}]))
        .remove("/linux/resources")
        .set("/linux/cgroupsPath", harness::Value::Null)
        .remove("/linux/cgroupsPath");
    let mut b = b;
    let mounts = b.config["mounts"].as_array_mut().expect("mounts");
    // As `spec --rootless` writes it: no gid= of a group that is not mapped, no sysfs of a network that is not ours.
    mounts.retain(|m| m["destination"] != "/sys/fs/cgroup");
    for m in mounts {
        if m["destination"] == "/dev/pts" {
            m["options"] = json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]);
        }
    }
    b
}

fn write(b: &Bundle<'_>) {
    let mut config = b.config.clone();
    config["linux"].as_object_mut().expect("linux").remove("cgroupsPath");
    b.write_text(&config.to_string());
}

#[test]
fn an_ordinary_user_runs_a_container() {
    let Some(_) = need::program("setpriv") else { return };
    let bed = Bed::new();
    let b = rootless(&bed).sh("id -u; touch /mine; echo out");
    let id = b.fresh_id();
    write(&b);
    let out = finish(as_user(&b).args(["run", &id])).success();
    out.stdout_is("0\nout\n");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(b.inside("mine")).expect("made").uid().to_string(), USER);
    bed.is_clean();
}

/// As podman is for an ordinary user: state lies where the user may write, though the user is called root.
#[test]
fn root_of_a_user_namespace_is_an_ordinary_user() {
    let Some(_) = need::program("setpriv") else { return };
    let bed = Bed::new();
    let b = rootless(&bed)
        .set("/linux/uidMappings/0/hostID", json!(0))
        .set("/linux/gidMappings/0/hostID", json!(0))
        .sh("true");
    let id = b.fresh_id();
    write(&b);
    let run = |user: Option<&str>| {
        let mut command = Command::new("setpriv");
        let user_of = as_user(&b);
        command.args(user_of.get_args().take(6).map(|a| a.to_owned()));
        command.args(["unshare", "--user", "--map-root-user", "--mount"]).arg(harness::runtime::path());
        command.args(["run", "--bundle"]).arg(&b.dir).arg(&id).env_clear();
        command.envs(user_of.get_envs().filter_map(|(k, v)| Some((k, v?))));
        // Podman gives none to `start`.
        command.envs(user.map(|user| ("USER", user)));
        finish(command.current_dir("/"))
    };
    for user in [Some("somebody"), None] {
        // setgroups(2) is denied in a namespace that unshare(1) makes alone, so that it comes no further.
        let out = run(user);
        assert!(out.stderr.contains("setgroups is denied"), "{}", out.stderr);
        let kept = fs::read_dir(bed.path("run/berth/runtime")).expect("the state is kept there").count();
        assert_eq!(kept, 0, "something is left of it");
        fs::remove_dir_all(bed.path("run/berth")).expect("remove the empty root");
    }
    bed.is_clean();
}

#[test]
fn the_whole_lifecycle_of_an_ordinary_user() {
    let Some(_) = need::program("setpriv") else { return };
    let bed = Bed::new();
    let b = rootless(&bed).args(["sleep", "1000"]);
    let id = b.fresh_id();
    write(&b);
    bed.adopt(&id);
    finish(as_user(&b).args(["create", &id])).success();
    finish(as_user(&b).args(["start", &id])).success();
    finish(as_user(&b).args(["exec", &id, "id", "-u"])).success().stdout_is("0\n");
    assert_eq!(finish(as_user(&b).args(["state", &id])).success().json()["status"], "running");
    finish(as_user(&b).args(["delete", "--force", &id])).success();
    bed.is_clean();
}

#[test]
fn what_is_missing_is_named() {
    let Some(_) = need::ours() else { return };
    let Some(_) = need::program("setpriv") else { return };
    let bed = Bed::new();
    // No user namespace.
    let b = bed.bundle();
    let id = b.fresh_id();
    write(&b);
    let out = finish(as_user(&b).args(["run", &id])).exits(1).fails_in_one_line();
    out.stderr_has("user");
    // Ids that no subuid range gives.
    let b = rootless(&bed).set(
        "/linux/uidMappings",
        json!([{"containerID": 0, "hostID": 4321, "size": 1}, {"containerID": 1, "hostID": 500_000, "size": 100}]),
    );
    let id = b.fresh_id();
    write(&b);
    let out = finish(as_user(&b).args(["run", &id])).exits(1).fails_in_one_line();
    assert!(out.stderr.contains("subuid") || out.stderr.contains("newuidmap"), "{out:?}");
    // Limits without a delegated cgroup.
    let b = rootless(&bed).set("/linux/resources", json!({"memory": {"limit": 100_000_000}}));
    let id = b.fresh_id();
    write(&b);
    let out = finish(as_user(&b).args(["run", &id]));
    assert!(out.code == Some(1) && out.stderr.contains("cgroup"), "{out:?}");
    bed.is_clean();
}

/// A mapping that would make the user root of the host.
#[test]
fn a_map_to_the_hosts_root_is_refused() {
    let Some(_) = need::program("setpriv") else { return };
    let bed = Bed::new();
    let map = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    let b = rootless(&bed)
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
        .args(["id", "-u"]);
    let id = b.fresh_id();
    write(&b);
    let out = finish(as_user(&b).args(["run", &id]));
    assert!(out.code != Some(0) && out.stdout.is_empty(), "{out:?}");
    bed.is_clean();
}
