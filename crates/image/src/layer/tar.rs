//! How does a tar archive become entries, and entries an archive? Reads what tools write (v7, ustar, GNU, PAX; tar(5)) and writes
//! one canonical form: the same entries always make the same bytes.
//!
//! Where archives can be read in several ways, this reads them as Go's `archive/tar` does, since that is what a layer's author has
//! tried: links, devices and folders have no content, global PAX headers say nothing, the first two empty blocks are the end.

use std::io::{self, BufRead, Read, Write};

use anyhow::{Context, Result, bail, ensure};

/// A block.
pub const BLOCK: usize = 512;
/// Bytes that a PAX header, or the map of a sparse file, may have.
const EXTENSION_MOST: u64 = 1 << 20;
/// Bytes that a path may have (`PATH_MAX`).
const PATH_MOST: usize = 4096;
/// Pieces that a sparse file may have.
const PIECES_MOST: usize = 1 << 16;
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Hardlink,
    Character,
    Block,
    Fifo,
}

impl Kind {
    fn flag(self) -> u8 {
        match self {
            Kind::File => b'0',
            Kind::Hardlink => b'1',
            Kind::Symlink => b'2',
            Kind::Character => b'3',
            Kind::Block => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        }
    }
}

/// An entry without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// As it stands there, without the slash at a folder's end.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Bytes of a file's content, holes included.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Major and minor number.
    pub device: (u32, u32),
    /// Names and values, in the order of the names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the content lies in a sparse file: offsets and lengths, in order. `None`: from its first byte to its last.
    pub pieces: Option<Vec<(u64, u64)>>,
}

impl Header {
    /// An entry of root's, with everything else at zero.
    pub fn new(kind: Kind, path: impl Into<Vec<u8>>) -> Header {
        Header {
            path: path.into(),
            kind,
            link: Vec::new(),
            size: 0,
            mode: if kind == Kind::Directory { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            device: (0, 0),
            xattrs: Vec::new(),
            pieces: None,
        }
    }

    /// The same, but no later than that (seconds since 1970).
    pub fn no_later_than(&self, latest: i64) -> Header {
        let mut header = self.clone();
        header.mtime = header.mtime.min((latest, 0));
        header
    }

    /// The same, at another path.
    pub fn at(&self, path: Vec<u8>) -> Header {
        let Header { path: _, kind, link, size, mode, uid, gid, mtime, device, xattrs, pieces } = self;
        let (link, xattrs, pieces) = (link.clone(), xattrs.clone(), pieces.clone());
        let (kind, size, mode, uid, gid) = (*kind, *size, *mode, *uid, *gid);
        Header { path, kind, link, size, mode, uid, gid, mtime: *mtime, device: *device, xattrs, pieces }
    }

    /// The path, for people.
    pub fn title(&self) -> String {
        self.path.escape_ascii().to_string()
    }
}

/// Reads an archive, entry by entry.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    /// Bytes of the entry's content that were not read yet, as they are stored.
    left: u64,
    /// Bytes that fill its last block.
    padding: u64,
    ended: bool,
}

/// A sparse file's content, with zeros where holes are.
#[derive(Debug)]
pub struct Whole<'a, R> {
    stored: &'a mut R,
    pieces: &'a [(u64, u64)],
    at: u64,
    next: usize,
}

impl<'a, R> Whole<'a, R> {
    /// `stored` is what the pieces hold, one after the other: offsets and lengths, in bytes.
    pub fn new(stored: &'a mut R, pieces: &'a [(u64, u64)]) -> Whole<'a, R> {
        Whole { stored, pieces, at: 0, next: 0 }
    }
}

impl<R: Read> Read for Whole<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.pieces.get(self.next).is_some_and(|(offset, length)| self.at >= offset + length) {
            self.next += 1;
        }
        let n = match self.pieces.get(self.next) {
            Some((offset, length)) if self.at >= *offset => {
                let most = (offset + length - self.at).min(buffer.len() as u64) as usize;
                self.stored.read(&mut buffer[..most])?
            }
            found => {
                let end = found.map_or(u64::MAX, |(offset, _)| *offset);
                let n = (end - self.at).min(buffer.len() as u64) as usize;
                buffer[..n].fill(0);
                n
            }
        };
        self.at += n as u64;
        Ok(n)
    }
}

