//! What does the environment say? It is read here, and nowhere else.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};
use image::registry::client::Settings;
use image::registry::credentials::Credentials;
use report::Explain;

use crate::foreign::Interpreter;

/// The values that matter.
#[derive(Clone, Debug)]
pub struct Environment {
    root: Option<PathBuf>,
    home: Option<PathBuf>,
    config: Option<PathBuf>,
    runtime: Option<PathBuf>,
    docker: Option<PathBuf>,
    auth_file: Option<PathBuf>,
    pub search: OsString,
    /// What runs programs of other machines.
    pub interpreters: Vec<Interpreter>,
}

fn path(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

impl Environment {
    /// Of this process, whose user is `uid`.
    pub fn gather(uid: u32) -> Environment {
        let home = path("HOME");
        let below = |name: &str, rest: &str| path(name).or_else(|| Some(home.as_ref()?.join(rest)));
        let root = path("BERTH_ROOT").or_else(|| match uid {
            0 => Some(PathBuf::from("/var/lib/berth")),
            _ => Some(below("XDG_DATA_HOME", ".local/share")?.join("berth")),
        });
        Environment {
            root,
            config: below("XDG_CONFIG_HOME", ".config"),
            runtime: path("XDG_RUNTIME_DIR").or_else(|| Some(PathBuf::from(format!("/run/user/{uid}")))),
            docker: below("DOCKER_CONFIG", ".docker"),
            auth_file: path("REGISTRY_AUTH_FILE"),
            home,
            search: env::var_os("PATH").unwrap_or_default(),
            interpreters: Vec::new(),
        }
    }

    /// Look for what runs programs of other machines, while the host's /proc is seen.
    pub fn look_for_interpreters(&mut self) {
        self.interpreters = crate::foreign::interpreters();
    }

    /// Where images are kept: what was named, or what the environment says.
    pub fn root(&self, named: Option<&PathBuf>) -> Result<PathBuf> {
        let root = named.or(self.root.as_ref()).cloned();
        root.context("nobody says where images are kept: HOME is not set")
            .hint(|| "--root FOLDER, or BERTH_ROOT".to_owned())
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
    pub fn login_file(&self, named: Option<&PathBuf>) -> Result<PathBuf> {
        let named = named.or(self.auth_file.as_ref()).cloned();
        let file = named.or_else(|| Some(self.docker.as_ref()?.join("config.json")));
        file.context("nobody says where credentials are kept: HOME is not set")
            .hint(|| "--authfile FILE".to_owned())
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
