//! Which device nodes does the container get? (config-linux.md, "Devices" and "Default Devices")

use std::path::{Path, PathBuf};

use anyhow::Result;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};

use super::rootfs::in_root;

/// A node in the container's /dev, or elsewhere in its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Where, relative to the root.
    pub path: PathBuf,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// What mknod(2) makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    Char,
    Block,
    Fifo,
}

/// Made in every container.
const DEFAULT: &[(&str, u32, u32)] = &[
    ("dev/null", 1, 3),
    ("dev/zero", 1, 5),
    ("dev/full", 1, 7),
    ("dev/random", 1, 8),
    ("dev/urandom", 1, 9),
    ("dev/tty", 5, 0),
];

/// The default devices, then the config's; a config's entry for a default path takes its place.
pub fn plan(spec: &Spec) -> Result<Vec<Device>> {
    let asked = spec.linux().as_ref().and_then(|l| l.devices().as_deref()).unwrap_or_default();
    let mut out: Vec<Device> = DEFAULT
        .iter()
        .map(|&(path, major, minor)| Device {
            path: PathBuf::from(path),
            kind: DeviceKind::Char,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect();
    for (i, device) in asked.iter().enumerate() {
        let device = one(device, &format!("linux.devices[{i}]"))?;
        match out.iter().position(|d| d.path == device.path) {
            None => out.push(device),
            Some(old) if old < DEFAULT.len() => out[old] = device,
            Some(old) if out[old] == device => {}
            Some(_) => {
                return Err(report::at(
                    format_args!("linux.devices[{i}].path"),
                    format!("/{} is there twice, with different values", device.path.display()),
                ));
            }
        }
    }
    Ok(out)
}

fn one(device: &LinuxDevice, at: &str) -> Result<Device> {
    let path = device.path();
    if !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(report::at(format_args!("{at}.path"), format!("{path:?} is not an absolute path")));
    }
    let path = in_root(path);
    if path.file_name().is_none() || path == Path::new("dev") {
        return Err(report::at(format_args!("{at}.path"), format!("/{} cannot be a device", path.display())));
    }
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Char,
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => {
            return Err(report::at(
                format_args!("{at}.type"),
                "\"a\" is no type of a node; one of c, u, b, p",
            ));
        }
    };
    // linux/kdev_t.h: 12 bits and 20 bits.
    let number = |value: i64, max: u32, name: &str| match u32::try_from(value) {
        Ok(v) if v <= max => Ok(v),
        _ => Err(report::at(format_args!("{at}.{name}"), format!("{value} is not between 0 and {max}"))),
    };
    let (major, minor) = match kind {
        DeviceKind::Fifo => (0, 0),
        _ => (number(device.major(), 0xfff, "major")?, number(device.minor(), 0xf_ffff, "minor")?),
    };
    let mode = device.file_mode().unwrap_or(0o666);
    // Podman gives the whole st_mode: the type is there twice.
    let permissions = mode & !0o170_000;
    if permissions > 0o7777 {
        return Err(report::at(
            format_args!("{at}.fileMode"),
            format!("{mode:o} (octal) is not a file mode"),
        ));
    }
    let id = |id: Option<u32>, name: &str| match id {
        Some(u32::MAX) => Err(report::at(format_args!("{at}.{name}"), format!("{} is no id", u32::MAX))),
        other => Ok(other.unwrap_or(0)),
    };
    Ok(Device {
        path,
        kind,
        major,
        minor,
        mode: permissions,
        uid: id(device.uid(), "uid")?,
        gid: id(device.gid(), "gid")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(devices: &str) -> Result<Vec<Device>> {
        let text = format!("{{\"ociVersion\":\"1.3.0\",\"linux\":{{\"devices\":{devices}}}}}");
        plan(&serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn the_default_ones_come_first_and_can_be_replaced() {
        let paths =
            |d: &[Device]| d.iter().map(|d| d.path.display().to_string()).collect::<Vec<_>>().join(" ");
        let none = plan_of("[]").unwrap();
        assert_eq!(paths(&none), "dev/null dev/zero dev/full dev/random dev/urandom dev/tty");
        let some = plan_of(
            r#"[{"path":"/dev/null","type":"c","major":1,"minor":3,"fileMode":432},
                {"path":"/dev//x/../fuse","type":"c","major":10,"minor":229,"uid":7}]"#,
        )
        .unwrap();
        assert_eq!(paths(&some), "dev/null dev/zero dev/full dev/random dev/urandom dev/tty dev/fuse");
        assert_eq!((some[0].mode, some[6].uid, some[6].mode), (0o660, 7, 0o666));
    }

    #[test]
    fn mistakes() {
        for (devices, message) in [
            (r#"[{"path":"dev/x","type":"c"}]"#, "linux.devices[0].path: \"dev/x\" is not an absolute path"),
            (r#"[{"path":"/dev","type":"c"}]"#, "linux.devices[0].path: /dev cannot be a device"),
            (
                r#"[{"path":"/dev/x","type":"a"}]"#,
                "linux.devices[0].type: \"a\" is no type of a node; one of c, u, b, p",
            ),
            (
                r#"[{"path":"/dev/x","type":"c","major":-1}]"#,
                "linux.devices[0].major: -1 is not between 0 and 4095",
            ),
            (
                r#"[{"path":"/dev/x","type":"c","major":1,"minor":1048576}]"#,
                "linux.devices[0].minor: 1048576 is not between 0 and 1048575",
            ),
            (
                r#"[{"path":"/dev/x","type":"c"},{"path":"/dev/x","type":"b"}]"#,
                "linux.devices[1].path: /dev/x is there twice, with different values",
            ),
        ] {
            assert_eq!(report::line(&plan_of(devices).unwrap_err()), message);
        }
    }
}
