//! Supervision of containers: their first process ([`init`]), and the programs that watch over them, for containerd
//! ([`containerd`]) and alone.

pub mod conmon;
pub mod containerd;
mod copy;
mod executor;
mod exits;
pub mod init;
mod oom;
mod output;
pub mod standalone;
mod task;
