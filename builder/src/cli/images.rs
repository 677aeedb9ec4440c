//! What is there, and under which names?

use std::collections::HashSet;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use image::store::{Image, Wait};
use image::{Reference, Store};
use report::{Explain, Kind};
use serde_json::{Value, json};

use super::{App, print};
use crate::facts::{self, Facts, facts, find, names};
use crate::format::{Column, Format, human, rows};

#[derive(Debug, Args)]
pub struct Images {
    /// Only images whose name is or begins with this
    name: Option<String>,
    /// Images without names too, which are shown in any case
    #[arg(long, short, hide = true)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// reference=PATTERN, dangling=BOOL, label=KEY[=VALUE], before=IMAGE, since=IMAGE, until=TIME
    #[arg(long, short, value_name = "FILTER")]
    filter: Vec<String>,
    /// table, json, or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// No heading
    #[arg(long, short = 'n')]
    noheading: bool,
}

#[derive(Debug, Args)]
pub struct Tag {
    image: String,
    #[arg(required = true)]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Untag {
    image: String,
    /// All of them, if none is given
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Rmi {
    images: Vec<String>,
    /// All images
    #[arg(long, short)]
    all: bool,
    /// Images with several names too; what is not there is no error
    #[arg(long, short)]
    force: bool,
    /// Keep what no image needs any more
    #[arg(long)]
    no_prune: bool,
}

#[derive(Debug, Args)]
pub struct Inspect {
    #[arg(required = true)]
    images: Vec<String>,
    /// json, or a Go template
    #[arg(long, short, value_name = "FORMAT")]
    format: Option<String>,
    /// The manifest as it came
    #[arg(long)]
    raw: bool,
    /// The config; with --raw as it came
    #[arg(long)]
    config: bool,
    /// image is the only type
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
}

#[derive(Debug, Args)]
pub struct History {
    image: String,
    #[arg(long)]
    no_trunc: bool,
    /// Sizes and times for people (=false: for machines)
    #[arg(long, short = 'H', num_args = 0..=1, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    human: bool,
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// `3 weeks ago`, or nothing.
fn ago(then: Option<i64>) -> String {
    match then {
        Some(then) => format!("{} ago", human::duration(u64::try_from(now() - then).unwrap_or(0))),
        None => "N/A".to_owned(),
    }
}

/// As Go prints a time.
fn go_time(seconds: i64) -> String {
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string(),
        Err(_) => "N/A".to_owned(),
    }
}

fn row(facts: &Facts, no_trunc: bool) -> Value {
    let none = || "<none>".to_owned();
    let reference = facts.image.reference.as_ref();
    let id = if no_trunc { facts.id.to_string() } else { facts.id.short().to_owned() };
    json!({
        "Repository": reference.map_or_else(none, Reference::familiar_name),
        "Tag": reference.and_then(|r| r.tag().map(str::to_owned)).unwrap_or_else(none),
        "Digest": facts.image.target.digest,
        "ID": id,
        "CreatedSince": ago(facts.created()),
        "CreatedAt": facts.created().map(go_time),
        "Size": human::size(facts.size),
        "VirtualSize": human::size(facts.size),
        "Bytes": facts.size,
        "Platform": facts.platform(),
        "Labels": facts.labels(),
        "Containers": "N/A",
    })
}

/// A filter of `images` and `prune`.
#[derive(Debug)]
pub enum Filter {
    Reference(String),
    Dangling(bool),
    Label {
        key: String,
        value: Option<String>,
        not: bool,
    },
    /// Made before that time.
    Before(i64),
    Since(i64),
}

impl Filter {
    pub fn parse(store: &Store, text: &str) -> Result<Filter> {
        let parse = || -> Result<Filter> {
            let Some((key, value)) = text.split_once('=') else { bail!("expected KEY=VALUE") };
            let created = |name: &str| -> Result<i64> {
                let image = find(store, name)?;
                facts(store, &image)?
                    .created()
                    .with_context(|| format!("{name} does not say when it was made"))
            };
            let label = |not| {
                let (key, value) = match value.split_once('=') {
                    Some((key, value)) => (key, Some(value.to_owned())),
                    None => (value, None),
                };
                Filter::Label { key: key.to_owned(), value, not }
            };
            Ok(match key {
                "reference" => Filter::Reference(value.to_owned()),
                "dangling" => Filter::Dangling(value.parse().context("dangling is true or false")?),
                "label" => label(false),
                "label!" => label(true),
                "before" => Filter::Before(created(value)?),
                "since" | "after" => Filter::Since(created(value)?),
                "until" => Filter::Before(time(value)?),
                _ => bail!("known are reference, dangling, label, label!, before, since, until"),
            })
        };
        parse().with_context(|| format!("filter {text:?}"))
    }

