//! Which namespaces are new, which are joined by path? (config-linux.md, "Namespaces")

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use report::at;
use sys::process::flags;

/// A namespace that is joined by the path of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    pub flag: u64,
    pub path: PathBuf,
    /// Its place in `linux.namespaces`.
    pub index: usize,
}

/// The namespaces of a container; those in neither list are the caller's own.
#[derive(Clone, Debug, Default)]
pub struct Namespaces {
    /// Clone flags of the new ones.
    pub new: u64,
    /// The joined ones, in the order in which they are joined.
    pub joined: Vec<Joined>,
    /// The content of `/proc/<pid>/timens_offsets` (time_namespaces(7)).
    pub time_offsets: String,
}

/// Name in the config, flag, name below `/proc/<pid>/ns`. Also what `features` and `explain` print.
pub const TABLE: [(&str, u64, &str); 8] = [
    ("cgroup", flags::NEWCGROUP, "cgroup"),
    ("ipc", flags::NEWIPC, "ipc"),
    ("mount", flags::NEWNS, "mnt"),
    ("network", flags::NEWNET, "net"),
    ("pid", flags::NEWPID, "pid"),
    ("time", flags::NEWTIME, "time"),
    ("user", flags::NEWUSER, "user"),
    ("uts", flags::NEWUTS, "uts"),
];

impl Namespaces {
    /// Whether the container has a namespace of this type that is not the caller's (new or joined).
    pub fn has(&self, flag: u64) -> bool {
        self.new & flag != 0 || self.joined_path(flag).is_some()
    }

    /// The path by which a namespace of this type is joined.
    pub fn joined_path(&self, flag: u64) -> Option<&PathBuf> {
        self.joined.iter().find(|j| j.flag == flag).map(|j| &j.path)
    }

    /// Every namespace that is not the caller's, as clone flags.
    pub fn all(&self) -> u64 {
        self.joined.iter().fold(self.new, |all, j| all | j.flag)
    }
}

/// The namespaces of `spec`.
pub fn plan(spec: &Spec) -> Result<Namespaces> {
    let mut out = Namespaces::default();
    let Some(linux) = spec.linux() else { return Ok(out) };
    for (index, ns) in linux.namespaces().iter().flatten().enumerate() {
        let flag = flag(ns.typ());
        if out.has(flag) {
            return Err(at(
                format_args!("linux.namespaces[{index}].type"),
                format!("a second namespace of type {:?}", name(flag)),
            ));
        }
        match ns.path() {
            Some(path) if !path.as_os_str().is_empty() => {
                if !path.is_absolute() {
                    return Err(at(
                        format_args!("linux.namespaces[{index}].path"),
                        format!("{:?} is not an absolute path", path.display().to_string()),
                    ));
                }
                out.joined.push(Joined { flag, path: path.clone(), index });
            }
            _ => out.new |= flag,
        }
    }
    // The mount namespace last: the paths of the others lead through the one we are in.
    out.joined.sort_by_key(|j| j.flag == flags::NEWNS);

    if let Some(offsets) = linux.time_offsets().as_ref().filter(|o| !o.is_empty()) {
        if out.new & flags::NEWTIME == 0 {
            return Err(at("linux.timeOffsets", "needs a new time namespace in linux.namespaces"));
        }
        for (clock, offset) in offsets {
            if clock != "monotonic" && clock != "boottime" {
                return Err(at(
                    format_args!("linux.timeOffsets.{clock}"),
                    "unknown clock, allowed are monotonic and boottime",
                ));
            }
            let (secs, nanos) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
            if nanos >= 1_000_000_000 {
                return Err(at(
                    format_args!("linux.timeOffsets.{clock}.nanosecs"),
                    format!("{nanos} is a second or more"),
                ));
            }
            writeln!(out.time_offsets, "{clock} {secs} {nanos}")?;
        }
    }
    Ok(out)
}

/// The clone flag of a namespace type.
fn flag(kind: LinuxNamespaceType) -> u64 {
    match kind {
        LinuxNamespaceType::Mount => flags::NEWNS,
        LinuxNamespaceType::Cgroup => flags::NEWCGROUP,
        LinuxNamespaceType::Uts => flags::NEWUTS,
        LinuxNamespaceType::Ipc => flags::NEWIPC,
        LinuxNamespaceType::User => flags::NEWUSER,
        LinuxNamespaceType::Pid => flags::NEWPID,
        LinuxNamespaceType::Network => flags::NEWNET,
        LinuxNamespaceType::Time => flags::NEWTIME,
    }
}

/// The config's name of a clone flag.
pub fn name(flag: u64) -> &'static str {
    TABLE.iter().find(|(_, f, _)| *f == flag).map_or("?", |(name, _, _)| name)
}
