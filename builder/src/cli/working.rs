//! Images step by step: a working container, commands and files in it, and an image of it in the end, as buildah has it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::Args;
use image::family::Family;
use image::manifest::{Config, Descriptor, History, Platform};
use image::store::{Addition, Pin};
use image::{Digest, Reference, Store};
use report::{Kind, error};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::build::{Build, Prepared};
use super::{App, Registry, print};
use crate::context::{Contexts, Folder};
use crate::dockerfile::parse;
use crate::dockerfile::source::Source;
use crate::exec::commit::{self, Squash, Wish};
use crate::exec::{self, Base, Built, Layer, Shared};
use crate::format::{Format, rows};
use crate::ignore::Ignore;
use crate::plan::scope::{Given, Globals};
use crate::plan::stages;
use crate::watch::{Style, Watch};

#[derive(Debug, Args)]
pub struct From {
    /// The image that it begins with; scratch is none
    image: String,
    /// [default: IMAGE-working-container]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// For another platform than this machine's
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<String>,
    #[command(flatten)]
    registry: Registry,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  berth-builder run web -- apt-get install -y nginx")]
pub struct Run {
    container: String,
    /// What is run
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// As this user
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// In this folder
    #[arg(long, value_name = "FOLDER")]
    workingdir: Option<String>,
    /// With this variable
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// As in a Dockerfile's RUN
    #[arg(long, value_name = "type=TYPE,…")]
    mount: Vec<String>,
    /// host or none
    #[arg(long, value_name = "MODE")]
    network: Option<String>,
}

#[derive(Debug, Args)]
pub struct Copy {
    container: String,
    /// Sources, and the destination
    #[arg(required = true, num_args = 1..)]
    paths: Vec<String>,
    /// Whose they are then
    #[arg(long, value_name = "USER[:GROUP]")]
    chown: Option<String>,
    #[arg(long, value_name = "MODE")]
    chmod: Option<String>,
    /// Where sources are [default: the current folder]
    #[arg(long, value_name = "FOLDER")]
    contextdir: Option<String>,
    /// What is left out
    #[arg(long, value_name = "FILE")]
    ignorefile: Option<std::path::PathBuf>,
}

#[derive(Debug, Args)]
pub struct Configure {
    container: String,
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    #[arg(long, short, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// A JSON list, or words
    #[arg(long, value_name = "COMMAND")]
    cmd: Option<String>,
    /// A JSON list, or a command for the shell
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    #[arg(long, short, value_name = "PORT")]
    port: Vec<String>,
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<String>,
    #[arg(long, value_name = "FOLDER")]
    workingdir: Option<String>,
    #[arg(long, short, value_name = "PATH")]
    volume: Vec<String>,
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    #[arg(long, value_name = "NAME")]
    author: Option<String>,
}

#[derive(Debug, Args)]
pub struct Commit {
    container: String,
    /// Its name; without one it has only its id
    image: Option<String>,
    /// Remove the container then
    #[arg(long)]
    rm: bool,
    /// Make one layer of all that was made since the base image
    #[arg(long)]
    squash: bool,
    /// Media types of the manifest
    #[arg(long, short, value_enum)]
    format: Option<super::transfer::ManifestFormat>,
    /// Times in layers: no later than this, in seconds since 1970; or keep [default: 0]
    #[arg(long, value_name = "SECONDS|keep")]
    timestamp: Option<String>,
}

#[derive(Debug, Args)]
pub struct Containers {
    /// json, or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

#[derive(Debug, Args)]
pub struct Rm {
    #[arg(required_unless_present = "all")]
    containers: Vec<String>,
    #[arg(long, short)]
    all: bool,
}

/// A working container, as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Container {
    image: String,
    layers: Vec<Layer>,
    key: Digest,
    config: Config,
    base: Option<(String, Descriptor)>,
    /// Its file system is mounted; what is written there becomes a layer with this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mounted: Option<Digest>,
}

impl Container {
    fn load(store: &Store, name: &str) -> Result<Container> {
        serde_json::from_value(store.pin(name)?.data).with_context(|| format!("container {name}"))
    }

