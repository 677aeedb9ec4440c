//! How does a repository become files? With the host's git, told to run nothing of the repository's, and to ask nobody.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use report::Explain;

/// A repository as docker writes it: `ADDRESS[#REF[:FOLDER]]`, or `ADDRESS?ref=…&subdir=…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub url: String,
    pub reference: Option<String>,
    pub folder: Option<String>,
    pub submodules: bool,
    pub keep_git_dir: bool,
    pub commit: Option<String>,
}

impl Address {
    pub fn parse(text: &str) -> Result<Address> {
        let (rest, fragment) = match text.split_once('#') {
            Some((rest, fragment)) => (rest, Some(fragment)),
            None => (text, None),
        };
        let (url, query) = match rest.split_once('?') {
            Some((url, query)) => (url, Some(query)),
            None => (rest, None),
        };
        let mut address = Address {
            url: url.to_owned(),
            reference: None,
            folder: None,
            submodules: true,
            keep_git_dir: false,
            commit: None,
        };
        if let Some(fragment) = fragment {
            let (reference, folder) = match fragment.split_once(':') {
                Some((reference, folder)) => (reference, Some(folder)),
                None => (fragment, None),
            };
            address.reference = Some(reference.to_owned()).filter(|r| !r.is_empty());
            address.folder = folder.map(str::to_owned).filter(|f| !f.is_empty());
        }
        for field in query.unwrap_or_default().split('&').filter(|f| !f.is_empty()) {
            let (name, value) = field.split_once('=').unwrap_or((field, "true"));
            let flag = || match value {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                other => bail!("{text}: {name} is true or false, not {other:?}"),
            };
            match name {
                "ref" => address.reference = Some(value.to_owned()),
                "branch" => address.reference = Some(format!("refs/heads/{value}")),
                "tag" => address.reference = Some(format!("refs/tags/{value}")),
                "subdir" => address.folder = Some(value.to_owned()),
                "commit" | "checksum" => address.commit = Some(value.to_owned()),
                "submodules" => address.submodules = flag()?,
                "keep-git-dir" => address.keep_git_dir = flag()?,
                other => bail!("{text}: unknown option {other:?}"),
            }
        }
        for part in [&address.url].into_iter().chain(&address.reference).chain(&address.folder) {
            // git takes what begins so for an option.
            ensure!(!part.starts_with('-'), "{text}: {part:?} begins with a dash");
        }
        Ok(address)
    }
}

/// Check a repository out into an empty folder; `.berth-commit` there tells which commit it is.
pub fn checkout(text: &str, keep_git_dir: bool, into: &Path, search: &OsStr) -> Result<()> {
    let address = Address::parse(text)?;
    let there = std::env::split_paths(search).any(|d| d.join("git").exists());
    let missing: Result<()> =
        if there { Ok(()) } else { Err(anyhow::anyhow!("{text}: there is no git on this host")) };
    missing.hint(|| "install git, or give the build a folder or an archive".to_owned())?;
    let work = into.join(".berth-git");
    std::fs::create_dir(&work).with_context(|| format!("make {}", work.display()))?;
    let git = |args: &[&str]| -> Result<String> {
        let output = Command::new("git")
            .arg("-C")
            .arg(&work)
            .args([
                "-c",
                "core.hooksPath=/dev/null",
                "-c",
                "core.symlinks=true",
                "-c",
                "protocol.ext.allow=never",
            ])
            .args(["-c", "advice.detachedHead=false", "-c", "init.defaultBranch=main"])
            .args(args)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_LFS_SKIP_SMUDGE", "1")
            .stdin(Stdio::null())
            .output()
            .context("run git")?;
        if !output.status.success() {
            bail!("git {}: {}", args.first().unwrap_or(&""), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let run = || -> Result<()> {
        git(&["init", "-q"])?;
        git(&["remote", "add", "origin", &address.url])?;
        // With both, the commit is what the name must stand for.
        let wanted = address.reference.as_deref().or(address.commit.as_deref()).unwrap_or("HEAD");
        // A server may refuse a commit by its name; then all is fetched.
        if git(&["fetch", "-q", "--depth", "1", "origin", wanted]).is_err() {
            git(&["fetch", "-q", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*"])?;
            let found = [wanted.to_owned(), format!("origin/{wanted}")]
                .iter()
                .find_map(|name| git(&["rev-parse", "--verify", "-q", &format!("{name}^{{commit}}")]).ok());
            let found = found.with_context(|| format!("there is no {wanted}"))?;
            git(&["checkout", "-q", "--detach", &found])?;
        } else {
            git(&["checkout", "-q", "--detach", "FETCH_HEAD"])?;
        }
        if address.submodules && work.join(".gitmodules").exists() {
            git(&["submodule", "update", "-q", "--init", "--recursive", "--depth", "1"])?;
        }
        Ok(())
    };
    run().with_context(|| text.to_owned())?;
    let commit = git(&["rev-parse", "HEAD"])?;
    if let Some(wanted) = &address.commit {
        ensure!(commit.starts_with(wanted.as_str()), "{text}: it is at {commit}, not at {wanted}");
    }
    if !(keep_git_dir || address.keep_git_dir) {
        std::fs::remove_dir_all(work.join(".git")).context("remove .git")?;
    }
    let root = crate::bundle::open_root(&work)?;
    let folder = Path::new(address.folder.as_deref().unwrap_or("."));
    let from = sys::path::open_dir(std::os::fd::AsFd::as_fd(&root), folder)
        .with_context(|| format!("{text}: folder {}", folder.display()))?;
    for name in sys::path::list(std::os::fd::AsFd::as_fd(&from))? {
        rustix::fs::renameat(&from, &name, rustix::fs::CWD, into.join(&name))
            .with_context(|| format!("{text}: {}", name.to_string_lossy()))?;
    }
    drop((root, from));
    std::fs::remove_dir_all(&work).context("remove a checkout's folder")?;
    std::fs::write(into.join(".berth-commit"), commit).context("note the commit")
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn addresses_as_docker_writes_them() {
        for (text, url, reference, folder) in [
            ("https://x/a.git", "https://x/a.git", None, None),
            ("https://x/a.git#v1", "https://x/a.git", Some("v1"), None),
            ("https://x/a.git#v1:sub/dir", "https://x/a.git", Some("v1"), Some("sub/dir")),
            ("git@x:a.git#:sub", "git@x:a.git", None, Some("sub")),
            ("https://x/a.git?tag=v1&subdir=s", "https://x/a.git", Some("refs/tags/v1"), Some("s")),
        ] {
            let found = Address::parse(text).unwrap();
            assert_eq!(
                (&found.url[..], found.reference.as_deref(), found.folder.as_deref()),
                (url, reference, folder),
                "{text}"
            );
        }
        for text in [
            "https://x/a.git#--upload-pack=x",
            "--x",
            "https://x/a.git?quux=1",
            "https://x/a.git?submodules=2",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}
