//! Which cgroup hierarchies does this host mount, and where are we in them?
//!
//! The usual places are tried first, at one statfs each; /proc/self/mountinfo is read only when a hierarchy
//! that /proc/self/cgroup names is in none of them (or when we see only a part of it, as in a container).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sys::cgroupfs::{self, FsType};

const ROOT: &str = "/sys/fs/cgroup";

/// The hierarchies that are mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// v1 hierarchies, in the order of /proc/self/cgroup.
    pub v1: Vec<V1>,
    /// The v2 hierarchy. Beside v1 ones (a hybrid host) it counts only if it has controllers.
    pub v2: Option<V2>,
    /// Did systemd boot this host? (sd_booted(3))
    pub systemd: bool,
}

/// One v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1 {
    /// `cpu`, or `cpu` and `cpuacct` mounted together, or `name=systemd`.
    pub controllers: Vec<String>,
    pub mount: PathBuf,
    /// Our own cgroup, as a path below `mount`: `/` or `/a/b`.
    pub own: String,
}

/// The v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V2 {
    pub mount: PathBuf,
    pub own: String,
    pub controllers: Vec<String>,
}

impl Hierarchies {
    /// Look at the host.
    pub fn detect() -> Result<Hierarchies> {
        let root = Path::new(ROOT);
        let kind = match cgroupfs::fs_type(root) {
            Ok(kind) => kind,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Hierarchies::default()),
            Err(e) => return Err(e).with_context(|| format!("statfs {ROOT}")),
        };
        let own = cgroupfs::read(Path::new("/proc/self/cgroup")).context("read /proc/self/cgroup")?;
        let lines = parse_own(&own);
        let usual = match kind {
            FsType::CgroupV2 => usual_v2(root, &lines),
            FsType::Tmpfs => usual_v1(root, &lines),
            FsType::CgroupV1 | FsType::Other => None,
        };
        let mut found = match usual {
            Some(found) => found,
            None => {
                let mounts =
                    cgroupfs::read(Path::new("/proc/self/mountinfo")).context("read /proc/self/mountinfo")?;
                from_mountinfo(&lines, &mounts)
            }
        };
        if let Some(v2) = &mut found.v2 {
            let list = v2.mount.join("cgroup.controllers");
            v2.controllers = words(
                &cgroupfs::read(&list).with_context(|| format!("read {}", list.display()))?,
                char::is_whitespace,
            );
        }
        // A v2 side without controllers limits nothing: leave it alone.
        if !found.v1.is_empty() && found.v2.as_ref().is_some_and(|v2| v2.controllers.is_empty()) {
            found.v2 = None;
        }
        found.systemd = Path::new("/run/systemd/system").is_dir();
        Ok(found)
    }

    /// The v1 hierarchy of a controller.
    pub fn v1_of(&self, controller: &str) -> Option<usize> {
        self.v1.iter().position(|h| h.controllers.iter().any(|c| c == controller))
    }
}

/// One line of /proc/self/cgroup: controllers (none: the v2 line) and our path.
struct Own<'a> {
    controllers: &'a str,
    path: &'a str,
}

fn parse_own(text: &str) -> Vec<Own<'_>> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some(Own { controllers: fields.next()?, path: fields.next()? })
        })
        .collect()
}

fn words(text: &str, separator: impl Fn(char) -> bool) -> Vec<String> {
    text.split(separator).filter(|w| !w.is_empty()).map(str::to_owned).collect()
}

/// `path` below `mount`, if it is there and of the right kind.
fn at(mount: &Path, path: &str, kind: FsType) -> bool {
    cgroupfs::fs_type(&below(mount, path)).is_ok_and(|k| k == kind)
}

/// The directory of a cgroup: `path` starts with `/`.
pub fn below(mount: &Path, path: &str) -> PathBuf {
    let path = path.trim_start_matches('/');
    if path.is_empty() { mount.to_owned() } else { mount.join(path) }
}

