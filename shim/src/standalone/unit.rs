//! How does a container come back when the host is booted? By a systemd unit, which starts it and stops it as a user would.

use super::state::{Dir, Options, Restart};

/// The text of a unit for a container: `berth-shim generate systemd ID`.
pub fn systemd(program: &str, root: &str, dir: &Dir, options: &Options) -> String {
    let id = &dir.id;
    let timeout = options.stop_timeout.as_secs() + 10;
    let comment = match options.restart {
        Restart::Always | Restart::UnlessStopped | Restart::OnFailure(_) => "its own restart policy",
        Restart::No => "no restart policy: it is started once for each boot",
    };
    format!(
        "# Starts container {id} at boot. Restarts are made by berth-shim ({comment}).\n\
         # Put it into /etc/systemd/system/berth-{id}.service, then: systemctl enable --now berth-{id}\n\
         [Unit]\n\
         Description=Container {id} (berth-shim)\n\
         Wants=network-online.target\n\
         After=network-online.target local-fs.target\n\
         RequiresMountsFor={bundle}\n\
         ConditionPathExists={options_file}\n\
         \n\
         [Service]\n\
         # It has ended when the container has ended for good.\n\
         Type=exec\n\
         ExecStart={program} --root {root} start --attach {id}\n\
         ExecStop={program} --root {root} stop {id}\n\
         # What supervises the container is in this unit's cgroup: systemd leaves it to ExecStop.\n\
         KillMode=none\n\
         SendSIGKILL=no\n\
         TimeoutStopSec={timeout}\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        bundle = options.bundle.display(),
        options_file = dir.file("options.json").display(),
    )
}
