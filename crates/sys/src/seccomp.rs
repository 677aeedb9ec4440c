//! seccomp(2): loading a filter, asking what the kernel knows.

use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail};

use crate::check;

/// One classic BPF instruction, as `struct sock_filter` (linux/filter.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

pub const FLAG_TSYNC: u32 = 1 << 0;
pub const FLAG_LOG: u32 = 1 << 1;
pub const FLAG_SPEC_ALLOW: u32 = 1 << 2;
pub const FLAG_NEW_LISTENER: u32 = 1 << 3;
pub const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

const SET_MODE_FILTER: u32 = 1;
const GET_ACTION_AVAIL: u32 = 2;

/// Install a filter on the calling thread. Needs no_new_privs or CAP_SYS_ADMIN in its user namespace. With
/// [`FLAG_NEW_LISTENER`] the listener comes back, close-on-exec.
pub fn load(program: &[Insn], flags: u32) -> Result<Option<OwnedFd>> {
    let length = u16::try_from(program.len()).context("seccomp: filter too long")?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `filter` describes `program`, which outlives the call and which the kernel only reads.
    let fd = check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const filter) })
        .with_context(|| {
            format!("seccomp: load a filter of {} instructions, flags {flags:#x}", program.len())
        })?;
    if flags & FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel just gave us this descriptor and nobody else holds it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}

/// Whether the kernel knows this `SECCOMP_RET_*` action.
pub fn action_available(action: u32) -> bool {
    // SAFETY: the kernel reads one u32.
    check(unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &raw const action) }).is_ok()
}

/// Whether the kernel knows these flags: it looks at them before it finds that there is no filter.
pub fn flags_available(flags: u32) -> bool {
    let none = std::ptr::null::<libc::sock_fprog>();
    // SAFETY: a null filter is refused.
    let result = check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, none) });
    result.is_err_and(|e| e.raw_os_error() == Some(libc::EFAULT))
}

/// A program as the kernel reads it.
pub fn to_bytes(program: &[Insn]) -> Vec<u8> {
    let mut out = vec![0; program.len() * 8];
    for (to, insn) in out.as_chunks_mut::<8>().0.iter_mut().zip(program) {
        let ([a, b], [c, d, e, f]) = (insn.code.to_ne_bytes(), insn.k.to_ne_bytes());
        *to = [a, b, insn.jt, insn.jf, c, d, e, f];
    }
    out
}

/// What [`to_bytes`] wrote.
pub fn from_bytes(bytes: &[u8]) -> Result<Vec<Insn>> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    if chunks.is_empty() || !rest.is_empty() {
        bail!("{} bytes are no seccomp filter", bytes.len());
    }
    let insn = |&[c0, c1, jt, jf, k0, k1, k2, k3]: &[u8; 8]| Insn {
        code: u16::from_ne_bytes([c0, c1]),
        jt,
        jf,
        k: u32::from_ne_bytes([k0, k1, k2, k3]),
    };
    Ok(chunks.iter().map(insn).collect())
}
