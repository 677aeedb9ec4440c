//! What is mounted where, how? (config.md, "Mounts")

use std::path::{Path, PathBuf};

use anyhow::Result;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use sys::mount::{IdRange, flags};

use super::Options;
use super::mount_options::{Words, check_value};
use super::resources::{CgroupPlan, View};
use super::rootfs::{Propagation, in_root};
use crate::host::Host;

/// One entry of `mounts`.
#[derive(Clone, Debug)]
pub struct Mount {
    /// Relative to the root, without `.` and `..`.
    pub destination: PathBuf,
    pub kind: MountKind,
    /// Attributes of the mount itself. (Those of a file system of its own are among its flags too.)
    pub attributes: Attributes,
    /// The same for the mount and all below it (`rro`, `rnosuid`, …).
    pub recursive: Attributes,
    /// In the order given.
    pub propagation: Vec<Propagation>,
    /// Made read-only when everything else is done: what lies in it has to be made first.
    pub readonly_last: bool,
    pub idmap: Option<IdMap>,
}

/// `MOUNT_ATTR_*` bits, as mount_setattr(2) takes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub set: u64,
    pub clear: u64,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// A file system of its own.
    Fs(Fs),
    /// A part of the host's tree.
    Bind { source: PathBuf, recursive: bool },
    /// What is mounted there already, with other options. `Some`: the file system's options too.
    Remount { file_system: Option<Vec<String>> },
    /// cgroup v1: a tmpfs with the container's directory of each hierarchy.
    Hierarchies { readonly: bool, data: String, dirs: Vec<Hierarchy> },
}

/// A file system of its own, as mount(2) takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fs {
    pub fs: String,
    pub source: String,
    /// `MS_*`
    pub flags: u64,
    /// Comma-separated.
    pub data: String,
    /// A tmpfs that starts with what the directory below it holds.
    pub copy_up: bool,
    /// Where it cannot be mounted in this user namespace, this path of the host is bound instead.
    pub instead: Option<PathBuf>,
}

/// One v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub name: String,
    pub host: PathBuf,
    pub links: Vec<String>,
    /// Left out where the container has no cgroup there.
    pub optional: bool,
}

/// An idmapped mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    pub maps: IdMapSource,
    pub recursive: bool,
}

/// Where the maps of an idmapped mount come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdMapSource {
    Maps {
        uids: Vec<IdRange>,
        gids: Vec<IdRange>,
    },
    /// The user namespace that the container joins.
    Namespace(PathBuf),
}

impl Mount {
    /// Whether a part of the host's tree is shown.
    pub fn is_bind(&self) -> bool {
        matches!(self.kind, MountKind::Bind { .. })
    }

    /// What it is, for messages: `mount proc on /proc`, `bind /a on /b`.
    pub fn describe(&self) -> String {
        let at = Path::new("/").join(&self.destination);
        match &self.kind {
            MountKind::Fs(fs) => format!("mount {} on {}", fs.fs, at.display()),
            MountKind::Bind { source, .. } => format!("bind {} on {}", source.display(), at.display()),
            MountKind::Remount { .. } => format!("remount {}", at.display()),
            MountKind::Hierarchies { .. } => format!("mount cgroup on {}", at.display()),
        }
    }
}

/// Plan `mounts`.
pub fn plan(spec: &Spec, options: &Options, host: &Host, cgroup: &CgroupPlan) -> Result<Vec<Mount>> {
    let facts = Facts::of(spec, options, host, cgroup);
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let planned = mounts.iter().enumerate().map(|(i, mount)| facts.plan(mount, &format!("mounts[{i}]")));
    let notify = options.notify.as_deref().map(|folder| facts.plan(&notify(folder), "NOTIFY_SOCKET"));
    planned.chain(notify).collect()
}

/// What a program that tells of its readiness sees of us.
fn notify(folder: &Path) -> oci_spec::runtime::Mount {
    let mut mount = oci_spec::runtime::Mount::default();
    let options = ["bind", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned);
    mount.set_destination(crate::launch::notify::DESTINATION.into());
    mount.set_source(Some(folder.to_owned())).set_options(Some(options.to_vec()));
    mount
}

