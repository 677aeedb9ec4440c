//! Which stages does a target need, and in which order? A stage is built on another, or on an image, and takes files from others.

use std::collections::{BTreeMap, BTreeSet};

use image::Reference;
use report::nearest;

use super::scope::Globals;
use crate::dockerfile::ast::{Dockerfile, Kind, Stage};
use crate::dockerfile::source::{Problem, Span};

/// Where a stage or its files come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The number of an earlier stage.
    Stage(usize),
    /// `FROM scratch`: nothing.
    Scratch,
    /// A context that the build was given under this name.
    Context(String),
    /// An image.
    Image(String),
}

/// A stage that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number in the file.
    pub number: usize,
    pub base: Origin,
    /// `--platform`, if it has one.
    pub platform: Option<String>,
    /// What is named by its `--from` and `from=`, as it stands there.
    pub others: BTreeMap<String, Origin>,
}

/// What a build needs, those first that others wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stages {
    pub nodes: Vec<Node>,
    /// The number of the stage that is the result.
    pub target: usize,
}

/// What a target needs. Without a target it is the last stage; `contexts` are the names of those that were given.
///
/// # Errors
/// At the stage or flag that names what is not there; a target that is not there has no place, and is an error without one.
pub fn needed(
    file: &Dockerfile,
    globals: &Globals,
    target: Option<&str>,
    contexts: &BTreeSet<String>,
) -> Result<Stages, Problem> {
    let target = match target {
        Some(name) => find_target(file, name)?,
        None => file.stages.len() - 1,
    };
    let mut nodes: BTreeMap<usize, Node> = BTreeMap::new();
    let mut open = vec![target];
    while let Some(number) = open.pop() {
        if nodes.contains_key(&number) {
            continue;
        }
        let node = node(file, globals, number, contexts)?;
        for origin in [&node.base].into_iter().chain(node.others.values()) {
            if let Origin::Stage(other) = origin {
                open.push(*other);
            }
        }
        nodes.insert(number, node);
    }
    // A stage can only name those before it, so that the file's order is one in which nothing waits in vain.
    Ok(Stages { nodes: nodes.into_values().collect(), target })
}

fn find_target(file: &Dockerfile, name: &str) -> Result<usize, Problem> {
    if let Some(number) = by_name(&file.stages, name) {
        return Ok(number);
    }
    if let Ok(number) = name.parse::<usize>()
        && number < file.stages.len()
    {
        return Ok(number);
    }
    let names = || file.stages.iter().filter_map(|s| s.name.as_ref()).map(|n| n.text.as_str());
    let end = file.stages.last().map_or(0, |s| s.span.start);
    let problem = Problem::new(end..end, format!("target {name:?}: there is no such stage"));
    Err(match nearest(name, names()) {
        Some(near) => problem.hint(format!("{near}?")),
        None if names().next().is_none() => problem.hint("no stage has a name: FROM IMAGE AS NAME"),
        None => problem.hint(format!("there are {}", names().collect::<Vec<_>>().join(", "))),
    })
}

/// The last stage of that name, however it is written.
fn by_name(stages: &[Stage], name: &str) -> Option<usize> {
    stages.iter().rposition(|s| s.name.as_ref().is_some_and(|n| n.text == name.to_lowercase()))
}

/// The context that takes the place of a stage or an image: by its name, or as another name of the same image.
fn context(contexts: &BTreeSet<String>, name: &str) -> Option<String> {
    let reference: Option<Reference> = name.parse().ok();
    let same = |context: &&String| {
        *context == name || (reference.is_some() && context.parse::<Reference>().ok() == reference)
    };
    contexts.iter().find(same).cloned()
}

