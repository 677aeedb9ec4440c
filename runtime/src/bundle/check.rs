//! What can be wrong with a config of the right shape, whatever the host? One error, with its JSON path.
//!
//! What a kernel has to be asked for (mount options, cgroups, seccomp, sysctls …) is checked where it is planned.

use std::path::Path;

use anyhow::Result;
use oci_spec::runtime::{
    Hook, Hooks, Linux, LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType, LinuxResources,
    Mount, Process, Spec, User,
};
use report::at;

/// The version that this runtime implements, and the oldest it accepts.
pub const VERSION_MAX: &str = "1.3.0";
pub const VERSION_MIN: &str = "1.0.0";

pub fn spec(spec: &Spec) -> Result<()> {
    version(spec.version())?;
    root(spec)?;
    match spec.process() {
        Some(p) => process(p, "process")?,
        None => return Err(at("process", "required to create a container, but missing")),
    }
    for (i, m) in spec.mounts().iter().flatten().enumerate() {
        mount(m, i)?;
    }
    for (key, value) in spec.annotations().iter().flatten() {
        if key.is_empty() {
            return Err(at("annotations[\"\"]", format!("the value {value:?} has an empty key")));
        }
    }
    if let Some(h) = spec.hooks() {
        hooks(h)?;
    }
    host_name("hostname", spec.hostname().as_deref(), spec)?;
    host_name("domainname", spec.domainname().as_deref(), spec)?;
    spec.linux().as_ref().map_or(Ok(()), linux)
}

/// config.md, "Specification version": SemVer. Another major may mean anything; a newer minor only adds.
fn version(version: &str) -> Result<()> {
    let wrong = |what: &str| {
        Err(at("ociVersion", format!("{what} (allowed: {VERSION_MIN} to {VERSION_MAX}, and later 1.x)")))
    };
    if version.is_empty() {
        return wrong("required, but missing");
    }
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<Option<u32>> = core.split('.').map(|n| n.parse().ok()).collect();
    match numbers[..] {
        [Some(1), Some(_), Some(_)] => Ok(()),
        [Some(_), Some(_), Some(_)] => wrong(&format!("unsupported version {version:?}")),
        _ => wrong(&format!("{version:?} is not a version of the form major.minor.patch")),
    }
}

fn root(spec: &Spec) -> Result<()> {
    match spec.root() {
        None => Err(at(
            "root",
            "required, but missing (expected an object with the path of the root file system)",
        )),
        Some(root) if root.path().as_os_str().is_empty() => {
            Err(at("root.path", "required, but empty or missing"))
        }
        Some(root) => no_nul_path("root.path", root.path()),
    }
}

/// A process; `path`: where it stands (empty for a process file of `exec`).
pub fn process(process: &Process, path: &str) -> Result<()> {
    let here = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let cwd = process.cwd();
    if !cwd.is_absolute() {
        return Err(at(here("cwd"), format!("{cwd:?} is not an absolute path")));
    }
    no_nul_path(&here("cwd"), cwd)?;
    match process.args().as_deref() {
        None => {
            return Err(at(here("args"), "required, but missing (expected the program and its arguments)"));
        }
        Some([]) => return Err(at(here("args"), "empty (at least the program is needed)")),
        Some([program, ..]) if program.is_empty() => {
            return Err(at(here("args[0]"), "empty (expected the name or path of a program)"));
        }
        Some(args) => no_nuls(&here("args"), args)?,
    }
    env(&here("env"), process.env().as_deref().unwrap_or_default())?;
    user(process.user(), &here("user"))?;
    if let Some(score) = process.oom_score_adj()
        && !(-1000..=1000).contains(&score)
    {
        return Err(out_of_range(here("oomScoreAdj"), score, -1000, 1000));
    }
    if let Some(size) = process.console_size() {
        for (name, n) in [("height", size.height()), ("width", size.width())] {
            if n > u64::from(u16::MAX) {
                return Err(out_of_range(here(&format!("consoleSize.{name}")), n, 0, u16::MAX));
            }
        }
    }
    rlimits(process, &here("rlimits"))
}

