//! `update`: change the limits of a container that is there.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};
use report::{Explain, Kind, error};
use serde_json::Value;
use sys::cgroupfs;

use super::Globals;
use crate::bundle;
use crate::cgroup;
use crate::state::{Dir, Status};

/// Change the limits of a container.
///
/// What is not given stays. If one value cannot be set, none is.
#[derive(Debug, Default, clap::Args)]
#[command(
    after_help = "Examples:\n  berth-runtime update --memory 512m --pids-limit 100 web\n  echo '{\"cpu\":{\"shares\":512}}' | berth-runtime update --resources - web"
)]
pub struct Args {
    /// Take linux.resources from FILE (`-`: standard input) instead of the other options
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<String>,
    /// Weight for block I/O, 10 to 1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// Period of the processor limit, in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_period: Option<u64>,
    /// Processor time in each period, in microseconds; -1: no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// How much above the quota may be saved up, in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_burst: Option<u64>,
    /// Relative weight for processor time, 2 to 262144
    #[arg(long, value_name = "N")]
    pub cpu_share: Option<u64>,
    /// Period of the realtime limit, in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_rt_period: Option<u64>,
    /// Realtime in each period, in microseconds
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// 1: run only when no other wants the processor
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub cpu_idle: Option<i64>,
    /// Processors to use, such as 0-3,7
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Ignored: kernels no longer limit their own memory
    #[arg(long, value_name = "BYTES", hide = true, value_parser = bytes, allow_hyphen_values = true)]
    pub kernel_memory: Option<i64>,
    /// Limit of TCP memory (cgroup v1)
    #[arg(long, value_name = "BYTES", hide = true, value_parser = bytes, allow_hyphen_values = true)]
    pub kernel_memory_tcp: Option<i64>,
    /// Memory limit; -1: no limit
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_hyphen_values = true)]
    pub memory: Option<i64>,
    /// Memory that is left to the container when the host runs short
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_hyphen_values = true)]
    pub memory_reservation: Option<i64>,
    /// Limit of memory and swap together; -1: no limit
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_hyphen_values = true)]
    pub memory_swap: Option<i64>,
    /// Number of processes and threads; -1: no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Schemata of the L3 cache (Intel RDT)
    #[arg(long, value_name = "TEXT")]
    pub l3_cache_schema: Option<String>,
    /// Schemata of the memory bandwidth (Intel RDT)
    #[arg(long, value_name = "TEXT")]
    pub mem_bw_schema: Option<String>,
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// Update.
pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    update(globals, &args).with_context(|| format!("update {}", args.id))?;
    Ok(0)
}

fn update(globals: &Globals, args: &Args) -> Result<()> {
    let resources = match &args.resources {
        Some(from) => bundle::parse_resources(&read(from)?).with_context(|| format!("--resources {from}"))?,
        None => from_options(args),
    };
    let dir = Dir::open(&globals.root, &args.id)?;
    let _lock = dir.lock()?;
    let state = dir.load()?;
    if matches!(dir.status(&state)?, Status::Stopped | Status::Creating) {
        return Err(error(Kind::WrongState, "container not running"));
    }
    let mut details = state.details()?;
    let old = details.resources.take().unwrap_or_default();
    let merged = merge(&old, &resources).context("join the new limits with the old ones")?;
    // Engines send the whole of linux.resources; rules that hold anyway need not be set again.
    let mut new = resources;
    if new.devices() == old.devices() {
        new.set_devices(None);
    }
    cgroup::update(&state.cgroup, &new)?;
    if args.resources.is_none() {
        set_schemata(args, state.intel_rdt.first().map(PathBuf::as_path))?;
    }
    details.resources = Some(merged);
    let seccomp = state.seccomp().to_vec();
    dir.save(&state.with(&details, &seccomp)?)
}

fn read(from: &str) -> Result<Vec<u8>> {
    if from == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).context("read standard input")?;
        return Ok(bytes);
    }
    std::fs::read(from).with_context(|| format!("read {from}")).kind(Kind::BadInput)
}

