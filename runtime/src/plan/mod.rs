//! What will be done? [`Plan::new`] turns a config, facts about the host and options into plain, validated
//! data. Pure: no process, no mount, no write. Every mistake a user can make is found here.

pub mod attributes;
pub mod common;
pub mod devices;
pub mod exec;
pub mod hooks;
pub mod idmap;
pub mod landlock;
pub mod mount_options;
pub mod mounts;
pub mod namespaces;
pub mod net_devices;
pub mod process;
pub mod rdt;
pub mod resources;
pub mod rootfs;
pub mod scheduling;
pub mod seccomp;
pub mod sysctl;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use oci_spec::runtime::{LinuxResources, Process, Spec};
use report::{Explain, Kind};
use sys::process::flags;

use crate::host::Host;

/// What the command line and the caller add to the config.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub id: String,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    pub systemd_cgroup: bool,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    /// How many descriptors from 3 on the container inherits.
    pub preserve_fds: u32,
    /// How many of them are sockets that systemd hands over (sd_listen_fds(3)).
    pub listen_fds: u32,
    /// `--console-socket` was given.
    pub console_socket: bool,
    pub detach: bool,
    /// The folder on the host in which its readiness is heard (`launch::notify`).
    pub notify: Option<PathBuf>,
}

/// Everything that will be done for one container.
#[derive(Clone, Debug)]
pub struct Plan {
    pub id: String,
    pub oci_version: String,
    pub bundle: PathBuf,
    pub annotations: BTreeMap<String, String>,
    pub namespaces: namespaces::Namespaces,
    pub idmap: Option<idmap::IdMap>,
    pub rootfs: rootfs::RootfsPlan,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub hooks: hooks::Hooks,
    pub cgroup: resources::CgroupPlan,
    pub process: process::ProcessPlan,
    pub seccomp: Option<seccomp::Filter>,
    pub landlock: Option<landlock::Landlock>,
    pub sysctl: Vec<sysctl::Sysctl>,
    pub net_devices: Vec<net_devices::NetDevice>,
    pub rdt: Option<rdt::Rdt>,
    pub common: common::Common,
    pub preserve_fds: u32,
    /// What `exec` will start from.
    pub exec: Process,
    pub resources: Option<LinuxResources>,
}

impl Plan {
    /// The plan of a config on this host. Errors name the place in config.json.
    pub fn new(spec: &Spec, options: &Options, host: &Host) -> Result<Plan> {
        crate::id::check(&options.id)?;
        let Some(process) = spec.process() else {
            return Err(report::at("process", "is missing: there is nothing to run"));
        };
        let namespaces = namespaces::plan(spec)?;
        if host.euid != 0 && !namespaces.has(flags::NEWUSER) {
            let message =
                format!("user {} may make others only in a user namespace, which is missing", host.euid);
            return Err(report::at("linux.namespaces", message))
                .hint(|| "`spec --rootless` writes a config for an ordinary user".to_owned());
        }
        let cgroup = resources::plan(spec, options, host)?;
        let linux = spec.linux().as_ref();
        let annotations: BTreeMap<String, String> =
            spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        let mut process_plan = process::plan(process)?;
        if !namespaces.has(flags::NEWUSER) {
            process_plan.credentials.capabilities.limit_to(host.capabilities);
        }
        if options.listen_fds > 0 {
            process_plan.env.extend([c"LISTEN_PID=1".to_owned()]);
            process_plan.env.extend(std::ffi::CString::new(format!("LISTEN_FDS={}", options.listen_fds)));
        }
        if options.notify.is_some() {
            process_plan.env.push(crate::launch::notify::VARIABLE.to_owned());
        }
        if process_plan.terminal && options.detach && !options.console_socket {
            return Err(report::error(
                Kind::BadInput,
                "process.terminal: a terminal without --console-socket needs somebody to attend to it",
            ))
            .hint(|| {
                "give --console-socket, run in the foreground, or set process.terminal to false".to_owned()
            });
        }
        if !process_plan.terminal && options.console_socket {
            return Err(report::error(
                Kind::BadInput,
                "--console-socket: process.terminal is false, there is no terminal to send",
            ));
        }
        for (name, value) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
            if value.as_ref().is_some_and(|v| !v.is_empty()) && !namespaces.has(flags::NEWUTS) {
                return Err(report::at(name, "needs a uts namespace in linux.namespaces"));
            }
            if value.as_ref().is_some_and(|v| v.len() > 64) {
                return Err(report::at(name, "is longer than 64 bytes"));
            }
        }
        Ok(Plan {
            id: options.id.clone(),
            oci_version: spec.version().clone(),
            bundle: options.bundle.clone(),
            idmap: idmap::plan(spec, &namespaces)?,
            rootfs: rootfs::plan(spec, options, host, &cgroup)?,
            hostname: spec.hostname().clone().filter(|h| !h.is_empty()),
            domainname: spec.domainname().clone().filter(|d| !d.is_empty()),
            hooks: hooks::plan(spec)?,
            cgroup,
            process: process_plan,
            seccomp: match linux.and_then(|l| l.seccomp().as_ref()) {
                Some(profile) => seccomp::plan(profile)?,
                None => None,
            },
            landlock: match annotations.get(landlock::ANNOTATION) {
                Some(text) => Some(landlock::plan(text)?),
                None => None,
            },
            sysctl: sysctl::plan(linux.and_then(|l| l.sysctl().as_ref()), &namespaces)?,
            net_devices: net_devices::plan(linux.and_then(|l| l.net_devices().as_ref()), &namespaces)?,
            rdt: rdt::plan(linux.and_then(|l| l.intel_rdt().as_ref()), &options.id)?,
            common: common::plan(linux, options.no_new_keyring)?,
            preserve_fds: options.preserve_fds,
            exec: process.clone(),
            resources: linux.and_then(|l| l.resources().clone()),
            namespaces,
            annotations,
        })
    }
}

#[cfg(test)]
mod tests;
