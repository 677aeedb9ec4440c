//! An image is built from a Dockerfile.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use image::digest::{Algorithm, Hasher};
use image::family::Family;
use image::manifest::{Config, Descriptor, Document, Index, Platform};
use image::store::Addition;
use image::transport::Place;
use image::{Digest, Reference, Store};
use report::{Explain, Kind};
use serde_json::{Value, json};

use super::output::{self, Output};
use super::rung::{self, Rung};
use super::told::{self, Told};
use super::{App, Registry, print, pull};
use crate::attest::{self, package, provenance, spdx};
use crate::context::{self, Contexts};
use crate::dockerfile::source::Source;
use crate::dockerfile::{lint, parse};
use crate::exec::cache::{self, Remote, Said, Spec};
use crate::exec::commit::{self, Committed, Failed, Squash, Wish};
use crate::exec::{self, Base, Bases, Build as Run, Shared, index, sandbox};
use crate::format::human;
use crate::plan::scope::{Given, Globals, PROXIES};
use crate::plan::stages;
use crate::watch::{Style, Watch};

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

/// How base images and downloads are got.
struct Sources<'a> {
    app: &'a App,
    store: &'a Store,
    registry: &'a Registry,
    pull: Pull,
    platform: Option<String>,
    caches: Vec<super::transfer::Opened<'a>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pull {
    Always,
    Missing,
    Never,
}

impl Bases for Sources<'_> {
    fn image(&self, name: &str, platform: Option<&str>) -> Result<Base> {
        let platform = platform.or(self.platform.as_deref());
        let text = match (self.pull, name.parse::<Place>()?) {
            (Pull::Always, Place::Store(name)) => format!("docker://{name}"),
            _ => name.to_owned(),
        };
        let here = || pull::here(self.store, name, platform);
        let image = match self.pull {
            Pull::Never => here()?
                .with_context(|| format!("{name} is not here, and --pull=never says not to ask"))
                .map_err(|e| e.context(report::Note { kind: Some(Kind::NotFound), hint: None }))?,
            Pull::Missing if here()?.is_some() => here()?.context("the image has gone")?,
            _ => pull::fetch(self.app, self.store, &text, self.registry, platform)?,
        };
        let wanted = super::transfer::Wanted::new(platform)?;
        let (target, manifest) = match self.store.document(&image.target)? {
            Document::Manifest(manifest) => (image.target.clone(), manifest),
            Document::Index(index) => {
                let chosen = wanted.choose(&index)?;
                match self.store.document(&chosen)? {
                    Document::Manifest(manifest) => (image.target.clone(), manifest),
                    Document::Index(_) => bail!("{name}: an index in an index"),
                }
            }
        };
        ensure!(manifest.config.is_config(), "{name}: it is no image that can be run");
        let config = self.store.config(&manifest)?;
        Ok(Base { manifest, config, target })
    }

    fn download(&self, address: &str, checksum: Option<&str>) -> Result<exec::add::Download> {
        let wanted: Option<Digest> = checksum.map(str::parse).transpose().context("--checksum")?;
        let mut coming = image::registry::fetch::fetch(address, std::thread::sleep)?;
        let mut file = image::temporary::Spool(self.store.root()).file()?;
        let algorithm = wanted.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let mut hasher = Hasher::new(algorithm);
        let mut buffer = vec![0; 128 << 10];
        loop {
            let n = coming.body.read(&mut buffer).with_context(|| format!("fetch {address}"))?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            file.write_all(&buffer[..n])?;
        }
        let digest = hasher.finish();
        if let Some(wanted) = wanted {
            ensure!(digest == wanted, "{address}: it is {digest}, not {wanted} as --checksum says");
        }
        file.rewind()?;
        let path = address.split(['?', '#']).next().unwrap_or(address);
        let name = path.splitn(4, '/').nth(3).unwrap_or("").rsplit('/').next().unwrap_or("").to_owned();
        let name = if name.is_empty() { coming.name.unwrap_or_default() } else { name };
        ensure!(!name.is_empty(), "{address}: it has no file's name at its end, and the server tells none");
        let modified = coming
            .modified
            .and_then(|m| jiff::fmt::rfc2822::parse(&m).ok().map(|t| t.timestamp().as_second()));
        Ok(exec::add::Download { name, digest, file: Some(file), folder: None, modified })
    }

    fn cached(
        &self,
        source: usize,
        blob: &Descriptor,
        take: &mut dyn FnMut(&mut (dyn Read + Send)) -> Result<()>,
    ) -> Result<()> {
        let cache = self.caches.get(source).context("there is no such cache")?;
        cache.with(|source| {
            let mut from = source.blob(blob)?;
            take(&mut *from)
        })
    }

    fn checkout(&self, address: &str, keep_git_dir: bool, into: &Path) -> Result<()> {
        crate::git::checkout(address, keep_git_dir, into, &self.app.environment.search)
    }
}

