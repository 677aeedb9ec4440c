//! Supervision of containers: their first process ([`init`]), and the programs that watch over them, for containerd
//! ([`containerd`]) and alone.

pub mod containerd;
mod copy;
mod executor;
mod exits;
pub mod init;
mod task;