/// What PAX headers and GNU's long names say of the entry after them.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

/// GNU's records of sparse files in PAX headers.
#[derive(Default)]
struct Sparse {
    version: Option<(u64, u64)>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Versions 0.0 and 0.1.
    numbers: Vec<u64>,
}

impl<R: BufRead> Reader<R> {
    pub fn new(from: R) -> Reader<R> {
        Reader { from, left: 0, padding: 0, ended: false }
    }

    /// What it reads from.
    pub fn get_ref(&self) -> &R {
        &self.from
    }

    /// What it reads from.
    pub fn into_inner(self) -> R {
        self.from
    }

    /// The next entry, `None` after the last. What was not read of the content of the one before is passed over.
    pub fn entry(&mut self) -> Result<Option<Header>> {
        let mut extension = Extension::default();
        loop {
            self.skip().context("tar")?;
            let Some(block) = self.header_block()? else { return Ok(None) };
            let size = number(&block[124..136]).context("tar: size")?;
            match block[156] {
                b'x' | b'X' => {
                    let records = self.extension(size)?;
                    extension.pax(&records)?;
                }
                // Of all entries: written by git, and read by nobody.
                b'g' => {
                    self.extension(size)?;
                }
                b'L' => extension.path = Some(until_nul(&self.extension(size)?).to_vec()),
                b'K' => extension.link = Some(until_nul(&self.extension(size)?).to_vec()),
                _ => return self.header(&block, size, extension).map(Some),
            }
        }
    }

    fn header(&mut self, block: &[u8; BLOCK], size: u64, extension: Extension) -> Result<Header> {
        let old = until_nul(&block[..100]);
        let mut path = match &block[257..263] {
            // GNU's own format keeps other things there.
            b"ustar\0" if block[345] != 0 => [until_nul(&block[345..500]), b"/", old].concat(),
            _ => old.to_vec(),
        };
        let named = extension.path.is_some();
        if let Some(long) = extension.path {
            path = long;
        }
        if let Some(name) = &extension.sparse.name {
            path.clone_from(name);
        }
        let at = |path: &[u8]| format!("tar: entry {}", path.escape_ascii());
        let kind = match block[156] {
            // Before 1988 a folder was told by its slash.
            b'0' | 0 | b'7' if path.ends_with(b"/") && !(named && block[156] == b'0') => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => bail!("{}: unknown type {:?}", at(&path), char::from(other)),
        };
        let trimmed = path.iter().rposition(|b| *b != b'/').map_or(0, |last| last + 1);
        path.truncate(trimmed.max(usize::from(!path.is_empty())));
        let numbers = || -> Result<(u32, u32, u32, (i64, u32))> {
            let id = |field: &[u8], own: Option<u32>| match own {
                Some(id) => Ok(id),
                None => identity(number(field)?),
            };
            Ok((
                (number(&block[100..108]).context("mode")? & 0o7777) as u32,
                id(&block[108..116], extension.uid).context("uid")?,
                id(&block[116..124], extension.gid).context("gid")?,
                match extension.mtime {
                    Some(mtime) => mtime,
                    None => (signed(&block[136..148]).context("mtime")?, 0),
                },
            ))
        };
        let (mode, uid, gid, mtime) = numbers().with_context(|| at(&path))?;
        let mut header = Header {
            kind,
            link: Vec::new(),
            size: 0,
            mode,
            uid,
            gid,
            mtime,
            device: (0, 0),
            xattrs: extension.xattrs,
            pieces: None,
            path,
        };
        header.xattrs.sort();
        header.xattrs.dedup_by(|later, first| {
            let same = later.0 == first.0;
            if same {
                first.1 = std::mem::take(&mut later.1);
            }
            same
        });
        if matches!(kind, Kind::Hardlink | Kind::Symlink) {
            header.link = extension.link.unwrap_or_else(|| until_nul(&block[157..257]).to_vec());
        }
        if matches!(kind, Kind::Character | Kind::Block) {
            let part = |field: &[u8]| Ok::<_, anyhow::Error>(u32::try_from(number(field)?)?);
            let device = || Ok::<_, anyhow::Error>((part(&block[329..337])?, part(&block[337..345])?));
            header.device = device().with_context(|| format!("{}: device number", at(&header.path)))?;
        }
        let sound = |bytes: &[u8]| bytes.len() < PATH_MOST && !bytes.contains(&0);
        ensure!(
            sound(&header.path),
            "{}…: the path is no path",
            at(&header.path[..header.path.len().min(80)])
        );
        ensure!(sound(&header.link), "{}: the link leads to no path", at(&header.path));
        if kind == Kind::File {
            let stored = extension.size.unwrap_or(size);
            self.begin(stored);
            header.size = stored;
            self.sparse(&mut header, block, extension.sparse).with_context(|| at(&header.path))?;
        }
        Ok(header)
    }

