//! An image is built from a Dockerfile.

mod arguments;
mod caches;
mod one;
mod said;
mod sources;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use image::family::Family;
use image::manifest::{Descriptor, Index, Platform};
use image::{Digest, Reference, Store};
use report::Explain;
use serde_json::json;

use super::output::{self, Output};
use super::rung::{self, Rung};
use super::told::Told;
use super::{App, Registry, print};
use crate::exec::cache::{self, Said};
use crate::exec::commit::Failed;
use crate::exec::{index, sandbox};
use crate::watch::{Style, Watch};
use arguments::pairs;
use one::{Image, Made, One};
use sources::Pull;

pub use sources::Prepared;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct Build {
    /// A folder, an archive, a repository's address, or - for an archive or a Dockerfile on the standard input
    context: Option<String>,
    /// The Dockerfile, - for the standard input [default: Dockerfile or Containerfile in the context]
    #[arg(long, short, value_name = "FILE")]
    file: Option<String>,
    /// The image's name; several are fine
    #[arg(long, short, value_name = "NAME[:TAG]")]
    tag: Vec<String>,
    /// A value for an ARG; without one, that of the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// A file of values for ARGs, a line each
    #[arg(long, value_name = "FILE")]
    build_arg_file: Vec<PathBuf>,
    /// The stage that is wanted [default: the last]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// For other platforms than this machine's; several make an index
    #[arg(long, value_name = "OS/ARCHITECTURE", value_delimiter = ',')]
    platform: Vec<String>,
    /// Take no step from an earlier build
    #[arg(long)]
    no_cache: bool,
    /// The same for these stages
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    no_cache_filter: Vec<String>,
    /// Ask the registry for newer base images (always, missing, never)
    #[arg(long, num_args = 0..=1, default_missing_value = "always", require_equals = true, value_name = "WHEN")]
    pull: Option<String>,
    /// A secret for RUN --mount=type=secret: id=NAME[,src=FILE | ,env=VARIABLE]
    #[arg(long, value_name = "id=NAME,src=FILE")]
    secret: Vec<String>,
    /// An agent's socket for RUN --mount=type=ssh: default, or NAME[=SOCKET]
    #[arg(long, value_name = "NAME[=SOCKET]", num_args = 0..=1, default_missing_value = "default")]
    ssh: Vec<String>,
    /// A label of the image
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// An annotation of the manifest
    #[arg(long, value_name = "NAME=VALUE")]
    annotation: Vec<String>,
    /// A variable of the image's environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// A file of such variables, a line each
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Network of RUN: host, none, or private: one of its own, with pasta or slirp4netns
    #[arg(long, value_name = "MODE")]
    network: Option<String>,
    /// A line of /etc/hosts in RUN
    #[arg(long, value_name = "HOST:ADDRESS")]
    add_host: Vec<String>,
    /// A limit in RUN: nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// Bytes of /dev/shm in RUN
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// Memory that a RUN may use
    #[arg(long, short, value_name = "SIZE")]
    memory: Option<String>,
    /// Processors that a RUN may use, as in 1.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<f64>,
    /// The cgroup in which those of RUN are made
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
    /// A capability more in RUN
    #[arg(long, value_name = "CAP")]
    cap_add: Vec<String>,
    /// A capability less in RUN
    #[arg(long, value_name = "CAP")]
    cap_drop: Vec<String>,
    /// no-new-privileges
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// What the Dockerfile may ask for: security.insecure, network.host
    #[arg(long, value_name = "RIGHT", value_delimiter = ',')]
    allow: Vec<String>,
    /// Write the image's id to a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Write digests and names to a file, as JSON
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,
    /// How progress is shown
    #[arg(long, value_enum, default_value = "auto")]
    progress: Style,
    /// Commands at a time [default: no fewer than four]
    #[arg(long, value_name = "NUMBER")]
    jobs: Option<usize>,
    /// What becomes of it: type=image|oci|docker|local|tar[,dest=PATH][,name=NAME][,push=true], or a folder
    #[arg(long, short, value_name = "OUTPUT")]
    output: Vec<String>,
    /// Another source of files, or of an image: NAME=FOLDER, NAME=docker-image://IMAGE, NAME=oci-layout://FOLDER
    #[arg(long, value_name = "NAME=SOURCE")]
    build_context: Vec<String>,
    /// Take steps from other builds: type=registry,ref=NAME, type=local,src=FOLDER, or an image's name
    #[arg(long, value_name = "CACHE")]
    cache_from: Vec<String>,
    /// Give steps to other builds: type=registry,ref=NAME, type=local,dest=FOLDER, type=inline[,mode=min|max]
    #[arg(long, value_name = "CACHE")]
    cache_to: Vec<String>,
    /// Who commands are
    #[arg(long, value_enum, value_name = "RUNG", default_value = "auto")]
    isolation: Rung,
    /// Refuse to build on a lower rung than this
    #[arg(long, value_enum, value_name = "RUNG", default_value = "auto")]
    min_isolation: Rung,
    /// Times in layers: no later than this, in seconds since 1970; or keep [env: SOURCE_DATE_EPOCH] [default: 0]
    #[arg(long, value_name = "SECONDS|keep")]
    timestamp: Option<String>,
    /// Push the image to the registry that its name says
    #[arg(long)]
    push: bool,
    /// Into the store, which is what is done anyway
    #[arg(long)]
    load: bool,
    /// Nothing is left to remove
    #[arg(long, num_args = 0..=1, default_missing_value = "true", hide = true)]
    rm: Option<bool>,
    #[arg(long, hide = true)]
    force_rm: bool,
    /// Steps are always kept
    #[arg(long, num_args = 0..=1, default_missing_value = "true", hide = true)]
    layers: Option<bool>,
    /// Tell beside the image how it was made (SLSA): true, false, mode=min, mode=max
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "HOW")]
    provenance: Option<String>,
    /// Tell beside the image which packages it holds (SPDX): true, false
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "HOW")]
    sbom: Option<String>,
    /// The same: type=provenance[,mode=min|max], type=sbom
    #[arg(long, value_name = "type=TYPE")]
    attest: Vec<String>,
    /// Media types of the manifest
    #[arg(long, value_enum)]
    format: Option<super::transfer::ManifestFormat>,
    /// Compress layers in the store: gzip, zstd or none, with a level as in zstd:19
    #[arg(long, value_name = "HOW[:LEVEL]")]
    compression: Option<String>,
    /// Leave out what was left out elsewhere: a file beside .dockerignore
    #[arg(long, value_name = "FILE")]
    ignorefile: Option<PathBuf>,
    /// Make one layer of all that the build made
    #[arg(long)]
    squash: bool,
    /// Make one layer of all, the base image's included
    #[arg(long, conflicts_with = "squash")]
    squash_all: bool,
    /// Leave out of the image how it was made
    #[arg(long)]
    omit_history: bool,
    /// After a command that fails, start a shell where it was
    #[arg(long)]
    debug_shell: bool,
    /// Only check the Dockerfile
    #[arg(long)]
    check: bool,
    /// Only show what would be done: plan
    #[arg(long, value_name = "WHAT")]
    print: Option<String>,
    /// The program that runs containers [env: BERTH_RUNTIME] [default: berth-runtime]
    #[arg(long, value_name = "PROGRAM")]
    runtime: Option<PathBuf>,
    #[command(flatten)]
    registry: Registry,
}

