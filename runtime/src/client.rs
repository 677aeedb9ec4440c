//! How does another program speak to a runtime? By runc's command line, ours or any other's that has it; errors come from its JSON log.
//!
//! Nothing here waits: a builder's thread may block, a shim lets its one reaper see the end.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A runtime, and the options that stand before every verb.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// A path, or a name to be looked for in PATH.
    pub program: PathBuf,
    pub root: Option<PathBuf>,
    pub systemd_cgroup: bool,
    /// The program that makes checkpoints, where it is not the one in PATH.
    pub criu: Option<PathBuf>,
}

impl Client {
    /// `PROGRAM [--root R] --log L --log-format json [--systemd-cgroup] VERB`
    pub fn command(&self, log: &Path, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        // Who starts us is not the container.
        command.env_remove("NOTIFY_SOCKET");
        if let Some(root) = &self.root {
            command.arg("--root").arg(root);
        }
        command.arg("--log").arg(log).args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        if let Some(criu) = &self.criu {
            command.arg("--criu").arg(criu);
        }
        command.arg(verb);
        command
    }
}

/// The last error in a runtime's JSON log.
pub fn last_error(log: &Path) -> Option<String> {
    let text = std::fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().rev().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let level = line.get("level")?.as_str()?;
        matches!(level, "error" | "fatal" | "panic").then(|| line.get("msg")?.as_str().map(str::to_owned))?
    })
}

/// The file beside our own program, else one in `search` (PATH), else its bare name.
pub fn find(name: &str, search: &OsStr) -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(name)));
    let all = beside.into_iter().chain(std::env::split_paths(search).map(|dir| dir.join(name)));
    all.into_iter().find(|path| path.exists()).unwrap_or_else(|| PathBuf::from(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_found() {
        let log = std::env::temp_dir().join(format!("berth-client-{}", std::process::id()));
        for (text, error) in [
            ("", None),
            ("{\"level\":\"warning\",\"msg\":\"w\"}\n", None),
            (
                "{\"level\":\"error\",\"msg\":\"a\"}\n{\"level\":\"error\",\"msg\":\"b \\\"c\\\"\"}\n{\"level\":\"info\",\"msg\":\"i\"}\nodd",
                Some("b \"c\""),
            ),
        ] {
            std::fs::write(&log, text).unwrap();
            assert_eq!(last_error(&log).as_deref(), error);
        }
        std::fs::remove_file(&log).unwrap();
        assert_eq!(last_error(&log), None);
    }

    #[test]
    fn the_command_line_is_runcs() {
        let client =
            Client { program: "runc".into(), root: Some("/r".into()), systemd_cgroup: true, criu: None };
        let command = client.command(Path::new("/l"), "start");
        let args: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        assert_eq!(args.join(" "), "--root /r --log /l --log-format json --systemd-cgroup start");
    }
}
