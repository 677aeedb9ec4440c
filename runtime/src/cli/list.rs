//! `list`: which containers are there below the state root?

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use super::Globals;
use super::state::Shown;
use crate::state::{Dir, State, Status};

/// List the containers below the state root.
///
/// A container whose state cannot be read is reported on standard error and left out; the others are listed.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  berth-runtime list --format json | jq -r '.[] | select(.status == \"stopped\").id'"
)]
pub struct Args {
    /// table or json
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"], hide_possible_values = true)]
    pub format: String,
    /// Print the ids alone
    #[arg(short, long)]
    pub quiet: bool,
}

pub fn run(globals: &Globals, args: Args) -> Result<i32> {
    let rows = rows(&globals.root)?;
    let text = if args.quiet {
        rows.iter().fold(String::new(), |out, row| out + &row.id + "\n")
    } else if args.format == "json" {
        let list = if rows.is_empty() { "null".to_owned() } else { serde_json::to_string(&rows)? };
        list + "\n"
    } else {
        table(&rows)
    };
    super::print(&text)?;
    Ok(0)
}

/// The containers, by name. A state root that nobody made yet holds none.
fn rows(root: &Path) -> Result<Vec<Shown>> {
    let mut names = match std::fs::read_dir(root) {
        Ok(entries) => {
            let mut names = Vec::new();
            for entry in entries {
                let entry = entry.with_context(|| format!("read {}", root.display()))?;
                if entry.file_type().is_ok_and(|t| t.is_file()) {
                    names.extend(entry.file_name().into_string().ok().filter(|name| !name.starts_with('@')));
                }
            }
            names
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e).with_context(|| format!("read {}", root.display())),
    };
    names.sort_unstable();
    let mut owners = Owners::default();
    let mut rows = Vec::new();
    for name in names {
        match look(root, &name) {
            Ok(Some((state, status))) => rows.push(row(state, status, &mut owners)),
            Ok(None) => {}
            Err(e) => report::print(super::PROGRAM, &e.context(format!("list: container {name}"))),
        }
    }
    Ok(rows)
}

/// `None`: it was removed while we looked.
fn look(root: &Path, id: &str) -> Result<Option<(State, Status)>> {
    let dir = match Dir::open(root, id) {
        Err(e) if report::kind(&e) == Some(report::Kind::NotFound) => return Ok(None),
        other => other?,
    };
    let state = dir.load()?;
    let status = dir.status(&state)?;
    Ok(Some((state, status)))
}

fn row(state: State, status: Status, owners: &mut Owners) -> Shown {
    let owner = owners.name(state.owner);
    Shown { owner, ..Shown::new(state, status) }
}

/// User names, each looked up once; a user without a name is `#uid`.
#[derive(Default)]
struct Owners(Vec<(u32, String)>);

impl Owners {
    fn name(&mut self, uid: u32) -> String {
        if let Some((_, name)) = self.0.iter().find(|(known, _)| *known == uid) {
            return name.clone();
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = user_name(&passwd, uid).unwrap_or_else(|| format!("#{uid}"));
        self.0.push((uid, name.clone()));
        name
    }
}

/// passwd(5): `name:password:uid:…`.
fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// runc's table: columns at least 12 wide, with 3 blanks between, the last one not filled up.
fn table(rows: &[Shown]) -> String {
    let mut lines = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    lines.extend(rows.iter().map(|r| {
        [
            r.id.clone(),
            r.pid.to_string(),
            r.status.to_string(),
            r.bundle.clone(),
            r.created.clone(),
            r.owner.clone(),
        ]
    }));
    let width =
        |column: usize| lines.iter().map(|line| line[column].chars().count() + 3).max().unwrap_or(0).max(12);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        for (cell, width) in line.iter().zip(&widths) {
            // Writing to a String cannot fail.
            write!(out, "{cell:width$}").unwrap_or_default();
        }
        out.push_str(&line[5]);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, pid: i32, status: Status) -> Shown {
        Shown {
            oci_version: "1.3.0".to_owned(),
            id: id.to_owned(),
            pid,
            status,
            bundle: "/b".to_owned(),
            rootfs: "/b/rootfs".to_owned(),
            created: "2026-11-21T09:00:00.000000001Z".to_owned(),
            annotations: std::collections::BTreeMap::new(),
            owner: "root".to_owned(),
        }
    }

    #[test]
    fn the_table_is_runcs() {
        assert_eq!(
            table(&[row("web", 4711, Status::Running), row("a-long-container-id", 0, Status::Stopped)]),
            "ID                    PID         STATUS      BUNDLE      CREATED                          OWNER\n\
             web                   4711        running     /b          2026-11-21T09:00:00.000000001Z   root\n\
             a-long-container-id   0           stopped     /b          2026-11-21T09:00:00.000000001Z   root\n"
        );
        assert_eq!(table(&[]), "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n");
    }

    #[test]
    fn owners_have_names_or_numbers() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbroken\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(user_name(passwd, 7), None);
    }
}
