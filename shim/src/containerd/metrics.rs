//! What does a container use, in containerd's words? `io.containerd.cgroups.v1.Metrics` or `v2.Metrics` (containerd/cgroups,
//! cgroup1/stats and cgroup2/stats), by what the host mounts.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use runtime::cgroup::Record;
use runtime::cgroup::stats::{self, BlkioEntry, MemoryUsage, Pressure, Stall, Stats};

use super::message::{Any, Field, Whole, messages};

/// Measure.
pub fn of(record: &Record) -> Result<Any> {
    let stats = stats::stats(record)?;
    Ok(match &record.v2 {
        Some(dir) if record.v1.is_empty() => {
            Any::of("io.containerd.cgroups.v2.Metrics", &v2(&stats, dir).message())
        }
        _ => Any::of("io.containerd.cgroups.v1.Metrics", &v1(&stats).message()),
    })
}

messages! {
    V1 {
        1 hugetlb: Vec<V1Hugetlb>, 2 pids: Option<Pids>, 3 cpu: Option<V1Cpu>, 4 memory: Option<V1Memory>, 5 blkio: Option<V1Blkio>,
    }
    V1Hugetlb { 1 usage: u64, 2 max: u64, 3 failcnt: u64, 4 pagesize: String }
    Pids { 1 current: u64, 2 limit: u64 }
    V1Cpu { 1 usage: Option<V1CpuUsage>, 2 throttling: Option<V1Throttle> }
    /// Nanoseconds.
    V1CpuUsage { 1 total: u64, 2 kernel: u64, 3 user: u64, 4 per_cpu: Vec<u64> }
    V1Throttle { 1 periods: u64, 2 throttled_periods: u64, 3 throttled_time: u64 }
    V1Memory {
        1 cache: u64, 2 rss: u64, 3 rss_huge: u64, 4 mapped_file: u64, 5 dirty: u64, 6 writeback: u64, 7 pgpgin: u64, 8 pgpgout: u64,
        9 pgfault: u64, 10 pgmajfault: u64, 11 inactive_anon: u64, 12 active_anon: u64, 13 inactive_file: u64, 14 active_file: u64,
        15 unevictable: u64, 16 hierarchical_memory_limit: u64, 17 hierarchical_memsw_limit: u64, 18 total_cache: u64,
        19 total_rss: u64, 20 total_rss_huge: u64, 21 total_mapped_file: u64, 22 total_dirty: u64, 23 total_writeback: u64,
        24 total_pgpgin: u64, 25 total_pgpgout: u64, 26 total_pgfault: u64, 27 total_pgmajfault: u64, 28 total_inactive_anon: u64,
        29 total_active_anon: u64, 30 total_inactive_file: u64, 31 total_active_file: u64, 32 total_unevictable: u64,
        33 usage: Option<V1MemoryEntry>, 34 swap: Option<V1MemoryEntry>, 35 kernel: Option<V1MemoryEntry>,
        36 kernel_tcp: Option<V1MemoryEntry>,
    }
    V1MemoryEntry { 1 limit: u64, 2 usage: u64, 3 max: u64, 4 failcnt: u64 }
    V1Blkio {
        1 service_bytes: Vec<V1BlkioEntry>, 2 serviced: Vec<V1BlkioEntry>, 3 queued: Vec<V1BlkioEntry>,
        4 service_time: Vec<V1BlkioEntry>, 5 wait_time: Vec<V1BlkioEntry>, 6 merged: Vec<V1BlkioEntry>, 7 time: Vec<V1BlkioEntry>,
        8 sectors: Vec<V1BlkioEntry>,
    }
    V1BlkioEntry { 1 op: String, 2 device: String, 3 major: u64, 4 minor: u64, 5 value: u64 }

    V2 {
        1 pids: Option<Pids>, 2 cpu: Option<V2Cpu>, 4 memory: Option<V2Memory>, 6 io: Option<V2Io>, 7 hugetlb: Vec<V2Hugetlb>,
        8 memory_events: Option<V2MemoryEvents>,
    }
    V2Cpu {
        1 usage_usec: u64, 2 user_usec: u64, 3 system_usec: u64, 4 nr_periods: u64, 5 nr_throttled: u64, 6 throttled_usec: u64,
        7 psi: Option<Psi>,
    }
    Psi { 1 some: Option<PsiData>, 2 full: Option<PsiData> }
    PsiData { 1 avg10: f64, 2 avg60: f64, 3 avg300: f64, 4 total: u64 }
    V2Memory {
        1 anon: u64, 2 file: u64, 3 kernel_stack: u64, 4 slab: u64, 5 sock: u64, 6 shmem: u64, 7 file_mapped: u64, 8 file_dirty: u64,
        9 file_writeback: u64, 10 anon_thp: u64, 11 inactive_anon: u64, 12 active_anon: u64, 13 inactive_file: u64,
        14 active_file: u64, 15 unevictable: u64, 16 slab_reclaimable: u64, 17 slab_unreclaimable: u64, 18 pgfault: u64,
        19 pgmajfault: u64, 20 workingset_refault: u64, 21 workingset_activate: u64, 22 workingset_nodereclaim: u64,
        23 pgrefill: u64, 24 pgscan: u64, 25 pgsteal: u64, 26 pgactivate: u64, 27 pgdeactivate: u64, 28 pglazyfree: u64,
        29 pglazyfreed: u64, 30 thp_fault_alloc: u64, 31 thp_collapse_alloc: u64, 32 usage: u64, 33 usage_limit: u64,
        34 swap_usage: u64, 35 swap_limit: u64, 36 max_usage: u64, 37 swap_max_usage: u64, 38 psi: Option<Psi>,
    }
    V2MemoryEvents { 1 low: u64, 2 high: u64, 3 max: u64, 4 oom: u64, 5 oom_kill: u64, 6 oom_group_kill: u64 }
    V2Io { 1 usage: Vec<V2IoEntry>, 2 psi: Option<Psi> }
    V2IoEntry { 1 major: u64, 2 minor: u64, 3 rbytes: u64, 4 wbytes: u64, 5 rios: u64, 6 wios: u64 }
    V2Hugetlb { 1 current: u64, 2 max: u64, 3 pagesize: String, 4 failcnt: u64 }
}

