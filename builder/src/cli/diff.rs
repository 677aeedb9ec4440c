//! What is different between two images?

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use clap::Args;
use image::Store;
use image::layer::apply::{Options, Whiteouts};
use image::layer::tar::{Header, Kind};
use image::layer::walk;
use image::layer::whiteout::Privilege;
use image::manifest::Config;
use serde_json::{Value, json};

use super::{App, Registry, print, pull};
use crate::exec::index::{self, Sum};
use crate::facts::for_here;
use crate::format::{Format, rows};

#[derive(Debug, Args)]
#[command(after_help = "The status is 0 if the two are the same, 1 if not.")]
pub struct Diff {
    /// A name in the store, or elsewhere
    first: String,
    second: String,
    /// Times of files, too
    #[arg(long)]
    times: bool,
    /// json, or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    #[command(flatten)]
    registry: Registry,
}

/// What is at a path.
struct Entry {
    header: Header,
    sum: Option<Sum>,
}

pub fn diff(app: &App, args: Diff) -> Result<i32> {
    let store = app.store()?;
    let format = Format::parse(args.format.as_deref())?;
    let one = look(app, &store, &args.first, &args.registry)?;
    let other = look(app, &store, &args.second, &args.registry)?;
    let mut data = Vec::new();
    let mut tell = |change: &str, path: String, what: Vec<&str>| {
        data.push(json!({"Change": change, "Path": path, "What": what.join(", ")}));
    };
    for (part, a, b) in parts(&one.0, &other.0) {
        if a != b {
            tell("C", part.to_owned(), vec!["config"]);
        }
    }
    let mut paths: Vec<&Vec<u8>> = one.1.keys().chain(other.1.keys()).collect();
    paths.sort();
    paths.dedup();
    for path in paths {
        let title = format!("/{}", path.escape_ascii());
        match (one.1.get(path), other.1.get(path)) {
            (Some(_), None) => tell("D", title, vec!["gone"]),
            (None, Some(_)) => tell("A", title, vec!["new"]),
            (Some(a), Some(b)) => {
                let what = changes(a, b, args.times);
                if !what.is_empty() {
                    tell("C", title, what);
                }
            }
            (None, None) => {}
        }
    }
    let columns = [("CHANGE", "Change"), ("PATH", "Path"), ("WHAT", "What")];
    if !data.is_empty() || !matches!(format, Format::Table) {
        print(&rows(&format, &columns, &columns, &data)?)?;
    }
    Ok(i32::from(!data.is_empty()))
}

fn changes(a: &Entry, b: &Entry, times: bool) -> Vec<&'static str> {
    let (x, y) = (&a.header, &b.header);
    let all = [
        (x.kind != y.kind, "kind"),
        (a.sum != b.sum || x.size != y.size, "content"),
        (x.link != y.link, "link"),
        (x.mode != y.mode, "mode"),
        ((x.uid, x.gid) != (y.uid, y.gid), "owner"),
        (x.device != y.device, "device"),
        (x.xattrs != y.xattrs, "attributes"),
        (times && x.mtime != y.mtime, "time"),
    ];
    all.into_iter().filter(|(other, _)| *other).map(|(_, what)| what).collect()
}

/// What the configs say of how the image is run.
fn parts(a: &Config, b: &Config) -> Vec<(&'static str, Value, Value)> {
    let of = |config: &Config| serde_json::to_value(config).unwrap_or_default();
    let (a, b) = (of(a), of(b));
    ["architecture", "os", "variant", "created", "author", "config"]
        .into_iter()
        .map(|part| (part, a[part].clone(), b[part].clone()))
        .collect()
}

/// An image's config and all that is in it.
fn look(
    app: &App,
    store: &Store,
    text: &str,
    registry: &Registry,
) -> Result<(Config, BTreeMap<Vec<u8>, Entry>)> {
    let image = pull::fetch(app, store, text, registry, None)?;
    let found = for_here(store, &image.target)?;
    let (_, manifest) = found.with_context(|| format!("{text}: nothing of it is here"))?;
    ensure!(manifest.config.is_config(), "{text}: it is no image that can be run");
    let config = store.config(&manifest)?;
    // Into one tree, as whoever runs it finds it; it goes with this.
    let addition = store.begin()?;
    let tree = addition.tree()?;
    let options = Options { whiteouts: Whiteouts::Remove, ..store.tree_options()? };
    for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
        store.place_layer(layer, diff_id, tree.as_fd(), options)?;
    }
    let root: OwnedFd = tree.as_fd().try_clone_to_owned()?;
    let mut all = BTreeMap::new();
    walk::walk(root.as_fd(), Privilege::own(), &mut |header, content| {
        let sum = match (header.kind, content) {
            (Kind::File, Some(file)) => Some(index::sum(file, header.size)?),
            _ => None,
        };
        all.insert(header.path.clone(), Entry { header: header.clone(), sum });
        Ok(())
    })?;
    all.remove(&Vec::new());
    Ok((config, all))
}
