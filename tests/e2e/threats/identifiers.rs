//! Ids that are paths, and user ids that wrap around, are refused while planning (CVE-2024-40635).

use std::fs;

use harness::{Bed, finish, json, need};

#[test]
fn a_container_id_is_a_file_name_and_nothing_else() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    fs::write(bed.path("precious"), "kept").expect("write");
    fs::create_dir(bed.state().join("victim")).expect("mkdir");
    fs::write(bed.state().join("victim/file"), "kept").expect("write");
    let long = "x".repeat(2000);
    for id in [
        "",
        ".",
        "..",
        "../precious",
        "a/b",
        "/etc",
        "/",
        "a/../b",
        "victim/..",
        "a b",
        "a\nb",
        "ä",
        "a:b",
        "*",
        "%00",
        &long,
    ] {
        b.write("unused");
        let bundle = b.dir.to_string_lossy();
        for verb in [
            &["create", "--bundle", &bundle][..],
            &["run", "--bundle", &bundle],
            &["state"],
            &["start"],
            &["kill"],
            &["delete"],
            &["pause"],
            &["resume"],
            &["ps"],
            &["update"],
        ] {
            let mut command = bed.command();
            let out = finish(command.args(verb).arg("--").arg(id));
            assert!(out.code == Some(1), "id {id:?} of {verb:?}: {out:?}");
            if harness::runtime::is_ours() {
                out.fails_in_one_line();
            }
        }
        // runc removes nothing here either, but may call it a success.
        let out = bed.call(&["delete", "--force", "--", id]);
        assert!(out.code == Some(1) || !harness::runtime::is_ours(), "forced delete of {id:?}: {out:?}");
        let out = bed.call(&["exec", "--", id, "true"]);
        assert!(out.code.is_some_and(|c| c != 0), "exec in {id:?}: {out:?}");
        assert_eq!(fs::read_to_string(bed.path("precious")).expect("still there"), "kept");
        assert_eq!(fs::read_to_string(bed.state().join("victim/file")).expect("still there"), "kept");
        assert_eq!(harness::leaks::entries(&bed.state()).len(), 1, "id {id:?} made something");
    }
    fs::remove_dir_all(bed.state().join("victim")).expect("remove");
}

#[test]
fn unusual_but_allowed_ids_work() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed.bundle();
    for name in ["a", "A.b_c+d-e", "0", "...", "-x"] {
        let id = if name == "a" { bed.unique.clone() } else { format!("{}{name}", bed.unique) };
        finish(&mut b.command("run", &[], &id)).success();
    }
}

#[test]
fn user_ids_that_are_no_ids_are_refused() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    for bad in [
        "-1",
        "4294967295",
        "4294967296",
        "2147483648000",
        "18446744073709551615",
        "1.5",
        "\"0\"",
        "1e3",
        "null",
    ] {
        for field in ["uid", "gid"] {
            if bad == "null" || bad == "1e3" {
                continue; // absent means 0; 1e3 is 1000 to some readers of JSON
            }
            let b = bed.bundle().args(["id", "-u"]).set(&format!("/process/user/{field}"), "BAD");
            let id = b.fresh_id();
            let mut command = b.command("run", &[], &id);
            let text = fs::read_to_string(b.dir.join("config.json")).expect("config");
            b.write_text(&text.replace("\"BAD\"", bad));
            let out = finish(&mut command);
            assert!(out.code != Some(0) && out.stdout.is_empty(), "{field} {bad}: {out:?}");
        }
        let b = bed.bundle().args(["id"]).set("/process/user/additionalGids", json!(["BAD"]));
        let id = b.fresh_id();
        let mut command = b.command("run", &[], &id);
        let text = fs::read_to_string(b.dir.join("config.json")).expect("config");
        if bad != "null" && bad != "1e3" {
            b.write_text(&text.replace("\"BAD\"", bad));
            let out = finish(&mut command);
            assert!(out.code != Some(0) && out.stdout.is_empty(), "additional gid {bad}: {out:?}");
        }
    }
    bed.is_clean();
}

#[test]
fn exec_refuses_them_too() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let c = bed.bundle().idle();
    let users = [
        "-1",
        "4294967295",
        "4294967296",
        "18446744073709551616",
        "1000:-1",
        "1000:4294967295",
        "1000:4294967296",
        ":1",
        "1:",
        "1:2:3",
        " 0",
        "0x0",
        "1e3",
        "+0",
    ];
    for user in users {
        let option = format!("--user={user}");
        let out = c.with("exec", &[&option], &["id", "-u"]);
        if harness::runtime::is_ours() {
            assert!(out.code == Some(255) && out.stdout.is_empty(), "user {user}: {out:?}");
        } else {
            assert!(out.stdout != "0\n" || ["+0", "0x0", ":1"].contains(&user), "user {user}: {out:?}");
        }
    }
    for gid in ["-1", "4294967295", "4294967296"] {
        let option = format!("--additional-gids={gid}");
        let out = c.with("exec", &[&option], &["id", "-G"]);
        assert!(out.code != Some(0) || !harness::runtime::is_ours(), "additional gid {gid}: {out:?}");
    }
    c.with("exec", &["--user", "4294967294:4294967294"], &["id", "-u"]).success().stdout_is("4294967294\n");
}

/// An id outside the map has no meaning in the user namespace.
#[test]
fn ids_outside_the_map_are_refused() {
    let Some(_) = need::root() else { return };
    let bed = Bed::new();
    let b = bed
        .bundle()
        .user_namespace()
        .set("/process/user", json!({"uid": 70_000, "gid": 0}))
        .args(["id", "-u"]);
    let out = b.run();
    assert!(out.code != Some(0) && out.stdout.is_empty(), "{out:?}");
    bed.is_clean();
}
