//! What does a profile say? Checked, its names looked up, its conditions in a form to compile.

use anyhow::Result;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator,
};
use report::at;

use super::arch::{self, Name};

/// A profile, ready to compile.
#[derive(Debug)]
pub struct Rules<'a> {
    /// The `SECCOMP_RET_*` value of calls without a rule.
    pub default: u32,
    pub architectures: &'a [Arch],
    pub entries: Vec<Entry>,
    /// Each known name with the entry that it stands in, in the profile's order.
    pub names: Vec<(Name, usize)>,
    /// Calls newer than all that the profile names get ENOSYS rather than the default, so that programs fall back
    /// to older ones. Not where the default is to let calls happen.
    pub hide_new: bool,
}

/// One element of `syscalls`.
#[derive(Debug)]
pub struct Entry {
    pub action: u32,
    /// It says what the default says: it is left out, and other rules for its calls remain.
    pub redundant: bool,
    /// Any of these (each: all of its conditions) makes the rule match. None: it always does.
    pub alternatives: Vec<Vec<Condition>>,
}

/// A comparison of one 64-bit argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    pub index: u32,
    pub compare: Compare,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    /// `argument & mask == value`; bits of the value outside the mask do not count.
    Masked {
        mask: u64,
        value: u64,
    },
}

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// The kernel's MAX_ERRNO: what SECCOMP_RET_ERRNO can return.
const MAX_ERRNO: u32 = 4095;

/// Check a profile and bring it into order.
pub fn read(profile: &LinuxSeccomp) -> Result<Rules<'_>> {
    let default_action = profile.default_action();
    if default_action == Action::ScmpActNotify {
        return Err(at("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY cannot be the default action"));
    }
    let default =
        action(default_action, profile.default_errno_ret(), || "linux.seccomp.defaultErrnoRet".to_owned())?;
    let permissive =
        matches!(default_action, Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace);
    let syscalls = profile.syscalls().as_deref().unwrap_or_default();
    let mut rules = Rules {
        default,
        architectures: profile.architectures().as_deref().unwrap_or_default(),
        entries: Vec::with_capacity(syscalls.len()),
        names: Vec::with_capacity(syscalls.iter().map(|s| s.names().len()).sum()),
        hide_new: !permissive && default != (0x0005_0000 | ENOSYS),
    };
    if syscalls.len() >= usize::from(u16::MAX) {
        return Err(at("linux.seccomp.syscalls", format!("{} rules are too many", syscalls.len())));
    }
    for (i, syscall) in syscalls.iter().enumerate() {
        let path = |part: &str| format!("linux.seccomp.syscalls[{i}].{part}");
        if syscall.names().is_empty() {
            return Err(at(path("names"), "names no system call"));
        }
        let value = action(syscall.action(), syscall.errno_ret(), || path("errnoRet"))?;
        for (j, text) in syscall.names().iter().enumerate() {
            if text.is_empty() {
                return Err(at(path(&format!("names[{j}]")), "empty name"));
            }
            if syscall.action() == Action::ScmpActNotify && text == "write" {
                return Err(at(
                    path(&format!("names[{j}]")),
                    "SCMP_ACT_NOTIFY cannot be used for write: handing over the listener needs it",
                ));
            }
            if let Some(name) = arch::name(text) {
                rules.names.push((name, i));
            } else {
                log::debug!("seccomp: unknown system call {text:?} ignored");
            }
        }
        let arguments = syscall.args().as_deref().unwrap_or_default();
        rules.entries.push(Entry {
            action: value,
            redundant: value == default,
            alternatives: alternatives(arguments, path)?,
        });
    }
    Ok(rules)
}

/// The `SECCOMP_RET_*` value of an action.
fn action(action: Action, errno: Option<u32>, path: impl Fn() -> String) -> Result<u32> {
    let (base, most) = match action {
        Action::ScmpActKill | Action::ScmpActKillThread => (0, None),
        Action::ScmpActKillProcess => (0x8000_0000, None),
        Action::ScmpActTrap => (0x0003_0000, None),
        Action::ScmpActErrno => (0x0005_0000, Some(MAX_ERRNO)),
        Action::ScmpActNotify => (0x7fc0_0000, None),
        Action::ScmpActTrace => (0x7ff0_0000, Some(0xffff)),
        Action::ScmpActLog => (0x7ffc_0000, None),
        Action::ScmpActAllow => (0x7fff_0000, None),
    };
    match (most, errno) {
        (None, None) => Ok(base),
        // config-linux.md, errnoRet: "when the action doesn't support an errno, the runtime MUST […] fail".
        (None, Some(_)) => Err(at(path(), format!("{action} takes no errno"))),
        (Some(most), Some(errno)) if errno > most => {
            Err(at(path(), format!("{errno} is out of range, 0 to {most} is allowed")))
        }
        (Some(_), errno) => Ok(base | errno.unwrap_or(EPERM)),
    }
}

/// The conditions of a rule are all to hold, unless two of them are about one argument: then, as with runc, each
/// condition is a rule of its own.
fn alternatives(arguments: &[LinuxSeccompArg], path: impl Fn(&str) -> String) -> Result<Vec<Vec<Condition>>> {
    let mut conditions = Vec::with_capacity(arguments.len());
    let (mut seen, mut twice) = (0_u32, false);
    for (j, argument) in arguments.iter().enumerate() {
        let index = argument.index();
        if index > 5 {
            return Err(at(
                path(&format!("args[{j}].index")),
                format!("{index} is out of range, 0 to 5 is allowed"),
            ));
        }
        twice |= seen & (1 << index) != 0;
        seen |= 1 << index;
        let value = argument.value();
        let compare = match argument.op() {
            LinuxSeccompOperator::ScmpCmpEq => Compare::Equal(value),
            LinuxSeccompOperator::ScmpCmpNe => Compare::NotEqual(value),
            LinuxSeccompOperator::ScmpCmpLt => Compare::Less(value),
            LinuxSeccompOperator::ScmpCmpLe => Compare::LessOrEqual(value),
            LinuxSeccompOperator::ScmpCmpGt => Compare::Greater(value),
            LinuxSeccompOperator::ScmpCmpGe => Compare::GreaterOrEqual(value),
            LinuxSeccompOperator::ScmpCmpMaskedEq => {
                Compare::Masked { mask: value, value: argument.value_two().unwrap_or(0) & value }
            }
        };
        conditions.push(Condition { index: index as u32, compare });
    }
    Ok(match (conditions.is_empty(), twice) {
        (true, _) => Vec::new(),
        (false, true) => conditions.into_iter().map(|c| vec![c]).collect(),
        (false, false) => vec![conditions],
    })
}
