//! How is a stage built? Instruction by instruction; each that does work has a key, and what is kept under it is not made again.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result};
use image::Digest;
use image::layer::whiteout::Privilege;
use image::manifest::{Config, History, RootFs};
use image::store::{Archive, Blob, Step, Tree};
use report::Explain;
use serde_json::{Value, json};

use super::copy::{self, Placing};
use super::layer::{self, Entries};
use super::mode::{self, Chmod};
use super::splice::{Before, Later, List};
use super::{Build, Built, Event, How, Layer, lock, pick, sandbox};
use crate::dockerfile::ast::{self, Instruction};
use crate::dockerfile::parse;
use crate::dockerfile::source::{Problem, Source, Span};
use crate::foreign::{self, Runs};
use crate::ignore::Ignore;
use crate::plan::stages::{Node, Origin};
use crate::plan::state::{self, Bring, State, Work};

/// Changes when the same instruction makes something else than before.
const EDITION: u32 = 1;
/// In what is remembered of an instruction, the keys of what it made.
const MADE: &str = "made";
/// How many of them. What a build has made that failed later is of no use to the next.
const MADE_MOST: usize = 4;

/// What a step's result depends on, as a key.
pub fn key(parts: &Value) -> Digest {
    Digest::of(json!([EDITION, parts]).to_string().as_bytes())
}

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

/// A layer as an archive, as a tree (a folder of it), or as both.
type Layered<'t> = (Option<Blob>, Option<(Tree, &'t str)>);

/// What else is known of a layer: above which step's tree its own is, what its archive holds, and that it is still being made.
type More = (Option<Digest>, Option<List>, Option<Later>);

/// An instruction of a Dockerfile.
struct Series {
    key: Digest,
    /// What its step depended on, and the files that it took.
    parts: Value,
    listing: Option<String>,
    /// What it made before, the last first.
    made: Vec<Digest>,
}

/// What a step came to.
pub(super) enum Effect {
    Nothing,
    /// The layer of that key.
    Layer(Digest),
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

    fn label(&self) -> String {
        self.build.options.latest.map_or_else(|| "kept".to_owned(), |n| n.to_string())
    }

    /// What an earlier build kept under a key, if it can be used; and the key under which it was made last.
    pub(super) fn kept(&self, key: &Digest) -> Result<Option<(Digest, Step)>> {
        let build = self.build;
        let store = build.store;
        lock(&build.shared.used).push(key.clone());
        if self.no_cache {
            return Ok(None);
        }
        if let Some(step) = store.step(key)? {
            if let Some(instead) = &step.instead {
                return self.kept(instead);
            }
            if self.is_here(key, &step)? {
                store.touch_step(key);
                return Ok(Some((key.clone(), step)));
            }
        }
        let Some(step) = build.remote.step(key, &self.label(), build.options.whole) else { return Ok(None) };
        store.keep_step(key, step, None)?;
        lock(&build.shared.kept).push(key.clone());
        match &step.instead {
            Some(instead) => self.kept(instead),
            None => Ok(Some((key.clone(), step.clone()))),
        }
    }

    /// Whether what a step made can be had here.
    fn is_here(&self, key: &Digest, step: &Step) -> Result<bool> {
        let store = self.build.store;
        let archive = step.archives.get(&self.label());
        Ok(step.empty
            || step.instead.is_some()
            || store.step_tree(key, step)?.is_some()
            || lock(&self.build.shared.later).contains_key(key)
            || lock(&self.build.shared.blobs).contains_key(key)
            || archive.is_some_and(|a| store.has(&a.diff_id).unwrap_or(false)))
    }

    /// The effect of a step that an earlier build has made.
    fn cached(&self, key: &Digest) -> Result<Option<(Digest, Effect)>> {
        let kept = self.kept(key)?;
        Ok(kept.map(|(key, step)| {
            let effect = if step.empty { Effect::Nothing } else { Effect::Layer(key.clone()) };
            (key, effect)
        }))
    }

