//! How results are shown: lines, a table with a column for each runtime, JSON, Markdown.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// What one case said about one runtime.
#[derive(Clone, Serialize, Deserialize)]
pub struct Record {
    pub number: usize,
    pub name: String,
    pub clause: String,
    pub about: String,
    pub kind: String,
    pub verdict: Verdict,
    /// Why it failed or was skipped.
    pub reason: String,
    pub millis: u64,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    Fail,
    Skip,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "FAIL",
            Verdict::Skip => "skip",
        }
    }
}

/// One runtime and what all cases said about it.
pub struct Column {
    pub path: PathBuf,
    pub title: String,
    pub records: Vec<Record>,
}

pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Column {
    pub fn counts(&self) -> Counts {
        let count = |v| self.records.iter().filter(|r| r.verdict == v).count();
        Counts { passed: count(Verdict::Pass), failed: count(Verdict::Fail), skipped: count(Verdict::Skip) }
    }
}

/// The line printed as a case ends.
pub fn line(r: &Record) -> String {
    let first = r.reason.lines().next().unwrap_or_default();
    let reason = if first.is_empty() { String::new() } else { format!("  {}", clip(first, 160)) };
    format!("{} {:<44} {}{reason}", r.verdict.word(), r.name, r.clause)
}

/// Every failure of the only runtime, whole.
pub fn details(out: &mut impl Write, columns: &[Column]) -> Result<()> {
    for r in columns.iter().flat_map(|c| &c.records).filter(|r| r.verdict == Verdict::Fail) {
        writeln!(out, "\n--- {} ({})\n    checks: {}", r.name, r.clause, r.about)?;
        for line in r.reason.lines() {
            writeln!(out, "    {line}")?;
        }
    }
    writeln!(out)?;
    Ok(())
}

/// A row a case, a column a runtime, then why.
pub fn table(out: &mut impl Write, columns: &[Column]) -> Result<()> {
    let width = columns.iter().map(|c| c.title.len()).max().unwrap_or(4).max(4) + 2;
    write!(out, "{:<46}", "case")?;
    for c in columns {
        write!(out, "{:<width$}", c.title)?;
    }
    writeln!(out)?;
    for (row, first) in columns[0].records.iter().enumerate() {
        write!(out, "{:<46}", first.name)?;
        for c in columns {
            write!(out, "{:<width$}", c.records[row].verdict.word())?;
        }
        writeln!(out)?;
    }
    for c in columns {
        writeln!(out, "\n{}:", c.title)?;
        for r in c.records.iter().filter(|r| r.verdict != Verdict::Pass) {
            let reason = clip(r.reason.lines().next().unwrap_or_default(), 150);
            writeln!(out, "  {} {:<44} {reason}", r.verdict.word(), r.name)?;
        }
    }
    writeln!(out)?;
    Ok(())
}

pub fn json(out: &mut impl Write, columns: &[Column]) -> Result<()> {
    let runtimes: Vec<_> = columns
        .iter()
        .map(|c| {
            let n = c.counts();
            serde_json::json!({
                "runtime": c.path, "version": c.title,
                "passed": n.passed, "failed": n.failed, "skipped": n.skipped, "cases": c.records,
            })
        })
        .collect();
    writeln!(out, "{}", serde_json::to_string_pretty(&runtimes)?)?;
    Ok(())
}

/// The page of differences: only cases that some runtime fails.
pub fn markdown(out: &mut impl Write, columns: &[Column]) -> Result<()> {
    let cases = columns[0].records.len();
    if columns[0].records.first().is_some_and(|r| r.kind == "builder") {
        writeln!(out, "# Where builders differ\n")?;
        writeln!(
            out,
            "Written by `conformance builder --format markdown`; {cases} builds, of which those are listed that some \
             builder here fails.\n"
        )?;
    } else {
        writeln!(out, "# Where runtimes differ\n")?;
        writeln!(
            out,
            "Written by `conformance runtime --format markdown`; {} cases, of which those are listed that some \
         runtime here fails. Kind `strict` marks what peers are known to get wrong or what only Berth promises; \
         `spec` is runtime-spec 1.3; `contract` is what containerd, Docker, Podman or BuildKit call and expect.\n",
            cases
        )?;
    }
    write!(out, "| case | kind | clause and what it checks |")?;
    for c in columns {
        write!(out, " {} |", c.title)?;
    }
    writeln!(out, "\n|---|---|---|{}", "---|".repeat(columns.len()))?;
    for (row, first) in columns[0].records.iter().enumerate() {
        if columns.iter().all(|c| c.records[row].verdict != Verdict::Fail) {
            continue;
        }
        write!(
            out,
            "| {} | {} | {}: {} |",
            first.name,
            first.kind,
            escape(&first.clause),
            escape(&first.about)
        )?;
        for c in columns {
            let r = &c.records[row];
            match r.verdict {
                Verdict::Pass => write!(out, " pass |")?,
                v => {
                    let why = clip(r.reason.lines().next().unwrap_or_default(), 140);
                    write!(out, " {}: {} |", v.word(), escape(&why))?;
                }
            }
        }
        writeln!(out)?;
    }
    writeln!(out, "\n## Skipped\n")?;
    for c in columns {
        for r in c.records.iter().filter(|r| r.verdict == Verdict::Skip) {
            writeln!(out, "* {}: {}: {}", c.title, r.name, escape(&r.reason))?;
        }
    }
    writeln!(out, "\n## Totals\n")?;
    Ok(())
}

/// The plain last line of each runtime.
pub fn summary(out: &mut impl Write, columns: &[Column]) -> Result<()> {
    for c in columns {
        let n = c.counts();
        if columns.len() > 1 {
            write!(out, "{}: ", c.title)?;
        }
        writeln!(out, "{} passed, {} failed, {} skipped", n.passed, n.failed, n.skipped)?;
    }
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

fn clip(text: &str, to: usize) -> String {
    if text.chars().count() <= to {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(to).collect();
    short.push('…');
    short
}
