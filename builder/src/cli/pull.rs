//! Images come here, by their names or from other places.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use image::manifest::{Document, Index};
use image::registry::client::Settings;
use image::store::{Image, Unpack};
use image::transfer::{Choice, Conversion, Event, Options, copy};
use image::transport::Place;
use image::{Reference, Store};
use report::{Kind, error};

use super::transfer::{JOBS, Wanted, from, open};
use super::{App, Registry, print};
use crate::facts::{facts, find};
use crate::progress::Progress;

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

pub fn pull(app: &App, args: Pull) -> Result<i32> {
    let store = app.store()?;
    let settings = args.registry.settings(&app.environment)?;
    let wanted = Wanted::new(args.platform.as_deref())?;
    let how =
        How { policy: args.policy, unpack: unpack_when(args.no_unpack), all_platforms: args.all_platforms };
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
        let image = pull_one(app, &store, &settings, &place, how, &wanted)
            .with_context(|| format!("pull {place}"))?;
        print(&format!("{}\n", facts(&store, &image)?.id.hex()))?;
    }
    Ok(0)
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

/// Layers are unpacked as they come, or later.
pub fn unpack_when(later: bool) -> Unpack {
    if later { Unpack::Later } else { Unpack::Now }
}

/// What is fetched of an image, and when.
#[derive(Clone, Copy)]
struct How {
    policy: Policy,
    unpack: Unpack,
    all_platforms: bool,
}

fn pull_one(
    app: &App,
    store: &Store,
    settings: &Settings,
    place: &Place,
    how: How,
    wanted: &Wanted,
) -> Result<Image> {
    let name = name_of(place);
    if let (Place::Registry(reference), Some(here)) = (place, name.as_ref().and_then(|n| store.image(n).ok()))
    {
        let enough = match how.policy {
            Policy::Always => false,
            Policy::Missing | Policy::Never => true,
            Policy::Newer => settings.repository(reference)?.current()?.as_ref() == Some(&here.target.digest),
        };
        if enough {
            return Ok(here);
        }
    } else if how.policy == Policy::Never {
        return Err(error(
            Kind::NotFound,
            format!("{place} is not here, and --policy never says not to ask"),
        ));
    }
    let choose = |index: &Index| wanted.choose(index);
    let choice = if how.all_platforms { Choice::All } else { Choice::One(&choose) };
    let progress = Progress::new(app.quiet);
    let listener = |event: Event| progress.hear(event);
    let options = Options { choice, conversion: Conversion::default(), jobs: JOBS, listener: &listener };
    let target = store.receiving(vec![name.clone()], how.unpack)?;
    let root = open(place, settings, store)?.with(|source| copy(source, &target, &options))?;
    Ok(Image { reference: name, target: root })
}

/// For other verbs: fetch an image that is not here.
pub fn fetch(
    app: &App,
    store: &Store,
    text: &str,
    registry: &Registry,
    platform: Option<&str>,
) -> Result<Image> {
    if let Place::Store(name) = text.parse()? {
        match find(store, &name) {
            Err(e) if report::kind(&e) == Some(Kind::NotFound) => {}
            other => return other,
        }
    }
    let place = from(text)?;
    let settings = registry.settings(&app.environment)?;
    let wanted = Wanted::new(platform)?;
    let how = How { policy: Policy::Always, unpack: Unpack::Later, all_platforms: false };
    pull_one(app, store, &settings, &place, how, &wanted).with_context(|| format!("pull {place}"))
}

/// The image of that name, if it is in the store, for that platform.
pub fn here(store: &Store, text: &str, platform: Option<&str>) -> Result<Option<Image>> {
    let Place::Store(name) = text.parse()? else { return Ok(None) };
    let image = match find(store, &name) {
        Err(e) if report::kind(&e) == Some(Kind::NotFound) => return Ok(None),
        other => other?,
    };
    let wanted = Wanted::new(platform)?;
    let Document::Index(index) = store.document(&image.target)? else { return Ok(Some(image)) };
    Ok(wanted.choose(&index).is_ok_and(|d| store.has(&d.digest).unwrap_or(false)).then_some(image))
}