    /// Keep what was made under its key; under another, if something else was made under that before. The key under which it is.
    fn keep(
        &self,
        key: Digest,
        title: &str,
        made: Option<Layered<'_>>,
        more: Option<More>,
    ) -> Result<(Digest, Effect)> {
        let store = self.build.store;
        let mut step = Step::of(title);
        step.empty = made.is_none();
        let mut tree = None;
        let mut blob = None;
        if let Some((archive, made)) = made {
            (blob, tree) = (archive, made);
        }
        let actual = match store.step(&key)? {
            // Others may be looking at that right now, and what came after it stands on it.
            Some(before) if self.no_cache && self.is_here(&key, &before)? => {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                let actual =
                    self::key(&json!({"again": key, "at": now.map_or(0, |d| d.as_nanos()).to_string()}));
                let mut other = Step::of(title);
                other.instead = Some(actual.clone());
                lock(&self.build.shared.used).push(actual.clone());
                Some((actual, other))
            }
            _ => None,
        };
        let kept_under = actual.as_ref().map_or(&key, |(actual, _)| actual).clone();
        if let Some(blob) = blob {
            let archive = Archive { diff_id: blob.digest().clone(), size: blob.size() };
            step.archives.insert(self.label(), archive);
            lock(&self.build.shared.blobs).insert(kept_under.clone(), blob);
        }
        if let Some((over, list, later)) = more {
            step.over = over;
            if let Some(later) = later {
                lock(&self.build.shared.later).insert(kept_under.clone(), later);
            }
            if let Some(list) = list {
                store.keep_entries(&kept_under, &list.to_bytes())?;
            }
        }
        store.keep_step(&kept_under, &step, tree)?;
        let mut kept = lock(&self.build.shared.kept);
        kept.push(kept_under.clone());
        if let Some((_, other)) = actual {
            store.keep_step(&key, &other, None)?;
            kept.push(key);
        }
        let effect = if step.empty { Effect::Nothing } else { Effect::Layer(kept_under.clone()) };
        Ok((kept_under, effect))
    }

    fn keep_made(&self, key: Digest, title: &str, made: layer::Made) -> Result<(Digest, Effect)> {
        let layer::Made { blob, tree, over, list, later, .. } = made;
        self.keep(key, title, Some((blob, tree.map(|t| (t, "")))), Some((over, list, later)))
    }

    /// Tell what is other than in the last build of this instruction.
    fn tell_why(&self, number: usize, parts: Value, sources: Option<&[pick::Source]>) -> Result<Series> {
        let build = self.build;
        let place = match &build.contexts.main {
            Some(folder) => {
                let stat = rustix::fs::fstat(&folder.root)?;
                (stat.st_dev, stat.st_ino)
            }
            None => (0, 0),
        };
        let series =
            key(&json!({"series": [build.source.name, self.node.number, self.steps.0], "of": place}));
        let listing = sources.and_then(pick::listing);
        let mut before = build.store.step(&series)?.map(|step| step.note);
        if let (Some(before), false) = (&before, self.no_cache) {
            let listed = match listing {
                Some(_) => build.store.step_entries(&series)?.and_then(|bytes| String::from_utf8(bytes).ok()),
                None => None,
            };
            let file =
                listed.as_deref().zip(listing.as_deref()).and_then(|(before, now)| changed_file(before, now));
            if let Some(text) = file.or_else(|| why(before, &parts)) {
                let text = format!("not from the cache: {text}");
                (build.tell)(Event::Note { step: number, text: &text });
            }
        }
        let made = before.as_mut().and_then(|before| serde_json::from_value(before[MADE].take()).ok());
        Ok(Series { key: series, parts, listing, made: made.unwrap_or_default() })
    }

