//! The command line: names and flags follow docker, podman and skopeo where these agree.

mod archives;
mod build;
mod diff;
mod images;
mod login;
mod maintenance;
mod manifest;
mod output;
mod pull;
mod push;
mod remote;
mod rootfs;
mod rung;
mod told;
mod transfer;
mod working;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory, Parser, Subcommand};
use image::Store;
use image::rootless::{Entered, Subordinate};
use report::Explain;

use crate::environment::Environment;

/// The program's name in messages.
pub const PROGRAM: &str = "berth-builder";
/// Our own failure, or wrong usage.
const FAILURE: i32 = 125;

const ABOUT: &str = "\
Build container images, and keep them: pull, push, load, save, unpack and inspect them, without a daemon.

Images lie in a store of plain files, /var/lib/berth as root and ~/.local/share/berth otherwise, which any number of
commands use at once and which no crash can damage. `alpine` means docker.io/library/alpine:latest, as everywhere.";

const EXAMPLE: &str = "\
Examples:
  berth-builder build -t app .                        an image of the Dockerfile in this folder
  berth-builder pull alpine                           from Docker's registry into the store
  berth-builder unpack alpine web                     an OCI bundle that berth-runtime runs
  berth-builder push alpine registry.example/alpine   to another registry
  berth-builder cp docker://alpine oci:layout:latest  from place to place, past the store
  docker save web | berth-builder load                out of Docker";

/// `--version`: also which specifications are meant.
fn version() -> &'static str {
    static TEXT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        let specs = [
            ("image-spec", "1.1.1"),
            ("distribution-spec", "1.1.1"),
            ("runtime-spec", "1.3.0"),
            ("dockerfile", "docker/dockerfile:1"),
            ("caches", "inline registry local"),
            ("attestations", "spdx-2.3 slsa-provenance-1"),
        ];
        report::version(env!("CARGO_PKG_VERSION"), option_env!("BERTH_COMMIT"), &specs)
    });
    &TEXT
}

#[derive(Debug, Parser)]
#[command(name = PROGRAM, about = ABOUT, after_help = EXAMPLE, version = version(), disable_help_subcommand = true)]
struct Cli {
    /// Where images are kept [env: BERTH_ROOT]
    #[arg(long, global = true, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// Print no progress
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    verb: Verb,
}

/// The whole command line, for completions and man pages.
pub fn command() -> clap::Command {
    Cli::command()
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build an image from a Dockerfile
    #[command(visible_alias = "bud")]
    Build(Box<build::Build>),
    /// Fetch images from registries, layouts or archives
    Pull(pull::Pull),
    /// Send an image to a registry, a layout or an archive
    Push(push::Push),
    /// List images
    #[command(visible_alias = "ls")]
    Images(images::Images),
    /// Give an image another name
    Tag(images::Tag),
    /// Take names from an image, which stays
    Untag(images::Untag),
    /// Remove images, or names of images that have several
    Rmi(images::Rmi),
    /// Print all that is known of images, as JSON
    Inspect(images::Inspect),
    /// Show how an image was made
    History(images::History),
    /// Compare two images, file by file
    Diff(diff::Diff),
    /// Write images to an archive or a folder
    Save(archives::Save),
    /// Read images from an archive
    Load(archives::Load),
    /// Log in to a registry
    Login(login::Login),
    /// Log out of a registry
    Logout(login::Logout),
    /// Search a registry for repositories
    Search(login::Search),
    /// Make and change lists of images for several platforms
    Manifest(manifest::Manifest),
    /// Remove images that nobody needs
    Prune(maintenance::Prune),
    /// Show what uses the disk
    Df(maintenance::Df),
    /// Read everything in the store and say what is damaged
    Check(maintenance::Check),
    /// Copy an image between any two places
    Cp(push::Cp),
    /// Make a working container of an image
    From(working::From),
    /// Run a command in a working container
    Run(working::Run),
    /// Copy files into a working container
    Copy(working::Copy),
    /// The same, with archives unpacked and addresses fetched
    Add(working::Copy),
    /// Change what the image of a working container will say
    Config(working::Configure),
    /// Make an image of a working container
    Commit(working::Commit),
    /// List working containers
    Containers(working::Containers),
    /// Remove working containers
    Rm(working::Rm),
    /// Delete images in a registry
    Delete(remote::Delete),
    /// List what refers to an image in a registry: signatures, SBOMs and the like
    Referrers(remote::Referrers),
    /// Make an OCI bundle of an image: a root file system and a config.json
    Unpack(rootfs::Unpack),
    /// Mount an image's root file system, read-only, or a working container's
    Mount(rootfs::Mount),
    /// Unmount it
    #[command(visible_alias = "umount")]
    Unmount(rootfs::Unmount),
}

