//! What does a test need, to hold a runtime to its promises from outside?
//!
//! A [`Bed`] is a private world (state root, temporary files, cgroup names); a [`Bundle`] made in it is run by the
//! runtime under test. When the bed is dropped, everything that the runtime left behind fails the test.
//!
//! The runtime is `$BERTH_RUNTIME`, or else the `berth-runtime` of this workspace, built first.

pub mod bed;
pub mod bundle;
pub mod cc;
pub mod command;
pub mod fifo;
pub mod host;
pub mod image;
pub mod leaks;
pub mod need;
pub mod pty;
pub mod runtime;
pub mod shim;

pub use bed::{Bed, Container};
pub use bundle::Bundle;
pub use command::{Output, Running, bare, finish, start};
pub use fifo::Fifo;
pub use serde_json::{Value, json};
