//! Images without a daemon: pulled, kept, unpacked, pushed.
//!
//! | module | question |
//! |---|---|
//! | [`cli`] | what did the user ask for? One file for each verb, or a few that belong together |
//! | [`environment`] | what does the environment say: where the store is, who we are to registries? |
//! | [`facts`] | what is there to tell about an image? |
//! | [`foreign`] | which machines' programs run here? |
//! | [`mod@format`] | how are results printed? |
//! | [`progress`] | what is seen of long work? |
//! | [`dockerfile`] | what does a Dockerfile say? |
//! | [`ignore`] | which files of a build context are left out? |
//! | [`plan`] | what is to be done for a Dockerfile? |
//! | [`attest`] | what is told of an image beside it? |
//! | [`bundle`] | how does an image become an OCI bundle? |

pub mod attest;
pub mod bundle;
pub mod cli;
pub mod context;
pub mod dockerfile;
pub mod environment;
pub mod exec;
pub mod facts;
pub mod foreign;
pub mod format;
pub mod git;
pub mod glob;
pub mod ignore;
pub mod plan;
pub mod progress;
pub mod watch;
