//! Applies Landlock rules to the calling process.

use anyhow::{Context, Result, anyhow};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
};
use report::{Explain, Kind};

use crate::plan::landlock::{ANNOTATION, Landlock};

/// Restrict the calling process, after everything else and just before the program is executed: paths are those of
/// the container by then, and we still hold CAP_SYS_ADMIN over our user namespace, so that no_new_privs is not
/// needed and stays as the config has it.
pub fn apply(rules: &Landlock) -> Result<()> {
    apply_to(rules, sys::kernel::landlock_abi().unwrap_or(0))
        .with_context(|| format!("annotations[{ANNOTATION:?}]"))
}

fn apply_to(rules: &Landlock, abi: u32) -> Result<()> {
    rules.check(abi)?;
    // All that this kernel knows is denied, then allowed by rule. `check` has seen to it that this is enough.
    let abi = ABI::from(i32::try_from(abi).unwrap_or(i32::MAX));
    let level = if rules.best_effort { CompatLevel::BestEffort } else { CompatLevel::HardRequirement };
    let mut ruleset = Ruleset::default().set_compatibility(level);
    let fs = if rules.fs.is_some() { AccessFs::from_all(abi) } else { BitFlags::EMPTY };
    if !fs.is_empty() {
        ruleset = ruleset.handle_access(fs)?;
    }
    let net = AccessNet::from_all(abi);
    for (ports, right) in [(&rules.bind, AccessNet::BindTcp), (&rules.connect, AccessNet::ConnectTcp)] {
        if ports.is_some() && net.contains(right) {
            ruleset = ruleset.handle_access(right)?;
        }
    }
    let scope = BitFlags::<Scope>::from_bits_truncate(rules.scope) & Scope::from_all(abi);
    if !scope.is_empty() {
        ruleset = ruleset.scope(scope)?;
    }
    if fs.is_empty()
        && scope.is_empty()
        && (net.is_empty() || (rules.bind.is_none() && rules.connect.is_none()))
    {
        log::warn!("{ANNOTATION}: this kernel has nothing of it, going on without");
        return Ok(());
    }
    let mut created = ruleset.create()?.no_new_privs(false);
    for (i, rule) in rules.fs.iter().flatten().enumerate() {
        let wanted = BitFlags::<AccessFs>::from_bits_truncate(rule.access) & fs;
        for (j, path) in rule.paths.iter().enumerate() {
            let here = || format!("fs[{i}].paths[{j}]: {}", path.display());
            let file = PathFd::new(path).map_err(|e| match std::error::Error::source(&e) {
                Some(os) => anyhow!("open: {os}"),
                None => anyhow!("{e}"),
            });
            let file = file.with_context(here)?;
            let is_dir = rustix::fs::fstat(&file).is_ok_and(|s| {
                rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::Directory
            });
            let access = if is_dir { wanted } else { wanted & AccessFs::from_file(abi) };
            if access.is_empty() {
                if rules.best_effort {
                    continue;
                }
                return Err(anyhow!("not a directory, and the rights of the rule are about directories"))
                    .with_context(here);
            }
            created = created.add_rule(PathBeneath::new(file, access)).with_context(here)?;
        }
    }
    for (ports, right) in [(&rules.bind, AccessNet::BindTcp), (&rules.connect, AccessNet::ConnectTcp)] {
        for port in ports.iter().flatten().filter(|_| net.contains(right)) {
            created = created.add_rule(NetPort::new(*port, right)).with_context(|| format!("port {port}"))?;
        }
    }
    created
        .restrict_self()
        .map(drop)
        .map_err(|e| anyhow!("restrict ourselves: {e}"))
        .kind(Kind::Unsupported)
        .hint(|| {
            "without CAP_SYS_ADMIN in the container's user namespace, set process.noNewPrivileges".to_owned()
        })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::plan::landlock::plan;

    /// Landlock restricts the thread that asks for it: this one ends with the test.
    fn restricted(rules: &str, test: impl FnOnce() + Send + 'static) {
        if sys::kernel::landlock_abi().unwrap_or(0) < 4 || sys::user::effective_ids().0 != 0 {
            eprintln!("skipped: needs root and a kernel with Landlock ABI 4");
            return;
        }
        let rules = plan(rules).unwrap();
        std::thread::spawn(move || {
            apply(&rules).unwrap();
            test();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn files_are_what_the_rules_say() {
        let dir = std::env::temp_dir().join(format!("berth-landlock-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("rw")).unwrap();
        std::fs::write(dir.join("ro"), "x").unwrap();
        let rules = serde_json::json!({"fs": [{"access": "ro", "paths": [dir.join("ro")]}, {"access": "rw", "paths": [dir.join("rw")]}]});
        let there = dir.clone();
        restricted(&rules.to_string(), move || {
            assert_eq!(std::fs::read(there.join("ro")).unwrap(), b"x");
            std::fs::write(there.join("rw/new"), "y").unwrap();
            for denied in [
                std::fs::write(there.join("ro"), "y").unwrap_err(),
                std::fs::write(there.join("new"), "y").unwrap_err(),
                std::fs::read("/etc/passwd").unwrap_err(),
                std::fs::read_dir("/").unwrap_err(),
            ] {
                assert_eq!(denied.kind(), std::io::ErrorKind::PermissionDenied, "{denied}");
            }
        });
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn ports_are_what_the_rules_say() {
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = open.local_addr().unwrap().port();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = other.local_addr().unwrap();
        restricted(&format!(r#"{{"net": {{"connect": [{port}], "bind": []}}}}"#), move || {
            TcpStream::connect(("127.0.0.1", port)).unwrap();
            let denied = [TcpStream::connect(closed).map(drop), TcpListener::bind("127.0.0.1:0").map(drop)];
            for denied in denied {
                assert_eq!(denied.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
            }
        });
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let rules = plan(r#"{"fs": [{"access": "ro", "paths": ["/nonesuch"]}]}"#).unwrap();
        let line = report::line(&apply_to(&rules, 2).unwrap_err());
        assert_eq!(
            line,
            "annotations[\"dev.berth.landlock\"]: fs needs Landlock ABI 3, this kernel has ABI 2"
        );
        let line = report::line(&apply_to(&rules, 0).unwrap_err());
        assert!(
            line.ends_with("this kernel has no Landlock, or it is not among the enabled security modules"),
            "{line}"
        );
        let best = plan(r#"{"scope": ["signal"], "bestEffort": true}"#).unwrap();
        apply_to(&best, 0).unwrap();
        if sys::kernel::landlock_abi().unwrap_or(0) >= 3 {
            let line = report::line(&apply_to(&rules, 3).unwrap_err());
            assert!(line.starts_with("fs[0].paths[0]: /nonesuch: open: no such file"), "{line}");
        }
    }
}
