//! What do the flags mean? Values, secrets, agents, limits and times, with an error that names the flag.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image::manifest::Config;
use report::Explain;
use serde_json::{Value, json};

use super::super::App;
use super::super::rung::Rung;
use super::Build;
use crate::exec::{self, sandbox};
use crate::format::human;

/// `NAME=VALUE`.
pub fn pairs(flag: &str, all: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        let (name, value) = text.split_once('=').with_context(|| format!("{flag} {text}: NAME=VALUE"))?;
        ensure!(!name.is_empty(), "{flag} {text}: NAME=VALUE");
        Ok((name.to_owned(), value.to_owned()))
    };
    all.iter().map(pair).collect()
}

/// `a=b,c=d`
fn fields<'t>(flag: &str, text: &'t str, known: &[&str]) -> Result<BTreeMap<&'t str, &'t str>> {
    let mut found = BTreeMap::new();
    for field in text.split(',') {
        let (name, value) =
            field.split_once('=').with_context(|| format!("{flag} {text}: {field:?} has no ="))?;
        if !known.contains(&name) {
            let e: Result<()> = Err(anyhow::anyhow!("{flag} {text}: unknown option {name:?}"));
            e.hint(|| match report::nearest(name, known.iter().copied()) {
                Some(near) => format!("{near}?"),
                None => format!("there are {}", known.join(", ")),
            })?;
        }
        found.insert(name, value);
    }
    Ok(found)
}

impl Build {
    /// The rung that was asked for.
    pub fn isolation(&self) -> Rung {
        self.isolation
    }

    pub(super) fn arguments(&self) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for path in &self.build_arg_file {
            let title = path.display().to_string();
            let text = std::fs::read_to_string(path).with_context(|| format!("read {title}"))?;
            for (n, line) in text.lines().enumerate() {
                let line = line.trim();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let (name, value) =
                    line.split_once('=').with_context(|| format!("{title}:{}: NAME=VALUE", n + 1))?;
                all.insert(name.to_owned(), value.to_owned());
            }
        }
        for text in &self.build_arg {
            match text.split_once('=') {
                Some((name, value)) => drop(all.insert(name.to_owned(), value.to_owned())),
                None => {
                    if let Ok(value) = std::env::var(text) {
                        all.insert(text.clone(), value);
                    }
                }
            }
        }
        Ok(all)
    }

    pub(super) fn secrets(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut all = BTreeMap::new();
        for text in &self.secret {
            let found = fields("--secret", text, &["id", "src", "source", "env", "type"])?;
            let id = found.get("id").with_context(|| format!("--secret {text}: id=NAME is missing"))?;
            let file = found.get("src").or(found.get("source"));
            let value = match (file, found.get("env"), found.get("type").copied()) {
                (Some(_), Some(_), _) => bail!("--secret {text}: either src or env"),
                (Some(name), None, Some("env")) | (None, Some(name), _) => std::env::var_os(name)
                    .map(std::os::unix::ffi::OsStringExt::into_vec)
                    .with_context(|| format!("--secret {text}: the environment has no {name}"))?,
                (Some(path), None, _) => {
                    std::fs::read(path).with_context(|| format!("--secret {text}: read {path}"))?
                }
                // As docker has it: of that name in the environment, or else a file.
                (None, None, _) => match std::env::var_os(id) {
                    Some(value) => std::os::unix::ffi::OsStringExt::into_vec(value),
                    None => std::fs::read(id).with_context(|| format!("--secret {text}: read {id}"))?,
                },
            };
            all.insert((*id).to_owned(), value);
        }
        Ok(all)
    }

    pub(super) fn agents(&self) -> Result<BTreeMap<String, PathBuf>> {
        let mut all = BTreeMap::new();
        for text in &self.ssh {
            let (name, socket) = match text.split_once('=') {
                Some((name, socket)) => (name, Some(PathBuf::from(socket))),
                None => (text.as_str(), None),
            };
            let socket = socket.or_else(|| std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from));
            let socket =
                socket.with_context(|| format!("--ssh {text}: there is no agent (SSH_AUTH_SOCK)"))?;
            let kind =
                std::fs::metadata(&socket).with_context(|| format!("--ssh {text}: {}", socket.display()))?;
            ensure!(
                std::os::unix::fs::FileTypeExt::is_socket(&kind.file_type()),
                "--ssh {text}: {} is no agent's socket",
                socket.display()
            );
            all.insert(name.to_owned(), socket);
        }
        Ok(all)
    }

    /// How commands are run where nothing else is asked for.
    pub fn default_sandbox(app: &App) -> Result<sandbox::Settings> {
        #[derive(clap::Parser)]
        struct Plain {
            #[command(flatten)]
            build: Build,
        }
        let plain: Plain = clap::Parser::parse_from(["build"]);
        plain.build.sandbox(app)
    }

    pub(super) fn sandbox(&self, app: &App) -> Result<sandbox::Settings> {
        let mut resources = serde_json::Map::new();
        if let Some(text) = &self.memory {
            let bytes =
                human::parse_memory(text).with_context(|| format!("--memory {text}: this is no size"))?;
            resources.insert("memory".to_owned(), json!({"limit": bytes}));
        }
        if let Some(cpus) = self.cpus {
            ensure!(cpus > 0.0, "--cpus {cpus}: more than 0");
            resources
                .insert("cpu".to_owned(), json!({"quota": (cpus * 100_000.0) as i64, "period": 100_000}));
        }
        let mut ulimits = Vec::new();
        for text in &self.ulimit {
            let wrong = || format!("--ulimit {text}: NAME=SOFT[:HARD]");
            let (name, values) = text.split_once('=').with_context(wrong)?;
            let (soft, hard) = values.split_once(':').unwrap_or((values, values));
            let number = |text: &str| match text {
                "unlimited" | "-1" => Ok(u64::MAX),
                other => other.parse::<u64>().with_context(wrong),
            };
            ulimits.push((name.to_owned(), number(soft)?, number(hard)?));
        }
        let mut hosts = Vec::new();
        for text in &self.add_host {
            let at = text.find(['=', ':']).with_context(|| format!("--add-host {text}: HOST:ADDRESS"))?;
            hosts.push((text[..at].to_owned(), text[at + 1..].trim_matches(['[', ']']).to_owned()));
        }
        let capability = |text: &String| {
            let upper = text.to_ascii_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            let all = || sandbox::ALL_CAPABILITIES.into_iter().chain(["ALL"]);
            if all().any(|known| known == name) {
                return Ok(format!("CAP_{name}"));
            }
            let e: Result<String> = Err(anyhow::anyhow!("{text}: no such capability"));
            e.hint(|| match report::nearest(name, all()) {
                Some(near) => format!("CAP_{near}?"),
                None => "capabilities(7) has their names; ALL means all".to_owned(),
            })
        };
        let mut no_new_privileges = false;
        for text in &self.security_opt {
            match text.as_str() {
                "no-new-privileges" | "no-new-privileges=true" | "no-new-privileges:true" => {
                    no_new_privileges = true
                }
                "no-new-privileges=false" | "no-new-privileges:false" => {}
                other => bail!("--security-opt {other}: no-new-privileges is what there is"),
            }
        }
        if let Some(network) = self.network.as_deref() {
            ensure!(
                matches!(network, "host" | "none" | "default") || exec::network::is_private(network),
                "--network {network}: a build's commands have host, none or private"
            );
        }
        let mapped = if app.user.0 == 0 {
            None
        } else {
            Some(1 + app.subordinate.uids.iter().map(|r| u64::from(r.count)).sum::<u64>())
        };
        Ok(sandbox::Settings {
            runtime: runtime(app, self.runtime.as_deref())?,
            hosts,
            shm_size: self
                .shm_size
                .as_deref()
                .map(|text| {
                    human::parse_memory(text).with_context(|| format!("--shm-size {text}: this is no size"))
                })
                .transpose()?,
            ulimits,
            resources: Value::Object(resources),
            cgroup_parent: self.cgroup_parent.clone(),
            add: self.cap_add.iter().map(capability).collect::<Result<_>>().context("--cap-add")?,
            drop: self.cap_drop.iter().map(capability).collect::<Result<_>>().context("--cap-drop")?,
            no_new_privileges,
            network: self.network.clone().filter(|n| n != "default"),
            search: app.environment.search.clone(),
            interpreters: app.environment.interpreters.clone(),
            debug_shell: self.debug_shell,
            mapped,
        })
    }

    /// Times in layers, and the image's own.
    pub(super) fn times(&self, arguments: &BTreeMap<String, String>) -> Result<(Option<i64>, Option<i64>)> {
        let given = match (&self.timestamp, std::env::var("SOURCE_DATE_EPOCH")) {
            (Some(text), _) => Some(("--timestamp", text.clone())),
            (None, Ok(text)) if !text.is_empty() => Some(("SOURCE_DATE_EPOCH", text)),
            _ => {
                arguments.get("SOURCE_DATE_EPOCH").map(|text| ("--build-arg SOURCE_DATE_EPOCH", text.clone()))
            }
        };
        match given {
            None => Ok((Some(0), None)),
            Some((_, text)) if text == "keep" => Ok((None, None)),
            Some((from, text)) => {
                let seconds = text.parse::<i64>().ok().filter(|s| *s >= 0);
                let seconds =
                    seconds.with_context(|| format!("{from}={text}: seconds since 1970, or keep"))?;
                Ok((Some(seconds), Some(seconds)))
            }
        }
    }
}

