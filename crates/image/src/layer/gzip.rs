//! How is a layer's gzip stream made? In blocks, one thread each, as pigz does it: every block goes on with the last 32 KiB of the
//! one before as its dictionary, and all are one member (RFC 1952). What is compressed already (pictures, archives, wheels) is
//! found and stored as it is: deflate needs the most time for what it can do the least about.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::num::NonZero;
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use flate2::{Compress, Crc, FlushCompress, Status};

use super::compress::read_full;
use crate::workers;

/// Bytes that are compressed at a time.
pub const BLOCK: usize = 512 << 10;
/// How far back deflate can refer.
const DICTIONARY: usize = 32 << 10;
/// Bytes that are noise together or not.
const PIECE: usize = 32 << 10;
/// What a stored block may hold: its length has 16 bits.
const STORED: usize = 0xffff;

/// A block on its way through the threads.
struct Job {
    number: u64,
    /// The dictionary, then the block.
    bytes: Vec<u8>,
    dictionary: usize,
    last: bool,
}

/// RFC 1952: one member, without name and time, so that it says nothing of when and where it was made.
pub fn gzip(
    from: &mut (impl Read + ?Sized),
    to: &mut (impl Write + ?Sized),
    level: u32,
    threads: NonZero<usize>,
) -> io::Result<()> {
    let extra = match level {
        9 => 2,
        1 => 4,
        _ => 0,
    };
    to.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, extra, 255])?;
    let mut crc = Crc::new();
    let ahead = threads.get() as u64 * 2;
    let (jobs, queue) = sync_channel::<Job>(threads.get());
    let queue = &Mutex::new(queue);
    let sum = &mut crc;
    let mut write_out = |bytes: &[u8]| to.write_all(bytes);
    // What is moved in here ends with it, whichever way, and so do the threads.
    thread::scope(move |scope| -> io::Result<()> {
        let jobs = jobs;
        let (done, results) = channel();
        for n in 0..threads.get() {
            let done = done.clone();
            let spawned = workers::spawn(scope, move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = next else { return };
                    let packed = deflate(&job, level);
                    if done.send((job, packed)).is_err() {
                        return;
                    }
                }
            });
            match spawned {
                Err(e) if n == 0 => return Err(e),
                Err(_) => break,
                Ok(_) => {}
            }
        }
        drop(done);
        let mut waiting = BTreeMap::new();
        let mut spare: Vec<Vec<u8>> = Vec::new();
        let (mut sent, mut written) = (0_u64, 0_u64);
        let mut write = |written: &mut u64, spare: &mut Vec<Vec<u8>>| -> io::Result<()> {
            while !waiting.contains_key(written) {
                let (job, packed) = results.recv().map_err(|_| io::Error::other("a thread has gone"))?;
                spare.push(job.bytes);
                waiting.insert(job.number, packed?);
            }
            write_out(&waiting.remove(written).unwrap_or_default())?;
            *written += 1;
            Ok(())
        };
        let mut current = vec![0; BLOCK];
        let mut length = read_full(from, &mut current)?;
        let mut dictionary = Vec::new();
        loop {
            let mut next = spare.pop().unwrap_or_default();
            next.resize(BLOCK, 0);
            // Whether a block is the last is known when there is no other.
            let next_length = if length == BLOCK { read_full(from, &mut next)? } else { 0 };
            sum.update(&current[..length]);
            let mut bytes = spare.pop().unwrap_or_default();
            bytes.clear();
            bytes.extend_from_slice(&dictionary);
            bytes.extend_from_slice(&current[..length]);
            let last = next_length == 0;
            let job = Job { number: sent, bytes, dictionary: dictionary.len(), last };
            jobs.send(job).map_err(|_| io::Error::other("a thread has gone"))?;
            sent += 1;
            dictionary.clear();
            dictionary.extend_from_slice(&current[length.saturating_sub(DICTIONARY)..length]);
            spare.push(std::mem::replace(&mut current, next));
            length = next_length;
            while sent - written >= ahead || (last && written < sent) {
                write(&mut written, &mut spare)?;
            }
            if last {
                return Ok(());
            }
        }
    })?;
    to.write_all(&crc.sum().to_le_bytes())?;
    to.write_all(&crc.amount().to_le_bytes())
}

/// Compress a block; all but the last end on a whole byte, with nothing held back.
fn deflate(job: &Job, level: u32) -> io::Result<Vec<u8>> {
    let (bytes, length) = (&job.bytes[..], job.bytes.len());
    let mut out = Vec::with_capacity((length - job.dictionary) / 2 + 1024);
    let mut at = job.dictionary;
    let mut seen = Seen::default();
    let kind = |at: usize, seen: &mut Seen| seen.noise(bytes, at..length.min(at + PIECE));
    let mut noise = kind(at, &mut seen);
    loop {
        // As many pieces as are of the same kind.
        let (start, this) = (at, noise);
        while at < length && noise == this {
            at = length.min(at + PIECE);
            noise = at < length && kind(at, &mut seen);
        }
        let last = job.last && at == length;
        if this {
            let mut blocks = bytes[start..at].chunks(STORED).peekable();
            while let Some(block) = blocks.next() {
                let length = block.len() as u16;
                out.push(u8::from(last && blocks.peek().is_none()));
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(&(!length).to_le_bytes());
                out.extend_from_slice(block);
            }
        } else {
            squeeze(
                &bytes[start.saturating_sub(DICTIONARY)..start],
                &bytes[start..at],
                level,
                last,
                &mut out,
            )?;
        }
        if at == length {
            return Ok(out);
        }
    }
}

