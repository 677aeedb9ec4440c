//! What was the image made of, by whom, and how? SLSA's provenance, slsa.dev/spec/v1.0/provenance. It tells no times, so that the same
//! build says the same.

use std::collections::BTreeMap;

use image::Digest;
use serde_json::{Value, json};

use super::Predicate;

/// The predicate's type.
pub const KIND: &str = "https://slsa.dev/provenance/v1";
/// What `externalParameters` mean.
const BUILD_TYPE: &str = "urn:berth-builder:dockerfile:1";

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What it is made of, and of which Dockerfile.
    Min,
    /// Values of arguments, the Dockerfile itself, names of secrets, too.
    Max,
}

/// Something that came from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Material {
    pub address: String,
    /// By algorithm, in hexadecimal digits.
    pub digest: (String, String),
}

/// What was asked for.
#[derive(Debug)]
pub struct Asked<'a> {
    /// A folder's name says nothing to others; an address does.
    pub context: Option<&'a str>,
    pub file: &'a str,
    pub text: &'a str,
    pub target: Option<&'a str>,
    pub platform: String,
    pub own_platform: String,
    pub arguments: &'a BTreeMap<String, String>,
    pub labels: &'a BTreeMap<String, String>,
    pub secrets: Vec<&'a str>,
    pub ssh: Vec<&'a str>,
    pub network: Option<&'a str>,
}

pub fn predicate(mode: Mode, asked: &Asked<'_>, materials: &[Material]) -> Predicate {
    let source = Digest::of(asked.text.as_bytes());
    let mut request = json!({"platform": asked.platform});
    if let Some(target) = asked.target {
        request["target"] = json!(target);
    }
    let mut internal = json!({"builderPlatform": asked.own_platform});
    if mode == Mode::Max {
        request["args"] = json!(asked.arguments);
        request["labels"] = json!(asked.labels);
        request["secrets"] = json!(asked.secrets);
        request["ssh"] = json!(asked.ssh);
        request["network"] = json!(asked.network.unwrap_or("host"));
        internal["dockerfile"] = json!(asked.text);
    }
    let dependencies: Vec<Value> = materials
        .iter()
        .map(|m| json!({"uri": m.address, "digest": {m.digest.0.clone(): m.digest.1}}))
        .collect();
    let mut source = json!({"path": asked.file, "digest": {"sha256": source.hex()}});
    if let Some(context) = asked.context {
        source["uri"] = json!(context);
    }
    let content = json!({
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "configSource": source,
                "request": request,
            },
            "internalParameters": internal,
            "resolvedDependencies": dependencies,
        },
        "runDetails": {
            "builder": {
                "id": "",
                "version": {"berth-builder": env!("CARGO_PKG_VERSION")},
            },
        },
    });
    Predicate { kind: KIND, content }
}
