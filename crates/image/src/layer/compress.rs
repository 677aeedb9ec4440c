//! How are layers compressed? With gzip or zstd, by several threads. The output depends on the input and the level alone, never on
//! the number of threads or on how the input came in pieces.

use std::fmt;
use std::io::{self, BufReader, Chain, Cursor, Read, Write};
use std::num::NonZero;
use std::str::FromStr;
use std::thread;

use anyhow::{Result, bail, ensure};
use flate2::bufread::MultiGzDecoder;
use zstd::zstd_safe::CParameter;

use super::gzip::gzip;
use super::pipe::{PipeReader, pipe};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::family::Packing;
use crate::workers;

/// Changes when the same input makes other bytes than before.
const EDITION: u32 = 4;
/// Bytes that a thread of zstd's has at a time. Its own choice, more than five times that for the usual levels, would cost some 60 MB for
/// a layer, and saves a percent.
const ZSTD_JOB: u32 = 3 << 19;
/// As a power of two, the memory that a zstd frame may ask for: 64 MiB.
const ZSTD_WINDOW_MOST: u32 = 26;
/// What a layer may become, so that no few bytes fill a disk: so much in any case, and beyond that so many times its size.
const ALWAYS: u64 = 16 << 30;
const TIMES: u64 = 200;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Plain,
    /// 1 to 9.
    Gzip(u32),
    /// 1 to 22.
    Zstd(i32),
}

impl Compression {
    pub const GZIP: Compression = Compression::Gzip(6);
    pub const ZSTD: Compression = Compression::Zstd(3);

    /// What a media type says of it.
    pub fn packing(self) -> Packing {
        match self {
            Compression::Plain => Packing::Plain,
            Compression::Gzip(_) => Packing::Gzip,
            Compression::Zstd(_) => Packing::Zstd,
        }
    }

    /// Another level, if it is one.
    pub fn with_level(self, level: i32) -> Result<Compression> {
        match self {
            Compression::Plain => bail!("what is not compressed has no level"),
            Compression::Gzip(_) => {
                ensure!((1..=9).contains(&level), "gzip has the levels 1 to 9, not {level}");
                Ok(Compression::Gzip(level.unsigned_abs()))
            }
            Compression::Zstd(_) => {
                ensure!((1..=22).contains(&level), "zstd has the levels 1 to 22, not {level}");
                Ok(Compression::Zstd(level))
            }
        }
    }

    /// Names the bytes that come of it: the same for the same input.
    pub fn edition(self) -> String {
        format!("{self}/{EDITION}")
    }
}

impl FromStr for Compression {
    type Err = anyhow::Error;

    /// `gzip`, `zstd` or `none`, with a level behind a colon.
    fn from_str(text: &str) -> Result<Compression> {
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level)),
            None => (text, None),
        };
        let kind = match name {
            "gzip" => Compression::GZIP,
            "zstd" => Compression::ZSTD,
            "none" | "plain" | "uncompressed" => Compression::Plain,
            _ => bail!("compression {name:?}: known are gzip, zstd and none, with a level as in zstd:19"),
        };
        match level.map(str::parse) {
            None => Ok(kind),
            Some(Ok(level)) => kind.with_level(level),
            Some(Err(_)) => bail!("compression {text:?}: the level is no number"),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::Plain => f.write_str("none"),
            Compression::Gzip(level) => write!(f, "gzip:{level}"),
            Compression::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// How bytes that begin so are compressed; an error's text for what images do not know.
pub fn sniff(first: &[u8]) -> Result<Packing, String> {
    let unsupported = |name: &str| {
        Err(format!("it is compressed with {name}, which images do not know; gzip and zstd they do"))
    };
    match first {
        [0x1f, 0x8b, ..] => Ok(Packing::Gzip),
        // A frame, or one that is to be skipped.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Packing::Zstd),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => unsupported("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => unsupported("xz"),
        _ => Ok(Packing::Plain),
    }
}

/// The bytes that [`sniff`] wants.
pub const SNIFFED: usize = 6;

/// The first bytes, which were looked at, and the rest.
type Whole<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

#[allow(clippy::large_enum_variant, reason = "one for a layer")]
/// Reads what a layer holds, however it is compressed; its first bytes tell.
pub enum Decoder<R: Read> {
    Plain(Whole<R>),
    Gzip(MultiGzDecoder<Whole<R>>),
    Zstd(zstd::stream::read::Decoder<'static, Whole<R>>),
}

impl<R: Read> fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Decoder::Plain(_) => "Plain",
            Decoder::Gzip(_) => "Gzip",
            Decoder::Zstd(_) => "Zstd",
        })
    }
}

