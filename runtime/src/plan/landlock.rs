//! Which Landlock rules does the annotation `dev.berth.landlock` ask for? (docs/landlock.md)

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use report::{Explain, Kind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The annotation's name.
pub const ANNOTATION: &str = "dev.berth.landlock";

/// The rules of one container; applied last, in `run` and in `exec`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landlock {
    /// What is allowed on files; `None`: files are not restricted.
    pub fs: Option<Vec<FsRule>>,
    /// TCP ports that may be bound, and connected to; `None`: not restricted.
    pub bind: Option<Vec<u16>>,
    pub connect: Option<Vec<u16>>,
    /// `LANDLOCK_SCOPE_*` bits.
    pub scope: u64,
    /// Carry on with what the kernel has.
    pub best_effort: bool,
    /// The oldest ABI that has all of it, and what needs it.
    pub needs: (u32, String),
}

/// Paths (of the container) and what may be done to them and below them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsRule {
    /// `LANDLOCK_ACCESS_FS_*` bits.
    pub access: u64,
    pub paths: Vec<PathBuf>,
}

/// The kernel's names (linux/landlock.h) in the order of their bits, with the ABI that brought each.
pub const FS_RIGHTS: [(&str, u32); 17] = [
    ("execute", 1),
    ("write_file", 1),
    ("read_file", 1),
    ("read_dir", 1),
    ("remove_dir", 1),
    ("remove_file", 1),
    ("make_char", 1),
    ("make_dir", 1),
    ("make_reg", 1),
    ("make_sock", 1),
    ("make_fifo", 1),
    ("make_block", 1),
    ("make_sym", 1),
    ("refer", 2),
    ("truncate", 3),
    ("ioctl_dev", 5),
    ("resolve_unix", 9),
];
pub const SCOPES: [&str; 2] = ["abstract_unix_socket", "signal"];

/// With `fs`, everything is denied that is not listed: a kernel where a file could still be truncated does not do.
const FS_ABI: u32 = 3;
const NET_ABI: u32 = 4;
const SCOPE_ABI: u32 = 6;

const READ: u64 = 1 << 2 | 1 << 3;
const EXECUTE: u64 = 1;
const ALL: u64 = (1 << FS_RIGHTS.len()) - 1;
/// All but execution and device nodes.
const WRITE: u64 = ALL & !(EXECUTE | 1 << 6 | 1 << 11);

/// Short words for sets of rights.
const WORDS: [(&str, u64); 4] = [("ro", READ), ("rw", WRITE), ("exec", READ | EXECUTE), ("all", ALL)];

/// Parse the annotation's JSON; anything unknown in it is an error.
pub fn plan(annotation: &str) -> Result<Landlock> {
    let value: Value = serde_json::from_str(annotation)
        .map_err(|e| anyhow!("annotations[{ANNOTATION:?}]: not JSON: {e}"))
        .kind(Kind::BadInput)?;
    let top = object(&value, "", &["fs", "net", "scope", "bestEffort"])?;
    let mut out = Landlock {
        fs: None,
        bind: None,
        connect: None,
        scope: 0,
        best_effort: match top.get("bestEffort") {
            None => false,
            Some(Value::Bool(yes)) => *yes,
            Some(other) => return Err(found(".bestEffort", other, "true or false")),
        },
        needs: (0, String::new()),
    };
    if let Some(fs) = top.get("fs") {
        out.need(FS_ABI, "fs");
        let mut rules = Vec::new();
        for (i, rule) in array(fs, ".fs")?.iter().enumerate() {
            rules.push(out.fs_rule(rule, &format!(".fs[{i}]"))?);
        }
        out.fs = Some(rules);
    }
    if let Some(net) = top.get("net") {
        out.need(NET_ABI, "net");
        let net = object(net, ".net", &["bind", "connect"])?;
        out.bind = net.get("bind").map(|v| ports(v, ".net.bind")).transpose()?;
        out.connect = net.get("connect").map(|v| ports(v, ".net.connect")).transpose()?;
    }
    for (i, word) in top.get("scope").map_or(Ok(&[][..]), |v| array(v, ".scope"))?.iter().enumerate() {
        let path = format!(".scope[{i}]");
        let word = text(word, &path)?;
        let Some(bit) = SCOPES.iter().position(|s| *s == word) else {
            return Err(unknown(&path, word, &SCOPES));
        };
        out.need(SCOPE_ABI, word);
        out.scope |= 1 << bit;
    }
    if out.fs.is_none() && out.bind.is_none() && out.connect.is_none() && out.scope == 0 {
        return Err(at("", "restricts nothing (allowed: fs, net with bind or connect, scope)"));
    }
    Ok(out)
}

