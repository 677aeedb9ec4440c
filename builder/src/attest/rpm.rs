//! Which packages did rpm install? Headers of packages, in an SQLite database or in rpm's own `ndb`; the older Berkeley DB is told of,
//! and not read.

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, ensure};

use super::files;
use super::package::{Distribution, Package};
use super::sqlite::{Database, Value};

const PLACES: [&str; 2] = ["usr/lib/sysimage/rpm", "var/lib/rpm"];
const MOST: u64 = 1 << 30;

/// Tags of a header (rpm's lib/rpmtag.h).
const NAME: u32 = 1000;
const VERSION: u32 = 1001;
const RELEASE: u32 = 1002;
const EPOCH: u32 = 1003;
const VENDOR: u32 = 1011;
const LICENSE: u32 = 1014;
const ARCH: u32 = 1022;
const SOURCE: u32 = 1044;

/// Adds what is found; what cannot be read is told in a line.
pub fn packages(
    root: BorrowedFd<'_>,
    distribution: &Distribution,
    found: &mut Vec<Package>,
) -> Result<Option<String>> {
    for place in PLACES {
        let path = format!("{place}/rpmdb.sqlite");
        if let Some(bytes) = files::read(root, &path, MOST)? {
            let mut take = |row: Vec<Value>| {
                if let Some(Value::Blob(header)) = row.get(1) {
                    found.extend(package(header, &path, distribution));
                }
                Ok(())
            };
            return match Database::open(&bytes).and_then(|d| d.rows("Packages", &mut take)) {
                Ok(()) => Ok(None),
                Err(e) => Ok(Some(format!("/{path}: {}", report::line(&e)))),
            };
        }
        let path = format!("{place}/Packages.db");
        if let Some(bytes) = files::read(root, &path, MOST)? {
            return match slots(&bytes, &mut |header| found.extend(package(header, &path, distribution))) {
                Ok(()) => Ok(None),
                Err(e) => Ok(Some(format!("/{path}: {}", report::line(&e)))),
            };
        }
        if files::list(root, place)?.iter().any(|name| name == "Packages") {
            return Ok(Some(format!("/{place}/Packages: packages in a Berkeley DB are not read")));
        }
    }
    Ok(None)
}

fn word(bytes: &[u8], at: usize, big: bool) -> Option<u32> {
    let four: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(if big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) })
}

/// rpm's lib/backend/ndb/rpmpkg.c: a header and slots of 16 bytes, which say where blobs lie.
fn slots(bytes: &[u8], take: &mut dyn FnMut(&[u8])) -> Result<()> {
    let number = |at: usize| word(bytes, at, false);
    ensure!(bytes.starts_with(b"RpmP"), "it is no database of rpm's");
    let pages = number(16).context("it is cut short")? as usize;
    for at in (32..pages.saturating_mul(4096).min(bytes.len())).step_by(16) {
        if bytes.get(at..at + 4) != Some(b"Slot") {
            continue;
        }
        let (Some(index), Some(offset)) = (number(at + 4), number(at + 8)) else { continue };
        if index == 0 {
            continue;
        }
        let begin = offset as usize * 16;
        ensure!(bytes.get(begin..begin + 4) == Some(b"BlbS"), "package {index} is damaged");
        let length = number(begin + 12).context("a package is cut short")? as usize;
        let end = begin.checked_add(16 + length).context("a package is cut short")?;
        take(bytes.get(begin + 16..end).context("a package is cut short")?);
    }
    Ok(())
}

/// A header without its magic: numbers of index entries and of bytes, the entries, the bytes.
fn package(header: &[u8], source: &str, distribution: &Distribution) -> Option<Package> {
    let count = word(header, 0, true)? as usize;
    let data = header.get(8_usize.checked_add(count.checked_mul(16)?)?..)?;
    let find = |tag: u32| {
        let at = (0..count).map(|n| 8 + n * 16).find(|at| word(header, *at, true) == Some(tag))?;
        Some((word(header, at + 4, true)?, word(header, at + 8, true)? as usize))
    };
    let text = |tag: u32| {
        let (_, offset) = find(tag).filter(|(kind, _)| matches!(kind, 6 | 8 | 9))?;
        let rest = data.get(offset..)?;
        let end = rest.iter().position(|b| *b == 0)?;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    };
    let epoch = find(EPOCH).filter(|(kind, _)| *kind == 4).and_then(|(_, offset)| word(data, offset, true));
    let (name, version) = (text(NAME)?, text(VERSION)?);
    // Keys that packages are signed with stand there as packages.
    if name == "gpg-pubkey" {
        return None;
    }
    let release = text(RELEASE).map(|r| format!("-{r}")).unwrap_or_default();
    Some(Package {
        kind: "rpm",
        namespace: distribution.id.clone(),
        name,
        version: format!("{version}{release}"),
        qualifiers: [
            ("arch", text(ARCH).unwrap_or_default()),
            ("distro", distribution.title()),
            ("epoch", epoch.map(|e| e.to_string()).unwrap_or_default()),
            ("upstream", text(SOURCE).unwrap_or_default()),
        ]
        .into(),
        license: text(LICENSE),
        supplier: text(VENDOR),
        source: source.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(tags: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let (mut index, mut data) = (Vec::new(), Vec::new());
        for (tag, kind, value) in tags {
            for n in [*tag, *kind, data.len() as u32, 1] {
                index.extend(n.to_be_bytes());
            }
            data.extend(*value);
        }
        let mut bytes = (tags.len() as u32).to_be_bytes().to_vec();
        bytes.extend((data.len() as u32).to_be_bytes());
        [bytes, index, data].concat()
    }

    #[test]
    fn what_rpm_says() {
        let bash = header(&[
            (NAME, 6, b"bash\0"),
            (VERSION, 6, b"5.2\0"),
            (RELEASE, 6, b"1.fc40\0"),
            (EPOCH, 4, &[0, 0, 0, 2]),
            (ARCH, 6, b"x86_64\0"),
            (LICENSE, 6, b"GPL-3.0-or-later\0"),
        ]);
        let fedora = Distribution { id: "fedora".into(), version: "40".into() };
        let found = package(&bash, "s", &fedora).unwrap();
        assert_eq!(found.url(), "pkg:rpm/fedora/bash@5.2-1.fc40?arch=x86_64&distro=fedora-40&epoch=2");
        assert_eq!(found.license.as_deref(), Some("GPL-3.0-or-later"));
        assert_eq!(package(&header(&[(NAME, 6, b"gpg-pubkey\0"), (VERSION, 6, b"1\0")]), "s", &fedora), None);
        for n in 0..bash.len() {
            package(&bash[..n], "s", &fedora);
        }
        let mut database = vec![0_u8; 4096];
        database[..4].copy_from_slice(b"RpmP");
        database[16] = 1;
        database[32..36].copy_from_slice(b"Slot");
        database[36] = 1;
        database[40..44].copy_from_slice(&256_u32.to_le_bytes());
        database.extend(b"BlbS\x01\0\0\0\0\0\0\0");
        database.extend((bash.len() as u32).to_le_bytes());
        database.extend(&bash);
        let mut names = Vec::new();
        slots(&database, &mut |header| names.extend(package(header, "s", &fedora).map(|p| p.name))).unwrap();
        assert_eq!(names, ["bash"]);
        database.truncate(4200);
        slots(&database, &mut |_| {}).unwrap_err();
    }
}
