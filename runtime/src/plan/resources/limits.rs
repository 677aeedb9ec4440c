//! Collects the values: which hierarchy has the controller, which file, which text.

use std::borrow::Cow;
use std::fmt::Display;

use anyhow::Result;
use report::Kind;

use super::{CgroupPlan, Missing, Place, Write};

/// What is in force now: `update` changes a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Current {
    /// Bytes; -1: unlimited.
    pub memory: Option<i64>,
    /// Microseconds; -1: unlimited.
    pub quota: Option<i64>,
    pub period: Option<u64>,
}

/// The values so far.
pub(super) struct Limits<'a> {
    plan: &'a CgroupPlan,
    pub(super) current: Current,
    pub(super) writes: Vec<Write>,
}

impl<'a> Limits<'a> {
    pub(super) fn new(plan: &'a CgroupPlan, current: Current) -> Self {
        Limits { plan, current, writes: Vec::new() }
    }

    /// Where a controller is; `v1` and `v2` are its names.
    pub(super) fn place(&self, v1: &str, v2: &str, source: impl Display) -> Result<Place> {
        if let Some(index) = self.plan.v1.iter().position(|dir| dir.controllers.iter().any(|c| c == v1)) {
            return Ok(Place::V1(index));
        }
        match &self.plan.v2 {
            Some(dir) if dir.controllers.iter().any(|c| c == v2) => Ok(Place::V2),
            _ => {
                let name = if self.plan.v1.is_empty() && !v2.is_empty() { v2 } else { v1 };
                Err(unsupported(source, format!("this host has no {name} cgroup controller")))
            }
        }
    }

    /// No v1 hierarchy is mounted.
    pub(super) fn is_v2(&self) -> bool {
        self.plan.v1.is_empty() && self.plan.v2.is_some()
    }

    /// One value for a file that must be there.
    pub(super) fn put(
        &mut self,
        at: Place,
        file: impl Into<Cow<'static, str>>,
        value: impl Display,
        source: impl Into<Cow<'static, str>>,
    ) {
        self.put_or(at, file, value, source, Missing::Error);
    }

    /// One value for a file that may be missing.
    pub(super) fn put_or(
        &mut self,
        at: Place,
        file: impl Into<Cow<'static, str>>,
        value: impl Display,
        source: impl Into<Cow<'static, str>>,
        missing: Missing,
    ) {
        let value = value.to_string().into();
        self.writes.push(Write { at, file: file.into(), value, source: source.into(), missing });
    }
}

/// The setting cannot be honoured on this host.
pub(super) fn unsupported(source: impl Display, why: impl Display) -> anyhow::Error {
    report::error(Kind::Unsupported, format!("{source}: {why}"))
}

/// A limit where -1 stands for none, as v2 writes it.
pub(super) fn or_max(limit: i64) -> Cow<'static, str> {
    if limit == -1 { "max".into() } else { limit.to_string().into() }
}

/// Zero is as good as absent, as in runc.
pub(super) fn given(value: Option<i64>, source: &str) -> Result<Option<i64>> {
    match value {
        None | Some(0) => Ok(None),
        Some(value) if value < -1 => Err(report::at(source, format!("{value}: -1 (unlimited) is the least"))),
        value => Ok(value),
    }
}
