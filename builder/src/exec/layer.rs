//! How does a step that needs no container make a layer? Its entries are written as an archive, and at the same time, if somebody
//! will look at it, as a tree.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::io::{BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, bail, ensure};
use image::digest::Algorithm;
use image::layer::apply::apply;
use image::layer::pipe::{PipeWriter, pipe};
use image::layer::tar::{Header, Kind, Writer};
use image::layer::walk;
use image::store::{Addition, Blob, Tree};
use image::{Digest, Store, workers};

use super::pick::Item;
use super::splice::{self, Before, Later, List};

/// A layer that was made.
#[derive(Debug)]
pub struct Made {
    /// None: it comes later.
    pub blob: Option<Blob>,
    pub later: Option<Later>,
    /// Bytes of files.
    pub bytes: u64,
    pub tree: Option<Tree>,
    /// The tree holds only what is other than in that of this step.
    pub over: Option<Digest>,
    /// What is in the archive, for the next of its kind.
    pub list: Option<List>,
}

/// What becomes of an entry's content.
#[derive(Debug)]
pub enum Content<'a> {
    None,
    Bytes(Vec<u8>),
    /// A file of a tree; whether the attributes there are to be taken by their word.
    File(&'a Item, BorrowedFd<'a>, bool),
}

/// Entries by path. Most come in their order.
#[derive(Debug)]
enum All<'a> {
    InOrder(Vec<(Header, Content<'a>)>),
    Any(BTreeMap<Vec<u8>, (Header, Content<'a>)>),
}

impl Default for All<'_> {
    fn default() -> Self {
        All::InOrder(Vec::new())
    }
}

/// The entries of a layer in their order; of several with one path the last counts.
#[derive(Debug, Default)]
pub struct Entries<'a> {
    all: All<'a>,
    /// Folders of which no lower layer knows.
    new: HashSet<Vec<u8>>,
}

impl<'a> Entries<'a> {
    pub fn is_empty(&self) -> bool {
        match &self.all {
            All::InOrder(all) => all.is_empty(),
            All::Any(all) => all.is_empty(),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Header, &Content<'a>)> {
        let (in_order, any) = match &self.all {
            All::InOrder(all) => (Some(all), None),
            All::Any(all) => (None, Some(all)),
        };
        let all = in_order.into_iter().flatten().chain(any.into_iter().flat_map(BTreeMap::values));
        all.map(|(header, content)| (header, content))
    }

    /// No lower layer has this folder.
    pub fn is_new(&mut self, folder: &[u8]) {
        self.new.insert(folder.to_vec());
    }

    /// Whether it is in a folder that no lower layer has.
    pub fn is_in_new(&self, path: &[u8]) -> bool {
        path.iter().rposition(|b| *b == b'/').is_some_and(|at| self.new.contains(&path[..at]))
    }

    fn key(path: &[u8]) -> Vec<u8> {
        path.iter().map(|b| if *b == b'/' { 0 } else { *b }).collect()
    }

    /// Each folder stands before what is in it, and names follow each other as in a walk.
    pub fn order(a: &[u8], b: &[u8]) -> Ordering {
        let key = |b: u8| if b == b'/' { 0 } else { b };
        match a.iter().zip(b).find(|(a, b)| a != b) {
            Some((a, b)) => key(*a).cmp(&key(*b)),
            None => a.len().cmp(&b.len()),
        }
    }

    pub fn has(&self, path: &[u8]) -> bool {
        self.get(path).is_some()
    }

    pub fn get(&self, path: &[u8]) -> Option<&Header> {
        match &self.all {
            All::InOrder(all) => match all.last() {
                // Not there yet.
                Some((last, _)) if Self::order(path, &last.path).is_gt() => None,
                _ => {
                    let found = all.binary_search_by(|(header, _)| Self::order(&header.path, path));
                    found.ok().map(|n| &all[n].0)
                }
            },
            All::Any(all) => all.get(&Self::key(path)).map(|(header, _)| header),
        }
    }

    pub fn put(&mut self, header: Header, content: Content<'a>) {
        if let All::InOrder(all) = &mut self.all {
            match all.last() {
                Some((last, _)) if Self::order(&header.path, &last.path).is_le() => {
                    let all = std::mem::take(all).into_iter();
                    self.all = All::Any(all.map(|entry| (Self::key(&entry.0.path), entry)).collect());
                }
                _ => {
                    all.push((header, content));
                    return;
                }
            }
        }
        if let All::Any(all) = &mut self.all {
            all.insert(Self::key(&header.path), (header, content));
        }
    }
}

/// Make a layer of these entries; its tree, too, if `tree` says so. In the archive no time is later than `latest`. What is as it was
/// `before` is not read again; `view` is of the layers below.
pub fn make(
    addition: &Addition<'_>,
    entries: &Entries<'_>,
    latest: Option<i64>,
    tree: bool,
    before: Option<&Before>,
    view: Option<BorrowedFd<'_>>,
) -> Result<Made> {
    let Some(identities) = splice::identities(entries, latest) else {
        return write(addition, latest, tree, |writing| write_entries(entries, writing));
    };
    let mut over = None;
    let mut small = None;
    if let Some(before) = before
        && tree
        && let Some((key, list)) = &before.tree
        && let Some(delta) = splice::delta(entries, &identities, list, view)?
    {
        let tree = Some(write_tree(addition, entries, &delta)?);
        // What comes next needs the tree alone.
        if let Some((later, list)) = splice::archive_later(addition, entries, &identities, before, latest)? {
            let (later, list, over) = (Some(later), Some(list), Some(key.clone()));
            return Ok(Made { blob: None, later, bytes: 0, tree, over, list });
        }
        small = tree;
        over = Some(key.clone());
    }
    let mut made = match before {
        Some(before) if !tree || small.is_some() => {
            write(addition, latest, false, |writing| splice::archive(entries, &identities, before, writing))?
        }
        _ => write(addition, latest, tree, |writing| write_entries(entries, writing))?,
    };
    if small.is_some() {
        (made.tree, made.over) = (small, over);
    }
    match &mut made.list {
        Some(list) if list.len() == identities.len() => list.identify(&identities),
        list => *list = None,
    }
    Ok(made)
}

/// Make a tree of what is other alone.
fn write_tree(addition: &Addition<'_>, entries: &Entries<'_>, delta: &splice::Delta) -> Result<Tree> {
    let tree = addition.tree()?;
    let mut to = Writer::new(Vec::new());
    splice::write_delta(entries, delta, |header, content| put(&mut to, header, content, None))?;
    apply(&mut &to.finish()?[..], tree.as_fd(), addition.store().tree_options()?)?;
    Ok(tree)
}

/// An entry with its content, as it is now.
fn open<'c>(header: &Header, content: &'c Content<'_>) -> Result<(Header, Box<dyn Read + 'c>)> {
    Ok(match content {
        Content::None => (header.clone(), Box::new(std::io::empty())),
        Content::Bytes(bytes) => {
            (Header { size: bytes.len() as u64, ..header.clone() }, Box::new(&bytes[..]))
        }
        Content::File(item, root, own) => {
            let file = item.open(*root).with_context(|| item.from.escape_ascii().to_string())?;
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
            (header, Box::new(file))
        }
    })
}

/// One of them, as it stands in an archive.
pub fn entry_bytes(header: &Header, content: &Content<'_>, latest: Option<i64>) -> Result<Vec<u8>> {
    let mut to = Writer::new(Vec::new());
    put(&mut to, header, content, latest)?;
    let mut bytes = to.finish()?;
    // Without the archive's end.
    bytes.truncate(bytes.len() - 1024);
    Ok(bytes)
}

fn put(to: &mut Writer<Vec<u8>>, header: &Header, content: &Content<'_>, latest: Option<i64>) -> Result<()> {
    let (header, content) = open(header, content).with_context(|| header.title())?;
    match latest {
        Some(latest) => to.header(&header.no_later_than(latest))?,
        None => to.header(&header)?,
    }
    if header.kind == Kind::File {
        let copied = std::io::copy(&mut content.take(header.size), to)?;
        ensure!(copied == header.size, "{}: it has become shorter meanwhile", header.title());
    }
    Ok(())
}

/// Write all of them.
pub fn write_entries(entries: &Entries<'_>, writing: &mut Writing<'_>) -> Result<()> {
    entries.iter().try_for_each(|(header, content)| write_entry(header, content, writing))
}

/// Write one of them.
pub fn write_entry(header: &Header, content: &Content<'_>, writing: &mut Writing<'_>) -> Result<()> {
    let title = || header.title();
    let (header, mut content) = open(header, content).with_context(title)?;
    writing.entry(&header, &mut content).with_context(title)
}

/// Takes entries, for the archive and for the tree.
pub struct Writing<'a> {
    archive: Writer<BufWriter<&'a mut image::store::Writer>>,
    tree: Option<Writer<PipeWriter>>,
    latest: Option<i64>,
    buffer: Vec<u8>,
    bytes: u64,
    list: List,
}

