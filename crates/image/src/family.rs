//! Which of the two families of media types does an image speak: OCI's, or that of Docker's schema 2? The documents have the same
//! fields, so that one becomes the other by its names alone.

use crate::manifest::{DOCKER_CONFIG, DOCKER_INDEX, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};

const OCI_LAYER: &str = "application/vnd.oci.image.layer.";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.";

/// A family of media types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Oci,
    /// Docker's schema 2.
    Docker,
}

/// How the bytes of a layer are compressed, by its media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// What the media type of a layer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerType {
    pub family: Family,
    pub packing: Packing,
    /// Not to be distributed ("foreign" to Docker).
    pub foreign: bool,
}

impl Family {
    /// Of a manifest or index.
    pub fn of(media_type: &str) -> Family {
        if matches!(media_type, DOCKER_MANIFEST | DOCKER_INDEX) { Family::Docker } else { Family::Oci }
    }

    pub fn manifest(self) -> &'static str {
        match self {
            Family::Oci => OCI_MANIFEST,
            Family::Docker => DOCKER_MANIFEST,
        }
    }

    pub fn index(self) -> &'static str {
        match self {
            Family::Oci => OCI_INDEX,
            Family::Docker => DOCKER_INDEX,
        }
    }

    /// The media type of a config, in this family; that of some other artifact stays as it is.
    pub fn config(self, media_type: &str) -> &str {
        match (self, media_type) {
            (Family::Oci, DOCKER_CONFIG) => OCI_CONFIG,
            (Family::Docker, OCI_CONFIG) => DOCKER_CONFIG,
            (_, other) => other,
        }
    }

    /// The media type of a layer, in this family; what is no layer of a file system stays as it is.
    pub fn layer(self, media_type: &str) -> String {
        match LayerType::parse(media_type) {
            Some(layer) => LayerType { family: self, ..layer }.to_string(),
            None => media_type.to_owned(),
        }
    }
}

impl LayerType {
    /// `None`: no layer of a file system.
    pub fn parse(media_type: &str) -> Option<LayerType> {
        let (family, rest, foreign, prefix) = if let Some(rest) = media_type.strip_prefix(OCI_LAYER) {
            (Family::Oci, rest, "nondistributable.", "v1.tar")
        } else {
            (Family::Docker, media_type.strip_prefix(DOCKER_LAYER)?, "foreign.", "diff.tar")
        };
        let (foreign, rest) = match rest.strip_prefix(foreign) {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let packing = match (family, rest.strip_prefix(prefix)?) {
            (_, "") => Packing::Plain,
            (Family::Oci, "+gzip") | (Family::Docker, ".gzip") => Packing::Gzip,
            (Family::Oci, "+zstd") | (Family::Docker, ".zstd") => Packing::Zstd,
            _ => return None,
        };
        Some(LayerType { family, packing, foreign })
    }
}

impl std::fmt::Display for LayerType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let packing = match self.packing {
            Packing::Plain => "",
            Packing::Gzip => "gzip",
            Packing::Zstd => "zstd",
        };
        let (prefix, foreign, kind, mark) = match self.family {
            Family::Oci => (OCI_LAYER, "nondistributable.", "v1.tar", "+"),
            Family::Docker => (DOCKER_LAYER, "foreign.", "diff.tar", "."),
        };
        let foreign = if self.foreign { foreign } else { "" };
        let mark = if packing.is_empty() { "" } else { mark };
        write!(f, "{prefix}{foreign}{kind}{mark}{packing}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_types_of_both_families() {
        use {Family::*, Packing::*};
        for (text, family, packing, foreign) in [
            ("application/vnd.oci.image.layer.v1.tar", Oci, Plain, false),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Oci, Gzip, false),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Oci, Zstd, false),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Oci, Gzip, true),
            ("application/vnd.docker.image.rootfs.diff.tar", Docker, Plain, false),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Docker, Gzip, false),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", Docker, Zstd, false),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Docker, Gzip, true),
        ] {
            let layer = LayerType::parse(text).unwrap();
            assert_eq!(layer, LayerType { family, packing, foreign }, "{text}");
            assert_eq!(layer.to_string(), text);
            for other in [Oci, Docker] {
                let there = other.layer(text);
                assert_eq!(family.layer(&there), text, "there and back, {there}");
            }
        }
        for text in [
            "",
            "application/vnd.in-toto+json",
            "application/vnd.oci.image.layer.v1.tar+xz",
            "application/vnd.oci.image.layer.v1.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar+gzip",
            OCI_CONFIG,
        ] {
            assert_eq!(LayerType::parse(text), None, "{text}");
            assert_eq!(Oci.layer(text), text);
        }
    }

    #[test]
    fn configs_change_their_name_and_artifacts_do_not() {
        assert_eq!(Family::Oci.config(DOCKER_CONFIG), OCI_CONFIG);
        assert_eq!(Family::Docker.config(OCI_CONFIG), DOCKER_CONFIG);
        assert_eq!(Family::Docker.config("application/x"), "application/x");
        assert_eq!(Family::of(DOCKER_INDEX), Family::Docker);
        assert_eq!(Family::of(Family::Oci.manifest()), Family::Oci);
    }
}
