//! Layers: archives of what changed, and the trees that they make.
//!
//! | module | question |
//! |---|---|
//! | [`tar`] | how does a tar archive become entries, and entries an archive? |
//! | [`compress`] | how are layers compressed? |
//! | [`pipe`] | how do bytes get from one thread to another? |

pub mod compress;
pub mod pipe;
pub mod tar;
