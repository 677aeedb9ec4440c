//! Memory for a program that lives for some milliseconds.
//!
//! ```text
//! arena (in .bss) | in use, freed pieces in lists by size | never used, zero |
//!                 0                                       top               SIZE, then the C library's malloc
//! ```
//! One thread, so no locks. A page fault costs more than all the work that a verb does in one page, so the part that
//! every verb uses is asked of the kernel in one call ([`prefault`]).

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;

/// Beyond it, the C library's allocator takes over.
const SIZE: usize = 768 * 1024;
/// Sizes are rounded up to this; also the alignment of every piece.
const GRAIN: usize = 16;
/// Larger pieces are not kept for reuse.
const LARGEST: usize = 4096;
const LISTS: usize = LARGEST / GRAIN + 1;

/// The allocator: `#[global_allocator] static ALLOC: sys::alloc::Arena = sys::alloc::Arena::new();`
#[derive(Debug)]
pub struct Arena(UnsafeCell<State>);

#[repr(C, align(4096))]
#[derive(Debug)]
struct State {
    top: usize,
    /// The first freed piece of each size; each holds the address of the next.
    free: [*mut u8; LISTS],
    bytes: Bytes,
}

#[repr(align(16))]
#[derive(Debug)]
struct Bytes([u8; SIZE]);

// SAFETY: the programs that use it have one thread (they clone processes, not threads).
unsafe impl Sync for Arena {}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

impl Arena {
    pub const fn new() -> Self {
        Arena(UnsafeCell::new(State { top: 0, free: [std::ptr::null_mut(); LISTS], bytes: Bytes([0; SIZE]) }))
    }

    /// Have the kernel map the first `heap` bytes of the arena and `stack` bytes below the caller's frame at once
    /// (madvise(2), `MADV_POPULATE_WRITE`, Linux 5.14). Without it they come page by page.
    pub fn prefault(&self, heap: usize, stack: usize) {
        const PAGE: usize = 4096;
        let here = (&raw const heap) as usize & !(PAGE - 1);
        for (start, length) in [(self.0.get() as usize, heap.min(SIZE)), (here - stack, stack)] {
            // SAFETY: asks for pages of our own arena and stack; their content stays as it is. Failing is harmless.
            unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_POPULATE_WRITE) };
        }
    }
}

fn rounded(size: usize) -> usize {
    size.next_multiple_of(GRAIN).max(GRAIN)
}

// SAFETY: pieces are disjoint, at least as large and as aligned as asked for, and stay until they are freed; what is
// not in the arena is the system allocator's from beginning to end.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread, and no reference into the state outlives this call.
        let state = unsafe { &mut *self.0.get() };
        let size = rounded(layout.size());
        if layout.align() <= GRAIN {
            if size <= LARGEST {
                let list = &mut state.free[size / GRAIN];
                let piece = *list;
                if !piece.is_null() {
                    // SAFETY: a freed piece begins with the address of the next one.
                    *list = unsafe { piece.cast::<*mut u8>().read() };
                    return piece;
                }
            }
            if size <= SIZE - state.top {
                // SAFETY: within the arena, by the line above.
                let piece = unsafe { state.bytes.0.as_mut_ptr().add(state.top) };
                state.top += size;
                return piece;
            }
        }
        // SAFETY: as promised by our caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        // SAFETY: one thread, and no reference into the state outlives this call.
        let state = unsafe { &mut *self.0.get() };
        let offset = (piece as usize).wrapping_sub(state.bytes.0.as_ptr() as usize);
        if offset >= SIZE {
            // SAFETY: not ours, so the system allocator's.
            return unsafe { System.dealloc(piece, layout) };
        }
        let size = rounded(layout.size());
        if offset + size == state.top {
            // The last piece: as if it had never been. (Fresh memory need not be zero: alloc_zeroed clears it.)
            state.top = offset;
        } else if size <= LARGEST {
            let list = &mut state.free[size / GRAIN];
            // SAFETY: the piece is ours again, at least GRAIN bytes, aligned to GRAIN.
            unsafe { piece.cast::<*mut u8>().write(*list) };
            *list = piece;
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        {
            // SAFETY: one thread, and no reference into the state outlives this block.
            let state = unsafe { &mut *self.0.get() };
            let offset = (piece as usize).wrapping_sub(state.bytes.0.as_ptr() as usize);
            if offset < SIZE {
                let (old, new) = (rounded(layout.size()), rounded(new_size));
                if new <= old {
                    // Its size class is told by the layout at the end, so it must not change quietly.
                    if new == old {
                        return piece;
                    }
                } else if offset + old == state.top && new <= SIZE - offset {
                    state.top = offset + new;
                    return piece;
                }
            } else {
                // SAFETY: not ours, so the system allocator's.
                return unsafe { System.realloc(piece, layout, new_size) };
            }
        }
        // SAFETY: the new layout is valid as promised by our caller; both pieces are live and disjoint.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            if !moved.is_null() {
                std::ptr::copy_nonoverlapping(piece, moved, layout.size().min(new_size));
                self.dealloc(piece, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_disjoint_reused_and_grow() {
        static ARENA: Arena = Arena::new();
        let arena = &ARENA;
        arena.prefault(8192, 4096);
        let layout = |size| Layout::from_size_align(size, 8).unwrap();
        // SAFETY: every piece is used within its layout and freed once, with that layout.
        unsafe {
            let (a, b) = (arena.alloc(layout(100)), arena.alloc(layout(100)));
            assert_eq!(b as usize - a as usize, 112);
            a.write_bytes(1, 100);
            b.write_bytes(2, 100);
            assert_eq!(*a.add(99), 1);
            arena.dealloc(a, layout(100));
            assert_eq!(arena.alloc(layout(110)), a, "reused by size class");
            let longer = arena.realloc(b, layout(100), 5000);
            assert_eq!(longer, b, "the last piece grows where it is");
            let moved = arena.realloc(a, layout(110), 300);
            assert_ne!(moved, a);
            assert_eq!(*moved.add(50), 1);
            let zero = arena.alloc_zeroed(layout(112));
            assert_eq!((zero, *zero.add(50)), (a, 0));
            let large = arena.alloc(layout(SIZE));
            large.add(SIZE - 1).write(7);
            arena.dealloc(large, layout(SIZE));
            let aligned = arena.alloc(Layout::from_size_align(64, 4096).unwrap());
            assert_eq!(aligned as usize % 4096, 0);
            arena.dealloc(aligned, Layout::from_size_align(64, 4096).unwrap());
        }
    }
}
