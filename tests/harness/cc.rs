//! How does a test get a program that makes odd system calls? It is compiled, static, when the test runs.

use std::path::Path;
use std::process::Command;

use crate::command::finish;

/// Compile `source` (C) to the static program `output`.
pub fn compile(source: &str, output: &Path) {
    let text = output.with_extension("c");
    std::fs::write(&text, source).expect("write the C source");
    finish(Command::new("gcc").args(["-static", "-O1", "-w", "-o"]).arg(output).arg(&text)).success();
    std::fs::remove_file(&text).expect("remove the C source");
}