/// What a mount may depend on.
struct Facts<'a> {
    options: &'a Options,
    cgroup: &'a CgroupPlan,
    userns: bool,
    /// The container's user namespace and its maps.
    container: Option<IdMapSource>,
    label: Option<&'a str>,
}

impl<'a> Facts<'a> {
    fn of(spec: &'a Spec, options: &'a Options, host: &Host, cgroup: &'a CgroupPlan) -> Self {
        let linux = spec.linux().as_ref();
        let namespaces = linux.and_then(|l| l.namespaces().as_deref()).unwrap_or_default();
        let user = namespaces.iter().find(|n| n.typ() == LinuxNamespaceType::User);
        let container = user.map(|user| match user.path() {
            Some(path) => IdMapSource::Namespace(path.clone()),
            None => IdMapSource::Maps {
                uids: ranges(linux.and_then(|l| l.uid_mappings().as_deref()).unwrap_or_default()),
                gids: ranges(linux.and_then(|l| l.gid_mappings().as_deref()).unwrap_or_default()),
            },
        });
        let label = linux.and_then(|l| l.mount_label().as_deref()).filter(|l| !l.is_empty());
        Facts { options, cgroup, userns: user.is_some() || host.rootless, container, label }
    }

    fn plan(&self, mount: &oci_spec::runtime::Mount, at: &str) -> Result<Mount> {
        let destination = self.destination(mount, at)?;
        let words = Words::parse(mount.options().as_deref().unwrap_or_default(), at)?;
        let kind = mount.typ().as_deref().unwrap_or_default();
        let bind = words.bind.or((kind == "bind" || kind == "rbind").then_some(kind == "rbind"));
        let idmap = self.idmap(mount, &words, at)?;
        if idmap.is_some() && (bind.is_none() || words.remount) {
            return Err(report::at(at, "id maps are for bind mounts; add the option \"bind\" or \"rbind\""));
        }
        if words.copy_up && (bind.is_some() || kind != "tmpfs") {
            return Err(report::at(format_args!("{at}.options"), "tmpcopyup is for mounts of type tmpfs"));
        }
        let mut readonly_last = false;
        let mut attributes = Attributes::default();
        let kind = if words.remount {
            attributes = words.attributes();
            self.remount(&words, bind.is_some(), at)?
        } else if let Some(recursive) = bind {
            attributes = words.attributes();
            self.bind(mount, &words, recursive, at)?
        } else if kind == "cgroup" {
            self.cgroup(&words, at)?
        } else if kind.is_empty() {
            return Err(report::at(
                format_args!("{at}.type"),
                "missing; name a file system, or add the option \"bind\" or \"rbind\"",
            ));
        } else {
            let fs = self.file_system(kind, mount, &words, at)?;
            attributes = words.attributes();
            readonly_last =
                fs.flags & flags::RDONLY != 0 && (kind == "tmpfs" || destination == Path::new("dev"));
            let keep = if readonly_last { !flags::RDONLY } else { !0 };
            MountKind::Fs(Fs { flags: fs.flags & keep, ..fs })
        };
        check_inside_proc(&destination, &kind, at)?;
        Ok(Mount {
            destination,
            kind,
            attributes,
            recursive: words.recursive,
            propagation: words.propagation,
            readonly_last,
            idmap,
        })
    }

