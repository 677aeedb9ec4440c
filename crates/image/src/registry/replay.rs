//! How is a stream sent again from where it was cut, when it can be read only once? Its last bytes are kept.

use std::collections::VecDeque;
use std::io::{self, Read};

use crate::digest::{Algorithm, Digest, Hasher};

/// A stream whose last bytes can be read once more.
pub struct Replay<'a> {
    content: &'a mut (dyn Read + Send),
    /// The last bytes that came, up to `end`.
    kept: VecDeque<u8>,
    most: usize,
    /// Bytes that came.
    end: u64,
    /// What is read next.
    position: u64,
    /// Known to have arrived.
    acknowledged: u64,
    hasher: Hasher,
    failure: Option<io::Error>,
}

impl<'a> Replay<'a> {
    pub fn new(content: &'a mut (dyn Read + Send), most: usize, algorithm: Algorithm) -> Replay<'a> {
        Replay {
            content,
            kept: VecDeque::new(),
            most,
            end: 0,
            position: 0,
            acknowledged: 0,
            hasher: Hasher::new(algorithm),
            failure: None,
        }
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Go on from there; false if that is too far back, or was never sent.
    pub fn rewind(&mut self, to: u64) -> bool {
        let good = to <= self.end && self.end - to <= self.kept.len() as u64;
        if good {
            self.position = to;
            self.acknowledged = to;
        }
        good
    }

    /// Why the content could not be read.
    pub fn failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// Of all that came.
    pub fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.end)
    }
}

impl Read for Replay<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position < self.end {
            let skip = self.kept.len() - (self.end - self.position) as usize;
            let (first, second) = self.kept.as_slices();
            let rest = if skip < first.len() { &first[skip..] } else { &second[skip - first.len()..] };
            let n = rest.len().min(buffer.len());
            buffer[..n].copy_from_slice(&rest[..n]);
            self.position += n as u64;
            return Ok(n);
        }
        let n = match self.content.read(buffer) {
            Ok(n) => n,
            Err(e) => {
                let told = io::Error::new(e.kind(), e.to_string());
                self.failure = Some(e);
                return Err(told);
            }
        };
        self.hasher.update(&buffer[..n]);
        let over = (self.kept.len() + n).saturating_sub(self.most).min(self.kept.len());
        self.kept.drain(..over);
        self.kept.extend(&buffer[n.saturating_sub(self.most)..n]);
        self.end += n as u64;
        self.position = self.end;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_can_be_read_again() {
        let bytes: Vec<u8> = (0..1000_u32).map(|n| n as u8).collect();
        let mut content = &bytes[..];
        let mut replay = Replay::new(&mut content, 100, Algorithm::Sha256);
        let mut buffer = [0; 300];
        replay.read_exact(&mut buffer).unwrap();
        assert!(!replay.rewind(199) && !replay.rewind(301) && replay.rewind(250));
        assert_eq!((replay.position(), replay.acknowledged()), (250, 250));
        let mut rest = Vec::new();
        replay.read_to_end(&mut rest).unwrap();
        assert!(rest == bytes[250..]);
        assert!(replay.rewind(1000) && replay.rewind(900));
        rest.clear();
        replay.read_to_end(&mut rest).unwrap();
        assert!(rest == bytes[900..]);
        assert_eq!(replay.finish(), (Digest::of(&bytes), 1000));
    }
}