/// config.md, "POSIX process": "If `rlimits` contains duplicated entries with same `type`, the runtime MUST
/// generate an error".
fn rlimits(process: &Process, path: &str) -> Result<()> {
    let limits = process.rlimits().as_deref().unwrap_or_default();
    for (i, limit) in limits.iter().enumerate() {
        if let Some(first) = limits[..i].iter().position(|l| l.typ() == limit.typ()) {
            return Err(at(
                format!("{path}[{i}].type"),
                format!("{} is already set by {path}[{first}]", limit.typ()),
            ));
        }
        if limit.soft() > limit.hard() {
            return Err(at(
                format!("{path}[{i}].soft"),
                format!("{} is more than the hard limit {} of {}", limit.soft(), limit.hard(), limit.typ()),
            ));
        }
    }
    Ok(())
}

fn user(user: &User, path: &str) -> Result<()> {
    no_such_id(&format_args!("{path}.uid"), user.uid())?;
    no_such_id(&format_args!("{path}.gid"), user.gid())?;
    for (i, gid) in user.additional_gids().iter().flatten().enumerate() {
        no_such_id(&format_args!("{path}.additionalGids[{i}]"), *gid)?;
    }
    match user.umask() {
        Some(umask) if umask > 0o777 => Err(out_of_range(format!("{path}.umask"), umask, 0, 0o777)),
        _ => Ok(()),
    }
}

/// The kernel takes the highest number as "leave as it is": a process would keep root's (CVE-2024-40635).
fn no_such_id(path: &std::fmt::Arguments<'_>, id: u32) -> Result<()> {
    if id == u32::MAX { Err(out_of_range(path.to_string(), id, 0, u32::MAX - 1)) } else { Ok(()) }
}

fn env(path: &str, entries: &[String]) -> Result<()> {
    for (i, entry) in entries.iter().enumerate() {
        match entry.split_once('=') {
            None => {
                return Err(at(format!("{path}[{i}]"), format!("{entry:?} is not of the form NAME=value")));
            }
            Some(("", _)) => return Err(at(format!("{path}[{i}]"), format!("{entry:?} has an empty name"))),
            Some(_) => {}
        }
    }
    no_nuls(path, entries)
}

fn no_nuls(path: &str, texts: &[String]) -> Result<()> {
    match texts.iter().position(|t| t.contains('\0')) {
        Some(i) => Err(at(format!("{path}[{i}]"), format!("{:?} contains a NUL byte", texts[i]))),
        None => Ok(()),
    }
}

fn no_nul_path(path: &str, value: &Path) -> Result<()> {
    if value.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(at(path, format!("{value:?} contains a NUL byte")));
    }
    Ok(())
}

fn mount(mount: &Mount, i: usize) -> Result<()> {
    if mount.destination().as_os_str().is_empty() {
        return Err(at(format!("mounts[{i}].destination"), "empty (expected a path in the container)"));
    }
    no_nul_path(&format!("mounts[{i}].destination"), mount.destination())?;
    if let Some(source) = mount.source() {
        no_nul_path(&format!("mounts[{i}].source"), source)?;
    }
    let uids = mount.uid_mappings().as_deref().unwrap_or_default();
    let gids = mount.gid_mappings().as_deref().unwrap_or_default();
    match (uids.is_empty(), gids.is_empty()) {
        (false, true) => {
            return Err(at(format!("mounts[{i}].gidMappings"), "missing, but uidMappings are given"));
        }
        (true, false) => {
            return Err(at(format!("mounts[{i}].uidMappings"), "missing, but gidMappings are given"));
        }
        _ => {}
    }
    mappings(uids, &format_args!("mounts[{i}].uidMappings"))?;
    mappings(gids, &format_args!("mounts[{i}].gidMappings"))
}

/// user_namespaces(7): no empty range, none past the last id, no overlap on either side.
fn mappings(maps: &[LinuxIdMapping], path: &std::fmt::Arguments<'_>) -> Result<()> {
    let end = |start: u32, size: u32| u64::from(start) + u64::from(size);
    for (i, m) in maps.iter().enumerate() {
        if m.size() == 0 {
            return Err(at(format!("{path}[{i}].size"), "0 maps nothing (allowed: 1 or more)"));
        }
        for (side, start) in [("containerID", m.container_id()), ("hostID", m.host_id())] {
            if end(start, m.size()) > u64::from(u32::MAX) {
                let message =
                    format!("{start} and size {} reach past the last id {}", m.size(), u32::MAX - 1);
                return Err(at(format!("{path}[{i}].{side}"), message));
            }
        }
        for (j, other) in maps[..i].iter().enumerate() {
            for (side, a, b) in [
                ("containerID", m.container_id(), other.container_id()),
                ("hostID", m.host_id(), other.host_id()),
            ] {
                if u64::from(a) < end(b, other.size()) && u64::from(b) < end(a, m.size()) {
                    let message = format!("{a} and size {} overlap with {path}[{j}]", m.size());
                    return Err(at(format!("{path}[{i}].{side}"), message));
                }
            }
        }
    }
    Ok(())
}

