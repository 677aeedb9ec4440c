//! How is a plan carried out? Stage by stage, as many at a time as do not wait for each other; each step has a key of all that its
//! result depends on, and what a key stands for is made only once.
//!
//! | module | question |
//! |---|---|
//! | [`stage`] | how is a stage built? |
//! | [`pick`] | which files do COPY and ADD take, and what do they say? |
//! | [`copy`] | where do they go, and what are they like there? |
//! | [`add`] | what does ADD fetch or unpack? |
//! | [`layer`] | how does a step that needs no container make a layer? |
//! | [`splice`] | how is one made of what it was before? |
//! | [`sandbox`] | how is a `RUN` run? |
//! | [`network`] | how does a command get a network of its own? |
//! | [`owners`] | whose are files where there is only one id? |
//! | [`mounts`] | what does it find mounted? |
//! | [`real`] | where does a path lead in a tree that nobody trusts? |
//! | [`index`] | what does a file hold, without reading it again? |
//! | [`mode`] | what do `--chmod` and `--chown` say? |
//! | [`cache`] | how do builds on several machines share what they made? |
//! | [`commit`] | how do steps become an image? |

pub mod add;
pub mod cache;
pub mod commit;
pub mod copy;
pub mod index;
pub mod layer;
pub mod mode;
pub mod mounts;
pub mod network;
pub mod owners;
pub mod pick;
pub mod real;
pub mod sandbox;
pub mod splice;
pub mod stage;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};

use anyhow::{Context, Result};
use image::manifest::{Config, Descriptor, Manifest};
use image::store::{Addition, Blob};
use image::{Digest, Store};
use serde::{Deserialize, Serialize};

use crate::context::Contexts;
use crate::dockerfile::ast::Dockerfile;
use crate::dockerfile::source::Source;
use crate::plan::scope::{Given, Globals};
use crate::plan::stages::Stages;

/// A layer of a file system that is being built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layer {
    /// Of an image: its diff id and its blob.
    Base { diff_id: Digest, blob: Box<Descriptor> },
    /// Of a step, by its key.
    Step(Digest),
}

/// An image that stages begin with, or take files from.
#[derive(Clone, Debug)]
pub struct Base {
    pub manifest: Manifest,
    pub config: Config,
    pub target: Descriptor,
}

/// Where images come from that are not stages.
pub trait Bases: Sync {
    /// The image of that name, for that platform; it is in the store then.
    fn image(&self, name: &str, platform: Option<&str>) -> Result<Base>;
    /// What an `ADD` of this address brings; where it lies until the build ends.
    fn download(&self, address: &str, checksum: Option<&str>) -> Result<add::Download>;
    /// Read a blob of the cache with that number.
    fn cached(
        &self,
        source: usize,
        blob: &Descriptor,
        take: &mut dyn FnMut(&mut (dyn std::io::Read + Send)) -> Result<()>,
    ) -> Result<()>;
    /// A checkout of a repository.
    fn checkout(&self, address: &str, keep_git_dir: bool, into: &std::path::Path) -> Result<()>;
}

/// What happens, for whoever watches.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    Begin { step: usize, title: &'a str },
    Output { step: usize, bytes: &'a [u8] },
    Note { step: usize, text: &'a str },
    Done { step: usize, how: How, seconds: f64 },
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Made,
    Cached,
    Failed,
}

/// What is asked for, beside the file.
#[derive(Debug, Default)]
pub struct Options {
    /// No step is taken from an earlier build.
    pub no_cache: bool,
    /// The same for these stages.
    pub no_cache_stages: BTreeSet<String>,
    /// Times in layers are no later than this; None: they are kept.
    pub latest: Option<i64>,
    /// The environment's SOURCE_DATE_EPOCH, or the flag's: commands see it, too.
    pub epoch: Option<i64>,
    /// Commands at a time.
    pub jobs: usize,
    pub secrets: BTreeMap<String, Vec<u8>>,
    pub ssh: BTreeMap<String, PathBuf>,
    pub insecure: bool,
    /// The result is wanted as files, or its layers will not be in the image.
    pub files: bool,
    pub platform: Option<String>,
    /// What is only known of a step, without its content, is not enough.
    pub whole: bool,
    /// Where logs of commands are kept.
    pub log: Option<PathBuf>,
}

/// A build, for all its stages.
pub struct Build<'a> {
    pub store: &'a Store,
    pub addition: &'a Addition<'a>,
    pub file: &'a Dockerfile,
    pub source: &'a Source,
    pub given: &'a Given,
    pub globals: &'a Globals,
    pub stages: &'a Stages,
    pub contexts: &'a Contexts<'a>,
    pub bases: &'a dyn Bases,
    pub options: &'a Options,
    pub sandbox: &'a sandbox::Settings,
    pub index: &'a index::Index,
    pub remote: &'a cache::Remote,
    pub tell: &'a (dyn Fn(Event<'_>) + Sync),
    pub shared: Shared,
}

