//! What does a bundle say? Opens config.json into [`oci_spec::runtime::Spec`]; errors carry the JSON path.
//!
//! A good config is parsed once and checked. Only when the parser refuses it, the document is walked along the
//! specification's shape to say where and what the mistake is, and valid things that the parser does not take
//! are put in its words.

mod check;
mod diagnose;
mod lists;
mod mend;
pub mod shape;
pub mod words;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Error, Result, anyhow};
use oci_spec::runtime::{LinuxResources, Process, Spec};
use report::{Explain, Kind};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::error::Category;

pub use check::{VERSION_MAX, VERSION_MIN};
use shape::Shape;

/// Read, parse and check `<bundle>/config.json` (runtime-spec 1.3, bundle.md and config.md).
///
/// `linux.resources.pids` without a limit counts as absent, so a limit of 0 is one that was written.
///
/// Errors: the file cannot be read; it is not JSON of the specified shape (with the JSON path, what was found
/// and what is allowed); it says something that no host could honour, e.g. an `ociVersion` of another major.
pub fn load(bundle: &Path) -> Result<Spec> {
    parse(&read(bundle)?)
}

/// The bytes of `<bundle>/config.json`.
pub fn read(bundle: &Path) -> Result<Vec<u8>> {
    let path = bundle.join("config.json");
    let unreadable = |e: std::io::Error| match bundle.is_dir() {
        true => Error::new(e).context(format!("read {}", path.display())),
        false => anyhow!("bundle {} is not a directory", bundle.display()),
    };
    // A fifo must not keep us waiting.
    let file = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(&path);
    let mut file = file.map_err(unreadable).kind(Kind::BadInput)?;
    let found = file.metadata().with_context(|| format!("stat {}", path.display()))?;
    if !found.is_file() {
        return Err(report::error(Kind::BadInput, format!("{} is not a regular file", path.display())));
    }
    read_all(&mut file, found.len()).map_err(unreadable).kind(Kind::BadInput)
}

/// One read where the size is right. (`read_to_end` asks the kernel for size and place once more, and ends with
/// a read of nothing.)
fn read_all(file: &mut File, size: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0) + 1];
    let mut length = 0;
    loop {
        length += file.read(&mut bytes[length..])?;
        // A regular file gives less than there is room for at its end alone.
        if length < bytes.len() {
            bytes.truncate(length);
            return Ok(bytes);
        }
        bytes.resize(bytes.len() * 2, 0);
    }
}

const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;

/// Parse and check the bytes of a config.json.
pub fn parse(bytes: &[u8]) -> Result<Spec> {
    parse_spec(bytes).context("config.json")
}

fn parse_spec(bytes: &[u8]) -> Result<Spec> {
    let mut spec: Spec = typed(bytes, &shape::SPEC, mend::spec)?;
    if let Some(resources) = spec.linux_mut().as_mut().and_then(|l| l.resources_mut().as_mut()) {
        forget_pids_without_limit(resources, bytes, "/linux/resources/pids/limit");
    }
    check::spec(&spec)?;
    Ok(spec)
}

/// Parse and check a process object, as `exec --process` takes it.
pub fn parse_process(bytes: &[u8]) -> Result<Process> {
    let process: Process = typed(bytes, &shape::PROCESS, mend::process)?;
    check::process(&process, "")?;
    Ok(process)
}

/// Parse and check a resources object, as `update --resources` takes it.
pub fn parse_resources(bytes: &[u8]) -> Result<LinuxResources> {
    let mut resources: LinuxResources = typed(bytes, &shape::RESOURCES, mend::resources)?;
    forget_pids_without_limit(&mut resources, bytes, "/pids/limit");
    check::resources(&resources, "")?;
    Ok(resources)
}

/// Properties of a config that the specification does not have, each with the name that was probably meant.
pub fn unknown_fields(bytes: &[u8]) -> Result<Vec<(String, Option<&'static str>)>> {
    let value: Value = crate::json::parse(bytes).map_err(|e| syntax(&e))?;
    let mut out = Vec::new();
    diagnose::unknown_fields(&value, &shape::SPEC, "", &mut out);
    Ok(out)
}

/// One pass over a good document; otherwise the slow way round.
fn typed<T: DeserializeOwned>(bytes: &[u8], shape: &Shape, mend: fn(&mut Value)) -> Result<T> {
    let refusal = match crate::json::parse(bytes) {
        Ok(parsed) if std::str::from_utf8(bytes).is_ok_and(lists::all_expected) => return Ok(parsed),
        Ok(_) => None,
        Err(refusal) => Some(refusal),
    };
    let given: Value = crate::json::parse(bytes).map_err(|e| syntax(&e))?;
    let mut value = given.clone();
    mend::drop_nulls(&mut value);
    if let Some(mistake) = diagnose::first_mistake(&value, shape, "") {
        return Err(mistake);
    }
    mend(&mut value);
    match refusal {
        // No value is wrong and none had to be said otherwise: it is the text, for instance a property that
        // stands there twice.
        Some(refusal) if value == given => Err(syntax(&refusal)),
        // As text once more: the parser for values would be a second copy of every type's code in the binary.
        _ => crate::json::parse(value.to_string().as_bytes())
            .map_err(|e| report::error(Kind::BadInput, e.to_string())),
    }
}

/// An error of the text: line, column and what the parser says.
fn syntax(error: &serde_json::Error) -> Error {
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = error.to_string();
    let what = text.strip_suffix(&place).unwrap_or(&text);
    let what = match error.classify() {
        Category::Eof => format!("{what} (is the file complete?)"),
        Category::Syntax | Category::Data | Category::Io => what.to_owned(),
    };
    report::error(Kind::BadInput, format!("line {}, column {}: {what}", error.line(), error.column()))
}

/// The parser makes 0 of a missing limit; only the text tells them apart.
fn forget_pids_without_limit(resources: &mut LinuxResources, bytes: &[u8], pointer: &str) {
    if resources.pids().is_some_and(|pids| pids.limit() == 0)
        && let Ok(value) = crate::json::parse::<Value>(bytes)
        && value.pointer(pointer).is_none_or(Value::is_null)
    {
        resources.set_pids(None);
    }
}

#[cfg(test)]
mod tests;
