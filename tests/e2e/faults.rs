//! Damage: mutated configs, damaged state files, limits on descriptors, a full disk.

use std::fs;
use std::time::Duration;

use harness::{Bed, Value, finish, json, need};

/// A repeatable sequence of numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % below
    }
}

fn pointers(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| {
            let here = format!("{at}/{k}");
            found.push(here.clone());
            pointers(v, here, found);
        }),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| {
            let here = format!("{at}/{i}");
            found.push(here.clone());
            pointers(v, here, found);
        }),
        _ => {}
    }
}

/// A config that uses much of the spec, so that there is much to break.
fn rich(bed: &Bed) -> harness::Bundle<'_> {
    bed.bundle()
        .set("/process/oomScoreAdj", 100)
        .set("/process/user/additionalGids", json!([5]))
        .set("/process/user/umask", 18)
        .set("/linux/resources/memory", json!({"limit": 268_435_456}))
        .set("/linux/resources/pids", json!({"limit": 64}))
        .set("/linux/resources/cpu", json!({"shares": 512, "quota": 50_000, "period": 100_000}))
        .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}))
        .set("/linux/devices", json!([{"path": "/dev/extra", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}]))
        .set("/hooks", json!({"createRuntime": [{"path": "/bin/true", "args": ["true"], "timeout": 5}]}))
        .set("/annotations", json!({"org.example": "value"}))
        .set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                   "syscalls": [{"names": ["reboot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
                                 "args": [{"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}]}]}),
        )
}

/// THREATS.md: "300 mutated configs … a clear error each; no crash, no hang". What a mutation leaves valid may run.
#[test]
fn mutated_configs_are_clear_errors() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = rich(&bed);
    let id = b.fresh_id();
    let mut dice = Dice(20_261_121);
    let mut places = Vec::new();
    let mut whole = b.config.clone();
    whole["linux"]["cgroupsPath"] = json!(b.cgroup(&id));
    pointers(&whole, String::new(), &mut places);
    let bundle = b.dir.to_string_lossy().into_owned();
    let odd = [
        json!(null),
        json!(-1),
        json!(1.5),
        json!(u64::MAX),
        json!(""),
        json!("x"),
        json!("../../.."),
        json!("\u{0}"),
        json!("é\n\t"),
        json!([]),
        json!({}),
        json!([[]]),
        json!({"": null}),
        json!(true),
        json!("x".repeat(70_000)),
    ];
    let (mut refused, mut ran) = (0, 0);
    let rounds = if harness::runtime::is_ours() { 300 } else { 40 };
    for round in 0..rounds {
        let place = &places[dice.roll(places.len())];
        // The cgroup path and the ids of a test stay what they are: a harness that cannot clean up proves nothing.
        if place.starts_with("/linux/cgroupsPath") || place == "/linux" {
            continue;
        }
        let mut config = whole.clone();
        let (parent, key) = place.rsplit_once('/').expect("a pointer");
        let what = dice.roll(odd.len() + 2);
        match config.pointer_mut(parent).expect("there") {
            Value::Object(map) if what == odd.len() => drop(map.remove(key)),
            Value::Object(map) if what == odd.len() + 1 => {
                let old = map.remove(key).unwrap_or_default();
                map.insert(format!("{key}X"), old);
            }
            Value::Object(map) => drop(map.insert(key.to_owned(), odd[what.min(odd.len() - 1)].clone())),
            Value::Array(items) => {
                let index: usize = key.parse().expect("an index");
                if what >= odd.len() { drop(items.remove(index)) } else { items[index] = odd[what].clone() }
            }
            _ => {}
        }
        b.write_text(&config.to_string());
        let running = harness::start(bed.command().args(["run", "--bundle", &bundle, &id]));
        let ended = running.ends_within(Duration::from_secs(30));
        assert!(ended, "round {round}: hangs with {place} = {:?}", odd.get(what));
        let out = running.wait();
        let story = format!("round {round}: {place} = {:.80?} ({what}): {out:.600?}", odd.get(what));
        if out.code == Some(0) {
            ran += 1;
        } else {
            refused += 1;
            assert!(out.code.is_some_and(|c| c < 128 || c == 255), "{story}");
            if harness::runtime::is_ours() {
                // What was carried on without is a warning, as in runc.
                let lines: Vec<_> = out
                    .stderr
                    .lines()
                    .filter(|l| !l.starts_with("hint: ") && !l.contains("level=warning"))
                    .collect();
                assert!(lines.len() == 1 && lines[0].starts_with("berth-runtime: run "), "{story}");
            }
        }
        let left = bed.leftovers();
        assert!(left.is_empty(), "{story}\nleft behind: {left:#?}");
    }
    println!("{refused} refused, {ran} ran all the same");
    assert!(refused > rounds / 4, "too few mutations mattered: {refused} refused, {ran} ran");
}

#[test]
fn damaged_json_is_a_clear_error() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = rich(&bed);
    let id = b.fresh_id();
    b.write(&id);
    let text = fs::read(b.dir.join("config.json")).expect("config");
    let bundle = b.dir.to_string_lossy().into_owned();
    let mut dice = Dice(7);
    let mut cases: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"{}".to_vec(),
        b"{".to_vec(),
        b"\xff\xfe".to_vec(),
        vec![b'['; 200_000],
        b"\"x\"".to_vec(),
        vec![0; 4096],
    ];
    for _ in 0..30 {
        cases.push(text[..dice.roll(text.len() - 1)].to_vec());
    }
    for case in cases {
        fs::write(b.dir.join("config.json"), &case).expect("write");
        let out = bed.call(&["run", "--bundle", &bundle, &id]).exits(1);
        if harness::runtime::is_ours() {
            out.fails_in_one_line().stderr_has("config.json");
        }
        bed.is_clean();
    }
    fs::remove_file(b.dir.join("config.json")).expect("remove");
    bed.call(&["run", "--bundle", &bundle, &id]).exits(1).stderr_has("config.json");
    fs::create_dir(b.dir.join("config.json")).expect("mkdir");
    bed.call(&["run", "--bundle", &bundle, &id]).exits(1);
    fs::remove_dir(b.dir.join("config.json")).expect("rmdir");
    nix::unistd::mkfifo(&b.dir.join("config.json"), nix::sys::stat::Mode::from_bits_truncate(0o600))
        .expect("mkfifo");
    if harness::runtime::is_ours() {
        bed.call(&["run", "--bundle", &bundle, &id]).exits(1).fails_in_one_line();
    }
    bed.is_clean();
}

