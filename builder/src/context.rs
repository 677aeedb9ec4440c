//! Where do a build's files come from? A folder, an archive, the standard input or a repository; and the Dockerfile, and what is left
//! out of it all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image::layer::apply::{Options, Whiteouts, apply};
use image::store::Addition;
use report::Explain;
use sys::path::Links;

use crate::dockerfile::source::Source;
use crate::exec::Bases;
use crate::exec::add::{self, decoder, is_archive};
use crate::ignore::Ignore;

/// Bytes of a Dockerfile or an ignore file.
const FILE_MOST: u64 = 16 << 20;
/// Names that are looked for.
const NAMES: [&str; 3] = ["Dockerfile", "Containerfile", "dockerfile"];

/// A tree of files.
#[derive(Debug)]
pub struct Folder {
    pub root: OwnedFd,
    pub ignore: Ignore,
    /// For people.
    pub title: String,
    /// It will be the same inodes the next time.
    pub indexed: bool,
}

/// What the build was given under a name.
#[derive(Debug)]
pub enum Named {
    Folder(Folder),
    /// A name or place of an image.
    Image(String),
}

/// All contexts of a build.
#[derive(Debug, Default)]
pub struct Contexts<'a> {
    pub main: Option<Folder>,
    pub named: BTreeMap<String, Named>,
    lives: std::marker::PhantomData<&'a ()>,
}

impl Contexts<'_> {
    pub fn new(main: Option<Folder>, named: BTreeMap<String, Named>) -> Self {
        Contexts { main, named, lives: std::marker::PhantomData }
    }

    pub fn names(&self) -> BTreeSet<String> {
        self.named.keys().cloned().collect()
    }

    pub fn image_of(&self, name: &str) -> Option<&str> {
        match self.named.get(name) {
            Some(Named::Image(image)) => Some(image),
            _ => None,
        }
    }

    pub fn folder(&self, name: &str) -> Option<&Folder> {
        match self.named.get(name) {
            Some(Named::Folder(folder)) => Some(folder),
            _ => None,
        }
    }
}

/// What the command line says.
#[derive(Debug)]
pub struct Said<'a> {
    /// A folder, an archive, an address, or `-`.
    pub context: Option<&'a str>,
    /// `--file`
    pub file: Option<&'a str>,
    /// `--ignorefile`
    pub ignore: Option<&'a Path>,
}

/// Open the context and read the Dockerfile.
pub fn open(said: &Said<'_>, addition: &Addition<'_>, bases: &dyn Bases) -> Result<(Option<Folder>, Source)> {
    let stdin_file = said.file == Some("-");
    let Some(context) = said.context else {
        ensure!(stdin_file, "no context is given: a folder, as in: build .");
        return Ok((None, Source::new("Dockerfile", text(std::io::stdin().lock(), "the standard input")?)));
    };
    ensure!(
        !(stdin_file && context == "-"),
        "the standard input cannot be both the context and the Dockerfile"
    );
    let mut folder = if context == "-" {
        let file = spooled(addition, &mut std::io::stdin().lock())?;
        if !is_archive(&file)? {
            let source = Source::new("Dockerfile", text(file, "the standard input")?);
            return Ok((None, source));
        }
        unpacked(file, addition, "the standard input")?
    } else if add::is_git(context) {
        let tree = addition.tree()?;
        let place = addition.place(&tree)?;
        bases.checkout(context, false, &place)?;
        std::fs::remove_file(place.join(".berth-commit")).context("a checkout")?;
        let root = addition.hold(tree)?;
        Folder { root, ignore: Ignore::default(), title: context.to_owned(), indexed: false }
    } else if add::is_remote(context) {
        let got = bases.download(context, None)?;
        let file = got.file.context("nothing came")?;
        if !is_archive(&file)? {
            let mut file = file;
            file.rewind()?;
            return Ok((None, Source::new("Dockerfile", text(file, context)?)));
        }
        unpacked(file, addition, context)?
    } else {
        local(Path::new(context), addition)?
    };
    let (source, beside) = match said.file {
        Some("-") => (Source::new("Dockerfile", text(std::io::stdin().lock(), "the standard input")?), None),
        Some(file) if folder.indexed => {
            let path = PathBuf::from(file);
            // As docker has it, from here; as buildah has it, from the context.
            let path =
                if path.exists() || path.is_absolute() { path } else { Path::new(context).join(&path) };
            let opened =
                File::open(&path).with_context(|| format!("open the Dockerfile {}", path.display()))?;
            let beside = path.with_file_name(format!(
                "{}.dockerignore",
                path.file_name().unwrap_or_default().to_string_lossy()
            ));
            let beside = match File::open(&beside) {
                Ok(file) => Some((beside.display().to_string(), text(file, &beside.display().to_string())?)),
                Err(_) => None,
            };
            (Source::new(file, text(opened, file)?), beside)
        }
        Some(file) => {
            let found = inside(folder.root.as_fd(), file)?;
            let found =
                found.with_context(|| format!("{file}: there is no such file in {}", folder.title))?;
            let beside = format!("{file}.dockerignore");
            (Source::new(file, found), inside(folder.root.as_fd(), &beside)?.map(|t| (beside, t)))
        }
        None => {
            let mut found = None;
            for name in NAMES {
                if let Some(text) = inside(folder.root.as_fd(), name)? {
                    let beside = format!("{name}.dockerignore");
                    let beside = inside(folder.root.as_fd(), &beside)?.map(|t| (beside, t));
                    found = Some((Source::new(name, text), beside));
                    break;
                }
            }
            let none: Result<(Source, Option<(String, String)>)> =
                found.with_context(|| format!("there is no Dockerfile in {}", folder.title));
            none.hint(|| "--file names another".to_owned())?
        }
    };
    folder.ignore = match (said.ignore, beside) {
        (Some(path), _) => {
            let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
            let title = path.display().to_string();
            Ignore::parse(&text(file, &title)?).context(title)?
        }
        (None, Some((title, text))) => Ignore::parse(&text).context(title)?,
        (None, None) => ignore(folder.root.as_fd())?,
    };
    Ok((Some(folder), source))
}

