//! Where else do images live, beside stores and registries? Names of places as skopeo writes them, and what is behind each.
//!
//! | module | question |
//! |---|---|
//! | [`files`] | how are the files of a folder or an archive read, when nobody can be trusted? |
//! | [`layout`] | OCI image layouts, in folders and in archives |
//! | [`docker`] | what `docker save` writes and `docker load` reads |
//! | [`dir`] | skopeo's `dir:`, a plain folder for one image |

pub mod dir;
pub mod docker;
pub mod files;
pub mod layout;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use report::{Kind, error};

use crate::reference::Reference;

/// Where an image is, or is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `docker://REFERENCE`
    Registry(Reference),
    /// `oci:FOLDER[:NAME]`
    Layout { path: PathBuf, name: Option<String> },
    /// `oci-archive:FILE[:NAME]`
    LayoutArchive { path: PathBuf, name: Option<String> },
    /// `docker-archive:FILE[:REFERENCE]`
    DockerArchive { path: PathBuf, name: Option<Reference> },
    /// `dir:FOLDER`
    Dir(PathBuf),
    /// What has no transport: a name or an id in the store (`berth:` says the same).
    Store(String),
}

const KNOWN: &str = "docker://, oci:, oci-archive:, docker-archive:, dir:";

impl FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Place> {
        let bad = |what: &str| error(Kind::BadInput, format!("{text:?}: {what}"));
        let Some((transport, rest)) = text.split_once(':') else { return Ok(Place::Store(text.to_owned())) };
        // A path may have a colon; a name behind it has no slash in front of its own first colon.
        let split = |rest: &str| -> anyhow::Result<(PathBuf, Option<String>)> {
            let (path, name) = match rest.split_once(':') {
                Some((path, name)) => (path, Some(name).filter(|n| !n.is_empty()).map(str::to_owned)),
                None => (rest, None),
            };
            if path.is_empty() {
                return Err(bad("a path is missing"));
            }
            Ok((PathBuf::from(path), name))
        };
        match transport {
            "docker" => match rest.strip_prefix("//") {
                Some(reference) => Ok(Place::Registry(reference.parse()?)),
                None => Err(bad("a registry is written docker://REFERENCE")),
            },
            "oci" => split(rest).map(|(path, name)| Place::Layout { path, name }),
            "oci-archive" => split(rest).map(|(path, name)| Place::LayoutArchive { path, name }),
            "docker-archive" => {
                let (path, name) = split(rest)?;
                Ok(Place::DockerArchive { path, name: name.map(|n| n.parse()).transpose()? })
            }
            "dir" if rest.is_empty() => Err(bad("a path is missing")),
            "dir" => Ok(Place::Dir(rest.into())),
            "berth" => Ok(Place::Store(rest.to_owned())),
            "docker-daemon" => {
                Err(bad("berth has no way to a daemon; docker save IMAGE | berth-builder load"))
            }
            "containers-storage" => Err(bad(
                "podman's and buildah's store is theirs; podman push IMAGE oci:FOLDER:NAME, then oci:FOLDER:NAME",
            )),
            "ostree" | "sif" | "tarball" | "atomic" => {
                Err(bad(&format!("no such transport; known are {KNOWN}")))
            }
            // name:tag, registry:port/name.
            _ => Ok(Place::Store(text.to_owned())),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut named = |transport: &str, path: &PathBuf, name: Option<String>| {
            write!(f, "{transport}:{}", path.display())?;
            match name {
                Some(name) => write!(f, ":{name}"),
                None => Ok(()),
            }
        };
        match self {
            Place::Registry(reference) => write!(f, "docker://{}", reference.familiar()),
            Place::Layout { path, name } => named("oci", path, name.clone()),
            Place::LayoutArchive { path, name } => named("oci-archive", path, name.clone()),
            Place::DockerArchive { path, name } => {
                named("docker-archive", path, name.as_ref().map(Reference::familiar))
            }
            Place::Dir(path) => named("dir", path, None),
            Place::Store(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_as_skopeo_writes_them() {
        for text in [
            "docker://alpine:3.20",
            "docker://localhost:5000/a/b:c",
            "oci:/a/b",
            "oci:dir:1.0",
            "oci:dir:docker.io/library/alpine:1",
            "oci:dir:@sha256:abc",
            "oci-archive:x.tar:name",
            "docker-archive:x.tar",
            "docker-archive:x.tar:alpine:3",
            "dir:/some/where",
            "alpine",
            "alpine:3.20",
            "localhost:5000/alpine",
        ] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        assert_eq!("berth:alpine".parse::<Place>().unwrap(), Place::Store("alpine".to_owned()));
        assert_eq!("oci:x:".parse::<Place>().unwrap().to_string(), "oci:x");
        for (text, reason) in [
            ("docker:alpine", "docker://REFERENCE"),
            ("docker://UPPER/Case", "lower case"),
            ("oci:", "a path is missing"),
            ("oci::name", "a path is missing"),
            ("dir:", "a path is missing"),
            ("docker-daemon:alpine", "docker save"),
            ("containers-storage:alpine", "podman push"),
            ("ostree:x", "known are"),
        ] {
            let error = report::line(&text.parse::<Place>().unwrap_err());
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
