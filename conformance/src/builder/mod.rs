//! Small builds that assert their own outcome, one for each rule of the Dockerfile reference, for any builder. They stand in text
//! files, `conformance/builder/*.txt`:
//!
//! ```text
//! @case NAME
//! @rule What the reference says, in our words
//! @file PATH [MODE]         (a space in PATH is %20) a file of the context, with the lines that follow; @raw: without the last line's end
//! @dir PATH [MODE], @link PATH TARGET, @hard PATH OTHER, @time PATH SECONDS, @tar PATH HOW: names of the context, packed
//! @dockerfile [PATH]        the lines that follow; {base} is an image with busybox, {out} a folder outside
//! @flags FLAG...            more arguments of `build`; @env NAME=VALUE of its environment; @stdin: the lines that follow
//! @context WHAT             in place of the folder that was made
//! @fails [TEXT]             it must fail, and say this
//! @says TEXT                it must say this
//! @config KEY JSON          what the image's config must have there; @not KEY: it must not have it
//! @then SHELL               must succeed afterwards; {tag}, {out}, {context}
//! ```

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::report::{Record, Verdict};

const TEXTS: &[(&str, &str)] = &[
    ("parser", include_str!("../../builder/parser.txt")),
    ("stages", include_str!("../../builder/stages.txt")),
    ("variables", include_str!("../../builder/variables.txt")),
    ("run", include_str!("../../builder/run.txt")),
    ("copy", include_str!("../../builder/copy.txt")),
    ("add", include_str!("../../builder/add.txt")),
    ("config", include_str!("../../builder/config.txt")),
    ("ignore", include_str!("../../builder/ignore.txt")),
    ("cli", include_str!("../../builder/cli.txt")),
];

/// How a builder is called; shell, with {flags}, {tag} and {context}.
pub struct Adapter {
    pub name: String,
    build: String,
    /// Prints the image's config as JSON.
    config: String,
    remove: String,
}

impl Adapter {
    /// `berth=PATH`, `buildah`, `podman`, `docker`, or a path of ours.
    pub fn parse(text: &str, store: &Path) -> Result<Adapter> {
        let (name, program) = match text.split_once('=') {
            Some((name, program)) => (name, program.to_owned()),
            None => (text.rsplit('/').next().unwrap_or(text), text.to_owned()),
        };
        let adapter = |build: &str, config: &str, remove: &str| Adapter {
            name: text.to_owned(),
            build: build.replace("{bin}", &program).replace("{store}", &store.display().to_string()),
            config: config.replace("{bin}", &program).replace("{store}", &store.display().to_string()),
            remove: remove.replace("{bin}", &program).replace("{store}", &store.display().to_string()),
        };
        Ok(match name {
            "berth" | "berth-builder" => adapter(
                "{bin} --root {store} build --progress plain {flags} -t {tag} {context}",
                "{bin} --root {store} inspect --config {tag}",
                "{bin} --root {store} rmi -f {tag}",
            ),
            "buildah" => adapter(
                "{bin} build --layers --network host {flags} -t {tag} {context}",
                "{bin} inspect --type image --format '{{json .OCIv1}}' {tag}",
                "{bin} rmi -f {tag}",
            ),
            "podman" => adapter(
                "{bin} build --network host {flags} -t {tag} {context}",
                "{bin} image inspect --format '{{json .Config}}' {tag}",
                "{bin} rmi -f {tag}",
            ),
            "docker" => adapter(
                "DOCKER_BUILDKIT=1 {bin} build --progress plain {flags} -t {tag} {context}",
                "{bin} image inspect --format '{{json .Config}}' {tag}",
                "{bin} rmi -f {tag}",
            ),
            other => bail!("builder {other:?}: berth, buildah, podman or docker, as NAME or NAME=PROGRAM"),
        })
    }
}

/// One build.
#[derive(Default, Clone)]
pub struct Case {
    pub name: String,
    pub part: String,
    pub rule: String,
    context: Vec<Entry>,
    flags: Vec<String>,
    env: Vec<(String, String)>,
    stdin: Option<String>,
    /// In place of the folder that was made.
    at: Option<String>,
    fails: Option<String>,
    says: Vec<String>,
    config: Vec<(String, Option<Value>)>,
    then: Vec<String>,
}