fn node(
    file: &Dockerfile,
    globals: &Globals,
    number: usize,
    contexts: &BTreeSet<String>,
) -> Result<Node, Problem> {
    let stage = &file.stages[number];
    let before = &file.stages[..number];
    let base = globals.expand(&stage.base)?;
    if base.is_empty() {
        let problem = Problem::new(stage.base.span.clone(), format!("{} is empty", stage.base.text));
        return Err(problem.hint("--build-arg, or a default before the first FROM: ARG NAME=VALUE"));
    }
    let platform = stage.platform.as_ref().map(|word| globals.expand(word)).transpose()?;
    let base = match (context(contexts, &base), by_name(before, &base)) {
        (Some(name), _) => Origin::Context(name),
        (None, Some(number)) => Origin::Stage(number),
        (None, None) if base == "scratch" => Origin::Scratch,
        (None, None) => Origin::Image(base),
    };
    let mut others = BTreeMap::new();
    for (name, span) in named(stage) {
        let origin = other(file, number, &name, span, contexts)?;
        others.insert(name, origin);
    }
    Ok(Node { number, base, platform, others })
}

/// What the instructions of a stage take files from.
fn named(stage: &Stage) -> Vec<(String, Span)> {
    let mut found = Vec::new();
    for instruction in &stage.instructions {
        match &instruction.kind {
            Kind::Copy(copy) => {
                found.extend(copy.stage.iter().map(|word| (word.text.clone(), word.span.clone())))
            }
            Kind::Run(run) => {
                for mount in &run.mounts {
                    let from = mount.options.iter().find(|(name, _)| name == "from");
                    found.extend(from.and_then(|(_, v)| v.clone()).map(|name| (name, mount.span.clone())));
                }
            }
            _ => {}
        }
    }
    found
}

