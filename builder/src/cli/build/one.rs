//! A build for one platform: an image, or files, and what is told beside it.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use image::family::Family;
use image::manifest::{Descriptor, Platform};
use image::store::Addition;
use image::{Digest, Store};

use super::super::output::Output;
use super::super::told::{self, Told};
use super::super::{App, print, transfer};
use super::arguments::{add_labels, pairs};
use super::sources::Sources;
use super::{Asked, Build, caches, said};
use crate::attest::package::Package;
use crate::attest::{self, package, provenance, spdx};
use crate::context::{self, Contexts};
use crate::dockerfile::ast::Dockerfile;
use crate::dockerfile::parse;
use crate::dockerfile::source::Source;
use crate::exec::cache::Spec;
use crate::exec::commit::{self, Committed, Squash, Wish};
use crate::exec::{self, Shared, index, sandbox};
use crate::plan::scope::{Given, Globals, PROXIES};
use crate::plan::stages;
use crate::watch::Watch;

/// What the builds for all platforms have in common.
pub struct One<'a> {
    pub app: &'a App,
    pub store: &'a Store,
    pub args: &'a Build,
    pub asked: &'a Asked,
    pub settings: &'a sandbox::Settings,
    pub index: &'a index::Index,
    pub watch: &'a Watch,
    /// Every step is made here, whatever a cache elsewhere knows.
    pub whole: bool,
}

/// How many steps were there already, of how many.
pub type Steps = (usize, usize);

pub enum Made {
    /// Nothing was to be built; the exit status.
    Told(i32),
    Files(Steps),
    Image(Steps, Box<Image>),
}

pub struct Image {
    pub platform: Platform,
    pub done: Committed,
    /// What is told of it.
    pub beside: Option<Descriptor>,
}

