//! An image for a test, made in memory: all that a registry or a docker archive has of it.

use image::Digest;
use image::layer::tar::{Header, Kind, Writer};
use serde_json::{Value, json};

/// An image, its blobs by digest, and the archive that `docker save` would write.
pub struct Made {
    pub blobs: Vec<(Digest, Vec<u8>)>,
    pub manifest: (Digest, Vec<u8>),
    pub archive: Vec<u8>,
}

/// A layer of these entries and their contents.
pub fn layer(entries: impl IntoIterator<Item = (Header, Vec<u8>)>) -> Vec<u8> {
    let mut tar = Writer::new(Vec::new());
    for (header, content) in entries {
        tar.entry(&header, &content).expect("a tar in memory");
    }
    tar.finish().expect("a tar in memory")
}

/// The image of these layers, called `tag`; `execution` is its config's `config`.
pub fn make(tag: &str, layers: Vec<Vec<u8>>, execution: &Value) -> Made {
    let config = json!({"architecture": "amd64", "os": "linux", "config": execution,
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| Digest::of(l)).collect::<Vec<_>>()}});
    let config = config.to_string().into_bytes();
    let described = |kind: &str, bytes: &[u8]| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": Digest::of(bytes), "size": bytes.len()});
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("config.v1+json", &config),
        "layers": layers.iter().map(|l| described("layer.v1.tar", l)).collect::<Vec<_>>()});
    let manifest = manifest.to_string().into_bytes();
    let names: Vec<_> = layers.iter().map(|l| format!("{}.tar", Digest::of(l).hex())).collect();
    let list = json!([{"Config": "config.json", "RepoTags": [tag], "Layers": names}]).to_string();
    let files = [("config.json".to_owned(), config.clone())]
        .into_iter()
        .chain(names.into_iter().zip(layers.iter().cloned()))
        .chain([("manifest.json".to_owned(), list.into_bytes())]);
    Made {
        archive: layer(files.map(|(name, bytes)| (Header::new(Kind::File, name), bytes))),
        blobs: layers.into_iter().chain([config]).map(|b| (Digest::of(&b), b)).collect(),
        manifest: (Digest::of(&manifest), manifest),
    }
}

/// A layer with busybox in /bin, root and a user 1000 called `user` who is also in the group `extra`.
pub fn busybox_layer(applets: &str) -> Vec<u8> {
    let busybox = crate::host::which("busybox").expect("busybox in PATH");
    let program = Header { mode: 0o755, ..Header::new(Kind::File, "bin/busybox") };
    let mut entries = vec![(program, std::fs::read(busybox).expect("read busybox"))];
    for dir in ["bin", "dev", "etc", "home", "proc", "sys", "tmp"] {
        entries.push((Header::new(Kind::Directory, dir), Vec::new()));
    }
    for name in applets.split_whitespace() {
        let link = Header { link: b"busybox".to_vec(), ..Header::new(Kind::Symlink, format!("bin/{name}")) };
        entries.push((link, Vec::new()));
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\n";
    let group = "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n";
    for (name, text) in [("etc/passwd", passwd), ("etc/group", group)] {
        entries.push((Header::new(Kind::File, name), text.into()));
    }
    layer(entries)
}
