//! `linux.resources.memory`

use anyhow::Result;
use oci_spec::runtime::LinuxMemory;

use super::limits::{Limits, given, or_max, unsupported};
use super::{Missing, Place};

const LIMIT: &str = "linux.resources.memory.limit";
const SWAP: &str = "linux.resources.memory.swap";
const RESERVATION: &str = "linux.resources.memory.reservation";
const KERNEL: &str = "linux.resources.memory.kernel";
const KERNEL_TCP: &str = "linux.resources.memory.kernelTCP";
const SWAPPINESS: &str = "linux.resources.memory.swappiness";
const OOM: &str = "linux.resources.memory.disableOOMKiller";
const HIERARCHY: &str = "linux.resources.memory.useHierarchy";

/// The values that `memory` asks for.
pub(super) fn plan(memory: &LinuxMemory, out: &mut Limits<'_>) -> Result<()> {
    let limit = given(memory.limit(), LIMIT)?;
    let swap = given(memory.swap(), SWAP)?;
    if let (Some(swap @ 1..), Some(limit)) = (swap, limit) {
        if limit == -1 {
            return Err(report::at(
                SWAP,
                format!("{swap}: a limit needs a limit of the memory, which is unlimited"),
            ));
        }
        if swap < limit {
            return Err(report::at(
                SWAP,
                format!("{swap} is below the memory limit {limit}; it is the sum of memory and swap"),
            ));
        }
    }
    if limit.is_some() || swap.is_some() {
        let source = if limit.is_some() { LIMIT } else { SWAP };
        let at = out.place("memory", "memory", source)?;
        match at {
            Place::V1(_) => v1_limit(out, at, limit, swap)?,
            Place::V2 => v2_limit(out, at, limit, swap)?,
        }
    }
    if let Some(reservation) = given(memory.reservation(), RESERVATION)? {
        match out.place("memory", "memory", RESERVATION)? {
            at @ Place::V1(_) => out.put(at, "memory.soft_limit_in_bytes", reservation, RESERVATION),
            at @ Place::V2 => out.put(at, "memory.low", or_max(reservation), RESERVATION),
        }
    }
    if given(memory.kernel(), KERNEL)?.is_some() {
        // The kernel itself gave up on it in 5.16; runc ignores it as well.
        log::warn!("{KERNEL}: ignored, since kernels no longer limit their own memory");
    }
    if let Some(tcp) = given(memory.kernel_tcp(), KERNEL_TCP)? {
        match out.place("memory", "memory", KERNEL_TCP)? {
            at @ Place::V1(_) => out.put(at, "memory.kmem.tcp.limit_in_bytes", tcp, KERNEL_TCP),
            Place::V2 => return Err(unsupported(KERNEL_TCP, "cgroup v2 has no limit of TCP memory")),
        }
    }
    if let Some(swappiness) = memory.swappiness() {
        if swappiness > 100 {
            return Err(report::at(SWAPPINESS, format!("{swappiness}: 0 to 100 are allowed")));
        }
        match out.place("memory", "memory", SWAPPINESS)? {
            at @ Place::V1(_) => out.put(at, "memory.swappiness", swappiness, SWAPPINESS),
            Place::V2 => return Err(unsupported(SWAPPINESS, "cgroup v2 has no swappiness of its own")),
        }
    }
    if memory.disable_oom_killer() == Some(true) {
        match out.place("memory", "memory", OOM)? {
            at @ Place::V1(_) => out.put(at, "memory.oom_control", 1, OOM),
            Place::V2 => return Err(unsupported(OOM, "cgroup v2 cannot disable the OOM killer")),
        }
    }
    match memory.use_hierarchy() {
        None => {}
        Some(hierarchy) => match out.place("memory", "memory", HIERARCHY)? {
            at @ Place::V1(_) => out.put(at, "memory.use_hierarchy", u8::from(hierarchy), HIERARCHY),
            Place::V2 if hierarchy => {}
            Place::V2 => return Err(unsupported(HIERARCHY, "cgroup v2 always accounts for children")),
        },
    }
    Ok(())
}

fn v1_limit(out: &mut Limits<'_>, at: Place, limit: Option<i64>, swap: Option<i64>) -> Result<()> {
    if limit.is_none() && swap.is_some_and(|s| s > 0) && out.current.memory.is_none_or(|m| m == -1) {
        return Err(report::at(SWAP, "needs linux.resources.memory.limit: it is the sum of memory and swap"));
    }
    if let Some(limit) = limit {
        out.put(at, "memory.limit_in_bytes", limit, LIMIT);
    }
    match (limit, swap) {
        (_, Some(swap @ 1..)) => out.put(at, "memory.memsw.limit_in_bytes", swap, SWAP),
        // Unlimited memory with limited swap makes no sense: both, as in runc.
        (Some(-1), None) | (_, Some(_)) => {
            out.put_or(at, "memory.memsw.limit_in_bytes", -1, SWAP, Missing::Fine);
        }
        (_, None) => {}
    }
    Ok(())
}

/// v2 counts swap by itself, the spec counts the sum.
fn v2_limit(out: &mut Limits<'_>, at: Place, limit: Option<i64>, swap: Option<i64>) -> Result<()> {
    let alone = match (swap, limit.or(out.current.memory)) {
        (None, Some(-1)) if limit.is_some() => Some(-1),
        (None, _) => None,
        (Some(-1), _) => Some(-1),
        (Some(swap), Some(limit)) if limit > 0 && swap >= limit => Some(swap - limit),
        (Some(swap), Some(limit)) if limit > 0 => {
            return Err(report::at(SWAP, format!("{swap} is below the memory limit {limit}")));
        }
        (Some(_), _) => {
            return Err(report::at(
                SWAP,
                "needs linux.resources.memory.limit: it is the sum of memory and swap",
            ));
        }
    };
    if let Some(alone) = alone {
        // Without swap in the kernel, none and any amount of it are the same.
        let missing = if alone <= 0 { Missing::Fine } else { Missing::Error };
        out.put_or(at, "memory.swap.max", or_max(alone), SWAP, missing);
    }
    if let Some(limit) = limit {
        out.put(at, "memory.max", or_max(limit), LIMIT);
    }
    Ok(())
}
