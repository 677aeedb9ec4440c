//! Memory for a program that lives for some milliseconds.
//!
//! ```text
//! arena (in .bss) | in use, freed pieces in lists by size | used once | never used, zero |
//!                 0                                       top         high               SIZE, then the C library's malloc
//! ```
//! After a fork every page that is written to must be copied first, the pages that freed pieces are noted in as well: who goes on
//! for a moment only calls [`give_nothing_back`].
//!
//! One thread, so no locks. A page fault costs more than all the work that a verb does in one page, so freed pieces are
//! used again, large ones too, and what was never used is not cleared.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, Ordering};

/// Beyond it, the C library's allocator takes over.
const SIZE: usize = 768 * 1024;
/// Sizes are rounded up to this; also the alignment of every piece.
const GRAIN: usize = 16;
/// Up to here there is a list for each size; beyond, sizes are rounded to four steps for each doubling.
const SMALL: usize = 1024;
const STEPS: usize = 4;
const LISTS: usize = SMALL / GRAIN + 1 + STEPS * (SIZE / SMALL).next_power_of_two().ilog2() as usize;

/// Whether freed pieces are forgotten.
static FORGETS: AtomicBool = AtomicBool::new(false);

/// From now on what is freed is not used again, and new pieces come from where nothing has been.
pub fn give_nothing_back() {
    FORGETS.store(true, Ordering::Relaxed);
}

/// So much heap and stack, bytes, will be written to: asked for at once, instead of one page fault a page. A refusal changes nothing.
pub fn expect(heap: usize, stack: usize) {
    const PAGE: usize = 4096;
    let next = Box::new(0u8);
    let heap_from = (&raw const *next as usize).next_multiple_of(PAGE);
    let here = 0u8;
    let stack_to = (&raw const here as usize) / PAGE * PAGE;
    for (from, length) in [(heap_from, heap), (stack_to.saturating_sub(stack), stack)] {
        // SAFETY: only makes pages of ours present; what is not mapped is refused.
        unsafe { libc::madvise(from as *mut libc::c_void, length / PAGE * PAGE, libc::MADV_POPULATE_WRITE) };
    }
}

fn forgets() -> bool {
    FORGETS.load(Ordering::Relaxed)
}

/// The allocator: `#[global_allocator] static ALLOC: sys::alloc::Arena = sys::alloc::Arena::new();`
#[derive(Debug)]
pub struct Arena(UnsafeCell<State>);

#[repr(C, align(64))]
#[derive(Debug)]
struct State {
    top: usize,
    high: usize,
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
        Arena(UnsafeCell::new(State {
            top: 0,
            high: 0,
            free: [std::ptr::null_mut(); LISTS],
            bytes: Bytes([0; SIZE]),
        }))
    }
}

/// A piece's real size and its list.
fn class(size: usize) -> (usize, usize) {
    if size <= SMALL {
        let size = size.next_multiple_of(GRAIN).max(GRAIN);
        return (size, size / GRAIN);
    }
    // 1024 < size: 1280, 1536, 1792, 2048, 2560, …
    let doubling = (size - 1).ilog2();
    let step = (1 << doubling) / STEPS;
    let real = size.next_multiple_of(step);
    let list =
        SMALL / GRAIN + STEPS * (doubling - SMALL.ilog2()) as usize + (real >> doubling.saturating_sub(2))
            - STEPS;
    (real, list)
}

impl State {
    fn take(&mut self, size: usize) -> Option<(*mut u8, bool)> {
        let (real, list) = class(size);
        if let Some(first) = self.free.get_mut(list).filter(|first| !first.is_null())
            && !forgets()
        {
            let piece = *first;
            // SAFETY: a freed piece begins with the address of the next one.
            *first = unsafe { piece.cast::<*mut u8>().read() };
            return Some((piece, false));
        }
        if real > SIZE - self.top {
            return None;
        }
        // SAFETY: within the arena, by the line above.
        let piece = unsafe { self.bytes.0.as_mut_ptr().add(self.top) };
        let fresh = self.top >= self.high;
        self.grow(self.top + real);
        Some((piece, fresh))
    }

    fn grow(&mut self, top: usize) {
        self.top = top;
        self.high = self.high.max(top);
    }
}

// SAFETY: pieces are disjoint, at least as large and as aligned as asked for, and stay until they are freed; what is
// not in the arena is the system allocator's from beginning to end.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread, and no reference into the state outlives this call.
        let state = unsafe { &mut *self.0.get() };
        if layout.align() <= GRAIN
            && let Some((piece, _)) = state.take(layout.size())
        {
            return piece;
        }
        // SAFETY: as promised by our caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread, and no reference into the state outlives this call.
        let state = unsafe { &mut *self.0.get() };
        if layout.align() <= GRAIN
            && let Some((piece, fresh)) = state.take(layout.size())
        {
            // What was never used is zero, and stays unmapped until somebody writes to it.
            if !fresh {
                // SAFETY: the piece is at least that large.
                unsafe { piece.write_bytes(0, layout.size()) };
            }
            return piece;
        }
        // SAFETY: as promised by our caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        // SAFETY: one thread, and no reference into the state outlives this call.
        let state = unsafe { &mut *self.0.get() };
        let offset = (piece as usize).wrapping_sub(state.bytes.0.as_ptr() as usize);
        if offset >= SIZE {
            // SAFETY: not ours, so the system allocator's.
            return unsafe { System.dealloc(piece, layout) };
        }
        if forgets() {
            return;
        }
        let (real, list) = class(layout.size());
        if offset + real == state.top {
            // The last piece: as if it had never been.
            state.top = offset;
        } else if let Some(first) = state.free.get_mut(list) {
            // SAFETY: the piece is ours again, at least GRAIN bytes, aligned to GRAIN.
            unsafe { piece.cast::<*mut u8>().write(*first) };
            *first = piece;
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        {
            // SAFETY: one thread, and no reference into the state outlives this block.
            let state = unsafe { &mut *self.0.get() };
            let offset = (piece as usize).wrapping_sub(state.bytes.0.as_ptr() as usize);
            if offset < SIZE {
                let ((old, _), (new, _)) = (class(layout.size()), class(new_size));
                // Its class is told by the layout at the end, so it must not change quietly.
                if new == old {
                    return piece;
                }
                if offset + old == state.top && new <= SIZE - offset {
                    state.grow(offset + new);
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
            let big = arena.alloc(layout(20_000));
            big.write_bytes(3, 20_000);
            let above = arena.alloc_zeroed(layout(20_000));
            assert!((0..20_000).all(|i| *above.add(i) == 0), "never used");
            above.write_bytes(4, 20_000);
            arena.dealloc(big, layout(20_000));
            assert_eq!(arena.alloc(layout(20_480)), big, "large ones are reused too");
            arena.dealloc(above, layout(20_000));
            let again = arena.alloc_zeroed(layout(30_000));
            assert_eq!(again, above, "the last one had never been");
            assert!((0..30_000).all(|i| *again.add(i) == 0), "used, so cleared");
            assert_eq!(
                arena.realloc(again, layout(30_000), 5000),
                again,
                "the last piece shrinks where it is"
            );
            let large = arena.alloc(layout(SIZE));
            large.add(SIZE - 1).write(7);
            arena.dealloc(large, layout(SIZE));
            let aligned = arena.alloc(Layout::from_size_align(64, 4096).unwrap());
            assert_eq!(aligned as usize % 4096, 0);
            arena.dealloc(aligned, Layout::from_size_align(64, 4096).unwrap());
        }
    }
}
