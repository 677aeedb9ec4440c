//! Who are we to a registry? The files and helpers of Docker and Podman (docker login, containers-auth.json(5)), read and written
//! as they do.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use report::{Kind, error};
use rustix::fs::FlockOperation;
use serde_json::{Map, Value};

use crate::temporary::Replacement;

/// What Docker calls its own registry in these files.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// How long a helper may think: it may ask a person.
const HELPER: Duration = Duration::from_secs(120);

/// What is shown to a registry. Debug output shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// Exchanged for tokens.
    Identity(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credentials::Password { user, .. } => write!(f, "Password {{ user: {user:?}, .. }}"),
            Credentials::Identity(_) => f.write_str("Identity(..)"),
        }
    }
}

impl Credentials {
    pub fn user(&self) -> Option<&str> {
        match self {
            Credentials::Password { user, .. } => Some(user),
            Credentials::Identity(_) => None,
        }
    }
}

/// The key of a registry in these files.
fn keys(registry: &str, repository: &str) -> Vec<String> {
    // The longest path first, then the registry.
    let mut keys = Vec::new();
    let mut path = repository;
    while !path.is_empty() {
        keys.push(format!("{registry}/{path}"));
        path = path.rsplit_once('/').map_or("", |(above, _)| above);
    }
    keys.push(registry.to_owned());
    if registry == crate::reference::DEFAULT_REGISTRY {
        keys.extend(["index.docker.io".to_owned(), DOCKER_HUB.to_owned()]);
    }
    keys
}

/// `https://host/v1/` is `host`.
fn normal(key: &str) -> &str {
    if key == DOCKER_HUB {
        return key;
    }
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    match rest {
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => key,
    }
}

fn read(path: &Path) -> Result<Map<String, Value>> {
    match std::fs::read(path) {
        Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => Ok(Map::new()),
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| path.display().to_string()),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Map::new())
        }
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
    }
}

/// What the first file that knows the registry says, helpers included.
pub fn find(files: &[PathBuf], registry: &str, repository: &str) -> Result<Option<Credentials>> {
    for path in files {
        let config = read(path)?;
        let at = || path.display().to_string();
        if let Some(found) = find_in(&config, registry, repository).with_context(at)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn find_in(config: &Map<String, Value>, registry: &str, repository: &str) -> Result<Option<Credentials>> {
    let keys = keys(registry, repository);
    if let Some(helper) = helper(config, registry)
        && let Some(found) = ask(&helper, registry)?
    {
        return Ok(Some(found));
    }
    let Some(auths) = config.get("auths").and_then(Value::as_object) else { return Ok(None) };
    for key in &keys {
        let Some((_, entry)) = auths.iter().find(|(k, _)| normal(k) == key) else { continue };
        if let Some(found) = of_entry(entry).with_context(|| format!("auths.{key:?}"))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn of_entry(entry: &Value) -> Result<Option<Credentials>> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|t| !t.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credentials::Identity(token.to_owned())));
    }
    if let Some(auth) = text("auth") {
        // Docker fills some with zeros.
        let decoded =
            STANDARD.decode(auth.trim_end_matches('\0')).ok().and_then(|b| String::from_utf8(b).ok());
        let Some((user, password)) = decoded.as_deref().and_then(|d| d.split_once(':')) else {
            bail!("auth is not base64 of USER:PASSWORD");
        };
        let password = password.trim_end_matches('\0').to_owned();
        return Ok(Some(Credentials::Password { user: user.to_owned(), password }));
    }
    Ok(match (text("username"), text("password")) {
        (Some(user), Some(password)) => {
            Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
        }
        _ => None,
    })
}

/// The program that keeps the secrets of a registry.
fn helper(config: &Map<String, Value>, registry: &str) -> Option<String> {
    let of = |name: &str| config.get("credHelpers")?.get(name)?.as_str().map(str::to_owned);
    let helper = match of(registry) {
        Some(helper) => Some(helper),
        None if registry == crate::reference::DEFAULT_REGISTRY => of(DOCKER_HUB),
        None => None,
    };
    helper.or_else(|| config.get("credsStore")?.as_str().map(str::to_owned)).filter(|h| !h.is_empty())
}