impl Landlock {
    /// Whether a kernel with this ABI (0: no Landlock) can do it all. With `bestEffort` any can.
    pub fn check(&self, abi: u32) -> Result<()> {
        let (needed, what) = &self.needs;
        if self.best_effort || abi >= *needed {
            return Ok(());
        }
        let has = match abi {
            0 => "has no Landlock, or it is not among the enabled security modules".to_owned(),
            abi => format!("has ABI {abi}"),
        };
        Err(anyhow!("annotations[{ANNOTATION:?}]: {what} needs Landlock ABI {needed}, this kernel {has}"))
            .kind(Kind::Unsupported)
            .hint(|| "with \"bestEffort\": true what the kernel lacks is left out".to_owned())
    }

    fn need(&mut self, abi: u32, what: &str) {
        if abi > self.needs.0 {
            self.needs = (abi, what.to_owned());
        }
    }

    fn fs_rule(&mut self, rule: &Value, path: &str) -> Result<FsRule> {
        let rule = object(rule, path, &["access", "paths"])?;
        let (Some(access), Some(paths)) = (rule.get("access"), rule.get("paths")) else {
            return Err(at(path, "needs access and paths"));
        };
        let here = format!("{path}.access");
        let mut bits = 0;
        match access {
            // One word, or several in the form "rw|exec".
            Value::String(words) => {
                for word in words.split('|') {
                    bits |= self.right(word, &here)?;
                }
            }
            Value::Array(words) => {
                for (i, word) in words.iter().enumerate() {
                    let here = format!("{here}[{i}]");
                    bits |= self.right(text(word, &here)?, &here)?;
                }
            }
            other => return Err(found(&here, other, "a word or a list of words")),
        }
        if bits == 0 {
            return Err(at(&here, "allows nothing"));
        }
        let mut list = Vec::new();
        for (i, one) in array(paths, &format!("{path}.paths"))?.iter().enumerate() {
            let here = format!("{path}.paths[{i}]");
            let text = text(one, &here)?;
            if !text.starts_with('/') || text.contains('\0') {
                return Err(at(&here, format!("{text:?} is not an absolute path of the container")));
            }
            list.push(PathBuf::from(text));
        }
        if list.is_empty() {
            return Err(at(&format!("{path}.paths"), "names no path"));
        }
        Ok(FsRule { access: bits, paths: list })
    }

    fn right(&mut self, word: &str, path: &str) -> Result<u64> {
        if let Some((_, bits)) = WORDS.iter().find(|(w, _)| *w == word) {
            return Ok(*bits);
        }
        let Some(bit) = FS_RIGHTS.iter().position(|(name, _)| *name == word) else {
            let known: Vec<&str> = WORDS.iter().map(|w| w.0).chain(FS_RIGHTS.iter().map(|r| r.0)).collect();
            return Err(unknown(path, word, &known));
        };
        // What the short words contain is taken as far as the kernel has it; what is named must be there.
        self.need(FS_RIGHTS[bit].1, word);
        Ok(1 << bit)
    }
}

fn at(path: &str, message: impl std::fmt::Display) -> anyhow::Error {
    report::at(format_args!("annotations[{ANNOTATION:?}]{path}"), message)
}

fn found(path: &str, value: &Value, expected: &str) -> anyhow::Error {
    at(path, format!("found {value}, expected {expected}"))
}

fn unknown(path: &str, word: &str, known: &[&str]) -> anyhow::Error {
    at(path, format!("unknown word {word:?} (allowed: {})", known.join(", ")))
}

fn object<'a>(value: &'a Value, path: &str, keys: &[&str]) -> Result<&'a Map<String, Value>> {
    let Value::Object(map) = value else { return Err(found(path, value, "an object")) };
    match map.keys().find(|k| !keys.contains(&k.as_str())) {
        Some(key) => Err(at(&format!("{path}.{key}"), format!("unknown key (allowed: {})", keys.join(", ")))),
        None => Ok(map),
    }
}

fn array<'a>(value: &'a Value, path: &str) -> Result<&'a [Value]> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| found(path, value, "a list"))
}

fn text<'a>(value: &'a Value, path: &str) -> Result<&'a str> {
    value.as_str().ok_or_else(|| found(path, value, "a text"))
}

