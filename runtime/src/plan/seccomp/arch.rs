//! Which numbers does a system call have here? The native architecture, the others that its kernel runs, and
//! their tables.

use oci_spec::runtime::Arch;

use super::syscalls::{self as table, TABLE, X};

/// One system call interface of a kernel, as a profile's `architectures` names it.
#[derive(Debug)]
pub struct Abi {
    /// How the profile calls it.
    pub token: Arch,
    /// `seccomp_data.arch`. x32 has that of x86_64, and bit 30 set in its numbers.
    pub audit: u32,
    column: usize,
    /// The number of the first system call.
    pub first: u32,
    /// Registers are 32 bits wide: only the low half of an argument means anything.
    pub narrow: bool,
}

/// What one kernel runs: the native interface first.
#[derive(Debug)]
pub struct Family {
    pub abis: &'static [Abi],
    pub big_endian: bool,
}

/// Bit 30 of a number: x32.
pub const X32_BIT: u32 = 0x4000_0000;

const EM_64BIT: u32 = 0x8000_0000;
const EM_LITTLE: u32 = 0x4000_0000;
const EM_MIPS_N32: u32 = 0x2000_0000;
pub const AUDIT_X86_64: u32 = 62 | EM_64BIT | EM_LITTLE;

const fn abi(token: Arch, audit: u32, column: usize, first: u32, narrow: bool) -> Abi {
    Abi { token, audit, column, first, narrow }
}

pub static X86_64: Family = Family {
    abis: &[
        abi(Arch::ScmpArchX86_64, AUDIT_X86_64, table::X86_64, 0, false),
        abi(Arch::ScmpArchX86, 3 | EM_LITTLE, table::X86, 0, true),
        abi(Arch::ScmpArchX32, AUDIT_X86_64, table::X32, X32_BIT, true),
    ],
    big_endian: false,
};
pub static AARCH64: Family = Family {
    abis: &[
        abi(Arch::ScmpArchAarch64, 183 | EM_64BIT | EM_LITTLE, table::AARCH64, 0, false),
        abi(Arch::ScmpArchArm, 40 | EM_LITTLE, table::ARM, 0, true),
    ],
    big_endian: false,
};
pub static ARM: Family =
    Family { abis: &[abi(Arch::ScmpArchArm, 40 | EM_LITTLE, table::ARM, 0, true)], big_endian: false };
pub static X86: Family =
    Family { abis: &[abi(Arch::ScmpArchX86, 3 | EM_LITTLE, table::X86, 0, true)], big_endian: false };
pub static RISCV64: Family = Family {
    abis: &[abi(Arch::ScmpArchRiscv64, 243 | EM_64BIT | EM_LITTLE, table::RISCV64, 0, false)],
    big_endian: false,
};
pub static LOONGARCH64: Family = Family {
    abis: &[abi(Arch::ScmpArchLoongarch64, 258 | EM_64BIT | EM_LITTLE, table::LOONGARCH64, 0, false)],
    big_endian: false,
};
pub static PPC64LE: Family = Family {
    abis: &[abi(Arch::ScmpArchPpc64le, 21 | EM_64BIT | EM_LITTLE, table::PPC64, 0, false)],
    big_endian: false,
};
pub static PPC64: Family = Family {
    abis: &[
        abi(Arch::ScmpArchPpc64, 21 | EM_64BIT, table::PPC64, 0, false),
        abi(Arch::ScmpArchPpc, 20, table::PPC, 0, true),
    ],
    big_endian: true,
};
pub static S390X: Family = Family {
    abis: &[
        abi(Arch::ScmpArchS390x, 22 | EM_64BIT, table::S390X, 0, false),
        abi(Arch::ScmpArchS390, 22, table::S390, 0, true),
    ],
    big_endian: true,
};
const MIPS_N64: (u32, u32) = (8 | EM_64BIT, 5000);
const MIPS_N32: (u32, u32) = (8 | EM_64BIT | EM_MIPS_N32, 6000);
pub static MIPS64: Family = Family {
    abis: &[
        abi(Arch::ScmpArchMips64, MIPS_N64.0, table::MIPS64, MIPS_N64.1, false),
        abi(Arch::ScmpArchMips, 8, table::MIPS, 4000, true),
        abi(Arch::ScmpArchMips64n32, MIPS_N32.0, table::MIPS64N32, MIPS_N32.1, true),
    ],
    big_endian: true,
};
pub static MIPSEL64: Family = Family {
    abis: &[
        abi(Arch::ScmpArchMipsel64, MIPS_N64.0 | EM_LITTLE, table::MIPS64, MIPS_N64.1, false),
        abi(Arch::ScmpArchMipsel, 8 | EM_LITTLE, table::MIPS, 4000, true),
        abi(Arch::ScmpArchMipsel64n32, MIPS_N32.0 | EM_LITTLE, table::MIPS64N32, MIPS_N32.1, true),
    ],
    big_endian: false,
};

