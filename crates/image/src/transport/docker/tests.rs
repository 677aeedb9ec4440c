//! All transports, there and back.

use std::io::Seek;
use std::num::NonZero;
use std::path::Path;

use serde_json::json;

use super::super::files::{Archive, Folder};
use super::super::{dir, layout};
use super::*;
use crate::Store;
use crate::layer::compress::{Compression, compress};
use crate::manifest::{OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST};
use crate::store::Unpack;
use crate::transfer::{Choice, Conversion, Options, copy};

fn options() -> Options<'static> {
    Options { choice: Choice::All, conversion: Conversion::default(), jobs: 2, listener: &|_| {} }
}

fn layer(path: &str) -> Vec<u8> {
    let mut writer = Tar::new(Vec::new());
    writer.entry(&Header::new(Entry::File, path), path.as_bytes()).unwrap();
    writer.finish().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    compress(&mut &bytes[..], &mut out, Compression::GZIP, NonZero::<usize>::MIN).unwrap();
    out
}

/// A store with an image of two layers under the name `a`.
fn store(dir: &Path) -> Store {
    let store = Store::open(&dir.join("store")).unwrap();
    let mut addition = store.begin().unwrap();
    let plain = [layer("one"), layer("two")];
    let layers: Vec<_> = plain.iter().map(|l| Descriptor::of(OCI_LAYER_GZIP, &gzip(l))).collect();
    for l in &plain {
        addition.add_bytes(&gzip(l)).unwrap();
    }
    let ids: Vec<_> = plain.iter().map(|l| Digest::of(l)).collect();
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}})
            .to_string();
    addition.add_bytes(config.as_bytes()).unwrap();
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": Descriptor::of(OCI_CONFIG, config.as_bytes()), "layers": layers})
    .to_string();
    addition.add_bytes(manifest.as_bytes()).unwrap();
    addition.name(Some("a".parse().unwrap()), Descriptor::of(OCI_MANIFEST, manifest.as_bytes()));
    addition.commit().unwrap();
    store
}

fn back(source: &dyn Source) -> (Descriptor, Digest) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let target = store.receiving(vec![Some("b".parse().unwrap())], Unpack::Later).unwrap();
    let root = copy(source, &target, &options()).unwrap();
    drop(target);
    let Document::Manifest(manifest) = store.document(&root).unwrap() else { panic!() };
    (root, manifest.config.digest)
}

fn open(dir: &Path, bytes: &[u8]) -> Archive {
    let mut file = Spool(dir).file().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    Archive::open(file, "x.tar", Spool(dir)).unwrap()
}

#[test]
fn images_go_out_and_come_back_as_they_were() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path());
    let image = store.image(&"a".parse().unwrap()).unwrap();
    let reading = store.reading(&image).unwrap();
    let (_, id) = back(&reading);

    let path = temp.path().join("layout");
    for name in [Some("1"), Some("2"), None] {
        copy(&reading, &layout::Writing::new(&path, name).unwrap(), &options()).unwrap();
    }
    let open_layout = |name: Option<&str>| layout::Reading::open(Folder::open(&path).unwrap(), name);
    assert_eq!(back(&open_layout(Some("1")).unwrap()), (image.target.clone(), id.clone()));
    assert_eq!(back(&open_layout(Some(&format!("@{}", image.target.digest))).unwrap()).0, image.target);
    assert_eq!(open_layout(None).unwrap().root().unwrap().0, image.target, "all names lead to the same");
    assert!(report::line(&open_layout(Some("3")).unwrap_err()).contains("no image 3; there are: 1, 2"));
    assert_eq!(std::fs::read_dir(path.join("blobs/sha256")).unwrap().count(), 4);

    let path = temp.path().join("dir");
    copy(&reading, &dir::Writing::new(&path).unwrap(), &options()).unwrap();
    assert_eq!(back(&dir::Reading::open(&path).unwrap()), (image.target.clone(), id.clone()));

    let target = layout::WritingArchive::new(Vec::new(), Some("n"), Spool(temp.path()));
    copy(&reading, &target, &options()).unwrap();
    let bytes = target.into_inner().unwrap();
    let archive = open(temp.path(), &bytes);
    assert_eq!(back(&layout::Reading::open(archive, Some("n")).unwrap()), (image.target.clone(), id.clone()));

    let mut archives = [Vec::new(), Vec::new()];
    for bytes in &mut archives {
        let writing = Writing::new(Spool(temp.path()));
        let tags = ["a:1", "b:2"].map(|t| t.parse().unwrap()).to_vec();
        copy(&reading, &writing.image(tags), &options()).unwrap();
        copy(&reading, &writing.image(vec![]), &options()).unwrap();
        writing.write(bytes).unwrap();
    }
    assert!(archives[0] == archives[1], "the same image makes the same archive");
    let archive = open(temp.path(), &archives[0]);
    assert_eq!(images(&archive).unwrap().len(), 2);
    let item = image_named(&archive, "b:2");
    assert_eq!(item.repo_tags.clone().unwrap(), ["docker.io/library/a:1", "docker.io/library/b:2"]);
    assert_eq!(back(&Reading::open(&archive, &item).unwrap()).1, id, "the id is the config's");
    assert!(super::image(&archive, None).unwrap_err().to_string().contains("several images"));
}