    fn destination(&self, mount: &oci_spec::runtime::Mount, at: &str) -> Result<PathBuf> {
        let destination = mount.destination();
        let place = format_args!("{at}.destination").to_string();
        if destination.as_os_str().is_empty() {
            return Err(report::at(place, "empty; name an absolute path in the container"));
        }
        if destination.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(report::at(place, format!("{destination:?} holds a NUL byte")));
        }
        if destination.is_relative() {
            log::warn!("{place}: {destination:?} is not absolute; taken from the root of the container");
        }
        let path = in_root(destination);
        if path.as_os_str().is_empty() {
            return Err(report::at(
                place,
                format!("{destination:?} is the root itself, which root.path names"),
            ));
        }
        Ok(path)
    }

    fn remount(&self, words: &Words, bind: bool, at: &str) -> Result<MountKind> {
        if bind {
            if let Some((i, word)) = words.data.first() {
                return Err(unknown_for_bind(at, *i, word));
            }
            return Ok(MountKind::Remount { file_system: None });
        }
        let mut options: Vec<String> = words.data.iter().map(|(_, w)| w.clone()).collect();
        for (bits, on, off) in [
            (flags::RDONLY, "ro", "rw"),
            (flags::SYNCHRONOUS, "sync", "async"),
            (flags::DIRSYNC, "dirsync", ""),
            (flags::LAZYTIME, "lazytime", "nolazytime"),
            (flags::MANDLOCK, "mand", "nomand"),
        ] {
            if words.on & bits != 0 {
                options.push(on.to_owned());
            } else if words.off & bits != 0 && !off.is_empty() {
                options.push(off.to_owned());
            }
        }
        Ok(MountKind::Remount { file_system: Some(options) })
    }

    fn bind(
        &self,
        mount: &oci_spec::runtime::Mount,
        words: &Words,
        recursive: bool,
        at: &str,
    ) -> Result<MountKind> {
        if let Some((i, word)) = words.data.first() {
            return Err(unknown_for_bind(at, *i, word));
        }
        let ignored = words.of_file_system();
        if !ignored.is_empty() {
            log::warn!("{at}.options: {} has no effect on a bind mount", ignored.join(", "));
        }
        let source = match mount.source() {
            Some(source) if !source.as_os_str().is_empty() => source,
            _ => return Err(report::at(format_args!("{at}.source"), "missing; a bind mount needs a source")),
        };
        Ok(MountKind::Bind { source: self.options.bundle.join(source), recursive })
    }

    fn cgroup(&self, words: &Words, at: &str) -> Result<MountKind> {
        match self.cgroup.view() {
            View::None => Err(report::error(
                report::Kind::Unsupported,
                format!("{at}: this host mounts no cgroup hierarchy"),
            )),
            View::V2 { host } => Ok(MountKind::Fs(Fs {
                fs: "cgroup2".to_owned(),
                source: "cgroup".to_owned(),
                flags: words.on,
                data: data(words, None),
                copy_up: false,
                instead: Some(host),
            })),
            View::V1 { mounts, unified } => {
                let mut dirs: Vec<Hierarchy> = mounts
                    .into_iter()
                    .map(|m| Hierarchy {
                        name: m.name,
                        host: m.host,
                        links: m.links,
                        optional: self.cgroup.optional,
                    })
                    .collect();
                dirs.extend(unified.map(|host| Hierarchy {
                    name: "unified".to_owned(),
                    host,
                    links: Vec::new(),
                    optional: self.cgroup.optional,
                }));
                let data = match self.label {
                    Some(label) => format!("mode=755,context=\"{label}\""),
                    None => "mode=755".to_owned(),
                };
                Ok(MountKind::Hierarchies { readonly: words.on & flags::RDONLY != 0, data, dirs })
            }
        }
    }

    fn file_system(&self, fs: &str, mount: &oci_spec::runtime::Mount, words: &Words, at: &str) -> Result<Fs> {
        if fs.contains('\0') {
            return Err(report::at(format_args!("{at}.type"), format!("{fs:?} holds a NUL byte")));
        }
        for (i, word) in &words.data {
            check_value(fs, word, &format!("{at}.options[{i}]"))?;
        }
        // The kernel labels neither procfs nor sysfs.
        let data = data(words, self.label.filter(|_| !matches!(fs, "proc" | "sysfs")));
        // mount(2) takes a page and cuts off the rest.
        if data.len() > 4095 {
            return Err(report::at(
                format_args!("{at}.options"),
                format!("{} bytes; the kernel takes 4095 for a file system", data.len()),
            ));
        }
        let source = mount.source().as_ref().and_then(|s| s.to_str()).filter(|s| !s.is_empty());
        Ok(Fs {
            fs: fs.to_owned(),
            source: source.unwrap_or(fs).to_owned(),
            flags: words.on,
            data,
            copy_up: words.copy_up,
            instead: (fs == "sysfs" && self.userns).then(|| PathBuf::from("/sys")),
        })
    }

    fn idmap(&self, mount: &oci_spec::runtime::Mount, words: &Words, at: &str) -> Result<Option<IdMap>> {
        let recursive = words.idmap.unwrap_or(false);
        let uids = mount.uid_mappings().as_deref().filter(|m| !m.is_empty());
        let gids = mount.gid_mappings().as_deref().filter(|m| !m.is_empty());
        let maps = match (uids, gids) {
            (Some(uids), Some(gids)) => IdMapSource::Maps { uids: ranges(uids), gids: ranges(gids) },
            (Some(_), None) => {
                return Err(report::at(format_args!("{at}.gidMappings"), "missing beside uidMappings"));
            }
            (None, Some(_)) => {
                return Err(report::at(format_args!("{at}.uidMappings"), "missing beside gidMappings"));
            }
            (None, None) if words.idmap.is_none() => return Ok(None),
            (None, None) => match &self.container {
                Some(maps) => maps.clone(),
                None => {
                    return Err(report::at(
                        format_args!("{at}.options"),
                        "idmap needs uidMappings and gidMappings, or a container with a user namespace",
                    ));
                }
            },
        };
        if let IdMapSource::Maps { uids, gids } = &maps {
            for (name, ranges) in [("uidMappings", uids), ("gidMappings", gids)] {
                if let Some(i) = ranges.iter().position(|r| r.size == 0) {
                    return Err(report::at(
                        format_args!("{at}.{name}[{i}].size"),
                        "0; a range holds at least one id",
                    ));
                }
            }
        }
        Ok(Some(IdMap { maps, recursive }))
    }
}

