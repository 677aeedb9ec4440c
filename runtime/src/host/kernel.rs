//! What can this kernel do? For `explain` and `features` alone: nothing on the way to a container asks.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// What a config may ask for and a kernel may lack.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Kernel {
    pub release: String,
    pub apparmor: bool,
    pub selinux: bool,
    /// The ABI of Landlock, 0 without it.
    pub landlock: u32,
    /// The kernel's names: `kill_process`, `errno`, `user_notif` …
    pub seccomp_actions: Vec<String>,
    /// Namespaces that the kernel was built with, by the specification's names.
    pub namespaces: Vec<&'static str>,
    /// New user namespaces are allowed to whoever asks.
    pub user_namespaces_allowed: bool,
    pub resctrl: bool,
    pub file_systems: Vec<String>,
    /// The highest capability's number.
    pub last_capability: Option<u8>,
}

impl Kernel {
    /// Look at the kernel.
    pub fn look() -> Kernel {
        let file_systems = file_systems(&read("/proc/filesystems"));
        Kernel {
            release: read("/proc/sys/kernel/osrelease"),
            apparmor: read("/sys/module/apparmor/parameters/enabled") == "Y",
            selinux: file_systems.iter().any(|fs| fs == "selinuxfs")
                && Path::new("/sys/fs/selinux/enforce").exists(),
            landlock: sys::kernel::landlock_abi().unwrap_or(0),
            seccomp_actions: words(&read("/proc/sys/kernel/seccomp/actions_avail")),
            namespaces: namespaces(),
            user_namespaces_allowed: read("/proc/sys/user/max_user_namespaces") != "0"
                && read("/proc/sys/kernel/unprivileged_userns_clone") != "0",
            resctrl: file_systems.iter().any(|fs| fs == "resctrl"),
            file_systems,
            last_capability: read("/proc/sys/kernel/cap_last_cap").parse().ok(),
        }
    }

    /// Whether the kernel can do what the seccomp action `SCMP_ACT_…` says.
    pub fn has_seccomp_action(&self, action: &str) -> bool {
        let name = match action {
            "SCMP_ACT_KILL" => "kill_thread",
            "SCMP_ACT_NOTIFY" => "user_notif",
            other => &other.trim_start_matches("SCMP_ACT_").to_ascii_lowercase(),
        };
        self.seccomp_actions.iter().any(|a| a == name)
    }
}

/// Where a program is: `name` itself if it has a slash, else the first in PATH that may be executed.
pub fn program(name: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runs =
        |path: &Path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if name.components().count() > 1 {
        return runs(name).then(|| name.to_owned());
    }
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| runs(path))
}

fn namespaces() -> Vec<&'static str> {
    let file = |name: &str| {
        match name {
            "mount" => "mnt",
            "network" => "net",
            other => other,
        }
        .to_owned()
    };
    let known = crate::bundle::words::NAMESPACES.iter().copied();
    known.filter(|name| Path::new("/proc/self/ns").join(file(name)).exists()).collect()
}

/// `nodev\ttmpfs`, or `\text4`.
fn file_systems(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.split_whitespace().next_back().map(str::to_owned)).collect()
}

/// A short file of /proc or /sys without its line end; empty when it is not there.
fn read(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seccomp_actions_by_the_kernels_names() {
        let kernel = Kernel {
            seccomp_actions: words("kill_process kill_thread errno user_notif allow"),
            ..Kernel::default()
        };
        for (action, expected) in [
            ("SCMP_ACT_KILL", true),
            ("SCMP_ACT_KILL_PROCESS", true),
            ("SCMP_ACT_NOTIFY", true),
            ("SCMP_ACT_ALLOW", true),
            ("SCMP_ACT_LOG", false),
        ] {
            assert_eq!(kernel.has_seccomp_action(action), expected, "{action}");
        }
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        assert_eq!(program(Path::new("/bin/sh")), Some(PathBuf::from("/bin/sh")));
        assert!(program(Path::new("sh")).is_some_and(|p| p.ends_with("sh")));
        assert_eq!(program(Path::new("no-such-program-anywhere")), None);
        assert_eq!(program(Path::new("/etc/passwd")), None);
    }
}
