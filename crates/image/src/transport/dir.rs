//! skopeo's `dir:`, a plain folder for one image: `version`, `manifest.json`, and blobs by the digits of their digests.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::files::{Files, Folder};
use crate::digest::{Algorithm, Hashing};
use crate::manifest::{Descriptor, Document, MANIFEST_MOST};
use crate::temporary::Replacement;
use crate::transfer::{Source, Target};

const VERSION: &[u8] = b"Directory Transport Version: 1.1\n";

/// The image of a folder, to be read.
#[derive(Debug)]
pub struct Reading {
    files: Folder,
}

impl Reading {
    pub fn open(path: &Path) -> Result<Reading> {
        let files = Folder::open(path)?;
        let version = files.small("version", 1024)?;
        ensure!(
            version.starts_with(b"Directory Transport Version: 1."),
            "{}: a version that we do not know: {}",
            path.display(),
            version.escape_ascii()
        );
        Ok(Reading { files })
    }
}

impl Source for Reading {
    fn root(&self) -> Result<(Descriptor, Vec<u8>)> {
        let bytes = self.files.small("manifest.json", MANIFEST_MOST)?;
        let media_type =
            Document::media_type(&bytes).with_context(|| format!("{}: manifest.json", self.files.title()))?;
        Ok((Descriptor::of(&media_type, &bytes), bytes))
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let name = format!("{}.manifest.json", descriptor.digest.hex());
        self.files.promised(&name, descriptor, MANIFEST_MOST)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        self.files.blob(descriptor.digest.hex(), descriptor)
    }
}

/// A folder that becomes an image.
#[derive(Debug)]
pub struct Writing {
    path: PathBuf,
}

impl Writing {
    /// The folder must be empty or an image of this kind.
    pub fn new(path: &Path) -> Result<Writing> {
        let making = || format!("make {}", path.display());
        std::fs::create_dir_all(path).with_context(making)?;
        let empty = std::fs::read_dir(path).with_context(making)?.next().is_none();
        ensure!(
            empty || path.join("version").exists(),
            "{}: neither empty nor an image of this kind",
            path.display()
        );
        let writing = Writing { path: path.to_owned() };
        if empty {
            writing.file("version", &mut &VERSION[..])?.1.finish()?;
        }
        Ok(writing)
    }

    fn file(&self, name: &str, content: &mut dyn Read) -> Result<(Descriptor, Replacement)> {
        let path = self.path.join(name);
        let mut new = Replacement::new(&path)?;
        let mut to = Hashing::new(&mut new, Algorithm::Sha256);
        io::copy(content, &mut to).with_context(|| format!("write {}", path.display()))?;
        let (_, digest, size) = to.finish();
        Ok((Descriptor { digest, size, ..Descriptor::of("", b"") }, new))
    }
}

impl Target for Writing {
    fn has(&self, descriptor: &Descriptor) -> Result<bool> {
        let meta = std::fs::symlink_metadata(self.path.join(descriptor.digest.hex()));
        Ok(meta.is_ok_and(|m| m.is_file() && m.len() == descriptor.size))
    }

    fn put(&self, descriptor: &Descriptor, content: &mut (dyn Read + Send)) -> Result<()> {
        ensure!(
            descriptor.digest.algorithm() == Algorithm::Sha256,
            "{}: dir: knows sha256 alone",
            descriptor.digest
        );
        let (came, new) =
            self.file(descriptor.digest.hex(), &mut content.take(descriptor.size.saturating_add(1)))?;
        ensure!(
            came.digest == descriptor.digest && came.size == descriptor.size,
            "blob {}: its content is that of {} ({} bytes)",
            descriptor.digest,
            came.digest,
            came.size
        );
        new.finish()
    }

    fn put_new(&self, media_type: &str, content: &mut (dyn Read + Send)) -> Result<Descriptor> {
        let (came, mut new) = self.file("new", content)?;
        new.become_path(self.path.join(came.digest.hex()));
        new.finish()?;
        Ok(Descriptor { media_type: media_type.to_owned(), ..came })
    }

    fn put_document(&self, descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
        let name = format!("{}.manifest.json", descriptor.digest.hex());
        self.file(&name, &mut &bytes[..])?.1.finish()
    }

    fn finish(&self, _root: &Descriptor, bytes: &[u8]) -> Result<()> {
        let mut new = Replacement::new(&self.path.join("manifest.json"))?;
        new.write_all(bytes).with_context(|| format!("write {}", self.path.display()))?;
        new.finish()
    }
}
