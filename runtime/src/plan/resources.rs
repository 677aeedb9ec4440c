//! Which cgroup, and which values in which of its files? (config-linux.md, "Control groups")

mod cpu;
pub mod devices;
mod io;
mod limits;
mod memory;
mod others;
mod owner;
mod path;
pub mod properties;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::path::PathBuf;

use anyhow::Result;
use oci_spec::runtime::{LinuxResources, Spec};
use serde::{Deserialize, Serialize};

pub use self::limits::Current;
use self::limits::Limits;
use super::Options;
use crate::host::Host;

/// Where the container's cgroups are (each hierarchy's directory), and what is written there.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CgroupPlan {
    pub driver: Driver,
    /// v1: one directory per hierarchy, the one that is used to freeze and to count processes first.
    pub v1: Vec<V1Dir>,
    /// v2, or the v2 side of a hybrid host if the config asks it for something.
    pub v2: Option<V2Dir>,
    /// The limits, in the order in which they are written.
    pub writes: Vec<Write>,
    /// v2: who may use which device, for a BPF program. On v1 they are among the writes.
    pub devices: Option<Vec<devices::Rule>>,
    /// The config asks for nothing that needs a cgroup, and we are not root: go on without one if the host
    /// does not let us make it.
    pub optional: bool,
    /// v2: the host's uid to which the container's cgroup is given.
    #[serde(default)]
    pub owner: Option<u32>,
}

/// Who makes the cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Driver {
    /// We, in the file system.
    #[default]
    Cgroupfs,
    /// systemd, as a transient scope.
    Systemd(Scope),
}

/// A transient unit of systemd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// `prefix-name.scope`, or `name.slice`.
    pub unit: String,
    pub slice: String,
    /// The user's own systemd, not the system's.
    pub user: bool,
    /// What the annotations `org.systemd.property.*` ask for.
    pub properties: Vec<(String, properties::Property)>,
}

/// The container's directory in one v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct V1Dir {
    /// `cpu`, or `cpu` and `cpuacct` together, or `name=systemd`.
    pub controllers: Vec<String>,
    /// The hierarchy's mount point on the host.
    pub mount: PathBuf,
    /// The cgroup inside the hierarchy: `/a/b`.
    pub path: String,
}

/// The container's directory in the v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct V2Dir {
    pub mount: PathBuf,
    pub path: String,
    /// What the hierarchy offers: `cpu`, `memory`, …
    pub controllers: Vec<String>,
}

/// One value for one control file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    pub at: Place,
    pub file: Cow<'static, str>,
    pub value: Cow<'static, str>,
    /// The JSON path that asked for it.
    pub source: Cow<'static, str>,
    pub missing: Missing,
}

/// A directory of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// An index into [`CgroupPlan::v1`].
    V1(usize),
    V2,
}

/// What it means that the control file is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Missing {
    /// The host cannot do this.
    Error,
    /// The value asks for what holds anyway.
    Fine,
    /// Another file takes it.
    Else { file: Cow<'static, str>, value: Cow<'static, str> },
}

/// What a mount of type `cgroup` shows in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// This host mounts no cgroup hierarchy.
    None,
    /// One hierarchy; `host`: the container's directory on the host, or, where it has no cgroup, the whole.
    V2 { host: PathBuf },
    /// A tmpfs with a directory per hierarchy.
    V1 {
        mounts: Vec<V1Mount>,
        /// The v2 side of a hybrid host, for `unified`, if the container has a cgroup there.
        unified: Option<PathBuf>,
    },
}

/// One hierarchy inside the container's /sys/fs/cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1Mount {
    /// The directory's name, as on the host: `cpu,cpuacct`, `systemd`.
    pub name: String,
    /// Symbolic links to it: `cpu` and `cpuacct`, if they are mounted together.
    pub links: Vec<String>,
    /// What mount(2) takes as data, for a mount in the container's own cgroup namespace: `cpu,cpuacct`, or
    /// `none,name=systemd`.
    pub options: String,
    /// The container's directory on the host, for a bind mount where there is no cgroup namespace.
    pub host: PathBuf,
    /// The container's cgroup inside the hierarchy: `/a/b`.
    pub path: String,
}