impl One<'_> {
    pub fn build(&self, target: &Platform) -> Result<Made> {
        let One { store, args, asked, watch, .. } = *self;
        let addition = store.begin()?;
        let platform = (!args.platform.is_empty()).then(|| target.to_string());
        let mut sources = Sources {
            app: self.app,
            store,
            registry: &args.registry,
            pull: asked.pull,
            platform: platform.clone(),
            caches: Vec::new(),
        };
        let remote = caches::open(self.app, store, args, watch, &mut sources)?;
        let sources = sources;
        let (contexts, source) = self.contexts(&addition, &sources)?;
        let file = parse::parse(&source).map_err(|p| source.error(p))?;
        let given = self.given(target, &file)?;
        let globals = Globals::read(&file, &given).map_err(|p| source.error(p))?;
        let stages = stages::needed(&file, &globals, args.target.as_deref(), &contexts.names())
            .map_err(|p| source.error(p))?;
        if args.print.is_some() {
            print(&said::plan(&source, &file, &stages))?;
            return Ok(Made::Told(0));
        }
        if args.check {
            return said::check(&source, &file, &contexts, watch).map(Made::Told);
        }
        if !self.whole {
            said::warn(&source, &file, &contexts, watch)?;
        }
        let options = self.options(platform)?;
        let tell = |event: exec::Event<'_>| watch.hear(event);
        let build = exec::Build {
            store,
            addition: &addition,
            file: &file,
            source: &source,
            given: &given,
            globals: &globals,
            stages: &stages,
            contexts: &contexts,
            bases: &sources,
            options: &options,
            sandbox: self.settings,
            index: self.index,
            remote: &remote,
            tell: &tell,
            shared: Shared::default(),
        };
        let mut built = build.run().inspect_err(|_| self.index.save().unwrap_or_default())?;
        self.index.save()?;
        add_labels(&mut built.config, args)?;
        let many = asked.platforms.len() > 1;
        for output in asked.outputs.iter().filter(|o| o.is_files()) {
            let view = build.look(&built.layers)?;
            output.write_files(view.as_fd(), asked.latest, many.then_some(target))?;
        }
        let steps = *exec::lock(&build.shared.counts);
        let only_files = !asked.outputs.is_empty() && asked.outputs.iter().all(Output::is_files);
        if only_files {
            return Ok(Made::Files(steps));
        }
        let packages = match asked.told.sbom {
            true => {
                let view = build.look(&built.layers)?;
                let (packages, unread) = spdx::scan(view.as_fd()).context("--sbom")?;
                for text in unread {
                    watch.say(&format!("warning: --sbom: {text}"));
                }
                Some(packages)
            }
            false => None,
        };
        let shared = build.shared;
        drop(contexts);
        let wish = self.wish()?;
        // What is only looked at while it is built must not be in the way.
        let fetch = |key: &Digest| remote.fetch(key, &sources, &addition);
        let done = commit::commit(store, store.begin()?, &shared, &built, &wish, &fetch)?;
        Addition::settle(store, &exec::lock(&shared.kept))?;
        drop(addition);
        caches::give(self.app, store, args, &asked.cache_to, &shared, &done, &wish, watch)?;
        let predicates = self.predicates(target, &source, &options, &shared, &done, packages.as_deref())?;
        let beside = match predicates.is_empty() {
            true => None,
            false => Some(self.add_beside(target, &done, &predicates)?),
        };
        Ok(Made::Image(steps, Box::new(Image { platform: target.clone(), done, beside })))
    }

    /// The main context, the named ones, and the Dockerfile.
    fn contexts<'c>(&self, addition: &Addition<'_>, sources: &Sources<'_>) -> Result<(Contexts<'c>, Source)> {
        let args = self.args;
        let said = context::Said {
            context: args.context.as_deref(),
            file: args.file.as_deref(),
            ignore: args.ignorefile.as_deref(),
        };
        let (main, source) = context::open(&said, addition, sources)?;
        let mut named = BTreeMap::new();
        for text in &args.build_context {
            let (name, from) =
                text.split_once('=').with_context(|| format!("--build-context {text}: NAME=SOURCE"))?;
            let opened =
                context::named(from, addition, sources).with_context(|| format!("--build-context {text}"))?;
            named.insert(name.to_owned(), opened);
        }
        Ok((Contexts::new(main, named), source))
    }

    /// The values of ARGs, those for proxies too.
    fn given(&self, target: &Platform, file: &Dockerfile) -> Result<Given> {
        let args = self.args;
        let mut arguments = self.asked.arguments.clone();
        for proxy in PROXIES {
            if let (false, Ok(value)) = (arguments.contains_key(proxy), std::env::var(proxy)) {
                arguments.insert(proxy.to_owned(), value);
            }
        }
        let given =
            Given { arguments, build: Platform::own(), target: target.clone(), stage: args.target.clone() };
        for name in given.unasked(file) {
            if args.build_arg.iter().any(|a| a.split('=').next() == Some(name)) {
                self.watch.say(&format!("warning: --build-arg {name}: no ARG of the Dockerfile asks for it"));
            }
        }
        Ok(given)
    }

    fn options(&self, platform: Option<String>) -> Result<exec::Options> {
        let args = self.args;
        Ok(exec::Options {
            no_cache: args.no_cache,
            no_cache_stages: args.no_cache_filter.iter().map(|s| s.to_lowercase()).collect(),
            latest: self.asked.latest,
            epoch: self.asked.epoch,
            jobs: args.jobs.filter(|j| *j > 0).unwrap_or_else(|| image::workers::processors().get().max(4)),
            secrets: self.asked.secrets.clone(),
            ssh: args.agents()?,
            whole: self.whole,
            insecure: args.allow.iter().any(|a| a == "security.insecure"),
            files: self.asked.outputs.iter().any(Output::is_files) || args.squash || args.squash_all,
            platform,
            log: self.watch.log(),
        })
    }

    fn wish(&self) -> Result<Wish> {
        let (args, asked) = (self.args, self.asked);
        let named_later = asked.platforms.len() > 1 || asked.told != Told::default();
        Ok(Wish {
            names: if named_later { Vec::new() } else { asked.names.clone() },
            family: match args.format {
                Some(transfer::ManifestFormat::Docker) => Family::Docker,
                _ => Family::Oci,
            },
            compression: match args.compression.as_deref() {
                Some(text) => Some(text.parse()?),
                // What is said of an image is said of its digest, which must stay what it is when it is pushed.
                None if asked.told != Told::default() => Some(image::layer::compress::Compression::GZIP),
                None => None,
            },
            annotations: pairs("--annotation", &args.annotation)?,
            latest: asked.latest,
            created: asked.latest,
            omit_history: args.omit_history,
            squash: match (args.squash, args.squash_all) {
                (_, true) => Squash::All,
                (true, _) => Squash::New,
                _ => Squash::None,
            },
            inline_cache: asked.cache_to.iter().any(|c| c.spec == Spec::Inline),
        })
    }

    /// What is told of the image: its packages, and how it was made.
    fn predicates(
        &self,
        target: &Platform,
        source: &Source,
        options: &exec::Options,
        shared: &Shared,
        done: &Committed,
        packages: Option<&[Package]>,
    ) -> Result<Vec<attest::Predicate>> {
        let (args, asked) = (self.args, self.asked);
        let mut predicates = Vec::new();
        if let Some(packages) = packages {
            let title = asked.names.first().map_or_else(|| "image".to_owned(), |n| n.familiar());
            let created = commit::time(asked.latest.unwrap_or(0));
            predicates.push(spdx::document(packages, &title, &done.manifest.digest.to_string(), &created));
        }
        if let Some(mode) = asked.told.provenance {
            let materials = told::materials(shared);
            let labels = pairs("--label", &args.label)?;
            let remote = args.context.as_deref().filter(|c| c.contains("://") || c.starts_with("git@"));
            predicates.push(provenance::predicate(
                mode,
                &provenance::Asked {
                    context: remote,
                    file: &source.name,
                    text: &source.text,
                    target: args.target.as_deref(),
                    platform: target.to_string(),
                    own_platform: Platform::own().to_string(),
                    arguments: &asked.arguments,
                    labels: &labels,
                    secrets: options.secrets.keys().map(String::as_str).collect(),
                    ssh: options.ssh.keys().map(String::as_str).collect(),
                    network: args.network.as_deref(),
                },
                &materials,
            ));
        }
        Ok(predicates)
    }

    fn add_beside(
        &self,
        target: &Platform,
        done: &Committed,
        predicates: &[attest::Predicate],
    ) -> Result<Descriptor> {
        let mut addition = self.store.begin()?;
        let platform = target.to_string();
        let names = self.asked.names.iter();
        let subjects: Vec<String> =
            names.map(|n| package::image_url(&n.familiar(), Some(&platform))).collect();
        let descriptor = attest::add(&mut addition, &done.manifest, &subjects, predicates)?;
        addition.name(None, descriptor.clone());
        addition.commit()?;
        Ok(descriptor)
    }
}
