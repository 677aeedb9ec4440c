//! The store from outside.

use std::io::{Read, Write};

use serde_json::json;

use super::*;
use crate::Reference;
use crate::manifest::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    (dir, store)
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

/// An image of one layer, whose content is `text`.
fn add(store: &Store, name: &str, text: &str) -> Descriptor {
    let mut addition = store.begin().unwrap();
    let layer = Descriptor::of(OCI_LAYER, text.as_bytes());
    let mut writer = addition.writer_of(&layer).unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    let blob = writer.finish_as(&layer).unwrap();
    addition.add(blob);
    let config = json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]}})
    .to_string();
    addition.add_bytes(config.as_bytes()).unwrap();
    let config = Descriptor::of(OCI_CONFIG, config.as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
    addition.add_bytes(manifest.as_bytes()).unwrap();
    let target = Descriptor::of(OCI_MANIFEST, manifest.as_bytes());
    addition.name(Some(reference(name)), target.clone());
    addition.commit().unwrap();
    target
}

#[test]
fn what_was_committed_is_there_for_everyone() {
    let (_dir, store) = store();
    let target = add(&store, "a", "layer");
    let other = Store::open(store.root()).unwrap();
    assert_eq!(
        other.images().unwrap(),
        [Image { reference: Some(reference("a:latest")), target: target.clone() }]
    );
    let Document::Manifest(manifest) = other.document(&target).unwrap() else { panic!() };
    assert_eq!(other.config(&manifest).unwrap().rootfs.diff_ids, [Digest::of(b"layer")]);
    let mut text = String::new();
    other.blob(&manifest.layers[0].digest).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "layer");
}

#[test]
fn what_was_not_committed_leaves_nothing() {
    let (_dir, store) = store();
    let mut addition = store.begin().unwrap();
    let digest = addition.add_bytes(b"x").unwrap();
    assert!(!store.has(&digest).unwrap());
    drop(addition);
    assert!(store.blobs().unwrap().is_empty());
    assert!(std::fs::read_dir(store.root().join(TMP)).unwrap().next().is_none());
}

