//! What becomes of a build? `--output`, as docker's buildx has it.

use std::io::{BufWriter, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image::layer::apply::{self, Options, Whiteouts};
use image::layer::walk;
use image::layer::whiteout::Privilege;
use image::manifest::{Descriptor, Index, Platform};
use image::store::Image;
use image::transfer::{Choice, Conversion};
use image::transport::Place;
use image::{Reference, Store, rootless};
use report::Explain;

use super::transfer::{self, JOBS};
use super::{App, Registry};
use crate::progress::Progress;

/// Where the result goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Image,
    Oci,
    Docker,
    Local,
    Tar,
}

/// One `--output`.
#[derive(Clone, Debug)]
pub struct Output {
    kind: Kind,
    dest: Option<PathBuf>,
    pub name: Option<String>,
    pub push: bool,
    /// An archive, not a folder.
    tar: bool,
    compression: Option<image::layer::compress::Compression>,
    force: bool,
}

/// Read all of them; without any, the image goes into the store.
pub fn parse(all: &[String], push: bool) -> Result<Vec<Output>> {
    let mut found = all.iter().map(|text| one(text)).collect::<Result<Vec<_>>>()?;
    if push {
        match found.iter_mut().find(|o| o.kind == Kind::Image) {
            Some(output) => output.push = true,
            None => found.push(Output { push: true, ..plain(Kind::Image) }),
        }
    }
    Ok(found)
}

fn plain(kind: Kind) -> Output {
    Output { kind, dest: None, name: None, push: false, tar: true, compression: None, force: false }
}

fn one(text: &str) -> Result<Output> {
    if text == "-" {
        return Ok(Output { dest: Some("-".into()), ..plain(Kind::Tar) });
    }
    if !text.contains('=') {
        ensure!(!text.is_empty(), "--output: it is empty");
        return Ok(Output { dest: Some(text.into()), ..plain(Kind::Local) });
    }
    let mut kind = None;
    let mut output = plain(Kind::Image);
    let mut level = None;
    // A name may be several, with commas in quotes.
    for field in split(text) {
        let (name, value) =
            field.split_once('=').with_context(|| format!("--output {text}: {field:?} has no ="))?;
        let flag = || match value {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => bail!("--output {text}: {name} is true or false, not {other:?}"),
        };
        match name {
            "type" => {
                kind = Some(match value {
                    "image" => Kind::Image,
                    "registry" => {
                        output.push = true;
                        Kind::Image
                    }
                    "oci" => Kind::Oci,
                    "docker" => Kind::Docker,
                    "local" => Kind::Local,
                    "tar" => Kind::Tar,
                    other => {
                        let e: Result<Kind> = Err(anyhow::anyhow!("--output {text}: unknown type {other:?}"));
                        e.hint(|| "image, registry, oci, docker, local or tar".to_owned())?
                    }
                });
            }
            "dest" => output.dest = Some(value.into()),
            "name" => output.name = Some(value.to_owned()),
            "push" => output.push = flag()?,
            "tar" => output.tar = flag()?,
            "compression" => output.compression = Some(value.parse().context("--output")?),
            "compression-level" => {
                level = Some(value.parse().with_context(|| format!("--output {text}: a level"))?)
            }
            "force-compression" => output.force = flag()?,
            // Ours are always so.
            "oci-mediatypes" | "rewrite-timestamp" | "unpack" | "store" if flag()? => {}
            other => {
                let known = [
                    "type",
                    "dest",
                    "name",
                    "push",
                    "tar",
                    "compression",
                    "compression-level",
                    "force-compression",
                    "oci-mediatypes",
                    "rewrite-timestamp",
                    "unpack",
                    "store",
                ];
                let e: Result<()> =
                    Err(anyhow::anyhow!("--output {text}: {other:?} is not known, or not with this value"));
                e.hint(|| format!("there are {}", known.join(", ")))?;
            }
        }
    }
    output.kind = kind.with_context(|| format!("--output {text}: type=… is missing"))?;
    if let Some(level) = level {
        let how = output.compression.unwrap_or(image::layer::compress::Compression::GZIP);
        output.compression = Some(how.with_level(level)?);
    }
    match output.kind {
        Kind::Local => ensure!(output.dest.is_some(), "--output {text}: dest=FOLDER is missing"),
        Kind::Image => ensure!(output.dest.is_none(), "--output {text}: an image has no dest, but a name"),
        _ => ensure!(
            output.dest.as_deref().is_some_and(|d| d != Path::new("-")) || !std::io::stdout().is_terminal(),
            "--output {text}: dest=FILE is missing, and an archive is nothing for a terminal"
        ),
    }
    Ok(output)
}