impl Writing<'_> {
    /// An entry with its content, which has as many bytes as the header says.
    pub fn entry(&mut self, header: &Header, content: &mut (impl Read + ?Sized)) -> Result<()> {
        let begin = self.archive.position();
        match self.latest {
            Some(latest) => self.archive.header(&header.no_later_than(latest))?,
            None => self.archive.header(header)?,
        }
        self.list.push(&header.path, header.kind as u8, &[0; 16], (begin, self.archive.position()));
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

    /// Entries of another archive, as they stand there, for the archive alone; [`Writing::listed`] says what they are.
    pub fn whole(&mut self, from: &mut impl Read) -> std::io::Result<()> {
        if self.buffer.len() < WHOLE {
            self.buffer.resize(WHOLE, 0);
        }
        self.archive.entries(from, &mut self.buffer)
    }

    /// The next of these entries; it has that many bytes.
    pub fn listed(&mut self, header: &Header, length: u64) {
        let begin = self.list.end();
        self.list.push(&header.path, header.kind as u8, &[0; 16], (begin, begin + length));
    }
}

/// Bytes that are taken over at a time.
const WHOLE: usize = 1 << 20;

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
    let (bytes, list) = std::thread::scope(|scope| -> Result<(u64, List)> {
        let mut applying = None;
        let mut to_tree = None;
        if let Some(tree) = &tree {
            let (to, mut from) = pipe();
            to_tree = Some(Writer::new(to));
            applying = Some(workers::spawn(scope, move || apply(&mut from, tree.as_fd(), options))?);
        }
        let archive = Writer::new(BufWriter::with_capacity(256 << 10, &mut writer));
        let list = List::default();
        let mut writing = Writing { archive, tree: to_tree, latest, buffer: Vec::new(), bytes: 0, list };
        let filled = fill(&mut writing);
        let Writing { archive, tree: to_tree, bytes, list, .. } = writing;
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
        Ok((bytes, list))
    })?;
    Ok(Made { blob: Some(writer.finish()), later: None, bytes, tree, over: None, list: Some(list) })
}

fn is_broken_pipe(e: &anyhow::Error) -> bool {
    e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
