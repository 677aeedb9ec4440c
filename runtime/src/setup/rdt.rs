//! Puts a container into its resctrl group.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use report::{Explain, Kind};

use crate::plan::rdt::Rdt;

const RESCTRL: &str = "/sys/fs/resctrl";

/// What was made, innermost last: [`remove`] takes it.
pub type Made = Vec<PathBuf>;

/// Before anything is made: whether the host has resctrl, mounted.
pub fn check() -> Result<()> {
    check_at(Path::new(RESCTRL))
}

fn check_at(root: &Path) -> Result<()> {
    if root.join("schemata").exists() {
        return Ok(());
    }
    Err(anyhow!("linux.intelRdt: {}: no resctrl file system is mounted there", root.display()))
        .kind(Kind::Unsupported)
        .hint(|| format!("on a CPU and a kernel that have it: mount -t resctrl resctrl {}", root.display()))
}

/// The folders that [`enter`] will make: noted before it does.
pub fn will_make(rdt: &Rdt) -> Made {
    will_make_at(Path::new(RESCTRL), rdt)
}

fn will_make_at(root: &Path, rdt: &Rdt) -> Made {
    let group = root.join(&rdt.group);
    let mut made = Vec::new();
    if !rdt.named || (!rdt.group.is_empty() && !group.exists()) {
        made.push(group.clone());
    }
    if let Some(name) = &rdt.monitor {
        made.push(group.join("mon_groups").join(name));
    }
    made
}

/// Make the group, set its schemata, and put the process into it: its children will be in it, too.
pub fn enter(rdt: &Rdt, pid: i32) -> Result<()> {
    enter_at(Path::new(RESCTRL), rdt, pid).context("linux.intelRdt")
}

fn enter_at(root: &Path, rdt: &Rdt, pid: i32) -> Result<()> {
    let group = root.join(&rdt.group);
    let there = !make(&group)?;
    let wrote = |path: &Path| format!("write {}", path.display());
    let schemata = group.join("schemata");
    if there && rdt.named && !rdt.schemata.is_empty() {
        // "if the directory exists, the runtime MUST compare […] and generate an error if they differ".
        let now = fs::read_to_string(&schemata).with_context(|| format!("read {}", schemata.display()))?;
        if let Some(line) = rdt.schemata.iter().find(|wanted| !now.lines().any(|l| same(l, wanted))) {
            return Err(anyhow!("the group {} exists already and does not have {line:?}", group.display()))
                .kind(Kind::BadInput);
        }
    } else {
        if there && rdt.schemata.is_empty() && !rdt.named {
            return Err(anyhow!("the group {} exists already", group.display()));
        }
        if !there && rdt.named && rdt.schemata.is_empty() {
            return Err(anyhow!(
                "the group {} does not exist, and no schema says how to make it",
                group.display()
            ))
            .kind(Kind::BadInput);
        }
        for line in &rdt.schemata {
            fs::write(&schemata, format!("{line}\n"))
                .with_context(|| format!("{}: {line:?}", wrote(&schemata)))?;
        }
    }
    let mut tasks = vec![group.join("tasks")];
    if let Some(name) = &rdt.monitor {
        let monitor = group.join("mon_groups").join(name);
        make(&monitor)?;
        tasks.push(monitor.join("tasks"));
    }
    for file in tasks {
        fs::write(&file, pid.to_string()).with_context(|| wrote(&file))?;
    }
    Ok(())
}

/// Whether it was not there.
fn make(dir: &Path) -> Result<bool> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e).with_context(|| format!("make {}", dir.display())),
    }
}

/// The kernel pads resource names with blanks.
fn same(one: &str, other: &str) -> bool {
    let key = |s: &str| s.replace(' ', "");
    key(one) == key(other)
}

/// Remove the groups of a container that is gone.
pub fn remove(made: &[PathBuf]) -> Result<()> {
    for dir in made.iter().rev() {
        match fs::remove_dir(dir) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("linux.intelRdt: remove {}", dir.display())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ordinary folder stands in for resctrl; the kernel's part, files in new groups, is played by the test.
    fn folder(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("berth-rdt-{name}-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("schemata"), "    MB:0=100\n    L3:0=ffff\n").unwrap();
        root
    }

    fn rdt(group: &str, named: bool, schemata: &[&str]) -> Rdt {
        Rdt {
            group: group.to_owned(),
            named,
            schemata: schemata.iter().map(|s| (*s).to_owned()).collect(),
            monitor: None,
        }
    }

    #[test]
    fn makes_enters_and_removes() {
        let root = folder("makes");
        check_at(&root).unwrap();
        let plan = rdt("web", false, &["MB:0=20"]);
        let made = will_make_at(&root, &plan);
        assert_eq!(made, [root.join("web")]);
        enter_at(&root, &plan, 42).unwrap();
        assert_eq!(fs::read_to_string(root.join("web/schemata")).unwrap(), "MB:0=20\n");
        assert_eq!(fs::read_to_string(root.join("web/tasks")).unwrap(), "42");
        for file in ["web/schemata", "web/tasks"] {
            fs::remove_file(root.join(file)).unwrap();
        }
        remove(&made).unwrap();
        remove(&made).unwrap();
        assert!(!root.join("web").exists());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_named_group_is_used_as_it_is() {
        let root = folder("named");
        assert_eq!(will_make_at(&root, &rdt("", true, &[])), Vec::<PathBuf>::new());
        enter_at(&root, &rdt("", true, &["L3:0=ffff"]), 42).unwrap();
        assert_eq!(fs::read_to_string(root.join("tasks")).unwrap(), "42");
        let line = report::line(&enter_at(&root, &rdt("", true, &["L3:0=f"]), 42).unwrap_err());
        assert!(line.ends_with("exists already and does not have \"L3:0=f\""), "{line}");
        let line = report::line(&enter_at(&root, &rdt("gold", true, &[]), 42).unwrap_err());
        assert!(line.ends_with("does not exist, and no schema says how to make it"), "{line}");
        fs::remove_dir_all(&root).unwrap();
        let line = report::line(&check_at(&root).unwrap_err());
        assert!(line.ends_with(": no resctrl file system is mounted there"), "{line}");
    }
}