fn ports(value: &Value, path: &str) -> Result<Vec<u16>> {
    let port = |(i, v): (usize, &Value)| {
        let port = v.as_u64().and_then(|n| u16::try_from(n).ok());
        port.ok_or_else(|| found(&format!("{path}[{i}]"), v, "a port from 0 to 65535"))
    };
    array(value, path)?.iter().enumerate().map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_rights() {
        let p = plan(
            r#"{"fs": [{"access": "exec", "paths": ["/usr", "/bin"]}, {"access": "rw|make_char", "paths": ["/dev"]},
                {"access": ["ro", "truncate"], "paths": ["/etc"]}],
                "net": {"bind": [8080, 0], "connect": []}, "scope": ["signal"], "bestEffort": true}"#,
        )
        .unwrap();
        let rules = p.fs.unwrap();
        assert_eq!(rules[0], FsRule { access: 0b1101, paths: vec!["/usr".into(), "/bin".into()] });
        assert_eq!(rules[1].access, ALL & !(1 | 1 << 11));
        assert_eq!(rules[2].access, 0b1100 | 1 << 14);
        assert_eq!((p.bind, p.connect, p.scope, p.best_effort), (Some(vec![8080, 0]), Some(vec![]), 2, true));
    }

    #[test]
    fn what_the_kernel_must_have() {
        for (text, needed) in [
            (r#"{"fs": []}"#, 3),
            (r#"{"fs": [{"access": "all", "paths": ["/"]}]}"#, 3),
            (r#"{"fs": [{"access": "ioctl_dev", "paths": ["/"]}]}"#, 5),
            (r#"{"net": {"bind": []}}"#, 4),
            (r#"{"scope": ["signal"], "net": {"bind": []}}"#, 6),
        ] {
            let p = plan(text).unwrap();
            assert_eq!(p.needs.0, needed, "{text}");
            assert!(p.check(needed).is_ok() && p.check(needed - 1).is_err(), "{text}");
            assert!(Landlock { best_effort: true, ..p }.check(0).is_ok());
        }
        assert_eq!(
            report::line(&plan(r#"{"scope": ["signal"]}"#).unwrap().check(4).unwrap_err()),
            r#"annotations["dev.berth.landlock"]: signal needs Landlock ABI 6, this kernel has ABI 4"#
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message) in [
            ("[]", "]: found [], expected an object"),
            (r#"{"fz": []}"#, "].fz: unknown key (allowed: fs, net, scope, bestEffort)"),
            ("{}", "]: restricts nothing (allowed: fs, net with bind or connect, scope)"),
            (r#"{"bestEffort": 1}"#, "].bestEffort: found 1, expected true or false"),
            (r#"{"fs": [{"access": "ro"}]}"#, "].fs[0]: needs access and paths"),
            (r#"{"fs": [{"access": "ro", "paths": []}]}"#, "].fs[0].paths: names no path"),
            (
                r#"{"fs": [{"access": "ro", "paths": ["etc"]}]}"#,
                r#"].fs[0].paths[0]: "etc" is not an absolute path of the container"#,
            ),
            (r#"{"fs": [{"access": [], "paths": ["/"]}]}"#, "].fs[0].access: allows nothing"),
            (
                r#"{"fs": [{"access": "ro", "path": "/", "paths": ["/"]}]}"#,
                "].fs[0].path: unknown key (allowed: access, paths)",
            ),
            (r#"{"net": {"bind": [65536]}}"#, "].net.bind[0]: found 65536, expected a port from 0 to 65535"),
            (r#"{"net": {"udp": []}}"#, "].net.udp: unknown key (allowed: bind, connect)"),
            (
                r#"{"scope": ["signals"]}"#,
                r#"].scope[0]: unknown word "signals" (allowed: abstract_unix_socket, signal)"#,
            ),
        ] {
            let line = report::line(&plan(text).unwrap_err());
            assert_eq!(line, format!("annotations[\"dev.berth.landlock\"{message}"));
        }
        assert!(
            report::line(&plan("{").unwrap_err())
                .starts_with("annotations[\"dev.berth.landlock\"]: not JSON: ")
        );
        let line = report::line(&plan(r#"{"fs": [{"access": "rx", "paths": ["/"]}]}"#).unwrap_err());
        assert!(
            line.contains(".fs[0].access: unknown word \"rx\" (allowed: ro, rw, exec, all, execute, "),
            "{line}"
        );
    }
}
