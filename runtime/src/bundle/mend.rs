//! Which valid configs does the parser not take, and how are they said so that it does?
//!
//! Only a config that was refused comes here. Each step answers one difference between runtime-spec 1.3 and the
//! types it is parsed into.

use oci_spec::runtime::Capability;
use serde_json::{Value, json};

/// Take `null` for "absent", as every engine's JSON writer means it.
pub fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(entries) => {
            entries.retain(|_, v| !v.is_null());
            entries.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// A whole config of the right shape.
pub fn spec(config: &mut Value) {
    if let Some(entries) = config.as_object_mut() {
        // Other platforms' sections say nothing to a Linux runtime; the last two were never in the spec.
        for foreign in ["solaris", "windows", "vm", "zos", "freebsd", "uidMappings", "gidMappings"] {
            entries.remove(foreign);
        }
    }
    if let Some(p) = config.get_mut("process") {
        process(p);
    }
    if let Some(r) = config.pointer_mut("/linux/resources") {
        resources(r);
    }
}

/// A process of the right shape.
pub fn process(process: &mut Value) {
    if let Some(entries) = process.as_object_mut() {
        // The spec gives every part of it a default, the parser wants the object.
        entries.entry("user").or_insert_with(|| json!({}));
    }
    for set in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
        if let Some(Value::Array(names)) = process.pointer_mut(&format!("/capabilities/{set}")) {
            names.retain(|name| {
                let known = serde_json::from_value::<Capability>(name.clone()).is_ok();
                if !known {
                    log::warn!("process.capabilities.{set}: unknown capability {name} is ignored");
                }
                known
            });
        }
    }
    if let Some(Value::Array(flags)) = process.pointer_mut("/scheduler/flags") {
        for flag in flags {
            match flag.as_str() {
                Some("SCHED_FLAG_RESET_ON_FORK") => *flag = json!("SCHED_RESET_ON_FORK"),
                Some("SCHED_FLAG_DL_OVERRUN") => *flag = json!("SCHED_FLAG_D_L_OVERRUN"),
                _ => {}
            }
        }
    }
    // "If omitted or empty": the parser takes neither the empty text nor blanks between ranges.
    if let Some(Value::Object(affinity)) = process.get_mut("execCPUAffinity") {
        for list in affinity.values_mut() {
            if let Value::String(text) = list {
                text.retain(|c| !c.is_ascii_whitespace());
            }
        }
        affinity.retain(|_, list| list != "");
    }
}

/// Resources of the right shape.
pub fn resources(resources: &mut Value) {
    if let Some(Value::Array(limits)) = resources.get_mut("hugepageLimits") {
        for limit in limits.iter_mut().filter_map(|l| l.get_mut("limit")) {
            if limit.as_u64().is_some_and(|bytes| bytes > i64::MAX as u64) {
                *limit = json!(i64::MAX);
            }
        }
    }
}
