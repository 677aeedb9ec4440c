//! How do several layers become one? What of each is still there in the end is taken over; what they took away from the layers below
//! them stays away (image-spec, layer.md, "Whiteouts").

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, BufReader, Read, Write};

use anyhow::{Context, Result, bail, ensure};

use super::tar::{Header, Kind, Reader, Whole, Writer};
use super::whiteout::{Meaning, OPAQUE, PREFIX, meaning};

/// Entries of all layers together.
const ENTRIES_MOST: usize = 20_000_000;

/// Reads the archive of a layer.
pub type Open<'o> = dyn Fn(usize, &mut dyn FnMut(&mut (dyn Read + Send)) -> Result<()>) -> Result<()> + 'o;

/// An entry of a layer, by its number there.
type Entry = (usize, usize);

#[derive(Debug)]
enum Found {
    Folder(Box<Header>),
    /// With the entry that it is another name of.
    File(Entry, Option<Entry>),
    /// Nothing, whatever lower layers have.
    Gone,
}

/// What is at each path.
#[derive(Debug, Default)]
struct Merged {
    all: BTreeMap<Vec<u8>, Found>,
    /// Folders in which nothing of lower layers is seen.
    opaque: BTreeSet<Vec<u8>>,
    /// Lower layers stay below the new one.
    below: bool,
}

/// Paths in their order are folders before what is in them, and all of that before what comes after.
fn key(path: &[u8]) -> Vec<u8> {
    path.iter().map(|b| if *b == b'/' { 0 } else { *b }).collect()
}

fn path(key: &[u8]) -> Vec<u8> {
    key.iter().map(|b| if *b == 0 { b'/' } else { *b }).collect()
}

