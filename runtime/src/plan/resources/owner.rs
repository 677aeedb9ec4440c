//! Whom does the container's v2 cgroup belong to? (config-linux.md, "Cgroup ownership")

use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

/// The host's uid that the container's process will have, if it may manage its own cgroup: with a cgroup namespace
/// of its own and a writable cgroup mount. None where it is root's anyway.
pub(super) fn owner(spec: &Spec) -> Option<u32> {
    let linux = spec.linux().as_ref()?;
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let find = |kind| namespaces.iter().find(|n| n.typ() == kind);
    if find(LinuxNamespaceType::Cgroup)?.path().is_some() {
        return None;
    }
    let writable = spec.mounts().iter().flatten().any(|mount| {
        mount.source().as_deref() == Some(Path::new("cgroup"))
            && mount.destination() == Path::new("/sys/fs/cgroup")
            && !mount.options().iter().flatten().any(|option| option == "ro")
    });
    if !writable {
        return None;
    }
    let uid = spec.process().as_ref()?.user().uid();
    let host = match find(LinuxNamespaceType::User) {
        None => uid,
        // Whose ids a joined namespace maps, its creator knows.
        Some(joined) if joined.path().is_some() => return None,
        Some(_) => linux.uid_mappings().iter().flatten().find_map(|map| {
            let offset = uid.checked_sub(map.container_id()).filter(|offset| *offset < map.size())?;
            map.host_id().checked_add(offset)
        })?,
    };
    (host != 0).then_some(host)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(uid: u32, namespaces: Value, options: &[&str]) -> Spec {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 10}]);
        let mount = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options});
        serde_json::from_value(json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": uid, "gid": 0}, "cwd": "/", "args": ["x"]},
            "mounts": [mount],
            "linux": {"namespaces": namespaces, "uidMappings": map}
        }))
        .unwrap()
    }

    #[test]
    fn the_container_user_owns_its_cgroup_where_it_can_use_it() {
        let cgroup = json!([{"type": "cgroup"}]);
        let both = json!([{"type": "cgroup"}, {"type": "user"}]);
        let table = [
            ("root of a user namespace", spec(0, both.clone(), &["nosuid"]), Some(100_000)),
            ("another user there", spec(7, both.clone(), &[]), Some(100_007)),
            ("a user without mapping", spec(10, both.clone(), &[]), None),
            ("read-only mount", spec(0, both, &["nosuid", "ro"]), None),
            ("no user namespace", spec(1000, cgroup.clone(), &[]), Some(1000)),
            ("root itself", spec(0, cgroup, &[]), None),
            ("no cgroup namespace", spec(1000, json!([]), &[]), None),
            ("a joined one", spec(1000, json!([{"type": "cgroup", "path": "/x"}]), &[]), None),
            (
                "a joined user namespace",
                spec(1, json!([{"type": "cgroup"}, {"type": "user", "path": "/x"}]), &[]),
                None,
            ),
        ];
        for (name, spec, want) in table {
            assert_eq!(owner(&spec), want, "{name}");
        }
    }
}
