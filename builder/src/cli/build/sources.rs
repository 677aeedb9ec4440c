//! Where does a build get base images, downloads and cached layers from?

use std::io::{Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::digest::{Algorithm, Hasher};
use image::manifest::{Descriptor, Document};
use image::transport::Place;
use image::{Digest, Store};
use report::Kind;

use super::super::transfer::{Opened, Wanted};
use super::super::{App, Registry, pull};
use crate::exec::{self, Base, Bases};

/// How base images and downloads are got.
pub struct Sources<'a> {
    pub app: &'a App,
    pub store: &'a Store,
    pub registry: &'a Registry,
    pub pull: Pull,
    pub platform: Option<String>,
    pub caches: Vec<Opened<'a>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    Always,
    Missing,
    Never,
}

impl Pull {
    /// `--pull`
    pub fn parse(text: Option<&str>) -> Result<Pull> {
        match text {
            None | Some("missing" | "false" | "ifmissing") => Ok(Pull::Missing),
            Some("always" | "true" | "newer" | "ifnewer") => Ok(Pull::Always),
            Some("never") => Ok(Pull::Never),
            Some(other) => bail!("--pull={other}: always, missing or never"),
        }
    }
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
        let wanted = Wanted::new(platform)?;
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
