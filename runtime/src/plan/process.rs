//! What runs, as whom, with which rights? (config.md, "process")

use std::ffi::CString;

use anyhow::Result;
use oci_spec::runtime::{Capability, Process};
use report::at;
use sys::tty::Size;

use super::attributes::{self, Attributes};

/// The five sets, as bits by number (capability.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

impl Capabilities {
    /// Leave out what we cannot grant, for we lack it ourselves: a warning and no error, says config.md, "Linux
    /// Process". (In a user namespace of its own the container can have all.)
    pub fn limit_to(&mut self, ours: u64) {
        let sets = [
            &mut self.bounding,
            &mut self.effective,
            &mut self.inheritable,
            &mut self.permitted,
            &mut self.ambient,
        ];
        let asked = sets.iter().fold(0, |all, set| all | **set);
        for set in sets {
            *set &= ours;
        }
        if asked & !ours != 0 {
            let lacking = names(asked & !ours).join(", ");
            log::warn!("process.capabilities: {lacking} ignored, the runtime itself does not have it");
        }
    }
}

/// Whose rights the process has.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub umask: u32,
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
}

/// The program and its surroundings.
#[derive(Clone, Debug, Default)]
pub struct ProcessPlan {
    pub args: Vec<CString>,
    pub env: Vec<CString>,
    pub cwd: CString,
    pub terminal: bool,
    pub size: Option<Size>,
    pub credentials: Credentials,
    pub attributes: Attributes,
}

/// runc's umask where the config has none.
const DEFAULT_UMASK: u32 = 0o022;

/// The plan of `process`; its values come from config.json or `exec --process`.
pub fn plan(process: &Process) -> Result<ProcessPlan> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() {
        return Err(at("process.args", "is missing or empty"));
    }
    if args[0].is_empty() {
        return Err(at("process.args[0]", "is empty"));
    }
    let cwd = process.cwd();
    if !cwd.is_absolute() {
        return Err(at("process.cwd", format!("{:?} is not an absolute path", cwd.display().to_string())));
    }
    let user = process.user();
    for (name, id) in [("uid", user.uid()), ("gid", user.gid())] {
        if id == u32::MAX {
            return Err(at(format_args!("process.user.{name}"), "4294967295 (-1) is not an id"));
        }
    }
    let groups = user.additional_gids().clone().unwrap_or_default();
    if let Some(i) = groups.iter().position(|g| *g == u32::MAX) {
        return Err(at(format_args!("process.user.additionalGids[{i}]"), "4294967295 (-1) is not an id"));
    }
    let umask = user.umask().unwrap_or(DEFAULT_UMASK);
    if umask > 0o777 {
        return Err(at("process.user.umask", format!("{umask} is more than 511 (0o777)")));
    }
    let size = process.console_size().map(|s| Size {
        rows: s.height().min(u64::from(u16::MAX)) as u16,
        columns: s.width().min(u64::from(u16::MAX)) as u16,
    });
    Ok(ProcessPlan {
        args: strings("process.args", args)?,
        env: environment(process.env().as_deref().unwrap_or_default())?,
        cwd: string("process.cwd", &cwd.to_string_lossy())?,
        terminal: process.terminal().unwrap_or(false),
        size,
        credentials: Credentials {
            uid: user.uid(),
            gid: user.gid(),
            groups,
            umask,
            capabilities: capabilities(process)?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
        },
        attributes: attributes::plan(process)?,
    })
}

/// `NAME=value` strings; of a name given twice, the last one counts.
fn environment(list: &[String]) -> Result<Vec<CString>> {
    let mut out: Vec<&str> = Vec::with_capacity(list.len());
    for (i, entry) in list.iter().enumerate() {
        let Some(name) = entry.split_once('=').map(|(name, _)| name).filter(|n| !n.is_empty()) else {
            return Err(at(format_args!("process.env[{i}]"), format!("{entry:?} is not NAME=value")));
        };
        match out.iter().position(|e| e.split_once('=').is_some_and(|(n, _)| n == name)) {
            Some(at) => out[at] = entry,
            None => out.push(entry),
        }
    }
    out.iter().map(|e| string("process.env", e)).collect()
}

fn strings(path: &str, list: &[String]) -> Result<Vec<CString>> {
    list.iter().enumerate().map(|(i, s)| string(&format!("{path}[{i}]"), s)).collect()
}

fn string(path: &str, s: &str) -> Result<CString> {
    CString::new(s).map_err(|e| at(path, format!("has a NUL byte at {}", e.nul_position())))
}