    fn of(image: &str, built: Built) -> Container {
        Container {
            image: image.to_owned(),
            layers: built.layers,
            key: built.key,
            config: built.config,
            base: built.base,
            mounted: None,
        }
    }

    fn built(&self) -> Built {
        Built {
            layers: self.layers.clone(),
            key: self.key.clone(),
            config: self.config.clone(),
            arguments: Vec::new(),
            base: self.base.clone(),
        }
    }

    fn save(&self, store: &Store, name: &str) -> Result<()> {
        let mut pin = Pin { data: serde_json::to_value(self)?, ..Pin::default() };
        for layer in &self.layers {
            match layer {
                Layer::Base { diff_id, blob } => {
                    pin.layers.push(diff_id.clone());
                    pin.blobs.push(blob.digest.clone());
                }
                Layer::Step(key) => pin.steps.push(key.clone()),
            }
        }
        pin.steps.extend(self.mounted.clone());
        store.set_pin(name, &pin)
    }
}

/// End a container's mount, if it has one, and take what was written there. Whether it had one.
pub fn settle(store: &Store, name: &str) -> Result<bool> {
    let _lease = store.lease()?;
    let mut container = Container::load(store, name)?;
    let Some(key) = container.mounted.clone() else { return Ok(false) };
    if store.settle_container(name, &key)? {
        container.key = exec::stage::key(&json!({"mounted": key, "on": container.key}));
        container.layers.push(Layer::Step(key.clone()));
        container.config.history.get_or_insert_default().push(History {
            created_by: Some("changed in a mounted container".to_owned()),
            comment: Some(commit::MARK.to_owned()),
            ..History::default()
        });
    }
    container.mounted = None;
    container.save(store, name)?;
    store.end_container_mount(name)?;
    rustix::fs::syncfs(store.as_fd()).context("sync the store")?;
    Addition::settle(store, &[key])?;
    Ok(true)
}

/// Mount a container's file system, writable.
pub fn mount(store: &Store, name: &str) -> Result<std::path::PathBuf> {
    let _lease = store.lease()?;
    let mut container = Container::load(store, name)?;
    if container.mounted.is_some() {
        let folder = store.container_folder(name)?;
        let device =
            |path: &Path| std::fs::metadata(path).map(|m| std::os::unix::fs::MetadataExt::dev(&m)).ok();
        if device(&folder).is_some() && device(&folder) != folder.parent().and_then(device) {
            return Ok(folder);
        }
        // The machine was started anew, or we were killed.
        settle(store, name)?;
        container = Container::load(store, name)?;
    }
    let (mut bases, mut blobs, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    for layer in &container.layers {
        match layer {
            Layer::Base { diff_id, blob } => {
                bases.push(diff_id.clone());
                blobs.push((diff_id, &**blob));
            }
            Layer::Step(key) => steps.push(key.clone()),
        }
    }
    store.unpack_layers(&blobs)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |d| d.as_nanos()).to_string();
    // Told before it is so: what is written is found again whatever happens.
    container.mounted = Some(exec::stage::key(&json!({"mount": name, "at": now})));
    container.save(store, name)?;
    store.mount_container(name, &bases, &steps)
}

/// Containers that are mounted, and where.
pub fn mounted(store: &Store) -> Result<Vec<(String, std::path::PathBuf)>> {
    let mut found = Vec::new();
    for (name, pin) in store.pins()? {
        if !pin.data["mounted"].is_null() {
            let folder = store.container_folder(&name)?;
            found.push((name, folder));
        }
    }
    Ok(found)
}

impl Run {
    pub fn container(&self) -> &str {
        &self.container
    }
}

impl Copy {
    pub fn container(&self) -> &str {
        &self.container
    }
}

pub fn from(app: &App, args: From) -> Result<i32> {
    let store = app.store()?;
    let _lease = store.lease()?;
    let prepared = Prepared::new(app, &store, &args.registry, args.platform.clone());
    let platform: Platform = match &args.platform {
        Some(text) => text.parse()?,
        None => Platform::own(),
    };
    let built = if args.image == "scratch" {
        Built {
            layers: Vec::new(),
            key: exec::stage::key(&json!("scratch")),
            config: Config {
                architecture: platform.architecture,
                os: platform.os,
                variant: platform.variant,
                ..Config::default()
            },
            arguments: Vec::new(),
            base: None,
        }
    } else {
        let base: Base = prepared.bases().image(&args.image, args.platform.as_deref())?;
        let (layers, key) = exec::Build::base_layers(&base);
        Built {
            layers,
            key,
            config: base.config,
            arguments: Vec::new(),
            base: Some((args.image.clone(), base.target)),
        }
    };
    let container = Container::of(&args.image, built);
    let name = match &args.name {
        Some(name) => {
            ensure!(store.pin(name).is_err(), "there is a container {name} already");
            name.clone()
        }
        None => {
            let last = args.image.rsplit('/').next().unwrap_or_default();
            let stem: String = last.split([':', '@']).next().unwrap_or_default().to_owned();
            let stem = format!("{stem}-working-container");
            let free = |name: &String| store.pin(name).is_err();
            let mut all = std::iter::once(stem.clone()).chain((1..10_000).map(|n| format!("{stem}-{n}")));
            all.find(free).context("ten thousand names are taken")?
        }
    };
    container.save(&store, &name)?;
    print(&format!("{name}\n")).map(|()| 0)
}

/// Do what one instruction says in a container.
fn instruct(app: &App, store: &Store, name: &str, text: &str, context: Option<Folder>) -> Result<()> {
    let container = Container::load(store, name)?;
    let source = Source::new(name, format!("FROM scratch AS container\nFROM container\n{text}"));
    let file = parse::parse(&source).map_err(|p| source.error(p))?;
    let target = Platform {
        architecture: container.config.architecture.clone(),
        os: container.config.os.clone(),
        variant: container.config.variant.clone(),
        ..Platform::default()
    };
    let given = Given { arguments: BTreeMap::new(), build: Platform::own(), target, stage: None };
    let globals = Globals::read(&file, &given).map_err(|p| source.error(p))?;
    let stages = stages::needed(&file, &globals, None, &Default::default()).map_err(|p| source.error(p))?;
    let registry = Registry::default();
    let prepared = Prepared::new(app, store, &registry, None);
    let settings = Build::default_sandbox(app)?;
    let addition = store.begin()?;
    let style = if app.quiet { Style::Quiet } else { Style::Plain };
    let watch = Watch::new(style, None);
    let index = exec::index::Index::open(&store.root().join("files.index"));
    let _alive = exec::sandbox::alive(store, None)?;
    exec::sandbox::forget_killed(store, None);
    let options =
        exec::Options { no_cache: true, latest: Some(0), jobs: 1, files: true, ..exec::Options::default() };
    let remote = exec::cache::Remote::default();
    let contexts = Contexts::new(context, BTreeMap::new());
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
        bases: prepared.bases(),
        options: &options,
        sandbox: &settings,
        index: &index,
        remote: &remote,
        tell: &tell,
        shared: Shared::default(),
    };
    let before = container.config.config.clone();
    let entries = container.config.history.as_ref().map_or(0, Vec::len);
    let mut built = build.go_on(container.built())?;
    // Who it was run as is not what the image says.
    built.config.config = before;
    if let Some(history) = &mut built.config.history {
        let new = history.split_off(entries.min(history.len()));
        let work = |by: &str| ["RUN ", "COPY ", "ADD "].iter().any(|w| by.starts_with(w));
        history
            .extend(new.into_iter().filter(|h| !h.empty_layer || h.created_by.as_deref().is_some_and(work)));
    }
    Container::of(&container.image, built).save(store, name)?;
    // What an image is committed of later must have reached the disk by then.
    rustix::fs::syncfs(store.as_fd()).context("sync the store")?;
    Addition::settle(store, &exec::lock(&build.shared.kept))
}