/// The same for who builds step by step.
pub struct Prepared<'a>(Sources<'a>);

impl<'a> Prepared<'a> {
    pub fn new(
        app: &'a App,
        store: &'a Store,
        registry: &'a Registry,
        platform: Option<String>,
    ) -> Prepared<'a> {
        Prepared(Sources { app, store, registry, pull: Pull::Missing, platform, caches: Vec::new() })
    }

    pub fn bases(&self) -> &dyn Bases {
        &self.0
    }
}

/// `NAME=VALUE`.
fn pairs(flag: &str, all: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        let (name, value) = text.split_once('=').with_context(|| format!("{flag} {text}: NAME=VALUE"))?;
        ensure!(!name.is_empty(), "{flag} {text}: NAME=VALUE");
        Ok((name.to_owned(), value.to_owned()))
    };
    all.iter().map(pair).collect()
}

/// `a=b,c=d`
fn fields<'t>(flag: &str, text: &'t str, known: &[&str]) -> Result<BTreeMap<&'t str, &'t str>> {
    let mut found = BTreeMap::new();
    for field in text.split(',') {
        let (name, value) =
            field.split_once('=').with_context(|| format!("{flag} {text}: {field:?} has no ="))?;
        if !known.contains(&name) {
            let e: Result<()> = Err(anyhow::anyhow!("{flag} {text}: unknown option {name:?}"));
            e.hint(|| match report::nearest(name, known.iter().copied()) {
                Some(near) => format!("{near}?"),
                None => format!("there are {}", known.join(", ")),
            })?;
        }
        found.insert(name, value);
    }
    Ok(found)
}

impl Build {
    /// The rung that was asked for.
    pub fn isolation(&self) -> Rung {
        self.isolation
    }

