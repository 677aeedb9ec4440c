//! What does ADD fetch or unpack? Files and archives from the web, checkouts of repositories, and archives of the context.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use image::Digest;
use image::layer::compress::{Decoder, read_full};
use image::layer::tar::{Header, Kind, Reader, Whole};
use image::store::Addition;

use super::Build;
use super::copy::How;
use super::layer::{self, Entries, Made};
use super::pick::{self, Source};
use super::real::{self, Last, real};
use super::stage::Running;
use crate::ignore::Ignore;
use crate::plan::state::{self, Bring};

/// Bytes of an archive that are looked at.
const SNIFFED: usize = 512;

/// Something from the web, or a checkout.
#[derive(Debug)]
pub struct Download {
    /// What it is called in a folder.
    pub name: String,
    /// Of what it holds.
    pub digest: Digest,
    /// None: a checkout, in `folder`.
    pub file: Option<File>,
    pub folder: Option<OwnedFd>,
    /// When it was changed, if the server tells.
    pub modified: Option<i64>,
}

/// The same, as something to place.
pub enum Fetched {
    Archive(File),
    Tree { tree: OwnedFd, sources: Vec<Source> },
}

/// An archive that is to be unpacked.
#[derive(Debug)]
pub struct Archived {
    pub file: File,
    pub title: String,
}

/// Whether a source is fetched from elsewhere.
pub fn is_remote(word: &str) -> bool {
    word.starts_with("http://") || word.starts_with("https://") || is_git(word)
}

/// Whether it is a repository: `git@…`, `git://…`, `ssh://…`, or an address whose path ends in `.git`.
pub fn is_git(word: &str) -> bool {
    let path = word.split(['#', '?']).next().unwrap_or(word);
    let web = word.starts_with("http://") || word.starts_with("https://");
    word.starts_with("git@")
        || word.starts_with("git://")
        || word.starts_with("ssh://")
        || (web && path.ends_with(".git"))
}

/// Reads what archives hold, however they are compressed.
pub fn decoder(mut file: File) -> Result<Box<dyn Read + Send>> {
    let mut first = [0; 6];
    let have = read_full(&mut file, &mut first)?;
    file.rewind()?;
    let file = BufReader::with_capacity(128 << 10, file);
    Ok(match &first[..have] {
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(file)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(lzma_rust2::XzReader::new(file, true)),
        _ => Box::new(Decoder::new(file)?),
    })
}

/// Whether a file is an archive: what it holds, unpacked, begins with an entry's header.
pub fn is_archive(file: &File) -> Result<bool> {
    let mut copy = file.try_clone()?;
    copy.rewind()?;
    let mut block = [0; SNIFFED];
    let read = decoder(copy.try_clone()?).and_then(|mut d| Ok(read_full(&mut d, &mut block)?));
    copy.rewind()?;
    let Ok(have) = read else { return Ok(false) };
    if have < SNIFFED {
        return Ok(false);
    }
    let number = |field: &[u8]| {
        let text: String = field.iter().map(|b| char::from(*b)).filter(|c| c.is_digit(8)).collect();
        u64::from_str_radix(&text, 8).unwrap_or(u64::MAX)
    };
    let sum: u64 =
        block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) }).sum();
    Ok(block[0] != 0 && number(&block[148..156]) == sum)
}

/// Of what was picked, the archives; and the rest.
pub fn archives(sources: Vec<Source>, root: BorrowedFd<'_>) -> Result<(Vec<Archived>, Vec<Source>)> {
    let (mut found, mut rest) = (Vec::new(), Vec::new());
    for source in sources {
        let one = source.items.first().filter(|i| !source.folder && i.header.kind == Kind::File);
        if let Some(item) = one {
            let file = item.open(root)?;
            if is_archive(&file)? {
                found.push(Archived { file, title: String::from_utf8_lossy(&item.from).into_owned() });
                continue;
            }
        }
        rest.push(source);
    }
    Ok((found, rest))
}

/// Make a layer of entries and of what archives hold, below `to`.
#[allow(clippy::too_many_arguments, reason = "each is a different thing, once")]
pub fn unpack(
    addition: &Addition<'_>,
    entries: &Entries<'_>,
    archives: &[Archived],
    view: Option<BorrowedFd<'_>>,
    to: &[u8],
    how: How<'_>,
    latest: Option<i64>,
    tree: bool,
) -> Result<Made> {
    layer::write(addition, latest, tree, |writing| {
        layer::write_entries(entries, writing)?;
        for Archived { file, title } in archives {
            let mut reader = Reader::new(BufReader::with_capacity(128 << 10, decoder(file.try_clone()?)?));
            let mut folders = std::collections::HashMap::new();
            while let Some(header) = reader.entry().with_context(|| title.clone())? {
                let place = || format!("{title}: {}", header.title());
                let parts = safe(&header.path).with_context(place)?;
                let Some((last, above)) = parts.split_last() else { continue };
                ensure!(!last.starts_with(b".wh."), "{}: a layer cannot hold this name", place());
                let above = above.join(&b'/');
                let folder = match folders.get(&above) {
                    Some(folder) => folder,
                    None => {
                        let full = join(to, &above);
                        let found = match view {
                            Some(view) => real(view, &full, Last::Follow).with_context(place)?.path,
                            None => full,
                        };
                        folders.entry(above).or_insert(found)
                    }
                };
                let mut entry = Header { path: join(folder, last), pieces: None, ..header.clone() };
                if entry.kind == Kind::Hardlink {
                    entry.link = join(to, &safe(&header.link).with_context(place)?.join(&b'/'));
                }
                if let Some((uid, gid)) = how.owner {
                    (entry.uid, entry.gid) = (uid, gid);
                }
                if let Some(chmod) = how.chmod
                    && matches!(entry.kind, Kind::File | Kind::Directory)
                {
                    entry.mode = chmod.apply(entry.mode, entry.kind == Kind::Directory);
                }
                match &header.pieces {
                    None => writing.entry(&entry, &mut reader).with_context(place)?,
                    Some(pieces) => {
                        let mut whole = Whole::new(&mut reader, pieces);
                        writing.entry(&entry, &mut whole).with_context(place)?;
                    }
                }
            }
        }
        Ok(())
    })
}