impl<R: Read> Decoder<R> {
    pub fn new(mut from: R) -> io::Result<Decoder<R>> {
        let mut first = [0; SNIFFED];
        let have = read_full(&mut from, &mut first)?;
        let packing = sniff(&first[..have]).map_err(|e| io::Error::new(io::ErrorKind::Unsupported, e))?;
        let from = BufReader::with_capacity(64 << 10, Cursor::new(first[..have].to_vec()).chain(from));
        Ok(match packing {
            Packing::Plain => Decoder::Plain(from),
            Packing::Gzip => Decoder::Gzip(MultiGzDecoder::new(from)),
            Packing::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(from)?;
                decoder.window_log_max(ZSTD_WINDOW_MOST)?;
                Decoder::Zstd(decoder)
            }
        })
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(r) => r.read(buffer),
            Decoder::Gzip(r) => r.read(buffer),
            Decoder::Zstd(r) => r.read(buffer),
        }
    }
}

/// What a layer turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The diff id: of the uncompressed bytes.
    pub digest: Digest,
    /// Of these.
    pub size: u64,
}

impl Content {
    /// It must be what the config promises of the layer in that blob.
    pub fn expect(&self, layer: &Digest, diff_id: &Digest) -> Result<()> {
        ensure!(
            self.digest == *diff_id,
            "layer {layer}: it holds {}, not {diff_id} as the config promises",
            self.digest
        );
        Ok(())
    }
}

