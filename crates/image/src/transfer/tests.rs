//! Copies between a source in memory and stores.

use std::collections::BTreeSet;
use std::num::NonZero;

use serde_json::json;

use super::*;
use crate::layer::tar::{Header, Kind, Writer};
use crate::manifest::{
    DOCKER_CONFIG, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST,
};
use crate::store::{Unpack, Wait};
use crate::{Reference, Store};

/// Blobs by their digests, and where to begin.
struct Memory {
    blobs: BTreeMap<Digest, Vec<u8>>,
    root: Descriptor,
    /// Blobs that were asked for.
    read: Mutex<BTreeSet<Digest>>,
}

impl Source for Memory {
    fn root(&self) -> Result<(Descriptor, Vec<u8>)> {
        Ok((self.root.clone(), self.document(&self.root)?))
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        self.blobs.get(&descriptor.digest).cloned().context("no such document")
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        self.read.lock().unwrap().insert(descriptor.digest.clone());
        Ok(Box::new(self.blobs.get(&descriptor.digest).context("no such blob")?.as_slice()))
    }
}

impl Memory {
    fn new() -> Memory {
        Memory { blobs: BTreeMap::new(), root: Descriptor::of("", b""), read: Mutex::default() }
    }

    fn add(&mut self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let descriptor = Descriptor::of(media_type, bytes);
        self.blobs.insert(descriptor.digest.clone(), bytes.to_vec());
        descriptor
    }

    /// An image of two layers, the first packed with gzip, the second not at all.
    fn image(&mut self, architecture: &str) -> Descriptor {
        let (first, second) = (layer("first", b"1"), layer(architecture, b"2"));
        let packed = packed(&first, Compression::GZIP);
        let layers = [self.add(OCI_LAYER_GZIP, &packed), self.add(OCI_LAYER, &second)];
        let config = json!({"architecture": architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&first), Digest::of(&second)]}});
        let config = self.add(OCI_CONFIG, config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers,
            "annotations": {"a": "b"}});
        self.root = self.add(OCI_MANIFEST, manifest.to_string().as_bytes());
        self.root.clone()
    }
}

fn packed(bytes: &[u8], how: Compression) -> Vec<u8> {
    let mut out = Vec::new();
    compress(&mut &bytes[..], &mut out, how, NonZero::<usize>::MIN).unwrap();
    out
}

fn layer(path: &str, content: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    writer.entry(&Header::new(Kind::File, path), content).unwrap();
    writer.finish().unwrap()
}

fn silent(_: Event) {}

fn all(conversion: Conversion) -> Options<'static> {
    Options { choice: Choice::All, conversion, jobs: 3, listener: &silent }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    (dir, store)
}

fn name(text: &str) -> Vec<Option<Reference>> {
    vec![Some(text.parse().unwrap())]
}

#[test]
fn an_image_comes_whole_and_is_unpacked_on_the_way() {
    let (_dir, store) = store();
    let mut source = Memory::new();
    let root = source.image("amd64");
    let events = Mutex::new(Vec::new());
    let listener = |event| events.lock().unwrap().push(event);
    let options = Options { listener: &listener, ..all(Conversion::default()) };
    let target = store.receiving(name("a"), Unpack::Now).unwrap();
    assert_eq!(copy(&source, &target, &options).unwrap(), root);
    drop(target);
    let image = store.image(&"a".parse().unwrap()).unwrap();
    let Document::Manifest(manifest) = store.document(&image.target).unwrap() else { panic!() };
    let config = store.config(&manifest).unwrap();
    for (diff_id, file) in config.rootfs.diff_ids.iter().zip(["first", "amd64"]) {
        assert!(store.tree_place(diff_id).join(file).exists(), "{file}");
        assert_eq!(store.layer(diff_id).unwrap().unwrap().bytes, 1);
    }
    let events = events.into_inner().unwrap();
    let told = |digest: &Digest| {
        let of = |e: &&Event| match e {
            Event::Begin { digest: d, .. } | Event::Done { digest: d } | Event::Present { digest: d } => {
                d == digest
            }
            Event::Bytes { .. } => false,
        };
        events.iter().filter(of).count()
    };
    for layer in &manifest.layers {
        assert_eq!(told(&layer.digest), 2);
    }
    assert_eq!(store.sweep(Wait::Yes).unwrap().unwrap().bytes, 0);
    // Again: nothing is read but what tells that nothing is to be read.
    source.read.lock().unwrap().clear();
    let target = store.receiving(name("b"), Unpack::Now).unwrap();
    copy(&source, &target, &all(Conversion::default())).unwrap();
    assert!(source.read.into_inner().unwrap().is_empty());
    assert_eq!(store.images().unwrap().len(), 2);
}

