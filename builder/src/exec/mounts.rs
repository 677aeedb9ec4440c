//! What does a `RUN` find mounted, and what of it is in its key?

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::Digest;
use image::layer::whiteout::Privilege;
use image::rootfs::{self, Upper};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde_json::{Value, json};
use sys::path::Links;

use super::copy::{How, Placing};
use super::layer::{Entries, make};
use super::sandbox::{Bound, Source};
use super::stage::{From, Running};
use super::{lock, pick};
use crate::ignore::Ignore;
use crate::plan::mounts::{Mount, Sharing};
use crate::plan::state::Run;

/// What the mounts of a command are.
pub(super) struct Wanted<'b> {
    /// What of them its result depends on.
    pub key: Value,
    mounts: Vec<(Mount, Option<From<'b>>, Option<Digest>)>,
    /// Variables that nobody but the command sees.
    pub secrets: Vec<(String, String)>,
}

/// What is to be mounted; the rest must live as long.
pub(super) struct Given {
    pub all: Vec<Bound>,
    pub held: Vec<OwnedFd>,
}

/// Where programs look for an agent: ssh-agent(1).
const AGENT: &str = "SSH_AUTH_SOCK";

impl<'b> Running<'b, '_> {
    /// Look at what a command wants mounted.
    pub(super) fn mounts(&self, run: &Run) -> Result<Wanted<'b>> {
        let options = self.build.options;
        let mut wanted = Wanted { key: Value::Null, mounts: Vec::new(), secrets: Vec::new() };
        let mut key = Vec::new();
        for mount in &run.mounts {
            let mut from = None;
            let mut content = None;
            match mount {
                Mount::Bind { target, from: name, source, writable } => {
                    let of = self.from(name.as_deref())?;
                    let said = match of.key() {
                        Some(key) => key.clone(),
                        None => {
                            let opened = of.open(self.build)?;
                            let none = Ignore::default();
                            let wish = pick::Wish { exclude: &none, parents: false };
                            let source = escape(source);
                            let found = pick::pick(&opened.tree(self.build), &[&source], wish)?;
                            let digest = pick::digest(&found, false);
                            content = Some(digest.clone());
                            digest
                        }
                    };
                    key.push(json!(["bind", target, source, said, writable]));
                    from = Some(of);
                }
                Mount::Cache { target, id, from: name, source, writable, .. } => {
                    if let Some(name) = name {
                        from = Some(self.from(Some(name))?);
                    }
                    let of = from.as_ref().and_then(From::key);
                    key.push(json!(["cache", target, id, source, of, writable]));
                }
                Mount::Tmpfs { target, size } => key.push(json!(["tmpfs", target, size])),
                Mount::Secret { id, target, variable, owner, required } => {
                    // Whatever its value: another one is no reason to run the command again.
                    key.push(json!(["secret", id, target, variable, owner.mode, owner.uid, owner.gid]));
                    match options.secrets.get(id) {
                        None if *required => {
                            bail!(
                                "secret {id:?} is required, and the build was not given it (--secret id={id},src=FILE)"
                            )
                        }
                        None => continue,
                        Some(value) => {
                            if let Some(variable) = variable {
                                let text = String::from_utf8(value.clone()).ok().with_context(|| {
                                    format!("secret {id:?}: it is no text, which a variable must be")
                                })?;
                                ensure!(
                                    !text.contains('\0'),
                                    "secret {id:?}: it has a NUL, which no variable can have"
                                );
                                wanted.secrets.push((variable.clone(), text));
                            }
                        }
                    }
                }
                Mount::Ssh { id, target, required, owner } => {
                    key.push(json!(["ssh", id, target, owner.mode, owner.uid, owner.gid]));
                    match options.ssh.get(id) {
                        None if *required => {
                            bail!("ssh {id:?} is required, and the build was not given it (--ssh {id})")
                        }
                        None => continue,
                        // The first is what programs find.
                        Some(_) if !wanted.secrets.iter().any(|(name, _)| name == AGENT) => {
                            wanted.secrets.push((AGENT.to_owned(), target.clone()));
                        }
                        Some(_) => {}
                    }
                }
            }
            wanted.mounts.push((mount.clone(), from, content));
        }
        wanted.key = json!(key);
        Ok(wanted)
    }

    /// Make ready what is mounted.
    pub(super) fn bind(&self, wanted: &Wanted<'b>) -> Result<Given> {
        let build = self.build;
        let mut given = Given { all: Vec::new(), held: Vec::new() };
        for (mount, from, content) in &wanted.mounts {
            match mount {
                Mount::Bind { target, source, writable, .. } => {
                    let Some(from) = from else { continue };
                    let root = match (from, content) {
                        (From::Folder(_), Some(content)) => self.snapshot(from, source, content)?,
                        _ => {
                            let opened = from.open(build)?;
                            self.part(opened.root().try_clone_to_owned()?, source, target)?
                        }
                    };
                    let root = if *writable { self.over(root, target)? } else { root };
                    given.all.push(Bound {
                        target: target.clone(),
                        from: Source::Fd(root),
                        writable: *writable,
                    });
                }
                Mount::Cache { target, id, source, sharing, owner, writable, .. } => {
                    let (root, held) =
                        self.cache(id, from.as_ref(), *sharing, (owner.mode, owner.uid, owner.gid))?;
                    given.held.push(held);
                    let root = self.inside(root, source, target)?;
                    given.all.push(Bound {
                        target: target.clone(),
                        from: Source::Fd(root),
                        writable: *writable,
                    });
                }
                Mount::Tmpfs { target, size } => {
                    given.all.push(Bound {
                        target: target.clone(),
                        from: Source::Tmpfs(*size),
                        writable: true,
                    });
                }
                Mount::Secret { id, target, owner, .. } => {
                    if let (Some(target), Some(value)) = (target, build.options.secrets.get(id)) {
                        let from = Source::File(value.clone(), owner.mode, (owner.uid, owner.gid));
                        given.all.push(Bound { target: target.clone(), from, writable: false });
                    }
                }
                Mount::Ssh { id, target, .. } => {
                    if let Some(socket) = build.options.ssh.get(id) {
                        let open = || rustix::fs::open(socket, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
                        let fd = open().with_context(|| format!("ssh {id}: open {}", socket.display()))?;
                        given.all.push(Bound {
                            target: target.clone(),
                            from: Source::Fd(fd),
                            writable: true,
                        });
                    }
                }
            }
        }
        Ok(given)
    }

    /// Mount a tree where we see it, so that it can be mounted again.
    fn attached(&self, tree: OwnedFd) -> Result<OwnedFd> {
        let place = self.build.addition.tree()?;
        let path = self.build.addition.place(&place)?;
        rootfs::attach(tree.as_fd(), &path)?;
        let root = crate::bundle::open_root(&path)?;
        // It stays mounted until the build ends.
        self.build.addition.hold(place)?;
        Ok(root)
    }

    /// A file or folder in a file system; whatever it says, it is in there.
    fn inside(&self, root: OwnedFd, source: &str, target: &str) -> Result<OwnedFd> {
        let path = Path::new(OsStr::from_bytes(source.trim_start_matches('/').as_bytes()));
        sys::path::locate(root.as_fd(), path, Links::Follow)
            .with_context(|| format!("--mount at {target}: source {source:?}"))
    }

    fn part(&self, root: OwnedFd, source: &str, target: &str) -> Result<OwnedFd> {
        let root = self.attached(root)?;
        self.inside(root, source, target)
    }

    /// Something that may be written, with all of it lost in the end.
    fn over(&self, lower: OwnedFd, target: &str) -> Result<OwnedFd> {
        let stat = rustix::fs::fstat(&lower)?;
        let folder = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
        let place = self.build.addition.tree()?;
        let path = self.build.addition.place(&place)?;
        for name in ["upper", "work", "root"] {
            let path = path.join(name);
            DirBuilder::new()
                .mode(0o755)
                .create(&path)
                .with_context(|| format!("make {}", path.display()))?;
        }
        if !folder {
            let copy = path.join("file");
            let from = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&lower));
            std::fs::copy(from, &copy).with_context(|| format!("--mount at {target}: copy"))?;
            let fd = sys::path::open_host(&copy)?;
            self.build.addition.hold(place)?;
            return Ok(fd);
        }
        let empty = self.build.addition.tree()?;
        let empty = self.build.addition.hold(empty)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lower = rustix::fs::openat(&lower, ".", flags, Mode::empty())?;
        let (upper, work) = (path.join("upper"), path.join("work"));
        std::os::unix::fs::chown(&upper, Some(stat.st_uid), Some(stat.st_gid)).context("set an owner")?;
        let mounted = rootfs::overlay(
            &[empty, lower],
            Some(&Upper { upper: &upper, work: &work, lasting: false }),
            Privilege::own(),
        )?;
        rootfs::attach(mounted.as_fd(), &path.join("root"))?;
        let root = crate::bundle::open_root(&path.join("root"))?;
        self.build.addition.hold(place)?;
        Ok(root)
    }

    /// What of the build context is mounted: a copy, in which nothing is that is left out, and all is root's.
    fn snapshot(&self, from: &From<'b>, source: &str, content: &Digest) -> Result<OwnedFd> {
        let build = self.build;
        let key = super::stage::key(&json!({"snapshot": content}));
        let place = |root: OwnedFd, file: Option<&str>| -> Result<OwnedFd> {
            match file {
                None => Ok(root),
                Some(name) => {
                    let path = Path::new(name);
                    Ok(sys::path::locate(root.as_fd(), path, Links::Refuse)?)
                }
            }
        };
        let none = Ignore::default();
        let opened = from.open(build)?;
        let wish = pick::Wish { exclude: &none, parents: false };
        let found = pick::pick(&opened.tree(build), &[&escape(source)], wish)?;
        let file = found.first().filter(|s| !s.folder).map(|_| "file");
        if let Some(step) = build.store.step(&key)?
            && let Some(tree) = build.store.step_tree(&key, &step)?
        {
            build.store.touch_step(&key);
            return place(tree, file);
        }
        let mut entries = Entries::default();
        let to = if file.is_some() { "/file" } else { "/" };
        let how = How { to, owner: None, chmod: None, owned: false, parents: false };
        Placing { view: None, entries: &mut entries }.place(&found, opened.root(), how)?;
        let made = make(build.addition, &entries, None, true, None, None)?;
        let step = image::store::Step::of(&format!("the context's {source}, for --mount"));
        build.store.keep_step(&key, &step, made.tree.map(|t| (t, "")))?;
        lock(&build.shared.kept).push(key.clone());
        let step = build.store.step(&key)?.context("a step has gone meanwhile")?;
        let tree = build.store.step_tree(&key, &step)?.context("a step has gone meanwhile")?;
        place(tree, file)
    }

    /// The folder of a cache, and a lock on it.
    fn cache(
        &self,
        id: &str,
        from: Option<&From<'b>>,
        sharing: Sharing,
        owner: (u32, u32, u32),
    ) -> Result<(OwnedFd, OwnedFd)> {
        let build = self.build;
        let opening = || format!("cache {id}");
        let of = from.and_then(From::key).map(Digest::hex).unwrap_or_default();
        let name = Digest::of(format!("{id}\0{of}").as_bytes());
        let root = build.store.root().canonicalize()?;
        let folder = root.join(build.store.caches_place().file_name().unwrap_or_default());
        DirBuilder::new().mode(0o700).recursive(true).create(&folder).with_context(opening)?;
        for n in 0..10_000 {
            let place = match n {
                0 => folder.join(name.hex()),
                n => folder.join(format!("{}.{n}", name.hex())),
            };
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let lock = rustix::fs::open(place.with_extension("lock"), flags, Mode::from_raw_mode(0o600))
                .with_context(opening)?;
            let how = match sharing {
                Sharing::Shared => FlockOperation::LockShared,
                Sharing::Locked => FlockOperation::LockExclusive,
                Sharing::Private => FlockOperation::NonBlockingLockExclusive,
            };
            match rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, how)) {
                Ok(()) => {}
                // Somebody uses it: the next one is ours.
                Err(rustix::io::Errno::WOULDBLOCK) => continue,
                Err(e) => return Err(e).with_context(opening),
            }
            if !place.exists() {
                self.new_cache(&place, id, from, owner).with_context(opening)?;
            }
            return Ok((sys::path::open_host_dir(&place).with_context(opening)?, lock));
        }
        bail!("cache {id}: ten thousand of it are in use")
    }

    /// Make the folder of a cache; it is there when it is whole.
    fn new_cache(
        &self,
        place: &Path,
        id: &str,
        from: Option<&From<'b>>,
        (mode, uid, gid): (u32, u32, u32),
    ) -> Result<()> {
        let build = self.build;
        let tree = build.addition.tree()?;
        let path = build.addition.place(&tree)?.join("cache");
        DirBuilder::new().mode(0o755).create(&path)?;
        if let Some(from) = from {
            let opened = from.open(build)?;
            let root = crate::bundle::open_root(&path)?;
            let none = Default::default();
            let options = image::layer::apply::Options {
                whiteouts: image::layer::apply::Whiteouts::Remove,
                ..build.store.tree_options()?
            };
            image::layer::apply::copy(opened.root(), Privilege::own(), &none, root.as_fd(), options)?;
        }
        rustix::fs::chmod(&path, Mode::from_raw_mode(mode))?;
        std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
        std::fs::write(place.with_extension("id"), id)?;
        match std::fs::rename(&path, place) {
            Ok(()) => Ok(()),
            Err(_) if place.exists() => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// A path that is no pattern, whatever is in it.
fn escape(path: &str) -> String {
    path.chars()
        .flat_map(|c| if matches!(c, '*' | '?' | '[' | '\\') { vec!['\\', c] } else { vec![c] })
        .collect()
}
