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
const MAGIC: &[u8; 16] = b"berth-files-v2\0\0";
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
    /// Not in the file yet.
    new: bool,
}

/// By device and inode.
type All = HashMap<(u64, u64), Known>;

/// Of a record, so that one that was not written whole is none. FNV-1a.
fn check(record: &[u8]) -> u64 {
    let all = record[..40].iter().chain(&record[48..]);
    all.fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Digests by inode.
pub struct Index {
    path: PathBuf,
    known: Mutex<All>,
    /// Records of the file that count; it can be added to.
    records: Option<usize>,
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
        let mut whole = None;
        if let Some(records) = bytes.strip_prefix(MAGIC) {
            whole = (records.len() % RECORD == 0).then_some(records.len() / RECORD);
            let word = |record: &[u8], at: usize| {
                u64::from_le_bytes(record[at * 8..at * 8 + 8].try_into().unwrap_or_default())
            };
            for record in records.chunks_exact(RECORD) {
                if word(record, 5) != check(record) {
                    whole = None;
                    continue;
                }
                let nanos = word(record, 7);
                let says = Says {
                    size: word(record, 2),
                    modified: (word(record, 3).cast_signed(), nanos as u32),
                    changed: (word(record, 4).cast_signed(), (nanos >> 32) as u32),
                };
                let mut sum = [0; 32];
                sum.copy_from_slice(&record[64..]);
                known
                    .insert((word(record, 0), word(record, 1)), Known { says, sum, seen: false, new: false });
            }
        }
        Index { path: path.to_owned(), known: Mutex::new(known), records: whole }
    }

    /// What the inode was found to hold.
    pub fn get(&self, stat: &Stat) -> Option<Sum> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.get_mut(&(stat.st_dev, stat.st_ino))?;
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
            known.insert((stat.st_dev, stat.st_ino), Known { says, sum, seen: true, new: true });
        }
        Ok(sum)
    }

    /// Write down what was found. Another build at the same time may win: then some files are read again.
    pub fn save(&self) -> Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let new = known.values().filter(|k| k.new).count();
        if new == 0 {
            return Ok(());
        }
        let writing = || format!("write {}", self.path.display());
        // A few are added, until what they stand for is twice in the file.
        let added =
            self.records.is_some_and(|records| records + new <= 2 * known.len() && known.len() <= MOST);
        if added {
            let mut bytes = Vec::new();
            known.iter().filter(|(_, k)| k.new).for_each(|(key, k)| record(*key, k, &mut bytes));
            let mut file = File::options().append(true).open(&self.path).with_context(writing)?;
            let length = file.metadata().with_context(writing)?.len();
            // Another may have left a part of a record meanwhile; ours would mean nothing behind it.
            if length >= MAGIC.len() as u64 && (length - MAGIC.len() as u64).is_multiple_of(RECORD as u64) {
                file.write_all(&bytes).with_context(writing)?;
                known.values_mut().for_each(|k| k.new = false);
                return Ok(());
            }
        }
        let mut bytes = MAGIC.to_vec();
        // What this build has seen is worth more.
        let (seen, others): (Vec<_>, Vec<_>) = known.iter().partition(|(_, k)| k.seen);
        seen.into_iter().chain(others).take(MOST).for_each(|(key, k)| record(*key, k, &mut bytes));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        let new = self.path.with_extension(format!("{now}.new"));
        let write = || -> io::Result<()> {
            File::create(&new)?.write_all(&bytes)?;
            std::fs::rename(&new, &self.path)
        };
        write().with_context(writing)?;
        known.values_mut().for_each(|k| k.new = false);
        Ok(())
    }
}

fn record((device, inode): (u64, u64), Known { says, sum, .. }: &Known, bytes: &mut Vec<u8>) {
    let nanos = u64::from(says.modified.1) | u64::from(says.changed.1) << 32;
    let (modified, changed) = (says.modified.0.cast_unsigned(), says.changed.0.cast_unsigned());
    let begin = bytes.len();
    for word in [device, inode, says.size, modified, changed, 0, 0, nanos] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(sum);
    let sum = check(&bytes[begin..]);
    bytes[begin + 40..begin + 48].copy_from_slice(&sum.to_le_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_found_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("index");
        let read = |index: &Index, name: &str, content: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, content).expect("write");
            // Long ago, so that its times can be trusted.
            std::thread::sleep(RACY * 2);
            let file = File::open(file).expect("open");
            let stat = rustix::fs::fstat(&file).expect("stat");
            (index.read(&file, &stat).expect("read"), stat)
        };
        let mut all = Vec::new();
        for n in 0..6 {
            let index = Index::open(&path);
            all.push(read(&index, &n.to_string(), "content"));
            index.save().expect("saved");
        }
        let index = Index::open(&path);
        all.iter().for_each(|(sum, stat)| assert_eq!(index.get(stat), Some(*sum)));
        // Of what was not written whole, the rest counts, and it can be added to again.
        let bytes = std::fs::read(&path).expect("the index");
        for damaged in [&bytes[..bytes.len() - 7], &[&bytes[..], &[1; 50]].concat()] {
            std::fs::write(&path, damaged).expect("write");
            let index = Index::open(&path);
            let kept = all.iter().filter(|(sum, stat)| index.get(stat) == Some(*sum)).count();
            assert!(kept >= 5, "{kept}");
            let (sum, stat) = read(&index, "more", "more");
            index.save().expect("saved");
            assert_eq!(Index::open(&path).get(&stat), Some(sum));
        }
        let mut wrong = bytes.clone();
        let last = wrong.len() - 1;
        wrong[last] ^= 1;
        std::fs::write(&path, wrong).expect("write");
        let index = Index::open(&path);
        assert_eq!(all.iter().filter(|(_, stat)| index.get(stat).is_some()).count(), 5);
    }
}
