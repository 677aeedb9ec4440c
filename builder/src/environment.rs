//! What does the environment say? It is read here, and nowhere else.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use image::registry::client::Settings;
use image::registry::credentials::Credentials;

/// The values that matter.
#[derive(Clone, Debug)]
pub struct Environment {
    pub root: PathBuf,
    home: Option<PathBuf>,
    config: Option<PathBuf>,
    runtime: Option<PathBuf>,
    docker: Option<PathBuf>,
    auth_file: Option<PathBuf>,
    pub search: OsString,
}

fn path(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

impl Environment {
    /// Of this process, whose user is `uid`.
    pub fn gather(uid: u32) -> Environment {
        let home = path("HOME");
        let below = |name: &str, rest: &str| path(name).or_else(|| Some(home.as_ref()?.join(rest)));
        let root = path("BERTH_ROOT").unwrap_or_else(|| match uid {
            0 => PathBuf::from("/var/lib/berth"),
            _ => below("XDG_DATA_HOME", ".local/share")
                .unwrap_or_else(|| PathBuf::from(format!("/tmp/berth-{uid}")))
                .join("berth"),
        });
        Environment {
            root,
            config: below("XDG_CONFIG_HOME", ".config"),
            runtime: path("XDG_RUNTIME_DIR").or_else(|| Some(PathBuf::from(format!("/run/user/{uid}")))),
            docker: below("DOCKER_CONFIG", ".docker"),
            auth_file: path("REGISTRY_AUTH_FILE"),
            home,
            search: env::var_os("PATH").unwrap_or_default(),
        }
    }

    /// Files of credentials: what was named, or else Podman's and Docker's.
    pub fn credential_files(&self, named: Option<&PathBuf>) -> Vec<PathBuf> {
        if let Some(named) = named.or(self.auth_file.as_ref()) {
            return vec![named.clone()];
        }
        let below = |dir: &Option<PathBuf>, rest: &str| dir.as_ref().map(|d| d.join(rest));
        let all = [
            below(&self.runtime, "containers/auth.json"),
            below(&self.config, "containers/auth.json"),
            below(&self.docker, "config.json"),
            below(&self.home, ".dockercfg"),
        ];
        all.into_iter().flatten().collect()
    }

    /// Where `login` keeps them: what was named, or Docker's file.
    pub fn login_file(&self, named: Option<&PathBuf>) -> PathBuf {
        let own =
            || self.docker.clone().unwrap_or_else(|| PathBuf::from("/root/.docker")).join("config.json");
        named.or(self.auth_file.as_ref()).cloned().unwrap_or_else(own)
    }

    /// How registries are spoken to.
    pub fn settings(&self, files: Option<&PathBuf>, login: Option<Credentials>, insecure: bool) -> Settings {
        let own = self.config.as_ref().map(|c| c.join("berth/certs.d"));
        let system =
            ["/etc/berth/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
        Settings {
            hosts: own.into_iter().chain(system).collect(),
            credentials: self.credential_files(files),
            login,
            insecure,
            pause: std::thread::sleep,
        }
    }
}
