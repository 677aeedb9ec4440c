//! The systemd driver: a transient scope with the container's first process, delegated to us.
//!
//! systemd gets the limits that it has properties for, since it writes its own values whenever it likes
//! (daemon-reload); all of them are then written into the files as well.

use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result};
use report::{Explain, Kind};
use sys::cgroupfs;

use super::dbus::{Body, Connection, Properties, Refused, Target, Value};
use super::{Cgroup, Record, devices, limits, remove, v1, v2};
use crate::plan::resources::properties::Property;
use crate::plan::resources::{CgroupPlan, Driver, Scope, Write};

const MANAGER: Target = Target {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

/// Before the clone there is nothing to do: a scope is made for a process.
pub(super) fn prepare(plan: &CgroupPlan, record: &Record) -> Cgroup {
    Cgroup {
        record: record.clone(),
        later: Some(super::Later::Scope(Box::new(plan.clone()))),
        pid_first: true,
        ..Cgroup::default()
    }
}

/// Start the scope with `pid` in it, and set what systemd has no property for.
pub(super) fn start(cgroup: &mut Cgroup, plan: &CgroupPlan, pid: i32) -> Result<()> {
    let Driver::Systemd(scope) = &plan.driver else { return Ok(()) };
    let mut systemd = Systemd::connect(scope.user)?;
    let mut properties = scope_properties(scope, pid);
    properties.extend(resource_properties(&plan.writes));
    let unit = scope.unit.as_str();
    let start = |systemd: &mut Systemd| {
        let body = Body::default().str(unit).str("replace").properties(&properties).no_units();
        systemd.job("StartTransientUnit", body)
    };
    let mut started = start(&mut systemd);
    if started.as_ref().is_err_and(|e| is(e, "UnitExists")) {
        // A scope of that name that failed earlier stays until it is told to go.
        systemd.forget_failure(unit)?;
        started = start(&mut systemd);
    }
    if started.as_ref().is_err_and(|e| is(e, "UnitExists")) {
        started = started.kind(Kind::AlreadyExists);
    }
    started.with_context(|| format!("start the systemd unit {unit}"))?;
    if !unit.ends_with(".slice") {
        locate(&mut cgroup.record, plan, pid)?;
    }
    let made = settle(cgroup, plan);
    if let Err(e) = made {
        return Err(match systemd.stop(unit) {
            Ok(()) => e,
            Err(undo) => e.context(format!("(then, undoing: {})", report::line(&undo))),
        });
    }
    Ok(())
}

/// With the scope there: the other v1 hierarchies, limits, devices.
fn settle(cgroup: &mut Cgroup, plan: &CgroupPlan) -> Result<()> {
    v1::make_beside_systemd(plan, &cgroup.record)?;
    if let (Some(dir), Some(planned)) = (&cgroup.record.v2, &plan.v2) {
        v2::delegate(plan, planned, dir)?;
        plan.owner.map_or(Ok(()), |owner| v2::hand_over(dir, owner))?;
    }
    if let Some(first) = cgroup.record.first() {
        super::mark(first, &cgroup.record)?;
    }
    limits::write_all(&plan.writes, &cgroup.record)?;
    if let (Some(rules), Some(dir)) = (&plan.devices, &cgroup.record.v2) {
        devices::attach(rules, &v2::open(dir)?)?;
    }
    Ok(())
}

/// Where systemd put the process: it is nested as deep as the systemd that was asked.
fn locate(record: &mut Record, plan: &CgroupPlan, pid: i32) -> Result<()> {
    let file = format!("/proc/{pid}/cgroup");
    let text = cgroupfs::read(Path::new(&file)).with_context(|| format!("read {file}"))?;
    let path = |name: &str| {
        text.lines()
            .find_map(|l| l.split_once(':')?.1.strip_prefix(name)?.strip_prefix(':'))
            .map(str::to_owned)
    };
    let Some(path) = path("").filter(|_| plan.v1.is_empty()).or_else(|| path("name=systemd")) else {
        return Ok(());
    };
    for (dir, planned) in record.v1.iter_mut().zip(&plan.v1) {
        dir.1 = super::host::below(&planned.mount, &path);
    }
    record.v2 = plan.v2.as_ref().map(|planned| super::host::below(&planned.mount, &path));
    Ok(())
}

/// A further process of a container whose cgroup belongs to the user's systemd: the user itself may not move
/// processes out of the session's cgroup, which is root's.
pub(super) fn attach(record: &Record, pid: i32) -> Result<()> {
    let Some((unit, user)) = &record.unit else { return Ok(()) };
    let body = Body::default().str(unit).str("").u32s(&[pid.cast_unsigned()]);
    let mut systemd = Systemd::connect(*user)?;
    systemd.call("AttachProcessesToUnit", body).map(|_| ()).with_context(|| format!("move {pid} into {unit}"))
}

/// New values of the properties that systemd has for these limits (`update`).
pub(super) fn set(record: &Record, writes: &[Write]) -> Result<()> {
    let Some((unit, user)) = &record.unit else { return Ok(()) };
    let properties = resource_properties(writes);
    if properties.is_empty() {
        return Ok(());
    }
    let body = Body::default().str(unit).bool(true).properties(&properties);
    let mut systemd = Systemd::connect(*user)?;
    systemd.call("SetUnitProperties", body).map(|_| ()).with_context(|| format!("set properties of {unit}"))
}

/// Kill what is in the unit and stop it. A unit that is gone is fine; one that is not ours is left alone.
pub(super) fn stop(record: &Record) -> Result<()> {
    let Some((unit, user)) = &record.unit else { return Ok(()) };
    let ours = record.first().is_some_and(|first| cgroupfs::has_mark(first, &record.mark).unwrap_or(false));
    if ours {
        // systemd would ask politely first, and wait for 90 seconds.
        remove::kill(record)?;
        return Systemd::connect(*user)?.stop(unit);
    }
    // Without its directory the scope has ended. What systemd may still remember of it does not matter enough
    // to fail: a new scope of that name clears it.
    if let Err(e) = Systemd::connect(*user).and_then(|mut systemd| systemd.forget_failure(unit)) {
        log::debug!("{}", report::line(&e));
    }
    Ok(())
}

/// A connection to a systemd.
struct Systemd {
    connection: Connection,
}

impl Systemd {
    /// The system's, or the user's. Its own socket is tried first: it needs no bus.
    fn connect(user: bool) -> Result<Systemd> {
        let mut tried = Vec::new();
        let mut last = None;
        for (path, direct) in sockets(user) {
            match Connection::open(&path, direct) {
                Ok(connection) => {
                    let mut systemd = Systemd { connection };
                    if !direct {
                        systemd.listen()?;
                    }
                    return Ok(systemd);
                }
                Err(e) => {
                    tried.push(path.display().to_string());
                    last = Some(e);
                }
            }
        }
        let whose = if user { "the user's systemd" } else { "systemd" };
        let error = last.unwrap_or_else(|| Error::msg("XDG_RUNTIME_DIR is not set"));
        Err(error.context(format!("--systemd-cgroup: reach {whose} (tried {})", tried.join(", "))))
            .kind(Kind::Unsupported)
            .hint(|| match user {
                true => "log in (ssh, `machinectl shell`) or enable lingering, so that a user manager runs; or leave out --systemd-cgroup".to_owned(),
                false => "leave out --systemd-cgroup to use the cgroup file system".to_owned(),
            })
    }

    /// On a bus, signals must be asked for.
    fn listen(&mut self) -> Result<()> {
        let bus = Target {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
        };
        let rule = "type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";
        self.connection.call(&bus, "AddMatch", Body::default().str(rule)).context("ask for signals")?;
        self.call("Subscribe", Body::default()).context("ask systemd for signals")?;
        Ok(())
    }

    fn call(&mut self, method: &str, body: Body) -> Result<Vec<String>> {
        Ok(self.connection.call(&MANAGER, method, body)?.strings)
    }

    /// A call that starts a job: wait for its end.
    fn job(&mut self, method: &str, body: Body) -> Result<()> {
        let job = self.call(method, body)?;
        let removed = self.connection.signal("JobRemoved", |m| m.strings.first() == job.first())?;
        match removed.strings.get(2).map_or("", String::as_str) {
            "done" | "skipped" => Ok(()),
            other => Err(Error::msg(format!("systemd's job ended as {other:?}"))),
        }
    }

    fn stop(&mut self, unit: &str) -> Result<()> {
        match self.job("StopUnit", Body::default().str(unit).str("replace")) {
            Err(e) if !is(&e, "NoSuchUnit") => {
                Err(e).with_context(|| format!("stop the systemd unit {unit}"))
            }
            _ => self.forget_failure(unit),
        }
    }

    /// A unit that failed (its processes were killed for lack of memory) stays until this.
    fn forget_failure(&mut self, unit: &str) -> Result<()> {
        match self.call("ResetFailedUnit", Body::default().str(unit)) {
            Err(e) if !is(&e, "NoSuchUnit") => {
                Err(e).with_context(|| format!("reset the systemd unit {unit}"))
            }
            _ => Ok(()),
        }
    }
}

fn is(error: &Error, name: &str) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|e| e.name.rsplit('.').next() == Some(name))
}

