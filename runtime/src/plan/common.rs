//! What do all processes of a container share, those of `exec` too, beside namespaces and cgroups?
//! (config-linux.md: memoryPolicy, personality; the session keyring)

use anyhow::Result;
use oci_spec::runtime::{
    Linux, LinuxMemoryPolicy, LinuxPersonalityDomain, MemoryPolicyFlagType as Flag,
    MemoryPolicyModeType as Mode,
};
use report::at;
use serde::{Deserialize, Serialize};

use super::scheduling::list;

/// Kept in the state file, for `exec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Common {
    pub memory_policy: Option<MemoryPolicy>,
    /// `PER_*` of personality(2).
    pub personality: Option<u32>,
    /// The container has no session keyring of its own.
    pub no_new_keyring: bool,
}

/// set_mempolicy(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// `MPOL_*` with `MPOL_F_*`.
    pub mode: u32,
    /// Memory nodes, as bits.
    pub nodes: Vec<u64>,
}

/// More nodes than any kernel is built for.
const MOST_NODES: u64 = 1024;

/// What `linux` asks for.
pub fn plan(linux: Option<&Linux>, no_new_keyring: bool) -> Result<Common> {
    let Some(linux) = linux else { return Ok(Common { no_new_keyring, ..Common::default() }) };
    let personality = linux.personality().as_ref();
    if let Some(flag) = personality.and_then(|p| p.flags().as_ref()).and_then(|f| f.first()) {
        // config-linux.md, personality: "Currently no flag values are supported".
        return Err(at(
            "linux.personality.flags[0]",
            format!("unknown flag {flag:?}, the specification has none"),
        ));
    }
    Ok(Common {
        memory_policy: linux.memory_policy().as_ref().map(memory_policy).transpose()?,
        personality: personality.map(|p| match p.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => 8,
        }),
        no_new_keyring,
    })
}

fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<MemoryPolicy> {
    let number = match policy.mode() {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    };
    let text = policy.nodes().as_deref().filter(|t| !t.is_empty());
    let nodes = text
        .map_or(Ok(Vec::new()), |t| list(t, MOST_NODES))
        .map_err(|e| at("linux.memoryPolicy.nodes", e))?;
    // With MPOL_PREFERRED no nodes means the local one.
    match policy.mode() {
        Mode::MpolDefault | Mode::MpolLocal if text.is_some() => {
            return Err(at("linux.memoryPolicy.nodes", format!("must be empty with {}", policy.mode())));
        }
        Mode::MpolBind | Mode::MpolInterleave | Mode::MpolWeightedInterleave | Mode::MpolPreferredMany
            if text.is_none() =>
        {
            return Err(at(
                "linux.memoryPolicy.nodes",
                format!("missing, {} needs at least one", policy.mode()),
            ));
        }
        _ => {}
    }
    let mut mode = number;
    let list = policy.flags().as_deref().unwrap_or_default();
    for flag in list {
        mode |= match flag {
            Flag::MpolFNumaBalancing => 1 << 13,
            Flag::MpolFRelativeNodes => 1 << 14,
            Flag::MpolFStaticNodes => 1 << 15,
        };
    }
    if mode & (1 << 14 | 1 << 15) == 1 << 14 | 1 << 15 {
        return Err(at(
            "linux.memoryPolicy.flags",
            "MPOL_F_RELATIVE_NODES and MPOL_F_STATIC_NODES exclude each other",
        ));
    }
    if !list.is_empty() && matches!(policy.mode(), Mode::MpolDefault | Mode::MpolLocal) {
        return Err(at("linux.memoryPolicy.flags", format!("must be empty with {}", policy.mode())));
    }
    Ok(MemoryPolicy { mode, nodes })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn planned(linux: serde_json::Value) -> Result<Common> {
        plan(Some(&serde_json::from_value(linux).unwrap()), true)
    }

    #[test]
    fn policies() {
        let p = planned(
            json!({"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0-1", "flags": ["MPOL_F_STATIC_NODES"]},
            "personality": {"domain": "LINUX32"}}),
        )
        .unwrap();
        assert_eq!(p.memory_policy, Some(MemoryPolicy { mode: 2 | 1 << 15, nodes: vec![3] }));
        assert_eq!((p.personality, p.no_new_keyring), (Some(8), true));
        for (linux, message) in [
            (
                json!({"memoryPolicy": {"mode": "MPOL_DEFAULT", "nodes": "0"}}),
                "linux.memoryPolicy.nodes: must be empty with MPOL_DEFAULT",
            ),
            (
                json!({"memoryPolicy": {"mode": "MPOL_BIND"}}),
                "linux.memoryPolicy.nodes: missing, MPOL_BIND needs at least one",
            ),
            (
                json!({"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "x"}}),
                "linux.memoryPolicy.nodes: \"x\" is not a list of numbers and ranges like 0-3,7",
            ),
            (
                json!({"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}}),
                "linux.memoryPolicy.flags: MPOL_F_RELATIVE_NODES and MPOL_F_STATIC_NODES exclude each other",
            ),
            (
                json!({"memoryPolicy": {"mode": "MPOL_LOCAL", "flags": ["MPOL_F_STATIC_NODES"]}}),
                "linux.memoryPolicy.flags: must be empty with MPOL_LOCAL",
            ),
            (
                json!({"personality": {"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}}),
                "linux.personality.flags[0]: unknown flag \"ADDR_NO_RANDOMIZE\", the specification has none",
            ),
        ] {
            assert_eq!(report::line(&planned(linux).unwrap_err()), message);
        }
    }
}
