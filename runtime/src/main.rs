//! Parse, run, report.

#![no_main]

#[global_allocator]
static MEMORY: sys::alloc::Arena = sys::alloc::Arena::new();

sys::entry!(main);

fn main() -> i32 {
    runtime::cli::main()
}
