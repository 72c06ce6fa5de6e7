//! What the kernel itself makes of a bond's paths: a tunnel for each, under bonding or one route over
//! them all. netbond takes its place, talks to it, and is held up beside it.
//!
//! Each function returns commands for [`Router::ip`](crate::Router::ip).

use crate::topology::PathSpec;

/// The device that bonds the tunnels.
pub const BOND: &str = "bond0";

/// The tunnel's device of a path, counted from 1.
pub fn device(number: usize) -> String {
    format!("path{number}")
}

/// The tunnels' devices, in the order of the paths.
pub fn devices(paths: &[PathSpec]) -> impl Iterator<Item = String> {
    (1..=paths.len()).map(device)
}

/// Makes the tunnels, of kind `gre` or `gretap`, with these options besides. The route decides which
/// way each leads.
pub fn tunnels(paths: &[PathSpec], kind: &str, mtu: u32, options: &str) -> String {
    let add = |(path, device): (&PathSpec, String)| {
        format!(
            "link add {device} mtu {mtu} type {kind} local {} remote {} {options}\n",
            path.local, path.remote
        )
    };
    paths.iter().zip(devices(paths)).map(add).collect()
}

/// Bonds the tunnels, with these options of bonding.
pub fn bonding(paths: &[PathSpec], mtu: u32, options: &str) -> String {
    let mut commands = format!("link add {BOND} type bond {options}\n");
    for device in devices(paths) {
        commands += &format!("link set {device} master {BOND}\n");
    }
    commands + &format!("link set {BOND} mtu {mtu} up\n")
}

/// Sets the tunnels up, each a device of its own.
pub fn up(paths: &[PathSpec]) -> String {
    devices(paths)
        .map(|device| format!("link set {device} up\n"))
        .collect()
}

/// How a route over all the tunnels ends.
pub fn nexthops(paths: &[PathSpec]) -> String {
    devices(paths)
        .map(|device| format!(" nexthop dev {device}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    #[test]
    fn tunnels_join_the_paths_ends() {
        let topology = Topology::reference();
        assert_eq!(
            tunnels(&topology.bonds[0].paths, "gre", 1416, "ttl 64"),
            "link add path1 mtu 1416 type gre local 10.65.0.2 remote 10.65.0.6 ttl 64\n\
             link add path2 mtu 1416 type gre local 10.65.0.14 remote 10.65.0.10 ttl 64\n"
        );
    }
}