    pub fn fits(&self, facts: &Facts) -> bool {
        match self {
            Filter::Reference(pattern) => facts.image.reference.as_ref().is_some_and(|r| {
                let (short, long) = (r.familiar_name(), r.name());
                let tag = r.tag().unwrap_or_default();
                [short, long].iter().any(|n| fits(pattern, n) || fits(pattern, &format!("{n}:{tag}")))
            }),
            Filter::Dangling(wanted) => facts.image.reference.is_none() == *wanted,
            Filter::Label { key, value, not } => {
                let has = facts.labels().get(key).is_some_and(|v| value.as_ref().is_none_or(|w| v == w));
                has != *not
            }
            Filter::Before(time) => facts.created().is_some_and(|c| c < *time),
            Filter::Since(time) => facts.created().is_some_and(|c| c > *time),
        }
    }
}

/// A moment: `24h` before now, or a date.
fn time(text: &str) -> Result<i64> {
    if let Some(seconds) = human::parse_duration(text) {
        return Ok(now() - i64::try_from(seconds).unwrap_or(0));
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return Ok(seconds);
    }
    let stamp: jiff::Timestamp =
        text.parse().with_context(|| format!("{text:?} is neither a duration (24h) nor a time"))?;
    Ok(stamp.as_second())
}

pub fn images(app: &App, args: Images) -> Result<i32> {
    let store = app.store()?;
    let format = Format::parse(args.format.as_deref())?;
    let filters = args.filter.iter().map(|f| Filter::parse(&store, f)).collect::<Result<Vec<_>>>()?;
    let mut all = Vec::new();
    let mut images = store.images()?;
    images.retain(|image| match (&args.name, &image.reference) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(name), Some(r)) => {
            fits(name, &r.familiar_name()) || fits(name, &r.familiar()) || fits(name, &r.name())
        }
    });
    for found in facts::all(&store, &images) {
        match found {
            Ok(facts) => all.push(facts),
            // One that cannot be read does not hide the others.
            Err(e) => report::print(super::PROGRAM, &e),
        }
    }
    all.retain(|f| filters.iter().all(|filter| filter.fits(f)));
    // The newest first, as docker has it.
    all.sort_by_key(|f| std::cmp::Reverse(f.created()));
    if app.quiet {
        let mut seen = HashSet::new();
        all.retain(|f| seen.insert(f.id.clone()));
        let id = |f: &Facts| if args.no_trunc { f.id.to_string() } else { f.id.short().to_owned() };
        return print(&all.iter().map(|f| id(f) + "\n").collect::<String>()).map(|()| 0);
    }
    let mut columns: Vec<Column> = vec![("REPOSITORY", "Repository"), ("TAG", "Tag")];
    if args.digests {
        columns.push(("DIGEST", "Digest"));
    }
    columns.extend([("IMAGE ID", "ID"), ("CREATED", "CreatedSince"), ("SIZE", "Size")]);
    let headings = [
        ("REPOSITORY", "Repository"),
        ("TAG", "Tag"),
        ("DIGEST", "Digest"),
        ("IMAGE ID", "ID"),
        ("CREATED", "CreatedSince"),
        ("CREATED AT", "CreatedAt"),
        ("SIZE", "Size"),
        ("SIZE", "VirtualSize"),
        ("BYTES", "Bytes"),
        ("PLATFORM", "Platform"),
        ("LABELS", "Labels"),
        ("CONTAINERS", "Containers"),
    ];
    let data: Vec<_> = all.iter().map(|f| row(f, args.no_trunc)).collect();
    let text = rows(&format, &columns, &headings, &data)?;
    let text = match (args.noheading, &format) {
        (true, Format::Table | Format::TableOf(_)) => {
            text.split_once('\n').map_or("", |(_, rest)| rest).to_owned()
        }
        _ => text,
    };
    print(&text).map(|()| 0)
}

