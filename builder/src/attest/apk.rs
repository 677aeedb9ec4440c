//! Which packages did Alpine's apk install? Its database: paragraphs of lines with a letter each.

use std::os::fd::BorrowedFd;

use anyhow::Result;

use super::files;
use super::package::{Distribution, Package};

const PLACES: [&str; 2] = ["lib/apk/db/installed", "usr/lib/apk/db/installed"];
const MOST: u64 = 256 << 20;

pub fn packages(root: BorrowedFd<'_>, distribution: &Distribution, found: &mut Vec<Package>) -> Result<()> {
    for place in PLACES {
        if let Some(text) = files::text(root, place, MOST)? {
            parse(&text, place, distribution, found);
            break;
        }
    }
    Ok(())
}

fn parse(text: &str, source: &str, distribution: &Distribution, found: &mut Vec<Package>) {
    for paragraph in text.split("\n\n") {
        let field = |letter: &str| {
            let line = paragraph.lines().find_map(|l| l.split_once(':').filter(|(n, _)| *n == letter));
            line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let (name, version) = (field("P"), field("V"));
        if name.is_empty() || version.is_empty() {
            continue;
        }
        let upstream = Some(field("o")).filter(|o| *o != name).unwrap_or_default();
        let id = if distribution.id.is_empty() { "alpine" } else { &distribution.id };
        found.push(Package {
            kind: "apk",
            namespace: id.to_owned(),
            name,
            version,
            qualifiers: [("arch", field("A")), ("distro", distribution.title()), ("upstream", upstream)]
                .into(),
            license: Some(field("L")).filter(|l| !l.is_empty()),
            supplier: Some(field("m")).filter(|m| !m.is_empty()),
            source: source.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apk_says() {
        let text = "C:Q1abc\nP:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\no:musl\nF:lib\nR:ld-musl-x86_64.so.1\n\n\
            P:musl-utils\nV:1.2.5-r0\nA:x86_64\no:musl\n\n\n";
        let mut found = Vec::new();
        parse(text, "s", &Distribution::default(), &mut found);
        let urls: Vec<String> = found.iter().map(Package::url).collect();
        assert_eq!(
            urls,
            [
                "pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64",
                "pkg:apk/alpine/musl-utils@1.2.5-r0?arch=x86_64&upstream=musl"
            ]
        );
        assert_eq!(found[0].license.as_deref(), Some("MIT"));
    }
}
