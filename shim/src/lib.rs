//! Supervision of containers: what stays with one as long as it runs.

pub mod init;