fn capabilities(process: &Process) -> Result<Capabilities> {
    let Some(caps) = process.capabilities() else { return Ok(Capabilities::default()) };
    let bits = |set: &Option<std::collections::HashSet<Capability>>| {
        set.iter().flatten().fold(0, |bits, cap| bits | 1u64 << number(*cap))
    };
    let sets = Capabilities {
        bounding: bits(caps.bounding()),
        effective: bits(caps.effective()),
        inheritable: bits(caps.inheritable()),
        permitted: bits(caps.permitted()),
        ambient: bits(caps.ambient()),
    };
    // capabilities(7): what the kernel would refuse, or would quietly leave out.
    for (name, set, within, what) in [
        ("effective", sets.effective, sets.permitted, "permitted"),
        ("ambient", sets.ambient, sets.permitted & sets.inheritable, "permitted and inheritable"),
    ] {
        let extra = set & !within;
        if extra != 0 && name == "effective" {
            return Err(at(
                format_args!("process.capabilities.{name}"),
                format!("{} must also be in {what}", names(extra).join(", ")),
            ));
        }
        if extra != 0 {
            log::warn!("process.capabilities.{name}: {} ignored, not in {what}", names(extra).join(", "));
        }
    }
    Ok(Capabilities { ambient: sets.ambient & sets.permitted & sets.inheritable, ..sets })
}

/// Names in the order of their numbers.
pub fn names(bits: u64) -> Vec<String> {
    (0..64).filter(|n| bits & 1 << n != 0).map(name).collect()
}

/// The name of capability `number`, `CAP_<number>` beyond those known.
pub fn name(number: u8) -> String {
    match CAPABILITIES.iter().find(|(_, n)| *n == number) {
        Some((cap, _)) => format!("CAP_{cap}"),
        None => format!("CAP_{number}"),
    }
}

fn number(cap: Capability) -> u8 {
    CAPABILITIES.iter().find(|(c, _)| *c == cap).map_or(63, |(_, n)| *n)
}

/// linux/capability.h.
pub const CAPABILITIES: [(Capability, u8); 41] = [
    (Capability::Chown, 0),
    (Capability::DacOverride, 1),
    (Capability::DacReadSearch, 2),
    (Capability::Fowner, 3),
    (Capability::Fsetid, 4),
    (Capability::Kill, 5),
    (Capability::Setgid, 6),
    (Capability::Setuid, 7),
    (Capability::Setpcap, 8),
    (Capability::LinuxImmutable, 9),
    (Capability::NetBindService, 10),
    (Capability::NetBroadcast, 11),
    (Capability::NetAdmin, 12),
    (Capability::NetRaw, 13),
    (Capability::IpcLock, 14),
    (Capability::IpcOwner, 15),
    (Capability::SysModule, 16),
    (Capability::SysRawio, 17),
    (Capability::SysChroot, 18),
    (Capability::SysPtrace, 19),
    (Capability::SysPacct, 20),
    (Capability::SysAdmin, 21),
    (Capability::SysBoot, 22),
    (Capability::SysNice, 23),
    (Capability::SysResource, 24),
    (Capability::SysTime, 25),
    (Capability::SysTtyConfig, 26),
    (Capability::Mknod, 27),
    (Capability::Lease, 28),
    (Capability::AuditWrite, 29),
    (Capability::AuditControl, 30),
    (Capability::Setfcap, 31),
    (Capability::MacOverride, 32),
    (Capability::MacAdmin, 33),
    (Capability::Syslog, 34),
    (Capability::WakeAlarm, 35),
    (Capability::BlockSuspend, 36),
    (Capability::AuditRead, 37),
    (Capability::Perfmon, 38),
    (Capability::Bpf, 39),
    (Capability::CheckpointRestore, 40),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_lack_is_left_out_of_every_set() {
        let all = 0b1011;
        let mut caps =
            Capabilities { bounding: all, effective: all, inheritable: all, permitted: all, ambient: all };
        caps.limit_to(0b0110);
        let left = 0b0010;
        let want = Capabilities {
            bounding: left,
            effective: left,
            inheritable: left,
            permitted: left,
            ambient: left,
        };
        assert_eq!(caps, want);
    }

    #[test]
    fn names_are_those_of_config_json() {
        assert_eq!(names(1 << 24 | 1), ["CAP_CHOWN", "CAP_SYS_RESOURCE"]);
        assert_eq!(name(63), "CAP_63");
    }
}
