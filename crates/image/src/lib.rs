//! Container images: what they are called, what they are made of, and where they are kept.
//!
//! | module | question |
//! |---|---|
//! | [`mod@reference`] | which image does a user mean? |
//! | [`digest`] | is this the content that was promised? |
//! | [`manifest`] | what is an image made of? |
//! | [`layer`] | how does an archive become a tree, and a tree an archive? |
//! | [`family`] | which of the two families of media types does it speak? |
//! | [`platform`] | for which machine is an image? |
//! | [`registry`] | how does an image come from a registry, and go there? |
//! | [`rootfs`] | how do layers become a root file system? |
//! | [`rootless`] | how does an ordinary user get the ids that an image's files have? |
//! | [`store`] | where are images kept, so that no crash can damage them? |
//! | [`temporary`] | how is something written outside the store, so that it is never there in part? |
//! | `workers` | how is work shared among threads? |
//! | [`transfer`] | how does an image get from one place to another? |
//! | [`transport`] | where else do images live? |

pub mod digest;
pub mod family;
pub mod layer;
pub mod manifest;
pub mod platform;
pub mod reference;
pub mod registry;
pub mod rootfs;
pub mod rootless;
pub mod store;
pub mod temporary;
pub mod transfer;
pub mod transport;
pub mod workers;

pub use digest::Digest;
pub use reference::Reference;
pub use store::Store;
