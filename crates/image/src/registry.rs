//! Registries, as OCI's distribution-spec 1.1 and Docker's registry have them.
//!
//! | module | question |
//! |---|---|
//! | [`hosts`] | where is a registry, and how is it spoken to? |
//! | [`credentials`] | who are we to it? |
//! | [`challenge`] | what does it want to see? |
//! | [`http`] | one request: credentials, redirections, what is tried again |
//! | [`fetch`] | how does a file come from the web, that is no part of an image? |
//! | [`client`] | how does an image come from a registry, and go there? |
//! | [`pace`] | does a transfer come on, or does it only drip? |
//! | [`replay`] | how is a stream sent again from where it was cut? |

pub mod challenge;
pub mod client;
pub mod credentials;
pub mod fetch;
pub mod hosts;
pub mod http;
pub mod pace;
pub mod replay;
