//! A container's first process.

use std::process::exit;

fn main() {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_else(|| "berth-init".into());
    exit(shim::init::main(&program, args, |name| std::env::var_os(name)));
}
