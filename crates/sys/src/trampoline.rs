//! How does a process become another program without ever showing its own file?
//!
//! Between joining a container and `execve` our process is visible there, and the program that it executes
//! may be `/proc/self/exe` in disguise (a link, a `#!` line, an ELF interpreter), which would run our own
//! binary inside the container and hand it to whoever overwrites it next (CVE-2019-5736). So the last step
//! is taken by another program: a few hundred bytes of code in a sealed memfd, followed by a table of system calls,
//! which it makes one after the other. Whoever looks at `/proc/self/exe` then finds the memfd.
//!
//! ```text
//! memfd:  ELF header | program headers | code | table: Entry … Entry | bytes: paths, filters, texts
//!         one read-only, executable segment at BASE; data is reached through the stack's registers only
//! ```
//!
//! A call that fails is written to the report descriptor as one packet, `REPORT_MAGIC`, errno (i32, native endian)
//! and the entry's text, and the program exits with 255. `execve` gets the argument and environment
//! vectors that this program was started with.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::check;

/// First byte of a failure report.
pub const REPORT_MAGIC: u8 = 0x01;

/// Where the segment lies; away from what a non-PIE program and the kernel choose.
const BASE: u64 = 0x2_0000_0000;
const EHDR: usize = 64;
const PHDR: usize = 56;
const CODE_AT: usize = EHDR + 2 * PHDR;
/// No text may be longer: the report is put together on the stack.
const MAX_TEXT: usize = 1024;

/// Fields of an entry: number, six arguments, options, text address, text length.
const ENTRY: usize = 80;

/// `rsi`/`rdx` are the argument and environment vectors.
const VECTORS: u64 = 1;
/// Keep the result in the scratch word.
const KEEP: u64 = 2;
/// The first argument is the scratch word's value.
const FIRST_IS_KEPT: u64 = 4;
/// The second argument is the scratch word's address.
const SECOND_IS_SCRATCH: u64 = 8;

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .rodata.berth_trampoline, \"a\"",
    ".globl berth_trampoline_start",
    ".globl berth_trampoline_end",
    "berth_trampoline_start:",
    "mov r12, rsp", // argc
    "mov r13, [r12]",
    "lea r14, [r12 + 8]",         // argv
    "lea r15, [r14 + r13*8 + 8]", // envp
    "sub rsp, 4096",
    "mov r13, rsp", // scratch: word at r13, report at r13 + 16
    "lea rbx, [rip + berth_trampoline_end]",
    "2:",
    "mov rax, [rbx]",
    "mov rdi, [rbx + 8]",
    "mov rsi, [rbx + 16]",
    "mov rdx, [rbx + 24]",
    "mov r10, [rbx + 32]",
    "mov r8, [rbx + 40]",
    "mov r9, [rbx + 48]",
    "mov rbp, [rbx + 56]",
    "test ebp, 1",
    "jz 3f",
    "mov rsi, r14",
    "mov rdx, r15",
    "3:",
    "test ebp, 4",
    "jz 4f",
    "mov rdi, [r13]",
    "4:",
    "test ebp, 8",
    "jz 5f",
    "mov rsi, r13",
    "5:",
    "syscall",
    "cmp rax, -4095",
    "jae 7f",
    "test ebp, 2",
    "jz 6f",
    "mov [r13], rax",
    "6:",
    "add rbx, 80",
    "jmp 2b",
    "7:", // report: magic, errno, text
    "neg eax",
    "mov byte ptr [r13 + 16], 1",
    "mov [r13 + 17], eax",
    "lea rdi, [r13 + 21]",
    "mov rsi, [rbx + 64]",
    "mov rcx, [rbx + 72]",
    "mov rdx, rcx",
    "rep movsb",
    "add rdx, 5",
    "lea rsi, [r13 + 16]",
    "mov edi, [rip + berth_trampoline_end - 8]", // the report descriptor, patched in
    "mov eax, 1",
    "syscall",
    "8:",
    "mov edi, 255",
    "mov eax, 231",
    "syscall",
    "jmp 8b",
    ".balign 8",
    ".quad 0", // report descriptor
    "berth_trampoline_end:",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    ".pushsection .rodata.berth_trampoline, \"a\"",
    ".globl berth_trampoline_start",
    ".globl berth_trampoline_end",
    "berth_trampoline_start:",
    "mov x19, sp",
    "ldr x20, [x19]",   // argc
    "add x21, x19, #8", // argv
    "add x22, x21, x20, lsl #3",
    "add x22, x22, #8", // envp
    "sub sp, sp, #4096",
    "mov x23, sp", // scratch
    "adr x24, berth_trampoline_end",
    "2:",
    "ldr x8, [x24]",
    "ldp x0, x1, [x24, #8]",
    "ldp x2, x3, [x24, #24]",
    "ldp x4, x5, [x24, #40]",
    "ldr x25, [x24, #56]",
    "tbz x25, #0, 3f",
    "mov x1, x21",
    "mov x2, x22",
    "3:",
    "tbz x25, #2, 4f",
    "ldr x0, [x23]",
    "4:",
    "tbz x25, #3, 5f",
    "mov x1, x23",
    "5:",
    "svc #0",
    "cmn x0, #4095",
    "b.hs 7f",
    "tbz x25, #1, 6f",
    "str x0, [x23]",
    "6:",
    "add x24, x24, #80",
    "b 2b",
    "7:",
    "neg w0, w0",
    "mov w9, #1",
    "strb w9, [x23, #16]",
    "add x10, x23, #17",
    "str w0, [x10]",
    "add x10, x23, #21",
    "ldr x11, [x24, #64]",
    "ldr x12, [x24, #72]",
    "add x2, x12, #5",
    "9:",
    "cbz x12, 10f",
    "ldrb w13, [x11], #1",
    "strb w13, [x10], #1",
    "sub x12, x12, #1",
    "b 9b",
    "10:",
    "add x1, x23, #16",
    "adr x9, berth_trampoline_end",
    "ldr w0, [x9, #-8]",
    "mov x8, #64",
    "svc #0",
    "8:",
    "mov x0, #255",
    "mov x8, #94",
    "svc #0",
    "b 8b",
    ".balign 8",
    ".quad 0",
    "berth_trampoline_end:",
    ".popsection",
);

