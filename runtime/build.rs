//! Three choices about the binary, made from what it is built with.
//!
//! In which order do the functions stand in the release binary? Those of the daily work side by side: the kernel maps
//! 64 KiB around each page that is touched, so a program whose hot functions are scattered becomes resident as a whole.
//! The lists, of functions (symbols.order) and of the constants that they name (layout.ld), are made by `just order`; names
//! that no longer exist are passed over. The names of most constants carry a hash that changes with the code: make the lists
//! anew after the last change. They need LLD, which is what rustc links with on x86_64 Linux; `BERTH_NO_ORDER=1` leaves
//! this and the next out, for another linker.
//!
//! Are backtraces quick? The index of the tables for unwinding is left out of the release binary: it aborts on a panic and
//! searches them, if at all, to print a backtrace. The tables themselves stay: the unwinder aborts without its own.
//!
//! `BERTH_LINK_MAP=FILE` has the linker write down what lies where, for `just order`: names carry hashes that depend on
//! the profile, so only the very build that is released can tell them, and that one is stripped.
//!
//! Does the program begin by itself (`cfg(own_start)`, sys::entry)? Only if it is linked statically, not position
//! independent, with a C library whose inner functions are known; `BERTH_PLAIN_START=1` says no.

use std::env;
use std::process::Command;

/// Versions of glibc whose beginning `sys::entry` knows.
const KNOWN_GLIBC: [&str; 1] = ["2.36"];

fn main() {
    order();
    println!("cargo::rustc-check-cfg=cfg(own_start)");
    println!("cargo::rerun-if-env-changed=BERTH_PLAIN_START");
    if env::var_os("BERTH_PLAIN_START").is_none() && knows_the_c_library() {
        println!("cargo::rustc-cfg=own_start");
        println!("cargo::rustc-link-arg-bins=-Wl,--wrap=__register_frame_info");
    }
}

fn is(name: &str, value: &str) -> bool {
    env::var(name).is_ok_and(|v| v == value)
}

fn order() {
    println!("cargo::rerun-if-changed=symbols.order");
    println!("cargo::rerun-if-changed=layout.ld");
    println!("cargo::rerun-if-env-changed=BERTH_NO_ORDER");
    println!("cargo::rerun-if-env-changed=BERTH_LINK_MAP");
    if !is("PROFILE", "release")
        || !is("CARGO_CFG_TARGET_ARCH", "x86_64")
        || env::var_os("BERTH_NO_ORDER").is_some()
    {
        return;
    }
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    println!("cargo::rustc-link-arg-bins=-Wl,--symbol-ordering-file={folder}/symbols.order");
    println!("cargo::rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{folder}/layout.ld");
    if let Ok(file) = env::var("BERTH_LINK_MAP") {
        println!("cargo::rustc-link-arg-bins=-Wl,-Map={file},--no-demangle");
    }
    println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
    // Functions that came out the same from different types become one.
    println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
}

fn knows_the_c_library() -> bool {
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if !is("CARGO_CFG_TARGET_ARCH", "x86_64")
        || !is("CARGO_CFG_TARGET_ENV", "gnu")
        || !features.split(',').any(|f| f == "crt-static")
        || !flags.contains("relocation-model=static")
    {
        return false;
    }
    let Ok(found) = Command::new("cc").arg("-print-file-name=libc.a").output() else { return false };
    let path = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    println!("cargo::rerun-if-changed={path}");
    let Ok(library) = std::fs::read(&path) else { return false };
    KNOWN_GLIBC.iter().any(|version| {
        let banner = format!(" release version {version}.\n");
        library.windows(banner.len()).any(|bytes| bytes == banner.as_bytes())
    })
}