fn new_name(text: &str) -> Result<Reference> {
    let reference: Reference = text.parse()?;
    ensure!(reference.digest().is_none(), "{text}: a name with a digest cannot be given");
    Ok(reference)
}

pub fn tag(app: &App, args: Tag) -> Result<i32> {
    let store = app.store()?;
    let names = args.names.iter().map(|n| new_name(n)).collect::<Result<Vec<_>>>()?;
    let image = find(&store, &args.image)?;
    for name in names {
        store.tag(&image.target, &name)?;
    }
    Ok(0)
}

pub fn untag(app: &App, args: Untag) -> Result<i32> {
    let store = app.store()?;
    let image = find(&store, &args.image)?;
    let all = names(&store, &image)?;
    let gone = if args.names.is_empty() {
        all
    } else {
        let given = args.names.iter().map(|n| n.parse()).collect::<Result<Vec<Reference>>>()?;
        for name in &given {
            ensure!(all.contains(name), "{} is no name of {}", name.familiar(), args.image);
        }
        given
    };
    store.unname(&image.target.digest, &gone)?;
    Ok(0)
}

pub fn rmi(app: &App, args: Rmi) -> Result<i32> {
    let store = app.store()?;
    let mut wanted = args.images.clone();
    if args.all {
        ensure!(wanted.is_empty(), "rmi: either --all or images");
        wanted = store
            .images()?
            .iter()
            .map(|i| i.reference.as_ref().map_or_else(|| i.target.digest.to_string(), |r| r.to_string()))
            .collect();
    } else {
        ensure!(!wanted.is_empty(), "rmi: no image is named (or --all)");
    }
    let mut told = String::new();
    let mut failed = 0;
    for text in &wanted {
        match remove(&store, text, args.force || args.all) {
            Ok(lines) => told.push_str(&lines),
            Err(e) if args.force && report::kind(&e) == Some(Kind::NotFound) => {}
            Err(e) => {
                report::print(super::PROGRAM, &e);
                failed = super::FAILURE;
            }
        }
    }
    if !args.no_prune {
        // Others at work keep what they need; the next one removes the rest.
        match store.sweep(Wait::No) {
            Ok(_) => {}
            Err(e) => report::print(super::PROGRAM, &e.context("not everything was removed")),
        }
    }
    if !app.quiet {
        print(&told)?;
    }
    Ok(failed)
}

/// Remove what a user names: a name, or an image by its id.
fn remove(store: &Store, text: &str, force: bool) -> Result<String> {
    let image = find(store, text)?;
    let named: Option<Reference> = text.parse().ok().filter(|r| image.reference.as_ref() == Some(r));
    let all = names(store, &image)?;
    let id = facts(store, &image).map_or_else(|_| image.target.digest.clone(), |f| f.id);
    let mut told = String::new();
    match named {
        // No more than the name is taken: somebody may be giving the image another one right now.
        Some(name) => {
            store.untag(&name)?;
            told.push_str(&format!("Untagged: {}\n", name.familiar()));
            if names(store, &image)?.is_empty() {
                told.push_str(&format!("Deleted: {id}\n"));
            }
            return Ok(told);
        }
        None if all.len() > 1 && !force => {
            let names: Vec<_> = all.iter().map(Reference::familiar).collect();
            let e: Result<String> =
                Err(anyhow::anyhow!("{text}: it has several names: {}", names.join(", ")));
            return e.hint(|| "name one of them, or --force".to_owned());
        }
        None => {}
    }
    for Image { reference, .. } in store.forget(&image.target.digest)? {
        if let Some(reference) = reference {
            told.push_str(&format!("Untagged: {}\n", reference.familiar()));
        }
    }
    told.push_str(&format!("Deleted: {id}\n"));
    Ok(told)
}