/// Where systemd listens itself, then the bus.
fn sockets(user: bool) -> Vec<(PathBuf, bool)> {
    if !user {
        return vec![
            (PathBuf::from("/run/systemd/private"), true),
            (PathBuf::from("/run/dbus/system_bus_socket"), false),
        ];
    }
    let mut out = Vec::new();
    if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR") {
        out.push((Path::new(&dir).join("systemd/private"), true));
        out.push((Path::new(&dir).join("bus"), false));
    }
    let address = std::env::var("DBUS_SESSION_BUS_ADDRESS").unwrap_or_default();
    for one in address.split(';').filter_map(|one| one.strip_prefix("unix:")) {
        if let Some(path) = one.split(',').find_map(|pair| pair.strip_prefix("path=")) {
            out.push((PathBuf::from(path), false));
        }
    }
    out
}

fn scope_properties(scope: &Scope, pid: i32) -> Properties {
    let mut out: Properties =
        vec![("Description".into(), Value::Str(format!("berth container {}", scope.unit)))];
    if scope.unit.ends_with(".slice") {
        out.push(("Wants".into(), Value::Strings(vec![scope.slice.clone()])));
    } else {
        out.push(("Slice".into(), Value::Str(scope.slice.clone())));
        out.push(("Delegate".into(), Value::Bool(true)));
        out.push(("PIDs".into(), Value::U32s(vec![pid.cast_unsigned()])));
    }
    for accounting in ["MemoryAccounting", "CPUAccounting", "IOAccounting", "TasksAccounting"] {
        out.push((accounting.into(), Value::Bool(true)));
    }
    out.push(("DefaultDependencies".into(), Value::Bool(false)));
    // systemd takes the last of two values: the config's wins.
    out.extend(scope.properties.iter().map(|(name, value)| (name.clone().into(), asked(value))));
    out
}

