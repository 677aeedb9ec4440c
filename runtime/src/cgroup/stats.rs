//! What do the cgroups measure? In the shape that `events` prints, which is runc's.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::Record;
use super::update::{number, text};

/// One measurement. Zeros that runc leaves out are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    pub cpu: Cpu,
    pub cpuset: CpuSet,
    pub memory: Memory,
    pub pids: Pids,
    pub blkio: Blkio,
    pub hugetlb: BTreeMap<String, HugePages>,
    pub intel_rdt: Empty,
    pub network_interfaces: Option<Empty>,
}

/// A part that is always empty here.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Empty {}

/// Nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    pub usage: CpuUsage,
    pub throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuUsage {
    #[serde(skip_serializing_if = "is_zero")]
    pub total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    pub kernel: u64,
    pub user: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    pub periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_time: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuSet {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    pub cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    pub cache: u64,
    pub usage: MemoryUsage,
    pub swap: MemoryUsage,
    pub kernel: MemoryUsage,
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryUsage,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MemoryUsage {
    pub limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    pub failcnt: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    /// Zero: unlimited.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blkio {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty", rename = "ioQueueRecursive")]
    pub io_queued_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_time_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_wait_time_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_merged_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_time_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sectors_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BlkioEntry {
    #[serde(skip_serializing_if = "is_zero")]
    pub major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub minor: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub value: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HugePages {
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    pub failcnt: u64,
}

/// Pressure stall information.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    pub some: Stall,
    pub full: Stall,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stall {
    #[serde(serialize_with = "short")]
    pub avg10: f64,
    #[serde(serialize_with = "short")]
    pub avg60: f64,
    #[serde(serialize_with = "short")]
    pub avg300: f64,
    pub total: u64,
}

/// Go writes whole numbers without a fraction.
fn short<S: serde::Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 { to.serialize_u64(*value as u64) } else { to.serialize_f64(*value) }
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// Measure. A controller that is not there leaves zeros.
pub fn stats(record: &Record) -> Result<Stats> {
    let mut out = Stats::default();
    for (controllers, dir) in &record.v1 {
        for controller in controllers.split(',') {
            match controller {
                "cpu" => v1_throttling(dir, &mut out.cpu.throttling)?,
                "cpuacct" => v1_usage(dir, &mut out.cpu.usage)?,
                "cpuset" => v1_cpuset(dir, &mut out.cpuset)?,
                "memory" => v1_memory(dir, &mut out.memory)?,
                "pids" => out.pids = pids(dir)?,
                "blkio" => v1_blkio(dir, &mut out.blkio)?,
                "hugetlb" => v1_hugetlb(dir, &mut out.hugetlb)?,
                _ => {}
            }
        }
    }
    if let Some(dir) = &record.v2 {
        v2_hugetlb(dir, &mut out.hugetlb)?;
        if record.v1.is_empty() {
            out.pids = pids(dir)?;
            v2_cpu(dir, &mut out.cpu)?;
            v2_memory(dir, &mut out.memory)?;
            v2_io(dir, &mut out.blkio)?;
            out.cpu.psi = pressure(dir, "cpu.pressure")?;
            out.memory.psi = pressure(dir, "memory.pressure")?;
            out.blkio.psi = pressure(dir, "io.pressure")?;
        }
    }
    Ok(out)
}

fn get(dir: &Path, file: &str) -> Result<u64> {
    Ok(number(dir, file)?.unwrap_or(0))
}

/// Lines of a key and a number.
fn table(dir: &Path, file: &str) -> Result<BTreeMap<String, u64>> {
    let text = text(&dir.join(file))?.unwrap_or_default();
    let line = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    Ok(text.lines().filter_map(line).collect())
}

fn pids(dir: &Path) -> Result<Pids> {
    let limit = get(dir, "pids.max")?;
    Ok(Pids { current: get(dir, "pids.current")?, limit: if limit == u64::MAX { 0 } else { limit } })
}

fn v1_throttling(dir: &Path, out: &mut Throttling) -> Result<()> {
    let stat = table(dir, "cpu.stat")?;
    let field = |name: &str| stat.get(name).copied().unwrap_or(0);
    *out = Throttling {
        periods: field("nr_periods"),
        throttled_periods: field("nr_throttled"),
        throttled_time: field("throttled_time"),
    };
    Ok(())
}

fn v1_usage(dir: &Path, out: &mut CpuUsage) -> Result<()> {
    // Ticks of USER_HZ, which is 100 on every architecture that we run on.
    const TICK: u64 = 10_000_000;
    let stat = table(dir, "cpuacct.stat")?;
    out.total = get(dir, "cpuacct.usage")?;
    out.user = stat.get("user").copied().unwrap_or(0) * TICK;
    out.kernel = stat.get("system").copied().unwrap_or(0) * TICK;
    let percpu = text(&dir.join("cpuacct.usage_percpu"))?.unwrap_or_default();
    out.percpu = percpu.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
    // `cpu user system`, then a line a processor.
    let all = text(&dir.join("cpuacct.usage_all"))?.unwrap_or_default();
    for line in all.lines().skip(1) {
        let mut numbers = line.split_ascii_whitespace().skip(1).filter_map(|n| n.parse().ok());
        if let (Some(user), Some(kernel)) = (numbers.next(), numbers.next()) {
            out.percpu_user.push(user);
            out.percpu_kernel.push(kernel);
        }
    }
    Ok(())
}

fn v1_cpuset(dir: &Path, out: &mut CpuSet) -> Result<()> {
    let list =
        |file: &str| -> Result<Vec<u16>> { Ok(numbers(text(&dir.join(file))?.unwrap_or_default().trim())) };
    let level = text(&dir.join("cpuset.sched_relax_domain_level"))?.unwrap_or_default();
    *out = CpuSet {
        cpus: list("cpuset.cpus")?,
        cpu_exclusive: get(dir, "cpuset.cpu_exclusive")?,
        mems: list("cpuset.mems")?,
        mem_hardwall: get(dir, "cpuset.mem_hardwall")?,
        mem_exclusive: get(dir, "cpuset.mem_exclusive")?,
        memory_migrate: get(dir, "cpuset.memory_migrate")?,
        memory_spread_page: get(dir, "cpuset.memory_spread_page")?,
        memory_spread_slab: get(dir, "cpuset.memory_spread_slab")?,
        memory_pressure: get(dir, "cpuset.memory_pressure")?,
        sched_load_balance: get(dir, "cpuset.sched_load_balance")?,
        sched_relax_domain_level: level.trim().parse().unwrap_or(0),
    };
    Ok(())
}

/// `0-2,5` as 0, 1, 2, 5.
fn numbers(list: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

fn v1_memory(dir: &Path, out: &mut Memory) -> Result<()> {
    let usage = |kind: &str| -> Result<MemoryUsage> {
        Ok(MemoryUsage {
            limit: get(dir, &format!("memory.{kind}limit_in_bytes"))?,
            usage: get(dir, &format!("memory.{kind}usage_in_bytes"))?,
            max: get(dir, &format!("memory.{kind}max_usage_in_bytes"))?,
            failcnt: get(dir, &format!("memory.{kind}failcnt"))?,
        })
    };
    out.usage = usage("")?;
    out.swap = usage("memsw.")?;
    out.kernel = usage("kmem.")?;
    out.kernel_tcp = usage("kmem.tcp.")?;
    out.raw = table(dir, "memory.stat")?;
    out.cache = out.raw.get("cache").copied().unwrap_or(0);
    Ok(())
}

fn v1_blkio(dir: &Path, out: &mut Blkio) -> Result<()> {
    // The I/O scheduler's own counters, if it keeps any; else those of the throttling layer.
    let first = |names: &[String]| -> Result<Vec<BlkioEntry>> {
        for name in names {
            let entries = v1_blkio_table(dir, name)?;
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        Ok(Vec::new())
    };
    let scheduler = |name: &str| [format!("blkio.bfq.{name}_recursive"), format!("blkio.{name}_recursive")];
    let throttle =
        |name: &str| [format!("blkio.throttle.{name}_recursive"), format!("blkio.throttle.{name}")];
    let both = |name: &str| [scheduler(name), throttle(name)].concat();
    out.io_service_bytes_recursive = first(&both("io_service_bytes"))?;
    out.io_serviced_recursive = first(&both("io_serviced"))?;
    out.io_queued_recursive = first(&scheduler("io_queued"))?;
    out.io_service_time_recursive = first(&scheduler("io_service_time"))?;
    out.io_wait_time_recursive = first(&scheduler("io_wait_time"))?;
    out.io_merged_recursive = first(&scheduler("io_merged"))?;
    out.io_time_recursive = first(&scheduler("time"))?;
    out.sectors_recursive = first(&scheduler("sectors"))?;
    Ok(())
}

/// Lines like `8:0 Read 4096`, or `8:0 4096`; a last one is the sum.
fn v1_blkio_table(dir: &Path, file: &str) -> Result<Vec<BlkioEntry>> {
    let text = text(&dir.join(file))?.unwrap_or_default();
    let entry = |line: &str| {
        let (device, rest) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let (op, value) = rest.split_once(' ').unwrap_or(("", rest));
        Some(BlkioEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: op.to_owned(),
            value: value.trim().parse().ok()?,
        })
    };
    Ok(text.lines().filter_map(entry).collect())
}

/// The page sizes are in the files' names.
fn page_sizes(dir: &Path, end: &str) -> Result<Vec<String>> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(Vec::new()) };
    let mut sizes = Vec::new();
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let size = name.to_str().and_then(|n| n.strip_prefix("hugetlb.")?.strip_suffix(end));
        sizes.extend(size.filter(|s| !s.contains('.')).map(str::to_owned));
    }
    Ok(sizes)
}

fn v1_hugetlb(dir: &Path, out: &mut BTreeMap<String, HugePages>) -> Result<()> {
    for size in page_sizes(dir, ".usage_in_bytes")? {
        let field = |field: &str| get(dir, &format!("hugetlb.{size}.{field}"));
        let usage = field("usage_in_bytes")?;
        let pages = HugePages { usage, max: field("max_usage_in_bytes")?, failcnt: field("failcnt")? };
        out.insert(size, pages);
    }
    Ok(())
}

fn v2_hugetlb(dir: &Path, out: &mut BTreeMap<String, HugePages>) -> Result<()> {
    for size in page_sizes(dir, ".current")? {
        let events = table(dir, &format!("hugetlb.{size}.events"))?;
        let usage = get(dir, &format!("hugetlb.{size}.current"))?;
        let failcnt = events.get("max").copied().unwrap_or(0);
        out.insert(size, HugePages { usage, max: 0, failcnt });
    }
    Ok(())
}

fn v2_cpu(dir: &Path, out: &mut Cpu) -> Result<()> {
    let stat = table(dir, "cpu.stat")?;
    let field = |name: &str| stat.get(name).copied().unwrap_or(0);
    out.usage.total = field("usage_usec") * 1000;
    out.usage.user = field("user_usec") * 1000;
    out.usage.kernel = field("system_usec") * 1000;
    out.throttling = Throttling {
        periods: field("nr_periods"),
        throttled_periods: field("nr_throttled"),
        throttled_time: field("throttled_usec") * 1000,
    };
    Ok(())
}

fn v2_memory(dir: &Path, out: &mut Memory) -> Result<()> {
    let raw = table(dir, "memory.stat")?;
    if raw.is_empty() {
        return Ok(());
    }
    let usage = |kind: &str| -> Result<MemoryUsage> {
        Ok(MemoryUsage {
            limit: get(dir, &format!("memory.{kind}max"))?,
            usage: get(dir, &format!("memory.{kind}current"))?,
            max: get(dir, &format!("memory.{kind}peak"))?,
            failcnt: 0,
        })
    };
    out.usage = usage("")?;
    out.swap = usage("swap.")?;
    // v1 counts memory and swap together, v2 by themselves: readers expect the sum.
    out.swap.usage += out.usage.usage;
    out.swap.limit = match (out.swap.limit, out.usage.limit) {
        (u64::MAX, _) | (_, u64::MAX) => u64::MAX,
        (swap, memory) => swap + memory,
    };
    out.swap.max = 0;
    out.cache = raw.get("file").copied().unwrap_or(0);
    out.raw = raw;
    Ok(())
}

/// Lines like `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn v2_io(dir: &Path, out: &mut Blkio) -> Result<()> {
    let text = text(&dir.join("io.stat"))?.unwrap_or_default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let device = words.next().and_then(|d| d.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(a, b)| (a.parse::<u64>(), b.parse::<u64>())) else {
            continue;
        };
        for word in words {
            let Some((key, Ok(value))) = word.split_once('=').map(|(k, v)| (k, v.parse::<u64>())) else {
                continue;
            };
            let (table, op) = match key {
                "rbytes" => (&mut out.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut out.io_service_bytes_recursive, "Write"),
                "dbytes" => (&mut out.io_service_bytes_recursive, "Discard"),
                "rios" => (&mut out.io_serviced_recursive, "Read"),
                "wios" => (&mut out.io_serviced_recursive, "Write"),
                "dios" => (&mut out.io_serviced_recursive, "Discard"),
                _ => continue,
            };
            table.push(BlkioEntry { major, minor, op: op.to_owned(), value });
        }
    }
    Ok(())
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, then `full …`. A kernel may be built or booted without.
fn pressure(dir: &Path, file: &str) -> Result<Option<Pressure>> {
    let Some(text) = text(&dir.join(file))? else { return Ok(None) };
    let mut out = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let stall = match words.next() {
            Some("some") => &mut out.some,
            Some("full") => &mut out.full,
            _ => continue,
        };
        for (key, value) in words.filter_map(|w| w.split_once('=')) {
            match key {
                "avg10" => stall.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => stall.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => stall.avg300 = value.parse().unwrap_or(0.0),
                "total" => stall.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    Ok(Some(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cgroup directory as the kernel would fill it.
    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn v2_in_runcs_shape() {
        let dir = directory(&[
            ("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 0\n"),
            ("memory.stat", "anon 10\nfile 4096\n"),
            ("memory.current", "8192\n"),
            ("memory.max", "max\n"),
            ("memory.swap.current", "100\n"),
            ("memory.swap.max", "1000\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:16 rbytes=5 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n"),
            ("hugetlb.2MB.current", "0\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
            ("hugetlb.2MB.events", "max 7\n"),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
            ),
        ]);
        let record = Record { v2: Some(dir.path().to_owned()), ..Record::default() };
        let json = serde_json::to_string(&stats(&record).unwrap()).unwrap();
        let expected = concat!(
            r#"{"cpu":{"usage":{"total":1500000,"kernel":500000,"user":1000000},"throttling":{},"#,
            r#""psi":{"some":{"avg10":1.5,"avg60":0,"avg300":0,"total":12},"#,
            r#""full":{"avg10":0,"avg60":0,"avg300":0,"total":1}}},"#,
            r#""cpuset":{"cpu_exclusive":0,"mem_hardwall":0,"mem_exclusive":0,"memory_migrate":0,"#,
            r#""memory_spread_page":0,"memory_spread_slab":0,"memory_pressure":0,"sched_load_balance":0,"#,
            r#""sched_relax_domain_level":0},"#,
            r#""memory":{"cache":4096,"usage":{"limit":18446744073709551615,"usage":8192,"failcnt":0},"#,
            r#""swap":{"limit":18446744073709551615,"usage":8292,"failcnt":0},"kernel":{"limit":0,"failcnt":0},"#,
            r#""kernelTCP":{"limit":0,"failcnt":0},"raw":{"anon":10,"file":4096}},"#,
            r#""pids":{"current":3},"#,
            r#""blkio":{"ioServiceBytesRecursive":[{"major":8,"minor":16,"op":"Read","value":5},"#,
            r#"{"major":8,"minor":16,"op":"Write"},{"major":8,"minor":16,"op":"Discard"}],"#,
            r#""ioServicedRecursive":[{"major":8,"minor":16,"op":"Read","value":1},"#,
            r#"{"major":8,"minor":16,"op":"Write"},{"major":8,"minor":16,"op":"Discard"}]},"#,
            r#""hugetlb":{"2MB":{"failcnt":7}},"intel_rdt":{},"network_interfaces":null}"#,
        );
        assert_eq!(json, expected);
    }

    #[test]
    fn v1_lines() {
        let dir = directory(&[
            ("blkio.throttle.io_service_bytes_recursive", "254:0 Read 8\n254:0 Total 8\nTotal 8\n"),
            ("cpuacct.usage_all", "cpu user system\n0 5 6\n1 7 8\n"),
            ("cpuacct.stat", "user 2\nsystem 1\n"),
            ("cpuset.cpus", "0-2,5\n"),
            ("cpuset.sched_relax_domain_level", "-1\n"),
        ]);
        let path = dir.path().to_owned();
        let record = Record { v1: vec![("blkio,cpuacct,cpuset".to_owned(), path)], ..Record::default() };
        let stats = stats(&record).unwrap();
        let entry = |op: &str| BlkioEntry { major: 254, minor: 0, op: op.to_owned(), value: 8 };
        assert_eq!(stats.blkio.io_service_bytes_recursive, [entry("Read"), entry("Total")]);
        let usage = stats.cpu.usage;
        assert_eq!((usage.percpu_user, usage.percpu_kernel), (vec![5, 7], vec![6, 8]));
        assert_eq!((usage.user, usage.kernel), (20_000_000, 10_000_000));
        assert_eq!((stats.cpuset.cpus, stats.cpuset.sched_relax_domain_level), (vec![0, 1, 2, 5], -1));
    }
}
