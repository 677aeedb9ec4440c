//! Images from place to place.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use image::family::Family;
use image::layer::compress::Compression;
use image::manifest::{Descriptor, Index, Platform};
use image::registry::client::Settings;
use image::store::{Image, Unpack};
use image::temporary::{Replacement, Spool};
use image::transfer::{Choice, Conversion, Event, Options, Source, copy};
use image::transport::files::{Archive, Files, Folder};
use image::transport::{Place, dir, docker, layout};
use image::{Reference, Store};
use report::{Explain, Kind, error};

use super::{App, Registry, print};
use crate::facts::{facts, find, for_here};
use crate::progress::Progress;

/// Blobs on their way at the same time.
const JOBS: usize = 3;

#[derive(Debug, Args)]
pub struct Pull {
    /// Names, or places such as oci:FOLDER:NAME
    #[arg(required = true)]
    images: Vec<String>,
    /// Of every tag of the repository
    #[arg(long, short)]
    all_tags: bool,
    /// For another platform than this machine's
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<String>,
    /// For all platforms
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// When to ask the registry
    #[arg(long, value_enum, default_value = "always")]
    policy: Policy,
    /// Unpack layers when they are needed
    #[arg(long)]
    no_unpack: bool,
    #[command(flatten)]
    registry: Registry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Policy {
    Always,
    /// If the image is not here
    Missing,
    /// If it has another one
    Newer,
    Never,
}

#[derive(Debug, Args)]
pub struct Push {
    image: String,
    /// Where to; the image's own name says it, if it is left out
    destination: Option<String>,
    #[command(flatten)]
    pack: Pack,
    /// All that the list of images has
    #[arg(long, short)]
    all: bool,
    /// Write the digest to a file
    #[arg(long, value_name = "FILE")]
    digestfile: Option<PathBuf>,
    #[command(flatten)]
    registry: Registry,
}

/// What becomes of layers and manifests.
#[derive(Debug, Args)]
struct Pack {
    /// gzip, zstd or none, with a level as in zstd:19; for layers that are not compressed
    #[arg(long, alias = "compression-format", alias = "dest-compress-format", value_name = "HOW")]
    compression: Option<String>,
    /// Another level
    #[arg(long, alias = "dest-compress-level", value_name = "LEVEL")]
    compression_level: Option<i32>,
    /// Compress again what is compressed
    #[arg(long, alias = "force-compression-format", alias = "dest-force-compress-format")]
    force_compression: bool,
    /// Media types
    #[arg(long, short = 'f', value_enum)]
    format: Option<ManifestFormat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ManifestFormat {
    Oci,
    #[value(alias = "v2s2")]
    Docker,
}

#[derive(Debug, Args)]
pub struct Cp {
    /// Where from: docker://NAME, oci:FOLDER[:NAME], oci-archive:FILE, docker-archive:FILE, dir:FOLDER, or a name in the store
    source: String,
    destination: String,
    #[command(flatten)]
    pack: Pack,
    /// All platforms
    #[arg(long, short)]
    all: bool,
    /// Which of several platforms
    #[arg(long, value_enum, value_name = "WHICH")]
    multi_arch: Option<MultiArch>,
    /// For another platform than this machine's
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<String>,
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    src_tls_verify: Option<bool>,
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    dest_tls_verify: Option<bool>,
    #[arg(long, value_name = "USER:PASSWORD")]
    src_creds: Option<String>,
    #[arg(long, value_name = "USER:PASSWORD")]
    dest_creds: Option<String>,
    #[arg(long, value_name = "FILE")]
    src_authfile: Option<PathBuf>,
    #[arg(long, value_name = "FILE")]
    dest_authfile: Option<PathBuf>,
    #[arg(long, value_name = "FILE")]
    digestfile: Option<PathBuf>,
    /// Fail rather than change what a digest names
    #[arg(long)]
    preserve_digests: bool,
    #[command(flatten)]
    registry: Registry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MultiArch {
    System,
    All,
    IndexOnly,
}

#[derive(Debug, Args)]
pub struct Save {
    #[arg(required = true)]
    images: Vec<String>,
    /// The standard output, if it is left out
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "docker-archive")]
    format: SaveFormat,
    /// Several images in one archive, which is so in any case
    #[arg(long, short = 'm', hide = true)]
    multi_image_archive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SaveFormat {
    DockerArchive,
    OciArchive,
    OciDir,
    DockerDir,
}

#[derive(Debug, Args)]
pub struct Load {
    /// The standard input, if it is left out
    #[arg(long, short, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Unpack layers when they are needed
    #[arg(long)]
    no_unpack: bool,
}

impl Cp {
    pub fn to_the_store(&self) -> bool {
        matches!(self.destination.parse(), Ok(Place::Store(_)))
    }
}

impl Pack {
    /// `default` is for layers that are not compressed.
    fn conversion(&self, default: Option<Compression>) -> Result<Conversion> {
        let mut compression = self.compression.as_deref().map(str::parse).transpose()?.or(default);
        if let Some(level) = self.compression_level {
            compression = Some(compression.unwrap_or(Compression::GZIP).with_level(level)?);
        }
        let family = self.format.map(|f| match f {
            ManifestFormat::Oci => Family::Oci,
            ManifestFormat::Docker => Family::Docker,
        });
        Ok(Conversion { family, compression, force: self.force_compression })
    }
}

/// How the platform is chosen: what was asked for by name must be that.
struct Wanted {
    platform: Platform,
    strict: bool,
}

impl Wanted {
    fn new(text: Option<&str>) -> Result<Wanted> {
        Ok(match text {
            Some(text) => Wanted { platform: text.parse()?, strict: true },
            None => Wanted { platform: Platform::own(), strict: false },
        })
    }

