//! An explanation for a person to read.

use std::fmt::{Display, Write};

use super::Explanation;

/// The whole text; trouble comes last, where the eye is.
pub fn text(e: &Explanation) -> String {
    let mut out = Page(String::new());
    let readonly = if e.root.readonly { ", read-only" } else { "" };
    out.line("bundle", format_args!("{} (spec {})", e.bundle.display(), e.oci_version));
    out.line("root", format_args!("{}{readonly}", e.root.path.display()));
    process(e, &mut out);
    capabilities(e, &mut out);
    namespaces(e, &mut out);
    mounts(e, &mut out);
    out.list("devices", &e.devices);
    out.list("sysctls", &e.sysctls.iter().map(|(k, v)| format!("{k} = {v}")).collect::<Vec<_>>());
    out.list(
        "settings",
        &e.settings.iter().map(|(path, value)| format!("{path} = {value}")).collect::<Vec<_>>(),
    );
    let hooks = e.hooks.iter().map(|h| match h.timeout {
        Some(seconds) => format!("{:<16}{} (at most {seconds} s)", h.when, h.path.display()),
        None => format!("{:<16}{}", h.when, h.path.display()),
    });
    out.list("hooks", &hooks.collect::<Vec<_>>());
    cgroup(e, &mut out);
    seccomp(e, &mut out);
    if let Some(rules) = &e.landlock {
        out.line("landlock", rules);
    }
    problems(e, &mut out);
    out.0
}

/// A heading in the first column, text in the second.
struct Page(String);

impl Page {
    fn line(&mut self, heading: &str, text: impl Display) {
        // Writing to a String cannot fail.
        writeln!(self.0, "{heading:<14}{text}").unwrap_or_default();
    }

    fn list<T: Display>(&mut self, heading: &str, items: &[T]) {
        for (i, item) in items.iter().enumerate() {
            self.line(if i == 0 { heading } else { "" }, item);
        }
    }

    /// Words, as many as fit on a line.
    fn words(&mut self, heading: &str, words: &[String]) {
        let mut lines: Vec<String> = Vec::new();
        for word in words {
            match lines.last_mut() {
                Some(line) if line.len() + word.len() <= 90 => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => lines.push(word.clone()),
            }
        }
        self.list(heading, &lines);
    }
}

fn process(e: &Explanation, out: &mut Page) {
    let p = &e.process;
    let quoted = p
        .args
        .iter()
        .map(|a| if a.contains([' ', '"']) || a.is_empty() { format!("{a:?}") } else { a.clone() });
    out.words("process", &quoted.collect::<Vec<_>>());
    let groups = if p.groups.is_empty() { String::new() } else { format!(", groups {:?}", p.groups) };
    out.line(
        "",
        format_args!("as {}:{}{groups}, in {}, {} variables", p.uid, p.gid, p.cwd.display(), p.variables),
    );
    if p.terminal {
        out.line("", "with a terminal");
    }
    if p.no_new_privileges {
        out.line("", "no new privileges");
    }
    out.list("rlimits", &p.rlimits);
    for (heading, name) in [("apparmor", &p.apparmor), ("selinux", &p.selinux)] {
        if let Some(name) = name {
            out.line(heading, name);
        }
    }
}

fn capabilities(e: &Explanation, out: &mut Page) {
    let c = &e.capabilities;
    let sets = [
        ("bounding", &c.bounding),
        ("effective", &c.effective),
        ("permitted", &c.permitted),
        ("inheritable", &c.inheritable),
        ("ambient", &c.ambient),
    ];
    let mut told: Vec<&Vec<String>> = Vec::new();
    for (name, set) in sets {
        if told.contains(&set) {
            continue;
        }
        told.push(set);
        let same: Vec<&str> = sets.iter().filter(|(_, s)| *s == set).map(|(n, _)| *n).collect();
        out.line(if name == "bounding" { "capabilities" } else { "" }, format_args!("{}:", same.join(", ")));
        let short: Vec<String> = set.iter().map(|c| c.trim_start_matches("CAP_").to_owned()).collect();
        out.words("", if short.is_empty() { &NONE } else { &short });
    }
}