    fn arguments(&self) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for path in &self.build_arg_file {
            let title = path.display().to_string();
            let text = std::fs::read_to_string(path).with_context(|| format!("read {title}"))?;
            for (n, line) in text.lines().enumerate() {
                let line = line.trim();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let (name, value) =
                    line.split_once('=').with_context(|| format!("{title}:{}: NAME=VALUE", n + 1))?;
                all.insert(name.to_owned(), value.to_owned());
            }
        }
        for text in &self.build_arg {
            match text.split_once('=') {
                Some((name, value)) => drop(all.insert(name.to_owned(), value.to_owned())),
                None => {
                    if let Ok(value) = std::env::var(text) {
                        all.insert(text.clone(), value);
                    }
                }
            }
        }
        Ok(all)
    }

    fn secrets(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut all = BTreeMap::new();
        for text in &self.secret {
            let found = fields("--secret", text, &["id", "src", "source", "env", "type"])?;
            let id = found.get("id").with_context(|| format!("--secret {text}: id=NAME is missing"))?;
            let file = found.get("src").or(found.get("source"));
            let value = match (file, found.get("env"), found.get("type").copied()) {
                (Some(_), Some(_), _) => bail!("--secret {text}: either src or env"),
                (Some(name), None, Some("env")) | (None, Some(name), _) => std::env::var_os(name)
                    .map(std::os::unix::ffi::OsStringExt::into_vec)
                    .with_context(|| format!("--secret {text}: the environment has no {name}"))?,
                (Some(path), None, _) => {
                    std::fs::read(path).with_context(|| format!("--secret {text}: read {path}"))?
                }
                // As docker has it: of that name in the environment, or else a file.
                (None, None, _) => match std::env::var_os(id) {
                    Some(value) => std::os::unix::ffi::OsStringExt::into_vec(value),
                    None => std::fs::read(id).with_context(|| format!("--secret {text}: read {id}"))?,
                },
            };
            all.insert((*id).to_owned(), value);
        }
        Ok(all)
    }

    fn agents(&self) -> Result<BTreeMap<String, PathBuf>> {
        let mut all = BTreeMap::new();
        for text in &self.ssh {
            let (name, socket) = match text.split_once('=') {
                Some((name, socket)) => (name, Some(PathBuf::from(socket))),
                None => (text.as_str(), None),
            };
            let socket = socket.or_else(|| std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from));
            let socket =
                socket.with_context(|| format!("--ssh {text}: there is no agent (SSH_AUTH_SOCK)"))?;
            let kind =
                std::fs::metadata(&socket).with_context(|| format!("--ssh {text}: {}", socket.display()))?;
            ensure!(
                std::os::unix::fs::FileTypeExt::is_socket(&kind.file_type()),
                "--ssh {text}: {} is no agent's socket",
                socket.display()
            );
            all.insert(name.to_owned(), socket);
        }
        Ok(all)
    }

    /// How commands are run where nothing else is asked for.
    pub fn default_sandbox(app: &App) -> Result<sandbox::Settings> {
        #[derive(clap::Parser)]
        struct Plain {
            #[command(flatten)]
            build: Build,
        }
        let plain: Plain = clap::Parser::parse_from(["build"]);
        plain.build.sandbox(app)
    }

    fn sandbox(&self, app: &App) -> Result<sandbox::Settings> {
        let mut resources = serde_json::Map::new();
        if let Some(text) = &self.memory {
            let bytes =
                human::parse_memory(text).with_context(|| format!("--memory {text}: this is no size"))?;
            resources.insert("memory".to_owned(), json!({"limit": bytes}));
        }
        if let Some(cpus) = self.cpus {
            ensure!(cpus > 0.0, "--cpus {cpus}: more than 0");
            resources
                .insert("cpu".to_owned(), json!({"quota": (cpus * 100_000.0) as i64, "period": 100_000}));
        }
        let mut ulimits = Vec::new();
        for text in &self.ulimit {
            let wrong = || format!("--ulimit {text}: NAME=SOFT[:HARD]");
            let (name, values) = text.split_once('=').with_context(wrong)?;
            let (soft, hard) = values.split_once(':').unwrap_or((values, values));
            let number = |text: &str| match text {
                "unlimited" | "-1" => Ok(u64::MAX),
                other => other.parse::<u64>().with_context(wrong),
            };
            ulimits.push((name.to_owned(), number(soft)?, number(hard)?));
        }
        let mut hosts = Vec::new();
        for text in &self.add_host {
            let at = text.find(['=', ':']).with_context(|| format!("--add-host {text}: HOST:ADDRESS"))?;
            hosts.push((text[..at].to_owned(), text[at + 1..].trim_matches(['[', ']']).to_owned()));
        }
        let capability = |text: &String| {
            let upper = text.to_ascii_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            let all = || sandbox::ALL_CAPABILITIES.into_iter().chain(["ALL"]);
            if all().any(|known| known == name) {
                return Ok(format!("CAP_{name}"));
            }
            let e: Result<String> = Err(anyhow::anyhow!("{text}: no such capability"));
            e.hint(|| match report::nearest(name, all()) {
                Some(near) => format!("CAP_{near}?"),
                None => "capabilities(7) has their names; ALL means all".to_owned(),
            })
        };
        let mut no_new_privileges = false;
        for text in &self.security_opt {
            match text.as_str() {
                "no-new-privileges" | "no-new-privileges=true" | "no-new-privileges:true" => {
                    no_new_privileges = true
                }
                "no-new-privileges=false" | "no-new-privileges:false" => {}
                other => bail!("--security-opt {other}: no-new-privileges is what there is"),
            }
        }
        if let Some(network) = self.network.as_deref() {
            ensure!(
                matches!(network, "host" | "none" | "default") || exec::network::is_private(network),
                "--network {network}: a build's commands have host, none or private"
            );
        }
        let mapped = if app.user.0 == 0 {
            None
        } else {
            Some(1 + app.subordinate.uids.iter().map(|r| u64::from(r.count)).sum::<u64>())
        };
        Ok(sandbox::Settings {
            runtime: runtime(app, self.runtime.as_deref())?,
            hosts,
            shm_size: self
                .shm_size
                .as_deref()
                .map(|text| {
                    human::parse_memory(text).with_context(|| format!("--shm-size {text}: this is no size"))
                })
                .transpose()?,
            ulimits,
            resources: Value::Object(resources),
            cgroup_parent: self.cgroup_parent.clone(),
            add: self.cap_add.iter().map(capability).collect::<Result<_>>().context("--cap-add")?,
            drop: self.cap_drop.iter().map(capability).collect::<Result<_>>().context("--cap-drop")?,
            no_new_privileges,
            network: self.network.clone().filter(|n| n != "default"),
            search: app.environment.search.clone(),
            interpreters: app.environment.interpreters.clone(),
            debug_shell: self.debug_shell,
            mapped,
        })
    }

    /// Times in layers, and the image's own.
    fn times(&self) -> Result<(Option<i64>, Option<i64>)> {
        let given = match (&self.timestamp, std::env::var("SOURCE_DATE_EPOCH")) {
            (Some(text), _) => Some(("--timestamp", text.clone())),
            (None, Ok(text)) if !text.is_empty() => Some(("SOURCE_DATE_EPOCH", text)),
            _ => {
                let given = self.arguments()?.remove("SOURCE_DATE_EPOCH");
                given.map(|text| ("--build-arg SOURCE_DATE_EPOCH", text))
            }
        };
        match given {
            None => Ok((Some(0), None)),
            Some((_, text)) if text == "keep" => Ok((None, None)),
            Some((from, text)) => {
                let seconds = text.parse::<i64>().ok().filter(|s| *s >= 0);
                let seconds =
                    seconds.with_context(|| format!("{from}={text}: seconds since 1970, or keep"))?;
                Ok((Some(seconds), Some(seconds)))
            }
        }
    }
}

