//! `linux.resources.cpu`

use anyhow::Result;
use oci_spec::runtime::LinuxCpu;

use super::limits::{Limits, given, unsupported};
use super::{Missing, Place};

const SHARES: &str = "linux.resources.cpu.shares";
const QUOTA: &str = "linux.resources.cpu.quota";
const PERIOD: &str = "linux.resources.cpu.period";
const BURST: &str = "linux.resources.cpu.burst";
const RT_RUNTIME: &str = "linux.resources.cpu.realtimeRuntime";
const RT_PERIOD: &str = "linux.resources.cpu.realtimePeriod";
const IDLE: &str = "linux.resources.cpu.idle";
const CPUS: &str = "linux.resources.cpu.cpus";
const MEMS: &str = "linux.resources.cpu.mems";

/// The kernel's period where none is given, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// The values that `cpu` asks for.
pub(super) fn plan(cpu: &LinuxCpu, out: &mut Limits<'_>) -> Result<()> {
    weight(cpu, out)?;
    realtime(cpu, out)?;
    bandwidth(cpu, out)?;
    for (value, file, source) in [(cpu.cpus(), "cpuset.cpus", CPUS), (cpu.mems(), "cpuset.mems", MEMS)] {
        let Some(value) = value.as_ref().map(|v| v.trim()).filter(|v| !v.is_empty()) else { continue };
        check_list(value, source)?;
        let at = out.place("cpuset", "cpuset", source)?;
        out.put(at, file, value, source);
    }
    Ok(())
}

fn weight(cpu: &LinuxCpu, out: &mut Limits<'_>) -> Result<()> {
    let idle = match cpu.idle() {
        None => None,
        Some(idle @ (0 | 1)) => Some(idle),
        Some(idle) => return Err(report::at(IDLE, format!("{idle}: 0 and 1 are allowed"))),
    };
    // An idle group takes no weight, and taking it out of idleness resets the weight.
    if let Some(0) = idle {
        let at = out.place("cpu", "cpu", IDLE)?;
        out.put_or(at, "cpu.idle", 0, IDLE, Missing::Fine);
    }
    if let Some(shares) = cpu.shares().filter(|s| *s != 0) {
        match out.place("cpu", "cpu", SHARES)? {
            at @ Place::V1(_) => {
                if !(2..=262_144).contains(&shares) {
                    return Err(report::at(SHARES, format!("{shares}: 2 to 262144 are allowed")));
                }
                out.put(at, "cpu.shares", shares, SHARES);
            }
            at @ Place::V2 => out.put(at, "cpu.weight", shares_to_weight(shares), SHARES),
        }
    }
    if let Some(1) = idle {
        let at = out.place("cpu", "cpu", IDLE)?;
        out.put(at, "cpu.idle", 1, IDLE);
    }
    Ok(())
}

/// v1's shares (2 to 262144, usually 1024) as v2's weight (1 to 10000, usually 100): the quadratic curve
/// through the three fixed points, in the logarithms, that runc and crun have settled on.
pub(super) fn shares_to_weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            // Rounded up, but not for what is a whole number but for the last bits of the float.
            (10f64.powf(exponent) - 1e-9).ceil() as u64
        }
    }
}

fn realtime(cpu: &LinuxCpu, out: &mut Limits<'_>) -> Result<()> {
    // The period first: a runtime above the period is refused.
    let period =
        cpu.realtime_period().filter(|v| *v != 0).map(|v| (v.to_string(), "cpu.rt_period_us", RT_PERIOD));
    let runtime =
        cpu.realtime_runtime().filter(|v| *v != 0).map(|v| (v.to_string(), "cpu.rt_runtime_us", RT_RUNTIME));
    for (value, file, source) in period.into_iter().chain(runtime) {
        match out.place("cpu", "cpu", source)? {
            at @ Place::V1(_) => out.put(at, file, value, source),
            Place::V2 => return Err(unsupported(source, "cgroup v2 does not limit realtime tasks")),
        }
    }
    Ok(())
}

fn bandwidth(cpu: &LinuxCpu, out: &mut Limits<'_>) -> Result<()> {
    let quota = given(cpu.quota(), QUOTA)?;
    let period = cpu.period().filter(|p| *p != 0);
    if let Some(period) = period.filter(|p| !(1_000..=1_000_000).contains(p)) {
        return Err(report::at(PERIOD, format!("{period}: 1000 to 1000000 microseconds are allowed")));
    }
    if let Some(quota) = quota.filter(|q| (0..1000).contains(q)) {
        return Err(report::at(QUOTA, format!("{quota}: 1000 microseconds are the least, -1 is no limit")));
    }
    let burst = cpu.burst();
    if let (Some(burst), Some(quota @ 1..)) = (burst, quota)
        && burst > quota.unsigned_abs()
    {
        return Err(report::at(BURST, format!("{burst} is above the quota {quota}")));
    }
    if quota.is_some() || period.is_some() {
        let source = if quota.is_some() { QUOTA } else { PERIOD };
        match out.place("cpu", "cpu", source)? {
            at @ Place::V1(_) => {
                if let Some(period) = period {
                    out.put(at, "cpu.cfs_period_us", period, PERIOD);
                }
                if let Some(quota) = quota {
                    out.put(at, "cpu.cfs_quota_us", quota, QUOTA);
                }
            }
            at @ Place::V2 => {
                let quota = super::limits::or_max(quota.or(out.current.quota).unwrap_or(-1));
                let period = period.or(out.current.period).unwrap_or(DEFAULT_PERIOD);
                out.put(at, "cpu.max", format_args!("{quota} {period}"), source);
            }
        }
    }
    if let Some(burst) = burst {
        let missing = if burst == 0 { Missing::Fine } else { Missing::Error };
        match out.place("cpu", "cpu", BURST)? {
            at @ Place::V1(_) => out.put_or(at, "cpu.cfs_burst_us", burst, BURST, missing),
            at @ Place::V2 => out.put_or(at, "cpu.max.burst", burst, BURST, missing),
        }
    }
    Ok(())
}

/// A list as in cpuset(7): `0-3,7`, with strides `0-31:2/8`.
pub(super) fn check_list(list: &str, source: &str) -> Result<()> {
    let number = |n: &str| n.trim().parse::<u32>().ok();
    let part_is_right = |part: &str| {
        let (range, stride) = part.split_once(':').map_or((part, None), |(r, s)| (r, Some(s)));
        let range_is_right = match range.split_once('-') {
            Some((first, last)) => matches!((number(first), number(last)), (Some(a), Some(b)) if a <= b),
            None => number(range).is_some() && stride.is_none(),
        };
        let stride_is_right = stride.is_none_or(|stride| {
            stride
                .split_once('/')
                .is_some_and(|(used, group)| number(used).is_some() && number(group).is_some())
        });
        range_is_right && stride_is_right
    };
    match list.split(',').find(|part| !part_is_right(part.trim())) {
        Some(part) => {
            Err(report::at(source, format!("{list:?} has {part:?}; a list like \"0-3,7\" is allowed")))
        }
        None => Ok(()),
    }
}