pub fn run(app: &App, args: Run) -> Result<i32> {
    let store = app.store()?;
    let mut text = String::new();
    for pair in &args.env {
        let (name, value) = pair.split_once('=').with_context(|| format!("--env {pair}: NAME=VALUE"))?;
        ensure!(!pair.contains('\n'), "--env {pair}: it is more than a line");
        let mut escaped = String::new();
        for c in value.chars() {
            if matches!(c, '\\' | '"' | '$') {
                escaped.push('\\');
            }
            escaped.push(c);
        }
        text.push_str(&format!("ENV {name}=\"{escaped}\"\n"));
    }
    if let Some(folder) = &args.workingdir {
        text.push_str(&format!("WORKDIR {folder}\n"));
    }
    if let Some(user) = &args.user {
        text.push_str(&format!("USER {user}\n"));
    }
    let mut flags = String::new();
    for mount in &args.mount {
        flags.push_str(&format!("--mount={mount} "));
    }
    if let Some(network) = &args.network {
        flags.push_str(&format!("--network={network} "));
    }
    text.push_str(&format!("RUN {flags}{}\n", serde_json::to_string(&args.command)?));
    instruct(app, &store, &args.container, &text, folder(None, None)?).map(|()| 0)
}

/// Where files come from: paths are those of the host, from there.
fn folder(path: Option<&str>, ignore: Option<&Path>) -> Result<Option<Folder>> {
    let path = path.unwrap_or(".");
    let root = crate::bundle::open_root(Path::new(path))?;
    let ignore = match ignore {
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            Ignore::parse(&text).with_context(|| file.display().to_string())?
        }
        None => Ignore::default(),
    };
    Ok(Some(Folder { root, ignore, title: path.to_owned(), indexed: true }))
}

