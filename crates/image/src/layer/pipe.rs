//! How do bytes get from one thread to another, with bounded memory and without being copied twice? Buffers go there full and
//! come back empty.

use std::io::{self, BufRead, Read, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// Bytes of a buffer.
const BUFFER: usize = 128 << 10;
/// Buffers that may be on their way.
const BUFFERS: usize = 6;

/// A pipe inside the process.
pub fn pipe() -> (PipeWriter, PipeReader) {
    let (full, from) = sync_channel(BUFFERS);
    let (empty, back) = channel();
    let writer = PipeWriter { full, back, buffer: Vec::new(), length: 0 };
    (writer, PipeReader { from, empty, buffer: Vec::new(), at: 0, ended: false })
}

enum Message {
    Bytes(Vec<u8>),
    End,
    Failed(io::Error),
}

/// Where bytes go in. Dropped without [`PipeWriter::finish`], it fails the reader.
#[derive(Debug)]
pub struct PipeWriter {
    full: SyncSender<Message>,
    back: Receiver<Vec<u8>>,
    buffer: Vec<u8>,
    length: usize,
}

/// Where bytes come out.
#[derive(Debug)]
pub struct PipeReader {
    from: Receiver<Message>,
    empty: Sender<Vec<u8>>,
    buffer: Vec<u8>,
    at: usize,
    ended: bool,
}

impl PipeWriter {
    /// Let `read` fill the free part of a buffer; what it returns tells how far, 0 that there is no more.
    pub fn fill(&mut self, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        if self.buffer.is_empty() {
            self.buffer = self.back.try_recv().unwrap_or_default();
            self.buffer.resize(BUFFER, 0);
        }
        let n = read(&mut self.buffer[self.length..])?;
        self.length += n;
        if self.length == BUFFER {
            self.send()?;
        }
        Ok(n)
    }

    fn send(&mut self) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.truncate(std::mem::take(&mut self.length));
        if buffer.is_empty() {
            return Ok(());
        }
        self.full.send(Message::Bytes(buffer)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// That was all, or what went wrong.
    pub fn finish(mut self, how: io::Result<()>) {
        let last = self.send();
        // A reader that is gone needs to know nothing.
        self.full
            .send(match how.and(last) {
                Ok(()) => Message::End,
                Err(e) => Message::Failed(e),
            })
            .unwrap_or_default();
    }
}

impl Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.fill(|free| {
            let n = free.len().min(bytes.len());
            free[..n].copy_from_slice(&bytes[..n]);
            Ok(n)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl BufRead for PipeReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.buffer.len() && !self.ended {
            let old = std::mem::take(&mut self.buffer);
            self.at = 0;
            if old.capacity() > 0 {
                self.empty.send(old).unwrap_or_default();
            }
            match self.from.recv() {
                Ok(Message::Bytes(bytes)) => self.buffer = bytes,
                Ok(Message::End) => self.ended = true,
                Ok(Message::Failed(e)) => {
                    self.ended = true;
                    return Err(e);
                }
                Err(_) => return Err(io::Error::other("the thread that was to write has gone")),
            }
        }
        Ok(&self.buffer[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        super::read_through(self, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_in_order_and_whole() {
        let (mut writer, mut reader) = pipe();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        let mut got = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for part in sent.chunks(77_777) {
                    writer.write_all(part).unwrap();
                }
                writer.finish(Ok(()));
            });
            reader.read_to_end(&mut got).unwrap();
        });
        assert!(got == sent);
        assert_eq!(reader.read(&mut [0; 9]).unwrap(), 0);
    }

    #[test]
    fn failures_reach_the_other_end() {
        let (mut writer, mut reader) = pipe();
        writer.write_all(b"abc").unwrap();
        writer.finish(Err(io::Error::other("disk")));
        let mut got = Vec::new();
        assert_eq!(reader.read_to_end(&mut got).unwrap_err().to_string(), "disk");
        assert_eq!(got, b"abc");
        let (writer, mut reader) = pipe();
        drop(writer);
        assert!(reader.read(&mut [0]).is_err(), "an end that was not told is none");
        let (mut writer, reader) = pipe();
        drop(reader);
        assert_eq!(writer.write_all(&vec![0; BUFFER]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
