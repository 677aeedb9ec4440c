//! What all verbs share that copy images: where from, where to, and what becomes of them on the way.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use image::family::Family;
use image::layer::compress::Compression;
use image::manifest::{Descriptor, Index, Platform};
use image::registry::client::Settings;
use image::store::Unpack;
use image::temporary::{Replacement, Spool, folder_of};
use image::transfer::{Conversion, Options, Source, copy};
use image::transport::files::{Archive, Folder};
use image::transport::{Place, dir, docker, layout};
use image::{Reference, Store};

use crate::facts::find;

/// Blobs on their way at the same time.
pub const JOBS: usize = 3;

/// What becomes of layers and manifests.
#[derive(Debug, Args)]
pub struct Pack {
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
pub enum ManifestFormat {
    Oci,
    #[value(alias = "v2s2")]
    Docker,
}

impl Pack {
    /// `default` is for layers that are not compressed.
    pub fn conversion(&self, default: Option<Compression>) -> Result<Conversion> {
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
pub struct Wanted {
    pub platform: Platform,
    pub strict: bool,
}

impl Wanted {
    pub fn new(text: Option<&str>) -> Result<Wanted> {
        Ok(match text {
            Some(text) => Wanted { platform: text.parse()?, strict: true },
            None => Wanted { platform: Platform::own(), strict: false },
        })
    }

    pub fn choose(&self, index: &Index) -> Result<Descriptor> {
        image::platform::choose(index, &self.platform, self.strict)
    }
}

/// What is read from, opened.
pub enum Opened<'a> {
    Layout(layout::Reading<Folder>),
    LayoutArchive(layout::Reading<Archive>),
    DockerArchive(Archive, Option<Reference>),
    Dir(dir::Reading),
    Registry(image::registry::client::Repository),
    Store(image::store::Reading<'a>),
}

pub fn open<'a>(place: &Place, settings: &Settings, store: &'a Store) -> Result<Opened<'a>> {
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
pub fn archive(path: &Path, store: &Store) -> Result<Archive> {
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
    pub fn with<T>(&self, run: impl FnOnce(&dyn Source) -> Result<T>) -> Result<T> {
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
pub fn from(text: &str) -> Result<Place> {
    Ok(match text.parse()? {
        Place::Store(name) => Place::Registry(name.parse()?),
        place => place,
    })
}

/// Repositories of the same registry whose images are here: they may have what is pushed.
pub fn relatives(store: &Store, to: &Reference) -> Result<Vec<String>> {
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
pub fn send(
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
pub fn to_file<T>(
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
    let mut new = Replacement::new(path)?;
    let done = write(Box::new(std::io::BufWriter::with_capacity(1 << 17, &mut new)), Spool(folder_of(path)))?;
    new.finish()?;
    Ok(done)
}

/// Layers that are not compressed are packed for others to fetch, and stay as they are in what lies on a disk.
pub fn usual(place: &Place) -> Option<Compression> {
    match place {
        Place::Registry(_) | Place::Layout { .. } | Place::LayoutArchive { .. } => Some(Compression::GZIP),
        Place::Dir(_) | Place::DockerArchive { .. } | Place::Store(_) => None,
    }
}

pub fn digest_file(path: Option<&Path>, root: &Descriptor) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let mut new = Replacement::new(path)?;
    new.write_all(root.digest.to_string().as_bytes()).with_context(|| format!("write {}", path.display()))?;
    new.finish()
}
