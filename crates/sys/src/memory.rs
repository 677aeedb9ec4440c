//! Files as memory, and memory that is kept.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// A part of a file that nobody changes, in memory: what is there is looked at without a copy of it.
#[derive(Debug)]
pub struct Mapped {
    address: *mut libc::c_void,
    length: usize,
    /// Where the part begins in it: a mapping begins with a page.
    skip: usize,
}

impl Mapped {
    /// `length` bytes of `file` from `offset` on, and all of them read.
    ///
    /// # Errors
    /// The file is shorter (`UnexpectedEof`); it cannot be read; as mmap(2).
    ///
    /// A file that is cut off later ends the process (`SIGBUS`): this is for files that are never written again.
    pub fn part(file: &File, offset: u64, length: usize) -> io::Result<Mapped> {
        if file.metadata()?.len() < offset + length as u64 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than it was"));
        }
        // SAFETY: no pointers.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(1).unsigned_abs();
        let skip = (offset % page) as usize;
        let (from, whole) = ((offset - skip as u64).cast_signed(), (skip + length).max(1));
        // SAFETY: a new mapping, where the kernel finds room for it.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), whole, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), from)
        };
        if address == libc::MAP_FAILED {
            return Err(crate::last_error());
        }
        let mapped = Mapped { address, length: whole, skip };
        if is_cached(file, offset, length as u64) {
            return Ok(mapped);
        }
        // SAFETY: the mapping just made.
        if unsafe { libc::madvise(address, whole, libc::MADV_POPULATE_READ) } == -1 {
            match crate::last_error() {
                // Before Linux 5.14 each page is asked for as it is looked at.
                e if e.raw_os_error() == Some(libc::EINVAL) => {}
                // What cannot be read is told so, and not by a signal.
                e if e.raw_os_error() == Some(libc::EFAULT) => {
                    return Err(io::Error::from_raw_os_error(libc::EIO));
                }
                e => return Err(e),
            }
        }
        Ok(mapped)
    }
}

/// cachestat(2), Linux 6.5: whether all of it is in memory, so that to look at it reads nothing.
fn is_cached(file: &File, offset: u64, length: u64) -> bool {
    const CACHESTAT: libc::c_long = 451;
    const PAGE: u64 = 4096;
    let range = [offset, length.max(1)];
    // Pages that are cached, dirty, being written, evicted, evicted lately.
    let mut found = [0_u64; 5];
    let (range, answer) = (range.as_ptr(), found.as_mut_ptr());
    // SAFETY: `struct cachestat_range` and `struct cachestat` are as many u64, which live longer than the call.
    let done = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range, answer, 0) };
    done == 0 && found[0] >= (offset + length.max(1)).div_ceil(PAGE) - offset / PAGE
}

impl std::ops::Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped for as long as `self` lives, and at least as long; nobody writes the file (see `part`).
        unsafe {
            std::slice::from_raw_parts(self.address.cast::<u8>().add(self.skip), self.length - self.skip)
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it is ours, and no reference outlives it.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

/// Memory that was freed is kept, for who asks next: giving it back and faulting it in again takes longer than what it is used for.
/// For programs that live for seconds; call it first of all.
pub fn keep_freed() {
    const LARGEST: libc::c_int = 32 << 20;
    const KEPT: libc::c_int = 64 << 20;
    const STEP: libc::c_int = 1 << 20;
    // SAFETY: parameters of the C library's allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        libc::mallopt(libc::M_TOP_PAD, STEP);
    }
}

/// Give freed memory back to the kernel.
pub fn trim() {
    // SAFETY: no pointers; what is in use stays.
    unsafe { libc::malloc_trim(0) };
}

/// How much of the program comes back at a time, bytes: what the kernel maps around a page that is missed.
const WINDOW: u64 = 64 << 10;

/// Pages of the program itself are not kept: those that it looks at again come back one window at a time, from the page cache. For
/// programs that are done with most of themselves and then stay for long.
pub fn drop_program() {
    // SAFETY: no pointers; the kernel tells where the program's headers are, and how many.
    let (at, count) = unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM)) };
    let first = at as *const libc::Elf64_Phdr;
    if first.is_null() {
        return;
    }
    // SAFETY: mapped with the program, never written.
    let headers = unsafe { std::slice::from_raw_parts(first, count as usize) };
    let own = headers.iter().find(|h| h.p_type == libc::PT_PHDR);
    let base = own.map_or(0, |h| at - h.p_vaddr);
    // SAFETY: no pointers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(1).unsigned_abs();
    for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
        let from = (base + header.p_vaddr) / page * page;
        let to = (base + header.p_vaddr + header.p_memsz).next_multiple_of(page);
        // Where the page cache holds the file in large pieces, the kernel maps all of a piece for one page of it (Linux 6.11), as far as
        // the mapping reaches. So there are many mappings: neighbours differ in whether a core dump has them.
        for part in (from..to).step_by(2 * WINDOW as usize) {
            let length = WINDOW.min(to - part) as usize;
            // SAFETY: a part of the program's file that is mapped privately and not writable; only what a core dump holds changes.
            unsafe { libc::madvise(part as *mut libc::c_void, length, libc::MADV_DONTDUMP) };
        }
        // SAFETY: as above: it is read again when it is needed.
        unsafe { libc::madvise(from as *mut libc::c_void, (to - from) as usize, libc::MADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_program_goes_on_without_its_pages() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = text.lines().find_map(|l| l.strip_prefix("RssFile:")).unwrap().to_owned();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = resident();
        super::drop_program();
        assert!(resident() < before, "{before}");
    }

    use std::io::Write;

    use super::Mapped;

    #[test]
    fn a_part_of_a_file() {
        let path = std::env::temp_dir().join(format!("berth-mapped-{}", std::process::id()));
        let bytes: Vec<u8> = (0..20_000u32).map(|n| (n % 251) as u8).collect();
        std::fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for (from, length) in [(0, 20_000), (1, 4096), (4096, 1), (5000, 15_000), (20_000, 0)] {
            let part = Mapped::part(&file, from as u64, length).unwrap();
            assert_eq!(part[..], bytes[from..from + length], "{from} {length}");
        }
        for (from, length) in [(0, 20_001), (20_001, 0), (19_999, 2)] {
            let e = Mapped::part(&file, from, length).unwrap_err();
            assert_eq!(e.kind(), std::io::ErrorKind::UnexpectedEof, "{from} {length}");
        }
    }
}
