//! What do the options change in the bundle's config? The bundle itself stays as it is: the container gets a copy.

use std::path::Path;

use anyhow::{Context, Result};
use report::{Explain, Kind, at};
use serde_json::{Value, json};

use super::state::{Dir, Options};

/// Where `--init` is found in the container: /dev is a file system of the container's own, so its root file system is left alone.
const INIT: &str = "/dev/berth-init";

/// The bundle's config.
pub fn read(bundle: &Path) -> Result<Value> {
    let path = bundle.join("config.json");
    let text =
        std::fs::read(&path).with_context(|| format!("read {}", path.display())).kind(Kind::BadInput)?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string()).kind(Kind::BadInput)
}

/// The container's config, with what the options say.
pub fn derive(options: &Options) -> Result<Value> {
    let mut config = read(&options.bundle)?;
    let top = config.as_object_mut().ok_or_else(|| at("config.json", "expected an object"))?;
    let process = top.get_mut("process").and_then(Value::as_object_mut);
    let process = process.ok_or_else(|| at("process", "expected an object: there is nothing to run"))?;
    process.insert("terminal".to_owned(), Value::Bool(options.tty));
    if let Some(score) = options.oom_score_adj {
        process.insert("oomScoreAdj".to_owned(), json!(score));
    }
    if options.init.is_some() {
        let args = process.get_mut("args").and_then(Value::as_array_mut);
        let args = args.ok_or_else(|| at("process.args", "expected a list"))?;
        args.splice(0..0, [json!(INIT), json!("--")]);
    }
    // Paths are named from the bundle.
    let absolute = |value: &mut Value| {
        if let Some(path) = value.as_str().filter(|path| !path.starts_with('/')) {
            *value = json!(options.bundle.join(path));
        }
    };
    if let Some(path) = top.get_mut("root").and_then(|root| root.get_mut("path")) {
        absolute(path);
    }
    let mounts = top.entry("mounts").or_insert_with(|| json!([]));
    let mounts = mounts.as_array_mut().ok_or_else(|| at("mounts", "expected a list"))?;
    for mount in mounts.iter_mut() {
        let words = mount.get("options").and_then(Value::as_array).into_iter().flatten();
        let is_bind = words.filter_map(Value::as_str).any(|word| matches!(word, "bind" | "rbind"))
            || mount.get("type").and_then(Value::as_str) == Some("bind");
        if let Some(source) = mount.get_mut("source").filter(|_| is_bind) {
            absolute(source);
        }
    }
    if let Some(init) = &options.init {
        mounts.push(json!({"destination": INIT, "type": "bind", "source": init, "options": ["bind", "ro", "nosuid", "nodev"]}));
    }
    Ok(config)
}

pub fn write(options: &Options, dir: &Dir) -> Result<()> {
    let text = serde_json::to_vec(&derive(options)?).context("write JSON")?;
    let path = dir.file("config.json");
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

/// A process beside the container's own, as its config has that one: for a check of its health.
pub fn process(dir: &Dir, command: &[String]) -> Result<Vec<u8>> {
    let mut config = read(&dir.path)?;
    let mut process = config.get_mut("process").map(Value::take).unwrap_or_default();
    if let Some(object) = process.as_object_mut() {
        object.insert("terminal".to_owned(), Value::Bool(false));
        object.insert("args".to_owned(), json!(command));
    }
    serde_json::to_vec(&process).context("write JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_what_the_options_say() {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{"process": {"terminal": true, "args": ["sh"]}, "root": {"path": "rootfs"}, "annotations": {"a": "b"},
            "mounts": [{"destination": "/v", "source": "vol", "options": ["rbind"]}, {"destination": "/proc", "type": "proc", "source": "proc"}]}"#;
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let options = Options {
            bundle: dir.path().to_owned(),
            init: Some("/i".into()),
            oom_score_adj: Some(5),
            ..Options::default()
        };
        let derived = derive(&options).unwrap();
        let get = |pointer: &str| derived.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(get("/process"), json!({"terminal": false, "args": [INIT, "--", "sh"], "oomScoreAdj": 5}));
        assert_eq!(get("/root/path"), json!(dir.path().join("rootfs")));
        assert_eq!(
            (get("/mounts/0/source"), get("/mounts/1/source")),
            (json!(dir.path().join("vol")), json!("proc"))
        );
        assert_eq!((get("/mounts/2/source"), get("/annotations")), (json!("/i"), json!({"a": "b"})));
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert!(format!("{:#}", derive(&options).unwrap_err()).contains("process: expected an object"));
    }
}