    fn choose(&self, index: &Index) -> Result<Descriptor> {
        image::platform::choose(index, &self.platform, self.strict)
    }
}

/// What is read from, opened.
enum Opened<'a> {
    Layout(layout::Reading<Folder>),
    LayoutArchive(layout::Reading<Archive>),
    DockerArchive(Archive, Option<Reference>),
    Dir(dir::Reading),
    Registry(image::registry::client::Repository),
    Store(image::store::Reading<'a>),
}

fn open<'a>(place: &Place, settings: &Settings, store: &'a Store) -> Result<Opened<'a>> {
    Ok(match place {
        Place::Registry(reference) => Opened::Registry(settings.repository(reference)?),
        Place::Layout { path, name } => {
            Opened::Layout(layout::Reading::open(Folder::open(path)?, name.as_deref())?)
        }
        Place::LayoutArchive { path, name } => {
            Opened::LayoutArchive(layout::Reading::open(archive(path, store)?, name.as_deref())?)
        }
        Place::DockerArchive { path, name } => Opened::DockerArchive(archive(path, store)?, name.clone()),
        Place::Dir(path) => Opened::Dir(dir::Reading::open(path)?),
        Place::Store(text) => Opened::Store(store.reading(&find(store, text)?)?),
    })
}

/// An archive; `-` is the standard input.
fn archive(path: &Path, store: &Store) -> Result<Archive> {
    let title = path.display().to_string();
    let file = if title == "-" {
        use std::os::fd::AsFd;
        File::from(std::io::stdin().as_fd().try_clone_to_owned()?)
    } else {
        File::open(path).with_context(|| format!("open {title}"))?
    };
    Archive::open(file, &title, Spool(store.root()))
}

impl Opened<'_> {
    /// Do something with it.
    fn with<T>(&self, run: impl FnOnce(&dyn Source) -> Result<T>) -> Result<T> {
        match self {
            Opened::Layout(s) => run(s),
            Opened::LayoutArchive(s) => run(s),
            Opened::DockerArchive(archive, name) => {
                run(&docker::Reading::open(archive, &docker::image(archive, name.as_ref())?)?)
            }
            Opened::Dir(s) => run(s),
            Opened::Registry(s) => run(s),
            Opened::Store(s) => run(s),
        }
    }
}