unsafe extern "C" {
    static berth_trampoline_start: u8;
    static berth_trampoline_end: u8;
}

fn code() -> &'static [u8] {
    // SAFETY: both symbols delimit one read-only object of this program, defined above.
    unsafe {
        let start = &raw const berth_trampoline_start;
        let end = &raw const berth_trampoline_end;
        std::slice::from_raw_parts(start, end.offset_from(start) as usize)
    }
}

#[derive(Clone, Copy, Debug)]
enum Arg {
    Value(u64),
    /// Offset into the data that follows the table.
    Data(usize),
}

#[derive(Debug)]
struct Entry {
    number: i64,
    args: [Arg; 6],
    options: u64,
    text: (usize, usize),
}

/// A list of system calls, the last of which executes a program.
#[derive(Debug, Default)]
pub struct Program {
    entries: Vec<Entry>,
    data: Vec<u8>,
    /// Descriptors that the calls use, and close.
    passed: Vec<OwnedFd>,
}

impl Program {
    pub fn new() -> Self {
        Self::default()
    }

    /// Data for the calls, aligned to 8 bytes.
    fn bytes(&mut self, bytes: &[u8]) -> Arg {
        let at = self.data.len().next_multiple_of(8);
        self.data.resize(at, 0);
        self.data.extend_from_slice(bytes);
        Arg::Data(at)
    }

    fn call(&mut self, text: &str, number: i64, args: &[Arg], options: u64) -> &mut Self {
        let text = &text.as_bytes()[..text.len().min(MAX_TEXT)];
        let Arg::Data(at) = self.bytes(text) else { return self };
        let mut all = [Arg::Value(0); 6];
        all[..args.len()].copy_from_slice(args);
        self.entries.push(Entry { number, args: all, options, text: (at, text.len()) });
        self
    }

    /// A call with integer arguments only; `text` is what a failure report says.
    pub fn plain(&mut self, text: &str, number: i64, args: &[u64]) -> &mut Self {
        let args: Vec<Arg> = args.iter().map(|a| Arg::Value(*a)).collect();
        self.call(text, number, &args, 0)
    }

    /// prctl(2) with one argument.
    pub fn prctl(&mut self, text: &str, option: i32, arg: u64) -> &mut Self {
        self.plain(text, libc::SYS_prctl, &[option as u64, arg, 0, 0, 0])
    }

