//! `spec`: what does a config.json to start from look like?

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use report::{Explain, Kind, error};

use super::Globals;

/// Write a config.json to start from.
///
/// The container it describes runs `sh` in a terminal, with a read-only root file system in `rootfs`, few
/// capabilities and namespaces of its own. An existing config.json is left alone.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  mkdir -p web/rootfs && berth-runtime spec --bundle web")]
pub struct Args {
    /// The folder in which config.json is written
    #[arg(short, long, value_name = "DIR", default_value = ".", hide_default_value = true)]
    pub bundle: PathBuf,
    /// A config for an ordinary user: a user namespace, no resources, no network namespace
    #[arg(long)]
    pub rootless: bool,
}

pub fn run(_: &Globals, args: Args) -> Result<i32> {
    let path = args.bundle.join("config.json");
    // Never follows or replaces what is there.
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            return Err(error(Kind::AlreadyExists, format!("{} exists", path.display())))
                .hint(|| "remove it first, or name another folder with --bundle".to_owned());
        }
        Err(e) => return Err(e).with_context(|| format!("create {}", path.display())),
    };
    let text = if args.rootless { rootless(sys::user::effective_ids()) } else { CONFIG.to_owned() };
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
    Ok(0)
}

const CONFIG: &str = include_str!("spec/config.json");
const ROOTLESS: &str = include_str!("spec/rootless.json");

/// Root of the container is whoever asks.
fn rootless((uid, gid): (u32, u32)) -> String {
    ROOTLESS.replace("@UID@", &uid.to_string()).replace("@GID@", &gid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_configs_are_good_ones() {
        for text in [CONFIG.to_owned(), rootless((1000, 100))] {
            crate::bundle::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{}", report::line(&e)));
            assert_eq!(crate::bundle::unknown_fields(text.as_bytes()).unwrap(), []);
        }
        let spec = crate::bundle::parse(rootless((1000, 100)).as_bytes()).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        let host_id =
            |maps: &Option<Vec<oci_spec::runtime::LinuxIdMapping>>| maps.as_ref().unwrap()[0].host_id();
        assert_eq!((host_id(linux.uid_mappings()), host_id(linux.gid_mappings())), (1000, 100));
    }

    #[test]
    fn the_sample_is_what_spec_writes() {
        let sample: serde_json::Value =
            serde_json::from_str(include_str!("../../../spec-examples/runc-spec.json")).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(CONFIG).unwrap(), sample);
    }
}