fn server_key(registry: &str) -> &str {
    if registry == crate::reference::DEFAULT_REGISTRY { DOCKER_HUB } else { registry }
}

/// The helper's protocol: a word as its argument, text in, JSON out.
fn run(helper: &str, verb: &str, input: &[u8]) -> Result<(bool, Vec<u8>)> {
    ensure!(
        helper.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')),
        "credential helper {helper:?}: that is no name"
    );
    let program = format!("docker-credential-{helper}");
    let running = || format!("run {program} {verb}");
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(running)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read what it is given is told by its answer.
        stdin.write_all(input).unwrap_or_default();
    }
    let pid = child.id();
    let (done, answer) = channel();
    std::thread::spawn(move || done.send(child.wait_with_output()).unwrap_or_default());
    match answer.recv_timeout(HELPER) {
        Ok(output) => {
            let output = output.with_context(running)?;
            Ok((output.status.success(), output.stdout))
        }
        Err(_) => {
            sys::process::end_child(i32::try_from(pid).unwrap_or_default());
            bail!("{program} {verb}: no answer within {} seconds", HELPER.as_secs())
        }
    }
}

fn ask(helper: &str, registry: &str) -> Result<Option<Credentials>> {
    let (good, answer) = run(helper, "get", server_key(registry).as_bytes())?;
    if !good {
        // It says so in words of its own when it knows nothing.
        return Ok(None);
    }
    let answer: Value =
        serde_json::from_slice(&answer).with_context(|| format!("docker-credential-{helper} get"))?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(match (text("Username"), text("Secret")) {
        (_, secret) if secret.is_empty() => None,
        (user, secret) if user == "<token>" => Some(Credentials::Identity(secret)),
        (user, password) => Some(Credentials::Password { user, password }),
    })
}

/// Keep credentials in a file, or with the helper that it names.
pub fn store(path: &Path, registry: &str, user: &str, password: &str) -> Result<()> {
    change(path, |config| {
        if let Some(helper) = helper(config, registry) {
            let secret =
                serde_json::json!({"ServerURL": server_key(registry), "Username": user, "Secret": password});
            let (good, answer) = run(&helper, "store", secret.to_string().as_bytes())?;
            ensure!(good, "docker-credential-{helper} store: {}", String::from_utf8_lossy(&answer).trim());
            return Ok(false);
        }
        let auth = STANDARD.encode(format!("{user}:{password}"));
        let auths = config.entry("auths").or_insert_with(|| Value::Object(Map::new()));
        let auths = auths.as_object_mut().context("auths is no object")?;
        auths.insert(server_key(registry).to_owned(), serde_json::json!({"auth": auth}));
        Ok(true)
    })
}

/// Forget them. `Kind::NotFound` if there are none.
pub fn forget(path: &Path, registry: &str) -> Result<()> {
    change(path, |config| {
        let mut found = false;
        if let Some(helper) = helper(config, registry) {
            found = ask(&helper, registry)?.is_some();
            if found {
                let (good, answer) = run(&helper, "erase", server_key(registry).as_bytes())?;
                ensure!(
                    good,
                    "docker-credential-{helper} erase: {}",
                    String::from_utf8_lossy(&answer).trim()
                );
            }
        }
        let keys = keys(registry, "");
        let mut changed = false;
        if let Some(auths) = config.get_mut("auths").and_then(Value::as_object_mut) {
            let before = auths.len();
            auths.retain(|key, _| !keys.iter().any(|k| k == normal(key)));
            changed = auths.len() != before;
        }
        if !found && !changed {
            return Err(error(Kind::NotFound, format!("not logged in to {registry}")));
        }
        Ok(changed)
    })
}

/// Forget all that the file has.
pub fn forget_all(path: &Path) -> Result<()> {
    change(path, |config| Ok(config.remove("auths").is_some()))
}

