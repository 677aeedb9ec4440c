//! Which image does a user mean? The grammar and the short forms of Docker's references:
//!
//! ```text
//! reference = [ registry "/" ] path { "/" path } [ ":" tag ] [ "@" digest ]
//! registry  = host [ ":" port ]       only if it has a "." or ":", or is "localhost", or has upper-case letters
//! path      = lower-case letters and digits, joined by ".", "_", "__" or dashes
//! tag       = at most 128 of letters, digits, "_", ".", "-"; the first no "." or "-"
//! ```
//! `alpine` is `docker.io/library/alpine:latest`; without tag and digest the tag is `latest`.

use std::fmt;
use std::str::FromStr;

use report::{Kind, error};

use crate::digest::Digest;

/// Where an image without a registry comes from.
pub const DEFAULT_REGISTRY: &str = "docker.io";
const LEGACY_REGISTRY: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Of registry and repository together.
const MOST: usize = 255;

/// A reference in full: what was left out has been filled in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host and port.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// `library/alpine`, say.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// At least one of tag and digest is there.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Registry and repository as people write them: without what would be filled in again.
    pub fn familiar_name(&self) -> String {
        match (self.registry.as_str(), self.repository.strip_prefix(OFFICIAL)) {
            (DEFAULT_REGISTRY, Some(name)) if !name.contains('/') => name.to_owned(),
            // Without the registry it would be read as one.
            (DEFAULT_REGISTRY, _) if self.repository.split('/').next().is_some_and(is_registry) => {
                self.name()
            }
            (DEFAULT_REGISTRY, _) => self.repository.clone(),
            _ => self.name(),
        }
    }

    /// The whole reference as people write it.
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_name())
    }

    /// The same name with another tag, and no digest.
    pub fn with_tag(&self, tag: &str) -> anyhow::Result<Reference> {
        check_tag(tag).map_err(|what| bad(&format!("{}:{tag}", self.name()), &what))?;
        Ok(Reference { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The same name by digest alone.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }

    fn with_suffix(&self, mut out: String) -> String {
        if let Some(tag) = &self.tag {
            out = format!("{out}:{tag}");
        }
        if let Some(digest) = &self.digest {
            out = format!("{out}@{digest}");
        }
        out
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.name()))
    }
}

fn bad(text: &str, what: &str) -> anyhow::Error {
    error(Kind::BadInput, format!("image reference {text:?}: {what}"))
}

impl FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Reference> {
        parse(text).map_err(|what| bad(text, &what))
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|e| e.to_string())?)),
        None => (text, None),
    };
    // A colon before the last slash belongs to a port.
    let last = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[last..].split_once(':') {
        Some((_, tag)) => (&rest[..rest.len() - tag.len() - 1], Some(tag)),
        None => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    if name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("64 hexadecimal digits are an id, not a name".to_owned());
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_registry(first) => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    check_registry(registry)?;
    let registry = if registry == LEGACY_REGISTRY { DEFAULT_REGISTRY } else { registry };
    for component in path.split('/') {
        check_component(component)?;
    }
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("{OFFICIAL}{path}")
    } else {
        path.to_owned()
    };
    if registry.len() + 1 + repository.len() > MOST {
        return Err(format!("the name has more than {MOST} characters"));
    }
    let tag = tag.or(if digest.is_none() { Some(DEFAULT_TAG) } else { None }).map(str::to_owned);
    Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
}

fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_registry(text: &str) -> Result<(), String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(inner) => match inner.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => (address, Some(port.strip_prefix(':').unwrap_or(port))),
            None => return Err(format!("registry {text:?}: no ] after [")),
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if port.is_some_and(|p| p.parse::<u16>().is_err() || !p.bytes().all(|b| b.is_ascii_digit())) {
        return Err(format!("registry {text:?}: the port is no number up to 65535"));
    }
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let good = if text.starts_with('[') {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        host.split('.').all(label)
    };
    if good { Ok(()) } else { Err(format!("registry {text:?}: {host:?} is no host name")) }
}

