//! What may go, what uses the disk, what is damaged?

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use clap::Args;
use image::store::Wait;
use report::Explain;
use serde_json::json;

use super::images::Filter;
use super::{App, print};
use crate::facts::{Facts, facts};
use crate::format::{Format, human, rows};

#[derive(Debug, Args)]
pub struct Prune {
    /// Images with names too
    #[arg(long, short)]
    all: bool,
    /// What builds keep for the next ones, and no images
    #[arg(long, conflicts_with = "all")]
    build_cache: bool,
    /// Ask nothing
    #[arg(long, short)]
    force: bool,
    /// until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE], reference=PATTERN
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// With --all: the oldest images go until no more than this is used
    #[arg(long, value_name = "SIZE")]
    keep_storage: Option<String>,
}

#[derive(Debug, Args)]
pub struct Df {
    /// Image by image
    #[arg(long, short)]
    verbose: bool,
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

#[derive(Debug, Args)]
pub struct Check {
    /// Remove what is damaged, and the images that need it
    #[arg(long)]
    repair: bool,
    /// json, or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

pub fn prune(app: &App, args: Prune) -> Result<i32> {
    let store = app.store()?;
    let filters = args.filter.iter().map(|f| Filter::parse(&store, f)).collect::<Result<Vec<_>>>()?;
    if args.build_cache {
        return prune_build_cache(app, &store, &filters);
    }
    let keep = match args.keep_storage.as_deref() {
        Some(text) => {
            Some(human::parse_size(text).with_context(|| format!("--keep-storage: {text:?} is no size"))?)
        }
        None => None,
    };
    let mut going: Vec<Facts> = Vec::new();
    for image in store.images()? {
        if image.reference.is_some() && !args.all {
            continue;
        }
        let facts = facts(&store, &image)?;
        if filters.iter().all(|f| f.fits(&facts)) {
            going.push(facts);
        }
    }
    going.sort_by_key(Facts::created);
    let going = match keep {
        Some(keep) => {
            let images: Vec<_> = going.iter().map(|f| f.image.clone()).collect();
            &going[..store.enough(&images, keep)?]
        }
        None => &going[..],
    };
    if !args.force {
        let what = if args.all { "all images that the filters leave" } else { "all images without a name" };
        let names: String = going.iter().map(|f| format!("  {}\n", f.image.title())).collect();
        if !std::io::stdin().is_terminal() {
            let e: Result<i32> =
                Err(anyhow::anyhow!("prune: it would remove {what}:\n{names}and there is nobody to ask"));
            return e.hint(|| "--force".to_owned());
        }
        print(&format!("This removes {what}:\n{names}Go on? [y/N] "))?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).context("read the answer")?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(0);
        }
    }
    let mut told = String::new();
    let mut freed = 0;
    for facts in going {
        match &facts.image.reference {
            Some(name) => {
                store.untag(name)?;
                told.push_str(&format!("Untagged: {}\n", name.familiar()));
            }
            None => {
                store.forget(&facts.image.target.digest)?;
                told.push_str(&format!("Deleted: {}\n", facts.id));
            }
        }
    }
    let swept = match store.sweep(Wait::No)? {
        Some(swept) => Some(swept),
        None => {
            // That nobody reads it is no reason to stop.
            writeln!(std::io::stderr(), "{}: waiting for other commands to end", super::PROGRAM)
                .unwrap_or_default();
            store.sweep(Wait::Yes)?
        }
    };
    if let Some(swept) = swept {
        freed += swept.bytes;
        for digest in swept.blobs.iter().chain(&swept.layers) {
            told.push_str(&format!("Deleted: {digest}\n"));
        }
    }
    if !app.quiet {
        print(&format!("{told}\nTotal reclaimed space: {}\n", human::size(freed)))?;
    }
    Ok(0)
}

/// Remove what builds keep: steps that were not used since then, and what `--mount=type=cache` keeps.
fn prune_build_cache(app: &App, store: &image::Store, filters: &[Filter]) -> Result<i32> {
    let mut before = None;
    for filter in filters {
        match filter {
            Filter::Before(time) => before = Some(*time),
            _ => anyhow::bail!("prune --build-cache: until=TIME is the only filter"),
        }
    }
    let goes = |used: std::time::SystemTime| {
        let used = used.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs().cast_signed());
        before.is_none_or(|before| used < before)
    };
    let (count, bytes) = match store.prune_steps(Wait::No, &goes)? {
        Some(done) => done,
        None => {
            writeln!(std::io::stderr(), "{}: waiting for other commands to end", super::PROGRAM)
                .unwrap_or_default();
            store.prune_steps(Wait::Yes, &goes)?.unwrap_or_default()
        }
    };
    let freed = bytes + store.sweep(Wait::No)?.map_or(0, |swept| swept.bytes);
    if !app.quiet {
        print(&format!("{count} steps and caches removed\nTotal reclaimed space: {}\n", human::size(freed)))?;
    }
    Ok(0)
}