/// Fields between commas; those in double quotes count as one.
fn split(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut().into_iter().for_each(|f| f.push(c)),
        }
    }
    fields
}

impl Output {
    /// Files are wanted, not an image.
    pub fn is_files(&self) -> bool {
        matches!(self.kind, Kind::Local | Kind::Tar)
    }

    /// Write a file system's files; of several platforms, each into a folder of its own.
    pub fn write_files(
        &self,
        root: BorrowedFd<'_>,
        latest: Option<i64>,
        platform: Option<&Platform>,
    ) -> Result<()> {
        let dest = self.dest.clone().unwrap_or_else(|| "-".into());
        if self.kind == Kind::Tar {
            ensure!(platform.is_none(), "--output type=tar: one platform, or type=local");
            return transfer::to_file(&dest, |to, _| {
                let mut to = BufWriter::with_capacity(1 << 17, to);
                walk::archive(root, Privilege::own(), latest, &mut to)?;
                to.flush().context("write the archive")
            });
        }
        let folder = match platform {
            Some(platform) => dest.join(platform.to_string().replace('/', "_")),
            None => dest,
        };
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let target = crate::bundle::open_root(&folder)?;
        let mut options = Options::own(Whiteouts::Remove, rootless::others_are_mapped()?);
        if options.owner == apply::Owner::Note {
            // Nobody will ask for the notes.
            options.owner = apply::Owner::Ours;
        }
        // The folder itself stays as it is.
        let implied = [Vec::new()].into();
        apply::copy(root, Privilege::own(), &implied, target.as_fd(), options)
            .with_context(|| format!("write to {}", folder.display()))?;
        Ok(())
    }

    /// Send the image where it is wanted.
    pub fn send(
        &self,
        app: &App,
        store: &Store,
        registry: &Registry,
        root: &Descriptor,
        names: &[Reference],
    ) -> Result<()> {
        let image = Image { reference: None, target: root.clone() };
        let mut places = Vec::new();
        match self.kind {
            Kind::Image if self.push => places.extend(names.iter().cloned().map(Place::Registry)),
            Kind::Oci => {
                let path = self.dest.clone().unwrap_or_else(|| "-".into());
                let name = names.first().map(|n| n.tag().unwrap_or("latest").to_owned());
                places.push(match self.tar {
                    true => Place::LayoutArchive { path, name },
                    false => Place::Layout { path, name },
                });
            }
            Kind::Docker => {
                let path = self.dest.clone().unwrap_or_else(|| "-".into());
                places.push(Place::DockerArchive { path, name: names.first().cloned() });
            }
            _ => {}
        }
        let settings = registry.settings(&app.environment)?;
        let progress = Progress::new(app.quiet);
        let listener = |event: image::transfer::Event| progress.hear(event);
        for place in places {
            let first = |index: &Index| index.manifests.first().cloned().context("an empty index");
            let choice = match &place {
                Place::DockerArchive { .. } => Choice::One(&first),
                _ => Choice::All,
            };
            let compression = self.compression.or(transfer::usual(&place));
            let conversion = Conversion { family: None, compression, force: self.force };
            let options = image::transfer::Options { choice, conversion, jobs: JOBS, listener: &listener };
            let reading = store.reading(&image)?;
            transfer::send(&place, &settings, store, &reading, &options)
                .with_context(|| format!("send to {place}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_as_buildx_has_them() {
        for (text, kind, dest) in [
            ("out", Kind::Local, Some("out")),
            ("-", Kind::Tar, Some("-")),
            ("type=local,dest=a", Kind::Local, Some("a")),
            ("type=oci,dest=x.tar,tar=false", Kind::Oci, Some("x.tar")),
            ("type=docker,dest=x.tar", Kind::Docker, Some("x.tar")),
            ("type=image,name=a,push=true", Kind::Image, None),
            ("type=registry", Kind::Image, None),
        ] {
            let output = one(text).unwrap();
            assert_eq!((output.kind, output.dest.as_deref().and_then(Path::to_str)), (kind, dest), "{text}");
        }
        assert!(one("type=registry").unwrap().push);
        assert_eq!(one("type=image,\"name=a,b\"").unwrap().name.as_deref(), Some("a,b"));
        for (text, reason) in [
            ("", "empty"),
            ("type=x", "unknown type"),
            ("type=local", "dest=FOLDER"),
            ("type=image,dest=x", "no dest"),
            ("type=image,quux=1", "not known"),
            ("type=image,push=maybe", "true or false"),
            ("dest=x", "type=… is missing"),
            ("type=image,push", "has no ="),
        ] {
            let error = report::line(&one(text).unwrap_err());
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
