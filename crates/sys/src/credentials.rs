//! Ids and capabilities of the calling process.

use std::io;

use capctl::caps::{CapSet, CapState};

pub const CAPBSET_DROP: i32 = libc::PR_CAPBSET_DROP;
pub const SET_KEEPCAPS: i32 = libc::PR_SET_KEEPCAPS;
pub const SET_NO_NEW_PRIVS: i32 = libc::PR_SET_NO_NEW_PRIVS;

/// The newest capability that we know by name.
const LAST_KNOWN: u8 = 40;

/// The number of the newest capability that the kernel knows (at least ours: none has ever been removed).
pub fn last_capability() -> u8 {
    let known = |cap: u8| {
        // SAFETY: integers only.
        let answer = unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(cap), 0, 0, 0) };
        // Nothing but "no such capability" may keep one out of what is dropped.
        answer >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL)
    };
    let mut last = LAST_KNOWN;
    if known(last + 1) {
        while last < 62 && known(last + 1) {
            last += 1;
        }
    } else {
        while last > 0 && !known(last) {
            last -= 1;
        }
    }
    last
}

/// Our permitted capabilities, as bits.
pub fn permitted() -> io::Result<u64> {
    let state = CapState::get_current().map_err(|e| io::Error::from_raw_os_error(e.code()))?;
    Ok(bits(state.permitted))
}

fn bits(set: CapSet) -> u64 {
    set.iter().fold(0, |bits, cap| bits | 1 << (cap as u8))
}

/// Become root of our user namespace. The namespace's own capabilities are there from its creation on.
pub fn become_root() -> io::Result<()> {
    set_ids(0, 0)
}

fn set_ids(uid: u32, gid: u32) -> io::Result<()> {
    use rustix::fs::{Gid, Uid};
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Leave the caller's supplementary groups. False: setgroups(2) is denied in our user namespace.
pub fn leave_groups() -> bool {
    rustix::thread::set_thread_groups(&[]).is_ok()
}

/// Let an execve(2) by a user that is not root keep all our capabilities.
pub fn keep_across_exec() -> io::Result<()> {
    let code = |e: capctl::Error| io::Error::from_raw_os_error(e.code());
    let mut state = CapState::get_current().map_err(code)?;
    state.inheritable = state.permitted;
    state.set_current().map_err(code)?;
    for cap in state.permitted.iter() {
        capctl::caps::ambient::raise(cap).map_err(code)?;
    }
    Ok(())
}