/// What a name without a transport is to `pull`: a registry's.
fn from(text: &str) -> Result<Place> {
    Ok(match text.parse()? {
        Place::Store(name) => Place::Registry(name.parse()?),
        place => place,
    })
}

/// The name that an image from elsewhere gets: what the place says, if it is a name.
fn name_of(place: &Place) -> Option<Reference> {
    let local = |path: &Path, name: Option<&str>| {
        let full: Option<Reference> = name.filter(|n| n.contains('/')).and_then(|n| n.parse().ok());
        let last = path.canonicalize().ok()?.file_name()?.to_str()?.to_lowercase();
        full.or_else(|| format!("localhost/{last}:{}", name.unwrap_or("latest")).parse().ok())
    };
    match place {
        Place::Registry(reference) => Some(reference.clone()),
        Place::Layout { path, name } | Place::LayoutArchive { path, name } => local(path, name.as_deref()),
        Place::DockerArchive { name, .. } => name.clone(),
        Place::Dir(path) => local(path, None),
        Place::Store(name) => name.parse().ok(),
    }
}

fn unpack(later: bool) -> Unpack {
    if later { Unpack::Later } else { Unpack::Now }
}

pub fn pull(app: &App, args: Pull) -> Result<i32> {
    let store = app.store()?;
    let settings = args.registry.settings(&app.environment)?;
    let wanted = Wanted::new(args.platform.as_deref())?;
    let mut places = Vec::new();
    for text in &args.images {
        let place = from(text)?;
        match (&place, args.all_tags) {
            (Place::Registry(reference), true) => {
                for tag in settings.repository(reference)?.tags()? {
                    places.push(Place::Registry(reference.with_tag(&tag)?));
                }
            }
            (_, true) => bail!("{text}: --all-tags is for registries"),
            _ => places.push(place),
        }
    }
    for place in places {
        let image = pull_one(app, &store, &settings, &place, &args, &wanted)
            .with_context(|| format!("pull {place}"))?;
        print(&format!("{}\n", facts(&store, &image)?.id.hex()))?;
    }
    Ok(0)
}

fn pull_one(
    app: &App,
    store: &Store,
    settings: &Settings,
    place: &Place,
    args: &Pull,
    wanted: &Wanted,
) -> Result<Image> {
    let name = name_of(place);
    if let (Place::Registry(reference), Some(here)) = (place, name.as_ref().and_then(|n| store.image(n).ok()))
    {
        let enough = match args.policy {
            Policy::Always => false,
            Policy::Missing | Policy::Never => true,
            Policy::Newer => settings.repository(reference)?.current()?.as_ref() == Some(&here.target.digest),
        };
        if enough {
            return Ok(here);
        }
    } else if args.policy == Policy::Never {
        return Err(error(
            Kind::NotFound,
            format!("{place} is not here, and --policy never says not to ask"),
        ));
    }
    let choose = |index: &Index| wanted.choose(index);
    let choice = if args.all_platforms { Choice::All } else { Choice::One(&choose) };
    let progress = Progress::new(app.quiet);
    let listener = |event: Event| progress.hear(event);
    let options = Options { choice, conversion: Conversion::default(), jobs: JOBS, listener: &listener };
    let target = store.receiving(vec![name.clone()], unpack(args.no_unpack))?;
    let root = open(place, settings, store)?.with(|source| copy(source, &target, &options))?;
    Ok(Image { reference: name, target: root })
}

/// Repositories of the same registry whose images are here: they may have what is pushed.
fn relatives(store: &Store, to: &Reference) -> Result<Vec<String>> {
    let mut all: Vec<String> = Vec::new();
    for image in store.images()? {
        if let Some(r) = image.reference
            && r.registry() == to.registry()
            && r.repository() != to.repository()
            && !all.contains(&r.repository().to_owned())
        {
            all.push(r.repository().to_owned());
        }
    }
    Ok(all)
}

