//! `linux.resources`: pids, hugepageLimits, network, rdma, unified.

use anyhow::Result;
use oci_spec::runtime::LinuxResources;

use super::limits::{Limits, or_max, unsupported};
use super::{CgroupPlan, Missing, Place};

const PIDS: &str = "linux.resources.pids.limit";
const CLASS: &str = "linux.resources.network.classID";

/// The number of tasks: -1 is no limit, and zero is as little as possible. The kernel knows a limit of zero,
/// systemd does not; one, which lets in the container's first process and no other, is what runc writes.
pub(super) fn pids(limit: i64, out: &mut Limits<'_>) -> Result<()> {
    let at = out.place("pids", "pids", PIDS)?;
    match limit {
        ..-1 => return Err(report::at(PIDS, format!("{limit}: -1 (unlimited) is the least"))),
        -1 => out.put(at, "pids.max", "max", PIDS),
        limit => out.put(at, "pids.max", limit.max(1), PIDS),
    }
    Ok(())
}

pub(super) fn huge_pages(resources: &LinuxResources, out: &mut Limits<'_>) -> Result<()> {
    for (index, page) in resources.hugepage_limits().iter().flatten().enumerate() {
        let source = format!("linux.resources.hugepageLimits[{index}]");
        let size = page.page_size();
        let digits = size.trim_end_matches(|c: char| c.is_ascii_uppercase());
        let unit = &size[digits.len()..];
        if digits.parse::<u32>().is_err() || !matches!(unit, "KB" | "MB" | "GB") {
            return Err(report::at(
                format!("{source}.pageSize"),
                format!("{size:?} is not a size; a number and KB, MB or GB are, as in \"2MB\""),
            ));
        }
        let limit = page.limit();
        if limit < -1 {
            return Err(report::at(
                format!("{source}.limit"),
                format!("{limit}: -1 (unlimited) is the least"),
            ));
        }
        let at = out.place("hugetlb", "hugetlb", &source)?;
        let (file, reserved, value) = match at {
            Place::V1(_) => ("limit_in_bytes", "rsvd.limit_in_bytes", limit.to_string().into()),
            Place::V2 => ("max", "rsvd.max", or_max(limit)),
        };
        out.put(at, format!("hugetlb.{size}.{file}"), &value, source.clone());
        // Reservations are counted since Linux 5.7.
        out.put_or(at, format!("hugetlb.{size}.{reserved}"), &value, source, Missing::Fine);
    }
    Ok(())
}

pub(super) fn network(resources: &LinuxResources, out: &mut Limits<'_>) -> Result<()> {
    let Some(network) = resources.network() else { return Ok(()) };
    let place = |out: &Limits<'_>, controller: &str, source: &str| match out.place(controller, "", source) {
        Err(_) if out.is_v2() => {
            Err(unsupported(source, format!("cgroup v2 has no {controller} controller; use BPF or nftables")))
        }
        place => place,
    };
    if let Some(class) = network.class_id().filter(|c| *c != 0) {
        let at = place(out, "net_cls", CLASS)?;
        out.put(at, "net_cls.classid", class, CLASS);
    }
    for (index, priority) in network.priorities().iter().flatten().enumerate() {
        let source = format!("linux.resources.network.priorities[{index}]");
        let name = priority.name();
        if name.is_empty() || name.len() > 15 || name.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err(report::at(format!("{source}.name"), format!("{name:?} is not an interface's name")));
        }
        let at = place(out, "net_prio", &source)?;
        out.put(at, "net_prio.ifpriomap", format_args!("{name} {}", priority.priority()), source);
    }
    Ok(())
}

pub(super) fn rdma(resources: &LinuxResources, out: &mut Limits<'_>) -> Result<()> {
    let mut devices: Vec<_> = resources.rdma().iter().flatten().collect();
    devices.sort_unstable_by_key(|(name, _)| name.as_str());
    for (name, limit) in devices {
        let source = format!("linux.resources.rdma.{name}");
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(report::at(&source, "is not a device's name"));
        }
        let mut value = name.clone();
        for (key, limit) in [("hca_handle", limit.hca_handles()), ("hca_object", limit.hca_objects())] {
            if let Some(limit) = limit {
                value.push_str(&format!(" {key}={limit}"));
            }
        }
        if value == *name {
            return Err(report::at(&source, "has neither hcaHandles nor hcaObjects"));
        }
        let at = out.place("rdma", "rdma", &source)?;
        out.put(at, "rdma.max", value, source);
    }
    Ok(())
}

/// v2 files by name, after all else, so that they have the last word.
pub(super) fn unified(resources: &LinuxResources, plan: &CgroupPlan, out: &mut Limits<'_>) -> Result<()> {
    let mut files: Vec<_> = resources.unified().iter().flatten().collect();
    files.sort_unstable();
    for (file, value) in files {
        let source = format!("linux.resources.unified[{file:?}]");
        let Some((controller, _)) = file.split_once('.').filter(|(c, f)| !c.is_empty() && !f.is_empty())
        else {
            return Err(report::at(&source, "is not the name of a control file, as \"memory.high\" is"));
        };
        if file.contains(['/', '\0']) {
            return Err(report::at(&source, "is a path; the name of a control file is allowed"));
        }
        let Some(dir) = &plan.v2 else {
            return Err(unsupported(&source, "this host has no cgroup v2"));
        };
        if controller != "cgroup" && !dir.controllers.iter().any(|c| c == controller) {
            return Err(unsupported(
                &source,
                format!("this host's cgroup v2 has no {controller} controller"),
            ));
        }
        out.put(Place::V2, file.clone(), value, source);
    }
    Ok(())
}
