//! For which machine is an image? Names as Docker and containerd write them, and the choice from an index.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use report::{Kind, error};

use crate::manifest::{Descriptor, Index, Platform};

/// The parts of a platform's name.
const PARTS_MOST: usize = 3;

/// `amd64` and its aliases; the variant that an alias implies.
fn architecture(text: &str) -> (String, Option<&'static str>) {
    match text.to_ascii_lowercase().as_str() {
        "x86_64" | "x86-64" => ("amd64".to_owned(), None),
        "i386" | "i486" | "i586" | "i686" | "x86" => ("386".to_owned(), None),
        "aarch64" => ("arm64".to_owned(), None),
        "armhf" => ("arm".to_owned(), Some("v7")),
        "armel" => ("arm".to_owned(), Some("v6")),
        "armv7l" => ("arm".to_owned(), Some("v7")),
        "armv6l" => ("arm".to_owned(), Some("v6")),
        other => (other.to_owned(), None),
    }
}

const ARCHITECTURES: [&str; 12] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips64le", "mipsle", "ppc64le", "riscv64", "s390x", "wasm",
    "mips64",
];

impl Platform {
    /// Of this machine: the `machine` field of uname(2).
    pub fn of_machine(machine: &str) -> Platform {
        let (architecture, variant) = architecture(machine);
        normal(Platform {
            architecture,
            os: "linux".to_owned(),
            variant: variant.map(str::to_owned),
            ..Platform::default()
        })
    }

    /// Of this one.
    pub fn own() -> Platform {
        Platform::of_machine(&rustix::system::uname().machine().to_string_lossy())
    }
}

/// Without a variant that says nothing: arm64 is v8, amd64 v1; arm is v7.
fn normal(mut platform: Platform) -> Platform {
    let variant = platform.variant.take().filter(|v| !v.is_empty());
    platform.variant = match (platform.architecture.as_str(), variant.as_deref()) {
        ("arm64", Some("8" | "v8")) | ("amd64", Some("v1")) => None,
        ("arm", None) => Some("v7".to_owned()),
        ("arm", Some(number @ ("5" | "6" | "7" | "8"))) => Some(format!("v{number}")),
        _ => variant,
    };
    platform
}

impl FromStr for Platform {
    type Err = anyhow::Error;