static NONE: std::sync::LazyLock<Vec<String>> = std::sync::LazyLock::new(|| vec!["none".to_owned()]);

fn namespaces(e: &Explanation, out: &mut Page) {
    let of = |how: &str| {
        e.namespaces.iter().filter(|n| n.how == how).map(|n| n.kind.to_owned()).collect::<Vec<_>>()
    };
    out.line("namespaces", format_args!("new: {}", of("new").join(" ")));
    for ns in &e.namespaces {
        if let Some(path) = &ns.path {
            out.line("", format_args!("joined: {} {}", ns.kind, path.display()));
        }
    }
    let shared = of("shared with the caller");
    if !shared.is_empty() {
        out.line("", format_args!("shared with the caller: {}", shared.join(" ")));
    }
    for (heading, maps) in [("user ids", &e.uid_mappings), ("group ids", &e.gid_mappings)] {
        let ranges = maps.iter().map(|m| {
            let last = |first: u32| u64::from(first) + u64::from(m.size) - 1;
            format!(
                "{}-{} are {}-{} outside",
                m.container_id,
                last(m.container_id),
                m.host_id,
                last(m.host_id)
            )
        });
        out.list(heading, &ranges.collect::<Vec<_>>());
    }
}

fn mounts(e: &Explanation, out: &mut Page) {
    let width = e.mounts.iter().map(|m| m.destination.display().to_string().len()).max().unwrap_or(0);
    let lines = e.mounts.iter().map(|m| {
        let source = m.source.as_ref().map(|s| s.display().to_string()).unwrap_or_default();
        let what = if m.kind == "bind" { format!("bind {source}") } else { m.kind.clone() };
        format!("{:width$}  {what}  {}", m.destination.display().to_string(), m.options.join(","))
            .trim_end()
            .to_owned()
    });
    out.list("mounts", &lines.collect::<Vec<_>>());
    out.words("masked", &e.masked_paths);
    out.words("read-only", &e.readonly_paths);
}

fn cgroup(e: &Explanation, out: &mut Page) {
    let Some(cgroup) = &e.cgroup else { return };
    let optional = if cgroup.optional { "; none, where the host does not let us make it" } else { "" };
    out.line("cgroup", format_args!("{}{optional}", cgroup.driver));
    for dir in &cgroup.directories {
        out.line("", dir.display());
    }
    // The file's name says in which of the directories it is.
    let name = |w: &super::Write| w.file.file_name().map(|n| n.to_string_lossy().into_owned());
    let values: Vec<String> =
        cgroup.writes.iter().map(|w| format!("{} = {}", name(w).unwrap_or_default(), w.value)).collect();
    let width = values.iter().map(|v| v.chars().count()).max().unwrap_or(0);
    let writes = cgroup.writes.iter().zip(values).map(|(w, value)| format!("{value:width$}   {}", w.because));
    out.list("limits", &writes.collect::<Vec<_>>());
}

fn seccomp(e: &Explanation, out: &mut Page) {
    let Some(s) = &e.seccomp else { return };
    out.line(
        "seccomp",
        format_args!("{} for every other call; {} instructions", s.default_action, s.instructions),
    );
    out.line("", format_args!("for {}", s.architectures.join(", ")));
    for action in &s.actions {
        let conditional = match action.conditional.len() {
            0 => String::new(),
            n => format!(", and {n} on conditions: {}", action.conditional.join(" ")),
        };
        out.line("", format_args!("{}: {} calls{conditional}", action.action, action.names.len()));
    }
    if !s.unknown.is_empty() {
        out.line("", format_args!("{} unknown names are ignored", s.unknown.len()));
    }
}

fn problems(e: &Explanation, out: &mut Page) {
    out.0.push('\n');
    if e.problems.is_empty() {
        out.0.push_str("This host can do all of it.\n");
        return;
    }
    for (heading, fatal) in [("refused", true), ("note", false)] {
        for problem in e.problems.iter().filter(|p| p.fatal == fatal) {
            out.line(heading, &problem.message);
            if let Some(hint) = &problem.hint {
                out.line("", format_args!("hint: {hint}"));
            }
        }
    }
}