/// The values that systemd has properties for.
fn resource_properties(writes: &[Write]) -> Properties {
    let mut out = Properties::new();
    let number = |value: &str| match value {
        "max" | "-1" => Some(u64::MAX),
        value => value.parse::<u64>().ok(),
    };
    let (mut quota, mut period) = (None, None);
    for write in writes {
        let value = &*write.value;
        let name = match &*write.file {
            "memory.max" => "MemoryMax",
            "memory.high" => "MemoryHigh",
            "memory.low" => "MemoryLow",
            "memory.min" => "MemoryMin",
            "memory.swap.max" => "MemorySwapMax",
            "memory.limit_in_bytes" => "MemoryLimit",
            "pids.max" => "TasksMax",
            "cpu.weight" => "CPUWeight",
            "cpu.shares" => "CPUShares",
            "io.weight" => "IOWeight",
            file @ ("cpuset.cpus" | "cpuset.mems") => {
                if let Some(bits) = bits(value) {
                    let name = if file == "cpuset.cpus" { "AllowedCPUs" } else { "AllowedMemoryNodes" };
                    out.push((name.into(), Value::Bytes(bits)));
                }
                continue;
            }
            "cpu.max" => {
                let mut words = value.split(' ');
                quota = words.next().and_then(number);
                period = words.next().and_then(number);
                continue;
            }
            "cpu.cfs_quota_us" => {
                quota = number(value);
                continue;
            }
            "cpu.cfs_period_us" => {
                period = number(value);
                continue;
            }
            _ => continue,
        };
        if let Some(value) = number(value) {
            out.push((name.into(), Value::U64(value)));
        }
    }
    if let Some(quota) = quota {
        let period = period.unwrap_or(100_000).max(1);
        // systemd keeps whole percents: round up, so that the exact value fits below it.
        let per_second = match quota {
            u64::MAX => u64::MAX,
            quota => (quota.saturating_mul(1_000_000) / period).div_ceil(10_000) * 10_000,
        };
        out.push(("CPUQuotaPerSecUSec".into(), Value::U64(per_second)));
        out.push(("CPUQuotaPeriodUSec".into(), Value::U64(period)));
    }
    out
}

