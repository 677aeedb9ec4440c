//! Which files do COPY and ADD take, and what do they say? A walk over a tree that nobody trusts, which reads only what the index of
//! digests does not know.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::hash::{Hash, Hasher as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::Digest;
use image::digest::{Algorithm, Hasher};
use image::layer::tar::{Header, Kind};
use image::layer::walk;
use report::Explain;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use sys::path::Links;

use super::index::{self, Index, Sum};
use super::real::{Last, parts, real};
use crate::glob;
use crate::ignore::Ignore;

/// Folders in folders that are walked.
const DEPTH_MOST: usize = 1024;

/// Where files are taken from.
#[derive(Debug)]
pub struct Tree<'a> {
    pub root: BorrowedFd<'a>,
    /// For people: `the build context`, `stage build`.
    pub title: String,
    /// What is not there for the build.
    pub ignore: Option<&'a Ignore>,
    /// None: its inodes mean something only for as long as it is mounted.
    pub index: Option<&'a Index>,
    /// Owners in it count; those of a build context do not.
    pub owned: bool,
}

/// What is taken.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Of `--exclude`.
    pub exclude: &'a Ignore,
    pub parents: bool,
}

/// A source as it was named, or one of those that fit a pattern.
#[derive(Debug)]
pub struct Source {
    /// Its last part, as it was named.
    pub name: Vec<u8>,
    pub folder: bool,
    /// With a path from where it will be: of a folder, what is in it and itself (an empty path); of a file, itself.
    pub items: Vec<Item>,
}

/// A file, folder or something else that is taken.
#[derive(Debug)]
pub struct Item {
    /// In the tree.
    pub from: Vec<u8>,
    /// Its path is from the source on.
    pub header: Header,
    pub sum: Option<Sum>,
    pub stat: Stat,
}

/// All that fits the words of a COPY, in their order.
pub fn pick(tree: &Tree<'_>, words: &[&str], wish: Wish<'_>) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for word in words {
        let before = found.len();
        if wish.parents {
            found.extend(with_parents(tree, word, wish)?);
        } else if is_pattern(word) {
            let pattern = parts(word.as_bytes());
            let mut paths = Vec::new();
            expand(tree, &pattern, Vec::new(), false, &mut paths)?;
            for path in paths {
                if let Some(source) = source(tree, &path, wish)? {
                    found.push(source);
                }
            }
        } else if let Some(source) = source(tree, &parts(&unescape(word)).join(&b'/'), wish)? {
            found.push(source);
        }
        if found.len() == before {
            return Err(missing(tree, word));
        }
    }
    Ok(found)
}

/// A digest of all that a COPY of these would bring, times aside.
pub fn digest(sources: &[Source], owned: bool) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for source in sources {
        hasher.update(&[1, u8::from(source.folder)]);
        hasher.update(&source.name);
        for item in &source.items {
            hasher.update(&[0, 2]);
            line(&mut hasher, item, owned);
        }
        hasher.update(&[0]);
    }
    hasher.finish()
}

/// Entries that are remembered, to tell what has changed.
const LISTED: usize = 20_000;

/// What was picked, by path, with a short sum of what it is; nothing, if it is too much to remember.
pub fn listing(sources: &[Source]) -> Option<String> {
    let count: usize = sources.iter().map(|s| s.items.len()).sum();
    if count > LISTED {
        return None;
    }
    let mut all = String::new();
    for item in sources.iter().flat_map(|s| &s.items).filter(|i| i.header.kind != Kind::Directory) {
        // Enough to tell two builds of one folder apart.
        let Header { kind, link, mode, device, xattrs, .. } = &item.header;
        let mut sum = std::hash::DefaultHasher::new();
        (*kind as u8, link, mode, device, xattrs, &item.sum).hash(&mut sum);
        write!(all, "{:012x} ", sum.finish() >> 16).unwrap_or_default();
        match std::str::from_utf8(&item.from) {
            Ok(path) if path.bytes().all(|b| b.is_ascii_graphic() && b != b'\\') => all.push_str(path),
            _ => write!(all, "{}", item.from.escape_ascii()).unwrap_or_default(),
        }
        all.push('\n');
    }
    Some(all)
}