/// What stages share while they are built.
#[derive(Debug, Default)]
pub struct Shared {
    /// Layers that were made as archives alone, or as both.
    pub blobs: Mutex<HashMap<Digest, Blob>>,
    /// Those of which the archive is still being made.
    pub later: Mutex<HashMap<Digest, splice::Later>>,
    /// Bases that were unpacked.
    unpacked: Mutex<BTreeSet<Digest>>,
    pub images: Mutex<BTreeMap<(String, Option<String>), Base>>,
    /// What came from elsewhere beside images: addresses, and digests by algorithm.
    pub fetched: Mutex<Vec<(String, (String, String))>>,
    /// Keys that this build has looked for or made.
    pub used: Mutex<Vec<Digest>>,
    /// Steps that this build kept, for [`Addition::settle`].
    pub kept: Mutex<Vec<Digest>>,
    running: (Mutex<usize>, Condvar),
    next: Mutex<usize>,
    /// Steps that were taken from an earlier build, and all.
    pub counts: Mutex<(usize, usize)>,
}

impl Shared {
    /// Wait until a layer's archive is there, if it is being made.
    pub fn wait_for(&self, key: &Digest) -> Result<()> {
        let mut later = lock(&self.later);
        if let Some(thread) = later.remove(key) {
            let blob = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            lock(&self.blobs).insert(key.clone(), blob);
        }
        Ok(())
    }

    /// The same of all.
    pub fn wait(&self) -> Result<()> {
        let keys: Vec<Digest> = lock(&self.later).keys().cloned().collect();
        keys.iter().try_for_each(|key| self.wait_for(key))
    }
}

/// Lock, whatever has happened to who had it before.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stage that is built.
#[derive(Clone, Debug)]
pub struct Built {
    pub layers: Vec<Layer>,
    /// Of the file system.
    pub key: Digest,
    /// What the image says of itself; layers and times are missing.
    pub config: Config,
    /// Arguments that stages inherit which begin with this one.
    pub arguments: Vec<(String, String)>,
    /// The image that it began with.
    pub base: Option<(String, Descriptor)>,
}

