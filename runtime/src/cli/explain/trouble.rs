//! What in a config can this host not honour, and why? Everything at once, where `create` names the first.

use std::io::ErrorKind;
use std::path::Path;

use oci_spec::runtime::{LinuxSeccompAction, Spec};

use super::Problem;
use crate::host::Host;
use crate::host::kernel::{self, Kernel};
use crate::plan::{self, Options};

/// What this host lacks.
pub fn host(spec: &Spec, options: &Options, host: &Host, kernel: &Kernel) -> Vec<Problem> {
    let mut out = Vec::new();
    files(spec, options, &mut out);
    file_systems(spec, kernel, &mut out);
    security(spec, kernel, &mut out);
    namespaces(spec, host, kernel, &mut out);
    out
}

fn fatal(message: String) -> Problem {
    Problem { message, hint: None, fatal: true }
}

fn hinted(message: String, hint: &str) -> Problem {
    Problem { hint: Some(hint.to_owned()), ..fatal(message) }
}

/// Each part by itself: the first mistake of one does not hide those of the others. `first` is the one that
/// `create` would name.
pub fn planning(first: &anyhow::Error, spec: &Spec, options: &Options, host: &Host) -> Vec<Problem> {
    let problem = |error: &anyhow::Error| Problem {
        message: report::line(error),
        hint: report::hint(error),
        fatal: true,
    };
    let mut out = vec![problem(first)];
    let linux = spec.linux().as_ref();
    let mut take = |error: anyhow::Error| {
        if !out.iter().any(|p| p.message == report::line(&error)) {
            out.push(problem(&error));
        }
    };
    match plan::namespaces::plan(spec) {
        Ok(namespaces) => {
            plan::idmap::plan(spec, &namespaces).map_or_else(&mut take, drop);
            let sysctls = linux.and_then(|l| l.sysctl().as_ref());
            plan::sysctl::plan(sysctls, &namespaces).map_or_else(&mut take, drop);
            let devices = linux.and_then(|l| l.net_devices().as_ref());
            plan::net_devices::plan(devices, &namespaces).map_or_else(&mut take, drop);
        }
        Err(e) => take(e),
    }
    match plan::resources::plan(spec, options, host) {
        Ok(cgroup) => plan::rootfs::plan(spec, options, host, &cgroup).map_or_else(&mut take, drop),
        Err(e) => take(e),
    }
    if let Some(process) = spec.process() {
        plan::process::plan(process).map_or_else(&mut take, drop);
    }
    plan::hooks::plan(spec).map_or_else(&mut take, drop);
    plan::rdt::plan(linux.and_then(|l| l.intel_rdt().as_ref()), &options.id).map_or_else(&mut take, drop);
    plan::common::plan(linux, options.no_new_keyring).map_or_else(&mut take, drop);
    if let Some(profile) = linux.and_then(|l| l.seccomp().as_ref()) {
        plan::seccomp::plan(profile).map_or_else(&mut take, drop);
    }
    if let Some(rules) = spec.annotations().as_ref().and_then(|a| a.get(plan::landlock::ANNOTATION)) {
        plan::landlock::plan(rules).map_or_else(&mut take, drop);
    }
    out
}

/// Things of the host that the config names.
fn files(spec: &Spec, options: &Options, out: &mut Vec<Problem>) {
    let mut need = |place: String, path: &Path, directory: bool| match std::fs::metadata(path) {
        Ok(found) if directory && !found.is_dir() => {
            out.push(fatal(format!("{place}: {} is not a directory", path.display())));
        }
        Ok(_) => {}
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            out.push(fatal(format!("{place}: {}: no such file or directory", path.display())));
        }
        // We may not look, which says nothing of what root sees.
        Err(_) => {}
    };
    if let Some(root) = spec.root() {
        need("root.path".to_owned(), &options.bundle.join(root.path()), true);
    }
    for (i, mount) in spec.mounts().iter().flatten().enumerate() {
        let bind = mount.options().iter().flatten().any(|o| o == "bind" || o == "rbind");
        if let Some(source) =
            mount.source().as_ref().filter(|_| bind || mount.typ().as_deref() == Some("bind"))
        {
            need(format!("mounts[{i}].source"), &options.bundle.join(source), false);
        }
    }
    for (i, ns) in spec.linux().iter().flat_map(|l| l.namespaces().iter().flatten()).enumerate() {
        if let Some(path) = ns.path().as_ref().filter(|p| !p.as_os_str().is_empty()) {
            need(format!("linux.namespaces[{i}].path"), path, false);
        }
    }
    let linux = spec.linux().as_ref();
    for name in linux.iter().flat_map(|l| l.net_devices().iter().flat_map(|d| d.keys())) {
        need(format!("linux.netDevices[{name:?}]"), &Path::new("/sys/class/net").join(name), false);
    }
    for name in linux.iter().flat_map(|l| l.sysctl().iter().flat_map(|s| s.keys())) {
        need(format!("linux.sysctl[{name:?}]"), &Path::new("/proc/sys").join(name.replace('.', "/")), false);
    }
    if let Some(hooks) = spec.hooks() {
        // The other kinds run inside, where their paths mean something else.
        for (name, list) in [
            ("prestart", hooks.prestart()),
            ("createRuntime", hooks.create_runtime()),
            ("poststart", hooks.poststart()),
            ("poststop", hooks.poststop()),
        ] {
            for (i, hook) in list.iter().flatten().enumerate() {
                need(format!("hooks.{name}[{i}].path"), hook.path(), false);
            }
        }
    }
}