fn check_component(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("a part between slashes is empty".to_owned());
    }
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!("{text:?}: a repository is written in lower case"));
    }
    // Runs of separators between letters and digits: ".", "_", "__", or any number of dashes.
    let mut run = String::new();
    let mut alone = true;
    for c in text.chars() {
        match c {
            'a'..='z' | '0'..='9' => {
                if alone && !run.is_empty() {
                    return Err(format!("{text:?}: it begins with {run:?}"));
                }
                if !is_separator(&run) {
                    return Err(format!("{text:?}: {run:?} is no separator"));
                }
                run.clear();
                alone = false;
            }
            '.' | '_' | '-' => run.push(c),
            other => return Err(format!("{text:?}: {other:?} is not allowed")),
        }
    }
    if run.is_empty() { Ok(()) } else { Err(format!("{text:?}: it ends with {run:?}")) }
}

fn is_separator(run: &str) -> bool {
    matches!(run, "" | "." | "_" | "__") || run.bytes().all(|b| b == b'-')
}

fn check_tag(text: &str) -> Result<(), String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let first = text.bytes().next();
    if !first.is_some_and(word) || !text.bytes().all(|b| word(b) || b == b'.' || b == b'-') {
        return Err(format!("tag {text:?}: letters, digits, _, . and - are allowed, the first no . or -"));
    }
    if text.len() > 128 {
        return Err("the tag has more than 128 characters".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Reference;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn short_names_become_whole_and_short_again() {
        let by_digest = format!("alpine@sha256:{HEX}");
        let both = format!("localhost/x:1@sha256:{HEX}");
        for (text, whole, familiar) in [
            ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"),
            ("library/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest"),
            ("a/b/c:x", "docker.io/a/b/c:x", "a/b/c:x"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y"),
            (
                "example.com/x__y-z--1.2_3",
                "example.com/x__y-z--1.2_3:latest",
                "example.com/x__y-z--1.2_3:latest",
            ),
            ("HOST/x", "HOST/x:latest", "HOST/x:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
            ("docker.io/localhost/x", "docker.io/localhost/x:latest", "docker.io/localhost/x:latest"),
            ("docker.io/a.b/x", "docker.io/a.b/x:latest", "docker.io/a.b/x:latest"),
            ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
            (&by_digest, &format!("docker.io/library/alpine@sha256:{HEX}"), &by_digest),
            (&both, &both, &both),
        ] {
            let reference = parse(text);
            assert_eq!(reference.to_string(), whole, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
            assert_eq!(parse(whole), reference, "{text}");
            assert_eq!(parse(familiar), reference, "{text}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_a_reason() {
        let long = "a/".repeat(127) + "aa";
        let tag = format!("a:{}", "t".repeat(129));
        for (text, reason) in [
            ("", "it is empty"),
            ("Alpine", "lower case"),
            ("a/Alpine", "lower case"),
            (":x", "is empty"),
            ("a:", "tag \"\""),
            ("a:.x", "tag \".x\""),
            ("a b", "' ' is not allowed"),
            ("a//b", "is empty"),
            ("/a", "is empty"),
            ("a/", "is empty"),
            ("-a", "begins with"),
            ("a-", "ends with"),
            ("a..b", "is no separator"),
            ("a___b", "is no separator"),
            ("a@sha256:12", "64 lower-case"),
            ("a@x", "expected ALGORITHM:HEX"),
            ("host.com:99999/a", "the port"),
            ("host.com:/a", "the port"),
            ("-host.com/a", "is no host name"),
            ("[::1/a", "no ]"),
            ("[x]:1/a", "is no host name"),
            (HEX, "an id, not a name"),
            (&long, "more than 255"),
            (&tag, "more than 128"),
        ] {
            let error = report::line(&text.parse::<Reference>().expect_err(text));
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn other_tags_and_digests_of_a_name() {
        let reference = parse("a/b:1");
        assert_eq!(reference.with_tag("2").unwrap().to_string(), "docker.io/a/b:2");
        assert!(reference.with_tag("no good").is_err());
        let digest = format!("sha256:{HEX}").parse().unwrap();
        assert_eq!(reference.with_digest(digest).to_string(), format!("docker.io/a/b@sha256:{HEX}"));
    }

    proptest! {
        #[test]
        fn nothing_panics_and_whole_references_parse_again(text in "[a-zA-Z0-9.:/@_\\[\\]-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference.clone());
                prop_assert_eq!(reference.familiar().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
