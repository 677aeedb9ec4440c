//! Landlock rules of the annotation `dev.berth.landlock`: they hold in `run` and in `exec`.

use harness::{Bed, Bundle, Value, json, need};

fn with_rules<'a>(bed: &'a Bed, rules: Value) -> Bundle<'a> {
    bed.bundle().set("/annotations", json!({"dev.berth.landlock": rules.to_string()}))
}

/// The annotation is ours alone, and the kernel must have Landlock.
fn needed() -> Option<()> {
    need::root()?;
    need::ours()?;
    let lsm = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    need::that(lsm.contains("landlock_restrict_self"), "this kernel has no Landlock")?;
    let bed = Bed::new();
    let probe = with_rules(&bed, json!({"fs": [{"access": "all", "paths": ["/"]}], "scope": ["signal"]}));
    let out = probe.args(["true"]).run();
    need::that(!out.stderr.contains("this kernel has"), "this kernel's Landlock is too old or switched off")?;
    out.success();
    Some(())
}

const RULES: &str = r#"{"fs": [{"access": "exec", "paths": ["/bin", "/lib", "/lib64", "/usr"]}, {"access": "rw", "paths": ["/tmp"]}]}"#;

fn rules(bed: &Bed) -> Value {
    let mut rules: Value = serde_json::from_str(RULES).expect("JSON");
    // Only what the image has.
    if let Some(paths) = rules["fs"][0]["paths"].as_array_mut() {
        paths.retain(|p| bed.bundle().inside(&p.as_str().unwrap_or_default()[1..]).exists());
    }
    rules
}

#[test]
fn files_are_confined_in_run_and_exec() {
    let Some(()) = needed() else { return };
    let bed = Bed::new();
    let script = "echo x >/tmp/f && cat /tmp/f; ls /etc 2>&1; cat /proc/self/status 2>&1; exit 3";
    let expected = "x\nls: can't open '/etc': Permission denied\ncat: can't open '/proc/self/status': Permission denied\n";
    let b = with_rules(&bed, rules(&bed));
    b.sh(script).run().exits(3).stdout_is(expected);
    let c = with_rules(&bed, rules(&bed)).idle();
    c.exec_sh(script).exits(3).stdout_is(expected);
}

/// no_new_privs stays as the config has it, with Landlock and without.
#[test]
fn privileges_stay_as_configured() {
    let Some(()) = needed() else { return };
    let bed = Bed::new();
    let all = json!({"fs": [{"access": "all", "paths": ["/"]}]});
    for (configured, shown) in [(false, "0"), (true, "1")] {
        let b = with_rules(&bed, all.clone()).set("/process/noNewPrivileges", configured);
        let b = b.set("/process/user", json!({"uid": 1000, "gid": 1000}));
        b.sh("grep ^NoNewPrivs: /proc/self/status")
            .run()
            .success()
            .stdout_is(&format!("NoNewPrivs:\t{shown}\n"));
    }
}

#[test]
fn mistakes_are_found_before_anything_is_made() {
    let Some(_) = need::ours() else { return };
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    for (rules, message) in [
        (json!({"fs": [{"access": "rx", "paths": ["/"]}]}), ".fs[0].access: unknown word \"rx\""),
        (json!({"files": []}), ".files: unknown key (allowed: fs, net, scope, bestEffort)"),
        (json!({"net": {"bind": [70000]}}), ".net.bind[0]: found 70000, expected a port from 0 to 65535"),
    ] {
        let b = with_rules(&bed, rules);
        let out = b.run().exits(1).fails_in_one_line();
        out.stderr_has(&format!("annotations[\"dev.berth.landlock\"]{message}"));
        bed.is_clean();
    }
}
