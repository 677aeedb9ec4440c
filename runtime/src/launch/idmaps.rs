//! Writes the id maps of a new user namespace (user_namespaces(7)).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use report::Explain;

use crate::plan::idmap::{IdMap, Range, text};

fn alone(ranges: &[Range], own: u32) -> bool {
    matches!(ranges, [r] if r.size == 1 && r.host == own)
}

/// Whether an unprivileged user must give up setgroups(2) for these maps: one's own group alone.
pub fn groups_denied(map: &IdMap, egid: u32) -> bool {
    alone(&map.gids, egid)
}

/// Whether the user namespace that we are in has given it up: user_namespaces(7), "/proc/pid/setgroups".
pub fn groups_denied_here() -> bool {
    std::fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"deny"))
}

/// Write the maps of process `pid`. As root directly; as another user directly where the kernel allows it (one's
/// own id alone), else through newuidmap(1) and newgidmap(1).
pub fn write(pid: i32, map: &IdMap, euid: u32, egid: u32) -> Result<()> {
    let proc = format!("/proc/{pid}");
    let direct = |file: &str, ranges: &[Range]| {
        let path = format!("{proc}/{file}");
        std::fs::write(&path, text(ranges)).with_context(|| format!("write id map {path}"))
    };
    let privileged = euid == 0;
    if privileged || alone(&map.uids, euid) {
        direct("uid_map", &map.uids)?;
    } else {
        helper("newuidmap", "/etc/subuid", pid, &map.uids)?;
    }
    if privileged {
        direct("gid_map", &map.gids)?;
        return Ok(());
    }
    if groups_denied(map, egid) {
        let path = format!("{proc}/setgroups");
        std::fs::write(&path, "deny").with_context(|| format!("write {path}"))?;
        direct("gid_map", &map.gids)?;
        return Ok(());
    }
    helper("newgidmap", "/etc/subgid", pid, &map.gids)
}

fn helper(program: &str, file: &str, pid: i32, ranges: &[Range]) -> Result<()> {
    let found = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
        .unwrap_or(false);
    if !found && !Path::new("/usr/bin").join(program).exists() {
        return Err(anyhow::anyhow!("{program}: executable file not found in $PATH"))
            .hint(|| format!("install {program} (Debian: package uidmap), or map only your own id"));
    }
    let mut command = Command::new(program);
    command.arg(pid.to_string());
    for r in ranges {
        command.args([r.container.to_string(), r.host.to_string(), r.size.to_string()]);
    }
    let output = command.output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let result: Result<()> = (|| bail!("{program}: {said} ({})", output.status))();
        return result.hint(|| format!("the ranges must be yours in {file}"));
    }
    Ok(())
}