/// The parts of an entry's path, which does not lead out.
fn safe(path: &[u8]) -> Result<Vec<&[u8]>> {
    let mut parts = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => ensure!(parts.pop().is_some(), "the path leads out of the archive"),
            part => parts.push(part),
        }
    }
    Ok(parts)
}

fn join(above: &[u8], below: &[u8]) -> Vec<u8> {
    let mut parts = real::parts(above);
    parts.extend(below.split(|b| *b == b'/').filter(|p| !p.is_empty()));
    parts.join(&b'/')
}

impl Running<'_, '_> {
    /// Get what an ADD names from elsewhere.
    pub(super) fn fetch(&self, words: &[&str], bring: &Bring, step: usize) -> Result<Vec<Download>> {
        let state::How::Add { checksum, keep_git_dir, .. } = &bring.how else { return Ok(Vec::new()) };
        ensure!(
            checksum.is_none() || (words.len() == 1 && bring.sources.len() == 1),
            "--checksum is for one source from the web"
        );
        let mut found = Vec::new();
        for word in words {
            (self.build.tell)(super::Event::Note { step, text: &format!("fetch {word}") });
            if !is_git(word) {
                let download = self.build.bases.download(word, checksum.as_deref())?;
                let digest =
                    (download.digest.algorithm().name().to_owned(), download.digest.hex().to_owned());
                super::lock(&self.build.shared.fetched).push(((*word).to_owned(), digest));
                found.push(download);
                continue;
            }
            let tree = self.build.addition.tree()?;
            let place = self.build.addition.place(&tree)?;
            self.build.bases.checkout(word, *keep_git_dir, &place)?;
            let head = std::fs::read_to_string(place.join(".berth-commit")).unwrap_or_default();
            let commit = ("gitCommit".to_owned(), head.trim().to_owned());
            super::lock(&self.build.shared.fetched).push(((*word).to_owned(), commit));
            if let Some(wanted) = checksum {
                ensure!(
                    head.trim().starts_with(wanted.as_str()),
                    "{word}: --checksum={wanted}, but it is at {}",
                    head.trim()
                );
            }
            std::fs::remove_file(place.join(".berth-commit")).context("a checkout")?;
            let tree = self.build.addition.hold(tree)?;
            let none = Ignore::default();
            let wish = pick::Wish { exclude: &none, parents: false };
            let of = pick::Tree {
                root: tree.as_fd(),
                title: (*word).to_owned(),
                ignore: None,
                index: None,
                owned: false,
            };
            let sources = pick::pick(&of, &["/"], wish)?;
            found.push(Download {
                name: String::new(),
                digest: pick::digest(&sources, false),
                file: None,
                folder: Some(tree),
                modified: None,
            });
        }
        Ok(found)
    }
}

impl Download {
    /// What is to be placed of it.
    pub(super) fn open(&self, bring: &Bring, build: &Build<'_>) -> Result<Fetched> {
        let state::How::Add { unpack, .. } = &bring.how else { bail!("this is no ADD") };
        let none = Ignore::default();
        let wish = pick::Wish { exclude: &none, parents: false };
        let pick = |tree: OwnedFd, word: &str| -> Result<Fetched> {
            let of = pick::Tree {
                root: tree.as_fd(),
                title: self.name.clone(),
                ignore: None,
                index: None,
                owned: false,
            };
            let sources = pick::pick(&of, &[word], wish)?;
            Ok(Fetched::Tree { tree, sources })
        };
        match (&self.file, &self.folder) {
            (Some(file), _) if *unpack == Some(true) && is_archive(file)? => {
                Ok(Fetched::Archive(file.try_clone()?))
            }
            (Some(file), _) => {
                // As a file in a folder of its own, of the name that it has.
                let tree = build.addition.tree()?;
                let place = build.addition.place(&tree)?.join(&self.name);
                let mut from = file.try_clone()?;
                from.rewind()?;
                let mut to = File::create(&place).with_context(|| format!("write {}", place.display()))?;
                std::io::copy(&mut from, &mut to)?;
                // dockerfile reference, ADD: such a file has the mode 600.
                std::fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
                if let Some(modified) = self.modified {
                    let time = std::time::UNIX_EPOCH
                        + std::time::Duration::from_secs(modified.max(0).unsigned_abs());
                    to.set_modified(time)?;
                }
                let tree = build.addition.hold(tree)?;
                pick(tree, &self.name.replace(['*', '?', '['], "?"))
            }
            (None, Some(folder)) => pick(folder.try_clone()?, "/"),
            (None, None) => bail!("nothing was fetched"),
        }
    }
}
