//! What is done in a registry alone, past the store.

use anyhow::{Context, Result};
use clap::Args;
use image::Reference;
use image::transfer::Source;
use image::transport::Place;
use report::{Kind, error};
use serde_json::json;

use super::transfer::from;
use super::{App, Registry, print};
use crate::format::{Format, human, rows};

#[derive(Debug, Args)]
pub struct Delete {
    /// In registries: docker://IMAGE
    #[arg(required = true)]
    images: Vec<String>,
    #[command(flatten)]
    registry: Registry,
}

#[derive(Debug, Args)]
pub struct Referrers {
    /// In a registry
    image: String,
    /// Only those of this type
    #[arg(long, value_name = "TYPE")]
    artifact_type: Option<String>,
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    #[command(flatten)]
    registry: Registry,
}

/// Which image of a registry is meant. To delete takes the whole word, so that nobody takes it for the store's `rmi`.
fn reference(text: &str, whole: bool) -> Result<Reference> {
    let named = !whole || text.starts_with("docker://");
    match from(text)? {
        Place::Registry(reference) if named => Ok(reference),
        Place::Registry(_) => {
            let e: Result<Reference> =
                Err(error(Kind::BadInput, format!("{text}: an image of a registry is docker://{text}")));
            report::Explain::hint(e, || format!("berth-builder rmi {text} removes it from the store"))
        }
        _ => Err(error(Kind::BadInput, format!("{text}: only images of registries"))),
    }
}

/// Delete manifests in their registries, as skopeo does.
pub fn delete(app: &App, args: Delete) -> Result<i32> {
    let settings = args.registry.settings(&app.environment)?;
    let images = args.images.iter().map(|text| reference(text, true)).collect::<Result<Vec<_>>>()?;
    for image in &images {
        settings.repository(image)?.delete().with_context(|| format!("delete {}", image.familiar()))?;
    }
    Ok(0)
}

/// What refers to an image: signatures, SBOMs and the like.
pub fn referrers(app: &App, args: Referrers) -> Result<i32> {
    let format = Format::parse(args.format.as_deref())?;
    let image = reference(&args.image, false)?;
    let repository = args.registry.settings(&app.environment)?.repository(&image)?;
    let digest = match image.digest() {
        Some(digest) => digest.clone(),
        None => repository.root()?.0.digest,
    };
    let mut found = repository.referrers(&digest)?;
    // A registry need not filter, so that it is not asked to.
    found.retain(|d| args.artifact_type.is_none() || d.artifact_type == args.artifact_type);
    let data: Vec<_> = found
        .iter()
        .map(|d| {
            json!({"Digest": d.digest, "ArtifactType": d.artifact_type.clone().unwrap_or_default(), "MediaType": d.media_type,
                "Size": human::size(d.size), "Bytes": d.size, "Annotations": d.annotations})
        })
        .collect();
    let columns = [("DIGEST", "Digest"), ("ARTIFACT TYPE", "ArtifactType"), ("SIZE", "Size")];
    print(&rows(&format, &columns, &columns, &data)?).map(|()| 0)
}