fn ranges(maps: &[LinuxIdMapping]) -> Vec<IdRange> {
    maps.iter().map(|m| IdRange { inside: m.container_id(), outside: m.host_id(), size: m.size() }).collect()
}

fn data(words: &Words, label: Option<&str>) -> String {
    let mut out = String::new();
    for (_, word) in &words.data {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(word);
    }
    if let Some(label) = label {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(&format!("context=\"{label}\""));
    }
    out
}

fn unknown_for_bind(at: &str, index: usize, word: &str) -> anyhow::Error {
    report::at(
        format_args!("{at}.options[{index}]"),
        format!("unknown option {word:?}; a bind mount has no file system to ask"),
    )
}

/// What lxcfs and the like put over files of procfs.
const EMULATED: &[&str] = &[
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "net/dev",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

/// A file of the image in the place of one of procfs would be taken for the kernel's: sysctls and labels are
/// written there.
fn check_inside_proc(destination: &Path, kind: &MountKind, at: &str) -> Result<()> {
    let Ok(inside) = destination.strip_prefix("proc") else { return Ok(()) };
    if matches!(kind, MountKind::Remount { .. }) {
        return Ok(());
    }
    let place = format_args!("{at}.destination").to_string();
    if inside.as_os_str().is_empty() {
        return match kind {
            MountKind::Fs(fs) if fs.fs == "proc" => Ok(()),
            // Whether it shows a procfs is looked at when it is opened.
            MountKind::Bind { .. } => Ok(()),
            _ => Err(report::at(place, "/proc is for a mount of type proc")),
        };
    }
    if EMULATED.iter().any(|e| Path::new(e) == inside) {
        return Ok(());
    }
    Err(report::at(
        place,
        format!(
            "/{} is inside /proc; only {} may be covered there",
            destination.display(),
            EMULATED.join(", ")
        ),
    ))
}

#[cfg(test)]
mod tests;