/// `linux.resources` as the options say it.
fn from_options(args: &Args) -> LinuxResources {
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(args.memory)
        .set_swap(args.memory_swap)
        .set_reservation(args.memory_reservation)
        .set_kernel(args.kernel_memory)
        .set_kernel_tcp(args.kernel_memory_tcp);
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(args.cpu_share)
        .set_quota(args.cpu_quota)
        .set_period(args.cpu_period)
        .set_burst(args.cpu_burst)
        .set_idle(args.cpu_idle)
        .set_realtime_period(args.cpu_rt_period)
        .set_realtime_runtime(args.cpu_rt_runtime)
        .set_cpus(args.cpuset_cpus.clone())
        .set_mems(args.cpuset_mems.clone());
    let mut io = LinuxBlockIo::default();
    io.set_weight(args.blkio_weight);
    let pids = args.pids_limit.map(|limit| {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        pids
    });
    let mut resources = LinuxResources::default();
    resources
        .set_memory(Some(memory))
        .set_cpu(Some(cpu))
        .set_block_io(Some(io))
        .set_pids(pids)
        .set_devices(None);
    resources
}

/// What `new` says takes the place of what `old` said, field by field.
fn merge(old: &LinuxResources, new: &LinuxResources) -> Result<LinuxResources> {
    let mut merged = serde_json::to_value(old)?;
    overlay(&mut merged, serde_json::to_value(new)?);
    Ok(serde_json::from_value(merged)?)
}

fn overlay(old: &mut Value, new: Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                overlay(old.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (old, new) => *old = new,
    }
}

/// The lines of a resctrl group's `schemata`; a refused one leaves the old ones.
fn set_schemata(args: &Args, group: Option<&Path>) -> Result<()> {
    let lines = [("--l3-cache-schema", &args.l3_cache_schema), ("--mem-bw-schema", &args.mem_bw_schema)];
    let lines: Vec<_> = lines.iter().filter_map(|(option, line)| Some((option, line.as_ref()?))).collect();
    let Some((option, _)) = lines.first() else { return Ok(()) };
    let Some(group) = group else {
        return Err(error(Kind::Unsupported, format!("{option}: the container has no group in resctrl")))
            .hint(|| "set linux.intelRdt in config.json".to_owned());
    };
    // Where only the monitoring group is ours, the schemata are those of the group around it.
    let group = match group.parent().filter(|dir| dir.ends_with("mon_groups")).and_then(Path::parent) {
        Some(around) => around,
        None => group,
    };
    let file = group.join("schemata");
    let old = cgroupfs::read(&file).with_context(|| format!("read {}", file.display()))?;
    for (option, line) in &lines {
        let text = format!("{line}\n");
        let Err(e) = cgroupfs::write(&file, text.as_bytes()) else { continue };
        let e = anyhow::Error::new(e).context(format!("{option}: write {line} to {}", file.display()));
        return match cgroupfs::write(&file, old.as_bytes()) {
            Ok(()) => Err(e),
            Err(undo) => Err(e.context(format!("(then, setting the old schemata again: {undo})"))),
        };
    }
    Ok(())
}

/// A number of bytes with a unit of 1024: `512m`, `1.5GiB`, `64kb`; -1 stands for no limit.
fn bytes(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not a number of bytes, such as 67108864, 64m or -1");
    if text == "-1" {
        return Ok(-1);
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let scale: i64 = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        "p" => 1 << 50,
        _ => return Err(wrong()),
    };
    let digits = digits.trim_end();
    if let Ok(number) = digits.parse::<i64>() {
        return number.checked_mul(scale).filter(|n| *n >= 0).ok_or_else(wrong);
    }
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    let product = number * scale as f64;
    if (0.0..9e18).contains(&product) { Ok(product as i64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_with_units() {
        for (text, expected) in [
            ("67108864", 67_108_864),
            ("64m", 64 << 20),
            ("64MiB", 64 << 20),
            ("1.5g", 3 << 29),
            ("2kb", 2048),
            ("7b", 7),
            ("0", 0),
            ("-1", -1),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "m", "-2", "12q", "1e400", "9999999p", "0x10"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_not_given_stays() {
        let parse = |json: &str| serde_json::from_str::<LinuxResources>(json).unwrap();
        let old = parse(r#"{"memory":{"limit":1,"swap":2},"devices":[{"allow":false,"access":"rwm"}]}"#);
        let new = parse(r#"{"memory":{"swap":3},"pids":{"limit":4}}"#);
        let both = parse(
            r#"{"memory":{"limit":1,"swap":3},"pids":{"limit":4},"devices":[{"allow":false,"access":"rwm"}]}"#,
        );
        assert_eq!(merge(&old, &new).unwrap(), both);
    }
}
