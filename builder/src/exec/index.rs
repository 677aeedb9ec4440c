//! What does a file hold? Its digest, which is known without reading it again as long as its inode says that it is the same: a file
//! of the store keeps what was found, so that a build that has all it needs reads no file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use image::digest::{Algorithm, Hasher};
use image::layer::walk;
use rustix::fs::Stat;

/// SHA-256 of a file's content, and of its attributes if it has any.
pub type Sum = [u8; 32];

/// Changes when the records do.
const MAGIC: &[u8; 16] = b"berth-files-v1\0\0";
const RECORD: usize = 96;
/// Files that are remembered: some 50 MB.
const MOST: usize = 1 << 19;
/// A file that changed so shortly before it was read may change again without its times telling.
const RACY: Duration = Duration::from_millis(50);

/// What an inode says.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Says {
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

impl Says {
    fn of(stat: &Stat) -> Says {
        Says {
            size: stat.st_size.unsigned_abs(),
            modified: (stat.st_mtime, stat.st_mtime_nsec as u32),
            changed: (stat.st_ctime, stat.st_ctime_nsec as u32),
        }
    }
}

struct Known {
    says: Says,
    sum: Sum,
    /// In this build.
    seen: bool,
}

/// By device and inode; whether something is new.
type All = (HashMap<(u64, u64), Known>, bool);

/// Digests by inode.
pub struct Index {
    path: PathBuf,
    known: Mutex<All>,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Index {
    /// What earlier builds found. What cannot be read is found again.
    pub fn open(path: &Path) -> Index {
        let mut known = HashMap::new();
        let bytes = std::fs::read(path).unwrap_or_default();
        if let Some(records) = bytes.strip_prefix(MAGIC) {
            let word = |record: &[u8], at: usize| {
                u64::from_le_bytes(record[at * 8..at * 8 + 8].try_into().unwrap_or_default())
            };
            for record in records.chunks_exact(RECORD) {
                let nanos = word(record, 7);
                let says = Says {
                    size: word(record, 2),
                    modified: (word(record, 3).cast_signed(), nanos as u32),
                    changed: (word(record, 4).cast_signed(), (nanos >> 32) as u32),
                };
                let mut sum = [0; 32];
                sum.copy_from_slice(&record[64..]);
                known.insert((word(record, 0), word(record, 1)), Known { says, sum, seen: false });
            }
        }
        Index { path: path.to_owned(), known: Mutex::new((known, false)) }
    }

    /// What the inode was found to hold.
    pub fn get(&self, stat: &Stat) -> Option<Sum> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.0.get_mut(&(stat.st_dev, stat.st_ino))?;
        if found.says != Says::of(stat) {
            return None;
        }
        found.seen = true;
        Some(found.sum)
    }

    /// Read a file, and remember what it holds.
    pub fn read(&self, file: &File, stat: &Stat) -> Result<Sum> {
        let sum = sum(file, stat.st_size.unsigned_abs())?;
        let after = rustix::fs::fstat(file)?;
        let says = Says::of(&after);
        let changed = SystemTime::UNIX_EPOCH
            + Duration::new(after.st_ctime.max(0).unsigned_abs(), after.st_ctime_nsec as u32);
        if says == Says::of(stat) && SystemTime::now().duration_since(changed).is_ok_and(|age| age > RACY) {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.0.insert((stat.st_dev, stat.st_ino), Known { says, sum, seen: true });
            known.1 = true;
        }
        Ok(sum)
    }

    /// Write down what was found. Another build at the same time may win: then some files are read again.
    pub fn save(&self) -> Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.1 {
            return Ok(());
        }
        let mut bytes = MAGIC.to_vec();
        // What this build has seen is worth more.
        let (seen, others): (Vec<_>, Vec<_>) = known.0.iter().partition(|(_, k)| k.seen);
        for ((device, inode), Known { says, sum, .. }) in seen.into_iter().chain(others).take(MOST) {
            let nanos = u64::from(says.modified.1) | u64::from(says.changed.1) << 32;
            let words = [
                *device,
                *inode,
                says.size,
                says.modified.0.cast_unsigned(),
                says.changed.0.cast_unsigned(),
                0,
                0,
                nanos,
            ];
            words.iter().for_each(|w| bytes.extend(w.to_le_bytes()));
            bytes.extend(sum);
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        let new = self.path.with_extension(format!("{now}.new"));
        let write = || -> io::Result<()> {
            File::create(&new)?.write_all(&bytes)?;
            std::fs::rename(&new, &self.path)
        };
        write().with_context(|| format!("write {}", self.path.display()))?;
        known.1 = false;
        Ok(())
    }
}

/// The digest of an open file, with its attributes.
pub fn sum(file: &File, size: u64) -> Result<Sum> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; (size as usize + 1).clamp(512, 256 << 10)];
    let mut from = file;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut header = image::layer::tar::Header::new(image::layer::tar::Kind::File, "");
    walk::foreign_attributes(&mut header, file.as_fd())?;
    let mut sum = raw(hasher);
    if !header.xattrs.is_empty() {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(&sum);
        for (name, value) in &header.xattrs {
            for part in [name, value] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
        }
        sum = raw(hasher);
    }
    Ok(sum)
}

fn raw(hasher: Hasher) -> Sum {
    hasher.finish().bytes().try_into().unwrap_or_default()
}
