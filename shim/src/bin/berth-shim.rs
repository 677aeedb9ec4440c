//! Supervision of containers: for containerd, when it is called `containerd-shim-berth-v2`, and alone.

use std::env::{args_os, var_os};
use std::ffi::OsString;
use std::path::Path;
use std::process::exit;

use shim::{conmon, containerd, standalone};

fn main() {
    let args: Vec<OsString> = args_os().collect();
    let name = args.first().and_then(|name| Path::new(name).file_name()).unwrap_or_default();
    let path = var_os("PATH").unwrap_or_default();
    if name.to_string_lossy().starts_with("containerd-shim-") {
        let environment = containerd::Environment {
            ttrpc_address: var_os("TTRPC_ADDRESS"),
            max_version: var_os("MAX_SHIM_VERSION"),
            path,
        };
        exit(containerd::main(args.into_iter().skip(1), &environment));
    }
    // Podman calls its monitor by a path alone: a link of that name, or its first option, tells.
    let word = args.get(1).map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let by_word = word == "conmon";
    if by_word || name.to_string_lossy().ends_with("conmon") || word.starts_with("--api-version") {
        let text = |name: &str| var_os(name).map(|value| value.to_string_lossy().into_owned());
        let environment = conmon::Environment {
            sync_pipe: text("_OCI_SYNCPIPE"),
            start_pipe: text("_OCI_STARTPIPE"),
            attach_pipe: text("_OCI_ATTACHPIPE"),
        };
        exit(conmon::main(args.into_iter().skip(if by_word { 2 } else { 1 }), &environment));
    }
    let environment = standalone::Environment {
        path,
        runtime_dir: var_os("XDG_RUNTIME_DIR").map(Into::into),
        notify_socket: var_os("NOTIFY_SOCKET").map(Into::into),
        runtime: var_os("BERTH_RUNTIME").map(Into::into),
    };
    exit(standalone::main(args, &environment));
}