    /// Keep what an instruction depends on now, and what it made, for its next build.
    fn remember(&self, series: Series, made: Option<&Digest>) -> Result<()> {
        let Series { key: series, mut parts, listing, made: before } = series;
        if let Some(listing) = listing {
            self.build.store.keep_entries(&series, listing.as_bytes())?;
        }
        if let Some(all) = parts.as_object_mut() {
            let others = before.iter().filter(|b| Some(*b) != made);
            let made: Vec<&Digest> = made.into_iter().chain(others).take(MADE_MOST).collect();
            all.insert(MADE.to_owned(), json!(made));
        }
        let mut step = Step::of("what an instruction depended on");
        (step.empty, step.note) = (true, parts);
        self.build.store.keep_step(&series, &step, None)?;
        lock(&self.build.shared.kept).push(series);
        Ok(())
    }

    /// The layer that the same instruction made before, if it is still here.
    fn before(&self, key: &Digest) -> Result<Option<Before>> {
        let store = self.build.store;
        let list = |key: &Digest| -> Result<Option<Rc<List>>> {
            Ok(store.step_entries(key)?.and_then(List::parse).map(Rc::new))
        };
        let Some(step) = store.step(key)? else { return Ok(None) };
        let Some(archive) = step.archives.get(&self.label()) else { return Ok(None) };
        if !store.has(&archive.diff_id)? {
            return Ok(None);
        }
        let Some(entries) = list(key)? else { return Ok(None) };
        let mut tree = None;
        if store.step_tree(key, &step)?.is_some() {
            tree = Some((key.clone(), entries.clone()));
        } else if let Some(over) = &step.over
            && let Some(lower) = store.step(over)?
            && store.step_tree(over, &lower)?.is_some()
        {
            tree = list(over)?.map(|list| (over.clone(), list));
        }
        Ok(Some(Before { list: entries, archive: store.parts(&archive.diff_id)?, tree }))
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

    fn files(
        &mut self,
        number: usize,
        bring: &Bring,
        title: &str,
        wanted_later: bool,
    ) -> Result<(Effect, How)> {
        let build = self.build;
        let mut exclude = Ignore::default();
        for pattern in &bring.exclude {
            exclude.add(pattern).context("--exclude")?;
        }
        let (from, parents) = match &bring.how {
            state::How::Copy { from, parents } => (from.as_deref(), *parents),
            state::How::Add { .. } => (None, false),
        };
        let wish = pick::Wish { exclude: &exclude, parents };
        let chmod = bring.chmod.as_deref().map(Chmod::parse).transpose()?;
        let words: Vec<&str> = bring
            .sources
            .iter()
            .filter_map(|s| match s {
                state::Origin::Path(path) => Some(path.as_str()),
                state::Origin::File { .. } => None,
            })
            .collect();
        let (remote, words): (Vec<&str>, Vec<&str>) = match &bring.how {
            state::How::Add { .. } => words.into_iter().partition(|w| super::add::is_remote(w)),
            state::How::Copy { .. } => (Vec::new(), words),
        };
        let downloads = self.fetch(&remote, bring, number)?;
        let several = bring.sources.len() > 1;
        anyhow::ensure!(
            !several || bring.to.ends_with('/') || parents,
            "of several sources, the destination must be a folder, with a slash at its end: {}/",
            bring.to
        );
        let from = self.from(from)?;
        let owned = from.owned();
        let mut picked = None;
        let content = if words.is_empty() {
            None
        } else {
            Some(match from.key() {
                // What a stage holds at these paths is looked up once.
                Some(of) => {
                    let memo = self::key(&json!({"pick": words, "of": of, "exclude": bring.exclude,
                        "parents": parents}));
                    let known = self.kept(&memo)?.and_then(|(_, s)| s.note.as_str()?.parse::<Digest>().ok());
                    match known {
                        Some(digest) => digest,
                        None => {
                            let tree = from.open(build)?;
                            let sources = pick::pick(&tree.tree(build), &words, wish)?;
                            let digest = pick::digest(&sources, owned);
                            picked = Some((tree, sources));
                            let mut step = Step::of(title);
                            (step.empty, step.note) = (true, json!(digest));
                            build.store.keep_step(&memo, &step, None)?;
                            lock(&build.shared.kept).push(memo);
                            digest
                        }
                    }
                }
                None => {
                    let tree = from.open(build)?;
                    let sources = pick::pick(&tree.tree(build), &words, wish)?;
                    let digest = pick::digest(&sources, owned);
                    picked = Some((tree, sources));
                    digest
                }
            })
        };
        let inline: Vec<(&str, &str)> = bring
            .sources
            .iter()
            .filter_map(|s| match s {
                state::Origin::File { name, content } => Some((name.as_str(), content.as_str())),
                state::Origin::Path(_) => None,
            })
            .collect();
        let named_owner =
            bring.chown.as_deref().is_some_and(|c| c.split(':').any(|p| p.parse::<u32>().is_err()));
        let on = if bring.link && !named_owner { None } else { Some(&self.key) };
        let kind = match &bring.how {
            state::How::Copy { parents, .. } => json!({"copy": parents}),
            state::How::Add { unpack, keep_git_dir, .. } => json!({"add": unpack, "git": keep_git_dir}),
        };
        let remote: Vec<_> = downloads.iter().map(|d| json!([d.name, d.digest])).collect();
        let parts = json!({
            "files": kind, "on": on, "content": content, "inline": inline, "to": bring.to, "chown": bring.chown,
            "chmod": bring.chmod, "link": bring.link, "remote": remote, "owned": owned,
        });
        let key = self::key(&parts);
        // The chain goes on from below, too: the same layer on another base is another file system.
        let before = self.key.clone();
        let chain = |key: &Digest| self::key(&json!({"chain": [before, key]}));
        if let Some((key, effect)) = self.cached(&key)? {
            self.key = chain(&key);
            return Ok((effect, How::Cached));
        }
        let (tree, sources) = match picked {
            Some(picked) => (Some(picked.0), picked.1),
            None if words.is_empty() => (None, Vec::new()),
            None => {
                let tree = from.open(build)?;
                let sources = pick::pick(&tree.tree(build), &words, wish)?;
                (Some(tree), sources)
            }
        };
        let series = self.tell_why(number, parts, Some(&sources))?;
        let view = if bring.link && !named_owner { None } else { Some(self.view()?) };
        let look = view.as_ref().map(AsFd::as_fd);
        let owner = bring
            .chown
            .as_deref()
            .map(|text| mode::owner(text, || look.context("--chown with names and --link: numbers only")))
            .transpose()?;
        let how = copy::How { to: &bring.to, owner, chmod: chmod.as_ref(), owned, parents };
        let mut entries = Entries::default();
        let mut archives = Vec::new();
        let mut placing = Placing { view: if bring.link { None } else { look }, entries: &mut entries };
        let mut plain = sources;
        if let (state::How::Add { unpack, .. }, Some(tree)) = (&bring.how, &tree)
            && *unpack != Some(false)
        {
            let (found, rest) = super::add::archives(plain, tree.root())?;
            archives = found;
            plain = rest;
        }
        if let Some(tree) = &tree {
            placing.place(&plain, tree.root(), how)?;
        }
        for (name, content) in inline {
            placing.inline(name, content, build.options.latest.unwrap_or(0), how)?;
        }
        let trees: Vec<super::add::Fetched> =
            downloads.iter().map(|d| d.open(bring, build)).collect::<Result<_>>()?;
        let mut fetched = Vec::new();
        for one in &trees {
            match one {
                super::add::Fetched::Archive(file) => {
                    archives.push(super::add::Archived {
                        file: file.try_clone()?,
                        title: "the download".to_owned(),
                    });
                }
                super::add::Fetched::Tree { tree, sources } => fetched.push((tree, sources)),
            }
        }
        for (tree, sources) in fetched {
            placing.place(sources, tree.as_fd(), how)?;
        }
        let made = if archives.is_empty() {
            if entries.is_empty() {
                let (key, effect) = self.keep(key, title, None, None)?;
                self.remember(series, None)?;
                self.key = chain(&key);
                return Ok((effect, How::Made));
            }
            let mut before = None;
            for made in &series.made {
                before = self.before(made)?;
                if before.is_some() {
                    break;
                }
            }
            layer::make(
                build.addition,
                &entries,
                build.options.latest,
                wanted_later,
                before.as_ref(),
                if bring.link { None } else { look },
            )?
        } else {
            let view = placing.view;
            let to = placing.resolve(bring.to.as_bytes())?;
            placing.folders(&to.path, owner.unwrap_or((0, 0)))?;
            super::add::unpack(
                build.addition,
                &entries,
                &archives,
                view,
                &to.path,
                how,
                build.options.latest,
                wanted_later,
            )?
        };
        let (key, effect) = self.keep_made(key, title, made)?;
        self.remember(series, Some(&key))?;
        self.key = chain(&key);
        Ok((effect, How::Made))
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

    /// What a `--from` means, or the build's own context.
    pub(super) fn from(&self, name: Option<&str>) -> Result<From<'b>> {
        let build = self.build;
        let Some(name) = name else {
            let folder =
                build.contexts.main.as_ref().context("there is no build context to take files from")?;
            return Ok(From::Folder(folder));
        };
        Ok(match self.node.others.get(name).cloned().unwrap_or_else(|| Origin::Context(name.to_owned())) {
            Origin::Stage(n) => {
                let built = self.before.get(&n).context("a stage is missing")?;
                From::Layers {
                    layers: built.layers.clone(),
                    key: built.key.clone(),
                    title: format!("stage {name}"),
                }
            }
            Origin::Scratch => anyhow::bail!("from scratch: there is nothing in it"),
            Origin::Context(name) => match (build.contexts.image_of(&name), build.contexts.folder(&name)) {
                (Some(image), _) => Self::of_image(build, image)?,
                (None, Some(folder)) => From::Folder(folder),
                (None, None) => anyhow::bail!("{name}: there is no such context"),
            },
            Origin::Image(name) => Self::of_image(build, &name)?,
        })
    }

    fn of_image(build: &'b Build<'a>, name: &str) -> Result<From<'b>> {
        let base = build.base(name, build.options.platform.as_deref())?;
        let (layers, key) = Build::base_layers(&base);
        Ok(From::Layers { layers, key, title: format!("image {name}") })
    }
}