    /// The content follows, of so many bytes.
    fn begin(&mut self, stored: u64) {
        self.left = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
    }

    /// Find out where the content of a sparse file lies.
    fn sparse(&mut self, header: &mut Header, block: &[u8; BLOCK], sparse: Sparse) -> Result<()> {
        let mut numbers = sparse.numbers;
        if block[156] == b'S' {
            header.size = number(&block[483..495]).context("size of a sparse file")?;
            let mut add = |fields: &[u8]| -> Result<bool> {
                for field in fields.chunks_exact(12) {
                    if field[0] == 0 {
                        return Ok(false);
                    }
                    numbers.push(number(field).context("map of a sparse file")?);
                }
                Ok(true)
            };
            add(&block[386..482])?;
            let mut more = block[482] != 0;
            let mut count = 0;
            while more {
                count += 1;
                ensure!(count * 21 <= PIECES_MOST, "a sparse file of more than {PIECES_MOST} pieces");
                let mut block = [0; BLOCK];
                self.from.read_exact(&mut block).context("map of a sparse file")?;
                add(&block[..504])?;
                more = block[504] != 0;
            }
        } else if let Some(size) = sparse.size {
            header.size = size;
            if sparse.version == Some((1, 0)) {
                let count = self.map_line()?;
                ensure!(count <= PIECES_MOST as u64, "a sparse file of more than {PIECES_MOST} pieces");
                for _ in 0..count * 2 {
                    numbers.push(self.map_line()?);
                }
                // The map fills whole blocks.
                let rest = self.left % BLOCK as u64;
                let fill = (rest + self.padding) % BLOCK as u64;
                let fill = fill.min(self.left);
                self.pass(fill)?;
                self.left -= fill;
            }
        } else {
            ensure!(numbers.is_empty() && sparse.version.is_none(), "a sparse file without its size");
            return Ok(());
        }
        ensure!(numbers.len().is_multiple_of(2), "map of a sparse file: an offset without a length");
        let (mut end, mut stored, mut pieces) = (0_u64, 0_u64, Vec::new());
        for pair in numbers.chunks_exact(2) {
            let (offset, length) = (pair[0], pair[1]);
            let next = offset.checked_add(length).filter(|next| *next <= header.size && offset >= end);
            end = next.context("map of a sparse file: pieces that overlap or lie beyond its end")?;
            stored += length;
            if length > 0 {
                pieces.push((offset, length));
            }
        }
        ensure!(stored == self.left, "map of a sparse file: {stored} bytes, but {} follow", self.left);
        header.pieces = Some(pieces);
        Ok(())
    }

    /// A decimal number and a line break, of the map that a sparse file's content begins with.
    fn map_line(&mut self) -> Result<u64> {
        let mut value = 0_u64;
        loop {
            let mut byte = [0];
            ensure!(self.left > 0, "map of a sparse file: it is cut off");
            self.from.read_exact(&mut byte).context("map of a sparse file")?;
            self.left -= 1;
            match byte[0] {
                b'\n' => return Ok(value),
                digit @ b'0'..=b'9' => {
                    let next = value.checked_mul(10).and_then(|v| v.checked_add(u64::from(digit - b'0')));
                    value = next.context("map of a sparse file: a number too large")?;
                }
                _ => bail!("map of a sparse file: no number"),
            }
        }
    }

