//! What does the profile decide for each number of an architecture? Ranges of equal decision.

use super::arch::{self, AUDIT_X86_64, Abi, Family, Multiplexed, Name, SLOTS, X32_BIT};
use super::rules::{Entry, Rules};

/// `SECCOMP_RET_KILL_THREAD`: what libseccomp does with calls of an architecture that is not in the profile.
pub const BAD_ARCH: u32 = 0;
/// `SECCOMP_RET_ERRNO` with ENOSYS.
pub const ENOSYS: u32 = 0x0005_0000 | 38;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// This `SECCOMP_RET_*` value.
    Return(u32),
    /// It depends on the arguments: the first link of this chain that matches.
    Chain(usize),
}

/// One entry of the profile that applies to a call; as `socketcall` or `ipc` if multiplexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub entry: usize,
    pub multiplexed: Option<u32>,
    /// Compare the low halves only.
    pub narrow: bool,
}

/// All numbers of one `seccomp_data.arch`.
#[derive(Debug)]
pub struct Section {
    pub audit: u32,
    /// Sorted by the first number; each reaches to the next one's. The first starts at 0.
    pub ranges: Vec<(u32, Decision)>,
}

/// The decisions of a whole profile.
#[derive(Debug, Default)]
pub struct Decisions {
    pub sections: Vec<Section>,
    pub chains: Vec<Vec<Link>>,
}

/// Decide for the interfaces of `family` that the profile names, and always for the native one. Others in the
/// list never occur on this kernel.
pub fn decide(rules: &Rules<'_>, family: &Family) -> Decisions {
    let mut out = Decisions::default();
    let mut decided: Vec<Option<Vec<(u32, Decision)>>> = Vec::with_capacity(family.abis.len());
    for (i, abi) in family.abis.iter().enumerate() {
        let wanted = i == 0 || rules.architectures.contains(&abi.token);
        decided.push(wanted.then(|| ranges(rules, abi, &mut out.chains)));
    }
    let default = Decision::Return(rules.default);
    // x32 shares its audit value with x86_64.
    let mut x32 = None;
    for (abi, ranges) in family.abis.iter().zip(decided) {
        let Some(ranges) = ranges else { continue };
        if abi.first == X32_BIT {
            x32 = Some(ranges);
        } else {
            out.sections.push(Section { audit: abi.audit, ranges });
        }
    }
    for section in &mut out.sections {
        if section.audit == AUDIT_X86_64 {
            section.ranges.extend(x32.take().unwrap_or_else(|| vec![(X32_BIT, Decision::Return(BAD_ARCH))]));
            // A tracer skips a call by making its number -1.
            section.ranges.push((u32::MAX, default));
        } else if section.ranges[0].0 != 0 {
            section.ranges.insert(0, (0, default));
        }
        section.ranges.dedup_by(|b, a| a.1 == b.1);
    }
    out
}

/// A slot of a table while rules are added to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Empty,
    /// The entry that decides it.
    Entry(u16),
    Chain(u16),
}

struct Slots<'a> {
    rules: &'a Rules<'a>,
    narrow: bool,
    slots: [Slot; SLOTS],
    chains: &'a mut Vec<Vec<Link>>,
}

fn ranges(rules: &Rules<'_>, abi: &Abi, chains: &mut Vec<Vec<Link>>) -> Vec<(u32, Decision)> {
    let first_chain = chains.len();
    let mut table = Slots { rules, narrow: abi.narrow, slots: [Slot::Empty; SLOTS], chains: &mut *chains };
    // One past the newest ordinary call that is named, and one past the last slot that is used.
    let (mut newest, mut last) = (0, 0);
    let multiplexers = [number_of(abi, "socketcall"), number_of(abi, "ipc")];
    for &(name, entry) in &rules.names {
        let slot = abi.slot(name);
        if let Some(slot) = slot.filter(|&slot| Abi::ordinary(slot)) {
            newest = newest.max(slot + 1);
        }
        if rules.entries[entry].redundant {
            continue;
        }
        if let Some(slot) = slot {
            table.add(slot, entry, None);
            last = last.max(slot + 1);
        }
        if multiplexers[0].is_some()
            && let Some(Multiplexed { by, call }) = arch::multiplexed(name)
            && let Some(slot) = multiplexers[usize::from(by == "ipc")]
        {
            table.add(slot, entry, Some(call));
            last = last.max(slot + 1);
        }
    }
    let slots = &table.slots;
    // Unused chains stay out of the program because no range refers to them.
    let decision = |slot: usize| match slots[slot] {
        Slot::Entry(e) => Decision::Return(rules.entries[usize::from(e)].action),
        Slot::Chain(c) => Decision::Chain(usize::from(c)),
        Slot::Empty if rules.hide_new && newest != 0 && slot >= newest => Decision::Return(ENOSYS),
        // s390 passes the number of a call that the kernel does not know as that of setup(2), 0.
        Slot::Empty if rules.hide_new && slot == 0 && abi.is_s390() => Decision::Return(ENOSYS),
        Slot::Empty => Decision::Return(rules.default),
    };
    let mut out: Vec<(u32, Decision)> = Vec::with_capacity(256);
    // What comes after the last one, after the newest and after the first (s390) is all alike.
    let end = last.max(newest).max(1) + 1;
    for slot in 0..SLOTS.min(end) {
        // Mostly a slot is as the one before: but for the two at whose ends the meaning of an empty one changes.
        if slot > 1 && slots[slot] == slots[slot - 1] && slot != newest {
            continue;
        }
        let mut decision = decision(slot);
        if let Decision::Chain(c) = decision
            && let Some(same) = chains[first_chain..c].iter().position(|other| *other == chains[c])
        {
            decision = Decision::Chain(first_chain + same);
        }
        if out.last().is_none_or(|last| last.1 != decision) {
            out.push((abi.number(slot), decision));
        }
    }
    out
}

fn number_of(abi: &Abi, name: &str) -> Option<usize> {
    arch::name(name).and_then(|n: Name| abi.slot(n))
}

impl Slots<'_> {
    /// Among unconditional rules the first one stands; it replaces conditional ones, wherever they are.
    fn add(&mut self, slot: usize, entry: usize, multiplexed: Option<u32>) {
        let Entry { alternatives, .. } = &self.rules.entries[entry];
        let conditional = multiplexed.is_some() || !alternatives.is_empty();
        let link = Link { entry, multiplexed, narrow: self.narrow };
        match self.slots[slot] {
            Slot::Entry(_) => {}
            _ if !conditional => self.slots[slot] = Slot::Entry(entry as u16),
            Slot::Chain(chain) => self.chains[usize::from(chain)].push(link),
            Slot::Empty => {
                self.slots[slot] = Slot::Chain(self.chains.len() as u16);
                self.chains.push(vec![link]);
            }
        }
    }
}
