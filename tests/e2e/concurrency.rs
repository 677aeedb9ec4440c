//! Many at once: 2 and 8 workers, 100 resident containers, the same id fought for.

use harness::{Bed, Bundle, finish, json, need, start};

/// One bundle for all, without a cgroup path of its own: each container gets the default one.
fn shared(b: &Bundle<'_>) -> String {
    b.write("shared");
    let mut config = b.config.clone();
    config["linux"].as_object_mut().expect("linux").remove("cgroupsPath");
    b.write_text(&config.to_string());
    b.dir.to_string_lossy().into_owned()
}

fn lifecycles(workers: usize, each: usize) {
    let bed = Bed::new();
    let b = bed.bundle().args(["sleep", "1000"]);
    let bundle = shared(&b);
    let (root, unique) = (bed.state(), bed.unique.clone());
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let (bundle, root, unique) = (&bundle, &root, &unique);
            scope.spawn(move || {
                for round in 0..each {
                    let id = format!("{unique}w{worker}r{round}");
                    let call = |args: &[&str]| {
                        let mut command = std::process::Command::new(harness::runtime::path());
                        command.env(harness::leaks::MARK, unique).arg("--root").arg(root);
                        finish(command.args(args))
                    };
                    call(&["create", "--bundle", bundle, &id]).success();
                    call(&["start", &id]).success();
                    call(&["exec", &id, "echo", "in"]).success().stdout_is("in\n");
                    assert_eq!(call(&["state", &id]).success().json()["status"], "running");
                    call(&["delete", "--force", &id]).success();
                }
            });
        }
    });
    bed.is_clean();
}

#[test]
fn two_workers() {
    let Some(_) = need::root() else { return };
    lifecycles(2, if harness::runtime::is_ours() { 20 } else { 3 });
}

#[test]
fn eight_workers() {
    let Some(_) = need::root() else { return };
    lifecycles(8, if harness::runtime::is_ours() { 8 } else { 2 });
}

#[test]
fn a_hundred_resident_containers() {
    let Some(_) = need::root() else { return };
    let count = if harness::runtime::is_ours() { 100 } else { 10 };
    let bed = Bed::new();
    let b = bed.bundle().args(["sleep", "1000"]);
    let bundle = shared(&b);
    let ids: Vec<_> = (0..count).map(|i| format!("{}-{i}", bed.unique)).collect();
    for id in &ids {
        bed.adopt(id);
        bed.call(&["run", "--detach", "--bundle", &bundle, id]).success();
    }
    let list = bed.call(&["list", "--format", "json"]).success().json();
    assert_eq!(list.as_array().expect("an array").len(), count);
    bed.call(&["exec", &ids[count / 2], "true"]).success();
    for id in &ids {
        bed.call(&["delete", "--force", id]).success();
    }
    assert_eq!(bed.call(&["list", "--format", "json"]).success().json().as_array().map_or(0, Vec::len), 0);
    bed.is_clean();
}

/// Of many that create the same id at once, exactly one gets it.
#[test]
fn one_id_has_one_owner() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["sleep", "1000"]);
    let bundle = shared(&b);
    for round in 0..6 {
        let id = format!("{}-{round}", bed.unique);
        bed.adopt(&id);
        let rivals: Vec<_> =
            (0..6).map(|_| start(bed.command().args(["create", "--bundle", &bundle, &id]))).collect();
        let won = rivals.into_iter().map(harness::Running::wait).filter(|o| o.code == Some(0)).count();
        assert_eq!(won, 1, "owners of {id}");
        assert_eq!(bed.call(&["state", &id]).success().json()["status"], "created");
        bed.call(&["start", &id]).success();
        bed.call(&["exec", &id, "true"]).success();
        bed.call(&["delete", "--force", &id]).success();
        bed.is_clean();
    }
}

/// Deletes of one container at once: nothing is left, and none hangs.
#[test]
fn rival_deletes_are_harmless() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["sleep", "1000"]);
    let bundle = shared(&b);
    for round in 0..5 {
        let id = format!("{}-{round}", bed.unique);
        bed.call(&["run", "--detach", "--bundle", &bundle, &id]).success();
        let rivals: Vec<_> = (0..4).map(|_| start(bed.command().args(["delete", "--force", &id]))).collect();
        let won = rivals.into_iter().map(harness::Running::wait).filter(|o| o.code == Some(0)).count();
        assert!(won >= 1, "no delete of {id} worked");
        bed.call(&["delete", "--force", &id]).success();
        bed.is_clean();
    }
}

/// A container is deleted while others are executed in it: they end, nothing hangs.
#[test]
fn exec_and_delete_at_once() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    for _ in 0..4 {
        let c = bed.bundle().idle();
        let execs: Vec<_> =
            (0..4).map(|_| start(bed.command().args(["exec", &c.id, "sleep", "1000"]))).collect();
        c.delete_force().success();
        for exec in execs {
            let out = exec.wait();
            assert!(out.code != Some(0), "{out:?}");
        }
        bed.is_clean();
    }
}

/// A fork bomb of the container is no reason for delete to leave something.
#[test]
fn a_container_that_forks_without_end_is_killed_whole() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    for pid_namespace in [true, false] {
        let mut b = bed.bundle().set("/linux/resources/pids", json!({"limit": 60}));
        if !pid_namespace {
            let namespaces =
                json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]);
            b = b.set("/linux/namespaces", namespaces);
        }
        let mut ready = b.fifo("ready");
        let script = "bomb() { bomb & bomb; }; echo up > /ready; trap '' TERM; while :; do (sh -c 'sleep 0.01 & sleep 0.01 & sleep 0.01' &) 2>/dev/null; done";
        let c = b.sh(script).start();
        ready.line();
        c.delete_force().success();
        bed.is_clean();
    }
}
