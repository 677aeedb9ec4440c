//! How is a stage built? Instruction by instruction; each that does work has a key, and what is kept under it is not made again.

mod files;
mod kept;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, Result};
use image::Digest;
use image::layer::whiteout::Privilege;
use image::manifest::{Config, History, RootFs};
use report::Explain;
use serde_json::json;

pub(super) use files::From;
pub(super) use kept::Effect;
pub use kept::key;

use super::copy::Placing;
use super::layer::{self, Entries};
use super::{Build, Built, Event, How, Layer, lock, sandbox};
use crate::dockerfile::ast::{self, Instruction};
use crate::dockerfile::parse;
use crate::dockerfile::source::{Problem, Source, Span};
use crate::foreign::{self, Runs};
use crate::plan::stages::{Node, Origin};
use crate::plan::state::{self, Bring, State, Work};

/// A stage while it is built.
pub(super) struct Running<'b, 'a> {
    pub(super) build: &'b Build<'a>,
    node: &'b Node,
    /// Stages that this one takes from.
    before: &'b BTreeMap<usize, Built>,
    pub(super) layers: Vec<Layer>,
    pub(super) key: Digest,
    history: Vec<History>,
    no_cache: bool,
    /// Of the programs in it.
    architecture: String,
    /// What is only there to be mounted on.
    pub(super) stubs: sandbox::Stubs,
    /// The file system so far, mounted.
    view: Option<OwnedFd>,
    /// Steps that have a title.
    steps: (usize, usize),
    name: String,
}

/// Where an instruction stands.
#[derive(Clone, Copy)]
pub(super) struct Place<'s> {
    pub(super) source: &'s Source,
    pub(super) span: &'s Span,
}

impl Place<'_> {
    fn problem(&self, problem: Problem) -> anyhow::Error {
        self.source.error(problem)
    }

    /// An error of what was done, with the line.
    pub(super) fn failed(&self, e: anyhow::Error) -> anyhow::Error {
        if e.downcast_ref::<report::Excerpt>().is_some() {
            return e;
        }
        let line = self.source.line(self.span.start);
        e.context(format!("{}:{line}", self.source.name))
            .context(report::Excerpt(self.source.excerpt(self.span)))
    }
}

