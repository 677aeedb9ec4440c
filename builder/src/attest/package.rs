//! What is a package called everywhere? Its package URL (purl-spec), and what SPDX wants to know of it.

use std::collections::BTreeMap;

/// A package that an image holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// purl's type: `deb`, `npm`, …
    pub kind: &'static str,
    /// What comes before the name in the package URL.
    pub namespace: String,
    pub name: String,
    pub version: String,
    /// Of the package URL.
    pub qualifiers: BTreeMap<&'static str, String>,
    /// As the package says it; it need not be SPDX's word.
    pub license: Option<String>,
    pub supplier: Option<String>,
    /// The file that tells of it.
    pub source: String,
}

impl Package {
    /// purl-spec, "A purl is a URL": `pkg:type/namespace/name@version?qualifiers`.
    pub fn url(&self) -> String {
        let mut url = format!("pkg:{}/", self.kind);
        for part in self.namespace.split('/').filter(|p| !p.is_empty()) {
            url.push_str(&percent(part));
            url.push('/');
        }
        url.push_str(&percent(&self.name));
        if !self.version.is_empty() {
            url.push('@');
            url.push_str(&percent(&self.version));
        }
        for (n, (name, value)) in self.qualifiers.iter().filter(|(_, v)| !v.is_empty()).enumerate() {
            url.push(if n == 0 { '?' } else { '&' });
            url.push_str(&format!("{name}={}", percent(value)));
        }
        url
    }
}

/// The package URL of an image's name, for a platform.
pub fn image_url(name: &str, platform: Option<&str>) -> String {
    let name = name.trim_start_matches("docker://");
    let last = name.rfind('/').map_or(0, |at| at + 1);
    let split = name.split_once('@').or_else(|| {
        let at = last + name[last..].find(':')?;
        Some((&name[..at], &name[at + 1..]))
    });
    let (name, version) = split.unwrap_or((name, "latest"));
    let platform = platform.map(|p| format!("?platform={}", percent(p))).unwrap_or_default();
    format!("pkg:docker/{name}@{version}{platform}")
}

/// Percent-encoded, as in package URLs.
pub fn percent(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' | b':' => {
                out.push(char::from(byte))
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// Which distribution the image is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    pub id: String,
    pub version: String,
}

impl Distribution {
    /// os-release(5).
    pub fn parse(text: &str) -> Distribution {
        let mut found = Distribution::default();
        for line in text.lines() {
            let Some((name, value)) = line.trim().split_once('=') else { continue };
            let value = value.trim_matches(['"', '\'']).to_owned();
            match name {
                "ID" => found.id = value,
                "VERSION_ID" => found.version = value,
                _ => {}
            }
        }
        found
    }

    /// `debian-12`
    pub fn title(&self) -> String {
        if self.version.is_empty() { self.id.clone() } else { format!("{}-{}", self.id, self.version) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_urls() {
        let package = Package {
            kind: "deb",
            namespace: "debian".into(),
            name: "libstdc++6".into(),
            version: "1:12.2.0-14+deb12u1".into(),
            qualifiers: [
                ("arch", "amd64".into()),
                ("distro", "debian-12".into()),
                ("upstream", String::new()),
            ]
            .into(),
            ..Package::default()
        };
        assert_eq!(
            package.url(),
            "pkg:deb/debian/libstdc%2B%2B6@1:12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12"
        );
        let package = Package {
            kind: "npm",
            namespace: "@babel".into(),
            name: "core".into(),
            version: "7.0.0".into(),
            ..Package::default()
        };
        assert_eq!(package.url(), "pkg:npm/%40babel/core@7.0.0");
        for (name, platform, expected) in [
            ("alpine", None, "pkg:docker/alpine@latest"),
            ("reg.example:5000/a/b", None, "pkg:docker/reg.example:5000/a/b@latest"),
            (
                "reg.example:5000/a/b:1",
                Some("linux/amd64"),
                "pkg:docker/reg.example:5000/a/b@1?platform=linux%2Famd64",
            ),
            ("a@sha256:00", None, "pkg:docker/a@sha256:00"),
        ] {
            assert_eq!(image_url(name, platform), expected);
        }
        let found = Distribution::parse("NAME=\"Debian\"\nID=debian\nVERSION_ID=\"12\"\n");
        assert_eq!(found.title(), "debian-12");
    }
}
