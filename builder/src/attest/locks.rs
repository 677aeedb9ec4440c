//! Which packages does a program bring of its language? Lock files, and what installers leave beside what they installed.

use std::os::fd::BorrowedFd;

use anyhow::Result;
use serde_json::Value;

use super::files;
use super::package::Package;

/// Bytes of a file that is looked at.
const MOST: u64 = 64 << 20;

/// How a file is read: name and version of each package.
type Read = fn(&str, &mut Vec<(String, String)>);

/// By the file's name.
const LOCKS: [(&str, &str, Read); 15] = [
    ("package-lock.json", "npm", npm_lock),
    ("npm-shrinkwrap.json", "npm", npm_lock),
    (".package-lock.json", "npm", npm_lock),
    ("yarn.lock", "npm", yarn_lock),
    ("pnpm-lock.yaml", "npm", pnpm_lock),
    ("Cargo.lock", "cargo", tables),
    ("poetry.lock", "pypi", tables),
    ("uv.lock", "pypi", tables),
    ("pdm.lock", "pypi", tables),
    ("Pipfile.lock", "pypi", pipfile_lock),
    ("requirements.txt", "pypi", requirements),
    ("go.sum", "golang", go_sum),
    ("Gemfile.lock", "gem", gemfile_lock),
    ("composer.lock", "composer", composer_lock),
    ("METADATA", "pypi", metadata),
];

/// What a file of that path tells, if it tells anything.
fn reader(path: &str) -> Option<(&'static str, Read)> {
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    let (_, kind, read) = LOCKS.iter().find(|(known, ..)| *known == name)?;
    match name {
        // Python's wheels (Core metadata specifications).
        "METADATA" if !above.ends_with(".dist-info") => None,
        _ => Some((kind, *read)),
    }
}

pub fn packages(root: BorrowedFd<'_>, found: &mut Vec<Package>) -> Result<()> {
    files::walk(root, &mut |path| {
        let installed = path.ends_with("/package.json") && path.rsplit('/').any(|p| p == "node_modules");
        let (kind, read) = match reader(path) {
            Some(known) => known,
            None if installed => ("npm", package_json as Read),
            None => return Ok(()),
        };
        if let Ok(Some(text)) = files::text(root, path, MOST) {
            let mut all = Vec::new();
            read(&text, &mut all);
            found.extend(all.into_iter().filter_map(|(name, version)| package(kind, &name, &version, path)));
        }
        Ok(())
    })
}

