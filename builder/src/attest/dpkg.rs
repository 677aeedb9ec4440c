//! Which packages did dpkg install? dpkg(1), "FILES": `status`, and a file each in `status.d` where there is no dpkg.

use std::os::fd::BorrowedFd;

use anyhow::Result;

use super::files;
use super::package::{Distribution, Package};

const STATUS: &str = "var/lib/dpkg/status";
const FOLDER: &str = "var/lib/dpkg/status.d";
const MOST: u64 = 256 << 20;

pub fn packages(root: BorrowedFd<'_>, distribution: &Distribution, found: &mut Vec<Package>) -> Result<()> {
    if let Some(text) = files::text(root, STATUS, MOST)? {
        parse(&text, STATUS, distribution, found);
    }
    for name in files::list(root, FOLDER)? {
        let path = format!("{FOLDER}/{name}");
        if !name.ends_with(".md5sums")
            && let Some(text) = files::text(root, &path, MOST)?
        {
            parse(&text, &path, distribution, found);
        }
    }
    Ok(())
}

/// deb-control(5): paragraphs of fields.
fn parse(text: &str, source: &str, distribution: &Distribution, found: &mut Vec<Package>) {
    for paragraph in text.split("\n\n") {
        let field = |name: &str| {
            let line = paragraph.lines().find_map(|l| l.split_once(':').filter(|(n, _)| *n == name));
            line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let (name, version, status) = (field("Package"), field("Version"), field("Status"));
        if name.is_empty() || version.is_empty() || !(status.is_empty() || status.ends_with(" installed")) {
            continue;
        }
        let upstream = field("Source");
        let id = if distribution.id.is_empty() { "debian" } else { &distribution.id };
        found.push(Package {
            kind: "deb",
            namespace: id.to_owned(),
            name,
            version,
            qualifiers: [
                ("arch", field("Architecture")),
                ("distro", distribution.title()),
                ("upstream", upstream.split(' ').next().unwrap_or_default().to_owned()),
            ]
            .into(),
            license: None,
            supplier: Some(field("Maintainer")).filter(|m| !m.is_empty()),
            source: source.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dpkg_says() {
        let text = "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2-1\n\
            Maintainer: A <a@example>\nDescription: shell\n more: of it\n\n\
            Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
            Package: libc6\nSource: glibc (2.36-9)\nVersion: 2.36-9\n";
        let mut found = Vec::new();
        parse(text, "s", &Distribution { id: "debian".into(), version: "12".into() }, &mut found);
        let urls: Vec<String> = found.iter().map(Package::url).collect();
        assert_eq!(
            urls,
            [
                "pkg:deb/debian/bash@5.2-1?arch=amd64&distro=debian-12",
                "pkg:deb/debian/libc6@2.36-9?distro=debian-12&upstream=glibc"
            ]
        );
        assert_eq!(found[0].supplier.as_deref(), Some("A <a@example>"));
    }
}