fn squeeze(dictionary: &[u8], mut input: &[u8], level: u32, last: bool, out: &mut Vec<u8>) -> io::Result<()> {
    // A new one for each: at level 1, one that was reset makes other bytes than a new one.
    let mut deflater = Compress::new(flate2::Compression::new(level), false);
    if !dictionary.is_empty() {
        deflater.set_dictionary(dictionary)?;
    }
    let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
    loop {
        let before = deflater.total_in();
        let status = deflater.compress_vec(input, out, flush)?;
        input = &input[(deflater.total_in() - before) as usize..];
        let room = out.len() < out.capacity();
        match status {
            Status::StreamEnd => return Ok(()),
            _ if room && input.is_empty() && !last => return Ok(()),
            _ => out.reserve(64 << 10),
        }
    }
}

/// Where four bytes were last, by a hash of them.
#[derive(Default)]
struct Seen {
    /// One more than the position; empty until it is needed.
    places: Vec<u32>,
    upto: usize,
}

impl Seen {
    /// Is there next to nothing to be gained from these bytes, and those before them?
    fn noise(&mut self, bytes: &[u8], piece: std::ops::Range<usize>) -> bool {
        piece.len() >= PIECE / 8 && even(&bytes[piece.clone()]) && !self.repeats(bytes, piece)
    }

    /// Is more than a sixty-fourth of it what stood before?
    fn repeats(&mut self, bytes: &[u8], piece: std::ops::Range<usize>) -> bool {
        const BITS: u32 = 14;
        self.places.resize(1 << BITS, 0);
        let mut again = 0;
        let begin = self.upto.max(piece.start.saturating_sub(DICTIONARY));
        let end = piece.end.min(bytes.len().saturating_sub(3));
        for (at, four) in bytes[begin..].windows(4).take(end.saturating_sub(begin)).enumerate() {
            let at = begin + at;
            let four = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
            let place = &mut self.places[(four.wrapping_mul(0x9e37_79b1) >> (32 - BITS)) as usize];
            let before = *place as usize;
            if at >= piece.start && before > 0 {
                let before = &bytes[before - 1..before + 3];
                again += usize::from(before == four.to_le_bytes());
            }
            *place = at as u32 + 1;
        }
        self.upto = end;
        again > piece.len() / 64
    }
}

/// Are all bytes about as frequent? Two of them are the same in one of 256 cases then; 239 stands for 7.9 bits in a byte.
fn even(bytes: &[u8]) -> bool {
    let mut counts = [[0_u32; 256]; 4];
    let mut fours = bytes.chunks_exact(4);
    for four in &mut fours {
        for (counts, byte) in counts.iter_mut().zip(four) {
            counts[usize::from(*byte)] += 1;
        }
    }
    for byte in fours.remainder() {
        counts[0][usize::from(*byte)] += 1;
    }
    let same: u64 = (0..256).map(|b| u64::from(counts.iter().map(|c| c[b]).sum::<u32>()).pow(2)).sum();
    let length = bytes.len() as u64;
    same * 239 <= length * length
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn random(length: usize, mut state: u64) -> Vec<u8> {
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    #[test]
    fn noise_is_what_cannot_be_compressed() {
        let noise = |bytes: &[u8], from: usize| Seen::default().noise(bytes, from..bytes.len());
        let random_one = random(PIECE, 1);
        assert!(noise(&random_one, 0));
        assert!(noise(&[random_one.clone(), random(PIECE, 2)].concat(), PIECE));
        let hex: Vec<u8> = random_one.iter().map(|b| b"0123456789abcdef"[usize::from(b % 16)]).collect();
        for (title, bytes, from) in [
            ("zeros", vec![0; PIECE], 0),
            ("hexadecimal", hex, 0),
            ("what was there before", random_one.repeat(2), PIECE),
            ("twice in itself", random_one[..PIECE / 2].repeat(2), 0),
            ("all bytes in their order", (0..=255).cycle().take(PIECE).collect(), 0),
            ("a part of it", [&random_one[..PIECE / 2], &[b'x'; PIECE / 2]].concat(), 0),
            ("too little to be sure", random_one[..100].to_vec(), 0),
            ("nothing", vec![], 0),
        ] {
            assert!(!noise(&bytes, from), "{title}");
        }
    }

    #[test]
    fn noise_is_stored_and_the_rest_is_not() {
        let text = b"Words, words, words. ".repeat(BLOCK / 21 + 1);
        for (parts, most) in [
            (vec![random(3 * BLOCK, 1)], 3 * BLOCK + BLOCK / 50),
            (vec![text.clone(), random(BLOCK, 1), text.clone()], BLOCK + BLOCK / 50),
            (vec![random(100_000, 1), text.clone(), random(100_000, 2)], 200_000 + BLOCK / 50),
            (vec![random(100_000, 1), random(1000, 1), text], 101_000 + BLOCK / 50),
        ] {
            let bytes = parts.concat();
            let mut out = Vec::new();
            gzip(&mut &bytes[..], &mut out, 6, NonZero::<usize>::MIN).unwrap();
            assert!(out.len() < most, "{} bytes become {}, more than {most}", bytes.len(), out.len());
            let mut back = Vec::new();
            flate2::read::GzDecoder::new(&out[..]).read_to_end(&mut back).unwrap();
            assert!(back == bytes);
        }
    }
}