fn package(kind: &'static str, name: &str, version: &str, source: &str) -> Option<Package> {
    let plausible = |text: &str| !text.is_empty() && text.len() < 512 && !text.contains(char::is_whitespace);
    if !plausible(name) || !plausible(version) {
        return None;
    }
    let (namespace, name) = match kind {
        "npm" | "golang" | "composer" => name.rsplit_once('/').unwrap_or(("", name)),
        _ => ("", name),
    };
    // purl-spec, pypi: lower case, with dashes.
    let name = if kind == "pypi" { name.to_lowercase().replace('_', "-") } else { name.to_owned() };
    Some(Package {
        kind,
        namespace: namespace.to_owned(),
        name,
        version: version.to_owned(),
        source: source.to_owned(),
        ..Package::default()
    })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// docs.npmjs.com, package-lock.json: `packages` since version 2, `dependencies` before.
fn npm_lock(content: &str, found: &mut Vec<(String, String)>) {
    let Ok(lock) = serde_json::from_str::<Value>(content) else { return };
    if let Some(packages) = lock["packages"].as_object() {
        for (path, package) in packages.iter().filter(|(path, p)| !path.is_empty() && p["link"] != true) {
            let name = match package["name"].as_str() {
                Some(name) => name,
                None => path.rsplit_once("node_modules/").map_or("", |(_, name)| name),
            };
            found.push((name.to_owned(), text(&package["version"])));
        }
        return;
    }
    fn dependencies(all: &Value, depth: usize, found: &mut Vec<(String, String)>) {
        for (name, package) in all.as_object().into_iter().flatten().filter(|_| depth < 64) {
            found.push((name.clone(), text(&package["version"])));
            dependencies(&package["dependencies"], depth + 1, found);
        }
    }
    dependencies(&lock["dependencies"], 0, found);
}

fn package_json(content: &str, found: &mut Vec<(String, String)>) {
    if let Ok(package) = serde_json::from_str::<Value>(content) {
        found.push((text(&package["name"]), text(&package["version"])));
    }
}

/// `"@scope/name@^1", name@npm:^2:`, and a line with the version below.
fn yarn_lock(content: &str, found: &mut Vec<(String, String)>) {
    let mut name = String::new();
    for line in content.lines() {
        let word = line.trim();
        if !line.starts_with(' ') && line.ends_with(':') {
            let first = line.trim_end_matches(':').split(',').next().unwrap_or_default().trim_matches('"');
            let at = first.char_indices().skip(1).find(|(_, c)| *c == '@').map(|(n, _)| n);
            name = at.map_or("", |at| &first[..at]).to_owned();
        } else if let Some(version) = word.strip_prefix("version")
            && !name.is_empty()
        {
            let version = version.trim_start_matches(':').trim().trim_matches('"');
            if version != "0.0.0-use.local" {
                found.push((std::mem::take(&mut name), version.to_owned()));
            }
        }
    }
}

/// Keys below `packages:`: `/name@1.0.0:`, `'@scope/name@1.0.0(peer)':`, and `/name/1.0.0:` before version 6.
fn pnpm_lock(content: &str, found: &mut Vec<(String, String)>) {
    let below = content.lines().skip_while(|l| *l != "packages:").skip(1);
    for line in below.take_while(|l| l.is_empty() || l.starts_with(' ')) {
        let Some(key) = line.strip_prefix("  ").filter(|k| !k.starts_with(' ')) else { continue };
        let Some(key) = key.strip_suffix(':') else { continue };
        let key = key.trim_matches(['\'', '"']).trim_start_matches('/');
        let key = key.split('(').next().unwrap_or_default();
        let at = key.char_indices().skip(1).filter(|(_, c)| *c == '@').map(|(n, _)| n).last();
        let at = at.or_else(|| key.rfind('/'));
        if let Some(at) = at {
            found.push((key[..at].to_owned(), key[at + 1..].to_owned()));
        }
    }
}

/// TOML's tables `[[package]]` with a name and a version.
fn tables(content: &str, found: &mut Vec<(String, String)>) {
    for table in content.split("[[package]]").skip(1) {
        let own = table.split("\n[").next().unwrap_or_default();
        let value = |name: &str| {
            let line = own.lines().find_map(|l| {
                let (key, value) = l.split_once('=')?;
                (key.trim() == name).then(|| value.trim().trim_matches('"').to_owned())
            });
            line.unwrap_or_default()
        };
        found.push((value("name"), value("version")));
    }
}

fn pipfile_lock(content: &str, found: &mut Vec<(String, String)>) {
    let Ok(lock) = serde_json::from_str::<Value>(content) else { return };
    for part in ["default", "develop"] {
        for (name, package) in lock[part].as_object().into_iter().flatten() {
            found.push((name.clone(), text(&package["version"]).trim_start_matches('=').to_owned()));
        }
    }
}

/// Only what is pinned has a version.
fn requirements(content: &str, found: &mut Vec<(String, String)>) {
    for line in content.lines() {
        let line = line.split([';', '#', ' ', '\\']).next().unwrap_or_default();
        if let Some((name, version)) = line.split_once("==") {
            let name = name.split('[').next().unwrap_or_default();
            found.push((name.to_owned(), version.trim_start_matches('=').to_owned()));
        }
    }
}

fn go_sum(content: &str, found: &mut Vec<(String, String)>) {
    for line in content.lines() {
        let mut words = line.split(' ');
        if let (Some(name), Some(version)) = (words.next(), words.next())
            && !version.ends_with("/go.mod")
        {
            found.push((name.to_owned(), version.to_owned()));
        }
    }
}

/// `    name (1.2.3)` below `specs:`.
fn gemfile_lock(content: &str, found: &mut Vec<(String, String)>) {
    for line in content.lines() {
        let Some(spec) = line.strip_prefix("    ").filter(|s| !s.starts_with(' ')) else { continue };
        if let Some((name, version)) = spec.split_once(" (") {
            found.push((name.to_owned(), version.trim_end_matches(')').to_owned()));
        }
    }
}

fn composer_lock(content: &str, found: &mut Vec<(String, String)>) {
    let Ok(lock) = serde_json::from_str::<Value>(content) else { return };
    for package in ["packages", "packages-dev"].iter().flat_map(|part| lock[*part].as_array()).flatten() {
        found.push((text(&package["name"]), text(&package["version"])));
    }
}

/// Core metadata: fields as in a mail.
fn metadata(content: &str, found: &mut Vec<(String, String)>) {
    let head = content.split("\n\n").next().unwrap_or_default();
    let field = |name: &str| {
        let line = head.lines().find_map(|l| l.split_once(": ").filter(|(n, _)| *n == name));
        line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    found.push((field("Name"), field("Version")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_files() {
        for (path, content, expected) in [
            (
                "package-lock.json",
                r#"{"packages": {"": {"name": "app"}, "node_modules/@a/b": {"version": "1.0.0"},
                    "node_modules/x/node_modules/y": {"version": "2.0.0"}, "node_modules/l": {"link": true}}}"#,
                "pkg:npm/%40a/b@1.0.0 pkg:npm/y@2.0.0",
            ),
            (
                "npm-shrinkwrap.json",
                r#"{"dependencies": {"a": {"version": "1", "dependencies": {"b": {"version": "2"}}}}}"#,
                "pkg:npm/a@1 pkg:npm/b@2",
            ),
            (
                "yarn.lock",
                "# yarn\n\n\"@a/b@^1\", \"@a/b@^1.1\":\n  version \"1.1.0\"\n\nc@^2:\n  version \"2.0.0\"\n",
                "pkg:npm/%40a/b@1.1.0 pkg:npm/c@2.0.0",
            ),
            (
                "yarn.lock",
                "__metadata:\n  version: 8\n\n\"c@npm:^2\":\n  version: 2.0.0\n\n\"app@workspace:.\":\n  version: 0.0.0-use.local\n",
                "pkg:npm/c@2.0.0",
            ),
            (
                "pnpm-lock.yaml",
                "lockfileVersion: '9.0'\n\npackages:\n\n  '@a/b@1.0.0':\n    resolution: {}\n\n  c@2.0.0(d@1.0.0):\n    x: y\n\nsnapshots:\n  z@1:\n",
                "pkg:npm/%40a/b@1.0.0 pkg:npm/c@2.0.0",
            ),
            (
                "src/Cargo.lock",
                "version = 3\n\n[[package]]\nname = \"anyhow\"\nversion = \"1.0.1\"\ndependencies = [\n \"x\",\n]\n\n[[package]]\nname = \"x\"\nversion = \"2.0.0\"\n",
                "pkg:cargo/anyhow@1.0.1 pkg:cargo/x@2.0.0",
            ),
            (
                "poetry.lock",
                "[[package]]\nname = \"Foo_Bar\"\nversion = \"1.0\"\n\n[package.dependencies]\nname = \"no\"\n\n[metadata]\n",
                "pkg:pypi/foo-bar@1.0",
            ),
            ("Pipfile.lock", r#"{"default": {"a": {"version": "==1.0"}}, "develop": {}}"#, "pkg:pypi/a@1.0"),
            (
                "requirements.txt",
                "# all\na==1.0 --hash=sha256:x\nb[extra]==2.0; python_version > '3'\nc>=3\n-r other.txt\n",
                "pkg:pypi/a@1.0 pkg:pypi/b@2.0",
            ),
            (
                "go.sum",
                "golang.org/x/sys v0.1.0 h1:a=\ngolang.org/x/sys v0.1.0/go.mod h1:b=\n",
                "pkg:golang/golang.org/x/sys@v0.1.0",
            ),
            (
                "Gemfile.lock",
                "GEM\n  remote: https://x/\n  specs:\n    rails (7.0.0)\n      rack (~> 2)\n    rack (2.2.3)\n\nPLATFORMS\n  ruby\n",
                "pkg:gem/rails@7.0.0 pkg:gem/rack@2.2.3",
            ),
            (
                "composer.lock",
                r#"{"packages": [{"name": "a/b", "version": "v1.0"}], "packages-dev": []}"#,
                "pkg:composer/a/b@v1.0",
            ),
            (
                "usr/lib/python3/a.dist-info/METADATA",
                "Metadata-Version: 2.1\nName: a\nVersion: 1.0\n\nVersion: 2\n",
                "pkg:pypi/a@1.0",
            ),
            ("package-lock.json", "no JSON", ""),
        ] {
            let (kind, read) = reader(path).unwrap();
            let mut found = Vec::new();
            read(content, &mut found);
            let urls: Vec<String> = found
                .iter()
                .filter_map(|(name, version)| package(kind, name, version, path))
                .map(|p| p.url())
                .collect();
            assert_eq!(urls.join(" "), expected, "{path}");
        }
        assert!(reader("etc/METADATA").is_none());
    }
}