#[derive(Clone)]
enum Entry {
    File { path: String, mode: u32, content: String },
    Dir { path: String, mode: u32 },
    Link { path: String, target: String },
    Hard { path: String, other: String },
    Time { path: String, seconds: u64 },
    Tar { path: String, how: String, names: Vec<String> },
}

/// All cases whose name or rule has `filter`.
pub fn cases(filter: Option<&str>) -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for (part, text) in TEXTS {
        all.extend(parse(part, text).with_context(|| format!("conformance/builder/{part}.txt"))?);
    }
    if let Some(filter) = filter {
        all.retain(|c: &Case| c.name.contains(filter) || c.rule.contains(filter) || c.part == filter);
    }
    Ok(all)
}

fn parse(part: &str, text: &str) -> Result<Vec<Case>> {
    /// Where lines go that begin with no @.
    enum Into {
        Nothing,
        Entry,
        Raw,
        Stdin,
    }
    let mut cases: Vec<Case> = Vec::new();
    let mut into = Into::Nothing;
    for (n, line) in text.lines().enumerate() {
        let at = || format!("line {}: {line}", n + 1);
        let Some(command) = line.strip_prefix('@') else {
            let Some(case) = cases.last_mut() else { continue };
            match (&into, case.context.last_mut()) {
                (Into::Entry, Some(Entry::File { content, .. })) => content.push_str(&format!("{line}\n")),
                (Into::Raw, Some(Entry::File { content, .. })) => {
                    if !content.is_empty() {
                        content.push('\n');
                    }
                    content.push_str(line);
                }
                (Into::Stdin, _) => case.stdin.get_or_insert_default().push_str(&format!("{line}\n")),
                _ => ensure!(line.trim().is_empty(), at()),
            }
            continue;
        };
        let (word, rest) = command.split_once(' ').unwrap_or((command, ""));
        let rest = rest.trim();
        if word == "case" {
            ensure!(!rest.is_empty() && !cases.iter().any(|c| c.name == rest), at());
            cases.push(Case { name: rest.to_owned(), part: part.to_owned(), ..Case::default() });
            into = Into::Nothing;
            continue;
        }
        let case = cases.last_mut().with_context(at)?;
        let mut words = rest.split_whitespace();
        let first = words.next().unwrap_or_default().replace("%20", " ");
        let second = words.next().map(str::to_owned);
        let mode =
            |usual: u32| second.as_deref().map_or(Ok(usual), |m| u32::from_str_radix(m, 8)).with_context(at);
        into = Into::Nothing;
        match word {
            "rule" => case.rule = rest.to_owned(),
            "file" | "raw" => {
                case.context.push(Entry::File {
                    path: first.clone(),
                    mode: mode(0o644)?,
                    content: String::new(),
                });
                into = if word == "raw" { Into::Raw } else { Into::Entry };
            }
            "dockerfile" => {
                let path = if first.is_empty() { "Dockerfile".to_owned() } else { first };
                case.context.push(Entry::File { path, mode: 0o644, content: String::new() });
                into = Into::Entry;
            }
            "dir" => case.context.push(Entry::Dir { path: first.clone(), mode: mode(0o755)? }),
            "link" => case.context.push(Entry::Link { path: first, target: second.with_context(at)? }),
            "hard" => case.context.push(Entry::Hard { path: first, other: second.with_context(at)? }),
            "time" => {
                let seconds = second.and_then(|s| s.parse().ok()).with_context(at)?;
                case.context.push(Entry::Time { path: first, seconds });
            }
            "tar" => {
                let names = words.map(str::to_owned).collect();
                case.context.push(Entry::Tar { path: first, how: second.with_context(at)?, names });
            }
            "flags" => case.flags.push(rest.to_owned()),
            "env" => {
                let (name, value) = rest.split_once('=').with_context(at)?;
                case.env.push((name.to_owned(), value.to_owned()));
            }
            "stdin" => {
                case.stdin = Some(String::new());
                into = Into::Stdin;
            }
            "context" => case.at = Some(rest.to_owned()),
            "fails" => case.fails = Some(rest.to_owned()),
            "says" => case.says.push(rest.to_owned()),
            "config" => {
                let (key, value) = rest.split_once(' ').with_context(at)?;
                case.config.push((key.to_owned(), Some(serde_json::from_str(value).with_context(at)?)));
            }
            "not" => case.config.push((rest.to_owned(), None)),
            "then" => case.then.push(rest.to_owned()),
            _ => bail!(at()),
        }
    }
    Ok(cases)
}

