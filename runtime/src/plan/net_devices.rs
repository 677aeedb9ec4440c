//! Which network interfaces of the host move into the container? (config-linux.md, "Network Devices")

use std::collections::HashMap;

use anyhow::Result;
use oci_spec::runtime::LinuxNetDevice;
use report::at;
use sys::process::flags;

use super::namespaces::Namespaces;

/// An interface, by its name outside and inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDevice {
    pub host: String,
    pub container: String,
}

/// The kernel's IFNAMSIZ, without the NUL byte.
const LONGEST: usize = 15;

/// Sorted by name.
pub fn plan(
    devices: Option<&HashMap<String, LinuxNetDevice>>,
    namespaces: &Namespaces,
) -> Result<Vec<NetDevice>> {
    let mut out: Vec<NetDevice> = Vec::new();
    for (host, device) in devices.into_iter().flatten() {
        let container = device.name().clone().filter(|n| !n.is_empty()).unwrap_or_else(|| host.clone());
        out.push(NetDevice { host: host.clone(), container });
    }
    out.sort_by(|a, b| a.host.cmp(&b.host));
    for (i, device) in out.iter().enumerate() {
        let place = |part: &str| format!("linux.netDevices[{:?}]{part}", device.host);
        for (part, name) in [("", &device.host), (".name", &device.container)] {
            if !valid(name) {
                return Err(at(place(part), format!("{name:?} is not the name of a network interface")));
            }
        }
        if let Some(other) = out[..i].iter().find(|d| d.container == device.container) {
            return Err(at(
                place(".name"),
                format!("{:?} is also the name of {:?}", device.container, other.host),
            ));
        }
    }
    if !out.is_empty() && !namespaces.has(flags::NEWNET) {
        return Err(at("linux.netDevices", "needs a new or joined network namespace in linux.namespaces"));
    }
    Ok(out)
}

/// The kernel's dev_valid_name.
fn valid(name: &str) -> bool {
    let odd = |c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace();
    !name.is_empty() && name.len() <= LONGEST && name != "." && name != ".." && !name.contains(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(list: &[(&str, &str)], new: u64) -> Result<Vec<NetDevice>> {
        let device = |name: &str| serde_json::from_value(serde_json::json!({ "name": name })).unwrap();
        let map = list.iter().map(|(host, name)| ((*host).to_owned(), device(name))).collect();
        plan(Some(&map), &Namespaces { new, ..Namespaces::default() })
    }

    #[test]
    fn names() {
        let got = planned(&[("eth1", ""), ("eth0", "net0")], flags::NEWNET).unwrap();
        let got: Vec<_> = got.iter().map(|d| (d.host.as_str(), d.container.as_str())).collect();
        assert_eq!(got, [("eth0", "net0"), ("eth1", "eth1")]);
        for (list, new, message) in [
            (&[("eth0", "")][..], 0, ": needs a new or joined network namespace in linux.namespaces"),
            (
                &[("eth0", "a b")],
                flags::NEWNET,
                "[\"eth0\"].name: \"a b\" is not the name of a network interface",
            ),
            (
                &[("../../0", "a")],
                flags::NEWNET,
                "[\"../../0\"]: \"../../0\" is not the name of a network interface",
            ),
            (
                &[("eth0", "averyverylongone")],
                flags::NEWNET,
                "[\"eth0\"].name: \"averyverylongone\" is not the name of a network interface",
            ),
            (&[("a", "x"), ("b", "x")], flags::NEWNET, "[\"b\"].name: \"x\" is also the name of \"a\""),
        ] {
            assert_eq!(report::line(&planned(list, new).unwrap_err()), format!("linux.netDevices{message}"));
        }
    }
}