fn usual_v2(root: &Path, own: &[Own<'_>]) -> Option<Hierarchies> {
    let line = own.iter().find(|o| o.controllers.is_empty())?;
    // Outside of our cgroup namespace the path starts with `/..`: then only absolute paths make sense.
    let path = if line.path.starts_with("/..") { "/" } else { line.path };
    at(root, path, FsType::CgroupV2).then(|| Hierarchies {
        v1: Vec::new(),
        v2: Some(V2 { mount: root.to_owned(), own: path.to_owned(), controllers: Vec::new() }),
        systemd: false,
    })
}

/// Every hierarchy in its usual place, or nothing.
fn usual_v1(root: &Path, own: &[Own<'_>]) -> Option<Hierarchies> {
    let mut found = Hierarchies::default();
    for line in own {
        if line.controllers.is_empty() {
            let mount = root.join("unified");
            if at(&mount, line.path, FsType::CgroupV2) {
                found.v2 = Some(V2 { mount, own: line.path.to_owned(), controllers: Vec::new() });
            }
            continue;
        }
        let directory = line.controllers.strip_prefix("name=").unwrap_or(line.controllers);
        let mount = root.join(directory);
        if !at(&mount, line.path, FsType::CgroupV1) {
            return None;
        }
        let controllers = words(line.controllers, |c| c == ',');
        found.v1.push(V1 { controllers, mount, own: line.path.to_owned() });
    }
    (!found.v1.is_empty()).then_some(found)
}

/// The hierarchies as mountinfo (proc(5)) shows them. A mount that shows only a part of its hierarchy
/// (its root field is not `/`) makes our own path relative to that part.
fn from_mountinfo(own: &[Own<'_>], mountinfo: &str) -> Hierarchies {
    let mut found = Hierarchies::default();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut right = right.split(' ');
        let (Some(kind), Some(options)) = (right.next(), right.nth(1)) else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let (Some(part), Some(mount)) = (left.get(3), left.get(4)) else { continue };
        let mount = PathBuf::from(unescape(mount));
        let part = unescape(part);
        let own_of = |names: &dyn Fn(&str) -> bool| -> Option<(String, &str)> {
            let line = own.iter().find(|o| names(o.controllers))?;
            let path = match part.as_str() {
                "/" => line.path,
                part => line.path.strip_prefix(part).unwrap_or("/"),
            };
            Some((if path.is_empty() { "/".to_owned() } else { path.to_owned() }, line.controllers))
        };
        if kind == "cgroup2" && found.v2.is_none() {
            if let Some((own, _)) = own_of(&|c| c.is_empty()) {
                found.v2 = Some(V2 { mount, own, controllers: Vec::new() });
            }
        } else if kind == "cgroup" {
            // The mount's options name the controllers, among rw, xattr, release_agent=…
            let listed = |c: &str| !c.is_empty() && c.split(',').all(|c| options.split(',').any(|o| o == c));
            let Some((own, names)) = own_of(&listed) else { continue };
            let controllers = words(names, |c| c == ',');
            if !found.v1.iter().any(|h| h.controllers == controllers) {
                found.v1.push(V1 { controllers, mount, own });
            }
        }
    }
    found
}

/// mountinfo writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v1(controllers: &[&str], mount: &str, own: &str) -> V1 {
        V1 {
            controllers: controllers.iter().map(|c| (*c).to_owned()).collect(),
            mount: mount.into(),
            own: own.into(),
        }
    }

    #[test]
    fn mountinfo_gives_mounts_and_own_paths() {
        let own = "9:name=systemd:/docker/x\n4:cpu,cpuacct:/docker/x\n3:memory:/other\n0::/docker/x\n";
        let mounts = "\
36 25 0:32 /docker/x /sys/fs/cgroup/systemd ro,nosuid master:11 - cgroup cgroup rw,xattr,name=systemd
37 25 0:33 /docker/x /cg\\040odd/cpu rw - cgroup cgroup rw,cpu,cpuacct
38 25 0:34 / /cg/memory rw - cgroup cgroup rw,memory
39 25 0:34 / /elsewhere rw - cgroup cgroup rw,memory
40 25 0:35 / /cg/unified rw - cgroup2 cgroup2 rw
41 25 0:36 / /tmp rw - tmpfs tmpfs rw,memory";
        let found = from_mountinfo(&parse_own(own), mounts);
        assert_eq!(
            found.v1,
            [
                v1(&["name=systemd"], "/sys/fs/cgroup/systemd", "/"),
                v1(&["cpu", "cpuacct"], "/cg odd/cpu", "/"),
                v1(&["memory"], "/cg/memory", "/other"),
            ]
        );
        let v2 = found.v2.unwrap();
        assert_eq!((v2.mount.as_path(), v2.own.as_str()), (Path::new("/cg/unified"), "/docker/x"));
    }

    #[test]
    fn usual_places_and_mountinfo_agree_on_this_host() {
        let own = cgroupfs::read(Path::new("/proc/self/cgroup")).unwrap();
        let mounts = cgroupfs::read(Path::new("/proc/self/mountinfo")).unwrap();
        let lines = parse_own(&own);
        let slow = from_mountinfo(&lines, &mounts);
        let fast = if slow.v1.is_empty() {
            usual_v2(Path::new(ROOT), &lines)
        } else {
            usual_v1(Path::new(ROOT), &lines)
        };
        let Some(fast) = fast else {
            println!("skipped: this host mounts its cgroups in other places");
            return;
        };
        for hierarchy in &fast.v1 {
            assert!(slow.v1.contains(hierarchy), "{hierarchy:?} not in {:?}", slow.v1);
        }
        assert_eq!(fast.v1.len(), slow.v1.len());
    }
}
