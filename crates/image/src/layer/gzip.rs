//! How is a layer's gzip stream made? In blocks, one thread each: a block becomes a member (RFC 1952) of its own, and readers take
//! all members of a stream as one. What is compressed already (pictures, archives, wheels) is found and stored as it is: deflate
//! needs the most time for what it can do the least about.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::num::NonZero;
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use libdeflater::{CompressionLvl, Compressor, Crc};

use super::compress::read_full;
use crate::workers;

/// Bytes that are compressed at a time.
pub const BLOCK: usize = 1 << 20;
/// Bytes that are noise together or not.
const PIECE: usize = 32 << 10;
/// How far back deflate can refer.
const WINDOW: usize = 32 << 10;
/// What a stored block may hold: its length has 16 bits.
const STORED: usize = 0xffff;
/// RFC 1952: a header without name and time, so that it says nothing of when and where it was made.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// A block on its way through the threads.
struct Job {
    number: u64,
    bytes: Vec<u8>,
}

/// At least one member, also of nothing. Levels are zlib's, 1 to 9.
pub fn gzip(
    from: &mut (impl Read + ?Sized),
    to: &mut (impl Write + ?Sized),
    level: u32,
    threads: NonZero<usize>,
) -> io::Result<()> {
    let level =
        CompressionLvl::new(level.cast_signed()).map_err(|_| io::Error::other("gzip has no such level"))?;
    let ahead = threads.get() as u64 * 2;
    let (jobs, queue) = sync_channel::<Job>(threads.get());
    let queue = &Mutex::new(queue);
    // What is moved in here ends with it, whichever way, and so do the threads.
    thread::scope(move |scope| -> io::Result<()> {
        let jobs = jobs;
        let (done, results) = channel();
        for n in 0..threads.get() {
            let done = done.clone();
            let spawned = workers::spawn(scope, move || {
                let mut deflater = Compressor::new(level);
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = next else { return };
                    let packed = members(&job.bytes, &mut deflater);
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
        loop {
            let mut bytes = spare.pop().unwrap_or_default();
            bytes.resize(BLOCK, 0);
            let length = read_full(from, &mut bytes)?;
            bytes.truncate(length);
            let last = length < BLOCK;
            if length > 0 || sent == 0 {
                jobs.send(Job { number: sent, bytes }).map_err(|_| io::Error::other("a thread has gone"))?;
                sent += 1;
            }
            while sent - written >= ahead || (last && written < sent) {
                while !waiting.contains_key(&written) {
                    let (job, packed) = results.recv().map_err(|_| io::Error::other("a thread has gone"))?;
                    spare.push(job.bytes);
                    waiting.insert(job.number, packed?);
                }
                to.write_all(&waiting.remove(&written).unwrap_or_default())?;
                written += 1;
            }
            if last {
                return Ok(());
            }
        }
    })
}

/// A block's members: one for each row of pieces that are of the same kind.
fn members(bytes: &[u8], deflater: &mut Compressor) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len() / 2 + 1024);
    let mut at = 0;
    let mut seen = Seen::default();
    let kind = |at: usize, seen: &mut Seen| seen.noise(bytes, at..bytes.len().min(at + PIECE));
    let mut noise = kind(at, &mut seen);
    loop {
        let (start, this) = (at, noise);
        while at < bytes.len() && noise == this {
            at = bytes.len().min(at + PIECE);
            noise = at < bytes.len() && kind(at, &mut seen);
        }
        if this {
            store(&bytes[start..at], &mut out);
        } else {
            squeeze(&bytes[start..at], deflater, &mut out)?;
        }
        if at == bytes.len() {
            return Ok(out);
        }
    }
}

/// A member of stored blocks (RFC 1951, 3.2.4).
fn store(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len() + bytes.len() / STORED * 5 + 32);
    out.extend_from_slice(&HEADER);
    let mut blocks = bytes.chunks(STORED).peekable();
    while let Some(block) = blocks.next() {
        let length = block.len() as u16;
        out.push(u8::from(blocks.peek().is_none()));
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(block);
    }
    let mut crc = Crc::new();
    crc.update(bytes);
    out.extend_from_slice(&crc.sum().to_le_bytes());
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
}

fn squeeze(bytes: &[u8], deflater: &mut Compressor, out: &mut Vec<u8>) -> io::Result<()> {
    let start = out.len();
    out.resize(start + deflater.gzip_compress_bound(bytes.len()), 0);
    let length = deflater.gzip_compress(bytes, &mut out[start..]).map_err(io::Error::other)?;
    out.truncate(start + length);
    Ok(())
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
        let begin = self.upto.max(piece.start.saturating_sub(WINDOW));
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
            flate2::read::MultiGzDecoder::new(&out[..]).read_to_end(&mut back).unwrap();
            assert!(back == bytes);
        }
    }
}
