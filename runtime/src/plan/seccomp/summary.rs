//! What would a person want to know of a profile? Per action, which calls, and how many only under conditions.

use anyhow::Result;
use oci_spec::runtime::LinuxSeccomp;
use serde::Serialize;

use super::{arch, rules};

/// A profile on this host, for `explain`.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    pub default_action: String,
    /// Interfaces that the filter knows; calls through any other kill the thread.
    pub architectures: Vec<String>,
    pub actions: Vec<ActionSummary>,
    /// Names that no architecture here knows; they are ignored.
    pub unknown: Vec<String>,
    pub flags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    pub instructions: usize,
}

/// The calls of one action.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ActionSummary {
    pub action: String,
    /// Always.
    pub names: Vec<String>,
    /// Depending on arguments.
    pub conditional: Vec<String>,
    pub conditions: usize,
}

/// Summarise a profile, in the order in which it first mentions each action.
pub fn summary(profile: &LinuxSeccomp) -> Result<Summary> {
    let filter = super::plan(profile)?;
    let rules = rules::read(profile)?;
    let mut out = Summary {
        default_action: describe(rules.default),
        architectures: Vec::new(),
        actions: Vec::new(),
        unknown: Vec::new(),
        flags: profile.flags().iter().flatten().map(ToString::to_string).collect(),
        listener: filter.as_ref().and_then(|f| f.listener.as_ref()).map(|l| l.path.display().to_string()),
        instructions: filter.map_or(0, |f| f.program.len()),
    };
    for (i, abi) in arch::native().abis.iter().enumerate() {
        if i == 0 || rules.architectures.contains(&abi.token) {
            out.architectures.push(abi.token.to_string());
        }
    }
    for (entry, syscall) in rules.entries.iter().zip(profile.syscalls().iter().flatten()) {
        let action = describe(entry.action);
        let i = out.actions.iter().position(|a| a.action == action).unwrap_or_else(|| {
            out.actions.push(ActionSummary {
                action: action.clone(),
                names: Vec::new(),
                conditional: Vec::new(),
                conditions: 0,
            });
            out.actions.len() - 1
        });
        for name in syscall.names() {
            let part = &mut out.actions[i];
            let list = match (arch::name(name), entry.alternatives.is_empty()) {
                (None, _) => &mut out.unknown,
                (Some(_), true) => &mut part.names,
                (Some(_), false) => {
                    part.conditions += entry.alternatives.iter().map(Vec::len).sum::<usize>();
                    &mut part.conditional
                }
            };
            if !list.contains(name) {
                list.push(name.clone());
            }
        }
    }
    Ok(out)
}

/// A `SECCOMP_RET_*` value in the profile's words.
fn describe(value: u32) -> String {
    let data = value & 0xffff;
    match value & 0xffff_0000 {
        0x8000_0000 => "SCMP_ACT_KILL_PROCESS".to_owned(),
        0x0003_0000 => "SCMP_ACT_TRAP".to_owned(),
        0x0005_0000 => format!("SCMP_ACT_ERRNO({data})"),
        0x7fc0_0000 => "SCMP_ACT_NOTIFY".to_owned(),
        0x7ff0_0000 => format!("SCMP_ACT_TRACE({data})"),
        0x7ffc_0000 => "SCMP_ACT_LOG".to_owned(),
        0x7fff_0000 => "SCMP_ACT_ALLOW".to_owned(),
        _ => "SCMP_ACT_KILL_THREAD".to_owned(),
    }
}