const EXAMPLE: &str = "\
Examples:
  berth-builder build -t app .                        the Dockerfile in this folder
  berth-builder build -t app -f docker/app.file src   another one, for the folder src
  berth-builder build -t registry.example/app --push .
  berth-builder build -o out --target binaries .      files of a stage, into the folder out
  berth-builder build --secret id=token,src=token .   RUN --mount=type=secret,id=token
  berth-builder build - < Dockerfile                  without any files";

pub fn build(app: &App, args: Build) -> Result<i32> {
    let store = app.store()?;
    let style = if app.quiet { Style::Quiet } else { args.progress };
    let log = log_place(&store);
    let watch = Watch::new(style, log);
    let done = run(app, &store, &args, &watch);
    watch.end();
    match done {
        Ok(status) => Ok(status),
        Err(e) => {
            if let Some(failed) = e.downcast_ref::<Failed>() {
                if let Some(text) = watch.end_of(failed.step) {
                    eprint_lines(&text);
                }
                let log = watch.log();
                let e: Result<i32> = Err(e);
                return e.hint(|| match log {
                    Some(path) => {
                        format!("--debug-shell starts a shell there; all that was said: {}", path.display())
                    }
                    None => "--debug-shell starts a shell there".to_owned(),
                });
            }
            Err(e)
        }
    }
}