/// THREATS.md: "that container alone reports it; `list` and the others work; `delete --force` still kills its processes".
#[test]
fn a_damaged_state_file_hurts_nobody_else() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let healthy = bed.bundle().idle();
    let damages: [(&str, &[u8]); 7] = [
        ("empty", b""),
        ("null", b"null"),
        ("no json", b"\x00\x01garbage"),
        ("truncated", b"{\"id\":\"x\",\"pid\":12"),
        ("another version", b"{\"version\":99,\"newThings\":[]}"),
        ("wrong types", b"{\"id\":5,\"pid\":\"many\"}"),
        ("array", b"[]"),
    ];
    for (name, bytes) in damages {
        let b = bed.bundle().args(["sleep", "1000"]);
        let c = b.start();
        let pid = c.pid();
        fs::write(bed.state().join(&c.id), bytes).expect("damage it");
        c.verb("state").exits(1).fails_in_one_line().stderr_has(&c.id);
        c.exec(&["true"]).exits(255).fails_in_one_line();
        let list = bed.call(&["list", "--quiet"]);
        assert!(list.stdout.lines().any(|l| l == healthy.id), "{name}: {list:?}");
        assert!(!list.stderr.contains("panicked"), "{name}: {list:?}");
        assert_eq!(healthy.status(), "running");
        healthy.exec(&["true"]).success();
        c.delete_force().success();
        assert!(
            harness::command::gone_within(pid, Duration::from_secs(5)),
            "{name}: its process {pid} lives on"
        );
        assert!(!bed.state().join(&c.id).exists(), "{name}: its state lives on");
        let left = harness::leaks::cgroups(&c.id);
        assert!(left.is_empty(), "{name}: {left:?}");
        // The id is free again.
        finish(&mut b.command("run", &["--detach"], &c.id)).success();
        c.delete_force().success();
    }
    healthy.delete_force().success();
    bed.is_clean();
}

/// Files that are no containers at all.
#[test]
fn strangers_in_the_state_root_hurt_nobody() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    fs::write(bed.state().join("a-file"), "x").expect("write");
    fs::create_dir(bed.state().join("a-directory")).expect("mkdir");
    std::os::unix::fs::symlink("/nowhere", bed.state().join("a-link")).expect("symlink");
    let list = bed.call(&["list", "--quiet"]);
    assert!(list.stdout.lines().any(|l| l == c.id), "{list:?}");
    assert_eq!(c.status(), "running");
    for name in ["a-file", "a-link"] {
        fs::remove_file(bed.state().join(name)).expect("remove");
    }
    fs::remove_dir(bed.state().join("a-directory")).unwrap_or_default();
}