pub fn inspect(app: &App, args: Inspect) -> Result<i32> {
    let store = app.store()?;
    ensure!(args.r#type.as_deref().is_none_or(|t| t == "image"), "inspect: image is the only type");
    let format = args
        .format
        .as_deref()
        .filter(|f| *f != "json")
        .map(crate::format::template::Template::parse)
        .transpose()?;
    let mut all = Vec::new();
    for text in &args.images {
        let image = find(&store, text)?;
        let facts = facts(&store, &image)?;
        if args.raw || args.config {
            let bytes = match (&facts.manifest, args.config) {
                (Some((_, manifest)), true) => {
                    store.blob_bytes(&manifest.config, image::manifest::CONFIG_MOST)?
                }
                (None, true) => bail!("{text}: no config of this platform is here"),
                (_, false) => store.blob_bytes(&image.target, image::manifest::MANIFEST_MOST)?,
            };
            print(&String::from_utf8_lossy(&bytes))?;
            continue;
        }
        let value = facts.inspect(&names(&store, &image)?);
        match &format {
            Some(template) => print(&format!("{}\n", template.render(&value)?))?,
            None => all.push(value),
        }
    }
    if format.is_none() && !args.raw && !args.config {
        print(&format!("{}\n", serde_json::to_string_pretty(&all)?))?;
    }
    Ok(0)
}

pub fn history(app: &App, args: History) -> Result<i32> {
    let store = app.store()?;
    let format = Format::parse(args.format.as_deref())?;
    let facts = facts(&store, &find(&store, &args.image)?)?;
    let (Some((_, manifest)), Some(config)) = (&facts.manifest, &facts.config) else {
        bail!("{}: it has no history: it is no image that can be run", args.image);
    };
    let mut layers = manifest.layers.iter().zip(&config.rootfs.diff_ids);
    let mut data = Vec::new();
    for entry in config.history.iter().flatten() {
        // An entry without a layer takes none.
        let size = match if entry.empty_layer { None } else { layers.next() } {
            Some((layer, diff_id)) => store.layer(diff_id)?.map_or(layer.size, |l| l.bytes),
            None => 0,
        };
        let created =
            entry.created.as_deref().and_then(|c| c.parse::<jiff::Timestamp>().ok()).map(|t| t.as_second());
        let by = entry.created_by.clone().unwrap_or_default();
        let short: String = if !args.no_trunc && by.chars().count() > 45 {
            by.chars().take(44).chain(['…']).collect()
        } else {
            by
        };
        data.push(json!({
            "ID": "<missing>",
            "CreatedSince": if args.human { ago(created) } else { entry.created.clone().unwrap_or_default() },
            "CreatedAt": entry.created,
            "CreatedBy": short,
            "Size": if args.human { human::size(size) } else { size.to_string() },
            "Comment": entry.comment.clone().unwrap_or_default(),
        }));
    }
    data.reverse();
    if let Some(top) = data.first_mut() {
        top["ID"] = json!(if args.no_trunc { facts.id.to_string() } else { facts.id.short().to_owned() });
    }
    if app.quiet {
        let ids: String =
            data.iter().map(|d| format!("{}\n", d["ID"].as_str().unwrap_or_default())).collect();
        return print(&ids).map(|()| 0);
    }
    let columns = [
        ("IMAGE", "ID"),
        ("CREATED", "CreatedSince"),
        ("CREATED BY", "CreatedBy"),
        ("SIZE", "Size"),
        ("COMMENT", "Comment"),
    ];
    print(&rows(&format, &columns, &columns, &data)?).map(|()| 0)
}

fn fits(pattern: &str, name: &str) -> bool {
    crate::glob::matches(pattern.as_bytes(), name.as_bytes())
}