    /// The next header; `None` at the end.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut empty = 0;
        loop {
            let mut block = [0; BLOCK];
            if self.ended || !self.block(&mut block)? {
                self.ended = true;
                return Ok(None);
            }
            if block.iter().all(|b| *b == 0) {
                empty += 1;
                self.ended = empty == 2;
                continue;
            }
            ensure!(empty == 0, "tar: an entry after an empty block");
            let told = number(&block[148..156]).context("tar: checksum")?;
            let sum = |value: fn(u8) -> i64| {
                let bytes = block.iter().enumerate();
                bytes.map(|(i, b)| if (148..156).contains(&i) { 32 } else { value(*b) }).sum::<i64>()
            };
            // Some old programs took the bytes for signed.
            let right = [sum(i64::from), sum(|b| i64::from(b.cast_signed()))];
            ensure!(
                right.iter().any(|sum| u64::try_from(*sum) == Ok(told)),
                "tar: a header with a wrong checksum"
            );
            return Ok(Some(block));
        }
    }

    /// Fill a block; false at the end.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let mut have = 0;
        while have < BLOCK {
            match self.from.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(false),
                Ok(0) => bail!("tar: cut off in a header"),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("tar"),
            }
        }
        Ok(true)
    }

    /// The content of a header that speaks of the next entry.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        ensure!(size <= EXTENSION_MOST, "tar: an extended header of {size} bytes, at most {EXTENSION_MOST}");
        self.begin(size);
        let mut bytes = vec![0; size as usize];
        self.read_exact(&mut bytes).context("tar: extended header")?;
        Ok(bytes)
    }

    /// Pass over what is left of an entry.
    fn skip(&mut self) -> io::Result<()> {
        let rest = self.left + std::mem::take(&mut self.padding);
        self.left = 0;
        self.pass(rest)
    }

    fn pass(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let have = self.from.fill_buf()?.len();
            if have == 0 {
                return Err(cut_off());
            }
            let n = count.min(have as u64);
            self.from.consume(n as usize);
            count -= n;
        }
        Ok(())
    }
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut off")
}

/// The content of the current entry, as it is stored: without the holes of a sparse file.
impl<R: BufRead> BufRead for Reader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let have = self.from.fill_buf()?;
        if have.is_empty() {
            return Err(cut_off());
        }
        let n = self.left.min(have.len() as u64);
        Ok(&have[..n as usize])
    }

    fn consume(&mut self, n: usize) {
        self.left -= n as u64;
        self.from.consume(n);
    }
}

impl<R: BufRead> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        super::read_through(self, buffer)
    }
}

impl Extension {
    /// pax(1), "pax Extended Header": records of `LENGTH KEY=VALUE` and a line break.
    fn pax(&mut self, mut records: &[u8]) -> Result<()> {
        while !records.is_empty() {
            let (key, value, rest) = record(records).context("tar: a PAX header that is none")?;
            self.record(key, value).with_context(|| format!("tar: PAX header {}", key.escape_ascii()))?;
            records = rest;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let decimal = |value: &[u8]| -> Result<u64> {
            let text = std::str::from_utf8(value)?;
            ensure!(text.bytes().all(|b| b.is_ascii_digit()), "{text:?} is no number");
            Ok(text.parse()?)
        };
        if let Some(name) = key.strip_prefix(XATTR) {
            ensure!(!name.is_empty() && !name.contains(&0), "no name of an attribute");
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        // An empty value takes back what was said.
        let given = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = given.map(<[u8]>::to_vec),
            b"linkpath" => self.link = given.map(<[u8]>::to_vec),
            b"size" => self.size = given.map(decimal).transpose()?,
            b"uid" => self.uid = given.map(|v| identity(decimal(v)?)).transpose()?,
            b"gid" => self.gid = given.map(|v| identity(decimal(v)?)).transpose()?,
            b"mtime" => self.mtime = given.map(time).transpose()?,
            b"GNU.sparse.major" => self.sparse.version.get_or_insert_default().0 = decimal(value)?,
            b"GNU.sparse.minor" => self.sparse.version.get_or_insert_default().1 = decimal(value)?,
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.size = Some(decimal(value)?),
            b"GNU.sparse.map" => {
                let numbers = value.split(|b| *b == b',').filter(|n| !n.is_empty()).map(decimal);
                self.sparse.numbers = numbers.collect::<Result<_>>()?;
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                ensure!(self.sparse.numbers.len() / 2 < PIECES_MOST, "more than {PIECES_MOST} pieces");
                self.sparse.numbers.push(decimal(value)?);
            }
            _ => {}
        }
        Ok(())
    }
}

/// A record of a PAX header, and what follows it.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    if length > records.len() || length < space + 3 || records[length - 1] != b'\n' {
        return None;
    }
    let body = &records[space + 1..length - 1];
    let equals = body.iter().position(|b| *b == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &records[length..]))
}

