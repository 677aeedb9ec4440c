//! `ps`: which processes run in a container?

use std::process::Command;

use anyhow::{Context, Result};
use report::{Explain, Kind, error};

use super::Globals;
use crate::cgroup;
use crate::state::{Dir, Status};

/// Show the processes of a container.
///
/// The table is the host's ps(1) with the container's processes only; what stands after the container's id is
/// for ps, `-ef` if there is nothing.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  berth-runtime ps web -o pid,user,comm\n  berth-runtime ps --format json web"
)]
pub struct Args {
    /// table or json
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"], hide_possible_values = true)]
    pub format: String,
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// Options of ps(1)
    #[arg(value_name = "PS-OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<String>,
}

/// Print the processes.
pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    let text = ps(globals, &args).with_context(|| format!("ps {}", args.id))?;
    super::print(&text)?;
    Ok(0)
}

fn ps(globals: &Globals, args: &Args) -> Result<String> {
    let dir = Dir::open(&globals.root, &args.id)?;
    let state = dir.load()?;
    let mut pids = match dir.status(&state)? {
        Status::Stopped => Vec::new(),
        _ => cgroup::pids(&state.cgroup)?,
    };
    // Without a cgroup of its own, the first process is what we know of.
    if pids.is_empty() && state.is_alive()? {
        pids.push(state.pid);
    }
    if args.format == "json" {
        return Ok(serde_json::to_string(&pids)? + "\n");
    }
    let default = ["-ef".to_owned()];
    let options = if args.options.is_empty() { &default[..] } else { &args.options };
    filter(&table(options, &pids)?, &pids)
}

/// The host's table, with at least these processes in it. What options such as `-o pid,comm` select by themselves
/// depends on the caller's terminal, so they are asked for by number as well; not every ps knows how (busybox).
fn table(options: &[String], pids: &[i32]) -> Result<String> {
    let run = |options: &[String]| {
        Command::new("ps")
            .args(options)
            .output()
            .context("run the host's ps")
            .hint(|| "--format json needs no ps".to_owned())
    };
    // An argument may have 128 KiB.
    let numbers = pids.chunks(10_000).map(|some| {
        let some: Vec<String> = some.iter().map(i32::to_string).collect();
        format!("-p{}", some.join(","))
    });
    let wanted: Vec<String> = options.iter().cloned().chain(numbers).collect();
    let mut output = run(&wanted)?;
    if !output.status.success() && !pids.is_empty() {
        output = run(options)?;
    }
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(error(Kind::Failed, format!("ps {}: {}", options.join(" "), said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The header and the lines of these processes.
fn filter(table: &str, pids: &[i32]) -> Result<String> {
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    let Some(column) = header.split_whitespace().position(|title| title == "PID") else {
        return Err(error(Kind::BadInput, "the output of ps has no column PID"))
            .hint(|| "add pid to the columns, as in -o pid,comm".to_owned());
    };
    let mut out = format!("{header}\n");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse::<i32>().ok());
        // `-` stands for a thread's row in some formats; it belongs to the process above.
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            out.push_str(line);
            out.push('\n');
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_these_processes() {
        let table =
            "UID   PID  PPID CMD\nroot    1     0 init 7\nroot    7     1 sleep 1\nroot   17     7 sh\n";
        assert_eq!(
            filter(table, &[7, 17]).unwrap(),
            "UID   PID  PPID CMD\nroot    7     1 sleep 1\nroot   17     7 sh\n"
        );
        assert_eq!(filter(table, &[]).unwrap(), "UID   PID  PPID CMD\n");
        assert_eq!(
            report::line(&filter("CMD\nsh\n", &[1]).unwrap_err()),
            "the output of ps has no column PID"
        );
    }
}
