//! Parse, run, report.

fn main() {
    sys::memory::keep_freed();
    std::process::exit(builder::cli::main());
}