impl<'a> Build<'a> {
    pub(super) fn stage(&self, node: &Node, before: &BTreeMap<usize, Built>) -> Result<Built> {
        let stage = &self.file.stages[node.number];
        let place = Place { source: self.source, span: &stage.span };
        let mut base_name = None;
        let platform = node.platform.as_deref().or(self.options.platform.as_deref());
        let wanted = match platform {
            Some(text) => text.parse().map_err(|e| place.failed(e))?,
            None => self.given.target.clone(),
        };
        let scratch = || Config {
            architecture: wanted.architecture.clone(),
            os: wanted.os.clone(),
            variant: wanted.variant.clone(),
            ..Config::default()
        };
        let image = |name: &str| -> Result<_> {
            let base = self.base(name, platform).map_err(|e| place.failed(e))?;
            let (layers, key) = Self::base_layers(&base);
            Ok((base, layers, key))
        };
        let (layers, key, config) = match &node.base {
            Origin::Stage(n) => {
                let built = before.get(n).context("a stage is missing")?;
                base_name.clone_from(&built.base);
                (built.layers.clone(), built.key.clone(), built.config.clone())
            }
            Origin::Scratch => (Vec::new(), self::key(&json!("scratch")), scratch()),
            Origin::Context(name) => match self.contexts.image_of(name) {
                Some(text) => {
                    let (base, layers, key) = image(text)?;
                    base_name = Some((text.to_owned(), base.target.clone()));
                    (layers, key, base.config)
                }
                None => (Vec::new(), self::key(&json!("scratch")), scratch()),
            },
            Origin::Image(name) => {
                let (base, layers, key) = image(name)?;
                base_name = Some((name.clone(), base.target.clone()));
                (layers, key, base.config)
            }
        };
        if !matches!(node.base, Origin::Stage(_)) && config.architecture != wanted.architecture {
            let text = format!(
                "warning: {} is for {}/{}, not for {wanted}",
                stage.base.text, config.os, config.architecture
            );
            (self.tell)(Event::Note { step: 0, text: &text });
        }
        let name = match &stage.name {
            Some(name) => name.text.clone(),
            None if self.file.stages.len() == 1 => String::new(),
            None => format!("stage-{}", node.number),
        };
        let (mut state, triggers) =
            State::new(Some(&config), self.given, self.globals, self.file.directives.escape);
        if let Origin::Stage(n) = &node.base
            && let Some(built) = before.get(n)
        {
            state.inherit(&built.arguments);
        }
        let no_cache = self.options.no_cache
            || self.options.no_cache_stages.contains(&name)
            || self.options.no_cache_stages.contains(&node.number.to_string());
        let mut triggered = Vec::new();
        for text in triggers {
            let source = Source::new(format!("ONBUILD of {}", stage.base.text), text);
            let instruction = parse::trigger(&source).map_err(|p| source.error(p))?;
            triggered.push((source, instruction));
        }
        let all: Vec<(&Source, &Instruction)> = triggered
            .iter()
            .map(|(source, instruction)| (source, instruction))
            .chain(stage.instructions.iter().map(|i| (self.source, i)))
            .collect();
        let works = |i: &Instruction| {
            matches!(
                i.kind,
                ast::Kind::Run(_) | ast::Kind::Copy(_) | ast::Kind::Add(_) | ast::Kind::Workdir(_)
            )
        };
        let count = all.iter().filter(|(_, i)| works(i)).count();
        let mut running = Running {
            build: self,
            node,
            before,
            layers,
            key,
            history: config.history.clone().unwrap_or_default(),
            no_cache,
            architecture: config.architecture.clone(),
            stubs: sandbox::first_stubs(),
            view: None,
            steps: (0, count),
            name,
        };
        if let Origin::Context(name) = &node.base
            && self.contexts.image_of(name).is_none()
        {
            running.whole_context(name).map_err(|e| place.failed(e))?;
        }
        let wanted_later = |after: usize| {
            let taken = self.stages.nodes.iter().any(|n| {
                std::iter::once(&n.base).chain(n.others.values()).any(|o| *o == Origin::Stage(node.number))
            });
            taken || self.options.files || all[after + 1..].iter().any(|(_, i)| works(i))
        };
        for (n, (source, instruction)) in all.iter().enumerate() {
            let place = Place { source, span: &instruction.span };
            let step = state.apply(instruction).map_err(|p| place.problem(p))?;
            running.step(&step, place, wanted_later(n))?;
        }
        let other = {
            let mut other = config.other.clone();
            // Of the base's making.
            for gone in ["container", "container_config", "docker_version", "parent", "Size", "id"] {
                other.remove(gone);
            }
            match &state.author {
                Some(author) => drop(other.insert("author".to_owned(), json!(author))),
                None => drop(other.remove("author")),
            }
            other
        };
        let arguments = state.inheritance();
        let config = Config {
            config: Some(state.execution),
            history: Some(running.history),
            rootfs: RootFs::default(),
            other,
            created: None,
            ..config
        };
        Ok(Built { layers: running.layers, key: running.key, config, arguments, base: base_name })
    }
}

