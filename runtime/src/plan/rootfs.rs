//! What will the container see as its root? Mounts in order, devices, masked and read-only paths.

use std::path::{Component, Path, PathBuf};

use anyhow::Result;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::Options;
use super::devices::{self, Device};
use super::mounts::{self, Mount};
use super::resources::CgroupPlan;
use crate::host::Host;

/// The root file system, as it will be built.
#[derive(Clone, Debug)]
pub struct RootfsPlan {
    /// Absolute host path of the root directory.
    pub path: PathBuf,
    pub readonly: bool,
    /// What becomes of the propagation of every mount that the namespace starts with.
    pub propagation: Propagation,
    pub enter: Enter,
    /// The container has a user namespace of its own (or we are in one): devices are bound, not made, and
    /// bind sources are opened by the parent.
    pub userns: bool,
    /// The sources of binds and the root itself are opened before the clone, where we have more rights.
    pub open_early: bool,
    /// In the config's order.
    pub mounts: Vec<Mount>,
    /// Device nodes, default ones first; `None` when /dev is the host's, bound.
    pub devices: Option<Vec<Device>>,
    /// Paths in the container that show nothing.
    pub masked: Vec<PathBuf>,
    /// Paths in the container that cannot be written.
    pub readonly_paths: Vec<PathBuf>,
    /// SELinux label of what is mounted.
    pub mount_label: Option<String>,
    /// Made when it is missing, as runc does; relative to the root.
    pub cwd: PathBuf,
}

/// How the root becomes the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enter {
    /// `pivot_root(".", ".")`, the old root detached.
    Pivot,
    /// `--no-pivot`: move over `/`, then chroot.
    Move,
    /// No mount namespace: chroot alone.
    Chroot,
}

/// A propagation type, and whether the mounts below follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagation {
    pub kind: PropagationKind,
    pub recursive: bool,
}

/// mount_namespaces(7), "Shared subtrees".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PropagationKind {
    Private,
    Slave,
    Shared,
    Unbindable,
}

impl Propagation {
    /// `private`, `rprivate`, `slave`, …
    pub fn parse(word: &str) -> Option<Propagation> {
        let (recursive, word) = match word.strip_prefix('r') {
            Some(rest) => (true, rest),
            None => (false, word),
        };
        let kind = match word {
            "private" => PropagationKind::Private,
            "slave" => PropagationKind::Slave,
            "shared" => PropagationKind::Shared,
            "unbindable" => PropagationKind::Unbindable,
            _ => return None,
        };
        Some(Propagation { kind, recursive })
    }
}

