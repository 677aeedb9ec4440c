//! Who are we to registries, and what have they got?

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use image::reference::DEFAULT_REGISTRY;
use image::registry::credentials::{self, Credentials};
use report::Explain;
use serde_json::json;

use super::{App, print};
use crate::format::{Format, rows};

#[derive(Debug, Args)]
pub struct Login {
    /// Docker's, if none is given
    registry: Option<String>,
    #[arg(long, short, value_name = "NAME")]
    username: Option<String>,
    /// Other users of this machine can see it: better --password-stdin
    #[arg(long, short, value_name = "PASSWORD")]
    password: Option<String>,
    /// Read the password from the standard input
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,
    /// Print who is logged in, and do nothing
    #[arg(long)]
    get_login: bool,
    /// Look at certificates, and speak no plain HTTP (=false: neither)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    tls_verify: Option<bool>,
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Logout {
    registry: Option<String>,
    /// Of all registries
    #[arg(long, short)]
    all: bool,
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Search {
    /// Words, or REGISTRY/WORDS
    term: String,
    #[arg(long, default_value = "25", value_name = "NUMBER")]
    limit: usize,
    /// Do not shorten descriptions
    #[arg(long)]
    no_trunc: bool,
    /// stars=NUMBER, is-official=BOOL
    #[arg(long, short, value_name = "FILTER")]
    filter: Vec<String>,
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print the tags of one repository
    #[arg(long)]
    list_tags: bool,
    #[command(flatten)]
    registry: super::Registry,
}

/// `https://host/path` and `index.docker.io` are what people paste.
fn registry(text: Option<&str>) -> Result<String> {
    let text = text.unwrap_or(DEFAULT_REGISTRY);
    let text = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let host = text.split('/').next().unwrap_or(text);
    ensure!(!host.is_empty(), "login: {text:?} is no registry");
    Ok(match host {
        "index.docker.io" | "registry-1.docker.io" | "docker.com" => DEFAULT_REGISTRY.to_owned(),
        host => host.to_owned(),
    })
}

/// A password, from a person.
pub fn ask_password() -> Result<String> {
    let stdin = std::io::stdin();
    let e: Result<()> = if stdin.is_terminal() {
        Ok(())
    } else {
        Err(anyhow::anyhow!("a password is missing, and there is nobody to ask"))
    };
    e.hint(|| "--password-stdin".to_owned())?;
    print("Password: ")?;
    let before = rustix::termios::tcgetattr(&stdin).context("ask for the password")?;
    let mut silent = before.clone();
    silent.local_modes -= rustix::termios::LocalModes::ECHO;
    rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Flush, &silent)
        .context("ask for the password")?;
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Flush, &before)
        .context("ask for the password")?;
    read.context("read the password")?;
    print("\n")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

pub fn login(app: &App, args: Login) -> Result<i32> {
    let registry = registry(args.registry.as_deref())?;
    let files = app.environment.credential_files(args.authfile.as_ref());
    if args.get_login {
        let found = credentials::find(&files, &registry, "")?;
        let user = found.as_ref().and_then(|c| c.user());
        let user = user.with_context(|| format!("not logged in to {registry}"))?;
        return print(&format!("{user}\n")).map(|()| 0);
    }
    let user = match args.username {
        Some(user) => user,
        None => {
            ensure!(!args.password_stdin, "login: --password-stdin needs --username");
            ensure!(
                std::io::stdin().is_terminal(),
                "login: --username is missing, and there is nobody to ask"
            );
            print("Username: ")?;
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).context("read the name")?;
            line.trim().to_owned()
        }
    };
    ensure!(!user.is_empty() && !user.contains(':'), "login: {user:?} is no name");
    let password = match (args.password, args.password_stdin) {
        (Some(password), _) => password,
        (None, true) => {
            let mut text = String::new();
            std::io::stdin().take(1 << 16).read_to_string(&mut text).context("read the password")?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        (None, false) => ask_password()?,
    };
    ensure!(!password.is_empty(), "login: the password is empty");
    let shown = Credentials::Password { user: user.clone(), password: password.clone() };
    let insecure = args.tls_verify == Some(false);
    let file = app.environment.login_file(args.authfile.as_ref())?;
    app.environment.settings(args.authfile.as_ref(), Some(shown), insecure).check_login(&registry)?;
    credentials::store(&file, &registry, &user, &password)?;
    if !app.quiet {
        print("Login Succeeded\n")?;
    }
    Ok(0)
}

pub fn logout(app: &App, args: Logout) -> Result<i32> {
    let file = app.environment.login_file(args.authfile.as_ref())?;
    if args.all {
        credentials::forget_all(&file)?;
        return print("Removed login credentials for all registries\n").map(|()| 0);
    }
    let registry = registry(args.registry.as_deref())?;
    credentials::forget(&file, &registry)?;
    print(&format!("Removed login credentials for {registry}\n")).map(|()| 0)
}

pub fn search(app: &App, args: Search) -> Result<i32> {
    let format = Format::parse(args.format.as_deref())?;
    let settings = args.registry.settings(&app.environment)?;
    if args.list_tags {
        let repository = settings.repository(&args.term.parse()?)?;
        let name = repository.reference().familiar_name();
        let data: Vec<_> = repository
            .tags()?
            .into_iter()
            .take(args.limit)
            .map(|tag| json!({"Name": name, "Tag": tag}))
            .collect();
        let columns = [("NAME", "Name"), ("TAG", "Tag")];
        return print(&rows(&format, &columns, &columns, &data)?).map(|()| 0);
    }
    let (registry, words) = match args.term.split_once('/') {
        Some((host, words)) if host.contains(['.', ':']) || host == "localhost" => (host, words),
        _ => (DEFAULT_REGISTRY, args.term.as_str()),
    };
    let mut found = settings.search(registry, words, args.limit)?;
    for filter in &args.filter {
        let stars = filter.strip_prefix("stars=").map(str::parse::<u64>);
        let official = filter.strip_prefix("is-official=").map(str::parse::<bool>);
        match (stars, official) {
            (Some(Ok(stars)), _) => found.retain(|f| f.star_count >= stars),
            (_, Some(Ok(official))) => found.retain(|f| f.is_official == official),
            _ => anyhow::bail!("filter {filter:?}: known are stars=NUMBER and is-official=BOOL"),
        }
    }
    let data: Vec<_> = found
        .iter()
        .map(|f| {
            let description: String = f
                .description
                .clone()
                .unwrap_or_default()
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect();
            let short = if !args.no_trunc && description.chars().count() > 45 {
                description.chars().take(44).chain(['…']).collect()
            } else {
                description
            };
            let name =
                if registry == DEFAULT_REGISTRY { f.name.clone() } else { format!("{registry}/{}", f.name) };
            json!({"Name": name, "Description": short, "StarCount": f.star_count,
                "IsOfficial": if f.is_official { "[OK]" } else { "" }, "IsAutomated": f.is_automated})
        })
        .collect();
    let columns = [
        ("NAME", "Name"),
        ("DESCRIPTION", "Description"),
        ("STARS", "StarCount"),
        ("OFFICIAL", "IsOfficial"),
    ];
    print(&rows(&format, &columns, &columns, &data)?).map(|()| 0)
}