#[test]
fn what_is_not_what_was_promised_leaves_nothing() {
    type Spoil = fn(&mut Memory, &mut serde_json::Value, &mut serde_json::Value);
    let cases: [(&str, Spoil); 7] = [
        ("not sha256", |source, manifest, _| {
            let digest: Digest = serde_json::from_value(manifest["layers"][0]["digest"].clone()).unwrap();
            source.blobs.get_mut(&digest).unwrap()[20] ^= 1;
        }),
        ("no such blob", |source, manifest, _| {
            let digest: Digest = serde_json::from_value(manifest["layers"][1]["digest"].clone()).unwrap();
            source.blobs.remove(&digest);
        }),
        ("more bytes than were announced", |_, manifest, _| manifest["layers"][1]["size"] = json!(1000)),
        ("expected 99999", |_, manifest, _| manifest["layers"][1]["size"] = json!(99999)),
        ("as the config promises", |_, _, config| {
            let ids = config["rootfs"]["diff_ids"].as_array_mut().unwrap();
            ids.swap(0, 1);
        }),
        ("3 diff_ids", |_, _, config| {
            let ids = config["rootfs"]["diff_ids"].as_array_mut().unwrap();
            ids.push(ids[0].clone());
        }),
        ("unknown type", |source, manifest, config| {
            let evil = [vec![0x41; 156], vec![0; 356]].concat();
            let mut evil = evil;
            evil[156] = b'Z';
            evil[124..136].copy_from_slice(b"00000000000\0");
            evil[100..124].copy_from_slice(b"0000644\x000000000\x000000000\x00");
            evil[136..148].copy_from_slice(b"00000000000\0");
            evil[148..156].copy_from_slice(b"        ");
            let sum: u32 = evil.iter().map(|b| u32::from(*b)).sum();
            evil[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            manifest["layers"][1] = json!(source.add(OCI_LAYER, &evil));
            config["rootfs"]["diff_ids"][1] = json!(Digest::of(&evil));
        }),
    ];
    for (reason, spoil) in cases {
        let (_dir, store) = store();
        let mut source = Memory::new();
        let root = source.image("amd64");
        let mut manifest: serde_json::Value = serde_json::from_slice(&source.blobs[&root.digest]).unwrap();
        let config: Descriptor = serde_json::from_value(manifest["config"].clone()).unwrap();
        let mut config: serde_json::Value = serde_json::from_slice(&source.blobs[&config.digest]).unwrap();
        spoil(&mut source, &mut manifest, &mut config);
        manifest["config"] = json!(source.add(OCI_CONFIG, config.to_string().as_bytes()));
        source.root = source.add(OCI_MANIFEST, manifest.to_string().as_bytes());
        for unpack in [Unpack::Now, Unpack::Later] {
            if reason == "unknown type" && unpack == Unpack::Later {
                continue;
            }
            let target = store.receiving(name("a"), unpack).unwrap();
            let done = copy(&source, &target, &all(Conversion::default()));
            let error = format!("{:#}", done.expect_err(reason));
            let reasons = [reason, "its content is that of", "corrupt", "deflate", "wrong checksum"];
            let expected = if reason == "not sha256" { &reasons[1..] } else { &reasons[..1] };
            assert!(expected.iter().any(|r| error.contains(r)), "{reason}: {error}");
            drop(target);
            assert!(store.images().unwrap().is_empty() && store.blobs().unwrap().is_empty(), "{reason}");
            assert!(store.layers().unwrap().is_empty(), "{reason}");
            assert_eq!(std::fs::read_dir(store.root().join("tmp")).unwrap().count(), 0, "{reason}");
        }
    }
}

#[test]
fn conversions_change_the_packing_and_never_what_is_packed() {
    let mut source = Memory::new();
    source.image("amd64");
    let docker = Some(Family::Docker);
    let gzip = Some(Compression::GZIP);
    for (conversion, expected) in [
        (Conversion::default(), ["tar+gzip", "v1.tar"]),
        (Conversion { compression: gzip, ..Conversion::default() }, ["tar+gzip", "tar+gzip"]),
        (
            Conversion { compression: Some(Compression::ZSTD), ..Conversion::default() },
            ["tar+gzip", "tar+zstd"],
        ),
        (
            Conversion { compression: Some(Compression::ZSTD), force: true, ..Conversion::default() },
            ["tar+zstd", "tar+zstd"],
        ),
        (
            Conversion { compression: Some(Compression::Plain), force: true, ..Conversion::default() },
            ["v1.tar", "v1.tar"],
        ),
        (
            Conversion { compression: gzip, family: docker, ..Conversion::default() },
            ["diff.tar.gzip", "diff.tar.gzip"],
        ),
    ] {
        let (_dir, store) = store();
        let target = store.receiving(name("a"), Unpack::Later).unwrap();
        let root = copy(&source, &target, &all(conversion)).unwrap();
        drop(target);
        let Document::Manifest(manifest) = store.document(&root).unwrap() else { panic!() };
        let types: Vec<_> = manifest.layers.iter().map(|l| l.media_type.as_str()).collect();
        assert!(types.iter().zip(expected).all(|(t, e)| t.ends_with(e)), "{conversion:?}: {types:?}");
        assert_eq!(root.media_type == DOCKER_MANIFEST, conversion.family == docker);
        assert_eq!(manifest.config.media_type == DOCKER_CONFIG, conversion.family == docker);
        assert_eq!(manifest.annotations["a"], "b");
        let config = store.config(&manifest).unwrap();
        for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            let ((), content) = unpacked(store.blob(&layer.digest).unwrap(), |_| Ok(())).unwrap();
            assert_eq!(content.digest, *diff_id);
        }
        assert_eq!(store.sweep(Wait::Yes).unwrap().unwrap().blobs, []);
    }
}