fn image_named(archive: &Archive, name: &str) -> Item {
    image(archive, Some(&name.parse().unwrap())).unwrap()
}

/// The programs whose formats these are.
#[test]
fn skopeo_and_podman_agree() {
    use std::process::Command;
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path());
    let image_ = store.image(&"a".parse().unwrap()).unwrap();
    let reading = store.reading(&image_).unwrap();
    let (_, id) = back(&reading);
    let skopeo = |args: &[&str]| {
        let program = ["/var/cache/berth-peers/bin/skopeo", "skopeo"]
            .into_iter()
            .find(|p| Path::new(p).exists() || !p.contains('/'));
        let out = Command::new(program?)
            .current_dir(temp.path())
            .args(["--insecure-policy"])
            .args(args)
            .output()
            .ok()?;
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        Some(out.stdout)
    };
    let mut bytes = Vec::new();
    let writing = Writing::new(Spool(temp.path()));
    copy(&reading, &writing.image(vec!["a:1".parse().unwrap()]), &options()).unwrap();
    writing.write(&mut bytes).unwrap();
    std::fs::write(temp.path().join("d.tar"), &bytes).unwrap();
    copy(&reading, &dir::Writing::new(&temp.path().join("dir")).unwrap(), &options()).unwrap();
    copy(&reading, &layout::Writing::new(&temp.path().join("layout"), Some("1")).unwrap(), &options())
        .unwrap();
    let target = layout::WritingArchive::new(Vec::new(), Some("1"), Spool(temp.path()));
    copy(&reading, &target, &options()).unwrap();
    std::fs::write(temp.path().join("o.tar"), target.into_inner().unwrap()).unwrap();
    for (n, from) in
        ["docker-archive:d.tar:a:1", "dir:dir", "oci:layout:1", "oci-archive:o.tar:1"].into_iter().enumerate()
    {
        let Some(_) = skopeo(&["copy", "-q", from, &format!("docker-archive:back{n}.tar:b:{n}")]) else {
            eprintln!("skipped: no skopeo");
            return;
        };
        skopeo(&["copy", "-q", from, &format!("oci-archive:oback{n}.tar:b")]);
        // From one family to the other, skopeo writes the config anew; all of it comes, but under another id.
        let read = |name: String| open(temp.path(), &std::fs::read(temp.path().join(name)).unwrap());
        let archive = read(format!("back{n}.tar"));
        let item = image_named(&archive, &format!("b:{n}"));
        let docker = back(&Reading::open(&archive, &item).unwrap()).1;
        let oci = back(&layout::Reading::open(read(format!("oback{n}.tar")), Some("b")).unwrap()).1;
        assert_eq!(if n == 0 { docker } else { oci }, id, "{from}");
    }
}

#[test]
fn damaged_archives_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let plain = layer("one");
    let config = json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&plain)]}})
    .to_string();
    let archive = |list: &str, layer: &[u8]| {
        let mut tar = Tar::new(Vec::new());
        tar.entry(&Header::new(Entry::File, "c.json"), config.as_bytes()).unwrap();
        tar.entry(&Header::new(Entry::File, "l.tar"), layer).unwrap();
        tar.entry(&Header::new(Entry::File, MANIFEST), list.as_bytes()).unwrap();
        open(temp.path(), &tar.finish().unwrap())
    };
    let good = r#"[{"Config":"c.json","RepoTags":null,"Layers":["l.tar"]}]"#;
    let load = |archive: &Archive| -> Result<()> {
        let item = image(archive, None)?;
        let dir = tempfile::tempdir()?;
        let store = Store::open(dir.path())?;
        let target = store.receiving(vec![None], Unpack::Later)?;
        copy(&Reading::open(archive, &item)?, &target, &options())?;
        Ok(())
    };
    load(&archive(good, &plain)).unwrap();
    load(&archive(good, &gzip(&plain))).unwrap();
    let other = layer("two");
    for (list, content, reason) in [
        ("[]", &plain, "no image in it"),
        ("{}", &plain, "manifest.json"),
        (r#"[{"Config":"../c.json","Layers":["l.tar"]}]"#, &plain, "no file"),
        (r#"[{"Config":"c.json","Layers":["none"]}]"#, &plain, "no file none"),
        (r#"[{"Config":"c.json","Layers":[]}]"#, &plain, "1 diff_ids"),
        (r#"[{"Config":"l.tar","Layers":["l.tar"]}]"#, &plain, "image config"),
        (good, &other, "its content is that of"),
        (good, &gzip(&other), "as the config promises"),
        (good, &gzip(&other)[..50].to_vec(), "blob"),
    ] {
        let error = report::line(&load(&archive(list, content)).expect_err(reason));
        assert!(error.contains(reason), "{reason}: {error}");
    }
}
