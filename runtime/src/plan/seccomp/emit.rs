//! How do decisions become instructions? The architecture first, then a binary search over ranges of equal
//! decision, then chains of argument comparisons.
//!
//! ```text
//!     ld arch
//!     jeq native ─▶ ld nr, then jge/jeq … ─▶ ret VALUE, or ─▶ ld argument, jeq … ─▶ ret VALUE
//!     jeq other  ─▶ ld nr, …
//!     ret KILL
//! ```
//!
//! Everything that does not look at arguments is decided by `arch` and `nr` alone, so the kernel can find the
//! calls that are always allowed when the filter is loaded, and never runs it for them (its action bitmap).
//!
//! Jumps go forward only and a condition reaches 255 instructions far. The program is therefore written from
//! its end: every target is known when it is jumped to, and one too far away gets a copy (`ret`) or a long jump nearby.

use std::ops::Range;

use anyhow::Result;
use report::at;
use sys::seccomp::Insn;

use super::decide::{BAD_ARCH, Decision, Decisions, Link};
use super::rules::{Compare, Condition, Rules};

/// The kernel's BPF_MAXINSNS.
pub const MOST: usize = 4096;

const LD: u16 = 0x20;
const AND: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

/// Where a jump goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Return(u32),
    /// An instruction, counted from the end of the program.
    At(usize),
}

struct Emitter<'a> {
    rules: &'a Rules<'a>,
    decisions: &'a Decisions,
    big_endian: bool,
    /// The program, last instruction first.
    code: Vec<Insn>,
    /// The nearest `ret` of each value.
    returns: Vec<(u32, usize)>,
    chains: Vec<Option<usize>>,
}

/// Write the program.
pub fn emit(rules: &Rules<'_>, decisions: &Decisions, big_endian: bool) -> Result<Vec<Insn>> {
    let mut e = Emitter {
        rules,
        decisions,
        big_endian,
        code: Vec::with_capacity(512),
        returns: Vec::with_capacity(8),
        chains: vec![None; decisions.chains.len()],
    };
    let mut other = Target::Return(BAD_ARCH);
    // The native architecture comes first in the program, so it is written last.
    for section in decisions.sections.iter().rev() {
        let mut start = e.search(&section.ranges, &leaves(&section.ranges));
        if let Target::At(position) = start {
            let distance = e.distance(position);
            if distance > 0 {
                e.plain(JA, distance as u32);
            }
            start = e.plain(LD, NR);
        }
        other = e.branch(JEQ, section.audit, start, other);
    }
    e.plain(LD, ARCH);
    if e.code.len() > MOST {
        return Err(at(
            "linux.seccomp",
            format!("the filter has {} instructions, {MOST} is the kernel's limit", e.code.len()),
        ));
    }
    e.code.reverse();
    Ok(e.code)
}

/// Ranges that one leaf of the search decides: one, or one with single numbers in it that are treated otherwise, for each of which
/// comparing it costs one instruction, and finding its range would cost two.
fn leaves(ranges: &[(u32, Decision)]) -> Vec<Range<usize>> {
    /// So many are compared one after the other.
    const SINGLES: usize = 4;
    let mut leaves: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    let mut at = 0;
    while at < ranges.len() {
        let start = at;
        at += 1;
        while at + 1 < ranges.len()
            && at - start < 2 * SINGLES
            && ranges[at + 1].0 - ranges[at].0 == 1
            && ranges[at + 1].1 == ranges[start].1
        {
            at += 2;
        }
        // The last of these ranges may go on beyond further single numbers: the next leaf begins with it.
        if at - start > 2 * SINGLES {
            at -= 1;
        }
        leaves.push(start..at);
    }
    leaves
}

