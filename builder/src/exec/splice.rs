//! How is a layer made of the one that it was before? Entries that are what they were are taken over from its archive as they stand
//! there, without a look at the files; the tree is the one from before, with a small one above it that holds what is other.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use anyhow::{Context, Result};
use image::Digest;
use image::digest::sha256;
use image::layer::tar::{Header, Kind};
use image::store::{Addition, Blob, Parts};

use super::layer::{Content, Entries, Writing};
use super::real;

/// Changes when the records do.
const MAGIC: &[u8; 16] = b"berth-entries-2\0";
/// Entries of a small layer are not worth remembering.
const ENTRIES_LEAST: usize = 64;
const BYTES_LEAST: u64 = 1 << 20;
/// One in so many entries may be other, or else the tree is made anew.
const SHARE: usize = 4;

/// What an entry of an archive is, its path aside.
pub type Identity = [u8; 16];

/// An entry of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known<'l> {
    pub path: &'l [u8],
    pub kind: u8,
    pub identity: &'l [u8],
    /// Where it begins; where the next does.
    pub range: (u64, u64),
}

impl Known<'_> {
    fn length(&self) -> u64 {
        self.range.1 - self.range.0
    }
}

/// The entries of an archive, in their order, as they are kept: a record each, with its path behind it.
///
/// ```text
/// 0       4      5          21                29              37
/// | bytes | kind | identity | where it begins | the next does | path |
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    bytes: Vec<u8>,
    /// Where each begins.
    at: Vec<usize>,
}

const IDENTITY: std::ops::Range<usize> = 5..21;
const PATH: usize = 37;

impl Default for List {
    fn default() -> List {
        List { bytes: MAGIC.to_vec(), at: Vec::new() }
    }
}

impl List {
    pub fn len(&self) -> usize {
        self.at.len()
    }

    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// Where the last of them ends.
    pub fn end(&self) -> u64 {
        self.iter().next_back().map_or(0, |known| known.range.1)
    }

    pub fn push(&mut self, path: &[u8], kind: u8, identity: &Identity, range: (u64, u64)) {
        self.at.push(self.bytes.len());
        self.bytes.extend((path.len() as u32).to_le_bytes());
        self.bytes.push(kind);
        self.bytes.extend(identity);
        self.bytes.extend(range.0.to_le_bytes());
        self.bytes.extend(range.1.to_le_bytes());
        self.bytes.extend(path);
    }

    /// What the entries are.
    pub fn identify(&mut self, identities: &[Identity]) {
        for (at, identity) in self.at.iter().zip(identities) {
            self.bytes[at + IDENTITY.start..at + IDENTITY.end].copy_from_slice(identity);
        }
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Known<'_>> {
        self.at.iter().enumerate().map(|(n, at)| {
            let end = self.at.get(n + 1).copied().unwrap_or(self.bytes.len());
            let record = &self.bytes[*at..end];
            let number = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap_or_default());
            Known {
                path: &record[PATH..],
                kind: record[4],
                identity: &record[IDENTITY],
                range: (number(21), number(29)),
            }
        })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        // A list that was cut short is none.
        [&self.bytes[..], &sha256(&self.bytes)].concat()
    }

    /// None: it is of another edition, or damaged.
    pub fn parse(mut bytes: Vec<u8>) -> Option<List> {
        let end = bytes.len().checked_sub(32)?;
        let (records, sum) = bytes.split_at(end);
        if sha256(records) != *sum || !records.starts_with(MAGIC) {
            return None;
        }
        bytes.truncate(end);
        let mut next = MAGIC.len();
        let mut at = Vec::new();
        while next < end {
            at.push(next);
            let length = bytes.get(next..next + 4)?.try_into().ok().map(u32::from_le_bytes)?;
            next = next.checked_add(PATH + length as usize).filter(|next| *next <= end)?;
        }
        Some(List { bytes, at })
    }
}

/// A layer that was made before by the same instruction.
#[derive(Debug)]
pub struct Before {
    pub list: Rc<List>,
    pub archive: Parts,
    /// The step that has a tree of its own, and its entries.
    pub tree: Option<(Digest, Rc<List>)>,
}