fn hooks(hooks: &Hooks) -> Result<()> {
    let prestart = hooks.prestart();
    for (name, list) in [
        ("prestart", prestart),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ] {
        for (i, h) in list.iter().flatten().enumerate() {
            hook(h, &format!("hooks.{name}[{i}]"))?;
        }
    }
    Ok(())
}

fn hook(hook: &Hook, path: &str) -> Result<()> {
    if !hook.path().is_absolute() {
        return Err(at(format!("{path}.path"), format!("{:?} is not an absolute path", hook.path())));
    }
    no_nul_path(&format!("{path}.path"), hook.path())?;
    if let Some(timeout) = hook.timeout()
        && timeout <= 0
    {
        return Err(at(
            format!("{path}.timeout"),
            format!("{timeout} is out of range (allowed: 1 or more seconds)"),
        ));
    }
    no_nuls(&format!("{path}.args"), hook.args().as_deref().unwrap_or_default())?;
    env(&format!("{path}.env"), hook.env().as_deref().unwrap_or_default())
}

/// A name set without a namespace of its own would be the host's.
fn host_name(path: &str, name: Option<&str>, spec: &Spec) -> Result<()> {
    let Some(name) = name.filter(|n| !n.is_empty()) else { return Ok(()) };
    let has_uts = spec.linux().as_ref().is_some_and(|l| has(l, LinuxNamespaceType::Uts));
    if !has_uts {
        return Err(at(
            path,
            format!("{name:?} needs a uts namespace (add {{\"type\": \"uts\"}} to linux.namespaces)"),
        ));
    }
    if name.len() > 64 {
        return Err(at(path, format!("{} bytes long (allowed: at most 64)", name.len())));
    }
    if name.contains('\0') {
        return Err(at(path, format!("{name:?} contains a NUL byte")));
    }
    Ok(())
}

fn has(linux: &Linux, kind: LinuxNamespaceType) -> bool {
    linux.namespaces().iter().flatten().any(|n| n.typ() == kind)
}

fn linux(linux: &Linux) -> Result<()> {
    namespaces(linux)?;
    for (i, device) in linux.devices().iter().flatten().enumerate() {
        self::device(device, i)?;
    }
    for (name, paths) in [("maskedPaths", linux.masked_paths()), ("readonlyPaths", linux.readonly_paths())] {
        let paths = paths.as_deref().unwrap_or_default();
        if let Some(i) = paths.iter().position(|p| !p.starts_with('/')) {
            return Err(at(format!("linux.{name}[{i}]"), format!("{:?} is not an absolute path", paths[i])));
        }
        no_nuls(&format!("linux.{name}"), paths)?;
    }
    linux.resources().as_ref().map_or(Ok(()), |r| resources(r, "linux.resources"))
}

fn namespaces(linux: &Linux) -> Result<()> {
    let list = linux.namespaces().as_deref().unwrap_or_default();
    for (i, ns) in list.iter().enumerate() {
        if let Some(first) = list[..i].iter().position(|n| n.typ() == ns.typ()) {
            let message =
                format!("the {} namespace is already set by linux.namespaces[{first}]", name(ns.typ()));
            return Err(at(format!("linux.namespaces[{i}].type"), message));
        }
        if let Some(path) = ns.path()
            && !path.as_os_str().is_empty()
        {
            if !path.is_absolute() {
                return Err(at(
                    format!("linux.namespaces[{i}].path"),
                    format!("{path:?} is not an absolute path"),
                ));
            }
            no_nul_path(&format!("linux.namespaces[{i}].path"), path)?;
        }
    }
    for (field, maps) in [("uidMappings", linux.uid_mappings()), ("gidMappings", linux.gid_mappings())] {
        let maps = maps.as_deref().unwrap_or_default();
        if !maps.is_empty() && !has(linux, LinuxNamespaceType::User) {
            return Err(at(
                format!("linux.{field}"),
                "needs a user namespace (add {\"type\": \"user\"} to linux.namespaces)",
            ));
        }
        mappings(maps, &format_args!("linux.{field}"))?;
    }
    time_offsets(linux)
}

