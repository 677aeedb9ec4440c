//! `explain`: what would a config yield on this host, and what can this host not do? Runs nothing.

mod report_text;
mod trouble;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde::Serialize;

use super::Globals;
use crate::bundle;
use crate::host::Host;
use crate::host::kernel::Kernel;
use crate::plan::seccomp::Summary;
use crate::plan::{self, Options, Plan, process, resources};

/// Show what a config means on this host, without running anything.
///
/// Namespaces, mounts in order, the capabilities that are kept, seccomp by action, every cgroup file that would be
/// written; then what this host cannot honour and why. The exit code is 1 when `create` would refuse the config.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  berth-runtime explain --bundle web\n  berth-runtime explain --bundle web --format json | jq .problems"
)]
pub struct Args {
    /// The folder with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".", hide_default_value = true)]
    pub bundle: PathBuf,
    /// text or json
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"], hide_possible_values = true)]
    pub format: String,
    /// The container id to plan with (it is part of cgroup paths)
    #[arg(value_name = "ID", default_value = "example", hide_default_value = true)]
    pub id: String,
}

pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    let bundle =
        std::fs::canonicalize(&args.bundle).with_context(|| format!("bundle {}", args.bundle.display()))?;
    let bytes = bundle::read(&bundle)?;
    let spec = bundle::parse(&bytes)?;
    let config = crate::json::parse(&bytes).context("config.json")?;
    let options = Options {
        id: args.id,
        bundle,
        systemd_cgroup: globals.systemd_cgroup,
        // As an engine would: a terminal has somebody to attend to it.
        console_socket: spec.process().as_ref().is_some_and(|p| p.terminal().unwrap_or(false)),
        ..Options::default()
    };
    let host = Host::gather()?.with_rootless(globals.rootless.forced());
    let explanation =
        explain((&spec, &config), &options, &host, &Kernel::look(), bundle::unknown_fields(&bytes)?);
    if args.format == "json" {
        super::print_json(&explanation, "    ")?;
    } else {
        super::print(&report_text::text(&explanation))?;
    }
    Ok(i32::from(explanation.problems.iter().any(|p| p.fatal)))
}

/// A config on a host.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub bundle: PathBuf,
    pub oci_version: String,
    pub root: Root,
    pub process: Process,
    pub capabilities: Capabilities,
    pub namespaces: Vec<Namespace>,
    pub uid_mappings: Vec<Mapping>,
    pub gid_mappings: Vec<Mapping>,
    pub mounts: Vec<Mount>,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub devices: Vec<String>,
    pub sysctls: Vec<(String, String)>,
    /// Whatever else the config sets, by its JSON path.
    pub settings: Vec<(&'static str, serde_json::Value)>,
    pub hooks: Vec<Hook>,
    pub cgroup: Option<Cgroup>,
    pub seccomp: Option<Summary>,
    pub landlock: Option<serde_json::Value>,
    pub kernel: Kernel,
    pub problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
pub struct Root {
    pub path: PathBuf,
    pub readonly: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    pub args: Vec<String>,
    pub cwd: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub terminal: bool,
    pub variables: usize,
    pub no_new_privileges: bool,
    pub rlimits: Vec<String>,
    pub apparmor: Option<String>,
    pub selinux: Option<String>,
}

#[derive(Debug, Default, Serialize)]
pub struct Capabilities {
    pub bounding: Vec<String>,
    pub effective: Vec<String>,
    pub inheritable: Vec<String>,
    pub permitted: Vec<String>,
    pub ambient: Vec<String>,
}

/// `how`: `new`, `joined` or `shared with the caller`.
#[derive(Debug, Serialize)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub how: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mapping {
    pub container_id: u32,
    pub host_id: u32,
    pub size: u32,
}