impl<'b, 'a> Running<'b, 'a> {
    fn step(&mut self, step: &state::Step, place: Place<'_>, wanted_later: bool) -> Result<()> {
        let title = match &step.work {
            Work::Config => None,
            _ => {
                self.steps.0 += 1;
                let text = place.source.text.get(place.span.clone()).unwrap_or_default();
                let name = if self.name.is_empty() { String::new() } else { format!("{} ", self.name) };
                Some(format!("[{name}{}/{}] {}", self.steps.0, self.steps.1, one_line(text)))
            }
        };
        let mut empty = true;
        if let Some(title) = title {
            let number = self.build.begin(&title);
            let began = Instant::now();
            let done = match &step.work {
                Work::Config => Ok((Effect::Nothing, How::Made)),
                Work::Run(run) => self.run(number, run, &title),
                Work::Files(bring) => self.files(number, bring, &title, wanted_later),
                Work::Folder { path, user } => self.folder(path, user.as_deref(), &title, wanted_later),
            };
            let how = done.as_ref().map_or(How::Failed, |(_, how)| *how);
            (self.build.tell)(Event::Done { step: number, how, seconds: began.elapsed().as_secs_f64() });
            {
                let mut counts = lock(&self.build.shared.counts);
                counts.1 += 1;
                counts.0 += usize::from(how == How::Cached);
            }
            if let (Effect::Layer(key), _) = done.map_err(|e| place.failed(e))? {
                self.layers.push(Layer::Step(key));
                self.view = None;
                empty = false;
            }
        }
        self.history.push(History {
            created_by: Some(step.history.clone()),
            comment: Some("berth-builder".to_owned()),
            empty_layer: empty,
            ..History::default()
        });
        Ok(())
    }

    fn run(&mut self, number: usize, run: &state::Run, title: &str) -> Result<(Effect, How)> {
        anyhow::ensure!(
            !run.insecure || self.build.options.insecure,
            "--security=insecure: this must be allowed for the build (--allow security.insecure)"
        );
        let wanted = self.mounts(run)?;
        let mut environment = run.environment.clone();
        if let Some(epoch) = self.build.options.epoch
            && !environment.iter().any(|(name, _)| name == "SOURCE_DATE_EPOCH")
        {
            environment.push(("SOURCE_DATE_EPOCH".to_owned(), epoch.to_string()));
        }
        let settings = self.build.sandbox;
        let parts = json!({
            "run": run.args, "script": run.script, "on": self.key, "env": environment, "user": run.user,
            "cwd": run.cwd, "mounts": wanted.key, "network": run.network.as_ref().or(settings.network.as_ref()),
            "insecure": run.insecure, "hosts": settings.hosts,
        });
        let key = key(&parts);
        if let Some((key, effect)) = self.cached(&key)? {
            self.key = key;
            return Ok((effect, How::Cached));
        }
        self.remember(self.tell_why(number, parts, None)?, None)?;
        self.can_run(number)?;
        let build = self.build;
        let lowers = build.trees(&self.layers)?;
        let mut run = state::Run { environment, ..run.clone() };
        for (name, value) in build.given.proxies() {
            if !run.environment.iter().any(|(known, _)| known == name) {
                run.environment.push((name.to_owned(), value.to_owned()));
            }
        }
        let bound = self.bind(&wanted)?;
        let turn = build.turn();
        let mut output = |bytes: &[u8]| (build.tell)(Event::Output { step: number, bytes });
        let outcome = sandbox::run(
            settings,
            build.addition,
            &lowers,
            &mut self.stubs,
            sandbox::Command { run: &run, bound: bound.all, secrets: &wanted.secrets },
            &mut output,
        )?;
        drop(turn);
        drop(bound.held);
        if outcome.status != 0 {
            return Err(super::commit::Failed { status: outcome.status, step: number }.into());
        }
        let made = outcome.tree.map(|tree| (None, Some((tree, sandbox::UPPER))));
        let (key, effect) = self.keep(key, title, made, None)?;
        self.key = key;
        Ok((effect, How::Made))
    }

    /// Programs of other machines need something that runs them.
    fn can_run(&self, number: usize) -> Result<()> {
        let own = &self.build.given.build.architecture;
        let architecture = &self.architecture;
        match foreign::runs(architecture, own, &self.build.sandbox.interpreters) {
            Runs::Natively | Runs::Perhaps => {}
            Runs::By(found) => {
                let what = match found.open {
                    true => format!("programs for {architecture} are run by {}", found.path),
                    false => format!(
                        "programs for {architecture} need {} in the image: binfmt_misc has it without its flag F",
                        found.path
                    ),
                };
                (self.build.tell)(Event::Note { step: number, text: &what });
            }
            Runs::Not => {
                let text = format!(
                    "this is a program for {architecture}, and this machine ({own}) has nothing that runs it"
                );
                let error = report::error(report::Kind::Unsupported, text);
                let failed: Result<()> = Err(error);
                return failed.hint(|| {
                    "an interpreter in binfmt_misc with its flag F, as Debian's qemu-user-static has them"
                        .to_owned()
                });
            }
        }
        Ok(())
    }

