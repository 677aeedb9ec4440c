//! In which order do the functions stand in the release binary? Those of the daily work side by side: the kernel maps
//! 64 KiB around each page that is touched, so a program whose hot functions are scattered becomes resident as a whole.
//! The list is made by `just order`; names that no longer exist are passed over. It needs LLD, which is what rustc links
//! with on x86_64 Linux; `BERTH_NO_ORDER=1` leaves it out, for another linker.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=symbols.order");
    println!("cargo::rerun-if-env-changed=BERTH_NO_ORDER");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|v| v == value);
    if !is("PROFILE", "release")
        || !is("CARGO_CFG_TARGET_ARCH", "x86_64")
        || env::var_os("BERTH_NO_ORDER").is_some()
    {
        return;
    }
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    println!("cargo::rustc-link-arg-bins=-Wl,--symbol-ordering-file={folder}/symbols.order");
    println!("cargo::rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
    // Functions that came out the same from different types become one.
    println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
}