/// Read a layer to its end, on a thread of its own; what it holds is what `take` reads meanwhile. What `take` leaves is read, too.
pub fn unpacked<T>(
    content: impl Read + Send,
    take: impl FnOnce(&mut PipeReader) -> Result<T>,
) -> Result<(T, Content)> {
    let (mut writer, mut reader) = pipe();
    thread::scope(|scope| {
        let producer = workers::spawn(scope, move || {
            let mut hasher = Hasher::new(Algorithm::Sha256);
            let mut size = 0;
            let run = || -> io::Result<()> {
                let mut counted = Counted { inner: content, count: 0 };
                let mut decoder = Decoder::new(&mut counted)?;
                loop {
                    let n = writer.fill(|free| {
                        let n = decoder.read(free)?;
                        hasher.update(&free[..n]);
                        Ok(n)
                    })?;
                    size += n as u64;
                    if n == 0 {
                        return Ok(());
                    }
                    if size > ALWAYS {
                        let packed = decoder_position(&decoder);
                        if size > most(packed) {
                            let text =
                                format!("{packed} bytes have become more than {size}: that is no layer");
                            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
                        }
                    }
                }
            };
            let done = run();
            writer.finish(done);
            Content { digest: hasher.finish(), size }
        })?;
        let taken = take(&mut reader).and_then(|taken| {
            io::copy(&mut reader, &mut io::sink())?;
            Ok(taken)
        });
        // The other thread must not wait for a reader that has given up.
        drop(reader);
        match producer.join() {
            Ok(content) => Ok((taken?, content)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// What so many bytes may become.
fn most(packed: u64) -> u64 {
    packed.saturating_mul(TIMES).saturating_add(ALWAYS)
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count += n as u64;
        Ok(n)
    }
}

fn decoder_position<R: Read>(decoder: &Decoder<&mut Counted<R>>) -> u64 {
    let whole = match decoder {
        Decoder::Plain(r) => r,
        Decoder::Gzip(r) => r.get_ref(),
        Decoder::Zstd(r) => r.get_ref(),
    };
    whole.get_ref().get_ref().1.count
}

/// Compress `from` into `to` with so many threads beside this one.
pub fn compress(
    from: &mut (impl Read + ?Sized),
    to: &mut (impl Write + ?Sized),
    how: Compression,
    threads: NonZero<usize>,
) -> io::Result<()> {
    match how {
        Compression::Plain => io::copy(from, to).map(drop),
        Compression::Gzip(level) => gzip(from, to, level, threads),
        Compression::Zstd(level) => {
            let mut encoder = zstd::stream::write::Encoder::new(to, level)?;
            // With at least one, the output is the same for any number of them.
            encoder.multithread(u32::try_from(threads.get()).unwrap_or(1))?;
            encoder.set_parameter(CParameter::JobSize(ZSTD_JOB))?;
            encoder.include_checksum(true)?;
            let mut buffer = vec![0; 128 << 10];
            loop {
                match read_full(from, &mut buffer)? {
                    0 => break,
                    n => encoder.write_all(&buffer[..n])?,
                }
            }
            encoder.finish().map(drop)
        }
    }
}

/// Read until the buffer is full or there is no more.
pub fn read_full(from: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match from.read(&mut buffer[have..]) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::gzip::BLOCK;
    use crate::layer::gzip::tests::random;

    /// Compressible and not, of any length.
    fn sample(length: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let (kind, count) = (next() % 3, usize::from(next()) * 16 + 1);
            let from = bytes.len().saturating_sub(usize::from(next()) * 100);
            for i in 0..count {
                let byte = match kind {
                    0 => next(),
                    1 => b'a' + next() % 4,
                    _ => bytes.get(from + i).copied().unwrap_or(b'x'),
                };
                bytes.push(byte);
            }
        }
        bytes.truncate(length);
        bytes
    }

    fn packed(bytes: &[u8], how: Compression, threads: usize) -> Vec<u8> {
        let mut out = Vec::new();
        compress(&mut &bytes[..], &mut out, how, NonZero::new(threads).unwrap()).unwrap();
        out
    }

    fn whole(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    /// Gives a byte, then two, then three …
    struct Dribble<'a>(&'a [u8], usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 += 1;
            let n = self.1.min(buffer.len()).min(self.0.len());
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn what_is_compressed_is_read_again_and_threads_change_nothing() {
        for length in [0, 1, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 9 << 20] {
            let bytes = sample(length);
            for how in [Compression::Plain, Compression::Gzip(1), Compression::GZIP, Compression::ZSTD] {
                let once = packed(&bytes, how, 1);
                assert!(whole(&once).unwrap() == bytes, "{how} of {length}");
                for threads in [2, 3, 8] {
                    assert!(packed(&bytes, how, threads) == once, "{how} of {length} with {threads} threads");
                }
                let mut out = Vec::new();
                compress(&mut Dribble(&bytes, 0), &mut out, how, NonZero::<usize>::MIN).unwrap();
                assert!(out == once, "{how} of {length}, in pieces");
            }
        }
    }

    /// Other programs' decoders take it.
    #[test]
    fn gzip_and_zstd_agree() {
        use std::process::{Command, Stdio};
        let bytes = sample(3 << 20);
        for (program, how) in
            [("gzip", Compression::GZIP), ("gzip", Compression::Gzip(9)), ("zstd", Compression::ZSTD)]
        {
            let child = Command::new(program).arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
            let Ok(mut child) = child else {
                eprintln!("skipped: no {program}");
                continue;
            };
            let mut stdin = child.stdin.take().unwrap();
            let input = packed(&bytes, how, 2);
            let feeder = thread::spawn(move || stdin.write_all(&input));
            let out = child.wait_with_output().unwrap();
            feeder.join().unwrap().unwrap();
            assert!(out.status.success() && out.stdout == bytes, "{program}");
        }
    }

    /// Images are told apart by the digests of these bytes: who changes them must raise the edition.
    #[test]
    fn the_output_is_the_same_as_ever() {
        let bytes = [sample(2 << 20), random(300_000, 1), sample(70_000)].concat();
        let digests = [Compression::Gzip(1), Compression::GZIP, Compression::Gzip(9), Compression::ZSTD]
            .map(|how| format!("{} {}", how.edition(), Digest::of(&packed(&bytes, how, 2)).short()));
        assert_eq!(digests, EVER);
    }

    const EVER: [&str; 4] =
        ["gzip:1/4 a5ed6b05efe6", "gzip:6/4 7083e24360dd", "gzip:9/4 f46701fc5697", "zstd:3/4 193c69e932c9"];

    #[test]
    fn members_and_frames_follow_each_other() {
        let (a, b) = (sample(1000), sample(70_000));
        for how in [Compression::GZIP, Compression::ZSTD] {
            let both = [packed(&a, how, 1), packed(&b, how, 1)].concat();
            assert!(whole(&both).unwrap() == [a.clone(), b.clone()].concat(), "{how}");
        }
        let skippable =
            [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], &packed(&a, Compression::ZSTD, 1)[..]].concat();
        assert!(whole(&skippable).unwrap() == a);
    }

    #[test]
    fn damaged_and_unknown_streams_are_errors() {
        let bytes = sample(100_000);
        for how in [Compression::GZIP, Compression::ZSTD] {
            let good = packed(&bytes, how, 1);
            assert!(whole(&good[..good.len() - 1]).is_err(), "{how} cut off");
            assert!(whole(&good[..20]).is_err(), "{how} cut off early");
            let mut bad = good.clone();
            let middle = bad.len() / 2;
            bad[middle] ^= 0xff;
            assert!(whole(&bad).is_err(), "{how} damaged");
            assert!(whole(&[&good[..], b"garbage"].concat()).is_err(), "{how} with garbage behind");
        }
        for (bytes, name) in [(&b"BZh91AY"[..], "bzip2"), (b"\xfd7zXZ\0\0", "xz")] {
            assert!(whole(bytes).unwrap_err().to_string().contains(name));
        }
    }

    #[test]
    fn a_layer_is_hashed_and_read_to_its_end() {
        let bytes = sample(5 << 20);
        let packed = packed(&bytes, Compression::GZIP, 2);
        let (first, content) = unpacked(&packed[..], |from| {
            let mut first = [0; 10];
            from.read_exact(&mut first)?;
            Ok(first)
        })
        .unwrap();
        assert_eq!(
            (&first[..], content),
            (&bytes[..10], Content { digest: Digest::of(&bytes), size: 5 << 20 })
        );
        let failed = unpacked(&packed[..], |_| -> Result<()> { bail!("no space") });
        assert_eq!(failed.unwrap_err().to_string(), "no space");
        assert!(unpacked(&packed[..packed.len() / 2], |_| Ok(())).is_err());
    }

    #[test]
    fn what_becomes_far_more_is_no_layer() {
        for (packed, size, may) in [
            (10 << 10, 10 << 30, true),
            (10 << 10, 17 << 30, false),
            (1 << 30, 200 << 30, true),
            (1 << 30, 300 << 30, false),
            (u64::MAX, u64::MAX, true),
        ] {
            assert_eq!(size <= most(packed), may, "{packed} bytes become {size}");
        }
    }

    #[test]
    fn names_and_levels() {
        for (text, how) in [
            ("gzip", Compression::GZIP),
            ("gzip:9", Compression::Gzip(9)),
            ("zstd:19", Compression::Zstd(19)),
            ("none", Compression::Plain),
        ] {
            assert_eq!(text.parse::<Compression>().unwrap(), how);
        }
        assert_eq!(Compression::ZSTD.to_string().parse::<Compression>().unwrap(), Compression::ZSTD);
        for (text, reason) in [
            ("xz", "known are"),
            ("gzip:0", "1 to 9"),
            ("gzip:10", "1 to 9"),
            ("zstd:-5", "1 to 22"),
            ("zstd:x", "no number"),
            ("none:1", "no level"),
        ] {
            let error = text.parse::<Compression>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