/// Of each entry what it is, in their order; nothing, if that cannot be known, or is not worth it.
pub fn identities(entries: &Entries<'_>, latest: Option<i64>) -> Option<Vec<Identity>> {
    let mut bytes = 0;
    let (mut all, mut room) = (Vec::new(), Vec::new());
    for (header, content) in entries.iter() {
        all.push(identity(header, content, latest, &mut room)?);
        bytes += header.size;
    }
    (all.len() >= ENTRIES_LEAST || bytes >= BYTES_LEAST).then_some(all)
}

/// `all`: room for what it depends on.
fn identity(
    header: &Header,
    content: &Content<'_>,
    latest: Option<i64>,
    all: &mut Vec<u8>,
) -> Option<Identity> {
    let Header { path: _, kind, link, mode, uid, gid, mtime, size, device, xattrs, .. } = header;
    let mtime = latest.map_or(*mtime, |latest| (*mtime).min((latest, 0)));
    all.clear();
    // Of a file 55 bytes, which is what one block of the hash function takes.
    all.push(*kind as u8);
    all.extend((*mode as u16).to_le_bytes());
    for n in [*uid, *gid, mtime.1] {
        all.extend(n.to_le_bytes());
    }
    all.extend(mtime.0.to_le_bytes());
    match content {
        Content::None => all.push(0),
        Content::Bytes(bytes) => all.extend(sha256(bytes)),
        // What the attributes in a tree of ours say of the owner is only seen when the file is read.
        Content::File(_, _, true) => return None,
        Content::File(item, _, false) => all.extend(item.sum?),
    }
    match kind {
        Kind::Character | Kind::Block => {
            all.extend([device.0, device.1].iter().flat_map(|n| n.to_le_bytes()))
        }
        Kind::File => {}
        _ => {
            all.extend((link.len() as u64).to_le_bytes());
            all.extend(link);
            all.extend(size.to_le_bytes());
        }
    }
    for part in xattrs.iter().flat_map(|(name, value)| [name, value]) {
        all.extend((part.len() as u64).to_le_bytes());
        all.extend(part);
    }
    sha256(all)[..16].try_into().ok()
}

/// What an archive is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    /// Of the archive from before.
    Old(u64, u64),
    /// An entry, by its number.
    New(usize),
}

/// An archive as pieces, and the entries that stand in it as they did.
fn pieces<'e>(
    entries: &'e Entries<'_>,
    identities: &[Identity],
    before: &'e Before,
) -> (Vec<Piece>, Vec<Option<Known<'e>>>) {
    let mut old = before.list.iter().peekable();
    let (mut all, mut same) = (Vec::new(), Vec::new());
    for (n, ((header, _), identity)) in entries.iter().zip(identities).enumerate() {
        while old.next_if(|o| Entries::order(o.path, &header.path).is_lt()).is_some() {}
        let known = old.next_if(|o| o.path == header.path).filter(|o| o.identity == identity);
        match (known, all.last_mut()) {
            (Some(known), Some(Piece::Old(_, to))) if *to == known.range.0 => *to = known.range.1,
            (Some(known), _) => all.push(Piece::Old(known.range.0, known.range.1)),
            (None, _) => all.push(Piece::New(n)),
        }
        same.push(known);
    }
    (all, same)
}

/// Write the archive: what is as it was, from where it stands.
pub fn archive(
    entries: &Entries<'_>,
    identities: &[Identity],
    before: &Before,
    writing: &mut Writing<'_>,
) -> Result<()> {
    let (pieces, same) = pieces(entries, identities, before);
    let all: Vec<_> = entries.iter().collect();
    let mut next = 0;
    for piece in pieces {
        match piece {
            Piece::New(n) => {
                super::layer::write_entry(all[n].0, all[n].1, writing)?;
                next = n + 1;
            }
            Piece::Old(from, to) => {
                writing.whole(&mut before.archive.read(from, to)).context(TAKING)?;
                for (known, (header, _)) in same[next..].iter().zip(&all[next..]) {
                    let Some(known) = known.filter(|k| (from..to).contains(&k.range.0)) else { break };
                    writing.listed(header, known.length());
                    next += 1;
                }
            }
        }
    }
    Ok(())
}

const TAKING: &str = "take over entries of the layer that was before";
/// Bytes of new entries that are kept in memory.
const MEMORY: u64 = 16 << 20;