/// What a digest says of one item.
fn line(hasher: &mut Hasher, item: &Item, owned: bool) {
    let Header { path, kind, link, mode, uid, gid, device, xattrs, .. } = &item.header;
    hasher.update(path);
    hasher.update(&[0, *kind as u8]);
    hasher.update(&mode.to_le_bytes());
    if owned {
        hasher.update(&uid.to_le_bytes());
        hasher.update(&gid.to_le_bytes());
    }
    if let Some(sum) = &item.sum {
        hasher.update(sum);
    }
    if !link.is_empty() {
        hasher.update(link);
    }
    if matches!(kind, Kind::Character | Kind::Block) {
        hasher.update(&device.0.to_le_bytes());
        hasher.update(&device.1.to_le_bytes());
    }
    for (name, value) in xattrs {
        hasher.update(&[3]);
        hasher.update(name);
        hasher.update(&[0]);
        hasher.update(value);
    }
}

fn missing(tree: &Tree<'_>, word: &str) -> anyhow::Error {
    let ignored = tree.ignore.is_some_and(|ignore| {
        let path = parts(word.as_bytes()).join(&b'/');
        !is_pattern(word) && ignore.leaves_out(&String::from_utf8_lossy(&path))
    });
    let what = if is_pattern(word) { "nothing fits this pattern" } else { "not found" };
    let error = anyhow::anyhow!("{word:?}: {what} in {}", tree.title)
        .context(report::Note { kind: Some(report::Kind::NotFound), hint: None });
    let failed: Result<()> = Err(error);
    let failed = if ignored { failed.hint(|| "the ignore file leaves it out".to_owned()) } else { failed };
    failed.err().unwrap_or_else(|| anyhow::anyhow!("not found"))
}

fn is_pattern(word: &str) -> bool {
    let mut escaped = false;
    word.chars().any(|c| {
        let special = !escaped && matches!(c, '*' | '?' | '[');
        escaped = !escaped && c == '\\';
        special
    })
}

/// A word without stars: what a backslash stands before is itself.
fn unescape(word: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = word.bytes();
    while let Some(byte) = bytes.next() {
        out.push(if byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte });
    }
    out
}

fn list(tree: &Tree<'_>, path: &[u8]) -> Result<Vec<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = Path::new(OsStr::from_bytes(path));
    let dir = sys::path::locate_dir(tree.root, place, Links::Follow)?;
    let dir = rustix::fs::openat(&dir, ".", flags, Mode::empty())?;
    let mut names: Vec<_> =
        sys::path::list(dir.as_fd())?.into_iter().map(|n| n.as_bytes().to_vec()).collect();
    names.sort_unstable();
    Ok(names)
}

fn below(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

/// Paths that fit a pattern, part by part; `**` stands for any folders, if it is known here.
fn expand(
    tree: &Tree<'_>,
    pattern: &[&[u8]],
    at: Vec<u8>,
    stars: bool,
    found: &mut Vec<Vec<u8>>,
) -> Result<()> {
    let Some((first, rest)) = pattern.split_first() else {
        found.push(at);
        return Ok(());
    };
    let here = real(tree.root, &at, Last::Follow)?;
    if !here.is_dir() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(first);
    if !is_pattern(&text) {
        let path = below(&at, &unescape(&text));
        if real(tree.root, &path, Last::Keep).is_ok_and(|r| r.stat.is_some()) {
            expand(tree, rest, path, stars, found)?;
        }
        return Ok(());
    }
    if stars && *first == b"**" {
        expand(tree, rest, at.clone(), stars, found)?;
    }
    for name in list(tree, &at)? {
        let path = below(&at, &name);
        if stars && *first == b"**" {
            // A link to a folder is no folder in it.
            let real = real(tree.root, &path, Last::Keep)?;
            if real.is_dir() {
                expand(tree, pattern, path, stars, found)?;
            } else if rest.is_empty() {
                found.push(path);
            }
        } else if glob::matches(first, &name) {
            expand(tree, rest, path, stars, found)?;
        }
    }
    Ok(())
}

/// What is at a path; None: nothing, or nothing that is not left out.
fn source(tree: &Tree<'_>, path: &[u8], wish: Wish<'_>) -> Result<Option<Source>> {
    let title = || format!("{:?} in {}", String::from_utf8_lossy(path), tree.title);
    let real = real(tree.root, path, Last::Follow).with_context(title)?;
    let Some(stat) = real.stat else { return Ok(None) };
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec();
    let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let mut walk = Walk { tree, exclude: wish.exclude, items: Vec::new(), links: Default::default() };
    let place = Path::new(OsStr::from_bytes(&real.path));
    if folder {
        let dir = sys::path::locate_dir(tree.root, place, Links::Refuse).with_context(title)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&dir, ".", flags, Mode::empty()).with_context(title)?;
        let kept = walk.folder(dir, &real.path, b"", 0)?;
        if !kept && !real.path.is_empty() {
            return Ok(None);
        }
    } else {
        if tree.ignore.is_some_and(|i| i.leaves_out(&String::from_utf8_lossy(&real.path)))
            || wish.exclude.leaves_out(&String::from_utf8_lossy(&name))
            || wish.exclude.leaves_out(&String::from_utf8_lossy(path))
        {
            return Ok(None);
        }
        let above = real.path.len() - real.path.rsplit(|b| *b == b'/').next().unwrap_or_default().len();
        let above = Path::new(OsStr::from_bytes(&real.path[..above]));
        let dir = sys::path::locate_dir(tree.root, above, Links::Refuse).with_context(title)?;
        let last = real.path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        walk.item(dir.as_fd(), last, &real.path, &name).with_context(title)?;
        if walk.items.is_empty() {
            bail!("{}: a socket cannot be copied", title());
        }
    }
    Ok(Some(Source { name, folder, items: walk.items }))
}

