//! What decides when and where a process runs: policy, priorities, CPUs, memory nodes; and its personality.

use std::io;

use crate::check;

/// `struct sched_attr` (sched_setattr(2)) without utilisation clamps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    /// Nanoseconds.
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// The kernel's SCHED_ATTR_SIZE_VER0.
#[repr(C)]
struct Raw {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// sched_setattr(2) on ourselves.
pub fn set(a: &Attributes) -> io::Result<()> {
    let raw = Raw {
        size: size_of::<Raw>() as u32,
        policy: a.policy,
        flags: a.flags,
        nice: a.nice,
        priority: a.priority,
        runtime: a.runtime,
        deadline: a.deadline,
        period: a.period,
    };
    // SAFETY: `raw` says its own size and outlives the call, which only reads it (and the size field, if refused).
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const raw, 0) }).map(drop)
}

/// A class (1 real time, 2 best effort, 3 idle) and a level in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoPriority {
    pub class: u8,
    pub level: u8,
}

/// ioprio_set(2) on ourselves.
pub fn set_io_priority(p: IoPriority) -> io::Result<()> {
    const WHO_PROCESS: i32 = 1;
    let value = i32::from(p.class) << 13 | i32::from(p.level);
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) }).map(drop)
}

/// sched_setaffinity(2) on ourselves; `cpus` as bits.
pub fn set_affinity(cpus: &[u64]) -> io::Result<()> {
    // SAFETY: length in bytes and address of a slice that outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(cpus), cpus.as_ptr()) })
        .map(drop)
}

/// set_mempolicy(2); `nodes` as bits.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> io::Result<()> {
    let (address, bits) = match nodes {
        [] => (std::ptr::null(), 0),
        // The kernel takes the number of bits and one more.
        nodes => (nodes.as_ptr(), nodes.len() as u64 * 64 + 1),
    };
    // SAFETY: the kernel reads as many bits as the slice has.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, address, bits) }).map(drop)
}

/// personality(2).
pub fn set_personality(domain: u32) -> io::Result<()> {
    // SAFETY: an integer only.
    check(unsafe { libc::syscall(libc::SYS_personality, u64::from(domain)) }).map(drop)
}

/// Raise the hard limit of a resource to at least `hard`, of ourselves (`pid` 0) or of a child; the soft limit
/// stays.
pub fn raise_hard_limit(pid: i32, resource: u32, hard: u64) -> io::Result<()> {
    let mut now = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let none = std::ptr::null::<libc::rlimit64>();
    // SAFETY: the kernel fills `now`, which outlives the call, and reads nothing.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, none, &raw mut now) })?;
    if now.rlim_max >= hard {
        return Ok(());
    }
    now.rlim_max = hard;
    let none = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: the kernel reads `now`, which outlives the call, and writes nothing.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, &raw const now, none) }).map(drop)
}