impl Emitter<'_> {
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Target {
        self.code.push(Insn { code, jt, jf, k });
        Target::At(self.code.len() - 1)
    }

    fn plain(&mut self, code: u16, k: u32) -> Target {
        self.push(code, 0, 0, k)
    }

    /// A conditional jump.
    fn branch(&mut self, code: u16, k: u32, yes: Target, no: Target) -> Target {
        // Bringing one near can push the other away by an instruction.
        let (yes, no) = (self.near(yes), self.near(no));
        let (yes, no) = (self.distance(yes), self.distance(no));
        self.push(code, yes as u8, no as u8, k)
    }

    fn distance(&self, position: usize) -> usize {
        self.code.len() - position - 1
    }

    /// A position that stands for `target` and that the next instruction but one can reach.
    fn near(&mut self, target: Target) -> usize {
        const REACH: usize = 254;
        match target {
            Target::At(position) if self.distance(position) <= REACH => position,
            Target::At(position) => {
                let distance = self.distance(position);
                self.plain(JA, distance as u32);
                self.code.len() - 1
            }
            Target::Return(value) => {
                let found = self.returns.iter().position(|r| r.0 == value);
                if let Some(i) = found
                    && self.distance(self.returns[i].1) <= REACH
                {
                    return self.returns[i].1;
                }
                self.plain(RET, value);
                let position = self.code.len() - 1;
                match found {
                    Some(i) => self.returns[i].1 = position,
                    None => self.returns.push((value, position)),
                }
                position
            }
        }
    }

    /// Search the leaf that the number in the accumulator belongs to.
    fn search(&mut self, ranges: &[(u32, Decision)], leaves: &[Range<usize>]) -> Target {
        if let [leaf] = leaves {
            let mut next = self.decision(ranges[leaf.start].1);
            for &(number, decision) in ranges[leaf.clone()].iter().skip(1).step_by(2).rev() {
                let yes = self.decision(decision);
                next = self.branch(JEQ, number, yes, next);
            }
            return next;
        }
        let (low, high) = leaves.split_at(leaves.len() / 2);
        let yes = self.search(ranges, high);
        let no = self.search(ranges, low);
        self.branch(JGE, ranges[high[0].start].0, yes, no)
    }

    fn decision(&mut self, decision: Decision) -> Target {
        let chain = match decision {
            Decision::Return(value) => return Target::Return(value),
            Decision::Chain(chain) => chain,
        };
        if let Some(position) = self.chains[chain] {
            return Target::At(position);
        }
        let mut next = Target::Return(self.rules.default);
        for &Link { entry, multiplexed, narrow } in self.decisions.chains[chain].iter().rev() {
            let entry = &self.rules.entries[entry];
            let action = Target::Return(entry.action);
            match multiplexed {
                None => {
                    for alternative in entry.alternatives.iter().rev() {
                        next = self.all(alternative.iter(), narrow, action, next);
                    }
                }
                // The first argument says which call is meant; the call's own arguments are in memory, out of
                // sight. Like libseccomp, compare what is left in registers.
                Some(call) => {
                    let which = Condition { index: 0, compare: Compare::Equal(u64::from(call)) };
                    let mut any = if entry.alternatives.is_empty() { action } else { next };
                    for alternative in entry.alternatives.iter().rev() {
                        any = self.all(alternative.iter().filter(|c| c.index != 0), narrow, action, any);
                    }
                    // The kernel takes it as an int.
                    next = self.one(which, true, any, next);
                }
            }
        }
        // Every link may turn out to be unconditional (a mask of 0): there is no code then.
        if let Target::At(position) = next {
            self.chains[chain] = Some(position);
        }
        next
    }

    /// All of these conditions.
    fn all<'c>(
        &mut self,
        conditions: impl DoubleEndedIterator<Item = &'c Condition>,
        narrow: bool,
        yes: Target,
        no: Target,
    ) -> Target {
        conditions.rev().fold(yes, |yes, condition| self.one(*condition, narrow, yes, no))
    }

    /// A comparison of 64 bits, in two halves of which the upper one comes first.
    fn one(
        &mut self,
        Condition { index, compare }: Condition,
        narrow: bool,
        yes: Target,
        no: Target,
    ) -> Target {
        match compare {
            Compare::NotEqual(value) => {
                self.one(Condition { index, compare: Compare::Equal(value) }, narrow, no, yes)
            }
            Compare::Less(value) => {
                self.one(Condition { index, compare: Compare::GreaterOrEqual(value) }, narrow, no, yes)
            }
            Compare::LessOrEqual(value) => {
                self.one(Condition { index, compare: Compare::Greater(value) }, narrow, no, yes)
            }
            Compare::Equal(value) => self.one(
                Condition { index, compare: Compare::Masked { mask: u64::MAX, value } },
                narrow,
                yes,
                no,
            ),
            Compare::Masked { mask, value } => {
                let low = self.masked(index, 0, mask as u32, value as u32, yes, no);
                if narrow {
                    low
                } else {
                    self.masked(index, 1, (mask >> 32) as u32, (value >> 32) as u32, low, no)
                }
            }
            Compare::Greater(value) => self.greater(JGT, index, value, narrow, yes, no),
            Compare::GreaterOrEqual(value) => self.greater(JGE, index, value, narrow, yes, no),
        }
    }

    fn masked(&mut self, index: u32, half: u32, mask: u32, value: u32, yes: Target, no: Target) -> Target {
        if mask == 0 {
            return yes;
        }
        self.branch(JEQ, value, yes, no);
        if mask != u32::MAX {
            self.plain(AND, mask);
        }
        self.load(index, half)
    }

    fn greater(
        &mut self,
        code: u16,
        index: u32,
        value: u64,
        narrow: bool,
        yes: Target,
        no: Target,
    ) -> Target {
        let (high, low) = ((value >> 32) as u32, value as u32);
        self.branch(code, low, yes, no);
        let lower = self.load(index, 0);
        if narrow {
            return lower;
        }
        let equal = self.branch(JEQ, high, lower, no);
        self.branch(JGT, high, yes, equal);
        self.load(index, 1)
    }

    /// Load the low (0) or high (1) half of an argument.
    fn load(&mut self, index: u32, half: u32) -> Target {
        let word = if self.big_endian { 1 - half } else { half };
        self.plain(LD, ARGS + 8 * index + 4 * word)
    }
}
