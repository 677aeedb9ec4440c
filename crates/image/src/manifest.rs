//! What is an image made of? Descriptors, manifests, indexes and configs: of image-spec 1.1, and of Docker's schema 2, whose
//! documents have the same fields and other media types.
//!
//! A document is kept as the bytes that came, since its digest is theirs; the structures here are for reading it, and leave out
//! what nobody asks for. What contradicts itself is refused: an index that is a manifest too (CVE-2021-41190), a config with
//! other layers than the manifest.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Bytes that a manifest or an index may have (as registries limit them).
pub const MANIFEST_MOST: u64 = 4 << 20;
/// Bytes that a config may have.
pub const CONFIG_MOST: u64 = 8 << 20;
/// Layers that an image may have: more than any file system stacks.
pub const LAYERS_MOST: usize = 4096;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// image-spec, descriptor.md.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Where else the content can be had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// The content itself, in base64; a hint that we pass on and do not use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

impl Descriptor {
    /// Of `bytes`.
    pub fn of(media_type: &str, bytes: &[u8]) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
            artifact_type: None,
            urls: Vec::new(),
            data: None,
        }
    }

    /// Whether it leads to a list of manifests.
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_INDEX)
    }

    /// Whether it leads to the config of an image that can be run, rather than to that of some other artifact.
    pub fn is_config(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG)
    }

    /// Whether it leads to a layer of a file system.
    pub fn is_layer(&self) -> bool {
        crate::family::LayerType::parse(&self.media_type).is_some()
    }

    /// Whether it leads to a manifest.
    pub fn is_manifest(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST)
    }
}

/// image-spec, image-index.md, "platform".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

/// image-spec, manifest.md.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// image-spec, image-index.md.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    /// A list of manifests, of OCI's family.
    pub fn of(manifests: Vec<Descriptor>) -> Index {
        Index {
            schema_version: 2,
            media_type: Some(OCI_INDEX.to_owned()),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }
}

#[allow(clippy::large_enum_variant, reason = "one at a time, and short-lived")]
/// What a descriptor of an image leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Document {
    /// The media type of a document that nobody announced: its own word, or what its fields say.
    pub fn media_type(bytes: &[u8]) -> Result<String> {
        ensure!(
            bytes.len() as u64 <= MANIFEST_MOST,
            "manifest of {} bytes, at most {MANIFEST_MOST}",
            bytes.len()
        );
        let fields: Fields = serde_json::from_slice(bytes).context("manifest")?;
        Ok(match fields.media_type {
            Some(own) => own,
            None if fields.manifests.is_some() => OCI_INDEX.to_owned(),
            None => OCI_MANIFEST.to_owned(),
        })
    }

    /// Read a document that was announced as `media_type`.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Document> {
        ensure!(
            bytes.len() as u64 <= MANIFEST_MOST,
            "manifest of {} bytes, at most {MANIFEST_MOST}",
            bytes.len()
        );
        let fields: Fields = serde_json::from_slice(bytes).context("manifest")?;
        if let Some(own) = fields.media_type.as_deref()
            && own != media_type
        {
            bail!("manifest: it calls itself {own:?}, but was announced as {media_type:?}");
        }
        let (is_index, is_manifest) = (
            matches!(media_type, OCI_INDEX | DOCKER_INDEX),
            matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST),
        );
        if !is_index && !is_manifest {
            bail!("media type {media_type:?} is neither an image manifest nor an index");
        }
        if fields.fs_layers.is_some() || fields.schema_version == Some(1) {
            bail!("manifest: schema version 1, which is too old to be verified");
        }
        ensure!(fields.schema_version == Some(2), "manifest: schemaVersion is not 2");
        let (has_index, has_manifest) =
            (fields.manifests.is_some(), fields.layers.is_some() || fields.config.is_some());
        if has_index && has_manifest {
            bail!("manifest: it has both manifests and layers, so that it could be read in two ways");
        }
        if is_index {
            let index: Index = serde_json::from_slice(bytes).context("index")?;
            return Ok(Document::Index(index));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).context("manifest")?;
        ensure!(manifest.layers.len() <= LAYERS_MOST, "manifest: more than {LAYERS_MOST} layers");
        Ok(Document::Manifest(manifest))
    }
}