/// Plan the root file system of `spec`.
pub fn plan(spec: &Spec, options: &Options, host: &Host, cgroup: &CgroupPlan) -> Result<RootfsPlan> {
    let Some(root) = spec.root() else {
        return Err(report::at("root", "missing; a container needs a root file system"));
    };
    if root.path().as_os_str().is_empty() {
        return Err(report::at("root.path", "empty; name the directory of the root file system"));
    }
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|l| l.namespaces().as_deref()).unwrap_or_default();
    let has = |t| namespaces.iter().any(|n| n.typ() == t);
    let userns = host.rootless || has(LinuxNamespaceType::User);
    let readonly = root.readonly().unwrap_or(false);
    let masked = in_root_paths(linux.and_then(|l| l.masked_paths().as_deref()), "linux.maskedPaths")?;
    let readonly_paths =
        in_root_paths(linux.and_then(|l| l.readonly_paths().as_deref()), "linux.readonlyPaths")?;
    let mounts = mounts::plan(spec, options, host, cgroup)?;
    let propagation = propagation(linux.and_then(|l| l.rootfs_propagation().as_deref()))?;

    let terminal = spec.process().as_ref().and_then(|p| p.terminal()).unwrap_or(false);

    let enter = if !has(LinuxNamespaceType::Mount) {
        let refuse = |what: &str| {
            Err(report::at(
                "linux.namespaces",
                format!("{what} would change the host's mounts; add {{\"type\": \"mount\"}}"),
            ))
        };
        match () {
            () if options.notify.is_some() => return refuse("NOTIFY_SOCKET without a mount namespace"),
            () if !mounts.is_empty() => return refuse("mounts without a mount namespace"),
            () if !masked.is_empty() => return refuse("linux.maskedPaths without a mount namespace"),
            () if !readonly_paths.is_empty() => {
                return refuse("linux.readonlyPaths without a mount namespace");
            }
            () if terminal => return refuse("process.terminal without a mount namespace"),
            () if readonly => return refuse("root.readonly without a mount namespace"),
            () => Enter::Chroot,
        }
    } else if options.no_pivot {
        if propagation.kind == PropagationKind::Private {
            return Err(report::at(
                "linux.rootfsPropagation",
                "[r]private is not safe together with --no-pivot",
            ));
        }
        Enter::Move
    } else {
        Enter::Pivot
    };

    let dev_is_bound = mounts.iter().any(|m| m.is_bind() && m.destination == Path::new("dev"));
    let devices = if dev_is_bound { None } else { Some(devices::plan(spec)?) };
    let cwd = spec.process().as_ref().map(|p| p.cwd().clone()).unwrap_or_else(|| PathBuf::from("/"));
    Ok(RootfsPlan {
        path: options.bundle.join(root.path()),
        readonly,
        propagation,
        enter,
        userns,
        // Afterwards we may lack the right to reach them; an ordinary user has it only afterwards.
        open_early: has(LinuxNamespaceType::User) && host.euid == 0 && enter != Enter::Chroot,
        mounts,
        devices,
        masked,
        readonly_paths,
        mount_label: linux.and_then(|l| l.mount_label().clone()).filter(|l| !l.is_empty()),
        cwd: in_root(&cwd),
    })
}

/// `linux.rootfsPropagation`; what runc does when it is absent: `rslave`.
fn propagation(word: Option<&str>) -> Result<Propagation> {
    match word {
        None | Some("") => Ok(Propagation { kind: PropagationKind::Slave, recursive: true }),
        Some(word) => Propagation::parse(word).ok_or_else(|| {
            report::at(
                "linux.rootfsPropagation",
                format!(
                    "unknown propagation {word:?}; one of private, rprivate, slave, rslave, shared, rshared, \
                     unbindable, runbindable"
                ),
            )
        }),
    }
}

fn in_root_paths(paths: Option<&[String]>, field: &str) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for (i, path) in paths.unwrap_or_default().iter().enumerate() {
        if !path.starts_with('/') {
            return Err(report::at(format_args!("{field}[{i}]"), format!("{path:?} is not absolute")));
        }
        out.push(in_root(Path::new(path)));
    }
    Ok(out)
}

/// A path in the container, relative to its root and without `.` and `..` (which in a root mean what they
/// mean in a text: no path leaves the root).
pub fn in_root(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_the_root_cannot_leave_it() {
        for (path, inside) in [
            ("/a/b", "a/b"),
            ("a/./b/", "a/b"),
            ("/../../etc/passwd", "etc/passwd"),
            ("/a/../../b", "b"),
            ("/", ""),
            ("..", ""),
        ] {
            assert_eq!(in_root(Path::new(path)), Path::new(inside), "{path}");
        }
    }

    #[test]
    fn propagations() {
        use PropagationKind::{Private, Shared, Slave, Unbindable};
        for (word, kind, recursive) in [
            ("private", Private, false),
            ("rprivate", Private, true),
            ("slave", Slave, false),
            ("rslave", Slave, true),
            ("shared", Shared, false),
            ("rshared", Shared, true),
            ("unbindable", Unbindable, false),
            ("runbindable", Unbindable, true),
        ] {
            assert_eq!(Propagation::parse(word), Some(Propagation { kind, recursive }), "{word}");
            assert_eq!(propagation(Some(word)).unwrap(), Propagation { kind, recursive }, "{word}");
        }
        for word in ["rrprivate", "Private", "ro", "r"] {
            assert_eq!(Propagation::parse(word), None, "{word}");
        }
        assert_eq!(propagation(None).unwrap(), Propagation { kind: Slave, recursive: true });
    }
}
