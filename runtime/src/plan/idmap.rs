//! Which ids of the container are which ids of the host? (config-linux.md, "User namespace mappings")

use std::fmt::Write;

use anyhow::Result;
use oci_spec::runtime::{LinuxIdMapping, Spec};
use report::at;
use sys::process::flags;

use super::namespaces::Namespaces;

/// One range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub container: u32,
    pub host: u32,
    pub size: u32,
}

/// The maps of a new user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    pub uids: Vec<Range>,
    pub gids: Vec<Range>,
}

/// The maps of `spec`; `None` without a new user namespace.
pub fn plan(spec: &Spec, namespaces: &Namespaces) -> Result<Option<IdMap>> {
    let Some(linux) = spec.linux() else { return Ok(None) };
    let given = |m: &Option<Vec<LinuxIdMapping>>| m.as_ref().is_some_and(|m| !m.is_empty());
    let (uids, gids) = (linux.uid_mappings(), linux.gid_mappings());
    if namespaces.new & flags::NEWUSER == 0 {
        if !namespaces.has(flags::NEWUSER) {
            for (name, list) in [("uidMappings", uids), ("gidMappings", gids)] {
                if given(list) {
                    return Err(at(
                        format_args!("linux.{name}"),
                        "needs a user namespace in linux.namespaces",
                    ));
                }
            }
        }
        return Ok(None);
    }
    for (name, list) in [("uidMappings", uids), ("gidMappings", gids)] {
        if !given(list) {
            return Err(at(
                format_args!("linux.{name}"),
                "is missing or empty: a new user namespace needs it",
            ));
        }
    }
    Ok(Some(IdMap { uids: ranges("uidMappings", uids)?, gids: ranges("gidMappings", gids)? }))
}

fn ranges(name: &str, list: &Option<Vec<LinuxIdMapping>>) -> Result<Vec<Range>> {
    let mut out: Vec<Range> = Vec::new();
    for (i, m) in list.iter().flatten().enumerate() {
        let r = Range { container: m.container_id(), host: m.host_id(), size: m.size() };
        let place = format!("linux.{name}[{i}]");
        if r.size == 0 {
            return Err(at(format_args!("{place}.size"), "is 0"));
        }
        if r.container.checked_add(r.size).is_none() || r.host.checked_add(r.size).is_none() {
            return Err(at(place, "goes beyond the largest id, 4294967294"));
        }
        let overlap = |a: u32, b: u32, sa: u32, sb: u32| a < b + sb && b < a + sa;
        if let Some(k) = out.iter().position(|o| {
            overlap(o.container, r.container, o.size, r.size) || overlap(o.host, r.host, o.size, r.size)
        }) {
            return Err(at(place, format!("overlaps with linux.{name}[{k}]")));
        }
        out.push(r);
    }
    if out.len() > 340 {
        return Err(at(
            format_args!("linux.{name}"),
            format!("has {} ranges, the kernel takes 340", out.len()),
        ));
    }
    Ok(out)
}

/// The text of `/proc/<pid>/uid_map`.
pub fn text(ranges: &[Range]) -> String {
    let mut out = String::new();
    for r in ranges {
        // Writing to a string does not fail.
        writeln!(out, "{} {} {}", r.container, r.host, r.size).unwrap_or_default();
    }
    out
}

/// Whether the container's id is mapped.
pub fn maps(ranges: &[Range], container: u32) -> bool {
    ranges.iter().any(|r| container >= r.container && container - r.container < r.size)
}