/// The family of the kernel that this program is built for.
pub fn native() -> &'static Family {
    if cfg!(target_arch = "x86_64") {
        &X86_64
    } else if cfg!(target_arch = "x86") {
        &X86
    } else if cfg!(target_arch = "aarch64") {
        &AARCH64
    } else if cfg!(target_arch = "arm") {
        &ARM
    } else if cfg!(target_arch = "riscv64") {
        &RISCV64
    } else if cfg!(target_arch = "loongarch64") {
        &LOONGARCH64
    } else if cfg!(target_arch = "s390x") {
        &S390X
    } else if cfg!(target_arch = "powerpc64") {
        if cfg!(target_endian = "big") { &PPC64 } else { &PPC64LE }
    } else if cfg!(target_endian = "big") {
        &MIPS64
    } else {
        &MIPSEL64
    }
}

/// A row of [`TABLE`]: a name known to at least one architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(u16);

/// ARM's private calls, stored as 0xf000 + n.
const PRIVATE: u16 = 0xf000;
const ARM_PRIVATE: u32 = 0x0f_0000;
/// Slots of ordinary numbers, then of private ones.
const ORDINARY: usize = 1024;
/// How many slots an interface has.
pub const SLOTS: usize = ORDINARY + 16;

impl Abi {
    /// The slot of a call, if this interface has it. Slots are in the order of the numbers.
    pub fn slot(&self, name: Name) -> Option<usize> {
        match TABLE[usize::from(name.0)].1[self.column] {
            X => None,
            raw if raw >= PRIVATE => Some(ORDINARY + usize::from(raw - PRIVATE)),
            raw => Some(usize::from(raw) - (self.first & !X32_BIT) as usize),
        }
    }

    /// The number that a slot stands for.
    pub fn number(&self, slot: usize) -> u32 {
        if slot < ORDINARY { self.first + slot as u32 } else { ARM_PRIVATE + (slot - ORDINARY) as u32 }
    }

    pub fn is_s390(&self) -> bool {
        matches!(self.token, Arch::ScmpArchS390 | Arch::ScmpArchS390x)
    }

    /// Whether a slot is in the ordinary range, which grows with each kernel.
    pub fn ordinary(slot: usize) -> bool {
        slot < ORDINARY
    }
}

/// Names are found through an open-addressed table that is made at compile time.
const BUCKETS: usize = 2048;
static INDEX: [u16; BUCKETS] = index();

