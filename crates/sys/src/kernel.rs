//! What does the kernel offer?

use crate::check;

/// The version of Landlock's interface; `None` when the kernel lacks it or was started without it.
pub fn landlock_abi() -> Option<u32> {
    const VERSION: libc::c_uint = 1;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: asked for the version, the call reads no memory: attributes are absent and their size is 0.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, VERSION) };
    check(abi).ok().and_then(|abi| u32::try_from(abi).ok())
}

/// Whether seccomp(2) takes the flag of this name (`SECCOMP_FILTER_FLAG_…`).
pub fn has_seccomp_flag(name: &str) -> bool {
    const FILTER: libc::c_uint = 1;
    const NEW_LISTENER: libc::c_uint = 1 << 3;
    let flags: libc::c_uint = match name {
        "SECCOMP_FILTER_FLAG_TSYNC" => 1,
        "SECCOMP_FILTER_FLAG_LOG" => 1 << 1,
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => 1 << 2,
        // Only goes with a listener.
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => 1 << 5 | NEW_LISTENER,
        _ => return false,
    };
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: no filter is passed, so none can be installed: a known flag ends in EFAULT, an unknown in EINVAL.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, FILTER, flags, none) };
    check(result).is_err_and(|e| e.raw_os_error() == Some(libc::EFAULT))
}