/// Copy to a place; what its name leads to.
fn send(
    place: &Place,
    settings: &Settings,
    store: &Store,
    source: &dyn Source,
    options: &Options<'_>,
) -> Result<Descriptor> {
    match place {
        Place::Registry(reference) => {
            let repository = settings.repository(reference)?;
            let pushing = repository.pushing(relatives(store, reference)?)?;
            copy(source, &pushing, options)
        }
        Place::Layout { path, name } => copy(source, &layout::Writing::new(path, name.as_deref())?, options),
        Place::Dir(path) => copy(source, &dir::Writing::new(path)?, options),
        Place::LayoutArchive { path, name } => to_file(path, |to, spool| {
            let target = layout::WritingArchive::new(to, name.as_deref(), spool);
            copy(source, &target, options)
        }),
        Place::DockerArchive { path, name } => to_file(path, |mut to, spool| {
            let writing = docker::Writing::new(spool);
            let root = copy(source, &writing.image(name.iter().cloned().collect()), options)?;
            writing.write(&mut to)?;
            Ok(root)
        }),
        Place::Store(text) => {
            let target = store.receiving(vec![Some(text.parse()?)], Unpack::Now)?;
            copy(source, &target, options)
        }
    }
}

/// Write a file that is there when it is whole, or to the standard output; big things wait beside it.
fn to_file<T>(
    path: &Path,
    write: impl FnOnce(Box<dyn Write + Send + '_>, Spool<'_>) -> Result<T>,
) -> Result<T> {
    if path == Path::new("-") {
        ensure!(!std::io::stdout().is_terminal(), "an archive is nothing for a terminal; --output FILE");
        return write(
            Box::new(std::io::BufWriter::with_capacity(1 << 17, std::io::stdout())),
            Spool(&std::env::temp_dir()),
        );
    }
    let beside = match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    let mut new = Replacement::new(path)?;
    let done = write(Box::new(std::io::BufWriter::with_capacity(1 << 17, &mut new)), Spool(beside))?;
    new.finish()?;
    Ok(done)
}

/// Layers that are not compressed are packed for others to fetch, and stay as they are in what lies on a disk.
fn usual(place: &Place) -> Option<Compression> {
    match place {
        Place::Registry(_) | Place::Layout { .. } | Place::LayoutArchive { .. } => Some(Compression::GZIP),
        Place::Dir(_) | Place::DockerArchive { .. } | Place::Store(_) => None,
    }
}

pub fn push(app: &App, args: Push) -> Result<i32> {
    let store = app.store()?;
    let settings = args.registry.settings(&app.environment)?;
    let image = find(&store, &args.image)?;
    let place = match &args.destination {
        Some(text) => from(text)?,
        None => match &image.reference {
            Some(reference) => Place::Registry(reference.clone()),
            None => bail!("{}: it has no name that says where to; give a destination", args.image),
        },
    };
    let progress = Progress::new(app.quiet);
    let listener = |event: Event| progress.hear(event);
    let conversion = args.pack.conversion(usual(&place))?;
    let options = Options { choice: Choice::All, conversion, jobs: JOBS, listener: &listener };
    // A list is sent whole if that is wanted; else what is for this machine.
    let image = match (args.all, for_here(&store, &image.target)?) {
        (false, Some((target, _))) => Image { target, ..image },
        _ => image,
    };
    let root = send(&place, &settings, &store, &store.reading(&image)?, &options)
        .with_context(|| format!("push {} to {place}", args.image))?;
    digest_file(args.digestfile.as_deref(), &root)?;
    if !app.quiet {
        progress.end();
        print(&format!("{}\n", root.digest))?;
    }
    Ok(0)
}

fn digest_file(path: Option<&Path>, root: &Descriptor) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let mut new = Replacement::new(path)?;
    new.write_all(root.digest.to_string().as_bytes()).with_context(|| format!("write {}", path.display()))?;
    new.finish()
}

