//! Where do the container's cgroups go? (`linux.cgroupsPath`)
//!
//! ```text
//! cgroupfs  /a/b                below the mount point of each hierarchy
//!           a/b                 v1: below our own cgroup; v2: beside it, since a cgroup with processes
//!                               in it may not hand controllers to children
//!           absent              root: /<id>; others: as the relative path <id>
//! systemd   slice:prefix:name   the scope prefix-name.scope in slice; absent: `:berth:<id>`
//! ```

use anyhow::Result;
use oci_spec::runtime::Spec;
use report::Kind;

use super::{CgroupPlan, Driver, Scope, V1Dir, V2Dir, properties};
use crate::cgroup::host::Hierarchies;
use crate::host::Host;
use crate::plan::Options;

const SOURCE: &str = "linux.cgroupsPath";

/// The plan's directories.
pub(super) fn place(spec: &Spec, options: &Options, host: &Host) -> Result<CgroupPlan> {
    let given = spec.linux().as_ref().and_then(|l| l.cgroups_path().as_ref());
    let given = match given {
        Some(path) => match path.to_str() {
            Some("") => None,
            Some(path) => Some(path),
            None => return Err(report::at(SOURCE, "is not UTF-8")),
        },
        None => None,
    };
    if !options.systemd_cgroup {
        return cgroupfs(given, options, host);
    }
    let mut plan = systemd(given, options, host)?;
    if let Driver::Systemd(scope) = &mut plan.driver {
        scope.properties = properties::properties(spec.annotations().as_ref())?;
    }
    Ok(plan)
}

fn cgroupfs(given: Option<&str>, options: &Options, host: &Host) -> Result<CgroupPlan> {
    let path = match given {
        Some(path) => clean(path)?,
        None if host.rootless => options.id.clone(),
        None => format!("/{}", options.id),
    };
    Ok(directories(&host.cgroup, Driver::Cgroupfs, |own, v2| match path.strip_prefix('/') {
        Some(_) => path.clone(),
        None => join(if v2 { parent(own) } else { own }, &path),
    }))
}

/// Without empty parts and `.`; `..` and nothing at all are refused.
fn clean(path: &str) -> Result<String> {
    let mut out = String::with_capacity(path.len());
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return Err(report::at(SOURCE, format!("{path:?} has \"..\"")));
        }
        if part.contains(['\0', '\n']) {
            return Err(report::at(SOURCE, format!("{path:?} has a newline or a zero byte")));
        }
        if !out.is_empty() || path.starts_with('/') {
            out.push('/');
        }
        out.push_str(part);
    }
    if out.is_empty() {
        return Err(report::at(
            SOURCE,
            format!("{path:?} names the root cgroup, which no container can have"),
        ));
    }
    Ok(out)
}

fn join(base: &str, path: &str) -> String {
    format!("{}/{path}", base.trim_end_matches('/'))
}

fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &path[..at],
    }
}

fn directories(host: &Hierarchies, driver: Driver, path: impl Fn(&str, bool) -> String) -> CgroupPlan {
    let mut v1: Vec<V1Dir> = host
        .v1
        .iter()
        .map(|h| V1Dir {
            controllers: h.controllers.clone(),
            mount: h.mount.clone(),
            path: path(&h.own, false),
        })
        .collect();
    if let Some(freezer) = v1.iter().position(|h| h.controllers.iter().any(|c| c == "freezer")) {
        v1.swap(0, freezer);
    }
    let v2 = host.v2.as_ref().map(|v2| V2Dir {
        mount: v2.mount.clone(),
        path: path(&v2.own, true),
        controllers: v2.controllers.clone(),
    });
    CgroupPlan { driver, v1, v2, ..CgroupPlan::default() }
}

