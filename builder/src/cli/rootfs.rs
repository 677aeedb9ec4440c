//! Root file systems: unpacked to be kept, or mounted to be looked at.

use std::fs::DirBuilder;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use image::layer::apply::{Options, Whiteouts};
use image::manifest::{Config, Manifest};
use image::store::Image;
use image::temporary::NewFolder;
use image::{Store, rootless};
use serde_json::json;

use super::{App, Registry, print, pull, working};
use crate::bundle::{self, Runner};
use crate::facts::for_here;
use crate::format::{Format, rows};

#[derive(Debug, Args)]
pub struct Unpack {
    /// A name in the store, or elsewhere: it is pulled if it is not here
    image: String,
    /// Made, or empty
    folder: PathBuf,
    /// Only the root file system, not in a folder of its own
    #[arg(long)]
    rootfs_only: bool,
    /// For another platform than this machine's
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<String>,
    /// The container's host name
    #[arg(long, default_value = "berth", value_name = "NAME")]
    hostname: String,
    #[command(flatten)]
    registry: Registry,
}

#[derive(Debug, Args)]
pub struct Mount {
    /// An image or a working container; what is mounted is listed, if none is given
    image: Option<String>,
    /// One is made in the store, if it is left out
    folder: Option<PathBuf>,
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

#[derive(Debug, Args)]
pub struct Unmount {
    /// A folder, or what was given to mount
    #[arg(required_unless_present = "all")]
    what: Vec<String>,
    #[arg(long, short)]
    all: bool,
}

fn runnable(store: &Store, image: &Image) -> Result<(Manifest, Config)> {
    let found = for_here(store, &image.target)?;
    let (_, manifest) = found.with_context(|| format!("{}: nothing of it is here", image.title()))?;
    ensure!(manifest.config.is_config(), "{}: it is no image that can be run", image.title());
    let config = store.config(&manifest)?;
    Ok((manifest, config))
}

pub fn unpack(app: &App, args: Unpack) -> Result<i32> {
    let store = app.store()?;
    let image = pull::fetch(app, &store, &args.image, &args.registry, args.platform.as_deref())?;
    let _lease = store.lease()?;
    let (manifest, config) = runnable(&store, &image)?;
    let new = NewFolder::new(&args.folder)?;
    let rootfs = if args.rootfs_only { new.place().to_owned() } else { new.place().join("rootfs") };
    if !args.rootfs_only {
        DirBuilder::new()
            .mode(0o755)
            .create(&rootfs)
            .with_context(|| format!("make {}", rootfs.display()))?;
    }
    let root = bundle::open_root(&rootfs)?;
    // Layers often do not say; the moment of unpacking is nobody's wish.
    let never = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 };
    let never = rustix::fs::Timestamps { last_access: never, last_modification: never };
    rustix::fs::futimens(&root, &never).with_context(|| format!("set the time of {}", rootfs.display()))?;
    let options = Options::own(Whiteouts::Remove, rootless::others_are_mapped()?);
    for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
        store.place_layer(layer, diff_id, root.as_fd(), options)?;
    }
    if !args.rootfs_only {
        let runner = match app.user {
            (0, _) => Runner::Root,
            (uid, gid) => {
                let mapped = app.subordinate.gids.iter().map(|r| r.count).fold(1, u32::saturating_add);
                Runner::User { uid, gid, mapped }
            }
        };
        let made = bundle::config(&config, root.as_fd(), &args.hostname, runner, &app.subordinate)?;
        let path = new.place().join("config.json");
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::File::create(&path)?;
            file.write_all(&serde_json::to_vec_pretty(&made)?)
        };
        write().with_context(|| format!("write {}", path.display()))?;
    }
    new.finish()?;
    Ok(0)
}

pub fn mount(app: &App, args: Mount) -> Result<i32> {
    let store = app.store()?;
    let Some(text) = &args.image else {
        let format = Format::parse(args.format.as_deref())?;
        let mut data: Vec<_> =
            store.mounts()?.iter().map(|m| json!({"Image": m.image, "Folder": m.folder})).collect();
        let containers = working::mounted(&store)?;
        data.extend(containers.iter().map(|(name, folder)| json!({"Image": name, "Folder": folder})));
        let columns = [("IMAGE", "Image"), ("FOLDER", "Folder")];
        return print(&rows(&format, &columns, &columns, &data)?).map(|()| 0);
    };
    if app.user.0 != 0 {
        let e: Result<i32> = Err(anyhow::anyhow!(
            "mount: an ordinary user's mount is seen by nobody else, and ends with this command"
        ));
        return report::Explain::hint(e, || "berth-builder unpack, run or copy".to_owned());
    }
    if store.pin(text).is_ok() {
        ensure!(args.folder.is_none(), "a working container is mounted in the store");
        return print(&format!("{}\n", working::mount(&store, text)?.display())).map(|()| 0);
    }
    let image = crate::facts::find(&store, text)?;
    let (manifest, config) = runnable(&store, &image)?;
    store.unpack(&manifest, &config)?;
    let folder = store.mount(text, &config.rootfs.diff_ids, args.folder.as_deref())?;
    print(&format!("{}\n", folder.display())).map(|()| 0)
}

pub fn unmount(app: &App, args: Unmount) -> Result<i32> {
    let store = app.store()?;
    let what = match args.all {
        true => {
            let images = store.mounts()?.into_iter().map(|m| m.folder.display().to_string());
            images.chain(working::mounted(&store)?.into_iter().map(|(name, _)| name)).collect::<Vec<_>>()
        }
        false => args.what,
    };
    for text in &what {
        if store.pin(text).is_ok() && working::settle(&store, text)? {
            print(&format!("{}\n", store.container_folder(text)?.display()))?;
            continue;
        }
        for folder in store.unmount(text)? {
            print(&format!("{}\n", folder.display()))?;
        }
    }
    Ok(0)
}