pub fn cp(app: &App, args: Cp) -> Result<i32> {
    let store = app.store()?;
    let (source, destination): (Place, Place) = (args.source.parse()?, args.destination.parse()?);
    let side = |verify: Option<bool>, creds: &Option<String>, file: &Option<PathBuf>| {
        let registry = Registry {
            tls_verify: verify.or(args.registry.tls_verify),
            creds: creds.clone().or_else(|| args.registry.creds.clone()),
            authfile: file.clone().or_else(|| args.registry.authfile.clone()),
        };
        registry.settings(&app.environment)
    };
    let from = side(args.src_tls_verify, &args.src_creds, &args.src_authfile)?;
    let to = side(args.dest_tls_verify, &args.dest_creds, &args.dest_authfile)?;
    let wanted = Wanted::new(args.platform.as_deref())?;
    let choose = |index: &Index| wanted.choose(index);
    let choice = match (args.all, args.multi_arch) {
        (true, _) | (_, Some(MultiArch::All)) => Choice::All,
        (_, Some(MultiArch::IndexOnly)) => Choice::IndexOnly,
        _ => Choice::One(&choose),
    };
    let progress = Progress::new(app.quiet);
    let listener = |event: Event| progress.hear(event);
    let conversion = args.pack.conversion(None)?;
    let options = Options { choice, conversion, jobs: JOBS, listener: &listener };
    let root = open(&source, &from, &store)?
        .with(|reading| {
            if args.preserve_digests {
                let kept = conversion == Conversion::default()
                    && !matches!(destination, Place::DockerArchive { .. });
                ensure!(kept, "--preserve-digests: what was asked for beside it changes digests");
            }
            send(&destination, &to, &store, reading, &options)
        })
        .with_context(|| format!("copy {source} to {destination}"))?;
    digest_file(args.digestfile.as_deref(), &root)?;
    if !app.quiet {
        progress.end();
        print(&format!("{}\n", root.digest))?;
    }
    Ok(0)
}

pub fn save(app: &App, args: Save) -> Result<i32> {
    let store = app.store()?;
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from("-"));
    let progress = Progress::new(app.quiet || args.output.is_none());
    let listener = |event: Event| progress.hear(event);
    let choose = |index: &Index| Wanted::new(None)?.choose(index);
    let options = Options {
        choice: Choice::One(&choose),
        conversion: Conversion::default(),
        jobs: JOBS,
        listener: &listener,
    };
    let mut all: Vec<(Image, Vec<Reference>)> = Vec::new();
    for text in &args.images {
        let image = find(&store, text)?;
        // By its name with that name; by its id with none, as docker has it.
        let named = text.parse().ok().filter(|r| image.reference.as_ref() == Some(r));
        match all.iter_mut().find(|(known, _)| known.target.digest == image.target.digest) {
            Some((_, tags)) => tags.extend(named),
            None => all.push((image, named.into_iter().collect())),
        }
    }
    let single = || match all.as_slice() {
        [(image, tags)] => Ok((image, tags.first().and_then(|t| t.tag().map(|_| t.to_string())))),
        _ => Err(anyhow::anyhow!("this format takes one image; docker-archive takes several")),
    };
    match args.format {
        SaveFormat::DockerArchive => to_file(&output, |mut to, spool| {
            let writing = docker::Writing::new(spool);
            for (image, tags) in &all {
                copy(&store.reading(image)?, &writing.image(tags.clone()), &options)
                    .with_context(|| format!("save {}", image.title()))?;
            }
            writing.write(&mut to)
        })?,
        SaveFormat::OciArchive => {
            let (image, name) = single()?;
            let place = Place::LayoutArchive { path: output, name };
            send(&place, &Settings::plain(), &store, &store.reading(image)?, &options).map(drop)?;
        }
        SaveFormat::OciDir | SaveFormat::DockerDir => {
            ensure!(args.output.is_some(), "this format is a folder: --output FOLDER");
            let (image, name) = single()?;
            let docker = args.format == SaveFormat::DockerDir;
            let family = docker.then_some(Family::Docker);
            let conversion = Conversion { family, ..Conversion::default() };
            let place = if docker { Place::Dir(output) } else { Place::Layout { path: output, name } };
            send(
                &place,
                &Settings::plain(),
                &store,
                &store.reading(image)?,
                &Options { conversion, ..options },
            )?;
        }
    }
    Ok(0)
}

