//! Which devices may be made and opened? (config-linux.md, "Allowed Device list")
//!
//! Rules hold in the order listed, and for each kind of access the last rule that matches decides; what no
//! rule matches is denied. The devices that every container has are allowed at the end.
//!
//! v1 keeps a default and a set of exceptions, so the rules are first evaluated for every device (or range
//! of devices) that one of them names. v2 runs a BPF program that walks the rules backwards.

use std::borrow::Cow;

use anyhow::Result;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use report::Kind;
use serde::{Deserialize, Serialize};
use sys::bpf::Insn;

use super::{Missing, Place, Write};

const SOURCE: &str = "linux.resources.devices";

/// One rule, for one type of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub allow: bool,
    pub devices: Devices,
    /// Bits of [`MKNOD`], [`READ`], [`WRITE`].
    pub access: u8,
}

/// One device or a range of devices; `None`: every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Devices {
    pub kind: DeviceKind,
    pub major: Option<u32>,
    pub minor: Option<u32>,
}

/// The two types of devices, with the kernel's numbers (`BPF_DEVCG_DEV_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    Block = 1,
    Char = 2,
}

/// `BPF_DEVCG_ACC_*`.
pub const MKNOD: u8 = 1;
pub const READ: u8 = 2;
pub const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

use DeviceKind::{Block, Char};

/// What every container may do: make any node, and use the default devices, its terminals and /dev/console.
const DEFAULTS: [Rule; 11] = [
    default(Char, None, None, MKNOD),
    default(Block, None, None, MKNOD),
    default(Char, Some(1), Some(3), ALL),
    default(Char, Some(1), Some(8), ALL),
    default(Char, Some(1), Some(7), ALL),
    default(Char, Some(5), Some(0), ALL),
    default(Char, Some(1), Some(5), ALL),
    default(Char, Some(1), Some(9), ALL),
    default(Char, Some(5), Some(1), ALL),
    default(Char, Some(136), None, ALL),
    default(Char, Some(5), Some(2), ALL),
];

const fn default(kind: DeviceKind, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
    Rule { allow: true, devices: Devices { kind, major, minor }, access }
}

/// The config's rules with the defaults behind them.
pub(crate) fn rules(given: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    let mut rules = Vec::with_capacity(2 * given.len() + DEFAULTS.len());
    for (index, rule) in given.iter().enumerate() {
        let number = |value: Option<i64>, name: &str| match value {
            None | Some(-1) => Ok(None),
            Some(value) => u32::try_from(value).map(Some).map_err(|_| {
                report::at(
                    format!("{SOURCE}[{index}].{name}"),
                    format!("{value} is not a device number; -1 or nothing stands for all"),
                )
            }),
        };
        let (major, minor) = (number(rule.major(), "major")?, number(rule.minor(), "minor")?);
        let access = access(rule.access().as_deref().unwrap_or_default(), index)?;
        let kinds: &[DeviceKind] = match rule.typ().unwrap_or(LinuxDeviceType::A) {
            LinuxDeviceType::A => &[Char, Block],
            LinuxDeviceType::B => &[Block],
            LinuxDeviceType::C | LinuxDeviceType::U => &[Char],
            LinuxDeviceType::P => {
                return Err(report::at(
                    format!("{SOURCE}[{index}].type"),
                    "\"p\" is not a type of device that can be allowed or denied; a, b, c and u are",
                ));
            }
        };
        for kind in kinds {
            let devices = Devices { kind: *kind, major, minor };
            rules.push(Rule { allow: rule.allow(), devices, access });
        }
    }
    rules.extend(DEFAULTS);
    Ok(rules)
}

fn access(text: &str, index: usize) -> Result<u8> {
    let mut bits = 0;
    for letter in text.chars() {
        bits |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => {
                let message = format!("{text:?} has the letter {letter:?}; r, w and m are allowed");
                return Err(report::at(format!("{SOURCE}[{index}].access"), message));
            }
        };
    }
    if bits == 0 {
        return Err(report::at(format!("{SOURCE}[{index}].access"), "is missing; it is made of r, w and m"));
    }
    Ok(bits)
}

impl Devices {
    fn covers(&self, other: &Devices) -> bool {
        let covers = |mine: Option<u32>, other: Option<u32>| mine.is_none() || mine == other;
        self.kind == other.kind && covers(self.major, other.major) && covers(self.minor, other.minor)
    }

    /// What is in both.
    fn meet(&self, other: &Devices) -> Option<Devices> {
        let meet = |a: Option<u32>, b: Option<u32>| match (a, b) {
            (Some(a), Some(b)) if a != b => None,
            (a, b) => Some(a.or(b)),
        };
        let kind = (self.kind == other.kind).then_some(self.kind)?;
        Some(Devices { kind, major: meet(self.major, other.major)?, minor: meet(self.minor, other.minor)? })
    }

