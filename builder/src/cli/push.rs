//! Images go to other places.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use image::Store;
use image::manifest::{Descriptor, Index};
use image::store::Image;
use image::transfer::{Choice, Conversion, Event, Options};
use image::transport::Place;

use super::transfer::{JOBS, Pack, Wanted, digest_file, from, open, send, usual};
use super::{App, Registry, print};
use crate::facts::{find, for_here};
use crate::progress::Progress;

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

impl Cp {
    pub fn to_the_store(&self) -> bool {
        matches!(self.destination.parse(), Ok(Place::Store(_)))
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
