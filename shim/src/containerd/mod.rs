//! The first door: containerd's shim v2, `containerd-shim-berth-v2` (runtime `io.containerd.berth.v2`).
//!
//! ```text
//!  containerd ── start ─▶ boot ── listens, starts ─▶ serve ◀── 17 calls over ttrpc ── containerd
//!                                                     │  └── events ──▶ containerd
//!                                                     └── task ─▶ runtime
//!  containerd ── delete ─▶ boot: puts away what a shim that died has left
//! ```

mod boot;
mod events;
mod message;
mod metrics;
mod options;
mod rootfs;
mod service;
mod stdio;
mod ttrpc;

pub use boot::{Environment, main};