/// Where files are taken from.
pub(super) enum From<'b> {
    Folder(&'b crate::context::Folder),
    Layers { layers: Vec<Layer>, key: Digest, title: String },
}

/// The same, opened.
pub(super) enum Opened<'b> {
    Folder(&'b crate::context::Folder),
    Mounted(OwnedFd, String),
}

impl<'b> From<'b> {
    pub(super) fn owned(&self) -> bool {
        matches!(self, From::Layers { .. })
    }

    /// A key of all that is in it, if it has one.
    pub(super) fn key(&self) -> Option<&Digest> {
        match self {
            From::Folder(_) => None,
            From::Layers { key, .. } => Some(key),
        }
    }

    pub(super) fn open(&self, build: &Build<'_>) -> Result<Opened<'b>> {
        Ok(match self {
            From::Folder(folder) => Opened::Folder(folder),
            From::Layers { layers, title, .. } => Opened::Mounted(build.mounted(layers)?, title.clone()),
        })
    }
}

impl Opened<'_> {
    pub(super) fn root(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Opened::Folder(folder) => folder.root.as_fd(),
            Opened::Mounted(fd, _) => fd.as_fd(),
        }
    }

    pub(super) fn tree<'t>(&'t self, build: &'t Build<'_>) -> pick::Tree<'t> {
        match self {
            Opened::Folder(folder) => pick::Tree {
                root: folder.root.as_fd(),
                title: folder.title.clone(),
                ignore: (!folder.ignore.is_empty()).then_some(&folder.ignore),
                index: folder.indexed.then_some(build.index),
                owned: false,
            },
            Opened::Mounted(fd, title) => {
                pick::Tree { root: fd.as_fd(), title: title.clone(), ignore: None, index: None, owned: true }
            }
        }
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