pub fn copy(app: &App, args: Copy) -> Result<i32> {
    files(app, args, "COPY")
}

pub fn add(app: &App, args: Copy) -> Result<i32> {
    files(app, args, "ADD")
}

fn files(app: &App, args: Copy, instruction: &str) -> Result<i32> {
    let store = app.store()?;
    let mut paths = args.paths.clone();
    let to = if paths.len() > 1 { paths.pop().unwrap_or_default() } else { ".".to_owned() };
    // Outside of the folder that it is run in, paths are the host's.
    let outside =
        args.contextdir.is_none() && paths.iter().any(|p| p.starts_with('/') || p.starts_with(".."));
    let root = if outside { Some("/") } else { args.contextdir.as_deref() };
    if outside {
        let here = std::env::current_dir().context("find the current folder")?;
        for path in paths.iter_mut().filter(|p| !crate::exec::add::is_remote(p)) {
            *path = here.join(&*path).display().to_string();
        }
    }
    let mut flags = String::new();
    for (name, value) in [("chown", &args.chown), ("chmod", &args.chmod)] {
        if let Some(value) = value {
            flags.push_str(&format!("--{name}={value} "));
        }
    }
    let several = paths.len() > 1 && !to.ends_with('/');
    paths.push(if several { format!("{to}/") } else { to });
    let text = format!("{instruction} {flags}{}\n", serde_json::to_string(&paths)?);
    instruct(app, &store, &args.container, &text, folder(root, args.ignorefile.as_deref())?).map(|()| 0)
}

