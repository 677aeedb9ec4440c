//! Where is a registry, and how is it spoken to? `hosts.toml` as containerd has it (docs/hosts.md there), in a folder named after
//! the registry, and beside it the certificates that Docker looks for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// A place to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Scheme, host and port; `None` for the scheme: https, or else http where that is allowed.
    pub scheme: Option<String>,
    /// Host and port.
    pub address: String,
    /// Of the API: `/v2`, or what `override_path` says.
    pub path: String,
    pub pull: bool,
    pub resolve: bool,
    pub push: bool,
    /// Certificates of authorities that are trusted beside the system's.
    pub authorities: Vec<PathBuf>,
    /// Our own certificate, and its key if that lies elsewhere.
    pub client: Option<(PathBuf, PathBuf)>,
    pub skip_verify: bool,
    pub headers: Vec<(String, String)>,
    /// How long a connection may take to be made.
    pub connect: Option<Duration>,
}

/// What a file says of one host.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<toml::Value>,
    skip_verify: Option<bool>,
    override_path: Option<bool>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn all(&self) -> Vec<String> {
        match self {
            OneOrMany::One(one) => vec![one.clone()],
            OneOrMany::Many(many) => many.clone(),
        }
    }
}

impl Host {
    /// The registry itself, as nothing was said of it.
    pub fn plain(address: &str) -> Host {
        // The name that people know is not the one that answers.
        let address =
            if address == crate::reference::DEFAULT_REGISTRY { "registry-1.docker.io" } else { address };
        Host {
            address: address.to_owned(),
            path: "/v2".to_owned(),
            pull: true,
            resolve: true,
            push: true,
            ..Host::default()
        }
    }

    /// Whether plain HTTP is right without being asked for: nobody listens in.
    pub fn is_loopback(&self) -> bool {
        let host = match self.address.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &self.address,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// The places to ask for a registry, in order; the registry itself is the last. `folders` are looked at in order, and the first
/// that knows the registry (or `_default`) decides.
pub fn hosts(folders: &[PathBuf], registry: &str) -> Result<Vec<Host>> {
    for folder in folders {
        for name in [registry.to_owned(), registry.replacen(':', "_", 1) + "_", "_default".to_owned()] {
            let dir = folder.join(&name);
            let file = dir.join("hosts.toml");
            match std::fs::read_to_string(&file) {
                Ok(text) => return parse(&text, registry, &dir).with_context(|| file.display().to_string()),
                Err(e)
                    if matches!(
                        e.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                    ) => {}
                Err(e) => return Err(e).with_context(|| format!("read {}", file.display())),
            }
            if let Some(host) = certificates(&dir, registry)? {
                return Ok(vec![host]);
            }
        }
    }
    Ok(vec![Host::plain(registry)])
}

/// Docker's way: `*.crt` are authorities, `*.cert` with a `.key` of the same name is our own.
fn certificates(dir: &Path, registry: &str) -> Result<Option<Host>> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(None) };
    let mut names: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    names.sort();
    let mut host = Host::plain(registry);
    for path in names {
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => host.authorities.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                ensure!(key.exists(), "{}: no key {}", path.display(), key.display());
                host.client = Some((path, key));
            }
            _ => {}
        }
    }
    Ok((!host.authorities.is_empty() || host.client.is_some()).then_some(host))
}

fn parse(text: &str, registry: &str, dir: &Path) -> Result<Vec<Host>> {
    // What does not belong to another host is said of the registry itself.
    let mut own: toml::Table = toml::from_str(text)?;
    let mut hosts = Vec::new();
    let others: toml::Table =
        own.remove("host").map(toml::Value::try_into).transpose().context("host")?.unwrap_or_default();
    for (url, entry) in others {
        let at = || format!("host {url:?}");
        let entry: Entry = entry.try_into().with_context(at)?;
        hosts.push(host(&url, entry, dir).with_context(at)?);
    }
    let server: Option<String> =
        own.remove("server").map(toml::Value::try_into).transpose().context("server")?;
    let own: Entry = own.try_into()?;
    let named = server.is_some();
    let mut server = host(server.as_deref().unwrap_or(registry), own, dir).context("server")?;
    let plain = Host::plain(registry);
    if !named || server.address == registry {
        server.address = plain.address;
    }
    hosts.push(server);
    Ok(hosts)
}

