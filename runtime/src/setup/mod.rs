//! What init applies to itself, one kernel subject a file. Sees parts of the plan and never the spec.

pub mod attributes;
pub mod common;
mod copy_up;
pub mod credentials;
mod devices;
pub mod hooks;
pub mod landlock;
mod mounts;
pub mod net_devices;
mod paths;
pub mod program;
pub mod rdt;
pub mod rootfs;
pub mod seccomp_listener;
pub mod sysctl;
pub mod terminal;