/// Types that the kernel does not know now; a module may bring them.
fn file_systems(spec: &Spec, kernel: &Kernel, out: &mut Vec<Problem>) {
    for (i, mount) in spec.mounts().iter().flatten().enumerate() {
        let bind = mount.options().iter().flatten().any(|o| o == "bind" || o == "rbind");
        let ours = ["", "none", "bind", "cgroup", "cgroup2"];
        let Some(kind) = mount.typ().as_deref().filter(|t| !bind && !ours.contains(t)) else { continue };
        if !kernel.file_systems.iter().any(|known| known == kind) {
            let message = format!("mounts[{i}].type: the kernel has not loaded the file system {kind:?}");
            out.push(Problem { fatal: false, ..fatal(message) });
        }
    }
}

/// What only some kernels have.
fn security(spec: &Spec, kernel: &Kernel, out: &mut Vec<Problem>) {
    let named = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    if let Some(process) = spec.process() {
        if let Some(profile) = named(process.apparmor_profile()).filter(|_| !kernel.apparmor) {
            out.push(fatal(format!(
                "process.apparmorProfile: {profile:?}: this kernel runs without AppArmor"
            )));
        }
        if let Some(label) = named(process.selinux_label()).filter(|_| !kernel.selinux) {
            out.push(fatal(format!("process.selinuxLabel: {label:?}: this kernel runs without SELinux")));
        }
    }
    let Some(linux) = spec.linux() else { return };
    if let Some(label) = named(linux.mount_label()).filter(|_| !kernel.selinux) {
        out.push(fatal(format!("linux.mountLabel: {label:?}: this kernel runs without SELinux")));
    }
    if linux.intel_rdt().is_some() && !kernel.resctrl {
        out.push(fatal("linux.intelRdt: this kernel or processor has no resctrl".to_owned()));
    }
    if let Some(profile) = linux.seccomp() {
        let lacks = |action: LinuxSeccompAction| !kernel.has_seccomp_action(&action.to_string());
        if lacks(profile.default_action()) {
            let action = profile.default_action();
            out.push(fatal(format!("linux.seccomp.defaultAction: this kernel does not know {action}")));
        }
        for (i, flag) in profile.flags().iter().flatten().enumerate() {
            if !sys::kernel::has_seccomp_flag(&flag.to_string()) {
                out.push(fatal(format!("linux.seccomp.flags[{i}]: this kernel does not know {flag}")));
            }
        }
        for (i, rule) in profile.syscalls().iter().flatten().enumerate().filter(|(_, r)| lacks(r.action())) {
            let action = rule.action();
            out.push(fatal(format!(
                "linux.seccomp.syscalls[{i}].action: this kernel does not know {action}"
            )));
        }
    }
}

/// Rules that need a newer Landlock than this kernel's.
pub fn landlock(rules: &plan::landlock::Landlock, kernel: &Kernel) -> Option<Problem> {
    let (abi, what) = &rules.needs;
    if rules.best_effort || kernel.landlock >= *abi {
        return None;
    }
    let has = match kernel.landlock {
        0 => "this kernel runs without Landlock".to_owned(),
        version => format!("{what} needs version {abi} of Landlock, this kernel has {version}"),
    };
    let place = format!("annotations[{:?}]", plan::landlock::ANNOTATION);
    Some(hinted(format!("{place}: {has}"), "\"bestEffort\": true goes on without what the kernel lacks"))
}

fn namespaces(spec: &Spec, host: &Host, kernel: &Kernel, out: &mut Vec<Problem>) {
    let Some(linux) = spec.linux() else { return };
    let list = linux.namespaces().as_deref().unwrap_or_default();
    for (i, ns) in list.iter().enumerate() {
        let word = serde_json::to_value(ns.typ())
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default();
        if !kernel.namespaces.contains(&word.as_str()) {
            out.push(fatal(format!("linux.namespaces[{i}].type: this kernel has no {word} namespaces")));
        }
    }
    if !host.rootless || host.euid == 0 {
        return;
    }
    let user = list.iter().any(|n| n.typ() == oci_spec::runtime::LinuxNamespaceType::User);
    if user && !kernel.user_namespaces_allowed {
        out.push(fatal(
            "linux.namespaces: this host does not allow user namespaces to ordinary users".to_owned(),
        ));
    }
    for (field, maps, program) in [
        ("uidMappings", linux.uid_mappings(), "newuidmap"),
        ("gidMappings", linux.gid_mappings(), "newgidmap"),
    ] {
        let more = maps.as_ref().is_some_and(|m| m.len() > 1 || m.iter().any(|m| m.size() > 1));
        if more && kernel::program(Path::new(program)).is_none() {
            out.push(hinted(
                format!("linux.{field}: more than one id needs the program {program}, which is not in PATH"),
                "Debian has it in the package uidmap",
            ));
        }
    }
}
