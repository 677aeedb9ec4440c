//! Images without a daemon.
pub mod format;