/// `COPY --parents`: the folders on the way come along, from `/./` on if that is there.
fn with_parents(tree: &Tree<'_>, word: &str, wish: Wish<'_>) -> Result<Vec<Source>> {
    let pivot = word.find("/./").map_or(0, |at| parts(&word.as_bytes()[..at]).len());
    let pattern = parts(word.as_bytes());
    let mut paths = Vec::new();
    expand(tree, &pattern, Vec::new(), true, &mut paths)?;
    paths.dedup();
    let mut found = Vec::new();
    for path in paths {
        let Some(mut taken) = source(tree, &path, wish)? else { continue };
        let all: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|p| !p.is_empty()).collect();
        let pivot = pivot.min(all.len());
        let mut items = Vec::new();
        for end in pivot + 1..all.len() {
            let from = all[..end].join(&b'/');
            let real = real(tree.root, &from, Last::Follow)?;
            let place = Path::new(OsStr::from_bytes(&real.path));
            let dir = sys::path::open_dir(tree.root, place)?;
            items.push(self::folder(tree, dir.as_fd(), &from, &all[pivot..end].join(&b'/'))?);
        }
        let base = all[pivot..].join(&b'/');
        for mut item in taken.items {
            item.header.path = match (&item.header.path[..], taken.folder) {
                (_, false) => base.clone(),
                (b"", true) => base.clone(),
                (rest, true) => below(&base, rest),
            };
            items.push(item);
        }
        taken.items = items;
        taken.folder = true;
        found.push(taken);
    }
    Ok(found)
}

fn folder(tree: &Tree<'_>, dir: BorrowedFd<'_>, from: &[u8], path: &[u8]) -> Result<Item> {
    let stat = rustix::fs::fstat(dir)?;
    let mut header = walk::header(Kind::Directory, path, &stat);
    match tree.owned {
        true => walk::own_attributes(&mut header, dir)?,
        false => walk::foreign_attributes(&mut header, dir)?,
    }
    Ok(Item { from: from.to_vec(), header, sum: None, stat })
}

struct Walk<'a, 't> {
    tree: &'a Tree<'t>,
    exclude: &'a Ignore,
    items: Vec<Item>,
    /// First names of files that have several.
    links: std::collections::HashMap<(u64, u64), Vec<u8>>,
}

impl Walk<'_, '_> {
    fn left_out(&self, from: &[u8], rel: &[u8]) -> bool {
        let (from, rel) = (String::from_utf8_lossy(from), String::from_utf8_lossy(rel));
        self.tree.ignore.is_some_and(|i| i.leaves_out(&from))
            || self.exclude.leaves_out(&rel)
            || self.exclude.leaves_out(&from)
    }

