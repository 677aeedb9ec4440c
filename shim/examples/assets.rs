//! Writes shell completions and man pages: `cargo run -p berth-shim --example assets -- DIR`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap_complete::Shell;

fn main() -> Result<()> {
    let dir = PathBuf::from(std::env::args_os().nth(1).context("usage: assets DIR")?);
    let (completions, man) = (dir.join("completions"), dir.join("man"));
    for dir in [&completions, &man] {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let mut command = shim::standalone::command();
    command.build();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let path = clap_complete::generate_to(shell, &mut command, "berth-shim", &completions)
            .with_context(|| format!("write completions for {shell}"))?;
        println!("{}", path.display());
    }
    clap_mangen::generate_to(command, &man)
        .with_context(|| format!("write man pages to {}", man.display()))?;
    println!("{}", man.display());
    Ok(())
}