/// What versions before had: a folder a container.
#[test]
fn a_folder_in_the_state_root_is_told_and_goes_by_force() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let old = bed.state().join("old");
    fs::create_dir_all(&old).expect("mkdir");
    fs::write(old.join("state.json"), "{}").expect("write");
    for verb in ["state", "start", "delete"] {
        bed.call(&[verb, "old"]).exits(1).fails_in_one_line().stderr_has("not a state file");
    }
    bed.call(&["delete", "--force", "old"]).success();
    assert!(!old.exists());
    bed.is_clean();
}

/// A state directory that is another user's symlink is not followed by delete.
#[test]
fn forced_delete_follows_no_link_in_the_state_root() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let victim = bed.path("victim");
    fs::create_dir(&victim).expect("mkdir");
    fs::write(victim.join("state.json"), "kept").expect("write");
    std::os::unix::fs::symlink(&victim, bed.state().join("linked")).expect("symlink");
    bed.call(&["delete", "--force", "linked"]);
    assert_eq!(fs::read_to_string(victim.join("state.json")).expect("kept"), "kept");
    if bed.state().join("linked").symlink_metadata().is_ok() {
        fs::remove_file(bed.state().join("linked")).expect("remove");
    }
}

#[test]
fn few_descriptors_are_a_clear_error_or_enough() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["echo", "ran"]);
    let id = b.fresh_id();
    b.write(&id);
    for limit in 3..40 {
        let script = format!("ulimit -n {limit}; exec \"$@\"");
        let mut command = bed.prefixed(&["bash", "-c", &script, "bash"]);
        let out = finish(command.arg("run").arg("--bundle").arg(&b.dir).arg(&id));
        if out.code == Some(0) {
            assert_eq!(out.stdout, "ran\n", "{limit} descriptors: {out:?}");
        } else if limit > 3 {
            out.fails_in_one_line();
        }
        let left = bed.leftovers();
        assert!(left.is_empty(), "{limit} descriptors: {left:#?}");
    }
}

/// The state root lies on a full disk.
#[test]
fn a_full_disk_is_a_clear_error() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle().args(["echo", "ran"]);
    let id = b.fresh_id();
    b.write(&id);
    let state = bed.state();
    let small = state.to_string_lossy().into_owned();
    harness::bed::host("mount", &["-t", "tmpfs", "-o", "size=16k,nr_inodes=10", "tmpfs", &small]);
    let fill = state.join("fill");
    let mut file = fs::File::create(&fill).expect("create");
    while std::io::Write::write(&mut file, &[0; 4096]).is_ok_and(|n| n > 0) {}
    drop(file);
    let out = finish(bed.command().arg("run").arg("--bundle").arg(&b.dir).arg(&id));
    let left = harness::leaks::entries(&state);
    let processes = harness::leaks::lasting_processes(&bed.unique);
    let cgroups = harness::leaks::cgroups(&bed.unique);
    harness::bed::host("umount", &[&small]);
    if out.code == Some(0) {
        out.stdout_is("ran\n");
    } else if harness::runtime::is_ours() {
        out.exits(1).fails_in_one_line().stderr_has("ENOSPC");
    }
    assert_eq!(left, [fill.display().to_string()]);
    assert!(processes.is_empty() && cgroups.is_empty(), "{processes:?} {cgroups:?}");
}

/// A state root that cannot be written.
#[test]
fn an_unusable_state_root_is_a_clear_error() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    let id = b.fresh_id();
    b.write(&id);
    let bundle = b.dir.to_string_lossy().into_owned();
    for root in ["/proc/nothing", "/dev/null", "/dev/null/x", "/sys/berth"] {
        let mut command = std::process::Command::new(harness::runtime::path());
        let out = finish(command.args(["--root", root, "run", "--bundle", &bundle, &id]));
        out.exits(1).fails_in_one_line().stderr_has(root);
    }
    bed.is_clean();
}

/// Output that nobody takes: the caller has closed its ends.
#[test]
fn closed_standard_descriptors_are_not_filled_with_ours() {
    let Some(_) = need::ours() else { return };
    let bed = Bed::new();
    let list = "cd /proc/self/fd; for f in *; do readlink $f; done > /list 2>/dev/null";
    let b = bed.bundle().sh(list);
    let id = b.fresh_id();
    b.write(&id);
    let mut command = bed.prefixed(&["bash", "-c", "exec \"$@\" <&- >&- 2>&-", "bash"]);
    let out = finish(command.arg("run").arg("--bundle").arg(&b.dir).arg(&id));
    if out.code == Some(0) {
        let list = fs::read_to_string(b.inside("list")).expect("list");
        for line in list.lines() {
            let inside = line == "/dev/null" || line == "/list" || line.starts_with("/proc/");
            assert!(inside, "a descriptor of the host in place of a closed one: {list}");
        }
    }
    bed.is_clean();
}