    /// The file system so far, to be looked at.
    pub(super) fn view(&mut self) -> Result<OwnedFd> {
        if let Some(view) = &self.view {
            return Ok(view.try_clone()?);
        }
        let view = self.build.mounted(&self.layers)?;
        let copy = view.try_clone()?;
        self.view = Some(view);
        Ok(copy)
    }

    fn folder(
        &mut self,
        path: &str,
        user: Option<&str>,
        title: &str,
        wanted_later: bool,
    ) -> Result<(Effect, How)> {
        let key = key(&json!({"folder": path, "user": user, "on": self.key}));
        if let Some((key, effect)) = self.cached(&key)? {
            // Where nothing changed, what comes next need not know.
            if matches!(effect, Effect::Layer(_)) {
                self.key = key;
            }
            return Ok((effect, How::Cached));
        }
        let view = self.view()?;
        let mut entries = Entries::default();
        let mut placing = Placing { view: Some(view.as_fd()), entries: &mut entries };
        let found = placing.resolve(path.as_bytes())?;
        anyhow::ensure!(found.stat.is_none() || found.is_dir(), "{path}: it is no folder");
        if found.stat.is_some() {
            return Ok((self.keep(key, title, None, None)?.1, How::Made));
        }
        let owner = match user {
            Some(user) => {
                let user = crate::bundle::user(view.as_fd(), user)?;
                (user.uid, user.gid)
            }
            None => (0, 0),
        };
        placing.folders(&found.path, owner)?;
        let latest = self.build.options.latest;
        let made = layer::make(self.build.addition, &entries, latest, wanted_later, None, None)?;
        let (key, effect) = self.keep_made(key, title, made)?;
        self.key = key;
        Ok((effect, How::Made))
    }

    /// `FROM` a folder: it is the file system.
    fn whole_context(&mut self, name: &str) -> Result<()> {
        let bring = Bring {
            sources: vec![state::Origin::Path("/".to_owned())],
            to: "/".to_owned(),
            chown: None,
            chmod: None,
            link: false,
            exclude: Vec::new(),
            how: state::How::Copy { from: Some(name.to_owned()), parents: false },
        };
        let title = match &self.name[..] {
            "" => format!("FROM {name}"),
            stage => format!("[{stage}] FROM {name}"),
        };
        let number = self.build.begin(&title);
        let began = Instant::now();
        let done = self.files(number, &bring, &title, true);
        let how = done.as_ref().map_or(How::Failed, |(_, how)| *how);
        (self.build.tell)(Event::Done { step: number, how, seconds: began.elapsed().as_secs_f64() });
        if let (Effect::Layer(key), _) = done? {
            self.layers.push(Layer::Step(key));
            self.view = None;
            self.history.push(History { created_by: Some(format!("FROM {name}")), ..History::default() });
        }
        Ok(())
    }
}

impl Build<'_> {
    /// A file system, mounted read-only, nowhere that others see.
    pub(super) fn mounted(&self, layers: &[Layer]) -> Result<OwnedFd> {
        let trees = self.trees(layers)?;
        if trees.is_empty() {
            let tree = self.addition.tree()?;
            return self.addition.hold(tree);
        }
        image::rootfs::overlay(&trees, None, Privilege::own())
    }
}

/// Of an instruction, what stands in one line.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(|l| l.trim().trim_end_matches(['\\', '`']).trim());
    lines.filter(|l| !l.is_empty() && !l.starts_with('#')).collect::<Vec<_>>().join(" ")
}