fn host(url: &str, entry: Entry, dir: &Path) -> Result<Host> {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (Some(scheme.to_owned()), rest),
        Some((scheme, _)) => bail!("scheme {scheme:?}: http and https are known"),
        None => (None, url),
    };
    let (address, path) =
        rest.split_once('/').map_or((rest, ""), |(address, path)| (address, path.trim_end_matches('/')));
    ensure!(!address.is_empty(), "an address is missing");
    let path = match (entry.override_path.unwrap_or(false), path) {
        (true, "") => String::new(),
        (true, path) => format!("/{path}"),
        (false, "" | "v2") => "/v2".to_owned(),
        (false, path) => format!("/{}/v2", path.trim_end_matches("/v2")),
    };
    let all = || ["pull", "resolve", "push"].map(str::to_owned).to_vec();
    let capabilities = entry.capabilities.unwrap_or_else(all);
    let can = |what: &str| capabilities.iter().any(|c| c == what);
    for capability in &capabilities {
        ensure!(
            matches!(capability.as_str(), "pull" | "resolve" | "push" | "referrers"),
            "capability {capability:?}: known are pull, resolve, push"
        );
    }
    let client = match &entry.client {
        None => None,
        Some(toml::Value::String(both)) => Some((dir.join(both), dir.join(both))),
        Some(toml::Value::Array(pairs)) => match pairs.as_slice() {
            [toml::Value::String(both)] => Some((dir.join(both), dir.join(both))),
            [toml::Value::Array(pair)] => match pair.as_slice() {
                [toml::Value::String(cert), toml::Value::String(key)] => {
                    Some((dir.join(cert), dir.join(key)))
                }
                _ => bail!("client: expected a certificate and its key"),
            },
            _ => bail!("client: one certificate is supported"),
        },
        Some(_) => bail!("client: expected a path, or [[certificate, key]]"),
    };
    let connect = match &entry.dial_timeout {
        Some(text) => Some(
            duration(text)
                .with_context(|| format!("dial_timeout {text:?}: expected a time, as 3s or 500ms"))?,
        ),
        None => None,
    };
    Ok(Host {
        scheme,
        connect,
        address: address.to_owned(),
        path,
        pull: can("pull"),
        resolve: can("resolve"),
        push: can("push"),
        authorities: entry.ca.iter().flat_map(OneOrMany::all).map(|p| dir.join(p)).collect(),
        client,
        skip_verify: entry.skip_verify.unwrap_or(false),
        headers: entry.header.iter().flat_map(|(n, v)| v.all().into_iter().map(|v| (n.clone(), v))).collect(),
    })
}

/// A number and a unit, as Go writes durations.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.')?);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mirrors_come_first_in_their_order() {
        let text = r#"
            server = "https://docker.io"
            skip_verify = true
            [host."https://z.example:5000"]
              capabilities = ["pull", "resolve"]
              dial_timeout = "500ms"
              ca = ["/abs.crt", "rel.crt"]
              client = [["c.pem", "k.pem"]]
              [host."https://z.example:5000".header]
                x-a = "1"
                x-b = ["2", "3"]
            [host."http://a.example/v2/prefix"]
              override_path = true
              capabilities = ["push"]
            [host."b.example/path"]
        "#;
        let hosts = parse(text, "docker.io", Path::new("/d")).unwrap();
        let addresses: Vec<_> =
            hosts.iter().map(|h| (h.scheme.as_deref(), h.address.as_str(), h.path.as_str())).collect();
        assert_eq!(
            addresses,
            [
                (Some("https"), "z.example:5000", "/v2"),
                (Some("http"), "a.example", "/v2/prefix"),
                (None, "b.example", "/path/v2"),
                (Some("https"), "registry-1.docker.io", "/v2"),
            ]
        );
        assert!(
            hosts[0].pull
                && hosts[0].resolve
                && !hosts[0].push
                && !hosts[1].pull
                && hosts[1].push
                && hosts[2].push
        );
        assert_eq!(hosts[0].authorities, [Path::new("/abs.crt"), Path::new("/d/rel.crt")]);
        assert_eq!(hosts[0].client, Some(("/d/c.pem".into(), "/d/k.pem".into())));
        assert_eq!(hosts[0].headers.len(), 3);
        assert_eq!(hosts[0].connect, Some(Duration::from_millis(500)));
        assert!(hosts[3].skip_verify && !hosts[0].skip_verify);
    }

    #[test]
    fn mistakes_are_told() {
        for (text, reason) in [
            ("server = 1", "server"),
            ("servre = \"x\"", "unknown field"),
            ("[host.\"ftp://x\"]", "http and https"),
            ("[host.\"https://x\"]\nskip = true", "unknown field"),
            ("[host.\"https://x\"]\ncapabilities = [\"pul\"]", "known are pull"),
            ("[host.\"https:///x\"]", "address is missing"),
            ("[host.\"https://x\"]\nclient = 5", "client"),
            ("[host.\"https://x\"]\ndial_timeout = \"soon\"", "as 3s or 500ms"),
            ("host = 5", "host"),
        ] {
            let error = format!("{:#}", parse(text, "r", Path::new("/")).expect_err(reason));
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_folder_that_knows_the_registry_decides() {
        let temp = tempfile::tempdir().unwrap();
        let folders = [temp.path().join("a"), temp.path().join("b")];
        std::fs::create_dir_all(folders[1].join("r.example:5000")).unwrap();
        std::fs::write(folders[1].join("r.example:5000/ca.crt"), "").unwrap();
        std::fs::create_dir_all(folders[1].join("_default")).unwrap();
        std::fs::write(folders[1].join("_default/hosts.toml"), "[host.\"https://mirror\"]").unwrap();
        assert_eq!(hosts(&folders, "r.example:5000").unwrap()[0].authorities.len(), 1);
        assert_eq!(hosts(&folders, "other").unwrap()[0].address, "mirror");
        assert_eq!(hosts(&folders[..1], "docker.io").unwrap(), [Host::plain("docker.io")]);
        std::fs::write(folders[1].join("r.example:5000/x.cert"), "").unwrap();
        assert!(hosts(&folders, "r.example:5000").unwrap_err().to_string().contains("no key"));
        for (address, loopback) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.3:1", true),
            ("[::1]:5000", true),
            ("r.example", false),
        ] {
            assert_eq!(Host::plain(address).is_loopback(), loopback, "{address}");
        }
    }

    proptest! {
        #[test]
        fn fuzz_any_file_ends(text in "\\PC{0,200}") {
            if let Ok(hosts) = parse(&text, "r", Path::new("/")) {
                prop_assert!(!hosts.is_empty());
            }
        }
    }
}
