//! What this host can do, asked once, and what cases may need of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub struct Host {
    pub root: bool,
    /// v1 controllers (and `name=…` hierarchies) → mount point.
    pub v1: BTreeMap<String, PathBuf>,
    /// The v2 hierarchy, wherever it is mounted.
    pub v2: Option<PathBuf>,
    v2_controllers: Vec<String>,
    own: [String; 3],
}

/// What a case cannot do without.
pub enum Need {
    Root,
    /// A v1 controller that is mounted.
    V1(&'static str),
    /// A file that this v1 controller has in a child cgroup.
    V1File(&'static str, &'static str),
    /// A host with nothing but v2, with this controller.
    V2(&'static str),
    /// A program in PATH.
    Program(&'static str),
    /// A file of the host.
    File(&'static str),
    /// A file that the host must not have.
    NoFile(&'static str),
    /// An effective capability of ours, by number.
    Cap(&'static str, u32),
}

impl Host {
    pub fn probe() -> Result<Host> {
        let mut v1 = BTreeMap::new();
        let mut v2 = None;
        let text = std::fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(point) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut fields = right.split(' ');
            match fields.next() {
                Some("cgroup") => {
                    for name in fields.nth(1).unwrap_or_default().split(',').filter(|o| !is_flag(o)) {
                        v1.entry(name.to_owned()).or_insert_with(|| point.clone());
                    }
                }
                Some("cgroup2") if v2.is_none() => v2 = Some(point),
                _ => {}
            }
        }
        let v2_controllers = v2
            .as_ref()
            .and_then(|p| std::fs::read_to_string(p.join("cgroup.controllers")).ok())
            .map(|t| t.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default();
        Ok(Host { root: rustix::process::geteuid().is_root(), v1, v2, v2_controllers, own: own() })
    }

    /// What a runtime has changed of the host itself, where it should have refused.
    pub fn changed(&self) -> Vec<String> {
        let now = own();
        let pairs = self.own.iter().zip(&now).filter(|(before, now)| before != now);
        pairs.map(|(before, now)| format!("the host's {before} is {now} now")).collect()
    }

    /// Only v2, as on a current distribution.
    pub fn is_v2(&self) -> bool {
        self.v1.is_empty() && self.v2.is_some()
    }

    /// Whether any hierarchy has this controller.
    pub fn has_controller(&self, name: &str) -> bool {
        self.v1.contains_key(name) || self.v2_controllers.iter().any(|c| c == name)
    }

    /// None, or why a case with this need is skipped.
    pub fn lacks(&self, need: &Need) -> Option<String> {
        if !self.root && !matches!(need, Need::Root) {
            return Some("needs root".to_owned());
        }
        let (there, what) = match need {
            Need::Root => (self.root, "root".to_owned()),
            Need::V1(name) => (self.v1.contains_key(*name), format!("cgroup v1 controller {name}")),
            Need::V1File(name, file) => {
                (self.v1_file(name, file), format!("{file} of cgroup v1 controller {name}"))
            }
            Need::V2(name) => (
                self.is_v2() && (name.is_empty() || self.v2_controllers.iter().any(|c| c == name)),
                format!("a cgroup v2 host with controller {name}")
                    .trim_end_matches(" with controller ")
                    .to_owned(),
            ),
            Need::Program(name) => (program(name).is_some(), format!("program {name}")),
            Need::File(path) => (Path::new(path).exists(), (*path).to_owned()),
            Need::NoFile(path) => (!Path::new(path).exists(), format!("a host without {path}")),
            Need::Cap(name, number) => (has_capability(*number), (*name).to_owned()),
        };
        (!there).then(|| format!("needs {what}"))
    }

    /// The files of a child cgroup are not all in the root cgroup, so ask a child.
    fn v1_file(&self, controller: &str, file: &str) -> bool {
        let Some(mount) = self.v1.get(controller) else { return false };
        if mount.join(file).exists() {
            return true;
        }
        let probe =
            mount.join(format!("conformance-{}-{:?}", std::process::id(), std::thread::current().id()));
        if std::fs::create_dir(&probe).is_err() {
            return false;
        }
        let there = probe.join(file).exists();
        std::fs::remove_dir(&probe).is_ok() && there
    }
}

fn is_flag(option: &&str) -> bool {
    matches!(
        *option,
        "rw" | "ro" | "xattr" | "noprefix" | "clone_children" | "cpuset_v2_mode" | "all" | "none"
    ) || option.starts_with("release_agent=")
}

/// Names that a runtime without a namespace of the container's might change: host, domain, loopback.
fn own() -> [String; 3] {
    let loopback = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten().find(|entry| {
        std::fs::read_to_string(entry.path().join("ifindex")).is_ok_and(|number| number.trim() == "1")
    });
    let uts = |name: &str| {
        let value = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
        format!("{name} {}", value.trim_end())
    };
    let loopback = loopback.map(|entry| entry.file_name().to_string_lossy().into_owned());
    [uts("hostname"), uts("domainname"), format!("loopback {}", loopback.unwrap_or_default())]
}

pub fn program(name: &str) -> Option<PathBuf> {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).map(|d| d.join(name)).find(|p| p.is_file())
}

fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap_or("0");
    u64::from_str_radix(line.trim(), 16).is_ok_and(|set| set & (1 << number) != 0)
}