    /// `OS/ARCHITECTURE[/VARIANT]`, or one of the first two.
    fn from_str(text: &str) -> Result<Platform> {
        let parts: Vec<_> = text.split('/').collect();
        let bad = |what: &str| error(Kind::BadInput, format!("platform {text:?}: {what}"));
        let sound = |p: &&str| {
            p.starts_with(|c: char| c.is_ascii_alphanumeric())
                && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        if parts.len() > PARTS_MOST || !parts.iter().all(sound) {
            return Err(bad("expected OS/ARCHITECTURE[/VARIANT], as in linux/arm64 or linux/arm/v7"));
        }
        let (os, architecture_, variant) = match parts.as_slice() {
            [one] if known_architecture(one) => ("linux", *one, None),
            ["linux"] => return Ok(Platform::own()),
            [one] => {
                return Err(bad(&format!(
                    "{one:?} is no architecture; known are {}",
                    ARCHITECTURES.join(", ")
                )));
            }
            [os, architecture] => (*os, *architecture, None),
            [os, architecture, variant] => (*os, *architecture, Some((*variant).to_owned())),
            _ => bail!("a platform without parts"),
        };
        let (architecture, implied) = architecture(architecture_);
        let variant = variant.or_else(|| implied.map(str::to_owned));
        Ok(normal(Platform { architecture, os: os.to_ascii_lowercase(), variant, ..Platform::default() }))
    }
}

fn known_architecture(text: &str) -> bool {
    ARCHITECTURES.contains(&architecture(text).0.as_str())
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// How well a machine of `wanted` runs what is for `is`: the less the better, `None` not at all.
fn distance(wanted: &Platform, is: &Platform) -> Option<u32> {
    let (wanted, is) = (normal(wanted.clone()), normal(is.clone()));
    if wanted.os != is.os {
        return None;
    }
    let number = |v: &Option<String>, default: u32| match v {
        None => Some(default),
        Some(v) => v.strip_prefix('v').and_then(|n| n.split('.').next()?.parse::<u32>().ok()),
    };
    match (wanted.architecture.as_str(), is.architecture.as_str()) {
        ("arm64", "arm") => Some(100 + 8_u32.checked_sub(number(&is.variant, 7)?)?),
        ("amd64", "386") => Some(100),
        (a, b) if a != b => None,
        ("arm", _) => number(&wanted.variant, 7)?.checked_sub(number(&is.variant, 7)?),
        ("amd64", _) => number(&wanted.variant, 1)?.checked_sub(number(&is.variant, 1)?),
        ("arm64", _) => number(&wanted.variant, 8)?.checked_sub(number(&is.variant, 8)?),
        _ if wanted.variant == is.variant || wanted.variant.is_none() => Some(0),
        _ => None,
    }
}

/// The image of an index that suits a machine best. `strict`: of that architecture alone, as when it was asked for by name.
pub fn choose(index: &Index, wanted: &Platform, strict: bool) -> Result<Descriptor> {
    let usable = |d: &&Descriptor| d.is_manifest() || d.is_index();
    let of = |d: &Descriptor| d.platform.clone().filter(|p| p.os != "unknown");
    let suits = |d: &Descriptor| {
        let platform = of(d)?;
        let distance = distance(wanted, &platform)?;
        (!strict || platform.architecture == wanted.architecture).then_some(distance)
    };
    let best =
        index.manifests.iter().filter(usable).filter_map(|d| Some((suits(d)?, d))).min_by_key(|(n, _)| *n);
    if let Some((_, best)) = best {
        return Ok(best.clone());
    }
    // One that says nothing of itself, and is alone.
    if let [only] = index.manifests.as_slice()
        && only.platform.is_none()
    {
        return Ok(only.clone());
    }
    let mut there: Vec<_> = index.manifests.iter().filter_map(of).map(|p| p.to_string()).collect();
    there.dedup();
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    Err(error(Kind::NotFound, format!("no image for {wanted}; there are: {there}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::OCI_MANIFEST;

    #[test]
    fn names_and_aliases() {
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("arm64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/armhf", "linux/arm/v7"),
            ("armel", "linux/arm/v6"),
            ("windows/amd64", "windows/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("i686", "linux/386"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), expected, "{text}");
        }
        for bad in ["", "linux/", "a/b/c/d", "linux/arm/v7/x", "pdp11", "linux/../x"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_nearest_is_chosen() {
        let index = |names: &[&str]| Index {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            manifests: names
                .iter()
                .map(|name| Descriptor {
                    platform: match name.split('/').collect::<Vec<_>>().as_slice() {
                        [""] => None,
                        [os, architecture] => Some(Platform {
                            os: (*os).into(),
                            architecture: (*architecture).into(),
                            ..Platform::default()
                        }),
                        [os, architecture, variant] => Some(Platform {
                            os: (*os).into(),
                            architecture: (*architecture).into(),
                            variant: Some((*variant).into()),
                            ..Platform::default()
                        }),
                        _ => panic!(),
                    },
                    ..Descriptor::of(OCI_MANIFEST, name.as_bytes())
                })
                .collect(),
            subject: None,
            annotations: Default::default(),
        };
        let all = &[
            "unknown/unknown",
            "linux/386",
            "linux/amd64",
            "linux/arm/v5",
            "linux/arm/v6",
            "linux/arm/v7",
            "linux/arm64/v8",
        ];
        for (there, wanted, strict, expected) in [
            (&all[..], "linux/amd64", false, Some("linux/amd64")),
            (all, "linux/amd64/v3", false, Some("linux/amd64")),
            (all, "linux/arm64", false, Some("linux/arm64/v8")),
            (all, "linux/arm/v6", false, Some("linux/arm/v6")),
            (all, "linux/arm/v8", false, Some("linux/arm/v7")),
            (all, "linux/s390x", false, None),
            (all, "windows/amd64", false, None),
            (&["linux/386"], "linux/amd64", false, Some("linux/386")),
            (&["linux/386"], "linux/amd64", true, None),
            (&["linux/arm/v7"], "linux/arm64", false, Some("linux/arm/v7")),
            (&["linux/amd64/v3", "linux/amd64"], "linux/amd64", false, Some("linux/amd64")),
            (&["linux/amd64", "linux/amd64/v2"], "linux/amd64/v3", false, Some("linux/amd64/v2")),
            (&["linux/arm/v7"], "linux/arm/v6", false, None),
            (&[""], "linux/amd64", false, Some("")),
            (&[], "linux/amd64", false, None),
        ] {
            let chosen = choose(&index(there), &wanted.parse().unwrap(), strict);
            let expected = expected.map(|e| Digest::of(e.as_bytes()));
            assert_eq!(chosen.as_ref().ok().map(|d| d.digest.clone()), expected, "{wanted} of {there:?}");
            if let Err(e) = chosen {
                assert!(report::line(&e).contains("no image for"), "{e:#}");
            }
        }
    }

    use crate::digest::Digest;
}