fn systemd(given: Option<&str>, options: &Options, host: &Host) -> Result<CgroupPlan> {
    if !host.cgroup.systemd {
        return Err(report::error(
            Kind::Unsupported,
            "--systemd-cgroup: systemd does not run on this host (/run/systemd/system is missing)",
        ));
    }
    let wrong = |found: &str, why: &str| {
        report::at(SOURCE, format!("{found:?} {why}; with --systemd-cgroup it is \"slice:prefix:name\""))
    };
    let (slice, prefix, name) = match given {
        None => ("", "berth", options.id.as_str()),
        Some(given) => match given.split(':').collect::<Vec<_>>()[..] {
            [slice, prefix, name] => (slice, prefix, name),
            _ => return Err(wrong(given, "does not have three parts")),
        },
    };
    let given = given.unwrap_or_default();
    let slice = match slice {
        "" if host.rootless => "user.slice",
        "" => "system.slice",
        slice => slice,
    };
    if name.is_empty() {
        return Err(wrong(given, "has no name"));
    }
    if [prefix, name].iter().any(|part| part.contains('/') || part.contains(char::is_control)) {
        return Err(wrong(given, "has a character that no unit's name may have"));
    }
    let slice_path = slice_path(slice).ok_or_else(|| wrong(given, "names no valid slice"))?;
    let unit = match (name.ends_with(".slice"), prefix) {
        (true, _) => name.to_owned(),
        (false, "") => format!("{name}.scope"),
        (false, prefix) => format!("{prefix}-{name}.scope"),
    };
    let own = host.cgroup.v2.as_ref().map_or("/", |v2| v2.own.as_str());
    let manager = if host.rootless { manager(own, host.euid) } else { String::new() };
    let unit_path = match unit.ends_with(".slice") {
        true => self::slice_path(&unit).ok_or_else(|| wrong(given, "names no valid slice"))?,
        false => join(&slice_path, &unit),
    };
    let path = format!("{manager}{unit_path}");
    let scope = Scope { unit, slice: slice.to_owned(), user: host.rootless, properties: Vec::new() };
    Ok(directories(&host.cgroup, Driver::Systemd(scope), |_, _| path.clone()))
}

/// The cgroup of the user's systemd. In a user namespace our user id may be 0: our own cgroup tells whose we are.
fn manager(own: &str, euid: u32) -> String {
    let uid =
        own.split('/').find_map(|part| part.strip_prefix("user-")?.strip_suffix(".slice")?.parse().ok());
    let uid: u32 = uid.unwrap_or(euid);
    format!("/user.slice/user-{uid}.slice/user@{uid}.service")
}