const fn hash(name: &[u8]) -> usize {
    let mut h = 0x811c_9dc5_u32;
    let mut i = 0;
    while i < name.len() {
        h = (h ^ name[i] as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    (h ^ (h >> 15)) as usize % BUCKETS
}

const fn index() -> [u16; BUCKETS] {
    let mut out = [X; BUCKETS];
    let mut i = 0;
    while i < TABLE.len() {
        let mut bucket = hash(TABLE[i].0.as_bytes());
        while out[bucket] != X {
            bucket = (bucket + 1) % BUCKETS;
        }
        out[bucket] = i as u16;
        i += 1;
    }
    out
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len()
}

/// Look a name up.
pub const fn name(text: &str) -> Option<Name> {
    let mut bucket = hash(text.as_bytes());
    while INDEX[bucket] != X {
        if same(TABLE[INDEX[bucket] as usize].0.as_bytes(), text.as_bytes()) {
            return Some(Name(INDEX[bucket]));
        }
        bucket = (bucket + 1) % BUCKETS;
    }
    None
}

/// The first argument of socketcall(2), or of ipc(2), that stands for a call (linux/net.h, linux/ipc.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multiplexed {
    pub by: &'static str,
    pub call: u32,
}

/// 32-bit x86, MIPS and PowerPC, and s390, also reach the calls of sockets and of System V IPC through one
/// number each.
pub fn multiplexed(name: Name) -> Option<Multiplexed> {
    match MULTIPLEXED[usize::from(name.0)] {
        0 => None,
        call if call & IPC != 0 => Some(Multiplexed { by: "ipc", call: u32::from(call & !IPC) }),
        call => Some(Multiplexed { by: "socketcall", call: u32::from(call) }),
    }
}

const SOCKETCALLS: &[(&str, u8)] = &[
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];
const IPCS: &[(&str, u8)] = &[
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];
const IPC: u8 = 0x80;
/// For each name of [`TABLE`] the number in `SOCKETCALLS`, or that in `IPCS` and [`IPC`], or 0.
static MULTIPLEXED: [u8; TABLE.len()] = multiplexed_names();

const fn multiplexed_names() -> [u8; TABLE.len()] {
    let mut out = [0; TABLE.len()];
    let mut i = 0;
    while i < SOCKETCALLS.len() + IPCS.len() {
        let ((text, call), bit) =
            if i < SOCKETCALLS.len() { (SOCKETCALLS[i], 0) } else { (IPCS[i - SOCKETCALLS.len()], IPC) };
        match name(text) {
            Some(name) => out[name.0 as usize] = call | bit,
            None => panic!("a multiplexed call that no architecture has"),
        }
        i += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_and_no_other() {
        for (i, (text, _)) in TABLE.iter().enumerate() {
            assert_eq!(name(text), Some(Name(i as u16)), "{text}");
        }
        for text in ["", "reads", "rea", "READ", "socketcal"] {
            assert_eq!(name(text), None, "{text}");
        }
    }

    /// The C library's headers, as libc has them, are a second source for the architecture we run on.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn numbers_are_those_of_libc() {
        let abi = |i: usize, text| {
            let abi = &X86_64.abis[i];
            name(text).and_then(|n| abi.slot(n)).map(|s| i64::from(abi.number(s)))
        };
        for (text, number) in [
            ("read", libc::SYS_read),
            ("clone3", libc::SYS_clone3),
            ("socket", libc::SYS_socket),
            ("futex_waitv", libc::SYS_futex_waitv),
            ("rt_sigreturn", libc::SYS_rt_sigreturn),
        ] {
            assert_eq!(abi(0, text), Some(number), "{text}");
        }
        assert_eq!(abi(1, "read"), Some(3));
        assert_eq!(abi(1, "time"), Some(13));
        assert_eq!(abi(1, "accept"), None);
        assert_eq!(abi(2, "read"), Some(0x4000_0000));
        assert_eq!(abi(2, "execve"), Some(0x4000_0000 + 520));
    }

    #[test]
    fn numbers_of_other_architectures() {
        let number = |f: &Family, i: usize, text| {
            name(text).and_then(|n| f.abis[i].slot(n)).map(|s| f.abis[i].number(s))
        };
        assert_eq!(number(&AARCH64, 0, "openat"), Some(56));
        assert_eq!(number(&AARCH64, 0, "open"), None);
        assert_eq!(number(&AARCH64, 1, "set_tls"), Some(0xf_0005));
        assert_eq!(number(&MIPSEL64, 0, "read"), Some(5000));
        assert_eq!(number(&MIPSEL64, 1, "read"), Some(4003));
        assert_eq!(number(&S390X, 1, "listns"), Some(470));
    }
}
