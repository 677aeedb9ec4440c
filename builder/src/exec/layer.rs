//! How does a step that needs no container make a layer? Its entries are written as an archive, and at the same time, if somebody
//! will look at it, as a tree.

use std::collections::BTreeMap;
use std::io::{BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, bail};
use image::Store;
use image::digest::Algorithm;
use image::layer::apply::apply;
use image::layer::pipe::{PipeWriter, pipe};
use image::layer::tar::{Header, Kind, Writer};
use image::layer::walk;
use image::store::{Addition, Blob, Tree};
use image::workers;

use super::pick::Item;

/// A layer that was made.
#[derive(Debug)]
pub struct Made {
    pub blob: Blob,
    /// Bytes of files.
    pub bytes: u64,
    pub tree: Option<Tree>,
}

/// What becomes of an entry's content.
#[derive(Debug)]
pub enum Content<'a> {
    None,
    Bytes(Vec<u8>),
    /// A file of a tree; whether the attributes there are to be taken by their word.
    File(&'a Item, BorrowedFd<'a>, bool),
}

/// The entries of a layer in their order; of several with one path the last counts.
#[derive(Debug, Default)]
pub struct Entries<'a>(BTreeMap<Vec<u8>, (Header, Content<'a>)>);

impl<'a> Entries<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// So that each folder stands before what is in it, and names follow each other as in a walk.
    fn key(path: &[u8]) -> Vec<u8> {
        path.iter().map(|b| if *b == b'/' { 0 } else { *b }).collect()
    }

    pub fn has(&self, path: &[u8]) -> bool {
        self.0.contains_key(&Self::key(path))
    }

    pub fn get(&self, path: &[u8]) -> Option<&Header> {
        self.0.get(&Self::key(path)).map(|(header, _)| header)
    }

    pub fn put(&mut self, header: Header, content: Content<'a>) {
        self.0.insert(Self::key(&header.path), (header, content));
    }
}

/// Make a layer of these entries; its tree, too, if `tree` says so. In the archive no time is later than `latest`.
pub fn make(addition: &Addition<'_>, entries: &Entries<'_>, latest: Option<i64>, tree: bool) -> Result<Made> {
    write(addition, latest, tree, |writing| write_entries(entries, writing))
}

/// Write all of them.
pub fn write_entries(entries: &Entries<'_>, writing: &mut Writing<'_>) -> Result<()> {
    for (header, content) in entries.0.values() {
        let title = || header.title();
        match content {
            Content::None => writing.entry(header, &mut std::io::empty()).with_context(title)?,
            Content::Bytes(bytes) => {
                let header = Header { size: bytes.len() as u64, ..header.clone() };
                writing.entry(&header, &mut &bytes[..]).with_context(title)?;
            }
            Content::File(item, root, own) => {
                let mut file = item.open(*root).with_context(|| item.from.escape_ascii().to_string())?;
                let mut header = header.clone();
                let ids = (header.uid, header.gid);
                match own {
                    true => walk::own_attributes(&mut header, file.as_fd())?,
                    false => walk::foreign_attributes(&mut header, file.as_fd())?,
                }
                // A note of the owner counts, unless another was asked for.
                if !own || ids != (item.header.uid, item.header.gid) {
                    (header.uid, header.gid) = ids;
                }
                writing.entry(&header, &mut file).with_context(title)?;
            }
        }
    }
    Ok(())
}

/// Takes entries, for the archive and for the tree.
pub struct Writing<'a> {
    archive: Writer<BufWriter<&'a mut image::store::Writer>>,
    tree: Option<Writer<PipeWriter>>,
    latest: Option<i64>,
    buffer: Vec<u8>,
    bytes: u64,
}

impl Writing<'_> {
    /// An entry with its content, which has as many bytes as the header says.
    pub fn entry(&mut self, header: &Header, content: &mut impl Read) -> Result<()> {
        match self.latest {
            Some(latest) => self.archive.header(&header.no_later_than(latest))?,
            None => self.archive.header(header)?,
        }
        if let Some(tree) = &mut self.tree {
            tree.header(header)?;
        }
        if header.kind != Kind::File {
            return Ok(());
        }
        let mut left = header.size;
        self.bytes += left;
        if self.buffer.is_empty() {
            self.buffer.resize(128 << 10, 0);
        }
        while left > 0 {
            let most = left.min(self.buffer.len() as u64) as usize;
            let n = match content.read(&mut self.buffer[..most]) {
                Ok(0) => bail!("it has become shorter meanwhile"),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e.into()),
            };
            self.archive.write_all(&self.buffer[..n])?;
            if let Some(tree) = &mut self.tree {
                tree.write_all(&self.buffer[..n])?;
            }
            left -= n as u64;
        }
        Ok(())
    }
}

/// Make a layer of what `fill` writes.
pub fn write(
    addition: &Addition<'_>,
    latest: Option<i64>,
    tree: bool,
    fill: impl FnOnce(&mut Writing<'_>) -> Result<()>,
) -> Result<Made> {
    let store: &Store = addition.store();
    let mut writer = addition.writer(Algorithm::Sha256)?;
    let tree = if tree { Some(addition.tree()?) } else { None };
    let options = store.tree_options()?;
    let bytes = std::thread::scope(|scope| -> Result<u64> {
        let mut applying = None;
        let mut to_tree = None;
        if let Some(tree) = &tree {
            let (to, mut from) = pipe();
            to_tree = Some(Writer::new(to));
            applying = Some(workers::spawn(scope, move || apply(&mut from, tree.as_fd(), options))?);
        }
        let archive = Writer::new(BufWriter::with_capacity(256 << 10, &mut writer));
        let mut writing = Writing { archive, tree: to_tree, latest, buffer: Vec::new(), bytes: 0 };
        let filled = fill(&mut writing);
        let Writing { archive, tree: to_tree, bytes, .. } = writing;
        let filled = filled.and_then(|()| {
            archive.finish()?.flush().context("write a layer")?;
            Ok(())
        });
        if let Some(to) = to_tree {
            match &filled {
                Ok(()) => to.finish()?.finish(Ok(())),
                // Dropped without an end, it fails the reader.
                Err(_) => drop(to),
            }
        }
        if let Some(applying) = applying {
            let applied = applying.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // What went wrong first is what is told: a reader that is gone only breaks the pipe.
            match (filled, applied) {
                (Err(e), Err(_)) if !is_broken_pipe(&e) => return Err(e),
                (_, Err(e)) => return Err(e),
                (Err(e), Ok(_)) => return Err(e),
                (Ok(()), Ok(_)) => {}
            }
        } else {
            filled?;
        }
        Ok(bytes)
    })?;
    Ok(Made { blob: writer.finish(), bytes, tree })
}

fn is_broken_pipe(e: &anyhow::Error) -> bool {
    e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