/// Fields that are named as the kernel names them.
macro_rules! from_table {
    ($table:expr, $kind:ident { $($field:ident),* $(,)? } $($rest:tt)*) => {
        $kind { $($field: $table.get(stringify!($field)).copied().unwrap_or(0),)* $($rest)* }
    };
}

fn v1(s: &Stats) -> V1 {
    let raw = &s.memory.raw;
    let entry = |m: &MemoryUsage| {
        Some(V1MemoryEntry { limit: m.limit, usage: m.usage, max: m.max, failcnt: m.failcnt })
    };
    let entries = |list: &[BlkioEntry]| -> Vec<V1BlkioEntry> {
        let one = |e: &BlkioEntry| V1BlkioEntry {
            op: e.op.clone(),
            device: device(e.major, e.minor),
            major: e.major,
            minor: e.minor,
            value: e.value,
        };
        list.iter().map(one).collect()
    };
    let usage = &s.cpu.usage;
    let throttling = &s.cpu.throttling;
    V1 {
        hugetlb: s
            .hugetlb
            .iter()
            .map(|(size, h)| V1Hugetlb {
                usage: h.usage,
                max: h.max,
                failcnt: h.failcnt,
                pagesize: size.clone(),
            })
            .collect(),
        pids: Some(Pids { current: s.pids.current, limit: s.pids.limit }),
        cpu: Some(V1Cpu {
            usage: Some(V1CpuUsage {
                total: usage.total,
                kernel: usage.kernel,
                user: usage.user,
                per_cpu: usage.percpu.clone(),
            }),
            throttling: Some(V1Throttle {
                periods: throttling.periods,
                throttled_periods: throttling.throttled_periods,
                throttled_time: throttling.throttled_time,
            }),
        }),
        memory: Some(from_table!(raw, V1Memory {
            cache, rss, rss_huge, mapped_file, dirty, writeback, pgpgin, pgpgout, pgfault, pgmajfault, inactive_anon, active_anon,
            inactive_file, active_file, unevictable, hierarchical_memory_limit, hierarchical_memsw_limit, total_cache, total_rss,
            total_rss_huge, total_mapped_file, total_dirty, total_writeback, total_pgpgin, total_pgpgout, total_pgfault,
            total_pgmajfault, total_inactive_anon, total_active_anon, total_inactive_file, total_active_file, total_unevictable,
        }
            usage: entry(&s.memory.usage),
            swap: entry(&s.memory.swap),
            kernel: entry(&s.memory.kernel),
            kernel_tcp: entry(&s.memory.kernel_tcp),
        )),
        blkio: Some(V1Blkio {
            service_bytes: entries(&s.blkio.io_service_bytes_recursive),
            serviced: entries(&s.blkio.io_serviced_recursive),
            queued: entries(&s.blkio.io_queued_recursive),
            service_time: entries(&s.blkio.io_service_time_recursive),
            wait_time: entries(&s.blkio.io_wait_time_recursive),
            merged: entries(&s.blkio.io_merged_recursive),
            time: entries(&s.blkio.io_time_recursive),
            sectors: entries(&s.blkio.sectors_recursive),
        }),
    }
}

