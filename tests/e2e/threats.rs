//! Each class of holes that container runtimes have had, with a test that fails when the defence is taken out.

mod capabilities;
mod exec_holds;
mod host_binary;
mod identifiers;
mod leaked;
mod masks;
mod mount_targets;
mod settings;
mod sysctls;
