//! Which kernel parameters are set? Those of the container's own namespaces, and no other. (config-linux.md, "Sysctl")

use std::collections::HashMap;

use anyhow::Result;
use report::at;
use sys::process::flags;

use super::namespaces::Namespaces;

/// A parameter and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Below /proc/sys, like `net/ipv4/ip_forward`.
    pub path: String,
    pub value: String,
    /// As the config has it.
    pub key: String,
    /// The clone flag of the namespace that it belongs to.
    pub namespace: u64,
}

/// Parameters of the ipc namespace outside of fs.mqueue.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Check every parameter; sorted by path, so that errors do not depend on chance.
pub fn plan(sysctl: Option<&HashMap<String, String>>, namespaces: &Namespaces) -> Result<Vec<Sysctl>> {
    let mut out = Vec::new();
    for (key, value) in sysctl.into_iter().flatten() {
        out.push(Sysctl { path: path(key), value: value.clone(), key: key.clone(), namespace: 0 });
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    for i in 0..out.len() {
        let wrong = |e| at(format_args!("linux.sysctl[{:?}]", out[i].key), e);
        let namespace = namespace(&out[i], namespaces).map_err(wrong)?;
        if i > 0 && out[i - 1].path == out[i].path {
            return Err(wrong(format!("the same as {:?}", out[i - 1].key)));
        }
        out[i].namespace = namespace;
    }
    Ok(out)
}

/// sysctl(8): the first separator tells whether dots or slashes separate; the other one is then part of a name
/// (`net.ipv4.conf.eth0/100.forwarding`).
fn path(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(i) if key.as_bytes()[i] == b'.' => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => key.to_owned(),
    }
}

/// The namespace that a parameter belongs to, which must be the container's.
fn namespace(sysctl: &Sysctl, namespaces: &Namespaces) -> Result<u64, String> {
    let path = &sysctl.path;
    if path.is_empty() || path.contains('\0') || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("not the name of a kernel parameter".to_owned());
    }
    if path == "kernel/hostname" {
        return Err("set hostname instead".to_owned());
    }
    let (flag, name) = if path.starts_with("net/") {
        (flags::NEWNET, "network")
    } else if path.starts_with("fs/mqueue/") || IPC.contains(&path.as_str()) {
        (flags::NEWIPC, "ipc")
    } else if path == "kernel/domainname" {
        (flags::NEWUTS, "uts")
    } else {
        return Err("not namespaced: it would change the host (allowed: net.*, fs.mqueue.*, kernel.msg*, kernel.sem, kernel.shm*, kernel.domainname)".to_owned());
    };
    if namespaces.has(flag) {
        Ok(flag)
    } else {
        Err(format!("needs a new or joined {name} namespace in linux.namespaces: it would change the host"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(key: &str, new: u64) -> Result<String> {
        let map = HashMap::from([(key.to_owned(), "1".to_owned())]);
        plan(Some(&map), &Namespaces { new, ..Namespaces::default() }).map(|mut list| list.remove(0).path)
    }

    #[test]
    fn names() {
        for (key, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
            ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
            ("kernel.shmmax", "kernel/shmmax"),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
            ("kernel.domainname", "kernel/domainname"),
        ] {
            assert_eq!(planned(key, u64::MAX).unwrap(), path);
        }
    }

    #[test]
    fn only_what_is_namespaced() {
        for (key, new, message) in [
            ("kernel.panic", u64::MAX, "not namespaced"),
            ("kernel.shmmaxx", u64::MAX, "not namespaced"),
            ("vm.swappiness", u64::MAX, "not namespaced"),
            ("net", u64::MAX, "not namespaced"),
            ("kernel.core_pattern", u64::MAX, "not namespaced"),
            ("net.ipv4.ip_forward", flags::NEWIPC, "needs a new or joined network namespace"),
            ("kernel.sem", flags::NEWNET, "needs a new or joined ipc namespace"),
            ("fs.mqueue.msg_max", 0, "needs a new or joined ipc namespace"),
            ("kernel.domainname", 0, "needs a new or joined uts namespace"),
            ("kernel.hostname", u64::MAX, "set hostname instead"),
            ("net/../kernel/panic", u64::MAX, "not the name of a kernel parameter"),
            ("net.ipv4.//.//.kernel.panic", u64::MAX, "not the name of a kernel parameter"),
            ("net//ipv4", u64::MAX, "not the name of a kernel parameter"),
            ("/net/ipv4", u64::MAX, "not the name of a kernel parameter"),
            ("", u64::MAX, "not the name of a kernel parameter"),
        ] {
            let line = report::line(&planned(key, new).unwrap_err());
            assert!(line.starts_with(&format!("linux.sysctl[{key:?}]: {message}")), "{line}");
        }
        let twice =
            HashMap::from([("net.a.b".to_owned(), String::new()), ("net/a/b".to_owned(), String::new())]);
        let all = Namespaces { new: u64::MAX, ..Namespaces::default() };
        assert!(report::line(&plan(Some(&twice), &all).unwrap_err()).contains(": the same as \"net"));
    }
}
