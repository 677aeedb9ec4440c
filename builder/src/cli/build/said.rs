//! What is told of a Dockerfile: its plan, and what is hardly meant.

use anyhow::Result;

use crate::context::Contexts;
use crate::dockerfile::ast::Dockerfile;
use crate::dockerfile::lint;
use crate::dockerfile::source::{Problem, Source};
use crate::plan::stages;
use crate::watch::Watch;

/// What would be done, for people.
pub fn plan(source: &Source, file: &Dockerfile, stages: &stages::Stages) -> String {
    let mut out = String::new();
    for node in &stages.nodes {
        let stage = &file.stages[node.number];
        let name = stage.name.as_ref().map_or_else(|| format!("stage-{}", node.number), |n| n.text.clone());
        let target = if node.number == stages.target { " (the target)" } else { "" };
        out.push_str(&format!("stage {} {name}{target}: from {}\n", node.number, origin(&node.base)));
        for (name, other) in &node.others {
            out.push_str(&format!("  takes from {name}: {}\n", origin(other)));
        }
        for instruction in &stage.instructions {
            let text = source.text.get(instruction.span.clone()).unwrap_or_default();
            let text: Vec<&str> = text.lines().map(str::trim).collect();
            out.push_str(&format!("  {}: {}\n", source.line(instruction.span.start), text.join(" ")));
        }
    }
    out
}

fn origin(origin: &stages::Origin) -> String {
    match origin {
        stages::Origin::Stage(n) => format!("stage {n}"),
        stages::Origin::Scratch => "nothing".to_owned(),
        stages::Origin::Context(name) => format!("context {name}"),
        stages::Origin::Image(name) => format!("image {name}"),
    }
}

/// Look for what is hardly meant. The status: whether there is something.
pub fn check(source: &Source, file: &Dockerfile, contexts: &Contexts<'_>, watch: &Watch) -> Result<i32> {
    let ignore = contexts.main.as_ref().map(|c| &c.ignore);
    let (found, _) = lint::check(source, file, ignore).map_err(|p| source.error(p))?;
    for warning in &found {
        let line = source.line(warning.span.start);
        watch.say(&format!(
            "{}:{line}: {}: {}\n{}",
            source.name,
            warning.rule,
            warning.message,
            source.excerpt(&warning.span)
        ));
    }
    watch.say(&match found.len() {
        0 => "Check complete, no warnings found.".to_owned(),
        1 => "Check complete, 1 warning has been found!".to_owned(),
        n => format!("Check complete, {n} warnings have been found!"),
    });
    Ok(i32::from(!found.is_empty()))
}

/// What a build tells of it, in a line each.
pub fn warn(source: &Source, file: &Dockerfile, contexts: &Contexts<'_>, watch: &Watch) -> Result<()> {
    let ignore = contexts.main.as_ref().map(|c| &c.ignore);
    let (found, settings) = lint::check(source, file, ignore).map_err(|p| source.error(p))?;
    for warning in found {
        if settings.error {
            let message = format!("{}: {} (# check=error=true)", warning.rule, warning.message);
            return Err(source.error(Problem::new(warning.span, message)));
        }
        let line = source.line(warning.span.start);
        watch.say(&format!("warning: {}:{line}: {}: {}", source.name, warning.rule, warning.message));
    }
    Ok(())
}
