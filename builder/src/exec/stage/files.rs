//! How are files brought into a stage (COPY, ADD), and from where?

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use image::Digest;
use image::store::Step;
use serde_json::json;

use super::Running;
use super::kept::{self, Effect};
use crate::exec::copy::{self, Placing};
use crate::exec::layer::{self, Entries};
use crate::exec::mode::{self, Chmod};
use crate::exec::{Build, How, Layer, add, lock, pick};
use crate::ignore::Ignore;
use crate::plan::stages::Origin;
use crate::plan::state::{self, Bring};

impl<'b, 'a> Running<'b, 'a> {
    pub(super) fn files(
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
            state::How::Add { .. } => words.into_iter().partition(|w| add::is_remote(w)),
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
                    let memo = kept::key(&json!({"pick": words, "of": of, "exclude": bring.exclude,
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
        let key = kept::key(&parts);
        // The chain goes on from below, too: the same layer on another base is another file system.
        let before = self.key.clone();
        let chain = |key: &Digest| kept::key(&json!({"chain": [before, key]}));
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
            let (found, rest) = add::archives(plain, tree.root())?;
            archives = found;
            plain = rest;
        }
        if let Some(tree) = &tree {
            placing.place(&plain, tree.root(), how)?;
        }
        for (name, content) in inline {
            placing.inline(name, content, build.options.latest.unwrap_or(0), how)?;
        }
        let trees: Vec<add::Fetched> =
            downloads.iter().map(|d| d.open(bring, build)).collect::<Result<_>>()?;
        let mut fetched = Vec::new();
        for one in &trees {
            match one {
                add::Fetched::Archive(file) => {
                    archives
                        .push(add::Archived { file: file.try_clone()?, title: "the download".to_owned() });
                }
                add::Fetched::Tree { tree, sources } => fetched.push((tree, sources)),
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
            add::unpack(
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

    /// What a `--from` means, or the build's own context.
    pub(in crate::exec) fn from(&self, name: Option<&str>) -> Result<From<'b>> {
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
pub(in crate::exec) enum From<'b> {
    Folder(&'b crate::context::Folder),
    Layers { layers: Vec<Layer>, key: Digest, title: String },
}

/// The same, opened.
pub(in crate::exec) enum Opened<'b> {
    Folder(&'b crate::context::Folder),
    Mounted(OwnedFd, String),
}

impl<'b> From<'b> {
    pub(in crate::exec) fn owned(&self) -> bool {
        matches!(self, From::Layers { .. })
    }

    /// A key of all that is in it, if it has one.
    pub(in crate::exec) fn key(&self) -> Option<&Digest> {
        match self {
            From::Folder(_) => None,
            From::Layers { key, .. } => Some(key),
        }
    }

    pub(in crate::exec) fn open(&self, build: &Build<'_>) -> Result<Opened<'b>> {
        Ok(match self {
            From::Folder(folder) => Opened::Folder(folder),
            From::Layers { layers, title, .. } => Opened::Mounted(build.mounted(layers)?, title.clone()),
        })
    }
}

impl Opened<'_> {
    pub(in crate::exec) fn root(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Opened::Folder(folder) => folder.root.as_fd(),
            Opened::Mounted(fd, _) => fd.as_fd(),
        }
    }

    pub(in crate::exec) fn tree<'t>(&'t self, build: &'t Build<'_>) -> pick::Tree<'t> {
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
