//! Layers: archives of what changed, and the trees that they make.
//!
//! | module | question |
//! |---|---|
//! | [`tar`] | how does a tar archive become entries, and entries an archive? |
//! | [`apply`] | how does a layer's archive become a tree? |
//! | [`walk`] | how does a tree become entries, and these a layer's archive? |
//! | [`whiteout`] | how does a layer say that something is gone? |
//! | [`squash`] | how do several layers become one? |
//! | [`tree`] | what can be done with a whole tree? |
//! | [`compress`] | how are layers compressed? |
//! | [`gzip`] | how is a layer's gzip stream made? |
//! | [`pipe`] | how do bytes get from one thread to another? |

use std::io::{self, BufRead};

/// `Read::read` of what can be read through a buffer.
fn read_through(from: &mut impl BufRead, to: &mut [u8]) -> io::Result<usize> {
    let have = from.fill_buf()?;
    let n = have.len().min(to.len());
    to[..n].copy_from_slice(&have[..n]);
    from.consume(n);
    Ok(n)
}

pub mod apply;
pub mod compress;
pub mod gzip;
pub mod pipe;
pub mod squash;
pub mod tar;
pub mod tree;
pub mod walk;
pub mod whiteout;
