//! The beginning of a program that is started thousands of times: the C library's `main`, without what Rust's
//! own does before it (reading /proc/self/maps, an alternate signal stack, ignoring SIGPIPE: about ten system
//! calls that a short-lived program has no use for).
//!
//! With `cfg(own_start)` the C library's own beginning goes as well. It asks the processor about eighty times what it
//! can do (CPUID), to choose among copies of memcpy(3) and to learn the sizes of caches. In a virtual machine each
//! question is an exit to the hypervisor, 4 to 12 µs: 0.3 ms and more for every verb, half of what `state` takes.
//! The rest of that beginning is done here in the same order (glibc, csu/libc-start.c); the baseline copies serve us.
//! What prepares a static program for dlopen(3) goes too (its own path, search paths, the vdso's symbols: 0.05 ms), but
//! for the protection of relocated data, which [`protect_relocated`] does.
//! The build script of a program sets the cfg for a C library whose inner functions are known to be these.

/// Make the data that only relocation writes read-only (the segment `PT_GNU_RELRO`), as the C library would.
pub fn protect_relocated() {
    const PAGE: usize = 4096;
    // SAFETY: reads our own auxiliary vector and the program headers that it points to; the segment named there has been
    // relocated. A refusal leaves it writable, as it was.
    unsafe {
        let headers = libc::getauxval(libc::AT_PHDR) as *const libc::Elf64_Phdr;
        let count = libc::getauxval(libc::AT_PHNUM) as usize;
        if headers.is_null() {
            return;
        }
        let relro =
            std::slice::from_raw_parts(headers, count).iter().find(|h| h.p_type == libc::PT_GNU_RELRO);
        if let Some(h) = relro {
            let (start, end) = (h.p_vaddr as usize, (h.p_vaddr + h.p_memsz) as usize);
            let (start, end) = (start & !(PAGE - 1), end & !(PAGE - 1));
            libc::mprotect(start as *mut libc::c_void, end - start, libc::PROT_READ);
        }
    }
}

/// Make `$main` (a `fn() -> i32`) the program's entry. The crate says `#![no_main]`. SIGPIPE keeps its default: writing
/// to a pipe that nobody reads ends the program, as other command-line tools do.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        // SAFETY: the symbol is defined once in a program, with the signature that the C library calls.
        #[unsafe(export_name = "main")]
        pub extern "C" fn c_main(_argc: i32, _argv: *const *const u8) -> i32 {
            #[cfg(own_start)]
            $crate::entry::protect_relocated();
            #[cfg(own_start)]
            register_frames_if_asked();
            let main: fn() -> i32 = $main;
            main()
        }

        #[cfg(own_start)]
        $crate::own_start!();
    };
}

