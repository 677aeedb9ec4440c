//! `exec --cgroup [CONTROLLERS:]PATH`: which sub-cgroups does one more process enter?

use std::path::Path;

use anyhow::Result;
use report::Kind;

use super::Record;

/// The values of `--cgroup`; none: the container's own cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sub {
    /// v1 controllers (none: all hierarchies) and a path below the container's cgroup.
    paths: Vec<(Option<String>, String)>,
}

impl Sub {
    /// Parse the values of the option.
    pub fn parse<S: AsRef<str>>(values: &[S]) -> Result<Sub> {
        let mut paths = Vec::new();
        for value in values {
            let value = value.as_ref();
            let (controllers, path) = match value.split_once(':') {
                Some((controllers, path)) => (Some(controllers.to_owned()), path),
                None => (None, value),
            };
            if controllers.as_ref().is_some_and(String::is_empty) || path.split('/').any(|part| part == "..")
            {
                return Err(report::error(
                    Kind::BadInput,
                    format!("--cgroup {value:?}: [CONTROLLER[,CONTROLLER]:]PATH, without \"..\", is allowed"),
                ));
            }
            paths.push((controllers, path.to_owned()));
        }
        Ok(Sub { paths })
    }

    /// The directories of that sub-cgroup.
    pub(super) fn of(&self, record: &Record) -> Result<Record> {
        let mut out = record.clone();
        let join = |base: &Path, path: &str| match path.trim_matches('/') {
            "" => base.to_owned(),
            path => base.join(path),
        };
        for (wanted, path) in &self.paths {
            let Some(wanted) = wanted else {
                for (index, (_, base)) in record.v1.iter().enumerate() {
                    out.v1[index].1 = join(base, path);
                }
                out.v2 = record.v2.as_deref().map(|base| join(base, path));
                continue;
            };
            for controller in wanted.split(',') {
                let has = |names: &str| {
                    names.split(',').any(|n| n == controller || n.strip_prefix("name=") == Some(controller))
                };
                let Some(index) = record.v1.iter().position(|(names, _)| has(names)) else {
                    return Err(report::error(
                        Kind::BadInput,
                        format!("--cgroup {wanted}:{path}: the container has no v1 cgroup of {controller:?}"),
                    ));
                };
                out.v1[index].1 = join(&record.v1[index].1, path);
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_cgroups() {
        let record = Record {
            v1: vec![("freezer".into(), "/f/c".into()), ("cpu,cpuacct".into(), "/p/c".into())],
            v2: Some("/u/c".into()),
            ..Record::default()
        };
        let dirs = |values: &[&str]| -> Result<Vec<String>, String> {
            let of = Sub::parse(values).and_then(|sub| sub.of(&record)).map_err(|e| report::line(&e))?;
            Ok(of.v1.iter().map(|(_, p)| p).chain(&of.v2).map(|p| p.display().to_string()).collect())
        };
        let ok = |paths: [&str; 3]| Ok(paths.map(str::to_owned).into());
        assert_eq!(dirs(&[]), ok(["/f/c", "/p/c", "/u/c"]));
        assert_eq!(dirs(&["/x/y/"]), ok(["/f/c/x/y", "/p/c/x/y", "/u/c/x/y"]));
        assert_eq!(dirs(&["/"]), ok(["/f/c", "/p/c", "/u/c"]));
        assert_eq!(dirs(&["cpuacct:x", "freezer:z"]), ok(["/f/c/z", "/p/c/x", "/u/c"]));
        assert_eq!(
            dirs(&["pids:x"]),
            Err("--cgroup pids:x: the container has no v1 cgroup of \"pids\"".to_owned())
        );
        let wrong = "--cgroup \"a/../b\": [CONTROLLER[,CONTROLLER]:]PATH, without \"..\", is allowed";
        assert_eq!(dirs(&["a/../b"]), Err(wrong.to_owned()));
    }
}