fn eprint_lines(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).unwrap_or_default();
}

/// Where what commands say is kept: for the last builds.
fn log_place(store: &Store) -> Option<PathBuf> {
    const KEPT: usize = 20;
    let folder = store.root().join("logs");
    std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
        .recursive(true)
        .create(&folder)
        .ok()?;
    let mut old: Vec<PathBuf> = std::fs::read_dir(&folder).ok()?.flatten().map(|e| e.path()).collect();
    old.sort();
    for path in old.iter().take(old.len().saturating_sub(KEPT - 1)) {
        // Another build may have done it.
        std::fs::remove_file(path).unwrap_or_default();
    }
    let now = jiff::Timestamp::now();
    Some(folder.join(format!("{}.log", now.strftime("%Y%m%d-%H%M%S-%9f"))))
}

fn run(app: &App, store: &Store, args: &Build, watch: &Watch) -> Result<i32> {
    let asked = Asked::new(args)?;
    match once(app, store, args, &asked, watch, false) {
        // A cache knew of a step, but does not have what it made.
        Err(e) if e.downcast_ref::<cache::Absent>().is_some() => {
            watch.say(&format!("{}: it is made again", report::line(&e)));
            once(app, store, args, &asked, watch, true)
        }
        done => done,
    }
}

/// What was asked for, looked through before anything is touched.
struct Asked {
    names: Vec<Reference>,
    outputs: Vec<Output>,
    pull: Pull,
    told: Told,
    cache_to: Vec<Said>,
    platforms: Vec<Platform>,
    /// Read once: a file may be a pipe.
    arguments: BTreeMap<String, String>,
    secrets: BTreeMap<String, Vec<u8>>,
    /// For times in layers, and the image's own: seconds since 1970.
    latest: Option<i64>,
    epoch: Option<i64>,
}

impl Asked {
    fn new(args: &Build) -> Result<Asked> {
        let arguments = args.arguments()?;
        let secrets = args.secrets()?;
        let (latest, epoch) = args.times(&arguments)?;
        let outputs = output::parse(&args.output, args.push)?;
        let names = args
            .tag
            .iter()
            .map(String::as_str)
            .chain(outputs.iter().filter_map(|o| o.name.as_deref()).flat_map(|n| n.split(',')))
            .map(|n| {
                let name: Reference = n.parse()?;
                ensure!(name.digest().is_none(), "{n}: a name with a digest cannot be given");
                Ok(name)
            })
            .collect::<Result<Vec<Reference>>>()?;
        ensure!(
            !outputs.iter().any(|o| o.push) || !names.is_empty(),
            "--push: to which registry? --tag names the image"
        );
        let pull = Pull::parse(args.pull.as_deref())?;
        let told = Told::parse(args.provenance.as_deref(), args.sbom.as_deref(), &args.attest)?;
        ensure!(
            told == Told::default() || !matches!(args.format, Some(super::transfer::ManifestFormat::Docker)),
            "--format docker: what is told beside an image is of OCI's format"
        );
        for right in &args.allow {
            ensure!(
                matches!(right.as_str(), "security.insecure" | "network.host"),
                "--allow {right}: security.insecure or network.host"
            );
        }
        if let Some(what) = args.print.as_deref() {
            ensure!(what == "plan", "--print {what}: plan is what there is");
        }
        let cache_to = args.cache_to.iter().map(|t| Said::parse("--cache-to", t)).collect::<Result<_>>()?;
        let platforms: Vec<Platform> = match args.platform.is_empty() {
            true => vec![Platform::own()],
            false => args.platform.iter().map(|p| p.parse()).collect::<Result<_>>()?,
        };
        ensure!(
            platforms.len() < 2
                || (args.context.as_deref() != Some("-") && args.file.as_deref() != Some("-")),
            "--platform: what comes on the standard input can be read for one of them only"
        );
        Ok(Asked { names, outputs, pull, told, cache_to, platforms, arguments, secrets, latest, epoch })
    }
}