/// A program that a case needs on the host.
#[derive(Debug)]
struct Missing(&'static str);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no {} here", self.0)
    }
}

impl std::error::Error for Missing {}

/// The image that cases begin with, by its name.
const BASE: &str = "localhost/conformance-base";

/// Run them; records come in the order in which cases end.
pub fn run(
    adapter: &Adapter,
    cases: &[Case],
    jobs: usize,
    work: &Path,
    tell: &(dyn Fn(&Record) + Sync),
) -> Result<Vec<Record>> {
    base(adapter, work)?;
    let next = Mutex::new(0);
    let records = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let n = {
                        let mut next = next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        *next += 1;
                        *next - 1
                    };
                    let Some(case) = cases.get(n) else { return };
                    let began = Instant::now();
                    let done = one(adapter, case, n, work);
                    let record = Record {
                        number: n,
                        name: case.name.clone(),
                        clause: case.part.clone(),
                        about: case.rule.clone(),
                        kind: "builder".to_owned(),
                        verdict: match &done {
                            Ok(()) => Verdict::Pass,
                            Err(e) if e.downcast_ref::<Missing>().is_some() => Verdict::Skip,
                            Err(_) => Verdict::Fail,
                        },
                        reason: done.err().map(|e| format!("{e:#}")).unwrap_or_default(),
                        millis: began.elapsed().as_millis() as u64,
                    };
                    tell(&record);
                    records.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(record);
                }
            });
        }
    });
    let mut records = records.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    records.sort_by_key(|r| r.number);
    shell(&adapter.remove.replace("{tag}", BASE), work, &[], None)?;
    Ok(records)
}

/// Make the image that cases begin with, with the builder itself.
fn base(adapter: &Adapter, work: &Path) -> Result<()> {
    let folder = work.join("base");
    let script = format!(
        "set -e; mkdir -p {0}/root/bin {0}/root/etc {0}/root/tmp {0}/root/root; cd {0}
cp $(command -v busybox) root/bin/busybox; chmod 1777 root/tmp; chmod 700 root/root
for a in $(root/bin/busybox --list); do [ $a = busybox ] || ln -sf busybox root/bin/$a; done
printf 'root:x:0:0:root:/root:/bin/sh\\nuser:x:1000:1000:user:/home/user:/bin/sh\\nann:x:7:8:Ann:/:/bin/sh\\n' >root/etc/passwd
printf 'root:x:0:\\nuser:x:1000:\\nextra:x:2000:user\\n' >root/etc/group
tar -C root --owner 0 --group 0 --numeric-owner -c . >root.tar; rm -r root
printf 'FROM scratch\\nADD root.tar /\\nENV FROM_BASE=1\\nLABEL base=yes\\nCMD [\"base-cmd\"]\\n' >Dockerfile",
        folder.display()
    );
    let (ok, said) = shell(&script, work, &[], None)?;
    ensure!(ok, "make a base: {said}");
    let build = adapter
        .build
        .replace("{flags}", "")
        .replace("{tag}", BASE)
        .replace("{context}", &folder.display().to_string());
    let (ok, said) = shell(&build, work, &[], None)?;
    ensure!(ok, "build the base: {said}");
    Ok(())
}