fn time_offsets(linux: &Linux) -> Result<()> {
    let offsets = linux.time_offsets().iter().flatten();
    for (clock, offset) in offsets {
        let path = format!("linux.timeOffsets[{clock:?}]");
        if !["boottime", "monotonic"].contains(&clock.as_str()) {
            return Err(at(path, format!("unknown clock {clock:?} (allowed: boottime, monotonic)")));
        }
        if offset.nanosecs().is_some_and(|n| n > 999_999_999) {
            let found = offset.nanosecs().unwrap_or_default();
            return Err(out_of_range(format!("{path}.nanosecs"), found, 0, 999_999_999));
        }
        let time = linux.namespaces().iter().flatten().find(|n| n.typ() == LinuxNamespaceType::Time);
        match time.map(|ns| ns.path().as_deref().is_some_and(|p| !p.as_os_str().is_empty())) {
            None => {
                return Err(at(
                    path,
                    "needs a time namespace (add {\"type\": \"time\"} to linux.namespaces)",
                ));
            }
            Some(true) => {
                return Err(at(path, "the time namespace is joined by path: its clocks are set already"));
            }
            Some(false) => {}
        }
    }
    Ok(())
}

/// The specification's word for a namespace.
fn name(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

fn device(device: &LinuxDevice, i: usize) -> Result<()> {
    let here = |name: &str| format!("linux.devices[{i}].{name}");
    if !device.path().is_absolute() {
        return Err(at(here("path"), format!("{:?} is not an absolute path", device.path())));
    }
    no_nul_path(&here("path"), device.path())?;
    if device.typ() == LinuxDeviceType::A {
        return Err(at(here("type"), "unknown device type \"a\" (allowed: b, c, p, u)"));
    }
    for (field, number) in [("major", device.major()), ("minor", device.minor())] {
        if !(0..=i64::from(u32::MAX)).contains(&number) {
            return Err(out_of_range(here(field), number, 0, u32::MAX));
        }
    }
    if let Some(mode) = device.file_mode() {
        // Engines also write the file type's bits, as stat gives them.
        if mode > 0o177_777 {
            return Err(out_of_range(here("fileMode"), mode, 0, 0o7777));
        }
    }
    for (field, id) in [("uid", device.uid()), ("gid", device.gid())] {
        if id == Some(u32::MAX) {
            return Err(out_of_range(here(field), u32::MAX, 0, u32::MAX - 1));
        }
    }
    Ok(())
}

/// Resources; `path`: where they stand (empty for a file of `update`).
pub fn resources(resources: &LinuxResources, path: &str) -> Result<()> {
    let here = |name: String| if path.is_empty() { name } else { format!("{path}.{name}") };
    for (i, rule) in resources.devices().iter().flatten().enumerate() {
        if let Some(typ @ (LinuxDeviceType::U | LinuxDeviceType::P)) = rule.typ() {
            let message = format!("unknown device type {:?} (allowed: a, b, c)", typ.as_str());
            return Err(at(here(format!("devices[{i}].type")), message));
        }
        for (field, number) in [("major", rule.major()), ("minor", rule.minor())] {
            if let Some(n) = number
                && !(-1..=i64::from(u32::MAX)).contains(&n)
            {
                return Err(out_of_range(here(format!("devices[{i}].{field}")), n, -1, u32::MAX));
            }
        }
        let access = rule.access().as_deref().unwrap_or_default();
        if let Some(c) = access.chars().find(|c| !"rwm".contains(*c)) {
            let message = format!("unknown access {c:?} in {access:?} (allowed: letters of rwm)");
            return Err(at(here(format!("devices[{i}].access")), message));
        }
    }
    for (name, value) in resources.unified().iter().flatten() {
        if name.contains('/') || name.is_empty() || name == ".." || name == "." || name.contains('\0') {
            let message = format!("{name:?} (to be set to {value:?}) is not the name of a file in a cgroup");
            return Err(at(here(format!("unified[{name:?}]")), message));
        }
    }
    Ok(())
}

fn out_of_range(
    path: String,
    found: impl std::fmt::Display,
    low: impl std::fmt::Display,
    high: impl std::fmt::Display,
) -> anyhow::Error {
    at(path, format!("{found} is out of range (allowed: {low} to {high})"))
}