pub fn df(app: &App, args: Df) -> Result<i32> {
    let store = app.store()?;
    let format = Format::parse(args.format.as_deref())?;
    let usage = store.usage()?;
    if args.verbose {
        let data: Vec<_> = usage
            .images
            .iter()
            .map(|u| {
                let facts = facts(&store, &u.image)?;
                let all = u.blobs + u.layers;
                Ok(json!({
                    "Repository": u.image.reference.as_ref().map_or("<none>".to_owned(), |r| r.familiar_name()),
                    "Tag": u.image.reference.as_ref().and_then(|r| r.tag()).unwrap_or("<none>"),
                    "ID": facts.id.short(),
                    "Size": human::size(all),
                    "SharedSize": human::size(u.shared),
                    "UniqueSize": human::size(all - u.shared),
                    "Compressed": human::size(u.blobs),
                    "Unpacked": human::size(u.layers),
                    "Bytes": all,
                }))
            })
            .collect::<Result<_>>()?;
        let columns = [
            ("REPOSITORY", "Repository"),
            ("TAG", "Tag"),
            ("IMAGE ID", "ID"),
            ("SIZE", "Size"),
            ("SHARED SIZE", "SharedSize"),
            ("UNIQUE SIZE", "UniqueSize"),
            ("COMPRESSED", "Compressed"),
            ("UNPACKED", "Unpacked"),
        ];
        return print(&rows(&format, &columns, &columns, &data)?).map(|()| 0);
    }
    let unnamed: u64 = usage
        .images
        .iter()
        .filter(|u| u.image.reference.is_none())
        .map(|u| u.blobs + u.layers - u.shared)
        .sum();
    let line = |kind: &str, total: usize, active: usize, bytes: u64, free: u64| {
        let percent = (free * 100).checked_div(bytes).unwrap_or(0);
        json!({"Type": kind, "TotalCount": total, "Active": active, "Size": human::size(bytes), "Bytes": bytes,
            "Reclaimable": format!("{} ({percent}%)", human::size(free))})
    };
    // Images, however many names they have.
    let distinct = |named: bool| {
        let all = usage.images.iter().filter(|u| !named || u.image.reference.is_some());
        all.map(|u| &u.image.target.digest).collect::<BTreeSet<_>>().len()
    };
    let (blobs, layers) = (store.blobs()?, store.layers()?);
    let of_blobs: u64 =
        blobs.iter().filter(|(d, ..)| usage.unneeded.blobs.contains(d)).map(|(_, s, _)| s).sum();
    let data = [
        line("Images", distinct(false), distinct(true), usage.blobs + usage.layers, unnamed),
        line("Blobs", blobs.len(), blobs.len() - usage.unneeded.blobs.len(), usage.blobs, of_blobs),
        line(
            "Unpacked layers",
            layers.len(),
            layers.len() - usage.unneeded.layers.len(),
            usage.layers,
            usage.unneeded.bytes - of_blobs,
        ),
    ];
    let steps = store.steps_sized()?;
    let of_steps: u64 = steps.iter().map(|s| s.bytes).sum();
    let caches = store.caches_size()?;
    let mut data = data.to_vec();
    data.push(line("Build cache", steps.len() + caches.0, 0, of_steps + caches.1, of_steps + caches.1));
    let columns = [
        ("TYPE", "Type"),
        ("TOTAL", "TotalCount"),
        ("ACTIVE", "Active"),
        ("SIZE", "Size"),
        ("RECLAIMABLE", "Reclaimable"),
    ];
    print(&rows(&format, &columns, &columns, &data)?).map(|()| 0)
}

pub fn check(app: &App, args: Check) -> Result<i32> {
    let store = app.store()?;
    let format = Format::parse(args.format.as_deref())?;
    let damages = store.check(args.repair)?;
    let data: Vec<_> = damages
        .iter()
        .map(|d| {
            let (kind, name) = match d {
                image::store::Damage::Blob { digest, .. } => ("blob", digest.to_string()),
                image::store::Damage::Layer { diff_id, .. } => ("layer", diff_id.to_string()),
                image::store::Damage::Image { image, .. } => ("image", image.title()),
            };
            json!({"Type": kind, "Name": name, "Damage": d.to_string(), "Removed": args.repair})
        })
        .collect();
    match format {
        Format::Table => {
            let mut text = String::new();
            for damage in &damages {
                text.push_str(&format!("{damage}{}\n", if args.repair { " (removed)" } else { "" }));
            }
            if !app.quiet {
                let blobs = store.blobs()?.len();
                let end = match (damages.len(), args.repair) {
                    (0, _) => {
                        format!("{blobs} blobs, {} images: all as they should be\n", store.images()?.len())
                    }
                    (n, false) => {
                        format!("{n} damages; --repair removes what is damaged, and the images named above\n")
                    }
                    (n, true) => format!("{n} damages removed\n"),
                };
                text.push_str(&end);
            }
            print(&text)?;
        }
        other => print(&rows(&other, &[], &[], &data)?)?,
    }
    if !damages.is_empty() && !args.repair {
        return Ok(super::FAILURE);
    }
    if args.repair {
        store.sweep(Wait::No)?;
    }
    Ok(0)
}
