//! What is to be done for a Dockerfile? Decided here, before anything is done; nothing in here touches the disk or the network.
//!
//! | module | question |
//! |---|---|
//! | [`scope`] | which variables are there, and what are they worth? |
//! | [`state`] | what does an instruction do, at its place in a stage? |
//! | [`mounts`] | what does a `RUN` find mounted? |
//! | [`stages`] | which stages does a target need, and in which order? |

pub mod mounts;
pub mod scope;
pub mod stages;
pub mod state;
