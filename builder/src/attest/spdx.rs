//! How is told what an image holds? SPDX 2.3 in JSON (spdx.github.io/spdx-spec/v2.3).

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

use anyhow::Result;
use serde_json::{Value, json};

use super::files;
use super::package::{Distribution, Package, percent};
use super::{Predicate, apk, dpkg, locks, rpm};

/// The predicate's type.
pub const KIND: &str = "https://spdx.dev/Document";

/// All packages in a tree, each once; and what could not be read.
pub fn scan(root: BorrowedFd<'_>) -> Result<(Vec<Package>, Vec<String>)> {
    let mut distribution = Distribution::default();
    for place in ["etc/os-release", "usr/lib/os-release"] {
        if let Some(text) = files::text(root, place, 1 << 20)? {
            distribution = Distribution::parse(&text);
            break;
        }
    }
    let (mut found, mut unread) = (Vec::new(), Vec::new());
    dpkg::packages(root, &distribution, &mut found)?;
    apk::packages(root, &distribution, &mut found)?;
    unread.extend(rpm::packages(root, &distribution, &mut found)?);
    locks::packages(root, &mut found)?;
    found.sort_by_cached_key(|p| (p.url(), p.source.clone()));
    let mut seen = BTreeSet::new();
    found.retain(|p| seen.insert(p.url()));
    Ok((found, unread))
}

/// The document; `created` is RFC 3339, `digest` the image's.
pub fn document(packages: &[Package], name: &str, digest: &str, created: &str) -> Predicate {
    const UNSAID: &str = "NOASSERTION";
    let mut all = vec![json!({
        "SPDXID": "SPDXRef-Image",
        "name": name,
        "versionInfo": digest,
        "downloadLocation": UNSAID,
        "filesAnalyzed": false,
        "primaryPackagePurpose": "CONTAINER",
    })];
    let mut relations = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image")];
    for (n, package) in packages.iter().enumerate() {
        let id = format!("SPDXRef-Package-{n}");
        let full = match &package.namespace[..] {
            namespace if matches!(package.kind, "npm" | "golang" | "composer") && !namespace.is_empty() => {
                format!("{namespace}/{}", package.name)
            }
            _ => package.name.clone(),
        };
        let mut value = json!({
            "SPDXID": id,
            "name": full,
            "versionInfo": package.version,
            "downloadLocation": UNSAID,
            "filesAnalyzed": false,
            "licenseConcluded": UNSAID,
            "licenseDeclared": UNSAID,
            "copyrightText": UNSAID,
            "sourceInfo": format!("from /{}", package.source),
            "externalRefs": [{
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": package.url(),
            }],
        });
        if let Some(license) = &package.license {
            // The packager's words need not be SPDX's.
            value["licenseComments"] = json!(format!("declared as {license}"));
        }
        if let Some(supplier) = &package.supplier {
            value["supplier"] = json!(format!("Organization: {supplier}"));
        }
        all.push(value);
        relations.push(relation("SPDXRef-Image", "CONTAINS", &id));
    }
    let content = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": format!("https://spdx.org/spdxdocs/{}-{}", percent(name), percent(digest)),
        "creationInfo": {
            "created": created,
            "creators": [format!("Tool: berth-builder-{}", env!("CARGO_PKG_VERSION"))],
        },
        "packages": all,
        "relationships": relations,
    });
    Predicate { kind: KIND, content }
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to})
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_tree_with_packages() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
            std::fs::write(path, text).expect("write");
        };
        write("etc/os-release", "ID=debian\nVERSION_ID=12\n");
        write("var/lib/dpkg/status", "Package: bash\nStatus: install ok installed\nVersion: 5\n");
        write("app/node_modules/left/package.json", r#"{"name": "left", "version": "1.0.0"}"#);
        write("app/package-lock.json", r#"{"packages": {"node_modules/left": {"version": "1.0.0"}}}"#);
        write("app/Cargo.lock", "[[package]]\nname = \"x\"\nversion = \"2.0.0\"\n");
        // Nothing is looked at outside.
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("app/yarn.lock")).expect("a link");
        let dir = std::fs::File::open(root.path()).expect("open");
        let (packages, unread) = scan(dir.as_fd()).expect("a scan");
        assert_eq!(unread, Vec::<String>::new());
        let urls: Vec<String> = packages.iter().map(Package::url).collect();
        assert_eq!(
            urls,
            ["pkg:cargo/x@2.0.0", "pkg:deb/debian/bash@5?distro=debian-12", "pkg:npm/left@1.0.0"]
        );
        let document = document(&packages, "app", "sha256:00", "1970-01-01T00:00:00Z").content;
        assert_eq!(document["packages"].as_array().map(Vec::len), Some(4));
        assert_eq!(document["relationships"].as_array().map(Vec::len), Some(4));
    }
}
