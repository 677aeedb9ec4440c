//! Images in archives, as docker and podman save and load them.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use image::Reference;
use image::family::Family;
use image::manifest::Index;
use image::registry::client::Settings;
use image::store::Image;
use image::transfer::{Choice, Conversion, Event, Options, Source, copy};
use image::transport::files::{Files, Folder};
use image::transport::{Place, docker, layout};
use report::Explain;

use super::pull::unpack_when;
use super::transfer::{JOBS, Wanted, archive, send, to_file};
use super::{App, print};
use crate::facts::{facts, find};
use crate::progress::Progress;

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
        [(image, tags)] => Ok((image, tags.first().filter(|t| t.tag().is_some()).map(Reference::to_string))),
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
        format => {
            let folder = format != SaveFormat::OciArchive;
            ensure!(!folder || args.output.is_some(), "this format is a folder: --output FOLDER");
            let (image, name) = single()?;
            let (family, place) = match format {
                SaveFormat::DockerDir => (Family::Docker, Place::Dir(output)),
                SaveFormat::OciDir => (Family::Oci, Place::Layout { path: output, name }),
                _ => (Family::Oci, Place::LayoutArchive { path: output, name }),
            };
            let conversion = Conversion { family: Some(family), ..Conversion::default() };
            let options = Options { conversion, ..options };
            send(&place, &Settings::plain(), &store, &store.reading(image)?, &options)?;
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
    let unpack = unpack_when(args.no_unpack);
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
