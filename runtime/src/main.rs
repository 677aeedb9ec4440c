//! Parse, run, report.

#![no_main]

#[global_allocator]
static MEMORY: sys::alloc::Arena = sys::alloc::Arena::new();

sys::entry!(main);

fn main() -> i32 {
    // What `run` uses; measured in docs/speed.md.
    MEMORY.prefault(176 << 10, 48 << 10);
    runtime::cli::main()
}