/// The same, while others go on. None: too much is new.
pub fn archive_later(
    addition: &Addition<'_>,
    entries: &Entries<'_>,
    identities: &[Identity],
    before: &Before,
    latest: Option<i64>,
) -> Result<Option<(Later, List)>> {
    let (pieces, same) = pieces(entries, identities, before);
    let all: Vec<_> = entries.iter().collect();
    let new = pieces.iter().map(|p| match p {
        Piece::New(n) => all[*n].0.size,
        Piece::Old(..) => 0,
    });
    if new.sum::<u64>() > MEMORY {
        return Ok(None);
    }
    let mut parts = Parts::like(&before.archive);
    let mut lengths: Vec<u64> = same.iter().map(|k| k.map_or(0, |k| k.length())).collect();
    for piece in pieces {
        match piece {
            Piece::Old(from, to) => parts.take(&before.archive, from, to),
            Piece::New(n) => {
                let bytes = super::layer::entry_bytes(all[n].0, all[n].1, latest)?;
                lengths[n] = bytes.len() as u64;
                parts.push(&bytes);
            }
        }
    }
    // An archive's end.
    parts.push(&[0; 1024]);
    let mut at = 0;
    let mut list = List::default();
    for (((header, _), identity), length) in all.iter().zip(identities).zip(lengths) {
        list.push(&header.path, header.kind as u8, identity, (at, at + length));
        at += length;
    }
    let splicing = addition.splice(parts)?;
    let work = move || splicing.finish();
    let thread = std::thread::Builder::new().name("archive".to_owned()).spawn(work);
    Ok(Some((thread.context("start what writes a layer")?, list)))
}

/// An archive that is being made.
pub type Later = std::thread::JoinHandle<Result<Blob>>;

/// What a tree has to hold to be, above the one of `lower`, the tree of these entries: numbers of entries, and paths that are not
/// there any more. None: it is better made anew.
#[derive(Debug, Default)]
pub struct Delta {
    pub entries: Vec<usize>,
    pub gone: Vec<Vec<u8>>,
}

/// `view`: the layers below.
pub fn delta(
    entries: &Entries<'_>,
    identities: &[Identity],
    lower: &List,
    view: Option<BorrowedFd<'_>>,
) -> Result<Option<Delta>> {
    let hard = Kind::Hardlink as u8;
    // Names of one file stay together in one tree.
    if lower.iter().any(|o| o.kind == hard) || entries.iter().any(|(h, _)| h.kind == Kind::Hardlink) {
        return Ok(None);
    }
    let mut wanted = Vec::new();
    let mut gone: Vec<Vec<u8>> = Vec::new();
    let mut old = lower.iter().peekable();
    let most = lower.len() / SHARE;
    let mut leave = |known: Known<'_>| -> Result<bool> {
        if gone.last().is_some_and(|above| below(known.path, above)) {
            return Ok(true);
        }
        // Something below would come to light without it, and not with it.
        let Some(view) = view else { return Ok(false) };
        let hidden = real::stat(view, known.path)?.is_none();
        gone.push(known.path.to_vec());
        Ok(hidden && gone.len() <= most)
    };
    for (n, ((header, _), identity)) in entries.iter().zip(identities).enumerate() {
        while let Some(known) = old.next_if(|o| Entries::order(o.path, &header.path).is_lt()) {
            if !leave(known)? {
                return Ok(None);
            }
        }
        match old.next_if(|o| o.path == header.path) {
            Some(known) if known.identity == identity => {}
            Some(known) if known.kind != header.kind as u8 => return Ok(None),
            _ => wanted.push(n),
        }
        if wanted.len() > most {
            return Ok(None);
        }
    }
    for known in old {
        if !leave(known)? {
            return Ok(None);
        }
    }
    Ok(Some(Delta { entries: wanted, gone }))
}

fn below(path: &[u8], above: &[u8]) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.starts_with(b"/"))
}

