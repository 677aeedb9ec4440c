//! Where do the files of COPY and ADD go, and what are they like there?

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, bail, ensure};
use image::layer::tar::{Header, Kind};
use image::layer::walk;
use rustix::fs::FileType;

use super::layer::{Content, Entries};
use super::mode::Chmod;
use super::pick::Source;
use super::real::{self, Last, Real, real};

/// What is asked for beside the files.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    /// Absolute; a slash at its end says that it is a folder.
    pub to: &'a str,
    /// None: root, or whoever owns it in the tree that it comes from.
    pub owner: Option<(u32, u32)>,
    pub chmod: Option<&'a Chmod>,
    /// Owners in the tree that it comes from count.
    pub owned: bool,
    /// Folders come with their names, below the destination (`--parents`).
    pub parents: bool,
}

/// What a layer's entries are put into; the lower layers are looked at where there are any.
pub struct Placing<'a, 'e> {
    /// None: the layer is to be the same on whatever it lies.
    pub view: Option<BorrowedFd<'a>>,
    pub entries: &'e mut Entries<'a>,
}

impl<'a> Placing<'a, '_> {
    /// Where a path leads, with links in the lower layers resolved.
    pub fn resolve(&self, path: &[u8]) -> Result<Real> {
        match self.view {
            Some(view) => real(view, path, Last::Follow).with_context(|| format!("/{}", path.escape_ascii())),
            None => Ok(Real { path: real::parts(path).join(&b'/'), stat: None, there: 0 }),
        }
    }

    /// What is at a path without links, in this layer or below.
    fn kind(&self, path: &[u8]) -> Result<Option<FileType>> {
        if let Some(header) = self.entries.get(path) {
            return Ok(Some(match header.kind {
                Kind::Directory => FileType::Directory,
                Kind::Symlink => FileType::Symlink,
                _ => FileType::RegularFile,
            }));
        }
        let Some(view) = self.view.filter(|_| !self.entries.is_in_new(path)) else { return Ok(None) };
        Ok(real::stat(view, path)?.map(|stat| FileType::from_raw_mode(stat.st_mode)))
    }

    /// A folder and those above it are part of this: as they are in the lower layers, or new.
    pub fn folders(&mut self, path: &[u8], owner: (u32, u32)) -> Result<()> {
        let parts = real::parts(path);
        for end in 1..=parts.len() {
            let path = parts[..end].join(&b'/');
            let title = || format!("/{}", path.escape_ascii());
            if let Some(header) = self.entries.get(&path) {
                ensure!(header.kind == Kind::Directory, "{}: it is no folder", title());
                continue;
            }
            let mut header =
                Header { mode: 0o755, uid: owner.0, gid: owner.1, ..Header::new(Kind::Directory, &path[..]) };
            if let Some(view) = self.view {
                match real::stat(view, &path).with_context(title)? {
                    Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                        let place = std::path::Path::new(std::ffi::OsStr::new(""))
                            .join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&path));
                        let dir = sys::path::open_dir(view, &place).with_context(title)?;
                        header = walk::header(Kind::Directory, &path, &stat);
                        walk::own_attributes(&mut header, std::os::fd::AsFd::as_fd(&dir))
                            .with_context(title)?;
                    }
                    Some(_) => bail!("{}: it is no folder", title()),
                    None => self.entries.is_new(&path),
                }
            }
            self.entries.put(header, Content::None);
        }
        Ok(())
    }

    /// Put what was picked where it belongs.
    pub fn place(&mut self, sources: &'a [Source], root: BorrowedFd<'a>, how: How<'_>) -> Result<()> {
        let named = how.to.ends_with('/') || how.parents;
        let to = self.resolve(how.to.as_bytes())?;
        let owner = how.owner.unwrap_or((0, 0));
        // What is there may have come with this very instruction.
        let there = match to.kind() {
            Some(kind) => Some(kind),
            None => self.kind(&to.path)?,
        };
        let is_dir = to.path.is_empty() || there == Some(FileType::Directory);
        let title = |path: &[u8]| format!("/{}", path.escape_ascii());
        for source in sources {
            let base = match source.folder {
                true => {
                    ensure!(there.is_none() || is_dir, "{}: it is no folder", title(&to.path));
                    to.path.clone()
                }
                false if named || is_dir => {
                    ensure!(there.is_none() || is_dir, "{}: it is no folder", title(&to.path));
                    join(&to.path, &source.name)
                }
                false => to.path.clone(),
            };
            let above = match (source.folder, base.iter().rposition(|b| *b == b'/')) {
                (true, _) if source.items.first().is_some_and(|i| !i.header.path.is_empty()) || is_dir => {
                    &base[..]
                }
                (_, Some(at)) => &base[..at],
                (_, None) => b"",
            };
            self.folders(above, owner)?;
            for item in &source.items {
                let path = match source.folder {
                    true => join(&base, &item.header.path),
                    false => base.clone(),
                };
                let kind = item.header.kind;
                // A folder that is there stays as it is, as the place where others go; those in it become what they are here.
                if kind == Kind::Directory
                    && item.header.path.is_empty()
                    && (is_dir || self.entries.has(&path))
                {
                    continue;
                }
                if path.is_empty() {
                    continue;
                }
                match (kind, self.kind_below(&path)?) {
                    (Kind::Directory, None) => self.entries.is_new(&path),
                    (Kind::Directory, Some(found)) if found != FileType::Directory => {
                        bail!("{}: it is no folder, and a folder cannot take its place", title(&path))
                    }
                    (kind, Some(FileType::Directory)) if kind != Kind::Directory => {
                        bail!("{}: it is a folder, which a file cannot take the place of", title(&path))
                    }
                    _ => {}
                }
                let mut header = item.header.at(path);
                if let Some((uid, gid)) = how.owner {
                    (header.uid, header.gid) = (uid, gid);
                } else if !how.owned {
                    (header.uid, header.gid) = (0, 0);
                }
                if let Some(chmod) = how.chmod
                    && kind != Kind::Symlink
                {
                    header.mode = chmod.apply(header.mode, kind == Kind::Directory);
                }
                if kind == Kind::Hardlink {
                    header.link = join(&base, &item.header.link);
                }
                let content = match kind {
                    Kind::File => Content::File(item, root, how.owned),
                    _ => Content::None,
                };
                self.entries.put(header, content);
            }
        }
        Ok(())
    }

    /// What is at a path; nothing is looked up below what is new.
    fn kind_below(&self, path: &[u8]) -> Result<Option<FileType>> {
        if self.view.is_none() && !self.entries.has(path) {
            return Ok(None);
        }
        self.kind(path)
    }

    /// Put files that stand in the Dockerfile itself.
    pub fn inline(&mut self, name: &str, content: &str, mtime: i64, how: How<'_>) -> Result<()> {
        let to = self.resolve(how.to.as_bytes())?;
        let is_dir = how.to.ends_with('/') || to.is_dir() || to.path.is_empty();
        let base = if is_dir { join(&to.path, name.as_bytes()) } else { to.path.clone() };
        let owner = how.owner.unwrap_or((0, 0));
        self.folders(base.iter().rposition(|b| *b == b'/').map_or(&b""[..], |at| &base[..at]), owner)?;
        if self.kind_below(&base)? == Some(FileType::Directory) {
            bail!("/{}: it is a folder, which a file cannot take the place of", base.escape_ascii());
        }
        let mut header = Header { mode: 0o644, uid: owner.0, gid: owner.1, ..Header::new(Kind::File, base) };
        header.mtime = (mtime, 0);
        if let Some(chmod) = how.chmod {
            header.mode = chmod.apply(header.mode, false);
        }
        self.entries.put(header, Content::Bytes(content.as_bytes().to_vec()));
        Ok(())
    }
}

fn join(above: &[u8], name: &[u8]) -> Vec<u8> {
    match (above, name) {
        (b"", name) => name.to_vec(),
        (above, b"") => above.to_vec(),
        (above, name) => [above, b"/", name].concat(),
    }
}