fn one(adapter: &Adapter, case: &Case, n: usize, work: &Path) -> Result<()> {
    let folder = work.join(format!("case-{n}"));
    let (context, out) = (folder.join("context"), folder.join("out"));
    fs::create_dir_all(&context)?;
    fs::create_dir_all(&out)?;
    let tag = format!("localhost/conformance-{n}");
    let place = |text: &str| {
        text.replace("{base}", BASE)
            .replace("{out}", &out.display().to_string())
            .replace("{context}", &context.display().to_string())
            .replace("{tag}", &tag)
    };
    let done = (|| -> Result<()> {
        for entry in &case.context {
            entry.make(&context, &place)?;
        }
        let given = place(case.at.as_deref().unwrap_or("{context}"));
        let build = adapter
            .build
            .replace("{flags}", &place(&case.flags.join(" ")))
            .replace("{tag}", &tag)
            .replace("{context}", &given);
        let (ok, said) = shell(&build, &folder, &case.env, case.stdin.as_deref().map(&place).as_deref())?;
        match &case.fails {
            Some(text) => {
                ensure!(!ok, "it should fail: {}", case.rule);
                let told = text.is_empty() || said.to_lowercase().contains(&text.to_lowercase());
                // What is said is ours alone; that it fails, everybody's.
                ensure!(told || !adapter.name.contains("berth"), "it should say {text:?}:\n{said}");
                return Ok(());
            }
            None => ensure!(ok, "it should build:\n{said}"),
        }
        for text in &case.says {
            ensure!(said.contains(&place(text)), "it should say {text:?}:\n{said}");
        }
        if !case.config.is_empty() {
            let (ok, text) = shell(&adapter.config.replace("{tag}", &tag), &folder, &[], None)?;
            ensure!(ok, "read the config: {text}");
            let whole: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
            let config = whole.get("config").unwrap_or(&whole);
            for (key, value) in &case.config {
                let found = key.split('.').try_fold(config, |at, key| at.get(key));
                let found = found.filter(|f| !f.is_null());
                match value {
                    None => ensure!(found.is_none(), "{key} is {}", found.unwrap_or(&Value::Null)),
                    Some(value) => ensure!(
                        found == Some(value),
                        "{key} is {}, not {value}",
                        found.unwrap_or(&Value::Null)
                    ),
                }
            }
        }
        for text in &case.then {
            let (ok, said) = shell(&place(text), &folder, &[], None)?;
            ensure!(ok, "afterwards: {text}\n{said}");
        }
        Ok(())
    })();
    shell(&adapter.remove.replace("{tag}", &tag), &folder, &[], None)?;
    fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    done
}

impl Entry {
    fn make(&self, context: &Path, place: &dyn Fn(&str) -> String) -> Result<()> {
        let at = |path: &str| -> Result<PathBuf> {
            let path = context.join(path);
            if let Some(above) = path.parent() {
                fs::create_dir_all(above)?;
            }
            Ok(path)
        };
        match self {
            Entry::File { path, mode, content } => {
                let path = at(path)?;
                // What no line of a text can show.
                let content = place(content).replace("\\r\n", "\r\n").replace("\\u{feff}", "\u{feff}");
                fs::write(&path, content)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode))?;
            }
            Entry::Dir { path, mode } => {
                let path = at(path)?;
                fs::create_dir_all(&path)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode))?;
            }
            Entry::Link { path, target } => symlink(target, at(path)?)?,
            Entry::Hard { path, other } => fs::hard_link(context.join(other), at(path)?)?,
            Entry::Time { path, seconds } => {
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(*seconds);
                fs::File::open(context.join(path))?.set_modified(time)?;
            }
            Entry::Tar { path, how, names } => {
                let (flag, packer) = match how.as_str() {
                    "plain" => ("", "true"),
                    "gz" => ("-z", "gzip"),
                    "bz2" => ("-j", "bzip2"),
                    "xz" => ("-J", "xz"),
                    "zstd" => ("--zstd", "zstd"),
                    other => bail!("tar {other}"),
                };
                let (there, _) = shell(&format!("{packer} --help"), context, &[], None)?;
                if !there {
                    return Err(Missing(packer).into());
                }
                let script = format!(
                    "tar --owner 5 --group 6 --numeric-owner {flag} -cf {path} {0} && rm -r {0}",
                    names.join(" ")
                );
                let (ok, said) = shell(&script, context, &[], None)?;
                ensure!(ok, "{script}: {said}");
            }
        }
        Ok(())
    }
}

/// Run a shell's command; whether it succeeded, and what it said.
fn shell(
    script: &str,
    folder: &Path,
    env: &[(String, String)],
    stdin: Option<&str>,
) -> Result<(bool, String)> {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec 2>&1; {script}")]).current_dir(folder);
    command.envs(env.iter().map(|(n, v)| (n, v))).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().context("start sh")?;
    if let (Some(text), Some(mut to)) = (stdin, child.stdin.take()) {
        // Who does not read it says why.
        std::io::Write::write_all(&mut to, text.as_bytes()).unwrap_or_default();
    }
    let output = child.wait_with_output().context("wait for sh")?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
}