    fn text(&self, access: u8) -> String {
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let mut out = String::with_capacity(20);
        out.push_str(if self.kind == Block { "b " } else { "c " });
        out.push_str(&number(self.major));
        out.push(':');
        out.push_str(&number(self.minor));
        out.push(' ');
        out.extend(
            [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')].iter().filter(|(b, _)| access & b != 0).map(|b| b.1),
        );
        out
    }
}

/// The writes that bring a v1 devices cgroup to these rules.
pub(crate) fn v1(rules: &[Rule], at: Place) -> Result<Vec<Write>> {
    let ranges = ranges(rules);
    let allowed: Vec<(Devices, u8)> = ranges.iter().map(|r| (*r, evaluate(rules, r))).collect();
    let denied: Vec<(Devices, u8)> = allowed.iter().map(|(r, bits)| (*r, ALL & !bits)).collect();
    let everything =
        allowed.iter().filter(|(r, bits)| r.major.is_none() && r.minor.is_none() && *bits == ALL);
    let allow_first = everything.count() == 2;
    let (default, file, exceptions) = match (allow_first, exceptions(&allowed), exceptions(&denied)) {
        (false, Ok(list), _) => ("devices.deny", "devices.allow", list),
        (_, _, Ok(list)) => ("devices.allow", "devices.deny", list),
        (true, Ok(list), Err(_)) => ("devices.deny", "devices.allow", list),
        (_, Err(hole), Err(_)) => {
            let message = format!(
                "{SOURCE}: cgroup v1 cannot deny {} and allow a range of devices around it",
                hole.text(ALL)
            );
            return Err(report::error(Kind::Unsupported, message));
        }
    };
    let write = |file: &'static str, value: Cow<'static, str>| Write {
        at,
        file: file.into(),
        value,
        source: SOURCE.into(),
        missing: Missing::Error,
    };
    let list = exceptions.into_iter().map(|(devices, bits)| write(file, devices.text(bits).into()));
    Ok(std::iter::once(write(default, "a".into())).chain(list).collect())
}

/// Every range that a rule names, those that two of them share, and all devices.
fn ranges(rules: &[Rule]) -> Vec<Devices> {
    let all = |kind| Devices { kind, major: None, minor: None };
    let mut ranges = vec![all(Char), all(Block)];
    let add = |ranges: &mut Vec<Devices>, range: Devices| {
        if !ranges.contains(&range) {
            ranges.push(range);
        }
    };
    for rule in rules {
        add(&mut ranges, rule.devices);
    }
    let half = |r: &Devices| r.major.is_some() != r.minor.is_some();
    let halves: Vec<Devices> = ranges.iter().filter(|r| half(r)).copied().collect();
    for (index, one) in halves.iter().enumerate() {
        for other in &halves[index + 1..] {
            if let Some(both) = one.meet(other) {
                add(&mut ranges, both);
            }
        }
    }
    ranges
}

/// What the rules allow for a whole range.
fn evaluate(rules: &[Rule], range: &Devices) -> u8 {
    rules
        .iter()
        .filter(|rule| rule.devices.covers(range))
        .fold(0, |bits, rule| if rule.allow { bits | rule.access } else { bits & !rule.access })
}

/// The exceptions from a default of nothing. The kernel takes what any one of them grants, so a range inside
/// another must grant as much as that; the range that does not is the error.
fn exceptions(granted: &[(Devices, u8)]) -> Result<Vec<(Devices, u8)>, Devices> {
    let mut out = Vec::new();
    for (range, bits) in granted {
        let around = granted.iter().filter(|(other, _)| other != range && other.covers(range));
        let mut said = false;
        for (_, other) in around {
            if other & !bits != 0 {
                return Err(*range);
            }
            said |= other == bits;
        }
        if *bits != 0 && !said {
            out.push((*range, *bits));
        }
    }
    Ok(out)
}

/// The v2 program: from the last rule to the first, each takes its accesses off the request or denies them.
pub fn program(rules: &[Rule]) -> Vec<Insn> {
    const REQUEST: u8 = 1;
    const KIND: u8 = 2;
    const ACCESS: u8 = 3;
    const MAJOR: u8 = 4;
    const MINOR: u8 = 5;
    const REST: u8 = 6;
    // struct bpf_cgroup_dev_ctx { u32 access_type /* access << 16 | type */, major, minor }
    let mut out = vec![
        Insn::load32(KIND, REQUEST, 0),
        Insn::copy(ACCESS, KIND),
        Insn::and(KIND, 0xffff),
        Insn::shift_right(ACCESS, 16),
        Insn::load32(MAJOR, REQUEST, 4),
        Insn::load32(MINOR, REQUEST, 8),
    ];
    for rule in rules.iter().rev() {
        let mut tests = vec![(KIND, rule.devices.kind as i32)];
        // The kernel compares 32 bits; as in C, the number keeps its bit pattern.
        tests.extend(rule.devices.major.map(|n| (MAJOR, n.cast_signed())));
        tests.extend(rule.devices.minor.map(|n| (MINOR, n.cast_signed())));
        let access = i32::from(rule.access);
        let action = if rule.allow {
            vec![
                Insn::and(ACCESS, !access & 0xffff),
                Insn::jump_unless_equal(ACCESS, 0, 2),
                Insn::set(0, 1),
                Insn::exit(),
            ]
        } else {
            vec![
                Insn::copy(REST, ACCESS),
                Insn::and(REST, access),
                Insn::jump_if_equal(REST, 0, 2),
                Insn::set(0, 0),
                Insn::exit(),
            ]
        };
        for (index, (register, value)) in tests.iter().enumerate() {
            let skip = tests.len() - index - 1 + action.len();
            out.push(Insn::jump_unless_equal(*register, *value, skip as i16));
        }
        out.extend(action);
    }
    out.extend([Insn::set(0, 0), Insn::exit()]);
    out
}
