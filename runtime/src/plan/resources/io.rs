//! `linux.resources.blockIO`

use std::borrow::Cow;

use anyhow::Result;
use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::limits::{Limits, unsupported};
use super::{Missing, Place};

const SOURCE: &str = "linux.resources.blockIO";
const WEIGHT: &str = "linux.resources.blockIO.weight";
const LEAF: &str = "linux.resources.blockIO.leafWeight";

/// The values that `blockIO` asks for.
pub(super) fn plan(io: &LinuxBlockIo, out: &mut Limits<'_>) -> Result<()> {
    if let Some(weight) = io.weight().filter(|w| *w != 0) {
        check_weight(weight, WEIGHT)?;
        put_weight(out, None, weight, WEIGHT.into())?;
    }
    if let Some(leaf) = io.leaf_weight().filter(|w| *w != 0) {
        check_weight(leaf, LEAF)?;
        put_leaf(out, "blkio.leaf_weight", leaf.to_string(), LEAF.into())?;
    }
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        let source = format!("{SOURCE}.weightDevice[{index}]");
        let name = name(device.major(), device.minor(), &source)?;
        if let Some(weight) = device.weight().filter(|w| *w != 0) {
            check_weight(weight, format!("{source}.weight"))?;
            put_weight(out, Some(&name), weight, source.clone().into())?;
        }
        if let Some(leaf) = device.leaf_weight().filter(|w| *w != 0) {
            check_weight(leaf, format!("{source}.leafWeight"))?;
            put_leaf(out, "blkio.leaf_weight_device", format!("{name} {leaf}"), source.into())?;
        }
    }
    let throttles = [
        ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps", io.throttle_read_bps_device()),
        ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps", io.throttle_write_bps_device()),
        (
            "throttleReadIOPSDevice",
            "blkio.throttle.read_iops_device",
            "riops",
            io.throttle_read_iops_device(),
        ),
        (
            "throttleWriteIOPSDevice",
            "blkio.throttle.write_iops_device",
            "wiops",
            io.throttle_write_iops_device(),
        ),
    ];
    for (field, file, key, devices) in throttles {
        for (index, device) in devices.iter().flatten().enumerate() {
            throttle(out, device, file, key, format!("{SOURCE}.{field}[{index}]"))?;
        }
    }
    Ok(())
}

fn put_weight(
    out: &mut Limits<'_>,
    device: Option<&str>,
    weight: u16,
    source: Cow<'static, str>,
) -> Result<()> {
    let at = out.place("blkio", "io", &source)?;
    let text = |weight: u16| -> Cow<'static, str> {
        device.map_or_else(|| weight.to_string(), |name| format!("{name} {weight}")).into()
    };
    // Which file there is depends on the I/O scheduler.
    let (file, other, value) = match (at, device) {
        (Place::V1(_), None) => ("blkio.weight", "blkio.bfq.weight", text(weight)),
        (Place::V1(_), Some(_)) => ("blkio.weight_device", "blkio.bfq.weight_device", text(weight)),
        (Place::V2, _) => ("io.bfq.weight", "io.weight", text(to_v2(weight))),
    };
    out.put_or(at, file, text(weight), source, Missing::Else { file: other.into(), value });
    Ok(())
}

/// v1's weight, 10 to 1000, as that of `io.weight`, 1 to 10000.
fn to_v2(weight: u16) -> u16 {
    let scaled = 1 + (u32::from(weight) - 10) * 9999 / 990;
    // At most 10000, for a weight that was checked.
    scaled as u16
}

fn put_leaf(
    out: &mut Limits<'_>,
    file: &'static str,
    value: String,
    source: Cow<'static, str>,
) -> Result<()> {
    match out.place("blkio", "io", &source)? {
        at @ Place::V1(_) => out.put(at, file, value, source),
        Place::V2 => return Err(unsupported(source, "cgroup v2 has no leaf weight")),
    }
    Ok(())
}

fn throttle(
    out: &mut Limits<'_>,
    device: &LinuxThrottleDevice,
    file: &'static str,
    key: &str,
    source: String,
) -> Result<()> {
    let name = name(device.major(), device.minor(), &source)?;
    let rate = device.rate();
    match out.place("blkio", "io", &source)? {
        at @ Place::V1(_) => out.put(at, file, format_args!("{name} {rate}"), source),
        // Zero takes the limit off on v1.
        at @ Place::V2 if rate == 0 => out.put(at, "io.max", format_args!("{name} {key}=max"), source),
        at @ Place::V2 => out.put(at, "io.max", format_args!("{name} {key}={rate}"), source),
    }
    Ok(())
}

fn name(major: i64, minor: i64, source: &str) -> Result<String> {
    for (number, field) in [(major, "major"), (minor, "minor")] {
        if u32::try_from(number).is_err() {
            return Err(report::at(format!("{source}.{field}"), format!("{number} is not a device number")));
        }
    }
    Ok(format!("{major}:{minor}"))
}

fn check_weight(weight: u16, source: impl std::fmt::Display) -> Result<()> {
    if (10..=1000).contains(&weight) {
        return Ok(());
    }
    Err(report::at(source, format!("{weight}: 10 to 1000 are allowed")))
}
