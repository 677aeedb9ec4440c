//! How does oci-spec get its one pattern matched without a third of the binary? By `regex-lite`, which has the same
//! interface and no Unicode tables.

pub use regex_lite::*;