fn tidy(path: &[u8]) -> Result<Vec<u8>> {
    let mut parts = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => bail!("{}: a path that leads out", path.escape_ascii()),
            part if part.contains(&0) => bail!("{}: a path with a zero", path.escape_ascii()),
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

impl Merged {
    fn clear_below(&mut self, of: &[u8]) {
        let (from, to) =
            if of.is_empty() { (vec![], vec![255; 2]) } else { ([of, &[0]].concat(), [of, &[1]].concat()) };
        let gone: Vec<_> = self.all.range(from.clone()..to.clone()).map(|(k, _)| k.clone()).collect();
        gone.iter().filter(|k| !k.is_empty()).for_each(|k| drop(self.all.remove(k)));
        let gone: Vec<_> = self.opaque.range(from..to).cloned().collect();
        self.opaque.retain(|k| k.is_empty() || !gone.contains(k));
    }

    fn whiteout(&mut self, at: Vec<u8>) {
        self.clear_below(&at);
        self.opaque.remove(&at);
        match self.below {
            true => drop(self.all.insert(at, Found::Gone)),
            false => drop(self.all.remove(&at)),
        }
    }

    fn make_opaque(&mut self, at: Vec<u8>) {
        self.clear_below(&at);
        if self.below {
            self.opaque.insert(at);
        }
    }

    /// What was no folder is one now, in which nothing of lower layers is seen.
    fn folders_above(&mut self, of: &[u8]) {
        let ends: Vec<usize> = of.iter().enumerate().filter(|(_, b)| **b == 0).map(|(n, _)| n).collect();
        for end in ends {
            let above = of[..end].to_vec();
            if let Some(Found::Gone | Found::File(..)) = self.all.get(&above) {
                let header = Header { mode: 0o755, ..Header::new(Kind::Directory, path(&above)) };
                self.all.insert(above.clone(), Found::Folder(Box::new(header)));
                if self.below {
                    self.opaque.insert(above);
                }
            }
        }
    }

    fn put(&mut self, at: Vec<u8>, found: Found) {
        self.folders_above(&at);
        match (&found, self.all.get(&at)) {
            (Found::Folder(_), Some(Found::Folder(_)) | None) => {}
            (Found::Folder(_), Some(_)) => {
                if self.below {
                    self.opaque.insert(at.clone());
                }
            }
            _ => {
                self.clear_below(&at);
                self.opaque.remove(&at);
            }
        }
        self.all.insert(at, found);
    }
}

/// Write the archive that is the same as these `count` layers, the lowest first. `below`: there are lower layers, which stay.
pub fn squash(count: usize, open: &Open<'_>, below: bool, to: impl Write) -> Result<()> {
    let mut merged = Merged { below, ..Merged::default() };
    let mut entries = 0;
    for layer in 0..count {
        let (mut gone, mut opaque, mut new) = (Vec::new(), Vec::new(), Vec::new());
        let mut names: HashMap<Vec<u8>, Entry> = HashMap::new();
        open(layer, &mut |from| {
            let mut reader = Reader::new(BufReader::with_capacity(256 << 10, from));
            let mut number = 0;
            while let Some(header) = reader.entry()? {
                let here = (layer, number);
                number += 1;
                entries += 1;
                ensure!(entries <= ENTRIES_MOST, "more than {ENTRIES_MOST} entries");
                let full = tidy(&header.path)?;
                let at = full.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
                match meaning(&full[at..]) {
                    Meaning::Whiteout(name) => gone.push(key(&[&full[..at], name].concat())),
                    Meaning::Opaque => opaque.push(key(&full[..at.saturating_sub(1)])),
                    Meaning::Reserved => {}
                    Meaning::Plain => {
                        let found = match header.kind {
                            Kind::Directory => {
                                // The root has a name, too.
                                let path = if full.is_empty() { b".".to_vec() } else { full.clone() };
                                Found::Folder(Box::new(Header { path, ..header }))
                            }
                            Kind::Hardlink => {
                                let target = tidy(&header.link)?;
                                let of = names.get(&target).copied();
                                let of = of.with_context(|| {
                                    format!(
                                        "{}: a link to {}, which is not in its layer",
                                        header.title(),
                                        target.escape_ascii()
                                    )
                                })?;
                                names.insert(full.clone(), of);
                                Found::File(here, Some(of))
                            }
                            _ => {
                                names.insert(full.clone(), here);
                                Found::File(here, None)
                            }
                        };
                        new.push((key(&full), found));
                    }
                }
            }
            Ok(())
        })?;
        opaque.into_iter().for_each(|at| merged.make_opaque(at));
        gone.into_iter().for_each(|at| merged.whiteout(at));
        new.into_iter().for_each(|(at, found)| merged.put(at, found));
    }
    write(count, open, merged, to)
}

fn write(count: usize, open: &Open<'_>, merged: Merged, to: impl Write) -> Result<()> {
    let mut writer = Writer::new(to);
    // Names of each file that is still there; the first is the one with the content.
    let mut names: HashMap<Entry, Vec<Vec<u8>>> = HashMap::new();
    for (at, found) in &merged.all {
        match found {
            Found::Folder(header) => writer.header(header)?,
            Found::File(entry, of) => names.entry(of.unwrap_or(*entry)).or_default().push(path(at)),
            Found::Gone => {}
        }
    }
    for layer in 0..count {
        open(layer, &mut |from| {
            let mut reader = Reader::new(BufReader::with_capacity(256 << 10, from));
            let mut number = 0;
            while let Some(header) = reader.entry()? {
                let here = (layer, number);
                number += 1;
                let Some(all) = names.get(&here) else { continue };
                let mut first = None;
                for name in all {
                    match &first {
                        None => {
                            let plain = Header { path: name.clone(), pieces: None, ..header.clone() };
                            writer.header(&plain)?;
                            if header.kind == Kind::File {
                                let none = [(0, header.size)];
                                let pieces = header.pieces.as_deref().unwrap_or(&none);
                                let copied = io::copy(
                                    &mut Whole::new(&mut reader, pieces).take(header.size),
                                    &mut writer,
                                )?;
                                ensure!(copied == header.size, "{}: it is cut short", header.title());
                            }
                            first = Some(name.clone());
                        }
                        Some(link) => {
                            let link = link.clone();
                            let header = Header {
                                path: name.clone(),
                                kind: Kind::Hardlink,
                                link,
                                size: 0,
                                pieces: None,
                                ..header.clone()
                            };
                            writer.header(&header)?;
                        }
                    }
                }
            }
            Ok(())
        })?;
    }
    let mark = |name: Vec<u8>| Header { mode: 0o600, ..Header::new(Kind::File, name) };
    for at in &merged.opaque {
        let folder = path(at);
        let name = if folder.is_empty() { OPAQUE.to_vec() } else { [&folder[..], b"/", OPAQUE].concat() };
        writer.header(&mark(name))?;
    }
    for (at, found) in &merged.all {
        if matches!(found, Found::Gone) {
            let full = path(at);
            let last = full.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
            writer.header(&mark([&full[..last], PREFIX, &full[last..]].concat()))?;
        }
    }
    writer.finish()?.flush().context("write a layer")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name/`, `name=content`, `name>link`, `-name` for a whiteout, `name/!` for an opaque folder.
    fn archive(text: &str) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for word in text.split_whitespace() {
            let file = |name: &str| Header { mode: 0o644, ..Header::new(Kind::File, name.as_bytes()) };
            if let Some((name, link)) = word.split_once('>') {
                let header = Header { kind: Kind::Hardlink, link: link.into(), ..file(name) };
                writer.entry(&header, b"").unwrap();
            } else if let Some((name, content)) = word.split_once('=') {
                writer.entry(&file(name), content.as_bytes()).unwrap();
            } else if let Some(folder) = word.strip_suffix("/!") {
                writer.entry(&file(&format!("{folder}/.wh..wh..opq")), b"").unwrap();
            } else if let Some(gone) = word.strip_prefix('-') {
                let (folder, name) = gone.rsplit_once('/').map_or(("", gone), |(f, n)| (f, n));
                writer.entry(&file(&format!("{folder}/.wh.{name}")), b"").unwrap();
            } else {
                writer
                    .entry(&Header { mode: 0o755, ..Header::new(Kind::Directory, word.as_bytes()) }, b"")
                    .unwrap();
            }
        }
        writer.finish().unwrap()
    }

    fn text(bytes: &[u8]) -> Result<String> {
        let mut reader = Reader::new(bytes);
        let mut words = Vec::new();
        while let Some(header) = reader.entry()? {
            let mut content = String::new();
            reader.read_to_string(&mut content)?;
            words.push(match header.kind {
                Kind::Directory => format!("{}/", header.title().trim_end_matches('/')),
                Kind::Hardlink => format!("{}>{}", header.title(), header.link.escape_ascii()),
                _ => format!("{}={content}", header.title()),
            });
        }
        Ok(words.join(" "))
    }

    #[test]
    fn several_layers_are_one() {
        for (layers, below, expected) in [
            (&["a/ a/x=1", "a/y=2"][..], true, "a/ a/x=1 a/y=2"),
            (&["a/ a/x=1", "a/x=2"], true, "a/ a/x=2"),
            (&["a/ a/x=1", "a/ -a/x"], true, "a/ a/.wh.x="),
            (&["a/ a/x=1", "a/ -a/x"], false, "a/"),
            (&["a/ a/x=1 b=1", "-a"], true, "b=1 .wh.a="),
            // A folder in place of what is gone shows nothing of lower ones.
            (&["-a", "a/ a/x=1"], true, "a/ a/x=1 a/.wh..wh..opq="),
            (&["-a", "a/x=1"], true, "a/ a/x=1 a/.wh..wh..opq="),
            (&["a=1", "a/ a/x=1"], true, "a/ a/x=1 a/.wh..wh..opq="),
            (&["a=1", "a/ a/x=1"], false, "a/ a/x=1"),
            (&["a/ a/x=1 a/b/ a/b/c=1", "a/! a/y=2"], true, "a/ a/y=2 a/.wh..wh..opq="),
            (&["a/ a/x=1", "a=2"], true, "a=2"),
            (&["-a", "a=2"], true, "a=2"),
            // In one layer the order does not matter.
            (&["a/ a/x=1", "a/y=2 a/!"], true, "a/ a/y=2 a/.wh..wh..opq="),
            // Of several names those that are left keep the content.
            (&["a=1 b>a c>b"], true, "a=1 b>a c>a"),
            (&["a=1 b>a c>a", "-a"], true, "b=1 c>b .wh.a="),
            (&["a=1 b>a", "a=2"], true, "b=1 a=2"),
            (&["ab=1 a/ a/x=1 a.b=1", "-a"], true, "ab=1 a.b=1 .wh.a="),
        ] {
            let archives: Vec<Vec<u8>> = layers.iter().map(|l| archive(l)).collect();
            let mut out = Vec::new();
            squash(layers.len(), &|n, take| take(&mut &archives[n][..]), below, &mut out).unwrap();
            assert_eq!(text(&out).unwrap(), expected, "{layers:?}");
        }
        let archives = [archive("a=1"), archive("b>a")];
        let e = squash(2, &|n, take| take(&mut &archives[n][..]), true, io::sink()).unwrap_err();
        assert!(report::line(&e).contains("not in its layer"), "{e:?}");
        let e = squash(1, &|_, take| take(&mut &archive("../a=1")[..]), true, io::sink()).unwrap_err();
        assert!(report::line(&e).contains("leads out"), "{e:?}");
    }
}
