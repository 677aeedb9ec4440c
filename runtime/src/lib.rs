//! `berth-runtime`: an OCI bundle becomes a running, confined process. Three beats, one folder each:
//! read ([`bundle`], [`host`]), plan ([`plan`]), do ([`launch`], [`setup`], [`cgroup`]).

pub mod bundle;
pub mod cgroup;
pub mod cli;
pub mod client;
pub mod criu;
pub mod host;
pub mod id;
pub mod json;
pub mod launch;
pub mod plan;
pub mod protobuf;
pub mod setup;
pub mod state;