pub fn config(app: &App, args: Configure) -> Result<i32> {
    let store = app.store()?;
    let mut container = Container::load(&store, &args.container)?;
    let execution = container.config.config.get_or_insert_default();
    let pair = |flag: &str, text: &str| -> Result<(String, String)> {
        let (name, value) = text.split_once('=').with_context(|| format!("{flag} {text}: NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    for text in &args.env {
        let (name, value) = pair("--env", text)?;
        let all = execution.env.get_or_insert_default();
        all.retain(|e| e.split('=').next() != Some(&name[..]));
        all.push(format!("{name}={value}"));
    }
    for text in &args.label {
        let (name, value) = pair("--label", text)?;
        execution.labels.get_or_insert_default().insert(name, value);
    }
    let list = |text: &String| serde_json::from_str::<Vec<String>>(text).ok();
    let words = |text: &String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    if let Some(text) = &args.cmd {
        execution.cmd = Some(list(text).unwrap_or_else(|| words(text)));
    }
    if let Some(text) = &args.entrypoint {
        let shell = || ["/bin/sh", "-c", text].map(str::to_owned).to_vec();
        execution.entrypoint = Some(list(text).unwrap_or_else(shell));
    }
    for text in &args.port {
        let port = if text.contains('/') { text.clone() } else { format!("{text}/tcp") };
        execution.exposed_ports.get_or_insert_default().insert(port, json!({}));
    }
    for text in &args.volume {
        execution.volumes.get_or_insert_default().insert(text.clone(), json!({}));
    }
    execution.user = args.user.or(execution.user.take());
    execution.working_dir = args.workingdir.or(execution.working_dir.take());
    execution.stop_signal = args.stop_signal.or(execution.stop_signal.take());
    if let Some(author) = args.author {
        container.config.other.insert("author".to_owned(), json!(author));
    }
    container.save(&store, &args.container)?;
    Ok(0)
}

pub fn commit(app: &App, args: Commit) -> Result<i32> {
    let store = app.store()?;
    let paused = settle(&store, &args.container)?;
    let container = Container::load(&store, &args.container)?;
    let name: Option<Reference> = args.image.as_deref().map(str::parse).transpose()?;
    let latest = match args.timestamp.as_deref() {
        None => Some(0),
        Some("keep") => None,
        Some(text) => Some(
            text.parse().ok().with_context(|| format!("--timestamp {text}: seconds since 1970, or keep"))?,
        ),
    };
    let family = match args.format {
        Some(super::transfer::ManifestFormat::Docker) => Family::Docker,
        _ => Family::Oci,
    };
    let wish = Wish {
        names: name.into_iter().collect(),
        family,
        compression: None,
        annotations: BTreeMap::new(),
        latest,
        created: latest,
        omit_history: false,
        squash: if args.squash { Squash::New } else { Squash::None },
        inline_cache: false,
    };
    let mut built = container.built();
    // It is no image's entry without that.
    for entry in
        built.config.history.iter_mut().flatten().filter(|h| h.comment.as_deref() == Some(commit::MARK))
    {
        entry.created = None;
    }
    let shared = Shared::default();
    let done = commit::commit(&store, store.begin()?, &shared, &built, &wish, &|_| Ok(None))?;
    Addition::settle(&store, &exec::lock(&shared.kept))?;
    if args.rm {
        store.unpin(&args.container)?;
    } else if paused {
        mount(&store, &args.container)?;
    }
    print(&format!("{}\n", done.config)).map(|()| 0)
}

pub fn containers(app: &App, args: Containers) -> Result<i32> {
    let store = app.store()?;
    let format = Format::parse(args.format.as_deref())?;
    let mut data = Vec::new();
    for (name, pin) in store.pins()? {
        let container: Container =
            serde_json::from_value(pin.data).with_context(|| format!("container {name}"))?;
        data.push(
            json!({"Name": name, "Image": container.image, "Layers": container.layers.len().to_string()}),
        );
    }
    let columns = [("CONTAINER", "Name"), ("IMAGE", "Image"), ("LAYERS", "Layers")];
    print(&rows(&format, &columns, &columns, &data)?).map(|()| 0)
}

pub fn rm(app: &App, args: Rm) -> Result<i32> {
    let store = app.store()?;
    let names = match args.all {
        true => store.pins()?.into_iter().map(|(name, _)| name).collect(),
        false => args.containers,
    };
    for name in &names {
        if Container::load(&store, name).is_ok_and(|c| c.mounted.is_some()) {
            store.end_container_mount(name)?;
        }
        store.unpin(name).map_err(|e| match report::kind(&e) {
            Some(Kind::NotFound) => error(Kind::NotFound, format!("no container {name}")),
            _ => e,
        })?;
        print(&format!("{name}\n"))?;
    }
    Ok(0)
}
