//! Supervision of containers: for containerd, as `containerd-shim-berth-v2`, and alone.

use std::env::{args_os, var_os};
use std::process::exit;

use shim::containerd::{self, Environment};

fn main() {
    let mut args = args_os();
    args.next();
    let environment = Environment {
        ttrpc_address: var_os("TTRPC_ADDRESS"),
        max_version: var_os("MAX_SHIM_VERSION"),
        path: var_os("PATH").unwrap_or_default(),
    };
    exit(containerd::main(args, &environment));
}
