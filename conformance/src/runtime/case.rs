//! What a case is: a name, the clause it holds the runtime to, what it needs, and a function.

use std::fmt;

use anyhow::Result;

use super::harness::Test;
use super::host::Need;

pub struct Case {
    /// `subject/what`, unique.
    pub name: &'static str,
    /// File and section of runtime-spec 1.3, or the contract.
    pub clause: &'static str,
    /// What is checked, in our own words.
    pub about: &'static str,
    pub kind: Kind,
    pub needs: &'static [Need],
    pub run: fn(&Test) -> Result<()>,
}

#[derive(Clone, Copy)]
pub enum Kind {
    /// A clause of runtime-spec.
    Spec,
    /// What engines call and expect, and runc's command line.
    Contract,
    /// What peers are known to get wrong, or what Berth promises beyond both.
    Strict,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Kind::Spec => "spec",
            Kind::Contract => "contract",
            Kind::Strict => "strict",
        }
    }
}

pub const fn spec(
    name: &'static str,
    clause: &'static str,
    about: &'static str,
    run: fn(&Test) -> Result<()>,
) -> Case {
    Case { name, clause, about, kind: Kind::Spec, needs: &[Need::Root], run }
}

pub const fn contract(
    name: &'static str,
    clause: &'static str,
    about: &'static str,
    run: fn(&Test) -> Result<()>,
) -> Case {
    Case { name, clause, about, kind: Kind::Contract, needs: &[Need::Root], run }
}

pub const fn strict(
    name: &'static str,
    clause: &'static str,
    about: &'static str,
    run: fn(&Test) -> Result<()>,
) -> Case {
    Case { name, clause, about, kind: Kind::Strict, needs: &[Need::Root], run }
}

impl Case {
    pub const fn needs(mut self, needs: &'static [Need]) -> Case {
        self.needs = needs;
        self
    }
}

/// An error that means "this cannot be tested here", with the reason.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Leave a case that found out half-way that the host cannot do it.
pub fn skip(why: impl Into<String>) -> anyhow::Error {
    Skip(why.into()).into()
}