#[derive(Debug, Serialize)]
pub struct Mount {
    pub destination: PathBuf,
    #[serde(rename = "type")]
    pub kind: String,
    pub source: Option<PathBuf>,
    pub options: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Hook {
    pub when: &'static str,
    pub path: PathBuf,
    pub timeout: Option<i64>,
}

#[derive(Debug, Serialize)]
pub struct Cgroup {
    pub driver: String,
    /// Nothing needs it: the container goes without where the host does not let us make it.
    pub optional: bool,
    pub directories: Vec<PathBuf>,
    pub writes: Vec<Write>,
}

/// One value for one file, and the place in config.json that asks for it.
#[derive(Debug, Serialize)]
pub struct Write {
    pub file: PathBuf,
    pub value: String,
    pub because: String,
}

/// What a reader should know before this config is run.
#[derive(Debug, Serialize)]
pub struct Problem {
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// `create` would refuse.
    pub fatal: bool,
}

fn explain(
    (spec, config): (&Spec, &serde_json::Value),
    options: &Options,
    host: &Host,
    kernel: &Kernel,
    unknown: Vec<(String, Option<&'static str>)>,
) -> Explanation {
    let plan = Plan::new(spec, options, host);
    let mut problems = match &plan {
        Ok(_) => Vec::new(),
        Err(first) => trouble::planning(first, spec, options, host),
    };
    problems.extend(trouble::host(spec, options, host, kernel));
    problems.extend(plan.as_ref().ok().and_then(|p| trouble::landlock(p.landlock.as_ref()?, kernel)));
    problems.extend(unknown.into_iter().map(|(path, near)| Problem {
        message: format!("{path}: not in the specification, ignored"),
        hint: near.map(|near| format!("did you mean {near:?}?")),
        fatal: false,
    }));
    let linux = spec.linux().as_ref();
    let texts = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    let mut sysctls: Vec<_> = linux.and_then(|l| l.sysctl().clone()).into_iter().flatten().collect();
    sysctls.sort_unstable();
    Explanation {
        bundle: options.bundle.clone(),
        oci_version: spec.version().clone(),
        root: spec.root().as_ref().map_or(Root { path: PathBuf::new(), readonly: false }, |r| Root {
            path: options.bundle.join(r.path()),
            readonly: r.readonly().unwrap_or(false),
        }),
        process: process(spec),
        capabilities: match &plan {
            Ok(plan) => capabilities(&plan.process.credentials.capabilities),
            Err(_) => match spec.process().as_ref().map(process::plan) {
                Some(Ok(process)) => capabilities(&process.credentials.capabilities),
                _ => Capabilities::default(),
            },
        },
        namespaces: namespaces(spec),
        uid_mappings: mappings(linux.and_then(|l| l.uid_mappings().as_deref())),
        gid_mappings: mappings(linux.and_then(|l| l.gid_mappings().as_deref())),
        mounts: mounts(spec),
        masked_paths: texts(linux.and_then(|l| l.masked_paths().as_ref())),
        readonly_paths: texts(linux.and_then(|l| l.readonly_paths().as_ref())),
        devices: devices(spec),
        sysctls,
        settings: settings(config),
        hooks: hooks(spec),
        cgroup: plan.as_ref().ok().map(|p| cgroup(&p.cgroup)),
        seccomp: linux.and_then(|l| l.seccomp().as_ref()).and_then(|p| plan::seccomp::summary(p).ok()),
        landlock: spec
            .annotations()
            .as_ref()
            .and_then(|a| a.get(plan::landlock::ANNOTATION))
            .and_then(|text| serde_json::from_str(text).ok()),
        kernel: kernel.clone(),
        problems,
    }
}

fn process(spec: &Spec) -> Process {
    let p = spec.process().clone().unwrap_or_default();
    let user = p.user();
    let rlimits = p.rlimits().iter().flatten();
    Process {
        args: p.args().clone().unwrap_or_default(),
        cwd: p.cwd().clone(),
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        terminal: p.terminal().unwrap_or(false),
        variables: p.env().as_ref().map_or(0, Vec::len),
        no_new_privileges: p.no_new_privileges().unwrap_or(false),
        rlimits: rlimits.map(|l| format!("{} {}:{}", l.typ(), limit(l.soft()), limit(l.hard()))).collect(),
        apparmor: p.apparmor_profile().clone().filter(|s| !s.is_empty()),
        selinux: p.selinux_label().clone().filter(|s| !s.is_empty()),
    }
}

/// RLIM_INFINITY has a name.
fn limit(value: u64) -> String {
    if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() }
}

/// As they will be in the container: what planning made of the five sets.
fn capabilities(sets: &process::Capabilities) -> Capabilities {
    Capabilities {
        bounding: process::names(sets.bounding),
        effective: process::names(sets.effective),
        inheritable: process::names(sets.inheritable),
        permitted: process::names(sets.permitted),
        ambient: process::names(sets.ambient),
    }
}

fn namespaces(spec: &Spec) -> Vec<Namespace> {
    let list = spec.linux().as_ref().and_then(|l| l.namespaces().as_deref()).unwrap_or_default();
    let find = |kind: LinuxNamespaceType| list.iter().find(|n| n.typ() == kind);
    let all = bundle::words::NAMESPACES.iter();
    all.filter_map(|name| Some((*name, LinuxNamespaceType::try_from(*name).ok()?)))
        .map(|(name, kind)| match find(kind) {
            None => Namespace { kind: name, how: "shared with the caller", path: None },
            Some(ns) => match ns.path().clone().filter(|p| !p.as_os_str().is_empty()) {
                Some(path) => Namespace { kind: name, how: "joined", path: Some(path) },
                None => Namespace { kind: name, how: "new", path: None },
            },
        })
        .collect()
}

fn mappings(maps: Option<&[oci_spec::runtime::LinuxIdMapping]>) -> Vec<Mapping> {
    let maps = maps.unwrap_or_default().iter();
    maps.map(|m| Mapping { container_id: m.container_id(), host_id: m.host_id(), size: m.size() }).collect()
}

fn mounts(spec: &Spec) -> Vec<Mount> {
    let list = spec.mounts().iter().flatten();
    list.map(|m| {
        let options = m.options().clone().unwrap_or_default();
        let bind = options.iter().any(|o| o == "bind" || o == "rbind");
        let kind = m.typ().clone().filter(|t| !bind && !t.is_empty() && t != "none");
        Mount {
            destination: Path::new("/").join(m.destination()),
            kind: kind.unwrap_or_else(|| "bind".to_owned()),
            source: m.source().clone(),
            options,
        }
    })
    .collect()
}

/// Parts of the config that need no more words than they have.
fn settings(config: &serde_json::Value) -> Vec<(&'static str, serde_json::Value)> {
    let paths = [
        "hostname",
        "domainname",
        "process.oomScoreAdj",
        "process.scheduler",
        "process.ioPriority",
        "process.execCPUAffinity",
        "linux.rootfsPropagation",
        "linux.timeOffsets",
        "linux.netDevices",
        "linux.memoryPolicy",
        "linux.personality",
        "linux.intelRdt",
        "linux.mountLabel",
    ];
    let found = |path: &str| config.pointer(&format!("/{}", path.replace('.', "/"))).cloned();
    paths.into_iter().filter_map(|path| Some((path, found(path)?))).collect()
}

fn devices(spec: &Spec) -> Vec<String> {
    let list = spec.linux().as_ref().and_then(|l| l.devices().as_deref()).unwrap_or_default();
    list.iter()
        .map(|d| format!("{} {} {}:{}", d.path().display(), d.typ().as_str(), d.major(), d.minor()))
        .collect()
}

fn hooks(spec: &Spec) -> Vec<Hook> {
    let Some(hooks) = spec.hooks() else { return Vec::new() };
    let lists = [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    let named = bundle::words::HOOKS.iter().zip(lists);
    named
        .flat_map(|(when, list)| {
            let list = list.iter().flatten();
            list.map(|h| Hook { when, path: h.path().clone(), timeout: h.timeout() })
        })
        .collect()
}

fn cgroup(plan: &resources::CgroupPlan) -> Cgroup {
    let v1: Vec<PathBuf> = plan.v1.iter().map(resources::V1Dir::host).collect();
    let v2 = plan.v2.as_ref().map(resources::V2Dir::host);
    let writes = plan.writes.iter();
    Cgroup {
        driver: match &plan.driver {
            resources::Driver::Cgroupfs => "cgroupfs".to_owned(),
            resources::Driver::Systemd(scope) => format!("systemd, {} in {}", scope.unit, scope.slice),
        },
        optional: plan.optional,
        writes: writes
            .map(|w| Write {
                file: match w.at {
                    resources::Place::V1(i) => v1.get(i).cloned().unwrap_or_default(),
                    resources::Place::V2 => v2.clone().unwrap_or_default(),
                }
                .join(&*w.file),
                value: w.value.to_string(),
                because: w.source.to_string(),
            })
            .collect(),
        directories: v1.iter().cloned().chain(v2.clone()).collect(),
    }
}