fn asked(value: &Property) -> Value {
    match value {
        Property::Bool(value) => Value::Bool(*value),
        Property::I32(value) => Value::I32(*value),
        Property::U32(value) => Value::U32(*value),
        Property::I64(value) => Value::I64(*value),
        Property::U64(value) => Value::U64(*value),
        Property::Str(value) => Value::Str(value.clone()),
        Property::Strings(values) => Value::Strings(values.clone()),
    }
}

/// A list of processors as a set of bits, the first eight in the first byte.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        for cpu in first..=last.min(8191) {
            if out.len() <= cpu / 8 {
                out.resize(cpu / 8 + 1, 0);
            }
            out[cpu / 8] |= 1u8 << (cpu % 8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::resources::{Missing, Place};

    #[test]
    fn properties_of_limits() {
        let properties = |pairs: &[(&'static str, &'static str)]| {
            let write = |(file, value): &(&'static str, &'static str)| Write {
                at: Place::V2,
                file: (*file).into(),
                value: (*value).into(),
                source: "".into(),
                missing: Missing::Error,
            };
            resource_properties(&pairs.iter().map(write).collect::<Vec<_>>())
        };
        let quota = |quota, period| {
            vec![
                ("CPUQuotaPerSecUSec".into(), Value::U64(quota)),
                ("CPUQuotaPeriodUSec".into(), Value::U64(period)),
            ]
        };
        assert_eq!(properties(&[("memory.max", "max")]), [("MemoryMax".into(), Value::U64(u64::MAX))]);
        assert_eq!(
            properties(&[("pids.max", "12"), ("cpu.idle", "1")]),
            [("TasksMax".into(), Value::U64(12))]
        );
        assert_eq!(properties(&[("cpu.max", "50000 100000")]), quota(500_000, 100_000));
        assert_eq!(properties(&[("cpu.max", "33333 100000")]), quota(340_000, 100_000));
        assert_eq!(properties(&[("cpu.max", "max 100000")]), quota(u64::MAX, 100_000));
        assert_eq!(
            properties(&[("cpu.cfs_period_us", "50000"), ("cpu.cfs_quota_us", "100000")]),
            quota(2_000_000, 50_000)
        );
        assert_eq!(
            properties(&[("cpuset.cpus", "0-2,9")]),
            [("AllowedCPUs".into(), Value::Bytes(vec![7, 2]))]
        );
    }
}