/// systemd nests slices by the dashes in their names: `a-b.slice` is `/a.slice/a-b.slice` (systemd.slice(5)).
fn slice_path(slice: &str) -> Option<String> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some("/".to_owned());
    }
    if name.is_empty() || name.contains('/') || name.contains("..") {
        return None;
    }
    let mut out = String::new();
    for (at, _) in name.match_indices('-').chain([(name.len(), "")]) {
        if name[..at].is_empty() || name[..at].ends_with('-') {
            return None;
        }
        out.push('/');
        out.push_str(&name[..at]);
        out.push_str(".slice");
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use oci_spec::runtime::{LinuxBuilder, SpecBuilder};

    use super::*;
    use crate::cgroup::host::{V1, V2};

    fn host(v2: bool, rootless: bool, own: &str) -> Host {
        let v1 = |name: &str| V1 {
            controllers: name.split(',').map(str::to_owned).collect(),
            mount: PathBuf::from("/sys/fs/cgroup").join(name.trim_start_matches("name=")),
            own: own.to_owned(),
        };
        let cgroup = if v2 {
            let controllers = vec!["memory".to_owned()];
            Hierarchies {
                v1: Vec::new(),
                v2: Some(V2 { mount: "/sys/fs/cgroup".into(), own: own.to_owned(), controllers }),
                systemd: true,
            }
        } else {
            Hierarchies {
                v1: ["name=systemd", "cpu,cpuacct", "freezer"].map(v1).into(),
                v2: None,
                systemd: true,
            }
        };
        let id = if rootless { 1000 } else { 0 };
        Host { euid: id, egid: id, rootless, cgroup_optional: rootless, cgroup, capabilities: u64::MAX }
    }

    fn paths(
        given: Option<&str>,
        systemd: bool,
        host: &Host,
    ) -> Result<(Option<Scope>, Vec<String>), String> {
        let linux = LinuxBuilder::default();
        let linux = match given {
            Some(path) => linux.cgroups_path(path),
            None => linux,
        };
        let mut linux = linux.build().unwrap();
        if given.is_none() {
            linux.set_cgroups_path(None);
        }
        let spec = SpecBuilder::default().linux(linux).build().unwrap();
        let options = Options { id: "web".to_owned(), systemd_cgroup: systemd, ..Options::default() };
        let plan = place(&spec, &options, host).map_err(|e| report::line(&e))?;
        let mut out: Vec<String> = plan.v1.iter().map(|d| d.host().display().to_string()).collect();
        out.extend(plan.v2.map(|d| d.host().display().to_string()));
        let scope = match plan.driver {
            Driver::Systemd(scope) => Some(scope),
            Driver::Cgroupfs => None,
        };
        Ok((scope, out))
    }

    #[test]
    fn cgroupfs_paths() {
        let v2 = |given, rootless, own| paths(given, false, &host(true, rootless, own)).map(|p| p.1.concat());
        let ok = |path: &str| Ok(format!("/sys/fs/cgroup{path}"));
        assert_eq!(v2(Some("/a//b/./c/"), false, "/own"), ok("/a/b/c"));
        assert_eq!(v2(Some("a/b"), false, "/own/deep"), ok("/own/a/b"));
        assert_eq!(v2(Some("a"), false, "/"), ok("/a"));
        assert_eq!(v2(None, false, "/own/deep"), ok("/web"));
        assert_eq!(v2(Some(""), false, "/own/deep"), ok("/web"));
        assert_eq!(v2(None, true, "/user.slice/session"), ok("/user.slice/web"));
        for (wrong, why) in [
            ("/a/../b", "\"/a/../b\" has \"..\""),
            ("..", "\"..\" has \"..\""),
            ("/", "\"/\" names the root cgroup, which no container can have"),
            ("./.", "\"./.\" names the root cgroup, which no container can have"),
        ] {
            assert_eq!(v2(Some(wrong), false, "/"), Err(format!("linux.cgroupsPath: {why}")));
        }
    }

    #[test]
    fn v1_has_the_freezer_first_and_relative_paths_below_our_own() {
        let (_, dirs) = paths(Some("x"), false, &host(false, false, "/own")).unwrap();
        assert_eq!(
            dirs,
            [
                "/sys/fs/cgroup/freezer/own/x",
                "/sys/fs/cgroup/cpu,cpuacct/own/x",
                "/sys/fs/cgroup/systemd/own/x"
            ]
        );
    }

    #[test]
    fn systemd_scopes() {
        let scope = |given, rootless| {
            paths(given, true, &host(true, rootless, "/")).map(|(scope, dirs)| {
                let scope = scope.unwrap();
                (scope.unit, scope.slice, dirs.concat().trim_start_matches("/sys/fs/cgroup").to_owned())
            })
        };
        let ok =
            |unit: &str, slice: &str, path: &str| Ok((unit.to_owned(), slice.to_owned(), path.to_owned()));
        assert_eq!(
            scope(None, false),
            ok("berth-web.scope", "system.slice", "/system.slice/berth-web.scope")
        );
        assert_eq!(
            scope(Some("machine-a.slice:libpod:42"), false),
            ok("libpod-42.scope", "machine-a.slice", "/machine.slice/machine-a.slice/libpod-42.scope")
        );
        assert_eq!(scope(Some("-.slice::n"), false), ok("n.scope", "-.slice", "/n.scope"));
        assert_eq!(scope(Some(":p:k-n.slice"), false), ok("k-n.slice", "system.slice", "/k.slice/k-n.slice"));
        assert_eq!(
            scope(Some(":p:n"), true),
            ok(
                "p-n.scope",
                "user.slice",
                "/user.slice/user-1000.slice/user@1000.service/user.slice/p-n.scope"
            )
        );
        assert_eq!(manager("/user.slice/user-7.slice/session-1.scope", 0), manager("/", 7));
        for (wrong, why) in [
            ("/a/b", "does not have three parts"),
            ("a.slice:b:", "has no name"),
            ("a:b:c", "names no valid slice"),
            ("a--b.slice:b:c", "names no valid slice"),
            ("x/../y.slice:b:c", "names no valid slice"),
            ("a.slice:b:../c", "has a character that no unit's name may have"),
        ] {
            let e = format!(
                "linux.cgroupsPath: {wrong:?} {why}; with --systemd-cgroup it is \"slice:prefix:name\""
            );
            assert_eq!(scope(Some(wrong), false), Err(e));
        }
    }

    #[test]
    fn systemd_must_run() {
        let mut host = host(true, false, "/");
        host.cgroup.systemd = false;
        assert!(paths(None, true, &host).unwrap_err().starts_with("--systemd-cgroup: systemd does not run"));
    }
}