/// The program that runs containers: as told, beside this one, or where programs are.
fn runtime(app: &App, told: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) =
        told.map(Path::to_owned).or_else(|| std::env::var_os("BERTH_RUNTIME").map(PathBuf::from))
    {
        return Ok(path);
    }
    let own = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("berth-runtime")));
    let all = own
        .into_iter()
        .chain(std::env::split_paths(&app.environment.search).map(|d| d.join("berth-runtime")));
    // Only a RUN needs it, and says so.
    Ok(all.into_iter().find(|p| p.exists()).unwrap_or_else(|| PathBuf::from("berth-runtime")))
}

/// `--label` and `--env`, which come last.
pub fn add_labels(config: &mut Config, args: &Build) -> Result<()> {
    let execution = config.config.get_or_insert_default();
    let labels = pairs("--label", &args.label)?;
    if !labels.is_empty() {
        execution.labels.get_or_insert_default().extend(labels);
    }
    let mut variables = Vec::new();
    for path in &args.env_file {
        let title = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("--env-file: read {title}"))?;
        for (n, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#'))
        {
            let name = line.split('=').next().unwrap_or_default();
            ensure!(
                !name.is_empty() && !name.contains(char::is_whitespace),
                "--env-file: {title}:{}: NAME=VALUE, or NAME",
                n + 1
            );
            variables.push(line.to_owned());
        }
    }
    variables.extend(args.env.iter().cloned());
    for text in &variables {
        let all = execution.env.get_or_insert_default();
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            // What is not there is not set.
            None => match std::env::var(text) {
                Ok(value) => (text.as_str(), value),
                Err(_) => continue,
            },
        };
        all.retain(|e| e.split('=').next() != Some(name));
        all.push(format!("{name}={value}"));
    }
    Ok(())
}