/// Decide on the cgroups and their settings.
pub fn plan(spec: &Spec, options: &Options, host: &Host) -> Result<CgroupPlan> {
    let mut plan = path::place(spec, options, host)?;
    let resources = spec.linux().as_ref().and_then(|l| l.resources().as_ref());
    let mut writes = match resources {
        Some(resources) => limits(resources, &plan, Current::default())?,
        None => Vec::new(),
    };
    // Nobody but root may load the program, and without being root nobody makes or opens host devices.
    if !host.rootless {
        let given = resources.and_then(|r| r.devices().as_deref()).unwrap_or_default();
        let rules = devices::rules(given)?;
        match plan.controller("devices") {
            Some(at) => writes.extend(devices::v1(&rules, at)?),
            None if plan.v2.is_some() => plan.devices = Some(rules),
            None if given.is_empty() => {}
            None => {
                return Err(limits::unsupported(
                    "linux.resources.devices",
                    "this host has no devices cgroup controller",
                ));
            }
        }
    }
    plan.writes = writes;
    // A hybrid host's v2 side is left alone unless the config asks it for something.
    if !plan.v1.is_empty() && plan.devices.is_none() && !plan.writes.iter().any(|w| w.at == Place::V2) {
        plan.v2 = None;
    }
    plan.optional = host.cgroup_optional && plan.writes.is_empty();
    // On v1 it is not safe, and without being root there is nothing to give away.
    if plan.v1.is_empty() && !host.rootless {
        plan.owner = owner::owner(spec);
    }
    Ok(plan)
}

/// The values that `resources` asks for, devices aside. What is zero or absent stays as it is.
pub fn limits(resources: &LinuxResources, plan: &CgroupPlan, current: Current) -> Result<Vec<Write>> {
    let mut out = Limits::new(plan, current);
    if let Some(memory) = resources.memory() {
        memory::plan(memory, &mut out)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu::plan(cpu, &mut out)?;
    }
    if let Some(pids) = resources.pids() {
        others::pids(pids.limit(), &mut out)?;
    }
    if let Some(io) = resources.block_io() {
        io::plan(io, &mut out)?;
    }
    others::huge_pages(resources, &mut out)?;
    others::network(resources, &mut out)?;
    others::rdma(resources, &mut out)?;
    others::unified(resources, plan, &mut out)?;
    Ok(out.writes)
}

impl CgroupPlan {
    /// The v1 hierarchy with a controller.
    pub(crate) fn controller(&self, name: &str) -> Option<Place> {
        self.v1.iter().position(|dir| dir.controllers.iter().any(|c| c == name)).map(Place::V1)
    }

    /// What the container sees of its cgroups.
    pub fn view(&self) -> View {
        if !self.v1.is_empty() {
            return View::V1 {
                mounts: self.v1.iter().map(V1Dir::mount).collect(),
                unified: self.v2.as_ref().map(V2Dir::host),
            };
        }
        self.v2.as_ref().map_or(View::None, |v2| View::V2 { host: v2.host() })
    }
}

impl V1Dir {
    /// The directory on the host.
    pub fn host(&self) -> PathBuf {
        crate::cgroup::host::below(&self.mount, &self.path)
    }

    fn mount(&self) -> V1Mount {
        let together = self.controllers.join(",");
        let name = match self.mount.file_name() {
            Some(name) => name.to_string_lossy().into_owned(),
            None => together.clone(),
        };
        V1Mount {
            links: if self.controllers.len() > 1 {
                self.controllers.iter().filter(|c| **c != name).cloned().collect()
            } else {
                Vec::new()
            },
            options: if together.starts_with("name=") { format!("none,{together}") } else { together },
            host: self.host(),
            path: self.path.clone(),
            name,
        }
    }
}

impl V2Dir {
    /// The directory on the host.
    pub fn host(&self) -> PathBuf {
        crate::cgroup::host::below(&self.mount, &self.path)
    }
}