/// The fields that tell the kind of a document.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// image-spec, config.md: what is asked for by others than the one who runs the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    pub architecture: String,
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    pub rootfs: RootFs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<Vec<History>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Execution>,
    /// Whatever else stands there, kept.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// The layers, uncompressed, the lowest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    pub diff_ids: Vec<Digest>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// config.md, "config": how the image is run; null and absent are the same to Docker, which writes many nulls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Execution {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Docker's own: Healthcheck, OnBuild, Shell and others, kept.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl Config {
    /// Read the config of an image with `layers` layers.
    pub fn parse(bytes: &[u8], layers: usize) -> Result<Config> {
        ensure!(
            bytes.len() as u64 <= CONFIG_MOST,
            "image config of {} bytes, at most {CONFIG_MOST}",
            bytes.len()
        );
        let config: Config = serde_json::from_slice(bytes).context("image config")?;
        ensure!(
            config.rootfs.kind == "layers",
            "image config: rootfs.type is {:?}, not \"layers\"",
            config.rootfs.kind
        );
        let ids = config.rootfs.diff_ids.len();
        ensure!(ids == layers, "image config: {ids} diff_ids, but the manifest has {layers} layers");
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn descriptor(kind: &str) -> Value {
        json!({"mediaType": kind, "digest": Digest::of(kind.as_bytes()), "size": 3})
    }

    fn manifest() -> Value {
        json!({"schemaVersion": 2, "config": descriptor(OCI_CONFIG), "layers": [descriptor(OCI_LAYER_GZIP)]})
    }

    fn parse(kind: &str, document: &Value) -> Result<Document> {
        Document::parse(kind, document.to_string().as_bytes())
    }

    #[test]
    fn manifests_and_indexes_of_both_families() {
        for kind in [OCI_MANIFEST, DOCKER_MANIFEST] {
            let Document::Manifest(m) = parse(kind, &manifest()).unwrap() else { panic!("{kind}") };
            assert_eq!((m.layers.len(), m.config.size), (1, 3));
        }
        let index = json!({"schemaVersion": 2, "manifests": [
            {"mediaType": OCI_MANIFEST, "digest": Digest::of(b""), "size": 1,
             "platform": {"architecture": "arm", "os": "linux", "variant": "v7", "os.features": ["x"]}}]});
        for kind in [OCI_INDEX, DOCKER_INDEX] {
            let Document::Index(i) = parse(kind, &index).unwrap() else { panic!("{kind}") };
            assert_eq!(i.manifests[0].platform.as_ref().unwrap().variant.as_deref(), Some("v7"));
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let mut both = manifest();
        both["manifests"] = json!([]);
        let mut renamed = manifest();
        renamed["mediaType"] = json!(OCI_INDEX);
        let mut old = manifest();
        old["schemaVersion"] = json!(1);
        let mut signed = manifest();
        signed["fsLayers"] = json!([]);
        let mut digest = manifest();
        digest["layers"][0]["digest"] = json!("sha256:../x");
        let mut negative = manifest();
        negative["layers"][0]["size"] = json!(-1);
        let mut many = manifest();
        many["layers"] = json!(vec![descriptor(OCI_LAYER); LAYERS_MOST + 1]);
        for (kind, document, reason) in [
            (OCI_MANIFEST, both.clone(), "in two ways"),
            (OCI_INDEX, both, "in two ways"),
            (OCI_MANIFEST, renamed, "calls itself"),
            (OCI_MANIFEST, old, "schema version 1"),
            (OCI_MANIFEST, signed, "schema version 1"),
            (OCI_MANIFEST, digest, "hexadecimal"),
            (OCI_MANIFEST, negative, "invalid value"),
            (OCI_MANIFEST, many, "more than"),
            (OCI_MANIFEST, json!([]), "manifest"),
            (OCI_MANIFEST, json!({"schemaVersion": 2}), "missing field"),
            (OCI_INDEX, manifest(), "missing field `manifests`"),
            ("text/html", manifest(), "neither"),
        ] {
            let error = format!("{:#}", parse(kind, &document).expect_err(reason));
            assert!(error.contains(reason), "{reason}: {error}");
        }
        let huge = vec![b' '; MANIFEST_MOST as usize + 1];
        assert!(Document::parse(OCI_MANIFEST, &huge).unwrap_err().to_string().contains("at most"));
    }

    /// Something else in place of the value at `place`, counted through the whole document.
    fn replace(document: &mut Value, place: &mut usize, by: &Value) -> bool {
        if *place == 0 {
            *document = by.clone();
            return true;
        }
        *place -= 1;
        match document {
            Value::Array(values) => values.iter_mut().any(|v| replace(v, place, by)),
            Value::Object(values) => values.values_mut().any(|v| replace(v, place, by)),
            _ => false,
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            Just(json!(1.5)),
            "\\PC{0,12}".prop_map(Value::from),
            "(sha256|sha512):[0-9a-f./]{0,64}".prop_map(Value::from),
            Just(json!([])),
            Just(json!({})),
            Just(descriptor(OCI_LAYER_ZSTD)),
            Just(json!([descriptor(DOCKER_LAYER_GZIP), descriptor(OCI_CONFIG)])),
            Just(json!({"a": {"b": [1, "c"]}})),
        ]
    }

    fn mutated(mut document: Value, mut place: usize, by: &Value) -> Vec<u8> {
        replace(&mut document, &mut place, by);
        document.to_string().into_bytes()
    }

    /// What was read is written and read again as the same.
    fn lasts<T: Serialize + for<'a> Deserialize<'a> + PartialEq + std::fmt::Debug>(
        read: &T,
    ) -> Result<(), TestCaseError> {
        let again: T = serde_json::from_slice(&serde_json::to_vec(read).unwrap()).unwrap();
        prop_assert_eq!(read, &again);
        Ok(())
    }

    proptest! {
        #[test]
        fn fuzz_manifest(place in 0_usize..16, by in any_value()) {
            let bytes = mutated(manifest(), place, &by);
            if let Ok(Document::Manifest(m)) = Document::parse(OCI_MANIFEST, &bytes) {
                lasts(&m)?;
            }
        }

        #[test]
        fn fuzz_index(place in 0_usize..16, by in any_value()) {
            let index = json!({"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST)], "annotations": {"a": "b"},
                "subject": descriptor(DOCKER_MANIFEST)});
            let bytes = mutated(index, place, &by);
            if let Ok(Document::Index(i)) = Document::parse(OCI_INDEX, &bytes) {
                lasts(&i)?;
            }
        }

        #[test]
        fn fuzz_config(place in 0_usize..24, by in any_value()) {
            let config = json!({"architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
                "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"x")]}, "history": [{"created_by": "x", "empty_layer": true}],
                "config": {"Cmd": ["sh"], "Env": ["A=b"], "ExposedPorts": {"80/tcp": {}}, "Labels": {"a": "b"}, "User": "0"}});
            if let Ok(c) = Config::parse(&mutated(config, place, &by), 1) {
                lasts(&c)?;
            }
        }

        #[test]
        fn fuzz_document_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..400) {
            for kind in [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX] {
                let _parsed = Document::parse(kind, &bytes);
                let whole = manifest().to_string();
                let part = &whole.as_bytes()[..cut.min(whole.len() - 1)];
                prop_assert!(Document::parse(kind, part).is_err());
            }
            let _type = Document::media_type(&bytes);
            let _config = Config::parse(&bytes, 0);
        }
    }

    #[test]
    fn configs_agree_with_their_manifest_and_keep_what_we_do_not_know() {
        let text = json!({"architecture": "amd64", "os": "linux", "docker_version": "20", "rootfs": {"type": "layers",
            "diff_ids": [Digest::of(b"x")]}, "config": {"Cmd": ["sh"], "Env": null, "Healthcheck": {"Test": ["NONE"]}}});
        let config = Config::parse(text.to_string().as_bytes(), 1).unwrap();
        let execution = config.config.as_ref().unwrap();
        assert_eq!(execution.cmd.as_deref(), Some(&["sh".to_owned()][..]));
        assert_eq!(execution.env, None);
        assert!(execution.other.contains_key("Healthcheck"));
        let again = serde_json::to_value(&config).unwrap();
        assert_eq!(again["docker_version"], "20");
        assert_eq!(again["config"]["Healthcheck"]["Test"][0], "NONE");
        for (layers, reason) in [(0, "1 diff_ids"), (2, "2 layers")] {
            let error = Config::parse(text.to_string().as_bytes(), layers).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
