//! bpf(2): instructions, and programs that decide on devices for a cgroup.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One eBPF instruction, as `struct bpf_insn` (linux/bpf.h) on a little-endian machine.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    pub code: u8,
    /// Destination register in the low half, source in the high half.
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

impl Insn {
    const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Insn {
        Insn { code, registers: source << 4 | destination, offset, immediate }
    }
    /// `to = *(u32 *)(from + offset)`
    pub const fn load32(to: u8, from: u8, offset: i16) -> Insn {
        Insn::new(0x61, to, from, offset, 0)
    }
    /// `to = from`, 32 bits
    pub const fn copy(to: u8, from: u8) -> Insn {
        Insn::new(0xbc, to, from, 0, 0)
    }
    /// `to = value`, 32 bits
    pub const fn set(to: u8, value: i32) -> Insn {
        Insn::new(0xb4, to, 0, 0, value)
    }
    /// `to &= value`, 32 bits
    pub const fn and(to: u8, value: i32) -> Insn {
        Insn::new(0x54, to, 0, 0, value)
    }
    /// `to >>= value`, 32 bits
    pub const fn shift_right(to: u8, value: i32) -> Insn {
        Insn::new(0x74, to, 0, 0, value)
    }
    /// `if (register == value) skip`, 32 bits
    pub const fn jump_if_equal(register: u8, value: i32, skip: i16) -> Insn {
        Insn::new(0x16, register, 0, skip, value)
    }
    /// `if (register != value) skip`, 32 bits
    pub const fn jump_unless_equal(register: u8, value: i32, skip: i16) -> Insn {
        Insn::new(0x56, register, 0, skip, value)
    }
    /// `return r0`
    pub const fn exit() -> Insn {
        Insn::new(0x95, 0, 0, 0, 0)
    }
}

/// The name that our programs carry in the kernel.
const NAME: [u8; 16] = *b"berth_devices\0\0\0";

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 2;

/// The members of `union bpf_attr` for loading, up to the last one that we set.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is laid out as the part of `union bpf_attr` that `command` reads and writes, its size is
    // passed along, and what it points to is alive and of the length that it says (see the callers).
    let value = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    // The results are descriptors, small numbers or zero.
    crate::check(value).map(|v| v as i32)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Load a program that decides on devices.
pub fn load_device_program(program: &[Insn]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let mut attr = LoadAttr {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        insns: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_name: NAME,
        expected_attach_type: ATTACH_CGROUP_DEVICE,
        ..LoadAttr::default()
    };
    let fd = bpf(PROG_LOAD, &mut attr)?;
    // SAFETY: the kernel just gave us this descriptor and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attach to a cgroup beside the programs that are there; all of them must agree.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: F_ALLOW_MULTI,
        ..AttachAttr::default()
    };
    bpf(PROG_ATTACH, &mut attr).map(|_| ())
}

/// Take a program off a cgroup.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        ..AttachAttr::default()
    };
    bpf(PROG_DETACH, &mut attr).map(|_| ())
}

/// Those of our programs that are attached to a cgroup.
pub fn our_device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; 64];
    let mut attr = QueryAttr {
        target_fd: raw(cgroup),
        attach_type: ATTACH_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        ..QueryAttr::default()
    };
    bpf(PROG_QUERY, &mut attr)?;
    let mut ours = Vec::new();
    for id in &ids[..(attr.prog_cnt as usize).min(ids.len())] {
        let fd = match bpf(PROG_GET_FD_BY_ID, &mut IdAttr { prog_id: *id, ..IdAttr::default() }) {
            // SAFETY: the kernel just gave us this descriptor and nobody else holds it.
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
            // Detached meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        if name(fd.as_fd())? == NAME {
            ours.push(fd);
        }
    }
    Ok(ours)
}

/// `bpf_prog_info.name`, which stands 64 bytes into the structure.
fn name(program: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut info = [0u64; 10];
    let mut attr = InfoAttr {
        bpf_fd: raw(program),
        info_len: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
    let mut name = [0; 16];
    name[..8].copy_from_slice(&info[8].to_ne_bytes());
    name[8..].copy_from_slice(&info[9].to_ne_bytes());
    Ok(name)
}