/// Seconds, with a fraction or without, before 1970 or after.
fn time(text: &[u8]) -> Result<(i64, u32)> {
    let text = std::str::from_utf8(text)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    let (negative, whole) = match whole.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, whole),
    };
    ensure!(digits(whole) && digits(fraction) && !whole.is_empty(), "{text:?} is no time");
    let seconds: i64 = whole.parse()?;
    let nanos: u32 = format!("{fraction:0<9.9}").parse()?;
    Ok(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// A uid or gid: 2³²−1 means "no change" to the kernel, so that a file would stay root's.
fn identity(value: u64) -> Result<u32> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => bail!("{value} is no id"),
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]
}

/// A number of a header that must not be negative.
fn number(field: &[u8]) -> Result<u64> {
    u64::try_from(signed(field)?).context("a negative number")
}

/// A number of a header: octal digits, or base 256 if the first bit is set.
fn signed(field: &[u8]) -> Result<i64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        for (i, byte) in field.iter().enumerate() {
            // The first bit is the mark; the second is the sign's.
            let byte = if i == 0 && !negative { byte & 0x7f } else { *byte };
            let shifted = value.checked_mul(256).context("a number too large")?;
            value = shifted | i64::from(byte);
        }
        return Ok(value);
    }
    let digits = |b: &u8| !matches!(b, b' ' | 0);
    let Some(from) = field.iter().position(digits) else { return Ok(0) };
    let to = field[from..].iter().position(|b| !digits(b)).map_or(field.len(), |n| from + n);
    let text = std::str::from_utf8(&field[from..to])?;
    ensure!(text.bytes().all(|b| matches!(b, b'0'..=b'7')), "{text:?} is no octal number");
    Ok(i64::from_str_radix(text, 8)?)
}

/// Writes an archive.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
    left: u64,
    padding: usize,
    position: u64,
}

impl<W: Write> Writer<W> {
    pub fn new(to: W) -> Writer<W> {
        Writer { to, left: 0, padding: 0, position: 0 }
    }

