//! `features`: what does this runtime know? (runtime-spec, features.md and features-linux.md)

use anyhow::Result;
use serde::Serialize;

use super::Globals;
use crate::bundle::words;
use crate::plan::{mount_options, namespaces};

/// Print what this runtime implements, as JSON (runtime-spec 1.3, features.md).
///
/// It says what this program knows, whatever the kernel beneath it can do; `explain` compares a config with
/// this host.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  berth-runtime features | jq .linux.seccomp.archs")]
pub struct Args {}

pub fn run(_: &Globals, _: Args) -> Result<i32> {
    super::print_json(&features(), "    ")?;
    Ok(0)
}

/// The order of the fields is runc's.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Features {
    oci_version_min: &'static str,
    oci_version_max: &'static str,
    hooks: &'static [&'static str],
    mount_options: Vec<&'static str>,
    linux: Linux,
    annotations: Annotations,
    potentially_unsafe_config_annotations: &'static [&'static str],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    namespaces: Vec<&'static str>,
    capabilities: &'static [&'static str],
    cgroup: Cgroup,
    seccomp: Seccomp,
    apparmor: Enabled,
    selinux: Enabled,
    intel_rdt: IntelRdt,
    memory_policy: MemoryPolicy,
    mount_extensions: MountExtensions,
    net_devices: Enabled,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Cgroup {
    v1: bool,
    v2: bool,
    systemd: bool,
    systemd_user: bool,
    rdma: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Seccomp {
    enabled: bool,
    actions: &'static [&'static str],
    operators: &'static [&'static str],
    archs: &'static [&'static str],
    known_flags: &'static [&'static str],
    supported_flags: Vec<&'static str>,
}

#[derive(Serialize)]
struct Enabled {
    enabled: bool,
}

#[derive(Serialize)]
struct IntelRdt {
    enabled: bool,
    schemata: bool,
    monitoring: bool,
}

#[derive(Serialize)]
struct MemoryPolicy {
    modes: &'static [&'static str],
    flags: &'static [&'static str],
}

#[derive(Serialize)]
struct MountExtensions {
    idmap: Enabled,
}

#[derive(Serialize)]
struct Annotations {
    #[serde(rename = "dev.berth.runtime.version")]
    version: &'static str,
    /// The annotation `dev.berth.landlock` is understood.
    #[serde(rename = "dev.berth.landlock.enabled")]
    landlock: &'static str,
    /// What engines look at before they offer checkpoints.
    #[serde(rename = "org.opencontainers.runc.checkpoint.enabled")]
    checkpoint: &'static str,
}

fn features() -> Features {
    const YES: Enabled = Enabled { enabled: true };
    Features {
        oci_version_min: crate::bundle::VERSION_MIN,
        oci_version_max: crate::bundle::VERSION_MAX,
        hooks: words::HOOKS,
        mount_options: mount_options(),
        linux: Linux {
            namespaces: namespaces::TABLE.iter().map(|(name, ..)| *name).collect(),
            capabilities: words::CAPABILITIES,
            cgroup: Cgroup { v1: true, v2: true, systemd: true, systemd_user: true, rdma: true },
            seccomp: Seccomp {
                enabled: true,
                actions: words::SECCOMP_ACTIONS,
                operators: words::SECCOMP_OPERATORS,
                archs: words::SECCOMP_ARCHS,
                known_flags: words::SECCOMP_FLAGS,
                supported_flags: supported_flags(),
            },
            apparmor: YES,
            selinux: YES,
            intel_rdt: IntelRdt { enabled: true, schemata: true, monitoring: true },
            memory_policy: MemoryPolicy {
                modes: words::MEMORY_POLICY_MODES,
                flags: words::MEMORY_POLICY_FLAGS,
            },
            mount_extensions: MountExtensions { idmap: YES },
            net_devices: YES,
        },
        annotations: Annotations { version: env!("CARGO_PKG_VERSION"), landlock: "true", checkpoint: "true" },
        // Our own only takes rights away.
        potentially_unsafe_config_annotations: &[crate::criu::CONFIG_ANNOTATION],
    }
}

/// Sorted, as runc's.
fn mount_options() -> Vec<&'static str> {
    let mut words = mount_options::known();
    words.sort_unstable();
    words
}

/// features-linux.md: a subset of the known flags, "due to some flags not supported by the current kernel".
fn supported_flags() -> Vec<&'static str> {
    words::SECCOMP_FLAGS.iter().copied().filter(|flag| sys::kernel::has_seccomp_flag(flag)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_features_document() {
        let text = serde_json::to_string(&features()).unwrap();
        let parsed: oci_spec::runtime::Features = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed.oci_version_max(), "1.3.0");
        let linux = parsed.linux().as_ref().unwrap();
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), 8);
        assert_eq!(linux.seccomp().as_ref().unwrap().actions().as_ref().unwrap().len(), 9);
        assert_eq!(linux.net_devices().as_ref().unwrap().enabled(), &Some(true));
    }

    /// What is printed is what planning parses with.
    #[test]
    fn one_table_for_each_word() {
        assert_eq!(namespaces::TABLE.map(|(name, ..)| name), words::NAMESPACES);
        let options = mount_options();
        assert!(
            options.is_sorted() && options.contains(&"rro") && options.contains(&"tmpcopyup"),
            "{options:?}"
        );
    }
}