impl Verb {
    /// Whether it runs commands and mounts what only it needs.
    fn runs(&self) -> bool {
        matches!(self, Verb::Build(_) | Verb::Run(_) | Verb::Copy(_) | Verb::Add(_))
    }

    /// The working container that it changes.
    fn container(&self) -> Option<&str> {
        match self {
            Verb::Run(run) => Some(run.container()),
            Verb::Copy(copy) | Verb::Add(copy) => Some(copy.container()),
            _ => None,
        }
    }

    /// Whether it may touch files of other users, which an ordinary user can only in a user namespace.
    fn needs_ids(&self) -> bool {
        match self {
            Verb::Pull(_)
            | Verb::Load(_)
            | Verb::Rmi(_)
            | Verb::Prune(_)
            | Verb::Check(_)
            | Verb::Unpack(_) => true,
            Verb::From(_) | Verb::Run(_) | Verb::Copy(_) | Verb::Add(_) | Verb::Commit(_) => true,
            Verb::Config(_) | Verb::Containers(_) | Verb::Rm(_) => false,
            Verb::Build(_) | Verb::Diff(_) | Verb::Mount(_) | Verb::Unmount(_) | Verb::Manifest(_) => true,
            Verb::Cp(cp) => cp.to_the_store(),
            Verb::Push(_)
            | Verb::Delete(_)
            | Verb::Referrers(_)
            | Verb::Images(_)
            | Verb::Tag(_)
            | Verb::Untag(_)
            | Verb::Inspect(_)
            | Verb::History(_) => false,
            Verb::Save(_) | Verb::Login(_) | Verb::Logout(_) | Verb::Search(_) | Verb::Df(_) => false,
        }
    }
}

/// What every verb gets.
#[derive(Debug)]
pub struct App {
    pub environment: Environment,
    /// Where images are kept, as the command line says.
    pub root: Option<PathBuf>,
    pub quiet: bool,
    /// Before a user namespace was entered.
    pub user: (u32, u32),
    pub subordinate: Subordinate,
    /// A single id is what was asked for.
    pub isolated: bool,
}

impl App {
    pub fn store(&self) -> Result<Store> {
        let store = Store::open(&self.environment.root(self.root.as_ref())?)?;
        self.remember_ids(&store)?;
        Ok(store)
    }

