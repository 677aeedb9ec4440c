//! How does an image get from one place to another? Whatever an image can be read from is a [`Source`], whatever it can be
//! written to a [`Target`]: the store, registries, folders and archives. what copies knows no more of them.

use std::io::Read;

use anyhow::Result;

use crate::digest::Digest;
use crate::manifest::Descriptor;

/// Where an image can be read from. Several threads may read at once.
pub trait Source: Sync {
    /// The manifest or index that was asked for: the bytes as they came, and what they turned out to be.
    fn root(&self) -> Result<(Descriptor, Vec<u8>)>;

    /// The manifest or index that `descriptor` promises, verified.
    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>>;

    /// The content of a blob from its first byte on. It need not be verified: the one who reads it does that. Nothing beyond
    /// the promised size is given; what is cut off before is an error, after every attempt to go on.
    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>>;
}

/// Where an image can be written to. Several threads may write at once.
pub trait Target: Sync {
    /// Whether that blob need not be sent: it is there, or could be brought there without us.
    fn has(&self, descriptor: &Descriptor) -> Result<bool>;

    /// Write a blob that is known in advance. Other content than promised is refused, and leaves nothing.
    fn put(&self, descriptor: &Descriptor, content: &mut (dyn Read + Send)) -> Result<()>;

    /// Write a blob whose digest and size nobody knows before its end; they are those of the descriptor that returns.
    fn put_new(&self, media_type: &str, content: &mut (dyn Read + Send)) -> Result<Descriptor>;

    /// Write a manifest or index other than the last: after the blobs that it names.
    fn put_document(&self, descriptor: &Descriptor, bytes: &[u8]) -> Result<()>;

    /// Write the manifest or index that the image's name leads to: after everything else, and with it the image is there,
    /// whole, or not at all.
    fn finish(&self, root: &Descriptor, bytes: &[u8]) -> Result<()>;

    /// What the target can take.
    fn takes(&self) -> Takes {
        Takes::Anything
    }
}

/// What a target can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    Anything,
    /// One image (no index), in Docker's schema 2, its layers uncompressed: Docker's archives.
    DockerArchive,
}

/// What happens meanwhile, for progress bars.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A blob of so many bytes is on its way (`None`: nobody knows how many).
    Begin { digest: Digest, size: Option<u64> },
    /// So many more bytes of it.
    Bytes { digest: Digest, count: u64 },
    /// It has arrived.
    Done { digest: Digest },
    /// It was there already.
    Present { digest: Digest },
}

/// Hears of events, on any thread.
pub type Listener<'a> = &'a (dyn Fn(Event) + Sync);
