//! What is to be told of an image beside it, and what was it made of?

use anyhow::{Result, bail};
use report::Explain;

use crate::attest::package;
use crate::attest::provenance::{Material, Mode};
use crate::exec::{self, Shared};

/// What is told of an image beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub provenance: Option<Mode>,
    pub sbom: bool,
}

/// Images and files that the build was made of.
pub fn materials(shared: &Shared) -> Vec<Material> {
    let mut all: Vec<Material> = exec::lock(&shared.images)
        .iter()
        .map(|((name, platform), base)| {
            let digest = &base.target.digest;
            Material {
                address: package::image_url(name, platform.as_deref()),
                digest: (digest.algorithm().name().to_owned(), digest.hex().to_owned()),
            }
        })
        .collect();
    let fetched = exec::lock(&shared.fetched).clone();
    all.extend(fetched.into_iter().map(|(address, digest)| Material { address, digest }));
    all.sort();
    all.dedup();
    all
}

impl Told {
    /// Of the flags of that name.
    pub fn parse(provenance: Option<&str>, sbom: Option<&str>, attest: &[String]) -> Result<Told> {
        let mut told = Told::default();
        let mode = |flag: &str, text: &str| {
            Ok(match text {
                "true" | "mode=min" | "" => Some(Mode::Min),
                "mode=max" => Some(Mode::Max),
                "false" => None,
                other => bail!("{flag}={other}: true, false, mode=min or mode=max"),
            })
        };
        for text in attest {
            match text.split_once(',').unwrap_or((text, "")) {
                ("type=provenance", how) => told.provenance = mode("--attest", how)?,
                ("type=sbom", "" | "true") => told.sbom = true,
                _ => bail!("--attest {text}: type=provenance[,mode=min|max] or type=sbom"),
            }
        }
        if let Some(text) = provenance {
            told.provenance = mode("--provenance", text)?;
        }
        match sbom {
            None => {}
            Some("true") => told.sbom = true,
            Some("false") => told.sbom = false,
            Some(other) => {
                let e: Result<()> = Err(anyhow::anyhow!("--sbom={other}: true or false"));
                e.hint(|| "packages are found without another program".to_owned())?;
            }
        }
        Ok(told)
    }
}
