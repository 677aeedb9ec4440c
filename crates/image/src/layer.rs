//! Layers: archives of what changed, and the trees that they make.
//!
//! | module | question |
//! |---|---|
//! | [`tar`] | how does a tar archive become entries, and entries an archive? |

pub mod tar;