    /// capset(2) of the calling thread.
    pub fn capset(&mut self, effective: u64, permitted: u64, inheritable: u64) -> &mut Self {
        const VERSION_3: u32 = 0x2008_0522;
        let mut bytes = Vec::with_capacity(32);
        bytes.extend_from_slice(&VERSION_3.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        for shift in [0, 32] {
            for set in [effective, permitted, inheritable] {
                bytes.extend_from_slice(&((set >> shift) as u32).to_ne_bytes());
            }
        }
        let Arg::Data(at) = self.bytes(&bytes) else { return self };
        self.call("set capabilities", libc::SYS_capset, &[Arg::Data(at), Arg::Data(at + 8)], 0)
    }

    /// Empty the ambient set.
    pub fn prctl_ambient_clear(&mut self) -> &mut Self {
        let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL as u64;
        self.plain("clear the ambient set", libc::SYS_prctl, &[libc::PR_CAP_AMBIENT as u64, clear, 0, 0, 0])
    }

    /// Add a capability to the ambient set.
    pub fn prctl_ambient_raise(&mut self, cap: u8) -> &mut Self {
        let raise = libc::PR_CAP_AMBIENT_RAISE as u64;
        self.plain(
            "raise an ambient capability",
            libc::SYS_prctl,
            &[libc::PR_CAP_AMBIENT as u64, raise, u64::from(cap), 0, 0],
        )
    }

    /// setresgid(2), all three.
    pub fn setresgid(&mut self, gid: u32) -> &mut Self {
        self.plain("set group id", libc::SYS_setresgid, &[u64::from(gid); 3])
    }

    /// setresuid(2), all three.
    pub fn setresuid(&mut self, uid: u32) -> &mut Self {
        self.plain("set user id", libc::SYS_setresuid, &[u64::from(uid); 3])
    }

    /// setgroups(2).
    pub fn setgroups(&mut self, groups: &[u32]) -> &mut Self {
        let bytes: Vec<u8> = groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
        let data = self.bytes(&bytes);
        self.call(
            "set supplementary groups",
            libc::SYS_setgroups,
            &[Arg::Value(groups.len() as u64), data],
            0,
        )
    }

    /// Write `text` to `path` below `dir`: open, write, close both.
    pub fn write_at(&mut self, what: &str, dir: OwnedFd, path: &CStr, text: &[u8]) -> &mut Self {
        let path = self.bytes(path.to_bytes_with_nul());
        let text_len = text.len() as u64;
        let text = self.bytes(text);
        let flags = (libc::O_WRONLY | libc::O_CLOEXEC) as u64;
        let at = Arg::Value(dir.as_raw_fd() as u64);
        self.call(what, libc::SYS_openat, &[at, path, Arg::Value(flags)], KEEP);
        self.call(what, libc::SYS_write, &[Arg::Value(0), text, Arg::Value(text_len)], FIRST_IS_KEPT);
        self.call(what, libc::SYS_close, &[], FIRST_IS_KEPT);
        self.call(what, libc::SYS_close, &[at], 0);
        self.passed.push(dir);
        self
    }

    /// setrlimit(2).
    pub fn setrlimit(&mut self, what: &str, resource: u32, soft: u64, hard: u64) -> &mut Self {
        let limits = self.bytes(&[soft.to_ne_bytes(), hard.to_ne_bytes()].concat());
        let args = [Arg::Value(0), Arg::Value(u64::from(resource)), limits, Arg::Value(0)];
        self.call(what, libc::SYS_prlimit64, &args, 0)
    }

    /// seccomp(2), `SECCOMP_SET_MODE_FILTER`. `listener`: tell the number of the new listener on this
    /// descriptor (8 bytes, native endian) and wait for one byte before going on.
    pub fn seccomp(
        &mut self,
        program: &[crate::seccomp::Insn],
        flags: u32,
        listener: Option<BorrowedFd<'_>>,
    ) -> &mut Self {
        let Arg::Data(filter) = self.bytes(&crate::seccomp::to_bytes(program)) else { return self };
        let mut header = Vec::with_capacity(16);
        header.extend_from_slice(&(program.len() as u64).to_ne_bytes());
        // The filter's address is known only when the file is laid out: see `image`.
        header.extend_from_slice(&(filter as u64).to_ne_bytes());
        let Arg::Data(header) = self.bytes(&header) else { return self };
        let set_mode_filter = 1;
        self.call(
            "load seccomp filter",
            libc::SYS_seccomp,
            &[Arg::Value(set_mode_filter), Arg::Value(u64::from(flags)), Arg::Data(header)],
            KEEP | RELOCATE,
        );
        if let Some(fd) = listener {
            let fd = Arg::Value(fd.as_raw_fd() as u64);
            self.call(
                "report seccomp listener",
                libc::SYS_write,
                &[fd, Arg::Value(0), Arg::Value(8)],
                SECOND_IS_SCRATCH,
            );
            self.call(
                "wait for seccomp agent",
                libc::SYS_read,
                &[fd, Arg::Value(0), Arg::Value(1)],
                SECOND_IS_SCRATCH,
            );
        }
        self
    }

    /// execve(2) of `path` with the vectors given to [`Program::execute`].
    pub fn execve(&mut self, text: &str, path: &CStr) -> &mut Self {
        let path = self.bytes(path.to_bytes_with_nul());
        self.call(text, libc::SYS_execve, &[path], VECTORS)
    }

    /// The file: headers, code, table, data.
    fn image(&self, report: i32) -> Vec<u8> {
        let code = code();
        let table_at = CODE_AT + code.len();
        let data_at = (table_at + self.entries.len() * ENTRY) as u64;
        let mut data = self.data.clone();
        let total = data_at + data.len() as u64;
        let address = |arg: &Arg| match *arg {
            Arg::Value(v) => v,
            Arg::Data(at) => BASE + data_at + at as u64,
        };
        let mut out = Vec::with_capacity(total as usize);
        let machine: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
        out.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&2u16.to_le_bytes()); // ET_EXEC
        out.extend_from_slice(&machine.to_le_bytes());
        out.extend_from_slice(&1u32.to_le_bytes());
        for v in [BASE + CODE_AT as u64, EHDR as u64, 0] {
            out.extend_from_slice(&v.to_le_bytes()); // entry, program headers, sections
        }
        out.extend_from_slice(&0u32.to_le_bytes());
        for v in [EHDR as u16, PHDR as u16, 2, 64, 0, 0] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        // PT_LOAD, read and execute.
        out.extend_from_slice(&1u32.to_le_bytes());
        out.extend_from_slice(&5u32.to_le_bytes());
        for v in [0, BASE, BASE, total, total, 0x1000] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        // PT_GNU_STACK, read and write: the stack is not executable.
        out.extend_from_slice(&0x6474_e551u32.to_le_bytes());
        out.extend_from_slice(&6u32.to_le_bytes());
        for v in [0u64, 0, 0, 0, 0, 16] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&code[..code.len() - 8]);
        out.extend_from_slice(&(report as i64 as u64).to_le_bytes());
        for e in &self.entries {
            if e.options & RELOCATE != 0
                && let Arg::Data(header) = e.args[2]
            {
                let field = header + 8..header + 16;
                let mut at = [0; 8];
                at.copy_from_slice(&data[field.clone()]);
                let at = u64::from_ne_bytes(at);
                data[field].copy_from_slice(&(BASE + data_at + at).to_ne_bytes());
            }
            out.extend_from_slice(&(e.number as u64).to_le_bytes());
            for arg in &e.args {
                out.extend_from_slice(&address(arg).to_le_bytes());
            }
            out.extend_from_slice(&e.options.to_le_bytes());
            out.extend_from_slice(&(BASE + data_at + e.text.0 as u64).to_le_bytes());
            out.extend_from_slice(&(e.text.1 as u64).to_le_bytes());
        }
        out.extend_from_slice(&data);
        out
    }

    /// Become this program. `report` gets the failure, if there is one, and is closed by a successful `execve`.
    /// Every other descriptor that is not close-on-exec stays open. Returns only with an error.
    pub fn execute(mut self, report: BorrowedFd<'_>, args: &[&CStr], env: &[&CStr]) -> io::Error {
        let cloexec = libc::FD_CLOEXEC as u64;
        let fd = report.as_raw_fd();
        // Not dumpable, as its parent program was: it still has that one's rights.
        self.prctl("be not dumpable", libc::PR_SET_DUMPABLE, 0);
        self.plain("close on exec", libc::SYS_fcntl, &[fd as u64, libc::F_SETFD as u64, cloexec]);
        self.entries.rotate_right(2);
        match self.start(fd, args, env) {
            Ok(never) => match never {},
            Err(e) => e,
        }
    }

    fn start(&self, report: i32, args: &[&CStr], env: &[&CStr]) -> io::Result<std::convert::Infallible> {
        let file = memfd(&self.image(report))?;
        // SAFETY: changes one flag of a descriptor that the caller lends us.
        check(unsafe { libc::fcntl(report, libc::F_SETFD, 0) }.into())?;
        for fd in &self.passed {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        }
        let list = |strings: &[&CStr]| -> Vec<*const libc::c_char> {
            strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (args, env) = (list(args), list(env));
        // SAFETY: both arrays end with a null pointer and their strings outlive the call.
        check(unsafe {
            libc::syscall(
                libc::SYS_execveat,
                file.as_raw_fd(),
                c"".as_ptr(),
                args.as_ptr(),
                env.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        })?;
        Err(io::Error::last_os_error())
    }
}

/// The entry's third argument is a `sock_fprog` whose filter address must be filled in. Not seen by the code.
const RELOCATE: u64 = 1 << 32;

/// A sealed, executable memory file with these bytes.
fn memfd(bytes: &[u8]) -> io::Result<OwnedFd> {
    const MFD_EXEC: u32 = 0x10;
    let base = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let create = |flags: u32| {
        // SAFETY: the name is a C string; the rest are integers.
        check(unsafe { libc::syscall(libc::SYS_memfd_create, c"berth-exec".as_ptr(), flags) })
    };
    // MFD_EXEC came with Linux 6.3, which may otherwise make memfds that are not executable.
    let fd = create(base | MFD_EXEC).or_else(|_| create(base))?;
    // SAFETY: the kernel just gave us this descriptor and nobody else holds it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = rustix::io::write(&fd, rest)?;
        rest = &rest[n..];
    }
    use rustix::fs::SealFlags;
    rustix::fs::fcntl_add_seals(
        &fd,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(fd)
}

/// What a failure report says: (errno, text). `None` if the packet is not one.
pub fn parse_report(packet: &[u8]) -> Option<(i32, String)> {
    let [REPORT_MAGIC, a, b, c, d, text @ ..] = packet else { return None };
    Some((i32::from_ne_bytes([*a, *b, *c, *d]), String::from_utf8_lossy(text).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// Run `program` in a child; what it reports, how it ends.
    fn run(program: Program, args: &[&CStr]) -> (Vec<u8>, crate::process::Exit) {
        let (ours, theirs) = crate::socket::pair().unwrap();
        match crate::process::clone3(0, None).unwrap() {
            crate::process::Cloned::Child => {
                program.execute(theirs.as_fd(), args, &[]);
                crate::process::exit_now(99)
            }
            crate::process::Cloned::Parent { pid, .. } => {
                drop(theirs);
                let mut buffer = [0; 2048];
                let (n, _) = crate::socket::receive(ours.as_fd(), &mut buffer).unwrap();
                (buffer[..n].to_vec(), crate::process::wait(pid).unwrap())
            }
        }
    }

    #[test]
    fn executes_with_the_given_vectors_and_closes_the_report() {
        let mut p = Program::new();
        p.prctl("no new privileges", libc::PR_SET_NO_NEW_PRIVS, 1);
        p.execve("execute sh", c"/bin/sh");
        let (report, exit) = run(p, &[c"sh", c"-c", c"grep -q 'NoNewPrivs:.1' /proc/self/status && exit 7"]);
        assert_eq!((report.len(), exit), (0, crate::process::Exit::Code(7)));
    }

    #[test]
    fn a_failed_call_is_reported() {
        let mut p = Program::new();
        p.execve("execute /does/not/exist", c"/does/not/exist");
        let (report, exit) = run(p, &[c"x"]);
        assert_eq!(parse_report(&report), Some((libc::ENOENT, "execute /does/not/exist".to_owned())));
        assert_eq!(exit, crate::process::Exit::Code(255));
    }

    #[test]
    fn the_filter_is_loaded_before_the_program_starts() {
        use crate::seccomp::Insn;
        // Return ERRNO(77) for uname (63 on x86_64), allow the rest.
        let filter = [
            Insn { code: 0x20, jt: 0, jf: 0, k: 0 },
            Insn { code: 0x15, jt: 0, jf: 1, k: libc::SYS_uname as u32 },
            Insn { code: 0x06, jt: 0, jf: 0, k: 0x0005_0000 | 77 },
            Insn { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 },
        ];
        let mut p = Program::new();
        p.prctl("no new privileges", libc::PR_SET_NO_NEW_PRIVS, 1);
        p.seccomp(&filter, 0, None);
        p.execve("execute uname", c"/bin/uname");
        let (report, exit) = run(p, &[c"uname"]);
        assert_eq!((report.len(), exit), (0, crate::process::Exit::Code(1)));
    }
}