#[test]
fn what_a_layer_became_is_remembered() {
    let (_dir, first) = store();
    let mut source = Memory::new();
    source.image("amd64");
    let target = first.receiving(name("a"), Unpack::Later).unwrap();
    copy(&source, &target, &all(Conversion::default())).unwrap();
    drop(target);
    let image = first.image(&"a".parse().unwrap()).unwrap();
    let conversion = Conversion { compression: Some(Compression::GZIP), ..Conversion::default() };
    let (_dir, second) = store();
    let mut roots = Vec::new();
    for _ in 0..2 {
        let events = Mutex::new(Vec::new());
        let listener = |event| events.lock().unwrap().push(event);
        let options = Options { listener: &listener, ..all(conversion) };
        let target = second.receiving(name("a"), Unpack::Later).unwrap();
        roots.push(copy(&first.reading(&image).unwrap(), &target, &options).unwrap());
        let began = events.into_inner().unwrap().iter().filter(|e| matches!(e, Event::Begin { .. })).count();
        assert_eq!(began, if roots.len() == 1 { 3 } else { 0 });
    }
    assert_eq!(roots[0].digest, roots[1].digest);
}

#[test]
fn indexes_are_copied_whole_or_in_part() {
    let mut source = Memory::new();
    let platform = |d: Descriptor, a: &str| Descriptor {
        platform: Some(crate::manifest::Platform {
            architecture: a.into(),
            os: "linux".into(),
            ..Default::default()
        }),
        ..d
    };
    let (one, two) = (source.image("amd64"), source.image("arm64"));
    let manifests = [platform(one.clone(), "amd64"), platform(two.clone(), "arm64")];
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    source.root = source.add(OCI_INDEX, index.to_string().as_bytes());
    let (_dir, store) = store();
    let target = store.receiving(name("all"), Unpack::Later).unwrap();
    assert_eq!(copy(&source, &target, &all(Conversion::default())).unwrap().digest, source.root.digest);
    drop(target);
    let pick = |index: &Index| Ok(index.manifests[1].clone());
    let options = Options { choice: Choice::One(&pick), ..all(Conversion::default()) };
    let target = store.receiving(name("one"), Unpack::Later).unwrap();
    assert_eq!(copy(&source, &target, &options).unwrap().digest, two.digest);
    drop(target);
    let target = store.receiving(name("docker"), Unpack::Later).unwrap();
    let conversion = Conversion { family: Some(Family::Docker), ..Conversion::default() };
    let root = copy(&source, &target, &all(conversion)).unwrap();
    drop(target);
    let Document::Index(index) = store.document(&root).unwrap() else { panic!() };
    assert!(index.manifests.iter().all(|m| m.media_type == DOCKER_MANIFEST && m.platform.is_some()));
    for child in &index.manifests {
        store.document(child).unwrap();
    }
    let (_dir, empty) = self::store();
    let options = Options { choice: Choice::IndexOnly, ..all(Conversion::default()) };
    let target = empty.receiving(name("index"), Unpack::Later).unwrap();
    copy(&source, &target, &options).unwrap();
    drop(target);
    assert_eq!(empty.blobs().unwrap().len(), 1);
}