/// The program that runs containers: as told, beside this one, or where programs are.
fn runtime(app: &App, told: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) =
        told.map(Path::to_owned).or_else(|| std::env::var_os("BERTH_RUNTIME").map(PathBuf::from))
    {
        return Ok(path);
    }
    let own = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("berth-runtime")));
    let all = own
        .into_iter()
        .chain(std::env::split_paths(&app.environment.search).map(|d| d.join("berth-runtime")));
    // Only a RUN needs it, and says so.
    Ok(all.into_iter().find(|p| p.exists()).unwrap_or_else(|| PathBuf::from("berth-runtime")))
}

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

/// Open the caches that the build is given. One that cannot be read costs time, and nothing else.
fn caches<'a>(
    app: &App,
    store: &'a Store,
    args: &Build,
    watch: &Watch,
    sources: &mut Sources<'a>,
) -> Result<Remote> {
    let mut remote = Remote::default();
    let settings = args.registry.settings(&app.environment)?;
    for text in &args.cache_from {
        let said = Said::parse("--cache-from", text)?;
        let Spec::Place(place) = &said.spec else {
            bail!("--cache-from {text}: the image's name, as type=registry,ref=NAME")
        };
        let place: Place = place.parse().with_context(|| format!("--cache-from {text}"))?;
        let mut read = || -> Result<super::transfer::Opened<'a>> {
            let opened = super::transfer::open(&place, &settings, store)?;
            opened.with(|source| {
                let (root, bytes) = source.root()?;
                let manifest = match Document::parse(&root.media_type, &bytes)? {
                    Document::Manifest(manifest) => manifest,
                    Document::Index(index) => {
                        let chosen = super::transfer::Wanted::new(None)?.choose(&index)?;
                        match Document::parse(&chosen.media_type, &source.document(&chosen)?)? {
                            Document::Manifest(manifest) => manifest,
                            Document::Index(_) => bail!("an index in an index"),
                        }
                    }
                };
                ensure!(manifest.config.size <= cache::RECORDS_MOST, "its records are too many");
                let mut bytes = Vec::new();
                source.blob(&manifest.config)?.read_to_end(&mut bytes)?;
                let digest = manifest.config.digest.algorithm().digest(&bytes);
                ensure!(digest == manifest.config.digest, "its records are other ones than it says");
                let count = remote.add(sources.caches.len(), &manifest, &bytes)?;
                watch.say(&format!("cache {text}: {count} steps"));
                Ok(())
            })?;
            Ok(opened)
        };
        match read() {
            Ok(opened) => sources.caches.push(opened),
            Err(e) => watch.say(&format!("warning: cache {text}: {}", report::line(&e))),
        }
    }
    Ok(remote)
}

