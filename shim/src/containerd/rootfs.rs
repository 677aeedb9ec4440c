//! Where does a container's root file system come from? The mounts of a snapshot, which the request lists, one above another on the
//! bundle's `rootfs`.

use std::path::Path;

use anyhow::{Context, Result};
use report::Kind;
use rustix::io::Errno;
use sys::mount::flags;

use super::message::Mount;

/// mount(2) takes one page of options, with the zero at its end.
const PAGE: usize = 4096;

/// Options that are flags, and whether they set or clear them.
const FLAGS: [(&str, u64, bool); 22] = [
    ("ro", flags::RDONLY, true),
    ("rw", flags::RDONLY, false),
    ("nosuid", flags::NOSUID, true),
    ("suid", flags::NOSUID, false),
    ("nodev", flags::NODEV, true),
    ("dev", flags::NODEV, false),
    ("noexec", flags::NOEXEC, true),
    ("exec", flags::NOEXEC, false),
    ("sync", flags::SYNCHRONOUS, true),
    ("async", flags::SYNCHRONOUS, false),
    ("dirsync", flags::DIRSYNC, true),
    ("noatime", flags::NOATIME, true),
    ("atime", flags::NOATIME, false),
    ("nodiratime", flags::NODIRATIME, true),
    ("diratime", flags::NODIRATIME, false),
    ("relatime", flags::RELATIME, true),
    ("norelatime", flags::RELATIME, false),
    ("strictatime", flags::STRICTATIME, true),
    ("bind", flags::BIND, true),
    ("rbind", flags::BIND | flags::REC, true),
    ("defaults", 0, true),
    ("remount", 0, true),
];

/// The flags, and the file system's own options.
fn options(list: &[String]) -> Result<(u64, Vec<&str>)> {
    let (mut set, mut data) = (0, Vec::new());
    for option in list {
        match FLAGS.iter().find(|(name, _, _)| name == option) {
            Some((_, flag, true)) => set |= flag,
            Some((_, flag, false)) => set &= !flag,
            None if option == "loop" || option.starts_with("uidmap=") || option.starts_with("gidmap=") => {
                let message = format!(
                    "rootfs: mount option {option} is not supported: have containerd do this mount itself"
                );
                return Err(report::error(Kind::Unsupported, message));
            }
            None => data.push(option.as_str()),
        }
    }
    Ok((set, data))
}

/// Mount all of them on `rootfs`. After an error none of them is left.
pub fn mount(mounts: &[Mount], rootfs: &Path) -> Result<()> {
    for (n, m) in mounts.iter().enumerate() {
        if let Err(e) = mount_one(m, rootfs)
            .with_context(|| format!("rootfs: mounts[{n}]: mount {} ({})", m.source, m.kind))
        {
            if let Err(undo) = unmount(rootfs) {
                return Err(e.context(format!("{undo:#}")));
            }
            return Err(e);
        }
    }
    Ok(())
}

fn mount_one(m: &Mount, rootfs: &Path) -> Result<()> {
    let (set, data) = options(&m.options)?;
    let target = match m.target.as_str() {
        "" | "/" => rootfs.to_owned(),
        inner => {
            let root =
                sys::path::open_host_dir(rootfs).with_context(|| format!("open {}", rootfs.display()))?;
            let dir = sys::path::open_dir(std::os::fd::AsFd::as_fd(&root), Path::new(inner));
            let dir = dir.with_context(|| format!("open {inner} in {}", rootfs.display()))?;
            return at(
                &m.source,
                &format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir)),
                &m.kind,
                set,
                &data,
            );
        }
    };
    let target = target.to_str().context("the bundle's path is not text")?;
    at(&m.source, target, &m.kind, set, &data)
}