/// Change a file whole or not at all, with what else it says.
fn change(path: &Path, change: impl FnOnce(&mut Map<String, Value>) -> Result<bool>) -> Result<()> {
    let writing = || format!("write {}", path.display());
    let dir = path.parent().with_context(writing)?;
    {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(writing)?;
    }
    let lock = File::open(dir).with_context(writing)?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive))
        .with_context(writing)?;
    let mut config = read(path)?;
    if change(&mut config).with_context(|| path.display().to_string())? {
        let mut new = Replacement::private(path)?;
        new.write_all(&serde_json::to_vec_pretty(&config)?).with_context(writing)?;
        new.finish()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password { user: user.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn the_nearest_entry_counts() {
        let auth = |text: &str| json!({"auth": STANDARD.encode(text)});
        let config = json!({"auths": {
            "r.example": auth("host:p"),
            "r.example/team": auth("team:p:with:colons"),
            "https://old.example/v1/": auth("old:p"),
            "https://index.docker.io/v1/": auth("hub:p"),
            "id.example": {"auth": STANDARD.encode("x:"), "identitytoken": "token"},
            "plain.example": {"username": "u", "password": "p"},
            "empty.example": {},
        }});
        let config = config.as_object().unwrap();
        for (registry, repository, expected) in [
            ("r.example", "other/app", Some(password("host", "p"))),
            ("r.example", "team/app", Some(password("team", "p:with:colons"))),
            ("r.example", "team", Some(password("team", "p:with:colons"))),
            ("r.example", "teams", Some(password("host", "p"))),
            ("old.example", "a", Some(password("old", "p"))),
            ("docker.io", "library/alpine", Some(password("hub", "p"))),
            ("id.example", "a", Some(Credentials::Identity("token".to_owned()))),
            ("plain.example", "a", Some(password("u", "p"))),
            ("empty.example", "a", None),
            ("none.example", "a", None),
        ] {
            assert_eq!(find_in(config, registry, repository).unwrap(), expected, "{registry}/{repository}");
        }
        let bad = json!({"auths": {"r": {"auth": "!"}}});
        let error = format!("{:#}", find_in(bad.as_object().unwrap(), "r", "").unwrap_err());
        assert!(error.contains("auths.\"r\": auth is not base64"), "{error}");
        assert!(!format!("{:?}", password("u", "secret")).contains("secret"));
    }

    #[test]
    fn files_keep_what_else_they_say() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("new/config.json");
        store(&path, "r.example:5000", "u", "p").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut config = read(&path).unwrap();
        config.insert("psFormat".to_owned(), json!("x"));
        std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
        store(&path, "docker.io", "hub", "p").unwrap();
        let files = [temp.path().join("missing"), path.clone()];
        assert_eq!(find(&files, "r.example:5000", "a").unwrap(), Some(password("u", "p")));
        assert_eq!(find(&files, "docker.io", "library/a").unwrap(), Some(password("hub", "p")));
        forget(&path, "docker.io").unwrap();
        let again = forget(&path, "docker.io").unwrap_err();
        assert_eq!(report::kind(&again), Some(Kind::NotFound));
        assert_eq!(read(&path).unwrap()["psFormat"], "x");
        forget_all(&path).unwrap();
        assert_eq!(find(&files, "r.example:5000", "a").unwrap(), None);
        std::fs::write(&path, "{").unwrap();
        assert!(format!("{:#}", find(&files, "r", "").unwrap_err()).contains("config.json"));
    }

    #[test]
    fn a_helper_must_have_a_plain_name() {
        let config = json!({"credsStore": "../evil"});
        let error = format!("{:#}", find_in(config.as_object().unwrap(), "r", "").unwrap_err());
        assert!(error.contains("no name"), "{error}");
        let config = json!({"credHelpers": {"r": "surely-not-installed"}});
        let error = format!("{:#}", find_in(config.as_object().unwrap(), "r", "").unwrap_err());
        assert!(error.contains("run docker-credential-surely-not-installed get"), "{error}");
    }
}
