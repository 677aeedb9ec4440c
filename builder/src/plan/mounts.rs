//! What does a `RUN` find mounted beside its root file system?

use crate::dockerfile::ast;
use crate::dockerfile::mount::KINDS;
use crate::dockerfile::source::Problem;

use super::state::join;

/// For one command; targets are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mount {
    /// Of the build context, a stage or an image. What is written is lost.
    Bind {
        target: String,
        from: Option<String>,
        source: String,
        writable: bool,
    },
    /// Stays from build to build.
    Cache {
        target: String,
        id: String,
        from: Option<String>,
        source: String,
        sharing: Sharing,
        owner: Owner,
        writable: bool,
    },
    Tmpfs {
        target: String,
        size: Option<u64>,
    },
    /// A file, and a variable, or one of them.
    Secret {
        id: String,
        target: Option<String>,
        variable: Option<String>,
        owner: Owner,
        required: bool,
    },
    /// The socket of an agent.
    Ssh {
        id: String,
        target: String,
        owner: Owner,
        required: bool,
    },
}

/// What is mounted belongs to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Who may use a cache while another does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    Shared,
    /// Another has one of its own.
    Private,
    /// Another waits.
    Locked,
}

type Options<'a> = Vec<(&'a str, Option<String>)>;

/// The `n`th mount of a command that runs in `cwd`.
pub fn read(
    mount: &ast::Mount,
    n: usize,
    cwd: &str,
    expand: &dyn Fn(&str) -> Result<String, Problem>,
) -> Result<Mount, Problem> {
    let problem = |message: String| Problem::new(mount.span.clone(), format!("--mount: {message}"));
    let mut options: Options<'_> = Vec::new();
    for (name, value) in &mount.options {
        options.push((name.as_str(), value.as_deref().map(expand).transpose()?));
    }
    let value =
        |name: &str| options.iter().find(|(known, _)| *known == name).and_then(|(_, value)| value.clone());
    let value = |name: &str| value(name).filter(|v| !v.is_empty());
    let flag = |name: &str| match options.iter().find(|(known, _)| *known == name) {
        None => Ok(None),
        Some((_, None)) => Ok(Some(true)),
        Some((_, Some(text))) => match text.as_str() {
            "true" | "1" => Ok(Some(true)),
            "false" | "0" => Ok(Some(false)),
            other => Err(problem(format!("{name} is true or false, not {other:?}"))),
        },
    };
    let number = |name: &str, base: u32| match value(name) {
        None => Ok(None),
        Some(text) => {
            let parsed = u32::from_str_radix(&text, base);
            let what = if base == 8 { "an octal number" } else { "a number" };
            parsed.map(Some).map_err(|_| problem(format!("{name} is {what}, not {text:?}")))
        }
    };
    let owner = |mode: u32| -> Result<Owner, Problem> {
        Ok(Owner {
            mode: number("mode", 8)?.unwrap_or(mode),
            uid: number("uid", 10)?.unwrap_or(0),
            gid: number("gid", 10)?.unwrap_or(0),
        })
    };
    let kind = value("type").unwrap_or_else(|| "bind".to_owned());
    let Some((_, known)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        return Err(problem(format!("unknown type {kind:?}")));
    };
    if let Some((name, _)) = options.iter().find(|(name, _)| *name != "type" && !known.contains(name)) {
        return Err(problem(format!("type {kind} has no option {name:?}")));
    }
    let absolute = |path: String| join(cwd, &path);
    let target = || match value("target") {
        Some(target) => Ok(absolute(target)),
        None => Err(problem(format!("type {kind} needs a target")).hint("target=/path")),
    };
    let writable = |usual: bool| -> Result<bool, Problem> {
        match (flag("readwrite")?, flag("readonly")?) {
            (Some(a), Some(b)) if a == b => {
                Err(problem("readonly and readwrite contradict each other".to_owned()))
            }
            (Some(writable), _) => Ok(writable),
            (None, Some(readonly)) => Ok(!readonly),
            (None, None) => Ok(usual),
        }
    };
    let source = || value("source").unwrap_or_else(|| "/".to_owned());
    Ok(match kind.as_str() {
        "bind" => Mount::Bind {
            target: target()?,
            from: value("from"),
            source: source(),
            writable: writable(false)?,
        },
        "cache" => {
            let target = target()?;
            let sharing = match value("sharing").as_deref() {
                None | Some("shared") => Sharing::Shared,
                Some("private") => Sharing::Private,
                Some("locked") => Sharing::Locked,
                Some(other) => {
                    return Err(problem(format!("sharing is shared, private or locked, not {other:?}")));
                }
            };
            let id = value("id").unwrap_or_else(|| target.clone());
            let (owner, writable) = (owner(0o755)?, writable(true)?);
            Mount::Cache { target, id, from: value("from"), source: source(), sharing, owner, writable }
        }
        "tmpfs" => {
            let size = match value("size") {
                None => None,
                Some(text) => match crate::format::human::parse_memory(&text) {
                    Some(size) => Some(size),
                    None => {
                        return Err(problem(format!("size is a number of bytes, as in 64m, not {text:?}")));
                    }
                },
            };
            Mount::Tmpfs { target: target()?, size }
        }
        "secret" => {
            let (target, variable) = (value("target").map(absolute), value("env"));
            let named = || target.as_deref().and_then(|t| t.rsplit('/').next()).map(str::to_owned);
            let Some(id) = value("id").or_else(named).or_else(|| variable.clone()) else {
                return Err(problem("type secret needs an id".to_owned()).hint("id=NAME"));
            };
            let target = match (target, &variable) {
                (None, None) => Some(format!("/run/secrets/{id}")),
                (target, _) => target,
            };
            Mount::Secret {
                id,
                target,
                variable,
                owner: owner(0o400)?,
                required: flag("required")?.unwrap_or(false),
            }
        }
        _ => Mount::Ssh {
            id: value("id").unwrap_or_else(|| "default".to_owned()),
            target: value("target").map_or_else(|| format!("/run/buildkit/ssh_agent.{n}"), absolute),
            owner: owner(0o600)?,
            required: flag("required")?.unwrap_or(false),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::ast::Word;
    use crate::dockerfile::mount::parse;

    fn mount(text: &str) -> Result<Mount, Problem> {
        let parsed = parse(Word { text: text.to_owned(), span: 0..text.len() })?;
        read(&parsed, 2, "/srv/dir", &|text| Ok(text.replace("$V", "value")))
    }

    #[test]
    fn options_have_defaults() {
        let owner = |mode| Owner { mode, uid: 0, gid: 0 };
        let text = str::to_owned;
        for (from, expected) in [
            (
                "target=x",
                Mount::Bind { target: text("/srv/dir/x"), from: None, source: text("/"), writable: false },
            ),
            (
                "type=bind,from=a,source=$V,target=/t/$V/../u,rw",
                Mount::Bind {
                    target: text("/t/u"),
                    from: Some(text("a")),
                    source: text("value"),
                    writable: true,
                },
            ),
            (
                "type=cache,target=/c",
                Mount::Cache {
                    target: text("/c"),
                    id: text("/c"),
                    from: None,
                    source: text("/"),
                    sharing: Sharing::Shared,
                    owner: owner(0o755),
                    writable: true,
                },
            ),
            (
                "type=cache,id=i,target=/c,sharing=locked,mode=700,uid=1,gid=2,ro",
                Mount::Cache {
                    target: text("/c"),
                    id: text("i"),
                    from: None,
                    source: text("/"),
                    sharing: Sharing::Locked,
                    owner: Owner { mode: 0o700, uid: 1, gid: 2 },
                    writable: false,
                },
            ),
            ("type=tmpfs,target=/t,size=64m", Mount::Tmpfs { target: text("/t"), size: Some(64 << 20) }),
            (
                "type=secret,id=s",
                Mount::Secret {
                    id: text("s"),
                    target: Some(text("/run/secrets/s")),
                    variable: None,
                    owner: owner(0o400),
                    required: false,
                },
            ),
            (
                "type=secret,target=/a/b,required=true",
                Mount::Secret {
                    id: text("b"),
                    target: Some(text("/a/b")),
                    variable: None,
                    owner: owner(0o400),
                    required: true,
                },
            ),
            (
                "type=secret,env=TOKEN,id=t",
                Mount::Secret {
                    id: text("t"),
                    target: None,
                    variable: Some(text("TOKEN")),
                    owner: owner(0o400),
                    required: false,
                },
            ),
            (
                "type=ssh",
                Mount::Ssh {
                    id: text("default"),
                    target: text("/run/buildkit/ssh_agent.2"),
                    owner: owner(0o600),
                    required: false,
                },
            ),
        ] {
            assert_eq!(mount(from), Ok(expected), "{from}");
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, message) in [
            ("type=bind,source=a", "type bind needs a target"),
            ("type=secret", "type secret needs an id"),
            ("type=cache,target=/c,sharing=mine", "sharing is shared, private or locked"),
            ("type=cache,target=/c,mode=9", "mode is an octal number"),
            ("type=cache,target=/c,uid=x", "uid is a number"),
            ("type=tmpfs,target=/c,size=much", "size is a number of bytes"),
            ("target=/c,ro,rw", "contradict"),
            ("target=/c,ro=maybe", "readonly is true or false"),
            ("type=$V,target=/c", "unknown type \"value\""),
        ] {
            let problem = mount(text).unwrap_err();
            assert!(problem.message.contains(message), "{text}: {}", problem.message);
        }
    }
}
