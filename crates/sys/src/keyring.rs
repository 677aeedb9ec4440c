//! keyctl(2): session keyrings.

use std::ffi::CStr;
use std::io;

use crate::check;

const JOIN_SESSION_KEYRING: i32 = 1;
const SETPERM: i32 = 5;
/// Everything for whoever possesses it; for its user: view, read, search, link. Without "search" a process of the same
/// user that joins by name would not find it.
const PERMISSIONS: u32 = 0x3f00_0000 | 0x001b_0000;

/// Join the session keyring `name`, which is made if there is none. False: this kernel has no keys.
pub fn join_session(name: &CStr) -> io::Result<bool> {
    // SAFETY: the name is a C string that outlives the call.
    let id = check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) });
    let id = match id {
        Ok(id) => id,
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => return Ok(false),
        Err(e) => return Err(e),
    };
    // SAFETY: integers only.
    match check(unsafe { libc::syscall(libc::SYS_keyctl, SETPERM, id, PERMISSIONS) }) {
        Ok(_) => Ok(true),
        // Joined, and its owner has set them when it was made.
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => Ok(true),
        Err(e) => Err(e),
    }
}