/// The first file that is other than before, in a line.
fn changed_file(before: &str, now: &str) -> Option<String> {
    // Lines that both have at their beginning and at their end say nothing.
    let (b, n) = (before.as_bytes(), now.as_bytes());
    let first = b.iter().zip(n).take_while(|(b, n)| b == n).count();
    let first = b[..first].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let last = b[first..].iter().rev().zip(n[first..].iter().rev()).take_while(|(b, n)| b == n).count();
    let tail = &b[b.len() - last..];
    let last = tail.iter().position(|b| *b == b'\n').map_or(0, |at| tail.len() - at - 1);
    let (before, now) = (listed(before, first, last), listed(now, first, last));
    if let Some((path, _)) = now.iter().find(|(path, sum)| before.get(*path) != Some(sum)) {
        let how = if before.contains_key(path) { "has changed" } else { "is new" };
        return Some(format!("{path} {how}"));
    }
    let path = before.keys().find(|path| !now.contains_key(*path))?;
    Some(format!("{path} is gone"))
}

/// The first thing that is other than before, in a line.
fn why(before: &Value, now: &Value) -> Option<String> {
    if before["env"] != now["env"] {
        let name = |pair: &Value| pair[0].as_str().unwrap_or_default().to_owned();
        let (before, now) = (before["env"].as_array()?, now["env"].as_array()?);
        let other = now
            .iter()
            .find(|pair| !before.contains(pair))
            .or_else(|| before.iter().find(|p| !now.contains(p)));
        return other.map(|pair| format!("{} has another value", name(pair)));
    }
    let words = [
        ("run", "the command is another"),
        ("script", "the command is another"),
        ("mounts", "what is mounted is other"),
        ("user", "the user is another"),
        ("cwd", "the folder is another"),
        ("to", "the destination is another"),
        ("chown", "the owner is another"),
        ("chmod", "the mode is another"),
        ("remote", "what was fetched is other"),
        ("content", "what is copied is other"),
        ("on", "a step before it has changed"),
    ];
    let other = words.iter().find(|(part, _)| before[part] != now[part]);
    other.map(|(_, text)| (*text).to_owned())
}

