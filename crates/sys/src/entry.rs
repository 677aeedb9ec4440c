//! The beginning of a program that is started thousands of times: the C library's `main`, without what Rust's
//! own does before it (reading /proc/self/maps, an alternate signal stack, ignoring SIGPIPE: about ten system
//! calls that a short-lived program has no use for).

/// Make `$main` (a `fn() -> i32`) the program's entry. The crate says `#![no_main]`. SIGPIPE keeps its default: writing
/// to a pipe that nobody reads ends the program, as other command-line tools do.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        // SAFETY: the symbol is defined once in a program, with the signature that the C library calls.
        #[unsafe(export_name = "main")]
        pub extern "C" fn c_main(_argc: i32, _argv: *const *const u8) -> i32 {
            let main: fn() -> i32 = $main;
            main()
        }
    };
}
