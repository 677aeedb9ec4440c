//! What is told of an image beside it: what packages it holds (SPDX) and how it was made (SLSA), as in-toto statements in the index that
//! the image is part of.
//!
//! | module | question |
//! |---|---|
//! | [`files`] | what is in a tree that nobody trusts? |
//! | [`package`] | what is a package called everywhere? |
//! | [`dpkg`], [`apk`], [`rpm`] | which packages did a distribution install? |
//! | [`sqlite`] | what is in a table of a database file? |
//! | [`locks`] | which packages does a program bring of its language? |
//! | [`spdx`] | how is that told? |
//! | [`provenance`] | what was the image made of, by whom, and how? |

pub mod apk;
pub mod dpkg;
pub mod files;
pub mod locks;
pub mod package;
pub mod provenance;
pub mod rpm;
pub mod spdx;
pub mod sqlite;

use std::collections::BTreeMap;

use anyhow::Result;
use image::Digest;
use image::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_MANIFEST, Platform};
use image::store::Addition;
use serde_json::{Value, json};

/// in-toto's envelope of a predicate, spec/v0.1.0.
const STATEMENT: &str = "https://in-toto.io/Statement/v0.1";
const MEDIA_TYPE: &str = "application/vnd.in-toto+json";

/// Something that is said of an image.
#[derive(Clone, Debug)]
pub struct Predicate {
    /// A type's address.
    pub kind: &'static str,
    pub content: Value,
}

/// Put what is said of an image into the store: the descriptor of its manifest, as BuildKit has it beside the image's own.
pub fn add(
    addition: &mut Addition<'_>,
    image: &Descriptor,
    names: &[String],
    predicates: &[Predicate],
) -> Result<Descriptor> {
    let digest = BTreeMap::from([(image.digest.algorithm().name(), image.digest.hex())]);
    let unnamed = ["_".to_owned()];
    let names = if names.is_empty() { &unnamed[..] } else { names };
    let subject: Vec<Value> = names.iter().map(|name| json!({"name": name, "digest": digest})).collect();
    let mut layers = Vec::new();
    for predicate in predicates {
        let statement = json!({
            "_type": STATEMENT,
            "predicateType": predicate.kind,
            "subject": subject,
            "predicate": predicate.content,
        });
        let bytes = serde_json::to_vec(&statement)?;
        addition.add_bytes(&bytes)?;
        let mut layer = Descriptor::of(MEDIA_TYPE, &bytes);
        layer.annotations.insert("in-toto.io/predicate-type".to_owned(), predicate.kind.to_owned());
        layers.push(layer);
    }
    let ids: Vec<&Digest> = layers.iter().map(|l| &l.digest).collect();
    let config = serde_json::to_vec(&json!({
        "architecture": "unknown",
        "os": "unknown",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": ids},
    }))?;
    addition.add_bytes(&config)?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: Descriptor::of(OCI_CONFIG, &config),
        layers,
        subject: None,
        annotations: BTreeMap::new(),
    };
    let bytes = serde_json::to_vec(&manifest)?;
    addition.add_bytes(&bytes)?;
    let mut descriptor = Descriptor::of(OCI_MANIFEST, &bytes);
    let unknown = || "unknown".to_owned();
    descriptor.platform = Some(Platform { architecture: unknown(), os: unknown(), ..Platform::default() });
    for (name, value) in [
        ("vnd.docker.reference.digest", image.digest.to_string()),
        ("vnd.docker.reference.type", "attestation-manifest".to_owned()),
    ] {
        descriptor.annotations.insert(name.to_owned(), value);
    }
    Ok(descriptor)
}
