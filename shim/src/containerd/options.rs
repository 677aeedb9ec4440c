//! What may a client say about how its containers are run? runc's options (containerd.runc.v1.Options), as `ctr` and dockerd send
//! them; the same ones as TOML, in the general form that the CRI plugin and dockerd have for other runtimes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use report::{Explain, Kind};
use runtime::client::{self, Client};
use serde::{Deserialize, Serialize};

use super::message::{Any, GenericOptions, RuncOptions, Whole};
use super::stdio::Owner;

/// Names as config.toml of containerd has them. What is empty is not given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct Options {
    pub no_pivot_root: bool,
    pub no_new_keyring: bool,
    pub shim_cgroup: String,
    pub io_uid: u32,
    pub io_gid: u32,
    pub binary_name: String,
    pub root: String,
    pub criu_path: String,
    pub systemd_cgroup: bool,
    /// containerd itself makes it the checkpoint of the request.
    pub criu_image_path: String,
    pub criu_work_path: String,
}

/// Where the state of containers is, a folder for each namespace below, if nobody says otherwise.
const ROOT: &str = "/run/containerd/runc";
/// Options of a container, in its bundle, for who must clean up.
const FILE: &str = "options.json";

impl Options {
    /// From a request. Nothing given: the defaults.
    pub fn parse(any: Option<&Any>) -> Result<Options> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty()) else { return Ok(Options::default()) };
        let damaged =
            || report::error(Kind::BadInput, format!("options: not a message of type {}", any.type_url));
        match any.name() {
            "containerd.runc.v1.Options" | "containerd.linux.runc.RuncOptions" => {
                let o = RuncOptions::parse(&any.value).ok_or_else(damaged)?;
                Ok(Options {
                    no_pivot_root: o.no_pivot_root,
                    no_new_keyring: o.no_new_keyring,
                    shim_cgroup: o.shim_cgroup,
                    io_uid: o.io_uid,
                    io_gid: o.io_gid,
                    binary_name: o.binary_name,
                    root: o.root,
                    criu_path: o.criu_path,
                    systemd_cgroup: o.systemd_cgroup,
                    criu_image_path: o.criu_image_path,
                    criu_work_path: o.criu_work_path,
                })
            }
            name if name.ends_with("runtimeoptions.v1.Options") => {
                let o = GenericOptions::parse(&any.value).ok_or_else(damaged)?;
                if !o.config_body.is_empty() {
                    return from_toml(&o.config_body).context("options: config_body");
                }
                if o.config_path.is_empty() {
                    return Ok(Options::default());
                }
                let path = Path::new(&o.config_path);
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("options: read {}", path.display()));
                from_toml(&text.kind(Kind::BadInput)?).with_context(|| format!("options: {}", path.display()))
            }
            name => Err(report::error(
                Kind::BadInput,
                format!(
                    "options: unknown type {name}; known are containerd.runc.v1.Options and runtimeoptions.v1.Options"
                ),
            )),
        }
    }

    /// The runtime, for a namespace.
    pub fn client(&self, namespace: &str, search: &OsStr) -> Client {
        let root = if self.root.is_empty() { Path::new(ROOT) } else { Path::new(&self.root) };
        Client {
            program: match self.binary_name.as_str() {
                "" => client::find("berth-runtime", search),
                name => PathBuf::from(name),
            },
            root: Some(root.join(namespace)),
            systemd_cgroup: self.systemd_cgroup,
            criu: (!self.criu_path.is_empty()).then(|| PathBuf::from(&self.criu_path)),
        }
    }

    pub fn owner(&self) -> Owner {
        Owner { uid: self.io_uid, gid: self.io_gid }
    }

    pub fn write(&self, bundle: &Path) -> Result<()> {
        let path = bundle.join(FILE);
        let text = serde_json::to_vec(self).context("write options as JSON")?;
        sys::fd::publish(&path, &text).with_context(|| format!("write {}", path.display()))
    }

    /// What [`Options::write`] wrote; without such a file, the defaults.
    pub fn read(bundle: &Path) -> Options {
        let text = std::fs::read(bundle.join(FILE)).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }
}

fn from_toml(text: &str) -> Result<Options> {
    toml::from_str(text).map_err(|e| anyhow!("{}", e.to_string().trim_end())).kind(Kind::BadInput)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::message::Whole;

    #[test]
    fn both_forms() {
        let runc = RuncOptions {
            binary_name: "/x".to_owned(),
            systemd_cgroup: true,
            io_uid: 7,
            ..RuncOptions::default()
        };
        let any = Any::of("containerd.runc.v1.Options", &runc.message());
        let wanted =
            Options { binary_name: "/x".to_owned(), systemd_cgroup: true, io_uid: 7, ..Options::default() };
        assert_eq!(Options::parse(Some(&any)).unwrap(), wanted);
        let body = "BinaryName = \"/x\"\nSystemdCgroup = true\nIoUid = 7\n".to_owned();
        let generic = GenericOptions { config_body: body, ..GenericOptions::default() };
        for name in ["runtimeoptions.v1.Options", "types.googleapis.com/cri.runtimeoptions.v1.Options"] {
            assert_eq!(Options::parse(Some(&Any::of(name, &generic.message()))).unwrap(), wanted);
        }
        assert_eq!(Options::parse(None).unwrap(), Options::default());
        let client = wanted.client("ns", OsStr::new(""));
        assert_eq!((client.program, client.root), ("/x".into(), Some("/run/containerd/runc/ns".into())));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let generic =
            GenericOptions { config_body: "BinaryNam = \"/x\"\n".to_owned(), ..GenericOptions::default() };
        let e = Options::parse(Some(&Any::of("runtimeoptions.v1.Options", &generic.message()))).unwrap_err();
        assert!(format!("{e:#}").contains("unknown field `BinaryNam`"), "{e:#}");
        let e = Options::parse(Some(&Any::of("x.Y", &GenericOptions::default().message()))).unwrap_err();
        assert!(format!("{e:#}").contains("unknown type x.Y"), "{e:#}");
    }
}