fn at(source: &str, target: &str, kind: &str, set: u64, data: &[&str]) -> Result<()> {
    let joined = data.join(",");
    let source = Path::new(source);
    if set & flags::BIND != 0 {
        sys::mount::mount(Some(source), target, None, set & (flags::BIND | flags::REC), None)?;
        let rest = set & !(flags::BIND | flags::REC);
        if rest != 0 {
            // MS_BIND and MS_REMOUNT: of this mount alone.
            sys::mount::mount(None, target, None, rest | flags::BIND | flags::REMOUNT, None)?;
        }
        return Ok(());
    }
    if joined.len() < PAGE {
        return Ok(sys::mount::mount(Some(source), target, Some(kind), set, Some(&joined))?);
    }
    // Many layers: named from the folder that they share.
    let short =
        Short::new(data).context("its options are longer than a page, and its layers share no folder")?;
    let here = sys::path::open_host_dir(Path::new(".")).context("open the working directory")?;
    std::env::set_current_dir(&short.folder).with_context(|| format!("enter {}", short.folder))?;
    let mounted = sys::mount::mount(Some(source), target, Some(kind), set, Some(&short.data));
    sys::mount::enter_directory(std::os::fd::AsFd::as_fd(&here))
        .context("return to the working directory")?;
    Ok(mounted?)
}

/// Overlay's options with the lower layers named from a folder.
#[derive(Debug, PartialEq, Eq)]
struct Short {
    folder: String,
    data: String,
}

impl Short {
    fn new(data: &[&str]) -> Option<Short> {
        let lower = data.iter().find_map(|option| option.strip_prefix("lowerdir="))?;
        let layers: Vec<&str> = lower.split(':').collect();
        let first = layers.first()?;
        let mut end = first.len();
        for layer in &layers {
            end = first.bytes().zip(layer.bytes()).take(end).take_while(|(a, b)| a == b).count();
        }
        // What they share ends with the last whole folder.
        let end = first[..end].rfind('/').filter(|at| *at > 0)?;
        let folder = first[..end].to_owned();
        let layers: Vec<&str> = layers.iter().filter_map(|layer| layer.get(end + 1..)).collect();
        let lower = format!("lowerdir={}", layers.join(":"));
        let options: Vec<&str> =
            data.iter().map(|o| if o.starts_with("lowerdir=") { lower.as_str() } else { o }).collect();
        let data = options.join(",");
        (data.len() < PAGE).then_some(Short { folder, data })
    }
}

/// Take off whatever is mounted there.
pub fn unmount(rootfs: &Path) -> Result<()> {
    loop {
        match sys::mount::unmount(rootfs) {
            Ok(()) => {}
            Err(e) => match e.raw_os_error().map(Errno::from_raw_os_error) {
                // Nothing is mounted there (any more).
                Some(Errno::INVAL | Errno::NOENT) => return Ok(()),
                // Mounts below it, or a process that lives on: it goes when they do.
                Some(Errno::BUSY) => {
                    sys::mount::detach(rootfs).with_context(|| format!("unmount {}", rootfs.display()))?;
                }
                _ => return Err(e).with_context(|| format!("unmount {}", rootfs.display())),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_data() {
        let list = |words: &str| words.split(',').map(str::to_owned).collect::<Vec<_>>();
        let given = list("rw,nosuid,ro,index=off,upperdir=/u");
        assert_eq!(
            options(&given).unwrap(),
            (flags::NOSUID | flags::RDONLY, vec!["index=off", "upperdir=/u"])
        );
        assert_eq!(options(&list("rbind,ro")).unwrap().0, flags::BIND | flags::REC | flags::RDONLY);
        assert!(options(&list("loop")).is_err());
    }

    #[test]
    fn many_layers_become_short() {
        let layers: Vec<String> = (0..100).map(|n| format!("/var/lib/containerd/snapshots/{n}/fs")).collect();
        let lower = format!("lowerdir={}", layers.join(":"));
        let short = Short::new(&["index=off", &lower]).unwrap();
        assert_eq!(short.folder, "/var/lib/containerd/snapshots");
        assert!(short.data.starts_with("index=off,lowerdir=0/fs:1/fs:"), "{}", short.data);
        assert_eq!(Short::new(&["lowerdir=/a:/b"]), None);
    }
}