pub fn load(app: &App, args: Load) -> Result<i32> {
    let store = app.store()?;
    let path = args.input.clone().unwrap_or_else(|| PathBuf::from("-"));
    if args.input.is_none() && std::io::stdin().is_terminal() {
        let e: Result<i32> = Err(anyhow::anyhow!("load: an archive is missing"));
        return e.hint(|| "--input FILE, or docker save IMAGE | berth-builder load".to_owned());
    }
    let progress = Progress::new(app.quiet);
    let listener = |event: Event| progress.hear(event);
    let options =
        Options { choice: Choice::All, conversion: Conversion::default(), jobs: JOBS, listener: &listener };
    let unpack = unpack(args.no_unpack);
    let take = |source: &dyn Source, names: Vec<Option<Reference>>| -> Result<String> {
        let target = store.receiving(names.clone(), unpack)?;
        let root = copy(source, &target, &options)?;
        drop(target);
        let id = facts(&store, &Image { reference: None, target: root })?.id;
        let named = names.iter().flatten().map(|n| format!("Loaded image: {}\n", n.familiar()));
        let text: String = named.collect();
        Ok(if text.is_empty() { format!("Loaded image ID: {id}\n") } else { text })
    };
    let mut told = String::new();
    if path.is_dir() {
        let files = Folder::open(&path)?;
        for (name, root) in layout::images(&files)? {
            let name = name.and_then(|n| n.parse().ok());
            told.push_str(&take(&layout::Reading::of(Folder::open(&path)?, root), vec![name])?);
        }
        return print(&told).map(|()| 0);
    }
    let archive = archive(&path, &store)?;
    if archive.has("manifest.json") {
        for item in docker::images(&archive)? {
            let names: Vec<_> =
                item.repo_tags.iter().flatten().map(|t| t.parse().map(Some)).collect::<Result<_>>()?;
            let names = if names.is_empty() { vec![None] } else { names };
            told.push_str(&take(&docker::Reading::open(&archive, &item)?, names)?);
        }
    } else if archive.has("index.json") {
        for (name, root) in layout::images(&archive)? {
            let name = name.and_then(|n| n.parse().ok());
            let one = layout::Reading::of(&archive, root);
            told.push_str(&take(&one, vec![name])?);
        }
    } else {
        bail!("{}: neither manifest.json nor index.json in it: no archive of images", archive.title());
    }
    ensure!(!told.is_empty(), "{}: no image in it", archive.title());
    progress.end();
    print(&told).map(|()| 0)
}

/// For other verbs: fetch an image that is not here.
pub fn fetch(
    app: &App,
    store: &Store,
    text: &str,
    registry: &Registry,
    platform: Option<&str>,
) -> Result<Image> {
    match find(store, text) {
        Err(e) if report::kind(&e) == Some(Kind::NotFound) => {}
        other => return other,
    }
    let place = from(text)?;
    let settings = registry.settings(&app.environment)?;
    let wanted = Wanted::new(platform)?;
    let args = Pull {
        images: vec![],
        all_tags: false,
        platform: None,
        all_platforms: false,
        policy: Policy::Always,
        no_unpack: true,
        registry: registry.clone(),
    };
    pull_one(app, store, &settings, &place, &args, &wanted).with_context(|| format!("pull {place}"))
}

/// Send a list of images whole.
pub fn push_all(
    app: &App,
    store: &Store,
    image: &Image,
    to: &str,
    registry: &Registry,
) -> Result<Descriptor> {
    let place = from(to)?;
    let settings = registry.settings(&app.environment)?;
    let progress = Progress::new(app.quiet);
    let listener = |event: Event| progress.hear(event);
    let conversion = Conversion { compression: usual(&place), ..Conversion::default() };
    let options = Options { choice: Choice::All, conversion, jobs: JOBS, listener: &listener };
    send(&place, &settings, store, &store.reading(image)?, &options)
        .with_context(|| format!("push to {place}"))
}
