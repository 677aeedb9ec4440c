//! Who are we, and what is our user namespace?

use std::os::unix::fs::MetadataExt;

/// Our effective user and group.
pub fn effective_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Are we in a user namespace other than the initial one? The initial one's inode is a constant of the kernel
/// (`PROC_USER_INIT_INO`). Without a /proc to look at we take it that we are not.
pub fn in_user_namespace() -> bool {
    const INITIAL: u64 = 0xeffffffd;
    std::fs::metadata("/proc/self/ns/user").is_ok_and(|ns| ns.ino() != INITIAL)
}