/// Send what was made to where others find it.
#[allow(clippy::too_many_arguments, reason = "each is a different thing, once")]
fn give_caches(
    app: &App,
    store: &Store,
    args: &Build,
    all: &[Said],
    shared: &Shared,
    done: &Committed,
    wish: &Wish,
    watch: &Watch,
) -> Result<()> {
    let settings = args.registry.settings(&app.environment)?;
    for said in all {
        let Spec::Place(text) = &said.spec else { continue };
        let place: Place = text.parse().with_context(|| format!("--cache-to {text}"))?;
        let give = || -> Result<()> {
            let label = wish.latest.map_or_else(|| "kept".to_owned(), |n| n.to_string());
            let how = said.compression.unwrap_or(image::layer::compress::Compression::GZIP);
            let target = cache::export(store, shared, &done.diff_ids, said.mode, how, &label)?;
            let image = image::store::Image { reference: None, target: target.clone() };
            let listener = |_: image::transfer::Event| {};
            let options = image::transfer::Options {
                choice: image::transfer::Choice::All,
                conversion: image::transfer::Conversion::default(),
                jobs: super::transfer::JOBS,
                listener: &listener,
            };
            let sent = super::transfer::send(&place, &settings, store, &store.reading(&image)?, &options);
            store.forget(&target.digest)?;
            sent.map(drop)
        };
        match give().with_context(|| format!("--cache-to {text}")) {
            Ok(()) => watch.say(&format!("cache sent to {text}")),
            Err(e) if said.ignore_error => watch.say(&format!("warning: {}", report::line(&e))),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn run(app: &App, store: &Store, args: &Build, watch: &Watch) -> Result<i32> {
    match once(app, store, args, watch, false) {
        // A cache knew of a step, but does not have what it made.
        Err(e) if e.downcast_ref::<cache::Absent>().is_some() => {
            watch.say(&format!("{}: it is made again", report::line(&e)));
            once(app, store, args, watch, true)
        }
        done => done,
    }
}

fn once(app: &App, store: &Store, args: &Build, watch: &Watch, whole: bool) -> Result<i32> {
    let arguments = args.arguments()?;
    let (latest, epoch) = args.times()?;
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
    let pull = match args.pull.as_deref() {
        None | Some("missing" | "false" | "ifmissing") => Pull::Missing,
        Some("always" | "true" | "newer" | "ifnewer") => Pull::Always,
        Some("never") => Pull::Never,
        Some(other) => bail!("--pull={other}: always, missing or never"),
    };
    rung::check(app, args.isolation, args.min_isolation)?;
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
    let cache_to = args.cache_to.iter().map(|t| Said::parse("--cache-to", t)).collect::<Result<Vec<_>>>()?;
    let settings = args.sandbox(app)?;
    watch.say(match settings.mapped {
        None => "commands run as root, each in a container of its own",
        Some(1) => "commands run as root in containers of a user with a single id: owners of files are written down, not real (see subuid(5))",
        Some(_) => "commands run in containers of a user with subordinate ids",
    });
    sandbox::forget_killed(store, args.cgroup_parent.as_deref());
    let platforms: Vec<Platform> = match args.platform.is_empty() {
        true => vec![Platform::own()],
        false => args.platform.iter().map(|p| p.parse()).collect::<Result<_>>()?,
    };
    let index = index::Index::open(&store.root().join("files.index"));
    let _alive = sandbox::alive(store, args.cgroup_parent.as_deref())?;
    let mut made: Vec<(Platform, Committed, Option<Descriptor>)> = Vec::new();
    ensure!(
        platforms.len() < 2 || (args.context.as_deref() != Some("-") && args.file.as_deref() != Some("-")),
        "--platform: what comes on the standard input can be read for one of them only"
    );
    let many = platforms.len() > 1;
    let mut counts = (0, 0);
    for target in &platforms {
        let addition = store.begin()?;
        let text = (!args.platform.is_empty()).then(|| target.to_string());
        let mut sources = Sources {
            app,
            store,
            registry: &args.registry,
            pull,
            platform: text.clone(),
            caches: Vec::new(),
        };
        let remote = caches(app, store, args, watch, &mut sources)?;
        let sources = sources;
        let said = context::Said {
            context: args.context.as_deref(),
            file: args.file.as_deref(),
            ignore: args.ignorefile.as_deref(),
        };
        let (main, source) = context::open(&said, &addition, &sources)?;
        let mut named = BTreeMap::new();
        for text in &args.build_context {
            let (name, from) =
                text.split_once('=').with_context(|| format!("--build-context {text}: NAME=SOURCE"))?;
            let opened = context::named(from, &addition, &sources)
                .with_context(|| format!("--build-context {text}"))?;
            named.insert(name.to_owned(), opened);
        }
        let contexts = Contexts::new(main, named);
        let file = parse::parse(&source).map_err(|p| source.error(p))?;
        let mut arguments = arguments.clone();
        for proxy in PROXIES {
            if let (false, Ok(value)) = (arguments.contains_key(proxy), std::env::var(proxy)) {
                arguments.insert(proxy.to_owned(), value);
            }
        }
        let arguments_told = args.arguments()?;
        let given =
            Given { arguments, build: Platform::own(), target: target.clone(), stage: args.target.clone() };
        for name in given.unasked(&file) {
            if args.build_arg.iter().any(|a| a.split('=').next() == Some(name)) {
                watch.say(&format!("warning: --build-arg {name}: no ARG of the Dockerfile asks for it"));
            }
        }
        let globals = Globals::read(&file, &given).map_err(|p| source.error(p))?;
        let stages = stages::needed(&file, &globals, args.target.as_deref(), &contexts.names())
            .map_err(|p| source.error(p))?;
        if let Some(what) = args.print.as_deref() {
            ensure!(what == "plan", "--print {what}: plan is what there is");
            return print(&plan_text(&source, &file, &stages)).map(|()| 0);
        }
        if args.check {
            return check(&source, &file, &contexts, watch);
        }
        if !whole {
            warn(&source, &file, &contexts, watch)?;
        }
        let only_files = !outputs.is_empty() && outputs.iter().all(Output::is_files);
        let options = exec::Options {
            no_cache: args.no_cache,
            no_cache_stages: args.no_cache_filter.iter().map(|s| s.to_lowercase()).collect::<BTreeSet<_>>(),
            latest,
            epoch,
            jobs: args.jobs.filter(|j| *j > 0).unwrap_or_else(|| image::workers::processors().get().max(4)),
            secrets: args.secrets()?,
            ssh: args.agents()?,
            whole,
            insecure: args.allow.iter().any(|a| a == "security.insecure"),
            files: outputs.iter().any(Output::is_files) || args.squash || args.squash_all,
            platform: text,
            log: watch.log(),
        };
        let tell = |event: exec::Event<'_>| watch.hear(event);
        let build = Run {
            store,
            addition: &addition,
            file: &file,
            source: &source,
            given: &given,
            globals: &globals,
            stages: &stages,
            contexts: &contexts,
            bases: &sources,
            options: &options,
            sandbox: &settings,
            index: &index,
            remote: &remote,
            tell: &tell,
            shared: Shared::default(),
        };
        let mut built = build.run().inspect_err(|_| index.save().unwrap_or_default())?;
        index.save()?;
        add_labels(&mut built.config, args)?;
        for output in outputs.iter().filter(|o| o.is_files()) {
            let view = build.look(&built.layers)?;
            output.write_files(view.as_fd(), latest, many.then_some(target))?;
        }
        {
            let done = *exec::lock(&build.shared.counts);
            counts = (counts.0 + done.0, counts.1 + done.1);
        }
        let packages = match told.sbom && !only_files {
            true => {
                let view = build.look(&built.layers)?;
                let (packages, unread) = spdx::scan(view.as_fd()).context("--sbom")?;
                for text in unread {
                    watch.say(&format!("warning: --sbom: {text}"));
                }
                Some(packages)
            }
            false => None,
        };
        let shared = build.shared;
        drop(contexts);
        if only_files {
            continue;
        }
        let family = match args.format {
            Some(super::transfer::ManifestFormat::Docker) => Family::Docker,
            _ => Family::Oci,
        };
        let wish = Wish {
            names: if many || told != Told::default() { Vec::new() } else { names.clone() },
            family,
            compression: match args.compression.as_deref() {
                Some(text) => Some(text.parse()?),
                // What is said of an image is said of its digest, which must stay what it is when it is pushed.
                None if told != Told::default() => Some(image::layer::compress::Compression::GZIP),
                None => None,
            },
            annotations: pairs("--annotation", &args.annotation)?,
            latest,
            created: latest,
            omit_history: args.omit_history,
            squash: match (args.squash, args.squash_all) {
                (_, true) => Squash::All,
                (true, _) => Squash::New,
                _ => Squash::None,
            },
            inline_cache: cache_to.iter().any(|c| c.spec == Spec::Inline),
        };
        // What is only looked at while it is built must not be in the way.
        let fetch = |key: &Digest| remote.fetch(key, &sources, &addition);
        let done = commit::commit(store, store.begin()?, &shared, &built, &wish, &fetch)?;
        Addition::settle(store, &exec::lock(&shared.kept))?;
        drop(addition);
        give_caches(app, store, args, &cache_to, &shared, &done, &wish, watch)?;
        let mut predicates = Vec::new();
        if let Some(packages) = &packages {
            let title = names.first().map_or_else(|| "image".to_owned(), |n| n.familiar());
            let created = commit::time(latest.unwrap_or(0));
            predicates.push(spdx::document(packages, &title, &done.manifest.digest.to_string(), &created));
        }
        if let Some(mode) = told.provenance {
            let materials = told::materials(&shared);
            let labels = pairs("--label", &args.label)?;
            let remote = args.context.as_deref().filter(|c| c.contains("://") || c.starts_with("git@"));
            predicates.push(provenance::predicate(
                mode,
                &provenance::Asked {
                    context: remote,
                    file: &source.name,
                    text: &source.text,
                    target: args.target.as_deref(),
                    platform: target.to_string(),
                    own_platform: Platform::own().to_string(),
                    arguments: &arguments_told,
                    labels: &labels,
                    secrets: options.secrets.keys().map(String::as_str).collect(),
                    ssh: options.ssh.keys().map(String::as_str).collect(),
                    network: args.network.as_deref(),
                },
                &materials,
            ));
        }
        let beside = match predicates.is_empty() {
            true => None,
            false => {
                let mut addition = store.begin()?;
                let platform = target.to_string();
                let subjects: Vec<String> =
                    names.iter().map(|n| package::image_url(&n.familiar(), Some(&platform))).collect();
                let descriptor = attest::add(&mut addition, &done.manifest, &subjects, &predicates)?;
                addition.name(None, descriptor.clone());
                addition.commit()?;
                Some(descriptor)
            }
        };
        made.push((target.clone(), done, beside));
    }
    if made.is_empty() {
        return Ok(0);
    }
    let (root, id) = finish(store, &made, &names, args)?;
    for output in outputs.iter().filter(|o| !o.is_files()) {
        output.send(app, store, &args.registry, &root, &names)?;
    }
    if let Some(path) = &args.iidfile {
        write_file(path, id.to_string().as_bytes())?;
    }
    if let Some(path) = &args.metadata_file {
        let all: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let value = json!({
            "containerimage.config.digest": made[0].1.config,
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
        for name in &names {
            watch.say(&format!("named {}", name.familiar()));
        }
    }
    Ok(0)
}

/// Give the image its names, or an index of those for several platforms.
fn finish(
    store: &Store,
    made: &[(Platform, Committed, Option<Descriptor>)],
    names: &[Reference],
    args: &Build,
) -> Result<(Descriptor, Digest)> {
    if let [(_, only, None)] = made {
        return Ok((only.manifest.clone(), only.config.clone()));
    }
    let mut index = Index::of(
        made.iter()
            .map(|(platform, done, _)| Descriptor {
                platform: Some(platform.clone()),
                ..done.manifest.clone()
            })
            .chain(made.iter().filter_map(|(.., beside)| beside.clone()))
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
    for (_, done, beside) in made {
        store.forget(&done.manifest.digest)?;
        if let Some(beside) = beside {
            store.forget(&beside.digest)?;
        }
    }
    let id = root.digest.clone();
    Ok((root, id))
}

/// `--label` and `--env`, which come last.
fn add_labels(config: &mut Config, args: &Build) -> Result<()> {
    let execution = config.config.get_or_insert_default();
    let labels = pairs("--label", &args.label)?;
    if !labels.is_empty() {
        execution.labels.get_or_insert_default().extend(labels);
    }
    let mut variables = Vec::new();
    for path in &args.env_file {
        let title = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("--env-file: read {title}"))?;
        for (n, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#'))
        {
            let name = line.split('=').next().unwrap_or_default();
            ensure!(
                !name.is_empty() && !name.contains(char::is_whitespace),
                "--env-file: {title}:{}: NAME=VALUE, or NAME",
                n + 1
            );
            variables.push(line.to_owned());
        }
    }
    variables.extend(args.env.iter().cloned());
    for text in &variables {
        let all = execution.env.get_or_insert_default();
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            // What is not there is not set.
            None => match std::env::var(text) {
                Ok(value) => (text.as_str(), value),
                Err(_) => continue,
            },
        };
        all.retain(|e| e.split('=').next() != Some(name));
        all.push(format!("{name}={value}"));
    }
    Ok(())
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut new = image::temporary::Replacement::new(path)?;
    new.write_all(bytes).with_context(|| format!("write {}", path.display()))?;
    new.finish()
}

/// What would be done, for people.
fn plan_text(source: &Source, file: &crate::dockerfile::ast::Dockerfile, stages: &stages::Stages) -> String {
    let mut out = String::new();
    for node in &stages.nodes {
        let stage = &file.stages[node.number];
        let name = stage.name.as_ref().map_or_else(|| format!("stage-{}", node.number), |n| n.text.clone());
        let target = if node.number == stages.target { " (the target)" } else { "" };
        out.push_str(&format!("stage {} {name}{target}: from {}\n", node.number, origin(&node.base)));
        for (name, other) in &node.others {
            out.push_str(&format!("  takes from {name}: {}\n", origin(other)));
        }
        for instruction in &stage.instructions {
            let text = source.text.get(instruction.span.clone()).unwrap_or_default();
            let text: Vec<&str> = text.lines().map(str::trim).collect();
            out.push_str(&format!("  {}: {}\n", source.line(instruction.span.start), text.join(" ")));
        }
    }
    out
}

fn origin(origin: &stages::Origin) -> String {
    match origin {
        stages::Origin::Stage(n) => format!("stage {n}"),
        stages::Origin::Scratch => "nothing".to_owned(),
        stages::Origin::Context(name) => format!("context {name}"),
        stages::Origin::Image(name) => format!("image {name}"),
    }
}

/// Look for what is hardly meant. The status: whether there is something.
fn check(
    source: &Source,
    file: &crate::dockerfile::ast::Dockerfile,
    contexts: &Contexts<'_>,
    watch: &Watch,
) -> Result<i32> {
    let ignore = contexts.main.as_ref().map(|c| &c.ignore);
    let (found, _) = lint::check(source, file, ignore).map_err(|p| source.error(p))?;
    for warning in &found {
        let line = source.line(warning.span.start);
        watch.say(&format!(
            "{}:{line}: {}: {}\n{}",
            source.name,
            warning.rule,
            warning.message,
            source.excerpt(&warning.span)
        ));
    }
    watch.say(&match found.len() {
        0 => "Check complete, no warnings found.".to_owned(),
        1 => "Check complete, 1 warning has been found!".to_owned(),
        n => format!("Check complete, {n} warnings have been found!"),
    });
    Ok(i32::from(!found.is_empty()))
}

/// What a build tells of it, in a line each.
fn warn(
    source: &Source,
    file: &crate::dockerfile::ast::Dockerfile,
    contexts: &Contexts<'_>,
    watch: &Watch,
) -> Result<()> {
    let ignore = contexts.main.as_ref().map(|c| &c.ignore);
    let (found, settings) = lint::check(source, file, ignore).map_err(|p| source.error(p))?;
    for warning in found {
        if settings.error {
            let message = format!("{}: {} (# check=error=true)", warning.rule, warning.message);
            return Err(source.error(crate::dockerfile::source::Problem::new(warning.span, message)));
        }
        let line = source.line(warning.span.start);
        watch.say(&format!("warning: {}:{line}: {}: {}", source.name, warning.rule, warning.message));
    }
    Ok(())
}