/// The node of a block device, as /sys/dev/block names it.
fn device(major: u64, minor: u64) -> String {
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
    let name = link.ok().and_then(|link| Some(link.file_name()?.to_str()?.to_owned()));
    name.map(|name| format!("/dev/{name}")).unwrap_or_default()
}

fn psi(pressure: Option<&Pressure>) -> Option<Psi> {
    let data = |s: &Stall| Some(PsiData { avg10: s.avg10, avg60: s.avg60, avg300: s.avg300, total: s.total });
    pressure.map(|p| Psi { some: data(&p.some), full: data(&p.full) })
}

/// A file of one number; `max` is the largest one, none is 0.
fn number(dir: &Path, file: &str) -> u64 {
    match sys::cgroupfs::read(&dir.join(file)) {
        Ok(text) if text.trim() == "max" => u64::MAX,
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(_) => 0,
    }
}

fn table(dir: &Path, file: &str) -> BTreeMap<String, u64> {
    let text = sys::cgroupfs::read(&dir.join(file)).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(k, v)| Some((k.to_owned(), v.trim().parse().ok()?)))
        .collect()
}

fn v2(s: &Stats, dir: &Path) -> V2 {
    let raw = &s.memory.raw;
    let usage = &s.cpu.usage;
    let throttling = &s.cpu.throttling;
    let refault = ["workingset_refault_anon", "workingset_refault_file", "workingset_refault"];
    let activate = ["workingset_activate_anon", "workingset_activate_file", "workingset_activate"];
    let sum = |names: [&str; 3]| names.iter().filter_map(|n| raw.get(*n)).sum();
    let mut io: BTreeMap<(u64, u64), V2IoEntry> = BTreeMap::new();
    for (list, bytes) in
        [(&s.blkio.io_service_bytes_recursive, true), (&s.blkio.io_serviced_recursive, false)]
    {
        for e in list {
            let entry = io.entry((e.major, e.minor)).or_insert_with(|| V2IoEntry {
                major: e.major,
                minor: e.minor,
                ..V2IoEntry::default()
            });
            match (bytes, e.op.as_str()) {
                (true, "Read") => entry.rbytes = e.value,
                (true, "Write") => entry.wbytes = e.value,
                (false, "Read") => entry.rios = e.value,
                (false, "Write") => entry.wios = e.value,
                _ => {}
            }
        }
    }
    let events = table(dir, "memory.events");
    V2 {
        pids: Some(Pids {
            current: s.pids.current,
            limit: if s.pids.limit == 0 { u64::MAX } else { s.pids.limit },
        }),
        cpu: Some(V2Cpu {
            usage_usec: usage.total / 1000,
            user_usec: usage.user / 1000,
            system_usec: usage.kernel / 1000,
            nr_periods: throttling.periods,
            nr_throttled: throttling.throttled_periods,
            throttled_usec: throttling.throttled_time / 1000,
            psi: psi(s.cpu.psi.as_ref()),
        }),
        memory: Some(from_table!(raw, V2Memory {
            anon, file, kernel_stack, slab, sock, shmem, file_mapped, file_dirty, file_writeback, anon_thp, inactive_anon, active_anon,
            inactive_file, active_file, unevictable, slab_reclaimable, slab_unreclaimable, pgfault, pgmajfault,
            workingset_nodereclaim, pgrefill, pgscan, pgsteal, pgactivate, pgdeactivate, pglazyfree, pglazyfreed, thp_fault_alloc,
            thp_collapse_alloc,
        }
            workingset_refault: sum(refault),
            workingset_activate: sum(activate),
            usage: number(dir, "memory.current"),
            usage_limit: number(dir, "memory.max"),
            max_usage: number(dir, "memory.peak"),
            swap_usage: number(dir, "memory.swap.current"),
            swap_limit: number(dir, "memory.swap.max"),
            swap_max_usage: number(dir, "memory.swap.peak"),
            psi: psi(s.memory.psi.as_ref()),
        )),
        io: Some(V2Io { usage: io.into_values().collect(), psi: psi(s.blkio.psi.as_ref()) }),
        hugetlb: s
            .hugetlb
            .iter()
            .map(|(size, h)| V2Hugetlb {
                current: h.usage,
                max: number(dir, &format!("hugetlb.{size}.max")),
                pagesize: size.clone(),
                failcnt: h.failcnt,
            })
            .collect(),
        memory_events: Some(from_table!(
            events,
            V2MemoryEvents { low, high, max, oom, oom_kill, oom_group_kill }
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_numbers_are_where_readers_look() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n"),
            ("memory.stat", "anon 10\nfile 4096\nworkingset_refault_anon 1\nworkingset_refault_file 2\n"),
            ("memory.current", "8192\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n"),
            ("pids.current", "3\n"),
            ("pids.max", "40\n"),
            ("io.stat", "8:16 rbytes=5 wbytes=6 rios=1 wios=2 dbytes=0 dios=0\n"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let record = Record { v2: Some(dir.path().to_owned()), ..Record::default() };
        let any = of(&record).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let m = V2::parse(&any.value).unwrap();
        assert_eq!(m.pids.unwrap(), Pids { current: 3, limit: 40 });
        let memory = m.memory.unwrap();
        assert_eq!(
            (memory.usage, memory.usage_limit, memory.anon, memory.workingset_refault),
            (8192, u64::MAX, 10, 3)
        );
        let io = V2IoEntry { major: 8, minor: 16, rbytes: 5, wbytes: 6, rios: 1, wios: 2 };
        assert_eq!(m.io.unwrap().usage, [io]);
        assert_eq!((m.cpu.unwrap().usage_usec, m.memory_events.unwrap().oom_kill), (1500, 1));
    }

    #[test]
    fn v1_numbers_are_where_readers_look() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("memory.usage_in_bytes", "8192\n"),
            ("memory.limit_in_bytes", "67108864\n"),
            ("memory.stat", "cache 1\nrss 2\ntotal_inactive_file 3\n"),
            ("pids.current", "3\n"),
            ("cpuacct.usage", "7\n"),
            ("cpuacct.usage_percpu", "3 4\n"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let v1 = vec![("memory,pids,cpuacct".to_owned(), dir.path().to_owned())];
        let any = of(&Record { v1, ..Record::default() }).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let m = V1::parse(&any.value).unwrap();
        let memory = m.memory.unwrap();
        assert_eq!((memory.cache, memory.rss, memory.total_inactive_file), (1, 2, 3));
        assert_eq!(memory.usage.unwrap(), V1MemoryEntry { limit: 64 << 20, usage: 8192, max: 0, failcnt: 0 });
        let usage = m.cpu.unwrap().usage.unwrap();
        assert_eq!((usage.total, usage.per_cpu), (7, vec![3, 4]));
    }
}