/// `__libc_start_main(main, argc, argv, init, fini, rtld_fini, stack_end)` of a static program, for glibc 2.36:
/// `_start` calls it. Until the thread area is set up no function with a stack guard may run, and until the indirect
/// functions are resolved none that copies memory; so it is assembly.
#[doc(hidden)]
#[macro_export]
macro_rules! own_start {
    () => {
        /// Tell the unwinder where its tables are, if a backtrace may be asked for. The C library's beginning does it each time,
        /// which touches the tables: a page fault. Nothing else unwinds in a program that aborts on a panic. The build script that
        /// sets the cfg gives the linker `--wrap=__register_frame_info` as well.
        fn register_frames_if_asked() {
            use ::core::ffi::{c_char, c_void};
            unsafe extern "C" {
                #[link_name = "__real___register_frame_info"]
                fn register(tables: *const c_void, object: *mut c_void);
                fn getenv(name: *const c_char) -> *const c_char;
                static __berth_frames: [*mut c_void; 2];
            }
            // SAFETY: reads the environment, and what the wrapper noted before `main`; called once.
            unsafe {
                let asked = |name: &::core::ffi::CStr| !getenv(name.as_ptr()).is_null();
                if (asked(c"RUST_BACKTRACE") || asked(c"RUST_LIB_BACKTRACE")) && !__berth_frames[0].is_null()
                {
                    register(__berth_frames[0], __berth_frames[1]);
                }
            }
        }

        core::arch::global_asm!(
            ".pushsection .text.__libc_start_main, \"ax\", @progbits",
            ".globl __libc_start_main",
            ".type __libc_start_main, @function",
            "__libc_start_main:",
            "    push rbp",
            "    mov rbp, rsp",
            "    push rbx",
            "    push r12",
            "    push r13",
            "    push r14",
            "    mov rbx, rdi",
            "    movsxd r12, esi",
            "    mov r13, rdx",
            "    lea r14, [r13 + r12 * 8 + 8]",
            // What every verb writes to, data and the first part of the heap behind it, then the stack, is asked for at
            // once: a page fault costs twice what it takes to prepare one page more. A refusal changes nothing
            // (MADV_POPULATE_WRITE is 23, madvise(2), since Linux 5.14). Who needs more asks with `alloc::expect`.
            "    lea rdi, [rip + _GLOBAL_OFFSET_TABLE_]",
            "    and rdi, -4096",
            "    mov esi, 0xa000",
            "    mov edx, 23",
            "    mov eax, 28",
            "    syscall",
            "    mov rdi, rsp",
            "    and rdi, -4096",
            "    sub rdi, 0x2000",
            "    mov esi, 0x2000",
            "    mov edx, 23",
            "    mov eax, 28",
            "    syscall",
            "    mov rax, [rbp + 16]",
            "    mov [rip + __libc_stack_end], rax",
            "    mov [rip + __environ], r14",
            // The auxiliary vector stands behind the environment.
            "    mov rdi, r14",
            "2:  lea rdi, [rdi + 8]",
            "    cmp qword ptr [rdi - 8], 0",
            "    jne 2b",
            "    call _dl_aux_init",
            // To read GLIBC_TUNABLES takes a tenth of what a short verb takes; it is done where it must be made harmless.
            "    cmp dword ptr [rip + __libc_enable_secure], 0",
            "    je 8f",
            "    mov rdi, r14",
            "    call __tunables_init",
            "8:",
            // Here glibc looks at the processor. Without, the resolvers choose what every x86_64 can do.
            "    lea rbp, [rip + __rela_iplt_start]",
            "3:  lea rax, [rip + __rela_iplt_end]",
            "    cmp rbp, rax",
            "    jae 4f",
            "    call qword ptr [rbp + 16]",
            "    mov rcx, [rbp]",
            "    mov [rcx], rax",
            "    add rbp, 24",
            "    jmp 3b",
            "4:  call __libc_setup_tls",
            // The guards of stack frames and of stored code pointers, from the kernel's random bytes.
            "    mov rcx, [rip + _dl_random]",
            "    mov rax, [rcx]",
            "    xor al, al",
            "    mov fs:[0x28], rax",
            "    mov rax, [rcx + 8]",
            "    mov fs:[0x30], rax",
            "    mov edi, 1",
            "    call __libc_early_init",
            "    mov dword ptr [rip + __libc_argc], r12d",
            "    mov [rip + __libc_argv], r13",
            // Somebody has given us rights that the caller does not have: then nothing is left out.
            "    cmp dword ptr [rip + __libc_enable_secure], 0",
            "    je 5f",
            "    mov edi, r12d",
            "    mov rsi, r13",
            "    mov rdx, r14",
            "    call __libc_init_first",
            "    call __libc_check_standard_fds",
            // The linker's own beginning, _init, has nothing to do since there are arrays for it, and lies in a page of its own.
            "5:  lea rbp, [rip + __init_array_start]",
            "6:  lea rax, [rip + __init_array_end]",
            "    cmp rbp, rax",
            "    jae 7f",
            "    mov edi, r12d",
            "    mov rsi, r13",
            "    mov rdx, r14",
            "    call qword ptr [rbp]",
            "    add rbp, 8",
            "    jmp 6b",
            "7:  mov edi, r12d",
            "    mov rsi, r13",
            "    mov rdx, r14",
            "    call rbx",
            "    mov edi, eax",
            // Nothing of ours waits for the end in the C library: no atexit(3), no stdio(3).
            "    call _exit",
            "    hlt",
            ".size __libc_start_main, . - __libc_start_main",
            ".popsection",
            // Memory for the thread area, once: of our data instead of a heap that begins with it.
            ".pushsection .text._dl_early_allocate, \"ax\", @progbits",
            ".globl _dl_early_allocate",
            ".type _dl_early_allocate, @function",
            "_dl_early_allocate:",
            "    xor eax, eax",
            "    cmp rdi, 4096",
            "    ja 9f",
            "    lea rax, [rip + .Learly]",
            "9:  ret",
            ".size _dl_early_allocate, . - _dl_early_allocate",
            ".popsection",
            ".pushsection .bss.early, \"aw\", @nobits",
            ".balign 64",
            ".Learly: .skip 4096",
            ".globl __berth_frames",
            ".hidden __berth_frames",
            "__berth_frames: .skip 16",
            ".popsection",
            // For `register_frames_if_asked`.
            ".pushsection .text.__wrap___register_frame_info, \"ax\", @progbits",
            ".globl __wrap___register_frame_info",
            ".type __wrap___register_frame_info, @function",
            "__wrap___register_frame_info:",
            "    mov [rip + __berth_frames], rdi",
            "    mov [rip + __berth_frames + 8], rsi",
            "    ret",
            ".size __wrap___register_frame_info, . - __wrap___register_frame_info",
            ".popsection",
            // The copies that every x86_64 can run, without the table that is filled at the start: its stubs lie in a page of
            // their own.
            ".macro only name, copy",
            ".pushsection .text.\\name, \"ax\", @progbits",
            ".globl \\name",
            ".type \\name, @function",
            "\\name: jmp \\copy",
            ".size \\name, . - \\name",
            ".popsection",
            ".endm",
            "only memcpy, __memmove_sse2_unaligned_erms",
            "only memmove, __memmove_sse2_unaligned_erms",
            "only memset, __memset_sse2_unaligned_erms",
            "only memcmp, __memcmp_sse2",
            "only bcmp, __memcmp_sse2",
            "only strlen, __strlen_sse2",
            "only strncmp, __strncmp_sse2",
            "only memchr, __memchr_sse2",
            "only memrchr, __memrchr_sse2",
            // What the copies of memcpy(3) and memset(3) assume of caches: variables of the object that we replace.
            ".macro cache_size name, value",
            ".globl \\name",
            ".hidden \\name",
            ".type \\name, @object",
            ".size \\name, 8",
            "\\name: .quad \\value",
            ".endm",
            ".pushsection .data.cache_sizes, \"aw\", @progbits",
            ".balign 8",
            "cache_size __x86_data_cache_size_half, 0x4000",
            "cache_size __x86_data_cache_size, 0x8000",
            "cache_size __x86_shared_cache_size_half, 0x80000",
            "cache_size __x86_shared_cache_size, 0x100000",
            "cache_size __x86_shared_non_temporal_threshold, 0xc0000",
            "cache_size __x86_rep_movsb_threshold, 0x800",
            "cache_size __x86_rep_movsb_stop_threshold, 0xc0000",
            "cache_size __x86_rep_stosb_threshold, 0x800",
            "cache_size __x86_string_control, 0",
            ".popsection",
        );
    };
}