    /// Files with real owners of subordinate ids are nobody's to whoever has a single one.
    fn remember_ids(&self, store: &Store) -> Result<()> {
        if self.user.0 == 0 {
            return Ok(());
        }
        let mark = store.root().join("subordinate-ids");
        match (self.subordinate.is_empty(), mark.exists()) {
            (false, false) => std::fs::write(&mark, "").with_context(|| format!("write {}", mark.display())),
            (true, true) if self.isolated => {
                let e: Result<()> = Err(anyhow::anyhow!(
                    "--isolation single: {} holds files that belong to subordinate ids",
                    store.root().display()
                ));
                e.hint(|| "another store: --root FOLDER".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Flags of all that speaks to registries.
#[derive(Clone, Debug, Default, Args)]
pub struct Registry {
    /// Look at certificates, and speak no plain HTTP (=false: neither)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    tls_verify: Option<bool>,
    /// Credentials, instead of those of files
    #[arg(long, value_name = "USER[:PASSWORD]")]
    creds: Option<String>,
    /// The file of credentials [env: REGISTRY_AUTH_FILE]
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

impl Registry {
    pub fn settings(&self, environment: &Environment) -> Result<image::registry::client::Settings> {
        let login = match self.creds.as_deref().map(|c| c.split_once(':')) {
            None => None,
            Some(Some((user, password))) => Some(image::registry::credentials::Credentials::Password {
                user: user.to_owned(),
                password: password.to_owned(),
            }),
            Some(None) => {
                let user = self.creds.clone().unwrap_or_default();
                let password = login::ask_password()?;
                Some(image::registry::credentials::Credentials::Password { user, password })
            }
        };
        Ok(environment.settings(self.authfile.as_ref(), login, self.tls_verify == Some(false)))
    }
}

/// Docker's longer ways to say the same: `image build`, `builder build`, `buildx build`, `image rm`.
fn as_docker_has_them(all: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut all: Vec<OsString> = all.collect();
    let is = |n: usize, names: &[&str]| all.get(n).is_some_and(|a| names.iter().any(|name| a == name));
    let image = is(1, &["image"]);
    let verbs =
        ["build", "history", "import", "inspect", "load", "ls", "prune", "pull", "push", "rm", "save", "tag"];
    if (image && is(2, &verbs)) || (is(1, &["builder", "buildx"]) && is(2, &["build", "prune"])) {
        let group = all.remove(1);
        match all[1].to_str() {
            Some("rm") => all[1] = "rmi".into(),
            // There it is of what builds keep.
            Some("prune") if group != "image" => all.insert(2, "--build-cache".into()),
            _ => {}
        }
    }
    all
}

/// Print a result.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever reads has read enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write to the standard output"),
    }
}

/// Parse, run, report; the exit status.
pub fn main() -> i32 {
    let cli = match Cli::try_parse_from(as_docker_has_them(std::env::args_os())) {
        Ok(cli) => cli,
        Err(e) => {
            let wrong = e.use_stderr();
            // That nobody reads it changes nothing.
            e.print().unwrap_or_default();
            return if wrong { FAILURE } else { 0 };
        }
    };
    match run(cli) {
        Ok(status) => status,
        Err(e) => {
            report::print(PROGRAM, &e);
            FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<i32> {
    let user = sys::user::effective_ids();
    let mut environment = Environment::gather(user.0);
    if cli.verb.runs() {
        environment.look_for_interpreters();
    }
    let mut subordinate = Subordinate::default();
    let isolated = matches!(&cli.verb, Verb::Build(args) if args.isolation() == rung::Rung::Single);
    if user.0 != 0 && cli.verb.needs_ids() {
        if !isolated && image::rootless::has_helpers(&environment.search) {
            subordinate = Subordinate::of(user.0)?;
        }
        let entered = match cli.verb.runs() {
            true => image::rootless::enter_apart(&subordinate)?,
            false => image::rootless::enter(&subordinate)?,
        };
        if let Entered::Outside(exit) = entered {
            return Ok(exit.status());
        }
    }
    let context = App { environment, root: cli.root, quiet: cli.quiet, user, subordinate, isolated };
    if user.0 == 0 && cli.verb.runs() {
        // What is mounted is mounted for all, which those who go on apart cannot change.
        let mut paused = None;
        if let Some(name) = cli.verb.container()
            && working::settle(&context.store()?, name)?
        {
            paused = Some(name.to_owned());
        }
        if let Entered::Outside(exit) = image::rootless::apart()? {
            if let Some(name) = paused {
                working::mount(&context.store()?, &name)?;
            }
            return Ok(exit.status());
        }
    }
    raise_limit();
    match cli.verb {
        Verb::Build(args) => build::build(&context, *args),
        Verb::Pull(args) => pull::pull(&context, args),
        Verb::Push(args) => push::push(&context, args),
        Verb::Images(args) => images::images(&context, args),
        Verb::Tag(args) => images::tag(&context, args),
        Verb::Untag(args) => images::untag(&context, args),
        Verb::Rmi(args) => images::rmi(&context, args),
        Verb::Inspect(args) => images::inspect(&context, args),
        Verb::History(args) => images::history(&context, args),
        Verb::Diff(args) => diff::diff(&context, args),
        Verb::Save(args) => archives::save(&context, args),
        Verb::Load(args) => archives::load(&context, args),
        Verb::Login(args) => login::login(&context, args),
        Verb::Logout(args) => login::logout(&context, args),
        Verb::Search(args) => login::search(&context, args),
        Verb::Manifest(args) => manifest::run(&context, args),
        Verb::Prune(args) => maintenance::prune(&context, args),
        Verb::Df(args) => maintenance::df(&context, args),
        Verb::Check(args) => maintenance::check(&context, args),
        Verb::Cp(args) => push::cp(&context, args),
        Verb::From(args) => working::from(&context, args),
        Verb::Run(args) => working::run(&context, args),
        Verb::Copy(args) => working::copy(&context, args),
        Verb::Add(args) => working::add(&context, args),
        Verb::Config(args) => working::config(&context, args),
        Verb::Commit(args) => working::commit(&context, args),
        Verb::Containers(args) => working::containers(&context, args),
        Verb::Rm(args) => working::rm(&context, args),
        Verb::Delete(args) => remote::delete(&context, args),
        Verb::Referrers(args) => remote::referrers(&context, args),
        Verb::Unpack(args) => rootfs::unpack(&context, args),
        Verb::Mount(args) => rootfs::mount(&context, args),
        Verb::Unmount(args) => rootfs::unmount(&context, args),
    }
}

/// Deep trees and many layers need more descriptors than the usual soft limit gives.
fn raise_limit() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    // Without it, deep trees fail with a clear error.
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap_or_default();
}
