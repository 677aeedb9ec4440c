//! Registries, as OCI's distribution-spec 1.1 and Docker's registry have them.
//!
//! | module | question |
//! |---|---|
//! | [`hosts`] | where is a registry, and how is it spoken to? |
//! | [`credentials`] | who are we to it? |
//! | [`challenge`] | what does it want to see? |

pub mod challenge;
pub mod credentials;
pub mod hosts;
