//! Writes shell completions and manual pages of all programs: `cargo run -p package -- DIR` makes DIR/completions and DIR/man.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;

fn main() -> Result<()> {
    let dir = PathBuf::from(std::env::args_os().nth(1).context("usage: package DIR")?);
    let (completions, man) = (dir.join("completions"), dir.join("man"));
    for dir in [&completions, &man] {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    for command in [runtime::cli::command(), builder::cli::command(), shim::standalone::command()] {
        write(command, &completions, &man)?;
    }
    let page = man.join("berth-init.1");
    std::fs::write(&page, init_page()).with_context(|| format!("write {}", page.display()))?;
    for (other, page) in [("containerd-shim-berth-v2", "berth-shim"), ("berth-conmon", "berth-shim")] {
        let path = man.join(format!("{other}.1"));
        std::fs::write(&path, format!(".so man1/{page}.1\n"))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn write(command: Command, completions: &Path, man: &Path) -> Result<()> {
    let mut command = command.disable_help_subcommand(true);
    // The verbs' arguments may be deferred until somebody looks.
    command.build();
    let name = command.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, &name, completions)
            .with_context(|| format!("write {name}'s completions for {shell}"))?;
    }
    // clap_complete's cases for the verbs of a program with a hyphen in its name do not have the name that it looks for.
    let path = completions.join(format!("{name}.bash"));
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let wrong = format!("{}__subcmd__", name.replace('-', "__subcmd__"));
    let right = format!("{}__subcmd__", name.replace('-', "__"));
    std::fs::write(&path, text.replace(&wrong, &right))
        .with_context(|| format!("write {}", path.display()))?;
    clap_mangen::generate_to(command, man)
        .with_context(|| format!("write {name}'s pages to {}", man.display()))
}

/// Of the program that has no clap: its `--help`, in roff.
fn init_page() -> String {
    let mut out = String::from(
        ".TH berth-init 1\n.SH NAME\nberth-init \\- the first process of a container: reaps, and passes signals on\n.SH DESCRIPTION\n.nf\n",
    );
    for line in shim::init::HELP.lines() {
        // A line that begins with a dot or a quote would be a request.
        if line.starts_with(['.', '\'']) {
            out.push_str("\\&");
        }
        out.push_str(&line.replace('\\', "\\e").replace('-', "\\-"));
        out.push('\n');
    }
    out.push_str(".fi\n");
    out
}