#[test]
fn other_bytes_than_promised_are_refused() {
    let (_dir, store) = store();
    let addition = store.begin().unwrap();
    let promised = Descriptor::of(OCI_LAYER, b"good");
    for (content, reason) in [("evil", "its content is that of"), ("goo", "3 bytes, expected 4")] {
        let mut writer = addition.writer_of(&promised).unwrap();
        writer.write_all(content.as_bytes()).unwrap();
        let error = writer.finish_as(&promised).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let mut writer = addition.writer_of(&promised).unwrap();
    writer.write_all(b"good").unwrap();
    assert!(writer.write_all(b"!").is_err());
}

#[test]
fn names_come_and_go_and_only_the_unnamed_is_swept() {
    let (_dir, store) = store();
    let first = add(&store, "a", "one");
    add(&store, "b", "two");
    store.tag(&first, &reference("c:1")).unwrap();
    store.untag(&reference("a")).unwrap();
    assert_eq!(report::kind(&store.untag(&reference("a")).unwrap_err()), Some(Kind::NotFound));
    assert_eq!(store.sweep(Wait::Yes).unwrap(), Some(Freed::default()));
    store.untag(&reference("c:1")).unwrap();
    let freed = store.sweep(Wait::No).unwrap().unwrap();
    assert!(freed.blobs.len() == 3 && freed.bytes > 3, "{freed:?}");
    assert!(!store.has(&first.digest).unwrap());
    assert_eq!(store.images().unwrap().len(), 1);
    assert!(store.image(&reference("b")).is_ok());
    assert!(store.tag(&first, &reference("d")).is_err());
}

#[test]
fn nothing_is_swept_while_an_image_cannot_be_read() {
    let (_dir, store) = store();
    let target = add(&store, "a", "one");
    let path = store.root().join(Store::blob_path(&target.digest));
    std::fs::write(&path, "{}").unwrap();
    let error = format!("{:#}", store.sweep(Wait::Yes).unwrap_err());
    assert!(error.contains("image a:latest") && error.contains("its content is another one"), "{error}");
    assert_eq!(store.blobs().unwrap().len(), 3);
}

#[test]
fn what_a_killed_writer_left_goes_and_what_is_being_written_stays() {
    let (_dir, store) = store();
    let tmp = store.root().join(TMP);
    std::fs::write(tmp.join("1-0"), "left").unwrap();
    let busy = File::create(tmp.join("2-0")).unwrap();
    rustix::fs::flock(&busy, FlockOperation::LockExclusive).unwrap();
    Store::open(store.root()).unwrap();
    assert!(!tmp.join("1-0").exists());
    assert!(tmp.join("2-0").exists());
}

#[test]
fn many_add_at_once_and_none_is_lost() {
    let (_dir, store) = store();
    std::thread::scope(|s| {
        for n in 0..8 {
            let store = &store;
            s.spawn(move || add(store, &format!("image{n}"), &format!("layer {}", n % 3)));
        }
    });
    assert_eq!(store.images().unwrap().len(), 8);
    assert_eq!(store.sweep(Wait::Yes).unwrap(), Some(Freed::default()));
}

#[test]
fn a_store_of_another_version_or_a_damaged_index_is_told_by_its_path() {
    let (_dir, store) = store();
    std::fs::write(store.root().join("index.json"), "{").unwrap();
    let error = format!("{:#}", store.images().unwrap_err());
    assert!(error.contains("index.json"), "{error}");
    std::fs::write(store.root().join(LAYOUT), r#"{"imageLayoutVersion": "9"}"#).unwrap();
    let error = format!("{:#}", Store::open(store.root()).unwrap_err());
    assert!(error.contains("version \"9\""), "{error}");
}

#[test]
fn what_got_names_but_no_image_goes_with_the_next_command() {
    let (_dir, store) = store();
    let kept = add(&store, "a", "one");
    let mut addition = store.begin().unwrap();
    let blob = addition.add_bytes(b"lost").unwrap();
    let tree = addition.tree().unwrap();
    addition.add_layer(Digest::of(b"layer"), tree, Layer::default());
    addition.add_holder(Digest::of(b"other"), Holder { digest: blob.clone(), size: 4, made: None });
    addition.commit().unwrap();
    assert!(store.has(&blob).unwrap() && store.layers().unwrap().len() == 2);
    let journal = store.root().join(TMP).join("1-0.journal");
    let told = json!({"blobs": [blob, kept.digest], "layers": [Digest::of(b"layer"), Digest::of(b"other")]});
    std::fs::write(&journal, told.to_string()).unwrap();
    let lease = store.lease().unwrap();
    Store::open(store.root()).unwrap();
    assert!(journal.exists() && store.has(&blob).unwrap(), "somebody may be about to use it");
    drop(lease);
    Store::open(store.root()).unwrap();
    assert!(!journal.exists() && !store.has(&blob).unwrap() && store.layers().unwrap().is_empty());
    assert!(store.has(&kept.digest).unwrap());
    assert!(store.image(&reference("a")).is_ok());
}

#[test]
fn layers_come_with_what_is_known_of_them_and_go_with_the_image() {
    let (_dir, store) = store();
    let target = add(&store, "a", "layer");
    let diff_id = Digest::of(b"layer");
    assert_eq!(store.layer(&diff_id).unwrap(), None);
    for made in [None, Some("gzip-6"), None] {
        let mut addition = store.begin().unwrap();
        let tree = addition.tree().unwrap();
        rustix::fs::mkdirat(&tree, "file", Mode::from_raw_mode(0o755)).unwrap();
        addition.add_layer(diff_id.clone(), tree, Layer { bytes: 5, entries: 1, ..Layer::default() });
        let holder = Holder { digest: diff_id.clone(), size: 5, made: made.map(str::to_owned) };
        addition.add_holder(diff_id.clone(), holder);
        addition.commit().unwrap();
    }
    assert_eq!(store.layer(&diff_id).unwrap(), Some(Layer { bytes: 5, entries: 1, ..Layer::default() }));
    assert!(store.tree_place(&diff_id).join("file").exists());
    assert!(std::fs::read_dir(store.root().join(TMP)).unwrap().next().is_none());
    let holders = store.holders(&diff_id).unwrap();
    assert!(holders.len() == 1 && holders[0].made.as_deref() == Some("gzip-6"), "{holders:?}");
    let lease = store.lease().unwrap();
    assert_eq!(store.sweep(Wait::No).unwrap(), None);
    drop(lease);
    assert_eq!(store.sweep(Wait::No).unwrap(), Some(Freed::default()));
    assert_eq!(store.forget(&target.digest).unwrap().len(), 1);
    let freed = store.sweep(Wait::No).unwrap().unwrap();
    assert_eq!(freed.layers, std::slice::from_ref(&diff_id));
    assert_eq!(store.tree(&diff_id).unwrap().map(|_| ()), None);
}

#[test]
fn what_is_shared_is_counted_once_and_named_twice_is_not_shared() {
    let (_dir, store) = store();
    let one = add(&store, "a", "layer");
    add(&store, "b", "other");
    store.tag(&one, &reference("c")).unwrap();
    let usage = store.usage().unwrap();
    let of = |i: usize| (&usage.images[i], usage.images[i].shared);
    assert!(of(0).1 == 0 && of(0).0.blobs == of(2).0.blobs && of(2).1 == 0, "{usage:?}");
    assert_eq!(usage.blobs, of(0).0.blobs + of(1).0.blobs);
    assert_eq!(usage.unneeded, Freed::default());
    // An image with the same layer and config, under another manifest.
    let Document::Manifest(mut manifest) = store.document(&one).unwrap() else { panic!() };
    manifest.annotations.insert("x".to_owned(), "y".to_owned());
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let mut addition = store.begin().unwrap();
    addition.add_bytes(&bytes).unwrap();
    addition.name(Some(reference("d")), Descriptor::of(OCI_MANIFEST, &bytes));
    addition.commit().unwrap();
    let usage = store.usage().unwrap();
    let shared = manifest.config.size + manifest.layers[0].size;
    assert_eq!(usage.images.iter().map(|i| i.shared).collect::<Vec<_>>(), [shared, 0, shared, shared]);
}

#[test]
fn damage_is_found_told_and_taken_out() {
    let (_dir, store) = store();
    add(&store, "a", "one");
    let target = add(&store, "b", "two");
    store.tag(&target, &reference("c")).unwrap();
    assert_eq!(store.check(false).unwrap(), []);
    std::fs::write(store.root().join(Store::blob_path(&Digest::of(b"two"))), "tow").unwrap();
    let mut addition = store.begin().unwrap();
    let tree = addition.tree().unwrap();
    let fingerprint = Some(crate::layer::tree::fingerprint(tree.as_fd()).unwrap());
    addition.add_layer(Digest::of(b"one"), tree, Layer { fingerprint, ..Layer::default() });
    addition.commit().unwrap();
    assert_eq!(store.check(false).unwrap().len(), 3);
    std::fs::write(store.tree_place(&Digest::of(b"one")).join("new"), "").unwrap();
    let told: Vec<_> = store.check(false).unwrap().iter().map(ToString::to_string).collect();
    assert!(told[0].contains("its content is that of"), "{told:?}");
    assert!(told[1].contains("files were changed"), "{told:?}");
    assert!(
        told[2].starts_with("image b:latest: blob") && told[3].starts_with("image c:latest: blob"),
        "{told:?}"
    );
    assert_eq!(store.check(true).unwrap().len(), 4);
    assert_eq!(store.check(false).unwrap(), []);
    assert_eq!(store.images().unwrap().len(), 1);
    assert_eq!(store.layer(&Digest::of(b"one")).unwrap(), None);
}

#[test]
fn no_more_images_go_than_are_needed() {
    let (_dir, store) = store();
    let shared = "s".repeat(10_000);
    add(&store, "a", &shared);
    // A second name of the same image frees nothing by itself.
    add(&store, "b", &shared);
    add(&store, "c", &"c".repeat(20_000));
    let images = store.images().unwrap();
    let usage = store.usage().unwrap();
    let all = usage.blobs;
    let of = |name: &str| {
        let one = usage.images.iter().find(|u| u.image.reference == Some(reference(name)));
        one.unwrap().blobs
    };
    for (keep, gone) in [(all, 0), (all - 1, 2), (all - of("a"), 2), (all - of("a") - 1, 3), (0, 3)] {
        assert_eq!(store.enough(&images, keep).unwrap(), gone, "keep {keep} of {all}");
    }
}