/// Write what a delta holds, with the folders on the way.
pub fn write_delta(
    entries: &Entries<'_>,
    delta: &Delta,
    mut write: impl FnMut(&Header, &Content<'_>) -> Result<()>,
) -> Result<()> {
    let mut there: HashSet<Vec<u8>> = HashSet::new();
    let all: Vec<_> = entries.iter().collect();
    let mut folders =
        |path: &[u8], write: &mut dyn FnMut(&Header, &Content<'_>) -> Result<()>| -> Result<()> {
            let parts = real::parts(path);
            for end in 1..parts.len() {
                let above = parts[..end].join(&b'/');
                if !there.contains(&above)
                    && let Some(header) = entries.get(&above)
                {
                    write(header, &Content::None)?;
                    there.insert(above);
                }
            }
            there.insert(path.to_vec());
            Ok(())
        };
    for n in &delta.entries {
        let (header, content) = all[*n];
        folders(&header.path, &mut write)?;
        write(header, content)?;
    }
    for path in &delta.gone {
        folders(path, &mut write)?;
        let at = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let name = [&path[..at], b".wh.", &path[at..]].concat();
        write(&Header { mode: 0o600, ..Header::new(Kind::File, name) }, &Content::None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(all: &[(&str, &str)]) -> Entries<'static> {
        let mut entries = Entries::default();
        for (path, content) in all {
            match content {
                &"/" => entries.put(Header::new(Kind::Directory, path.as_bytes()), Content::None),
                text => {
                    let header =
                        Header { size: text.len() as u64, ..Header::new(Kind::File, path.as_bytes()) };
                    entries.put(header, Content::Bytes(text.as_bytes().to_vec()));
                }
            }
        }
        entries
    }

    fn known(entries: &Entries<'_>) -> (Vec<Identity>, List) {
        let identities: Vec<_> = entries
            .iter()
            .map(|(h, c)| identity(h, c, Some(0), &mut Vec::new()).expect("an identity"))
            .collect();
        let mut list = List::default();
        for (n, ((header, _), identity)) in entries.iter().zip(&identities).enumerate() {
            let at = n as u64 * 512;
            list.push(&header.path, header.kind as u8, &[0; 16], (at, at + 512));
            assert_eq!(list.end(), at + 512, "{identity:?}");
        }
        list.identify(&identities);
        (identities, list)
    }

    #[test]
    fn what_is_other_than_before() {
        let base = [
            ("d", "/"),
            ("d/a", "1"),
            ("d/b", "2"),
            ("d/c", "3"),
            ("d/e", "/"),
            ("d/e/f", "4"),
            ("g", "5"),
            ("h", "6"),
        ];
        let old = known(&entries(&base)).1;
        assert_eq!(List::parse(old.to_bytes()), Some(old.clone()));
        assert_eq!(List::parse(old.to_bytes()[1..].to_vec()), None);
        let second = old.iter().nth(1).map(|k| (k.path, k.kind, k.range));
        assert_eq!(second, Some((&b"d/a"[..], Kind::File as u8, (512, 1024))));
        let empty = tempfile::tempdir().expect("a folder");
        let empty = std::fs::File::open(empty.path()).expect("open");
        let view = std::os::fd::AsFd::as_fd(&empty);
        type Change = dyn Fn(&mut Vec<(&'static str, &'static str)>);
        let of = |change: &Change, view| {
            let mut now = base.to_vec();
            change(&mut now);
            let now = entries(&now);
            let identities = known(&now).0;
            let delta = delta(&now, &identities, &old, view).expect("a delta")?;
            let mut paths = Vec::new();
            write_delta(&now, &delta, |header, _| {
                paths.push(header.title());
                Ok(())
            })
            .expect("written");
            Some(paths)
        };
        assert_eq!(of(&|_| {}, None), Some(vec![]));
        assert_eq!(of(&|all| all[5].1 = "x", None), Some(vec!["d".into(), "d/e".into(), "d/e/f".into()]));
        assert_eq!(of(&|all| all.push(("i", "x")), None), Some(vec!["i".into()]));
        assert_eq!(of(&|all| all.truncate(7), Some(view)), Some(vec![".wh.h".into()]));
        // What is below is not known; too much is other; a folder is a file now.
        assert_eq!(of(&|all| all.truncate(7), None), None);
        assert_eq!(of(&|all| all[1..4].iter_mut().for_each(|e| e.1 = "x"), None), None);
        assert_eq!(of(&|all| all.splice(4..6, [("d/e", "x")]).for_each(drop), Some(view)), None);
        // A folder goes with all that is in it.
        let paths = of(&|all| all.drain(4..6).for_each(drop), Some(view));
        assert_eq!(paths, Some(vec!["d".into(), "d/.wh.e".into()]));
    }
}
