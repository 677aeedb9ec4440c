//! On which CPUs does a process run, and how urgently? (config.md: scheduler, ioPriority, execCPUAffinity)

use anyhow::Result;
use oci_spec::runtime::{IOPriorityClass, LinuxSchedulerFlag, LinuxSchedulerPolicy, Process, Scheduler};
use report::at;
use sys::sched::{Attributes as Sched, IoPriority};

/// Scheduling of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scheduling {
    pub scheduler: Option<Sched>,
    pub io_priority: Option<IoPriority>,
    /// CPUs of a process of `exec`, before it enters the container's cgroup and after.
    pub exec_initial: Option<Vec<u64>>,
    pub exec_final: Option<Vec<u64>>,
}

/// More CPUs than any kernel is built for.
const MOST_CPUS: u64 = 65_536;

/// What `process` asks for.
pub fn plan(process: &Process) -> Result<Scheduling> {
    let mut out = Scheduling {
        scheduler: process.scheduler().as_ref().map(scheduler).transpose()?,
        ..Scheduling::default()
    };
    if let Some(io) = process.io_priority() {
        let level = io.priority();
        if !(0..=7).contains(&level) {
            return Err(at(
                "process.ioPriority.priority",
                format!("{level} is out of range, 0 to 7 is allowed"),
            ));
        }
        let class = match io.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        out.io_priority = Some(IoPriority { class, level: level as u8 });
    }
    if let Some(affinity) = process.exec_cpu_affinity() {
        let cpus = |name: &str, text: &Option<String>| {
            let text = text.as_deref().filter(|t| !t.is_empty());
            text.map(|t| {
                list(t, MOST_CPUS).map_err(|e| at(format_args!("process.execCPUAffinity.{name}"), e))
            })
            .transpose()
        };
        out.exec_initial = cpus("initial", affinity.initial())?;
        out.exec_final = cpus("final", affinity.cpu_affinity_final())?;
    }
    Ok(out)
}

/// sched(7); the kernel would answer most mistakes with EINVAL and ignore some.
fn scheduler(s: &Scheduler) -> Result<Sched> {
    use LinuxSchedulerPolicy as Policy;
    let policy = *s.policy();
    let (nice, priority) = (s.nice().unwrap_or(0), s.priority().unwrap_or(0));
    let (runtime, deadline, period) =
        (s.runtime().unwrap_or(0), s.deadline().unwrap_or(0), s.period().unwrap_or(0));
    let wrong = |field: &str, message: String| Err(at(format_args!("process.scheduler.{field}"), message));
    let number = match policy {
        Policy::SchedOther => 0,
        Policy::SchedFifo => 1,
        Policy::SchedRr => 2,
        Policy::SchedBatch => 3,
        Policy::SchedIso => return wrong("policy", "SCHED_ISO is reserved, no kernel has it".to_owned()),
        Policy::SchedIdle => 5,
        Policy::SchedDeadline => 6,
    };
    if !(-20..=19).contains(&nice) {
        return wrong("nice", format!("{nice} is out of range, -20 to 19 is allowed"));
    }
    match policy {
        Policy::SchedFifo | Policy::SchedRr if !(1..=99).contains(&priority) => {
            return wrong(
                "priority",
                format!("{priority} is out of range, 1 to 99 is allowed with {policy}"),
            );
        }
        Policy::SchedFifo | Policy::SchedRr => {}
        _ if priority != 0 => return wrong("priority", format!("means nothing with {policy}")),
        _ => {}
    }
    if policy == Policy::SchedDeadline {
        let period = if period == 0 { deadline } else { period };
        if runtime == 0 || deadline < runtime || period < deadline {
            return wrong(
                "runtime",
                format!(
                    "runtime {runtime}, deadline {deadline}, period {period}: each must be at least the one before, and more than 0"
                ),
            );
        }
    } else {
        for (name, value) in [("runtime", runtime), ("deadline", deadline), ("period", period)] {
            if value != 0 {
                return wrong(name, format!("means nothing with {policy}"));
            }
        }
    }
    let mut flags = 0;
    for (i, flag) in s.flags().iter().flatten().enumerate() {
        flags |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin | LinuxSchedulerFlag::SchedFlagUtilClampMax => {
                return wrong(
                    &format!("flags[{i}]"),
                    "the specification has no field for the value to clamp to".to_owned(),
                );
            }
        };
    }
    Ok(Sched { policy: number, flags, nice, priority: priority as u32, runtime, deadline, period })
}