/// `whole`: every step is made here.
fn once(app: &App, store: &Store, args: &Build, asked: &Asked, watch: &Watch, whole: bool) -> Result<i32> {
    rung::check(app, args.isolation, args.min_isolation)?;
    let settings = args.sandbox(app)?;
    watch.say(match settings.mapped {
        None => "commands run as root, each in a container of its own",
        Some(1) => "commands run as root in containers of a user with a single id: owners of files are written down, not real (see subuid(5))",
        Some(_) => "commands run in containers of a user with subordinate ids",
    });
    sandbox::forget_killed(store, args.cgroup_parent.as_deref());
    let index = index::Index::open(&store.root().join("files.index"));
    let _alive = sandbox::alive(store, args.cgroup_parent.as_deref())?;
    let one = One { app, store, args, asked, settings: &settings, index: &index, watch, whole };
    let mut made = Vec::new();
    let mut counts = (0, 0);
    for target in &asked.platforms {
        let (steps, image) = match one.build(target)? {
            Made::Told(status) => return Ok(status),
            Made::Files(steps) => (steps, None),
            Made::Image(steps, image) => (steps, Some(*image)),
        };
        counts = (counts.0 + steps.0, counts.1 + steps.1);
        made.extend(image);
    }
    if made.is_empty() {
        return Ok(0);
    }
    let names = &asked.names;
    let (root, id) = finish(store, &made, names, args)?;
    for output in asked.outputs.iter().filter(|o| !o.is_files()) {
        output.send(app, store, &args.registry, &root, names)?;
    }
    if let Some(path) = &args.iidfile {
        write_file(path, id.to_string().as_bytes())?;
    }
    if let Some(path) = &args.metadata_file {
        let all: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let value = json!({
            "containerimage.config.digest": made[0].done.config,
            "containerimage.digest": root.digest,
            "containerimage.descriptor": root,
            "image.name": all.join(","),
        });
        write_file(path, &serde_json::to_vec_pretty(&value)?)?;
    }
    if app.quiet || args.progress == Style::Quiet {
        print(&format!("{id}\n"))?;
    } else {
        watch.say(&format!("{} of {} steps were there already", counts.0, counts.1));
        watch.say(&format!("image {id}"));
        for name in names {
            watch.say(&format!("named {}", name.familiar()));
        }
    }
    Ok(0)
}

/// Give the image its names, or an index of those for several platforms.
fn finish(store: &Store, made: &[Image], names: &[Reference], args: &Build) -> Result<(Descriptor, Digest)> {
    if let [Image { done, beside: None, .. }] = made {
        return Ok((done.manifest.clone(), done.config.clone()));
    }
    let mut index = Index::of(
        made.iter()
            .map(|image| Descriptor { platform: Some(image.platform.clone()), ..image.done.manifest.clone() })
            .chain(made.iter().filter_map(|image| image.beside.clone()))
            .collect(),
    );
    index.annotations = pairs("--annotation", &args.annotation)?;
    let bytes = serde_json::to_vec(&index)?;
    let root = Descriptor::of(Family::Oci.index(), &bytes);
    let mut addition = store.begin()?;
    addition.add_bytes(&bytes)?;
    match names.is_empty() {
        true => addition.name(None, root.clone()),
        false => names.iter().for_each(|n| addition.name(Some(n.clone()), root.clone())),
    }
    addition.commit()?;
    for Image { done, beside, .. } in made {
        store.forget(&done.manifest.digest)?;
        if let Some(beside) = beside {
            store.forget(&beside.digest)?;
        }
    }
    let id = root.digest.clone();
    Ok((root, id))
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut new = image::temporary::Replacement::new(path)?;
    new.write_all(bytes).with_context(|| format!("write {}", path.display()))?;
    new.finish()
}