fn other(
    file: &Dockerfile,
    number: usize,
    name: &str,
    span: Span,
    contexts: &BTreeSet<String>,
) -> Result<Origin, Problem> {
    if name.contains('$') {
        let problem = Problem::new(span, format!("from {name}: variables have no value here"));
        return Err(problem.hint("give it a stage: FROM $NAME AS x, then --from=x"));
    }
    if name.is_empty() {
        return Err(Problem::new(span, "from nothing: a stage, an image or a context is missing"));
    }
    if let Some(name) = context(contexts, name) {
        return Ok(Origin::Context(name));
    }
    if let Some(number) = by_name(&file.stages[..number], name) {
        return Ok(Origin::Stage(number));
    }
    if let Ok(wanted) = name.parse::<usize>() {
        if wanted < number {
            return Ok(Origin::Stage(wanted));
        }
        let problem =
            Problem::new(span, format!("from {wanted}: stage {number} can take from those before it"));
        return Err(match number {
            0 => problem.hint("this is the first stage"),
            1 => problem.hint("that is stage 0"),
            _ => problem.hint(format!("those are 0 to {}", number - 1)),
        });
    }
    if file.stages[number].name.as_ref().is_some_and(|own| own.text == name.to_lowercase()) {
        return Err(Problem::new(span, format!("from {name}: a stage cannot take from itself")));
    }
    if name == "scratch" {
        return Err(Problem::new(span, "from scratch: there is nothing in it"));
    }
    Ok(Origin::Image(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::parse::parse;
    use crate::dockerfile::source::Source;
    use crate::plan::scope::Given;

    fn plan(text: &str, target: Option<&str>) -> Result<Stages, Problem> {
        let file = parse(&Source::new("x", text)).unwrap();
        let globals = Globals::read(&file, &Given::default()).unwrap();
        needed(&file, &globals, target, &["ctx".to_owned(), "replaced".to_owned()].into())
    }

    const FILE: &str = "ARG B=base\nFROM img AS base\nFROM ${B} AS one\nFROM scratch AS unused\nRUN x\nFROM replaced AS two\n\
        COPY --from=One a b\nCOPY --from=0 a b\nCOPY --from=alpine:3 a b\nRUN --mount=type=bind,from=ctx,target=/x y\n\
        FROM scratch\nCOPY --from=two a b\n";

    #[test]
    fn a_target_has_what_it_needs_and_no_more() {
        let all = plan(FILE, None).unwrap();
        let numbers: Vec<_> = all.nodes.iter().map(|n| n.number).collect();
        assert_eq!((all.target, &numbers[..]), (4, &[0, 1, 3, 4][..]));
        let bases: Vec<_> = all.nodes.iter().map(|n| n.base.clone()).collect();
        let context = Origin::Context("replaced".to_owned());
        assert_eq!(bases, [Origin::Image("img".to_owned()), Origin::Stage(0), context, Origin::Scratch]);
        let others: Vec<_> = all.nodes[2].others.iter().map(|(n, o)| (n.as_str(), o.clone())).collect();
        assert_eq!(
            others,
            [
                ("0", Origin::Stage(0)),
                ("One", Origin::Stage(1)),
                ("alpine:3", Origin::Image("alpine:3".to_owned())),
                ("ctx", Origin::Context("ctx".to_owned())),
            ]
        );
        for (target, numbers) in [("ONE", &[0, 1][..]), ("0", &[0]), ("unused", &[2])] {
            let found = plan(FILE, Some(target)).unwrap();
            assert_eq!(found.nodes.iter().map(|n| n.number).collect::<Vec<_>>(), numbers, "{target}");
        }
    }

    #[test]
    fn a_name_is_a_stage_only_below_it() {
        let text = "FROM golang\nCOPY --from=later a b\nFROM golang AS golang\nFROM x AS later\n";
        let first = plan(text, Some("0")).unwrap().nodes.remove(0);
        assert_eq!(first.others["later"], Origin::Image("later".to_owned()));
        assert_eq!(plan(text, Some("golang")).unwrap().nodes[0].base, Origin::Image("golang".to_owned()));
        // A context takes the place of a stage, and of an image by any of its names.
        let text = "FROM x AS ctx\nFROM ctx\nFROM docker.io/library/replaced:latest\nCOPY --from=1 a b\n";
        let found = plan(text, None).unwrap();
        assert_eq!(found.nodes.iter().map(|n| n.number).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(found.nodes[0].base, Origin::Context("ctx".to_owned()));
        assert_eq!(found.nodes[1].base, Origin::Context("replaced".to_owned()));
        // The last of two counts.
        let text = "FROM x AS a\nFROM y AS A\nFROM a\n";
        assert_eq!(plan(text, None).unwrap().nodes[1].base, Origin::Stage(1));
    }

    #[test]
    fn what_is_not_there_is_told() {
        for (text, target, marked, message, hint) in [
            ("FROM a AS build", Some("biuld"), "", "there is no such stage", "build?"),
            ("FROM a", Some("x"), "", "there is no such stage", "no stage has a name"),
            ("FROM a AS b\nFROM c AS d", Some("final"), "", "there is no such stage", "there are b, d"),
            ("FROM $NONE", None, "$NONE", "$NONE is empty", "--build-arg"),
            ("FROM a\nCOPY --from=$x b c", None, "$x", "variables have no value here", "give it a stage"),
            ("FROM a\nCOPY --from=0 b c", None, "0", "from 0: stage 0", "this is the first"),
            ("FROM a\nFROM a\nCOPY --from=1 b c", None, "1", "from 1: stage 1", "that is stage 0"),
            ("FROM a AS b\nCOPY --from=B b c", None, "B", "cannot take from itself", ""),
            ("FROM a\nCOPY --from=scratch b c", None, "scratch", "there is nothing in it", ""),
            ("FROM a\nRUN --mount=from=7,target=/x y", None, "from=7,target=/x", "from 7: stage 0", ""),
        ] {
            let problem = plan(text, target).expect_err(text);
            assert_eq!(&text[problem.span.clone()], marked, "{text}");
            assert!(problem.message.contains(message), "{text}: {}", problem.message);
            assert!(problem.hint.unwrap_or_default().starts_with(hint), "{text}");
        }
    }
}