    /// Begin an entry; as many bytes as `size` says are written next, the holes of a sparse file as zeros.
    pub fn header(&mut self, header: &Header) -> io::Result<()> {
        self.end_entry()?;
        let mut block = [0_u8; BLOCK];
        let mut pax: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut path = header.path.clone();
        if header.kind == Kind::Directory && !path.ends_with(b"/") {
            path.push(b'/');
        }
        match split(&path) {
            Some((prefix, name)) => {
                block[..name.len()].copy_from_slice(name);
                block[345..345 + prefix.len()].copy_from_slice(prefix);
            }
            None => {
                pax.push((b"path".to_vec(), path.clone()));
                let short = &path[..path.len().min(100)];
                block[..short.len()].copy_from_slice(short);
            }
        }
        let link = &header.link[..header.link.len().min(100)];
        block[157..157 + link.len()].copy_from_slice(link);
        if header.link.len() > 100 || !header.link.is_ascii() {
            pax.push((b"linkpath".to_vec(), header.link.clone()));
        }
        let stored = if header.kind == Kind::File { header.size } else { 0 };
        let mut put = |key: &str, at: std::ops::Range<usize>, value: u64| {
            let width = at.len() - 1;
            let most = 1_u64.checked_shl(width as u32 * 3).map_or(u64::MAX, |m| m - 1);
            let fits = value <= most;
            let text = format!("{:0width$o}\0", if fits { value } else { 0 });
            block[at].copy_from_slice(text.as_bytes());
            if !fits {
                pax.push((key.as_bytes().to_vec(), value.to_string().into_bytes()));
            }
        };
        put("mode", 100..108, u64::from(header.mode & 0o7777));
        put("uid", 108..116, u64::from(header.uid));
        put("gid", 116..124, u64::from(header.gid));
        put("size", 124..136, stored);
        let (seconds, nanos) = header.mtime;
        let plain = u64::try_from(seconds).ok().filter(|s| nanos == 0 && *s < 1 << 33);
        put("mtime", 136..148, plain.unwrap_or(0));
        put("SCHILY.devmajor", 329..337, u64::from(header.device.0));
        put("SCHILY.devminor", 337..345, u64::from(header.device.1));
        if plain.is_none() {
            pax.push((b"mtime".to_vec(), time_text(header.mtime).into_bytes()));
        }
        for (name, value) in &header.xattrs {
            pax.push(([XATTR, name].concat(), value.clone()));
        }
        if !pax.is_empty() {
            pax.sort();
            let records: Vec<u8> = pax.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
            let mut extended = [0_u8; BLOCK];
            let last = path.trim_ascii_end().split(|b| *b == b'/').rfind(|part| !part.is_empty());
            let last = last.unwrap_or_default();
            let name = [b"PaxHeaders.0/", &last[..last.len().min(80)]].concat();
            extended[..name.len()].copy_from_slice(&name);
            extended[100..108].copy_from_slice(b"0000644\0");
            extended[108..116].copy_from_slice(b"0000000\0");
            extended[116..124].copy_from_slice(b"0000000\0");
            extended[124..136].copy_from_slice(format!("{:011o}\0", records.len()).as_bytes());
            extended[136..148].copy_from_slice(b"00000000000\0");
            self.block(&mut extended, b'x')?;
            self.put(&records)?;
            self.put(&[0; BLOCK][..records.len().wrapping_neg() % BLOCK])?;
        }
        self.block(&mut block, header.kind.flag())?;
        self.left = stored;
        self.padding = (stored.wrapping_neg() % BLOCK as u64) as usize;
        Ok(())
    }

    fn block(&mut self, block: &mut [u8; BLOCK], flag: u8) -> io::Result<()> {
        block[156] = flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.put(&block[..])
    }

    /// An entry with its content.
    pub fn entry(&mut self, header: &Header, content: &[u8]) -> io::Result<()> {
        self.header(&Header { size: content.len() as u64, ..header.clone() })?;
        self.write_all(content)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.to.write_all(bytes)
    }

    /// Where the next entry begins, once the current one is written: bytes from the archive's beginning.
    pub fn position(&self) -> u64 {
        self.position + self.left + self.padding as u64
    }

    fn end_entry(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::other(format!("tar: {} bytes of an entry are missing", self.left)));
        }
        let padding = std::mem::take(&mut self.padding);
        self.put(&[0; BLOCK][..padding])
    }

    /// Whole entries, as another archive has them.
    pub fn entries(&mut self, from: &mut impl io::Read, buffer: &mut [u8]) -> io::Result<()> {
        self.end_entry()?;
        loop {
            match from.read(buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => self.put(&buffer[..n])?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// End the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_entry()?;
        self.put(&[0; 2 * BLOCK])?;
        Ok(self.to)
    }
}

/// The content of the current entry.
impl<W: Write> Write for Writer<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if buffer.len() as u64 > self.left {
            return Err(io::Error::other("tar: more bytes than the entry has"));
        }
        let n = self.to.write(buffer)?;
        self.position += n as u64;
        self.left -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The two fields of a path in a ustar header; `None` if it does not fit, or is not of ASCII alone.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if !path.is_ascii() {
        return None;
    }
    if path.len() <= 100 {
        return Some((b"", path));
    }
    // The first slash that leaves a name short enough.
    let from = path.len() - 101;
    let at = from + path[from..path.len() - 1].iter().position(|b| *b == b'/')?;
    (at > 0 && at <= 155).then(|| (&path[..at], &path[at + 1..]))
}

fn time_text((seconds, nanos): (i64, u32)) -> String {
    if nanos == 0 {
        return seconds.to_string();
    }
    let (sign, seconds, nanos) = if seconds < 0 {
        ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos)
    } else {
        ("", seconds.unsigned_abs(), nanos)
    };
    let text = format!("{sign}{seconds}.{nanos:09}");
    text.trim_end_matches('0').to_owned()
}

/// Its length counts its own digits.
fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

#[cfg(test)]
mod tests;