/// What a listing holds, by path, but for so many bytes at its beginning and its end.
fn listed(text: &str, first: usize, last: usize) -> BTreeMap<&str, &str> {
    let lines = text.get(first..text.len() - last).unwrap_or_default().lines();
    lines.filter_map(|l| l.split_once(' ').map(|(sum, path)| (path, sum))).collect()
}

/// Of an instruction, what stands in one line.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(|l| l.trim().trim_end_matches(['\\', '`']).trim());
    lines.filter(|l| !l.is_empty() && !l.starts_with('#')).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_that_is_other_is_told() {
        for (before, now, told) in [
            ("1 a\n2 b\n3 c\n", "1 a\n4 b\n3 c\n", "b has changed"),
            ("1 a\n2 b\n3 c\n", "1 a\n2 b\n3 c\n4 d\n", "d is new"),
            ("1 a\n2 b\n3 c\n", "2 b\n3 c\n", "a is gone"),
            ("1 a\n2 b\n3 c\n", "1 a\n2 b\n", "c is gone"),
            ("1 a\n11 a2\n", "11 a\n11 a2\n", "a has changed"),
            ("1 a\n1 b\n", "1 a\n1 a1\n1 b\n", "a1 is new"),
            ("1 x y\n", "2 x y\n", "x y has changed"),
            ("1 é\n", "1 è\n", "è is new"),
            ("", "1 a\n", "a is new"),
        ] {
            assert_eq!(changed_file(before, now).as_deref(), Some(told));
        }
        assert_eq!(changed_file("1 a\n", "1 a\n"), None);
    }
}