    /// Something in a folder that is left out may be kept.
    fn kept_below(&self, from: &[u8], rel: &[u8]) -> bool {
        let (from, rel) = (String::from_utf8_lossy(from), String::from_utf8_lossy(rel));
        let context = |i: &Ignore| !i.leaves_out(&from) || i.keeps_below(&from);
        self.tree.ignore.is_none_or(context)
            && (!self.exclude.leaves_out(&rel) && !self.exclude.leaves_out(&from)
                || self.exclude.keeps_below(&rel))
    }

    /// A folder and what is in it; whether anything of it is taken.
    fn folder(&mut self, dir: OwnedFd, from: &[u8], rel: &[u8], depth: usize) -> Result<bool> {
        ensure!(depth < DEPTH_MOST, "{}: more than {DEPTH_MOST} folders in each other", from.escape_ascii());
        let title = || from.escape_ascii().to_string();
        let out = !rel.is_empty() && self.left_out(from, rel);
        let first = self.items.len();
        self.items.push(folder(self.tree, dir.as_fd(), from, rel).with_context(title)?);
        let mut names = sys::path::list(dir.as_fd()).with_context(title)?;
        names.sort_unstable();
        let ours = self.tree.ignore.is_some() || !self.exclude.is_empty();
        for name in names {
            let (from, rel) = (below(from, name.as_bytes()), below(rel, name.as_bytes()));
            let gone = ours && self.left_out(&from, &rel);
            if gone && !self.kept_below(&from, &rel) {
                continue;
            }
            let title = || from.escape_ascii().to_string();
            let stat = rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW).with_context(title)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let child = rustix::fs::openat(&dir, &name, flags, Mode::empty()).with_context(title)?;
                self.folder(child, &from, &rel, depth + 1)?;
            } else if !gone {
                self.known(dir.as_fd(), name.as_bytes(), &from, &rel, stat).with_context(title)?;
            }
        }
        if out && self.items.len() == first + 1 {
            self.items.pop();
        }
        Ok(self.items.len() > first)
    }

    fn item(&mut self, dir: BorrowedFd<'_>, name: &[u8], from: &[u8], rel: &[u8]) -> Result<()> {
        let stat = rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?;
        self.known(dir, name, from, rel, stat)
    }

    /// What is no folder.
    fn known(&mut self, dir: BorrowedFd<'_>, name: &[u8], from: &[u8], rel: &[u8], stat: Stat) -> Result<()> {
        let name = OsStr::from_bytes(name);
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::Character,
            FileType::BlockDevice => Kind::Block,
            _ => return Ok(()),
        };
        let mut header = walk::header(kind, rel, &stat);
        if stat.st_nlink > 1 {
            match self.links.get(&(stat.st_dev, stat.st_ino)) {
                Some(first) => {
                    header.kind = Kind::Hardlink;
                    header.link.clone_from(first);
                    self.items.push(Item { from: from.to_vec(), header, sum: None, stat });
                    return Ok(());
                }
                None => drop(self.links.insert((stat.st_dev, stat.st_ino), rel.to_vec())),
            }
        }
        let mut sum = None;
        match kind {
            Kind::File => {
                header.size = stat.st_size.unsigned_abs();
                sum = Some(match self.tree.index.and_then(|index| index.get(&stat)) {
                    Some(sum) => sum,
                    None => {
                        let file = open(dir, name, &stat)?;
                        match self.tree.index {
                            Some(index) => index.read(&file, &stat)?,
                            None => index::sum(&file, header.size)?,
                        }
                    }
                });
            }
            Kind::Symlink => header.link = rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes(),
            _ => {}
        }
        self.items.push(Item { from: from.to_vec(), header, sum, stat });
        Ok(())
    }
}

/// Open a file that was looked at.
fn open(dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
    let now = rustix::fs::fstat(&file)?;
    ensure!((now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino), "it was replaced meanwhile");
    Ok(file)
}

impl Item {
    /// Open it again: it must be what it was.
    pub fn open(&self, root: BorrowedFd<'_>) -> Result<File> {
        let place = Path::new(OsStr::from_bytes(&self.from));
        let file = File::from(sys::path::open(root, place, Links::Refuse)?);
        let now = rustix::fs::fstat(&file)?;
        let says = |s: &Stat| (s.st_dev, s.st_ino, s.st_size, s.st_mtime, s.st_mtime_nsec);
        ensure!(says(&now) == says(&self.stat), "it has changed while it was being built");
        Ok(file)
    }
}
