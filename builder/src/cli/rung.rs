//! Who are the commands of a build, and is that what was asked for?

use anyhow::Result;
use report::Explain;

use super::App;

/// Who commands are, from less to more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Rung {
    /// As much as there is
    #[value(alias = "default", alias = "oci")]
    Auto,
    /// Root in a user namespace with a single id: owners of files are written down, not real
    #[value(alias = "single-id")]
    Single,
    /// Root in a user namespace with subordinate ids
    #[value(alias = "subids")]
    Rootless,
    /// Root, in a container with a cgroup of its own
    Root,
}

impl Rung {
    fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map(|v| v.get_name().to_owned()).unwrap_or_default()
    }

    fn what(self) -> &'static str {
        match self {
            Rung::Auto => "as much as there is",
            Rung::Single => "a user with a single id",
            Rung::Rootless => "a user with subordinate ids",
            Rung::Root => "root",
        }
    }
}

/// Refuse another rung than `wanted`, and a lower one than `least`.
pub fn check(app: &App, wanted: Rung, least: Rung) -> Result<()> {
    let rung = match (app.user.0, app.subordinate.is_empty()) {
        (0, _) => Rung::Root,
        (_, false) => Rung::Rootless,
        (_, true) => Rung::Single,
    };
    for (flag, asked, fits) in
        [("--isolation", wanted, rung == wanted), ("--min-isolation", least, rung >= least)]
    {
        let e: Result<()> = if asked == Rung::Auto || fits {
            Ok(())
        } else {
            Err(anyhow::anyhow!("{flag} {}: this is {}", asked.name(), rung.what()))
        };
        e.hint(|| {
            match rung {
                Rung::Single => {
                    "subordinate ids: lines in /etc/subuid and /etc/subgid, and newuidmap and newgidmap"
                }
                _ => "the user that starts the build decides",
            }
            .to_owned()
        })?;
    }
    Ok(())
}
