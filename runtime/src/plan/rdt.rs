//! Which class of service of resctrl does the container get? (config-linux.md, "IntelRdt")

use anyhow::Result;
use oci_spec::runtime::LinuxIntelRdt;
use report::at;

/// A group of resctrl.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rdt {
    /// Below /sys/fs/resctrl; empty: the root group, for all that are in no other.
    pub group: String,
    /// The config named it: it may be there already, and then stays.
    pub named: bool,
    /// Lines of its `schemata` file.
    pub schemata: Vec<String>,
    /// Also make a monitoring group of this name.
    pub monitor: Option<String>,
}

/// What `linux.intelRdt` asks for. Without closID the group is called as the container.
pub fn plan(rdt: Option<&LinuxIntelRdt>, id: &str) -> Result<Option<Rdt>> {
    let Some(rdt) = rdt else { return Ok(None) };
    let named = rdt.clos_id().as_deref().filter(|c| !c.is_empty());
    let group = match named {
        Some("/") => "",
        Some(name) => {
            let reserved = ["info", "mon_data", "mon_groups"];
            if name == "." || name == ".." || name.contains(['/', '\0', '\n']) || reserved.contains(&name) {
                return Err(at("linux.intelRdt.closID", format!("{name:?} is not the name of a group")));
            }
            name
        }
        None => id,
    };
    let mut schemata = Vec::new();
    for (field, line) in [("l3CacheSchema", rdt.l3_cache_schema()), ("memBwSchema", rdt.mem_bw_schema())] {
        if let Some(text) = line.as_ref().filter(|l| !l.is_empty()) {
            lines(&mut schemata, text, field)?;
        }
    }
    for (i, line) in rdt.schemata().iter().flatten().enumerate() {
        lines(&mut schemata, line, &format!("schemata[{i}]"))?;
    }
    Ok(Some(Rdt {
        group: group.to_owned(),
        named: named.is_some(),
        schemata,
        monitor: rdt.enable_monitoring().unwrap_or(false).then(|| id.to_owned()),
    }))
}

fn lines(out: &mut Vec<String>, text: &str, field: &str) -> Result<()> {
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if !line
            .split_once(':')
            .is_some_and(|(resource, values)| !resource.is_empty() && values.contains('='))
        {
            return Err(at(
                format_args!("linux.intelRdt.{field}"),
                format!("{line:?} is not a line like L3:0=ffff;1=ff"),
            ));
        }
        out.push(line.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn planned(value: serde_json::Value) -> Result<Option<Rdt>> {
        plan(Some(&serde_json::from_value(value).unwrap()), "web")
    }

    #[test]
    fn groups() {
        let rdt = planned(json!({"closID": "gold", "l3CacheSchema": "L3:0=f;1=f\n", "memBwSchema": "MB:0=20", "schemata": ["L2:0=3"],
            "enableMonitoring": true}))
        .unwrap()
        .unwrap();
        assert_eq!((rdt.group.as_str(), rdt.named, rdt.monitor.as_deref()), ("gold", true, Some("web")));
        assert_eq!(rdt.schemata, ["L3:0=f;1=f", "MB:0=20", "L2:0=3"]);
        let rdt = planned(json!({})).unwrap().unwrap();
        assert_eq!((rdt.group.as_str(), rdt.named, rdt.monitor), ("web", false, None));
        assert_eq!(planned(json!({"closID": "/"})).unwrap().unwrap().group, "");
        for (value, message) in [
            (json!({"closID": "../x"}), "closID: \"../x\" is not the name of a group"),
            (json!({"closID": "info"}), "closID: \"info\" is not the name of a group"),
            (json!({"memBwSchema": "20"}), "memBwSchema: \"20\" is not a line like L3:0=ffff;1=ff"),
        ] {
            assert_eq!(report::line(&planned(value).unwrap_err()), format!("linux.intelRdt.{message}"));
        }
    }
}
