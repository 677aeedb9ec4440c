//! Which limits, priorities and labels does a process get? (config.md, "process"; of `run` and of `exec`)

use anyhow::Result;
use oci_spec::runtime::{PosixRlimitType, Process};
use report::at;

use super::scheduling::{self, Scheduling};

/// What is set on a process beside its credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub rlimits: Vec<Rlimit>,
    pub oom_score_adj: Option<i32>,
    pub scheduling: Scheduling,
    /// The AppArmor profile and the SELinux label that its program starts with.
    pub apparmor: Option<String>,
    pub selinux: Option<String>,
}

/// An element of `process.rlimits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_*` of setrlimit(2).
    pub resource: u32,
    pub name: &'static str,
    pub soft: u64,
    pub hard: u64,
    /// Its place in the list.
    pub index: usize,
}

/// What `process` asks for.
pub fn plan(process: &Process) -> Result<Attributes> {
    let text = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
    for (name, value) in
        [("apparmorProfile", process.apparmor_profile()), ("selinuxLabel", process.selinux_label())]
    {
        if value.as_ref().is_some_and(|v| v.contains(['\0', '\n'])) {
            return Err(at(format_args!("process.{name}"), "has a line end or a NUL byte in it"));
        }
    }
    let oom_score_adj = process.oom_score_adj();
    if let Some(score) = oom_score_adj.filter(|s| !(-1000..=1000).contains(s)) {
        return Err(at("process.oomScoreAdj", format!("{score} is out of range, -1000 to 1000 is allowed")));
    }
    Ok(Attributes {
        rlimits: rlimits(process)?,
        oom_score_adj,
        scheduling: scheduling::plan(process)?,
        apparmor: text(process.apparmor_profile()),
        selinux: text(process.selinux_label()),
    })
}

fn rlimits(process: &Process) -> Result<Vec<Rlimit>> {
    let list = process.rlimits().as_deref().unwrap_or_default();
    let mut out: Vec<Rlimit> = Vec::with_capacity(list.len());
    for (index, limit) in list.iter().enumerate() {
        let (name, resource) = resource(limit.typ());
        let (soft, hard) = (limit.soft(), limit.hard());
        if out.iter().any(|l| l.resource == resource) {
            return Err(at(format_args!("process.rlimits[{index}].type"), format!("{name} is given twice")));
        }
        if soft > hard {
            return Err(at(
                format_args!("process.rlimits[{index}].soft"),
                format!("{soft} is more than the hard limit, {hard}"),
            ));
        }
        out.push(Rlimit { resource, name, soft, hard, index });
    }
    Ok(out)
}

/// asm-generic/resource.h. MIPS has an order of its own.
fn resource(kind: PosixRlimitType) -> (&'static str, u32) {
    let mips = cfg!(any(target_arch = "mips", target_arch = "mips64"));
    let order = |generic, own| if mips { own } else { generic };
    match kind {
        PosixRlimitType::RlimitCpu => ("RLIMIT_CPU", 0),
        PosixRlimitType::RlimitFsize => ("RLIMIT_FSIZE", 1),
        PosixRlimitType::RlimitData => ("RLIMIT_DATA", 2),
        PosixRlimitType::RlimitStack => ("RLIMIT_STACK", 3),
        PosixRlimitType::RlimitCore => ("RLIMIT_CORE", 4),
        PosixRlimitType::RlimitRss => ("RLIMIT_RSS", order(5, 7)),
        PosixRlimitType::RlimitNproc => ("RLIMIT_NPROC", order(6, 8)),
        PosixRlimitType::RlimitNofile => ("RLIMIT_NOFILE", order(7, 5)),
        PosixRlimitType::RlimitMemlock => ("RLIMIT_MEMLOCK", order(8, 9)),
        PosixRlimitType::RlimitAs => ("RLIMIT_AS", order(9, 6)),
        PosixRlimitType::RlimitLocks => ("RLIMIT_LOCKS", 10),
        PosixRlimitType::RlimitSigpending => ("RLIMIT_SIGPENDING", 11),
        PosixRlimitType::RlimitMsgqueue => ("RLIMIT_MSGQUEUE", 12),
        PosixRlimitType::RlimitNice => ("RLIMIT_NICE", 13),
        PosixRlimitType::RlimitRtprio => ("RLIMIT_RTPRIO", 14),
        PosixRlimitType::RlimitRttime => ("RLIMIT_RTTIME", 15),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn planned(extra: serde_json::Value) -> Result<Attributes> {
        let mut process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/"});
        for (key, value) in extra.as_object().unwrap() {
            process[key] = value.clone();
        }
        plan(&serde_json::from_value(process).unwrap())
    }

    #[test]
    fn limits_by_number() {
        let limit = |name, soft, hard| json!({"type": name, "soft": soft, "hard": hard});
        let p = planned(json!({"rlimits": [limit("RLIMIT_NOFILE", 10, 20), limit("RLIMIT_RTTIME", 0, 0)],
            "oomScoreAdj": -5, "apparmorProfile": "p", "selinuxLabel": ""}))
        .unwrap();
        let got: Vec<_> = p.rlimits.iter().map(|l| (l.name, l.resource, l.soft, l.hard)).collect();
        assert_eq!(
            got,
            [("RLIMIT_NOFILE", libc::RLIMIT_NOFILE, 10, 20), ("RLIMIT_RTTIME", libc::RLIMIT_RTTIME, 0, 0)]
        );
        assert_eq!((p.oom_score_adj, p.apparmor.as_deref(), p.selinux), (Some(-5), Some("p"), None));
        for (rlimits, message) in [
            (json!([limit("RLIMIT_AS", 2, 1)]), "process.rlimits[0].soft: 2 is more than the hard limit, 1"),
            (
                json!([limit("RLIMIT_AS", 1, 1), limit("RLIMIT_AS", 1, 1)]),
                "process.rlimits[1].type: RLIMIT_AS is given twice",
            ),
        ] {
            assert_eq!(report::line(&planned(json!({"rlimits": rlimits})).unwrap_err()), message);
        }
        assert_eq!(
            report::line(&planned(json!({"oomScoreAdj": 1001})).unwrap_err()),
            "process.oomScoreAdj: 1001 is out of range, -1000 to 1000 is allowed"
        );
        assert_eq!(
            report::line(&planned(json!({"apparmorProfile": "a\nb"})).unwrap_err()),
            "process.apparmorProfile: has a line end or a NUL byte in it"
        );
    }
}