impl Build<'_> {
    /// Build the target.
    pub fn run(&self) -> Result<Built> {
        let nodes = &self.stages.nodes;
        let done: Mutex<BTreeMap<usize, Option<Built>>> = Mutex::default();
        let failed: Mutex<Option<anyhow::Error>> = Mutex::default();
        let changed = Condvar::new();
        let work = |node: &crate::plan::stages::Node| {
            let wanted: BTreeSet<usize> = std::iter::once(&node.base)
                .chain(node.others.values())
                .filter_map(|o| match o {
                    crate::plan::stages::Origin::Stage(n) => Some(*n),
                    _ => None,
                })
                .collect();
            let mut guard = lock(&done);
            let before = loop {
                if wanted.iter().all(|n| guard.contains_key(n)) {
                    let all: Option<BTreeMap<usize, Built>> =
                        wanted.iter().map(|n| Some((*n, guard[n].clone()?))).collect();
                    break all;
                }
                guard = changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
            };
            drop(guard);
            let stop = lock(&failed).is_some();
            let built = match before {
                Some(before) if !stop => match self.stage(node, &before) {
                    Ok(built) => Some(built),
                    Err(e) => {
                        lock(&failed).get_or_insert(e);
                        None
                    }
                },
                _ => None,
            };
            lock(&done).insert(node.number, built);
            changed.notify_all();
        };
        std::thread::scope(|scope| {
            // The first, and those for which there may be no thread, are done here, one after the other: none waits for a later one.
            let mut here = Vec::new();
            for (n, node) in nodes.iter().enumerate() {
                let work = &work;
                if n == 0 || std::thread::Builder::new().spawn_scoped(scope, move || work(node)).is_err() {
                    here.push(node);
                }
            }
            here.into_iter().for_each(work);
        });
        if let Some(e) = lock(&failed).take() {
            return Err(e);
        }
        let built = lock(&done).remove(&self.stages.target).flatten();
        built.context("the target was not built")
    }

    /// Go on from what was built: the last stage of the file stands on the one before it, which is that.
    pub fn go_on(&self, built: Built) -> Result<Built> {
        let node = self.stages.nodes.last().context("there is no stage")?;
        let number = node.number.checked_sub(1).context("there is no stage before the last")?;
        self.stage(node, &[(number, built)].into())
    }

    /// The number of a step that begins.
    fn begin(&self, title: &str) -> usize {
        let mut next = lock(&self.shared.next);
        *next += 1;
        let step = *next;
        drop(next);
        (self.tell)(Event::Begin { step, title });
        step
    }

    /// Wait until another command may run.
    fn turn(&self) -> Turn<'_> {
        let (running, changed) = &self.shared.running;
        let mut count = lock(running);
        while *count >= self.options.jobs.max(1) {
            count = changed.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
        *count += 1;
        Turn(&self.shared)
    }

    /// An image that is not a stage, with what it is made of.
    pub fn base(&self, name: &str, platform: Option<&str>) -> Result<Base> {
        let key = (name.to_owned(), platform.map(str::to_owned));
        if let Some(base) = lock(&self.shared.images).get(&key) {
            return Ok(base.clone());
        }
        let base = self.bases.image(name, platform)?;
        lock(&self.shared.images).insert(key, base.clone());
        Ok(base)
    }

    /// The layers of an image, and the key of its file system.
    pub fn base_layers(base: &Base) -> (Vec<Layer>, Digest) {
        let ids = &base.config.rootfs.diff_ids;
        let layers = ids.iter().zip(&base.manifest.layers);
        let layers = layers
            .map(|(diff_id, blob)| Layer::Base { diff_id: diff_id.clone(), blob: Box::new(blob.clone()) });
        (layers.collect(), stage::key(&serde_json::json!({"base": ids})))
    }

    /// The trees of these layers, the lowest first; those that are not there are unpacked.
    pub fn trees(&self, layers: &[Layer]) -> Result<Vec<OwnedFd>> {
        let missing: Vec<(&Digest, &Descriptor)> = layers
            .iter()
            .filter_map(|layer| match layer {
                Layer::Base { diff_id, blob } => Some((diff_id, &**blob)),
                Layer::Step(_) => None,
            })
            .collect();
        if !missing.is_empty() {
            // One at a time: others want the same base.
            let mut unpacked = lock(&self.shared.unpacked);
            if missing.iter().any(|(diff_id, _)| !unpacked.contains(*diff_id)) {
                self.store.unpack_layers(&missing)?;
                unpacked.extend(missing.iter().map(|(diff_id, _)| (*diff_id).clone()));
            }
        }
        let mut implied = Vec::new();
        let mut steps = Vec::new();
        for layer in layers {
            implied.push(match layer {
                Layer::Base { diff_id, .. } => {
                    let missing = || format!("layer {diff_id} is not unpacked");
                    let tree = self.store.tree(diff_id)?.with_context(missing)?;
                    let implied = self.store.layer(diff_id)?.with_context(missing)?.implied();
                    image::rootfs::Unpacked { tree, implied }
                }
                Layer::Step(key) => {
                    steps.extend(self.step_trees(key)?);
                    continue;
                }
            });
        }
        // What archives leave unsaid of their folders is told in one more layer.
        let mended = image::rootfs::mend(&implied, image::layer::whiteout::Privilege::own())?;
        let mut trees: Vec<OwnedFd> = implied.into_iter().map(|u| u.tree).collect();
        if !mended.is_empty() {
            let tree = self.addition.tree()?;
            image::layer::apply::folders(
                &mended,
                std::os::fd::AsFd::as_fd(&tree),
                self.store.tree_options()?,
            )?;
            trees.push(self.addition.hold(tree)?);
        }
        trees.extend(steps);
        Ok(trees)
    }

    /// A file system, mounted read-only, nowhere that others see.
    pub fn look(&self, layers: &[Layer]) -> Result<OwnedFd> {
        self.mounted(layers)
    }

    /// The tree of a step's layer, or two, the lower first; where there is only an archive, it is unpacked.
    fn step_trees(&self, key: &Digest) -> Result<Vec<OwnedFd>> {
        let mut step = self.store.step(key)?.context("a step has gone meanwhile")?;
        if let Some(trees) = self.store.step_trees(key, &step)? {
            return Ok(trees);
        }
        self.shared.wait_for(key)?;
        let made = lock(&self.shared.blobs).get(key).map(|blob| blob.file(self.store)).transpose()?;
        let file = match made {
            Some(file) => file,
            None => match step.archives.values().find(|a| self.store.has(&a.diff_id).unwrap_or(false)) {
                Some(archive) => self.store.blob(&archive.diff_id)?,
                None => {
                    let blob = self.remote.fetch(key, self.bases, self.addition)?;
                    let blob = blob.ok_or_else(|| cache::Absent(step.title.clone()))?;
                    let file = blob.file(self.store)?;
                    lock(&self.shared.blobs).insert(key.clone(), blob);
                    file
                }
            },
        };
        let tree = self.addition.tree()?;
        let from = std::io::BufReader::with_capacity(256 << 10, file);
        image::layer::apply::apply(from, std::os::fd::AsFd::as_fd(&tree), self.store.tree_options()?)
            .with_context(|| format!("unpack the layer of {}", step.title))?;
        step.over = None;
        self.store.keep_step(key, &step, Some((tree, "")))?;
        lock(&self.shared.kept).push(key.clone());
        let step = self.store.step(key)?.context("a step has gone meanwhile")?;
        self.store.step_trees(key, &step)?.context("a step has gone meanwhile")
    }
}

/// A command may run as long as this lives.
#[derive(Debug)]
pub struct Turn<'a>(&'a Shared);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.running.0) -= 1;
        self.0.running.1.notify_one();
    }
}