/// `.dockerignore`, or what it is called elsewhere.
fn ignore(root: BorrowedFd<'_>) -> Result<Ignore> {
    for name in [".dockerignore", ".containerignore"] {
        if let Some(text) = inside(root, name)? {
            return Ignore::parse(&text).context(name);
        }
    }
    Ok(Ignore::default())
}

/// A `--build-context`: `docker-image://NAME`, `oci-layout://FOLDER[:TAG]`, a folder, an archive, or an address.
pub fn named(text: &str, addition: &Addition<'_>, bases: &dyn Bases) -> Result<Named> {
    if let Some(image) = text.strip_prefix("docker-image://") {
        return Ok(Named::Image(image.to_owned()));
    }
    if let Some(layout) = text.strip_prefix("oci-layout://") {
        return Ok(Named::Image(format!("oci:{layout}")));
    }
    if ["oci:", "oci-archive:", "docker-archive:", "docker://", "container-image://"]
        .iter()
        .any(|p| text.starts_with(p))
    {
        return Ok(Named::Image(text.trim_start_matches("container-image://").to_owned()));
    }
    if text.starts_with("target:") || text.starts_with("input:") {
        bail!("{text}: this is for files of several builds, which are not read here");
    }
    if add::is_git(text) {
        let tree = addition.tree()?;
        let place = addition.place(&tree)?;
        bases.checkout(text, false, &place)?;
        std::fs::remove_file(place.join(".berth-commit")).context("a checkout")?;
        let root = addition.hold(tree)?;
        let ignore = ignore(root.as_fd())?;
        return Ok(Named::Folder(Folder { root, ignore, title: text.to_owned(), indexed: false }));
    }
    if add::is_remote(text) {
        let file = bases.download(text, None)?.file.context("nothing came")?;
        ensure!(is_archive(&file)?, "{text}: this is no archive");
        return Ok(Named::Folder(unpacked(file, addition, text)?));
    }
    let mut folder = local(Path::new(text), addition)?;
    folder.ignore = ignore(folder.root.as_fd())?;
    Ok(Named::Folder(folder))
}

fn local(path: &Path, addition: &Addition<'_>) -> Result<Folder> {
    let title = path.display().to_string();
    let opening = || format!("open the build context {title}");
    let data = std::fs::metadata(path).with_context(opening)?;
    if data.is_file() {
        let file = File::open(path).with_context(opening)?;
        ensure!(is_archive(&file)?, "the build context {title} is neither a folder nor an archive");
        return unpacked(file, addition, &title);
    }
    let root = sys::path::open_host_dir(path).with_context(opening)?;
    let root = sys::path::open_dir(root.as_fd(), Path::new(".")).with_context(opening)?;
    let title =
        if title == "." { "the build context".to_owned() } else { format!("the build context {title}") };
    Ok(Folder { root, ignore: Ignore::default(), title, indexed: true })
}

/// What is read once, in a file that has no name.
fn spooled(addition: &Addition<'_>, from: &mut dyn Read) -> Result<File> {
    let mut file = image::temporary::Spool(addition.store().root()).file()?;
    std::io::copy(from, &mut file).context("read the standard input")?;
    file.rewind()?;
    Ok(file)
}

fn unpacked(file: File, addition: &Addition<'_>, title: &str) -> Result<Folder> {
    let tree = addition.tree()?;
    let options = Options { whiteouts: Whiteouts::Remove, ..addition.store().tree_options()? };
    let from = BufReader::with_capacity(128 << 10, decoder(file)?);
    apply(from, tree.as_fd(), options).with_context(|| format!("unpack {title}"))?;
    let root = addition.hold(tree)?;
    Ok(Folder { root, ignore: Ignore::default(), title: title.to_owned(), indexed: false })
}

/// A file of a context; None: there is none.
fn inside(root: BorrowedFd<'_>, path: &str) -> Result<Option<String>> {
    match sys::path::open(root, Path::new(path), Links::Follow) {
        Ok(fd) => {
            let file = File::from(fd);
            ensure!(file.metadata()?.is_file(), "{path}: it is no regular file");
            Ok(Some(text(file, path)?))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("open {path}")),
    }
}

fn text(from: impl Read, title: &str) -> Result<String> {
    let mut bytes = Vec::new();
    from.take(FILE_MOST + 1).read_to_end(&mut bytes).with_context(|| format!("read {title}"))?;
    ensure!(bytes.len() as u64 <= FILE_MOST, "{title}: more than {FILE_MOST} bytes");
    String::from_utf8(bytes).ok().with_context(|| format!("{title}: it is no UTF-8 text"))
}
