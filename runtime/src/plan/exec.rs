//! What does `exec` add to what the container is? (runc's exec flags over the container's own process)

use anyhow::{Context, Result};
use oci_spec::runtime::Process;
use report::{Kind, error};

/// exec's flags.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub args: Vec<String>,
    pub cwd: Option<String>,
    pub env: Vec<String>,
    pub tty: bool,
    /// `UID[:GID]`.
    pub user: Option<String>,
    pub additional_gids: Vec<u32>,
    pub process_label: Option<String>,
    pub apparmor: Option<String>,
    pub no_new_privs: bool,
    pub caps: Vec<String>,
}

/// The process of `exec`: the container's own, changed by flags.
pub fn with_flags(base: &Process, flags: &Flags) -> Result<Process> {
    let mut p = base.clone();
    p.set_args(Some(flags.args.clone()));
    p.set_terminal(Some(flags.tty));
    if let Some(cwd) = &flags.cwd {
        p.set_cwd(cwd.into());
    }
    let mut env = base.env().clone().unwrap_or_default();
    env.extend(flags.env.iter().cloned());
    p.set_env(Some(env));
    if let Some(label) = &flags.process_label {
        p.set_selinux_label(Some(label.clone()));
    }
    if let Some(profile) = &flags.apparmor {
        p.set_apparmor_profile(Some(profile.clone()));
    }
    if flags.no_new_privs {
        p.set_no_new_privileges(Some(true));
    }
    if let Some(text) = &flags.user {
        let (uid, gid) = match text.split_once(':') {
            Some((uid, gid)) => (uid, Some(gid)),
            None => (text.as_str(), None),
        };
        let id = |s: &str| {
            // `parse` takes a sign, too.
            s.parse::<u32>()
                .ok()
                .filter(|_| s.bytes().all(|b| b.is_ascii_digit()))
                .ok_or_else(|| error(Kind::BadInput, format!("--user {text}: {s:?} is not a numeric id")))
        };
        let mut user = p.user().clone();
        user.set_uid(id(uid)?);
        if let Some(gid) = gid {
            user.set_gid(id(gid)?);
        }
        p.set_user(user);
    }
    if !flags.additional_gids.is_empty() {
        let mut user = p.user().clone();
        user.set_additional_gids(Some(flags.additional_gids.clone()));
        p.set_user(user);
    }
    if !flags.caps.is_empty() {
        let mut caps = p.capabilities().clone().unwrap_or_default();
        let mut extra = std::collections::HashSet::new();
        for name in &flags.caps {
            let cap = serde_json::from_value(name.to_uppercase().into())
                .with_context(|| format!("--cap {name}: not a capability"))?;
            extra.insert(cap);
        }
        let with = |set: &Option<std::collections::HashSet<_>>| {
            Some(set.iter().flatten().copied().chain(extra.iter().copied()).collect())
        };
        // As runc: the effective, permitted and bounding sets, and the ambient one where it was inheritable.
        caps.set_bounding(with(caps.bounding()));
        caps.set_effective(with(caps.effective()));
        caps.set_permitted(with(caps.permitted()));
        p.set_capabilities(Some(caps));
    }
    Ok(p)
}

/// The process of `exec --process`: what it leaves out is as in the container (as runc does).
pub fn with_defaults(base: Option<&Process>, mut p: Process) -> Process {
    let Some(base) = base else { return p };
    if p.capabilities().is_none() {
        p.set_capabilities(base.capabilities().clone());
    }
    if p.apparmor_profile().as_ref().is_none_or(String::is_empty) {
        p.set_apparmor_profile(base.apparmor_profile().clone());
    }
    if p.selinux_label().as_ref().is_none_or(String::is_empty) {
        p.set_selinux_label(base.selinux_label().clone());
    }
    if p.rlimits().as_ref().is_none_or(Vec::is_empty) {
        p.set_rlimits(base.rlimits().clone());
    }
    if p.oom_score_adj().is_none() {
        p.set_oom_score_adj(base.oom_score_adj());
    }
    if p.scheduler().is_none() {
        p.set_scheduler(base.scheduler().clone());
    }
    if p.io_priority().is_none() {
        p.set_io_priority(*base.io_priority());
    }
    p
}