/// A list like `0-3,7` as bits, at most `most` of them.
pub fn list(text: &str, most: u64) -> Result<Vec<u64>, String> {
    let mut out: Vec<u64> = Vec::new();
    for part in text.split(',') {
        let wrong = || format!("{text:?} is not a list of numbers and ranges like 0-3,7");
        let number = |s: &str| s.trim().parse::<u64>().map_err(|_| wrong());
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(wrong());
        }
        if last >= most {
            return Err(format!("{last} is out of range, 0 to {} is allowed", most - 1));
        }
        out.resize(out.len().max(last as usize / 64 + 1), 0);
        for n in first..=last {
            out[n as usize / 64] |= 1 << (n % 64);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn planned(key: &str, value: serde_json::Value) -> Result<Scheduling> {
        plan(&serde_json::from_value(json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", key: value})).unwrap())
    }

    #[test]
    fn lists() {
        for (text, expected) in [
            ("0", Ok(vec![1])),
            ("0-3,7", Ok(vec![0x8f])),
            ("64,1", Ok(vec![2, 1])),
            ("63-64", Ok(vec![1 << 63, 1])),
        ] {
            assert_eq!(list(text, 128), expected, "{text}");
        }
        for text in ["", ",", "3-1", "a", "-1", "1-", "128", "0x1"] {
            assert!(list(text, 128).is_err(), "{text}");
        }
    }

    #[test]
    fn schedulers() {
        let s = planned(
            "scheduler",
            json!({"policy": "SCHED_RR", "priority": 5, "flags": ["SCHED_RESET_ON_FORK"]}),
        )
        .unwrap();
        assert_eq!(s.scheduler, Some(Sched { policy: 2, flags: 1, priority: 5, ..Sched::default() }));
        let s = planned(
            "scheduler",
            json!({"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3}),
        )
        .unwrap();
        assert_eq!(
            s.scheduler,
            Some(Sched { policy: 6, runtime: 1, deadline: 2, period: 3, ..Sched::default() })
        );
        for (value, message) in [
            (json!({"policy": "SCHED_ISO"}), "policy: SCHED_ISO is reserved, no kernel has it"),
            (
                json!({"policy": "SCHED_FIFO"}),
                "priority: 0 is out of range, 1 to 99 is allowed with SCHED_FIFO",
            ),
            (json!({"policy": "SCHED_OTHER", "priority": 1}), "priority: means nothing with SCHED_OTHER"),
            (json!({"policy": "SCHED_OTHER", "nice": 20}), "nice: 20 is out of range, -20 to 19 is allowed"),
            (json!({"policy": "SCHED_BATCH", "period": 1}), "period: means nothing with SCHED_BATCH"),
            (
                json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_UTIL_CLAMP_MIN"]}),
                "flags[0]: the specification has no field for the value to clamp to",
            ),
        ] {
            let line = report::line(&planned("scheduler", value).unwrap_err());
            assert_eq!(line, format!("process.scheduler.{message}"));
        }
    }

    #[test]
    fn io_priorities_and_affinity() {
        let s = planned("ioPriority", json!({"class": "IOPRIO_CLASS_IDLE", "priority": 3})).unwrap();
        assert_eq!(s.io_priority, Some(IoPriority { class: 3, level: 3 }));
        let line = report::line(
            &planned("ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 8})).unwrap_err(),
        );
        assert_eq!(line, "process.ioPriority.priority: 8 is out of range, 0 to 7 is allowed");
        let s = planned("execCPUAffinity", json!({"initial": "0-1", "final": "2"})).unwrap();
        assert_eq!((s.exec_initial, s.exec_final), (Some(vec![3]), Some(vec![4])));
        let line = report::line(&planned("execCPUAffinity", json!({"initial": "70000"})).unwrap_err());
        assert_eq!(line, "process.execCPUAffinity.initial: 70000 is out of range, 0 to 65535 is allowed");
    }
}
