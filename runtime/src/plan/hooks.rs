//! Which programs run at which point of the lifecycle? (config.md, "POSIX-platform Hooks")

use std::path::PathBuf;

use anyhow::Result;
use oci_spec::runtime::Spec;
use report::at;
use serde::{Deserialize, Serialize};

/// One hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    pub path: PathBuf,
    /// The whole argument vector; the path when the config gives none.
    pub args: Vec<String>,
    /// Absent: our own, as runc does.
    pub env: Option<Vec<String>>,
    /// Seconds.
    pub timeout: Option<u32>,
}

/// All of them, each list in order.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    pub prestart: Vec<Hook>,
    pub create_runtime: Vec<Hook>,
    pub create_container: Vec<Hook>,
    pub start_container: Vec<Hook>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

/// The hooks of `spec`; a relative path or a timeout of 0 is an error.
pub fn plan(spec: &Spec) -> Result<Hooks> {
    let Some(hooks) = spec.hooks() else { return Ok(Hooks::default()) };
    #[allow(deprecated)]
    let prestart = hooks.prestart();
    Ok(Hooks {
        prestart: list("prestart", prestart)?,
        create_runtime: list("createRuntime", hooks.create_runtime())?,
        create_container: list("createContainer", hooks.create_container())?,
        start_container: list("startContainer", hooks.start_container())?,
        poststart: list("poststart", hooks.poststart())?,
        poststop: list("poststop", hooks.poststop())?,
    })
}

fn list(name: &str, hooks: &Option<Vec<oci_spec::runtime::Hook>>) -> Result<Vec<Hook>> {
    let mut out = Vec::new();
    for (i, hook) in hooks.iter().flatten().enumerate() {
        let path = hook.path();
        if !path.is_absolute() {
            return Err(at(
                format_args!("hooks.{name}[{i}].path"),
                format!("{:?} is not an absolute path", path.display().to_string()),
            ));
        }
        let timeout = match hook.timeout() {
            Some(seconds) if seconds <= 0 => {
                return Err(at(
                    format_args!("hooks.{name}[{i}].timeout"),
                    format!("{seconds} is not greater than zero"),
                ));
            }
            Some(seconds) => Some(u32::try_from(seconds).unwrap_or(u32::MAX)),
            None => None,
        };
        let args = match hook.args() {
            Some(args) if !args.is_empty() => args.clone(),
            _ => vec![path.display().to_string()],
        };
        out.push(Hook { path: path.clone(), args, env: hook.env().clone(), timeout });
    }
    Ok(out)
}
