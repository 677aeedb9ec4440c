//! Parse, run, report.

fn main() {
    std::process::exit(builder::cli::main());
}
