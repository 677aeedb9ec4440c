//! Network devices of the host in the container.

use std::process::Command;

use harness::{Bed, Output, finish, json, need};

fn ip(args: &[&str]) -> Output {
    finish(Command::new("ip").args(args))
}

/// runtime-spec 1.3, config-linux.md, "Network Devices": moved, renamed, with its addresses, and up.
#[test]
fn a_device_moves_in_with_its_addresses() {
    let Some(_) = need::root() else { return };
    let Some(_) = need::ours() else { return };
    let Some(_) = need::program("ip") else { return };
    let name = format!("bt{}", std::process::id() % 1_000_000);
    let peer = format!("{name}p");
    let made = ip(&["link", "add", &name, "type", "veth", "peer", "name", &peer]);
    let Some(_) = need::that(made.code == Some(0), "no veth devices here") else { return };
    ip(&["address", "add", "192.0.2.7/24", "dev", &name]).success();
    let bed = Bed::new();
    let b = bed.bundle().set("/linux/netDevices", json!({&name: {"name": "inner0"}}));
    let out = b.sh("ip -o link show inner0 | grep -o '[<,]UP[,>]' | tr -d '<,>'; ip -o -4 address show inner0 | grep -o '192.0.2.7/24'").run();
    ip(&["link", "delete", &peer]);
    out.success().stdout_is("UP\n192.0.2.7/24\n");

    let b = bed.bundle().set("/linux/netDevices", json!({"nonesuch0": {}}));
    b.run().exits(1).stderr_has("linux.netDevices[\"nonesuch0\"]: ").stderr_has("no such device");
    bed.is_clean();
}
